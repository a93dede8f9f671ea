"""Say what the types can't of mirrors: which routes can have one, and which two would write to the same copy."""

from __future__ import annotations

from collections.abc import Iterator

from understudy.proxy.settings.settings import LocalTier, Route, Settings, UpstreamTier
from understudy.proxy.settings.spots import Fault, Place

MIRRORED = ("qdrant", "chroma", "elasticsearch", "opensearch", "pinecone", "milvus", "weaviate")
"""Dialects of databases that can be read as a whole (`understudy.proxy.mirroring.sources` has a reader for each)."""


def mirror_faults(settings: Settings, route: Route, at: Place) -> Iterator[Fault]:
    """What is wrong with a route's mirror."""
    if route.mirror is None:
        return
    if route.dialect not in MIRRORED:
        why = f"no database of dialect {route.dialect} can be copied; those of {', '.join(MIRRORED)} can"
        yield from at.fault(why, "mirror", reads=["dialect"])
    if not any(isinstance(tier, UpstreamTier) for tier in route.tiers):
        yield from at.fault("there is no database behind this route: no tier is an upstream", "mirror", reads=["tiers"])
    if not settings.space_of(route):
        why = "which vector space are these collections in? Say so as the route's space: a copy answers no other"
        yield from at.fault(why, "mirror", reads=["space", "tiers"])
    for n, other in enumerate(settings.routes):
        if other.name == route.name or other.mirror is None:
            continue
        shared = local_names(route) & local_names(other)
        everything = not (route.mirror.collections and other.mirror.collections)
        if (shared or everything) and settings.routes.index(route) > n:
            what = f"the local collection {min(shared)!r}" if shared else "local collections of the same names"
            yield from at.fault(f"route {other.name} has {what} mirrored as well", "mirror", reads=["name"])


def mirror_warnings(route: Route, at: Place) -> Iterator[Fault]:
    """What is allowed, and may surprise."""
    if route.mirror is None:
        return
    if not any(isinstance(tier, LocalTier) for tier in route.tiers):
        yield from at.fault("nobody answers from the copies: the route has no local tier", "mirror", reads=["tiers"])


def local_names(route: Route) -> set[str]:
    """The local collections that a route names as copies; none where it has all copied."""
    names = set(route.mirror.collections if route.mirror else ())
    for tier in route.tiers:
        if isinstance(tier, LocalTier):
            return {tier.collections.get(name, name) for name in names}
    return names
