"""Find the nearest vectors: exactly while they are few, through an hnswlib graph when they are many.

    no graph                            -> exact over all rows, or over those allowed, gathered, where they are few
    nothing forbidden                   -> ask the graph for k --RuntimeError--> 4*ef --> exact over all rows
    allowed <= 4 000, or gathered before -> exact over the gathered rows; walk.c compares unit vectors where they lie
    allowed >= 20 %, or > sqrt(900 n)   -> ask the graph for 4*k / selectivity --too few left--> as below
    allowed <= 20 % or <= 20 000        -> exact over the gathered rows; else over all

hnswlib checks nothing: a query of another length reads past its end and is answered, NaN is answered with NaN, and
fewer than k results raise. So dimension, finiteness and k are checked here, and its Python filter callback (15 ms a
query at 1 % selectivity, against 0.03 ms for exact search over the same rows) is never used. The matrix beside the
graph is the judge: every score that leaves here was computed from it.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from understudy.indexes.arrays import distinct
from understudy.indexes.faults import BadQuestion, CorruptIndex
from understudy.indexes.points import Vector
from understudy.indexes.store import checked_vector
from understudy.indexes.walk import Walk, products

Matrix: TypeAlias = NDArray[np.float32]
Rows: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]

M: Final = 16
EF_CONSTRUCTION: Final = 200
EF_LEAST: Final = 128
# behind a filter hits stand further out: of 60 000 hits at each selectivity from 100 % to 30 % this misses none, where
# 128 misses 1 in 5 000 (50 000 x 384); and of those it keeps, so many are let through
EF_FILTERED: Final = 320
_EF_ALLOWED: Final = 96
# a scan of 20 000 x 384 takes 1.1 ms, and is exact and filterable
EXACT_BELOW: Final = 20_000

# gathering costs as much again as scanning: 4 000 x 384 take 0.5 ms together
_GATHER_ROWS: Final = 4_000
_GATHER_ROWS_MAX: Final = 20_000
_GATHER_SHARE_MAX: Final = 0.2
# a scan takes longer the more are allowed, a graph the fewer of its rows are: as long with sqrt(900 n) allowed of n,
# some 1.5 ms with 9 500 of 100 000 x 384, where scanning a fifth would take five times an unfiltered question's time
_SCANNED: Final = 900
_OVERFETCH: Final = 4
_OVERFETCH_MAX: Final = 400
# and as many more as a fiftieth of all rows, beyond which scanning them costs no more
_OVERFETCH_PART: Final = 50
_BLOCK_ROWS: Final = 1_024
# fewer are copied together in no time; products of unit vectors that are summed in another order differ by far less
_SIFTED_ROWS: Final = 500
_SIFTED_SLACK: Final = 1e-4
_PROBES_TRIED: Final = 64
PROBES: Final = 32


class Distance(StrEnum):
    """How near two vectors are. Cosine and dot: higher is better. Euclid, not squared: lower is better."""

    COSINE = "cosine"
    DOT = "dot"
    EUCLID = "euclid"

    @property
    def lower_is_better(self) -> bool:
        return self is Distance.EUCLID

    @classmethod
    def of(cls, word: str) -> Distance:
        """The distance of this name, in any case. Raises BadQuestion for one that is not known."""
        try:
            return cls(word.lower())
        except ValueError:
            raise BadQuestion(f"distance {word!r} is none of {', '.join(cls)}") from None


class _Hnsw(Protocol):
    """What is used of hnswlib.Index, which has no types."""

    def init_index(self, max_elements: int, M: int, ef_construction: int, random_seed: int) -> None: ...  # noqa: N803
    def load_index(self, path_to_index: str, max_elements: int) -> None: ...
    def save_index(self, path_to_index: str) -> None: ...
    def index_file_size(self) -> int: ...
    def get_current_count(self) -> int: ...
    def set_ef(self, ef: int) -> None: ...
    def add_items(self, data: Matrix, ids: Rows, num_threads: int) -> None: ...
    def knn_query(self, data: Matrix, k: int, num_threads: int) -> tuple[NDArray[np.uint64], Matrix]: ...


def prepared(vectors: Matrix, distance: Distance) -> Matrix:
    """Rows [n, d] or one vector [d] as they are searched: of unit length for cosine, else as they are.

    A zero vector has no direction; it stays zero, and its cosine with anything is 0, as in Qdrant.
    """
    if distance is not Distance.COSINE:
        return vectors
    if vectors.ndim == 1:
        # one question's: as below, in a third of the time
        wide = vectors.astype(np.float64)
        length = math.sqrt(wide.dot(wide))
        return (wide / length).astype(np.float32) if length > 0 else vectors
    # squared in float64: components near 1e16 would overflow float32's dynamic range when summed
    lengths = np.sqrt(np.sum(np.square(vectors, dtype=np.float64), axis=-1, keepdims=True))
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


class Graph:
    """An hnswlib graph over the rows of a matrix, label = row. Its queries may come from any number of threads."""

    def __init__(self, index: _Hnsw) -> None:
        self._index = index
        self._widening = threading.Lock()
        index.set_ef(EF_LEAST)

    @classmethod
    def build(cls, matrix: Matrix, distance: Distance, *, threads: int = 1, present: Mask | None = None) -> Graph:
        """Insert every row of `matrix` [n, d] that is `present`; about 2 400 rows of 384 a second and thread."""
        rows = np.arange(len(matrix)) if present is None else np.flatnonzero(present)
        index = _new_hnsw(distance, matrix.shape[1])
        index.init_index(max_elements=max(1, len(rows)), M=M, ef_construction=EF_CONSTRUCTION, random_seed=100)
        for at in range(0, len(rows), 10_000):
            block = rows[at : at + 10_000]
            index.add_items(matrix[block], block, num_threads=threads)
        return cls(index)

    @classmethod
    def load(cls, path: Path, distance: Distance, dimensions: int, count: int) -> Graph:
        """Read a graph that `save` wrote. The file must have been verified: hnswlib loads flipped bits silently.

        Raises CorruptIndex. Holds the GIL: about 1.2 ms a megabyte; `opened_graph` does not.
        """
        index = _new_hnsw(distance, dimensions)
        try:
            index.load_index(str(path), max_elements=count)
        except RuntimeError as error:
            raise CorruptIndex(f"{path.name}: {error}") from error
        if index.get_current_count() != count:
            raise CorruptIndex(f"{path.name}: holds {index.get_current_count()} vectors, not {count}")
        return cls(index)

    def save(self, path: Path) -> None:
        """Write the graph. Raises OSError for a short file: hnswlib does not notice a full disk. Holds the GIL."""
        self._index.save_index(str(path))
        if path.stat().st_size != self._index.index_file_size():
            raise OSError(f"{path.name}: {path.stat().st_size} bytes were written of {self._index.index_file_size()}")

    def nearest(self, query: Vector, k: int, fetched: int = 0) -> Rows | None:
        """About the `k` nearest rows of a prepared query [d], ascending; None if the graph does not have that many.

        `fetched`, if more, is how many are given, of which the first k are to be relied on.
        """
        fetched, least = max(k, fetched), _ef_for(k, fetched)
        if least <= EF_LEAST and (rows := self._ask(query, fetched)) is not None:
            return rows
        # ef belongs to the whole index: one asker at a time may raise it. The others meanwhile only find more.
        with self._widening:
            try:
                for ef in (least, 4 * least):
                    self._index.set_ef(ef)
                    if (rows := self._ask(query, fetched)) is not None:
                        return rows
                return None
            finally:
                self._index.set_ef(EF_LEAST)

    def _ask(self, query: Vector, k: int) -> Rows | None:
        try:
            # one thread: more would be spawned anew for every call
            labels, _ = self._index.knn_query(query.reshape(1, -1), k=k, num_threads=1)
        except RuntimeError:
            return None  # "Cannot return the results in a contiguous 2D array": fewer than k were reached
        return np.sort(labels[0].astype(np.int64))


def _ef_for(k: int, fetched: int) -> int:
    # what is fetched is _OVERFETCH * k / selectivity
    filtered = 0 if fetched <= k else max(EF_FILTERED, _EF_ALLOWED * fetched // (_OVERFETCH * k))
    return max(EF_LEAST, filtered, 4 * k, fetched)


class Nearest(Protocol):
    """As much of a graph as answers questions."""

    def nearest(self, query: Vector, k: int, fetched: int = 0) -> Rows | None: ...


class Walked:
    """A graph as `Graph.save` wrote it, asked without hnswlib; see `walk`. Safe from any thread."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk

    def nearest(self, query: Vector, k: int, fetched: int = 0) -> Rows | None:
        """As `Graph.nearest`."""
        fetched, least = max(k, fetched), _ef_for(k, fetched)
        for ef in (least, 4 * least):
            rows = self._walk.nearest(query, fetched, ef)
            if len(rows) == fetched:
                return rows
        return None


def opened_graph(path: Path, matrix: Matrix, distance: Distance, count: int, compiled: ctypes.CDLL | None) -> Nearest:
    """The graph of `count` rows of `matrix` that `Graph.save` wrote, ready to be asked: walked by `walk.built()`, or by
    hnswlib where that is None. The file must have been verified. Raises CorruptIndex."""
    if compiled is None:
        return Graph.load(path, distance, matrix.shape[1], count)
    walk = Walk.open(path, matrix, squared=distance is Distance.EUCLID, compiled=compiled)
    if walk.count != count:
        raise CorruptIndex(f"{path.name}: holds {walk.count} vectors, not {count}")
    return Walked(walk)


@dataclass(frozen=True, slots=True)
class Gathered:
    """Some rows of a matrix, ascending, copied together."""

    rows: Rows
    matrix: Matrix


class VectorIndex:
    """Nearest rows of a prepared matrix [n, d], by scan or by graph. Never changed once made; safe from any thread.

    `present` [n] marks the rows that have a vector; None if all do. `compiled` is walk.c, where there is one: it
    compares unit vectors where they lie.
    """

    def __init__(
        self,
        matrix: Matrix,
        distance: Distance,
        graph: Nearest | None = None,
        present: Mask | None = None,
        compiled: ctypes.CDLL | None = None,
    ) -> None:
        self.matrix = matrix
        self.distance = distance
        self.graph = graph
        self.present = present
        self._compiled = compiled if distance is Distance.COSINE and matrix.flags.c_contiguous else None
        self.held = self.count if present is None else int(np.count_nonzero(present))

    @property
    def count(self) -> int:
        """How many rows."""
        return int(self.matrix.shape[0])

    @property
    def dimensions(self) -> int:
        """How long a row is."""
        return int(self.matrix.shape[1])

    def search(
        self, query: object, k: int, allowed: Mask | None = None, gathered: Gathered | None = None
    ) -> tuple[Rows, Matrix]:
        """The min(k, live) best rows and their scores, best first, equal scores by row.

        `query` [d], any length but zero dimensions; `allowed` [n] limits the rows, of which `gathered` may hold all and
        some more. Raises WrongDimension, NotFinite, or BadQuestion for a negative k.
        """
        return self.nearest(checked_vector(query, self.dimensions), k, allowed, gathered)

    def nearest(
        self, checked: Vector, k: int, allowed: Mask | None = None, gathered: Gathered | None = None
    ) -> tuple[Rows, Matrix]:
        """As `search`, for a query [d] as `checked_vector` gave it for these dimensions: checking again takes 8 us."""
        wanted = prepared(checked, self.distance)
        is_filtered = allowed is not None
        if self.present is not None:
            allowed = self.present if allowed is None else allowed & self.present
        live = self.count if allowed is None else int(np.count_nonzero(allowed))
        k = min(_checked_k(k), live)
        if live == self.held and allowed is not self.present:
            # a filter that lets everything through is no filter
            allowed = self.present
        if k == 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        if gathered is not None and allowed is not None and live < self.held:
            return self._among(gathered, wanted, k, allowed)
        rows = self._candidates(wanted, k, allowed, live, _OVERFETCH if is_filtered else 1)
        if rows is not None and self._compiled is not None and len(rows) > max(_SIFTED_ROWS, k):
            rows = self._sifted(self._compiled, wanted, rows, k)
        scores = self._scores(wanted, rows)
        if rows is None and allowed is not None:
            rows = np.flatnonzero(allowed)
            scores = scores[rows]
        return self._best(rows, scores, k)

    def gather(self, mask: Mask) -> Gathered | None:
        """The rows that `mask` [n] marks, copied together: worth keeping for questions that a graph would be asked
        too much for. None where they are too few for that, or too many."""
        marks = mask if self.present is None else mask & self.present
        live = int(np.count_nonzero(marks))
        if self._compiled is not None or self.graph is None or not _GATHER_ROWS < live <= _GATHER_SHARE_MAX * self.held:
            return None
        rows = np.flatnonzero(marks)
        return Gathered(rows, self.matrix[rows])

    def scores(self, query: object, rows: Rows | None = None) -> Matrix:
        """The score of every row, or of `rows`, for a query [d]: exact, float32. Raises as `search` does."""
        return self._scores(self._prepared(query), rows)

    def _prepared(self, query: object) -> Vector:
        return prepared(checked_vector(query, self.dimensions), self.distance)

    def _candidates(self, query: Vector, k: int, allowed: Mask | None, live: int, times: int) -> Rows | None:
        """Rows worth scoring, k of them at least, all of them allowed; None for every row. Where nothing is forbidden,
        a graph is asked for so many `times` as much."""
        if self.graph is None:
            return np.flatnonzero(allowed) if allowed is not None and 2 * live <= self.count else None
        if allowed is None or live == self.held:
            return self.graph.nearest(query, k, times * k)
        fetched = int(_OVERFETCH * k * self.held / live)
        is_for_graph = live > max(_GATHER_ROWS, min(_GATHER_SHARE_MAX * self.held, math.sqrt(_SCANNED * self.held)))
        if is_for_graph and fetched <= max(_OVERFETCH_MAX, self.held // _OVERFETCH_PART):
            rows = self.graph.nearest(query, k, fetched)
            if rows is not None and len(rows := rows[allowed[rows]]) >= k:
                return rows
        is_gathered = live <= max(_GATHER_ROWS_MAX, _GATHER_SHARE_MAX * self.held)
        return np.flatnonzero(allowed) if is_gathered else None

    def _sifted(self, compiled: ctypes.CDLL, query: Vector, rows: Rows, k: int) -> Rows:
        """Those of `rows` that may be among the k best; numpy's products then decide."""
        near = products(compiled, self.matrix, rows, query)
        return rows[near >= np.partition(near, len(near) - k)[len(near) - k] - _SIFTED_SLACK]

    def _among(self, gathered: Gathered, query: Vector, k: int, allowed: Mask) -> tuple[Rows, Matrix]:
        scores = self._scores_of(gathered.matrix, query)
        marks = allowed[gathered.rows]
        # what was gathered once may have died since
        return self._best(gathered.rows[marks], scores[marks], k)

    def _scores(self, query: Vector, rows: Rows | None) -> Matrix:
        return self._scores_of(self.matrix if rows is None else self.matrix[rows], query)

    def _scores_of(self, matrix: Matrix, query: Vector) -> Matrix:
        if self.distance is not Distance.EUCLID:
            # not `matrix @ query`: BLAS spreads it over threads of its own, which on busy cores wait for each other
            # (20 000 x 384: 0.6 ms at best, but 12 ms at the 95th percentile, against 1.1 and 1.3 ms)
            return np.vecdot(matrix, query)
        # differences, not |x|^2 - 2xq + |q|^2, which loses near neighbours to cancellation; in blocks that fit a cache
        scores = np.empty(len(matrix), np.float32)
        for at in range(0, len(matrix), _BLOCK_ROWS):
            apart = matrix[at : at + _BLOCK_ROWS] - query
            scores[at : at + _BLOCK_ROWS] = np.sqrt(np.vecdot(apart, apart))
        return scores

    def _best(self, rows: Rows | None, scores: Matrix, k: int) -> tuple[Rows, Matrix]:
        goodness = -scores if self.distance.lower_is_better else scores
        best = top(goodness, k)
        return (best if rows is None else rows[best]), scores[best]


def top(goodness: Matrix, k: int) -> Rows:
    """Positions of the k largest values of [n], largest first, equal values by position: so pages never overlap."""
    if k >= len(goodness):
        return np.argsort(-goodness, kind="stable")
    bar = np.partition(goodness, len(goodness) - k)[len(goodness) - k]
    above = np.flatnonzero(goodness > bar)
    level = np.flatnonzero(goodness == bar)[: k - len(above)]
    chosen = np.sort(np.concatenate([above, level]))
    return chosen[np.argsort(-goodness[chosen], kind="stable")]


def find_probes(index: VectorIndex) -> list[list[int]]:
    """Up to PROBES pairs [row, row found first], spread over the rows, whose first hit the graph gets exactly right.

    They are stored beside the graph and asked again when it is loaded. Raises CorruptIndex if the graph gets fewer
    than three quarters of its own rows right.
    """
    held = np.arange(index.count) if index.present is None else np.flatnonzero(index.present)
    tried = held[distinct(np.linspace(0, len(held) - 1, min(_PROBES_TRIED, len(held))).astype(np.int64))]
    exact = VectorIndex(index.matrix, index.distance, present=index.present)
    right: list[list[int]] = []
    for row in tried:
        rows, scores = index.search(index.matrix[row], 1)
        if _level(scores[0], exact.search(index.matrix[row], 1)[1][0]):
            right.append([int(row), int(rows[0])])
    if 4 * len(right) < 3 * len(tried):
        raise CorruptIndex(f"the graph finds {len(right)} of {len(tried)} of its own vectors")
    return right[:: max(1, len(right) // PROBES)][:PROBES]


def failed_probes(index: VectorIndex, probes: Sequence[Sequence[int]]) -> int:
    """How many of the probes no longer come back at rank 1; another row with as good a score is as good."""
    failed = 0
    for row, expected in probes:
        rows, scores = index.search(index.matrix[row], 1)
        due = index.scores(index.matrix[row], np.array([expected]))
        failed += int(rows[0]) != expected and not _level(scores[0], due[0])
    return failed


def _level(one: np.float32, other: np.float32) -> bool:
    return bool(np.isclose(one, other, rtol=1e-5, atol=1e-6))


def _checked_k(k: int) -> int:
    if k < 0:
        raise BadQuestion(f"{k} results were asked for")
    return k


def _new_hnsw(distance: Distance, dimensions: int) -> _Hnsw:
    # imported when first needed: most collections are small and never build a graph
    hnswlib = importlib.import_module("hnswlib")
    space = "l2" if distance is Distance.EUCLID else "ip"
    return cast("_Hnsw", hnswlib.Index(space=space, dim=dimensions))


def default_threads() -> int:
    """Threads to build a graph with: all cores but one, which the proxy keeps."""
    return max(1, (os.cpu_count() or 1) - 1)
