"""What passes through arrives as it was sent: every byte of a body, and every header's case and place."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import random
import socket

import pytest

from tests.http.house import House, chunked, request
from tests.kit.acts import answer, raw
from tests.kit.fake_upstream import Heard
from understudy.policies.service import Call
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.http.forwarding import Marks
from understudy.proxy.settings.settings import UpstreamTier
from understudy.proxy.tiers.upstream import make_pool, upstream_tier

pytestmark = pytest.mark.usefixtures("either_loop")

NOISE = random.Random(7).randbytes(300_000)
MULTIPART = (
    b'--edge\r\nContent-Disposition: form-data; name="a"; filename="\xc3\xa9.bin"\r\n\r\n' + NOISE + b"\r\n--edge--\r\n"
)
BODIES = {
    "every byte": (bytes(range(256)) * 8, []),
    "gzip": (gzip.compress(b"text " * 1000, mtime=0), [(b"Content-Encoding", b"gzip")]),
    "not really brotli": (NOISE, [(b"content-encoding", b"br")]),
    "multipart": (MULTIPART, [(b"Content-Type", b"multipart/form-data; boundary=edge")]),
    "looks like a request": (b"GET /evil HTTP/1.1\r\nhost: x\r\n\r\n" * 50, []),
    "looks like chunks": (b"5\r\nhello\r\n0\r\n\r\n", []),
    "one byte": (b"\0", []),
}


def digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


def sent_on(heard: Heard) -> list[tuple[bytes, bytes]]:
    lines = heard.raw.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    return [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]


@pytest.mark.parametrize("dialect", ["plain", "openai-chat"])
@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize("what", BODIES)
async def test_a_body_arrives_byte_for_byte_in_both_directions(what: str, in_chunks: bool, dialect: str):
    body, headers = BODIES[what]
    async with House(dialect=dialect) as house:
        framing = "chunked" if in_chunks else "length"
        house.up.then(answer(200, headers, body, framing=framing))
        if in_chunks:
            coded = [*headers, (b"Transfer-Encoding", b"chunked")]
            got = await house.ask(request("PUT", "/x", coded) + chunked(body[:7], body[7:] or b"."))
            body_sent = body if body[7:] else body + b"."
        else:
            got = await house.ask(request("PUT", "/x", headers, body))
            body_sent = body
        [heard] = house.up.heard
        assert digest(heard.body) == digest(body_sent)
        assert digest(got.body) == digest(body)
        for name, value in headers:
            assert (name, value) in sent_on(heard)
            assert (name, value) in got.headers


async def test_headers_keep_their_case_their_order_and_their_repetitions_in_both_directions():
    odd = [(b"X-One", b"1"), (b"x-TWO", b"2"), (b"X-One", b"3"), (b"x-one", b"4"), (b"ETag", b'W/"x"')]
    cookies = [(b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"Set-Cookie", b"c=3")]
    async with House(marks=Marks(b"understudy-x", trace="make")) as house:
        house.up.then(answer(200, [*odd, *cookies], b"x"))
        got = await house.ask(request(headers=odd))
        [heard] = house.up.heard
        assert [header for header in sent_on(heard) if header[0].lower() in (b"x-one", b"x-two", b"etag")] == odd
        kept = (b"x-one", b"x-two", b"etag", b"set-cookie")
        assert [header for header in got.headers if header[0].lower() in kept] == [*odd, *cookies]


LATE = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(
    b"abc", trailers=b"X-Sum: 1\r\nContent-Type: text/x\r\nx-understudy-tier: primary\r\nx-two: b\r\n"
)


@pytest.mark.parametrize(
    ("said", "told", "end"),
    [
        ([(b"TE", b"trailers"), (b"Connection", b"TE")], [b"trailers"], b"0\r\nX-Sum: 1\r\nx-two: b\r\n\r\n"),
        ([(b"te", b"gzip, Trailers")], [b"trailers"], b"0\r\nX-Sum: 1\r\nx-two: b\r\n\r\n"),
        ([(b"TE", b"gzip")], [], b"0\r\n\r\n"),
        ([], [], b"0\r\n\r\n"),
    ],
)
async def test_what_comes_behind_an_answer_goes_on_to_who_says_that_it_reads_it(
    said: list[tuple[bytes, bytes]], told: list[bytes], end: bytes
):
    async with House() as house:
        house.up.then(raw(LATE), raw(LATE))
        caller = await house.caller()
        for _ in range(2):
            caller.say(request("GET", "/x", said))
            head = await caller.reader.readuntil(b"\r\n\r\n")
            assert b"\r\ntransfer-encoding: chunked\r\n" in head
            assert await caller.reader.readexactly(8 + len(end)) == b"3\r\nabc\r\n" + end
        assert [[value for name, value in sent_on(heard) if name == b"te"] for heard in house.up.heard] == [told, told]


async def test_what_comes_behind_a_request_ends_with_us():
    async with House() as house:
        house.up.then(answer(200, body=b"body", framing="chunked"))
        # a body is sent on whole, with its length: there is nothing behind it
        coded = [(b"Transfer-Encoding", b"chunked"), (b"Trailer", b"x-late")]
        got = await house.ask(request("POST", "/x", coded) + chunked(b"abc", trailers=b"x-late: 1\r\n"))
        [heard] = house.up.heard
        assert heard.body == b"abc"
        assert b"x-late" not in heard.raw.lower()
        assert got.body == b"body"


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


if has_ipv6():

    async def test_callers_come_in_by_ipv6_and_upstreams_are_reached_by_it():
        async def said(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(head), head))
            await writer.drain()
            writer.close()

        loop = asyncio.get_running_loop()
        upstream = await asyncio.start_server(said, "::1", 0)
        port = upstream.sockets[0].getsockname()[1]
        pool = make_pool(UpstreamTier(name="up", url=f"http://[::1]:{port}"), loop, loop.time)
        tier = UpstreamTier(name="up", url=f"http://[::1]:{port}")
        ask = upstream_tier(tier, DIALECTS["plain"], pool, loop.time, Marks(forwarded="append"))

        async def service(call: Call):
            return await ask(call)

        async with House(service=service) as house:
            server = await loop.create_server(house.listener.door, "::1", 0)
            reader, writer = await asyncio.open_connection("::1", server.sockets[0].getsockname()[1])
            writer.write(request("GET", "/six"))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"GET /six HTTP/1.1\r\nhost: [::1]:%d\r\n" % port)
            assert b"\r\nx-forwarded-for: ::1\r\n" in head
            writer.close()
            server.close()
        pool.close()
        upstream.close()
