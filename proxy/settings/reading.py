"""Read a policy folder once, believe it afterwards: YAML files in, Settings and every fault out.

    find_files -> compose -> check_file -> lay defaults under -> build -> faults_of, warnings_of
    (bytes)       (nodes)    (trees)       (one tree)            (Settings and spots)

Every stage takes what the one before could save, so that one reading tells everything that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from msgspec import Struct, inspect, structs

from understudy.proxy.caching.answer_files import answer_files, faults_of_answers
from understudy.proxy.dialects import KINDS
from understudy.proxy.settings import settings as types
from understudy.proxy.settings.addresses import tls_of
from understudy.proxy.settings.certificates import faults_of_tls
from understudy.proxy.settings.checking import check_file
from understudy.proxy.settings.policy_files import compose, digest, digest_folder, find_files
from understudy.proxy.settings.rules import faults_of, warnings_of
from understudy.proxy.settings.settings import Settings, inactive_reason
from understudy.proxy.settings.spots import Branch, Fault, Grown, Leaf, Pairs, Place, Row, Spot, Tree, lay

__all__ = ["BadPolicies", "Fault", "Reading", "Spot", "digest_folder", "load", "read_folder"]

ROUTES_MAX = 1000
FAULTS_ENV = "UNDERSTUDY_FAULTS"

_POLICIES: dict[str, type[Struct]] = {
    each.name: cast("inspect.StructType", each.type).cls
    for each in cast("inspect.StructType", inspect.type_info(types.Defaults)).fields
}
"""The policies a route has: deadline, retry, … Those a tier also has are laid over its route's."""


class BadPolicies(Exception):
    """A policy folder that can't be believed, with everything that is wrong with it."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Reading:
    """What came of a folder. `settings` is None exactly when there are faults.

    `origins` maps a path in the settings (`routes[0].retry.attempts`) to the spot its value came from, which may be a
    line of `defaults`; what isn't in it is built in. `tls` and `answers` name files that are worth watching, in
    force or not.
    """

    settings: Settings | None
    faults: tuple[Fault, ...] = ()
    warnings: tuple[Fault, ...] = ()
    origins: Mapping[str, Spot] = field(default_factory=dict[str, Spot])
    tls: types.ServerTls | None = None
    answers: tuple[str, ...] = ()


def load(folder: Path, environ: Mapping[str, str], dialects: Mapping[str, str] = KINDS) -> Settings:
    """The settings of a folder. Raises BadPolicies with every fault."""
    reading = read_folder(folder, environ, dialects)
    if reading.settings is None:
        raise BadPolicies(reading.faults)
    return reading.settings


def read_folder(folder: Path, environ: Mapping[str, str], dialects: Mapping[str, str] = KINDS) -> Reading:
    """Read every policy file directly in `folder`, in this environment. Raises nothing: what is wrong is a fault."""
    faults: list[Fault] = []
    files = find_files(folder, faults)
    trees: list[Branch] = []
    for file in files:
        node = compose(file, faults)
        if node is not None:
            trees.append(check_file(file, node, environ, faults))
    grown = Grown()
    whole = _gather(trees, faults)
    settings = _settled(cast("Settings", grown.build(whole, "")), digest(files), environ)
    top = Place(grown, "", Spot(str(folder), 1, 1))
    faults += faults_of(settings, dialects, top)
    faults += faults_of_tls(settings, top.at("server").at("tls"))
    faults += faults_of_answers(settings, top)
    found = _once(faults)
    warnings = _once(warnings_of(settings, dialects, top))
    return Reading(None if found else settings, found, warnings, grown.spots, tls_of(settings), answer_files(settings))


def _once(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    """The faults in order, each once: what is anchored or inherited is wrong in many places, and put right in one."""
    told: dict[tuple[object, ...], Fault] = {}
    for fault in sorted(faults):
        told.setdefault((fault[:3], fault.key.rpartition(".")[2], fault.why), fault)
    return tuple(told.values())


def _settled(settings: Settings, digest: str, environ: Mapping[str, str]) -> Settings:
    inactive: dict[str, dict[str, str]] = {}
    for route in settings.routes:
        reasons = {tier.name: why for _, tier in route.every_tier if (why := inactive_reason(tier, environ))}
        if reasons:
            inactive[route.name] = reasons
    if environ.get(FAULTS_ENV, "").lower() in ("on", "true", "1", "yes"):
        settings = structs.replace(settings, server=structs.replace(settings.server, faults=True))
    return structs.replace(settings, routes=tuple(settings.routes), digest=digest, inactive=inactive)


# --- many files, one tree ----------------------------------------------------------------------------------------


def _gather(trees: list[Branch], faults: list[Fault]) -> Branch:
    """One tree of Settings: each section from the one file that has it, the routes of all, defaults laid under."""
    sections: dict[str, Tree] = {}
    routes: list[Tree] = []
    for tree in trees:
        for name, part in tree.parts.items():
            if name == "routes":
                routes += part.items if isinstance(part, Row) else []
            elif (first := sections.setdefault(name, part)) is not part and part.spot and first.spot:
                faults.append(Fault.at(part.spot, f"only one file may have this, and {first.spot.place} has it"))
    defaults = sections.pop("defaults", None)
    server = sections.get("server")
    body_bytes_max = _body_bytes_max(server)
    full = [_completed(route, defaults, body_bytes_max) for route in routes[:ROUTES_MAX]]
    if len(routes) > ROUTES_MAX and (spot := routes[ROUTES_MAX].spot):
        faults.append(Fault.at(spot, f"more than {ROUTES_MAX} routes"))
    return Branch(None, Settings, {**sections, "routes": Row(None, full)})


def _body_bytes_max(server: Tree | None) -> Tree:
    limits = server.parts.get("limits") if isinstance(server, Branch) else None
    written = limits.parts.get("body_bytes_max") if isinstance(limits, Branch) else None
    return written or Leaf(None, types.Limits().body_bytes_max)


def _completed(route: Tree, defaults: Tree | None, body_bytes_max: Tree) -> Tree:
    """A route with its policies laid over the defaults, and its tiers' policies over its own."""
    if not isinstance(route, Branch):
        return route
    below = defaults.parts if isinstance(defaults, Branch) else {}
    parts: dict[str, Tree] = {"body_bytes_max": body_bytes_max, **route.parts}
    policies = {name: _over(parts.get(name), below.get(name), name) for name in _POLICIES}
    tiers = parts.get("tiers")
    if isinstance(tiers, Row):
        parts["tiers"] = Row(tiers.spot, [_completed_tier(tier, policies) for tier in tiers.items])
    arms = parts.get("arms")
    if isinstance(arms, Pairs):
        parts["arms"] = Pairs(arms.spot, {name: _completed_arm(arm, policies) for name, arm in arms.items.items()})
    return replace(route, parts={**parts, **policies})


def _completed_arm(arm: Tree, policies: dict[str, Tree]) -> Tree:
    tiers = arm.parts.get("tiers") if isinstance(arm, Branch) else None
    if not isinstance(arm, Branch) or not isinstance(tiers, Row):
        return arm
    completed = Row(tiers.spot, [_completed_tier(tier, policies) for tier in tiers.items])
    return replace(arm, parts={**arm.parts, "tiers": completed})


def _completed_tier(tier: Tree, policies: dict[str, Tree]) -> Tree:
    if not isinstance(tier, Branch):
        return tier
    own = {name: _over(tier.parts.get(name), policies[name], name) for name in policies if _has(tier.type, name)}
    endpoints = tier.parts.get("endpoints")
    if isinstance(endpoints, Row) and "stream" in own:
        own["endpoints"] = Row(endpoints.spot, [_completed_endpoint(each, own["stream"]) for each in endpoints.items])
    return replace(tier, parts={**tier.parts, **own})


def _completed_endpoint(endpoint: Tree, stream: Tree) -> Tree:
    """An endpoint that has limits of its own for streams has them laid over the tier's."""
    if not isinstance(endpoint, Branch) or "stream" not in endpoint.parts:
        return endpoint
    return replace(endpoint, parts={**endpoint.parts, "stream": _over(endpoint.parts["stream"], stream, "stream")})


def _has(type: type[Any], name: str) -> bool:
    return name in type.__struct_fields__


def _over(upper: Tree | None, lower: Tree | None, policy: str) -> Tree:
    # An empty branch says "built in" and leaves no value unset.
    return lay(upper, lower) or Branch(None, _POLICIES[policy])
