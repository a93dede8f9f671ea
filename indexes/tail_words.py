"""Find what was just written by the words in it: BM25 over postings in memory, scored as the keyword index scores.

A commit of tantivy takes 14 ms, and there may be hundreds of writes a second; a posting appended takes none. A few
thousand texts are searched in well under a millisecond.

Postings are bytes, which the garbage collector does not go through: as arrays, those of 20 000 words kept it, and with
it every call that is proxied, for 7 ms.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from understudy.indexes.keywords import words_of
from understudy.indexes.vectors import Mask

# as tantivy has them
_K1: Final = 1.2
_B: Final = 0.75
_posting: Final = struct.Struct("<IH").pack
_POSTING: Final = np.dtype([("slot", "<u4"), ("often", "<u2")])
_WORD_BYTES: Final = 220


class TailWords:
    """Postings by word, slot by slot. One writer; any number of readers, who look no further than their views go."""

    def __init__(self) -> None:
        # of each word its slots, and how often
        self._postings: dict[str, bytearray] = {}
        self._lengths = array("H")
        self._total = 0
        self._entries = 0

    @property
    def bytes_held(self) -> int:
        """About how much memory it takes."""
        return _POSTING.itemsize * self._entries + _WORD_BYTES * len(self._postings)

    @property
    def held(self) -> list[dict[str, bytearray]]:
        """What is freed with it."""
        return [self._postings]

    def put(self, slot: int, text: str) -> None:
        """Add the words of the next slot's text."""
        counts = Counter(words_of(text) if text else [])
        for word, often in counts.items():
            posting = self._postings.get(word)
            if posting is None:
                posting = self._postings[word] = bytearray()
            posting += _posting(slot, min(often, 0xFFFF))
        length = min(sum(counts.values()), 0xFFFF)
        self._lengths.append(length)
        self._total += length
        self._entries += len(counts)

    def wordless(self, count: int) -> Mask:
        """Which of the first `count` slots have no words at all."""
        return np.array(self._lengths[:count], np.uint16) == 0

    def count_of(self, word: str) -> int:
        """In how many texts a word occurs, the dead ones included."""
        posting = self._postings.get(word)
        return 0 if posting is None else len(posting) // _POSTING.itemsize

    def search(self, words: Sequence[str], idf: Mapping[str, float] | None, allowed: Mask) -> list[tuple[int, float]]:
        """(slot, score) of the slots `allowed` [n] that hold any of `words`, in no order.

        `idf` says how much each word weighs where more texts than these are searched.
        """
        count = len(allowed)
        scores = np.zeros(count, np.float32)
        if not count:
            return []
        lengths = np.array(self._lengths[:count], np.float32)
        usual = max(1.0, self._total / max(1, len(self._lengths)))
        norms = _K1 * (1 - _B + _B * lengths / usual)
        for word in words:
            posting = self._postings.get(word)
            if posting is None:
                continue
            # a copy, whose making nobody interrupts: bytes that are lent out cannot grow
            entries = np.frombuffer(bytes(posting), _POSTING)
            slots, often = entries["slot"].astype(np.int64), entries["often"].astype(np.float32)
            seen = int(np.searchsorted(slots, count))
            slots, often = slots[:seen], often[:seen]
            weight = idf[word] if idf is not None else idf_of(len(slots), count)
            scores[slots] += weight * (1 + _K1) * often / (often + norms[slots])
        found = np.flatnonzero((scores > 0) & allowed)
        return list(zip(found.tolist(), scores[found].tolist(), strict=True))


def idf_of(holders: int, texts: int) -> float:
    """How much a word weighs that `holders` of `texts` hold."""
    return math.log(1 + (texts - holders + 0.5) / (holders + 0.5))
