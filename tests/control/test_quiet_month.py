"""The whole control plane is quiet while nothing is wrong, and tells of an outage at once; a month is `quiet_month`."""

from __future__ import annotations

from tests.control.quiet_month import simulated

PAGED_S = 90.0


def test_six_quiet_hours_through_the_whole_control_plane_page_nobody_and_an_outage_after_them_does():
    told = simulated(seed=4, days=0.25)
    assert told.calls.total() > 10_000
    assert told.events["health", "degraded"] > 0, "there was something to be mistaken about"
    assert told.alerts == {}
    assert told.paged_s is not None
    assert told.paged_s <= PAGED_S
