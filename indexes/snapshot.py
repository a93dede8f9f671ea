"""Write a collection so that a crash at any byte leaves the old generation or the new one.

    records --> .tmp-*: store --> matrices --> keywords, columns --> graphs, in a child --> manifest --sync-->
    rename to g-000002 --> CURRENT --> prune what nobody falls back to, and the journal that it holds

See `generation` for what lies where, and how it is read.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np

from understudy.indexes.build_graph import build_graph
from understudy.indexes.faults import BadPoint, Busy, CorruptIndex, IndexFault
from understudy.indexes.fields import write_columns
from understudy.indexes.generation import (
    CURRENT,
    FIELDS,
    FORMAT,
    KEYWORDS,
    MANIFEST,
    POINTS,
    Manifest,
    VectorFiles,
    files_of,
    find_generation,
    generations,
    number_of,
    read_manifest,
    seal,
    sum_of,
    vector_files,
)
from understudy.indexes.journal import Journal, sync
from understudy.indexes.keywords import write_keywords
from understudy.indexes.points import Point, searchable
from understudy.indexes.records import KeptShape
from understudy.indexes.store import FrozenStore, Store
from understudy.indexes.vectors import EF_CONSTRUCTION, EF_LEAST, EXACT_BELOW, Distance, M, Mask, Matrix, prepared

DIMENSIONS_MAX: Final = 65_536
GENERATIONS_KEPT: Final = 2
# a graph this large takes seconds to build, and hnswlib holds the GIL while it saves one: not in this process
SUBPROCESS_FROM: Final = 20_000
# a million vectors take a quarter of an hour
GRAPH_WAIT_S_MAX: Final = 6 * 3_600

_LOCK: Final = "LOCK"
_TEMPORARY: Final = ".tmp-"
_ROWS_A_BLOCK: Final = 1_000

Step: TypeAlias = Callable[[str], None]
Progress: TypeAlias = Callable[[int, int], None]


# -- writing ----------------------------------------------------------------------------------------------------------


def write_snapshot(
    folder: Path,
    records: Iterable[Point],
    *,
    space: str,
    dimensions: int,
    distance: str = Distance.COSINE,
    graph: bool | None = None,
    named: Mapping[str, KeptShape] | None = None,
    sparse: bool = False,
    notes: Mapping[str, Any] | None = None,
    through: int | None = None,
    is_locked: bool = False,
    progress: Progress | None = None,
    step: Step | None = None,
) -> str:
    """Write `records`, which need vectors [dimensions], as the new generation of the collection in `folder`; its name.

    Of records with the same id the last counts. A graph is built from 20 000 records on, or as `graph` says.
    `progress(done, total)` counts stages. `step` is called with the name of every step before it is taken; whatever
    it raises is a crash, which is how the tests crash it. `named` are the shapes of vectors with a name; with
    `sparse` a record may lack any vector. `through` is the last entry of the journal that `records` contain: unless it
    is said, they stand for all that was written until now. `is_locked`: the caller is within `locked`.

    Raises BadPoint, WrongDimension or NotFinite for a record that cannot be stored, Busy if somebody else is writing,
    OSError if the disk will not have it. After any of these the collection is what it was.
    """
    shape = _Shape(
        space=space,
        dimensions=_checked_dimensions(dimensions, least=0 if named or sparse else 1),
        distance=Distance.of(distance),
        graph=graph,
        named={name: _checked_shape(kept) for name, kept in (named or {}).items()},
        sparse=sparse,
        notes=dict(notes or {}),
        through=through,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with nullcontext() if is_locked else locked(folder):
        writer = _Writer(folder, shape, progress or _ignore, step or _ignore)
        return writer.write(records)


@dataclass(frozen=True, slots=True)
class _Shape:
    space: str
    dimensions: int
    distance: Distance
    graph: bool | None
    named: dict[str, KeptShape]
    sparse: bool
    notes: dict[str, Any]
    through: int | None

    @property
    def shapes(self) -> dict[str, KeptShape]:
        own = {"": KeptShape(self.dimensions, self.distance.value, self.space)} if self.dimensions else {}
        return own | self.named


class _Writer:
    """The stages of one snapshot, in order."""

    def __init__(self, folder: Path, shape: _Shape, progress: Progress, step: Step) -> None:
        self._folder = folder
        self._shape = shape
        self._progress = progress
        self._step = step

    def write(self, records: Iterable[Point]) -> str:
        self._step("sweep")
        _sweep(self._folder)
        if self._shape.through is None:
            self._shape = replace(self._shape, through=_written_until_now(self._folder))
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self._folder))
        # mkdtemp shuts out other users; the folder that holds it has already said who may read
        temporary.chmod(0o755)
        try:
            self._fill(temporary, records)
            return self._publish(temporary)
        except (IndexFault, OSError, sqlite3.Error) as fault:
            # a full disk above all: give back what was taken of it
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(fault, sqlite3.Error):
                raise OSError(f"{self._folder.name}: the store cannot be written: {fault}") from fault
            raise

    def _fill(self, temporary: Path, records: Iterable[Point]) -> None:
        shape = self._shape
        self._stage(0, "store")
        count = _write_store(temporary, records, shape)
        self._stage(1, "vectors")
        store = FrozenStore(temporary / POINTS, shape.dimensions)
        files = vector_files(shape.named)
        held: dict[str, int] = {}
        try:
            for name, kept in shape.shapes.items():
                held[name] = _write_matrix(store, name, kept, temporary, files[name])
            self._stage(2, "keywords")
            (temporary / KEYWORDS).mkdir()
            write_keywords((searchable(*words) for words in store.words()), temporary / KEYWORDS)
            write_columns(temporary / FIELDS, store.payloads(), map(store.id_of, range(store.count)))
            words_sum = store.words_sum()
        finally:
            store.close()
        self._stage(3, "graph")
        probes: dict[str, list[list[int]]] = {}
        for name, kept in shape.shapes.items():
            if held[name] >= EXACT_BELOW if shape.graph is None else shape.graph and held[name] > 0:
                probes[name] = _write_graph(temporary, files[name], Distance.of(kept.distance), held[name])
        self._stage(4, "manifest")
        _write_manifest(temporary, shape, count, words_sum, probes)
        self._step("sync")
        _sync_tree(temporary)

    def _publish(self, temporary: Path) -> str:
        self._stage(5, "name")
        # the one that would be served: a rotten one falls back on nobody, and would push out the one that does
        previous = find_generation(self._folder, [])
        name = f"g-{max((number_of(path.name) for path in generations(self._folder)), default=0) + 1:06}"
        temporary.rename(self._folder / name)
        sync(self._folder)
        self._step("current")
        _write_current(self._folder, name, self._step)
        self._step("prune")
        _prune(self._folder, {name, None if previous is None else previous.folder.name})
        _prune_journal(self._folder)
        self._progress(6, 6)
        return name

    def _stage(self, done: int, name: str) -> None:
        self._progress(done, 6)
        self._step(name)


def _write_store(temporary: Path, records: Iterable[Point], shape: _Shape) -> int:
    # records come in any order and may repeat an id; SQLite sorts them without holding them all in memory
    scratch_path = temporary / "scratch.sqlite"
    named = {name: kept.dimensions for name, kept in shape.named.items()}
    scratch = Store(scratch_path, shape.dimensions, durable=False, named=named, sparse=shape.sparse)
    try:
        scratch.upsert(records)
        return scratch.freeze(temporary / POINTS)
    finally:
        scratch.close()
        scratch_path.unlink()


def fill_matrix(store: FrozenStore, name: str, kept: KeptShape, matrix: Matrix) -> Mask:
    """Write every vector of this name, prepared for its distance, into `matrix` [n, d]; which rows have one [n]."""
    distance = Distance.of(kept.distance)
    present = np.zeros(len(matrix), np.bool_)
    rows: list[int] = []
    block: list[Matrix] = []

    def written() -> None:
        if block:
            matrix[rows] = prepared(np.stack(block), distance)
            present[rows] = True
        rows.clear()
        block.clear()

    for row, vector in store.vectors(name, kept.dimensions):
        rows.append(row)
        block.append(vector)
        if len(block) == _ROWS_A_BLOCK:
            written()
    written()
    return present


def _write_matrix(store: FrozenStore, name: str, kept: KeptShape, folder: Path, files: VectorFiles) -> int:
    """How many rows have a vector of this name."""
    size = (store.count, kept.dimensions)
    if store.count == 0:
        np.save(folder / files.vectors, np.empty(size, np.float32))  # nothing can be mapped of nothing
        return 0
    mapped = np.lib.format.open_memmap(folder / files.vectors, mode="w+", dtype=np.float32, shape=size)
    present = fill_matrix(store, name, kept, mapped)
    mapped.flush()
    held = int(np.count_nonzero(present))
    if held < store.count:
        np.save(folder / files.present, present)
    return held


def _write_graph(folder: Path, files: VectorFiles, distance: Distance, count: int) -> list[list[int]]:
    matrix, present = folder / files.vectors, folder / files.present
    present = present if present.exists() else None
    if count < SUBPROCESS_FROM:
        return build_graph(matrix, folder / files.graph, distance, present)
    command = [sys.executable, "-m", "understudy.indexes.build_graph", matrix, folder / files.graph, distance]
    command += [present] if present else []
    try:
        done = subprocess.run(  # noqa: S603
            command, env=child_environment(), capture_output=True, check=False, timeout=GRAPH_WAIT_S_MAX
        )
    except subprocess.TimeoutExpired as error:
        raise CorruptIndex(f"the graph was not built within {GRAPH_WAIT_S_MAX} s") from error
    if done.returncode != 0:
        raise CorruptIndex(f"the graph was not built: {done.stderr.decode(errors='replace').strip()[-500:]}")
    return msgspec.json.decode(done.stdout, type=list[list[int]])


def child_environment() -> dict[str, str]:
    """The environment in which a child finds the modules that we found."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _write_manifest(
    folder: Path, shape: _Shape, count: int, words_sum: str, probes: dict[str, list[list[int]]]
) -> None:
    manifest = Manifest(
        format=FORMAT,
        space=shape.space,
        distance=shape.distance.value,
        dimensions=shape.dimensions,
        count=count,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        M=M,
        ef_construction=EF_CONSTRUCTION,
        ef=EF_LEAST,
        files={str(path.relative_to(folder)): sum_of(path) for path in files_of(folder)},
        words_sha256=words_sum,
        probes=probes.pop("", []),
        through=shape.through or 0,
        named=shape.named,
        named_probes=probes,
        notes=shape.notes,
    )
    sealed = msgspec.structs.replace(manifest, seal=seal(msgspec.json.encode(manifest)))
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(sealed), indent=1))


def _write_current(folder: Path, name: str, step: Step) -> None:
    temporary = folder / f"{_TEMPORARY}{CURRENT}"
    temporary.write_text(name + "\n")
    sync(temporary)
    step("swap")
    temporary.replace(folder / CURRENT)
    sync(folder)


def _prune(folder: Path, kept: set[str | None]) -> None:
    for path in generations(folder):
        if path.name not in kept:
            # renamed first, so that half a generation never looks like one
            doomed = folder / f"{_TEMPORARY}{path.name}"
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _prune_journal(folder: Path) -> None:
    # what the oldest generation left would need to catch up is kept: it is what a rotten newer one falls back to
    through: list[int] = []
    for path in generations(folder):
        try:
            through.append(read_manifest(path).through)
        except CorruptIndex:
            continue
    if through:
        Journal(folder).prune(min(through))


def _written_until_now(folder: Path) -> int:
    journal = Journal(folder)
    for path in generations(folder):
        try:
            return journal.last_number(read_manifest(path).through)
        except CorruptIndex:
            continue
    return journal.last_number(0)


def _sweep(folder: Path) -> None:
    for path in folder.glob(f"{_TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Be the one who writes snapshots of the collection in `folder`. Raises Busy."""
    with (folder / _LOCK).open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Busy(f"{folder.name}: somebody else is writing this collection") from error
        yield  # closing the file, or dying, lets go


def _checked_dimensions(dimensions: int, least: int = 1) -> int:
    if not least <= dimensions <= DIMENSIONS_MAX:
        raise BadPoint(f"vectors of {dimensions} dimensions: 1 to {DIMENSIONS_MAX} can be kept")
    return dimensions


def _checked_shape(kept: KeptShape) -> KeptShape:
    return KeptShape(_checked_dimensions(kept.dimensions), Distance.of(kept.distance).value, kept.space)


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def _ignore(*_: object) -> None:
    pass
