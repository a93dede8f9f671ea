"""Everything of a running sidecar that may fill up is read, and whatever does is foreseen in its own words."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.control.test_forecasts import Seen
from tests.control.test_objectives import settings_of
from tests.control.watched import half_full
from tests.kit.acts import answer
from tests.kit.fake_upstream import FakeUpstream
from tests.kit.unwell import Ward
from tests.tiers.toy import SPACE, toy_library
from understudy.policies.forecast import ADVICE, HOUR_S, Reading
from understudy.proxy.control.forecasts import Foresight
from understudy.proxy.control.resources import beneath, readings_of, with_memory

BEGIN = 1_800_000_000.0
ROUTES = """
local: {{model: {space}, knowledge: false}}
routes:
  - name: docs
    match: {{prefix: /collections}}
    dialect: qdrant
    space: {space}
    cache: {{enabled: true}}
    tiers:
      - {{name: first, kind: upstream, url: "{url}", headers: {{api-key: a-key}}, connections_max: 8}}
      - {{name: own, kind: local}}
"""
FOUND = {"result": {"collections": []}, "status": "ok", "time": 0.0}
SPENT = [
    (b"x-ratelimit-limit-requests", b"1000"),
    (b"x-ratelimit-remaining-requests", b"400"),
    (b"x-ratelimit-reset-requests", b"2h0m0s"),
]


@pytest.mark.virtual_clock(io_grace_s=0.001)
async def test_a_running_sidecar_reads_everything_that_may_fill_up(tmp_path: Path):
    toy_library(tmp_path / "state" / "collections")
    async with (
        FakeUpstream(answer(200, SPENT, FOUND, delay_s=5.0)) as up,
        Ward(tmp_path, ROUTES.format(url=up.url, space=SPACE)) as ward,
    ):
        await ward.until(lambda: bool(ward.sidecar.collection_stats), 60.0)
        assert (await ward.call()).status == 200
        asking = asyncio.create_task(ward.call())
        await ward.until(lambda: len(up.heard) == 2, 5.0)
        readings = readings_of(ward.sidecar, BEGIN)
        await asking
    memory_bytes, disk = beneath(tmp_path / "state", 1e8)
    found = {reading.key: reading for reading in [*with_memory(readings, memory_bytes), *disk]}
    kinds = {what for what, _ in found}
    assert kinds >= {"memory", "disk", "index", "cache", "fds", "callers", "pool", "quota"}
    assert kinds <= set(ADVICE)
    assert all(0 <= reading.used <= reading.limit for reading in found.values())
    assert (found["pool", "docs/first"].used, found["pool", "docs/first"].limit) == (1, 8)
    assert found["callers", "all"].used == 1
    quota = found["quota", "docs/first requests"]
    assert (quota.used, quota.limit) == (600, 1000)
    assert found["index", "collections"].used > 0
    assert found["memory", "sidecar"].used > 2**20


@pytest.mark.parametrize("what", [what for what, advice in ADVICE.items() if advice.warns])
async def test_whatever_leaks_is_warned_of_half_a_day_before_with_what_to_do_about_it(tmp_path: Path, what: str):
    seen, settings = Seen(), settings_of("chat")
    foresight = Foresight(seen, tmp_path, below=half_full)
    warned_at_h = -1.0
    for step in range(31 * 60):
        hours = step / 60
        seen.said = [Reading(what, "it", 40.0 + 2.0 * hours, 100.0)]
        await foresight.once(BEGIN + step * 60.0)
        if [one for one in foresight.alerts(settings, BEGIN) if dict(one.labels)["name"] == "it"]:
            warned_at_h = hours
            break
    full_at_h = 30.0
    assert 0 < warned_at_h <= full_at_h - 12
    (alert,) = [
        one for one in foresight.alerts(settings, BEGIN + warned_at_h * HOUR_S) if dict(one.labels)["name"] == "it"
    ]
    assert dict(alert.labels)["severity"] == "warning"
    assert alert.annotations["actions"] == "; ".join(ADVICE[what].actions)
    assert ADVICE[what].words in alert.annotations["summary"]
