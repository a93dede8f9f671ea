"""What a mirror remembers over restarts: how each copy stands, and how far a comparison has come.

    ROUTE/keeper.lock          held by the one process that copies and compares
    ROUTE/standing.json        of each copy: whose it is, whether it is whole, and as of when
    ROUTE/taps/PID             one byte, 1 while a write is under way or waits: who dies then leaves the copies behind
    ROUTE/behind/, dropped/    notes to the keeper from the others: copies that are behind, that are no more; look:
          look/, sync/         there may be new ones; sync: somebody waits
    ROUTE/born/                to all of them: copies that were made with their collections, and since when they are
                               whole (0: not yet), until the keeper has them in standing.json
    ROUTE/walks/NAME.json      the cursor of a comparison, how many points were seen, and how many bytes of
    ROUTE/walks/NAME.seen      the fingerprints of their ids, 8 bytes each

A file is written beside itself, flushed, and renamed: a crash at any byte leaves the one before or the one after. The
fingerprints are only appended to, and whatever lies beyond the length that the cursor names is cut off.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from understudy.indexes.library import folder_name
from understudy.indexes.points import PointId, id_key
from understudy.proxy.durable import replace_file

PRINT_BYTES: Final = 8
FILE_BYTES_MAX: Final = 16 * 1024 * 1024

_Read = TypeVar("_Read")


class CopyNote(msgspec.Struct):
    """How one copy stands. `called` is what callers call it, the rest as in `policies.mirror.Standing`."""

    called: str
    whole: bool = False
    as_of: float = 0.0
    walked_at: float = 0.0
    behind_since: float = 0.0
    why: str = ""
    refused: str = ""


class Standings(msgspec.Struct):
    """All copies of a route, by their local names."""

    copies: dict[str, CopyNote] = {}


class WalkNote(msgspec.Struct):
    """How far a comparison has come: `cursor` is where its next page begins, times are seconds since the epoch."""

    began: float
    cursor: str = ""
    seen: int = 0
    total: int = 0
    changed: int = 0
    first: bool = False


class Notes:
    """The folder of one route."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: int | None = None

    # --- who keeps it ----------------------------------------------------------------------------------------------

    def keep(self) -> bool:
        """Become the one who copies and compares, or still be; False where another process is."""
        if self._lock is not None:
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self.folder / "keeper.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            return False
        self._lock = file
        return True

    def leave(self) -> None:
        """Let another process keep it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # --- standings -------------------------------------------------------------------------------------------------

    def standings(self) -> Standings:
        """As they were last written; none where there are none, or where they can't be read."""
        return _read(self.folder / "standing.json", Standings) or Standings()

    def write_standings(self, standings: Standings, *, durable: bool = True) -> None:
        replace_file(self.folder / "standing.json", msgspec.json.encode(standings), durable=durable)

    @property
    def keeps(self) -> bool:
        """Whether this process is the keeper."""
        return self._lock is not None

    # --- notes to the keeper ---------------------------------------------------------------------------------------

    def leave_note(self, kind: str, local: str, text: str) -> None:
        """Tell the keeper something of a copy; `kind` is the name of a folder."""
        replace_file(self.folder / kind / folder_name(local)[:200], msgspec.json.encode([local, text]))

    def take_notes(self, kind: str) -> dict[str, str]:
        """What was left for the keeper, by local name. It stays until it is `cleared`."""
        folder = self.folder / kind
        read = [_read(path, tuple[str, str]) for path in folder.iterdir()] if folder.is_dir() else []
        return dict(each for each in read if each is not None)

    def clear_note(self, kind: str, local: str) -> None:
        (self.folder / kind / folder_name(local)[:200]).unlink(missing_ok=True)

    def has_note(self, kind: str, local: str) -> bool:
        return (self.folder / kind / folder_name(local)[:200]).exists()

    # --- walks -----------------------------------------------------------------------------------------------------

    def walk(self, name: str) -> WalkNote | None:
        """The comparison that was under way, None where none was."""
        note = _read(self._of(name, "json"), WalkNote)
        if note is None:
            return None
        seen = self._of(name, "seen")
        there = seen.stat().st_size if seen.exists() else 0
        if there < note.seen * PRINT_BYTES:
            return None
        if there > note.seen * PRINT_BYTES:
            # a crash between the two writes: the page comes again
            os.truncate(seen, note.seen * PRINT_BYTES)
        return note

    def walk_seen(self, name: str) -> WalkNote | None:
        """How far the comparison of another process has come, to be looked at only."""
        return _read(self._of(name, "json"), WalkNote)

    def begin(self, name: str, note: WalkNote) -> None:
        """Begin a comparison, forgetting any before."""
        self.end(name)
        self._of(name, "json").parent.mkdir(parents=True, exist_ok=True)
        self._of(name, "seen").write_bytes(b"")
        replace_file(self._of(name, "json"), msgspec.json.encode(note))

    def advance(self, name: str, note: WalkNote, ids: Iterable[PointId]) -> None:
        """A page has been put away: remember its ids, then where the next one begins."""
        with self._of(name, "seen").open("ab") as file:
            file.write(b"".join(map(fingerprint, ids)))
            file.flush()
            os.fsync(file.fileno())
            note.seen = file.tell() // PRINT_BYTES
        replace_file(self._of(name, "json"), msgspec.json.encode(note))

    def seen(self, name: str) -> NDArray[np.uint64]:
        """The fingerprints of all ids that were seen, sorted; of one that came again, twice."""
        return np.sort(np.fromfile(self._of(name, "seen"), np.uint64))

    def end(self, name: str) -> None:
        """The comparison is over."""
        for kind in ("json", "seen"):
            self._of(name, kind).unlink(missing_ok=True)

    def _of(self, name: str, kind: str) -> Path:
        return self.folder / "walks" / f"{folder_name(name)[:200]}.{kind}"


class TapMark:
    """Whether writes of this process are under way: a byte of shared memory that a crash leaves as it was.

    Behind it stands which boot of the machine it was: a machine that crashed has not kept the byte.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{os.getpid()}-{os.urandom(4).hex()}"
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(self._file, b"\0" + _boot())
        os.fsync(self._file)
        self._byte = mmap.mmap(self._file, 1)

    def set(self, *, open: bool) -> None:
        """Costs 0.1 µs."""
        self._byte[0] = open

    def close(self, *, clean: bool) -> None:
        """Leave; `clean` says that nothing is under way."""
        if clean:
            self.path.unlink(missing_ok=True)
        self._byte.close()
        os.close(self._file)


class Dead(NamedTuple):
    """What processes that have ended without a word left: their marks, and whether one had writes under way."""

    marks: list[Path]
    in_the_middle: bool

    def forget(self) -> None:
        """Clear them, once what they say is written down: who is killed before that must find them again."""
        for mark in self.marks:
            mark.unlink(missing_ok=True)


def the_dead(folder: Path) -> Dead:
    """The marks in `folder` that nobody holds any more."""
    marks: list[Path] = []
    in_the_middle = False
    for path in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            file = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                in_the_middle |= os.read(file, 64) != b"\0" + _boot()
                marks.append(path)
            except BlockingIOError:
                # somebody is well and holds it
                continue
            finally:
                os.close(file)
    return Dead(marks, in_the_middle)


def fingerprint(id: PointId) -> bytes:
    """8 bytes of an id; two of ten million ids share them with a chance of 3 in a million."""
    return hashlib.blake2b(id_key(id), digest_size=PRINT_BYTES).digest()


def _boot() -> bytes:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    return b""


def _read(path: Path, kind: type[_Read]) -> _Read | None:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(FILE_BYTES_MAX), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
