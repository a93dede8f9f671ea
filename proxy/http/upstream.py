"""A keep-alive connection to an upstream: a request goes out, and its answer comes back whole or primed.

    connect --> IDLE --send--> BUSY --whole answer, keep-alive--> IDLE (pooled, last in first out)
                                 |
                                 +--primed stream--> STREAMING --end, keep-alive--> IDLE
                                 +--anything else--> closed

An answer is held back until it is whole (`held_bytes_max`), so that a broken one can still be asked for elsewhere; what
is longer, or made of events, is handed over as a stream once its first content is in hand. A request that met a
connection the upstream had already given up is the caller's to repeat: `DeadConnection` says that not one byte of an
answer was seen.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

import httptools

from understudy.policies.service import Answer, Failed
from understudy.policies.streaming import Clocks, Held, Watch
from understudy.proxy.http.chunked import feed_whole_chunks
from understudy.proxy.http.heads import body_is_absent, trailer_line
from understudy.proxy.http.response_head import ResponseHead, check_status_line, whole_head
from understudy.proxy.http.stepping import Steps, Waiter
from understudy.proxy.http.tunnel import OFFERED, UPGRADE_LINES, Tunnel
from understudy.proxy.http.upstream_stream import PRIMING_BYTES_MAX, Reading, UpstreamStream

HEAD_BYTES_MAX = 64 * 1024
PASSED_WHOLE_BYTES_MAX = 64 * 1024
ERROR_WHOLE_BYTES_MAX = 1024 * 1024
"""An error is held whole up to here even where other answers are streamed: it may be wanted once all tiers failed."""


JOINED_BYTES_MAX = 64 * 1024
"""A body up to this is copied behind its head: one buffer is cheaper than two."""


_TO_WHAT_WAS_OFFERED = re.compile(rb"\r\nupgrade:[ \t]*" + OFFERED + rb"[ \t]*\r\n", re.IGNORECASE)


class DeadConnection(Exception):
    """The connection was lost before any byte of an answer."""


class Terms(NamedTuple):
    """What is asked of an answer: the same for every call of a kind to an upstream.

    An answer of up to `hold_bytes_max` is awaited whole, unless it is handed over at its head already; `reading` knows
    first content when it sees it; `offers` says that the request would go on as a WebSocket. `clocks` is what a stream
    of events is held to; without them, it is handed over at its first content.
    """

    reading: Reading | None
    hold_bytes_max: int
    stream_at_head: bool = False
    offers: bool = False
    clocks: Clocks | None = None


NOTHING_ASKED = Terms(None, 0)


class Owner(Protocol):
    """What a connection needs of the pool it belongs to."""

    loop: asyncio.AbstractEventLoop
    clock: Callable[[], float]
    steps: Steps

    def give_back(self, connection: Connection) -> None: ...
    def lost(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """One connection: at most one exchange at a time. Callbacks named `on_*` are httptools'."""

    __slots__ = (
        "_answer_bytes",
        "_began",
        "_body",
        "_body_bytes",
        "_dry_bytes",
        "_due",
        "_due_is_callers",
        "_head",
        "_head_bytes",
        "_head_is_done",
        "_held",
        "_hold_bytes_max",
        "_is_between_chunks",
        "_known",
        "_method",
        "_news",
        "_parser",
        "_paused",
        "_pool",
        "_reading",
        "_skip_interim",
        "_stream",
        "_terms",
        "_timer",
        "_timer_due",
        "_transport",
        "_until",
        "_waiter",
        "heard_at",
        "idle_since",
        "retire_at",
        "uses",
    )

    def __init__(self, pool: Owner) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: Waiter[Answer] | None = None
        # who is to be told what, once the parser is out of the way: whoever goes on may use this very connection
        self._news: tuple[Waiter[Answer], Answer | Exception] | None = None
        self._stream: UpstreamStream | None = None
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = float("inf")
        self._due = 0.0
        self._due_is_callers = False
        self._began = 0.0
        self._until = float("inf")
        self._held: Held | None = None
        self._terms = NOTHING_ASKED
        self._method = b""
        # the last ordinary head: services that say the same again are known by it
        self._known: ResponseHead | None = None
        self.uses = 0
        self.idle_since = 0.0
        self.retire_at = float("inf")
        self.heard_at = 0.0
        self._reset()

    def _reset(self) -> None:
        """Ready for the parser to read another answer."""
        self._reading = self._terms.reading
        self._hold_bytes_max = self._terms.hold_bytes_max
        self._head: ResponseHead | None = None
        self._held = None
        self._head_bytes = b""
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._answer_bytes = 0
        self._dry_bytes = 0
        self._skip_interim = False
        self._head_is_done = False
        self._is_between_chunks = False

    # --- the exchange ----------------------------------------------------------------------------------------------

    def send(
        self,
        method: bytes,
        head: bytes,
        body: bytes,
        terms: Terms,
        due: float = float("inf"),
        *,
        due_is_callers: bool = False,
    ) -> Waiter[Answer]:
        """Write a request; the waiter is told its Answer, or fails with Failed or DeadConnection.

        An answer whose first content has not come when the pool's clock says `due` has Failed: `first_byte_timeout`,
        or, where it is the caller who waits no longer, `deadline`, which says less of the upstream and is soft. Whoever
        stops waiting says so with `let_go`.
        """
        waiter: Waiter[Answer] = Waiter(self._pool.loop)
        transport = self._transport
        if transport is None:
            # accepted and closed again before we came to use it
            waiter.fail(DeadConnection("the connection was closed before it was used"))
            return waiter
        self._method = method
        self._terms = terms
        self._waiter = waiter
        self._answer_bytes = 0
        self.uses += 1
        self._due = due
        self._due_is_callers = due_is_callers
        if due < self._timer_due:
            self._expect_by(due)
        if len(body) <= JOINED_BYTES_MAX:
            self._pool.steps.write(transport, head + body if body else head)
        else:
            transport.writelines((head, body))
        return waiter

    def time(self, began: float, until: float) -> None:
        """The stream that was just asked for, at `began`, is on the clocks of its terms; its caller waits `until`."""
        self._began = began
        self._until = until

    def _expect_by(self, due: float) -> None:
        """See to it that `_ring` is called by then. A connection keeps one timer over its exchanges, and sets it anew
        only when it would ring too late: on a busy connection a timer costs nothing."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._pool.loop.call_later(max(0.0, due - self._pool.clock()), self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._timer_due = float("inf")
        if self._waiter is None and (self._stream is None or self._stream.watch_on is None):
            return
        now = self._pool.clock()
        # the loop's clock counts in milliseconds, and may be that much ahead of ours
        if self._due - now > 0.001:
            self._expect_by(self._due)
        elif self._stream is not None:
            self._look(self._stream, now)
        elif self._held is not None:
            self._hold_on(self._held, now)
        elif self._due_is_callers:
            self._give_up(Failed("deadline", "no answer in time (deadline)", soft=True))
        else:
            self._give_up(Failed("first_byte_timeout", "no answer in time (first_byte_timeout)"))

    def _look(self, stream: UpstreamStream, now: float) -> None:
        """A stream that was handed over: does it still say something?"""
        try:
            self._due = stream.look(now, self.heard_at, listening=not self._paused)
        except Failed as failed:
            self._give_up(failed)
        else:
            self._expect_by(self._due)

    def _hold_on(self, held: Held, now: float) -> None:
        """A stream that is held back: its time is up, or something has come meanwhile that put it off."""
        try:
            is_over = held.due <= now + 0.001 and held.rung(max(now, held.due), self.heard_at)
        except Failed as failed:
            self._give_up(failed)
            return
        if is_over:
            self._become_stream(self._parser.get_status_code())
            self._spread_news()
        else:
            self._due = held.due
            self._expect_by(held.due)

    def let_go(self, waiter: Waiter[Answer]) -> None:
        """Nobody wants the answer of `waiter` any more. The connection may be serving somebody else by now."""
        if self._waiter is waiter:
            self.abort()
        elif waiter.answered is not None and waiter.answered.stream is not None:
            waiter.answered.stream.close()

    def stall(self) -> None:
        """The upstream has fallen silent in the middle of a stream."""
        self._give_up(Failed("stalled", "the upstream fell silent"))

    def _give_up(self, failed: Failed) -> None:
        self._fail(failed)
        self.abort()
        self._spread_news()

    def abort(self) -> None:
        """Close at once, whatever is going on."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def tls_object(self) -> object:
        """What TLS is spoken by, if it is."""
        return self._transport.get_extra_info("ssl_object") if self._transport is not None else None

    # --- asyncio's side --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.heard_at = self._pool.clock()

    def data_received(self, data: bytes) -> None:
        if self._waiter is None and self._stream is None:
            # bytes nobody asked for: whatever follows on this connection can't be told apart
            self.abort()
            return
        self.heard_at = self._pool.clock()
        if self._waiter is not None and not self._answer_bytes:
            if self._is_plain(self._waiter, data):
                return
            self._reset()
        self._answer_bytes += len(data)
        self._dry_bytes += len(data)
        if not self._head_is_done:
            self._head_bytes = self._head_bytes + data if self._head_bytes else data
        try:
            if self._is_between_chunks and self._stream is not None:
                # the parser would have called back three times for each
                data = data[feed_whole_chunks(data, self._stream) :]
                if not data:
                    self._dry_bytes = 0
                    return
            self._is_between_chunks = False
            self._parser.feed_data(data)
            # behind a chunk there may stand the first bytes of the next one's length
            self._is_between_chunks = self._is_between_chunks and data.endswith(b"\r\n")
        except httptools.HttpParserUpgrade as switched:
            self._switch(data[cast("int", switched.args[0]) :])
        except Failed as failed:
            self._fail(failed)
            self.abort()
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, Failed):
                self._fail(cause)
                self.abort()
            else:
                self._break("garbage")
        if self._dry_bytes > HEAD_BYTES_MAX:
            # a head, or trailers, without an end: what the parser has of the current line is in nobody's books
            self._fail(Failed("head_too_large", "the answer's head is too large"))
            self.abort()
        if self._news is not None:
            self._spread_news()

    def _is_plain(self, waiter: Waiter[Answer], data: bytes) -> bool:
        """Whether this is a plain answer, the whole of it and nothing else: then it is handed over.

        What most answers are needs no parser, which would have called back three times (2 µs).
        """
        head = self._known
        if head is None or not data.startswith(head.raw):
            head = self._known = whole_head(data)
        if head is None or not head.is_plain:
            return False
        at = len(head.raw)
        if len(data) - at != head.length or len(data) - at > self._terms.hold_bytes_max or self._method == b"HEAD":
            return False
        self._waiter = None
        if self._transport is not None and self._transport.get_write_buffer_size() == 0:
            self._pool.give_back(self)
        else:
            # it came before its request was all sent: the rest would stand before the next one
            self.abort()
        waiter.tell(Answer(head.status, None, data[at:], block=head.block, packed=head.packed))
        return True

    def _spread_news(self) -> None:
        """Tell who waits. They go on at once, so nothing of this exchange may be left to do."""
        news, self._news = self._news, None
        if news is not None:
            waiter, what = news
            if isinstance(what, Answer):
                waiter.tell(what)
            else:
                waiter.fail(what)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pool.lost(self)
        if self._stream is not None or self._waiter is not None:
            self._lost_in_exchange(exc)
        self._spread_news()

    def pause(self) -> None:
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            # a slow reader's pause is not the upstream's silence
            self.heard_at = self._pool.clock()
            self._transport.resume_reading()

    def silent_for(self, now: float) -> float:
        """Seconds since a streaming upstream last said anything, while we were listening."""
        stream = self._stream
        # one that is on clocks of its own has a timer
        return 0.0 if self._paused or stream is None or stream.watch_on is not None else now - self.heard_at

    # --- httptools' side -------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._waiter is None:
            raise Failed("garbage", "an answer to nothing")
        self._skip_interim = False

    def on_headers_complete(self) -> None:
        # llhttp has found the head sound; where it ends is ours to say, and must be the same place
        end = self._head_bytes.find(b"\r\n\r\n") + 4
        if not 4 <= end <= HEAD_BYTES_MAX:
            reason = "head_too_large" if end > HEAD_BYTES_MAX else "garbage"
            raise Failed(reason, "the answer's head is too large, or has no end")
        raw, self._head_bytes = self._head_bytes[:end], self._head_bytes[end:]
        if not raw.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")) or raw[9] == 0x30:
            # llhttp passes over empty lines in front, which to us would be the whole head, and over a status of 099
            raise Failed("garbage", "the answer does not begin with a status line")
        status = self._parser.get_status_code()
        self._dry_bytes = 0
        if status < 200:
            check_status_line(raw.partition(b"\r\n")[0])
            self._skip_interim = True
            if status == 101:
                self._switching(raw)
            return
        self._head_is_done = True
        rest, self._head_bytes = self._head_bytes, b""
        known = self._known
        # what a HEAD is answered with is changed below, and what is known must stay what it is
        is_known = known is not None and known.raw == raw and self._method != b"HEAD"
        head = self._head = known if known is not None and is_known else ResponseHead(raw)
        if head.packed:
            # nobody can read what is packed: it is passed on as it comes
            self._reading = None
        if body_is_absent(self._method, status):
            # whatever stands behind it already, nobody asked for
            head.framed = not rest
            if self._method == b"HEAD":
                # llhttp would wait for the body that the head speaks of
                self._complete()
            return
        if status >= 400:
            self._hold_bytes_max = max(self._hold_bytes_max, ERROR_WHOLE_BYTES_MAX)
        clocks = self._terms.clocks
        if clocks is not None and status < 400 and self._is_timed(clocks, head, status):
            return
        whole = head.length is not None and head.length <= self._hold_bytes_max
        if not whole and status < 400 and (self._terms.stream_at_head or (head.length or 0) > self._hold_bytes_max):
            self._become_stream(status)

    def _is_timed(self, clocks: Clocks, head: ResponseHead, status: int) -> bool:
        """Whether it is a stream that is held back, or handed over at once; its next clock is running."""
        due = self._began + clocks.first_content_s
        self._due, self._due_is_callers = min(due, self._until), self._until < due
        if head.events and not clocks.holds:
            self._become_stream(status)
        elif head.events and self._reading is not None:
            self._held = Held(clocks, self._reading, self._began, self._until)
        if self._due < self._timer_due:
            self._expect_by(self._due)
        return head.events and (self._held is not None or self._stream is not None)

    def on_header(self, name: bytes, value: bytes) -> None:
        # those of the head are read from its bytes, all at once; what comes behind a body is read here
        if self._head_is_done and self._stream is not None:
            self._stream.trailers += trailer_line(name, value)

    def on_body(self, piece: bytes) -> None:
        self._dry_bytes = 0
        stream = self._stream
        if stream is not None:
            stream.feed(piece)
            return
        if self._waiter is None:
            # the body of an answer that has none: what follows it can't be told apart
            self.abort()
            return
        self._body.append(piece)
        held = self._held
        if held is not None:
            if held.take(piece, self.heard_at):
                self._become_stream(self._parser.get_status_code())
            elif held.due < self._timer_due:
                self._due = held.due
                self._expect_by(held.due)
            return
        self._body_bytes += len(piece)
        if self._body_bytes > self._hold_bytes_max or (self._events() and self._content_has_come()):
            self._become_stream(self._parser.get_status_code())

    def on_chunk_header(self) -> None:
        self._is_between_chunks = False

    def on_chunk_complete(self) -> None:
        self._is_between_chunks = True

    def on_message_complete(self) -> None:
        if self._skip_interim:
            return
        if self._stream is not None or self._waiter is not None:
            self._complete()

    def _switching(self, raw: bytes) -> None:
        """A 101: from its end on the connection speaks another protocol, which must be the one that was offered."""
        if not self._terms.offers or not _TO_WHAT_WAS_OFFERED.search(raw):
            raise Failed("upgrade", "the upstream switched protocols unasked")
        self._head = ResponseHead(raw)
        self._head_is_done = True

    def _switch(self, rest: bytes) -> None:
        waiter, head, transport = self._waiter, self._head, self._transport
        if not self._terms.offers or waiter is None or waiter.done or head is None or transport is None:
            self._break("upgrade")
            return
        self._waiter = None
        pool = self._pool
        tunnel = Tunnel(transport, self.connection_lost, rest, loop=pool.loop, clock=pool.clock)
        self._news = (waiter, Answer(101, None, block=head.block + UPGRADE_LINES, stream=tunnel))

    # --- what becomes of it ----------------------------------------------------------------------------------------

    def _events(self) -> bool:
        return self._head is not None and self._head.events

    def _content_has_come(self) -> bool:
        if self._parser.get_status_code() >= 400:
            # an error is short, whatever it calls itself: it is wanted whole
            return False
        if self._reading is None or self._body_bytes >= PRIMING_BYTES_MAX:
            return True
        return self._reading.primed(b"".join(self._body)) == "go"

    def _become_stream(self, status: int) -> None:
        waiter, head = self._waiter, self._head
        if waiter is None or head is None or waiter.done:
            return
        stream = self._stream = UpstreamStream(self, head.length, self._reading, events=head.events)
        clocks, held, self._held = self._terms.clocks, self._held, None
        if clocks is not None and head.events:
            stream.watch_on = Watch(clocks, self._began, held.content_at if held is not None else None)
            self._due = stream.watch_on.next_look(self.heard_at)
            if self._due < self._timer_due:
                self._expect_by(self._due)
        for piece in self._body:
            stream.hold(piece)
        self._body = []
        self._waiter = None
        self._news = (waiter, Answer(status, None, block=head.block, packed=head.packed, stream=stream))

    def _complete(self) -> None:
        head = self._head
        assert head is not None
        if self._held is not None and self._held.content_at is not None:
            # it came to its end while it was held back
            self._become_stream(self._parser.get_status_code())
        self._held = None
        keep = head.framed and self._parser.should_keep_alive()
        status = self._parser.get_status_code()
        if self._method == b"HEAD":
            # the parser is in the middle of a body that will not come; a new one begins clean
            self._parser = httptools.HttpResponseParser(self)
        stream, self._stream = self._stream, None
        waiter, self._waiter = self._waiter, None
        self._paused_off()
        if keep and self._transport is not None and self._transport.get_write_buffer_size() == 0:
            self._pool.give_back(self)
        else:
            # also after an answer that came before its request was all sent: the rest would stand before the next one
            self.abort()
        if stream is not None:
            stream.over("")
        elif waiter is not None:
            self._news = (waiter, self._whole_answer(status, head))

    def _whole_answer(self, status: int, head: ResponseHead) -> Answer:
        block = head.block
        if head.length is not None and (self._method == b"HEAD" or status == 304):
            block += b"content-length: %d\r\n" % head.length
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        return Answer(status, None, body, block=block, packed=head.packed)

    def _paused_off(self) -> None:
        if self._paused:
            self.resume()

    def _break(self, reason: str) -> None:
        self._fail(Failed(reason, "the upstream's answer is not HTTP"))
        self.abort()

    def _fail(self, failed: Failed) -> None:
        stream, self._stream = self._stream, None
        waiter, self._waiter = self._waiter, None
        if stream is not None:
            stream.over(failed.reason)
        elif waiter is not None:
            self._news = (waiter, failed)

    def _lost_in_exchange(self, exc: Exception | None) -> None:
        if self._answer_bytes == 0:
            waiter, self._waiter = self._waiter, None
            if waiter is not None:
                self._news = (waiter, DeadConnection("the connection was lost before any byte of an answer"))
        elif self._head is not None and not self._head.framed and exc is None:
            # the end of the connection is the end of the body: there is no other mark
            self._complete()
        else:
            self._fail(Failed("truncated", "the upstream broke off in the middle of its answer"))
