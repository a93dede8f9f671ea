"""CPU per proxied call, measured side by side: `make bench`.

python -m tests.bench [--quick] [--rounds N] [--subjects a,b] [--workloads x,y] [--save [FILE]]
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar

from tests.bench.figures import about_machine, figures, report, save
from tests.bench.running import BenchFailed, Effort, put_up, run
from tests.bench.subjects import SUBJECTS, Subject
from tests.bench.workloads import WORKLOADS, Workload

FULL = Effort(rounds=3, warm_s=0.3, window_s=1.2)
QUICK = Effort(rounds=2, warm_s=0.08, window_s=0.25)
RESULTS = Path("build/bench/results.json")

Named = TypeVar("Named", Subject, Workload)


def _chosen(table: tuple[Named, ...], names: str | None) -> list[Named]:
    if names is None:
        return list(table)
    known = {one.name: one for one in table}
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names.split(",")]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two short rounds: an impression, not a figure")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"rounds (default {FULL.rounds})")
    parser.add_argument("--window", type=float, metavar="S", help=f"seconds of each (default {FULL.window_s})")
    parser.add_argument("--subjects", metavar="A,B", help=", ".join(one.name for one in SUBJECTS))
    parser.add_argument("--workloads", metavar="X,Y", help=", ".join(one.name for one in WORKLOADS))
    parser.add_argument(
        "--save", type=Path, nargs="?", const=RESULTS, metavar="FILE", help=f"keep the results (default {RESULTS})"
    )
    return parser.parse_args()


def _stopped(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Measure and print; 1 when a subject answered wrongly."""
    arguments = _arguments()
    effort = QUICK if arguments.quick else FULL
    effort = Effort(arguments.rounds or effort.rounds, effort.warm_s, arguments.window or effort.window_s)
    subjects, workloads = _chosen(SUBJECTS, arguments.subjects), _chosen(WORKLOADS, arguments.workloads)
    signal.signal(signal.SIGTERM, _stopped)
    # a shell's background job is started with this one ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    machine = about_machine(subjects)
    began = time.monotonic()
    try:
        with put_up(subjects) as rig:
            _tell(f"{', '.join(rig.ports)} ready after {time.monotonic() - began:.1f} s")
            samples = run(rig, workloads, effort, told=_tell)
    except (BenchFailed, RuntimeError) as failed:
        _tell(f"no figures: {failed}")
        return 1
    except KeyboardInterrupt:
        _tell("interrupted; everything is stopped")
        return 130
    found = figures(samples, workloads)
    print(report(found, workloads, rig.left_out, machine))
    if arguments.save:
        save(arguments.save, found, samples, effort, machine)
    _tell(f"took {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
