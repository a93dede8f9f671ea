"""What `/metrics` and `/status` say of questions that a fallback had a part in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, Metric

from understudy.policies.questions import Questions
from understudy.proxy.stack import RouteParts

QUESTION_METRICS = {
    "understudy_questions_fell_total": "Questions that a fallback has answered at least one leg of",
    "understudy_questions_linked_total": "Calls found to belong to such a question: by trace, vector or passages",
    "understudy_built_on_fallback_total": "Answers that said which legs before them a fallback has answered",
}
RECENT = 8
"""Questions that `/status` shows."""


def question_metrics(routes: Iterable[RouteParts], questions: Questions) -> Iterator[Metric]:
    """What all questions have come to."""
    fell = _counter("understudy_questions_fell_total", [])
    fell.add_metric([], questions.seen)
    linked = _counter("understudy_questions_linked_total", ["by"])
    for by, count in questions.linked.items():
        linked.add_metric([by], count)
    built = _counter("understudy_built_on_fallback_total", ["route"])
    for parts in routes:
        if parts.story is not None:
            built.add_metric([parts.name], parts.story.built_on)
    yield from (fell, linked, built)


def question_status(questions: Questions, now: float) -> dict[str, Any]:
    """The questions of the last minute that a fallback had a part in, the latest first."""
    recent = [
        {
            "id": question.id,
            "age_s": round(now - question.began, 1),
            "legs": [{name: value for name, value in leg._asdict().items() if value} for leg in question.legs],
        }
        for question in questions.recent(RECENT)
    ]
    return {"questions": {"fell": questions.seen, "linked": dict(questions.linked), "recent": recent}}


def merged_questions(statuses: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Those of several workers, which tell each other: each once, where the most is known of it."""
    each = [status["questions"] for status in statuses if "questions" in status]
    if not each:
        return {}
    by_id: dict[str, dict[str, Any]] = {}
    for one in (question for told in each for question in told["recent"]):
        known = by_id.get(one["id"])
        if known is None or len(one["legs"]) > len(known["legs"]):
            by_id[one["id"]] = one
    recent = sorted(by_id.values(), key=lambda one: one["age_s"])[:RECENT]
    linked = {by: sum(told["linked"][by] for told in each) for by in each[0]["linked"]}
    return {"questions": {"fell": sum(told["fell"] for told in each), "linked": linked, "recent": recent}}


def _counter(name: str, labels: list[str]) -> CounterMetricFamily:
    return CounterMetricFamily(name, QUESTION_METRICS[name], labels=labels)
