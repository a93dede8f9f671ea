"""Overlap, rank-biased overlap and cosine against values worked out by hand, and what a comparer counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.weather import call_of
from understudy.policies.compare import Agreement, Pair, Results, cosine, overlap_at, rbo
from understudy.policies.service import Answer, Call

RANKINGS = st.lists(st.integers(0, 30).map(str), unique=True, max_size=15)


def test_overlap_is_the_share_that_both_lists_have():
    assert overlap_at(3, "abc", "cba") == 1.0
    assert overlap_at(3, "abcx", "abdx") == pytest.approx(2 / 3)
    assert overlap_at(10, "ab", "abcd") == 0.5
    assert (overlap_at(5, "", ""), overlap_at(5, "a", "")) == (1.0, 0.0)


def test_rbo_of_two_short_lists_is_what_the_definition_says():
    # <a b> and <b a>: agreement 0 at depth 1, 1 at depth 2 and, extrapolated, below
    assert rbo("ab", "ba", 0.9) == pytest.approx(0.1 / 0.9 * (0 * 0.9 + 1 * 0.81) + 1 * 0.81)
    # <a> and <a b>: one of one, then one of two, extrapolated by the short list's own agreement
    expected = 0.1 / 0.9 * (0.9 + 0.5 * 0.81 + 1 * 1 / 2 * 0.81) + (0 / 2 + 1) * 0.81
    assert rbo("a", "ab", 0.9) == pytest.approx(expected)


@given(RANKINGS, RANKINGS)
def test_rbo_is_symmetric_between_nothing_and_one_and_one_for_equals(one: list[str], other: list[str]):
    assert rbo(one, other) == pytest.approx(rbo(other, one))
    assert -1e-9 <= rbo(one, other) <= 1 + 1e-9
    assert rbo(one, one) == pytest.approx(1.0)
    if not set(one) & set(other) and (one or other):
        assert rbo(one, other) == pytest.approx(0.0)


def test_rbo_weighs_the_top_more():
    assert rbo("abcdefghij", "abcdefghji") > rbo("abcdefghij", "bacdefghij")


def test_a_cosine_needs_vectors_of_one_dimension():
    assert cosine([1.0, 0.0], [1.0, 1.0]) == pytest.approx(0.5**0.5)
    assert cosine([0.0, 0.0], [1.0, 1.0]) == 0.0
    with pytest.raises(ValueError, match="shorter"):
        cosine([1.0, 2.0], [1.0])


def test_a_comparer_counts_what_agrees_and_measures_nothing_of_what_can_not_be_compared():
    results = {
        b"one": Results(rankings=["ab"]),
        b"two": Results(rankings=["ba"]),
        b"lists": Results(rankings=["ab", "cd"]),
        b"vector": Results(vectors=[[1.0, 0.0]]),
        b"longer": Results(vectors=[[1.0, 0.0, 0.0]]),
    }

    def read(_call: Call, answer: Answer) -> Results:
        if answer.body not in results:
            raise ValueError("unreadable")
        return results[answer.body]

    heart = Agreement(read)
    call = call_of("retrieve", "x")

    def compare(live: bytes, shadow: bytes | None, status: int = 200) -> None:
        heart(Pair(call, Answer(200, [], live), None if shadow is None else Answer(status, [], shadow), 0.1))

    for live, shadow in ((b"one", b"two"), (b"vector", b"vector"), (b"one", b"lists"), (b"vector", b"longer")):
        compare(live, shadow)
    compare(b"one", b"garbage")
    compare(b"one", None)
    compare(b"one", b"one", 404)
    assert heart.pairs == {"same": 2, "shape": 3, "failed": 1, "status": 1}
    assert [sum(each.counts) for each in heart.measures.values()] == [1, 1, 1]
    assert heart.measures["cosine"].sum == pytest.approx(1.0)
