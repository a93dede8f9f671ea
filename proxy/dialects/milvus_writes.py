"""What a write to Milvus changes, in the words of `indexes/writes`.

    entities/insert, entities/upsert    Upsert of the rows that the answer names; the ids stand in it
    entities/delete                     Delete: of ids, or of what a filter lets through
    collections/create, /drop           Create, Drop

A row is a payload; what may be a vector in it (a list of numbers) is named as well, and whoever knows the collection's
vectors passes what is read here through `understudy.indexes.writes.fitted`. A field that is null is one that is not
there, to Milvus. The primary key is called `id`, as the quick way of making a collection calls it: a collection with
another is not mirrored, since answers would have to call it so. Sparse vectors, and others that are not of 32-bit
floats, are left out of a collection that has such ones beside. Functions that make vectors of floats, upserts of single
fields, partitions that are dropped, aliases and imports are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import msgspec
from msgspec import Raw

from understudy.indexes.points import Point, PointId
from understudy.indexes.writes import LEFT_OUT, Create, Delete, DistanceName, Drop, Upsert, VectorShape, Which, Write
from understudy.policies.service import Refused
from understudy.proxy.dialects.base import given, parsed
from understudy.proxy.dialects.milvus_filter import condition_of, ids_of
from understudy.proxy.dialects.vectors import vector_from

if TYPE_CHECKING:
    from understudy.indexes.points import Vector

PRIMARY: Final = "id"
METRICS: Final[dict[str, DistanceName]] = {"COSINE": "cosine", "IP": "dot", "L2": "euclid"}
NUMBERS_MIN: Final = 2
_VECTOR: Final = "FloatVector"
_OTHER_VECTORS: Final = frozenset(
    {"Float16Vector", "BFloat16Vector", "Int8Vector", "BinaryVector", "SparseFloatVector"}
    | {"ArrayOfVector", "ArrayOfStruct"}
)
Row = dict[str, Any]


class FieldTold(NamedTuple):
    """A field of a collection: its name and type, the dimensions of its vectors, and whether it is the key."""

    name: str
    type: str
    dim: object = None
    is_primary: bool = False


class _Rows(msgspec.Struct, rename="camel"):
    data: list[Row] | Row
    partial_update: bool | None = None


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


class _Function(msgspec.Struct, rename="camel"):
    output_field_names: list[str] = []


class _Schema(msgspec.Struct):
    fields: list[_Field]
    functions: list[_Function] | None = None


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


def point_of(called: PointId, row: Row) -> Point:
    """A row as it is kept under its id: what is there of it but the key, and whatever may be a vector by name, too."""
    payload = {name: value for name, value in row.items() if name != PRIMARY and value is not None}
    return Point(called, None, payload, named=dict(_vectors(payload)))


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
    # only a key that is a number is told as one; where it is told as a text, the row knows
    each = zip(ids, rows, strict=True)
    return _upsert([called if isinstance(called, int) else row.get(PRIMARY, called) for called, row in each], rows)


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
    metrics = {str(each.get("fieldName")): each.get("metricType") for each in asked.index_params or ()}
    made = {name for each in schema.functions or () for name in each.output_field_names}
    told = [
        FieldTold(each.field_name, each.data_type, (each.element_type_params or {}).get("dim"), bool(each.is_primary))
        for each in schema.fields
    ]
    return [shaped(told, metrics, made)]


def shaped(fields: Iterable[FieldTold], metrics: Mapping[str, object], made: Collection[str] = ()) -> Create:
    """A collection of these fields; `metrics` by the vectors' names, `made` are those that the database's own functions
    make. Raises Refused for one that a copy could not stand for."""
    vectors: dict[str, VectorShape] = {}
    others: list[str] = []
    for each in fields:
        if each.is_primary and each.name != PRIMARY:
            raise Refused("unsupported", f"a primary key by another name than {PRIMARY!r}: {each.name!r}")
        if each.type in _OTHER_VECTORS:
            others.append(each.name)
        if each.type != _VECTOR:
            continue
        if each.name in made:
            raise Refused("unsupported", f"the database itself makes the vector {each.name!r} of a row")
        if not str(each.dim).isdecimal():
            raise Refused("unsupported", f"nobody says how many dimensions {each.name!r} has")
        vectors[each.name] = VectorShape(int(str(each.dim)), _metric(metrics.get(each.name)))
    if not vectors:
        raise Refused("unsupported", "it has no vectors of 32-bit floats, and a mirror knows no others")
    return Create(vectors, {LEFT_OUT: others} if others else {})


def dropped(_body: bytes) -> list[Write]:
    """The collection and everything in it."""
    return [Drop()]


def _metric(said: Any) -> DistanceName:
    if not isinstance(said, str) or said.upper() not in METRICS:
        raise Refused("unsupported", "a distance that is not said, or that a mirror does not know")
    return METRICS[said.upper()]


def _rows(body: bytes) -> list[Row]:
    asked = parsed(_ROWS, body)
    if asked.partial_update:
        raise Refused("unsupported", "rows of which the database keeps what they do not say")
    return asked.data if isinstance(asked.data, list) else [asked.data]


def _upsert(ids: Sequence[PointId], rows: Sequence[Row]) -> list[Write]:
    points = tuple(point_of(called, row) for called, row in zip(ids, rows, strict=True))
    return [Upsert(points)] if points else []


def _vectors(row: Row) -> Iterator[tuple[str, Vector]]:
    for name, value in row.items():
        if isinstance(value, list):
            numbers = cast("list[Any]", value)
            if len(numbers) >= NUMBERS_MIN and all(type(each) in (int, float) for each in numbers):
                # numbers that are too large for a vector are none
                with contextlib.suppress(Refused):
                    yield name, vector_from(numbers)
