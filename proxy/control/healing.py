"""Have a sidecar recover from what its own health checks find ill.

Healths --diagnoses--> Recoverer --check--> Healths, whose verdict learns of it
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Literal

from understudy.policies.verdict import Word
from understudy.proxy.control.recovery import Recoverer, Verdict
from understudy.proxy.control.rungs import Rungs
from understudy.proxy.health.board import Healths, kind_of
from understudy.proxy.sidecar import Sidecar

WORDS: Mapping[Word, Literal["ill", "well", "unsure"]] = {
    "unhealthy": "ill",
    "healthy": "well",
    "degraded": "unsure",
    "unknown": "unsure",
}


class OfHealth:
    """The health of a sidecar, as recovery asks for it."""

    def __init__(self, health: Healths) -> None:
        self._health = health

    def verdicts(self) -> Mapping[str, Verdict]:
        return {one.component: Verdict(WORDS[one.word], kind_of(one)) for one in self._health.diagnoses}

    async def passes(self, component: str, kind: str) -> bool:
        del kind
        return (await self._health.check(component)).passed


async def keep_recovering(sidecar: Sidecar, *, wall: Callable[[], float] = time.time, frugal: bool = True) -> None:
    """Recover until cancelled, in the one process of several that finds out what is ill; `frugal` is for Rungs."""
    if not sidecar.health.is_leader:
        return
    checks, rungs = OfHealth(sidecar.health), Rungs(sidecar, frugal=frugal)
    recovery = sidecar.recovery = Recoverer(sidecar, checks, rungs, wall=wall, dice=sidecar.world.dice)
    done = sidecar.health.subscribe(lambda _one, _before: recovery.wake())
    try:
        await recovery.run()
    finally:
        done()
