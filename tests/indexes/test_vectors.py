"""Nearest vectors: the graph finds what a scan finds, and hnswlib's silences are guarded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.indexes.some import clustered
from understudy.indexes.faults import BadQuestion, CorruptIndex
from understudy.indexes.vectors import (
    EF_LEAST,
    Distance,
    Graph,
    VectorIndex,
    failed_probes,
    find_probes,
    prepared,
    top,
)


def _both(count: int, distance: Distance, dimensions: int = 48) -> tuple[VectorIndex, VectorIndex]:
    matrix = prepared(clustered(count, dimensions), distance)
    return VectorIndex(matrix, distance), VectorIndex(matrix, distance, Graph.build(matrix, distance, threads=2))


@pytest.mark.parametrize("distance", [Distance.COSINE, Distance.EUCLID])
def test_the_graph_finds_995_of_1000_of_what_a_scan_finds(distance: Distance):
    exact, graph = _both(6_000, distance)
    dice = np.random.default_rng(11)
    queries = clustered(6_000, 48)[dice.integers(0, 6_000, 300)] + dice.normal(scale=0.3, size=(300, 48))
    found = sum(len(set(exact.search(query, 10)[0]) & set(graph.search(query, 10)[0])) for query in queries)
    assert found / 3_000 >= 0.995


def test_a_graph_read_back_gives_the_answers_it_gave(tmp_path: Path):
    _, before = _both(500, Distance.COSINE)
    assert before.graph is not None
    before.graph.save(tmp_path / "graph")
    after = VectorIndex(before.matrix, Distance.COSINE, Graph.load(tmp_path / "graph", Distance.COSINE, 48, 500))
    for query in clustered(20, 48, seed=3):
        np.testing.assert_array_equal(before.search(query, 10)[0], after.search(query, 10)[0])
    probes = find_probes(before)
    assert len(probes) == 32
    assert failed_probes(after, probes) == 0


def test_a_graph_over_other_vectors_fails_its_probes():
    _, ours = _both(500, Distance.COSINE)
    shuffled = np.random.default_rng(0).permutation(ours.matrix)
    theirs = VectorIndex(ours.matrix, Distance.COSINE, Graph.build(shuffled, Distance.COSINE))
    assert failed_probes(theirs, find_probes(ours)) > 0
    with pytest.raises(CorruptIndex, match="its own vectors"):
        find_probes(theirs)


def test_a_truncated_graph_is_refused(tmp_path: Path):
    _, index = _both(100, Distance.DOT)
    assert index.graph is not None
    index.graph.save(tmp_path / "graph")
    whole = (tmp_path / "graph").read_bytes()
    (tmp_path / "graph").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptIndex):
        Graph.load(tmp_path / "graph", Distance.DOT, 48, 100)


class _Hnsw:
    """hnswlib that cannot find k until ef has been raised to `enough`; it notes what it was told."""

    def __init__(self, enough: float) -> None:
        self.enough = enough
        self.efs: list[int] = []

    def set_ef(self, ef: int) -> None:
        self.efs.append(ef)

    def knn_query(self, data: Any, k: int, num_threads: int) -> tuple[Any, Any]:
        if self.efs[-1] < self.enough:
            raise RuntimeError("Cannot return the results in a contiguous 2D array. Probably ef or M is too small")
        return np.arange(k, dtype=np.uint64)[::-1].reshape(1, k), np.zeros((1, k), np.float32)


@pytest.mark.parametrize(("enough", "tried"), [(0, [128]), (129, [128, 128, 512, 128]), (1e9, [128, 128, 512, 128])])
def test_a_graph_that_finds_too_few_is_asked_four_times_as_hard_and_then_left(enough: float, tried: list[int]):
    hnsw = _Hnsw(enough)
    graph = Graph(hnsw)  # pyright: ignore[reportArgumentType]
    rows = graph.nearest(np.zeros(4, np.float32), 10)
    assert hnsw.efs == tried
    assert (rows is None) == (enough > 512)


def test_a_scan_answers_where_the_graph_cannot():
    matrix = clustered(50, 4)
    broken = VectorIndex(matrix, Distance.DOT, Graph(_Hnsw(1e9)))  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(
        broken.search(matrix[3], 7)[0], VectorIndex(matrix, Distance.DOT).search(matrix[3], 7)[0]
    )


def test_a_wide_question_raises_ef_and_lowers_it_again():
    hnsw = _Hnsw(0)
    graph = Graph(hnsw)  # pyright: ignore[reportArgumentType]
    graph.nearest(np.zeros(4, np.float32), 100)
    assert hnsw.efs == [EF_LEAST, 400, EF_LEAST]


@pytest.mark.parametrize(("share", "ef"), [(1.0, 320), (0.5, 320), (0.3, 320), (0.25, 384)])
def test_a_filtered_question_looks_further_the_fewer_are_let_through(share: float, ef: int):
    hnsw = _Hnsw(0)
    matrix = clustered(20_000, 4)
    index = VectorIndex(matrix, Distance.DOT, Graph(hnsw))  # pyright: ignore[reportArgumentType]
    allowed = np.zeros(20_000, np.bool_)
    allowed[: int(share * 20_000)] = True
    rows, _ = index.search(matrix[3], 10, allowed)
    assert hnsw.efs == [EF_LEAST, ef, EF_LEAST]
    assert len(rows) == 10
    # of what the graph gave, only what is let through
    assert bool(allowed[rows].all())
    assert int(rows.max()) < 4 * 10 / share


def test_preparing_keeps_zero_vectors_and_survives_large_components():
    rows = np.array([[0, 0], [3, 4], [1e16, 1e16]], np.float32)
    np.testing.assert_allclose(prepared(rows, Distance.COSINE), [[0, 0], [0.6, 0.8], [0.5**0.5, 0.5**0.5]], rtol=1e-6)
    assert prepared(rows, Distance.DOT) is rows


def test_euclid_does_not_lose_near_neighbours_far_from_the_origin():
    far = np.full((1, 8), 1e4, np.float32) + np.arange(5, dtype=np.float32).reshape(5, 1) / 8
    rows, scores = VectorIndex(far, Distance.EUCLID).search(far[2], 5)
    assert list(rows) == [2, 1, 3, 0, 4]
    np.testing.assert_allclose(scores, np.array([0, 1, 1, 2, 2]) / 8 * 8**0.5, rtol=1e-5)


def test_equal_scores_come_in_row_order_on_every_page():
    assert list(top(np.array([1, 3, 3, 3, 2], np.float32), 2)) == [1, 2]
    assert list(top(np.array([1, 3, 3, 3, 2], np.float32), 4)) == [1, 2, 3, 4]
    assert list(top(np.array([], np.float32), 0)) == []


def test_an_unknown_distance_is_named():
    assert Distance.of("Cosine") is Distance.COSINE
    with pytest.raises(BadQuestion, match="'manhattan' is none of cosine, dot, euclid"):
        Distance.of("manhattan")
