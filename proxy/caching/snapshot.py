"""What caches keep, in a file that outlives the process: written beside and renamed, read as far as it is whole.

    UCS1 | length, record, sum | length, record, sum | …

A record that is cut short or damaged ends the reading; those before it count. The file can be read by its owner only,
for what it holds are the application's texts.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import msgspec

MAGIC = b"UCS1"
SUM_BYTES = 8
_LENGTH = struct.Struct("!I")
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


def read_file(path: Path, bytes_max: int) -> bytes:
    """The file's bytes; nothing where there is none, it can't be read, or it is larger than anything we write."""
    try:
        if path.stat().st_size > bytes_max:
            return b""
        return path.read_bytes()
    except OSError:
        return b""
