"""Compaction: what was written is folded into a generation beside those who ask and write, whenever it dies."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest

from tests.indexes import kill_writes
from tests.indexes.some import ids, some_points
from understudy.indexes.collection import Collection
from understudy.indexes.compact import compact
from understudy.indexes.compacting import TAIL_POINTS, TAIL_POINTS_MAX, Compactor, Load, is_due, is_flooded, is_urgent
from understudy.indexes.faults import Busy, IndexFault
from understudy.indexes.generation import current_name, generations
from understudy.indexes.library import Library
from understudy.indexes.points import Point
from understudy.indexes.snapshot import locked
from understudy.indexes.writes import UNFINISHED, Create, Delete, Upsert, VectorShape, Which

DIMENSIONS = 16
STEPS = ["sweep", "store", "vectors", "keywords", "graph", "manifest", "sync", "name", "current", "swap", "prune"]


class PowerCut(BaseException):
    """Nobody cleans up after one of these."""


def _contents(collection: Collection) -> list[object]:
    points, _ = collection.scroll(None, 10_000, with_vectors=True)
    asked = {"must": [{"key": "even", "match": {"value": True}}]}
    return [
        [
            (
                point.id,
                point.payload,
                point.text,
                point.source,
                point.version,
                None if point.vector is None else point.vector.tolist(),
                {name: vector.tolist() for name, vector in point.named.items()},
            )
            for point in points
        ],
        ids(collection.search(np.ones(DIMENSIONS), 50)),
        ids(collection.search(np.ones(DIMENSIONS), 50, filter=asked)),
        sorted(map(str, ids(collection.search_text("number hedged", 1_000)))),
    ]


def _written(tmp_path: Path) -> Library:
    """A collection with a generation, tombstones, and a tail."""
    library = Library(tmp_path)
    named = [
        Point(f"named-{number}", named={"title": np.array([number, 1], np.float32)}, payload={"even": True})
        for number in range(3)
    ]
    library.write(
        "docs", [Create({"": VectorShape(DIMENSIONS, "dot", "s")}, {"note": 1}), Upsert(tuple(some_points(60)))]
    )
    assert compact(library.path_of("docs")) == "g-000001"
    library.refresh()
    library.write("docs", [Delete(Which((1, 3, 5))), Upsert(tuple(some_points(80, seed=3)[50:])), Upsert(tuple(named))])
    return library


def test_compacting_changes_nothing_that_can_be_seen_but_the_generation(tmp_path: Path):
    library = _written(tmp_path)
    collection = library.open("docs")
    before, stats = _contents(collection), collection.stats
    assert (stats.tail, stats.tombstones) == (33, 13)
    assert library.compact("docs") == "g-000002"
    assert (collection.generation, collection.stats.tail, collection.stats.tombstones) == ("g-000002", 0, 0)
    assert _contents(collection) == before == _contents(Library(tmp_path).open("docs"))
    assert (collection.space, str(collection.distance), collection.notes) == ("s", "dot", {"note": 1})
    assert [hit.id for hit in collection.search([1, 0], 1, using="title")] == ["named-2"]
    assert library.compact("docs") is None


def test_a_tail_is_freed_when_the_last_who_looks_at_it_has_gone_and_not_before(tmp_path: Path):
    library = _written(tmp_path)
    collection = library.open("docs")
    early = collection.view()
    library.write("docs", [Upsert(tuple(some_points(90, seed=4)[80:]))])
    late = collection.view()
    tail, before = late.tail.records, ids(early.search(np.ones(DIMENSIONS), 50))
    library.compact("docs")
    assert len(tail) == 43
    del late
    collection.refresh()
    assert ids(early.search(np.ones(DIMENSIONS), 50)) == before
    assert len(tail) == 43
    del early
    assert len(tail) == 43
    collection.refresh()
    assert tail == []
    assert (collection.count, len(ids(collection.search_text("number hedged", 1_000)))) == (90, 87)


def test_what_was_written_while_it_compacted_is_held_once_while_generations_change(tmp_path: Path):
    library = _written(tmp_path)
    collection = library.open("docs")

    def meanwhile(step: str) -> None:
        if step == "store":
            library.write("docs", [Upsert(tuple(some_points(84, seed=5)[80:]))])

    assert compact(collection.folder, step=meanwhile) == "g-000002"
    early = collection.view()
    before = {record.key: record for record in early.tail.records}
    assert collection.refresh()
    late = collection.view().tail.records
    assert len(late) == 4
    assert all(before[record.key] is record for record in late)
    # another record of the same point is another one
    library.write("docs", [Upsert(tuple(some_points(84, seed=6)[83:]))])
    again = collection.view().tail
    assert again.records[-1].key == late[3].key
    assert again.records[-1] != late[3]


def test_payloads_that_a_filter_had_decoded_are_freed_with_their_generation_and_not_before(tmp_path: Path):
    library = _written(tmp_path)
    collection = library.open("docs")
    asked = {"must": [{"nested": {"key": "parts", "filter": {"must": [{"key": "n", "range": {"gt": 0}}]}}}]}
    early = collection.view()
    assert early.count_matching(asked) == 0
    before = ids(early.scroll(None, 100)[0])
    frozen = early.frozen
    assert frozen is not None
    keys = frozen.store.keys
    library.compact("docs")
    assert len(keys) == 60
    assert ids(early.scroll(None, 100)[0]) == before
    del early
    collection.refresh()
    assert keys == []
    assert collection.count == 77 + 3


def test_a_generation_that_was_replaced_is_let_go_of_without_the_garbage_collector(tmp_path: Path):
    library = _written(tmp_path)
    collection = library.open("docs")
    asked = {"must": [{"has_id": [2]}, {"has_vector": "title"}]}
    assert collection.search(np.ones(DIMENSIONS), 3, filter=asked) == []
    replaced = weakref.ref(collection.view().frozen)
    gc.disable()
    try:
        assert library.compact("docs") == "g-000002"
        # its files are deleted, but while they are mapped they take memory and disk
        assert replaced() is None
    finally:
        gc.enable()


def test_what_is_written_while_it_compacts_is_there_afterwards(tmp_path: Path):
    library = _written(tmp_path)
    collection = library.open("docs")

    def meanwhile(step: str) -> None:
        library.write("docs", [Upsert((Point(f"at {step}", np.ones(DIMENSIONS, np.float32)),)), Delete(Which((7,)))])

    assert compact(collection.folder, step=meanwhile) == "g-000002"
    before = _contents(collection)
    assert collection.refresh()
    assert _contents(collection) == before == _contents(Library(tmp_path).open("docs"))
    assert ids(collection.get([f"at {step}" for step in STEPS])) == [f"at {step}" for step in STEPS]
    assert collection.get([7]) == []


def test_a_rotten_generation_is_pruned_and_the_sound_one_before_it_stays_to_be_fallen_back_on(tmp_path: Path):
    library = _written(tmp_path)
    before = _contents(library.open("docs"))
    assert library.compact("docs") == "g-000002"
    folder = library.path_of("docs")
    for newest in range(3, 7):
        # the one that is served rots, and what was written is folded into one made of the other, and of the journal
        _rot(folder / f"g-{newest - 1:06}" / "points.sqlite")
        served = Library(tmp_path).open("docs")
        assert (served.generation, _contents(served)) == ("g-000001", before)
        assert compact(folder) == f"g-{newest:06}"
        assert [path.name for path in generations(folder)] == [f"g-{newest:06}", "g-000001"]
        assert _contents(Library(tmp_path).open("docs")) == before


def _rot(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)


@pytest.mark.parametrize("fatal", STEPS)
def test_a_compaction_that_dies_before_any_step_loses_nothing(fatal: str, tmp_path: Path):
    library = _written(tmp_path)
    due = _contents(library.open("docs"))

    def step(name: str) -> None:
        if name == fatal:
            raise PowerCut(name)

    folder = library.path_of("docs")
    with pytest.raises(PowerCut):
        compact(folder, step=step)
    assert _contents(Library(tmp_path).open("docs")) == due
    library.write("docs", [Delete(Which((9,)))])
    after = _contents(library.open("docs"))
    compact(folder)
    assert _contents(Library(tmp_path).open("docs")) == after
    assert current_name(folder) == ("g-000003" if fatal in ("current", "swap", "prune") else "g-000002")


def test_only_one_compacts_at_a_time(tmp_path: Path):
    library = _written(tmp_path)
    with locked(library.path_of("docs")):
        with pytest.raises(Busy):
            compact(library.path_of("docs"))
        assert library.compact("docs") is None


def test_a_child_that_fails_says_why_and_the_collection_goes_on(tmp_path: Path):
    library = _written(tmp_path)
    collection = library.open("docs")
    collection.folder.rename(tmp_path / "away")
    with pytest.raises(IndexFault, match="not compacted"):
        collection.compact()
    (tmp_path / "away").rename(collection.folder)
    assert collection.count == 77 + 3


def test_it_is_due_for_a_long_tail_and_for_many_tombstones():
    assert not is_due(Load(tail=TAIL_POINTS, tail_bytes=0, frozen=10_000, tombstones=2_000))
    assert is_due(Load(tail=TAIL_POINTS + 1, tail_bytes=0, frozen=0, tombstones=0))
    assert is_due(Load(tail=1, tail_bytes=2**30, frozen=0, tombstones=0))
    assert is_due(Load(tail=1, tail_bytes=0, frozen=10_000, tombstones=2_001))
    assert not is_due(Load(tail=1, tail_bytes=0, frozen=100, tombstones=100))
    assert not is_urgent(Load(tail=TAIL_POINTS + 1, tail_bytes=0, frozen=10_000, tombstones=9_000))
    assert is_urgent(Load(tail=TAIL_POINTS_MAX + 1, tail_bytes=0, frozen=0, tombstones=0))


class _Carrying:
    """A collection that carries what it is told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = Path(name)
        self.load = Load(TAIL_POINTS + 1, 0, 0, 0)
        self.refreshed = 0

    def refresh(self) -> bool:
        self.refreshed += 1
        return True


def test_who_can_wait_with_writing_is_asked_to_in_proportion_to_what_is_frozen():
    assert not is_flooded(Load(tail=2 * TAIL_POINTS_MAX, tail_bytes=0, frozen=0, tombstones=0))
    assert is_flooded(Load(tail=2 * TAIL_POINTS_MAX + 1, tail_bytes=0, frozen=0, tombstones=0))
    assert is_flooded(Load(tail=5_000, tail_bytes=2**30, frozen=5_000, tombstones=0))
    # a large collection would else be compacted anew for every few points
    assert not is_flooded(Load(tail=100_000, tail_bytes=2**30, frozen=200_000, tombstones=0))
    assert is_flooded(Load(tail=100_001, tail_bytes=2**30, frozen=200_000, tombstones=0))
    # a short tail is no flood, however little is frozen
    assert not is_flooded(Load(tail=TAIL_POINTS_MAX, tail_bytes=0, frozen=10, tombstones=0))


def test_a_collection_that_is_still_being_filled_gets_its_graphs_once_that_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for module in ("snapshot", "live"):
        monkeypatch.setattr(f"understudy.indexes.{module}.EXACT_BELOW", 50)
    library = Library(tmp_path, exact_below=50, compactor=Compactor(compact=lambda _folder: None))
    library.write("docs", [Create({"": VectorShape(DIMENSIONS, "cosine", "s")}, {UNFINISHED: True})])
    library.write("docs", [Upsert(tuple(some_points(80)))])
    collection = library.open("docs")

    def compacted() -> tuple[str | None, bool, bool]:
        name = compact(collection.folder)
        collection.refresh()
        return name, collection.has_graph, is_due(collection.load)

    assert compacted() == ("g-000001", False, False)
    found = ids(collection.search(np.ones(DIMENSIONS), 10))
    library.write("docs", [Create(notes={UNFINISHED: False})])
    assert is_urgent(collection.load)
    assert ids(Library(tmp_path).open("docs").search(np.ones(DIMENSIONS), 10)) == found
    assert compacted() == ("g-000002", True, False)
    assert ids(collection.search(np.ones(DIMENSIONS), 10)) == found
    # few points need no graph, full or not
    few = Library(tmp_path / "few")
    few.write("few", [Create({"": VectorShape(DIMENSIONS)}, {UNFINISHED: True}), Upsert(tuple(some_points(40)))])
    assert compact(few.path_of("few")) == "g-000001"
    few.refresh()
    few.write("few", [Create(notes={UNFINISHED: False})])
    assert not is_due(few.open("few").load)


def test_it_rests_four_times_as_long_as_it_worked_unless_it_is_urgent():
    now, worked, docs = [100.0], [0], _Carrying("docs")

    def compacted(folder: Path) -> str | None:
        assert folder == docs.folder
        now[0] += 10.0
        worked[0] += 1
        return "g-000001"

    compactor = Compactor(compact=compacted, clock=lambda: now[0])

    def considered() -> bool:
        begun = compactor.consider(docs)
        compactor.wait()
        return begun

    assert considered()
    now[0] = 149.0
    assert not considered()
    now[0] = 150.0
    assert considered()
    assert not considered()
    docs.load = Load(TAIL_POINTS_MAX + 1, 0, 0, 0)
    assert considered()
    docs.load = Load(0, 0, 0, 0)
    now[0] = 1e6
    assert not considered()
    assert (worked[0], docs.refreshed) == (3, 3)


def test_after_a_failure_it_waits_before_it_tries_again():
    now, docs = [100.0], _Carrying("docs")

    def failing(_folder: Path) -> str | None:
        raise IndexFault("no")

    compactor = Compactor(compact=failing, clock=lambda: now[0])
    assert compactor.consider(docs)
    compactor.wait()
    now[0] = 129.0
    assert not compactor.consider(docs)
    now[0] = 130.0
    assert compactor.consider(docs)
    compactor.wait()
    assert docs.refreshed == 0


def test_a_long_tail_is_compacted_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("understudy.indexes.compacting.TAIL_POINTS", 30)
    compactor = Compactor()
    library = Library(tmp_path, compactor=compactor)
    library.write("docs", [Upsert(tuple(some_points(30)))])
    compactor.wait()
    collection = library.open("docs")
    assert collection.generation == ""
    library.write("docs", [Upsert(tuple(some_points(31)[30:]))])
    compactor.wait()
    assert (collection.generation, collection.stats.tail, collection.count) == ("g-000001", 0, 31)


def test_a_writer_killed_at_any_moment_loses_nothing_it_acknowledged(tmp_path: Path):
    tally = kill_writes.kill(tmp_path, times=5, seed=7)
    assert tally.killed == 5
    assert tally.acknowledged >= 5
    assert tally.lost == 0
    assert len(tally.generations) > 1
