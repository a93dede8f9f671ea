"""Which calls ask the same: everything in a request that could change its answer, and nothing else.

    head  --> Front: tenant, route, path, the headers that matter          worked out once for requests of one head
    body  --> its bytes, digested: a request seen before is known by them, and not parsed
          --> canonical JSON (keys in order, without `user` and the like)   for one that is seen the first time

Where it could matter, it does: an unknown field, the order of a list, 1 and 1.0 are all told apart, which costs a miss,
while taking one question for another would cost a wrong answer.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec

from understudy.policies.service import Headers, Request, tenant_of
from understudy.proxy.settings import Route

CANONICAL_BYTES_MAX = 256 * 1024
"""A longer body is known by its bytes alone: putting it in order would hold up everybody else."""
PLAIN_VALUE_BYTES = 4096
"""A list of numbers or a text longer than this is taken as it is written: a vector has no keys to put in order."""
BYPASS = b"x-understudy-cache"
_MATTERS = frozenset((b"accept", b"content-type", b"content-encoding", b"origin"))
_MATTERS_PREFIXES = (b"anthropic-", b"openai-", b"x-ms-", b"x-goog-")
_UNUSUAL = frozenset((b"range", b"expect", b"if-match", b"if-none-match", b"if-modified-since"))
_ENCODER = msgspec.json.Encoder(order="deterministic")
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])

Fields = dict[str, msgspec.Raw]


class Front:
    """What follows from a request's head alone. `bare` and `bare_remembered` are the head as upstreams are asked:
    an answer that is kept must be readable by the next caller, who may know no compression."""

    __slots__ = ("bare", "bare_remembered", "prefix", "reads", "writes")

    def __init__(self, prefix: bytes, bare: Headers, *, reads: bool, writes: bool) -> None:
        self.prefix = prefix
        self.bare = bare
        self.bare_remembered: dict[object, object] = {}
        self.reads = reads
        self.writes = writes


class Scope(NamedTuple):
    """What a route's keys begin with, and which headers set tenants apart (None: nobody is told apart)."""

    fingerprint: bytes
    tenant_headers: tuple[bytes, ...] | None


def scope_of(route: Route, dialect: str, space: str) -> Scope:
    """The scope of `route`: who is asked, for what, in which words. Whoever changes an upstream begins anew."""
    told: list[object] = [route.name, dialect, space, route.cache.scope]
    for tier in route.tiers:
        told += [
            repr(getattr(tier, name, None))
            for name in ("name", "url", "socket", "space", "endpoints", "speaks", "models")
        ]
    shared = route.cache.scope == "shared"
    besides = tuple(sorted(name.lower().encode() for name in route.cache.tenant_headers))
    return Scope(sha256(repr(told).encode()).digest(), None if shared else besides)


def front_of(request: Request, scope: Scope) -> Front:
    """Read a head. A caller who wants nothing kept, or nothing that was, says so in Cache-Control or our own header."""
    parts = [scope.fingerprint, request.method, request.path, b"?", request.query]
    reads = writes = request.method == b"POST"
    bare: Headers = []
    for header in request.headers:
        name, value = header[0].lower(), header[1]
        if name == b"accept-encoding":
            continue
        bare.append(header)
        if name in _MATTERS or name.startswith(_MATTERS_PREFIXES):
            parts += [name, value]
        elif name in (b"cache-control", b"pragma"):
            said = value.lower()
            writes = writes and b"no-store" not in said
            reads = reads and not (b"no-store" in said or b"no-cache" in said or b"max-age=0" in said)
        elif name in _UNUSUAL or (name == BYPASS and value.strip().lower() == b"bypass"):
            reads = writes = False
    if scope.tenant_headers is not None:
        parts += [b"tenant", tenant_of(request, scope.tenant_headers)]
    # lengths go in too, so that no two heads spell the same bytes
    spelt = b"".join([b"%d:%b" % (len(part), part) for part in parts])
    return Front(sha256(spelt).digest(), bare, reads=reads, writes=writes)


def fields_of(body: bytes, *, strict: bool) -> Fields | None:
    """The fields of a JSON object, each as it is written; None for what is none.

    `strict` turns down an object that names a key twice, anywhere: where tenants share answers, one that another
    reader takes otherwise could be laid in somebody's way.
    """
    if len(body) > CANONICAL_BYTES_MAX:
        return None
    try:
        if strict:
            json.loads(body, object_pairs_hook=_once)
        return _FIELDS.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def canonical(fields: Fields, idle: frozenset[str]) -> bytes:
    """One spelling for all objects with these fields, whatever the order of their keys, without those in `idle`."""
    spelt = [b"%b:%b" % (_ENCODER.encode(name), spelling(fields[name])) for name in sorted(fields) if name not in idle]
    return b"{" + b",".join(spelt) + b"}"


def spelling(raw: msgspec.Raw) -> bytes:
    """One spelling for all JSON values that are the same."""
    written = bytes(raw)
    if len(written) > PLAIN_VALUE_BYTES and b"{" not in written:
        return written
    try:
        return _ENCODER.encode(msgspec.json.decode(written))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return written


def digest(*parts: bytes) -> bytes:
    """The key of something spelt in `parts`, the first of which is of fixed length."""
    return sha256(b"".join(parts)).digest()


def is_deterministic(fields: Fields) -> bool:
    """Whether a generated answer to this is asked for without chance (`temperature: 0`) and without tools."""
    return _value(fields, "temperature") == 0 and not any(_value(fields, name) for name in ("tools", "functions"))


def has_effects(fields: Fields) -> bool:
    """Whether asking does more than answer: the provider is to keep it, or to write several."""
    return bool(_value(fields, "store")) or (_value(fields, "n") or 1) != 1 or bool(_value(fields, "background"))


def _value(fields: Fields, name: str) -> Any:
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, ValueError, RecursionError):
        # what we can't read might be anything
        return "?"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found
