"""What a route may say of likeness."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from understudy.proxy.settings.types import Bytes, Frozen, PositiveSeconds, Share


class Likeness(Frozen, frozen=True):
    """Semantic caching: answer a call as one like it was answered. For searches and for generated answers."""

    mode: Literal["off", "shadow", "fallback", "serve"] = "off"
    """shadow counts what would be given, and learns; fallback also gives it where no upstream answers; serve gives it
    first of all. A generated answer is only ever given while its kind of hit has proved to be right."""
    cosine_min: Annotated[float, Meta(ge=0.9, le=1)] | None = None
    """How near two calls must be; without it, 0.92 for searches and 0.95 for questions."""
    false_share_max: Annotated[float, Meta(gt=0, le=0.2, description="a share of one")] = 0.02
    """A kind of hit is given only while at most this share of it would be wrong, with 97.5 % certainty."""
    verify_share: Share = 0.05
    """The share of answers that could be given and are asked upstream all the same, to be compared."""
    ttl_s: PositiveSeconds = 3600.0
    """Seconds that an answer may be given for in mode serve."""
    fallback_ttl_s: PositiveSeconds = 86400.0
    """Seconds that an answer may be given for where no upstream answers."""
    embed_s_max: PositiveSeconds = 0.05
    """Seconds that the local model may take to compare two questions; longer, and the call goes upstream."""
    entries_max: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    """Answers kept, or searches of one scope (tenant, collection, filter and limit)."""
    bytes_max: Bytes = 64 * 1024 * 1024
    """Memory for what is kept, in each worker."""
    tenant_headers: list[str] = []
    """Headers that set tenants apart besides authorization, x-api-key and api-key."""
