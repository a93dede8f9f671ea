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
        fields.msgpack   derived: columns that answer filters; older generations have none
        graph.hnsw       derived, and only in large collections
        present.npy      which rows have a vector, where some do not; vectors-1.npy, ...: those of the first name, ...
      journal/           what was written since (see `journal`); a manifest says `through` which entry it holds it all
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
from understudy.indexes.journal import Journal
from understudy.indexes.keywords import write_keywords
from understudy.indexes.points import Point, searchable
from understudy.indexes.records import KeptShape
from understudy.indexes.store import FrozenStore, Store
from understudy.indexes.vectors import EF_CONSTRUCTION, EF_LEAST, EXACT_BELOW, Distance, M, Mask, Matrix, prepared

FORMAT: Final = 2
FORMATS_READ: Final = (1, 2)
DIMENSIONS_MAX: Final = 65_536
GENERATIONS_KEPT: Final = 2
# a graph this large takes seconds to build, and hnswlib holds the GIL while it saves one: not in this process
SUBPROCESS_FROM: Final = 20_000
# a million vectors take a quarter of an hour
GRAPH_WAIT_S_MAX: Final = 6 * 3_600

MANIFEST: Final = "manifest.json"
POINTS: Final = "points.sqlite"
VECTORS: Final = "vectors.npy"
PRESENT: Final = "present.npy"
GRAPH: Final = "graph.hnsw"
KEYWORDS: Final = "keywords"
FIELDS: Final = "fields.msgpack"

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

    `probes` are self-queries the graph answered when it was built; `words_sha256` is over the store less its vectors;
    `through` is the last entry of the journal that it holds; `dimensions` is 0 where every vector has a name.
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
    through: int = 0
    named: dict[str, KeptShape] = {}
    named_probes: dict[str, list[list[int]]] = {}
    notes: dict[str, Any] = {}

    @property
    def shapes(self) -> dict[str, KeptShape]:
        """What the vectors of each name have in common; "" is the one without a name, where there is one."""
        own = {"": KeptShape(self.dimensions, self.distance, self.space)} if self.dimensions else {}
        return own | self.named


@dataclass(frozen=True, slots=True)
class VectorFiles:
    """The names of the files that vectors of one name lie in, beside each other's."""

    vectors: str
    present: str
    graph: str


def vector_files(names: Iterable[str]) -> dict[str, VectorFiles]:
    """The files of each name's vectors. Names are callers' words, so the files are numbered, in the names' order."""
    files = {"": VectorFiles(VECTORS, PRESENT, GRAPH)}
    for number, name in enumerate(sorted(name for name in names if name), start=1):
        files[name] = VectorFiles(*(file.replace(".", f"-{number}.") for file in (VECTORS, PRESENT, GRAPH)))
    return files


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
        name = f"g-{max((_number(path.name) for path in generations(self._folder)), default=0) + 1:06}"
        temporary.rename(self._folder / name)
        _sync(self._folder)
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
        files={str(path.relative_to(folder)): _sum_of(path) for path in _files(folder)},
        words_sha256=words_sum,
        probes=probes.pop("", []),
        through=shape.through or 0,
        named=shape.named,
        named_probes=probes,
        notes=shape.notes,
    )
    sealed = msgspec.structs.replace(manifest, seal=_seal(msgspec.json.encode(manifest)))
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
    files = vector_files(manifest.named)
    for part in (*(files[name].vectors for name in manifest.shapes), KEYWORDS):
        if not any(Path(name).parts[0] == part for name in manifest.files):
            damage[part] = "not in the manifest"
    return Generation(folder, manifest, damage)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a generation, its seal verified. Raises CorruptIndex."""
    try:
        raw = (folder / MANIFEST).read_bytes()
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptIndex(f"{MANIFEST}: {error}") from error
    if manifest.seal != _seal(raw):
        raise CorruptIndex(f"{MANIFEST}: its seal is broken")
    if manifest.format not in FORMATS_READ:
        raise CorruptIndex(f"{MANIFEST}: format {manifest.format}, this version reads up to {FORMAT}")
    return manifest


def load_matrix(folder: Path, manifest: Manifest, name: str = "") -> Matrix:
    """The matrix [n, d] of a name in a verified generation, mapped, not read. Raises CorruptIndex."""
    path = folder / vector_files(manifest.named)[name].vectors
    matrix = _mapped(path, manifest.count)
    due = (manifest.count, manifest.shapes[name].dimensions)
    if matrix.shape != due or matrix.dtype != np.float32:
        raise CorruptIndex(f"{path.name}: holds {matrix.dtype} {list(matrix.shape)}")
    return matrix


def load_present(folder: Path, manifest: Manifest, name: str = "") -> Mask | None:
    """Which rows [n] have a vector of this name; None if all do. Raises CorruptIndex."""
    file = vector_files(manifest.named)[name].present
    if file not in manifest.files:
        return None
    present = _mapped(folder / file, manifest.count)
    if present.shape != (manifest.count,) or present.dtype != np.bool_:
        raise CorruptIndex(f"{file}: holds {present.dtype} {list(present.shape)}")
    return np.array(present)


def _mapped(path: Path, count: int) -> Any:
    try:
        return np.asarray(np.load(path, mmap_mode="r" if count else None, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise CorruptIndex(f"{path.name}: {error}") from error


def _seal(raw: bytes) -> str:
    # over the fields that are there: a manifest of an earlier format has fewer
    fields = msgspec.json.decode(raw, type=dict[str, Any])
    return hashlib.sha256(msgspec.json.encode({**fields, "seal": ""})).hexdigest()


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
