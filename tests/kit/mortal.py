"""Recover something which nothing helps, in a process to be killed at any moment: `python -m tests.kit.mortal FOLDER`.

FOLDER has policies/ and state/; it ends by itself once a human has been told and nothing is left to do.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from understudy.proxy.control.recovery import Recoverer, Verdict
from understudy.proxy.control.rungs import Rungs
from understudy.proxy.sidecar import Sidecar

COMPONENT = "vector_database:127.0.0.1:1"
QUIET_S = 0.5


class Hopeless:
    """Checks that never pass."""

    def verdicts(self) -> Mapping[str, Verdict]:
        return {COMPONENT: Verdict("ill", "refused")}

    async def passes(self, component: str, kind: str) -> bool:
        del component, kind
        return False


async def recover(folder: Path) -> None:
    """Recover until there is nothing more to do."""
    sidecar = Sidecar(folder / "policies", folder / "state", {})
    recoverer = Recoverer(sidecar, Hopeless(), Rungs(sidecar))
    running = asyncio.create_task(recoverer.run())
    done_at = 0.0
    loop = asyncio.get_running_loop()
    while not done_at or loop.time() < done_at + QUIET_S:
        await asyncio.sleep(0.02)
        ladder = recoverer.heart.ladders.get(COMPONENT)
        if ladder is None or ladder.escalated_at is None or recoverer.is_busy:
            done_at = 0.0
        elif not done_at:
            done_at = loop.time()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await sidecar.stop()


if __name__ == "__main__":
    asyncio.run(recover(Path(sys.argv[1])))
