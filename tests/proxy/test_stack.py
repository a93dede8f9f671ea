"""The stack put together: counting, carry-over, endpoints, and seeded weather."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from tests.kit.weather import Weather, call_of, calls, weathered
from understudy.policies.deadline import Deadline
from understudy.policies.observe import RouteTally, observe
from understudy.policies.service import Answer, Call, Failed, Service
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.settings import settings
from understudy.proxy.settings.settings import Endpoint, LocalTier, Match, Route, Secret, Tier, UpstreamTier
from understudy.proxy.stack import ROUTE_ORDER, TIER_ORDER, RouteParts, World, assemble


def route(**changed: object) -> Route:
    tiers: list[Tier] = [UpstreamTier(name="first", url="http://a"), UpstreamTier(name="second", url="http://b")]
    fields: dict[str, object] = {
        "name": "r",
        "match": Match(prefix="/"),
        "dialect": "plain",
        "tiers": [*tiers, LocalTier(name="local")],
    }
    return Route(**{**fields, **changed})  # pyright: ignore[reportArgumentType]


def world(seed: int = 0) -> World:
    return World(clock=asyncio.get_running_loop().time, sleep=asyncio.sleep, dice=random.Random(seed).random)


async def answering(_call: Call) -> Answer:
    return Answer(200, [], b"ok")


def put_together(made: dict[str, Service], *, before: RouteParts | None = None, **changed: object) -> RouteParts:
    return assemble(
        route(**changed),
        DIALECTS["plain"],
        world(),
        lambda _route, _tier, name: made.get(name, answering),
        before=before,
    )


def test_every_policy_in_the_orders_has_a_reason_and_a_heading_in_the_handbook():
    from understudy.indexes import knowledge_files

    handbook = "\n".join(path.read_text() for path in knowledge_files()).lower()
    for name, reason in ROUTE_ORDER + TIER_ORDER:
        assert len(reason.split()) > 5, name
        if name not in ("observe", "chain", "tier"):
            assert any(line.startswith("#") and name in line for line in handbook.splitlines()), name


# --- counting ------------------------------------------------------------------------------------------------------


async def test_observe_outermost_counts_what_the_caller_saw():
    tally = RouteTally()

    async def failing(_call: Call) -> Answer:
        raise Failed("reset")

    observed = observe(failing, tally, clock=asyncio.get_running_loop().time)
    with pytest.raises(Failed):
        await observed(call_of("embed", "x"))
    task = asyncio.ensure_future(
        observe(lambda _call: asyncio.sleep(9, Answer(200, [])), tally, clock=asyncio.get_running_loop().time)(
            call_of("embed", "x")
        )
    )
    await asyncio.sleep(1)
    assert tally.in_flight == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (tally.unanswered, tally.left, tally.in_flight) == ({"failed": 1}, 1, 0)


# --- carried over a reload -----------------------------------------------------------------------------------------


async def test_a_reload_keeps_breakers_places_and_counts_by_name_and_gives_them_the_new_rules():
    async def broken(_call: Call) -> Answer:
        raise Failed("reset")

    now = asyncio.get_running_loop().time()
    before = put_together({"first": broken}, breaker=settings.Breaker(consecutive=2))
    for _ in range(3):
        await before.service(call_of("embed", "x", born=now))
    after = put_together({}, before=before, breaker=settings.Breaker(consecutive=7, open_s=9, open_s_max=9))
    heart = after.tiers["first"].only.breaker
    assert heart is not None
    assert (heart.state, heart.rules.consecutive) == ("open", 7)
    answer = await after.service(call_of("embed", "x", born=now))
    assert (answer.source, answer.reason) == ("second", "first: breaker")
    assert after.tally.answers == {("secondary", 2): 4}
    assert after.links[0].outcomes[("failed", "reset")] == 1


async def test_a_tier_that_a_reload_takes_away_is_gone_and_one_that_is_absent_is_shown_but_not_asked():
    after = assemble(route(), DIALECTS["plain"], world(), lambda *_: answering, absent={"first": "KEY is not set"})
    answer = await after.service(call_of("embed", "x"))
    assert (answer.tier, answer.source, answer.reason) == ("secondary", "second", "first: KEY is not set")


# --- endpoints -----------------------------------------------------------------------------------------------------


def several(*names: str, **changed: object) -> dict[str, object]:
    made = [Endpoint(name=name, url=f"http://{name}") for name in names]
    return {"tiers": [UpstreamTier(name="many", endpoints=made), LocalTier(name="local")], **changed}


async def test_one_endpoint_has_no_balance_layer_and_several_have_a_breaker_and_a_limit_each():
    one = put_together({}, tiers=[UpstreamTier(name="first", url="http://a")])
    answer = await one.service(call_of("embed", "x"))
    assert (list(one.tiers["first"].endpoints), answer.source) == (["first"], "first")
    call = call_of("embed", "x")
    many = put_together({}, **several("a", "b"))
    answer = await many.service(call)
    assert call.tried == [answer.source]
    assert answer.source in ("many/a", "many/b")
    first, second = many.tiers["many"].endpoints.values()
    assert first.breaker is not second.breaker
    assert first.bulkhead is not second.bulkhead


async def test_a_dead_endpoint_is_left_out_and_its_calls_are_answered_by_the_other():
    asked: list[str] = []

    async def dead(_call: Call) -> Answer:
        asked.append("a")
        raise Failed("connect_refused")

    parts = put_together({"a": dead}, **several("a", "b"))
    for _ in range(400):
        answer = await parts.service(call_of("embed", "x", born=asyncio.get_running_loop().time()))
        assert (answer.tier, answer.source) == ("primary", "many/b")
    dead_one, other = (endpoint.peer for endpoint in parts.tiers["many"].endpoints.values())
    assert dead_one is not None
    assert other is not None
    # left out after three in a row: with another there, its breaker need not open
    assert (dead_one.ejections, other.ejections, len(asked)) == ({"consecutive": 1}, {}, 3)


async def test_a_tier_refuses_only_when_all_of_its_endpoints_do():
    async def dead(_call: Call) -> Answer:
        raise Failed("connect_refused")

    rules = settings.Breaker(consecutive=1)
    parts = put_together({"a": dead, "b": dead}, **several("a", "b", breaker=rules))
    call = call_of("embed", "x", born=asyncio.get_running_loop().time())
    # two attempts, one at each endpoint: then both breakers are open
    assert (await parts.service(call)).reason == "many: connect_refused"
    assert sorted(call.tried) == ["many/a", "many/b"]
    assert (
        await parts.service(call_of("embed", "x", born=asyncio.get_running_loop().time()))
    ).reason == "many: breaker"


async def test_a_reload_keeps_what_is_known_of_an_endpoint_while_its_name_and_its_place_stay():
    async def dead(_call: Call) -> Answer:
        raise Failed("connect_refused")

    def tier(*endpoints: Endpoint) -> list[Tier]:
        return [UpstreamTier(name="many", endpoints=list(endpoints)), LocalTier(name="local")]

    rules = settings.Breaker(consecutive=1)
    kept, moved = Endpoint(name="kept", url="http://a"), Endpoint(name="moved", url="http://b")
    rekeyed = Endpoint(name="rekeyed", url="http://c", headers={"api-key": Secret("1")})
    made: dict[str, Service] = {"kept": dead, "moved": dead, "rekeyed": dead}
    again = settings.Retry(attempts=3)
    before = put_together(made, tiers=tier(kept, moved, rekeyed), breaker=rules, retry=again)
    await before.service(call_of("embed", "x", born=asyncio.get_running_loop().time()))
    after = put_together(
        made,
        before=before,
        breaker=rules,
        tiers=tier(
            Endpoint(name="kept", url="http://a", weight=5),
            Endpoint(name="moved", url="http://elsewhere"),
            Endpoint(name="rekeyed", url="http://c", headers={"api-key": Secret("2")}),
        ),
    )
    states = {name: each.breaker.state for name, each in after.tiers["many"].endpoints.items() if each.breaker}
    assert states == {"kept": "open", "moved": "closed", "rekeyed": "closed"}


# --- weather -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_the_weather_someone_answers_in_time_and_nothing_leaks(seed: int):
    """3,000 calls at 20 a second through two upstreams in bad weather, with a local tier that always answers."""
    clock = asyncio.get_running_loop().time
    made = {
        "first": weathered(answering, Weather(f"{seed}/a", began=clock()), clock),
        "second": weathered(answering, Weather(f"{seed}/b", began=clock()), clock),
    }
    limits = settings.Limit(concurrent=50, queue=20, wait_s_max=0.2)
    times = Deadline(total_s=4.0, reserve_s=0.5)
    parts = put_together(
        made, limit=limits, deadline=settings.Deadline(total_s=times.total_s, reserve_s=times.reserve_s)
    )
    seen: Counter[str] = Counter()

    async def one(call: Call) -> None:
        answer = await parts.service(call)
        assert clock() <= call.born + times.total_s + 1e-6
        seen[answer.source] += 1
        for tier in parts.tiers.values():
            assert 0 <= tier.only.bulkhead.in_flight <= limits.concurrent

    running: set[asyncio.Task[None]] = set()
    dice = random.Random(seed)
    for at, call in calls(3000, seed, 20.0, began=clock()):
        await asyncio.sleep(max(0.0, at - clock()))
        call.born = clock()
        task = asyncio.ensure_future(one(call))
        running.add(task)
        task.add_done_callback(running.discard)
        if dice.random() < 0.02:
            asyncio.get_running_loop().call_later(dice.random(), task.cancel)
    outcomes = await asyncio.gather(*running, return_exceptions=True)
    assert not [each for each in outcomes if isinstance(each, Exception)]
    assert sum(seen.values()) + parts.tally.left == 3000
    assert parts.tally.unanswered == {}
    assert parts.tally.in_flight == 0
    for tier in parts.tiers.values():
        assert (tier.only.bulkhead.in_flight, len(tier.only.bulkhead.waiting)) == (0, 0)
    # with the storm over and every pause elapsed, each breaker lets a call through: no permit was lost
    await asyncio.sleep(400)
    for name in ("first", "second"):
        heart = parts.tiers[name].only.breaker
        assert heart is not None
        assert heart.admit(clock()) is not None, (seed, name)
