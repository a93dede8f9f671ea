"""What `/metrics`, `/status` and `understudy status` say of mirrors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from understudy.proxy.mirroring.mirror import Held
    from understudy.proxy.mirroring.mirrors import Kept, Mirrors

STATES = ("absent", "copying", "whole", "behind", "refused")

MIRROR_METRICS = {
    "understudy_mirror_staleness_seconds": "Seconds since a copy was last known to have all that its database has",
    "understudy_mirror_points_behind": "At least so many points of a copy differ from its database's",
    "understudy_mirror_state": "1 for how a copy stands: absent, copying, whole, behind or refused",
    "understudy_mirror_writes_total": "Writes that passed: applied, of unknown outcome, or too many to be applied",
    "understudy_mirror_waiting": "Writes that wait to be applied to copies",
    "understudy_mirror_compared_total": "Points of a copy that were compared with the database's",
    "understudy_mirror_repaired_total": "Points of a copy that differed and were put right",
}


def mirror_metrics(mirrors: Mirrors | None) -> Iterator[Metric]:
    """What every mirror counts, and how its copies stand."""
    staleness = _gauge("understudy_mirror_staleness_seconds", ["route", "collection"])
    behind = _gauge("understudy_mirror_points_behind", ["route", "collection"])
    state = _gauge("understudy_mirror_state", ["route", "collection", "state"])
    writes = _counter("understudy_mirror_writes_total", ["route", "result"])
    waiting = _gauge("understudy_mirror_waiting", ["route"])
    compared = _counter("understudy_mirror_compared_total", ["route", "collection"])
    repaired = _counter("understudy_mirror_repaired_total", ["route", "collection"])
    for route, kept in mirrors.running.items() if mirrors is not None else ():
        mirror, counts = kept.mirror, kept.mirror.counts
        for result in ("applied", "doubtful", "overflowed"):
            writes.add_metric([route, result], getattr(counts, result))
        waiting.add_metric([route], len(mirror.lane))
        for local, held in mirror.held.items():
            labels = [route, local]
            if held.standing.whole:
                staleness.add_metric(labels, held.standing.staleness_s(mirror.wall()))
            behind.add_metric(labels, held.standing.points_behind)
            for each in STATES:
                state.add_metric([*labels, each], float(state_of(held) == each))
            compared.add_metric(labels, held.compared)
            repaired.add_metric(labels, held.repaired)
    yield from (staleness, behind, state, writes, waiting, compared, repaired)


def mirror_status(mirrors: Mirrors | None, route: str) -> dict[str, Any]:
    """What a route's mirror is and has, where it has one."""
    kept = mirrors.running.get(route) if mirrors is not None else None
    if kept is None:
        return {}
    mirror = kept.mirror
    counts = {name: getattr(mirror.counts, name) for name in ("applied", "doubtful", "overflowed")}
    copies = {local: _copy_status(kept, held) for local, held in sorted(mirror.held.items())}
    trouble = kept.keeper.trouble if kept.keeper is not None else ""
    return {
        "mirror": {
            "keeper": mirror.is_keeper,
            "trouble": trouble,
            "waiting": len(mirror.lane),
            "writes": counts,
            "copies": copies,
        }
    }


def state_of(held: Held) -> str:
    """How a copy stands, in a word."""
    if held.refused and not held.standing.whole:
        return "refused"
    if held.standing.whole:
        return "behind" if held.standing.behind_since else "whole"
    return "copying" if held.described is not None else "absent"


def _copy_status(kept: Kept, held: Held) -> dict[str, Any]:
    standing = held.standing
    about: dict[str, Any] = {"called": held.called, "state": state_of(held)}
    if standing.whole:
        about["staleness_s"] = round(standing.staleness_s(kept.mirror.wall()), 1)
        about["points_behind"] = standing.points_behind
    if why := held.refused or standing.why:
        about["why"] = why
    return about | {"compared": held.compared, "repaired": held.repaired}


def merged_mirrors(routes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several workers say of one route's mirror: counts are added up, copies stand as the keeper has them."""
    mirrors = [route["mirror"] for route in routes if "mirror" in route]
    if not mirrors:
        return {}
    first = next((one for one in mirrors if one["keeper"]), mirrors[0])
    writes = {name: sum(one["writes"][name] for one in mirrors) for name in first["writes"]}
    return {"mirror": {**first, "writes": writes, "waiting": sum(one["waiting"] for one in mirrors)}}


def mirror_text(route: dict[str, Any]) -> Iterator[str]:
    """Lines for eyes."""
    mirror = route.get("mirror")
    if mirror is None:
        return
    if mirror["trouble"]:
        yield f"  mirror    {mirror['trouble']}"
    for local, copy in mirror["copies"].items():
        words = [copy["state"]]
        if "staleness_s" in copy:
            words.append(f"{copy['staleness_s']:g} s stale, {copy['points_behind']} points behind")
        if "why" in copy:
            words.append(f"({copy['why']})")
        yield f"  copy      {local:<16}{' '.join(words)}"


def _counter(name: str, labels: list[str]) -> CounterMetricFamily:
    return CounterMetricFamily(name, MIRROR_METRICS[name], labels=labels)


def _gauge(name: str, labels: list[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, MIRROR_METRICS[name], labels=labels)
