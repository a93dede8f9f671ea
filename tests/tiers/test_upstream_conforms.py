"""The upstream tier does what every tier must."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import ExitStack

import pytest

from tests.kit.acts import answer
from tests.kit.fake_upstream import Act, Heard, Hosted, Wire, in_thread
from tests.kit.weather import call_of
from tests.tiers.check_tier import Subject, check_tier
from understudy.policies.service import Answer, Call
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.settings.settings import UpstreamTier
from understudy.proxy.tiers.upstream import make_pool, upstream_tier

PAUSE_S = 0.005


class Stalling:
    """Answers each embedding request with the text it brought; or, while stalled, not yet."""

    def __init__(self, upstream: Hosted) -> None:
        self.stalled = False
        upstream.respond = self.respond

    def respond(self, _heard: Heard) -> Act:
        async def play(wire: Wire, heard: Heard) -> None:
            while self.stalled:  # noqa: ASYNC110 (set from another thread, where an Event may not be)
                await asyncio.sleep(PAUSE_S)
            await answer(body={"data": [], "echo": heard.json()["input"]})(wire, heard)

        return play


def made() -> Subject:
    stack = ExitStack()
    upstream = stack.enter_context(in_thread())
    stalling = Stalling(upstream)
    settings = UpstreamTier(name="up", url=upstream.url)
    pool = make_pool(settings, asyncio.get_running_loop(), time.monotonic)
    tier = upstream_tier(settings, DIALECTS["openai-embeddings"], pool, asyncio.get_running_loop().time)

    def call(n: int) -> Call:
        return call_of("embed", f"text number {n}", id=f"call-{n}")

    def belongs(n: int, given: Answer) -> None:
        assert json.loads(given.body)["echo"] == f"text number {n}"

    async def close() -> None:
        pool.close()
        stack.close()

    return Subject(
        tier,
        call,
        belongs,
        stall=lambda: setattr(stalling, "stalled", True),
        resume=lambda: setattr(stalling, "stalled", False),
        left_behind=lambda: pool.size - pool.idle,
        close=close,
    )


@pytest.mark.real_clock
async def test_it_does_what_every_tier_must():
    await check_tier(made)
