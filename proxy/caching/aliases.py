"""What a request is called in the cache, by the bytes it came in: its key costs a look inside, and bytes come again.

asked lately, and short --the bytes themselves--+
asked before ------------SHA-256 of the bytes---+--> key
never --------------------------------------------> None; whoever works out the key teaches it
"""

from __future__ import annotations

from hashlib import sha256

from understudy.proxy.caching.keys import Front

ALIASES_MAX = 16_384
"""Requests known by their hashes; the first to come are the first to go."""
LATELY_MAX = 256
"""Requests known by their bytes: a look-up costs 0.4 us then, and a hash 1.4."""
LATELY_BYTES_MAX = 4096
"""Longer bodies are only known by their hashes, so that what is kept stays under a megabyte."""


class Aliases:
    """One route's. Bytes are known together with the front of the head they came under, tenant and all."""

    __slots__ = ("_keys", "_lately", "_looked")

    def __init__(self) -> None:
        self._keys: dict[bytes, bytes] = {}
        self._lately: dict[bytes, bytes] = {}
        # of the last request that was not known: who goes on to work out its key needs its hash again
        self._looked: tuple[bytes, Front | None, bytes] = (b"", None, b"")

    @property
    def sizes(self) -> tuple[int, int]:
        """How many are known by their hashes, and how many by their bytes."""
        return len(self._keys), len(self._lately)

    def key_of(self, front: Front, body: bytes) -> bytes | None:
        """The key of a request, if it is known."""
        asked = front.prefix + body
        key = self._lately.get(asked)
        if key is not None:
            return key
        raw = self.raw_of(front, body)
        key = self._keys.get(raw)
        if key is None:
            self._looked = (body, front, raw)
        elif len(body) <= LATELY_BYTES_MAX:
            if len(self._lately) >= LATELY_MAX:
                del self._lately[next(iter(self._lately))]
            self._lately[asked] = key
        return key

    def raw_of(self, front: Front, body: bytes) -> bytes:
        """The hash of a request's bytes."""
        looked = self._looked
        self._looked = (b"", None, b"")
        if looked[0] is body and looked[1] is front:
            return looked[2]
        return sha256(front.prefix + body).digest()

    def learn(self, raw: bytes, key: bytes) -> None:
        """Know a hash from now on."""
        if len(self._keys) >= ALIASES_MAX:
            del self._keys[next(iter(self._keys))]
        self._keys[raw] = key
