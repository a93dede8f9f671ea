"""A fake Weaviate that is written to and read as its manual says: classes and objects in memory, searched by scanning.

    GET    /v1/meta, /v1/.well-known/ready, live; openid-configuration (404: nobody has to log in)
    GET    /v1/schema[/{Class}]              POST, DELETE, too
    GET    /v1/objects?class&limit&after     in the order of UUIDs; without a cursor in the order of their insertion
    GET    /v1/objects/{Class}/{id}          HEAD, PUT, PATCH, DELETE, too
    POST   /v1/objects, /v1/batch/objects
    POST   /v1/graphql                       {Aggregate {Class {meta {count}}}}, {Get {Class(nearVector, limit) {…}}}
    POST   /v1/aggregate/{Class}, /v1/search/{Class}/near-vector

It keeps what the database keeps, which is not always what it was told: no nulls, properties with a small first letter,
dates as Go writes them, a vector without a name as the only named one that a class has. What a caller must not do, it
is told as the server does: `after` beside `offset`, more than 10,000 results, a vector of another length, an `include`
that it does not know, a class with tenants without one. GraphQL tells its errors in a 200.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np
from aiohttp import web

RESULTS_MAX = 10_000
RESULTS = 25
BODY_BYTES_MAX = 64 * 1024 * 1024
VERSION = "1.40.3"
Fields = dict[str, Any]

_COUNTED = re.compile(r"\{\s*Aggregate\s*\{\s*(\w+)\s*\{\s*meta\s*\{\s*count\s*\}\s*\}\s*\}\s*\}")
_NEAR = re.compile(
    r"\{\s*Get\s*\{\s*(\w+)\s*\(\s*nearVector:\s*\{\s*vector:\s*(\[[^\]]*\])"
    r"(?:,\s*targetVectors:\s*(\[[^\]]*\]))?\s*\},\s*limit:\s*(\d+)\s*\)\s*\{(.*)\}\s*\}\s*\}",
    re.DOTALL,
)
_DISTANCES: dict[str, Callable[[Any, Any], Any]] = {
    "cosine": lambda row, asked: 1 - row @ asked / np.linalg.norm(row) / np.linalg.norm(asked),
    "dot": lambda row, asked: -(row @ asked),
    "l2-squared": lambda row, asked: ((row - asked) ** 2).sum(),
}
_ZEROS = re.compile(r"(\.\d*?)0+(Z|[+-]\d\d:\d\d)$")


class _Told(Exception):
    """An error with its status and message."""


class FakeWeaviate:
    """Its classes, and the objects of each by id in the order of their insertion.

    `has_graphql`, `has_search`: whether it answers by GraphQL, and by the REST API after it. `forgets_named`: whether
    lists leave named vectors out, as those of clusters have. `errors`: what the next queries by GraphQL fail with."""

    def __init__(self) -> None:
        self.classes: dict[str, Fields] = {}
        self.objects: dict[str, dict[str, Fields]] = {}
        self.has_graphql = True
        self.has_search = True
        self.forgets_named = False
        self.errors: list[str] = []

    def make(self, name: str, **said: Any) -> dict[str, Fields]:
        """A class as the server fills it in; its objects."""
        made: Fields = {"class": name, "properties": [], "multiTenancyConfig": {"enabled": False}, **said}
        if "vectorConfig" not in said:
            made = {"vectorizer": "none", "vectorIndexType": "hnsw", "vectorIndexConfig": {"distance": "cosine"}} | made
        self.classes[name] = made
        return self.objects.setdefault(name, {})

    def app(self) -> web.Application:
        """Its routes."""
        app = web.Application(middlewares=[_errors], client_max_size=BODY_BYTES_MAX)
        add = app.router.add_route
        add("GET", "/v1/meta", self._meta)
        add("GET", "/v1/.well-known/{what}", self._well)
        add("GET", "/v1/schema", self._schema)
        add("POST", "/v1/schema", self._created)
        add("GET", "/v1/schema/{class}", self._class)
        add("DELETE", "/v1/schema/{class}", self._dropped)
        add("GET", "/v1/objects", self._listed)
        add("POST", "/v1/objects", self._put)
        add("POST", "/v1/batch/objects", self._batch)
        add("GET", "/v1/objects/{class}/{id}", self._one)
        add("PUT", "/v1/objects/{class}/{id}", self._replaced)
        add("PATCH", "/v1/objects/{class}/{id}", self._merged)
        add("DELETE", "/v1/objects/{class}/{id}", self._deleted)
        add("POST", "/v1/graphql", self._graphql)
        add("POST", "/v1/aggregate/{class}", self._aggregated)
        add("POST", "/v1/search/{class}/near-vector", self._searched)
        return app

    # --- classes -----------------------------------------------------------------------------------------------------

    async def _meta(self, _request: web.Request) -> web.Response:
        return web.json_response({"hostname": "http://[::]:8080", "modules": {}, "version": VERSION})

    async def _well(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["what"] in ("ready", "live") else 404)

    async def _schema(self, _request: web.Request) -> web.Response:
        return web.json_response({"classes": list(self.classes.values())})

    async def _class(self, request: web.Request) -> web.Response:
        return web.json_response(self.classes[self._known(request)])

    async def _created(self, request: web.Request) -> web.Response:
        asked = await request.json()
        name = asked.pop("class")
        name = name[:1].upper() + name[1:]
        if name in self.classes:
            raise _Told(422, f"class name {name} already exists")
        self.make(name, **{key: value for key, value in asked.items() if value is not None})
        return web.json_response(self.classes[name])

    async def _dropped(self, request: web.Request) -> web.Response:
        name = request.match_info["class"]
        self.classes.pop(name, None)
        self.objects.pop(name, None)
        return web.Response()

    def _known(self, request: web.Request) -> str:
        name = request.match_info["class"]
        if name not in self.classes:
            raise web.HTTPNotFound(text="")
        return name

    # --- objects -----------------------------------------------------------------------------------------------------

    async def _listed(self, request: web.Request) -> web.Response:
        said = dict(request.query)
        name, after = said.get("class", ""), said.get("after")
        limit, offset = int(said.get("limit", RESULTS)), int(said.get("offset", 0))
        wants_vector = _wants_vector(said)
        if not name:
            raise _Told(500, "list objects: after parameter not allowed, cursor must be specific to one class")
        if name not in self.classes:
            raise web.HTTPNotFound(text="")
        if limit + offset > RESULTS_MAX:
            raise _Told(422, "offset or limit: query maximum results exceeded")
        if after is not None and (offset or "sort" in said):
            raise _Told(422, "cursor: offset and sort are not allowed with after")
        self._refuse_tenantless(name, said.get("tenant"))
        held = self.objects[name]
        ids = list(held) if after is None else [each for each in sorted(held) if each > after]
        shown = [self._shown(held[each], wants_vector, is_list=True) for each in ids[offset : offset + limit]]
        return web.json_response({"deprecations": [], "objects": shown, "totalResults": len(shown)})

    async def _one(self, request: web.Request) -> web.Response:
        wants_vector = _wants_vector(dict(request.query))
        held = self.objects.get(request.match_info["class"], {}).get(_called(request))
        if held is None:
            raise web.HTTPNotFound(text="")
        return web.json_response(self._shown(held, wants_vector))

    async def _put(self, request: web.Request) -> web.Response:
        asked = await request.json()
        called = str(uuid.UUID(asked["id"])) if asked.get("id") else str(uuid.uuid4())
        if called in self.objects.get(asked["class"], {}):
            raise _Told(422, f"id '{called}' already exists")
        return web.json_response(self.store(asked["class"], called, asked))

    async def _batch(self, request: web.Request) -> web.Response:
        told: list[Fields] = []
        for each in (await request.json())["objects"]:
            called = str(uuid.UUID(each["id"])) if each.get("id") else str(uuid.uuid4())
            try:
                stored = {**self.store(each["class"], called, each), "result": {"status": "SUCCESS"}}
            except _Told as why:
                errors = {"error": [{"message": why.args[1]}]}
                stored = {**each, "id": called, "result": {"status": "FAILED", "errors": errors}}
            told.append({"deprecations": None, **stored})
        return web.json_response(told)

    async def _replaced(self, request: web.Request) -> web.Response:
        name, called = self._known(request), _called(request)
        if called not in self.objects[name]:
            raise _Told(422, f"no object with id '{called}'")
        return web.json_response(self.store(name, called, await request.json()))

    async def _merged(self, request: web.Request) -> web.Response:
        name, called = self._known(request), _called(request)
        before = self.objects[name].get(called)
        if before is None:
            raise web.HTTPNotFound(text="")
        asked = await request.json()
        given = {key: asked[key] for key in ("vector", "vectors") if key in asked}
        vectors = self._vectors(name, given) if given else {}
        merged = {**before, "properties": {**before["properties"], **_spelt(asked.get("properties") or {})}}
        if "vectors" in vectors and "vectors" in before:
            vectors["vectors"] = before["vectors"] | vectors["vectors"]
        self.store(name, called, merged | vectors)
        return web.Response(status=204)

    async def _deleted(self, request: web.Request) -> web.Response:
        if self.objects[self._known(request)].pop(_called(request), None) is None:
            raise web.HTTPNotFound(text="")
        return web.Response(status=204)

    def store(self, name: str, called: str, asked: Fields) -> Fields:
        """Keep an object as the database does; the object as it is told."""
        if name not in self.classes:
            raise _Told(422, f"invalid object: class {name} doesn't exist")
        self._refuse_tenantless(name, asked.get("tenant"))
        properties = {key: _kept(value) for key, value in _spelt(asked.get("properties") or {}).items()}
        stored: Fields = {
            "class": name,
            "creationTimeUnix": 1_800_000_000_000,
            "id": called,
            "lastUpdateTimeUnix": 1_800_000_000_000,
            "properties": {key: value for key, value in properties.items() if value is not None},
            **self._vectors(name, asked),
        }
        self.objects[name][called] = stored
        return stored

    def _vectors(self, name: str, asked: Fields) -> Fields:
        """An object's vectors in single precision, where the class keeps them."""
        said = self.classes[name]
        bare, named = asked.get("vector"), dict(asked.get("vectors") or {})
        configured = said.get("vectorConfig") or {}
        if bare and "vectorIndexType" not in said:
            if len(configured) != 1:
                raise _Told(422, f"collection {name} configuration does not have single vector index")
            named, bare = {next(iter(configured)): bare}, None
        if unknown := set(named) - set(configured):
            raise _Told(422, f"collection {name} does not have configuration for vector {min(unknown)}")
        for other in self.objects[name].values():
            for key, numbers in {"": bare, **named}.items():
                there = other.get("vectors", {}).get(key) if key else other.get("vector")
                if numbers and there and len(numbers) != len(there):
                    raise _Told(500, f"new node has a vector with length {len(numbers)}. Existing: {len(there)}")
        stored = {"vectors": {key: _single(numbers) for key, numbers in named.items()}} if named else {}
        return stored | ({"vector": _single(bare)} if bare else {})

    def _shown(self, held: Fields, wants_vector: bool, *, is_list: bool = False) -> Fields:
        hidden = set() if wants_vector else {"vector", "vectors"}
        if is_list and self.forgets_named:
            hidden.add("vectors")
        return {key: value for key, value in held.items() if key not in hidden}

    def _refuse_tenantless(self, name: str, tenant: Any) -> None:
        if self.classes[name]["multiTenancyConfig"].get("enabled") and not tenant:
            raise _Told(422, f"class {name} has multi-tenancy enabled, but request was without tenant")

    # --- searches ----------------------------------------------------------------------------------------------------

    async def _graphql(self, request: web.Request) -> web.Response:
        if not self.has_graphql:
            raise _Told(422, "graphql api is disabled")
        query = (await request.json())["query"].strip()
        counted, near = _COUNTED.fullmatch(query), _NEAR.fullmatch(query)
        if counted is None and near is None:
            message = "Syntax Error GraphQL request (1:3)"
            return web.json_response({"data": None, "errors": [{"locations": [], "message": message, "path": None}]})
        root, name = ("Get", near[1]) if near is not None else ("Aggregate", counted[1] if counted else "")
        errors, self.errors = self.errors[:1], self.errors[1:]
        rows: Any = None
        if name not in self.classes:
            errors.append(f'Cannot query field "{name}" on type "{root}ObjectsObj".')
        elif near is None:
            rows = [{"meta": {"count": len(self.objects[name])}}]
        else:
            try:
                rows = self._rows(near)
            except _Told as why:
                errors.append(f"explorer: get class: vector search: {why.args[1]}")
        if errors:
            place: Fields = {"locations": [{"column": 6, "line": 1}], "path": [root, name]}
            told = [{**place, "message": each} for each in errors]
            return web.json_response({"data": {root: {name: None}}, "errors": told})
        return web.json_response({"data": {root: {name: rows}}})

    def _rows(self, near: re.Match[str]) -> list[Fields]:
        target = json.loads(near[3] or '[""]')
        wanted = re.findall(r"\w+", near[5].partition("_additional")[0])
        found = self._nearest(near[1], json.loads(near[2]), target[0], int(near[4]))
        return [
            {key: one["properties"].get(key) for key in wanted} | {"_additional": {"id": one["id"], "distance": at}}
            for one, at in found
        ]

    async def _aggregated(self, request: web.Request) -> web.Response:
        self._refuse_without_search()
        return web.json_response({"count": len(self.objects[self._known(request)]), "tookMs": 0.4})

    async def _searched(self, request: web.Request) -> web.Response:
        self._refuse_without_search()
        asked = await request.json()
        name = self._known(request)
        found = self._nearest(name, asked["vector"], asked.get("targetVector", ""), asked.get("limit", 10))
        return web.json_response({"results": [{"id": one["id"]} for one, _ in found], "tookMs": 0.4})

    def _refuse_without_search(self) -> None:
        if not self.has_search:
            raise web.HTTPNotFound(text='{"code":404,"message":"path was not found"}')

    def _nearest(self, name: str, vector: list[float], target: str, limit: int) -> list[tuple[Fields, float]]:
        """By the distance that the class has for them, exactly; equal ones by their ids."""
        said = self.classes[name]
        configured = said.get("vectorConfig") or {}
        if not target and len(configured) == 1 and "vectorIndexType" not in said:
            target = next(iter(configured))
        config = (configured.get(target) or said).get("vectorIndexConfig") or {}
        distance = _DISTANCES[config.get("distance", "cosine")]
        asked = np.array(vector, np.float32)
        found: list[tuple[Fields, float]] = []
        for one in self.objects[name].values():
            held = one.get("vectors", {}).get(target) if target else one.get("vector")
            if held is None:
                continue
            row = np.array(held, np.float32)
            if len(row) != len(asked):
                raise _Told(422, f"vector lengths don't match: {len(row)} vs {len(asked)}")
            found.append((one, float(distance(row, asked))))
        return sorted(found, key=lambda each: (each[1], each[0]["id"]))[:limit]


def _called(request: web.Request) -> str:
    called = request.match_info["id"]
    try:
        return str(uuid.UUID(called))
    except ValueError:
        raise _Told(422, f"id in path must be of type uuid: {called!r}") from None


def _wants_vector(said: dict[str, str]) -> bool:
    include = said.get("include", "")
    if include not in ("", "vector"):
        raise _Told(400, f"unrecognized property '{include}' in ?include list")
    return include == "vector"


def _spelt(properties: Fields) -> Fields:
    return {key[:1].lower() + key[1:]: value for key, value in properties.items()}


def _kept(value: Any) -> Any:
    """A date as Go's RFC3339Nano has it: no zeros at the end of its fraction."""
    if not isinstance(value, str) or "T" not in value or not _is_date(value):
        return value
    return _ZEROS.sub(lambda found: ("" if found[1] == "." else found[1]) + found[2], value)


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _single(numbers: list[float]) -> list[float]:
    return np.array(numbers, np.float32).tolist()


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        return await handler(request)
    except _Told as why:
        status, message = why.args
        return web.json_response({"error": [{"message": message}]}, status=status)
