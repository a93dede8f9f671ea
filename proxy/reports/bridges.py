"""What `/metrics` and `/status` say of maps between vector spaces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric

BRIDGE_METRICS = {
    "understudy_bridge_pairs": "Texts known in both spaces, to which a map from the local model's is fitted",
    "understudy_bridge_in_use": "1 while a collection without texts is searched by mapped vectors",
    "understudy_bridge_agreement": "Of what true vectors find in a collection, the share that mapped ones find too",
    "understudy_bridge_sanity": "Of what the other space's own vectors find, the share that words find too",
}


def bridge_metrics(told: Mapping[str, Any]) -> Iterator[Metric]:
    """As `Bridges.told` has it."""
    families = {name: _gauge(name) for name in BRIDGE_METRICS}
    for space, span in told["spaces"].items():
        families["understudy_bridge_pairs"].add_metric([space], span["pairs"])
        for name, each in span["collections"].items():
            families["understudy_bridge_in_use"].add_metric([space, name], float(each["in_use"]))
            families["understudy_bridge_agreement"].add_metric([space, name], each["agreement"] or 0.0)
            families["understudy_bridge_sanity"].add_metric([space, name], each["sanity"] or 0.0)
    yield from families.values()


def merged_bridges(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the `local` parts of several workers' statuses say of maps, as one: of the worker that gathers, but for a
    reason why another has none yet, and counts that add up."""
    known = [local["bridges"] for local in each if "bridges" in local]
    if not known:
        return {}
    reasons = [one["reason"] for one in known if one["reason"]]
    if len(known) < len(each):
        reasons.append("a worker has not loaded the local model yet")
    counts = {name: sum(one[name] for one in known) for name in ("waiting", "passed_over")}
    return {"bridges": {**known[0], "reason": next(iter(reasons), ""), **counts}}


def _gauge(name: str) -> GaugeMetricFamily:
    labels = ["space"] if name == "understudy_bridge_pairs" else ["space", "collection"]
    return GaugeMetricFamily(name, BRIDGE_METRICS[name], labels=labels)
