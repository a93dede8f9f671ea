"""The service behind every subject: fixed answers, as fast as Python gives them.

python -m tests.bench.upstream --port PORT
"""

from __future__ import annotations

import argparse
import asyncio
import gc
from typing import cast

import uvloop

from tests.bench.workloads import EXCHANGES, MARKER, Exchange

_MARKER = f"\r\n{MARKER}: ".encode()
_LENGTH = b"\r\ncontent-length: "
_READY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
_WHOLE = {name.encode(): one.answer_head() + one.body for name, one in EXCHANGES.items() if not one.is_streamed}
_STREAMED = {name.encode(): one for name, one in EXCHANGES.items() if one.is_streamed}


class Upstream(asyncio.Protocol):
    """One connection; a request is answered when its last byte is here."""

    def __init__(self) -> None:
        self._held = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        if self._held:
            data = self._held + data
        end = data.find(b"\r\n\r\n")
        head = data[: end + 2].lower() if end >= 0 else b""
        if not head or len(data) < end + 4 + int(_value(head, _LENGTH) or 0):
            self._held = data
            return
        self._held = b""
        assert self._transport is not None
        wanted = _value(head, _MARKER)
        if wanted in _STREAMED:
            self._stream(_STREAMED[wanted])
        else:
            self._transport.write(_WHOLE.get(wanted, _READY))

    def _stream(self, exchange: Exchange) -> None:
        loop = asyncio.get_running_loop()
        pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in exchange.pieces]
        pieces[-1] += b"0\r\n\r\n"
        pieces.reverse()
        # on the clock and not after one another: late pieces must not make the whole stream late
        due = loop.time()

        def send() -> None:
            nonlocal due
            if self._transport is None:
                return
            self._transport.write(pieces.pop())
            if pieces:
                due += exchange.gap_s
                loop.call_at(due, send)

        assert self._transport is not None
        self._transport.write(exchange.answer_head())
        send()


def _value(head: bytes, name: bytes) -> bytes:
    """A header's value; `name` is in lower case, with the line break before it and the colon after it."""
    at = head.find(name)
    return head[at + len(name) : head.find(b"\r\n", at + len(name))] if at >= 0 else b""


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=1024)
    gc.freeze()
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(_serve(parser.parse_args().port))
