"""Vectors as dialects read them out of writes: float32, finite, and of one row; and bodies that came packed."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from understudy.policies.service import Refused
from understudy.proxy.dialects.base import first_byte, parsed

if TYPE_CHECKING:
    from understudy.indexes.points import Vector

UNPACKED_BYTES_MAX: Final = 64 * 1024 * 1024
"""How long a packed body may grow: a few kilobytes can say a gigabyte of zeros."""

_NUMBERS = msgspec.json.Decoder(list[float])


def vector_of(raw: msgspec.Raw) -> Vector:
    """One vector [d] from JSON. Raises Malformed, or Refused for what is none: of several rows, sparse, or a text."""
    if first_byte(raw) != b"[":
        raise Refused("unsupported", "a mirror does not know sparse vectors, nor what the database embeds itself")
    if bytes(memoryview(raw)[1:64]).lstrip()[:1] == b"[":
        raise Refused("unsupported", "a mirror does not know vectors of several rows")
    return vector_from(parsed(_NUMBERS, raw))


def vector_from(numbers: Sequence[float]) -> Vector:
    """`numbers` as float32 [d]. Raises Refused where there are none, or one that float32 can't hold."""
    # here, since a worker without the local tier reads no writes, and does without numpy's 12 MB
    import numpy as np

    with np.errstate(over="ignore"):
        vector = np.array(numbers, np.float32)
    if not len(vector) or not np.isfinite(vector).all():
        raise Refused("unsupported", "a vector that is empty, or beyond single precision")
    return vector


def unpacked(body: bytes, encoding: bytes | None) -> bytes:
    """A body whose header says `content-encoding: encoding`, as it was before. Raises Refused for what can't be."""
    if encoding is None or encoding.strip().lower() in (b"", b"identity"):
        return body
    if encoding.strip().lower() not in (b"gzip", b"x-gzip", b"deflate"):
        raise Refused("encoded", "the body is packed in a way that is not read here")
    try:
        # 32: gzip or zlib, whichever it is
        unpacking = zlib.decompressobj(32 + zlib.MAX_WBITS)
        whole = unpacking.decompress(body, UNPACKED_BYTES_MAX)
    except zlib.error:
        raise Refused("encoded", "the body is not packed as its head says") from None
    if not unpacking.eof:
        raise Refused("encoded", f"the body is cut short, or longer than {UNPACKED_BYTES_MAX} bytes")
    return whole
