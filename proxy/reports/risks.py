"""What is told of risks, changes and the journal: to alerts, `/risk`, `/changes`, `/metrics` and the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from understudy.policies.alerts import Alert
from understudy.policies.attribution import Suspect
from understudy.policies.recommendations import in_words
from understudy.policies.risk import BINS, LEAD_S, POSITIVES_MIN, WARN_RISK, WINDOW_S, Risk, Score, why
from understudy.proxy.reports.journal import JOURNAL_METRICS
from understudy.proxy.reports.recovery import recovering
from understudy.proxy.settings.settings import Route, Settings

if TYPE_CHECKING:
    from understudy.proxy.control.entries import Entry
    from understudy.proxy.control.learning import Learner
    from understudy.proxy.control.wire import Family

SUSPECTS_TOLD_MAX = 3
UNUSUAL_TIMES = 3
NO_CHANGE = "none in the last day"
NOTHING_ILL, NOTHING_DONE = "none is ill", "nothing is being done"
ILL = ("degraded", "unhealthy")
RUNBOOKS = {
    "vector_database": "20-runbook-vector-database-down.md",
    "embedding_service": "19-runbook-embedding-and-llm-down.md",
    "llm_service": "19-runbook-embedding-and-llm-down.md",
    "local_model": "24-runbook-local-model-and-index.md",
    "local_index": "24-runbook-local-model-and-index.md",
}
RUNBOOK = "25-runbook-network-and-resources.md"


# --- alerts --------------------------------------------------------------------------------------------------------


class Learnt:
    """What is learnt, beside a lookout: what else is wrong, what belongs to each alert, and a page of its own."""

    page = "risk"

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    async def run(self) -> None:
        await self.learner.run()

    def families(self) -> list[Family]:
        return journal_families(self.learner)

    def told(self) -> dict[str, Any]:
        return risk_told(self.learner, self.learner.now)

    def summary(self) -> dict[str, Any]:
        """For `/status`: what is to be warned of, and what is riskier than usual."""
        risks = {name: risk for name, risk in self.learner.risks.items() if risk.latest is not None}
        unusual = {
            name: {"risk": round(risk.latest.risk, 3), "base": round(risk.latest.base, 3), "trust": risk.trust}
            for name, risk in risks.items()
            if risk.latest is not None and (risk.warns or risk.latest.risk > UNUSUAL_TIMES * risk.latest.base)
        }
        return {"components": len(self.learner.risks), "unusual": unusual}

    def annotations(self, settings: Settings, route: str, now: float) -> dict[str, str]:
        """For an alert about a route, or about the whole where that is '': the three likeliest changes, what is ill,
        what recovery is doing, and whether some callers are sent to another arm."""
        learner = self.learner
        names = [name for name, one in learner.components.items() if not route or route in one.routes]
        doing = recovering(learner.events.recent)
        ill = [f"{name} is {learner.words[name]}" for name in names if learner.words.get(name) in ILL]
        told = {
            "changes": suspects_text(learner.suspects(names, now, is_failing=True), now),
            "components": "; ".join(ill) or NOTHING_ILL,
            "recovery": "; ".join(f"{name}: {doing[name]}" for name in names if name in doing) or NOTHING_DONE,
        }
        canary = [text for one in settings.routes if one.name == route and (text := canary_text(one))]
        return {**told, "canary": canary[0]} if canary else told

    def alerts(self, settings: Settings, now: float) -> list[Alert]:
        """What is likely to fail soon, as warnings, where that may be believed."""
        if not settings.server.journal.warns:
            return []
        return [self._warning(settings, name, risk, now) for name, risk in self.learner.risks.items() if risk.warns]

    def _warning(self, settings: Settings, name: str, risk: Risk, now: float) -> Alert:
        learner = self.learner
        latest, score = risk.latest, risk.ledger.score()
        assert latest is not None
        alerts = settings.server.alerts
        labels = {**alerts.labels, "alertname": "UnderstudyRisk", "component": name, "severity": "warning"}
        advice = [in_words(one) for one in learner.recommended(name, now)]
        annotations = {
            "summary": f"{name} is likely to fail in {LEAD_S / 60:.0f} to {(LEAD_S + WINDOW_S) / 60:.0f} minutes:"
            f" risk {latest.risk:.0%}, usually {latest.base:.1%}",
            "description": f"{'; '.join(why(latest))}. {record_text(score)}",
            "recommendations": "; ".join(advice) or "none is known",
            "changes": suspects_text(learner.suspects([name], now, is_failing=True), now),
            "runbook": alerts.runbook_url + RUNBOOKS.get(name.partition(":")[0], RUNBOOK),
            "policies": settings.digest,
        }
        return Alert(tuple(sorted(labels.items())), annotations)


def canary_text(route: Route) -> str:
    """Whether some of a route's callers are sent to another arm, as its policies say; '' where none are."""
    split = route.split
    return f"{split.share:.3g} of the keys go to the arm {split.arm}" if split is not None and split.share > 0 else ""


def suspects_text(ranked: Sequence[Suspect], now: float) -> str:
    """The three likeliest changes in a line, and which of them the numbers accuse."""
    told = [
        f"{n}. {one.change.component} {one.change.detail or one.change.kind}, {ago(now - one.change.at)} ago"
        f" ({one.share:.0%}{', accused' if one.is_accused else ''})"
        for n, one in enumerate(ranked[:SUSPECTS_TOLD_MAX], 1)
    ]
    return "; ".join(told) or NO_CHANGE


def record_text(score: Score) -> str:
    """How good what was said so far turned out to be, in a sentence."""
    if score.skill is None:
        return "Nothing that was said so far has come true or false yet."
    parts = [f"Brier skill {score.skill:.2f} against the base rate over {score.positives} failures"]
    if score.precision is not None:
        parts.append(f"{score.precision:.0%} of warnings came true")
    if score.recall is not None:
        parts.append(f"{score.recall:.0%} of failures were warned of")
    return "So far: " + ", ".join(parts) + "."


def ago(seconds: float) -> str:
    """A span of time for people."""
    if seconds < 90:
        return f"{max(0.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# --- what the admin port tells -------------------------------------------------------------------------------------


def risk_told(learner: Learner, now: float) -> dict[str, Any]:
    """`/risk`: every component, the riskiest first."""
    risks = sorted(learner.risks.items(), key=lambda each: -(each[1].latest.risk if each[1].latest else -1.0))
    return {
        "lead_s": LEAD_S,
        "window_s": WINDOW_S,
        "warns_above": WARN_RISK,
        "failures_needed": POSITIVES_MIN,
        "components": [_component_told(learner, name, risk, now) for name, risk in risks],
    }


def _component_told(learner: Learner, name: str, risk: Risk, now: float) -> dict[str, Any]:
    latest, score = risk.latest, risk.ledger.score()
    return {
        "component": name,
        "risk": None if latest is None else round(latest.risk, 4),
        "base": None if latest is None else round(latest.base, 4),
        "trust": risk.trust,
        "warns": risk.warns,
        "failures": risk.failures,
        "watched_s": round(risk.watched_s),
        "why": ["it fails, or has failed just now"] if latest is None and risk.failures else _why(risk),
        "score": _score_told(score),
        "suspects": [suspect_told(one) for one in learner.suspects([name], now)[:SUSPECTS_TOLD_MAX]],
        "recommendations": [
            {"action": one.action, "words": one.words, "evidence": one.evidence, "cause": one.cause}
            | {"tried": one.tried, "helped": one.helped}
            for one in learner.recommended(name, now)
        ],
    }


def _why(risk: Risk) -> list[str]:
    return [] if risk.latest is None else list(why(risk.latest))


def _score_told(score: Score) -> dict[str, Any]:
    rounded = {
        name: None if value is None else round(value, 5)
        for name, value in score._asdict().items()
        if name not in ("bins", "positives")
    }
    bins = [
        {"from": low, "to": high, "predictions": round(many, 1), "mean": round(mean, 4), "observed": round(true, 4)}
        for low, high, (many, mean, true) in zip((0.0, *BINS), (*BINS, 1.0), score.bins, strict=True)
    ]
    return {"positives": score.positives, **rounded, "bins": bins}


def suspect_told(one: Suspect) -> dict[str, Any]:
    """A change and what speaks against it, as JSON values."""
    return {
        "at": one.change.at,
        "component": one.change.component,
        "kind": one.change.kind,
        "detail": one.change.detail,
        "share": round(one.share, 4),
        "probability": round(one.probability, 4),
        "accused": one.is_accused,
        "failures_before": one.failures_before,
        "failures_after": one.failures_after,
        "watched_before_s": round(one.before_s),
        "watched_after_s": round(one.after_s),
    }


def entry_told(entry: Entry) -> dict[str, Any]:
    """One entry of the journal, as JSON values."""
    event = entry.event
    told = {"at": event.at, "family": event.family, "component": event.component, "kind": event.kind}
    told |= {"detail": event.detail, "facts": dict(event.facts)}
    return told | ({"numbers": dict(entry.numbers), "changes": list(entry.changes)} if entry.numbers else {})


# --- metrics -------------------------------------------------------------------------------------------------------

Row = tuple[dict[str, str], float]


def journal_families(learner: Learner) -> list[Family]:
    """What `/metrics` says of all this."""
    scores = {name: risk.ledger.score() for name, risk in learner.risks.items()}
    said = {name: risk.latest for name, risk in learner.risks.items() if risk.latest is not None}
    journal = learner.journal
    return [
        _family("understudy_risk", "gauge", _rows({name: one.risk for name, one in said.items()})),
        _family("understudy_prediction_base", "gauge", _rows({name: one.base for name, one in said.items()})),
        *(
            _family(f"understudy_prediction_{what}", "gauge", _rows(_known(scores, what)))
            for what in ("brier", "skill", "precision", "recall")
        ),
        _family(
            "understudy_prediction_positives_total",
            "counter",
            _rows({name: float(score.positives) for name, score in scores.items()}),
        ),
        _family(
            "understudy_prediction_trusted",
            "gauge",
            _rows({name: float(risk.trust == "trusted") for name, risk in learner.risks.items()}),
        ),
        _family("understudy_prediction_reliability", "gauge", _reliability(scores)),
        _family("understudy_journal_bytes", "gauge", [({}, float(journal.bytes()))] if journal else []),
        _family(
            "understudy_journal_events_total",
            "counter",
            [({"family": family}, float(count)) for family, count in learner.heard_of.items()],
        ),
        _family("understudy_journal_dropped_total", "counter", [({}, float(learner.dropped))]),
    ]


def _family(name: str, kind: Literal["gauge", "counter"], rows: Iterable[Row]) -> Family:
    return (name.removesuffix("_total"), kind, JOURNAL_METRICS[name], [(name, labels, value) for labels, value in rows])


def _rows(values: Mapping[str, float]) -> list[Row]:
    return [({"component": name}, value) for name, value in values.items()]


def _known(scores: Mapping[str, Score], what: str) -> dict[str, float]:
    told: dict[str, float | None] = {name: getattr(score, what) for name, score in scores.items()}
    return {name: value for name, value in told.items() if value is not None}


def _reliability(scores: Mapping[str, Score]) -> list[Row]:
    edges = [f"{low:g}-{high:g}" for low, high in zip((0.0, *BINS), (*BINS, 1.0), strict=True)]
    return [
        ({"component": name, "bin": edge}, true)
        for name, score in scores.items()
        for edge, (many, _, true) in zip(edges, score.bins, strict=True)
        if many >= 1.0
    ]


def at_told(at: float) -> str:
    """A time as people write it."""
    return datetime.fromtimestamp(at, UTC).isoformat(sep=" ", timespec="seconds").replace("+00:00", "Z")
