"""Run the sidecar: the event loop, the signals, and the way from start to drained; in one process or in several.

one process      Sidecar + Admin
several          Parent (sockets, admin port) -> workers, each a Sidecar that reports to the parent
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import uvloop

from understudy.proxy.assembling import CannotStart
from understudy.proxy.cli import Complaint
from understudy.proxy.control.healing import keep_recovering
from understudy.proxy.control.health import keep_healthy
from understudy.proxy.control.probing import keep_measuring
from understudy.proxy.control.reload import watch_policies
from understudy.proxy.dialects import KINDS
from understudy.proxy.orders import Orders, orders_of
from understudy.proxy.settings.reading import BadPolicies, Reading, read_folder
from understudy.proxy.settings.settings import LocalTier
from understudy.proxy.sidecar import Sidecar

if TYPE_CHECKING:
    from understudy.proxy.control.handover import Inherited
    from understudy.proxy.control.listening import Places
    from understudy.proxy.control.parent import Parent
    from understudy.proxy.settings.settings import Settings

log = logging.getLogger("understudy")

YOUNG_OBJECTS_MAX = 10_000
"""How many new containers may be alive before the collector looks at them."""
TURN_S = 0.001
"""How long a thread keeps the interpreter's lock while others want it, the event loop's too: 5 ms unless said."""
M_TRIM_THRESHOLD, M_ARENA_MAX = -1, -8
"""glibc's own numbers for them (mallopt(3))."""
TRIM_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Start:
    """What a process is started with. `post` is a worker's, as its parent wrote it."""

    policies: Path
    state: Path
    environ: Mapping[str, str]
    post: str = ""


def serve(start: Start) -> int:
    """Run until SIGTERM or SIGINT; SIGHUP rereads the policies. Raises Complaint when it can't start."""
    # numpy's products here are small: on several threads one waits for the other, 28 ms at worst against 0.2
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # the admin port has two lists of aiohttp's that never change: written in C++ they take a megabyte of its library
    os.environ.setdefault("FROZENLIST_NO_EXTENSIONS", "1")
    reading = read_folder(start.policies, start.environ, KINDS)
    if reading.settings is not None and not _has_local_tier(reading.settings):
        # no thread of ours takes much memory then: a heap for each of them only costs
        _heap("mallopt", M_ARENA_MAX, 1)
        # said so, it stays: by itself glibc would keep more and more of what large bodies have needed once
        _heap("mallopt", M_TRIM_THRESHOLD, TRIM_BYTES)
    try:
        if reading.settings is not None and not start.post and _has_parent(reading.settings):
            uvloop.run(_serve_with_workers(start, reading.settings))
        else:
            uvloop.run(_serve(start, reading))
    except BadPolicies as bad:
        raise Complaint(f"these policies can't be read:\n{bad}", code=1) from None
    except CannotStart as reason:
        raise Complaint(str(reason)) from None
    return 0


def _has_parent(settings: Settings) -> bool:
    if settings.server.workers == 1 and not settings.server.reuse_port:
        return False
    from understudy.proxy.control.listening import has_parent

    return has_parent(settings.server)


def _on_signals(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


class Front(Protocol):
    """Whom the sidecar is seen through: its own admin port, or the parent that it reports to."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


async def _serve(start: Start, reading: Reading) -> None:
    """One sidecar: the whole of it, or a worker of several."""
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()
    _on_signals(stop)
    loop.add_signal_handler(signal.SIGHUP, hurry.set)
    beside: list[asyncio.Task[None]] = []
    front: Front | None = None
    if start.post:
        from understudy.proxy.control.worker import Post, Worker

        post = Post.read(start.post)
        sidecar = Sidecar(start.policies, start.state, start.environ, reading, post.pseudonym.encode())
        front = Worker(sidecar, post, stop)
        places, place = post.sockets(), post.place
    else:
        sidecar = Sidecar(start.policies, start.state, start.environ, reading)
        places, place = None, 0
    # what was said by hand holds from the first call on; a worker hears of what is said meanwhile from its parent
    orders = orders_of(start.state)
    sidecar.obey(orders)
    try:
        await sidecar.start(places, place)
        # callers are answered meanwhile: what serves the admin port takes as long to import as all the rest
        if front is None:
            made = await loop.run_in_executor(None, _front_of, sidecar, orders)
            front = made
        await front.start()
        if not start.post:
            log.info("metrics, probes and status on http://%s", sidecar.settings.server.admin)
        loops = [watch_policies(sidecar, hurry), keep_measuring(sidecar), keep_healthy(sidecar)]
        loops.append(keep_recovering(sidecar))
        beside += [loop.create_task(each) for each in loops]
        _settle_down()
        await stop.wait()
        log.info("draining, for up to %g s", sidecar.settings.server.drain_s)
        await sidecar.drain_and_stop()
    except CannotStart:
        await sidecar.stop()
        raise
    finally:
        for task in beside:
            task.cancel()
        if front is not None:
            await front.stop()


def _front_of(sidecar: Sidecar, orders: Orders) -> Front:
    from understudy.proxy.control.admin import Admin, OfSidecar
    from understudy.proxy.control.objectives import Overlooked

    told = OfSidecar(sidecar, orders)
    return Overlooked(Admin(told, sidecar.settings.server.admin), told, sidecar.state)


def _settle_down() -> None:
    """What exists by now is here to stay, and what calls make is freed by counting: the collector looks seldom.

    At 32 calls in flight it came by once in 32 calls, and found nothing: a tenth of what a call costs. And what threads
    do beside the event loop (writes to local collections above all) keeps it for a turn at most. What the start has
    left lying about goes back to the system: 1.5 MiB, in 0.3 ms.
    """
    gc.freeze()
    _heap("malloc_trim", 0)
    gc.set_threshold(YOUNG_OBJECTS_MAX, 20, 50)
    sys.setswitchinterval(TURN_S)


def _has_local_tier(settings: Settings) -> bool:
    return any(isinstance(tier, LocalTier) for route in settings.routes for _, tier in route.every_tier)


def _heap(function: str, *arguments: int) -> None:
    """Tell the C library how memory should be kept, where it is one that can be told."""
    import ctypes

    told = getattr(ctypes.CDLL(None), function, None)
    if told is not None:
        told(*arguments)


# --- several processes ---------------------------------------------------------------------------------------------


async def _serve_with_workers(start: Start, settings: Settings) -> None:
    from understudy.proxy.control.admin import Admin
    from understudy.proxy.control.handover import Estate, Handover, inherit
    from understudy.proxy.control.objectives import Overlooked
    from understudy.proxy.control.parent import Parent
    from understudy.proxy.settings.rules import addresses

    loop = asyncio.get_running_loop()
    server, listen = settings.server, addresses(settings)
    inherited = inherit(listen, server.admin)
    places, admin_socket = _sockets(settings, inherited)
    reread = partial(_sound_settings, start)
    parent = Parent(_command(start), start.environ, places, settings, reread, orders_of(start.state))
    _on_signals(parent.stopping)
    loop.add_signal_handler(signal.SIGHUP, parent.signal, signal.SIGHUP)
    if inherited is not None:
        log.info("taking over from process %d", inherited.deed.pid)
        parent.hear(inherited.deed.said)
        # a request that the one before us sent out may come back to us
        parent.pseudonym = inherited.deed.pseudonym or parent.pseudonym
    admin = Overlooked(Admin(parent, server.admin, admin_socket.dup()), parent, start.state)
    await admin.start()
    left_to_next = asyncio.Event()

    def gone() -> None:
        left_to_next.set()
        parent.stopping.set()

    handover = Handover(Estate(listen, server.admin, places, admin_socket, parent.said, gone, parent.pseudonym))
    handover.start()
    parent.start()
    log.info("%d workers on %s; metrics, probes and status on http://%s", len(parent.places), listen, server.admin)
    telling = loop.create_task(_tell_when_ready(parent, inherited))
    try:
        await parent.stopping.wait()
        handover.stop()
        if left_to_next.is_set():
            # the next one has the admin port as well, and two would answer in turn
            await admin.stop()
        log.info("draining, for up to %g s", server.drain_s)
        await parent.drain_and_stop()
    finally:
        telling.cancel()
        admin_socket.close()
        await admin.stop()
    if parent.gave_up:
        raise CannotStart("no worker can start; the log says why")


def _sound_settings(start: Start) -> Settings:
    reading = read_folder(start.policies, start.environ, KINDS)
    if reading.settings is None:
        raise BadPolicies(reading.faults)
    return reading.settings


async def _tell_when_ready(parent: Parent, inherited: Inherited | None) -> None:
    await parent.ready.wait()
    log.info("ready: the first worker takes calls")
    if inherited is not None:
        inherited.ready()
        inherited.line.close()


def _sockets(settings: Settings, inherited: Inherited | None) -> tuple[Places, socket.socket]:
    from understudy.proxy.control.listening import bound, exclusive, filled_up, worker_count
    from understudy.proxy.settings.rules import addresses

    listen, admin = addresses(settings), settings.server.admin
    have = inherited.places if inherited is not None else []
    admin_socket = inherited.admin if inherited is not None else None
    for address in (*(listen if not have else ()), *((admin,) if admin_socket is None else ())):
        if not exclusive(address):
            raise CannotStart(f"can't listen on {address}: somebody listens there who does not hand over")
    try:
        return filled_up(have, listen, worker_count(settings.server)), admin_socket or bound(admin)
    except OSError as error:
        raise CannotStart(f"can't listen on {error.filename or admin}: {error.strerror or error}") from None


def _command(start: Start) -> list[str]:
    words = [sys.executable, "-m", "understudy.proxy.cli", "run"]
    return [*words, "--policies", str(start.policies), "--state", str(start.state), "--worker"]
