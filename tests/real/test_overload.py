"""Twice an upstream's capacity for some seconds; `python -m tests.real.overload` is the longer run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.overload import CAPACITY_PER_S, run_overload

pytestmark = pytest.mark.real


def test_most_of_the_capacity_is_put_to_use_under_twice_the_load_and_calm_returns(tmp_path: Path):
    calm, storm, after = run_overload(tmp_path, "adaptive", seed=1, calm_s=2, storm_s=6, after_s=3)
    told = "\n".join(phase.line() for phase in (calm, storm, after))
    assert calm.places[0] == 256, told
    # what the upstream works for is of use: on a busy machine it works less, and the long run asks for nine tenths
    assert storm.outcomes["ok"] >= 0.75 * storm.served, told
    assert storm.goodput >= 0.5 * CAPACITY_PER_S, told
    assert storm.places[-1] < 64, told
    assert after.outcomes["ok"] >= 0.9 * sum(after.outcomes.values()), told
