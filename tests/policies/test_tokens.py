"""Token buckets: what passes in the long run and at once, for whom, and what those over the limit are told."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.weather import call_of
from understudy.policies.service import Answer, Call, Headers
from understudy.policies.tokens import Buckets, limits_anything, tokens
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.settings.settings import Rate, Tokens


@settings(max_examples=200, deadline=None)
@given(
    gaps_s=st.lists(st.floats(0, 3), min_size=1, max_size=200),
    per_s=st.floats(0.1, 50),
    burst=st.integers(1, 30),
)
def test_in_no_stretch_of_time_more_passes_than_the_burst_and_the_rate_allow(
    gaps_s: list[float], per_s: float, burst: int
):
    heart = Buckets(Tokens(caller=Rate(calls_per_s=per_s, burst=burst)))
    now, passed = 1000.0, list[float]()
    for gap_s in gaps_s:
        now += gap_s
        if heart.take(now, b"who", 1.0) is None:
            passed.append(now)
    for first, since in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + per_s * (passed[last] - since) + 1e-6


def test_who_is_told_when_to_come_back_is_let_in_then_and_no_sooner():
    heart = Buckets(Tokens(caller=Rate(calls_per_s=2, burst=3)))
    assert [heart.take(1000.0, b"a", 1) is None for _ in range(4)] == [True, True, True, False]
    over = heart.take(1000.0, b"a", 1)
    assert over is not None
    assert (over.whose, over.what, over.size, over.left, over.wait_s) == ("caller", "requests", 3, 0, 0.5)
    assert heart.take(1000.49, b"a", 1) is not None
    assert heart.take(1000.5, b"a", 1) is None


def test_callers_do_not_take_from_each_other_but_share_the_routes():
    heart = Buckets(Tokens(route=Rate(calls_per_s=1, burst=5), caller=Rate(calls_per_s=1, burst=2)))
    taken = [heart.take(1000.0, who, 1) for who in (b"a", b"a", b"a", b"b", b"b", b"c", b"c")]
    assert [over and over.whose for over in taken] == [None, None, "caller", None, None, None, "route"]
    assert heart.refused == {"route": 1, "caller": 1}


def test_long_bodies_cost_more_and_one_longer_than_the_bucket_passes_when_it_is_full():
    heart = Buckets(Tokens(route=Rate(llm_tokens_per_s=100, llm_burst=1000)))
    assert heart.take(1000.0, b"", 900) is None
    over = heart.take(1000.0, b"", 200)
    assert over is not None
    assert (over.what, over.left) == ("tokens", 100)
    assert over.wait_s == pytest.approx(1.0)
    assert heart.take(1008.0, b"", 5000) is not None
    assert heart.take(1009.0, b"", 5000) is None


@settings(max_examples=50, deadline=None)
@given(callers=st.lists(st.integers(0, 500), max_size=600))
def test_callers_are_bounded_and_forgotten_once_they_have_nothing_to_pay_back(callers: list[int]):
    heart = Buckets(Tokens(caller=Rate(calls_per_s=1, burst=1), callers_max=50))
    for number, caller in enumerate(callers):
        heart.take(1000.0 + number / 1000, b"%d" % caller, 1)
        assert len(heart) <= 51
    for number in range(60):
        heart.take(2000.0, b"new-%d" % number, 1)
        heart.take(2010.0 + number, b"one", 1)
    assert len(heart) <= 3


def test_other_rules_hold_at_once_and_what_was_taken_stays_taken():
    heart = Buckets(Tokens(caller=Rate(calls_per_s=1, burst=5)))
    for _ in range(5):
        assert heart.take(1000.0, b"a", 1) is None
    heart.obey(Tokens(caller=Rate(calls_per_s=1, burst=6)))
    assert heart.take(1000.0, b"a", 1) is None
    assert heart.take(1000.0, b"a", 1) is not None
    assert not limits_anything(Tokens())
    assert limits_anything(Tokens(route=Rate(llm_tokens_per_s=1)))


# --- the policy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["openai-chat", "openai-embeddings", "qdrant", "plain"])
async def test_who_is_over_the_limit_gets_a_429_in_the_dialect_with_when_to_come_back(dialect: str):
    asked = 0

    async def upstream(_call: Call) -> Answer:
        nonlocal asked
        asked += 1
        return Answer(200, [])

    def refuse(detail: str, headers: Headers) -> Answer:
        return DIALECTS[dialect].error(429, "rate_limit_exceeded", detail, headers=headers)

    heart, clock = (
        Buckets(Tokens(caller=Rate(calls_per_s=0.5, burst=1), by=["X-User"])),
        asyncio.get_running_loop().time,
    )
    service = tokens(upstream, heart, clock=clock, refuse=refuse)

    def of(user: bytes) -> Call:
        call = call_of("generate", "x")
        call.request.headers = [(b"x-user", user), (b"authorization", b"Bearer secret")]
        return call

    assert (await service(of(b"ann"))).status == 200
    over = await service(of(b"ann"))
    assert over.status == 429
    headers = dict(over.headers)
    assert headers[b"retry-after"] == b"2"
    assert headers[b"x-ratelimit-limit-requests"] == b"1"
    assert headers[b"x-ratelimit-remaining-requests"] == b"0"
    assert b"x-should-retry" not in headers
    assert b"rate limit" in over.body
    assert b"secret" not in over.body + over.lines()
    assert (await service(of(b"bob"))).status == 200
    await asyncio.sleep(2.0)
    assert (await service(of(b"ann"))).status == 200
    assert asked == 3
