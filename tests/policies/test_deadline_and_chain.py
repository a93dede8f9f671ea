"""Until when a call may wait, whom it asks in what order, and what the caller is told."""

from __future__ import annotations

import asyncio

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
    ],
)
def test_the_callers_own_patience_is_read_and_what_makes_no_sense_is_not_believed(
    headers: list[tuple[bytes, bytes]], patience_s: float | None
):
    assert caller_patience_s(headers) == patience_s


def test_a_tiers_outcomes_are_counted_and_their_number_is_bounded():
    link = Link("a", "primary", None)
    for number in range(1000):
        link.count("failed", f"reason {number}")
    assert len(link.outcomes) <= 65
    assert sum(link.outcomes.values()) == 1000
