"""Start a process again that has died: at once the first time, later and later when it dies again and again.

The heart is told how long the process had lived; whoever is told to wait decides what to do meanwhile.
"""

from __future__ import annotations

BASE_S = 0.1
WAIT_S_MAX = 15.0
WELL_S = 10.0
"""A process that has lived this long was well: what comes next is a new story."""
DEATHS_MAX = 5
"""So many deaths in a row without ever having been ready, and nobody believes in the next start."""


class Respawn:
    """How one process's deaths are answered."""

    __slots__ = ("_in_a_row", "deaths", "stillborn")

    def __init__(self) -> None:
        self.deaths = 0
        self.stillborn = 0
        self._in_a_row = 0

    def died(self, lived_s: float, *, was_ready: bool) -> float:
        """Seconds to wait before starting it again."""
        self.deaths += 1
        self.stillborn = 0 if was_ready else self.stillborn + 1
        self._in_a_row = 1 if was_ready and lived_s >= WELL_S else self._in_a_row + 1
        if self._in_a_row == 1:
            return 0.0
        return min(WAIT_S_MAX, BASE_S * 2.0 ** min(self._in_a_row - 2, 16))

    @property
    def hopeless(self) -> bool:
        """Whether it has died at once so often that starting it again is no plan."""
        return self.stillborn >= DEATHS_MAX
