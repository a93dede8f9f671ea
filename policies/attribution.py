"""Say which change a component's failures began with: by how their rate changed, not by what happened to come before.

    watched ----------- change ------------ now        each change splits the time that was watched in two
      k1 failures in T1   |   k2 failures in T2        r1 ~ Gamma(a + k1, b + T1), r2 ~ Gamma(a + k2, b + T2)

    accused    P(r2 > 2 r1) >= 1 - 0.05 / number of changes: whoever asks of five is wrong five times as often
    ranked     by how well "it changed then" explains when the failures came, held against the other changes and against
               "nothing changed", and by whether it was the component itself that was changed

The probability alone can't rank: a change an hour before the guilty one has the same failures behind it. The marginal
likelihood can: it pays for every quiet hour that a change claims to have spoilt. Both are closed forms, Gamma and
Poisson being conjugate: the ratio of two Gammas is a Beta's odds (DeGroot, Optimal Statistical Decisions, chapter 9).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from math import exp, lgamma, log, log1p
from typing import NamedTuple

from understudy.policies.events import WHOLE

DAY_S = 86400.0
SHAPE = 0.5
PRIOR_S = SHAPE * DAY_S
"""What is believed of a rate before anything was seen: about one failure a day, and that with little conviction."""
TIMES_WORSE = 2.0
DOUBT_MAX = 0.05
LIKENESS_MIN = 0.42
"""A change that another explains away is not accused beside it: its share of the explanations must be as much."""
BEFORE_S_MAX = 7 * DAY_S
AFTER_S_MAX = DAY_S
"""A change older than this is no candidate any more: what it broke has been found by now, or is how things are."""
APART_S = 300.0
"""Failures closer than this are one that goes on: an outage of an hour is no hundred failures."""
CHANGES_MAX = 64
SAME, ANY, OTHER = 3.0, 1.0, 0.3
"""Odds for a change to the component itself, to the whole, and to another component."""
_TINY = 1e-300


class Change(NamedTuple):
    """Something was changed at `at`, seconds since the epoch: a component, or the whole (`events.WHOLE`)."""

    at: float
    component: str
    kind: str
    detail: str = ""


class Spell(NamedTuple):
    """Time in which somebody was watching: failures that nobody could see are not failures that did not happen."""

    since: float
    until: float


class Suspect(NamedTuple):
    """A change, and what speaks against it.

    `probability` is that of the rate having more than doubled; `share` is this change's of all explanations, that
    nothing changed being one. Exposures are the seconds watched.
    """

    change: Change
    probability: float
    share: float
    failures_before: int
    failures_after: int
    before_s: float
    after_s: float
    is_accused: bool


def suspects(
    changes: Iterable[Change],
    failures: Iterable[float],
    spells: Sequence[Spell],
    now: float,
    components: Collection[str] = (),
) -> list[Suspect]:
    """The changes of the last day by how likely the failures of these components are theirs, the likeliest first."""
    recent = sorted(change for change in changes if now - AFTER_S_MAX <= change.at <= now)[-CHANGES_MAX:]
    if not recent:
        return []
    began = now - AFTER_S_MAX - BEFORE_S_MAX
    apart = [at for at in onsets(failures) if began <= at <= now]
    whole_s = exposure_s(spells, began, now)
    nothing = _log_likelihood(len(apart), whole_s)
    weights: list[float] = []
    found: list[Suspect] = []
    for change in recent:
        after = sum(at >= change.at for at in apart)
        before_s = exposure_s(spells, max(began, change.at - BEFORE_S_MAX), change.at)
        after_s = max(0.0, exposure_s(spells, change.at, now))
        before = sum(change.at - BEFORE_S_MAX <= at < change.at for at in apart)
        probability = probability_worse(before, before_s, after, after_s)
        gain = _log_likelihood(before, before_s) + _log_likelihood(after, after_s) - nothing
        # what became better was not broken: its likelihood is none of an explanation of failures
        weights.append(match(change.component, components) * exp(min(gain, 500.0)) * probability)
        found.append(Suspect(change, probability, 0.0, before, after, before_s, after_s, is_accused=False))
    # that nothing changed is as likely beforehand as that one of them did it
    total = sum(weights) + len(recent)
    doubt_max = DOUBT_MAX / len(recent)
    ranked = [
        one._replace(
            share=weight / total, is_accused=1 - one.probability <= doubt_max and weight / total >= LIKENESS_MIN
        )
        for one, weight in zip(found, weights, strict=True)
    ]
    return sorted(ranked, key=lambda one: (one.share, one.change.at), reverse=True)


def onsets(failures: Iterable[float], apart_s: float = APART_S) -> list[float]:
    """Failures in order, without those that come less than `apart_s` after the last one that counted."""
    kept: list[float] = []
    for at in sorted(failures):
        if not kept or at - kept[-1] >= apart_s:
            kept.append(at)
    return kept


def exposure_s(spells: Iterable[Spell], since: float, until: float) -> float:
    """How much of this time was watched, in seconds."""
    return sum(max(0.0, min(until, spell.until) - max(since, spell.since)) for spell in spells)


def match(changed: str, failing: Collection[str]) -> float:
    """How much sooner a change to `changed` is believed to have broken these than one to the whole."""
    if changed == WHOLE or not failing:
        return ANY
    return SAME if changed in failing else OTHER


def probability_worse(before: int, before_s: float, after: int, after_s: float, times: float = TIMES_WORSE) -> float:
    """P(rate after > `times` x rate before), having seen so many failures in so many seconds."""
    odds = times * (PRIOR_S + after_s) / (PRIOR_S + before_s)
    return 1.0 - beta_below(odds / (1.0 + odds), SHAPE + after, SHAPE + before)


def _log_likelihood(failures: int, watched_s: float) -> float:
    """Of this many failures in this time, over all rates the prior allows; but for what is the same for all splits."""
    return (
        SHAPE * log(PRIOR_S)
        - lgamma(SHAPE)
        + lgamma(SHAPE + failures)
        - (SHAPE + failures) * log(PRIOR_S + max(0.0, watched_s))
    )


def beta_below(x: float, a: float, b: float) -> float:
    """P(X <= x) for X ~ Beta(a, b): the regularised incomplete beta function, by its continued fraction (DLMF 8.17)."""
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x))
    if x > (a + 1) / (a + b + 2):
        return 1.0 - front / b * _fraction(1.0 - x, b, a)
    return front / a * _fraction(x, a, b)


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction by Lentz's method; it converges fast where x is below the mean."""
    c, d = 1.0, 1.0 / _not_nothing(1.0 - (a + b) * x / (a + 1.0))
    whole = d
    for m in range(1, 500):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / _not_nothing(1.0 + term * d)
            c = _not_nothing(1.0 + term / c)
            whole *= c * d
        if abs(c * d - 1.0) < 1e-12:
            break
    return whole


def _not_nothing(x: float) -> float:
    return x if abs(x) > _TINY else _TINY
