"""Search each mirrored database for points that its copy has, and see that it finds what the copy finds.

    copy, settled --some of its points, each searched for--> expected --the database, asked the same--> as expected?
      its epoch has changed: writes have passed --learnt anew        not, and never was --> its own way of searching
      missing ones, fetched by id --> lost, altered, or there and not found (a stale or rotten index)

What is expected is never older than the copy: ingest that passes us changes both, ingest that does not is discounted
(`policies/drift`), and nothing is judged while writes are on their way. Points that are as near as others are no test
of an order, so only what the copy tells apart is expected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from understudy.policies.drift import DEPTH, MISSING_MAX, Fate, Ranking, cause, paired, searches_faults

if TYPE_CHECKING:
    from understudy.indexes.points import Hit, Point, PointId, Vector
    from understudy.proxy.mirroring.source import Described, Source

GOLDENS_MAX = 20
EXPECTED_MIN = 3
"""Points that the copy tells apart, below which a search says too little."""
PAGE = 1024
"""Points among which the goldens are chosen; the next time, among those behind them."""
ANEW_S = 900.0
TIE = 1e-5
"""A share of a score: who are as near as that are as good as each other, to a database of float16."""
WIDER = 4
"""The copy is asked for so many times as many: below some thousand points its search is exact, above it a graph's."""


class Golden(NamedTuple):
    """A stored vector, and the ids of the points nearest to it, best first."""

    vector: Vector
    expected: tuple[str, ...]


@dataclass(slots=True)
class Learnt:
    """What is expected of one collection, and of which state of its copy."""

    epoch: object = None
    at: float = float("-inf")
    using: str = ""
    goldens: list[Golden] = field(default_factory=list[Golden])
    cursor: PointId | None = None
    was_well: bool = False


def learn(copy: Any, using: str, before: Learnt, now: float) -> Learnt:
    """What searches of this copy find, just now. It computes: call it in a thread."""
    learnt = Learnt(_epoch(copy), now, using, was_well=before.was_well)
    some, learnt.cursor = copy.scroll(before.cursor, PAGE)
    chosen = [each.id for each in some[:: max(1, len(some) // GOLDENS_MAX)][:GOLDENS_MAX]]
    for point in copy.get(chosen, with_vectors=True):
        vector = point.named.get(using) if using else point.vector
        if vector is None:
            continue
        expected = told_apart(copy.search(vector, WIDER * DEPTH, using=using))
        if len(expected) >= EXPECTED_MIN:
            learnt.goldens.append(Golden(vector, expected))
    return learnt


def told_apart(hits: Sequence[Hit]) -> tuple[str, ...]:
    """The first of these, as far as each is nearer than the next."""
    expected: list[str] = []
    for hit, following in pairwise(hits):
        gap = abs(hit.score - following.score)
        if len(expected) == DEPTH or gap <= TIE * max(abs(hit.score), abs(following.score)):
            break
        expected.append(str(hit.id))
    return tuple(expected)


class Searches:
    """One process's. `clock` tells when something was learnt."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._learnt: dict[tuple[str, str], Learnt] = {}

    def keep(self, keys: set[tuple[str, str]]) -> None:
        """Forget the collections that are not among these."""
        self._learnt = {key: one for key, one in self._learnt.items() if key in keys}

    async def wrong(self, key: tuple[str, str], copy: Any, live: Described, source: Source) -> str | None:
        """What is wrong with what the database finds, '' where nothing is; None where it can't be told. Raises
        SourceFailed."""
        learnt = await self._known(key, copy, live)
        if not learnt.goldens:
            return None
        found = await source.nearest(live, learnt.using, [each.vector for each in learnt.goldens], DEPTH)
        if _epoch(copy) != learnt.epoch or len(found) != len(learnt.goldens):
            return None
        pairs = [
            paired(Ranking([str(each) for each in ids]), Ranking(golden.expected), lambda each: _has(copy, each))
            for ids, golden in zip(found, learnt.goldens, strict=True)
        ]
        faults = searches_faults(pairs)
        if not faults:
            learnt.was_well = True
            return ""
        if not learnt.was_well:
            # what is only a database's own way of searching (quantised, or with a narrow beam) is no fault
            return None
        missing = list(dict.fromkeys(each for pair in pairs for each in pair.missing))[:MISSING_MAX]
        why = cause(await fates(copy, live, source, missing)) or faults[0]
        overlap = sum(pair.overlap for pair in pairs) / len(pairs)
        return f"{why}: {overlap:.0%} of what the copy finds in {live.name}"

    async def _known(self, key: tuple[str, str], copy: Any, live: Described) -> Learnt:
        learnt, now = self._learnt.get(key, Learnt()), self._clock()
        using = next(iter(sorted(live.vectors)), None)
        if using is None:
            return Learnt()
        if learnt.epoch != _epoch(copy) or learnt.using != using or now - learnt.at > ANEW_S:
            run = asyncio.get_running_loop().run_in_executor
            learnt = self._learnt[key] = await run(None, learn, copy, using, learnt, now)
        return learnt


async def fates(copy: Any, live: Described, source: Source, missing: Sequence[str]) -> dict[str, Fate]:
    """What the database has of points that it did not find. Raises SourceFailed."""
    from understudy.proxy.mirroring.comparing import same

    held: dict[str, Point] = {str(each.id): each for each in copy.get(_ids(missing), with_vectors=True)}
    there = {str(each.id): each for each in await source.fetch(live, [each.id for each in held.values()])}
    told: dict[str, Fate] = {}
    for called, point in held.items():
        one = there.get(called)
        told[called] = "gone" if one is None else "there" if same(one, point, live.vectors) else "altered"
    return told


def _epoch(copy: Any) -> object:
    return getattr(copy, "epoch", None) or getattr(copy, "generation", None)


def _has(copy: Any, point: str) -> bool:
    return bool(copy.get(_ids([point])))


def _ids(points: Sequence[str]) -> list[int | str]:
    return [each for point in points for each in ([point, int(point)] if point.isdecimal() else [point])]
