"""Likeness, the heart: the bound on false hits, what is learnt and forgotten, and the two stores with their bounds."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.policies.cache import Town, stamp_of
from understudy.policies.likeness import (
    BANDS,
    HALF_LIFE_S,
    SCOPES_MAX,
    Answers,
    Bucket,
    Lists,
    Permission,
    Told,
    Verdicts,
    bucket_of,
    unit,
    wilson_upper,
)
from understudy.policies.wording import Wording, wording_of
from understudy.proxy.settings.settings import Likeness as Rules

HIT = Bucket("exact", 0.98)
RULES = Rules(entries_max=8, bytes_max=1024 * 1024)


def worded(text: str) -> Wording:
    wording = wording_of(text)
    assert wording is not None
    return wording


# --- permission ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 300), st.integers(1, 300))
def test_the_bound_lies_above_the_share_and_falls_with_every_right_answer(false: int, right: int):
    judged = false + right
    assert false / judged < wilson_upper(false, judged) <= 1.0
    assert wilson_upper(false, judged + 1) < wilson_upper(false, judged) < wilson_upper(false + 1, judged + 1)


def test_the_bound_is_wilsons():
    # 95 % two-sided interval of 10 in 100, from Wilson's own formula as tables print it
    assert wilson_upper(10, 100) == pytest.approx(0.1744, abs=1e-4)
    assert wilson_upper(0, 0) == 1.0


def test_nothing_may_be_served_before_189_right_answers_and_one_false_one_shuts_it_again():
    permission = Permission()
    for n in range(189):
        assert not permission.allows(HIT, float(n), 0.02)
        permission.judged(HIT, float(n), same=True)
    assert permission.allows(HIT, 189.0, 0.02)
    assert permission.allows_any("exact", 189.0, 0.02)
    assert not permission.allows_any("loose", 189.0, 0.02)
    permission.judged(HIT, 190.0, same=False)
    assert not permission.allows(HIT, 190.0, 0.02)


def test_each_kind_of_hit_is_learnt_by_itself():
    permission = Permission()
    for _ in range(500):
        permission.judged(HIT, 0.0, same=True)
        permission.judged(Bucket("loose", 0.98), 0.0, same=False)
    assert permission.allows(HIT, 0.0, 0.02)
    assert not permission.allows(Bucket("loose", 0.98), 0.0, 0.02)
    assert not permission.allows(Bucket("exact", 0.95), 0.0, 0.02)


def test_what_was_learnt_fades_until_it_has_to_be_learnt_again():
    permission = Permission()
    for _ in range(400):
        permission.judged(HIT, 0.0, same=True)
    assert permission.allows(HIT, HALF_LIFE_S, 0.02)
    assert not permission.allows(HIT, 2 * HALF_LIFE_S, 0.02)


def test_a_change_shows_through_a_long_good_past():
    verdicts = Verdicts()
    for n in range(100_000):
        verdicts.add(float(n) / 1000, same=True)
    for n in range(15):
        assert n == 0 or verdicts.upper(100.0) < 0.1
        verdicts.add(100.0, same=False)
    assert verdicts.upper(100.0) > 0.02
    assert (verdicts.same, verdicts.different) == (100_000, 15)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("rate", [0.0, 0.005, 0.03, 0.08, 0.46])
def test_whatever_the_true_rate_what_is_served_is_false_at_most_as_often_as_allowed(rate: float, seed: int):
    """20,000 hits, all asked upstream until permitted and one in twenty afterwards, as the shell does it."""
    dice = random.Random(f"{seed}/{rate}")
    permission = Permission()
    served = false = 0
    for now in range(20_000):
        wrong = dice.random() < rate
        if permission.allows(HIT, float(now), 0.02) and dice.random() >= 0.05:
            served += 1
            false += wrong
        else:
            permission.judged(HIT, float(now), same=not wrong)
    assert false <= 0.02 * served or false <= 0.02 * 20_000 * 0.05, (served, false)
    if rate == 0.0:
        assert served > 18_000
    if rate >= 0.08:
        assert served == 0


def test_a_hit_belongs_to_the_band_below_its_cosine_and_what_is_too_far_or_no_number_to_none():
    assert [bucket_of("exact", low) for low in BANDS] == [Bucket("exact", low) for low in BANDS]
    assert bucket_of("loose", 1.0) == Bucket("loose", 0.98)
    assert bucket_of("exact", 0.8999) is None
    assert bucket_of("exact", float("nan")) is None
    assert HIT.label == "exact-0.98"


# --- answers -------------------------------------------------------------------------------------------------------


def told(text: str, answer: str = "", at: float = 0.0, size: int = 100) -> Told:
    return Told(text, worded(text), answer or text, at, size)


def test_an_answer_is_found_by_a_question_alike_in_its_own_scope_until_it_is_too_old():
    answers = Answers()
    answers.keep(b"a", told("What is the fee?", "5"), RULES)
    found = answers.find(b"a", worded("what is the fee"), 60.0, 60.0)
    assert found is not None
    assert found.answer == "5"
    assert answers.find(b"b", worded("What is the fee?"), 60.0, 60.0) is None
    assert answers.find(b"a", worded("What was the fee?"), 60.0, 60.0) is None
    assert answers.find(b"a", worded("What is the fee?"), 61.0, 60.0) is None


def test_the_newest_answer_to_a_question_is_the_one_that_is_kept():
    answers = Answers()
    for answer in ("5", "6"):
        answers.keep(b"a", told("What is the fee?", answer), RULES)
    found = answers.find(b"a", worded("What is the fee?"), 0.0, 1.0)
    assert found is not None
    assert (found.answer, len(answers), answers.bytes) == ("6", 1, 100)


def test_answers_are_bounded_by_number_and_bytes_and_the_longest_unused_goes_first():
    answers = Answers()
    for n in range(RULES.entries_max):
        answers.keep(b"a", told(f"Question {n}"), RULES)
    answers.find(b"a", worded("Question 0"), 0.0, 1.0)
    answers.keep(b"a", told("One more"), RULES)
    assert len(answers) == RULES.entries_max
    assert answers.find(b"a", worded("Question 0"), 0.0, 1.0)
    assert answers.find(b"a", worded("Question 1"), 0.0, 1.0) is None
    answers.keep(b"a", told("Large", size=RULES.bytes_max), RULES)
    assert (len(answers), answers.bytes) == (1, RULES.bytes_max)
    answers.keep(b"a", told("Too large", size=RULES.bytes_max + 1), RULES)
    assert len(answers) == 1


# --- lists ---------------------------------------------------------------------------------------------------------


def direction(degrees: float) -> np.ndarray:
    return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], np.float32)


def kept(lists: Lists, scope: bytes, degrees: float, answer: str, *, size: int = 10, now: float = 0.0) -> None:
    homes = lists.homes("docs")
    lists.keep(scope, homes, stamp_of(homes), direction(degrees), answer, size, now, RULES)


def nearest(lists: Lists, scope: bytes, degrees: float, now: float = 0.0) -> str | None:
    near = lists.nearest(scope, direction(degrees), now, 0.92, 60.0)
    return None if near is None else near.answer


def test_the_nearest_list_of_a_scope_is_found_if_it_is_near_enough_and_young_enough():
    lists = Lists(Town())
    kept(lists, b"a", 0, "east")
    kept(lists, b"a", 90, "north")
    assert nearest(lists, b"a", 10) == "east"
    assert nearest(lists, b"a", 80) == "north"
    assert nearest(lists, b"a", 45) is None
    assert nearest(lists, b"b", 0) is None
    kept(lists, b"a", 5, "younger", now=50.0)
    assert nearest(lists, b"a", 0, now=61.0) == "younger"
    assert nearest(lists, b"a", 90, now=61.0) is None


@given(st.integers(1, 40))
def test_a_ring_keeps_the_newest_and_no_more_than_it_may(times: int):
    lists = Lists(Town())
    for n in range(times):
        kept(lists, b"a", n * 5.0, str(n), now=float(n))
    assert len(lists) == min(times, RULES.entries_max)
    assert nearest(lists, b"a", (times - 1) * 5.0, float(times)) == str(times - 1)


def test_a_write_forgets_what_was_read_before_its_end_and_nothing_of_other_collections():
    lists = Lists(Town())
    docs, at_docs, at_faq = lists.town.home("docs"), lists.homes("docs"), lists.homes("faq")
    kept(lists, b"a", 0, "of docs")
    lists.keep(b"f", at_faq, stamp_of(at_faq), direction(0), "of faq", 10, 0.0, RULES)
    began = stamp_of(at_docs)
    docs.begin_write()
    lists.keep(b"a", at_docs, began, direction(0), "from before", 10, 0.0, RULES)
    lists.keep(b"a", at_docs, stamp_of(at_docs), direction(0), "meanwhile", 10, 0.0, RULES)
    docs.end_write(1.0, settle_s=1.0)
    lists.keep(b"a", at_docs, stamp_of(at_docs), direction(0), "too soon", 10, 1.5, RULES)
    assert nearest(lists, b"a", 0) is None
    assert nearest(lists, b"f", 0) == "of faq"
    kept(lists, b"a", 0, "anew", now=2.0)
    assert nearest(lists, b"a", 0, 2.0) == "anew"
    lists.town.everyone.written(2.0, 1.0)
    assert nearest(lists, b"f", 0) is None


def test_lists_are_bounded_by_scopes_and_bytes():
    lists = Lists(Town())
    for n in range(SCOPES_MAX + 5):
        kept(lists, b"%d" % n, 0, str(n))
    assert len(lists) == SCOPES_MAX
    assert nearest(lists, b"0", 0) is None
    for n in range(20):
        kept(lists, b"large", n * 15.0, str(n), size=RULES.bytes_max // 4)
        assert lists.bytes <= RULES.bytes_max
    assert nearest(lists, b"large", 19 * 15.0) == "19"
    kept(lists, b"huge", 0, "huge", size=RULES.bytes_max)
    assert nearest(lists, b"huge", 0) is None


def test_a_vector_without_direction_is_none():
    assert unit([0.0, 0.0]) is None
    assert unit([float("nan"), 1.0]) is None
    assert unit([float("inf"), 1.0]) is None
    found = unit([3.0, 4.0])
    assert found is not None
    assert found.tolist() == pytest.approx([0.6, 0.8])
