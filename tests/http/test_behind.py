"""Readers who are behind: each one's time, and what is kept for all of them."""

from __future__ import annotations

from understudy.proxy.http.behind import Behind
from understudy.proxy.settings.settings import Limits

LIMITS = Limits(idle_s=40, read_bytes_per_s_min=100, unsent_bytes_max=10_000)


class Slow:
    def __init__(self, unsent_bytes: int) -> None:
        self.unsent_bytes = unsent_bytes
        self.cut = False

    def abort(self) -> None:
        self.cut = True


def taking(bytes_per_s: float, unsent_bytes: int = 9000) -> float:
    """When a reader who takes so much is cut; 0 when it got everything."""
    behind, slow = Behind(), Slow(unsent_bytes)
    behind.note(slow, 0.0, LIMITS)
    for second in range(1, 1000):
        slow.unsent_bytes = max(0, unsent_bytes - int(second * bytes_per_s))
        if not slow.unsent_bytes:
            behind.forget(slow)
        behind.sweep(float(second), LIMITS)
        if slow.cut:
            return second
    return 0


def test_who_takes_nothing_is_cut_after_idle_s_and_who_takes_a_little_somewhat_later():
    assert taking(0) == 41
    assert taking(10) == 45
    assert taking(50) == 81


def test_who_takes_the_least_or_more_gets_it_all():
    assert taking(100) == 0
    assert taking(1000) == 0


def test_what_came_after_the_buffer_was_full_is_not_taken_for_something_given_back():
    behind, slow = Behind(), Slow(1000)
    behind.note(slow, 0.0, LIMITS)
    slow.unsent_bytes = 9000
    behind.sweep(10.0, LIMITS)
    slow.unsent_bytes = 8000
    behind.sweep(49.0, LIMITS)
    assert not slow.cut
    behind.sweep(51.0, LIMITS)
    assert slow.cut
    assert behind.cut == 1
    assert len(behind) == 0


def test_beyond_the_bound_for_all_the_longest_behind_goes_first_and_those_who_took_theirs_do_not_count():
    behind = Behind()
    readers = [Slow(4000) for _ in range(4)]
    for at, reader in enumerate(readers[:2]):
        behind.note(reader, float(at), LIMITS)
    readers[1].unsent_bytes = 0
    behind.note(readers[2], 2.0, LIMITS)
    assert not any(reader.cut for reader in readers)
    behind.note(readers[3], 3.0, LIMITS)
    assert [reader.cut for reader in readers] == [True, False, False, False]
    behind.forget(readers[2])
    behind.forget(readers[2])
    again = Slow(5000)
    behind.note(again, 4.0, LIMITS)
    assert [reader.cut for reader in readers] == [True, False, False, False]
    assert not again.cut
