"""Read Elasticsearch and OpenSearch: indices whose mappings have vectors, then their documents.

    GET  /_mapping                                              indices, and the vectors in them, by path
    POST /{i}/_pit?keep_alive=5m, then POST /_search {pit, sort: _shard_doc, search_after}  ids  Elasticsearch
    POST /{i}/_search {sort: _id, search_after}                                                  OpenSearch
    POST /{i}/_search {query: {ids}}                                                             by id, both

A cursor is a point in time with the sort value that the next page begins after; a point in time that has expired begins
the walk anew. It tells what was there when it began, so it is asked for ids only, and these are looked up: a page must
be no older than the asking for it, or it would undo what was written since. OpenSearch is paged by `_id` without one,
so that any page can be read again. Newer Elasticsearch leaves vectors out of `_source`, so that they are asked for as
fields as well. Documents are looked up by searching, which shows them once the index has refreshed: `settle_s` of a
mirror must be longer than that takes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast
from urllib.parse import quote

import msgspec
import numpy as np

from understudy.indexes.points import Payload, Point, PointId, Vector
from understudy.indexes.writes import Upsert, VectorShape, fitted
from understudy.policies.service import Refused
from understudy.proxy.dialects.elastic_mapping import created
from understudy.proxy.mirroring.line import Line
from understudy.proxy.mirroring.source import Described, Gone, Page, SourceFailed, Unmirrorable

log = logging.getLogger("understudy.mirror")

KEEP_ALIVE: Final = "5m"
CANDIDATES: Final = 10
"""Of each shard so many times as many are looked at as are wanted."""
Fields = dict[str, Any]


class _Shards(msgspec.Struct):
    failed: int = 0


class _Hit(msgspec.Struct):
    id: str = msgspec.field(name="_id")
    source: Fields | None = msgspec.field(name="_source", default=None)
    fields: Fields | None = None
    sort: list[Any] | None = None


class _Hits(msgspec.Struct):
    hits: list[_Hit]


class _Found(msgspec.Struct):
    hits: _Hits
    timed_out: bool = False
    shards: _Shards = msgspec.field(name="_shards", default_factory=_Shards)
    pit_id: str = ""


class _Count(msgspec.Struct):
    count: int


class _Pit(msgspec.Struct):
    id: str


class _Cursor(msgspec.Struct, array_like=True):
    pit: str
    after: list[Any] = []


_FOUND = msgspec.json.Decoder(_Found)
_COUNT = msgspec.json.Decoder(_Count)
_PIT = msgspec.json.Decoder(_Pit)
_CURSOR = msgspec.json.Decoder(_Cursor)
_MAPPINGS: msgspec.json.Decoder[dict[str, Fields]] = msgspec.json.Decoder(dict[str, Fields])


class ElasticSource:
    """An Elasticsearch behind `line`, or an OpenSearch."""

    def __init__(self, line: Line, *, points_in_time: bool = True) -> None:
        self._line = line
        self._points_in_time = points_in_time

    async def collections(self) -> list[Described]:
        told = await self._line.ask("GET", "/_mapping", read=_MAPPINGS.decode)
        found: list[Described] = []
        for name, mapping in told.items():
            # those whose names begin with a dot are the server's own
            if name.startswith("."):
                continue
            try:
                described = await self._described(name, mapping)
            except (Unmirrorable, Gone) as why:
                log.info("index %s is not copied: %s", name, why)
                continue
            if described.vectors:
                found.append(described)
        return found

    async def described(self, name: str) -> Described:
        told = await self._line.ask("GET", f"/{quote(name, safe='')}/_mapping", read=_MAPPINGS.decode)
        if set(told) != {name}:
            raise Unmirrorable(f"{name!r} is another name of {', '.join(sorted(told)) or 'nothing'}")
        return await self._described(name, told[name])

    async def page(self, of: Described, cursor: str, limit: int) -> Page:
        at = _CURSOR.decode(cursor) if cursor else _Cursor(await self._point_in_time(of))
        asked: Fields = {"size": limit, "track_total_hits": False}
        if at.pit:
            asked |= {"pit": {"id": at.pit, "keep_alive": KEEP_ALIVE}, "_source": False}
            asked |= {"sort": [{"_shard_doc": "asc"}]}
        else:
            asked |= {"sort": [{"_id": "asc"}], **_wanted(of, as_fields=False)}
        if at.after:
            asked["search_after"] = at.after
        path = "/_search" if at.pit else f"/{quote(of.handle, safe='')}/_search"
        found = _whole(await self._line.ask("POST", path, asked, read=_FOUND.decode))
        hits = found.hits.hits
        last = hits[-1].sort if len(hits) == limit else None
        following = msgspec.json.encode(_Cursor(found.pit_id or at.pit, last)).decode() if last else ""
        if not following and at.pit:
            await self._close(found.pit_id or at.pit)
        points = await self.fetch(of, [hit.id for hit in hits]) if at.pit else [_point(hit, of) for hit in hits]
        return Page(tuple(points), following)

    async def fetch(self, of: Described, ids: Sequence[PointId]) -> list[Point]:
        if not ids:
            return []
        asked: Fields = {"size": len(ids), "track_total_hits": False, "query": {"ids": {"values": list(ids)}}}
        asked |= _wanted(of, as_fields=self._points_in_time)
        path = f"/{quote(of.handle, safe='')}/_search"
        found = _whole(await self._line.ask("POST", path, asked, read=_FOUND.decode))
        return [_point(hit, of) for hit in found.hits.hits]

    async def nearest(self, of: Described, using: str, vectors: Sequence[Vector], limit: int) -> list[list[PointId]]:
        found: list[list[PointId]] = []
        for each in vectors:
            numbers = each.tolist()
            asked: Fields = {"size": limit, "track_total_hits": False, "_source": False}
            if self._points_in_time:
                wide = {"k": limit, "num_candidates": CANDIDATES * limit}
                asked["knn"] = {"field": using, "query_vector": numbers, **wide}
            else:
                asked["query"] = {"knn": {using: {"vector": numbers, "k": limit}}}
            path = f"/{quote(of.handle, safe='')}/_search"
            hits = _whole(await self._line.ask("POST", path, asked, read=_FOUND.decode)).hits.hits
            found.append([hit.id for hit in hits])
        return found

    async def close(self) -> None:
        await self._line.close()

    async def _described(self, name: str, mapping: Fields) -> Described:
        try:
            made = created(mapping)
        except Refused as why:
            raise Unmirrorable(why.detail) from None
        unsized = set(cast("Fields", made.notes.get("distances", {}))) - set(made.vectors)
        if unsized:
            raise Unmirrorable(f"its vector {min(unsized)!r} has no dimensions yet")
        count = (await self._line.ask("GET", f"/{quote(name, safe='')}/_count", read=_COUNT.decode)).count
        return Described(name, name, count, made.vectors, made.notes)

    async def _point_in_time(self, of: Described) -> str:
        if not self._points_in_time:
            return ""
        path = f"/{quote(of.handle, safe='')}/_pit"
        return (await self._line.ask("POST", path, query={"keep_alive": KEEP_ALIVE}, read=_PIT.decode)).id

    async def _close(self, pit: str) -> None:
        try:
            await self._line.ask("DELETE", "/_pit", {"id": pit}, read=bytes)
        except SourceFailed:
            # it ends by itself
            return


def _wanted(of: Described, *, as_fields: bool) -> Fields:
    """The documents whole, and their vectors as fields where `_source` may lack them."""
    return {"_source": True, "fields": list(of.vectors)} if as_fields else {"_source": True}


def _whole(found: _Found) -> _Found:
    if found.timed_out or found.shards.failed:
        raise SourceFailed("some shards did not answer")
    return found


def _point(hit: _Hit, of: Described) -> Point:
    source = hit.source or {}
    named: dict[str, Vector] = {}
    for name, shape in of.vectors.items():
        numbers = _numbers((hit.fields or {}).get(name), shape) or _numbers(_at(source, name), shape)
        if numbers is not None:
            named[name] = np.array(numbers, np.float32)
    whole = fitted(Upsert((Point(hit.id, None, source, named=named),)), of.vectors)
    assert isinstance(whole, Upsert)
    return whole.points[0]


def _at(source: Payload, path: str) -> Any:
    if path in source:
        return source[path]
    value: Any = source
    for part in path.split("."):
        value = cast("Mapping[str, Any]", value).get(part) if isinstance(value, dict) else None
    return value


def _numbers(value: Any, shape: VectorShape) -> list[float] | None:
    """A vector's numbers; fields come in a list of their own."""
    if not isinstance(value, list):
        return None
    numbers = cast("list[Any]", value)
    if len(numbers) == 1 and isinstance(numbers[0], list):
        numbers = cast("list[Any]", numbers[0])
    return numbers if len(numbers) == shape.dimensions else None
