"""Kill a process that writes and compacts, many times, and count what was acknowledged and is no longer there.

    python -m tests.indexes.kill_writes --times 50

A child writes, says each number on its standard output once `Library.write` has returned, and compacts all the while.
After a number of acknowledgements drawn from a seed it is killed with SIGKILL, and the folder must hold the collection
as it is after the last write that was acknowledged, or after the one in hand.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from understudy.indexes.compact import compact
from understudy.indexes.faults import IndexFault
from understudy.indexes.library import Library
from understudy.indexes.points import Point, PointId
from understudy.indexes.writes import Delete, PutPayload, Upsert, Which, Write

DIMENSIONS = 32
POINTS = 400
ACKNOWLEDGED_MAX = 240
NAME = "docs"


@dataclass
class Tally:
    """What came of it. `lost` counts the points that are not as the last acknowledged write left them."""

    killed: int = 0
    acknowledged: int = 0
    in_hand_kept: int = 0
    lost: int = 0
    generations: set[str] = field(default_factory=set[str])
    load_s: list[float] = field(default_factory=list[float])


def write_number(number: int) -> list[Write]:
    """The writes of one number: always the same, and some of them several points at once."""
    dice = random.Random(number)
    chosen = dice.sample(range(POINTS), 5)
    if number % 5 == 3:
        return [Delete(Which(tuple(chosen[:2])))]
    if number % 5 == 4:
        return [PutPayload(Which(tuple(chosen)), {"seen": number})]
    return [Upsert(tuple(Point(each, _vector(number, each), {"by": number}, f"text {number}") for each in chosen))]


def state_after(numbers: int) -> dict[PointId, dict[str, Any]]:
    """What the collection holds after so many writes: payloads by id, worked out by hand."""
    held: dict[PointId, dict[str, Any]] = {}
    for number in range(1, numbers + 1):
        for write in write_number(number):
            if isinstance(write, Upsert):
                held.update({point.id: dict(point.payload) for point in write.points})
            elif isinstance(write, Delete):
                for point_id in write.which.ids:
                    held.pop(point_id, None)
            elif isinstance(write, PutPayload):
                for point_id in set(write.which.ids) & held.keys():
                    held[point_id].update(write.payload)
    return held


def kill(folder: Path, times: int, seed: int) -> Tally:
    """Kill a writer of the library in `folder` so many times."""
    dice, tally, written = random.Random(seed), Tally(), 0
    for _ in range(times):
        seen = _run_and_kill(folder, written, dice.randint(1, ACKNOWLEDGED_MAX))
        tally.killed += 1
        tally.acknowledged += seen - written
        began_s = time.perf_counter()
        collection = Library(folder).open(NAME)
        tally.load_s.append(time.perf_counter() - began_s)
        tally.generations.add(collection.generation)
        points, _ = collection.scroll(None, POINTS + 1, with_vectors=True)
        held = {point.id: point.payload for point in points}
        due, next_due = state_after(seen), state_after(seen + 1)
        written = seen + 1 if held == next_due and held != due else seen
        tally.in_hand_kept += written - seen
        wrong = [
            key for key in due.keys() | held.keys() if held.get(key) != (next_due if written > seen else due).get(key)
        ]
        wrong += [point.id for point in points if not _is_whole(point)]
        tally.lost += len(wrong)
    return tally


def _run_and_kill(folder: Path, start: int, acknowledged: int) -> int:
    command = [sys.executable, "-m", "tests.indexes.kill_writes", "--write", str(folder), "--start", str(start)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, text=True) as child:
        assert child.stdout is not None
        seen = start
        for line in child.stdout:
            seen = int(line)
            if seen >= start + acknowledged:
                break
        os.killpg(child.pid, signal.SIGKILL)
        # what it managed to say before it died was acknowledged too
        for line in child.stdout:
            seen = int(line) if line.endswith("\n") else seen
    return seen


def _write_on(folder: Path, start: int) -> None:
    library = Library(folder)
    number = start + 1
    library.write(NAME, write_number(number))
    print(number, flush=True)
    threading.Thread(target=_compact_on, args=(library,), daemon=True).start()
    while True:
        number += 1
        library.write(NAME, write_number(number))
        print(number, flush=True)


def _compact_on(library: Library) -> None:
    while True:
        try:
            # what a child would do, here, where the same blow hits it
            compact(library.path_of(NAME))
            library.follow()
        except IndexFault as fault:
            print(fault, file=sys.stderr, flush=True)


def _vector(number: int, each: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng((number, each)).normal(size=DIMENSIONS).astype(np.float32)


def _is_whole(point: Point) -> bool:
    """Whether a point's vector and text are of the write that its payload says it is of."""
    number, each = point.payload["by"], point.id
    assert isinstance(each, int)
    return np.array_equal(point.vector, _vector(number, each)) and point.text == f"text {number}"  # pyright: ignore[reportArgumentType]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--start", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.write is not None:
        _write_on(arguments.write, arguments.start)
    with TemporaryDirectory() as folder:
        tally = kill(Path(folder), arguments.times, arguments.seed)
    print(
        f"killed {tally.killed} times, {tally.acknowledged} writes acknowledged, {tally.in_hand_kept} more kept,"
        f" {len(tally.generations)} generations seen; points lost: {tally.lost};"
        f" loaded in {1_000 * max(tally.load_s):.0f} ms at most"
    )
    sys.exit(tally.lost > 0)


if __name__ == "__main__":
    main()
