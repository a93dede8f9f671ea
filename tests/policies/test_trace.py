"""Which calls are recorded, under which ids, and what is noted of them."""

from __future__ import annotations

import random

import pytest

from understudy.policies.service import Answer, Call, End, Failed, Headers, HeldStream, Request, Service
from understudy.policies.spans import Parent, Span
from understudy.policies.trace import ASKED_END_BYTES, ASKED_HEAD_BYTES, Sampler, ends_of, trace
from understudy.proxy.http.forwarding import parent_of

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLERS = f"00-{TRACE_ID}-{SPAN_ID}-01".encode()


def sampler(share: float = 1.0, seed: int = 1) -> Sampler:
    return Sampler(share, bits=random.Random(seed).getrandbits)


def call_with(headers: Headers, body: bytes = b"{}") -> Call:
    return Call("generate", Request(b"POST", b"/v1/x", headers, body), dialect="openai-chat", route="chat", born=10.0)


class Bench:
    """A traced service on a clock of its own; `spans` are what was recorded."""

    def __init__(self, service: Service, share: float = 1.0) -> None:
        self.now = 10.0
        self.spans: list[Span] = []
        self.service = trace(
            service,
            sampler(share),
            self.spans.append,
            clock=lambda: self.now,
            wall=lambda: 1000.0 + self.now,
            parent_of=parent_of,
        )


async def fine(_call: Call) -> Answer:
    return Answer(200, [], b"{}", tier="primary", source="openai")


def test_who_began_a_trace_decides_whether_it_is_recorded():
    recorded, header = sampler(share=1e-9).begin(Parent(TRACE_ID, SPAN_ID, is_sampled=True))
    assert recorded is not None
    assert header == f"00-{TRACE_ID}-{recorded.span_id}-01"
    assert recorded.span_id != SPAN_ID
    assert sampler(share=1.0).begin(Parent(TRACE_ID, SPAN_ID, is_sampled=False)) == (None, "")


def test_of_calls_without_a_trace_a_share_is_recorded_and_the_others_tell_those_behind_us_so():
    one = sampler(share=0.25)
    begun = [one.begin(None) for _ in range(4000)]
    recorded = [span for span, _ in begun if span is not None]
    assert 900 < len(recorded) < 1100
    assert all(header.endswith("-01" if span is not None else "-00") for span, header in begun)
    assert len({span.trace_id for span in recorded}) == len(recorded)


def test_ids_are_valid_ones_whatever_the_dice_say():
    span, header = Sampler(1.0, bits=lambda _count: 0).begin(None)
    assert span is not None
    assert parent_of([(b"traceparent", header.encode())]) == Parent(span.trace_id, span.span_id, is_sampled=True)


@pytest.mark.parametrize("broken", [b"", b"00-xyz", CALLERS[:-3], CALLERS + b"-more", CALLERS.replace(b"00-", b"ff-")])
def test_a_broken_traceparent_is_nobodys(broken: bytes):
    assert parent_of([(b"traceparent", broken)]) is None


def test_the_callers_span_its_flags_and_its_state_are_read():
    headers = [(b"Traceparent", CALLERS), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")]
    assert parent_of(headers) == Parent(TRACE_ID, SPAN_ID, is_sampled=True, state="a=1,b=2")
    unsampled = CALLERS[:-2] + b"00"
    assert parent_of([(b"traceparent", unsampled)]) == Parent(TRACE_ID, SPAN_ID, is_sampled=False)


async def test_a_span_begins_when_the_call_was_heard_and_ends_with_its_answer():
    async def slow(call: Call) -> Answer:
        bench.now += 2.0
        call.note("first", "failed", "reset")
        return await fine(call)

    bench = Bench(slow)
    bench.now = 10.5
    call = call_with([(b"traceparent", CALLERS)])
    await bench.service(call)
    (span,) = bench.spans
    assert (span.began, span.took_s) == (1010.0, 2.5)
    assert (span.tier, span.source, span.status, span.error) == ("primary", "openai", 200, "")
    assert span.steps == [("first", "failed", "reset")]
    assert call.trace == f"00-{TRACE_ID}-{span.span_id}-01"


@pytest.mark.parametrize("how", ["done", "left", "cut"])
async def test_a_streams_span_ends_when_it_ends_and_says_how(how: End):
    stream = HeldStream([b"x"])

    async def streaming(_call: Call) -> Answer:
        bench.now += 1.0
        return Answer(200, [], stream=stream)

    bench = Bench(streaming)
    await bench.service(call_with([]))
    assert not bench.spans
    bench.now += 3.0
    stream.finish(how)
    (span,) = bench.spans
    assert (span.first_s, span.took_s, span.end) == (1.0, 4.0, how)
    assert span.error == ("stream_cut" if how == "cut" else "")


async def test_what_failed_is_recorded_with_its_word_and_raised_as_it_was():
    async def failing(_call: Call) -> Answer:
        raise Failed("status_503", "the upstream said: secret things")

    bench = Bench(failing)
    with pytest.raises(Failed, match="secret things"):
        await bench.service(call_with([]))
    (span,) = bench.spans
    assert span.error == "status_503"
    assert not any("secret" in str(getattr(span, name)) for name in Span.__slots__)


async def test_a_call_that_is_not_recorded_is_only_passed_on():
    bench = Bench(fine)
    call = call_with([(b"traceparent", CALLERS[:-2] + b"00")])
    assert (await bench.service(call)).status == 200
    assert (bench.spans, call.span, call.trace) == ([], None, "")


def test_of_a_long_body_only_its_ends_are_kept():
    long = b"a" * ASKED_HEAD_BYTES + b"b" * 100_000 + b"c" * ASKED_END_BYTES
    assert ends_of(long) == b"a" * ASKED_HEAD_BYTES + b"c" * ASKED_END_BYTES
    assert ends_of(b"short") == b"short"
