"""What the policy files say of health: how often services are asked, and what service tier their failures make."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from understudy.proxy.settings.types import Frozen, PositiveSeconds, Seconds

Critical = Literal[
    "vector_database", "embedding_service", "llm_service", "network", "cache", "local_model", "local_index"
]
Rank = Literal["primary", "secondary", "tertiary"]


class TierClause(Frozen, frozen=True):
    """When all of these are unhealthy, it is this tier."""

    unhealthy: Annotated[list[str], Meta(min_length=1)]
    """Roles (vector_database, embedding_service, llm_service, network, cache, local_model, local_index), or single
    components by the whole name that /status shows."""
    tier: Rank


class ServiceTier(Frozen, frozen=True):
    """What service tier is in use, by what is unhealthy: the first of `rules` that fits, else how many there are."""

    critical: list[Critical] = field(
        default_factory=lambda: ["vector_database", "embedding_service", "llm_service", "network"]
    )
    """The roles that are counted. What is ours is not among them: while services answer, nobody misses it."""
    secondary_min: Annotated[int, Meta(ge=1, description="a count of components")] = 1
    """So many critical components unhealthy are the secondary tier."""
    tertiary_min: Annotated[int, Meta(ge=1, description="a count of components")] = 3
    """So many are the tertiary tier."""
    rules: list[TierClause] = []


class Health(Frozen, frozen=True):
    """Ask services how they are, a little, while callers do not show it."""

    enabled: bool = True
    """Whether services are asked at all. What live calls show is heeded either way."""
    every_s: PositiveSeconds = 2.0
    """How often a service is asked whose callers do not show that it is well: 2 wrong of 3 make it unhealthy."""
    wait_s: PositiveSeconds = 0.75
    """Seconds that a service may take to say so."""
    idle_after_s: PositiveSeconds = 600.0
    """When nobody has called for so long, services are asked less often."""
    idle_every_s: PositiveSeconds = 30.0
    """How often they are asked then."""
    checks_per_s_max: Annotated[float, Meta(gt=0, le=1000, description="checks a second")] = 20.0
    """All checks together; with more services than that allows, each is asked less often."""
    search_every_s: Seconds = 45.0
    """How often a mirrored database is searched for points that its copy has, to see that it finds what the copy finds:
    20 searches a collection, in one request where the database takes several at once. 0: never."""
    llm_every_s: Seconds = 0.0
    """How often each LLM service is put a prompt of one token, to see that its answers hold a text. It costs money, a
    little: 0, as it is unless somebody wants it, is never, and 300 are 288 tokens a day of answers."""
    llm_model: str = ""
    """The model that is asked, while no caller has shown one; in a tier that renames models, the caller's name of it.
    """
    llm_per_hour_max: Annotated[int, Meta(ge=1, le=3600, description="a count of prompts")] = 60
    """All such prompts together, also those of a recovery that wants to know: what is more is not asked."""
    tier: ServiceTier = ServiceTier()
