"""What `/metrics` says of likeness."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from understudy.proxy.stack import RouteParts

LIKENESS_METRICS = {
    "understudy_likeness_total": "Calls that likeness looked at, by what came of it",
    "understudy_likeness_verdicts_total": "Kept answers compared with the upstream's own, by kind of hit and verdict",
    "understudy_likeness_permitted": "1 while a kind of hit may be given to callers",
    "understudy_likeness_false_share_bound": "The most of a kind of hit that would be wrong, as far as is known",
    "understudy_likeness_entries": "Answers and lists of points kept for calls that are alike",
    "understudy_likeness_bytes": "Memory they take, about",
}


def likeness_metrics(routes: Iterable[RouteParts]) -> Iterator[Metric]:
    """What every route's likeness counts and has learnt."""
    results = _counter("understudy_likeness_total", ["route", "result"])
    verdicts = _counter("understudy_likeness_verdicts_total", ["route", "hit", "verdict"])
    permitted = _gauge("understudy_likeness_permitted", ["route", "hit"])
    bound = _gauge("understudy_likeness_false_share_bound", ["route", "hit"])
    entries = _gauge("understudy_likeness_entries", ["route"])
    size = _gauge("understudy_likeness_bytes", ["route"])
    for parts in routes:
        heart, name = parts.likeness, parts.route.name
        if heart is None:
            continue
        for result, count in heart.counts.items():
            results.add_metric([name, result], count)
        for bucket, known in heart.permission.known():
            verdicts.add_metric([name, bucket.label, "same"], known.same)
            verdicts.add_metric([name, bucket.label, "different"], known.different)
            upper = known.upper(known.at)
            permitted.add_metric([name, bucket.label], float(upper <= heart.rules.false_share_max))
            bound.add_metric([name, bucket.label], upper)
        entries.add_metric([name], heart.entries)
        size.add_metric([name], heart.bytes)
    yield from (results, verdicts, permitted, bound, entries, size)


def _counter(name: str, labels: list[str]) -> CounterMetricFamily:
    return CounterMetricFamily(name, LIKENESS_METRICS[name], labels=labels)


def _gauge(name: str, labels: list[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, LIKENESS_METRICS[name], labels=labels)
