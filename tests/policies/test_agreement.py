"""Breakers that hear of each other: the rule by which they agree, and that nobody flaps or is closed by old news."""

from __future__ import annotations

from functools import reduce
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from understudy.policies.agreement import Said, newer, newest
from understudy.policies.breaker import Breaker
from understudy.policies.respawn import DEATHS_MAX, WAIT_S_MAX, WELL_S, Respawn
from understudy.proxy.settings.settings import Breaker as Rules

RULES = Rules(consecutive=2, permits=1, open_s=4.0, open_s_max=60.0, probing_s_max=30.0)
EVEN = 0.5
SAID = st.builds(
    Said,
    epoch=st.integers(0, 4),
    is_open=st.booleans(),
    until=st.sampled_from([0.0, 5.0, 9.5]),
    opened_in_a_row=st.integers(0, 3),
    reason=st.sampled_from(["", "2 failures in a row", "a probe failed"]),
)


@given(st.lists(SAID, min_size=1, max_size=5))
def test_what_holds_does_not_depend_on_the_order_or_on_how_often_it_was_heard(said: list[Said]):
    for order in list(permutations(said))[:24]:
        assert reduce(newer, [*order, *order], Said()) == newest(said)


@given(SAID, SAID)
def test_a_newer_word_holds_and_at_the_same_epoch_open_does(one: Said, other: Said):
    held = newer(one, other)
    assert held in (one, other)
    if one.epoch != other.epoch:
        assert held.epoch == max(one.epoch, other.epoch)
    else:
        assert held.is_open == (one.is_open or other.is_open)


def fail(heart: Breaker, now: float, times: int = 2) -> None:
    for _ in range(times):
        heart.failed(now, heart.generation, EVEN)


def test_an_opening_and_a_closing_that_are_heard_of_open_and_close():
    one, other = Breaker(RULES), Breaker(RULES)
    fail(one, 1.0)
    assert other.hear(one.said(), 1.2)
    assert (other.state, other.reason, other.retry_after_s(1.2)) == ("open", "2 failures in a row", 3.8)
    assert not other.hear(one.said(), 1.3), "heard before"
    ticket = one.admit(5.1)
    assert ticket is not None
    assert not other.hear(one.said(), 5.1), "probing is one's own affair"
    one.succeeded(5.2, ticket)
    assert other.hear(one.said(), 5.3)
    assert other.state == "closed"
    assert other.admit(5.3) is not None
    assert not one.hear(other.said(), 5.4), "what came from us tells us nothing"


def test_a_closing_that_the_other_made_before_our_newer_opening_closes_nothing():
    one, other = Breaker(RULES), Breaker(RULES)
    fail(one, 1.0)
    other.hear(one.said(), 1.1)
    first, second = one.admit(6.0), other.admit(6.0)
    assert first is not None
    assert second is not None
    one.succeeded(6.1, first)
    closing = one.said()
    other.failed(6.1, second, EVEN)
    assert (other.state, other.epoch) == ("open", closing.epoch)
    assert not other.hear(closing, 6.2)
    assert other.state == "open"
    assert one.hear(other.said(), 6.2)
    assert one.state == "open"


def test_a_probe_in_flight_when_the_other_has_closed_changes_nothing_any_more():
    one, other = Breaker(RULES), Breaker(RULES)
    fail(one, 1.0)
    other.hear(one.said(), 1.1)
    first, second = one.admit(6.0), other.admit(6.0)
    assert first is not None
    assert second is not None
    one.succeeded(6.1, first)
    assert other.hear(one.said(), 6.2)
    other.failed(6.3, second, EVEN)
    assert (other.state, other.in_a_row) == ("closed", 0)


def test_a_breaker_that_is_switched_off_hears_nothing():
    one, other = Breaker(RULES), Breaker(Rules(enabled=False))
    fail(one, 1.0)
    assert not other.hear(one.said(), 1.1)
    assert other.state == "closed"


STEPS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["ok", "bad", "tell"]), st.floats(0.0, 3.0)), max_size=60)


@given(STEPS)
def test_after_everybody_has_heard_everything_all_say_the_same_and_nobody_changes_again(
    steps: list[tuple[int, str, float]],
):
    hearts = [Breaker(RULES) for _ in range(3)]
    now = 0.0
    for who, what, later_s in steps:
        now += later_s
        heart = hearts[who]
        if what == "tell":
            hearts[(who + 1) % 3].hear(heart.said(), now)
            continue
        ticket = heart.admit(now)
        if ticket is None:
            continue
        if what == "ok":
            heart.succeeded(now, ticket)
        else:
            heart.failed(now, ticket, EVEN)
    for _ in range(2):
        everything = newest(heart.said() for heart in hearts)
        changed = [heart.hear(everything, now) for heart in hearts]
    assert not any(changed), "flapping"
    assert len({heart.said() for heart in hearts}) == 1
    assert len({heart.state == "closed" for heart in hearts}) == 1


def test_a_process_that_dies_is_started_at_once_then_later_and_later_and_at_last_not_believed_in():
    respawn = Respawn()
    waits = [respawn.died(0.2, was_ready=False) for _ in range(DEATHS_MAX)]
    assert waits == [0.0, 0.1, 0.2, 0.4, 0.8]
    assert respawn.hopeless
    assert max(respawn.died(0.2, was_ready=False) for _ in range(20)) == WAIT_S_MAX


def test_a_process_that_was_well_for_a_while_is_started_again_at_once():
    respawn = Respawn()
    for _ in range(4):
        respawn.died(0.2, was_ready=True)
    assert not respawn.hopeless
    assert respawn.died(WELL_S, was_ready=True) == 0.0
    assert respawn.deaths == 5
