"""Break things on purpose: a share of calls is slowed, refused, cut off or garbled, so that outages can be rehearsed.

    at a tier     as if the upstream had done it: breakers count it, retries and the next tier answer for it
    at a route    what callers get: how they bear an outage that nobody could hide from them

A fault befalls a share of the calls whose headers match, within its time window, and leaves its name on the call, so
that nobody takes a rehearsal for the real thing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, Protocol

from understudy.policies.service import (
    Answer,
    Call,
    Headers,
    Service,
    Sink,
    Stream,
    find_header,
)

Deed = Literal["delay", "error", "abort", "cut", "garble", "dimension"]
FAULT_HEADER = b"x-understudy-fault"
_GARBLED = bytes.maketrans(b'{}[]":', b"<>()'=")
"""As long as what it garbles, so that every length that was told still holds, and no JSON any more."""


class FaultRules(Protocol):
    """What a fault goes by (`PlannedFault` of `proxy/settings` has all of it)."""

    @property
    def do(self) -> Deed: ...
    @property
    def share(self) -> float: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def after_s(self) -> float: ...
    @property
    def lasts_s(self) -> float | None: ...
    @property
    def every_s(self) -> float | None: ...
    @property
    def delay_s(self) -> float: ...
    @property
    def status(self) -> int: ...
    @property
    def retry_after_s(self) -> float | None: ...
    @property
    def after_bytes(self) -> int: ...
    @property
    def after_chunks(self) -> int | None: ...


class Injection:
    """The pure heart of one fault: when it is on, and whom it befalls. `began` is when its window's clock began."""

    __slots__ = ("_headers", "began", "hits", "name", "rules")

    def __init__(self, name: str, rules: FaultRules, began: float) -> None:
        self.name = name
        self.rules = rules
        self.began = began
        self.hits = 0
        self._headers = [(name.lower().encode(), value.encode()) for name, value in rules.headers.items()]

    def is_on(self, now: float) -> bool:
        """Whether `now` lies in its window: from `after_s` on for `lasts_s`, again every `every_s`."""
        rules = self.rules
        ran_s = now - self.began
        if rules.every_s is not None:
            ran_s %= rules.every_s
        return ran_s >= rules.after_s and (rules.lasts_s is None or ran_s < rules.after_s + rules.lasts_s)

    def befalls(self, now: float, headers: Headers, luck: float) -> bool:
        """Whether it befalls a call with these headers; `luck` is uniform in [0, 1)."""
        if luck >= self.rules.share or not self.is_on(now):
            return False
        return all(find_header(headers, name) == value for name, value in self._headers)


class Stage(Protocol):
    """Where faults are played: what an error, a broken connection and a spoilt body look like there."""

    def error(self, call: Call, status: int, retry_after_s: float | None) -> Answer:
        """An error of this status in the shape callers know."""
        ...

    def broken(self, call: Call, answer: Answer | None, sent: bytes) -> Answer:
        """The connection broke after these bytes of `answer` (None: before anything)."""
        ...

    def patience_s(self, call: Call) -> float:
        """How long a delay may last here before whoever waits for the answer has given up."""
        ...

    def too_late(self, call: Call) -> Answer:
        """What comes of a delay that was longer."""
        ...

    def shortened(self, answer: Answer) -> bytes:
        """The body with vectors of one dimension less."""
        ...

    def judged(self, call: Call, answer: Answer) -> Answer:
        """The spoilt answer, or what somebody who looks at it makes of it. May raise Failed."""
        ...


def fault(
    service: Service,
    hearts: Sequence[Injection],
    stage: Stage,
    *,
    clock: Callable[[], float],
    dice: Callable[[], float],
    sleep: Callable[[float], Awaitable[object]],
) -> Service:
    """Let faults befall the calls of `service`. Each draws for itself; an error or an abort ends the call."""

    async def tried(call: Call) -> Answer:
        befallen = [each for each in hearts if each.befalls(clock(), call.request.headers, dice())]
        if not befallen:
            return await service(call)
        for each in befallen:
            each.hits += 1
            call.faults = (*call.faults, each.name)
        for each in befallen:
            rules = each.rules
            if rules.do == "delay":
                patience_s = stage.patience_s(call)
                began = clock()
                await sleep(max(0.0, min(rules.delay_s, patience_s)))
                call.upstream_s += clock() - began
                if rules.delay_s >= patience_s:
                    return stage.too_late(call)
            elif rules.do == "error":
                return stage.judged(call, stage.error(call, rules.status, rules.retry_after_s))
            elif rules.do == "abort":
                return stage.broken(call, None, b"")
        answer = await service(call)
        for each in befallen:
            answer = _spoilt(call, answer, each.rules, stage)
        return answer

    return tried


def marked(service: Service) -> Service:
    """Name on every answer the faults that befell its call, wherever they did."""

    async def naming(call: Call) -> Answer:
        answer = await service(call)
        if call.faults:
            answer.add(FAULT_HEADER, ", ".join(dict.fromkeys(call.faults)).encode())
        return answer

    return naming


def _spoilt(call: Call, answer: Answer, rules: FaultRules, stage: Stage) -> Answer:
    """What a fault makes of an answer that is there."""
    stream = answer.stream
    if rules.do == "garble":
        if stream is not None:
            answer.stream = SpoiltStream(stream, garble=True)
            return answer
        answer.body = answer.body.translate(_GARBLED)
        return stage.judged(call, answer)
    if rules.do == "dimension" and stream is None:
        answer.body = stage.shortened(answer)
        return stage.judged(call, answer)
    if rules.do == "cut":
        if stream is not None:
            answer.stream = SpoiltStream(stream, bytes_max=rules.after_bytes, chunks_max=rules.after_chunks)
            return answer
        if rules.after_chunks is None and len(answer.body) > rules.after_bytes:
            return stage.broken(call, answer, answer.body[: rules.after_bytes])
    return answer


class SpoiltStream(Stream):
    """A stream that is garbled, or that breaks after so many bytes or chunks: whichever comes first.

    Without `chunks_max` only bytes are counted, with it only chunks. A stream that ends before is whole.
    """

    __slots__ = ("_bytes", "_chunks", "_garble", "_inner", "_max_bytes", "_max_chunks", "_sink")

    def __init__(
        self, inner: Stream, *, garble: bool = False, bytes_max: int | None = None, chunks_max: int | None = None
    ) -> None:
        super().__init__(inner.length)
        self._inner = inner
        self._garble = garble
        self._max_bytes = bytes_max if chunks_max is None else None
        self._max_chunks = chunks_max
        self._bytes = 0
        self._chunks = 0
        self._sink: Sink | None = None

    def relay(self, sink: Sink) -> None:
        self._sink = sink
        if self._spent():
            self._break()
        else:
            self._inner.relay(self)

    def pause(self) -> None:
        self._inner.pause()

    def resume(self) -> None:
        if self.ended is None:
            self._inner.resume()

    def close(self) -> None:
        self.finish("left")
        self._inner.close()

    # --- what the inner stream tells its sink ---

    def write(self, chunk: bytes) -> None:
        sink = self._sink
        if sink is None or self.ended is not None:
            return
        self._chunks += 1
        if self._garble:
            sink.write(chunk.translate(_GARBLED))
            return
        if self._max_bytes is not None:
            chunk = chunk[: self._max_bytes - self._bytes]
        self._bytes += len(chunk)
        sink.write(chunk)
        if self._spent():
            self._break()

    def end(self) -> None:
        if self._sink is not None and self.ended is None:
            self.finish(self._inner.ended or "done")
            self._sink.end()

    def cut(self, reason: str) -> None:
        if self._sink is not None and self.ended is None:
            self.finish("cut")
            self._sink.cut(reason)

    def _spent(self) -> bool:
        if self._max_chunks is not None:
            return self._chunks >= self._max_chunks
        return self._max_bytes is not None and self._bytes >= self._max_bytes

    def _break(self) -> None:
        if self.ended is None and self._sink is not None:
            self.finish("cut")
            self._inner.close()
            self._sink.cut("fault")


class HungUp(Stream):
    """An answer whose connection breaks after these bytes."""

    __slots__ = ("_sent",)

    def __init__(self, sent: bytes, length: int) -> None:
        super().__init__(length)
        self._sent = sent

    def relay(self, sink: Sink) -> None:
        if self.ended is None:
            if self._sent:
                sink.write(self._sent)
            self.finish("cut")
            sink.cut("fault")
