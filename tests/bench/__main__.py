"""What a proxied call costs, measured side by side: `make bench`.

python -m tests.bench                       everything; table here, JSON and plot in build/bench
python -m tests.bench --quick --only chat   an impression
python -m tests.bench --bars                the project's bounds, each with its figure
python -m tests.bench --publish             the same, and the plot and table into docs/ and README.md
python -m tests.bench --read FILE --bars    say again what an earlier run measured
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.bench import bars
from tests.bench.extras import EXTRAS, Extra, measure_extras
from tests.bench.figures import Results, load, now, save
from tests.bench.machine import about_machine
from tests.bench.plot import plot
from tests.bench.report import markdown, report, with_block
from tests.bench.running import BenchFailed, Effort, put_up, run
from tests.bench.subjects import SUBJECTS, Subject
from tests.bench.workloads import WORKLOADS, Workload
from tests.kit.processes import REPOSITORY

FULL = Effort(rounds=3, warm_s=0.15, window_s=0.6)
QUICK = Effort(rounds=1, warm_s=0.06, window_s=0.2)
OUT = REPOSITORY / "build" / "bench"
DOCS = "docs"
LOG_CHARS_MAX = 2000
LONGER = ("routes", "endpoints", "workers")
"""What an impression goes without, unless it is named."""


def _chosen(names: str | None, known: Sequence[str]) -> list[str]:
    if names is None:
        return list(known)
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    return names.split(",")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    everything = ", ".join(one.name for one in (*WORKLOADS, *EXTRAS))
    parser.add_argument("--quick", action="store_true", help="one short round: an impression, not a figure")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"rounds (default {FULL.rounds})")
    parser.add_argument("--window", type=float, metavar="S", help=f"seconds of each (default {FULL.window_s})")
    parser.add_argument("--subjects", metavar="A,B", help=", ".join(one.name for one in SUBJECTS))
    parser.add_argument("--only", metavar="X,Y", help=f"workloads and measurements: {everything}")
    parser.add_argument("--bars", action="store_true", help="measure what the bounds need, and print each with its own")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="for results.json and bench.svg")
    parser.add_argument("--read", type=Path, metavar="FILE", help="take this results.json instead of measuring")
    parser.add_argument(
        "--publish",
        nargs="?",
        const=DOCS,
        metavar="DIR",
        help=f"also write DIR/bench.svg (default {DOCS}) and the block in README.md, both in the repository",
    )
    return parser.parse_args()


def _stopped(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _measured(arguments: argparse.Namespace) -> Results:
    effort = QUICK if arguments.quick else FULL
    effort = Effort(arguments.rounds or effort.rounds, effort.warm_s, arguments.window or effort.window_s)
    named = arguments.only or (",".join(bars.NEEDED) if arguments.bars else None)
    names = _chosen(named, [one.name for one in (*WORKLOADS, *EXTRAS)])
    if arguments.quick and not named:
        names = [name for name in names if name not in LONGER]
    workloads = [one for one in WORKLOADS if one.name in names]
    extras = [one for one in EXTRAS if one.name in names]
    named = arguments.subjects or (",".join(bars.SUBJECTS_NEEDED) if arguments.bars else None)
    subjects = _chosen(named, [one.name for one in SUBJECTS])
    # who takes part in nothing need not be there
    wanted = [one for one in SUBJECTS if one.name in subjects and any(one.takes(workload) for workload in workloads)]
    return _run(wanted, workloads, extras, effort)


def _run(
    subjects: Sequence[Subject], workloads: Sequence[Workload], extras: Sequence[Extra], effort: Effort
) -> Results:
    results = Results(now(), about_machine(subjects), effort)
    began = time.monotonic()
    with put_up(subjects) as rig:
        _tell(f"{', '.join(rig.ports) or 'the upstream'} ready after {time.monotonic() - began:.1f} s")
        results.samples = run(rig, subjects, workloads, effort, told=_tell)
        results.facts, left_out = measure_extras(rig, extras, effort, told=_tell)
        results.left_out = rig.left_out | left_out
    _tell(f"took {time.monotonic() - began:.0f} s")
    return results


def _keep(results: Results, arguments: argparse.Namespace) -> None:
    picture = plot(results, WORKLOADS)
    if not arguments.read:
        save(arguments.out / "results.json", results, WORKLOADS)
        (arguments.out / "bench.svg").write_text(picture, encoding="utf-8")
    if arguments.publish:
        if not (REPOSITORY / arguments.publish).resolve().is_relative_to(REPOSITORY):
            raise SystemExit("--publish writes into this repository only")
        folder, readme = REPOSITORY / arguments.publish, REPOSITORY / "README.md"
        block = markdown(results, WORKLOADS, f"{arguments.publish.rstrip('/')}/bench.svg")
        text = with_block(readme.read_text(encoding="utf-8"), block)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "bench.svg").write_text(picture, encoding="utf-8")
        readme.write_text(text, encoding="utf-8")


def main() -> int:
    """Measure and print; 1 when a subject answered wrongly."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, _stopped)
    # a shell's background job is started with this one ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        results = load(arguments.read) if arguments.read else _measured(arguments)
    except (BenchFailed, RuntimeError) as failed:
        _tell(f"no figures: {str(failed)[:LOG_CHARS_MAX]}")
        return 1
    except KeyboardInterrupt:
        _tell("interrupted; everything is stopped")
        return 130
    print(report(results, WORKLOADS))
    if arguments.bars:
        print("\n" + bars.bars(results))
    _keep(results, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
