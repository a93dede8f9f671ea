"""A run of the cache's outages, shortened: no call is lost, whatever becomes of the second level."""

from __future__ import annotations

import asyncio

import pytest

from tests.real.cache_outages import run

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.mark.parametrize("kind", ["redis", "memcached"])
def test_T39_no_call_is_lost_while_the_second_level_is_stopped_killed_or_swallows_everything(kind: str):
    phases, metrics = asyncio.run(run(kind, rate=60.0, phase_s=2.5))
    assert [phase.name for phase in phases if phase.lost] == []
    assert 'understudy_cache_second_total{result="stored"}' in metrics
