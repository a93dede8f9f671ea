"""Calls go on together, and write together, whatever they came in by and whomever they ask."""

from __future__ import annotations

from pathlib import Path

import pytest

from understudy.proxy.dialects import KINDS
from understudy.proxy.settings.reading import read_folder
from understudy.proxy.sidecar import Sidecar

POLICIES = """\
server: {listen: ["127.0.0.1:0", "127.0.0.1:0"], admin: "127.0.0.1:0"}
routes:
  - name: all
    match: {prefix: /}
    dialect: plain
    tiers:
      - {kind: upstream, name: one, url: "http://127.0.0.1:9"}
      - {kind: upstream, name: two, url: "http://127.0.0.1:9"}
"""


@pytest.mark.real_clock
async def test_all_listeners_and_pools_of_a_sidecar_step_their_calls_by_the_same(tmp_path: Path):
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "all.yaml").write_text(POLICIES, encoding="utf-8")
    sidecar = Sidecar(folder, tmp_path / "state", {}, read_folder(folder, {}, KINDS))
    await sidecar.start()
    try:
        pools, listeners = sidecar.stack.pools.values(), sidecar.listeners
        assert (len(pools), len(listeners)) == (2, 2)
        assert {id(one.steps) for one in (*pools, *listeners)} == {id(sidecar.steps)}
    finally:
        await sidecar.stop()
