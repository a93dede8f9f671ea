"""Writes in line: who must wait behind whom, in what order, and how many may."""

from __future__ import annotations

from typing import NamedTuple

from understudy.policies.holding import Line, Touch, Waiting


class Rules(NamedTuple):
    writes_max: int = 3
    bytes_max: int = 100


def of(collection: str, *ids: int | str) -> Touch:
    return Touch(collection, frozenset(ids))


def filled(*touches: Touch) -> Line:
    line = Line()
    for number, touch in enumerate(touches, start=1):
        line.put(number, Waiting(10, (touch,)))
    return line


def test_a_write_of_other_points_or_of_another_collection_need_not_wait():
    line = filled(of("docs", 1, 2))
    assert not line.is_touched([of("docs", 3)])
    assert not line.is_touched([of("faq", 1)])
    assert not Line().is_touched([Touch("")]), "nobody waits"


def test_a_write_of_a_waiting_point_or_of_points_that_cant_be_named_waits_behind_it():
    line = filled(of("docs", 1, 2))
    assert line.is_touched([of("docs", 9, 2)])
    assert line.is_touched([Touch("docs")])
    assert line.is_touched([Touch("")])
    assert filled(Touch("docs")).is_touched([of("docs", 77)])
    assert filled(Touch("")).is_touched([of("faq", 77)])
    assert not line.is_touched([of("docs", "1")]), "an id that is a string is another's"


def test_what_two_waiting_writes_touch_is_free_only_when_both_are_done():
    line = filled(of("docs", 1), of("docs", 1), Touch("faq"))
    line.done(1)
    assert line.is_touched([of("docs", 1)])
    line.done(2)
    assert not line.is_touched([of("docs", 1)])
    assert line.is_touched([of("faq", 5)])
    line.done(3)
    line.done(3)
    assert (len(line), line.bytes, line.first) == (0, 0, None)


def test_the_first_that_came_is_the_first_to_go_whatever_the_order_of_hearing_of_them():
    line = Line()
    for number in (30, 10, 20):
        line.put(number, Waiting(1, (of("docs", number),)))
    assert line.first == 10
    line.done(10)
    assert (line.first, 20 in line, list(line)) == (20, True, [30, 20])


def test_no_more_may_wait_than_there_is_room_for_and_the_reason_says_which():
    line = filled(of("docs", 1), of("docs", 2))
    assert line.refusal(80, Rules()) == ""
    assert "20 bytes of writes wait already" in line.refusal(81, Rules())
    line.put(3, Waiting(0, (of("docs", 3),)))
    assert line.refusal(0, Rules()) == "3 writes wait already, and no more may"
