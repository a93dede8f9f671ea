"""Note what becomes of a call, so that a span can be made of it: ids, times, who answered, and nothing that was said.

    caller's traceparent --Sampler--> Span --> what the upstream is told: our span is its parent
                             |          |
                  nobody     |          +--> service --answer, or its stream's end--> record
                  records it +--> service

Who began a trace has decided whether it is recorded; of calls that come without one, a share is (W3C Trace Context,
and OpenTelemetry's parent-based sampling). A span is made of the note later, and elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

from understudy.policies.service import Answer, Call, End, Failed, Headers, Refused, Service
from understudy.policies.spans import Parent, Span

ASKED_HEAD_BYTES, ASKED_END_BYTES = 4096, 1024
"""What is kept of a request's body until its model has been read there: a note keeps no long one alive."""
_TRACE_BITS, _SPAN_BITS = 128, 64
_DICE_BITS = 53


class Sampler:
    """The pure heart: which calls are recorded, and under which ids. `bits` gives so many random ones."""

    __slots__ = ("bits", "share")

    def __init__(self, share: float, *, bits: Callable[[int], int]) -> None:
        self.share = share
        self.bits = bits

    def begin(self, parent: Parent | None) -> tuple[Span | None, str]:
        """The span of a call, if it is recorded, and the `traceparent` that the upstreams get: '' for the caller's."""
        if parent is not None:
            if not parent.is_sampled:
                return None, ""
            trace_id = parent.trace_id
        else:
            trace_id = f"{self.bits(_TRACE_BITS) | 1:032x}"
        span_id = f"{self.bits(_SPAN_BITS) | 1:016x}"
        if parent is None and self.bits(_DICE_BITS) / (1 << _DICE_BITS) >= self.share:
            # whoever comes after us keeps to it, so that a trace is there as a whole or not at all
            return None, f"00-{trace_id}-{span_id}-00"
        return Span(trace_id, span_id, parent), f"00-{trace_id}-{span_id}-01"


def trace(
    service: Service,
    sampler: Sampler,
    record: Callable[[Span], None],
    *,
    clock: Callable[[], float],
    wall: Callable[[], float],
    parent_of: Callable[[Headers], Parent | None],
) -> Service:
    """`service`, whose calls are noted and given to `record` once they are over, their streams included."""

    async def traced(call: Call) -> Answer:
        span, call.trace = sampler.begin(parent_of(call.request.headers))
        if span is None:
            return await service(call)
        call.span = span
        span.began = wall() - (clock() - call.born)
        try:
            answer = await service(call)
        except (Refused, Failed) as without:
            span.error = without.reason
            _over(span, call, clock(), record)
            raise
        except BaseException as error:
            # only a cancellation is none of ours: the caller has hung up
            if isinstance(error, Exception):
                span.error = type(error).__name__
            else:
                span.end = "left"
            _over(span, call, clock(), record)
            raise
        span.status, span.tier, span.source, span.reason = answer.status, answer.tier, answer.source, answer.reason
        if answer.status >= 400:
            span.error = answer.fault or str(answer.status)
        stream = answer.stream
        if stream is None:
            _over(span, call, clock(), record)
            return answer
        span.first_s = clock() - call.born

        def ended(end: End) -> None:
            span.end = end
            if end == "cut":
                span.error = span.error or "stream_cut"
            _over(span, call, clock(), record)

        stream.watch(ended)
        return answer

    return traced


def _over(span: Span, call: Call, now: float, record: Callable[[Span], None]) -> None:
    """Write down what is known of the call, and let go of it."""
    request = call.request
    span.took_s = now - call.born
    span.kind, span.route, span.dialect, span.call_id = call.kind, call.route, call.dialect, call.id
    span.method, span.target = request.method, request.path
    span.attempts, span.upstream_s, span.faults = call.attempts, call.upstream_s, call.faults
    span.wants_stream = call.wants_stream
    span.asked = ends_of(request.body)
    span.steps = [(step.tier, step.outcome, step.reason) for step in call.trail]
    question = call.question
    if question is not None and question.legs:
        span.question, span.built_on = question.id, question.built_on
    record(span)


def ends_of(body: bytes) -> bytes:
    """A body's first and last bytes, where it is long."""
    if len(body) <= ASKED_HEAD_BYTES + ASKED_END_BYTES:
        return body
    return body[:ASKED_HEAD_BYTES] + body[-ASKED_END_BYTES:]
