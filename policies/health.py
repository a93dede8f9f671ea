"""Make one word of all that is known of a component's health: quick for the worse, slow for the better, no flutter.

    live calls, transport (L0), protocol (L1) --2 of 3 wrong, 3 well in a row--> reach ----+
    goldens, watches, fingerprints (L2), our own parts --each with a word of its own-------+--the worst--> word
    breakers that live traffic has opened -------------------------------------------------+

    UNKNOWN --first evidence--> HEALTHY <--10 s and three well in a row--+
                                   |  one wrong                          |
                                   +-----------> DEGRADED --2 of 3 wrong--> UNHEALTHY

More than `FLIPS_MAX` changes to or from unhealthy within `FLIPS_S` are flapping: it is held degraded, whatever is
heard, until it has been quiet for as long. A live call proves more than a check of ours, so both count in one row; but
a check that passes says nothing of a breaker, which only calls of the same kind may close, nor of calls that have just
failed. One call alone is no look: of a service that loses two in a thousand, two of three would fail every day or so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from understudy.policies.verdict import DWELL_S, FLIPS_MAX, FLIPS_S, LAST, WRONG_MIN, Word

Level = Literal["", "live", "transport", "protocol", "semantic"]
"""What a word rests on: calls of callers, L0, L1, L2."""
BREAKER = "breaker"
"""The source of what is told of a component's breakers."""
SOURCES_MAX = 64
BADNESS: dict[Word, int] = {"unknown": 0, "healthy": 1, "degraded": 2, "unhealthy": 3}
UNASKED_S = 30.0
CALLS_MIN, GATHER_S = 3, 1.0
"""What callers show makes a look once there are so many calls, over so long; two are enough where both have failed. It
is wrong where most of them have."""
STRAINED_SHARE, STRAINED_FAILURES_MIN = 0.1, 5
"""Of the calls in a breaker's window: less than what opens it, and more than an accident."""


class Diagnosis(NamedTuple):
    """What is thought of a component. `since` is when it became so, on the clock that the heart is told.

    `passed` is what the last check said, and all who look at meanings, whatever the word: who has mended something
    waits for three of those.
    `passes_over` says that callers should be sent elsewhere at once.
    """

    component: str
    word: Word
    reason: str = ""
    level: Level = ""
    since: float = 0.0
    flapping: bool = False
    passes_over: bool = False
    passed: bool = True


class Row:
    """The last few checks of one kind, and what they come to by themselves."""

    __slots__ = ("_last", "level", "reason", "word")

    def __init__(self) -> None:
        self._last: deque[bool] = deque(maxlen=LAST)
        self.word: Word = "unknown"
        self.reason = ""
        self.level: Level = ""

    def add(self, level: Level, reason: str) -> None:
        """One more, which found `reason` wrong, or nothing where that is ''."""
        self._last.append(not reason)
        if reason:
            self.reason, self.level = reason, level
        wrong = self._last.count(False)
        if wrong >= WRONG_MIN:
            self.word = "unhealthy"
        elif self.word in ("degraded", "unhealthy"):
            if len(self._last) == LAST and not wrong:
                self.word, self.reason, self.level = "healthy", "", ""
        else:
            self.word = "degraded" if wrong else "healthy"

    @property
    def passes(self) -> bool:
        """Whether the last of them found nothing, whatever those before it make the word."""
        return bool(self._last) and self._last[-1]


class Told(NamedTuple):
    """A word that somebody else has made; `passes` says that the last look found nothing, though the word waits."""

    word: Word
    reason: str
    level: Level
    passes: bool = False


class Said(NamedTuple):
    """What somebody who looks at components in a way of its own says of one: see `Told`."""

    component: str
    source: str
    word: Word
    reason: str = ""
    passes: bool = False


class Health:
    """The pure heart of one component."""

    __slots__ = (
        "_began_at",
        "_calls",
        "_check_failed",
        "_failed_at",
        "_failures",
        "_flips",
        "_is_down",
        "_looked_at",
        "_passed",
        "changes",
        "component",
        "flapping",
        "level",
        "passes_over",
        "reach",
        "reason",
        "since",
        "told",
        "word",
    )

    def __init__(self, component: str, now: float) -> None:
        self.component = component
        self.word: Word = "unknown"
        self.reason = ""
        self.level: Level = ""
        self.since = now
        self.changes = 0
        self.flapping = False
        self.passes_over = False
        self.reach = Row()
        self.told: dict[str, Told] = {}
        self._flips: deque[float] = deque(maxlen=FLIPS_MAX + 1)
        self._is_down = False
        self._check_failed = False
        self._passed = True
        self._calls = self._failures = 0
        self._began_at = self._looked_at = now
        self._failed_at = float("-inf")

    @property
    def diagnosis(self) -> Diagnosis:
        return Diagnosis(
            self.component,
            self.word,
            self.reason,
            self.level,
            self.since,
            self.flapping,
            self.passes_over,
            self._passed
            and all(one.word == "healthy" or one.passes or one.level == "live" for one in self.told.values()),
        )

    # --- evidence --------------------------------------------------------------------------------------------------

    def checked(self, now: float, level: Level, reason: str = "") -> Word:
        """A check of ours is done, and found `reason` wrong, or nothing."""
        self._passed = not reason
        if reason or now - self._failed_at >= DWELL_S:
            self.reach.add(level, reason)
        self._check_failed = bool(reason) or (self._check_failed and self.reach.word == "unhealthy")
        return self.settle(now)

    def lived(self, now: float, calls: int, failures: int) -> Word:
        """So many calls of callers came to an end since this was last said, and so many of them failed."""
        before, self._looked_at = self._looked_at, now
        if calls > 0:
            self._gather(now, before, calls, failures)
        # nobody need come again: what is gathered is a look by then, and must not wait for those who come after it
        is_look = self._calls >= CALLS_MIN or 1 < self._calls == self._failures
        if is_look and now - self._began_at >= GATHER_S:
            wrong = 2 * self._failures > self._calls
            self.reach.add("live", f"{self._failures} of {self._calls} calls failed" if wrong else "")
            self._calls = self._failures = 0
        elif calls <= 0:
            return self.word
        return self.settle(now)

    def _gather(self, now: float, before: float, calls: int, failures: int) -> None:
        if 2 * failures < calls:
            # whom callers are answered by, a check of ours need not believe to be away
            self._check_failed = False
            self._passed = True
        if not self._calls or (failures and not self._failures):
            # a failure begins a look of its own: what was well before would only hide how many follow
            self._calls = self._failures = 0
            self._began_at = before
        self._calls += calls
        self._failures += failures
        if failures and 2 * self._failures >= self._calls:
            self._failed_at = now

    def hears(
        self,
        now: float,
        source: str,
        word: Word,
        reason: str = "",
        level: Level = "semantic",
        passes: bool = False,
    ) -> Word:
        """Somebody who has looked at it in a way of its own says this; `unknown` takes back what was said."""
        if word == "unknown":
            self.told.pop(source, None)
        elif source in self.told or len(self.told) < SOURCES_MAX:
            self.told[source] = Told(word, reason, level, passes)
        return self.settle(now)

    # --- what it comes to ------------------------------------------------------------------------------------------

    def settle(self, now: float) -> Word:
        """Think again, now that it is so late."""
        worst = max(self._all(), key=lambda one: BADNESS[one.word])
        self._count(now, is_down=worst.word == "unhealthy")
        word: Word = "degraded" if self.flapping else worst.word
        if word != self.word and (self._is_worse(word) or self.word == "unknown" or now - self.since >= DWELL_S):
            self.word, self.since = word, now
            self.changes += 1
        if worst.word != "healthy" and self.word != "healthy":
            self.reason, self.level = worst.reason, worst.level
        elif self.word == "healthy":
            self.reason, self.level = "", ""
        self.passes_over = self._sends_elsewhere(worst.word)
        return self.word

    def _all(self) -> Iterable[Told]:
        yield Told(self.reach.word, self.reach.reason, self.reach.level)
        yield from self.told.values()

    def _is_worse(self, word: Word) -> bool:
        return BADNESS[word] > BADNESS[self.word]

    def _sends_elsewhere(self, worst: Word) -> bool:
        """Where only live calls say so, they are what must say otherwise, and the breakers see to that."""
        if self.word != "unhealthy":
            return False
        if worst != "unhealthy":
            # it has not dwelt yet
            return self.passes_over
        by_goldens = any(one.word == "unhealthy" for source, one in self.told.items() if source != BREAKER)
        return by_goldens or (self.reach.word == "unhealthy" and self._check_failed)

    def _count(self, now: float, *, is_down: bool) -> None:
        """Count what would be a change to or from unhealthy, and see whether there are too many."""
        if is_down != self._is_down and (is_down or self.flapping or now - self.since >= DWELL_S):
            self._is_down = is_down
            self._flips.append(now)
        if self.flapping:
            self.flapping = now - self._flips[-1] < FLIPS_S
            if not self.flapping:
                self._flips.clear()
        else:
            self.flapping = len(self._flips) > FLIPS_MAX and now - self._flips[0] <= FLIPS_S


class Guarding(NamedTuple):
    """One of a component's breakers: whether it lets calls pass, since how long it might be asked and is not, how many
    calls it has let pass lately, and why it does not."""

    is_shut: bool
    unasked_s: float = 0.0
    calls: int = 0
    why: str = ""


def of_breakers(breakers: Sequence[Guarding]) -> Told:
    """What the breakers of a component's endpoints say of it.

    One that might be asked and is not, for `UNASKED_S`, is not proven well, and no more than that. There is one for
    each route that uses the component: while another lets calls pass, it is not the whole that is away.
    """
    if not breakers:
        return Told("unknown", "", "")
    shut = [one for one in breakers if one.is_shut]
    if not shut:
        return Told("healthy", "", "")
    some_pass = any(one.calls for one in breakers if not one.is_shut)
    down = [one for one in shut if one.unasked_s < UNASKED_S]
    return Told("unhealthy" if down and not some_pass else "degraded", (down or shut)[0].why, "live")


def strain(calls: int, failures: int) -> str:
    """Why a component is degraded though nothing has opened: a tenth of its calls fail; or ''."""
    if failures >= STRAINED_FAILURES_MIN and failures >= STRAINED_SHARE * calls:
        return f"{failures} of {calls} calls failed lately"
    return ""
