"""One JSON line for every call: who answered, how long it took, and never a body, a query or a secret.

Calls are noted on the event loop, made into lines many at a time, and written by a thread, so that a stuck log never
holds up a call. When the reader can't keep up, lines are dropped and counted.
"""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from understudy.proxy.http.exchange import Exchange
from understudy.proxy.http.forwarding import trace_of
from understudy.proxy.http.tunnel import Tunnel

LINES_MAX = 10_000
FLUSH_S = 0.2
LINES_AT_ONCE = 64
"""How many calls are noted before they are made into lines; the rest are at the next flush. One by one would cost twice
as much, each in a cold cache, and all that have come since the last flush would hold up the loop."""
PATH_BYTES_MAX = 512
CLIENT_BYTES_MAX = 256


class AccessLog:
    """Collects lines and writes them out from its own thread."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._notes: deque[Line] = deque()
        self._batches: deque[tuple[int, bytes]] = deque()
        self._stop = threading.Event()
        self.dropped = 0
        self.enabled = True
        # set where other processes write to the same pipe: what is longer than PIPE_BUF may be mixed with theirs
        self.shared = False
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def __call__(self, exchange: Exchange, end: str) -> None:
        if not self.enabled:
            return
        if len(self._notes) + len(self._batches) * LINES_AT_ONCE >= LINES_MAX:
            self.dropped += 1
            return
        self._notes.append(line_of(exchange, end))
        if len(self._notes) >= LINES_AT_ONCE:
            self._write_up()

    def close(self) -> None:
        """Write what is left and stop."""
        self._stop.set()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while not self._stop.wait(FLUSH_S):
            self._flush()
        self._flush()

    def _write_up(self) -> None:
        notes: list[Line] = []
        with contextlib.suppress(IndexError):
            # until there are no more; somebody in the other thread may have had the last one
            while True:
                notes.append(self._notes.popleft())
        if notes:
            self._batches.append((len(notes), _ENCODER.encode_lines(notes)))

    def _flush(self) -> None:
        self._write_up()
        batches = [self._batches.popleft() for _ in range(len(self._batches))]
        if not batches:
            return
        text = b"".join(lines for _, lines in batches)
        try:
            for piece in _pieces(text) if self.shared else [text]:
                self._out.write(piece)
                self._out.flush()
        except (OSError, ValueError):
            self.dropped += sum(count for count, _ in batches)


def _pieces(lines: bytes) -> Iterator[bytes]:
    """Whole lines, as many at a time as a pipe takes in one go; a longer line goes alone."""
    piece = b""
    for line in lines.splitlines(keepends=True):
        if piece and len(piece) + len(line) > select.PIPE_BUF:
            yield piece
            piece = b""
        piece += line
    yield piece


class Line(msgspec.Struct, gc=False, omit_defaults=True):
    """What is written down of a call, and nothing more, for it must not keep a body alive. Times are milliseconds, but
    for `at`: seconds since 1970. What there is nothing to say of is left out."""

    at: float
    id: str
    method: str
    path: str
    ms: float
    bytes_in: int
    bytes_out: int
    end: str
    route: str = ""
    trace: str = ""
    kind: str = ""
    upstream_ms: float | None = None
    attempts: int | None = None
    client: str = ""
    """Of the connection, and not of the head, which others may send as well."""
    status: int = 0
    tier: str | None = None
    source: str | None = None
    reason: str = ""
    question: str = ""
    legs: str = ""
    """Of the question: those that a fallback has answered so far, this one among them."""


_ENCODER = msgspec.json.Encoder()


def line_of(exchange: Exchange, end: str) -> Line:
    """What is written down of a finished exchange."""
    call, answer, request = exchange.call, exchange.answer, exchange.request
    method, path, route, trace = _head_of(exchange)
    kind, upstream_ms, attempts, named, legs = "", None, None, "", ""
    if call is not None:
        # whole microseconds: what comes of a clock has digits that nobody reads
        kind, upstream_ms, attempts = call.kind, int(call.upstream_s * 1e6) / 1000, call.attempts
        trace = trace or call.trace[3:35]
        if call.question is not None and call.question.legs:
            named, legs = call.question.id, call.question.built_on
    bytes_in = len(request.body)
    status, tier, source, reason = 0, None, None, ""
    if answer is not None:
        status, tier, source, reason = answer.status, answer.tier, answer.source, answer.reason
        if isinstance(answer.stream, Tunnel):
            bytes_in += answer.stream.bytes_up
    subject = request.hop.subject
    return Line(
        int(time.time() * 1000) / 1000,
        exchange.id,
        method,
        path,
        int((exchange.ended - exchange.started) * 1e6) / 1000,
        bytes_in,
        exchange.body_bytes,
        end,
        route,
        trace,
        kind,
        upstream_ms,
        attempts,
        subject[:CLIENT_BYTES_MAX].decode("utf-8", "replace") if subject else "",
        status,
        tier,
        source,
        reason,
        named,
        legs,
    )


def _head_of(exchange: Exchange) -> tuple[str, str, str, str]:
    """Method, path, route and the caller's own trace, which follow from the request's head alone and are remembered
    with it. The query stays out: it may hold a secret."""
    request = exchange.request
    remembered = request.remembered
    if remembered is not None and line_of in remembered:
        return remembered[line_of]
    path = request.target.partition(b"?")[0][:PATH_BYTES_MAX].decode("latin-1")
    route = exchange.entry.name if exchange.entry is not None else ""
    told = (request.method.decode("latin-1"), path, route, (trace_of(request.headers) or b"").decode())
    if remembered is not None:
        remembered[line_of] = told
    return told
