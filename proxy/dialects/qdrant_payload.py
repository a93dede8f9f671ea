"""Choose the fields of a payload as Qdrant's `with_payload` does.

A path is `a.b`, a name with dots in it `"a.b"`. Only `a[].b` reaches into the elements of an array `a`: for `a.b` or
`a[0].b` nothing of it is chosen, and nothing left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias, cast

from understudy.indexes.faults import UnknownFilter
from understudy.indexes.reach import Path, parse_path
from understudy.proxy.asks import PayloadChoice
from understudy.proxy.dialects.base import BadRequest

_Tree: TypeAlias = dict[str | int | None, "_Tree | None"]
"""What is chosen below each step of a path, None for all of it; the step None is every element of an array."""


def chosen(payload: dict[str, Any], choice: PayloadChoice) -> dict[str, Any] | None:
    """What of `payload` is wanted; None when nothing of it is. Raises BadRequest for what is no path."""
    if choice is True:
        return payload
    if choice is False:
        return None
    if isinstance(choice, tuple):
        choice = {"include": choice}
    tree = _tree(next(iter(choice.values())))
    return _included(payload, tree) if "include" in choice else _excluded(payload, tree)


@lru_cache(maxsize=128)
def _tree(paths: tuple[str, ...]) -> _Tree:
    """The paths by their first steps, and so on; what a shorter path takes whole stays whole. Not to be changed."""
    tree: _Tree = {}
    for path in _parsed(paths):
        here: _Tree | None = tree
        for step in path[:-1]:
            here = here.setdefault(step, {})
            if here is None:
                break
        if here is not None:
            here[path[-1]] = None
    return tree


def _parsed(paths: Iterable[str]) -> list[Path]:
    try:
        return [parse_path(path) for path in paths]
    except UnknownFilter as fault:
        raise BadRequest(f"Format error in JSON body: {fault.reason}") from None


def _included(value: Any, tree: _Tree) -> Any:
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return {name: _kept(below, tree[name]) for name, below in fields.items() if name in tree}
    if isinstance(value, list):
        return [_kept(item, tree[None]) for item in cast("list[Any]", value)] if None in tree else []
    return value


def _kept(value: Any, tree: _Tree | None) -> Any:
    return value if tree is None else _included(value, tree)


def _excluded(value: Any, tree: Mapping[str | int | None, _Tree | None]) -> Any:
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        kept: dict[str, Any] = {}
        for name, below in fields.items():
            rest = tree.get(name, {})
            if rest is not None:
                kept[name] = _excluded(below, rest) if rest else below
        return kept
    if isinstance(value, list) and None in tree:
        rest = tree[None]
        return [] if rest is None else [_excluded(item, rest) for item in cast("list[Any]", value)]
    return cast("Any", value)
