"""What a write to Pinecone changes, in the words of `indexes/writes`.

    POST   vectors/upsert            Upsert: whole records, in the place of what had their ids
    POST   vectors/update            PutVectors and PutPayload of one record, or PutPayload of a filter's
    POST   vectors/delete            Delete: by ids, by a filter, or everything (DELETE, with the same words in the URL)
    POST   namespaces, DELETE namespaces/{n}    Create, Drop

A namespace is a collection, and is there as soon as something is written to it. Sparse values beside a vector are left
out, since a search that names none scores by the vector alone; records that have nothing else, those that Pinecone
embeds itself, imports, and filters that may be read in two ways are refused.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw

from understudy.indexes.points import Point
from understudy.indexes.writes import Change, Create, Delete, Drop, PutPayload, PutVectors, Upsert, Which, Write
from understudy.policies.service import Refused
from understudy.proxy.dialects.base import Malformed, given, parsed
from understudy.proxy.dialects.pinecone_filter import translated
from understudy.proxy.dialects.vectors import vector_of

EVERYTHING: Final[dict[str, Any]] = {"must": []}
"""A filter that lets every point through."""


class _Record(msgspec.Struct):
    id: str
    values: Raw = Raw()
    metadata: dict[str, Any] | None = None


class _Upsert(msgspec.Struct):
    vectors: list[_Record]


class _Update(msgspec.Struct, rename="camel"):
    id: str | None = None
    values: Raw = Raw()
    set_metadata: dict[str, Any] | None = None
    filter: dict[str, Any] | None = None
    dry_run: bool | None = None
    other_set_metadata: dict[str, Any] | None = msgspec.field(default=None, name="set_metadata")
    other_dry_run: bool | None = msgspec.field(default=None, name="dry_run")


class _Delete(msgspec.Struct, rename="camel"):
    ids: list[str] | None = None
    delete_all: bool | None = None
    filter: dict[str, Any] | None = None
    other_delete_all: bool | None = msgspec.field(default=None, name="delete_all")


class _Named(msgspec.Struct):
    name: str


_UPSERT = msgspec.json.Decoder(_Upsert)
_UPDATE = msgspec.json.Decoder(_Update)
_DELETE = msgspec.json.Decoder(_Delete)
_NAMED = msgspec.json.Decoder(_Named)


def upserted(body: bytes) -> list[Write]:
    """The records of `vectors/upsert`."""
    points = tuple(_point(record) for record in parsed(_UPSERT, body).vectors)
    return [Upsert(points)] if points else []


def updated(body: bytes) -> list[Write]:
    """What `vectors/update` writes into one record, or into all that a filter lets through."""
    asked = parsed(_UPDATE, body)
    payload = asked.set_metadata or asked.other_set_metadata
    if asked.id is None:
        if asked.filter is None:
            raise Malformed("neither `id` nor `filter` says which records are meant")
        if asked.dry_run or asked.other_dry_run or not payload:
            return []
        return [PutPayload(Which(filter=_certain(asked.filter)), payload)]
    writes: list[Write] = []
    if has_numbers(asked.values):
        writes.append(PutVectors((Point(asked.id, vector_of(asked.values)),)))
    if payload:
        writes.append(PutPayload(Which((asked.id,)), payload))
    return writes


def deleted(body: bytes) -> list[Write]:
    """What `vectors/delete` takes away."""
    asked = parsed(_DELETE, body)
    return deletes(asked.ids, asked.filter, everything=bool(asked.delete_all or asked.other_delete_all))


def deletes(ids: list[str] | None, filter: dict[str, Any] | None, *, everything: bool) -> list[Write]:
    """The same by its words, of which one is to be there."""
    if sum((everything, bool(ids), bool(filter))) > 1:
        raise Malformed("only one of `ids`, `deleteAll` and `filter` may be there")
    if everything:
        return [Delete(Which(filter=EVERYTHING))]
    if filter:
        return [Delete(Which(filter=_certain(filter)))]
    return [Delete(Which(tuple(ids)))] if ids else []


def namespace_changes(method: bytes, name: str, body: bytes) -> tuple[Change, ...]:
    """A namespace made ('' where its name stands in the body) or taken away."""
    if method == b"POST" and not name:
        return (Change(parsed(_NAMED, body).name, Create()),)
    if method == b"DELETE" and name:
        return (Change(name, Drop()),)
    raise Refused("unsupported", "only the database knows what becomes of this namespace")


def has_numbers(raw: Raw) -> bool:
    """Whether a vector was given: `[]` is none."""
    return given(raw) and bytes(memoryview(raw)[1:64]).lstrip()[:1] != b"]"


def _point(record: _Record) -> Point:
    if not has_numbers(record.values):
        raise Refused("unsupported", "a mirror does not know records that have sparse values only")
    return Point(record.id, vector_of(record.values), record.metadata or {})


def _certain(filter: dict[str, Any]) -> dict[str, Any]:
    """What a filter means, where it means one thing only."""
    meaning, other = translated(filter)
    if other is not None or meaning is None:
        raise Refused("unsupported_filter", "what the filter does to records without its fields is not certain")
    return meaning
