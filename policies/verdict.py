"""Make one word of a run of checks: healthy, degraded, unhealthy, or unknown while there was none.

               first check well                  one wrong                   2 of the last 3 wrong
    UNKNOWN ------------------> HEALTHY ----------------------> DEGRADED ------------------------> UNHEALTHY
                                   ^                                |                                  |
                                   +------- 3 well in a row --------+----------------------------------+

For the better it changes only after `DWELL_S` in a state; for the worse, at once. More than `FLIPS_MAX` changes within
`FLIPS_S` are flapping: it is held degraded, whatever the checks say, until it has been quiet for as long.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

Word = Literal["unknown", "healthy", "degraded", "unhealthy"]
WORDS: tuple[Word, ...] = ("unknown", "healthy", "degraded", "unhealthy")

DWELL_S = 10.0
LAST = 3
WRONG_MIN = 2
FLIPS_MAX = 4
FLIPS_S = 300.0


class Verdict:
    """The pure heart. `reasons` says why it is not healthy, in a few words; `since` is when `word` last changed."""

    __slots__ = ("_flips", "_last", "changes", "flapping", "reasons", "since", "word")

    def __init__(self, now: float) -> None:
        self.word: Word = "unknown"
        self.reasons: tuple[str, ...] = ()
        self.since = now
        self.changes = 0
        self.flapping = False
        self._last: deque[bool] = deque(maxlen=LAST)
        self._flips: deque[float] = deque(maxlen=FLIPS_MAX + 1)

    @property
    def passes(self) -> bool:
        """Whether the last check found nothing, whatever the word is by then."""
        return bool(self._last) and self._last[-1]

    def checked(self, now: float, reasons: tuple[str, ...] = ()) -> Word:
        """A check is done, and found these wrong, or nothing; what is to be thought of it all."""
        self._last.append(not reasons)
        if reasons:
            self.reasons = reasons
        due = self._due(now)
        if due != self.word:
            if self.word != "unknown":
                self._flips.append(now)
            self.word, self.since = due, now
            self.changes += 1
        if self.word == "healthy":
            self.reasons = ()
        return self.word

    def _due(self, now: float) -> Word:
        if self._is_flapping(now):
            return "degraded"
        wrong = self._last.count(False)
        if wrong >= WRONG_MIN:
            return "unhealthy"
        if self.word in ("degraded", "unhealthy"):
            well = len(self._last) == LAST and not wrong and now - self.since >= DWELL_S
            return "healthy" if well else self.word
        return "degraded" if wrong else "healthy"

    def _is_flapping(self, now: float) -> bool:
        many = len(self._flips) > FLIPS_MAX
        if self.flapping:
            # quiet means that nothing was wrong for as long; a change is not made while it is held
            if not self._last[-1]:
                self._flips.append(now)
            self.flapping = now - self._flips[-1] < FLIPS_S
            if not self.flapping:
                self._flips.clear()
        else:
            self.flapping = many and now - self._flips[0] <= FLIPS_S
        return self.flapping
