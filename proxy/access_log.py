"""One JSON line for every call: who answered, how long it took, and never a body, a query or a secret.

Lines are encoded on the event loop (about a microsecond) and written by a thread, so that a stuck log never holds up a
call. When the reader can't keep up, lines are dropped and counted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import BinaryIO

import msgspec

from understudy.proxy.http.exchange import Exchange

LINES_MAX = 10_000
FLUSH_S = 0.2


class Line(msgspec.Struct, omit_defaults=True):
    """What an access log line says. Times are milliseconds."""

    at: float
    id: str
    method: str
    path: str
    status: int
    ms: float
    route: str = ""
    kind: str = ""
    tier: str = ""
    source: str = ""
    reason: str = ""
    upstream_ms: float = 0.0
    attempts: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    end: str = "done"


class AccessLog:
    """Collects lines and writes them out from its own thread."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._lines: deque[bytes] = deque()
        self._encode = msgspec.json.Encoder().encode
        self._stop = threading.Event()
        self.dropped = 0
        self.enabled = True
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def __call__(self, exchange: Exchange, end: str) -> None:
        if not self.enabled:
            return
        if len(self._lines) >= LINES_MAX:
            self.dropped += 1
            return
        self._lines.append(self._encode(line_of(exchange, end)) + b"\n")

    def close(self) -> None:
        """Write what is left and stop."""
        self._stop.set()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while not self._stop.wait(FLUSH_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        lines = self._lines
        batch = [lines.popleft() for _ in range(len(lines))]
        if not batch:
            return
        try:
            self._out.write(b"".join(batch))
            self._out.flush()
        except (OSError, ValueError):
            self.dropped += len(batch)


def line_of(exchange: Exchange, end: str) -> Line:
    """What is written down of a finished exchange."""
    call, answer, request = exchange.call, exchange.answer, exchange.request
    line = Line(
        at=round(time.time(), 3),
        id=exchange.id,
        method=request.method.decode("latin-1"),
        path=request.target.partition(b"?")[0][:512].decode("latin-1"),
        status=answer.status if answer else 0,
        ms=round((exchange.door.now() - exchange.started) * 1000, 3),
        bytes_in=len(request.body),
        bytes_out=exchange.body_bytes,
        end=end,
    )
    if call is not None:
        line.route = call.route
        line.kind = call.kind
        line.upstream_ms = round(call.upstream_s * 1000, 3)
        line.attempts = call.attempts
    if answer is not None:
        line.tier = answer.tier
        line.source = answer.source
        line.reason = answer.reason
    return line
