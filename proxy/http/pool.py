"""The pool of connections to one upstream: bounded, last in first out, swept of what has been idle for too long."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from understudy.policies.service import Failed, Refused
from understudy.proxy.http.upstream import Connection

WIND_UP_S = 1.0
"""How often a closed pool looks at the streams still on it."""
IDLE_S_MAX = 60.0
IDLE_CONNECTIONS_MAX = 64


class Pool:
    """The connections to one upstream. Bounded; the least used are closed first."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        connections_max: int = 256,
        idle_s: float = 60.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.loop = loop
        self.host = host
        self.port = port
        self.connections_max = connections_max
        self._tls = tls
        self._server_name = server_name or host
        self._stream_idle_s = idle_s
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._opening = 0
        self.clock = clock or loop.time
        self.opened = 0
        self.closed = False

    @property
    def size(self) -> int:
        """Connections open or being opened."""
        return len(self._all) + self._opening

    @property
    def idle(self) -> int:
        return len(self._idle)

    def take(self) -> Connection | None:
        """The idle connection used last, or None."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def connect(self, wait_s: float) -> Connection:
        """A new connection. Raises Failed (connect_refused, connect_timeout, dns, tls), or Refused when
        the pool is at its bound."""
        if self.size >= self.connections_max:
            raise Refused("connections", f"all {self.connections_max} connections to the upstream are in use")
        self._opening += 1
        try:
            async with asyncio.timeout(wait_s):
                _, connection = await self.loop.create_connection(
                    lambda: Connection(self),
                    self.host,
                    self.port,
                    ssl=self._tls,
                    server_hostname=self._server_name if self._tls else None,
                )
        except TimeoutError:
            raise Failed("connect_timeout", f"no connection within {wait_s:.3f} s") from None
        except ssl.SSLError as error:
            raise Failed("tls", f"TLS: {error.reason or 'handshake failed'}") from None
        except OSError as error:
            raise _as_failed(error) from None
        finally:
            self._opening -= 1
        if connection.usable:
            self._all.add(connection)
        self.opened += 1
        return connection

    def give_back(self, connection: Connection) -> None:
        """An exchange is over and the connection can serve another."""
        if self.closed or len(self._idle) >= IDLE_CONNECTIONS_MAX:
            connection.abort()
            return
        connection.idle_since = self.clock()
        self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        """A connection is gone."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def sweep(self, now: float) -> None:
        """Close what has been idle too long, and streams whose upstream has fallen silent."""
        while self._idle and now - self._idle[0].idle_since > IDLE_S_MAX:
            self._idle.pop(0).abort()
        for connection in list(self._all):
            if connection.silent_for(now) > self._stream_idle_s:
                connection.stall()

    def close(self) -> None:
        """Close idle connections now; busy ones when their exchange is over."""
        self.closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.abort()
        self._wind_up()

    def _wind_up(self) -> None:
        """Nobody sweeps a pool that is no longer in force, and a stream on it may stall all the same."""
        self.sweep(self.clock())
        if self._all and not self.loop.is_closed():
            self.loop.call_later(WIND_UP_S, self._wind_up)


def _as_failed(error: OSError) -> Failed:
    if isinstance(error, socket.gaierror):
        return Failed("dns", "the upstream's name can't be resolved")
    if isinstance(error, ConnectionRefusedError):
        return Failed("connect_refused", "the upstream refused the connection")
    if isinstance(error, ssl.CertificateError):
        return Failed("tls", "the upstream's certificate is not trusted")
    if isinstance(error, ConnectionResetError):
        return Failed("reset", "the upstream reset the connection")
    return Failed("connect", f"no connection: {error.strerror or error}")
