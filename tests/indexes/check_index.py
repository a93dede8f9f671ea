"""What every index must do, whatever is inside: one suite, `check_index(maker, folder)`, or CHECKS one by one.

A Maker says how to write points into a folder and open them, and how to open them again. A new kind of index gets
every check below by being described as a Maker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from tests.indexes.some import ids, scores_by_hand, some_id, some_points
from understudy.indexes.faults import BadQuestion, CorruptIndex, NotFinite, UnknownFilter, WrongDimension
from understudy.indexes.points import Hit, Point, PointId

DIMENSIONS = 16
COUNT = 120


class Index(Protocol):
    """What is asked of an index."""

    @property
    def count(self) -> int: ...
    def search(
        self,
        vector: object,
        k: int,
        *,
        filter: object = None,
        offset: int = 0,
        score_threshold: float | None = None,
        with_vectors: bool = False,
    ) -> list[Hit]: ...
    def get(self, ids: Sequence[PointId], *, with_vectors: bool = False) -> list[Point]: ...
    def scroll(
        self, from_id: PointId | None, limit: int, filter: object = None, *, with_vectors: bool = False
    ) -> tuple[list[Point], PointId | None]: ...
    def count_matching(self, filter: object = None) -> int: ...


@dataclass(frozen=True)
class Maker:
    """One kind of index. `make` writes points into a folder and opens it; `reopen` opens what is there."""

    name: str
    distance: str
    make: Callable[[Path, Sequence[Point]], Index]
    reopen: Callable[[Path], Index]


def check_index(maker: Maker, folder: Path) -> None:
    """Run every check, each in a folder of its own."""
    for check in CHECKS:
        check(maker, folder / check.__name__)


def the_best_come_first_with_the_scores_of_the_definition(maker: Maker, folder: Path) -> None:
    points = some_points(COUNT, DIMENSIONS)
    index = maker.make(folder, points)
    for query in _queries():
        due = scores_by_hand(points, query, maker.distance)
        hits = index.search(query, 10)
        assert [hit.score for hit in hits] == pytest.approx([due[hit.id] for hit in hits], rel=1e-4, abs=1e-5)
        assert [hit.score for hit in hits] == pytest.approx(_best(due, maker)[:10], rel=1e-4, abs=1e-5)


def a_hit_carries_what_was_stored(maker: Maker, folder: Path) -> None:
    points = some_points(COUNT, DIMENSIONS)
    hit = maker.make(folder, points).search(points[3].vector, COUNT, with_vectors=True)
    found = {one.id: one for one in hit}[points[3].id]
    assert (found.payload, found.text, found.source) == (points[3].payload, points[3].text, points[3].source)
    assert found.vector is not None
    np.testing.assert_array_equal(found.vector, points[3].vector)


def more_than_there_are_gives_what_there_is(maker: Maker, folder: Path) -> None:
    index = maker.make(folder, some_points(COUNT, DIMENSIONS))
    assert len(index.search(_queries()[0], 10 * COUNT)) == COUNT
    assert index.search(_queries()[0], 0) == []
    assert index.search(_queries()[0], 5, offset=COUNT) == []
    assert len(index.search(_queries()[0], COUNT, filter=_tenant(2))) == COUNT // 5


def pages_together_are_the_whole(maker: Maker, folder: Path) -> None:
    index = maker.make(folder, some_points(COUNT, DIMENSIONS))
    query = _queries()[1]
    paged = [hit for offset in range(0, 60, 7) for hit in index.search(query, 7, offset=offset)][:60]
    assert ids(paged) == ids(index.search(query, 60))


def a_filter_gives_the_best_of_those_it_lets_through(maker: Maker, folder: Path) -> None:
    points = some_points(COUNT, DIMENSIONS)
    index = maker.make(folder, points)
    for asked, passes in _filters():
        allowed = [point for point in points if passes(point)]
        due = scores_by_hand(allowed, _queries()[2], maker.distance)
        hits = index.search(_queries()[2], 10, filter=asked)
        assert [hit.score for hit in hits] == pytest.approx(_best(due, maker)[:10], rel=1e-4, abs=1e-5)
        assert {hit.id for hit in hits} <= due.keys()
        assert index.count_matching(asked) == len(allowed)


def a_filter_that_is_not_understood_is_refused(maker: Maker, folder: Path) -> None:
    index = maker.make(folder, some_points(5, DIMENSIONS))
    for asked in ({"must": [{"key": "n", "glob": "*"}]}, {"mist": []}, "n = 1"):
        for ask in (
            lambda asked=asked: index.search(_queries()[0], 3, filter=asked),
            lambda asked=asked: index.scroll(None, 3, asked),
            lambda asked=asked: index.count_matching(asked),
        ):
            with pytest.raises(UnknownFilter):
                ask()


def a_vector_of_another_length_is_refused(maker: Maker, folder: Path) -> None:
    index = maker.make(folder, some_points(5, DIMENSIONS))
    for vector in (np.zeros(DIMENSIONS - 1), np.zeros(DIMENSIONS + 1), np.zeros((1, DIMENSIONS)), [], 1.0):
        with pytest.raises(WrongDimension):
            index.search(vector, 3)


def a_vector_that_is_not_finite_is_refused(maker: Maker, folder: Path) -> None:
    index = maker.make(folder, some_points(5, DIMENSIONS))
    for bad in (float("nan"), float("inf"), float("-inf"), 1e30, 1e300):
        vector = [0.5] * (DIMENSIONS - 1) + [bad]
        with pytest.raises(NotFinite):
            index.search(vector, 3)
    with pytest.raises(NotFinite):
        index.search(["one"] * DIMENSIONS, 3)


def negative_limits_and_offsets_are_refused(maker: Maker, folder: Path) -> None:
    index = maker.make(folder, some_points(5, DIMENSIONS))
    for ask in (
        lambda: index.search(_queries()[0], -1),
        lambda: index.search(_queries()[0], 1, offset=-1),
        lambda: index.scroll(None, -1),
    ):
        with pytest.raises(BadQuestion):
            ask()


def an_empty_collection_answers_with_nothing(maker: Maker, folder: Path) -> None:
    index = maker.make(folder, [])
    assert index.count == 0
    assert index.search(_queries()[0], 3) == []
    assert index.search(_queries()[0], 3, filter=_tenant(1)) == []
    assert index.scroll(None, 3) == ([], None)
    assert index.get([1]) == []
    assert index.count_matching() == 0
    with pytest.raises(WrongDimension):
        index.search([1.0], 3)


def a_threshold_cuts_off_the_rest(maker: Maker, folder: Path) -> None:
    index = maker.make(folder, some_points(COUNT, DIMENSIONS))
    whole = index.search(_queries()[0], COUNT)
    bar = whole[20].score
    cut = index.search(_queries()[0], COUNT, score_threshold=bar)
    assert ids(cut) == [hit.id for hit in whole if (hit.score <= bar if _is_euclid(maker) else hit.score >= bar)]
    assert len(cut) >= 21


def a_zero_vector_is_a_vector(maker: Maker, folder: Path) -> None:
    points = [*some_points(10, DIMENSIONS), Point("zero", np.zeros(DIMENSIONS, np.float32))]
    index = maker.make(folder, points)
    due = scores_by_hand(points, np.zeros(DIMENSIONS, np.float32), maker.distance)
    hits = index.search(np.zeros(DIMENSIONS), 11)
    assert [hit.score for hit in hits] == pytest.approx(_best(due, maker), rel=1e-4, abs=1e-5)


def ids_of_both_kinds_are_kept_apart(maker: Maker, folder: Path) -> None:
    known: list[PointId] = [7, "7", 0, 2**64 - 1, "f0e0d0c0-0000-4000-8000-00000000abcd", "", "naïve", "~"]
    vectors = some_points(len(known), DIMENSIONS)
    points = [Point(name, one.vector, {"as": repr(name)}) for name, one in zip(known, vectors, strict=True)]
    index = maker.make(folder, points)
    assert index.count == len(known)
    for name in known:
        due = [(name, type(name), {"as": repr(name)})]
        assert [(one.id, type(one.id), one.payload) for one in index.get([name])] == due
    assert ids(index.get(["F0E0D0C0000040008000-00000000ABCD", "{F0E0D0C0-0000-4000-8000-00000000ABCD}"])) == [known[4]]
    assert {hit.id for hit in index.search(_queries()[0], 20)} == set(known)


def get_keeps_the_order_and_leaves_out_strangers(maker: Maker, folder: Path) -> None:
    index = maker.make(folder, some_points(20, DIMENSIONS))
    asked = [some_id(9), "nobody", some_id(2), 10**9, some_id(9)]
    assert ids(index.get(asked)) == [some_id(9), some_id(2), some_id(9)]
    assert index.get([]) == []


def scroll_visits_each_point_once_in_order(maker: Maker, folder: Path) -> None:
    points = some_points(COUNT, DIMENSIONS)
    index = maker.make(folder, points)
    for asked, passes in [(None, lambda point: True), *_filters()]:
        for limit in (1, 7, COUNT):
            seen = _scrolled(index, limit, asked)
            due = [point.id for point in points if passes(point)]
            assert seen == sorted(due, key=lambda name: (isinstance(name, str), name))


def a_scroll_may_start_from_an_id_that_is_not_there(maker: Maker, folder: Path) -> None:
    index = maker.make(folder, some_points(20, DIMENSIONS))
    page, following = index.scroll(4, 2)
    assert (ids(page), following) == ([5, 7], 9)


def what_was_written_is_there_after_opening_again(maker: Maker, folder: Path) -> None:
    before = maker.make(folder, some_points(COUNT, DIMENSIONS))
    after = maker.reopen(folder)
    assert after.count == before.count
    assert [(hit.id, hit.score) for hit in after.search(_queries()[0], 20)] == [
        (hit.id, hit.score) for hit in before.search(_queries()[0], 20)
    ]
    assert _scrolled(after, 50, None) == _scrolled(before, 50, None)


def a_flipped_bit_is_never_served(maker: Maker, folder: Path) -> None:
    sound = _contents(maker.make(folder, some_points(COUNT, DIMENSIONS)))
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 64)
    assert files
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(whole[:40] + bytes([whole[40] ^ 4]) + whole[41:])
        try:
            assert _contents(maker.reopen(folder)) == sound, path.name
        except CorruptIndex as fault:
            assert folder.name in str(fault)  # noqa: PT017
        path.write_bytes(whole)


CHECKS: list[Callable[[Maker, Path], None]] = [
    the_best_come_first_with_the_scores_of_the_definition,
    a_hit_carries_what_was_stored,
    more_than_there_are_gives_what_there_is,
    pages_together_are_the_whole,
    a_filter_gives_the_best_of_those_it_lets_through,
    a_filter_that_is_not_understood_is_refused,
    a_vector_of_another_length_is_refused,
    a_vector_that_is_not_finite_is_refused,
    negative_limits_and_offsets_are_refused,
    an_empty_collection_answers_with_nothing,
    a_threshold_cuts_off_the_rest,
    a_zero_vector_is_a_vector,
    ids_of_both_kinds_are_kept_apart,
    get_keeps_the_order_and_leaves_out_strangers,
    scroll_visits_each_point_once_in_order,
    a_scroll_may_start_from_an_id_that_is_not_there,
    what_was_written_is_there_after_opening_again,
    a_flipped_bit_is_never_served,
]


def _queries() -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    return list(np.random.default_rng(3).normal(size=(3, DIMENSIONS)).astype(np.float32))


def _tenant(number: int) -> dict[str, Any]:
    return {"must": [{"key": "tenant", "match": {"value": f"t{number}"}}]}


def _filters() -> list[tuple[dict[str, Any], Callable[[Point], bool]]]:
    """Filters that let much, little and nothing through, with what they mean."""
    return [
        (_tenant(3), lambda point: point.payload["tenant"] == "t3"),
        ({"must_not": [{"key": "n", "range": {"lt": 3}}]}, lambda point: point.payload["n"] >= 3),
        ({"must": [{"has_id": [some_id(4), some_id(9)]}]}, lambda point: point.id in (some_id(4), some_id(9))),
        ({"should": [{"key": "even", "match": {"value": True}}]}, lambda point: bool(point.payload["even"])),
        ({"must": [{"key": "n", "match": {"value": -1}}]}, lambda point: False),
    ]


def _scrolled(index: Index, limit: int, filter: object) -> list[PointId]:
    seen: list[PointId] = []
    following: PointId | None = None
    for _ in range(COUNT + 2):
        page, following = index.scroll(following, limit, filter)
        seen += ids(page)
        if following is None:
            return seen
    raise AssertionError("the scroll does not end")


def _contents(index: Index) -> list[Any]:
    everything, _ = index.scroll(None, COUNT, with_vectors=True)
    hits = index.search(_queries()[0], 20)
    return [
        [
            (one.id, one.payload, one.text, one.source, one.vector.tolist())
            for one in everything
            if one.vector is not None
        ],
        [(hit.id, hit.score) for hit in hits],
    ]


def _best(due: dict[PointId, float], maker: Maker) -> list[float]:
    return sorted(due.values(), reverse=not _is_euclid(maker))


def _is_euclid(maker: Maker) -> bool:
    return maker.distance == "euclid"
