"""Golden policy files: a folder's files, a ruler, then what reading them must say.

    # env: NAME=value              the environment, one variable a line
    # file: name text              a file beside the policies, for `file:` to read
    # ask: GET /x host=h port=1    what to explain, where the policies are sound
    routes: …                      policies/first.yaml
    ==== second.yaml               and whatever other files there are
    ----
    policies/first.yaml:1:9: …     faults; or, where there are none, warnings and the explanations asked for

`UNDERSTUDY_GOLDEN=write pytest tests/settings` writes down what is said now: read the diff before believing it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from understudy.proxy.reports.explain import explain
from understudy.proxy.settings.reading import Reading, read_folder

RULER = "\n----\n"
FOLDER = Path("policies")

# The orders of these tests' own: what is explained must not change whenever the stack learns something.
ROUTE_ORDER = (("deadline", "it waits no longer"), ("chain", "one after the other"))
TIER_ORDER = (("retry", "once more"), ("breaker", "or never"), ("limit", "not too many"), ("tier", "somebody answers"))


@dataclass(frozen=True, slots=True)
class Golden:
    path: Path
    files: dict[str, str]
    beside: dict[str, str]
    environ: dict[str, str]
    asked: list[str]
    expected: str

    @classmethod
    def read(cls, path: Path) -> Golden:
        given, _, expected = path.read_text().partition(RULER)
        first, *others = re.split(r"^==== (\S+)\n", given + "\n", flags=re.M)
        return cls(
            path,
            {"first.yaml": first, **dict(zip(others[::2], others[1::2], strict=True))},
            dict(each.partition(" ")[::2] for each in _notes("file", given)),
            dict(each.partition("=")[::2] for each in _notes("env", given)),
            _notes("ask", given),
            expected,
        )

    def reading(self) -> Reading:
        """What comes of reading the files, here."""
        FOLDER.mkdir()
        for name, text in (self.files | self.beside).items():
            (FOLDER / name).write_text(text)
        return read_folder(FOLDER, self.environ)

    def said(self, reading: Reading) -> str:
        """Everything that people are told about this reading."""
        lines = [str(fault) for fault in reading.faults]
        lines += [f"warning: {warning}" for warning in reading.warnings]
        if reading.settings is not None:
            lines += [_explained(reading, ask) for ask in self.asked]
        return "".join(f"{line}\n" for line in lines)

    def write(self, said: str) -> None:
        given, _, _ = self.path.read_text().partition(RULER)
        self.path.write_text(given + RULER + said)


def _notes(word: str, given: str) -> list[str]:
    found = re.findall(rf"^# {word}: (.*)$", given, flags=re.M)
    return [each.replace("\\n", "\n") for each in found]


def _explained(reading: Reading, ask: str) -> str:
    method, path, *more = ask.split()
    given = dict(each.split("=") for each in more)
    port = int(given["port"]) if "port" in given else None
    return explain(reading, method, path, given.get("host"), port, route_order=ROUTE_ORDER, tier_order=TIER_ORDER)
