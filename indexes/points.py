"""What a point is: an id, a vector, a payload, and the words it came from."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from understudy.indexes.faults import BadId

if TYPE_CHECKING:
    # a worker without the local tier reads conditions on points too, and does without numpy's 12 MB
    import numpy as np
    from numpy.typing import NDArray

PointId: TypeAlias = int | str
Payload: TypeAlias = dict[str, Any]
Vector: TypeAlias = "NDArray[np.float32]"

DERIVED: Final = "~"
"""What names of vectors begin with that we made ourselves, of a point's text: nobody is shown them, and they stay with
the point for as long as its text does."""
ID_BYTES_MAX: Final = 1024
ID_MAX: Final = 2**64 - 1

_INT_MARK: Final = b"\x00"
_STR_MARK: Final = b"\x01"
_HYPHENATED: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_UUID: Final = re.compile(rf"[0-9a-f]{{32}}|{_HYPHENATED}|\{{{_HYPHENATED}\}}|urn:uuid:{_HYPHENATED}", re.IGNORECASE)


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """One stored thing. `vector` [d] float32 is as it was given, not normalised, or None where it was not asked for;
    `named` holds the vectors that have a name beside it, [d] float32 each."""

    id: PointId
    vector: Vector | None = None
    payload: Payload = field(default_factory=dict[str, Any])
    text: str = ""
    source: str = ""
    version: int = 0
    named: Mapping[str, Vector] = field(default_factory=dict[str, "Vector"])


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """A point that was found. `score`: cosine or dot product (higher is better), euclidean distance (lower is better),
    BM25 or a fused score in [0, 1] (higher is better)."""

    id: PointId
    score: float
    payload: Payload
    text: str
    source: str
    vector: Vector | None = None
    version: int = 0
    named: Mapping[str, Vector] = field(default_factory=dict[str, "Vector"])


def is_derived(name: str) -> bool:
    """Whether vectors of this name are our own."""
    return name.startswith(DERIVED)


def id_key(id: PointId) -> bytes:
    """The bytes an id is stored and ordered by: integers by value, then strings by code point, as Qdrant scrolls.

    The leading mark keeps 7 and "7" apart. Raises BadId for anything but a uint64 or a short string.
    """
    if isinstance(id, str):
        try:
            raw = id.encode()
        except UnicodeEncodeError as error:
            raise BadId(f"id {id!r} is not valid Unicode") from error
        if len(raw) > ID_BYTES_MAX:
            raise BadId(f"id of {len(raw)} bytes, more than {ID_BYTES_MAX}")
        return _STR_MARK + raw
    # bool is an int in Python and no id anywhere else
    if isinstance(id, bool) or not isinstance(id, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise BadId(f"id {id!r} is neither an unsigned integer nor a string")
    if not 0 <= id <= ID_MAX:
        raise BadId(f"id {id} does not fit 64 bits without a sign")
    return _INT_MARK + id.to_bytes(8, "big")


def key_id(key: bytes) -> PointId:
    """The id that `id_key` made `key` of."""
    return int.from_bytes(key[1:], "big") if key[:1] == _INT_MARK else key[1:].decode()


def canonical_id(id: PointId) -> PointId:
    """UUIDs by identity rather than spelling, in the four spellings Qdrant takes; every other id as it is."""
    if isinstance(id, str) and _UUID.fullmatch(id):
        return str(uuid.UUID(id))
    return id


def searchable(text: str, payload: Payload) -> str:
    """The words a point is found by: its title, where the payload has one, and its text."""
    title = payload.get("title")
    return f"{title}\n{text}" if isinstance(title, str) and title else text
