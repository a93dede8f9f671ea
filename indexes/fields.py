"""Answer filters from columns instead of going through every payload: which rows hold which values, by path.

    payloads --columns_of, in the child that writes a snapshot--> fields.msgpack --Fields--> mask(filter) [n], or None

Going through 50 000 payloads for a filter that was never asked before takes 70 ms; here it takes 0.1 ms and lets the
same rows through (both ways are tested against each other). A column holds what a path of plain names leads to: an
array stands for its elements, as Qdrant has it. None is said, and the payloads are gone through, where a path goes
through arrays, for places on a map, for nested conditions, for paths that were left out for their size, and where
numbers or strings are too large to be kept exactly.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias, cast, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from understudy.indexes.arrays import among
from understudy.indexes.faults import CorruptIndex
from understudy.indexes.filters import TEXT_TESTS, microseconds_of
from understudy.indexes.points import Payload, PointId, canonical_id
from understudy.indexes.reach import parse_path
from understudy.indexes.vectors import Mask

VERSION: Final = 1
PATHS_MAX: Final = 64
DEPTH_MAX: Final = 8
STRING_BYTES_MAX: Final = 256
ROW_BYTES_MAX: Final = 128
"""What all columns together may take for each point; the largest are left out."""
BYTES_LEAST: Final = 2**20

_EXACT_MAX: Final = 2**53
_NO_MOMENT: Final = -(2**63)
_COUNT_MAX: Final = 2**62
_COMPARED: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
}

_Rows: TypeAlias = NDArray[np.uint32]


class Column(msgspec.Struct, array_like=True):
    """What one path leads to. Rows are uint32, and may repeat where an array holds a value twice.

    `counts` [n]: how many values a row holds, 0 where there is none, null or []. `numbers` float64, ascending, each
    with its row and whether it is an integer. `strings` one behind the other, sorted by their bytes, each with where it
    ends, where its rows end, and its moment in microseconds, if it is a date; `long` are the rows of longer ones.
    `inexact`: some numbers are beyond 2^53.
    """

    counts: bytes
    nulls: bytes
    yes: bytes
    no: bytes
    others: bytes
    long: bytes
    numbers: bytes
    number_rows: bytes
    integers: bytes
    strings: bytes
    string_ends: bytes
    row_ends: bytes
    string_rows: bytes
    moments: bytes
    inexact: bool = False

    @property
    def bytes_held(self) -> int:
        """About what it takes."""
        return sum(len(part) for part in msgspec.structs.astuple(self) if isinstance(part, bytes))


class Columns(msgspec.Struct, array_like=True):
    """The columns of `count` rows by their paths, and whether those are all the paths there are. `plain_ids`: no id is
    a UUID in another spelling than the usual one."""

    version: int
    count: int
    whole: bool
    plain_ids: bool
    left_out: list[list[str]]
    paths: list[list[str]]
    columns: list[Column]


# -- writing ----------------------------------------------------------------------------------------------------------


def write_columns(path: Path, payloads: Iterable[Payload], ids: Iterable[PointId]) -> None:
    """Write the columns of points, in row order, to a file."""
    path.write_bytes(msgspec.msgpack.encode(columns_of(payloads, ids)))


def columns_of(payloads: Iterable[Payload], ids: Iterable[PointId]) -> Columns:
    """The columns of points, in row order."""
    gathering: dict[tuple[str, ...], _Gathering] = {}
    whole, count = True, 0
    for row, payload in enumerate(payloads):
        count = row + 1
        for path, value in _reached(payload, ()):
            column = gathering.get(path)
            if column is None:
                if len(gathering) >= PATHS_MAX or len(path) > DEPTH_MAX:
                    whole = False
                    continue
                column = gathering[path] = _Gathering()
            column.add(row, value)
    made = sorted(((path, each.column(count)) for path, each in gathering.items()), key=lambda pair: pair[1].bytes_held)
    room = max(BYTES_LEAST, ROW_BYTES_MAX * count)
    kept = Columns(VERSION, count, whole, all(canonical_id(each) == each for each in ids), [], [], [])
    for path, column in made:
        room -= column.bytes_held
        if room < 0:
            kept.left_out.append(list(path))
        else:
            kept.paths.append(list(path))
            kept.columns.append(column)
    return kept


def _reached(payload: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in payload.items():
        path = (*above, name)
        yield path, value
        if isinstance(value, dict) and len(path) <= DEPTH_MAX:
            yield from _reached(cast("Mapping[str, Any]", value), path)


class _Gathering:
    """A column while it is made."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.nulls: list[int] = []
        self.yes: list[int] = []
        self.no: list[int] = []
        self.others: list[int] = []
        self.long: list[int] = []
        self.numbers: list[tuple[float, int, bool]] = []
        self.strings: dict[str, list[int]] = {}
        self.inexact = False

    def add(self, row: int, value: Any) -> None:
        if isinstance(value, list):
            items = cast("list[Any]", value)
            self.counts[row] = len(items)
            if None in items:
                self.nulls.append(row)
            for item in items:
                self._add(row, item)
        elif value is None:
            self.nulls.append(row)
        else:
            self.counts[row] = 1
            self._add(row, value)

    def _add(self, row: int, value: Any) -> None:
        if isinstance(value, str):
            if len(value.encode()) > STRING_BYTES_MAX:
                self.long.append(row)
            else:
                self.strings.setdefault(value, []).append(row)
        elif isinstance(value, bool):
            (self.yes if value else self.no).append(row)
        elif isinstance(value, int | float):
            if not abs(value) <= _EXACT_MAX:
                self.inexact = True
            else:
                self.numbers.append((float(value), row, isinstance(value, int)))
        elif value is not None:
            self.others.append(row)

    def column(self, count: int) -> Column:
        counts = np.zeros(count, np.uint32)
        counts[list(self.counts)] = list(self.counts.values())
        self.numbers.sort()
        strings = sorted((text.encode(), text, rows) for text, rows in self.strings.items())
        return Column(
            counts=counts.tobytes(),
            nulls=_row_bytes(self.nulls),
            yes=_row_bytes(self.yes),
            no=_row_bytes(self.no),
            others=_row_bytes(self.others),
            long=_row_bytes(self.long),
            numbers=np.array([number for number, _, _ in self.numbers], np.float64).tobytes(),
            number_rows=_row_bytes([row for _, row, _ in self.numbers]),
            integers=np.array([is_int for _, _, is_int in self.numbers], np.bool_).tobytes(),
            strings=b"".join(text for text, _, _ in strings),
            string_ends=np.cumsum([len(text) for text, _, _ in strings], dtype=np.uint64).tobytes(),
            row_ends=np.cumsum([len(rows) for _, _, rows in strings], dtype=np.uint64).tobytes(),
            string_rows=_row_bytes([row for _, _, rows in strings for row in rows]),
            moments=np.array([_moment(text) for _, text, _ in strings], np.int64).tobytes(),
            inexact=self.inexact,
        )


def _moment(text: str) -> int:
    moment = microseconds_of(text)
    return _NO_MOMENT if moment is None else moment


def _row_bytes(rows: list[int]) -> bytes:
    return np.array(rows, np.uint32).tobytes()


# -- asking -----------------------------------------------------------------------------------------------------------


class _Unanswerable(Exception):
    """Only the payloads themselves can say."""


class Fields:
    """The columns of a generation. Safe from any thread. `rows_of` tells the rows of ids, `rows_with` which rows [n]
    have a vector of some name."""

    def __init__(
        self, columns: Columns, rows_of: Callable[[Iterable[PointId]], list[int]], rows_with: Callable[[str], Mask]
    ) -> None:
        self.count = columns.count
        self._whole = columns.whole
        self._left_out = {tuple(path) for path in columns.left_out}
        self._columns = {
            tuple(path): _Open(column, columns.count)
            for path, column in zip(columns.paths, columns.columns, strict=True)
        }
        self._nothing = _Open(_Gathering().column(columns.count), columns.count)
        self._rows_of = rows_of if columns.plain_ids else None
        self._rows_with = rows_with

    @classmethod
    def open(
        cls,
        path: Path,
        count: int,
        rows_of: Callable[[Iterable[PointId]], list[int]],
        rows_with: Callable[[str], Mask],
    ) -> Fields:
        """Read a file that `write_columns` wrote of `count` rows. Raises CorruptIndex."""
        try:
            columns = msgspec.msgpack.decode(path.read_bytes(), type=Columns)
        except (OSError, msgspec.MsgspecError) as error:
            raise CorruptIndex(f"{path.name}: {error}") from error
        if (columns.version, columns.count) != (VERSION, count):
            raise CorruptIndex(f"{path.name}: version {columns.version} of {columns.count} rows")
        return cls(columns, rows_of, rows_with)

    def mask(self, filter: object) -> Mask | None:
        """Which rows [n] a sound filter (see `filters.compile_filter`) lets through; None where only the payloads can
        say."""
        try:
            return self._filter(cast("Mapping[str, Any]", filter))
        except _Unanswerable:
            return None

    def _filter(self, clauses: Mapping[str, Any]) -> Mask:
        passing = np.ones(self.count, np.bool_)
        for word in ("must", "must_not", "should"):
            masks = [self._condition(each) for each in _listed(clauses.get(word))]
            if not masks:
                continue
            if word == "must":
                passing &= np.logical_and.reduce(masks)
            else:
                some = np.logical_or.reduce(masks)
                passing &= ~some if word == "must_not" else some
        least = clauses.get("min_should")
        if least is not None:
            held = np.zeros(self.count, np.uint16)
            for each in least["conditions"]:
                held += self._condition(each)
            passing &= held >= least["min_count"] if least["min_count"] <= len(least["conditions"]) else False
        return passing

    def _condition(self, said: Mapping[str, Any]) -> Mask:
        if "key" in said:
            return self._field(said)
        if "has_id" in said:
            if self._rows_of is None:
                raise _Unanswerable
            return self._marked(np.array(self._rows_of(said["has_id"]), np.uint32))
        if "has_vector" in said:
            return self._rows_with(said["has_vector"])
        if "is_empty" in said:
            return self._column(said["is_empty"]["key"]).counts == 0
        if "is_null" in said:
            return self._marked(self._column(said["is_null"]["key"]).nulls)
        if "nested" in said:
            raise _Unanswerable
        return self._filter(said)

    def _field(self, said: Mapping[str, Any]) -> Mask:
        column = self._column(said["key"])
        word, asked = next((word, value) for word, value in said.items() if word != "key" and value is not None)
        if word == "match":
            return self._marked(*_matching(column, asked))
        if word == "range":
            return self._marked(column.within(asked))
        if word == "values_count":
            return _counted(column.counts, asked)
        if word in ("is_empty", "is_null"):
            mask = column.counts == 0 if word == "is_empty" else self._marked(column.nulls)
            return mask if asked else ~mask
        raise _Unanswerable

    def _column(self, key: str) -> _Open:
        path = parse_path(key)
        column = self._columns.get(cast("tuple[str, ...]", path))
        if column is not None:
            return column
        if not self._whole or path in self._left_out or not all(isinstance(step, str) for step in path):
            raise _Unanswerable
        return self._nothing

    def _marked(self, *several: _Rows) -> Mask:
        mask = np.zeros(self.count, np.bool_)
        for rows in several:
            mask[rows] = True
        return mask


class _Open:
    """A column whose arrays are ready."""

    def __init__(self, column: Column, count: int) -> None:
        self.counts = np.frombuffer(column.counts, np.uint32)
        self.nulls, self.yes, self.no, self.others, self.long, self._number_rows, self._string_rows = (
            np.frombuffer(part, np.uint32)
            for part in (
                column.nulls, column.yes, column.no, column.others, column.long, column.number_rows, column.string_rows
            )
        )  # fmt: skip
        self._numbers = np.frombuffer(column.numbers, np.float64)
        self._integers = np.frombuffer(column.integers, np.bool_)
        self._words = _Words(column.strings, np.frombuffer(column.string_ends, np.uint64))
        self._row_ends = np.frombuffer(column.row_ends, np.uint64)
        self._moments = np.frombuffer(column.moments, np.int64)
        self._inexact = column.inexact
        if len(self.counts) != count:
            raise CorruptIndex(f"a column has {len(self.counts)} rows, not {count}")

    def equal_to(self, wanted: Iterable[int | str]) -> list[_Rows]:
        """The rows that hold one of some integers or strings."""
        found: list[_Rows] = []
        for value in wanted:
            if isinstance(value, int):
                found.append(self._integer_rows(value))
            elif (place := self._words.place_of(value)) is not None:
                found.append(self._rows_of_string(place))
        return found

    def other_than(self, wanted: Sequence[int | str]) -> list[_Rows]:
        """The rows that hold anything but these integers, or these strings."""
        self._check_exact()
        integers = np.array(
            [value for value in wanted if isinstance(value, int) and abs(value) <= _EXACT_MAX], np.float64
        )
        others = ~(self._integers & among(self._numbers, integers))
        kept = np.ones(len(self._words), np.bool_)
        for value in wanted:
            if isinstance(value, str) and len(value.encode(errors="replace")) > STRING_BYTES_MAX:
                raise _Unanswerable
            if isinstance(value, str) and (place := self._words.place_of(value)) is not None:
                kept[place] = False
        return [self.yes, self.no, self.others, self.long, self._number_rows[others], self._rows_of_strings(kept)]

    def tested(self, test: Callable[[str], bool]) -> _Rows:
        """The rows that hold a string that passes."""
        if len(self.long):
            raise _Unanswerable
        return self._rows_of_strings(np.fromiter(map(test, self._words), np.bool_, len(self._words)))

    def within(self, bounds: Mapping[str, Any]) -> _Rows:
        """The rows that hold a number, or a date, within bounds."""
        said = {word: bound for word, bound in bounds.items() if bound is not None}
        if any(isinstance(bound, str) for bound in said.values()):
            if len(self.long):
                raise _Unanswerable
            kept = self._moments != _NO_MOMENT
            for word, bound in said.items():
                kept &= _COMPARED[word](self._moments, _moment(bound))
            return self._rows_of_strings(kept)
        self._check_exact()
        first, last = 0, len(self._numbers)
        for word, bound in said.items():
            if math.isnan(bound):
                return self._number_rows[:0]
            side = "right" if word in ("gt", "lte") else "left"
            place = int(np.searchsorted(self._numbers, float(bound), side))
            first, last = (max(first, place), last) if word in ("gt", "gte") else (first, min(last, place))
        return self._number_rows[first : max(first, last)]

    def _integer_rows(self, value: int) -> _Rows:
        self._check_exact()
        if abs(value) > _EXACT_MAX:
            return self._number_rows[:0]
        first, last = (int(np.searchsorted(self._numbers, float(value), side)) for side in ("left", "right"))
        return self._number_rows[first:last][self._integers[first:last]]

    def _check_exact(self) -> None:
        if self._inexact:
            raise _Unanswerable

    def _rows_of_string(self, place: int) -> _Rows:
        return self._string_rows[int(self._row_ends[place - 1]) if place else 0 : int(self._row_ends[place])]

    def _rows_of_strings(self, kept: Mask) -> _Rows:
        if kept.all():
            return self._string_rows
        lengths = np.diff(self._row_ends, prepend=np.uint64(0)).astype(np.int64)
        return self._string_rows[np.repeat(kept, lengths)]


class _Words(Sequence[str]):
    """Sorted strings in one piece of bytes."""

    def __init__(self, held: bytes, ends: NDArray[np.uint64]) -> None:
        self._held = held
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self._bytes(place).decode()

    def place_of(self, text: str) -> int | None:
        """Where a string is; None if it is not here. One longer than any that is kept only the payloads know of."""
        try:
            wanted = text.encode()
        except UnicodeEncodeError:
            return None
        if len(wanted) > STRING_BYTES_MAX:
            raise _Unanswerable
        place = bisect_left(range(len(self)), wanted, key=self._bytes)
        return place if place < len(self) and self._bytes(place) == wanted else None

    def _bytes(self, place: int) -> bytes:
        return self._held[int(self._ends[place - 1]) if place else 0 : int(self._ends[place])]


def _matching(column: _Open, asked: Mapping[str, Any]) -> list[_Rows]:
    word, wanted = next((word, value) for word, value in asked.items() if value is not None)
    if word == "value":
        if isinstance(wanted, bool):
            return [column.yes if wanted else column.no]
        return column.equal_to([wanted])
    if word == "any":
        return column.equal_to(wanted)
    if word == "except":
        return column.other_than(wanted)
    return [column.tested(TEXT_TESTS[word](wanted))]


def _counted(counts: NDArray[np.uint32], bounds: Mapping[str, Any]) -> Mask:
    mask = np.ones(len(counts), np.bool_)
    wide = counts.astype(np.int64)
    for word, bound in bounds.items():
        if bound is not None:
            mask &= _COMPARED[word](wide, max(-_COUNT_MAX, min(_COUNT_MAX, bound)))
    return mask


def _listed(clause: Any) -> list[Any]:
    if clause is None:
        return []
    return cast("list[Any]", clause) if isinstance(clause, list) else [clause]
