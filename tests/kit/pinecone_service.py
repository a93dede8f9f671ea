"""A fake Pinecone index of cosine vectors in 384 dimensions: every read an exact scan, filters taken at their word.

    python -m tests.kit.pinecone_service --port N

- POST /query, /describe_index_stats, /vectors/upsert, /vectors/update, /vectors/delete
- GET  /vectors/fetch, /vectors/list, /healthz
"""

from __future__ import annotations

import argparse
import base64
from typing import Any

import numpy as np
from aiohttp import web

DIMENSIONS = 384
PAGE_IDS_MAX = 100
BODY_BYTES_MAX = 64 * 1024 * 1024
Fields = dict[str, Any]


def passes(wanted: Fields, metadata: Fields, *, absent: bool = False) -> bool:
    """Whether a filter lets metadata through, as the API's manual has it. `absent` is what `$ne` and `$nin` say of a
    record that lacks their field: of that the manual is silent."""
    return all(_holds(name, value, metadata, absent) for name, value in wanted.items())


def _holds(name: str, value: Any, metadata: Fields, absent: bool) -> bool:
    if name == "$and":
        return all(passes(each, metadata, absent=absent) for each in value)
    if name == "$or":
        return any(passes(each, metadata, absent=absent) for each in value)
    there = name in metadata
    held = metadata.get(name)
    items = held if isinstance(held, list) else [held] if there else []
    operators = value if isinstance(value, dict) else {"$eq": value}
    return all(_operator(word, operand, items, there, absent) for word, operand in operators.items())


def _operator(word: str, operand: Any, items: list[Any], there: bool, absent: bool) -> bool:
    if word == "$exists":
        return there is operand
    if word in ("$ne", "$nin"):
        unwanted = [operand] if word == "$ne" else operand
        return absent if not there else not any(_same(item, each) for item in items for each in unwanted)
    if word in ("$eq", "$in"):
        return any(_same(item, each) for item in items for each in ([operand] if word == "$eq" else operand))
    numbers = [item for item in items if isinstance(item, int | float) and not isinstance(item, bool)]
    if word == "$gt":
        return any(item > operand for item in numbers)
    if word == "$gte":
        return any(item >= operand for item in numbers)
    if word == "$lt":
        return any(item < operand for item in numbers)
    assert word == "$lte", word
    return any(item <= operand for item in numbers)


def _same(a: Any, b: Any) -> bool:
    """Numbers are doubles; a boolean is none, and neither is a text."""
    return isinstance(a, bool) == isinstance(b, bool) and isinstance(a, str) == isinstance(b, str) and a == b


class Index:
    """Namespaces of records, as they were written."""

    def __init__(self) -> None:
        self.namespaces: dict[str, dict[str, Fields]] = {}

    def records(self, asked: Fields) -> dict[str, Fields]:
        return self.namespaces.get(asked.get("namespace") or "", {})

    async def query(self, request: web.Request) -> web.Response:
        asked = await request.json()
        records = self.records(asked)
        vector = asked.get("vector")
        if vector is None:
            there = records.get(asked["id"])
            vector = there["values"] if there else None
        if vector is not None and len(vector) != DIMENSIONS:
            told = f"Vector dimension {len(vector)} does not match the dimension of the index {DIMENSIONS}"
            return web.json_response({"code": 3, "message": told, "details": []}, status=400)
        matches = [] if vector is None else self._nearest(np.array(vector, np.float32), asked, records)
        said = {"results": [], "matches": matches, "namespace": asked.get("namespace") or ""}
        return web.json_response(said | {"usage": {"readUnits": 5}})

    def _nearest(self, vector: Any, asked: Fields, records: dict[str, Fields]) -> list[Fields]:
        found: list[Fields] = []
        for record in records.values():
            metadata = record.get("metadata") or {}
            if not passes(asked.get("filter") or {}, metadata):
                continue
            values = np.array(record["values"], np.float32)
            score = float(values @ vector / np.linalg.norm(values) / np.linalg.norm(vector))
            match: Fields = {"id": record["id"], "score": score, "values": []}
            if asked.get("includeValues"):
                match["values"] = record["values"]
            if asked.get("includeMetadata") and metadata:
                match["metadata"] = metadata
            found.append(match)
        return sorted(found, key=lambda match: (-match["score"], match["id"]))[: asked["topK"]]

    async def fetch(self, request: web.Request) -> web.Response:
        namespace = request.query.get("namespace", "")
        records = self.records({"namespace": namespace})
        vectors = {each: records[each] for each in request.query.getall("ids") if each in records}
        return web.json_response({"vectors": vectors, "namespace": namespace, "usage": {"readUnits": 1}})

    async def stats(self, _request: web.Request) -> web.Response:
        counts = {name: {"vectorCount": len(records)} for name, records in self.namespaces.items()}
        total = sum(len(records) for records in self.namespaces.values())
        said = {"namespaces": counts, "dimension": DIMENSIONS, "indexFullness": 0, "totalVectorCount": total}
        return web.json_response(said | {"metric": "cosine", "vectorType": "dense"})

    async def upsert(self, request: web.Request) -> web.Response:
        asked = await request.json()
        records = self.namespaces.setdefault(asked.get("namespace") or "", {})
        for vector in asked["vectors"]:
            records[vector["id"]] = vector
        return web.json_response({"upsertedCount": len(asked["vectors"])})

    async def update(self, request: web.Request) -> web.Response:
        asked = await request.json()
        record = self.records(asked)[asked["id"]]
        record["metadata"] = {**(record.get("metadata") or {}), **asked.get("setMetadata", {})}
        return web.json_response({})

    async def delete(self, request: web.Request) -> web.Response:
        asked = await request.json()
        records = self.records(asked)
        for each in list(records) if asked.get("deleteAll") else asked.get("ids", []):
            records.pop(each, None)
        return web.json_response({})

    async def listed(self, request: web.Request) -> web.Response:
        namespace = request.query.get("namespace", "")
        limit = int(request.query.get("limit", PAGE_IDS_MAX))
        if not 1 <= limit <= PAGE_IDS_MAX:
            told = {"code": 3, "message": f"limit must be between 1 and {PAGE_IDS_MAX}", "details": []}
            return web.json_response(told, status=400)
        prefix, token = request.query.get("prefix", ""), request.query.get("paginationToken")
        after = base64.b64decode(token).decode() if token else ""
        ids = [each for each in sorted(self.records({"namespace": namespace})) if each.startswith(prefix)]
        ids = [each for each in ids if each > after]
        said: Fields = {"vectors": [{"id": each} for each in ids[:limit]], "namespace": namespace}
        if len(ids) > limit:
            said["pagination"] = {"next": base64.b64encode(ids[limit - 1].encode()).decode()}
        return web.json_response(said | {"usage": {"readUnits": 1}})


async def _healthy(_request: web.Request) -> web.Response:
    return web.Response(text="ok")


def make_app(index: Index | None = None) -> web.Application:
    """The routes, with an empty index behind them unless one is given."""
    index = index or Index()
    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app.router.add_get("/healthz", _healthy)
    app.router.add_post("/query", index.query)
    app.router.add_get("/vectors/fetch", index.fetch)
    app.router.add_get("/vectors/list", index.listed)
    app.router.add_post("/describe_index_stats", index.stats)
    app.router.add_post("/vectors/upsert", index.upsert)
    app.router.add_post("/vectors/update", index.update)
    app.router.add_post("/vectors/delete", index.delete)
    return app


def main() -> None:
    """Serve until a signal comes."""
    words = argparse.ArgumentParser(description="A fake Pinecone index, in memory.")
    words.add_argument("--port", type=int, required=True)

    async def app() -> web.Application:
        return make_app()

    web.run_app(app(), host="127.0.0.1", port=words.parse_args().port, print=None, access_log=None)


if __name__ == "__main__":
    main()
