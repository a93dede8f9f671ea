"""What the figures depend on: hardware, kernel and versions; never whose machine it was."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench.subjects import NotHere, Subject
from tests.kit.processes import REPOSITORY


def about_machine(subjects: Sequence[Subject]) -> dict[str, str]:
    """What the figures depend on, by name."""
    told = {
        "processor": _processor(),
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        # the version is what matters; the rest of a release's name is its builder's own
        "kernel": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])} {platform.machine()}",
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


def in_a_line(machine: dict[str, str]) -> str:
    """The same as a caption: the machine, then the versions."""
    first = f"{machine['processor']}, {machine['cores']} cores, {machine['kernel']}, Python {machine['python']}"
    known = ("processor", "cores", "kernel", "python", "load before", "commit")
    versions = [value for name, value in machine.items() if name not in known]
    return "; ".join([first, ", ".join(versions)]) if versions else first


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
