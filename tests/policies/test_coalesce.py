"""Single-flight: one asks, the others wait; whoever hangs up or fails leaves nobody behind."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import pytest

from understudy.policies.coalesce import Flights, coalesce
from understudy.policies.deadline import Deadline
from understudy.policies.service import Answer, Call, Failed, HeldStream, Refused, Request, Service

CLOCKS = Deadline(30.0, 1.0)


@dataclass
class Rules:
    keys_max: int = 100
    waiters_max: int = 100


def put_together(service: Service, **rules: int) -> tuple[Service, Flights]:
    heart = Flights(Rules(**rules))
    return coalesce(service, heart, CLOCKS, clock=asyncio.get_running_loop().time), heart


def call(key: bytes = b"k", *, within_s: float = 30.0) -> Call:
    made = Call("retrieve", Request(b"POST", b"/x", []))
    made.key = key
    made.born = asyncio.get_running_loop().time()
    made.deadline = made.until = made.born + within_s
    return made


async def test_calls_without_a_key_and_streams_go_alone():
    asked = 0

    async def slow(_call: Call) -> Answer:
        nonlocal asked
        asked += 1
        await asyncio.sleep(1)
        return Answer(200, [])

    service, heart = put_together(slow)
    streamed = [call() for _ in range(3)]
    for each in streamed:
        each.wants_stream = True
    await asyncio.gather(*(service(each) for each in [call(b""), call(b""), *streamed]))
    assert (asked, heart.flights) == (5, {})


@pytest.mark.parametrize("status", [200, 400, 404, 422])
async def test_an_answer_that_is_the_same_for_all_is_copied_so_that_nobody_changes_anothers(status: int):
    async def slow(_call: Call) -> Answer:
        await asyncio.sleep(1)
        return Answer(status, None, b"body", block=b"a: b\r\n")

    service, _ = put_together(slow)
    got = await asyncio.gather(*(service(call()) for _ in range(5)))
    got[0].add(b"mine", b"1")
    assert [each.lines() for each in got[1:]] == [b"a: b\r\n"] * 4


@pytest.mark.parametrize("status", [401, 403, 408, 409, 429, 500, 503])
async def test_an_answer_of_the_moment_or_about_who_asked_is_nobody_elses(status: int):
    asked = 0

    async def slow(_call: Call) -> Answer:
        nonlocal asked
        asked += 1
        await asyncio.sleep(1)
        return Answer(status, [])

    service, heart = put_together(slow)
    await asyncio.gather(*(service(call()) for _ in range(5)))
    # one other tries for all, and then each for itself
    assert (asked, heart.shared, heart.flights) == (5, 0, {})


async def test_an_answer_that_comes_as_a_stream_can_not_be_shared_and_nobody_waits_for_its_end():
    clock = asyncio.get_running_loop().time

    async def slow(_call: Call) -> Answer:
        await asyncio.sleep(1)
        return Answer(200, [], stream=HeldStream([b"x"]))

    service, _ = put_together(slow)
    began = clock()
    got = await asyncio.gather(*(service(call()) for _ in range(4)))
    assert len({id(each.stream) for each in got}) == 4
    assert clock() - began == pytest.approx(2.0)


async def test_while_everything_is_down_nobody_waits_for_more_than_two_failures():
    clock = asyncio.get_running_loop().time

    async def down(_call: Call) -> Answer:
        await asyncio.sleep(1)
        raise Failed("first_byte_timeout")

    service, heart = put_together(down)
    began = clock()
    got = await asyncio.gather(*(service(call()) for _ in range(50)), return_exceptions=True)
    assert all(isinstance(each, Failed) for each in got)
    assert clock() - began == pytest.approx(3.0)
    assert not heart.flights


async def test_who_has_no_time_left_to_wait_asks_alone_while_a_later_tier_still_can_answer():
    clock = asyncio.get_running_loop().time
    asked: list[float] = []

    async def slow(each: Call) -> Answer:
        asked.append(clock())
        await asyncio.sleep(20 if len(asked) == 1 else 0.5)
        return Answer(200, [])

    service, _ = put_together(slow)
    first = asyncio.ensure_future(service(call()))
    await asyncio.sleep(0)
    began = clock()
    await service(call(within_s=4.0))
    assert asked[1] - began == pytest.approx(3.0)
    await first


async def test_keys_and_waiters_beyond_the_bounds_go_alone():
    asked = 0

    async def slow(_call: Call) -> Answer:
        nonlocal asked
        asked += 1
        await asyncio.sleep(1)
        return Answer(200, [])

    service, heart = put_together(slow, keys_max=2, waiters_max=3)
    calls = [call(b"%d" % n) for n in range(4)] + [call(b"0") for _ in range(5)]
    await asyncio.gather(*(service(each) for each in calls))
    assert (asked, heart.shared, heart.alone) == (4 + 2, 3, 2 + 2)


@pytest.mark.virtual_clock(io_grace_s=0)
@pytest.mark.parametrize("seed", range(30))
async def test_whatever_becomes_of_owners_everybody_is_answered_or_told_and_nothing_is_left(seed: int):
    """400 calls for five keys; owners answer, fail, refuse or stream, and callers hang up, all at random."""
    dice = random.Random(seed)
    clock = asyncio.get_running_loop().time

    async def moody(each: Call) -> Answer:
        await asyncio.sleep(dice.random() * 2)
        match dice.randrange(6):
            case 0:
                raise Failed("reset")
            case 1:
                raise Refused("limit")
            case 2:
                return Answer(503, [], each.key)
            case 3:
                return Answer(200, [], each.key, stream=HeldStream([each.key]))
            case _:
                return Answer(200, [], each.key)

    service, heart = put_together(moody, keys_max=4, waiters_max=8)
    tasks: list[tuple[bytes, asyncio.Task[Answer]]] = []
    for _ in range(400):
        key = b"%d" % dice.randrange(5)
        task = asyncio.ensure_future(service(call(key, within_s=10.0)))
        tasks.append((key, task))
        if dice.random() < 0.3:
            asyncio.get_running_loop().call_later(dice.random() * 2, dice.choice(tasks)[1].cancel)
        await asyncio.sleep(dice.random() * 0.1)
    began = clock()
    got = await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)
    assert clock() - began < 30.0
    for (key, _), each in zip(tasks, got, strict=True):
        assert isinstance(each, Failed | Refused | asyncio.CancelledError) or (
            isinstance(each, Answer) and each.body == key
        )
    assert heart.flights == {}
