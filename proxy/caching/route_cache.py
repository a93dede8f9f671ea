"""A route's cache: found before a call is even made, or within the stack; asked anew, kept, and told again.

    hit(request)       the door's own look-up: no call, no coroutine; only what is fresh, or stale and being asked anew
    remembering(call)  the same within the stack, then:  fresh --> second level --> tiers --> stale --> local tier

Why stale goes before local: an exact answer of the real service, minutes old and marked so, is still an answer to this
very question in the right vector space, where the local tier has an approximation (of the same space, of a mirrored
index) or quotations. Why tiers go before stale: another upstream's answer is as good as the first one's.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from math import inf
from typing import Any, Protocol

from understudy.policies.cache import (
    NEGATIVE,
    NO_HOMES,
    Homes,
    Kept,
    Store,
    Town,
    is_settled,
    jittered,
    kept_for,
    lifetime_s,
    stamp_of,
)
from understudy.policies.coalesce import Flights, is_shareable
from understudy.policies.observe import RouteTally
from understudy.policies.service import Answer, Call, Failed, Refused, Request, Service
from understudy.proxy.caching.aliases import Aliases
from understudy.proxy.caching.items import LAYOUTS, Batch, batch_of, together, values_of
from understudy.proxy.caching.keys import (
    Front,
    Scope,
    canonical,
    digest,
    fields_of,
    front_of,
    has_effects,
    is_deterministic,
)
from understudy.proxy.caching.second import Second
from understudy.proxy.caching.values import (
    Found,
    Recorded,
    Value,
    block_of,
    is_finished,
    packed,
    told_s,
    unpacked,
)
from understudy.proxy.dialects.base import Dialect, is_encoded
from understudy.proxy.settings.settings import Cache, Route

REFRESHES_MAX = 32
"""Answers asked anew at once behind callers' backs."""
SECOND_ITEMS_MAX = 128
MOMENTARY = frozenset((408, 425, 429, 500, 502, 503, 504, 529))
"""Statuses after which a stale answer is worth more. No other error is: it says what is wrong with the request."""
WHY = {"stale": "stale, and being asked anew", "last-resort": "stale"}


class Shared(Protocol):
    """What the caches of all routes share (`understudy.proxy.caching.caches.Caches` has it)."""

    clock: Callable[[], float]
    wall: Callable[[], float]
    dice: Callable[[], float]
    town: Town
    second: Second | None

    def spawn(self, work: Coroutine[Any, Any, None]) -> None: ...
    def new_id(self) -> str: ...


class Plan:
    """How a call's answer is looked up: its key, the collections it depends on, and its inputs where it has many."""

    __slots__ = ("batch", "epoch", "homes", "key", "raw")

    def __init__(self, key: bytes, homes: Homes, batch: Batch | None, raw: bytes) -> None:
        self.key = key
        self.homes = homes
        self.batch = batch
        self.raw = raw
        self.epoch: bytes | None = None if homes else b""


class Began:
    """What held when an answer was asked for: only if it still holds is the answer kept."""

    __slots__ = ("at", "is_settled", "stamp")

    def __init__(self, homes: Homes, now: float) -> None:
        self.at = now
        self.stamp = stamp_of(homes)
        self.is_settled = is_settled(homes, now)


class RouteCache:
    """The cache of one route in one process. `keeps` is the rank of the tier whose answers are kept: the first that is
    there, if it is an upstream; what stands in for it is not to outlive its outage."""

    def __init__(
        self,
        route: Route,
        dialect: Dialect,
        caches: Shared,
        scope: Scope,
        tally: RouteTally,
        keeps: str,
        before: RouteCache | None = None,
    ) -> None:
        self.name = route.name
        self.rules: Cache = route.cache
        self.total_s = route.deadline.total_s
        self.dialect = dialect
        self.caches = caches
        self.scope = scope
        self.tally = tally
        self.keeps = keeps
        self.flights = before.flights if before else Flights(route.coalesce)
        self.flights.rules = route.coalesce
        self.store: Store[Value] = before.store if before else Store(route.cache)
        self.store.rules = route.cache
        self.store.fit()
        self.hits = before.hits if before else 0
        self.found: dict[Found, int] = before.found if before else {}
        """What else came of looking, besides a hit."""
        self._aliases = before._aliases if before else Aliases()
        self._clock = caches.clock
        self._refreshing: set[bytes] = set()
        depends = [caches.town.home(name) for name in route.cache.depends_on]
        self._depends: Homes = (caches.town.everyone, *depends) if depends else NO_HOMES
        self._inner: Service | None = None

    # --- the door's look-up ----------------------------------------------------------------------------------------

    def hit(self, request: Request) -> Answer | None:
        """The answer that is kept for `request`, if it can be given at once. Counted here: nobody else sees it.

        The answer is to be sent and not to be changed: the next caller gets the same object.
        """
        front = self._front(request)
        if not front.reads:
            return None
        key = self._aliases.key_of(front, request.body)
        now = self._clock()
        kept = None if key is None else self.store.find(key, now)
        if kept is None or now - kept.at > front.age_s_max:
            return None
        if now < kept.fresh_until:
            self.hits += 1
            answer = kept.value.ready(now - kept.at)
        else:
            answer = self._told(kept, request, now)
            if answer is None:
                return None
        self.tally.hit(answer.status)
        return answer

    def quick_hit(self, remembered: Mapping[object, Any], body: bytes, bytes_max: int) -> Answer | None:
        """The same, before there is so much as a request: for who has sent this head before, by what is `remembered`
        of it, and where the answer is a fresh 200, whole, and of at most `bytes_max`. None says nothing."""
        front: Front | None = remembered.get(self)
        if front is None or not front.reads:
            return None
        key = self._aliases.key_of(front, body)
        now = self._clock()
        kept = None if key is None else self.store.find(key, now)
        if kept is None or now >= kept.fresh_until or kept.value.whole_bytes > bytes_max:
            return None
        if now - kept.at > front.age_s_max:
            return None
        self.hits += 1
        self.tally.hit(200)
        return kept.value.ready(now - kept.at)

    def _told(self, kept: Kept[Value], request: Request, now: float) -> Answer | None:
        """The entry as an answer, if it is fresh, or stale and asked anew at once."""
        if now < kept.fresh_until:
            self.hits += 1
            return kept.value.answer(now - kept.at)
        if now >= kept.revalidate_until or not self._refresh_soon(kept, request):
            return None
        return self._stale(kept, now, "stale")

    def _stale(self, kept: Kept[Value], now: float, state: str, why: str = "") -> Answer:
        found: Found = "stale" if state == "stale" else "last_resort"
        self.found[found] = self.found.get(found, 0) + 1
        reason = f"{WHY[state]}: {now - kept.fresh_until:.0f} s past its time"
        return kept.value.answer(now - kept.at, f"{reason}; {why}" if why else reason)

    # --- keys ------------------------------------------------------------------------------------------------------

    def _front(self, request: Request) -> Front:
        remembered = request.remembered
        if remembered is None or request.hop.subject:
            # whom the certificate names is the connection's: who sends the same head by another may be somebody else
            return front_of(request, self.scope)
        front: Front | None = remembered.get(self)
        if front is None:
            front = remembered[self] = front_of(request, self.scope)
        return front

    def _plan(self, call: Call, front: Front) -> Plan | None:
        """How to look `call` up, or None where its answers are not kept."""
        request = call.request
        if not self.dialect.keepable(request):
            return None
        raw = self._aliases.raw_of(front, request.body)
        homes = self._homes(call)
        fields = fields_of(request.body, strict=self.scope.tenant_headers is None)
        idle = self.dialect.idle_fields
        if call.kind == "generate":
            if fields is None or has_effects(fields):
                return None
            if self.rules.answers == "deterministic" and not is_deterministic(fields):
                return None
        layout = LAYOUTS.get(self.dialect.name) if call.kind == "embed" else None
        if layout is not None and (fields is None or layout.input in fields):
            batch = batch_of(layout, fields, front.prefix, idle) if fields is not None else None
            if batch is None:
                return None
            key = digest(front.prefix, *batch.keys) if batch.is_many else batch.keys[0]
            return Plan(key, homes, batch, raw)
        key = raw if fields is None else digest(front.prefix, canonical(fields, idle))
        return Plan(key, homes, None, raw)

    def _homes(self, call: Call) -> Homes:
        if call.kind != "retrieve":
            return self._depends
        town = self.caches.town
        if self.rules.aliases and self.dialect.aliases:
            # who knows by what names it goes
            return (town.anything, *self._depends)
        return (town.home(self.dialect.collection_of(call.request)), town.everyone, *self._depends)

    # --- within the stack ------------------------------------------------------------------------------------------

    def remembering(self, service: Service) -> Service:
        """Answer again what was answered before, and keep what `service` answers."""
        self._inner = service

        async def remembering(call: Call) -> Answer:
            if call.kind == "pass":
                return await service(call)
            front = self._front(call.request)
            if not front.reads and not front.writes:
                self.found["bypass"] = self.found.get("bypass", 0) + 1
                return await service(call)
            plan = self._plan(call, front)
            if plan is None:
                return await service(call)
            if plan.batch is not None and plan.batch.is_many:
                return await self._many(service, call, plan, plan.batch, front)
            return await self._one(service, call, plan, front)

        return remembering

    async def _one(self, service: Service, call: Call, plan: Plan, front: Front) -> Answer:
        kept: Kept[Value] | None = None
        if front.reads:
            kept = self.store.find(plan.key, self._clock())
            if kept is not None:
                self._alias(plan)
                now = self._clock()
                answer = self._told(kept, call.request, now) if now - kept.at <= front.age_s_max else None
                if answer is not None:
                    return answer
            else:
                kept = await self._from_second(plan)
                if kept is not None and self._clock() - kept.at <= front.age_s_max:
                    self.found["second"] = self.found.get("second", 0) + 1
                    return kept.value.answer(self._clock() - kept.at)
            call.kept = kept is not None
        self.found["miss"] = self.found.get("miss", 0) + 1
        began = Began(plan.homes, self._clock())
        call.key = _shared_key(plan.key, plan, began) if front.writes else b""
        try:
            answer = await self._asked(service, call, front)
        except (Refused, Failed) as error:
            if kept is None:
                raise
            return self._stale(kept, self._clock(), "last-resort", _why(call, str(error)))
        if kept is not None and _is_momentary(answer):
            return self._stale(kept, self._clock(), "last-resort", _why(call, f"the upstream answered {answer.status}"))
        return self._keep(call, plan, began, answer) if front.writes else answer

    async def _asked(self, service: Service, call: Call, front: Front, body: bytes | None = None) -> Answer:
        """What `service` answers to the call, asked without compression; with another body where one is given."""
        given = call.request
        request = Request(given.method, given.target, front.bare, given.body if body is None else body)
        request.path = given.path
        request.hop = given.hop
        if given.remembered is not None:
            request.remembered = front.bare_remembered
        call.request = request
        try:
            return await service(call)
        finally:
            call.request = given

    def _refresh_soon(self, kept: Kept[Value], request: Request) -> bool:
        """Have an answer asked anew behind the caller's back; False where too many are already."""
        if kept.key in self._refreshing:
            return True
        if len(self._refreshing) >= REFRESHES_MAX or self._inner is None:
            return False
        self._refreshing.add(kept.key)
        self.caches.spawn(self._refresh(self._inner, kept.key, request))
        return True

    async def _refresh(self, service: Service, key: bytes, request: Request) -> None:
        try:
            call = self.dialect.read(request)
            call.route, call.dialect, call.id = self.name, self.dialect.name, self.caches.new_id()
            call.born = self._clock()
            call.deadline = call.until = call.born + self.total_s
            front = self._front(request)
            plan = self._plan(call, front)
            if plan is None or plan.key != key:
                return
            # what is kept goes before a local answer here too: then there is nothing new
            call.kept = True
            began = Began(plan.homes, call.born)
            call.key = _shared_key(key, plan, began)
            answer = self._keep(call, plan, began, await self._asked(service, call, front))
            if answer.stream is not None:
                _drain(answer)
        except (Refused, Failed):
            # it is stale all the same, and the next caller is told so
            return
        finally:
            self._refreshing.discard(key)

    # --- sharing ------------------------------------------------------------------------------------------------------

    def is_shared(self, answer: Answer) -> bool:
        """Whether those who ask the same at once may have this answer too: not where it says that it is for one."""
        return is_shareable(answer) and (answer.status >= 400 or (answer.status == 200 and told_s(answer) is not None))

    # --- keeping ---------------------------------------------------------------------------------------------------

    def _keep(self, call: Call, plan: Plan, began: Began, answer: Answer) -> Answer:
        """Keep the answer, or have its stream written down; the answer to pass on."""
        fresh_s = self._fresh_s(call, began, answer)
        if fresh_s <= 0:
            return answer
        known = self.store.peek(plan.key)
        if known is not None and known.at >= began.at:
            # one of several that waited for the same answer
            return answer
        if answer.stream is not None:
            if call.kind == "generate":
                block = block_of(answer)

                def then(body: bytes) -> None:
                    if is_finished(body):
                        self._put(plan, began, Value(200, block, body, is_stream=True), fresh_s)

                answer.stream = Recorded(answer.stream, self.rules.entry_bytes_max, then)
            return answer
        if answer.status == 200 and self.dialect.failure_within(answer):
            # of some shards only, say: for this caller perhaps better than nothing, and for nobody after it
            return answer
        if call.kind == "generate" and answer.status < 300 and not is_finished(answer.body):
            return answer
        value: Value | None = Value(answer.status, block_of(answer), answer.body)
        if plan.batch is not None and answer.status < 300:
            values = values_of(plan.batch.layout, answer.body, value.block, plan.batch.raws)
            value = values[0] if values else None
        if value is not None:
            self._put(plan, began, value, fresh_s)
        return answer

    def _fresh_s(self, call: Call, began: Began, answer: Answer) -> float:
        """How long an answer is fresh; 0 for one that is not kept."""
        if answer.tier != self.keeps or call.faults or is_encoded(answer) or not began.is_settled:
            return 0.0
        told = told_s(answer)
        if told is None:
            return 0.0
        return jittered(lifetime_s(self.rules, answer.status, told), self.rules.jitter_share, self.caches.dice())

    def _put(self, plan: Plan, began: Began, value: Value, fresh_s: float, key: bytes = b"") -> None:
        now = self._clock()
        kept = self._kept(key or plan.key, value, plan.homes, began.stamp, now, fresh_s)
        if not self.store.put(kept, now):
            return
        if not key:
            self._alias(plan)
        second = self.caches.second
        if second is not None and self.rules.second and plan.epoch is not None:
            second.write(
                [(kept.key, packed(value, self.caches.wall(), fresh_s, plan.epoch))], self._second_ttl_s(fresh_s)
            )

    def _kept(self, key: bytes, value: Value, homes: Homes, stamp: int, at: float, fresh_s: float) -> Kept[Value]:
        return kept_for(
            key,
            value,
            value.size_bytes,
            at=at,
            homes=homes,
            stamp=stamp,
            rules=self.rules,
            fresh_s=fresh_s,
            negative=value.status in NEGATIVE,
        )

    def _alias(self, plan: Plan) -> None:
        """Know these bytes from now on. A batch is not: what it is put together from comes and goes one by one."""
        if plan.batch is not None and plan.batch.is_many:
            return
        self._aliases.learn(plan.raw, plan.key)

    # --- the second level ------------------------------------------------------------------------------------------

    def _second_ttl_s(self, fresh_s: float) -> float:
        return fresh_s + max(self.rules.revalidate_s, self.rules.stale_s_max)

    async def _from_second(self, plan: Plan) -> Kept[Value] | None:
        found = await self._all_from_second(plan, [plan.key])
        return found.get(plan.key)

    async def _all_from_second(self, plan: Plan, keys: Sequence[bytes]) -> dict[bytes, Kept[Value]]:
        """Those of `keys` that the second level has and that are fresh; in memory as well from now on."""
        second = self.caches.second
        if second is None or not self.rules.second or not keys:
            return {}
        began = Began(plan.homes, self._clock())
        values, plan.epoch = await second.read(keys[:SECOND_ITEMS_MAX], plan.homes)
        if plan.epoch is None:
            return {}
        found: dict[bytes, Kept[Value]] = {}
        now, wall = self._clock(), self.caches.wall()
        for key, data in zip(keys, values, strict=False):
            if data is None:
                second.results["miss"] += 1
                continue
            there = unpacked(data)
            if there is None:
                second.results["malformed"] += 1
                continue
            age_s = max(0.0, wall - there.at_s)
            # our own rules hold for what others have kept
            fresh_s = min(there.fresh_s, lifetime_s(self.rules, there.status))
            if there.epoch != plan.epoch or not began.is_settled or age_s >= fresh_s:
                second.results["miss"] += 1
                continue
            second.results["hit"] += 1
            kept = self._kept(key, there.value(), plan.homes, began.stamp, now - age_s, fresh_s)
            if self.store.put(kept, now):
                self._alias(plan)
            found[key] = kept
        return found

    # --- batches ---------------------------------------------------------------------------------------------------

    async def _many(self, service: Service, call: Call, plan: Plan, batch: Batch, front: Front) -> Answer:
        """Put a batch together from what is kept, and ask for the rest of it only."""
        have: dict[bytes, Kept[Value]] = {}
        spare: dict[bytes, Kept[Value]] = {}
        if front.reads:
            have, spare = self._at_hand(batch, front)
            wanted = [key for key in dict.fromkeys(batch.keys) if key not in have]
            (have if front.age_s_max == inf else spare).update(await self._all_from_second(plan, wanted))
        places = {key: place for place, key in reversed(list(enumerate(batch.keys))) if key not in have}
        missing = sorted(places.values())
        if not missing:
            self.hits += 1
            return self._assembled(batch, have).answer(self._age_s(have))
        call.kept = all(key in have or key in spare for key in batch.keys)
        found: Found = "partial" if len(missing) < len(batch.keys) else "miss"
        self.found[found] = self.found.get(found, 0) + 1
        body = batch.body_for(missing) if len(missing) < len(batch.keys) else None
        began = Began(plan.homes, self._clock())
        if front.writes:
            call.key = _shared_key(digest(plan.key, *(batch.keys[place] for place in missing)), plan, began)
        try:
            answer = await self._asked(service, call, front, body)
            if not (call.kept and _is_momentary(answer)):
                # may ask once more, and with as little success
                answer = await self._completed(service, call, plan, batch, front, began, answer, missing, have)
        except (Refused, Failed) as error:
            if not call.kept:
                raise
            return self._stale_batch(batch, have | spare, _why(call, str(error)))
        if call.kept and _is_momentary(answer):
            return self._stale_batch(batch, have | spare, _why(call, f"the upstream answered {answer.status}"))
        return answer

    async def _completed(
        self,
        service: Service,
        call: Call,
        plan: Plan,
        batch: Batch,
        front: Front,
        began: Began,
        answer: Answer,
        missing: Sequence[int],
        have: dict[bytes, Kept[Value]],
    ) -> Answer:
        """The whole batch from what was kept and what has come; what can't be taken apart is asked for as a whole."""
        is_whole = len(missing) == len(batch.keys)
        values: list[Value] | None = None
        if answer.stream is None and 200 <= answer.status < 300 and not is_encoded(answer):
            values = values_of(batch.layout, answer.body, block_of(answer), [batch.raws[place] for place in missing])
        if values is not None and front.writes and (fresh_s := self._fresh_s(call, began, answer)) > 0:
            for place, value in zip(missing, values, strict=True):
                self._put(plan, began, value, fresh_s, batch.keys[place])
        if is_whole:
            return answer
        if values is None or answer.tier != self.keeps:
            # a part that is another tier's, or an error, is not to be mixed with ours: it may be of another model
            if answer.stream is not None:
                answer.stream.close()
            # nor is it to be shared with those who ask for that part
            call.key = _shared_key(plan.key, plan, began) if front.writes else b""
            return await self._asked(service, call, front)
        at = self._clock()
        come = {
            batch.keys[place]: self._kept(batch.keys[place], value, NO_HOMES, 0, at, 1.0)
            for place, value in zip(missing, values, strict=True)
        }
        whole = self._assembled(batch, have | come)
        given = Answer(answer.status, None, whole.body, block=answer.lines(), tier=answer.tier, source=answer.source)
        given.reason = f"{len(batch.keys) - len(missing)} of {len(batch.keys)} from the cache"
        return given

    def _at_hand(self, batch: Batch, front: Front) -> tuple[dict[bytes, Kept[Value]], dict[bytes, Kept[Value]]]:
        """What is fresh of a batch, and what is not, as a last resort."""
        have: dict[bytes, Kept[Value]] = {}
        spare: dict[bytes, Kept[Value]] = {}
        now = self._clock()
        for key in batch.keys:
            kept = self.store.find(key, now)
            if kept is not None and kept.value.status == 200:
                (have if now < kept.fresh_until and now - kept.at <= front.age_s_max else spare)[key] = kept
        return have, spare

    def _assembled(self, batch: Batch, have: dict[bytes, Kept[Value]]) -> Value:
        values = [have[key].value for key in batch.keys]
        return together(batch.layout, values, values[0].block)

    def _age_s(self, have: dict[bytes, Kept[Value]]) -> float:
        return self._clock() - min(kept.at for kept in have.values())

    def _stale_batch(self, batch: Batch, have: dict[bytes, Kept[Value]], why: str) -> Answer:
        self.found["last_resort"] = self.found.get("last_resort", 0) + 1
        value = self._assembled(batch, have)
        return value.answer(self._age_s(have), f"{WHY['last-resort']}; {why}")


def _shared_key(key: bytes, plan: Plan, began: Began) -> bytes:
    """By what calls share one answer: who asks after a write may not be told what was read before it."""
    return b"%b %d" % (key, began.stamp) if plan.homes else key


def _is_momentary(answer: Answer) -> bool:
    """Whether it tells of a moment of the upstream's in which a stale answer is worth more."""
    return answer.status in MOMENTARY and answer.stream is None


def _why(call: Call, otherwise: str) -> str:
    """Who did not answer, and why not."""
    steps = [f"{step.tier}: {step.reason}" for step in call.trail if step.reason != "kept"]
    return "; ".join(steps) or otherwise


class _Nowhere:
    """A sink for a stream that only we wanted."""

    def write(self, chunk: bytes) -> None: ...
    def end(self) -> None: ...
    def cut(self, reason: str) -> None: ...


def _drain(answer: Answer) -> None:
    assert answer.stream is not None
    answer.stream.relay(_Nowhere())


def behind_what_is_kept(service: Service) -> Service:
    """A local tier that gives way to a stale answer of the tiers before it, where there is one."""

    async def giving_way(call: Call) -> Answer:
        if call.kept and call.trail:
            raise Refused("kept", "a stale answer is kept, and goes first")
        return await service(call)

    return giving_way
