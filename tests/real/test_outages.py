"""No call is lost while primaries are killed and come back; `python -m tests.real.outages` is the long run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.outages import run_outages

pytestmark = pytest.mark.real


def test_no_call_is_lost_while_each_primary_is_killed_and_comes_back(state: Path):
    report = run_outages(state, seed=1, requests=600, rate=60.0, deaths=1)
    told = "\n".join(report.lines())
    assert report.lost == [], told
    assert len(report.deaths) == 2
    for death in report.deaths:
        assert death.first_other_at, told
