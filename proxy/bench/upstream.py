"""The service behind every subject of a bench: fixed answers, as fast as Python gives them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import cast

from understudy.proxy.bench.exchanges import MARKER, STAMP, Exchange

BACKLOG = 1024
_MARKER = f"\r\n{MARKER}: ".encode()
_LENGTH = b"\r\ncontent-length: "
_READY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Answers:
    """What is answered to which marker, written out once."""

    def __init__(self, exchanges: Iterable[Exchange]) -> None:
        self.whole: dict[bytes, bytes] = {}
        self.streamed: dict[bytes, Exchange] = {}
        for one in exchanges:
            if one.is_streamed:
                self.streamed[one.name.encode()] = one
            else:
                self.whole[one.name.encode()] = one.answer_head() + one.body


class Upstream(asyncio.Protocol):
    """One connection; a request is answered when its last byte is here."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._held = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
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
        if wanted in self._answers.streamed:
            self._stream(self._answers.streamed[wanted])
        else:
            self._transport.write(self._answers.whole.get(wanted, _READY))

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
            self._transport.write(pieces.pop().replace(STAMP, b"fp_%016x" % time.monotonic_ns(), 1))
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


async def listen(answers: Answers, port: int = 0) -> asyncio.Server:
    """Answer on a loopback port; 0 takes a free one."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: Upstream(answers), "127.0.0.1", port, backlog=BACKLOG)
