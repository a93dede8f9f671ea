"""Share with the other replicas, through a Redis that need not be there: a page of our own, and what theirs say.

    every LOOK_S   ours, when it has changed or BEAT_S have passed --HSET--> one hash --HGETALL--> theirs --> hints
    Redis away     tried again after 1 s, 2 s ... PAUSE_S_MAX; meanwhile each replica goes by what it sees itself

It runs beside the calls, in the process that has the admin port: no call ever waits for it. What stands in Redis is
names of routes, tiers and components and words about them, and is not believed to be more than that. What happened to a
replica the others keep in their journals, by its name, where it counts for nothing else: their risks are their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Protocol, cast, get_args

import msgspec

from understudy.policies.alerts import Alert
from understudy.policies.events import Event
from understudy.policies.events import Family as EventFamily
from understudy.policies.hints import NOTES_MAX, OPEN_MAX, Hint, Neighbours, Noted, Notes, Open, Page, said_of
from understudy.proxy.control.hinting import Key, Opening
from understudy.proxy.control.redis_line import Address, RedisFault, RedisLine
from understudy.proxy.control.wire import Family
from understudy.proxy.reports.replicas import replica_families
from understudy.proxy.settings.settings import Settings, UpstreamTier, endpoints_of

LOOK_S, BEAT_S = 0.5, 5.0
PAUSE_S, PAUSE_S_MAX = 1.0, 30.0
HASH_TTL_S = 3600
"""The hash is gone an hour after the last of its replicas."""
PAGE_BYTES_MAX = 96 * 1024
CHANGE_S = 1.0
"""Seconds that are left of an opening go down by themselves, and that is no change."""

FAMILIES = frozenset(get_args(EventFamily))

log = logging.getLogger("understudy.replicas")


class Shared(Protocol):
    """What is shared: one sidecar's, or what a parent knows of all its workers'."""

    async def settings_now(self) -> Settings: ...
    def opened(self) -> Iterable[Opening]: ...
    def hinted(self, hints: Sequence[Opening], ill: Sequence[str]) -> None: ...
    def verdicts(self) -> Mapping[str, str]: ...


class Replicas:
    """Our page, and the others'."""

    page = "replicas"

    def __init__(
        self,
        shared: Shared,
        name: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        dice: Callable[[], float] = random.random,
        journal: Callable[[Event], None] | None = None,
    ) -> None:
        self._shared = shared
        self._journal = journal
        self.notes = Notes(wall())
        self._clock, self._wall, self._dice = clock, wall, dice
        self._name = name
        self.neighbours = Neighbours(name)
        words = ("read", "written", "failed", "malformed", "hinted", "noted")
        self.results: dict[str, int] = dict.fromkeys(words, 0)
        self._line: RedisLine | None = None
        self._from = ""
        self._hash = b""
        self._beat = int(wall() * 1000)
        self._told: tuple[Open, ...] = ()
        self._told_health: dict[str, str] = {}
        self._told_notes: tuple[Noted, ...] = ()
        self._ill: frozenset[str] = frozenset()
        self._told_at = float("-inf")
        self._pause_s = 0.0
        self.is_reached = False

    async def run(self) -> None:
        """Until it is cancelled. What goes wrong is counted, told once, and never the end of it."""
        try:
            while True:
                settings = await self._shared.settings_now()
                await self.once(settings)
                await asyncio.sleep(self._pause_s or LOOK_S)
        finally:
            await self._leave()

    async def once(self, settings: Settings) -> None:
        """Tell and hear, if there is a Redis to do it by."""
        if not self._obeys(settings):
            return
        try:
            await self._exchange(settings)
        except (OSError, TimeoutError, RedisFault) as error:
            self._failed(error)
        except Exception:
            self._failed(None)
            log.exception("replicas could not be heard")
        else:
            if not self.is_reached:
                log.info("replicas are heard through Redis, as %s", self.neighbours.own)
            self.is_reached, self._pause_s = True, 0.0

    def _obeys(self, settings: Settings) -> bool:
        """Whether these settings have us share; a line to another Redis is a new one."""
        url = settings.server.cache.url
        told = url.reveal() if url is not None and settings.server.replicas.share else ""
        if told != self._from:
            self.close()
            self._from = told
            address = Address.read(told) if told else None
            self._line = None if address is None else RedisLine(address)
            self._pause_s = 0.0
        name = settings.server.replicas.name or self._name
        if name != self.neighbours.own:
            self.neighbours = Neighbours(name)
        self._hash = f"{settings.server.cache.namespace}:replicas".encode()
        return self._line is not None

    def _failed(self, error: Exception | None) -> None:
        self.results["failed"] += 1
        if self.is_reached or not self._pause_s:
            log.warning("replicas are not heard for a while: %s", type(error).__name__ if error else "our own error")
        self.is_reached = False
        self._pause_s = min(PAUSE_S_MAX, max(PAUSE_S, self._pause_s * 2)) * (0.75 + 0.5 * self._dice())

    async def _exchange(self, settings: Settings) -> None:
        assert self._line is not None
        keys = keys_of(settings)
        commands: list[tuple[bytes, ...]] = []
        ours = self._ours(keys)
        if ours is not None:
            commands = [
                (b"HSET", self._hash, self.neighbours.own.encode(), ours),
                (b"EXPIRE", self._hash, b"%d" % HASH_TTL_S),
            ]
        now = self._clock()
        gone = self.neighbours.gone(now)
        if gone:
            commands.append((b"HDEL", self._hash, *(name.encode() for name in gone)))
        *_, found = await self._line.ask(*commands, (b"HGETALL", self._hash))
        if ours is not None:
            self.results["written"] += 1
        self.results["read"] += 1
        pages = list(self._pages(found))
        hints = self.neighbours.heard(self._clock(), self._wall(), pages)
        self._pass_on(hints, keys)
        self._note()

    def _note(self) -> None:
        """Have our journal keep what happened to the others."""
        for replica, one in self.notes.news(self._wall(), self.neighbours.alive(self._clock())):
            self.results["noted"] += 1
            if self._journal is not None:
                family = cast("EventFamily", one.family)
                self._journal(Event(one.at, family, one.component, one.kind, one.detail, {"replica": replica}))

    def _ours(self, keys: Mapping[Key, str]) -> bytes | None:
        """Our page, where it is time to write it."""
        now = self._clock()
        opened = [Open(keys[key], left_s, reason) for key, left_s, reason in self._shared.opened() if key in keys]
        told = tuple(sorted(opened)[:OPEN_MAX])
        health = dict(list(self._shared.verdicts().items())[:OPEN_MAX])
        notes = tuple(self.notes.own)
        is_news = (health, notes) != (self._told_health, self._told_notes) or not _alike(
            told, self._told, now - self._told_at
        )
        if not is_news and now - self._told_at < BEAT_S:
            return None
        self._beat += 1
        self._told, self._told_at, self._told_health, self._told_notes = told, now, health, notes
        page = Page(self.neighbours.own, self._beat, self._wall(), told, health, notes=notes)
        return msgspec.msgpack.encode(page)

    def _pages(self, found: object) -> Iterable[Page]:
        """Theirs, as far as they are any."""
        fields: list[object] = found if isinstance(found, list) else []  # pyright: ignore[reportUnknownVariableType]
        for name, data in zip(fields[::2], fields[1::2], strict=False):
            page = _page(data)
            if page is None or not isinstance(name, bytes) or page.replica.encode() != name:
                self.results["malformed"] += 1
                continue
            yield page

    def _pass_on(self, hints: Iterable[Hint], keys: Mapping[Key, str]) -> None:
        by_key = {told: key for key, told in keys.items()}
        meant = [(by_key[hint.key], hint.open_s, hint.reason) for hint in hints if hint.key in by_key]
        before, self._ill = self._ill, self.neighbours.ill(self._clock())
        newly_ill = sorted(self._ill - before)
        if meant or newly_ill:
            self.results["hinted"] += len(meant) + len(newly_ill)
            self._shared.hinted(meant, newly_ill)

    async def _leave(self) -> None:
        """Our page goes with us."""
        if self._line is not None and self.is_reached:
            with contextlib.suppress(Exception):
                await self._line.ask((b"HDEL", self._hash, self.neighbours.own.encode()))
        self.close()

    def close(self) -> None:
        """Hang up."""
        if self._line is not None:
            self._line.close()

    # --- what others ask -------------------------------------------------------------------------------------------

    def alerts(self, settings: Settings, now: float) -> list[Alert]:
        """Nobody is told by an alert that Redis is away: everything goes on."""
        del settings, now
        return []

    def families(self) -> list[Family]:
        """What `/metrics` says of it; nothing where nothing is shared."""
        if self._line is None:
            return []
        return replica_families(len(self.neighbours.alive(self._clock())), self.results, is_reached=self.is_reached)

    def summary(self) -> dict[str, Any]:
        """Who is there, for `/status`."""
        if self._line is None:
            return {}
        names = sorted(page.replica for page in self.neighbours.alive(self._clock()))
        return {"name": self.neighbours.own, "reached": self.is_reached, "others": names}

    def told(self) -> dict[str, Any]:
        """The others' pages."""
        pages = [
            {"replica": page.replica, "open": [one._asdict() for one in page.open], "health": dict(page.health)}
            for page in self.neighbours.alive(self._clock())
        ]
        return {**self.summary(), "pages": pages, "results": self.results}


def _page(data: object) -> Page | None:
    """What a replica has written, or None; what is to be shown of it is fit to be."""
    if not isinstance(data, bytes) or len(data) > PAGE_BYTES_MAX:
        return None
    try:
        page = msgspec.msgpack.decode(data, type=Page)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    opened = [one._replace(key=said_of(one.key), reason=said_of(one.reason)) for one in page.open[:OPEN_MAX]]
    health = {said_of(name): said_of(word) for name, word in list(page.health.items())[:OPEN_MAX]}
    notes = [Noted(one.number, one.at, one.family, *map(said_of, one[3:])) for one in page.notes[-NOTES_MAX:]]
    is_sound = page.replica == said_of(page.replica) and all(0 <= one.left_s < 1e6 for one in opened)
    is_sound &= all(one.family in FAMILIES and 0 <= one.at < 1e11 for one in notes)
    return page._replace(open=opened, health=health, notes=notes) if is_sound else None


def _alike(one: tuple[Open, ...], other: tuple[Open, ...], passed_s: float) -> bool:
    """Whether nothing but time has passed between the two."""
    return len(one) == len(other) and all(
        a.key == b.key and a.reason == b.reason and a.left_s <= b.left_s - passed_s + CHANGE_S
        for a, b in zip(one, other, strict=True)
    )


def keys_of(settings: Settings) -> dict[Key, str]:
    """What replicas call each breaker, by its names and where its endpoint is: so only the same are the same."""
    keys: dict[Key, str] = {}
    for route in settings.routes:
        for _, tier in route.every_tier:
            if isinstance(tier, UpstreamTier):
                for endpoint in endpoints_of(tier):
                    # the URL may have a key in it: what is told is a hash
                    text = "\x1f".join((route.name, tier.name, endpoint.name, endpoint.url, endpoint.socket or ""))
                    keys[route.name, tier.name, endpoint.name] = blake2b(text.encode(), digest_size=16).hexdigest()
    return keys
