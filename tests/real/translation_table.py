"""Case by client and provider, what came of a failover to another dialect: `python -m tests.real.translation_table`.

It runs tests/real/test_translation_cases.py, in which the official clients ask a running sidecar whose first provider
is dead, and prints for each case how many ways of it (whole, streamed, variants) went as they should: `ok` as a direct
call would, `refused` by name where the second provider has no words for it; `-` where the client itself has none.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("test_translation_cases.py")
_CASE = re.compile(r"::test_(\w+?)\[.*?(\w+)>([\w-]+)")
SHORT = {"openai-chat": "openai", "ollama-chat": "ollama"}


class _Results:
    """What pytest reports, by case and pair; what belongs to no pair is counted by itself."""

    def __init__(self) -> None:
        self.cells: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
        self.others: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not (report.when == "call" or report.failed):
            return
        outcome = "ok" if report.passed else "FAILED"
        if report.passed and any(name == "refused" for name, _ in report.user_properties):
            outcome = "refused"
        case = _CASE.search(report.nodeid)
        if case is None:
            self.others[outcome] += 1
        else:
            self.cells[case[1]][f"{case[2]}>{SHORT.get(case[3], case[3])}"][outcome] += 1


def table(cells: dict[str, dict[str, Counter[str]]]) -> str:
    """The table, a line for each case."""
    pairs = list(dict.fromkeys(pair for row in cells.values() for pair in row))
    width = max(map(len, pairs)) + 2
    lines = [f"{'':<80}" + "".join(f"{pair:<{width}}" for pair in pairs)]
    for case, row in cells.items():
        told = "".join(f"{_cell(row.get(pair, Counter())):<{width}}" for pair in pairs)
        lines.append(f"{case.replace('_', ' '):<80}{told}")
    return "\n".join(line.rstrip() for line in lines)


def _cell(outcomes: Counter[str]) -> str:
    return ", ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items())) or "-"


def main() -> int:
    """Run the cases and print the table; 0 when all went as they should."""
    results = _Results()
    status = pytest.main(["-q", "--no-header", "-p", "no:cacheprovider", str(CASES)], plugins=[results])
    print(table(results.cells))
    whole = results.others + sum((cell for row in results.cells.values() for cell in row.values()), Counter[str]())
    print(f"{_cell(whole)}; of them {_cell(results.others)} of no pair")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
