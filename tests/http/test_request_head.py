"""Heads read once and remembered, and chunked bodies in every cutting."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.proxy.dialects.base import BadRequest
from understudy.proxy.http.chunked import BadChunks, ChunkedBody
from understudy.proxy.http.request_head import REMEMBERED_MAX, HeadMemory, read_head
from understudy.proxy.settings.settings import Limits

LIMITS = Limits()


def head(*lines: str, first: str = "POST /v1/x?q=1 HTTP/1.1") -> bytes:
    return "\r\n".join((first, "Host: here", *lines, "", "")).encode()


def test_heads_that_differ_only_in_length_are_read_once_and_keep_their_own_length():
    memory = HeadMemory(LIMITS)
    one, first = memory.get(head("Content-Length: 5", "a: b"))
    other, second = memory.get(head("Content-Length: 12345", "a: b"))
    assert one is other
    assert (first, second) == (5, 12345)
    assert (one.path, one.target, one.headers) == (b"/v1/x", b"/v1/x?q=1", [(b"Host", b"here"), (b"a", b"b")])


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: "],
        ["Content-Length: -5"],
        ["Content-Length: +5"],
        ["Content-Length: 5, 5"],
        ["Content-Length: 5", "content-length: 5"],
        ["content-length: 7", "Content-Length: 5"],
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Content-Length: 9999999999999999999999"],
    ],
)
def test_a_length_that_is_none_is_refused_also_when_a_head_like_it_is_remembered(lines: list[str]):
    memory = HeadMemory(LIMITS)
    for sound in (["Content-Length: 5"], ["content-length: 7"], ["Content-Length: 5", "a: b"], []):
        memory.get(head(*sound))
    for _ in range(2):
        with pytest.raises(BadRequest):
            memory.get(head(*lines))


def test_other_spellings_of_content_length_are_as_good():
    memory = HeadMemory(LIMITS)
    for _ in range(2):
        for spelling in ("CONTENT-LENGTH: 5", "Content-length:5", "Content-Length:  5", "content-length: 5 "):
            assert memory.get(head(spelling))[1] == 5


def test_what_is_remembered_is_bounded():
    memory = HeadMemory(LIMITS)
    for number in range(3 * REMEMBERED_MAX):
        memory.get(head(f"x-request-id: {number}"))
    assert len(memory) <= REMEMBERED_MAX
    before = len(memory)
    memory.get(head("x-long: " + "y" * 5000))
    assert len(memory) == before


@settings(derandomize=True, max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_one_head_or_refused(noise: bytes):
    memory = HeadMemory(LIMITS)
    raw = noise.replace(b"\r\n\r\n", b"") + b"\r\n\r\n"
    outcomes: list[object] = []
    for _ in range(2):
        try:
            outcomes.append(memory.get(raw)[0].target)
        except BadRequest as bad:
            outcomes.append(bad.status)
    # remembered or not, the same bytes mean the same
    assert outcomes[0] == outcomes[1]


def test_llhttp_and_we_agree_on_where_a_head_ends():
    for raw in (
        b"GET / HTTP/1.1\r\nHost: a\n\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n\r\n\r\n",
    ):
        with pytest.raises(BadRequest):
            read_head(raw, LIMITS)


# --- chunks --------------------------------------------------------------------------------------------------------


def read(data: bytes, cuts: list[int]) -> tuple[bytes, bytes]:
    """(content, what was left over) of a body fed in pieces."""
    body, pieces, rest = ChunkedBody(), list[bytes](), b""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for begin, end in pairwise(edges):
        part = data[begin:end]
        stop = body.feed(part, 0, pieces)
        rest += part[stop:]
    assert body.over
    return b"".join(pieces), rest


@settings(derandomize=True, max_examples=200)
@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.lists(st.integers(0, 400), max_size=8),
    st.sampled_from([b"", b";x", b";x=y", b' ; a="b"']),
    st.sampled_from([b"", b"x-sum: 1\r\n", b"a: b\r\nc: d\r\n"]),
)
def test_a_body_is_the_same_in_every_cutting(chunks: list[bytes], cuts: list[int], extension: bytes, trailers: bytes):
    data = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    data += b"0\r\n" + trailers + b"\r\n"
    assert read(data + b"GET ", cuts) == (b"".join(chunks), b"GET ")


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\na\r\n",
        b"0x1\r\na\r\n",
        b" 1\r\na\r\n",
        b"1 \r\na\r\n",
        b"1\na\r\n",
        b"1\r\nab\r\n",
        b"1\r\na\n0\r\n\r\n",
        b"1\r\na0\r\n\r\n",
        b"1;\x00\r\na\r\n",
        b"1;a\rb\r\n",
        b"ffffffffffffffffff\r\n",
        b"1" + b";" + b"x" * 2000 + b"\r\n",
        b"0\r\nno colon\r\n\r\n",
        b"0\r\nContent-Length: 1\r\n\r\n",
        b"0\r\n folded: x\r\n\r\n",
        b"0\r\n" + b"a: " + b"b" * 1000 + b"\r\n" + (b"a: " + b"b" * 1000 + b"\r\n") * 9 + b"\r\n",
    ],
)
def test_what_is_not_quite_chunked_is_refused_whole_or_byte_by_byte(data: bytes):
    def fed(step: int) -> None:
        body, pieces = ChunkedBody(), list[bytes]()
        for at in range(0, len(data), step):
            body.feed(data[at : at + step], 0, pieces)

    for step in (len(data), 1):
        with pytest.raises(BadChunks):
            fed(step)
