"""A door and its upstream connections without sockets: bytes are handed over by hand, thousands of dialogues a second.

said --> Pipe --> Door --> tier --> Connection --> Pipe --> Echo (records every byte, answers what it can read)
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

from tests.attacks import oracle
from understudy.policies.service import Service
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.http.door import Listener
from understudy.proxy.http.stepping import Steps
from understudy.proxy.http.upstream import Connection
from understudy.proxy.routes import Table
from understudy.proxy.settings.settings import Limits, LocalTier, Match, Route, Tier, UpstreamTier
from understudy.proxy.stack import World, assemble
from understudy.proxy.tiers.upstream import upstream_tier

UPSTREAM = b"upstream.test:8000"
QUIET_TURNS = 6
TURNS_MAX = 5000
CHAT_ANSWER = b'{"id":"1","object":"chat.completion","choices":[{"index":0,"finish_reason":"stop",' + (
    b'"message":{"role":"assistant","content":"hi"}}]}'
)
_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [^\r\n]*\r\n")


class Pipe(asyncio.Transport):
    """One side of a connection. What is written is kept; what is delivered waits while reading is paused."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rig: Rig) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False
        self.half_closed = False
        self.protocol: asyncio.Protocol | None = None
        self._loop = loop
        self._rig = rig
        self._paused = False
        self._waiting: list[bytes] = []

    def plug(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol
        protocol.connection_made(self)

    def deliver(self, data: bytes) -> None:
        """Bytes have come from the other side."""
        self._rig.events += 1
        if self.closed or self.protocol is None:
            return
        self._waiting.append(data)
        self._flush()

    def hang_up(self) -> None:
        """The other side has sent its last byte."""
        if not self.closed and self.protocol is not None:
            self.protocol.eof_received()
            self.close()

    # what protocols use

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._rig.events += 1
        if not self.closed and not self.half_closed:
            self.written += data
            self.sent()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def sent(self) -> None:
        """Something was written."""

    def close(self) -> None:
        if not self.closed:
            self._rig.events += 1
            self.closed = True
            self._loop.call_soon(self._lost)

    def abort(self) -> None:
        self.close()

    def _lost(self) -> None:
        if self.protocol is not None:
            self.protocol.connection_lost(None)

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        while self._waiting and not self._paused and not self.closed and self.protocol is not None:
            self._rig.events += 1
            self.protocol.data_received(self._waiting.pop(0))

    def is_reading(self) -> bool:
        return not self._paused

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.half_closed = True
        self._rig.events += 1

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default


class Echo(Pipe):
    """The upstream's end of a connection: what the proxy writes is kept byte for byte, and read by the oracle."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rig: Rig) -> None:
        super().__init__(loop, rig)
        self.read_to = 0

    def sent(self) -> None:
        raw = bytes(self.written)
        while said := oracle.one(raw, self.read_to, oracle.Bounds(head_bytes_max=128 * 1024, headers_max=160)):
            self.read_to = said.end
            body = b"" if said.method == b"HEAD" else CHAT_ANSWER
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            self._loop.call_soon(self.deliver, head % len(CHAT_ANSWER) + body)


class Lines:
    """The connections to the upstream: what a tier needs of a pool, in memory."""

    def __init__(self, rig: Rig) -> None:
        self.loop = rig.loop
        self.clock = rig.loop.time
        self.steps = rig.steps
        self._rig = rig
        self._idle: list[Connection] = []
        self.closed = False

    def take(self) -> Connection | None:
        return self._idle.pop() if self._idle else None

    async def connect(self, wait_s: float) -> Connection:
        connection = Connection(cast(Any, self))
        echo = Echo(self.loop, self._rig)
        echo.plug(connection)
        self._rig.echoes.append(echo)
        return connection

    def give_back(self, connection: Connection) -> None:
        self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)


@dataclass
class Outcome:
    """What became of one dialogue: the caller's side, and what the upstream got, by connection."""

    heard: bytes
    closed: bool
    upstream: list[bytes] = field(default_factory=list[bytes])

    @property
    def statuses(self) -> list[int]:
        """Every answer's status, interim ones left out."""
        return [int(status) for status in _STATUS.findall(self.heard) if int(status) >= 200]

    @property
    def received(self) -> bytes:
        return b"".join(self.upstream)


class Rig:
    """A route of this dialect behind doors in memory. Heads, breakers and budgets are shared by all its dialogues."""

    def __init__(self, dialect: str = "plain", limits: Limits | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.events = 0
        self.echoes: list[Echo] = []
        self.steps = Steps(self.loop)
        self._dialect = DIALECTS[dialect]
        route = Route(
            name="here",
            match=Match(prefix="/"),
            dialect=dialect,
            tiers=[UpstreamTier(name="up", url="http://" + UPSTREAM.decode())],
        )
        world = World(clock=self.loop.time, sleep=asyncio.sleep, dice=lambda: 0.0)
        self.parts = assemble(route, self._dialect, world, self._make_tier)
        table = Table([(match, self.parts) for match in route.claims])
        self.listener = Listener(self.loop, 80, table.find, DIALECTS["plain"], limits or Limits(), steps=self.steps)

    def _make_tier(self, _route: Route, tier: Tier, _endpoint: str) -> Service:
        assert not isinstance(tier, LocalTier)
        return upstream_tier(tier, self._dialect, cast(Any, Lines(self)), self.loop.time)

    async def dialogue(self, packets: Iterable[bytes], *, hang_up: bool = False) -> Outcome:
        """Say these packets at a new door and wait until nothing moves any more."""
        before = {id(echo): len(echo.written) for echo in self.echoes}
        pipe = Pipe(self.loop, self)
        pipe.plug(self.listener.door())
        for packet in packets:
            pipe.deliver(packet)
            await asyncio.sleep(0)
        await self.quiet()
        outcome = Outcome(bytes(pipe.written), pipe.closed or pipe.half_closed)
        pipe.hang_up()
        await self.quiet()
        outcome.upstream = [
            bytes(echo.written[before.get(id(echo), 0) :])
            for echo in self.echoes
            if len(echo.written) > before.get(id(echo), 0)
        ]
        self.echoes = [echo for echo in self.echoes if not echo.closed]
        for echo in self.echoes:
            del echo.written[: echo.read_to]
            echo.read_to = 0
        assert self.parts.tally.in_flight == 0
        assert not self.listener.doors
        return outcome

    async def quiet(self) -> None:
        """Let the loop go round until nothing has been said for some turns."""
        still, seen = 0, self.events
        for _ in range(TURNS_MAX):
            if still >= QUIET_TURNS:
                return
            await asyncio.sleep(0)
            still = still + 1 if seen == self.events else 0
            seen = self.events
        raise AssertionError("the dialogue does not come to rest")


def cuttings(data: bytes, steps_max: int = 1500) -> dict[str, list[bytes]]:
    """The same bytes in several packetings: whole, byte by byte, and cut before, within and after each line end."""
    step = max(1, len(data) // steps_max)
    cuttings = {"whole": [data], "bytes": [data[at : at + step] for at in range(0, len(data), step)]}
    if data.count(b"\r\n") < 200:
        for name, shift in (("before each CRLF", 0), ("within each CRLF", 1), ("after each CRLF", 2)):
            edges = [0, *(found.start() + shift for found in re.finditer(rb"\r\n", data)), len(data)]
            cuttings[name] = [data[begin:end] for begin, end in pairwise(edges) if begin < end]
    return cuttings
