"""What a route's cache has is answered at the door itself."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.http.house import House
from tests.kit.acts import answer
from understudy.policies.service import Answer, Request


def asked(target: bytes, body: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n%b" % (target, len(body), body)


@pytest.mark.parametrize("body", [b"", b"what was asked before"])
async def test_what_the_cache_has_is_answered_at_once_and_the_next_request_has_its_turn(body: bytes):
    async with House() as house:
        house.up.always(answer(200, body=b"asked"))
        kept = Answer(200, [(b"x-kept", b"yes")], b"kept", tier="primary", source="cache")
        house.parts.hit = lambda request: kept if request.target == b"/kept" else None
        caller = await house.caller()
        for target, expected in ((b"/kept", b"kept"), (b"/new", b"asked"), (b"/kept", b"kept")) * 2:
            caller.say(asked(target, body))
            got = await caller.hears()
            assert (got.status, got.body) == (200, expected)
        assert len(house.up.heard) == 2
        assert [status for status, _, _ in house.logged] == [200] * 6


async def test_hits_sent_ahead_are_answered_in_turn():
    async with House() as house:
        house.up.always(answer(200, body=b"asked", delay_s=0.1))
        house.parts.hit = lambda request: Answer(200, [], request.body) if request.target == b"/kept" else None
        caller = await house.caller()
        caller.say(b"".join((asked(b"/new", b"x"), *(asked(b"/kept", b"%d" % n) for n in range(9)))))
        assert [(await caller.hears()).body for _ in range(10)] == [b"asked", *(b"%d" % n for n in range(9))]


async def test_a_cache_that_breaks_is_a_cache_that_has_nothing(caplog: pytest.LogCaptureFixture):
    async with House() as house:
        house.up.always(answer(200, body=b"asked"))

        def broken(_request: Request) -> Answer | None:
            raise RuntimeError("broken")

        house.parts.hit = broken
        assert (await house.ask(asked(b"/x", b""))).body == b"asked"
        assert "could not be asked" in caplog.text


KEPT = Answer(200, [(b"x-kept", b"yes")], b"kept", tier="cache", source="cache")


def quick(_remembered: Mapping[object, object], body: bytes, _bytes_max: int) -> Answer | None:
    return KEPT if body == b"kept" else None


async def test_behind_a_head_that_is_known_what_is_kept_goes_out_without_a_request_and_says_the_same():
    async with House() as house:
        house.up.always(answer(200, body=b"asked"))
        house.parts.hit = lambda request: KEPT if request.body == b"kept" else None
        caller = await house.caller()
        heads: list[list[tuple[bytes, bytes]]] = []
        for has_quick in (False, True):
            house.parts.quick_hit = quick if has_quick else None
            for body in (b"new", b"kept", b"new", b"kept", b"kept"):
                caller.say(asked(b"/x", body))
                got = await caller.hears()
                assert (got.status, got.body) == (200, b"kept" if body == b"kept" else b"asked")
                if body == b"kept":
                    heads.append([(name, value) for name, value in got.headers if name != b"x-request-id"])
                    assert got.header(b"x-request-id")
        assert heads == [heads[0]] * 6
        assert len(house.up.heard) == 4
        assert [(status, end) for status, end, _ in house.logged] == [(200, "done")] * 10


async def test_what_is_kept_waits_for_its_turn_and_closes_where_everything_is_to_close():
    async with House() as house:
        house.up.always(answer(200, body=b"asked", delay_s=0.1))
        house.parts.hit = lambda request: KEPT if request.body == b"kept" else None
        house.parts.quick_hit = quick
        caller = await house.caller()
        for body in (b"kept", b"new", b"kept", b"kept"):
            caller.say(asked(b"/x", body))
        assert [(await caller.hears()).body for _ in range(4)] == [b"kept", b"asked", b"kept", b"kept"]
        house.listener.last_call()
        caller.say(asked(b"/x", b"kept"))
        got = await caller.hears()
        assert (got.body, got.header(b"connection")) == (b"kept", b"close")
        await caller.ends()


async def test_a_quick_look_that_breaks_is_one_that_found_nothing(caplog: pytest.LogCaptureFixture):
    async with House() as house:
        house.up.always(answer(200, body=b"asked"))

        def broken(_remembered: Mapping[object, object], _body: bytes, _bytes_max: int) -> Answer | None:
            raise RuntimeError("broken")

        house.parts.quick_hit = broken
        caller = await house.caller()
        for _ in range(3):
            caller.say(asked(b"/x", b"new"))
            assert (await caller.hears()).body == b"asked"
        assert caplog.text.count("could not be asked") == 2
