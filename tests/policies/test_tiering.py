"""What is unhealthy makes a service tier, by a rule that a policy may replace and an operator may overrule."""

from __future__ import annotations

import pytest

from understudy.policies.tiering import Tiering, is_passed_over, tier_of
from understudy.proxy.settings.health import ServiceTier, TierClause

SERVICES = ["vector_database:q:1", "embedding_service:e:1", "llm_service:l:1", "network:upstreams"]
RULES = ServiceTier()


@pytest.mark.parametrize(
    ("count", "tier"), list(enumerate(["primary", "secondary", "secondary", "tertiary", "tertiary"]))
)
def test_no_failure_is_primary_up_to_two_are_secondary_and_more_tertiary(count: int, tier: str):
    assert tier_of(SERVICES[:count], RULES) == tier


def test_what_is_ours_is_not_critical_while_services_answer():
    assert tier_of(["cache:r:6379", "local_model:m", "local_index:docs"], RULES) == "primary"
    everything = ServiceTier(critical=["cache", "local_model"])
    assert tier_of(["cache:r:6379", "local_model:m", *SERVICES], everything) == "secondary"


def test_a_policy_may_count_otherwise_or_name_what_matters_and_its_first_clause_that_fits_decides():
    rules = ServiceTier(
        secondary_min=2,
        tertiary_min=4,
        rules=[
            TierClause(unhealthy=["vector_database", "llm_service:l:1"], tier="tertiary"),
            TierClause(unhealthy=["cache"], tier="secondary"),
        ],
    )
    assert tier_of(["vector_database:q:1"], rules) == "primary"
    assert tier_of(["vector_database:q:1", "llm_service:l:1"], rules) == "tertiary"
    assert tier_of(["vector_database:q:1", "llm_service:other:1"], rules) == "secondary"
    assert tier_of(["cache:r:6379"], rules) == "secondary"


def test_a_change_is_told_once_with_its_reason_and_counted():
    tiering = Tiering(0.0)
    assert tiering.look(1.0, [], RULES) is None
    assert tiering.look(2.0, SERVICES[:1], RULES) == ("primary", "secondary", "vector_database:q:1")
    assert tiering.look(3.0, SERVICES[:2], RULES) is None
    assert (tiering.tier, tiering.since, tiering.reason) == ("secondary", 2.0, ", ".join(SERVICES[:2]))
    assert tiering.look(4.0, [], RULES) == ("secondary", "primary", "all is well")
    assert tiering.changes == {"primary": 1, "secondary": 1, "tertiary": 0}


def test_a_pinned_tier_holds_whatever_is_unhealthy_until_it_is_let_go():
    tiering = Tiering(0.0)
    tiering.pinned = "tertiary"
    assert tiering.look(1.0, [], RULES) == ("primary", "tertiary", "pinned by hand")
    assert tiering.look(2.0, SERVICES, RULES) is None
    tiering.pinned = "primary"
    assert tiering.look(3.0, SERVICES, RULES) == ("tertiary", "primary", "pinned by hand")
    tiering.pinned = None
    assert tiering.look(4.0, SERVICES[:1], RULES) == ("primary", "secondary", "vector_database:q:1")


def test_calls_pass_over_what_is_unhealthy_or_stands_before_the_pinned_tier():
    assert is_passed_over("primary", None, unhealthy=True) == "unhealthy"
    assert is_passed_over("primary", None, unhealthy=False) == ""
    assert is_passed_over("primary", "secondary", unhealthy=False) == "pinned"
    assert is_passed_over("secondary", "secondary", unhealthy=True) == "", "an operator knows better"
    assert is_passed_over("secondary", "tertiary", unhealthy=False) == "pinned"
