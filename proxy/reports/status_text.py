"""What `understudy status` prints: `/status` for eyes at 3 a.m."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from understudy.proxy.reports.arms import arms_text
from understudy.proxy.reports.forecasts import forecast_text
from understudy.proxy.reports.health import health_text, route_tier_text
from understudy.proxy.reports.held_writes import held_text
from understudy.proxy.reports.mirrors import mirror_text
from understudy.proxy.reports.recovery import recovery_text
from understudy.proxy.reports.risks import ago
from understudy.proxy.reports.watches import watch_text


def status_text(status: dict[str, Any]) -> str:
    """Plain lines: the whole first, then each route and each of its tiers in the order they are asked."""
    policies, local = status["policies"], status["local"]
    lines = [
        "ready" if status["ready"] else f"NOT READY: {status['unready_because']}",
        *_firing(status.get("alerts", ())),
        f"sidecar   {_sidecar(status)}",
        f"policies  {policies['digest']} from {policies['folder']}"
        + ("" if policies["reload_ok"] else "  THE FILES ON DISK ARE NOT IN FORCE:"),
        *(f"          {fault}" for fault in policies["faults"]),
        *(f"tls       {tls['cert_file']}, until {tls['expires']}" for tls in [status.get("tls")] if tls),
        f"local     {_local(local)}",
        *forecast_text(status.get("forecasts", {})),
        *recovery_text(status),
        *health_text(status),
    ]
    for route in status["routes"]:
        lines.append(f"\n{route['name']}  ({route['dialect']})  {_answers(route)}")
        lines += [
            *route_tier_text(route),
            *arms_text(route),
            *watch_text(route),
            *mirror_text(route),
            *held_text(route),
            *(line for tier in route["tiers"] for line in _tier(tier)),
        ]
    return "\n".join(lines) + "\n"


def _firing(alerts: Iterable[dict[str, str]]) -> Iterator[str]:
    """What fires, whatever wakes somebody first, and where it is written what to do about it."""
    for alert in sorted(alerts, key=lambda alert: (alert["severity"] != "critical", alert["alertname"])):
        yield f"FIRING    {alert['alertname']}, {alert['severity']}: {alert['summary']}"
        if runbook := alert.get("runbook"):
            yield f"          see {runbook}"


def _sidecar(status: dict[str, Any]) -> str:
    words = [status["version"], f"up for {ago(status['uptime_s'])}"]
    if workers := status.get("workers"):
        words.append(f"{sum(worker['ready'] for worker in workers)} of {len(workers)} workers ready")
    return ", ".join(words)


def _local(local: dict[str, Any]) -> str:
    if not local["ready"]:
        return f"not ready: {local['reason']}"
    return f"{local['model']} on {local['provider']}"


def _answers(route: dict[str, Any]) -> str:
    """What became of a route's calls, those that nobody answered first."""
    unanswered = ", ".join(f"{count} {error}" for error, count in route["unanswered"].items())
    words = [f"{sum(route['unanswered'].values())} ANSWERED BY NOBODY ({unanswered})"] if unanswered else []
    words += [f"{count} {what}" for what, count in route["answers"].items()]
    return ", ".join(words) or "no calls yet"


def _tier(tier: dict[str, Any]) -> Iterator[str]:
    head = f"  {tier['rank']:<10}{tier['name']:<16}"
    if not tier["active"]:
        yield f"{head}not there: {tier['inactive_because']}"
        return
    counts = ", ".join(f"{count} {outcome}" for outcome, count in tier["outcomes"].items())
    # a share of nothing is no way back: who is given no calls at all says why in what it refused
    share = tier.get("ramp_share", 1)
    back = f"coming back with {share:.0%} of the calls" if 0 < share < 1 else ""
    endpoints = tier["endpoints"]
    alone = _endpoint(endpoints[0]) if len(endpoints) == 1 else ()
    yield f"{head}{'; '.join(filter(None, [*alone, back, counts]))}".rstrip()
    for endpoint in endpoints if len(endpoints) > 1 else ():
        yield f"    {endpoint['name']:<24}{'; '.join(_endpoint(endpoint))}"


def _endpoint(endpoint: dict[str, Any]) -> Iterator[str]:
    breaker, limit = endpoint.get("breaker"), endpoint["limit"]
    if endpoint.get("ejected_s"):
        yield f"LEFT OUT for {endpoint['ejected_s']} s more"
    if breaker:
        yield f"breaker {breaker['state']}{_because(breaker)}"
    if limit["in_flight"] or limit["waiting"]:
        yield f"{limit['in_flight']} of {limit['places']} in flight, {limit['waiting']} waiting"


def _because(breaker: dict[str, Any]) -> str:
    if breaker["mode"] != "auto":
        why = breaker["reason"] if breaker["state"] != "closed" else f"{breaker['mode']} by hand"
        return f" ({why}{' ' if breaker.get('by_hand') else ''}{breaker.get('by_hand', '')})"
    if breaker["state"] == "closed":
        return ""
    return f" ({breaker['reason']}; asked again in {breaker['retry_after_s']} s)"


def breakers_text(status: dict[str, Any], name: str = "") -> tuple[str, bool]:
    """What `understudy breaker` prints: every breaker, or those under a name; and whether all are closed of
    themselves."""
    rows = [
        ("/".join((route["name"], tier["name"], endpoint["name"])), endpoint["breaker"])
        for route in status["routes"]
        for tier in route["tiers"]
        for endpoint in tier["endpoints"]
        if "breaker" in endpoint
    ]
    rows = [row for row in rows if not name or (row[0] + "/").startswith(name.rstrip("/") + "/")]
    width = max((len(called) for called, _ in rows), default=0)
    text = "".join(f"{called:<{width}}  {one['state']}{_because(one)}\n" for called, one in rows)
    return text, all(one["state"] == "closed" and one["mode"] == "auto" for _, one in rows)
