"""The door callers come in by: bytes become calls, answers become bytes, and every limit on a caller is enforced here.

One Door a connection. Requests on it are answered strictly in order, one at a time; those that a client has sent ahead
wait parsed, and reading stops until they are served.

    IDLE --first byte--> HEAD --head complete--> BODY --complete--> served in turn --> IDLE (or closed)
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Literal, cast

from understudy.policies.service import NOWHERE, Answer, Failed, Hop, Refused, Request
from understudy.proxy.dialects.base import BadRequest
from understudy.proxy.http.chunked import BadChunks, ChunkedBody
from understudy.proxy.http.exchange import Entry, Exchange, apology
from understudy.proxy.http.forwarding import address_of
from understudy.proxy.http.hall import Hall
from understudy.proxy.http.heads import body_is_absent
from understudy.proxy.http.request_head import END, LENGTH_DIGITS_MAX, HeadMemory, HeadReader, RequestHead, probe_head
from understudy.proxy.http.stepping import Steps
from understudy.proxy.http.tunnel import Tunnel

log = logging.getLogger("understudy.door")

Phase = Literal["idle", "head", "body", "busy", "lingering"]
JOINED_BYTES_MAX = 16 * 1024
"""An answer's body up to this is copied behind its head: one buffer is cheaper than two."""
LINGER_S = 1.0
"""How long we go on reading after refusing a body, so that the refusal is not lost in a reset."""
OVERDUE_S = 1.0
"""How far past its deadline a call is interrupted wherever it waits: a backstop, since tiers keep `until`."""

REFUSED_FOR = {431: "head_too_large", 508: "loop"}


class Door(asyncio.Protocol):
    """One connection from a caller."""

    __slots__ = (
        "_ahead",
        "_body",
        "_body_began",
        "_body_bytes",
        "_chunked",
        "_continue_owed",
        "_current",
        "_deaf",
        "_dry_bytes",
        "_entry",
        "_failing",
        "_head",
        "_heard_at",
        "_hop",
        "_known",
        "_known_in",
        "_partial",
        "_path",
        "_phase",
        "_probe",
        "_queue",
        "_read_paused",
        "_since",
        "_to_come",
        "_transport",
        "_unsent_bytes",
        "_unsent_since",
        "_write_paused",
        "listener",
    )

    def __init__(self, listener: Hall) -> None:
        self.listener = listener
        self._transport: asyncio.Transport | None = None
        self._hop = NOWHERE
        self._queue: deque[Exchange] = deque()
        self._current: Exchange | None = None
        self._phase: Phase = "idle"
        self._since = self._heard_at = listener.clock()
        self._read_paused = False
        self._write_paused = False
        self._failing = False
        self._deaf = False
        self._ahead = b""
        self._unsent_bytes = 0
        self._unsent_since = self._since
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

    # --- asyncio's side --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)
        self._transport = transport
        listener = self.listener
        if len(listener.doors) >= listener.limits.connections_max or listener.draining:
            self._turn_away(transport)
            return
        peer = cast("tuple[str, int] | str | None", transport.get_extra_info("peername"))
        self._hop = Hop(address_of(peer), listener.scheme)
        transport.set_write_buffer_limits(high=listener.limits.write_buffer_bytes_max)
        listener.doors.add(self)

    def data_received(self, data: bytes) -> None:
        if self._failing:
            return
        if self._ahead:
            self._ahead += data  # what came before it has yet to be read
            return
        # the clock is read once a packet; a head's own time runs from its first byte
        now = self._heard_at = self.listener.clock()
        if self._phase == "idle" and self._known is not None and self._is_known(self._known, data):
            return
        if self._phase != "head":
            self._since = now
        try:
            at = 0
            # nothing is read after a request that said it was the last
            while at < len(data) and not self._failing and not self._deaf:
                at = self._read_head(data, at) if self._head is None else self._read_body(data, at)
            if at < len(data) and not self._failing:
                self._keep_for_later(data[at:])
        except BadRequest as bad:
            self._refuse(bad.status, REFUSED_FOR.get(bad.status, "bad_request"), bad.detail)
        except Exception as error:
            log.error("a request could not be read", exc_info=error)
            self._refuse(500, "internal", "an error of the sidecar's own")
        if self._queue and self._transport is not None and not self._transport.is_closing():
            # what was sent ahead waits in the socket until we are done with what we have
            self._read_paused = True
            self._transport.pause_reading()

    def _keep_for_later(self, data: bytes) -> None:
        """What came behind an offer to speak another protocol is for whoever takes it."""
        last = self._queue[-1] if self._queue else self._current
        if last is not None and last.request.offers and self._transport is not None:
            self._ahead += data
            self._read_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        if self._current is not None:
            # who hangs up wants no answer; a close in order would wait until what is written has been read
            self._abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        self._transport = None
        self.listener.doors.discard(self)
        self.listener.behind.forget(self)
        self._queue.clear()
        current, self._current = self._current, None
        if current is None:
            return
        if current.stream is not None:
            current.stream.close()
            current.stream = None
        elif current.is_under_way:
            current.cancel()
        self._log(current, "left")

    def pause_writing(self) -> None:
        self._write_paused = True
        self.listener.fell_behind(self)
        if self._current is not None and self._current.stream is not None:
            self._current.stream.pause()

    def resume_writing(self) -> None:
        self._write_paused = False
        self.listener.behind.forget(self)
        if self._current is None:
            self._next()
        elif self._current.stream is not None:
            self._current.stream.resume()

    # --- reading ---------------------------------------------------------------------------------------------------

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
        entry, path = self.listener.claimed(head)
        if entry is None or length > entry.body_bytes_max:
            return False
        self._dry_bytes = 0
        self._since = self._heard_at
        self._take_request(head, entry, path, data[at:])
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
            raise BadRequest(f"the request's body is larger than {self._body_bytes_max()} bytes", status=413)
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
            raise BadRequest(f"the request's body is larger than {self._body_bytes_max()} bytes", status=413)
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

    def _take_request(self, head: RequestHead, entry: Entry | None, path: bytes, body: bytes) -> None:
        """A whole request: it is served when those before it have been."""
        listener = self.listener
        request = Request(head.method, head.target, head.headers, body, head.remembered, path)
        request.hop = self._hop
        exchange = Exchange(self, head.id or listener.new_id(), request, entry, head, self._heard_at)
        if entry is None:
            exchange.prepared = self._unrouted(head.path)
        # nobody here reads on behind an offer to speak another protocol before it is known who took it
        if head.offers and not body:
            request.offers = True
        self._deaf = request.offers or not head.keep_alive
        self._phase = "busy"
        if self._current is None and not self._queue:
            self._begin(exchange)
        else:
            self._queue.append(exchange)
            if self._current is None:
                self._next()

    def _body_bytes_max(self) -> int:
        return self._entry.body_bytes_max if self._entry else self.listener.limits.body_bytes_max

    def _say_continue(self) -> None:
        if self._continue_owed:
            self._continue_owed = False
            self._since = self._body_began = self.now()
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    # --- serving ---------------------------------------------------------------------------------------------------

    def _next(self) -> None:
        if self._current is not None or self._transport is None or self._transport.is_closing() or self._write_paused:
            return
        if not self._queue:
            if self._phase == "busy":
                self._phase = "idle"
                self._since = self.listener.clock()
            if self._continue_owed:
                self._say_continue()
            if self._read_paused:
                self._resume_reading()
            return
        self._begin(self._queue.popleft())

    def _begin(self, exchange: Exchange) -> None:
        if self._write_paused or self._transport is None or self._transport.is_closing():
            self._queue.appendleft(exchange)
            return
        self._current = exchange
        if exchange.prepared is not None:
            self._send_answer(exchange, exchange.prepared)
        else:
            exchange.start(self._serve(exchange))

    async def _serve(self, exchange: Exchange) -> None:
        entry = exchange.entry
        assert entry is not None
        try:
            dialect = entry.dialect
            call = exchange.call = dialect.read(exchange.request)
            call.dialect = dialect.name
            call.route = entry.name
            call.born = exchange.started
            call.id = exchange.id
            answer = await entry.service(call)
        except BadRequest as bad:
            answer = entry.dialect.error(bad.status, "bad_request", bad.detail)
        except Refused as refused:
            answer = apology(entry.dialect, 503, refused.reason, refused.detail, refused.retry_after_s)
        except Failed as failed:
            status = 504 if failed.reason in ("deadline", "first_byte_timeout", "connect_timeout") else 502
            answer = apology(entry.dialect, status, failed.reason, failed.detail, failed.retry_after_s)
        except asyncio.CancelledError:
            if not exchange.overdue:
                raise
            answer = apology(entry.dialect, 504, "deadline", "no tier answered by the deadline", None)
        except Exception:
            log.exception("an error of our own on route %s", entry.name)
            answer = entry.dialect.error(500, "internal", "an error of the sidecar's own; its log says more")
        if self._current is not exchange:
            if answer.stream is not None:
                answer.stream.close()
            return
        try:
            self._send_answer(exchange, answer)
        except Exception:
            log.exception("an answer on route %s could not be sent", entry.name)
            if answer.stream is not None:
                answer.stream.close()
            self._abort()

    def _send_answer(self, exchange: Exchange, answer: Answer) -> None:
        exchange.answer = answer
        if self.listener.leaving:
            exchange.keep_alive = False
        stream = answer.stream
        if stream is None:
            body = answer.body
            if exchange.is_plain and answer.status == 200 and not answer.reason and len(body) <= JOINED_BYTES_MAX:
                exchange.body_bytes = len(body)
                self.send(exchange.plain(answer, body))
                self.finished(exchange, "done")
                return
            body = b"" if body_is_absent(exchange.request.method, answer.status) else body
            head = exchange.head(answer, len(answer.body))
            exchange.body_bytes = len(body)
            if len(body) <= JOINED_BYTES_MAX:
                self.send(head + body)
            elif self._transport is not None and not self._transport.is_closing():
                self._transport.writelines((head, body))
            self.finished(exchange, "done")
        elif isinstance(stream, Tunnel):
            self._switch(exchange, answer, stream)
        elif body_is_absent(exchange.request.method, answer.status):
            stream.close()
            self.send(exchange.head(answer, stream.length))
            self.finished(exchange, "done")
        else:
            if stream.length is None:
                exchange.chunked = exchange.version == "1.1"
                exchange.keep_alive = exchange.keep_alive and exchange.chunked
            self.send(exchange.head(answer, stream.length))
            exchange.stream = stream
            if self._write_paused:
                stream.pause()
            stream.relay(exchange)

    def _switch(self, exchange: Exchange, answer: Answer, tunnel: Tunnel) -> None:
        """The upstream took the offer: tell the caller so, and step out of the way."""
        assert exchange.entry is not None
        assert self._transport is not None
        exchange.keep_alive = True
        self.send(exchange.head(answer, None))
        exchange.keep_alive = False
        exchange.stream = tunnel
        tally = exchange.entry.tally
        tally.in_flight += 1
        tunnel.watch(lambda _end: setattr(tally, "in_flight", tally.in_flight - 1))
        ahead, self._ahead, self._read_paused = self._ahead, b"", False
        tunnel.join(self._transport, self.connection_lost, exchange, ahead, write_paused=self._write_paused)

    def _go_on(self, exchange: Exchange) -> None:
        """The offer was declined: what came behind it is HTTP after all."""
        self._deaf = not exchange.keep_alive
        if self._deaf:
            self._ahead = b""
        elif self._ahead:
            self.listener.loop.call_soon(self._read_ahead)

    def _read_ahead(self) -> None:
        ahead, self._ahead = self._ahead, b""
        self.data_received(ahead)

    @property
    def steps(self) -> Steps:
        return self.listener.steps

    def now(self) -> float:
        """Seconds on the listener's clock."""
        return self.listener.clock()

    def send(self, data: bytes) -> None:
        """Write to the caller, if there still is one."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def finished(self, exchange: Exchange, end: str, *, abort: bool = False) -> None:
        """The answer is out, or will never be; on to what comes next."""
        if self._current is not exchange:
            return
        self._current = None
        exchange.stream = None
        self._log(exchange, end)
        if exchange.request.offers:
            self._go_on(exchange)
        if abort:
            self._abort()
        elif not exchange.keep_alive:
            self._close_gently()
        elif self._queue:
            # by way of the loop: many may have been sent ahead, and each would stand on the one before
            self.listener.loop.call_soon(self._next)
        else:
            self._next()

    # --- ending ----------------------------------------------------------------------------------------------------

    def check_clocks(self, now: float) -> None:
        """Close what has been idle or slow for too long, and interrupt a call that has outlived its deadline."""
        limits = self.listener.limits
        if self._takes_nothing(now, limits.idle_s):
            self._abort()
            return
        current = self._current
        if current is not None:
            stream, call = current.stream, current.call
            if isinstance(stream, Tunnel) and now - stream.heard_at > limits.tunnel_idle_s:
                stream.over("cut")
                return
            if call is not None and current.stream is None and current.is_under_way and now > call.deadline + OVERDUE_S:
                current.overdue = True
                current.cancel()
            return
        waited_s = now - self._since
        if self._phase == "head" and waited_s > limits.head_s:
            self._refuse(408, "head_timeout", "the request's head took too long")
        elif self._phase == "body" and (waited_s > limits.body_s or self._drips(now)):
            self._refuse(408, "body_timeout", "the request's body took too long")
        elif (self._phase == "idle" and waited_s > limits.idle_s) or (
            self._phase == "lingering" and waited_s > LINGER_S
        ):
            self._abort()

    def _drips(self, now: float) -> bool:
        """Whether the body comes too slowly: each stretch of it buys only so much more time."""
        limits = self.listener.limits
        come_bytes = sum(map(len, self._body))
        return now - self._body_began > limits.body_s + come_bytes / limits.body_bytes_per_s_min

    def _takes_nothing(self, now: float, patience_s: float) -> bool:
        """Whether nothing of what we have written was taken for that long: who reads so must not hold an upstream."""
        unsent_bytes = self.unsent_bytes
        if unsent_bytes == 0 or unsent_bytes != self._unsent_bytes:
            self._unsent_bytes = unsent_bytes
            self._unsent_since = now
            return False
        return now - self._unsent_since > patience_s

    def _resume_reading(self) -> None:
        if self._read_paused and self._transport is not None:
            self._read_paused = False
            # the pause was ours: it is no slowness of the caller's
            self._since = self._body_began = self.now()
            self._transport.resume_reading()

    @property
    def unsent_bytes(self) -> int:
        """What has been written for the caller and not yet been taken by the kernel."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    abort = _abort

    def drain(self) -> None:
        """Close now if nothing is in hand; otherwise the answer says `connection: close`."""
        if self._current is None and self._phase == "idle" and self._transport is not None:
            self._transport.close()

    def cut_off(self) -> None:
        """Stop whatever is going on: a stream is told so in band."""
        current = self._current
        if current is not None and current.stream is not None:
            current.stream.close()
            current.cut("draining")
        else:
            self._abort()

    def _turn_away(self, transport: asyncio.Transport) -> None:
        """Answer without having read anything, and close: we are full, or on the way out."""
        listener = self.listener
        listener.refused_connections += 1
        reason = "draining" if listener.draining else "connections"
        answer = listener.fallback.error(503, reason, f"no connection is accepted now ({reason})")
        exchange = Exchange(self, listener.new_id(), Request(b"", b"", []), None, None, self._since)
        transport.write(exchange.head(answer, len(answer.body)) + answer.body)
        transport.close()

    def _refuse(self, status: int, reason: str, detail: str) -> None:
        """Answer that the request can't be served, after those before it, and read no more from this connection."""
        self._failing = True
        self._phase = "busy"
        self.listener.bad_requests += 1
        dialect = self._entry.dialect if self._entry else self.listener.fallback
        head = self._head
        request = Request(b"", head.target, head.headers) if head else Request(b"", b"", [])
        given = head.id if head else ""
        exchange = Exchange(self, given or self.listener.new_id(), request, None, None, self.now())
        exchange.prepared = dialect.error(status, reason, detail)
        self._queue.append(exchange)
        if self._current is None:
            self._next()

    def _close_gently(self) -> None:
        if self._transport is None:
            return
        if (self._failing or self._read_paused) and self._transport.can_write_eof():
            # what the caller is still sending is read and dropped for a moment, so that it can read our answer
            self._failing = True
            self._queue.clear()
            self._transport.write_eof()
            self._resume_reading()
            self._phase = "lingering"
            self._since = self.now()
        else:
            self._transport.close()

    def _unrouted(self, path: bytes) -> Answer:
        self.listener.unrouted += 1
        names = ", ".join(self.listener.route_names()) or "none"
        shown = path[:200].decode("latin-1")
        return self.listener.fallback.error(404, "no_route", f"no route claims {shown!r}; the routes are: {names}")

    def _log(self, exchange: Exchange, end: str) -> None:
        if self.listener.logged is not None:
            self.listener.logged(exchange, end)


class Listener(Hall):
    """One address that is listened on: whoever comes to it gets a door."""

    def __call__(self) -> Door:
        return Door(self)
