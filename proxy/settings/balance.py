"""What a policy file may say of balance and ramp."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from understudy.proxy.settings.types import Count, Frozen, PositiveSeconds, Seconds, Share


class Ejection(Frozen, frozen=True):
    """When an endpoint is left out for a while because it does worse than its peers."""

    enabled: bool = True
    consecutive: Count = 3
    """Out after this many failures in a row; less than its breaker needs, for others are there."""
    failing_ratio: Share = 0.2
    """Out when so much more of its calls failed in a window than of its peers'."""
    slow_ratio: Annotated[float, Meta(gt=1)] = 10.0
    """Out when its mean time to the first byte in a window was so many times that of the median of its peers."""
    slow_s_min: Seconds = 0.25
    """Seconds; faster than this is never too slow."""
    calls_min: Count = 10
    """It and its peers are not compared before they had so many calls in the window."""
    window_s: PositiveSeconds = 10.0
    """Seconds after which they are compared."""
    pause_s: PositiveSeconds = 10.0
    """Seconds that the first ejection lasts; the next lasts twice as long, the third three times."""
    pause_s_max: PositiveSeconds = 300.0
    """The longest ejection, in seconds."""
    share_max: Annotated[float, Meta(ge=0, lt=1, description="a share of one")] = 0.5
    """At most this share of a tier's endpoints is out at a time."""


class Balance(Frozen, frozen=True):
    """How the calls of a tier with several endpoints are shared out."""

    decay_s: PositiveSeconds = 10.0
    """Seconds in which what was seen of an endpoint's speed loses two thirds of its weight."""
    slow_start_s: Seconds = 30.0
    """Seconds in which an endpoint that is new or back grows from a tenth of its weight to all of it."""
    spare_ratio: Annotated[float, Meta(ge=1)] = 1.4
    """Endpoints can carry so many times their part; a priority or zone that can't with those of it that are well
    spills over into the next."""
    panic_share: Annotated[float, Meta(ge=0, le=1, description="a share of one")] = 0.5
    """When a smaller share of the endpoints is well, ejections are forgotten and all take their part."""
    ejection: Ejection = Ejection()


class Ramp(Frozen, frozen=True):
    """How the calls come back to a tier whose breakers were all open, while a later tier can answer."""

    enabled: bool = True
    over_s: PositiveSeconds = 30.0
    """Seconds from the first share to all calls."""
    first_share: Share = 0.1
    """The share of the calls that it begins with."""
