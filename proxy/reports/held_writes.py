"""What `/metrics` and `/status` say of writes that wait for their vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from understudy.proxy.parts import RouteParts

HELD_METRICS = {
    "understudy_held_writes": "Writes that were acknowledged and wait for their vectors",
    "understudy_held_bytes": "Bytes of them, about",
    "understudy_held_writes_total": "Writes that were to wait for their vectors: held, written, rejected, or refused",
}


def held_metrics(routes: Iterable[RouteParts]) -> Iterator[Metric]:
    """Of each route that keeps some, or may."""
    waiting, size, total = (_family(name) for name in HELD_METRICS)
    for parts in routes:
        if parts.held is not None:
            waiting.add_metric([parts.name], len(parts.held.line))
            size.add_metric([parts.name], parts.held.line.bytes)
            for result, count in parts.held.counts.items():
                total.add_metric([parts.name, result], count)
    yield from (waiting, size, total)


def held_status(parts: RouteParts) -> dict[str, Any]:
    """The same for `/status`; nothing where there are none."""
    held = parts.held
    if held is None:
        return {}
    return {"held_writes": {"waiting": len(held.line), "bytes": held.line.bytes, "why": held.why, **held.counts}}


def held_text(route: dict[str, Any]) -> Iterator[str]:
    """The same for eyes, while a write waits."""
    held = route.get("held_writes")
    if held is not None and held["waiting"]:
        why = f": {held['why']}" if held["why"] else ""
        yield f"  held      {held['waiting']} acknowledged writes wait for their vectors{why}"


def _family(name: str) -> Any:
    if name.endswith("_total"):
        return CounterMetricFamily(name, HELD_METRICS[name], labels=["route", "result"])
    return GaugeMetricFamily(name, HELD_METRICS[name], labels=["route"])
