"""An outage in front of the running sidecar is noticed, answered around, told, healed, and over, by nobody's hand."""

from __future__ import annotations

import pytest

from tests.real.story import CHAPTERS, Story, timeline, told

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_from_kill_to_resolved_no_call_is_lost_nobody_is_paged_and_the_log_tells_it():
    story = told(Story(), restart_s=4.0)
    text = timeline(story)
    assert tuple(sorted(story.at, key=lambda chapter: story.at[chapter])) == CHAPTERS, text
    assert (story.lost, story.restarts, story.pages) == (0, 1, 0), text
    assert set(story.tiers) == {"primary", "secondary"}, text
    logged = [line.what for line in story.lines if line.who == "sidecar"]
    for said in (
        "is unhealthy",
        "secondary tier",
        "recovery begins",
        "restart: done",
        "well again: restart",
        "primary tier",
    ):
        assert any(said in line for line in logged), f"{said!r} is missing:\n{text}"
    assert story.recovering.startswith("vector_database:"), text
    heard = [line.what.split(":")[0] for line in story.lines if line.who == "pager"]
    assert heard == ["UnderstudyOnFallback firing", "UnderstudyOnFallback resolved"], text
