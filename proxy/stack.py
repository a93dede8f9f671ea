"""A call goes through a stack of policies to a chain of tiers: the two orders, and how a route is put together.

To read a route from outside in, read ROUTE_ORDER and then, for each of its tiers, TIER_ORDER. The reasons are part of
the order: whoever moves an entry answers them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import structs

from understudy.policies.chain import Link, chain, rank_of
from understudy.policies.coalesce import coalesce
from understudy.policies.deadline import Deadline, deadline
from understudy.policies.observe import RouteTally, observe
from understudy.policies.service import Answer, Call, Headers, Refused, Service
from understudy.policies.shed import shed
from understudy.policies.spend import Budgets, cheaper_chains, spend
from understudy.policies.tokens import Buckets, limits_anything, tokens
from understudy.policies.trace import trace
from understudy.proxy.arms import Tools, divided, faulty_route, faulty_tier, has_faults, mirrored
from understudy.proxy.caching.caches import Caches
from understudy.proxy.caching.last_words import last_words_of
from understudy.proxy.caching.route_cache import behind_what_is_kept
from understudy.proxy.dialects import KINDS
from understudy.proxy.dialects.base import Dialect
from understudy.proxy.http.forwarding import parent_of
from understudy.proxy.parts import EndpointParts as EndpointParts
from understudy.proxy.parts import RouteParts as RouteParts
from understudy.proxy.parts import TierParts as TierParts
from understudy.proxy.parts import World as World
from understudy.proxy.questions import Story, story_of
from understudy.proxy.settings import settings
from understudy.proxy.settings.settings import (
    LocalTier,
    Route,
    Tier,
    UpstreamTier,
)
from understudy.proxy.spaces.held_writes import held_writes_of
from understudy.proxy.spaces.spaces import NO_PLAN, Plan, spaced
from understudy.proxy.tier_stack import AfterThis, MakeTier, ramp_of, tier_stack
from understudy.proxy.tiers.judging import tier_judge
from understudy.proxy.tiers.upstream import first_content_s_of

if TYPE_CHECKING:
    from understudy.policies.last_words import Foreseen
    from understudy.policies.likeness import Likeness
    from understudy.proxy.caching.likeness import Alike
    from understudy.proxy.reports.tracing import Tracer

ROUTE_ORDER = (
    ("trace", "outermost, so that a span is as long as what the caller saw; only where traces are sent somewhere"),
    ("observe", "outside whatever decides, so that what is counted is what the caller saw"),
    ("shed", "before anything is done for a call that will not be answered; it is there only while the process lags"),
    ("fault", "inside observe, so that what was broken for callers on purpose is counted like any other trouble"),
    ("deadline", "before anything can wait, so that everything that waits knows until when"),
    (
        "question",
        "in the deadline's own shell, since calls of one question share it; outside every cache, since what an answer "
        "is built on is not to be kept",
    ),
    ("tokens", "outside every cache, since a caller's rate is what it asks for; there only where rates are set"),
    (
        "spaces",
        "outside every arm, cache and shadow, for each asks a primary, which must never see a handle; there only where "
        "handles may be about, or vectors are remembered",
    ),
    ("split", "outside whatever remembers answers, so that one arm's are never given to the other's callers"),
    ("cache", "outside whatever asks: what was answered before costs no attempt, no place and no wait"),
    (
        "likeness",
        "inside the split, as one arm's answers prove nothing of the other's; it learns from what the chain answers",
    ),
    (
        "last_words",
        "inside the likeness: what was written beforehand goes before what is remembered; a message after it",
    ),
    ("coalesce", "inside the cache, so that only calls that find nothing wait, and their one answer is kept once"),
    ("shadow", "next to the chain: only what was really asked is asked again, and what was remembered is not compared"),
    ("watch", "as the shadow is, next to the chain: what was remembered says nothing of how the primary is"),
    (
        "stream",
        "next to the chain: who goes on with a stream that broke is one of its tiers; only where streams are continued",
    ),
    (
        "mirror",
        "next to the chain, inside the split: it must see which tier said yes to a write, and no arm's database is the "
        "one it copies; only where it is asked for",
    ),
    (
        "spend",
        "next to the chain, whose tiers it chooses from: what was remembered is given also when all is spent; only "
        "where there are budgets",
    ),
    ("chain", "the tiers in order; each has its own policies, since each fails by itself"),
)

TIER_ORDER = (
    (
        "ramp",
        "asked by the chain itself: a call kept back, also from what is unhealthy, costs the tier nothing, and comes "
        "back if nobody else answers",
    ),
    ("retry", "outside the breaker, so that every attempt is counted and an open breaker ends the attempts"),
    ("budget", "shared by retry and hedge: what either spends the other has not"),
    (
        "hedge",
        "inside the retry: who fails is asked again, who is slow is asked beside; the attempt that is called off "
        "is to the breaker and the limit further in a caller who has left",
    ),
    ("balance", "inside the retry, so that another attempt can go to another endpoint; one endpoint needs none"),
    ("breaker", "outside the limit, since a tier known to be down must not cost the caller a wait for a place"),
    ("quota", "outside the limit, since who waits for the provider must hold no place; a tier that is down has none"),
    ("limit", "next to the tier, so that a place is held only while the tier is really being asked"),
    ("fault", "innermost, as if the upstream did it: whatever is to be rehearsed stands round it"),
    ("stream", "in the tier itself, which alone sees the parts of a stream come; it holds it back until first content"),
    ("tier", "an endpoint over HTTP, or the local models and indexes"),
)
"""What stands inside `balance` stands there once for each endpoint."""


def assemble(
    route: Route,
    dialect: Dialect,
    world: World,
    make_tier: MakeTier,
    *,
    absent: Mapping[str, str] | None = None,
    before: RouteParts | None = None,
    faults: bool = False,
    caches: Caches | None = None,
    space: str = "",
    zone: str | None = None,
    plan: Plan = NO_PLAN,
    foreseen: Foreseen | None = None,
    tap: Callable[[Service], Service] | None = None,
    budgets: Budgets | None = None,
    tracer: Tracer | None = None,
) -> RouteParts:
    """Put a route together in the orders above.

    `absent` names the tiers that are configured but not there, with the reason. What `before` had learnt (breakers,
    places taken, counts) goes on under the same names. `faults` lets what is planned to break do so.
    `caches` is there when any route has a cache or likeness; `space` is the route's vector space, `zone`
    is where we are, `plan` what it does about vectors, `foreseen` the questions of the files that the route names;
    `tap` has a mirror see the writes that pass; `budgets` are what the route may spend; `tracer` makes spans.
    """
    tally = before.tally if before else RouteTally()
    tally.late_s = route.objectives.latency_s
    parts = RouteParts(route, dialect, _nobody, tally, ())
    clocks = Deadline(route.deadline.total_s, route.deadline.reserve_s)
    build = _Build(parts, before, world, _made_once(make_tier), absent or {}, faults=faults, zone=zone)
    if caches is not None and route.cache.enabled and route.dialect != "plain":
        keeps = _kept_rank(route, build.absent)
        parts.cache = caches.of_route(route, dialect, space, tally, keeps, before.cache if before else None)
    parts.likeness, alike = _likeness(route, dialect, world, caches, before)
    known = before.last_words if before else None
    parts.last_words = last_words_of(route, dialect, foreseen, known, clock=world.clock, embed=world.embed)
    parts.links = build.links(route.tiers, parts.tiers, alike=alike)
    service = chain(parts.links, clocks, clock=world.clock)
    if budgets is not None:
        parts.budgets = budgets
        service = build.sparing(service, budgets, clocks)
    if tap is not None:
        service = tap(service)
    service = build.gone_on_with(service, clocks)
    service = build.elsewhere(service, clocks, alike)
    if caches is not None:
        service = caches.watching(service, dialect, route)
    service = build.spaced(service, space, plan)
    service = build.metered(service)
    service = deadline(service, clocks, _longer_s(route), build.story())
    if faults and has_faults(route):
        service = faulty_route(service, route, parts.arms, before.arms if before else None, dialect, build.tools)
    elif parts.cache is not None and route.split is None and parts.buckets is None and tracer is None:
        parts.hit, parts.quick_hit = parts.cache.hit, parts.cache.quick_hit
    build.watched(service, tracer)
    return parts


class _Build:
    """What it takes to put the tiers of one route together, its own and those of its arms."""

    def __init__(
        self,
        parts: RouteParts,
        before: RouteParts | None,
        world: World,
        make_tier: MakeTier,
        absent: Mapping[str, str],
        *,
        faults: bool,
        zone: str | None,
    ) -> None:
        self.parts = parts
        self.before = before
        self.world = world
        self.make_tier = make_tier
        self.absent = absent
        self.faults = faults
        self.zone = zone
        self.tools = Tools(world.clock, world.dice, world.sleep)

    def links(
        self, tiers: Sequence[Tier], into: dict[str, TierParts], *, apart: bool = False, alike: Alike | None = None
    ) -> tuple[Link, ...]:
        """The tiers as links of a chain; `apart` says that nothing live may learn from them, nor they from it. What
        is `alike` goes before a local tier."""
        links: list[Link] = []
        for position, tier in enumerate(tiers):
            old = self.before.tiers.get(tier.name) if self.before and not apart else None
            parts = into[tier.name] = TierParts()
            service = None
            if tier.name not in self.absent:
                service = self._tier(tier, parts, old, AfterThis(links, position, len(tiers)), alike)
            link = parts.link = Link(tier.name, rank_of(position), service, self.absent.get(tier.name, ""))
            if isinstance(tier, UpstreamTier) and service is not None and not apart:
                link.ramp = ramp_of(self.parts.route, tier, parts, old, self.world)
            if old and old.link:
                link.outcomes, link.seconds = old.link.outcomes, old.link.seconds
            links.append(link)
        return tuple(links)

    def _tier(
        self, tier: Tier, parts: TierParts, old: TierParts | None, after: AfterThis, alike: Alike | None
    ) -> Service:
        service = tier_stack(self.parts.route, tier, parts, old, self.world, self._made, after, self.zone)
        if alike is not None and isinstance(tier, LocalTier):
            service = alike.before(service)
        if self.parts.cache is not None and isinstance(tier, LocalTier):
            service = behind_what_is_kept(service)
        words = self.parts.last_words
        return words.before(service) if words is not None and isinstance(tier, LocalTier) else service

    def _made(self, route: Route, tier: Tier, endpoint: str) -> Service:
        """The tier itself, and what is planned to break in it."""
        service = self.make_tier(route, tier, endpoint)
        if not self.faults or not tier.faults:
            return service
        dialect, before = self.parts.dialect, self.before.arms if self.before else None
        judge = tier_judge(route, tier, dialect)
        return faulty_tier(service, tier, endpoint, self.parts.arms, before, dialect, judge, self.tools)

    def gone_on_with(self, service: Service, clocks: Deadline) -> Service:
        """`service`, whose broken streams another tier goes on with, where the route asks for it."""
        parts = self.parts
        if parts.route.stream.after_first_content != "continue":
            return service
        # with three dialects behind it, a megabyte that few routes have a use for
        from understudy.proxy.tiers.continuing import continuations_of

        made = parts.continuations = continuations_of(parts.route, parts.links, clocks, self.world.clock)
        if made is None:
            return service
        made.goes_on_from(self.before.continuations if self.before else None)
        return made.around(service)

    def elsewhere(self, service: Service, clocks: Deadline, alike: Alike | None) -> Service:
        """`service`, with a share of its calls sent to an arm, a share of its reads mirrored to one, and those that are
        like others answered as they were."""
        route, arms = self.parts.route, self.parts.arms
        before = self.before.arms if self.before else None
        if route.split is not None:
            name = route.split.arm
            arms.links[name] = self.links(route.arms[name].tiers, self.parts.tiers)
        if route.watch is not None:
            from understudy.proxy.watching.watching import watch_of

            old = self.before.watch if self.before else None
            self.parts.watch = watch_of(
                route, self.parts.dialect, self.parts.links, lambda tier: self._apart([tier], clocks), old, self.world
            )
            service = self.parts.watch.around(service, self.world.dice) if self.parts.watch else service
        if route.shadow is not None:
            other = self._apart(route.arms[route.shadow.arm].tiers, clocks)
            service = mirrored(service, other, route, arms, before, self.tools)
        cache = self.parts.cache
        # of the route's own tiers only: another arm's answers are what somebody wants to look at
        if cache is not None and route.coalesce.enabled:
            service = coalesce(service, cache.flights, clocks, clock=self.world.clock, shareable=cache.is_shared)
        words = self.parts.last_words
        if words is not None and not any(isinstance(tier, LocalTier) for tier in self._present(route.tiers)):
            service = words.around(service)
        if alike is not None:
            service = alike.around(service)
        if words is not None:
            service = words.finally_(service)
        if cache is not None:
            service = cache.remembering(service)
        if route.split is not None:
            links, stood_in_for = arms.links[route.split.arm], route.split.fall_back
            other = chain(links, clocks, clock=self.world.clock, stood_in_for=stood_in_for)
            service = divided(service, other, route, arms, before, clocks, self.tools)
        return service

    def _apart(self, tiers: Sequence[Tier], clocks: Deadline) -> Service:
        """These tiers, asked once and so that nothing live learns from them."""
        return chain(self.links([_asked_once(tier) for tier in tiers], {}, apart=True), clocks, clock=self.world.clock)

    def _present(self, tiers: Sequence[Tier]) -> list[Tier]:
        return [tier for tier in tiers if tier.name not in self.absent]

    def sparing(self, service: Service, budgets: Budgets, clocks: Deadline) -> Service:
        """`service`, the chain, as far as the budgets reach."""
        rules, world = self.parts.route.spend, self.world
        cheaper = cheaper_chains(service, rules.budgets, self.parts.links, clocks, clock=world.clock)
        refuse = _refusing(self.parts.dialect, "budget_exceeded")
        return spend(service, budgets, cheaper, wall=world.wall, refuse=refuse, by=rules.by)

    def spaced(self, service: Service, space: str, plan: Plan) -> Service:
        """`service`, with vectors kept to their own space, and writes kept until their vectors can be had."""
        parts, world = self.parts, self.world
        if world.provenance is None:
            return service
        known, provenance = self.before.held if self.before else None, world.provenance
        parts.held = held_writes_of(parts.route, parts.dialect, service, space, provenance, known, world.state)
        return spaced(
            service, parts.route, parts.dialect, space, plan, provenance, parts.links, world.clock, parts.held
        )

    def story(self) -> Story | None:
        """The route's part in questions, where it has any."""
        parts = self.parts
        parts.story = story_of(parts.route, parts.dialect, self.world, self.before.story if self.before else None)
        return parts.story

    def metered(self, service: Service) -> Service:
        """`service` behind the route's own rate limits, where it has any."""
        rules, parts = self.parts.route.tokens, self.parts
        if not limits_anything(rules):
            return service
        parts.buckets = (self.before and self.before.buckets) or Buckets(rules)
        parts.buckets.obey(rules)
        return tokens(
            service, parts.buckets, clock=self.world.clock, refuse=_refusing(parts.dialect, "rate_limit_exceeded")
        )

    def watched(self, service: Service, tracer: Tracer | None) -> None:
        """Put the whole in place, twice: as it is while all is calm, and as it is while the process lags."""
        parts, world = self.parts, self.world

        def seen(service: Service) -> Service:
            counted = observe(service, parts.tally, clock=world.clock)
            if tracer is None:
                return counted
            return trace(
                counted, tracer.sampler, tracer.record, clock=world.clock, wall=world.wall, parent_of=parent_of
            )

        parts.service = parts.calm = seen(service)
        if world.shedder is not None:
            parts.shed = self.before.shed if self.before else {}
            service = shed(service, world.shedder, parts.route.shed.priority, parts.shed, dice=world.dice)
            parts.pressed = seen(service)
            parts.relieve(pressed=world.shedder.pressure > 0)


def _longer_s(route: Route) -> Callable[[bytes], float] | None:
    """How much longer than others a prompt may take, where models that think first are known."""
    if KINDS.get(route.dialect) != "generate":
        return None
    return first_content_s_of([tier for _, tier in route.every_tier if isinstance(tier, UpstreamTier)])


def _kept_rank(route: Route, absent: Mapping[str, str]) -> str:
    """The rank of the tier whose answers are kept: the first that is there, if it is an upstream, or ''."""
    for position, tier in enumerate(route.tiers):
        if tier.name not in absent:
            return rank_of(position) if isinstance(tier, UpstreamTier) else ""
    return ""


def _asked_once(tier: Tier) -> Tier:
    """A shadow that failed is a finding, and not worth another attempt."""
    if isinstance(tier, LocalTier):
        return tier
    return structs.replace(tier, retry=settings.Retry(attempts=1), hedge=settings.Hedge(enabled=False))


async def _nobody(_call: Call) -> Answer:
    raise Refused("starting", "this route is not put together yet")


def _made_once(make_tier: MakeTier) -> MakeTier:
    """A tier of a split's arm and a shadow's is one tier, with one pool of connections."""
    made: dict[tuple[str, str], Service] = {}

    def once(route: Route, tier: Tier, endpoint: str) -> Service:
        if (tier.name, endpoint) not in made:
            made[tier.name, endpoint] = make_tier(route, tier, endpoint)
        return made[tier.name, endpoint]

    return once


def _refusing(dialect: Dialect, reason: str) -> Callable[[str, Headers], Answer]:
    def refusing(detail: str, headers: Headers) -> Answer:
        return dialect.error(429, reason, detail, headers=headers)

    return refusing


def _likeness(
    route: Route, dialect: Dialect, world: World, caches: Caches | None, before: RouteParts | None
) -> tuple[Likeness | None, Alike | None]:
    """A route's likeness, where it is asked for and its calls can be alike; what was learnt goes on."""
    if route.likeness.mode == "off" or caches is None:
        return None, None
    # only here: without it no worker needs numpy for its policies
    from understudy.proxy.caching.likeness import likeness_of

    heart = before.likeness if before else None
    return likeness_of(route, dialect, caches.town, heart, clock=world.clock, dice=world.dice, embed=world.embed)
