"""What the policy files say about caches: a route's own, single-flight, and what all caches of a process share."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from understudy.proxy.settings.types import Bytes, Count, Frozen, Name, PositiveSeconds, Seconds, Secret


class Cache(Frozen, frozen=True):
    """Answer again what was answered before: embeddings, searches, and generated answers that cannot vary."""

    enabled: bool = False
    """Off unless it is asked for: what it keeps are the application's texts, in memory and in the state folder."""
    ttl_s: PositiveSeconds = 300.0
    """Seconds that an answer is fresh; an upstream's own max-age only ever shortens it."""
    jitter_share: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """An answer is fresh for up to this share less, so that not all are asked anew at once."""
    negative_s: Seconds = 1.0
    """Seconds that a 404 or 410 is remembered; 0 never."""
    revalidate_s: Seconds = 30.0
    """Seconds past ttl_s in which an answer is still given at once, and asked anew behind the caller's back."""
    stale_s_max: Seconds = 86400.0
    """Seconds past ttl_s in which an answer is given where no upstream answers; 0 never."""
    bytes_max: Bytes = 64 * 1024 * 1024
    """Memory for the route's answers, in each worker."""
    entry_bytes_max: Bytes = 1024 * 1024
    """A longer answer is not kept."""
    scope: Literal["tenant", "shared"] = "tenant"
    """Who shares answers: callers with the same credentials, or everybody."""
    tenant_headers: list[str] = []
    """Headers that set tenants apart besides authorization, x-api-key and api-key."""
    idle_headers: list[str] = []
    """Headers that change nothing in an answer, besides those known (traces, ids of calls, user-agent); others do."""
    aliases: bool = True
    """A collection may go by other names: a write to any one makes searches of all untrue. false where none does."""
    answers: Literal["deterministic", "always"] = "deterministic"
    """Which generated answers are kept: those asked for with `temperature: 0` and without tools, or all."""
    depends_on: list[str] = []
    """Collections besides the request's own whose writes make this route's answers untrue."""
    settle_s: Seconds = 1.0
    """Seconds after a write in which reads of its collection are not kept, as they may not show it yet."""
    snapshot: bool = True
    """Keep this route's answers over a restart, in the state folder."""
    second: bool = True
    """Use the second level for this route, where `server.cache` names one."""


class Coalesce(Frozen, frozen=True):
    """Single-flight: calls that ask the same at once share one answer. Only where a cache tells that they do."""

    enabled: bool = True
    keys_max: Count = 1024
    """Different questions that may be under way at once; beyond it, calls go alone."""
    waiters_max: Count = 256
    """Calls that may wait for the answer to one question; beyond it, they go alone."""


class SharedCache(Frozen, frozen=True):
    """What the caches of all routes have in common: the second level, and how they outlive the process."""

    url: Secret | None = None
    """redis://[:password@]host[:port][/db], or memcached://host[:port]. Nothing depends on its being there."""
    wait_s: PositiveSeconds = 0.05
    """Seconds that a call waits for the second level; after three in a row it is left alone for a while."""
    namespace: Name = "understudy"
    """What keys there begin with: sidecars of one namespace share what they keep."""
    snapshot_s: PositiveSeconds = 60.0
    """Seconds between two snapshots of what is kept in memory."""
