"""Decide which alert is told to whom, and when: news at once, what goes on again and again, what is over for a while.

    wrong --> FIRING(since) --told at once, then each RESEND_S---> ... --no longer wrong--> RESOLVED(at)
                ^                                                                              | told for TELL_S
                +------------------------ wrong again: a new one ------------------------------+

An alert is its labels: nothing that changes while it lasts is among them, or Alertmanager would take each for another.
What a cause explains is not told beside it: where calls go unanswered, they are late as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

RESEND_S = 60.0
TELL_S = 300.0
"""For how long an alert that is over is told: an Alertmanager that was away hears of it, too."""
ALERTS_MAX = 1000
CAUSES: dict[str, frozenset[str]] = {
    "UnderstudyUnanswered": frozenset({"UnderstudyErrors", "UnderstudyLate", "UnderstudyOnFallback"}),
    "UnderstudyErrors": frozenset({"UnderstudyLate"}),
    # who is on its fallback waits for the first tier now and then, and what that one finds is not what counts
    "UnderstudyOnFallback": frozenset({"UnderstudyLate", "UnderstudyRetrieval"}),
}
"""What an alert explains, of the same route."""
MILD = frozenset({"UnderstudyOnFallback"})
"""These wake nobody, and so they explain nothing that would."""

Labels = tuple[tuple[str, str], ...]


class Alert(NamedTuple):
    """Something is wrong. `labels` say what, sorted by name; `annotations` say how it is just now."""

    labels: Labels
    annotations: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """16 hex digits that stand for the labels."""
        text = "\n".join(f"{name}\x1f{value}" for name, value in self.labels)
        return blake2b(text.encode(), digest_size=8).hexdigest()


class Notice(NamedTuple):
    """What is to be told of an alert. `is_news` where it has begun or ended, and not merely goes on; `ends_at` is None
    while it lasts. Times are seconds since the epoch."""

    alert: Alert
    starts_at: float
    ends_at: float | None
    is_news: bool


@dataclass(slots=True)
class _Held:
    alert: Alert
    starts_at: float
    told_at: float
    ends_at: float | None = None


class Desk:
    """What is firing, and what of it has been told when."""

    __slots__ = ("_held", "dropped")

    def __init__(self) -> None:
        self._held: dict[Labels, _Held] = {}
        self.dropped = 0

    @property
    def firing(self) -> list[Alert]:
        return [held.alert for held in self._held.values() if held.ends_at is None]

    def look(self, now: float, wrong: Iterable[Alert]) -> list[Notice]:
        """All that is wrong now -> what is to be told of it, and of what no longer is."""
        notices: list[Notice] = []
        current = {alert.labels: alert for alert in without_effects(list(wrong))}
        for labels, alert in current.items():
            held = self._held.get(labels)
            if held is None and len(self._held) >= ALERTS_MAX:
                self.dropped += 1
            elif held is None or held.ends_at is not None:
                self._held[labels] = _Held(alert, now, now)
                notices.append(Notice(alert, now, None, is_news=True))
            else:
                held.alert = alert
                if now - held.told_at >= RESEND_S:
                    held.told_at = now
                    notices.append(Notice(alert, held.starts_at, None, is_news=False))
        for labels, held in list(self._held.items()):
            if labels not in current:
                notices += self._ended(now, labels, held)
        return notices

    def _ended(self, now: float, labels: Labels, held: _Held) -> list[Notice]:
        is_news = held.ends_at is None
        if held.ends_at is None:
            held.ends_at = now
        elif now - held.ends_at > TELL_S:
            del self._held[labels]
            return []
        elif now - held.told_at < RESEND_S:
            return []
        held.told_at = now
        return [Notice(held.alert, held.starts_at, held.ends_at, is_news)]

    # --- kept over a restart ---------------------------------------------------------------------------------------

    def kept(self) -> list[dict[str, object]]:
        """What fires, as values for JSON."""
        return [
            {"labels": dict(labels), "annotations": dict(held.alert.annotations), "starts_at": held.starts_at}
            for labels, held in self._held.items()
            if held.ends_at is None
        ]

    def recall(self, labels: Mapping[str, str], annotations: Mapping[str, str], starts_at: float) -> None:
        """This was firing when we ended, and has been told: it is no news."""
        alert = Alert(tuple(sorted(labels.items())), dict(annotations))
        self._held[alert.labels] = _Held(alert, starts_at, starts_at)


def without_effects(wrong: list[Alert]) -> list[Alert]:
    """These alerts without those that another one of the same route explains."""
    explained: set[tuple[str, str, str]] = set()
    for alert in wrong:
        labels = dict(alert.labels)
        severities = ("warning",) if labels["alertname"] in MILD else ("warning", "critical")
        effects = CAUSES.get(labels["alertname"], ())
        explained |= {(effect, labels.get("route", ""), each) for effect in effects for each in severities}
    return [alert for alert in wrong if _what(dict(alert.labels)) not in explained]


def _what(labels: Mapping[str, str]) -> tuple[str, str, str]:
    return labels["alertname"], labels.get("route", ""), labels.get("severity", "critical")
