"""The handbook that ships answers what an operator asks of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from understudy.indexes.library import Library
from understudy.models.embedder import load
from understudy.models.extractive import Passage, best_sentences
from understudy.proxy.knowledge import KNOWLEDGE, collections_folder, models_folder

pytestmark = pytest.mark.real
QUESTIONS = Path(__file__).parents[1] / "data" / "knowledge_questions.jsonl"


def test_nine_questions_in_ten_find_their_section_among_five_and_it_is_quoted(
    made_state: Path, record_property: Callable[[str, object], None]
):
    embedder = load(None, models_folder(made_state), "cpu")
    collection = Library(collections_folder(made_state)).open(KNOWLEDGE)
    assert collection.count >= 60
    asked = [json.loads(line) for line in QUESTIONS.read_text("utf-8").splitlines()]
    found = quoted = 0
    for one in asked:
        hits = collection.search_fused(embedder.embed([one["question"]])[0], one["question"], 5)
        found += any(hit.source == one["file"] and one["contains"] in hit.text for hit in hits)
        passages = [Passage(hit.source, hit.text, hit.score) for hit in hits]
        extract = best_sentences(one["question"], passages, embedder.embed, k=3)
        quoted += any(quote.source == one["file"] for quote in extract.quotes)
    record_property("found", found / len(asked))
    record_property("quoted", quoted / len(asked))
    assert found / len(asked) >= 0.9, f"{found} of {len(asked)} found"
    assert quoted / len(asked) >= 0.8, f"{quoted} of {len(asked)} quoted"
