"""Reach into a payload by a Qdrant key path: `a`, `a.b`, `a[].b`, `a[0].b`, `"a.b".c`."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final, TypeAlias, cast

from understudy.indexes.faults import UnknownFilter

# a name, an index, or None for `[]`: every element
Path: TypeAlias = tuple[str | int | None, ...]

_INDEX_MAX: Final = 2**64 - 1
_SEGMENT: Final = re.compile(r'(?:"([^"]*)"|([\w-]+))((?:\[[0-9]*\])*)')
_BRACKET: Final = re.compile(r"\[([0-9]*)\]")


@lru_cache(maxsize=1024)
def parse_path(key: str) -> Path:
    """The steps of a key path. Raises UnknownFilter where Qdrant would not take it either."""
    steps: list[str | int | None] = []
    at = 0
    while True:
        found = _SEGMENT.match(key, at)
        if found is None:
            raise UnknownFilter(f"{key!r} is no key path")
        quoted, plain, brackets = found.groups()
        steps.append(plain if quoted is None else quoted)
        steps += [int(index) if index else None for index in _BRACKET.findall(brackets)]
        at = found.end()
        if at == len(key):
            break
        if key[at] != ".":
            raise UnknownFilter(f"{key!r} is no key path")
        at += 1
    if any(isinstance(step, int) and step > _INDEX_MAX for step in steps):
        raise UnknownFilter(f"{key!r} has an index beyond 64 bits")
    return tuple(steps)


def reach(value: Any, path: Path) -> list[Any]:
    """Every value the path leads to, arrays left whole; [] where it leads nowhere."""
    if len(path) == 1 and isinstance(value, dict):
        # the common case, a plain field, at a third of the price
        held = cast("dict[str, Any]", value)
        return [held[path[0]]] if path[0] in held else []
    reached = [value]
    for step in path:
        reached = [deeper for here in reached for deeper in _step(here, step)]
    return reached


def _step(value: Any, step: str | int | None) -> list[Any]:
    if isinstance(step, str):
        held = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        return [held[step]] if step in held else []
    if not isinstance(value, list):
        return []
    items = cast("list[Any]", value)
    if step is None:
        return items
    return [items[step]] if step < len(items) else []
