"""What the policy files say of mirrors: which collections are kept here as well, and how fresh they have to be."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from understudy.proxy.settings.types import Bytes, Count, Frozen, PositiveSeconds, Seconds


class Mirror(Frozen, frozen=True):
    """Keep a copy of the collections behind this route, so that the local tier can answer for them.

    Writes that pass here are applied to the copy once the database has said yes; what passes elsewhere is found by
    comparing now and then.
    """

    collections: list[str] = []
    """The collections to copy, as callers name them; empty: all that the database lists."""
    text: list[str] = []
    """Fields of the payload whose words a point is found by, in this order; Chroma's documents need none."""
    sync: Literal["auto", "by-hand"] = "auto"
    """Who makes the first copy: the sidecar itself, or `understudy index sync`."""
    points_per_s: Count = 2000
    """The most points a second that are read from the database for copying and comparing."""
    points_max: Count = 1_000_000
    """A collection with more points is not copied."""
    queue_max: Count = 10_000
    """Writes that may wait to be applied; beyond it the copy is behind, and compared with the database as a whole."""
    queue_bytes_max: Bytes = 64 * 1024 * 1024
    """What the bodies of those that wait may come to together."""
    settle_s: Seconds = 2.0
    """Seconds after a write in which the database may still tell what was there before."""
    check_s: PositiveSeconds = 60.0
    """How often the number of points and a sample of them are compared with the database."""
    sample_max: Annotated[int, Meta(ge=1, le=1000)] = 64
    """Points of such a sample."""
    reconcile_s: Seconds = 86400.0
    """How often every point is compared; 0: only where a sample, or a write of unknown outcome, asks for it."""
    staleness_s_max: PositiveSeconds | None = None
    """A copy that is staler than this does not answer; without it, it does, and says how stale it is."""
