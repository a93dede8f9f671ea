"""The command that shows what is foreseen: `understudy forecasts`."""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from typing import Any

from understudy.proxy.cli import NOT_WELL, WELL, Complaint
from understudy.proxy.commands import Groups, sound_settings


def add_to(groups: Groups) -> None:
    """Add this module's command to the command line."""
    forecasts = groups.add_parser("forecasts", help="ask a running sidecar what will be full, and what is unusual")
    forecasts.add_argument("--admin", metavar="HOST:PORT")
    forecasts.add_argument("--json", action="store_true", help="as JSON")
    forecasts.add_argument(
        "--policies", metavar="DIR", help="policy folder (or UNDERSTUDY_POLICIES; default: as shipped)"
    )
    forecasts.set_defaults(run=print_forecasts)


def print_forecasts(arguments: argparse.Namespace) -> int:
    """Ask the admin port; 1 when something is warned of, 2 when nobody answers."""
    admin = arguments.admin or sound_settings(arguments).server.admin
    try:
        with urllib.request.urlopen(f"http://{admin}/forecasts", timeout=5) as answer:
            told: dict[str, Any] = json.load(answer)
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise Complaint(f"no sidecar answers on {admin}: {reason}") from None
    if arguments.json:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        print_tables(told)
    return NOT_WELL if any(one["warned"] for one in told["resources"]) else WELL


def print_tables(told: dict[str, Any]) -> None:
    """What fills up, what to do about it, how latencies and errors move, and what is unusual."""
    from rich.console import Console
    from rich.table import Table

    from understudy.proxy.forecast_reports import resource_rows, trend_rows

    console = Console(file=sys.stdout)
    resources = Table("what", "which", "full", "an hour", "full in (90 %)", "", box=None)
    for row in resource_rows(told):
        resources.add_row(*row)
    console.print(resources)
    for one in told["resources"]:
        for action in one["actions"]:
            console.print(f"{one['name']}: {action}", markup=False)
    rows = list(trend_rows(told))
    if rows:
        trends = Table("route", "what", "now", "", "(90 %)", box=None)
        for row in rows:
            trends.add_row(*row)
        console.print()
        console.print(trends)
    for one in told["anomalies"]:
        console.print(f"unusual: {one['text']}", markup=False)
