"""Time to exhaustion: leaks are seen in time, saws and days are not leaks, and a restart forgets nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import msgspec
import pytest

from understudy.policies.forecast import (
    ADVICE,
    DAY_S,
    HOUR_S,
    SERIES_MAX,
    Forecasts,
    Kept,
    Outlook,
    Reading,
    Series,
    theil_sen,
)

BEGIN = 1_800_000_000.0
STEP_S, LOOK_S = 30.0, 600.0


def watched(
    level: Callable[[float], float],
    hours: float,
    *,
    what: str = "memory",
    empties_at: float = 0.0,
    look_s: float = LOOK_S,
) -> list[tuple[float, Outlook]]:
    """What is seen of something whose level, in percent, is a function of hours: (hours, outlook) now and then."""
    series: Series | None = None
    seen: list[tuple[float, Outlook]] = []
    for step in range(int(hours * HOUR_S / STEP_S)):
        now = BEGIN + step * STEP_S
        reading = Reading(what, "one", level(step * STEP_S / HOUR_S), 100.0, empties_at=empties_at)
        series = series or Series(reading)
        series.add(now, reading)
        if step % (look_s / STEP_S) == look_s / STEP_S - 1:
            seen.append((step * STEP_S / HOUR_S, series.look(now)))
    return seen


def first_warning(seen: list[tuple[float, Outlook]]) -> tuple[float, Outlook] | None:
    return next(((hours, outlook) for hours, outlook in seen if outlook.warned_since), None)


def noisy(seed: int, spread: float = 0.3) -> Callable[[], float]:
    dice = random.Random(seed)
    return lambda: dice.gauss(0, spread)


def test_a_line_is_found_among_wrong_points_and_its_interval_holds_the_truth():
    noise = noisy(1, 1.0)
    times = [60.0 * n for n in range(80)]
    values = [10 + 0.01 * at + noise() + (500 if n % 7 == 3 else 0) for n, at in enumerate(times)]
    slope = theil_sen(times, values)
    assert slope.low_per_s <= 0.01 <= slope.high_per_s
    assert slope.per_s == pytest.approx(0.01, rel=0.2)
    assert slope.level == pytest.approx(10 + 0.01 * times[-1], abs=3)


def test_nine_intervals_in_ten_hold_the_true_slope_also_where_points_hang_together():
    held = {0.0: 0, 0.7: 0}
    for correlation in held:
        for seed in range(100):
            dice, rest, values = random.Random(seed), 0.0, list[float]()
            for n in range(60):
                rest = correlation * rest + dice.gauss(0, 1)
                values.append(0.05 * n + rest)
            slope = theil_sen([float(n) for n in range(60)], values)
            held[correlation] += slope.low_per_s <= 0.05 <= slope.high_per_s
    assert held[0.0] >= 85
    assert held[0.7] >= 80


@pytest.mark.parametrize(("began", "flat_h"), [(20, 0), (40, 0), (50, 0), (60, 0), (20, 8), (40, 8), (60, 8)])
def test_a_leak_of_two_percent_an_hour_is_warned_of_half_a_day_before(began: int, flat_h: int):
    noise = noisy(began)
    full = flat_h + (100 - began) / 2
    warning = first_warning(watched(lambda h: began + 2 * max(0.0, h - flat_h) + noise(), full))
    assert warning is not None
    hours, outlook = warning
    assert 12 <= full - hours <= 24.5
    assert outlook.soonest_s <= outlook.full_s <= outlook.latest_s <= DAY_S
    assert outlook.full_s == pytest.approx((full - hours) * HOUR_S, rel=0.2)


def test_a_leak_that_fills_up_within_hours_is_warned_of_as_soon_as_there_is_half_an_hour_of_it():
    noise = noisy(2)
    warning = first_warning(watched(lambda h: 30 + 25 * max(0.0, h - 4) + noise(), 6.5))
    assert warning is not None
    assert warning[0] <= 4.8
    assert warning[1].looked_s == 1800


@pytest.mark.parametrize("period_h", [20 / 3600, 61 / 3600, 0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("tooth", [5, 20, 45])
def test_memory_that_is_collected_now_and_then_is_never_warned_of(period_h: float, tooth: int):
    noise = noisy(tooth)
    seen = watched(lambda h: 45 + tooth * ((h / period_h) % 1) + noise(), 10)
    assert first_warning(seen) is None


@pytest.mark.parametrize("period_h", [2.0, 5.0, 9.0])
def test_long_teeth_are_never_warned_of_once_one_has_been_seen(period_h: float):
    noise = noisy(3)
    seen = watched(lambda h: 45 + 45 * ((h / period_h) % 1) + noise(), 4 * period_h)
    assert not [hours for hours, outlook in seen if outlook.warned_since and hours > 1.2 * period_h]


def test_teeth_of_less_than_a_quarter_of_what_is_free_are_not_even_warned_of_the_first_time():
    for period_h in (2.0, 4.0, 8.0):
        assert first_warning(watched(lambda h, p=period_h: 45 + 11 * ((h / p) % 1), period_h)) is None


def test_a_saw_whose_teeth_grow_longer_is_a_leak_all_the_same():
    noise = noisy(4)
    warning = first_warning(watched(lambda h: min(100, 20 + 2 * h + 15 * ((h / 0.2) % 1) + noise()), 32))
    assert warning is not None
    assert 8 <= warning[0] <= 22


def test_a_working_day_is_no_leak():
    noise = noisy(5, 2.0)

    def busy(h: float) -> float:
        weekday = 0.4 if int(h // 24) % 7 >= 5 else 1.0
        return max(0.0, (40 + 35 * math.sin((h - 8) / 24 * 2 * math.pi)) * weekday + noise())

    seen = watched(busy, 9 * 24, what="pool", look_s=HOUR_S)
    assert not [hours for hours, outlook in seen if outlook.warned_since and hours > 24]


def test_what_is_nearly_full_is_warned_of_though_it_grows_no_more_and_for_a_while_after():
    seen = watched(lambda h: 98.0 if h < 1 else 50.0, 2)
    warned = [hours for hours, outlook in seen if outlook.warned_since]
    assert 0 < warned[0] < 0.5
    assert 1.1 <= warned[-1] <= 1.5


def test_a_quota_is_warned_of_only_where_it_is_spent_before_it_fills_up_again():
    too_fast = watched(lambda h: 30 * h, 2, what="quota", empties_at=BEGIN + 6 * HOUR_S)
    in_time = watched(lambda h: 30 * h, 2, what="quota", empties_at=BEGIN + 2.5 * HOUR_S)
    assert first_warning(too_fast) is not None
    assert first_warning(in_time) is None


@pytest.mark.parametrize("early_s", [0.0, 40.0])
@pytest.mark.parametrize(("spent", "is_warned"), [(0.6, False), (0.9, False), (1.3, True)])
def test_a_quota_that_fills_up_each_hour_is_warned_of_where_an_hour_spends_more_than_all_of_it(
    spent: float, is_warned: bool, early_s: float
):
    """`early_s` is how much sooner than was said it is filled up again."""
    series = Series(Reading("quota", "one", 0, 100))
    warned: list[float] = []
    for step in range(6 * 120):
        at, into = step * 30.0, (step * 30.0 + early_s) % HOUR_S
        used = min(100.0, 100 * spent * into / HOUR_S)
        series.add(BEGIN + at, Reading("quota", "one", used, 100, "", BEGIN + at - into + early_s + HOUR_S))
        if series.look(BEGIN + at).warned_since:
            warned.append(at)
    assert bool(warned) == is_warned
    assert len({int(at // HOUR_S) for at in warned}) in (0, 6)


def test_nothing_is_said_of_less_than_half_an_hour_or_of_fewer_than_sixty_points():
    assert all(outlook.looked_s == 0 for _, outlook in watched(lambda h: 90 + 10 * h, 0.49))
    seldom = Series(Reading("memory", "one", 0, 100))
    for n in range(40):
        seldom.add(BEGIN + 60 * n, Reading("memory", "one", 2.0 * n, 100))
    assert seldom.look(BEGIN + 2400).looked_s == 0


def test_another_process_begins_anew_and_so_does_a_clock_that_was_set_back():
    for owner, back_s in (("2", 0.0), ("1", 7200.0)):
        series = Series(Reading("memory", "one", 0, 100, "1"))
        for n in range(200):
            series.add(BEGIN + 30 * n, Reading("memory", "one", 0.4 * n, 100, "1"))
        assert series.look(BEGIN + 6000).looked_s > 0
        series.add(BEGIN + 6000 - back_s, Reading("memory", "one", 1, 100, owner))
        assert series.look(BEGIN + 6000 - back_s) == Outlook("memory", "one", 1, 100)


def test_a_restart_forgets_nothing():
    noise = noisy(6)
    forecasts = Forecasts()
    for n in range(600):
        forecasts.add(BEGIN + 30 * n, [Reading("disk", "state", 50 + 0.08 * n + noise(), 100)])
    now = BEGIN + 600 * 30
    said = [series.look(now) for series in forecasts.series.values()]
    assert said[0].warned_since
    again = Forecasts()
    again.recall(msgspec.json.decode(msgspec.json.encode(forecasts.kept()), type=list[Kept]))
    assert [series.look(now) for series in again.series.values()] == said


def test_no_more_is_watched_than_there_is_room_for_and_what_is_gone_is_forgotten():
    forecasts = Forecasts()
    forecasts.add(BEGIN, [Reading("pool", str(n), 1, 10) for n in range(SERIES_MAX + 5)])
    assert (len(forecasts.series), forecasts.dropped) == (SERIES_MAX, 5)
    forecasts.add(BEGIN + 2 * DAY_S + 60, [Reading("pool", "0", 1, 10)])
    assert list(forecasts.series) == [("pool", "0")]


def test_kept_points_that_can_not_be_any_are_refused_as_a_whole():
    whole = Kept(Reading("disk", "state", 1, 2), BEGIN, 0, 0, [[(1.0, 1.0), (2.0, 2.0)], [], [], []])
    for bad in (whole._replace(grids=[[], []]), whole._replace(grids=[[(2.0, 1.0), (1.0, 1.0)], [], [], []])):
        forecasts = Forecasts()
        with pytest.raises(ValueError, match=r"shorter|order"):
            forecasts.recall([whole, bad])
        assert not forecasts.series


def test_everything_that_may_fill_up_has_words_and_something_to_do():
    assert all(advice.words and advice.when_full and advice.actions for advice in ADVICE.values())
