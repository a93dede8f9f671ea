"""What changes a collection, said alike by every dialect: points put or taken away, payloads written, collections made.

A dialect reads one request as a list of Changes, the database applies it, and a mirror applies the same list. What a
request would do that none of these words say is nobody's guess: the reader refuses, and the mirror asks the database.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias, cast

from understudy.indexes.faults import BadQuestion
from understudy.indexes.points import Payload, Point, PointId

DistanceName: TypeAlias = Literal["cosine", "dot", "euclid"]


@dataclass(frozen=True, slots=True)
class Which:
    """The points that are meant: those of `ids`, or all that `filter` lets through (Qdrant's JSON, or a Condition)."""

    ids: tuple[PointId, ...] = ()
    filter: object = None


@dataclass(frozen=True, slots=True)
class Upsert:
    """Points put whole, in the place of what had their ids. `only` limits it to ids that are new, or that exist."""

    points: tuple[Point, ...]
    only: Literal["", "new", "existing"] = ""


@dataclass(frozen=True, slots=True)
class Delete:
    """Points taken away whole."""

    which: Which


@dataclass(frozen=True, slots=True)
class PutVectors:
    """The vectors that each point names, and its text where it brings one; payloads and other vectors stay."""

    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class DropVectors:
    """`names` of vectors ("" is the one without a name) taken from points that stay."""

    which: Which
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PutPayload:
    """`payload` written into the points, or below their `key`: field by field, or in the place of everything there."""

    which: Which
    payload: Payload
    key: str = ""
    replace: bool = False


@dataclass(frozen=True, slots=True)
class DropPayload:
    """The fields `keys` taken from the points; all of them where it is empty."""

    which: Which
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VectorShape:
    """What the vectors of one name have in common; `space` names the vector space they live in, where that is known."""

    dimensions: int
    distance: DistanceName = "cosine"
    space: str = ""


UNFINISHED: Final = "unfinished"
"""True among the notes of a collection that is still being filled, and of which nobody asks anything until that is
said to be over: its generations go without graphs, which take most of the time and are built anew each time."""


LEFT_OUT: Final = "left_out"
"""Among the notes of a collection, the fields of its database's documents that it cannot hold: sparse vectors, say. No
point of it has them among its payload."""


@dataclass(frozen=True, slots=True)
class Create:
    """The collection, with its vectors by name ("" is the one without a name); empty where the first point says it, and
    `distance` among the notes how they are compared."""

    vectors: Mapping[str, VectorShape] = field(default_factory=dict[str, VectorShape])
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Drop:
    """The collection and everything in it."""


Write: TypeAlias = Upsert | Delete | PutVectors | DropVectors | PutPayload | DropPayload | Create | Drop


@dataclass(frozen=True, slots=True)
class Change:
    """One write to one collection, in the order in which the database was asked for it."""

    collection: str
    write: Write


def fitted(write: Write, names: Collection[str], without: Collection[str] = ()) -> Write:
    """`write` to a collection whose vectors are called `names`, where only its mapping tells vectors from numbers, and
    which holds nothing of the fields `without`.

    Elasticsearch's and Milvus' documents hold their vectors among their fields. Dialects name what may be one by its
    path, and leave it among the payload: what is in `names` is a vector and no payload, everything else is payload and
    no vector. Raises BadQuestion for a vector written in a way that nobody here has read.
    """
    if isinstance(write, Upsert):
        return replace(write, points=tuple(_fitted(point, names, without) for point in write.points))
    if isinstance(write, PutVectors):
        points = (_fitted(point, names, without) for point in write.points)
        return PutVectors(tuple(point for point in points if point.named or point.vector is not None or point.text))
    if isinstance(write, PutPayload) and not write.key:
        return replace(write, payload=_without(write.payload, names, without))
    return write


def sole(write: Write, names: Collection[str]) -> Write:
    """`write` to a collection whose vectors are called `names`: where there is only one, and it has a name, a vector
    that is written without one is that, as Weaviate has it."""
    if not isinstance(write, Upsert | PutVectors) or len(names) != 1 or "" in names:
        return write
    (name,) = names
    if all(point.vector is None for point in write.points):
        return write
    return replace(write, points=tuple(_called(point, name) for point in write.points))


def _called(point: Point, name: str) -> Point:
    if point.vector is None:
        return point
    return replace(point, vector=None, named={**point.named, name: point.vector})


def _fitted(point: Point, names: Collection[str], without: Collection[str]) -> Point:
    named = {name: vector for name, vector in point.named.items() if name in names}
    return replace(point, named=named, payload=_without(point.payload, names, without))


def _without(payload: Payload, names: Collection[str], without: Collection[str]) -> Payload:
    """`payload` less what is a vector, and what is left out."""
    if without:
        payload = {field: value for field, value in payload.items() if field not in without}
    for name in names:
        payload = _less(payload, name, name)
    return payload


def _less(payload: Payload, path: str, name: str) -> Payload:
    if path in payload:
        if not isinstance(payload[path], list | None):
            raise BadQuestion(f"the vector {name!r} is no list of numbers")
        return {field: value for field, value in payload.items() if field != path}
    head, dot, rest = path.partition(".")
    inner = payload.get(head)
    if not dot or not isinstance(inner, dict):
        return payload
    return {**payload, head: _less(cast("Payload", inner), rest, name)}
