"""A component that fails now and then, as its risk sees it: seeded numbers a minute, failures, changes and ramps."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from understudy.policies.risk import DAY_S, LEAD_S, STEP_S, WARN_RISK, WINDOW_S, Risk, features

RAMP_S = 300.0


class Said(NamedTuple):
    """What was foretold at one time, and whether anybody was to be warned."""

    at: float
    risk: float
    warns: bool


class Story(NamedTuple):
    """What happened, and what was said of it beforehand."""

    risk: Risk
    failures: list[float]
    said: list[Said]

    def is_true(self, at: float) -> bool:
        return any(at + LEAD_S <= failure <= at + LEAD_S + WINDOW_S for failure in self.failures)

    def is_undecided(self, at: float) -> bool:
        """A failure came before the window opened."""
        return any(at < failure < at + LEAD_S for failure in self.failures)

    def after(self, since: float) -> list[Said]:
        return [one for one in self.said if one.at > since and not self.is_undecided(one.at)]


def usual(dice: Random) -> dict[str, float]:
    """A component that is well: mostly quiet, and one minute in a hundred a spike that means nothing."""
    spike = (dice.random() < 0.01) * dice.random()
    return {
        "error_share": dice.expovariate(1 / 0.003) + spike / 10,
        "busy_share": dice.expovariate(1 / 0.002),
        "slow_ratio": 0.8 + dice.gauss(0, 0.2) + spike,
        "first_byte_slope": dice.gauss(0, 0.05),
        "pool_wait": dice.expovariate(1 / 0.001),
        "limit_fall": dice.gauss(0, 0.03),
        "check_failures": dice.expovariate(1 / 0.02),
        "budget_burn": dice.expovariate(1 / 0.2),
        "memory_growth": dice.gauss(0, 0.005),
        "fd_share": 0.1 + dice.gauss(0, 0.005),
        "loop_lag": dice.expovariate(1 / 0.002),
        "calls": 5 + dice.gauss(0, 0.3),
    }


def story(seed: int, *, days: float, failures_a_day: float, ramps: bool, false_ramps: float = 0.3) -> Story:
    """So many days of a look a minute; with `ramps`, five minutes of it getting worse go before each failure, and
    `false_ramps` times as often it gets half as bad and recovers. Changes come three times a day and mean nothing."""
    dice = Random(seed)
    end = days * DAY_S
    failures = list(_times(dice, failures_a_day, end, apart_s=1800))
    changes = [float("-inf"), *_times(dice, 3.0, end)]
    falsely = [dice.uniform(0, end) for _ in range(int(len(failures) * false_ramps))] if ramps else []
    risk, said, met = Risk(), list[Said](), 0
    for minute in range(int(end / STEP_S)):
        now = minute * STEP_S
        while met < len(failures) and failures[met] <= now:
            risk.failed(failures[met])
            met += 1
        raw = usual(dice)
        if ramps:
            for height in (_height(now, failures[met : met + 1]), 0.5 * _height(now, falsely)):
                raw["error_share"] += 0.3 * height
                raw["slow_ratio"] += 1.5 * height
                raw["limit_fall"] += 0.3 * height
        changed_at = max(at for at in changes if at <= now)
        prediction = risk.look(now, features(raw), changed_at)
        if prediction is not None:
            said.append(Said(now, prediction.risk, risk.warns))
    return Story(risk, failures, said)


def _times(dice: Random, a_day: float, end: float, apart_s: float = 0.0) -> Iterator[float]:
    at = 0.0
    while (at := at + apart_s + dice.expovariate(a_day / DAY_S)) < end:
        yield at


def _height(now: float, peaks: list[float]) -> float:
    """How far up the ramp before one of these times is, from 0 to 1."""
    return max((1 - (peak - now) / RAMP_S for peak in peaks if now <= peak <= now + RAMP_S), default=0.0)


def recall(told: Story, since: float) -> float:
    """The share of later failures that were warned of, LEAD_S before at the latest and not too early."""
    warned = [one.at for one in told.after(since) if one.risk > WARN_RISK]
    later = [at for at in told.failures if at > since]
    met = [any(at + LEAD_S <= failure <= at + LEAD_S + WINDOW_S for at in warned) for failure in later]
    return sum(met) / len(met)
