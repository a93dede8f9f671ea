"""One budget for every attempt beyond a call's first: retries and hedges of a tier draw on it together.

    calls of the last 10 s --- x 0.2 --+
                                       +--> extra attempts allowed in those 10 s
    1 a second, for low traffic -------+

Counted and not estimated: ten slices of the window hold exact numbers, as in the breaker. A call is counted when it
begins, for one counted when it ends would let an outage retry on the strength of calls that are long over. At 100 calls
a second the load on an upstream that fails everything is 1.21 times the calls; what sustains an outage after its cause
has gone (Bronson et al., "Metastable Failures in Distributed Systems") never comes about.
"""

from __future__ import annotations

from typing import Protocol

SLICES = 10


class BudgetRules(Protocol):
    """What a budget goes by (`Budget` of `proxy/settings` has all of it)."""

    @property
    def ratio(self) -> float: ...
    @property
    def per_s_min(self) -> float: ...
    @property
    def window_s(self) -> float: ...
    @property
    def hedge_ratio(self) -> float: ...


class Budget:
    """The pure heart: told of every call and the time, it says whether one more attempt may be made."""

    __slots__ = ("_at", "_calls", "_ends", "_hedges", "_number", "_retries", "hedges", "refused", "retries", "rules")

    def __init__(self, rules: BudgetRules) -> None:
        self.rules = rules
        self.retries = 0
        self.hedges = 0
        self.refused = 0
        self._calls = [0] * SLICES
        self._retries = [0] * SLICES
        self._hedges = [0] * SLICES
        self._number = 0
        self._at = 0
        self._ends = float("-inf")

    def adopt(self, rules: BudgetRules) -> None:
        """Go by other rules from now on. Slices of another length are other slices: the window begins anew."""
        if rules.window_s != self.rules.window_s:
            self._calls, self._retries, self._hedges = [0] * SLICES, [0] * SLICES, [0] * SLICES
            self._number, self._ends = 0, float("-inf")
        self.rules = rules

    def called(self, now: float) -> None:
        """A call has begun. Of calls that are told late, the present slice is thought."""
        if now >= self._ends:
            self._turn(now)
        self._calls[self._at] += 1

    def retry(self, now: float) -> bool:
        """Whether a call may be asked again; if so, it is on the account."""
        if not self._has_left(now):
            return False
        self._retries[self._at] += 1
        self.retries += 1
        return True

    def hedge(self, now: float) -> bool:
        """Whether a call that takes long may be asked a second time beside the first. Hedges have a smaller share of
        their own: in a slow spell they would leave nothing to the retries, which have more need of it."""
        if not self._has_left(now):
            return False
        if sum(self._hedges) >= max(1.0, self.rules.hedge_ratio * sum(self._calls)):
            self.refused += 1
            return False
        self._hedges[self._at] += 1
        self.hedges += 1
        return True

    def _has_left(self, now: float) -> bool:
        if now >= self._ends:
            self._turn(now)
        rules = self.rules
        allowed = rules.ratio * sum(self._calls) + rules.per_s_min * rules.window_s
        if sum(self._retries) + sum(self._hedges) + 1 <= allowed:
            return True
        self.refused += 1
        return False

    def _turn(self, now: float) -> None:
        """Forget the slices that have gone by."""
        number = int(now * SLICES / self.rules.window_s)
        for step in range(min(number - self._number, SLICES)):
            at = (number - step) % SLICES
            self._calls[at] = self._retries[at] = self._hedges[at] = 0
        self._number = max(number, self._number)
        self._at = self._number % SLICES
        self._ends = (self._number + 1) * self.rules.window_s / SLICES
