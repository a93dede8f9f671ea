"""The admin port: metrics, the three probes, and a status for people and programs. Never on a call's path."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client.exposition import generate_latest

from understudy.policies.chain import Rank
from understudy.policies.forcing import MODES, Forced, Mode
from understudy.policies.forecast import Reading
from understudy.policies.objectives import Counts
from understudy.policies.tiering import RANKS, Pin
from understudy.proxy.assembling import CannotStart
from understudy.proxy.changes import Fact
from understudy.proxy.control.hinting import Opening, alarm, heed, opened_by_calls, verdicts_of
from understudy.proxy.control.objectives import Lookout, agreed, tallied
from understudy.proxy.control.resources import Loads, readings_of
from understudy.proxy.control.summing import Live, families_of
from understudy.proxy.control.trusting import from_this_host, hand_of
from understudy.proxy.control.wire import Family
from understudy.proxy.events import Events
from understudy.proxy.orders import Orders, order_text
from understudy.proxy.reports.arms import arms_status
from understudy.proxy.reports.health import health_status, tier_status
from understudy.proxy.reports.held_writes import held_status
from understudy.proxy.reports.metrics import registry_for
from understudy.proxy.reports.mirrors import mirror_status
from understudy.proxy.reports.questions import question_status
from understudy.proxy.reports.recovery import recovery_status
from understudy.proxy.reports.spaces import spaces_status
from understudy.proxy.reports.spend import budget_status, spend_status
from understudy.proxy.reports.watches import watch_status
from understudy.proxy.settings.rules import parse_address
from understudy.proxy.settings.settings import Settings
from understudy.proxy.sidecar import Sidecar
from understudy.proxy.stack import EndpointParts, RouteParts
from understudy.proxy.version import VERSION, how_it_runs

if TYPE_CHECKING:
    from understudy.proxy.control.learning import Learner

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
log = logging.getLogger("understudy.admin")

MODE_BYTES_MAX = 64
PAGES = ("budgets", "forecasts", "replicas")
"""What is watched beside the objectives has a page each."""
INDEX = {
    "GET /status": "how everything is: tiers, breakers, caches, alerts, policies in force",
    "GET /metrics": "all metrics, for Prometheus",
    "GET /livez": "the event loop runs",
    "GET /readyz": "calls can be answered by some tier",
    "GET /startupz": "policies and the local tier are ready",
    "GET /changes": "what was changed lately, and whose failures that may be",
    "POST /changes": "note a deploy: curl -d 'app 2.14 is out'",
    "GET /journal": "what happened; ?family=failure&component=NAME&since_s=3600&count=100",
    "GET /risk": "what is likely to fail soon, and what to do",
    "GET /forecasts": "what will be full and when, and what is unusual",
    "GET /replicas": "what other replicas have told",
    "GET /budgets": "budgets of money and tokens that are nearly spent, or spent",
    "POST /tier": "pin the service tier: curl -d secondary; auto lets it go",
    "POST /tier/ROUTE": "of one route alone",
    "POST /breakers/ROUTE/TIER": "force breakers: curl -d forced-open, disabled, metrics-only or auto",
    "POST /breakers/ROUTE/TIER/ENDPOINT": "of one endpoint alone",
}
"""What there is to ask and to tell, for who asks for anything else."""
LAG_S_MAX = 1.0
"""An event loop later than this is not alive in any sense that helps a caller."""


class Told(Protocol):
    """What the admin port tells, of one process or of many. What is wrong is said in words; '' is well."""

    async def metrics(self) -> bytes: ...
    async def status(self) -> dict[str, Any]: ...
    @property
    def orders(self) -> Orders: ...
    async def force(self, forced: Forced) -> int: ...
    def told(self, page: str) -> dict[str, Any] | None: ...
    async def pin(self, pin: Pin) -> bool: ...
    @property
    def learner(self) -> Learner | None: ...
    def dead_because(self) -> str: ...
    def unready_because(self) -> str: ...
    def starting_because(self) -> str: ...


class OfSidecar:
    """What there is to tell of one sidecar, and `orders` to it."""

    def __init__(self, sidecar: Sidecar, orders: Orders | None = None) -> None:
        self._sidecar = sidecar
        self.orders = orders or Orders()
        self._registry = registry_for(sidecar)
        self._lookout: Lookout | None = None

    def heeds(self, lookout: Lookout) -> None:
        """Tell of our objectives and alerts what `lookout` knows."""
        self._lookout = lookout
        self._registry.register(Live(lookout.families))

    @property
    def learner(self) -> Learner | None:
        """Who learns from what happens."""
        return self._lookout.learner if self._lookout is not None else None

    def families_now(self) -> list[Family]:
        return families_of(self._registry)

    def facts_now(self) -> list[Fact]:
        return self._sidecar.changes.facts

    async def metrics(self) -> bytes:
        return generate_latest(self._registry)

    async def status(self) -> dict[str, Any]:
        alerts = self._lookout.status() if self._lookout is not None else []
        beside = self._lookout.status_beside() if self._lookout is not None else {}
        return {**status_of(self._sidecar), "alerts": alerts, **beside}

    def told(self, page: str) -> dict[str, Any] | None:
        """A page that the lookout has; None where there is none of this name."""
        return self._lookout.told(page) if self._lookout is not None else None

    @property
    def events(self) -> Events:
        return self._sidecar.events

    def loads(self) -> dict[str, Loads]:
        return {
            parts.name: Loads(counts.total, counts.errors, tuple(parts.tally.seconds.counts))
            for parts in self._sidecar.routes
            for counts in (tallied(parts.tally),)
        }

    def readings(self, wall: float) -> list[Reading]:
        return readings_of(self._sidecar, wall)

    def counts(self) -> dict[str, Counts]:
        return {parts.name: tallied(parts.tally) for parts in self._sidecar.routes}

    def agreement(self) -> dict[str, Counts]:
        """Of each route that is watched, its searches that were compared with the local copy."""
        watched = ((parts.name, parts.watch) for parts in self._sidecar.routes)
        return {name: agreed(watch.measures["overlap"]) for name, watch in watched if watch is not None}

    async def settings_now(self) -> Settings:
        return self._sidecar.settings

    def opened(self) -> list[Opening]:
        """Breakers that live calls have opened: seconds left, and why."""
        return list(opened_by_calls(self._sidecar.routes, self._sidecar.world.clock()))

    def hinted(self, hints: Sequence[Opening], ill: Sequence[str]) -> None:
        """Other replicas have opened these breakers, and find these services ill: they are asked at once."""
        heed(self._sidecar.routes, hints, self._sidecar.world.clock())
        alarm(self._sidecar.health, ill)

    def verdicts(self) -> dict[str, str]:
        """The services that are not well."""
        return verdicts_of(self._sidecar.health.diagnoses)

    async def force(self, forced: Forced) -> int:
        found = self._sidecar.force(forced)
        meant = self.orders.meant(forced)
        self.orders.take([one for one in self._sidecar.forced.values() if one[3:] == forced[3:]])
        if forced.mode == "auto":
            self.orders.take(meant)
        return found or len(meant) * (forced.mode == "auto")

    async def pin(self, pin: Pin) -> bool:
        if not self._sidecar.health.pin(pin.rank, pin.route):
            return False
        self.orders.pin([pin])
        return True

    def dead_because(self) -> str:
        lag_s = self._sidecar.loop_lag_s
        return "" if lag_s < LAG_S_MAX else f"the event loop is {lag_s:.1f} s late"

    def unready_because(self) -> str:
        return self._sidecar.unready_because()

    def starting_because(self) -> str:
        return "" if self._sidecar.started else "starting: " + self._sidecar.knowing.reason


class Admin:
    """Serves an admin port, on `address` or on a socket that listens there already."""

    def __init__(self, told: Told, address: str, sock: socket.socket | None = None) -> None:
        self._told = told
        self._address = address
        self._sock = sock
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen. Raises CannotStart."""
        self._runner = web.AppRunner(self.app(), access_log=None, handle_signals=False)
        await self._runner.setup()
        host, port = parse_address(self._address)
        try:
            if self._sock is not None:
                await web.SockSite(self._runner, self._sock).start()
            else:
                await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise CannotStart(f"can't listen on {self._address} (admin): {error.strerror or error}") from None
        self.port = self._runner.addresses[0][1]

    def app(self) -> web.Application:
        """All that can be asked and told."""
        app = web.Application(middlewares=[_guiding])
        app.router.add_get("/", self._index)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/startupz", self._startupz)
        app.router.add_get("/status", self._status)
        for page in PAGES:
            app.router.add_get(f"/{page}", self._page)
        app.router.add_post("/tier", self._pin)
        app.router.add_post("/tier/{route}", self._pin)
        from understudy.proxy.control.learning_admin import LearningAdmin

        LearningAdmin(self._told).add_to(app)
        app.router.add_post("/breakers/{route}/{tier}", self._force)
        app.router.add_post("/breakers/{route}/{tier}/{endpoint}", self._force)
        return app

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _index(self, _request: web.Request) -> web.Response:
        return web.Response(text=_index_text())

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=await self._told.metrics(), headers={"content-type": METRICS_TYPE})

    async def _livez(self, _request: web.Request) -> web.Response:
        return _probe(self._told.dead_because())

    async def _readyz(self, _request: web.Request) -> web.Response:
        return _probe(self._told.unready_because())

    async def _startupz(self, _request: web.Request) -> web.Response:
        return _probe(self._told.starting_because())

    async def _status(self, _request: web.Request) -> web.Response:
        return web.json_response(await self._told.status())

    async def _page(self, request: web.Request) -> web.Response:
        """What is watched beside the objectives, as it knows it now."""
        told = self._told.told(request.path.strip("/"))
        if told is None:
            return web.json_response({"error": "not known yet: the sidecar has only just started"}, status=503)
        return web.json_response(told)

    async def _force(self, request: web.Request) -> web.Response:
        """`curl -d forced-open .../breakers/ROUTE/TIER[/ENDPOINT]`; the other modes are in `MODES`."""
        if not from_this_host(request):
            return web.Response(status=403, text="breakers are forced from this host alone, and by no web page\n")
        said = (await request.content.read(MODE_BYTES_MAX)).strip().decode("latin-1")
        modes: dict[str, Mode] = {mode: mode for mode in MODES}
        mode = modes.get(said)
        if mode is None:
            return web.Response(status=400, text=f"the body must be one of: {', '.join(MODES)}\n")
        names = request.match_info
        by = hand_of(request)
        forced = Forced(names["route"], names["tier"], names.get("endpoint", ""), mode, round(time.time(), 3), by)
        found = await self._told.force(forced)
        if not found:
            return web.Response(status=404, text="no breaker has this name; /status shows which there are\n")
        log.warning("breakers of %s: %s by hand, says %s", "/".join(filter(None, forced[:3])), mode, by)
        return web.Response(text=f"{mode}: {found}\n{await self._kept()}")

    async def _kept(self) -> str:
        """What is to be said where an order can't be written down."""
        lost = await self._told.orders.keep()
        return f"not kept over a restart: {lost}\n" if lost else ""

    async def _pin(self, request: web.Request) -> web.Response:
        """`curl -d secondary .../tier[/ROUTE]`; `auto` lets go."""
        if not from_this_host(request):
            return web.Response(status=403, text="a tier is pinned from this host alone, and by no web page\n")
        said = (await request.content.read(MODE_BYTES_MAX)).strip().decode("latin-1")
        ranks: dict[str, Rank | None] = {**dict(zip(RANKS, RANKS, strict=True)), "auto": None}
        if said not in ranks:
            return web.Response(status=400, text=f"the body must be one of: {', '.join(ranks)}\n")
        route = request.match_info.get("route", "")
        if not await self._told.pin(Pin(route, ranks[said])):
            return web.Response(status=404, text="no route has this name; /status shows which there are\n")
        where = f"route {route}" if route else "the whole"
        log.warning("service tier of %s: %s by hand, says %s", where, said, hand_of(request))
        return web.Response(text=f"{said}\n{await self._kept()}")


@web.middleware
async def _guiding(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whoever takes a wrong turn is told which ways there are."""
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as refused:
        allowed = ", ".join(sorted(refused.allowed_methods))
        return web.Response(
            status=405, text=f"{request.path} takes {allowed}, not {request.method}\n", headers={"allow": allowed}
        )
    except web.HTTPNotFound:
        return web.Response(status=404, text=f"there is no such page on the admin port; there are:\n{_index_text()}")


def _index_text() -> str:
    width = max(map(len, INDEX))
    return "".join(f"{request:<{width}}  {words}\n" for request, words in INDEX.items())


def _probe(wrong: str) -> web.Response:
    return web.Response(status=503 if wrong else 200, text=(wrong or "ok") + "\n")


def status_of(sidecar: Sidecar) -> dict[str, Any]:
    """What the sidecar is, has and does, as JSON values; no secret is among them."""
    settings = sidecar.settings
    unready = sidecar.unready_because()
    return {
        "ready": not unready,
        "unready_because": unready,
        "version": VERSION,
        "runs": how_it_runs(),
        "uptime_s": round(time.time() - sidecar.started_at, 1),
        "policies": {
            "folder": str(sidecar.policies),
            "digest": settings.digest,
            "reload_ok": sidecar.reload_ok,
            "reloads": sidecar.reloads,
            "faults": [str(fault) for fault in sidecar.faults],
        },
        **_tls_status(sidecar),
        **health_status(sidecar.health, sidecar.world.clock()),
        "local": {
            "ready": sidecar.local_ready,
            "reason": sidecar.knowing.reason,
            **sidecar.local_info,
            **({} if sidecar.chores.shadow_index is None else {"shadow_index": sidecar.chores.shadow_index.told}),
            **({} if sidecar.chores.bridges is None else {"bridges": sidecar.chores.bridges.told}),
        },
        **recovery_status(sidecar.recovery),
        **question_status(sidecar.questions, sidecar.world.clock()),
        "facts": sidecar.changes.facts,
        "spaces": spaces_status(sidecar.provenance, sidecar.fingerprints),
        "routes": [_route_status(sidecar, name) for name in sidecar.stack.routes],
    }


def _tls_status(sidecar: Sidecar) -> dict[str, Any]:
    held = sidecar.stack.tls
    if held is None:
        return {}
    ends = datetime.fromtimestamp(held.expires_at, UTC).isoformat(timespec="seconds")
    clients = held.settings.client if held.settings.client_ca_file else "none"
    return {"tls": {"cert_file": held.settings.cert_file, "expires": ends, "client_certificates": clients}}


def _route_status(sidecar: Sidecar, name: str) -> dict[str, Any]:
    parts = sidecar.stack.routes[name]
    now = sidecar.world.clock()
    tiers: list[dict[str, Any]] = []
    for link in parts.links:
        tier = parts.tiers[link.name]
        about: dict[str, Any] = {"name": link.name, "rank": link.rank, "active": link.service is not None}
        if link.absent:
            about["inactive_because"] = link.absent
        about["outcomes"] = {" ".join(filter(None, key)): count for key, count in link.outcomes.items()}
        if link.seconds.count:
            about["fallback_p95_s"] = round(link.seconds.p95, 3)
        if link.ramp is not None:
            about["ramp_share"] = round(link.ramp.share(now), 3)
        forced = sidecar.forced
        about["endpoints"] = [
            _endpoint_status(endpoint, now, forced.get((name, link.name, endpoint.name)))
            for endpoint in tier.endpoints.values()
        ]
        tiers.append(about)
    return {
        "name": name,
        "service_tier": tier_status(sidecar.health.routes[name], now),
        **arms_status(parts),
        **watch_status(parts, now),
        "dialect": parts.dialect.name,
        "space": sidecar.settings.space_of(parts.route),
        "in_flight": parts.tally.in_flight,
        "answers": {f"{tier or 'none'} {hundreds}xx": n for (tier, hundreds), n in parts.tally.answers.items()},
        "unanswered": dict(parts.tally.unanswered),
        **_cache_status(parts),
        **held_status(parts),
        **mirror_status(sidecar.copies.mirrors, name),
        **spend_status(sidecar.accountant, name),
        **budget_status(parts, sidecar.world.wall()),
        "tiers": tiers,
    }


def _cache_status(parts: RouteParts) -> dict[str, Any]:
    """What a route's cache has, where it has one."""
    cache = parts.cache
    if cache is None:
        return {}
    store, flights = cache.store, cache.flights
    return {
        "cache": {
            "entries": len(store),
            "bytes": store.bytes,
            "found": {"hit": cache.hits, **cache.found},
            "stored": store.stored,
            "dropped": {"evicted": store.evicted, "written": store.moved},
            "coalesced": {"shared": flights.shared, "took_over": flights.took_over, "alone": flights.alone},
        }
    }


def _endpoint_status(endpoint: EndpointParts, now: float, forced: Forced | None) -> dict[str, Any]:
    about: dict[str, Any] = {"name": endpoint.name}
    breaker, bulkhead = endpoint.breaker, endpoint.bulkhead
    if breaker is not None:
        about["breaker"] = {
            "state": breaker.shown,
            "mode": breaker.mode,
            "reason": breaker.why,
            "retry_after_s": round(breaker.retry_after_s(now), 2),
            "generation": breaker.generation,
        }
        if forced is not None and breaker.mode != "auto":
            about["breaker"]["by_hand"] = order_text(forced)
    about["limit"] = {
        "in_flight": bulkhead.in_flight,
        "places": bulkhead.places,
        "waiting": len(bulkhead.waiting),
    }
    if endpoint.peer is not None:
        about["outstanding"] = endpoint.peer.outstanding
        about["ejected_s"] = round(max(0.0, endpoint.peer.ejected_until - now), 2)
    return about
