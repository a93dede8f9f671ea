"""Quota, tokens and shedding in the stack: where they stand, and what is kept over a reload."""

from __future__ import annotations

import asyncio

import pytest

from tests.kit.weather import call_of
from understudy.policies.service import Answer, Call, Failed, Refused, Service
from understudy.policies.shed import Shedder
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.settings import settings
from understudy.proxy.settings.settings import Match, Rate, Route, Shed, Shedding, Tier, Tokens, UpstreamTier
from understudy.proxy.stack import RouteParts, World, assemble

NO_QUOTA = b"x-ratelimit-remaining: 0\r\nx-ratelimit-reset: 60\r\n"


class Upstreams:
    """Two tiers, what each answers, and who was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.block = {"first": b"", "second": b""}

    def made(self, _route: Route, tier: Tier, _endpoint: str) -> Service:
        async def answering(_call: Call) -> Answer:
            self.asked.append(tier.name)
            return Answer(200, None, b"ok", block=self.block[tier.name])

        return answering


def put_together(
    upstreams: Upstreams, *, before: RouteParts | None = None, shedder: Shedder | None = None, **changed: object
) -> RouteParts:
    tiers: list[Tier] = [UpstreamTier(name="first", url="http://a"), UpstreamTier(name="second", url="http://b")]
    fields: dict[str, object] = {"name": "r", "match": Match(prefix="/"), "dialect": "openai-chat", "tiers": tiers}
    made = Route(**{**fields, **changed})  # pyright: ignore[reportArgumentType]
    clock = asyncio.get_running_loop().time
    world = World(clock=clock, sleep=asyncio.sleep, dice=lambda: 0.5, wall=lambda: 1.8e9, shedder=shedder)
    return assemble(made, DIALECTS["openai-chat"], world, upstreams.made, before=before)


def call() -> Call:
    made = call_of("generate", "x")
    made.born = asyncio.get_running_loop().time()
    return made


# --- quota ---------------------------------------------------------------------------------------------------------


async def test_the_second_tier_answers_while_the_firsts_quota_is_spent_and_a_reload_remembers_it():
    upstreams = Upstreams()
    parts = put_together(upstreams)
    upstreams.block["first"] = NO_QUOTA
    assert (await parts.service(call())).tier == "primary"
    answer = await parts.service(call())
    assert (answer.tier, answer.reason) == ("secondary", "first: quota")
    parts = put_together(upstreams, before=parts)
    assert (await parts.service(call())).tier == "secondary"
    breaker = parts.tiers["first"].only.breaker
    assert breaker is not None
    assert breaker.state == "closed"
    await asyncio.sleep(60)
    assert (await parts.service(call())).tier == "primary"


async def test_a_quota_that_is_switched_off_is_not_in_the_stack():
    upstreams = Upstreams()
    parts = put_together(upstreams, quota=settings.Quota(enabled=False))
    assert parts.tiers["first"].only.quota is None
    upstreams.block["first"] = NO_QUOTA
    for _ in range(3):
        assert (await parts.service(call())).tier == "primary"


# --- tokens --------------------------------------------------------------------------------------------------------


async def test_who_asks_too_much_is_told_so_and_no_other_tier_is_asked():
    upstreams = Upstreams()
    rules = Tokens(caller=Rate(calls_per_s=1, burst=2))
    parts = put_together(upstreams, tokens=rules)
    statuses = [(await parts.service(call())).status for _ in range(4)]
    assert statuses == [200, 200, 429, 429]
    assert upstreams.asked == ["first", "first"]
    # counted as what the caller saw
    assert parts.tally.answers == {("primary", 2): 2, ("", 4): 2}
    parts = put_together(upstreams, before=parts, tokens=rules)
    assert (await parts.service(call())).status == 429
    await asyncio.sleep(1)
    assert (await parts.service(call())).status == 200
    assert put_together(upstreams, before=parts).buckets is None


# --- shedding ------------------------------------------------------------------------------------------------------


async def test_while_the_process_lags_low_calls_are_refused_before_anybody_is_asked_and_critical_ones_never():
    shedder, upstreams = Shedder(Shedding()), Upstreams()
    parts = {
        priority: put_together(upstreams, shedder=shedder, shed=Shed(priority=priority))  # pyright: ignore[reportArgumentType]
        for priority in ("critical", "normal", "low")
    }
    calm = {name: one.service for name, one in parts.items()}
    now = 1000.0
    while shedder.pressure < 1.0:
        now += 0.4
        if shedder.lagged(now, 0.3):
            for one in parts.values():
                one.relieve(pressed=True)
    assert (await parts["critical"].service(call())).status == 200
    assert (await parts["normal"].service(call())).status == 200
    with pytest.raises(Refused, match="overloaded"):
        await parts["low"].service(call())
    assert len(upstreams.asked) == 2
    assert parts["low"].shed == {"low": 1}
    assert parts["low"].tally.unanswered == {"refused": 1}
    # a reload in the middle of it goes on shedding
    again = put_together(upstreams, shedder=shedder, shed=Shed(priority="low"), before=parts["low"])
    with pytest.raises(Refused):
        await again.service(call())
    assert again.shed == {"low": 2}
    for name, one in parts.items():
        one.relieve(pressed=False)
        # nothing of it is left on a call's way
        assert one.service is calm[name]


# --- limits that learn ---------------------------------------------------------------------------------------------


async def test_a_route_learns_by_what_it_speaks_and_keeps_what_it_learnt_over_a_reload():
    upstreams = Upstreams()
    parts = put_together(upstreams)
    learner = parts.tiers["first"].only.bulkhead.learner
    assert learner is not None
    learner.failed(1000.0, 0.1, 100, Failed("status_429", soft=True))
    again = put_together(upstreams, before=parts).tiers["first"].only.bulkhead
    assert again.places == 70
    fixed = put_together(upstreams, before=parts, limit=settings.Limit(concurrent=5)).tiers["first"].only.bulkhead
    assert (fixed.places, fixed.learner) == (5, None)
