"""Put together what sends calls elsewhere or breaks them: a route's arms, its split and shadow, and planned faults.

    split ---- share ----> arm's tiers, with policies of their own
      +--------- rest ---> the route's own tiers --- shadow - - sampled, later - -> arm's tiers once more, apart

What was learnt goes on over a reload: counts always, a share that was set live as long as the file's own is the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from understudy.policies.chain import Link
from understudy.policies.compare import Agreement
from understudy.policies.deadline import Deadline
from understudy.policies.fault import Injection, fault, marked
from understudy.policies.service import Service
from understudy.policies.shadow import Mirror, Shadowing, shadow
from understudy.policies.split import (
    MAIN,
    Key,
    Manner,
    Split,
    call_key,
    caller_key,
    first_key,
    header_key,
    split,
    tenant_key,
)
from understudy.proxy.dialects.base import Dialect
from understudy.proxy.settings.arm_rules import described
from understudy.proxy.settings.settings import PlannedFault, Route, Tier, UpstreamTier
from understudy.proxy.stages import RouteStage, TierStage
from understudy.proxy.tiers.judging import Judge
from understudy.proxy.watching.reading_answers import body_field, results_of

AT_ROUTE = "route"


@dataclass(slots=True)
class ArmParts:
    """What a route has beyond its own tiers; all of it empty for most."""

    links: dict[str, tuple[Link, ...]] = field(default_factory=dict[str, tuple[Link, ...]])
    split: Split | None = None
    shadowing: Shadowing | None = None
    agreement: Agreement | None = None
    injections: dict[tuple[str, str], Injection] = field(default_factory=dict[tuple[str, str], Injection])
    """The faults that are enabled, by where they are (a tier's name, or `route`) and what they are called."""
    clock: Callable[[], float] = float


@dataclass(frozen=True, slots=True)
class Tools:
    """The clock, the dice and the bed, as the stack has them."""

    clock: Callable[[], float]
    dice: Callable[[], float]
    sleep: Callable[[float], Awaitable[object]]


def split_key(route: Route) -> Key:
    """What of a call decides its arm."""
    assert route.split is not None
    keys: list[Key] = []
    for each in route.split.keys:
        word, _, name = each.partition(":")
        if word == "header":
            keys.append(header_key(name.lower().encode()))
        elif word == "body":
            keys.append(body_field(name))
        else:
            keys.append({"tenant": tenant_key, "caller": caller_key, "call": call_key}[word])
    return first_key(keys)


def divided(
    service: Service,
    arm: Service,
    route: Route,
    parts: ArmParts,
    before: ArmParts | None,
    clocks: Deadline,
    tools: Tools,
) -> Service:
    """`service` with a share of its calls sent to `arm`."""
    rules = route.split
    assert rules is not None
    heart = parts.split = Split(rules.arm, rules.share, rules.salt or route.name)
    old = before.split if before else None
    if old is not None:
        heart.carry(old)
    manner = Manner(rules.fall_back, rules.force)
    return split({MAIN: service, rules.arm: arm}, heart, clocks, split_key(route), manner=manner, clock=tools.clock)


def mirrored(
    service: Service, arm: Service, route: Route, parts: ArmParts, before: ArmParts | None, tools: Tools
) -> Service:
    """`service` with a share of its reads asked of `arm` as well."""
    rules = route.shadow
    assert rules is not None
    heart = Mirror(rules, tools.clock())
    compare = parts.agreement = Agreement(results_of)
    if before is not None and before.shadowing is not None and before.agreement is not None:
        heart.carry(before.shadowing.heart)
        compare.carry(before.agreement)
    parts.shadowing = Shadowing(heart, arm, compare, tools.clock)
    return shadow(service, parts.shadowing, clock=tools.clock, dice=tools.dice)


def faulty_tier(
    service: Service,
    tier: Tier,
    endpoint: str,
    parts: ArmParts,
    before: ArmParts | None,
    dialect: Dialect,
    judge: Judge,
    tools: Tools,
) -> Service:
    """One endpoint of a tier with the faults that are planned for it, as if it did them itself."""
    hearts = _injections(tier.name, tier.faults, parts, before, tools.clock)
    hearts = [heart for heart, each in zip(hearts, tier.faults, strict=True) if each.endpoint in (None, endpoint)]
    first_byte_s = tier.first_byte_s if isinstance(tier, UpstreamTier) else float("inf")
    stage = TierStage(dialect, judge, clock=tools.clock, first_byte_s=first_byte_s)
    return fault(service, hearts, stage, clock=tools.clock, dice=tools.dice, sleep=tools.sleep)


def faulty_route(
    service: Service, route: Route, parts: ArmParts, before: ArmParts | None, dialect: Dialect, tools: Tools
) -> Service:
    """A route with the faults that are planned for its callers; every fault leaves its name on the answer."""
    hearts = _injections(AT_ROUTE, route.faults, parts, before, tools.clock)
    if hearts:
        stage = RouteStage(dialect)
        service = fault(service, hearts, stage, clock=tools.clock, dice=tools.dice, sleep=tools.sleep)
    return marked(service)


def has_faults(route: Route) -> bool:
    """Whether anything is planned to break on this route."""
    return bool(route.faults) or any(tier.faults for _, tier in route.every_tier)


def fault_lines(route: Route, parts: ArmParts) -> list[dict[str, object]]:
    """The enabled faults of a route, for `/status`."""
    planned: Mapping[str, list[PlannedFault]] = {
        AT_ROUTE: route.faults,
        **{tier.name: tier.faults for _, tier in route.every_tier},
    }
    lines: list[dict[str, object]] = []
    for at, faults in planned.items():
        for name, each in _named(faults):
            heart = parts.injections.get((at, name))
            if heart is not None:
                words = described(each)
                lines.append(
                    {"at": at, "name": name, "what": words, "on": heart.is_on(parts.clock()), "hits": heart.hits}
                )
    return lines


def _named(faults: list[PlannedFault]) -> list[tuple[str, PlannedFault]]:
    """Each fault under a name that no other at this place has."""
    named: dict[str, PlannedFault] = {}
    for each in faults:
        name = wanted = each.name or each.do
        number = 2
        while name in named:
            name, number = f"{wanted}-{number}", number + 1
        named[name] = each
    return list(named.items())


def _injections(
    at: str, faults: list[PlannedFault], parts: ArmParts, before: ArmParts | None, clock: Callable[[], float]
) -> list[Injection]:
    hearts: list[Injection] = []
    parts.clock = clock
    for name, planned in _named(faults):
        heart = Injection(name, planned, clock())
        old = before.injections.get((at, name)) if before else None
        if old is not None:
            heart.hits = old.hits
            if old.rules == planned:
                # a reload that left it as it was leaves its clock running
                heart.began = old.began
        # the same fault may stand in two stacks, a split's and a shadow's: it is one fault all the same
        hearts.append(parts.injections.setdefault((at, name), heart))
    return hearts
