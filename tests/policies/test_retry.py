"""When to ask again, how long to wait, and when to let it be."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.weather import call_of
from understudy.policies.budget import Budget
from understudy.policies.retry import Retry, retry
from understudy.policies.service import Answer, Call, Failed, Refused, Service
from understudy.policies.usual import Usual
from understudy.proxy.settings.settings import Budget as Rules


def failing(*outcomes: Exception | None) -> tuple[Service, list[float]]:
    """A service that raises these one after another (None: answers), and when it was asked."""
    left, asked = list(outcomes), list[float]()

    async def service(_call: Call) -> Answer:
        asked.append(asyncio.get_running_loop().time())
        outcome = left.pop(0)
        if outcome is not None:
            raise outcome
        return Answer(200, [])

    return service, asked


def persistent(
    service: Service, heart: Retry, luck: float = 0.5, *, budget: Budget | None = None, usual: Usual | None = None
) -> Service:
    clock = asyncio.get_running_loop().time
    budget = budget or Budget(Rules())
    return retry(service, heart, clock=clock, dice=lambda: luck, sleep=asyncio.sleep, budget=budget, usual=usual)


@settings(derandomize=True)
@given(st.integers(2, 60), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_drawn_between_nothing_and_a_ceiling_that_doubles_and_is_bounded(attempt: int, luck: float):
    heart = Retry(attempts=5, base_s=0.1, wait_s_max=3.0)
    assert 0 <= heart.wait_before(attempt, luck) <= min(3.0, 0.1 * 2 ** (attempt - 1))


async def test_it_asks_until_one_is_answered_and_waits_between():
    service, asked = failing(Failed("reset"), Failed("reset"), None)
    answer = await persistent(service, Retry(3, 1.0, 10.0))(call_of("embed", "x"))
    assert answer.status == 200
    assert [round(each - asked[0], 3) for each in asked] == [0.0, 1.0, 3.0]


async def test_the_last_failure_is_the_one_that_is_told():
    service, asked = failing(Failed("reset"), Failed("status_500"))
    with pytest.raises(Failed, match="status_500"):
        await persistent(service, Retry(2, 0.1, 1.0))(call_of("embed", "x"))
    assert len(asked) == 2


async def test_it_does_not_ask_again_what_must_not_be_asked_again():
    service, asked = failing(Failed("reset", again=False))
    with pytest.raises(Failed):
        await persistent(service, Retry(5, 0.1, 1.0))(call_of("pass", "x"))
    assert len(asked) == 1


async def test_retry_after_is_kept_and_when_it_is_too_late_for_this_call_nobody_is_asked():
    service, asked = failing(Failed("status_429", retry_after_s=2.0), None)
    await persistent(service, Retry(2, 0.1, 1.0))(call_of("embed", "x"))
    assert asked[1] - asked[0] >= 2.0

    service, asked = failing(Failed("status_429", retry_after_s=2.0), None)
    call = call_of("embed", "x")
    call.until = asyncio.get_running_loop().time() + 1.5
    with pytest.raises(Failed, match="status_429"):
        await persistent(service, Retry(2, 0.1, 1.0))(call)
    assert len(asked) == 1


async def test_when_the_breaker_opens_on_our_own_attempt_the_failure_is_told_and_not_the_refusal():
    service, _ = failing(Failed("reset"), Refused("breaker"))
    with pytest.raises(Failed, match="reset"):
        await persistent(service, Retry(3, 0.1, 1.0))(call_of("embed", "x"))


async def test_a_refusal_at_once_goes_straight_on_to_the_next_tier():
    service, asked = failing(Refused("breaker"))
    with pytest.raises(Refused):
        await persistent(service, Retry(3, 0.1, 1.0))(call_of("embed", "x"))
    assert len(asked) == 1


async def test_nobody_is_asked_again_when_the_time_left_is_less_than_an_answer_usually_takes():
    """T30: a failure after most of the time is gone is not followed by an attempt that can't end in time."""
    usual = Usual()
    for _ in range(32):
        usual.add(3.0)
    for left_s, asked_times in ((3.05, 1), (3.5, 2)):
        service, asked = failing(Failed("reset"), None)
        call = call_of("embed", "x")
        call.until = asyncio.get_running_loop().time() + left_s
        with contextlib.suppress(Failed):
            await persistent(service, Retry(2, 0.1, 1.0), usual=usual)(call)
        assert len(asked) == asked_times


async def test_it_learns_how_long_a_first_byte_usually_takes_and_failures_teach_nothing():
    usual = Usual()

    async def taking(call: Call) -> Answer:
        call.upstream_s += 0.2
        if call.id == "broken":
            raise Failed("reset", again=False)
        return Answer(200, [])

    service = persistent(taking, Retry(2, 0.1, 1.0), usual=usual)
    for _ in range(32):
        await service(call_of("embed", "x"))
        with pytest.raises(Failed):
            await service(call_of("embed", "x", id="broken"))
    assert (usual.p50, usual.count) == (0.2, 32)


async def test_without_budget_the_failure_is_told_at_once():
    budget = Budget(Rules(ratio=0.0, per_s_min=0.1))
    service, asked = failing(*(Failed("reset") for _ in range(4)))
    for _ in range(3):
        with pytest.raises(Failed):
            await persistent(service, Retry(2, 0.0, 0.0), budget=budget)(call_of("embed", "x"))
    # one extra attempt in ten seconds is what there is, and the first call has had it
    assert (len(asked), budget.retries, budget.refused) == (4, 1, 2)


async def test_a_call_that_is_itself_an_sdks_repetition_is_not_multiplied():
    """T29: `x-stainless-retry-count` above nought says that the caller's SDK is retrying already."""
    for count, asked_times in ((b"0", 2), (b"1", 1), (b"2", 1)):
        service, asked = failing(Failed("reset"), None)
        call = call_of("embed", "x")
        call.request.headers.append((b"X-Stainless-Retry-Count", count))
        with contextlib.suppress(Failed):
            await persistent(service, Retry(2, 0.0, 0.0))(call)
        assert len(asked) == asked_times


async def test_while_another_endpoint_is_untried_nobody_waits_for_the_first_ones_retry_after():
    """T17: a 429 with `Retry-After: 2` is followed by a wait of two seconds, or at once by another upstream."""
    for endpoints, waits_s in ((1, 2.0), (2, 0.1)):
        service, asked = failing(Failed("status_429", retry_after_s=2.0, soft=True), None)

        async def balanced(call: Call, service: Service = service) -> Answer:
            call.tried.append(f"endpoint {len(call.tried)}")
            return await service(call)

        clock = asyncio.get_running_loop().time
        again = retry(
            balanced,
            Retry(2, 0.1, 1.0),
            clock=clock,
            dice=lambda: 0.5,
            sleep=asyncio.sleep,
            budget=Budget(Rules()),
            endpoints=endpoints,
        )
        await again(call_of("embed", "x"))
        assert asked[1] - asked[0] == pytest.approx(waits_s)


async def test_an_attempt_that_a_hedge_has_made_counts_among_the_attempts():
    asked = 0

    async def hedged(call: Call) -> Answer:
        nonlocal asked
        asked += 1
        call.attempts += 2
        raise Failed("reset")

    with pytest.raises(Failed):
        await persistent(hedged, Retry(2, 0.0, 0.0))(call_of("embed", "x"))
    assert asked == 1
