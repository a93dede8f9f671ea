"""A fake Elasticsearch, or OpenSearch, that is read page by page: documents in memory, searched by their order and ids.

    GET    /_mapping, /{index}/_mapping, /{index}/_count
    POST   /{index}/_pit?keep_alive=…        {id}; every page of it tells a new id, as the manual allows
    POST   /_search                          {pit, sort: _shard_doc, search_after, size}
    POST   /{index}/_search                  {sort: _id, search_after, size}, {query: {ids: {values}}}
    DELETE /_pit
    PUT    /{index}/_doc/{id}                DELETE, too
    POST   /_bulk, /{index}/_bulk            index, create and delete

What a caller must not do, it is told as its manual has it: a point in time that is over (404), an index named beside
one, a page of more than 10,000, a `search_after` with more or fewer values than sorts.
"""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from collections.abc import Coroutine
from typing import Any, Protocol

from aiohttp import web

RESULT_WINDOW = 10_000
Fields = dict[str, Any]


class _Told(Exception):
    """An error with its status, type and reason."""


class FakeElastic:
    """Its indices. `in_source=False` leaves vectors out of `_source`, as Elasticsearch does from 9.2 on;
    `opensearch=True` knows no `_pit` and no `_shard_doc`."""

    def __init__(self, *, in_source: bool = True, opensearch: bool = False) -> None:
        self.in_source = in_source
        self.opensearch = opensearch
        self.mappings: dict[str, Fields] = {}
        self.documents: dict[str, dict[str, Fields]] = {}
        self.opened: dict[str, tuple[str, dict[str, Fields]]] = {}
        self.searches: list[Fields] = []
        self._numbers = 0

    def make(self, index: str, properties: Fields, documents: dict[str, Fields]) -> None:
        """An index with documents by id."""
        self.mappings[index] = {"mappings": {"properties": properties}}
        self.documents[index] = documents

    def app(self) -> web.Application:
        """Its routes."""
        app = web.Application(middlewares=[_errors])
        app.router.add_get("/_mapping", self._mapping)
        app.router.add_get("/{index}/_mapping", self._mapping)
        app.router.add_get("/{index}/_count", self._count)
        app.router.add_post("/_search", self._search)
        app.router.add_post("/{index}/_search", self._search)
        app.router.add_put("/{index}/_doc/{id}", self._put)
        app.router.add_delete("/{index}/_doc/{id}", self._removed)
        app.router.add_post("/_bulk", self._bulk)
        app.router.add_put("/_bulk", self._bulk)
        app.router.add_post("/{index}/_bulk", self._bulk)
        app.router.add_put("/{index}/_bulk", self._bulk)
        if not self.opensearch:
            app.router.add_post("/{index}/_pit", self._open)
            app.router.add_delete("/_pit", self._close)
        return app

    async def _mapping(self, request: web.Request) -> web.Response:
        index = request.match_info.get("index")
        return web.json_response(self.mappings if index is None else {index: self.mappings[self._known(index)]})

    async def _count(self, request: web.Request) -> web.Response:
        count = len(self.documents[self._known(request.match_info["index"])])
        return web.json_response({"count": count, "_shards": {"total": 1, "successful": 1, "failed": 0}})

    async def _open(self, request: web.Request) -> web.Response:
        if "keep_alive" not in request.query:
            raise _Told(400, "action_request_validation_exception", "[keep_alive] is not specified")
        index = self._known(request.match_info["index"])
        called = self._named()
        self.opened[called] = (index, copy.deepcopy(self.documents[index]))
        return web.json_response({"id": called})

    async def _close(self, request: web.Request) -> web.Response:
        there = self.opened.pop((await request.json())["id"], None)
        return web.json_response({"succeeded": True, "num_freed": int(there is not None)})

    async def _search(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.searches.append(asked)
        size = asked.get("size", 10)
        if size > RESULT_WINDOW:
            raise _Told(400, "illegal_argument_exception", f"Result window is too large: {size}")
        told: Fields = {"took": 1, "timed_out": False, "_shards": {"total": 1, "successful": 1, "failed": 0}}
        index, documents = self._documents(request, asked, told)
        wanted = asked.get("query", {}).get("ids", {}).get("values")
        rows = [(at, each) for at, each in enumerate(sorted(documents)) if wanted is None or each in wanted]
        hits = [self._hit(index, at, each, documents[each], asked) for at, each in rows]
        after, sorts = asked.get("search_after"), asked.get("sort", [])
        if after is not None:
            if len(after) != len(sorts):
                raise _Told(400, "illegal_argument_exception", f"search_after has {len(after)} values")
            hits = [hit for hit in hits if hit["sort"] > after]
        told["hits"] = {"max_score": None, "hits": hits[:size]}
        return web.json_response(told)

    async def _put(self, request: web.Request) -> web.Response:
        told = self._written("index", request.match_info["index"], request.match_info["id"], await request.json())
        return web.json_response(told, status=told.pop("status"))

    async def _removed(self, request: web.Request) -> web.Response:
        told = self._written("delete", request.match_info["index"], request.match_info["id"], None)
        return web.json_response(told, status=told.pop("status"))

    async def _bulk(self, request: web.Request) -> web.Response:
        lines = iter([json.loads(line) for line in (await request.text()).splitlines() if line])
        items: list[Fields] = []
        for line in lines:
            ((act, about),) = line.items()
            document = None if act == "delete" else next(lines)
            index = about.get("_index") or request.match_info["index"]
            items.append({act: self._written(act, index, about["_id"], document)})
        return web.json_response({"took": 1, "errors": False, "items": items})

    def _written(self, act: str, index: str, called: str, document: Fields | None) -> Fields:
        documents = self.documents[self._known(index)]
        was_there = called in documents
        if document is None:
            documents.pop(called, None)
        else:
            documents[called] = document
        result = "deleted" if act == "delete" else "updated" if was_there else "created"
        self._numbers += 1
        about: Fields = {"_index": index, "_id": called, "_version": self._numbers, "result": result}
        shards = {"total": 1, "successful": 1, "failed": 0}
        status = 201 if result == "created" else 200
        return {**about, "_shards": shards, "_seq_no": self._numbers, "_primary_term": 1, "status": status}

    def _documents(self, request: web.Request, asked: Fields, told: Fields) -> tuple[str, dict[str, Fields]]:
        index, pit = request.match_info.get("index"), asked.get("pit")
        if pit is None:
            assert index is not None, "a search over all indices"
            return index, self.documents[self._known(index)]
        if index is not None or self.opensearch:
            raise _Told(400, "action_request_validation_exception", "[indices] cannot be used with point in time")
        if pit["id"] not in self.opened:
            raise _Told(404, "search_phase_execution_exception", "all shards failed: No search context found")
        # the id of a page may be another: whoever goes on with the old one has lost it here
        told["pit_id"] = self._named()
        self.opened[told["pit_id"]] = self.opened.pop(pit["id"])
        return self.opened[told["pit_id"]]

    def _hit(self, index: str, at: int, called: str, document: Fields, asked: Fields) -> Fields:
        properties = self.mappings[index]["mappings"]["properties"]
        vectors = {name for name, field in properties.items() if field.get("type") in ("dense_vector", "knn_vector")}
        source = {name: v for name, v in document.items() if self.in_source or name not in vectors}
        hit: Fields = {"_index": index, "_id": called, "_score": None}
        if asked.get("_source", True):
            hit["_source"] = source
        if fields := {name: document[name] for name in asked.get("fields", []) if name in document}:
            hit["fields"] = fields
        if sorts := asked.get("sort"):
            values = {"_shard_doc": at + (1 << 32), "_id": called}
            if self.opensearch and any("_shard_doc" in each for each in sorts):
                raise _Told(400, "query_shard_exception", "No mapping found for [_shard_doc] in order to sort on")
            hit["sort"] = [values[name] for each in sorts for name in each]
        return hit

    def _known(self, index: str) -> str:
        if index not in self.documents:
            raise _Told(404, "index_not_found_exception", f"no such index [{index}]")
        return index

    def _named(self) -> str:
        self._numbers += 1
        return f"46ToAwMDaWR5BXV1aWQyKwZub2RlXzMA{self._numbers}=="


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response = await handler(request)
    except _Told as why:
        status, kind, reason = why.args
        response = web.json_response({"error": {"type": kind, "reason": reason}, "status": status}, status=status)
    # Elastic's own clients refuse whoever does not say so
    response.headers["X-Elastic-Product"] = "Elasticsearch"
    return response


class Faked(Protocol):
    """A database that is played."""

    def app(self) -> web.Application: ...


class Cluster:
    """A fake on a thread with a loop of its own, for tests whose clients are synchronous; `kill` ends it."""

    def __init__(self, fake: Faked) -> None:
        self._loop = asyncio.new_event_loop()
        self._runner = web.AppRunner(fake.app())
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake cluster", daemon=True)
        self._thread.start()
        self.port = self._do(self._started())

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """Close its port, and every connection."""
        if self._thread.is_alive():
            self._do(self._runner.cleanup())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(60)
            self._loop.close()

    async def _started(self) -> int:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return int(self._runner.addresses[0][1])

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)
