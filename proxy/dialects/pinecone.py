"""Pinecone's data plane: query, fetch and describe_index_stats are answered by the local index; the rest is passed on.

    {"matches": [{"id", "score", "values", "metadata"}], "namespace", "usage"}      an answer
    {"code": 3, "message": "text", "details": []}                                   an error, with gRPC's code

An index is a host, so a route is an index; its namespaces are what other databases call collections, and the default
one is called `__default__` here, as the newer API does. Scores are cosine or dot product, higher is better, or squared
Euclidean distance, lower is better. Clients must be given `host=`: one that is given an index's name asks the control
plane for the host, and goes there past us.
"""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import parse_qs, unquote_to_bytes

import msgspec
from msgspec import Meta, Raw

from understudy.indexes.writes import Change, Write
from understudy.policies.service import Answer, Call, Headers, Refused, Request
from understudy.proxy.asks import Found, RetrieveAsk, Retrieved
from understudy.proxy.dialects.base import (
    BadRequest,
    Malformed,
    asked_once,
    first_byte,
    given,
    is_encoded,
    json_answer,
    looks_like_object,
    parsed,
)
from understudy.proxy.dialects.pinecone_filter import translated
from understudy.proxy.dialects.pinecone_writes import deleted, deletes, namespace_changes, updated, upserted
from understudy.proxy.dialects.plain import Plain

DEFAULT_NAMESPACE = "__default__"
TOP_K_MAX = 10_000
IDS_MAX = 1_000
QUERY_BYTES_MAX = 64 * 1024
WRITE_BYTES_READ_MAX = 8 * 1024 * 1024
"""A longer write is taken for one of all namespaces; the API takes none longer than 2 MB, whose reading takes 2 ms."""
LONG_BYTES = 4096

_READS = {
    (b"POST", b"query"): "query",
    (b"GET", b"vectors/fetch"): "fetch",
    (b"POST", b"describe_index_stats"): "stats",
    (b"GET", b"describe_index_stats"): "stats",
}
_PATH = re.compile(rb"(?:^|/)(query|vectors/fetch|describe_index_stats)/?$")
_WRITES_IN_BODY = re.compile(rb"(?:^|/)vectors/(upsert|update|delete)/?$")
_NAMESPACES = re.compile(rb"(?:^|/)namespaces(?:/([^/]+))?/?$")
_IN_PATH = re.compile(rb"(?:^|/)namespaces/([^/]+)(?:/([^/]+))?/?$")
# Reads that only the database itself can answer, told from writes for the sake of an honest reason.
_OTHER_READS = re.compile(rb"(?:^|/)(?:vectors/(?:list|fetch_by_metadata)|records/namespaces/[^/]+/search)/?$")
_METRICS = {"cosine": "cosine", "dot": "dotproduct", "euclid": "euclidean"}
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 412: 9, 413: 3, 422: 3, 429: 8, 501: 12, 502: 14, 503: 14, 504: 4}
_UNKNOWN = 2
_INTERNAL = 13


TopK = Annotated[int, Meta(ge=1)]


class _Query(msgspec.Struct, rename="camel"):
    """A query; the API takes the names in both spellings."""

    top_k: TopK | None = None
    vector: Raw = Raw()
    id: str | None = None
    namespace: str | None = None
    filter: dict[str, Any] | None = None
    include_values: bool | None = None
    include_metadata: bool | None = None
    sparse_vector: Raw = Raw()
    queries: Raw = Raw()
    other_top_k: TopK | None = msgspec.field(default=None, name="top_k")
    other_include_values: bool | None = msgspec.field(default=None, name="include_values")
    other_include_metadata: bool | None = msgspec.field(default=None, name="include_metadata")
    other_sparse_vector: Raw = msgspec.field(default=Raw(), name="sparse_vector")


class _Stats(msgspec.Struct):
    filter: dict[str, Any] | None = None


class _Namespace(msgspec.Struct):
    namespace: str | None = None


class _Peek(msgspec.Struct):
    code: Any = None
    message: Any = None
    error: Any = None
    matches: Raw = Raw()
    vectors: Raw = Raw()
    namespaces: Raw = Raw()


_QUERY = msgspec.json.Decoder(_Query)
_STATS = msgspec.json.Decoder(_Stats)
_NAMESPACE = msgspec.json.Decoder(_Namespace)
_PEEK = msgspec.json.Decoder(_Peek)
_VECTOR = msgspec.json.Decoder(tuple[float, ...])


class Pinecone(Plain):
    """`pinecone`: the reads a local index can answer are of kind retrieve, everything else is passed through."""

    name = "pinecone"

    def read(self, request: Request) -> Call:
        """By method and path alone: the body stays unread."""
        return Call("retrieve" if _shape_of(request) else "pass", request, dialect=self.name)

    def collection_of(self, request: Request) -> str:
        """The namespace; '' for what reads them all."""
        shape = _shape_of(request)
        if shape == "fetch":
            return _of_query(request)
        return _of_body(request) if shape == "query" else ""

    def written(self, request: Request) -> str | None:
        """The namespace of a write, which for a write that we know nothing of is any."""
        method, path = request.method, request.path
        if _shape_of(request) or method in (b"GET", b"HEAD", b"OPTIONS") or _OTHER_READS.search(path):
            return None
        if _WRITES_IN_BODY.search(path):
            return _of_query(request) if method == b"DELETE" else _of_body(request)
        found = _IN_PATH.search(path)
        return _named(_text(found[1])) if found else ""

    def changes(self, call: Call) -> tuple[Change, ...]:
        """Collections are called as `collection_of` calls them: by namespace."""
        request = call.request
        if self.written(request) is None:
            return ()
        writes = _WRITES_IN_BODY.search(request.path)
        if writes is not None:
            return _vector_changes(request, writes[1])
        namespace = _NAMESPACES.search(request.path)
        if namespace is None:
            raise Refused("unsupported", "only the database knows what this changes")
        return namespace_changes(request.method, _text(namespace[1] or b""), request.body)

    def ask(self, call: Call) -> RetrieveAsk:
        """Raises BadRequest where Pinecone would, Refused for what an index of dense vectors cannot answer."""
        return asked_once(call, RetrieveAsk, self._asked, "Invalid request")

    def _asked(self, call: Call) -> RetrieveAsk:
        shape = _shape_of(call.request)
        if not shape:
            raise Refused(*_why_not(call.request))
        return _ASKS[shape](call.request)

    def failure_within(self, answer: Answer) -> str:
        """`garbage` for what cannot be JSON, `error_in_200` for a code and a message instead of a result."""
        if is_encoded(answer):
            return ""
        body = answer.body
        if not looks_like_object(body):
            return "garbage"
        if len(body) > LONG_BYTES or (b'"message"' not in body and b'"error"' not in body):
            # an error stands in a short one
            return ""
        try:
            peek = parsed(_PEEK, body)
        except Malformed:
            return "garbage"
        if given(peek.matches) or given(peek.vectors) or given(peek.namespaces):
            return ""
        return "error_in_200" if peek.error or (peek.code and peek.message) else ""

    def error(self, status: int, reason: str, detail: str, *, headers: Headers | None = None) -> Answer:  # noqa: ARG002
        """gRPC's code and a sentence; the reason stands in our own headers."""
        code = _CODES.get(status, _INTERNAL if status >= 500 else _UNKNOWN)
        return json_answer(status, {"code": code, "message": detail, "details": []}, headers)

    def retrieved(self, ask: RetrieveAsk, result: Retrieved, took_s: float) -> Answer:  # noqa: ARG002
        """The recorded shapes; of the units that reading costs we have used none."""
        if ask.op == "infos":
            return json_answer(200, _stats(result))
        usage = {"readUnits": 0}
        if ask.op == "get":
            vectors = {str(found.id): _record(found, values=True, metadata=True) for found in result.found}
            return json_answer(200, {"vectors": vectors, "namespace": ask.shape, "usage": usage})
        squared = result.distance == "euclid"
        matches = [_match(ask, found, squared=squared) for found in result.found]
        return json_answer(200, {"results": [], "matches": matches, "namespace": ask.shape, "usage": usage})


# --- reading -------------------------------------------------------------------------------------------------------


def _shape_of(request: Request) -> str:
    """Which of the reads we know a request is, or ''."""
    match = _PATH.search(request.path)
    return "" if match is None else _READS.get((request.method, match[1]), "")


def _why_not(request: Request) -> tuple[str, str]:
    if request.method in (b"GET", b"HEAD") or _OTHER_READS.search(request.path):
        return "unsupported", "only the database itself can answer this"
    return "write", "writes go to the database itself or not at all"


def _named(namespace: str | None) -> str:
    return namespace or DEFAULT_NAMESPACE


def _of_body(request: Request) -> str:
    """The namespace that a body names; '' where it can't be read, which means any."""
    if len(request.body) > WRITE_BYTES_READ_MAX:
        return ""
    try:
        return _named(parsed(_NAMESPACE, request.body).namespace)
    except Malformed:
        return ""


def _of_query(request: Request) -> str:
    return _named(_parameters(request).get("namespace", [""])[-1])


def _parameters(request: Request) -> dict[str, list[str]]:
    if len(request.query) > QUERY_BYTES_MAX:
        return {}
    try:
        return parse_qs(request.query.decode("latin-1"), max_num_fields=IDS_MAX + 8)
    except ValueError:
        return {}


def _query(request: Request) -> RetrieveAsk:
    body = parsed(_QUERY, request.body)
    if given(body.sparse_vector) or given(body.other_sparse_vector):
        raise Refused("unsupported", "the local index does not know sparse vectors")
    if given(body.queries):
        raise Refused("unsupported", "the local index does not know several queries at once")
    has_vector = given(body.vector) and bytes(body.vector) != b"[]"
    if has_vector == bool(body.id):
        raise BadRequest("Exactly one of vector and id must be given")
    limit = body.top_k if body.top_k is not None else body.other_top_k
    if limit is None or limit > TOP_K_MAX:
        raise BadRequest(f"Invalid request: topK must be between 1 and {TOP_K_MAX}")
    if has_vector and first_byte(body.vector) != b"[":
        raise BadRequest("Invalid request: vector must be an array of numbers")
    meaning, other = translated(body.filter)
    return RetrieveAsk(
        "search",
        _named(body.namespace),
        vector=parsed(_VECTOR, body.vector) if has_vector else None,
        near_id=body.id or None,
        limit=limit,
        filter=meaning,
        filter_or=other,
        with_payload=bool(body.include_metadata or body.other_include_metadata),
        with_vector=bool(body.include_values or body.other_include_values),
        # the namespace is told again as it was named
        shape=body.namespace or "",
        with_near=True,
    )


def _fetch(request: Request) -> RetrieveAsk:
    parameters = _parameters(request)
    ids = parameters.get("ids", [])
    if not ids:
        raise BadRequest("Invalid request: ids must be given")
    if len(ids) > IDS_MAX:
        raise BadRequest(f"Invalid request: at most {IDS_MAX} ids may be fetched at once")
    namespace = parameters.get("namespace", [""])[-1]
    return RetrieveAsk("get", _named(namespace), ids=tuple(ids), with_payload=True, with_vector=True, shape=namespace)


def _describe(request: Request) -> RetrieveAsk:
    if request.body.strip() and parsed(_STATS, request.body).filter:
        raise Refused("unsupported", "the local index counts whole namespaces only")
    return RetrieveAsk("infos")


_ASKS = {"query": _query, "fetch": _fetch, "stats": _describe}


def _vector_changes(request: Request, act: bytes) -> tuple[Change, ...]:
    writes: list[Write]
    if request.method == b"DELETE":
        said = _parameters(request)
        everything = [each.lower() for each in said.get("deleteAll", said.get("delete_all", []))] == ["true"]
        if "filter" in said:
            raise Refused("unsupported_filter", "a filter in a URL")
        writes = deletes(said.get("ids"), None, everything=everything)
        namespace = _of_query(request)
    else:
        writes = _CHANGES[act](request.body)
        namespace = _named(parsed(_NAMESPACE, request.body).namespace)
    return tuple(Change(namespace, write) for write in writes)


def _text(raw: bytes) -> str:
    return unquote_to_bytes(raw).decode("utf-8", "replace")


_CHANGES = {b"upsert": upserted, b"update": updated, b"delete": deleted}


# --- writing -------------------------------------------------------------------------------------------------------


def _record(found: Found, *, values: bool, metadata: bool) -> dict[str, Any]:
    record: dict[str, Any] = {"id": str(found.id), "values": found.vector if values and found.vector else []}
    if metadata and found.payload:
        record["metadata"] = found.payload
    return record


def _match(ask: RetrieveAsk, found: Found, *, squared: bool) -> dict[str, Any]:
    score = found.score or 0.0
    record = _record(found, values=ask.with_vector, metadata=ask.with_payload is True)
    return {"id": record.pop("id"), "score": score * score if squared else score, **record}


def _stats(result: Retrieved) -> dict[str, Any]:
    """An index has one dimension and one metric: collections that differ in them are not one index."""
    kinds = {(info.dimensions, info.distance) for info in result.infos}
    if len(kinds) != 1:
        raise Refused("unsupported", "the local collections of this index differ in dimension or distance")
    dimensions, distance = kinds.pop()
    return {
        "namespaces": {
            "" if info.name == DEFAULT_NAMESPACE else info.name: {"vectorCount": info.count} for info in result.infos
        },
        "dimension": dimensions,
        "indexFullness": 0.0,
        "totalVectorCount": sum(info.count for info in result.infos),
        "metric": _METRICS[distance],
        "vectorType": "dense",
    }
