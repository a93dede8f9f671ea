"""Hints between replicas: heeded once, outweighed by our own calls, and believed while their page lives."""

from __future__ import annotations

import pytest

from understudy.policies.breaker import Breaker
from understudy.policies.events import Event
from understudy.policies.hints import (
    GONE_S,
    HINT_S_MAX,
    NOTES_MAX,
    NOTES_PER_MINUTE_MAX,
    REPLICAS_MAX,
    SILENT_S,
    Neighbours,
    Noted,
    Notes,
    Open,
    Page,
    said_of,
)
from understudy.proxy.settings.attempt import Breaker as Rules

WALL = 1_800_000_000.0


def page(beat: int, left_s: float | None = None, *, replica: str = "b", at: float = WALL) -> Page:
    opened = () if left_s is None else (Open("key", left_s, "5 failures in a row"),)
    return Page(replica, beat, at, opened)


def test_an_opening_is_one_hint_however_often_it_is_told_and_the_next_opening_is_another():
    ours = Neighbours("a")
    [hint] = ours.heard(0, WALL, [page(1, 8.0)])
    assert (hint.key, hint.open_s) == ("key", 8.0)
    assert hint.reason == "replica b: 5 failures in a row"
    assert not ours.heard(1, WALL, [page(2, 7.0)])
    assert not ours.heard(4, WALL, [page(3, 4.1)])
    assert not ours.heard(9, WALL, [page(4)])
    assert [hint.open_s for hint in ours.heard(10, WALL, [page(5, 16.0)])] == [16.0]


def test_no_hint_lasts_longer_than_half_a_minute_and_our_own_page_is_none():
    ours = Neighbours("a")
    assert [hint.open_s for hint in ours.heard(0, WALL, [page(1, 300.0)])] == [HINT_S_MAX]
    assert not ours.heard(0, WALL, [page(1, 5.0, replica="a")])


def test_what_stood_there_when_we_came_is_believed_once_its_beat_goes_on():
    ours = Neighbours("a")
    old = page(1, 20.0, at=WALL - 3600)
    assert not ours.heard(0, WALL, [old])
    assert not ours.heard(1, WALL, [old])
    assert ours.alive(1) == []
    assert ours.heard(2, WALL, [page(2, 20.0, at=WALL - 3590)])
    assert [one.replica for one in ours.alive(2)] == ["b"]


def test_a_page_that_stands_still_is_dead_and_then_gone():
    ours = Neighbours("a")
    ours.heard(0, WALL, [page(1)])
    assert ours.alive(SILENT_S)
    assert not ours.alive(SILENT_S + 1)
    assert ours.gone(GONE_S) == []
    assert ours.gone(GONE_S + 1) == ["b"]
    ours.heard(GONE_S + 2, WALL, [])
    assert ours.gone(GONE_S + 2) == []


def test_no_more_replicas_are_heard_than_there_is_room_for():
    ours = Neighbours("a")
    ours.heard(0, WALL, [page(1, replica=f"r{n}") for n in range(REPLICAS_MAX + 10)])
    assert len(ours.alive(0)) == REPLICAS_MAX


def test_what_another_wrote_is_one_short_printable_line():
    assert said_of("a\nb\x1b[31m" + "c" * 500) == "a b [31m" + "c" * 112


def broken(rules: Rules) -> Breaker:
    heart = Breaker(rules)
    for _ in range(rules.consecutive):
        ticket = heart.admit(0.0)
        assert ticket is not None
        heart.failed(0.0, ticket, 0.5)
    return heart


def test_a_hint_opens_and_our_own_probes_close_and_nobody_hears_of_it_from_us():
    heart = Breaker(Rules())
    said = heart.said()
    assert heart.hint(10.0, 5.0, "replica b: 5 failures in a row")
    assert (heart.state, heart.is_hinted, heart.epoch) == ("open", True, said.epoch)
    assert heart.admit(14.9) is None
    tickets = [heart.admit(15.1) for _ in range(Rules().permits)]
    assert not heart.is_hinted
    for ticket in tickets:
        assert ticket is not None
        heart.succeeded(15.2, ticket)
    assert heart.state == "closed"
    assert heart.epoch == said.epoch + 1


def test_an_endpoint_that_is_well_for_us_stays_closed_whatever_they_say():
    heart = Breaker(Rules())
    for _ in range(3):
        ticket = heart.admit(1.0)
        assert ticket is not None
        heart.succeeded(1.0, ticket)
    assert not heart.hint(2.0, 5.0, "x")
    assert heart.state == "closed"
    # that was long ago
    assert heart.hint(2.0 + 10 * Rules().window_s, 5.0, "x")


def test_a_first_failure_of_our_own_speaks_for_the_hint():
    heart = Breaker(Rules())
    for n in range(4):
        ticket = heart.admit(1.0)
        assert ticket is not None
        (heart.succeeded(1.0, ticket) if n < 3 else heart.failed(1.0, ticket, 0.5))
    assert heart.hint(2.0, 5.0, "x")


@pytest.mark.parametrize("mode", ["forced-open", "disabled", "metrics-only"])
def test_a_breaker_in_an_operators_hand_takes_no_hints(mode: str):
    heart = Breaker(Rules())
    heart.force(mode, 0.0)  # pyright: ignore[reportArgumentType]
    assert not heart.hint(1.0, 5.0, "x")
    assert not Breaker(Rules(enabled=False)).hint(1.0, 5.0, "x")


def test_what_live_calls_opened_is_not_made_shorter_or_longer_by_a_hint():
    heart = broken(Rules())
    until_s = heart.retry_after_s(1.0)
    assert not heart.hint(1.0, 30.0, "x")
    assert heart.retry_after_s(1.0) == until_s


# --- what happened ---------------------------------------------------------------------------------------------------


def happened(at: float, kind: str = "connect_refused") -> Event:
    return Event(at, "failure", "llm_service:model:443", kind, "none answers")


def page_of(notes: Notes, replica: str = "other") -> Page:
    return Page(replica, 1, 0.0, notes=tuple(notes.own))


def test_what_happened_elsewhere_is_news_once_and_again_after_a_silence():
    theirs, ours = Notes(1000.0), Notes(1000.0)
    theirs.add(happened(1001.0))
    told = ours.news(1002.0, [page_of(theirs)])
    assert [(replica, one.at, one.kind) for replica, one in told] == [("other", 1001.0, "connect_refused")]
    assert ours.news(1003.0, [page_of(theirs)]) == []
    assert ours.news(1004.0, []) == []
    theirs.add(happened(1005.0, "healthy"))
    assert [one.kind for _, one in ours.news(1006.0, [page_of(theirs)])] == ["healthy"]


def test_who_is_started_again_notes_nothing_twice_and_is_heard_again():
    theirs = Notes(1000.0)
    theirs.add(happened(1001.0))
    again = Notes(1010.0)
    assert again.news(1011.0, [page_of(theirs)]) == [], "whoever was here before has noted it"
    reborn = Notes(1020.0)
    reborn.add(happened(1021.0, "dns"))
    assert [one.kind for _, one in again.news(1022.0, [page_of(reborn)])] == ["dns"]


def test_no_replica_floods_the_others_journals():
    ours = Notes(0.0)
    taken = 0
    for tick in range(60):
        notes = tuple(Noted(tick * 100 + n, 1.0, "failure", "c", "k", "") for n in range(100))
        news = ours.news(1.0, [Page("loud", tick, 0.0, notes=notes)])
        assert len(news) <= NOTES_MAX
        taken += len(news)
    assert taken == NOTES_PER_MINUTE_MAX
    assert ours.news(61.0, [Page("loud", 99, 0.0, notes=(Noted(10_000, 1.0, "failure", "c", "k", ""),))])
    mine = Notes(0.0)
    for n in range(100):
        mine.add(happened(float(n)))
    assert len(mine.own) == NOTES_MAX
    assert mine.own[-1].at == 99.0
