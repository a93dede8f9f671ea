"""Whole routes in seeded weather; `python -m tests.kit.weather_run` does so for hundreds of thousands of calls."""

from __future__ import annotations

import pytest

from tests.kit.weather_run import season


@pytest.mark.parametrize("seed", [1, 2, 5])
@pytest.mark.virtual_clock(io_grace_s=0)
async def test_in_any_weather_everybody_is_answered_in_time_with_what_is_theirs_and_nothing_is_left_over(seed: int):
    report = await season(seed, 4000)
    assert report.wrong == [], f"python -m tests.kit.weather_run --calls 4000 --seeds {seed}"
    # the weather was bad enough for every policy to have had something to do
    for what in ("retries", "hedges_won", "opened", "ejected", "coalesced", "mirrored", "alike", "faults", "left"):
        assert getattr(report, what) > 0, what
    assert {"primary", "secondary", "tertiary", "cache"} <= set(report.answered)
    assert {"done", "left"} <= set(report.streams)
