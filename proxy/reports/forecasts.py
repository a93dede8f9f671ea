"""What is told of forecasts: metric families, values for `/forecasts`, and the table of `understudy forecasts`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import isinf, isnan
from typing import TYPE_CHECKING, Any

from understudy.policies.forecast import ADVICE, DAY_S, HOUR_S, Outlook
from understudy.policies.rhythm import Kind, Oddity, Trend

if TYPE_CHECKING:
    from understudy.proxy.control.wire import Family

FORECAST_METRICS = {
    "understudy_resource_used_share": "How full something is that may fill up, as a share of one",
    "understudy_resource_full_seconds": "Seconds until it is full if it goes on like this; only where it fills up",
    "understudy_resource_warned": "1 while it is warned of: all of the interval is full within a day",
    "understudy_anomaly": "By how many spreads a route differs from what is usual at this hour; only while it is odd",
}


def forecast_families(outlooks: Iterable[Outlook], oddities: Iterable[Oddity]) -> list[Family]:
    """What `/metrics` says of what is foreseen."""
    names = list(FORECAST_METRICS)
    samples: dict[str, list[tuple[str, dict[str, str], float]]] = {name: [] for name in names}
    for one in outlooks:
        labels = {"resource": one.what, "name": one.name}
        samples[names[0]].append((names[0], labels, one.share))
        if not isinf(one.full_s):
            samples[names[1]].append((names[1], labels, one.full_s))
        samples[names[2]].append((names[2], labels, float(is_warned(one))))
    for odd in oddities:
        samples[names[3]].append((names[3], {"route": odd.route, "what": odd.kind}, odd.spreads))
    return [(name, "gauge", FORECAST_METRICS[name], samples[name]) for name in names]


def is_warned(one: Outlook) -> bool:
    """Whether it is warned of: what does no harm when it is full never is."""
    return one.warned_since > 0 and ADVICE[one.what].warns


def outlook_told(one: Outlook) -> dict[str, Any]:
    """An outlook as JSON values: null for never, and for what nobody knows."""
    advice = ADVICE[one.what]
    told = {key: _plain(value) for key, value in one._asdict().items()}
    return {
        **told,
        "share": round(one.share, 4),
        "unit": advice.unit,
        "warned": is_warned(one),
        "actions": list(advice.actions) if is_warned(one) else [],
    }


def trend_told(one: Trend) -> dict[str, Any]:
    """A trend as JSON values; seconds or a share, per hour."""
    return {**{key: _plain(value) for key, value in one._asdict().items()}, "direction": one.direction}


def _plain(value: object) -> object:
    if not isinstance(value, float):
        return value
    return None if isinf(value) or isnan(value) else float(f"{value:.6g}")


# --- words ---------------------------------------------------------------------------------------------------------


def summary(one: Outlook) -> str:
    """One line: what, how full, and when it will be."""
    advice = ADVICE[one.what]
    when = f"full in {hours_text(one.full_s)} ({hours_text(one.soonest_s)} to {hours_text(one.latest_s)})"
    if isinf(one.latest_s):
        when = "nearly full"
    return f"{advice.words} ({one.name}): {one.share:.0%} of {amount(one.limit, advice.unit)}, {when}"


def hours_text(seconds: float) -> str:
    """A time as people say it: minutes, hours or days."""
    if isinf(seconds):
        return "never"
    if seconds < HOUR_S:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / HOUR_S:.1f} h" if seconds < 2 * DAY_S else f"{seconds / DAY_S:.0f} d"


def amount(number: float, unit: str) -> str:
    """A number of things, or of bytes."""
    if unit != "bytes":
        return f"{number:,.0f} {unit}"
    for word, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(number) >= size:
            return f"{number / size:.1f} {word}"
    return f"{number:.0f} bytes"


WHAT_IS_ODD: Mapping[Kind, str] = {
    "calls": "calls",
    "errors": "share of errors",
    "p50": "median latency",
    "p95": "p95 latency",
}


def oddity_text(one: Oddity) -> str:
    """One line: whose, what it is, and what is usual at this hour."""
    return f"{one.route}: {WHAT_IS_ODD[one.kind]} {_as(one.kind, one.is_)}, usually {_as(one.kind, one.usual)}"


def _as(kind: Kind, value: float) -> str:
    if isnan(value):
        return "unknown"
    if kind == "calls":
        return f"{value:.0f} in 5 min"
    return f"{value:.2%}" if kind == "errors" else f"{value * 1000:.0f} ms"


# --- for eyes ------------------------------------------------------------------------------------------------------


def forecast_text(told: dict[str, Any]) -> list[str]:
    """Lines of `understudy status` for what is in the `forecasts` of `/status`."""
    capacity: list[str] = told.get("capacity", [])
    anomalies: list[str] = told.get("anomalies", [])
    return [*(f"FILLS UP  {line}" for line in capacity), *(f"unusual   {line}" for line in anomalies)]


def resource_rows(told: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Rows of the table of `understudy forecasts`: what, how full, growth an hour, when it is full; the first come
    those that are warned of, then those that are full the soonest."""
    rows: list[dict[str, Any]] = told["resources"]
    for one in sorted(rows, key=lambda one: (not one["warned"], _or_never(one["full_s"]), -one["share"])):
        unit, known = one["unit"], one["looked_s"] > 0
        full = hours_text(_or_never(one["full_s"]))
        if one["full_s"] is not None:
            full += f" ({hours_text(_or_never(one['soonest_s']))} to {hours_text(_or_never(one['latest_s']))})"
        yield (
            ADVICE[one["what"]].words,
            one["name"],
            f"{one['share']:.0%} of {amount(one['limit'], unit)}",
            amount(one["per_h"], unit) if known else "not known yet",
            full if known else "",
            "WARNED" if one["warned"] else "",
        )


def trend_rows(told: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Rows of the table of trends: route, what, now, and how it moves in an hour."""
    for one in told["trends"]:
        kind: Kind = one["kind"]
        moves = f"{_as(kind, one['low_per_h'])} to {_as(kind, one['high_per_h'])} an hour"
        yield one["route"], WHAT_IS_ODD[kind], _as(kind, one["now"]), one["direction"], moves


def _or_never(seconds: float | None) -> float:
    return float("inf") if seconds is None else seconds
