"""The command `run`: the sidecar itself. Alone in its module: what other commands need is not loaded for it."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

from understudy.proxy.cli import add_policies, environ_of, policies_folder, state_folder


def add_to(groups: Any) -> None:
    """Add `run` to the command line."""
    run = groups.add_parser("run", help="run the sidecar", description="Run the sidecar until SIGTERM or SIGINT.")
    add_policies(run)
    run.add_argument("--listen", metavar="HOST:PORT", help="where applications come in (default 127.0.0.1:8787)")
    run.add_argument("--admin", metavar="HOST:PORT", help="metrics, probes, status (default 127.0.0.1:8788)")
    run.add_argument("--state", metavar="DIR", help="index, models and journal (or UNDERSTUDY_STATE)")
    run.add_argument("--worker", default="", help=argparse.SUPPRESS)
    run.set_defaults(run=run_sidecar)


def run_sidecar(arguments: argparse.Namespace) -> int:
    """Run until told to stop."""
    from understudy.proxy.server import Start, serve

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    environ = environ_of(arguments)
    return serve(
        Start(policies_folder(arguments, environ), state_folder(arguments, environ), environ, arguments.worker)
    )
