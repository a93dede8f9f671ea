"""Work out what a write makes of a collection, before anybody is told or anything is changed.

    Upsert, Delete, PutPayload, ... --over a view--> whole points put, keys taken away --> a Batch for the journal

Filters are asked here, once, by the one writer: the journal holds which points it was, and replaying asks nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from understudy.indexes.faults import BadPoint, UnknownFilter
from understudy.indexes.masks import test_of
from understudy.indexes.points import Payload, Point, PointId, Vector, canonical_id, id_key, is_derived
from understudy.indexes.reach import Path, parse_path
from understudy.indexes.records import Batch, KeptShape, Record, payload_bytes, payload_of, record_of, vectors_of
from understudy.indexes.snapshot import DIMENSIONS_MAX
from understudy.indexes.store import checked_vectors
from understudy.indexes.vectors import Distance
from understudy.indexes.view import View
from understudy.indexes.writes import (
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

VECTOR_NAMES_MAX: Final = 16


class Draft:
    """What some writes change, one after the other. `before` is what writes not yet in the view have changed; `noted`
    is what was noted when the collection was created: the `distance` of vectors that only the first point shows, or the
    `distances` of those that have names."""

    def __init__(
        self,
        view: View,
        shapes: Mapping[str, KeptShape],
        before: Mapping[bytes, Record | None],
        space: str = "",
        noted: Mapping[str, Any] | None = None,
    ) -> None:
        self.changes: dict[bytes, Record | None] = {}
        self.shapes = dict(shapes)
        self._view = view
        self._before = before
        self._space = space
        self._known = len(shapes)
        self._noted: Mapping[str, Any] = noted or {}
        self._notes: dict[str, Any] | None = None

    def batch(self) -> Batch:
        """What the journal is to hold."""
        return Batch(
            puts=[record for record in self.changes.values() if record is not None],
            drops=[key for key, record in self.changes.items() if record is None],
            shapes=self.shapes if len(self.shapes) > self._known else None,
            notes=self._notes,
        )

    def add(self, write: Write) -> None:
        """Add one write. Raises BadPoint, BadId, WrongDimension, NotFinite, UnknownFilter; the draft is then void."""
        if isinstance(write, Upsert):
            self._upsert(write)
        elif isinstance(write, Delete):
            self.changes.update(dict.fromkeys(self._keys(write.which)))
        elif isinstance(write, PutVectors):
            self._put_vectors(write.points)
        elif isinstance(write, DropVectors):
            for record in self._records(self._keys(write.which)):
                kept = {name: blob for name, blob in record.vectors.items() if name not in write.names}
                self._put(msgspec.structs.replace(record, vectors=kept))
        elif isinstance(write, PutPayload):
            for record in self._records(self._keys(write.which)):
                self._put_payload(record, with_fields(payload_of(record.payload), write))
        elif isinstance(write, DropPayload):
            for record in self._records(self._keys(write.which)):
                self._put_payload(record, without_fields(payload_of(record.payload), write.keys))
        elif isinstance(write, Create):
            self._create(write)
        else:
            assert isinstance(write, Drop)
            raise BadPoint("a collection is dropped by its library")

    # -- one verb each ------------------------------------------------------------------------------------------------

    def _upsert(self, write: Upsert) -> None:
        for point in write.points:
            key = self._key_of(point.id)
            if (write.only == "new" and key is not None) or (write.only == "existing" and key is None):
                continue
            record = record_of(point, self._vectors(point), key=key)
            self._put(record if key is None else self._with_derived(record))

    def _with_derived(self, record: Record) -> Record:
        """A record put in another's place, with the vectors that were made of its text, if that is still the same."""
        if not any(map(is_derived, self.shapes)):
            return record
        before = self._records([record.key])
        if not before or before[0].text != record.text:
            return record
        derived = {name: blob for name, blob in before[0].vectors.items() if is_derived(name)}
        return msgspec.structs.replace(record, vectors={**derived, **record.vectors})

    def _put_vectors(self, points: Iterable[Point]) -> None:
        there = {key: point for point in points if (key := self._key_of(point.id)) is not None}
        for record in self._records(list(there)):
            point = there[record.key]
            is_made_of_text = point.vector is None and bool(point.named) and all(map(is_derived, point.named))
            if is_made_of_text and point.text != record.text:
                # made of words that were replaced meanwhile
                continue
            new = {name: vector.tobytes() for name, vector in self._vectors(point).items()}
            text = point.text or record.text
            self._put(msgspec.structs.replace(record, vectors={**record.vectors, **new}, text=text))

    def _put_payload(self, record: Record, payload: Payload) -> None:
        self._put(msgspec.structs.replace(record, payload=payload_bytes(record.key, payload)))

    def _create(self, write: Create) -> None:
        for name, shape in write.vectors.items():
            self._shape(name, shape)
        if write.notes:
            self._notes = {**(self._notes or {}), **write.notes}

    def _put(self, record: Record) -> None:
        self.changes[record.key] = record

    # -- vectors ------------------------------------------------------------------------------------------------------

    def _vectors(self, point: Point) -> dict[str, Vector]:
        for name, vector in vectors_of(point).items():
            if name not in self.shapes:
                self._shape(name, VectorShape(len(vector), self._distance(name)))
        dimensions = {name: kept.dimensions for name, kept in self.shapes.items()}
        return checked_vectors(point, dimensions, sparse=True)

    def _distance(self, name: str) -> DistanceName:
        """The distance of vectors that only their first point shows."""
        noted = {**self._noted, **(self._notes or {})}
        return noted.get("distances", {}).get(name) or noted.get("distance", "cosine")

    def _shape(self, name: str, shape: VectorShape) -> None:
        if name in self.shapes:
            return
        if len(self.shapes) >= VECTOR_NAMES_MAX:
            raise BadPoint(f"vectors named {name!r}: more than {VECTOR_NAMES_MAX} names")
        if not 1 <= shape.dimensions <= DIMENSIONS_MAX:
            raise BadPoint(f"vectors of {shape.dimensions} dimensions: 1 to {DIMENSIONS_MAX} can be kept")
        distance = Distance.of(shape.distance).value
        self.shapes[name] = KeptShape(shape.dimensions, distance, shape.space or self._space)

    # -- which points -------------------------------------------------------------------------------------------------

    def _key_of(self, point_id: PointId) -> bytes | None:
        """The key under which a point is there, whichever spelling of a UUID it was put by; None if it is not."""
        for key in dict.fromkeys((id_key(point_id), id_key(canonical_id(point_id)))):
            for changed in (self.changes, self._before):
                if key in changed:
                    if changed[key] is not None:
                        return key
                    break
            else:
                if (row := self._view.row_of_key(key)) is not None:
                    return self._view.key_of(row)
        return None

    def _keys(self, which: Which) -> list[bytes]:
        if which.ids:
            return list(dict.fromkeys(key for point_id in which.ids if (key := self._key_of(point_id)) is not None))
        if which.filter is None:
            return []  # no ids are no points; all of them are what an empty filter says
        changed = {**self._before, **self.changes}
        keys = [key for row in self._view.rows_matching(which.filter) if (key := self._view.key_of(row)) not in changed]
        passes = test_of(which.filter or None)
        return keys + [key for key, record in changed.items() if record is not None and passes(record)]

    def _records(self, keys: Sequence[bytes]) -> list[Record]:
        changed = {key: self.changes.get(key, self._before.get(key)) for key in keys}
        rows = {key: row for key in keys if changed[key] is None and (row := self._view.row_of_key(key)) is not None}
        held = dict(zip(rows, self._view.records(list(rows.values())), strict=True))
        return [record for key in keys if (record := changed[key] or held.get(key)) is not None]


def with_fields(payload: Payload, write: PutPayload) -> Payload:
    """A payload with what a write puts into it."""
    if not write.key:
        return dict(write.payload) if write.replace else {**payload, **write.payload}
    return _put_below(payload, parse_path(write.key), write)


def without_fields(payload: Payload, keys: Sequence[str]) -> Payload:
    """A payload without these fields; {} where none are named."""
    if not keys:
        return {}
    for key in keys:
        if key in payload:
            del payload[key]
            continue
        try:
            path = parse_path(key)
        except UnknownFilter:
            continue  # no path leads anywhere in it, so there is nothing to take away
        _drop_below(payload, path)
    return payload


def _put_below(value: Any, path: Path, write: PutPayload) -> Any:
    """`value` with what is put at the end of a path: what is in its way is replaced, arrays are never made longer."""
    if not path:
        held = cast("Payload", value) if isinstance(value, dict) and not write.replace else {}
        return {**held, **write.payload}
    step, rest = path[0], path[1:]
    if isinstance(step, str):
        fields = cast("Payload", value) if isinstance(value, dict) else {}
        return {**fields, step: _put_below(fields.get(step), rest, write)}
    items = cast("list[Any]", value) if isinstance(value, list) else []
    return [_put_below(item, rest, write) if step in (None, at) else item for at, item in enumerate(items)]


def _drop_below(holder: Any, path: Path) -> None:
    step, rest = path[0], path[1:]
    places = _places(holder, step)
    for place in places if rest else reversed(places):
        if rest:
            _drop_below(holder[place], rest)
        else:
            del holder[place]


def _places(holder: Any, step: str | int | None) -> list[Any]:
    """Where in `holder` a step of a path leads: a key, an index, or all of them."""
    if isinstance(step, str):
        if not isinstance(holder, dict):
            return []
        return [step] if step in cast("dict[str, Any]", holder) else []
    if not isinstance(holder, list):
        return []
    items = cast("list[Any]", holder)
    if step is None:
        return list(range(len(items)))
    return [step] if step < len(items) else []
