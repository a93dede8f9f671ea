"""The floor: a relay from protocol to protocol that knows where messages end, and nothing else.

httptools reads both sides, so that the relay knows when a pooled upstream connection is free again; bytes are passed on
as they came. No headers are looked at, nothing is counted, nothing is guarded.

    python -m tests.bench.relay --port PORT --upstream PORT
"""

from __future__ import annotations

import argparse
import asyncio
from typing import cast

import httptools
import uvloop


class Upstream(asyncio.Protocol):
    """A pooled connection to the upstream, serving one caller at a time."""

    def __init__(self, idle: list[Upstream]) -> None:
        self._idle = idle
        self._parser = httptools.HttpResponseParser(self)
        self._is_over = False
        self.caller: asyncio.Transport | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._idle:
            self._idle.remove(self)
        if self.caller is not None:
            self.caller.abort()

    def data_received(self, data: bytes) -> None:
        caller = self.caller
        self._parser.feed_data(data)
        if self._is_over:
            self._is_over = False
            self.caller = None
            self._idle.append(self)
        if caller is not None:
            caller.write(data)

    def on_message_complete(self) -> None:
        self._is_over = True


class Caller(asyncio.Protocol):
    """A connection from a caller; takes an upstream connection at a request's first byte."""

    def __init__(self, idle: list[Upstream], upstream_port: int) -> None:
        self._idle = idle
        self._upstream_port = upstream_port
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._upstream: Upstream | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._held = b""
        self._is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._upstream is not None and self._upstream.transport is not None:
            self._upstream.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        if self._connecting is not None:
            self._held += data
        elif self._upstream is not None or self._idle:
            self._pass_on(self._upstream or self._idle.pop(), data)
        else:
            self._held = data
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def on_message_complete(self) -> None:
        self._is_over = True

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, upstream = await loop.create_connection(lambda: Upstream(self._idle), "127.0.0.1", self._upstream_port)
        self._connecting = None
        held, self._held = self._held, b""
        self._pass_on(upstream, held)

    def _pass_on(self, upstream: Upstream, data: bytes) -> None:
        assert upstream.transport is not None
        upstream.caller = self._transport
        upstream.transport.write(data)
        # the upstream gives itself back when it has answered
        self._upstream = None if self._is_over else upstream
        self._is_over = False


async def _serve(port: int, upstream_port: int) -> None:
    idle: list[Upstream] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Caller(idle, upstream_port), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", type=int, required=True)
    arguments = parser.parse_args()
    uvloop.run(_serve(arguments.port, arguments.upstream))
