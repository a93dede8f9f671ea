"""What the upstream tier reads and writes without a socket: when to come back, and the head of a request."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from understudy.policies.service import Call, Headers, Request
from understudy.proxy.settings.settings import UpstreamTier
from understudy.proxy.tiers.judging import read_retry_after
from understudy.proxy.tiers.upstream import Target

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], None),
        ([(b"retry-after", b"2")], 2.0),
        ([(b"Retry-After", b" 2 ")], 2.0),
        ([(b"retry-after", b"1.5")], 1.5),
        ([(b"retry-after", b"0")], 0.0),
        ([(b"retry-after", b"86400")], 300.0),
        ([(b"retry-after", b"99999999999999999999999")], None),
        ([(b"retry-after", formatdate(NOW + 7, usegmt=True).encode())], 7.0),
        ([(b"retry-after", formatdate(NOW - 7, usegmt=True).encode())], 0.0),
        ([(b"retry-after", b"Fri, 31 Dec 9999 23:59:59 GMT")], 300.0),
        ([(b"retry-after", b"-5")], None),
        ([(b"retry-after", b"soon")], None),
        ([(b"retry-after", b"nan")], None),
        ([(b"retry-after", b"")], None),
        ([(b"retry-after", b"\xff\xfe")], None),
        ([(b"retry-after-ms", b"250")], 0.25),
        ([(b"retry-after", b"9"), (b"retry-after-ms", b"250")], 0.25),
        ([(b"retry-after-ms", b"250"), (b"retry-after", b"9")], 0.25),
        ([(b"retry-after-ms", b"nan"), (b"retry-after", b"9")], 9.0),
        ([(b"retry-after-ms", b"inf")], None),
        ([(b"retry-after-ms", b"1e3")], None),
        ([(b"retry-after", b"3"), (b"retry-after", b"9")], 3.0),
        ([(b"x-ratelimit-reset-requests", b"1m0s")], 60.0),
        ([(b"x-ratelimit-reset-requests", b"6m0s")], 300.0),
        ([(b"x-ratelimit-reset-tokens", b"1.5s")], 1.5),
        ([(b"x-ratelimit-reset-tokens", b"20ms")], 0.02),
        ([(b"x-ratelimit-reset-requests", b"2m30.5s250ms")], 150.75),
        ([(b"x-ratelimit-reset-requests", b"")], None),
        ([(b"x-ratelimit-reset-requests", b"m")], None),
        ([(b"x-ratelimit-reset-requests", b"3s"), (b"x-ratelimit-remaining-requests", b"7")], None),
        ([(b"x-ratelimit-reset-requests", b"3s"), (b"x-ratelimit-remaining-requests", b"0")], 3.0),
        ([(b"x-ratelimit-reset-requests", b"3s"), (b"x-ratelimit-reset-tokens", b"4s")], 4.0),
        ([(b"x-ratelimit-reset-requests", b"3s"), (b"retry-after", b"1")], 1.0),
    ],
)
def test_when_to_come_back_is_read_in_every_spelling(headers: Headers, seconds: float | None):
    found = read_retry_after(headers, lambda: NOW)
    assert found == (None if seconds is None else pytest.approx(seconds, abs=1e-6))


@pytest.mark.parametrize(
    ("url", "first", "host"),
    [
        ("http://h", b"GET /a/b?q=1 HTTP/1.1", b"h"),
        ("http://h:81/", b"GET /a/b?q=1 HTTP/1.1", b"h:81"),
        ("http://h:81/base", b"GET /base/a/b?q=1 HTTP/1.1", b"h:81"),
        ("http://[::1]:81/base/", b"GET /base/a/b?q=1 HTTP/1.1", b"[::1]:81"),
    ],
)
def test_the_head_names_the_upstream_and_puts_its_base_path_before(url: str, first: bytes, host: bytes):
    call = Call("pass", Request(b"GET", b"/a/b?q=1", [(b"Host", b"here")]), id="id-1")
    lines = Target(UpstreamTier(name="up", url=url)).head(call).split(b"\r\n")
    assert lines == [first, b"host: " + host, b"x-request-id: id-1", b"", b""]
