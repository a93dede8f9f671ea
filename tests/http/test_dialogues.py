"""What goes in at the door comes out behind it, and the other way: dialogues of bytes."""

from __future__ import annotations

import asyncio

import pytest

from tests.http.house import House, answering, chunked, request, turns, until
from tests.kit.acts import answer, pieces
from tests.kit.fake_upstream import Act, Heard, Wire
from understudy.policies.service import Answer, Call, HeldStream
from understudy.proxy.settings.settings import Limits, Match

pytestmark = pytest.mark.usefixtures("either_loop")


def echo(_heard: Heard) -> Act:
    """The method, the target and the body come back."""

    async def play(wire: Wire, heard: Heard) -> None:
        await answer(200, body=heard.method + b" " + heard.target + b" " + heard.body)(wire, heard)

    return play


async def test_a_connection_serves_one_request_after_another():
    async with House() as house:
        house.up.respond = echo
        caller = await house.caller()
        for number in range(5):
            caller.say(request(target=f"/{number}"))
            assert (await caller.hears()).body == b"GET /%d " % number
        assert house.up.connections_ever == 1


async def test_pipelined_requests_are_answered_in_order_in_one_packet():
    async with House() as house:
        house.up.respond = echo
        caller = await house.caller()
        caller.say(*(request("POST", f"/{number}", body=b"b%d" % number) for number in range(15)))
        assert [(await caller.hears()).body for _ in range(15)] == [b"POST /%d b%d" % (n, n) for n in range(15)]


async def test_pipelined_requests_are_answered_in_order_when_the_first_is_slow():
    async with House() as house:
        gate = asyncio.Event()

        async def slow(wire: object, heard: Heard) -> None:
            await gate.wait()
            await answer(200, body=heard.target)(wire, heard)  # type: ignore[arg-type]

        house.up.respond = lambda heard: slow if heard.target == b"/0" else answer(200, body=heard.target)
        caller = await house.caller()
        caller.say(request(target="/0"), request(target="/1"))
        caller.say(request(target="/2"))
        await until(lambda: house.up.paths)
        await turns(30)
        assert house.up.paths == [b"/0"]
        gate.set()
        assert [(await caller.hears()).body for _ in range(3)] == [b"/0", b"/1", b"/2"]


async def test_hundreds_of_pipelined_requests_sent_packet_by_packet_are_all_answered():
    async with House(limits=Limits(pipelined_max=200)) as house:
        house.up.respond = echo
        caller = await house.caller()

        async def talk() -> None:
            for number in range(200):
                caller.say(request(target=f"/{number}"))
                await caller.writer.drain()
                await turns(2)

        talking = asyncio.ensure_future(talk())
        for number in range(200):
            assert (await caller.hears()).body == b"GET /%d " % number
        await talking


async def test_hundreds_of_pipelined_requests_for_nobody_are_all_answered():
    async with House(limits=Limits(pipelined_max=1000), match=Match(prefix="/v1")) as house:
        caller = await house.caller()
        caller.say(*[request(target="/nowhere")] * 1000, request(target="/v1"))
        assert {(await caller.hears()).status for _ in range(1000)} == {404}
        assert (await caller.hears()).body == b"ok"


@pytest.mark.parametrize("bodies", [(b"",), (b"x",), (b"abc", b"", b"de"), (b"z" * 100_000, b"y")])
async def test_a_chunked_body_reaches_the_upstream_with_its_length(bodies: tuple[bytes, ...]):
    async with House() as house:
        said = [body for body in bodies if body]
        head = request("POST", headers=[(b"Transfer-Encoding", b"chunked"), (b"X-Kept", b"1")])
        got = await house.ask(head, chunked(*said))
        assert got.body == b"ok"
        [heard] = house.up.heard
        assert heard.body == b"".join(bodies)
        assert heard.header(b"content-length") == b"%d" % len(heard.body)
        assert heard.header(b"transfer-encoding") is None
        assert heard.header(b"x-kept") == b"1"


async def test_many_small_chunks_take_no_more_memory_than_the_body():
    async with House() as house:
        caller = await house.caller()
        caller.say(request("POST", headers=[(b"transfer-encoding", b"chunked")]), b"2\r\nab\r\n" * 50_000)
        [door] = house.listener.doors
        await until(lambda: sum(map(len, door._body)) == 100_000)
        assert len(door._body) < 50
        caller.say(b"0\r\n\r\n")
        assert (await caller.hears()).status == 200
        assert house.up.heard[0].body == b"ab" * 50_000


async def test_chunk_extensions_are_dropped_and_trailers_do_not_pass_for_headers():
    async with House() as house:
        body = b"3;a=b\r\nabc\r\n0\r\nAuthorization: forged\r\nX-Late: 1\r\n\r\n"
        got = await house.ask(request("POST", headers=[(b"transfer-encoding", b"chunked")]) + body)
        assert got.status == 200
        [heard] = house.up.heard
        assert heard.body == b"abc"
        assert b"forged" not in heard.raw
        assert b"X-Late" not in heard.raw


@pytest.mark.parametrize("framing", ["length", "chunked", "until-close"])
@pytest.mark.parametrize("size", [0, 1, 70_000])
async def test_an_answer_arrives_whole_in_each_framing(framing: str, size: int):
    async with House() as house:
        house.up.then(answer(200, [(b"x-kept", b"1")], b"q" * size, framing=framing))  # type: ignore[arg-type]
        caller = await house.caller()
        caller.say(request())
        got = await caller.hears()
        assert (got.status, got.body, got.whole) == (200, b"q" * size, True)
        assert got.header(b"x-kept") == b"1"
        caller.say(request())
        assert (await caller.hears()).body == b"ok", "the caller's connection goes on whatever the upstream's does"


async def test_a_request_may_be_split_at_every_byte():
    body = b"hello there"
    plain = request("POST", "/p?q=1", [(b"x-one", b"1")], body)
    in_chunks = request("POST", "/p?q=1", [(b"transfer-encoding", b"chunked"), (b"x-one", b"1")])
    in_chunks += chunked(b"hello", b" there", trailers=b"x: y\r\n")
    async with House(ticking=False) as house:
        house.up.respond = echo
        caller = await house.caller()
        for whole in (plain, in_chunks):
            for at in range(1, len(whole)):
                await caller.say_split(whole, at)
                assert (await caller.hears()).body == b"POST /p?q=1 " + body
        heard = house.up.heard
        assert {one.header(b"x-one") for one in heard} == {b"1"}
        assert len(heard) == len(plain) + len(in_chunks) - 2


async def test_a_request_may_come_byte_by_byte():
    async with House(ticking=False) as house:
        house.up.respond = echo
        caller = await house.caller()
        for byte in request("POST", headers=[(b"transfer-encoding", b"chunked")]) + chunked(b"abc", b"de"):
            caller.say(bytes([byte]))
            await turns(2)
        assert (await caller.hears()).body == b"POST /x abcde"


async def test_a_large_body_in_the_packet_that_ends_the_head_is_no_large_head():
    async with House(limits=Limits(head_bytes_max=1000)) as house:
        whole = request("POST", body=b"b" * 60_000)
        caller = await house.caller()
        await caller.say_split(whole, 10)
        assert (await caller.hears()).status == 200
        assert house.up.heard[0].body == b"b" * 60_000


async def test_a_streamed_answer_comes_chunk_by_chunk():
    async with House() as house:
        parts = [b"one", b"two" * 1000, b"\x00three"]
        house.up.then(pieces(parts))
        got = await house.ask()
        assert got.header(b"transfer-encoding") == b"chunked"
        assert got.header(b"content-length") is None
        assert (got.body, got.whole) == (b"".join(parts), True)


# --- HEAD, 204, 304 ------------------------------------------------------------------------------------------------


async def test_a_head_gets_the_length_the_upstream_told_and_no_body():
    async with House() as house:
        house.up.always(answer(200, [(b"etag", b"x")], b"12345"))
        caller = await house.caller()
        for _ in range(3):
            caller.say(request("HEAD"))
            got = await caller.hears("HEAD")
            assert (got.status, got.header(b"content-length"), got.header(b"etag")) == (200, b"5", b"x")
        caller.say(request())
        assert (await caller.hears()).body == b"12345"
        assert house.up.connections_ever == 1


async def test_a_head_of_a_chunked_answer_claims_no_length():
    async with House() as house:

        async def chunked_head(wire: object, heard: Heard) -> None:
            await wire.head(200, [(b"transfer-encoding", b"chunked")])  # type: ignore[attr-defined]

        house.up.then(chunked_head)
        caller = await house.caller()
        caller.say(request("HEAD"), request())
        got = await caller.hears("HEAD")
        assert got.header(b"content-length") is None
        assert (await caller.hears()).body == b"ok"


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_claims_no_length(status: int):
    async with House() as house:
        house.up.then(answer(status, [(b"etag", b"x")]))
        caller = await house.caller()
        caller.say(request(), request())
        got = await caller.hears()
        assert (got.status, got.header(b"etag")) == (status, b"x")
        assert got.header(b"content-length") is None
        assert got.header(b"transfer-encoding") is None
        assert (await caller.hears()).body == b"ok"


async def test_a_304_keeps_the_length_it_was_given():
    async with House() as house:

        async def not_modified(wire: object, heard: Heard) -> None:
            await wire.head(304, [(b"content-length", b"77")])  # type: ignore[attr-defined]

        house.up.then(not_modified)
        caller = await house.caller()
        caller.say(request(), request())
        assert (await caller.hears()).header(b"content-length") == b"77"
        assert (await caller.hears()).body == b"ok"


async def test_a_service_that_gives_a_body_to_head_or_204_does_not_break_the_connection():
    def made(call: Call) -> Answer:
        if call.request.path == b"/stream":
            return Answer(200, [], stream=HeldStream([b"a", b"b"]))
        return Answer(204 if call.request.path == b"/204" else 200, [], b"body")

    async with House(service=answering(made)) as house:
        caller = await house.caller()
        caller.say(request("HEAD"), request(target="/204"), request("HEAD", "/stream"), request())
        assert (await caller.hears("HEAD")).header(b"content-length") == b"4"
        assert (await caller.hears()).status == 204
        assert (await caller.hears("HEAD")).status == 200
        assert (await caller.hears()).body == b"body"


# --- HTTP/1.0 ------------------------------------------------------------------------------------------------------


async def test_an_http_1_0_caller_without_keep_alive_is_closed_after_the_answer():
    async with House() as house:
        caller = await house.caller()
        caller.say(request(version="1.0", host=None))
        got = await caller.hears()
        assert (got.body, got.header(b"connection")) == (b"ok", b"close")
        await caller.ends()


async def test_an_http_1_0_caller_with_keep_alive_keeps_its_connection():
    async with House() as house:
        caller = await house.caller()
        for _ in range(3):
            caller.say(request(version="1.0", headers=[(b"Connection", b"Keep-Alive")]))
            got = await caller.hears()
            assert (got.body, got.header(b"connection")) == (b"ok", b"keep-alive")


async def test_a_stream_to_an_http_1_0_caller_ends_with_the_connection():
    async with House() as house:
        house.up.then(pieces([b"one", b"two"]))
        caller = await house.caller()
        caller.say(request(version="1.0", headers=[(b"connection", b"keep-alive")]))
        got = await caller.hears()
        assert (got.body, got.header(b"connection")) == (b"onetwo", b"close")
        assert got.header(b"transfer-encoding") is None


async def test_a_caller_that_says_close_is_closed_after_the_answer():
    async with House() as house:
        caller = await house.caller()
        caller.say(request(headers=[(b"connection", b"close")]))
        got = await caller.hears()
        assert (got.body, got.header(b"connection")) == (b"ok", b"close")
        await caller.ends()
        assert house.up.heard[0].header(b"connection") is None


# --- expectations and upgrades -------------------------------------------------------------------------------------


async def test_a_caller_that_expects_100_is_told_once_to_go_on():
    async with House() as house:
        caller = await house.caller()
        caller.say(request("POST", headers=[(b"Expect", b"100-Continue"), (b"content-length", b"4")]))
        assert (await caller.hears()).status == 100
        caller.say(b"ab")
        await turns()
        caller.say(b"cd")
        assert (await caller.hears()).status == 200
        [heard] = house.up.heard
        assert heard.body == b"abcd"
        assert heard.header(b"expect") is None


async def test_an_expectation_behind_another_request_is_met_when_its_turn_comes():
    async with House() as house:
        caller = await house.caller()
        caller.say(request(target="/first"), request("POST", "/second", [(b"expect", b"100-continue")], b"xy")[:-2])
        assert (await caller.hears()).body == b"ok"
        assert (await caller.hears()).status == 100
        caller.say(b"xy")
        assert (await caller.hears()).status == 200
        assert [heard.body for heard in house.up.heard] == [b"", b"xy"]


async def test_an_http_1_0_caller_is_told_nothing_before_its_answer():
    async with House() as house:
        got = await house.ask(request("POST", headers=[(b"expect", b"100-continue")], body=b"xy", version="1.0"))
        assert got.status == 200


@pytest.mark.parametrize("body", [None, b"three"])
async def test_an_offer_of_h2c_is_declined_and_its_request_answered(body: bytes | None):
    offer = [
        (b"Connection", b"Upgrade, HTTP2-Settings"),
        (b"Upgrade", b"h2c"),
        (b"HTTP2-Settings", b"AAMAAABkAARAAAAAAAIAAAAA"),
    ]
    async with House(ticking=False) as house:
        house.up.respond = echo
        whole = request("POST", "/offer?q", offer, body) + request(target="/next")
        caller = await house.caller()
        for at in (*range(1, len(whole), 3), len(whole)):
            await caller.say_split(whole, at)
            assert (await caller.hears()).body == b"POST /offer?q " + (body or b"")
            assert (await caller.hears()).body == b"GET /next "
        assert not any(b"h2c" in heard.raw.lower() or b"http2" in heard.raw.lower() for heard in house.up.heard)


async def test_options_star_is_for_no_route():
    async with House() as house:
        got = await house.ask(request("OPTIONS", "*"))
        assert (got.status, got.code) == (404, "no_route")
        assert house.up.heard == []
