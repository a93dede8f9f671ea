"""Masks: what a filter lets through is worked out once, carried on for what grows, and gathered where there is room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.indexes.some import ids, some_points
from understudy.indexes.collection import Collection
from understudy.indexes.conditions import Condition
from understudy.indexes.masks import Gatherings
from understudy.indexes.points import Point
from understudy.indexes.snapshot import write_snapshot
from understudy.indexes.vectors import Gathered
from understudy.indexes.writes import Delete, Upsert, Which

DIMENSIONS = 16


def _gathered(rows: int) -> Gathered:
    return Gathered(np.arange(rows), np.zeros((rows, 1), np.float32))


def test_what_is_gathered_stays_within_its_bytes_and_has_to_ask_twice_for_anothers_place():
    made: list[str] = []
    gatherings = Gatherings(bytes_max=400)

    def ask(name: str, rows: int) -> Gathered | None:
        def gather() -> Gathered:
            made.append(name)
            return _gathered(rows)

        return gatherings.get(("", name.encode()), 4 * rows, gather)

    assert ask("a", 60) is not None
    assert ask("b", 40) is not None
    assert ask("a", 60) is not None
    assert (made, gatherings.bytes_held) == (["a", "b"], 400)
    assert ask("too large", 101) is None
    assert ask("c", 40) is None
    assert ask("d", 40) is None
    assert ask("c", 40) is None
    assert made == ["a", "b"]
    assert ask("c", 40) is not None
    assert (made, gatherings.bytes_held) == (["a", "b", "c"], 400)
    assert ask("a", 60) is not None
    assert ask("b", 40) is None


def test_a_filter_is_asked_of_each_point_once_and_of_new_ones_only(tmp_path: Path):
    points = some_points(30)
    write_snapshot(tmp_path / "docs", points, space="s", dimensions=DIMENSIONS)
    collection = Collection.open(tmp_path / "docs")
    seen: list[object] = []

    def passes(point_id: int | str, _payload: object, _text: str) -> bool:
        seen.append(point_id)
        return True

    asked = Condition(b"all of them", passes)
    for _ in range(2):
        assert collection.count_matching(asked) == 30
    assert seen == [point.id for point in collection.scroll(None, 30)[0]]
    seen.clear()
    collection.write([Upsert((Point("new", np.ones(DIMENSIONS, np.float32)),)), Delete(Which((1, 3)))])
    for _ in range(2):
        assert collection.count_matching(asked) == 29
    collection.write([Upsert((Point("newer", np.ones(DIMENSIONS, np.float32)),))])
    assert collection.count_matching(asked) == 30
    assert seen == ["new", "newer"]


@pytest.mark.parametrize("distance", ["cosine", "dot", "euclid"])
@pytest.mark.parametrize("share", [1.0, 0.9, 0.5, 0.3, 0.1, 0.02])
def test_a_filter_agrees_with_an_exact_scan_while_points_die_and_are_put_again(
    distance: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # as in a large collection: few rows are gathered each time, more of them once, and the rest is asked of the graph
    monkeypatch.setattr("understudy.indexes.vectors._GATHER_ROWS", 50)
    monkeypatch.setattr("understudy.indexes.vectors._GATHER_ROWS_MAX", 60)
    monkeypatch.setattr("understudy.indexes.vectors._GATHER_SHARE_MAX", 0.35)
    points = some_points(900)
    write_snapshot(tmp_path / "docs", points, space="s", dimensions=DIMENSIONS, distance=distance, graph=True)
    live = Collection.open(tmp_path / "docs", exact_below=0)
    assert live.has_graph
    asked = {"must": [{"key": "n", "range": {"lt": 900 * share}}]}
    held = {point.id: point for point in points}
    agreed: list[bool] = []
    for round_ in range(3):
        exact_folder = tmp_path / f"exact-{round_}"
        write_snapshot(exact_folder, held.values(), space="s", dimensions=DIMENSIONS, distance=distance)
        exact = Collection.open(exact_folder)
        for query in np.random.default_rng(round_).normal(size=(8, DIMENSIONS)):
            due, hits = exact.search(query, 5, filter=asked), live.search(query, 5, filter=asked)
            assert all(hit.payload["n"] < 900 * share and hit.id in held for hit in hits)
            assert len(hits) == len(due)
            agreed += [hit.id in ids(due) for hit in hits]
        gone = [point.id for point in list(held.values())[round_::9]]
        again = some_points(900, seed=50 + round_)[round_::11]
        live.write([Delete(Which(tuple(gone))), Upsert(tuple(again))])
        held = {key: point for key, point in held.items() if key not in gone} | {point.id: point for point in again}
    # beyond what is scanned, it is as right as the graph, whose answers by unnormalised products are its worst
    assert sum(agreed) == len(agreed) if share <= 0.3 else sum(agreed) >= 0.97 * len(agreed)
