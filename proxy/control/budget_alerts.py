"""Alerts about budgets of money and tokens, from what is told of them as it happens.

events budget_low, budget_spent --> an alert of that budget --budget_free, or its window's end--> none
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from understudy.policies.alerts import Alert
from understudy.policies.events import Event
from understudy.proxy.control.wire import Family
from understudy.proxy.settings.settings import Settings

BUDGET = "UnderstudyBudget"
BUDGET_RUNBOOK = "05-policies.md"
KINDS = ("budget_low", "budget_spent", "budget_free")


class Teller(Protocol):
    """Where events are heard."""

    @property
    def recent(self) -> Iterable[Event]: ...
    def subscribe(self, listener: Callable[[Event], None]) -> None: ...


class BudgetAlerts:
    """The budgets that are nearly spent, or spent. Bounded: a route has sixteen at most."""

    page = "budgets"

    def __init__(self, events: Teller) -> None:
        self._last: dict[tuple[str, str], Event] = {}
        for event in events.recent:
            self.hear(event)
        events.subscribe(self.hear)

    def hear(self, event: Event) -> None:
        """Something has happened; what is none of a budget's is let pass."""
        if event.kind not in KINDS:
            return
        key = (event.facts["route"], event.facts["budget"])
        self._last.pop(key, None)
        if event.kind != "budget_free":
            self._last[key] = event

    async def run(self) -> None:
        """Nothing is to be done between two events."""
        await asyncio.Event().wait()

    def alerts(self, settings: Settings, now: float) -> list[Alert]:
        """One for each budget; who is refused is told as critical, who is only moved as a warning."""
        routes = {route.name: {each.name for each in route.spend.budgets} for route in settings.routes}
        self._last = {
            (route, budget): event
            for (route, budget), event in self._last.items()
            if budget in routes.get(route, ()) and now < float(event.facts["ends"])
        }
        return [_alert(settings, event) for event in self._last.values()]

    def families(self) -> list[Family]:
        """The data plane's own metrics tell more: understudy_spend_share."""
        return []

    def summary(self) -> dict[str, Any]:
        """For `/status`, while there is something to say."""
        return {"spent": [event.detail for event in self._last.values()]} if self._last else {}

    def told(self) -> dict[str, Any]:
        """For `GET /budgets`."""
        return {"budgets": [{"detail": event.detail, **event.facts} for event in self._last.values()]}


def _alert(settings: Settings, event: Event) -> Alert:
    alerts, facts = settings.server.alerts, event.facts
    severity = "critical" if facts["refuses"] == "yes" else "warning"
    labels = {
        **alerts.labels,
        "alertname": BUDGET,
        "route": facts["route"],
        "budget": facts["budget"],
        "severity": severity,
    }
    annotations = {
        "summary": event.detail,
        "runbook": alerts.runbook_url + BUDGET_RUNBOOK,
        "policies": settings.digest,
    }
    return Alert(tuple(sorted(labels.items())), annotations)
