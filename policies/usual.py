"""What is usual of late: the median and the 95th percentile of the last so many samples.

A window of samples and not of seconds: a sidecar with one call a minute would otherwise never know anything. The
percentiles are exact (nearest rank) and read anew every so many samples, since sorting costs 12 µs and adding 0.1.
"""

from __future__ import annotations

from collections import deque

SAMPLES = 256
FRESH = 32
"""Samples after which the percentiles are read anew; before there are so many, nothing is known."""


class Usual:
    """`p50` and `p95` of the last 256 samples, in the samples' own unit; 0 until `count` says that something is known.

    `count` is how many samples the percentiles were read from.
    """

    __slots__ = ("_fresh", "_last", "count", "p50", "p95")

    def __init__(self) -> None:
        self.count = 0
        self.p50 = 0.0
        self.p95 = 0.0
        self._fresh = 0
        self._last: deque[float] = deque(maxlen=SAMPLES)

    def add(self, sample: float) -> None:
        """One more; the oldest is forgotten when there are too many."""
        self._last.append(sample)
        self._fresh += 1
        if self._fresh >= FRESH:
            self._read()

    def _read(self) -> None:
        ordered = sorted(self._last)
        self.count = len(ordered)
        self._fresh = 0
        self.p50 = ordered[(self.count + 1) // 2 - 1]
        # nearest rank: the smallest sample that at least 95 in 100 do not exceed
        self.p95 = ordered[-(-self.count * 95 // 100) - 1]
