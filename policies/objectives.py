"""Say how fast a route's error budgets are being spent, and when that is worth telling somebody.

    counts, now and then --> points: each minute for an hour, every five for six, each hour for three days
    burn over a window = share of bad calls in it / share that the objective allows

    critical   14.4 x over 1 h and 5 min, or 6 x over 6 h and 30 min
    warning     3 x over 1 d and 2 h, or 1 x over 3 d and 6 h
    and only on EVIDENCE: ten bad calls, in two different minutes; at ten calls an hour one failure is no incident
    over        when the short window is within its factor, or the last five minutes prove that it has stopped

"Answered" is not "answered by whom it should be": a sidecar hides an outage from callers, not from those who run it. So
what fallbacks answer is an objective of its own. Windows and factors are those of Google's SRE workbook, chapter 5; its
rules page for a single failure wherever there are fewer than 70 calls an hour, hence the evidence.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

Severity = Literal["critical", "warning"]

MINUTE_S, HOUR_S, DAY_S = 60.0, 3600.0, 86400.0
STEPS = ((HOUR_S, MINUTE_S), (6 * HOUR_S, 5 * MINUTE_S), (3 * DAY_S, HOUR_S))
"""(up to this age, a point so often): 205 points are all there ever are."""
BAD_MIN = 10
"""Bad calls in the long window below which nothing is an incident."""
STRETCHES_MIN = 2
BUDGET_MIN = 1e-6
"""Nobody can promise that nothing ever fails; a millionth is as good as that."""
CALM_S = 5 * MINUTE_S
CALM_EXPECTED_MIN = 5.0
"""So many bad calls would have been seen in CALM_S, had it gone on: none by chance is less than one in a hundred."""


class Rule(NamedTuple):
    """Burning `factor` times too fast over both windows is an incident of this severity."""

    severity: Severity
    factor: float
    long_s: float
    short_s: float


RULES = (
    Rule("critical", 14.4, HOUR_S, 5 * MINUTE_S),
    Rule("critical", 6.0, 6 * HOUR_S, 30 * MINUTE_S),
    Rule("warning", 3.0, DAY_S, 2 * HOUR_S),
    Rule("warning", 1.0, 3 * DAY_S, 6 * HOUR_S),
)


class Counts(NamedTuple):
    """A route's calls since its process began: all of them, and those that are bad by each objective.

    `unanswered` no tier answered; `errors` got a 5xx, or none at all; `late` came after the time allowed, or never;
    `fallback` were answered by another tier than the first, or by none.
    """

    total: int = 0
    unanswered: int = 0
    errors: int = 0
    late: int = 0
    fallback: int = 0

    def less(self, other: Counts) -> Counts:
        return Counts(*(a - b for a, b in zip(self, other, strict=True)))

    def plus(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


class Course:
    """One route's calls over three days: its counts now, and as they were, to be subtracted.

    Times are seconds since the epoch, since a course outlives its process.
    """

    __slots__ = ("counts", "points", "seen", "times")

    def __init__(self) -> None:
        self.counts = Counts()
        self.seen = Counts()
        self.times: list[float] = []
        self.points: list[Counts] = []

    def look(self, now: float, seen: Counts) -> None:
        """What has been counted so far. Counts that have fallen are those of a process that began anew."""
        since = seen if any(a < b for a, b in zip(seen, self.seen, strict=True)) else seen.less(self.seen)
        self.seen = seen
        if self.times and now < self.times[-1]:
            # the clock was set back: what lies in the future is nobody's past
            kept = bisect_right(self.times, now)
            del self.times[kept:], self.points[kept:]
        if not self.times:
            self._point(now)
        self.counts = self.counts.plus(since)
        if now - self.times[-1] >= MINUTE_S:
            self._point(now)
            self._thin(now)

    def _point(self, now: float) -> None:
        self.times.append(now)
        self.points.append(self.counts)

    def within(self, now: float, window_s: float) -> Counts:
        """What was counted in the window that ends now; of what has not been watched for so long, all there is."""
        if not self.times:
            return Counts()
        at = max(0, bisect_right(self.times, now - window_s + 1e-6) - 1)
        return self.counts.less(self.points[at])

    def stretches(self, now: float, window_s: float, which: int) -> int:
        """In how many of the window's stretches, a minute at least each, something bad of this kind happened."""
        at = max(0, bisect_right(self.times, now - window_s + 1e-6) - 1)
        walked = [*self.points[at:], self.counts]
        return sum(after[which] > before[which] for before, after in pairwise(walked))

    def _thin(self, now: float) -> None:
        """Let go of points that stand closer than their age asks for."""
        times: list[float] = []
        points: list[Counts] = []
        for at, point in zip(reversed(self.times), reversed(self.points), strict=True):
            step_s = next((step_s for age_s, step_s in STEPS if now - at <= age_s + step_s), 0.0)
            if not step_s:
                break
            if times and _slot(at, step_s) == _slot(times[-1], step_s) and step_s > MINUTE_S:
                # of one slot the oldest stands for it
                times.pop()
                points.pop()
            times.append(at)
            points.append(point)
        self.times, self.points = times[::-1], points[::-1]

    # --- kept over a restart ---------------------------------------------------------------------------------------

    def kept(self) -> dict[str, object]:
        """As values for JSON."""
        return {"times": self.times, "points": [list(point) for point in self.points], "counts": list(self.counts)}

    @classmethod
    def of(cls, times: Sequence[float], points: Sequence[Sequence[int]], counts: Sequence[int]) -> Course:
        """As it was kept. Raises ValueError for what can't be one; the counts of its process began at nothing."""
        course = cls()
        course.times = [float(at) for at in times]
        course.points = [_counts(point) for point in points]
        course.counts = _counts(counts)
        if len(course.times) != len(course.points) or course.times != sorted(course.times):
            raise ValueError("points without times, or out of order")
        return course


def _counts(numbers: Sequence[int]) -> Counts:
    if len(numbers) != len(Counts._fields):
        raise ValueError(f"{len(numbers)} counts, not {len(Counts._fields)}")
    return Counts(*map(int, numbers))


def _slot(at: float, step_s: float) -> int:
    return int(at // step_s)


RETRIEVAL = "retrieval"
"""The objective of searches that are compared with a copy: its counts are `compared`, in a course of its own."""
WRONG = 2


def compared(pairs: int, agreement: float) -> Counts:
    """The counts of so many searches that were compared, whose agreements, from 0 to 1 each, add up to this: half an
    agreement is half a wrong search."""
    return Counts(pairs, errors=max(0, int(pairs - agreement + 1e-6)))


class Objective(NamedTuple):
    """What is promised of a route's calls: at most the share `budget` of them is bad, as the count `which` has it."""

    name: str
    which: int
    budget: float


class Finding(NamedTuple):
    """A budget is being spent too fast: how badly, by which rule, how many times too fast, with how many calls."""

    objective: str
    severity: Severity
    rule: Rule
    burn: float
    bad: int
    total: int


def burn(course: Course, now: float, window_s: float, objective: Objective) -> float:
    """How many times too fast the budget was spent in this window; 0 where nobody called."""
    counts = course.within(now, window_s)
    return counts[objective.which] / counts.total / objective.budget if counts.total else 0.0


def judged(course: Course, now: float, objective: Objective, rules: Sequence[Rule] = RULES) -> Finding | None:
    """The worst that is wrong by this objective, or None."""
    for rule in rules:
        # what fails altogether burns no faster than this: a factor beyond it would never be met
        factor = min(rule.factor, 0.9 / objective.budget)
        long = course.within(now, rule.long_s)
        bad = long[objective.which]
        if bad < BAD_MIN or bad / long.total < factor * objective.budget:
            continue
        if burn(course, now, rule.short_s, objective) < factor or _is_over(course, now, objective, factor):
            continue
        if course.stretches(now, rule.long_s, objective.which) < STRETCHES_MIN:
            continue
        return Finding(objective.name, rule.severity, rule, bad / long.total / objective.budget, bad, long.total)
    return None


def _is_over(course: Course, now: float, objective: Objective, factor: float) -> bool:
    """Whether the last minutes prove that it burns no more: there were calls enough to show it."""
    lately = course.within(now, CALM_S)
    if lately.total * objective.budget * factor < CALM_EXPECTED_MIN:
        return False
    return lately[objective.which] <= lately.total * objective.budget


def budget_left(course: Course, now: float, objective: Objective) -> float:
    """The share of three days' budget that is left: 1 when nothing was bad, below 0 when more was than is allowed."""
    counts = course.within(now, 3 * DAY_S)
    allowed = counts.total * objective.budget
    return 1.0 - counts[objective.which] / allowed if allowed else 1.0


def objectives_of(budgets: Mapping[str, float]) -> list[Objective]:
    """The objectives with these budgets; where all calls may be bad, nothing is promised."""
    which = {"availability": 1, "errors": 2, "latency": 3, "primary": 4, RETRIEVAL: WRONG}
    return [Objective(name, which[name], max(BUDGET_MIN, budget)) for name, budget in budgets.items() if budget < 1]
