"""The bench of many streams measures what it says, if only of a few."""

from __future__ import annotations

import pytest

from tests.bench.streams import measure, p95

pytestmark = pytest.mark.real


@pytest.mark.real_clock
async def test_every_token_of_every_stream_is_seen_once_with_and_without_the_sidecar():
    report = await measure(streams=4, tokens=5, gap_s=0.05)
    for seen in (report.direct, report.through):
        assert (seen.chunks, len(seen.first_ms), len(seen.gap_added_ms)) == (20, 4, 16)
        assert min(seen.late_ms) > 0
    assert report.us_per_chunk > 0
    assert len(report.text().splitlines()) == 6


def test_the_percentile_is_the_95th():
    assert p95([float(n) for n in range(100)]) == 95.0
