"""Budgets: what moves and what is refused, whose it is, when it begins anew, and how several processes agree."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from understudy.policies.chain import Link
from understudy.policies.service import Answer, Call, Failed, Headers, Request, Service
from understudy.policies.spend import FREE, HARD, OTHERS, SOFT, Budgets, ends_of, moved, spend
from understudy.proxy.settings.settings import SpendBudget

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC).timestamp()
DAY = SpendBudget(name="day", cost=10.0, cheaper=["mini"])


def heart(*rules: SpendBudget, callers_max: int = 100) -> Budgets:
    return Budgets(rules, callers_max, NOON)


def moment(year: int, month: int, day: int, hour: int = 0) -> int:
    return int(datetime(year, month, day, hour, tzinfo=UTC).timestamp())


def test_windows_end_at_the_full_hour_at_midnight_and_on_the_first_of_the_month_in_utc():
    assert ends_of("hour", NOON) == moment(2026, 11, 23, 13)
    assert ends_of("hour", NOON - 0.5) == moment(2026, 11, 23, 12)
    assert ends_of("day", NOON) == moment(2026, 11, 24)
    assert ends_of("month", NOON) == moment(2026, 12, 1)
    assert ends_of("month", moment(2026, 12, 31, 23)) == moment(2027, 1, 1)


def test_a_budget_moves_calls_from_its_soft_share_on_and_refuses_them_once_it_is_spent():
    budgets = heart(DAY)
    seen: list[int] = []
    for _ in range(11):
        seen.append(budgets.level(NOON, b""))
        budgets.charge(NOON, b"", 1, 1.0)
    assert seen == [FREE] * 8 + [SOFT] * 2 + [HARD]


def test_a_budget_of_tokens_counts_tokens_whatever_they_cost():
    budgets = heart(SpendBudget(name="hour", window="hour", tokens=1000))
    budgets.charge(NOON, b"", 999, 0.0)
    assert budgets.level(NOON, b"") == FREE
    budgets.charge(NOON, b"", 1, 0.0)
    assert budgets.level(NOON, b"") == HARD


def test_without_cheaper_tiers_nothing_moves_and_without_hard_nothing_is_refused():
    budgets = heart(SpendBudget(name="a", cost=10.0), SpendBudget(name="b", cost=1.0, hard=False, cheaper=["mini"]))
    budgets.charge(NOON, b"", 1, 9.0)
    assert budgets.level(NOON, b"") == SOFT
    assert budgets.purse_at(SOFT, b"").rules.name == "b"
    budgets.charge(NOON, b"", 1, 1.0)
    assert budgets.level(NOON, b"") == HARD
    assert budgets.purse_at(HARD, b"").rules.name == "a"


def test_a_new_window_begins_with_nothing_spent():
    budgets = heart(SpendBudget(name="hour", window="hour", cost=1.0), SpendBudget(name="day", cost=100.0))
    budgets.charge(NOON, b"", 1, 1.0)
    assert budgets.level(NOON + 3599, b"") == HARD
    assert budgets.level(NOON + 3600, b"") == FREE
    assert [purse.share(b"") for purse in budgets.purses] == [0.0, 0.01]


def test_each_caller_has_a_budget_of_its_own_and_who_shows_no_credentials_one_with_its_like():
    budgets = heart(SpendBudget(name="each", each="caller", cost=1.0))
    budgets.charge(NOON, b"one", 1, 2.0)
    assert [budgets.level(NOON, who) for who in (b"one", b"two", b"")] == [HARD, FREE, FREE]
    budgets.charge(NOON, b"", 1, 2.0)
    assert [budgets.level(NOON, who) for who in (b"one", b"two", b"")] == [HARD, FREE, HARD]


def test_callers_beyond_those_that_are_told_apart_share_one_account():
    budgets = heart(SpendBudget(name="each", each="caller", cost=1.0), callers_max=2)
    for who in (b"one", b"two", b"three", b"four"):
        budgets.charge(NOON, who, 1, 0.6)
    assert len(budgets.purses[0].used) == 3
    assert budgets.purses[0].used[OTHERS] == (2, 1.2)
    assert [budgets.level(NOON, who) for who in (b"one", b"two", b"three", b"five")] == [FREE, FREE, HARD, HARD]


def test_processes_that_tell_each_other_agree_on_the_sum_and_count_nothing_twice():
    one, two = heart(DAY), heart(DAY)
    one.charge(NOON, b"", 10, 4.0)
    two.charge(NOON, b"", 20, 5.0)
    told = [*one.fresh(), *two.fresh()]
    whole = [told[0]._replace(tokens=30, cost=9.0)]
    # what is added while the sum is on its way is added to it
    two.charge(NOON, b"", 1, 1.0)
    one.hear(whole)
    two.hear(whole)
    assert one.purses[0].used == {b"": (30, 9.0)}
    assert two.purses[0].used == {b"": (31, 10.0)}
    assert (one.level(NOON, b""), two.level(NOON, b"")) == (SOFT, HARD)
    assert one.fresh() == []


def test_what_could_not_be_told_is_told_the_next_time():
    budgets = heart(DAY)
    budgets.charge(NOON, b"", 10, 4.0)
    untold = budgets.fresh()
    budgets.charge(NOON, b"", 5, 1.0)
    budgets.take_back(untold)
    assert [(each.tokens, each.cost) for each in budgets.fresh()] == [(15, 5.0)]
    assert budgets.purses[0].used == {b"": (15, 5.0)}


def stages(budgets: Budgets, now: float = NOON) -> list[tuple[str, str]]:
    return [(one.rules.name, one.stage) for one in budgets.crossed(now)]


def test_each_crossing_of_a_budget_is_told_once_and_its_next_window_too():
    budgets = heart(DAY, SpendBudget(name="only-told", tokens=5, hard=False, window="hour"))
    assert stages(budgets) == []
    budgets.charge(NOON, b"", 4, 8.0)
    assert stages(budgets) == [("day", "low"), ("only-told", "low")]
    budgets.charge(NOON, b"", 1, 2.0)
    assert stages(budgets) == [("day", "spent"), ("only-told", "spent")]
    assert stages(budgets) == []
    assert stages(budgets, NOON + 3600) == [("only-told", "free")]
    assert stages(budgets, NOON + 86400) == [("day", "free")]


def test_what_others_have_spent_crosses_a_budget_as_well_and_a_larger_one_is_free_again():
    one, other = heart(DAY), heart(DAY)
    one.charge(NOON, b"", 1, 10.0)
    other.hear(one.fresh())
    assert stages(other) == [("day", "spent")]
    other.obey([SpendBudget(name="day", cost=100.0)], 100, NOON)
    assert stages(other) == [("day", "free")]


def test_of_callers_budgets_the_one_who_has_used_the_most_is_told_of():
    budgets = heart(SpendBudget(name="each", each="caller", tokens=10))
    for payer in (b"a", b"b", b"c"):
        budgets.charge(NOON, payer, 9, 0.0)
    assert stages(budgets) == [("each", "low")]
    budgets.charge(NOON, b"b", 1, 0.0)
    budgets.charge(NOON, b"c", 1, 0.0)
    assert stages(budgets) == [("each", "spent")]


def test_a_reload_keeps_what_was_spent_under_the_same_name_and_window():
    budgets = heart(DAY, SpendBudget(name="hour", window="hour", cost=1.0))
    budgets.charge(NOON, b"", 10, 1.0)
    assert budgets.level(NOON, b"") == HARD
    budgets.obey([SpendBudget(name="day", cost=1.0), SpendBudget(name="hour", window="month", cost=1.0)], 100, NOON)
    assert budgets.level(NOON, b"") == HARD
    assert budgets.purse_at(HARD, b"").rules.name == "day"
    budgets.obey([SpendBudget(name="day", cost=100.0)], 100, NOON)
    assert budgets.level(NOON, b"") == FREE


# --- as calls meet them --------------------------------------------------------------------------------------------


def call() -> Call:
    return Call("generate", Request(b"POST", b"/", [(b"authorization", b"Bearer k")]), route="chat")


def refusing(detail: str, headers: Headers) -> Answer:
    return Answer(429, headers, detail.encode())


def saying(word: bytes) -> Service:
    async def said(_call: Call) -> Answer:
        return Answer(200, [], word)

    return said


def sparing(budgets: Budgets, cheap: Service, at: Sequence[float] = (NOON,)) -> Service:
    dear = Link("big", "primary", saying(b"big"))
    cheaper = {"day": moved(cheap, saying(b"big after all"), [dear])}
    return spend(saying(b"big"), budgets, cheaper, wall=lambda: at[-1], refuse=refusing)


async def test_calls_go_to_the_cheaper_tier_while_little_is_left_and_say_so():
    budgets = heart(DAY)
    service = sparing(budgets, saying(b"mini"))
    assert (await service(call())).body == b"big"
    budgets.charge(NOON, b"", 1, 8.0)
    asked = call()
    assert (await service(asked)).body == b"mini"
    assert [(step.tier, step.reason) for step in asked.trail] == [("big", "budget")]
    assert budgets.moved == {"day": 1}


async def test_the_dearer_tier_answers_after_all_where_the_cheaper_one_fails_and_may_be_followed():
    budgets = heart(DAY)
    budgets.charge(NOON, b"", 1, 8.0)

    async def down(_call: Call) -> Answer:
        raise Failed("reset")

    assert (await sparing(budgets, down)(call())).body == b"big after all"

    async def half_done(_call: Call) -> Answer:
        raise Failed("reset", elsewhere=False)

    with pytest.raises(Failed):
        await sparing(budgets, half_done)(call())


async def test_a_spent_budget_is_told_with_when_it_begins_anew_and_what_costs_nothing_passes():
    budgets = heart(DAY)
    budgets.charge(NOON, b"", 1, 10.0)
    service = sparing(budgets, saying(b"mini"), at=(NOON + 3600.5,))
    answer = await service(call())
    assert answer.status == 429
    assert (b"retry-after", b"%d" % (11 * 3600)) in answer.headers
    assert b"begins anew at 2026-11-24T00:00:00Z" in answer.body
    assert (answer.tier, answer.reason) == ("none", "chat: budget day")
    assert budgets.refused == {"day": 1}
    passing = call()
    passing.kind = "pass"
    assert (await service(passing)).body == b"big"


async def test_a_fork_of_a_call_is_paid_by_the_same_caller():
    budgets = heart(SpendBudget(name="each", each="caller", cost=1.0))
    asked = call()
    await spend(saying(b"x"), budgets, {}, wall=lambda: NOON, refuse=refusing)(asked)
    assert asked.payer == asked.tenant
    assert asked.fork().payer == asked.payer != b""
