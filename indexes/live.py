"""Hold a collection as it stands: the frozen generation, and what the journal says was written since.

    CURRENT -> generation ---+
                             +--> frozen rows, tombstones, live tail --view--> readers
    journal, entry by entry -+

Only one thread at a time may change it; its views may be read from any.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from understudy.indexes.arrays import distinct
from understudy.indexes.faults import CorruptIndex
from understudy.indexes.frozen import Frozen
from understudy.indexes.generation import current_name, find_generation
from understudy.indexes.journal import JOURNAL, Journal, Position
from understudy.indexes.records import Batch, KeptShape, batch_of
from understudy.indexes.tail import Tail
from understudy.indexes.vectors import EXACT_BELOW, Mask
from understudy.indexes.view import View
from understudy.indexes.writes import UNFINISHED

_OPEN_ATTEMPTS = 3

_log = logging.getLogger(__name__)


class Live:
    """One collection at one moment, and the way on to the next."""

    def __init__(self, name: str, frozen: Frozen | None, journal: Journal, known: Tail | None = None) -> None:
        self.name = name
        self.frozen = frozen
        self.shapes: dict[str, KeptShape] = {} if frozen is None else dict(frozen.shapes)
        self.notes: dict[str, Any] = {} if frozen is None else dict(frozen.notes)
        self.damage: dict[str, str] = {} if frozen is None else frozen.damage
        self.tail = Tail(self.shapes)
        self.position: Position = journal.start_after(0 if frozen is None else frozen.through)
        self.tombstones = 0
        self._alive: Mask | None = None
        self._journal = journal
        self._known = known

    @classmethod
    def open(cls, folder: Path, *, exact_below: int, create: bool = False, known: Tail | None = None) -> Live:
        """Open what is in `folder`: every file is verified, and the journal read to its end. Records that the tail
        `known` holds as well are held once, until `forget_known`.

        Raises CorruptIndex, listing what is wrong, if nothing can be served; with `create` an empty folder can.
        """
        reasons: list[str] = []
        journal = Journal(folder)
        for _ in range(_OPEN_ATTEMPTS):
            reasons.clear()
            seen = current_name(folder)
            try:
                generation = find_generation(folder, reasons)
                # everything may be in the journal still, from its very first entry
                if generation is not None or create or journal.begins_at() == 1:
                    _warn(folder, reasons if generation is not None else [])
                    frozen = None
                    if generation is not None:
                        frozen = Frozen(folder.name, generation, exact_below=exact_below)
                    live = cls(folder.name, frozen, journal, known)
                    live.catch_up()
                    return live
            except CorruptIndex as fault:
                reasons.append(str(fault))
            # a writer may have swapped and pruned while we were reading: then look again
            if current_name(folder) == seen:
                break
        raise CorruptIndex(f"collection {folder.name}: {'; '.join(reasons)}")

    @property
    def frozen_count(self) -> int:
        """How many rows are frozen, tombstones too."""
        return 0 if self.frozen is None else self.frozen.count

    @property
    def lacks_graphs(self) -> bool:
        """Whether the generation was written for somebody who was still filling the collection, and is no longer."""
        if self.frozen is None or self.frozen.count < EXACT_BELOW:
            return False
        return bool(self.frozen.notes.get(UNFINISHED)) and not self.notes.get(UNFINISHED)

    @property
    def bytes_held(self) -> int:
        """About how much memory it takes."""
        return self.tail.bytes_held + (0 if self.frozen is None else self.frozen.bytes_held)

    @property
    def epoch(self) -> str:
        """What a reader has seen: equal only if nothing was written in between."""
        return f"{'' if self.frozen is None else self.frozen.generation}.{self.position.number}"

    def catch_up(self) -> bool:
        """Apply what the journal has beyond our position; whether there was anything."""
        reading = self._journal.reading(self.position)
        was_any = False
        # one at a time: all of them at once are as much again as the tail, and freeing them together keeps the lock
        for _, body in reading:
            self.apply(batch_of(body))
            was_any = True
        if reading.wrong:
            self.damage[JOURNAL] = reading.wrong
            _log.error("collection %s: %s: %s", self.name, JOURNAL, reading.wrong)
        self.position = reading.position
        return was_any

    def apply(self, batch: Batch) -> None:
        """Make one batch so. Applying it again changes nothing that can be seen."""
        for name, kept in (batch.shapes or {}).items():
            # a shape is for good: what is held was prepared for it
            self.tail.shape(name, self.shapes.setdefault(name, kept))
        if batch.notes is not None:
            self.notes = {**self.notes, **batch.notes}
        self.tail.drop(batch.drops)
        self._bury([*batch.drops, *(record.key for record in batch.puts)])
        for record in batch.puts:
            self.tail.put(record if self._known is None else self._known.same(record))

    def forget_known(self) -> None:
        """What was held beside this is about to be let go of."""
        self._known = None

    def free(self) -> None:
        """Give back the memory, a little at a time. Only when nobody has a view of it any more."""
        self.tail.free()
        if self.frozen is not None:
            self.frozen.free()

    def view(self) -> View:
        """What there is now."""
        return View(self.frozen, self._alive, self.tail.view(), dict(self.shapes), self.epoch)

    def _bury(self, keys: list[bytes]) -> None:
        if self.frozen is None:
            return
        rows = [row for key in keys if (row := self.frozen.store.row_of_key(key)) is not None]
        if not rows:
            return
        alive = np.ones(self.frozen.count, np.bool_) if self._alive is None else self._alive.copy()
        self.tombstones += int(np.count_nonzero(alive[distinct(np.array(rows))]))
        alive[rows] = False
        self._alive = alive


def _warn(folder: Path, reasons: list[str]) -> None:
    for reason in reasons:
        _log.warning("collection %s: passed over %s", folder.name, reason)
