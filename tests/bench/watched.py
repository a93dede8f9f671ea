"""Run the sidecar with its event loop watched: `python -m tests.bench.watched FILE run ...`, the rest as `understudy`.

Whenever the loop was late by 5 ms or more, a line of JSON is appended to FILE that says whose doing it was:

    late_ms      how late the loop was, by the clock
    queued_ms    of these, while its thread was ready to run and other threads or programs had the cores (Linux'
                 schedstat): a busy machine
    spent_ms     CPU time that all threads of this process spent meanwhile

So `late - queued` is what the loop was kept by code of its own, by somebody who held the interpreter's lock, or by a
disk; and of that no more than `spent` was work of ours, unless it was a disk.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LOOKED_AT_S = 0.002
TOLD_S = 0.005


@dataclass(frozen=True)
class Lateness:
    """One time that a loop was late, in milliseconds."""

    late_ms: float
    queued_ms: float
    spent_ms: float

    @property
    def own_ms(self) -> float:
        """What of it was work of ours: whoever holds the interpreter's lock may be kept from the cores as well."""
        return max(0.0, min(self.late_ms - self.queued_ms, self.spent_ms))

    @property
    def idle_ms(self) -> float:
        """What of it nobody worked in, though the loop's thread was not waiting for a core: a disk, or one who held the
        interpreter's lock and was kept from the cores."""
        return max(0.0, self.late_ms - self.queued_ms - self.own_ms)


def queueing() -> Callable[[], float]:
    """Tells for how many seconds this thread has been ready to run while others had the cores."""
    schedstat = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
    return lambda: int(os.pread(schedstat, 100, 0).split()[1]) / 1e9


def watch(loop: asyncio.AbstractEventLoop, to: Path) -> None:
    """Have `loop`, of this thread, watched from when it runs until it ends."""
    queued_s = queueing()
    told = to.open("a", buffering=1)

    def look(due: float, queued: float, spent: float) -> None:
        # not the loop's own time, which stands still while it is at something
        now = time.monotonic()
        queued_now, spent_now = queued_s(), time.process_time()
        if now - due >= TOLD_S:
            lateness = [now - due, queued_now - queued, spent_now - spent]
            late_ms, queued_ms, spent_ms = (round(1_000 * each, 2) for each in lateness)
            told.write(json.dumps({"late_ms": late_ms, "queued_ms": queued_ms, "spent_ms": spent_ms}) + "\n")
        loop.call_later(LOOKED_AT_S, look, now + LOOKED_AT_S, queued_now, spent_now)

    loop.call_soon(lambda: look(time.monotonic(), queued_s(), time.process_time()))


def read(told: Path, skip: int = 0) -> list[Lateness]:
    """What was told in a file, less the first `skip` lines."""
    lines = told.read_text().splitlines()[skip:] if told.exists() else []
    return [Lateness(**json.loads(line)) for line in lines]


def main() -> None:
    """The program."""
    told, sys.argv = Path(sys.argv[1]), ["understudy", *sys.argv[2:]]
    import uvloop

    def new_event_loop() -> uvloop.Loop:
        loop = uvloop.new_event_loop()
        watch(loop, told)
        return loop

    uvloop.run = functools.partial(uvloop.run, loop_factory=new_event_loop)
    from understudy.proxy import cli

    cli.main()


if __name__ == "__main__":
    main()
