"""Say what is unusual for this hour: against the same hour of the days before, and of the same weekday.

    a stretch of five minutes --> its value --> ring of fifteen days, by the stretch's number
    usual  = median of the same half hour either way, on the same weekday of the two weeks before
    spread = by median absolute deviations: within these hours, and between one week and the next
    odd    = SPREADS_MIN spreads away; while there is one week alone, from all its days as well
    flag   = ODD_MIN odd stretches of five minutes in a row; over when two in a row are no longer half as odd

Values are made such that chance has the same width everywhere: roots of counts, the angle of a share, logarithms of
seconds. So a spread is never taken for smaller than chance alone would make it, however still it was. Nothing is said
before a week has been seen. Flags are for people and programs that look; nobody is told by an alert.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from math import asin, inf, isnan, log, nan, sin, sqrt
from typing import Literal, NamedTuple

from understudy.policies.forecast import HOUR_S, Slope, middle, theil_sen

STRETCH_S = 300.0
DAY = 288
"""Stretches of a day."""
WEEK = 7 * DAY
KEPT = 15 * DAY
AROUND = 6
"""Stretches either way that are the same hour."""
DAYS_MIN = 7
APART_MIN = 6
"""Days that can be compared with those a week before, to know how far weeks are apart."""
VALUES_MIN = 40
SPREADS_MIN = 5.0
ODD_MIN = 2
"""Odd stretches in a row that make a flag."""
MAD_TO_DEVIATION = 1.4826
TRIMMED_TO_DEVIATION = 1.6
"""From the mean of six of seven distances, the longest left out: of so few the median is a matter of luck."""
SHARE_OF_USUAL = 0.05
"""Of rates and latencies, a spread less than this share of what is usual is taken for it."""
CALLS_MIN = 20
"""Fewer calls of a stretch say nothing of shares and latencies."""
TREND_STRETCHES = 72
TREND_MIN = 60

Kind = Literal["calls", "errors", "p50", "p95"]
KINDS: tuple[Kind, ...] = ("calls", "errors", "p50", "p95")


class Stretch(NamedTuple):
    """What happened to a route in one stretch: calls, those that failed, percentiles in seconds (nan: not known)."""

    calls: float
    failed: float
    p50_s: float = nan
    p95_s: float = nan

    def value(self, kind: Kind) -> float:
        """On the scale that is compared; nan where it says nothing."""
        if kind == "calls":
            return 2 * sqrt(self.calls)
        if self.calls < CALLS_MIN:
            return nan
        if kind == "errors":
            # an eighth of a call: so that of none at all is told from none of many
            return 2 * asin(sqrt(min(1.0, (self.failed + 0.125) / (self.calls + 0.25))))
        seconds = self.p50_s if kind == "p50" else self.p95_s
        return nan if isnan(seconds) else log(max(1e-5, seconds))

    def chance(self, kind: Kind) -> float:
        """The spread that chance alone gives such a value."""
        if kind == "calls":
            return max(1.0, SHARE_OF_USUAL * sqrt(self.calls))
        if kind == "errors":
            return 1 / sqrt(max(1.0, self.calls))
        # of a percentile of so many: the tail is thinner, and so what is known of it
        return max(SHARE_OF_USUAL, (1.3 if kind == "p50" else 2.5) / sqrt(max(1.0, self.calls)))


def shown(kind: Kind, value: float) -> float:
    """A compared value as people know it: calls of a stretch, a share, or seconds."""
    if isnan(value):
        return nan
    if kind == "calls":
        return (max(0.0, value) / 2) ** 2
    return sin(max(0.0, value) / 2) ** 2 if kind == "errors" else 2.718281828459045**value


class Oddity(NamedTuple):
    """Something unusual: by how many spreads, what it is and what is usual, as people know it; since when, in seconds
    since the epoch."""

    route: str
    kind: Kind
    spreads: float
    is_: float
    usual: float
    since: float


class Rhythm:
    """One value of one route over fifteen days, by the number of the stretch."""

    __slots__ = ("at", "odd", "ring", "since", "spreads", "usual", "well")

    def __init__(self) -> None:
        self.ring = array("f", [nan]) * KEPT
        self.at = -1
        self.odd = 0
        self.well = 0
        self.since = 0.0
        self.spreads = 0.0
        self.usual = nan

    def add(self, at: int, value: float, chance: float, *, upward_only: bool) -> None:
        """The stretch number `at` had this value; stretches that nobody has seen are not known."""
        if at <= self.at - KEPT or self.at < 0:
            self.ring = array("f", [nan]) * KEPT
        elif at <= self.at:
            # the clock was set back: what lies in the future is nobody's past
            for gone in range(at, self.at + 1):
                self.ring[gone % KEPT] = nan
        for missed in range(max(self.at + 1, at - KEPT + 1), at):
            self.ring[missed % KEPT] = nan
        self.at = at
        self.ring[at % KEPT] = value
        self._judge(at, value, chance, upward_only=upward_only)

    def _judge(self, at: int, value: float, chance: float, *, upward_only: bool) -> None:
        self.spreads = 0.0 if isnan(value) else self._spreads(at, value, chance)
        if upward_only:
            self.spreads = max(0.0, self.spreads)
        far = abs(self.spreads)
        self.odd = self.odd + 1 if far >= SPREADS_MIN else 0
        self.well = 0 if far >= SPREADS_MIN / 2 else self.well + 1
        if self.odd >= ODD_MIN and not self.since:
            self.since = (at - ODD_MIN + 1) * STRETCH_S
        elif self.well >= 2:
            self.since = 0.0

    def _spreads(self, at: int, value: float, chance: float) -> float:
        """How many spreads from what is usual; 0 where too little is known.

        In the second week it must be odd for the hour and beside last week. From the third on it is compared with the
        same weekdays alone, by how far the days of two weeks are from each other.
        """
        same = sorted([*self._known(at - 7 * DAY), *self._known(at - 14 * DAY)])
        if not same:
            return 0.0
        week_ago = self.usual = middle(same)
        if abs(value - week_ago) < chance * SPREADS_MIN / 2:
            # so near that chance alone would explain it: the rest need not be looked at
            return (value - week_ago) / chance
        days = [sorted(self._known(at - day * DAY)) for day in range(1, KEPT // DAY)]
        values = sorted(one for day in days for one in day)
        if sum(map(bool, days)) < DAYS_MIN or len(values) < VALUES_MIN:
            return 0.0
        centers = [middle(day) for day in days]
        apart = [abs(centers[n] - centers[n + 7]) for n in range(7) if days[n] and days[n + 7]]
        if len(apart) >= APART_MIN:
            within = middle(abs(one - centers[n]) for n, day in enumerate(days) for one in day)
            between = sum(sorted(apart)[:-1]) / (len(apart) - 1) * TRIMMED_TO_DEVIATION
            spread = max(chance, sqrt((MAD_TO_DEVIATION * within) ** 2 + between**2))
            return (value - week_ago) / spread
        self.usual = middle(values)
        spread = max(chance, MAD_TO_DEVIATION * middle(abs(one - self.usual) for one in values))
        far, then = (value - self.usual) / spread, (value - week_ago) / spread
        return 0.0 if far * then <= 0 else min(far, then, key=abs)

    def _known(self, at: int) -> Iterator[float]:
        if at - AROUND <= self.at - KEPT:
            return
        for near in range(at - AROUND, at + AROUND + 1):
            value = self.ring[near % KEPT]
            if not isnan(value):
                yield value

    def trend(self) -> Slope | None:
        """The line through the last six hours, of compared values per second; None where too little is known."""
        if self.at < 0:
            return None
        stretches = range(self.at - TREND_STRETCHES + 1, self.at + 1)
        points = [(at * STRETCH_S, value) for at in stretches if not isnan(value := self.ring[at % KEPT])]
        return theil_sen(*zip(*points, strict=True)) if len(points) >= TREND_MIN else None


class Trend(NamedTuple):
    """How a route's errors or latency move: now, and its slope with 90 % interval, as people know it, per hour."""

    route: str
    kind: Kind
    now: float
    per_h: float
    low_per_h: float
    high_per_h: float

    @property
    def direction(self) -> Literal["rising", "falling", "steady"]:
        """Where the whole interval goes."""
        if self.low_per_h > 0:
            return "rising"
        return "falling" if self.high_per_h < 0 else "steady"


def trend_of(route: str, kind: Kind, rhythm: Rhythm) -> Trend | None:
    """The trend of a rhythm, on the scale that people know."""
    slope = rhythm.trend()
    if slope is None:
        return None
    now = shown(kind, slope.level)

    def per_h(per_s: float) -> float:
        return shown(kind, slope.level + per_s * HOUR_S) - now

    return Trend(route, kind, now, per_h(slope.per_s), per_h(slope.low_per_s), per_h(slope.high_per_s))


# --- percentiles of a histogram ------------------------------------------------------------------------------------


def percentile(bounds: Sequence[float], counts: Sequence[float], share: float) -> float:
    """The value that `share` of what was counted does not exceed, between the bounds of its bucket; nan of nothing.

    `counts` has one more than `bounds`, for what is beyond the last: that is taken for the last bound.
    """
    total = sum(counts)
    if total <= 0:
        return nan
    sums: list[float] = []
    for count in counts:
        sums.append(count + (sums[-1] if sums else 0.0))
    at = bisect_left(sums, share * total)
    if at >= len(bounds):
        return bounds[-1] if bounds else inf
    low = bounds[at - 1] if at else 0.0
    before = sums[at - 1] if at else 0.0
    return low + (bounds[at] - low) * (share * total - before) / counts[at] if counts[at] else bounds[at]
