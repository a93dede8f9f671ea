"""What `/metrics` says of the local collections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily, Metric

COLLECTION_METRICS = {
    "understudy_collection_points": "Points that a local collection holds",
    "understudy_collection_tail_points": "Points written to a local collection since it was last compacted",
    "understudy_collection_tombstones": "Compacted points of a local collection, put again or taken away since",
    "understudy_collection_bytes": "Memory that a local collection takes, about",
}


class Stats(Protocol):
    """What a collection takes."""

    @property
    def points(self) -> int: ...
    @property
    def tail(self) -> int: ...
    @property
    def tombstones(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def generation(self) -> str: ...


def collection_metrics(collections: Mapping[str, Stats]) -> Iterator[Metric]:
    """What every open collection takes; a library opens only so many of them."""
    families = {name: GaugeMetricFamily(name, text, labels=["collection"]) for name, text in COLLECTION_METRICS.items()}
    for name, stats in collections.items():
        for family, value in zip(
            families.values(), (stats.points, stats.tail, stats.tombstones, stats.bytes), strict=True
        ):
            family.add_metric([name], value)
    yield from families.values()
