"""Writes that wait, each in a file of its own, so that what was acknowledged outlives the process.

held/ROUTE/00000001764000000000000000.write     crc32 (4) | msgpack: the request, its handles, their texts
           rejected/                            what the database would not have, for somebody to look at
           LEADER                               held by the one process that writes them to the database
"""

from __future__ import annotations

import fcntl
import logging
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import msgspec

from understudy.policies.holding import Touch, Waiting
from understudy.proxy.durable import replace_file

log = logging.getLogger("understudy.spaces")

REJECTED_MAX = 1_000
_SUFFIX = ".write"


class Held(msgspec.Struct, frozen=True):
    """One write. `places` are where handles stand in `body`, `texts` what they are of; `way` is how the embedder was
    asked for them: target, path and model. `touches` are (collection, ids or None)."""

    method: bytes
    target: bytes
    path: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    places: list[tuple[int, int, int]]
    texts: list[str]
    way: tuple[bytes, bytes, str] | None
    touches: list[tuple[str, list[int | str] | None]]
    held_at: float

    @property
    def size_bytes(self) -> int:
        """About what it takes, on disk or in memory."""
        return len(self.body) + sum(map(len, self.texts)) + 512

    def waiting(self) -> Waiting:
        """As the line has it."""
        touches = (Touch(name, None if ids is None else frozenset(ids)) for name, ids in self.touches)
        return Waiting(self.size_bytes, tuple(touches))


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Held)


class HeldStore:
    """The files of one route. Reads and writes disk: call it in a thread, but for `changed_at`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._leading: IO[bytes] | None = None

    def changed_at(self) -> int:
        """Another number whenever a write came or went; 0 while there never was one. One call of `stat`."""
        try:
            return self.folder.stat().st_mtime_ns
        except OSError:
            return 0

    def numbers(self) -> list[int]:
        """The writes that wait, first come first."""
        names = [path.name.removesuffix(_SUFFIX) for path in self.folder.glob(f"*{_SUFFIX}")]
        return sorted(int(name) for name in names if name.isdecimal())

    def put(self, number: int, held: Held) -> None:
        """Keep a write; it is on the disk when this returns. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        body = _ENCODER.encode(held)
        replace_file(self._path(number), zlib.crc32(body).to_bytes(4, "big") + body)

    def read(self, number: int) -> Held | None:
        """A write as it was kept; None where it is gone, or rotten, which is said."""
        try:
            data = self._path(number).read_bytes()
        except OSError:
            return None
        if zlib.crc32(data[4:]).to_bytes(4, "big") == data[:4]:
            try:
                return _DECODER.decode(data[4:])
            except msgspec.DecodeError:
                pass
        log.error("a write that waited is rotten on disk, and is set aside: %s", self._path(number).name)
        self.reject(number)
        return None

    def drop(self, number: int) -> None:
        """It was carried out."""
        self._path(number).unlink(missing_ok=True)

    def reject(self, number: int) -> None:
        """The database won't have it: set it aside, the oldest of too many are let go."""
        aside = self.folder / "rejected"
        aside.mkdir(parents=True, exist_ok=True)
        try:
            self._path(number).replace(aside / self._path(number).name)
        except FileNotFoundError:
            return
        for path in _oldest(aside.iterdir(), REJECTED_MAX):
            path.unlink(missing_ok=True)

    def leads(self) -> bool:
        """Whether this process is the one that writes them to the database; it stays so until it ends."""
        if self._leading is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / "LEADER").open("ab")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                return False
            self._leading = file
        return True

    def close(self) -> None:
        """Let another process lead."""
        if self._leading is not None:
            self._leading.close()
            self._leading = None

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:026}{_SUFFIX}"


def _oldest(paths: Iterable[Path], kept_max: int) -> list[Path]:
    found = sorted(paths)
    return found[: max(0, len(found) - kept_max)]
