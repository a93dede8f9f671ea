"""What comes in on a connection, read: bytes become whole requests, and every limit on them is enforced here.

known head, whole body -------------------------------------------------------+
head --(whole | in pieces)--> claimed by a route --> body (counted | chunked) +--> a whole request
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Literal

from understudy.proxy.dialects.base import BadRequest
from understudy.proxy.http.chunked import BadChunks, ChunkedBody
from understudy.proxy.http.exchange import Entry, Exchange
from understudy.proxy.http.hall import Hall
from understudy.proxy.http.request_head import END, LENGTH_DIGITS_MAX, HeadMemory, HeadReader, RequestHead, probe_head

Phase = Literal["idle", "head", "body", "busy", "lingering"]


class Incoming(asyncio.Protocol):
    """The reading half of a door."""

    __slots__ = (
        "_body",
        "_body_began",
        "_body_bytes",
        "_chunked",
        "_continue_owed",
        "_current",
        "_dry_bytes",
        "_entry",
        "_head",
        "_heard_at",
        "_known",
        "_known_in",
        "_partial",
        "_path",
        "_phase",
        "_probe",
        "_queue",
        "_since",
        "_to_come",
        "listener",
    )

    def __init__(self, listener: Hall) -> None:
        self.listener = listener
        self._queue: deque[Exchange] = deque()
        self._current: Exchange | None = None
        self._phase: Phase = "idle"
        self._since = self._heard_at = listener.clock()
        # what has come of a head that is not yet whole, and a parser that says whether it still can become one
        self._partial = bytearray()
        self._probe: HeadReader | None = None
        self._head: RequestHead | None = None
        # the last head, to be known again by its bytes, and the memory it belongs to
        self._known: RequestHead | None = None
        self._known_in: HeadMemory | None = None
        self._entry: Entry | None = None
        self._path = b""
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._body_began = 0.0
        self._to_come = 0
        self._chunked: ChunkedBody | None = None
        self._dry_bytes = 0
        self._continue_owed = False

    def _take_request(self, head: RequestHead, entry: Entry | None, path: bytes, body: bytes) -> None:
        """A whole request, for the other half."""
        raise NotImplementedError

    def _is_kept(self, head: RequestHead, entry: Entry, body: bytes) -> bool:
        """Whether a request with a known head could be answered at once from what is kept, and was."""
        raise NotImplementedError

    def _say_continue(self) -> None:
        """Ask for the body of a caller who waits to be asked, if there is one."""
        raise NotImplementedError

    def _is_known(self, head: RequestHead, data: bytes) -> bool:
        """Whether this is the head we had last and a whole body behind it, and nothing else: then it is served.

        What clients send on one connection hardly differs but in the body, and to see that costs a third of reading it.
        """
        before, behind = head.before, head.behind
        end = data.find(b"\r", len(before), len(before) + LENGTH_DIGITS_MAX + 1)
        if end < 0 or not data.startswith(before) or not data.startswith(behind, end):
            return False
        digits = data[len(before) : end]
        at = end + len(behind)
        length = len(data) - at
        if not length or not digits.isdigit() or int(digits) != length or self._known_in is not self.listener.heads:
            return False
        entry, path = self.listener.claimed(head) if head.claim is None else head.claim
        if entry is None or length > entry.body_bytes_max:
            return False
        self._dry_bytes = 0
        self._since = self._heard_at
        body = data[at:]
        if entry.quick_hit is None or not self._is_kept(head, entry, body):
            self._take_request(head, entry, path, body)
        return True

    def _read_head(self, data: bytes, at: int) -> int:
        """Read a head, or as much of one as has come. Returns where reading stopped. Raises BadRequest."""
        if len(self._partial) == 1 and self._partial[0] == 0x0D and data.startswith(b"\n", at):
            # an empty line that came in two packets
            self._partial.clear()
            self._probe = None
            self._dry_bytes += 2
            at += 1
        if not self._partial:
            if self._phase != "head" and len(self._queue) >= self.listener.limits.pipelined_max:
                raise BadRequest("too many requests sent ahead on one connection")
            # empty lines before a request are let pass (RFC 9112 section 2.2), as many as a head could hold
            while data.startswith(b"\r\n", at):
                at += 2
                self._dry_bytes += 2
            if self._dry_bytes > self.listener.limits.head_bytes_max:
                raise BadRequest("the request's head is too large", status=431)
            end = data.find(END, at)
            if end >= 0:
                end += len(END)
                self._take_head(data[at:end] if at or end < len(data) else data)
                return end
            if at == len(data):
                return at
        return self._read_partial_head(data, at)

    def _read_partial_head(self, data: bytes, at: int) -> int:
        """A head that comes in pieces: kept until it is whole, and refused as soon as it can't become one."""
        self._phase = "head"
        seen = max(0, len(self._partial) - len(END) + 1)
        before = len(self._partial)
        self._partial += data[at:]
        end = self._partial.find(END, seen)
        if end < 0:
            if len(self._partial) > self.listener.limits.head_bytes_max:
                raise BadRequest("the request's head is too large", status=431)
            self._probe = self._probe or HeadReader(self.listener.limits.headers_max)
            probe_head(self._probe, data[at:])
            return len(data)
        end += len(END)
        raw = bytes(self._partial[:end])
        self._partial = bytearray()
        self._probe = None
        self._take_head(raw)
        return at + end - before

    def _take_head(self, raw: bytes) -> None:
        """A whole head: find who claims it, and know how its body is framed. Raises BadRequest."""
        listener = self.listener
        if len(raw) > listener.limits.head_bytes_max:
            raise BadRequest("the request's head is too large", status=431)
        self._dry_bytes = 0
        head, length = listener.heads.get(raw)
        self._head = head
        self._entry, self._path = listener.claimed(head)
        if length > self._body_bytes_max():
            raise self._too_large()
        self._to_come = length
        if head.chunked:
            self._chunked = ChunkedBody()
        elif not length:
            self._request_is_whole(b"")
            return
        self._phase = "body"
        self._since = self._body_began = self._heard_at
        self._continue_owed = head.expects
        if self._current is None and not self._queue:
            self._say_continue()

    def _read_body(self, data: bytes, at: int) -> int:
        """Read of the body what has come. Returns where reading stopped. Raises BadRequest."""
        self._continue_owed = False
        if self._chunked is not None:
            return self._read_chunks(self._chunked, data, at)
        left = len(data) - at
        if left >= self._to_come and not self._body:
            # the usual case: the whole body is here, and is cut out once
            end = at + self._to_come
            self._request_is_whole(data[at:end])
            return end
        piece = data[at : at + self._to_come]
        self._body.append(piece)
        self._to_come -= len(piece)
        if not self._to_come:
            self._request_is_whole(b"".join(self._body))
        return at + len(piece)

    def _read_chunks(self, chunked: ChunkedBody, data: bytes, at: int) -> int:
        pieces: list[bytes] = []
        try:
            end = chunked.feed(data, at, pieces)
        except BadChunks as bad:
            raise BadRequest(f"the request's body can't be read: {bad}") from None
        # joined packet by packet: kept apart, chunks of two bytes would take twenty times the memory of the body
        content = b"".join(pieces)
        if content:
            self._body.append(content)
        self._body_bytes += len(content)
        if self._body_bytes > self._body_bytes_max():
            raise self._too_large()
        self._dry_bytes = 0 if content else self._dry_bytes + end - at
        if self._dry_bytes > self.listener.limits.head_bytes_max:
            raise BadRequest("too much between the chunks of the request's body, or after them")
        if chunked.over:
            self._request_is_whole(b"".join(self._body))
        return end

    def _request_is_whole(self, body: bytes) -> None:
        head, entry, path = self._head, self._entry, self._path
        assert head is not None
        self._head = None
        self._entry = None
        self._chunked = None
        self._body = []
        self._body_bytes = 0
        self._continue_owed = False
        if head.before:
            self._known, self._known_in = head, self.listener.heads
        self._take_request(head, entry, path, body)

    def _body_bytes_max(self) -> int:
        return self._entry.body_bytes_max if self._entry else self.listener.limits.body_bytes_max

    def _too_large(self) -> BadRequest:
        why = f"the request's body is larger than {self._body_bytes_max()} bytes, the policies' body_bytes_max"
        return BadRequest(why, status=413)

    def _drips(self, now: float) -> bool:
        """Whether the body comes too slowly: each stretch of it buys only so much more time."""
        limits = self.listener.limits
        come_bytes = sum(map(len, self._body))
        return now - self._body_began > limits.body_s + come_bytes / limits.body_bytes_per_s_min
