"""Keep the process that serves the local language model alive, and end it with us.

It is told nothing of what we know: of the environment it gets what runs a program, and no key.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Mapping

from understudy.proxy.settings.llm import Llm

log = logging.getLogger("understudy.llm")

PAUSE_S_MIN, PAUSE_S_MAX = 1.0, 60.0
"""Between two starts; twice as long after each that did not last."""
LASTING_S = 60.0
END_S_MAX = 3.0
_NEEDED = frozenset({"PATH", "HOME", "LANG", "TMPDIR", "TZ", "USER", "XDG_CACHE_HOME"})
_NEEDED_PREFIXES = ("CUDA_", "LC_", "LD_", "NVIDIA_", "OMP_", "ORT_", "PYTHON")


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """As much of it as a child needs to run."""
    return {name: value for name, value in environ.items() if name in _NEEDED or name.startswith(_NEEDED_PREFIXES)}


def command(llm: Llm) -> list[str]:
    """What is run."""
    options = {
        "--listen": llm.listen,
        "--answer-tokens": llm.answer_tokens_max,
        "--waiting": llm.waiting_max,
        "--wait-s": llm.wait_s_max,
    }
    told = [str(part) for pair in options.items() for part in pair]
    return [sys.executable, "-m", "understudy.proxy.cli", "llm", llm.folder, *told, "--with-parent"]


class LlmChild:
    """The child of one process; `obey` says what is to be served now."""

    def __init__(self) -> None:
        self.starts = 0
        self._serves: Llm | None = None
        self._task: asyncio.Task[None] | None = None

    def obey(self, llm: Llm | None) -> None:
        """Have this model served, or none; what is served already goes on."""
        if llm == self._serves:
            return
        before, self._serves = self._task, llm
        if before is not None:
            before.cancel()
        self._task = asyncio.get_running_loop().create_task(self._kept(llm, before))

    async def stop(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _kept(self, llm: Llm | None, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            # they may have the same address
            await asyncio.gather(before, return_exceptions=True)
        pause_s, now = PAUSE_S_MIN, asyncio.get_running_loop().time
        while llm is not None:
            began = now()
            code = await self._run(llm)
            pause_s = PAUSE_S_MIN if now() - began >= LASTING_S else min(2 * pause_s, PAUSE_S_MAX)
            log.error("the process of the local language model ended with %d; again in %.0f s", code, pause_s)
            await asyncio.sleep(pause_s)

    async def _run(self, llm: Llm) -> int:
        # our end of its standard input is closed with us, however we end
        child = await asyncio.create_subprocess_exec(
            *command(llm), stdin=asyncio.subprocess.PIPE, env=environment(os.environ)
        )
        self.starts += 1
        try:
            return await child.wait()
        finally:
            if child.returncode is None:
                child.terminate()
                try:
                    await asyncio.wait_for(child.wait(), END_S_MAX)
                except TimeoutError:
                    child.kill()
                    await child.wait()
