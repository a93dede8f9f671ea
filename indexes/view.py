"""Answer from a collection as it was at one moment: nearest vectors, keywords, both together, by id, page by page.

    rows 0 .. n-1       the frozen generation's, less the tombstones of what was put or taken away since
    rows n .. n+m-1     the live tail's, less those that were put again

A view never changes: every method may be called from any thread, and what one call finds is of one moment.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from understudy.indexes.arrays import distinct
from understudy.indexes.faults import BadQuestion
from understudy.indexes.frozen import WORDED_SAMPLE, Frozen
from understudy.indexes.keywords import QUERY_CHARS_MAX, QUERY_WORDS_MAX, words_of
from understudy.indexes.masks import is_no_filter
from understudy.indexes.points import Hit, Point, PointId, canonical_id, id_key, is_derived, key_id
from understudy.indexes.records import KeptShape, Record, point_of, record_of, vectors_of
from understudy.indexes.store import checked_vector
from understudy.indexes.tail import TailView
from understudy.indexes.tail_words import idf_of
from understudy.indexes.vectors import Distance, Mask, Matrix, Rows, VectorIndex, top

DENSE_SHARE: Final = 0.5

_KEYWORD_FETCH: Final = 1_000
# a full scan of 200 000 x 384 takes 20 ms; beyond it, what both sides found and a sample stand for the whole
_FUSED_SCAN_MAX: Final = 200_000
_FUSED_FETCH: Final = 400
_FUSED_SAMPLE: Final = 1_024


class View:
    """A collection at one moment. `alive` marks the frozen rows that still count; None if all do."""

    __slots__ = ("_frozen_count", "_without", "alive", "count", "epoch", "frozen", "shapes", "tail", "tombstones")

    def __init__(
        self, frozen: Frozen | None, alive: Mask | None, tail: TailView, shapes: dict[str, KeptShape], epoch: str
    ) -> None:
        self.frozen = frozen
        self.alive = alive
        self.tail = tail
        self.shapes = shapes
        self.epoch = epoch
        self._frozen_count = 0 if frozen is None else frozen.count
        self._without: dict[str, Rows] = {}
        living = self._frozen_count if alive is None else int(np.count_nonzero(alive))
        self.tombstones = self._frozen_count - living
        self.count = living + tail.live

    # -- questions ----------------------------------------------------------------------------------------------------

    def search(
        self,
        vector: object,
        k: int,
        *,
        filter: object = None,
        offset: int = 0,
        score_threshold: float | None = None,
        with_vectors: bool = False,
        using: str = "",
    ) -> list[Hit]:
        """See `Collection.search`."""
        _check_page(k, offset)
        kept = self._shape(using)
        rows, scores = self._nearest(vector, offset + k if k else 0, filter, using, kept)
        if score_threshold is not None:
            lower = Distance.of(kept.distance).lower_is_better
            good = scores <= score_threshold if lower else scores >= score_threshold
            rows, scores = rows[good], scores[good]
        return self._hits(rows[offset:], scores[offset:], with_vectors)

    def search_text(
        self, text: str, k: int, *, filter: object = None, offset: int = 0, with_vectors: bool = False
    ) -> list[Hit]:
        """See `Collection.search_text`."""
        _check_page(k, offset)
        found = self._worded(text, offset + k if k else 0, filter)[offset:]
        return self._hits([row for row, _ in found], [score for _, score in found], with_vectors)

    def search_fused(
        self,
        vector: object,
        text: str,
        k: int,
        *,
        filter: object = None,
        offset: int = 0,
        with_vectors: bool = False,
        using: str = "",
    ) -> list[Hit]:
        """See `Collection.search_fused`."""
        _check_page(k, offset)
        lower = Distance.of(self._shape(using).distance).lower_is_better
        wanted = offset + k if k else 0
        worded = self._worded(text, max(_KEYWORD_FETCH, wanted), filter)
        rows, dense, present = self._scanned(vector, wanted, filter, using, [row for row, _ in worded])
        fused = DENSE_SHARE * _min_max(-dense if lower else dense, present)
        if worded:
            if (wordless := self._wordless_of(rows)) is not None:
                # nothing is known against them: what their vectors say counts for both
                fused[wordless] /= DENSE_SHARE
            at = np.searchsorted(rows, np.array([row for row, _ in worded]))
            fused[at] += (1 - DENSE_SHARE) * np.array([score for _, score in worded], np.float32) / worded[0][1]
        best = self._ordered(rows, fused, min(wanted, len(rows)))[offset:]
        return self._hits(rows[best], fused[best], with_vectors)

    def get(self, ids: Sequence[PointId], *, with_vectors: bool = False) -> list[Point]:
        """See `Collection.get`."""
        rows = [row for point_id in ids if (row := self.row_of(point_id)) is not None]
        return self._fetch(rows, with_vectors)

    def scroll(
        self, from_id: PointId | None, limit: int, filter: object = None, *, with_vectors: bool = False
    ) -> tuple[list[Point], PointId | None]:
        """See `Collection.scroll`."""
        _check_page(limit, 0)
        start = b"" if from_id is None else self._start_of(from_id)
        rows = [row for _, row in itertools.islice(self._in_order(start, filter), limit + 1)]
        following = self._id_of(rows[limit]) if len(rows) > limit else None
        return self._fetch(rows[:limit], with_vectors), following

    def count_matching(self, filter: object = None) -> int:
        """See `Collection.count_matching`."""
        if is_no_filter(filter):
            return self.count
        frozen, tail = self._allowed(filter)
        return int(np.count_nonzero(tail)) + (int(np.count_nonzero(frozen)) if frozen is not None else 0)

    # -- rows ---------------------------------------------------------------------------------------------------------

    def row_of(self, point_id: PointId) -> int | None:
        """The row of a living point, by its id in any spelling of a UUID."""
        keys = dict.fromkeys((id_key(point_id), id_key(canonical_id(point_id))))
        return next((row for key in keys if (row := self.row_of_key(key)) is not None), None)

    def row_of_key(self, key: bytes) -> int | None:
        """The row of a living point, by its key."""
        if (slot := self.tail.slot_of(key)) is not None:
            return self._frozen_count + slot
        row = None if self.frozen is None else self.frozen.store.row_of_key(key)
        return row if row is not None and (self.alive is None or self.alive[row]) else None

    def records(self, rows: Sequence[int]) -> list[Record]:
        """The points of these rows as they are kept."""
        frozen = [row for row in rows if row < self._frozen_count]
        points = iter(self.frozen.fetch(frozen, with_vectors=True)) if self.frozen is not None else iter(())
        return [
            record_of(point := next(points), vectors_of(point))
            if row < self._frozen_count
            else self.tail.records[row - self._frozen_count]
            for row in rows
        ]

    def _start_of(self, from_id: PointId) -> bytes:
        """Where a page begins that begins with this id: at the spelling of it that is there, if any is."""
        row = self.row_of(from_id)
        return id_key(canonical_id(from_id)) if row is None else self.key_of(row)

    def key_of(self, row: int) -> bytes:
        """The key of a row's id."""
        if self.frozen is not None and row < self._frozen_count:
            return self.frozen.store.keys[row]
        return self.tail.records[row - self._frozen_count].key

    def rows_matching(self, filter: object) -> list[int]:
        """The rows that a filter lets through."""
        frozen, tail = self._allowed(filter)
        rows = [] if frozen is None else np.flatnonzero(frozen).tolist()
        return rows + (np.flatnonzero(tail) + self._frozen_count).tolist()

    def _id_of(self, row: int) -> PointId:
        return key_id(self.key_of(row))

    def held(self, name: str) -> int:
        """How many points have a vector of this name."""
        return self.count - len(self._lacking(name))

    def lacking(self, name: str, limit: int, start: int = 0) -> tuple[list[Point], int]:
        """Up to `limit` points without a vector of this name, from the `start`-th on; and how many there are in all."""
        rows = self._lacking(name)
        return self._fetch(rows[start : start + limit].tolist(), with_vectors=False), len(rows)

    def worded_share(self) -> float:
        """See `Collection.worded_share`."""
        frozen = np.arange(self._frozen_count) if self.alive is None else np.flatnonzero(self.alive)
        rows = np.concatenate([frozen, np.flatnonzero(self.tail.alive) + self._frozen_count])
        if not len(rows):
            return 1.0
        sample = rows[distinct(np.linspace(0, len(rows) - 1, WORDED_SAMPLE).astype(np.int64))]
        points = self._fetch(sample.tolist(), with_vectors=False)
        return sum(bool(point.text.strip()) for point in points) / len(points)

    def _lacking(self, name: str) -> Rows:
        if name in self._without:
            return self._without[name]
        frozen = np.ones(self._frozen_count, np.bool_) if self.alive is None else self.alive.copy()
        index = self._frozen_index(name)
        if index is not None:
            frozen &= False if index.present is None else ~index.present
        tail = self.tail.alive.copy()
        if name in self.shapes:
            present = self.tail.index(name).present
            tail &= False if present is None else ~present
        rows = np.concatenate([np.flatnonzero(frozen), np.flatnonzero(tail) + self._frozen_count])
        self._without[name] = rows
        return rows

    def _fetch(self, rows: Sequence[int], with_vectors: bool) -> list[Point]:
        points = self._fetched(rows, with_vectors)
        if not with_vectors or not any(map(is_derived, self.shapes)):
            return points
        shown = [{name: vector for name, vector in point.named.items() if not is_derived(name)} for point in points]
        return [replace(point, named=named) for point, named in zip(points, shown, strict=True)]

    def _fetched(self, rows: Sequence[int], with_vectors: bool) -> list[Point]:
        frozen = [row for row in rows if row < self._frozen_count]
        if self.frozen is not None and len(frozen) == len(rows):
            return self.frozen.fetch(rows, with_vectors=with_vectors)
        found = iter(self.frozen.fetch(frozen, with_vectors=with_vectors)) if self.frozen is not None else iter(())
        return [
            next(found)
            if row < self._frozen_count
            else point_of(self.tail.records[row - self._frozen_count], with_vectors=with_vectors)
            for row in rows
        ]

    def _hits(self, rows: Rows | list[int], scores: Matrix | list[float], with_vectors: bool) -> list[Hit]:
        wanted, rated = np.asarray(rows, np.int64).tolist(), np.asarray(scores, np.float64).tolist()
        if not with_vectors and self.frozen is not None and max(wanted, default=0) < self._frozen_count:
            return self.frozen.store.hits(wanted, rated)
        points = self._fetch(wanted, with_vectors)
        return [
            Hit(
                point.id,
                score,
                point.payload,
                point.text,
                point.source,
                point.vector,
                point.version,
                point.named,
            )
            for point, score in zip(points, rated, strict=True)
        ]

    def _in_order(self, start: bytes, filter: object) -> Iterator[tuple[bytes, int]]:
        """(key, row) of what a filter lets through, in id order, from `start` on."""
        frozen, tail = self._allowed(filter)
        order = self.tail.order()
        first = bisect_left(order, (start, -1))
        written = ((key, self._frozen_count + slot) for key, slot in order[first:] if tail[slot])
        if self.frozen is None:
            return written
        keys = self.frozen.store.keys
        begin = bisect_left(keys, start) if start else 0
        rows = range(begin, len(keys)) if frozen is None else (begin + np.flatnonzero(frozen[begin:])).tolist()
        kept = ((keys[row], row) for row in rows)
        return kept if first == len(order) else heapq.merge(kept, written)

    # -- vectors ------------------------------------------------------------------------------------------------------

    def _shape(self, using: str) -> KeptShape:
        kept = self.shapes.get(using)
        if kept is not None:
            return kept
        if not using and not self.shapes:
            # nothing was ever written: there is nothing to be found, by a vector of any length
            return KeptShape(0)
        raise BadQuestion(f"this collection has no vectors named {using!r}" if using else "its vectors have names")

    def _nearest(self, vector: object, wanted: int, filter: object, using: str, kept: KeptShape) -> tuple[Rows, Matrix]:
        """The best rows and their scores, best first, equal scores in id order."""
        if not kept.dimensions:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        query = checked_vector(vector, kept.dimensions)
        frozen, tail = self._allowed(filter)
        found: tuple[Rows, Matrix] = (np.empty(0, np.int64), np.empty(0, np.float32))
        index = self._frozen_index(using)
        if index is not None and self.frozen is not None:
            gathered = None if is_no_filter(filter) else self.frozen.gathered(using, filter)
            found = index.nearest(query, wanted, frozen, gathered)
        if not self.tail.live or not wanted:
            return found
        rows, scores = _scan(self.tail.index(using), query, wanted, tail)
        rows = np.concatenate([found[0], rows + self._frozen_count])
        scores = np.concatenate([found[1], scores])
        best = self._ordered(rows, -scores if Distance.of(kept.distance).lower_is_better else scores, wanted)
        return rows[best], scores[best]

    def _frozen_index(self, using: str) -> VectorIndex | None:
        return None if self.frozen is None else self.frozen.vectors.get(using)

    def _ordered(self, rows: Rows, goodness: Matrix, k: int) -> Rows:
        """Positions of the k best of `rows`, best first, equal ones in id order."""
        if not self.tail.count:
            return top(goodness, k)
        if 0 < k < len(goodness):
            bar = np.partition(goodness, len(goodness) - k)[len(goodness) - k]
            at = np.flatnonzero(goodness >= bar)
        else:
            at = np.arange(len(goodness))
        ordered = sorted(at.tolist(), key=lambda place: (-goodness[place], self.key_of(int(rows[place]))))
        return np.array(ordered[:k], np.int64)

    def _scanned(
        self, vector: object, wanted: int, filter: object, using: str, worded: list[int]
    ) -> tuple[Rows, Matrix, Mask]:
        """The rows fusion looks at, ascending, `worded` among them, their dense scores, and which of them have any."""
        kept = self._shape(using)
        query = checked_vector(vector, kept.dimensions)
        frozen, tail = self._allowed(filter)
        index = self._frozen_index(using)
        rows = self._rows_to_scan(query, index, wanted, frozen, worded)
        old, new = rows, np.flatnonzero(tail)
        scores = np.zeros(len(old) + len(new), np.float32)
        present = np.zeros(len(scores), np.bool_)
        if index is not None and len(old):
            scores[: len(old)] = index.scores(query)[old] if len(old) * 2 > index.count else index.scores(query, old)
            present[: len(old)] = True if index.present is None else index.present[old]
        if len(new):
            written = self.tail.index(using)
            scores[len(old) :] = written.scores(query)[new]
            present[len(old) :] = True if written.present is None else written.present[new]
        return np.concatenate([old, new + self._frozen_count]), scores, present

    def _rows_to_scan(
        self, query: Matrix, index: VectorIndex | None, wanted: int, allowed: Mask | None, worded: list[int]
    ) -> Rows:
        if index is None or self._frozen_count <= _FUSED_SCAN_MAX:
            return np.arange(self._frozen_count) if allowed is None else np.flatnonzero(allowed)
        near, _ = index.search(query, max(_FUSED_FETCH, wanted), allowed)
        sample = np.linspace(0, self._frozen_count - 1, _FUSED_SAMPLE).astype(np.int64)
        sample = sample if allowed is None else sample[allowed[sample]]
        old = [row for row in worded if row < self._frozen_count]
        return distinct(np.concatenate([near, sample, np.array(old, np.int64)]))

    # -- words --------------------------------------------------------------------------------------------------------

    def _worded(self, text: str, wanted: int, filter: object) -> list[tuple[int, float]]:
        """At most `wanted` (row, score) by BM25, best first, equal scores in id order."""
        frozen, tail = self._allowed(filter)
        found = self.frozen.keywords.search(text, wanted, frozen) if self.frozen is not None else []
        if not self.tail.live or not wanted:
            return found
        words, weights = self._weighed(text)
        written = self.tail.search_words(words, weights, tail)
        if not written:
            return found
        together = found + [(self._frozen_count + slot, score) for slot, score in written]
        together.sort(key=lambda each: (-each[1], self.key_of(each[0])))
        return together[:wanted]

    def _wordless_of(self, rows: Rows) -> Mask | None:
        """Which of `rows`, ascending, no words can find; None for none."""
        frozen = None if self.frozen is None else self.frozen.wordless()
        tail = self.tail.wordless()
        if frozen is None and not tail.any():
            return None
        whole = np.concatenate([np.zeros(self._frozen_count, np.bool_) if frozen is None else frozen, tail])
        return whole[rows]

    def _weighed(self, text: str) -> tuple[list[str], dict[str, float]]:
        """The words of a question, the rarest where there are many, and how much each weighs in all the texts."""
        words = list(dict.fromkeys(words_of(text[:QUERY_CHARS_MAX])))
        holders = {word: self.tail.words_count(word) for word in words}
        if self.frozen is not None:
            for word in words:
                holders[word] += self.frozen.keywords.count_of(word)
        words = sorted((word for word in words if holders[word]), key=lambda word: (holders[word], word))
        texts = self._frozen_count + self.tail.count
        return words[:QUERY_WORDS_MAX], {word: idf_of(holders[word], texts) for word in words[:QUERY_WORDS_MAX]}

    # -- what a filter allows -----------------------------------------------------------------------------------------

    def _allowed(self, filter: object) -> tuple[Mask | None, Mask]:
        """The living frozen rows that a filter lets through, None for all of them, and the living slots."""
        if is_no_filter(filter):
            return self.alive, self.tail.alive
        frozen = None if self.frozen is None else self.frozen.mask(filter)
        tail = self.tail.mask(filter)
        if frozen is not None and self.alive is not None:
            frozen = frozen & self.alive
        return frozen, tail & self.tail.alive


def _scan(index: VectorIndex, query: Matrix, k: int, allowed: Mask) -> tuple[Rows, Matrix]:
    """The rows at least as good as the k-th best, in any order, and their scores."""
    marks = allowed if index.present is None else allowed & index.present
    rows = np.flatnonzero(marks)
    scores = index.scores(query)[rows]
    goodness = -scores if index.distance.lower_is_better else scores
    if k < len(rows):
        near = np.flatnonzero(goodness >= np.partition(goodness, len(rows) - k)[len(rows) - k])
        return rows[near], scores[near]
    return rows, scores


def _check_page(limit: int, offset: int) -> None:
    if limit < 0 or offset < 0:
        raise BadQuestion(f"limit {limit} and offset {offset} must not be negative")


def _min_max(scores: Matrix, present: Mask) -> Matrix:
    """Scores scaled to [0, 1]; 0 for what has none, and where all are alike."""
    held = scores if present.all() else scores[present]
    if not len(held) or held.max() == held.min():
        return np.zeros_like(scores)
    scaled = (scores - held.min()) / (held.max() - held.min())
    scaled[~present] = 0
    return scaled
