"""Of two workers one recovers what both use, and the other does as it does with what is its own."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.kit.acts import answer
from tests.kit.fake_upstream import in_thread
from tests.kit.processes import Sidecar, eventually

pytestmark = pytest.mark.real

POLICIES = """
server:
  listen: ${{UNDERSTUDY_LISTEN}}
  admin: ${{UNDERSTUDY_ADMIN}}
  access_log: false
  workers: 2
  health: {{every_s: 0.2}}
  recovery: {{attempts: 2, pause_s: 0.1, pause_ratio: 1, verify_s: 0.05, hooks: [{{name: page, url: "{pager}"}}],
    escalate: [page]}}
routes:
  - name: chat
    match: {{prefix: /v1}}
    dialect: openai-chat
    tiers:
      - {{kind: upstream, name: model, url: "{upstream}"}}
"""


def ladders(sidecar: Sidecar) -> list[dict[str, Any]]:
    with urllib.request.urlopen(sidecar.admin_url + "/status", timeout=30) as told:
        return json.load(told).get("recovery", [])


def metric(sidecar: Sidecar, line: str) -> float:
    with urllib.request.urlopen(sidecar.admin_url + "/metrics", timeout=30) as told:
        found = [each for each in told.read().decode().splitlines() if each.startswith(line + " ")]
    return sum(float(each.rpartition(" ")[2]) for each in found)


def test_one_ladder_one_human_and_each_worker_drops_its_own_connections(tmp_path: Path):
    (tmp_path / "policies").mkdir()
    with in_thread(answer(body={"data": []})) as upstream, in_thread(answer(200)) as pager:
        text = POLICIES.format(upstream=upstream.url, pager=pager.url)
        (tmp_path / "policies" / "p.yaml").write_text(text)
        with Sidecar(tmp_path / "policies", tmp_path / "state") as sidecar:
            upstream.do(upstream.refuse())
            eventually(lambda: [one["state"] for one in ladders(sidecar)] == ["escalated"])
            eventually(lambda: "reset_pool here, too" in sidecar.logs())
            eventually(lambda: bool(pager.heard))
            component = f"llm_service:{upstream.host_port}"
            told = f'understudy_recovery_escalations_total{{component="{component}"}}'
            eventually(lambda: metric(sidecar, told) == 1)
            upstream.do(upstream.come_back())
            eventually(lambda: [one["state"] for one in ladders(sidecar)] == ["held"])
            assert sidecar.logs().count("recovery begins") == 1
        assert [heard.json()["component"] for heard in pager.heard] == [component]
