"""The way back from an outage: by degrees while another tier can answer, and never at the price of a call."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass

import pytest

from tests.kit.weather import call_of
from understudy.policies.chain import Link, chain
from understudy.policies.deadline import Deadline
from understudy.policies.ramp import Ramp
from understudy.policies.service import Answer, Call, Failed, Refused, Service
from understudy.proxy.settings.settings import Ramp as Rules


@dataclass
class Guard:
    state: str = "closed"
    mode: str = "auto"


def out_and_back(ramp: Ramp, *guards: Guard, now: float = 100.0) -> None:
    for guard in guards:
        guard.state = "open"
    assert not ramp.keeps_back(now)
    for guard in guards:
        guard.state = "half-open"
    assert not ramp.keeps_back(now)
    guards[0].state = "closed"


def test_the_share_grows_from_a_tenth_to_all_in_half_a_minute():
    guard = Guard()
    ramp = Ramp([guard], Rules(), random.Random(1).random)
    assert ramp.share(0.0) == 1.0
    out_and_back(ramp, guard)
    assert [round(ramp.share(100.0 + s), 3) for s in (0, 10, 20, 29, 30, 31, 500)] == [0.1, 0.4, 0.7, 0.97, 1, 1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_so_many_calls_are_let_through_as_the_share_says(seed: int):
    guard = Guard()
    ramp = Ramp([guard], Rules(), random.Random(seed).random)
    out_and_back(ramp, guard)
    ramp.share(100.0)
    for second, share in ((5, 0.25), (15, 0.55), (25, 0.85)):
        through = sum(not ramp.keeps_back(100.0 + second) for _ in range(4000))
        assert through / 4000 == pytest.approx(share, abs=0.03), (seed, second)


def test_an_outage_is_when_every_breaker_is_open_and_a_second_one_begins_again():
    guards = Guard(), Guard()
    ramp = Ramp(guards, Rules(), lambda: 0.99)
    guards[0].state = "open"
    assert ramp.share(0.0) == 1.0
    guards[0].state = "closed"
    assert ramp.share(1.0) == 1.0, "one of two was down: no outage"
    out_and_back(ramp, *guards)
    assert ramp.share(100.0) == pytest.approx(0.1)
    assert ramp.share(115.0) == pytest.approx(0.55)
    out_and_back(ramp, *guards, now=116.0)
    assert ramp.share(117.0) == pytest.approx(0.1)


def test_off_it_keeps_nobody_back_and_a_reload_goes_on_where_it_was():
    guard = Guard()
    off = Ramp([guard], Rules(enabled=False), lambda: 0.99)
    out_and_back(off, guard)
    assert not off.keeps_back(100.0)
    before = Ramp([guard], Rules(), lambda: 0.99)
    out_and_back(before, guard)
    before.share(100.0)
    after = Ramp([guard], Rules(over_s=60.0), lambda: 0.99)
    after.goes_on_from(before)
    assert after.share(130.0) == pytest.approx(0.55)


# --- in the chain --------------------------------------------------------------------------------------------------


async def answering(_call: Call) -> Answer:
    return Answer(200, [])


async def failing(_call: Call) -> Answer:
    raise Failed("reset")


async def refusing(_call: Call) -> Answer:
    raise Refused("breaker")


def ramping(share: float = 0.0) -> Ramp:
    """One that has just come back, and whose dice keep everything back above `share`."""
    guard = Guard()
    ramp = Ramp([guard], Rules(first_share=max(share, 0.001), over_s=1e9), random.Random(3).random)
    out_and_back(ramp, guard, now=0.0)
    return ramp


def chained(*links: Link) -> Service:
    return chain(links, Deadline(30.0, 1.0), clock=asyncio.get_running_loop().time)


async def test_what_is_kept_back_is_answered_by_the_next_tier_and_says_so():
    first = Link("first", "primary", answering, ramp=ramping(0.5))
    service = chained(first, Link("second", "secondary", answering))
    answers = [await service(call_of("embed", "x")) for _ in range(2000)]
    seen = Counter((answer.tier, answer.reason) for answer in answers)
    assert set(seen) == {("primary", ""), ("secondary", "first: ramp")}
    assert seen["primary", ""] / 2000 == pytest.approx(0.5, abs=0.05)
    assert first.outcomes["refused", "ramp"] == seen["secondary", "first: ramp"]


@pytest.mark.parametrize("later", [failing, refusing])
async def test_what_no_later_tier_answers_comes_back_to_the_tier_that_can(later: Service):
    service = chained(Link("first", "primary", answering, ramp=ramping()), Link("second", "secondary", later))
    for _ in range(50):
        answer = await service(call_of("embed", "x"))
        assert answer.tier == "primary"
        assert answer.reason.startswith("first: ramp; second: ")


async def test_a_tier_without_a_later_one_keeps_nothing_back():
    asked = 0

    async def counting(_call: Call) -> Answer:
        nonlocal asked
        asked += 1
        return Answer(200, [])

    only = chained(Link("only", "primary", counting, ramp=ramping()))
    gone = chained(Link("only", "primary", counting, ramp=ramping()), Link("local", "secondary", None, "not there"))
    for service in (only, gone):
        for _ in range(20):
            assert (await service(call_of("embed", "x"))).reason == ""
    assert asked == 40


async def test_each_tier_is_asked_once_even_if_all_are_on_their_way_back():
    asked: list[str] = []

    def named(name: str) -> Service:
        async def service(_call: Call) -> Answer:
            asked.append(name)
            raise Failed("reset")

        return service

    links = [Link(name, "primary", named(name), ramp=ramping()) for name in "abc"]
    with pytest.raises(Failed):
        await chained(*links)(call_of("embed", "x"))
    assert asked == ["c", "a", "b"]


async def test_a_write_that_may_have_been_carried_out_elsewhere_does_not_come_back():
    async def written(_call: Call) -> Answer:
        raise Failed("reset", elsewhere=False)

    first = Link("first", "primary", answering, ramp=ramping())
    with pytest.raises(Failed):
        await chained(first, Link("second", "secondary", written))(call_of("pass", "x"))
