"""The usual answer is read without a parser; what is not one is not taken for it."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.http.house import House, content, request
from tests.kit.acts import raw
from understudy.proxy.http.stepping import Steps

PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n%b\r\n{}"


async def test_a_connection_whose_server_says_close_is_not_used_again():
    async with House() as house:
        house.up.then(raw(PLAIN % b"connection: close\r\n"), raw(PLAIN % b""), raw(PLAIN % b""))
        for connections in (1, 2, 2):
            assert (await house.ask()).body == b"{}"
            assert house.up.connections_ever == connections


async def test_a_whole_stream_of_events_in_one_packet_with_its_length_told_is_a_stream_all_the_same():
    events = b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in content("well")) + b"data: [DONE]\n\n"
    told = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n%b"
    asked = request("POST", "/v1/chat/completions", body=b'{"model":"m","messages":[],"stream":true}')
    async with House(dialect="openai-chat") as house:
        house.up.always(raw(told % (len(events), events)))
        got = await house.ask(asked)
        assert (got.status, got.body, got.whole, house.failures) == (200, events, True, 0)


class Counting(Steps):
    """Notes what calls write by it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.written: list[bytes] = []

    def write(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        self.written.append(data)
        super().write(transport, data)


@pytest.mark.interpreted
async def test_a_plain_call_writes_with_those_that_go_on_beside_it_and_the_last_one_on_a_connection_by_itself():
    async with House() as house:
        steps = Counting(house.loop)
        house.listener.steps = house.pools[0].steps = steps
        house.up.then(raw(PLAIN % b""), raw(PLAIN % b""))
        assert (await house.ask(request("POST", "/", body=b"{}"))).body == b"{}"
        assert [piece.partition(b" ")[0] for piece in steps.written] == [b"POST", b"HTTP/1.1"]
        assert (await house.ask(request("POST", "/", headers=[(b"connection", b"close")], body=b"{}"))).body == b"{}"
        # closed behind its answer, which so can't wait
        assert [piece.partition(b" ")[0] for piece in steps.written[2:]] == [b"POST"]
