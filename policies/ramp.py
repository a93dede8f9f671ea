"""Come back from an outage by degrees: at first a tenth of the calls, all of them after a while.

    WELL --every breaker open--> OUT --one has closed--> RAMP(share grows) --share is 1--> WELL
      |                           ^                          |
      |                           +----- all open again -----+
      +--held: it is unhealthy, or a later tier is pinned--> HELD(share 0) --let go--> OUT

A service that has just come back has cold caches and few connections, and three probes say little of what it can bear.
The calls that are kept back are the next tier's, as they were during the outage; one that no later tier answers comes
back after all, for the ramp is no reason to lose a call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from understudy.policies.balance import NOT_CLOSED


class RampRules(Protocol):
    """What a ramp goes by (`Ramp` of `proxy/settings` has all of it)."""

    @property
    def enabled(self) -> bool: ...
    @property
    def over_s(self) -> float: ...
    @property
    def first_share(self) -> float: ...


class Guard(Protocol):
    """What is asked of a breaker."""

    @property
    def state(self) -> str: ...
    @property
    def mode(self) -> str: ...


class Ramp:
    """The pure heart: told the time, it says which calls are kept back. `dice` give [0, 1)."""

    __slots__ = ("_began", "_dice", "_is_out", "guards", "held", "rules")

    def __init__(self, guards: Sequence[Guard], rules: RampRules, dice: Callable[[], float]) -> None:
        self.guards = tuple(guards)
        self.rules = rules
        self._dice = dice
        self._is_out = False
        self._began: float | None = None
        self.held = ""
        """Why every call is kept back, in a word: it is unhealthy, or an operator has pinned a later tier. Given back,
        it comes back by degrees, too."""

    def goes_on_from(self, before: Ramp) -> None:
        """Take over what another knew of the same tier."""
        self._is_out = before._is_out
        self._began = before._began
        self.held = before.held

    def share(self, now: float) -> float:
        """The share of the calls that goes to the tier. In an outage it is 1: whoever is let through is the breakers'
        affair. While it is held it is 0."""
        if self.held:
            self._is_out, self._began = True, None
            return 0.0
        # written out: on every call's way, and the first breaker says it as a rule
        for guard in self.guards:
            if guard.state not in NOT_CLOSED or guard.mode != "auto":
                break
        else:
            self._is_out, self._began = True, None
            return 1.0
        if self._is_out:
            self._is_out, self._began = False, now
        if self._began is None:
            return 1.0
        first, over_s = self.rules.first_share, self.rules.over_s
        share = first + (1.0 - first) * (now - self._began) / over_s
        if share >= 1.0 or not self.rules.enabled:
            self._began = None
            return 1.0
        return share

    def keeps_back(self, now: float) -> bool:
        """Whether the next tier should answer this call."""
        share = self.share(now)
        return share < 1.0 and self._dice() >= share
