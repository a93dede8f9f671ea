"""Add up what several workers say of themselves: their metrics into one exposition, their states into one status.

Counters and histograms add up, those of dead workers included, so that no sum ever falls. Gauges add up over the living
but for the few named in GAUGES. A breaker is shown as the worst that any worker makes of it; `/status` has each.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from understudy.policies.fingerprint import State
from understudy.proxy.control.wire import Family, Sample
from understudy.proxy.reports.arms import merged_arms
from understudy.proxy.reports.bridges import merged_bridges
from understudy.proxy.reports.health import merged_health
from understudy.proxy.reports.mirrors import merged_mirrors
from understudy.proxy.reports.questions import merged_questions
from understudy.proxy.reports.recovery import merged_recovery
from understudy.proxy.reports.spend import merged_spend
from understudy.proxy.reports.watches import merged_watch

STATES = ("open", "half-open", "closed")
"""A breaker's states, the worst first."""

GAUGES: dict[str, Callable[[float, float], float]] = {
    "process_start_time_seconds": min,
    "process_max_fds": min,
    "python_info": max,
    "understudy_arm_share": max,
    "understudy_balance_cost_seconds": max,
    "understudy_balance_ejected": max,
    "understudy_balance_panic": max,
    "understudy_bridge_agreement": max,
    "understudy_bridge_in_use": max,
    "understudy_bridge_pairs": max,
    "understudy_bridge_sanity": max,
    "understudy_breaker_mode": max,
    "understudy_cache_second_left_alone": max,
    "understudy_breaker_state": max,
    "understudy_collection_points": max,
    "understudy_collection_tail_points": max,
    "understudy_collection_tombstones": max,
    "understudy_fault_active": max,
    "understudy_handles_about": max,
    "understudy_likeness_false_share_bound": max,
    "understudy_held_bytes": max,
    "understudy_held_writes": max,
    "understudy_health_flapping": max,
    "understudy_health_state": max,
    "understudy_last_words_questions": max,
    "understudy_likeness_permitted": min,
    "understudy_local_info": max,
    "understudy_local_ready": min,
    "understudy_local_sentences": max,
    "understudy_loop_lag_seconds": max,
    "understudy_mirror_points_behind": max,
    "understudy_mirror_staleness_seconds": max,
    "understudy_mirror_state": max,
    "understudy_ramp_share": min,
    "understudy_reload_ok": min,
    "understudy_service_tier": max,
    "understudy_service_tier_pinned": max,
    "understudy_shed_pressure": max,
    "understudy_space_cosine": min,
    "understudy_space_quarantined": max,
    "understudy_spend_callers": max,
    "understudy_spend_kept": min,
    "understudy_spend_share": max,
    "understudy_spend_used": max,
    "understudy_tls_certificate_expires_seconds": min,
    "understudy_watch_state": max,
}
"""How gauges come together that do not add up."""

Key = tuple[str, tuple[tuple[str, str], ...]]
MONOTONIC = ("counter", "histogram", "summary")

FINGERPRINTS: tuple[State, ...] = ("unknown", "trusted", "suspected", "quarantined")
"""The better ones first."""


def families_of(registry: Collector | CollectorRegistry) -> list[Family]:
    """Everything in a registry, as plain values that can be sent."""
    return [
        (metric.name, metric.type, metric.documentation, [(one.name, one.labels, one.value) for one in metric.samples])
        for metric in registry.collect()
    ]


def summed(reports: Iterable[Sequence[Family]]) -> list[Family]:
    """The families of all reports as one, in the order in which they are first met."""
    heads: dict[str, tuple[str, str]] = {}
    sums: dict[str, dict[Key, float]] = {}
    for report in reports:
        for name, kind, text, samples in report:
            heads.setdefault(name, (kind, text))
            into = sums.setdefault(name, {})
            together = operator.add if kind in MONOTONIC else GAUGES.get(name, operator.add)
            for sample, labels, value in samples:
                key = (sample, tuple(labels.items()))
                into[key] = together(into[key], value) if key in into else value
    whole: list[Family] = [
        (name, *heads[name], [(key[0], dict(key[1]), value) for key, value in into.items()])
        for name, into in sums.items()
    ]
    return [_worst_states(family) if family[0] == "understudy_breaker_state" else family for family in whole]


def kept(families: Sequence[Family]) -> list[Family]:
    """What must outlive its worker."""
    return [family for family in families if family[1] in MONOTONIC]


def _worst_states(family: Family) -> Family:
    """Of the states that workers name for one breaker, only the worst stays at 1."""
    name, kind, text, samples = family
    held: dict[tuple[str, str, str], set[str]] = {}
    for _, labels, value in samples:
        if value:
            held.setdefault((labels["route"], labels["tier"], labels["endpoint"]), set()).add(labels["state"])
    shown: list[Sample] = []
    for sample, labels, _ in samples:
        states = held.get((labels["route"], labels["tier"], labels["endpoint"]), set())
        shown.append((sample, labels, float(labels["state"] == worst(states))))
    return (name, kind, text, shown)


def worst(states: Iterable[str]) -> str:
    """The worst of these states of a breaker."""
    named = set(states)
    return next((state for state in STATES if state in named), "closed")


class Summed(Collector):
    """Families as a collector, so that the exposition format stays prometheus_client's own affair."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for name, kind, text, samples in self._families:
            metric = Metric(name, text, kind)
            for sample, labels, value in samples:
                metric.add_sample(sample, labels, value)
            yield metric


class Live(Collector):
    """Families that are made anew for each scrape."""

    def __init__(self, families: Callable[[], Sequence[Family]]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from Summed(self._families()).collect()


# --- status --------------------------------------------------------------------------------------------------------


def merged_status(statuses: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One status of several workers': what is counted is added up, what can differ is shown at its worst."""
    if not statuses:
        policies: dict[str, Any] = {"folder": "", "digest": "", "reload_ok": True, "reloads": {}, "faults": []}
        return {"policies": policies, "local": {"ready": False, "reason": "no worker is there"}, "routes": []}
    first = statuses[0]
    each = [status["policies"] for status in statuses]
    bad = next((one for one in each if not one["reload_ok"]), each[0])
    by_name: dict[str, list[dict[str, Any]]] = {}
    for status in statuses:
        for route in status["routes"]:
            by_name.setdefault(route["name"], []).append(route)
    return {
        "policies": {**bad, "reloads": _added([one["reloads"] for one in each])},
        "local": _merged_local([status["local"] for status in statuses]),
        **merged_health(statuses),
        **({"tls": first["tls"]} if "tls" in first else {}),
        **merged_questions(statuses),
        **merged_recovery(statuses),
        **_merged_spaces([status["spaces"] for status in statuses if "spaces" in status]),
        "routes": [_merged_route(routes) for routes in by_name.values()],
    }


def _merged_local(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The local tier of several workers: one that is still loading knows nothing of what the others do with theirs."""
    waiting = next((one for one in each if not one["ready"]), each[0])
    return {**each[0], **waiting, **merged_bridges(each)}


def _merged_route(routes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    by_name: dict[str, list[dict[str, Any]]] = {}
    for route in routes:
        for tier in route["tiers"]:
            by_name.setdefault(tier["name"], []).append(tier)
    return {
        **routes[0],
        **merged_arms(routes),
        **merged_watch(routes),
        **merged_mirrors(routes),
        **merged_spend(routes),
        "in_flight": sum(route["in_flight"] for route in routes),
        "answers": _added([route["answers"] for route in routes]),
        "unanswered": _added([route["unanswered"] for route in routes]),
        **_merged_cache([route["cache"] for route in routes if "cache" in route]),
        "tiers": [_merged_tier(tiers) for tiers in by_name.values()],
    }


def _merged_spaces(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the workers know of vectors: counts add up, and an endpoint's fingerprint is shown at its worst."""
    if not each:
        return {}
    prints: dict[str, dict[str, Any]] = {}
    for name, told in ((name, told) for one in each for name, told in one["fingerprints"].items()):
        known = prints.setdefault(name, told)
        if FINGERPRINTS.index(told["state"]) > FINGERPRINTS.index(known["state"]):
            prints[name] = told
    counts = ("ledger", "vectors", "handles", "unavailable")
    return {
        "spaces": {
            "handles_about": any(one["handles_about"] for one in each),
            **{name: _added([one[name] for one in each]) for name in counts},
            "dimensions": {key: many for one in each for key, many in one["dimensions"].items()},
            "fingerprints": prints,
        }
    }


def _merged_cache(caches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The caches of several workers: each has its own, so that everything adds up."""
    if not caches:
        return {}
    return {
        "cache": {
            name: _added([cache[name] for cache in caches])
            if isinstance(value, dict)
            else sum(cache[name] for cache in caches)
            for name, value in caches[0].items()
        }
    }


def _merged_tier(tiers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    by_name: dict[str, list[dict[str, Any]]] = {}
    for tier in tiers:
        for endpoint in tier["endpoints"]:
            by_name.setdefault(endpoint["name"], []).append(endpoint)
    return {
        **tiers[0],
        "outcomes": _added([tier["outcomes"] for tier in tiers]),
        "endpoints": [_merged_endpoint(endpoints) for endpoints in by_name.values()],
    }


def _merged_endpoint(endpoints: Sequence[dict[str, Any]]) -> dict[str, Any]:
    about = {**endpoints[0], "limit": _added([endpoint["limit"] for endpoint in endpoints])}
    breakers = [endpoint["breaker"] for endpoint in endpoints if "breaker" in endpoint]
    if breakers:
        about["breaker"] = min(breakers, key=lambda one: STATES.index(one["state"]))
    return about


def _added(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for name, count in each.items():
            total[name] = total.get(name, 0) + count
    return total
