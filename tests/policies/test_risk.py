"""Risk on simulated months: of noise nobody is warned, of a ramp nearly always, and the number means what it says."""

from __future__ import annotations

import json
from random import Random

import pytest

from tests.policies.simulated_component import Story, recall, story, usual
from understudy.policies.risk import (
    BINS,
    DAY_S,
    FEATURES,
    LEAD_S,
    OPINIONS,
    POSITIVES_MIN,
    QUIET_S,
    STEP_S,
    WARN_RISK,
    WINDOW_S,
    Risk,
    features,
    why,
)

CALM = [0.0] * len(FEATURES)


def minutes(risk: Risk, since: float, count: int, raw: list[float] | None = None) -> float:
    for minute in range(count):
        risk.look(since + minute * STEP_S, raw or CALM)
    return since + count * STEP_S


@pytest.fixture(scope="module")
def replay() -> Story:
    return story(1, days=20, failures_a_day=4, ramps=True)


@pytest.mark.parametrize(("seed", "failures_a_day"), [(1, 2.0), (2, 12.0)])
def test_thirty_days_of_noise_with_failures_out_of_the_blue_warn_nobody(seed: int, failures_a_day: float):
    noise = story(seed, days=30, failures_a_day=failures_a_day, ramps=False)
    assert noise.risk.ledger.positives >= POSITIVES_MIN
    assert sum(one.warns for one in noise.said) == 0
    assert max(one.risk for one in noise.said) < WARN_RISK


def test_after_twenty_failures_with_a_ramp_four_of_five_are_warned_of_a_minute_before(replay: Story):
    since = replay.failures[19]
    warned = [one for one in replay.after(since) if one.risk > WARN_RISK]
    assert len(replay.failures) > 50
    assert recall(replay, since) >= 0.8
    assert sum(replay.is_true(one.at) for one in warned) / len(warned) >= 0.5
    assert all(one.warns for one in warned)


@pytest.mark.parametrize(("seed", "false_ramps"), [(4, 0.0), (2, 1.0), (5, 1.0)])
def test_so_they_are_where_nothing_or_as_much_gets_half_as_bad_and_recovers(seed: int, false_ramps: float):
    told = story(seed, days=15, failures_a_day=4, ramps=True, false_ramps=false_ramps)
    since = told.failures[19]
    warned = [one for one in told.after(since) if one.risk > WARN_RISK]
    assert len(told.failures) >= 40
    assert recall(told, since) >= 0.8
    assert sum(told.is_true(one.at) for one in warned) / len(warned) >= 0.5


def test_what_is_called_likely_by_seven_to_nine_tenths_comes_about_as_often(replay: Story):
    said = [one for one in replay.after(replay.failures[19]) if 0.7 <= one.risk < 0.9]
    assert len(said) >= 30
    assert 0.55 <= sum(replay.is_true(one.at) for one in said) / len(said) <= 1.0


def test_the_ledger_says_of_itself_what_an_onlooker_counts(replay: Story):
    """Recall, precision and bins over all of it, the month of forgetting being longer than the story."""
    score = replay.risk.ledger.score()
    decided = replay.after(-1)
    decided = [one for one in decided if one.at + LEAD_S + WINDOW_S <= replay.said[-1].at]
    warned = [one for one in decided if one.risk > WARN_RISK]
    assert score.skill is not None
    assert score.skill > 0.1
    assert score.precision == pytest.approx(sum(replay.is_true(one.at) for one in warned) / len(warned), abs=0.03)
    assert score.recall == pytest.approx(recall(replay, -1), abs=0.03)
    bins = [[one for one in decided if sum(one.risk >= edge for edge in BINS) == n] for n in range(5)]
    for (many, mean, true), mine in zip(score.bins, bins, strict=True):
        assert many <= len(mine) + 1
        if len(mine) > 20:
            assert mean == pytest.approx(sum(one.risk for one in mine) / len(mine), abs=0.03)
            assert true == pytest.approx(sum(replay.is_true(one.at) for one in mine) / len(mine), abs=0.06)


def test_a_risk_says_what_it_goes_by(replay: Story):
    risk = Risk.of(json.loads(json.dumps(replay.risk.kept())))
    at = minutes(risk, replay.said[-1].at + DAY_S, 5)
    prediction = risk.look(at, features({"error_share": 0.3, "slow_ratio": 2.3, "limit_fall": 0.3}))
    assert prediction is not None
    assert prediction.risk > WARN_RISK
    assert risk.warns
    told = list(why(prediction))
    assert "by how it does just now (weight" in told[0]
    assert "more of its answers are failures (error_share)" in told


def test_before_ten_failures_a_risk_is_learning_however_right_it_is():
    told = story(3, days=1.5, failures_a_day=4, ramps=True)
    assert 0 < told.risk.ledger.positives < POSITIVES_MIN
    assert told.risk.trust == "learning"
    assert not any(one.warns for one in told.said)


def test_without_anything_known_the_risk_is_that_of_one_failure_a_day():
    risk = Risk()
    prediction = risk.look(0.0, CALM)
    assert prediction is not None
    assert prediction.base == pytest.approx(WINDOW_S / DAY_S, rel=0.01)
    assert sum(prediction.weights) == pytest.approx(1.0)
    assert len(prediction.opinions) == len(OPINIONS)


def test_what_fails_and_goes_on_failing_failed_once_and_nothing_is_foretold_meanwhile():
    risk = Risk()
    at = minutes(risk, 0.0, 30)
    for n in range(20):
        risk.failed(at + n * 30.0)
    assert risk.failures == 1
    assert risk.look(at + 600, CALM) is None
    assert not risk.warns
    assert risk.look(at + 19 * 30.0 + QUIET_S, CALM) is not None


def test_failures_that_nobody_could_foresee_in_time_are_neither_met_nor_missed():
    risk = Risk()
    risk.failed(10.0)
    assert risk.ledger.score().recall is None
    at = minutes(risk, 3600.0, 30)
    risk.failed(at + 1.0)
    assert (risk.ledger.positives, risk.ledger.score().recall) == (1, 0.0)


def test_what_came_while_nobody_looked_is_not_held_against_what_was_said():
    risk = Risk()
    at = minutes(risk, 0.0, 30)
    seen = risk.ledger.score()
    minutes(risk, at + DAY_S, 1)
    assert risk.ledger.score() == seen
    assert risk.watched_s == 29 * STEP_S


def test_a_change_before_most_failures_makes_the_next_change_a_risk():
    risk, at = Risk(), 0.0
    for _ in range(40):
        changed_at = at
        for minute in range(180):
            if minute == 8:
                risk.failed(at)
            risk.look(at, CALM, changed_at)
            at += STEP_S
    after = risk.look(at, CALM, at)
    assert after is not None
    later = Risk.of(risk.kept()).look(at, CALM)
    assert later is not None
    assert after.risk > 3 * later.risk


def test_what_was_learnt_outlives_the_process(replay: Story):
    kept = json.loads(json.dumps(replay.risk.kept()))
    again = Risk.of(kept)
    assert again.kept() == kept
    assert again.ledger.score() == replay.risk.ledger.score()
    assert again.trust == "trusted"


@pytest.mark.parametrize(
    ("key", "value"),
    [("weights", [1.0]), ("weights", [float("nan")] * 6), ("scale", {}), ("ledger", {"sums": [], "bins": []})],
)
def test_what_is_no_risk_of_ours_is_refused(key: str, value: object):
    kept = Risk().kept() | {key: value}
    with pytest.raises((ValueError, KeyError, TypeError)):
        Risk.of(kept)


def test_features_come_in_their_order_and_within_bounds():
    raw = features(usual(Random(0)))
    assert len(raw) == len(FEATURES)
    assert features({"error_share": float("inf")})[0] < float("inf")
    assert features({}) == CALM
