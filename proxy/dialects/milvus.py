"""Milvus by its REST API, version 2: search, query, get, has and list are answered by the local index.

    POST …/v2/vectordb/entities/search   {"code": 0, "cost": 0, "data": [{"id", "distance", …}]}      an answer
    POST …/v2/vectordb/…                 {"code": 1100, "message": "text"}                            an error, as 200

Every error comes as a 200 (from 2.6 on some as statuses), so that the code alone tells. A distance is the cosine or the
inner product, higher is better, or the squared Euclidean distance. Its Python client speaks gRPC only, and is not seen.
Ids are under `id`, as in collections made the quick way; only `writes` of such collections are mirrored.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar, cast

import msgspec
from msgspec import Meta, Raw

from understudy.indexes.writes import Change
from understudy.policies.service import Answer, Call, Headers, Refused, Request
from understudy.proxy.asks import Found, RetrieveAsk, Retrieved, distance_of
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
from understudy.proxy.dialects.milvus_filter import condition_of
from understudy.proxy.dialects.milvus_writes import METRICS, PRIMARY, created, deleted, dropped, put, put_as_answered
from understudy.proxy.dialects.plain import Plain

LIMIT_MAX = 16_384
LIMIT = 100
WRITE_BYTES_READ_MAX = 64 * 1024 * 1024
COUNT = "count(*)"

_PATH = re.compile(rb"(?:^|/)v2/vectordb/([a-z_]+)/([a-z_]+)/?$")
_READS = frozenset(
    {b"entities/search", b"entities/query", b"entities/get", b"entities/hybrid_search", b"entities/advanced_search"}
    | {b"collections/list", b"collections/has", b"collections/describe", b"collections/get_stats"}
    | {b"collections/get_load_state"}
)
_ANSWERED = frozenset({b"entities/search", b"entities/query", b"entities/get", b"collections/list", b"collections/has"})
# What reads, wherever it stands: list, has, describe, get_….
_OTHER_READS = re.compile(rb"^(?:list|has|describe|get)(?:_[a-z_]+)?$")
# What is beside the data: how it is indexed, loaded, guarded.
_IDLE = re.compile(
    rb"^(?:indexes|users|roles|privilege_groups|resource_groups)/|^collections/(?:load|refresh_load|release|flush|compact"
    rb"|alter_properties|drop_properties)$|^databases/(?:create|alter|alter_properties|drop_properties)$"
    rb"|^partitions/(?:create|load|release)$"
)
_WELL = re.compile(rb'\s*\{\s*"code"\s*:\s*(?:0|200)\s*[,}]')


class _Named(msgspec.Struct, rename="camel"):
    collection_name: str = ""
    db_name: str | None = None


class _Select(_Named, rename="camel"):
    output_fields: list[str] | None = None
    partition_names: list[str] | None = None
    expr_params: Raw = Raw()


class _Search(_Select, rename="camel"):
    data: Raw = Raw()
    anns_field: str | None = None
    filter: str | None = None
    limit: Annotated[int, Meta(ge=1)] | None = None
    offset: Annotated[int, Meta(ge=0)] | None = None
    search_params: dict[str, Any] | None = None


class _Query(_Select, rename="camel"):
    filter: str | None = None
    limit: Annotated[int, Meta(ge=1)] | None = None
    offset: Annotated[int, Meta(ge=0)] | None = None


class _Get(_Select, rename="camel", kw_only=True):
    id: int | str | list[int | str]


_IDLE_FIELDS = frozenset({"consistencyLevel"})
_Asked = TypeVar("_Asked", _Search, _Query, _Get)


class _Said(msgspec.Struct):
    code: int = 0


class _Note(msgspec.Struct, frozen=True):
    """How an answer is to be written down: the vector's name where it is wanted, the fields where they are named, and
    the metric that was asked for."""

    vector: str = ""
    fields: tuple[str, ...] | None = None
    metric: str = ""


_NAMED = msgspec.json.Decoder(_Named)
_SEARCH = msgspec.json.Decoder(_Search)
_QUERY = msgspec.json.Decoder(_Query)
_GET = msgspec.json.Decoder(_Get)
_SAID = msgspec.json.Decoder(_Said)
_NOTE = msgspec.json.Decoder(_Note)
_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_VECTORS = msgspec.json.Decoder(list[Raw])
_VECTOR = msgspec.json.Decoder(tuple[float, ...])


class Milvus(Plain):
    """`milvus`: reads are of kind retrieve, everything else is passed through."""

    name = "milvus"
    aliases = True

    def read(self, request: Request) -> Call:
        """By method and path alone: the body stays unread."""
        return Call("retrieve" if _act_of(request) in _READS else "pass", request, dialect=self.name)

    def collection_of(self, request: Request) -> str:
        """The collection, behind its database where that is not the usual one; '' for what reads several."""
        return "" if _act_of(request) == b"collections/list" else _collection(request)

    def keepable(self, request: Request) -> bool:
        """What says how the server is changes without a write."""
        return _act_of(request).startswith(b"entities/")

    def written(self, request: Request) -> str | None:
        act = _act_of(request)
        if act in _READS or request.method != b"POST" or (act and _OTHER_READS.match(act.partition(b"/")[2])):
            return None
        return _collection(request) if act.startswith((b"entities/", b"collections/")) else ""

    def changes(self, call: Call) -> tuple[Change, ...]:
        return self._changes(call.request, None)

    def applied(self, call: Call, answer: Answer) -> tuple[Change, ...]:
        if answer.stream is not None or is_encoded(answer):
            raise Refused("encoded", "the answer is too long or packed, and can't be read")
        return () if parsed(_SAID, answer.body).code not in (0, 200) else self._changes(call.request, answer.body)

    def _changes(self, request: Request, answer: bytes | None) -> tuple[Change, ...]:
        act = _act_of(request)
        if self.written(request) is None or _IDLE.search(act):
            return ()
        if answer is not None and act in (b"entities/insert", b"entities/upsert"):
            writes = put_as_answered(request.body, answer)
        elif act in _CHANGES:
            writes = _CHANGES[act](request.body)
        else:
            raise Refused("unsupported", "only the database knows what this changes")
        collection = _name_of(parsed(_NAMED, request.body))
        if not collection:
            raise Malformed("collectionName is missing")
        return tuple(Change(collection, write) for write in writes)

    def write_failed(self, call: Call, answer: Answer) -> str:
        """As with reads: a code that is not 0."""
        if not _act_of(call.request):
            return ""
        within = self.failure_within(answer)
        return within if within == "error_in_200" else ""

    def ask(self, call: Call) -> RetrieveAsk:
        """Raises BadRequest where Milvus would, Refused for what an index of float vectors cannot answer alike."""
        return asked_once(call, RetrieveAsk, self._asked, "can only accept json format request, error", 400)

    def _asked(self, call: Call) -> RetrieveAsk:
        act = _act_of(call.request)
        if act not in _ANSWERED:
            if act in _READS:
                raise Refused("unsupported", "only the database itself can answer this")
            raise Refused("write", "writes go to the database itself or not at all")
        body = call.request.body
        if act == b"collections/list":
            if parsed(_NAMED, body or b"{}").db_name not in (None, "", "default"):
                raise Refused("unsupported", "which collections are in another database, only Milvus knows")
            return RetrieveAsk("collections")
        if act == b"collections/has":
            return RetrieveAsk("exists", _needed(parsed(_NAMED, body)))
        return {b"entities/search": _search, b"entities/query": _query, b"entities/get": _get}[act](body)

    def failure_within(self, answer: Answer) -> str:
        """`garbage` for what is no object, `error_in_200` for a code that is not 0 (or 200, as the first ones said)."""
        if is_encoded(answer):
            return ""
        body = answer.body
        if not looks_like_object(body):
            return "garbage"
        if _WELL.match(body):
            return ""
        try:
            return "" if parsed(_SAID, body).code in (0, 200) else "error_in_200"
        except Malformed:
            return "garbage"

    def error(self, status: int, reason: str, detail: str, *, headers: Headers | None = None) -> Answer:  # noqa: ARG002
        """A code and a sentence; the status says the same to whoever looks at it first."""
        return json_answer(status, {"code": _CODES.get(status, 65535), "message": detail}, headers)

    def retrieved(self, ask: RetrieveAsk, result: Retrieved, took_s: float) -> Answer:  # noqa: ARG002
        """The recorded shapes. A `cost` is what the cloud bills, and is nothing here."""
        return json_answer(200, {"code": 0, "cost": 0, "data": _data(ask, result)})


_CODES = {400: 1100, 401: 1800, 404: 100, 413: 1102, 422: 1100, 429: 8, 500: 5, 502: 2, 503: 2, 504: 10001}
_CHANGES = {
    b"entities/insert": put,
    b"entities/upsert": put,
    b"entities/delete": deleted,
    b"collections/create": created,
    b"collections/drop": dropped,
}


# --- reading -------------------------------------------------------------------------------------------------------


def _act_of(request: Request) -> bytes:
    """What a request does, as `entities/search`; b"" where it is none of version 2's."""
    match = _PATH.search(request.path)
    return b"" if match is None or request.method != b"POST" else match[1] + b"/" + match[2]


def _collection(request: Request) -> str:
    if len(request.body) > WRITE_BYTES_READ_MAX:
        return ""
    try:
        return _name_of(parsed(_NAMED, request.body))
    except Malformed:
        return ""


def _name_of(named: _Named) -> str:
    if named.db_name in (None, "", "default"):
        return named.collection_name
    return f"{named.db_name}/{named.collection_name}" if named.collection_name else ""


def _needed(named: _Named) -> str:
    if not named.collection_name:
        raise BadRequest("missing required parameters, error: collectionName is required")
    return _name_of(named)


def _search(body: bytes) -> RetrieveAsk:
    asked = _read(_SEARCH, body)
    return RetrieveAsk(
        "search",
        _needed(asked),
        vector=_one_vector(asked.data),
        limit=_limit(asked.limit, asked.offset),
        offset=asked.offset or 0,
        filter=condition_of(asked.filter or ""),
        using=asked.anns_field or "",
        is_field=True,
        **_selected(asked.output_fields or [], _metric(asked.search_params or {}), asked.anns_field),
    )


def _query(body: bytes) -> RetrieveAsk:
    asked = _read(_QUERY, body)
    condition = condition_of(asked.filter or "")
    if asked.output_fields == [COUNT]:
        return RetrieveAsk("count", _needed(asked), filter=condition)
    return RetrieveAsk(
        "scroll",
        _needed(asked),
        limit=_limit(asked.limit, asked.offset),
        offset=asked.offset or 0,
        filter=condition,
        **_selected(["*"] if asked.output_fields is None else asked.output_fields),
    )


def _get(body: bytes) -> RetrieveAsk:
    asked = _read(_GET, body)
    ids = tuple(asked.id) if isinstance(asked.id, list) else (asked.id,)
    if len(ids) > LIMIT_MAX:
        raise BadRequest(f"invalid parameter: at most {LIMIT_MAX} ids")
    fields = ["*"] if asked.output_fields is None else asked.output_fields
    return RetrieveAsk("get", _needed(asked), ids=ids, **_selected(fields))


def _read(decoder: msgspec.json.Decoder[_Asked], body: bytes) -> _Asked:
    """What is asked, where it is all known here. Raises Malformed, or Refused."""
    asked = parsed(decoder, body)
    known = {field.encode_name for field in msgspec.structs.fields(asked)} | _IDLE_FIELDS
    unknown = sorted(parsed(_FIELDS, body).keys() - known)
    if unknown:
        raise Refused("unsupported", f"the local index does not know {unknown[0][:40]!r}")
    if asked.partition_names or given(asked.expr_params):
        raise Refused("unsupported", "the local index knows no partitions, and no filters with parameters")
    return asked


def _selected(fields: list[str], metric: str = "", anns_field: str | None = None) -> dict[str, Any]:
    """What of the points is told. All of them (`*`) has the vectors with it, whose names only a search says."""
    vector = anns_field or "vector"
    if any("(" in field for field in fields):
        raise Refused("unsupported", "an aggregation")
    everything = "*" in fields
    named = None if everything else tuple(field for field in fields if field not in (PRIMARY, vector))
    note = _Note(vector if everything or vector in fields else "", named, metric)
    return {
        "with_payload": everything or bool(named),
        "with_vector": bool(note.vector),
        "shape": msgspec.json.encode(note).decode(),
    }


def _one_vector(data: Raw) -> tuple[float, ...]:
    if first_byte(data) != b"[":
        raise BadRequest("missing required parameters, error: data is required")
    vectors = parsed(_VECTORS, data)
    if len(vectors) != 1:
        raise Refused("unsupported", "several vectors in one search, whose answers stand in one list")
    if first_byte(vectors[0]) != b"[":
        raise Refused("unsupported", "the local index knows no sparse vectors, and no texts to embed")
    return parsed(_VECTOR, vectors[0])


def _metric(params: dict[str, Any]) -> str:
    """The metric that a search names. How hard the database is to look (`nprobe`, `ef`, …) is its own affair; bounds of
    the distance are not."""
    inner = params.get("params")
    bounds = {**params, **(cast("dict[str, Any]", inner) if isinstance(inner, dict) else {})}
    for word in ("radius", "range_filter", "group_by_field"):
        if bounds.get(word) is not None:
            raise Refused("unsupported", f"the local index does not know {word}")
    metric = params.get("metricType", params.get("metric_type", ""))
    if metric and (not isinstance(metric, str) or metric.upper() not in METRICS):
        raise Refused("unsupported", "the local index does not know this metric")
    return str(metric).upper()


def _limit(limit: int | None, offset: int | None) -> int:
    if (limit or LIMIT) + (offset or 0) > LIMIT_MAX:
        raise BadRequest(f"invalid max query result window, (offset+limit) should be in range [1, {LIMIT_MAX}]")
    return limit or LIMIT


# --- writing -------------------------------------------------------------------------------------------------------


def _data(ask: RetrieveAsk, result: Retrieved) -> Any:
    if ask.op == "collections":
        return result.names
    if ask.op == "exists":
        return {"has": result.exists}
    if ask.op == "count":
        return [{COUNT: result.count}]
    note = _NOTE.decode(ask.shape)
    distance = distance_of(ask, result)
    if note.metric and distance and METRICS[note.metric] != distance:
        raise Refused("unsupported", "the local collection has another metric than was asked for")
    found = result.found[: ask.limit] if ask.op == "scroll" else result.found
    return [_row(ask, each, distance, note) for each in found]


def _row(ask: RetrieveAsk, found: Found, distance: str, note: _Note) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if ask.with_payload:
        row = {name: value for name, value in found.payload.items() if note.fields is None or name in note.fields}
    if note.vector:
        row |= found.named if found.vector is None else {note.vector: found.vector}
    if ask.op == "search":
        score = found.score or 0.0
        row["distance"] = score * score if distance == "euclid" else score
    return {PRIMARY: found.id, **row}
