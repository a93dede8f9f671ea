"""Whether a point of a copy is the same as its database's: to the letter, but for what databases do to numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from understudy.indexes.points import Point, Vector, is_derived
from understudy.indexes.writes import VectorShape

CLOSE = 1e-3
"""Vectors are the same whose difference is no longer than this share of them: databases keep float16, and normalise."""


def same(live: Point, held: Point | None, shapes: Mapping[str, VectorShape]) -> bool:
    """Whether a copy holds a point as its database has it; `shapes` are those of its vectors, by name."""
    if held is None or live.text != held.text:
        return False
    if live.payload != held.payload and not _told_alike(live.payload, held.payload):
        return False
    # our own vectors of its words lie beside those that the database has
    if set(live.named) != {name for name in held.named if not is_derived(name)}:
        return False
    if not _close(live.vector, held.vector, shapes.get("")):
        return False
    return all(_close(vector, held.named[name], shapes.get(name)) for name, vector in live.named.items())


def _told_alike(live: Any, held: Any) -> bool:
    """Whether a database that keeps numbers in 32 bits would tell `live` of what was written as `held`."""
    if isinstance(live, dict) and isinstance(held, dict):
        ours, theirs = cast("dict[str, Any]", live), cast("dict[str, Any]", held)
        return ours.keys() == theirs.keys() and all(_told_alike(ours[name], theirs[name]) for name in ours)
    if isinstance(live, list) and isinstance(held, list):
        ones, others = cast("list[Any]", live), cast("list[Any]", held)
        return len(ones) == len(others) and all(map(_told_alike, ones, others))
    if not isinstance(live, float) or not isinstance(held, float):
        return bool(live == held)
    with np.errstate(over="ignore"):
        # the shortest that is read as the same number of 32 bits
        return live in (held, float(str(np.float32(held))))


def _close(one: Vector | None, other: Vector | None, shape: VectorShape | None) -> bool:
    if one is None or other is None:
        return one is other
    if one.shape != other.shape:
        return False
    norm_one, norm_other = float(np.linalg.norm(one)), float(np.linalg.norm(other))
    if float(np.linalg.norm(one - other)) <= CLOSE * max(norm_one, norm_other):
        return True
    if shape is None or shape.distance != "cosine" or not norm_one or not norm_other:
        return False
    # a database of cosines may keep only directions
    return float(np.linalg.norm(one / norm_one - other / norm_other)) <= CLOSE
