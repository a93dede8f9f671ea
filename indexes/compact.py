"""Fold what was written since the last generation into a new one, as a program of its own.

    python -m understudy.indexes.compact FOLDER         prints the new generation's name, or nothing if there was none

    frozen, in id order --less tombstones--+
                                           +--merged--> write_snapshot, through the last entry seen
    live tail, in id order ----------------+

It works beside the process that serves and writes on: what is written meanwhile stays in the journal, after `through`.
"""

from __future__ import annotations

import heapq
import os
import sys
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Final

from understudy.indexes.faults import Busy, IndexFault
from understudy.indexes.frozen import Frozen
from understudy.indexes.live import Live
from understudy.indexes.points import Point
from understudy.indexes.records import KeptShape, point_of
from understudy.indexes.snapshot import Step, locked, write_snapshot
from understudy.indexes.vectors import Distance, Mask
from understudy.indexes.view import View
from understudy.indexes.writes import UNFINISHED

BUSY: Final = 3
FAILED: Final = 1

_NICENESS: Final = 10
_ROWS_A_BATCH: Final = 1_000


def compact(folder: Path, *, step: Step | None = None) -> str | None:
    """Write a generation of all that was written until now; its name, or None if nothing was since the last one.

    Raises Busy if somebody else is writing a snapshot, CorruptIndex, OSError; then everything is as it was.
    """
    with locked(folder):
        # nobody searches here: no graph is loaded
        live = Live.open(folder, exact_below=sys.maxsize)
        through = 0 if live.frozen is None else live.frozen.through
        if live.position.number == through and not live.damage:
            return None
        kept = live.shapes.get("", KeptShape(0, Distance.COSINE))
        return write_snapshot(
            folder,
            points_of(live.view()),
            space=kept.space,
            dimensions=kept.dimensions,
            distance=kept.distance,
            named={name: shape for name, shape in live.shapes.items() if name},
            sparse=True,
            graph=False if live.notes.get(UNFINISHED) else None,
            notes=live.notes,
            through=live.position.number,
            is_locked=True,
            step=step,
        )


def points_of(view: View) -> Iterator[Point]:
    """All points of a view with their vectors, in id order."""
    written = ((key, point_of(view.tail.records[slot], with_vectors=True)) for key, slot in view.tail.order())
    kept = () if view.frozen is None else _kept(view.frozen, view.alive)
    for _, point in heapq.merge(kept, written, key=itemgetter(0)):
        yield point


def _kept(frozen: Frozen, alive: Mask | None) -> Iterator[tuple[bytes, Point]]:
    keys = frozen.store.keys
    for at in range(0, len(keys), _ROWS_A_BATCH):
        rows = [row for row in range(at, min(at + _ROWS_A_BATCH, len(keys))) if alive is None or alive[row]]
        for row, point in zip(rows, frozen.fetch(rows, with_vectors=True), strict=True):
            yield keys[row], point


def main(arguments: list[str]) -> int:
    """The program."""
    (folder,) = arguments
    # whoever is served has the cores first
    os.nice(_NICENESS)
    try:
        sys.stdout.write(compact(Path(folder)) or "")
    except Busy:
        return BUSY
    except (IndexFault, OSError) as fault:
        sys.stderr.write(str(fault))
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
