"""What recovery can do by itself: each rung, from closing connections to making an index anew.

    connections, names, endpoints     of this process alone; every other worker does the same when it is told to
    collections                       in a thread, at the lowest priority, its CPU time counted
    the local model                   as connections: each worker has its own

A rung says `skipped` where there is nothing it could do, `failed` where it could not, and never raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from understudy.indexes.faults import IndexFault
from understudy.models.errors import ModelError
from understudy.policies.balance import Balance, Peer
from understudy.policies.recovery import Climb, Result, name_of
from understudy.policies.service import Refused
from understudy.proxy.health.components import COLLECTIONS, UPSTREAMS
from understudy.proxy.knowledge import models_folder

if TYPE_CHECKING:
    from understudy.proxy.http.pool import Pool
    from understudy.proxy.sidecar import Sidecar

LEFT_OUT_S = 60.0
"""How long an endpoint is left out at a time; for as long as it stays ill, this is said again before it is over."""
COPY_SETTLE_S = 600.0
"""How long a copy that is made anew may take until checks of it pass."""
OWN = frozenset(
    {
        "reset_pool",
        "resolve_again",
        "reset_cache",
        "reload_snapshot",
        "drop_cuda",
        "clear_session",
        "reload_model",
        "switch_endpoint",
    }
)
"""Rungs that each process climbs for itself."""
KEEP_OUT, TAKE_BACK = "keep_out", "take_back"
NICEST = 19

log = logging.getLogger("understudy.recovery")


class Climbed(NamedTuple):
    """What came of a rung; see `policies.recovery.Recovery.climbed`."""

    result: Result
    detail: str = ""
    cpu_s: float = 0.0
    settle_s: float = 0.0
    instead: str = ""


class Place(NamedTuple):
    """An endpoint of a tier, and the balance that picks it, where there is one."""

    component: str
    pool: Pool
    balance: Balance | None
    peer: Peer | None


class Rungs:
    """The rungs of one process.

    `frugal` is whether what runs in a thread has the lowest priority and its CPU time counted. On a clock that jumps
    neither means anything: how long it takes, and what it then owes, would be the machine's doing.
    """

    def __init__(self, sidecar: Sidecar, *, frugal: bool = True) -> None:
        self._sidecar = sidecar
        self._frugal = frugal
        self._thread = ThreadPoolExecutor(1, "recovery", _after_all_others if frugal else None)
        self._all: dict[str, Callable[[str], Awaitable[Climbed]]] = {
            "reset_pool": self._reset_pool,
            "resolve_again": self._resolve_again,
            "reset_cache": self._reset_cache,
            "verify_index": self._verify_index,
            "reload_snapshot": self._reload_snapshot,
            "rebuild_index": self._rebuild_index,
            "copy_again": self._copy_again,
            "drop_cuda": self._drop_cuda,
            "clear_session": self._clear_session,
            "reload_model": self._reload_model,
            "switch_endpoint": self._switch_endpoint,
        }

    def close(self) -> None:
        """Begin nothing more; what is under way in a thread is finished, and nobody waits for it."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def climb(self, climb: Climb) -> Climbed:
        """Do it here, and have the others do it."""
        if climb.rung in OWN:
            self.tell_others(climb.component, climb.rung)
        return await self.here(climb.component, climb.rung)

    def tell_others(self, component: str, rung: str) -> None:
        """Have the other workers do it, where there are any."""
        if self._sidecar.climb_elsewhere is not None:
            self._sidecar.climb_elsewhere(component, rung)

    async def elsewhere(self, component: str, rung: str) -> None:
        """Do what another process has done; nobody waits to hear what came of it."""
        climbed = await self.here(component, rung)
        log.info("%s: %s here, too: %s", component, rung, climbed.detail or climbed.result)

    async def here(self, component: str, rung: str) -> Climbed:
        """Do it in this process alone."""
        if rung in (KEEP_OUT, TAKE_BACK):
            self.leave_out(component, again=rung == KEEP_OUT)
            return Climbed("done")
        try:
            return await self._all[rung](component)
        except (Refused, IndexFault, ModelError, OSError, TimeoutError) as why:
            return Climbed("failed", str(why) or type(why).__name__)
        except Exception as why:
            log.exception("an error of our own on the rung %s of %s", rung, component)
            return Climbed("failed", type(why).__name__)

    # --- connections and names -------------------------------------------------------------------------------------

    def places(self, component: str) -> list[Place]:
        """Where calls go for a component; everywhere, for the network as a whole."""
        everywhere = component == UPSTREAMS
        return [place for place in self._every_place() if everywhere or place.component == component]

    def _every_place(self) -> Iterator[Place]:
        sidecar = self._sidecar
        for component in sidecar.health.components.values():
            for use in component.uses:
                pool = sidecar.pools.get((use.route, use.tier, use.endpoint))
                parts = sidecar.stack.routes.get(use.route)
                tier = parts.tiers.get(use.tier) if parts is not None else None
                endpoint = tier.endpoints.get(use.endpoint) if tier is not None else None
                if pool is not None and tier is not None and endpoint is not None:
                    yield Place(component.id, pool, tier.balance, endpoint.peer)

    async def _reset_pool(self, component: str) -> Climbed:
        closed = sum(pool.renew() for pool in self._pools(component))
        return Climbed("done", f"{closed} connections") if closed else Climbed("skipped", "no connection is open")

    async def _resolve_again(self, component: str) -> Climbed:
        asked = changed = 0
        why = ""
        for pool in self._pools(component):
            if pool.names.are_fixed:
                continue
            asked += 1
            try:
                if await pool.names.renew():
                    changed += 1
                    # those that are open lead where the name no longer does
                    pool.renew()
            except OSError as error:
                why = f"DNS: {error}"
        if changed:
            return Climbed("done", "the name leads elsewhere now")
        if why:
            return Climbed("failed", why)
        return Climbed("skipped", "the name leads where it did" if asked else "there is no name to ask about")

    def _pools(self, component: str) -> list[Pool]:
        # routes may share one
        return list({id(place.pool): place.pool for place in self.places(component)}.values())

    async def _reset_cache(self, _component: str) -> Climbed:
        caches, shared = self._sidecar.caches, self._sidecar.settings.server.cache
        if caches is None or caches.second is None or shared.url is None:
            return Climbed("skipped", "no second level is asked")
        from understudy.proxy.caching.second import client_of

        await caches.second.reconnect(client_of(shared.url.reveal(), shared.namespace))
        return Climbed("done", "connected anew")

    # --- endpoints -------------------------------------------------------------------------------------------------

    async def _switch_endpoint(self, component: str) -> Climbed:
        switched: list[Place] = []
        now = self._sidecar.world.clock()
        for place in self.places(component):
            if place.balance is None or place.peer is None:
                continue
            if place.balance.leave_out(place.peer, now, LEFT_OUT_S):
                switched.append(place)
        if not switched:
            return Climbed("skipped", "there is no other endpoint that is well")
        instead = self.instead_of(component)
        return Climbed("done", f"{instead or 'others'} are asked instead", instead=instead)

    def instead_of(self, component: str) -> str:
        """The component of an endpoint that takes this one's calls now; '' where there is none."""
        mine = [place for place in self.places(component) if place.balance is not None]
        now = self._sidecar.world.clock()
        for place in self._every_place():
            if place.component == component or place.peer is None or place.peer.ejected_until > now:
                continue
            if any(place.balance is one.balance for one in mine):
                return place.component
        return ""

    def leave_out(self, component: str, *, again: bool) -> None:
        """Leave the endpoints of a component out once more, or take them back."""
        now = self._sidecar.world.clock()
        for place in self.places(component):
            if place.balance is not None and place.peer is not None:
                if again:
                    place.balance.leave_out(place.peer, now, LEFT_OUT_S)
                else:
                    place.balance.take_back(place.peer, now)

    # --- collections -----------------------------------------------------------------------------------------------

    async def _verify_index(self, component: str) -> Climbed:
        library = self._library()

        def verified() -> list[str]:
            wrong: list[str] = []
            for name in _names(library, component):
                wrong += library.verify(name) or _opened(library, name)
            return wrong

        wrong, cpu_s = await self._in_thread(verified)
        if wrong:
            return Climbed("failed", "; ".join(wrong), cpu_s)
        return Climbed("done", "every file is what it should be", cpu_s)

    async def _reload_snapshot(self, component: str) -> Climbed:
        library = self._library()

        def reloaded() -> int:
            return sum(library.reload(name).count for name in _names(library, component))

        count, cpu_s = await self._in_thread(reloaded)
        return Climbed("done", f"{count} points", cpu_s)

    async def _rebuild_index(self, component: str) -> Climbed:
        library = self._library()
        self._sidecar.knowing.embed_again_share = self._sidecar.settings.server.recovery.cpu_share

        def healed() -> list[str]:
            found = [(name, library.heal(name)) for name in _names(library, component)]
            return [f"{name} as {generation}" for name, generation in found if generation is not None]

        written, cpu_s = await self._in_thread(healed)
        if not written:
            return Climbed("skipped", "nothing of it is damaged", cpu_s)
        return Climbed("done", f"written anew: {', '.join(written)}", cpu_s)

    async def _copy_again(self, component: str) -> Climbed:
        mirrors = self._sidecar.copies.mirrors
        if mirrors is None:
            return Climbed("skipped", "it is no copy of a database")
        from understudy.proxy.mirroring.source import SourceFailed, Unmirrorable

        names = _names(self._library(), component) if component == COLLECTIONS else [name_of(component)]
        try:
            # every one of them that is a copy
            if not any([await mirrors.copy_again(name) for name in names]):
                return Climbed("skipped", "it is no copy of a database")
        except (SourceFailed, Unmirrorable) as why:
            return Climbed("failed", str(why))
        return Climbed("done", "copied anew from its database", settle_s=COPY_SETTLE_S)

    def _library(self) -> Any:
        """The local collections. Raises Refused."""
        return self._sidecar.knowing.shelf()

    # --- the local model -------------------------------------------------------------------------------------------

    async def _drop_cuda(self, _component: str) -> Climbed:
        embedder = self._embedder()
        if embedder.provider != "cuda":
            return Climbed("skipped", "the model does not run on CUDA")
        _, cpu_s = await self._in_thread(lambda: embedder.release_cuda("recovery", for_ever=True))
        return Climbed("done", "the model runs on the CPU now", cpu_s)

    async def _clear_session(self, _component: str) -> Climbed:
        embedder = self._embedder()
        _, cpu_s = await self._in_thread(embedder.renew_session)
        return Climbed("done", f"a new session on {embedder.provider} gives right vectors", cpu_s)

    async def _reload_model(self, _component: str) -> Climbed:
        sidecar = self._sidecar
        began = time.process_time()
        why = await sidecar.knowing.reload_model(sidecar.settings.local, models_folder(sidecar.state))
        # an upper bound: calls were answered meanwhile
        cpu_s = time.process_time() - began if self._frugal else 0.0
        return Climbed("failed", why, cpu_s) if why else Climbed("done", "loaded anew", cpu_s)

    async def _in_thread(self, work: Callable[[], Any]) -> tuple[Any, float]:
        result, cpu_s = await asyncio.get_running_loop().run_in_executor(self._thread, counted, work)
        return result, cpu_s if self._frugal else 0.0

    def _embedder(self) -> Any:
        """The local model. Raises Refused."""
        return self._sidecar.knowing.model().embedder


def _names(library: Any, component: str) -> list[str]:
    """The collections that a component stands for."""
    return list(library.names()) if component == COLLECTIONS else [name_of(component)]


def _opened(library: Any, name: str) -> list[str]:
    """Why a collection can't be opened; [] where it can."""
    try:
        library.open(name)
    except IndexFault as why:
        return [str(why)]
    return []


def counted(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` returns, and the CPU time that it took of this thread and of children."""
    began, children = time.thread_time(), _children_s()
    result = work()
    return result, time.thread_time() - began + _children_s() - children


def _after_all_others() -> None:
    with contextlib.suppress(OSError):
        # of this thread alone, which does nothing but recovery's work
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICEST)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
