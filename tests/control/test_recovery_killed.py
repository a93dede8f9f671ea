"""Kill -9 in the middle of a rung, and in the middle of telling a human: what the next process does."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests.kit.acts import answer, silence
from tests.kit.fake_upstream import FakeUpstream, Heard
from tests.kit.mortal import COMPONENT
from tests.kit.processes import REPOSITORY

POLICIES = """
server:
  access_log: false
  recovery:
    attempts: 2
    pause_s: 0.05
    pause_ratio: 1
    verify_s: 0.02
    hooks:
      - {{name: restart, url: "{url}/restart", settle_s: 0}}
      - {{name: page, url: "{url}/page"}}
    ladders: {{vector_database: [restart, reset_pool]}}
    escalate: [page]
routes:
  - name: search
    match: {{prefix: /collections}}
    dialect: qdrant
    tiers:
      - {{kind: upstream, name: db, url: "http://127.0.0.1:1"}}
"""


async def started(folder: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.kit.mortal", str(folder), cwd=REPOSITORY, stderr=asyncio.subprocess.DEVNULL
    )


async def killed_at(process: asyncio.subprocess.Process, up: FakeUpstream, count: int) -> Heard:
    """Kill it once so many requests were heard, the last of which is not answered."""
    while len(up.heard) < count:
        assert process.returncode is None
        await asyncio.sleep(0.01)
    process.kill()
    await process.wait()
    return up.heard[-1]


@pytest.mark.real_clock
async def test_after_a_kill_in_the_middle_the_ladder_goes_on_and_a_human_is_told_once(tmp_path: Path):
    async with FakeUpstream(answer(200)) as up:
        (tmp_path / "policies").mkdir()
        (tmp_path / "policies" / "p.yaml").write_text(POLICIES.format(url=up.url))
        up.then(silence())
        heard = await killed_at(await started(tmp_path), up, 1)
        assert (heard.target, heard.json()["attempt"]) == (b"/restart", "1")

        # what was under way is verified, and not repeated; then the second attempt, and the human
        up.respond = lambda heard: silence() if heard.target == b"/page" else answer(200)
        heard = await killed_at(await started(tmp_path), up, 3)
        assert [one.target for one in up.heard] == [b"/restart", b"/restart", b"/page"]
        assert up.heard[1].json()["attempt"] == "2"
        assert heard.json()["component"] == COMPONENT
        assert "the process ended meanwhile" in heard.json()["steps"]

        last = await started(tmp_path)
        assert await last.wait() == 0
        assert len(up.heard) == 3, "a human was told twice"
        (ladder,) = json.loads((tmp_path / "state" / "recovery.json").read_text())
        assert (ladder["state"], ladder["attempt"]) == ("escalated", 2)
        assert len({one.json()["incident"] for one in up.heard}) == 1
