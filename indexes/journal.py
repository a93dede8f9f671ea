"""Keep what was written in the order it was written, so that nothing acknowledged is lost.

    docs/journal/w-0000000000000001.log      the first entry's number names the file
                 w-0000000000004711.log      the last file is the one that is appended to
    docs/WRITER                              held by whoever appends, for one commit

    file  = "UNDRJRN1" entry*
    entry = mark (4) | length (4) | crc32 (4) | number (8) | body       little-endian; the sum is over all but itself

An entry counts once it is whole. What a crash left of one at the very end is cut off by the next writer; an entry that
rotted between sound ones is passed over, and said. A reader needs no lock: it stops at the first entry not yet whole.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import struct
import time
import zlib
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from understudy.indexes.faults import Busy, IndexFault

ROLL_BYTES: Final = 16 * 2**20
ENTRY_BYTES_MAX: Final = 2**30
WRITER_WAIT_S_MAX: Final = 10.0

JOURNAL: Final = "journal"
_WRITER: Final = "WRITER"
_HEADER: Final = b"UNDRJRN1"
_MARK: Final = b"\xa5W\xc3\n"
_ENTRY: Final = struct.Struct("<4sIIQ")
_NUMBERED: Final = struct.Struct("<IQ")
_NAME: Final = re.compile(r"w-(\d{16})\.log")
_POLL_S: Final = 0.002


@dataclass(frozen=True, slots=True)
class Position:
    """How far a journal was read: the file by its first number, the offset in it, and the last entry's number."""

    first: int
    offset: int
    number: int


def sync(path: Path) -> None:
    """Have a file, or what a folder lists, on the disk before anybody is told of it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Journal:
    """The journal of one collection's folder. Any number of processes may read and append."""

    def __init__(self, folder: Path) -> None:
        self._collection = folder
        self.folder = folder / JOURNAL

    def exists(self) -> bool:
        """Whether anything was ever written here."""
        return any(size > len(_HEADER) for size in map(_size_of, self._files().values()))

    @property
    def bytes_held(self) -> int:
        """How much it takes of the disk."""
        return sum(max(0, size) for size in map(_size_of, self._files().values()))

    def begins_at(self) -> int:
        """The number of the first entry there is, or would be; 0 if there is no file."""
        return min(self._files(), default=0)

    def start_after(self, number: int) -> Position:
        """Where to begin to read what comes after entry `number`. If some of that is gone, `read` will say so."""
        firsts = sorted(self._files())
        if not firsts:
            return Position(0, 0, number)
        return Position(max((first for first in firsts if first <= number + 1), default=firsts[0]), 0, number)

    def has_more(self, position: Position) -> bool:
        """Whether there is anything after `position`; costs two or three calls of `stat`."""
        if position.first == 0:
            return bool(self._files())
        if _size_of(self._path(position.first)) > position.offset:
            return True
        return any(first > position.first for first in self._files())

    def read(self, position: Position) -> tuple[list[tuple[int, bytes]], Position, str]:
        """The entries (number, body) after `position`, where they end, and what is wrong with any between, or ''."""
        reading = self.reading(position)
        return list(reading), reading.position, reading.wrong

    def reading(self, position: Position) -> Reading:
        """As `read`, one entry after the other: no more of it is in memory than one file."""
        return Reading(self._files(), position)

    @contextmanager
    def writing(self, wait_s_max: float = WRITER_WAIT_S_MAX) -> Generator[None]:
        """Be the one writer of all processes. Raises Busy if another stays it for too long, IndexFault if the
        collection was dropped meanwhile."""
        lock = self._collection / _WRITER
        until_s = time.monotonic() + wait_s_max
        try:
            opened = lock.open("a")
        except FileNotFoundError:
            raise Gone(f"{self._collection.name}: the collection was dropped") from None
        with opened as held:
            while True:
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if time.monotonic() > until_s:
                        raise Busy(f"{self._collection.name}: another process has been writing too long") from error
                    time.sleep(_POLL_S)
            # whoever dropped the collection held the lock of a folder that has another name now
            try:
                same = os.fstat(held.fileno()).st_ino == lock.stat().st_ino
            except FileNotFoundError:
                same = False
            if not same:
                raise Gone(f"{self._collection.name}: the collection was dropped")
            yield  # closing the file, or dying, lets go

    def append(self, position: Position, bodies: Iterable[bytes]) -> Position:
        """Add entries after `position`, the journal's end, and wait until the disk has them; the new end.

        Only within `writing`, and with nothing left to read. Raises OSError, and then nothing was added.
        """
        number = position.number
        parts: list[bytes] = []
        for body in bodies:
            number += 1
            if len(body) > ENTRY_BYTES_MAX:
                raise IndexFault(f"one write of {len(body)} bytes, more than {ENTRY_BYTES_MAX}")
            numbered = _NUMBERED.pack(len(body), number)
            parts += [_ENTRY.pack(_MARK, len(body), zlib.crc32(body, zlib.crc32(numbered)), number), body]
        if position.first == 0 or position.offset >= ROLL_BYTES or position.offset < len(_HEADER):
            position = self._rolled(position)
        path = self._path(position.first)
        with path.open("r+b", buffering=0) as file:
            # what a crash left of an entry, or a full disk of ours
            file.truncate(position.offset)
            file.seek(position.offset)
            data = b"".join(parts)
            try:
                _write_all(file.fileno(), data)
                os.fdatasync(file.fileno())
            except OSError:
                file.truncate(position.offset)
                raise
        return Position(position.first, position.offset + len(data), number)

    def prune(self, number: int) -> None:
        """Remove the files that hold nothing after entry `number`; the last file stays."""
        firsts = sorted(self._files())
        for first, following in itertools.pairwise(firsts):
            if following <= number + 1:
                self._path(first).unlink(missing_ok=True)

    def last_number(self, after: int) -> int:
        """The number of the last whole entry, or `after` if there is none beyond it."""
        reading = self.reading(self.start_after(after))
        for _ in reading:
            pass
        return reading.position.number

    def _rolled(self, position: Position) -> Position:
        self.folder.mkdir(exist_ok=True)
        first = position.number + 1
        path = self._path(first)
        with path.open("wb") as file:
            file.write(_HEADER)
            file.flush()
            os.fsync(file.fileno())
        for folder in (self.folder, self._collection):
            sync(folder)
        return Position(first, len(_HEADER), position.number)

    def _path(self, first: int) -> Path:
        return self.folder / f"w-{first:016}.log"

    def _files(self) -> dict[int, Path]:
        try:
            names = os.listdir(self.folder)  # noqa: PTH208 - names are all that is wanted, several times a second
        except (FileNotFoundError, NotADirectoryError):
            return {}
        found = {int(match[1]): name for name in names if (match := _NAME.fullmatch(name))}
        return {first: self.folder / name for first, name in found.items()}


class Gone(IndexFault):
    """The collection was dropped, or put anew, by somebody else while we waited to write to it."""


class Reading:
    """The entries (number, body) of some files, in order. Once they are through, `position` is where they end."""

    def __init__(self, files: dict[int, Path], position: Position) -> None:
        self.position = position
        self._files = files
        self._wrong: list[str] = []

    @property
    def wrong(self) -> str:
        """What is wrong between the entries that were read, or ''."""
        return "; ".join(self._wrong)

    def __iter__(self) -> Generator[tuple[int, bytes]]:
        for first in sorted(first for first in self._files if first >= self.position.first):
            if first != self.position.first:
                self.position = Position(first, 0, self.position.number)
            yield from self._entries(_tail_of(self._files[first], self.position.offset))

    def _entries(self, data: bytes) -> Generator[tuple[int, bytes]]:
        """What is whole in `data`, which begins at our position."""
        at, start, first = 0, self.position.offset, self.position.first
        if start == 0:
            if data[: len(_HEADER)] == _HEADER:
                at = len(_HEADER)
            elif len(data) > len(_HEADER):
                self._wrong.append(f"file {first} has no header")
                at = max(0, data.find(_MARK))
            else:
                return
        self.position = replace(self.position, offset=start + at)
        while at < len(data):
            found = _entry_at(data, at)
            if found is None:
                # torn at the very end, or rotten with sound ones after it?
                later = _next_whole(data, at + 1)
                if later is None:
                    return
                self._wrong.append(f"file {first}: {later - at} bytes at {start + at} are no entries")
                at = later
                continue
            number, body = found
            at += _ENTRY.size + len(body)
            before = self.position.number
            self.position = Position(first, start + at, max(number, before))
            if number > before:
                if number != before + 1:
                    self._wrong.append(f"entries {before + 1} to {number - 1} are missing")
                yield number, body


def _entry_at(data: bytes, at: int) -> tuple[int, bytes] | None:
    if len(data) - at < _ENTRY.size:
        return None
    mark, length, total, number = _ENTRY.unpack_from(data, at)
    body = data[at + _ENTRY.size : at + _ENTRY.size + length]
    if mark != _MARK or len(body) != length or zlib.crc32(body, zlib.crc32(_NUMBERED.pack(length, number))) != total:
        return None
    return number, body


def _next_whole(data: bytes, at: int) -> int | None:
    while (at := data.find(_MARK, at)) >= 0:
        if _entry_at(data, at) is not None:
            return at
        at += 1
    return None


def _tail_of(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read()
    except FileNotFoundError:
        # pruned meanwhile: a snapshot holds it
        return b""


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
