"""Pairs of texts, read from the lists in tests/data."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).parents[1] / "data"


class Pair(NamedTuple):
    """Two texts under the heading they stand under."""

    kind: str
    one: str
    other: str


def pairs(name: str) -> list[Pair]:
    """The pairs of a list: `one | other` a line, under headings that begin with ##."""
    found: list[Pair] = []
    kind = ""
    for line in (DATA / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            kind = line[3:]
        elif line and not line.startswith("# "):
            one, other = line.split(" | ")
            found.append(Pair(kind, one, other))
    return found


NEAR_MISSES = pairs("near_misses")
SAME_MEANING = pairs("same_meaning")
