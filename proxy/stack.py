"""A call goes through a stack of policies to a chain of tiers: the two orders, and how a route is put together.

To read a route from outside in, read ROUTE_ORDER and then, for each of its tiers, TIER_ORDER. The reasons are part of
the order: whoever moves an entry answers them.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from msgspec import UnsetType

from understudy.policies.adaptive import Signal
from understudy.policies.balance import Peer, balance
from understudy.policies.breaker import Breaker, breaker
from understudy.policies.chain import Link, chain, rank_of
from understudy.policies.deadline import Deadline, deadline
from understudy.policies.limit import Bulkhead, limit
from understudy.policies.observe import RouteTally, observe
from understudy.policies.retry import Retry, retry
from understudy.policies.service import Service
from understudy.proxy.dialects import KINDS
from understudy.proxy.dialects.base import Dialect
from understudy.proxy.settings import (
    Endpoint,
    Limit,
    Limits,
    LocalTier,
    Route,
    Tier,
    UpstreamTier,
    at_endpoint,
    endpoints_of,
)

ROUTE_ORDER = (
    ("observe", "outermost, so that what is counted is what the caller saw"),
    ("deadline", "before anything can wait, so that everything that waits knows until when"),
    ("chain", "the tiers in order; each has its own policies, since each fails by itself"),
)

TIER_ORDER = (
    ("retry", "outside the breaker, so that every attempt is counted and an open breaker ends the attempts"),
    ("balance", "inside the retry, so that another attempt can go to another endpoint; one endpoint needs none"),
    ("breaker", "outside the limit: a tier known to be down must not cost the caller a wait for a place"),
    ("limit", "next to the tier, so that a place is held only while the tier is really being asked"),
    ("tier", "an endpoint over HTTP, or the local models and indexes"),
)
"""What stands inside `balance` stands there once for each endpoint."""


@dataclass(slots=True)
class EndpointParts:
    """What is remembered of one endpoint, carried over a reload while its name and its place stay what they are.

    A local tier has one too, with its own name and without a breaker.
    """

    name: str
    bulkhead: Bulkhead
    breaker: Breaker | None = None
    place: object = None


@dataclass(slots=True)
class TierParts:
    """What a tier remembers beyond the policies that made it, carried over a reload by name."""

    endpoints: dict[str, EndpointParts] = field(default_factory=dict[str, EndpointParts])
    link: Link | None = None

    @property
    def only(self) -> EndpointParts:
        """The endpoint of a tier that has but one."""
        (parts,) = self.endpoints.values()
        return parts


@dataclass(slots=True)
class RouteParts:
    """A route put together: the service to call, and what `/metrics` and `/status` read."""

    route: Route
    dialect: Dialect
    service: Service
    tally: RouteTally
    links: tuple[Link, ...]
    tiers: dict[str, TierParts] = field(default_factory=dict[str, TierParts])

    @property
    def name(self) -> str:
        return self.route.name

    @property
    def body_bytes_max(self) -> int:
        return _set(self.route.body_bytes_max, Limits().body_bytes_max)


@dataclass(frozen=True, slots=True)
class World:
    """What the stack takes from outside itself, so that tests can bring their own."""

    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[object]]
    dice: Callable[[], float] = random.random


T = TypeVar("T")
MakeTier = Callable[[Route, Tier, str], Service]
"""Given a tier as it is at one of its endpoints, and the name of that one (the tier's own where it has but one)."""


def assemble(
    route: Route,
    dialect: Dialect,
    world: World,
    make_tier: MakeTier,
    *,
    absent: Mapping[str, str] | None = None,
    before: RouteParts | None = None,
) -> RouteParts:
    """Put a route together in the orders above.

    `absent` names the tiers that are configured but not there, with the reason. What `before` had learnt (breakers,
    places taken, counts) goes on under the same names.
    """
    absent = absent or {}
    tiers: dict[str, TierParts] = {}
    links: list[Link] = []
    for position, tier in enumerate(route.tiers):
        old = before.tiers.get(tier.name) if before else None
        parts = tiers[tier.name] = TierParts()
        service = None
        if tier.name not in absent:
            service = _tier_stack(route, tier, parts, old, world, make_tier)
        link = parts.link = Link(tier.name, rank_of(position), service, absent.get(tier.name, ""))
        if old and old.link:
            link.outcomes = old.link.outcomes
        links.append(link)
    tally = before.tally if before else RouteTally()
    clocks = Deadline(route.deadline.total_s, route.deadline.reserve_s)
    service = chain(links, clocks, clock=world.clock)
    service = deadline(service, clocks)
    service = observe(service, tally, clock=world.clock)
    return RouteParts(route, dialect, service, tally, tuple(links), tiers)


def _tier_stack(
    route: Route, tier: Tier, parts: TierParts, old: TierParts | None, world: World, make_tier: MakeTier
) -> Service:
    if isinstance(tier, LocalTier):
        # what is ours is not worth asking twice, and has no endpoint to spare
        own = parts.endpoints[tier.name] = _carried(old, tier.name, None, route, tier)
        return limit(make_tier(route, tier, tier.name), own.bulkhead, clock=world.clock)
    peers = [
        Peer(
            f"{tier.name}/{endpoint.name}",
            _endpoint_stack(route, tier, endpoint, parts, old, world, make_tier),
            endpoint.weight,
        )
        for endpoint in endpoints_of(tier)
    ]
    # with one endpoint there is nothing to choose, and the layer is not there
    service = balance(peers) if len(peers) > 1 else peers[0].service
    again = _set(tier.retry, route.retry)
    heart = Retry(again.attempts, again.base_s, again.wait_s_max)
    return retry(service, heart, clock=world.clock, dice=world.dice, sleep=world.sleep)


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
    own.breaker.rules = rules
    service = make_tier(route, at_endpoint(tier, endpoint), endpoint.name)
    service = limit(service, own.bulkhead, clock=world.clock)
    return breaker(service, own.breaker, clock=world.clock, dice=world.dice)


def _carried(old: TierParts | None, name: str, place: object, route: Route, tier: Tier) -> EndpointParts:
    """What was known under this name, if it is still about the same place."""
    limits = effective_limit(route, tier)
    before = old.endpoints.get(name) if old else None
    if before is None or before.place != place:
        return EndpointParts(name, Bulkhead(limits, learns_from(route, tier)), place=place)
    before.bulkhead.rules = limits
    return EndpointParts(name, before.bulkhead, before.breaker, place)


def effective_limit(route: Route, tier: UpstreamTier | LocalTier) -> Limit:
    """A tier's own limit, or its route's."""
    return _set(tier.limit, route.limit)


def learns_from(route: Route, tier: Tier) -> Signal | None:
    """What an adaptive limit learns from here; a local tier's is never adaptive, since nobody would answer instead."""
    if isinstance(tier, LocalTier):
        return None
    return "latency" if KINDS.get(route.dialect) in ("embed", "retrieve") else "failures"


def _set(value: T | UnsetType, otherwise: T) -> T:
    return otherwise if isinstance(value, UnsetType) else value
