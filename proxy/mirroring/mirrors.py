"""All the mirrors of one process: made when a policy asks for one, kept over reloads, asked by the local tier.

A route's mirror is one object for as long as the policies say the same of it; what a reload changes makes another,
which goes on with what the first has written down.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from understudy.indexes.points import Point
from understudy.policies.chain import Link, rank_of
from understudy.policies.pace import Pace
from understudy.policies.service import Answer, Refused, Service
from understudy.proxy.mirroring.applying import Stock
from understudy.proxy.mirroring.keeper import Keeper
from understudy.proxy.mirroring.line import ATTEMPTS_MAX, Line
from understudy.proxy.mirroring.mirror import Mirror
from understudy.proxy.mirroring.sources import source_of
from understudy.proxy.mirroring.walking import Progress, Walker
from understudy.proxy.settings.settings import LocalTier, Route, Settings, UpstreamTier

if TYPE_CHECKING:
    from understudy.proxy.handles import Handles
    from understudy.proxy.tiers.knowing import Shelf

STOCK_S = 0.2
STALENESS = b"x-understudy-staleness-s"

log = logging.getLogger("understudy.mirror")

Listener = Callable[[str, Sequence[Point]], None]
"""Told of points with words once they are durable: the local collection's name, and the points. In a thread."""


class Mirrors:
    """One process's worth. `state` is the state folder, `stock` gives the local collections, and `links` the tiers of a
    route that is in force."""

    def __init__(
        self,
        state: Path,
        stock: Callable[[], Any],
        *,
        links: Callable[[str], Sequence[Link]] = lambda _route: (),
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.state = state
        self.listeners: list[Listener] = []
        self._stock = cast("Callable[[], Stock]", stock)
        self._links = links
        self._wall = wall
        self._sleep = sleep
        self._made: dict[str, Kept] = {}
        self._running: dict[str, Kept] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mirror")
        self._tasks: set[asyncio.Task[None]] = set()

    # --- from a stack that is being put together ---------------------------------------------------------------------

    def of_route(self, route: Route, dialect: Any, settings: Settings, handles: Handles | None) -> Kept:
        """The mirror of a route, as it will be once it is `adopted`; the one there is where it is about the same."""
        tier = primary_of(route, settings)
        assert route.mirror is not None
        active = tier in settings.active(route)
        about = (active, route.dialect, settings.space_of(route), tier, renamed_of(route), route.mirror)
        for kept in (self._running.get(route.name), self._made.get(route.name)):
            if kept is not None and kept.about == about:
                self._made[route.name] = kept
                return kept
        mirror = Mirror(
            route.name,
            route.mirror,
            dialect,
            folder=mirror_folder(self.state, route.name),
            stock=self._stock,
            thread=self._thread,
            space=settings.space_of(route),
            renamed=renamed_of(route),
            handles=handles,
            listener=self._tell,
            wall=self._wall,
        )
        kept = Kept(mirror, tier, rank_of([each.name for each in route.tiers].index(tier.name)), route.dialect)
        kept.about, kept.active = about, active
        kept.heard = lambda: self._heard(route.name, tier.name)
        self._made[route.name] = kept
        return kept

    def _heard(self, route: str, tier: str) -> int:
        """How often a route's database has answered callers so far."""
        links = self._links(route) if route in self._running else ()
        outcomes = [link.outcomes for link in links if link.name == tier]
        return sum(count for each in outcomes for key, count in each.items() if key[0] == "answered")

    def adopt(self, routes: Iterable[str]) -> None:
        """Run the mirrors of these routes as they were last made, and no others."""
        names = set(routes)
        wanted = {name: kept for name, kept in self._made.items() if name in names}
        for name, kept in list(self._running.items()):
            if wanted.get(name) is not kept:
                del self._running[name]
                self._spawn(kept.stop())
        for name, kept in wanted.items():
            if name not in self._running:
                self._running[name] = kept
                self._spawn(kept.start(self._sleep))
        self._made = wanted

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an error of our own in a mirror", exc_info=error)

    async def stop(self) -> None:
        """Apply what waits, and let go of everything."""
        await asyncio.gather(*(kept.stop() for kept in self._running.values()), return_exceptions=True)
        self._running.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def copy_again(self, local: str) -> bool:
        """Have a local collection made anew from its database; False where it is no copy. Raises SourceFailed where the
        database does not answer, IndexFault: what can't be had again is not dropped."""
        for kept in self._running.values():
            held = kept.mirror.held.get(local)
            if held is None or held.refused or kept.keeper is None:
                continue
            await kept.keeper.walker.source.described(held.called)
            await kept.mirror.copy_again(local)
            return True
        return False

    # --- what others ask -------------------------------------------------------------------------------------------

    @property
    def running(self) -> dict[str, Kept]:
        """By route."""
        return self._running

    def listen(self, listener: Listener) -> None:
        """Be told of points with words, in the applying thread, once they are durable."""
        self.listeners.append(listener)

    def _tell(self, local: str, points: Sequence[Point]) -> None:
        for listener in self.listeners:
            listener(local, points)

    def watching(self, shelf: Shelf) -> Watched:
        """The local collections, for one call: what it reads of copies is looked at for how stale it is."""
        return Watched(shelf, self)

    def check_fresh(self, local: str) -> float | None:
        """Seconds that a local collection is stale, None for one that is no copy. Raises Refused."""
        for kept in self._running.values():
            if (staleness_s := kept.mirror.check_fresh(local)) is not None:
                return staleness_s
        return None


class Kept:
    """A mirror with what runs it: the tier that it mirrors, and its keeper."""

    def __init__(self, mirror: Mirror, tier: UpstreamTier, rank: str, dialect: str) -> None:
        self.mirror = mirror
        self.tier = tier
        self.rank = rank
        self.dialect = dialect
        self.about: object = None
        self.active = True
        self.heard: Callable[[], int] = lambda: 0
        self.keeper: Keeper | None = None
        self._task: asyncio.Task[None] | None = None

    def tapped(self, service: Service) -> Service:
        """`service`, the tiers of the route, with its writes seen."""
        return self.mirror.tapped(service, self.rank, self.tier.name)

    async def start(self, sleep: Callable[[float], Awaitable[object]]) -> None:
        """Begin to tap, and to keep."""
        await asyncio.get_running_loop().run_in_executor(None, self.mirror.ready)
        self.mirror.start()
        await self._stocked(sleep)
        self.mirror.lane.start()
        if not self.active:
            # there is no database to ask in this environment; what was copied from it answers
            return
        self.keeper = self.keeping(sleep=sleep)
        self._task = asyncio.get_running_loop().create_task(self.keeper.run())

    async def _stocked(self, sleep: Callable[[float], Awaitable[object]]) -> None:
        """Wait until the local collections are open; what passes meanwhile waits in the lane."""
        while True:
            try:
                self.mirror.stock()
            except Refused:
                await sleep(STOCK_S)
            else:
                return

    def keeping(
        self,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        progress: Progress | None = None,
        prune: bool = False,
        points_per_s: float | None = None,
        attempts_max: int = ATTEMPTS_MAX,
    ) -> Keeper:
        """A keeper with a source of its own, which asks for each thing so often."""
        pace = Pace(points_per_s or self.mirror.rules.points_per_s)
        line = Line(self.tier, pace, sleep=sleep, attempts_max=attempts_max)
        source = source_of(self.dialect, line, self.mirror.names())
        walker = Walker(self.mirror, source, line.paced, sleep=sleep, progress=progress, prune=prune)
        return Keeper(self.mirror, walker, sleep=sleep, heard=lambda: self.heard())

    async def stop(self) -> None:
        """Let go of it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self.keeper is not None:
            await self.keeper.walker.source.close()
        await self.mirror.stop()


class Watched:
    """A Shelf for one call, which notes the staleness of the copies that are read."""

    def __init__(self, shelf: Shelf, mirrors: Mirrors) -> None:
        self._shelf = shelf
        self._mirrors = mirrors
        self._staleness_s: float | None = None

    def get(self, name: str) -> Any:
        """As the shelf's own. Raises Refused for a copy that must not answer."""
        staleness_s = self._mirrors.check_fresh(name)
        if staleness_s is not None:
            self._staleness_s = max(self._staleness_s or 0.0, staleness_s)
        return self._shelf.get(name)

    def names(self) -> Sequence[str]:
        """Without the copies that must not answer."""
        return [name for name in self._shelf.names() if self._answers(name)]

    def refresh(self) -> dict[str, str]:
        return self._shelf.refresh()

    def follow(self) -> dict[str, str]:
        return self._shelf.follow()

    @property
    def stats(self) -> Mapping[str, Any]:
        return self._shelf.stats

    def mark(self, answer: Answer) -> None:
        """Say on the answer how stale it is, if a copy was read."""
        if self._staleness_s is not None:
            answer.add(STALENESS, b"%.1f" % self._staleness_s)

    def _answers(self, name: str) -> bool:
        try:
            self._mirrors.check_fresh(name)
        except Refused:
            return False
        return True


def mirror_folder(state: Path, route: str) -> Path:
    """Where a route's mirror keeps its notes."""
    return state / "mirror" / route


def renamed_of(route: Route) -> dict[str, str]:
    """Callers' names of collections -> local ones, as the route's local tier has them."""
    locals_ = [tier.collections for tier in route.tiers if isinstance(tier, LocalTier)]
    return locals_[0] if locals_ else {}


def primary_of(route: Route, settings: Settings) -> UpstreamTier:
    """The tier whose database is mirrored: the first upstream that is there, else the first that is not."""
    upstreams = [tier for tier in settings.active(route) if isinstance(tier, UpstreamTier)]
    return (upstreams or [tier for tier in route.tiers if isinstance(tier, UpstreamTier)])[0]
