"""What the samples say: medians and ranges over the rounds, as a table to read and as JSON to keep."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from tests.bench.running import Effort, Sample
from tests.bench.subjects import NotHere, Subject
from tests.bench.workloads import Workload
from tests.kit.processes import REPOSITORY


class Spread(msgspec.Struct, frozen=True):
    """A median over rounds, and its range."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 0 if self.high >= 100 else 1
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """One subject under one workload. Units are calls, or chunks of streams; times are microseconds.

    `busy` is the share of a core the subject used: one that is far from 1 was waiting for the load, and pays for its
    waking up. `added_p50_us` is what it adds to `direct` in the same round.
    """

    subject: str
    workload: str
    unit: str
    units: int
    per_s: Spread
    cpu_us: Spread | None = None
    busy: Spread | None = None
    p50_us: Spread | None = None
    p99_us: Spread | None = None
    added_p50_us: Spread | None = None
    added_p99_us: Spread | None = None


def figures(samples: Sequence[Sample], workloads: Sequence[Workload]) -> list[Figure]:
    """A Figure for each subject under each workload, in the order they were measured."""
    direct = {(one.workload, one.round): one for one in samples if one.subject == "direct"}
    names = list(dict.fromkeys(one.subject for one in samples if one.round == 0))
    found: list[Figure] = []
    for workload in workloads:
        for name in names:
            mine = [one for one in samples if (one.subject, one.workload) == (name, workload.name)]
            beside = [direct.get((one.workload, one.round)) for one in mine]
            found.append(_figure(name, workload, mine, [one for one in beside if one is not None]))
    return found


def _figure(name: str, workload: Workload, mine: list[Sample], direct: list[Sample]) -> Figure:
    marks = [one.mark for one in mine]
    is_proxy = name != "direct"
    has_latency = workload.unit == "call"
    added = list(zip(marks, (one.mark for one in direct), strict=False)) if is_proxy and has_latency else []
    return Figure(
        subject=name,
        workload=workload.name,
        unit=workload.unit,
        units=sum(mark.units for mark in marks),
        per_s=spread(mark.units / mark.wall_s for mark in marks),
        cpu_us=spread(mark.cpu_s / mark.units * 1e6 for mark in marks) if is_proxy else None,
        busy=spread(mark.cpu_s / mark.wall_s for mark in marks) if is_proxy else None,
        p50_us=spread(mark.p50_s * 1e6 for mark in marks) if has_latency else None,
        p99_us=spread(mark.p99_s * 1e6 for mark in marks) if has_latency else None,
        added_p50_us=spread((mark.p50_s - other.p50_s) * 1e6 for mark, other in added) if added else None,
        added_p99_us=spread((mark.p99_s - other.p99_s) * 1e6 for mark, other in added) if added else None,
    )


def spread(values: Iterable[float]) -> Spread:
    """Median, lowest and highest, to three decimals."""
    kept = [round(value, 3) for value in values]
    return Spread(round(statistics.median(kept), 3), min(kept), max(kept))


# --- the report ----------------------------------------------------------------------------------------------------


def report(
    found: Sequence[Figure], workloads: Sequence[Workload], left_out: dict[str, str], machine: dict[str, str]
) -> str:
    """The tables, as text."""
    subjects = list(dict.fromkeys(figure.subject for figure in found))
    at = {(figure.subject, figure.workload): figure for figure in found}

    def table(title: str, columns: Sequence[Workload], cell: Callable[[Figure], object]) -> list[str]:
        rows = [["", *(workload.name for workload in columns)]]
        for subject in subjects:
            cells = [cell(at[subject, workload.name]) for workload in columns]
            rows.append([subject, *("-" if one is None else str(one) for one in cells)])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
        return ["", title, *(line.rstrip() for line in lines)]

    lines = table("CPU us per call, per chunk of a stream: median of rounds (range)", workloads, lambda one: one.cpu_us)
    lines += table("calls or chunks a second, and the share of a core the subject used", workloads, _rate)
    for workload in workloads:
        if workload.on_one_core and workload.unit == "call":
            lines += _latency_table(workload, [at[subject, workload.name] for subject in subjects])
    lines += ["", *(f"{workload.name}: {workload.about}" for workload in workloads)]
    lines += [f"{name} left out: {reason}" for name, reason in left_out.items()]
    lines += ["", *(f"{name}: {value}" for name, value in machine.items())]
    return "\n".join(lines)


def _rate(figure: Figure) -> str:
    busy = f", {figure.busy.median:.0%}" if figure.busy else ""
    return f"{figure.per_s.median:,.0f}{busy}"


def _latency_table(workload: Workload, found: Sequence[Figure]) -> list[str]:
    lines = ["", f"{workload.name}: latency in us, and what is added to direct in the same round"]
    rows: list[tuple[str, ...]] = [("", "p50", "p99", "p50 added", "p99 added")]
    for one in found:
        cells = (one.p50_us, one.p99_us, one.added_p50_us, one.added_p99_us)
        rows.append((one.subject, *("-" if cell is None else str(cell) for cell in cells)))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return lines + [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def about_machine(subjects: Sequence[Subject]) -> dict[str, str]:
    """What the figures depend on: hardware, kernel, versions."""
    told = {
        "processor": _processor(),
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": sys.version.split()[0],
        "load before": f"{os.getloadavg()[0]:.2f}",
        "commit": _commit(),
    }
    for subject in subjects:
        if subject.version is not None:
            try:
                told[subject.name] = subject.version()
            except (NotHere, OSError, subprocess.SubprocessError):
                continue
    return told


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"


def save(
    path: Path, found: Sequence[Figure], samples: Sequence[Sample], effort: Effort, machine: dict[str, str]
) -> None:
    """Everything as JSON: figures, every round's sample, and what they depend on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rounds = [
        {"subject": one.subject, "workload": one.workload, "round": one.round, **msgspec.to_builtins(one.mark)}
        for one in samples
    ]
    written = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine,
        "effort": msgspec.to_builtins(effort),
        "figures": found,
        "samples": rounds,
    }
    path.write_bytes(msgspec.json.format(msgspec.json.encode(written), indent=1) + b"\n")
