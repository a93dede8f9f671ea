"""Look at health four times a second, and ask services whose turn it is.

Of several workers the one at place 0 does so; the others hear of it (`control/worker.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from understudy.proxy.sidecar import Sidecar

TICK_S, TICK_S_MAX = 0.25, 5.0
TICK_SHARE = 0.01
"""Of the process's time, looking takes no more than this: with a thousand routes it looks less often. Whatever it took,
as where the garbage collector went through everything meanwhile, the next look is soon enough to matter."""
LOOK_S, CACHE_LOOK_S = 1.0, 0.5
AT_ONCE_MAX = 16
"""Services asked at once; the others wait for the next look."""

log = logging.getLogger("understudy.health")


async def keep_healthy(sidecar: Sidecar, *, cpu: Callable[[], float] = time.thread_time) -> None:
    """Until it is cancelled. What is an error of our own ends nothing else. `cpu` tells the CPU time of this thread:
    what others do meanwhile is none of the looks'."""
    if not sidecar.health.is_leader:
        return
    meanings, prompts = sidecar.meanings, sidecar.prompts
    looks = ((meanings.look, LOOK_S), (prompts.look, LOOK_S), (meanings.look_at_cache, CACHE_LOOK_S))
    looking = [asyncio.create_task(_keep(*each)) for each in looks]
    asking: dict[str, asyncio.Task[None]] = {}
    loop = asyncio.get_running_loop()
    try:
        while True:
            began = cpu()
            try:
                sidecar.health.look()
                for name in sidecar.checkup.due(sidecar.world.clock()):
                    if name not in asking and len(asking) < AT_ONCE_MAX:
                        task = asking[name] = loop.create_task(sidecar.checkup.ask(name))
                        task.add_done_callback(lambda _, name=name: asking.pop(name, None))
            except Exception:
                log.exception("health could not be looked at")
            await asyncio.sleep(min(TICK_S_MAX, max(TICK_S, (cpu() - began) / TICK_SHARE)))
    finally:
        tasks = [*looking, *asking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _keep(look: Callable[[], Awaitable[None]], pause_s: float) -> None:
    """One look after another, however long each takes: what answers mean, what prompts come to, the cache."""
    while True:
        await asyncio.sleep(pause_s)
        try:
            await look()
        except Exception:
            log.exception("meanings could not be looked at")
