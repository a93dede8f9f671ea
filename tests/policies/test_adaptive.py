"""Limits that learn, over simulated upstreams on a virtual clock: overload, recovery, and applications at rest."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.weather import call_of
from understudy.policies.adaptive import Additive, Gradient, Learner, Signal
from understudy.policies.limit import Bulkhead, limit
from understudy.policies.service import Answer, Call, Failed, HeldStream, Refused
from understudy.proxy.settings.settings import Limit

pytestmark = pytest.mark.virtual_clock(io_grace_s=0)


class Servers:
    """An upstream of so many servers; a call waits for one in line and keeps it for `mean_s`, give or take half.

    With `busy_at`, whoever comes while so many are inside is told at once that it is too many; with `patience_s`, who
    has waited so long has timed out. One that `works_on` does not notice that: it answers calls that nobody waits for.
    """

    def __init__(
        self,
        count: int,
        mean_s: float,
        dice: random.Random,
        *,
        busy_at: int | None = None,
        patience_s: float = 30.0,
        works_on: bool = False,
    ) -> None:
        self.mean_s = mean_s
        self.inside = 0
        self._free = asyncio.Semaphore(count)
        self._dice = dice
        self._busy_at = busy_at
        self.patience_s = patience_s
        self._works_on = works_on

    async def __call__(self, _call: Call) -> Answer:
        if self._busy_at is not None and self.inside >= self._busy_at:
            await asyncio.sleep(0.002)
            raise Failed("status_429", soft=True)
        self.inside += 1
        try:
            work = asyncio.ensure_future(self._served())
            async with asyncio.timeout(self.patience_s):
                await (asyncio.shield(work) if self._works_on else work)
        except TimeoutError:
            raise Failed("first_byte_timeout") from None
        finally:
            self.inside -= 1
        return Answer(200, [])

    async def _served(self) -> None:
        async with self._free:
            await asyncio.sleep(self.mean_s * self._dice.uniform(0.5, 1.5))


@dataclass
class Story:
    """What became of a run: outcomes and answer times by phase, and the heart as it was left."""

    heart: Bulkhead
    outcomes: list[Counter[str]] = field(default_factory=list)
    took_s: list[list[float]] = field(default_factory=list)
    ended_places: list[int] = field(default_factory=list)


async def told(
    signal: Signal, upstream: Servers, phases: Sequence[tuple[float, float]], seed: int, rules: Limit | None = None
) -> Story:
    """Calls arrive (Poisson) at the rate of each phase, (seconds, calls a second), whatever becomes of the others."""
    loop, dice = asyncio.get_running_loop(), random.Random(seed)
    story = Story(Bulkhead(rules or Limit(), signal, upstream.patience_s))
    service = limit(upstream, story.heart, clock=loop.time)

    async def one(outcomes: Counter[str], took_s: list[float]) -> None:
        began = loop.time()
        try:
            await service(call_of("embed", "x" * dice.choice((50, 500, 5000))))
        except (Refused, Failed) as error:
            outcomes[error.reason] += 1
        else:
            outcomes["ok"] += 1
            took_s.append(loop.time() - began)

    tasks: list[asyncio.Task[None]] = []
    for seconds, rate in phases:
        story.outcomes.append(Counter())
        story.took_s.append([])
        end = loop.time() + seconds
        while loop.time() < end:
            await asyncio.sleep(dice.expovariate(rate))
            tasks.append(asyncio.ensure_future(one(story.outcomes[-1], story.took_s[-1])))
        story.ended_places.append(story.heart.places)
    await asyncio.gather(*tasks)
    return story


# --- overload ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("servers", "mean_s"), [(8, 0.1), (40, 0.2), (2, 0.02)])
async def test_at_twice_the_capacity_goodput_stays_and_answers_stay_quick(servers: int, mean_s: float, seed: int):
    capacity = servers / mean_s
    upstream = Servers(servers, mean_s, random.Random(seed))
    phases = [(20, capacity / 2), (60, 2 * capacity), (30, capacity / 2)]
    story = await told("latency", upstream, phases, seed)
    assert story.outcomes[1]["ok"] >= 0.9 * capacity * 60
    # without a limit the line would have grown to a minute: half of the calls find their answer within half a second
    middle = sorted(story.took_s[1])[len(story.took_s[1]) // 2]
    assert middle < 0.5
    assert story.outcomes[2]["ok"] >= 0.97 * sum(story.outcomes[2].values())
    assert (story.heart.in_flight, len(story.heart.waiting)) == (0, 0)


@pytest.mark.parametrize("seed", range(4))
async def test_at_twice_the_capacity_of_an_upstream_that_says_so_few_calls_are_wasted_on_it(seed: int):
    upstream = Servers(16, 2.0, random.Random(seed), busy_at=16)
    story = await told("failures", upstream, [(30, 4.0), (120, 16.0), (60, 4.0)], seed)
    assert story.outcomes[1]["ok"] >= 0.9 * 8.0 * 120
    assert story.outcomes[1]["status_429"] <= 0.1 * sum(story.outcomes[1].values())
    assert story.outcomes[2]["ok"] >= 0.97 * sum(story.outcomes[2].values())
    assert (story.heart.in_flight, len(story.heart.waiting)) == (0, 0)


@pytest.mark.parametrize("seed", range(4))
async def test_half_a_minute_after_an_overload_the_limit_is_back_where_it_was(seed: int):
    upstream = Servers(8, 0.1, random.Random(seed))
    story = await told("latency", upstream, [(20, 30.0), (60, 160.0), (30, 20.0)], seed)
    assert story.ended_places[0] == 256
    assert story.ended_places[1] < 40
    assert story.ended_places[2] >= 0.8 * 256


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("works_on", [False, True])
@pytest.mark.parametrize(("servers", "mean_s", "patience_s"), [(4, 5.0, 20.0), (8, 2.0, 30.0), (16, 4.0, 60.0)])
async def test_an_upstream_that_would_only_time_out_is_not_let_come_so_far(
    servers: int, mean_s: float, patience_s: float, works_on: bool, seed: int
):
    capacity = servers / mean_s
    upstream = Servers(servers, mean_s, random.Random(seed), patience_s=patience_s, works_on=works_on)
    story = await told("failures", upstream, [(60, capacity / 2), (300, 2 * capacity), (60, capacity / 2)], seed)
    assert story.outcomes[1]["ok"] >= 0.9 * capacity * 300
    # without a limit every call would time out once the line is as long as anybody waits
    assert story.outcomes[1]["first_byte_timeout"] <= 0.05 * sum(story.outcomes[1].values())
    assert story.outcomes[2]["ok"] >= 0.95 * sum(story.outcomes[2].values())
    # what it still works on for nobody
    await asyncio.sleep(600)


def test_timeouts_of_an_endpoint_of_which_nothing_is_known_are_learnt_from_at_their_own_pace():
    heart = Additive(Limit())
    assert heart.patience_s == float("inf")
    heart.failed(100.0, 20.0, 50, Failed("first_byte_timeout"))
    assert (heart.places, heart.patience_s) == (35, 20.0)
    # begun before the cut
    heart.failed(110.0, 20.0, 35, Failed("first_byte_timeout"))
    assert heart.places == 35
    heart.failed(121.0, 20.0, 35, Failed("first_byte_timeout"))
    assert heart.places == 24


async def test_streams_stand_in_no_line_once_they_have_begun():
    """Fifty long streams, and calls among them that find four servers: the bound is on who waits."""
    loop, dice = asyncio.get_running_loop(), random.Random(4)
    heart = Bulkhead(Limit(), "failures", 10.0)
    servers = Servers(4, 1.0, dice, patience_s=10.0)
    streams: list[HeldStream] = []

    async def answering(call: Call) -> Answer:
        if call.wants_stream:
            streams.append(HeldStream([b"x"]))
            return Answer(200, [], stream=streams[-1])
        return await servers(call)

    service = limit(answering, heart, clock=loop.time)
    for _ in range(50):
        call = call_of("generate", "x")
        call.wants_stream = True
        await service(call)
    outcomes: Counter[str] = Counter()

    async def one() -> None:
        try:
            await service(call_of("generate", "x"))
            outcomes["ok"] += 1
        except (Refused, Failed) as error:
            outcomes[error.reason] += 1

    tasks: list[asyncio.Task[None]] = []
    for _ in range(800):
        await asyncio.sleep(dice.expovariate(8.0))
        tasks.append(asyncio.ensure_future(one()))
    await asyncio.gather(*tasks)
    assert heart.learner is not None
    assert (heart.learner.streams, heart.in_flight) == (50, 50)
    assert outcomes["ok"] >= 0.9 * 4.0 * 100
    assert outcomes["first_byte_timeout"] <= 8
    for stream in streams:
        stream.close()
    assert (heart.learner.streams, heart.in_flight) == (0, 0)


async def test_what_is_slower_in_itself_is_let_go_of_again():
    """From two seconds to ten, for as many calls as come: no line takes the time, and no limit stays."""
    loop, dice = asyncio.get_running_loop(), random.Random(6)
    upstream = Servers(1000, 2.0, dice, patience_s=20.0)
    heart = Bulkhead(Limit(), "failures", 20.0)
    service = limit(upstream, heart, clock=loop.time)
    refused = 0

    async def one() -> None:
        nonlocal refused
        try:
            await service(call_of("generate", "x"))
        except Refused:
            refused += 1

    for mean_s, seconds, share in ((2.0, 60, 0.0), (10.0, 300, 0.1), (10.0, 120, 0.0)):
        upstream.mean_s, before = mean_s, refused
        tasks: list[asyncio.Task[None]] = []
        end = loop.time() + seconds
        while loop.time() < end:
            await asyncio.sleep(dice.expovariate(5.0))
            tasks.append(asyncio.ensure_future(one()))
        await asyncio.gather(*tasks)
        assert refused - before <= share * len(tasks)


async def test_waiters_are_served_in_turn_under_overload_so_that_nobody_starves():
    loop, dice = asyncio.get_running_loop(), random.Random(3)
    heart = Bulkhead(Limit(wait_s_max=1.0), "latency")
    service = limit(Servers(8, 0.1, dice), heart, clock=loop.time)
    served: Counter[str] = Counter()

    async def caller(name: str) -> None:
        while loop.time() < end:
            try:
                await service(call_of("embed", "x"))
                served[name] += 1
            except Refused:
                await asyncio.sleep(0.01)

    end = loop.time() + 60
    await asyncio.gather(*(caller(f"{name}") for name in range(40)))
    assert min(served.values()) > 0.7 * max(served.values())


# --- at rest -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", ["latency", "failures"])
async def test_an_application_that_asks_for_little_never_meets_the_limit_whatever_the_weather(signal: Signal):
    loop, dice = asyncio.get_running_loop(), random.Random(5)
    heart = Bulkhead(Limit(), signal)

    async def moody(_call: Call) -> Answer:
        await asyncio.sleep(dice.expovariate(1 / 0.2) * dice.choice((1, 1, 1, 20)))
        if dice.random() < 0.2:
            raise Failed("status_429", soft=True)
        return Answer(200, [])

    service = limit(moody, heart, clock=loop.time)
    for _ in range(2000):
        await asyncio.gather(*(service(call_of("embed", "x")) for _ in range(4)), return_exceptions=True)
        assert heart.places == 256
    burst = await asyncio.gather(*(service(call_of("embed", "x")) for _ in range(250)), return_exceptions=True)
    assert not any(isinstance(each, Refused) for each in burst)


async def test_a_batch_of_long_texts_is_no_overload_for_it_is_compared_with_its_own_size():
    loop = asyncio.get_running_loop()
    heart = Bulkhead(Limit(), "latency")

    async def by_size(call: Call) -> Answer:
        await asyncio.sleep(0.01 + len(call.request.body) * 1e-4)
        return Answer(200, [])

    service = limit(by_size, heart, clock=loop.time)
    for size in (10, 10_000, 10, 10_000):
        for _ in range(30):
            await asyncio.gather(*(service(call_of("embed", "x" * size)) for _ in range(30)))
    assert heart.places == 256


async def test_an_upstream_that_is_slower_in_itself_is_not_taken_for_an_overloaded_one_for_long():
    loop, dice = asyncio.get_running_loop(), random.Random(2)
    upstream = Servers(1000, 0.1, dice)
    heart = Bulkhead(Limit(), "latency")
    service = limit(upstream, heart, clock=loop.time)

    async def caller(end: float) -> None:
        while loop.time() < end:
            try:
                await service(call_of("embed", "x"))
            except Refused:
                await asyncio.sleep(0.1)

    for mean_s in (0.1, 0.4):
        upstream.mean_s = mean_s
        await asyncio.gather(*(caller(loop.time() + 40) for _ in range(100)))
    assert heart.places >= 100


# --- the hearts alone ----------------------------------------------------------------------------------------------

NO_CALL = call_of("embed", "x")


def test_a_cut_answers_for_every_call_that_was_begun_before_it():
    heart = Additive(Limit())
    for _ in range(50):
        heart.failed(100.0, 1.0, 50, Failed("status_429", soft=True))
    assert heart.places == 35
    heart.failed(101.5, 1.0, 35, Failed("status_429", soft=True))
    assert heart.places == 24


def test_what_is_no_sign_of_overload_changes_nothing():
    heart = Additive(Limit())
    heart.answered(99.0, 1.0, 50, NO_CALL)
    for failed in (Failed("reset"), Failed("quota", soft=True), Failed("deadline", soft=True), Failed("connect")):
        heart.failed(100.0, 2.0, 50, failed)
    assert heart.places == 256
    heart.failed(100.0, 4.0, 50, Failed("deadline", soft=True))
    assert heart.places == 35


def test_the_limit_grows_only_while_it_is_used():
    heart = Additive(Limit())
    heart.failed(100.0, 0.1, 40, Failed("status_429", soft=True))
    assert heart.places == 28
    for step in range(100):
        heart.answered(100.0 + step / 10, 0.1, 5, NO_CALL)
    assert heart.places == 28
    for step in range(100):
        heart.answered(110.0 + step / 10, 0.1, 28, NO_CALL)
    assert heart.places > 40


def test_other_bounds_hold_at_once_and_what_was_learnt_stays():
    bulkhead = Bulkhead(Limit(), "failures")
    assert bulkhead.learner is not None
    bulkhead.learner.failed(100.0, 0.1, 40, Failed("status_429", soft=True))
    for rules, places in (
        (Limit(concurrent_max=512), 28),
        (Limit(concurrent_max=20), 20),
        (Limit(concurrent=7), 7),
        (Limit(), 256),
    ):
        bulkhead.rules = rules
        assert bulkhead.places == places
    bulkhead.rules = Limit(concurrent_max=1000)
    assert bulkhead.places == 1000


EVENT = st.tuples(
    st.floats(0.0, 30.0),
    st.floats(0.0, 60.0),
    st.integers(1, 600),
    st.sampled_from(["ok", "status_429", "first_byte_timeout", "reset", "deadline"]),
    st.integers(0, 40_000_000),
)


@settings(max_examples=200, deadline=None)
@given(events=st.lists(EVENT, max_size=300), gradient=st.booleans(), low=st.integers(1, 50), more=st.integers(0, 500))
def test_whatever_it_is_told_the_limit_stays_within_its_bounds(
    events: list[tuple[float, float, int, str, int]], gradient: bool, low: int, more: int
):
    rules = Limit(concurrent_min=low, concurrent_max=low + more)
    heart: Learner = Gradient(rules) if gradient else Additive(rules)
    now = 1000.0
    calls = {n: call_of("embed", "x" * 4**n) for n in range(8)}
    for passed_s, took_s, in_flight, outcome, size in events:
        now += passed_s
        if outcome == "ok":
            heart.answered(now, took_s, in_flight, calls[size % 8])
        else:
            heart.failed(now, took_s, in_flight, Failed(outcome, soft=outcome in ("status_429", "deadline")))
        assert low <= heart.places <= low + more
    heart.relax(now + 3600)
    assert heart.places == low + more
