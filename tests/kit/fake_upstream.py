"""An upstream that misbehaves as told: a raw HTTP/1.1 server which records every byte and plays a script.

    bytes --> Heard (one request, byte for byte) --> the act chosen for it --> Wire (what the act does to the socket)

Which act is chosen, first match wins: `on_check` for a sidecar's own checks, `on_reuse` for the second and later
requests of a connection, then the queue filled by `then`, then an act set with `during` whose period has not passed,
then `respond`, then `always`.

An act is `async (Wire, Heard) -> None`; `tests.kit.acts` makes the usual ones. What happens to connections rather
than to requests is done by the upstream itself: `refuse`, `black_hole`, `reset_all`, `come_back`.

Times are on the running loop's clock, so that a script of hours plays at once on a virtual clock.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from tests.kit.processes import free_port

Headers = Sequence[tuple[bytes, bytes]]
Result = TypeVar("Result")

REASONS = {100: "Continue", 103: "Early Hints", 200: "OK", 429: "Too Many Requests", 503: "Service Unavailable"}
HEAD_BYTES_MAX = 1024 * 1024


class Gone(Exception):
    """The other side, or an act, has closed this connection: whatever was still to be written is void."""


@dataclass(slots=True)
class Heard:
    """One request as it arrived. `raw` is every byte of it; `body` is without its chunked framing."""

    connection: int
    """Which connection it came on, counted from 1."""
    nth: int
    """Which request of that connection it is, counted from 1."""
    at: float
    """When its head was complete, on the loop's clock."""
    method: bytes = b""
    target: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])
    body: bytes = b""
    raw: bytes = b""

    def header(self, name: bytes) -> bytes | None:
        """The first value of `name`, in any case, or None."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class Wire(asyncio.Protocol):
    """One connection as an act sees it: something to write to, and ways to end it."""

    def __init__(self, upstream: FakeUpstream) -> None:
        self._upstream = upstream
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._data = bytearray()
        self._more = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._eof = False
        self._task: asyncio.Task[None] | None = None
        self._answered = 0
        self._busy = False
        self._acting: Heard | None = None
        self.number = 0
        self.closed = asyncio.Event()

    # what acts use

    async def write(self, data: bytes) -> None:
        """Send `data`, waiting while the other side reads slowly. Raises Gone."""
        await self._upstream.open_for_business.wait()
        if self.closed.is_set() or self._transport is None or self._transport.is_closing():
            raise Gone
        self._transport.write(data)
        await self._writable.wait()

    async def head(self, status: int, headers: Headers = ()) -> None:
        """Send a status line, these headers and no others, and the empty line."""
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Whatever')}".encode()]
        lines += [name + b": " + value for name, value in headers]
        await self.write(b"\r\n".join(lines) + b"\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        """Send `data` as one chunk of a chunked body."""
        await self.write(b"%x\r\n%b\r\n" % (len(data), data))

    def close(self) -> None:
        """Close in order: what was written arrives, then a FIN."""
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Close with a RST."""
        if self._transport is not None:
            linger_none = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_none)
            self._transport.abort()

    def stop_reading(self) -> None:
        """Take nothing more from the socket: the caller's writes fill the kernel's buffers and then wait."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    # the protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not its subclasses
        self._upstream.arrived(self)
        self._task = self._loop.create_task(self._serve(), name=f"fake upstream, connection {self.number}")

    def data_received(self, data: bytes) -> None:
        self._data += data
        self._more.set()

    def eof_received(self) -> bool:
        self._eof = True
        self._more.set()
        # Whoever closes while an act plays has left: a FIN is all there is to see of it. Otherwise _serve still has to
        # look at what came before the FIN, and closes then.
        return self._acting is None

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._acting is not None and (self._eof or exc is not None):
            self._upstream.left(self._acting)
        self.closed.set()
        self._eof = True
        self._more.set()
        self._writable.set()
        self._upstream.departed(self)
        if self._task is not None and self._task is not asyncio.current_task(self._loop):
            self._task.cancel()

    async def wound_up(self) -> None:
        """Wait until the connection's task has ended."""
        if self._task is not None:
            await asyncio.wait([self._task])

    # reading requests

    async def _serve(self) -> None:
        try:
            while True:
                await self._upstream.open_for_business.wait()
                await self._serve_one(await self._hear_head(self._answered + 1))
        except Gone:
            self.close()
        except BaseException:
            self.close()
            raise

    async def _serve_one(self, heard: Heard) -> None:
        self._busy = True
        act = self._upstream.choose(heard)
        if not getattr(act, "before_body", False):
            if _named(heard, b"expect") == b"100-continue" and self._upstream.says_continue:
                await self.head(100)
            await self._hear_body(heard)
        (self._upstream.checks if is_check(heard) else self._upstream.heard).append(heard)
        self._acting = heard
        await act(self, heard)
        self._acting = None
        self._busy = False
        self._answered = heard.nth
        if self._upstream.idle_close_s is not None:
            self._loop.call_later(self._upstream.idle_close_s, self._close_if_idle, heard.nth)
        if _named(heard, b"connection") == b"close":
            raise Gone

    def _close_if_idle(self, nth: int) -> None:
        if self._answered == nth and not self._busy:
            self.close()

    async def _hear_head(self, nth: int) -> Heard:
        while (end := self._data.find(b"\r\n\r\n")) < 0:
            if len(self._data) > HEAD_BYTES_MAX:
                raise self._garbled()
            await self._hear_more()
        raw = self._take(end + 4)
        start, *lines = raw[:-4].split(b"\r\n")
        method, _, rest = start.partition(b" ")
        headers = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        target = rest.rpartition(b" ")[0]
        return Heard(self.number, nth, self._loop.time(), method, target, headers, raw=raw)

    async def _hear_body(self, heard: Heard) -> None:
        try:
            if _named(heard, b"transfer-encoding") == b"chunked":
                await self._hear_chunks(heard)
            else:
                heard.body = await self._hear_exactly(heard, int(heard.header(b"content-length") or 0))
        except ValueError:
            raise self._garbled(heard.raw) from None

    async def _hear_chunks(self, heard: Heard) -> None:
        body = bytearray()
        while size := int((await self._hear_line(heard)).split(b";")[0], 16):
            body += (await self._hear_exactly(heard, size + 2))[:-2]
        while await self._hear_line(heard) != b"\r\n":
            pass  # trailers are in `raw`
        heard.body = bytes(body)

    async def _hear_line(self, heard: Heard) -> bytes:
        while (end := self._data.find(b"\r\n")) < 0:
            await self._hear_more(heard.raw)
        return await self._hear_exactly(heard, end + 2)

    async def _hear_exactly(self, heard: Heard, size: int) -> bytes:
        while len(self._data) < size:
            await self._hear_more(heard.raw)
        taken = self._take(size)
        heard.raw += taken
        return taken

    async def _hear_more(self, before: bytes = b"") -> None:
        if self._eof:
            raise self._garbled(before) if before or self._data else Gone
        self._more.clear()
        await self._more.wait()

    def _garbled(self, before: bytes = b"") -> Gone:
        self._upstream.garbled.append(before + bytes(self._data))
        return Gone()

    def _take(self, size: int) -> bytes:
        taken = bytes(self._data[:size])
        del self._data[:size]
        return taken


Act = Callable[[Wire, Heard], Awaitable[None]]


async def _fine(wire: Wire, _heard: Heard) -> None:
    await wire.head(200, [(b"content-length", b"2")])
    await wire.write(b"ok")


WELL = {
    "data": [],
    "models": [],
    "version": "1",
    "status": "green",
    "nanosecond heartbeat": 1,
    "dimension": 1,
    "code": 0,
}
"""What says to every API's checks that all is well."""


async def _well(wire: Wire, _heard: Heard) -> None:
    body = json.dumps(WELL).encode()
    await wire.head(200, [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))])
    await wire.write(body)


def _named(heard: Heard, name: bytes) -> bytes:
    return (heard.header(name) or b"").lower()


def is_check(heard: Heard) -> bool:
    """Whether a sidecar asks of its own accord."""
    return heard.header(b"user-agent") == b"understudy-health"


class FakeUpstream:
    """A server on a free loopback port that plays the acts it is told; an async context manager.

    `idle_close_s` closes a connection that long after each answer without having announced it: the dead pooled
    connection. `says_continue` is whether `Expect: 100-continue` gets its 100.
    """

    def __init__(
        self,
        always: Act | None = None,
        *,
        idle_close_s: float | None = None,
        says_continue: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.heard: list[Heard] = []
        """Every request whose act began, in that order."""
        self.checks: list[Heard] = []
        """Those by which a sidecar asks how we are; nothing that is queued for callers is for them."""
        self.garbled: list[bytes] = []
        """Bytes that made no whole request: its sender closed in the middle, or its framing was wrong."""
        self.abandoned: list[Heard] = []
        """Requests among `heard` whose caller left, by FIN or RST, while their act was playing."""
        self.connections_ever = 0
        self.on_reuse: Act | None = None
        self.on_check: Act = _well
        self.respond: Callable[[Heard], Act] | None = None
        self.idle_close_s = idle_close_s
        self.says_continue = says_continue
        self.open_for_business = asyncio.Event()
        self.open_for_business.set()
        self.port = 0
        self._always = always or _fine
        self._queue: deque[Act] = deque()
        self._period: tuple[float, Act] = (0.0, self._always)
        self._wires: set[Wire] = set()
        self._server: asyncio.Server | None = None
        self._tls = tls
        self._loop: asyncio.AbstractEventLoop | None = None

    # the script

    def always(self, act: Act) -> None:
        """What is done when nothing else was asked for."""
        self._always = act

    def then(self, *acts: Act) -> None:
        """Queue acts: each is for one request."""
        self._queue.extend(acts)

    def forget(self) -> None:
        """Nothing was heard, nobody has left, and nothing is queued: for one that serves several tests. Whoever leaves
        later what was heard before is not told of: a test's end and its callers' leaving may be seen in any order."""
        self._queue.clear()
        self.heard.clear()
        self.abandoned.clear()

    def during(self, period_s: float, act: Act) -> None:
        """Do this for every request that arrives within the next `period_s`; replaces an earlier period."""
        assert self._loop is not None
        self._period = (self._loop.time() + period_s, act)

    def choose(self, heard: Heard) -> Act:
        """The act for this request; the module's docstring has the order."""
        if is_check(heard):
            return self.on_check
        if heard.nth > 1 and self.on_reuse is not None:
            return self.on_reuse
        if self._queue:
            return self._queue.popleft()
        until, act = self._period
        if heard.at < until:
            return act
        return self.respond(heard) if self.respond is not None else self._always

    # the doors

    async def refuse(self, *, hang_up: bool = True) -> None:
        """Close the listener, so that connecting is refused; with `hang_up`, reset what is connected too."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if hang_up:
            await self.reset_all()

    async def black_hole(self) -> None:
        """Read and write nothing from now on, not even in the middle of an answer; connecting still succeeds."""
        self.open_for_business.clear()
        for wire in self._wires:
            wire.stop_reading()

    async def reset_all(self) -> None:
        """Reset every open connection, as when the process behind them is killed."""
        wires = list(self._wires)
        for wire in wires:
            wire.reset()
        for wire in wires:
            await wire.closed.wait()
            await wire.wound_up()

    async def come_back(self) -> None:
        """Be there again on the same port, after `refuse` or `black_hole`; black-holed connections are reset."""
        if not self.open_for_business.is_set():
            await self.reset_all()
            self.open_for_business.set()
        if self._server is None:
            await self._listen()

    # what a test looks at

    @property
    def host_port(self) -> str:
        """`127.0.0.1:port`."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The base URL, without a slash at the end."""
        return f"{'https' if self._tls else 'http'}://{self.host_port}"

    @property
    def connections_open(self) -> int:
        """How many connections are open now."""
        return len(self._wires)

    @property
    def paths(self) -> list[bytes]:
        """The targets asked for, in order."""
        return [heard.target for heard in self.heard]

    # life

    async def __aenter__(self) -> FakeUpstream:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()

    async def _listen(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = await self._loop.create_server(
            lambda: Wire(self), "127.0.0.1", self.port, ssl=self._tls, reuse_address=True, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def left(self, heard: Heard) -> None:
        """The caller of a request is gone before its answer was."""
        if any(heard is one for one in self.heard):
            self.abandoned.append(heard)

    def arrived(self, wire: Wire) -> None:
        """A connection was accepted."""
        self.connections_ever += 1
        wire.number = self.connections_ever
        self._wires.add(wire)
        if not self.open_for_business.is_set():
            wire.stop_reading()

    def departed(self, wire: Wire) -> None:
        """A connection is closed."""
        self._wires.discard(wire)


class Hosted(FakeUpstream):
    """A FakeUpstream on a thread of its own; script it directly, but open and close its doors with `do`."""

    loop: asyncio.AbstractEventLoop

    def do(self, story: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine of this upstream on its loop and wait for it: `upstream.do(upstream.refuse())`."""
        return asyncio.run_coroutine_threadsafe(story, self.loop).result(60)


@contextmanager
def in_thread(always: Act | None = None, **options: Any) -> Iterator[Hosted]:
    """A FakeUpstream for tests whose client is synchronous: it lives on a thread with a real clock."""
    upstream = Hosted(always, **options)
    # one of its own: while it refuses, nobody else is given it
    upstream.port = free_port()
    upstream.loop = asyncio.new_event_loop()
    thread = threading.Thread(target=upstream.loop.run_forever, name="fake upstream", daemon=True)
    thread.start()
    try:
        upstream.do(upstream.__aenter__())
        yield upstream
    finally:
        upstream.do(upstream.__aexit__())
        upstream.loop.call_soon_threadsafe(upstream.loop.stop)
        thread.join(60)
        upstream.loop.close()


@contextmanager
def deaf_port(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A port where connecting neither succeeds nor fails: its backlog is full, the kernel drops every SYN."""
    with socket.socket() as listener, socket.socket() as filler, socket.socket() as second:
        listener.bind((host, port))
        listener.listen(0)
        for client in (filler, second):
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
