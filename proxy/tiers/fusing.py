"""Make one ranking of several, as Qdrant does: by reciprocal ranks, or by scores scaled by their distribution.

Reciprocal rank fusion after Cormack, Clarke and Büttcher (2009), with Qdrant's constant of 2 and its weights;
distribution-based score fusion takes a score's place between the mean less and plus three deviations of its ranking.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

_Id = TypeVar("_Id", bound=Hashable)


def fused_ranks(
    rankings: Sequence[Sequence[_Id]], k: int = 2, weights: Sequence[float] = ()
) -> list[tuple[_Id, float]]:
    """What is in any ranking, by the sum of 1 / (rank / weight + k), ranks from nought; best first, ties as met."""
    scores: dict[_Id, float] = {}
    for at, ranking in enumerate(rankings):
        weight = weights[at] if weights else 1.0
        for rank, each in enumerate(ranking):
            scores[each] = scores.get(each, 0.0) + (1 / ((rank + 1) / weight + k - 1) if weight > 0 else 0.0)
    return _best_first(scores)


def fused_scores(rankings: Sequence[Sequence[tuple[_Id, float]]]) -> list[tuple[_Id, float]]:
    """What is in any ranking, by the sum of its scaled scores; a ranking of equal scores is worth half throughout."""
    scores: dict[_Id, float] = {}
    for ranking in rankings:
        for each, score in zip((each for each, _ in ranking), _scaled([score for _, score in ranking]), strict=True):
            scores[each] = scores.get(each, 0.0) + score
    return _best_first(scores)


def _scaled(scores: Sequence[float]) -> list[float]:
    if len(scores) < 2:
        return [0.5] * len(scores)
    mean = sum(scores) / len(scores)
    deviation = (sum((score - mean) ** 2 for score in scores) / (len(scores) - 1)) ** 0.5
    if not deviation:
        return [0.5] * len(scores)
    return [(score - mean + 3 * deviation) / (6 * deviation) for score in scores]


def _best_first(scores: dict[_Id, float]) -> list[tuple[_Id, float]]:
    return sorted(scores.items(), key=lambda each: -each[1])
