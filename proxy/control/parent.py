"""The parent of several workers: it holds their sockets, keeps them alive, adds them up, and proxies nothing itself.

    place --spawn--> starting --first Report--> accepting --ends--> empty --wait (policies/respawn)--> spawn
                                                                  neighbours accept for it meanwhile

Each place has its sockets, which outlive its workers: who waits in their queues is answered by the next worker, or by a
neighbour. Workers are fresh interpreters, never forks of this one. Breakers agree through here; the parent keeps what
holds, and tells it to every worker that begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import CollectorRegistry

from understudy.policies.agreement import Said, newer
from understudy.policies.forcing import Forced
from understudy.policies.forecast import Reading
from understudy.policies.health import Diagnosis
from understudy.policies.objectives import Counts
from understudy.policies.respawn import Respawn
from understudy.policies.tiering import Pin
from understudy.proxy.changes import Fact
from understudy.proxy.control.hinting import Opening, verdicts_of
from understudy.proxy.control.listening import Places, worker_count
from understudy.proxy.control.objectives import Lookout, agreement_counted, counted
from understudy.proxy.control.resources import Loads, loads_of, process_readings, together
from understudy.proxy.control.summing import Summed, kept, merged_status, summed
from understudy.proxy.control.wire import (
    Ask,
    Channel,
    Cover,
    Diagnosed,
    Family,
    Fell,
    Force,
    Happened,
    Hinted,
    Pinned,
    Report,
    Sayings,
    Step,
    Written,
)
from understudy.proxy.control.worker import Post
from understudy.proxy.events import Events
from understudy.proxy.http.forwarding import new_pseudonym
from understudy.proxy.orders import Orders
from understudy.proxy.reports.metrics import METRICS
from understudy.proxy.settings.reading import BadPolicies
from understudy.proxy.settings.settings import Settings
from understudy.proxy.version import VERSION, how_it_runs

if TYPE_CHECKING:
    from understudy.proxy.control.learning import Learner

ASK_S_MAX = 0.5
"""How long a scrape waits for workers; of one that is later, the last report counts."""
SILENT_S_MAX = 30.0
"""A parent that has heard of no worker for so long is not alive in any sense that helps a caller."""
KILL_S = 5.0
"""How long after the drain deadline a worker that is still there is killed."""
SAID_MAX = 10_000
"""Breakers that are remembered; the oldest go first."""

log = logging.getLogger("understudy.workers")


class Place:
    """One worker's place: its sockets, the process that stands there now, and what those before it have counted."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.respawn = Respawn()
        self.process: asyncio.subprocess.Process | None = None
        self.channel: Channel | None = None
        self.report: Report | None = None
        self.began = 0.0
        self.retired: list[Family] = []
        self.answered: dict[int, asyncio.Future[None]] = {}

    @property
    def ready(self) -> bool:
        """Whether its worker takes calls."""
        return self.report is not None and not self.report.unready_because


class Parent:
    """Runs `command` once for each place; `stopping` is set to have it end. `reread` reads the policies that `settings`
    came from, as they are now; it raises BadPolicies."""

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        sockets: Places,
        settings: Settings,
        reread: Callable[[], Settings],
        orders: Orders,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._command = command
        self._environ = environ
        self._drain_s = settings.server.drain_s
        self.sockets = sockets
        self.places = [Place(number) for number in range(worker_count(settings.server))]
        self.stopping = asyncio.Event()
        self.gave_up = False
        self.ready = asyncio.Event()
        self.pseudonym = new_pseudonym().decode()
        self.lookout: Lookout | None = None
        self.events = Events()
        self._settings = settings
        self._reread = reread
        self._said: dict[tuple[str, str, str], Said] = {}
        self.orders = orders
        self._diagnosed: dict[str, Diagnosis] = {}
        self._asked = 0
        self._heard_at = self._loop.time()
        self._started_at = time.time()
        self._keeping: list[asyncio.Task[None]] = []

    # --- up and down -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Fill all places."""
        self._keeping = [self._loop.create_task(self._keep(place)) for place in self.places]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal on to every worker."""
        for place in self.places:
            if place.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    place.process.send_signal(number)

    async def drain_and_stop(self) -> None:
        """Have every worker drain, and wait for them; who is late is killed."""
        self.stopping.set()
        # first ours, then theirs: a socket that nobody holds any more refuses, rather than keep callers waiting
        self.close_sockets()
        self.signal(signal.SIGTERM)
        _, late = await asyncio.wait(self._keeping, timeout=self._drain_s + KILL_S)
        if late:
            log.warning("killing %d workers that did not end in time", len(late))
            self.signal(signal.SIGKILL)
            await asyncio.wait(late, timeout=KILL_S)

    def close_sockets(self) -> None:
        for sock in (sock for place in self.sockets for sock in place):
            sock.close()

    # --- a place ---------------------------------------------------------------------------------------------------

    async def _keep(self, place: Place) -> None:
        while not self.stopping.is_set():
            place.began = self._loop.time()
            code = await self._one_worker(place)
            was_ready = place.report is not None
            self._retire(place)
            if self.stopping.is_set():
                return
            wait_s = place.respawn.died(self._loop.time() - place.began, was_ready=was_ready)
            if all(one.respawn.hopeless for one in self.places):
                self.gave_up = True
                self.stopping.set()
                return
            log.error("worker %d ended with %s; the next one starts in %.1f s", place.number, _words(code), wait_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), wait_s)

    async def _one_worker(self, place: Place) -> int:
        ours, theirs = socket.socketpair()
        try:
            listening = [[sock.fileno() for sock in sockets] for sockets in self.sockets]
            post = Post(place.number, theirs.fileno(), listening, self.pseudonym)
            place.process = await asyncio.create_subprocess_exec(
                *self._command,
                msgspec.json.encode(post).decode(),
                env=self._environ,
                pass_fds=[theirs.fileno(), *(number for numbers in listening for number in numbers)],
                # a terminal's Ctrl-C is ours to pass on
                start_new_session=True,
            )
        except OSError as error:
            log.error("worker %d can't be started: %s", place.number, error)
            ours.close()
            return 1
        finally:
            theirs.close()
        place.channel = await Channel.on(ours)
        if self.stopping.is_set():
            self.signal(signal.SIGTERM)
        await self._listen(place, place.channel)
        await place.channel.close()
        return await place.process.wait()

    async def _listen(self, place: Place, channel: Channel) -> None:
        if self.orders.breakers:
            channel.send(Force(self.orders.breakers))
        if self.orders.tiers:
            channel.send(Pinned(self.orders.tiers))
        if self._diagnosed:
            channel.send(Diagnosed(list(self._diagnosed.values())))
        if self._said:
            channel.send(Sayings([(*key, said) for key, said in self._said.items()]))
        while (message := await channel.receive()) is not None:
            match message:
                case Report():
                    self._take(place, message)
                case Sayings():
                    self.hear(message.said, place)
                case Written() | Step() | Fell():
                    for other in self.places:
                        if other is not place and other.channel is not None:
                            other.channel.send(message)
                case Happened():
                    for event in message.events:
                        self.events.publish(event)
                case Diagnosed():
                    self._pass_on(message, place)
                case Ask() | Cover() | Force() | Pinned() | Hinted():
                    pass

    def _take(self, place: Place, report: Report) -> None:
        first, place.report = place.report is None, report
        self._heard_at = self._loop.time()
        if place.ready:
            self.ready.set()
        if first:
            self._share_out()
        answered = place.answered.pop(report.number, None)
        if answered is not None and not answered.done():
            answered.set_result(None)

    def _retire(self, place: Place) -> None:
        """Its worker is gone: what it had counted stays in the sums, its queue is its neighbours' for now."""
        if place.report is not None:
            place.retired = summed([place.retired, kept(place.report.families)])
        place.report = place.channel = place.process = None
        for answered in place.answered.values():
            answered.cancel()
        place.answered.clear()
        if not self.stopping.is_set():
            self._share_out()

    def _share_out(self) -> None:
        """Have every socket accepted from: by its own worker, or by the others in turn."""
        there = [place for place in self.places if place.report is not None]
        if not there:
            return
        whose: dict[int, list[int]] = {place.number: [place.number] for place in there}
        for turn, number in enumerate(n for n in range(len(self.sockets)) if n not in whose):
            whose[there[turn % len(there)].number].append(number)
        for place in there:
            if place.channel is not None:
                place.channel.send(Cover(whose[place.number]))

    # --- breakers --------------------------------------------------------------------------------------------------

    def hear(self, said: Sequence[tuple[str, str, str, Said]], speaker: Place | None = None) -> None:
        """Keep what holds, and tell the others what is new."""
        news: list[tuple[str, str, str, Said]] = []
        for route, tier, endpoint, one in said:
            held = newer(self._said.pop((route, tier, endpoint), Said()), one)
            self._said[route, tier, endpoint] = held
            news.append((route, tier, endpoint, held))
        while len(self._said) > SAID_MAX:
            del self._said[next(iter(self._said))]
        for place in self.places:
            # the speaker too, where something else holds than what it said
            mine = [one for one, heard in zip(news, said, strict=True) if place is not speaker or one != heard]
            if place.channel is not None and mine:
                place.channel.send(Sayings(mine))

    async def force(self, forced: Forced) -> int:
        """Tell every worker, and those that begin later. How many breakers are meant is what a report says."""
        reports = [place.report for place in self.places if place.report is not None]
        found = [
            endpoint["name"]
            for route in (reports[0].status["routes"] if reports else ())
            for tier in route["tiers"]
            for endpoint in tier["endpoints"]
            if "breaker" in endpoint
            and (route["name"], tier["name"]) == (forced.route, forced.tier)
            and forced.endpoint in ("", endpoint["name"])
        ]
        meant = self.orders.meant(forced) if forced.mode == "auto" else []
        self.orders.take([*meant, *(forced._replace(endpoint=name) for name in found)])
        for place in self.places:
            if place.channel is not None and found:
                place.channel.send(Force([forced]))
        return len(found) or len(meant)

    async def pin(self, pin: Pin) -> bool:
        """Tell every worker, and those that begin later; whether there is such a route."""
        reports = [place.report for place in self.places if place.report is not None]
        names = [route["name"] for route in (reports[0].status["routes"] if reports else ())]
        if pin.route and pin.route not in names:
            return False
        self.orders.pin([pin])
        for place in self.places:
            if place.channel is not None:
                place.channel.send(Pinned([pin]))
        return True

    def _pass_on(self, message: Diagnosed, speaker: Place) -> None:
        """What one worker thinks of components is what all think."""
        for one in message.told:
            self._diagnosed.pop(one.component, None)
            self._diagnosed[one.component] = one
        while len(self._diagnosed) > SAID_MAX:
            del self._diagnosed[next(iter(self._diagnosed))]
        for other in self.places:
            if other is not speaker and other.channel is not None:
                other.channel.send(message)

    def said(self) -> list[tuple[str, str, str, Said]]:
        """What holds now."""
        return [(*key, one) for key, one in self._said.items()]

    # --- what the admin port tells ---------------------------------------------------------------------------------

    async def _ask_all(self) -> None:
        self._asked += 1
        waiting: list[asyncio.Future[None]] = []
        for place in self.places:
            if place.channel is not None and place.report is not None:
                place.answered[self._asked] = self._loop.create_future()
                waiting.append(place.answered[self._asked])
                place.channel.send(Ask(self._asked))
        if waiting:
            await asyncio.wait(waiting, timeout=ASK_S_MAX)
        for place in self.places:
            place.answered.pop(self._asked, None)

    async def metrics(self) -> bytes:
        await self._ask_all()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Summed(self.families_now()))
        return generate_latest(registry)

    def _own(self) -> list[Family]:
        ready = sum(place.ready for place in self.places)
        deaths = sum(place.respawn.deaths for place in self.places)
        workers, replaced = "understudy_workers", "understudy_workers_replaced"
        states: list[tuple[str, dict[str, str], float]] = [
            (workers, {"state": "ready"}, ready),
            (workers, {"state": "not_ready"}, len(self.places) - ready),
        ]
        return [
            (workers, "gauge", METRICS[workers], states),
            (replaced, "counter", METRICS[replaced + "_total"], [(replaced + "_total", {}, deaths)]),
            *(self.lookout.families() if self.lookout is not None else ()),
        ]

    async def status(self) -> dict[str, Any]:
        await self._ask_all()
        statuses = [place.report.status for place in self.places if place.report is not None]
        unready = self.unready_because()
        return {
            "ready": not unready,
            "unready_because": unready,
            "version": VERSION,
            "runs": how_it_runs(),
            "uptime_s": round(time.time() - self._started_at, 1),
            **merged_status(statuses),
            "alerts": self.lookout.status() if self.lookout is not None else [],
            **(self.lookout.status_beside() if self.lookout is not None else {}),
            "workers": [self._status_of(place) for place in self.places],
        }

    def heeds(self, lookout: Lookout) -> None:
        """Tell of our objectives and alerts what `lookout` knows."""
        self.lookout = lookout

    @property
    def learner(self) -> Learner | None:
        """Who learns from what happens."""
        return self.lookout.learner if self.lookout is not None else None

    def families_now(self) -> list[Family]:
        """The metrics of all workers as they last reported them, those that are gone included."""
        # the living first: they name the gauges, which the dead have none of
        reports = [place.report.families for place in self.places if place.report is not None]
        return [*summed([*reports, *(place.retired for place in self.places)]), *self._own()]

    def facts_now(self) -> list[Fact]:
        """What one worker sees; the others see the same, and tell of what they see change."""
        reports = [place.report for place in self.places if place.report is not None]
        return [Fact(*fact) for fact in reports[0].status.get("facts", ())] if reports else []

    def counts(self) -> dict[str, Counts]:
        """Every route's counts over all workers, those that are gone included."""
        reports = [place.report.families for place in self.places if place.report is not None]
        return counted(itertools.chain(*reports, *(place.retired for place in self.places)))

    def agreement(self) -> dict[str, Counts]:
        """Of each route that is watched, its searches that were compared, over all workers."""
        reports = [place.report.families for place in self.places if place.report is not None]
        return agreement_counted(itertools.chain(*reports, *(place.retired for place in self.places)))

    def loads(self) -> dict[str, Loads]:
        """Every route's loads over all workers, those that are gone included."""
        reports = [place.report.families for place in self.places if place.report is not None]
        return loads_of(summed([*reports, *(place.retired for place in self.places)]))

    def readings(self, wall: float) -> list[Reading]:
        """How full everything is, of all workers and of this process."""
        del wall  # each worker has told its own time
        each = {f"worker {place.number}": place.report.readings for place in self.places if place.report is not None}
        own = process_readings("parent", f"{os.getpid()}:{self._started_at:.0f}")
        return together({**each, "parent": own})

    def opened(self) -> list[Opening]:
        """Breakers that live calls have opened: seconds left, and why."""
        now = time.monotonic()
        return [(key, said.until - now, said.reason) for key, said in self._said.items() if said.until > now]

    def hinted(self, hints: Sequence[Opening], ill: Sequence[str]) -> None:
        """Other replicas have opened these breakers, and find these services ill: each worker heeds it by its calls."""
        for place in self.places:
            if place.channel is not None:
                place.channel.send(Hinted(list(hints), list(ill)))

    def verdicts(self) -> dict[str, str]:
        """The services that are not well."""
        return verdicts_of(self._diagnosed.values())

    def told(self, page: str) -> dict[str, Any] | None:
        """A page that the lookout has; None where there is none of this name."""
        return self.lookout.told(page) if self.lookout is not None else None

    async def settings_now(self) -> Settings:
        """The policies that workers have in force; read anew where they have read them anew."""
        digests = [place.report.status["policies"]["digest"] for place in self.places if place.report is not None]
        if digests and self._settings.digest != digests[0]:
            # bad ones: what workers have in force was well when they read it, and is being written again
            with contextlib.suppress(BadPolicies):
                self._settings = await self._loop.run_in_executor(None, self._reread)
        return self._settings

    def _status_of(self, place: Place) -> dict[str, Any]:
        report = place.report
        routes: list[dict[str, Any]] = report.status["routes"] if report else []
        return {
            "place": place.number,
            "pid": place.process.pid if place.process else None,
            "ready": place.ready,
            "unready_because": report.unready_because if report else "starting",
            "replaced": place.respawn.deaths,
            "answers": sum(sum(route["answers"].values()) for route in routes),
            "breakers": {
                " ".join(dict.fromkeys((route["name"], tier["name"], endpoint["name"]))): endpoint["breaker"]["state"]
                for route in routes
                for tier in route["tiers"]
                for endpoint in tier["endpoints"]
                if endpoint.get("breaker", {}).get("state", "closed") != "closed"
            },
        }

    def dead_because(self) -> str:
        silent_s = self._loop.time() - self._heard_at
        return "" if silent_s < SILENT_S_MAX else f"no worker has been heard of for {silent_s:.0f} s"

    def unready_because(self) -> str:
        if self.stopping.is_set():
            return "draining"
        if any(place.ready for place in self.places):
            return ""
        return next((p.report.unready_because for p in self.places if p.report), "starting: no worker is there yet")

    def starting_because(self) -> str:
        if any(place.report and place.report.started for place in self.places):
            return ""
        return self.unready_because()


def _words(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
