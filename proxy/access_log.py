"""One JSON line for every call: who answered, how long it took, and never a body, a query or a secret.

Lines are encoded on the event loop (about a microsecond) and written by a thread, so that a stuck log never holds up a
call. When the reader can't keep up, lines are dropped and counted.
"""

from __future__ import annotations

import select
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO, cast

import msgspec

from understudy.proxy.http.exchange import Exchange
from understudy.proxy.http.forwarding import trace_of
from understudy.proxy.http.tunnel import Tunnel

LINES_MAX = 10_000
FLUSH_S = 0.2
PATH_BYTES_MAX = 512
CLIENT_BYTES_MAX = 256


class AccessLog:
    """Collects lines and writes them out from its own thread."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._lines: deque[str] = deque()
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
        if len(self._lines) >= LINES_MAX:
            self.dropped += 1
            return
        self._lines.append(line_of(exchange, end))

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
            for piece in _pieces(batch) if self.shared else ["".join(batch).encode()]:
                self._out.write(piece)
                self._out.flush()
        except (OSError, ValueError):
            self.dropped += len(batch)


def _pieces(lines: list[str]) -> Iterator[bytes]:
    """Whole lines, as many at a time as a pipe takes in one go; a longer line goes alone."""
    piece = b""
    for line in map(str.encode, lines):
        if piece and len(piece) + len(line) > select.PIPE_BUF:
            yield piece
            piece = b""
        piece += line
    yield piece


def line_of(exchange: Exchange, end: str) -> str:
    """What is written down of a finished exchange: a JSON object on a line of its own. Times are milliseconds.

    Written by hand: an encoder and its object cost three times as much, and only what a caller wrote needs escaping.
    """
    call, answer = exchange.call, exchange.answer
    ms = (exchange.door.now() - exchange.started) * 1000
    asked = ""
    if call is not None:
        asked = f',"kind":"{call.kind}","upstream_ms":{call.upstream_s * 1000:.3f},"attempts":{call.attempts}'
        if call.trace:
            asked += f',"trace":"{call.trace[3:35]}"'
    if subject := exchange.request.hop.subject:
        # of the connection, and not of the head, which others may send as well
        asked += f',"client":{_json(subject[:CLIENT_BYTES_MAX].decode("utf-8", "replace"))}'
    answered = ""
    bytes_in = len(exchange.request.body)
    if answer is not None:
        answered = f',"status":{answer.status},"tier":"{answer.tier}","source":"{answer.source}"'
        if answer.reason:
            answered += f',"reason":{_json(answer.reason)}'
        if isinstance(answer.stream, Tunnel):
            bytes_in += answer.stream.bytes_up
    return (
        f'{{"at":{time.time():.3f},"id":"{exchange.id}",{_request_of(exchange)}{asked}{answered},"ms":{ms:.3f},'
        f'"bytes_in":{bytes_in},"bytes_out":{exchange.body_bytes},"end":"{end}"}}\n'
    )


def _request_of(exchange: Exchange) -> str:
    """What follows from the request's head alone, remembered with it. The query stays out: it may hold a secret."""
    request = exchange.request
    remembered = request.remembered
    if remembered is not None and line_of in remembered:
        return cast("str", remembered[line_of])
    path = request.target.partition(b"?")[0][:PATH_BYTES_MAX].decode("latin-1")
    told = f'"method":{_json(request.method.decode("latin-1"))},"path":{_json(path)}'
    if exchange.entry is not None:
        told += f',"route":"{exchange.entry.name}"'
    if trace := trace_of(request.headers):
        told += f',"trace":"{trace.decode()}"'
    if remembered is not None:
        remembered[line_of] = told
    return told


def _json(text: str) -> str:
    return msgspec.json.encode(text).decode()
