"""Read Pinecone's data plane: namespaces, then their records by listing ids and fetching them.

    POST /describe_index_stats                                  dimension, metric, namespaces: {name: {vectorCount}}
    GET  /vectors/list?namespace&limit&paginationToken          vectors: [{id}], pagination: {next}
    GET  /vectors/fetch?namespace&ids&ids…                      vectors: {id: {id, values, metadata}}

Only serverless indexes list their ids. Sparse values are left out; a record that has nothing else is not copied. A
namespace is a collection, the default one is called `__default__`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np

from understudy.indexes.points import Point, PointId, Vector
from understudy.indexes.writes import DistanceName, VectorShape
from understudy.proxy.dialects.pinecone import DEFAULT_NAMESPACE
from understudy.proxy.mirroring.line import Line
from understudy.proxy.mirroring.source import Described, Gone, Page, SourceFailed

IDS_MAX: Final = 100
"""Ids of one page, and of one fetch: they stand in the URL."""

_DISTANCES: Final[dict[str, DistanceName]] = {"cosine": "cosine", "dotproduct": "dot", "euclidean": "euclid"}


class _Namespace(msgspec.Struct):
    vector_count: int = msgspec.field(name="vectorCount", default=0)


class _Stats(msgspec.Struct):
    namespaces: dict[str, _Namespace] = {}
    dimension: int | None = None
    metric: str | None = None


class _Id(msgspec.Struct):
    id: str


class _Following(msgspec.Struct):
    next: str | None = None


class _Listed(msgspec.Struct):
    vectors: list[_Id] = []
    pagination: _Following | None = None


class _Record(msgspec.Struct):
    id: str
    values: list[float] = []
    metadata: dict[str, Any] | None = None


class _Fetched(msgspec.Struct):
    vectors: dict[str, _Record] = {}


class _Matched(msgspec.Struct):
    matches: list[_Id] = []


_STATS = msgspec.json.Decoder(_Stats)
_LISTED = msgspec.json.Decoder(_Listed)
_MATCHED = msgspec.json.Decoder(_Matched)
_FETCHED = msgspec.json.Decoder(_Fetched)


class PineconeSource:
    """A Pinecone index behind `line`."""

    def __init__(self, line: Line) -> None:
        self._line = line

    async def collections(self) -> list[Described]:
        stats = await self._stats()
        return [_described(stats, name) for name in stats.namespaces]

    async def described(self, name: str) -> Described:
        stats = await self._stats()
        called = name if name in stats.namespaces else ""
        if called not in stats.namespaces or (called == "" and name != DEFAULT_NAMESPACE):
            raise Gone(f"there is no namespace {name!r}")
        return _described(stats, called)

    async def page(self, of: Described, cursor: str, limit: int) -> Page:
        asked = [("namespace", of.handle), ("limit", str(min(limit, IDS_MAX)))]
        if cursor:
            asked.append(("paginationToken", cursor))
        listed = await self._line.ask("GET", "/vectors/list", query=asked, read=_LISTED.decode)
        points = await self.fetch(of, [each.id for each in listed.vectors])
        return Page(tuple(points), (listed.pagination and listed.pagination.next) or "")

    async def fetch(self, of: Described, ids: Sequence[PointId]) -> list[Point]:
        points: list[Point] = []
        for at in range(0, len(ids), IDS_MAX):
            some = [("ids", str(each)) for each in ids[at : at + IDS_MAX]]
            query = [("namespace", of.handle), *some]
            points += await self._line.ask("GET", "/vectors/fetch", query=query, read=_points)
        return points

    async def nearest(self, of: Described, using: str, vectors: Sequence[Vector], limit: int) -> list[list[PointId]]:
        del using
        found: list[list[PointId]] = []
        for each in vectors:
            asked = {"vector": each.tolist(), "topK": limit, "namespace": of.handle}
            matched = await self._line.ask("POST", "/query", asked, read=_MATCHED.decode)
            found.append([match.id for match in matched.matches])
        return found

    async def close(self) -> None:
        await self._line.close()

    async def _stats(self) -> _Stats:
        stats = await self._line.ask("POST", "/describe_index_stats", {}, read=_STATS.decode)
        if stats.dimension is None or stats.metric not in _DISTANCES:
            # an older API does not name it, and a guess would turn the ranking round
            raise SourceFailed("the index does not say its dimension and metric: set X-Pinecone-Api-Version: 2025-04")
        return stats


def _described(stats: _Stats, namespace: str) -> Described:
    assert stats.dimension is not None
    shape = VectorShape(stats.dimension, _DISTANCES[stats.metric or ""])
    name = namespace or DEFAULT_NAMESPACE
    return Described(name, namespace, stats.namespaces[namespace].vector_count, {"": shape})


def _points(raw: bytes) -> list[Point]:
    records = _FETCHED.decode(raw).vectors.values()
    return [Point(one.id, np.array(one.values, np.float32), one.metadata or {}) for one in records if one.values]
