"""Recovery with the sidecar's own health checks: what they find ill is healed, and they say when it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kit.acts import answer
from tests.kit.fake_upstream import FakeUpstream, Heard, Wire, is_check
from tests.kit.unwell import SERVER, Ward
from understudy.proxy.control.admin import status_of
from understudy.proxy.control.healing import keep_recovering
from understudy.proxy.reports.recovery import recovering
from understudy.proxy.reports.status_text import status_text

pytestmark = pytest.mark.virtual_clock(io_grace_s=0.002)

ROUTES = """
routes:
  - name: docs
    match: {{prefix: /collections}}
    dialect: qdrant
    hedge: {{enabled: false}}
    cache: {{enabled: false}}
    tiers:
      - {{name: first, kind: upstream, url: "{first}", connect_s: 1.0}}
      - {{name: second, kind: upstream, url: "{second}", connect_s: 1.0}}
"""
POINTS: dict[str, Any] = {"result": {"collections": []}, "status": "ok", "time": 0.0}


def database() -> FakeUpstream:
    up = FakeUpstream(answer(body=POINTS))
    up.respond = lambda heard: answer(body=b"all shards are ready") if is_check(heard) else answer(body=POINTS)
    return up


@asynccontextmanager
async def ward_of(folder: Path, first: FakeUpstream, second: FakeUpstream, recovery: str) -> AsyncGenerator[Ward]:
    server = f"{SERVER}  recovery: {recovery}\n"
    async with Ward(folder, ROUTES.format(first=first.url, second=second.url), server) as ward:
        loop = asyncio.get_running_loop()
        healing = loop.create_task(
            keep_recovering(ward.sidecar, wall=lambda: 1_800_000_000.0 + loop.time(), frugal=False)
        )
        yield ward
        healing.cancel()
        await asyncio.gather(healing, return_exceptions=True)


async def test_a_service_that_its_hook_restarts_is_well_again_without_anybody_and_its_story_is_told(tmp_path: Path):
    async with database() as first, database() as second, FakeUpstream() as runtime:

        async def restarts(wire: Wire, heard: Heard) -> None:
            await first.come_back()
            await answer(200)(wire, heard)

        runtime.always(restarts)
        recovery = (
            f'{{hooks: [{{name: restart, url: "{runtime.url}"}}],'
            " ladders: {vector_database: [reset_pool, resolve_again, restart]}}"
        )
        async with ward_of(tmp_path, first, second, recovery) as ward:
            component = f"vector_database:{first.host_port}"
            await ward.until(lambda: ward.word(component) == "healthy")
            await first.refuse()
            await ward.until(lambda: ward.word(component) == "unhealthy")
            assert ward.sidecar.recovery is not None
            await ward.until(lambda: component in recovering(ward.events), within_s=10)
            [told] = status_of(ward.sidecar)["recovery"]
            assert told["component"] == component
            await ward.until(lambda: ward.word(component) == "healthy", within_s=60)
            assert len(runtime.heard) == 1
            assert recovering(ward.events)[component] == "well again: restart"
            kinds = [event.kind for event in ward.events if event.family == "recovery"]
            assert kinds[0] == "ill"
            assert kinds[-1] == "recovered"
            await ward.until(lambda: component not in recovering(ward.events), within_s=700)
            assert "recovery" not in status_of(ward.sidecar)


async def test_what_nobody_can_heal_is_said_to_be_with_a_human_until_it_is_well(tmp_path: Path):
    async with database() as first, database() as second, ward_of(tmp_path, first, second, "{}") as ward:
        component = f"vector_database:{first.host_port}"
        await ward.until(lambda: ward.word(component) == "healthy")
        await first.refuse()
        await ward.until(lambda: "beyond us" in recovering(ward.events).get(component, ""), within_s=180)
        told = {"ready": True, **status_of(ward.sidecar)}
        assert f"recovery  {component}: nothing helped in 3 attempts; left to a human" in status_text(told)
        await first.come_back()
        await ward.until(lambda: component not in recovering(ward.events))
        escalated = [event for event in ward.events if (event.family, event.kind) == ("recovery", "escalated")]
        assert len(escalated) == 1
