"""What is told of health and service tiers: metric families, `/status`, and lines for eyes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from understudy.policies.tiering import RANKS, Tiering
from understudy.policies.verdict import WORDS
from understudy.proxy.health.board import Healths
from understudy.proxy.health.checks import shown

HEALTH_METRICS = {
    "understudy_health_state": "1 for what is thought of a component: healthy, degraded, unhealthy or unknown",
    "understudy_health_flapping": "1 while a component changes so often that it is held degraded",
    "understudy_health_changes_total": "Changes of what is thought of a component",
    "understudy_health_checks_total": "Checks of a component, by level and result",
    "understudy_service_tier": "1 for the service tier in use, of a route, or of the whole where that is empty",
    "understudy_service_tier_changes_total": "Changes of the service tier, by what it changed to",
    "understudy_service_tier_pinned": "1 while an operator has pinned the service tier",
}


def health_metrics(health: Healths) -> Iterator[Metric]:
    """Families of the process that makes the verdicts; of the others they are empty."""
    state = _gauge("health_state", ["component", "state"])
    flapping = _gauge("health_flapping", ["component"])
    changes = _counter("health_changes_total", ["component"])
    checks = _counter("health_checks_total", ["component", "level", "result"])
    tier = _gauge("service_tier", ["route", "tier"])
    moved = _counter("service_tier_changes_total", ["route", "tier"])
    pinned = _gauge("service_tier_pinned", ["route"])
    if health.is_leader:
        for name, heart in health.hearts.items():
            for word in WORDS:
                state.add_metric([name, word], float(word == heart.word))
            flapping.add_metric([name], float(heart.flapping))
            changes.add_metric([name], heart.changes)
        for (name, level, result), count in health.checks.items():
            checks.add_metric([name, level, result], count)
        for route, tiering in (("", health.whole), *health.routes.items()):
            for rank in RANKS:
                tier.add_metric([route, rank], float(rank == tiering.tier))
                moved.add_metric([route, rank], tiering.changes[rank])
            pinned.add_metric([route], float(tiering.pinned is not None))
    yield from (state, flapping, changes, checks, tier, moved, pinned)


def _gauge(name: str, labels: list[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"understudy_{name}", HEALTH_METRICS[f"understudy_{name}"], labels=labels)


def _counter(name: str, labels: list[str]) -> CounterMetricFamily:
    return CounterMetricFamily(f"understudy_{name}", HEALTH_METRICS[f"understudy_{name}"], labels=labels)


def health_status(health: Healths, now: float) -> dict[str, Any]:
    """What `/status` says of the whole."""
    components: list[dict[str, Any]] = []
    for one in health.diagnoses:
        about: dict[str, Any] = {
            "component": one.component,
            "state": one.word,
            "since_s": round(max(0.0, now - one.since), 1),
            "reason": one.reason,
            "level": one.level,
            "flapping": one.flapping,
            "passed_over": one.passes_over,
            "routes": list(health.components[one.component].routes),
            "checks": shown(health.checks, one.component),
        }
        components.append(about)
    whole = {"service_tier": tier_status(health.whole, now)}
    return {"health": {"leads": health.is_leader, **whole, "components": components}}


def tier_status(tiering: Tiering, now: float) -> dict[str, Any]:
    """What is said of one scope's tier."""
    since_s = round(max(0.0, now - tiering.since), 1)
    pinned = tiering.pinned or ""
    return {"tier": tiering.tier, "reason": tiering.reason, "since_s": since_s, "pinned": pinned}


def merged_health(statuses: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of several workers: as the one has it that makes the verdicts, or who has heard of them."""
    told = [status["health"] for status in statuses if "health" in status]
    return {"health": next((one for one in told if one["leads"]), told[0])} if told else {}


def health_text(status: dict[str, Any]) -> Iterator[str]:
    """The same for eyes: the tier, and whatever is not well."""
    health = status.get("health")
    if health is None:
        return
    yield f"tier      {_tier(health['service_tier'])}"
    for one in health["components"]:
        if one["state"] in ("degraded", "unhealthy"):
            flaps = ", flapping" if one["flapping"] else ""
            why = f": {one['reason']}" if one["reason"] else ""
            yield f"          {one['component']} {one['state']} for {one['since_s']:g} s{flaps}{why}"


def tiers_text(status: dict[str, Any], route: str = "") -> str:
    """What `understudy tier` prints: the whole, then each route; or the one that is named."""
    lines = [] if route else [f"{'(all)':<24}{_tier(status['health']['service_tier'])}"]
    lines += [
        f"{each['name']:<24}{_tier(each['service_tier'])}"
        for each in status["routes"]
        if route in ("", each["name"]) and "service_tier" in each
    ]
    return "".join(f"{line}\n" for line in lines)


def route_tier_text(route: dict[str, Any]) -> Iterator[str]:
    """A route's tier, where it is not the first."""
    tier = route.get("service_tier")
    if tier is not None and (tier["tier"] != "primary" or tier["pinned"]):
        yield f"  tier      {_tier(tier)}"


def _tier(tier: dict[str, Any]) -> str:
    why = f" ({tier['reason']})" if tier["reason"] else ""
    return f"{tier['tier']}{why}"
