"""Numbers of a component off the metrics that are counted anyway."""

from __future__ import annotations

import pytest

from tests.control.watched import LLM, Metrics, sample, settings_of
from understudy.policies.risk import FEATURES
from understudy.proxy.control.signals import READINGS, Signals, quantile
from understudy.proxy.health.components import components_of

COMPONENTS = components_of(settings_of())


def test_counts_become_rates_of_the_component_whose_tier_counted_them():
    signals, metrics = Signals(), Metrics()
    metrics.calls(1000)
    signals.look(0.0, metrics.families, COMPONENTS)
    assert signals.numbers[LLM]["asked_per_s"] == 0.0
    metrics.calls(540, failed=40, busy=20, slow=54)
    signals.look(60.0, metrics.families, COMPONENTS)
    told = signals.numbers[LLM]
    assert told["asked_per_s"] == pytest.approx(10.0)
    assert told["failed_per_s"] == pytest.approx(1.0)
    assert told["busy_per_s"] == pytest.approx(1 / 3)
    assert told["p50_s"] < 0.1 < told["p95_s"] < 5.0
    assert told["mean_s"] == pytest.approx(0.9 * 0.1 + 0.1 * 5.0)
    assert told["memory_bytes"] == 5e7
    assert len(told) >= 40


def test_a_worker_that_began_anew_makes_no_rate_below_nothing():
    signals, metrics = Signals(), Metrics()
    metrics.calls(1000, failed=10)
    signals.look(0.0, metrics.families, COMPONENTS)
    signals.look(60.0, Metrics().families, COMPONENTS)
    assert min(signals.numbers[LLM].values()) >= 0.0


def test_features_are_those_of_a_risk_and_rise_with_what_goes_wrong():
    signals, metrics = Signals(), Metrics()
    calm: dict[str, float] = {}
    for minute in range(6):
        metrics.calls(600)
        signals.look(minute * 60.0, metrics.families, COMPONENTS)
        calm = signals.features(LLM)
    assert set(calm) == {feature.name for feature in FEATURES}
    metrics.calls(400, failed=150, busy=50, slow=100)
    metrics.memory_bytes *= 1.5
    signals.look(360.0, metrics.families, COMPONENTS)
    bad = signals.features(LLM)
    assert calm["error_share"] == calm["busy_share"] == calm["memory_growth"] == 0.0
    assert (bad["error_share"], bad["busy_share"]) == (pytest.approx(200 / 600), pytest.approx(50 / 600))
    rising = ("slow_ratio", "first_byte_slope", "memory_growth")
    assert all(bad[name] > calm[name] + 0.3 for name in rising)


def test_health_checks_count_for_the_component_they_are_of():
    signals = Signals()
    for minute, (passed, failed) in enumerate(((10, 0), (19, 3))):
        checks = [
            sample("understudy_health_checks_total", float(count), component=name, level="protocol", result=result)
            for name in (LLM, "cache:other:1")
            for result, count in (("well", passed), ("wrong", failed))
        ]
        signals.look(minute * 60.0, [("understudy_health_checks", "counter", "", checks)], COMPONENTS)
    assert signals.features(LLM)["check_failures"] == pytest.approx(3 / 12)


def test_a_component_that_nobody_calls_has_features_all_the_same():
    signals = Signals()
    signals.look(0.0, [], COMPONENTS)
    assert set(signals.features(LLM).values()) == {0.0}
    assert set(signals.features("cache:unheard:of").values()) == {0.0}


def test_a_quantile_lies_within_the_bucket_that_holds_it():
    inf = float("inf")
    assert quantile({}, 0.5) == 0.0
    assert quantile({0.1: 0.0, inf: 0.0}, 0.5) == 0.0
    assert quantile({0.1: 50.0, 1.0: 100.0, inf: 100.0}, 0.75) == pytest.approx(0.55)
    # what lies beyond the last bound is as if it lay at it
    assert quantile({0.1: 50.0, 1.0: 60.0, inf: 100.0}, 0.95) == 1.0


def test_every_reading_is_of_a_metric_that_there_is():
    from understudy.proxy.reports.metrics import METRICS

    ours = {reading.sample for reading in READINGS if reading.sample.startswith("understudy_")}
    assert {name.removesuffix("_count").removesuffix("_sum") for name in ours} <= set(METRICS)
