"""What was answered before: a store bounded in bytes, how long an answer is fresh, and what a write makes of it.

    put --> FRESH --ttl_s, less jitter--> STALE --revalidate_s--> LAST RESORT --stale_s_max--> gone
              |                             |                          |
         served as it is          served, and asked anew      served only where nobody
                                  behind the caller's back     better answers

    never seen twice: PROBATION  --asked for again-->  PROTECTED (at most four fifths of the bytes)
    evicted: the longest unused of PROBATION first, so that a run of one-off calls can't wash out what is used

An entry depends on the collections it was read from. Each of them has an epoch that every write moves on, at its
beginning and at its end, and an entry whose collections have moved on is dropped where it is found. So a write costs
the same whatever is kept, and nothing has to be searched for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Literal, Protocol, TypeVar

PROTECTED_SHARE = 0.8
"""Of the bytes, at most this share is for what was asked for twice; the rest is for finding out who will be."""
ENTRY_OVERHEAD_BYTES = 512
"""What an entry takes beside its value and its key; measured with tracemalloc, rounded up."""
EVERYONE = "*"
ANYTHING = "**"
HOMES_MAX = 4096
"""Collections told apart; all beyond them share one epoch, which forgets too much and never too little."""
NEGATIVE = frozenset((404, 410))
"""Statuses that say that there is nothing: remembered for `negative_s`."""
PAUSE_S, PAUSE_S_MAX, FAILURES_MAX = 1.0, 30.0, 3

State = Literal["fresh", "stale", "last-resort"]
V = TypeVar("V")


class CacheRules(Protocol):
    """What a cache goes by (`Cache` of `proxy/settings` has all of it). Times in seconds."""

    @property
    def ttl_s(self) -> float: ...
    @property
    def jitter_share(self) -> float: ...
    @property
    def negative_s(self) -> float: ...
    @property
    def revalidate_s(self) -> float: ...
    @property
    def stale_s_max(self) -> float: ...
    @property
    def bytes_max(self) -> int: ...
    @property
    def entry_bytes_max(self) -> int: ...


def lifetime_s(rules: CacheRules, status: int, told_s: float | None = None) -> float:
    """How long an answer with this status is fresh; 0 for one that is not kept. `told_s` is the upstream's own word,
    which only ever shortens."""
    if status == 200:
        # no other success is an answer to a read: 202 says that it will come, 206 that there is more
        ttl_s = rules.ttl_s
    elif status in NEGATIVE:
        ttl_s = rules.negative_s
    else:
        return 0.0
    return ttl_s if told_s is None else min(ttl_s, told_s)


# --- what a write touches ------------------------------------------------------------------------------------------


class Home:
    """A collection of a knowledge base as caches see it: an epoch that every write moves on.

    `settles_at` is until when a read may still show what was there before the last write.
    """

    __slots__ = ("epoch", "name", "settles_at", "writes")

    def __init__(self, name: str) -> None:
        self.name = name
        self.epoch = 0
        self.writes = 0
        self.settles_at = float("-inf")

    def begin_write(self) -> None:
        """A write is on its way: what was read before it is no longer told."""
        self.epoch += 1
        self.writes += 1

    def end_write(self, now: float, settle_s: float) -> None:
        """The write was carried out, or perhaps: what was read while it was under way is no longer told either."""
        self.epoch += 1
        self.writes -= 1
        self.settles_at = max(self.settles_at, now + settle_s)

    def written(self, now: float, settle_s: float) -> None:
        """Somebody else has heard of a write."""
        self.epoch += 1
        self.settles_at = max(self.settles_at, now + settle_s)


Homes = tuple[Home, ...]
NO_HOMES: Homes = ()


def stamp_of(homes: Homes) -> int:
    """One number for the epochs of `homes`; as epochs only grow, it is the same only while all of them are."""
    return sum([home.epoch for home in homes]) if homes else 0


def is_settled(homes: Homes, now: float) -> bool:
    """Whether what is read from now on may be kept: nobody is writing, and the last write shows."""
    return not any(home.writes or now < home.settles_at for home in homes)


class Town:
    """All collections, by name; bounded. `everyone` stands for a write that may concern any of them."""

    __slots__ = ("_homes", "_others", "anything", "everyone")

    def __init__(self) -> None:
        self.everyone = Home(EVERYONE)
        self.anything = Home(ANYTHING)
        """Moves on with every write, whichever collection it names: for those that may go by other names."""
        self._homes: dict[str, Home] = {EVERYONE: self.everyone, ANYTHING: self.anything}
        self._others = Home("")

    def home(self, name: str) -> Home:
        """The collection `name`, from now on if not before."""
        home = self._homes.get(name)
        if home is None:
            if len(self._homes) >= HOMES_MAX:
                return self._others
            home = self._homes[name] = Home(name)
        return home

    def __iter__(self) -> Iterator[Home]:
        """Everyone, the one who stands for all that are too many included."""
        yield from self._homes.values()
        yield self._others


# --- what is kept --------------------------------------------------------------------------------------------------


class Kept(Generic[V]):
    """One entry. `at` is when it was answered; the others are until when it is what. All on the store's clock."""

    __slots__ = ("at", "dead_at", "fresh_until", "homes", "key", "revalidate_until", "size_bytes", "stamp", "value")

    def __init__(self, key: bytes, value: V, size_bytes: int, at: float, homes: Homes, stamp: int) -> None:
        self.key = key
        self.value = value
        self.size_bytes = size_bytes
        self.at = at
        self.homes = homes
        self.stamp = stamp
        self.fresh_until = self.revalidate_until = self.dead_at = at

    def state(self, now: float) -> State:
        """What it is good for. One that is good for nothing is never found."""
        if now < self.fresh_until:
            return "fresh"
        return "stale" if now < self.revalidate_until else "last-resort"

    def live_for(self, rules: CacheRules, fresh_s: float, *, negative: bool = False) -> None:
        """Set until when it is what. Nothing is remembered of what was not there once that is no longer fresh."""
        self.fresh_until = self.at + fresh_s
        self.revalidate_until = self.fresh_until + (0.0 if negative else rules.revalidate_s)
        self.dead_at = max(self.revalidate_until, self.fresh_until + (0.0 if negative else rules.stale_s_max))

    @property
    def moved(self) -> bool:
        """Whether a collection it was read from has been written to since."""
        return bool(self.homes) and stamp_of(self.homes) != self.stamp


class Store(Generic[V]):
    """The pure heart: entries by key within so many bytes, longest unused out first (segmented LRU).

    Source: Karedla, Love and Wherry, "Caching strategies to improve disk system performance" (1994).
    """

    __slots__ = ("_probation", "_protected", "bytes", "evicted", "moved", "protected_bytes", "rules", "stored")

    def __init__(self, rules: CacheRules) -> None:
        self.rules = rules
        self._probation: dict[bytes, Kept[V]] = {}
        self._protected: dict[bytes, Kept[V]] = {}
        self.bytes = 0
        self.protected_bytes = 0
        self.stored = 0
        self.evicted = 0
        self.moved = 0

    def __len__(self) -> int:
        return len(self._probation) + len(self._protected)

    def __iter__(self) -> Iterator[Kept[V]]:
        """Every entry, the most likely to be asked for again last."""
        yield from self._probation.values()
        yield from self._protected.values()

    def find(self, key: bytes, now: float) -> Kept[V] | None:
        """The entry of `key`, unless its time is over or its collections have moved on; it counts as used."""
        protected = self._protected
        kept = protected.pop(key, None)
        if kept is not None:
            protected[key] = kept
        else:
            kept = self._probation.get(key)
            if kept is None:
                return None
            self._promote(kept)
        if now >= kept.dead_at:
            self.drop(key)
            return None
        if kept.homes and stamp_of(kept.homes) != kept.stamp:
            self.moved += 1
            self.drop(key)
            return None
        return kept

    def peek(self, key: bytes) -> Kept[V] | None:
        """The entry of `key`, whatever its age, without its being used."""
        return self._protected.get(key) or self._probation.get(key)

    def put(self, kept: Kept[V], now: float) -> bool:
        """Keep an entry, in place of another of its key. False where it is too large, over, or no longer true."""
        if kept.size_bytes > min(self.rules.entry_bytes_max, self.rules.bytes_max) or kept.moved or now >= kept.dead_at:
            return False
        is_known = kept.key in self._protected
        self.drop(kept.key)
        (self._protected if is_known else self._probation)[kept.key] = kept
        self.bytes += kept.size_bytes
        if is_known:
            self.protected_bytes += kept.size_bytes
        self.stored += 1
        self.fit()
        return True

    def drop(self, key: bytes) -> None:
        """Forget an entry, if it is there."""
        kept = self._probation.pop(key, None)
        if kept is None:
            kept = self._protected.pop(key, None)
            if kept is None:
                return
            self.protected_bytes -= kept.size_bytes
        self.bytes -= kept.size_bytes

    def clear(self) -> None:
        """Forget everything."""
        self._probation.clear()
        self._protected.clear()
        self.bytes = self.protected_bytes = 0

    def fit(self) -> None:
        """Evict until all is within the bounds, which a reload may have lowered."""
        while self.bytes > self.rules.bytes_max:
            oldest = next(iter(self._probation or self._protected))
            self.drop(oldest)
            self.evicted += 1

    def _promote(self, kept: Kept[V]) -> None:
        """Asked for again: protected from now on, for which those protected longest unused go back on probation."""
        del self._probation[kept.key]
        self._protected[kept.key] = kept
        self.protected_bytes += kept.size_bytes
        while self.protected_bytes > PROTECTED_SHARE * self.rules.bytes_max and len(self._protected) > 1:
            demoted = self._protected.pop(next(iter(self._protected)))
            self.protected_bytes -= demoted.size_bytes
            self._probation[demoted.key] = demoted


def kept_for(
    key: bytes,
    value: V,
    value_bytes: int,
    *,
    at: float,
    homes: Homes,
    stamp: int,
    rules: CacheRules,
    fresh_s: float,
    negative: bool = False,
) -> Kept[V]:
    """An entry that was answered at `at` and is fresh for `fresh_s`; `negative` when it says that there is nothing."""
    kept = Kept(key, value, value_bytes + len(key) + ENTRY_OVERHEAD_BYTES, at, homes, stamp)
    kept.live_for(rules, fresh_s, negative=negative)
    return kept


def jittered(fresh_s: float, share: float, luck: float) -> float:
    """`fresh_s` less up to `share` of it, so that what was kept in one burst is not asked anew in one burst. `luck` is
    uniform in [0, 1)."""
    return fresh_s * (1.0 - share * luck)


# --- a second level that may be down -------------------------------------------------------------------------------


class Patience:
    """Whether a helper that is not needed should be asked: after a few failures in a row not at all for a while.

    The pauses double from PAUSE_S to PAUSE_S_MAX, and after each one single question finds out. So one that is dead or
    swallows everything costs a few waits and then nothing.
    """

    __slots__ = ("_failures", "_pause_s", "_probing", "_until")

    def __init__(self) -> None:
        self._failures = 0
        self._pause_s = PAUSE_S
        self._probing = False
        self._until = float("-inf")

    @property
    def is_open(self) -> bool:
        """Whether it is being left alone."""
        return self._failures >= FAILURES_MAX

    def admits(self, now: float) -> bool:
        """Whether to ask now; who was let through says `answered` or `failed` afterwards."""
        if self._failures < FAILURES_MAX:
            return True
        if now < self._until or self._probing:
            return False
        self._probing = True
        return True

    def answered(self) -> None:
        """It answered in time."""
        self._failures = 0
        self._pause_s = PAUSE_S
        self._probing = False

    def failed(self, now: float, luck: float) -> None:
        """It did not, or not in time; `luck` in [0, 1) spreads the pauses of many over a quarter."""
        self._failures += 1
        if self._failures < FAILURES_MAX:
            return
        if self._failures > FAILURES_MAX and self._probing:
            self._pause_s = min(PAUSE_S_MAX, self._pause_s * 2)
        if self._probing or self._failures == FAILURES_MAX:
            self._until = now + self._pause_s * (1.0 + 0.25 * luck)
        self._probing = False
