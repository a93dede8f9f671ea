"""An outage ends with its cause: an upstream that fails for a minute under all that it can bear."""

from __future__ import annotations

import pytest

from tests.proxy.metastability import KINDS, Kind, story
from understudy.proxy.settings import settings


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.virtual_clock(io_grace_s=0)
async def test_with_a_local_tier_nothing_is_lost_and_the_primary_has_all_its_calls_again_within_a_minute(kind: Kind):
    report = await story("local tier", kind, 1)
    assert report.lost == 0
    assert report.peak <= 1.25
    assert report.well_after_s is not None
    assert report.well_after_s <= settings.Breaker().open_s_max + 5


@pytest.mark.virtual_clock(io_grace_s=0)
async def test_with_the_budget_alone_an_upstream_that_fails_gets_no_more_than_a_quarter_more_calls():
    report = await story("no breaker", "refuses", 1)
    assert 1.1 < report.peak <= 1.25


@pytest.mark.virtual_clock(io_grace_s=0)
async def test_without_a_sidecar_the_same_outage_never_ends():
    """So that the story is one in which something could go wrong."""
    report = await story("no sidecar", "errors", 1)
    assert report.peak > 2.5
    assert report.well_after_s is None
