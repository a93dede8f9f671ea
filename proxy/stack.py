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
from understudy.policies.breaker import Breaker, breaker
from understudy.policies.chain import Link, chain, rank_of
from understudy.policies.deadline import Deadline, deadline
from understudy.policies.limit import Bulkhead, limit
from understudy.policies.observe import RouteTally, observe
from understudy.policies.retry import Retry, retry
from understudy.policies.service import Service
from understudy.proxy.dialects import KINDS
from understudy.proxy.dialects.base import Dialect
from understudy.proxy.settings import Limit, Limits, LocalTier, Route, Tier, UpstreamTier

ROUTE_ORDER = (
    ("observe", "outermost, so that what is counted is what the caller saw"),
    ("deadline", "before anything can wait, so that everything that waits knows until when"),
    ("chain", "the tiers in order; each has its own policies, since each fails by itself"),
)

TIER_ORDER = (
    ("retry", "outside the breaker, so that every attempt is counted and an open breaker ends the attempts"),
    ("breaker", "outside the limit: a tier known to be down must not cost the caller a wait for a place"),
    ("limit", "next to the tier, so that a place is held only while the tier is really being asked"),
    ("tier", "an upstream over HTTP, or the local models and indexes"),
)


@dataclass(slots=True)
class TierParts:
    """What a tier remembers beyond the policies that made it, carried over a reload by name."""

    breaker: Breaker | None = None
    bulkhead: Bulkhead | None = None
    link: Link | None = None


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
MakeTier = Callable[[Route, Tier], Service]


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
    service = make_tier(route, tier)
    limits = effective_limit(route, tier)
    parts.bulkhead = (old and old.bulkhead) or Bulkhead(limits, learns_from(route, tier))
    parts.bulkhead.rules = limits
    service = limit(service, parts.bulkhead, clock=world.clock)
    if isinstance(tier, LocalTier):
        # what is ours is not worth asking twice, and has no endpoint to spare
        return service
    parts.breaker = (old and old.breaker) or Breaker(_set(tier.breaker, route.breaker))
    parts.breaker.rules = _set(tier.breaker, route.breaker)
    service = breaker(service, parts.breaker, clock=world.clock, dice=world.dice)
    again = _set(tier.retry, route.retry)
    heart = Retry(again.attempts, again.base_s, again.wait_s_max)
    return retry(service, heart, clock=world.clock, dice=world.dice, sleep=world.sleep)


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
