"""What is found with dead primaries, beside what was found before, through the running sidecar: the bench, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.fallback import KEPT_MIN, Passage, Question, Site, bars, measure
from understudy.indexes.library import Library
from understudy.proxy.knowledge import KNOWLEDGE, collections_folder

pytestmark = pytest.mark.real
QUESTIONS = Path(__file__).parents[1] / "data" / "knowledge_questions.jsonl"


def test_dead_primaries_cost_a_search_by_the_applications_own_vectors_next_to_none_of_its_recall(
    made_state: Path, tmp_path: Path
):
    points, _ = Library(collections_folder(made_state)).open(KNOWLEDGE).scroll(None, 10_000)
    passages = [Passage(n, point.text) for n, point in enumerate(points)]
    questions = [
        Question(one["question"], next(n for n, point in enumerate(points) if answers(point, one)))
        for one in map(json.loads, QUESTIONS.read_text("utf-8").splitlines())
    ]
    told = measure(Site(tmp_path, made_state / "models"), passages, questions)
    assert told["alive"].quality.recall_10 >= 0.8
    assert all(bar.holds and bar.least == KEPT_MIN for bar in bars(told)), told
    count = len(questions)
    assert (told["alive"].embedded, told["alive"].searched) == ({"openai": count}, {"qdrant": count})
    for name in ("handle", "dark"):
        assert (told[name].embedded, told[name].searched) == ({"local-embed": count}, {"local-index": count})
    assert (told["copied"].embedded, told["copied"].searched) == ({"openai": count}, {"local-index": count})


def answers(point: object, one: dict[str, str]) -> bool:
    """Whether a passage is the one that a question asks for."""
    return getattr(point, "source", "") == one["file"] and one["contains"] in getattr(point, "text", "")
