"""A split: nested, sticky, as large as it says; and an arm that fails costs nobody an answer."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.weather import Weather, call_of, calls, weathered
from understudy.policies.deadline import Deadline
from understudy.policies.service import Answer, Call, Failed, Hop, Refused, Service
from understudy.policies.split import (
    MAIN,
    Manner,
    Split,
    call_key,
    caller_key,
    first_key,
    header_key,
    split,
    tenant_key,
)

SHARES = st.floats(0, 1)
KEYS = 100_000


def answering(name: str) -> Service:
    async def answered(_call: Call) -> Answer:
        return Answer(200, [], name.encode())

    return answered


def failing(error: Exception) -> Service:
    async def broken(_call: Call) -> Answer:
        raise error

    return broken


def divided(heart: Split, other: Service, *, main: Service | None = None, manner: Manner | None = None) -> Service:
    return split(
        {MAIN: main or answering("main"), heart.arm: other},
        heart,
        Deadline(10.0, 2.0),
        header_key(b"x-user"),
        manner=manner or Manner(),
        clock=asyncio.get_running_loop().time,
    )


def by(user: str, *headers: tuple[bytes, bytes]) -> Call:
    call = call_of("retrieve", "x")
    call.request.headers = [*call.request.headers, (b"X-User", user.encode()), *headers]
    return call


# --- the heart -----------------------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=40), SHARES, SHARES, st.text(max_size=20))
def test_raising_the_share_keeps_everybody_in_and_lowering_it_lets_nobody_new_in(
    key: bytes, one: float, other: float, salt: str
):
    low, high = sorted((one, other))
    heart = Split("next", low, salt)
    was_in = heart.arm_of(key) == "next"
    heart.share = high
    assert heart.arm_of(key) == "next" or not was_in


@given(st.binary(min_size=1, max_size=40), SHARES, st.text(max_size=20))
def test_a_key_meets_the_same_arm_in_every_process_and_at_every_time(key: bytes, share: float, salt: str):
    assert Split("next", share, salt).arm_of(key) == Split("next", share, salt).arm_of(key)


def test_a_point_is_what_it_was_in_the_release_before():
    # users must not change sides because the sidecar was upgraded
    assert [round(Split("next", 0.5, "salt").point(key), 6) for key in (b"ada", b"grace")] == [0.850205, 0.449372]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.25, 0.5, 1.0])
def test_of_a_hundred_thousand_keys_the_share_is_met_within_half_a_point(share: float):
    heart = Split("next", share, "weights")
    found = sum(heart.arm_of(b"user-%d" % number) == "next" for number in range(KEYS)) / KEYS
    assert abs(found - share) < 0.005
    if share in (0.0, 1.0):
        assert found == share


def test_two_experiments_of_different_salts_are_independent():
    one, other = Split("next", 0.5, "a"), Split("next", 0.5, "b")
    table = {(first, second): 0 for first in (MAIN, "next") for second in (MAIN, "next")}
    for number in range(KEYS):
        key = b"user-%d" % number
        table[one.arm_of(key), other.arm_of(key)] += 1
    chi2 = sum((seen - KEYS / 4) ** 2 / (KEYS / 4) for seen in table.values())
    # four cells are three degrees of freedom: 11.34 at p = 0.01
    assert chi2 < 11.34


def test_no_salt_and_key_spell_anothers():
    assert Split("x", 0.5, "ab").point(b"c") != Split("x", 0.5, "a").point(b"bc")


def test_a_call_without_a_key_stays_where_it_was():
    heart = Split("next", 1.0, "")
    assert heart.arm_of(b"") == MAIN
    assert heart.unkeyed == 1


def test_a_reload_that_left_the_share_as_it_was_leaves_the_live_share_as_well():
    old = Split("next", 0.05, "s")
    old.share, old.fell_back = 0.5, 3
    same, raised = Split("next", 0.05, "s"), Split("next", 0.1, "s")
    for heart in (same, raised):
        heart.carry(old)
    assert (same.share, raised.share, same.fell_back) == (0.5, 0.1, 3)
    assert same.tallies["next"] is old.tallies["next"]


# --- keys ----------------------------------------------------------------------------------------------------------


def test_the_first_key_that_a_call_has_decides():
    key = first_key([header_key(b"x-user"), tenant_key, caller_key, call_key])
    call = call_of("embed", "x", id="id-1")
    assert key(call) == b"id-1"
    call.request.hop = Hop(b"10.0.0.1", b"http")
    assert key(call) == b"10.0.0.1"
    call.request.headers = [(b"Authorization", b"Bearer sk")]
    assert key(call) == call.tenant != b""
    call.request.headers = [(b"Authorization", b"Bearer sk"), (b"X-USER", b"ada")]
    assert key(call) == b"ada"


# --- the shell -----------------------------------------------------------------------------------------------------


async def test_an_answer_says_its_arm_and_each_arm_is_counted():
    heart = Split("next", 0.5, "s")
    service = divided(heart, answering("next"))
    for number in range(100):
        answer = await service(by(f"user-{number}"))
        assert dict(answer.headers)[b"x-understudy-arm"] == answer.body
    counted = {arm: tally.answers.get(2, 0) for arm, tally in heart.tallies.items()}
    assert sum(counted.values()) == 100
    assert min(counted.values()) > 30
    assert sum(heart.tallies["next"].seconds.counts) == counted["next"]


@pytest.mark.parametrize("error", [Failed("reset"), Refused("breaker")], ids=["failed", "refused"])
async def test_an_arm_that_does_not_answer_is_stood_in_for_by_the_main_one(error: Exception):
    heart = Split("next", 1.0, "s")
    answer = await divided(heart, failing(error))(by("ada"))
    assert (answer.body, dict(answer.headers)[b"x-understudy-arm"]) == (b"main", b"main")
    assert (heart.fell_back, heart.tallies["next"].failed + heart.tallies["next"].refused) == (1, 1)


async def test_where_the_policy_says_so_an_arms_failure_is_the_callers_to_see():
    with pytest.raises(Failed):
        await divided(Split("next", 1.0, "s"), failing(Failed("reset")), manner=Manner(falls_back=False))(by("ada"))


async def test_a_write_that_may_have_been_carried_out_is_not_sent_to_the_main_arm_as_well():
    heart = Split("next", 1.0, "s")
    with pytest.raises(Failed):
        await divided(heart, failing(Failed("reset", elsewhere=False)))(by("ada"))
    assert heart.fell_back == 0


async def test_an_arm_that_hangs_leaves_the_main_one_its_time():
    clock = asyncio.get_running_loop().time

    async def hanging(call: Call) -> Answer:
        await asyncio.sleep(call.until - clock())
        raise Failed("deadline")

    async def in_time(call: Call) -> Answer:
        assert (clock(), call.deadline, call.until) == (began + 8.0, began + 10.0, began + 10.0)
        return Answer(200, [])

    call, began = by("ada"), clock()
    call.deadline = call.until = began + 10.0
    await divided(Split("next", 1.0, "s"), hanging, main=in_time)(call)
    assert clock() == began + 8.0


async def test_callers_choose_their_arm_only_where_the_policy_lets_them():
    heart = Split("next", 0.0, "s")
    wishing = by("ada", (b"X-Understudy-Arm", b"next"))
    assert (await divided(heart, answering("next"))(wishing)).body == b"main"
    service = divided(heart, answering("next"), manner=Manner(forced_by_header=True))
    assert (await service(wishing)).body == b"next"
    assert (await service(by("ada", (b"x-understudy-arm", b"nobody")))).body == b"main"
    assert heart.forced == 1


async def test_under_weather_somebody_answers_whenever_the_main_arm_would_have():
    """20,000 seeded calls: whatever befalls the arm, a call fails only when the main arm fails as well."""
    loop = asyncio.get_running_loop()
    dice = random.Random(11)
    heart = Split("next", 0.5, "s")
    main_failed = 0

    async def main(call: Call) -> Answer:
        nonlocal main_failed
        if dice.random() < 0.05:
            main_failed += 1
            raise Failed("reset")
        return Answer(200, [])

    service = divided(heart, weathered(answering("next"), Weather(11), loop.time), main=main)
    lost = 0
    for number, (_, call) in enumerate(calls(20_000, 11, 100.0)):
        call.request.headers = [(b"x-user", b"u%d" % (number % 977))]
        call.deadline = call.until = loop.time() + 10.0
        try:
            await service(call)
        except (Failed, Refused):
            lost += 1
        assert loop.time() <= call.deadline
    assert lost == main_failed
    assert heart.fell_back > 100
