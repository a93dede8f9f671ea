"""Say when something that fills up will be full if it goes on like this, and how sure that is.

    readings --> Series: the least of each 30 s for an hour, of each 2 min for four hours; the middle of each 10 min for
                 two days; the most of these in each hour for eight, so that Monday is no surprise after a weekend
    slope    =   the median over all pairs of points (Theil-Sen), and Sen's 90 % interval of it, wider where what the
                 line leaves over hangs together: then there are fewer points than it seems
    warned   =   the whole of the interval reaches the limit within a day,
             and within REACH times as long as was looked back: one tooth of a saw looks like a leak, too,
             and the level is well above all that was seen before, or the line goes through several teeth: what has been
             there and came back will come back again

Of a stretch the least counts, since memory that is free after a collection was never really taken. Theil-Sen is that of
H. Theil (1950) and P. K. Sen (JASA 63, 1968); the effective number of correlated points that of G. V. Bayley and
J. M. Hammersley (1946), for a first-order process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, floor, inf, sqrt
from typing import NamedTuple

MINUTE_S, HOUR_S, DAY_S = 60.0, 3600.0, 86400.0
FINE_S, COARSE_S, LEVEL_S = 30.0, 2 * MINUTE_S, 10 * MINUTE_S
POINTS_MAX = 120
"""Points of one grid: 7140 pairs, about a millisecond and a half."""
LEVELS_MAX = 288
"""Two days of levels."""
HOURS_MAX = 8 * 24
POINTS_MIN = 60
SPAN_S_MIN = 30 * MINUTE_S
SPANS = ((SPAN_S_MIN, FINE_S), (HOUR_S, FINE_S), (2 * HOUR_S, COARSE_S), (4 * HOUR_S, COARSE_S))
"""(how far is looked back, on which grid): sixty points at least each."""
FULL_SHARE = 0.95
"""The share of a span, and of its points, that must be there: a restart or a late reading leaves a gap."""
HORIZON_S = DAY_S
REACH = 6.0
NEW_GROUND = 0.1
"""By how much of what was free at the highest level before it must have been passed."""
FALL_SHARE = 0.5
"""By how much of the deepest fall before, as well: teeth are not all of a length."""
FALLS_MIN = 4
"""So many falls within what is looked at, and the line is that of the saw, and not of a tooth."""
HOLD_S = 15 * MINUTE_S
"""For how long a warning outlives its reason, so that one on the brink does not come and go."""
NEARLY_FULL = 0.97
SERIES_MAX = 256
FORGOTTEN_S = 2 * DAY_S
Z90 = 1.6448536269514722
CORRELATION_MAX = 0.9


class Slope(NamedTuple):
    """A line through points: its slope and 90 % interval in units per second, and its level where they end."""

    per_s: float
    low_per_s: float
    high_per_s: float
    level: float


def theil_sen(times: Sequence[float], values: Sequence[float]) -> Slope:
    """The line through points in order of time, two at least and at different times."""
    n = len(times)
    slopes = [
        (values[j] - values[i]) / (times[j] - times[i])
        for i in range(n)
        for j in range(i + 1, n)
        if times[j] > times[i]
    ]
    slopes.sort()
    per_s = _middle(slopes)
    rests = [value - per_s * (at - times[0]) for at, value in zip(times, values, strict=True)]
    offset = middle(rests)
    correlation = min(CORRELATION_MAX, max(0.0, _next_to_each_other([rest - offset for rest in rests])))
    deviation = sqrt(n * (n - 1) * (2 * n + 5) / 18 * (1 + correlation) / (1 - correlation))
    count = len(slopes)
    low = max(0, floor((count - Z90 * deviation) / 2) - 1)
    high = min(count - 1, ceil((count + Z90 * deviation) / 2))
    return Slope(per_s, slopes[low], slopes[high], offset + per_s * (times[-1] - times[0]))


def _next_to_each_other(rests: Sequence[float]) -> float:
    """The correlation of each with the next."""
    whole = sum(rest * rest for rest in rests)
    return sum(a * b for a, b in pairwise(rests)) / whole if whole > 0 else 0.0


def deepest_fall(values: Iterable[float]) -> float:
    """The most that was ever lost of a height."""
    highest, deepest = -inf, 0.0
    for value in values:
        highest = max(highest, value)
        deepest = max(deepest, highest - value)
    return deepest


def falls(values: Iterable[float], size: float) -> int:
    """How often so much was lost of a height."""
    count, highest = 0, -inf
    for value in values:
        highest = max(highest, value)
        if highest - value >= size:
            count, highest = count + 1, value
    return count


def middle(values: Iterable[float]) -> float:
    """The median; 0 of nothing."""
    ordered = sorted(values)
    return _middle(ordered) if ordered else 0.0


def _middle(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


# --- what is known of one thing ------------------------------------------------------------------------------------


class Reading(NamedTuple):
    """How full something is: `used` of `limit`, in the thing's own unit.

    `what` is the kind of thing, `name` which one of them. `owner` stands for whose it is: when that changes, it is
    another one, and what was read before says nothing of it. `empties_at` is when it will be empty again by itself, in
    seconds since the epoch; 0 where it never is.
    """

    what: str
    name: str
    used: float
    limit: float
    owner: str = ""
    empties_at: float = 0.0

    @property
    def key(self) -> tuple[str, str]:
        return self.what, self.name


class Outlook(NamedTuple):
    """How one thing will go on. Slopes are per hour, in the thing's own unit; `full_s` is in how many seconds it is
    full, `soonest_s` and `latest_s` what the interval makes of that: inf for never. `looked_s` is how far back was
    looked; 0 where too little is known to say anything. `warned_since` is 0 while there is no warning."""

    what: str
    name: str
    used: float
    limit: float
    per_h: float = 0.0
    low_per_h: float = 0.0
    high_per_h: float = 0.0
    full_s: float = inf
    soonest_s: float = inf
    latest_s: float = inf
    looked_s: float = 0.0
    warned_since: float = 0.0

    @property
    def share(self) -> float:
        return self.used / self.limit if self.limit > 0 else 0.0


@dataclass(slots=True)
class _Grid:
    """Points that stand `step_s` apart."""

    step_s: float
    points_max: int
    points: deque[tuple[float, float]] = field(init=False)
    slot: int = -1
    open: list[float] = field(default_factory=list[float])

    def __post_init__(self) -> None:
        self.points = deque(maxlen=self.points_max)

    def add(self, now: float, value: float) -> bool:
        """One more value; whether a stretch has ended with it, and `open` is to be closed first."""
        slot = int(now // self.step_s)
        if self.slot not in (-1, slot):
            return True
        self.slot = slot
        self.open.append(value)
        return False

    def close(self, value: float) -> tuple[float, float]:
        """End the stretch with this as its value; the point that comes of it."""
        point = ((self.slot + 1) * self.step_s, value)
        self.points.append(point)
        self.slot = -1
        self.open.clear()
        return point

    def clear(self) -> None:
        self.points.clear()
        self.open.clear()
        self.slot = -1


class Series:
    """What was read of one thing."""

    __slots__ = ("coarse", "fine", "hours", "last", "levels", "seen_at", "warned_since", "was_wrong_at")

    def __init__(self, reading: Reading) -> None:
        self.last = reading
        self.seen_at = 0.0
        self.warned_since = 0.0
        self.was_wrong_at = 0.0
        self.fine = _Grid(FINE_S, POINTS_MAX)
        self.coarse = _Grid(COARSE_S, POINTS_MAX)
        self.levels = _Grid(LEVEL_S, LEVELS_MAX)
        self.hours = _Grid(HOUR_S, HOURS_MAX)

    def add(self, now: float, reading: Reading) -> None:
        """One more reading; one of another owner, or from before the last, begins anew; so does what was emptied."""
        if reading.owner != self.last.owner or now < self.seen_at - FINE_S or self._was_emptied(now, reading):
            self._begin_anew()
        self.last, self.seen_at = reading, now
        if self.fine.add(now, reading.used):
            at, least = self.fine.close(min(self.fine.open))
            self.fine.add(now, reading.used)
            within = at - FINE_S
            if self.coarse.add(within, least):
                self.coarse.close(min(self.coarse.open))
                self.coarse.add(within, least)
            if self.levels.add(within, least):
                self._level(*self.levels.close(middle(self.levels.open)))
                self.levels.add(within, least)

    def _level(self, at: float, level: float) -> None:
        within = at - LEVEL_S
        if self.hours.add(within, level):
            self.hours.close(max(self.hours.open))
            self.hours.add(within, level)

    @property
    def _grids(self) -> tuple[_Grid, ...]:
        return self.fine, self.coarse, self.levels, self.hours

    def _was_emptied(self, now: float, reading: Reading) -> bool:
        """Whether its window has ended: how far it was spent, and how fast, says nothing of the next one."""
        if not self.last.empties_at:
            return False
        return now >= self.last.empties_at or 2 * reading.used < self.last.used

    def _begin_anew(self) -> None:
        for grid in self._grids:
            grid.clear()
        self.warned_since = self.was_wrong_at = 0.0

    # --- what will become of it ------------------------------------------------------------------------------------

    def look(self, now: float) -> Outlook:
        """How it will go on, and whether that is worth a warning."""
        reading = self.last
        found = Outlook(reading.what, reading.name, reading.used, reading.limit)
        is_wrong = self._is_nearly_full(reading)
        spans = [(span_s, points) for span_s, step_s in SPANS if (points := self._within(now, span_s, step_s))]
        for number, (span_s, points) in enumerate(spans, 1):
            # the longest is shown in any case; the others only where they could mean a warning
            if number < len(spans) and not _may_warn(reading.limit, points):
                continue
            found = _outlook(reading, points, span_s)
            if self._warns(now, found, points):
                is_wrong = True
                break
        if is_wrong:
            self.was_wrong_at = now
            self.warned_since = self.warned_since or now
        elif self.warned_since and now - self.was_wrong_at >= HOLD_S:
            self.warned_since = 0.0
        return found._replace(warned_since=self.warned_since)

    def _is_nearly_full(self, reading: Reading) -> bool:
        """What is full already has no slope any more."""
        if reading.limit <= 0 or reading.empties_at or len(self.fine.points) < LEVEL_S / FINE_S:
            return False
        lately = middle(value for _, value in list(self.fine.points)[-int(LEVEL_S / FINE_S) :])
        return lately >= NEARLY_FULL * reading.limit

    def _within(self, now: float, span_s: float, step_s: float) -> list[tuple[float, float]] | None:
        """The points of a span, or None where there are too few."""
        grid = self.fine if step_s == FINE_S else self.coarse
        points = [point for point in grid.points if point[0] > now - span_s - step_s]
        if len(points) < max(POINTS_MIN, FULL_SHARE * span_s / step_s):
            return None
        return points if points[-1][0] - points[0][0] >= FULL_SHARE * span_s - step_s else None

    def _warns(self, now: float, outlook: Outlook, points: Sequence[tuple[float, float]]) -> bool:
        if outlook.latest_s > min(HORIZON_S, REACH * outlook.looked_s):
            return False
        empties_at = self.last.empties_at
        if empties_at:
            # it fills up anew each time, and that is no news; that it will be full too soon is
            return now + outlook.latest_s < empties_at
        before = [value for at, value in self.levels.points if at <= points[0][0]]
        if len(before) * LEVEL_S < FULL_SHARE * outlook.looked_s:
            # who has not watched for as long before does not know what is usual
            return False
        before = [value for at, value in self.hours.points if at <= self.levels.points[0][0]] + before
        deepest = deepest_fall(before)
        if deepest > 0 and falls((value for _, value in points), FALL_SHARE * deepest) >= FALLS_MIN:
            return True
        highest = max(before)
        lately = middle(value for _, value in list(self.fine.points)[-int(LEVEL_S / FINE_S) :])
        return lately > highest + max(NEW_GROUND * (self.last.limit - highest), FALL_SHARE * deepest)

    # --- kept over a restart ---------------------------------------------------------------------------------------

    def kept(self) -> Kept:
        """As plain values; of the stretches that have not ended nothing is kept."""
        grids = [list(grid.points) for grid in self._grids]
        return Kept(self.last, self.seen_at, self.warned_since, self.was_wrong_at, grids)

    @classmethod
    def of(cls, kept: Kept) -> Series:
        """As it was kept. Raises ValueError for what can't be one."""
        series = cls(kept.reading)
        series.seen_at, series.warned_since, series.was_wrong_at = kept.seen_at, kept.warned_since, kept.was_wrong_at
        for grid, points in zip(series._grids, kept.grids, strict=True):
            if any(b[0] <= a[0] for a, b in pairwise(points)):
                raise ValueError("points out of order")
            grid.points.extend(points[-grid.points_max :])
        return series


class Kept(NamedTuple):
    """A series as it stands in a file."""

    reading: Reading
    seen_at: float
    warned_since: float
    was_wrong_at: float
    grids: list[list[tuple[float, float]]]


def _outlook(reading: Reading, points: Sequence[tuple[float, float]], span_s: float) -> Outlook:
    slope = theil_sen([at for at, _ in points], [value for _, value in points])
    return Outlook(
        reading.what,
        reading.name,
        reading.used,
        reading.limit,
        slope.per_s * HOUR_S,
        slope.low_per_s * HOUR_S,
        slope.high_per_s * HOUR_S,
        _until_full(reading.limit, slope.level, slope.per_s),
        _until_full(reading.limit, slope.level, slope.high_per_s),
        _until_full(reading.limit, slope.level, slope.low_per_s),
        span_s,
    )


def _may_warn(limit: float, points: Sequence[tuple[float, float]]) -> bool:
    """Whether so much as a line from the least to the last would be full within reach."""
    last = points[-1][1]
    return last - min(value for _, value in points) >= (limit - last) / REACH


def _until_full(limit: float, level: float, per_s: float) -> float:
    if level >= limit:
        return 0.0
    return (limit - level) / per_s if per_s > 0 else inf


# --- all of them ---------------------------------------------------------------------------------------------------


class Forecasts:
    """Everything that may fill up. Times are seconds since the epoch, since a forecast outlives its process."""

    __slots__ = ("dropped", "series")

    def __init__(self) -> None:
        self.series: dict[tuple[str, str], Series] = {}
        self.dropped = 0
        """Readings of more things than are watched."""

    def add(self, now: float, readings: Iterable[Reading]) -> None:
        """What was read just now. What has not been read for two days is forgotten."""
        for reading in readings:
            series = self.series.get(reading.key)
            if series is None:
                if len(self.series) >= SERIES_MAX:
                    self.dropped += 1
                    continue
                series = self.series[reading.key] = Series(reading)
            series.add(now, reading)
        for key in [key for key, series in self.series.items() if now - series.seen_at > FORGOTTEN_S]:
            del self.series[key]

    def kept(self) -> list[Kept]:
        """As plain values."""
        return [series.kept() for series in self.series.values()]

    def recall(self, kept: Iterable[Kept]) -> None:
        """Go on with these. Raises ValueError for what can't be any, and has taken none of them then."""
        found = [Series.of(one) for one in kept]
        self.series.update({series.last.key: series for series in found[:SERIES_MAX]})


# --- what to do about it -------------------------------------------------------------------------------------------


class Advice(NamedTuple):
    """What a thing is called, in what it is counted, what happens when it is full, and what to do before.

    What does no harm when it is full is `told` all the same, and never warned of."""

    words: str
    unit: str
    when_full: str
    actions: tuple[str, ...]
    warns: bool = True


ADVICE: Mapping[str, Advice] = {
    "memory": Advice(
        "memory",
        "bytes",
        "the kernel kills the process",
        (
            "restart the worker whose own memory grows the fastest: its neighbours answer meanwhile",
            "give caches less (`cache.bytes_max`, `likeness.bytes_max`), or the container more",
            "note since when it grows: what was changed just before is the likeliest reason",
        ),
    ),
    "process_memory": Advice(
        "memory of one process",
        "bytes",
        "the kernel kills the process",
        ("restart this worker: its neighbours answer meanwhile",),
        # the sum is what is warned of; this shows whose it is
        warns=False,
    ),
    "disk": Advice(
        "disk of the state folder",
        "bytes",
        "snapshots, journals and copies of collections can't be written any more",
        (
            "make room on the file system that holds the state folder, or move it (`--state`)",
            "remove local collections that no route names: `understudy index list` shows them",
        ),
    ),
    "inodes": Advice(
        "files of the state folder's file system",
        "files",
        "no new file can be made, whatever room is left",
        ("remove small files from the file system that holds the state folder, or move it (`--state`)",),
    ),
    "index": Advice(
        "memory for local collections",
        "bytes",
        "writes to local collections are refused, and copies fall behind",
        (
            "raise `local.collections_bytes_max`, where the machine has the memory",
            "mirror fewer collections, or drop those that no route names",
        ),
    ),
    "cache": Advice(
        "a route's cache",
        "bytes",
        "what was used the longest ago is dropped, as it should be",
        ("raise `cache.bytes_max`, where the share of hits falls",),
        warns=False,
    ),
    "fds": Advice(
        "open files and connections of a process",
        "descriptors",
        "no connection can be accepted or opened any more",
        (
            "raise the limit (`ulimit -n`, LimitNOFILE)",
            "lower `limits.connections_max` and the tiers' `connections_max`, so that they fit under it",
        ),
    ),
    "callers": Advice(
        "connections from callers",
        "connections",
        "new connections are refused",
        ("raise `server.limits.connections_max`, or add workers", "see which callers never close their connections"),
    ),
    "pool": Advice(
        "connections to an endpoint",
        "connections",
        "calls wait for one that comes back, and are refused when none does",
        ("raise the tier's `connections_max`", "see whether the endpoint has become slower: then more would not help"),
    ),
    "quota": Advice(
        "a provider's quota",
        "as the provider counts",
        "calls are refused until the quota is filled up again",
        (
            "ask the provider for more, or send part of the calls to another endpoint (`endpoints`, `split`)",
            "turn the cache or likeness on for routes that ask the same again and again",
        ),
    ),
}
"""What may fill up, by `Reading.what`."""
