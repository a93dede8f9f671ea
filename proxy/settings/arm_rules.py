"""Say what the types can't of arms, of those who send calls to them, and of what is broken on purpose.

A vector of one space searched among vectors of another finds noise, and no error says so: an arm of a route for
embeddings or retrieval must be known to live in the route's own space before anybody is sent there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from understudy.models.space import same_space
from understudy.proxy.settings.scalars import did_you_mean
from understudy.proxy.settings.settings import (
    MAIN_ARM,
    LocalTier,
    PlannedFault,
    Route,
    Settings,
    Tier,
    UpstreamTier,
    endpoints_of,
)
from understudy.proxy.settings.spots import Fault, Place, named

ARMS_MAX = 8
FAULTS_MAX = 16
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
SPACED_KINDS = ("embed", "retrieve")
READ_KINDS = ("embed", "retrieve", "generate")
SPACE_UNKNOWN = "vectors of an arm must be in the route's own space: say which that is, as the route's `space`"

SPACE_OTHER = "vectors of an arm must be in the route's own space, and these are in another"


def arm_faults(settings: Settings, route: Route, dialects: Mapping[str, str], at: Place) -> Iterator[Fault]:
    """What is wrong with a route's arms, its split and its shadow, and the faults it plans."""
    kind = dialects.get(route.dialect, "")
    if len(route.arms) > ARMS_MAX:
        yield from at.fault(f"more than {ARMS_MAX} arms", "arms")
    for name in route.arms:
        here = at.at("arms").at(named(name))
        if name == MAIN_ARM:
            yield from here.fault("the route's own tiers are the arm of this name")
        elif not _NAME.fullmatch(name):
            yield from here.fault("must be lower-case letters, digits, '.', '_' and '-', a letter or digit first")
        yield from _order_faults(name, route, kind, here)
        if kind in SPACED_KINDS:
            yield from _space_faults(settings, name, route, here)
    for policy in ("split", "shadow"):
        named_arm = getattr(route, policy)
        if named_arm is not None and named_arm.arm not in route.arms:
            hint = did_you_mean(named_arm.arm, route.arms) or f"; known here: {', '.join(route.arms) or 'none'}"
            yield from at.fault(f"the route has no arm of this name{hint}", f"{policy}.arm", reads=["arms"])
    if route.shadow is not None and kind and kind not in READ_KINDS:
        why = f"nothing is mirrored in dialect {route.dialect}: nobody knows which of its calls are reads"
        yield from at.fault(why, "shadow", reads=["dialect"])
    if route.watch is not None:
        yield from _watch_faults(route, kind, at)
    yield from _planned_faults(route.faults, [], kind, at)
    for key, tier in route.every_tier:
        names = [each.name for each in endpoints_of(tier)] if isinstance(tier, UpstreamTier) else []
        yield from _planned_faults(tier.faults, names, kind, at.at(key))


def _watch_faults(route: Route, kind: str, at: Place) -> Iterator[Fault]:
    if kind and kind not in SPACED_KINDS:
        yield from at.fault(f"nothing is known to be right in dialect {route.dialect}", "watch", reads=["dialect"])
    if not any(isinstance(tier, UpstreamTier) for tier in route.tiers):
        yield from at.fault("there is no upstream to watch", "watch", reads=["tiers"])
    if kind == "retrieve" and not any(isinstance(tier, LocalTier) for tier in route.tiers):
        why = "searches are compared with a local tier's, and the route has none"
        yield from at.fault(why, "watch", reads=["tiers"])


def arm_warnings(settings: Settings, route: Route, at: Place) -> Iterator[Fault]:
    """What is allowed, and may surprise: above all, what will break on purpose."""
    split = route.split
    used = {each.arm for each in (split, route.shadow) if each is not None}
    for name in route.arms:
        if name not in used:
            yield from at.fault("nobody is sent to this arm", f"arms.{named(name)}", reads=["split", "shadow"])
    if split is not None and set(split.keys) <= {"tenant", "caller"}:
        why = "beside one application all calls have one key, so either all or none of them go to the arm"
        yield from at.fault(why, "split.keys")
    if split is not None and split.force:
        yield from at.fault("callers choose their arm with the header x-understudy-arm", "split.force")
    for key, planned, whom in every_fault(route):
        if settings.server.faults:
            here = at.at(key)
            # in the file's own words, as a variable's are never repeated
            written = [f"{name} {here.written(name)}" for name in planned.__struct_fields__[1:] if here.has(name)]
            words = ", ".join([here.written("do"), *(each for each in written if not each.startswith("headers"))])
            yield from here.fault(f"BROKEN ON PURPOSE, {whom}: {words}", reads=["do"])


def every_fault(route: Route) -> Iterator[tuple[str, PlannedFault, str]]:
    """Each fault that a route and its tiers plan: the key it stands at, and whom it befalls, in words."""
    for n, planned in enumerate(route.faults):
        yield f"faults[{n}]", planned, "for callers"
    for key, tier in route.every_tier:
        for n, planned in enumerate(tier.faults):
            yield f"{key}.faults[{n}]", planned, "as if this tier did it"


def described(planned: PlannedFault) -> str:
    """A fault in a few words: `error 503 for 10 % of calls`."""
    detail = {"delay": f" of {planned.delay_s:g} s", "error": f" {planned.status}"}.get(planned.do, "")
    words = f"{planned.do}{detail} for {planned.share * 100:g} % of calls"
    if planned.endpoint:
        words += f" at {planned.endpoint}"
    if planned.headers:
        words += f" with {', '.join(planned.headers)}"
    return words


def _order_faults(name: str, route: Route, kind: str, at: Place) -> Iterator[Fault]:
    tiers = route.arms[name].tiers
    for n, tier in enumerate(tiers):
        if isinstance(tier, LocalTier) and n < len(tiers) - 1:
            yield from at.fault("a local tier always answers, so it must be the last", f"tiers[{n}]")
        if isinstance(tier, LocalTier) and kind == "pass":
            yield from at.fault("nothing can be answered locally in this dialect", f"tiers[{n}]")


def _space_faults(settings: Settings, name: str, route: Route, at: Place) -> Iterator[Fault]:
    space = settings.space_of(route)
    missing = settings.inactive.get(route.name, {})
    for n, tier in enumerate(route.arms[name].tiers):
        if tier.name in missing:
            continue
        own = _space_of(settings, route, tier)
        if not space or not own:
            yield from at.fault(SPACE_UNKNOWN, f"tiers[{n}].space", f"tiers[{n}]")
        elif not same_space(own, space):
            yield from at.fault(SPACE_OTHER, f"tiers[{n}].space", f"tiers[{n}]")


def _space_of(settings: Settings, route: Route, tier: Tier) -> str:
    """The space a tier of an arm is in: its own, or the one that the whole route is said to be in."""
    if isinstance(tier, LocalTier):
        return settings.local.model
    return tier.space or route.space or ""


def _planned_faults(planned: list[PlannedFault], endpoints: list[str], kind: str, at: Place) -> Iterator[Fault]:
    if len(planned) > FAULTS_MAX:
        yield from at.fault(f"more than {FAULTS_MAX} faults", "faults")
    for n, each in enumerate(planned):
        here = at.at(f"faults[{n}]")
        if each.do == "dimension" and kind and kind != "embed":
            yield from here.fault("only embeddings have a dimension that could be wrong", "do")
        if each.endpoint is not None and each.endpoint not in endpoints:
            yield from here.fault("this tier has no endpoint of this name", "endpoint")
        if each.every_s is not None and each.lasts_s is None:
            yield from here.fault("what comes again must also end: lasts_s is missing", "every_s", reads=["lasts_s"])
        elif each.every_s is not None and each.after_s + (each.lasts_s or 0.0) > each.every_s:
            yield from here.fault("after_s and lasts_s together must fit into every_s", "every_s")
