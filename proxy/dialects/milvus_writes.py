"""What a write to Milvus changes, in the words of `indexes/writes`.

    entities/insert, entities/upsert    Upsert of the rows that the answer names; the ids stand in it
    entities/delete                     Delete: of ids, or of what a filter lets through
    collections/create, /drop           Create, Drop

A row is a payload; what may be a vector in it (a list of numbers) is named as well, and whoever knows the collection's
vectors passes what is read here through `understudy.indexes.writes.fitted`. The primary key is called `id`, as the
quick way of making a collection calls it: a collection with another is not mirrored, since answers would have to call
it so. Sparse vectors, functions that make vectors, partitions that are dropped, aliases and imports are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
from msgspec import Raw

from understudy.indexes.points import Point, PointId
from understudy.indexes.writes import Create, Delete, DistanceName, Drop, Upsert, VectorShape, Which, Write
from understudy.policies.service import Refused
from understudy.proxy.dialects.base import given, parsed
from understudy.proxy.dialects.milvus_filter import condition_of, ids_of
from understudy.proxy.dialects.vectors import vector_from

if TYPE_CHECKING:
    from understudy.indexes.points import Vector

PRIMARY: Final = "id"
METRICS: Final[dict[str, DistanceName]] = {"COSINE": "cosine", "IP": "dot", "L2": "euclid"}
NUMBERS_MIN: Final = 2
_VECTORS: Final = frozenset({"FloatVector", "Float16Vector", "BFloat16Vector", "BinaryVector", "SparseFloatVector"})
Row = dict[str, Any]


class _Rows(msgspec.Struct):
    data: list[Row] | Row


class _Ids(msgspec.Struct, rename="camel"):
    insert_ids: list[int | str] | None = None
    upsert_ids: list[int | str] | None = None


class _Done(msgspec.Struct):
    code: int = 0
    data: Raw = Raw()


class _Delete(msgspec.Struct, rename="camel"):
    filter: str | None = None
    id: Raw = Raw()
    partition_name: str | None = None
    expr_params: Raw = Raw()


class _Create(msgspec.Struct, rename="camel"):
    dimension: int | None = None
    metric_type: str | None = None
    primary_field_name: str | None = None
    vector_field_name: str | None = None
    field_schema: Raw = msgspec.field(default=Raw(), name="schema")
    index_params: list[Row] | None = None


class _Field(msgspec.Struct, rename="camel"):
    field_name: str
    data_type: str = ""
    is_primary: bool | None = None
    element_type_params: dict[str, Any] | None = None


class _Schema(msgspec.Struct):
    fields: list[_Field]
    functions: list[Any] | None = None


_ROWS = msgspec.json.Decoder(_Rows)
_DONE = msgspec.json.Decoder(_Done)
_IDS = msgspec.json.Decoder(_Ids)
_DELETE = msgspec.json.Decoder(_Delete)
_CREATE = msgspec.json.Decoder(_Create)
_SCHEMA = msgspec.json.Decoder(_Schema)


def put(body: bytes) -> list[Write]:
    """The rows of an insert or an upsert, by the ids that they bring. Raises Refused for rows that bring none."""
    rows = _rows(body)
    ids: list[PointId] = []
    for row in rows:
        called = row.get(PRIMARY)
        if isinstance(called, bool) or not isinstance(called, int | str):
            raise Refused("unsupported", "the rows' ids stand in the answer only")
        ids.append(called)
    return _upsert(ids, rows)


def put_as_answered(body: bytes, answer: bytes) -> list[Write]:
    """The same by the ids that the answer gives, row by row."""
    done = parsed(_DONE, answer)
    if done.code:
        return []
    told = parsed(_IDS, done.data) if given(done.data) else _Ids()
    ids = told.insert_ids if told.insert_ids is not None else told.upsert_ids
    rows = _rows(body)
    if ids is None or len(ids) != len(rows):
        raise Refused("unsupported", "the answer does not say the id of each row")
    for called, row in zip(ids, rows, strict=True):
        # a 64-bit number may come as its text
        if str(row.get(PRIMARY, called)) != str(called) or (PRIMARY not in row and called in row.values()):
            raise Refused("unsupported", f"a primary key by another name than {PRIMARY!r}")
    return _upsert([row.get(PRIMARY, called) for called, row in zip(ids, rows, strict=True)], rows)


def deleted(body: bytes) -> list[Write]:
    """What entities/delete takes away."""
    asked = parsed(_DELETE, body)
    if asked.partition_name or given(asked.expr_params):
        raise Refused("unsupported", "a mirror knows no partitions, and no filters with parameters")
    if given(asked.id):
        ids: Any = msgspec.json.decode(asked.id)
        return [Delete(Which(tuple(cast("list[PointId]", ids) if isinstance(ids, list) else [ids])))]
    expression = asked.filter or ""
    ids = ids_of(expression)
    if ids is not None:
        return [Delete(Which(ids))] if ids else []
    condition = condition_of(expression)
    if condition is None:
        raise Refused("unsupported", "a delete without a filter")
    return [Delete(Which(filter=condition))]


def created(body: bytes) -> list[Write]:
    """A collection as it is made: quickly, by its dimension alone, or by a schema and what its indexes say."""
    asked = parsed(_CREATE, body)
    if not given(asked.field_schema):
        if asked.primary_field_name not in (None, PRIMARY):
            raise Refused("unsupported", f"a primary key by another name than {PRIMARY!r}")
        shape = VectorShape(asked.dimension or 0, _metric(asked.metric_type or "COSINE"))
        if not asked.dimension:
            raise Refused("unsupported", "a collection whose dimension nobody says")
        return [Create({asked.vector_field_name or "vector": shape})]
    schema = parsed(_SCHEMA, asked.field_schema)
    if schema.functions:
        raise Refused("unsupported", "what the database's own functions make of a row, only it knows")
    metrics = {str(each.get("fieldName")): each.get("metricType") for each in asked.index_params or ()}
    return [Create(dict(_shapes(schema, metrics)))]


def dropped(_body: bytes) -> list[Write]:
    """The collection and everything in it."""
    return [Drop()]


def _shapes(schema: _Schema, metrics: dict[str, Any]) -> Iterator[tuple[str, VectorShape]]:
    for each in schema.fields:
        if each.is_primary and each.field_name != PRIMARY:
            raise Refused("unsupported", f"a primary key by another name than {PRIMARY!r}")
        if each.data_type not in _VECTORS:
            continue
        dim = (each.element_type_params or {}).get("dim")
        if each.data_type != "FloatVector" or not str(dim).isdecimal():
            raise Refused("unsupported", f"a mirror does not know vectors of the type {each.data_type}")
        yield each.field_name, VectorShape(int(str(dim)), _metric(metrics.get(each.field_name)))


def _metric(said: Any) -> DistanceName:
    if not isinstance(said, str) or said.upper() not in METRICS:
        raise Refused("unsupported", "a distance that is not said, or that a mirror does not know")
    return METRICS[said.upper()]


def _rows(body: bytes) -> list[Row]:
    data = parsed(_ROWS, body).data
    return data if isinstance(data, list) else [data]


def _upsert(ids: list[Any], rows: list[Row]) -> list[Write]:
    points = tuple(
        Point(called, None, {name: value for name, value in row.items() if name != PRIMARY}, named=dict(_vectors(row)))
        for called, row in zip(ids, rows, strict=True)
    )
    return [Upsert(points)] if points else []


def _vectors(row: Row) -> Iterator[tuple[str, Vector]]:
    for name, value in row.items():
        if isinstance(value, list):
            numbers = cast("list[Any]", value)
            if len(numbers) >= NUMBERS_MIN and all(type(each) in (int, float) for each in numbers):
                # numbers that are too large for a vector are none
                with contextlib.suppress(Refused):
                    yield name, vector_from(numbers)
