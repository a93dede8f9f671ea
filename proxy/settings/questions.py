"""What the policy files say about calls that belong to one question."""

from __future__ import annotations

from understudy.proxy.settings.types import Frozen, PositiveSeconds


class Questions(Frozen, frozen=True):
    """Calls of one question: those of one trace, or linked by what one leg answered and the next one brings."""

    deadline_s: PositiveSeconds | None = None
    """Seconds from the first call with a trace until all others with it must be answered. Without it, each call has
    its route's own."""
    kept_s: PositiveSeconds = 60.0
    """Seconds that a question is remembered in which a fallback had a part: as long as its next leg may take."""
