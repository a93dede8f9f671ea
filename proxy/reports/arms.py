"""What is told of arms, shadows and planned faults: metric families, and lines of `/status`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from understudy.policies.observe import Histogram
from understudy.proxy.arms import fault_lines
from understudy.proxy.stack import RouteParts

ARM_METRICS = {
    "understudy_arm_share": "The share of keys that a route's split sends to its arm",
    "understudy_arm_calls_total": "Calls that an arm was asked for, by class of status, failed or refused",
    "understudy_arm_seconds": "Seconds until an arm's answer, or its first content",
    "understudy_arm_fell_back_total": "Calls that the main arm answered because the other one did not",
    "understudy_arm_unkeyed_total": "Calls without any of the split's keys; they stay with the main arm",
    "understudy_arm_forced_total": "Calls whose caller chose the arm by header",
    "understudy_shadow_calls_total": "Calls sampled to be mirrored, by what became of them",
    "understudy_shadow_seconds": "Seconds until a mirrored call's answer",
    "understudy_shadow_waiting": "Calls waiting to be mirrored",
    "understudy_shadow_pairs_total": "Pairs of answers compared: same, another status, another shape, or failed",
    "understudy_shadow_agreement": "How far the answers of a pair agree: overlap@10, RBO (p = 0.9), cosine",
    "understudy_fault_active": "1 while a fault planned on purpose is enabled and within its time window",
    "understudy_faults_injected_total": "Calls that a fault planned on purpose befell",
}


def arm_metrics(routes: Iterable[RouteParts]) -> Iterator[Metric]:
    """Families of every route that has any of these; none where nobody has."""
    for one in (_of_splits, _of_shadows, _of_faults):
        yield from one(list(routes))


def _of_splits(routes: list[RouteParts]) -> Iterator[Metric]:
    share = GaugeMetricFamily(*_named("arm_share"), labels=["route", "arm"])
    asked = CounterMetricFamily(*_named("arm_calls_total"), labels=["route", "arm", "outcome"])
    seconds = HistogramMetricFamily(*_named("arm_seconds"), labels=["route", "arm"])
    fell_back = CounterMetricFamily(*_named("arm_fell_back_total"), labels=["route", "arm"])
    unkeyed = CounterMetricFamily(*_named("arm_unkeyed_total"), labels=["route"])
    forced = CounterMetricFamily(*_named("arm_forced_total"), labels=["route"])
    for parts in routes:
        heart = parts.arms.split
        if heart is None:
            continue
        share.add_metric([parts.name, heart.arm], heart.share)
        fell_back.add_metric([parts.name, heart.arm], heart.fell_back)
        unkeyed.add_metric([parts.name], heart.unkeyed)
        forced.add_metric([parts.name], heart.forced)
        for arm, tally in heart.tallies.items():
            for hundreds, count in tally.answers.items():
                asked.add_metric([parts.name, arm, f"{hundreds}xx"], count)
            asked.add_metric([parts.name, arm, "failed"], tally.failed)
            asked.add_metric([parts.name, arm, "refused"], tally.refused)
            add_histogram(seconds, [parts.name, arm], tally.seconds)
    yield from (share, asked, seconds, fell_back, unkeyed, forced)


def _of_shadows(routes: list[RouteParts]) -> Iterator[Metric]:
    asked = CounterMetricFamily(*_named("shadow_calls_total"), labels=["route", "arm", "outcome"])
    seconds = HistogramMetricFamily(*_named("shadow_seconds"), labels=["route", "arm"])
    waiting = GaugeMetricFamily(*_named("shadow_waiting"), labels=["route", "arm"])
    pairs = CounterMetricFamily(*_named("shadow_pairs_total"), labels=["route", "arm", "result"])
    agreement = HistogramMetricFamily(*_named("shadow_agreement"), labels=["route", "arm", "measure"])
    for parts in routes:
        if parts.arms.shadowing is None or parts.arms.agreement is None or parts.route.shadow is None:
            continue
        heart, labels = parts.arms.shadowing.heart, [parts.name, parts.route.shadow.arm]
        for fate, count in heart.fates.items():
            asked.add_metric([*labels, fate], count)
        add_histogram(seconds, labels, heart.seconds)
        waiting.add_metric(labels, len(heart.queue))
        for result, count in parts.arms.agreement.pairs.items():
            pairs.add_metric([*labels, result], count)
        for measure, histogram in parts.arms.agreement.measures.items():
            add_histogram(agreement, [*labels, measure], histogram)
    yield from (asked, seconds, waiting, pairs, agreement)


def _of_faults(routes: list[RouteParts]) -> Iterator[Metric]:
    active = GaugeMetricFamily(*_named("fault_active"), labels=["route", "at", "fault"])
    hits = CounterMetricFamily(*_named("faults_injected_total"), labels=["route", "at", "fault"])
    for parts in routes:
        for (at, name), heart in parts.arms.injections.items():
            active.add_metric([parts.name, at, name], float(heart.is_on(parts.arms.clock())))
            hits.add_metric([parts.name, at, name], heart.hits)
    yield from (active, hits)


def _named(name: str) -> tuple[str, str]:
    return f"understudy_{name}", ARM_METRICS[f"understudy_{name}"]


def add_histogram(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    """Add one histogram of ours to a family."""
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
    family.add_metric(labels, buckets, histogram.sum)


def arms_status(parts: RouteParts) -> dict[str, Any]:
    """What `/status` says of a route's split, shadow and faults; nothing of what is not there."""
    told: dict[str, Any] = {}
    split, shadowing, agreement = parts.arms.split, parts.arms.shadowing, parts.arms.agreement
    if split is not None:
        told["split"] = {
            "arm": split.arm,
            "share": split.share,
            "configured_share": split.configured,
            "fell_back": split.fell_back,
            "unkeyed": split.unkeyed,
            "calls": {
                arm: {
                    **{f"{hundreds}xx": count for hundreds, count in tally.answers.items()},
                    "failed": tally.failed,
                    "refused": tally.refused,
                }
                for arm, tally in split.tallies.items()
            },
        }
    if shadowing is not None and agreement is not None:
        told["shadow"] = {"share": shadowing.heart.share, **shadowing.heart.fates, "pairs": agreement.pairs}
    if parts.arms.injections:
        told["faults"] = fault_lines(parts.route, parts.arms)
    return told


def merged_arms(routes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The same of one route in several workers: counts added up, everything else as the first one has it."""
    return {key: _added([route[key] for route in routes if key in route]) for key in KEYS if key in routes[0]}


KEYS = ("split", "shadow", "faults")
_ALIKE = ("share", "configured_share", "on")


def _added(told: Sequence[Any]) -> Any:
    first = told[0]
    if isinstance(first, dict):
        keys = dict.fromkeys(key for each in told for key in each)
        return {
            key: next(each[key] for each in told if key in each)
            if key in _ALIKE
            else _added([each[key] for each in told if key in each])
            for key in keys
        }
    if isinstance(first, list):
        return [_added(each) for each in zip(*told, strict=False)]
    return sum(told) if isinstance(first, int) and not isinstance(first, bool) else first


def arms_text(route: dict[str, Any]) -> Iterator[str]:
    """The same for eyes."""
    if split := route.get("split"):
        counts = "; ".join(f"{arm}: {_counts(calls)}" for arm, calls in split["calls"].items())
        yield f"  split     {split['share'] * 100:g} % to {split['arm']}  {counts}"
    if shadow := route.get("shadow"):
        fates = {key: count for key, count in shadow.items() if key not in ("share", "pairs")}
        yield f"  shadow    {shadow['share'] * 100:g} %  {_counts(fates)}; pairs: {_counts(shadow['pairs'])}"
    for fault in route.get("faults", ()):
        state = "ON" if fault["on"] else "waiting"
        yield f"  FAULT     {state} at {fault['at']}: {fault['what']}, {fault['hits']} so far"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "none"
