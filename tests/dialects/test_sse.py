"""Server-sent events come out the same, however their bytes are cut and their lines are ended."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.proxy.dialects.sse import Event, events


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (b"", []),
        (b"data: a", []),
        (b"data: a\n", []),
        (b"data: a\n\n", [(b"", b"a")]),
        (b"data:a\n\n", [(b"", b"a")]),
        (b"data:  a\n\n", [(b"", b" a")]),
        (b"data: a\ndata: b\n\n", [(b"", b"a\nb")]),
        (b"event: error\ndata: a\n\ndata: b", [(b"error", b"a")]),
        (b": keep-alive\n\n", []),
        (b": keep-alive\n\ndata: a\n\n", [(b"", b"a")]),
        (b"\n\n\n\ndata: a\n\n\n", [(b"", b"a")]),
        (b"id: 7\nretry: 3\n\n", []),
        (b"data\n\n", [(b"", b"")]),
        (b"\xef\xbb\xbfdata: a\n\n", [(b"", b"a")]),
        (b"data: a\r\n\r\ndata: b\r\rdata: c\n\r\n", [(b"", b"a"), (b"", b"b"), (b"", b"c")]),
        (b"\xff\xfe\x00\n\n", []),
    ],
)
def test_an_event_is_complete_at_its_blank_line(held: bytes, expected: list[Event]):
    assert list(events(held)) == expected


def test_the_last_event_of_an_ended_stream_needs_no_blank_line():
    assert list(events(b"data: a\n\ndata: b", ended=True)) == [(b"", b"a"), (b"", b"b")]


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([b"data: a", b"event: e", b": c", b"\n", b"\r", b"\r\n", b"\n\n", b"x"]), max_size=12))
def test_what_has_come_is_never_read_differently_because_more_has_come(parts: list[bytes]):
    whole = b"".join(parts)
    all_of_them = list(events(whole))
    for cut in range(len(whole)):
        so_far = list(events(whole[:cut]))
        assert all_of_them[: len(so_far)] == so_far
