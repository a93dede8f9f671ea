"""Read Qdrant: collections, then their points by scrolling, in the order of their ids.

    GET /collections            GET /collections/{c}  -->  vectors: {size, distance}  |  {name: {size, distance}, ...}
    POST /collections/{c}/points/scroll  {limit, offset: id, with_payload, with_vector}  -->  points, next_page_offset
    POST /collections/{c}/points         {ids, with_payload, with_vector}
    POST /collections/{c}/points/query/batch  {searches: [{query, using, limit}]}  -->  points of each

The cursor is the id that the next page begins with, so that it never expires and a page can be read again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final, cast
from urllib.parse import quote

import msgspec
import numpy as np

from understudy.indexes.points import Point, PointId, Vector, canonical_id
from understudy.indexes.writes import DistanceName, VectorShape
from understudy.proxy.mirroring.line import Line
from understudy.proxy.mirroring.source import Described, Gone, Page, Unmirrorable

log = logging.getLogger("understudy.mirror")

_DISTANCES: Final[dict[str, DistanceName]] = {"Cosine": "cosine", "Dot": "dot", "Euclid": "euclid"}


class _Name(msgspec.Struct):
    name: str


class _Names(msgspec.Struct):
    collections: list[_Name]


class _Listed(msgspec.Struct):
    result: _Names


class _Params(msgspec.Struct):
    vectors: dict[str, Any] | None = None


class _Config(msgspec.Struct):
    params: _Params


class _Info(msgspec.Struct):
    config: _Config
    points_count: int | None = None


class _Described(msgspec.Struct):
    result: _Info


class _Record(msgspec.Struct):
    id: int | str
    payload: dict[str, Any] | None = None
    vector: Any = None


class _Scroll(msgspec.Struct):
    points: list[_Record]
    next_page_offset: int | str | None = None


class _Scrolled(msgspec.Struct):
    result: _Scroll


class _Fetched(msgspec.Struct):
    result: list[_Record]


class _Count(msgspec.Struct):
    count: int


class _Counted(msgspec.Struct):
    result: _Count


class _Points(msgspec.Struct):
    points: list[_Record]


class _Found(msgspec.Struct):
    result: list[_Points]


_LISTED = msgspec.json.Decoder(_Listed)
_DESCRIBED = msgspec.json.Decoder(_Described)
_SCROLLED = msgspec.json.Decoder(_Scrolled)
_FETCHED = msgspec.json.Decoder(_Fetched)
_FOUND = msgspec.json.Decoder(_Found)
_COUNTED = msgspec.json.Decoder(_Counted)


class QdrantSource:
    """A Qdrant behind `line`."""

    def __init__(self, line: Line) -> None:
        self._line = line

    async def collections(self) -> list[Described]:
        listed = await self._line.ask("GET", "/collections", read=_LISTED.decode)
        found: list[Described] = []
        for each in listed.result.collections:
            try:
                found.append(await self.described(each.name))
            except (Unmirrorable, Gone) as why:
                log.info("collection %s is not copied: %s", each.name, why)
        return found

    async def described(self, name: str) -> Described:
        at = f"/collections/{quote(name, safe='')}"
        info = (await self._line.ask("GET", at, read=_DESCRIBED.decode)).result
        # what the collection says of itself is an estimate
        counted = await self._line.ask("POST", f"{at}/points/count", {"exact": True}, read=_COUNTED.decode)
        return Described(name, name, counted.result.count, _shapes(info.config.params.vectors or {}))

    async def page(self, of: Described, cursor: str, limit: int) -> Page:
        offset = msgspec.json.decode(cursor) if cursor else None
        asked = {"limit": limit, "offset": offset, "with_payload": True, "with_vector": True}
        return await self._line.ask("POST", f"{_at(of)}/points/scroll", asked, read=_page)

    async def fetch(self, of: Described, ids: Sequence[PointId]) -> list[Point]:
        asked = {"ids": list(ids), "with_payload": True, "with_vector": True}
        return await self._line.ask("POST", f"{_at(of)}/points", asked, read=_fetched)

    async def nearest(self, of: Described, using: str, vectors: Sequence[Vector], limit: int) -> list[list[PointId]]:
        named = {"using": using} if using else {}
        searches = [{"query": each.tolist(), "limit": limit, "with_payload": False, **named} for each in vectors]
        found = await self._line.ask(
            "POST", f"{_at(of)}/points/query/batch", {"searches": searches}, read=_FOUND.decode
        )
        return [[canonical_id(point.id) for point in each.points] for each in found.result]

    async def close(self) -> None:
        await self._line.close()


def _at(of: Described) -> str:
    return f"/collections/{quote(of.handle, safe='')}"


def _shapes(vectors: dict[str, Any]) -> dict[str, VectorShape]:
    if isinstance(vectors.get("size"), int):
        return {"": _shape("", vectors)}
    return {name: _shape(name, params) for name, params in vectors.items()}


def _shape(name: str, params: Any) -> VectorShape:
    told = cast("dict[str, Any]", params) if isinstance(params, dict) else {}
    distance, size = _DISTANCES.get(str(told.get("distance"))), told.get("size")
    if distance is None or not isinstance(size, int):
        raise Unmirrorable(f"vector {name!r}: no local index has the distance {told.get('distance')!r}")
    if told.get("multivector_config"):
        raise Unmirrorable(f"vector {name!r} is of several rows")
    if told.get("datatype") not in (None, "float32"):
        raise Unmirrorable(f"vector {name!r} is kept as {told['datatype']}")
    return VectorShape(size, distance)


def _page(raw: bytes) -> Page:
    scroll = _SCROLLED.decode(raw).result
    following = scroll.next_page_offset
    cursor = "" if following is None else msgspec.json.encode(following).decode()
    return Page(tuple(_point(each) for each in scroll.points), cursor)


def _fetched(raw: bytes) -> list[Point]:
    return [_point(each) for each in _FETCHED.decode(raw).result]


def _point(record: _Record) -> Point:
    held = record.vector
    named: dict[str, Vector] = {}
    bare: Vector | None = None
    if isinstance(held, dict):
        for name, numbers in cast("dict[str, Any]", held).items():
            # a sparse vector stands beside the dense ones, and is not ours to search
            if isinstance(numbers, list):
                named[name] = np.array(numbers, np.float32)
        bare = named.pop("", None)
    elif isinstance(held, list):
        bare = np.array(held, np.float32)
    return Point(canonical_id(record.id), bare, record.payload or {}, named=named)
