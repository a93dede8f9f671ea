"""Two replicas behind callers who go by readiness: a few restarts here, twenty in `python -m tests.real.restarts`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.acts import answer
from tests.kit.fake_upstream import in_thread
from tests.real.restarts import TOOK_S, restarted

pytestmark = pytest.mark.real

RESTARTS, CALLS, CALLERS = 4, 1000, 16


@pytest.mark.real_clock
async def test_replicas_that_are_restarted_in_turn_lose_no_call_of_callers_who_go_by_readiness(tmp_path: Path):
    with in_thread(answer(body={"who": "model"}, delay_s=TOOK_S)) as upstream:
        report = await restarted(upstream, tmp_path, RESTARTS, CALLS, CALLERS)
    print(report.line())
    assert not report.lost
    assert report.answered >= CALLS
    assert report.restarts == [RESTARTS // 2, RESTARTS // 2]
    assert report.exits == {0: RESTARTS}
    assert min(report.by_replica) > CALLS / 10, "one alone has answered nearly all"
    assert report.heard == report.answered, "somebody was asked twice"
