"""The breakers of a sidecar that replicas hint at: those that live calls have opened, and what is heeded of others'."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from understudy.policies.breaker import Breaker
from understudy.policies.events import ROLES

if TYPE_CHECKING:
    from understudy.policies.health import Diagnosis
    from understudy.proxy.health.board import Healths
    from understudy.proxy.stack import RouteParts

Key = tuple[str, str, str]
"""Route, tier, endpoint."""
Opening = tuple[Key, float, str]
"""A breaker, for how many seconds it is open, and why."""


def breakers_of(routes: Iterable[RouteParts]) -> Iterator[tuple[Key, Breaker]]:
    """Every breaker there is."""
    for parts in routes:
        for name, tier in parts.tiers.items():
            for endpoint in tier.endpoints.values():
                if endpoint.breaker is not None:
                    yield (parts.name, name, endpoint.name), endpoint.breaker


def opened_by_calls(routes: Iterable[RouteParts], now: float) -> Iterator[Opening]:
    """The breakers that calls of our own have opened, and that are not due to be tried."""
    for key, heart in breakers_of(routes):
        left_s = heart.retry_after_s(now)
        if left_s > 0 and heart.mode == "auto" and not heart.is_hinted:
            yield key, left_s, heart.reason


def alarm(health: Healths, ill: Iterable[str]) -> None:
    """Have these services checked at once, those that there are, by the worker that checks."""
    if health.is_leader:
        health.alarmed.update(name for name in ill if name in health.components)


def verdicts_of(diagnoses: Iterable[Diagnosis]) -> dict[str, str]:
    """The services that are not well, as far as one knows: what is our own is nobody else's."""
    return {
        one.component: one.word
        for one in diagnoses
        if one.word in ("degraded", "unhealthy") and one.component.partition(":")[0] in ROLES.values()
    }


def heed(routes: Iterable[RouteParts], hints: Iterable[Opening], now: float) -> int:
    """Go by these hints where our own calls do not speak against it; how many were heeded."""
    hearts = dict(breakers_of(routes))
    return sum(hearts[key].hint(now, open_s, reason) for key, open_s, reason in hints if key in hearts)
