"""What the door does not let in: malformed, too large, too many; said in JSON, and never forwarded."""

from __future__ import annotations

import asyncio

import pytest

from tests.http.house import House, chunked, request, turns
from tests.kit.acts import answer
from understudy.proxy.settings.settings import Limits, Match

pytestmark = pytest.mark.usefixtures("either_loop")

HOST = b"host: here\r\n"
POST = b"POST /x HTTP/1.1\r\n" + HOST
IN_CHUNKS = POST + b"transfer-encoding: chunked\r\n\r\n"

MALFORMED = {
    "both length and chunked": POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "both chunked and length": POST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    "two lengths that agree": POST + b"content-length: 1\r\ncontent-length: 1\r\n\r\na",
    "two lengths that differ": POST + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "a list of lengths": POST + b"content-length: 1, 1\r\n\r\na",
    "a negative length": POST + b"content-length: -1\r\n\r\n",
    "a length with a plus": POST + b"content-length: +1\r\n\r\na",
    "a length in hex": POST + b"content-length: 0x1\r\n\r\na",
    "an empty length": POST + b"content-length:\r\n\r\n",
    "a length beyond measure": POST + b"content-length: 99999999999999999999999\r\n\r\n",
    "chunked twice": POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk size that is no number": IN_CHUNKS + b"zz\r\n\r\n",
    "a negative chunk size": IN_CHUNKS + b"-1\r\na\r\n0\r\n\r\n",
    "a chunk size with 0x": IN_CHUNKS + b"0x1\r\na\r\n0\r\n\r\n",
    "a chunk size beyond measure": IN_CHUNKS + b"fffffffffffffffff\r\na\r\n0\r\n\r\n",
    "a chunk size and a space": IN_CHUNKS + b"1 \r\na\r\n0\r\n\r\n",
    "a chunk longer than it said": IN_CHUNKS + b"1\r\nab\r\n0\r\n\r\n",
    "chunks ended by bare LF": IN_CHUNKS + b"1\na\n0\n\n",
    "a trailer that is a length": IN_CHUNKS + b"1\r\na\r\n0\r\ncontent-length: 5\r\n\r\n",
    "no host": b"GET /x HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /x HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    "a line ended by bare LF": b"GET /x HTTP/1.1\nhost: here\n\n",
    "a header ended by bare LF": b"GET /x HTTP/1.1\r\nhost: here\na: b\r\n\r\n",
    "a head ended by bare LF": b"GET /x HTTP/1.1\r\nhost: here\r\n\n",
    "a bare CR": b"GET /x HTTP/1.1\r\nhost: here\ra: b\r\n\r\n",
    "a folded header": b"GET /x HTTP/1.1\r\nhost: here\r\na: b\r\n c\r\n\r\n",
    "a fold before the first header": b"GET /x HTTP/1.1\r\n host: here\r\n\r\n",
    "a NUL in a value": b"GET /x HTTP/1.1\r\nhost: here\r\na: b\0c\r\n\r\n",
    "a NUL in a name": b"GET /x HTTP/1.1\r\nhost: here\r\na\0: b\r\n\r\n",
    "a NUL in the target": b"GET /\0 HTTP/1.1\r\nhost: here\r\n\r\n",
    "a control character": b"GET /x HTTP/1.1\r\nhost: here\r\na: b\x01\r\n\r\n",
    "a space before the colon": b"GET /x HTTP/1.1\r\nhost : here\r\n\r\n",
    "a line without a colon": b"GET /x HTTP/1.1\r\nhost: here\r\nwhat\r\n\r\n",
    "a nameless header": b"GET /x HTTP/1.1\r\nhost: here\r\n: b\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
    "an unknown method": b"FROB /x HTTP/1.1\r\nhost: here\r\n\r\n",
    "a method in small letters": b"get /x HTTP/1.1\r\nhost: here\r\n\r\n",
    "HTTP/1.2": b"GET /x HTTP/1.2\r\nhost: here\r\n\r\n",
    "a tab for a space": b"GET\t/x HTTP/1.1\r\nhost: here\r\n\r\n",
    "a path that climbs": b"GET /a/../../b HTTP/1.1\r\nhost: here\r\n\r\n",
    "a target that is no path": b"GET x HTTP/1.1\r\nhost: here\r\n\r\n",
    "a star for GET": b"GET * HTTP/1.1\r\nhost: here\r\n\r\n",
    "another host's absolute target": b"GET http://there/x HTTP/1.1\r\nhost: here\r\n\r\n",
    "chunked in HTTP/1.0": b"POST /x HTTP/1.0\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_requests_get_400_and_are_closed_and_never_forwarded(name: str):
    async with House() as house:
        caller = await house.caller()
        caller.say(MALFORMED[name])
        got = await caller.hears()
        assert (got.status, got.code) == (400, "bad_request")
        assert got.header(b"connection") == b"close"
        assert got.header(b"content-type") == b"application/json"
        await caller.ends()
        assert house.up.heard == []
        assert house.up.garbled == []
        assert house.listener.bad_requests == 1


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"POST /x HTTP/1.1\r\nhost: here\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (POST + b"transfer-encoding: identity\r\n\r\n", 501),
        (POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        (POST + b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 400),
        (b"CONNECT there:443 HTTP/1.1\r\nhost: there:443\r\n\r\n", 501),
        (b"GET /x HTTP/2.0\r\nhost: here\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /x\r\nhost: here\r\n\r\n", 505),
        (request("POST", headers=[(b"expect", b"the-spanish-inquisition")], body=b"x"), 417),
    ],
)
async def test_what_is_not_spoken_here_is_said_to_be_so(said: bytes, status: int):
    async with House() as house:
        caller = await house.caller()
        caller.say(said)
        assert (await caller.hears()).status == status
        await caller.ends()
        assert house.up.heard == []


async def test_requests_before_a_malformed_one_are_answered_first():
    async with House() as house:
        house.up.respond = lambda heard: answer(200, body=heard.target)
        caller = await house.caller()
        caller.say(*(request(target=f"/{number}") for number in range(4)), b"FROB\r\n\r\n", request(target="/late"))
        assert [(await caller.hears()).body for _ in range(4)] == [b"/0", b"/1", b"/2", b"/3"]
        assert (await caller.hears()).status == 400
        await caller.ends()
        assert len(house.up.heard) == 4


async def test_what_follows_a_request_that_said_close_is_not_served():
    async with House() as house:
        caller = await house.caller()
        caller.say(request(headers=[(b"connection", b"close")]), request(target="/after"))
        assert (await caller.hears()).status == 200
        await caller.ends()
        assert house.up.paths == [b"/x"]


# --- limits --------------------------------------------------------------------------------------------------------

SMALL = Limits(head_bytes_max=2000, headers_max=10, target_bytes_max=200, body_bytes_max=1000, pipelined_max=3)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (request(headers=[(b"x-long", b"v" * 3000)]), 431),
        (request(headers=[(b"x-%d" % number, b"v" * 400) for number in range(6)]), 431),
        (request(headers=[(b"x", b"v")] * 11), 431),
        (request(target="/" + "p" * 250), 414),
        (request("POST", body=b"b" * 1001), 413),
        (request("POST", headers=[(b"transfer-encoding", b"chunked")]) + chunked(*[b"b" * 300] * 4), 413),
    ],
    ids=["one long header", "many long headers", "many headers", "target", "body by length", "body in chunks"],
)
@pytest.mark.parametrize("packet_bytes", [1_000_000, 500, 97])
async def test_each_limit_has_its_status_however_it_arrives(said: bytes, status: int, packet_bytes: int):
    async with House(limits=SMALL, body_bytes_max=1000) as house:
        caller = await house.caller()
        for at in range(0, len(said), packet_bytes):
            caller.say(said[at : at + packet_bytes])
            await turns(3)
        got = await caller.hears()
        assert (got.status, got.header(b"connection")) == (status, b"close")
        assert got.json()["error"]["message"]
        await caller.ends()
        assert house.up.heard == []


async def test_a_head_that_never_ends_is_refused_while_it_comes():
    async with House(limits=SMALL) as house:
        caller = await house.caller()
        caller.say(b"GET /x HTTP/1.1\r\nhost: here\r\nx-endless: ")
        for _ in range(10):
            await turns(3)
            caller.say(b"v" * 500)
        got = await caller.hears()
        assert (got.status, got.code) == (431, "head_too_large")


@pytest.mark.parametrize("endless", [b"0\r\nx-endless: ", b"5;endless=", b"0\r\n" + b"a: b\r\n" * 20])
async def test_trailers_and_extensions_that_never_end_are_refused_while_they_come(endless: bytes):
    async with House(limits=SMALL, body_bytes_max=1000) as house:
        caller = await house.caller()
        caller.say(IN_CHUNKS, b"1\r\na\r\n", endless)
        # so much that it is too much in whatever packets it comes
        for _ in range(30):
            await turns(3)
            caller.say(b"v" * 500 if endless.count(b"\r\n") < 3 else b"a: b\r\n" * 80)
        got = await caller.hears()
        assert (got.status, got.code) == (400, "bad_request")
        await caller.ends()
        assert house.up.heard == []


@pytest.mark.parametrize("size", [1000, 0])
async def test_a_body_of_just_the_limit_is_let_in(size: int):
    async with House(body_bytes_max=1000) as house:
        in_chunks = request("POST", headers=[(b"transfer-encoding", b"chunked")]) + chunked(*[b"b"] * size)
        assert (await house.ask(request("POST", body=b"b" * size))).status == 200
        assert (await house.ask(in_chunks)).status == 200


async def test_a_413_is_sent_instead_of_100():
    async with House(body_bytes_max=1000) as house:
        caller = await house.caller()
        caller.say(request("POST", headers=[(b"expect", b"100-continue"), (b"content-length", b"1001")]))
        assert (await caller.hears()).status == 413
        await caller.ends()


async def test_a_413_is_readable_by_a_caller_that_is_still_sending():
    async with House(body_bytes_max=1000) as house:
        caller = await house.caller()
        caller.say(request("POST", headers=[(b"content-length", b"3000000")]))
        for _ in range(30):
            caller.say(b"b" * 100_000)
            await caller.writer.drain()
        assert (await caller.hears()).status == 413
        await caller.ends()


async def test_more_requests_ahead_than_allowed_are_refused_after_the_others_were_answered():
    async with House(limits=SMALL) as house:
        caller = await house.caller()
        caller.say(*[request()] * 8)
        statuses = [(await caller.hears()).status for _ in range(5)]
        assert statuses == [200, 200, 200, 200, 400]
        await caller.ends()


async def test_more_connections_than_allowed_are_told_so():
    async with House(limits=Limits(connections_max=2)) as house:
        first, second = await house.caller(), await house.caller()
        first.say(request())
        assert (await first.hears()).status == 200
        third = await house.caller()
        got = await third.hears()
        assert (got.status, got.code) == (503, "connections")
        await third.ends()
        await second.leave()
        await turns()
        assert (await house.ask()).status == 200
        assert house.listener.refused_connections == 1


async def test_the_dialect_words_the_refusal_once_the_route_is_known():
    async with House(dialect="openai-chat", body_bytes_max=10) as house:
        got = await house.ask(request("POST", "/v1/chat/completions", body=b"b" * 20))
        assert got.status == 413
        assert got.json()["error"]["type"] == "invalid_request_error"


# --- nobody claims it ----------------------------------------------------------------------------------------------


async def test_a_path_that_no_route_claims_gets_404_with_the_routes_names_and_the_connection_goes_on():
    async with House(match=Match(prefix="/v1")) as house:
        caller = await house.caller()
        caller.say(request("POST", "/v2/<x>", body=b"body"), request(target="/v1/y"))
        got = await caller.hears()
        assert (got.status, got.code) == (404, "no_route")
        assert "/v2/<x>" in got.json()["error"]["message"]
        assert "here" in got.json()["error"]["message"]
        assert got.header(b"x-understudy-tier") == b"none"
        assert (await caller.hears()).status == 200
        assert house.listener.unrouted == 1
        assert house.up.paths == [b"/v1/y"]


async def test_a_host_that_no_route_claims_gets_404():
    async with House(match=Match(prefix="/", host="api.example")) as house:
        assert (await house.ask(request(host="other.example"))).status == 404
        assert (await house.ask(request(host="API.example:99"))).status == 200


# --- our own faults ------------------------------------------------------------------------------------------------


async def test_a_bug_of_our_own_is_a_500_with_a_traceback_in_the_log(caplog: pytest.LogCaptureFixture):
    async def buggy(call: object) -> object:
        await asyncio.sleep(0)
        raise ZeroDivisionError("one by nought")

    async with House(service=buggy) as house:  # type: ignore[arg-type]
        caller = await house.caller()
        for _ in range(2):
            caller.say(request())
            got = await caller.hears()
            assert (got.status, got.code) == (500, "internal")
            assert b"nought" not in got.body
        assert "one by nought" in caplog.text
        assert "Traceback" in caplog.text


async def test_an_answer_that_cannot_be_sent_breaks_the_connection_and_not_the_door(caplog: pytest.LogCaptureFixture):
    from understudy.policies.service import Answer

    async def odd(call: object) -> Answer:
        return Answer(200, [("text", "not bytes")])  # type: ignore[list-item]

    async with House(service=odd) as house:
        caller = await house.caller()
        caller.say(request())
        await caller.ends()
        assert "could not be sent" in caplog.text


async def test_every_answer_has_an_id_and_the_log_knows_it():
    async with House(match=Match(prefix="/v1")) as house:
        ids = [
            (await house.ask(said)).header(b"x-request-id")
            for said in (request(), request(target="/v1"), b"FROB\r\n\r\n")
        ]
        assert all(ids)
        assert len(set(ids)) == 3
        given = [(b"X-Request-Id", b"mine-1")]
        for target in ("/nowhere", "/v1"):
            assert (await house.ask(request(target=target, headers=given))).every(b"x-request-id") == [b"mine-1"]
        assert house.up.heard[-1].header(b"x-request-id") == b"mine-1"
        evil = [(b"x-request-id", b"a b")]
        assert (await house.ask(request(target="/v1", headers=evil))).header(b"x-request-id") != b"a b"
