"""Commands on a sidecar that runs, asked on its admin port: status, breaker, tier, forecasts."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any
from urllib.parse import quote

from understudy.policies.forcing import MODES
from understudy.proxy.cli import NOT_WELL, WELL, Complaint, Groups, console
from understudy.proxy.commands.admin_client import add_admin, ask, ask_json, print_told


def add_to(groups: Groups) -> None:
    """Add this module's commands to the command line."""
    status = groups.add_parser("status", help="ask a running sidecar how it is")
    add_admin(status, json=True)
    status.set_defaults(run=print_status)

    breaker = groups.add_parser("breaker", help="show the breakers of a running sidecar, or force them")
    breaker.add_argument("name", nargs="?", default="", metavar="ROUTE/TIER[/ENDPOINT]")
    breaker.add_argument("mode", nargs="?", choices=MODES, metavar="MODE", help=", ".join(MODES))
    add_admin(breaker)
    breaker.set_defaults(run=show_or_force_breakers)

    tier = groups.add_parser("tier", help="show the service tier of a running sidecar, or pin it")
    tier.add_argument(
        "rank",
        nargs="?",
        choices=("primary", "secondary", "tertiary", "auto"),
        metavar="TIER",
        help="primary, secondary or tertiary pins it, auto lets it go; left out, it is shown",
    )
    tier.add_argument("--route", default="", metavar="NAME", help="of this route alone")
    add_admin(tier)
    tier.set_defaults(run=show_or_pin_tier)

    forecasts = groups.add_parser("forecasts", help="ask a running sidecar what will be full, and what is unusual")
    add_admin(forecasts, json=True)
    forecasts.set_defaults(run=print_forecasts)


def print_status(arguments: argparse.Namespace) -> int:
    """Print how the sidecar is; 1 when it is not ready."""
    status: dict[str, Any] = ask_json(arguments, "/status")
    if arguments.json:
        sys.stdout.write(json.dumps(status, indent=2) + "\n")
    else:
        from understudy.proxy.reports.status_text import status_text

        sys.stdout.write(status_text(status))
    return WELL if status.get("ready") else NOT_WELL


def show_or_force_breakers(arguments: argparse.Namespace) -> int:
    """Force breakers, or show them; 1 where one is not closed, or not by itself."""
    if arguments.mode:
        sys.stdout.write(ask(arguments, "/breakers/" + quote(arguments.name), arguments.mode))
        return WELL
    from understudy.proxy.reports.status_text import breakers_text

    status: dict[str, Any] = ask_json(arguments, "/status")
    text, all_closed = breakers_text(status, arguments.name)
    if not text and arguments.name:
        raise Complaint(f"no breaker is under {arguments.name}; `understudy breaker` shows which there are")
    sys.stdout.write(text)
    return WELL if all_closed else NOT_WELL


def show_or_pin_tier(arguments: argparse.Namespace) -> int:
    """Pin the service tier, or say what it is; 1 where it is not the first."""
    route: str = arguments.route
    if arguments.rank:
        sys.stdout.write(ask(arguments, f"/tier/{quote(route, safe='')}" if route else "/tier", arguments.rank))
        return WELL
    from understudy.proxy.reports.health import tiers_text

    status: dict[str, Any] = ask_json(arguments, "/status")
    if "health" not in status:
        raise Complaint(f"nobody knows the service tier: {status['unready_because']}")
    tiers: dict[str, dict[str, Any]] = {"": status["health"]["service_tier"]}
    tiers |= {each["name"]: each["service_tier"] for each in status["routes"]}
    if route not in tiers:
        raise Complaint(f"no route is named {route}; there are: {', '.join(name for name in tiers if name) or 'none'}")
    sys.stdout.write(tiers_text(status, route))
    return WELL if tiers[route]["tier"] == "primary" else NOT_WELL


def print_forecasts(arguments: argparse.Namespace) -> int:
    """Print what fills up and what is unusual; 1 when something is warned of."""
    told: dict[str, Any] = ask_json(arguments, "/forecasts")
    print_told(told, print_tables, as_json=arguments.json)
    return NOT_WELL if any(one["warned"] for one in told["resources"]) else WELL


def print_tables(told: dict[str, Any]) -> None:
    """What fills up, what to do about it, how latencies and errors move, and what is unusual."""
    from rich.table import Table

    from understudy.proxy.reports.forecasts import resource_rows, trend_rows

    out = console()
    resources = Table("what", "which", "full", "an hour", "full in (90 %)", "", box=None)
    for row in resource_rows(told):
        resources.add_row(*row)
    out.print(resources)
    for one in told["resources"]:
        for action in one["actions"]:
            out.print(f"{one['name']}: {action}", markup=False)
    rows = list(trend_rows(told))
    if rows:
        trends = Table("route", "what", "now", "", "(90 %)", box=None)
        for row in rows:
            trends.add_row(*row)
        out.print()
        out.print(trends)
    for one in told["anomalies"]:
        out.print(f"unusual: {one['text']}", markup=False)
