"""A graph that hnswlib wrote is walked as hnswlib walks it, and one that rotted leads nobody out of its memory."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.indexes.some import clustered
from tests.kit.processes import REPOSITORY, needs
from understudy.indexes import walk
from understudy.indexes.faults import CorruptIndex
from understudy.indexes.vectors import Distance, Graph, Mask, Matrix, VectorIndex, Walked, opened_graph, prepared
from understudy.indexes.walk import Walk

SQUARED = {Distance.COSINE: False, Distance.DOT: False, Distance.EUCLID: True}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """walk.c as it stands here, whatever was installed."""
    found = walk.load(_compile(tmp_path_factory.mktemp("walk") / "walk.so"))
    assert found is not None
    return found


def _compile(to: Path, *arguments: str) -> Path:
    source = REPOSITORY / "indexes" / "walk.c"
    flags = ["-O3", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", *arguments]
    subprocess.run([needs("cc"), *flags, "-o", str(to), str(source)], check=True, timeout=60)
    return to


def _saved(
    folder: Path, count: int, dimensions: int, distance: Distance, present: Mask | None = None
) -> tuple[Path, Matrix, Graph]:
    matrix = prepared(clustered(count, dimensions), distance)
    graph = Graph.build(matrix, distance, present=present)
    graph.save(folder / "graph")
    return folder / "graph", matrix, graph


@pytest.mark.parametrize("distance", list(Distance))
@pytest.mark.parametrize(("count", "dimensions"), [(1, 8), (2_000, 3), (2_000, 37), (2_000, 64)])
def test_a_walk_ends_where_hnswlib_would(
    distance: Distance, count: int, dimensions: int, compiled: ctypes.CDLL, tmp_path: Path
):
    path, matrix, graph = _saved(tmp_path, count, dimensions, distance)
    walked = opened_graph(path, matrix, distance, count, compiled)
    assert isinstance(walked, Walked)
    agreed = 0
    for query in prepared(clustered(50, dimensions, seed=3), distance):
        for k in (1, 10, 200):
            ours, theirs = walked.nearest(query, k), graph.nearest(query, k)
            if count < k:
                assert ours is None
                assert theirs is None
                agreed += 1
                continue
            assert ours is not None
            assert theirs is not None
            assert list(ours) == sorted(set(ours.tolist()))
            # sums of floats in another order may swap the last two
            agreed += len(set(ours) ^ set(theirs)) <= 2
    assert agreed >= 149


def test_rows_without_a_vector_are_not_found(compiled: ctypes.CDLL, tmp_path: Path):
    present = np.arange(500) % 3 != 0
    path, matrix, _ = _saved(tmp_path, 500, 16, Distance.COSINE, present)
    walked = opened_graph(path, matrix, Distance.COSINE, int(present.sum()), compiled)
    rows = walked.nearest(matrix[3], 100)
    assert rows is not None
    assert present[rows].all()
    assert (rows.dtype, len(rows)) == (np.int64, 100)


def test_a_query_of_another_length_or_for_nothing_is_never_read(compiled: ctypes.CDLL, tmp_path: Path):
    path, matrix, _ = _saved(tmp_path, 30, 16, Distance.DOT)
    found = Walk.open(path, matrix, squared=False, compiled=compiled)
    for query, k in ((matrix[0, :15], 3), (matrix[:2], 3), (matrix[0], 0)):
        with pytest.raises(ValueError, match="where vectors have 16 numbers"):
            found.nearest(query, k, 64)


def test_without_a_compiler_hnswlib_answers(tmp_path: Path):
    path, matrix, graph = _saved(tmp_path, 300, 16, Distance.DOT)
    loaded = opened_graph(path, matrix, Distance.DOT, 300, None)
    assert isinstance(loaded, Graph)
    np.testing.assert_array_equal(loaded.nearest(matrix[7], 10), graph.nearest(matrix[7], 10))


def test_a_graph_of_another_number_of_vectors_is_refused(compiled: ctypes.CDLL, tmp_path: Path):
    path, matrix, _ = _saved(tmp_path, 300, 16, Distance.DOT)
    with pytest.raises(CorruptIndex, match="holds 300 vectors, not 299"):
        opened_graph(path, matrix, Distance.DOT, 299, compiled)
    for other in (matrix[:299], matrix[:, :15].copy()):
        with pytest.raises(CorruptIndex, match="graph: "):
            Walk.open(path, other, squared=False, compiled=compiled)
    with pytest.raises(ValueError, match="not of float32"):
        Walk.open(path, matrix.T, squared=False, compiled=compiled)


def test_a_graph_cut_short_anywhere_is_refused(compiled: ctypes.CDLL, tmp_path: Path):
    path, matrix, _ = _saved(tmp_path, 60, 8, Distance.EUCLID)
    whole = path.read_bytes()
    for size in [*range(120), *range(120, len(whole), 61), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptIndex):
            Walk.open(path, matrix, squared=True, compiled=compiled)
    path.write_bytes(whole + b"\0\0\0\0")
    with pytest.raises(CorruptIndex, match="too long"):
        Walk.open(path, matrix, squared=True, compiled=compiled)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_a_graph_holds_no_walk_leads_outside_of_it(seed: int, compiled: ctypes.CDLL, tmp_path: Path):
    path, matrix, _ = _saved(tmp_path, 200, 8, Distance.COSINE)
    whole, dice = path.read_bytes(), np.random.default_rng(seed)
    refused = 0
    for turn in range(100):
        rotten = bytearray(whole)
        # half of the time in the header, where most can go wrong
        within = 96 if turn % 2 else len(whole)
        for at in dice.integers(0, within, 3).tolist():
            rotten[at] ^= 1 << int(dice.integers(0, 8))
        path.write_bytes(rotten)
        try:
            found = Walk.open(path, matrix, squared=False, compiled=compiled)
        except CorruptIndex:
            refused += 1
            continue
        rows = found.nearest(matrix[turn], 20, 128)
        assert ((rows >= 0) & (rows < 200)).all()
    assert refused


@pytest.mark.parametrize("dimensions", [3, 37, 384])
def test_rows_compared_where_they_lie_are_the_rows_that_a_scan_finds(dimensions: int, compiled: ctypes.CDLL):
    matrix = prepared(clustered(3_000, dimensions), Distance.COSINE)
    # as good as each other: the order of rows decides, and both have to go by it
    matrix[1_000:1_400] = matrix[1_000]
    sifting, scanning = (VectorIndex(matrix, Distance.COSINE, compiled=each) for each in (compiled, None))
    dice = np.random.default_rng(4)
    for share in (0.2, 0.4, 0.9):
        allowed = dice.random(3_000) < share
        for query in [*prepared(clustered(10, dimensions, seed=5), Distance.COSINE), matrix[1_000], 0 * matrix[0]]:
            for k in (1, 10, 700):
                ours, theirs = (each.search(query, k, allowed) for each in (sifting, scanning))
                np.testing.assert_array_equal(ours[0], theirs[0])
                np.testing.assert_array_equal(ours[1], theirs[1])


def test_a_walk_c_of_another_time_is_not_called(tmp_path: Path):
    assert walk.load(_compile(tmp_path / "other.so", "-DVERSION=99")) is None
    (tmp_path / "no.so").write_bytes(b"nothing")
    assert walk.load(tmp_path / "no.so") is None


class _Walk:
    """A walk that finds k only once it is asked with `enough`; it notes what it was asked with."""

    def __init__(self, enough: int) -> None:
        self.enough = enough
        self.efs: list[int] = []

    def nearest(self, query: Matrix, k: int, ef: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        del query
        self.efs.append(ef)
        return np.arange(k if ef >= self.enough else k - 1)


@pytest.mark.parametrize(("enough", "tried"), [(0, [128]), (129, [128, 512]), (10**9, [128, 512])])
def test_a_walk_that_finds_too_few_is_made_four_times_as_wide_and_then_left(enough: int, tried: list[int]):
    found = _Walk(enough)
    rows = Walked(found).nearest(np.zeros(4, np.float32), 10)  # pyright: ignore[reportArgumentType]
    assert found.efs == tried
    assert (rows is None) == (enough > 512)
