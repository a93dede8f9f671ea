"""The small learners: a scale that forgets, a detector of drift, a regression that is sure of what it has seen."""

from __future__ import annotations

import json
from random import Random

import pytest

from understudy.policies.learning import WARM_LOOKS, Logistic, PageHinkley, Scale, logit, sigmoid


def test_a_scale_says_how_unusual_a_number_is_and_nothing_before_it_has_seen_some():
    dice, scale = Random(0), Scale([0.1, 0.1])
    assert scale.unusual([100.0, 100.0]) == [0.0, 0.0]
    for _ in range(2000):
        scale.learn([dice.gauss(10, 2), 5.0])
    assert scale.unusual([12.0, 5.0]) == pytest.approx([1.0, 0.0], abs=0.15)
    far, further, tiny = scale.unusual([30.0, 5.0])[0], scale.unusual([1e9, 5.0])[0], scale.unusual([10.0, 5.01])[1]
    assert 2.0 < far < further == 8.0
    assert tiny == pytest.approx(0.1, abs=0.01)


def test_a_scale_gets_used_to_how_things_are_now():
    scale = Scale([0.1])
    for _ in range(1000):
        scale.learn([0.0])
    assert scale.unusual([1.0])[0] > 4
    for _ in range(40_000):
        scale.learn([1.0])
    assert abs(scale.unusual([1.0])[0]) < 0.3


def test_a_drift_is_found_soon_and_noise_is_none():
    dice, detector = Random(1), PageHinkley()
    assert not any(detector.look(dice.gauss(0, 1)) for _ in range(20_000))
    took = next(n for n in range(1000) if detector.look(dice.gauss(2, 1)))
    assert took < 60
    assert detector.drifts == 1


def test_the_regression_finds_what_made_the_difference_and_by_how_much():
    dice, heart = Random(2), Logistic(4, logit(0.5))
    for _ in range(4000):
        x = [1.0, dice.gauss(0, 1), dice.gauss(0, 1), dice.gauss(0, 1)]
        heart.learn(x, dice.random() < sigmoid(-1.0 + 2.0 * x[1] - 0.5 * x[2]))
    assert heart.weights == pytest.approx([-1.0, 2.0, -0.5, 0.0], abs=0.25)
    assert heart.predict([1.0, 2.0, 0.0, 0.0]) == pytest.approx(sigmoid(3.0), abs=0.04)
    parts = heart.parts([1.0, 2.0, 1.0, 1.0])
    assert parts[1] == max(parts)


def test_one_rare_event_does_not_make_the_rarest_likely():
    """An extended Kalman step would overshoot here by far; the mode of what is known can't."""
    heart = Logistic(3, logit(0.005))
    heart.learn([1.0, 0.5, -0.5], happened=True)
    assert 0.005 < heart.predict([1.0, 0.5, -0.5]) < 0.6


def test_an_example_of_little_weight_moves_it_little():
    light, heavy = Logistic(2, 0.0), Logistic(2, 0.0)
    light.learn([1.0, 1.0], happened=True, weight=0.1)
    heavy.learn([1.0, 1.0], happened=True)
    assert 0 < light.weights[1] < heavy.weights[1] / 3


def test_the_rarer_examples_of_a_kind_are_the_nearer_to_one_half_it_stays():
    heart = Logistic(2, 0.0)
    for _ in range(200):
        heart.learn([1.0, 1.0], happened=True)
    sure = heart.predict([1.0, 1.0])
    assert sure > 0.95
    assert heart.predict([1.0, 4.0]) > 0.9
    assert 0.5 < Logistic(2, 0.1).predict([1.0, 4.0]) < sigmoid(0.1)


def test_what_was_learnt_can_be_kept_and_what_is_none_of_it_is_refused():
    heart, scale = Logistic(3, 0.0), Scale([1.0, 1.0])
    heart.learn([1.0, 2.0, 3.0], happened=True)
    for _ in range(WARM_LOOKS):
        scale.learn([1.0, 2.0])
    other, other_scale = Logistic(3, 1.0), Scale([1.0, 1.0])
    other.recall(json.loads(json.dumps(heart.kept())))
    other_scale.recall(json.loads(json.dumps(scale.kept())))
    assert other.kept() == heart.kept()
    assert other_scale.kept() == scale.kept()
    for broken in (
        {"weights": [1.0], "covariance": []},
        {"weights": [0.0] * 3, "covariance": [[0.0] * 3] * 2},
        {"weights": [float("nan")] * 3, "covariance": [[0.0] * 3] * 3},
    ):
        with pytest.raises(ValueError):
            other.recall(broken)


def test_a_sigmoid_of_anything_is_a_probability():
    assert [sigmoid(x) for x in (-1e9, 0.0, 1e9)] == [pytest.approx(0.0), 0.5, pytest.approx(1.0)]
    assert sigmoid(logit(0.3)) == pytest.approx(0.3)
