"""Chroma's REST API, version 2: what its client sends to connect, to find a collection, and to read from it.

    /api/v2[/heartbeat | /version | /healthcheck | /pre-flight-checks | /auth/identity]
    /api/v2/tenants/{t}[/databases[/{d}[/collections_count | /collections[/{name or id}[/query | /get | /count]]]]]

    {"error": "NotFoundError", "message": "text"}         an error

A client finds a collection by its name once and calls it by the database's id from then on: `named` reads that id from
answers that pass (see `proxy/handles`). Collections of another tenant or database than the default ones are called
`tenant/database/name`. `get_or_create` is a read where the collection is there; every other write is passed through.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote_to_bytes

import msgspec
from msgspec import Meta

from understudy.indexes.writes import Change
from understudy.policies.service import Answer, Call, Headers, Refused, Request
from understudy.proxy.asks import CollectionInfo, Found, RetrieveAsk, Retrieved, RetrieveOp
from understudy.proxy.dialects.base import (
    BadRequest,
    Malformed,
    asked_once,
    is_encoded,
    json_answer,
    looks_like_object,
    parsed,
)
from understudy.proxy.dialects.chroma_where import condition_of, document_of
from understudy.proxy.dialects.chroma_writes import collection_changes, record_changes
from understudy.proxy.dialects.plain import Plain
from understudy.proxy.handles import Learnt

LIMIT_MAX = 10_000
"""The most points of one local answer."""
SEARCHES_MAX = 128
"""The most vectors of one query."""
NAMES_BYTES_MAX = 1024 * 1024
"""How long an answer about collections may be for their ids to be learned from it."""
BATCH_MAX = 5461
"""What a server says of how many records it takes at once."""
NOWHERE_ID = "00000000-0000-0000-0000-000000000000"

_PATH = re.compile(
    rb"/api/v2(?:/(?:tenants/([^/]+)(?:/databases(?:/([^/]+)(?:/(collections_count)|/collections"
    rb"(?:/([^/]+)(?:/([a-z_/]+))?)?)?)?)?|([a-z/-]+)))?/?$"
)
_TOP = {
    b"": "heartbeat",
    b"heartbeat": "heartbeat",
    b"version": "version",
    b"healthcheck": "healthcheck",
    b"pre-flight-checks": "pre-flight-checks",
    b"auth/identity": "identity",
}
_GET_OR_CREATE = re.compile(rb'"get_or_create"\s*:\s*true')
_ERRORS = {400: "InvalidArgumentError", 404: "NotFoundError", 429: "RateLimitError"}
_SPACES = {"cosine": "cosine", "dot": "ip", "euclid": "l2"}

Include = Literal["distances", "documents", "embeddings", "metadatas", "uris"]
Count = Annotated[int, Meta(ge=0, le=2**32 - 1)]


class _Get(msgspec.Struct):
    ids: list[str] | None = None
    where: Any = None
    where_document: Any = None
    limit: Count | None = None
    offset: Count | None = None
    include: list[Include] | None = None


class _Query(msgspec.Struct):
    query_embeddings: list[tuple[float, ...]]
    ids: list[str] | None = None
    n_results: Count | None = None
    where: Any = None
    where_document: Any = None
    include: list[Include] | None = None


class _Create(msgspec.Struct):
    name: str
    get_or_create: bool = False


class _Rename(msgspec.Struct):
    new_name: str | None = None


class _Collection(msgspec.Struct):
    id: str
    name: str


_GET = msgspec.json.Decoder(_Get)
_QUERY = msgspec.json.Decoder(_Query)
_CREATE = msgspec.json.Decoder(_Create)
_RENAME = msgspec.json.Decoder(_Rename)
_NAMED: msgspec.json.Decoder[_Collection | list[_Collection]] = msgspec.json.Decoder(_Collection | list[_Collection])
_ANY = msgspec.json.Decoder(Any)


class _Shape(msgspec.Struct, frozen=True):
    """A request by its path: what is asked, in whose scope (`` or `tenant/database/`), of which collection."""

    op: RetrieveOp
    note: str
    scope: str = ""
    called: str = ""

    @property
    def collection(self) -> str:
        return self.scope + self.called


class Chroma(Plain):
    """`chroma`: reads, and `get_or_create`, are of kind retrieve; everything else is passed through."""

    name = "chroma"

    def read(self, request: Request) -> Call:
        """By method and path; of a request to create a collection the body is searched for `get_or_create`."""
        return Call("pass" if _shape_of(request) is None else "retrieve", request, dialect=self.name)

    def collection_of(self, request: Request) -> str:
        shape = _shape_of(request)
        return shape.collection if shape else ""

    def keepable(self, request: Request) -> bool:
        """Only what a collection answers by its id: a name may be given to another, a heartbeat is of its moment."""
        shape = _shape_of(request)
        return shape is not None and shape.op in ("batch", "scroll", "count")

    def written(self, request: Request) -> str | None:
        """Records change one collection, by its id; what changes collections themselves may concern any."""
        if request.method in (b"GET", b"HEAD", b"OPTIONS") or _shape_of(request) is not None:
            return None
        match = _PATH.search(request.path)
        if match is None or not match[5]:
            return ""
        return _scope(match[1], match[2]) + _text(match[4]) if match[5] != b"search" else None

    def named(self, request: Request, answer: Answer) -> list[Learnt]:
        """Names and ids from answers about collections; a collection renamed or deleted is one as well."""
        match = _PATH.search(request.path)
        if match is None or match[2] is None or match[3] or match[5] or not _is_about_collections(request.path, match):
            return []
        scope, called = _scope(match[1], match[2]), _text(match[4] or b"")
        try:
            if request.method == b"DELETE":
                return [Learnt("", scope + called)] if called else []
            if request.method == b"PUT":
                new = parsed(_RENAME, request.body).new_name
                return [Learnt(scope + called, scope + new)] if new and called else []
            if len(answer.body) > NAMES_BYTES_MAX or is_encoded(answer):
                return []
            told = parsed(_NAMED, answer.body)
        except Malformed:
            return []
        return [Learnt(scope + each.id, scope + each.name) for each in (told if isinstance(told, list) else [told])]

    def changes(self, call: Call) -> tuple[Change, ...]:
        """Collections are called as the request calls them: by id where records are written, else by name."""
        request = call.request
        match = _PATH.search(request.path)
        if match is None or request.method in (b"GET", b"HEAD", b"OPTIONS"):
            return ()
        tenant, database, counted, called, rest, top = match.groups()
        if top or counted or rest in (b"query", b"get", b"search"):
            return ()
        try:
            if called and rest:
                return record_changes(_scope(tenant, database) + _text(called), _text(rest), request.body)
            if database is not None and _is_about_collections(request.path, match):
                return collection_changes(request.method, _scope(tenant, database), _text(called or b""), request.body)
        except BadRequest as fault:
            # a filter that the server answers with an error deletes nothing
            raise Malformed(fault.detail) from None
        if request.method == b"POST":
            # a tenant or a database, empty as yet
            return ()
        raise Refused("unsupported", "only the database knows what is left of its collections")

    def ask(self, call: Call) -> RetrieveAsk:
        """Raises BadRequest where Chroma would, Refused for what a local collection cannot answer."""
        return asked_once(
            call, RetrieveAsk, self._asked, "Failed to deserialize the JSON body into the target type", 422
        )

    def _asked(self, call: Call) -> RetrieveAsk:
        shape = _shape_of(call.request)
        if shape is None:
            if call.request.method in (b"GET", b"HEAD") or call.request.path.endswith(b"/search"):
                raise Refused("unsupported", "only the database itself can answer this")
            raise Refused("write", "writes go to the database itself or not at all")
        return _read_ask(shape, call.request.body)

    def failure_within(self, answer: Answer) -> str:
        """`garbage` for what is no whole JSON: an object, a list, a number or a text."""
        if is_encoded(answer):
            return ""
        body = answer.body
        if looks_like_object(body):
            return "error_in_200" if body.startswith(b'{"error"') else ""
        if body[:1] == b"{" or len(body) > NAMES_BYTES_MAX:
            return "" if body[:1] == b"[" and body.rstrip()[-1:] == b"]" else "garbage"
        try:
            parsed(_ANY, body)
        except Malformed:
            return "garbage"
        return ""

    def error(self, status: int, reason: str, detail: str, *, headers: Headers | None = None) -> Answer:  # noqa: ARG002
        """The client raises the exception that the error's name stands for; the reason stands in our own headers."""
        name = _ERRORS.get(status, "InternalError" if status >= 500 else "ChromaError")
        return json_answer(status, {"error": name, "message": detail}, headers)

    def retrieved(self, ask: RetrieveAsk, result: Retrieved, took_s: float) -> Answer:  # noqa: ARG002 (a Dialect's method)
        """The result, bare: Chroma has no envelope."""
        return json_answer(200, _result(ask, result))


# --- reading -------------------------------------------------------------------------------------------------------


def _shape_of(request: Request) -> _Shape | None:
    """What a request reads, or None when it is no read we know."""
    match = _PATH.search(request.path)
    if match is None:
        return None
    tenant, database, counted, called, rest, top = match.groups()
    if request.method == b"POST":
        return _posted(request, tenant, database, called, rest)
    if request.method != b"GET":
        return None
    if tenant is None:
        note = _TOP.get(top or b"")
        return None if note is None else _Shape("version", note)
    if database is None:
        # a path that ends in /databases asks for all of them, of which only one is known here
        return None if request.path.rstrip(b"/").endswith(b"/databases") else _Shape("version", "tenant", _text(tenant))
    scope = _scope(tenant, database)
    if counted:
        return _Shape("collections", "count", scope)
    if called is None and not _is_about_collections(request.path, match):
        return _Shape("version", "database", f"{_text(tenant)}\n{_text(database)}")
    if called is None:
        # a page of the list would have to be in the database's order
        return None if request.query else _Shape("collections", "", scope)
    if rest is None:
        return _Shape("info", "", scope, _text(called))
    return _Shape("count", "", scope, _text(called)) if rest == b"count" else None


def _posted(
    request: Request, tenant: bytes | None, database: bytes | None, called: bytes | None, rest: bytes | None
) -> _Shape | None:
    if called is not None and rest in (b"query", b"get"):
        return _Shape("batch" if rest == b"query" else "scroll", "", _scope(tenant, database), _text(called))
    if database is None or called is not None or not request.path.rstrip(b"/").endswith(b"/collections"):
        return None
    # how nearly every application begins: where the collection is there, it is a read
    if _GET_OR_CREATE.search(request.body) is None:
        return None
    try:
        create = parsed(_CREATE, request.body)
    except Malformed:
        return None
    return _Shape("info", "", _scope(tenant, database), create.name) if create.get_or_create else None


def _text(raw: bytes) -> str:
    return unquote_to_bytes(raw).decode("utf-8", "replace")


def _scope(tenant: bytes | None, database: bytes | None) -> str:
    """What goes before a collection's name, so that no tenant is answered from another's collection."""
    names = _text(tenant or b""), _text(database or b"")
    if names == ("default_tenant", "default_database"):
        return ""
    return "".join(f"{quote(name, safe='')}/" for name in names)


def _is_about_collections(path: bytes, match: re.Match[bytes]) -> bool:
    """Whether a path goes on behind the name of a database."""
    return b"/collections" in path[match.end(2) :]


def _read_ask(shape: _Shape, body: bytes) -> RetrieveAsk:
    if shape.op == "batch":
        return _query(shape, parsed(_QUERY, body))
    if shape.op == "scroll":
        return _get(shape, parsed(_GET, body))
    if shape.op == "version":
        return RetrieveAsk("version", shape=f"{shape.note}\n{shape.scope}")
    note = f"{shape.note}\n{shape.scope}"
    return RetrieveAsk(shape.op, shape.collection, shape=note)


def _query(shape: _Shape, query: _Query) -> RetrieveAsk:
    if len(query.query_embeddings) > SEARCHES_MAX:
        raise Refused("unsupported", f"more than {SEARCHES_MAX} vectors in one query")
    limit = 10 if query.n_results is None else query.n_results
    if limit > LIMIT_MAX:
        raise Refused("unsupported", f"more than {LIMIT_MAX} points at once")
    condition = condition_of(query.where, query.where_document, None if query.ids is None else tuple(query.ids))
    include = ["documents", "metadatas", "distances"] if query.include is None else query.include
    parts = tuple(
        RetrieveAsk(
            "search",
            shape.collection,
            vector=vector,
            limit=limit,
            filter=condition,
            with_payload=True,
            with_vector="embeddings" in include,
        )
        for vector in query.query_embeddings
    )
    return RetrieveAsk("batch", shape.collection, parts=parts, shape=" ".join(include))


def _get(shape: _Shape, get: _Get) -> RetrieveAsk:
    include = ["documents", "metadatas"] if get.include is None else get.include
    limit, offset = LIMIT_MAX if get.limit is None else get.limit, get.offset or 0
    if limit > LIMIT_MAX or offset > 100 * LIMIT_MAX:
        raise Refused("unsupported", f"more than {LIMIT_MAX} points at once")
    return RetrieveAsk(
        "scroll",
        shape.collection,
        limit=limit,
        offset=offset,
        filter=condition_of(get.where, get.where_document, None if get.ids is None else tuple(get.ids)),
        with_payload=True,
        with_vector="embeddings" in include,
        shape=" ".join([*include, "" if get.limit is None else "page"]),
    )


# --- writing -------------------------------------------------------------------------------------------------------


def _result(ask: RetrieveAsk, result: Retrieved) -> Any:
    if ask.op == "batch":
        return _lists(ask, result)
    if ask.op == "scroll":
        *include, page = ask.shape.split(" ")
        if result.next_id is not None and not page:
            raise Refused("unsupported", f"more than {LIMIT_MAX} points at once")
        return {"ids": [str(found.id) for found in result.found]} | _columns(include, [result.found], flat=True)
    if ask.op == "count":
        return result.count
    note, _, scope = ask.shape.partition("\n")
    if ask.op == "version":
        return _about(note, scope, result.at_s)
    if ask.op == "info":
        assert result.info is not None
        return _collection(result.info, scope)
    infos = [info for info in result.infos if _is_in(info.name, scope)]
    return len(infos) if note == "count" else [_collection(info, scope) for info in infos]


def _lists(ask: RetrieveAsk, result: Retrieved) -> Any:
    """One list for each vector asked for."""
    lists = [part.found for part in result.parts]
    include = ask.shape.split(" ") if ask.shape else []
    answer: dict[str, Any] = {"ids": [[str(found.id) for found in each] for each in lists]}
    answer |= _columns(include, lists, flat=False)
    said = answer.pop("include")
    distances = [[_distance(found.score, result.distance) for found in each] for each in lists]
    return answer | {"distances": distances if "distances" in include else None, "include": said}


def _columns(include: list[str], lists: list[list[Found]], *, flat: bool) -> dict[str, Any]:
    """A column for each thing included, None for what was not."""
    columns: dict[str, Any] = {}
    for name, read in _COLUMNS.items():
        column = [[read(found) for found in each] for each in lists]
        columns[name] = None if name not in include else column[0] if flat else column
    return columns | {"include": include}


def _metadata(found: Found) -> dict[str, Any] | None:
    """The payload as it was stored, None where there is none."""
    if not found.is_text_lent:
        return found.payload or None
    return {key: value for key, value in found.payload.items() if key != "text"} or None


_COLUMNS: Mapping[str, Callable[[Found], Any]] = {
    "embeddings": lambda found: found.vector,
    "documents": lambda found: document_of(found.payload, found.text),
    # where a file's link would be kept: nothing here holds any
    "uris": lambda _found: None,
    "metadatas": _metadata,
}


def _distance(score: float | None, distance: str) -> float:
    """As the server writes it down: cosine and dot product subtracted from one, euclidean squared; single precision."""
    score = score or 0.0
    return float(f"{score * score if distance == 'euclid' else 1.0 - score:.8g}")


def _about(note: str, scope: str, at_s: float) -> Any:
    """What a client asks before it knows of any collection."""
    if note == "heartbeat":
        return {"nanosecond heartbeat": int(at_s * 1e9)}
    if note == "version":
        return "1.0.0"
    if note == "healthcheck":
        return {"is_executor_ready": True, "is_log_client_ready": True}
    if note == "pre-flight-checks":
        return {"max_batch_size": BATCH_MAX, "supports_base64_encoding": True}
    if note == "identity":
        return {"user_id": "", "tenant": "default_tenant", "databases": ["default_database"]}
    tenant, _, database = scope.partition("\n")
    if note == "tenant":
        return {"name": tenant, "resource_name": None}
    return {"id": NOWHERE_ID, "name": database, "tenant": tenant}


def _is_in(name: str, scope: str) -> bool:
    """Whether a collection of this name belongs to the scope: no name of Chroma's has a slash of its own."""
    return name.startswith(scope) and "/" not in name[len(scope) :]


def _collection(info: CollectionInfo, scope: str) -> dict[str, Any]:
    """A collection as its client's model insists on it; what the local index has no counterpart for says Chroma's
    defaults. Without a schema: that is the server's own, and clients do without."""
    tenant, database = scope.rstrip("/").split("/") if scope else ("default_tenant", "default_database")
    space = _SPACES[info.distance]
    return {
        "id": info.handle[len(scope) :],
        "name": info.name[len(scope) :],
        "configuration_json": {
            "hnsw": {
                "space": space,
                "ef_construction": 100,
                "ef_search": 100,
                "max_neighbors": 16,
                "resize_factor": 1.2,
                "sync_threshold": 1000,
            },
            "spann": None,
            "embedding_function": None,
        },
        "schema": None,
        "metadata": {"hnsw:space": space},
        "dimension": info.dimensions,
        "tenant": _text(tenant.encode()),
        "database": _text(database.encode()),
        "log_position": 0,
        "version": 0,
    }
