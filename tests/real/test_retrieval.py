"""Questions find their passages of the handbook through the running sidecar, by vectors, by words, and by both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.retrieval import POLICIES, Asking, quality
from tests.kit.processes import Sidecar
from understudy.indexes.library import Library
from understudy.proxy.knowledge import KNOWLEDGE, collections_folder

pytestmark = pytest.mark.real
QUESTIONS = Path(__file__).parents[1] / "data" / "knowledge_questions.jsonl"


def test_each_way_of_searching_finds_what_was_asked_for_and_both_together_find_most(state: Path, folder: Path):
    asked = [json.loads(line) for line in QUESTIONS.read_text("utf-8").splitlines()]
    texts = [one["question"] for one in asked]
    points, _ = Library(collections_folder(state)).open(KNOWLEDGE).scroll(None, 10_000)
    gold = [
        next(point.id for point in points if point.source == one["file"] and one["contains"] in point.text)
        for one in asked
    ]
    (folder / "bench.yaml").write_text(POLICIES)
    with Sidecar(folder, state) as sidecar:
        asking = Asking(sidecar.port)
        vectors = asking.vectors(texts)
        dense = quality(asking.dense(KNOWLEDGE, vectors), gold)
        words = quality(asking.worded(KNOWLEDGE, texts), gold)
        fused = quality(asking.worded(KNOWLEDGE, texts, vectors), gold)
    assert dense.recall_10 >= 0.85
    assert words.recall_10 >= 0.8
    assert fused.recall_10 >= 0.9
    assert fused.ndcg_10 >= max(dense.ndcg_10, words.ndcg_10) - 0.05
    assert fused.recall_1 <= fused.recall_5 <= fused.recall_10 <= 1.0
