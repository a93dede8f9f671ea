"""What a live database is to whoever copies it: collections, and their points page by page or by id.

One module a dialect reads its database's own API; they agree on these nouns. Pages may come in any order, and points
that move while they are read may be missed or told twice: whoever copies compares, and asks again by id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from understudy.indexes.points import Point, PointId, Vector
from understudy.indexes.writes import VectorShape

FLOATS_PER_PAGE = 65_536
"""Reading a page's numbers holds the interpreter's lock: so many take 2 ms."""
PAGE_POINTS_MAX = 256


class SourceFailed(Exception):
    """The database could not be asked, or did not say what it should; the text names no secret."""


class Busy(SourceFailed):
    """It says, in an answer of status 200, that it has too much to do, or is not ready: it may be asked again."""


class Gone(SourceFailed):
    """What was asked for is not there (any more)."""


class Unmirrorable(Exception):
    """A collection that a local copy could not stand for, and why."""


@dataclass(frozen=True, slots=True)
class Described:
    """A live collection. `name` is what callers call it, `handle` what the database's paths call it; `vectors` by
    name, "" for the one without; `count` its points; `notes` what its creation said beside."""

    name: str
    handle: str
    count: int
    vectors: Mapping[str, VectorShape] = field(default_factory=dict[str, VectorShape])
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def page_points(self) -> int:
        """How many points of it make a page."""
        floats = sum(shape.dimensions for shape in self.vectors.values()) or 384
        return max(1, min(PAGE_POINTS_MAX, FLOATS_PER_PAGE // floats))


class Page(NamedTuple):
    """Points with their vectors, and where the next page begins, '' after the last. Cursors are text, kept on disk."""

    points: tuple[Point, ...]
    cursor: str


class Source(Protocol):
    """A database that is read. Every method raises SourceFailed."""

    async def collections(self) -> list[Described]:
        """All that callers of the route could mean; Unmirrorable ones are left out and logged."""
        ...

    async def described(self, name: str) -> Described:
        """One of them, as it is now. Raises Gone, Unmirrorable."""
        ...

    async def page(self, of: Described, cursor: str, limit: int) -> Page:
        """Up to about `limit` points from a cursor on, '' for the first. Raises Gone where the cursor has expired."""
        ...

    async def fetch(self, of: Described, ids: Sequence[PointId]) -> list[Point]:
        """The points with these ids that are there."""
        ...

    async def nearest(self, of: Described, using: str, vectors: Sequence[Vector], limit: int) -> list[list[PointId]]:
        """For each of `vectors` [d], of the name `using`, the ids of the points that are found for it, best first."""
        ...

    async def close(self) -> None: ...
