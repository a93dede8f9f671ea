"""Compare a copy with its database, point by point or by sample, and put it right.

    walk    page by page: compared and put right, its ids noted, then the cursor  --crash--> goes on at the cursor
            then what the copy has beyond the noted ids is looked up by id, and dropped where the database has it not
    check   numbers of points; one page of the database's points; as many of the copy's, looked up by id
    unsure  the points of unknown state, looked up by id

A first copy is a walk over nothing. Points are put in their turn among the writes that pass (see `applying`), so that
nothing older overwrites something newer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from understudy.indexes.arrays import among
from understudy.indexes.points import PointId
from understudy.indexes.writes import UNFINISHED, Create
from understudy.proxy.mirroring.applying import Verdict
from understudy.proxy.mirroring.mirror import Held, Mirror
from understudy.proxy.mirroring.notes import WalkNote, fingerprint
from understudy.proxy.mirroring.source import PAGE_POINTS_MAX, Described, Gone, Page, Source, Unmirrorable

AGAIN_MAX = 5
"""Readings of one page that a write by filter may spoil; then its points are looked up later."""
LISTED_POINTS = 1_000
WIPED_POINTS_MIN, WIPED_SHARE = 1_000, 0.5
"""A database that lacks more than this is more likely to have lost its points than to have been told to."""

FLOODED_S = 0.2
FLOODED_LOOKS_MAX = 300
"""So often a walk looks whether what it has written is compacted, page by page, before it goes on all the same."""

log = logging.getLogger("understudy.mirror")

Progress = Callable[[str, int, int, int], None]
"""Told after every page: the collection, points seen, points there are, points put right."""


class Wiped(Exception):
    """The database lacks most of what the copy has; nothing was dropped."""


class Walker:
    """Compares the copies of one mirror with their source. `paced` waits until so many more points may be read."""

    def __init__(
        self,
        mirror: Mirror,
        source: Source,
        paced: Callable[[int], Awaitable[None]],
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        progress: Progress | None = None,
        prune: bool = False,
    ) -> None:
        self.mirror = mirror
        self.source = source
        self.prune = prune
        self._paced = paced
        self._sleep = sleep
        self._progress = progress

    # --- the whole -------------------------------------------------------------------------------------------------

    async def copy(self, local: str, held: Held) -> None:
        """Make the first copy, or go on with it. Raises SourceFailed, Unmirrorable, IndexFault."""
        described = await self._described(held)
        if described.count > self.mirror.rules.points_max:
            bound = self.mirror.rules.points_max
            raise Unmirrorable(f"{described.count} points, more than points_max: {bound}")
        held.standing.copying()
        # on disk before the first point is: half a copy must not be taken for a whole one after a crash
        await self._in_thread(lambda: self.mirror.save(durable=True))

        def create() -> None:
            if self.mirror.stock().get(local) is None:
                notes = {**described.notes, UNFINISHED: True}
                create = self.mirror.applier.placed(Create(described.vectors, notes))
                self.mirror.applier.write(local, [create])

        await self.mirror.act(create)
        await self.walk(local, held, first=True)

    async def walk(self, local: str, held: Held, *, first: bool = False) -> None:
        """Compare every point; in the `first` copy none was wrong.

        Raises SourceFailed, Unmirrorable, IndexFault, Wiped.
        """
        mirror, notes = self.mirror, self.mirror.notes
        described = await self._described(held)
        note = await self._in_thread(lambda: notes.walk(local))
        if note is None:
            note = WalkNote(mirror.wall(), total=described.count)
            await self._in_thread(lambda: notes.begin(local, note))
        else:
            log.info("collection %s: going on with %d of %d points seen", local, note.seen, note.total)
        note.total = described.count
        while True:
            page = await self._page(local, held, described, note)
            if page is not None and not page.cursor:
                break
        changed = await self._beyond(local, held, described)
        note.changed += changed
        if first:
            await self.mirror.act(lambda: self._finished(local))
        await self._in_thread(lambda: notes.end(local))
        held.repaired += 0 if first else note.changed
        held.standing.walked(note.began, mirror.wall())
        # whether the numbers agree now says a check, soon: pages may have shifted under deletes
        held.standing.checked_at = 0.0
        await self._in_thread(lambda: mirror.save(durable=True))
        log.info("collection %s: %d points compared, %d put right", local, note.seen, note.changed)

    def _finished(self, local: str) -> None:
        """From here on the copy is asked."""
        copy = self.mirror.stock().get(local)
        if copy is not None and copy.notes.get(UNFINISHED):
            self.mirror.applier.write(local, [Create(notes={UNFINISHED: False})])

    async def _page(self, local: str, held: Held, described: Described, note: WalkNote) -> Page | None:
        """Read, compare and note one page; None where the walk has to begin anew."""
        try:
            page, verdict = await self._compared(local, held, described, note.cursor)
        except Gone:
            if not note.cursor:
                raise
            # a cursor that the database has forgotten: begin anew, what is the same is not written again
            fresh = WalkNote(note.began, total=described.count)
            note.cursor, note.seen = fresh.cursor, fresh.seen
            await self._in_thread(lambda: self.mirror.notes.begin(local, fresh))
            return None
        note.cursor = page.cursor
        note.changed += verdict.changed
        await self._in_thread(lambda: self.mirror.notes.advance(local, note, [point.id for point in page.points]))
        held.compared += len(page.points)
        if self._progress is not None:
            self._progress(local, note.seen, max(note.total, note.seen), note.changed)
        await self._paced(len(page.points))
        if verdict.changed:
            await self._until_compacted(local)
        return page

    async def _until_compacted(self, local: str) -> None:
        """A database may be read faster than its copy is compacted, and what is not yet takes the most memory."""
        for _ in range(FLOODED_LOOKS_MAX):
            copy = await self._in_thread(lambda: self.mirror.stock().get(local))
            if copy is None or not copy.is_flooded:
                return
            await self._sleep(FLOODED_S)

    async def _compared(
        self, local: str, held: Held, described: Described, cursor: str, limit: int = 0
    ) -> tuple[Page, Verdict]:
        attempts = 0
        while True:
            attempts += 1
            began = self.mirror.clock()
            page = await self.source.page(described, cursor, limit or described.page_points)
            verdict: Verdict = await self.mirror.put_right(local, page.points, began, described)
            if not verdict.again or attempts == AGAIN_MAX:
                skipped = [point.id for point in page.points] if verdict.again else verdict.skipped
                held.standing.doubt(skipped, self.mirror.wall())
                return page, verdict
            await self._sleep(max(self.mirror.rules.settle_s, 0.05))

    async def _beyond(self, local: str, held: Held, described: Described) -> int:
        """Look up what the copy has and the walk has not seen; how many of those were put right."""
        extras, count = await self._in_thread(lambda: self._unseen(local))
        if _looks_wiped(len(extras), count) and not self.prune:
            raise Wiped(f"the database lacks {len(extras)} of {count} points; `index sync --prune` drops them here too")
        return await self._look_up(local, held, described, extras)

    def _unseen(self, local: str) -> tuple[list[PointId], int]:
        """The copy's ids that no page had. In a thread: a million take seconds."""
        copy = self.mirror.stock().get(local)
        if copy is None:
            return [], 0
        seen = self.mirror.notes.seen(local)
        extras: list[PointId] = []
        following: PointId | None = None
        while True:
            points, following = copy.scroll(following, LISTED_POINTS)
            prints = np.frombuffer(b"".join(fingerprint(point.id) for point in points), np.uint64)
            unseen = np.flatnonzero(~among(prints, seen, is_sorted=True))
            extras += [points[int(row)].id for row in unseen]
            if following is None:
                return extras, copy.count

    async def _look_up(self, local: str, held: Held, described: Described, ids: Sequence[PointId]) -> int:
        """Have the copy be as the database is under these ids; how many points were put right."""
        changed = 0
        for at in range(0, len(ids), described.page_points):
            some = ids[at : at + described.page_points]
            began, since = self.mirror.clock(), self.mirror.wall()
            points = await self.source.fetch(described, some)
            verdict: Verdict = await self.mirror.put_right(local, points, began, described, asked=some)
            held.standing.sure(some, since)
            held.standing.doubt(some if verdict.again else verdict.skipped, self.mirror.wall())
            changed += verdict.changed
            await self._paced(len(some))
        return changed

    # --- samples ---------------------------------------------------------------------------------------------------

    async def look_up_unsure(self, local: str, held: Held) -> None:
        """Look up the points of unknown state whose time has come. Raises SourceFailed, IndexFault."""
        described = held.described or await self._described(held)
        due_at = self.mirror.wall() - self.mirror.rules.settle_s
        due: list[Any] = [each for each, since in held.standing.unsure.items() if since <= due_at]
        changed = await self._look_up(local, held, described, due)
        held.repaired += changed
        held.standing.heard(self.mirror.wall())

    async def check(self, local: str, held: Held) -> None:
        """Compare numbers and samples. Raises SourceFailed, Unmirrorable, IndexFault."""
        began = self.mirror.wall()
        limit = min(self.mirror.rules.sample_max, PAGE_POINTS_MAX)
        counts = self.mirror.counts
        points, wide = counts.points, counts.wide
        # so that what passed before is settled, and what passes from here on is known
        await self._sleep(self.mirror.rules.settle_s)
        before = await self._counted(local)
        described = await self._described(held)
        after = await self._counted(local)
        slack = counts.points - points + len(held.standing.unsure) + held.standing.waiting
        uncountable = counts.wide != wide
        # writes may be on their way between the two counts
        low, high = min(before, after) - slack, max(before, after) + slack
        within = uncountable or low <= described.count <= high
        difference = 0 if within else described.count - (low if described.count < low else high)
        changed = 0
        if not _looks_wiped(-difference, after):
            changed = await self._sample_of_source(local, held, described, limit)
            changed += await self._sample_of_copy(local, held, described, limit)
        held.repaired += changed
        held.standing.checked(began, self.mirror.wall(), difference, same=changed == 0)

    async def _counted(self, local: str) -> int:
        def counted() -> int:
            copy = self.mirror.stock().get(local)
            return 0 if copy is None else copy.count

        return await self.mirror.act(counted)

    async def _sample_of_source(self, local: str, held: Held, described: Described, limit: int) -> int:
        try:
            page, verdict = await self._compared(local, held, described, held.source_from, limit)
        except Gone:
            if not held.source_from:
                raise
            held.source_from = ""
            return 0
        held.source_from = page.cursor
        held.compared += len(page.points)
        return verdict.changed

    async def _sample_of_copy(self, local: str, held: Held, described: Described, limit: int) -> int:
        def sampled() -> tuple[list[PointId], PointId | None]:
            copy = self.mirror.stock().get(local)
            points, following = ((), None) if copy is None else copy.scroll(held.local_from, limit)
            return [point.id for point in points], following

        ids, held.local_from = await self._in_thread(sampled)
        return await self._look_up(local, held, described, ids)

    # --- small parts -------------------------------------------------------------------------------------------------

    async def _described(self, held: Held) -> Described:
        held.described = await self.source.described(held.called)
        return held.described

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, work)


def _looks_wiped(missing: int, count: int) -> bool:
    """Whether a database that lacks `missing` of a copy's points has rather lost them than dropped them."""
    return missing > max(WIPED_POINTS_MIN, WIPED_SHARE * count)
