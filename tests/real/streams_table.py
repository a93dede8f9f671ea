"""Case by dialect, what came of each case of streams and failures: `python -m tests.real.streams_table`.

It runs tests/real/test_streams.py and prints `ok`, or how many of a case's tests have failed.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.kit.voices import VOICES

CASES = Path(__file__).with_name("test_streams.py")
_CASE = re.compile(r"test_(T\d+)_(\w+)")


class _Results:
    """What pytest reports, by case and dialect."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        case = _CASE.search(report.nodeid)
        if case is None or not (report.when == "call" or report.failed):
            return
        dialect = next((name for name in VOICES if name in report.nodeid), "")
        self.found[case[1]][dialect].append(report.outcome)


def table(found: dict[str, dict[str, list[str]]]) -> str:
    """The table; a case that a dialect does not have is `-`."""
    lines = [f"{'':<6}" + "".join(f"{name:<16}" for name in VOICES)]
    for case in sorted(found, key=lambda name: int(name[1:])):
        cells = [_cell(found[case].get(name, [])) for name in VOICES]
        lines.append(f"{case:<6}" + "".join(f"{cell:<16}" for cell in cells))
    return "\n".join(lines)


def _cell(outcomes: list[str]) -> str:
    failed = sum(outcome != "passed" for outcome in outcomes)
    if not outcomes:
        return "-"
    return f"{failed} of {len(outcomes)} FAILED" if failed else f"ok ({len(outcomes)})"


def main() -> int:
    """Run the cases and print the table; 0 when all passed."""
    results = _Results()
    status = pytest.main(["-q", "--no-header", "-p", "no:cacheprovider", str(CASES)], plugins=[results])
    print(table(results.found))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
