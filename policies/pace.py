"""Read no faster than asked, and slower where the other side says that it is too much.

take(n) --> seconds to wait first     a bucket that fills with `per_s` a second and holds one second's worth
eased()  --> half the rate            the database said 429, or broke
went_well() --> a tenth more          up to the rate that was asked for
"""

from __future__ import annotations

EASED_SHARE = 0.5
RECOVERED_SHARE = 0.1
SHARE_MIN = 1 / 64


class Pace:
    """How fast something may be read, in units a second. Times in seconds, on any clock that does not jump."""

    __slots__ = ("_at", "_owed", "_share", "per_s")

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self._share = 1.0
        self._owed = 0.0
        self._at = 0.0

    @property
    def rate_per_s(self) -> float:
        """The rate that is kept now."""
        return self.per_s * self._share

    def take(self, count: int, now: float) -> float:
        """Account for `count` that were read; how many seconds to wait before the next are."""
        self._owed = max(0.0, self._owed - max(0.0, now - self._at) * self.rate_per_s) + count
        self._at = now
        return self._owed / self.rate_per_s

    def eased(self) -> None:
        """The other side has had too much."""
        self._share = max(SHARE_MIN, self._share * EASED_SHARE)

    def went_well(self) -> None:
        """The other side keeps up."""
        self._share = min(1.0, self._share + RECOVERED_SHARE)
