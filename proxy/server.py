"""Run one sidecar in this process: the event loop, the signals, and the way from start to drained."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Mapping
from pathlib import Path

import uvloop

from understudy.proxy.cli import Complaint
from understudy.proxy.control.admin import Admin
from understudy.proxy.control.reload import watch_policies
from understudy.proxy.reading import BadPolicies
from understudy.proxy.sidecar import CannotStart, Sidecar

log = logging.getLogger("understudy")


def serve(policies: Path, state: Path, environ: Mapping[str, str]) -> int:
    """Run until SIGTERM or SIGINT; SIGHUP rereads the policies. Raises Complaint when it can't start."""
    try:
        uvloop.run(_serve(policies, state, environ))
    except BadPolicies as bad:
        raise Complaint(f"these policies can't be read:\n{bad}", code=1) from None
    except CannotStart as reason:
        raise Complaint(str(reason)) from None
    return 0


async def _serve(policies: Path, state: Path, environ: Mapping[str, str]) -> None:
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, hurry.set)
    sidecar = Sidecar(policies, state, environ)
    admin = Admin(sidecar)
    watching: asyncio.Task[None] | None = None
    try:
        await sidecar.start()
        await admin.start()
        log.info("metrics, probes and status on http://%s", sidecar.settings.server.admin)
        watching = loop.create_task(watch_policies(sidecar, hurry))
        await stop.wait()
        log.info("draining, for up to %g s", sidecar.settings.server.drain_s)
        await sidecar.drain_and_stop()
    except CannotStart:
        await sidecar.stop()
        raise
    finally:
        if watching is not None:
            watching.cancel()
        await admin.stop()
