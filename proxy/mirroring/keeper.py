"""Do what is due for one route's copies, in the one process that is their keeper.

    every second:  keeper? --no--> read how they stand, look up what we are unsure of ourselves
                     | yes
                     +--> what died, what others left --> what collections there are --> copy, walk, check, look up

One thing at a time for each route, so that a database is never asked more than its pace; what can't be done now is
tried again, later each time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from understudy.indexes.faults import IndexFault
from understudy.policies.mirror import Standing
from understudy.policies.service import Refused
from understudy.proxy.mirroring.applying import OWNER
from understudy.proxy.mirroring.mirror import ANY, COPIES_MAX, DIED, Held, Mirror
from understudy.proxy.mirroring.notes import the_dead
from understudy.proxy.mirroring.source import Gone, SourceFailed, Unmirrorable
from understudy.proxy.mirroring.walking import Walker, Wiped

TICK_S = 1.0
SAVE_S = 5.0
LOOK_S_MIN = 2.0
"""Between two looks at which collections there are, however many of them are written to."""

log = logging.getLogger("understudy.mirror")


class Keeper:
    """Keeps one mirror. `heard` tells how often the database has answered callers so far."""

    def __init__(
        self,
        mirror: Mirror,
        walker: Walker,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        heard: Callable[[], int] = lambda: 0,
    ) -> None:
        self.mirror = mirror
        self.walker = walker
        self._sleep = sleep
        self._heard = heard
        self._heard_before = 0
        self._kept = False
        self._listed_at = float("-inf")
        self._saved_at = float("-inf")
        self._told: dict[str, str] = {}
        self.trouble = ""
        """Why the database could not be asked last time, or ''."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.once()
            except (IndexFault, OSError) as why:
                self._tell("", str(why))
            await self._sleep(TICK_S)

    async def once(self) -> None:
        """Everything that is due now."""
        mirror = self.mirror
        loop = asyncio.get_running_loop()
        if not await loop.run_in_executor(None, mirror.notes.keep):
            await loop.run_in_executor(None, mirror.read)
            await self._each(only_unsure=True)
            return
        if not self._kept:
            await loop.run_in_executor(None, mirror.read_anew)
            self._kept = True
        dead = await loop.run_in_executor(None, the_dead, mirror.taps)
        if dead.in_the_middle:
            log.warning("route %s: %s: its copies are compared", mirror.name, DIED)
            mirror.lose(ANY, DIED)
            await loop.run_in_executor(None, lambda: mirror.save(durable=True))
        if dead.marks:
            await loop.run_in_executor(None, dead.forget)
        await self._take_notes()
        self._hear()
        try:
            await self._list()
        except SourceFailed as why:
            self._tell("", str(why))
        await self._each()
        now = mirror.clock()
        if now - self._saved_at >= SAVE_S or mirror.is_unsaved:
            self._saved_at = now
            await loop.run_in_executor(None, lambda: mirror.save(durable=False))

    async def sync(self, local: str, called: str) -> str:
        """Copy one collection now, or compare it whole; why it could not be, or ''. For whoever is keeper by hand."""
        mirror = self.mirror
        if local not in mirror.held:
            await self._take_on(local, called)
        held = mirror.held.get(local)
        if held is None or held.refused:
            return held.refused if held is not None else f"more than {COPIES_MAX} collections"
        try:
            await self._do("walk" if held.standing.whole else "copy", local, held)
        except (SourceFailed, IndexFault, Unmirrorable, Wiped, Refused) as why:
            return str(why)
        return ""

    def _hear(self) -> None:
        count = self._heard()
        if count != self._heard_before:
            self._heard_before = count
            now = self.mirror.wall()
            for held in list(self.mirror.held.values()):
                held.standing.heard(now)

    async def _take_notes(self) -> None:
        mirror = self.mirror
        loop = asyncio.get_running_loop()
        newborn = await loop.run_in_executor(None, mirror.notes.take_notes, "born")
        for local in await loop.run_in_executor(None, mirror.notes.take_notes, "dropped"):
            mirror.held.pop(local, None)
            if local not in newborn:
                await loop.run_in_executor(None, lambda: mirror.save(durable=True))
            await loop.run_in_executor(None, mirror.notes.clear_note, "dropped", local)
        if newborn:
            await loop.run_in_executor(None, mirror.take_on_born)
        for local in await loop.run_in_executor(None, mirror.notes.take_notes, "look"):
            mirror.is_to_look = True
            await loop.run_in_executor(None, mirror.notes.clear_note, "look", local)
        for local, why in (await loop.run_in_executor(None, mirror.notes.take_notes, "behind")).items():
            if local not in mirror.held:
                # it is copied first: then what was missed is in it
                mirror.is_to_look = True
            mirror.lose(local, why)
            await loop.run_in_executor(None, lambda: mirror.save(durable=True))
            await loop.run_in_executor(None, mirror.notes.clear_note, "behind", local)
        for local, called in (await loop.run_in_executor(None, mirror.notes.take_notes, "sync")).items():
            mirror.wanted.add(called)
            held = mirror.held.setdefault(local, Held(called, Standing()))
            held.refused = ""
            if held.standing.whole:
                held.standing.lost(mirror.wall(), "asked for by hand")
                held.standing.walked_at = 0.0

    async def _list(self) -> None:
        """Look which collections there are; ids that the database gives them are learnt."""
        mirror = self.mirror
        since_s = mirror.clock() - self._listed_at
        if since_s < mirror.rules.check_s and not (mirror.is_to_look and since_s >= LOOK_S_MIN):
            return
        self._listed_at = mirror.clock()
        mirror.is_to_look = False
        for described in await self.walker.source.collections():
            mirror.learn(described)
            if not mirror.mirrors(described.name):
                continue
            local = mirror.renamed.get(described.name, described.name)
            if local not in mirror.held:
                await self._take_on(local, described.name)
        self._tell("", "")

    async def _take_on(self, local: str, called: str) -> None:
        mirror = self.mirror
        held = Held(called, Standing())
        loop = asyncio.get_running_loop()
        if len(mirror.held) >= COPIES_MAX:
            self._tell(local, f"more than {COPIES_MAX} collections")
            return
        try:
            there = await loop.run_in_executor(None, lambda: mirror.stock().get(local))
        except Refused:
            # the local collections are still being opened
            mirror.is_to_look = True
            return
        if there is not None and there.notes.get(OWNER) != mirror.name:
            # made by hand, or another route's: not ours to overwrite
            held.refused = "a local collection of this name is there, and is no copy of ours"
            self._tell(local, held.refused)
        mirror.held[local] = held

    async def _each(self, *, only_unsure: bool = False) -> None:
        mirror = self.mirror
        for local, held in list(mirror.held.items()):
            copies = mirror.rules.sync == "auto" or held.called in mirror.wanted
            work = held.standing.due(mirror.wall(), mirror.rules, copies=copies)
            if only_unsure:
                work = "unsure" if held.standing.has_settled(mirror.wall(), mirror.rules) else ""
            if not work or held.refused:
                continue
            try:
                await self._do(work, local, held)
                self._tell(local, "")
            except Wiped as why:
                held.refused = str(why)
                held.standing.lost(mirror.wall(), str(why))
                self._tell(local, str(why))
            except Unmirrorable as why:
                held.refused = str(why)
                self._tell(local, str(why))
            except (SourceFailed, IndexFault, Refused) as why:
                held.standing.failed(mirror.wall())
                if isinstance(why, Gone):
                    held.standing.lost(mirror.wall(), "the database has it no more")
                self._tell(local, str(why))

    async def _do(self, work: str, local: str, held: Held) -> None:
        if work == "copy":
            await self.walker.copy(local, held)
        elif work == "walk":
            await self.walker.walk(local, held)
        elif work == "check":
            await self.walker.check(local, held)
        else:
            await self.walker.look_up_unsure(local, held)
        if work in ("copy", "walk"):
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, self.mirror.notes.clear_note, "sync", local)

    def _tell(self, local: str, why: str) -> None:
        """Say what is wrong once, and once when it is over."""
        if self._told.get(local, "") == why:
            return
        self._told[local] = why
        self.trouble = next(filter(None, self._told.values()), "")
        name = f"route {self.mirror.name}" + (f", collection {local}" if local else "")
        if why:
            log.warning("%s: %s", name, why)
        else:
            log.info("%s: well again", name)
