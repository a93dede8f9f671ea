"""The running sidecar: policies put in force, listeners, the local tier's knowledge, and the way down.

Start-up is the first reload: read, assemble, check, swap by one assignment. Calls in flight finish on the stack they
began on; breakers, places and counts go on by name.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from understudy.policies.forcing import Forced
from understudy.policies.questions import Publish, Questions, Told
from understudy.policies.shed import Shedder
from understudy.proxy.accepting import BACKLOG, Accepting
from understudy.proxy.assembling import Assembler, CannotStart, Stack
from understudy.proxy.caching.caches import Caches
from understudy.proxy.caching.prompter import Prompter, compares_questions, named_files, print_of
from understudy.proxy.caching.route_cache import RouteCache
from understudy.proxy.changes import Changes, Watched
from understudy.proxy.chores import Chores
from understudy.proxy.dialects import DIALECTS, KINDS
from understudy.proxy.events import Events
from understudy.proxy.health.board import Healths
from understudy.proxy.health.checks import Checkup
from understudy.proxy.health.meanings import Meanings
from understudy.proxy.health.prompts import Prompts
from understudy.proxy.http.door import Listener
from understudy.proxy.http.forwarding import new_pseudonym
from understudy.proxy.http.pool import Pool
from understudy.proxy.http.stepping import Steps
from understudy.proxy.http.unix import UnixPlace
from understudy.proxy.knowledge import load_local, watch_collections
from understudy.proxy.mirroring.copies import Copies
from understudy.proxy.orders import Orders, order_text
from understudy.proxy.reports.access_log import AccessLog
from understudy.proxy.settings.certificates import context_for
from understudy.proxy.settings.reading import BadPolicies, Fault, Reading, digest_folder, read_folder
from understudy.proxy.settings.rules import addresses, parse_address, unix_path
from understudy.proxy.settings.settings import LocalTier, Settings, Shedding, UpstreamTier
from understudy.proxy.settings.settings import Questions as QuestionSettings
from understudy.proxy.spaces.fingerprints import Fingerprints
from understudy.proxy.spaces.provenance import DRAIN_S, Provenance
from understudy.proxy.spaces.spaces import plans_of
from understudy.proxy.stack import RouteParts, World
from understudy.proxy.tiers.knowing import Knowing

if TYPE_CHECKING:
    from understudy.proxy.control.recovery import Recoverer
    from understudy.proxy.reports.collections import Stats
    from understudy.proxy.reports.tracing import Tracer
    from understudy.proxy.spending.accounting import Accountant
    from understudy.proxy.spending.budgets import Spending

log = logging.getLogger("understudy")

TICK_S = 1.0
LAG_TICK_S = 0.1
"""How often the loop's lag is measured; a tick costs 5 µs."""
DOORS_S = 0.05
LAST_CALL_S = 1.0
"""How long idle connections stay open when draining: who calls once more is answered with `connection: close`, and no
call crosses a close on its way."""


class Sidecar:
    """One process's worth of Understudy. `start`, then `drain_and_stop`; `reload` whenever the policies changed."""

    recovery: Recoverer | None = None
    written: Callable[[list[str]], None] | None = None
    """A worker tells the others by it that a write has passed."""
    climb_elsewhere: Callable[[str, str], None] | None = None
    """A worker has the others climb a rung by it, too."""

    def __init__(
        self,
        policies: Path,
        state: Path,
        environ: Mapping[str, str],
        reading: Reading | None = None,
        pseudonym: bytes = b"",
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.policies, self.state, self.environ = policies, state, environ
        self.loop = asyncio.get_running_loop()
        self.steps = Steps(self.loop)
        self.shedder = Shedder(Shedding())
        self.knowing = Knowing()
        self.prompter = Prompter(self.knowing, state)
        self.provenance = Provenance(path=state / "spaces.json")
        self.fingerprints = Fingerprints(
            self.provenance.reembedding, dice=random.random, path=state / "fingerprints.json"
        )
        self.questions = Questions(QuestionSettings())
        # a worker tells the others by it what is built on a fallback
        self.fell: Publish | None = None
        self.world = self._world(clock, wall)
        self.access_log = AccessLog(sys.stdout.buffer)
        self.started_at = time.time()
        self.reloads = {"ok": 0, "bad": 0}
        self.reload_ok = True
        self.faults: tuple[Fault, ...] = ()
        self.files_seen = ("", "")
        self.draining = False
        # in Via: two sidecars may stand one behind the other, and each knows only its own name
        self.pseudonym = pseudonym or new_pseudonym()
        self.loop_lag_s = 0.0
        self.listeners: list[Listener] = []
        self.forced: dict[tuple[str, str, str], Forced] = {}
        self._addresses: list[str] = []
        self._unix_places: list[UnixPlace] = []
        self._servers: list[asyncio.Server] = []
        self._loading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._lag_ticker: asyncio.TimerHandle | None = None
        self._lag_s_max = 0.0
        self._accepting: Accepting | None = None
        self.chores = Chores(self.knowing, lambda: self.routes, self.world.clock)
        self.copies = Copies(
            state, self.knowing, lambda name: self.stack.routes[name].links if name in self.stack.routes else ()
        )
        self.place = 0
        self.events = Events()
        self.health = Healths(self.events, clock=clock, wall=self.world.wall)
        self.checkup = Checkup(self.health, lambda: self.stack, clock=clock, dice=self.world.dice)
        self.changes = Changes(self.events, clock=self.world.clock, wall=self.world.wall)
        self.prompts = Prompts(self.health, lambda: self.stack, self.changes.shown, clock=clock, dice=self.world.dice)
        self.meanings = self._meanings()
        self._assembler = self._new_assembler()
        self.stack = self._first_stack(reading or read_folder(policies, environ, KINDS))
        self.health.adopt(self.stack.settings, self.stack.routes)

    # --- what others read ------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        return self.stack.settings

    @property
    def routes(self) -> Iterable[RouteParts]:
        return self.stack.routes.values()

    @property
    def pools(self) -> dict[tuple[str, str, str], Pool]:
        return self.stack.pools

    @property
    def accountant(self) -> Accountant | None:
        return self._assembler.accountant

    @property
    def spending(self) -> Spending | None:
        return self._assembler.spending

    @property
    def tracer(self) -> Tracer | None:
        return self.stack.tracer

    @property
    def certificate_expires_at(self) -> float | None:
        return self.stack.tls.expires_at if self.stack.tls else None

    @property
    def log_lines_dropped(self) -> int:
        return self.access_log.dropped

    @property
    def local_ready(self) -> bool:
        return self.knowing.ready

    @property
    def local_info(self) -> dict[str, str]:
        return self.knowing.about()

    @property
    def collection_stats(self) -> Mapping[str, Stats]:
        return self.knowing.collection_stats()

    @property
    def caches(self) -> Caches | None:
        return self._assembler.caches

    @property
    def started(self) -> bool:
        """Policies are in force, and the local tier has loaded or said that it can't."""
        return bool(self.listeners) and (self._loading is None or self._loading.done())

    def unready_because(self) -> str:
        """Why no call should be sent here now, or ''. An upstream's outage is no reason while some tier answers."""
        if self.draining:
            return "draining"
        if not self.started:
            return "starting: " + self.knowing.reason
        if not self.local_ready and not any(self._has_upstream(parts) for parts in self.routes):
            return "no tier can answer: " + self.knowing.reason
        return ""

    def _has_upstream(self, parts: RouteParts) -> bool:
        return any(isinstance(tier, UpstreamTier) for tier in self.settings.active(parts.route))

    def _meanings(self) -> Meanings:
        meanings = Meanings(
            self.health,
            lambda: self.routes,
            fingerprints=self.fingerprints,
            knowing=self.knowing,
            caches=lambda: self.caches,
            mirrors=lambda: self.copies.mirrors,
            model=lambda: self.settings.local.model,
            search_every_s=lambda: self.settings.server.health.search_every_s,
            clock=self.world.clock,
        )
        self.checkup.semantic += [meanings.again, self.prompts.again]
        return meanings

    def _world(self, clock: Callable[[], float], wall: Callable[[], float]) -> World:
        return World(
            clock=clock,
            sleep=asyncio.sleep,
            wall=wall,
            shedder=self.shedder,
            embed=self.knowing.embed,
            provenance=self.provenance,
            questions=self.questions,
            publish=self._publish_question,
            shelf=self.knowing.shelf,
            behind=lambda name: self.copies.is_behind(name),
            state=self.state,
        )

    # --- policies --------------------------------------------------------------------------------------------------

    def _new_assembler(self) -> Assembler:
        return Assembler(
            self.world,
            self.state,
            steps=self.steps,
            pseudonym=self.pseudonym,
            knowing=self.knowing,
            provenance=self.provenance,
            fingerprints=self.fingerprints,
            copies=self.copies,
            published=self._publish,
            peek_of=self.changes.peek_of,
        )

    def _first_stack(self, reading: Reading) -> Stack:
        if reading.settings is None:
            raise BadPolicies(reading.faults)
        for warning in reading.warnings:
            log.warning("%s", warning)
        self._named = named_files(reading)
        self.files_seen = reading.settings.digest, print_of(self._named)
        self.access_log.enabled = reading.settings.server.access_log
        self.shedder.rules = reading.settings.server.shed
        self.questions.obey(reading.settings.server.questions)
        self.changes.adopt(reading.settings)
        return self._assembler.assembled(reading.settings, None)

    def _publish_question(self, told: Told) -> None:
        if self.fell is not None:
            self.fell(told)

    def look(self) -> tuple[str, str]:
        """Digests of the files that are watched, as they are now. May run in a thread."""
        return digest_folder(self.policies), print_of(self._named)

    def reload(self) -> bool:
        """Put the files on disk in force, or say why not and leave everything as it is."""
        reading = read_folder(self.policies, self.environ, KINDS)
        if named_files(reading) != self._named:
            # other files are watched from now on: what they hold now is what was read
            self._named = named_files(reading)
            self.files_seen = self.files_seen[0], print_of(self._named)
        try:
            if reading.settings is None:
                raise BadPolicies(reading.faults)
            stack = self._assembler.assembled(reading.settings, self.stack)
        except (BadPolicies, CannotStart) as error:
            self.faults = error.faults if isinstance(error, BadPolicies) else ()
            self.reloads["bad"] += 1
            self.reload_ok = False
            log.error("policies not reloaded, %s stays in force:\n%s", self.settings.digest, error)
            return False
        self._swap(stack)
        self.faults = ()
        self.reloads["ok"] += 1
        self.reload_ok = True
        for warning in reading.warnings:
            log.warning("%s", warning)
        log.info("policies %s in force: %d routes", stack.settings.digest, len(stack.routes))
        return True

    def force(self, forced: Forced) -> int:
        """Have a tier's breakers, or one endpoint's, do as an operator says, also after a reload; how many."""
        found = 0
        now = self.world.clock()
        for parts in self.routes:
            tier = parts.tiers.get(forced.tier) if parts.name == forced.route else None
            for endpoint in tier.endpoints.values() if tier is not None else ():
                if endpoint.breaker is not None and forced.endpoint in ("", endpoint.name):
                    endpoint.breaker.force(forced.mode, now)
                    self.forced[forced.route, forced.tier, endpoint.name] = forced._replace(endpoint=endpoint.name)
                    self.changes.forced((forced.route, forced.tier, endpoint.name), forced.mode)
                    found += 1
        return found

    def obey(self, orders: Orders) -> None:
        """Do what operators have said before this start."""
        for word in orders.breakers:
            self.forced[word[:3]] = word
            there = self.force(word) > 0
            told = "" if there else "; there is no such breaker now"
            log.warning("breaker of %s/%s/%s: %s by hand %s%s", *word[:4], order_text(word), told)
        for pin in orders.tiers:
            self.health.pin(pin.rank, pin.route)

    def _swap(self, stack: Stack) -> None:
        before, self.stack = self.stack, stack
        self.copies.adopt(stack.routes)
        self.health.adopt(stack.settings, stack.routes)
        self.changes.adopt(stack.settings)
        for forced in list(self.forced.values()):
            # a breaker may be another one: its endpoint has moved, or was gone for a while
            self.force(forced)
        for name in ("listen", "admin", "workers", "reuse_port"):
            if getattr(before.settings.server, name) != getattr(stack.settings.server, name):
                log.warning("server.%s has changed: it takes effect at the next start", name)
        if before.settings.local != stack.settings.local:
            log.warning("`local` has changed: it takes effect at the next start")
        self.access_log.enabled = stack.settings.server.access_log
        self.shedder.rules = stack.settings.server.shed
        self.questions.obey(stack.settings.server.questions)
        for listener, address in zip(self.listeners, self._addresses, strict=True):
            listener.serve(stack.table.find, stack.settings.server.limits)
            listener.tls = context_for(address, stack.settings, stack.tls)
        for parts in before.routes.values():
            parts.close()
        if before.tracer is not None and before.tracer is not stack.tracer:
            # a thread: what is left is sent first
            self.loop.run_in_executor(None, before.tracer.close)
        if self.place == 0:
            self.chores.watch()
            self.chores.serve_llm(self.settings.local.llm)
        self.chores.carry_out()
        for pool in set(before.pools.values()) - set(stack.pools.values()):
            pool.close()
        self.prompter.embed(self.routes)
        self._start_spending()

    # --- caches ----------------------------------------------------------------------------------------------------

    def _publish(self, names: list[str]) -> None:
        if self.written is not None:
            self.written(names)

    @property
    def _route_caches(self) -> list[RouteCache]:
        return [parts.cache for parts in self.routes if parts.cache is not None]

    @property
    def _snapshot(self) -> Path:
        return self.state / "cache" / f"{self.place}.snapshot"

    async def _load_caches(self, caches: Caches) -> None:
        taken = await caches.load(self._snapshot, self._route_caches)
        if taken:
            log.info("%d answers taken over from the cache's snapshot", taken)

    # --- up and down -----------------------------------------------------------------------------------------------

    async def start(self, places: Sequence[Sequence[socket.socket]] | None = None, place: int = 0) -> None:
        """Listen, and load the local tier behind the scenes. Raises CannotStart.

        A worker is given the sockets of all `places`, and accepts from those of its own.
        """
        if places is not None:
            self._accepting = Accepting(places)
            self.access_log.shared = True
        if self._needs_local():
            self.knowing.expect_load()
        self._addresses = addresses(self.settings)
        for number, address in enumerate(self._addresses):
            listener = Listener(
                self.loop,
                parse_address(address)[1],
                self.stack.table.find,
                DIALECTS["plain"],
                self.settings.server.limits,
                clock=self.world.clock,
                logged=self.access_log,
                route_names=lambda: list(self.stack.routes),
                pseudonym=self.pseudonym,
                steps=self.steps,
            )
            listener.tls = context_for(address, self.settings, self.stack.tls)
            if places is not None and self._accepting is not None:
                listener.port = places[place][number].getsockname()[1]
                self._accepting.add(listener.door)
                self.listeners.append(listener)
                continue
            try:
                server = await self._server(listener, address)
            except OSError as error:
                raise CannotStart(f"can't listen on {address}: {error.strerror or error}") from None
            self._servers.append(server)
            self.listeners.append(listener)
        await self.cover([place])
        self.place = place
        self.health.is_leader = place == 0
        if place == 0:
            self.chores.watch()
            self.chores.serve_llm(self.settings.local.llm)
        self.chores.carry_out()
        if self.caches is not None:
            self.caches.keep_at(self._snapshot)
            self.caches.spawn(self._load_caches(self.caches))
        self.copies.adopt(self.stack.routes)
        self._start_spending()
        if self._needs_local():
            self._loading = self.loop.create_task(load_local(self.knowing, self.settings.local, self.state))
            self._loading.add_done_callback(self._loaded)
        self._ticker = self.loop.call_later(TICK_S, self._tick)
        self._lag_ticker = self.loop.call_later(LAG_TICK_S, self._tick_of_lag, self.world.clock() + LAG_TICK_S)

    async def _server(self, listener: Listener, address: str) -> asyncio.Server:
        """Let callers of one address in. Raises OSError."""
        if path := unix_path(address):
            place = UnixPlace(path)
            self._unix_places.append(place)
            log.info("listening on %s", address)
            return await self.loop.create_unix_server(listener.door, sock=place.socket, backlog=BACKLOG)
        host, port = parse_address(address)
        server = await self.loop.create_server(listener.door, host, port, backlog=BACKLOG)
        listener.port = server.sockets[0].getsockname()[1]
        log.info("listening on %s://%s:%d", "http" if listener.tls is None else "https", host, listener.port)
        return server

    async def cover(self, places: Collection[int]) -> None:
        """Accept from the sockets of these places, where there are several."""
        if self._accepting is not None:
            await self._accepting.cover(places)

    def _needs_local(self) -> bool:
        routes = self.settings.routes
        compares = any(compares_questions(route) or route.mirror is not None for route in routes)
        return compares or any(isinstance(tier, LocalTier) for route in routes for _, tier in route.every_tier)

    def _loaded(self, loading: asyncio.Task[None]) -> None:
        if not loading.cancelled():
            about = " on ".join(filter(None, map(self.local_info.get, ("model", "provider"))))
            log.info("local tier %s: %s", "ready" if self.local_ready else "not ready", about or self.knowing.reason)
            self._watching = self.loop.create_task(watch_collections(self.knowing))
            self.prompter.begin(lambda: self.settings, self.routes)
            if self.place == 0:
                self.chores.fill_shadows(self.settings.local.shadow_cpu_share)
            self._bridge_spaces()

    def _bridge_spaces(self) -> None:
        """Have maps between spaces, where handles are given that might need one."""
        share = self.settings.local.bridge_cpu_share
        if any(plan.hands_out for plan in plans_of(self.settings).values()):
            self.chores.bridge_spaces(share, self.provenance, self.state / "bridges", gathers=self.place == 0)

    def _tick_of_lag(self, due: float) -> None:
        now = self.world.clock()
        lag_s = max(0.0, now - due)
        self._lag_s_max = max(self._lag_s_max, lag_s)
        if self.shedder.lagged(now, lag_s):
            pressed = self.shedder.pressure > 0
            for parts in self.routes:
                parts.relieve(pressed=pressed)
        self.provenance.drain(DRAIN_S)
        if self.accountant is not None:
            self.accountant.drain()
        self._lag_ticker = self.loop.call_later(LAG_TICK_S, self._tick_of_lag, now + LAG_TICK_S)

    def _tick(self) -> None:
        now = self.world.clock()
        self.loop_lag_s, self._lag_s_max = self._lag_s_max, 0.0
        for listener in self.listeners:
            listener.sweep(now)
        for pool in self.pools.values():
            pool.sweep(now)
        if len(self.questions):
            self.questions.sweep(now)
        if self.provenance.tick():
            self.loop.run_in_executor(None, self.provenance.save)
        self.changes.look(self._watched)
        self._send_spans()
        if self.caches is not None:
            self.caches.tick()
            self.caches.save_soon(self._snapshot, self._route_caches, self.settings.server.cache.snapshot_s)
        self._ticker = self.loop.call_later(TICK_S, self._tick)

    def _send_spans(self) -> None:
        """What calls took is counted before their spans are made."""
        if self.tracer is not None:
            if self.accountant is not None:
                self.accountant.drain()
            self.tracer.flush()

    def _start_spending(self) -> None:
        if self.spending is not None:
            if self.health.is_leader:
                # all processes know what is spent; one of them tells of it
                self.spending.tell = self.events.publish
            self.spending.start()

    def _watched(self) -> Watched:
        return Watched(self.stack.routes, self.collection_stats, self.local_info, self.fingerprints)

    async def drain_and_stop(self) -> None:
        """Unready at once; calls in hand are answered; what is still open at the drain deadline is told and cut."""
        self.draining = True
        deadline = self.loop.time() + self.settings.server.drain_s
        for listener in self.listeners:
            listener.last_call()
        for server in self._servers:
            server.close()
        if self._accepting is not None:
            await self._accepting.leave()
        await self._emptied(min(deadline, self.loop.time() + LAST_CALL_S))
        for listener in self.listeners:
            listener.drain()
        await self._emptied(deadline)
        for listener in self.listeners:
            listener.cut()
        await asyncio.sleep(0)
        await self.stop()

    async def _emptied(self, deadline: float) -> None:
        # polled, so that the doors need no notion of being waited for; once at least, for who has just been accepted
        # stands at the door only a turn of the loop later, or a TLS handshake later
        await asyncio.sleep(DOORS_S)
        while any(listener.doors for listener in self.listeners) and self.loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(DOORS_S)

    async def stop(self) -> None:
        """Let go of everything at once."""
        for place in self._unix_places:
            place.remove()
        for ticker in (self._ticker, self._lag_ticker):
            if ticker is not None:
                ticker.cancel()
        if self.provenance.tick():
            self.provenance.save()
        if self.caches is not None:
            if self.listeners:
                await self.caches.save(self._snapshot, self._route_caches)
            await self.caches.close()
        await self.copies.stop()
        if self.spending is not None:
            await self.spending.stop()
        for parts in self.routes:
            parts.close()
        for pool in self.pools.values():
            pool.close()
        if self.tracer is not None:
            self._send_spans()
            await self.loop.run_in_executor(None, self.tracer.close)
        tasks = [
            *(task for task in (self._loading, self._watching) if task is not None),
            *self.prompter.tasks,
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.chores.stop()
        await self.knowing.close()
        self.access_log.close()
