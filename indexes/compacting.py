"""Decide when a collection is to be compacted, and have it done in a child.

tail > 5 000 points, or > 32 MiB, or a fifth of the frozen rows are tombstones
    and the child rests four times as long as it worked, so that it takes a fifth of a core at most
    unless the tail has grown to 20 000 points or 128 MiB: then at once
generation without graphs, of a collection that was still being filled, and no longer is
    and at once
tail > 40 000 points, or > 256 MiB, and half of the frozen rows
    and who can wait with writing waits
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from understudy.indexes.compact import BUSY
from understudy.indexes.faults import IndexFault
from understudy.indexes.snapshot import GRAPH_WAIT_S_MAX, child_environment

TAIL_POINTS: Final = 5_000
TAIL_POINTS_MAX: Final = 20_000
TAIL_BYTES: Final = 32 * 2**20
TAIL_BYTES_MAX: Final = 128 * 2**20
# whoever copies a whole database then waits: half of what is frozen, or what the last compaction left twice over
FLOOD: Final = 2
FLOOD_SHARE: Final = 0.5
TOMBSTONES_SHARE: Final = 0.2
TOMBSTONES_LEAST: Final = 1_000
# pauses, in the time that the work took
REST: Final = 4.0
RETRY_S: Final = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Load:
    """What a collection carries: points in the tail, dead ones too, what it takes, and what is frozen of which some
    are tombstones. `lacks_graphs` where the frozen ones were written while it was still being filled, and it no longer
    is."""

    tail: int
    tail_bytes: int
    frozen: int
    tombstones: int
    lacks_graphs: bool = False


def is_due(load: Load) -> bool:
    """Whether compacting is worth its price."""
    return (
        load.lacks_graphs
        or load.tail > TAIL_POINTS
        or load.tail_bytes > TAIL_BYTES
        or load.tombstones > max(TOMBSTONES_LEAST, TOMBSTONES_SHARE * load.frozen)
    )


def is_urgent(load: Load) -> bool:
    """Whether it has to be done now."""
    return load.lacks_graphs or load.tail > TAIL_POINTS_MAX or load.tail_bytes > TAIL_BYTES_MAX


def is_flooded(load: Load) -> bool:
    """Whether more was written than compacting keeps up with: a point of the tail takes three times the memory of a
    frozen one. In proportion to what is frozen, or a large collection would be compacted over and over."""
    is_much = load.tail > FLOOD * TAIL_POINTS_MAX or load.tail_bytes > FLOOD * TAIL_BYTES_MAX
    return is_much and load.tail > FLOOD_SHARE * load.frozen


class Compactable(Protocol):
    """As much of a Collection as is compacted."""

    name: str
    folder: Path

    @property
    def load(self) -> Load: ...
    def refresh(self) -> bool: ...


def compact_in_child(folder: Path) -> str | None:
    """Have a child compact the collection in `folder`; the new generation, or None if there was nothing to do or
    somebody else is at it. Raises IndexFault."""
    command = [sys.executable, "-m", "understudy.indexes.compact", str(folder)]
    try:
        done = subprocess.run(  # noqa: S603
            command, env=child_environment(), capture_output=True, check=False, timeout=GRAPH_WAIT_S_MAX
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise IndexFault(f"{folder.name}: not compacted: {error}") from error
    if done.returncode == BUSY:
        return None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()[-500:]
        raise IndexFault(f"{folder.name}: not compacted: {said or f'the child ended with {done.returncode}'}")
    return done.stdout.decode() or None


class Compactor:
    """Compacts the collections of one library, one at a time, each in a thread that waits for a child."""

    def __init__(
        self,
        *,
        compact: Callable[[Path], str | None] = compact_in_child,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._compact = compact
        self._clock = clock
        self._not_before: dict[str, float] = {}
        self._working: threading.Thread | None = None
        self._starting = threading.Lock()

    def consider(self, collection: Compactable) -> bool:
        """Begin to compact a collection if that is due and none is being compacted; whether it was begun."""
        load = collection.load
        if not is_due(load):
            return False
        if not is_urgent(load) and self._clock() < self._not_before.get(collection.name, 0.0):
            return False
        with self._starting:
            if self._working is not None and self._working.is_alive():
                return False
            self._working = threading.Thread(
                target=self._work, args=(collection,), name=f"compacting {collection.name}", daemon=True
            )
            self._working.start()
        return True

    def wait(self) -> None:
        """Until what was begun is over."""
        working = self._working
        if working is not None:
            working.join()

    def _work(self, collection: Compactable) -> None:
        began_s = self._clock()
        try:
            generation = self._compact(collection.folder)
            collection.refresh()
        except (IndexFault, OSError) as fault:
            _log.warning("collection %s: %s", collection.name, fault)
            self._not_before[collection.name] = self._clock() + RETRY_S
            return
        took_s = self._clock() - began_s
        self._not_before[collection.name] = self._clock() + REST * took_s
        if generation is not None:
            _log.info("collection %s: compacted into %s in %.1f s", collection.name, generation, took_s)
