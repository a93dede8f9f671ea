"""Streamed answers of an upstream: primed before they are handed over, watched until they end."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from tests.http.house import content
from tests.kit.acts import answer, broken, pieces, raw, sse
from tests.kit.fake_upstream import Heard, Wire
from tests.tiers.upstream_bench import Bench, Sink, taken
from understudy.policies.service import Failed

EVENTS = [(b"content-type", b"text/event-stream")]
ROLE = content()[0]
END = content()[-1]


def now() -> float:
    return asyncio.get_running_loop().time()


def event(text: str) -> bytes:
    return f"data: {text}\n\n".encode()


HELLO = b'data: {"choices": [{"delta": {"content": "hello"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


async def test_a_stream_is_handed_over_at_its_first_content_and_not_before():
    async with Bench(sse(content("Hel", "lo"), gap_s=1.0)) as bench:
        started = now()
        answered = await bench.ask()
        assert 0.9 <= now() - started <= 1.1, "the role came at once, the content a second later"
        assert answered.stream is not None
        sink = await taken(answered)
        assert sink.body.count(b"data: ") == 5
        assert (sink.broken, sink.ended) == ("", "done")
        assert bench.pool.idle == 1


async def test_comments_and_a_role_are_no_first_content():
    async def keep_alive_only(wire: Wire, _heard: Heard) -> None:
        await wire.head(200, [*EVENTS, (b"transfer-encoding", b"chunked")])
        await wire.chunk(b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n')
        while True:
            await wire.chunk(b": keep-alive\n\n")
            await asyncio.sleep(1)

    async with Bench(keep_alive_only, first_byte_s=10.0) as bench:
        started = now()
        failed = await bench.fails()
        assert (failed.reason, failed.again) == ("first_byte_timeout", True)
        assert 9.9 <= now() - started <= 10.1


async def test_a_slow_thinker_is_waited_for():
    async with Bench(sse(content("Hello"), gap_s=40.0), first_byte_s=120.0, idle_s=60.0) as bench:
        assert (await taken(await bench.ask())).broken == ""


@pytest.mark.parametrize("again", [True, False])
async def test_an_error_inside_a_stream_before_any_content_is_failed(again: bool):
    error = {"error": {"code": "overloaded" if again else "insufficient_quota"}}
    async with Bench(sse([ROLE, error], gap_s=0.1)) as bench:
        failed = await bench.fails()
        assert (failed.reason, failed.again, failed.elsewhere) == ("error_in_stream" if again else "quota", again, True)
        await bench.settled()
        assert bench.pool.size == 0


async def test_an_error_answer_that_calls_itself_a_stream_is_wanted_whole():
    async with Bench(pieces([b'data: {"error"', b": {}}\n\n"], gap_s=0.1, status=503, headers=EVENTS)) as bench:
        failed = await bench.fails()
        assert failed.answer is not None
        assert failed.answer.body == b'data: {"error": {}}\n\n'


async def test_a_page_where_a_stream_should_be_is_failed():
    async with Bench(pieces([b"<html>", b"</html>"], headers=EVENTS)) as bench:
        assert (await bench.fails()).reason == "garbage"


async def test_a_stream_that_breaks_before_any_content_is_failed():
    for ending in ("cut", "reset"):
        async with Bench(sse([ROLE], gap_s=0.1, ending=ending)) as bench:  # type: ignore[arg-type]
            assert (await bench.fails()).reason == "truncated"


async def test_a_stream_that_comes_in_one_packet_and_is_broken_already_is_failed():
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    async with Bench(raw(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(HELLO), HELLO))) as bench:
        assert (await bench.fails()).reason == "truncated"


@pytest.mark.parametrize("piece_bytes", [1, 2, 7, 10_000])
async def test_a_whole_stream_is_whole_however_it_was_cut_up(piece_bytes: int):
    whole = HELLO * 3 + event('{"choices": [{"delta": {}, "finish_reason": "stop"}]}') + DONE
    parts = [whole[at : at + piece_bytes] for at in range(0, len(whole), piece_bytes)]
    async with Bench(pieces(parts, gap_s=0.001, headers=EVENTS)) as bench:
        for _ in range(2):
            sink = await taken(await bench.ask())
            assert (sink.body, sink.broken) == (whole, "")
        assert bench.up.connections_ever == 1


async def test_a_stream_may_end_with_its_connection():
    for framing in ("until-close",):
        async with Bench(pieces([HELLO, DONE], gap_s=0.1, headers=EVENTS, framing=framing)) as bench:
            sink = await taken(await bench.ask())
            assert (sink.body, sink.broken) == (HELLO + DONE, "")


async def test_a_stream_that_ends_with_its_connection_too_early_is_broken():
    async with Bench(pieces([HELLO, HELLO], gap_s=0.1, headers=EVENTS, framing="until-close")) as bench:
        sink = await taken(await bench.ask())
        assert (sink.broken, sink.ended) == ("truncated", "cut")


@pytest.mark.parametrize("ending", ["cut", "reset"])
async def test_a_stream_that_breaks_in_the_middle_is_cut(ending: str):
    async with Bench(pieces([HELLO] * 5, gap_s=0.1, headers=EVENTS, ending=ending)) as bench:  # type: ignore[arg-type]
        sink = await taken(await bench.ask())
        assert (sink.body, sink.broken, sink.ended) == (HELLO * 5, "truncated", "cut")
        await bench.settled()
        assert bench.pool.size == 0


async def test_a_malformed_event_in_the_middle_passes_untouched():
    parts = [HELLO, event('{"choices": [{"del'), HELLO, DONE]
    async with Bench(pieces(parts, gap_s=0.1, headers=EVENTS)) as bench:
        sink = await taken(await bench.ask())
        assert (sink.body, sink.broken) == (b"".join(parts), "")


async def test_a_stream_without_done_but_with_a_reason_for_its_end_is_whole():
    async with Bench(sse(content("x"), gap_s=0.1, done=False)) as bench:
        assert (await taken(await bench.ask())).broken == ""


async def test_an_error_before_done_reaches_the_caller_as_it_is_and_is_a_failure_of_the_endpoint():
    parts = [HELLO, event('{"error": {"message": "no more", "code": "overloaded"}}'), DONE]
    async with Bench(pieces(parts, gap_s=0.1, headers=EVENTS)) as bench:
        sink = await taken(await bench.ask())
        assert (sink.body, sink.broken, sink.ended) == (b"".join(parts), "", "cut")


async def test_a_whole_stream_with_an_error_in_it_is_failed_before_anybody_is_given_any_of_it():
    parts = [HELLO, event('{"error": {"message": "no more", "code": "overloaded"}}'), DONE]
    async with Bench(pieces([b"".join(parts)], headers=EVENTS)) as bench:
        with pytest.raises(Failed, match="broke off") as caught:
            await bench.ask()
        assert (caught.value.reason, caught.value.fault) == ("error_in_stream", "endpoint")


async def test_a_stream_that_falls_silent_is_cut_when_its_time_is_up():
    async with Bench(sse(content("a", "b")[:-1], ending="stall"), idle_s=20.0) as bench:
        answered = await bench.ask()
        assert answered.stream is not None
        sink = Sink(answered.stream)
        answered.stream.relay(sink)
        started = now()
        while not sink.over.is_set():
            await asyncio.sleep(1)
            bench.pool.sweep(now())
        assert (sink.broken, sink.ended) == ("stalled", "cut")
        assert 20 <= now() - started <= 22
        await bench.settled()
        assert bench.up.connections_open == 0


async def test_a_stream_whose_reader_pauses_is_not_silent():
    async with Bench(sse(content("a", "b"), gap_s=1.0), idle_s=20.0) as bench:
        answered = await bench.ask()
        assert answered.stream is not None
        sink = Sink(answered.stream)
        answered.stream.relay(sink)
        answered.stream.pause()
        for _ in range(100):
            await asyncio.sleep(1)
            bench.pool.sweep(now())
        assert not sink.over.is_set()
        answered.stream.resume()
        await sink.over.wait()
        assert sink.broken == ""


async def test_a_stream_that_stalls_on_a_closed_pool_is_cut_all_the_same():
    async with Bench(sse(content("a", "b")[:-1], ending="stall"), idle_s=20.0) as bench:
        answered = await bench.ask()
        bench.pool.close()
        started = now()
        sink = await taken(answered)
        assert sink.broken == "stalled"
        assert 20 <= now() - started <= 22


async def test_a_stream_nobody_takes_is_held_within_bounds_and_given_whole_later():
    sent = 0

    async def flood(wire: Wire, _heard: Heard) -> None:
        nonlocal sent
        await wire.head(200, [(b"transfer-encoding", b"chunked")])
        for _ in range(2000):
            await wire.chunk(b"f" * 10_000)
            sent += 10_000
        await wire.write(b"0\r\n\r\n")

    async with Bench(flood, dialect="plain") as bench:
        answered = await bench.ask("pass", "GET", b"")
        await asyncio.sleep(1)
        assert answered.stream is not None
        held = sum(map(len, answered.stream._held))  # type: ignore[attr-defined]
        assert held < 1_000_000
        assert sent < 20_000_000
        sink = await taken(answered)
        assert len(sink.body) == 20_000_000
        assert sink.broken == ""


async def test_a_stream_closed_by_its_caller_closes_the_connection():
    async with Bench(sse(content("a", "b"), gap_s=1.0)) as bench:
        answered = await bench.ask()
        assert answered.stream is not None
        sink = Sink(answered.stream)
        answered.stream.relay(sink)
        answered.stream.close()
        answered.stream.close()
        await bench.settled()
        assert (sink.ended, sink.over.is_set()) == ("left", False)
        assert (bench.pool.size, bench.up.connections_open) == (0, 0)


async def test_a_stream_that_nobody_was_given_is_let_go():
    async with Bench(sse(content("a", "b"), gap_s=1.0)) as bench:
        asking = asyncio.ensure_future(bench.ask())
        while not asking.done():
            await asyncio.sleep(0.05)
            connection = next(iter(bench.pool._all), None)
            if connection is not None and connection._stream is not None:
                asking.cancel()
                break
        await asyncio.wait([asking])
        if not asking.cancelled():
            stream = asking.result().stream
            assert stream is not None
            stream.close()
        await bench.settled()
        assert bench.pool.size == 0


async def test_a_long_whole_answer_becomes_a_stream_that_knows_its_length():
    body = b"[" + b"1," * 100_000 + b"1]"
    async with Bench(answer(200, body=body), held_bytes_max=1000) as bench:
        answered = await bench.ask()
        assert answered.stream is not None
        assert answered.stream.length == len(body)
        assert (await taken(answered)).body == body


async def test_a_long_chunked_answer_becomes_a_stream_when_it_is_too_much_to_hold():
    body = b"[" + b"1," * 100_000 + b"1]"
    async with Bench(answer(200, body=body, framing="chunked"), held_bytes_max=50_000) as bench:
        answered = await bench.ask()
        assert answered.stream is not None
        assert answered.stream.length is None
        assert (await taken(answered)).body == body


async def test_what_is_only_passed_on_is_a_stream_from_its_head_on():
    async with Bench(pieces([b"a", b"b"], first_s=5.0, gap_s=5.0), dialect="plain") as bench:
        started = now()
        answered = await bench.ask("pass", "GET", b"")
        assert now() - started < 1
        assert (await taken(answered)).body == b"ab"


async def test_a_passed_stream_that_breaks_is_cut():
    async with Bench(broken("cut", after=100_000, body=b"b" * 200_000), dialect="plain") as bench:
        answered = await bench.ask("pass", "GET", b"")
        assert (await taken(answered)).broken == "truncated"


async def test_packed_events_pass_as_they_come():
    packed = [*EVENTS, (b"content-encoding", b"gzip")]
    async with Bench(pieces([b"\x1f\x8b", b"\x00" * 100_000], gap_s=1.0, headers=packed)) as bench:
        started = now()
        answered = await bench.ask()
        assert now() - started < 0.5
        sink = await taken(answered)
        assert (len(sink.body), sink.broken) == (100_002, "")


async def test_tokens_keep_their_distance():
    async with Bench(sse(content(*"x" * 49), gap_s=0.024)) as bench:
        answered = await bench.ask()
        assert answered.stream is not None
        times: list[float] = []
        sink = Sink(answered.stream)
        sink.write = lambda chunk: times.append(now())  # type: ignore[method-assign]
        answered.stream.relay(sink)
        await sink.over.wait()
        gaps = sorted(after - before for before, after in pairwise(times))
        assert gaps[int(len(gaps) * 0.95)] < 0.04


async def test_failed_is_what_a_dialect_raises_and_not_a_bug():
    with pytest.raises(Failed, match="insufficient_quota"):
        async with Bench(sse([{"error": {"code": "insufficient_quota"}}])) as bench:
            await bench.ask()
