"""The pool of connections to one upstream: bounded, last in first out, and none grows old.

    take() --> an idle one, used last
    connect() --> a new one  |  all in use: wait in line --> one that came back, a place that came free, or Refused

Connections that have lived for `connection_s_max` are not used again, so that a change in DNS is followed even by a
pool that is never idle.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

from understudy.policies.observe import Histogram
from understudy.policies.service import Failed, Refused
from understudy.proxy.http.eyeballs import first_connected
from understudy.proxy.http.names import Names, Resolve
from understudy.proxy.http.resuming import ResumingContext
from understudy.proxy.http.stepping import Steps, in_task
from understudy.proxy.http.upstream import Connection

WIND_UP_S = 1.0
"""How often a closed pool looks at the streams still on it."""
IDLE_S_MAX = 60.0
IDLE_CONNECTIONS_MAX = 64
WAITING_MAX = 1024
"""Calls that may wait for a connection; the tier's bulkhead usually has them wait before they come here."""
WAIT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Upper bounds of the buckets for waiting, in seconds."""
RETIRED_EARLY_SHARE = 0.1
"""By how much of its time a connection may be retired early, so that those opened together do not end together."""


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
        wait_s_max: float = 0.1,
        idle_s: float = 60.0,
        connection_s_max: float = 3600.0,
        dns_s: float = 30.0,
        clock: Callable[[], float] | None = None,
        dice: Callable[[], float] = random.random,
        resolve: Resolve | None = None,
        steps: Steps | None = None,
    ) -> None:
        self.loop = loop
        self.steps = steps or Steps(loop)
        self.host = host
        self.port = port
        self.connections_max = connections_max
        self.clock = clock or loop.time
        self.names = Names(loop, host, port, dns_s=dns_s, clock=self.clock, resolve=resolve)
        self._tls = tls
        self._server_name = server_name or host
        self._wait_s_max = wait_s_max
        self._stream_idle_s = idle_s
        self._connection_s_max = connection_s_max
        self._dice = dice
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._opening = 0
        self._waiting: deque[asyncio.Future[Connection | bool]] = deque()
        self.waits = Histogram(WAIT_SECONDS)
        self.opened = 0
        self.failures: dict[str, int] = {}
        """How often no connection came of it, by reason."""
        self.closed = False

    @property
    def size(self) -> int:
        """Connections open or being opened."""
        return len(self._all) + self._opening

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """Calls that wait for one of the connections, all of which are in use."""
        return len(self._waiting)

    def take(self) -> Connection | None:
        """The idle connection used last, or None."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def connect(self, wait_s: float) -> Connection:
        """A new connection, or at the pool's bound the next one that comes back: then its `uses` are not 0.

        Raises Failed (connect_refused, connect_timeout, dns, tls, ...), or Refused when the pool stays at its bound.
        """
        if self.size < self.connections_max and not self._waiting:
            self._opening += 1
        else:
            began = self.clock()
            given = await self._next_free(min(wait_s, self._wait_s_max))
            if isinstance(given, Connection):
                return given
            wait_s = max(0.0, wait_s - (self.clock() - began))
        try:
            connection = await self._opened(wait_s)
        except BaseException as error:
            if isinstance(error, Failed):
                self.failures[error.reason] = self.failures.get(error.reason, 0) + 1
            self._opening -= 1
            self._let_in()
            raise
        self._opening -= 1
        self.opened += 1
        if connection.usable:
            self._all.add(connection)
        else:
            self._let_in()
        return connection

    def give_back(self, connection: Connection) -> None:
        """An exchange is over and the connection can serve another."""
        if connection.uses == 1 and isinstance(self._tls, ResumingContext):
            self._tls.remember(connection.tls_object)
        if self.closed or connection.heard_at > connection.retire_at:
            connection.abort()
            return
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        if len(self._idle) >= IDLE_CONNECTIONS_MAX:
            connection.abort()
            return
        connection.idle_since = connection.heard_at
        self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        """A connection is gone."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._let_in()

    def sweep(self, now: float) -> None:
        """Close what has been idle too long or is too old, and streams whose upstream has fallen silent."""
        while self._idle and now - self._idle[0].idle_since > IDLE_S_MAX:
            self._idle.pop(0).abort()
        for connection in [one for one in self._idle if now > one.retire_at]:
            self._idle.remove(connection)
            connection.abort()
        for connection in list(self._all):
            if connection.silent_for(now) > self._stream_idle_s:
                connection.stall()

    def renew(self) -> int:
        """Use none of today's connections again: idle ones are closed now, busy ones when their exchange is over. How
        many there are."""
        idle, self._idle = self._idle, []
        for connection in self._all:
            connection.retire_at = float("-inf")
        count = len(self._all)
        for connection in idle:
            connection.abort()
        return count

    def close(self) -> None:
        """Close idle connections now; busy ones when their exchange is over."""
        self.closed = True
        self.names.close()
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.abort()
        self._wind_up()

    def _wind_up(self) -> None:
        """Nobody sweeps a pool that is no longer in force, and a stream on it may stall all the same."""
        self.sweep(self.clock())
        if self._all and not self.loop.is_closed():
            self.loop.call_later(WIND_UP_S, self._wind_up)

    # --- waiting for a place -----------------------------------------------------------------------------------------

    async def _next_free(self, wait_s: float) -> Connection | bool:
        """The next connection that comes back, or True: a place to open one, already counted. Raises Refused."""
        if wait_s <= 0 or len(self._waiting) >= WAITING_MAX:
            raise self._full(wait_s)
        began = self.clock()
        waiter: asyncio.Future[Connection | bool] = self.loop.create_future()
        self._waiting.append(waiter)
        timer = self.loop.call_later(wait_s, _give_up, waiter)
        try:
            given = await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                # our turn came in the moment the caller left
                self._pass_on(waiter.result())
            raise
        finally:
            timer.cancel()
            waited_s = self.clock() - began
            self.waits.add(waited_s)
            if waiter in self._waiting:
                self._waiting.remove(waiter)
        if given is False:
            raise self._full(wait_s)
        if isinstance(given, Connection) and not given.usable:
            # lost on its way to us
            return await self._next_free(wait_s - waited_s)
        return given

    def _let_in(self) -> None:
        """There may be places again: they go to those who have waited longest."""
        while self._waiting and self.size < self.connections_max:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._opening += 1
                waiter.set_result(True)

    def _pass_on(self, given: Connection | bool) -> None:
        if isinstance(given, Connection):
            self.give_back(given)
        elif given:
            self._opening -= 1
            self._let_in()

    def _full(self, wait_s: float) -> Refused:
        detail = f"all {self.connections_max} connections to the upstream are in use"
        return Refused("connections", f"{detail}, and none came back within {max(0.0, wait_s):.3f} s")

    # --- opening -----------------------------------------------------------------------------------------------------

    async def _opened(self, wait_s: float) -> Connection:
        """A connection, ready to speak on. Raises Failed."""
        named = False
        await in_task()
        try:
            async with asyncio.timeout(wait_s):
                addresses = await self.names.addresses()
                named = True
                transport, address = await self._reached(addresses)
                connection = await self._spoken(transport)
        except (OSError, TimeoutError) as error:
            if named:
                self.names.led_nowhere()
            if isinstance(self._tls, ResumingContext):
                self._tls.session = None
            raise _as_failed(error, wait_s, named=named) from None
        self.names.led_to(address)
        connection.retire_at = self.clock() + self._connection_s_max * (1 - RETIRED_EARLY_SHARE * self._dice())
        return connection

    async def _reached(self, addresses: Sequence[str]) -> tuple[asyncio.Transport, str]:
        """The first of the addresses that lets us connect; what DNS says now is tried where none of them does."""
        try:
            return await first_connected(addresses, self._attempt, _abort)
        except OSError:
            others = await self.names.others(addresses)
            if not others:
                raise
        return await first_connected(others, self._attempt, _abort)

    async def _attempt(self, address: str) -> asyncio.Transport:
        transport, _ = await self.loop.create_connection(self._protocol, address, self.port)
        return transport

    def _protocol(self) -> asyncio.Protocol:
        # TLS is spoken with the winner alone, and connects its own
        return Connection(self) if self._tls is None else asyncio.Protocol()

    async def _spoken(self, transport: asyncio.Transport) -> Connection:
        """The connection on a transport that won; behind TLS where the upstream has it."""
        if self._tls is None:
            return cast("Connection", transport.get_protocol())
        connection = Connection(self)
        try:
            secured = await self.loop.start_tls(transport, connection, self._tls, server_hostname=self._server_name)
        except BaseException:
            transport.abort()
            raise
        assert secured is not None, "only a transport that was closing gives none"
        connection.connection_made(secured)
        return connection


def _abort(transport: asyncio.Transport) -> None:
    transport.abort()


def _give_up(waiter: asyncio.Future[Connection | bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)


def _as_failed(error: OSError | TimeoutError, wait_s: float, *, named: bool) -> Failed:
    if isinstance(error, socket.gaierror):
        return Failed("dns", "the upstream's name can't be resolved")
    if isinstance(error, TimeoutError):
        if not named:
            return Failed("dns", f"the upstream's name was not resolved within {wait_s:.3f} s")
        return Failed("connect_timeout", f"no connection within {wait_s:.3f} s")
    if isinstance(error, ConnectionRefusedError):
        return Failed("connect_refused", "the upstream refused the connection")
    if isinstance(error, ssl.CertificateError):
        return Failed("tls", "the upstream's certificate is not trusted")
    if isinstance(error, ssl.SSLError):
        return Failed("tls", f"TLS: {error.reason or 'handshake failed'}")
    if isinstance(error, ConnectionResetError):
        return Failed("reset", "the upstream reset the connection")
    return Failed("connect", f"no connection: {error.strerror or error}")
