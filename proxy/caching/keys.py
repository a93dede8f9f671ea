"""Which calls ask the same: everything in a request that could change its answer, and nothing else.

    head  --> Front: tenant, route, path, the headers that matter          worked out once for requests of one head
    body  --> its bytes, digested: a request seen before is known by them, and not parsed
          --> canonical JSON (keys in order, without `user` and the like)   for one that is seen the first time

Where it could matter, it does: an unknown field, the order of a list, 1 and 1.0 are all told apart, which costs a miss,
while taking one question for another would cost a wrong answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from hashlib import sha256
from math import inf
from typing import Any, NamedTuple

import msgspec

from understudy.policies.service import CREDENTIALS, Headers, Request, tenant_of
from understudy.proxy.settings.settings import Route

CANONICAL_BYTES_MAX = 256 * 1024
"""A longer body is known by its bytes alone: putting it in order would hold up everybody else."""
PLAIN_VALUE_BYTES = 4096
"""A list of numbers or a text longer than this is taken as it is written: a vector has no keys to put in order."""
BYPASS = b"x-understudy-cache"
# Of a request's headers those that change nothing in an answer: of the connection, of who watches, of this one call.
# Whatever else there is might, as an unknown field of a body might: gateways choose providers and tenants by headers of
# their own.
IDLE = frozenset(
    (
        b"accept-encoding",
        b"b3",
        b"baggage",
        b"cdn-loop",
        b"connection",
        b"content-length",
        b"date",
        b"dnt",
        b"forwarded",
        b"grpc-timeout",
        b"idempotency-key",
        b"keep-alive",
        b"max-forwards",
        b"newrelic",
        b"priority",
        b"proxy-connection",
        b"referer",
        b"request-id",
        b"sentry-trace",
        b"te",
        b"traceparent",
        b"tracestate",
        b"trailer",
        b"transfer-encoding",
        b"uber-trace-id",
        b"upgrade-insecure-requests",
        b"user-agent",
        b"via",
        b"x-amzn-trace-id",
        b"x-client-request-id",
        b"x-cloud-trace-context",
        b"x-correlation-id",
        b"x-forwarded-for",
        b"x-forwarded-port",
        b"x-forwarded-proto",
        b"x-idempotency-key",
        b"x-ms-client-request-id",
        b"x-opaque-id",
        b"x-real-ip",
        b"x-request-id",
        b"x-request-start",
        b"x-request-timeout",
        b"x-trace-id",
    )
)
_IDLE_PREFIXES = (b"sec-", b"x-b3-", b"x-datadog-", b"x-envoy-", b"x-stainless-", b"x-understudy-")
_WHO = frozenset((*CREDENTIALS, b"cookie", b"proxy-authorization"))
"""Headers that say who asks: where everybody shares answers, they do not matter."""
# Load balancers and shields mark their visitors, and SDKs keep such marks as any cookie: they say nothing of who asks.
_MARKS = (b"__cf", b"_cf", b"cf_", b"ak_bmsc", b"arraffinity", b"awsalb", b"bigip", b"incap_ses", b"nlbi_", b"visid_")
_UNUSUAL = frozenset(
    (
        b"expect",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"range",
        b"x-http-method",
        b"x-http-method-override",
        b"x-method-override",
    )
)
_CACHE_CONTROL = frozenset((b"cache-control", b"pragma"))
_MAX_AGE = re.compile(rb"(?:^|[,\s])max-age\s*=\s*\"?(\d{1,9})")
_ENCODER = msgspec.json.Encoder(order="deterministic")
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])

Fields = dict[str, msgspec.Raw]


class Front:
    """What follows from a request's head alone. `bare` and `bare_remembered` are the head as upstreams are asked:
    an answer that is kept must be readable by the next caller, who may know no compression. An answer older than
    `age_s_max` is not what the caller wants."""

    __slots__ = ("age_s_max", "bare", "bare_remembered", "prefix", "reads", "writes")

    def __init__(self, prefix: bytes, bare: Headers, *, reads: bool, writes: bool, age_s_max: float = inf) -> None:
        self.prefix = prefix
        self.age_s_max = age_s_max
        self.bare = bare
        self.bare_remembered: dict[object, Any] = {}
        self.reads = reads
        self.writes = writes


class Scope(NamedTuple):
    """What a route's keys begin with, which headers set tenants apart (None: nobody is told apart), and which change
    nothing, besides those that never do."""

    fingerprint: bytes
    tenant_headers: tuple[bytes, ...] | None
    idle_headers: frozenset[bytes] = frozenset()


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
    idle = frozenset(name.lower().encode() for name in route.cache.idle_headers)
    return Scope(sha256(repr(told).encode()).digest(), None if shared else besides, idle)


class Wishes(NamedTuple):
    """What a caller wants of caches: whether it takes what was kept, and how old; and whether its answer may be."""

    reads: bool
    writes: bool
    age_s_max: float


def wishes_of(request: Request) -> Wishes:
    """Who wants nothing kept, or nothing that was, says so in Cache-Control or our own header."""
    reads = writes = True
    age_s_max = inf
    for given, value in request.headers:
        name = given.lower()
        if name in _CACHE_CONTROL:
            said = value.lower()
            writes = writes and b"no-store" not in said
            told = _MAX_AGE.search(said)
            age_s_max = float(told[1]) if told else age_s_max
            reads = reads and not (b"no-store" in said or b"no-cache" in said or age_s_max == 0)
        elif name in _UNUSUAL or (name == BYPASS and value.strip().lower() == b"bypass"):
            reads = writes = False
    return Wishes(reads, writes, age_s_max)


def front_of(request: Request, scope: Scope) -> Front:
    """Read a head."""
    parts = [scope.fingerprint, request.method, request.path, b"?", request.query]
    wishes, is_post = wishes_of(request), request.method == b"POST"
    bare = [header for header in request.headers if header[0].lower() != b"accept-encoding"]
    parts.append(manner_of(request, scope))
    if scope.tenant_headers is not None:
        parts += [b"tenant", tenant_of(request, scope.tenant_headers)]
    spelt = _spelt(parts)
    reads, writes = wishes.reads and is_post, wishes.writes and is_post
    return Front(sha256(spelt).digest(), bare, reads=reads, writes=writes, age_s_max=wishes.age_s_max)


def manner_of(request: Request, scope: Scope) -> bytes:
    """All the headers of a request that may matter, as a digest; in whatever order they come."""
    remembered, key = request.remembered, (manner_of, scope.tenant_headers is None, scope.idle_headers)
    if remembered is not None and key in remembered:
        return remembered[key]
    parts: list[bytes] = []
    for name, value in sorted((name.lower(), value) for name, value in request.headers):
        told = _without_marks(value) if name == b"cookie" else value
        if told and _matters(name, scope):
            parts += [name, told]
    manner = sha256(_spelt(parts)).digest()
    if remembered is not None:
        remembered[key] = manner
    return manner


def _spelt(parts: Sequence[bytes]) -> bytes:
    # lengths go in too, so that no two heads spell the same bytes
    return b"".join([b"%d:%b" % (len(part), part) for part in parts])


def _matters(name: bytes, scope: Scope) -> bool:
    if name in IDLE or name in scope.idle_headers or name.startswith(_IDLE_PREFIXES) or name in _CACHE_CONTROL:
        return False
    return scope.tenant_headers is not None or name not in _WHO


def _without_marks(cookies: bytes) -> bytes:
    """Cookies but for those that only mark a visitor."""
    each = [cookie.strip() for cookie in cookies.split(b";")]
    return b"; ".join(sorted(cookie for cookie in each if not cookie.lower().startswith(_MARKS)))


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
