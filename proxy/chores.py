"""What one worker of a sidecar does beside answering calls: goldens asked, texts of copies embedded, maps fitted.

Nothing of it is there unless the policies ask for it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from understudy.proxy.stack import RouteParts
from understudy.proxy.tiers.knowing import Knowing

if TYPE_CHECKING:
    from understudy.proxy.llm.child import LlmChild
    from understudy.proxy.settings.llm import Llm
    from understudy.proxy.spaces.bridging import Bridges
    from understudy.proxy.spaces.provenance import Provenance
    from understudy.proxy.spaces.shadow_index import ShadowIndex


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
        self.bridges: Bridges | None = None
        """The maps into copies without texts, where there may be any."""
        self._bridge: asyncio.Task[None] | None = None
        self._drain: asyncio.Task[None] | None = None
        self._llm: LlmChild | None = None

    def watch(self) -> None:
        """See to it that goldens are asked where a route is watched."""
        if self._watch is None and any(parts.watch is not None for parts in self._routes()):
            from understudy.proxy.watching.watching import watch_all

            self._watch = asyncio.get_running_loop().create_task(
                watch_all(lambda: [parts.watch for parts in self._routes() if parts.watch is not None])
            )

    def fill_shadows(self, cpu_share: float) -> None:
        """Embed the texts of collections whose vectors are another model's, for a share of a core."""
        if self._fill is None and cpu_share > 0 and self._knowing.ready:
            from understudy.proxy.spaces.shadow_index import ShadowIndex

            self.shadow_index = ShadowIndex(self._knowing, cpu_share, self._is_outage, clock=self._clock)
            self._fill = asyncio.get_running_loop().create_task(self.shadow_index.run())

    def bridge_spaces(self, cpu_share: float, provenance: Provenance, folder: Path, *, gathers: bool) -> None:
        """Have maps into copies without texts: one worker fits them to what passes all of them, and all read them."""
        if self._bridge is None and cpu_share > 0 and self._knowing.ready:
            from understudy.proxy.spaces.bridging import Bridges

            bridges = self.bridges = self._knowing.bridges = Bridges(
                self._knowing,
                cpu_share,
                self._is_outage,
                folder,
                gathers=gathers,
                clock=self._clock,
                wall=time.time,
                dice=random.random,
            )
            provenance.pairing = bridges.offer
            self._bridge = asyncio.get_running_loop().create_task(bridges.run())

    def carry_out(self) -> None:
        """See to it that writes which wait for their vectors are carried out."""
        if self._drain is None and any(parts.held is not None for parts in self._routes()):
            from understudy.proxy.spaces.held_writes import drain_all

            self._drain = asyncio.get_running_loop().create_task(
                drain_all(lambda: [parts.held for parts in self._routes() if parts.held is not None])
            )

    def serve_llm(self, llm: Llm | None) -> None:
        """Have the local language model served by a child of ours, where there is one."""
        if self._llm is None:
            if llm is None:
                return
            from understudy.proxy.llm.child import LlmChild

            self._llm = LlmChild()
        self._llm.obey(llm)

    async def stop(self) -> None:
        """Let go of all of it."""
        if self._llm is not None:
            await self._llm.stop()
        tasks = [task for task in (self._watch, self._fill, self._bridge, self._drain) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for parts in self._routes():
            if parts.held is not None:
                parts.held.close()
        if self.bridges is not None:
            await self.bridges.close()

    def _is_outage(self) -> bool:
        """Whether an upstream of some route is away, so that the local tier has callers to answer."""
        tiers = (tier for parts in self._routes() for tier in parts.tiers.values())
        guards = (endpoint.breaker for tier in tiers for endpoint in tier.endpoints.values())
        return any(guard is not None and guard.shown != "closed" for guard in guards)
