"""What a policy file says of streams and can't mean: limits that are never reached, and words nobody can keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import get_args

from understudy.proxy.settings.settings import Route, Settings, Speech, Tier, UpstreamTier, endpoints_of
from understudy.proxy.settings.spots import Fault, Place

PREFILLED = (*get_args(Speech), "openai-completions")
"""The dialects in which an answer can be asked for that is begun already."""
CONTINUED = (*PREFILLED, "azure-openai-chat")
"""The dialects in which one stream can go on with another."""
UNCONTINUED: Mapping[str, str] = {
    "azure-openai-chat": "Azure OpenAI takes no answer that is begun; a tier that `speaks` another dialect may",
    "openai-responses": "the responses API has no way to ask for the rest of an answer",
    "cohere-chat": "Cohere's chat takes no answer that is begun",
}
LINES = ("ollama-chat",)
"""The dialects whose streams are lines of JSON, which have no comments."""


def stream_faults(route: Route, dialects: Mapping[str, str], at: Place) -> Iterator[Fault]:
    """What one route says of streams that does not go together."""
    stream = route.stream
    if stream.keep_alive_s is not None and route.dialect in LINES:
        yield from at.fault("lines of JSON have no comments, so nothing keeps them alive", "stream.keep_alive_s")
    if stream.after_first_content == "continue" and dialects.get(route.dialect) == "generate":
        key = "stream.after_first_content"
        if route.dialect not in CONTINUED:
            why = UNCONTINUED.get(route.dialect, "nothing is continued in this dialect")
            yield from at.fault(f"{why}; what can be continued: {', '.join(CONTINUED)}", key)
        elif not any(map(_can_continue, (tier for _, tier in route.every_tier))):
            why = "nobody can go on with a stream: no upstream says `prefill: true`"
            yield from at.fault(why, key, reads=[each for each, _ in route.every_tier])
    for key, tier in route.every_tier:
        if isinstance(tier, UpstreamTier):
            yield from _tier_faults(route, tier, at.at(key))


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


def _tier_faults(route: Route, tier: UpstreamTier, at: Place) -> Iterator[Fault]:
    spoken = tier.speaks or route.dialect
    if spoken not in PREFILLED:
        why = UNCONTINUED.get(spoken, f"means something only in {', '.join(PREFILLED)}")
        if tier.prefill:
            yield from at.fault(why, "prefill")
        for n, each in enumerate(tier.endpoints):
            if each.prefill:
                yield from at.fault(why, f"endpoints[{n}].prefill")
    owners = [("stream", tier.stream)]
    owners += [(f"endpoints[{n}].stream", each.stream) for n, each in enumerate(tier.endpoints)]
    for key, stream in owners:
        if stream and stream.keep_alive_s != route.stream.keep_alive_s:
            yield from at.fault("belongs to the route: callers don't know who is asked", f"{key}.keep_alive_s")
        if stream and stream.after_first_content == "continue" != route.stream.after_first_content:
            yield from at.fault("`continue` belongs to the route", f"{key}.after_first_content")


def _can_continue(tier: Tier) -> bool:
    return isinstance(tier, UpstreamTier) and (tier.prefill or any(each.prefill for each in endpoints_of(tier)))


def can_fail_over(settings: Settings, route: Route, tier: str) -> bool:
    """Whether anybody else could answer where the tier of this name does not: another endpoint of its, another tier, or
    what was answered before."""
    missing = settings.inactive.get(route.name, {})
    tiers = [each for _, each in route.every_tier if each.name not in missing]
    own = next((each for each in tiers if each.name == tier), None)
    several = isinstance(own, UpstreamTier) and len(own.endpoints) > 1
    return several or len(tiers) > 1 or route.cache.enabled or route.likeness.mode in ("fallback", "serve")
