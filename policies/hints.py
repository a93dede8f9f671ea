"""What replicas of a sidecar tell each other, and what one makes of it: hints, that what it sees itself outweighs.

    our breaker opens --> our page: open, for so many seconds, why --> the others' pages, read twice a second
    their page, alive --> of each opening one hint --> our own breaker: open as long, HINT_S_MAX at most
                      --> a component is ill -------> a check of ours, at once
                      --> what happened there ------> our journal, once, by their name

Replicas stand in different places: an endpoint that one can't reach may be well for another. So a hint opens a breaker
only where our own calls do not speak against it, closes none, and is passed on to nobody. A page is alive while its
beat goes on: their clocks are not ours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from understudy.policies.events import Event

HINT_S_MAX = 30.0
SILENT_S = 15.0
"""A page whose beat has stood still for so long says nothing any more: its replica is gone, or can't write."""
GONE_S = 120.0
"""For so long, and it may be removed."""
SKEW_S = 10.0
"""How far another's clock may be from ours for its page to be believed at first sight."""
REPLICAS_MAX = 256
OPEN_MAX = 256
REASON_CHARS_MAX = 120
NOTES_MAX = 32
"""The last things that happened to a replica, that stand on its page."""
NOTES_PER_MINUTE_MAX = 120
"""Of all the others' together: a journal is for what happened here first."""


class Open(NamedTuple):
    """A breaker that live calls have opened: its key, how many seconds are left, and why."""

    key: str
    left_s: float
    reason: str


class Noted(NamedTuple):
    """Something that happened to a replica, as `policies/events.Event` has it; `number` grows with every one."""

    number: int
    at: float
    family: str
    component: str
    kind: str
    detail: str


class Page(NamedTuple):
    """What one replica says of itself. `beat` counts up with every time it is written; `at` is by its own wall clock;
    `health` are verdicts, component -> word; `expires_s` is for how long it may be believed after its last beat."""

    replica: str
    beat: int
    at: float
    open: Sequence[Open] = ()
    health: Mapping[str, str] = {}
    expires_s: float = SILENT_S
    notes: Sequence[Noted] = ()


class Hint(NamedTuple):
    """Another replica's breaker has opened: ours may, too, for so many seconds."""

    key: str
    open_s: float
    reason: str


class _Known(NamedTuple):
    beat: int
    since: float
    is_alive: bool
    page: Page


class Neighbours:
    """The other replicas, as one knows them. `now` is a clock that does not jump, in seconds."""

    __slots__ = ("_heeded", "_known", "own")

    def __init__(self, own: str) -> None:
        self.own = own
        self._known: dict[str, _Known] = {}
        self._heeded: dict[tuple[str, str], float] = {}

    def heard(self, now: float, wall: float, pages: Iterable[Page]) -> list[Hint]:
        """All the pages that there are now -> the hints that are new."""
        hints: list[Hint] = []
        there: set[str] = set()
        for page in pages:
            if page.replica == self.own or (len(there) >= REPLICAS_MAX and page.replica not in there):
                continue
            there.add(page.replica)
            if self._take(now, wall, page):
                hints += self._of(now, page)
        for gone in self._known.keys() - there:
            del self._known[gone]
        for heeded in [key for key, until in self._heeded.items() if until < now]:
            del self._heeded[heeded]
        return hints

    def _take(self, now: float, wall: float, page: Page) -> bool:
        """Whether the page is alive, and has something new."""
        before = self._known.get(page.replica)
        if before is None:
            is_alive = abs(page.at - wall) <= SKEW_S
            self._known[page.replica] = _Known(page.beat, now, is_alive, page)
            return is_alive
        if page.beat != before.beat:
            self._known[page.replica] = _Known(page.beat, now, is_alive=True, page=page)
            return True
        return False

    def _of(self, now: float, page: Page) -> Iterable[Hint]:
        for one in page.open[:OPEN_MAX]:
            until = now + one.left_s
            before = self._heeded.get((page.replica, one.key))
            self._heeded[page.replica, one.key] = max(until, before or until)
            # the same opening, told again: one hint is enough
            if one.left_s > 0 and (before is None or until > before + 1.0):
                yield Hint(one.key, min(HINT_S_MAX, one.left_s), f"replica {page.replica}: {one.reason}")

    def ill(self, now: float) -> frozenset[str]:
        """The components that some replica that is there finds unhealthy."""
        return frozenset(name for page in self.alive(now) for name, word in page.health.items() if word == "unhealthy")

    def alive(self, now: float) -> list[Page]:
        """The pages of replicas that are there now."""
        return [
            known.page
            for known in self._known.values()
            if known.is_alive and now - known.since <= min(SILENT_S, known.page.expires_s)
        ]

    def gone(self, now: float) -> list[str]:
        """Replicas whose pages nobody needs any more."""
        return [name for name, known in self._known.items() if now - known.since > GONE_S]


class Notes:
    """What happened to us, for our page; and what of theirs is news. `began` is a wall clock's, in seconds: what
    happened elsewhere before that, whoever was here before has noted."""

    __slots__ = ("_began", "_minute", "_number", "_seen", "_taken", "own")

    def __init__(self, began: float) -> None:
        self.own: deque[Noted] = deque(maxlen=NOTES_MAX)
        self._began = began
        # numbers of another life of ours are lower
        self._number = int(began * 1000)
        self._seen: dict[str, int] = {}
        self._minute = self._taken = 0

    def add(self, event: Event) -> None:
        """This has happened to us."""
        self._number += 1
        noted = event.at, event.family, said_of(event.component), said_of(event.kind), said_of(event.detail)
        self.own.append(Noted(self._number, *noted))

    def news(self, now: float, pages: Iterable[Page]) -> list[tuple[str, Noted]]:
        """What stands on these pages that we have not taken yet: the replica, and what happened to it."""
        if int(now // 60) != self._minute:
            self._minute, self._taken = int(now // 60), 0
        found: list[tuple[str, Noted]] = []
        for page in pages:
            last = self._seen.get(page.replica, 0)
            if page.replica not in self._seen and len(self._seen) >= REPLICAS_MAX:
                del self._seen[next(iter(self._seen))]
            for one in page.notes[-NOTES_MAX:]:
                if one.number <= last or one.at < self._began or self._taken >= NOTES_PER_MINUTE_MAX:
                    continue
                self._taken += 1
                found.append((page.replica, one))
            self._seen[page.replica] = max([last, *(one.number for one in page.notes[-NOTES_MAX:])])
        return found


def said_of(text: str, chars_max: int = REASON_CHARS_MAX) -> str:
    """What another has written, fit to be shown: printable, one line, and short."""
    return "".join(char if char.isprintable() else " " for char in text[:chars_max])
