"""A tier and the policies round it, put together in TIER_ORDER (`stack` has the order and its reasons)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from msgspec import UnsetType

from understudy.policies.adaptive import UNBOUND, Signal
from understudy.policies.balance import Balance, Peer, balance
from understudy.policies.breaker import Breaker, breaker
from understudy.policies.budget import Budget
from understudy.policies.chain import Link, overtaken
from understudy.policies.hedge import KINDS as HEDGED
from understudy.policies.hedge import Hedge, hedge
from understudy.policies.limit import Bulkhead, limit
from understudy.policies.quota import Quota, quota
from understudy.policies.ramp import Ramp
from understudy.policies.retry import Retry, retry
from understudy.policies.service import CREDENTIALS, Answer, Call, Refused, Service
from understudy.proxy.dialects import KINDS
from understudy.proxy.parts import EndpointParts, TierParts, World
from understudy.proxy.settings.settings import (
    Endpoint,
    Limit,
    LocalTier,
    Route,
    Tier,
    UpstreamTier,
    at_endpoint,
    endpoints_of,
)

T = TypeVar("T")
MakeTier = Callable[[Route, Tier, str], Service]
"""Given a tier as it is at one of its endpoints, and the name of that one (the tier's own where it has but one)."""


def tier_stack(
    route: Route,
    tier: Tier,
    parts: TierParts,
    old: TierParts | None,
    world: World,
    make_tier: MakeTier,
    after: AfterThis,
    zone: str | None,
) -> Service:
    """`tier` with its own policies. What `old` had learnt goes on; `parts` is told what there is; `after` is who stands
    behind the tier, `zone` where we are."""
    if isinstance(tier, LocalTier):
        # what is ours is not worth asking twice, and has no endpoint to spare
        own = parts.endpoints[tier.name] = _carried(old, tier.name, None, route, tier)
        return limit(make_tier(route, tier, tier.name), own.bulkhead, clock=world.clock)
    endpoints = endpoints_of(tier)
    services = [_endpoint_stack(route, tier, endpoint, parts, old, world, make_tier) for endpoint in endpoints]
    service = services[0]
    if len(services) > 1:
        # with one endpoint there is nothing to choose, and the layer is not there
        peers = [_peer(tier, endpoint, parts, old, world, zone) for endpoint in endpoints]
        parts.balance = Balance(peers, _set(tier.balance, route.balance), world.dice)
        service = balance(dict(zip(peers, services, strict=True)), parts.balance, clock=world.clock)
    return _with_attempts(service, route, tier, parts, old, world, after)


def _with_attempts(
    service: Service,
    route: Route,
    tier: UpstreamTier,
    parts: TierParts,
    old: TierParts | None,
    world: World,
    after: AfterThis,
) -> Service:
    """The tier's endpoints with what asks them more than once; nothing where nothing does."""
    endpoints = len(endpoints_of(tier))
    again, twice, rules = (
        _set(tier.retry, route.retry),
        _set(tier.hedge, route.hedge),
        _set(tier.budget, route.budget),
    )
    to_next = endpoints == 1 and twice.next_tier and after.position + 1 < after.count
    hedged = twice.enabled and KINDS[route.dialect] in HEDGED and (endpoints > 1 or to_next)
    if not hedged and again.attempts == 1:
        return service
    budget = parts.budget = (old and old.budget) or Budget(rules)
    budget.adopt(rules)
    parts.usual = old.usual if old else parts.usual
    if hedged:
        heart = parts.hedge = (old and old.hedge) or Hedge(twice)
        heart.rules = twice
        service = hedge(
            service,
            heart,
            clock=world.clock,
            budget=budget,
            second=after.ask if to_next else None,
            won=after.won if to_next else None,
        )
    return retry(
        service,
        Retry(again.attempts, again.base_s, again.wait_s_max),
        clock=world.clock,
        dice=world.dice,
        sleep=world.sleep,
        budget=budget,
        usual=parts.usual,
        endpoints=endpoints,
    )


@dataclass(frozen=True, slots=True)
class AfterThis:
    """The first tier after the one at `position` that is there; known once all of them are put together."""

    links: list[Link]
    position: int
    count: int

    @property
    def link(self) -> Link | None:
        return next((link for link in self.links[self.position + 1 :] if link.service is not None), None)

    async def ask(self, call: Call) -> Answer:
        """Ask it in a hedge's name. In another vector space it refuses, as it would in a chain."""
        link = self.link
        if link is None or link.service is None:
            raise Refused("hedge", "no tier after this one is there")
        return await link.service(call)

    def won(self, call: Call, answer: Answer) -> None:
        """Mark its answer as its own."""
        if self.link is not None:
            overtaken(self.links[self.position], self.link, call, answer)


def _peer(
    tier: UpstreamTier, endpoint: Endpoint, parts: TierParts, old: TierParts | None, world: World, zone: str | None
) -> Peer:
    own = parts.endpoints[endpoint.name]
    if own.peer is None:
        own.peer = Peer(f"{tier.name}/{endpoint.name}")
        if old is not None and old.balance is not None:
            # it has come by a reload: its neighbours are warm
            own.peer.back_at = world.clock()
    own.peer.weight = endpoint.weight
    own.peer.rank = (endpoint.priority, zone is not None and endpoint.zone != zone)
    own.peer.guard = own.breaker
    own.peer.quota = own.quota
    own.peer.is_each_callers = _is_each_callers(tier, endpoint)
    return own.peer


def ramp_of(route: Route, tier: UpstreamTier, parts: TierParts, old: TierParts | None, world: World) -> Ramp:
    """How a tier comes back after an outage; one that was on its way back still is after a reload."""
    guards = [endpoint.breaker for endpoint in parts.endpoints.values() if endpoint.breaker is not None]
    ramp = Ramp(guards, _set(tier.ramp, route.ramp), world.dice)
    if old and old.link and old.link.ramp:
        ramp.goes_on_from(old.link.ramp)
    return ramp


def _endpoint_stack(
    route: Route,
    tier: UpstreamTier,
    endpoint: Endpoint,
    parts: TierParts,
    old: TierParts | None,
    world: World,
    make_tier: MakeTier,
) -> Service:
    own = parts.endpoints[endpoint.name] = _carried(old, endpoint.name, endpoint.place, route, tier)
    rules = _set(tier.breaker, route.breaker)
    own.breaker = own.breaker or Breaker(rules)
    own.breaker.obey(rules)
    service = make_tier(route, at_endpoint(tier, endpoint), endpoint.name)
    service = limit(service, own.bulkhead, clock=world.clock)
    allowed = _set(tier.quota, route.quota)
    if not allowed.enabled:
        own.quota = None
    else:
        own.quota = own.quota or Quota(allowed)
        own.quota.rules = allowed
        theirs = _is_each_callers(tier, endpoint)
        service = quota(service, own.quota, clock=world.clock, wall=world.wall, sleep=world.sleep, per_caller=theirs)
    return breaker(service, own.breaker, clock=world.clock, dice=world.dice)


def _is_each_callers(tier: UpstreamTier, endpoint: Endpoint) -> bool:
    """Whether every call is on its own caller's quota: it is where the endpoint has no credentials of ours."""
    return not any(name.lower().encode() in CREDENTIALS for name in at_endpoint(tier, endpoint).headers)


def _carried(old: TierParts | None, name: str, place: object, route: Route, tier: Tier) -> EndpointParts:
    """What was known under this name, if it is still about the same place."""
    limits = effective_limit(route, tier)
    before = old.endpoints.get(name) if old else None
    if before is None or before.place != place:
        return EndpointParts(name, Bulkhead(limits, learns_from(route, tier), _patience_s(route, tier)), place=place)
    before.bulkhead.endures(_patience_s(route, tier))
    before.bulkhead.rules = limits
    return EndpointParts(name, before.bulkhead, before.breaker, place, before.quota, before.peer)


def _patience_s(route: Route, tier: UpstreamTier | LocalTier) -> float:
    """How long a tier is waited for; where some of its models think first, as long as they are."""
    if isinstance(tier, LocalTier):
        return UNBOUND
    patient = _set(tier.stream, route.stream).patient
    return max(tier.first_byte_s, *(each.first_content_s for each in patient), 0.0)


def effective_limit(route: Route, tier: UpstreamTier | LocalTier) -> Limit:
    """A tier's own limit, or its route's."""
    return _set(tier.limit, route.limit)


def learns_from(route: Route, tier: Tier) -> Signal | None:
    """What an adaptive limit learns from here; a local tier's is never adaptive, since nobody would answer instead."""
    if isinstance(tier, LocalTier):
        return None
    return "latency" if KINDS.get(route.dialect) in ("embed", "retrieve") else "failures"


def _set(value: T | UnsetType, otherwise: T) -> T:
    """What a tier says of a policy, or else its route."""
    return otherwise if isinstance(value, UnsetType) else value
