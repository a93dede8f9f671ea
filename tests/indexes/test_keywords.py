"""Keyword search: what people type is words, never a query language; by tantivy, and by SQLite in its place."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from understudy.indexes.collection import Collection
from understudy.indexes.faults import BadQuestion, CorruptIndex
from understudy.indexes.keywords import QUERY_WORDS_MAX, KeywordIndex
from understudy.indexes.keywords_reserve import FILE, ReserveIndex
from understudy.indexes.points import Point
from understudy.indexes.snapshot import write_snapshot

TEXTS = [
    "The breaker opens after too many failures.",
    "Retries are kept in a budget; the budget refills.",
    "A title: (x OR y) AND NOT z, as some would type it.",
    "naïve Ünïcode words and 日本語 text",
    "",
    "breaker breaker breaker",
]
SQUAD = Path(__file__).parents[3] / "shared" / "data" / "squad-dev"


Engine = type[KeywordIndex] | type[ReserveIndex]
ENGINES: list[Engine] = [KeywordIndex, ReserveIndex]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.param


@pytest.fixture(scope="module")
def keywords(engine: Engine) -> KeywordIndex | ReserveIndex:
    return engine.write(TEXTS)


def test_words_are_found_in_other_forms_and_the_densest_text_comes_first(keywords: KeywordIndex | ReserveIndex):
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
def test_hostile_questions_are_words_and_break_nothing(keywords: KeywordIndex | ReserveIndex, typed: str):
    found = keywords.search(typed, 10)
    assert all(0 <= row < len(TEXTS) and score > 0 for row, score in found)


def test_a_minus_or_a_not_excludes_nothing(keywords: KeywordIndex | ReserveIndex):
    assert {row for row, _ in keywords.search("NOT -breaker", 10)} >= {0, 5}
    assert keywords.search("row:0", 10) == []


@settings(derandomize=True, max_examples=200, deadline=None)
@given(some.text(max_size=60), some.integers(0, 8))
def test_any_text_at_all_may_be_asked_for(typed: str, k: int):
    for shared in _shared():
        found = shared.search(typed, k)
        assert len(found) <= k
        assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


_KEPT: list[KeywordIndex | ReserveIndex] = []


def _shared() -> list[KeywordIndex | ReserveIndex]:
    if not _KEPT:
        _KEPT.extend(engine.write(TEXTS) for engine in ENGINES)
    return _KEPT


def test_a_pasted_document_asks_for_its_rarest_words(engine: Engine):
    filler = [f"common{number // 2} common" for number in range(600)]
    keywords = engine.write([*filler, "needle"])
    question = " ".join([*(f"common{number}" for number in range(3 * QUERY_WORDS_MAX)), "needle"])
    assert len(keywords._words(question)) == QUERY_WORDS_MAX  # pyright: ignore[reportPrivateUsage]
    assert keywords.search(question, 100)[0][0] == 600


def test_only_allowed_rows_come_back_however_far_down_they_are(engine: Engine):
    keywords = engine.write([*(["breaker breaker"] * 700), "one breaker among many other words here"])
    allowed = np.zeros(701, np.bool_)
    allowed[700] = True
    assert [row for row, _ in keywords.search("breaker", 3, allowed)] == [700]
    assert keywords.search("breaker", 3, np.zeros(701, np.bool_)) == []


def test_equal_scores_come_in_row_order(engine: Engine):
    keywords = engine.write(["same words"] * 50)
    assert [row for row, _ in keywords.search("same", 20)] == list(range(20))


def test_what_was_written_is_found_after_opening_again(tmp_path: Path, engine: Engine):
    keywords = engine.write(TEXTS, tmp_path)
    again = engine.open(tmp_path)
    assert again.count == len(TEXTS)
    assert again.search("breaker budget words", 5) == keywords.search("breaker budget words", 5)


def test_a_folder_without_an_index_is_refused(tmp_path: Path, engine: Engine):
    with pytest.raises(CorruptIndex):
        engine.open(tmp_path)
    (tmp_path / "meta.json").write_text("{")
    (tmp_path / FILE).write_text("no database")
    with pytest.raises(CorruptIndex):
        engine.open(tmp_path)


def test_nothing_is_found_in_nothing(engine: Engine):
    empty = engine.write([])
    assert empty.search("breaker", 5) == []
    with pytest.raises(BadQuestion):
        empty.search("breaker", -1)


@pytest.mark.beside("shared/data/squad-dev")
def test_of_a_thousand_squad_questions_95_in_100_find_their_passage_among_ten(engine: Engine):
    passages = [json.loads(line)["text"] for line in (SQUAD / "passages.jsonl").read_text("utf-8").strip().split("\n")]
    questions = [json.loads(line) for line in (SQUAD / "questions.jsonl").read_text("utf-8").strip().split("\n")]
    keywords = engine.write(passages)
    asked = random.Random(0).sample(questions, 1_000)
    found = sum(any(row == one["passage"] for row, _ in keywords.search(one["question"], 10)) for one in asked)
    assert found / len(asked) >= 0.95


def test_the_reserve_leaves_out_words_that_every_text_has_unless_there_are_no_others():
    keywords = ReserveIndex.write(["to be or not to be", "a harbour at night"])
    assert [row for row, _ in keywords.search("what is the harbour, and to whom?", 5)] == [1]
    assert [row for row, _ in keywords.search("To be, or not to be", 5)] == [0]


WITHOUT_TANTIVY = """
import sys
sys.modules["tantivy"] = None
from pathlib import Path
import numpy as np
from understudy.indexes.collection import Collection
from understudy.indexes.keywords import has_tantivy
from understudy.indexes.points import Point
from understudy.indexes.snapshot import write_snapshot
assert not has_tantivy()
here = Path(sys.argv[1])
points = [Point(at, np.eye(4, dtype=np.float32)[at], {"text": text}, text)
          for at, text in enumerate(["apples", "the harbour", "lanterns", "quartz"])]
write_snapshot(here / "ours", points, space="toy", dimensions=4)
for name in ("ours", "theirs"):
    collection = Collection.open(here / name)
    print(name, [hit.id for hit in collection.search_text("harbours", 3)],
          [hit.id for hit in collection.search_fused([1, 0, 0, 0], "harbours", 2)], list(collection.damage))
"""


def test_without_tantivy_collections_are_written_and_opened_with_the_reserve_whoever_wrote_them(tmp_path: Path):
    points = [
        Point(at, np.eye(4, dtype=np.float32)[at], {"text": text}, text)
        for at, text in enumerate(["apples", "the harbour", "lanterns", "quartz"])
    ]
    write_snapshot(tmp_path / "theirs", points, space="toy", dimensions=4)
    told = subprocess.run(
        [sys.executable, "-c", WITHOUT_TANTIVY, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    # what tantivy wrote can't be read, and is made again of the words in the store
    assert told.stdout.splitlines() == ["ours [1] [0, 1] []", "theirs [1] [0, 1] ['keywords']"]
    # and with tantivy, what was written without it is read by who wrote it
    ours = Collection.open(tmp_path / "ours")
    assert [hit.id for hit in ours.search_text("harbours", 3)] == [1]
    assert not ours.damage
