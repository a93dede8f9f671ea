"""Say how likely a component is to fail soon, how often such a saying was true, and from when on it may be believed.

    look, each STEP_S --> six opinions --weighed by how well they did--> risk --held until the truth is out--> learn

    |<- predicted at t         |<------- it fails in here: true ------->|
    t                          t + LEAD_S                               t + LEAD_S + WINDOW_S

    base      how often it fails at all: Gamma-Poisson, one failure a day before anything is known
    change    how often it does within half an hour of a change, and otherwise
    failure   ... of a failure;  hour  ... in this hour of the day;  drift  ... of a number that has begun to rise
    signals   a ridge logistic regression on FEATURES (`policies.learning`)

Everything is prequential: what is said is scored before it is learnt from. A failure that comes before its window opens
makes what was said then neither true nor false. Failures that go on are one, and while one goes on nothing is foretold.

TRUST GATE: before ten failures have been met, and before its Brier score is better than the base rate's, a risk is a
number for people to look at ("learning") and no reason to warn anybody. At one failure a day, a predictor that is wrong
one time in a hundred is wrong two times of three that it warns: Salfner, Lenk, Malek (ACM CSUR 42(3), 2010).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from math import exp, log
from typing import Any, Literal, NamedTuple

from understudy.policies.learning import UNUSUAL_MAX, Logistic, PageHinkley, Scale, logit, numbers

LEAD_S, WINDOW_S, STEP_S = 60.0, 600.0, 60.0
DAY_S, HOUR_S = 86400.0, 3600.0
AFTER_S = 1800.0
"""For so long a change, a failure or a drift is recent."""
QUIET_S = 300.0
"""Without a failure for so long, a component counts as up again, and its next failure as another."""
WARN_RISK = 0.7
POSITIVES_MIN = 10
BINS = (0.1, 0.3, 0.7, 0.9)
"""Where one reliability bin ends and the next begins."""
SHRINK = 2.0
"""Failures' worth of belief that a condition changes nothing."""
EFFECTIVE = STEP_S / WINDOW_S
"""What one look counts for: ten looks see the same failure in their windows, and are one piece of evidence."""
SIGNALS_EFFECTIVE = 2 * EFFECTIVE
"""For the regression: ten looks see the same failure, and each by numbers of its own."""
SWITCH_SHARE = 1e-3
"""Of the weight is shared out anew at each step, so that an opinion that was bad for a month can become good."""
FORGET = 1.0 / 43200.0
"""Scores are of about the last month."""
LEAST, MOST = 1e-5, 0.999
PENDING_MAX = 64


class Feature(NamedTuple):
    """One number about a component: its name, what its rise means in words, and a difference too small to matter."""

    name: str
    words: str
    floor: float


FEATURES = (
    Feature("error_share", "more of its answers are failures", 0.01),
    Feature("busy_share", "it says more often that it is busy", 0.01),
    Feature("slow_ratio", "its slowest answers are further from the usual ones", 0.2),
    Feature("first_byte_slope", "its answers take longer and longer", 0.05),
    Feature("pool_wait", "calls wait for a connection to it", 0.005),
    Feature("limit_fall", "its concurrency limit is falling", 0.05),
    Feature("check_failures", "more of its health checks fail", 0.05),
    Feature("budget_burn", "its routes spend their error budget faster", 0.2),
    Feature("memory_growth", "the sidecar's memory grows", 0.01),
    Feature("fd_share", "the sidecar has more files and sockets open", 0.01),
    Feature("loop_lag", "the sidecar's event loop is late", 0.005),
    Feature("calls", "it is called more", 0.2),
)
OPINIONS = ("base", "change", "failure", "hour", "drift", "signals")
Trust = Literal["learning", "trusted"]


class Prediction(NamedTuple):
    """What is said at `at`: the risk, each opinion and its weight, and the features that add most to it."""

    at: float
    risk: float
    base: float
    opinions: tuple[float, ...]
    weights: tuple[float, ...]
    leading: tuple[tuple[str, float], ...]


class Score(NamedTuple):
    """How true what was said turned out to be. None where nothing can be said yet."""

    positives: int
    brier: float | None
    skill: float | None
    precision: float | None
    recall: float | None
    bins: tuple[tuple[float, float, float], ...]
    """For each of five bins: how many predictions (the older ones count for less), their mean, and how often true."""


class _Pending(NamedTuple):
    prediction: Prediction
    x: list[float]
    conditions: tuple[int, ...]


class Share:
    """How often it was true while a condition held, in one number or another; shrunk to the base."""

    __slots__ = ("happened", "looked")

    def __init__(self, kinds: int) -> None:
        self.happened = [0.0] * kinds
        self.looked = [0.0] * kinds

    def of(self, kind: int, base: float) -> float:
        belief = SHRINK / max(base, LEAST)
        return (self.happened[kind] + SHRINK) / (self.looked[kind] + belief) if base else 0.0

    def learn(self, kind: int, happened: bool) -> None:
        self.looked[kind] += EFFECTIVE
        self.happened[kind] += EFFECTIVE * happened


class Risk:
    """One component's. Times are seconds since the epoch, and only go forward."""

    def __init__(self) -> None:
        self.failures = 0
        self.watched_s = 0.0
        self.failed_at = float("-inf")
        self.drifted_at = float("-inf")
        self.latest: Prediction | None = None
        self._looked_at = float("-inf")
        self._onsets: deque[float] = deque(maxlen=PENDING_MAX)
        self._pending: deque[_Pending] = deque(maxlen=PENDING_MAX)
        self._scale = Scale([feature.floor for feature in FEATURES])
        self._detectors = [PageHinkley() for _ in FEATURES]
        self._shares = {"change": Share(2), "failure": Share(2), "hour": Share(24), "drift": Share(2)}
        self._signals = Logistic(len(FEATURES) + 1, logit(self._base()))
        self._weights = [1.0 / len(OPINIONS)] * len(OPINIONS)
        self.ledger = Ledger()

    # --- what is told ----------------------------------------------------------------------------------------------

    def failed(self, at: float) -> None:
        """It failed, or fails still."""
        if at - self.failed_at >= QUIET_S:
            self.failures += 1
            self._onsets.append(at)
            self.ledger.met(at, self._pending)
        self.failed_at = max(self.failed_at, at)
        # what is so already is not foretold
        self.latest = None

    def look(self, now: float, raw: Sequence[float], changed_at: float = float("-inf")) -> Prediction | None:
        """A minute has gone by: learn what has come true, and say what is to come; None while it fails.

        `raw` are FEATURES in their order; `changed_at` is when anything was changed last.
        """
        gone_s = now - self._looked_at
        self._looked_at = now
        if gone_s > 3 * STEP_S:
            # nobody looked: what failed meanwhile, and whether, is not known
            self._pending.clear()
        else:
            self.watched_s += max(0.0, gone_s)
        self._mature(now)
        unusual = self._scale.unusual(raw)
        self._scale.learn(raw)
        # each of them is to see its value, whatever the others find
        drifted = [detector.look(value) for detector, value in zip(self._detectors, unusual, strict=True)]
        if any(drifted):
            self.drifted_at = now
        if now - self.failed_at < QUIET_S:
            self.latest = None
            return None
        conditions = (
            int(now - changed_at < AFTER_S),
            int(now - self.failed_at < AFTER_S),
            int(now % DAY_S // HOUR_S),
            int(now - self.drifted_at < AFTER_S),
        )
        prediction = self.latest = self._said(now, unusual, conditions)
        self._pending.append(_Pending(prediction, [1.0, *unusual], conditions))
        return prediction

    def _base(self) -> float:
        rate = (1.0 + self.failures) / (DAY_S + self.watched_s)
        return 1.0 - exp(-rate * WINDOW_S)

    def _said(self, now: float, unusual: Sequence[float], conditions: tuple[int, ...]) -> Prediction:
        base = self._base()
        x = [1.0, *unusual]
        opinions = (
            base,
            *(share.of(kind, base) for share, kind in zip(self._shares.values(), conditions, strict=True)),
            self._signals.predict(x),
        )
        opinions = tuple(min(MOST, max(LEAST, opinion)) for opinion in opinions)
        risk = sum(weight * opinion for weight, opinion in zip(self._weights, opinions, strict=True))
        parts = self._signals.parts(x)[1:]
        leading = sorted(
            ((feature.name, part) for feature, part in zip(FEATURES, parts, strict=True) if part > 0.1),
            key=lambda named: -named[1],
        )
        return Prediction(now, risk, base, opinions, tuple(self._weights), tuple(leading[:3]))

    # --- what is learnt --------------------------------------------------------------------------------------------

    def _mature(self, now: float) -> None:
        while self._pending and self._pending[0].prediction.at + LEAD_S + WINDOW_S <= now:
            one = self._pending.popleft()
            at = one.prediction.at
            if any(at < onset < at + LEAD_S for onset in self._onsets):
                continue
            happened = any(at + LEAD_S <= onset <= at + LEAD_S + WINDOW_S for onset in self._onsets)
            self.ledger.matured(one.prediction, happened)
            self._reweigh(one.prediction.opinions, happened)
            for share, kind in zip(self._shares.values(), one.conditions, strict=True):
                share.learn(kind, happened)
            self._signals.learn(one.x, happened, SIGNALS_EFFECTIVE)

    def _reweigh(self, opinions: tuple[float, ...], happened: bool) -> None:
        """Each opinion's weight, times how likely it held what came: a Bayesian mixture whose best may change."""
        likely = [
            weight * exp(EFFECTIVE * log(opinion if happened else 1.0 - opinion))
            for weight, opinion in zip(self._weights, opinions, strict=True)
        ]
        total = sum(likely)
        even = SWITCH_SHARE * EFFECTIVE / len(likely)
        self._weights = [(1.0 - SWITCH_SHARE * EFFECTIVE) * each / total + even for each in likely]

    # --- what may be believed --------------------------------------------------------------------------------------

    @property
    def trust(self) -> Trust:
        """Whether a risk of this component may warn anybody."""
        score = self.ledger.score()
        may = score.positives >= POSITIVES_MIN and score.skill is not None and score.skill > 0
        return "trusted" if may else "learning"

    @property
    def warns(self) -> bool:
        """Whether it is to be warned of now."""
        return self.latest is not None and self.latest.risk > WARN_RISK and self.trust == "trusted"

    # --- kept over a restart ---------------------------------------------------------------------------------------

    def kept(self) -> dict[str, object]:
        """As values for JSON: all that was learnt, and nothing of what was still open."""
        return {
            "failures": self.failures,
            "watched_s": self.watched_s,
            "failed_at": max(0.0, self.failed_at),
            "scale": self._scale.kept(),
            "signals": self._signals.kept(),
            "weights": self._weights,
            "shares": {name: [share.happened, share.looked] for name, share in self._shares.items()},
            "ledger": self.ledger.kept(),
        }

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Risk:
        """As it was kept. Raises ValueError, KeyError or TypeError for what can't be one of ours."""
        risk = cls()
        risk.failures = int(kept["failures"])
        risk.watched_s = float(kept["watched_s"])
        risk.failed_at = float(kept["failed_at"])
        risk._scale.recall(kept["scale"])
        risk._signals.recall(kept["signals"])
        risk._weights = numbers(kept["weights"], len(OPINIONS))
        for name, share in risk._shares.items():
            happened, looked = kept["shares"][name]
            size = len(share.looked)
            share.happened, share.looked = numbers(happened, size), numbers(looked, size)
        risk.ledger.recall(kept["ledger"])
        return risk


class Ledger:
    """What was said and what became of it. `bins` are predictions, their sum, and how many were true."""

    __slots__ = ("_bins", "_brier", "_brier_base", "_foreseen", "_looks", "_met", "_right", "_warned", "positives")

    def __init__(self) -> None:
        self.positives = 0
        self._looks = self._brier = self._brier_base = 0.0
        self._warned = self._right = 0.0
        self._met = self._foreseen = 0.0
        self._bins = [[0.0, 0.0, 0.0] for _ in range(len(BINS) + 1)]

    def met(self, onset: float, pending: Sequence[_Pending]) -> None:
        """A failure has come: was it warned of in time? Not counted where nothing was said in time to be true."""
        said = [
            one.prediction.risk
            for one in pending
            if one.prediction.at + LEAD_S <= onset <= one.prediction.at + LEAD_S + WINDOW_S
        ]
        if said:
            self.positives += 1
            self._met += 1.0
            self._foreseen += max(said) > WARN_RISK

    def matured(self, said: Prediction, happened: bool) -> None:
        """Its window has gone by."""
        truth = float(happened)
        keep = 1.0 - FORGET
        self._looks = self._looks * keep + 1.0
        self._brier = self._brier * keep + (said.risk - truth) ** 2
        self._brier_base = self._brier_base * keep + (said.base - truth) ** 2
        warned = said.risk > WARN_RISK
        self._warned = self._warned * keep + warned
        self._right = self._right * keep + (warned and happened)
        at = sum(said.risk >= edge for edge in BINS)
        for n, into in enumerate(self._bins):
            mine = n == at
            into[:] = [into[0] * keep + mine, into[1] * keep + mine * said.risk, into[2] * keep + mine * truth]

    def score(self) -> Score:
        """How good all that was."""
        return Score(
            self.positives,
            self._brier / self._looks if self._looks else None,
            1.0 - self._brier / self._brier_base if self._brier_base else None,
            self._right / self._warned if self._warned else None,
            self._foreseen / self._met if self._met else None,
            tuple((many, total / many, true / many) if many else (0.0, 0.0, 0.0) for many, total, true in self._bins),
        )

    def kept(self) -> dict[str, object]:
        """As values for JSON."""
        sums = [self._looks, self._brier, self._brier_base, self._warned, self._right, self._met, self._foreseen]
        return {"positives": self.positives, "sums": sums, "bins": self._bins}

    def recall(self, kept: Mapping[str, Any]) -> None:
        """Go on from there. Raises ValueError for what is not one of ours."""
        sums = numbers(kept["sums"], 7)
        bins = [numbers(each, 3) for each in kept["bins"]]
        if len(bins) != len(BINS) + 1:
            raise ValueError(f"{len(bins)} bins")
        self._looks, self._brier, self._brier_base, self._warned, self._right, self._met, self._foreseen = sums
        self._bins, self.positives = bins, int(kept["positives"])


def why(prediction: Prediction) -> Iterator[str]:
    """A risk in sentences: who holds it for so likely, how much that counts, and what it goes by."""
    words = {
        "change": "something was changed, or was not",
        "failure": "its last failure, or that it is long past",
        "hour": "the hour of the day",
        "drift": "numbers that have begun to rise, or have not",
        "signals": "how it does just now",
    }
    ranked = sorted(
        zip(prediction.weights, prediction.opinions, OPINIONS, strict=True), key=lambda each: -each[0] * each[1]
    )
    for weight, opinion, name in ranked:
        if weight >= 0.05:
            yield f"{opinion:.1%} by {words.get(name, 'how often it fails at all')} (weight {weight:.0%})"
    by_name = {feature.name: feature.words for feature in FEATURES}
    for name, _ in prediction.leading:
        yield f"{by_name[name]} ({name})"


def features(told: Mapping[str, float]) -> list[float]:
    """FEATURES in their order, of what is known of them; what is not known is as if nothing were the matter."""
    bound = 1e6 * UNUSUAL_MAX
    return [max(-bound, min(bound, told.get(feature.name, 0.0))) for feature in FEATURES]
