"""What `understudy status` prints: `/status` for eyes at 3 a.m."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from understudy.proxy.arm_reports import arms_text
from understudy.proxy.forecast_reports import forecast_text
from understudy.proxy.health_reports import health_text, route_tier_text
from understudy.proxy.mirror_reports import mirror_text
from understudy.proxy.recovery_reports import recovery_text
from understudy.proxy.watch_reports import watch_text


def status_text(status: dict[str, Any]) -> str:
    """Plain lines: the whole first, then each route and each of its tiers in the order they are asked."""
    policies, local = status["policies"], status["local"]
    lines = [
        "ready" if status["ready"] else f"NOT READY: {status['unready_because']}",
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
        answers = ", ".join(f"{count} {what}" for what, count in route["answers"].items()) or "no calls yet"
        lines.append(f"\n{route['name']}  ({route['dialect']})  {answers}")
        lines += [
            *route_tier_text(route),
            *arms_text(route),
            *watch_text(route),
            *mirror_text(route),
            *(line for tier in route["tiers"] for line in _tier(tier)),
        ]
    return "\n".join(lines) + "\n"


def _local(local: dict[str, Any]) -> str:
    if not local["ready"]:
        return f"not ready: {local['reason']}"
    return f"{local['model']} on {local['provider']}"


def _tier(tier: dict[str, Any]) -> Iterator[str]:
    head = f"  {tier['rank']:<10}{tier['name']:<16}"
    if not tier["active"]:
        yield f"{head}not there: {tier['inactive_because']}"
        return
    endpoints = tier["endpoints"]
    words = [f"{count} {outcome}" for outcome, count in tier["outcomes"].items()]
    if tier.get("ramp_share", 1) < 1:
        words.insert(0, f"coming back with {tier['ramp_share']:.0%} of the calls;")
    if len(endpoints) == 1:
        yield f"{head}{' '.join([*_endpoint(endpoints[0]), *words])}"
        return
    yield f"{head}{' '.join(words)}"
    for endpoint in endpoints:
        yield f"    {endpoint['name']:<24}{' '.join(_endpoint(endpoint))}"


def _endpoint(endpoint: dict[str, Any]) -> Iterator[str]:
    breaker, limit = endpoint.get("breaker"), endpoint["limit"]
    if endpoint.get("ejected_s"):
        yield f"LEFT OUT for {endpoint['ejected_s']} s more;"
    if breaker:
        yield f"breaker {breaker['state']}"
        if breaker["state"] != "closed":
            yield (
                f"({breaker['reason']}; asked again in {breaker['retry_after_s']} s)"
                if breaker["mode"] == "auto"
                else f"({breaker['reason']})"
            )
        elif breaker["mode"] != "auto":
            yield f"({breaker['mode']} by hand)"
    if limit["in_flight"] or limit["waiting"]:
        yield f"{limit['in_flight']} of {limit['places']} in flight, {limit['waiting']} waiting"
