"""Keep writes in line behind those that wait for their vectors: which must wait, and how much may.

    a write with handles ------------------------------> waits, where there is room
    one of points that a waiting one writes, too ------> waits behind it: a later word is not to be undone by an earlier
    any other -----------------------------------------> goes on

They are written in the order in which they came, each until the database has said yes: at least once, and once more is
the same, since points are put by their ids.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import NamedTuple, Protocol, TypeVar

_Key = TypeVar("_Key", bound=Hashable)


class HoldingRules(Protocol):
    """What may wait (`understudy.proxy.settings.spaces.Holding` has it)."""

    @property
    def writes_max(self) -> int: ...
    @property
    def bytes_max(self) -> int: ...


class Touch(NamedTuple):
    """Points of one collection ('' is any) that a write is about; None for `ids` where they can't be named."""

    collection: str
    ids: frozenset[Hashable] | None = None


class Waiting(NamedTuple):
    """One write in line."""

    size_bytes: int
    touches: tuple[Touch, ...]


class Line:
    """The writes of one route that wait, by their numbers, which grow with time."""

    __slots__ = ("_ids", "_waiting", "_whole", "bytes")

    def __init__(self) -> None:
        self.bytes = 0
        self._waiting: dict[int, Waiting] = {}
        self._ids: dict[str, dict[Hashable, int]] = {}
        self._whole: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, number: int) -> bool:
        return number in self._waiting

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._waiting))

    @property
    def first(self) -> int | None:
        """Whose turn it is."""
        return min(self._waiting, default=None)

    def refusal(self, size_bytes: int, rules: HoldingRules) -> str:
        """Why one more write of so many bytes can't wait, in words for its caller, or ''."""
        if len(self._waiting) >= rules.writes_max:
            return f"{len(self._waiting)} writes wait already, and no more may"
        if self.bytes + size_bytes > rules.bytes_max:
            return f"{self.bytes} bytes of writes wait already, and no more than {rules.bytes_max} may"
        return ""

    def put(self, number: int, waiting: Waiting) -> None:
        """Have a write wait."""
        self._waiting[number] = waiting
        self.bytes += waiting.size_bytes
        self._count(waiting.touches, 1)

    def done(self, number: int) -> None:
        """It waits no longer."""
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            self.bytes -= waiting.size_bytes
            self._count(waiting.touches, -1)

    def is_touched(self, touches: Iterable[Touch]) -> bool:
        """Whether a waiting write is about any of these points."""
        return any(self._meets(touch) for touch in touches) if self._waiting else False

    def _meets(self, touch: Touch) -> bool:
        if not touch.collection or "" in self._whole or "" in self._ids or touch.collection in self._whole:
            return True
        held = self._ids.get(touch.collection)
        if not held:
            return False
        return touch.ids is None or not held.keys().isdisjoint(touch.ids)

    def _count(self, touches: tuple[Touch, ...], step: int) -> None:
        for touch in touches:
            if touch.ids is None:
                _added(self._whole, touch.collection, step)
                continue
            held = self._ids.setdefault(touch.collection, {})
            for each in touch.ids:
                _added(held, each, step)
            if not held:
                del self._ids[touch.collection]


def _added(counts: dict[_Key, int], key: _Key, step: int) -> None:
    total = counts.get(key, 0) + step
    if total > 0:
        counts[key] = total
    else:
        counts.pop(key, None)
