"""What Envoy can do for each route: who is asked first, what it needs for that, and why it must leave some to us.

    route --> the first tier that is there --> an upstream Envoy can ask as we would?  --yes--> priority 0, sidecar 1
                                                                                       --no---> the sidecar alone

Envoy asking an upstream a little differently than the sidecar would is worse than Envoy not asking it: a missing
header is another tenant's data or a 401 for everybody. So whatever cannot be said exactly is left to the sidecar, and
the reason is written at the head of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from understudy.policies.chain import rank_of
from understudy.proxy.settings.settings import (
    Breaker,
    Match,
    Route,
    Settings,
    Tls,
    UpstreamTier,
    at_endpoint,
    endpoints_of,
)

Templates = Mapping[tuple[str, str], Mapping[str, str]]
"""(route, tier) -> header -> how Envoy itself finds its value, as `Bearer %ENVIRONMENT(OPENAI_API_KEY)%`."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """The tier at priority 0, in Envoy's terms. `headers` are templates, never values."""

    rank: str
    """What the sidecar calls it in `x-understudy-tier`: primary, or secondary where the first tier is not there."""
    tier: str
    host: str
    port: int
    authority: str
    base_path: str
    tls: Tls | None
    connect_s: float
    answer_s: float
    """How long until the head of its answer, so that the sidecar's turn still comes within the route's deadline."""
    idle_s: float
    connections_max: int
    breaker: Breaker
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Leg:
    """One route: what of it Envoy claims, who is asked before the sidecar (None: nobody), and what to know of it."""

    route: Route
    matches: tuple[Match, ...]
    upstream: Upstream | None
    notes: tuple[str, ...]


def legs(settings: Settings, templates: Templates, port: int) -> list[Leg]:
    """Every route that is there, as Envoy serves it before a sidecar that listens on `port`."""
    return [_leg(settings, route, templates, port) for route in settings.routes if settings.active(route)]


def _leg(settings: Settings, route: Route, templates: Templates, port: int) -> Leg:
    notes: list[str] = []
    elsewhere = sorted({match.port for match in route.claims if match.port not in (None, port)}, key=str)
    if elsewhere:
        notes.append(
            f"what it claims on port {', '.join(map(str, elsewhere))} of the sidecar is left out; Envoy before that "
            "port is a bootstrap of its own (--sidecar HOST:PORT)"
        )
    here = tuple(match for match in route.claims if match.port in (None, port))
    tier = settings.active(route)[0]
    if not isinstance(tier, UpstreamTier):
        return Leg(route, here, None, ("the sidecar alone: its first tier is local", *notes))
    if len(tier.endpoints) == 1:
        tier = at_endpoint(tier, endpoints_of(tier)[0])
    headers = templates.get((route.name, tier.name), {})
    if why := " and ".join(_obstacles(settings, route, tier, headers)):
        return Leg(route, here, None, (f"the sidecar alone, not {tier.name} first: {why}", *notes))
    upstream = _upstream(route, tier, headers)
    return Leg(route, here, upstream, (f"{tier.name} at {upstream.authority} first, then the sidecar", *notes))


def _obstacles(settings: Settings, route: Route, tier: UpstreamTier, templates: Mapping[str, str]) -> Iterator[str]:
    space = settings.space_of(route)
    if len(tier.endpoints) > 1:
        yield "it has several endpoints, over which the sidecar balances its calls"
    if tier.space and tier.space != space:
        yield f"it works in the vector space {tier.space}, the route in {space}"
    # a header whose value comes out empty is not sent at all
    unknown = sorted(name for name, value in tier.headers.items() if value.reveal() and name not in templates)
    if unknown:
        yield f"it needs {', '.join(unknown)}, a secret that is not written here and does not come from ${{NAME}} alone"


def _upstream(route: Route, tier: UpstreamTier, headers: Mapping[str, str]) -> Upstream:
    url = urlsplit(tier.url)
    secure = url.scheme == "https"
    host = url.hostname or ""
    port = url.port or (443 if secure else 80)
    patience_s = route.deadline.total_s - route.deadline.reserve_s
    answer_s = tier.connect_s + tier.first_byte_s
    return Upstream(
        rank=rank_of([each.name for each in route.tiers].index(tier.name)),
        tier=tier.name,
        host=host,
        port=port,
        # as the sidecar writes it: with the port only where the URL names one
        authority=url.netloc,
        base_path=url.path.rstrip("/"),
        tls=tier.tls if secure else None,
        connect_s=tier.connect_s,
        answer_s=min(answer_s, patience_s) if patience_s > 0 else answer_s,
        idle_s=tier.idle_s,
        connections_max=tier.connections_max,
        breaker=tier.breaker if isinstance(tier.breaker, Breaker) else route.breaker,
        headers=headers,
    )
