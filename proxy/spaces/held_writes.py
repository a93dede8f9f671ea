"""Keep writes that carry handles until their texts can be embedded, and carry them out then (policy `queue`).

    write with handles --on the disk--> acknowledged to its caller
                            +--embedder back: texts embedded--> the database, in order, until it says yes
    any other write --> of points that wait? --no--> the database
                            +--yes--> behind them

What is kept has its texts with it, and nothing of its caller's credentials: where the database's key is its caller's
own, nothing can be written later, and the write is refused at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from understudy.policies.holding import HoldingRules, Line, Touch
from understudy.policies.marks import Marked, unpacked
from understudy.policies.service import CREDENTIALS, Answer, Call, Failed, Refused, Request, Service
from understudy.proxy.dialects import KINDS
from understudy.proxy.dialects.base import BadRequest, Dialect, Malformed
from understudy.proxy.settings.settings import Route, UpstreamTier
from understudy.proxy.spaces.provenance import Provenance
from understudy.proxy.spaces.reembedding import TEXTS_MAX, Way, with_vectors

if TYPE_CHECKING:
    from understudy.indexes.writes import Change
    from understudy.proxy.spaces.held_store import Held, HeldStore

log = logging.getLogger("understudy.spaces")

ASK_S = 30.0
PAUSE_S_MAX = 30.0
TICK_S = 1.0
CLOCK_NS = 50_000_000
KEPT_HEADERS = (b"content-type", b"accept", b"x-pinecone-api-version")
REJECTING = (400, 404, 409, 413, 422)
"""The database has read it, and will never have it."""

Result = Literal["held", "written", "rejected", "refused"]


class CannotWait(Exception):
    """Why a write is not kept, in words for its caller."""


class HeldWrites:
    """One route's. `goes_on` gives it the service and the rules in force; `accepts` says whether new ones may wait."""

    def __init__(
        self, route: str, store: HeldStore, provenance: Provenance, *, wall: Callable[[], float] = time.time
    ) -> None:
        self.route = route
        self.line = Line()
        self.counts: dict[Result, int] = {"held": 0, "written": 0, "rejected": 0, "refused": 0}
        self.why = ""
        """Why the first in line waits, as far as anybody has tried."""
        self.accepts = False
        self._store = store
        self._provenance = provenance
        self._wall = wall
        self._seen_at = 0
        self._unready: set[int] = set()
        self._last = 0
        self._not_before = 0.0
        self._pause_s = TICK_S
        self._dialect: Dialect | None = None
        self._inner: Service | None = None
        self._space = ""
        self._rules: HoldingRules | None = None
        self._own_keys: frozenset[bytes] = frozenset()

    def goes_on(self, route: Route, dialect: Dialect, inner: Service, space: str) -> None:
        """Go by these from now on. `inner` is what the writes go to."""
        self._dialect, self._inner, self._space = dialect, inner, space
        self._rules = route.spaces.holding
        self.accepts = route.spaces.handles_in_writes == "queue"
        first = next((tier for tier in route.tiers if isinstance(tier, UpstreamTier)), None)
        self._own_keys = frozenset(name.lower().encode() for name in (first.headers if first is not None else ()))

    # --- on the way of calls ---------------------------------------------------------------------------------------

    def around(self, service: Service) -> Service:
        """`service`, with writes that must not overtake those that wait kept behind them."""

        async def behind(call: Call) -> Answer:
            if call.kind != "pass" or not (len(self.line) or self._store.changed_at() != self._seen_at):
                return await service(call)
            if self._dialect is None or self._dialect.written(call.request) is None:
                return await service(call)
            await self._look()
            changes = self._changes(call)
            if not self.line.is_touched(_touches(changes)):
                return await service(call)
            try:
                return await self.hold(call, (), ())
            except CannotWait as why:
                return self._refused(f"an earlier write of these points waits for its vectors: {why}")

        return behind

    async def hold(self, call: Call, places: Sequence[Marked], texts: Sequence[str]) -> Answer:
        """Keep a write whose handles stand at `places` of its unpacked body, and acknowledge it. Raises CannotWait."""
        from understudy.proxy.dialects.acknowledging import acknowledged

        assert self._dialect is not None
        assert self._rules is not None
        try:
            changes = self._dialect.changes(call)
        except (Malformed, Refused, BadRequest) as fault:
            detail = str(fault) if isinstance(fault, Malformed) else fault.detail
            raise self._cannot(f"it can't be acknowledged in its database's stead: {detail}") from None
        answer = acknowledged(self._dialect.name, call.request, changes)
        if answer is None:
            raise self._cannot("it can't be acknowledged in its database's stead: the answer depends on what is stored")
        keys = {name.lower() for name, _ in call.request.headers if name.lower() in CREDENTIALS}
        if not keys <= self._own_keys:
            raise self._cannot("its key is its caller's own, and is not kept: set it in the tier's headers")
        if len(texts) > TEXTS_MAX:
            raise self._cannot(f"it has {len(texts)} fallback vectors, more than {TEXTS_MAX}")
        held = self._held(call, places, texts, changes)
        if full := self.line.refusal(held.size_bytes, self._rules):
            raise self._cannot(full)
        number = self._last = max(self._last + 1, int(self._wall() * 1e9))
        # in line from here on: whatever comes while the disk takes its time is behind it
        self.line.put(number, held.waiting())
        self._unready.add(number)
        try:
            await _apart(lambda: self._store.put(number, held))
        except OSError as fault:
            self.line.done(number)
            raise self._cannot(f"the disk won't have it: {fault.strerror}") from None
        finally:
            self._unready.discard(number)
        self.counts["held"] += 1
        answer.tier, answer.source, answer.reason = "queue", "queue", f"{call.route}: handle_in_write"
        return answer

    def _held(self, call: Call, places: Sequence[Marked], texts: Sequence[str], changes: Iterable[Change]) -> Held:
        from understudy.proxy.dialects.acknowledging import repeatable
        from understudy.proxy.spaces.held_store import Held

        request = call.request
        body = unpacked(request.body, (request.header(b"content-encoding") or b"").strip().lower())
        if body is None:
            raise self._cannot("it is packed in a way that can't be read")
        way = self._provenance.reembedding.way_of(self._space)
        target, path = repeatable(call.dialect, request)
        return Held(
            method=request.method,
            target=target,
            path=path,
            headers=[header for header in request.headers if header[0].lower() in KEPT_HEADERS],
            body=body,
            places=[(start, end, key) for start, end, key in places],
            texts=list(texts),
            way=None if way is None else (way.target, way.path, way.model),
            touches=[(each.collection, None if each.ids is None else _listed(each.ids)) for each in _touches(changes)],
            held_at=self._wall(),
        )

    def _changes(self, call: Call) -> tuple[Change, ...] | None:
        assert self._dialect is not None
        try:
            return self._dialect.changes(call)
        except (Malformed, Refused, BadRequest):
            return None

    def _cannot(self, why: str) -> CannotWait:
        self.counts["refused"] += 1
        return CannotWait(why)

    def _refused(self, detail: str) -> Answer:
        assert self._dialect is not None
        answer = self._dialect.error(503, "handle_in_write", detail, headers=[(b"retry-after", b"30")])
        answer.tier, answer.reason = "none", f"{self.route}: handle_in_write"
        return answer

    # --- afterwards ------------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Carry out what can be now, in order, where this process is the one that does; stop at the first that can't
        be."""
        now = asyncio.get_running_loop().time()
        if now < self._not_before or not (len(self.line) or self._store.changed_at() != self._seen_at):
            return
        await self._look()
        if not len(self.line) or not await _apart(self._store.leads):
            return
        while (number := self.line.first) is not None and number not in self._unready:
            held = await _apart(lambda number=number: self._store.read(number))
            if held is None:
                self.line.done(number)
                continue
            result, self.why = await self._carried_out(held)
            if result == "waits":
                self._not_before = asyncio.get_running_loop().time() + self._pause_s
                self._pause_s = min(2 * self._pause_s, PAUSE_S_MAX)
                return
            self._pause_s = TICK_S
            self.counts[result] += 1
            finish = self._store.drop if result == "written" else self._store.reject
            await _apart(lambda number=number, finish=finish: finish(number))
            self.line.done(number)

    async def _carried_out(self, held: Held) -> tuple[Literal["written", "rejected", "waits"], str]:
        """What came of a write, and why it was not carried out."""
        from understudy.proxy.dialects.acknowledging import rejected_within

        assert self._dialect is not None
        assert self._inner is not None
        until = asyncio.get_running_loop().time() + ASK_S
        body = await self._with_vectors(held, until)
        if body is None:
            return "waits", "the embedder is away"
        request = Request(held.method, held.target, [*held.headers], body, path=held.path)
        try:
            call = self._dialect.read(request)
            call.route, call.dialect, call.id = self.route, self._dialect.name, "held"
            call.born, call.deadline, call.until = until - ASK_S, until, until
            answer = await self._inner(call)
        except BadRequest as why:
            return self._rejected(why.detail)
        except (Refused, Failed) as why:
            return "waits", f"the database is away: {why.reason}"
        if answer.stream is not None:
            answer.stream.close()
            return "waits", "the database answered with a stream"
        if 200 <= answer.status < 300:
            if broken := self._dialect.write_failed(call, answer):
                return "waits", f"the database could not: {broken}"
            why = rejected_within(self._dialect.name, call, answer)
            return self._rejected(why) if why else ("written", "")
        if answer.status in REJECTING:
            return self._rejected(f"the database answered {answer.status}")
        return "waits", f"the database answered {answer.status}"

    async def _with_vectors(self, held: Held, until: float) -> bytes | None:
        """The body with its texts' own vectors where handles stood; None while nobody can embed them."""
        if not held.places:
            return held.body
        reembedding = self._provenance.reembedding
        if held.way is not None and reembedding.way_of(self._space) is None:
            # how callers ask was seen before a restart, and nobody has asked since
            reembedding.knows(self._space, Way(*held.way))
        vectors = await reembedding.vectors(self._space, held.texts, until)
        return None if vectors is None else with_vectors(held.body, [Marked(each) for each in held.places], vectors)

    def _rejected(self, why: str) -> tuple[Literal["rejected"], str]:
        log.error("route %s: a write that waited for its vectors is set aside: %s", self.route, why)
        return "rejected", why

    def close(self) -> None:
        """Let another process carry out what waits."""
        self._store.close()

    async def _look(self) -> None:
        """Know what other processes have kept, and carried out."""
        changed_at = self._store.changed_at()
        if changed_at == self._seen_at:
            return
        # what changes in the same tick of the disk's clock would look the same
        self._seen_at = changed_at if self._wall() * 1e9 - changed_at > CLOCK_NS else -1
        there = await _apart(self._store.numbers)
        for number in self.line:
            if number not in there and number not in self._unready:
                self.line.done(number)
        for number in there:
            if number not in self.line:
                held = await _apart(lambda number=number: self._store.read(number))
                if held is not None and number not in self.line:
                    self.line.put(number, held.waiting())
        self._last = max([self._last, *there])


def _touches(changes: Iterable[Change] | None) -> tuple[Touch, ...]:
    """The points that a write is about; any at all where it can't be told."""
    if changes is None:
        return (Touch(""),)
    found: list[Touch] = []
    for change in changes:
        write: Any = change.write
        points, which = getattr(write, "points", None), getattr(write, "which", None)
        if points is not None:
            found.append(Touch(change.collection, frozenset(point.id for point in points)))
        elif which is not None and which.filter is None:
            found.append(Touch(change.collection, frozenset(which.ids)))
        else:
            found.append(Touch(change.collection))
    return tuple(found)


def _listed(ids: frozenset[Any]) -> list[int | str]:
    return sorted(ids, key=lambda each: (isinstance(each, str), each))


async def _apart(work: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, work)


def held_writes_of(
    route: Route,
    dialect: Dialect,
    inner: Service,
    space: str,
    provenance: Provenance,
    before: HeldWrites | None,
    state: Path | None,
) -> HeldWrites | None:
    """What keeps a route's writes where its policy says so, or where some wait that were acknowledged before it said
    otherwise; None elsewhere. `state` is the state folder, None where there is none."""
    held = before
    if KINDS.get(route.dialect) != "retrieve":
        return None
    if held is None:
        folder = None if state is None else state / "held" / route.name
        if folder is None or not (route.spaces.handles_in_writes == "queue" or any(folder.glob("*.write"))):
            return None
        from understudy.proxy.spaces.held_store import HeldStore

        held = HeldWrites(route.name, HeldStore(folder), provenance)
    held.goes_on(route, dialect, inner, space)
    return held


async def drain_all(held: Callable[[], Iterable[HeldWrites]]) -> None:
    """Carry out what waits, route by route, until cancelled."""
    while True:
        await asyncio.sleep(TICK_S)
        for each in list(held()):
            try:
                await each.drain()
            except Exception:
                # a bug here must not keep other routes' writes waiting
                log.exception("an error of our own while held writes of route %s were carried out", each.route)
