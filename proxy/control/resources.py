"""Read how full everything is that may fill up: of one process, of several together, and of the machine below them.

a process   its memory, descriptors, callers, connections to endpoints, caches, local collections, quotas
several     what each has of its own adds up; what all see alike is taken once; descriptors are each one's own
beneath     the memory that the container or the machine has, and the disk of the state folder
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from understudy.policies.forecast import Reading
from understudy.policies.observe import SECONDS
from understudy.policies.quota import Allowance
from understudy.proxy.sidecar import Sidecar

if TYPE_CHECKING:
    from understudy.proxy.control.wire import Family

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
QUOTA_S_MIN = 1800.0
"""A window that is over sooner is over before anything can be foreseen of it."""
NO_LIMIT = 1 << 60
"""What cgroups of the first version write where there is none is somewhere beyond it."""
TOGETHER = ("callers", "pool", "cache")
ALIKE = ("index", "quota")
EACH = ("fds", "process_memory")


class Loads(NamedTuple):
    """A route's calls since its process began: all, those that failed, and how many took how long (by the bounds of
    `policies.observe.SECONDS`, not cumulative)."""

    calls: int
    failed: int
    seconds: tuple[int, ...]

    def less(self, other: Loads) -> Loads:
        return Loads(self.calls - other.calls, self.failed - other.failed, _by_pairs(self.seconds, other.seconds, -1))


def _by_pairs(one: Sequence[int], other: Sequence[int], sign: int) -> tuple[int, ...]:
    return tuple(a + sign * b for a, b in zip(one, other, strict=True))


def loads_of(families: Iterable[Family]) -> dict[str, Loads]:
    """The loads of every route, from what workers report of themselves."""
    calls: dict[str, int] = {}
    failed: dict[str, int] = {}
    seconds: dict[str, list[int]] = {}
    bounds = {_bound(bound): at for at, bound in enumerate((*SECONDS, float("inf")))}
    for name, _, _, samples in families:
        if name == "understudy_requests":
            for _, labels, value in samples:
                calls[labels["route"]] = calls.get(labels["route"], 0) + int(value)
                if labels["outcome"] == "5xx":
                    failed[labels["route"]] = failed.get(labels["route"], 0) + int(value)
        elif name == "understudy_unanswered":
            for _, labels, value in samples:
                for counts in (calls, failed):
                    counts[labels["route"]] = counts.get(labels["route"], 0) + int(value)
        elif name == "understudy_request_seconds":
            for sample, labels, value in samples:
                at = bounds.get(_bound(float(labels["le"]))) if sample.endswith("_bucket") else None
                if at is not None:
                    seconds.setdefault(labels["route"], [0] * len(bounds))[at] += int(value)
    return {
        route: Loads(count, failed.get(route, 0), _uncumulated(seconds.get(route, [0] * len(bounds))))
        for route, count in calls.items()
    }


def _bound(bound: float) -> str:
    return f"{bound:g}"


def _uncumulated(counts: Sequence[int]) -> tuple[int, ...]:
    return tuple(count - (counts[at - 1] if at else 0) for at, count in enumerate(counts))


# --- one process ----------------------------------------------------------------------------------------------------


def readings_of(sidecar: Sidecar, wall: float) -> list[Reading]:
    """What one process has of its own. Reads /proc, and nothing that could wait."""
    owner = f"{os.getpid()}:{sidecar.started_at:.0f}"
    found = [*process_readings("sidecar", owner), _callers(sidecar)]
    held_bytes = sum(stats.bytes for stats in sidecar.collection_stats.values())
    if held_bytes:
        found.append(Reading("index", "collections", held_bytes, sidecar.settings.local.collections_bytes_max))
    now = sidecar.world.clock()
    for parts in sidecar.routes:
        if parts.cache is not None:
            found.append(Reading("cache", parts.name, parts.cache.store.bytes, parts.cache.rules.bytes_max))
        for tier_name, tier in parts.tiers.items():
            for endpoint in tier.endpoints.values():
                if endpoint.quota is not None and endpoint.quota.said:
                    name = name_of(parts.name, tier_name, endpoint.name)
                    age_s = now - endpoint.quota.said_at
                    found += quota_readings(name, endpoint.quota.said, wall - age_s)
    found += [
        Reading("pool", name_of(*key), pool.size - pool.idle, pool.connections_max)
        for key, pool in sidecar.pools.items()
    ]
    return found


def name_of(route: str, tier: str, endpoint: str) -> str:
    """What an endpoint of a route is called in forecasts."""
    return f"{route}/{tier}" if endpoint == tier else f"{route}/{tier}/{endpoint}"


def _callers(sidecar: Sidecar) -> Reading:
    listeners = sidecar.listeners
    limit = sum(listener.limits.connections_max for listener in listeners)
    return Reading("callers", "all", sum(len(listener.doors) for listener in listeners), limit)


def quota_readings(name: str, said: Iterable[Allowance], said_at: float) -> list[Reading]:
    """What an endpoint said at that moment, in seconds since the epoch, of quotas that last long enough."""
    found: list[Reading] = []
    for one in said:
        if one.limit <= 0 or one.reset_s < QUOTA_S_MIN:
            continue
        empties_at = 0.0 if one.refills else said_at + one.reset_s
        found.append(
            Reading("quota", f"{name} {one.name}".strip(), one.limit - one.remaining, one.limit, "", empties_at)
        )
    return found


def process_readings(name: str, owner: str) -> list[Reading]:
    """The memory and the descriptors of this process; what this system does not say is left out."""
    found: list[Reading] = []
    try:
        pages = int((PROC / "self" / "statm").read_text().split()[1])
        found.append(Reading("process_memory", name, pages * os.sysconf("SC_PAGE_SIZE"), 0, owner))
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit not in (resource.RLIM_INFINITY, -1):
            found.append(Reading("fds", name, sum(1 for _ in (PROC / "self" / "fd").iterdir()), limit, owner))
    except (OSError, ValueError, IndexError):
        pass
    return found


# --- together ------------------------------------------------------------------------------------------------------


def together(each: Mapping[str, Sequence[Reading]]) -> list[Reading]:
    """The readings of several processes, by what each is called, as one."""
    sums: dict[tuple[str, str], Reading] = {}
    for place, readings in each.items():
        for reading in readings:
            if reading.what in EACH:
                sums[reading.what, place] = reading._replace(name=place)
                continue
            before = sums.get(reading.key)
            if before is None:
                sums[reading.key] = reading
            elif reading.what in TOGETHER:
                used, limit = before.used + reading.used, before.limit + reading.limit
                sums[reading.key] = before._replace(used=used, limit=limit)
            else:
                # each has its own copy, or has heard of the same at another moment: the fullest counts
                sums[reading.key] = max(before, reading, key=lambda one: one.used)
    return list(sums.values())


def with_memory(readings: Sequence[Reading], limit_bytes: float) -> list[Reading]:
    """The same with the memory of all processes together; `limit_bytes` is what they may have, 0 where nobody knows.

    A process may have what the others leave it. Where there is one alone, it is not told twice.
    """
    processes = [reading for reading in readings if reading.what == "process_memory"]
    others = [reading for reading in readings if reading.what != "process_memory"]
    used = sum(reading.used for reading in processes)
    if not processes or limit_bytes <= 0:
        return others
    owner = " ".join(sorted(reading.owner for reading in processes))
    whole = Reading("memory", "sidecar", used, limit_bytes, owner)
    if len(processes) == 1:
        return [whole, *others]
    return [whole, *(one._replace(limit=limit_bytes - used + one.used) for one in processes), *others]


# --- beneath -------------------------------------------------------------------------------------------------------


def beneath(state: Path, own_bytes: float) -> tuple[float, list[Reading]]:
    """How much memory our processes may have, in bytes (0: not known), and how full the state folder's disk is.

    May wait for a disk that is slow: to be run in a thread.
    """
    return memory_limit(own_bytes), disk_readings(state)


def disk_readings(state: Path) -> list[Reading]:
    """The file system of the state folder: its bytes, and how many files it can have."""
    there = next((folder for folder in (state, *state.parents) if folder.exists()), None)
    if there is None:
        return []
    try:
        stat = os.statvfs(there)
    except OSError:
        return []
    # what only root may take is nobody's; and what others keep there is taken as well
    total = (stat.f_blocks - stat.f_bfree + stat.f_bavail) * stat.f_frsize
    found = [Reading("disk", "state folder", total - stat.f_bavail * stat.f_frsize, total)]
    if stat.f_files:
        files = stat.f_files - stat.f_ffree + stat.f_favail
        found.append(Reading("inodes", "state folder", files - stat.f_favail, files))
    return found


def memory_limit(own_bytes: float, *, proc: Path = PROC, cgroups: Path = CGROUPS) -> float:
    """What our processes may have: the least that a cgroup allows, else what they have and what is available besides;
    0 where nobody knows."""
    limits = [limit for folder in _cgroups(proc, cgroups) if (limit := _limit_of(folder)) is not None]
    available = _available_bytes(proc)
    if available:
        limits.append(int(own_bytes) + available)
    return float(min(limits, default=0))


def _cgroups(proc: Path, cgroups: Path) -> Iterable[Path]:
    """Our cgroup and those that it is in. In a container it looks like the root."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroups / "memory" if controllers else cgroups
        steps = [step for step in path.split("/") if step not in ("", "..")]
        for count in range(len(steps), -1, -1):
            yield root.joinpath(*steps[:count])


def _limit_of(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            limit = int((folder / name).read_text())
        except (OSError, ValueError):
            # not there, or `max`
            continue
        if 0 < limit < NO_LIMIT:
            return limit
    return None


def _available_bytes(proc: Path) -> int:
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0
