"""Qdrant's REST API, as far as an application reads with it.

    query, search, recommend, discover    alone, in batches and in groups (discover: no groups)
    scroll, points by id, count, facet    and what collections there are

    {"result": …, "status": "ok", "time": s}          an answer
    {"status": {"error": "text"}, "time": s}          an error

Clients from 1.16 on search with `points/query` ({"points": […]}), older ones with `points/search` (a bare list).
What is asked is read in `qdrant_reads`, and written down in `qdrant_answers`. Writes and everything rarer are passed
through, and no local tier answers them: an index that took a write the database has not seen would be lying from then
on. What a write changes is read in `qdrant_writes`, for mirrors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import Raw

from understudy.indexes.writes import Change
from understudy.policies.service import Answer, Call, Headers, Kind, Refused, Request
from understudy.proxy.asks import RetrieveAsk, Retrieved, RetrieveOp
from understudy.proxy.dialects.base import Malformed, asked_once, is_encoded, json_answer, looks_like_object, parsed
from understudy.proxy.dialects.plain import Plain
from understudy.proxy.dialects.qdrant_answers import ONE, result_of
from understudy.proxy.dialects.qdrant_reads import batch, count, facet, get, scroll, searched
from understudy.proxy.dialects.qdrant_writes import changes_of

_PATH = re.compile(rb"(?:^|/)collections(?:/([^/]+)(?:/(.+?))?)?/?$")
_VERSION = re.compile(rb"/(\d+\.\d+\.\d+)")
_POST_READS: Mapping[bytes, tuple[RetrieveOp, str]] = {
    b"points/query": ("search", "query"),
    b"points/query/batch": ("batch", "query/batch"),
    b"points/query/groups": ("groups", "query/groups"),
    b"points/search": ("search", "search"),
    b"points/search/batch": ("batch", "search/batch"),
    b"points/search/groups": ("groups", "search/groups"),
    b"points/recommend": ("search", "recommend"),
    b"points/recommend/batch": ("batch", "recommend/batch"),
    b"points/recommend/groups": ("groups", "recommend/groups"),
    b"points/discover": ("search", "discover"),
    b"points/discover/batch": ("batch", "discover/batch"),
    b"points/scroll": ("scroll", "scroll"),
    b"points": ("get", "get"),
    b"points/count": ("count", "count"),
    b"facet": ("facet", "facet"),
}
_ONE_POINT = b"points/"
# Reads that only the database itself can answer, told from writes for the sake of an honest reason.
_OTHER_READS = re.compile(rb"points/search/matrix.*")
_OK_TAIL = re.compile(rb'"status":"ok","time":[0-9.eE+-]+(?:,"usage":null)?\}\s*$')


class _Envelope(msgspec.Struct):
    status: Raw = Raw()
    version: str = ""


_ENVELOPE = msgspec.json.Decoder(_Envelope)


class Qdrant(Plain):
    """`qdrant`: the reads a local index can answer are of kind retrieve, everything else is passed through."""

    name = "qdrant"
    aliases = True

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
        match = _PATH.search(request.path)
        if match is None:
            # whatever it is: a snapshot of the whole storage, say, that is put back
            return ""
        rest: bytes = match[2] or b""
        if _OTHER_READS.fullmatch(rest) or (rest in _POST_READS and request.method == b"POST"):
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
        return json_answer(200, {"result": result_of(ask, result), "status": "ok", "time": round(took_s, 9)})


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
        return _got(collection, rest)
    shape = _POST_READS.get(rest)
    return (shape[0], collection, shape[1]) if request.method == b"POST" and shape and collection else None


def _got(collection: str, rest: bytes) -> tuple[RetrieveOp, str, str] | None:
    """What a GET reads; one point is told by its id."""
    if not collection:
        return "collections", "", ""
    if rest.startswith(_ONE_POINT):
        return "get", collection, unquote_to_bytes(rest.removeprefix(_ONE_POINT)).decode("utf-8", "replace")
    gets: dict[bytes, RetrieveOp] = {b"": "info", b"exists": "exists"}
    return (gets[rest], collection, "") if rest in gets else None


def _why_not(request: Request) -> tuple[str, str]:
    match = _PATH.search(request.path)
    if request.method in (b"GET", b"HEAD") or (match and _OTHER_READS.fullmatch(match[2] or b"")):
        return "unsupported", "only the database itself can answer this"
    return "write", "writes go to the database itself or not at all"


def _read_ask(op: RetrieveOp, collection: str, shape: str, request: Request) -> RetrieveAsk:
    if op == "version":
        return RetrieveAsk("version", shape=_version_for(request))
    if request.method == b"GET":
        return _one_point(collection, shape) if op == "get" else RetrieveAsk(op, collection)
    if op == "batch":
        return batch(collection, shape, request.body)
    read = _BODY_READERS.get(op)
    return searched(shape, collection, request.body) if read is None else read(collection, request.body)


def _one_point(collection: str, called: str) -> RetrieveAsk:
    ids = (int(called) if called.isascii() and called.isdigit() else called,)
    return RetrieveAsk("get", collection, ids=ids, with_payload=True, with_vector=True, shape=ONE)


_BODY_READERS = {"scroll": scroll, "get": get, "count": count, "facet": facet}


def _version_for(request: Request) -> str:
    """The version of the client that asks: we speak as it does, and a client complains of any other."""
    match = _VERSION.search(request.header(b"user-agent") or b"")
    return match[1].decode("ascii") if match else "1.15.5"
