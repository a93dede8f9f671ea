"""Until when a call may wait, whom it asks in what order, and what the caller is told."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.kit.weather import call_of
from understudy.policies.chain import Link, chain
from understudy.policies.deadline import Deadline, caller_patience_s, deadline
from understudy.policies.service import Answer, Call, Failed, Refused, Service

TIMES = Deadline(total_s=10.0, reserve_s=1.0)


def telling(outcome: Answer | Exception, asked: list[float] | None = None) -> Service:
    async def service(call: Call) -> Answer:
        if asked is not None:
            asked.append(call.until)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return service


def chained(*links: Link, heart: Deadline = TIMES) -> Service:
    return deadline(chain(links, heart, clock=asyncio.get_running_loop().time), heart)


async def test_the_second_tier_answers_when_the_first_does_not_and_says_so():
    good = Answer(200, [])
    for outcome, reason in ((Failed("reset"), "reset"), (Refused("breaker"), "breaker")):
        first = Link("openai", "primary", telling(outcome))
        answer = await chained(first, Link("local", "secondary", telling(good)))(call_of("embed", "x"))
        assert (answer.tier, answer.source, answer.reason) == ("secondary", "local", f"openai: {reason}")


async def test_an_answer_of_the_first_tier_carries_no_reason():
    answer = await chained(Link("openai", "primary", telling(Answer(400, []))))(call_of("embed", "x"))
    assert (answer.tier, answer.source, answer.reason) == ("primary", "openai", "")


async def test_a_tier_that_is_not_there_is_named_with_why():
    absent = Link("openai", "primary", None, "OPENAI_API_KEY is not set")
    answer = await chained(absent, Link("local", "secondary", telling(Answer(200, []))))(call_of("embed", "x"))
    assert (answer.tier, answer.reason) == ("secondary", "openai: OPENAI_API_KEY is not set")


async def test_an_upstreams_own_error_is_given_back_as_it_came_when_nobody_can_do_better():
    busy = Answer(429, [(b"retry-after", b"7")], b'{"error": "busy"}')
    first = Link("openai", "primary", telling(Failed("status_429", answer=busy)))
    answer = await chained(first, Link("local", "secondary", telling(Refused("space"))))(call_of("embed", "x"))
    assert (answer.status, answer.body, answer.tier) == (429, b'{"error": "busy"}', "primary")
    assert answer.reason == "openai: status_429; local: space"


async def test_when_nobody_answers_the_trail_is_told_and_the_soonest_return():
    tiers = (Refused("breaker", retry_after_s=9.0), Refused("limit"), Refused("breaker", retry_after_s=4.0))
    links = [Link(name, "primary", telling(each)) for name, each in zip("abc", tiers, strict=True)]
    with pytest.raises(Refused, match="a: breaker; b: limit; c: breaker") as refused:
        await chained(*links)(call_of("embed", "x"))
    assert refused.value.retry_after_s == 4.0
    with pytest.raises(Failed, match="a: breaker; b: reset"):
        await chained(links[0], Link("b", "secondary", telling(Failed("reset"))))(call_of("embed", "x"))


async def test_a_write_that_may_have_been_carried_out_is_asked_of_nobody_else():
    asked: list[float] = []
    first = Link("a", "primary", telling(Failed("reset", again=False, elsewhere=False)))
    with pytest.raises(Failed):
        await chained(first, Link("b", "secondary", telling(Answer(200, []), asked)))(call_of("pass", "x"))
    assert asked == []


async def test_an_earlier_tier_leaves_time_for_the_later_ones():
    asked: list[float] = []
    call = call_of("embed", "x", born=asyncio.get_running_loop().time())
    await_all = chained(
        Link("a", "primary", telling(Failed("reset"), asked)), Link("b", "secondary", telling(Answer(200, []), asked))
    )
    await await_all(call)
    assert [round(until - call.born, 3) for until in asked] == [9.0, 10.0]


async def test_with_little_time_half_of_it_is_still_the_first_tiers():
    asked: list[float] = []
    call = call_of("embed", "x", born=asyncio.get_running_loop().time())
    call.request.headers.append((b"X-Stainless-Read-Timeout", b"1"))
    service = chained(
        Link("a", "primary", telling(Failed("reset"), asked)), Link("b", "secondary", telling(Answer(200, []), asked))
    )
    await service(call)
    assert [round(until - call.born, 3) for until in asked] == [0.45, 0.9]


@pytest.mark.parametrize(
    ("headers", "patience_s"),
    [
        ([], None),
        ([(b"x-request-timeout", b"2.5")], 2.5),
        ([(b"X-Stainless-Read-Timeout", b"600"), (b"x-understudy-deadline", b"3")], 3.0),
        ([(b"x-stainless-read-timeout", b"not a number")], None),
        ([(b"x-stainless-read-timeout", b"nan")], None),
        ([(b"x-stainless-read-timeout", b"-1")], None),
        ([(b"x-stainless-read-timeout", b"0")], None),
        ([(b"x-stainless-read-timeout", b"inf")], float("inf")),
        ([(b"x-stainless-timeout", b"60")], 60.0),
        ([(b"x-request-timeout", b"1500ms")], 1.5),
        ([(b"x-request-timeout", b" 2s ")], 2.0),
        ([(b"x-request-timeout", b"1m")], 60.0),
        ([(b"x-request-timeout", b"2 fortnights")], None),
        ([(b"grpc-timeout", b"100m")], 0.1),
        ([(b"grpc-timeout", b"2S")], 2.0),
        ([(b"grpc-timeout", b"1H")], 3600.0),
        ([(b"grpc-timeout", b"3M")], 180.0),
        ([(b"grpc-timeout", b"250000u")], 0.25),
        ([(b"grpc-timeout", b"99999999n")], 0.099999999),
        ([(b"grpc-timeout", b"123456789S")], None),
        ([(b"grpc-timeout", b"2")], None),
        ([(b"grpc-timeout", b"-2S")], None),
        ([(b"x-envoy-expected-rq-timeout-ms", b"2500")], 2.5),
        ([(b"x-envoy-expected-rq-timeout-ms", b"0")], None),
        ([(b"x-understudy-deadline", "٣".encode())], None),
    ],
)
def test_the_callers_own_patience_is_read_and_what_makes_no_sense_is_not_believed(
    headers: list[tuple[bytes, bytes]], patience_s: float | None
):
    assert caller_patience_s(headers) == (None if patience_s is None else pytest.approx(patience_s))


def test_a_tiers_outcomes_are_counted_and_their_number_is_bounded():
    link = Link("a", "primary", None)
    for number in range(1000):
        link.count("failed", f"reason {number}")
    assert len(link.outcomes) <= 65
    assert sum(link.outcomes.values()) == 1000


async def test_what_the_last_tier_needs_is_learnt_and_kept_back_for_it():
    clock = asyncio.get_running_loop().time
    asked: list[float] = []

    async def local(_call: Call) -> Answer:
        await asyncio.sleep(2.5)
        return Answer(200, [])

    last = Link("local", "secondary", local)
    service = chained(Link("a", "primary", telling(Failed("reset"), asked)), last)
    for _ in range(33):
        await service(call_of("embed", "x", born=clock()))
    left_s = [round(last.seconds.p95, 3), round(asked[0] - 1000.0, 3), round(asked[-1] - 32 * 2.5 - 1000.0, 3)]
    assert left_s == [2.5, 9.0, 7.5]


async def test_a_tier_that_answers_alone_teaches_nothing_of_fallbacks():
    last = Link("local", "primary", telling(Answer(200, [])))
    for _ in range(40):
        await chained(last)(call_of("embed", "x"))
    assert last.seconds.count == 0


@pytest.mark.parametrize("headers", [[], [(b"X-Should-Retry", b"true")]])
async def test_an_error_given_back_tells_sdks_not_to_multiply_what_has_been_tried(headers: list[tuple[bytes, bytes]]):
    busy = Answer(429, [*headers, (b"retry-after", b"7")], b"busy")
    answer = await chained(Link("openai", "primary", telling(Failed("status_429", answer=busy))))(call_of("embed", "x"))
    assert answer.headers == [(b"retry-after", b"7"), (b"x-should-retry", b"false")]
    # what was passed through untouched was not ours to repeat, and is not ours to forbid
    passed = Answer(503, [*headers], b"")
    answer = await chained(Link("a", "primary", telling(Failed("status_503", answer=passed))))(call_of("pass", "x"))
    assert answer.headers == headers


@pytest.mark.virtual_clock(io_grace_s=0)
async def test_a_fallback_comes_within_the_callers_two_seconds_in_a_thousand_of_a_thousand_calls_to_a_black_hole():
    clock, dice = asyncio.get_running_loop().time, random.Random(7)

    async def black_hole(call: Call) -> Answer:
        await asyncio.sleep(call.until - clock())
        raise Failed("first_byte_timeout")

    async def local(_call: Call) -> Answer:
        # a busy machine: 0.45 s on average, one in a hundred above 0.6
        await asyncio.sleep(min(0.8, max(0.05, dice.gauss(0.45, 0.07))))
        return Answer(200, [])

    heart = Deadline(total_s=30.0, reserve_s=0.1)
    service = chained(Link("a", "primary", black_hole), Link("local", "secondary", local), heart=heart)

    async def one() -> float:
        call = call_of("embed", "x", born=clock())
        call.request.headers.append((b"X-Stainless-Read-Timeout", b"2"))
        answer = await service(call)
        assert answer.source == "local"
        return clock() - call.born

    # the first 32 teach it, within the time that the reserve of a tenth and the headroom leave
    taken = [await one() for _ in range(1032)]
    assert max(taken[32:]) < 2.0


async def test_the_last_resort_when_every_upstream_is_open_is_the_local_tier_and_without_one_the_soonest_return():
    """T28: never a wedge."""
    shut = [
        Link(name, "primary", telling(Refused("breaker", retry_after_s=at))) for name, at in (("a", 9.0), ("b", 4.0))
    ]
    answer = await chained(*shut, Link("local", "tertiary", telling(Answer(200, []))))(call_of("embed", "x"))
    assert (answer.tier, answer.reason) == ("tertiary", "a: breaker; b: breaker")
    with pytest.raises(Refused) as refused:
        await chained(*shut)(call_of("embed", "x"))
    assert refused.value.retry_after_s == 4.0
