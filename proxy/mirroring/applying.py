"""Apply to the copies what has passed, in its order, and put right what a comparison finds: all of it in one thread.

    Passed    a write that the database said yes to        its changes are applied
    Doubtful  one of which nobody knows what became        its points are named, for somebody to look them up
    Found     points as the database has them              what differs is put right, but for what a write has touched
    Act       anything else that needs its turn

What was read from the database may be older than a write that has been applied since. So whoever brings points says
when their reading began, and those that a write has touched since then, or shortly before, are left as they are.
"""

from __future__ import annotations

import logging
from asyncio import Future
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

from understudy.indexes.faults import BadPoint, IndexFault, WrongDimension
from understudy.indexes.points import Payload, Point, PointId, Vector, is_derived
from understudy.indexes.writes import (
    LEFT_OUT,
    Change,
    Create,
    Delete,
    Drop,
    DropPayload,
    PutPayload,
    PutVectors,
    Upsert,
    VectorShape,
    Which,
    Write,
    fitted,
    sole,
)
from understudy.policies.mirror import Standing
from understudy.policies.service import Answer, Call, Refused
from understudy.proxy.dialects.base import Malformed
from understudy.proxy.mirroring.comparing import same
from understudy.proxy.mirroring.touches import Touches

log = logging.getLogger("understudy.mirror")

OWNER = "mirror"
"""What a copy notes of itself: the route whose mirror it is."""
TOUCHED_MAX = 50_000
"""Points of one copy that are remembered as written lately."""
SCROLL_POINTS = 1_000
TEXT_POINTS_MAX = 20_000
"""Points whose text one write to a payload may change; more are left to a comparison."""


class Copy(Protocol):
    """As much of a Collection as mirroring uses."""

    @property
    def count(self) -> int: ...
    @property
    def is_flooded(self) -> bool:
        """Whether whoever can wait with writing more should."""
        ...

    @property
    def shapes(self) -> Mapping[str, object]: ...
    @property
    def notes(self) -> Mapping[str, Any]: ...
    def get(self, ids: Sequence[PointId], *, with_vectors: bool = False) -> Sequence[Point]: ...
    def scroll(
        self, from_id: PointId | None, limit: int, filter: object = None, *, with_vectors: bool = False
    ) -> tuple[Sequence[Point], PointId | None]: ...


class Stock(Protocol):
    """As much of a Library as mirroring uses. Any thread may call it."""

    def get(self, name: str) -> Copy | None: ...
    def write(self, name: str, writes: Sequence[Write], *, space: str = "") -> object:
        """Apply them all, durable and visible when it returns; `space` is that of vectors whose shape is not known
        yet. Raises IndexFault."""
        ...


class Changing(Protocol):
    """As much of a dialect as mirroring uses."""

    def changes(self, call: Call) -> tuple[Change, ...]: ...
    def applied(self, call: Call, answer: Answer) -> tuple[Change, ...]: ...


class Naming(Protocol):
    """Which local copy a database's collection has; None for one that is not mirrored. Raises KeyError for a name that
    nobody knows."""

    def local_of(self, called: str, *, is_name: bool = False) -> str | None: ...
    def is_kept(self, local: str) -> bool:
        """Whether writes are to be applied: it is whole, or is being copied."""
        ...

    def may_create(self, local: str) -> bool: ...
    def look_again(self) -> None:
        """Hear of copies that other processes have begun."""
        ...

    def born(self, local: str, *, whole: bool) -> None:
        """A copy is made, with its collection; not `whole` where writes passed before it was."""
        ...

    def gone(self, local: str) -> None:
        """A copy is dropped, with its collection."""
        ...


# --- jobs and what comes of them -----------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Passed:
    """A write and the 2xx answer to it. `began` and `ended` on the loop's clock, `passed_at` since the epoch;
    `concerned` are the copies that it may be about."""

    call: Call
    answer: Answer
    began: float
    ended: float
    passed_at: float
    concerned: Sequence[Standing] = ()


@dataclass(slots=True, eq=False)
class Doubtful:
    """A write that may have been carried out, or not, or in part."""

    call: Call
    began: float
    ended: float


@dataclass(slots=True, eq=False)
class Found:
    """`points` as the database had them at `began` or later, and the ids that were `asked` for by name: what of them
    is not among the points is not there. `shapes` are its vectors. `told` is given the Verdict."""

    local: str
    points: Sequence[Point]
    began: float
    shapes: Mapping[str, VectorShape]
    told: Future[Verdict]
    asked: Sequence[PointId] = ()


@dataclass(slots=True, eq=False)
class Act:
    """Something that has to wait for its turn among the writes."""

    act: Callable[[], Any]
    told: Future[Any]


Job = Passed | Doubtful | Found | Act


@dataclass(slots=True)
class Verdict:
    """`changed` points were put right. `again`: nobody knows which points a write has touched meanwhile, read them
    anew. `skipped` were touched, and are to be looked up later."""

    changed: int = 0
    again: bool = False
    skipped: list[PointId] = field(default_factory=list[PointId])


@dataclass(slots=True)
class Outcome:
    """What came of a job: the copies created and dropped, points of unknown state, what made a copy fall behind, how
    many points were written, and whether a filter chose them. `unknown`: a collection that we have not heard of.
    `missed` are copies that are not there yet, and were written to. Names are local ones; lost[""] is all of them."""

    created: list[str] = field(default_factory=list[str])
    dropped: list[str] = field(default_factory=list[str])
    unsure: dict[str, list[PointId]] = field(default_factory=dict[str, "list[PointId]"])
    lost: dict[str, str] = field(default_factory=dict[str, str])
    points: int = 0
    wide: bool = False
    unknown: bool = False
    missed: list[str] = field(default_factory=list[str])
    verdict: Verdict | None = None
    value: Any = None
    error: Exception | None = None


class _Touched:
    """What writes have touched lately in one copy: ids with the moments at which each write began and was answered."""

    __slots__ = ("forgotten", "ids", "last", "wide")

    def __init__(self) -> None:
        self.ids: OrderedDict[PointId, tuple[float, float]] = OrderedDict()
        self.wide = float("-inf")
        self.last = float("-inf")
        self.forgotten = float("-inf")

    def add(self, ids: Iterable[PointId], began: float, ended: float) -> list[PointId]:
        """Remember a write; the ids that another write was under way to at the same time."""
        met: list[PointId] = []
        for each in ids:
            before = self.ids.get(each)
            if before is not None and before[1] > began:
                met.append(each)
            self.ids[each] = (began, ended)
            self.ids.move_to_end(each)
        while len(self.ids) > TOUCHED_MAX:
            _, (_, at) = self.ids.popitem(last=False)
            self.forgotten = max(self.forgotten, at)
        self.last = max(self.last, ended)
        return met


class Applier:
    """Runs jobs, in one thread, one batch after the other. `listener` is told of points with words, by their copy."""

    def __init__(
        self,
        dialect: Changing,
        naming: Naming,
        stock: Callable[[], Stock],
        *,
        space: str,
        text: Sequence[str] = (),
        settle_s: float = 2.0,
        fits: bool = False,
        owner: str = "",
        touches: Touches | None = None,
        listener: Callable[[str, Sequence[Point]], None] | None = None,
    ) -> None:
        self.dialect = dialect
        self.naming = naming
        self.stock = stock
        self.space = space
        self.text = tuple(text)
        self.settle_s = settle_s
        self.fits = fits
        self.owner = owner
        self.touches = touches
        self.listener = listener
        self._touched: dict[str, _Touched] = {}

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """What came of each. Raises nothing: what goes wrong is part of the outcome."""
        with nullcontext() if self.touches is None else self.touches.locked():
            return self._run(jobs)

    def _run(self, jobs: Sequence[Job]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        together = _Together(self.write)
        for job in jobs:
            outcome = Outcome()
            outcomes.append(outcome)
            try:
                self._one(job, outcome, together)
            except (IndexFault, Refused) as why:
                outcome.error = why
                outcome.lost[""] = str(why)
            except Exception as error:
                log.exception("an error of our own in a mirror")
                outcome.error = error
                outcome.lost[""] = f"an error of our own: {type(error).__name__}"
        together.flush()
        return outcomes

    def _one(self, job: Job, outcome: Outcome, together: _Together) -> None:
        if isinstance(job, Passed):
            self._passed(job, outcome, together)
        elif isinstance(job, Doubtful):
            self._doubtful(job, outcome)
        else:
            # what is compared must stand there
            together.flush()
            try:
                if isinstance(job, Found):
                    outcome.verdict = self._found(job)
                    outcome.points = outcome.verdict.changed
                else:
                    outcome.value = job.act()
            except (IndexFault, Refused) as why:
                # of one who waits for it, and knows what to make of it
                outcome.error = why

    def write(self, local: str, writes: Sequence[Write]) -> None:
        """Write to a copy. Raises IndexFault."""
        self.stock().write(local, writes, space=self.space)

    # --- writes ----------------------------------------------------------------------------------------------------

    def _read(
        self, job: Passed | Doubtful, changes: Callable[[], tuple[Change, ...]], outcome: Outcome
    ) -> list[tuple[str, Write]]:
        """What a request changes in the copies, by local name."""
        try:
            read = changes()
        except (Malformed, Refused) as why:
            outcome.lost[""] = f"a write that only the database understands: {why}"
            return []
        found: list[tuple[str, Write]] = []
        for change in read:
            is_whole = isinstance(change.write, Create | Drop)
            try:
                local = self.naming.local_of(change.collection, is_name=is_whole)
            except KeyError:
                # a collection that came to be where we do not look, or before we did
                outcome.unknown = True
                continue
            if local is None:
                continue
            if not is_whole and not self._is_there(local, job, outcome):
                continue
            found.append((local, self._fitted(local, change.write)))
        return found

    def _is_there(self, local: str, job: Passed | Doubtful, outcome: Outcome) -> bool:
        """Whether there is a copy to write to: another process may have begun it a moment ago."""
        if not self.naming.is_kept(local) and self.naming.may_create(local):
            self.naming.look_again()
        if self.naming.is_kept(local):
            if self.stock().get(local) is not None:
                return True
            # the first copy is about to be made, or somebody has removed it
            outcome.lost[local] = "a write passed before there was a copy"
        elif not self.naming.may_create(local):
            return False
        else:
            outcome.missed.append(local)
        # whoever begins the copy is to know that what it reads, or takes for empty, may be older than this write
        touched = self._touched.setdefault(local, _Touched())
        touched.wide = max(touched.wide, job.ended)
        if self.touches is not None:
            self.touches.add(local, None, job.began, job.ended)
        return False

    def _fitted(self, local: str, write: Write) -> Write:
        """A document's numbers are vectors where the collection has vectors of their names; a vector without a name is
        the only one that the collection has."""
        copy = None if isinstance(write, Create | Drop) else self.stock().get(local)
        if copy is None:
            return write
        if self.fits:
            return fitted(write, [name for name in copy.shapes if name], left_out(copy.notes))
        return sole(write, [name for name in copy.shapes if not is_derived(name)])

    def _passed(self, job: Passed, outcome: Outcome, together: _Together) -> None:
        for local, write in self._read(job, lambda: self.dialect.applied(job.call, job.answer), outcome):
            if isinstance(write, Create):
                self._create(local, write, job, outcome, together)
            elif isinstance(write, Drop):
                together.add(local, Drop(), outcome)
                self._touched.pop(local, None)
                self.naming.gone(local)
                outcome.dropped.append(local)
            else:
                self._touch(local, write, job.began, job.ended, outcome)
                self._write(local, write, outcome, together)

    def _create(self, local: str, write: Create, job: Passed, outcome: Outcome, together: _Together) -> None:
        together.flush()
        self.naming.look_again()
        if self.stock().get(local) is not None or not self.naming.may_create(local):
            # what was there before, and what "get or create" finds there, stays
            return
        together.add(local, self.placed(write), outcome)
        # what is written to it within this batch is to find it there
        together.flush()
        if local in outcome.lost:
            return
        touched = self._touched.get(local)
        missed = touched is not None and touched.wide >= job.began
        if self.touches is not None and not missed:
            missed = self.touches.touched(local, [], job.began) is None
        self.naming.born(local, whole=not missed)
        outcome.created.append(local)

    def placed(self, write: Create) -> Create:
        """A collection as it is created here: its vectors are of the route's space."""
        vectors = {name: replace(shape, space=self.space) for name, shape in write.vectors.items()}
        return replace(write, vectors=vectors, notes={**write.notes, "space": self.space, OWNER: self.owner})

    def _write(self, local: str, write: Write, outcome: Outcome, together: _Together) -> None:
        if isinstance(write, Upsert):
            write = replace(write, points=self.texted(write.points))
            together.add(local, write, outcome)
            self._tell(local, write.points)
        elif isinstance(write, PutPayload | DropPayload) and self._changes_text(write):
            self._write_text(local, write, outcome, together)
        else:
            together.add(local, write, outcome)

    def _write_text(self, local: str, write: PutPayload | DropPayload, outcome: Outcome, together: _Together) -> None:
        """A write to the fields that a point is found by: its text is made anew."""
        together.flush()
        copy = self.stock().get(local)
        ids = write.which.ids or (() if copy is None else self._ids_of(copy, write.which))
        together.add(local, write, outcome)
        together.flush()
        if copy is None or ids is None:
            outcome.lost[local] = "a write changes the words of too many points"
            return
        copy = self.stock().get(local)
        points = () if copy is None else copy.get(ids, with_vectors=True)
        points = self.texted([replace(point, text="", named=_given(point)) for point in points])
        if points:
            together.add(local, Upsert(points), outcome)
            self._tell(local, points)

    def _ids_of(self, copy: Copy, which: Which) -> Sequence[PointId] | None:
        ids: list[PointId] = []
        following: PointId | None = None
        while True:
            points, following = copy.scroll(following, SCROLL_POINTS, which.filter)
            ids += [point.id for point in points]
            if following is None:
                return ids
            if len(ids) > TEXT_POINTS_MAX:
                return None

    def _changes_text(self, write: PutPayload | DropPayload) -> bool:
        if not self.text:
            return False
        if isinstance(write, DropPayload):
            return not write.keys or any(self._is_of_text(key) for key in write.keys)
        return write.replace or any(map(self._is_of_text, [write.key] if write.key else write.payload))

    def _is_of_text(self, key: str) -> bool:
        """Whether a payload's key is above, below or one of the fields that a point is found by."""
        if "[" in key:
            return True
        # a dialect may quote the names of a path
        key = key.replace('"', "")
        return any(f"{key}.".startswith(f"{each}.") or f"{each}.".startswith(f"{key}.") for each in self.text)

    def texted(self, points: Sequence[Point]) -> tuple[Point, ...]:
        """The points with the words they are found by, where their dialect has not said them."""
        if not self.text:
            return tuple(points)
        return tuple(point if point.text else replace(point, text=words(point.payload, self.text)) for point in points)

    def _tell(self, local: str, points: Sequence[Point]) -> None:
        if self.listener is None:
            return
        with_words = [point for point in points if point.text]
        if with_words:
            self.listener(local, with_words)

    # --- what was touched ------------------------------------------------------------------------------------------

    def _touch(self, local: str, write: Write, began: float, ended: float, outcome: Outcome) -> None:
        touched = self._touched.setdefault(local, _Touched())
        ids = ids_of(write)
        crossed = touched.wide > began or (ids is None and touched.last > began)
        if ids is None:
            touched.wide = max(touched.wide, ended)
            touched.last = max(touched.last, ended)
            outcome.wide = True
        else:
            outcome.points += len(ids)
            met = touched.add(ids, began, ended)
            if met:
                # the database may have carried them out in another order than it answered them in
                outcome.unsure.setdefault(local, []).extend(met)
        if crossed:
            outcome.lost[local] = "a write by filter crossed another"
        self._share(local, ids, began, ended, outcome)

    def _share(self, local: str, ids: list[PointId] | None, began: float, ended: float, outcome: Outcome) -> None:
        """Tell the other processes, and hear whether a write of theirs crossed this one."""
        if self.touches is None:
            return
        self.touches.add(local, ids, began, ended)
        met = self.touches.touched(local, ids or [], began)
        if met is None:
            outcome.lost[local] = "a write by filter crossed another"
        elif met:
            outcome.unsure.setdefault(local, []).extend(met)

    def _doubtful(self, job: Doubtful, outcome: Outcome) -> None:
        for local, write in self._read(job, lambda: self.dialect.changes(job.call), outcome):
            ids = ids_of(write)
            touched = self._touched.setdefault(local, _Touched())
            if ids is None:
                touched.wide = max(touched.wide, job.ended)
                outcome.lost[local] = "a write by filter of unknown outcome"
                self._share(local, None, job.began, job.ended, outcome)
            else:
                touched.add(ids, job.began, job.ended)
                self._share(local, ids, job.began, job.ended, outcome)
                outcome.unsure.setdefault(local, []).extend(ids)

    # --- comparing -------------------------------------------------------------------------------------------------

    def _found(self, job: Found) -> Verdict:
        """Put right what differs. Raises IndexFault."""
        copy = self.stock().get(job.local)
        if copy is None:
            raise IndexFault(f"collection {job.local!r} is gone")
        touched = self._touched.get(job.local) or _Touched()
        since = job.began - self.settle_s
        if max(touched.wide, touched.forgotten) >= since:
            return Verdict(again=True)
        # ids as their dialect spells them: only to some of these databases are two spellings of a UUID one
        there = {point.id: point for point in self.texted(job.points)}
        ids = dict.fromkeys([*there, *job.asked])
        skipped = {each for each in ids if each in touched.ids and touched.ids[each][1] >= since}
        if self.touches is not None:
            theirs = self.touches.touched(job.local, list(ids), since)
            if theirs is None:
                return Verdict(again=True)
            skipped.update(theirs)
        verdict = Verdict(skipped=[each for each in ids if each in skipped])
        compared = [each for each in ids if each not in skipped]
        have = {point.id: point for point in copy.get(compared, with_vectors=True)}
        put = [there[each] for each in compared if each in there and not same(there[each], have.get(each), job.shapes)]
        gone = tuple(have[each].id for each in compared if each not in there and each in have)
        writes: list[Write] = [Upsert(tuple(put))] if put else []
        writes += [Delete(Which(gone))] if gone else []
        if writes:
            self.write(job.local, writes)
            self._tell(job.local, put)
        verdict.changed = len(put) + len(gone)
        return verdict


class _Together:
    """Writes to one copy that come one after the other are made as one, which costs one flush to disk."""

    def __init__(self, write: Callable[[str, Sequence[Write]], None]) -> None:
        self._write = write
        self._local = ""
        self._writes: list[tuple[Write, Outcome]] = []

    def add(self, local: str, write: Write, outcome: Outcome) -> None:
        if local != self._local:
            self.flush()
        self._local = local
        self._writes.append((write, outcome))

    def flush(self) -> None:
        writes, self._writes = self._writes, []
        if not writes:
            return
        try:
            self._write(self._local, [write for write, _ in writes])
        except IndexFault:
            # one of them will not do: the others shall
            for write, outcome in writes:
                self._alone(write, outcome)
        except Refused as why:
            for _, outcome in writes:
                outcome.lost[self._local] = why.detail

    def _alone(self, write: Write, outcome: Outcome) -> None:
        try:
            self._write(self._local, [write])
        except IndexFault as fault:
            outcome.lost[self._local] = str(fault)
            if isinstance(fault, BadPoint | WrongDimension):
                log.warning("collection %s: a write could not be mirrored: %s", self._local, fault)


def ids_of(write: Write) -> list[PointId] | None:
    """The points that a write is about; None where a filter, or the whole, decides."""
    if isinstance(write, Upsert | PutVectors):
        return [point.id for point in write.points]
    if isinstance(write, Create | Drop):
        return None
    which: Which = write.which
    return None if which.filter is not None else list(which.ids)


def left_out(notes: Mapping[str, Any]) -> frozenset[str]:
    """The fields of a database's documents that a copy holds nothing of, as its notes say."""
    return frozenset(cast("Iterable[str]", notes.get(LEFT_OUT, ())))


def words(payload: Payload, fields: Sequence[str]) -> str:
    """The texts of these fields (`a.b` is b within a), one below the other; of a list, each."""
    found: list[str] = []
    for name in fields:
        value: Any = payload
        for part in name.split("."):
            value = cast("Payload", value).get(part) if isinstance(value, dict) else None
        for each in cast("list[Any]", value) if isinstance(value, list) else [value]:
            found += [each] if isinstance(each, str) and each else []
    return "\n".join(found)


def _given(point: Point) -> dict[str, Vector]:
    """A point's vectors without those that were made here of words it no longer has."""
    return {name: vector for name, vector in point.named.items() if not is_derived(name)}
