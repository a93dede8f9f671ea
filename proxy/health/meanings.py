"""Whether what components answer is right (L2), and how our own parts are: looked at now and then, told to health.

    fingerprints   fixed texts, embedded by each endpoint     --+
    watches        searches and texts, against copies         --+--> words, each from a source of its own
    counts         points of a database, against its mirror   --+
    searches       what a database finds, against its mirror  --+
    own parts      the model embeds, collections open, the cache's second level answers

One at a time, so that it costs next to nothing; what was found wrong is looked at again within seconds, since two of
three decide. The cache's second level is a service like others, and waits for none of these: it is looked at every two
seconds, and asked unless callers show that it answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from understudy.policies.drift import count_fault
from understudy.policies.events import component_of
from understudy.policies.health import Row, Said
from understudy.policies.service import Refused
from understudy.policies.verdict import Word
from understudy.proxy.health.board import Healths
from understudy.proxy.health.components import COLLECTIONS, by_tier
from understudy.proxy.parts import RouteParts
from understudy.proxy.spaces.fingerprints import Fingerprints, Measuring
from understudy.proxy.tiers.knowing import Knowing

if TYPE_CHECKING:
    from understudy.proxy.caching.caches import Caches
    from understudy.proxy.caching.second import Second
    from understudy.proxy.health.searches import Searches
    from understudy.proxy.mirroring.mirror import Held
    from understudy.proxy.mirroring.mirrors import Kept, Mirrors
    from understudy.proxy.mirroring.source import Described

EVERY_S = 20.0
AGAIN_S = 3.0
"""After one that found something wrong."""
ASK_S = 5.0
CACHE_EVERY_S, CACHE_AGAIN_S = 2.0, 0.5
"""A service that does not answer should be known within five seconds, and it takes two of three."""
ROWS_MAX = 1024
TEXT = "Invoice 4711 of 3 March, due within 30 days."
WORD_OF: Mapping[str, Word] = {"trusted": "healthy", "suspected": "degraded", "quarantined": "unhealthy"}
SAME_MIN = 0.999
"""Cosine of the local model's vector of a text to the one that it gave first."""

log = logging.getLogger("understudy.health")


class Meanings:
    """One process's. What it looks at is handed in as it is now: policies change."""

    def __init__(
        self,
        healths: Healths,
        routes: Callable[[], Iterable[RouteParts]],
        *,
        fingerprints: Fingerprints,
        knowing: Knowing,
        caches: Callable[[], Caches | None],
        mirrors: Callable[[], Mirrors | None],
        model: Callable[[], str],
        search_every_s: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._healths = healths
        self._routes = routes
        self._fingerprints = fingerprints
        self._knowing = knowing
        self._caches = caches
        self._mirrors = mirrors
        self._model = model
        self._clock = clock
        self._rows: dict[tuple[str, str], Row] = {}
        self._due: dict[str, float] = {}
        self._first: list[float] = []
        self._searches: Searches | None = None
        self._search_every_s = search_every_s
        self._checks: tuple[tuple[str, Callable[[], Awaitable[bool]]], ...] = (
            ("counts", self._count),
            ("searches", self._search),
            ("model", self._embed),
        )
        self._cache_due_at = float("-inf")
        self._counted: tuple[Second | None, int, int] = (None, 0, 0)
        healths.sources.append(self.said)

    # --- what is said ----------------------------------------------------------------------------------------------

    def said(self, now: float) -> Iterator[Said]:
        """What everybody who looks at meanings thinks, now."""
        del now
        tiers = by_tier(self._healths.components)
        for parts in self._routes():
            if parts.watch is not None:
                verdict = parts.watch.verdict
                for component in tiers.get((parts.name, parts.watch.tier), {}).values():
                    why = ", ".join(verdict.reasons)
                    yield Said(component, f"watch {parts.name}", verdict.word, why, verdict.passes)
        for one in self._fingerprints:
            component = tiers.get(one.key[:2], {}).get(one.key[2])
            if component is not None:
                word = WORD_OF.get(one.heart.state, "unknown")
                yield Said(component, f"fingerprint {'/'.join(one.key)}", word, one.heart.fault)
        for (component, source), row in list(self._rows.items()):
            yield Said(component, source, row.word, row.reason, row.passes)
        yield from self._own_parts()

    def _own_parts(self) -> Iterator[Said]:
        model, shelf = self._knowing.missing
        name = component_of("local_model", self._model())
        yield Said(name, "load", *_of_missing(model))
        if shelf is not None:
            yield Said(COLLECTIONS, "open", *_of_missing(shelf))
        elif self._knowing.faults:
            what = "; ".join(f"{name}: {why}" for name, why in sorted(self._knowing.faults.items()))
            yield Said(COLLECTIONS, "open", "unhealthy", what[:300])
        else:
            yield Said(COLLECTIONS, "open", "healthy")

    # --- looking ---------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Whatever is due."""
        now = self._clock()
        for name, check in self._checks:
            if self._due.setdefault(name, now + AGAIN_S) > now:
                continue
            wrong = False
            try:
                wrong = await check()
            except Exception:
                log.exception("an error of our own in the check of the %s", name)
            every_s = self._search_every_s() or EVERY_S if name == "searches" else EVERY_S
            self._due[name] = self._clock() + (min(AGAIN_S, every_s) if wrong else every_s)

    async def look_at_cache(self) -> None:
        """Whether the cache's second level answers, where it is time to see that."""
        if self._clock() < self._cache_due_at:
            return
        wrong = False
        try:
            wrong = not self._is_shown_well() and await self._ping()
        finally:
            self._cache_due_at = self._clock() + (CACHE_AGAIN_S if wrong else CACHE_EVERY_S)

    async def again(self, component: str) -> bool:
        """Look now at what a component answers, in each way that there is; whether there was one."""
        tiers = by_tier(self._healths.components)
        found = False
        for parts in list(self._routes()):
            if parts.watch is not None and component in tiers.get((parts.name, parts.watch.tier), {}).values():
                await parts.watch.look(now=True)
                found = True
        for one in list(self._fingerprints):
            if tiers.get(one.key[:2], {}).get(one.key[2]) == component:
                await self._measure(one)
                found = True
        role = component.partition(":")[0]
        if role == "vector_database" and any(name == component for name, _ in self._rows):
            await self._count()
            await self._search()
            found = True
        if role == "local_model":
            await self._embed()
            found = True
        if role == "local_index":
            await asyncio.get_running_loop().run_in_executor(None, self._knowing.refresh)
            found = True
        if role == "cache":
            await self._ping()
            found = True
        return found

    async def _measure(self, one: Measuring) -> None:
        await self._fingerprints.measure(one, self._clock())

    def _add(self, component: str, source: str, reason: str) -> bool:
        """One more result; whether it was wrong."""
        key = (component, source)
        if key not in self._rows and len(self._rows) >= ROWS_MAX:
            del self._rows[next(iter(self._rows))]
        self._rows.setdefault(key, Row()).add("semantic", reason)
        return bool(reason)

    # --- points ------------------------------------------------------------------------------------------------------

    async def _count(self) -> bool:
        """Count the points of every mirrored collection, here and in its database."""
        return await self._compared("count", self._lost)

    async def _search(self) -> bool:
        """Search every mirrored collection, here and in its database."""
        return bool(self._search_every_s()) and await self._compared("search", self._astray)

    async def _compared(self, how: str, reason_of: Callable[[Kept, str, Held], Awaitable[str | None]]) -> bool:
        """Compare every mirrored collection with its database, in this way; whether something was wrong."""
        mirrors, wrong = self._mirrors(), False
        tiers = by_tier(self._healths.components)
        compared: set[str] = set()
        for route, kept in list(mirrors.running.items()) if mirrors is not None else ():
            if kept.keeper is None or not kept.mirror.is_keeper:
                continue
            components = list(tiers.get((route, kept.tier.name), {}).values())
            for local, held in list(kept.mirror.held.items()):
                source = f"{how} {route}/{local}"
                compared.add(source)
                reason = await reason_of(kept, local, held)
                for name in components if reason is not None else ():
                    wrong |= self._add(name, source, reason or "")
        for component, source in self._rows:
            if source.startswith(f"{how} ") and source not in compared:
                # its mirror is no more, and nobody is left who could say otherwise
                self._rows[component, source] = Row()
        return wrong

    async def _lost(self, kept: Kept, local: str, held: Held) -> str | None:
        """Why a database's number of points is wrong, '' where it is not; None where it can't be told now."""

        async def counted(copy: Any, live: Described) -> str | None:
            fault = count_fault(live.count, copy.count)
            return f"{fault}: {live.count} points of {copy.count} in {held.called}" if fault else ""

        return await self._while_settled(kept, local, held, counted)

    async def _astray(self, kept: Kept, local: str, held: Held) -> str | None:
        """Why what a database finds is wrong, '' where it is not; None where it can't be told now."""
        if self._searches is None:
            from understudy.proxy.health.searches import Searches

            self._searches = Searches(self._clock)
        searches, key = self._searches, (kept.tier.name, local)

        async def searched(copy: Any, live: Described) -> str | None:
            assert kept.keeper is not None
            return await searches.wrong(key, copy, live, kept.keeper.walker.source)

        return await self._while_settled(kept, local, held, searched)

    async def _while_settled(
        self, kept: Kept, local: str, held: Held, look: Callable[[Any, Described], Awaitable[str | None]]
    ) -> str | None:
        """What `look` finds of a copy and its database; None where writes are on their way: neither is right then."""
        standing, counts = held.standing, kept.mirror.counts
        if held.refused and not standing.whole:
            return None
        assert kept.keeper is not None
        from understudy.proxy.mirroring.source import SourceFailed, Unmirrorable

        passed = counts.passed
        try:
            copy: Any = kept.mirror.stock().get(local)
            if copy is None or not standing.whole or standing.waiting or standing.unsure:
                return None
            async with asyncio.timeout(ASK_S):
                live = await kept.keeper.walker.source.described(held.called)
                told = await look(copy, live)
        except (SourceFailed, Unmirrorable, Refused, TimeoutError, OSError):
            return None
        if not standing.whole or standing.waiting or standing.unsure or counts.passed != passed:
            return None
        return told

    # --- our own parts -----------------------------------------------------------------------------------------------

    async def _embed(self) -> bool:
        """Have the local model embed a text, where callers' texts do not show already that it does."""
        if self._knowing.missing[0] is not None:
            return False
        name = component_of("local_model", self._model())
        try:
            vectors = await self._knowing.embed([TEXT], asyncio.get_running_loop().time() + ASK_S)
        except Exception as fault:
            return self._add(name, "embeds", f"{type(fault).__name__}: {str(fault)[:80]}")
        vector = [float(number) for number in vectors[0]]
        self._first = self._first if len(self._first) == len(vector) else vector
        like = sum(one * other for one, other in zip(vector, self._first, strict=True))
        scale = sum(one * one for one in vector) * sum(one * one for one in self._first)
        is_same = scale > 0 and like * like >= SAME_MIN * SAME_MIN * scale
        return self._add(name, "embeds", "" if is_same else "embedding_drift")

    def _is_shown_well(self) -> bool:
        """Whether callers have shown since the last look that the second level answers; that counts as a look."""
        second = self._second()
        if second is None:
            return True
        before, answers, failures = self._counted
        self._counted = (second, second.answers, second.failures)
        if before is not second or second.answers == answers or second.failures > failures:
            return False
        self._note_cache("")
        return True

    async def _ping(self) -> bool:
        """Ask the cache's second level for something that is not there; whether that was wrong."""
        second = self._second()
        if second is None:
            return False
        answered = await second.ping()
        self._counted = (second, second.answers, second.failures)
        if answered is None and not second.patience.is_open:
            return False
        return self._note_cache("" if answered else "no answer in time")

    def _second(self) -> Second | None:
        caches = self._caches()
        return caches.second if caches is not None else None

    def _note_cache(self, reason: str) -> bool:
        for name, one in self._healths.components.items():
            if one.role == "cache":
                self._add(name, "answers", reason)
        return bool(reason)


def _of_missing(why: tuple[str, str] | None) -> tuple[Word, str]:
    if why is None:
        return "healthy", ""
    return ("unknown", "") if why[0] == "warming" else ("unhealthy", f"{why[0]}: {why[1]}"[:300])
