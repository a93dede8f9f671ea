"""What the samples say: medians and ranges over the rounds, and everything as JSON to keep."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from tests.bench.running import Effort, Sample
from tests.bench.workloads import Workload
from understudy.proxy.bench.load import Mark


class Spread(msgspec.Struct, frozen=True):
    """A median over rounds, and its range."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 0 if self.high >= 100 else 1 if self.high >= 3 else 2
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


class Fact(msgspec.Struct, frozen=True):
    """A figure that no workload has: memory, start-up, what more routes or workers do.

    `unsure` says why it proves nothing on this machine, where that is so.
    """

    name: str
    value: Spread
    unit: str
    about: str = ""
    unsure: str = ""


class Results(msgspec.Struct):
    """All that one run measured, as it is kept."""

    at: str
    machine: dict[str, str]
    effort: Effort
    samples: list[Sample] = []
    facts: list[Fact] = []
    left_out: dict[str, str] = {}

    def marks(self, subject: str, workload: str) -> dict[int, Mark]:
        """Round -> what it measured."""
        return {one.round: one.mark for one in self.samples if (one.subject, one.workload) == (subject, workload)}

    def fact(self, name: str) -> Fact | None:
        return next((one for one in self.facts if one.name == name), None)


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """One subject under one workload. Units are calls, or chunks of streams; times are microseconds.

    `busy` is the share of a core the subject used: one that is far from 1 was waiting for the load, and pays for its
    waking up. `added_p50_us` is what it adds to `direct` in the same round. A chunk's latency is its way from the
    upstream's sending it to its receipt.
    """

    subject: str
    workload: str
    unit: str
    units: int
    per_s: Spread
    p50_us: Spread
    p99_us: Spread
    cpu_us: Spread | None = None
    busy: Spread | None = None
    added_p50_us: Spread | None = None
    added_p99_us: Spread | None = None


def figures(results: Results, workloads: Sequence[Workload]) -> list[Figure]:
    """A Figure for each subject under each workload it was measured under, in their order."""
    names = list(dict.fromkeys(one.subject for one in results.samples if one.round == 0))
    found: list[Figure] = []
    for workload in workloads:
        direct = results.marks("direct", workload.name)
        for name in names:
            mine = results.marks(name, workload.name)
            if mine:
                found.append(_figure(name, workload, mine, direct))
    return found


def _figure(name: str, workload: Workload, mine: dict[int, Mark], direct: dict[int, Mark]) -> Figure:
    marks = list(mine.values())
    is_proxy = name != "direct"
    added = [(mark, direct[number]) for number, mark in mine.items() if number in direct] if is_proxy else []
    return Figure(
        subject=name,
        workload=workload.name,
        unit=workload.unit,
        units=sum(mark.units for mark in marks),
        per_s=spread(mark.units / mark.wall_s for mark in marks),
        p50_us=spread(mark.p50_s * 1e6 for mark in marks),
        p99_us=spread(mark.p99_s * 1e6 for mark in marks),
        cpu_us=spread(mark.cpu_s / mark.units * 1e6 for mark in marks) if is_proxy else None,
        busy=spread(mark.cpu_s / mark.wall_s for mark in marks) if is_proxy else None,
        added_p50_us=spread((mark.p50_s - other.p50_s) * 1e6 for mark, other in added) if added else None,
        added_p99_us=spread((mark.p99_s - other.p99_s) * 1e6 for mark, other in added) if added else None,
    )


def spread(values: Iterable[float]) -> Spread:
    """Median, lowest and highest, to three decimals."""
    kept = [round(value, 3) for value in values]
    return Spread(round(statistics.median(kept), 3), min(kept), max(kept))


# --- kept ----------------------------------------------------------------------------------------------------------


def now() -> str:
    """The moment of a run, as it is kept."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def save(path: Path, results: Results, workloads: Sequence[Workload]) -> None:
    """Everything as JSON: every round's sample, the figures made of them, and what they depend on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = {**msgspec.to_builtins(results), "figures": msgspec.to_builtins(figures(results, workloads))}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(written), indent=1) + b"\n")


def load(path: Path) -> Results:
    """What `save` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=Results)
