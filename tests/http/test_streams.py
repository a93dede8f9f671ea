"""Answers that arrive in pieces: backpressure, callers who leave, streams that break, and the way down."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.http.house import CHAT_STREAM, House, answering, chat, content, request, turns, until
from tests.kit.acts import broken, pieces, silence, sse
from tests.kit.fake_upstream import Heard, Wire
from understudy.policies.service import Answer, Call, HeldStream
from understudy.proxy.http import response_head, upstream
from understudy.proxy.http.response_head import ResponseHead
from understudy.proxy.settings.settings import Limits

pytestmark = pytest.mark.usefixtures("either_loop")

MEGA = 1024 * 1024
SMALL_BUFFER = Limits(write_buffer_bytes_max=64 * 1024)


class Flood:
    """An act that sends `total` bytes of a chunked answer as fast as they are taken, and counts them."""

    def __init__(self, total: int, piece: int = 64 * 1024) -> None:
        self.total = total
        self.piece = piece
        self.sent = 0

    async def __call__(self, wire: Wire, _heard: Heard) -> None:
        await wire.head(200, [(b"transfer-encoding", b"chunked")])
        while self.sent < self.total:
            await wire.chunk(self.sent.to_bytes(8, "big") * (self.piece // 8))
            self.sent += self.piece
        await wire.write(b"0\r\n\r\n")

    @property
    def whole(self) -> bytes:
        return b"".join(at.to_bytes(8, "big") * (self.piece // 8) for at in range(0, self.total, self.piece))


async def quiet(flood: Flood) -> int:
    """How much of the flood was sent when no more goes out."""
    before = -1
    while before != flood.sent:
        before = flood.sent
        await asyncio.sleep(0.05)
    return before


async def test_a_slow_reader_pauses_the_upstream_and_then_gets_every_byte():
    async with House(limits=SMALL_BUFFER, ticking=False) as house:
        flood = Flood(64 * MEGA)
        house.up.then(flood)
        caller = await house.caller()
        caller.say(request())
        sent = await quiet(flood)
        # what is not with us fills the kernel's buffers on both sides
        assert sent < 32 * MEGA
        [door] = house.listener.doors
        held = door._transport.get_write_buffer_size()  # type: ignore[union-attr]
        assert held < MEGA
        got = await caller.hears()
        assert got.whole
        assert got.body == flood.whole


async def test_a_held_stream_waits_for_a_slow_reader_too():
    parts = [bytes([n % 256]) * 100_000 for n in range(300)]

    def made(_call: Call) -> Answer:
        return Answer(200, [], stream=HeldStream(list(parts)))

    async with House(limits=SMALL_BUFFER, service=answering(made)) as house:
        caller = await house.caller()
        caller.say(request(), request(target="/next"))
        await asyncio.sleep(0.05)
        [door] = house.listener.doors
        assert door._transport.get_write_buffer_size() < MEGA  # type: ignore[union-attr]
        for _ in range(2):
            assert (await caller.hears()).body == b"".join(parts)


class Counted:
    """A transport that counts what is written to it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.writes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)

    def write(self, data: bytes) -> None:
        self.writes += 1
        self.transport.write(data)


@pytest.mark.parametrize("goes_on", [True, False])
async def test_what_a_stream_begins_with_goes_out_in_one_piece_with_its_head(goes_on: bool):
    def made(_call: Call) -> Answer:
        return Answer(200, [], stream=HeldStream([b"role", b"word"]))

    async with House(service=answering(made)) as house:
        caller = await house.caller()
        await until(lambda: bool(house.listener.doors))
        [door] = house.listener.doors
        assert door._transport is not None  # type: ignore[union-attr]
        counted = door._transport = Counted(door._transport)  # type: ignore[assignment]
        caller.say(request() if goes_on else request(headers=[(b"connection", b"close")]))
        got = await caller.hears()
        assert (got.whole, got.body, counted.writes) == (True, b"roleword", 1)


@pytest.mark.interpreted
async def test_a_streams_head_is_read_once_and_not_again_while_any_connection_says_the_same(
    monkeypatch: pytest.MonkeyPatch,
):
    read: list[bytes] = []

    class Counting(ResponseHead):
        def __init__(self, raw: bytes) -> None:
            read.append(raw)
            super().__init__(raw)

    for module in (response_head, upstream):
        monkeypatch.setattr(module, "ResponseHead", Counting)
    monkeypatch.setattr(response_head, "_HEADS", {})
    async with House(dialect="openai-chat") as house:
        caller = await house.caller()
        for connections in (1, 1, 2):
            if connections > house.up.connections_ever > 0:
                for pool in house.pools:
                    pool.renew()
            house.up.then(sse(content("Hel", "lo")))
            caller.say(chat(CHAT_STREAM))
            assert b"[DONE]" in (await caller.hears()).body
            assert house.up.connections_ever == connections
        assert len(read) == 1


def test_of_heads_that_are_each_another_a_few_are_remembered(monkeypatch: pytest.MonkeyPatch):
    heads: dict[bytes, ResponseHead] = {}
    monkeypatch.setattr(response_head, "_HEADS", heads)
    for number in range(10 * response_head.HEADS_REMEMBERED_MAX):
        raw = b"HTTP/1.1 200 OK\r\nx-id: %d\r\ncontent-length: 0\r\n\r\n" % number
        head = response_head.whole_head(raw)
        assert head is not None
        assert head.block == b"x-id: %d\r\n" % number
        assert response_head.whole_head(raw) is head
        assert len(heads) <= response_head.HEADS_REMEMBERED_MAX
    long = b"HTTP/1.1 200 OK\r\nx-id: %b\r\ncontent-length: 0\r\n\r\n" % (b"a" * 4096)
    assert response_head.whole_head(long) is not None
    assert long not in heads


async def test_whole_answers_to_a_pipelining_slow_reader_are_bounded_too():
    def made(_call: Call) -> Answer:
        return Answer(200, [], b"x" * MEGA)

    async with House(
        limits=Limits(write_buffer_bytes_max=64 * 1024, pipelined_max=200), service=answering(made)
    ) as house:
        caller = await house.caller()
        caller.say(*[request()] * 100)
        await asyncio.sleep(0.05)
        [door] = house.listener.doors
        assert door._transport.get_write_buffer_size() <= 2 * MEGA  # type: ignore[union-attr]
        for _ in range(100):
            assert len((await caller.hears()).body) == MEGA


async def test_a_stream_behind_a_full_buffer_waits_from_its_first_byte():
    async with House(limits=SMALL_BUFFER, ticking=False) as house:
        flood = Flood(32 * MEGA)
        house.up.then(flood)
        whole = b"w" * (6 * MEGA)
        house.up.on_reuse = None
        caller = await house.caller()
        # the first answer stands in the buffer just below the mark
        house.parts.service, real = answering(lambda _call: Answer(200, [], whole)), house.parts.service
        caller.say(request())
        await until(lambda: any(door._transport.get_write_buffer_size() for door in house.listener.doors))  # type: ignore[union-attr]
        house.parts.service = real
        caller.say(request())
        assert await quiet(flood) < 24 * MEGA
        assert (await caller.hears()).body == whole
        assert (await caller.hears()).body == flood.whole


# --- callers who leave ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("farewell", ["reset", "close"])
async def test_a_caller_that_leaves_before_the_answer_frees_the_upstream(farewell: str):
    async with House() as house:
        house.up.always(silence())
        caller = await house.caller()
        caller.say(request())
        await until(lambda: house.up.heard)
        if farewell == "reset":
            caller.hang_up()
        else:
            caller.writer.close()
        await until(lambda: house.up.abandoned and not house.up.connections_open)
        assert house.in_hand == 0
        assert house.failures == 0
        assert house.parts.tally.left == 1
        assert house.logged[-1][:2] == (0, "left")


@pytest.mark.parametrize("farewell", ["reset", "close"])
@pytest.mark.parametrize("reading", [True, False])
async def test_a_caller_that_leaves_during_a_stream_frees_the_upstream(farewell: str, reading: bool):
    async with House(limits=SMALL_BUFFER) as house:
        flood = Flood(200 * MEGA)
        house.up.always(flood)
        caller = await house.caller()
        caller.say(request())
        if reading:
            await caller.reader.readexactly(MEGA)
        else:
            await quiet(flood)
        if farewell == "reset":
            caller.hang_up()
        else:
            caller.writer.close()
        await until(lambda: not house.up.connections_open)
        assert house.in_hand == 0
        assert house.failures == 0
        assert house.logged[-1][1] == "left"


async def test_a_caller_that_shuts_its_half_during_a_paused_stream_frees_the_upstream():
    async with House(limits=SMALL_BUFFER) as house:
        flood = Flood(200 * MEGA)
        house.up.always(flood)
        caller = await house.caller()
        caller.say(request())
        await quiet(flood)
        caller.writer.write_eof()
        await until(lambda: not house.up.connections_open)
        assert house.in_hand == 0


async def test_thirty_callers_leaving_at_once_leave_nothing():
    async with House() as house:
        house.up.always(pieces([b"x" * 1000] * 50, gap_s=0.01))
        callers = [await house.caller() for _ in range(30)]
        for number, caller in enumerate(callers):
            caller.say(request(target=f"/{number}"))
        for caller in callers[:15]:
            await caller.reader.readexactly(1000)
        for caller in callers:
            caller.hang_up()
        await until(lambda: not house.up.connections_open)
        assert house.in_hand == 0
        assert house.failures == 0


# --- streams that break --------------------------------------------------------------------------------------------


async def test_a_stream_of_events_that_breaks_says_so_in_band_and_is_never_done():
    async with House(dialect="openai-chat") as house:
        house.up.then(sse(content("Hel", "lo")[:-1], gap_s=0.01, ending="cut"))
        caller = await house.caller()
        caller.say(chat(CHAT_STREAM))
        got = await caller.hears()
        assert b"Hel" in got.body
        assert b'"stream_broken"' in got.body
        assert b"[DONE]" not in got.body
        assert got.whole, "the error is an event of its own, the framing is in order"
        await caller.ends()
        assert house.parts.tally.streams_broken == 1
        assert house.logged[-1][1] == "cut"


async def test_events_that_end_in_order_but_unfinished_are_broken_all_the_same():
    async with House(dialect="openai-chat") as house:
        house.up.then(sse(content("Hel", "lo")[:-1], gap_s=0.01, done=False))
        got = await house.ask(chat(CHAT_STREAM))
        assert b'"stream_broken"' in got.body


async def test_events_to_an_http_1_0_caller_are_told_in_band_too():
    async with House(dialect="openai-chat") as house:
        house.up.then(sse(content("Hel", "lo")[:-1], gap_s=0.01, ending="reset"))
        got = await house.ask(request("POST", "/v1/chat/completions", body=CHAT_STREAM, version="1.0"))
        assert b'"stream_broken"' in got.body
        assert b"[DONE]" not in got.body


@pytest.mark.parametrize("ending", ["cut", "reset"])
@pytest.mark.parametrize("framing", ["chunked", "length"])
async def test_any_other_stream_that_breaks_is_broken_off_without_a_proper_end(ending: str, framing: str):
    async with House() as house:
        house.up.then(broken(ending, after=100_000, body=b"b" * 200_000, framing=framing))  # type: ignore[arg-type]
        caller = await house.caller()
        caller.say(request(), request(target="/next"))
        got = await caller.hears()
        assert not got.whole
        assert len(got.body) <= 100_000
        await caller.ends()
        assert house.up.paths == [b"/x"]


async def test_a_packed_stream_of_events_gets_no_plain_words_put_in():
    events = [(b"content-type", b"text/event-stream"), (b"content-encoding", b"gzip")]
    async with House(dialect="openai-chat") as house:
        house.up.then(pieces([b"\x1f\x8bpacked", b"more"], gap_s=0.01, ending="reset", headers=events))
        got = await house.ask(chat(CHAT_STREAM))
        assert not got.whole
        assert b"error" not in got.body


async def test_events_whose_length_was_told_get_no_words_put_in():
    async with House(dialect="openai-chat", tier={"held_bytes_max": 1000}) as house:
        event = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'
        house.up.then(
            broken("cut", after=len(event), body=event * 100, headers=[(b"content-type", b"text/event-stream")])
        )
        got = await house.ask(chat(CHAT_STREAM))
        assert not got.whole
        assert b"stream_broken" not in got.body


# --- the way down --------------------------------------------------------------------------------------------------


async def test_draining_closes_the_idle_and_answers_the_busy_with_close():
    async with House() as house:
        gate = asyncio.Event()

        async def slow(wire: Wire, _heard: Heard) -> None:
            await gate.wait()
            await wire.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate")

        idle, fresh, busy, sending = [await house.caller() for _ in range(4)]
        idle.say(request())
        await idle.hears()
        house.up.then(slow)
        busy.say(request())
        sending.say(request("POST", body=b"body")[:-2])
        await until(lambda: len(house.up.heard) == 2)
        house.listener.drain()
        await idle.ends()
        await fresh.ends()
        gate.set()
        got = await busy.hears()
        assert (got.body, got.header(b"connection")) == (b"late", b"close")
        await busy.ends()
        sending.say(b"dy")
        assert (await sending.hears()).header(b"connection") == b"close"
        await sending.ends()
        late = await house.caller()
        assert (await late.hears()).status == 503


async def test_what_still_streams_at_the_drain_deadline_is_told_in_band():
    async with House(dialect="openai-chat") as house:
        house.up.then(sse(content("Hel", "lo"), ending="stall"), silence())
        streaming, waiting = await house.caller(), await house.caller()
        streaming.say(chat(CHAT_STREAM))
        head = await streaming.reader.readuntil(b"Hel")
        assert b"200 OK" in head
        waiting.say(chat())
        await until(lambda: len(house.up.heard) == 2)
        house.listener.drain()
        await turns()
        house.listener.cut()
        rest = await streaming.rest()
        assert b'"stream_broken"' in rest
        assert b"draining" in rest
        assert b"[DONE]" not in rest
        assert rest.endswith(b"0\r\n\r\n")
        await waiting.ends()
        await until(lambda: not house.up.connections_open)
        assert house.in_hand == 0
