"""One noun and one verb: a Service is `async (Call) -> Answer`; a policy wraps one in another.

    application --> Call --> policy(policy(tier)) --> Answer --> application

There are two ways not to answer, and each says what the next layer may do:

    Refused   nothing was spent (breaker open, limit reached, no index): ask the next tier now
    Failed    something was spent and broke: it counts against health, perhaps ask again

An upstream's 400 or 401 is neither: it is an Answer, passed through, never retried, never counted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from mypy_extensions import mypyc_attr

if TYPE_CHECKING:
    from understudy.policies.questions import Question
    from understudy.policies.spans import Span

Kind = Literal["embed", "retrieve", "generate", "pass"]
Header = tuple[bytes, bytes]
Headers = list[Header]

TRAIL_STEPS_MAX = 16
"""A trail longer than this says nothing new: retries and tiers are bounded far below it."""


class Hop(NamedTuple):
    """What is known of the connection a request came in by. The address is empty on a Unix socket.

    `subject` is whom the caller's certificate names, where one was asked for and verified.
    """

    address: bytes
    scheme: bytes
    subject: bytes = b""


NOWHERE = Hop(b"", b"http")


class Request:
    """One HTTP request as the caller sent it, its body whole.

    `target` is the request target in origin form, with its query; `path` is the same without the query, after a
    route's prefix was stripped. Header names keep the caller's case. `remembered` lives as long as the door remembers
    this very head, for what follows from the head alone; requests with the same head share it and the headers. `hop`
    is the connection it came in by; `offers` says that the caller would go on as a WebSocket.
    """

    __slots__ = ("body", "headers", "hop", "method", "offers", "path", "query", "remembered", "target")

    def __init__(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes = b"",
        remembered: dict[object, Any] | None = None,
        path: bytes | None = None,
    ) -> None:
        self.method = method
        self.target = target
        own_path, _, self.query = target.partition(b"?")
        self.path = own_path if path is None else path
        self.headers = headers
        self.body = body
        self.remembered = remembered
        self.hop = NOWHERE
        self.offers = False

    def header(self, name: bytes) -> bytes | None:
        """The first value of the header `name` (given in lower case), or None."""
        return find_header(self.headers, name)


def find_header(headers: Headers, name: bytes) -> bytes | None:
    """The first value of `name` (given in lower case) among `headers`, or None."""
    for key, value in headers:
        if len(key) == len(name) and key.lower() == name:
            return value
    return None


CREDENTIALS = (b"authorization", b"x-api-key", b"api-key")
"""The headers by which callers show who they are, at the APIs we know."""


def tenant_of(request: Request, besides: tuple[bytes, ...] = ()) -> bytes:
    """Who asks, as 16 bytes that don't tell the credentials they were made from; b"" where there are none.

    `besides` are further headers, in lower case, that set tenants apart. Worked out once for requests of one head.
    Whom a client certificate names is part of it, and of the connection: the same head may come by another one.
    """
    tenant = _tenant_of_head(request, besides)
    subject = request.hop.subject
    return blake2b(tenant + subject, digest_size=16, person=b"certificate").digest() if subject else tenant


def _tenant_of_head(request: Request, besides: tuple[bytes, ...]) -> bytes:
    remembered = request.remembered
    key = (tenant_of, besides)
    if remembered is not None and key in remembered:
        return remembered[key]
    wanted = CREDENTIALS + besides
    shown = sorted((name.lower(), value) for name, value in request.headers if name.lower() in wanted)
    tenant = b""
    if shown:
        # lengths go in first, so that no two sets of headers spell the same bytes
        spelt = b"".join(b"%d %d %b%b" % (len(name), len(value), name, value) for name, value in shown)
        tenant = blake2b(spelt, digest_size=16).digest()
    if remembered is not None:
        remembered[key] = tenant
    return tenant


class Step:
    """One entry of a trail: who was asked, what came of it, and why."""

    __slots__ = ("outcome", "reason", "tier")

    def __init__(self, tier: str, outcome: Literal["refused", "failed", "answered"], reason: str) -> None:
        self.tier = tier
        self.outcome = outcome
        self.reason = reason


class Begun(NamedTuple):
    """What was said of an answer before its upstream broke off, and about how many tokens that was."""

    text: str
    tokens: int


class Call:
    """What the application meant, and what has happened to it so far.

    Times are seconds on the event loop's clock. `deadline` is when the caller stops waiting; `until` is when the tier
    being asked must have answered, so that a later tier still can. Whoever waits, waits no longer than `until`.
    `asked` is where a dialect keeps what it has parsed, so that a body is parsed once. `trace` is the traceparent made
    for a call that came without one. `faults` names what was done to it on purpose. `tried` names the
    endpoints that have been asked, so that the next attempt goes to another. `key` is the same for calls that ask the
    same and may share an answer, and b"" for one that may not; `kept` says that a stale answer is there, which goes
    before a local one. `begun` is what another has said of the answer already, which is to be gone on with. `payer` is
    whose budget it is counted against, where callers have budgets. `question` is what it is a leg of, as far as that
    is known: only where a fallback has answered another. `span` is what is noted of it where its trace is recorded.
    """

    __slots__ = (
        "asked",
        "attempts",
        "begun",
        "born",
        "deadline",
        "dialect",
        "faults",
        "id",
        "kept",
        "key",
        "kind",
        "payer",
        "question",
        "request",
        "route",
        "span",
        "trace",
        "trail",
        "tried",
        "until",
        "upstream_s",
        "wants_stream",
    )

    def __init__(
        self, kind: Kind, request: Request, *, dialect: str = "plain", route: str = "", born: float = 0.0, id: str = ""
    ) -> None:
        self.kind: Kind = kind
        self.request = request
        self.dialect = dialect
        self.route = route
        self.id = id
        self.trace = ""
        self.born = born
        self.deadline = float("inf")
        self.until = float("inf")
        self.upstream_s = 0.0
        self.attempts = 0
        self.wants_stream = False
        self.trail: list[Step] = []
        self.tried: list[str] = []
        self.asked: object = None
        self.key = b""
        self.kept = False
        self.begun: Begun | None = None
        self.faults: tuple[str, ...] = ()
        self.payer = b""
        self.question: Question | None = None
        self.span: Span | None = None

    @property
    def tenant(self) -> bytes:
        """Who asks; see `tenant_of`."""
        return tenant_of(self.request)

    def fork(self) -> Call:
        """A copy to be asked beside this one: the same request and times, a trail and counts of its own. It knows what
        has been tried."""
        other = Call(self.kind, self.request, dialect=self.dialect, route=self.route, born=self.born, id=self.id)
        other.trace = self.trace
        other.deadline, other.until = self.deadline, self.until
        other.wants_stream = self.wants_stream
        other.asked = self.asked
        other.tried = self.tried.copy()
        other.kept = self.kept
        other.begun = self.begun
        other.payer = self.payer
        other.span = self.span
        return other

    def note(self, tier: str, outcome: Literal["refused", "failed", "answered"], reason: str) -> None:
        """Remember that `tier` was asked; a trail is bounded, its first steps are kept."""
        if len(self.trail) < TRAIL_STEPS_MAX:
            self.trail.append(Step(tier, outcome, reason))


End = Literal["done", "cut", "left"]
"""How a stream ended: whole, broken by its source, or left by the caller (who is never the endpoint's fault)."""


class Sink(Protocol):
    """Where a stream goes. `write` may be followed by `pause` on the stream, from inside the same call."""

    def write(self, chunk: bytes) -> None: ...
    def end(self) -> None: ...
    def cut(self, reason: str) -> None: ...


@mypyc_attr(allow_interpreted_subclasses=True)
class Stream:
    """A body that arrives in pieces and is pushed, so that no chunk costs a task.

    A stream is primed: its first content is in hand before an Answer carries it. `relay` delivers what is held and
    then whatever comes. Exactly one of `end` and `cut` reaches the sink, unless `close` came first. `length` is the
    number of bytes to come where that is known beforehand. `trailers` are header lines that came behind the body, each
    with its line end; whole once the stream has ended.
    """

    __slots__ = ("_watchers", "ended", "length", "trailers")

    mended: bool = False
    """Whether more than one upstream has said it: then it is the answer of none."""

    def __init__(self, length: int | None = None) -> None:
        self.ended: End | None = None
        self.length = length
        self.trailers = b""
        self._watchers: list[Callable[[End], None]] = []

    def relay(self, sink: Sink) -> None:
        raise NotImplementedError

    def pause(self) -> None:
        """The reader is slow: stop reading from the source."""

    def resume(self) -> None:
        """The reader has caught up."""

    def close(self) -> None:
        """The caller has gone: let go of the source."""
        self.finish("left")

    def spoil(self) -> None:
        """Its reader found it broken, though it goes on: let go of the source, whose failure it is."""
        self.finish("cut")
        self.close()

    def watch(self, watcher: Callable[[End], None]) -> None:
        """Call `watcher` once when the stream has ended (at once when it already has)."""
        if self.ended is None:
            self._watchers.append(watcher)
        else:
            watcher(self.ended)

    def finish(self, end: End) -> None:
        """Mark the stream ended and tell the watchers; later calls change nothing."""
        if self.ended is not None:
            return
        self.ended = end
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher(end)


class HeldStream(Stream):
    """A stream whose pieces are all in hand: what the local tiers and caches give when a stream was asked for."""

    __slots__ = ("_at", "_paused", "_pieces", "_sink")

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__()
        self._pieces = pieces
        self._at = 0
        self._paused = False
        self._sink: Sink | None = None

    def relay(self, sink: Sink) -> None:
        self._sink = sink
        self._push()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._push()

    def _push(self) -> None:
        sink = self._sink
        if sink is None:
            return
        while self._at < len(self._pieces) and not self._paused and self.ended is None:
            self._at += 1
            sink.write(self._pieces[self._at - 1])
        if self._at == len(self._pieces) and self.ended is None:
            self.finish("done")
            sink.end()


class Answer:
    """What the application gets: a status, headers, and a body that is whole (`body`) or streamed (`stream`).

    `tier`, `source` and `reason` say where it came from; the door writes them into `x-understudy-*` headers. An
    upstream's headers come as `block`, lines with their line ends, and are parsed only for who asks for `headers`.
    `packed` says that the body is compressed, so that nobody can look inside. `fault` is what the caller did wrong, in
    a word, where an upstream said so.
    """

    __slots__ = ("_headers", "block", "body", "fault", "packed", "reason", "source", "status", "stream", "tier")

    def __init__(
        self,
        status: int,
        headers: Headers | None,
        body: bytes = b"",
        *,
        block: bytes = b"",
        packed: bool = False,
        stream: Stream | None = None,
        tier: str = "",
        source: str = "",
        reason: str = "",
    ) -> None:
        self.status = status
        self._headers = headers
        self.block = block
        self.body = body
        self.packed = packed
        self.stream = stream
        self.tier = tier
        self.source = source
        self.reason = reason
        self.fault = ""

    @property
    def headers(self) -> Headers:
        """Names and values. To change what is sent, give `headers` a new list."""
        if self._headers is None:
            lines = [line.partition(b":") for line in self.block.split(b"\r\n") if line]
            return [(name, value.strip(b" \t")) for name, _, value in lines]
        return self._headers

    @headers.setter
    def headers(self, headers: Headers) -> None:
        self._headers = headers
        self.block = b""

    def add(self, name: bytes, value: bytes) -> None:
        """Add one header, without looking at the others."""
        if self._headers is None:
            self.block = b"%b%b: %b\r\n" % (self.block, name, value)
        else:
            self._headers = [*self._headers, (name, value)]

    def copy(self) -> Answer:
        """The same answer for another caller, to be added to by itself. Not for streams, which are read once."""
        return Answer(
            self.status,
            self._headers,
            self.body,
            block=self.block,
            packed=self.packed,
            tier=self.tier,
            source=self.source,
            reason=self.reason,
        )

    def lines(self) -> bytes:
        """The headers as they go on the wire, each with its line end."""
        if self._headers is None:
            return self.block
        return b"".join([b"%b: %b\r\n" % header for header in self._headers])


class Refused(Exception):
    """Not asked, nothing spent: the next tier may be asked at once.

    `reason` is a word or two from a bounded vocabulary (it becomes a metric label); `detail` is for people.
    """

    def __init__(self, reason: str, detail: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(detail or reason)
        self.reason = reason
        self.detail = detail or reason
        self.retry_after_s = retry_after_s


class Failed(Exception):
    """Asked, and it broke: counts against the endpoint's health.

    `answer` is the upstream's own error answer where there was one, given back as it is when nobody can do better.
    `again` says whether asking the same tier once more could help and can do no harm, `elsewhere` whether another
    tier may be asked (not when a write may have been carried out already). `soft` marks an upstream that answered in
    good order that it is busy (429, 503 with Retry-After): it counts for less than one that broke. `fault` is whose it
    is: what is not the endpoint's says nothing of its health. `away` says that another endpoint of the same tier may be
    asked at once, though this one should not.
    """

    def __init__(
        self,
        reason: str,
        detail: str = "",
        *,
        answer: Answer | None = None,
        retry_after_s: float | None = None,
        again: bool = True,
        elsewhere: bool = True,
        soft: bool = False,
    ) -> None:
        super().__init__(detail or reason)
        self.reason = reason
        self.detail = detail or reason
        self.answer = answer
        self.retry_after_s = retry_after_s
        self.again = again
        self.elsewhere = elsewhere
        self.soft = soft
        self.fault: Literal["endpoint", "caller", "nobody"] = "endpoint"
        self.away = False


Service = Callable[[Call], Awaitable[Answer]]
