"""Print how good attribution and risk are on simulated histories: `python -m tests.policies.learning_table`.

The same simulations as the tests make, with more seeds; all of it is drawn from seeds and told the time, so that the
figures are the same on every machine. Takes a minute or two.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.policies.simulated_component import Story, recall, story
from tests.policies.test_attribution import history
from understudy.policies.risk import WARN_RISK

HISTORIES = 200
INNOCENT_HISTORIES = 400


def attribution() -> Iterator[str]:
    """A line for histories with and without names, and with failures one by one and in bursts."""
    for named in (False, True):
        for bursts in (False, True):
            first = accused = others = 0
            for seed in range(HISTORIES):
                ranked, culprit = history(seed, guilty=True, named=named, bursts=bursts)
                first += ranked[0].change == culprit
                accused += any(one.is_accused for one in ranked if one.change == culprit)
                others += sum(one.is_accused for one in ranked if one.change != culprit)
            falsely = sum(
                any(one.is_accused for one in history(seed, guilty=False, named=named, bursts=bursts)[0])
                for seed in range(1000, 1000 + INNOCENT_HISTORIES)
            )
            what = f"components {'named' if named else 'not named'}, failures {'in bursts' if bursts else 'one by one'}"
            yield (
                f"{what}: guilty first in {first} of {HISTORIES}, accused in {accused}, with {others} of"
                f" {4 * HISTORIES} innocents beside; none guilty: {falsely} of {INNOCENT_HISTORIES} accuse"
            )


def noise() -> Iterator[str]:
    """Thirty days without anything to be foreseen."""
    for seed, a_day in ((1, 2.0), (2, 12.0), (3, 0.5), (4, 30.0)):
        told = story(seed, days=30, failures_a_day=a_day, ramps=False)
        score = told.risk.ledger.score()
        yield (
            f"noise, {a_day:g} failures a day, seed {seed}: {sum(one.warns for one in told.said)} warnings in 30 days,"
            f" highest risk {max(one.risk for one in told.said):.2f}, skill {score.skill:.4f}"
        )


def ramps() -> Iterator[str]:
    """Five minutes of getting worse before each failure, and half as bad for nothing now and then."""
    for false_ramps in (0.0, 0.3, 1.0):
        for seed in range(1, 6):
            told = story(seed, days=20, failures_a_day=4, ramps=True, false_ramps=false_ramps)
            yield f"ramps, {false_ramps:g} false ones for each true one, seed {seed}: {_replayed(told)}"


def _replayed(told: Story) -> str:
    since = told.failures[19]
    warned = [one for one in told.after(since) if one.risk > WARN_RISK]
    likely = [one for one in told.after(since) if 0.7 <= one.risk < 0.9]
    precision = sum(told.is_true(one.at) for one in warned) / len(warned) if warned else float("nan")
    observed = sum(told.is_true(one.at) for one in likely) / len(likely) if likely else float("nan")
    return (
        f"{len(told.failures) - 20} failures after the first 20: recall {recall(told, since):.2f} at a lead of 60 s,"
        f" precision {precision:.2f}, bin 0.7-0.9 observed {observed:.2f} ({len(likely)}),"
        f" skill {told.risk.ledger.score().skill:.2f}"
    )


def main() -> None:
    """Print all of it."""
    for table in (attribution, noise, ramps):
        for line in table():
            print(line, flush=True)


if __name__ == "__main__":
    main()
