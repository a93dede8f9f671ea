"""The search API of Elasticsearch and of OpenSearch: `_search`, `_count`, a document by its id, and who is there.

    {"took": ms, "timed_out": false, "_shards": {…, "failed": 0}, "hits": {"total", "max_score", "hits": […]}}
    {"error": {"root_cause": […], "type", "reason"}, "status": n}          an error

A search that ran out of time, or whose shards failed, answers 200 with what it has: to us a failure. Elasticsearch's
client takes no answer without the header X-Elastic-Product. Writes are passed through; since an alias may stand for any
index, each may concern any.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any, cast
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from understudy.indexes.writes import Change
from understudy.policies.service import Answer, Call, Headers, Refused, Request
from understudy.proxy.asks import Found, RetrieveAsk, Retrieved, distance_of
from understudy.proxy.dialects.base import (
    BadRequest,
    Malformed,
    asked_once,
    is_encoded,
    json_answer,
    looks_like_object,
    parsed,
)
from understudy.proxy.dialects.elastic_query import Meaning, Nearest, condition_of, meaning_of, nearest_of, only
from understudy.proxy.dialects.elastic_writes import applied_of, changes_of, item_statuses
from understudy.proxy.dialects.plain import Plain

HITS_MAX = 10_000
"""The last hit that may be asked for, as the server's own index.max_result_window."""
ERRORS_WITHIN_BYTES = 128
"""How far from its beginning a bulk's answer says whether there were errors."""
PRODUCT: Headers = [(b"x-elastic-product", b"Elasticsearch")]

_PATH = re.compile(rb"(?:^|/)([^/_*][^/]*)/(?:(_search|_count)|_doc/([^/]+))/?$")
# POSTs that change nothing, wherever they stand in a path.
_READS = re.compile(
    rb"/_(?:search|count|msearch|mget|validate|explain|analyze|field_caps|termvectors|mtermvectors|rank_eval|pit|refresh"
    rb"|knn_search|search_shards|render|sql|query|async_search|eql|flush|forcemerge)(?:/|$)"
)
# How a healthy answer begins, so that its hits need not be parsed.
_WELL = re.compile(
    rb'\{"took":\d+,"timed_out":false,(?:"terminated_early":(?:true|false),)?(?:"num_reduce_phases":\d+,)?'
    rb'"_shards":\{[^{}]{0,200}"failed":0\}'
)
_VERSION = re.compile(rb"^(elasticsearch|opensearch)[a-z-]*/(\d+\.\d+\.\d+)")
_SHARDS = {"total": 1, "successful": 1, "skipped": 0, "failed": 0}
_TYPES = {
    400: "illegal_argument_exception",
    404: "resource_not_found_exception",
    429: "es_rejected_execution_exception",
}
_BODY_FIELDS = {"query", "knn", "retriever", "size", "from", "_source", "track_total_hits", "sort"}
_RRF_FIELDS = {"retrievers", "rank_window_size", "rank_constant"}
_IDLE_FIELDS = {"timeout", "track_scores", "stats", "profile"}
_PARAMS = {"size", "from", "_source", "_source_includes", "_source_excludes", "track_total_hits"}
_IDLE_PARAMS = {
    *("preference", "ignore_unavailable", "allow_no_indices", "expand_wildcards", "pretty", "human", "error_trace"),
    *("typed_keys", "request_cache", "batched_reduce_size", "max_concurrent_shard_requests", "timeout"),
    *("pre_filter_shard_size", "ccs_minimize_roundtrips", "allow_partial_search_results", "realtime", "search_type"),
}

Names = tuple[str, ...]
Source = bool | tuple[Names, Names]
"""All or none of a document, or what is included (nothing named: all) and what is left out of it."""


class _Shards(msgspec.Struct):
    failed: int = 0


class _Said(msgspec.Struct):
    timed_out: bool = False
    shards: _Shards | None = msgspec.field(name="_shards", default=None)
    errors: bool = False
    error: Any = None


class _Note(msgspec.Struct, frozen=True):
    """How an answer is to be written down."""

    start: int = 0
    size: int = 10
    source: Source = True
    k: int | None = None
    fields: tuple[str, ...] = ()
    score: float = 1.0
    total: bool = True


_SAID = msgspec.json.Decoder(_Said)
_FIELDS: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])
_NOTE = msgspec.json.Decoder(_Note)


class Elasticsearch(Plain):
    """`elasticsearch`, and `opensearch` by that name: reads are of kind retrieve, everything else is passed through."""

    def __init__(self, name: str = "elasticsearch") -> None:
        self.name = name
        self._headers = PRODUCT if name == "elasticsearch" else []

    def read(self, request: Request) -> Call:
        """By method and path alone: the body stays unread."""
        return Call("pass" if _shape_of(request) is None else "retrieve", request, dialect=self.name)

    def collection_of(self, request: Request) -> str:
        shape = _shape_of(request)
        return shape[1] if shape else ""

    def keepable(self, request: Request) -> bool:
        """What leaves nothing open at the server."""
        shape = _shape_of(request)
        if shape is None or shape[0] == "version":
            return False
        return b"scroll" not in request.query and b'"pit"' not in request.body

    def written(self, request: Request) -> str | None:
        """Any index may go by other names, so that a write to it may concern any."""
        if request.method in (b"GET", b"HEAD", b"OPTIONS") or _READS.search(request.path):
            return None
        return ""

    def changes(self, call: Call) -> tuple[Change, ...]:
        """What was asked for; `applied` knows what came of it, and of documents to which the cluster gave the ids."""
        return () if self.written(call.request) is None else changes_of(call.request)

    def applied(self, call: Call, answer: Answer) -> tuple[Change, ...]:
        return () if self.written(call.request) is None else applied_of(call.request, answer)

    def write_failed(self, call: Call, answer: Answer) -> str:
        """`error_in_200` for a bulk of which the cluster could not take everything, and for shards that failed. What
        is the document's own fault, a conflict or a mapping that it breaks, says nothing of the cluster."""
        body = answer.body
        if self.written(call.request) is None or is_encoded(answer) or not looks_like_object(body):
            return ""
        if b'"failed":0}' in body and b'"errors":true' not in body[:ERRORS_WITHIN_BYTES]:
            return ""
        try:
            said = parsed(_SAID, body)
            statuses = item_statuses(body) if said.errors else []
        except Malformed:
            return ""
        failed = said.timed_out or (said.shards and said.shards.failed)
        return "error_in_200" if failed or any(status == 429 or status >= 500 for status in statuses) else ""

    def ask(self, call: Call) -> RetrieveAsk:
        """Raises BadRequest where the server would, Refused for what a local index cannot answer as it would."""
        return asked_once(call, RetrieveAsk, self._asked, "json_parse_exception")

    def _asked(self, call: Call) -> RetrieveAsk:
        shape = _shape_of(call.request)
        if shape is None:
            if call.request.method in (b"GET", b"HEAD") or _READS.search(call.request.path):
                raise Refused("unsupported", "only the database itself can answer this")
            raise Refused("write", "writes go to the database itself or not at all")
        return _read_ask(shape, call.request, self.name)

    def failure_within(self, answer: Answer) -> str:
        """`garbage` for what is no object, `error_in_200` for what some shard did not answer, or not in time."""
        if is_encoded(answer):
            return ""
        body = answer.body
        if not looks_like_object(body):
            return "garbage"
        if _WELL.match(body):
            return ""
        try:
            said = parsed(_SAID, body)
        except Malformed:
            return "garbage"
        failed = said.timed_out or said.errors or said.error is not None or (said.shards and said.shards.failed)
        return "error_in_200" if failed else ""

    def error(self, status: int, reason: str, detail: str, *, headers: Headers | None = None) -> Answer:
        """The reason is in the error's type, unless the server has a type of its own for such a thing."""
        cause = {"type": _TYPES.get(status, f"understudy_{reason}"), "reason": detail}
        told = {"error": {"root_cause": [cause], **cause}, "status": status}
        return json_answer(status, told, [*self._headers, *(headers or [])])

    def retrieved(self, ask: RetrieveAsk, result: Retrieved, took_s: float) -> Answer:
        """The result as the server would write it down."""
        return json_answer(200, _result(ask, result, took_s, self.name), list(self._headers))


# --- reading -------------------------------------------------------------------------------------------------------


def _shape_of(request: Request) -> tuple[str, str, str] | None:
    """A request's (what, index, document's id), or None when it is no read we know."""
    if request.path in (b"", b"/"):
        return ("version", "", "") if request.method == b"GET" else None
    match = _PATH.search(request.path)
    if match is None:
        return None
    index, what, document = match.groups()
    name = unquote_to_bytes(index).decode("utf-8", "replace")
    if what is None:
        known = unquote_to_bytes(document).decode("utf-8", "replace")
        return ("get", name, known) if request.method == b"GET" else None
    return (what[1:].decode("ascii"), name, "") if request.method in (b"POST", b"GET") else None


def _read_ask(shape: tuple[str, str, str], request: Request, dialect: str) -> RetrieveAsk:
    what, index, document = shape
    if what == "version":
        match = _VERSION.match(request.header(b"user-agent") or b"")
        return RetrieveAsk("version", shape=match[2].decode("ascii") if match else _DEFAULTS[dialect])
    if any(mark in index for mark in ",*?<"):
        raise Refused("unsupported", "several indices at once")
    params = _params(request)
    if what == "get":
        # an id that reads as a number may be one in the local collection
        ids = (document, int(document)) if document.isdecimal() and len(document) < 19 else (document,)
        return RetrieveAsk("get", index, ids=ids, with_payload=True, shape=_written(_Note(source=_source({}, params))))
    body = parsed(_FIELDS, request.body) if request.body.strip() else {}
    if what == "count":
        unknown = body.keys() - {"query"}
        _refuse(unknown)
        return RetrieveAsk("count", index, filter=condition_of(_filters_of(body.get("query"))))
    return _search(index, body, params)


_DEFAULTS = {"elasticsearch": "9.1.0", "opensearch": "3.0.0"}


def _params(request: Request) -> dict[str, str]:
    given = dict(parse_qsl(request.query.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=None))
    _refuse(given.keys() - _PARAMS - _IDLE_PARAMS)
    return {name: value for name, value in given.items() if name in _PARAMS}


def _filters_of(query: Any) -> list[Any]:
    """A query of which only matters what passes."""
    if query is None:
        return []
    meaning = meaning_of(query)
    if meaning.words or meaning.nearest:
        raise Refused("unsupported", "how many points have such words depends on the database's analyser")
    return meaning.filters


def _search(index: str, body: dict[str, Any], params: dict[str, str]) -> RetrieveAsk:
    _refuse(body.keys() - _BODY_FIELDS - _IDLE_FIELDS)
    if body.get("profile") or not _is_by_score(body.get("sort")):
        raise Refused("unsupported", "an order other than by score, or a profile")
    start, size = _whole(body, params, "from", 0), _whole(body, params, "size", 10)
    if start + size > HITS_MAX:
        raise BadRequest(f"Result window is too large, from + size must be less than or equal to: [{HITS_MAX}]")
    meaning = _meaning(body)
    nearest = meaning.nearest
    k = None if nearest is None else (size or 10) if nearest.k is None else nearest.k
    filters = meaning.filters if nearest is None else _list(nearest.filter)
    if nearest is not None and meaning.words and meaning.filters != filters:
        raise Refused("unsupported", "words and vectors with different filters")
    note = _Note(start, size, _source(body, params), k, meaning.fields, meaning.score, _wants_total(body, params))
    limit = max(1, start + size if k is None or meaning.words else min(k, start + size))
    ranked = nearest is not None or meaning.words
    return RetrieveAsk(
        "search" if ranked else "scroll",
        index,
        vector=None if nearest is None else nearest.vector,
        text=meaning.words,
        limit=limit,
        filter=condition_of(filters),
        score_threshold=None if nearest is None else nearest.similarity,
        with_payload=True,
        # what an analyser would let through beside, nobody here can count
        wants_total=not meaning.words,
        shape=_written(note),
        using="" if nearest is None else nearest.field,
        is_field=True,
    )


def _meaning(body: dict[str, Any]) -> Meaning:
    """What `query` and `knn` mean together, or `retriever` alone."""
    if body.get("retriever") is not None:
        if body.get("query") is not None or body.get("knn") is not None:
            raise BadRequest("cannot specify [retriever] and [query] or [knn]")
        return _retriever(body["retriever"])
    meaning = Meaning() if body.get("query") is None else meaning_of(body["query"])
    knn = body.get("knn")
    if knn is None:
        return meaning
    knn = _one(knn)
    nearest = nearest_of(knn)
    if body.get("query") is None:
        return Meaning(nearest=nearest)
    return _both(meaning, nearest)


def _retriever(said: Any, *, is_part: bool = False) -> Meaning:
    """A standard one, a knn one, or both fused by their ranks."""
    word, inner = only(said, "retriever")
    if word == "standard" and isinstance(inner, dict) and inner.keys() <= {"query", "filter"}:
        fields = cast("dict[str, Any]", inner)
        meaning = Meaning() if fields.get("query") is None else meaning_of(fields["query"])
        meaning.filters += _list(fields.get("filter"))
        return meaning
    if word == "knn":
        return Meaning(nearest=nearest_of(inner))
    # what is fused of fused ones is refused
    if word == "rrf" and not is_part and isinstance(inner, dict) and inner.keys() <= _RRF_FIELDS:
        parts = [_retriever(each, is_part=True) for each in _list(cast("dict[str, Any]", inner).get("retrievers"))]
        near = [part.nearest for part in parts if part.nearest is not None]
        worded = [part for part in parts if part.words]
        if len(parts) == 2 and len(near) == len(worded) == 1:
            return _both(worded[0], near[0])
    raise Refused("unsupported", f"the local index does not know such a retriever [{word[:40]}]")


def _both(meaning: Meaning, nearest: Nearest) -> Meaning:
    if not meaning.words or meaning.nearest is not None:
        raise Refused("unsupported", "a vector together with a query that has no words")
    if nearest.similarity is not None:
        raise Refused("unsupported", "a least similarity in a search by words and vector")
    meaning.nearest = nearest
    return meaning


def _one(knn: Any) -> Any:
    if isinstance(knn, list):
        searches = cast("list[Any]", knn)
        if len(searches) != 1:
            raise Refused("unsupported", "several vectors in one search")
        return searches[0]
    return knn


def _whole(body: dict[str, Any], params: dict[str, str], name: str, unless_said: int) -> int:
    value: Any = body.get(name)
    if value is None and name in params:
        value = int(params[name]) if params[name].isdecimal() and len(params[name]) < 10 else -1
    if value is None:
        return unless_said
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadRequest(f"[{name}] parameter must be a whole number and not negative")
    return value


def _wants_total(body: dict[str, Any], params: dict[str, str]) -> bool:
    return body.get("track_total_hits") is not False and params.get("track_total_hits") != "false"


def _is_by_score(sort: Any) -> bool:
    return sort in (None, [], "_score", ["_score"], [{"_score": "desc"}], [{"_score": {"order": "desc"}}])


def _source(body: dict[str, Any], params: dict[str, str]) -> Source:
    """What of a document is wanted, from the body or else from the URL."""
    wanted: Any = body.get("_source")
    if wanted is None and "_source" in params:
        said = params["_source"]
        wanted = said == "true" if said in ("true", "false") else said.split(",")
    includes, excludes = params.get("_source_includes"), params.get("_source_excludes")
    if wanted is None and (includes or excludes):
        wanted = {"includes": (includes or "").split(",") if includes else [], "excludes": (excludes or "").split(",")}
    if wanted is None or isinstance(wanted, bool):
        return wanted is not False
    if isinstance(wanted, dict):
        fields = cast("dict[str, Any]", wanted)
        if fields.keys() - {"includes", "excludes", "include", "exclude"}:
            raise BadRequest("Unknown key in [_source]")
        includes, excludes = (fields.get(name + "s", fields.get(name)) for name in ("include", "exclude"))
        return _names(includes), _names(excludes)
    return _names(wanted), ()


def _names(value: Any) -> tuple[str, ...]:
    names = _list(value)
    if not all(isinstance(name, str) for name in names):
        raise BadRequest("[_source] must be a boolean, a text, a list of texts or an object of them")
    return tuple(name for name in names if name)


def _refuse(unknown: Any) -> None:
    if unknown:
        raise Refused("unsupported", f"the local index does not know {sorted(unknown)[0][:40]!r} in a search")


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return cast("list[Any]", value) if isinstance(value, list) else [value]


def _written(note: _Note) -> str:
    return msgspec.json.encode(note).decode()


# --- writing -------------------------------------------------------------------------------------------------------


def _result(ask: RetrieveAsk, result: Retrieved, took_s: float, dialect: str) -> Any:
    if ask.op == "version":
        return _about(ask.shape, dialect)
    if ask.op == "count":
        return {"count": result.count, "_shards": _SHARDS}
    note = _NOTE.decode(ask.shape)
    if ask.op == "get":
        return _document(ask, result, note)
    if ask.text:
        _refuse_unless_indexed(note.fields, result.found)
    metric = distance_of(ask, result)
    hits = [_hit(ask, found, metric, note, dialect) for found in result.found[: note.start + note.size]]
    told: dict[str, Any] = {"max_score": hits[0]["_score"] if hits else None, "hits": hits[note.start :]}
    if note.total:
        told = {"total": _total(ask, result, note), **told}
    return {"took": int(took_s * 1e3), "timed_out": False, "_shards": _SHARDS, "hits": told}


def _total(ask: RetrieveAsk, result: Retrieved, note: _Note) -> dict[str, Any]:
    """How many hits there are in all; of words at least as many as were found."""
    if ask.text:
        return {"value": len(result.found), "relation": "gte"}
    if note.k is None:
        return {"value": result.count, "relation": "eq"}
    # what is not similar enough is no hit, and only what was fetched is known
    known = ask.score_threshold is None
    return {"value": min(note.k, result.count) if known else len(result.found), "relation": "eq" if known else "gte"}


def _refuse_unless_indexed(fields: tuple[str, ...], hits: list[Found]) -> None:
    """The keyword index is made of each point's text and title: only there may words be looked for."""
    texts = [[found.payload.get(field.removesuffix(".keyword")) == found.text for field in fields] for found in hits]
    titles = [field == "title" for field in fields]
    if not hits or not all(any(row) and all(map(max, row, titles)) for row in texts):
        raise Refused("unsupported", f"no local index of words is known to be made of {', '.join(fields)[:80]}")


def _hit(ask: RetrieveAsk, found: Found, distance: str, note: _Note, dialect: str) -> dict[str, Any]:
    score = note.score if found.score is None else found.score
    if ask.vector is not None and not ask.text:
        score = _score(score, distance, dialect)
    hit: dict[str, Any] = {"_index": ask.collection, "_id": str(found.id), "_score": score}
    if note.source is not False:
        hit["_source"] = _chosen(found.payload, note.source)
    return hit


def _score(score: float, distance: str, dialect: str) -> float:
    """As the servers make scores of similarities: (1 + cos) / 2, 1 / (1 + d²); each has its own of a dot product."""
    if distance == "euclid":
        told = 1 / (1 + score * score)
    elif distance == "cosine" or dialect == "elasticsearch":
        told = (1 + score) / 2
    else:
        told = 1 + score if score >= 0 else 1 / (1 - score)
    return float(f"{told:.8g}")


def _document(ask: RetrieveAsk, result: Retrieved, note: _Note) -> dict[str, Any]:
    if not result.found:
        # that we have no copy says nothing about the database
        raise Refused("no_point", "the local collection has no such document")
    told: dict[str, Any] = {"_index": ask.collection, "_id": str(result.found[0].id), "_version": 1, "_seq_no": 0}
    told |= {"_primary_term": 1, "found": True}
    if note.source is not False:
        told["_source"] = _chosen(result.found[0].payload, note.source)
    return told


def _chosen(payload: dict[str, Any], source: Source) -> dict[str, Any]:
    if isinstance(source, bool) or source == ((), ()):
        return payload
    includes, excludes = source
    return _filtered(payload, "", includes, excludes)


def _filtered(fields: dict[str, Any], under: str, includes: Names, excludes: Names) -> dict[str, Any]:
    """The fields whose path, or that of something they lie in, fits a pattern; of an array each object by itself."""
    kept: dict[str, Any] = {}
    for name, value in fields.items():
        path = under + name
        if any(fnmatchcase(path, pattern) for pattern in excludes):
            continue
        # what lies in a field that was named is wanted with it
        inner = () if any(fnmatchcase(path, pattern) for pattern in includes) else includes
        if isinstance(value, dict):
            part = _filtered(cast("dict[str, Any]", value), path + ".", inner, excludes)
            if part or not inner:
                kept[name] = part
        elif isinstance(value, list) and any(isinstance(each, dict) for each in cast("list[Any]", value)):
            items = [
                _filtered(cast("dict[str, Any]", each), path + ".", inner, excludes) if isinstance(each, dict) else each
                for each in cast("list[Any]", value)
                if isinstance(each, dict) or not inner
            ]
            if any(items) or not inner:
                kept[name] = items
        elif not inner:
            kept[name] = value
    return kept


def _about(version: str, dialect: str) -> dict[str, Any]:
    """Who is there, to a client of this version."""
    told: dict[str, Any] = {"name": "understudy", "cluster_name": "understudy", "cluster_uuid": "understudy"}
    if dialect == "opensearch":
        number = {"distribution": "opensearch", "number": version, "build_type": "tar", "lucene_version": "10.1.0"}
        return {**told, "version": number, "tagline": "The OpenSearch Project: https://opensearch.org/"}
    number = {"number": version, "build_flavor": "default", "lucene_version": "10.2.2", "build_snapshot": False}
    return {**told, "version": number, "tagline": "You Know, for Search"}
