"""Faults on purpose: whom they befall and when, what they do to answers and streams, and what callers get."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.weather import call_of
from understudy.policies.fault import HungUp, Injection, SpoiltStream, Stage, fault, marked
from understudy.policies.service import Answer, Call, Failed, HeldStream, Service
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.settings.settings import LocalTier, PlannedFault
from understudy.proxy.stages import RouteStage, TierStage
from understudy.proxy.tiers.judging import tier_judge

EMBEDDINGS = DIALECTS["openai-embeddings"]
VECTORS = json.dumps({"data": [{"embedding": [1.0, 2.0, 3.0]}, {"embedding": "AACAPwAAAEA="}]}).encode()


class Heard:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.ends: list[str] = []

    def write(self, chunk: bytes) -> None:
        self.chunks.append(chunk)

    def end(self) -> None:
        self.ends.append("end")

    def cut(self, reason: str) -> None:
        self.ends.append(f"cut {reason}")


async def answering(_call: Call) -> Answer:
    return Answer(200, [(b"content-type", b"application/json")], VECTORS)


def at_tier() -> TierStage:
    clock = asyncio.get_running_loop().time
    return TierStage(EMBEDDINGS, tier_judge(None, LocalTier(), EMBEDDINGS), clock=clock, first_byte_s=5.0)


def at_route() -> RouteStage:
    return RouteStage(EMBEDDINGS)


def faulty(stage: Stage, *planned: PlannedFault, service: Service = answering, luck: float = 0.0) -> Service:
    clock = asyncio.get_running_loop().time
    hearts = [Injection(each.do, each, clock()) for each in planned]
    return marked(fault(service, hearts, stage, clock=clock, dice=lambda: luck, sleep=asyncio.sleep))


# --- whom it befalls -----------------------------------------------------------------------------------------------


def test_a_fault_befalls_its_share_of_the_calls():
    dice = random.Random(9)
    heart = Injection("x", PlannedFault(do="abort", share=0.2), 0.0)
    assert abs(sum(heart.befalls(1.0, [], dice.random()) for _ in range(20_000)) / 20_000 - 0.2) < 0.01


def test_a_fault_befalls_only_calls_with_its_headers():
    heart = Injection("x", PlannedFault(do="abort", headers={"X-Chaos": "on", "x-team": "a"}), 0.0)
    assert heart.befalls(0.0, [(b"x-chaos", b"on"), (b"X-Team", b"a")], 0.0)
    assert not heart.befalls(0.0, [(b"x-chaos", b"on"), (b"x-team", b"b")], 0.0)
    assert not heart.befalls(0.0, [(b"x-chaos", b"on")], 0.0)


def test_a_window_opens_closes_and_comes_again():
    once = Injection("x", PlannedFault(do="abort", after_s=60, lasts_s=120), 1000.0)
    assert [once.is_on(1000.0 + at) for at in (0, 59.9, 60, 179.9, 180, 9999)] == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]
    again = Injection("x", PlannedFault(do="abort", after_s=60, lasts_s=120, every_s=600), 1000.0)
    assert [at for at in (60, 180, 599, 660, 779, 780) if again.is_on(1000.0 + at)] == [60, 660, 779]
    assert Injection("x", PlannedFault(do="abort"), 1000.0).is_on(1000.0)


@given(st.floats(0, 500), st.floats(0.1, 500), st.floats(1000, 5000), st.floats(0, 20_000), st.integers(1, 5))
def test_a_window_that_comes_again_is_the_same_one_period_later(
    after_s: float, lasts_s: float, every_s: float, at: float, periods: int
):
    at = round(at, 3)
    heart = Injection("x", PlannedFault(do="abort", after_s=after_s, lasts_s=lasts_s, every_s=round(every_s)), 0.0)
    edge = min(abs(at % round(every_s) - each) for each in (after_s, after_s + lasts_s))
    if edge > 1e-6:
        assert heart.is_on(at) == heart.is_on(at + periods * round(every_s))


# --- what it does, as if the upstream did it -----------------------------------------------------------------------


async def test_an_error_at_a_tier_is_judged_like_the_upstreams_own():
    call = call_of("embed", "x")
    with pytest.raises(Failed) as told:
        await faulty(at_tier(), PlannedFault(do="error", status=429, retry_after_s=7))(call)
    failed = told.value
    assert (failed.reason, failed.soft, failed.retry_after_s, call.attempts) == ("status_429", True, 7.0, 1)
    assert failed.answer is not None
    assert json.loads(failed.answer.body)["error"]["code"] == "fault"
    assert call.faults == ("error",)


async def test_a_callers_error_at_a_tier_is_an_answer():
    answer = await faulty(at_tier(), PlannedFault(do="error", status=401))(call_of("embed", "x"))
    assert (answer.status, dict(answer.headers)[b"x-understudy-fault"]) == (401, b"error")


async def test_an_abort_at_a_tier_is_a_reset_that_spares_writes():
    with pytest.raises(Failed) as told:
        await faulty(at_tier(), PlannedFault(do="abort"))(call_of("embed", "x"))
    assert (told.value.reason, told.value.again, told.value.elsewhere) == ("reset", True, True)
    with pytest.raises(Failed) as told:
        await faulty(at_tier(), PlannedFault(do="abort"))(call_of("pass", "x"))
    assert (told.value.again, told.value.elsewhere) == (False, False)


async def test_a_delay_at_a_tier_is_the_upstreams_time_and_ends_with_somebodys_patience():
    clock = asyncio.get_running_loop().time
    call, began = call_of("embed", "x"), clock()
    assert (await faulty(at_tier(), PlannedFault(do="delay", delay_s=3))(call)).status == 200
    assert (clock() - began, call.upstream_s) == (3.0, 3.0)
    for until_s, reason, soft in ((60.0, "first_byte_timeout", False), (2.0, "deadline", True)):
        call, began = call_of("embed", "x"), clock()
        call.until = began + until_s
        with pytest.raises(Failed) as told:
            await faulty(at_tier(), PlannedFault(do="delay", delay_s=3600))(call)
        assert (told.value.reason, told.value.soft, clock() - began) == (reason, soft, min(until_s, 5.0))


async def test_a_garbled_body_is_found_out_and_one_of_an_unknown_api_comes_through_as_long_as_before():
    with pytest.raises(Failed, match="garbage"):
        await faulty(at_tier(), PlannedFault(do="garble"))(call_of("embed", "x"))
    answer = await faulty(at_tier(), PlannedFault(do="garble"))(call_of("pass", "x"))
    assert len(answer.body) == len(VECTORS)
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(answer.body)


async def test_a_cut_body_at_a_tier_is_a_truncated_answer_and_a_shorter_one_is_whole():
    with pytest.raises(Failed, match="cut off"):
        await faulty(at_tier(), PlannedFault(do="cut", after_bytes=10))(call_of("embed", "x"))
    answer = await faulty(at_tier(), PlannedFault(do="cut", after_bytes=10_000))(call_of("embed", "x"))
    assert answer.body == VECTORS


async def test_vectors_lose_a_number_as_floats_and_as_base64():
    answer = await faulty(at_tier(), PlannedFault(do="dimension"))(call_of("embed", "x"))
    assert [each["embedding"] for each in json.loads(answer.body)["data"]] == [[1.0, 2.0], "AACAPw=="]


# --- what callers get of it ----------------------------------------------------------------------------------------


async def test_an_error_at_a_route_is_an_answer_in_the_dialects_shape_that_an_sdk_may_retry():
    answer = await faulty(at_route(), PlannedFault(do="error", status=503, retry_after_s=2))(call_of("embed", "x"))
    headers = dict(answer.headers)
    assert (answer.status, headers[b"retry-after"]) == (503, b"2")
    assert b"x-should-retry" not in headers


async def test_an_abort_and_a_cut_at_a_route_break_the_connection():
    for planned, chunks in ((PlannedFault(do="abort"), []), (PlannedFault(do="cut", after_bytes=4), [VECTORS[:4]])):
        answer, heard = await faulty(at_route(), planned)(call_of("embed", "x")), Heard()
        assert answer.stream is not None
        answer.stream.relay(heard)
        assert (heard.chunks, heard.ends, answer.stream.ended) == (chunks, ["cut fault"], "cut")


async def test_a_fault_that_spared_the_call_leaves_no_mark():
    answer = await faulty(at_route(), PlannedFault(do="error", share=0.5), luck=0.7)(call_of("embed", "x"))
    assert (answer.status, answer.lines()) == (200, b"content-type: application/json\r\n")


async def test_several_faults_each_draw_for_themselves_and_all_are_named():
    clock = asyncio.get_running_loop().time
    began = clock()
    planned = PlannedFault(do="delay", delay_s=1), PlannedFault(do="garble")
    answer = await faulty(at_route(), *planned)(call_of("embed", "x"))
    assert clock() - began == 1.0
    assert dict(answer.headers)[b"x-understudy-fault"] == b"delay, garble"


# --- streams -------------------------------------------------------------------------------------------------------

SPOILT: list[tuple[Callable[[HeldStream], SpoiltStream], list[bytes], str]] = [
    (lambda inner: SpoiltStream(inner, bytes_max=3), [b"ab", b"{"], "cut fault"),
    (lambda inner: SpoiltStream(inner, bytes_max=2), [b"ab"], "cut fault"),
    (lambda inner: SpoiltStream(inner, bytes_max=0), [], "cut fault"),
    (lambda inner: SpoiltStream(inner, bytes_max=99), [b"ab", b"{d", b"ef"], "end"),
    (lambda inner: SpoiltStream(inner, bytes_max=0, chunks_max=2), [b"ab", b"{d"], "cut fault"),
    (lambda inner: SpoiltStream(inner, garble=True), [b"ab", b"<d", b"ef"], "end"),
]


@pytest.mark.parametrize(("spoil", "chunks", "end"), SPOILT)
def test_a_stream_breaks_where_it_was_told_to(
    spoil: Callable[[HeldStream], SpoiltStream], chunks: list[bytes], end: str
):
    inner = HeldStream([b"ab", b"{d", b"ef"])
    stream, heard, ends = spoil(inner), Heard(), list[str]()
    stream.watch(ends.append)
    stream.relay(heard)
    assert (heard.chunks, heard.ends) == (chunks, [end])
    assert ends == ["done" if end == "end" else "cut"]
    assert inner.ended in ("done", "left")


@given(
    st.lists(st.binary(max_size=8), max_size=8),
    st.integers(0, 40),
    st.lists(st.sampled_from(["pause", "resume", "close"]), max_size=6),
)
def test_however_it_is_paused_and_left_a_stream_ends_once_and_never_says_more_than_it_may(
    pieces: list[bytes], bytes_max: int, acts: list[str]
):
    inner = HeldStream(pieces)
    stream, heard, ends = SpoiltStream(inner, bytes_max=bytes_max), Heard(), list[str]()
    stream.watch(ends.append)
    stream.pause()
    stream.relay(heard)
    for act in acts:
        getattr(stream, act)()
    whole = b"".join(pieces)
    assert whole[:bytes_max].startswith(b"".join(heard.chunks))
    assert len(ends) == (stream.ended is not None) <= 1
    assert len(heard.ends) <= 1
    if "close" not in acts and "resume" in acts and acts[-1] == "resume":
        assert heard.ends == (["end"] if len(whole) < bytes_max else ["cut fault"])


def test_a_broken_answer_that_nobody_takes_is_let_go():
    stream, heard = HungUp(b"abc", 10), Heard()
    stream.close()
    stream.relay(heard)
    assert (heard.chunks, stream.ended, stream.length) == ([], "left", 10)
