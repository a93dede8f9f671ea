"""What a write to Elasticsearch or OpenSearch changes, in the words of `indexes/writes`.

    PUT    {i}/_doc/{id}, {i}/_create/{id}       Upsert (a document without an id: its id stands in the answer)
    POST   {i}/_update/{id}                      PutVectors and PutPayload, or Upsert where the answer says created
    DELETE {i}/_doc/{id}                         Delete
    POST   _bulk, {i}/_bulk                      any of these, those whose item in the answer says that they were done
    POST   {i}/_delete_by_query                  Delete
    PUT    {i}, DELETE {i}                       Create, Drop

Nothing is applied without the database's answer: a bulk is refused document by document, and a name may be an alias,
which the answer alone shows. A document's source is the payload. What may be a vector (a list of numbers) is named by
its path as well; only a mapping tells which of them are, so that whoever knows the collection's vectors passes what is
read here through `understudy.indexes.writes.fitted`. Scripts, pipelines, nested objects in partial documents,
templates' and reindexing's effects are refused.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from understudy.indexes.points import Payload, Point
from understudy.indexes.writes import Change, Delete, Drop, PutPayload, PutVectors, Upsert, Which, Write
from understudy.policies.service import Answer, Refused, Request
from understudy.proxy.dialects.base import BadRequest, Malformed, parsed
from understudy.proxy.dialects.elastic_mapping import created
from understudy.proxy.dialects.elastic_query import condition_of
from understudy.proxy.dialects.vectors import unpacked, vector_from

if TYPE_CHECKING:
    from understudy.indexes.points import Vector

LINES_MAX: Final = 200_000
"""The most lines of one bulk: two for each document, and the server itself takes 100 MB."""
NUMBERS_MIN: Final = 2
"""A list of fewer numbers is no vector."""
DEPTH_MAX: Final = 8

ACCEPTED: Final = 202
_UNASSIGNED: Final = {"_version": -1, "_seq_no": -2, "_primary_term": 0}
_CONDITIONS: Final = frozenset({"if_seq_no", "if_primary_term", "version"})

_BULK: Final = re.compile(rb"(?:^|/)(?:([^/_*][^/]*)/)?_bulk/?$")
_DOCUMENT: Final = re.compile(rb"(?:^|/)([^/_*][^/]*)/_(doc|create|update)(?:/([^/]+))?/?$")
_BY_QUERY: Final = re.compile(rb"(?:^|/)([^/_*][^/]*)/_delete_by_query/?$")
_INDEX: Final = re.compile(rb"(?:^|/)([^/_*][^/]*)/?$")
# What stores nothing in an index: settings, caches, contexts of searches, and what is beside the data.
_IDLE: Final = re.compile(
    rb"(?:^|/)(?:[^/_][^/]*/)?_(?:settings|cache|search|async_search|pit|tasks|cluster|ilm|slm|security|scripts|stats"
    rb"|index_template|component_template|template|ingest/pipeline|snapshot/[^/]+(?:/[^/]+)?|nodes|license|monitoring|watcher|plugins/_ml/models)(?:/.*)?/?$"
)
_PARAMS_IDLE: Final = frozenset(
    {"refresh", "timeout", "wait_for_active_shards", "error_trace", "human", "pretty", "filter_path", "routing"}
    | {"if_seq_no", "if_primary_term", "version", "version_type", "retry_on_conflict", "require_alias", "op_type"}
    | {"_source_includes", "_source_excludes", "include_source_on_error", "master_timeout", "cluster_manager_timeout"}
    | {"list_executed_pipelines", "ignore_unavailable", "allow_no_indices", "expand_wildcards", "require_data_stream"}
    | {"conflicts", "slices", "scroll_size", "requests_per_second", "search_timeout", "preference", "request_cache"}
    | {"_source", "type"}
)
_BY_QUERY_SAYS: Final = frozenset({"query", "conflicts", "slice"})

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Asked:
    """One document's write, before it is known what came of it."""

    act: str
    index: str
    id: str
    source: Fields
    is_conditional: bool = False
    """Only where what is stored is as the caller has seen it."""


class _Item(msgspec.Struct):
    """What the answer says of one document."""

    index: str = msgspec.field(name="_index", default="")
    id: str = msgspec.field(name="_id", default="")
    status: int = 0
    result: str = ""


class _Bulk(msgspec.Struct):
    items: list[dict[str, _Item]] | None = None
    errors: bool | None = None


class _ByQuery(msgspec.Struct):
    timed_out: bool | None = None
    version_conflicts: int | None = None
    failures: list[Any] | None = None
    task: str | None = None
    deleted: int | None = None


class _Made(msgspec.Struct):
    index: str = ""


_FIELDS: msgspec.json.Decoder[Fields] = msgspec.json.Decoder(Fields)
_ITEM = msgspec.json.Decoder(_Item)
_ITEMS = msgspec.json.Decoder(_Bulk)
_BY_QUERY_DONE = msgspec.json.Decoder(_ByQuery)
_MADE = msgspec.json.Decoder(_Made)


def changes_of(request: Request) -> tuple[Change, ...]:
    """What a request asks for. Raises Malformed, or Refused where the request alone does not tell."""
    asked = _asked(request)
    if asked is None:
        return _others(request)
    return tuple(change for each in asked for change in _told(each, ""))


def applied_of(request: Request, answer: Answer) -> tuple[Change, ...]:
    """What of it came about. Raises as `changes_of`, and Refused where the answer does not tell."""
    asked = _asked(request)
    if asked is not None:
        done = _done(asked, _read(answer), is_bulk=_BULK.search(request.path) is not None)
        return tuple(change for each, result in done for change in _told(each, result))
    changes = _others(request)
    if _BY_QUERY.search(request.path):
        _check_by_query(_read(answer))
    elif request.method == b"PUT" and changes:
        made = parsed(_MADE, _read(answer)).index
        if made != changes[0].collection:
            raise Refused("unsupported", "the index has another name than was asked for")
    return changes


def item_statuses(body: bytes) -> list[int]:
    """What became of each document of a bulk, by its status. Raises Malformed."""
    return [item.status for each in parsed(_ITEMS, body).items or () for item in each.values()]


def items_refused(body: bytes) -> int:
    """How many documents of a bulk the database will never have; a delete of what is not there is none of them. Raises
    Malformed."""
    items = [each for told in parsed(_ITEMS, body).items or () for each in told.items()]
    return sum(400 <= item.status < 500 and not (act == "delete" and item.status == 404) for act, item in items)


def promised(request: Request) -> Fields | None:
    """What may be answered to a write that is carried out later; None for what depends on what is stored then.

    Numbers that only the database can give are those by which it says itself that there are none yet: a caller who
    sets a condition by them is refused.
    """
    asked = _asked(request)
    if asked is None or any(each.is_conditional or each.act == "create" for each in asked):
        return None
    if _BULK.search(request.path) is None:
        return _promise(asked[0])
    items = [{each.act: {**_promise(each), "status": ACCEPTED}} for each in asked]
    return {"took": 0, "errors": False, "items": items}


def _promise(asked: _Asked) -> Fields:
    result = {"delete": "deleted", "update": "updated"}.get(asked.act, "created")
    shards = {"total": 0, "successful": 0, "failed": 0}
    return {"_index": asked.index, "_id": asked.id, "result": result, "_shards": shards, **_UNASSIGNED}


# --- documents -----------------------------------------------------------------------------------------------------


def _asked(request: Request) -> list[_Asked] | None:
    """The documents that a request writes, in order; None for a request of another sort."""
    if request.method not in (b"PUT", b"POST", b"DELETE"):
        return None
    bulk = _BULK.search(request.path)
    if bulk is not None and request.method != b"DELETE":
        _params(request)
        return list(_lines(_body(request), _text(bulk[1] or b"")))
    found = _DOCUMENT.search(request.path)
    if found is None:
        return None
    index, act, called = _text(found[1]), found[2], _text(found[3] or b"")
    said = _params(request)
    is_conditional = not _CONDITIONS.isdisjoint(said)
    if request.method == b"DELETE":
        return [_Asked("delete", index, called, {}, is_conditional)]
    if act == b"update":
        return [_Asked("update", index, called, parsed(_FIELDS, _body(request)), is_conditional)]
    word = "create" if act == b"create" or said.get("op_type") == "create" else "index"
    return [_Asked(word, index, called, parsed(_FIELDS, _body(request)), is_conditional)]


def _lines(body: bytes, index: str) -> Iterator[_Asked]:
    """The documents of a bulk: a line that says what is done, and but for a delete another that says with what."""
    lines = [line for line in body.split(b"\n", LINES_MAX) if line.strip()]
    if len(lines) >= LINES_MAX:
        raise Refused("unsupported", f"a bulk of more than {LINES_MAX} lines")
    at = 0
    while at < len(lines):
        action = parsed(_FIELDS, lines[at])
        act, said = next(iter(action.items()), ("", None))
        if len(action) != 1 or act not in ("index", "create", "update", "delete") or not isinstance(said, dict):
            raise Malformed("a line of a bulk says nothing that can be done")
        meta = cast("Fields", said)
        if meta.get("pipeline") not in (None, "_none"):
            raise Refused("unsupported", "what a pipeline makes of a document, only the database knows")
        at += 1
        source: Fields = {}
        if act != "delete":
            if at == len(lines):
                raise Malformed("the last document of a bulk is missing")
            source = parsed(_FIELDS, lines[at])
            at += 1
        called = meta.get("_id")
        name, is_conditional = str(meta.get("_index") or index), not _CONDITIONS.isdisjoint(meta)
        yield _Asked(act, name, "" if called is None else str(called), source, is_conditional)


def _done(asked: list[_Asked], body: bytes, *, is_bulk: bool) -> Iterator[tuple[_Asked, str]]:
    """Each document that was written, with its own id, and what the answer says came of it."""
    if is_bulk:
        items = [item for each in parsed(_ITEMS, body).items or () for item in each.values()]
    else:
        items = [parsed(_ITEM, body)]
        items[0].status = 200
    if len(items) != len(asked):
        raise Refused("unsupported", "the answer does not say what became of each document")
    for each, item in zip(asked, items, strict=True):
        if not 200 <= item.status < 300:
            continue
        if not item.id or (each.id and item.id != each.id):
            raise Refused("unsupported", "the answer does not say what became of each document")
        if item.index != each.index:
            raise Refused("unsupported", "an index by another name: its own stands in the answer only")
        yield replace(each, id=item.id), item.result


def _told(asked: _Asked, result: str) -> list[Change]:
    """What one document's write changes; `result` is what its answer says came of it, '' before there is one."""
    if not asked.index or "*" in asked.index or "," in asked.index or asked.index.startswith("<"):
        raise Refused("unsupported", "the request does not say which index it changes")
    if not asked.id:
        raise Refused("unsupported", "the database makes up the document's id")
    if result in ("noop", "not_found"):
        return []
    return [Change(asked.index, write) for write in _writes(asked, result)]


def _writes(asked: _Asked, result: str) -> list[Write]:
    if asked.act == "delete":
        return [Delete(Which((asked.id,)))]
    if asked.act != "update":
        return [Upsert((point_of(asked.id, asked.source),), "" if asked.act == "index" else "new")]
    said = asked.source
    doc, upsert = said.get("doc"), said.get("upsert")
    if said.get("script") is not None or not isinstance(doc, dict):
        raise Refused("unsupported", "what a script makes of a document, only the database knows")
    fields = cast("Fields", doc)
    if said.get("doc_as_upsert") is True:
        upsert = fields
    if isinstance(upsert, dict):
        if not result:
            raise Refused("unsupported", "whether the document is new stands in the answer only")
        if result == "created":
            return [Upsert((point_of(asked.id, cast("Fields", upsert)),))]
    return _merged(asked.id, fields)


def _merged(id: str, fields: Fields) -> list[Write]:
    """A partial document: field by field in the place of what was there."""
    # a list takes the place of a list whole, whatever is in it
    if any(isinstance(value, dict) for value in fields.values()):
        raise Refused("unsupported", "an object in a partial document is merged with what is stored")
    point = point_of(id, fields)
    writes: list[Write] = [PutPayload(Which((id,)), point.payload)] if point.payload else []
    return [PutVectors((Point(id, named=point.named),)), *writes] if point.named else writes


def point_of(id: str, source: Payload) -> Point:
    """A document as a point: its source whole, and beside it what may be a vector, by path."""
    return Point(id, None, source, named=dict(_vectors(source, "", 0)))


def _vectors(fields: Fields, under: str, depth: int) -> Iterator[tuple[str, Vector]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            if depth < DEPTH_MAX:
                yield from _vectors(cast("Fields", value), f"{under}{name}.", depth + 1)
        elif isinstance(value, list):
            numbers = cast("list[Any]", value)
            if len(numbers) >= NUMBERS_MIN and all(type(each) in (int, float) for each in numbers):
                # numbers that are too large for a vector are none
                with contextlib.suppress(Refused):
                    yield under + name, vector_from(numbers)


# --- whole indices, and what a query finds -------------------------------------------------------------------------


def _others(request: Request) -> tuple[Change, ...]:
    method, path = request.method, request.path
    by_query = _BY_QUERY.search(path)
    if by_query is not None and method == b"POST":
        return (_deleted(_one(by_query[1]), _params(request), parsed(_FIELDS, _body(request))),)
    if _IDLE.search(path) and not path.rstrip(b"/").endswith(b"/_restore"):
        return ()
    index = None if b"/_" in path else _INDEX.search(path)
    if index is not None and method == b"DELETE":
        return (Change(_one(index[1]), Drop()),)
    if index is not None and method == b"PUT":
        body = _body(request)
        return (Change(_one(index[1]), created(parsed(_FIELDS, body) if body.strip() else {})),)
    raise Refused("unsupported", "only the database knows what this changes")


def _deleted(index: str, said: Mapping[str, str], body: Fields) -> Change:
    if body.keys() - _BY_QUERY_SAYS or said.get("conflicts", body.get("conflicts")) == "proceed" or "slice" in body:
        raise Refused("unsupported", "which of the documents found are deleted, only the database knows")
    query = body.get("query")
    if query is None:
        raise Malformed("query is missing")
    try:
        condition = condition_of([query])
    except BadRequest as fault:
        raise Malformed(fault.detail) from None
    return Change(index, Delete(Which(filter=condition)))


def _check_by_query(body: bytes) -> None:
    done = parsed(_BY_QUERY_DONE, body)
    if done.task or done.timed_out or done.version_conflicts or done.failures or done.deleted is None:
        raise Refused("unsupported", "not everything that was found is known to be deleted")


# --- small parts ---------------------------------------------------------------------------------------------------


def _one(name: bytes) -> str:
    index = _text(name)
    if any(mark in index for mark in ",*?<"):
        raise Refused("unsupported", "several indices at once")
    return index


def _text(raw: bytes) -> str:
    return unquote_to_bytes(raw).decode("utf-8", "replace")


def _params(request: Request) -> dict[str, str]:
    """What the URL says. Raises Refused for what it may change: a pipeline, a query, a limit."""
    said = dict(parse_qsl(request.query.decode("utf-8", "replace"), keep_blank_values=True))
    unknown = said.keys() - _PARAMS_IDLE
    if unknown and not (unknown == {"pipeline"} and said["pipeline"] == "_none"):
        raise Refused("unsupported", f"what {sorted(unknown)[0][:40]!r} changes, only the database knows")
    return said


def _body(request: Request) -> bytes:
    return unpacked(request.body, request.header(b"content-encoding"))


def _read(answer: Answer) -> bytes:
    if answer.stream is not None:
        raise Refused("unsupported", "the answer is too long to be read")
    encoding = next((value for name, value in answer.headers if name.lower() == b"content-encoding"), None)
    return unpacked(answer.body, encoding)
