"""Places in a bulkhead: taken, waited for, given up, and always given back."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.kit.weather import call_of
from understudy.policies.limit import Bulkhead, limit
from understudy.policies.service import Answer, Call, Failed, HeldStream, Refused, Service
from understudy.proxy.settings.settings import Limit


def bounded(service: Service, rules: Limit) -> tuple[Service, Bulkhead]:
    heart = Bulkhead(rules)
    return limit(service, heart, clock=asyncio.get_running_loop().time), heart


async def slow(_call: Call) -> Answer:
    await asyncio.sleep(1.0)
    return Answer(200, [])


async def test_so_many_at_once_so_many_waiting_and_the_rest_are_refused_at_once():
    service, heart = bounded(slow, Limit(concurrent=2, queue=2, wait_s_max=5.0))
    outcomes = await asyncio.gather(*(service(call_of("embed", "x")) for _ in range(6)), return_exceptions=True)
    assert [type(each) for each in outcomes] == [Answer] * 4 + [Refused] * 2
    assert (heart.in_flight, heart.refused, len(heart.waiting)) == (0, 2, 0)


async def test_those_who_wait_are_served_in_the_order_they_came():
    order: list[str] = []

    async def noting(call: Call) -> Answer:
        order.append(call.id)
        return await slow(call)

    service, _ = bounded(noting, Limit(concurrent=1, queue=9, wait_s_max=60.0))
    calls = [call_of("embed", "x", id=str(number)) for number in range(5)]
    await asyncio.gather(*map(service, calls))
    assert order == ["0", "1", "2", "3", "4"]


async def test_nobody_waits_longer_than_the_bound_or_past_the_calls_own_time():
    service, _ = bounded(slow, Limit(concurrent=1, queue=9, wait_s_max=0.3))
    clock = asyncio.get_running_loop().time
    first = asyncio.ensure_future(service(call_of("embed", "x")))
    await asyncio.sleep(0)
    for until_s, waited_s in ((10.0, 0.3), (0.1, 0.1)):
        call, began = call_of("embed", "x"), clock()
        call.until = began + until_s
        with pytest.raises(Refused, match="no place"):
            await service(call)
        assert clock() - began == pytest.approx(waited_s)
    await first


async def test_a_stream_keeps_its_place_until_it_has_ended():
    async def streaming(_call: Call) -> Answer:
        return Answer(200, [], stream=HeldStream([b"a"]))

    service, heart = bounded(streaming, Limit(concurrent=1, queue=0))
    answer = await service(call_of("generate", "x"))
    assert heart.in_flight == 1
    with pytest.raises(Refused):
        await service(call_of("generate", "x"))
    assert answer.stream is not None
    answer.stream.close()
    assert heart.in_flight == 0


async def test_no_place_leaks_in_a_thousand_calls_that_fail_time_out_and_are_cancelled():
    dice = random.Random(7)

    async def moody(_call: Call) -> Answer:
        await asyncio.sleep(dice.random())
        if dice.random() < 0.3:
            raise Failed("reset")
        return Answer(200, [])

    service, heart = bounded(moody, Limit(concurrent=5, queue=10, wait_s_max=0.5))
    tasks = []
    for _ in range(1000):
        task = asyncio.ensure_future(service(call_of("embed", "x")))
        if dice.random() < 0.3:
            asyncio.get_running_loop().call_later(dice.random(), task.cancel)
        tasks.append(task)
        await asyncio.sleep(dice.random() * 0.1)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (heart.in_flight, len(heart.waiting)) == (0, 0)


async def test_a_place_given_in_the_moment_its_waiter_left_goes_to_the_next():
    service, heart = bounded(slow, Limit(concurrent=1, queue=9, wait_s_max=60.0))
    first = asyncio.ensure_future(service(call_of("embed", "1")))
    await asyncio.sleep(0)
    leaving = asyncio.ensure_future(service(call_of("embed", "2")))
    staying = asyncio.ensure_future(service(call_of("embed", "3")))
    await asyncio.sleep(0)
    heart.leave()
    heart.in_flight += 1  # `first` still holds the place it will give back itself
    leaving.cancel()
    await asyncio.gather(first, leaving, staying, return_exceptions=True)
    assert staying.result().status == 200


async def test_a_lowered_limit_takes_effect_as_places_come_back():
    service, heart = bounded(slow, Limit(concurrent=4, queue=9, wait_s_max=60.0))
    tasks = [asyncio.ensure_future(service(call_of("embed", "x"))) for _ in range(6)]
    await asyncio.sleep(0.5)
    heart.rules = Limit(concurrent=1, queue=9, wait_s_max=60.0)
    await asyncio.sleep(0.6)
    assert heart.in_flight == 1
    await asyncio.gather(*tasks)
    assert heart.in_flight == 0
