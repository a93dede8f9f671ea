"""The cache's heart: what is kept for how long, what goes first, what a write makes of it, a helper that is down."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

import pytest

from understudy.policies.cache import (
    ENTRY_OVERHEAD_BYTES,
    EVERYONE,
    FAILURES_MAX,
    HOMES_MAX,
    NO_HOMES,
    Homes,
    Kept,
    Patience,
    Store,
    Town,
    is_settled,
    jittered,
    kept_for,
    lifetime_s,
    stamp_of,
)


@dataclass
class Rules:
    ttl_s: float = 100.0
    jitter_share: float = 0.1
    negative_s: float = 2.0
    revalidate_s: float = 10.0
    stale_s_max: float = 1000.0
    bytes_max: int = 100 * 1024
    entry_bytes_max: int = 50 * 1024


def entry(key: bytes, size: int = 100, *, at: float = 0.0, homes: Homes = NO_HOMES, rules: Rules | None = None):
    return kept_for(key, key, size, at=at, homes=homes, stamp=stamp_of(homes), rules=rules or Rules(), fresh_s=100.0)


def test_an_entry_is_fresh_then_stale_then_a_last_resort_and_then_gone():
    store: Store[bytes] = Store(Rules())
    assert store.put(entry(b"k"), 0.0)
    seen = {now: kept.state(now) if (kept := store.find(b"k", now)) else None for now in (0.0, 99.9, 100.0, 109.9)}
    assert seen == {0.0: "fresh", 99.9: "fresh", 100.0: "stale", 109.9: "stale"}
    kept = store.find(b"k", 110.0)
    assert kept is not None
    assert kept.state(110.0) == "last-resort"
    assert store.find(b"k", 1099.9) is kept
    assert store.find(b"k", 1100.0) is None
    assert (len(store), store.bytes, store.protected_bytes) == (0, 0, 0)


def test_only_answers_that_stay_true_are_kept_and_an_upstreams_word_only_shortens():
    rules = Rules()
    assert [lifetime_s(rules, status) for status in (200, 202, 206, 301, 404, 410, 400, 401, 429, 500, 503)] == [
        *(100.0, 0.0, 0.0, 0.0),
        *(2.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    ]
    assert lifetime_s(rules, 200, 5.0) == 5.0
    assert lifetime_s(rules, 200, 5000.0) == 100.0
    assert [jittered(100.0, 0.1, luck) for luck in (0.0, 0.5)] == [100.0, 95.0]


def test_a_run_of_one_off_calls_does_not_wash_out_what_is_asked_for_again():
    store: Store[bytes] = Store(Rules())
    for n in range(20):
        store.put(entry(b"used-%d" % n, 1000), 0.0)
        store.find(b"used-%d" % n, 0.0)
    for n in range(10_000):
        store.put(entry(b"once-%d" % n, 1000), 0.0)
    assert all(store.find(b"used-%d" % n, 0.0) for n in range(20))
    assert store.evicted > 9_000
    assert store.bytes <= store.rules.bytes_max


def test_what_is_too_large_is_not_kept_and_lowered_bounds_are_kept_to():
    rules = Rules()
    store: Store[bytes] = Store(rules)
    assert not store.put(entry(b"large", 60 * 1024), 0.0)
    for n in range(50):
        assert store.put(entry(b"%d" % n, 1000), 0.0)
    rules.bytes_max = 10 * 1024
    store.fit()
    assert 0 < store.bytes <= 10 * 1024


@pytest.mark.parametrize("seed", range(30))
def test_whatever_is_done_the_bytes_are_right_and_bounded(seed: int):
    dice = random.Random(seed)
    rules = Rules(bytes_max=dice.choice([2_000, 20_000, 100_000]))
    store: Store[bytes] = Store(rules)
    town = Town()
    homes = tuple(town.home(name) for name in "abc")
    now = 0.0
    for _ in range(1_500):
        now += dice.random() * 20
        key = b"%d" % dice.randrange(60)
        match dice.randrange(10):
            case 0:
                store.drop(key)
            case 1:
                dice.choice(homes).written(now, 0.0)
            case 2 | 3 | 4:
                store.put(entry(key, dice.randrange(3_000), at=now, homes=(dice.choice(homes),), rules=rules), now)
            case _:
                kept = store.find(key, now)
                assert kept is None or (kept.key == key and not kept.moved and now < kept.dead_at)
        assert store.bytes == sum(kept.size_bytes for kept in store) <= rules.bytes_max
        assert 0 <= store.protected_bytes <= store.bytes
    store.clear()
    assert (len(store), store.bytes, store.protected_bytes) == (0, 0, 0)


def test_what_was_not_there_is_forgotten_as_soon_as_it_is_no_longer_fresh():
    rules, store = Rules(), Store[bytes](Rules())
    kept = kept_for(b"k", b"", 1, at=0.0, homes=NO_HOMES, stamp=0, rules=rules, fresh_s=2.0, negative=True)
    store.put(kept, 0.0)
    assert store.find(b"k", 1.9) is kept
    assert store.find(b"k", 2.0) is None


# --- writes --------------------------------------------------------------------------------------------------------


def test_a_write_takes_what_was_read_from_its_collection_and_nothing_else():
    town = Town()
    books, films = town.home("books"), town.home("films")
    store: Store[bytes] = Store(Rules())
    for name, homes in (("b", (books,)), ("f", (films,)), ("both", (books, films)), ("none", ())):
        store.put(entry(name.encode(), homes=homes), 0.0)
    books.begin_write()
    assert [bool(store.find(key, 1.0)) for key in (b"b", b"f", b"both", b"none")] == [False, True, False, True]
    assert store.moved == 2


def test_what_was_read_before_or_during_a_write_is_not_told_after_it():
    home = Town().home("books")
    store: Store[bytes] = Store(Rules())
    before = entry(b"before", homes=(home,))
    home.begin_write()
    during = entry(b"during", homes=(home,))
    assert not is_settled((home,), 1.0)
    home.end_write(1.0, 0.5)
    assert not store.put(before, 1.0)
    assert not store.put(during, 1.0)
    # the database acknowledges a write before every read shows it
    assert [is_settled((home,), now) for now in (1.0, 1.4, 1.5)] == [False, False, True]
    assert store.put(entry(b"after", homes=(home,)), 2.0)


def test_collections_beyond_the_bound_share_an_epoch_and_forget_together():
    town = Town()
    for n in range(HOMES_MAX):
        town.home(f"c{n}")
    one, other = town.home("one too many"), town.home("another")
    assert one is other
    assert town.home("c7") is not one
    assert town.home(EVERYONE) is town.everyone
    assert sum(1 for _ in town) == HOMES_MAX + 1


# --- a helper that may be down -------------------------------------------------------------------------------------


def test_a_dead_helper_costs_a_few_questions_and_then_one_now_and_then():
    patience = Patience()
    asked, now = [], 0.0
    while now < 300.0:
        if patience.admits(now):
            asked.append(now)
            patience.failed(now, 0.0)
        now += 0.1
    assert len(asked) <= FAILURES_MAX + 16
    assert asked[FAILURES_MAX - 1] < 1.0
    assert max(later - sooner for sooner, later in pairwise(asked)) <= 30.2


def test_a_helper_that_answers_again_is_asked_by_everyone_and_only_one_finds_out():
    patience = Patience()
    for _ in range(FAILURES_MAX + 5):
        # those on their way when it opened change nothing
        patience.failed(0.0, 0.0)
    assert patience.is_open
    assert not patience.admits(0.9)
    assert [patience.admits(1.1) for _ in range(3)] == [True, False, False]
    patience.answered()
    assert [patience.admits(1.2) for _ in range(3)] == [True, True, True]


def test_an_entry_weighs_at_least_what_measured_entries_weigh():
    import tracemalloc

    tracemalloc.start()
    store: Store[bytes] = Store(Rules(bytes_max=10**9))
    before = tracemalloc.get_traced_memory()[0]
    for n in range(2_000):
        kept: Kept[bytes] = entry(b"%032d" % n, 0)
        store.put(kept, 0.0)
    took = (tracemalloc.get_traced_memory()[0] - before) / 2_000
    tracemalloc.stop()
    assert took < ENTRY_OVERHEAD_BYTES + 32
