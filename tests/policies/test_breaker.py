"""The breaker's heart, told the time; and its shell, over a service that fails."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.weather import call_of
from understudy.policies.breaker import Breaker, breaker
from understudy.policies.forcing import MODES
from understudy.policies.service import Answer, Call, Failed, HeldStream, Refused, Stream
from understudy.proxy.settings.settings import Breaker as Rules

EVEN = 0.5
"""The luck that leaves an open time as it is."""


def opened(rules: Rules, now: float = 0.0) -> Breaker:
    heart = Breaker(rules)
    for _ in range(rules.consecutive):
        ticket = heart.admit(now)
        assert ticket is not None
        heart.failed(now, ticket, EVEN)
    assert heart.state == "open"
    return heart


def test_failures_in_a_row_open_it_and_one_success_between_them_does_not():
    heart = Breaker(Rules(consecutive=3, calls_min=100))
    for outcome in ("failed", "failed", "ok", "failed", "failed"):
        ticket = heart.admit(1.0)
        assert ticket is not None
        if outcome == "ok":
            heart.succeeded(1.0, ticket)
        else:
            heart.failed(1.0, ticket, EVEN)
    assert heart.state == "closed"
    heart.failed(1.0, heart.generation, EVEN)
    assert heart.state == "open"
    assert heart.reason == "3 failures in a row"


@pytest.mark.parametrize("spread_s", [0.05, 25.0])
def test_ten_failures_among_others_trip_the_ratio_whether_they_come_at_once_or_spread_over_the_window(spread_s: float):
    heart = Breaker(Rules(consecutive=100, ratio=0.5, calls_min=10, window_s=30.0))
    now = 30.0
    for turn in range(10):
        heart.failed(now, heart.generation, EVEN)
        assert heart.state == ("open" if turn == 9 else "closed")
        now += spread_s / 10


def test_failures_older_than_the_window_count_for_nothing():
    heart = Breaker(Rules(consecutive=100, calls_min=10, window_s=30.0))
    for _ in range(9):
        heart.failed(0.0, heart.generation, EVEN)
    heart.failed(31.0, heart.generation, EVEN)
    assert heart.state == "closed"


def test_soft_failures_count_in_the_ratio_but_not_in_the_row():
    heart = Breaker(Rules(consecutive=3, calls_min=10, ratio=0.5))
    for _ in range(9):
        heart.failed(1.0, heart.generation, EVEN, soft=True)
    assert heart.state == "closed"
    heart.failed(1.0, heart.generation, EVEN, soft=True)
    assert heart.state == "open"


def test_open_times_double_up_to_the_bound_and_start_over_once_it_has_closed():
    rules = Rules(consecutive=1, open_s=5, open_s_max=12, permits=1)
    heart, now, pauses = Breaker(rules), 0.0, []
    for _ in range(4):
        ticket = heart.admit(now)
        assert ticket is not None
        heart.failed(now, ticket, EVEN)
        pauses.append(heart.retry_after_s(now))
        now += pauses[-1]
    assert pauses == [5, 10, 12, 12]
    ticket = heart.admit(now)
    assert ticket is not None
    heart.succeeded(now, ticket)
    assert heart.state == "closed"
    heart.failed(now, heart.generation, EVEN)
    assert heart.retry_after_s(now) == 5


def test_what_opened_it_is_forgotten_when_it_closes_again_also_within_one_bucket_of_the_window():
    rules = Rules(consecutive=5, calls_min=10, ratio=0.5, open_s=0.5, permits=1, window_s=30.0)
    heart = opened(rules, 30.0)
    ticket = heart.admit(31.0)
    assert ticket is not None
    heart.succeeded(31.0, ticket)
    assert heart.state == "closed"
    assert heart.lately(31.0) == (0, 0)
    for _ in range(4):
        heart.failed(31.0, heart.generation, EVEN)
        heart.succeeded(31.0, heart.generation)
    assert (heart.state, heart.lately(31.0)) == ("closed", (8, 4))


def test_jitter_moves_an_open_time_by_a_quarter_either_way():
    short, long = Breaker(Rules(consecutive=1)), Breaker(Rules(consecutive=1))
    short.failed(0.0, 0, 0.0)
    long.failed(0.0, 0, 1.0)
    assert (short.retry_after_s(0.0), long.retry_after_s(0.0)) == (3.75, 6.25)


def test_one_that_is_switched_off_by_a_reload_is_closed_and_what_was_admitted_before_counts_for_nothing():
    heart = Breaker(Rules(consecutive=1, permits=2))
    heart.failed(0.0, 0, EVEN)
    probe = heart.admit(10.0)
    assert (heart.state, probe) == ("half-open", heart.generation)
    heart.obey(Rules(enabled=False))
    assert (heart.state, heart.admit(10.0) is not None) == ("closed", True)
    heart.obey(Rules(consecutive=1, permits=2))
    heart.failed(11.0, probe or 0, EVEN)
    assert heart.state == "closed"
    heart.failed(11.0, heart.generation, EVEN)
    assert heart.state == "open"


def test_no_jitter_makes_an_open_time_longer_than_the_longest_and_the_longest_differ_too():
    rules, pauses = Rules(consecutive=1, open_s=60, open_s_max=60), list[float]()
    for luck in (0.0, 0.25, 0.5, 0.75, 0.99):
        heart = Breaker(rules)
        heart.failed(0.0, 0, luck)
        pauses.append(round(heart.retry_after_s(0.0), 1))
    assert pauses == [45.0, 52.5, 60.0, 52.5, 45.3]


def test_the_upstreams_own_retry_after_beats_our_guess_within_bounds():
    for said, kept in ((20.0, 20.0), (0.1, 1.0), (86400.0, 300.0)):
        heart = Breaker(Rules(consecutive=1))
        heart.failed(0.0, 0, EVEN, retry_after_s=said)
        assert heart.retry_after_s(0.0) == kept


def test_half_open_lets_exactly_its_permits_through_and_closes_when_all_are_answered():
    heart = opened(Rules(consecutive=1, permits=3))
    assert heart.admit(4.9) is None
    tickets = [heart.admit(5.0) for _ in range(5)]
    assert [ticket is not None for ticket in tickets] == [True, True, True, False, False]
    for ticket in tickets[:3]:
        assert heart.state == "half-open"
        assert ticket is not None
        heart.succeeded(5.1, ticket)
    assert heart.state == "closed"


def test_one_failed_probe_opens_it_again_also_when_it_failed_softly():
    for soft in (False, True):
        heart = opened(Rules(consecutive=1))
        ticket = heart.admit(5.0)
        assert ticket is not None
        heart.failed(5.0, ticket, EVEN, soft=soft)
        assert heart.state == "open"


def test_a_probe_that_came_to_nothing_gives_its_permit_back():
    heart = opened(Rules(consecutive=1, permits=1))
    for _ in range(10):
        ticket = heart.admit(5.0)
        assert ticket is not None
        assert heart.admit(5.0) is None
        heart.forgotten(ticket)
    assert heart.state == "half-open"


def test_probes_that_never_come_back_do_not_hold_it_half_open_for_ever():
    heart = opened(Rules(consecutive=1, permits=1, probing_s_max=30.0))
    assert heart.admit(5.0) is not None
    assert heart.admit(34.9) is None
    assert heart.state == "half-open"
    assert heart.admit(35.0) is None
    assert heart.state == "open"
    assert heart.admit(200.0) is not None


def test_stragglers_from_before_it_closed_do_not_open_it_again():
    heart = Breaker(Rules(consecutive=5, permits=1))
    early = [heart.admit(0.0) for _ in range(200)]
    for ticket in early[:5]:
        assert ticket is not None
        heart.failed(0.0, ticket, EVEN)
    probe = heart.admit(5.0)
    assert probe is not None
    heart.succeeded(5.0, probe)
    assert heart.state == "closed"
    for ticket in early[5:]:
        assert ticket is not None
        heart.failed(6.0, ticket, EVEN)
    assert heart.state == "closed"


def test_a_disabled_breaker_never_refuses():
    heart = Breaker(Rules(enabled=False, consecutive=1))
    for _ in range(100):
        ticket = heart.admit(0.0)
        assert ticket is not None
        heart.failed(0.0, ticket, EVEN)
    assert heart.state == "closed"


@settings(derandomize=True, max_examples=300)
@given(
    st.lists(
        st.tuples(st.sampled_from(["admit", "ok", "fail", "soft", "forget"]), st.floats(0, 20), st.floats(0, 1)),
        max_size=80,
    )
)
def test_no_permit_is_ever_lost_or_made_whatever_happens_in_whatever_order(story: list[tuple[str, float, float]]):
    rules = Rules(consecutive=2, calls_min=4, permits=2)
    heart, now = Breaker(rules), 0.0
    held: list[int] = []
    for what, passed_s, luck in story:
        now += passed_s
        if what == "admit":
            ticket = heart.admit(now)
            if ticket is not None:
                held.append(ticket)
        elif held:
            ticket = held.pop(int(luck * (len(held) - 1)))
            if what == "ok":
                heart.succeeded(now, ticket)
            elif what == "forget":
                heart.forgotten(ticket)
            else:
                heart.failed(now, ticket, luck, soft=what == "soft")
        probing = [ticket for ticket in held if ticket == heart.generation]
        if heart.state == "half-open":
            assert len(probing) <= rules.permits
    # and it is never wedged: with nobody holding anything, it lets a call through in the end
    for ticket in held:
        heart.forgotten(ticket)
    assert any(heart.admit(now + later) is not None for later in (0.0, 100.0, 200.0, 400.0))


# --- the ratios ----------------------------------------------------------------------------------------------------


def burst(heart: Breaker, failures: int, now: float, within_s: float) -> None:
    for number in range(failures):
        at = now + within_s * number / failures
        ticket = heart.admit(at)
        if ticket is not None:
            heart.failed(at, ticket, EVEN)


def test_ten_failures_open_it_as_a_burst_after_a_silence_and_spread_over_the_window_and_nine_do_not():
    """A1: exact counts; an average that weighs by time would sleep through the burst."""
    for failures, within_s, state in ((10, 0.05, "open"), (9, 0.05, "closed"), (10, 25.0, "open"), (9, 25.0, "closed")):
        heart = Breaker(Rules(consecutive=1000, calls_min=10, ratio=0.5, window_s=30.0))
        heart.succeeded(970.0, 0)
        burst(heart, failures, 1000.1, within_s)
        assert heart.state == state, (failures, within_s)


def test_when_most_first_bytes_are_late_it_opens_and_when_few_are_it_does_not():
    for slow, state in ((8, "open"), (7, "closed")):
        heart = Breaker(Rules(slow_s=2.0, slow_ratio=0.8, calls_min=10))
        for number in range(10):
            if number < 10 - slow:
                heart.succeeded(1.0, 0)
            else:
                heart.slow(1.0, 0, EVEN)
        assert heart.state == state
    assert heart.reason == ""


def test_a_slow_probe_fails_the_probing():
    heart = opened(Rules(consecutive=1, slow_s=2.0))
    ticket = heart.admit(5.0)
    assert ticket is not None
    heart.slow(8.0, ticket, EVEN)
    assert (heart.state, heart.reason) == ("open", "a probe was slow")


def test_a_window_that_becomes_longer_by_a_reload_does_not_remember_for_ever():
    heart = Breaker(Rules(consecutive=1000, window_s=1.0))
    burst(heart, 5, 1000.0, 0.1)
    heart.rules = Rules(consecutive=1000, window_s=100.0)
    burst(heart, 9, 1001.0, 0.1)
    assert heart.state == "closed"
    burst(heart, 1, 1002.0, 0.0)
    assert heart.state == "open"


def test_a_storm_of_503s_with_retry_after_pauses_for_as_long_as_they_say_and_not_longer():
    """T24: busy, in good order, is no breakdown: nothing in a row, and back as soon as the upstream said."""
    heart = Breaker(Rules(consecutive=5))
    for _ in range(9):
        heart.failed(0.0, 0, EVEN, soft=True, retry_after_s=2.0)
    assert heart.state == "closed"
    heart.failed(0.0, 0, EVEN, soft=True, retry_after_s=2.0)
    assert (heart.state, heart.retry_after_s(0.0)) == ("open", 2.0)
    tickets = [heart.admit(2.0) for _ in range(3)]
    for ticket in tickets:
        assert ticket is not None
        heart.succeeded(2.1, ticket)
    assert heart.state == "closed"


def test_a_straggler_with_a_longer_retry_after_prolongs_the_pause_and_one_with_a_shorter_does_not():
    """T26: of two cooldowns the longer wins, also when it is heard of second."""
    heart = Breaker(Rules(consecutive=1))
    early = [heart.admit(0.0) for _ in range(3)]
    assert None not in early
    heart.failed(0.0, 0, EVEN)
    heart.failed(1.0, 0, EVEN, retry_after_s=2.0)
    assert heart.retry_after_s(0.0) == 5.0
    heart.failed(1.0, 0, EVEN, retry_after_s=20.0)
    assert (heart.retry_after_s(0.0), heart.transitions["open"]) == (21.0, 1)


def test_half_open_lets_exactly_its_probes_through_however_many_come_at_once_and_closes_in_the_end():
    """T25."""
    heart = opened(Rules(consecutive=1, permits=2))
    tickets = [each for each in (heart.admit(6.0) for _ in range(50)) if each is not None]
    assert len(tickets) == 2
    heart.forgotten(tickets[0])
    again = [each for each in (heart.admit(6.0) for _ in range(50)) if each is not None]
    assert len(again) == 1
    for ticket in (tickets[1], again[0]):
        heart.succeeded(6.5, ticket)
    assert heart.state == "closed"


# --- by hand -------------------------------------------------------------------------------------------------------


def test_forced_open_nobody_passes_and_afterwards_it_is_probed_before_it_is_trusted():
    heart = Breaker(Rules(permits=2))
    early = heart.admit(0.0)
    assert early is not None
    heart.force("forced-open", 0.0)
    assert [heart.admit(now) for now in (0.0, 1e6)] == [None, None]
    assert (heart.shown, heart.why) == ("open", "forced-open by hand")
    heart.succeeded(1.0, early)
    heart.force("auto", 1e6)
    tickets = [heart.admit(1e6) for _ in range(3)]
    assert [ticket is not None for ticket in tickets] == [True, True, False]
    for ticket in tickets[:2]:
        assert ticket is not None
        heart.succeeded(1e6, ticket)
    assert heart.shown == "closed"


def test_disabled_everybody_passes_and_nothing_is_counted_and_afterwards_it_starts_afresh():
    heart = opened(Rules(consecutive=1))
    heart.force("disabled", 0.0)
    for _ in range(100):
        ticket = heart.admit(0.0)
        assert ticket is not None
        heart.failed(0.0, ticket, EVEN)
    assert heart.shown == "closed"
    heart.force("auto", 0.0)
    assert (heart.shown, heart.admit(0.0) is not None) == ("closed", True)


def test_metrics_only_it_counts_and_changes_state_and_refuses_nobody():
    heart = Breaker(Rules(consecutive=3, permits=1))
    heart.force("metrics-only", 0.0)
    for _ in range(10):
        ticket = heart.admit(0.0)
        assert ticket is not None
        heart.failed(0.0, ticket, EVEN)
    assert (heart.shown, heart.would_refuse) == ("open", 7)
    ticket = heart.admit(5.0)
    assert ticket is not None
    heart.succeeded(5.0, ticket)
    assert (heart.shown, heart.transitions["closed"]) == ("closed", 1)


def test_metrics_only_makes_also_a_breaker_count_that_the_policies_switch_off():
    heart = Breaker(Rules(enabled=False, consecutive=1))
    heart.force("metrics-only", 0.0)
    heart.failed(0.0, heart.generation, EVEN)
    assert heart.shown == "open"


@settings(derandomize=True, max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["admit", "admit", "ok", "slow", "fail", "soft", "forget", *MODES]),
            st.floats(0, 20),
            st.floats(0, 1, exclude_max=True),
        ),
        max_size=80,
    )
)
def test_whatever_an_operator_does_meanwhile_it_obeys_leaks_no_permit_and_is_never_wedged(
    story: list[tuple[str, float, float]],
):
    rules = Rules(consecutive=2, calls_min=4, permits=2, slow_s=1.0)
    heart, now = Breaker(rules), 0.0
    held: list[int] = []
    for what, passed_s, luck in story:
        now += passed_s
        if what in MODES:
            heart.force(what, now)
        elif what == "admit":
            ticket = heart.admit(now)
            assert (ticket is None) <= (heart.mode in ("auto", "forced-open"))
            assert (ticket is not None) <= (heart.mode != "forced-open")
            held += [] if ticket is None else [ticket]
        elif held:
            ticket = held.pop(int(luck * len(held)))
            if what == "ok":
                heart.succeeded(now, ticket)
            elif what == "slow":
                heart.slow(now, ticket, luck)
            elif what == "forget":
                heart.forgotten(ticket)
            else:
                heart.failed(now, ticket, luck, soft=what == "soft")
        if heart.state == "half-open":
            assert sum(ticket == heart.generation for ticket in held) <= rules.permits
    heart.force("auto", now)
    for ticket in held:
        heart.forgotten(ticket)
    assert any(heart.admit(now + later) is not None for later in (0.0, 100.0, 200.0, 400.0))


# --- the shell -----------------------------------------------------------------------------------------------------


async def test_an_open_breaker_refuses_without_asking_and_says_when_to_come_back():
    asked = 0

    async def failing(_call: Call) -> Answer:
        nonlocal asked
        asked += 1
        raise Failed("reset")

    guarded = breaker(failing, Breaker(Rules(consecutive=2)), clock=lambda: 0.0, dice=lambda: EVEN)
    for _ in range(2):
        with pytest.raises(Failed):
            await guarded(call_of("embed", "x"))
    with pytest.raises(Refused) as refused:
        await guarded(call_of("embed", "x"))
    assert (asked, refused.value.reason, refused.value.retry_after_s) == (2, "breaker", 5.0)


async def test_a_stream_that_is_cut_counts_as_a_failure_although_it_began_well_and_one_that_was_left_does_not():
    heart = Breaker(Rules(consecutive=1))

    async def streaming(_call: Call) -> Answer:
        return Answer(200, [], stream=HeldStream([b"a"]))

    guarded = breaker(streaming, heart, clock=lambda: 0.0, dice=lambda: EVEN)
    left, cut = (await guarded(call_of("generate", "x"))).stream, (await guarded(call_of("generate", "x"))).stream
    assert isinstance(left, Stream)
    assert isinstance(cut, Stream)
    left.close()
    assert heart.state == "closed"
    cut.finish("cut")
    assert heart.state == "open"


async def test_a_hundred_callers_who_hang_up_open_nothing_and_leak_no_permit():
    import asyncio

    heart = opened(Rules(consecutive=1, permits=2))

    async def endless(_call: Call) -> Answer:
        await asyncio.sleep(3600)
        return Answer(200, [])

    guarded = breaker(endless, heart, clock=lambda: 6.0, dice=lambda: EVEN)
    for _ in range(100):
        task = asyncio.ensure_future(guarded(call_of("embed", "x")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert heart.state == "half-open"
    assert [heart.admit(6.0) is not None for _ in range(3)] == [True, True, False]


async def test_an_answer_whose_first_byte_was_late_counts_as_slow_however_long_the_whole_took():
    heart, taken = Breaker(Rules(slow_s=2.0, calls_min=5)), [2.0, 2.1, 2.1, 2.1, 2.1]

    async def answering(call: Call) -> Answer:
        call.upstream_s += taken.pop(0)
        return Answer(200, [])

    guarded = breaker(answering, heart, clock=lambda: 0.0, dice=lambda: EVEN)
    call = call_of("generate", "x")
    # what other tiers have taken of this call's time is not this one's doing
    call.upstream_s = 9.0
    while taken:
        assert heart.state == "closed"
        await guarded(call)
    assert (heart.state, heart.reason) == ("open", "4 of 5 calls were slow")


async def test_a_forced_open_breaker_says_so_and_promises_no_return():
    heart = Breaker(Rules())
    heart.force("forced-open", 0.0)

    async def answering(_call: Call) -> Answer:
        return Answer(200, [])

    with pytest.raises(Refused, match="forced-open by hand") as refused:
        await breaker(answering, heart, clock=lambda: 0.0, dice=lambda: EVEN)(call_of("embed", "x"))
    assert (refused.value.reason, refused.value.retry_after_s) == ("breaker", None)


async def test_streams_that_are_cut_one_after_another_are_failures_in_a_row_until_one_is_whole():
    heart = Breaker(Rules(consecutive=3, calls_min=100))

    async def streaming(_call: Call) -> Answer:
        return Answer(200, [], stream=HeldStream([b"a"]))

    guarded = breaker(streaming, heart, clock=lambda: 0.0, dice=lambda: EVEN)

    async def ends(end: str) -> None:
        stream = (await guarded(call_of("generate", "x"))).stream
        assert stream is not None
        stream.finish(end)  # type: ignore[arg-type]

    for end in ("cut", "cut", "done", "cut", "cut", "left"):
        await ends(end)
    assert (heart.state, heart.in_a_row) == ("closed", 2)
    await ends("cut")
    assert (heart.state, heart.reason) == ("open", "3 failures in a row")


def test_a_cut_stream_is_one_call_and_one_failure():
    heart = Breaker(Rules(consecutive=100, calls_min=4, ratio=1.0))
    for n in range(4):
        ticket = heart.admit(0.0)
        assert ticket is not None, n
        heart.began(0.0, ticket)
        heart.failed(0.0, ticket, EVEN, counted=True)
    assert (heart.state, heart.reason) == ("open", "4 of 4 calls failed")
