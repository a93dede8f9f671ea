"""What a write to Qdrant changes, in the words of `indexes/writes`.

    PUT    collections/{c}                  Create        PUT  …/points           Upsert        POST …/points/batch
    DELETE collections/{c}                  Drop          POST …/points/delete    Delete          a list of the others,
    PUT    …/points/vectors                 PutVectors    POST …/points/vectors/delete  DropVectors    in their order
    POST   …/points/payload                 PutPayload    PUT  …/points/payload         PutPayload, replacing
    POST   …/points/payload/delete | clear  DropPayload

Settings of a collection, payload indexes and snapshots taken change no point: (). Sparse vectors, multivectors, texts
that the database is to embed, shards and what depends on what is stored there already are refused: only the database
knows what becomes of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import Meta, Raw

from understudy.indexes.faults import UnknownFilter
from understudy.indexes.points import Payload, Point, PointId, canonical_id
from understudy.indexes.reach import Path, parse_path
from understudy.indexes.writes import (
    Change,
    Create,
    Delete,
    DistanceName,
    Drop,
    DropPayload,
    DropVectors,
    PutPayload,
    PutVectors,
    Upsert,
    VectorShape,
    Which,
    Write,
)
from understudy.policies.service import Refused, Request
from understudy.proxy.dialects.base import Malformed, first_byte, given, parsed

if TYPE_CHECKING:
    from understudy.indexes.points import Vector

OPERATIONS_MAX: Final = 10_000
"""The most operations of one `points/batch`."""

_UNDER: Final = re.compile(rb"(?:^|/)collections(?:/([^/]+)(?:/(.+?))?)?/?$")
# Beside the points: what a collection is served by, and copies taken of it.
_IDLE: Final = re.compile(rb"PATCH |(?:PUT|DELETE) index(?:/.*)?|POST snapshots|DELETE snapshots/.*")
_DISTANCES: Final[Mapping[str, DistanceName]] = {"Cosine": "cosine", "Dot": "dot", "Euclid": "euclid"}
_MODES: Final[Mapping[str, Literal["", "new", "existing"]]] = {
    "upsert": "",
    "insert_only": "new",
    "update_only": "existing",
}

Id = Annotated[int, Meta(ge=0)] | str


class _Sharded(msgspec.Struct, kw_only=True):
    shard_key: Raw = Raw()
    update_filter: Raw = Raw()


class _Chosen(_Sharded, kw_only=True):
    points: list[Id] | None = None
    filter: dict[str, Any] | None = None


class _PointStruct(msgspec.Struct):
    id: Id
    vector: Raw = Raw()
    payload: dict[str, Any] | None = None


class _Columns(msgspec.Struct):
    ids: list[Id]
    vectors: Raw
    payloads: list[dict[str, Any] | None] | None = None


class _Upsert(_Sharded, kw_only=True):
    points: list[_PointStruct] | None = None
    batch: _Columns | None = None
    update_mode: str | None = None


class _Vectors(_Sharded, kw_only=True):
    points: list[_PointStruct]


class _DropVectors(_Chosen, kw_only=True):
    vector: list[str]


class _SetPayload(_Chosen, kw_only=True):
    payload: dict[str, Any]
    key: str | None = None


class _DropPayload(_Chosen, kw_only=True):
    keys: list[str]


class _Operations(msgspec.Struct):
    operations: list[dict[str, Raw]]


class _VectorParams(msgspec.Struct):
    size: Annotated[int, Meta(ge=1)]
    distance: str
    multivector_config: Raw = Raw()
    datatype: str | None = None


class _Create(msgspec.Struct):
    vectors: Raw = Raw()
    sparse_vectors: dict[str, Raw] | None = None
    init_from: Raw = Raw()
    sharding_method: str | None = None


_CHOSEN = msgspec.json.Decoder(_Chosen)
_UPSERT = msgspec.json.Decoder(_Upsert)
_PUT_VECTORS = msgspec.json.Decoder(_Vectors)
_DROP_VECTORS = msgspec.json.Decoder(_DropVectors)
_SET_PAYLOAD = msgspec.json.Decoder(_SetPayload)
_DROP_PAYLOAD = msgspec.json.Decoder(_DropPayload)
_OPERATIONS = msgspec.json.Decoder(_Operations)
_CREATE = msgspec.json.Decoder(_Create)
_ONE_SHAPE = msgspec.json.Decoder(_VectorParams)
_SHAPES = msgspec.json.Decoder(dict[str, _VectorParams])
_NAMED = msgspec.json.Decoder(dict[str, Raw])
_COLUMN = msgspec.json.Decoder(list[Raw])
_NUMBERS = msgspec.json.Decoder(list[float])


@dataclass(frozen=True, slots=True)
class _Vectored:
    """The vectors of one point: the one without a name, and the others."""

    bare: Vector | None
    named: Mapping[str, Vector]


def changes_of(request: Request) -> tuple[Change, ...]:
    """What a request changes, in order. Raises Malformed, or Refused where only the database can tell."""
    match = _UNDER.search(request.path)
    if match is None or request.method in (b"GET", b"HEAD", b"OPTIONS"):
        return ()
    rest: bytes = match[2] or b""
    collection = unquote_to_bytes(match[1] or b"").decode("utf-8", "replace")
    act = request.method + b" " + rest
    read = _READERS.get(act)
    if read is not None and collection:
        return tuple(Change(collection, write) for write in read(request.body))
    if collection and _IDLE.fullmatch(act):
        return ()
    raise Refused("unsupported", f"only the database knows what {_shown(act)} changes")


def _shown(act: bytes) -> str:
    return act.decode("latin-1")[:80]


# --- points --------------------------------------------------------------------------------------------------------


def _upsert(body: bytes | Raw) -> list[Write]:
    asked = parsed(_UPSERT, body)
    _refuse_unless_plain(asked)
    only = _MODES.get(asked.update_mode or "upsert")
    if only is None:
        raise Malformed(f"update_mode {asked.update_mode!r} is none")
    if (asked.points is None) == (asked.batch is None):
        raise Malformed("one of `points` and `batch` is to be there")
    if asked.batch is not None:
        points = _from_columns(asked.batch)
    else:
        points = [_point(point.id, _vectored(point.vector), point.payload) for point in asked.points or ()]
    return [Upsert(tuple(points), only)] if points else []


def _from_columns(batch: _Columns) -> list[Point]:
    """The points of a batch in columns: ids, vectors and payloads of equal length."""
    vectors = _vector_columns(batch.vectors, len(batch.ids))
    payloads = batch.payloads if batch.payloads is not None else [None] * len(batch.ids)
    if not len(batch.ids) == len(vectors) == len(payloads):
        raise Malformed("ids, vectors and payloads differ in number")
    return [_point(*row) for row in zip(batch.ids, vectors, payloads, strict=True)]


def _vector_columns(raw: Raw, count: int) -> list[_Vectored]:
    if first_byte(raw) != b"{":
        return [_vectored(vector) for vector in parsed(_COLUMN, raw)]
    columns = {name: parsed(_COLUMN, column) for name, column in parsed(_NAMED, raw).items()}
    if any(len(column) != count for column in columns.values()):
        raise Malformed("ids and vectors differ in number")
    return [_named({name: column[row] for name, column in columns.items()}) for row in range(count)]


def _put_vectors(body: bytes | Raw) -> list[Write]:
    asked = parsed(_PUT_VECTORS, body)
    _refuse_unless_plain(asked)
    points = tuple(_point(point.id, _vectored(point.vector), None) for point in asked.points)
    return [PutVectors(points)] if points else []


def _drop_vectors(body: bytes | Raw) -> list[Write]:
    asked = parsed(_DROP_VECTORS, body)
    return [DropVectors(which, tuple(asked.vector)) for which in _which(asked)]


def _delete(body: bytes | Raw) -> list[Write]:
    return [Delete(which) for which in _which(parsed(_CHOSEN, body))]


# --- payloads ------------------------------------------------------------------------------------------------------


def _set_payload(body: bytes | Raw) -> list[Write]:
    asked = parsed(_SET_PAYLOAD, body)
    given_fields = {name: value for name, value in asked.payload.items() if value is not None}
    key, gone = "" if asked.key is None else _key_of(_path(asked.key)), asked.payload.keys() - given_fields.keys()
    if gone and asked.points is None:
        raise Refused("unsupported", "which points a filter lets through before fields of null are taken from them")
    writes: list[Write] = []
    for which in _which(asked):
        writes.append(PutPayload(which, given_fields, key))
        # a null takes the field away
        below = _path(asked.key) if asked.key else ()
        writes += [DropPayload(which, tuple(_key_of((*below, name)) for name in sorted(gone)))] if gone else []
    return writes


def _overwrite_payload(body: bytes | Raw) -> list[Write]:
    asked = parsed(_SET_PAYLOAD, body)
    if asked.key is not None:
        raise Refused("unsupported", "what overwriting below a key leaves is not certain")
    return [PutPayload(which, asked.payload, replace=True) for which in _which(asked)]


def _drop_payload(body: bytes | Raw) -> list[Write]:
    asked = parsed(_DROP_PAYLOAD, body)
    # no element is taken from an array by its place: the next one would be gone if the write were repeated
    keys = tuple(_key_of(path) for path in map(_path, asked.keys) if not isinstance(path[-1], int))
    # no keys at all are no fields to take, while a DropPayload without any takes all of them
    return [DropPayload(which, keys) for which in _which(asked)] if keys else []


def _clear_payload(body: bytes | Raw) -> list[Write]:
    return [DropPayload(which) for which in _which(parsed(_CHOSEN, body))]


# --- several, and whole collections --------------------------------------------------------------------------------


def _batch(body: bytes | Raw) -> list[Write]:
    operations = parsed(_OPERATIONS, body).operations
    if len(operations) > OPERATIONS_MAX:
        raise Refused("unsupported", f"more than {OPERATIONS_MAX} operations at once")
    writes: list[Write] = []
    for operation in operations:
        if len(operation) != 1:
            raise Malformed("an operation has one name")
        name, asked = next(iter(operation.items()))
        read = _OPERATION_READERS.get(name)
        if read is None:
            raise Refused("unsupported", f"only the database knows what {name[:40]!r} changes")
        writes += read(asked)
    return writes


def _create(body: bytes | Raw) -> list[Write]:
    asked = parsed(_CREATE, body)
    for thing, is_there in {
        "sparse vectors": bool(asked.sparse_vectors),
        "a collection made of another": given(asked.init_from),
        "shards by key": asked.sharding_method == "custom",
    }.items():
        if is_there:
            raise Refused("unsupported", f"a mirror does not know {thing}")
    if not given(asked.vectors):
        return [Create()]
    fields = parsed(_NAMED, asked.vectors)
    if first_byte(fields.get("size", Raw())).isdigit():
        return [Create({"": _shape(parsed(_ONE_SHAPE, asked.vectors))})]
    return [Create({name: _shape(params) for name, params in parsed(_SHAPES, asked.vectors).items()})]


def _shape(params: _VectorParams) -> VectorShape:
    distance = _DISTANCES.get(params.distance)
    if distance is None:
        raise Refused("unsupported", f"a mirror does not know the distance {params.distance[:40]!r}")
    if given(params.multivector_config):
        raise Refused("unsupported", "a mirror does not know multivectors")
    if params.datatype not in (None, "float32"):
        raise Refused("unsupported", f"vectors kept as {params.datatype} are others than those that were sent")
    return VectorShape(params.size, distance)


def _drop(_body: bytes | Raw) -> list[Write]:
    return [Drop()]


_Reader = Callable[[bytes | Raw], list[Write]]

_READERS: Final[Mapping[bytes, _Reader]] = {
    b"PUT ": _create,
    b"DELETE ": _drop,
    b"PUT points": _upsert,
    b"POST points/delete": _delete,
    b"PUT points/vectors": _put_vectors,
    b"POST points/vectors/delete": _drop_vectors,
    b"POST points/payload": _set_payload,
    b"PUT points/payload": _overwrite_payload,
    b"POST points/payload/delete": _drop_payload,
    b"POST points/payload/clear": _clear_payload,
    b"POST points/batch": _batch,
}
_OPERATION_READERS: Final[Mapping[str, _Reader]] = {
    "upsert": _upsert,
    "delete": _delete,
    "update_vectors": _put_vectors,
    "delete_vectors": _drop_vectors,
    "set_payload": _set_payload,
    "overwrite_payload": _overwrite_payload,
    "delete_payload": _drop_payload,
    "clear_payload": _clear_payload,
}


# --- parts ---------------------------------------------------------------------------------------------------------


def _refuse_unless_plain(asked: _Sharded) -> None:
    if given(asked.shard_key):
        # the same id may be in several shards, and only their database knows which is meant
        raise Refused("unsupported", "a mirror does not know shards by key")
    if given(asked.update_filter):
        raise Refused("unsupported", "which points an update_filter lets through, only the database knows")


def _which(asked: _Chosen) -> Sequence[Which]:
    """The points that are meant, as one Which; none for an empty list of ids."""
    _refuse_unless_plain(asked)
    if asked.points is not None:
        return [Which(tuple(map(canonical_id, asked.points)))] if asked.points else []
    if asked.filter is None:
        raise Malformed("neither `points` nor `filter` says which points are meant")
    return [Which(filter=asked.filter)]


def _path(key: str) -> Path:
    try:
        return parse_path(key)
    except UnknownFilter as fault:
        raise Malformed(fault.reason) from None


def _key_of(path: Path) -> str:
    """A path with every name in quotes, so that no field with dots in its own name is meant."""
    if any(isinstance(step, str) and '"' in step for step in path):
        raise Refused("unsupported", "a field with a quotation mark in its name")
    steps = (f'."{step}"' if isinstance(step, str) else "[]" if step is None else f"[{step}]" for step in path)
    return "".join(steps).removeprefix(".")


def _point(id: PointId, vectored: _Vectored, payload: Payload | None) -> Point:
    # a null in a payload is a field without a value, and is kept as one
    return Point(canonical_id(id), vectored.bare, payload or {}, named=vectored.named)


def _vectored(raw: Raw) -> _Vectored:
    """A point's `vector`: a list of numbers, or such lists by name."""
    if not given(raw):
        raise Malformed("a point without `vector`")
    return _named(parsed(_NAMED, raw)) if first_byte(raw) == b"{" else _Vectored(_vector(raw), {})


def _named(vectors: Mapping[str, Raw]) -> _Vectored:
    named = {name: _vector(raw) for name, raw in vectors.items()}
    return _Vectored(named.pop("", None), named)


def _vector(raw: Raw) -> Vector:
    """One vector [d] float32. Raises Refused for what is none: sparse, of several rows, or a text to be embedded."""
    # here, since a worker without the local tier reads no writes
    import numpy as np

    if first_byte(raw) != b"[":
        raise Refused("unsupported", "a mirror does not know sparse vectors, nor what the database embeds itself")
    if bytes(memoryview(raw)[1:64]).lstrip()[:1] == b"[":
        raise Refused("unsupported", "a mirror does not know multivectors")
    with np.errstate(over="ignore"):
        vector = np.array(parsed(_NUMBERS, raw), np.float32)
    if not len(vector) or not np.isfinite(vector).all():
        raise Refused("unsupported", "a vector that is empty, or beyond single precision")
    return vector
