"""What a request says of the way it came: Via, X-Forwarded-*, and the trace it belongs to.

Via (RFC 9110 section 7.6.3) is written on every request that goes out, under a name that only this sidecar has, with
all its workers: a request that comes in bearing it went round in a circle. A trace (W3C Trace Context) that the caller
began is carried on untouched, unless we make spans of our own (`server.traces`), which stand between; where there is
none, one is begun.
"""

from __future__ import annotations

import random
import re
import secrets
from collections.abc import Callable
from typing import Literal

from understudy.policies.service import Header, Headers, Request, find_header
from understudy.policies.spans import Parent

_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = "01"
"""A trace begun with 00 would tell every service that samples by its parent to record nothing."""
_IDS_BITS = 192
_NEITHER_IS_ZERO = (1 << 64) | 1
TRACE = frozenset((b"traceparent", b"tracestate"))
FORWARDED_FOR = b"x-forwarded-for"
Peer = tuple[str, int] | tuple[str, int, int, int] | str | None
"""A connection's other end as asyncio tells it: by IPv4, by IPv6, by a Unix socket; None where it has gone already."""
IN_CIRCLES = "this request has been here before: an upstream leads back to this sidecar"


class Marks:
    """What is written on the requests of one sidecar. Without a pseudonym there is no Via."""

    __slots__ = ("bits", "forwarded", "trace", "via")

    def __init__(
        self,
        pseudonym: bytes = b"",
        *,
        forwarded: Literal["keep", "append"] = "keep",
        trace: Literal["keep", "make"] = "keep",
        bits: Callable[[int], int] = random.getrandbits,
    ) -> None:
        self.via: Headers = [(b"via", b"1.1 " + pseudonym)] if pseudonym else []
        self.forwarded = forwarded
        self.trace = trace
        self.bits = bits

    def new_trace(self) -> str:
        """A traceparent for a call that came without one."""
        ids = (self.bits(_IDS_BITS) | _NEITHER_IS_ZERO).to_bytes(_IDS_BITS // 8, "big").hex()
        return f"00-{ids[:32]}-{ids[32:]}-{_SAMPLED}"

    def of_the_way(self, request: Request) -> Headers:
        """The headers that follow from the request's head alone, to be put behind the caller's own."""
        return [*self.via, *self._place(request)]

    def _place(self, request: Request) -> Headers:
        """Where the caller thinks it is; one that another proxy has told already is believed."""
        if self.forwarded != "append":
            return []
        told: list[tuple[bytes, bytes | None]] = [
            (b"x-forwarded-proto", request.hop.scheme),
            (b"x-forwarded-host", find_header(request.headers, b"host")),
        ]
        return [(name, value) for name, value in told if value and find_header(request.headers, name) is None]


def new_pseudonym() -> bytes:
    """A name in Via that nobody else has."""
    return b"understudy-" + secrets.token_hex(6).encode()


def forwarded_for(request: Request) -> bytes:
    """The line X-Forwarded-For, but for the address of who asked us, which is put behind it."""
    before = b", ".join(value for name, value in request.headers if name.lower() == FORWARDED_FOR and value)
    return b"%b: %b, " % (FORWARDED_FOR, before) if before else b"%b: " % FORWARDED_FOR


def address_of(peer: Peer) -> bytes:
    """The address of a peer as asyncio tells it; a Unix socket's has none."""
    return peer[0].encode() if isinstance(peer, tuple) else b""


def trace_of(headers: Headers) -> bytes | None:
    """The id of the trace that these headers belong to, 32 digits; None where they belong to none that is valid."""
    valid = _traceparent(headers)
    return None if valid is None else valid[1]


def parent_of(headers: Headers) -> Parent | None:
    """The span that these headers name as the one above; None where they name none that is valid."""
    valid = _traceparent(headers)
    if valid is None:
        return None
    state = ",".join(value.decode("latin-1") for name, value in headers if name.lower() == b"tracestate")
    return Parent(valid[1].decode(), valid[2].decode(), bool(int(valid[3], 16) & 1), state)


def _traceparent(headers: Headers) -> re.Match[bytes] | None:
    found: list[Header] = [header for header in headers if header[0].lower() == b"traceparent"]
    valid = _TRACEPARENT.fullmatch(found[0][1]) if len(found) == 1 else None
    return None if valid is None or (valid[4] and found[0][1].startswith(b"00")) else valid


def goes_in_circles(headers: Headers, pseudonym: bytes) -> bool:
    """Whether a Via among `headers` is one that we wrote."""
    return any(pseudonym in value for name, value in headers if len(name) == 3 and name.lower() == b"via")
