"""What is told of watches: metric families, and lines of `/status`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from understudy.policies.verdict import WORDS
from understudy.proxy.reports.arms import add_histogram
from understudy.proxy.stack import RouteParts

WATCH_METRICS = {
    "understudy_watch_state": "1 for what a route's primary is by its answers: healthy, degraded, unhealthy, unknown",
    "understudy_watch_checks_total": "Checks of what a route's primary answers, by kind and result",
    "understudy_watch_pairs_total": "Live searches compared with the local tier's, or left out, moving, for writes",
    "understudy_watch_agreement": "How far live searches agree with the local tier's: overlap, RBO, less what is new",
    "understudy_silent_degradation_total": "Checks that found a primary's answers wrong, by what was wrong",
}


def watch_metrics(routes: Iterable[RouteParts]) -> Iterator[Metric]:
    """Families of the routes that are watched."""
    state = GaugeMetricFamily(*_named("watch_state"), labels=["route", "state"])
    checks = CounterMetricFamily(*_named("watch_checks_total"), labels=["route", "check", "result"])
    pairs = CounterMetricFamily(*_named("watch_pairs_total"), labels=["route", "result"])
    agreement = HistogramMetricFamily(*_named("watch_agreement"), labels=["route", "measure"])
    silent = CounterMetricFamily(*_named("silent_degradation_total"), labels=["route", "kind"])
    for parts in routes:
        watch, name = parts.watch, parts.name
        if watch is None:
            continue
        for word in WORDS:
            state.add_metric([name, word], float(word == watch.verdict.word))
        for (check, result), count in watch.checks.items():
            checks.add_metric([name, check, result], count)
        for fate, count in watch.heart.fates.items():
            pairs.add_metric([name, fate], count)
        for measure, histogram in watch.measures.items():
            add_histogram(agreement, [name, measure], histogram)
        for kind, count in watch.silent.items():
            silent.add_metric([name, kind], count)
    yield from (state, checks, pairs, agreement, silent)


def _named(name: str) -> tuple[str, str]:
    return f"understudy_{name}", WATCH_METRICS[f"understudy_{name}"]


def watch_status(parts: RouteParts, now: float) -> dict[str, Any]:
    """What `/status` says of a route's watch; nothing where there is none. `component` is what is watched."""
    watch = parts.watch
    if watch is None:
        return {}
    verdict = watch.verdict
    return {
        "watch": {
            "component": watch.component,
            "state": verdict.word,
            "since_s": round(now - verdict.since, 1),
            "reasons": list(verdict.reasons),
            "flapping": verdict.flapping,
            "checks": {f"{check} {result}": count for (check, result), count in watch.checks.items()},
            "pairs": dict(watch.heart.fates),
            "silent": dict(watch.silent),
        }
    }


def merged_watch(routes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The same of one route in several workers: the worst that any says, and counts added up."""
    told = [route["watch"] for route in routes if "watch" in route]
    if not told:
        return {}
    worst = max(told, key=lambda one: WORDS.index(one["state"]))
    return {"watch": {**worst, **{key: _added([one[key] for one in told]) for key in ("checks", "pairs", "silent")}}}


def _added(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    return {
        key: sum(each.get(key, 0) for each in counts) for key in dict.fromkeys(key for each in counts for key in each)
    }


def watch_text(route: dict[str, Any]) -> Iterator[str]:
    """The same for eyes."""
    if watch := route.get("watch"):
        why = f": {', '.join(watch['reasons'])}" if watch["reasons"] else ""
        yield f"  watch     {watch['component']} {watch['state']} for {watch['since_s']:g} s{why}"
