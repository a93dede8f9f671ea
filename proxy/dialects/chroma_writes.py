"""What a write to Chroma changes, in the words of `indexes/writes`.

    POST   …/collections                Create, its distance among the notes: dimensions come with the first record
    DELETE …/collections/{name}         Drop
    POST   …/collections/{id}/add       Upsert of what is new: a record that is there already stays as it is
    POST   …/collections/{id}/upsert    Upsert of what is new, and then as update
    POST   …/collections/{id}/update    PutVectors (vectors and documents), PutPayload and DropPayload (metadata)
    POST   …/collections/{id}/delete    Delete

A record's document is the point's text, its metadata the payload. Collections are called as the request calls them: by
id where records are written, by name where collections are; `proxy/handles` knows which is which. A collection renamed
or forked, and a database deleted, are refused: only the server knows what is called what from then on. Tested against
chromadb's own server 1.5.9: an upsert keeps what it does not name of a record that is there.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
from msgspec import Raw

from understudy.indexes.points import Payload, Point
from understudy.indexes.writes import (
    Change,
    Create,
    Delete,
    DistanceName,
    Drop,
    DropPayload,
    PutPayload,
    PutVectors,
    Upsert,
    Which,
    Write,
)
from understudy.policies.service import Refused
from understudy.proxy.dialects.base import Malformed, first_byte, given, parsed
from understudy.proxy.dialects.chroma_where import condition_of

if TYPE_CHECKING:
    from understudy.indexes.points import Vector

_DISTANCES: Final[Mapping[str, DistanceName]] = {"cosine": "cosine", "ip": "dot", "l2": "euclid"}


class _Records(msgspec.Struct):
    """Columns of equal length; a column that is not there says nothing of any record."""

    ids: list[str]
    embeddings: list[Raw] | None = None
    metadatas: list[dict[str, Any] | None] | None = None
    documents: list[str | None] | None = None
    uris: list[str | None] | None = None


class _Delete(msgspec.Struct):
    ids: list[str] | None = None
    where: Any = None
    where_document: Any = None
    limit: int | None = None


class _Create(msgspec.Struct):
    name: str
    metadata: dict[str, Any] | None = None
    configuration: dict[str, Any] | None = None
    schema: Raw = Raw()


class _Modify(msgspec.Struct):
    new_name: str | None = None


_RECORDS = msgspec.json.Decoder(_Records)
_DELETE = msgspec.json.Decoder(_Delete)
_CREATE = msgspec.json.Decoder(_Create)
_MODIFY = msgspec.json.Decoder(_Modify)
_NUMBERS = msgspec.json.Decoder(list[float])
_BASE64 = msgspec.json.Decoder(str)


def collection_changes(method: bytes, scope: str, called: str, body: bytes) -> tuple[Change, ...]:
    """What a request about collections changes: `called` is '' where it is about all of `scope`."""
    if method == b"POST" and not called:
        asked = parsed(_CREATE, body)
        return (Change(scope + asked.name, Create(notes={"distance": _distance(asked)})),)
    if method == b"DELETE" and called:
        return (Change(scope + called, Drop()),)
    if method == b"PUT" and called and not parsed(_MODIFY, body).new_name:
        return ()
    raise Refused("unsupported", "only the database knows what its collections are called from now on")


def record_changes(collection: str, act: str, body: bytes) -> tuple[Change, ...]:
    """What `act` on the records of a collection changes."""
    read = _READERS.get(act)
    if read is None:
        raise Refused("unsupported", f"only the database knows what {act[:80]!r} changes")
    return tuple(Change(collection, write) for write in read(body))


def _distance(asked: _Create) -> DistanceName:
    """The distance a collection is made with. Raises Refused where it is said in words that only the server reads."""
    if given(asked.schema):
        raise Refused("unsupported", "what a schema makes of a collection, only the database knows")
    space = (asked.metadata or {}).get("hnsw:space", "l2")
    for kind in ("hnsw", "spann"):
        said = (asked.configuration or {}).get(kind)
        if isinstance(said, dict):
            space = cast("dict[str, Any]", said).get("space") or space
    if space not in _DISTANCES:
        raise Refused("unsupported", "a mirror does not know this distance")
    return _DISTANCES[space]


# --- records -------------------------------------------------------------------------------------------------------


def _add(body: bytes) -> list[Write]:
    return _new(_read(body))


def _upsert(body: bytes) -> list[Write]:
    records = _read(body)
    # what is new is whole after the first of these, and the others say of it what it says already
    return _new(records) + _updated(records)


def _update(body: bytes) -> list[Write]:
    return _updated(_read(body))


def _delete(body: bytes) -> list[Write]:
    asked = parsed(_DELETE, body)
    if asked.limit is not None:
        raise Refused("unsupported", "which points a limit leaves, only the database knows")
    if asked.where is None and asked.where_document is None:
        if asked.ids is None:
            raise Malformed("nothing says which records are meant")
        return [Delete(Which(tuple(asked.ids)))] if asked.ids else []
    ids = None if asked.ids is None else tuple(asked.ids)
    return [Delete(Which(filter=condition_of(asked.where, asked.where_document, ids)))]


_READERS: Final[Mapping[str, Callable[[bytes], list[Write]]]] = {
    "add": _add,
    "upsert": _upsert,
    "update": _update,
    "delete": _delete,
}


def _new(records: _Records) -> list[Write]:
    """The records whole, where none has their ids; of several with one id the first."""
    points: dict[str, Point] = {}
    for called, vector, metadata, document in _rows(records):
        if vector is None:
            raise Refused("unsupported", "a record without a vector is embedded by the database")
        points.setdefault(called, Point(called, vector, _kept(metadata), document or ""))
    return [Upsert(tuple(points.values()), "new")] if points else []


def _updated(records: _Records) -> list[Write]:
    """What is given of each record in the place of what it had; a field of null is taken away."""
    rows = list(_rows(records))
    points: dict[str, Point] = {}
    for called, vector, _, document in rows:
        if vector is not None or document:
            # of several with one id the last word on each part of it
            held = points.get(called, Point(called))
            points[called] = Point(called, held.vector if vector is None else vector, text=document or held.text)
    writes: list[Write] = [PutVectors(tuple(points.values()))] if points else []
    for called, _, metadata, _ in rows:
        if kept := _kept(metadata):
            writes.append(PutPayload(Which((called,)), kept))
        if gone := tuple(key for key, value in (metadata or {}).items() if value is None):
            writes.append(DropPayload(Which((called,)), gone))
    return writes


def _read(body: bytes) -> _Records:
    records = parsed(_RECORDS, body)
    columns = (records.embeddings, records.metadatas, records.documents, records.uris)
    if any(column is not None and len(column) != len(records.ids) for column in columns):
        raise Malformed("the columns differ in length")
    if any(records.uris or ()):
        raise Refused("unsupported", "a mirror keeps no uris")
    if "" in (records.documents or ()):
        raise Refused("unsupported", "a mirror does not tell an empty document from none")
    return records


def _rows(records: _Records) -> Iterable[tuple[str, Vector | None, dict[str, Any] | None, str | None]]:
    nothing = [None] * len(records.ids)
    embeddings = records.embeddings if records.embeddings is not None else nothing
    vectors = [None if raw is None or not given(raw) else _vector(raw) for raw in embeddings]
    return zip(records.ids, vectors, records.metadatas or nothing, records.documents or nothing, strict=True)


def _kept(metadata: Mapping[str, Any] | None) -> Payload:
    """The fields that have a value. Raises Refused for one that is an object: a sparse vector, to the server."""
    kept = {key: value for key, value in (metadata or {}).items() if value is not None}
    if any(isinstance(value, dict) for value in kept.values()):
        raise Refused("unsupported", "a mirror does not know sparse vectors in metadata")
    return kept


def _vector(raw: Raw) -> Vector:
    """One vector [d] float32, from numbers or from the base64 of little-endian float32."""
    # here, since a worker without the local tier reads no writes
    import numpy as np

    if first_byte(raw) == b'"':
        try:
            packed = base64.b64decode(parsed(_BASE64, raw), validate=True)
        except (binascii.Error, ValueError):
            raise Malformed("an embedding is not base64") from None
        if len(packed) % 4:
            raise Malformed("an embedding is no whole number of floats")
        vector = np.frombuffer(packed, "<f4").astype(np.float32)
    else:
        with np.errstate(over="ignore"):
            vector = np.array(parsed(_NUMBERS, raw), np.float32)
    if not len(vector) or not np.isfinite(vector).all():
        raise Refused("unsupported", "a vector that is empty, not finite, or beyond single precision")
    return vector
