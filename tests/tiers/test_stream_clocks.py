"""The clocks of streams, to the millisecond on a virtual clock: each fires alone, and says which it was."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.kit.acts import pieces
from tests.kit.fake_upstream import Act, Heard, Wire
from tests.tiers.upstream_bench import Bench, Sink, taken
from understudy.policies.service import Answer, Call, Failed
from understudy.policies.streaming import Clocks, Held, Watch, content_among, named_like
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.settings.stream import Patience, Streaming

TOKEN = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'
ROLE = b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n'
END = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
COMMENT = b": still there\n\n"
EVENTS = [(b"content-type", b"text/event-stream")]


def now() -> float:
    return asyncio.get_running_loop().time()


def said(*parts: tuple[float, bytes], ending: str = "stall") -> Act:
    """Each part so many seconds after the one before; then silence, or the end."""

    async def play(wire: Wire, _heard: Heard) -> None:
        await wire.head(200, [*EVENTS, (b"transfer-encoding", b"chunked")])
        for wait_s, part in parts:
            await asyncio.sleep(wait_s)
            await wire.chunk(part)
        if ending == "whole":
            await wire.write(b"0\r\n\r\n")
        else:
            await wire.closed.wait()

    return play


def bench(act: Act, *, holds: bool = True, first_byte_s: float = 30.0, **stream: Any) -> Bench:
    return Bench(act, stream=Streaming(**stream), first_byte_s=first_byte_s, holds=holds)


def streamed(bench: Bench, model: str = "m", *, last: bool = False) -> Call:
    call = bench.call(body=json.dumps({"model": model, "stream": True}).encode())
    call.wants_stream = True
    call.until -= 0.0 if last else 1.0
    return call


async def fails(bench: Bench, call: Call) -> Failed:
    with pytest.raises(Failed) as raised:
        await bench.tier(call)
    return raised.value


async def cut(answer: Answer) -> tuple[str, float]:
    """Why a stream was cut, and when."""
    sink = await taken(answer)
    return sink.broken, now()


async def test_no_head_in_time_is_the_first_clock():
    async def silent(wire: Wire, _heard: Heard) -> None:
        await wire.closed.wait()

    async with bench(silent, headers_s=3.0, first_content_s=20.0) as up:
        began = now()
        failed = await fails(up, streamed(up))
        assert (failed.reason, failed.elsewhere) == ("first_byte_timeout", True)
        assert now() - began == pytest.approx(3.0, abs=0.01)


async def test_a_head_a_role_and_comments_for_ever_are_the_second_clock():
    comments = [(1.0, COMMENT)] * 60
    async with bench(said((0.5, ROLE), *comments), headers_s=3.0, first_content_s=20.0) as up:
        began = now()
        failed = await fails(up, streamed(up))
        assert (failed.reason, failed.elsewhere) == ("first_content_timeout", True)
        assert now() - began == pytest.approx(20.0, abs=0.01)
        await up.settled()
        assert up.up.connections_open == 0


async def test_silence_between_two_contents_is_the_third_clock():
    async with bench(said((0.1, TOKEN), (0.1, TOKEN)), gap_s=5.0) as up:
        answer = await up.tier(streamed(up))
        began = now()
        broken, at = await cut(answer)
        assert broken == "stalled"
        assert at - began == pytest.approx(5.1, abs=0.01)
        await up.settled()
        assert up.up.connections_open == 0


@pytest.mark.parametrize("idle", [COMMENT, ROLE, b'data: {"choices": []}\n\n'], ids=["comments", "roles", "empty"])
async def test_what_is_no_content_does_not_put_the_third_clock_off(idle: bytes):
    async with bench(said((0.1, TOKEN), *[(0.7, idle)] * 100), gap_s=5.0) as up:
        answer = await up.tier(streamed(up))
        began = now()
        broken, at = await cut(answer)
        assert broken == "stalled"
        assert 5.0 <= at - began <= 5.5


async def test_content_among_comments_puts_the_third_clock_off():
    parts = [(1.0, COMMENT), (1.0, COMMENT), (1.0, COMMENT), (1.0, TOKEN)] * 10
    async with bench(said((0.1, TOKEN), *parts, (0.1, END), ending="whole"), gap_s=5.0) as up:
        sink = await taken(await up.tier(streamed(up)))
        assert (sink.broken, sink.body.count(TOKEN)) == ("", 11)


@pytest.mark.parametrize("bytes_a_piece", [1, 7, 50])
async def test_an_event_that_comes_in_crumbs_is_content(bytes_a_piece: int):
    crumbs = [(0.2, TOKEN[at : at + bytes_a_piece]) for at in range(0, len(TOKEN), bytes_a_piece)]
    async with bench(said((0.1, TOKEN), *crumbs * 5, (0.1, END), ending="whole"), gap_s=2.0) as up:
        sink = await taken(await up.tier(streamed(up)))
        assert (sink.broken, sink.body.count(TOKEN)) == ("", 6)


async def test_a_stream_that_never_ends_is_the_last_clock():
    async with bench(said(*[(0.5, TOKEN)] * 1000), gap_s=5.0, total_s=40.0) as up:
        began = now()
        broken, at = await cut(await up.tier(streamed(up)))
        assert broken == "total_timeout"
        assert at - began == pytest.approx(40.0, abs=0.55)


async def test_a_slow_reader_is_no_silence():
    async with bench(said((0.1, TOKEN), (30.0, TOKEN), (0.1, END), ending="whole"), gap_s=5.0) as up:
        answer = await up.tier(streamed(up))
        assert answer.stream is not None
        sink = Sink(answer.stream)
        answer.stream.relay(sink)
        answer.stream.pause()
        await asyncio.sleep(60)
        assert not sink.over.is_set()
        answer.stream.resume()
        await sink.over.wait()
        assert sink.broken == ""


async def test_models_that_think_first_have_their_own_limits_streamed_and_whole():
    patient = [Patience(models=["o3*", "*-thinking"], first_content_s=120.0, gap_s=60.0)]
    act = said((100.0, TOKEN), (50.0, TOKEN), (0.1, END), ending="whole")
    async with bench(act, first_content_s=10.0, gap_s=5.0, patient=patient) as up:
        assert (await taken(await up.tier(streamed(up, "O3-mini")))).broken == ""
        assert (await fails(up, streamed(up, "gpt"))).reason == "first_content_timeout"

    whole = pieces([b'{"choices": []}'], first_s=100.0, headers=[(b"content-type", b"application/json")])
    async with bench(whole, patient=patient) as up:
        call = up.call(body=b'{"model": "qwen-thinking"}')
        assert (await up.tier(call)).status == 200
        assert (await fails(up, up.call(body=b'{"model": "qwen"}'))).reason == "first_byte_timeout"


async def test_too_slow_a_beginning_fails_over_before_anybody_has_seen_it_and_never_after():
    slow = said(*[(1.25, TOKEN)] * 20, (0.1, END), ending="whole")
    async with bench(slow, contents_per_s_min=5.0, contents_within_s=2.0) as up:
        began = now()
        failed = await fails(up, streamed(up))
        assert (failed.reason, failed.elsewhere) == ("too_slow", True)
        assert now() - began == pytest.approx(3.25, abs=0.01), "two seconds from the first content"
        # who is asked last has nobody to be quicker than
        sink = await taken(await up.tier(streamed(up, last=True)))
        assert (sink.broken, sink.body.count(TOKEN)) == ("", 20)

    late = said(*[(0.01, TOKEN)] * 10, *[(1.25, TOKEN)] * 10, (0.1, END), ending="whole")
    async with bench(late, contents_per_s_min=5.0, contents_within_s=2.0) as up:
        began = now()
        answer = await up.tier(streamed(up))
        assert now() - began == pytest.approx(0.1, abs=0.01), "what is quick enough is not held for two seconds"
        sink = await taken(answer)
        assert (sink.broken, sink.body.count(TOKEN)) == ("", 20)


async def test_with_nobody_to_fail_over_to_nothing_is_held():
    async with bench(said((0.5, ROLE), (9.0, TOKEN), (0.1, END), ending="whole"), holds=False) as up:
        began = now()
        answer = await up.tier(streamed(up))
        assert now() - began < 0.1
        sink = await taken(answer)
        assert (sink.broken, sink.body) == ("", ROLE + TOKEN + END)

    async with bench(said((0.5, ROLE)), holds=False, first_content_s=4.0) as up:
        began = now()
        broken, at = await cut(await up.tier(streamed(up)))
        assert broken == "first_content_timeout"
        assert at - began == pytest.approx(4.0, abs=0.01)


async def test_start_up_events_are_held_within_bounds():
    for bound in ({"held_events_max": 20}, {"held_bytes_max": 20 * len(ROLE)}):
        async with bench(said(*[(0.1, ROLE)] * 40, (0.1, TOKEN), (0.1, END), ending="whole"), **bound) as up:
            began = now()
            answer = await up.tier(streamed(up))
            assert now() - began == pytest.approx(2.1, abs=0.01)
            assert (await taken(answer)).broken == ""


async def test_a_buffered_stream_is_handed_over_whole_and_what_breaks_it_fails_over():
    whole = said(*[(0.5, TOKEN)] * 10, (0.1, END), ending="whole")
    async with bench(whole, after_first_content="buffer") as up:
        began = now()
        answer = await up.tier(streamed(up))
        assert now() - began == pytest.approx(5.1, abs=0.01)
        sink = await taken(answer)
        assert (sink.body, sink.broken) == (TOKEN * 10 + END, "")
        assert up.pool.idle == 1

    for ending, reason in (("cut", "truncated"), ("stall", "stalled")):
        async with Bench(
            pieces([TOKEN] * 10, gap_s=0.5, headers=EVENTS, ending=ending),  # type: ignore[arg-type]
            stream=Streaming(after_first_content="buffer", gap_s=4.0),
        ) as up:
            assert (await fails(up, streamed(up))).reason == reason


async def test_a_buffered_stream_is_handed_over_at_its_bounds_and_before_there_is_no_time_left():
    long = said(*[(0.5, TOKEN)] * 100, (0.1, END), ending="whole")
    for bound, after_s in (({"buffer_s_max": 8.0}, 8.5), ({"buffer_bytes_max": 10 * len(TOKEN)}, 5.5)):
        async with bench(long, after_first_content="buffer", **bound) as up:
            began = now()
            answer = await up.tier(streamed(up))
            assert now() - began == pytest.approx(after_s, abs=0.01)
            assert (await taken(answer)).body == TOKEN * 100 + END
    async with bench(long, after_first_content="buffer") as up:
        call = streamed(up)
        call.until = now() + 3.0
        assert (await up.tier(call)).stream is not None


async def test_a_caller_who_waits_less_long_than_the_clocks_is_no_fault_of_the_upstreams():
    async with bench(said((0.5, ROLE))) as up:
        call = streamed(up)
        call.until = now() + 3.0
        failed = await fails(up, call)
        assert (failed.reason, failed.soft) == ("deadline", True)


async def test_an_error_inside_a_200_behind_many_start_up_events_is_found():
    error = b'data: {"error": {"code": "overloaded"}}\n\n'
    async with bench(said(*[(0.1, ROLE)] * 50, (0.1, error))) as up:
        assert (await fails(up, streamed(up))).reason == "error_in_stream"


async def test_a_connection_that_carried_a_stream_carries_another_on_fresh_clocks():
    async with bench(said((0.2, TOKEN), (0.2, END), ending="whole"), gap_s=2.0, first_content_s=3.0) as up:
        for _ in range(5):
            assert (await taken(await up.tier(streamed(up)))).broken == ""
            await asyncio.sleep(2.5)
        assert up.up.connections_ever == 1


# --- the heart -------------------------------------------------------------------------------------------------------


class Letters:
    """A dialect in which `x` is content, and events are lines."""

    def primed(self, held: bytes) -> str:
        return "go" if b"x" in held else "wait"


def clocks(**other: Any) -> Clocks:
    return Clocks(**({"headers_s": 1.0, "first_content_s": 2.0, "gap_s": 10.0, "total_s": 100.0} | other))


def test_a_held_stream_reads_each_byte_once():
    read: list[int] = []

    class Counting(Letters):
        def primed(self, held: bytes) -> str:
            read.append(len(held))
            return super().primed(held)

    held = Held(clocks(events_max=10_000), Counting(), 0.0, 100.0)
    for _ in range(1000):
        assert not held.take(b"data: y\n\n", 0.0)
    assert max(read) == len(b"data: y\n\n")


def test_a_watch_is_looked_at_ten_times_in_a_gap():
    watch = Watch(clocks(), 0.0, 5.0)
    assert watch.next_look(5.0) == 6.0
    assert watch.look(6.0, 6.0) == 7.0
    assert watch.look(15.5, None) == 16.0
    with pytest.raises(Failed, match="silent"):
        watch.look(16.0, None)


@pytest.mark.parametrize(
    ("before", "fresh", "is_content"),
    [
        (b"", TOKEN, True),
        (TOKEN, COMMENT, False),
        (TOKEN, b": half a comm", False),
        (TOKEN, b'data: {"choices"', True),
        (TOKEN[:20], TOKEN[20:], True),
        (TOKEN, TOKEN[:-1] + b"\r", True),
        (TOKEN, b'data: {"error": {"code": "x"}}\n\n', True),
        (TOKEN.replace(b"\n", b"\r\n"), COMMENT.replace(b"\n", b"\r\n"), False),
        (TOKEN, ROLE, False),
    ],
)
def test_content_is_told_from_what_only_keeps_a_connection_alive(before: bytes, fresh: bytes, is_content: bool):
    assert content_among(DIALECTS["openai-chat"], before, fresh) == is_content


@pytest.mark.parametrize(
    ("dialect", "content", "idle"),
    [
        (
            "anthropic",
            b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"x"}}\n\n',
            b'event: ping\ndata: {"type": "ping"}\n\n',
        ),
        (
            "ollama-chat",
            b'{"message":{"content":"x"},"done":false}\n',
            b'{"message":{"role":"assistant","content":""},"done":false}\n',
        ),
    ],
)
def test_so_it_is_in_the_other_dialects(dialect: str, content: bytes, idle: bytes):
    reading = DIALECTS[dialect]
    assert content_among(reading, idle, content)
    assert not content_among(reading, content, idle)
    assert content_among(reading, content + idle, idle + content)


@pytest.mark.parametrize(
    ("patterns", "name", "fits"),
    [
        (["o3*"], "o3-mini", True),
        (["o3*"], "gpt-o3", False),
        (["o3*", "*-Thinking*"], "qwen3-thinking-2507", True),
        (["deepseek-r1"], "deepseek-r1", True),
        (["deepseek.r1"], "deepseek-r1", False),
        (["*"], "", True),
    ],
)
def test_a_model_is_known_by_its_name(patterns: Sequence[str], name: str, fits: bool):
    assert named_like(patterns)(name) == fits
