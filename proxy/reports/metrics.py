"""What `/metrics` says: plain integers kept by the data plane, read only when a scraper asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from understudy.policies.forcing import MODES
from understudy.policies.questions import Questions
from understudy.policies.shed import Shedder
from understudy.proxy.caching.caches import Caches
from understudy.proxy.caching.prompter import Prompter
from understudy.proxy.health.board import Healths
from understudy.proxy.http.door import Listener
from understudy.proxy.http.pool import Pool
from understudy.proxy.mirroring.copies import Copies
from understudy.proxy.reports.arms import ARM_METRICS, add_histogram, arm_metrics
from understudy.proxy.reports.bridges import BRIDGE_METRICS, bridge_metrics
from understudy.proxy.reports.collections import COLLECTION_METRICS, Stats, collection_metrics
from understudy.proxy.reports.forecasts import FORECAST_METRICS
from understudy.proxy.reports.health import HEALTH_METRICS, health_metrics
from understudy.proxy.reports.held_writes import HELD_METRICS, held_metrics
from understudy.proxy.reports.journal import JOURNAL_METRICS
from understudy.proxy.reports.last_words import LAST_WORDS_METRICS, last_words_metrics
from understudy.proxy.reports.likeness import LIKENESS_METRICS, likeness_metrics
from understudy.proxy.reports.mirrors import MIRROR_METRICS, mirror_metrics
from understudy.proxy.reports.questions import QUESTION_METRICS, question_metrics
from understudy.proxy.reports.recovery import RECOVERY_METRICS, recovery_metrics
from understudy.proxy.reports.replicas import REPLICA_METRICS
from understudy.proxy.reports.spaces import SPACES_METRICS, spaces_metrics
from understudy.proxy.reports.spend import SPEND_METRICS, budget_metrics, spend_metrics
from understudy.proxy.reports.watches import WATCH_METRICS, watch_metrics
from understudy.proxy.spaces.fingerprints import Fingerprints
from understudy.proxy.spaces.provenance import Provenance
from understudy.proxy.stack import EndpointParts, RouteParts, World

if TYPE_CHECKING:
    from understudy.proxy.chores import Chores
    from understudy.proxy.control.recovery import Recoverer
    from understudy.proxy.reports.tracing import Tracer
    from understudy.proxy.spending.accounting import Accountant
    from understudy.proxy.spending.budgets import Spending

BREAKER_STATES = ("closed", "half-open", "open")
ENDPOINT = ["route", "tier", "endpoint"]
"""The labels of what there is one of for each endpoint; `url` makes one with its tier's name."""

METRICS = {
    "understudy_requests_total": "Calls answered, by route, tier and class of status",
    "understudy_unanswered_total": "Calls that no tier answered, by route and kind of error",
    "understudy_late_total": "Calls answered later than their route's objective allows",
    "understudy_callers_left_total": "Calls whose caller hung up before the answer",
    "understudy_in_flight": "Calls being answered now",
    "understudy_request_seconds": "Seconds until a call's answer, or its first content",
    "understudy_overhead_seconds": "Seconds we added ourselves: total less time spent waiting for upstreams",
    "understudy_spans_total": "Spans of calls that were exported, that the collector did not take, or too many",
    "understudy_streams_broken_total": "Streamed answers that broke after their first content",
    "understudy_streams_continued_total": "Streams that broke where another may go on, by what came of it",
    "understudy_tier_outcomes_total": "What came of asking each tier, by outcome and reason",
    "understudy_retries_total": "Attempts at a tier after one that failed",
    "understudy_hedges_total": "Second attempts beside one that took long, by what came of them",
    "understudy_attempts_over_budget_total": "Retries and hedges that did not take place for want of budget",
    "understudy_breaker_mode": "1 for what an operator has a breaker do: auto, forced-open, disabled or metrics-only",
    "understudy_ramp_share": "Share of the calls that a tier is asked: less than 1 on its way back from an outage",
    "understudy_balance_calls_total": "Calls given to an endpoint of several, by what came of it",
    "understudy_balance_outstanding": "Calls that an endpoint of several has now, streams included",
    "understudy_balance_cost_seconds": "What is expected of an endpoint of several until the first byte (peak-EWMA)",
    "understudy_balance_ejected": "1 while an endpoint of several is left out",
    "understudy_balance_ejections_total": "Endpoints left out for doing worse than their peers, by reason",
    "understudy_balance_panic": "1 while so few of a tier's endpoints are well that all are asked",
    "understudy_breaker_state": "1 for the state an endpoint's breaker is in",
    "understudy_breaker_transitions_total": "Changes of a breaker's state, by the state it changed to",
    "understudy_limit_in_flight": "Places taken in an endpoint's bulkhead",
    "understudy_limit_places": "Places in an endpoint's bulkhead, as written or as learnt",
    "understudy_limit_waiting": "Calls waiting for a place in an endpoint's bulkhead",
    "understudy_limit_refused_total": "Calls that found no place in an endpoint's bulkhead",
    **ARM_METRICS,
    **RECOVERY_METRICS,
    **JOURNAL_METRICS,
    **LIKENESS_METRICS,
    **SPACES_METRICS,
    **WATCH_METRICS,
    **HEALTH_METRICS,
    **LAST_WORDS_METRICS,
    **MIRROR_METRICS,
    **SPEND_METRICS,
    **QUESTION_METRICS,
    "understudy_quota_waited_total": "Calls that waited for an endpoint's own quota to fill up",
    "understudy_quota_refused_total": "Calls not sent to an endpoint that has said its quota is spent",
    "understudy_tokens_refused_total": "Calls answered 429 by a rate limit of ours, by whose it is",
    "understudy_shed_total": "Calls answered 503 because the sidecar lagged, by priority",
    "understudy_shed_pressure": "How hard calls are shed: 0 none, 1 all of low priority, 2 all normal ones, too",
    "understudy_loop_lag_seconds": "How late the event loop was in the last second, at worst",
    "understudy_cache_lookups_total": "Answers looked for in a route's cache, by what was found",
    "understudy_cache_stored_total": "Answers that a route's cache has kept",
    "understudy_cache_dropped_total": "Answers that a route's cache has let go before their time, by reason",
    "understudy_cache_bytes": "Bytes of what a route's cache keeps in memory",
    "understudy_cache_entries": "Answers that a route's cache keeps in memory",
    "understudy_cache_second_total": "What came of asking the cache's second level, or writing to it",
    "understudy_cache_second_left_alone": "1 while the cache's second level fails and is left alone",
    "understudy_coalesced_total": "Calls that waited for another's answer to the same question, by what came of it",
    "understudy_upstream_connections": "Connections to an endpoint, by state",
    "understudy_upstream_connections_opened_total": "Connections opened to an endpoint",
    "understudy_upstream_connect_failures_total": "Connections to an endpoint that did not come about, by reason",
    "understudy_upstream_waiting": "Calls waiting for one of the connections to an endpoint",
    "understudy_upstream_wait_seconds": "Seconds that calls waited for one of the connections, where all were in use",
    "understudy_upstream_dns_total": "Questions to DNS about an endpoint; stale: an old answer was used",
    "understudy_connections": "Connections from callers",
    "understudy_connections_refused_total": "Connections refused at the limit or while draining",
    "understudy_tls_handshake_failures_total": "TLS handshakes with callers that failed, by reason",
    "understudy_tls_certificate_expires_seconds": "When our certificate for callers ends, in Unix time; only with TLS",
    "understudy_objective_budget_left": "Share of three days' error budget that is left, by route and objective",
    "understudy_alerts_firing": "1 for each alert that fires; only while it does",
    "understudy_alerts_sent_total": "Alerts told to a receiver, by what came of it",
    **FORECAST_METRICS,
    **REPLICA_METRICS,
    "understudy_unrouted_total": "Requests that no route claimed",
    "understudy_bad_requests_total": "Requests refused before they were read: malformed, too large or too slow",
    "understudy_slow_readers_cut_total": "Connections cut because their callers took too little of what they were sent",
    "understudy_access_log_dropped_total": "Access log lines dropped because they could not be written in time",
    "understudy_workers": "Worker processes by state; only where there are several",
    "understudy_workers_replaced_total": "Workers that ended unasked and were replaced; only where there are several",
    "understudy_reload_total": "Policy reloads, by result",
    "understudy_reload_ok": "1 while the policy files on disk are the ones in force",
    "understudy_shadow_index_embedded_total": "Texts of a local collection embedded with the local model, too",
    "understudy_shadow_index_waiting": "Points of a local collection that have no vector of the local model's yet",
    **BRIDGE_METRICS,
    **HELD_METRICS,
    "understudy_local_ready": "1 while the local model and indexes can answer",
    "understudy_local_info": "The local model: where it runs and the vector space it embeds into",
    **COLLECTION_METRICS,
}
"""Every metric exported, with its help text; README's list is tested against this table."""


class Seen(Protocol):
    """What the collector looks at (`understudy.proxy.sidecar.Sidecar` has it)."""

    world: World

    @property
    def routes(self) -> Iterable[RouteParts]: ...
    @property
    def listeners(self) -> Iterable[Listener]: ...
    @property
    def pools(self) -> dict[tuple[str, str, str], Pool]: ...
    @property
    def reloads(self) -> dict[str, int]: ...
    @property
    def reload_ok(self) -> bool: ...
    @property
    def certificate_expires_at(self) -> float | None: ...
    @property
    def local_info(self) -> dict[str, str]: ...
    @property
    def local_ready(self) -> bool: ...
    @property
    def collection_stats(self) -> Mapping[str, Stats]: ...
    @property
    def prompter(self) -> Prompter: ...
    @property
    def chores(self) -> Chores: ...
    @property
    def log_lines_dropped(self) -> int: ...
    @property
    def loop_lag_s(self) -> float: ...
    @property
    def shedder(self) -> Shedder: ...
    @property
    def caches(self) -> Caches | None: ...
    @property
    def provenance(self) -> Provenance: ...
    @property
    def fingerprints(self) -> Fingerprints: ...
    @property
    def copies(self) -> Copies: ...
    @property
    def recovery(self) -> Recoverer | None: ...
    @property
    def accountant(self) -> Accountant | None: ...
    @property
    def spending(self) -> Spending | None: ...
    @property
    def tracer(self) -> Tracer | None: ...
    @property
    def health(self) -> Healths: ...
    @property
    def questions(self) -> Questions: ...


class SidecarCollector(Collector):
    """Turns the data plane's integers into metric families."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def collect(self) -> Iterator[Metric]:
        routes = list(self._seen.routes)
        yield from _route_metrics(routes)
        yield from _tier_metrics(routes)
        yield from _balance_metrics(routes, self._seen.world.clock())
        yield from _endpoint_metrics(routes)
        yield from arm_metrics(routes)
        yield from collection_metrics(self._seen.collection_stats)
        yield from _cache_metrics(routes, self._seen.caches)
        yield from likeness_metrics(routes)
        yield from spaces_metrics(self._seen.provenance, self._seen.fingerprints)
        yield from held_metrics(routes)
        yield from watch_metrics(routes)
        yield from health_metrics(self._seen.health)
        yield from last_words_metrics(routes, self._seen.prompter.sentences)
        yield from mirror_metrics(self._seen.copies.mirrors)
        yield from recovery_metrics(self._seen.recovery)
        yield from spend_metrics(self._seen.accountant)
        yield from question_metrics(routes, self._seen.questions)
        yield from budget_metrics(routes, self._seen.spending, self._seen.world.wall())
        yield from _span_metrics(self._seen.tracer)
        yield from _connection_metrics(self._seen)
        yield from _door_metrics(self._seen)
        yield from _overload_metrics(self._seen)
        yield from _process_metrics(self._seen)


def registry_for(seen: Seen) -> CollectorRegistry:
    """A registry with our collector and the usual ones of the process."""
    from prometheus_client import GCCollector, PlatformCollector, ProcessCollector

    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(SidecarCollector(seen))
    return registry


def _counter(name: str, labels: list[str]) -> CounterMetricFamily:
    return CounterMetricFamily(name, METRICS[name], labels=labels)


def _gauge(name: str, labels: list[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, METRICS[name], labels=labels)


def _histogram(name: str, labels: list[str]) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, METRICS[name], labels=labels)


def _span_metrics(tracer: Tracer | None) -> Iterator[Metric]:
    if tracer is not None:
        spans = _counter("understudy_spans_total", ["result"])
        for result, count in tracer.counts.items():
            spans.add_metric([result], count)
        yield spans


def _route_metrics(routes: list[RouteParts]) -> Iterator[Metric]:
    requests = _counter("understudy_requests_total", ["route", "tier", "outcome"])
    unanswered = _counter("understudy_unanswered_total", ["route", "error"])
    late = _counter("understudy_late_total", ["route"])
    left = _counter("understudy_callers_left_total", ["route"])
    broken = _counter("understudy_streams_broken_total", ["route"])
    continued = _counter("understudy_streams_continued_total", ["route", "result"])
    in_flight = _gauge("understudy_in_flight", ["route"])
    seconds = _histogram("understudy_request_seconds", ["route"])
    overhead = _histogram("understudy_overhead_seconds", ["route"])
    for parts in routes:
        name, tally = parts.route.name, parts.tally
        for (tier, hundreds), count in tally.answers.items():
            requests.add_metric([name, tier, f"{hundreds}xx"], count)
        for error, count in tally.unanswered.items():
            unanswered.add_metric([name, error], count)
        late.add_metric([name], tally.late)
        left.add_metric([name], tally.left)
        broken.add_metric([name], tally.streams_broken)
        for result, count in parts.continuations.results.items() if parts.continuations else ():
            continued.add_metric([name, result], count)
        in_flight.add_metric([name], tally.in_flight)
        add_histogram(seconds, [name], tally.seconds)
        add_histogram(overhead, [name], tally.overhead)
    yield from (requests, unanswered, late, left, broken, continued, in_flight, seconds, overhead)


def _tier_metrics(routes: list[RouteParts]) -> Iterator[Metric]:
    outcomes = _counter("understudy_tier_outcomes_total", ["route", "tier", "outcome", "reason"])
    for parts in routes:
        for name, tier in parts.tiers.items():
            if tier.link is not None:
                for (outcome, reason), count in tier.link.outcomes.items():
                    outcomes.add_metric([parts.route.name, name, outcome, reason], count)
    yield outcomes
    yield from _attempt_metrics(routes)


def _attempt_metrics(routes: list[RouteParts]) -> Iterator[Metric]:
    retries = _counter("understudy_retries_total", ["route", "tier"])
    hedges = _counter("understudy_hedges_total", ["route", "tier", "result"])
    over_budget = _counter("understudy_attempts_over_budget_total", ["route", "tier"])
    for parts in routes:
        for name, tier in parts.tiers.items():
            if tier.budget is not None:
                retries.add_metric([parts.route.name, name], tier.budget.retries)
                over_budget.add_metric([parts.route.name, name], tier.budget.refused)
            if tier.hedge is not None:
                for result, count in tier.hedge.results.items():
                    hedges.add_metric([parts.route.name, name, result], count)
    yield from (retries, hedges, over_budget)


def _balance_metrics(routes: list[RouteParts], now: float) -> Iterator[Metric]:
    share = _gauge("understudy_ramp_share", ["route", "tier"])
    calls = _counter("understudy_balance_calls_total", [*ENDPOINT, "outcome"])
    outstanding = _gauge("understudy_balance_outstanding", ENDPOINT)
    cost = _gauge("understudy_balance_cost_seconds", ENDPOINT)
    ejected = _gauge("understudy_balance_ejected", ENDPOINT)
    ejections = _counter("understudy_balance_ejections_total", [*ENDPOINT, "reason"])
    panic = _gauge("understudy_balance_panic", ["route", "tier"])
    for parts in routes:
        for name, tier in parts.tiers.items():
            if tier.link is not None and tier.link.ramp is not None:
                share.add_metric([parts.name, name], tier.link.ramp.share(now))
            if tier.balance is not None:
                panic.add_metric([parts.name, name], float(tier.balance.is_panicking))
    for route, tier_name, endpoint in _endpoints(routes):
        peer, labels = endpoint.peer, [route, tier_name, endpoint.name]
        if peer is None:
            continue
        for outcome, count in (("answered", peer.answered), ("failed", peer.failed), ("refused", peer.refused)):
            calls.add_metric([*labels, outcome], count)
        outstanding.add_metric(labels, peer.outstanding)
        cost.add_metric(labels, peer.cost_s)
        ejected.add_metric(labels, float(peer.ejected_until > now))
        for reason, count in peer.ejections.items():
            ejections.add_metric([*labels, reason], count)
    yield from (share, calls, outstanding, cost, ejected, ejections, panic)


def _endpoint_metrics(routes: list[RouteParts]) -> Iterator[Metric]:
    mode = _gauge("understudy_breaker_mode", [*ENDPOINT, "mode"])
    state = _gauge("understudy_breaker_state", [*ENDPOINT, "state"])
    transitions = _counter("understudy_breaker_transitions_total", [*ENDPOINT, "to"])
    in_flight = _gauge("understudy_limit_in_flight", ENDPOINT)
    places = _gauge("understudy_limit_places", ENDPOINT)
    waiting = _gauge("understudy_limit_waiting", ENDPOINT)
    refused = _counter("understudy_limit_refused_total", ENDPOINT)
    for route, tier, endpoint in _endpoints(routes):
        labels = [route, tier, endpoint.name]
        if endpoint.breaker is not None:
            for each in BREAKER_STATES:
                state.add_metric([*labels, each], float(endpoint.breaker.shown == each))
            for each in MODES:
                mode.add_metric([*labels, each], float(endpoint.breaker.mode == each))
            for to, count in endpoint.breaker.transitions.items():
                transitions.add_metric([*labels, to], count)
        in_flight.add_metric(labels, endpoint.bulkhead.in_flight)
        places.add_metric(labels, endpoint.bulkhead.places)
        waiting.add_metric(labels, len(endpoint.bulkhead.waiting))
        refused.add_metric(labels, endpoint.bulkhead.refused)
    yield from (mode, state, transitions, in_flight, places, waiting, refused)
    yield from _quota_metrics(routes)


def _quota_metrics(routes: list[RouteParts]) -> Iterator[Metric]:
    waited = _counter("understudy_quota_waited_total", ENDPOINT)
    refused = _counter("understudy_quota_refused_total", ENDPOINT)
    for route, tier, endpoint in _endpoints(routes):
        if endpoint.quota is not None:
            waited.add_metric([route, tier, endpoint.name], endpoint.quota.waited)
            refused.add_metric([route, tier, endpoint.name], endpoint.quota.refused)
    yield from (waited, refused)


def _overload_metrics(seen: Seen) -> Iterator[Metric]:
    over = _counter("understudy_tokens_refused_total", ["route", "whose"])
    shed = _counter("understudy_shed_total", ["route", "priority"])
    pressure = _gauge("understudy_shed_pressure", [])
    lag = _gauge("understudy_loop_lag_seconds", [])
    for parts in seen.routes:
        for whose, count in parts.buckets.refused.items() if parts.buckets else ():
            over.add_metric([parts.name, whose], count)
        for priority, count in parts.shed.items():
            shed.add_metric([parts.name, priority], count)
    pressure.add_metric([], seen.shedder.pressure)
    lag.add_metric([], seen.loop_lag_s)
    yield from (over, shed, pressure, lag)


def _endpoints(routes: list[RouteParts]) -> Iterator[tuple[str, str, EndpointParts]]:
    for parts in routes:
        for name, tier in parts.tiers.items():
            for endpoint in tier.endpoints.values():
                yield parts.name, name, endpoint


def _cache_metrics(routes: list[RouteParts], caches: Caches | None) -> Iterator[Metric]:
    lookups = _counter("understudy_cache_lookups_total", ["route", "found"])
    stored = _counter("understudy_cache_stored_total", ["route"])
    dropped = _counter("understudy_cache_dropped_total", ["route", "reason"])
    kept_bytes = _gauge("understudy_cache_bytes", ["route"])
    entries = _gauge("understudy_cache_entries", ["route"])
    second = _counter("understudy_cache_second_total", ["result"])
    left_alone = _gauge("understudy_cache_second_left_alone", [])
    coalesced = _counter("understudy_coalesced_total", ["route", "result"])
    for parts in routes:
        cache = parts.cache
        if cache is None:
            continue
        lookups.add_metric([cache.name, "hit"], cache.hits)
        for found, count in cache.found.items():
            lookups.add_metric([cache.name, found], count)
        stored.add_metric([cache.name], cache.store.stored)
        dropped.add_metric([cache.name, "evicted"], cache.store.evicted)
        dropped.add_metric([cache.name, "written"], cache.store.moved)
        kept_bytes.add_metric([cache.name], cache.store.bytes)
        entries.add_metric([cache.name], len(cache.store))
        for result in ("shared", "took_over", "alone"):
            coalesced.add_metric([cache.name, result], getattr(cache.flights, result))
    if caches is not None and caches.second is not None:
        for result, count in caches.second.results.items():
            second.add_metric([result], count)
        left_alone.add_metric([], float(caches.second.patience.is_open))
    yield from (lookups, stored, dropped, kept_bytes, entries, second, left_alone, coalesced)


def _connection_metrics(seen: Seen) -> Iterator[Metric]:
    pooled = _gauge("understudy_upstream_connections", [*ENDPOINT, "state"])
    opened = _counter("understudy_upstream_connections_opened_total", ENDPOINT)
    failures = _counter("understudy_upstream_connect_failures_total", [*ENDPOINT, "reason"])
    waiting = _gauge("understudy_upstream_waiting", ENDPOINT)
    waits = _histogram("understudy_upstream_wait_seconds", ENDPOINT)
    dns = _counter("understudy_upstream_dns_total", [*ENDPOINT, "result"])
    for labels, pool in seen.pools.items():
        pooled.add_metric([*labels, "idle"], pool.idle)
        pooled.add_metric([*labels, "busy"], pool.size - pool.idle)
        opened.add_metric(labels, pool.opened)
        for reason, count in pool.failures.items():
            failures.add_metric([*labels, reason], count)
        waiting.add_metric(labels, pool.waiting)
        add_histogram(waits, [*labels], pool.waits)
        for result, count in pool.names.results.items():
            dns.add_metric([*labels, result], count)
    yield from (pooled, opened, failures, waiting, waits, dns)


def _door_metrics(seen: Seen) -> Iterator[Metric]:
    connections = _gauge("understudy_connections", [])
    refused = _counter("understudy_connections_refused_total", [])
    failures = _counter("understudy_tls_handshake_failures_total", ["reason"])
    expires = _gauge("understudy_tls_certificate_expires_seconds", [])
    unrouted = _counter("understudy_unrouted_total", [])
    bad = _counter("understudy_bad_requests_total", [])
    cut = _counter("understudy_slow_readers_cut_total", [])
    listeners = list(seen.listeners)
    connections.add_metric([], sum(len(listener.doors) for listener in listeners))
    refused.add_metric([], sum(listener.refused_connections for listener in listeners))
    for reason, count in sum((listener.tls_failures for listener in listeners), Counter[str]()).items():
        failures.add_metric([reason], count)
    if seen.certificate_expires_at is not None:
        expires.add_metric([], seen.certificate_expires_at)
    unrouted.add_metric([], sum(listener.unrouted for listener in listeners))
    bad.add_metric([], sum(listener.bad_requests for listener in listeners))
    cut.add_metric([], sum(listener.behind.cut for listener in listeners))
    yield from (connections, refused, failures, expires, unrouted, bad, cut)


def _process_metrics(seen: Seen) -> Iterator[Metric]:
    dropped = _counter("understudy_access_log_dropped_total", [])
    dropped.add_metric([], seen.log_lines_dropped)
    reloads = _counter("understudy_reload_total", ["result"])
    for result, count in seen.reloads.items():
        reloads.add_metric([result], count)
    ok = _gauge("understudy_reload_ok", [])
    ok.add_metric([], float(seen.reload_ok))
    if seen.chores.shadow_index is not None:
        embedded = _counter("understudy_shadow_index_embedded_total", ["collection"])
        waiting = _gauge("understudy_shadow_index_waiting", ["collection"])
        for name, progress in seen.chores.shadow_index.progress.items():
            embedded.add_metric([name], progress.embedded)
            waiting.add_metric([name], progress.waiting)
        yield from (embedded, waiting)
    if seen.chores.bridges is not None:
        yield from bridge_metrics(seen.chores.bridges.told)
    ready = _gauge("understudy_local_ready", [])
    ready.add_metric([], float(seen.local_ready))
    info = _gauge("understudy_local_info", ["model", "provider", "space"])
    about = seen.local_info
    info.add_metric([about.get(key, "") for key in ("model", "provider", "space")], 1)
    yield from (dropped, reloads, ok, ready, info)
