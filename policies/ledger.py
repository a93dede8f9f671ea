"""Remember, of every vector handed out, what it is a vector of: its space, its text, its tenant.

    float32 bytes --+-- hash ------------------> entry        the very vector, as it survives JSON and base64
                    +-- signs of 4 x 64 places -> entries --> nearest by 64 places, cosine > .9999: normalised again

Bounded in number and bytes; the first that was not asked for again is the first to go. No numpy: the signs of float32
are bits of their bytes, and a slice of those with one translation is all that a band takes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Protocol

COSINE_MIN = 0.9999
SKETCH_PLACES = 64
"""How many places of a vector are kept, to tell its like by."""
BANDS = 4
BAND_PLACES = 64
TEXT_CHARS_MAX = 8192
"""Longer texts are kept up to here: a local model and a search by words read less."""
ENTRY_BYTES = 900
"""What an entry takes besides its text and its own vector, about."""

_SIGNS = bytes([0] * 128 + [1] * 128)


class LedgerRules(Protocol):
    """What a ledger goes by (`Ledger` of `proxy/settings` has it)."""

    @property
    def entries_max(self) -> int: ...
    @property
    def bytes_max(self) -> int: ...


class Entry:
    """What is known of one vector. `own` is the local model's whole vector, float32, where it was a handle."""

    __slots__ = ("bands", "dimensions", "is_cut", "key", "model", "own", "sketch", "space", "tenant", "text")

    def __init__(self, space: str, text: str, tenant: bytes, model: str, own: bytes) -> None:
        self.space = space
        self.is_cut = len(text) > TEXT_CHARS_MAX
        self.text = text[:TEXT_CHARS_MAX]
        self.tenant = tenant
        self.model = model
        self.own = own
        self.key = 0
        self.bands: tuple[int, ...] = ()
        self.sketch = b""
        self.dimensions = 0

    @property
    def size_bytes(self) -> int:
        # four bytes a letter at worst, one mostly
        return ENTRY_BYTES + len(self.text) + len(self.own)


class Ledger:
    """Vectors are float32 in the machine's order, little-endian wherever we run. Not for several threads."""

    __slots__ = ("_bands", "_entries", "bytes", "evicted", "found", "missed", "near", "remembered", "rules")

    def __init__(self, rules: LedgerRules) -> None:
        self.rules = rules
        self._entries: dict[int, Entry] = {}
        self._bands: dict[int, Entry] = {}
        self.bytes = 0
        self.remembered = 0
        self.evicted = 0
        self.found = 0
        self.near = 0
        self.missed = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def remember(
        self, vector: bytes, space: str, text: str, tenant: bytes = b"", *, model: str = "", own: bytes = b""
    ) -> Entry | None:
        """Keep what `vector` is of; None where no bound has room for it. The latest word on a vector counts."""
        entry = Entry(space, text, tenant, model, own)
        if entry.size_bytes > self.rules.bytes_max or len(vector) < 4 * BANDS:
            return None
        entry.key = hash(tenant + vector)
        entry.dimensions = len(vector) >> 2
        entry.sketch = _sketch(vector)
        entry.bands = _bands(vector, tenant)
        known = self._entries.get(entry.key)
        if known is not None:
            self._drop(known)
        self._entries[entry.key] = entry
        for band in entry.bands:
            self._bands[band] = entry
        self.bytes += entry.size_bytes
        self.remembered += 1
        self.fit()
        return entry

    def find(self, vector: bytes, tenant: bytes = b"") -> Entry | None:
        """What `vector` is of: exactly it, or one of cosine above .9999 to it; a tenant finds its own alone."""
        entry = self._entries.get(hash(tenant + vector))
        if entry is not None and entry.tenant == tenant and entry.sketch == _sketch(vector):
            self.found += 1
        elif (entry := self._nearest(vector, tenant)) is not None:
            self.near += 1
        else:
            self.missed += 1
            return None
        # asked for again: the last to go
        del self._entries[entry.key]
        self._entries[entry.key] = entry
        return entry

    def fit(self) -> None:
        """Let go of the oldest until the bounds hold."""
        rules, entries = self.rules, self._entries
        while entries and (len(entries) > rules.entries_max or self.bytes > rules.bytes_max):
            self._drop(next(iter(entries.values())))
            self.evicted += 1

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._bands.clear()
        self.bytes = 0

    def _drop(self, entry: Entry) -> None:
        del self._entries[entry.key]
        self.bytes -= entry.size_bytes
        for band in entry.bands:
            # a band may have become another's
            if self._bands.get(band) is entry:
                del self._bands[band]

    def _nearest(self, vector: bytes, tenant: bytes) -> Entry | None:
        if len(vector) < 4 * BANDS:
            return None
        found, best = None, COSINE_MIN
        for band in _bands(vector, tenant):
            entry = self._bands.get(band)
            if entry is None or entry is found or entry.tenant != tenant or entry.dimensions != len(vector) >> 2:
                continue
            alike = cosine(array("f", entry.sketch), array("f", _sketch(vector)))
            if alike > best:
                found, best = entry, alike
        return found


def _sketch(vector: bytes) -> bytes:
    """Some of its places, spread over all of it, as float32 bytes."""
    places = array("f", vector)
    return places[:: max(1, len(places) // SKETCH_PLACES)][:SKETCH_PLACES].tobytes()


def _bands(vector: bytes, tenant: bytes) -> tuple[int, ...]:
    """Four keys, each by the signs of other places: scaling moves none, and little noise leaves one of them."""
    # the top bit of each float's last byte is its sign
    signs = vector[3 : 4 * BANDS * BAND_PLACES : 4].translate(_SIGNS)
    wide = len(signs) // BANDS
    return (
        hash((0, tenant, signs[:wide])),
        hash((1, tenant, signs[wide : 2 * wide])),
        hash((2, tenant, signs[2 * wide : 3 * wide])),
        hash((3, tenant, signs[3 * wide :])),
    )


def cosine(one: array[float], other: array[float]) -> float:
    """Of two vectors of as many dimensions; 0 where either has no length, or is not finite."""
    dot = sum([a * b for a, b in zip(one, other, strict=True)])
    lengths = (sum([a * a for a in one]) * sum([b * b for b in other])) ** 0.5
    return dot / lengths if 0.0 < lengths < float("inf") else 0.0
