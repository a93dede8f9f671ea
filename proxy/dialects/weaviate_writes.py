"""What a write to Weaviate changes, in the words of `indexes/writes`.

    POST objects, batch/objects               Upsert: the ids that the database made up stand in its answer
    PUT | PATCH | DELETE objects/{Class}/{id} Upsert | PutVectors, PutPayload | Delete
    DELETE batch/objects                      Delete of what a `where` lets through
    POST schema, DELETE schema/{Class}        Create, Drop

Objects whose vectors the database makes itself, references between objects, tenants and aliases are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import msgspec
from msgspec import Raw

from understudy.indexes.points import Point, canonical_id
from understudy.indexes.writes import (
    Change,
    Create,
    Delete,
    DistanceName,
    Drop,
    PutPayload,
    PutVectors,
    Upsert,
    Which,
)
from understudy.policies.service import Refused
from understudy.proxy.dialects.base import Malformed, given, parsed
from understudy.proxy.dialects.vectors import vector_of
from understudy.proxy.dialects.weaviate_where import condition_of

_DISTANCES: Final[dict[str, DistanceName]] = {"cosine": "cosine", "dot": "dot", "l2-squared": "euclid"}
Fields = dict[str, Any]


class Thing(msgspec.Struct, rename="camel"):
    """One object, as it is written and as the answer tells it."""

    called: str = msgspec.field(name="class", default="")
    id: str = ""
    properties: Fields | None = None
    vector: Raw = Raw()
    vectors: dict[str, Raw] | None = None
    tenant: str | None = None
    result: Fields | None = None


class _Batch(msgspec.Struct):
    objects: list[Thing]


class _Match(msgspec.Struct):
    called: str = msgspec.field(name="class", default="")
    where: Any = None


class _Deletes(msgspec.Struct, rename="camel"):
    match: _Match
    dry_run: bool | None = None


class _Deleted(msgspec.Struct):
    failed: int = 0
    limit: int | None = None
    matches: int | None = None


class _Done(msgspec.Struct):
    results: _Deleted


class _Class(msgspec.Struct, rename="camel"):
    called: str = msgspec.field(name="class", default="")
    vectorizer: str | None = None
    vector_index_config: Fields | None = None
    vector_config: dict[str, Fields] | None = None
    multi_tenancy_config: Fields | None = None


_THING = msgspec.json.Decoder(Thing)
_THINGS = msgspec.json.Decoder(list[Thing])
_BATCH = msgspec.json.Decoder(_Batch)
_DELETES = msgspec.json.Decoder(_Deletes)
_DONE = msgspec.json.Decoder(_Done)
_CLASS = msgspec.json.Decoder(_Class)


def capital(name: str) -> str:
    """A class as the database calls it, whose names begin with a capital letter."""
    return name[:1].upper() + name[1:]


def put(body: bytes, answer: bytes | None) -> tuple[Change, ...]:
    """One object, under its own id or the one that the answer gives it."""
    asked = parsed(_THING, body)
    told = None if answer is None else parsed(_THING, answer)
    return (_upserted(asked, asked.id or ("" if told is None else told.id)),)


def put_all(body: bytes, answer: bytes | None) -> tuple[Change, ...]:
    """The objects of a batch, those of which the answer says that they were taken."""
    asked = parsed(_BATCH, body).objects
    if answer is None:
        return tuple(_upserted(each, each.id) for each in asked)
    told = parsed(_THINGS, answer)
    if len(told) != len(asked):
        raise Refused("unsupported", "the answer does not say what became of each object")
    taken = ((each, said) for each, said in zip(asked, told, strict=True) if not errors_of(said))
    return tuple(_upserted(each, said.id) for each, said in taken)


def replaced(called: str, id: str, body: bytes) -> tuple[Change, ...]:
    """An object put in the place of another."""
    asked = parsed(_THING, body)
    asked.called = called
    return (_upserted(asked, id),)


def merged(called: str, id: str, body: bytes) -> tuple[Change, ...]:
    """The properties and vectors that are given, in the place of what was there."""
    asked = parsed(_THING, body)
    _refuse_tenant(asked)
    point = _point(asked, id)
    found: list[Change] = []
    if point.vector is not None or point.named:
        found.append(Change(called, PutVectors((Point(point.id, point.vector, named=point.named),))))
    if point.payload:
        found.append(Change(called, PutPayload(Which((point.id,)), point.payload)))
    return tuple(found)


def deleted(called: str, id: str) -> tuple[Change, ...]:
    """One object taken away."""
    return (Change(called, Delete(Which((canonical_id(id),)))),)


def deleted_all(body: bytes, answer: bytes | None) -> tuple[Change, ...]:
    """What a `where` lets through; all of it, or nobody knows which."""
    asked = parsed(_DELETES, body)
    if asked.dry_run:
        return ()
    if answer is not None:
        done = parsed(_DONE, answer).results
        if done.failed or done.matches is None or (done.limit is not None and done.matches >= done.limit):
            raise Refused("unsupported", "not everything that was found is known to be deleted")
    condition = condition_of(asked.match.where)
    if condition is None or not asked.match.called:
        raise Malformed("match needs a class and a where")
    return (Change(capital(asked.match.called), Delete(Which(filter=condition))),)


def created(body: bytes) -> tuple[Change, ...]:
    """A class as it is made: its vectors' dimensions come with the first object, their distance is in the notes."""
    asked = parsed(_CLASS, body)
    if not asked.called or (asked.multi_tenancy_config or {}).get("enabled"):
        raise Refused("unsupported", "a mirror knows no tenants")
    if asked.vector_config:
        named = {name: _distance(said.get("vectorIndexConfig")) for name, said in asked.vector_config.items()}
        makers = [said.get("vectorizer") for said in asked.vector_config.values()]
        if not all(isinstance(maker, dict) and "none" in maker for maker in makers):
            raise Refused("unsupported", "vectors that the database makes itself")
        return (Change(capital(asked.called), Create(notes={"distances": named})),)
    if asked.vectorizer not in (None, "none"):
        raise Refused("unsupported", "vectors that the database makes itself")
    return (Change(capital(asked.called), Create(notes={"distance": _distance(asked.vector_index_config)})),)


def dropped(called: str) -> tuple[Change, ...]:
    """The class and everything in it."""
    return (Change(called, Drop()),)


def errors_of(thing: Thing) -> list[str]:
    """What a batch's answer says went wrong with one object."""
    result = thing.result or {}
    errors = result.get("errors")
    if isinstance(errors, dict):
        told = cast("Fields", errors).get("error")
        messages = [str(cast("Fields", each).get("message")) for each in _list(told) if isinstance(each, dict)]
        return messages or ["unsaid"]
    return ["unsaid"] if result.get("status") == "FAILED" else []


def batch_errors(answer: bytes) -> Iterator[str]:
    """The messages of all that a batch's answer says went wrong. Raises Malformed."""
    for thing in parsed(_THINGS, answer):
        yield from errors_of(thing)


def _distance(config: Any) -> DistanceName:
    said = cast("Fields", config).get("distance", "cosine") if isinstance(config, dict) else "cosine"
    if said not in _DISTANCES:
        raise Refused("unsupported", "a distance that a mirror does not know")
    return _DISTANCES[said]


def _upserted(asked: Thing, id: str) -> Change:
    _refuse_tenant(asked)
    if not id:
        raise Refused("unsupported", "the object's id stands in the answer only")
    if not asked.called:
        raise Malformed("an object without its class")
    point = _point(asked, id)
    if point.vector is None and not point.named:
        raise Refused("unsupported", "an object without a vector may be embedded by the database")
    return Change(capital(asked.called), Upsert((point,)))


def _point(asked: Thing, id: str) -> Point:
    payload = asked.properties or {}
    if any(_is_reference(value) for value in payload.values()):
        raise Refused("unsupported", "a mirror knows no references between objects")
    vector = vector_of(asked.vector) if given(asked.vector) and bytes(asked.vector) != b"[]" else None
    named = {name: vector_of(raw) for name, raw in (asked.vectors or {}).items()}
    return Point(canonical_id(id), vector, payload, named=named)


def _refuse_tenant(asked: Thing) -> None:
    if asked.tenant:
        raise Refused("unsupported", "a mirror knows no tenants")


def _is_reference(value: Any) -> bool:
    return any(isinstance(each, dict) and "beacon" in each for each in _list(value))


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []
