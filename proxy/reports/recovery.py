"""What `/metrics`, `/status`, `understudy status` and alerts say of recovery."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from understudy.policies.events import Event
from understudy.policies.recovery import State

if TYPE_CHECKING:
    from understudy.proxy.control.recovery import Recoverer

RECOVERY_METRICS = {
    "understudy_recovery_state": "1 for where the ladder of an ill component stands: waiting, climbing, verifying, held"
    " or escalated; without a line for what is well",
    "understudy_recovery_rungs_total": "Rungs that were tried for a component, by rung and by result: done, skipped or"
    " failed",
    "understudy_recovery_recovered_total": "Times that a component was well again, by what had helped",
    "understudy_recovery_escalations_total": "Times that a component was left to a human",
    "understudy_recovery_cpu_seconds_total": "CPU time that recovery has taken for its own work",
}


def recovery_metrics(recovery: Recoverer | None) -> Iterator[Metric]:
    """What recovery counts, and where each ladder stands."""
    state = _gauge("understudy_recovery_state", ["component", "state"])
    rungs = _counter("understudy_recovery_rungs_total", ["component", "rung", "result"])
    recovered = _counter("understudy_recovery_recovered_total", ["component", "by"])
    escalations = _counter("understudy_recovery_escalations_total", ["component"])
    cpu = _counter("understudy_recovery_cpu_seconds_total", [])
    if recovery is not None:
        for ladder in recovery.heart.ladders.values():
            for each in get_args(State):
                state.add_metric([ladder.component, each], float(ladder.state == each))
        for labels, count in recovery.results.items():
            rungs.add_metric(list(labels), count)
        for labels, count in recovery.recovered.items():
            recovered.add_metric(list(labels), count)
        for component, count in recovery.escalations.items():
            escalations.add_metric([component], count)
        cpu.add_metric([], recovery.heart.budget.cpu_s)
    yield from (state, rungs, recovered, escalations, cpu)


def recovery_status(recovery: Recoverer | None) -> dict[str, Any]:
    """Each ladder, and what is being done, in words; nothing where all is well."""
    ladders = [] if recovery is None else recovery.told()
    return {"recovery": ladders} if ladders else {}


def merged_recovery(statuses: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of several workers one alone recovers."""
    told: list[list[dict[str, Any]]] = [status["recovery"] for status in statuses if status.get("recovery")]
    return {"recovery": told[0]} if told else {}


def recovery_text(status: dict[str, Any]) -> list[str]:
    """A line for each ladder."""
    return [f"recovery  {ladder['component']}: {ladder['doing']}" for ladder in status.get("recovery", [])]


def recovering(events: Iterable[Event]) -> dict[str, str]:
    """Component -> what recovery has last said of it; those that have been well for long enough are left out.

    Of events in the order in which they happened: so that whoever writes alerts can say it, in whatever process.
    """
    said: dict[str, str] = {}
    for event in events:
        if event.family != "recovery":
            continue
        said.pop(event.component, None)
        if event.kind != "stable":
            said[event.component] = event.detail
    return said


def _gauge(name: str, labels: list[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, RECOVERY_METRICS[name], labels=labels)


def _counter(name: str, labels: list[str]) -> CounterMetricFamily:
    return CounterMetricFamily(name.removesuffix("_total"), RECOVERY_METRICS[name], labels=labels)
