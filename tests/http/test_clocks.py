"""How long a caller may take, and a call: on the virtual clock, so that nobody waits."""

from __future__ import annotations

import asyncio

import pytest

from tests.http.house import House, answering, request, until
from tests.http.test_streams import Flood
from tests.kit.acts import silence
from understudy.policies.service import Answer, Call
from understudy.proxy.settings.settings import Deadline, Limits

LIMITS = Limits(head_s=10, body_s=20, idle_s=40, write_buffer_bytes_max=64 * 1024)


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_an_idle_connection_is_closed_when_its_time_is_up():
    async with House(limits=LIMITS) as house:
        caller = await house.caller()
        started = now()
        await caller.ends()
        assert 40 <= now() - started < 43
        again = await house.caller()
        for _ in range(3):
            await asyncio.sleep(30)
            again.say(request())
            assert (await again.hears()).status == 200
        started = now()
        await again.ends()
        assert 40 <= now() - started < 43


async def test_a_head_that_takes_too_long_is_a_408_however_steadily_it_drips():
    async with House(limits=LIMITS) as house:
        caller = await house.caller()
        started = now()

        async def drip() -> None:
            for byte in b"GET /x HTTP/1.1\r\nhost: here\r\nx: " + b"v" * 100:
                caller.say(bytes([byte]))
                await asyncio.sleep(1)

        dripping = asyncio.ensure_future(drip())
        got = await caller.hears()
        assert (got.status, got.code) == (408, "head_timeout")
        assert 10 <= now() - started < 13
        dripping.cancel()


async def test_a_body_that_stops_coming_is_a_408_and_one_that_only_comes_slowly_is_not():
    async with House(limits=LIMITS) as house:
        caller = await house.caller()
        caller.say(request("POST", body=b"x" * 50_000)[:-50_000])
        for _ in range(10):
            await asyncio.sleep(9)
            caller.say(b"x" * 5000)
        assert (await caller.hears()).status == 200
        caller.say(request("POST", body=b"x" * 50_000)[:-1])
        started = now()
        got = await caller.hears()
        assert (got.status, got.code) == (408, "body_timeout")
        assert 20 <= now() - started < 23
        await caller.ends()


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_body_that_drips_is_a_408_although_it_never_stops(framing: str):
    async with House(limits=LIMITS) as house:
        caller = await house.caller()
        head, piece = b"POST /x HTTP/1.1\r\nhost: here\r\n", b"x" * 100
        if framing == "length":
            caller.say(head + b"content-length: 1000000\r\n\r\n")
        else:
            caller.say(head + b"transfer-encoding: chunked\r\n\r\n")
            piece = b"64\r\n" + piece + b"\r\n"
        started = now()

        async def drip() -> None:
            while True:
                caller.say(piece)
                await asyncio.sleep(1)

        dripping = asyncio.ensure_future(drip())
        got = await caller.hears()
        assert (got.status, got.code) == (408, "body_timeout")
        # 20 s, and a fifth of a second for each of the pieces that came meanwhile
        assert 24 <= now() - started < 28
        dripping.cancel()


async def test_a_body_that_waited_for_our_leave_is_timed_from_then():
    async with House(limits=LIMITS) as house:
        house.up.then(_late(25.0))
        caller = await house.caller()
        asks = b"POST /2 HTTP/1.1\r\nhost: here\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n"
        caller.say(request(target="/1"), asks)
        assert (await caller.hears()).status == 200
        assert (await caller.hears()).status == 100
        await asyncio.sleep(10)
        caller.say(b"abc")
        assert (await caller.hears()).status == 200


async def test_the_head_clock_does_not_count_the_time_we_were_busy_and_did_not_read():
    async with House(limits=LIMITS) as house:
        house.up.then(_late(20.0), _late(0.0))
        caller = await house.caller()
        third = request(target="/3")
        caller.say(request(target="/1"), request(target="/2"), third[:20])
        assert (await caller.hears()).status == 200
        assert (await caller.hears()).status == 200
        await asyncio.sleep(5)
        caller.say(third[20:])
        assert (await caller.hears()).status == 200
        assert house.up.paths == [b"/1", b"/2", b"/3"]


def _late(delay_s: float):
    from tests.kit.acts import answer

    return answer(200, delay_s=delay_s)


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_caller_that_takes_nothing_for_too_long_is_let_go_with_its_upstream(streamed: bool):
    service = None if streamed else answering(lambda _call: Answer(200, [], b"x" * 30_000_000))
    async with House(limits=LIMITS, service=service) as house:
        house.up.then(Flood(100_000_000))
        caller = await house.caller()
        caller.say(request())
        started = now()
        await until(lambda: not house.listener.doors, within_s=100, step_s=0.5)
        # the kernel goes on taking some while its buffers grow
        assert 40 <= now() - started < 70
        assert house.in_hand == 0
        await until(lambda: not house.up.connections_open)


async def test_what_is_kept_for_all_slow_readers_is_bounded_and_the_slowest_is_let_go_first():
    limits = Limits(unsent_bytes_max=70_000_000)
    async with House(limits=limits, service=answering(lambda _call: Answer(200, [], b"x" * 30_000_000))) as house:
        callers = [await house.caller() for _ in range(6)]
        for number, caller in enumerate(callers, 1):
            caller.say(request())
            await until(lambda number=number: len(house.logged) == number)
            await asyncio.sleep(1)
            assert sum(door.unsent_bytes for door in house.listener.doors) <= limits.unsent_bytes_max
        assert 2 <= len(house.listener.doors) < 6
        # the last to come is still being served, and one who reads gets it all
        assert len((await callers[-1].hears()).body) == 30_000_000
        got = await callers[0].hears()
        assert not got.whole
        assert len(house.listener.behind) <= 2
        assert house.listener.behind.cut == 6 - len(house.listener.doors)


async def test_a_caller_that_takes_a_little_now_and_then_is_not_let_go():
    async with House(limits=LIMITS) as house:
        flood = Flood(40_000_000)
        house.up.then(flood)
        caller = await house.caller()
        caller.say(request())
        await asyncio.sleep(1)
        for _ in range(5):
            await asyncio.sleep(35)
            # the kernel tells us of room only when a good part of its own buffer is free
            await caller.reader.readexactly(6_000_000)
        assert len(house.listener.doors) == 1


async def test_a_caller_that_takes_less_than_the_least_is_let_go_although_it_never_stops():
    limits = Limits(idle_s=40, read_bytes_per_s_min=1_000_000)
    async with House(limits=limits, service=answering(lambda _call: Answer(200, [], b"x" * 60_000_000))) as house:
        caller = await house.caller()
        caller.say(request())
        started = now()

        async def sip() -> None:
            while True:
                await asyncio.sleep(30)
                await caller.reader.readexactly(6_000_000)

        sipping = asyncio.ensure_future(sip())
        await until(lambda: not house.listener.doors, within_s=200, step_s=0.5)
        # 40 s, and what was taken of the buffer bought some more: the kernel tells of room in large steps
        assert 40 < now() - started < 70
        assert house.listener.behind.cut == 1
        sipping.cancel()
        await asyncio.gather(sipping, return_exceptions=True)


async def test_a_call_that_outlives_its_deadline_is_interrupted_wherever_it_waits():
    left: list[str] = []

    async def stuck(call: Call) -> Answer:
        call.deadline = now() + 5
        try:
            await asyncio.sleep(1000)
        finally:
            left.append("left")
        raise AssertionError

    async with House(service=stuck) as house:
        caller = await house.caller()
        started = now()
        caller.say(request())
        got = await caller.hears()
        assert (got.status, got.code) == (504, "deadline")
        assert 6 <= now() - started < 8
        assert left == ["left"]
        house.parts.service = answering(lambda _call: Answer(200, [], b"fine"))
        caller.say(request())
        assert (await caller.hears()).body == b"fine"


async def test_an_upstream_that_says_nothing_is_a_504_by_the_deadline_and_its_connection_is_closed():
    async with House(deadline=Deadline(total_s=3.0)) as house:
        house.up.always(silence())
        started = now()
        got = await house.ask()
        assert (got.status, got.code) == (504, "deadline")
        assert 2.9 <= now() - started <= 3.1
        assert len(house.up.heard) == 1
        await until(lambda: not house.up.connections_open)


async def test_a_callers_own_patience_shortens_the_deadline():
    async with House(deadline=Deadline(total_s=30.0)) as house:
        house.up.always(silence())
        started = now()
        got = await house.ask(request(headers=[(b"x-stainless-read-timeout", b"10")]))
        assert got.status == 504
        assert 8.9 <= now() - started <= 9.1


async def test_a_refused_caller_that_never_leaves_is_closed_after_a_moment():
    async with House(limits=LIMITS) as house:
        caller = await house.caller()
        caller.say(b"FROB\r\n\r\n")
        started = now()
        await caller.hears()
        await until(lambda: not house.listener.doors, step_s=0.5)
        assert now() - started < 3.5
