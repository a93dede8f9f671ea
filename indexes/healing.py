"""Write a damaged collection anew: from its store where that is sound, else from its words.

store sound   -> all that is derived is made again
words sound   -> their vectors are embedded again, and the rest made of that
neither       -> CorruptIndex
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from understudy.indexes.faults import CorruptIndex
from understudy.indexes.generation import GRAPH, POINTS, Manifest, find_generation, generations, read_manifest
from understudy.indexes.points import Point, searchable
from understudy.indexes.snapshot import write_snapshot
from understudy.indexes.store import FrozenStore
from understudy.indexes.vectors import Matrix

Embed: TypeAlias = Callable[[Sequence[str]], Matrix]

_EMBED_BATCH: Final = 32


def heal(
    folder: Path, *, rebuild_embed: Embed | None = None, embeds: Callable[[str], bool] = lambda _space: True
) -> str | None:
    """Write damaged parts of a collection anew, as a new generation; its name, or None if there was nothing to do.

    Where no store is sound, but all the words of one are whole, its vectors are made again by `rebuild_embed`, if it
    `embeds` into their space: vectors of two spaces are never mixed.
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
            manifest = read_manifest(path)
            if not embeds(manifest.space):
                raise CorruptIndex(f"its vectors are of the space {manifest.space!r}, which nobody here embeds into")
            return _rewritten(folder, path, manifest, rebuild_embed)
        except CorruptIndex as fault:
            reasons.append(f"{path.name}: {fault}")
    raise CorruptIndex(f"collection {folder.name}: {'; '.join(reasons)}")


def _rewritten(folder: Path, generation: Path, manifest: Manifest, embed: Embed | None) -> str:
    store = FrozenStore(generation / POINTS, manifest.dimensions)
    try:
        if embed is not None and (manifest.named or not manifest.dimensions):
            raise CorruptIndex(f"{POINTS}: vectors with names cannot be embedded again")
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
            named=manifest.named,
            sparse=True,
            notes=manifest.notes,
            through=manifest.through,
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
