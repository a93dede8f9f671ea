"""What is unusual for the hour: quiet weeks raise next to no flag, and what was done to them is found."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from understudy.policies.observe import SECONDS
from understudy.policies.rhythm import (
    DAY,
    KINDS,
    STRETCH_S,
    Kind,
    Rhythm,
    Stretch,
    percentile,
    shown,
    trend_of,
)

PEAK = 2000.0
"""Calls of five minutes at noon: seven a second."""

World = Callable[..., Stretch]


def route(seed: int) -> World:
    """A route with days, weekends, and weather: its load wanders by an eighth, its latency by a fifteenth."""
    dice = random.Random(seed)
    wander = [0.0, 0.0]

    def stretch(at: int, calls: float = 1.0, errors: float = 0.0, slower: float = 1.0) -> Stretch:
        wander[0] = 0.97 * wander[0] + dice.gauss(0, 0.03)
        wander[1] = 0.95 * wander[1] + dice.gauss(0, 0.02)
        day = 0.25 + 0.75 * max(0.0, math.sin((at / 12 % 24 - 6) / 24 * 2 * math.pi))
        usual = PEAK * day * (0.4 if at // DAY % 7 >= 5 else 1.0) * math.exp(wander[0]) * calls
        count = max(0, round(dice.gauss(usual, math.sqrt(usual))))
        share = 0.002 + errors
        failed = min(count, max(0, round(dice.gauss(count * share, math.sqrt(max(1e-9, count * share))))))
        slow = (1 + 0.4 * usual / PEAK) * math.exp(wander[1]) * slower
        spread = [dice.gauss(0, each / math.sqrt(max(1, count))) for each in (1.25, 2.2)]
        return Stretch(count, failed, 0.08 * slow * math.exp(spread[0]), 0.35 * slow * math.exp(spread[1]))

    return stretch


def add(rhythm: Rhythm, kind: Kind, at: int, stretch: Stretch) -> None:
    rhythm.add(at, stretch.value(kind), stretch.chance(kind), upward_only=kind != "calls")


def test_a_quiet_month_raises_next_to_no_flag():
    world = route(1)
    rhythms: dict[Kind, Rhythm] = {kind: Rhythm() for kind in KINDS}
    flags: list[tuple[Kind, float]] = []
    for at in range(30 * DAY):
        stretch = world(at)
        for kind, rhythm in rhythms.items():
            was = rhythm.since
            add(rhythm, kind, at, stretch)
            if rhythm.since and not was:
                flags.append((kind, at / DAY))
    assert len(flags) <= 4, flags


@pytest.mark.parametrize(
    ("kind", "done"),
    [
        ("calls", {"calls": 0.1}),
        ("calls", {"calls": 3.0}),
        ("errors", {"errors": 0.05}),
        ("p50", {"slower": 3.0}),
        ("p95", {"slower": 3.0}),
    ],
)
def test_an_hour_in_which_something_is_wrong_is_found_within_a_quarter_of_an_hour(kind: Kind, done: dict[str, float]):
    world, dice, rhythm = route(2), random.Random(3), Rhythm()
    begins, found, missed = 15 * DAY + dice.randrange(DAY - 24), list[float](), 0
    hit = False
    for at in range(26 * DAY):
        is_wrong = begins <= at < begins + 12
        add(rhythm, kind, at, world(at, **(done if is_wrong else {})))
        if is_wrong and rhythm.since and not hit:
            hit = True
            found.append((at - begins + 1) * STRETCH_S / 60)
        if at == begins + 12:
            missed += not hit
            hit, begins = False, (at // DAY + 1) * DAY + dice.randrange(DAY - 24)
    assert len(found) >= 0.8 * (len(found) + missed), (found, missed)
    assert sorted(found)[len(found) // 2] <= 15


def test_a_flag_goes_down_again_and_says_since_when_it_was_up():
    rhythm, world = Rhythm(), route(4)
    for at in range(16 * DAY):
        add(rhythm, "calls", at, world(at))
    for at in range(16 * DAY, 16 * DAY + 6):
        add(rhythm, "calls", at, Stretch(0, 0))
    assert rhythm.since == 16 * DAY * STRETCH_S
    assert shown("calls", rhythm.usual) > 100
    for at in range(16 * DAY + 6, 16 * DAY + 12):
        add(rhythm, "calls", at, world(at))
    assert rhythm.since == 0


def test_nothing_is_odd_before_a_week_has_been_seen():
    rhythm = Rhythm()
    for at in range(6 * DAY):
        add(rhythm, "calls", at, Stretch(100, 0))
    for at in range(6 * DAY, 6 * DAY + 12):
        add(rhythm, "calls", at, Stretch(100_000, 0))
    assert rhythm.since == 0
    assert rhythm.spreads == 0


def test_a_gap_is_not_known_and_a_clock_that_was_set_back_forgets_the_future():
    rhythm = Rhythm()
    for at in range(100):
        rhythm.add(at, 5.0, 1.0, upward_only=False)
    rhythm.add(150, 5.0, 1.0, upward_only=False)
    assert sum(map(math.isnan, rhythm.ring[100:150])) == 50
    rhythm.add(120, 5.0, 1.0, upward_only=False)
    assert math.isnan(rhythm.ring[150])
    rhythm.add(100 * DAY, 5.0, 1.0, upward_only=False)
    assert sum(not math.isnan(value) for value in rhythm.ring) == 1


@pytest.mark.parametrize(("growth", "direction"), [(0.002, "rising"), (-0.002, "falling"), (0.0, "steady")])
def test_latency_that_creeps_up_is_rising_by_so_much_an_hour(growth: float, direction: str):
    dice, rhythm = random.Random(5), Rhythm()
    for at in range(80):
        seconds = 0.2 * math.exp(growth * at + dice.gauss(0, 0.03))
        add(rhythm, "p95", at, Stretch(1000, 0, seconds / 3, seconds))
    trend = trend_of("chat", "p95", rhythm)
    assert trend is not None
    assert trend.direction == direction
    assert trend.now == pytest.approx(0.2 * math.exp(growth * 79), rel=0.1)
    assert trend.low_per_h <= 0.2 * math.exp(growth * 79) * (math.exp(12 * growth) - 1) <= trend.high_per_h
    assert trend_of("chat", "p95", Rhythm()) is None


def test_few_calls_say_nothing_of_shares_and_latencies():
    assert math.isnan(Stretch(5, 5, 1.0, 1.0).value("errors"))
    assert math.isnan(Stretch(5, 5, 1.0, 1.0).value("p95"))
    assert Stretch(5, 5).value("calls") > 0


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_percentile_lies_in_the_bucket_that_it_is_in(share: float):
    dice = random.Random(6)
    seconds = sorted(dice.lognormvariate(-1.5, 0.8) for _ in range(2000))
    counts = [0] * (len(SECONDS) + 1)
    for each in seconds:
        counts[next((at for at, bound in enumerate(SECONDS) if each <= bound), len(SECONDS))] += 1
    exact = seconds[int(share * 2000)]
    found = percentile(SECONDS, counts, share)
    low = max((bound for bound in SECONDS if bound < exact), default=0.0)
    assert low <= found <= next(bound for bound in SECONDS if bound >= exact)
    assert math.isnan(percentile(SECONDS, [0] * len(counts), share))
    assert percentile(SECONDS, [0] * len(SECONDS) + [3], share) == SECONDS[-1]
