"""What goes wrong when two neighbours of the stack are swapped: a test for each pair, and none left out."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

import pytest

from tests.caching.desk import Desk, answer
from tests.kit.weather import call_of
from tests.proxy import test_order_words
from tests.proxy.orders import SHOWN, TIMES, Policy, in_both_orders, now, sharing, shows
from understudy.policies.balance import Balance, Peer, balance
from understudy.policies.breaker import Breaker, breaker
from understudy.policies.budget import Budget
from understudy.policies.cache import Town
from understudy.policies.chain import Link, chain
from understudy.policies.compare import Pair
from understudy.policies.deadline import deadline
from understudy.policies.fault import Injection, fault
from understudy.policies.hedge import Hedge, hedge
from understudy.policies.limit import Bulkhead, limit
from understudy.policies.observe import RouteTally, observe
from understudy.policies.quota import Quota, quota
from understudy.policies.ramp import Ramp
from understudy.policies.retry import Retry, retry
from understudy.policies.service import Answer, Call, Failed, Refused, Request, Service
from understudy.policies.shadow import Mirror, Shadowing, shadow
from understudy.policies.shed import Shedder, shed
from understudy.policies.spaces import guarded as handles_guarded
from understudy.policies.split import MAIN, Manner, Split, split
from understudy.policies.tokens import Buckets, tokens
from understudy.proxy.caching.likeness import Alike, likeness_of
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.settings import settings
from understudy.proxy.settings.settings import Ejection, Match, PlannedFault, Rate, Route, Shedding, UpstreamTier
from understudy.proxy.stack import ROUTE_ORDER, TIER_ORDER
from understudy.proxy.stages import RouteStage, TierStage
from understudy.proxy.tiers.judging import tier_judge

PLAIN = DIALECTS["plain"]
NO_NEIGHBOURS = {
    ("trace", "observe"): "one notes and the other counts what comes back, and neither changes any of it",
    ("watch", "stream"): "who goes on with a stream is asked by itself: in neither order is anything of it looked at",
    ("stream", "mirror"): "one is for generated answers, the other for writes to collections: no route has both",
    ("deadline", "question"): "no layer: it stands in the deadline's own shell",
    ("question", "tokens"): "no layer: it stands in the deadline's own shell",
    ("mirror", "spend"): "one is for writes to collections, the other for what costs tokens: no route has both",
    ("spend", "chain"): "the chain stands round nothing: it asks the tiers",
    ("fault", "stream"): "no layer: what the tier itself holds its streams to",
    ("stream", "tier"): "no layer: what the tier itself holds its streams to",
    ("shadow", "watch"): "each looks at the tiers' own answers once the caller has them, and neither changes any",
    ("retry", "budget"): "no layer: what retry and hedge share",
    ("budget", "hedge"): "no layer: what retry and hedge share",
}
"""Pairs that cannot be swapped. In place of those of the budget, retry and hedge are."""


def call(kind: Any = "embed", text: str = "x") -> Call:
    made = call_of(kind, text, born=now())
    made.deadline = made.until = now() + TIMES.total_s
    return made


def as_it_is(service: Service) -> Service:
    return service


async def answering(_call: Call) -> Answer:
    return Answer(200, [], b"ok")


async def failing(_call: Call) -> Answer:
    raise Failed("reset")


def test_every_two_neighbours_of_both_orders_have_been_swapped():
    assert test_order_words.__doc__, "its pairs are among those that were shown"
    for order in (ROUTE_ORDER, TIER_ORDER):
        names = [name for name, _ in order]
        for pair in pairwise(names):
            assert (pair in SHOWN) != (pair in NO_NEIGHBOURS), pair


# --- a route -------------------------------------------------------------------------------------------------------


def shedding(shed_calls: dict[Any, int]) -> Policy:
    heart = Shedder(Shedding())
    heart.pressure = 1.0
    return lambda service: shed(service, heart, "low", shed_calls, dice=lambda: 0.0)


def delayed(seconds: float) -> Policy:
    heart = Injection("slow", PlannedFault(do="delay", delay_s=seconds), now())
    return lambda service: fault(service, [heart], RouteStage(PLAIN), clock=now, dice=lambda: 0.0, sleep=asyncio.sleep)


@shows("observe", "shed")
async def test_shed_outside_observe_would_be_counted_nowhere():
    counts: list[int] = []
    for swapped in (False, True):
        tally = RouteTally()
        service = in_both_orders(lambda s, tally=tally: observe(s, tally, clock=now), shedding({}), answering)[swapped]
        with pytest.raises(Refused):
            await service(call())
        counts.append(sum(tally.unanswered.values()))
    assert counts == [1, 0]


@shows("shed", "fault")
async def test_fault_outside_shed_would_have_the_laggard_hold_calls_that_it_refuses_anyway():
    took_s: list[float] = []
    for service in in_both_orders(shedding({}), delayed(3.0), answering):
        began = now()
        with pytest.raises(Refused):
            await service(call())
        took_s.append(now() - began)
    assert took_s == [pytest.approx(0.0), pytest.approx(3.0)]


@shows("fault", "deadline")
async def test_fault_and_deadline_change_nothing_for_each_other_since_a_deadline_counts_from_the_calls_birth():
    untils: list[float] = []

    async def seen(call: Call) -> Answer:
        untils.append(round(call.until - call.born, 6))
        return Answer(200, [])

    for service in in_both_orders(delayed(3.0), lambda s: deadline(s, TIMES), seen):
        await service(call_of("embed", "x", born=now()))
    assert untils == [TIMES.total_s] * 2


def metered(heart: Buckets) -> Policy:
    return lambda service: tokens(service, heart, clock=now, refuse=lambda why, headers: Answer(429, headers))


@shows("deadline", "tokens")
async def test_deadline_and_tokens_change_nothing_for_each_other_since_tokens_do_not_wait():
    seen: list[tuple[int, float]] = []
    for swapped in (False, True):
        heart = Buckets(settings.Tokens(route=Rate(calls_per_s=1)))
        service = in_both_orders(lambda s: deadline(s, TIMES), metered(heart), answering)[swapped]
        for _ in range(2):
            each = call_of("embed", "x", born=now())
            seen.append(((await service(each)).status, each.until))
    # only that in the first order a call is told its deadline before it is refused
    assert [status for status, _ in seen] == [200, 429] * 2


def arms(arm: Service, main: Service, heart: Split) -> Service:
    return split({MAIN: main, "next": arm}, heart, TIMES, lambda _call: b"key", manner=Manner(), clock=now)


class Looking:
    """Takes every body for one with a handle."""

    is_armed = True

    def look(self, _request: Request) -> bool:
        return True


def spaced(seen: list[str]) -> Policy:
    async def otherwise(_call: Call) -> Answer:
        seen.append("otherwise")
        return Answer(503, [])

    return lambda service: handles_guarded(service, Looking(), otherwise)


@shows("tokens", "spaces")
async def test_spaces_outside_tokens_would_let_who_brings_handles_search_without_any_limit():
    told: list[list[int]] = []
    for swapped in (False, True):
        heart = Buckets(settings.Tokens(route=Rate(calls_per_s=1)))
        service = in_both_orders(metered(heart), spaced([]), answering)[swapped]
        told.append([(await service(call())).status for _ in range(3)])
    assert told == [[503, 429, 429], [503, 503, 503]]


@shows("spaces", "split")
async def test_split_outside_spaces_would_have_handles_looked_for_in_one_arm_and_given_to_the_other():
    asked: list[list[str]] = []
    for swapped in (False, True):
        seen: list[str] = []

        def asking(name: str, seen: list[str] = seen) -> Service:
            async def arm(_call: Call) -> Answer:
                seen.append(name)
                return Answer(200, [])

            return arm

        heart = Split("next", 1.0, "salt")
        if swapped:
            service = arms(asking("next"), spaced(seen)(asking("main")), heart)
        else:
            service = spaced(seen)(arms(asking("next"), asking("main"), heart))
        await service(call())
        asked.append(seen)
    assert asked == [["otherwise"], ["next"]]


@shows("tokens", "split")
async def test_split_outside_tokens_would_charge_twice_for_a_call_that_falls_back_and_blame_the_arm_for_limits():
    rules = settings.Tokens(route=Rate(calls_per_s=0.001, burst=3))
    heart, bucket = Split("next", 1.0, "salt"), Buckets(rules)
    service = metered(bucket)(arms(failing, answering, heart))
    assert [(await service(call())).status for _ in range(4)] == [200, 200, 200, 429]
    assert heart.tallies["next"].answers == {}

    heart, bucket = Split("next", 1.0, "salt"), Buckets(rules)
    swapped = arms(metered(bucket)(failing), metered(bucket)(answering), heart)
    assert [(await swapped(call())).status for _ in range(3)] == [200, 429, 429]
    # and the arm looks as if it had said so
    assert heart.tallies["next"].answers == {4: 1}


@shows("split", "cache")
async def test_cache_outside_the_split_would_tell_one_arms_answers_to_the_others_callers():
    def saying(word: str) -> Service:
        async def said(_call: Call) -> Answer:
            found = answer({"result": word, "status": "ok"})
            found.tier = "primary"
            return found

        return said

    told: list[bool] = []
    for swapped in (False, True):
        heart, desk = Split("next", 0.0, "salt"), Desk("qdrant", answering)
        remembering = desk.cache.remembering
        if swapped:
            service = remembering(arms(saying("arm"), saying("main"), heart))
        else:
            service = arms(saying("arm"), remembering(saying("main")), heart)
        for heart.share in (0.0, 1.0):
            got = await service(searching([1.0, 0.0]))
        told.append(b"arm" in got.body)
        await desk.close()
    assert told == [True, False]


def likened(dialect: str, town: Town) -> tuple[Any, Alike]:
    route = Route(
        name="r",
        match=Match(prefix="/"),
        dialect=dialect,
        tiers=[UpstreamTier(name="first", url="http://a")],
        likeness=settings.Likeness(mode="serve"),
    )
    heart, alike = likeness_of(route, DIALECTS[dialect], town, None, clock=now, dice=lambda: 0.99, embed=None)
    assert alike is not None
    return heart, alike


def searching(vector: list[float]) -> Call:
    headers = [(b"content-type", b"application/json")]
    body = json.dumps({"query": vector, "limit": 1}).encode()
    each = DIALECTS["qdrant"].read(Request(b"POST", b"/collections/books/points/query", headers, body))
    each.born, each.deadline, each.until = now(), now() + 10, now() + 10
    return each


@shows("cache", "likeness")
async def test_likeness_outside_the_cache_would_answer_with_a_neighbours_list_where_the_very_answer_is_kept():
    sources: list[str] = []
    for swapped in (False, True):
        desk = Desk("qdrant", answering)
        _, alike = likened("qdrant", desk.caches.town)

        async def primary(_call: Call) -> Answer:
            found = answer({"result": 1, "status": "ok"})
            found.tier = "primary"
            return found

        service = in_both_orders(desk.cache.remembering, alike.around, primary)[swapped]
        for vector in ([1.0, 0.0], [1.0, 0.001], [1.0, 0.0]):
            got = await service(searching(vector))
        sources.append(got.source)
        await desk.close()
    assert sources == ["cache", "semantic-cache"]


@shows("likeness", "coalesce")
async def test_coalesce_outside_likeness_would_have_who_could_be_answered_at_once_wait_for_who_still_asks():
    took_s: list[float] = []
    for swapped in (False, True):
        takes_s = [5.0, 0.5]

        async def primary(_call: Call, takes_s: list[float] = takes_s) -> Answer:
            await asyncio.sleep(takes_s.pop(0))
            found = answer({"result": 1, "status": "ok"})
            found.tier = "primary"
            return found

        _, alike = likened("qdrant", Town())
        service = in_both_orders(alike.around, sharing(), primary)[swapped]

        async def asked(vector: list[float], service: Service = service) -> float:
            each = searching(vector)
            each.key, began = str(vector).encode(), now()
            await service(each)
            return now() - began

        hanging = asyncio.ensure_future(asked([1.0, 0.0]))
        await asyncio.sleep(0)
        # meanwhile a search near it has been answered
        await asked([1.0, 0.001])
        took_s.append(await asked([1.0, 0.0]))
        await hanging
    assert took_s == [pytest.approx(0.0), pytest.approx(4.5)]


@shows("coalesce", "shadow")
async def test_shadow_outside_coalesce_would_mirror_every_one_who_shared_one_answer():
    async def slow(_call: Call) -> Answer:
        await asyncio.sleep(1)
        return Answer(200, [], b"ok")

    mirrored: list[int] = []
    for swapped in (False, True):
        pairs: list[Pair] = []
        shell = Shadowing(Mirror(settings.Shadow(arm="next", share=1.0), now()), answering, pairs.append, now)

        def mirroring(service: Service, shell: Shadowing = shell) -> Service:
            return shadow(service, shell, clock=now, dice=lambda: 0.0)

        service = in_both_orders(sharing(), mirroring, slow)[swapped]
        calls = [call() for _ in range(10)]
        for each in calls:
            each.key = b"the same"
        await asyncio.gather(*(service(each) for each in calls))
        await asyncio.sleep(1)
        mirrored.append(len(pairs))
    assert mirrored == [1, 10]


# --- a tier --------------------------------------------------------------------------------------------------------


def again(attempts: int, *, base_s: float = 0.01) -> Policy:
    heart, budget = Retry(attempts, base_s, max(base_s, 0.1)), Budget(settings.Budget())
    return lambda service: retry(service, heart, clock=now, dice=lambda: 0.9, sleep=asyncio.sleep, budget=budget)


def guarded(heart: Breaker) -> Policy:
    return lambda service: breaker(service, heart, clock=now, dice=lambda: 0.5)


def frugal(heart: Quota) -> Policy:
    return lambda service: quota(service, heart, clock=now, wall=lambda: 0.0, sleep=asyncio.sleep)


def bounded(places: Bulkhead) -> Policy:
    return lambda service: limit(service, places, clock=now)


def beside(*names: str, usual_s: float = 0.1) -> Policy:
    heart = Hedge(settings.Hedge(samples_min=32))
    for name in names:
        for _ in range(32):
            heart.of(name).add(usual_s)
    return lambda service: hedge(service, heart, clock=now, budget=Budget(settings.Budget()))


def opened(**rules: Any) -> Breaker:
    heart = Breaker(settings.Breaker(consecutive=1, **rules))
    heart.failed(now(), heart.generation, 0.5)
    return heart


@shows("ramp", "retry")
async def test_ramp_within_the_tier_would_lose_the_calls_that_nobody_else_answers():
    class Guard:
        state, mode = "closed", "auto"

    def ramping() -> Ramp:
        guard = Guard()
        ramp = Ramp([guard], settings.Ramp(), lambda: 0.99)
        for guard.state in ("open", "closed"):
            ramp.share(now())
        return ramp

    tier, last = again(2)(answering), Link("local", "secondary", failing)
    in_order = chain([Link("first", "primary", tier, ramp=ramping()), last], TIMES, clock=now)
    assert (await in_order(call())).status == 200
    ramp = ramping()

    async def kept_back(each: Call) -> Answer:
        if ramp.keeps_back(now()):
            raise Refused("ramp")
        return await answering(each)

    swapped = chain([Link("first", "primary", again(2)(kept_back)), last], TIMES, clock=now)
    with pytest.raises(Failed):
        await swapped(call())


@shows("retry", "hedge")
async def test_hedge_outside_the_retry_would_have_both_attempts_asked_again():
    asked: list[int] = []
    for swapped in (False, True):
        count = 0

        async def slow_and_broken(each: Call) -> Answer:
            nonlocal count
            count += 1
            each.tried.append("a")
            each.attempts += 1
            await asyncio.sleep(0.2)
            raise Failed("reset")

        service = in_both_orders(again(2), beside("a"), slow_and_broken)[swapped]
        with pytest.raises(Failed):
            await service(call())
        asked.append(count)
    assert asked == [2, 4]


@shows("hedge", "balance")
async def test_hedge_within_the_balance_would_ask_the_slow_endpoint_twice():
    async def stuck(_call: Call) -> Answer:
        await asyncio.sleep(5)
        return Answer(200, [])

    def balanced(each: Policy) -> Service:
        peers = [Peer("t/stuck"), Peer("t/well")]
        heart = Balance(peers, settings.Balance(), lambda: 0.0)
        return balance({peers[0]: each(stuck), peers[1]: each(answering)}, heart, clock=now)

    took_s: list[float] = []
    for swapped in (False, True):
        hedging = beside("t/stuck", "t/well")
        service = balanced(hedging) if swapped else hedging(balanced(as_it_is))
        began = now()
        await service(call())
        took_s.append(now() - began)
    assert took_s == [pytest.approx(0.1), pytest.approx(5.0)]


@shows("balance", "breaker")
async def test_breaker_outside_the_balance_would_shut_the_endpoint_that_is_well_along_with_the_dead_one():
    rules = settings.Breaker(consecutive=2, open_s=60)

    def own() -> Policy:
        return guarded(Breaker(rules))

    def shared(first: Policy, second: Policy) -> Service:
        peers = [Peer("t/dead"), Peer("t/well")]
        # nobody is left out by the balance: only breakers are looked at here
        heart = Balance(peers, settings.Balance(ejection=Ejection(enabled=False)), lambda: 0.0)
        return balance({peers[0]: first(failing), peers[1]: second(answering)}, heart, clock=now)

    answered: list[int] = []
    for swapped in (False, True):
        service, count = own()(shared(as_it_is, as_it_is)) if swapped else shared(own(), own()), 0
        for _ in range(10):
            try:
                await service(call())
                count += 1
            except (Failed, Refused):
                pass
        answered.append(count)
    assert answered == [8, 0]


@shows("breaker", "quota")
async def test_quota_outside_the_breaker_would_have_callers_wait_for_a_tier_that_is_known_to_be_down():
    waited_s: list[float] = []
    for swapped in (False, True):
        spent = Quota(settings.Quota(wait_s_max=2))
        spent.told(now(), 1.5)
        service = in_both_orders(guarded(opened()), frugal(spent), answering)[swapped]
        began = now()
        with pytest.raises(Refused, match="breaker"):
            await service(call())
        waited_s.append(now() - began)
    assert waited_s == [pytest.approx(0.0), pytest.approx(1.5)]


@shows("quota", "limit")
async def test_limit_outside_the_quota_would_hold_a_place_for_who_waits_for_the_provider():
    taken: list[int] = []
    for swapped in (False, True):
        spent, places = Quota(settings.Quota(wait_s_max=5)), Bulkhead(settings.Limit(concurrent=1))
        spent.told(now(), 3.0)
        service = in_both_orders(frugal(spent), bounded(places), answering)[swapped]
        waiting = asyncio.ensure_future(service(call()))
        await asyncio.sleep(1)
        taken.append(places.in_flight)
        await waiting
    assert taken == [0, 1]


@shows("limit", "fault")
async def test_fault_outside_the_limit_would_rehearse_a_slow_upstream_that_fills_no_places():
    refused: list[int] = []
    for swapped in (False, True):
        tier = UpstreamTier(name="first", url="http://a")
        stage = TierStage(PLAIN, tier_judge(None, tier, PLAIN), clock=now)
        heart = Injection("slow", PlannedFault(do="delay", delay_s=3.0), now())

        def slowed(service: Service, heart: Injection = heart, stage: TierStage = stage) -> Service:
            return fault(service, [heart], stage, clock=now, dice=lambda: 0.0, sleep=asyncio.sleep)

        places = Bulkhead(settings.Limit(concurrent=2, queue=0))
        service = in_both_orders(bounded(places), slowed, answering)[swapped]
        ended = await asyncio.gather(*(service(call()) for _ in range(5)), return_exceptions=True)
        refused.append(sum(isinstance(each, Refused) for each in ended))
    assert refused == [3, 0]


# --- those that are no neighbours, and matter all the same ---------------------------------------------------------


async def test_retry_outside_the_breaker_counts_every_attempt_and_stops_when_it_opens():
    seen: list[tuple[int, str]] = []
    for swapped in (False, True):
        asked, heart = 0, Breaker(settings.Breaker(consecutive=3))

        async def broken(_call: Call) -> Answer:
            nonlocal asked
            asked += 1
            raise Failed("reset")

        with pytest.raises(Failed):
            await in_both_orders(again(5), guarded(heart), broken)[swapped](call())
        seen.append((asked, heart.state))
    # swapped: five attempts at a dead upstream, and the breaker has seen one failure
    assert seen == [(3, "open"), (5, "closed")]


async def test_breaker_outside_the_limit_spares_callers_the_wait_for_a_place_at_a_dead_tier():
    waited_s: list[float] = []
    for swapped in (False, True):
        places = Bulkhead(settings.Limit(concurrent=1, wait_s_max=9))
        # one call from before it opened still holds the only place
        places.in_flight = 1
        service = in_both_orders(guarded(opened(open_s=30)), bounded(places), answering)[swapped]
        began = now()
        with pytest.raises(Refused):
            await service(call())
        waited_s.append(now() - began)
    assert waited_s == [pytest.approx(0.0), pytest.approx(9.0)]


async def test_limit_next_to_the_tier_keeps_no_place_while_a_retry_waits():
    taken: list[int] = []
    for swapped in (False, True):
        places, asked = Bulkhead(settings.Limit(concurrent=1)), 0

        async def flaky(_call: Call) -> Answer:
            nonlocal asked
            asked += 1
            if asked == 1:
                raise Failed("reset")
            return Answer(200, [])

        service = in_both_orders(again(2, base_s=4.0), bounded(places), flaky)[swapped]
        waiting = asyncio.ensure_future(service(call()))
        await asyncio.sleep(1.0)
        taken.append(places.in_flight)
        await waiting
    assert taken == [0, 1]
