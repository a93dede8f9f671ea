"""What is recommended: by the table while nothing is known, and by what has helped here once something is."""

from __future__ import annotations

from understudy.policies.recommendations import TABLE, in_words, recommended
from understudy.policies.risk import FEATURES


def test_while_nothing_is_known_the_table_has_the_word():
    first, *_ = recommended(["dns"], "llm_service", {})
    assert (first.action, first.tried, first.helped) == ("resolve_again", 0, 0)
    assert in_words(first).startswith("ask DNS again for its address (a service that has moved")
    assert "here" not in in_words(first)


def test_what_has_helped_here_goes_before_what_has_not():
    record = {("no_answer", "reset_pool"): (8, 7), ("no_answer", "switch_endpoint"): (8, 1)}
    told = recommended(["no_answer"], "llm_service", record)
    assert [one.action for one in told[:2]] == ["reset_pool", "switch_endpoint"]
    assert in_words(told[0]).endswith("; helped 7 of 8 times here)")


def test_a_hook_that_helped_is_recommended_though_no_table_has_it():
    told = recommended(["no_answer"], "llm_service", {("no_answer", "restart_container"): (5, 5)})
    assert told[0].action == "restart_container"
    assert in_words(told[0]) == "restart container (it has helped here before; helped 5 of 5 times here)"
    assert "restart_container" not in [one.action for one in recommended(["dns"], "llm_service", {})]


def test_an_action_is_for_the_components_that_it_is_for():
    assert "switch_endpoint" not in [one.action for one in recommended(["no_answer"], "cache", {}, count=99)]
    assert "drop_cuda" in [one.action for one in recommended(["memory_growth"], "local_model", {}, count=99)]
    assert "drop_cuda" not in [one.action for one in recommended(["memory_growth"], "llm_service", {}, count=99)]


def test_an_action_against_two_causes_is_named_once_and_no_more_than_asked_for():
    told = recommended(["connect", "dns", "connect_refused"], "vector_database", {}, count=2)
    assert len(told) == 2
    assert len({one.action for one in told}) == 2


def test_against_what_nobody_knows_nothing_is_recommended():
    assert recommended(["sunspots"], "llm_service", {}) == []


def test_every_feature_of_a_risk_has_a_remedy():
    covered = frozenset().union(*(remedy.causes for remedy in TABLE))
    assert {feature.name for feature in FEATURES} <= covered
    assert all(0 < remedy.belief < 1 for remedy in TABLE)
