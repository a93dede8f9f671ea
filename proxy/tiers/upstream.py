"""The upstream tier: forward a call to the service behind us, and tell its failures from its answers."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable, Sequence
from typing import Protocol
from urllib.parse import urlsplit

from understudy.policies.service import Answer, Call, Failed, Headers, Request, Service, Stream
from understudy.policies.streaming import Clocks, named_like
from understudy.proxy.dialects.base import Dialect
from understudy.proxy.dialects.generating import model_asked
from understudy.proxy.http.forwarding import FORWARDED_FOR, TRACE, Marks, forwarded_for, trace_of
from understudy.proxy.http.heads import IDEMPOTENT, NOT_FORWARDED, kept, takes_trailers
from understudy.proxy.http.names import Resolve
from understudy.proxy.http.pool import Pool
from understudy.proxy.http.resuming import resuming_context
from understudy.proxy.http.stepping import Steps
from understudy.proxy.http.tunnel import UPGRADE_LINES
from understudy.proxy.http.unix import UnixPool
from understudy.proxy.http.upstream import PASSED_WHOLE_BYTES_MAX, Connection, DeadConnection, Terms
from understudy.proxy.http.upstream_stream import UpstreamStream
from understudy.proxy.peeks import Peek
from understudy.proxy.settings.settings import Tls, UpstreamTier
from understudy.proxy.settings.stream import Patience, Streaming
from understudy.proxy.tiers.judging import Judge, tier_judge

BODY_METHODS = frozenset((b"POST", b"PUT", b"PATCH"))


WRITE_WHOLE_BYTES_MAX = 8 * 1024 * 1024
"""What a database answers to a write is read up to here, and says what of it came about: a bulk of 10,000 documents is
answered with 2 MB."""
NO_MARKS = Marks()


class Front:
    """As much of a request's head as follows from the caller's head alone."""

    __slots__ = ("forwarded_for", "lines", "untraced")

    def __init__(self, lines: bytes, forwarded_for: bytes, *, untraced: bool) -> None:
        self.lines = lines
        self.forwarded_for = forwarded_for
        self.untraced = untraced


class Target:
    """Where an upstream tier's requests go, worked out once from its settings."""

    __slots__ = ("base_path", "host", "host_header", "marks", "overridden", "own_headers", "port", "tls")

    def __init__(self, settings: UpstreamTier, marks: Marks = NO_MARKS) -> None:
        self.marks = marks
        url = urlsplit(settings.url)
        self.tls = url.scheme == "https"
        self.host = url.hostname or ""
        self.port = url.port or (443 if self.tls else 80)
        self.host_header = url.netloc.encode()
        self.base_path = url.path.rstrip("/").encode()
        self.own_headers: Headers = [
            (name.encode(), value.reveal().encode()) for name, value in settings.headers.items()
        ]
        self.overridden = NOT_FORWARDED | {name.lower() for name, _ in self.own_headers} | {b"x-request-id"}

    def head(self, call: Call) -> bytes:
        """The request head as this upstream gets it: the caller's headers less what belongs to each hop, and ours."""
        request = call.request
        remembered = request.remembered
        if call.span is not None and call.span.parent is not None:
            # the caller's span is the one above ours, and ours the one above theirs: a head like this comes but once
            front = self._front(request, between=True)
        else:
            known: Front | None = None if remembered is None else remembered.get(self)
            front = known or self._front(request)
            if known is None and remembered is not None:
                remembered[self] = front
        tail = b"\r\n"
        if front.untraced:
            if not call.trace:
                call.trace = self.marks.new_trace()
            tail = b"traceparent: %b\r\n\r\n" % call.trace.encode()
        if front.forwarded_for and request.hop.address:
            tail = b"%b%b\r\n%b" % (front.forwarded_for, request.hop.address, tail)
        if request.offers and call.kind == "pass":
            tail = UPGRADE_LINES + tail
        if request.body or request.method in BODY_METHODS:
            length = len(request.body)
            return b"%bcontent-length: %d\r\nx-request-id: %b\r\n%b" % (front.lines, length, call.id.encode(), tail)
        return b"%bx-request-id: %b\r\n%b" % (front.lines, call.id.encode(), tail)

    def _front(self, request: Request, *, between: bool = False) -> Front:
        """What follows from a request's head alone; `between` says that a span of ours stands after the caller's."""
        # also an empty query is the caller's own
        _, mark, query = request.target.partition(b"?")
        target = self.base_path + request.path + mark + query
        appends = self.marks.forwarded == "append" and FORWARDED_FOR not in self.overridden and request.hop.address
        traced = trace_of(request.headers) is not None
        dropped = self.overridden | {FORWARDED_FOR} if appends else self.overridden
        if not traced and self.marks.trace == "make":
            # what the caller has of a trace is broken: ours begins another
            dropped |= TRACE
        elif between:
            dropped |= {b"traceparent"}
        way = [header for header in self.marks.of_the_way(request) if header[0] not in self.overridden]
        if takes_trailers(request.headers):
            way += [(b"te", b"trailers"), (b"connection", b"te")]
        lines = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (request.method, target, self.host_header)]
        lines += [b"%b: %b\r\n" % header for header in (*kept(request.headers, dropped), *way, *self.own_headers)]
        untraced = between or (not traced and self.marks.trace == "make")
        untraced = untraced and b"traceparent" not in self.overridden
        return Front(b"".join(lines), forwarded_for(request) if appends else b"", untraced=untraced)


def tls_context(tls: Tls) -> ssl.SSLContext:
    """How an https upstream is trusted. Raises OSError or ssl.SSLError for an unusable `ca_file`."""
    context = resuming_context(tls.ca_file)
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def make_pool(
    settings: UpstreamTier,
    loop: asyncio.AbstractEventLoop,
    clock: Callable[[], float],
    *,
    dice: Callable[[], float] = random.random,
    resolve: Resolve | None = None,
    steps: Steps | None = None,
) -> Pool:
    """The connections to a tier's upstream; the first is opened by the first call. `steps` are those of the loop, by
    which requests go out together."""
    target = Target(settings)
    kind = UnixPool if settings.socket else Pool
    pool = kind(
        loop,
        # behind a Unix socket there is no name to resolve
        "127.0.0.1" if settings.socket else target.host,
        target.port,
        tls=tls_context(settings.tls) if target.tls else None,
        server_name=settings.tls.server_name or target.host,
        connections_max=settings.connections_max,
        wait_s_max=settings.pool_wait_s,
        idle_s=settings.idle_s,
        connection_s_max=settings.connection_s_max,
        dns_s=settings.dns_s,
        clock=clock,
        dice=dice,
        resolve=resolve,
        steps=steps,
    )
    if isinstance(pool, UnixPool):
        pool.path = settings.socket or ""
    return pool


class Connections(Protocol):
    """What the tier needs of a pool."""

    def take(self) -> Connection | None: ...
    async def connect(self, wait_s: float) -> Connection: ...
    def give_back(self, connection: Connection) -> None: ...


def upstream_tier(
    settings: UpstreamTier,
    dialect: Dialect,
    pool: Connections,
    clock: Callable[[], float],
    marks: Marks = NO_MARKS,
    judge: Judge | None = None,
    *,
    holds: bool = True,
    peek: Peek | None = None,
) -> Service:
    """A Service that asks the upstream. Raises Failed; what is one is for `judge` to say (by the table that ships,
    unless given), and an upstream's own error answer is attached. Without `holds` nobody else could answer: a stream is
    handed over at its head. `peek` looks at an answer now and then."""
    judge = judge or tier_judge(None, settings, dialect)
    return _Upstream(settings, dialect, pool, clock, marks, judge, peek or Peek(), holds=holds).answer


class _Upstream:
    """One endpoint of an upstream, and what is the same for all calls to it."""

    def __init__(
        self,
        settings: UpstreamTier,
        dialect: Dialect,
        pool: Connections,
        clock: Callable[[], float],
        marks: Marks,
        judge: Judge,
        peek: Peek,
        *,
        holds: bool,
    ) -> None:
        self.dialect = dialect
        self.peek = peek
        self.pool = pool
        self.clock = clock
        self.judge = judge
        self.target = Target(settings, marks)
        self.name = settings.name
        self.connect_s = settings.connect_s
        self.first_byte_s = settings.first_byte_s
        self.usual = Terms(dialect, settings.held_bytes_max)
        clocks = clocks_of(settings, holds=holds)
        self.streamed = self.usual._replace(clocks=clocks)
        self.last_streamed = self.usual._replace(clocks=clocks.unguarded())
        patient = settings.stream.patient if settings.stream else ()
        # (is it one of these models, the limits of its streams, seconds for a whole answer)
        self.patient = [
            (named_like(each.models), clocks_of(settings, each, holds=holds), each.first_content_s) for each in patient
        ]
        # what is only passed through nobody here reads: it is handed over as it comes
        self.passing = Terms(None, PASSED_WHOLE_BYTES_MAX, stream_at_head=True)
        self.offering = self.passing._replace(offers=True)
        self.writing = Terms(None, WRITE_WHOLE_BYTES_MAX)

    async def answer(self, call: Call) -> Answer:
        """What the upstream answers to `call`. Raises Failed, or Refused for want of a connection."""
        started = self.clock()
        call.attempts += 1
        connection = self.pool.take()
        try:
            if connection is None or call.until <= started:
                connection = await self._connected(connection, call)
            is_new = connection.uses == 0
            answer: Answer | None = None
            try:
                answer = await self._exchanged(connection, call)
            except DeadConnection:
                if is_new or not _is_repeatable(call):
                    raise
            if answer is None:
                # the upstream had given the connection up before we used it: once more, on a new one
                answer = await self._exchanged(await self._connected(None, call), call)
        except DeadConnection:
            again = _is_repeatable(call)
            failed = Failed("reset", "the upstream closed the connection", again=again, elsewhere=again)
            self.judge.heard(failed)
            raise failed from None
        except Failed as failed:
            self.judge.heard(failed)
            raise
        finally:
            call.upstream_s += self.clock() - started
        if self.peek.armed:
            self.peek.look(call, answer)
        answer = self.judge.judged(call, answer, self.dialect)
        answer.source = self.name
        return answer

    async def _connected(self, connection: Connection | None, call: Call) -> Connection:
        """A connection to send on, and time left to be answered. Raises Failed."""
        if connection is None:
            connection = await self.pool.connect(_wait_s(self.connect_s, call, self.clock))
        if call.until <= self.clock():
            self.pool.give_back(connection)
            raise _too_late()
        return connection

    async def _exchanged(self, connection: Connection, call: Call) -> Answer:
        """The answer to `call` on this connection. Raises Failed or DeadConnection."""
        request = call.request
        wait_s = self.first_byte_s
        if call.kind == "pass":
            terms = self._passing_terms(request)
        elif call.wants_stream or self.patient:
            terms, wait_s = self._timed(call)
        else:
            terms = self.usual
        began = self.clock()
        due = began + wait_s
        # the caller's own impatience says less of the upstream than our clock does
        is_callers = call.until < due
        if is_callers:
            due = call.until
        head = self.target.head(call)
        waiter = connection.send(request.method, head, request.body, terms, due, due_is_callers=is_callers)
        if terms.clocks is not None:
            connection.time(began, call.until)
        try:
            answer = await waiter
            if answer.stream is not None:
                _check_stream(answer.stream)
            return answer
        except Failed as failed:
            failed.elsewhere = _is_repeatable(call)
            failed.again = failed.again and failed.elsewhere and failed.reason != "deadline"
            raise
        except asyncio.CancelledError:
            connection.let_go(waiter)
            raise

    def _timed(self, call: Call) -> tuple[Terms, float]:
        """On which terms a stream, or an answer of a model that thinks first, is asked for, and seconds to its head."""
        # whoever is asked last has nobody to be quicker than
        terms = self.streamed if call.until < call.deadline else self.last_streamed
        model = model_asked(call.request.body) if self.patient else ""
        for is_one, clocks, whole_s in self.patient:
            if is_one(model):
                if not call.wants_stream:
                    return self.usual, whole_s
                clocks = clocks if call.until < call.deadline else clocks.unguarded()
                return self.usual._replace(clocks=clocks), clocks.headers_s
        if not call.wants_stream:
            return self.usual, self.first_byte_s
        assert terms.clocks is not None
        return terms, terms.clocks.headers_s

    def _passing_terms(self, request: Request) -> Terms:
        if request.offers:
            return self.offering
        return self.passing if self.dialect.written(request) is None else self.writing


def clocks_of(settings: UpstreamTier, patience: Patience | None = None, *, holds: bool = True) -> Clocks:
    """What streams of this tier, or of its models that have such `patience`, are held to."""
    stream = settings.stream or Streaming()
    first_content_s = patience.first_content_s if patience else stream.first_content_s or settings.first_byte_s
    gap_s = (patience and patience.gap_s) or stream.gap_s or settings.idle_s
    buffers = holds and stream.after_first_content == "buffer"
    return Clocks(
        headers_s=stream.headers_s or first_content_s,
        first_content_s=first_content_s,
        gap_s=gap_s,
        total_s=max(stream.total_s, first_content_s),
        holds=holds,
        events_max=stream.held_events_max,
        bytes_max=stream.held_bytes_max,
        per_s_min=stream.contents_per_s_min or 0.0 if holds else 0.0,
        within_s=stream.contents_within_s,
        buffer_s=stream.buffer_s_max if buffers else 0.0,
        buffer_bytes=stream.buffer_bytes_max,
    )


def first_content_s_of(tiers: Sequence[UpstreamTier]) -> Callable[[bytes], float] | None:
    """How long the most patient of these tiers waits for the first content of what a body asks, in seconds, 0 where it
    asks no model that thinks first; None where no tier knows of any."""
    patient = [each for tier in tiers if tier.stream for each in tier.stream.patient]
    if not patient:
        return None
    known = [(named_like(each.models), each.first_content_s) for each in patient]

    def longest_s(body: bytes) -> float:
        model = model_asked(body)
        return max((seconds for is_one, seconds in known if is_one(model)), default=0.0)

    return longest_s


def _check_stream(stream: Stream) -> None:
    """Raises Failed for a stream that broke before anybody was given any of it."""
    if isinstance(stream, UpstreamStream) and stream.broken:
        raise Failed(stream.broken, "the upstream broke off in the middle of its answer")


def _is_repeatable(call: Call) -> bool:
    return call.kind != "pass" or call.request.method in IDEMPOTENT


def _too_late() -> Failed:
    return Failed("deadline", "no time is left to ask the upstream", soft=True, again=False)


def _wait_s(wait_s: float, call: Call, clock: Callable[[], float]) -> float:
    wait_s = min(wait_s, call.until - clock())
    if wait_s <= 0:
        raise _too_late()
    return wait_s
