"""How often health is looked at: as often as it is cheap, and soon enough whatever a look has cost."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest

from understudy.proxy.control.health import TICK_S, TICK_S_MAX, TICK_SHARE, keep_healthy


@pytest.mark.virtual_clock(io_grace_s=0)
async def test_a_dear_look_puts_the_next_one_off_and_by_seconds_at_most():
    loop = asyncio.get_running_loop()
    costs_s = [0.0, 2 * TICK_S * TICK_SHARE, 60.0, 0.0]
    looked_at: list[float] = []
    spent_s = 0.0

    def look() -> None:
        nonlocal spent_s
        spent_s += costs_s[len(looked_at)] if len(looked_at) < len(costs_s) else 0.0
        looked_at.append(loop.time())

    async def looks() -> None:
        """There is nothing to see."""

    sidecar = SimpleNamespace(
        health=SimpleNamespace(is_leader=True, look=look),
        meanings=SimpleNamespace(look=looks, look_at_cache=looks),
        prompts=SimpleNamespace(look=looks),
        checkup=SimpleNamespace(due=lambda _now: []),
        world=SimpleNamespace(clock=loop.time),
    )
    keeping = asyncio.create_task(keep_healthy(cast("Any", sidecar), cpu=lambda: spent_s))
    while len(looked_at) < 5:  # noqa: ASYNC110 - nobody is told
        await asyncio.sleep(TICK_S)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    pauses = [later - sooner for sooner, later in pairwise(looked_at)]
    assert pauses[:4] == pytest.approx([TICK_S, 2 * TICK_S, TICK_S_MAX, TICK_S])
