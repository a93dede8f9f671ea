"""Weaviate by GraphQL and REST: searches, objects by id or in a row, counts and who is there, from the local index.

    POST …/v1/graphql   {"data": {"Get": {"Docs": [{"text", "_additional": {"id", "distance"}}]}}}     an answer
                        {"errors": [{"message", …}], "data": null}                                     an error, as 200
    GET  …/v1/objects   {"deprecations": [], "objects": […], "totalResults": n}                        objects
                        {"error": [{"message": "text"}]}                                               an error

A distance is 1 - cosine, the negative dot product or the squared Euclidean distance; lower is better. Current clients
search by gRPC, which is not seen: they connect and write through here, and that is all. A class's schema tells the
types of its properties, which only the database knows.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from msgspec import Raw

from understudy.indexes.writes import Change
from understudy.policies.service import Answer, Call, Headers, Refused, Request
from understudy.proxy.asks import Found, RetrieveAsk, Retrieved
from understudy.proxy.dialects.base import (
    BadRequest,
    Malformed,
    asked_once,
    given,
    is_encoded,
    json_answer,
    looks_like_object,
    parsed,
)
from understudy.proxy.dialects.graphql import selection_of
from understudy.proxy.dialects.plain import Plain
from understudy.proxy.dialects.weaviate_ask import Note, ask_of
from understudy.proxy.dialects.weaviate_writes import (
    batch_errors,
    capital,
    created,
    deleted,
    deleted_all,
    dropped,
    merged,
    put,
    put_all,
    replaced,
)

OBJECTS_MAX = 10_000
LIST_PARAMS = frozenset({"class", "limit", "offset", "include"})
DEFAULT_VERSION = "1.31.0"

_PATH = re.compile(
    rb"(?:^|/)v1/(?:(graphql|meta|\.well-known/openid-configuration|schema|batch/objects)|objects)(?:/(.*?))?/?$"
)
_SERVERS = re.compile(
    r"timed? ?out|deadline exceeded|not ready|read-?only|no space|disk|memory|shard|broadcast|replica|unavailable",
    re.IGNORECASE,
)


class _Query(msgspec.Struct):
    query: str
    variables: dict[str, Any] | None = None


class _Said(msgspec.Struct):
    errors: Raw = Raw()
    error: Raw = Raw()


_QUERY = msgspec.json.Decoder(_Query)
_SAID = msgspec.json.Decoder(_Said)
_NOTE = msgspec.json.Decoder(Note)


class Weaviate(Plain):
    """`weaviate`: reads are of kind retrieve, everything else is passed through."""

    name = "weaviate"

    def read(self, request: Request) -> Call:
        """By method and path alone: the body stays unread. What answers with nothing (`ready`, `live`) is passed."""
        return Call("retrieve" if _act_of(request)[0] else "pass", request, dialect=self.name)

    def collection_of(self, request: Request) -> str:
        """The class; '' where only the body of a query names it."""
        act, rest = _act_of(request)
        if act == "object":
            return capital(rest.partition("/")[0])
        return capital(_params(request).get("class", "")) if act == "objects" else ""

    def keepable(self, request: Request) -> bool:
        """What says who is there is asked to know who is there."""
        return _act_of(request)[0] in ("graphql", "object", "objects")

    def written(self, request: Request) -> str | None:
        """A class may have aliases, so that a write may concern any."""
        if request.method in (b"GET", b"HEAD", b"OPTIONS") or _act_of(request)[0]:
            return None
        return None if request.path.rstrip(b"/").endswith(b"/validate") else ""

    def changes(self, call: Call) -> tuple[Change, ...]:
        return () if self.written(call.request) is None else _changes(call.request, None)

    def applied(self, call: Call, answer: Answer) -> tuple[Change, ...]:
        if self.written(call.request) is None:
            return ()
        if answer.stream is not None or is_encoded(answer):
            raise Refused("encoded", "the answer is too long or packed, and can't be read")
        return _changes(call.request, answer.body)

    def write_failed(self, call: Call, answer: Answer) -> str:
        """`error_in_200` for a batch that failed for want of a working server; what is wrong with an object is not."""
        if not call.request.path.rstrip(b"/").endswith(b"v1/batch/objects") or is_encoded(answer):
            return ""
        try:
            failed = b'"errors"' in answer.body and any(map(_SERVERS.search, batch_errors(answer.body)))
        except Malformed:
            return ""
        return "error_in_200" if failed else ""

    def ask(self, call: Call) -> RetrieveAsk:
        """Raises BadRequest where Weaviate would, Refused for what a local index cannot answer as it would."""
        return asked_once(call, RetrieveAsk, self._asked, "invalid request", 422)

    def _asked(self, call: Call) -> RetrieveAsk:
        request = call.request
        act, rest = _act_of(request)
        if act == "graphql":
            query = parsed(_QUERY, request.body)
            if query.variables:
                raise Refused("unsupported", "variables are not read here")
            return ask_of(selection_of(query.query))
        if act in ("meta", "openid"):
            return RetrieveAsk("version", shape=act)
        if act == "object":
            called, _, key = rest.partition("/")
            return RetrieveAsk("get", capital(called), ids=(key.lower(),), with_payload=True, **_included(request))
        if act == "objects":
            return _listed(request)
        if act or request.method in (b"GET", b"HEAD"):
            raise Refused("unsupported", "only the database itself can answer this")
        raise Refused("write", "writes go to the database itself or not at all")

    def failure_within(self, answer: Answer) -> str:
        """`garbage` for what is no object, `error_in_200` for errors beside the data, or in its place."""
        if is_encoded(answer):
            return ""
        body = answer.body
        if not looks_like_object(body):
            return "garbage"
        if b'"error' not in body and body.rstrip()[-1:] == b"}":
            return ""
        try:
            said = parsed(_SAID, body)
        except Malformed:
            return "garbage"
        return "error_in_200" if any(given(each) and bytes(each) != b"[]" for each in (said.errors, said.error)) else ""

    def error(self, status: int, reason: str, detail: str, *, headers: Headers | None = None) -> Answer:  # noqa: ARG002
        """A list of messages; the reason stands in our own headers."""
        return json_answer(status, {"error": [{"message": detail}]}, headers)

    def retrieved(self, ask: RetrieveAsk, result: Retrieved, took_s: float) -> Answer:  # noqa: ARG002
        """The documented shapes. Whoever asks how to log in is told that there is no such thing here."""
        if ask.op == "version":
            if ask.shape == "openid":
                return json_answer(404, {})
            return json_answer(200, {"hostname": "http://understudy", "modules": {}, "version": DEFAULT_VERSION})
        if ask.op == "get":
            if not result.found:
                # that we have no copy says nothing about the database
                raise Refused("no_point", "the local collection has no such object")
            return json_answer(200, _object(ask, result.found[0]))
        if ask.op == "scroll" and not ask.shape:
            objects = [_object(ask, each) for each in result.found]
            return json_answer(200, {"deprecations": [], "objects": objects, "totalResults": len(objects)})
        note = _NOTE.decode(ask.shape)
        return json_answer(200, {"data": {note.root: {note.alias: note.rows(ask, result)}}})


# --- reading -------------------------------------------------------------------------------------------------------


def _act_of(request: Request) -> tuple[str, str]:
    """Which of the reads a request is, and what stands behind it; '' for none."""
    match = _PATH.search(request.path)
    if match is None:
        return "", ""
    what, rest = match[1], unquote_to_bytes(match[2] or b"").decode("utf-8", "replace")
    if what == b"graphql":
        return ("graphql", "") if request.method == b"POST" and not rest else ("", "")
    if request.method != b"GET":
        return "", ""
    if what is None:
        if not rest:
            return "objects", ""
        # an object by its id alone is deprecated, and could be of any class
        return ("object", rest) if rest.count("/") == 1 else ("", "")
    if what == b"schema":
        return "schema", rest
    if what in (b"meta", b".well-known/openid-configuration") and not rest:
        return "meta" if what == b"meta" else "openid", ""
    return "", ""


def _params(request: Request) -> dict[str, str]:
    return dict(parse_qsl(request.query.decode("utf-8", "replace"), keep_blank_values=True))


def _included(request: Request) -> dict[str, Any]:
    said = _params(request)
    if said.keys() - {"include", "consistency_level"} or said.get("include", "") not in ("", "vector"):
        raise Refused("unsupported", "the local index knows no tenants, and nothing of an object but its vector")
    return {"with_vector": said.get("include") == "vector"}


def _listed(request: Request) -> RetrieveAsk:
    said = _params(request)
    if said.keys() - LIST_PARAMS or not said.get("class") or said.get("include", "") not in ("", "vector"):
        raise Refused("unsupported", "a list of objects other than of one class, by limit and offset")
    limit, offset = _whole(said, "limit", 25), _whole(said, "offset", 0)
    if limit + offset > OBJECTS_MAX:
        raise BadRequest("query maximum results exceeded", status=422)
    return RetrieveAsk(
        "scroll",
        capital(said["class"]),
        limit=limit,
        offset=offset,
        with_payload=True,
        with_vector=said.get("include") == "vector",
    )


def _whole(said: dict[str, str], name: str, unless_said: int) -> int:
    value = said.get(name, str(unless_said))
    if not value.isdecimal() or len(value) > 9:
        raise BadRequest(f"{name} in query must be of type int64", status=422)
    return int(value)


def _changes(request: Request, answer: bytes | None) -> tuple[Change, ...]:
    if _params(request).get("tenant") or request.path.endswith(b"v1/batch/references"):
        return _uncopied(answer)
    match = _PATH.search(request.path)
    if match is None:
        raise Refused("unsupported", "only the database knows what this changes")
    what, method = match[1], request.method
    rest = unquote_to_bytes(match[2] or b"").decode("utf-8", "replace")
    if what is None and not rest and method == b"POST":
        return put(request.body, answer)
    if what is None and rest.count("/") == 1:
        called, _, key = rest.partition("/")
        if method == b"DELETE":
            return deleted(capital(called), key)
        if method in (b"PUT", b"PATCH"):
            return (replaced if method == b"PUT" else merged)(capital(called), key, request.body, answer)
    if what is None and rest.count("/") == 3 and rest.split("/")[2] == "references":
        return _uncopied(answer)
    if what == b"batch/objects" and not rest and method in (b"POST", b"DELETE"):
        return (put_all if method == b"POST" else deleted_all)(request.body, answer)
    if what == b"schema":
        if method == b"POST" and not rest:
            return created(request.body, answer)
        if method == b"DELETE" and rest and "/" not in rest:
            return dropped(capital(rest))
        if "/tenants" in rest:
            return _uncopied(answer)
        if method == b"PUT" or rest.endswith("/properties"):
            # a property more, or another setting: no object changes
            return ()
    raise Refused("unsupported", "only the database knows what this changes")


def _uncopied(answer: bytes | None) -> tuple[Change, ...]:
    """A class with tenants or references has no copy: what the database has carried out there changes none."""
    if answer is None:
        raise Refused("unsupported", "a mirror knows no tenants, and no references between objects")
    return ()


# --- writing -------------------------------------------------------------------------------------------------------


def _object(ask: RetrieveAsk, found: Found) -> dict[str, Any]:
    told: dict[str, Any] = {"class": ask.collection, "id": str(found.id), "properties": found.payload}
    return told | {"vector": found.vector} if ask.with_vector else told
