"""A house to knock at: a door on a real socket, real pools and tiers, and upstreams that play what they are told.

    async with House() as house:
        caller = await house.caller()
        caller.say(b"GET /x HTTP/1.1\r\nhost: here\r\n\r\n")
        got = await caller.hears()

Everything runs on the test's own loop, so that on a virtual clock nothing waits for real.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from tests.kit.fake_upstream import FakeUpstream, Headers
from understudy.policies.service import Answer, Call, Service
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.http.door import Listener
from understudy.proxy.http.exchange import Exchange
from understudy.proxy.http.forwarding import Marks
from understudy.proxy.http.pool import Pool
from understudy.proxy.http.stepping import Steps
from understudy.proxy.routes import Table
from understudy.proxy.settings.settings import Endpoint, Limits, LocalTier, Match, Route, Tier, UpstreamTier
from understudy.proxy.stack import World, assemble
from understudy.proxy.tiers.upstream import NO_MARKS, make_pool, upstream_tier

TICK_S = 1.0


def request(
    method: str = "GET",
    target: str = "/x",
    headers: Headers = (),
    body: bytes | None = None,
    *,
    version: str = "1.1",
    host: str | None = "here",
) -> bytes:
    """A right request; a body brings its content-length."""
    lines = [f"{method} {target} HTTP/{version}".encode()]
    if host is not None:
        lines.append(b"host: " + host.encode())
    lines += [name + b": " + value for name, value in headers]
    if body is not None:
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")


def chunked(*pieces: bytes, trailers: bytes = b"") -> bytes:
    """A body in chunked framing."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailers + b"\r\n"


@dataclass
class Got:
    """One answer as a caller heard it. `whole` is False when the connection ended before the body did."""

    status: int
    headers: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])
    body: bytes = b""
    whole: bool = True

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    def every(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error's code, as our dialects write it."""
        return self.json()["error"]["code"]


class Caller:
    """One connection to a door, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def say(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    async def say_split(self, data: bytes, at: int) -> None:
        """Say it in two packets."""
        self.say(data[:at])
        await turns(3)
        self.say(data[at:])

    async def hears(self, method: str = "GET") -> Got:
        """The next answer, whole or as far as it came; interim ones too."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        start, *lines = head[:-4].split(b"\r\n")
        assert start.startswith(b"HTTP/1.1 "), start
        got = Got(int(start[9:12]))
        for line in lines:
            name, colon, value = line.partition(b": ")
            assert colon, line
            got.headers.append((name, value))
        if method == "HEAD" or got.status in (204, 304) or got.status < 200:
            return got
        body = bytearray()
        try:
            await self._hear_body(got, body)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            body += getattr(error, "partial", b"")
            got.whole = False
        got.body = bytes(body)
        return got

    async def _hear_body(self, got: Got, body: bytearray) -> None:
        length = got.every(b"content-length")
        coding = got.every(b"transfer-encoding")
        assert len(length) + len(coding) <= 1, got.headers
        if coding:
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += await self.reader.readexactly(size)
                assert await self.reader.readexactly(2) == b"\r\n"
            assert await self.reader.readexactly(2) == b"\r\n"
        elif length:
            body += await self.reader.readexactly(int(length[0]))
        else:
            assert got.header(b"connection") == b"close"
            body += await self.reader.read()

    async def rest(self) -> bytes:
        """Everything until the connection ends; a reset is an end."""
        heard = bytearray()
        with suppress(ConnectionError):
            while piece := await self.reader.read(65536):
                heard += piece
        return bytes(heard)

    async def ends(self) -> None:
        """The connection is closed, and nothing more came."""
        assert await self.rest() == b""

    def hang_up(self) -> None:
        """Go away without a word."""
        self.writer.transport.abort()

    async def leave(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


@dataclass
class Notes:
    """What an access log would be told."""

    taken: list[tuple[int, str, Call | None]]
    enabled: bool = True

    def __call__(self, exchange: Exchange, end: str) -> None:
        self.taken.append((exchange.answer.status if exchange.answer else 0, end, exchange.call))


class House:
    """A route (or several) behind a door. `up` is the first upstream, `ups` are all of them, one for each tier, or one
    for each of the `endpoints` of a single tier.

    `service` stands in for the whole chain where the door alone is looked at.
    """

    def __init__(
        self,
        *,
        dialect: str = "plain",
        tiers: int = 1,
        endpoints: int = 0,
        dice: Callable[[], float] = lambda: 0.0,
        limits: Limits | None = None,
        match: Match | None = None,
        base: str = "",
        service: Service | None = None,
        ticking: bool = True,
        tier: dict[str, Any] | None = None,
        marks: Marks = NO_MARKS,
        pseudonym: bytes = b"",
        **route: Any,
    ) -> None:
        self.ups = [FakeUpstream() for _ in range(endpoints or tiers)]
        self.up = self.ups[0]
        self.limits = limits or Limits()
        self.logged: list[tuple[int, str, Call | None]] = []
        self.pools: list[Pool] = []
        self.loop = asyncio.get_running_loop()
        self.steps = Steps(self.loop)
        self._dialect = dialect
        self._is_one_tier = endpoints > 0
        self._dice = dice
        self._match = match or Match(prefix="/")
        self._base = base
        self._service = service
        self._tier = tier or {}
        self._marks = marks
        self._pseudonym = pseudonym
        self._route = route
        self._ticking = ticking
        self._callers: list[Caller] = []
        self._ticker: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        for up in self.ups:
            await up.__aenter__()
        made = [
            UpstreamTier(name=f"up{at or ''}", url=up.url + self._base, **self._tier) for at, up in enumerate(self.ups)
        ]
        if self._is_one_tier:
            endpoints = [Endpoint(name=f"up{at or ''}", url=up.url + self._base) for at, up in enumerate(self.ups)]
            made = [UpstreamTier(name="many", endpoints=endpoints, **self._tier)]
        route = Route(name="here", match=self._match, dialect=self._dialect, tiers=list(made), **self._route)
        world = World(clock=self.loop.time, sleep=asyncio.sleep, dice=self._dice)
        self.parts = assemble(route, DIALECTS[self._dialect], world, self._make_tier)
        if self._service is not None:
            self.parts.service = self._service
        self.listener = Listener(
            self.loop,
            0,
            Table([(match, self.parts) for match in route.claims]).find,
            DIALECTS["plain"],
            self.limits,
            logged=Notes(self.logged),
            route_names=lambda: ["here"],
            pseudonym=self._pseudonym,
            steps=self.steps,
        )
        self._server = await self.loop.create_server(self.listener.door, "127.0.0.1", 0, backlog=1024)
        self.port = self.listener.port = self._server.sockets[0].getsockname()[1]
        if self._ticking:
            self._tick()
        return self

    def _make_tier(self, _route: Route, tier: Tier, _endpoint: str) -> Service:
        assert not isinstance(tier, LocalTier)
        pool = make_pool(tier, self.loop, self.loop.time, steps=self.steps)
        self.pools.append(pool)
        return upstream_tier(tier, DIALECTS[self._dialect], pool, self.loop.time, self._marks)

    def _tick(self) -> None:
        self.sweep()
        self._ticker = self.loop.call_later(TICK_S, self._tick)

    def sweep(self) -> None:
        """What the sidecar does once a second."""
        self.listener.sweep(self.loop.time())
        for pool in self.pools:
            pool.sweep(self.loop.time())

    async def __aexit__(self, *_: object) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        self._server.close()
        for caller in self._callers:
            caller.hang_up()
        for door in list(self.listener.doors):
            door.cut_off()
        await turns(5)
        for pool in self.pools:
            pool.close()
        await turns(5)
        for up in self.ups:
            await up.__aexit__()
        await turns(5)
        assert not self.listener.doors
        assert [pool.size for pool in self.pools] == [0] * len(self.pools)
        assert self.in_hand == 0

    @property
    def pool(self) -> Pool:
        return self.pools[0]

    @property
    def in_hand(self) -> int:
        """Calls in flight and places taken."""
        places = sum(each.bulkhead.in_flight for tier in self.parts.tiers.values() for each in tier.endpoints.values())
        return self.parts.tally.in_flight + places

    @property
    def failures(self) -> int:
        """What the breakers have against the upstreams."""
        endpoints = [each for tier in self.parts.tiers.values() for each in tier.endpoints.values()]
        return sum(each.breaker.in_a_row for each in endpoints if each.breaker)

    async def caller(self) -> Caller:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**16)
        caller = Caller(reader, writer)
        self._callers.append(caller)
        return caller

    async def ask(self, *data: bytes, method: str = "GET") -> Got:
        """One request on a connection of its own."""
        caller = await self.caller()
        caller.say(*(data or (request(),)))
        got = await caller.hears(method)
        await caller.leave()
        return got


async def turns(count: int = 10) -> None:
    """Let the loop go round: what is ready happens, the clock stands."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(true: Callable[[], object], within_s: float = 30.0, *, step_s: float = 0.01) -> None:
    """Wait for it to become true."""
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(step_s)


def answering(make: Callable[[Call], Answer]) -> Service:
    """A service that needs no upstream."""

    async def answered(call: Call) -> Answer:
        return make(call)

    return answered


def content(*words: str) -> list[dict[str, Any]]:
    """Chat chunks: a role, these words, and the reason for the end."""
    deltas: Sequence[tuple[dict[str, Any], str | None]] = [
        ({"role": "assistant"}, None),
        *(({"content": word}, None) for word in words),
        ({}, "stop"),
    ]
    return [{"choices": [{"index": 0, "delta": delta, "finish_reason": end}]} for delta, end in deltas]


CHAT = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
CHAT_STREAM = b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'
JSON = [(b"content-type", b"application/json")]


def chat(body: bytes = CHAT) -> bytes:
    """A request for a completion."""
    return request("POST", "/v1/chat/completions", JSON, body)
