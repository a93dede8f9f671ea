"""One request and its answer on a door: the sink of the answer's stream, and the head that goes before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol

from understudy.policies.observe import RouteTally
from understudy.policies.service import Answer, Call, End, Headers, Request, Service, Stream, find_header
from understudy.proxy.dialects.base import Dialect, is_encoded
from understudy.proxy.dialects.generating import EVENT_HEADERS
from understudy.proxy.http.heads import header_safe, status_line, takes_trailers
from understudy.proxy.http.request_head import RequestHead
from understudy.proxy.http.stepping import Stepped

COMMENT = b": keep-alive\n\n"
EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
PENDING = "pending"
"""Whose a stream is of which nobody has been given anything yet."""


QuickHit = Callable[[Mapping[object, Any], bytes, int], Answer | None]
"""What is kept for a request, by what is remembered of its head and by its body; of at most so many bytes."""


class Entry(Protocol):
    """What a route is to the door."""

    @property
    def name(self) -> str: ...
    @property
    def dialect(self) -> Dialect: ...
    @property
    def service(self) -> Service: ...
    @property
    def body_bytes_max(self) -> int: ...
    @property
    def tally(self) -> RouteTally: ...
    @property
    def keep_alive_s(self) -> float: ...
    @property
    def hit(self) -> Callable[[Request], Answer | None] | None: ...
    @property
    def quick_hit(self) -> QuickHit | None: ...


class Doorstep(Protocol):
    """What an exchange needs of its door."""

    def send(self, data: bytes) -> None: ...
    def finished(self, exchange: Exchange, end: str, *, abort: bool = False) -> None: ...


class Exchange(Stepped):
    """One request and its answer on a door; the sink of the answer's stream, and what steps the call's coroutine."""

    __slots__ = (
        "answer",
        "body_bytes",
        "call",
        "chunked",
        "door",
        "ended",
        "entry",
        "id",
        "is_begun",
        "is_plain",
        "keep_alive",
        "last_chunk",
        "overdue",
        "prepared",
        "request",
        "said_at",
        "said_bytes",
        "started",
        "stream",
        "version",
    )

    def __init__(
        self,
        door: Doorstep,
        id: str,
        request: Request,
        entry: Entry | None,
        head: RequestHead | None,
        started: float,
    ) -> None:
        """Without a head the connection is closed behind the answer."""
        self._coroutine = None
        self.door = door
        self.id = id
        self.request = request
        self.entry = entry
        self.version = head.version if head else "1.1"
        self.keep_alive = head is not None and head.keep_alive
        self.is_plain = head is not None and head.is_plain
        self.call: Call | None = None
        self.prepared: Answer | None = None
        self.stream: Stream | None = None
        self.answer: Answer | None = None
        self.chunked = False
        self.overdue = False
        self.is_begun = False
        self.body_bytes: int = 0
        self.said_bytes: int = 0
        self.last_chunk = b""
        self.started = self.ended = self.said_at = started

    def write(self, chunk: bytes) -> None:
        if not chunk:
            return
        self.body_bytes += len(chunk)
        self.last_chunk = chunk
        self.door.send(b"%x\r\n%b\r\n" % (len(chunk), chunk) if self.chunked else chunk)

    def end(self) -> None:
        stream = self.stream
        is_broken = stream is not None and stream.ended == "cut"
        if is_broken:
            # the caller was told by the upstream itself
            assert self.entry is not None
            self.entry.tally.streams_broken += 1
        if self.chunked:
            trailers = stream.trailers if stream is not None and stream.trailers else b""
            if trailers and not takes_trailers(self.request.headers):
                trailers = b""
            self.door.send(b"0\r\n%b\r\n" % trailers)
        self.door.finished(self, "cut" if is_broken else "done")

    def cut(self, reason: str) -> None:
        """The stream broke: say so in band where the dialect can, else break the connection. Never a clean end."""
        assert self.entry is not None
        self.entry.tally.streams_broken += 1
        self.keep_alive = False
        notice = self.entry.dialect.broken_off(reason) if self._can_be_added_to() else b""
        if notice:
            self.write(notice)
            if self.chunked and self.entry.dialect.breaks_are_heard:
                self.door.send(b"0\r\n\r\n")
            self.door.finished(self, "cut")
        else:
            self.door.finished(self, "cut", abort=True)

    def left(self, end: End) -> None:
        """The tunnel that was the answer has ended."""
        self.door.finished(self, end)

    # --- while nothing else comes ------------------------------------------------------------------------------------

    def keep_up(self, now: float, every_s: float) -> None:
        """Write a comment to a caller who awaits a stream and has heard nothing for `every_s`; the first goes behind a
        200, of which nobody knows yet whose it is."""
        if self.body_bytes != self.said_bytes:
            self.said_bytes, self.said_at = self.body_bytes, now
        if now - self.said_at < every_s or self.call is None or not self.call.wants_stream:
            return
        if self.answer is None:
            self.chunked = self.version == "1.1"
            self.keep_alive = self.keep_alive and self.chunked
            self.is_begun = True
            self.answer = Answer(200, list(EVENT_HEADERS), tier=PENDING, source=PENDING)
            self.door.send(self.head(self.answer, None))
        elif not (self._is_between_events() if self.stream is not None else self.is_begun):
            return
        self.write(COMMENT)
        self.said_bytes, self.said_at = self.body_bytes, now

    def _is_between_events(self) -> bool:
        return (not self.body_bytes or self.last_chunk.endswith(EVENT_ENDS)) and self._can_be_added_to()

    def introduce(self, answer: Answer) -> bool:
        """An answer behind the 200 that went before it; whether it is a stream that can follow. It says in a comment
        what its head would have said; what is no stream is said in band, as an error is."""
        self.answer = answer
        kind = (find_header(answer.headers, b"content-type") or b"").lower()
        if answer.stream is not None and answer.status == 200 and kind.startswith(b"text/event-stream"):
            self.write(b": understudy: tier %b, source %b\n\n" % (answer.tier.encode(), answer.source.encode()))
            return True
        assert self.entry is not None
        self.entry.tally.streams_broken += 1
        self.keep_alive = False
        if answer.stream is None and answer.status >= 400 and answer.body.lstrip()[:1] == b"{":
            self.write(b"event: error\n%b\n" % b"".join(b"data: %b\n" % line for line in answer.body.splitlines()))
        else:
            self.write(self.entry.dialect.broken_off(f"status_{answer.status}"))
        if self.chunked:
            self.door.send(b"0\r\n\r\n")
        return False

    def _can_be_added_to(self) -> bool:
        """Whether a notice of ours would be read: among events or lines, not packed, whose length was not told."""
        answer = self.answer
        assert answer is not None
        if answer.stream is None or answer.stream.length is not None or is_encoded(answer):
            return False
        content_type = find_header(answer.headers, b"content-type") or b""
        return content_type.lower().startswith((b"text/event-stream", b"application/x-ndjson"))

    def plain(self, answer: Answer, body: bytes) -> bytes:
        """The whole of the usual answer: a 200 with a body, to a caller who may ask again. `head` says the same."""
        return plain_answer(answer, body, self.id, keep_alive=self.keep_alive)

    def head(self, answer: Answer, length: int | None) -> bytes:
        """The answer's head, with who answered and how the body is framed. `length` is the body's, where known."""
        lines = [status_line(answer.status), answer.lines()]
        lines.append(_signature(answer.tier, answer.source) + b"x-request-id: %b\r\n" % self.id.encode())
        if answer.reason:
            lines.append(b"x-understudy-reason: %b\r\n" % header_safe(answer.reason))
        if self.chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        elif length is not None and _says_length(self.request.method, answer, length):
            lines.append(b"content-length: %d\r\n" % length)
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        elif self.version == "1.0":
            lines.append(b"connection: keep-alive\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)


def plain_answer(answer: Answer, body: bytes, id: str, *, keep_alive: bool = True) -> bytes:
    """A 200 with a body, as it goes out."""
    return b"HTTP/1.1 200 OK\r\n%b%bx-request-id: %b\r\ncontent-length: %d\r\n%b\r\n%b" % (
        answer.lines(),
        _signature(answer.tier, answer.source),
        id.encode(),
        len(body),
        b"" if keep_alive else b"connection: close\r\n",
        body,
    )


@lru_cache(maxsize=1024)
def _signature(tier: str, source: str) -> bytes:
    """Who answered, as headers; there are as many as there are tiers."""
    return b"x-understudy-tier: %b\r\nx-understudy-source: %b\r\n" % (
        (tier or "none").encode(),
        (source or "understudy").encode(),
    )


def apology(dialect: Dialect, status: int, reason: str, detail: str, retry_after_s: float | None) -> Answer:
    """An error of ours after every tier was asked; the dialect adds what tells its SDKs not to ask again."""
    headers: Headers = []
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(min(retry_after_s, 60.0)))))
    answer = dialect.error(status, reason, detail, headers=headers)
    answer.reason = detail
    return answer


def _says_length(method: bytes, answer: Answer, length: int) -> bool:
    if answer.status in (204, 304):
        return False
    # an upstream's answer to HEAD brings its own length, or none: zero would be a claim of ours
    return method != b"HEAD" or (length > 0 and find_header(answer.headers, b"content-length") is None)
