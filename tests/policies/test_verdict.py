"""One word of many checks: quick for the worse, slow for the better, and never a flutter."""

from __future__ import annotations

import random

from understudy.policies.verdict import DWELL_S, FLIPS_S, Verdict

WRONG = ("embedding_drift",)


def test_nothing_is_known_before_the_first_check_and_one_that_is_well_suffices():
    verdict = Verdict(0.0)
    assert verdict.word == "unknown"
    assert verdict.checked(1.0) == "healthy"


def test_one_wrong_check_degrades_and_two_of_three_are_unhealthy():
    verdict = Verdict(0.0)
    verdict.checked(1.0)
    assert verdict.checked(2.0, WRONG) == "degraded"
    assert verdict.reasons == WRONG
    verdict.checked(3.0)
    assert verdict.checked(4.0, WRONG) == "unhealthy"
    assert verdict.since == 4.0


def test_it_takes_three_in_a_row_and_ten_seconds_to_be_healthy_again():
    verdict = Verdict(0.0)
    for now in (1.0, 2.0):
        verdict.checked(now, WRONG)
    assert [verdict.checked(2.0 + now) for now in (1, 2, 3)] == ["unhealthy"] * 3, "it has not dwelt"
    assert verdict.checked(2.0 + DWELL_S) == "healthy"
    assert verdict.reasons == ()
    verdict.checked(20.0, WRONG)
    assert [verdict.checked(40.0), verdict.checked(50.0), verdict.checked(60.0)] == ["degraded", "degraded", "healthy"]


def test_alternating_checks_never_change_it_more_than_once_a_minute():
    verdict = Verdict(0.0)
    verdict.checked(0.0)
    changes = [verdict.changes]
    for second in range(1, 3600):
        verdict.checked(float(second), WRONG if second % 2 else ())
        changes.append(verdict.changes)
    # the first minute brings it down by two steps, and down it stays
    assert max(changes[at + 60] - changes[at] for at in range(60, len(changes) - 60)) <= 1
    assert verdict.word in ("degraded", "unhealthy")


def test_more_than_four_changes_in_five_minutes_are_held_degraded_until_it_is_quiet_for_as_long():
    verdict = Verdict(0.0)
    now = 0.0
    while not verdict.flapping:
        for reasons in (WRONG, (), (), ()):
            now += DWELL_S
            verdict.checked(now, reasons)
        assert now < 600.0, "it flaps within the hour"
    assert verdict.word == "degraded"
    last_wrong = now
    while verdict.flapping:
        now += DWELL_S
        verdict.checked(now)
        assert now < last_wrong + 2 * FLIPS_S
    assert now - last_wrong > FLIPS_S / 2
    verdict.checked(now + DWELL_S)
    assert verdict.checked(now + 2 * DWELL_S) == "healthy"


def test_in_any_weather_it_is_unhealthy_only_after_two_wrong_of_three_and_healthy_only_after_none():
    dice = random.Random(3)
    for _ in range(200):
        verdict, seen, now = Verdict(0.0), list[bool](), 0.0
        share = dice.random()
        for _ in range(100):
            now += dice.expovariate(1 / 20)
            well = dice.random() > share
            seen.append(well)
            before = verdict.word
            word = verdict.checked(now, () if well else WRONG)
            if word == "unhealthy" and before != word:
                assert seen[-3:].count(False) >= 2
            if word == "healthy" and before in ("degraded", "unhealthy"):
                assert all(seen[-3:])
