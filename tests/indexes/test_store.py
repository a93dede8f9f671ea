"""The living store: what the mirror writes to, a point at a time."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.indexes.some import ids, some_points
from understudy.indexes.faults import BadPoint, CorruptIndex, WrongDimension
from understudy.indexes.points import Point, id_key, key_id
from understudy.indexes.store import FrozenStore, Store

DIMENSIONS = 16
UUID = "f0e0d0c0-0000-4000-8000-00000000abcd"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "points.sqlite", DIMENSIONS)


def _vector(value: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.full(DIMENSIONS, value, np.float32)


def test_points_come_back_as_they_went_in_in_id_order(store: Store):
    points = [
        *some_points(7),
        Point(2**64 - 1, _vector(1)),
        Point("1", _vector(2), {"deep": [{"x": None}]}, "t", "s", 9),
    ]
    assert store.upsert(reversed(points)) == 9
    back = list(store.points())
    assert [point.id for point in back] == sorted(ids(points), key=lambda name: (isinstance(name, str), name))
    for point, due in zip(back, sorted(points, key=lambda point: id_key(point.id)), strict=True):
        assert (point.payload, point.text, point.source, point.version) == (
            due.payload,
            due.text,
            due.source,
            due.version,
        )
        np.testing.assert_array_equal(point.vector, due.vector)


def test_upserting_replaces_and_deleting_forgets(store: Store):
    store.upsert([Point(1, _vector(1), {"v": 1}), Point("1", _vector(1)), Point(UUID, _vector(1))])
    store.upsert([Point(1, _vector(2), {"v": 2})])
    assert [(point.id, point.payload) for point in store.points()] == [(1, {"v": 2}), ("1", {}), (UUID, {})]
    assert store.delete(["1", UUID.upper(), "nobody", 99]) == 2
    assert (ids(store.points()), store.count) == ([1], 1)


def test_a_batch_with_a_bad_point_is_not_kept_at_all(store: Store):
    store.upsert([Point(1, _vector(1))])
    with pytest.raises(WrongDimension, match="point 3"):
        store.upsert([Point(2, _vector(1)), Point(3, np.ones(2, np.float32))])
    with pytest.raises(BadPoint):
        store.delete([1, -1])
    assert ids(store.points()) == [1]


def test_it_is_all_there_after_opening_again(tmp_path: Path, store: Store):
    store.upsert(some_points(5))
    store.close()
    assert Store(tmp_path / "points.sqlite", DIMENSIONS).count == 5


def test_reading_goes_on_while_somebody_writes(store: Store):
    store.upsert(some_points(2_500))
    seen: list[object] = []
    reading = iter(store.points())
    seen.append(next(reading).id)
    writer = threading.Thread(target=store.upsert, args=([Point(0, _vector(1))],))
    writer.start()
    writer.join(60)
    assert not writer.is_alive(), "the writer was kept waiting"
    seen += [point.id for point in reading]
    assert len(seen) == len(set(seen)) == 2_500


def test_a_frozen_copy_numbers_its_rows_in_id_order(tmp_path: Path, store: Store):
    store.upsert(some_points(20))
    store.delete([3, 7])
    assert store.freeze(tmp_path / "frozen.sqlite") == 18
    frozen = FrozenStore(tmp_path / "frozen.sqlite", DIMENSIONS)
    assert [frozen.id_of(row) for row in range(18)] == ids(store.points())
    assert [frozen.row_of(frozen.id_of(row)) for row in range(18)] == list(range(18))
    assert frozen.row_of(3) is None
    assert ids(frozen.fetch([5, 0, 5])) == [frozen.id_of(5), frozen.id_of(0), frozen.id_of(5)]
    frozen.close()
    frozen.close()


def test_hits_are_the_points_of_their_rows_each_with_its_score(tmp_path: Path, store: Store):
    store.upsert([*some_points(300), Point("1", _vector(2), {"deep": [{"x": None}]}, "t", "s", 9)])
    store.freeze(tmp_path / "frozen.sqlite")
    frozen = FrozenStore(tmp_path / "frozen.sqlite", DIMENSIONS)
    rows = [300, *range(250, 20, -1), 5, 5]
    scores = [float(number) for number in range(len(rows))]
    hits = frozen.hits(rows, scores)
    assert [hit.score for hit in hits] == scores
    for hit, point in zip(hits, frozen.fetch(rows), strict=True):
        assert (hit.id, hit.payload, hit.text, hit.source, hit.version) == (
            point.id,
            point.payload,
            point.text,
            point.source,
            point.version,
        )
        assert (hit.vector, hit.named) == (None, {})
    # whoever gets a payload may change it
    assert hits[-1].payload is not hits[-2].payload
    assert frozen.hits([], []) == []
    frozen.close()


def test_a_store_of_the_first_format_is_still_read(tmp_path: Path, store: Store):
    store.upsert(some_points(20))
    store.freeze(tmp_path / "frozen.sqlite")
    sql = sqlite3.connect(tmp_path / "frozen.sqlite")
    sql.executescript(
        "UPDATE contents SET vector = (SELECT vector FROM vectors WHERE vectors.row = contents.row);"
        "DROP TABLE vectors; DROP TABLE named;"
    )
    sql.close()
    frozen = FrozenStore(tmp_path / "frozen.sqlite", DIMENSIONS)
    for point, due in zip(frozen.points(), store.points(), strict=True):
        assert (point.id, point.payload, point.text) == (due.id, due.payload, due.text)
        np.testing.assert_array_equal(point.vector, due.vector)
    assert [row for row, _ in frozen.vectors()] == list(range(20))


def test_a_file_that_is_no_store_is_refused(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"not a database, but long enough to be looked at" * 100)
    for path in (tmp_path / "x", tmp_path / "nowhere"):
        with pytest.raises(CorruptIndex):
            FrozenStore(path, DIMENSIONS)


def test_a_store_that_rots_while_it_is_open_says_so(tmp_path: Path, store: Store):
    store.upsert(some_points(500))
    store.freeze(tmp_path / "frozen.sqlite")
    frozen = FrozenStore(tmp_path / "frozen.sqlite", DIMENSIONS)
    (tmp_path / "frozen.sqlite").write_bytes(b"rot" * 9_000)
    with pytest.raises(CorruptIndex, match=r"frozen\.sqlite"):
        frozen.fetch(range(500))


@pytest.mark.parametrize("id", [0, 1, 255, 256, 2**63, 2**64 - 1, "", "0", "\x00", "日本", UUID])
def test_an_id_survives_being_a_key(id: int | str):
    assert key_id(id_key(id)) == id
    assert type(key_id(id_key(id))) is type(id)
