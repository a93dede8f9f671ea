"""What upstreams say of their quotas, read from every spelling, believed for a while, and forgotten."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.weather import call_of
from understudy.policies.quota import CALLERS_MAX, Allowance, Quota, allowances, quota
from understudy.policies.service import Answer, Call, Failed, Refused, Service
from understudy.proxy.settings import settings as policies

NOW_WALL = 1_800_000_000.0
OPENAI = (
    b"x-ratelimit-limit-requests: 500\r\nx-ratelimit-limit-tokens: 200000\r\n"
    b"x-ratelimit-remaining-requests: %d\r\nx-ratelimit-remaining-tokens: %d\r\n"
    b"x-ratelimit-reset-requests: %b\r\nx-ratelimit-reset-tokens: %b\r\n"
)


def read(block: bytes) -> list[Allowance]:
    return list(allowances(block, lambda: NOW_WALL))


@pytest.mark.parametrize(
    ("block", "remaining", "reset_s"),
    [
        (b"x-ratelimit-remaining: 0\r\nx-ratelimit-reset: 30\r\n", 0, 30),
        (b"X-RateLimit-Remaining: 7\r\nX-RateLimit-Reset: 1800000060\r\n", 7, 60),
        (b"X-Rate-Limit-Remaining: 0\r\nX-Rate-Limit-Reset: 12\r\n", 0, 12),
        (b"RateLimit-Limit: 100, 100;w=60\r\nRateLimit-Remaining: 3\r\nRateLimit-Reset: 5\r\n", 3, 5),
        (b"RateLimit: limit=100, remaining=0, reset=9\r\n", 0, 9),
        (b'RateLimit: "default";r=0;t=8\r\n', 0, 8),
        (b"x-ratelimit-remaining-requests: 0\r\nx-ratelimit-reset-requests: 6m0s\r\n", 0, 360),
        (b"x-ratelimit-remaining-requests: 0\r\nx-ratelimit-reset-requests: 120ms\r\n", 0, 0.12),
        (
            b"anthropic-ratelimit-requests-remaining: 0\r\n"
            b"anthropic-ratelimit-requests-reset: 2027-01-15T08:01:00Z\r\n",
            0,
            60,
        ),
        (
            b"anthropic-ratelimit-requests-remaining: 0\r\nanthropic-ratelimit-requests-reset: 2027-01-15T08:01:00\r\n",
            0,
            60,
        ),
    ],
)
@pytest.mark.usefixtures("far_from_greenwich")
def test_every_spelling_is_understood(block: bytes, remaining: float, reset_s: float):
    (said,) = read(b"content-type: application/json\r\n" + block + b"server: x\r\n")
    assert (said.remaining, said.reset_s) == (remaining, pytest.approx(reset_s))


def test_several_windows_in_one_header_are_each_read():
    assert [(one.remaining, one.reset_s) for one in read(b'RateLimit: "a";r=0;t=5, "b";r=40;t=3600\r\n')] == [
        (0.0, 5.0),
        (40.0, 3600.0),
    ]


@pytest.mark.parametrize(
    "block",
    [
        b"x-ratelimit-remaining-requests: 0\r\n",
        b"x-ratelimit-remaining: many\r\nx-ratelimit-reset: soon\r\n",
        b"x-ratelimit-reset: 99999999999999999999\r\nx-ratelimit-remaining: 0\r\n",
        b"ratelimit: \xff\xfe\r\n",
        b"x-limits: 5\r\n",
        b"",
    ],
)
def test_what_says_only_half_of_it_or_nonsense_is_let_pass(block: bytes):
    assert not read(block)


@settings(max_examples=300, deadline=None)
@given(block=st.binary(max_size=300), value=st.binary(max_size=60))
def test_no_bytes_of_an_upstream_make_it_fall_over(block: bytes, value: bytes):
    for one in read(block + b"\r\nratelimit: " + value + b"\r\nx-ratelimit-reset-x: " + value):
        assert one.pause_s(0.01) >= 0


def test_a_bucket_that_fills_all_the_time_is_waited_for_only_until_a_call_fits():
    # 500 requests a minute: five of them, one in a hundred, are there after 0.6 s and not after a minute
    said = read(OPENAI % (0, 150_000, b"1m0s", b"15s"))
    assert max(one.pause_s(0.01) for one in said) == pytest.approx(0.6)
    said = read(OPENAI % (499, 0, b"120ms", b"1m0s"))
    assert max(one.pause_s(0.01) for one in said) == pytest.approx(0.6)


# --- the policy ----------------------------------------------------------------------------------------------------


def frugal(service: Service, rules: policies.Quota | None = None, *, per_caller: bool = False) -> tuple[Service, Quota]:
    heart, clock = Quota(rules or policies.Quota()), asyncio.get_running_loop().time
    made = quota(service, heart, clock=clock, wall=lambda: NOW_WALL, sleep=asyncio.sleep, per_caller=per_caller)
    return made, heart


class Provider:
    """Answers with these header lines, or fails with these words; counts how often it was asked."""

    def __init__(self) -> None:
        self.block = b""
        self.fails: Failed | None = None
        self.asked: list[float] = []

    async def __call__(self, _call: Call) -> Answer:
        self.asked.append(asyncio.get_running_loop().time())
        if self.fails is not None:
            raise self.fails
        return Answer(200, None, b"{}", block=self.block)


async def test_who_has_nothing_left_is_not_asked_before_there_is_and_then_again():
    provider = Provider()
    service, heart = frugal(provider)
    provider.block = b"x-ratelimit-remaining: 0\r\nx-ratelimit-reset: 20\r\n"
    await service(call_of("generate", "x"))
    for _ in range(50):
        with pytest.raises(Refused) as refused:
            await service(call_of("generate", "x"))
        assert refused.value.reason == "quota"
        assert refused.value.retry_after_s is not None
    provider.block = b""
    await asyncio.sleep(19.8)
    # a moment is waited for
    await service(call_of("generate", "x"))
    assert provider.asked[-1] - provider.asked[0] == pytest.approx(20.0)
    await service(call_of("generate", "x"))
    assert (heart.refused, heart.waited, heart.beliefs) == (50, 1, {})


@pytest.mark.parametrize(
    ("requests", "tokens", "unread_s"), [(400, 190_000, 1.0), (400, 60_000, 0.1), (20, 190_000, 0.01)]
)
def test_the_more_is_left_of_everything_the_longer_the_next_answers_go_unread(
    requests: int, tokens: int, unread_s: float
):
    heart = Quota(policies.Quota())
    heart.hear(100.0, read(OPENAI % (requests, tokens, b"1s", b"1s")))
    assert heart.unread(100.0 + unread_s * 0.99)
    assert not heart.unread(100.0 + unread_s * 1.01)


async def test_a_429_with_a_retry_after_is_kept_for_five_minutes_at_most():
    provider = Provider()
    service, _ = frugal(provider)
    provider.fails = Failed("status_429", soft=True, retry_after_s=86400.0)
    with pytest.raises(Failed):
        await service(call_of("generate", "x"))
    provider.fails = None
    await asyncio.sleep(299)
    with pytest.raises(Refused):
        await service(call_of("generate", "x"))
    await asyncio.sleep(1.1)
    await service(call_of("generate", "x"))


async def test_an_answer_that_says_there_is_plenty_ends_the_belief():
    provider = Provider()
    service, heart = frugal(provider)
    provider.block = b"x-ratelimit-remaining: 0\r\nx-ratelimit-reset: 100\r\n"
    late = asyncio.ensure_future(service(call_of("generate", "x")))
    await late
    assert heart.beliefs
    provider.block = OPENAI % (400, 190_000, b"1s", b"1s")
    heart.hear(asyncio.get_running_loop().time(), read(provider.block))
    assert not heart.beliefs
    await service(call_of("generate", "x"))


async def test_those_who_wait_come_one_by_one_as_the_bucket_fills():
    provider = Provider()
    service, heart = frugal(provider, policies.Quota(wait_s_max=5, reserve_share=0.0))
    provider.block = OPENAI % (0, 200_000, b"1m0s", b"0s")
    await service(call_of("generate", "x"))
    provider.block = b""
    outcomes = await asyncio.gather(*(service(call_of("generate", "x")) for _ in range(60)), return_exceptions=True)
    waited = [late - early for early, late in zip(provider.asked[1:-1], provider.asked[2:], strict=True)]
    assert all(gap_s == pytest.approx(0.12) for gap_s in waited)
    assert sum(isinstance(each, Refused) for each in outcomes) == heart.refused > 10


async def test_no_caller_pays_for_anothers_quota_and_what_is_remembered_is_bounded():
    provider = Provider()
    service, heart = frugal(provider, per_caller=True)

    def of(key: int) -> Call:
        call = call_of("generate", "x")
        call.request.headers = [*call.request.headers, (b"authorization", b"Bearer %d" % key)]
        return call

    provider.block = b"x-ratelimit-remaining: 0\r\nx-ratelimit-reset: 100\r\n"
    await service(of(1))
    with pytest.raises(Refused):
        await service(of(1))
    await service(of(2))
    for key in range(3, CALLERS_MAX + 50):
        await service(of(key))
    assert len(heart.beliefs) == CALLERS_MAX
    assert not any(b"Bearer" in who for who in heart.beliefs)


async def test_a_failure_that_is_no_matter_of_quota_teaches_nothing():
    provider = Provider()
    service, heart = frugal(provider)
    provider.fails = Failed("status_500", retry_after_s=60.0)
    with pytest.raises(Failed):
        await service(call_of("generate", "x"))
    assert not heart.beliefs
