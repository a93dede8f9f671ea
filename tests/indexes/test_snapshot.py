"""Snapshots: a crash at any step, or rot in any byte, leaves the old collection or the new one, and never a mix."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.indexes.some import ids, some_points
from understudy.indexes import snapshot
from understudy.indexes.collection import Collection, heal
from understudy.indexes.faults import BadPoint, Busy, CorruptIndex, NotFinite, WrongDimension
from understudy.indexes.generation import current_name, generations, read_manifest
from understudy.indexes.points import Point
from understudy.indexes.snapshot import write_snapshot
from understudy.indexes.vectors import Matrix

DIMENSIONS = 16
OLD = some_points(40, mark="old")
NEW = some_points(44, seed=8, mark="new")
STEPS = ["sweep", "store", "vectors", "keywords", "graph", "manifest", "sync", "name", "current", "swap", "prune"]


class PowerCut(BaseException):
    """Nobody cleans up after one of these."""


def _write(folder: Path, points: Sequence[Point], step: Callable[[str], None] | None = None) -> str:
    return write_snapshot(folder, points, space="s", dimensions=DIMENSIONS, graph=True, step=step)


def _open(folder: Path) -> Collection:
    return Collection.open(folder, exact_below=0)


def _marks(collection: Collection) -> str:
    """ "old" or "new", if every way of asking agrees on it; fails if they don't."""
    points, _ = collection.scroll(None, 100, with_vectors=True)
    query = np.ones(DIMENSIONS)
    asked = {
        "scroll": {point.payload["mark"] for point in points},
        "vector": {hit.payload["mark"] for hit in collection.search(query, 50)},
        "words": {hit.text.split()[0] for hit in collection.search_text("number", 50)},
    }
    assert len(set().union(*asked.values())) == 1, asked
    (mark,) = asked["scroll"]
    written = OLD if mark == "old" else NEW
    assert len(points) == len(collection.search(query, 50)) == len(collection.search_text("number", 50)) == len(written)
    vectors = {point.id: point.vector for point in written}
    for point in points:
        np.testing.assert_array_equal(point.vector, vectors[point.id])
    return str(mark)


# -- crashes ----------------------------------------------------------------------------------------------------------


def _cut_at(fatal: str) -> Callable[[str], None]:
    def step(name: str) -> None:
        if name == fatal:
            raise PowerCut(name)

    return step


def test_the_steps_of_a_snapshot_are_these(tmp_path: Path):
    taken: list[str] = []
    _write(tmp_path / "docs", OLD, taken.append)
    assert taken == STEPS


@pytest.mark.parametrize("fatal", STEPS)
def test_a_crash_before_any_step_leaves_the_old_or_the_new(fatal: str, tmp_path: Path):
    folder = tmp_path / "docs"
    _write(folder, OLD)
    with pytest.raises(PowerCut):
        _write(folder, NEW, _cut_at(fatal))
    assert _marks(_open(folder)) == ("new" if fatal == "prune" else "old")
    # and the next writer is not in the way of anything that was left behind
    _write(folder, NEW)
    assert _marks(_open(folder)) == "new"
    assert not list(folder.glob(".tmp-*"))
    assert len(generations(folder)) == 2


@pytest.mark.parametrize("fatal", STEPS)
def test_a_crash_in_the_very_first_snapshot_leaves_none_or_all_of_it(fatal: str, tmp_path: Path):
    folder = tmp_path / "docs"
    with pytest.raises(PowerCut):
        _write(folder, NEW, _cut_at(fatal))
    if fatal in ("current", "swap", "prune"):
        # it has its name, so every byte of it is on disk
        assert _marks(_open(folder)) == "new"
    else:
        with pytest.raises(CorruptIndex, match="collection docs"):
            _open(folder)


@pytest.mark.parametrize("fatal", ["vectors", "keywords", "graph", "manifest", "sync", "name"])
def test_half_written_files_of_a_crashed_writer_are_never_looked_at(fatal: str, tmp_path: Path):
    folder = tmp_path / "docs"
    _write(folder, OLD)

    def torn(name: str) -> None:
        if name == fatal:
            for path in folder.glob(".tmp-*/**/*"):
                if path.is_file():
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            raise PowerCut

    with pytest.raises(PowerCut):
        _write(folder, NEW, torn)
    assert _marks(_open(folder)) == "old"


# -- rot --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection with an old generation and a new one."""
    folder = tmp_path_factory.mktemp("twice") / "docs"
    _write(folder, OLD)
    _write(folder, NEW)
    return folder


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _lengthened(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\x00")


def _flipped(share: float) -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        whole = bytearray(path.read_bytes())
        whole[int(share * (len(whole) - 1))] ^= 0x10
        path.write_bytes(whole)

    flip.__name__ = f"flipped_at_{share}"
    return flip


def _removed(path: Path) -> None:
    path.unlink()


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


ROTS = [_truncated, _lengthened, _flipped(0), _flipped(0.5), _flipped(1), _removed, _emptied]


def _copies(original: Path, to: Path) -> Iterator[tuple[Path, Path]]:
    """(a fresh copy of the collection, one file of it) for every file of the current generation, and CURRENT."""
    files = [path for path in (original / "g-000002").rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 8
    for number, path in enumerate([original / "CURRENT", *sorted(files)]):
        copy = to / str(number) / "docs"
        shutil.copytree(original, copy)
        yield copy, copy / path.relative_to(original)


@pytest.mark.parametrize("rot", ROTS, ids=lambda rot: rot.__name__)
def test_rot_in_any_file_is_refused_or_mended_and_never_served(
    rot: Callable[[Path], None], twice: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for folder, path in _copies(twice, tmp_path):
        caplog.clear()
        rot(path)
        marks = _marks(_open(folder))
        if path.name == "CURRENT":
            assert marks in ("old", "new")
            continue
        # without a manifest or a store it is no generation; all else is derived
        assert marks == ("old" if path.name in ("points.sqlite", "manifest.json") else "new"), path.name
        assert path.name in caplog.text, "nobody was told"


def test_what_is_derived_is_made_again_and_says_so(twice: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = tmp_path / "docs"
    shutil.copytree(twice, folder)
    sound = _open(twice)
    for name in ("vectors.npy", "graph.hnsw", "keywords/meta.json"):
        _flipped(0.5)(folder / "g-000002" / name)
    with caplog.at_level(logging.WARNING):
        mended = _open(folder)
    assert set(mended.damage) == {"vectors.npy", "graph.hnsw", "keywords"}
    assert "its checksum is another" in caplog.text
    assert not mended.has_graph
    query = np.ones(DIMENSIONS)
    assert ids(mended.search(query, 44)) == ids(sound.search(query, 44))
    assert [(hit.id, hit.score) for hit in mended.search_text("hedged number 7", 9)] == [
        (hit.id, hit.score) for hit in sound.search_text("hedged number 7", 9)
    ]


def test_healing_writes_a_sound_generation_and_then_has_nothing_to_do(twice: Path, tmp_path: Path):
    folder = tmp_path / "docs"
    shutil.copytree(twice, folder)
    assert heal(folder) is None
    _flipped(0.5)(folder / "g-000002" / "graph.hnsw")
    assert heal(folder) == "g-000003"
    healed = _open(folder)
    assert healed.damage == {}
    assert healed.has_graph
    assert _marks(healed) == "new"
    assert heal(folder) is None


def test_without_any_sound_store_the_reasons_are_listed(twice: Path, tmp_path: Path):
    folder = tmp_path / "docs"
    shutil.copytree(twice, folder)
    _truncated(folder / "g-000001" / "points.sqlite")
    _flipped(0.5)(folder / "g-000002" / "manifest.json")
    with pytest.raises(CorruptIndex) as fault:
        _open(folder)
    for said in ("collection docs", "g-000001: points.sqlite", "g-000002: manifest.json"):
        assert said in str(fault.value)
    with pytest.raises(CorruptIndex, match="no snapshot"):
        _open(tmp_path / "nowhere")


def _damage_vectors_only(path: Path) -> None:
    sql = sqlite3.connect(path)
    sql.execute("UPDATE vectors SET vector = zeroblob(length(vector)) WHERE row = 3")
    sql.commit()
    sql.close()


def test_a_store_whose_words_are_whole_is_embedded_again(tmp_path: Path):
    folder = tmp_path / "docs"
    _write(folder, NEW)
    _damage_vectors_only(folder / "g-000001" / "points.sqlite")
    with pytest.raises(CorruptIndex, match=r"points\.sqlite"):
        _open(folder)
    asked: list[str] = []

    def embed(texts: Sequence[str]) -> Matrix:
        asked.extend(texts)
        return np.full((len(texts), DIMENSIONS), 2.0, np.float32)

    saved = Collection.open(folder, rebuild_embed=embed)
    assert (saved.generation, saved.count, len(asked)) == ("g-000002", len(NEW), len(NEW))
    assert [hit.score for hit in saved.search(np.ones(DIMENSIONS), 50)] == pytest.approx([1.0] * len(NEW))


def test_a_store_whose_words_are_damaged_is_not_embedded_again(tmp_path: Path):
    folder = tmp_path / "docs"
    _write(folder, NEW)
    sql = sqlite3.connect(folder / "g-000001" / "points.sqlite")
    sql.execute("UPDATE contents SET text = 'lies' WHERE row = 3")
    sql.commit()
    sql.close()
    with pytest.raises(CorruptIndex, match="words are damaged too"):
        Collection.open(folder, rebuild_embed=lambda texts: np.ones((len(texts), DIMENSIONS), np.float32))


# -- writers and readers ----------------------------------------------------------------------------------------------


def test_only_the_new_and_the_previous_generation_are_kept(tmp_path: Path):
    folder = tmp_path / "docs"
    assert [_write(folder, OLD) for _ in range(4)] == [f"g-00000{number}" for number in range(1, 5)]
    assert [path.name for path in generations(folder)] == ["g-000004", "g-000003"]
    assert current_name(folder) == "g-000004"


def test_readers_of_an_old_generation_go_on_after_it_was_removed(tmp_path: Path):
    folder = tmp_path / "docs"
    _write(folder, OLD)
    reader = _open(folder)
    for _ in range(3):
        _write(folder, NEW)
    assert not (folder / "g-000001").exists()
    assert _marks(reader) == "old"
    assert reader.count_matching({"must": [{"key": "mark", "match": {"value": "old"}}]}) == len(OLD)
    threads = [threading.Thread(target=_marks, args=(reader,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_readers_and_writers_of_one_folder_never_see_half_a_swap(tmp_path: Path):
    folder = tmp_path / "docs"
    _write(folder, OLD)
    stop = threading.Event()
    seen: list[str] = []

    def read() -> None:
        while True:
            over = stop.is_set()
            seen.append(_marks(_open(folder)))
            if over:
                return

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(6):
        _write(folder, NEW)
        _write(folder, OLD)
    stop.set()
    reader.join()
    assert set(seen) <= {"old", "new"}
    assert seen[-1] == "old"


def test_a_second_writer_is_told_to_wait(tmp_path: Path):
    folder = tmp_path / "docs"

    def meanwhile(name: str) -> None:
        if name == "vectors":
            with pytest.raises(Busy, match="docs"):
                _write(folder, OLD)

    _write(folder, NEW, meanwhile)
    assert _marks(_open(folder)) == "new"


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (Point(1, np.ones(3, np.float32)), WrongDimension),
        (Point(1, None), WrongDimension),
        (Point(1, np.full(DIMENSIONS, np.nan, np.float32)), NotFinite),
        (Point(-1, np.ones(DIMENSIONS, np.float32)), BadPoint),
        (Point(2**64, np.ones(DIMENSIONS, np.float32)), BadPoint),
        (Point(True, np.ones(DIMENSIONS, np.float32)), BadPoint),
        (Point("x" * 2_000, np.ones(DIMENSIONS, np.float32)), BadPoint),
        (Point("\ud800", np.ones(DIMENSIONS, np.float32)), BadPoint),
        (Point(1, np.ones(DIMENSIONS, np.float32), {"x": object()}), BadPoint),
        (Point(1, np.ones(DIMENSIONS, np.float32), {"x": "\ud800"}), BadPoint),
        (Point(1, np.ones(DIMENSIONS, np.float32), {}, "\ud800"), BadPoint),
    ],
)
def test_a_point_that_cannot_be_stored_changes_nothing(bad: Point, fault: type[Exception], tmp_path: Path):
    folder = tmp_path / "docs"
    _write(folder, OLD)
    with pytest.raises(fault):
        _write(folder, [*NEW, bad])
    assert _marks(_open(folder)) == "old"
    assert not list(folder.glob(".tmp-*"))


def test_a_full_disk_changes_nothing_and_leaves_nothing(tmp_path: Path):
    folder = tmp_path / "docs"
    _write(folder, OLD)

    def full(name: str) -> None:
        if name == "keywords":
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        _write(folder, NEW, full)
    assert _marks(_open(folder)) == "old"
    assert not list(folder.glob(".tmp-*"))


def test_of_records_with_the_same_id_the_last_counts(tmp_path: Path):
    first, second = np.ones(DIMENSIONS, np.float32), np.full(DIMENSIONS, 2, np.float32)
    _write(tmp_path / "docs", [Point(7, first, {"v": 1}), Point("7", first), Point(7, second, {"v": 2})])
    collection = _open(tmp_path / "docs")
    (point,) = collection.get([7], with_vectors=True)
    assert (collection.count, point.payload) == (2, {"v": 2})
    np.testing.assert_array_equal(point.vector, second)


def test_a_graph_is_built_from_so_many_points_on_and_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(snapshot, "EXACT_BELOW", 44)
    monkeypatch.setattr(snapshot, "SUBPROCESS_FROM", 44)
    for points, has_graph in ((OLD, False), (NEW, True)):
        write_snapshot(tmp_path / "docs", points, space="s", dimensions=DIMENSIONS)
        assert _open(tmp_path / "docs").has_graph is has_graph
    assert len(read_manifest(tmp_path / "docs" / "g-000002").probes) == 32


def test_a_manifest_of_another_format_is_not_guessed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "docs"
    monkeypatch.setattr(snapshot, "FORMAT", 3)
    _write(folder, OLD)
    monkeypatch.undo()
    with pytest.raises(CorruptIndex, match="format 3, this version reads up to 2"):
        _open(folder)


def test_progress_goes_from_nothing_to_all(tmp_path: Path):
    seen: list[tuple[int, int]] = []
    write_snapshot(
        tmp_path / "docs",
        OLD,
        space="s",
        dimensions=DIMENSIONS,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 6) for done in range(7)]


@pytest.mark.parametrize("dimensions", [0, -1, 70_000])
def test_dimensions_have_bounds(dimensions: int, tmp_path: Path):
    with pytest.raises(BadPoint, match="dimensions"):
        write_snapshot(tmp_path / "docs", [], space="s", dimensions=dimensions)
