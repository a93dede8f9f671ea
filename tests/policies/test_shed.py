"""Shedding: when it begins, whom it befalls, and that it ends."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.weather import call_of
from understudy.policies.service import Answer, Call, Refused
from understudy.policies.shed import PRESSURE_MAX, Priority, Shedder, shed
from understudy.proxy.settings.settings import Shedding


def lagging(heart: Shedder, now: float, lags_s: list[float]) -> float:
    """Tell `heart` of these lags, each a tenth of a second and its own length after the one before."""
    for lag_s in lags_s:
        now += 0.1 + lag_s
        heart.lagged(now, lag_s)
    return now


def test_one_long_pause_is_no_overload_and_neither_are_many_with_rests_between():
    heart = Shedder(Shedding())
    now = lagging(heart, 1000.0, [0.001] * 20 + [5.0] + [0.001] * 20)
    assert heart.pressure == 0.0
    lagging(heart, now, [0.4, 0.001] * 50)
    assert heart.pressure == 0.0


def test_a_lag_that_never_goes_away_sheds_low_calls_first_then_more_and_more_normal_ones():
    heart = Shedder(Shedding())
    now = lagging(heart, 1000.0, [0.3] * 4)
    assert heart.pressure == 1.0
    assert heart.sheds("low", 0.999)
    assert not heart.sheds("normal", 0.0)
    lagging(heart, now, [0.3] * 60)
    assert heart.pressure == PRESSURE_MAX
    assert heart.sheds("normal", 0.89)
    assert not heart.sheds("normal", 0.91)
    assert not heart.sheds("critical", 0.0)


def test_even_where_every_tick_is_later_than_an_interval_is_long_it_is_seen():
    heart = Shedder(Shedding(interval_s=0.5))
    lagging(heart, 1000.0, [2.0] * 4)
    assert heart.pressure > 0


def test_when_the_lag_is_gone_the_pressure_goes_step_by_step():
    heart = Shedder(Shedding())
    now = lagging(heart, 1000.0, [0.3] * 60)
    seen: list[float] = []
    for _ in range(80):
        now = lagging(heart, now, [0.001])
        seen.append(heart.pressure)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == 0.0
    assert heart.began == 1


@given(lags_s=st.lists(st.floats(0, 5), max_size=100), luck=st.floats(0, 1, exclude_max=True), enabled=st.booleans())
def test_a_critical_call_is_never_shed_and_nothing_is_where_it_is_switched_off(
    lags_s: list[float], luck: float, enabled: bool
):
    heart = Shedder(Shedding(enabled=enabled))
    lagging(heart, 1000.0, lags_s)
    assert not heart.sheds("critical", luck)
    assert 0.0 <= heart.pressure <= PRESSURE_MAX
    if not enabled:
        assert not heart.sheds("low", luck)


async def test_the_callers_word_counts_for_its_call_and_what_is_shed_is_counted():
    heart, counts = Shedder(Shedding()), dict[Priority, int]()
    lagging(heart, 1000.0, [0.3] * 4)

    async def answering(_call: Call) -> Answer:
        return Answer(200, [])

    service = shed(answering, heart, "normal", counts, dice=random.Random(1).random)

    def of(priority: bytes) -> Call:
        call = call_of("generate", "x")
        call.request.headers = [*call.request.headers, (b"X-Understudy-Priority", priority)]
        return call

    for passes in (b"normal", b"critical", b"nonsense"):
        assert (await service(of(passes))).status == 200
    with pytest.raises(Refused) as refused:
        await service(of(b" LOW "))
    assert (refused.value.reason, refused.value.retry_after_s) == ("shed", 2.0)
    assert counts == {"low": 1}
