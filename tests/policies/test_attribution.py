"""Which change it was: simulated histories with one guilty change among five, and with none."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from understudy.policies.attribution import (
    DAY_S,
    Change,
    Spell,
    Suspect,
    beta_below,
    exposure_s,
    match,
    onsets,
    probability_worse,
    suspects,
)
from understudy.policies.events import WHOLE

HOUR_S = 3600.0
WATCHED_S = 4 * DAY_S
COMPONENTS = ("vector_database:a:1", "llm_service:b:2", "embedding_service:c:3", WHOLE)
KINDS = ("policies", "deploy", "server", "model", "index")


def poisson(dice: Random, rate: float, since: float, until: float) -> Iterator[float]:
    at = since
    while (at := at + dice.expovariate(rate)) < until:
        yield at


def history(seed: int, *, guilty: bool, named: bool, bursts: bool = False) -> tuple[list[Suspect], Change]:
    """Four days of failures of one component, about one a day but not the same in all, and five changes on the last.

    The guilty change makes them one to six an hour; where `named`, each says what it was made to. In
    `bursts` each failure is followed by more, as those of an outage are.
    """
    dice = Random(seed)
    base = dice.uniform(0.3, 3.0) / DAY_S
    failing = COMPONENTS[0]
    changes = [
        Change(WATCHED_S - dice.uniform(0.5, 20) * HOUR_S, dice.choice(COMPONENTS) if named else WHOLE, kind)
        for kind in KINDS
    ]
    culprit = dice.choice(changes)
    if guilty and named:
        changes.remove(culprit)
        culprit = culprit._replace(component=dice.choice((failing, WHOLE)))
        changes.append(culprit)
    failures = list(poisson(dice, base, 0, WATCHED_S))
    now = WATCHED_S
    if guilty:
        # looked at when there is something to be seen: three to eight hours after the change
        worse = dice.uniform(1.0, 6.0) / HOUR_S
        now = min(WATCHED_S, culprit.at + dice.uniform(3, 8) * HOUR_S)
        failures += poisson(dice, worse, culprit.at, WATCHED_S)
    if bursts:
        failures += [at + n * 20 for at in list(failures) for n in range(1, int(dice.expovariate(1 / 15)) + 1)]
    seen = [at for at in failures if at <= now]
    return suspects(changes, seen, [Spell(0.0, now)], now, [failing]), culprit


@pytest.mark.parametrize("bursts", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_the_guilty_change_is_found_first_in_four_of_five_histories_and_innocents_are_left_alone(
    named: bool, bursts: bool
):
    first, accused_innocents = 0, 0
    for seed in range(200):
        ranked, culprit = history(seed, guilty=True, named=named, bursts=bursts)
        first += ranked[0].change == culprit
        accused_innocents += sum(one.is_accused for one in ranked if one.change != culprit)
    assert first >= 160
    # of 800 innocents, one in twenty; those that were made just before the guilty one share its failures
    assert accused_innocents <= 40


@pytest.mark.parametrize("bursts", [False, True])
def test_where_no_change_is_guilty_one_in_twenty_histories_accuses_at_most(bursts: bool):
    accusing = 0
    for seed in range(1000, 1400):
        ranked, _ = history(seed, guilty=False, named=True, bursts=bursts)
        accusing += any(one.is_accused for one in ranked)
    assert accusing <= 20


def test_one_failure_right_after_a_change_accuses_nobody_and_still_names_it_first():
    changes = [Change(9 * HOUR_S, "a", "deploy"), Change(20 * HOUR_S, "a", "policies")]
    first, second = suspects(changes, [20 * HOUR_S + 60], [Spell(0, 21 * HOUR_S)], 21 * HOUR_S, ["a"])
    assert (first.change.kind, first.is_accused, second.is_accused) == ("policies", False, False)
    assert first.share > second.share


def test_what_nobody_watched_is_no_quiet_time():
    """The same failures after a change: with a day watched before it they stand out, with nothing before they don't."""
    change = Change(2 * DAY_S, "a", "deploy")
    failures = [change.at + n * 600 for n in range(1, 5)]
    now = change.at + HOUR_S
    [watched] = suspects([change], failures, [Spell(0, now)], now, ["a"])
    [unwatched] = suspects([change], failures, [Spell(change.at - 60, now)], now, ["a"])
    assert watched.is_accused
    assert not unwatched.is_accused
    assert (watched.failures_before, watched.failures_after) == (0, 4)


def test_a_change_after_which_failures_became_rarer_explains_none_of_them():
    now = 3 * DAY_S
    failures = [n * HOUR_S for n in range(60)]
    [suspect] = suspects([Change(60 * HOUR_S, "a", "fix")], failures, [Spell(0, now)], now, ["a"])
    assert suspect.probability < 0.01
    assert suspect.share < 0.05
    assert not suspect.is_accused


def test_an_hour_of_outage_is_no_hundred_failures():
    assert onsets([0, 1, 2, 299, 300, 450, 700]) == [0, 300, 700]
    assert onsets([]) == []


def test_exposure_is_what_was_watched_of_it():
    assert exposure_s([Spell(0, 10), Spell(20, 30)], 5, 25) == 10
    assert exposure_s([Spell(0, 10)], 20, 30) == 0


def test_a_change_to_the_component_itself_is_believed_before_one_to_another():
    assert match("a", "a") > match(WHOLE, "a") > match("b", ["a"])
    same = [Change(10 * HOUR_S, name, "deploy") for name in ("b", "a")]
    ranked = suspects(same, [10 * HOUR_S + n * 400 for n in range(5)], [Spell(0, 12 * HOUR_S)], 12 * HOUR_S, ["a"])
    assert [one.change.component for one in ranked] == ["a", "b"]


def test_without_changes_there_are_no_suspects_and_old_changes_are_none():
    assert suspects([], [1.0], [Spell(0, 10)], 10) == []
    assert suspects([Change(0, "", "deploy")], [1.0], [Spell(0, 3 * DAY_S)], 3 * DAY_S) == []


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (1, 1), (2.5, 0.5), (8.5, 3.5), (40, 200)])
def test_the_incomplete_beta_agrees_with_draws(a: float, b: float):
    dice = Random(7)
    draws = [dice.betavariate(a, b) for _ in range(20_000)]
    for x in (0.05, 0.2, 0.5, 0.8, 0.95):
        assert beta_below(x, a, b) == pytest.approx(sum(draw <= x for draw in draws) / len(draws), abs=0.015)
    assert (beta_below(0, a, b), beta_below(1, a, b)) == (0, 1)


def test_the_probability_agrees_with_draws_of_both_rates():
    dice = Random(3)
    before, before_s, after, after_s = 2, DAY_S, 4, 6 * HOUR_S
    prior_s = 0.5 * DAY_S
    worse = 0
    for _ in range(20_000):
        rate_before = dice.gammavariate(0.5 + before, 1 / (prior_s + before_s))
        rate_after = dice.gammavariate(0.5 + after, 1 / (prior_s + after_s))
        worse += rate_after > 2 * rate_before
    assert probability_worse(before, before_s, after, after_s) == pytest.approx(worse / 20_000, abs=0.015)
