"""An exchange that has switched protocols (RFC 9110 section 7.8): two connections, and bytes both ways as they come.

    OFFERED --101 from upstream--> HELD --the door joins its side--> OPEN --either side ends--> both closed, within 1 s

What goes through is not looked at. Each packet is one write on the other side, without a task; where the other side
doesn't take what it is given, this one is not read from. Only `websocket` is ever offered to an upstream: what other
protocols carry (h2c above all) would be requests that nobody here has routed, limited or logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from understudy.policies.service import End, Headers, Stream
from understudy.proxy.http.heads import connection_options

CLOSE_S_MAX = 1.0
"""How long what is already written may take to go out once a side has ended."""
OFFERED = b"websocket"
UPGRADE_LINES = b"connection: upgrade\r\nupgrade: %b\r\n" % OFFERED


def offers_tunnel(method: bytes, version: str, headers: Headers) -> bool:
    """Whether a request's head offers to go on as a WebSocket."""
    wanted = [value.lower() for name, value in headers if len(name) == 7 and name.lower() == b"upgrade"]
    return wanted == [OFFERED] and method == b"GET" and version == "1.1" and b"upgrade" in connection_options(headers)


class Joined(Protocol):
    """What a tunnel asks of the exchange whose answer it is."""

    body_bytes: int

    def left(self, end: End) -> None: ...


class Tunnel(Stream):
    """Both sides. `heard_at` is when either last said anything; `bytes_up` went to the upstream."""

    __slots__ = ("_caller", "_clock", "_exchange", "_loop", "_rest", "_timer", "_up", "heard_at")

    def __init__(
        self,
        transport: asyncio.Transport,
        lost: Callable[[Exception | None], None],
        rest: bytes,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        super().__init__()
        self._loop = loop
        self._clock = clock
        self._rest = rest
        self._exchange: Joined | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._caller: Side | None = None
        self._up = Side(self, transport, lost, "cut")
        self.heard_at = clock()
        # until the caller's side is there, what comes waits in the socket
        self._up.pause()

    @property
    def bytes_up(self) -> int:
        return self._caller.heard_bytes if self._caller else 0

    def join(
        self,
        transport: asyncio.Transport,
        lost: Callable[[Exception | None], None],
        exchange: Joined,
        ahead: bytes,
        *,
        write_paused: bool,
    ) -> None:
        """Take over the caller's connection, which has been told of the switch; `ahead` is what it sent too early."""
        self._exchange = exchange
        caller = self._caller = Side(self, transport, lost, "left")
        caller.other, self._up.other = self._up, caller
        if self.ended is not None:
            # the upstream has gone in between
            exchange.left("cut")
            return
        if self._rest:
            self._up.data_received(self._rest)
        if ahead:
            caller.data_received(ahead)
        caller.resume()
        if not write_paused:
            self._up.resume()

    def close(self) -> None:
        """The caller has gone, or must go: let go of the upstream."""
        self._up.transport.abort()
        self._count()
        self.finish("left")

    def heard(self) -> None:
        """Something has come, from either side."""
        self.heard_at = self._clock()

    def over(self, end: End) -> None:
        """A side has ended: what is written goes out, then both are closed."""
        if self.ended is not None:
            return
        self._count()
        self.finish(end)
        sides = [side for side in (self._caller, self._up) if side is not None]
        for side in sides:
            if not side.transport.is_closing():
                side.transport.close()
        if not all(side.gone for side in sides):
            self._timer = self._loop.call_later(CLOSE_S_MAX, self._cut)
        if self._exchange is not None:
            self._exchange.left(end)

    def settled(self) -> None:
        """A side is gone; when both are, nothing is left to wait for."""
        if self._timer is not None and self._up.gone and (self._caller is None or self._caller.gone):
            self._timer.cancel()
            self._timer = None

    def _count(self) -> None:
        if self._exchange is not None:
            self._exchange.body_bytes = self._up.heard_bytes

    def _cut(self) -> None:
        self._timer = None
        for side in (self._caller, self._up):
            if side is not None and not side.gone:
                side.transport.abort()


class Side(asyncio.Protocol):
    """One of the two connections, taken over from whoever spoke HTTP on it; `lost` is for them."""

    __slots__ = ("_broken", "_lost", "_tunnel", "gone", "heard_bytes", "other", "transport")

    def __init__(
        self, tunnel: Tunnel, transport: asyncio.Transport, lost: Callable[[Exception | None], None], broken: End
    ) -> None:
        self._tunnel = tunnel
        self._broken: End = broken
        self._lost = lost
        self.transport = transport
        self.other: Side | None = None
        self.heard_bytes = 0
        self.gone = False
        transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        self._tunnel.heard()
        self.heard_bytes += len(data)
        other = self.other
        if other is not None and not other.transport.is_closing():
            other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.pause()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.resume()

    def eof_received(self) -> bool:
        self._tunnel.over("done")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self._tunnel.over(self._broken if exc is not None else "done")
        self._tunnel.settled()
        self._lost(exc)

    def pause(self) -> None:
        """Read no more: the other side is slow."""
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if not self.transport.is_closing():
            self.transport.resume_reading()
