"""Measure the fingerprints of embedding endpoints, one at a time, each when it is due."""

from __future__ import annotations

import asyncio
import logging

from understudy.proxy.sidecar import Sidecar
from understudy.proxy.spaces.fingerprints import Fingerprints

LOOK_S = 2.0
"""How often it is looked who is due; two measurements are never nearer to each other than this."""

log = logging.getLogger("understudy.spaces")


async def keep_measuring(sidecar: Sidecar) -> None:
    """Measure whoever is due, the longest overdue first; what is an error of our own ends nothing else."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            if await measured_one(sidecar.fingerprints, sidecar.world.clock()) == "first":
                await loop.run_in_executor(None, sidecar.fingerprints.save)
        except Exception:
            log.exception("a fingerprint could not be measured")


async def measured_one(fingerprints: Fingerprints, now: float) -> str:
    """Measure the endpoint that is the longest overdue; what came of it, or '' where none is due."""
    due = [one for one in fingerprints if one.due_at <= now]
    return await fingerprints.measure(min(due, key=lambda one: one.due_at), now) if due else ""
