"""CPU time and cores of other processes, all their threads and children included. Linux only."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

_CPUCLOCK_SCHED = 2


def tree(pid: int) -> list[int]:
    """`pid` and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # the name, in brackets, may hold spaces and brackets of its own
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time that `pids` have spent, threads that have ended included.

    The processes' own CPU clocks: the sum that /proc/<pid>/stat shows as utime + stime, but in nanoseconds where that
    counts in hundredths of a second. The clock's number is made as in the kernel's posix-timers.
    """
    return sum(time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED) for pid in pids)


def pin(pids: Iterable[int], core: int) -> None:
    """Put every thread of `pids` on one core."""
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), {core})
