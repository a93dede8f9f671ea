"""Asking a second endpoint when the first is late: when, how often, and that nothing of the loser stays behind."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from tests.kit.weather import Weather, call_of, calls, weathered
from understudy.policies.breaker import Breaker, breaker
from understudy.policies.budget import Budget
from understudy.policies.hedge import Hedge, hedge
from understudy.policies.limit import Bulkhead, limit
from understudy.policies.service import Answer, Call, Failed, HeldStream, Kind, Refused, Service
from understudy.proxy.settings import settings

RULES = settings.Hedge(samples_min=32)


def now() -> float:
    return asyncio.get_running_loop().time()


def known(usual_s: float = 0.1, **names: float) -> Hedge:
    """A heart that knows what endpoints take; "" is a tier's only one."""
    heart = Hedge(RULES)
    for name, seconds in (names or {"": usual_s}).items():
        for _ in range(32):
            heart.of(name).add(seconds)
    return heart


def hedged(service: Service, heart: Hedge, *, budget: Budget | None = None, second: Service | None = None) -> Service:
    budget = budget or Budget(settings.Budget())
    return hedge(service, heart, clock=now, budget=budget, second=second)


class Endpoints:
    """Endpoints that take what they are told to, one after another; a number is seconds, an exception is raised."""

    def __init__(self, *plans: float | Exception, after_s: float = 0.0) -> None:
        self.plans = list(plans)
        self.after_s = after_s
        self.asked: list[float] = []
        self.left: list[int] = []
        self.streams: list[HeldStream] = []

    async def __call__(self, call: Call) -> Answer:
        number, began = len(self.asked), now()
        self.asked.append(began)
        call.tried.append(f"endpoint {number}")
        call.attempts += 1
        plan = self.plans[number]
        try:
            await asyncio.sleep(self.after_s if isinstance(plan, Exception) else plan)
        except asyncio.CancelledError:
            self.left.append(number)
            raise
        finally:
            call.upstream_s += now() - began
        if isinstance(plan, Exception):
            raise plan
        stream = HeldStream([b"x"])
        self.streams.append(stream)
        return Answer(200, [], stream=stream, source=f"endpoint {number}")


async def test_an_answer_in_time_is_given_and_nobody_else_is_asked():
    endpoints = Endpoints(0.09)
    answer = await hedged(endpoints, known(**{"endpoint 0": 0.1}))(call_of("embed", "x"))
    await asyncio.sleep(5)
    assert (answer.source, len(endpoints.asked)) == ("endpoint 0", 1)


async def test_a_late_answer_has_another_endpoint_asked_after_the_first_ones_own_p95_and_the_quicker_one_is_given():
    endpoints, heart = Endpoints(3.0, 0.05), known(**{"endpoint 0": 0.1})
    call = call_of("embed", "x")
    began = now()
    answer = await hedged(endpoints, heart)(call)
    assert (answer.source, round(now() - began, 3)) == ("endpoint 1", 0.15)
    assert endpoints.asked[1] - began == pytest.approx(0.1)
    assert (endpoints.left, call.tried, call.attempts) == ([0], ["endpoint 0", "endpoint 1"], 2)
    assert heart.results == {"won": 1, "lost": 0, "failed": 0}


async def test_the_first_may_still_win_and_the_second_is_called_off():
    endpoints, heart = Endpoints(0.2, 3.0), known(**{"endpoint 0": 0.1})
    answer = await hedged(endpoints, heart)(call_of("retrieve", "x"))
    await asyncio.sleep(0)
    assert (answer.source, endpoints.left, heart.results["lost"]) == ("endpoint 0", [1], 1)


async def test_when_both_answer_in_the_same_turn_one_is_given_and_the_others_stream_is_closed():
    endpoints = Endpoints(0.2, 0.1)
    answer = await hedged(endpoints, known(**{"endpoint 0": 0.1}))(call_of("embed", "x"))
    await asyncio.sleep(1)
    closed = [stream.ended for stream in endpoints.streams if stream is not answer.stream]
    assert answer.stream is not None
    assert answer.stream.ended is None
    assert closed in ([], ["left"])


async def test_when_the_first_fails_the_second_is_waited_for():
    endpoints = Endpoints(Failed("reset"), 0.3, after_s=0.2)
    answer = await hedged(endpoints, known(**{"endpoint 0": 0.1}))(call_of("embed", "x"))
    assert answer.source == "endpoint 1"


async def test_when_both_fail_the_first_ones_words_are_told():
    for second_s in (0.05, 0.3):
        endpoints = Endpoints(Failed("first"), second_s, after_s=0.2)

        async def seconding(call: Call, endpoints: Endpoints = endpoints) -> Answer:
            await endpoints(call)
            raise Failed("second")

        with pytest.raises(Failed, match="first"):
            await hedged(endpoints, known(**{"endpoint 0": 0.1}), second=seconding)(call_of("embed", "x"))


async def test_a_second_that_fails_changes_nothing():
    endpoints, heart = Endpoints(0.5, Refused("breaker")), known(**{"endpoint 0": 0.1})
    answer = await hedged(endpoints, heart)(call_of("embed", "x"))
    assert (answer.source, heart.results["failed"]) == ("endpoint 0", 1)


async def test_generations_writes_and_batches_are_never_asked_twice():
    kinds: list[tuple[Kind, bytes]] = [("generate", b""), ("pass", b""), ("embed", b"x" * 70_000)]
    for kind, body in kinds:
        endpoints, call = Endpoints(3.0, 0.0), call_of(kind, "x")
        call.request.body = body
        await hedged(endpoints, known(**{"endpoint 0": 0.1}))(call)
        assert len(endpoints.asked) == 1


async def test_while_too_little_is_known_of_an_endpoint_nobody_else_is_asked():
    heart = Hedge(settings.Hedge(samples_min=100))
    for _ in range(99):
        heart.of("").add(0.1)
    assert heart.after_s(heart.of("")) is None
    for _ in range(29):
        heart.of("").add(0.1)
    assert heart.after_s(heart.of("")) == 0.1
    assert heart.after_s(heart.of("another")) is None


async def test_the_wait_before_the_second_is_bounded_both_ways():
    rules = settings.Hedge(samples_min=32, after_s_min=0.02, after_s_max=0.5)
    for usual_s, after_s in ((0.001, 0.02), (0.1, 0.1), (9.0, 0.5)):
        heart = known(usual_s)
        heart.rules = rules
        assert heart.after_s(heart.of("")) == after_s


async def test_without_budget_nobody_else_is_asked():
    endpoints, budget = Endpoints(3.0, 0.0), Budget(settings.Budget(ratio=0, per_s_min=0))
    await hedged(endpoints, known(**{"endpoint 0": 0.1}), budget=budget)(call_of("embed", "x"))
    assert (len(endpoints.asked), budget.refused) == (1, 1)


async def test_after_the_deadline_nobody_else_is_asked():
    endpoints, call = Endpoints(3.0, 0.0), call_of("embed", "x")
    call.until = now() + 0.1
    await hedged(endpoints, known(**{"endpoint 0": 0.1}))(call)
    assert len(endpoints.asked) == 1


async def test_a_caller_who_leaves_takes_both_attempts_along():
    endpoints = Endpoints(9.0, 9.0)
    task = asyncio.ensure_future(hedged(endpoints, known(**{"endpoint 0": 0.1}))(call_of("embed", "x")))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert sorted(endpoints.left) == [0, 1]


async def test_a_caller_who_leaves_while_the_second_is_waited_for_takes_it_along():
    endpoints = Endpoints(Failed("reset"), 9.0, after_s=0.2)
    task = asyncio.ensure_future(hedged(endpoints, known(**{"endpoint 0": 0.1}))(call_of("embed", "x")))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert endpoints.left == [1]


async def test_losers_are_not_counted_by_breaker_and_limit_and_keep_no_permit_and_no_place():
    for plans in ((3.0, 0.05), (0.2, 3.0)):
        heart, places = Breaker(settings.Breaker(consecutive=1, permits=2)), Bulkhead(settings.Limit(concurrent=2))
        heart.failed(now(), heart.generation, 0.5)
        await asyncio.sleep(6)
        endpoints = Endpoints(*plans)
        inner = breaker(limit(endpoints, places, clock=now), heart, clock=now, dice=lambda: 0.5)
        answer = await hedged(inner, known(**{"endpoint 0": 0.1}))(call_of("embed", "x"))
        assert answer.stream is not None
        answer.stream.close()
        await asyncio.sleep(0)
        assert (heart.state, places.in_flight) == ("half-open", 0)
        # one permit is spent on the winner, and the loser's is back
        assert [heart.admit(now()) is not None for _ in range(2)] == [True, False]


async def test_a_loser_teaches_that_it_took_at_least_so_long():
    heart = known(**{"endpoint 0": 0.1})
    for _ in range(32):
        endpoints = Endpoints(3.0, 0.1)
        await hedged(endpoints, heart)(call_of("embed", "x"))
    # left out, the slow half would be invisible, and every call would be hedged for ever
    assert heart.usual["endpoint 0"].p95 == pytest.approx(0.2)


async def test_one_timer_serves_all_calls_to_an_endpoint_and_rings_for_each_in_turn():
    loop, timers = asyncio.get_running_loop(), Counter[str]()
    set_timer = loop.call_later

    def counted(delay: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        timers[getattr(callback, "__name__", "")] += 1
        return set_timer(delay, callback, *args)  # pyright: ignore[reportArgumentType]

    heart = known(quick=0.1, slow=1.0)

    async def answering(call: Call) -> Answer:
        call.tried.append("quick" if call.id == "q" else "slow")
        await asyncio.sleep(0.01)
        return Answer(200, [])

    service = hedged(answering, heart)
    loop.call_later = counted  # pyright: ignore[reportAttributeAccessIssue]
    try:
        for _ in range(50):
            waiting: list[Awaitable[Answer]] = [service(call_of("embed", "x", id=each)) for each in "qqs"]
            await asyncio.gather(*waiting)
    finally:
        loop.call_later = set_timer  # pyright: ignore[reportAttributeAccessIssue]
    # half a second of calls and a wait of a tenth: a handful of rings, and not one timer for each of 150 calls
    assert timers["_ring"] <= 8


async def test_calls_to_a_slow_and_a_quick_endpoint_are_each_late_by_their_own_measure():
    heart = known(quick=0.1, slow=1.0)
    asked: list[tuple[str, float]] = []

    async def answering(call: Call) -> Answer:
        name = call.id if not call.tried else "second"
        call.tried.append(name)
        asked.append((name, now()))
        await asyncio.sleep(5 if name != "second" else 0.01)
        return Answer(200, [])

    budget = Budget(settings.Budget())
    for _ in range(100):
        budget.called(now())
    began, service = now(), hedged(answering, heart, budget=budget)
    await asyncio.gather(*(service(call_of("embed", "x", id=name)) for name in ("slow", "quick")))
    assert [round(at - began, 3) for name, at in asked if name == "second"] == [0.1, 1.0]


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
@pytest.mark.virtual_clock(io_grace_s=0)
async def test_in_any_weather_every_call_ends_nothing_leaks_and_hedges_stay_within_their_share(seed: int):
    inside, budget, heart = Counter[str](), Budget(settings.Budget()), Hedge(RULES)
    dice = random.Random(seed)

    async def answering(call: Call) -> Answer:
        began = now()
        inside["calls"] += 1
        try:
            await asyncio.sleep(dice.expovariate(20.0))
        finally:
            inside["calls"] -= 1
            call.upstream_s += now() - began
        return Answer(200, [], stream=HeldStream([b"x"]))

    places = Bulkhead(settings.Limit(concurrent=100, queue=10))
    service = limit(weathered(answering, Weather(seed, began=now()), now), places, clock=now)
    service = hedged(service, heart, budget=budget)
    outcomes = Counter[str]()

    async def one(call: Call) -> None:
        budget.called(now())
        call.until = now() + 4.0
        try:
            answer = await service(call)
        except (Failed, Refused):
            outcomes["failed"] += 1
        else:
            outcomes["answered"] += 1
            if answer.stream is not None:
                answer.stream.close()

    running: list[asyncio.Task[None]] = []
    for at, call in calls(4000, seed, 50.0, began=now()):
        await asyncio.sleep(max(0.0, at - now()))
        task = asyncio.ensure_future(one(call))
        running.append(task)
        if dice.random() < 0.02:
            asyncio.get_running_loop().call_later(dice.random() * 0.1, task.cancel)
    ended = await asyncio.gather(*running, return_exceptions=True)
    await asyncio.sleep(10)
    assert not [each for each in ended if isinstance(each, Exception)], seed
    assert sum(outcomes.values()) + sum(isinstance(each, asyncio.CancelledError) for each in ended) == 4000
    assert (inside["calls"], places.in_flight, len(places.waiting)) == (0, 0, 0), seed
    assert 0 < budget.hedges <= 0.05 * 4000 + 20, seed
    assert sum(heart.results.values()) <= budget.hedges
