"""Which questions are alike by their wording, and which answers say the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.pairs import NEAR_MISSES, SAME_MEANING, Pair
from understudy.policies.wording import ANSWER_COSINE_MIN, TEXT_CHARS_MAX, compare_answers, wording_of

_SOME = (
    "the a an in of not no never what which who when is are can please refunds orders 12 1,000 Paris US us - ( ) ? ,"
)
WORDS = st.sampled_from(_SOME.split())


def grade(one: str, other: str) -> str | None:
    first, second = wording_of(one), wording_of(other)
    assert first is not None
    assert second is not None
    assert first.grade(second) == second.grade(first)
    return first.grade(second)


def test_two_hundred_near_misses_of_every_kind_are_told_apart():
    assert len(NEAR_MISSES) >= 200
    assert len({pair.kind for pair in NEAR_MISSES}) >= 9
    assert [pair for pair in NEAR_MISSES if grade(pair.one, pair.other)] == []


@pytest.mark.parametrize("pair", SAME_MEANING, ids=lambda pair: pair.one[:40])
def test_the_same_question_in_other_words_is_alike(pair: Pair):
    assert grade(pair.one, pair.other) == pair.kind


def test_every_near_miss_is_alike_to_itself_typed_carelessly():
    careless = [f"  please  {pair.one.rstrip('?')} ??" if pair.one.endswith("?") else pair.one for pair in NEAR_MISSES]
    alike = [grade(pair.one, text) for pair, text in zip(NEAR_MISSES, careless, strict=True)]
    assert alike == ["exact"] * len(NEAR_MISSES)


@given(st.lists(WORDS, min_size=1, max_size=8))
def test_being_alike_is_reflexive_and_an_exact_match_is_a_loose_one(words: list[str]):
    text = " ".join(words)
    wording = wording_of(text)
    if wording is not None:
        assert wording.grade(wording) == "exact"
        assert wording_of(text + "  ") == wording


@given(st.lists(WORDS, min_size=1, max_size=6), st.sampled_from(["not", "7", "only", "before", "Rome", "why"]))
def test_a_word_that_counts_put_in_anywhere_makes_another_question(words: list[str], added: str):
    before = wording_of(" ".join(words))
    for at in range(len(words) + 1):
        after = wording_of(" ".join([*words[:at], added, *words[at:]]))
        assert after is not None
        assert before is None or before.grade(after) is None


def test_what_is_empty_or_a_document_is_compared_with_nobody():
    assert wording_of("") is None
    assert wording_of(" ?! ") is None
    assert wording_of("word " * TEXT_CHARS_MAX) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Denver Broncos", "the Denver Broncos."),
        ("It costs 1,000 dollars", "it costs 1000 dollars!"),
        ("Yes.", "yes"),
    ],
)
def test_answers_of_the_same_words_are_the_same(one: str, other: str):
    assert compare_answers(one, other) == (True, None)


LONG = "You can return an item within 30 days if you bring the receipt to our shop in Bern."


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Paris", "London"),
        ("in 1943", "in 1944"),
        ("14 days", "14 weeks"),
        ("", ""),
        (LONG, LONG.replace("30", "14")),
        (LONG, LONG.replace("can", "cannot")),
        (LONG, LONG.replace("Bern", "Basel")),
        (LONG, LONG.replace("within", "only within")),
        (LONG, "Our shop in Bern takes things back; bring the bill you were given, and do it in 30 days, if you can."),
    ],
)
def test_answers_that_differ_in_a_fact_or_in_most_words_are_different_whatever_their_vectors_say(one: str, other: str):
    assert not compare_answers(one, other).same


def test_a_long_answer_in_slightly_other_words_is_the_same_only_if_its_vector_is_near_as_well():
    assert compare_answers(LONG, LONG.replace("bring", "show")) == (True, ANSWER_COSINE_MIN)
