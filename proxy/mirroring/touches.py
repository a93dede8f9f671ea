"""What writes have touched lately, as all processes that apply them know it: a ring in shared memory for each.

    rings/PID   "how many were ever put" (8) | RING_MAX x (fingerprint of copy and id, began, ended)

Whoever applies writes puts their points into its own ring first; whoever puts right what differs looks into all of
them. Both hold the route's lock meanwhile, so that nothing falls between. Times are of the machine's monotonic clock,
which all processes share. A ring outlives its process in the memory of those who know it.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from understudy.indexes.arrays import among
from understudy.indexes.points import PointId, id_key

RING_MAX: Final = 32_768
_HEAD_BYTES: Final = 8
_ENTRY: Final = np.dtype([("print", "<u8"), ("began", "<f8"), ("ended", "<f8")])
_BYTES: Final = _HEAD_BYTES + RING_MAX * _ENTRY.itemsize


class _Ring:
    """One process's ring, mapped."""

    def __init__(self, path: Path, *, own: bool) -> None:
        file = os.open(path, os.O_RDWR | (os.O_CREAT if own else 0), 0o600)
        try:
            if own:
                os.ftruncate(file, _BYTES)
            self.map = mmap.mmap(file, _BYTES)
        finally:
            os.close(file)
        self.head: NDArray[np.uint64] = np.frombuffer(self.map, np.uint64, 1)
        self.entries: NDArray[Any] = np.frombuffer(self.map, _ENTRY, RING_MAX, _HEAD_BYTES)

    def add(self, prints: NDArray[np.uint64], began: float, ended: float) -> None:
        count = int(self.head[0])
        rows = (count + np.arange(len(prints))) % RING_MAX
        self.entries["print"][rows] = prints
        self.entries["began"][rows] = began
        self.entries["ended"][rows] = ended
        self.head[0] = count + len(prints)

    def since(self, at: float) -> NDArray[Any] | None:
        """What was answered at or after a moment; None where it may be more than the ring holds."""
        count = int(self.head[0])
        there = self.entries[: min(count, RING_MAX)]
        if count > RING_MAX and float(there["ended"].min()) >= at:
            return None
        return there[there["ended"] >= at]


class Touches:
    """The rings of one route's processes in `folder`. For the applying thread alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: _Ring | None = None
        self._path: Path | None = None
        self._others: dict[str, _Ring] = {}

    def open(self) -> None:
        """Have a ring of our own, as whoever applies writes that pass."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path = self._folder / f"{os.getpid()}-{os.urandom(4).hex()}.ring"
        self._own = _Ring(self._path, own=True)

    def close(self) -> None:
        """Leave."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        self._own, self._path = None, None

    @contextmanager
    def locked(self) -> Generator[None]:
        """Alone among all the route's processes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self._folder.parent / "apply.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def add(self, local: str, ids: Sequence[PointId] | None, began: float, ended: float) -> None:
        """Say that a write touches these points of a copy, or who knows which."""
        if self._own is not None:
            self._own.add(_prints(local, ids)[-RING_MAX:], began, ended)

    def touched(self, local: str, ids: Sequence[PointId], since: float) -> list[PointId] | None:
        """Those of the points that other processes' writes have touched since then; None where that may be any."""
        any_of_it = _prints(local, None)[0]
        met = np.zeros(len(ids), np.bool_)
        prints = _prints(local, ids)
        for ring in self._rings():
            there = ring.since(since)
            if there is None or any_of_it in there["print"]:
                return None
            met |= among(prints, there["print"])
        return [ids[int(row)] for row in np.flatnonzero(met)]

    def _rings(self) -> list[_Ring]:
        """Those of the other processes; of one that has gone, too, for what it has applied stays applied."""
        for entry in os.scandir(self._folder) if self._folder.is_dir() else ():
            if entry.name.endswith(".ring") and entry.name not in self._others and entry.name != self._name:
                try:
                    self._others[entry.name] = _Ring(Path(entry.path), own=False)
                except (OSError, ValueError):
                    # it went, or is only being made: then it has applied nothing yet
                    continue
        while len(self._others) > RINGS_MAX:
            self._others.pop(next(iter(self._others)))
        return list(self._others.values())

    @property
    def _name(self) -> str:
        return "" if self._path is None else self._path.name


RINGS_MAX: Final = 64
"""As many workers as there may be."""


def _prints(local: str, ids: Sequence[PointId] | None) -> NDArray[np.uint64]:
    """Fingerprints of points of a copy; of the copy itself for whatever points."""
    scope = local.encode()
    keys = [b"*"] if ids is None else [id_key(each) for each in ids]
    whole = b"".join(hashlib.blake2b(key, key=scope[:64], digest_size=8).digest() for key in keys)
    return np.frombuffer(whole, np.uint64)
