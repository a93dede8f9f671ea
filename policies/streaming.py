"""What a stream is held to: until when its parts must come, and how long it is held back so that another can answer.

    sent --headers_s--> head                 first content --gap_s--> content --gap_s--> ... --> end
      |------------------first_content_s-----------|
      |------------------------------------------ total_s ----------------------------------------|

    HELD: start-up events, perhaps more ---content, and enough of it---> COMMITTED
      |                                                                     |
      +-- too late, too slow, broken, an error inside: Failed, and          +-- too late or broken: cut, which counts
          somebody else is asked; the caller knows of nothing                   against the endpoint all the same

A role, a ping and a comment are no content. Whoever watches a committed stream looks at it when its timer rings, ten
times in a `gap_s`, and not at every piece: a piece costs nothing, and a silence is noticed to the millisecond (where
pings go on without content, up to a tenth of `gap_s` late).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from understudy.policies.service import Failed

LOOKS = 10
"""How often in a `gap_s` a stream is looked at."""
EVENTS_MAX = 256
BYTES_MAX = 256 * 1024
PATTERNS_MAX = 64
_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_EVENT = re.compile(rb"\r?\n\r?\n|\r\r")


class Reading(Protocol):
    """What is asked of a dialect while a stream is held."""

    def primed(self, held: bytes) -> str:
        """`go` when there is content among these bytes, else `wait`. Raises Failed for an error inside a 200."""
        ...


@dataclass(frozen=True, slots=True)
class Clocks:
    """The limits of one stream, in seconds since it was asked for, but `gap_s`.

    `holds` is False where nobody else could answer: then nothing is held back. A stream that gives fewer than
    `per_s_min` contents a second in its first `within_s` is not handed over. With `buffer_s` it is held whole, for so
    long after its first content and up to `buffer_bytes`.
    """

    headers_s: float
    first_content_s: float
    gap_s: float
    total_s: float
    holds: bool = True
    events_max: int = EVENTS_MAX
    bytes_max: int = BYTES_MAX
    per_s_min: float = 0.0
    within_s: float = 0.0
    buffer_s: float = 0.0
    buffer_bytes: int = 0

    def unguarded(self) -> Clocks:
        """The same for one whom nobody could replace if it was slow."""
        return replace(self, per_s_min=0.0) if self.per_s_min else self


class Held:
    """A stream before it is handed over. Told the time (seconds, the clock of `began` and `until`), it says `due`: when
    to ask it with `rung`."""

    __slots__ = (
        "_bytes",
        "_clocks",
        "_contents",
        "_events",
        "_is_lines",
        "_reading",
        "_unread",
        "_until",
        "content_at",
        "due",
    )

    def __init__(self, clocks: Clocks, reading: Reading, began: float, until: float) -> None:
        self._clocks = clocks
        self._reading = reading
        self._until = until
        self._unread = b""
        self._is_lines: bool | None = None
        self._bytes = self._events = self._contents = 0
        self.content_at: float | None = None
        self.due = min(began + clocks.first_content_s, until)

    def take(self, piece: bytes, now: float) -> bool:
        """More of it has come; whether it is to be handed over. Raises Failed for an error inside."""
        clocks = self._clocks
        self._bytes += len(piece)
        if self.content_at is None:
            self._look(piece, now)
            if self.content_at is None:
                # more than this is content enough
                return self._events > clocks.events_max or self._bytes > clocks.bytes_max
        elif clocks.per_s_min:
            self._count(self._unread + piece)
        if clocks.buffer_s:
            return self._bytes > clocks.buffer_bytes
        return self._contents >= clocks.per_s_min * clocks.within_s

    def rung(self, now: float, heard_at: float) -> bool:
        """`due` has come; whether it is to be handed over. Raises Failed where another had better be asked."""
        clocks, content_at = self._clocks, self.content_at
        if content_at is None:
            if self._until <= now:
                raise Failed("deadline", "no answer in time (deadline)", soft=True)
            raise Failed("first_content_timeout", "the stream began, and no content came in time")
        if self._until <= now:
            # what there is is better than what there will be no time for
            return True
        if clocks.buffer_s:
            return self._buffered(content_at, now, heard_at)
        if self._contents < clocks.per_s_min * clocks.within_s:
            rate = self._contents / clocks.within_s
            raise Failed("too_slow", f"{rate:.1f} contents a second at its beginning, {clocks.per_s_min:g} wanted")
        return True

    def _buffered(self, content_at: float, now: float, heard_at: float) -> bool:
        clocks = self._clocks
        over = min(content_at + clocks.buffer_s, self._until)
        if over <= now:
            return True
        if now - heard_at >= clocks.gap_s:
            raise Failed("stalled", "the upstream fell silent")
        self.due = min(over, heard_at + clocks.gap_s)
        return False

    def _look(self, piece: bytes, now: float) -> None:
        unread = self._unread + piece
        if self._is_lines is None and (start := unread[:64].lstrip()[:1]):
            self._is_lines = start == b"{"
        if self._reading.primed(unread) != "go":
            at = whole_to(unread, is_lines=self._is_lines is True)
            self._events += unread.count(b"\n" if self._is_lines else b"data:", 0, at)
            self._unread = unread[at:]
            return
        clocks = self._clocks
        self.content_at = now
        if clocks.per_s_min:
            self._count(unread)
        wait_s = min(clocks.buffer_s, clocks.gap_s) if clocks.buffer_s else clocks.within_s
        self.due = min(now + wait_s, self._until)

    def _count(self, unread: bytes) -> None:
        """How many events of content there are; only where somebody is held to a rate."""
        at = whole_to(unread, is_lines=self._is_lines is True)
        whole, self._unread = unread[:at], unread[at:]
        end = b"\n" if self._is_lines else b"\n\n"
        events = whole.split(b"\n") if self._is_lines else _EVENT.split(whole)
        self._contents += sum(self._reading.primed(event + end) == "go" for event in events if event.strip())


class Watch:
    """A stream after it was handed over; looked at when `due` has come."""

    __slots__ = ("_clocks", "_content_at", "_over_at", "_start_by")

    def __init__(self, clocks: Clocks, began: float, content_at: float | None) -> None:
        self._clocks = clocks
        self._content_at = content_at
        self._start_by = began + clocks.first_content_s
        self._over_at = began + clocks.total_s

    def next_look(self, now: float) -> float:
        """When to look next."""
        return min(self._dry_at, self._over_at, now + self._clocks.gap_s / LOOKS)

    def look(self, now: float, content_at: float | None) -> float:
        """When to look again; `content_at` is by when there was new content, None where there was none since the last
        look. Raises Failed (first_content_timeout, stalled, total_timeout)."""
        if content_at is not None:
            self._content_at = content_at
        if self._over_at - now <= 0.001:
            raise Failed("total_timeout", f"the stream took longer than {self._clocks.total_s:g} s")
        if self._dry_at - now <= 0.001:
            if self._content_at is None:
                raise Failed("first_content_timeout", "the stream began, and no content came in time")
            raise Failed("stalled", "the upstream fell silent")
        return self.next_look(now)

    @property
    def _dry_at(self) -> float:
        return self._start_by if self._content_at is None else self._content_at + self._clocks.gap_s


def whole_to(data: bytes, *, is_lines: bool) -> int:
    """Where the last whole event, or line, of `data` ends; 0 where none does."""
    if is_lines:
        return data.rfind(b"\n") + 1
    return max(at + len(end) if (at := data.rfind(end)) >= 0 else 0 for end in _ENDS)


def content_among(reading: Reading, before: bytes, fresh: bytes) -> bool:
    """Whether there is content in `fresh`, which came behind `before`; an event that has not come whole is some, unless
    it is a comment."""
    is_lines = (before or fresh)[:64].lstrip()[:1] == b"{"
    unread = before[whole_to(before, is_lines=is_lines) :] + fresh
    begun = unread[whole_to(unread, is_lines=is_lines) :].lstrip()
    if begun and begun[:1] != b":":
        return True
    try:
        return reading.primed(unread) == "go"
    except Failed:
        # it says something, even if it is that it cannot go on
        return True


# --- whose limits ----------------------------------------------------------------------------------------------------


def named_like(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a model's name is one of `patterns`, in any case of letters; `*` stands for anything."""
    parts = ["".join(".*" if letter == "*" else re.escape(letter) for letter in each) for each in patterns]
    matches = re.compile("|".join(parts), re.IGNORECASE | re.DOTALL).fullmatch
    return lambda name: matches(name) is not None
