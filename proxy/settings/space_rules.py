"""Say which vector spaces don't go together: endpoints of one tier, and handles that nobody could search with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from understudy.models.space import same_space
from understudy.proxy.settings.settings import LocalTier, Route, Settings, UpstreamTier
from understudy.proxy.settings.spots import Fault, Place

SPACED_KINDS = ("embed", "retrieve")


def space_faults(route: Route, dialects: Mapping[str, str], at: Place) -> Iterator[Fault]:
    """All endpoints of a tier answer in one space: their vectors are mixed call by call, and nobody could tell."""
    if dialects.get(route.dialect) not in SPACED_KINDS:
        return
    for key, tier in route.every_tier:
        if isinstance(tier, UpstreamTier) and tier.endpoints:
            yield from _endpoint_faults(tier, tier.space or route.space or "", at.at(key))


def _endpoint_faults(tier: UpstreamTier, usual: str, at: Place) -> Iterator[Fault]:
    said = [k for k, endpoint in enumerate(tier.endpoints) if endpoint.space]
    wanted = usual or next((tier.endpoints[k].space or "" for k in said), "")
    for k in said:
        if not same_space(tier.endpoints[k].space or "", wanted):
            whose = "the tier's" if usual else f"that of endpoints[{said[0]}]"
            why = f"another vector space than {whose}; what embeds into another is a tier of its own"
            yield from at.fault(why, f"endpoints[{k}].space", reads=["space"])
    if said and not usual and len(said) < len(tier.endpoints):
        unsaid = next(k for k, endpoint in enumerate(tier.endpoints) if not endpoint.space)
        why = f"endpoints[{said[0]}] says its vector space: say this one's, or the tier's for all"
        yield from at.fault(why, f"endpoints[{unsaid}].space", reads=["space"])


def space_warnings(settings: Settings, route: Route, dialects: Mapping[str, str], at: Place) -> Iterator[Fault]:
    """Handles that only a route which is not there could search with."""
    if dialects.get(route.dialect) != "embed" or route.spaces.handles != "on":
        return
    space = settings.space_of(route)
    searched = [
        other
        for other in settings.routes
        if dialects.get(other.dialect) == "retrieve"
        and any(isinstance(tier, LocalTier) for tier in other.tiers)
        and same_space(settings.space_of(other), space)
    ]
    if space and not searched:
        why = "no retrieval route of this space has a local tier: nobody could search with its handles"
        yield from at.fault(why, "spaces.handles", reads=["space", "dialect"])
