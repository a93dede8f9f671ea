"""The head that a connection said last is known again by its bytes, and nothing else is taken for it."""

from __future__ import annotations

import pytest

from tests.http.house import Caller, House, answering, request
from tests.kit.acts import answer
from understudy.policies.service import Answer
from understudy.proxy.routes import Table
from understudy.proxy.settings.settings import Limits, Match


def said(length: bytes, body: bytes) -> bytes:
    return b"POST /x HTTP/1.1\r\nhost: here\r\ncontent-length: %b\r\n\r\n%b" % (length, body)


async def asks(caller: Caller, *requests: bytes) -> list[bytes]:
    """The bodies of the answers to these, asked one after the other on one connection."""
    heard: list[bytes] = []
    for one in requests:
        caller.say(one)
        got = await caller.hears()
        assert got.status == 200
        heard.append(got.body)
    return heard


def echo() -> House:
    return House(service=answering(lambda call: Answer(200, [], call.request.body)))


async def test_bodies_of_any_length_come_whole_behind_a_head_that_is_known_again():
    async with echo() as house:
        bodies = [b"x" * length for length in (1, 2, 9, 10, 99, 100, 1)]
        assert await asks(await house.caller(), *(said(b"%d" % len(body), body) for body in bodies)) == bodies


@pytest.mark.parametrize("length", [b"+5", b"-5", b"5_", b"0_5", b"0x5", b"5,5", b"5 5", b"", b"five", b"\xb2"])
async def test_a_length_that_is_none_is_refused_behind_a_head_that_is_known_too(length: bytes):
    async with echo() as house:
        caller = await house.caller()
        assert await asks(caller, said(b"5", b"first"), said(b"5", b"again")) == [b"first", b"again"]
        caller.say(said(length, b"third"))
        assert (await caller.hears()).status == 400
        await caller.ends()


async def test_a_body_beyond_the_bound_is_refused_behind_a_head_that_is_known_too():
    async with House(body_bytes_max=10, service=answering(lambda _: Answer(200, [], b"ok"))) as house:
        caller = await house.caller()
        assert await asks(caller, said(b"5", b"first"), said(b"10", b"just right")) == [b"ok", b"ok"]
        caller.say(said(b"11", b"just wrong."))
        refused = await caller.hears()
        assert refused.status == 413
        assert b"larger than 10 bytes, the policies' body_bytes_max" in refused.body


async def test_what_comes_behind_a_known_head_and_its_body_is_the_next_request():
    async with echo() as house:
        caller = await house.caller()
        assert await asks(caller, said(b"5", b"first")) == [b"first"]
        caller.say(said(b"5", b"again") + request("POST", "/x", body=b"ahead"))
        assert [(await caller.hears()).body for _ in range(2)] == [b"again", b"ahead"]


async def test_half_a_body_behind_a_known_head_is_waited_for():
    async with echo() as house:
        caller = await house.caller()
        assert await asks(caller, said(b"5", b"first")) == [b"first"]
        await caller.say_split(said(b"5", b"again"), len(said(b"5", b"")) + 2)
        assert (await caller.hears()).body == b"again"


async def test_after_a_reload_a_known_head_goes_where_the_new_routes_say():
    async with House() as house:
        house.up.always(answer(200, body=b"old"))
        caller = await house.caller()
        assert await asks(caller, said(b"1", b"1"), said(b"1", b"2")) == [b"old", b"old"]
        house.listener.serve(Table([(Match(path="/elsewhere"), house.parts)]).find, Limits())
        caller.say(said(b"1", b"3"))
        got = await caller.hears()
        assert (got.status, got.code) == (404, "no_route")
        assert len(house.up.heard) == 2
