"""Chunks that come whole are read without the parser: it must make no difference what comes in one piece."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import cast

import pytest

from understudy.policies.service import Answer
from understudy.proxy.http import upstream
from understudy.proxy.http.chunked import SIZES_REMEMBERED_MAX, feed_whole_chunks
from understudy.proxy.http.stepping import Steps
from understudy.proxy.http.upstream import HEAD_BYTES_MAX, Connection, DeadConnection, Terms

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
TERMS = Terms(None, 0, stream_at_head=True)
SOUND = (
    b"5\r\nhello\r\n",
    b"1\r\n\n\r\n",
    b"00000a\r\n0\r\n\r\nHTTP/\r\n",
    b"A\r\n0123456789\r\n",
    b"5;a=b\r\nhello\r\n",
)
UNSOUND = (
    b"0x5\r\nhello\r\n",
    b"+5\r\nhello\r\n",
    b"-5\r\nhello\r\n",
    b" 5\r\nhello\r\n",
    b"5_0\r\nhello\r\n",
    b"5\nhello\r\n",
    b"5\r\nhello\n",
    b"5\r\nhello!\r\n",
    b"5\r\nhell\r\n",
    b"\r\n5\r\nhello\r\n",
    b"fffffffffffffffff\r\nhello\r\n",
    b"g\r\nhello\r\n",
)
ENDS = (LAST, b"0\r\na: b\r\n\r\n", b"000\r\n\r\n", b"", LAST + b"5\r\nhello\r\n", b"0\r\n5\r\nhello\r\n\r\n")


class Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None: ...
    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


class Owner:
    """A pool of one connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.clock = loop.time
        self.steps = Steps(loop)
        self.given_back = 0

    def give_back(self, connection: Connection) -> None:
        self.given_back += 1

    def lost(self, connection: Connection) -> None: ...


class Ear:
    """Hears what the caller is told, piece by piece."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.end_heard = ""

    def write(self, chunk: bytes) -> None:
        self.pieces.append(chunk)

    def end(self) -> None:
        self.end_heard = "end"

    def cut(self, reason: str) -> None:
        self.end_heard = reason

    def feed(self, piece: bytes) -> None:
        self.write(piece)


async def heard(pieces: list[bytes]) -> tuple[bytes, str, bytes, bool, int]:
    """What a caller is told of an answer that comes in these pieces, and what becomes of its connection."""
    owner, wire, ear = Owner(asyncio.get_running_loop()), Wire(), Ear()
    connection = Connection(owner)
    connection.connection_made(wire)
    waiter = connection.send(b"GET", b"GET / HTTP/1.1\r\n\r\n", b"", TERMS)
    connection.data_received(HEAD)
    answer = cast("Answer", waiter.answered)
    assert answer.stream is not None
    answer.stream.relay(ear)
    for piece in pieces:
        if not wire.aborted and not owner.given_back:
            connection.data_received(piece)
    if not wire.aborted:
        connection.connection_lost(None)
    assert not isinstance(waiter.answered, DeadConnection)
    return b"".join(ear.pieces), ear.end_heard, answer.stream.trailers, wire.aborted, owner.given_back


def packed(luck: random.Random, chunks: list[bytes]) -> list[bytes]:
    """These chunks in pieces: each for itself, several together, and broken anywhere."""
    way = luck.random()
    if way < 0.3:
        return [chunk for chunk in chunks if chunk]
    data = b"".join(chunks)
    cuts = {luck.randrange(1, len(data)) for _ in range(luck.randrange(1, 6))}
    if way < 0.7:
        # at the ends of some chunks, and somewhere
        at = 0
        for chunk in chunks:
            at += len(chunk)
            if luck.random() < 0.7 and at < len(data):
                cuts.add(at)
    places = [0, *sorted(cuts), len(data)]
    return [data[one:other] for one, other in itertools.pairwise(places)]


@pytest.mark.parametrize("seed", range(20))
async def test_what_is_heard_of_chunks_is_the_same_in_whatever_pieces_they_come(seed: int):
    luck = random.Random(seed)
    ended: set[str] = set()
    for _ in range(100):
        chunks = [luck.choice(SOUND) for _ in range(luck.randrange(1, 8))]
        if luck.random() < 0.4:
            chunks.insert(luck.randrange(len(chunks) + 1), luck.choice(UNSOUND))
        chunks.append(luck.choice(ENDS))
        data = b"".join(chunks)
        # no chunk is whole in a single byte: so all of it is read by the parser
        by_parser = await heard([data[at : at + 1] for at in range(len(data))])
        body, end, *rest = await heard(packed(luck, chunks))
        if end == "end":
            # what stands behind the end comes with it, or is heard of later
            assert (body, end) == by_parser[:2], data
            assert rest[0] == by_parser[2]
        else:
            assert end == by_parser[1], data
            # of what is broken the caller has heard no more than stood before it
            assert body == by_parser[0], data
        ended.add(end)
    assert {"end", "garbage"} <= ended


async def test_chunks_that_come_whole_need_no_parser():
    class Reader:
        fed = 0

        def feed_data(self, data: bytes) -> None:
            self.fed += 1
            self.parser.feed_data(data)

        def __getattr__(self, name: str) -> object:
            return getattr(self.parser, name)

        def __init__(self, protocol: object) -> None:
            self.parser = parser(protocol)

    parser, ear = upstream.httptools.HttpResponseParser, Ear()
    owner, wire = Owner(asyncio.get_running_loop()), Wire()
    connection = Connection(owner)
    connection.connection_made(wire)
    reader = connection._parser = Reader(connection)
    waiter = connection.send(b"GET", b"GET / HTTP/1.1\r\n\r\n", b"", TERMS)
    connection.data_received(HEAD)
    assert waiter.answered is not None
    assert waiter.answered.stream is not None
    waiter.answered.stream.relay(ear)
    connection.data_received(SOUND[0])
    assert reader.fed == 2
    for number in range(10):
        connection.data_received(SOUND[0] * (number + 1))
    assert reader.fed == 2
    assert ear.pieces == [b"hello"] * 56
    connection.data_received(SOUND[0] + b"5\r\nhe")
    connection.data_received(b"llo\r\n")
    connection.data_received(SOUND[3])
    assert reader.fed == 4
    connection.data_received(LAST)
    assert (ear.end_heard, owner.given_back) == ("end", 1)
    assert b"".join(ear.pieces) == b"hello" * 58 + b"0123456789"


async def test_a_length_whose_digits_come_in_two_pieces_is_one_length():
    content = b"hello\r\n5\r\nworld\r\n1234"
    assert len(content) == 0x15
    chunk = b"15\r\n%b\r\n" % content
    body, end, *_ = await heard([SOUND[0] + chunk[:1], chunk[1:], LAST])
    assert (body, end) == (b"hello" + content, "end")


async def test_a_long_stream_of_whole_chunks_is_no_long_head():
    chunks = [b"2000\r\n%b\r\n" % (b"a" * 0x2000)] * (2 * HEAD_BYTES_MAX // 0x2000)
    body, end, _, is_aborted, given_back = await heard([*chunks, LAST])
    assert (len(body), end) == (2 * HEAD_BYTES_MAX, "end")
    assert (is_aborted, given_back) == (False, 1)


def test_a_few_sizes_are_remembered_and_no_more():
    ear = Ear()
    for size in range(1, SIZES_REMEMBERED_MAX + 100):
        data = b"%x\r\n%b\r\n" % (size, b"a" * size)
        assert feed_whole_chunks(data, ear) == len(data)
    from understudy.proxy.http import chunked

    assert len(chunked._SIZES) <= SIZES_REMEMBERED_MAX
    assert [len(piece) for piece in ear.pieces] == list(range(1, SIZES_REMEMBERED_MAX + 100))
