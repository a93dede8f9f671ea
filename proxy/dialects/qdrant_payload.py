"""Choose the fields of a payload as Qdrant's `with_payload` does: by dotted paths, through objects and arrays."""

from __future__ import annotations

from typing import Any, cast

from understudy.proxy.asks import PayloadChoice


def chosen(payload: dict[str, Any], choice: PayloadChoice) -> dict[str, Any] | None:
    """What of `payload` is wanted; None when nothing of it is.

    A path is `a.b`; `a[].b` goes through every element of the array `a`, and so does `a.b` when `a` is one.
    """
    if choice is True:
        return payload
    if choice is False:
        return None
    if isinstance(choice, tuple):
        choice = {"include": choice}
    paths = [path.replace("[]", "").split(".") for path in next(iter(choice.values()))]
    return _included(payload, paths) if "include" in choice else _excluded(payload, paths)


def _included(value: dict[str, Any], paths: list[list[str]]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, rests in _by_head(paths).items():
        if name not in value:
            continue
        below = value[name]
        kept[name] = below if [] in rests else _below(below, rests, keep=True)
    return kept


def _excluded(value: dict[str, Any], paths: list[list[str]]) -> dict[str, Any]:
    heads = _by_head(paths)
    return {
        name: _below(below, heads[name], keep=False) if name in heads else below
        for name, below in value.items()
        if [] not in heads.get(name, [])
    }


def _below(value: Any, rests: list[list[str]], *, keep: bool) -> Any:
    """`rests` applied to what stands under a name: an object, an array's elements, or a value without fields."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return _included(fields, rests) if keep else _excluded(fields, rests)
    if isinstance(value, list):
        return [_below(item, rests, keep=keep) for item in cast("list[Any]", value)]
    return {} if keep else value


def _by_head(paths: list[list[str]]) -> dict[str, list[list[str]]]:
    """Paths gathered under their first name, each without it."""
    heads: dict[str, list[list[str]]] = {}
    for path in paths:
        heads.setdefault(path[0], []).append(path[1:])
    return heads
