"""A Qdrant-compatible REST server over qdrant-client's own in-memory engine, so that the real client works against it.

    python -m tests.kit.qdrant_service --port N

Reads in the newer form (query) and the older ones (search, recommend, discover, with batches and groups), every write
of points, vectors and payloads, aliases, facets. The engine is the one qdrant-client ships for local use: pure Python,
exact search, the same filter semantics. It is not the real server: no gRPC, no HNSW, no write-ahead log, and what was
stored is gone when the process is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

from aiohttp import web
from pydantic import BaseModel, TypeAdapter, ValidationError
from qdrant_client import QdrantClient, models

VERSION = version("qdrant-client")
"""The client warns of servers more than a minor version away from its own."""
BODY_BYTES_MAX = 64 * 1024 * 1024

PointsUpdate = TypeAdapter(models.PointInsertOperations)
Selector = TypeAdapter(models.PointsSelector)
Fields = dict[str, Any]
Work = Callable[[Fields], Any]


class Engine:
    """What each path does, in terms of the in-memory client; `asked` is the body, the path's words and the query's."""

    def __init__(self) -> None:
        self.client = QdrantClient(":memory:")
        self.writes = 0

    def collections(self, _asked: Fields) -> Any:
        return self.client.get_collections()

    def info(self, asked: Fields) -> Any:
        return self.client.get_collection(asked["name"])

    def exists(self, asked: Fields) -> Any:
        return {"exists": self.client.collection_exists(asked["name"])}

    def create(self, asked: Fields) -> Any:
        wanted = models.CreateCollection.model_validate(_body(asked))
        return self.client.create_collection(
            asked["name"], vectors_config=wanted.vectors, sparse_vectors_config=wanted.sparse_vectors
        )

    def drop(self, asked: Fields) -> Any:
        return self.client.delete_collection(asked["name"])

    def change(self, asked: Fields) -> Any:
        """Settings of a collection; the engine has none that an answer would show."""
        return self.client.collection_exists(asked["name"])

    def index(self, asked: Fields) -> Any:
        # The engine needs no payload index: it looks at every point.
        self.client.get_collection(asked["name"])
        return self._written()

    def upsert(self, asked: Fields) -> Any:
        update = PointsUpdate.validate_python(_body(asked))
        points = update.points if isinstance(update, models.PointsList) else update.batch
        self.client.upsert(
            asked["name"], points=points, update_filter=update.update_filter, update_mode=update.update_mode
        )
        return self._written()

    def delete(self, asked: Fields) -> Any:
        self.client.delete(asked["name"], points_selector=Selector.validate_python(_body(asked)))
        return self._written()

    def update_vectors(self, asked: Fields) -> Any:
        wanted = models.UpdateVectors.model_validate(_body(asked))
        self.client.update_vectors(asked["name"], points=wanted.points, update_filter=wanted.update_filter)
        return self._written()

    def delete_vectors(self, asked: Fields) -> Any:
        wanted = models.DeleteVectors.model_validate(_body(asked))
        self.client.delete_vectors(asked["name"], vectors=wanted.vector, points=_chosen(wanted))
        return self._written()

    def set_payload(self, asked: Fields) -> Any:
        wanted = models.SetPayload.model_validate(_body(asked))
        self.client.set_payload(asked["name"], payload=wanted.payload, points=_chosen(wanted), key=wanted.key)
        return self._written()

    def overwrite_payload(self, asked: Fields) -> Any:
        wanted = models.SetPayload.model_validate(_body(asked))
        self.client.overwrite_payload(asked["name"], payload=wanted.payload, points=_chosen(wanted))
        return self._written()

    def delete_payload(self, asked: Fields) -> Any:
        wanted = models.DeletePayload.model_validate(_body(asked))
        self.client.delete_payload(asked["name"], keys=wanted.keys, points=_chosen(wanted))
        return self._written()

    def clear_payload(self, asked: Fields) -> Any:
        self.client.clear_payload(asked["name"], points_selector=Selector.validate_python(_body(asked)))
        return self._written()

    def batch(self, asked: Fields) -> Any:
        wanted = models.UpdateOperations.model_validate(_body(asked))
        self.client.batch_update_points(asked["name"], update_operations=wanted.operations)
        return [self._written() for _ in wanted.operations]

    def change_aliases(self, asked: Fields) -> Any:
        wanted = models.ChangeAliasesOperation.model_validate(_body(asked))
        return self.client.update_collection_aliases(change_aliases_operations=wanted.actions)

    def aliases(self, _asked: Fields) -> Any:
        return self.client.get_aliases()

    def facet(self, asked: Fields) -> Any:
        wanted = models.FacetRequest.model_validate(_body(asked))
        return self.client.facet(
            asked["name"], key=wanted.key, facet_filter=wanted.filter, limit=wanted.limit or 10, exact=True
        )

    def point(self, asked: Fields) -> Any:
        wanted = asked["id"]
        ids = [int(wanted) if wanted.isdigit() else wanted]
        found = self.client.retrieve(asked["name"], ids, with_vectors=True)
        if not found:
            raise Missing(f"Not found: Point with id {wanted} does not exists!")
        return found[0]

    def retrieve(self, asked: Fields) -> Any:
        wanted = models.PointRequest.model_validate(_body(asked))
        with_payload = True if wanted.with_payload is None else wanted.with_payload
        return self.client.retrieve(
            asked["name"], wanted.ids, with_payload=with_payload, with_vectors=wanted.with_vector or False
        )

    def scroll(self, asked: Fields) -> Any:
        wanted = models.ScrollRequest.model_validate(_body(asked))
        points, following = self.client.scroll(
            asked["name"],
            scroll_filter=wanted.filter,
            limit=wanted.limit or 10,
            order_by=wanted.order_by,
            offset=wanted.offset,
            with_payload=True if wanted.with_payload is None else wanted.with_payload,
            with_vectors=wanted.with_vector or False,
        )
        return {"points": points, "next_page_offset": following}

    def count(self, asked: Fields) -> Any:
        return self.client.count(asked["name"], count_filter=models.CountRequest.model_validate(_body(asked)).filter)

    def query(self, asked: Fields) -> Any:
        return self._query(asked["name"], models.QueryRequest.model_validate(_body(asked)))

    def query_batch(self, asked: Fields) -> Any:
        wanted = models.QueryRequestBatch.model_validate(_body(asked))
        return [self._query(asked["name"], one) for one in wanted.searches]

    def query_groups(self, asked: Fields) -> Any:
        wanted = models.QueryGroupsRequest.model_validate(_body(asked))
        return self.client.query_points_groups(
            asked["name"],
            group_by=wanted.group_by,
            query=wanted.query,
            using=wanted.using,
            prefetch=wanted.prefetch,
            query_filter=wanted.filter,
            limit=wanted.limit or 10,
            group_size=wanted.group_size or 3,
            with_payload=wanted.with_payload or False,
            with_vectors=wanted.with_vector or False,
            score_threshold=wanted.score_threshold,
        )

    def older(self, asked: Fields) -> Any:
        """A search, recommendation or discovery as clients before 1.16 put it: its result is a bare list."""
        return self.query(_modern(asked)).points

    def older_batch(self, asked: Fields) -> Any:
        return [self.older({**one, "name": asked["name"]}) for one in asked["searches"]]

    def older_groups(self, asked: Fields) -> Any:
        return self.query_groups(_modern(asked))

    def _query(self, name: str, wanted: models.QueryRequest) -> models.QueryResponse:
        return self.client.query_points(
            name,
            query=wanted.query,
            using=wanted.using,
            prefetch=wanted.prefetch,
            query_filter=wanted.filter,
            search_params=wanted.params,
            limit=wanted.limit or 10,
            offset=wanted.offset,
            with_payload=wanted.with_payload or False,
            with_vectors=wanted.with_vector or False,
            score_threshold=wanted.score_threshold,
        )

    def _written(self) -> Fields:
        self.writes += 1
        return {"operation_id": self.writes, "status": "completed"}


class Missing(Exception):
    """What was asked for is not there."""


def _body(asked: Fields) -> Fields:
    return {key: value for key, value in asked.items() if key not in {"name", "id"}}


def _chosen(wanted: models.SetPayload | models.DeletePayload | models.DeleteVectors) -> Any:
    """The points that are meant: those listed, or else those that pass the filter."""
    return wanted.points if wanted.points is not None else wanted.filter


def _modern(asked: Fields) -> Fields:
    """The older forms as a query: `vector` is a list, or a name and a list; examples stand beside what is wanted."""
    examples = ("positive", "negative", "strategy", "target", "context")
    rest = {key: value for key, value in asked.items() if key not in ("vector", *examples)}
    if "vector" in asked:
        vector = asked["vector"]
        if isinstance(vector, dict):
            return {**rest, "query": vector["vector"], "using": vector["name"]}
        return {**rest, "query": vector}
    given = {key: asked[key] for key in examples if asked.get(key) is not None}
    if given.keys() <= {"positive", "negative", "strategy"}:
        return {**rest, "query": {"recommend": given}}
    return {**rest, "query": {"discover": given} if "target" in given else given}


def routes_of(engine: Engine) -> list[tuple[str, str, Work]]:
    """Method, path and work of everything that is about collections."""
    one = "/collections/{name}"
    routes: list[tuple[str, str, Work]] = [
        ("GET", "/collections", engine.collections),
        ("POST", "/collections/aliases", engine.change_aliases),
        ("GET", "/aliases", engine.aliases),
        ("GET", one, engine.info),
        ("GET", f"{one}/exists", engine.exists),
        ("PUT", one, engine.create),
        ("PATCH", one, engine.change),
        ("DELETE", one, engine.drop),
        ("PUT", f"{one}/index", engine.index),
        ("DELETE", f"{one}/index/{{field}}", engine.index),
        ("POST", f"{one}/facet", engine.facet),
        ("PUT", f"{one}/points", engine.upsert),
        ("POST", f"{one}/points", engine.retrieve),
        ("POST", f"{one}/points/delete", engine.delete),
        ("PUT", f"{one}/points/vectors", engine.update_vectors),
        ("POST", f"{one}/points/vectors/delete", engine.delete_vectors),
        ("POST", f"{one}/points/payload", engine.set_payload),
        ("PUT", f"{one}/points/payload", engine.overwrite_payload),
        ("POST", f"{one}/points/payload/delete", engine.delete_payload),
        ("POST", f"{one}/points/payload/clear", engine.clear_payload),
        ("POST", f"{one}/points/batch", engine.batch),
        ("POST", f"{one}/points/scroll", engine.scroll),
        ("POST", f"{one}/points/count", engine.count),
        ("POST", f"{one}/points/query", engine.query),
        ("POST", f"{one}/points/query/batch", engine.query_batch),
        ("POST", f"{one}/points/query/groups", engine.query_groups),
        ("GET", f"{one}/points/{{id}}", engine.point),
    ]
    for older in ("search", "recommend", "discover"):
        path = f"{one}/points/{older}"
        routes += [("POST", path, engine.older), ("POST", f"{path}/batch", engine.older_batch)]
        routes += [("POST", f"{path}/groups", engine.older_groups)] if older != "discover" else []
    return routes


def make_app() -> web.Application:
    """The routes, with an empty engine behind them."""
    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app.router.add_get("/", _version)
    for path in ("/healthz", "/readyz", "/livez"):
        app.router.add_get(path, _healthy)
    for method, path, work in routes_of(Engine()):
        app.router.add_route(method, path, _handled(work))
    return app


def _handled(work: Work) -> Callable[[web.Request], Awaitable[web.Response]]:
    """`work` behind HTTP, in Qdrant's envelope, with its errors as Qdrant tells them."""

    async def handle(request: web.Request) -> web.Response:
        began = time.monotonic()
        try:
            body = await request.json() if request.can_read_body else {}
            result = work({**body, **request.match_info})
        except ValidationError as error:
            return _failed(400, f"Format error in JSON body: {error.errors()[0]['msg']}", began)
        except (Missing, ValueError, TypeError, KeyError) as error:
            missing = isinstance(error, Missing) or "not found" in str(error)
            return _failed(404 if missing else 400, str(error), began)
        return web.json_response({"result": plain(result), "status": "ok", "time": time.monotonic() - began})

    return handle


def _failed(status: int, told: str, began: float) -> web.Response:
    return web.json_response({"status": {"error": told}, "time": time.monotonic() - began}, status=status)


def plain(value: Any) -> Any:
    """What stands in the JSON of an answer."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


async def _version(_request: web.Request) -> web.Response:
    return web.json_response({"title": "qdrant - vector search engine", "version": VERSION, "commit": "kit"})


async def _healthy(_request: web.Request) -> web.Response:
    return web.Response(text="healthz check passed")


def main() -> None:
    """Serve until a signal comes."""
    words = argparse.ArgumentParser(description="A Qdrant-compatible server, in memory.")
    words.add_argument("--port", type=int, required=True)

    async def app() -> web.Application:
        return make_app()

    web.run_app(app(), host="127.0.0.1", port=words.parse_args().port, print=None, access_log=None)


if __name__ == "__main__":
    main()
