"""What a route's cache has is answered at the door itself."""

from __future__ import annotations

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
