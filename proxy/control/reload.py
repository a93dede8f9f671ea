"""Look at the policy files, and the certificates they name, now and then, and put them in force when they have changed.

Contents are compared, not times: editors, ConfigMaps, rotated secrets and git all change files in their own ways.
"""

from __future__ import annotations

import asyncio
import logging

from understudy.proxy.sidecar import Sidecar

log = logging.getLogger("understudy.reload")


async def watch_policies(sidecar: Sidecar, hurry: asyncio.Event) -> None:
    """Reload whenever the files differ from those last looked at, and at once when `hurry` is set (SIGHUP)."""
    loop = asyncio.get_running_loop()
    while True:
        hurried = await _waited(hurry, sidecar.settings.server.reload_s)
        files = await loop.run_in_executor(None, sidecar.look)
        if hurried or files != sidecar.files_seen:
            # remembered even when it turns out bad: one edit is one message
            sidecar.files_seen = files
            sidecar.reload()


async def _waited(hurry: asyncio.Event, wait_s: float) -> bool:
    try:
        await asyncio.wait_for(hurry.wait(), wait_s)
    except TimeoutError:
        return False
    hurry.clear()
    return True
