"""A worker is one sidecar of several behind the same sockets; it reports to its parent, and hears of the others by it.

    parent --Ask-----> worker --Report--> parent      for a scrape, and unasked now and then
    worker --Sayings-> parent --Sayings-> the others  what became of a breaker, within SAY_S
    worker --Happened> parent                         for its journal
    worker --Written-> parent --Written-> the others  a write has passed: what was read from there is not told again
    worker --Step----> parent --Step----> the others  a rung that each climbs for itself
    parent --Cover---> worker                         accept for a neighbour that is not there
    parent gone  ====> worker drains and ends

The work is done between calls, on the worker's own loop: nothing is shared that a call would have to ask.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import msgspec

from understudy.policies.forecast import Reading
from understudy.proxy.control.admin import status_of
from understudy.proxy.control.hinting import alarm, breakers_of, heed
from understudy.proxy.control.listening import Places
from understudy.proxy.control.resources import readings_of
from understudy.proxy.control.summing import families_of
from understudy.proxy.control.wire import (
    Ask,
    Channel,
    Cover,
    Diagnosed,
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
from understudy.proxy.reports.metrics import registry_for
from understudy.proxy.sidecar import Sidecar

if TYPE_CHECKING:
    from understudy.proxy.control.rungs import Rungs

SAY_S = 0.2
REPORT_S = 0.5
REPORT_S_MAX = 10.0
READ_S = 10.0
REPORT_SHARE = 0.01
"""Of a worker's time, at most this share goes into reports that nobody asked for: a thousand routes take longer."""


class Post(msgspec.Struct, frozen=True):
    """Where a worker stands: its place, the descriptors it has inherited, and the name in Via that all share."""

    place: int
    control: int
    places: list[list[int]]
    pseudonym: str = ""

    @classmethod
    def read(cls, text: str) -> Post:
        """As the parent wrote it on the command line."""
        return msgspec.json.decode(text, type=cls)

    def sockets(self) -> Places:
        """The sockets behind the descriptors; owned by the caller from now on."""
        return [[socket.socket(fileno=number) for number in place] for place in self.places]


class Worker:
    """A sidecar's side of the channel to its parent."""

    def __init__(self, sidecar: Sidecar, post: Post, stop: asyncio.Event) -> None:
        self._sidecar = sidecar
        self._post = post
        self._stop = stop
        self._registry = registry_for(sidecar)
        self._told: dict[tuple[str, str, str], int] = {}
        self._channel: Channel | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._climbing: set[asyncio.Task[None]] = set()
        self._rungs: Rungs | None = None
        self._read: list[Reading] = []
        self._read_at = float("-inf")

    async def start(self) -> None:
        """Report for the first time, which says that we accept connections, and go on reporting."""
        channel = self._channel = await Channel.on(socket.socket(fileno=self._post.control))
        channel.send(self._report(0))
        self._sidecar.written = lambda names: channel.send(Written(names))
        self._sidecar.fell = lambda told: channel.send(Fell([told]))
        self._sidecar.climb_elsewhere = lambda component, rung: channel.send(Step(component, rung))
        events = self._sidecar.events
        channel.send(Happened(list(events.recent)))
        events.subscribe(lambda event: channel.send(Happened([event])))
        health = self._sidecar.health
        if health.is_leader:
            channel.send(Diagnosed(health.diagnoses))
            health.subscribe(lambda one, _before: channel.send(Diagnosed([one])))
        loop = asyncio.get_running_loop()
        listening = loop.create_task(self._listen(channel))
        self._tasks = [listening, loop.create_task(self._say(channel)), loop.create_task(self._keep_reporting(channel))]

    async def stop(self) -> None:
        """Report for the last time, so that nothing we counted is missing from the sums."""
        tasks = [*self._tasks, *self._climbing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._rungs is not None:
            self._rungs.close()
        if self._channel is not None:
            self._channel.send(self._report(0))
            await self._channel.close()

    async def _listen(self, channel: Channel) -> None:
        while (message := await channel.receive()) is not None:
            match message:
                case Ask():
                    channel.send(self._report(message.number))
                case Cover():
                    await self._sidecar.cover(message.places)
                case Sayings():
                    self._hear(message)
                case Written():
                    if self._sidecar.caches is not None:
                        self._sidecar.caches.heard(message.names)
                case Step():
                    self._climb(message)
                case Diagnosed():
                    self._sidecar.health.hear(message.told)
                case Pinned():
                    for pin in message.said:
                        self._sidecar.health.pin(pin.rank, pin.route)
                case Hinted():
                    heed(self._sidecar.routes, message.hints, self._sidecar.world.clock())
                    alarm(self._sidecar.health, message.ill)
                case Fell():
                    for one in message.told:
                        self._sidecar.questions.hear(one, self._sidecar.world.clock())
                case Force():
                    for one in message.said:
                        self._sidecar.force(one)
                case Report() | Happened():
                    pass
        # nobody would replace us, add us up or tell us to end
        self._stop.set()

    def _climb(self, step: Step) -> None:
        """Do what the one that recovers has done, in a task of its own: it may take seconds."""
        if self._rungs is None:
            # seldom needed, and not small
            from understudy.proxy.control.rungs import Rungs

            self._rungs = Rungs(self._sidecar)
        climbing = asyncio.get_running_loop().create_task(self._rungs.elsewhere(step.component, step.rung))
        self._climbing.add(climbing)
        climbing.add_done_callback(self._climbing.discard)

    async def _keep_reporting(self, channel: Channel) -> None:
        loop = asyncio.get_running_loop()
        pause_s = REPORT_S
        while True:
            await asyncio.sleep(pause_s)
            began = loop.time()
            channel.send(self._report(0))
            pause_s = min(REPORT_S_MAX, max(REPORT_S, (loop.time() - began) / REPORT_SHARE))

    def _report(self, number: int) -> Report:
        sidecar = self._sidecar
        return Report(
            number=number,
            started=sidecar.started,
            unready_because=sidecar.unready_because(),
            lag_s=sidecar.loop_lag_s,
            families=families_of(self._registry),
            status=status_of(sidecar),
            readings=self._readings(),
        )

    def _readings(self) -> list[Reading]:
        """How full everything is; read anew only so often, since counting descriptors is not cheap."""
        now = self._sidecar.world.clock()
        if now - self._read_at >= READ_S:
            self._read_at = now
            self._read = readings_of(self._sidecar, self._sidecar.world.wall())
        return self._read

    # --- breakers --------------------------------------------------------------------------------------------------

    async def _say(self, channel: Channel) -> None:
        while True:
            await asyncio.sleep(SAY_S)
            news = [
                (*key, heart.said())
                for key, heart in breakers_of(self._sidecar.routes)
                if heart.epoch > self._told.get(key, 0)
            ]
            if news:
                self._told.update({(route, tier, endpoint): said.epoch for route, tier, endpoint, said in news})
                channel.send(Sayings(news))

    def _hear(self, sayings: Sayings) -> None:
        now = self._sidecar.world.clock()
        hearts = dict(breakers_of(self._sidecar.routes))
        for route, tier, endpoint, said in sayings.said:
            key = (route, tier, endpoint)
            heart = hearts.get(key)
            if heart is not None and heart.hear(said, now):
                # what we have from others is no news of ours
                self._told[key] = heart.epoch
