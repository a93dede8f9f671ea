"""What a policy file says of streams and can't mean: limits that are never reached."""

from __future__ import annotations

from collections.abc import Iterator

from understudy.proxy.settings import Route, UpstreamTier
from understudy.proxy.spots import Fault, Place


def stream_warnings(route: Route, at: Place) -> Iterator[Fault]:
    """Limits that the call's deadline is always quicker than."""
    total_s = at.written("deadline.total_s", route.deadline.total_s)
    why = f"never reached: the call's deadline ({total_s}) comes first"
    owners = [(at, route.stream)]
    owners += [
        (at.at(key), tier.stream) for key, tier in route.every_tier if isinstance(tier, UpstreamTier) and tier.stream
    ]
    for here, stream in owners:
        if stream.first_content_s is not None and stream.first_content_s > route.deadline.total_s:
            yield from here.fault(why, "stream.first_content_s")
