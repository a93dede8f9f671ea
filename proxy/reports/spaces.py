"""What `/metrics` and `/status` say of vectors: what is remembered of them, and what became of handles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from understudy.proxy.spaces.fingerprints import Fingerprints
from understudy.proxy.spaces.provenance import Provenance

SPACES_METRICS = {
    "understudy_ledger_entries": "Vectors handed out whose texts are remembered",
    "understudy_ledger_bytes": "Memory they take, about",
    "understudy_ledger_total": "Vectors remembered, evicted, and looked for: found, found by nearness, or missed",
    "understudy_vectors_total": "What became of vectors: handed out as handles, searched by, or not read, and why",
    "understudy_handles_about": "1 while handles may be about, and every search and write is looked through for them",
    "understudy_handles_served_total": "Calls that brought a handle, by route and what became of them",
    "understudy_space_cosine": "The least cosine of an endpoint's vectors of fixed texts to what they were at first",
    "understudy_space_quarantined": "1 while an endpoint's vectors are no longer those of its space",
    "understudy_space_measured_total": "Measurements of an endpoint's vectors, by what came of them",
    "understudy_fallback_unavailable_total": "Embeddings for which no fallback could be given, by route and reason",
}


def spaces_metrics(provenance: Provenance, fingerprints: Fingerprints) -> Iterator[Metric]:
    """What the process knows of the vectors it has handed out, and of those who embed."""
    yield from _fingerprint_metrics(fingerprints)
    ledger = provenance.ledger
    yield _gauge("understudy_ledger_entries", len(ledger))
    yield _gauge("understudy_ledger_bytes", ledger.bytes)
    yield _gauge("understudy_handles_about", float(provenance.is_armed))
    looked = _counter("understudy_ledger_total", ["result"])
    for result in ("remembered", "evicted", "found", "near", "missed"):
        looked.add_metric([result], getattr(ledger, result))
    vectors = _counter("understudy_vectors_total", ["result"])
    for word, count in provenance.counts.items():
        vectors.add_metric([word], count)
    served = _counter("understudy_handles_served_total", ["route", "how"])
    for key, count in provenance.served.items():
        served.add_metric([*key], count)
    unavailable = _counter("understudy_fallback_unavailable_total", ["route", "reason"])
    for key, count in provenance.unavailable.items():
        unavailable.add_metric([*key], count)
    yield from (looked, vectors, served, unavailable)


def _fingerprint_metrics(fingerprints: Fingerprints) -> Iterator[Metric]:
    labels = ["route", "tier", "endpoint"]
    cosine = GaugeMetricFamily("understudy_space_cosine", SPACES_METRICS["understudy_space_cosine"], labels=labels)
    quarantined = GaugeMetricFamily(
        "understudy_space_quarantined", SPACES_METRICS["understudy_space_quarantined"], labels=labels
    )
    measured = _counter("understudy_space_measured_total", [*labels, "result"])
    for one in fingerprints:
        if one.heart.cosine is not None:
            cosine.add_metric([*one.key], one.heart.cosine)
        quarantined.add_metric([*one.key], float(one.heart.is_quarantined))
        for result, count in one.results.items():
            measured.add_metric([*one.key, result], count)
    yield from (cosine, quarantined, measured)


def spaces_status(provenance: Provenance, fingerprints: Fingerprints) -> dict[str, Any]:
    """The same for `/status`."""
    ledger = provenance.ledger
    return {
        "handles_about": provenance.is_armed,
        "ledger": {
            "entries": len(ledger),
            "bytes": ledger.bytes,
            "found": ledger.found,
            "near": ledger.near,
            "missed": ledger.missed,
        },
        "vectors": dict(provenance.counts),
        "dimensions": {" ".join(filter(None, key)): many for key, many in provenance.dimensions.items()},
        "handles": {" ".join(key): count for key, count in provenance.served.items()},
        "fingerprints": {
            "/".join(one.key): {"space": one.identity, "state": one.heart.state, "cosine": one.heart.cosine}
            for one in fingerprints
        },
        "unavailable": {" ".join(key): count for key, count in provenance.unavailable.items()},
    }


def _gauge(name: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, SPACES_METRICS[name], labels=[])
    family.add_metric([], value)
    return family


def _counter(name: str, labels: list[str]) -> CounterMetricFamily:
    return CounterMetricFamily(name, SPACES_METRICS[name], labels=labels)
