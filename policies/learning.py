"""Small things that learn as they go, in plain Python: a scale, a drift detector, a ridge logistic regression.

    raw numbers --Scale--> how unusual each is --Logistic--> probability     (predict first, learn from the truth later)
                                |
                                +--PageHinkley--> drifted upwards?

The regression is Bayesian and learns one example at a time: a Gaussian over its weights, whose prior is the ridge, is
moved to the mode of what each example says (an exact step in one dimension, so that a rare positive can't overshoot)
and made surer by its curvature. MacKay's moderated output makes it modest where it has seen little. It costs a dozen
squared multiplications an example: no numpy, which no worker should import for this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log, pi, sqrt
from typing import Any, cast

UNUSUAL, UNUSUAL_MAX = 4.0, 8.0
"""Up to so many standard deviations a number counts as what it is, since what gets bad and recovers is told from what
goes on to a failure by how far it goes; from there on its logarithm, and never for more than the other: one value must
not decide alone."""
RIDGE = 1.0
FORGET_PER_STEP = 1e-4
"""A scale forgets with a half-life of 7,000 looks, five days of a look a minute."""
WARM_LOOKS = 30


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x), for any x."""
    if x >= 0:
        return 1.0 / (1.0 + exp(-min(x, 700.0)))
    small = exp(max(x, -700.0))
    return small / (1.0 + small)


def logit(p: float) -> float:
    """The score whose sigmoid is `p`, which is between 0 and 1."""
    return log(p / (1.0 - p))


class Scale:
    """What each of several numbers usually is. `floors` are differences too small to mean anything."""

    __slots__ = ("floors", "looks", "means", "variances")

    def __init__(self, floors: Sequence[float]) -> None:
        self.floors = tuple(floors)
        self.looks = 0
        self.means = [0.0] * len(floors)
        self.variances = [0.0] * len(floors)

    def unusual(self, raw: Sequence[float]) -> list[float]:
        """By how many standard deviations each is off, from -UNUSUAL_MAX to UNUSUAL_MAX; 0 while little was seen."""
        if self.looks < WARM_LOOKS:
            return [0.0] * len(raw)
        return [
            _tamed((value - mean) / max(floor, sqrt(variance)))
            for value, mean, variance, floor in zip(raw, self.means, self.variances, self.floors, strict=True)
        ]

    def learn(self, raw: Sequence[float]) -> None:
        """Take one look into account (Welford's method, with forgetting)."""
        self.looks += 1
        rate = max(FORGET_PER_STEP, 1.0 / self.looks)
        for n, value in enumerate(raw):
            off = value - self.means[n]
            self.means[n] += rate * off
            self.variances[n] = (1.0 - rate) * (self.variances[n] + rate * off * off)

    def kept(self) -> dict[str, object]:
        """As values for JSON."""
        return {"looks": self.looks, "means": self.means, "variances": self.variances}

    def recall(self, kept: Mapping[str, Any]) -> None:
        """Go on from there. Raises ValueError for what is not one of ours."""
        self.looks = int(kept["looks"])
        self.means = numbers(kept["means"], len(self.floors))
        self.variances = numbers(kept["variances"], len(self.floors))


def _tamed(off: float) -> float:
    size = abs(off)
    if size <= UNUSUAL:
        return off
    size = min(UNUSUAL_MAX, UNUSUAL * (1.0 + log(size / UNUSUAL)))
    return size if off > 0 else -size


class PageHinkley:
    """Whether a number, 0 on average, has begun to be higher (Page 1954). `allowed` above the average is no drift."""

    __slots__ = ("allowed", "drifts", "least", "mean", "seen", "sum", "threshold")

    def __init__(self, threshold: float = 40.0, allowed: float = 0.5) -> None:
        self.threshold = threshold
        self.allowed = allowed
        self.drifts = 0
        self._reset()

    def _reset(self) -> None:
        self.seen = 0
        self.mean = self.sum = self.least = 0.0

    def look(self, value: float) -> bool:
        """Take a value; whether it is the one by which a drift is found. After it, looking begins anew."""
        self.seen += 1
        self.mean += (value - self.mean) / self.seen
        self.sum += value - self.mean - self.allowed
        self.least = min(self.least, self.sum)
        if self.seen < WARM_LOOKS or self.sum - self.least <= self.threshold:
            return False
        self.drifts += 1
        self._reset()
        return True


class Logistic:
    """P(it happens | x), learnt from one example after another; `x` has a 1 in front for the bias."""

    __slots__ = ("covariance", "weights")

    def __init__(self, size: int, bias: float, ridge: float = RIDGE) -> None:
        self.weights = [bias] + [0.0] * (size - 1)
        self.covariance = [[(1.0 / ridge if n == m else 0.0) for m in range(size)] for n in range(size)]

    def _spread(self, x: Sequence[float]) -> list[float]:
        return [sum(map(float.__mul__, row, x)) for row in self.covariance]

    def predict(self, x: list[float]) -> float:
        """The probability, nearer to one half where the weights are still unsure (MacKay 1992)."""
        score = _dot(self.weights, x)
        variance = _dot(self._spread(x), x)
        return sigmoid(score / sqrt(1.0 + pi * max(0.0, variance) / 8.0))

    def parts(self, x: list[float]) -> list[float]:
        """What each number adds to the score."""
        return [weight * value for weight, value in zip(self.weights, x, strict=True)]

    def learn(self, x: list[float], happened: bool, weight: float = 1.0) -> None:
        """Move to the mode of what is known with this example, which counts `weight` times."""
        spread = self._spread(x)
        variance = _dot(spread, x)
        score = _dot(self.weights, x)
        step = _step(score, variance, 1.0 if happened else 0.0, weight)
        share = sigmoid(score + step * variance)
        curvature = weight * share * (1.0 - share)
        shrink = curvature / (1.0 + curvature * variance)
        self.weights = [have + step * each for have, each in zip(self.weights, spread, strict=True)]
        self.covariance = [
            [old - shrink * each * other for old, other in zip(row, spread, strict=True)]
            for row, each in zip(self.covariance, spread, strict=True)
        ]

    def kept(self) -> dict[str, object]:
        """As values for JSON."""
        return {"weights": self.weights, "covariance": self.covariance}

    def recall(self, kept: Mapping[str, Any]) -> None:
        """Go on from there. Raises ValueError for what is not one of ours."""
        size = len(self.weights)
        weights, rows = numbers(kept["weights"], size), cast("list[object]", kept["covariance"])
        if len(rows) != size:
            raise ValueError(f"{len(rows)} rows, not {size}")
        self.covariance = [numbers(row, size) for row in rows]
        self.weights = weights


def _step(score: float, variance: float, truth: float, weight: float) -> float:
    """How far along its spread an example moves the weights: the root of step = weight (truth - sigmoid(score + step
    variance)), which falls from left to right, so that halving finds it."""
    low, high = weight * (truth - 1.0), weight * truth
    for _ in range(30):
        middle = (low + high) / 2
        if middle < weight * (truth - sigmoid(score + middle * variance)):
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _dot(left: list[float], right: list[float]) -> float:
    return sum(map(float.__mul__, left, right))


def numbers(told: Any, size: int) -> list[float]:
    """`size` finite numbers. Raises ValueError."""
    listed = [float(each) for each in told]
    if len(listed) != size or not all(abs(each) < 1e300 for each in listed):
        raise ValueError(f"not {size} numbers")
    return listed
