"""A shadow: only reads, never in anybody's way, bounded in number, memory, time and cost."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.weather import Weather, call_of, weathered
from understudy.policies.compare import Pair
from understudy.policies.service import Answer, Call, Failed, HeldStream, Kind, Service
from understudy.policies.shadow import Mirror, Shadowing, shadow, shadow_of
from understudy.proxy.settings.settings import Shadow as Rules

ALL = Rules(arm="next", share=1.0)


class Story:
    """A shadowed service, and what came of it."""

    def __init__(self, rules: Rules, other: Service, *, live: Service | None = None, luck: float = 0.0) -> None:
        clock = asyncio.get_running_loop().time
        self.pairs: list[Pair] = []
        self.heart = Mirror(rules, clock())
        self.shell = Shadowing(self.heart, other, self.pairs.append, clock)
        self.service = shadow(live or answering, self.shell, clock=clock, dice=lambda: luck)


async def answering(_call: Call) -> Answer:
    return Answer(200, [], b"live")


async def mirroring(_call: Call) -> Answer:
    await asyncio.sleep(1.0)
    return Answer(200, [], b"shadow")


# --- who is mirrored -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tokens", "sampled"),
    [("embed", 0, True), ("retrieve", 0, True), ("generate", 0, False), ("generate", 100, True), ("pass", 100, False)],
)
def test_reads_are_mirrored_llm_calls_only_within_their_cap_and_writes_never(kind: Kind, tokens: int, sampled: bool):
    heart = Mirror(Rules(arm="next", share=1.0, generate_tokens_per_hour_max=tokens), 0.0)
    assert heart.samples(call_of(kind, "x"), 0.0) == sampled


def test_the_share_is_what_is_sampled_and_can_be_changed_live():
    dice = random.Random(3)
    heart = Mirror(Rules(arm="next", share=0.1), 0.0)
    call = call_of("embed", "x")
    assert abs(sum(heart.samples(call, dice.random()) for _ in range(20_000)) / 20_000 - 0.1) < 0.01
    heart.share = 0.0
    assert not heart.samples(call, 0.0)


def test_llm_calls_cost_four_bytes_a_token_and_the_bucket_fills_within_the_hour():
    heart = Mirror(Rules(arm="next", share=1.0, queue=99, generate_tokens_per_hour_max=3600), 0.0)
    call = call_of("generate", "x" * 7000)
    size = len(call.request.body)
    answer = Answer(200, [], b"y" * (4 * 1800 - size))
    assert [heart.take(call, answer, 0.0) for _ in range(3)] == [True, True, False]
    assert not heart.take(call, answer, 1799.0)
    assert heart.take(call, answer, 3600.0)
    assert heart.fates == {"cost": 2}
    restarted = Mirror(heart.rules, 3600.0)
    restarted.carry(heart)
    assert not restarted.take(call, Answer(200, [], b"y" * 8000), 3600.0)


@given(
    st.lists(st.tuples(st.sampled_from(["take", "next", "done"]), st.integers(0, 4000)), max_size=200),
    st.integers(0, 5),
    st.integers(1, 9000),
    st.integers(1, 3),
)
def test_whatever_happens_the_bounds_hold(acts: list[tuple[str, int]], queue: int, bytes_max: int, concurrent: int):
    rules = Rules(arm="next", share=1.0, queue=queue, queue_bytes_max=bytes_max, concurrent=concurrent)
    heart = Mirror(rules, 0.0)
    call = call_of("embed", "x")
    for act, size in acts:
        if act == "take":
            heart.take(call, Answer(200, [], b"x" * size), 0.0)
        elif act == "next":
            heart.next()
        elif heart.in_flight:
            heart.in_flight -= 1
        assert len(heart.queue) <= queue
        assert heart.in_flight <= concurrent
        assert heart.queued_bytes == sum(each.size_bytes for each in heart.queue) <= bytes_max


# --- the shell -----------------------------------------------------------------------------------------------------


async def test_the_caller_is_answered_first_and_the_pair_is_handed_over_later():
    story = Story(ALL, mirroring)
    clock = asyncio.get_running_loop().time
    call, began = call_of("retrieve", "x", id="id-1"), clock()
    answer = await story.service(call)
    assert (clock(), story.pairs, story.heart.in_flight) == (began, [], 0)
    await asyncio.sleep(1.5)
    (pair,) = story.pairs
    assert (pair.call, pair.live, pair.shadow and pair.shadow.body) == (call, answer, b"shadow")
    assert pair.shadow_s == pytest.approx(1.0)
    assert (story.heart.fates, story.heart.in_flight) == ({"answered": 1}, 0)


async def test_a_shadow_is_marked_has_time_of_its_own_and_leaves_the_call_as_it_was():
    call = call_of("embed", "x", id="id-1")
    call.deadline = call.until = 1.0
    call.request.remembered = {"a": "b"}
    call.request.path = b"/stripped"
    before = list(call.request.headers)
    fork = shadow_of(call, 10.0)
    assert fork.request.header(b"x-understudy-shadow") == b"1"
    assert (fork.deadline, fork.request.path, fork.request.remembered) == (10.0, b"/stripped", None)
    assert (call.request.headers, call.deadline) == (before, 1.0)


async def test_so_many_at_once_so_many_waiting_and_the_rest_are_dropped_and_counted():
    story = Story(Rules(arm="next", share=1.0, concurrent=2, queue=3), mirroring)
    for _ in range(10):
        await story.service(call_of("embed", "x"))
    await asyncio.sleep(0)
    assert (story.heart.in_flight, len(story.heart.queue), story.heart.fates) == (2, 1, {"queue": 7})
    await asyncio.sleep(5.0)
    assert len(story.pairs) == 3


async def test_an_arm_that_hangs_fails_or_breaks_reaches_nobody():
    async def bug(_call: Call) -> Answer:
        raise KeyError("a bug of ours")

    async def hanging(_call: Call) -> Answer:
        await asyncio.sleep(1e6)
        return Answer(200, [])

    for other, fate, why in ((bug, "error", "error"), (hanging, "failed", "deadline")):
        story = Story(Rules(arm="next", share=1.0, deadline_s=2.0), other)
        assert (await story.service(call_of("embed", "x"))).body == b"live"
        await asyncio.sleep(4.0)
        (pair,) = story.pairs
        assert (story.heart.fates, pair.shadow, pair.why) == ({fate: 1}, None, why)


async def test_streams_and_answers_of_a_fallback_are_not_compared():
    async def streaming(_call: Call) -> Answer:
        return Answer(200, [], stream=HeldStream([b"a"]))

    async def fallen_back(call: Call) -> Answer:
        call.note("first", "failed", "reset")
        return Answer(200, [], b"second")

    for live, fate in ((streaming, "streamed"), (fallen_back, "fallback")):
        story = Story(ALL, mirroring, live=live)
        await story.service(call_of("embed", "x"))
        await asyncio.sleep(2.0)
        assert (story.heart.fates, story.pairs) == ({fate: 1}, [])


async def test_a_live_failure_is_not_mirrored():
    async def failing(_call: Call) -> Answer:
        raise Failed("reset")

    story = Story(ALL, mirroring, live=failing)
    with pytest.raises(Failed):
        await story.service(call_of("embed", "x"))
    await asyncio.sleep(2.0)
    assert (story.heart.fates, story.pairs) == ({}, [])


async def test_closing_lets_go_of_everything_that_is_waited_for():
    story = Story(Rules(arm="next", share=1.0, concurrent=1), mirroring)
    for _ in range(5):
        await story.service(call_of("embed", "x"))
    await asyncio.sleep(0.5)
    story.shell.close()
    await asyncio.sleep(5.0)
    assert (story.pairs, story.heart.in_flight, story.heart.queued_bytes) == ([], 0, 0)


async def test_in_ten_thousand_calls_under_weather_no_place_leaks_and_no_caller_waits():
    loop = asyncio.get_running_loop()
    story = Story(
        Rules(arm="next", share=1.0, concurrent=3, queue=5, deadline_s=4.0),
        weathered(mirroring, Weather(5), loop.time),
    )
    dice = random.Random(5)
    for number in range(10_000):
        began = loop.time()
        await story.service(call_of("retrieve", str(number)))
        assert loop.time() == began
        await asyncio.sleep(dice.expovariate(2.0))
    await asyncio.sleep(60.0)
    heart = story.heart
    assert (heart.in_flight, len(heart.queue), heart.queued_bytes) == (0, 0, 0)
    assert sum(heart.fates.values()) == 10_000
    assert len(story.pairs) == 10_000 - heart.fates["queue"]
