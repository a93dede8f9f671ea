"""The ledger as replicas share it: through the cache's second level, behind everybody's back.

    vector handed out --> a key of its bytes and its tenant --> space, text, model (and, of a handle, the whole vector)

What stands there is not believed unless its checksum says so; who can't be asked in a moment has nothing to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import msgspec

from understudy.policies.ledger import Entry
from understudy.proxy.caching.second import Second
from understudy.proxy.caching.values import sealed, unsealed

TTL_S = 7 * 86400.0
MAGIC = b"UL1"
KEYS_MAX = 64
UNTOLD_MAX = 256
"""Entries written at once."""


class _Packed(msgspec.Struct, array_like=True, frozen=True):
    space: str
    text: str
    model: str
    own: bytes


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Packed)


class SharedLedger:
    """Entries in the second level; nothing here raises, and nothing takes longer than its `wait_s`."""

    __slots__ = ("_untold", "second")

    def __init__(self, second: Second) -> None:
        self.second = second
        self._untold: list[tuple[bytes, bytes]] = []

    def tell(self, vector: bytes, entry: Entry) -> None:
        """Have the replicas know what `vector` is of, with the next `flush`."""
        if len(self._untold) >= UNTOLD_MAX:
            self.flush()
        self._untold.append((key_of(vector, entry.tenant), packed(entry)))

    def flush(self) -> None:
        """Tell them of all that is new; dropped where that can't be done now."""
        if self._untold:
            self.second.write(self._untold, TTL_S)
            self._untold = []

    async def known(self, vectors: Sequence[bytes], tenant: bytes) -> list[tuple[bytes, Entry]]:
        """Those of `vectors` that a replica remembers."""
        if not vectors:
            return []
        asked = vectors[:KEYS_MAX]
        values, _ = await self.second.read([key_of(vector, tenant) for vector in asked], ())
        found: list[tuple[bytes, Entry]] = []
        for vector, data in zip(asked, values, strict=True):
            entry = None if data is None else unpacked(data, tenant)
            if entry is not None:
                found.append((vector, entry))
        return found


def key_of(vector: bytes, tenant: bytes) -> bytes:
    """By what an entry is found: the tenant's own, and exactly this vector's."""
    return blake2b(tenant + vector, digest_size=16, person=b"ledger", salt=bytes([min(len(tenant), 255)])).digest()


def packed(entry: Entry) -> bytes:
    """An entry as bytes that say whether they are whole."""
    return sealed(MAGIC, _ENCODER.encode(_Packed(entry.space, entry.text, entry.model, entry.own)))


def unpacked(data: bytes, tenant: bytes) -> Entry | None:
    """What `packed` made, or None."""
    content = unsealed(MAGIC, data)
    if content is None:
        return None
    try:
        found = _DECODER.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return Entry(found.space, found.text, tenant, found.model, found.own) if len(found.own) % 4 == 0 else None
