"""Compare two answers to one question: the same status, the same points in the same order, the same vectors.

Rank-biased overlap is that of Webber, Moffat and Zobel (2010), extrapolated to lists of which only the top was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from math import sqrt
from typing import NamedTuple

from understudy.policies.observe import Histogram
from understudy.policies.service import Answer, Call

SHARES = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)
"""Upper bounds of the buckets for measures of agreement, all of which are at most 1."""
MEASURES = ("overlap", "rbo", "cosine")
DEPTH = 10
PERSISTENCE = 0.9
"""With 0.9, 86 % of the weight of a rank-biased overlap lies on the first ten."""
VECTORS_MAX = 4
"""Vectors of one answer that are compared: a cosine of 1,536 numbers takes 0.1 ms, and a batch has up to 2,048."""


class Results(NamedTuple):
    """What can be compared of an answer: lists of ids, the best first, one for each query, and vectors [n, d].

    `scores` are those of the rankings, as many of each as there are ids, or none.
    """

    rankings: Sequence[Sequence[str]] = ()
    vectors: Sequence[Sequence[float]] = ()
    scores: Sequence[Sequence[float]] = ()


class Pair(NamedTuple):
    """One call, what the caller was answered, and what the other arm said (None: it refused or failed, and why)."""

    call: Call
    live: Answer
    shadow: Answer | None
    shadow_s: float
    why: str = ""


Compare = Callable[[Pair], None]
Read = Callable[[Call, Answer], Results]
"""Raises ValueError for an answer that can't be read."""


def overlap_at(k: int, one: Sequence[str], other: Sequence[str]) -> float:
    """The share of the first `k` that both lists have; where they are shorter, of the longer one. 1 for two empty."""
    first, second = set(one[:k]), set(other[:k])
    longest = max(len(first), len(second))
    return len(first & second) / longest if longest else 1.0


def rbo(one: Sequence[str], other: Sequence[str], p: float = PERSISTENCE) -> float:
    """Extrapolated rank-biased overlap (RBO_ext, Webber et al., equation 32) of two rankings without ties: 0 to 1."""
    short, long = sorted((one, other), key=len)
    if not short:
        return float(not long)
    s, depth = len(short), len(long)
    seen_short: set[str] = set()
    seen_long: set[str] = set()
    overlap = overlap_s = 0
    total = 0.0
    for d, (left, right) in enumerate(zip_longest(short, long), 1):
        if left is not None:
            overlap += left in seen_long
            seen_short.add(left)
        seen_long.add(right)
        overlap += right in seen_short
        total += overlap / d * p**d
        if d == s:
            overlap_s = overlap
        if d > s:
            total += overlap_s * (d - s) / (s * d) * p**d
    tail = ((overlap - overlap_s) / depth + overlap_s / s) * p**depth
    return (1 - p) / p * total + tail


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of two vectors of one dimension; 0 where either has no length. Raises ValueError."""
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    norms = sqrt(sum(a * a for a in one)) * sqrt(sum(b * b for b in other))
    return dot / norms if norms else 0.0


class Agreement:
    """A comparer that counts: pairs by result, and how far the answers of each agree.

    `result` is same (status) or status, and, where the bodies can't be compared, shape: unreadable, or another number
    of lists, vectors or dimensions. `failed` pairs have no second answer.
    """

    __slots__ = ("_read", "measures", "pairs")

    def __init__(self, read: Read) -> None:
        self._read = read
        self.pairs: dict[str, int] = {}
        self.measures = {measure: Histogram(SHARES) for measure in MEASURES}

    def carry(self, old: Agreement) -> None:
        """Go on with the counts of `old`."""
        self.pairs, self.measures = old.pairs, old.measures

    def __call__(self, pair: Pair) -> None:
        result = self._compared(pair)
        self.pairs[result] = self.pairs.get(result, 0) + 1

    def _compared(self, pair: Pair) -> str:
        if pair.shadow is None:
            return "failed"
        if pair.live.status != pair.shadow.status:
            return "status"
        if pair.live.status >= 300:
            return "same"
        try:
            return self._measured(self._read(pair.call, pair.live), self._read(pair.call, pair.shadow))
        except ValueError:
            return "shape"

    def _measured(self, live: Results, shadow: Results) -> str:
        # the whole pair is measured before any of it is counted: half of one would be a figure of nothing
        rankings = list(zip(live.rankings, shadow.rankings, strict=True))
        if len(live.vectors) != len(shadow.vectors):
            return "shape"
        vectors = list(zip(live.vectors[:VECTORS_MAX], shadow.vectors[:VECTORS_MAX], strict=True))
        cosines = [cosine(one, other) for one, other in vectors]
        for one, other in rankings:
            self.measures["overlap"].add(overlap_at(DEPTH, one, other))
            self.measures["rbo"].add(rbo(one[:DEPTH], other[:DEPTH]))
        for each in cosines:
            self.measures["cosine"].add(each)
        return "same"
