"""Answer from a snapshot: nearest vectors, keywords, both together, by id, by filter, page by page.

    open: current generation sound? --no--> previous one? --no--> words whole, and an embedder? --no--> CorruptIndex
             | derived part damaged                                   | re-embedded, written anew
             +-> logged, made again from the store, in memory         +-> logged

A collection never changes once it is open: a new snapshot is a new Collection (see `library`). So every method may be
called from any thread, and what a filter allows is worked out once. Opening never writes: several workers may open the
same folder, on a read-only disk too. `heal` writes what is damaged anew.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import msgspec
import numpy as np

from understudy.indexes.conditions import Condition
from understudy.indexes.faults import BadQuestion, CorruptIndex, UnknownFilter
from understudy.indexes.filters import compile_filter
from understudy.indexes.keywords import Keywords, open_keywords, write_keywords
from understudy.indexes.points import Hit, Payload, Point, PointId, searchable
from understudy.indexes.snapshot import (
    GRAPH,
    KEYWORDS,
    POINTS,
    VECTORS,
    Generation,
    Manifest,
    current_name,
    fill_matrix,
    find_generation,
    generations,
    load_matrix,
    read_manifest,
    write_snapshot,
)
from understudy.indexes.store import FrozenStore, checked_vector
from understudy.indexes.vectors import (
    EXACT_BELOW,
    PROBES,
    Distance,
    Graph,
    Mask,
    Matrix,
    Rows,
    VectorIndex,
    failed_probes,
    prepared,
    top,
)

Embed: TypeAlias = Callable[[Sequence[str]], Matrix]

DENSE_SHARE: Final = 0.5
MASKS_MAX: Final = 64
PAYLOADS_HELD_MAX: Final = 200_000
FILTER_BYTES_MAX: Final = 2**20

_KEYWORD_FETCH: Final = 1_000
# a full scan of 200 000 x 384 takes 20 ms; beyond it, what both sides found and a sample stand for the whole
_FUSED_SCAN_MAX: Final = 200_000
_FUSED_FETCH: Final = 400
_FUSED_SAMPLE: Final = 1_024
_OPEN_ATTEMPTS: Final = 3
_EMBED_BATCH: Final = 32

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class Collection:
    """One open snapshot of one collection. `space` names the vector space its vectors live in."""

    def __init__(self, name: str, generation: Generation, *, exact_below: int) -> None:
        manifest = generation.manifest
        self.name = name
        self.generation = generation.name
        self.space = manifest.space
        self.dimensions = manifest.dimensions
        self.distance = Distance.of(manifest.distance)
        self.damage = dict(generation.damage)
        self._store = FrozenStore(generation.folder / POINTS, self.dimensions)
        self._masks: OrderedDict[bytes, Mask] = OrderedDict()
        self._payloads: list[Payload] | None = None
        self._filling = threading.Lock()
        if self._store.count != manifest.count:
            raise CorruptIndex(f"{POINTS}: holds {self._store.count} points, not {manifest.count}")
        matrix = self._part(VECTORS, lambda: self._loaded_matrix(generation), self._matrix_again)
        self._vectors = VectorIndex(matrix, self.distance)
        self._keywords = self._part(KEYWORDS, lambda: self._opened_keywords(generation), self._keywords_again)
        if self.count >= exact_below:
            self._vectors = self._part(GRAPH, lambda: self._with_graph(generation), lambda: self._vectors)

    @classmethod
    def open(cls, folder: Path, *, exact_below: int = EXACT_BELOW, rebuild_embed: Embed | None = None) -> Collection:
        """Open the collection in `folder`, whose name it takes; every file is verified first (0.2 s for 50 000 x 384).

        Below `exact_below` points a graph is not even loaded. Damage to what is derived is logged, kept in `.damage`
        and mended in memory; with a damaged graph search is exact. If no generation has a sound store,
        `rebuild_embed(texts) -> float32 [n, d]` may still save one whose damage hit nothing but vectors: the only
        case in which opening writes. Raises CorruptIndex, listing what is wrong, if nothing can be served.
        """
        try:
            return cls._opened(folder, exact_below)
        except CorruptIndex as fault:
            if rebuild_embed is None or not generations(folder):
                raise
            _log.warning("%s: trying to embed its words again", fault)
        heal(folder, rebuild_embed=rebuild_embed)
        return cls._opened(folder, exact_below)

    @classmethod
    def _opened(cls, folder: Path, exact_below: int) -> Collection:
        reasons: list[str] = []
        for _ in range(_OPEN_ATTEMPTS):
            reasons.clear()
            seen = current_name(folder)
            try:
                generation = find_generation(folder, reasons)
                if generation is not None:
                    for reason in reasons:
                        _log.warning("collection %s: passed over %s", folder.name, reason)
                    return cls(folder.name, generation, exact_below=exact_below)
            except CorruptIndex as fault:
                reasons.append(str(fault))
            # a writer may have swapped and pruned while we were reading: then look again
            if current_name(folder) == seen:
                break
        raise CorruptIndex(f"collection {folder.name}: {'; '.join(reasons)}")

    @property
    def count(self) -> int:
        """How many points."""
        return self._store.count

    @property
    def has_graph(self) -> bool:
        """Whether unfiltered questions go through the graph."""
        return self._vectors.graph is not None

    def search(
        self,
        vector: object,
        k: int,
        *,
        filter: object = None,
        offset: int = 0,
        score_threshold: float | None = None,
        with_vectors: bool = False,
    ) -> list[Hit]:
        """The points nearest to `vector` [d]: ranks offset .. offset + k, best first, equal scores in id order.

        `filter` is Qdrant's JSON or a Condition; `score_threshold` the least score, for euclid the largest distance.
        Raises WrongDimension, NotFinite, UnknownFilter, BadQuestion.
        """
        _check_page(k, offset)
        rows, scores = self._vectors.search(vector, offset + k if k else 0, self._mask(filter))
        if score_threshold is not None:
            good = scores <= score_threshold if self.distance.lower_is_better else scores >= score_threshold
            rows, scores = rows[good], scores[good]
        return self._hits(rows[offset:], scores[offset:], with_vectors)

    def search_text(
        self, text: str, k: int, *, filter: object = None, offset: int = 0, with_vectors: bool = False
    ) -> list[Hit]:
        """The points whose title and text share words with `text`: ranks offset .. offset + k by BM25, best first.

        Raises UnknownFilter, BadQuestion.
        """
        _check_page(k, offset)
        found = self._keywords.search(text, offset + k if k else 0, self._mask(filter))[offset:]
        return self._hits([row for row, _ in found], [score for _, score in found], with_vectors)

    def search_fused(
        self, vector: object, text: str, k: int, *, filter: object = None, offset: int = 0, with_vectors: bool = False
    ) -> list[Hit]:
        """The best of both: .5 dense score, min-max scaled, + .5 BM25 over its maximum; scores in [0, 1].

        Convex fusion after Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval" (2023); on
        SQuAD, Cranfield and chunking_evaluation it beat reciprocal rank fusion. Raises as `search` does.
        """
        _check_page(k, offset)
        mask = self._mask(filter)
        wanted = offset + k if k else 0
        worded = self._keywords.search(text, max(_KEYWORD_FETCH, wanted), mask)
        rows, dense = self._scanned(vector, wanted, mask, [row for row, _ in worded])
        fused = DENSE_SHARE * _min_max(-dense if self.distance.lower_is_better else dense)
        if worded:
            at = np.searchsorted(rows, np.array([row for row, _ in worded]))
            fused[at] += (1 - DENSE_SHARE) * np.array([score for _, score in worded], np.float32) / worded[0][1]
        best = top(fused, min(wanted, len(rows)))[offset:]
        return self._hits(rows[best], fused[best], with_vectors)

    def get(self, ids: Sequence[PointId], *, with_vectors: bool = False) -> list[Point]:
        """The points with these ids, in that order; an id that is not here is left out."""
        rows = [row for point_id in ids if (row := self._store.row_of(point_id)) is not None]
        return self._store.fetch(rows, with_vectors=with_vectors)

    def scroll(
        self, from_id: PointId | None, limit: int, filter: object = None, *, with_vectors: bool = False
    ) -> tuple[list[Point], PointId | None]:
        """Up to `limit` points from `from_id` on, itself included, and the id the next page starts from, or None.

        In the order of Qdrant's scroll: integers by value, then strings by code point. Raises UnknownFilter,
        BadQuestion.
        """
        _check_page(limit, 0)
        start = 0 if from_id is None else self._store.rows_from(from_id)
        mask = self._mask(filter)
        if mask is None:
            rows = list(range(start, min(start + limit + 1, self.count)))
        else:
            rows = [start + int(row) for row in np.flatnonzero(mask[start:])[: limit + 1]]
        following = self._store.id_of(rows[limit]) if len(rows) > limit else None
        return self._store.fetch(rows[:limit], with_vectors=with_vectors), following

    def count_matching(self, filter: object = None) -> int:
        """How many points a filter lets through. Raises UnknownFilter."""
        mask = self._mask(filter)
        return self.count if mask is None else int(np.count_nonzero(mask))

    def close(self) -> None:
        """Let go of the files. Only for when nobody is asking any more; otherwise garbage collection does it."""
        self._store.close()

    # -- what a filter allows -----------------------------------------------------------------------------------------

    def _mask(self, filter: object) -> Mask | None:
        """Which rows a filter allows; None for all. The last MASKS_MAX are remembered: a snapshot never changes."""
        if filter is None or filter == {}:
            return None
        key = filter.key if isinstance(filter, Condition) else _filter_key(filter)
        mask = self._masks.get(key)
        if mask is None:
            mask = self._worked_out(filter)
        with self._filling:
            self._masks[key] = mask
            self._masks.move_to_end(key)
            if len(self._masks) > MASKS_MAX:
                self._masks.popitem(last=False)
        return mask

    def _worked_out(self, filter: object) -> Mask:
        ids = map(self._store.id_of, range(self.count))
        if isinstance(filter, Condition) and filter.reads_text:
            words = zip(ids, self._store.words(), strict=True)
            marks = (filter.passes(point_id, payload, text) for point_id, (text, payload) in words)
            return np.fromiter(marks, np.bool_, self.count)
        payloads = self._held_payloads() if self.count <= PAYLOADS_HELD_MAX else self._store.payloads()
        if isinstance(filter, Condition):
            return np.fromiter(map(filter.passes, ids, payloads, itertools.repeat("")), np.bool_, self.count)
        return np.fromiter(map(compile_filter(filter), ids, payloads), np.bool_, self.count)

    def _held_payloads(self) -> list[Payload]:
        # decoding is three quarters of the price of a scan: pay it once, for collections that fit
        with self._filling:
            if self._payloads is None:
                self._payloads = list(self._store.payloads())
            return self._payloads

    # -- parts, sound or made again -----------------------------------------------------------------------------------

    def _part(self, name: str, load: Callable[[], _T], again: Callable[[], _T]) -> _T:
        if name not in self.damage:
            try:
                return load()
            except CorruptIndex as fault:
                self.damage[name] = str(fault)
        _log.warning("collection %s, %s: refused %s", self.name, self.generation, self.damage[name])
        return again()

    def _loaded_matrix(self, generation: Generation) -> Matrix:
        matrix = load_matrix(generation.folder, generation.manifest)
        # sums say the file is what was written; this says that what was written is of this store
        rows = np.unique(np.linspace(0, self.count - 1, min(PROBES, self.count)).astype(np.int64))
        points = self._store.fetch([int(row) for row in rows], with_vectors=True)
        for row, point in zip(rows, points, strict=True):
            due = prepared(checked_vector(point.vector, self.dimensions, "stored"), self.distance)
            if not np.allclose(matrix[row], due, rtol=1e-5, atol=1e-7):
                raise CorruptIndex(f"{VECTORS}: row {row} is not the vector of point {point.id!r}")
        return matrix

    def _matrix_again(self) -> Matrix:
        matrix = np.empty((self.count, self.dimensions), np.float32)
        fill_matrix(self._store, self.distance, matrix)
        return matrix

    def _opened_keywords(self, generation: Generation) -> Keywords:
        keywords = open_keywords(generation.folder / KEYWORDS)
        if keywords.count != self.count:
            raise CorruptIndex(f"{KEYWORDS}: holds {keywords.count} texts, not {self.count}")
        return keywords

    def _keywords_again(self) -> Keywords:
        return write_keywords(searchable(*words) for words in self._store.words())

    def _with_graph(self, generation: Generation) -> VectorIndex:
        manifest = generation.manifest
        if GRAPH not in manifest.files:
            return self._vectors
        graph = Graph.load(generation.folder / GRAPH, self.distance, self.dimensions, self.count)
        index = VectorIndex(self._vectors.matrix, self.distance, graph)
        if failed := failed_probes(index, manifest.probes):
            raise CorruptIndex(f"{GRAPH}: {failed} of {len(manifest.probes)} self-queries came back wrong")
        return index

    # -- small parts --------------------------------------------------------------------------------------------------

    def _scanned(self, vector: object, wanted: int, mask: Mask | None, worded: list[int]) -> tuple[Rows, Matrix]:
        """The rows fusion looks at, ascending, `worded` among them, and their dense scores."""
        if self.count <= _FUSED_SCAN_MAX:
            scores = self._vectors.scores(vector)
            rows = np.arange(self.count) if mask is None else np.flatnonzero(mask)
            return rows, scores[rows]
        near, _ = self._vectors.search(vector, max(_FUSED_FETCH, wanted), mask)
        sample = np.linspace(0, self.count - 1, _FUSED_SAMPLE).astype(np.int64)
        sample = sample if mask is None else sample[mask[sample]]
        rows = np.unique(np.concatenate([near, sample, np.array(worded, np.int64)]))
        return rows, self._vectors.scores(vector, rows)

    def _hits(self, rows: Rows | list[int], scores: Matrix | list[float], with_vectors: bool) -> list[Hit]:
        points = self._store.fetch([int(row) for row in rows], with_vectors=with_vectors)
        return [
            Hit(point.id, float(score), point.payload, point.text, point.source, point.vector, point.version)
            for point, score in zip(points, scores, strict=True)
        ]


def heal(folder: Path, *, rebuild_embed: Embed | None = None) -> str | None:
    """Write damaged parts of a collection anew, as a new generation; its name, or None if there was nothing to do.

    Where no store is sound, but all the words of one are whole, its vectors are made again by `rebuild_embed`.
    Raises CorruptIndex if nothing can be saved, Busy if somebody else is writing, OSError.
    """
    reasons: list[str] = []
    generation = find_generation(folder, reasons)
    if generation is not None:
        if not generation.damage and not reasons:
            return None
        return _rewritten(folder, generation.folder, generation.manifest, None)
    for path in generations(folder) if rebuild_embed is not None else ():
        try:
            return _rewritten(folder, path, read_manifest(path), rebuild_embed)
        except CorruptIndex as fault:
            reasons.append(f"{path.name}: {fault}")
    raise CorruptIndex(f"collection {folder.name}: {'; '.join(reasons)}")


def _rewritten(folder: Path, generation: Path, manifest: Manifest, embed: Embed | None) -> str:
    store = FrozenStore(generation / POINTS, manifest.dimensions)
    try:
        if embed is not None and store.words_sum() != manifest.words_sha256:
            raise CorruptIndex(f"{POINTS}: its words are damaged too")
        records = store.points() if embed is None else _embedded_again(store, embed)
        graph = GRAPH in manifest.files
        return write_snapshot(
            folder,
            records,
            space=manifest.space,
            dimensions=manifest.dimensions,
            distance=manifest.distance,
            graph=graph or None,
        )
    except sqlite3.Error as error:
        raise CorruptIndex(f"{POINTS}: {error}") from error
    finally:
        store.close()


def _embedded_again(store: FrozenStore, embed: Embed) -> Iterator[Point]:
    for at in range(0, store.count, _EMBED_BATCH):
        points = store.fetch(range(at, min(at + _EMBED_BATCH, store.count)))
        vectors = embed([searchable(point.text, point.payload) for point in points])
        for point, vector in zip(points, vectors, strict=True):
            yield dataclasses.replace(point, vector=vector)


def _filter_key(filter: object) -> bytes:
    try:
        key = msgspec.json.encode(filter)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UnknownFilter(f"it is not JSON: {error}") from error
    if len(key) > FILTER_BYTES_MAX:
        raise UnknownFilter(f"it has {len(key)} bytes, more than {FILTER_BYTES_MAX}")
    return key


def _check_page(limit: int, offset: int) -> None:
    if limit < 0 or offset < 0:
        raise BadQuestion(f"limit {limit} and offset {offset} must not be negative")


def _min_max(scores: Matrix) -> Matrix:
    if not len(scores) or scores.max() == scores.min():
        return np.zeros_like(scores)
    return (scores - scores.min()) / (scores.max() - scores.min())
