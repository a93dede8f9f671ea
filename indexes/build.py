"""Make a collection of files: cut them into passages, embed what is new, write a snapshot.

paths -> passages -> known text? its vector from the current generation : embed -> snapshot
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from understudy.indexes.chunks import Passage, chunk_files
from understudy.indexes.collection import Embed
from understudy.indexes.faults import BadFile, CorruptIndex, IndexFault, WrongDimension
from understudy.indexes.generation import (
    GRAPH,
    POINTS,
    VECTORS,
    Generation,
    current_name,
    find_generation,
    generations,
    inspect,
    load_matrix,
)
from understudy.indexes.library import Library
from understudy.indexes.points import Point, Vector, searchable
from understudy.indexes.snapshot import write_snapshot
from understudy.indexes.store import FrozenStore
from understudy.indexes.vectors import Distance, VectorIndex, failed_probes, opened_graph
from understudy.indexes.walk import built

BATCH_TEXTS: Final = 64
PASSAGES_MAX: Final = 1_000_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What was built. `embedded` + `reused` = `passages`."""

    name: str
    generation: str
    passages: int
    embedded: int
    reused: int
    wall_s: float


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with a collection on disk. `fatal`: it cannot be served as it is, only from what came before."""

    generation: str
    what: str
    fatal: bool


def build(
    folder: Path,
    name: str,
    paths: Sequence[Path],
    embed: Embed,
    space: str,
    dimensions: int,
    *,
    distance: str = Distance.COSINE,
    progress: Callable[[int, int], None] | None = None,
) -> BuildReport:
    """Write the collection `name` of the library in `folder` anew from files and folders of files.

    `embed(texts)` gives float32 [n, dimensions]; texts the current generation already holds in the same `space` are
    not embedded again. `progress(done, total)` counts passages. Raises BadFile, BadName, Busy, WrongDimension,
    NotFinite, OSError, and whatever `embed` raises; after any of them the collection is what it was.
    """
    started_s = time.monotonic()
    target = Library(folder).path_of(name)
    passages: list[Passage] = []
    for passage in chunk_files(paths):
        passages.append(passage)
        if len(passages) > PASSAGES_MAX:
            raise BadFile(f"{passage.source}:1: more than {PASSAGES_MAX} passages")
    texts = [searchable(passage.text, passage.payload) for passage in passages]
    known = _known_vectors(target, space, dimensions)
    embedding = _Embedding(embed, dimensions, known, progress)
    vectors = embedding.of(texts)
    generation = write_snapshot(
        target, _points(passages, vectors), space=space, dimensions=dimensions, distance=distance
    )
    return BuildReport(
        name=name,
        generation=generation,
        passages=len(passages),
        embedded=embedding.asked,
        reused=len(passages) - embedding.asked,
        wall_s=time.monotonic() - started_s,
    )


def verify(folder: Path, name: str) -> list[Finding]:
    """What is wrong with the collection `name` of the library in `folder`; [] if nothing is. Raises BadName."""
    target = Library(folder).path_of(name)
    found = generations(target)
    current = current_name(target)
    if not found:
        return [Finding("", "there is no snapshot", fatal=True)]
    findings = [] if current else [Finding("", "CURRENT is missing or names no generation", fatal=False)]
    for path in found:
        findings += [Finding(path.name, what, fatal) for what, fatal in _faults_of(path)]
    return findings


class _Embedding:
    """Turns texts into vectors, each distinct unknown text once."""

    def __init__(
        self,
        embed: Embed,
        dimensions: int,
        known: dict[bytes, Vector],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._embed = embed
        self._dimensions = dimensions
        self._known = known
        self._progress = progress
        self.asked = 0

    def of(self, texts: Sequence[str]) -> list[Vector]:
        keys = [_text_sum(text) for text in texts]
        unknown = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        self.asked = len(unknown)
        # alike in length: a batch is as slow as its longest text
        order = sorted(unknown.items(), key=lambda item: len(item[1]))
        for at in range(0, len(order), BATCH_TEXTS):
            self._report(len(texts) - len(order) + at, len(texts))
            batch = order[at : at + BATCH_TEXTS]
            vectors = self._checked([text for _, text in batch])
            self._known.update(zip((key for key, _ in batch), vectors, strict=True))
        self._report(len(texts), len(texts))
        return [self._known[key] for key in keys]

    def _checked(self, texts: list[str]) -> Sequence[Vector]:
        vectors = np.asarray(self._embed(texts), np.float32)
        if vectors.shape != (len(texts), self._dimensions):
            raise WrongDimension(vectors.shape, self._dimensions, f"embedder's answer to {len(texts)} texts:")
        return list(vectors)

    def _report(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(done, total)


def _points(passages: Sequence[Passage], vectors: Sequence[Vector]) -> Iterator[Point]:
    for passage, vector in zip(passages, vectors, strict=True):
        # an application that searches the collection reads the text from the payload, as it would from its database
        yield Point(passage.id, vector, {"text": passage.text, **passage.payload}, passage.text, passage.source)


def _known_vectors(folder: Path, space: str, dimensions: int) -> dict[bytes, Vector]:
    """The vectors of the current generation by the sum of their text; {} if it is in another space."""
    generation = find_generation(folder, [])
    if generation is None:
        return {}
    manifest = generation.manifest
    if (manifest.space, manifest.dimensions) != (space, dimensions):
        return {}
    store = FrozenStore(generation.folder / POINTS, dimensions)
    try:
        return {
            _text_sum(searchable(point.text, point.payload)): point.vector
            for point in store.points()
            if point.vector is not None
        }
    finally:
        store.close()


def _text_sum(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _faults_of(folder: Path) -> list[tuple[str, bool]]:
    try:
        generation = inspect(folder)
    except CorruptIndex as fault:
        return [(str(fault), True)]
    faults = [(what, False) for what in generation.damage.values()]
    if generation.damage:
        return faults
    try:
        return _deeper_faults_of(generation)
    except IndexFault as fault:
        return [(str(fault), False)]


def _deeper_faults_of(generation: Generation) -> list[tuple[str, bool]]:
    """Whether the files, each as it was written, also fit together."""
    manifest = generation.manifest
    matrix = load_matrix(generation.folder, manifest)
    faults: list[tuple[str, bool]] = []
    if not bool(np.isfinite(matrix).all()):
        faults.append((f"{VECTORS}: holds NaN or infinity", False))
    if GRAPH in manifest.files:
        distance = Distance.of(manifest.distance)
        graph = opened_graph(generation.folder / GRAPH, matrix, distance, manifest.count, built())
        failed = failed_probes(VectorIndex(matrix, distance, graph), manifest.probes)
        if failed:
            faults.append((f"{GRAPH}: {failed} of {len(manifest.probes)} self-queries came back wrong", False))
    return faults
