"""One word of all that is known: quick for the worse, slow for the better, and never a flutter."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as some

from understudy.policies.breaker import Breaker
from understudy.policies.health import BREAKER, GATHER_S, UNASKED_S, Guarding, Health, of_breakers, strain
from understudy.policies.verdict import DWELL_S, FLIPS_MAX, FLIPS_S
from understudy.proxy.settings.settings import Breaker as BreakerRules

NAME = "vector_database:qdrant:6333"
WRONG = "transport: connect_refused"
LOOK_S, HARD_S, MONTH_S = 0.25, 5.0, 30 * 86_400.0
WELL_RUN = 60
"""Calls in a row that were well, after which nothing is left of what was before."""


def checked(health: Health, now: float, *results: bool, every_s: float = 2.0) -> float:
    """So many checks, one after another; when the last one was."""
    for result in results:
        now += every_s
        health.checked(now, "transport", "" if result else WRONG)
    return now


def test_nothing_is_known_before_the_first_evidence_and_one_check_that_passes_suffices():
    health = Health(NAME, 0.0)
    assert health.diagnosis.word == "unknown"
    checked(health, 0.0, True)
    assert health.diagnosis[:3] == (NAME, "healthy", "")


def test_two_failures_of_three_make_it_unhealthy_at_once_and_callers_are_sent_elsewhere():
    health = Health(NAME, 0.0)
    now = checked(health, 0.0, True, False)
    assert (health.word, health.reason, health.passes_over) == ("degraded", WRONG, False)
    now = checked(health, now, True, False)
    assert (health.word, health.since, health.passes_over) == ("unhealthy", now, True)
    assert health.diagnosis.level == "transport"


def test_three_successes_make_it_healthy_though_not_before_it_has_dwelt_for_ten_seconds():
    health = Health(NAME, 0.0)
    down_at = checked(health, 0.0, False, False)
    now = checked(health, down_at, True, True, True, every_s=1.0)
    assert (health.word, health.passes_over) == ("unhealthy", True)
    now = checked(health, now, True, every_s=down_at + DWELL_S - now)
    assert (health.word, health.reason, health.passes_over) == ("healthy", "", False)


def test_what_has_been_wrong_is_looked_at_again_as_time_goes_by_without_another_check():
    health = Health(NAME, 0.0)
    down_at = checked(health, 0.0, False, False)
    checked(health, down_at, True, True, True, every_s=0.1)
    assert health.settle(down_at + DWELL_S - 0.01) == "unhealthy"
    assert health.settle(down_at + DWELL_S) == "healthy"


@pytest.mark.parametrize("every_s", [0.25, 1.0, 2.0, 5.0, 9.0, 20.0, 45.0])
def test_alternating_checks_never_change_it_more_than_once_a_minute(every_s: float):
    health, now, changed = Health(NAME, 0.0), 0.0, list[float]()
    for turn in range(2000):
        before = health.word == "unhealthy"
        now = checked(health, now, turn % 2 == 0, every_s=every_s)
        if (health.word == "unhealthy") != before:
            changed.append(now)
    assert all(after - before >= 60.0 for before, after in pairwise(changed))


def test_more_than_four_changes_in_five_minutes_are_flapping_which_is_held_degraded_until_it_is_quiet_for_as_long():
    health, now, seen = Health(NAME, 0.0), 0.0, list[str]()
    while not health.flapping:
        now = checked(health, now, False, False, True, True, True, True, True, True, every_s=2.0)
        seen.append(health.word)
        assert len(seen) <= FLIPS_MAX
    for _ in range(40):
        now = checked(health, now, False, False, True, True, True, True, True, True, every_s=2.0)
        assert health.word == "degraded"
        assert not health.passes_over
    last = now
    while health.flapping:
        now = checked(health, now, True)
        assert now <= last + FLIPS_S + 2.0
    now = checked(health, now, True)
    assert health.word == "healthy"


def test_what_stays_down_while_it_flaps_is_unhealthy_once_it_has_been_so_for_five_minutes():
    health, now = Health(NAME, 0.0), 0.0
    while not health.flapping:
        now = checked(health, now, False, False, True, True, True, True, True, True)
    began = now
    while health.word == "degraded":
        now = checked(health, now, False)
        assert now < began + FLIPS_S + 10.0
    assert health.word == "unhealthy"


@given(
    some.lists(
        some.tuples(
            some.floats(0.05, 40.0),
            some.sampled_from(["check", "live", "golden", "breaker", "time"]),
            some.booleans(),
        ),
        max_size=200,
    )
)
def test_in_any_weather_its_word_rests_on_evidence_and_changes_to_or_from_unhealthy_are_few(
    story: list[tuple[float, str, bool]],
):
    health, now = Health(NAME, 0.0), 0.0
    crossed: list[float] = []
    for wait_s, what, well in story:
        now += wait_s
        before, since = health.word, health.since
        if what == "check":
            health.checked(now, "protocol", "" if well else "protocol: status_503")
        elif what == "live":
            health.lived(now, 4, 0 if well else 3)
        elif what == "golden":
            health.hears(now, "watch", "healthy" if well else "unhealthy", "" if well else "embedding_drift")
        elif what == "breaker":
            health.hears(now, BREAKER, *of_breakers([Guarding(not well, 0.0, 0, "5 failures in a row")]))
        else:
            health.settle(now)
        if before == "unhealthy" and health.word != "unhealthy":
            assert now - since >= DWELL_S, "it had not dwelt"
        if (before == "unhealthy") != (health.word == "unhealthy"):
            crossed.append(now)
        if health.passes_over:
            assert health.word == "unhealthy"
        if health.word == "healthy":
            assert (health.reason, health.passes_over, health.flapping) == ("", False, False)
            assert all(one.word in ("healthy", "unknown") for one in health.told.values())
        elif health.word != "unknown":
            assert health.reason
    for at in crossed:
        within = [other for other in crossed if at <= other <= at + FLIPS_S]
        assert len(within) <= FLIPS_MAX + 2, "it fluttered"


def test_a_breaker_that_live_calls_have_opened_makes_it_unhealthy_and_no_check_that_passes_makes_it_well():
    health = Health(NAME, 0.0)
    now = checked(health, 0.0, True, True, True)
    health.hears(now, BREAKER, *of_breakers([Guarding(True, 0.0, 0, "5 failures in a row")]))
    assert (health.word, health.reason) == ("unhealthy", "5 failures in a row")
    assert not health.passes_over, "the breaker must be asked, or nobody would ever close it"
    now = checked(health, now, *[True] * 50)
    assert health.word == "unhealthy"
    health.hears(now, BREAKER, *of_breakers([Guarding(True, UNASKED_S, 0, "5 failures in a row")]))
    assert health.word == "degraded", "it might be asked, and nobody has come"
    health.hears(now, BREAKER, *of_breakers([Guarding(False)]))
    checked(health, now + DWELL_S, True)
    assert health.word == "healthy"


def test_of_several_routes_breakers_one_that_lets_calls_pass_says_that_not_all_of_it_is_away():
    shut, passing, unused = Guarding(True, 0.0, 0, "why"), Guarding(False, 0.0, 7), Guarding(False)
    assert of_breakers([]).word == "unknown"
    assert of_breakers([passing, unused]).word == "healthy"
    assert of_breakers([shut, unused]).word == "unhealthy"
    assert of_breakers([shut, passing])[:3] == ("degraded", "why", "live")


def test_live_calls_count_as_checks_do_and_prove_more():
    health = Health(NAME, 0.0)
    now = checked(health, 0.0, False, False)
    assert health.passes_over
    # nobody else could answer, so callers came after all, and were answered
    health.lived(now + 1.0, 3, 0)
    assert not health.passes_over
    for second in range(2, 13):
        health.lived(now + second, 3, 1)
    assert health.word == "healthy"
    assert health.lived(now + 14.0, 3, 2) == "degraded"
    assert health.lived(now + 15.0, 0, 0) == "degraded", "no calls are no evidence"
    assert health.lived(now + 16.0, 2, 2) == "unhealthy"
    assert not health.passes_over, "only callers say so, and only they can say otherwise"


def test_one_call_is_no_look_and_two_of_three_are_one():
    health = Health(NAME, 0.0)
    checked(health, 0.0, True, True, True)
    assert [health.lived(10.0 + at, 1, failed) for at, failed in enumerate((1, 0, 0))] == ["healthy"] * 3
    assert [health.lived(20.0 + at, 1, failed) for at, failed in enumerate((1, 0, 1))] == ["healthy"] * 2 + ["degraded"]
    assert health.lived(23.0, 1, 1) == "degraded"
    assert health.lived(24.0, 1, 1) == "unhealthy"
    assert health.reason == "2 of 2 calls failed"


def test_a_burst_is_one_look_however_many_times_it_was_looked_at():
    health = Health(NAME, 0.0)
    checked(health, 0.0, True, True, True)
    health.lived(10.0, 0, 0)
    assert [health.lived(10.0 + LOOK_S * n, 5, 5) for n in (1, 2, 3)] == ["healthy"] * 3
    assert health.lived(11.0, 5, 5) == "degraded"
    assert health.reason == "20 of 20 calls failed"


def test_what_has_failed_counts_when_nobody_comes_any_more_and_not_against_those_who_come_later():
    health = Health(NAME, 0.0)
    checked(health, 0.0, True, True, True)
    assert [health.lived(9.75, 0, 0), health.lived(10.0, 5, 5)] == ["healthy"] * 2
    assert health.lived(10.5, 0, 0) == "healthy", "no second is over yet"
    assert health.lived(10.75, 0, 0) == "degraded"
    assert health.reason == "5 of 5 calls failed"
    now = checked(health, 21.0, True, True, True)
    assert health.word == "healthy"
    assert [health.lived(now + LOOK_S * n, 2, 0) for n in range(8)] == ["healthy"] * 8


@pytest.mark.parametrize("per_s", [1.0, 2.0, 10.0])
@pytest.mark.parametrize("phase", range(12))
def test_calls_that_all_fail_are_found_within_five_seconds_whatever_checks_say(per_s: float, phase: int):
    called_at = [(n + phase / 12) / per_s for n in range(int(60 * per_s))]
    # just after a call, so that the next one is as far away as can be; and after any of three
    failed_from = called_at[int(20 * per_s) + phase % 3] + 1e-3
    health, now = Health(NAME, 0.0), 0.0
    while health.word != "unhealthy" and now < 60.0:
        now += LOOK_S
        lately = [at for at in called_at if now - LOOK_S <= at < now]
        failures = len([at for at in lately if at >= failed_from])
        health.lived(now, len(lately), failures)
        if failures:
            # who was called in vain is asked at once, and says that it is well
            health.checked(now, "protocol", "")
    assert health.word == "unhealthy"
    assert 0.0 < now - failed_from <= HARD_S
    assert not health.passes_over


def a_month_of_losses(seed: int, per_s: float, lost_share: float, month_s: float = MONTH_S) -> Counter[str]:
    """How often each word became that of a service that loses such a share of its calls at random, looked at four times
    a second for thirty days. Stretches in which all is well change nothing, and are skipped."""
    dice, health, words = random.Random(seed), Health(NAME, 0.0), Counter[str]()
    now, calls, failures, tick = 0.0, 0, 0, 0
    checked(health, 0.0, True, True, True)
    while now < month_s:
        well = int(log(1.0 - dice.random()) / log(1.0 - lost_share))
        for each in range(min(well, WELL_RUN) + 1):
            now += dice.expovariate(per_s)
            if well > WELL_RUN and each == WELL_RUN // 2:
                # all of these are well, and so is what is thought of it by then
                now += dice.gammavariate(well - WELL_RUN, 1.0 / per_s)
            if int(now / LOOK_S) != tick:
                before = health.word
                health.lived(tick * LOOK_S, 0, 0)
                health.lived((tick + 1) * LOOK_S, calls, failures)
                if now > (tick + 2) * LOOK_S + GATHER_S:
                    health.lived((tick + 2) * LOOK_S + GATHER_S, 0, 0)
                words[health.word] += health.word != before
                calls, failures, tick = 0, 0, int(now / LOOK_S)
            calls, failures = calls + 1, failures + (each == min(well, WELL_RUN))
    return words


@pytest.mark.parametrize(("per_s", "count"), [(0.3, 3), (1.0, 2), (5.0, 1), (20.0, 1)])
def test_who_loses_two_calls_in_a_thousand_is_never_unhealthy_in_a_month(per_s: float, count: int):
    months = [a_month_of_losses(seed, per_s, 0.002) for seed in range(count)]
    assert [each["unhealthy"] for each in months] == [0] * count
    assert sum(each["degraded"] for each in months) < 60 * count, "nor does it flicker all day"
    # it is the share that makes the difference: the same service, half away, is found to be
    assert a_month_of_losses(0, per_s, 0.5, 300.0)["unhealthy"] > 0


def test_what_answers_mean_is_a_word_of_its_own_however_well_it_can_be_reached():
    health = Health(NAME, 0.0)
    now = checked(health, 0.0, True, True, True)
    health.hears(now, "watch", "degraded", "embedding_drift")
    assert (health.word, health.level) == ("degraded", "semantic")
    health.hears(now, "watch", "unhealthy", "embedding_drift")
    now = checked(health, now, *[True] * 20)
    assert (health.word, health.passes_over, health.reason) == ("unhealthy", True, "embedding_drift")
    health.hears(now, "watch", "unknown")
    assert health.word == "healthy", "who said so is gone"


def test_a_tenth_of_calls_that_fail_is_a_strain_and_a_few_are_an_accident():
    assert strain(1000, 4) == ""
    assert strain(1000, 99) == ""
    assert strain(50, 5) == "5 of 50 calls failed lately"


def test_a_breaker_tells_what_it_has_counted_and_how_long_nobody_has_asked():
    breaker = Breaker(BreakerRules())
    dice = random.Random(1)
    ticket = breaker.admit(100.0)
    assert ticket is not None
    breaker.succeeded(100.0, ticket)
    for _ in range(5):
        breaker.failed(100.0, ticket, dice.random())
    assert (breaker.state, breaker.calls, breaker.failures) == ("open", 6, 5)
    assert breaker.unasked_s(100.0) == 0.0
    assert breaker.unasked_s(140.0) > 30.0
    assert breaker.lately(200.0) == (0, 0)
