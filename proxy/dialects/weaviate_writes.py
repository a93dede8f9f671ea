"""What a write to Weaviate changes, in the words of `indexes/writes`.

    POST objects, batch/objects               Upsert: the ids that the database made up stand in its answer
    PUT | PATCH | DELETE objects/{Class}/{id} Upsert | PutVectors, PutPayload | Delete
    DELETE batch/objects                      Delete of what a `where` lets through
    POST schema, DELETE schema/{Class}        Create, Drop

What the database stores is not always what it is told: it leaves nulls out, writes dates its own way, and gives a bare
vector the only name that a class has. So an answer that tells the object is believed before its request. Objects whose
vectors the database makes itself, references between objects and tenants are refused; once the database has said yes,
they are known to be of a class that has no copy.
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
    DropPayload,
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
    id: str | None = None
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


class Property(msgspec.Struct, rename="camel"):
    """One property of a class; its data type is a list of one word, or of the classes that it refers to."""

    name: str = ""
    data_type: list[str] = []


class Class(msgspec.Struct, rename="camel"):
    """A class, as it is made and as the schema tells it."""

    called: str = msgspec.field(name="class", default="")
    vectorizer: str | None = None
    vector_index_type: str | None = None
    vector_index_config: Fields | None = None
    vector_config: dict[str, Fields] | None = None
    multi_tenancy_config: Fields | None = None
    properties: list[Property] | None = None


_THING = msgspec.json.Decoder(Thing)
_THINGS = msgspec.json.Decoder(list[Thing])
_BATCH = msgspec.json.Decoder(_Batch)
_DELETES = msgspec.json.Decoder(_Deletes)
_DONE = msgspec.json.Decoder(_Done)
_CLASS = msgspec.json.Decoder(Class)


def capital(name: str) -> str:
    """A class as the database calls it, whose names begin with a capital letter."""
    return name[:1].upper() + name[1:]


def put(body: bytes, answer: bytes | None) -> tuple[Change, ...]:
    """One object, under its own id or the one that the answer gives it."""
    asked = parsed(_THING, body)
    return _upserted(asked, None if answer is None else parsed(_THING, answer))


def put_all(body: bytes, answer: bytes | None) -> tuple[Change, ...]:
    """The objects of a batch, those of which the answer says that they were taken."""
    asked = parsed(_BATCH, body).objects
    if answer is None:
        return tuple(change for each in asked for change in _upserted(each, None))
    told = parsed(_THINGS, answer)
    if len(told) != len(asked):
        raise Refused("unsupported", "the answer does not say what became of each object")
    taken = ((each, said) for each, said in zip(asked, told, strict=True) if not errors_of(said))
    return tuple(change for each, said in taken for change in _upserted(each, said))


def replaced(called: str, id: str, body: bytes, answer: bytes | None) -> tuple[Change, ...]:
    """An object put in the place of another."""
    asked = parsed(_THING, body)
    asked.called, asked.id = called, id
    return _upserted(asked, None if answer is None else parsed(_THING, answer or b"{}"))


def merged(called: str, id: str, body: bytes, answer: bytes | None) -> tuple[Change, ...]:
    """The properties and vectors that are given, in the place of what was there; a property that is null goes."""
    asked = parsed(_THING, body)
    if answer is not None and _is_uncopied(asked):
        return ()
    _refuse_uncopied(asked)
    point = point_of(asked, id)
    which = Which((point.id,))
    found: list[Change] = []
    if point.vector is not None or point.named:
        found.append(Change(called, PutVectors((Point(point.id, point.vector, named=point.named),))))
    if point.payload:
        found.append(Change(called, PutPayload(which, point.payload)))
    if gone := tuple(_spelt(name) for name, value in (asked.properties or {}).items() if value is None):
        found.append(Change(called, DropPayload(which, gone)))
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


def created(body: bytes, answer: bytes | None) -> tuple[Change, ...]:
    """A class as it is made: its vectors' dimensions come with the first object, their distances are in the notes."""
    asked = parsed(_CLASS, body)
    told = parsed(_CLASS, answer) if answer else None
    if told is not None and told.called:
        # what was left open the server's own settings have filled in
        asked = told
    if not asked.called:
        raise Malformed("a class without a name")
    try:
        notes = notes_of(asked)
    except Refused:
        if answer is None:
            raise
        # nobody has a copy of it
        return ()
    return (Change(capital(asked.called), Create(notes=notes)),)


def notes_of(told: Class) -> Fields:
    """How a class's vectors are compared: `distance` of the one without a name, `distances` of those that have one.
    Raises Refused for a class that a copy could not stand for."""
    if (told.multi_tenancy_config or {}).get("enabled"):
        raise Refused("unsupported", "it keeps tenants apart, and a mirror knows no tenants")
    for each in told.properties or ():
        if any(name[:1].isupper() for name in each.data_type):
            raise Refused("unsupported", f"its property {each.name!r} refers to other objects")
    named = {name: _distance(said.get("vectorIndexConfig")) for name, said in (told.vector_config or {}).items()}
    for said in (told.vector_config or {}).values():
        _refuse_made(said.get("vectorizer"))
    notes: Fields = {"distances": named} if named else {}
    if not named or told.vectorizer or told.vector_index_config is not None or told.vector_index_type:
        # a class may have both
        _refuse_made({told.vectorizer or "none": {}})
        notes["distance"] = _distance(told.vector_index_config)
    return notes


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


def point_of(thing: Thing, id: str) -> Point:
    """An object as a copy holds it: without what is null, which the database does not keep."""
    payload = {_spelt(name): value for name, value in (thing.properties or {}).items() if value is not None}
    vector = vector_of(thing.vector) if given(thing.vector) and bytes(thing.vector) != b"[]" else None
    named = {name: vector_of(raw) for name, raw in (thing.vectors or {}).items()}
    return Point(canonical_id(id), vector, payload, named=named)


def _distance(config: Any) -> DistanceName:
    fields = cast("Fields", config) if isinstance(config, dict) else {}
    said = fields.get("distance") or "cosine"
    if said not in _DISTANCES:
        raise Refused("unsupported", f"a mirror does not know the distance {said!r}")
    several = fields.get("multivector")
    if isinstance(several, dict) and cast("Fields", several).get("enabled"):
        raise Refused("unsupported", "a mirror does not know vectors of several rows")
    if fields.get("skip"):
        raise Refused("unsupported", "its vectors are not indexed, so that nobody searches them")
    return _DISTANCES[said]


def _refuse_made(maker: Any) -> None:
    """A change of an object's text changes its vector then, and no answer tells it."""
    if not isinstance(maker, dict) or "none" not in maker:
        name = next(iter(cast("Fields", maker)), "") if isinstance(maker, dict) else maker
        raise Refused("unsupported", f"its vectors are made by the database ({name})")


def _upserted(asked: Thing, told: Thing | None) -> tuple[Change, ...]:
    stored = asked if told is None else _stored(asked, told)
    if told is not None and _is_uncopied(stored):
        return ()
    _refuse_uncopied(stored)
    if not stored.id:
        raise Refused("unsupported", "the object's id stands in the answer only")
    if not stored.called:
        raise Malformed("an object without its class")
    point = point_of(stored, stored.id)
    if point.vector is None and not point.named and (told is None or not told.called):
        raise Refused("unsupported", "an object without a vector may be embedded by the database")
    return (Change(capital(stored.called), Upsert((point,))),)


def _stored(asked: Thing, told: Thing) -> Thing:
    """An object as the answer tells it; what that leaves out is as it was asked for."""
    vectors = told if given(told.vector) or told.vectors else asked
    return Thing(
        called=told.called or asked.called,
        id=asked.id or told.id,
        properties=asked.properties if told.properties is None else told.properties,
        vector=vectors.vector,
        vectors=vectors.vectors,
        tenant=asked.tenant or told.tenant,
    )


def _is_uncopied(thing: Thing) -> bool:
    """Whether it is of a class that has no copy (see `notes_of`)."""
    return bool(thing.tenant) or any(map(_is_reference, (thing.properties or {}).values()))


def _refuse_uncopied(thing: Thing) -> None:
    if _is_uncopied(thing):
        raise Refused("unsupported", "a mirror knows no tenants, and no references between objects")


def _spelt(name: str) -> str:
    """A property as the database calls it, whose names begin with a small letter."""
    return name[:1].lower() + name[1:]


def _is_reference(value: Any) -> bool:
    return any(isinstance(each, dict) and "beacon" in each for each in _list(value))


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []
