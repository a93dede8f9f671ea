"""Put what changes a collection into bytes: points as they are kept, and the batches that the journal holds.

A batch says what is, not what to do: whole points, and the keys of points that are gone. So it may be applied twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np

from understudy.indexes.faults import BadPoint, CorruptIndex
from understudy.indexes.points import Payload, Point, Vector, id_key, key_id

PAYLOAD_BYTES_MAX: Final = 16 * 2**20

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A point as it is kept: `key` of its id, `payload` as JSON, each vector by its name as float32 bytes."""

    key: bytes
    payload: bytes
    text: str
    source: str
    version: int
    vectors: dict[str, bytes]

    @property
    def bytes_held(self) -> int:
        """About how much memory it takes."""
        return (
            _RECORD_BYTES
            + len(self.key)
            + len(self.payload)
            + 4 * (len(self.text) + len(self.source))
            + sum(map(len, self.vectors.values()))
        )


_RECORD_BYTES: Final = 400


class KeptShape(msgspec.Struct, frozen=True, array_like=True):
    """What the vectors of one name have in common: `writes.VectorShape`, as it is kept."""

    dimensions: int
    distance: str = "cosine"
    space: str = ""


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """One write: points put whole, keys of points taken away, and the vectors' shapes and notes where they changed."""

    puts: list[Record] = []
    drops: list[bytes] = []
    shapes: dict[str, KeptShape] | None = None
    notes: dict[str, Any] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return not self.puts and not self.drops and self.shapes is None and self.notes is None


_batch_bytes = msgspec.msgpack.Encoder().encode
_batch_of = msgspec.msgpack.Decoder(Batch).decode


def batch_bytes(batch: Batch) -> bytes:
    """A batch as the journal holds it. Raises BadPoint for a text or source that is not valid Unicode."""
    try:
        return _batch_bytes(batch)
    except UnicodeEncodeError as error:
        raise BadPoint("a text or source is not valid Unicode") from error


def batch_of(body: bytes) -> Batch:
    """The batch that `batch_bytes` made `body` of. Raises CorruptIndex."""
    try:
        return _batch_of(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptIndex(f"a journal entry is no batch: {error}") from error


def payload_bytes(point_id: object, payload: Payload) -> bytes:
    """A payload as JSON. Raises BadPoint."""
    try:
        encoded = _encode(payload)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadPoint(f"point {point_id!r}: its payload is not JSON: {error}") from error
    if len(encoded) > PAYLOAD_BYTES_MAX:
        raise BadPoint(f"point {point_id!r}: a payload of {len(encoded)} bytes, more than {PAYLOAD_BYTES_MAX}")
    return encoded


def payload_of(encoded: bytes) -> Payload:
    """The payload that `payload_bytes` encoded, made anew each time: whoever gets it may change it."""
    return _decode(encoded)


def record_of(point: Point, vectors: Mapping[str, Vector], *, key: bytes | None = None) -> Record:
    """A point as it is kept, with these checked `vectors`, under `key` or the key of its id. Raises BadPoint, BadId."""
    return Record(
        key=id_key(point.id) if key is None else key,
        payload=payload_bytes(point.id, point.payload),
        text=point.text,
        source=point.source,
        version=point.version,
        vectors={name: vector.tobytes() for name, vector in vectors.items()},
    )


def point_of(record: Record, *, with_vectors: bool) -> Point:
    """A kept point as it was given."""
    vectors = {name: vector_of(blob) for name, blob in record.vectors.items()} if with_vectors else {}
    return Point(
        id=key_id(record.key),
        vector=vectors.pop("", None),
        payload=payload_of(record.payload),
        text=record.text,
        source=record.source,
        version=record.version,
        named=vectors,
    )


def vectors_of(point: Point) -> dict[str, Vector]:
    """The vectors that a point has, by name."""
    return {**({} if point.vector is None else {"": point.vector}), **point.named}


def vector_of(blob: bytes) -> Vector:
    """Float32 [d] of its bytes."""
    return np.frombuffer(blob, np.float32)
