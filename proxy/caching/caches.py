"""What the caches of all routes share: the collections and their epochs, the second level, snapshots.

a write passes through --> epoch of its collection moves on, here at once
                             +--> the other workers, by way of the parent, within milliseconds
                             +--> the second level: a new shared epoch; other sidecars hear of it within a second
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from understudy.policies.cache import NEGATIVE, Homes, Kept, Town, kept_for, lifetime_s, stamp_of
from understudy.policies.observe import RouteTally
from understudy.policies.service import Answer, Call, Request, Service
from understudy.proxy.caching.keys import scope_of
from understudy.proxy.caching.route_cache import RouteCache
from understudy.proxy.caching.second import EPOCH_BYTES, Second, client_of
from understudy.proxy.caching.snapshot import (
    ANY,
    Notes,
    Record,
    Writing,
    framed,
    noted_since,
    read_file,
    records,
)
from understudy.proxy.caching.values import Value, packed, unpacked
from understudy.proxy.dialects import KINDS
from understudy.proxy.dialects.base import Dialect
from understudy.proxy.settings.cache import SharedCache
from understudy.proxy.settings.settings import Route, Settings, UpstreamTier, endpoints_of

SAFE = frozenset((b"GET", b"HEAD", b"OPTIONS"))
TASKS_MAX = 512
SLICE = 64
"""Entries packed or unpacked before the loop may see to somebody else: about a millisecond."""
SNAPSHOT_OVERHEAD = 2
"""A snapshot is at most this many times as large as what is kept."""

log = logging.getLogger("understudy.cache")


class Caches:
    """One process's worth. `published` is told of every write, for the other workers."""

    def __init__(self, *, clock: Callable[[], float], wall: Callable[[], float], dice: Callable[[], float]) -> None:
        self.clock = clock
        self.wall = wall
        self.dice = dice
        self.town = Town()
        self.second: Second | None = None
        self.settle_s = 1.0
        self.published: Callable[[list[str]], None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._polling = False
        self._saved = (0, 0)
        self._saved_at = float("-inf")
        self._saving = False
        self._notes: Notes | None = None
        self._databases: set[str] = set()

    def use(self, second: Second | None) -> None:
        """Ask this second level from now on."""
        before, self.second = self.second, second
        if second is not None:
            second.moved = self._moved
        if before is not None:
            self.spawn(before.close())

    # --- routes ----------------------------------------------------------------------------------------------------

    def of_route(
        self, route: Route, dialect: Dialect, space: str, tally: RouteTally, keeps: str, before: RouteCache | None
    ) -> RouteCache:
        """The cache of a route; what it kept `before` it still has, as far as it asks the same of the same."""
        return RouteCache(route, dialect, self, scope_of(route, dialect.name, space), tally, keeps, before)

    def obey(self, settings: Settings) -> None:
        """Go by these policies from now on."""
        self.settle_s = max(route.cache.settle_s for route in settings.routes)
        kept = [route for route in settings.routes if route.cache.enabled or route.likeness.mode != "off"]
        self._databases = {at for route in kept if KINDS.get(route.dialect) == "retrieve" for at in upstreams_of(route)}

    def watching(self, service: Service, dialect: Dialect, route: Route) -> Service:
        """See writes pass: what was read from their collections is not told again.

        A route of no API in particular may have a way to a database that another route's cache reads: then whatever is
        no read by its method may have written to any of its collections.
        """
        is_blind = KINDS.get(route.dialect) == "pass" and not self._databases.isdisjoint(upstreams_of(route))
        written = _perhaps_written if is_blind else dialect.written

        async def watching(call: Call) -> Answer:
            if call.kind != "pass":
                return await service(call)
            name = written(call.request)
            if name is None:
                return await service(call)
            homes = (self.town.home(name) if name else self.town.everyone, self.town.anything)
            for home in homes:
                home.begin_write()
            self._publish(homes)
            try:
                return await service(call)
            finally:
                # also when it failed: it may have been carried out
                for home in homes:
                    home.end_write(self.clock(), self.settle_s)
                self._publish(homes)

        return watching

    # --- writes ----------------------------------------------------------------------------------------------------

    def _publish(self, homes: Homes) -> None:
        names = [home.name for home in homes]
        self._note(names)
        if self.published is not None:
            self.published(names)
        if self.second is not None:
            self.second.written(names)

    def heard(self, names: Iterable[str]) -> None:
        """Another worker has seen a write."""
        now, names = self.clock(), list(names)
        self._note(names)
        for name in names:
            self.town.home(name).written(now, self.settle_s)

    def _moved(self, name: str) -> None:
        # another sidecar's: it tells the second level itself
        self._note([name])
        self.town.home(name).written(self.clock(), self.settle_s)

    def _note(self, names: list[str]) -> None:
        if self._notes is not None:
            self._notes.add(names)

    # --- now and then ----------------------------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something behind callers' backs; dropped where too much is being done already."""
        if len(self._tasks) >= TASKS_MAX:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an error of our own behind a caller's back", exc_info=error)

    def new_id(self) -> str:
        """An id for a call of our own."""
        return f"refresh-{next(self._numbers):x}"

    def tick(self) -> None:
        """Once a second: hear from the second level what others have written to."""
        second = self.second
        if second is not None and not self._polling and (second.owed or second.epochs):
            self._polling = True
            self.spawn(self._poll(second))

    async def _poll(self, second: Second) -> None:
        try:
            await second.poll([home.name for home in self.town])
        finally:
            self._polling = False

    async def close(self) -> None:
        """Let go of everything that is going on."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._notes is not None:
            self._notes.close()
        if self.second is not None:
            await self.second.close()

    # --- snapshots -------------------------------------------------------------------------------------------------

    def keep_at(self, path: Path) -> None:
        """Note writes beside the snapshot at `path` from now on."""
        if self._notes is None:
            self._notes = Notes(path)

    def save_soon(self, path: Path, caches: list[RouteCache], every_s: float) -> None:
        """Write a snapshot, when it is time and something has changed since the last one."""
        self.keep_at(path)
        if self._saving or self.clock() - self._saved_at < every_s:
            return
        self._saved_at = self.clock()
        if _changes(caches) != self._saved:
            self.spawn(self.save(path, caches))

    async def save(self, path: Path, caches: list[RouteCache]) -> None:
        """Write what may be written; whatever goes wrong is told and costs nothing else."""
        caches = [cache for cache in caches if cache.rules.snapshot]
        if self._saving:
            return
        self._saving = True
        loop = asyncio.get_running_loop()
        changes = _changes(caches)
        self.keep_at(path)
        assert self._notes is not None
        self._notes.begin()
        try:
            writing = await loop.run_in_executor(None, Writing, path)
            try:
                for cache in caches:
                    entries = list(cache.store)
                    for at in range(0, len(entries), SLICE):
                        data = b"".join([self._framed(cache, kept) for kept in entries[at : at + SLICE]])
                        await loop.run_in_executor(None, writing.add, data)
                await loop.run_in_executor(None, writing.finish)
                self._notes.finish()
                self._saved = changes
            except BaseException:
                writing.give_up()
                raise
        except OSError as error:
            log.warning("the cache's snapshot could not be written: %s", error.strerror or type(error).__name__)
        finally:
            self._saving = False

    def _framed(self, cache: RouteCache, kept: Kept[Value]) -> bytes:
        now = self.clock()
        if kept.moved or now >= kept.dead_at:
            return b""
        at_s = self.wall() - (now - kept.at)
        value = packed(kept.value, at_s, kept.fresh_until - kept.at)
        return framed(Record(cache.name, kept.key, [home.name for home in kept.homes], value))

    async def load(self, path: Path, caches: list[RouteCache]) -> int:
        """Take over what a snapshot has, as far as it is still true; calls are answered meanwhile."""
        by_name = {cache.name: cache for cache in caches if cache.rules.snapshot}
        bytes_max = sum(cache.rules.bytes_max for cache in by_name.values()) * SNAPSHOT_OVERHEAD
        loop = asyncio.get_running_loop()
        noted = await loop.run_in_executor(None, noted_since, path)
        data = await loop.run_in_executor(None, read_file, path, bytes_max)
        taken = 0
        for number, record in enumerate(records(data), 1):
            if number % SLICE == 0:
                await asyncio.sleep(0)
            cache = by_name.get(record.route)
            if cache is not None and (not noted or noted.isdisjoint((*record.homes, ANY) if record.homes else ())):
                taken += self._taken(cache, record)
        return taken

    def _taken(self, cache: RouteCache, record: Record) -> bool:
        there = unpacked(record.value)
        homes = tuple(self.town.home(name) for name in record.homes)
        if there is None or stamp_of(homes) or cache.store.peek(record.key) is not None:
            # a write has passed since we started: who knows which of the two came first
            return False
        now = self.clock()
        at = now - max(0.0, self.wall() - there.at_s)
        fresh_s = min(there.fresh_s, lifetime_s(cache.rules, there.status))
        value = there.value()
        kept = kept_for(
            record.key,
            value,
            value.size_bytes,
            at=at,
            homes=homes,
            stamp=0,
            rules=cache.rules,
            fresh_s=fresh_s,
            negative=value.status in NEGATIVE,
        )
        return cache.store.put(kept, now)


def second_level(shared: SharedCache, caches: Caches) -> Second:
    """The second level that the settings name. Raises ImportError where what it needs is not installed."""
    assert shared.url is not None
    return Second(
        client_of(shared.url.reveal(), shared.namespace),
        shared.wait_s,
        clock=caches.clock,
        dice=caches.dice,
        word=lambda: secrets.token_bytes(EPOCH_BYTES),
        spawn=caches.spawn,
    )


def _perhaps_written(request: Request) -> str | None:
    return None if request.method in SAFE else ""


def upstreams_of(route: Route) -> set[str]:
    """Where the upstreams of a route are: hosts with their ports, or sockets."""
    tiers = [tier for _, tier in route.every_tier if isinstance(tier, UpstreamTier)]
    places = [(each.socket, each.url) for tier in tiers for each in (tier, *endpoints_of(tier))]
    return {socket or urlsplit(url or "").netloc for socket, url in places} - {""}


def _changes(caches: list[RouteCache]) -> tuple[int, int]:
    return sum(cache.store.stored for cache in caches), sum(cache.store.moved for cache in caches)
