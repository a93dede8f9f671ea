"""Which service tier is in use: what is unhealthy, counted by a rule that policies can replace.

    nothing that is critical --> primary      up to two --> secondary      more --> tertiary

One for the whole sidecar, and one for each route, which only what that route uses can lower. An operator may pin
either: then what is unhealthy changes nothing, and calls go to the pinned tier or one behind it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from understudy.policies.chain import Rank

RANKS: tuple[Rank, ...] = ("primary", "secondary", "tertiary")


class TierClause(Protocol):
    """When all of `unhealthy` (roles, or components by their whole names) are, it is this tier."""

    @property
    def unhealthy(self) -> Sequence[str]: ...
    @property
    def tier(self) -> Rank: ...


class TierRules(Protocol):
    """What a tier goes by (`understudy.proxy.settings.health.ServiceTier` has all of it)."""

    @property
    def critical(self) -> Sequence[str]: ...
    @property
    def secondary_min(self) -> int: ...
    @property
    def tertiary_min(self) -> int: ...
    @property
    def rules(self) -> Sequence[TierClause]: ...


def tier_of(unhealthy: Collection[str], rules: TierRules) -> Rank:
    """The tier while these components are unhealthy: by the first clause that fits, else by how many are critical."""
    for clause in rules.rules:
        if all(any(_is_meant(one, component) for component in unhealthy) for one in clause.unhealthy):
            return clause.tier
    count = sum(any(_is_meant(one, component) for one in rules.critical) for component in unhealthy)
    if count >= rules.tertiary_min:
        return "tertiary"
    return "secondary" if count >= rules.secondary_min else "primary"


def _is_meant(by: str, component: str) -> bool:
    return by == component or by == component.partition(":")[0]


class Pin(NamedTuple):
    """What an operator has said of the tier of a route, or of the whole where that is ''; None lets go."""

    route: str
    rank: Rank | None


class Change(NamedTuple):
    """A tier has become another."""

    before: Rank
    tier: Rank
    reason: str


class Tiering:
    """The pure heart of one scope: the whole, or a route."""

    __slots__ = ("changes", "pinned", "reason", "since", "tier")

    def __init__(self, now: float) -> None:
        self.tier: Rank = "primary"
        self.reason = ""
        self.since = now
        self.pinned: Rank | None = None
        self.changes: dict[Rank, int] = dict.fromkeys(RANKS, 0)

    def look(self, now: float, unhealthy: Sequence[str], rules: TierRules) -> Change | None:
        """See what tier it is while these are unhealthy; the change, where it is another one."""
        if self.pinned is not None:
            tier, reason = self.pinned, "pinned by hand"
        else:
            tier = tier_of(unhealthy, rules)
            reason = ", ".join(unhealthy) if unhealthy else ""
        self.reason = reason
        if tier == self.tier:
            return None
        before, self.tier, self.since = self.tier, tier, now
        self.changes[tier] += 1
        return Change(before, tier, reason or "all is well")


def is_passed_over(rank: Rank, pinned: Rank | None, *, unhealthy: bool) -> str:
    """Why calls should not be sent to a tier of this rank while another can answer, in a word, or ''."""
    if pinned is not None:
        return "pinned" if RANKS.index(rank) < RANKS.index(pinned) else ""
    return "unhealthy" if unhealthy else ""
