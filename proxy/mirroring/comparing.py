"""Whether a point of a copy is the same as its database's: to the letter, but for what databases do to numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from understudy.indexes.points import Point, Vector, is_derived
from understudy.indexes.writes import VectorShape

CLOSE = 1e-3
"""Vectors are the same whose difference is no longer than this share of them: databases keep float16, and normalise."""


def same(live: Point, held: Point | None, shapes: Mapping[str, VectorShape]) -> bool:
    """Whether a copy holds a point as its database has it; `shapes` are those of its vectors, by name."""
    if held is None or live.payload != held.payload or live.text != held.text:
        return False
    # our own vectors of its words lie beside those that the database has
    if set(live.named) != {name for name in held.named if not is_derived(name)}:
        return False
    if not _close(live.vector, held.vector, shapes.get("")):
        return False
    return all(_close(vector, held.named[name], shapes.get(name)) for name, vector in live.named.items())


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
