"""What one worker of a sidecar does beside answering calls: goldens are asked, and texts of copies embedded.

Nothing of it is there unless the policies ask for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from understudy.proxy.stack import RouteParts
from understudy.proxy.tiers.knowing import Knowing

if TYPE_CHECKING:
    from understudy.proxy.shadow_index import ShadowIndex


class Chores:
    """The tasks of one process; `routes` are those in force."""

    def __init__(
        self, knowing: Knowing, routes: Callable[[], Iterable[RouteParts]], clock: Callable[[], float]
    ) -> None:
        self.shadow_index: ShadowIndex | None = None
        self._knowing = knowing
        self._routes = routes
        self._clock = clock
        self._watch: asyncio.Task[None] | None = None
        self._fill: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """See to it that goldens are asked where a route is watched."""
        if self._watch is None and any(parts.watch is not None for parts in self._routes()):
            from understudy.proxy.watching import watch_all

            self._watch = asyncio.get_running_loop().create_task(
                watch_all(lambda: [parts.watch for parts in self._routes() if parts.watch is not None])
            )

    def fill_shadows(self, cpu_share: float) -> None:
        """Embed the texts of collections whose vectors are another model's, for a share of a core."""
        if self._fill is None and cpu_share > 0 and self._knowing.ready:
            from understudy.proxy.shadow_index import ShadowIndex

            self.shadow_index = ShadowIndex(self._knowing, cpu_share, self._is_outage, clock=self._clock)
            self._fill = asyncio.get_running_loop().create_task(self.shadow_index.run())

    async def stop(self) -> None:
        """Let go of all of it."""
        tasks = [task for task in (self._watch, self._fill) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _is_outage(self) -> bool:
        """Whether an upstream of some route is away, so that the local tier has callers to answer."""
        tiers = (tier for parts in self._routes() for tier in parts.tiers.values())
        guards = (endpoint.breaker for tier in tiers for endpoint in tier.endpoints.values())
        return any(guard is not None and guard.shown != "closed" for guard in guards)
