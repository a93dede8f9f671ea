"""The usual answer is read without a parser; what is not one is not taken for it."""

from __future__ import annotations

import json

from tests.http.house import House, content, request
from tests.kit.acts import raw

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
