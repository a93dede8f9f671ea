"""Qdrant's REST API, as far as a RAG application reads with it: query, search, scroll, get, count, and what there is.

    {"result": …, "status": "ok", "time": s}          an answer
    {"status": {"error": "text"}, "time": s}          an error

Clients from 1.16 on search with `points/query` ({"points": […]}), older ones with `points/search` (a bare list).
Writes and everything rarer are passed through, and no local tier answers them: an index that took a write the
database has not seen would be lying from then on. What a write changes is read in `qdrant_writes`, for mirrors.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, cast
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import Meta, Raw

from understudy.indexes.writes import Change
from understudy.policies.service import Answer, Call, Headers, Kind, Refused, Request
from understudy.proxy.asks import CollectionInfo, Found, PayloadChoice, RetrieveAsk, Retrieved, RetrieveOp
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
from understudy.proxy.dialects.plain import Plain
from understudy.proxy.dialects.qdrant_payload import chosen
from understudy.proxy.dialects.qdrant_writes import changes_of

LIMIT_MAX = 10_000
"""The most points of one local answer."""
IDS_MAX = 10_000
SEARCHES_MAX = 128
"""The most searches of one batch."""

_PATH = re.compile(rb"(?:^|/)collections(?:/([^/]+)(?:/([a-z/]+?))?)?/?$")
# As _PATH, for anything that stands behind a collection's name.
_UNDER = re.compile(rb"(?:^|/)collections(?:/([^/]+)(?:/(.+?))?)?/?$")
_VERSION = re.compile(rb"/(\d+\.\d+\.\d+)")
_POINT_READS = {
    b"points/query": "query",
    b"points/search": "search",
    b"points/query/batch": "query/batch",
    b"points/search/batch": "search/batch",
    b"points/scroll": "scroll",
    b"points": "get",
    b"points/count": "count",
}
# Reads that only the database itself can answer, told from writes for the sake of an honest reason.
_OTHER_READS = re.compile(rb"points/(?:.*groups|recommend.*|discover.*|search/matrix.*)|facet")
_OK_TAIL = re.compile(rb'"status":"ok","time":[0-9.eE+-]+(?:,"usage":null)?\}\s*$')
_DISTANCES = {"cosine": "Cosine", "dot": "Dot", "euclid": "Euclid"}

Limit = Annotated[int, Meta(ge=1)]
Id = Annotated[int, Meta(ge=0)] | str


class _Select(msgspec.Struct):
    """What all reads of points have in common; the API knows both spellings of `with_vector`."""

    filter: dict[str, Any] | None = None
    with_payload: Raw = Raw()
    with_vector: bool | list[str] | None = None
    with_vectors: bool | list[str] | None = None
    shard_key: Raw = Raw()


class _Search(_Select):
    limit: Limit | None = None
    offset: Annotated[int, Meta(ge=0)] | None = None
    score_threshold: float | None = None


class _Query(_Search):
    query: Raw = Raw()
    using: str | None = None
    prefetch: Raw = Raw()
    lookup_from: Raw = Raw()


class _OldSearch(_Search):
    vector: Raw = Raw()


class _Scroll(_Select):
    limit: Limit | None = None
    offset: Id | None = None
    order_by: Raw = Raw()


class _Get(_Select, kw_only=True):
    ids: list[Id]


class _Count(msgspec.Struct):
    filter: dict[str, Any] | None = None
    shard_key: Raw = Raw()


class _Batch(msgspec.Struct):
    searches: list[Raw]


class _Nearest(msgspec.Struct):
    nearest: Raw = Raw()
    mmr: Raw = Raw()


class _Named(msgspec.Struct):
    vector: Raw
    name: str = ""


class _Envelope(msgspec.Struct):
    status: Raw = Raw()
    version: str = ""


_QUERY = msgspec.json.Decoder(_Query)
_OLD_SEARCH = msgspec.json.Decoder(_OldSearch)
_SCROLL = msgspec.json.Decoder(_Scroll)
_GET = msgspec.json.Decoder(_Get)
_COUNT = msgspec.json.Decoder(_Count)
_BATCH = msgspec.json.Decoder(_Batch)
_NEAREST = msgspec.json.Decoder(_Nearest)
_NAMED = msgspec.json.Decoder(_Named)
_ENVELOPE = msgspec.json.Decoder(_Envelope)
_VECTOR = msgspec.json.Decoder(tuple[float, ...])
_ID = msgspec.json.Decoder(Id)
_CHOICE: msgspec.json.Decoder[bool | list[str] | dict[str, list[str]]] = msgspec.json.Decoder(
    bool | list[str] | dict[str, list[str]]
)


class Qdrant(Plain):
    """`qdrant`: the reads a local index can answer are of kind retrieve, everything else is passed through."""

    name = "qdrant"

    def read(self, request: Request) -> Call:
        """By method and path alone: the body stays unread."""
        return Call(_kind_of(request), request, dialect=self.name)

    def collection_of(self, request: Request) -> str:
        shape = _shape_of(request)
        return shape[1] if shape else ""

    def written(self, request: Request) -> str | None:
        """Everything under a collection that is no read we know of; what concerns several, or none we know, is all."""
        if request.method in (b"GET", b"HEAD", b"OPTIONS"):
            return None
        match = _UNDER.search(request.path)
        if match is None:
            return None
        rest: bytes = match[2] or b""
        if _OTHER_READS.fullmatch(rest) or (rest in _POINT_READS and request.method == b"POST"):
            return None
        collection = unquote_to_bytes(match[1] or b"").decode("utf-8", "replace")
        # an alias that changes hands changes what another name means
        return "" if collection == "aliases" and request.method == b"POST" else collection

    def changes(self, call: Call) -> tuple[Change, ...]:
        """The whole of what `points/batch` does is told, one Change for each of its operations that does anything."""
        return changes_of(call.request)

    def ask(self, call: Call) -> RetrieveAsk:
        """Raises BadRequest where Qdrant would, Refused for what an index of single vectors cannot answer."""
        return asked_once(call, RetrieveAsk, self._asked, "Format error in JSON body")

    def _asked(self, call: Call) -> RetrieveAsk:
        shape = _shape_of(call.request)
        if shape is None:
            raise Refused(*_why_not(call.request))
        op, collection, note = shape
        return _read_ask(op, collection, note, call.request)

    def failure_within(self, answer: Answer) -> str:
        """`garbage` for what cannot be JSON, `error_in_200` for an envelope whose status is not ok."""
        if is_encoded(answer):
            return ""
        body = answer.body
        if not looks_like_object(body):
            return "garbage"
        if _OK_TAIL.search(body[-96:]):
            # the end of every envelope as Qdrant writes it: the points before it need not be parsed
            return ""
        try:
            envelope = parsed(_ENVELOPE, body)
        except Malformed:
            return "garbage"
        return "" if bytes(envelope.status) == b'"ok"' or envelope.version else "error_in_200"

    def error(self, status: int, reason: str, detail: str, *, headers: Headers | None = None) -> Answer:  # noqa: ARG002
        """The envelope has a place for a sentence only: the reason stands in our own headers."""
        return json_answer(status, {"status": {"error": detail}, "time": 0.0}, headers)

    def retrieved(self, ask: RetrieveAsk, result: Retrieved, took_s: float) -> Answer:
        """The result in its envelope; `GET /` alone has none."""
        if ask.op == "version":
            return json_answer(200, {"title": "qdrant - vector search engine", "version": ask.shape})
        return json_answer(200, {"result": _result(ask, result), "status": "ok", "time": round(took_s, 9)})


# --- reading -------------------------------------------------------------------------------------------------------


def _kind_of(request: Request) -> Kind:
    """Whether it is a read: looked up once for all requests with one head."""
    remembered = request.remembered
    if remembered is not None and _kind_of in remembered:
        return cast("Kind", remembered[_kind_of])
    kind: Kind = "pass" if _shape_of(request) is None else "retrieve"
    if remembered is not None:
        remembered[_kind_of] = kind
    return kind


def _shape_of(request: Request) -> tuple[RetrieveOp, str, str] | None:
    """A request's (op, collection, shape) by method and path, or None when it is not a read we know."""
    if request.path in (b"", b"/"):
        return ("version", "", "") if request.method == b"GET" else None
    match = _PATH.search(request.path)
    if match is None:
        return None
    # A collection's name may be any text; bytes that are no UTF-8 name none, and are told so.
    collection = unquote_to_bytes(match[1] or b"").decode("utf-8", "replace")
    rest: bytes = match[2] or b""
    if request.method == b"GET":
        if not collection:
            return "collections", "", ""
        gets: dict[bytes, RetrieveOp] = {b"": "info", b"exists": "exists"}
        return (gets[rest], collection, "") if rest in gets else None
    shape = _POINT_READS.get(rest)
    if request.method != b"POST" or shape is None:
        return None
    return _OPS[shape], collection, shape


_OPS: dict[str, RetrieveOp] = {
    "query": "search",
    "search": "search",
    "query/batch": "batch",
    "search/batch": "batch",
    "scroll": "scroll",
    "get": "get",
    "count": "count",
}


def _why_not(request: Request) -> tuple[str, str]:
    match = _PATH.search(request.path)
    if request.method in (b"GET", b"HEAD") or (match and _OTHER_READS.fullmatch(match[2] or b"")):
        return "unsupported", "only the database itself can answer this"
    return "write", "writes go to the database itself or not at all"


def _read_ask(op: RetrieveOp, collection: str, shape: str, request: Request) -> RetrieveAsk:
    body = request.body
    if shape in ("query", "search"):
        return _search(shape, collection, body)
    if op == "batch":
        return _batch(collection, shape, parsed(_BATCH, body))
    if op == "scroll":
        return _scroll(collection, parsed(_SCROLL, body))
    if op == "get":
        return _get(collection, parsed(_GET, body))
    if op == "count":
        count = parsed(_COUNT, body)
        _refuse({"a shard key": given(count.shard_key)})
        return RetrieveAsk("count", collection, filter=count.filter)
    if op == "version":
        return RetrieveAsk("version", shape=_version_for(request))
    return RetrieveAsk(op, collection)


def _search(shape: str, collection: str, body: bytes | Raw) -> RetrieveAsk:
    """One search in the new form or the old one."""
    if shape == "query":
        search = parsed(_QUERY, body)
        vector, near_id = _nearest(search.query)
        _refuse(
            {
                "a prefetch": given(search.prefetch),
                "a look-up in another collection": given(search.lookup_from),
                "a named vector": bool(search.using),
            }
        )
    else:
        search = parsed(_OLD_SEARCH, body)
        vector, near_id = _old_vector(search.vector)
    return RetrieveAsk(
        "search",
        collection,
        vector=vector,
        near_id=near_id,
        limit=_limit(search.limit),
        offset=search.offset or 0,
        filter=search.filter,
        score_threshold=search.score_threshold,
        with_payload=_payload_choice(search.with_payload, unless_said=False),
        with_vector=_wants_vector(search),
        shape=shape,
    )


def _batch(collection: str, shape: str, batch: _Batch) -> RetrieveAsk:
    if len(batch.searches) > SEARCHES_MAX:
        raise Refused("unsupported", f"more than {SEARCHES_MAX} searches in one batch")
    one = shape.removesuffix("/batch")
    parts = tuple(_search(one, collection, search) for search in batch.searches)
    return RetrieveAsk("batch", collection, parts=parts, shape=shape)


def _scroll(collection: str, scroll: _Scroll) -> RetrieveAsk:
    _refuse({"an order other than by id": given(scroll.order_by)})
    return RetrieveAsk(
        "scroll",
        collection,
        limit=_limit(scroll.limit),
        after=scroll.offset,
        filter=scroll.filter,
        with_payload=_payload_choice(scroll.with_payload, unless_said=True),
        with_vector=_wants_vector(scroll),
    )


def _get(collection: str, get: _Get) -> RetrieveAsk:
    if len(get.ids) > IDS_MAX:
        raise Refused("unsupported", f"more than {IDS_MAX} ids at once")
    return RetrieveAsk(
        "get",
        collection,
        ids=tuple(get.ids),
        with_payload=_payload_choice(get.with_payload, unless_said=True),
        with_vector=_wants_vector(get),
    )


def _nearest(query: Raw) -> tuple[tuple[float, ...] | None, int | str | None]:
    """The vector or the id a query wants the neighbours of; any other kind of query is refused."""
    if not given(query):
        raise Refused("unsupported", "a query without a vector or an id")
    if first_byte(query) == b"{":
        nearest = parsed(_NEAREST, query)
        _refuse({"a query other than nearest": not given(nearest.nearest), "mmr": given(nearest.mmr)})
        query = nearest.nearest
    if first_byte(query) == b"[":
        return _vector(query), None
    _refuse({"a sparse vector, or inference in the database": first_byte(query) == b"{"})
    return None, parsed(_ID, query)


def _old_vector(vector: Raw) -> tuple[tuple[float, ...], None]:
    """The vector of `points/search`, bare or under a name."""
    if not given(vector):
        raise Malformed("missing field `vector`")
    if first_byte(vector) == b"{":
        named = parsed(_NAMED, vector)
        _refuse({"a named vector": bool(named.name), "a sparse vector": first_byte(named.vector) == b"{"})
        vector = named.vector
    return _vector(vector), None


def _vector(raw: Raw) -> tuple[float, ...]:
    _refuse({"a multivector": bytes(memoryview(raw)[1:64]).lstrip()[:1] == b"["})
    vector = parsed(_VECTOR, raw)
    if not vector:
        raise BadRequest("Wrong input: the query vector is empty")
    return vector


def _limit(limit: int | None) -> int:
    if limit is not None and limit > LIMIT_MAX:
        raise Refused("unsupported", f"more than {LIMIT_MAX} points at once")
    return 10 if limit is None else limit


def _payload_choice(raw: Raw, *, unless_said: bool) -> PayloadChoice:
    if not given(raw):
        return unless_said
    choice = parsed(_CHOICE, raw)
    if isinstance(choice, bool):
        return choice
    if isinstance(choice, list):
        return tuple(choice)
    if choice.keys() not in ({"include"}, {"exclude"}):
        raise Malformed("with_payload must be a bool, a list, or include or exclude a list")
    return {how: tuple(paths) for how, paths in choice.items()}


def _wants_vector(select: _Select) -> bool:
    wanted = select.with_vectors if select.with_vector is None else select.with_vector
    _refuse({"a shard key": given(select.shard_key), "a named vector": isinstance(wanted, list) and any(wanted)})
    return bool(wanted)


def _refuse(wanted: dict[str, bool]) -> None:
    """Raise Refused for the first thing wanted that a local index does not have."""
    for thing, is_wanted in wanted.items():
        if is_wanted:
            raise Refused("unsupported", f"the local index does not know {thing}")


def _version_for(request: Request) -> str:
    """The version of the client that asks: we speak as it does, and a client complains of any other."""
    match = _VERSION.search(request.header(b"user-agent") or b"")
    return match[1].decode("ascii") if match else "1.15.5"


# --- writing -------------------------------------------------------------------------------------------------------


def _result(ask: RetrieveAsk, result: Retrieved) -> Any:
    if ask.op == "batch":
        return [_result(part, found) for part, found in zip(ask.parts, result.parts, strict=True)]
    if ask.op in ("search", "scroll", "get"):
        return _points(ask, result)
    if ask.op == "count":
        return {"count": result.count}
    if ask.op == "exists":
        return {"exists": result.exists}
    if ask.op == "info" and result.info is not None:
        return _info(result.info)
    return {"collections": [{"name": name} for name in result.names]}


def _points(ask: RetrieveAsk, result: Retrieved) -> Any:
    points = [_point(ask, found) for found in result.found]
    if ask.op == "scroll":
        return {"points": points, "next_page_offset": result.next_id}
    return {"points": points} if ask.shape == "query" else points


def _point(ask: RetrieveAsk, found: Found) -> dict[str, Any]:
    point: dict[str, Any] = {"id": found.id}
    if ask.op == "search":
        # The client's model wants both; a version orders writes, and the local index has seen only one of each.
        point |= {"version": 0, "score": found.score}
    if ask.with_payload is not False:
        point["payload"] = chosen(found.payload, ask.with_payload)
    if ask.with_vector:
        point["vector"] = found.vector
    return point


def _info(info: CollectionInfo) -> dict[str, Any]:
    """A collection as its client's model insists on it; what the local index has no counterpart for says Qdrant's
    defaults."""
    vectors = {"size": info.dimensions, "distance": _DISTANCES[info.distance]}
    return {
        "status": "green",
        "optimizer_status": "ok",
        "vectors_count": info.count,
        "indexed_vectors_count": info.count,
        "points_count": info.count,
        "segments_count": 1,
        "config": {
            "params": {
                "vectors": vectors,
                "shard_number": 1,
                "replication_factor": 1,
                "write_consistency_factor": 1,
                "on_disk_payload": True,
            },
            "hnsw_config": {
                "m": 16,
                "ef_construct": 100,
                "full_scan_threshold": 10000,
                "max_indexing_threads": 0,
                "on_disk": False,
            },
            "optimizer_config": {
                "deleted_threshold": 0.2,
                "vacuum_min_vector_number": 1000,
                "default_segment_number": 0,
                "max_segment_size": None,
                "memmap_threshold": None,
                "indexing_threshold": 10000,
                "flush_interval_sec": 5,
                "max_optimization_threads": None,
            },
            "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0},
            "quantization_config": None,
        },
        "payload_schema": {},
    }
