"""What examples say of points, as Qdrant reckons it (its documentation, "Explore the data"): recommend and discover.

    average_vector   the mean of what is liked, as far again from the mean of what is not: searched as a vector
    best_score       the nearest example decides: liked, its score squeezed into (0, 1); not, that below nought
    sum_scores       the scores of what is liked, less those of what is not
    discover         one point more for each pair whose liked side is nearer, one less else; then the target's score
    context          what is lost where the liked side of a pair is not the nearer one

Scores are the collection's own, of distances the square below nought.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating[Any]]

EPSILON: Final = float(np.finfo(np.float32).eps)


def average(vectors: Sequence[tuple[str, Any]]) -> Scores:
    """The vector [d] that examples (role, [d]) ask for."""
    liked = np.mean([vector for role, vector in vectors if role == "positive"], axis=0)
    disliked = [vector for role, vector in vectors if role == "negative"]
    return liked if not disliked else liked + liked - np.mean(disliked, axis=0)


def judged(how: str, roles: Sequence[str], scores: Scores) -> Scores:
    """What each point [n] is worth, by its scores [e, n] against examples of these roles."""
    liked = scores[[at for at, role in enumerate(roles) if role == "positive"]]
    disliked = scores[[at for at, role in enumerate(roles) if role == "negative"]]
    if how == "sum_scores":
        return liked.sum(axis=0) - disliked.sum(axis=0)
    if how == "best_score":
        return _best_score(liked, disliked)
    if how == "discover":
        return np.sign(liked - disliked).sum(axis=0) + _squeezed(scores[roles.index("target")])
    return _half_squeezed(np.minimum(liked - disliked - EPSILON, 0)).sum(axis=0)


def _best_score(liked: Scores, disliked: Scores) -> Scores:
    none = np.full(liked.shape[1], -np.inf, np.float32)
    best, worst = (each.max(axis=0) if len(each) else none for each in (liked, disliked))
    with np.errstate(invalid="ignore"):
        return np.where(best > worst, _squeezed(best), -_squeezed(worst))


def _half_squeezed(scores: Scores) -> Scores:
    """Any score into (-1, 1)."""
    return scores / (1 + np.abs(scores))


def _squeezed(scores: Scores) -> Scores:
    """Any score into (0, 1)."""
    return (_half_squeezed(scores) + 1) / 2
