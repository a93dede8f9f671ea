"""What caches keep, in a file that outlives the process: written beside and renamed, read as far as it is whole.

    UCS1 | length, record, sum | length, record, sum | …       0.snapshot
    "books"\n "films"\n …                                    0.written: collections written to since

A record that is cut short or damaged ends the reading; those before it count. The files can be read by their owner
only, for what they hold are the application's texts. Who is killed has no time to say what has become untrue: hence
the second file, of which every process reads all, since writes pass through one that others did not live to hear of.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import msgspec

MAGIC = b"UCS1"
SUM_BYTES = 8
_LENGTH = struct.Struct("!I")
NOTED = ".written"
NOTED_MAX = 4096
"""Collections that are noted by name; beyond them, all are."""
ANY = ""
RECORD_BYTES_MAX = 64 * 1024 * 1024


class Record(msgspec.Struct, array_like=True, frozen=True):
    """One entry: whose it is, its key, the collections it depends on, and the value as `values.packed` writes it."""

    route: str
    key: bytes
    homes: list[str]
    value: bytes


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Record)


def framed(record: Record) -> bytes:
    """A record as it stands in the file."""
    content = _ENCODER.encode(record)
    return _LENGTH.pack(len(content)) + content + blake2b(content, digest_size=SUM_BYTES).digest()


def records(data: bytes) -> Iterator[Record]:
    """The records of a file, up to the first that is not whole. Raises nothing, whatever the bytes."""
    if not data.startswith(MAGIC):
        return
    at = len(MAGIC)
    while at + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        start, end = at + _LENGTH.size, at + _LENGTH.size + length
        content = data[start:end]
        if length > RECORD_BYTES_MAX or blake2b(content, digest_size=SUM_BYTES).digest() != data[end : end + SUM_BYTES]:
            return
        try:
            yield _DECODER.decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        at = end + SUM_BYTES


class Writing:
    """A snapshot being written: nobody sees it before `finish`, and `give_up` leaves no trace. Both in any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        number = os.open(self._draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        # the mode above is for a new file only
        os.fchmod(number, 0o600)
        self._file: BinaryIO = os.fdopen(number, "wb")
        self._file.write(MAGIC)

    def add(self, data: bytes) -> None:
        self._file.write(data)

    def finish(self) -> None:
        """On the disk first and under its name afterwards, so that a crash at any moment leaves a whole file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._draft.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def give_up(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
            self._draft.unlink(missing_ok=True)


class Notes:
    """The collections written to since the snapshot at `path`. On the disk at once as far as this process's death goes;
    who cannot write it down takes the snapshot away, which then nobody can believe."""

    def __init__(self, path: Path) -> None:
        self._snapshot = path
        self._path = path.with_suffix(NOTED)
        self._names: set[str] = set()
        self._since: set[str] = set()
        self._number = -1
        self._bytes = 0

    def add(self, names: Iterable[str]) -> None:
        """Writes have passed to these."""
        news = [name for name in names if name not in self._names]
        self._since.update(names)
        if not news:
            return
        if len(self._names) >= NOTED_MAX:
            news = [ANY] if ANY not in self._names else []
        self._names.update(news)
        try:
            self._write(b"".join([msgspec.json.encode(name) + b"\n" for name in news]), self._bytes)
        except OSError:
            with contextlib.suppress(OSError):
                self._snapshot.unlink(missing_ok=True)

    def begin(self) -> None:
        """A snapshot is being written: what is written to from now on it may not know."""
        self._since = set()

    def finish(self) -> None:
        """It stands there: only what was written to meanwhile is to be noted."""
        self._names = set(self._since)
        data = b"".join([msgspec.json.encode(name) + b"\n" for name in sorted(self._names)])
        if not data and self._number < 0:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            return
        with contextlib.suppress(OSError):
            # written first and cut off afterwards: a crash in between leaves too many names, and never too few
            self._bytes = 0
            self._write(data, 0)
            os.ftruncate(self._number, self._bytes)

    def _write(self, data: bytes, at: int) -> None:
        if self._number < 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._number = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
            # what another process has left there holds until the next snapshot
            at = self._bytes = max(self._bytes, os.fstat(self._number).st_size) if at == self._bytes else at
        self._bytes = at + os.pwrite(self._number, data, at)

    def close(self) -> None:
        """Let go of the file, which stays."""
        if self._number >= 0:
            os.close(self._number)
            self._number = -1


def noted_since(path: Path) -> set[str]:
    """The collections written to since the snapshot at `path`, as it and its neighbours have noted; ANY is any.

    What a neighbour noted before this snapshot was written was heard here, and is in it.
    """
    found: set[str] = set()
    try:
        written_at = path.stat().st_mtime
        for each in path.parent.glob(f"*{NOTED}"):
            if each != path.with_suffix(NOTED) and each.stat().st_mtime < written_at:
                continue
            for line in each.read_bytes().splitlines():
                found.add(_name_of(line))
    except OSError:
        # who can't read them knows of no collection that is as it was
        return {ANY} if path.exists() else set()
    return found


def _name_of(line: bytes) -> str:
    try:
        return msgspec.json.decode(line, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ANY


def read_file(path: Path, bytes_max: int) -> bytes:
    """The file's bytes; nothing where there is none, it can't be read, or it is larger than anything we write."""
    try:
        if path.stat().st_size > bytes_max:
            return b""
        return path.read_bytes()
    except OSError:
        return b""
