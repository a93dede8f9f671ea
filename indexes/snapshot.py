"""Write a collection so that a crash at any byte leaves the old or the new one, and read it so that no rot is served.

    docs/
      CURRENT            "g-000002": swapped by rename, the moment the new generation counts
      LOCK               held by the one writer
      g-000001/          the previous generation, kept for its readers and as a fall-back
      g-000002/
        manifest.json    what is what: dimensions, distance, space, and size and sha256 of every file; sealed itself
        points.sqlite    the truth
        vectors.npy      derived: prepared float32 [n, d], row = rank of the id
        keywords/        derived: the tantivy index, or SQLite's where there is no tantivy
        graph.hnsw       derived, and only in large collections
      .tmp-*             a generation being written, or what a crash left of one: swept by the next writer

Files of a generation are never changed once its folder has its name. What is derived may be lost: it is made again
from the store. A generation without a sound store is no generation; then the previous one is used.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias

import msgspec
import numpy as np

from understudy.indexes.build_graph import build_graph
from understudy.indexes.faults import BadPoint, Busy, CorruptIndex, IndexFault
from understudy.indexes.keywords import write_keywords
from understudy.indexes.points import Point, searchable
from understudy.indexes.store import FrozenStore, Store
from understudy.indexes.vectors import EF_CONSTRUCTION, EF_LEAST, EXACT_BELOW, Distance, M, Matrix, prepared

FORMAT: Final = 1
DIMENSIONS_MAX: Final = 65_536
GENERATIONS_KEPT: Final = 2
# a graph this large takes seconds to build, and hnswlib holds the GIL while it saves one: not in this process
SUBPROCESS_FROM: Final = 20_000
# a million vectors take a quarter of an hour
GRAPH_WAIT_S_MAX: Final = 6 * 3_600

MANIFEST: Final = "manifest.json"
POINTS: Final = "points.sqlite"
VECTORS: Final = "vectors.npy"
GRAPH: Final = "graph.hnsw"
KEYWORDS: Final = "keywords"

_CURRENT: Final = "CURRENT"
_LOCK: Final = "LOCK"
_TEMPORARY: Final = ".tmp-"
_GENERATION: Final = re.compile(r"g-(\d{6,12})")
_ROWS_A_BLOCK: Final = 1_000

Step: TypeAlias = Callable[[str], None]
Progress: TypeAlias = Callable[[int, int], None]


class FileSum(msgspec.Struct, frozen=True):
    """What a file must be: its size and the SHA-256 of its bytes, in hex."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a generation says of itself.

    `probes` are self-queries the graph answered when it was built; `words_sha256` is over the store less its vectors.
    """

    format: int
    space: str
    distance: str
    dimensions: int
    count: int
    created: str
    M: int
    ef_construction: int
    ef: int
    files: dict[str, FileSum]
    words_sha256: str
    probes: list[list[int]]
    seal: str = ""


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation whose store is sound. `damage` says what is wrong with each derived part that is not, by part."""

    folder: Path
    manifest: Manifest
    damage: dict[str, str]

    @property
    def name(self) -> str:
        return self.folder.name


# -- writing ----------------------------------------------------------------------------------------------------------


def write_snapshot(
    folder: Path,
    records: Iterable[Point],
    *,
    space: str,
    dimensions: int,
    distance: str = Distance.COSINE,
    graph: bool | None = None,
    progress: Progress | None = None,
    step: Step | None = None,
) -> str:
    """Write `records`, which need vectors [dimensions], as the new generation of the collection in `folder`; its name.

    Of records with the same id the last counts. A graph is built from 20 000 records on, or as `graph` says.
    `progress(done, total)` counts stages. `step` is called with the name of every step before it is taken; whatever
    it raises is a crash, which is how the tests crash it.

    Raises BadPoint, WrongDimension or NotFinite for a record that cannot be stored, Busy if somebody else is writing,
    OSError if the disk will not have it. After any of these the collection is what it was.
    """
    shape = _Shape(space, _checked_dimensions(dimensions), Distance.of(distance), graph)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        writer = _Writer(folder, shape, progress or _ignore, step or _ignore)
        return writer.write(records)


@dataclass(frozen=True, slots=True)
class _Shape:
    space: str
    dimensions: int
    distance: Distance
    graph: bool | None


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
        count = _write_store(temporary, records, shape.dimensions)
        self._stage(1, "vectors")
        store = FrozenStore(temporary / POINTS, shape.dimensions)
        try:
            _write_matrix(store, shape, temporary / VECTORS)
            self._stage(2, "keywords")
            (temporary / KEYWORDS).mkdir()
            write_keywords((searchable(*words) for words in store.words()), temporary / KEYWORDS)
            words_sum = store.words_sum()
        finally:
            store.close()
        self._stage(3, "graph")
        wants_graph = count >= EXACT_BELOW if shape.graph is None else shape.graph and count > 0
        probes = _write_graph(temporary, shape.distance, count) if wants_graph else []
        self._stage(4, "manifest")
        _write_manifest(temporary, shape, count, words_sum, probes)
        self._step("sync")
        _sync_tree(temporary)

    def _publish(self, temporary: Path) -> str:
        self._stage(5, "name")
        previous = current_name(self._folder)
        numbers = [_number(path.name) for path in generations(self._folder)]
        name = f"g-{max(numbers, default=0) + 1:06}"
        temporary.rename(self._folder / name)
        _sync(self._folder)
        self._step("current")
        _write_current(self._folder, name, self._step)
        self._step("prune")
        _prune(self._folder, {name, previous})
        self._progress(6, 6)
        return name

    def _stage(self, done: int, name: str) -> None:
        self._progress(done, 6)
        self._step(name)


def _write_store(temporary: Path, records: Iterable[Point], dimensions: int) -> int:
    # records come in any order and may repeat an id; SQLite sorts them without holding them all in memory
    scratch_path = temporary / "scratch.sqlite"
    scratch = Store(scratch_path, dimensions, durable=False)
    try:
        scratch.upsert(records)
        return scratch.freeze(temporary / POINTS)
    finally:
        scratch.close()
        scratch_path.unlink()


def fill_matrix(store: FrozenStore, distance: Distance, matrix: Matrix) -> None:
    """Write every vector of `store`, prepared for `distance`, into `matrix` [n, d]."""
    block: list[Matrix] = []
    row = 0
    for vector in store.vectors():
        block.append(vector)
        if len(block) == _ROWS_A_BLOCK:
            matrix[row : row + len(block)] = prepared(np.stack(block), distance)
            row += len(block)
            block = []
    if block:
        matrix[row:] = prepared(np.stack(block), distance)


def _write_matrix(store: FrozenStore, shape: _Shape, path: Path) -> None:
    size = (store.count, shape.dimensions)
    if store.count == 0:
        np.save(path, np.empty(size, np.float32))  # nothing can be mapped of nothing
        return
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=size)
    fill_matrix(store, shape.distance, mapped)
    mapped.flush()


def _write_graph(folder: Path, distance: Distance, count: int) -> list[list[int]]:
    if count < SUBPROCESS_FROM:
        return build_graph(folder / VECTORS, folder / GRAPH, distance)
    command = [sys.executable, "-m", "understudy.indexes.build_graph", folder / VECTORS, folder / GRAPH, distance]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(  # noqa: S603
            command, env=environment, capture_output=True, check=False, timeout=GRAPH_WAIT_S_MAX
        )
    except subprocess.TimeoutExpired as error:
        raise CorruptIndex(f"the graph was not built within {GRAPH_WAIT_S_MAX} s") from error
    if done.returncode != 0:
        raise CorruptIndex(f"the graph was not built: {done.stderr.decode(errors='replace').strip()[-500:]}")
    return msgspec.json.decode(done.stdout, type=list[list[int]])


def _write_manifest(folder: Path, shape: _Shape, count: int, words_sum: str, probes: list[list[int]]) -> None:
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
        files={str(path.relative_to(folder)): _sum_of(path) for path in _files(folder)},
        words_sha256=words_sum,
        probes=probes,
    )
    sealed = msgspec.structs.replace(manifest, seal=_seal(manifest))
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(sealed), indent=1))


def _write_current(folder: Path, name: str, step: Step) -> None:
    temporary = folder / f"{_TEMPORARY}{_CURRENT}"
    temporary.write_text(name + "\n")
    _sync(temporary)
    step("swap")
    temporary.replace(folder / _CURRENT)
    _sync(folder)


def _prune(folder: Path, kept: set[str | None]) -> None:
    for path in generations(folder):
        if path.name not in kept:
            # renamed first, so that half a generation never looks like one
            doomed = folder / f"{_TEMPORARY}{path.name}"
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _sweep(folder: Path) -> None:
    for path in folder.glob(f"{_TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    with (folder / _LOCK).open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Busy(f"{folder.name}: somebody else is writing this collection") from error
        yield  # closing the file, or dying, lets go


def _checked_dimensions(dimensions: int) -> int:
    if not 1 <= dimensions <= DIMENSIONS_MAX:
        raise BadPoint(f"vectors of {dimensions} dimensions: 1 to {DIMENSIONS_MAX} can be kept")
    return dimensions


# -- reading ----------------------------------------------------------------------------------------------------------


def current_name(folder: Path) -> str | None:
    """The generation CURRENT names; None if it names none that is there."""
    try:
        name = (folder / _CURRENT).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return name if _GENERATION.fullmatch(name) and (folder / name).is_dir() else None


def generations(folder: Path) -> list[Path]:
    """The generation folders of a collection, newest first."""
    found = [path for path in folder.glob("g-*") if _GENERATION.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: _number(path.name), reverse=True)


def find_generation(folder: Path, reasons: list[str]) -> Generation | None:
    """The generation to serve: the current one, or else the newest whose store is sound. None if there is none.

    What is wrong with those passed over is appended to `reasons`.
    """
    current, found = current_name(folder), generations(folder)
    if current is None:
        reasons.append("CURRENT is missing or names no generation" if found else "there is no snapshot")
    # the current one first; False sorts before True
    for path in sorted(found, key=lambda path: path.name != current):
        try:
            return inspect(path)
        except CorruptIndex as fault:
            reasons.append(f"{path.name}: {fault}")
    return None


def inspect(folder: Path) -> Generation:
    """Verify every file of a generation. Raises CorruptIndex if its manifest or its store is not sound."""
    manifest = read_manifest(folder)
    problems = {name: why for name, due in manifest.files.items() if (why := _problem(folder / name, due))}
    if POINTS not in manifest.files:
        problems[POINTS] = "not in the manifest"
    if POINTS in problems:
        raise CorruptIndex(f"{POINTS}: {problems[POINTS]}")
    damage: dict[str, str] = {}
    for name, why in problems.items():
        damage.setdefault(Path(name).parts[0], f"{name}: {why}")
    for part in (VECTORS, KEYWORDS):
        if not any(Path(name).parts[0] == part for name in manifest.files):
            damage[part] = "not in the manifest"
    return Generation(folder, manifest, damage)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a generation, its seal verified. Raises CorruptIndex."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptIndex(f"{MANIFEST}: {error}") from error
    if manifest.seal != _seal(manifest):
        raise CorruptIndex(f"{MANIFEST}: its seal is broken")
    if manifest.format != FORMAT:
        raise CorruptIndex(f"{MANIFEST}: format {manifest.format}, this version reads {FORMAT}")
    return manifest


def load_matrix(folder: Path, manifest: Manifest) -> Matrix:
    """The matrix [n, d] of a verified generation, mapped, not read. Raises CorruptIndex."""
    try:
        mapped = np.load(folder / VECTORS, mmap_mode="r" if manifest.count else None, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CorruptIndex(f"{VECTORS}: {error}") from error
    matrix = np.asarray(mapped)
    if matrix.shape != (manifest.count, manifest.dimensions) or matrix.dtype != np.float32:
        raise CorruptIndex(f"{VECTORS}: holds {matrix.dtype} {list(matrix.shape)}")
    return matrix


def _seal(manifest: Manifest) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(manifest, seal=""))).hexdigest()


def _problem(path: Path, due: FileSum) -> str | None:
    try:
        if (size := path.stat().st_size) != due.bytes:
            return f"{size} bytes, not {due.bytes}"
        return None if _sum_of(path) == due else "its checksum is another"
    except OSError as error:
        return str(error.strerror)


def _sum_of(path: Path) -> FileSum:
    size = path.stat().st_size
    if size == 0:
        return FileSum(0, hashlib.sha256().hexdigest())
    # mapped: hashing lets go of the GIL and copies nothing, 1.6 GB/s
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return FileSum(size, hashlib.sha256(mapped).hexdigest())


def _files(folder: Path) -> list[Path]:
    # tantivy's lock files come and go
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _number(name: str) -> int:
    found = _GENERATION.fullmatch(name)
    return int(found[1]) if found else 0


def _ignore(*_: object) -> None:
    pass
