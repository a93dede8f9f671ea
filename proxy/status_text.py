"""What `understudy status` prints: `/status` for eyes at 3 a.m."""

from __future__ import annotations

from typing import Any


def status_text(status: dict[str, Any]) -> str:
    """Plain lines: the whole first, then each route and each of its tiers in the order they are asked."""
    policies, local = status["policies"], status["local"]
    lines = [
        "ready" if status["ready"] else f"NOT READY: {status['unready_because']}",
        f"policies  {policies['digest']} from {policies['folder']}"
        + ("" if policies["reload_ok"] else "  THE FILES ON DISK ARE NOT IN FORCE:"),
        *(f"          {fault}" for fault in policies["faults"]),
        f"local     {_local(local)}",
    ]
    for route in status["routes"]:
        answers = ", ".join(f"{count} {what}" for what, count in route["answers"].items()) or "no calls yet"
        lines.append(f"\n{route['name']}  ({route['dialect']})  {answers}")
        lines += [_tier(tier) for tier in route["tiers"]]
    return "\n".join(lines) + "\n"


def _local(local: dict[str, Any]) -> str:
    if not local["ready"]:
        return f"not ready: {local['reason']}"
    return f"{local['model']} on {local['provider']}"


def _tier(tier: dict[str, Any]) -> str:
    if not tier["active"]:
        return f"  {tier['rank']:<10}{tier['name']:<16}not there: {tier['inactive_because']}"
    words: list[str] = []
    breaker = tier.get("breaker")
    if breaker:
        words.append(f"breaker {breaker['state']}")
        if breaker["state"] != "closed":
            words.append(f"({breaker['reason']}; asked again in {breaker['retry_after_s']} s)")
    limit = tier.get("limit")
    if limit and (limit["in_flight"] or limit["waiting"]):
        words.append(f"{limit['in_flight']} of {limit['places']} in flight, {limit['waiting']} waiting")
    words += [f"{count} {outcome}" for outcome, count in tier["outcomes"].items()]
    return f"  {tier['rank']:<10}{tier['name']:<16}{' '.join(words)}"
