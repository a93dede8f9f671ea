"""Write the objectives down as Prometheus rules, for those who have a Prometheus watch them: `understudy rules`.

The same objectives, windows and factors as the sidecar's own (`policies/objectives.py`), over all sidecars together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from understudy.policies.objectives import BAD_MIN, RETRIEVAL, RULES, Objective, Rule, objectives_of
from understudy.proxy.control.budget_alerts import BUDGET, BUDGET_RUNBOOK
from understudy.proxy.control.objectives import (
    CAPACITY,
    CAPACITY_RUNBOOK,
    NAMES,
    budgets_of,
    is_compared,
    runbook_of,
    severity_of,
)
from understudy.proxy.settings.settings import Route, Settings, SpendBudget

_NONE = 'understudy_unanswered_total{{route="{route}"}}[{over}]'
_BAD = {
    "availability": (_NONE,),
    "errors": ('understudy_requests_total{{route="{route}",outcome="5xx"}}[{over}]', _NONE),
    "latency": ('understudy_late_total{{route="{route}"}}[{over}]', _NONE),
    "primary": ('understudy_requests_total{{route="{route}",tier=~"secondary|tertiary"}}[{over}]', _NONE),
}
_AGREED = 'understudy_watch_agreement_{what}{{route="{route}",measure="overlap"}}[{over}]'
_ALL = ('understudy_requests_total{{route="{route}"}}[{over}]', _NONE)


def rules_text(settings: Settings) -> str:
    """A rules file, for every route's objectives."""
    groups = [
        {"name": f"understudy-{route.name}", "rules": list(_rules(settings, route))}
        for route in settings.routes
        if _promised(route)
    ]
    budgets = [_budget(settings, route, budget) for route in settings.routes for budget in route.spend.budgets]
    if budgets:
        groups.append({"name": "understudy-budgets", "rules": budgets})
    groups.append({"name": "understudy-capacity", "rules": [_capacity(settings)]})
    head = "# Written by `understudy rules`; the objectives are those of the policies it read.\n"
    return head + yaml.safe_dump({"groups": groups}, sort_keys=False, width=1000)


def _rules(settings: Settings, route: Route) -> Iterator[dict[str, Any]]:
    for objective in _promised(route):
        labels = {"route": route.name, "objective": objective.name}
        for over in dict.fromkeys(_told(window_s) for rule in RULES for window_s in (rule.short_s, rule.long_s)):
            yield {
                "record": f"understudy:bad_share:{over}",
                "expr": _share(route.name, objective.name, over),
                "labels": {**labels},
            }
        for over in (_told(rule.long_s) for rule in RULES):
            bad = _bad(objective.name, "increase", route.name, over)
            yield {"record": f"understudy:bad_calls:{over}", "expr": bad, "labels": {**labels}}
        yield from _alerts(settings, route, objective)


def _alerts(settings: Settings, route: Route, objective: Objective) -> Iterator[dict[str, Any]]:
    name, words = NAMES[objective.name]
    rules: dict[str, list[Rule]] = {}
    for rule in RULES:
        rules.setdefault(severity_of(objective.name, rule.severity), []).append(rule)
    for severity, meant in rules.items():
        tests = [_test(route.name, objective, rule) for rule in meant]
        yield {
            "alert": name,
            "expr": " or ".join(tests),
            "labels": {**settings.server.alerts.labels, "route": route.name, "severity": severity},
            "annotations": {
                "summary": f"route {route.name}: too many {words}",
                "runbook": runbook_of(settings, route),
            },
        }


def _capacity(settings: Settings) -> dict[str, Any]:
    """What the sidecars themselves foresee: lines through days of readings are more than PromQL can draw."""
    alerts = settings.server.alerts
    return {
        "alert": CAPACITY,
        "expr": "max by (resource, name) (understudy_resource_warned) > 0",
        "labels": {**alerts.labels, "severity": "warning"},
        "annotations": {
            "summary": "{{ $labels.resource }} ({{ $labels.name }}) will be full within a day, or nearly is",
            "runbook": alerts.runbook_url + CAPACITY_RUNBOOK,
        },
    }


def _budget(settings: Settings, route: Route, budget: SpendBudget) -> dict[str, Any]:
    """A budget that is spent; that one is nearly so, the sidecars tell themselves."""
    alerts = settings.server.alerts
    severity = "critical" if budget.hard else "warning"
    which = f'{{route="{route.name}",budget="{budget.name}"}}'
    return {
        "alert": BUDGET,
        "expr": f"max(understudy_spend_share{which}) >= 1",
        "labels": {**alerts.labels, "route": route.name, "budget": budget.name, "severity": severity},
        "annotations": {
            "summary": f"the budget {budget.name} for the {budget.window} of route {route.name} is spent",
            "runbook": alerts.runbook_url + BUDGET_RUNBOOK,
        },
    }


def _test(route: str, objective: Objective, rule: Rule) -> str:
    which = f'{{route="{route}",objective="{objective.name}"}}'
    share = min(rule.factor, 0.9 / objective.budget) * objective.budget
    burns = [f"understudy:bad_share:{_told(over_s)}{which} > {share:.6g}" for over_s in (rule.long_s, rule.short_s)]
    return f"({' and '.join(burns)} and understudy:bad_calls:{_told(rule.long_s)}{which} >= {BAD_MIN})"


def _promised(route: Route) -> list[Objective]:
    """What is promised of a route's calls; of what its searches find only where they are compared."""
    found = objectives_of(budgets_of(route.objectives))
    return [one for one in found if one.name != RETRIEVAL or is_compared(route)]


def _share(route: str, objective: str, over: str) -> str:
    return f"{_bad(objective, 'rate', route, over)} / {_all(objective, 'rate', route, over)}"


def _all(objective: str, function: str, route: str, over: str) -> str:
    if objective == RETRIEVAL:
        return _sum((_AGREED.replace("{what}", "count"),), function, route, over)
    return _sum(_ALL, function, route, over)


def _bad(objective: str, function: str, route: str, over: str) -> str:
    if objective == RETRIEVAL:
        agreed = _sum((_AGREED.replace("{what}", "sum"),), function, route, over)
        return f"({_all(objective, function, route, over)} - {agreed})"
    return _sum(_BAD[objective], function, route, over)


def _sum(series: tuple[str, ...], function: str, route: str, over: str) -> str:
    """The series added up; one that has never been counted is not there, and counts as nothing."""
    each = [f"(sum({function}({one.format(route=route, over=over)})) or vector(0))" for one in series]
    return f"({' + '.join(each)})" if len(each) > 1 else each[0]


def _told(seconds: float) -> str:
    units = ((86400, "d"), (3600, "h"), (60, "m"))
    unit_s, unit = next((unit_s, unit) for unit_s, unit in units if not seconds % unit_s)
    return f"{seconds // unit_s:.0f}{unit}"
