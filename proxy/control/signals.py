"""Read a component's numbers off the metrics that are counted anyway: for the journal, and as features for its risk.

    families --those that READINGS name--> sums by component --less the last ones--> numbers (rates, gauges, quantiles)
                                                                                       |
                                                                                       +--> features (`policies.risk`)

A sum is taken over what the component is used by: its endpoints, the tiers that ask it, the routes that those serve, or
the whole process. Nothing is measured here, and nothing is asked of a service.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from math import log
from typing import Literal, NamedTuple

from understudy.proxy.control.wire import Family
from understudy.proxy.health.components import Component

Scope = Literal["component", "endpoint", "tier", "route", "process"]
How = Literal["rate", "sum", "max"]
TREND_LOOKS = 5
BUSY = ("rate_limit", "overloaded", "quota")


class Reading(NamedTuple):
    """One number: the samples it is made of, whose they are, and which of them count (all, unless named)."""

    name: str
    sample: str
    scope: Scope
    how: How
    label: str = ""
    values: tuple[str, ...] = ()


READINGS = (
    Reading("answers_per_s", "understudy_requests_total", "route", "rate"),
    Reading("errors_per_s", "understudy_requests_total", "route", "rate", "outcome", ("5xx",)),
    Reading("fallbacks_per_s", "understudy_requests_total", "route", "rate", "tier", ("secondary", "tertiary")),
    Reading("unanswered_per_s", "understudy_unanswered_total", "route", "rate"),
    Reading("late_per_s", "understudy_late_total", "route", "rate"),
    Reading("left_per_s", "understudy_callers_left_total", "route", "rate"),
    Reading("broken_streams_per_s", "understudy_streams_broken_total", "route", "rate"),
    Reading("in_flight", "understudy_in_flight", "route", "sum"),
    Reading("asked_per_s", "understudy_tier_outcomes_total", "tier", "rate"),
    Reading("answered_per_s", "understudy_tier_outcomes_total", "tier", "rate", "outcome", ("answered",)),
    Reading("failed_per_s", "understudy_tier_outcomes_total", "tier", "rate", "outcome", ("failed",)),
    Reading("refused_per_s", "understudy_tier_outcomes_total", "tier", "rate", "outcome", ("refused",)),
    Reading("busy_per_s", "understudy_tier_outcomes_total", "tier", "rate", "reason", BUSY),
    Reading("retries_per_s", "understudy_retries_total", "tier", "rate"),
    Reading("hedges_per_s", "understudy_hedges_total", "tier", "rate"),
    Reading("over_budget_per_s", "understudy_attempts_over_budget_total", "tier", "rate"),
    Reading("ramp_share", "understudy_ramp_share", "tier", "max"),
    Reading("breakers_open", "understudy_breaker_state", "endpoint", "sum", "state", ("open", "half-open")),
    Reading("breaker_opens_per_s", "understudy_breaker_transitions_total", "endpoint", "rate", "to", ("open",)),
    Reading("limit_places", "understudy_limit_places", "endpoint", "sum"),
    Reading("limit_in_flight", "understudy_limit_in_flight", "endpoint", "sum"),
    Reading("limit_waiting", "understudy_limit_waiting", "endpoint", "sum"),
    Reading("limit_refused_per_s", "understudy_limit_refused_total", "endpoint", "rate"),
    Reading("connections_idle", "understudy_upstream_connections", "endpoint", "sum", "state", ("idle",)),
    Reading("connections_busy", "understudy_upstream_connections", "endpoint", "sum", "state", ("busy",)),
    Reading("connects_per_s", "understudy_upstream_connections_opened_total", "endpoint", "rate"),
    Reading("connect_failures_per_s", "understudy_upstream_connect_failures_total", "endpoint", "rate"),
    Reading("pool_waiting", "understudy_upstream_waiting", "endpoint", "sum"),
    Reading("pool_waits_per_s", "understudy_upstream_wait_seconds_count", "endpoint", "rate"),
    Reading("pool_wait_s_per_s", "understudy_upstream_wait_seconds_sum", "endpoint", "rate"),
    Reading("seconds_per_s", "understudy_request_seconds_sum", "route", "rate"),
    Reading("budget_left", "understudy_objective_budget_left", "route", "sum"),
    Reading("checks_per_s", "understudy_health_checks_total", "component", "rate"),
    Reading("failing_checks_per_s", "understudy_health_checks_total", "component", "rate", "result", ("wrong",)),
    Reading("shed_per_s", "understudy_shed_total", "process", "rate"),
    Reading("loop_lag_s", "understudy_loop_lag_seconds", "process", "max"),
    Reading("connections", "understudy_connections", "process", "sum"),
    Reading("memory_bytes", "process_resident_memory_bytes", "process", "sum"),
    Reading("open_fds", "process_open_fds", "process", "sum"),
    Reading("max_fds", "process_max_fds", "process", "max"),
    Reading("cpu_share", "process_cpu_seconds_total", "process", "rate"),
    Reading("cache_bytes", "understudy_cache_bytes", "process", "sum"),
    Reading("reload_ok", "understudy_reload_ok", "process", "max"),
    Reading("local_ready", "understudy_local_ready", "process", "max"),
)
SECONDS = "understudy_request_seconds_bucket"
_BY_SAMPLE: dict[str, list[Reading]] = {}
for _reading in READINGS:
    _BY_SAMPLE.setdefault(_reading.sample, []).append(_reading)
_FAMILIES = frozenset(name.removesuffix("_total") for name in _BY_SAMPLE) | {
    "understudy_upstream_wait_seconds",
    "understudy_request_seconds",
}

Where = tuple[str, ...]
Sums = dict[str, float]


class Uses:
    """Which components a sample counts for, by the labels it has."""

    def __init__(self, components: Mapping[str, Component]) -> None:
        self.names = list(components)
        self._components = components
        self._by: dict[tuple[Scope, Where], list[str]] = defaultdict(list)
        for name, component in components.items():
            for route in component.routes:
                self._by["route", (route,)].append(name)
            for tier in {(use.route, use.tier) for use in component.uses}:
                self._by["tier", tier].append(name)
            for key in {(use.route, use.tier, use.endpoint) for use in component.uses}:
                self._by["endpoint", key].append(name)

    def of(self, scope: Scope, labels: Mapping[str, str]) -> Sequence[str]:
        if scope == "process":
            return self.names
        if scope == "component":
            return [labels["component"]] if labels.get("component") in self._components else ()
        if scope == "route":
            where: Where = (labels.get("route", ""),)
        elif scope == "tier":
            where = (labels.get("route", ""), labels.get("tier", ""))
        else:
            where = (labels.get("route", ""), labels.get("tier", ""), labels.get("endpoint", ""))
        return self._by.get((scope, where), ())


class Look(NamedTuple):
    """One reading of the metrics: when, the sums by component, and its routes' latencies by upper bound."""

    at: float
    sums: dict[str, Sums]
    buckets: dict[str, dict[float, float]]


class Signals:
    """The numbers of every component, look by look."""

    def __init__(self) -> None:
        self.numbers: dict[str, dict[str, float]] = {}
        self._last: Look | None = None
        self._before: dict[str, deque[dict[str, float]]] = {}

    def look(self, now: float, families: Iterable[Family], components: Mapping[str, Component]) -> None:
        """Take the metrics as they are now; what is counted is told as a rate from the second look on."""
        look = taken(now, families, components)
        last, self._last = self._last, look
        self.numbers = {name: _numbers(look, last, name) for name in components}
        self._before = {name: self._before.get(name) or deque(maxlen=TREND_LOOKS) for name in components}

    def features(self, component: str) -> dict[str, float]:
        """What `risk.FEATURES` name, of a component, and remember it for the trends of the next looks."""
        now = self.numbers.get(component, {})
        past = self._before.setdefault(component, deque(maxlen=TREND_LOOKS))
        asked = max(now.get("asked_per_s", 0.0) - now.get("refused_per_s", 0.0), 1e-9)
        told = {
            "error_share": now.get("failed_per_s", 0.0) / asked,
            "busy_share": now.get("busy_per_s", 0.0) / asked,
            "slow_ratio": log(max(1.0, now.get("p95_s", 0.0) / max(now.get("p50_s", 0.0), 1e-3))),
            "first_byte_slope": _slope([each.get("mean_s", 0.0) for each in (*past, now)]),
            "pool_wait": now.get("pool_wait_s_per_s", 0.0),
            "limit_fall": -_slope([each.get("limit_places", 0.0) for each in (*past, now)]),
            "check_failures": now.get("failing_checks_per_s", 0.0) / max(now.get("checks_per_s", 0.0), 1e-9),
            "budget_burn": _fall([each.get("budget_left", 0.0) for each in (*past, now)]),
            "memory_growth": _slope([each.get("memory_bytes", 0.0) for each in (*past, now)]),
            "fd_share": now.get("open_fds", 0.0) / max(now.get("max_fds", 0.0), 1.0),
            "loop_lag": now.get("loop_lag_s", 0.0),
            "calls": log(1.0 + now.get("asked_per_s", 0.0)),
        }
        past.append(now)
        return told


def taken(now: float, families: Iterable[Family], components: Mapping[str, Component]) -> Look:
    """What the families say of each component."""
    uses = Uses(components)
    look = Look(now, {name: {} for name in components}, {name: {} for name in components})
    for family, _, _, samples in families:
        if family not in _FAMILIES:
            continue
        for sample, labels, value in samples:
            for reading in _BY_SAMPLE.get(sample, ()):
                if not reading.label or labels.get(reading.label) in reading.values:
                    _add(look.sums, uses.of(reading.scope, labels), reading, value)
            if sample == SECONDS:
                bound = float(labels["le"])
                for name in uses.of("route", labels):
                    look.buckets[name][bound] = look.buckets[name].get(bound, 0.0) + value
    return look


def _add(sums: dict[str, Sums], names: Sequence[str], reading: Reading, value: float) -> None:
    for name in names:
        into = sums[name]
        have = into.get(reading.name)
        if have is None:
            into[reading.name] = value
        else:
            into[reading.name] = max(have, value) if reading.how == "max" else have + value


def _numbers(look: Look, last: Look | None, name: str) -> dict[str, float]:
    sums = look.sums[name]
    before = last.sums.get(name) if last else None
    gone_s = look.at - last.at if last else 0.0
    told: dict[str, float] = {}
    for reading in READINGS:
        value = sums.get(reading.name, 0.0)
        if reading.how == "rate":
            # counts that have fallen are those of a process that began anew
            since = value - before.get(reading.name, 0.0) if before is not None else 0.0
            value = max(0.0, since) / gone_s if gone_s > 0 else 0.0
        told[reading.name] = value
    answers = told["answers_per_s"]
    told["mean_s"] = told["seconds_per_s"] / answers if answers else 0.0
    fresh = _since(look.buckets[name], last.buckets.get(name, {}) if last else {})
    told["p50_s"], told["p95_s"] = quantile(fresh, 0.5), quantile(fresh, 0.95)
    return told


def _since(now: Mapping[float, float], before: Mapping[float, float]) -> dict[float, float]:
    return {bound: max(0.0, count - before.get(bound, 0.0)) for bound, count in now.items()}


def quantile(buckets: Mapping[float, float], share: float) -> float:
    """Seconds below which this share of calls lies, by cumulative counts up to each bound; 0 without calls."""
    bounds = sorted(buckets)
    if not bounds or not buckets[bounds[-1]]:
        return 0.0
    wanted = share * buckets[bounds[-1]]
    low = below = 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= wanted:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (wanted - below) / max(count - below, 1e-9)
        low, below = bound, count
    return low


def _slope(values: Sequence[float]) -> float:
    """How much more the last is than the mean of those before it, as the logarithm of their ratio."""
    before, last = values[:-1], values[-1]
    if not before:
        return 0.0
    mean = sum(before) / len(before)
    return log(last / mean) if last > 0 and mean > 0 else 0.0


def _fall(values: Sequence[float]) -> float:
    """By how much the last is less than the first."""
    return max(0.0, values[0] - values[-1]) if len(values) > 1 else 0.0
