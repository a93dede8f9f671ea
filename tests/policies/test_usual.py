"""What is usual of late."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.policies.usual import FRESH, SAMPLES, Usual


@settings(derandomize=True, max_examples=200)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=600))
def test_the_percentiles_are_exact_over_the_last_samples_and_never_older_than_a_few(samples: list[float]):
    usual = Usual()
    for sample in samples:
        usual.add(sample)
    read = len(samples) - len(samples) % FRESH
    window = sorted(samples[max(0, read - SAMPLES) : read])
    assert usual.count == len(window)
    if window:
        assert usual.p50 == window[math.ceil(0.5 * len(window)) - 1]
        assert usual.p95 == window[math.ceil(0.95 * len(window)) - 1]


def test_before_there_are_enough_nothing_is_known():
    usual = Usual()
    for _ in range(FRESH - 1):
        usual.add(1.0)
    assert (usual.count, usual.p50, usual.p95) == (0, 0.0, 0.0)
