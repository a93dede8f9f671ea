"""The door callers come in by: requests become calls, answers become bytes, and whoever is too slow is sent away.

One Door a connection. Requests on it are answered strictly in order, one at a time; those that a client has sent ahead
wait parsed, and reading stops until they are served.

    IDLE --first byte--> HEAD --head complete--> BODY --complete--> served in turn --> IDLE (or closed)
"""

from __future__ import annotations

import asyncio
import logging
from typing import cast

from understudy.policies.service import NOWHERE, Answer, Failed, Refused, Request
from understudy.proxy.dialects.base import BadRequest
from understudy.proxy.http.exchange import Entry, Exchange, apology, plain_answer
from understudy.proxy.http.greeter import Greeter
from understudy.proxy.http.hall import Hall
from understudy.proxy.http.heads import body_is_absent
from understudy.proxy.http.incoming import Incoming
from understudy.proxy.http.request_head import RequestHead
from understudy.proxy.http.tunnel import Tunnel

log = logging.getLogger("understudy.door")

JOINED_BYTES_MAX = 64 * 1024
"""An answer's body up to this is copied behind its head: one buffer is cheaper than two."""
LINGER_S = 1.0
"""How long we go on reading after refusing a body, so that the refusal is not lost in a reset."""
OVERDUE_S = 1.0
"""How far past its deadline a call is interrupted wherever it waits: a backstop, since tiers keep `until`."""

GATHERED_BYTES_MAX = 16 * 1024
"""Of what a stream begins with; a long one is for a reader's backpressure."""

LATE = frozenset(("deadline", "first_byte_timeout", "first_content_timeout", "connect_timeout"))
"""What a 504 is said for; everything else that failed is a 502."""
REFUSED_FOR = {431: "head_too_large", 508: "loop"}


class Door(Incoming):
    """One connection from a caller."""

    __slots__ = (
        "_ahead",
        "_deaf",
        "_failing",
        "_gathered",
        "_hop",
        "_read_paused",
        "_transport",
        "_unsent_bytes",
        "_unsent_since",
        "_write_paused",
    )

    def __init__(self, listener: Hall) -> None:
        super().__init__(listener)
        self._transport: asyncio.Transport | None = None
        self._hop = NOWHERE
        self._read_paused = False
        self._write_paused = False
        self._failing = False
        self._deaf = False
        self._ahead = b""
        self._gathered: bytearray | None = None
        """What is written while a stream begins: goes out in one piece, as far as it is short."""
        self._unsent_bytes = 0
        self._unsent_since = self._since

    # --- asyncio's side --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)
        self._transport = transport
        listener = self.listener
        if len(listener.doors) >= listener.limits.connections_max or listener.draining:
            self._turn_away(transport)
            return
        self._hop = listener.hop(transport)
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
        try:
            if self._phase == "idle" and self._known is not None and self._is_known(self._known, data):
                return
            if self._phase != "head":
                self._since = now
            self._read(data)
        except BadRequest as bad:
            self._refuse(bad.status, REFUSED_FOR.get(bad.status, "bad_request"), bad.detail)
        except Exception as error:
            log.error("a request could not be read", exc_info=error)
            self._refuse(500, "internal", "an error of the sidecar's own")
        if self._queue and self._transport is not None and not self._transport.is_closing():
            # what was sent ahead waits in the socket until we are done with what we have
            self._read_paused = True
            self._transport.pause_reading()

    def _read(self, data: bytes) -> None:
        """Read requests, as far as they have come; nothing is read after one that said it was the last."""
        at = 0
        while at < len(data) and not self._failing and not self._deaf:
            at = self._read_head(data, at) if self._head is None else self._read_body(data, at)
        if at < len(data) and not self._failing:
            self._keep_for_later(data[at:])

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
            self.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        self._transport = None
        self.listener.doors.discard(self)
        self.listener.behind.forget(self)
        self._queue.clear()
        current, self._current = self._current, None
        if current is None:
            return
        current.ended = self.listener.clock()
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

    def _is_kept(self, head: RequestHead, entry: Entry, body: bytes) -> bool:
        """What `_take_request` to `finished` come to where the answer is at hand and nobody stands before it: half
        the cost of a hit is what they hand to each other."""
        transport, listener, logged = self._transport, self.listener, self.listener.logged
        if self._current is not None or self._queue or self._write_paused or listener.leaving or self._hop.subject:
            return False
        if transport is None or transport.is_closing() or not head.is_plain or not head.keep_alive:
            return False
        try:
            assert entry.quick_hit is not None
            answer = entry.quick_hit(head.remembered, body, JOINED_BYTES_MAX)
        except Exception:
            log.exception("the cache of route %s could not be asked", entry.name)
            return False
        if answer is None:
            return False
        name = head.id or listener.new_id()
        transport.write(plain_answer(answer, answer.body, name))
        self._since = listener.clock()
        if logged is not None and logged.enabled:
            request = Request(head.method, head.target, head.headers, body, head.remembered)
            request.hop = self._hop
            exchange = Exchange(self, name, request, entry, head, self._heard_at)
            exchange.answer, exchange.body_bytes, exchange.ended = answer, len(answer.body), self._since
            logged(exchange, "done")
        return True

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
        answer = exchange.prepared
        entry = exchange.entry
        if entry is not None and entry.hit is not None:
            answer = self._kept(entry, exchange.request)
        if answer is not None:
            self._send_answer(exchange, answer)
        else:
            exchange.start(self._serve(exchange), self.listener.steps)

    def _kept(self, entry: Entry, request: Request) -> Answer | None:
        """What the route's cache has: answered in the turn in which it is asked, without a call or a coroutine."""
        assert entry.hit is not None
        try:
            return entry.hit(request)
        except Exception:
            log.exception("the cache of route %s could not be asked", entry.name)
            return None

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
            status = 504 if failed.reason in LATE else 502
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
            self.abort()

    def _send_answer(self, exchange: Exchange, answer: Answer) -> None:
        if exchange.is_begun:
            self._send_behind(exchange, answer)
            return
        exchange.answer = answer
        if self.listener.leaving:
            exchange.keep_alive = False
        stream = answer.stream
        if stream is None:
            body = answer.body
            if exchange.is_plain and answer.status == 200 and not answer.reason and len(body) <= JOINED_BYTES_MAX:
                exchange.body_bytes = len(body)
                transport = self._transport
                if transport is not None and not transport.is_closing():
                    if exchange.keep_alive:
                        self.listener.steps.write(transport, exchange.plain(answer, body))
                    else:
                        # the connection is closed behind it, so that it can't wait for others
                        transport.write(exchange.plain(answer, body))
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
            exchange.stream = stream
            if self._write_paused:
                stream.pause()
            # what it was held back for goes out behind its head, in one piece
            self._gathered = bytearray(exchange.head(answer, stream.length))
            stream.relay(exchange)
            self._send_gathered()

    def _send_behind(self, exchange: Exchange, answer: Answer) -> None:
        """Behind a head that went before it, to keep the caller waiting."""
        stream = answer.stream
        if not exchange.introduce(answer):
            if stream is not None:
                stream.close()
            self.finished(exchange, "cut")
            return
        assert stream is not None
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

    def now(self) -> float:
        """Seconds on the listener's clock."""
        return self.listener.clock()

    def send(self, data: bytes) -> None:
        """Write to the caller, if there still is one."""
        if self._gathered is not None:
            self._gathered += data
            if len(self._gathered) > GATHERED_BYTES_MAX:
                self._send_gathered()
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _send_gathered(self) -> None:
        gathered, self._gathered = self._gathered, None
        if gathered is not None:
            self.send(bytes(gathered))

    def finished(self, exchange: Exchange, end: str, *, abort: bool = False) -> None:
        """The answer is out, or will never be; on to what comes next."""
        self._send_gathered()
        if self._current is not exchange:
            return
        self._current = None
        exchange.stream = None
        exchange.ended = self._since = self.listener.clock()
        self._log(exchange, end)
        if exchange.request.offers:
            self._go_on(exchange)
        if abort:
            self.abort()
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
            self.abort()
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
            entry = current.entry
            if entry is not None and entry.keep_alive_s and not self._write_paused:
                current.keep_up(now, entry.keep_alive_s)
            return
        waited_s = now - self._since
        if self._phase == "head" and waited_s > limits.head_s:
            self._refuse(408, "head_timeout", "the request's head took too long")
        elif self._phase == "body" and (waited_s > limits.body_s or self._drips(now)):
            self._refuse(408, "body_timeout", "the request's body took too long")
        elif (self._phase == "idle" and waited_s > limits.idle_s) or (
            self._phase == "lingering" and waited_s > LINGER_S
        ):
            self.abort()

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

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

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
            self.abort()

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

    def door(self) -> Door | Greeter:
        """The door of who comes now."""
        return Door(self) if self.tls is None else Greeter(self, Door(self))
