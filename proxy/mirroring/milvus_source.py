"""Read Milvus by its REST API, version 2: collections, then their rows by ranges of the primary key.

    POST /v2/vectordb/collections/list      [name]
    POST …/collections/describe             fields: [{name, type, params}], indexes: [{fieldName, metricType}]
    POST …/entities/query                   {filter, outputFields: ["*"] | ["count(*)"], limit}     [row]
    POST …/entities/search                  {data: [vector], annsField, limit}                      [{id, distance}]

A query's limit promises nothing about which rows come, and a limit with an offset ends at 16,384. So a page is a range
of keys that is known to be whole, because it counts no more rows than came:

    (low, high] --as many as the limit?--no--> whole
                     | yes
                     +--> (low, last that came] counts as many? --yes--> whole, and (last, high] is left
                               | no: they came in no order
                               +--> (low, middle that came], (middle, high], the first of them anew

The cursor holds the bounds of the ranges that are left. Counts are asked for by query: the statistics of a collection
know nothing of deletes. Keys are looked up by query too, since `entities/get` puts texts between quotes as they are.
Reads are of consistency Strong, so that a write that was answered is in them; before Milvus 2.6 (2.5 until May 2025)
they are of the collection's own, whatever is asked. A row that was inserted twice under one key counts twice, and comes
once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar, cast

import msgspec
from msgspec import Raw

from understudy.indexes.points import Point, PointId, Vector
from understudy.indexes.writes import Upsert, fitted
from understudy.policies.service import Refused
from understudy.proxy.dialects.base import given
from understudy.proxy.dialects.milvus_writes import PRIMARY, FieldTold, Row, point_of, shaped
from understudy.proxy.mirroring.applying import left_out
from understudy.proxy.mirroring.line import Line
from understudy.proxy.mirroring.source import Busy, Described, Gone, Page, SourceFailed, Unmirrorable

log = logging.getLogger("understudy.mirror")

COUNT: Final = "count(*)"
LIMIT_MAX: Final = 16_383
LIMIT_MIN: Final = 2
"""A range is split between two of the keys that came."""
SPLITS_MAX: Final = 200
"""A key has 64 bits, or some characters: a range that is split more often is written to faster than it is read."""
HEADERS: Final = {"Accept-Type-Allow-Int64": "true"}
"""Or some servers write integers of 64 bits as texts, for the sake of JavaScript."""

_GONE: Final = frozenset({100, 800})
_NOT_LOADED: Final = frozenset({101, 103, 106, 201, 202})
_BUSY: Final = frozenset({1, 2, 3, 4, 7, 8, 12, 250, 1807})
_NAMING: Final = frozenset({"dbName", "collectionName"})
_STRONG: Final = {"consistencyLevel": "Strong"}
_WRITTEN: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"}
"""What may not stand in a text of a filter as it is, the backslash first."""

Key: TypeAlias = int | str
Bound: TypeAlias = int | str | None
_Data = TypeVar("_Data")


class _NotLoaded(SourceFailed):
    """A collection that can't be read now, and may be later."""


class _Said(msgspec.Struct):
    code: int = 0
    message: str = ""
    data: Raw = Raw()


class _Pair(msgspec.Struct):
    key: str
    value: str = ""


class _Field(msgspec.Struct, rename="camel"):
    name: str
    type: str = ""
    params: list[_Pair] | None = None
    primary_key: bool = False


class _Index(msgspec.Struct, rename="camel"):
    field_name: str = ""
    metric_type: str = ""


class _Function(msgspec.Struct, rename="camel"):
    output_field_names: list[str] | None = None


class _Told(msgspec.Struct, rename="camel"):
    collection_name: str
    fields: list[_Field]
    indexes: list[_Index] | None = None
    functions: list[_Function] | None = None
    load: str = ""


class _Found(msgspec.Struct):
    id: int | str


class _Column(msgspec.Struct):
    data: list[Any] = []


class _Array(msgspec.Struct):
    columns: dict[str, _Column] = msgspec.field(name="Data", default_factory=dict[str, _Column])


_SAID = msgspec.json.Decoder(_Said)
_NAMES = msgspec.json.Decoder(list[str] | None)
_TOLD = msgspec.json.Decoder(_Told)
_ROWS = msgspec.json.Decoder(list[Row] | None)
_FOUND = msgspec.json.Decoder(list[_Found] | None)
_BOUNDS = msgspec.json.Decoder(list[Bound])


class MilvusSource:
    """A Milvus behind `line`. `names` are those that the policy or callers have said, for their databases."""

    def __init__(self, line: Line, names: Iterable[str] = ()) -> None:
        self._line = line
        self._databases = {"": None} | dict.fromkeys(database_of(name) for name in names)
        # the types of each collection's fields, by its name
        self._types: dict[str, Mapping[str, str]] = {}

    async def collections(self) -> list[Described]:
        found: list[Described] = []
        for database in self._databases:
            for each in sorted(await self._ask("collections/list", f"{database}/", _NAMES) or ()):
                name = f"{database}/{each}" if database else each
                try:
                    found.append(await self.described(name))
                except (Unmirrorable, Gone, _NotLoaded) as why:
                    log.info("collection %s is not copied: %s", name, why)
        return found

    async def described(self, name: str) -> Described:
        told = await self._told(name)
        if told.load not in ("", "LoadStateLoaded"):
            raise _NotLoaded(f"{name!r} is not loaded: {told.load}")
        metrics = {each.field_name: each.metric_type for each in told.indexes or ()}
        functions = {name for each in told.functions or () for name in each.output_field_names or ()}
        try:
            made = shaped(map(_field, told.fields), metrics, functions)
        except Refused as why:
            raise Unmirrorable(why.detail) from None
        return Described(name, name, await self._count(name, ""), made.vectors, made.notes)

    async def page(self, of: Described, cursor: str, limit: int) -> Page:
        limit = min(max(limit, LIMIT_MIN), LIMIT_MAX)
        bounds: list[Bound] = _BOUNDS.decode(cursor) if cursor else [None, None]
        for _ in range(SPLITS_MAX):
            low, high = bounds[0], bounds[1]
            points = await self._query(of, _within(low, high), limit)
            keys = sorted(cast("list[Any]", [point.id for point in points]))
            if await self._is_whole(of, low, high, keys, limit):
                # as many as the limit lie between low and the last of them, fewer are all up to high
                left = [keys[-1], *bounds[1:]] if len(keys) >= limit and keys[-1] != high else bounds[1:]
                return Page(tuple(points), msgspec.json.encode(left).decode() if len(left) > 1 else "")
            bounds.insert(1, keys[(len(keys) - 1) // 2])
        raise SourceFailed(f"{of.name}: its keys change faster than they can be read")

    async def fetch(self, of: Described, ids: Sequence[PointId]) -> list[Point]:
        texts = (await self._types_of(of)).get(PRIMARY) != "Int64"
        # an answer for JavaScript tells integers as texts, and a text may have been written as a number
        keys = [str(each) if texts else int(each) for each in ids if texts or str(each).isdecimal()]
        if not keys:
            return []
        # without a limit of their own: of a key that was inserted twice, Milvus may count both rows
        return await self._query(of, f"{PRIMARY} in [{', '.join(map(literal, keys))}]", LIMIT_MAX)

    async def nearest(self, of: Described, using: str, vectors: Sequence[Vector], limit: int) -> list[list[PointId]]:
        found: list[list[PointId]] = []
        for each in vectors:
            asked = {"data": [each.tolist()], "annsField": using, "limit": limit, "outputFields": [PRIMARY]}
            rows = await self._ask("entities/search", of.handle, _FOUND, {**asked, **_STRONG})
            found.append([row.id for row in rows or ()])
        return found

    async def close(self) -> None:
        await self._line.close()

    # --- asking ----------------------------------------------------------------------------------------------------

    async def _told(self, name: str) -> _Told:
        told = await self._ask("collections/describe", name, _TOLD)
        if told.collection_name != name.rpartition("/")[2]:
            raise Unmirrorable(f"{name!r} is another name of {told.collection_name!r}")
        self._types[name] = {each.name: each.type for each in told.fields}
        return told

    async def _types_of(self, of: Described) -> Mapping[str, str]:
        if of.handle not in self._types:
            await self._told(of.handle)
        return self._types[of.handle]

    async def _count(self, name: str, condition: str) -> int:
        asked = {"filter": condition, "outputFields": [COUNT], "limit": 0, **_STRONG}
        rows = await self._ask("entities/query", name, _ROWS, asked)
        count = rows[0].get(COUNT) if rows else None
        if not isinstance(count, int | str) or not str(count).isdecimal():
            raise SourceFailed(f"{name}: it does not say how many rows it has")
        return int(count)

    async def _query(self, of: Described, condition: str, limit: int) -> list[Point]:
        asked = {"filter": condition, "outputFields": ["*"], "limit": limit, **_STRONG}
        points = partial(_points, types=await self._types_of(of), of=of)
        return await self._ask("entities/query", of.handle, _ROWS, asked, points)

    async def _is_whole(self, of: Described, low: Bound, high: Bound, keys: Sequence[Any], limit: int) -> bool:
        """Whether these sorted keys are all there are: up to the last where they are as many as the limit, else to
        `high`."""
        if len(keys) >= limit:
            return await self._count(of.handle, _within(low, keys[-1])) <= len(keys)
        if not keys or (len(keys) == 1 and keys[-1] == high):
            return True
        # rows that came once may have counted against the limit twice
        return await self._count(of.handle, _within(low, high)) <= limit

    async def _ask(
        self,
        act: str,
        name: str,
        decoder: msgspec.json.Decoder[Any],
        more: Mapping[str, Any] | None = None,
        then: Callable[[Any], Any] | None = None,
    ) -> Any:
        database, _, collection = name.rpartition("/")
        asked = {"dbName": database, "collectionName": collection, **(more or {})}
        body = {field: value for field, value in asked.items() if value or field not in _NAMING}

        def read(raw: bytes) -> Any:
            data = decoder.decode(_data(raw))
            return data if then is None else then(data)

        return await self._line.ask("POST", f"/v2/vectordb/{act}", body, headers=HEADERS, read=read)


def database_of(name: str) -> str:
    """The database that a collection's name says, '' for the usual one."""
    return name.rpartition("/")[0]


def literal(key: Key) -> str:
    """A key as a filter says it."""
    if not isinstance(key, str):
        return str(key)
    for mark, written in _WRITTEN.items():
        key = key.replace(mark, written)
    return f'"{key}"'


def _within(low: Bound, high: Bound) -> str:
    """The filter for keys above low and up to high."""
    above = [] if low is None else [f"{PRIMARY} > {literal(low)}"]
    return " and ".join([*above, *([] if high is None else [f"{PRIMARY} <= {literal(high)}"])])


def _field(told: _Field) -> FieldTold:
    dim = next((pair.value for pair in told.params or () if pair.key == "dim"), None)
    return FieldTold(told.name, told.type, dim, told.primary_key)


def _data(raw: bytes) -> bytes | Raw:
    """What an answer brings. Raises what its code means."""
    said = _SAID.decode(raw)
    if said.code in (0, 200):
        return said.data if given(said.data) else b"null"
    kinds = ((_GONE, Gone), (_NOT_LOADED, _NotLoaded), (_BUSY, Busy))
    kind = next((kind for codes, kind in kinds if said.code in codes), SourceFailed)
    raise kind(f"code {said.code}: {' '.join(said.message[:200].split())}")


def _points(rows: list[Row] | None, types: Mapping[str, str], of: Described) -> list[Point]:
    whole = fitted(Upsert(tuple(_point(row, types) for row in rows or ())), list(of.vectors), left_out(of.notes))
    assert isinstance(whole, Upsert)
    return list(whole.points)


def _point(row: Row, types: Mapping[str, str]) -> Point:
    """A row as the write that put it there is read."""
    called = row.get(PRIMARY)
    if isinstance(called, bool) or not isinstance(called, int | str):
        raise SourceFailed(f"a row without its {PRIMARY!r}")
    if isinstance(called, int) and called < 0:
        raise Unmirrorable(f"it has the key {called}, and those of a copy have no sign")
    told = {name: _READ[kind](row[name]) for name, kind in types.items() if kind in _READ and name in row}
    return point_of(called, {**row, **told})


def _unquoted(value: Any) -> Any:
    """A field of JSON, which comes as the text of it."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except msgspec.DecodeError:
        return value


def _unwrapped(value: Any) -> Any:
    """The elements of an array, which came as {"Data": {"LongData": {"data": […]}}} until lately; empty, as {}."""
    if not isinstance(value, dict):
        return value
    columns = msgspec.convert(value, _Array).columns
    return [each for column in columns.values() for each in column.data]


_READ: Final[Mapping[str, Callable[[Any], Any]]] = {"JSON": _unquoted, "Array": _unwrapped}
