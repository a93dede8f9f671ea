"""Writing: what was acknowledged is found at once, after opening again, by the other process, and only once."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.indexes.some import ids, some_points
from understudy.indexes.collection import Applied
from understudy.indexes.conditions import Condition
from understudy.indexes.faults import BadPoint, BadQuestion, NotFinite, OverBudget, UnknownFilter, WrongDimension
from understudy.indexes.library import Library
from understudy.indexes.points import Point, PointId
from understudy.indexes.snapshot import write_snapshot
from understudy.indexes.tail_words import TailWords
from understudy.indexes.writes import (
    Create,
    Delete,
    Drop,
    DropPayload,
    DropVectors,
    PutPayload,
    PutVectors,
    Upsert,
    VectorShape,
    Which,
    Write,
    sole,
)

DIMENSIONS = 16


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "library")


def _vector(value: float, dimensions: int = DIMENSIONS) -> NDArray[np.float32]:
    vector = np.ones(dimensions, np.float32)
    vector[0] = value
    return vector


def _payloads(library: Library, name: str = "docs") -> dict[PointId, dict[str, Any]]:
    collection = library.get(name)
    return {} if collection is None else {point.id: point.payload for point in collection.scroll(None, 1_000)[0]}


def _both(tmp_path: Path, points: tuple[Point, ...]) -> list[Library]:
    """The same points frozen in a snapshot, and live in a journal."""
    frozen, live = Library(tmp_path / "frozen"), Library(tmp_path / "live")
    write_snapshot(frozen.path_of("docs"), points, space="s", dimensions=DIMENSIONS)
    live.write("docs", [Upsert(points)], space="s")
    return [frozen, live]


def test_what_was_written_is_found_at_once_and_after_opening_again(library: Library):
    points = some_points(30)
    assert library.get("docs") is None
    applied = library.write("docs", [Upsert(tuple(points))], space="minilm")
    assert (applied.put, applied.gone) == (30, 0)
    again = Library(library.folder)
    for opened in (library, again):
        collection = opened.get("docs")
        assert collection is not None
        assert (collection.count, collection.dimensions, str(collection.distance)) == (30, DIMENSIONS, "cosine")
        assert (collection.space, collection.epoch, collection.generation) == ("minilm", applied.epoch, "")
        assert ids(collection.search(points[3].vector, 1)) == [points[3].id]
        assert collection.search_text("number 7", 1)[0].id == points[7].id
    assert again.names() == ["docs"]


def test_writing_the_same_again_changes_nothing(tmp_path: Path):
    writes: list[Write] = [
        Upsert(tuple(some_points(20))),
        PutPayload(Which((1, 3)), {"seen": True}),
        DropPayload(Which((5,)), ("tenant",)),
        Delete(Which((7,))),
    ]
    for library in _both(tmp_path, tuple(some_points(5))):
        library.write("docs", writes)
        before = _payloads(library)
        library.write("docs", writes)
        assert _payloads(library) == before == _payloads(Library(library.folder))
        assert len(before) == 19


def test_an_upsert_may_be_only_for_new_points_or_only_for_those_there(tmp_path: Path):
    for library in _both(tmp_path, (Point(1, _vector(1), {"v": "old"}),)):
        new = (Point(1, _vector(2), {"v": "new"}), Point(2, _vector(2), {"v": "new"}))
        assert library.write("docs", [Upsert(new, only="new")]).put == 1
        assert _payloads(library) == {1: {"v": "old"}, 2: {"v": "new"}}
        library.write("docs", [Delete(Which((2,))), Upsert(new, only="existing")])
        assert _payloads(library) == {1: {"v": "new"}}


def test_points_are_taken_away_by_id_in_any_spelling_and_by_filter(tmp_path: Path):
    points = tuple(some_points(12))
    asked = {"must": [{"key": "n", "range": {"gte": 8}}]}
    for library in _both(tmp_path, points):
        uuid = str(points[4].id)
        assert library.write("docs", [Delete(Which((uuid.upper(), 3, 99)))]).gone == 2
        assert library.write("docs", [Delete(Which(filter=asked))]).gone == 4
        text = Condition(b"five", lambda _id, _payload, text: text.endswith("number 5"), reads_text=True)
        assert library.write("docs", [Delete(Which(filter=text))]).gone == 1
        assert sorted(payload["n"] for payload in _payloads(library).values()) == [0, 1, 2, 6, 7]
        assert library.write("docs", [Delete(Which())]).gone == 0
        assert library.write("docs", [Delete(Which(filter={}))]).gone == 5
        collection = library.get("docs")
        assert collection is not None
        assert (collection.count, collection.search(_vector(1), 5), collection.scroll(None, 5)) == (0, [], ([], None))


def test_a_filter_sees_what_the_same_call_wrote_before_it(tmp_path: Path):
    asked = {"must": [{"key": "v", "match": {"value": 1}}]}
    for library in _both(tmp_path, (Point(1, _vector(1), {"v": 1}), Point(2, _vector(1), {"v": 1}))):
        library.write(
            "docs",
            [
                PutPayload(Which((1,)), {"v": 2}),
                Upsert((Point(3, _vector(1), {"v": 1}),)),
                PutPayload(Which(filter=asked), {"hit": True}),
            ],
        )
        assert _payloads(library) == {1: {"v": 2}, 2: {"v": 1, "hit": True}, 3: {"v": 1, "hit": True}}


def test_payloads_are_written_field_by_field_below_a_key_or_whole(tmp_path: Path):
    start = {"a": 1, "deep": {"x": 1, "list": [{"y": 1}, {"y": 2}]}, "dotted.name": 1}
    for library in _both(tmp_path, (Point(1, _vector(1), start, "words", "file.md", 7),)):

        def after(*writes: Write, library: Library = library) -> dict[str, Any]:
            library.write("docs", [PutPayload(Which((1,)), start, replace=True), *writes])
            return _payloads(library)[1]

        one = Which((1,))
        assert after(PutPayload(one, {"b": None})) == {**start, "b": None}
        assert after(PutPayload(one, {"z": 1}, replace=True)) == {"z": 1}
        assert after(PutPayload(one, {"x": 9}, key="deep"))["deep"]["x"] == 9
        assert after(PutPayload(one, {"x": 9}, key="deep", replace=True))["deep"] == {"x": 9}
        assert after(PutPayload(one, {"n": 1}, key="new.place"))["new"] == {"place": {"n": 1}}
        assert after(PutPayload(one, {"n": 1}, key="deep.list[]"))["deep"]["list"] == [
            {"y": 1, "n": 1},
            {"y": 2, "n": 1},
        ]
        assert after(PutPayload(one, {"n": 1}, key="deep.list[1]"))["deep"]["list"] == [{"y": 1}, {"y": 2, "n": 1}]
        assert after(DropPayload(one, ("a", "nowhere"))) == {key: start[key] for key in ("deep", "dotted.name")}
        assert after(DropPayload(one, ("dotted.name", "deep.x"))) == {"a": 1, "deep": {"list": start["deep"]["list"]}}
        assert after(DropPayload(one, ("deep.list[].y",)))["deep"]["list"] == [{}, {}]
        assert after(DropPayload(one)) == {}
        (kept,) = library.get("docs").get([1], with_vectors=True)  # pyright: ignore[reportOptionalMemberAccess]
        assert (kept.text, kept.source, kept.version) == ("words", "file.md", 7)
        np.testing.assert_array_equal(kept.vector, _vector(1))


def test_vectors_have_names_dimensions_and_distances_of_their_own_and_a_point_may_lack_one(library: Library):
    shapes = {"": VectorShape(4, "euclid", "a"), "title": VectorShape(2, "dot", "b")}
    one = Point(1, np.array([0, 0, 0, 1], np.float32), named={"title": np.array([3, 0], np.float32)})
    two = Point(2, np.array([0, 0, 0, 3], np.float32))
    three = Point(3, named={"title": np.array([1, 1], np.float32)})
    library.write("docs", [Create(shapes), Upsert((one, two, three))])
    collection = library.get("docs")
    assert collection is not None
    for _ in range(2):
        assert [(hit.id, hit.score) for hit in collection.search([0, 0, 0, 0], 5)] == [(1, 1.0), (2, 3.0)]
        assert [(hit.id, hit.score) for hit in collection.search([1, 2], 5, using="title")] == [(1, 3.0), (3, 3.0)]
        assert [(kept.space, kept.distance) for kept in collection.shapes.values()] == [("a", "euclid"), ("b", "dot")]
        (back,) = collection.get([3], with_vectors=True)
        assert (back.vector, list(back.named)) == (None, ["title"])
        with pytest.raises(BadQuestion, match="no vectors named 'body'"):
            collection.search([1, 2], 5, using="body")
        with pytest.raises(WrongDimension):
            collection.search([1, 2, 3], 5, using="title")
        collection = Library(library.folder).open("docs")
    library.write("docs", [PutVectors((Point(3, np.zeros(4, np.float32)), Point(99, np.zeros(4, np.float32))))])
    library.write("docs", [DropVectors(Which((1,)), ("title", "nothing"))])
    found = library.open("docs")
    assert ids(found.search([0, 0, 0, 0], 5)) == [3, 1, 2]
    assert ids(found.search([1, 2], 5, using="title")) == [3]


def test_vectors_that_only_their_first_point_shows_are_compared_as_was_noted_of_their_names(library: Library):
    noted = {"distance": "dot", "distances": {"title": "euclid"}}
    library.write("docs", [Create(notes=noted)])
    named = {"title": _vector(2, 4), "body": _vector(3, 6)}
    library.write("docs", [Upsert((Point(1, _vector(1), named=named),))])
    collection = Library(library.folder).get("docs")
    assert collection is not None
    shapes = {name: (shape.dimensions, str(shape.distance)) for name, shape in collection.shapes.items()}
    assert shapes == {"": (16, "dot"), "title": (4, "euclid"), "body": (6, "dot")}


def test_a_vector_without_a_name_is_the_only_one_that_a_collection_has():
    bare, named = Point(1, _vector(1)), Point(2, named={"a": _vector(2)})
    for write in (Upsert((bare, named)), PutVectors((bare, named))):
        (one, other) = points_of(sole(write, ["a"]))
        assert (one.vector, other) == (None, named)
        assert one.named["a"].tolist() == _vector(1).tolist()
        for names in ([], [""], ["a", "b"], ["", "a"]):
            assert sole(write, names) is write, "which one it is nobody knows"
    assert points_of(sole(Upsert((named,)), ["a"])) == (named,)
    gone = Delete(Which((1,)))
    assert sole(gone, ["a"]) is gone


def points_of(write: Write) -> tuple[Point, ...]:
    assert isinstance(write, Upsert | PutVectors)
    return write.points


@pytest.mark.parametrize(
    ("write", "fault"),
    [
        (Upsert((Point(-1, _vector(1)),)), BadPoint),
        (Upsert((Point(1, np.ones(3, np.float32)),)), WrongDimension),
        (Upsert((Point(1, _vector(float("nan"))),)), NotFinite),
        (Upsert((Point(1, _vector(1), {"x": object()}),)), BadPoint),
        (Upsert((Point(1, _vector(1), {}, "\ud800"),)), BadPoint),
        (Delete(Which(filter={"mist": []})), UnknownFilter),
        (Create({str(number): VectorShape(2) for number in range(40)}), BadPoint),
        (Create({"x": VectorShape(0)}), BadPoint),
    ],
)
def test_a_write_that_cannot_be_kept_changes_nothing_and_spares_the_others(
    write: Write, fault: type[Exception], library: Library
):
    library.write("docs", [Upsert((Point(1, _vector(1), {"v": 1}),))])
    before = library.get("docs")
    assert before is not None
    epoch = before.epoch
    with pytest.raises(fault):
        library.write("docs", [Upsert((Point(2, _vector(1)),)), write])
    assert (_payloads(library), before.epoch) == ({1: {"v": 1}}, epoch)
    assert _payloads(Library(library.folder)) == {1: {"v": 1}}
    library.write("docs", [Upsert((Point(3, _vector(1)),))])
    assert list(_payloads(Library(library.folder))) == [1, 3]


def test_a_collection_is_dropped_whole_and_made_again(library: Library):
    library.write("docs", [Create({"": VectorShape(DIMENSIONS)}, {"made": "by hand"}), Upsert(tuple(some_points(9)))])
    assert library.write("docs", [Drop(), Drop(), Create({"": VectorShape(3, "dot")})]).gone == 9
    library.write("docs", [Upsert((Point(1, np.ones(3, np.float32)),))])
    collection = Library(library.folder).get("docs")
    assert collection is not None
    assert (collection.count, collection.dimensions, collection.notes) == (1, 3, {})
    library.write("docs", [Drop()])
    assert (library.get("docs"), library.names(), list(library.folder.iterdir())) == (None, [], [])


def test_what_changes_nothing_makes_no_collection(library: Library):
    assert library.write("docs", [Delete(Which((1,))), PutPayload(Which((1,)), {"x": 1})]) == Applied()
    assert (library.get("docs"), library.names()) == (None, [])


def test_another_process_finds_it_after_a_refresh_and_both_may_write(library: Library):
    other = Library(library.folder)
    library.write("docs", [Upsert((Point(1, _vector(1)),))])
    assert other.refresh() == {"docs": "opened its journal"}
    library.write("docs", [Upsert((Point(2, _vector(1)),))])
    assert list(_payloads(other)) == [1]
    assert other.refresh() == {}
    assert list(_payloads(other)) == [1, 2]
    # without a refresh, the writer catches up by itself before it writes
    library.write("docs", [Delete(Which((1,)))])
    other.write("docs", [Upsert((Point(3, _vector(1)),))])
    assert list(_payloads(other)) == [2, 3]
    library.refresh()
    assert _payloads(library) == _payloads(other) == _payloads(Library(library.folder))


def test_a_write_to_what_another_process_dropped_makes_it_anew(library: Library):
    other = Library(library.folder)
    library.write("docs", [Upsert((Point(1, _vector(1)),))])
    assert list(_payloads(other)) == [1]
    library.write("docs", [Drop()])
    assert other.write("docs", [PutPayload(Which((1,)), {"x": 1})]) == Applied()
    other.write("docs", [Upsert((Point(2, _vector(1)),))])
    library.refresh()
    assert list(_payloads(library)) == list(_payloads(other)) == [2]
    library.write("docs", [Drop(), Upsert((Point(5, _vector(1)),))])
    other.refresh()
    assert list(_payloads(other)) == [5]


def test_writers_side_by_side_lose_nothing_and_share_their_commits(library: Library, monkeypatch: pytest.MonkeyPatch):
    library.write("docs", [Create({"": VectorShape(DIMENSIONS)})])
    libraries = [library, Library(library.folder)]

    def work(number: int) -> None:
        for each in range(20):
            point = Point(100 * number + each, _vector(number), {"by": number})
            libraries[number % 2].write("docs", [Upsert((point,))])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    due = sorted(100 * number + each for number in range(8) for each in range(20))
    for opened in (*libraries, Library(library.folder)):
        opened.refresh()
        assert list(_payloads(opened)) == due


def test_a_view_goes_on_seeing_what_was_there_when_it_was_taken(tmp_path: Path):
    for library in _both(tmp_path, tuple(some_points(70))):
        collection = library.open("docs")
        view, asked = collection.view(), {"must": [{"key": "even", "match": {"value": True}}]}
        due = [ids(view.search(_vector(1), 9)), ids(view.search(_vector(1), 9, filter=asked)), view.count]
        library.write("docs", [Delete(Which(filter=asked)), Upsert(tuple(some_points(90, seed=3)))])
        assert [ids(view.search(_vector(1), 9)), ids(view.search(_vector(1), 9, filter=asked)), view.count] == due
        assert collection.count == 90


def test_what_is_more_than_the_memory_allowed_is_refused_and_what_is_there_goes_on(tmp_path: Path):
    library = Library(tmp_path, bytes_max=400_000)
    library.write("docs", [Upsert(tuple(some_points(50)))])
    with pytest.raises(OverBudget, match=r"writing 5000 points to 'docs' needs \d+\.\d MiB .* 0\.4 MiB are allowed"):
        library.write("docs", [Upsert(tuple(some_points(5_000)))])
    assert len(_payloads(library)) == 50
    library.write("docs", [Delete(Which((1,)))])
    assert len(_payloads(library)) == 49
    with pytest.raises(OverBudget, match="opening 'docs' needs"):
        Library(tmp_path, bytes_max=20_000).get("docs")
    assert "docs" not in Library(tmp_path, bytes_max=20_000).stats
    stats = library.stats["docs"]
    assert (stats.points, stats.tail, stats.tombstones) == (49, 50, 0)
    assert 0 < stats.bytes == library.bytes_held < 400_000


def test_the_words_of_what_was_written_are_nothing_to_go_through_for_the_garbage_collector():
    words = TailWords()
    words.put(0, "qx")
    before = len(gc.get_objects())
    for slot in range(1, 1_001):
        words.put(slot, f"qx qx w{slot}")
    assert len(gc.get_objects()) - before < 50
    assert words.count_of("qx") == 1_001
    found = dict(words.search(["w7", "qx"], None, np.ones(1_000, np.bool_)))
    assert set(found) == set(range(1_000))
    assert max(found, key=found.__getitem__) == 7
