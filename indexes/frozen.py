"""One generation, open: its store, its matrices and graphs, its keyword index, and what filters let through of it.

Nothing of it ever changes, so every method may be called from any thread, and what a filter lets through is worked out
once. Damage to what is derived is logged, kept in `.damage` and mended in memory; with a damaged graph search is exact.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, Literal, TypeVar

import numpy as np

from understudy.indexes.arrays import distinct
from understudy.indexes.conditions import Condition
from understudy.indexes.faults import BadId, CorruptIndex
from understudy.indexes.fields import Fields
from understudy.indexes.filters import compile_filter
from understudy.indexes.generation import (
    FIELDS,
    KEYWORDS,
    POINTS,
    Generation,
    Manifest,
    VectorFiles,
    load_matrix,
    load_present,
    vector_files,
)
from understudy.indexes.keywords import Keywords, open_keywords, write_keywords
from understudy.indexes.masks import Gatherings, Masks, filter_key
from understudy.indexes.points import Payload, Point, PointId, searchable
from understudy.indexes.records import KeptShape
from understudy.indexes.snapshot import fill_matrix
from understudy.indexes.store import FREED_AT_ONCE, FrozenStore, checked_vector
from understudy.indexes.vectors import (
    PROBES,
    Distance,
    Gathered,
    Mask,
    VectorIndex,
    failed_probes,
    opened_graph,
    prepared,
)
from understudy.indexes.walk import built

PAYLOADS_HELD_MAX: Final = 200_000
GATHERED_BYTES_MAX: Final = 64 * 2**20
WORDED_SAMPLE: Final = 200

_KEY_BYTES: Final = 100
# a payload takes about three times as much room decoded as it does as JSON
_DECODED: Final = 3

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class Frozen:
    """One open generation of the collection `name`. Its rows are 0..n-1, in id order."""

    def __init__(self, name: str, generation: Generation, *, exact_below: int) -> None:
        manifest = generation.manifest
        self.generation = generation.name
        self.through = manifest.through
        self.shapes = manifest.shapes
        self.notes = manifest.notes
        self.damage = dict(generation.damage)
        self._bytes = bytes_of(manifest)
        self.store = FrozenStore(generation.folder / POINTS, manifest.dimensions)
        self._name = name
        self.masks = Masks()
        self._gatherings = Gatherings(GATHERED_BYTES_MAX)
        self._payloads: list[Payload] | None = None
        self._wordless: Mask | Literal[False] | None = False
        self._filling = threading.Lock()
        if self.store.count != manifest.count:
            raise CorruptIndex(f"{POINTS}: holds {self.store.count} points, not {manifest.count}")
        files = vector_files(manifest.named)
        self.vectors = {
            called: self._vector_index(generation, called, kept, files[called], exact_below)
            for called, kept in self.shapes.items()
        }
        self._fields = self._part(FIELDS, lambda: self._opened_fields(generation), lambda: None)
        self.keywords = self._part(KEYWORDS, lambda: self._opened_keywords(generation), self._keywords_again)

    @property
    def bytes_held(self) -> int:
        """About how much memory it takes."""
        return self._bytes + self._gatherings.bytes_held

    @property
    def count(self) -> int:
        """How many points."""
        return self.store.count

    def fetch(self, rows: Sequence[int], *, with_vectors: bool) -> list[Point]:
        """The points of these rows, in the order asked for."""
        return self.store.fetch(rows, with_vectors=with_vectors)

    def mask(self, filter: object) -> Mask:
        """Which rows a filter lets through, remembered. Raises UnknownFilter."""
        return self.masks.get(filter_key(filter), lambda: self._worked_out(filter))

    def wordless(self) -> Mask | None:
        """Which rows no words can find; None where a sample of them says that there are none, or hardly any."""
        with self._filling:
            if self._wordless is False:
                rows = distinct(np.linspace(0, self.count - 1, min(WORDED_SAMPLE, self.count)).astype(np.int64))
                some = self.fetch(rows.tolist(), with_vectors=False)
                has_words = all(searchable(point.text, point.payload).strip() for point in some)
                self._wordless = None if has_words else self.store.wordless()
            return self._wordless

    def gathered(self, using: str, filter: object) -> Gathered | None:
        """The rows that a filter lets through, copied together, where that makes searching them quicker."""
        index, mask = self.vectors[using], self.mask(filter)
        if index.graph is None:
            return None
        due_bytes = 4 * index.dimensions * int(np.count_nonzero(mask))
        return self._gatherings.get((using, filter_key(filter)), due_bytes, lambda: index.gather(mask))

    def close(self) -> None:
        """Let go of the files."""
        self.store.close()

    def free(self) -> None:
        """Give back what takes long to free, a little at a time. Only when nobody has a view of it any more."""
        self.store.free()
        payloads, self._payloads = self._payloads, None
        while payloads:
            del payloads[-FREED_AT_ONCE:]

    def _worked_out(self, filter: object) -> Mask:
        ids = map(self.store.id_of, range(self.count))
        if isinstance(filter, Condition) and filter.reads_text:
            words = zip(ids, self.store.words(), strict=True)
            marks = (filter.passes(point_id, payload, text) for point_id, (text, payload) in words)
            return np.fromiter(marks, np.bool_, self.count)
        if isinstance(filter, Condition):
            tests = map(filter.passes, ids, self._payloads_to_go_through(), itertools.repeat(""))
            return np.fromiter(tests, np.bool_, self.count)
        passes = compile_filter(filter, self._has_vector)
        if self._fields is not None and (mask := self._fields.mask(filter)) is not None:
            return mask
        return np.fromiter(map(passes, ids, self._payloads_to_go_through()), np.bool_, self.count)

    def _payloads_to_go_through(self) -> Iterable[Payload]:
        return self._held_payloads() if self.count <= PAYLOADS_HELD_MAX else self.store.payloads()

    def _has_vector(self, point_id: PointId, name: str) -> bool:
        index, row = self.vectors.get(name), self.store.row_of(point_id)
        return index is not None and row is not None and (index.present is None or bool(index.present[row]))

    def _held_payloads(self) -> list[Payload]:
        # decoding is three quarters of the price of a scan: pay it once, for collections that fit
        with self._filling:
            if self._payloads is None:
                self._payloads = list(self.store.payloads())
            return self._payloads

    # -- parts, sound or made again -----------------------------------------------------------------------------------

    def _part(self, file: str, load: Callable[[], _T], again: Callable[[], _T]) -> _T:
        if file not in self.damage:
            try:
                return load()
            except CorruptIndex as fault:
                self.damage[file] = str(fault)
        _log.warning("collection %s, %s: refused %s", self._name, self.generation, self.damage[file])
        return again()

    def _vector_index(
        self, generation: Generation, called: str, kept: KeptShape, files: VectorFiles, exact_below: int
    ) -> VectorIndex:
        index = self._part(
            files.vectors,
            lambda: self._loaded_vectors(generation, called, kept, files),
            lambda: self._vectors_again(called, kept),
        )
        if index.held < exact_below:
            return index
        return self._part(files.graph, lambda: self._with_graph(generation, called, index, files), lambda: index)

    def _loaded_vectors(self, generation: Generation, called: str, kept: KeptShape, files: VectorFiles) -> VectorIndex:
        if files.present in self.damage:
            raise CorruptIndex(self.damage[files.present])
        matrix = load_matrix(generation.folder, generation.manifest, called)
        present = load_present(generation.folder, generation.manifest, called)
        distance = Distance.of(kept.distance)
        held = np.arange(self.count) if present is None else np.flatnonzero(present)
        # sums say the file is what was written; this says that what was written is of this store
        rows = held[distinct(np.linspace(0, len(held) - 1, min(PROBES, len(held))).astype(np.int64))]
        points = self.store.fetch([int(row) for row in rows], with_vectors=True)
        for row, point in zip(rows, points, strict=True):
            stored = point.named.get(called) if called else point.vector
            due = prepared(checked_vector(stored, kept.dimensions, "stored"), distance)
            if not np.allclose(matrix[row], due, rtol=1e-5, atol=1e-7):
                raise CorruptIndex(f"{files.vectors}: row {row} is not the vector of point {point.id!r}")
        return VectorIndex(matrix, distance, present=present, compiled=built())

    def _vectors_again(self, called: str, kept: KeptShape) -> VectorIndex:
        matrix = np.zeros((self.count, kept.dimensions), np.float32)
        present = fill_matrix(self.store, called, kept, matrix)
        return VectorIndex(matrix, Distance.of(kept.distance), present=None if present.all() else present)

    def _with_graph(self, generation: Generation, called: str, index: VectorIndex, files: VectorFiles) -> VectorIndex:
        manifest = generation.manifest
        if files.graph not in manifest.files:
            return index
        graph = opened_graph(generation.folder / files.graph, index.matrix, index.distance, index.held, built())
        index = VectorIndex(index.matrix, index.distance, graph, index.present, built())
        probes = manifest.named_probes.get(called, []) if called else manifest.probes
        if failed := failed_probes(index, probes):
            raise CorruptIndex(f"{files.graph}: {failed} of {len(probes)} self-queries came back wrong")
        return index

    def _opened_fields(self, generation: Generation) -> Fields | None:
        # generations of earlier versions have none
        is_there = FIELDS in generation.manifest.files
        if not is_there:
            return None
        # no methods of ours: a generation that holds itself is only let go of when the garbage collector comes by
        rows_of = partial(_rows_of, self.store)
        rows_with = partial(_rows_with, self.vectors, self.count)
        return Fields.open(generation.folder / FIELDS, self.count, rows_of, rows_with)

    def _opened_keywords(self, generation: Generation) -> Keywords:
        keywords = open_keywords(generation.folder / KEYWORDS)
        if keywords.count != self.count:
            raise CorruptIndex(f"{KEYWORDS}: holds {keywords.count} texts, not {self.count}")
        return keywords

    def _keywords_again(self) -> Keywords:
        return write_keywords(searchable(*words) for words in self.store.words())


def _rows_of(store: FrozenStore, ids: Iterable[PointId]) -> list[int]:
    found: list[int] = []
    for point_id in ids:
        with contextlib.suppress(BadId):  # nothing has an id that none can have
            row = store.row_of(point_id)
            found += [] if row is None else [row]
    return found


def _rows_with(vectors: Mapping[str, VectorIndex], count: int, name: str) -> Mask:
    """Which rows have a vector of this name."""
    index = vectors.get(name)
    if index is None:
        return np.zeros(count, np.bool_)
    return np.ones(count, np.bool_) if index.present is None else index.present.copy()


def bytes_of(manifest: Manifest) -> int:
    """About how much memory an open generation takes: matrices and links of graphs whole, columns, keys, and
    payloads once they had to be gone through."""
    files = vector_files(manifest.named)
    vectors = graphs = 0
    for called in manifest.shapes:
        matrix, graph = (
            manifest.files[file].bytes if file in manifest.files else 0
            for file in (files[called].vectors, files[called].graph)
        )
        vectors += matrix
        # hnswlib keeps vectors of its own; who walks without it needs the links alone
        graphs += graph if built() is None else max(0, graph - matrix)
    columns = manifest.files[FIELDS].bytes if FIELDS in manifest.files else 0
    words = max(0, (manifest.files[POINTS].bytes if POINTS in manifest.files else 0) - vectors)
    payloads = _DECODED * words if manifest.count <= PAYLOADS_HELD_MAX else 0
    return vectors + graphs + columns + payloads + _KEY_BYTES * manifest.count
