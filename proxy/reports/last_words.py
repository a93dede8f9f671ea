"""What `/metrics` says of last words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from understudy.proxy.stack import RouteParts

LAST_WORDS_METRICS = {
    "understudy_last_words_total": "Prepared answers and messages given, and calls that could have neither, and why",
    "understudy_last_words_questions": "Questions that were foreseen: all of them, and those found by vectors as well",
    "understudy_local_sentences": "Sentences whose vectors are kept, so that they can be quoted at once",
}


def last_words_metrics(routes: Iterable[RouteParts], sentences: int) -> Iterator[Metric]:
    """What every route has said last; `sentences` have vectors."""
    said = CounterMetricFamily(*_named("understudy_last_words_total"), labels=["route", "source", "how"])
    questions = GaugeMetricFamily(*_named("understudy_last_words_questions"), labels=["route", "state"])
    for parts in routes:
        words, name = parts.last_words, parts.route.name
        if words is None:
            continue
        for key, count in words.counts.items():
            said.add_metric([name, *key.split(" ", 1)], count)
        questions.add_metric([name, "known"], len(words.foreseen.questions))
        questions.add_metric([name, "embedded"], words.embedded)
    kept = GaugeMetricFamily(*_named("understudy_local_sentences"))
    kept.add_metric([], sentences)
    yield from (said, questions, kept)


def _named(name: str) -> tuple[str, str]:
    return name, LAST_WORDS_METRICS[name]
