"""A primary that swallows everything: the fallback comes while the caller still waits, however the tier is made up."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.kit.endpoints import rest
from tests.kit.weather import TARGETS, call_of
from understudy.policies.service import Answer, Call, Failed, Kind, Service
from understudy.proxy.dialects import DIALECTS, KINDS
from understudy.proxy.settings import settings
from understudy.proxy.settings.settings import Endpoint, LocalTier, Match, Route, Tier, UpstreamTier
from understudy.proxy.stack import World, assemble

CALLS, PATIENCE_S = 1000, 2.0
LOCAL_S = (0.2, 0.8)


async def black_hole(call: Call) -> Answer:
    """As an upstream tier has it that nothing ever answers."""
    call.attempts += 1
    await rest(max(0.0, call.until - asyncio.get_running_loop().time()))
    raise Failed("deadline", soft=True, again=False)


@pytest.mark.parametrize("opens", [True, False], ids=["breakers open", "breakers stay shut"])
@pytest.mark.parametrize("endpoints", [1, 2])
@pytest.mark.parametrize("dialect", ["openai-embeddings", "qdrant", "openai-chat"])
@pytest.mark.virtual_clock(io_grace_s=0)
async def test_a_fallback_comes_within_two_seconds_in_a_thousand_of_a_thousand_calls(
    dialect: str, endpoints: int, opens: bool
):
    clock, dice = asyncio.get_running_loop().time, random.Random(f"{dialect}/{endpoints}")
    kind: Kind = KINDS[dialect]
    assert TARGETS[kind]

    async def local(_call: Call) -> Answer:
        await rest(dice.uniform(*LOCAL_S))
        return Answer(200, [], b"{}")

    tier = UpstreamTier(name="primary", url="http://a")
    if endpoints > 1:
        tier = UpstreamTier(name="primary", endpoints=[Endpoint(name=n, url=f"http://{n}") for n in "abc"[:endpoints]])
    route = Route(
        name="r",
        match=Match(prefix="/"),
        dialect=dialect,
        tiers=[tier, LocalTier()],
        breaker=settings.Breaker(enabled=opens),
    )

    def made(_route: Route, tier: Tier, _endpoint: str) -> Service:
        return local if isinstance(tier, LocalTier) else black_hole

    parts = assemble(route, DIALECTS[dialect], World(clock, asyncio.sleep, dice.random), made)
    took_s: list[float] = []
    sources: set[str] = set()

    async def one() -> None:
        call = call_of(kind, "x", born=clock())
        call.request.headers.append((b"x-stainless-read-timeout", b"%g" % PATIENCE_S))
        answer = await parts.service(call)
        took_s.append(clock() - call.born)
        sources.add(answer.source)

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLS):
            group.create_task(one())
            await asyncio.sleep(dice.expovariate(50.0))
    assert len(took_s) == CALLS
    assert sources == {"local"}
    # we keep a tenth of the caller's patience back for the way
    assert max(took_s) <= 0.9 * PATIENCE_S + 1e-6
    # with breakers that open, hardly anybody waits for the black hole
    waited = sum(each > LOCAL_S[1] + 1e-6 for each in took_s)
    assert waited < CALLS / 4 if opens else waited == CALLS
