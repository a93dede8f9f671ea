"""CPU time, memory, cores and ports of other processes, all their threads and children included. Linux only."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

_CPUCLOCK_SCHED = 2
_LISTENING = "0A"
PROC = Path("/proc")


def can_be_watched() -> bool:
    """Whether this system tells what other processes do."""
    return (PROC / "self" / "stat").exists()


def _all() -> Iterator[Path]:
    return (entry for entry in PROC.iterdir() if entry.name.isdigit())


def tree(pid: int) -> list[int]:
    """`pid` and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in _all():
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


def rss_bytes(pid: int) -> int:
    """The memory `pid` holds now, pages shared with others included."""
    for line in (PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def pin(pids: Iterable[int], *cores: int) -> None:
    """Put every thread of `pids` on these cores; one that has ended meanwhile needs none."""
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            for thread in (PROC / str(pid) / "task").iterdir():
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread.name), cores)


def listening(port: int) -> list[int]:
    """Who listens on a TCP port, as far as we may look: other users' processes show nobody what they have open."""
    wanted: set[str] = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    wanted.add(f"socket:[{fields[9]}]")
    return [int(entry.name) for entry in _all() if _has_open(entry, wanted)]


def _has_open(entry: Path, wanted: set[str]) -> bool:
    try:
        descriptors = list((entry / "fd").iterdir())
    except OSError:
        return False
    for one in descriptors:
        # gone between the listing and the look
        with contextlib.suppress(OSError):
            if str(one.readlink()) in wanted:
                return True
    return False
