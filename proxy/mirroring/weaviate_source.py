"""Read Weaviate: classes, then their objects in the order of their UUIDs.

    GET  /v1/schema, /v1/schema/{Class}                     how its vectors are compared, not how long they are
    GET  /v1/objects?class&limit&after=UUID&include=vector  the objects after one, be that still there or not
    GET  /v1/objects/{Class}/{id}?include=vector            one of them; 404 without words where there is none
    POST /v1/graphql  {Aggregate {Class {meta {count}}}}    |  POST /v1/aggregate/{Class}           {count}
    POST /v1/graphql  {Get {Class(nearVector, limit) {…}}}  |  POST /v1/search/{Class}/near-vector  {results: [{id}]}

The cursor is the UUID of a page's last object, so that it never expires and a page can be read again. Objects are
looked up one by one: REST has no other way, and GraphQL, which could filter by ids, has to be told each property by its
name and tells it otherwise than REST does. It is being switched off, too (in Weaviate Cloud from December 2026): where
it is, counts and searches are asked of the REST API that takes its place, from 1.39 on. How long a class's vectors are,
its first objects say. What a copy can stand for is what the tap on writes says (`notes_of`): no tenants, no references,
no vectors that the database makes.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, cast
from urllib.parse import quote

import msgspec

from understudy.indexes.points import Point, PointId, Vector, canonical_id
from understudy.indexes.writes import DistanceName, VectorShape
from understudy.policies.service import Refused
from understudy.proxy.dialects.base import Malformed
from understudy.proxy.dialects.weaviate_writes import Class, Thing, notes_of, point_of
from understudy.proxy.mirroring.line import Line
from understudy.proxy.mirroring.source import Described, Gone, Page, SourceFailed, Unmirrorable

log = logging.getLogger("understudy.mirror")

FIRST_OBJECTS: Final = 8
"""So many are looked at for how long their vectors are: one of them may lack some."""
AT_ONCE: Final = 4
"""Objects that are looked up at the same time, as many as a line has connections."""
ERROR_CHARS_MAX: Final = 200

_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SWITCHED_OFF: Final = "graphql api is disabled"
Notes = Mapping[str, Any]


class _Schema(msgspec.Struct):
    classes: list[Class] | None = None


class _Listed(msgspec.Struct):
    objects: list[Thing] | None = None


class _Message(msgspec.Struct):
    message: str = ""


class _Answered(msgspec.Struct):
    data: dict[str, dict[str, list[dict[str, Any]] | None] | None] | None = None
    errors: list[_Message] | None = None


class _Count(msgspec.Struct):
    count: int


class _Id(msgspec.Struct):
    id: str


class _Found(msgspec.Struct):
    results: list[_Id]


_SCHEMA = msgspec.json.Decoder(_Schema)
_CLASS = msgspec.json.Decoder(Class)
_LISTED = msgspec.json.Decoder(_Listed)
_THING = msgspec.json.Decoder(Thing)
_ANSWERED = msgspec.json.Decoder(_Answered)
_COUNT = msgspec.json.Decoder(_Count)
_FOUND = msgspec.json.Decoder(_Found)


class WeaviateSource:
    """A Weaviate behind `line`."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._has_graphql = True

    async def collections(self) -> list[Described]:
        schema = await self._line.ask("GET", "/v1/schema", read=_SCHEMA.decode)
        found: list[Described] = []
        for each in schema.classes or ():
            try:
                found.append(await self._described(each))
            except (Unmirrorable, Gone) as why:
                log.info("class %s is not copied: %s", each.called, why)
        return found

    async def described(self, name: str) -> Described:
        told = await self._class(name)
        if told.called != name:
            raise Unmirrorable(f"{name!r} is another name of {told.called}")
        return await self._described(told)

    async def page(self, of: Described, cursor: str, limit: int) -> Page:
        return await self._page(of.handle, of.notes, cursor, limit)

    async def fetch(self, of: Described, ids: Sequence[PointId]) -> list[Point]:
        # nothing else is ever an object's id here
        asked = [called for each in ids if isinstance(called := canonical_id(each), str) and _UUID.fullmatch(called)]
        points: list[Point] = []
        for at in range(0, len(asked), AT_ONCE):
            some = asked[at : at + AT_ONCE]
            told = await asyncio.gather(*(self._object(of.handle, each) for each in some), return_exceptions=True)
            for each in told:
                if isinstance(each, BaseException):
                    raise each
                points += [] if each is None else [each]
        if len(points) < len(asked):
            # an object's 404 says the same when the whole class is gone
            await self._class(of.handle)
        return points

    async def nearest(self, of: Described, using: str, vectors: Sequence[Vector], limit: int) -> list[list[PointId]]:
        found: list[list[PointId]] = []
        for each in vectors:
            ids = await self._nearest(of.handle, using, each.tolist(), limit)
            found.append([canonical_id(one) for one in ids])
        return found

    async def close(self) -> None:
        await self._line.close()

    # --- classes -----------------------------------------------------------------------------------------------------

    async def _class(self, name: str) -> Class:
        return await self._line.ask("GET", f"/v1/schema/{quote(name, safe='')}", read=_CLASS.decode)

    async def _described(self, told: Class) -> Described:
        try:
            notes = notes_of(told)
        except Refused as why:
            raise Unmirrorable(why.detail) from None
        count = await self._count(told.called)
        first = (await self._page(told.called, notes, "", FIRST_OBJECTS)).points if count else ()
        return Described(told.called, told.called, count, _shapes(first, notes), notes)

    async def _count(self, name: str) -> int:
        if self._has_graphql:
            rows = await self._graphql(f"{{ Aggregate {{ {name} {{ meta {{ count }} }} }} }}", "Aggregate", name)
            if rows is not None:
                count: Any = rows[0].get("meta", {}).get("count") if len(rows) == 1 else None
                if not isinstance(count, int):
                    raise SourceFailed(f"the database does not say how many objects {name} has")
                return count
        return (await self._search(name, f"/v1/aggregate/{quote(name, safe='')}", {}, _COUNT)).count

    # --- objects -----------------------------------------------------------------------------------------------------

    async def _page(self, name: str, notes: Notes, cursor: str, limit: int) -> Page:
        # without a cursor, even an empty one, they would come in the order in which they were put
        query = {"class": name, "limit": str(limit), "after": cursor, "include": "vector"}
        points = await self._line.ask("GET", "/v1/objects", query=query, read=_points)
        if any(str(point.id) <= cursor for point in points):
            # the walk would never end
            raise SourceFailed(f"{name}: objects do not come after a cursor: that takes Weaviate 1.18")
        following = str(points[-1].id) if len(points) >= limit else ""
        return Page(tuple(await self._whole(name, notes, points)), following)

    async def _whole(self, name: str, notes: Notes, points: list[Point]) -> list[Point]:
        """The points of a page. Clusters have left out of lists the named vectors of objects that another node keeps:
        whatever lacks one is looked up."""
        names: Collection[str] = notes.get("distances", {})
        lacking = [point.id for point in points if not all(each in point.named for each in names)]
        if not lacking:
            return points
        found = {point.id: point for point in await self.fetch(Described(name, name, 0), lacking)}
        gone = set(lacking) - set(found)
        return [found.get(point.id, point) for point in points if point.id not in gone]

    async def _object(self, name: str, called: str) -> Point | None:
        try:
            return await self._line.ask(
                "GET", f"/v1/objects/{quote(name, safe='')}/{called}", query={"include": "vector"}, read=_point
            )
        except Gone:
            return None

    # --- searches ----------------------------------------------------------------------------------------------------

    async def _nearest(self, name: str, using: str, vector: list[float], limit: int) -> list[str]:
        if self._has_graphql:
            target = f", targetVectors: {_text([using])}" if using else ""
            near = f"nearVector: {{vector: {_text(vector)}{target}}}, limit: {limit}"
            rows = await self._graphql(f"{{ Get {{ {name}({near}) {{ _additional {{ id }} }} }} }}", "Get", name)
            if rows is not None:
                return [str(row.get("_additional", {}).get("id", "")) for row in rows]
        asked: dict[str, Any] = {"vector": vector, "limit": limit}
        if using:
            asked["targetVector"] = using
        found = await self._search(name, f"/v1/search/{quote(name, safe='')}/near-vector", asked, _FOUND)
        return [each.id for each in found.results]

    async def _graphql(self, query: str, root: str, name: str) -> list[dict[str, Any]] | None:
        """What a query finds in a class; None where GraphQL is switched off."""
        try:
            told = await self._line.ask("POST", "/v1/graphql", {"query": query}, read=_ANSWERED.decode)
        except Gone as why:
            # a server without it, or a gateway that keeps it from us
            self._has_graphql = False
            log.info("%s: GraphQL is not there: %s", name, why)
            return None
        except SourceFailed as why:
            if _SWITCHED_OFF not in str(why):
                raise
            self._has_graphql = False
            return None
        rows = ((told.data or {}).get(root) or {}).get(name)
        if told.errors or rows is None:
            why = "; ".join(each.message for each in told.errors or ()) or "neither data nor errors"
            raise SourceFailed(f"POST /v1/graphql: {root} {name}: {why[:ERROR_CHARS_MAX]}")
        return rows

    async def _search(self, name: str, path: str, asked: Mapping[str, Any], decoder: msgspec.json.Decoder[Any]) -> Any:
        """What the REST API answers that takes GraphQL's place."""
        try:
            return await self._line.ask("POST", path, asked, read=decoder.decode)
        except Gone:
            # it says so of a class too
            await self._class(name)
            why = f"GraphQL is switched off, and there is no {path}: that takes Weaviate 1.39"
            raise SourceFailed(why) from None


def _shapes(points: Sequence[Point], notes: Notes) -> dict[str, VectorShape]:
    """How long the vectors are that some points show."""
    distances = cast("Mapping[str, DistanceName]", notes.get("distances", {}))
    shapes: dict[str, VectorShape] = {}
    for point in points:
        if point.vector is not None and "distance" in notes:
            shapes.setdefault("", VectorShape(len(point.vector), notes["distance"]))
        for name, vector in point.named.items():
            if name in distances:
                shapes.setdefault(name, VectorShape(len(vector), distances[name]))
    return shapes


def _points(raw: bytes) -> list[Point]:
    return [_read(each) for each in _LISTED.decode(raw).objects or ()]


def _point(raw: bytes) -> Point:
    return _read(_THING.decode(raw))


def _read(thing: Thing) -> Point:
    if not thing.id:
        raise SourceFailed("an object without an id")
    try:
        return point_of(thing, thing.id)
    except (Refused, Malformed) as why:
        raise SourceFailed(f"object {thing.id}: {why}") from None


def _text(value: Any) -> str:
    """A number, a text or a list of them as GraphQL writes it, which is as JSON does."""
    return msgspec.json.encode(value).decode()
