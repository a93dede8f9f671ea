"""Hold what was written since the last generation: searched by scan, found at once, and never changed in place.

    slot      0  1  2  3  4 | 5 ...        records only ever join at the end
    alive     1  0  1  1  1 |              0: put again later, or taken away
                 a view sees so far        and keeps the arrays it was made with

There is one writer, and any number of readers, each with a view of its own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from understudy.indexes.faults import CorruptIndex
from understudy.indexes.masks import Masks, mask_of_tail
from understudy.indexes.points import searchable
from understudy.indexes.records import KeptShape, Record, payload_of, vector_of
from understudy.indexes.store import FREED_AT_ONCE
from understudy.indexes.tail_words import TailWords
from understudy.indexes.vectors import Distance, Mask, Matrix, VectorIndex, prepared

_ROWS_LEAST: Final = 64
_GROWTH: Final = 1.5


class _Growing:
    """The prepared vectors of one name, slot by slot."""

    def __init__(self, kept: KeptShape) -> None:
        self.distance = Distance.of(kept.distance)
        self.dimensions = kept.dimensions
        self.matrix: Matrix = np.zeros((0, kept.dimensions), np.float32)
        self.present: Mask = np.zeros(0, np.bool_)

    def put(self, slot: int, blob: bytes) -> None:
        if len(blob) != 4 * self.dimensions:
            raise CorruptIndex(f"a written vector has {len(blob)} bytes, not {4 * self.dimensions}")
        if slot >= len(self.matrix):
            self.grow(slot + 1)
        self.matrix[slot] = prepared(vector_of(blob), self.distance)
        self.present[slot] = True

    def grow(self, rows: int) -> None:
        # a larger copy, never a resize: views go on reading the old one
        size = max(rows, _ROWS_LEAST, int(_GROWTH * len(self.matrix)))
        matrix = np.zeros((size, self.dimensions), np.float32)
        present = np.zeros(size, np.bool_)
        matrix[: len(self.matrix)] = self.matrix
        present[: len(self.present)] = self.present
        self.matrix, self.present = matrix, present


class _Shown:
    """Held by every view of one tail, and by nobody else once that is left."""

    __slots__ = ("__weakref__",)


class Tail:
    """The writer's side. Not safe from several threads; its views are."""

    def __init__(self, shapes: Mapping[str, KeptShape]) -> None:
        self.records: list[Record] = []
        self.slots: dict[bytes, int] = {}
        self.words = TailWords()
        self.masks = Masks()
        self.record_bytes = 0
        self._shown: _Shown | None = _Shown()
        self._alive: Mask = np.zeros(_ROWS_LEAST, np.bool_)
        self._growing: dict[str, _Growing] = {}
        for name, kept in shapes.items():
            self.shape(name, kept)

    def shape(self, name: str, kept: KeptShape) -> None:
        """Hold vectors of this name too."""
        if name not in self._growing:
            self._growing[name] = _Growing(kept)

    @property
    def bytes_held(self) -> int:
        """About how much memory it takes."""
        return self.record_bytes + self.words.bytes_held + sum(each.matrix.nbytes for each in self._growing.values())

    def bytes_to_grow(self, records: int) -> int:
        """How much more memory the matrices would take with so many more records."""
        due = len(self.records) + records
        return sum(
            4 * each.dimensions * max(due, int(_GROWTH * len(each.matrix)))
            for each in self._growing.values()
            if due > len(each.matrix)
        )

    def put(self, record: Record) -> None:
        """Add a record at the end, in the place of what had its key."""
        slot = len(self.records)
        for name, blob in record.vectors.items():
            self._growing[name].put(slot, blob)
        if slot >= len(self._alive):
            alive = np.zeros(max(slot + 1, int(_GROWTH * len(self._alive))), np.bool_)
            alive[: len(self._alive)] = self._alive
            self._alive = alive
        self.drop([record.key])
        self._alive[slot] = True
        titled = b'"title"' in record.payload
        self.words.put(slot, searchable(record.text, payload_of(record.payload) if titled else {}))
        self.record_bytes += record.bytes_held
        self.slots[record.key] = slot
        self.records.append(record)

    def same(self, record: Record) -> Record:
        """The record that is held already, where it is the same; else this one. From any thread."""
        slot = self.slots.get(record.key)
        if slot is None or slot >= len(self.records):
            return record
        held = self.records[slot]
        return held if held == record else record

    def drop(self, keys: list[bytes]) -> None:
        """Let the records of these keys be dead, where there are any."""
        dead = [slot for key in keys if (slot := self.slots.pop(key, None)) is not None]
        if dead:
            # copied: views go on seeing what was alive when they were made
            self._alive = self._alive.copy()
            self._alive[dead] = False

    def view(self) -> TailView:
        """What is here now."""
        return TailView(self)

    def leave(self) -> Callable[[], object]:
        """Show it to nobody any more; what this returns gives None once the last view of it has gone."""
        shown, self._shown = self._shown, None
        return (lambda: None) if shown is None else weakref.ref(shown)

    def free(self) -> None:
        """Give back the memory, a little at a time. Only when nobody has a view of it any more."""
        for some in (self.slots, *self.words.held):
            while some:
                for _ in range(min(FREED_AT_ONCE, len(some))):
                    some.popitem()
        while self.records:
            del self.records[-FREED_AT_ONCE:]
        self._growing = {}


class TailView:
    """The tail as it was at one moment."""

    __slots__ = ("_growing", "_indexes", "_order", "_shown", "_tail", "alive", "count", "live", "records")

    def __init__(self, tail: Tail) -> None:
        self._tail = tail
        self._shown = tail._shown  # pyright: ignore[reportPrivateUsage]
        self.records = tail.records
        self.count = len(tail.records)
        self.live = len(tail.slots)
        self.alive = tail._alive[: self.count]  # pyright: ignore[reportPrivateUsage]
        self._growing = {
            name: (each.matrix, each.present, each.distance)
            for name, each in tail._growing.items()  # pyright: ignore[reportPrivateUsage]
        }
        self._indexes: dict[str, VectorIndex] = {}
        self._order: list[tuple[bytes, int]] | None = None

    def index(self, name: str) -> VectorIndex:
        """The vectors of this name. Raises KeyError where no vectors have it."""
        index = self._indexes.get(name)
        if index is None:
            matrix, present, distance = self._growing[name]
            if len(matrix) < self.count:
                # the last records have no vectors of this name, or none has
                grown = np.zeros((self.count, matrix.shape[1]), np.float32)
                marks = np.zeros(self.count, np.bool_)
                grown[: len(matrix)], marks[: len(present)] = matrix, present
                matrix, present = grown, marks
            index = VectorIndex(matrix[: self.count], distance, present=present[: self.count])
            self._indexes[name] = index
        return index

    def mask(self, filter: object) -> Mask:
        """Which slots a filter lets through, dead ones too. Raises UnknownFilter."""
        return mask_of_tail(self._tail.masks, filter, self.records, self.count)

    def slot_of(self, key: bytes) -> int | None:
        """The slot of a living record; it may be newer than this view."""
        return self._tail.slots.get(key)

    def order(self) -> list[tuple[bytes, int]]:
        """(key, slot) of the living, by key."""
        if self._order is None:
            self._order = sorted((self.records[slot].key, int(slot)) for slot in np.flatnonzero(self.alive))
        return self._order

    def search_words(self, words: list[str], idf: Mapping[str, float] | None, allowed: Mask) -> list[tuple[int, float]]:
        """(slot, BM25 score) of those allowed that hold any of `words`; see `TailWords.search`."""
        return self._tail.words.search(words, idf, allowed)

    def wordless(self) -> Mask:
        """Which slots have no words at all."""
        return self._tail.words.wordless(self.count)

    def words_count(self, word: str) -> int:
        """In how many records a word occurs."""
        return self._tail.words.count_of(word)
