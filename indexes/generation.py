"""What a collection's folder holds, and how it is read so that no rot is served.

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
from the store. A generation without a sound store is no generation; then the previous one is used. See `snapshot` for
who writes them.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from understudy.indexes.faults import CorruptIndex
from understudy.indexes.records import KeptShape
from understudy.indexes.vectors import Mask, Matrix

FORMAT: Final = 2
FORMATS_READ: Final = (1, 2)

MANIFEST: Final = "manifest.json"
POINTS: Final = "points.sqlite"
VECTORS: Final = "vectors.npy"
PRESENT: Final = "present.npy"
GRAPH: Final = "graph.hnsw"
KEYWORDS: Final = "keywords"
FIELDS: Final = "fields.msgpack"
CURRENT: Final = "CURRENT"

_GENERATION: Final = re.compile(r"g-(\d{6,12})")


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


def current_name(folder: Path) -> str | None:
    """The generation CURRENT names; None if it names none that is there."""
    try:
        name = (folder / CURRENT).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return name if _GENERATION.fullmatch(name) and (folder / name).is_dir() else None


def generations(folder: Path) -> list[Path]:
    """The generation folders of a collection, newest first."""
    found = [path for path in folder.glob("g-*") if _GENERATION.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: number_of(path.name), reverse=True)


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
    if manifest.seal != seal(raw):
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


def seal(raw: bytes) -> str:
    """The seal of a manifest's bytes, whatever seal they hold."""
    # over the fields that are there: a manifest of an earlier format has fewer
    fields = msgspec.json.decode(raw, type=dict[str, Any])
    return hashlib.sha256(msgspec.json.encode({**fields, "seal": ""})).hexdigest()


def _problem(path: Path, due: FileSum) -> str | None:
    try:
        if (size := path.stat().st_size) != due.bytes:
            return f"{size} bytes, not {due.bytes}"
        return None if sum_of(path) == due else "its checksum is another"
    except OSError as error:
        return str(error.strerror)


def sum_of(path: Path) -> FileSum:
    """What a file is now. Raises OSError."""
    size = path.stat().st_size
    if size == 0:
        return FileSum(0, hashlib.sha256().hexdigest())
    # mapped: hashing lets go of the GIL and copies nothing, 1.6 GB/s
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return FileSum(size, hashlib.sha256(mapped).hexdigest())


def files_of(folder: Path) -> list[Path]:
    """The files of a generation's folder that a manifest counts."""
    # tantivy's lock files come and go
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def number_of(name: str) -> int:
    """The number in a generation's name; 0 where it is none."""
    found = _GENERATION.fullmatch(name)
    return int(found[1]) if found else 0
