"""The attempt budget: what retries and hedges may spend together, and that it is never more."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.policies.budget import SLICES, Budget
from understudy.proxy.settings.settings import Budget as Rules


def test_a_call_a_minute_may_still_be_asked_again():
    heart = Budget(Rules())
    for minute in range(10):
        heart.called(minute * 60.0)
        assert heart.retry(minute * 60.0)


def test_of_a_hundred_calls_a_second_that_all_fail_a_fifth_and_one_a_second_are_asked_again():
    heart = Budget(Rules())
    attempts = 0
    for number in range(6000):
        now = 1000.0 + number / 100
        heart.called(now)
        attempts += 1 + heart.retry(now)
    assert 1.19 <= attempts / 6000 <= 1.25


def test_retries_and_hedges_draw_on_one_account():
    heart = Budget(Rules(ratio=0.2, per_s_min=0.0, hedge_ratio=1.0))
    for _ in range(100):
        heart.called(5.0)
    spent = [heart.retry(5.0) if number % 2 else heart.hedge(5.0) for number in range(40)]
    assert sum(spent) == heart.retries + heart.hedges == 20
    assert heart.refused == 20


def test_hedges_have_a_share_of_their_own_and_leave_the_rest_to_the_retries():
    heart = Budget(Rules(hedge_ratio=0.05))
    for _ in range(200):
        heart.called(5.0)
    assert sum(heart.hedge(5.0) for _ in range(100)) == 10
    assert sum(heart.retry(5.0) for _ in range(100)) == 200 * 0.2 + 10 - 10


def test_what_is_gone_from_the_window_pays_for_nothing_and_weighs_no_more():
    heart = Budget(Rules(per_s_min=0.1))
    for _ in range(100):
        heart.called(5.0)
    assert sum(heart.retry(5.5) for _ in range(100)) == 21
    assert not heart.retry(9.9)
    assert heart.retry(16.0)
    assert not heart.retry(16.0)


def test_a_window_of_another_length_begins_anew_and_is_not_stuck():
    heart = Budget(Rules(per_s_min=0.1, window_s=1.0))
    for _ in range(100):
        heart.called(1000.0)
    heart.adopt(Rules(per_s_min=0.1, window_s=100.0))
    assert sum(heart.retry(1000.0) for _ in range(100)) == 10
    assert sum(heart.retry(1150.0) for _ in range(100)) == 10


@settings(derandomize=True, max_examples=300)
@given(
    st.floats(0, 1),
    st.floats(0, 3),
    st.lists(st.tuples(st.sampled_from(["call", "call", "retry", "hedge"]), st.floats(0, 3)), max_size=200),
)
def test_in_any_window_the_extra_attempts_are_within_the_budget(
    ratio: float, per_s_min: float, story: list[tuple[str, float]]
):
    rules = Rules(ratio=ratio, per_s_min=per_s_min, window_s=10.0)
    heart, now = Budget(rules), 0.0
    seen: list[tuple[float, str]] = []
    for what, passed_s in story:
        now += passed_s
        if what == "call":
            heart.called(now)
            seen.append((now, what))
        elif heart.retry(now) if what == "retry" else heart.hedge(now):
            seen.append((now, what))
            # the window of the slices is up to a slice shorter than the nominal one
            since = (int(now) - SLICES + 1) * rules.window_s / SLICES
            recent = [each for at, each in seen if at >= since]
            extra = sum(each != "call" for each in recent)
            assert extra <= ratio * recent.count("call") + per_s_min * rules.window_s
    assert heart.retries + heart.hedges == sum(each != "call" for _, each in seen)
