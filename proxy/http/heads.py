"""What a head may say and what is passed on of it: hop-by-hop headers, framing, status lines."""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from understudy.policies.service import Headers
from understudy.proxy.dialects.base import BadRequest

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
"""Headers that speak of one connection only (RFC 9110 section 7.6.1)."""

NOT_FORWARDED = HOP_BY_HOP | {b"host", b"content-length", b"expect"}
"""Of a request: what each hop says for itself."""

_TRAILER_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
NO_TRAILERS = HOP_BY_HOP | {b"content-length", b"host", b"content-encoding", b"content-type", b"content-range"}
"""What must not come behind a body: it would say how the body is to be read (RFC 9110 section 6.5.1)."""

OURS = b"x-understudy-"
"""How the headers begin by which we say where an answer came from: nobody else may."""

IDEMPOTENT = frozenset((b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE"))

STATUS_LINES = {status.value: b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}


def status_line(status: int) -> bytes:
    """`HTTP/1.1 200 OK` and its line end; an unregistered status gets an empty reason, which is allowed."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def kept(headers: Headers, dropped: frozenset[bytes]) -> Headers:
    """`headers` without those in `dropped` (lower case) and those that a Connection header names."""
    named = connection_options(headers)
    if named:
        dropped = dropped | named
    return [header for header in headers if header[0].lower() not in dropped]


def connection_options(headers: Headers) -> frozenset[bytes]:
    """What Connection headers name, in lower case, less the options every hop knows by itself."""
    options: set[bytes] = set()
    for key, value in headers:
        if len(key) == 10 and key.lower() == b"connection":
            options.update(option.strip().lower() for option in value.split(b","))
    options.discard(b"")
    return frozenset(options - {b"close", b"keep-alive"})


def takes_trailers(headers: Headers) -> bool:
    """Whether the sender of these headers says that it reads what comes behind a body (RFC 9110 section 10.1.4)."""
    return any(
        len(name) == 2 and name.lower() == b"te" and b"trailers" in [one.strip().lower() for one in value.split(b",")]
        for name, value in headers
    )


def trailer_line(name: bytes, value: bytes) -> bytes:
    """A header that came behind a body, as a line to be passed on; empty for one that must not be."""
    lower = name.lower()
    if lower in NO_TRAILERS or lower.startswith(OURS) or not _TRAILER_VALUE.fullmatch(value):
        return b""
    return b"%b: %b\r\n" % (name, value)


def body_is_absent(method: bytes, status: int) -> bool:
    """Whether an answer has no body whatever its headers say (RFC 9112 section 6.3)."""
    return method == b"HEAD" or status in (204, 304) or status < 200


def origin_form(method: bytes, target: bytes, host: bytes | None) -> bytes:
    """The target as path and query. Absolute form is accepted when it names the same host (RFC 9112 section 3.2.2).

    Raises BadRequest.
    """
    if method == b"CONNECT":
        # also to a path: an upstream that said yes to it would be a tunnel
        raise BadRequest("this is no tunnel", status=501)
    if b"#" in target or b"\\" in target:
        raise BadRequest("a request target has no fragment and no backslash")
    if target.startswith(b"/"):
        path = target.partition(b"?")[0]
        if b"/../" in path + b"/":
            raise BadRequest("the path climbs out of itself")
        return target
    if target == b"*" and method == b"OPTIONS":
        return target
    scheme, separator, rest = target.partition(b"://")
    authority, slash, path = rest.partition(b"/")
    if separator and scheme.lower() in (b"http", b"https") and authority.lower() == (host or b"").lower():
        return origin_form(method, slash + path or b"/", host)
    raise BadRequest("the request target is not a path")


def header_safe(text: str) -> bytes:
    """`text` as a header value: printable ASCII, bounded."""
    return re.sub(rb"[^\x20-\x7e]+", b" ", text[:512].encode("ascii", "replace"))


def seconds_of(date: str) -> float:
    """An HTTP date in seconds since the epoch, all three forms of which are in UTC (RFC 9110 section 5.6.7).

    Raises ValueError.
    """
    try:
        told = parsedate_to_datetime(date)
        return (told if told.tzinfo is not None else told.replace(tzinfo=UTC)).timestamp()
    except OverflowError as error:
        raise ValueError(str(error)) from None
