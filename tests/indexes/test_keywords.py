"""Keyword search: what people type is words, never a query language."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from understudy.indexes.faults import BadQuestion, CorruptIndex
from understudy.indexes.keywords import QUERY_WORDS_MAX, KeywordIndex

TEXTS = [
    "The breaker opens after too many failures.",
    "Retries are kept in a budget; the budget refills.",
    "A title: (x OR y) AND NOT z, as some would type it.",
    "naïve Ünïcode words and 日本語 text",
    "",
    "breaker breaker breaker",
]
SQUAD = Path(__file__).parents[3] / "shared" / "data" / "squad-dev"


@pytest.fixture(scope="module")
def keywords() -> KeywordIndex:
    return KeywordIndex.write(TEXTS)


def test_words_are_found_in_other_forms_and_the_densest_text_comes_first(keywords: KeywordIndex):
    found = keywords.search("Breakers", 5)
    assert [row for row, _ in found] == [5, 0]
    assert found[0][1] > found[1][1] > 0
    assert [row for row, _ in keywords.search("retry BUDGETING", 5)] == [1]
    assert [row for row, _ in keywords.search("ünïcode", 5)] == [3]


@pytest.mark.parametrize(
    "typed",
    [
        *('title:(x OR "', "+breaker -failures", "breaker^99999", "[a TO z}", "*", "?", "~~~", "\\", '"', "''", "/(x/"),
        *(
            "NOT",
            "AND OR NOT",
            "text:*",
            "row:0",
            "\x00",
            "\ud800",
            "\ufeff",
            "}{",
            "(((((((((((",
            "breaker~2",
            "IN [a b]",
        ),
    ],
)
def test_hostile_questions_are_words_and_break_nothing(keywords: KeywordIndex, typed: str):
    found = keywords.search(typed, 10)
    assert all(0 <= row < len(TEXTS) and score > 0 for row, score in found)


def test_a_minus_or_a_not_excludes_nothing(keywords: KeywordIndex):
    assert {row for row, _ in keywords.search("NOT -breaker", 10)} >= {0, 5}
    assert keywords.search("row:0", 10) == []


@settings(derandomize=True, max_examples=200, deadline=None)
@given(some.text(max_size=60), some.integers(0, 8))
def test_any_text_at_all_may_be_asked_for(typed: str, k: int):
    found = _shared().search(typed, k)
    assert len(found) <= k
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


_KEPT: list[KeywordIndex] = []


def _shared() -> KeywordIndex:
    if not _KEPT:
        _KEPT.append(KeywordIndex.write(TEXTS))
    return _KEPT[0]


def test_a_pasted_document_asks_for_its_rarest_words():
    filler = [f"common{number // 2} common" for number in range(600)]
    keywords = KeywordIndex.write([*filler, "needle"])
    question = " ".join([*(f"common{number}" for number in range(3 * QUERY_WORDS_MAX)), "needle"])
    assert len(keywords._words(question)) == QUERY_WORDS_MAX  # pyright: ignore[reportPrivateUsage]
    assert keywords.search(question, 100)[0][0] == 600


def test_only_allowed_rows_come_back_however_far_down_they_are():
    keywords = KeywordIndex.write([*(["breaker breaker"] * 700), "one breaker among many other words here"])
    allowed = np.zeros(701, np.bool_)
    allowed[700] = True
    assert [row for row, _ in keywords.search("breaker", 3, allowed)] == [700]
    assert keywords.search("breaker", 3, np.zeros(701, np.bool_)) == []


def test_equal_scores_come_in_row_order():
    keywords = KeywordIndex.write(["same words"] * 50)
    assert [row for row, _ in keywords.search("same", 20)] == list(range(20))


def test_what_was_written_is_found_after_opening_again(tmp_path: Path, keywords: KeywordIndex):
    KeywordIndex.write(TEXTS, tmp_path)
    again = KeywordIndex.open(tmp_path)
    assert again.count == len(TEXTS)
    assert again.search("breaker budget words", 5) == keywords.search("breaker budget words", 5)


def test_a_folder_without_an_index_is_refused(tmp_path: Path):
    with pytest.raises(CorruptIndex):
        KeywordIndex.open(tmp_path)
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(CorruptIndex):
        KeywordIndex.open(tmp_path)


def test_nothing_is_found_in_nothing():
    empty = KeywordIndex.write([])
    assert empty.search("breaker", 5) == []
    with pytest.raises(BadQuestion):
        empty.search("breaker", -1)


@pytest.mark.beside("shared/data/squad-dev")
def test_of_a_thousand_squad_questions_95_in_100_find_their_passage_among_ten():
    passages = [json.loads(line)["text"] for line in (SQUAD / "passages.jsonl").read_text("utf-8").strip().split("\n")]
    questions = [json.loads(line) for line in (SQUAD / "questions.jsonl").read_text("utf-8").strip().split("\n")]
    keywords = KeywordIndex.write(passages)
    asked = random.Random(0).sample(questions, 1_000)
    found = sum(any(row == one["passage"] for row, _ in keywords.search(one["question"], 10)) for one in asked)
    assert found / len(asked) >= 0.95
