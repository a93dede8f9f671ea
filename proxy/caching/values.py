"""What is kept of an answer: its status, the headers that stay true, its body; and how it is told again.

Answer --kept--> Value --answer()--> Answer with an age, from the cache
                   |--packed()--> bytes for the second level and snapshots --unpacked--> Value, or nothing
"""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import blake2b
from math import inf
from typing import Literal

import msgspec

from understudy.policies.service import Answer, End, HeldStream, Sink, Stream
from understudy.proxy.http.heads import seconds_of

SOURCE = "cache"
PIECE_BYTES = 16 * 1024
"""A kept stream is told again in pieces of this size: events may be cut anywhere, and who reads slowly pauses us."""
MAGIC = b"UC1"
SUM_BYTES = 8
# Of an answer's headers those that are as true of the next caller's as of the first's. Quotas, cookies, ids and timings
# are not, and a list of what is would never be complete.
STAYS_TRUE = frozenset(
    (
        b"access-control-allow-credentials",
        b"access-control-allow-origin",
        b"access-control-expose-headers",
        b"cache-control",
        b"content-language",
        b"content-type",
        b"date",
        b"etag",
        b"last-modified",
        b"openai-model",
        b"openai-version",
        b"vary",
    )
)
TOLD_APART = frozenset((b"accept", b"accept-encoding", b"origin"))
"""What `Vary` may name: the keys tell these apart, or what is asked of upstreams is the same for all."""

_MAX_AGE = re.compile(rb"(?:^|[,\s])(s-maxage|max-age)\s*=\s*\"?(\d{1,9})")
_REASON = re.compile(rb'"(?:finish_reason|stop_reason|done_reason)"\s*:\s*"([a-zA-Z_]+)"')
_WHOLE_REASONS = frozenset((b"stop", b"end_turn", b"stop_sequence", b"complete", b"COMPLETE", b"STOP_SEQUENCE"))


class Value:
    """An answer as it is kept. `vector` is where in the body of a single embedding the vector stands, and `tokens` what
    it counted; a stream's body is all its pieces joined. The head is put together once a second at most."""

    __slots__ = ("_age_s", "_head", "_ready", "block", "body", "is_stream", "status", "tokens", "vector", "whole_bytes")

    def __init__(
        self,
        status: int,
        block: bytes,
        body: bytes,
        *,
        is_stream: bool = False,
        vector: tuple[int, int] = (0, 0),
        tokens: int = 0,
    ) -> None:
        self.status = status
        self.block = block
        self.body = body
        self.is_stream = is_stream
        self.vector = vector
        self.tokens = tokens
        self.whole_bytes: float = len(body) if status == 200 and not is_stream else inf
        """The body's, where it is a 200 that goes out in one piece."""
        self._age_s = -1
        self._head = b""
        self._ready: Answer | None = None

    @property
    def size_bytes(self) -> int:
        return len(self.body) + 2 * len(self.block)

    def ready(self, age_s: float) -> Answer:
        """The answer once more, for who only sends it: one object for a second, since making one takes 1 µs."""
        ready = self._ready
        if ready is None or self.is_stream or int(age_s) != self._age_s:
            ready = self._ready = self.answer(age_s)
        return ready

    def answer(self, age_s: float, reason: str = "") -> Answer:
        """The answer once more, `age_s` seconds old."""
        age = int(age_s)
        if age != self._age_s:
            self._age_s = age
            self._head = b"%bage: %d\r\n" % (self.block, max(0, age))
            self._ready = None
        if self.is_stream:
            body = self.body
            pieces = [body[at : at + PIECE_BYTES] for at in range(0, len(body), PIECE_BYTES)]
            stream = HeldStream(pieces)
            return Answer(self.status, None, block=self._head, stream=stream, tier=SOURCE, source=SOURCE, reason=reason)
        return Answer(self.status, None, self.body, block=self._head, tier=SOURCE, source=SOURCE, reason=reason)


# --- what may be kept ----------------------------------------------------------------------------------------------


def block_of(answer: Answer) -> bytes:
    """The header lines of `answer` that stay true."""
    lines = answer.lines().split(b"\r\n")
    return b"".join([line + b"\r\n" for line in lines if line.partition(b":")[0].lower() in STAYS_TRUE])


def told_s(answer: Answer) -> float | None:
    """How long the upstream says that its answer may be kept: infinity where it says nothing, None for not at all."""
    told_s = float("inf")
    age_s, date, expires, is_told = 0.0, b"", b"", False
    for line in answer.lines().split(b"\r\n"):
        name, _, value = line.partition(b":")
        name = name.lower()
        if name == b"age" and value.strip().isdigit():
            # as old as that when it came: it has lain in another cache
            age_s = float(value)
        elif name == b"date":
            date = value.strip()
        elif name == b"expires":
            expires = value.strip()
        elif name == b"cache-control":
            value = value.lower()
            if b"no-store" in value or b"private" in value:
                return None
            ages = dict(_MAX_AGE.findall(value))
            if ages:
                told_s, is_told = float(ages.get(b"s-maxage") or ages[b"max-age"]), True
        elif name == b"vary" and not {part.strip().lower() for part in value.split(b",")} <= TOLD_APART:
            return None
    if expires and not is_told:
        told_s = _apart_s(date, expires)
    return told_s - age_s


def _apart_s(date: bytes, expires: bytes) -> float:
    """Seconds from one HTTP date to another; 0 where either is none, as an `Expires: 0` is meant (RFC 9111 5.3)."""
    try:
        return seconds_of(expires.decode("latin-1")) - seconds_of(date.decode("latin-1"))
    except ValueError:
        return 0.0


def is_finished(body: bytes) -> bool:
    """Whether a generated answer, whole or as a stream, came to its own end, without calling tools."""
    reasons = _REASON.findall(body)
    return bool(reasons) and all(reason in _WHOLE_REASONS for reason in reasons)


# --- streams -------------------------------------------------------------------------------------------------------


class Recorded(Stream):
    """A stream on its way to a caller, written down as it passes; `then` gets the whole of it, if there is one.

    Nothing is handed on of a stream that broke, that its caller left, or that grew beyond `bytes_max`.
    """

    __slots__ = ("_bytes", "_bytes_max", "_inner", "_pieces", "_sink", "_then")

    def __init__(self, inner: Stream, bytes_max: int, then: Callable[[bytes], None]) -> None:
        super().__init__(inner.length)
        self._inner = inner
        self._bytes_max = bytes_max
        self._then = then
        self._pieces: list[bytes] | None = []
        self._bytes = 0
        self._sink: Sink | None = None
        inner.watch(self._ended)

    def relay(self, sink: Sink) -> None:
        self._sink = sink
        self._inner.relay(self)

    def pause(self) -> None:
        self._inner.pause()

    def resume(self) -> None:
        self._inner.resume()

    def close(self) -> None:
        self._pieces = None
        self._inner.close()
        self.finish("left")

    def write(self, chunk: bytes) -> None:
        if self._pieces is not None:
            self._bytes += len(chunk)
            if self._bytes > self._bytes_max:
                self._pieces = None
            else:
                self._pieces.append(chunk)
        assert self._sink is not None
        self._sink.write(chunk)

    def end(self) -> None:
        pieces, self._pieces = self._pieces, None
        self.trailers = self._inner.trailers
        if pieces is not None and not self._inner.mended:
            self._then(b"".join(pieces))
        assert self._sink is not None
        self._sink.end()

    def cut(self, reason: str) -> None:
        self._pieces = None
        assert self._sink is not None
        self._sink.cut(reason)

    def _ended(self, end: End) -> None:
        if end != "done":
            self._pieces = None
        self.finish(end)


# --- as bytes ------------------------------------------------------------------------------------------------------


class Packed(msgspec.Struct, array_like=True, frozen=True):
    """A Value and when it was answered, in seconds of the wall clock; `epoch` is the shared epoch it was read in."""

    status: int
    block: bytes
    body: bytes
    is_stream: bool
    vector: tuple[int, int]
    tokens: int
    at_s: float
    fresh_s: float
    epoch: bytes = b""

    def value(self) -> Value:
        return Value(
            self.status,
            self.block,
            self.body,
            is_stream=self.is_stream,
            vector=self.vector,
            tokens=self.tokens,
        )


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Packed)


def sealed(magic: bytes, content: bytes) -> bytes:
    """`content` behind what says what it is, and a sum by which it is seen whether it is whole."""
    return magic + blake2b(content, digest_size=SUM_BYTES).digest() + content


def unsealed(magic: bytes, data: bytes) -> bytes | None:
    """What `sealed` was given, or None: whatever else stands there is not believed."""
    start = len(magic) + SUM_BYTES
    content = data[start:]
    is_whole = data.startswith(magic) and blake2b(content, digest_size=SUM_BYTES).digest() == data[len(magic) : start]
    return content if is_whole else None


def packed(value: Value, at_s: float, fresh_s: float, epoch: bytes = b"") -> bytes:
    """A value as bytes that say what they are and whether they are whole."""
    fields = (value.status, value.block, value.body, value.is_stream, value.vector, value.tokens)
    return sealed(MAGIC, _ENCODER.encode(Packed(*fields, at_s, fresh_s, epoch)))


def unpacked(data: bytes) -> Packed | None:
    """What `packed` made, or None: whatever else stands there is not believed."""
    content = unsealed(MAGIC, data)
    if content is None:
        return None
    try:
        found = _DECODER.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return found if _is_sound(found) else None


def _is_sound(found: Packed) -> bool:
    """Whether the values are possible ones: a head with a stray line end in it would be somebody else's answer."""
    start, end = found.vector
    lines = found.block.split(b"\r\n")
    return (
        found.status in (200, 404, 410)
        and 0 <= start <= end <= len(found.body)
        and lines.pop() == b""
        and all(line.partition(b":")[0].lower() in STAYS_TRUE and b"\n" not in line for line in lines)
    )


Found = Literal["stale", "last_resort", "second", "miss", "partial", "bypass"]
"""What came of looking something up."""
