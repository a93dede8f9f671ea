"""Budgets that are spent too fast are noticed, in time and with evidence; a quiet month wakes nobody."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.policies.objectives import (
    DAY_S,
    HOUR_S,
    MINUTE_S,
    Counts,
    Course,
    Finding,
    Objective,
    budget_left,
    burn,
    judged,
    objectives_of,
)

BEGIN = 1_800_000_000.0
AVAILABLE = Objective("availability", 1, 0.001)
LOOK_S = 10.0


class Calls:
    """Calls as they come: `per_s` of them, of which `bad` (a share, by the time since the beginning) go unanswered."""

    def __init__(self, per_s: float, bad: Callable[[float], float], seed: object = 0) -> None:
        self.course = Course()
        self.now = BEGIN
        self.seen = Counts()
        self._per_s = per_s
        self._bad = bad
        self._dice = random.Random(f"{seed}")
        self.course.look(self.now, self.seen)

    def go_on(self, step_s: float = LOOK_S) -> Finding | None:
        self.now += step_s
        calls = self._drawn(self._per_s * step_s)
        bad = self._drawn(calls * self._bad(self.now - BEGIN), at_most=calls)
        self.seen = self.seen.plus(Counts(calls, bad, bad, bad, bad))
        self.course.look(self.now, self.seen)
        return judged(self.course, self.now, AVAILABLE)

    def _drawn(self, mean: float, at_most: int | None = None) -> int:
        """So many on average, one more or less by chance."""
        whole = int(mean) + (self._dice.random() < mean % 1.0)
        return whole if at_most is None else min(whole, at_most)

    def until(self, at_s: float, step_s: float = LOOK_S) -> list[tuple[float, Finding | None]]:
        found: list[tuple[float, Finding | None]] = []
        while self.now - BEGIN < at_s:
            found.append((self.now + step_s - BEGIN, self.go_on(step_s)))
        return found


def firing(found: list[tuple[float, Finding | None]]) -> list[tuple[float, str]]:
    """When what was said changed, and to what; "" is silence."""
    changes: list[tuple[float, str]] = []
    for at_s, finding in found:
        severity = finding.severity if finding is not None else ""
        if severity != (changes[-1][1] if changes else ""):
            changes.append((at_s, severity))
    return changes


@pytest.mark.parametrize("before_s", [0.0, HOUR_S, DAY_S])
def test_an_outage_of_everything_at_ten_calls_a_second_is_critical_within_90_seconds(before_s: float):
    calls = Calls(10.0, lambda t: 1.0 if t > before_s else 0.0)
    assert firing(calls.until(before_s)) == []
    [(at_s, severity), *_] = firing(calls.until(before_s + 120))
    assert (severity, at_s - before_s <= 90.0) == ("critical", True)


@pytest.mark.parametrize("outage_s", [120.0, 600.0, HOUR_S, 8 * HOUR_S])
def test_it_is_over_within_five_minutes_of_its_end(outage_s: float):
    calls = Calls(10.0, lambda t: 1.0 if HOUR_S < t <= HOUR_S + outage_s else 0.0)
    found = firing(calls.until(HOUR_S + outage_s + HOUR_S))
    criticals = [at_s for at_s, severity in found if severity == "critical"]
    over = next(at_s for at_s, severity in found if at_s > criticals[0] and severity != "critical")
    assert len(criticals) == 1
    assert over - (HOUR_S + outage_s) <= 5 * MINUTE_S + 2 * LOOK_S


def test_two_in_a_thousand_for_three_days_is_a_ticket_and_never_a_page():
    calls = Calls(10.0, lambda _: 0.002)
    assert {severity for _, severity in firing(calls.until(3 * DAY_S, MINUTE_S))} == {"warning"}


def test_one_failure_among_twenty_calls_an_hour_is_no_incident():
    calls = Calls(20 / HOUR_S, lambda t: 1.0 if HOUR_S < t <= HOUR_S + 180 else 0.0)
    assert firing(calls.until(6 * HOUR_S)) == []
    assert calls.seen.unanswered >= 1


@pytest.mark.parametrize("per_s", [0.01, 0.1, 1.0, 20.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_quiet_month_wakes_nobody(per_s: float, seed: int):
    calls = Calls(per_s, lambda _: 0.0003, seed=(per_s, seed))
    assert firing(calls.until(30 * DAY_S, 5 * MINUTE_S)) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_slow_burn_is_one_incident_and_not_one_each_minute(seed: int):
    calls = Calls(2.0, lambda t: 0.01 if t > HOUR_S else 0.0, seed=seed)
    assert len(firing(calls.until(12 * HOUR_S, MINUTE_S))) <= 3


def test_a_restart_in_the_middle_neither_forgets_nor_tells_twice():
    calls = Calls(10.0, lambda t: 1.0 if t > HOUR_S else 0.0)
    calls.until(HOUR_S + 300)
    assert judged(calls.course, calls.now, AVAILABLE) is not None
    kept = json.loads(json.dumps(calls.course.kept()))
    calls.course = Course.of(kept["times"], kept["points"], kept["counts"])
    calls.seen = Counts()
    said = [finding is not None and finding.severity for _, finding in calls.until(HOUR_S + 900)]
    assert said == ["critical"] * len(said)
    assert calls.course.within(calls.now, HOUR_S).unanswered == pytest.approx(9000, abs=20)


def test_counts_that_fall_are_those_of_a_process_that_began_anew():
    course = Course()
    for at, total in enumerate((0, 100, 40, 50)):
        course.look(BEGIN + at, Counts(total))
    assert course.within(BEGIN + 3, HOUR_S).total == 150


def test_what_fails_altogether_meets_every_factor_that_could_not_be_met_otherwise():
    course = Course()
    generous = Objective("latency", 3, 0.15)
    for minute in range(30):
        course.look(BEGIN + 60 * minute, Counts(100 * minute, late=100 * minute))
    finding = judged(course, BEGIN + 60 * 29, generous)
    assert finding is not None
    assert (finding.severity, round(finding.burn, 2)) == ("critical", 6.67)


def test_what_nobody_called_burns_nothing_and_leaves_its_budget_whole():
    course = Course()
    assert judged(course, BEGIN, AVAILABLE) is None
    course.look(BEGIN, Counts())
    assert (burn(course, BEGIN, HOUR_S, AVAILABLE), budget_left(course, BEGIN, AVAILABLE)) == (0.0, 1.0)
    course.look(BEGIN + 60, Counts(10_000, unanswered=5))
    assert budget_left(course, BEGIN + 60, AVAILABLE) == pytest.approx(0.5)


def test_a_promise_of_nothing_is_no_objective():
    made = objectives_of({"availability": 0.0, "errors": 0.01, "latency": 1.0})
    assert [(one.name, one.budget) for one in made] == [("availability", 1e-6), ("errors", 0.01)]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0.0, 4000.0), st.integers(0, 500), st.floats(0.0, 1.0)), max_size=300),
    st.floats(60.0, 3 * DAY_S),
)
def test_windows_hold_what_happened_in_them_whenever_somebody_looked(
    steps: list[tuple[float, int, float]], window_s: float
):
    course, now, seen = Course(), BEGIN, Counts()
    course.look(now, seen)
    told: list[tuple[float, int]] = []
    for step_s, calls, share in steps:
        now += step_s
        seen = seen.plus(Counts(calls, int(calls * share)))
        told.append((now, calls))
        course.look(now, seen)
    # a window begins at the last point before it: a step earlier, or as much as nobody looked
    got = course.within(now, window_s).total
    assert sum(calls for at, calls in told if at > now - window_s) <= got
    assert got <= sum(calls for at, calls in told if at > now - window_s - 2 * HOUR_S - 4000.0)
    assert course.counts.total == seen.total
    assert len(course.times) <= 210
    assert course.times == sorted(course.times)
