"""`understudy bench`: what a call costs here, with these policies; on loopback only.

Without --url a sidecar is started with the policies as they are, but for its ports and what stands behind it: every
upstream is one of our own, with fixed answers. With --url it is the one that runs there.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from understudy.proxy.cli import NOT_WELL, WELL, Complaint, add_policies
from understudy.proxy.settings.addresses import is_loopback

if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

    from understudy.proxy.bench.session import Row

Groups = Any  # argparse names the type of add_subparsers() only privately
SECONDS, SECONDS_MAX = 5.0, 60.0
CONNECTIONS, CONNECTIONS_MAX = 32, 256


def add_to(groups: Groups) -> None:
    """Add the command to the command line."""
    bench = groups.add_parser("bench", help="measure what a call costs here", description=__doc__)
    add_policies(bench)
    bench.add_argument("--url", help="measure the sidecar that runs there, such as http://127.0.0.1:8787")
    bench.add_argument(
        "--through", action="store_true", help="with --url: the services behind it may be put under load too"
    )
    bench.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help=f"in all (default {SECONDS:g})")
    bench.add_argument(
        "--connections", type=int, default=CONNECTIONS, metavar="N", help=f"at once (default {CONNECTIONS})"
    )
    bench.add_argument("--json", action="store_true", help="as JSON")
    bench.set_defaults(run=measure_calls)


def _bounded(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.seconds <= SECONDS_MAX:
        raise Complaint(f"bench: --seconds is more than 0 and at most {SECONDS_MAX:g}")
    if not 1 <= arguments.connections <= CONNECTIONS_MAX:
        raise Complaint(f"bench: --connections is from 1 to {CONNECTIONS_MAX}")


def loopback(url: str) -> tuple[str, int]:
    """Host and port of a URL on this machine. Raises Complaint for any other."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 80
    except ValueError as error:
        raise Complaint(f"bench: {url}: {error}") from None
    if parts.scheme != "http" or not host:
        raise Complaint(f"bench: {url} is not an http:// URL")
    if not is_loopback(host):
        raise Complaint(f"bench: {host} is not this machine: load tests go to loopback only")
    return host, port


def measure_calls(arguments: argparse.Namespace) -> int:
    """Print the table; 1 when a call was answered wrongly."""
    import uvloop

    from understudy.proxy.bench import session
    from understudy.proxy.commands.policies import sound_settings

    _bounded(arguments)
    place = loopback(arguments.url) if arguments.url else None
    settings = sound_settings(arguments)
    if place:
        measuring = session.measure_running(settings, *place, _effort(arguments), through=arguments.through)
    else:
        measuring = session.measure_ours(settings, _effort(arguments))
    before = signal.signal(signal.SIGTERM, _stopped)
    try:
        rows = uvloop.run(measuring)
    except session.CannotMeasure as why:
        raise Complaint(f"bench: {why}") from None
    finally:
        signal.signal(signal.SIGTERM, before)
    if arguments.json:
        sys.stdout.write(json.dumps([row.as_data() for row in rows], indent=2) + "\n")
    else:
        sys.stdout.write(_table(rows, arguments))
    return NOT_WELL if any(row.mark.wrong for row in rows) else WELL


def _effort(arguments: argparse.Namespace) -> tuple[float, int]:
    return arguments.seconds, arguments.connections


def _stopped(number: int, _frame: FrameType | None) -> NoReturn:
    # an exception, so that the sidecar we started is stopped on the way out
    raise SystemExit(128 + number)


def _table(rows: list[Row], arguments: argparse.Namespace) -> str:
    lines = [("", "calls/s", "p50 ms", "p99 ms", "CPU us/call", "memory MiB", "")]
    lines += [_line(row) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    texts: list[str] = []
    for name, *cells, about in lines:
        padded = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        texts.append(f"{name:<{widths[0]}}  {padded}  {about}".rstrip())
    where = arguments.url or "a sidecar with these policies, a service with fixed answers behind it"
    plural = "s at once" if arguments.connections > 1 else ""
    texts += ["", f"{arguments.connections} connection{plural} to {where}"]
    return "\n".join(texts) + "\n"


def _line(row: Row) -> tuple[str, ...]:
    if row.mark.wrong or row.left_out:
        why = row.left_out or f"answered wrongly: {row.mark.wrong}"
        return (row.name, "-", "-", "-", "-", "-", why)
    data = row.as_data()
    cpu, memory = data["cpu_us"], data["memory_mib"]
    return (
        row.name,
        f"{data['calls_per_s']:,.0f}",
        f"{data['p50_ms']:.2f}",
        f"{data['p99_ms']:.2f}",
        "-" if cpu is None else f"{cpu:.1f}",
        "-" if memory is None else f"{memory:.0f}",
        row.about,
    )
