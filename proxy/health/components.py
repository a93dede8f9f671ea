"""What a sidecar depends on, by name: the services behind its routes, its cache, the network, and its own parts.

route's tiers --endpoints--> role:host:port      shared by all routes that use it
local tier                -> local_model:NAME, local_index:COLLECTION
a cache's second level    -> cache:host:port
two hosts or more         -> network:upstreams, away when none of them can be reached
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

from understudy.policies.events import ROLES, Role, component_of
from understudy.proxy.dialects import KINDS
from understudy.proxy.settings.settings import Endpoint, LocalTier, Route, Settings, Tier, UpstreamTier, endpoints_of

UPSTREAMS = component_of("network", "upstreams")
COLLECTIONS = component_of("local_index", "collections")
COMPONENTS_MAX = 1024
PORTS = {"http": 80, "https": 443}

Key = tuple[str, str, str]
"""A route, a tier and an endpoint."""


class Use(NamedTuple):
    """Where a component is used: `tier` as it is at that endpoint alone is kept by the stack under the same key."""

    route: str
    tier: str
    endpoint: str
    dialect: str


@dataclass(slots=True)
class Component:
    """One thing that the sidecar depends on, and who uses it."""

    id: str
    role: Role
    uses: list[Use] = field(default_factory=list[Use])
    routes: dict[str, None] = field(default_factory=dict[str, None])

    def is_used_by(self, route: str) -> None:
        self.routes[route] = None


def place_of(endpoint: Endpoint) -> str:
    """An endpoint's host and port, or its socket."""
    if endpoint.socket:
        return f"unix:{endpoint.socket}"
    try:
        url = urlsplit(endpoint.url)
        port = url.port or PORTS.get(url.scheme, 80)
    except ValueError:
        return endpoint.url
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    return f"{host}:{port}"


def role_of(route: Route) -> Role:
    """What a route's services are; of what is only passed through, nothing is known but whether it can be reached."""
    return ROLES.get(KINDS.get(route.dialect, ""), "network")


def components_of(settings: Settings) -> dict[str, Component]:
    """Every component of these settings, by its name, and who uses it."""
    found: dict[str, Component] = {}

    def used(name: str, role: Role, route: Route) -> Component:
        component = found.get(name)
        if component is None:
            component = Component(name, role)
            if len(found) < COMPONENTS_MAX:
                found[name] = component
        component.is_used_by(route.name)
        return component

    for route in settings.routes:
        for tier in _tiers_in_use(settings, route):
            if isinstance(tier, LocalTier):
                for role, name in _own_parts(settings, route):
                    used(component_of(role, name), role, route)
                continue
            for endpoint in endpoints_of(tier):
                role = role_of(route)
                one = used(component_of(role, place_of(endpoint)), role, route)
                one.uses.append(Use(route.name, tier.name, endpoint.name, tier.speaks or route.dialect))
        if settings.server.cache.url is not None and route.cache.enabled:
            used(component_of("cache", _host(settings.server.cache.url, 6379)), "cache", route)
    services = [one for one in found.values() if one.uses]
    if len({one.id.partition(":")[2] for one in services}) > 1:
        found[UPSTREAMS] = Component(UPSTREAMS, "network", [], {n: None for one in services for n in one.routes})
    return found


def _tiers_in_use(settings: Settings, route: Route) -> Iterable[Tier]:
    yield from settings.active(route)
    if route.split is not None and route.split.share > 0:
        missing = settings.inactive.get(route.name, {})
        yield from (tier for tier in route.arms[route.split.arm].tiers if tier.name not in missing)


def _own_parts(settings: Settings, route: Route) -> Iterable[tuple[Role, str]]:
    kind = KINDS.get(route.dialect)
    yield "local_model", settings.local.model
    if kind in ("retrieve", "generate"):
        yield "local_index", COLLECTIONS.partition(":")[2]


def _host(url: str, port: int) -> str:
    try:
        parts = urlsplit(url)
        return f"{parts.hostname or '127.0.0.1'}:{parts.port or port}"
    except ValueError:
        return "cache"


def by_tier(components: Mapping[str, Component]) -> dict[tuple[str, str], dict[str, str]]:
    """For each route's tier: its endpoints' components, by the endpoint's name."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for component in components.values():
        for use in component.uses:
            found.setdefault((use.route, use.tier), {})[use.endpoint] = component.id
    return found


def upstream(tier: Tier | None) -> UpstreamTier | None:
    """The tier, if it is a service behind us."""
    return tier if isinstance(tier, UpstreamTier) else None
