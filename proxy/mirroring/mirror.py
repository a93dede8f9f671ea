"""One route's mirror: the tap on its writes, how each of its copies stands, and who does what is due.

    write --primary said yes--> Passed ----+
          --cut, failed, not 2xx--> Doubtful +--> lane --> copies
    walks, checks, look-ups --> Found -----+
                ^ due: policies/mirror.py; done by the one process that is keeper (`walking.py`)

Every worker taps, applies and looks up what it is unsure of itself; what only a comparison of the whole can put right,
it leaves in a note to the keeper.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from understudy.indexes.faults import IndexFault
from understudy.indexes.points import Point
from understudy.indexes.writes import Drop
from understudy.policies.mirror import Standing
from understudy.policies.service import Answer, Call, Refused, Service
from understudy.proxy.handles import Learnt
from understudy.proxy.mirroring.applying import Act, Applier, Changing, Doubtful, Found, Job, Outcome, Passed, Stock
from understudy.proxy.mirroring.lane import Lane, size_of
from understudy.proxy.mirroring.notes import CopyNote, Notes, Standings, TapMark, the_dead
from understudy.proxy.mirroring.touches import Touches
from understudy.proxy.settings.mirror import Mirror as Rules

if TYPE_CHECKING:
    from understudy.proxy.handles import Handles
    from understudy.proxy.mirroring.source import Described

COPIES_MAX = 64
"""As many as a library opens."""
STOP_S_MAX = 5.0
READ_S_MIN = 0.1
"""Between two looks that questions have us take at what the keeper has written, some 50 us each."""
FITTED = ("elasticsearch", "opensearch", "milvus")
"""Whose documents hold their vectors among their fields."""
ANY = ""
LOOK = "any"
DIED = "a process ended with writes under way"

log = logging.getLogger("understudy.mirror")


class Held:
    """One copy: `called` by callers, how it stands, why it is not kept ('' where it is), and where its samples are."""

    __slots__ = ("called", "compared", "described", "local_from", "refused", "repaired", "source_from", "standing")

    def __init__(self, called: str, standing: Standing) -> None:
        self.called = called
        self.standing = standing
        self.refused = ""
        self.described: Described | None = None
        # samples go on where the last one ended, so that in time every point is one
        self.local_from: int | str | None = None
        self.source_from = ""
        self.compared = 0
        self.repaired = 0


def born(called: str, as_of: float) -> Held:
    """A copy that was made with its collection: it has all there is `as_of` then, unless that is 0."""
    held = Held(called, Standing(whole=bool(as_of), as_of=as_of, walked_at=as_of))
    held.standing.proven = bool(as_of)
    return held


class Tapping:
    """Counts of one route's tap."""

    __slots__ = ("applied", "doubtful", "overflowed", "passed", "points", "wide")

    def __init__(self) -> None:
        self.passed = 0
        self.applied = 0
        self.doubtful = 0
        self.overflowed = 0
        self.points = 0
        self.wide = 0


class Mirror:
    """The mirror of the route `name`. `renamed` maps callers' names of collections to local ones; `handles` knows the
    ids that a database gives its collections; `rank` is the tier whose yes counts."""

    def __init__(
        self,
        name: str,
        rules: Rules,
        dialect: Any,
        *,
        folder: Path,
        stock: Callable[[], Stock],
        thread: Executor,
        space: str,
        renamed: dict[str, str] | None = None,
        handles: Handles | None = None,
        listener: Callable[[str, Sequence[Point]], None] | None = None,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.rules = rules
        self.dialect = dialect
        self.space = space
        self.renamed = renamed or {}
        self.handles = handles
        self.by_handle: dict[str, str] = {}
        self.notes = Notes(folder)
        self.wall = wall
        self.clock = clock
        self.stock = stock
        self.held: dict[str, Held] = {}
        self.counts = Tapping()
        self.wanted: set[str] = set()
        """Copies that somebody has asked for by name, and may be made though the policy leaves it to hands."""
        self.touches = Touches(folder / "rings")
        self.applier = Applier(
            dialect,
            self,
            stock,
            space=space,
            text=rules.text,
            settle_s=rules.settle_s,
            listener=listener,
            fits=dialect.name in FITTED,
            owner=name,
            touches=self.touches,
        )
        self.lane = Lane(self.applier.run, self._take_in, thread)
        self._mark: TapMark | None = None
        self._ready: TapMark | None = None
        self._under_way = 0
        self._written: Standings | None = None
        self._unsaved = False
        # whoever writes last writes what is so then
        self._saving = threading.Lock()
        self._read_at = float("-inf")
        self.is_to_look = True
        """Whether somebody should look which collections there are."""

    # --- names -----------------------------------------------------------------------------------------------------

    def name_of(self, called: str) -> str:
        """What callers call a collection, by that name or by what its database calls it. Raises KeyError."""
        if self.handles is None or called in self.renamed:
            return called
        name = self.by_handle.get(called) or self.handles.name_of(called)
        if name is None:
            raise KeyError(called)
        return name

    def local_of(self, called: str, *, is_name: bool = False) -> str | None:
        """The local copy of a collection, None where it has none. Raises KeyError for one that nobody knows."""
        name = called if is_name else self.name_of(called)
        if not self.mirrors(name):
            return None
        return self.renamed.get(name, name)

    def names(self) -> set[str]:
        """The collections that somebody has named: the policy, or whoever wrote to them before."""
        return {*self.rules.collections, *self.wanted, *(held.called for held in list(self.held.values()))}

    def mirrors(self, name: str) -> bool:
        """Whether the policy has a collection copied."""
        return not self.rules.collections or name in self.rules.collections or name in self.wanted

    def is_kept(self, local: str) -> bool:
        return local in self.held and not self.held[local].refused

    def may_create(self, local: str) -> bool:
        """Whether a collection that is made at the database is made here too: a folder made by hand is not ours."""
        return local not in self.held and len(self.held) < COPIES_MAX

    # --- what the applying thread tells; there the route's processes are one after the other ------------------------

    def look_again(self) -> None:
        """Hear of copies that other processes have begun. A write that met none is older than what these hold."""
        self._hear_of_born()
        if self.is_keeper:
            # who writes down how they stand knows them
            return
        for local, note in self.notes.standings().copies.items():
            if local not in self.held and not self.notes.has_note("dropped", local):
                self.held[local] = Held(note.called, Standing())
                self._stand(self.held[local], note)

    def born(self, local: str, *, whole: bool) -> None:
        """A copy is made with its collection, and every process is to know before it applies another write."""
        as_of = self.wall() if whole else 0.0
        self.held[local] = born(self._called(local), as_of)
        self.notes.leave_note("born", local, repr(as_of))

    def gone(self, local: str) -> None:
        """A copy is dropped with its collection."""
        self.held.pop(local, None)
        self.notes.clear_note("born", local)
        if not self.is_keeper:
            self.notes.leave_note("dropped", local, "")

    # --- the tap ---------------------------------------------------------------------------------------------------

    def tapped(self, service: Service, rank: str, tier: str) -> Service:
        """`service`, its writes seen. `rank` and `tier` are those of the database that is mirrored."""
        dialect = self.dialect

        async def tapping(call: Call) -> Answer:
            if call.kind != "pass" or self._mark is None or dialect.written(call.request) is None:
                return await service(call)
            began = self._begin()
            try:
                answer = await service(call)
            except Refused:
                # nothing was spent
                self._end()
                raise
            except BaseException:
                self._doubt(call, began)
                raise
            if answer.tier == rank:
                if 200 <= answer.status < 300 and answer.stream is None:
                    self._pass(call, answer, began)
                else:
                    self._doubt(call, began)
            elif any(step.tier == tier and step.outcome == "failed" for step in call.trail):
                self._doubt(call, began)
            else:
                self._end()
            return answer

        return tapping

    def _begin(self) -> float:
        self._under_way += 1
        if self._under_way == 1 and self._mark is not None:
            self._mark.set(open=True)
        return self.clock()

    def _end(self) -> None:
        self._under_way -= 1
        self._settle_mark()

    def _settle_mark(self) -> None:
        if self._mark is not None and self._under_way == 0 and not self.is_open:
            self._mark.set(open=False)

    @property
    def is_open(self) -> bool:
        """Whether something has passed that the copies don't show, or may not."""
        return bool(len(self.lane)) or self._unsaved or any(each.standing.unsure for each in list(self.held.values()))

    def _pass(self, call: Call, answer: Answer, began: float) -> None:
        self.counts.passed += 1
        concerned = self._concerned(self.dialect.written(call.request) or ANY)
        job = Passed(call, answer, began, self.clock(), self.wall(), concerned)
        if self._fits(job):
            for standing in concerned:
                standing.passed(job.passed_at)
        self._end()

    def _concerned(self, called: str) -> list[Standing]:
        """The copies that a write may be about, by what its path calls its collection; all where that says nothing."""
        name = self.by_handle.get(called, called)
        held = self.held.get(self.renamed.get(name, name))
        return [held.standing] if held is not None else [each.standing for each in list(self.held.values())]

    def _doubt(self, call: Call, began: float) -> None:
        self.counts.doubtful += 1
        self._fits(Doubtful(call, began, self.clock()))
        self._end()

    def _fits(self, job: Passed | Doubtful) -> bool:
        size_bytes = size_of(job)
        if len(self.lane) < self.rules.queue_max and self.lane.bytes + size_bytes <= self.rules.queue_bytes_max:
            self.lane.put(job, size_bytes)
            return True
        self.counts.overflowed += 1
        self.lose(ANY, "more writes passed than could be applied")
        return False

    # --- what came of it -------------------------------------------------------------------------------------------

    def _take_in(self, job: Job, outcome: Outcome) -> None:
        now = self.wall()
        for local, ids in outcome.unsure.items():
            if local in self.held:
                self.held[local].standing.doubt(ids, now)
        for local, why in outcome.lost.items():
            self.lose(local, why)
        if isinstance(job, Passed):
            self.counts.applied += 1
            self.counts.points += outcome.points
            self.counts.wide += outcome.wide
            oldest = self.lane.oldest_passed_at()
            for standing in job.concerned:
                standing.applied(now, oldest)
        self._tell_keeper(outcome)
        self._settle_mark()

    def _tell_keeper(self, outcome: Outcome) -> None:
        """Collections that came, went, or were written to before there was a copy."""
        self.is_to_look |= outcome.unknown or bool(outcome.missed)
        if self.is_keeper:
            if outcome.created or outcome.dropped:
                # not here on the loop: a disk may take its time. Until it has, a note in its place says what was born
                asyncio.get_running_loop().run_in_executor(None, lambda: self.save(durable=True))
            return
        if outcome.unknown or outcome.missed or outcome.created:
            self._leave_note("look", LOOK, "")

    def _called(self, local: str) -> str:
        return next((name for name, own in self.renamed.items() if own == local), local)

    def lose(self, local: str, why: str) -> None:
        """A copy is behind; all of them are for the name ''."""
        now = self.wall()
        for name, held in list(self.held.items()):
            if local in (ANY, name):
                if held.standing.whole and not held.standing.behind_since:
                    log.warning("route %s, collection %s: the copy is behind: %s", self.name, name, why)
                    self._unsaved = True
                    if not self.is_keeper:
                        self._leave_note("behind", name, why)
                held.standing.lost(now, why)

    def _leave_note(self, kind: str, local: str, why: str) -> None:
        if self._mark is not None:
            # a disk may take its time; nobody waits for it
            asyncio.get_running_loop().run_in_executor(None, self.notes.leave_note, kind, local, why)

    # --- turns among the writes --------------------------------------------------------------------------------------

    async def act(self, act: Callable[[], Any]) -> Any:
        """What `act` returns, run in the applying thread after all that has passed. Raises IndexFault."""
        told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.lane.put(Act(act, told))
        return await told

    async def put_right(
        self, local: str, points: Sequence[Point], began: float, described: Described, asked: Sequence[int | str] = ()
    ) -> Any:
        """The Verdict on points that were read from the database at `began` or later. Raises IndexFault."""
        told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.lane.put(Found(local, points, began, described.vectors, told, asked))
        return await told

    async def copy_again(self, local: str) -> None:
        """Compare a whole copy point by point; drop one that does not even open, and have it made anew. Raises
        IndexFault."""
        loop = asyncio.get_running_loop()
        if await loop.run_in_executor(None, self._opens, local):
            self.lose(local, "recovery has it compared")
        else:
            # nobody is to be told that it is empty
            self.held[local].standing.copying()
            await self.act(lambda: self.stock().write(local, [Drop()]))
            await loop.run_in_executor(None, self.notes.end, local)
            await loop.run_in_executor(None, self.notes.leave_note, "dropped", local, "")
        await loop.run_in_executor(None, self.notes.leave_note, "sync", local, self.held[local].called)

    def _opens(self, local: str) -> bool:
        try:
            return self.stock().get(local) is not None
        except IndexFault:
            return False

    # --- up and down -----------------------------------------------------------------------------------------------

    def ready(self) -> None:
        """Read how the copies stood, and make ready to tap. Reads disk: call it in a thread."""
        self.read_anew()
        self._ready = TapMark(self.taps)
        self.touches.open()

    def start(self) -> None:
        """Begin to tap; what passes is applied once the lane is started, too."""
        self._mark, self._ready = self._ready, None

    def learn(self, described: Described) -> None:
        """Know a collection by what its database calls it, too."""
        if described.handle != described.name:
            self.by_handle[described.handle] = described.name
            if self.handles is not None:
                new = self.handles.learn([Learnt(described.handle, described.name)])
                if new:
                    asyncio.get_running_loop().run_in_executor(None, self.handles.keep, new)

    @property
    def is_unsaved(self) -> bool:
        """Whether a copy fell behind since how they stand was last written."""
        return self._unsaved

    async def stop(self) -> None:
        """Apply what waits, write down how the copies stand, and leave."""
        clean = await self.lane.stop(STOP_S_MAX)
        if self._mark is not None:
            self._mark.close(clean=clean and not self.is_open and not self._under_way)
            self._mark = None
        self.touches.close()
        if self.is_keeper:
            self.save(durable=True)
            self.notes.leave()

    @property
    def is_keeper(self) -> bool:
        """Whether this process copies and compares."""
        return self.notes.keeps

    @property
    def taps(self) -> Path:
        """Where the processes that tap leave their marks."""
        return self.notes.folder / "taps"

    def read_anew(self) -> None:
        """`read` for the first time, with what no keeper has written down yet: that a process died in the middle."""
        self.read(lost_at=self.wall() if the_dead(self.taps).in_the_middle else 0.0)

    def read(self, *, lost_at: float = 0.0) -> None:
        """Take in how the copies stand, as the keeper has written it, and behind since `lost_at` unless it is 0."""
        # first what the keeper has not written down yet: between the two it may do so
        newborn = self._hear_of_born()
        there = self.notes.standings().copies
        for local in self.held.keys() - there.keys() - newborn:
            self.held.pop(local, None)
        for local, note in there.items():
            if local in newborn or self.notes.has_note("dropped", local):
                continue
            held = self.held.get(local)
            if held is None:
                held = self.held[local] = Held(note.called, Standing())
            self._stand(held, note, lost_at)

    def _hear_of_born(self) -> set[str]:
        """Know the copies that the keeper has not taken on since they were made; which they are."""
        newborn = self.notes.take_notes("born")
        for local, as_of in newborn.items():
            if local not in self.held:
                self.held[local] = born(self._called(local), float(as_of))
        return set(newborn)

    def take_on_born(self) -> None:
        """As the keeper: write down those that were made with their collections."""
        newborn = self._hear_of_born()
        self.save(durable=True)
        for local in newborn:
            self.notes.clear_note("born", local)

    def _stand(self, held: Held, note: CopyNote, lost_at: float = 0.0) -> None:
        held.refused = note.refused
        standing = held.standing
        standing.behind_since = note.behind_since or lost_at
        standing.why = note.why if note.behind_since or not lost_at else DIED
        standing.whole, standing.walked_at, standing.as_of = note.whole, note.walked_at, note.as_of

    def save(self, *, durable: bool) -> None:
        """Write down how the copies stand. `durable`: also should the machine fail the next moment."""
        with self._saving:
            self._save(durable=durable)

    def _save(self, *, durable: bool) -> None:
        copies = {
            local: CopyNote(
                held.called,
                held.standing.whole,
                held.standing.as_of,
                held.standing.walked_at,
                held.standing.behind_since,
                held.standing.why,
                held.refused,
            )
            for local, held in list(self.held.items())
        }
        standings = Standings(copies)
        if standings == self._written and not durable:
            return
        self._written = standings
        # what has come up by now is in it
        unsaved, self._unsaved = self._unsaved, False
        try:
            self.notes.write_standings(standings, durable=durable or unsaved)
        except OSError as error:
            self._unsaved = unsaved
            log.warning("route %s: how its copies stand could not be written: %s", self.name, error)

    def _heard_of(self, local: str) -> Held | None:
        """A copy, as the keeper has written of it since our last look: half of one is not to answer, a whole one is."""
        if not self.is_keeper and self.clock() >= self._read_at + READ_S_MIN:
            self._read_at = self.clock()
            self.read()
        return self.held.get(local)

    # --- what it says ----------------------------------------------------------------------------------------------

    def check_fresh(self, local: str) -> float | None:
        """How many seconds a copy is stale, None for one that is no mirror's. Raises Refused for one that is not whole
        yet, or staler than the policy allows."""
        held = self.held.get(local)
        if held is None or not held.standing.whole:
            held = self._heard_of(local)
        if held is None:
            return None
        if not held.standing.whole:
            raise Refused("syncing", f"the copy of {local!r} is not whole yet")
        staleness_s = held.standing.staleness_s(self.wall())
        bound_s = self.rules.staleness_s_max
        if bound_s is not None and staleness_s > bound_s:
            raise Refused("stale", f"the copy of {local!r} is {staleness_s:.0f} s behind, more than {bound_s:g} s")
        return staleness_s


__all__ = ["COPIES_MAX", "Changing", "Held", "IndexFault", "Mirror", "Tapping"]
