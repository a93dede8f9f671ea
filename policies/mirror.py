"""How far a copy is behind its database, and what is to be done about it: pure arithmetic on what it is told.

               first copy begun            every point seen
    ABSENT ----------------------> COPYING ----------------> WHOLE --a write's outcome unknown, a sample differs,
                                      ^                        |     a queue ran over--> BEHIND (since, why)
                                      |                        |                            |
                                      +---- dropped -----------+ <---- compared whole ------+

    as_of    the latest moment of which it is known that the copy had all that the database had
             moves on: whenever the database is heard and nothing is outstanding, behind or unproven
             stands still: while the database is silent, while a write waits, while the copy is behind

Times are seconds since the epoch, for they are kept over restarts; a clock that was set back makes nothing fresher.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Literal, Protocol

UNSURE_MAX = 10_000
"""Points of unknown state that are kept by id; beyond it the whole collection is compared."""
WALK_PAUSE_S, WALK_PAUSE_SHARE = 5.0, 4.0
"""Between two comparisons of the whole: at least so long, and so many times as long as the last one took."""
CHECK_AGAIN_S, CHECK_AGAIN_S_MAX = 1.0, 60.0
"""After a database that could not be asked: doubled each time."""

Work = Literal["", "copy", "walk", "check", "unsure"]


class MirrorRules(Protocol):
    """What a mirror goes by (`Mirror` of `proxy/settings` has all of it). Times in seconds."""

    @property
    def settle_s(self) -> float: ...
    @property
    def check_s(self) -> float: ...
    @property
    def reconcile_s(self) -> float: ...


class Standing:
    """One collection's copy. `missing` is by how many points its number differed from the database's at the last
    comparison; `waiting` are the writes that passed and are not applied yet."""

    __slots__ = (
        "_failures",
        "_not_before",
        "_walk_s",
        "as_of",
        "behind_since",
        "checked_at",
        "missing",
        "proven",
        "unsure",
        "waiting",
        "waiting_since",
        "walked_at",
        "whole",
        "why",
    )

    def __init__(self, *, whole: bool = False, as_of: float = 0.0, walked_at: float = 0.0) -> None:
        self.whole = whole
        self.as_of = as_of
        self.walked_at = walked_at
        self.checked_at = 0.0
        # what passed elsewhere while we were not there is found by a sample first
        self.proven = False
        self.behind_since = 0.0
        self.why = ""
        self.missing = 0
        self.waiting = 0
        self.waiting_since = 0.0
        self.unsure: OrderedDict[Hashable, float] = OrderedDict()
        self._walk_s = 0.0
        self._not_before = 0.0
        self._failures = 0

    # --- what it is told -------------------------------------------------------------------------------------------

    def passed(self, now: float) -> None:
        """The database has said yes to a write that is to be applied."""
        if self.waiting == 0:
            self.waiting_since = now
        self.waiting += 1

    def applied(self, now: float, still_since: float) -> None:
        """A write that waited is applied; the oldest that still waits does so since `still_since`."""
        self.waiting = max(0, self.waiting - 1)
        self.waiting_since = still_since if self.waiting else 0.0
        self.heard(now)

    def heard(self, now: float) -> None:
        """The database has answered somebody: what it has is known to be what we have, unless something is open."""
        if self.whole and self.proven and not (self.behind_since or self.waiting or self.unsure):
            self.as_of = max(self.as_of, now)

    def lost(self, now: float, why: str) -> None:
        """Something changed, and nobody knows what: only a comparison of the whole helps."""
        if not self.behind_since:
            self.behind_since = now
            self.why = why

    def doubt(self, ids: Iterable[Hashable], now: float) -> None:
        """What the database has under these ids is to be looked up, once it has settled."""
        for each in ids:
            self.unsure[each] = now
            self.unsure.move_to_end(each)
        if len(self.unsure) > UNSURE_MAX:
            self.unsure.clear()
            self.lost(now, "too many points of unknown state")

    def sure(self, ids: Iterable[Hashable], began: float) -> None:
        """These were looked up, in an answer that was asked for at `began`; a doubt that came since then stays."""
        for each in ids:
            if self.unsure.get(each, began) < began:
                del self.unsure[each]

    def checked(self, began: float, now: float, difference: int, *, same: bool) -> None:
        """A sample and the number of points were compared with the database."""
        self._well()
        self.checked_at = now
        self.missing = difference
        if same and not difference:
            self.proven = True
            self.heard(began)
        else:
            self.lost(began, f"{abs(difference)} points more or less" if difference else "a sampled point differs")

    def copying(self) -> None:
        """The first copy has begun, or begun again."""
        self.whole = self.proven = False

    def walked(self, began: float, now: float, *, clean: bool = True) -> None:
        """Every point was compared and put right. `clean` says that nothing was found that could not be."""
        self._well()
        self._walk_s = now - began
        self.walked_at = self.checked_at = now
        self.missing = 0
        if not clean:
            self.lost(began, "it changed faster than it could be compared")
            return
        self.whole = self.proven = True
        if self.behind_since <= began:
            self.behind_since, self.why = 0.0, ""
        self.as_of = max(self.as_of, began)

    def failed(self, now: float) -> None:
        """The database could not be asked."""
        self._failures += 1
        self._not_before = now + min(CHECK_AGAIN_S * 2 ** min(self._failures - 1, 16), CHECK_AGAIN_S_MAX)

    def _well(self) -> None:
        self._failures = 0
        self._not_before = 0.0

    # --- what it says ----------------------------------------------------------------------------------------------

    def staleness_s(self, now: float) -> float:
        """Seconds since the copy was last known to have all that the database had."""
        return max(0.0, now - self.as_of)

    @property
    def points_behind(self) -> int:
        """At least so many points differ, as far as is known: a write that waits is at least one."""
        return self.waiting + len(self.unsure) + abs(self.missing) if self.whole else 0

    def has_settled(self, now: float, rules: MirrorRules) -> bool:
        """Whether there are points of unknown state that the database can be asked for by now."""
        return (
            now >= self._not_before and bool(self.unsure) and next(iter(self.unsure.values())) + rules.settle_s <= now
        )

    def due(self, now: float, rules: MirrorRules, *, copies: bool) -> Work:
        """What is to be done now, the most urgent first. `copies` says that the first copy is made unasked."""
        if now < self._not_before:
            return ""
        if not self.whole:
            return "copy" if copies else ""
        if self.behind_since and now >= self.walked_at + max(WALK_PAUSE_S, WALK_PAUSE_SHARE * self._walk_s):
            return "walk"
        if rules.reconcile_s and now >= self.walked_at + rules.reconcile_s:
            return "walk"
        if self.has_settled(now, rules):
            return "unsure"
        # one that is behind is compared as a whole in a while: a sample would say nothing new
        if not self.behind_since and (not self.proven or now >= self.checked_at + rules.check_s):
            return "check"
        return ""
