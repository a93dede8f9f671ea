"""Keep the vectors of sentences that may be quoted, so that an answer does not wait for them to be embedded.

    header | keys uint64 [n], ascending | vectors float16 [n, d]          one file, written beside and renamed
    text ──blake2b──> key ──binary search──> row, or not there: whoever asks embeds it

A vector is found by the sentence's own text, whatever collection or prompt it stands in: a file that is behind its
collection is never wrong, only incomplete. Halves cost a cosine 0.0002 and half the disk; five such sentences a passage
are 4 KB. A file that is damaged, or of another model's space, is no file.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["SENTENCES_MAX", "SentenceVectors", "key_of", "write_sentences"]

SENTENCES_MAX = 200_000
"""Some 40,000 passages: 155 MB on disk at 384 dimensions, mapped and not held."""

MAGIC = b"USENT1\0\0"
HEADER = struct.Struct("<8sIQ16s32s")

Vectors = NDArray[np.float32]


def key_of(text: str) -> int:
    """64 bits of a sentence: among 200,000 two are alike once in a thousand million files."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class Looked(NamedTuple):
    """Vectors [n, d] float32, rows of zeros where `there` [n] is False."""

    vectors: Vectors
    there: NDArray[np.bool_]


class SentenceVectors:
    """One open file; never changes, and may be asked from any thread. `open_file` gives one."""

    __slots__ = ("_keys", "_rows", "identity")

    def __init__(self, keys: NDArray[np.uint64], rows: NDArray[np.float16], identity: tuple[int, ...]) -> None:
        self._keys = keys
        self._rows = rows
        self.identity = identity

    @classmethod
    def open_file(cls, path: Path, space: str, dimensions: int) -> SentenceVectors | None:
        """The file at `path`, checked from end to end; None where there is none that is whole and of this space (its
        fingerprint) and size."""
        try:
            with path.open("rb") as file:
                identity = identity_of(path)
                held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            return None
        if len(held) < HEADER.size:
            return None
        magic, width, count, fingerprint, digest = HEADER.unpack_from(held)
        due = HEADER.size + count * (8 + 2 * width)
        if (magic, width, fingerprint) != (MAGIC, dimensions, space.encode()) or len(held) != due:
            return None
        if hashlib.sha256(memoryview(held)[HEADER.size :]).digest() != digest:
            return None
        keys = np.frombuffer(held, "<u8", count, HEADER.size)
        rows = np.frombuffer(held, "<f2", count * width, HEADER.size + 8 * count).reshape(count, width)
        return cls(keys, rows, identity)

    def __len__(self) -> int:
        return len(self._keys)

    def of(self, texts: Sequence[str]) -> Looked:
        """What is kept of these sentences. About 3 µs each."""
        out = np.zeros((len(texts), self._rows.shape[1]), np.float32)
        if not len(self._keys) or not texts:
            return Looked(out, np.zeros(len(texts), np.bool_))
        keys = np.fromiter(map(key_of, texts), np.uint64, len(texts))
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        there = self._keys[at] == keys
        out[there] = self._rows[at[there]]
        return Looked(out, there)


def identity_of(path: Path) -> tuple[int, ...]:
    """What tells one file at a path from the next: another worker may have written it. () where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def write_sentences(path: Path, space: str, texts: Sequence[str], vectors: Vectors) -> None:
    """Write the vectors [n, d] of `texts` to `path`, whole or not at all. Raises OSError."""
    keys = np.fromiter(map(key_of, texts), np.uint64, len(texts))
    keys, order = np.unique(keys, return_index=True)
    width = vectors.shape[1]
    body = keys.astype("<u8").tobytes() + vectors[order].astype("<f2").tobytes()
    header = HEADER.pack(MAGIC, width, len(keys), space.encode(), hashlib.sha256(body).digest())
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(header)
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
