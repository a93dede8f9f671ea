"""One JSON line for every call: who answered, how long it took, and never a body, a query or a secret.

Calls are noted on the event loop, made into lines many at a time, and written by a thread, so that a stuck log never
holds up a call. When the reader can't keep up, lines are dropped and counted.
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
NOTES_AT_ONCE = 64
"""How many calls are noted before their lines are written; the rest are written at the next flush."""
PATH_BYTES_MAX = 512
CLIENT_BYTES_MAX = 256


class AccessLog:
    """Collects lines and writes them out from its own thread."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._notes: deque[_Note] = deque()
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
        if len(self._lines) + len(self._notes) >= LINES_MAX:
            self.dropped += 1
            return
        self._notes.append(_noted(exchange, end))
        if len(self._notes) >= NOTES_AT_ONCE:
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
        """Make lines of the notes: many at a time, for one by one they cost twice as much, each in a cold cache."""
        notes, lines = self._notes, self._lines
        try:
            while True:
                lines.append(_line(notes.popleft()))
        except IndexError:
            # no more; somebody in the other thread may have had the last one
            pass

    def _flush(self) -> None:
        self._write_up()
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


_Told = tuple[str, float, int, str]
"""Of a call: its kind, the seconds of the upstream's, attempts, its trace."""
_Said = tuple[int, str, str, str]
"""Of an answer: its status, tier, source and reason."""
_Note = tuple[float, float, str, str, _Told | None, bytes, _Said | None, int, int, str]
"""What a line is made of, and nothing more, for a note must not keep a body alive: when, how long (seconds), id, what
follows from the request's head, call, client, answer, bytes in, bytes out, end. A bare tuple: a named one costs
half a microsecond."""


def _noted(exchange: Exchange, end: str) -> _Note:
    call, answer, request = exchange.call, exchange.answer, exchange.request
    bytes_in = len(request.body)
    if answer is not None and isinstance(answer.stream, Tunnel):
        bytes_in += answer.stream.bytes_up
    return (
        time.time(),
        exchange.ended - exchange.started,
        exchange.id,
        _request_of(exchange),
        None if call is None else (call.kind, call.upstream_s, call.attempts, call.trace),
        request.hop.subject,
        None if answer is None else (answer.status, answer.tier, answer.source, answer.reason),
        bytes_in,
        exchange.body_bytes,
        end,
    )


def line_of(exchange: Exchange, end: str) -> str:
    """What is written down of a finished exchange: a JSON object on a line of its own. Times are milliseconds."""
    return _line(_noted(exchange, end))


def _line(note: _Note) -> str:
    """Written by hand: an encoder and its object cost three times as much, and only what a caller wrote needs
    escaping."""
    at, took_s, name, request, call, client, answer, bytes_in, bytes_out, end = note
    asked = answered = ""
    if call is not None:
        kind, upstream_s, attempts, trace = call
        asked = f',"kind":"{kind}","upstream_ms":{upstream_s * 1000:.3f},"attempts":{attempts}'
        if trace:
            asked += f',"trace":"{trace[3:35]}"'
    if client:
        # of the connection, and not of the head, which others may send as well
        asked += f',"client":{_json(client[:CLIENT_BYTES_MAX].decode("utf-8", "replace"))}'
    if answer is not None:
        status, tier, source, reason = answer
        answered = f',"status":{status},"tier":"{tier}","source":"{source}"'
        if reason:
            answered += f',"reason":{_json(reason)}'
    return (
        f'{{"at":{at:.3f},"id":"{name}",{request}{asked}{answered},"ms":{took_s * 1000:.3f},'
        f'"bytes_in":{bytes_in},"bytes_out":{bytes_out},"end":"{end}"}}\n'
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
