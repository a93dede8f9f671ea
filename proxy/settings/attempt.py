"""What a route or a tier may say of attempts: until when, how often, of whom else, and when no longer.

The defaults suit a sidecar's low traffic.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from understudy.proxy.settings.types import Count, Frozen, PositiveSeconds, Seconds, Share


class Deadline(Frozen, frozen=True):
    """How long a call may take, and how much of that is kept back for the tiers after the one being asked."""

    total_s: PositiveSeconds = 30.0
    """Seconds from the call's beginning to the moment the caller is told, whatever came of it."""
    reserve_s: Seconds = 1.0
    """Seconds kept back for the tiers after the one being asked; less than total_s."""


class Retry(Frozen, frozen=True):
    """Ask the same tier again: attempts in all (1: never again), full jitter between 0 and base * 2**n, capped."""

    attempts: Annotated[int, Meta(ge=1, le=5)] = 2
    """Attempts in all; 1 never asks again."""
    base_s: Seconds = 0.05
    """Seconds, at most, before the second attempt; twice that before the third."""
    wait_s_max: Seconds = 1.0
    """The longest wait between two attempts, in seconds."""


class Budget(Frozen, frozen=True):
    """How many attempts beyond their first the calls to a tier may have: retries and hedges together."""

    ratio: Annotated[float, Meta(ge=0, le=1, description="a share of one")] = 0.2
    """Extra attempts, as a share of the calls in the window."""
    per_s_min: Annotated[float, Meta(ge=0)] = 1.0
    """Extra attempts a second that are always allowed, so that a sidecar with little traffic may retry at all."""
    window_s: PositiveSeconds = 10.0
    """Seconds over which calls and extra attempts are counted."""
    hedge_ratio: Annotated[float, Meta(ge=0, le=1, description="a share of one")] = 0.05
    """Of the calls in the window, at most this share is hedged."""


class Hedge(Frozen, frozen=True):
    """Ask a second endpoint when a read (embedding, retrieval) takes longer than the first usually does."""

    enabled: bool = True
    """Where a tier has a second endpoint to ask. Generations and writes are never asked twice."""
    next_tier: bool = False
    """Where a tier has one endpoint, ask the next tier instead. Its answer is marked as that tier's."""
    after_s_min: Seconds = 0.005
    """A second endpoint is asked after the first one's own 95th percentile to the first byte, but no sooner."""
    after_s_max: PositiveSeconds = 2.0
    """And no later."""
    samples_min: Annotated[int, Meta(ge=32, le=256)] = 100
    """Answers of an endpoint, of its last 256, by which its percentile is known well enough."""


class Breaker(Frozen, frozen=True):
    """When to stop asking a tier that keeps failing, and how to come back."""

    enabled: bool = True
    consecutive: Count = 5
    """Open after this many failures in a row."""
    ratio: Share = 0.5
    """Open when this share of the calls in the window has failed."""
    slow_s: PositiveSeconds | None = None
    """Seconds to the first byte from which an answer counts as slow; without it, nothing is too slow."""
    slow_ratio: Share = 0.8
    """Open when this share of the calls in the window was slow."""
    window_s: PositiveSeconds = 30.0
    """Seconds that calls are remembered for the ratios."""
    calls_min: Count = 10
    """The ratios are not looked at before the window holds this many calls."""
    open_s: PositiveSeconds = 5.0
    """Seconds of pause after opening; twice as long each time that probing fails."""
    open_s_max: PositiveSeconds = 60.0
    """The longest pause, in seconds."""
    permits: Count = 3
    """How many calls are let through as probes; all of them must be answered to close."""
    probing_s_max: PositiveSeconds = 30.0
    """Seconds that probing may take before it counts as failed."""
