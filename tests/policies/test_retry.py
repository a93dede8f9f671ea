"""When to ask again, how long to wait, and when to let it be."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.weather import call_of
from understudy.policies.retry import Retry, retry
from understudy.policies.service import Answer, Call, Failed, Refused, Service


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


def persistent(service: Service, heart: Retry, luck: float = 0.5) -> Service:
    clock = asyncio.get_running_loop().time
    return retry(service, heart, clock=clock, dice=lambda: luck, sleep=asyncio.sleep)


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
