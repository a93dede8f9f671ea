"""WebSockets go through a plain route byte for byte, as long as both sides want them to, and no longer."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from tests.http.house import CHAT, House, request, until
from tests.kit.acts import answer
from understudy.proxy.settings.settings import Limits

OFFER = [
    (b"Connection", b"keep-alive, Upgrade"),
    (b"Upgrade", b"WebSocket"),
    (b"Sec-WebSocket-Version", b"13"),
    (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
]
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Own: 1\r\n\r\n"

Handler = Callable[[web.WebSocketResponse], Awaitable[None]]


async def echoing(socket: web.WebSocketResponse) -> None:
    async for message in socket:
        if message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
        elif message.data == "bye":
            await socket.close(code=4321, message=b"as you wish")
        else:
            await socket.send_str(message.data)


class RealServer:
    """An aiohttp server with a WebSocket at every path but /no."""

    def __init__(self, handler: Handler = echoing, **options: Any) -> None:
        self._handler = handler
        self._options = options
        self.url = ""
        self.requests: list[web.BaseRequest] = []

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = "http://{}:{}".format(*self._runner.addresses[0][:2])
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        if request.path == "/no":
            return web.json_response({"error": "not here"}, status=426)
        socket = web.WebSocketResponse(max_msg_size=0, **self._options)
        await socket.prepare(request)  # pyright: ignore[reportArgumentType]
        await self._handler(socket)
        return socket


class RawServer:
    """An upstream that says what it is told, byte by byte."""

    def __init__(self, script: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self._script = script
        self._serving: set[asyncio.Task[Any]] = set()
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        # they end when they hear that nobody is there any more, and that takes as long as the kernel likes
        if self._serving:
            await asyncio.wait(self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.head = await reader.readuntil(b"\r\n\r\n")
        try:
            await self._script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def house_before(upstream: RealServer | RawServer, **options: Any):
    house = House(**options)
    house.ups = [upstream]  # type: ignore[list-item]
    async with house:
        yield house


def url_of(house: House, path: str = "/realtime") -> str:
    return f"http://127.0.0.1:{house.port}{path}"


# --- with a real client and a real server --------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["plain", "openai-chat"])
@pytest.mark.real_clock(within_s=60.0)
async def test_a_websocket_goes_through_with_subprotocol_pings_big_frames_and_its_close_code(dialect: str):
    server = RealServer(protocols=("realtime",))
    async with house_before(server, dialect=dialect) as house, aiohttp.ClientSession() as session:
        connect = session.ws_connect(url_of(house), protocols=("realtime", "x"), max_msg_size=0, compress=15)
        async with connect as socket:
            assert socket.protocol == "realtime"
            assert house.parts.tally.in_flight == 1
            big = os.urandom(5_000_000)
            await socket.send_bytes(big)
            assert hashlib.sha256(await socket.receive_bytes()).digest() == hashlib.sha256(big).digest()
            for word in ("one", "two", "three"):
                await socket.send_str(word)
                assert await socket.receive_str() == word
            await socket.ping(b"there?")
            await socket.send_str("bye")
            end = await socket.receive()
            assert (end.type, end.data, end.extra) == (WSMsgType.CLOSE, 4321, "as you wish")
        await until(lambda: not house.listener.doors)
        assert [(status, end) for status, end, _ in house.logged] == [(101, "done")]
        assert house.in_hand == house.pool.size == house.failures == 0
        assert server.requests[0].headers["Upgrade"] == "websocket"


@pytest.mark.real_clock(within_s=60.0)
async def test_an_upstream_that_declines_is_heard_and_the_connection_goes_on_in_http():
    async with house_before(RealServer()) as house:
        caller = await house.caller()
        for _ in range(2):
            caller.say(request("GET", "/no", OFFER))
            got = await caller.hears()
            assert (got.status, got.json()) == (426, {"error": "not here"})
        assert house.pool.opened == 1


@pytest.mark.real_clock(within_s=60.0)
async def test_a_caller_who_leaves_is_missed_by_the_upstream():
    heard = asyncio.Event()
    gone = asyncio.Event()

    async def waiting(socket: web.WebSocketResponse) -> None:
        heard.set()
        async for _ in socket:
            pass
        gone.set()

    async with house_before(RealServer(waiting)) as house:
        caller = await house.caller()
        caller.say(request("GET", "/x", OFFER))
        assert (await caller.hears()).status == 101
        await heard.wait()
        caller.hang_up()
        await gone.wait()
        await until(lambda: house.pool.size == 0)
        assert house.logged[0][0] == 101


@pytest.mark.real_clock(within_s=60.0)
async def test_what_a_slow_caller_does_not_take_is_not_kept_by_us():
    sent = 0

    async def pouring(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(SWITCHED)
        while True:
            writer.write(bytes(64 * 1024))
            await writer.drain()
            sent += 64 * 1024

    limits = Limits(write_buffer_bytes_max=64 * 1024)
    async with house_before(RawServer(pouring), limits=limits) as house:
        caller = await house.caller()
        caller.say(request("GET", "/x", OFFER))
        assert (await caller.hears()).status == 101
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.2)
        assert sent < 20_000_000
        assert await caller.reader.readexactly(before + 5_000_000) == bytes(before + 5_000_000)
        caller.hang_up()
        await until(lambda: house.pool.size == 0)


# --- byte by byte --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("either_loop")
async def test_bytes_that_come_with_the_101_and_bytes_sent_too_early_are_not_lost():
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SWITCHED + b"first")
        assert await reader.readexactly(11) == b"early later"
        writer.write(b" last")

    server = RawServer(script)
    async with house_before(server) as house:
        caller = await house.caller()
        caller.say(request("GET", "/x", OFFER), b"early")
        got = await caller.hears()
        assert got.status == 101
        assert (got.header(b"upgrade"), got.header(b"connection")) == (b"websocket", b"upgrade")
        assert (got.header(b"x-own"), got.header(b"x-understudy-source")) == (b"1", b"up")
        caller.say(b" later")
        assert await caller.rest() == b"first last"
        assert house.logged[0][:2] == (101, "done")
        assert b"\r\nconnection: upgrade\r\nupgrade: websocket\r\n" in server.head


@pytest.mark.usefixtures("either_loop")
async def test_what_stands_behind_a_declined_offer_is_the_next_request():
    async with House() as house:
        house.up.then(answer(200, body=b"no"), answer(200, body=b"next"))
        caller = await house.caller()
        caller.say(request("GET", "/x", OFFER), request("GET", "/y"))
        assert [(await caller.hears()).body for _ in range(2)] == [b"no", b"next"]


@pytest.mark.usefixtures("either_loop")
@pytest.mark.parametrize(
    ("method", "headers", "body"),
    [
        ("GET", [(b"Connection", b"Upgrade"), (b"Upgrade", b"h2c")], None),
        ("GET", [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket, h2c")], None),
        ("GET", [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"), (b"Upgrade", b"h2c")], None),
        ("GET", [(b"Upgrade", b"websocket")], None),
        ("POST", OFFER, None),
        ("GET", OFFER, b"a body"),
    ],
)
async def test_no_other_offer_reaches_an_upstream(method: str, headers: list[tuple[bytes, bytes]], body: bytes | None):
    async with House() as house:
        assert (await house.ask(request(method, "/x", headers, body))).status == 200
        assert b"upgrade" not in house.up.heard[0].raw.lower()


@pytest.mark.usefixtures("either_loop")
async def test_a_guarded_call_is_never_offered_as_anything_else():
    async with House(dialect="openai-chat") as house:
        await house.ask(request("POST", "/v1/chat/completions", OFFER, CHAT))
        assert b"upgrade" not in house.up.heard[0].raw.lower()


@pytest.mark.usefixtures("either_loop")
@pytest.mark.parametrize("raw", [SWITCHED, SWITCHED.replace(b"websocket", b"h2c")])
async def test_an_upstream_that_switches_to_what_nobody_offered_has_failed(raw: bytes):
    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)

    async with house_before(RawServer(script)) as house:
        got = await house.ask(request("GET", "/x", OFFER if b"h2c" in raw else []))
        assert (got.status, got.code) == (502, "upgrade")


@pytest.mark.usefixtures("either_loop")
async def test_an_upstream_that_is_cut_off_closes_the_caller_and_is_logged_so():
    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SWITCHED + b"some")
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.transport.abort()

    async with house_before(RawServer(script)) as house:
        caller = await house.caller()
        caller.say(request("GET", "/x", OFFER))
        assert (await caller.hears()).status == 101
        assert await caller.rest() == b"some"
        assert house.logged[0][:2] == (101, "done")


async def waiting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(SWITCHED)
    while await reader.read(1000):
        pass


async def test_a_tunnel_silent_both_ways_for_too_long_is_closed():
    async with house_before(RawServer(waiting), limits=Limits(tunnel_idle_s=30.0, idle_s=5.0)) as house:
        caller = await house.caller()
        caller.say(request("GET", "/x", OFFER))
        await caller.hears()
        began = house.loop.time()
        await asyncio.sleep(20.0)
        caller.say(b"still here")
        await caller.ends()
        assert 49.0 < house.loop.time() - began < 52.0
        assert house.logged[0][:2] == (101, "cut")


async def test_a_tunnel_outlives_the_calls_deadline_and_goes_on_draining_until_it_is_cut():
    async with house_before(RawServer(waiting)) as house:
        caller = await house.caller()
        caller.say(request("GET", "/x", OFFER))
        await caller.hears()
        await asyncio.sleep(100.0)
        house.listener.drain()
        await asyncio.sleep(10.0)
        assert house.parts.tally.in_flight == len(house.listener.doors) == 1
        house.listener.cut()
        await caller.ends()
        await until(lambda: house.pool.size == 0)
        assert house.logged[0][:2] == (101, "cut")
        assert house.in_hand == 0


async def test_tunnels_count_among_the_connections_to_an_upstream():
    async with house_before(RawServer(waiting), tier={"connections_max": 1}) as house:
        caller = await house.caller()
        caller.say(request("GET", "/x", OFFER))
        assert (await caller.hears()).status == 101
        assert house.pool.size == 1
        assert (await house.ask(request("GET", "/x", OFFER))).code in ("connections", "exhausted")
