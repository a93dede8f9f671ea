"""Some points to test with: seeded, clustered like real embeddings, with ids of both kinds."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from understudy.indexes.points import Point, PointId

TOPICS = (
    "the breaker opens after too many failures",
    "a retry budget keeps retries from piling up",
    "hedged requests cut the tail of the latency",
    "the local index answers while the database is down",
    "snapshots are swapped by rename and verified on load",
)


def clustered(count: int, dimensions: int = 16, *, seed: int = 7) -> NDArray[np.float32]:
    """[count, dimensions] float32 round a few dozen centres, as embeddings are; not of unit length."""
    dice = np.random.default_rng(seed)
    centres = dice.normal(size=(max(1, count // 50), dimensions))
    spread = dice.normal(scale=0.5, size=(count, dimensions))
    return (centres[dice.integers(0, len(centres), count)] + spread).astype(np.float32)


def some_id(number: int) -> PointId:
    """Integers and UUIDs by turns."""
    return number if number % 2 else str(uuid.uuid5(uuid.NAMESPACE_OID, str(number)))


def some_points(count: int, dimensions: int = 16, *, seed: int = 7, mark: str = "") -> list[Point]:
    """`count` points with payloads to filter by; `mark` tells two batches with the same ids apart."""
    vectors = clustered(count, dimensions, seed=seed)
    return [
        Point(
            some_id(number),
            vectors[number],
            {"n": number, "tenant": f"t{number % 5}", "even": number % 2 == 0, "mark": mark},
            f"{mark} {TOPICS[number % len(TOPICS)]}, number {number}".strip(),
            f"file-{number % 3}.md",
            version=number,
        )
        for number in range(count)
    ]


def ids(found: Iterable[Any]) -> list[PointId]:
    """The ids of hits or points, in order."""
    return [point.id for point in found]


def scores_by_hand(points: Sequence[Point], query: NDArray[np.float32], distance: str) -> dict[PointId, float]:
    """What every point should score, in float64, straight from the definitions."""
    wanted = query.astype(np.float64)
    scores: dict[PointId, float] = {}
    for point in points:
        assert point.vector is not None
        vector = point.vector.astype(np.float64)
        if distance == "euclid":
            scores[point.id] = float(np.linalg.norm(vector - wanted))
        elif distance == "dot":
            scores[point.id] = float(vector @ wanted)
        else:
            lengths = float(np.linalg.norm(vector) * np.linalg.norm(wanted))
            scores[point.id] = float(vector @ wanted) / lengths if lengths else 0.0
    return scores
