"""Embed the texts of local collections with the local model too, beside the vectors that they came with.

    a collection whose vectors are another model's --> points with words and without a vector of ours
                                                             |  a few at a time, for a share of a core's time
                                                   local model --> PutVectors("~model") --> the collection itself

A copy of a database holds the vectors of the application's own model, which is away when its provider is: then nobody
can make a question's vector for them. Among vectors of the local model the same question finds what it would have (on
SQuAD, fused with words, 106 % of the recall). Embedding takes long (a million passages: 6 hours of a core), so it is
done when documents come, and never while an upstream is away, for then the local model has callers waiting.

What is done is kept with the points, so that a restart goes on where it was, and stays for as long as their text does.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from understudy.indexes.faults import IndexFault
from understudy.indexes.points import DERIVED, Point
from understudy.indexes.writes import PutVectors
from understudy.models.errors import ModelError
from understudy.policies.service import Refused
from understudy.proxy.tiers.knowing import Knowing, Model

log = logging.getLogger("understudy.local")

BATCH_TEXTS = 16
"""0.2 s of paragraphs on one core: so long a caller's own text may have to wait behind them."""
LOOKED_AT = 256
TICK_S = 1.0
AGAIN_S = 60.0
"""After a write that the disk or the memory budget refused."""
EMBED_S_MAX = 60.0


@dataclass(slots=True)
class Progress:
    """How far one collection is. `waiting` points have no vector of ours, some of them for want of words."""

    embedded: int = 0
    waiting: int = 0
    reason: str = ""
    done_at: object = None
    not_before: float = 0.0


class Texts(Protocol):
    """As much of a Collection as is used here."""

    @property
    def space(self) -> str: ...
    @property
    def epoch(self) -> str: ...
    @property
    def dimensions(self) -> int: ...
    def view(self) -> Any: ...


def pause_s(took_s: float, cpu_share: float) -> float:
    """How long to rest after work that took so long, so that no more than a share of a core's time is taken."""
    return took_s * (1 / cpu_share - 1)


async def repeated(once: Callable[[], Awaitable[None]], sleep: Callable[[float], Awaitable[object]], what: str) -> None:
    """Do what is due, every TICK_S until cancelled; `what` says to the log what was being done when it broke."""
    while True:
        await sleep(TICK_S)
        try:
            await once()
        except Exception:
            # a bug here must not end the process's other work, nor this for ever
            log.exception("an error of our own while %s", what)
            await sleep(AGAIN_S)


class ShadowIndex:
    """Fills in what is missing. `is_outage` says that an upstream is away; `cpu_share` is above 0."""

    def __init__(
        self,
        knowing: Knowing,
        cpu_share: float,
        is_outage: Callable[[], bool],
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.progress: dict[str, Progress] = {}
        self._knowing = knowing
        self._cpu_share = cpu_share
        self._is_outage = is_outage
        self._clock = clock
        self._sleep = sleep

    @property
    def told(self) -> dict[str, dict[str, object]]:
        """How far each collection is, for `/status`."""
        return {
            name: {"embedded": each.embedded, "waiting": each.waiting, "reason": each.reason}
            for name, each in self.progress.items()
        }

    async def run(self) -> None:
        """Until cancelled."""
        await repeated(self.once, self._sleep, "embedding local collections")

    async def once(self) -> None:
        """Fill every collection as far as can be done now."""
        try:
            shelf, model = self._knowing.shelf(), self._knowing.model()
        except Refused:
            return
        names = await self._apart(shelf.names)
        for name in list(self.progress):
            if name not in names:
                del self.progress[name]
        for name in names:
            try:
                await self._fill(name, shelf, model)
            except (IndexFault, ModelError, Refused, OSError) as why:
                progress = self.progress.setdefault(name, Progress())
                if progress.reason != str(why):
                    log.warning("local collection %s: its texts are not embedded: %s", name, why)
                progress.reason, progress.not_before = str(why), self._clock() + AGAIN_S

    async def _fill(self, name: str, shelf: Any, model: Model) -> None:
        collection: Texts | None = await self._apart(lambda: shelf.get(name))
        if collection is None or not collection.dimensions or model.is_in(collection.space):
            # its own vectors are all that is needed
            self.progress.pop(name, None)
            return
        progress = self.progress.setdefault(name, Progress())
        start, has_embedded = 0, False
        while self._clock() >= progress.not_before and progress.done_at != collection.epoch:
            if self._is_outage():
                progress.reason = "an upstream is away: the local model is its callers' own"
                return
            epoch, began = collection.epoch, self._clock()
            points, progress.waiting = await self._apart(functools.partial(_lacking, collection, model, start))
            if not points:
                # what has no words stays without; whatever is written from here on is looked at again
                progress.done_at, progress.reason = None if has_embedded else epoch, ""
                # a compaction may have put points before those that were looked at
                start, has_embedded = 0, False
                continue
            worded = [point for point in points if point.text.strip()]
            for at in range(0, len(worded), BATCH_TEXTS):
                has_embedded = True
                await self._embed(name, shelf, model, worded[at : at + BATCH_TEXTS], progress)
                await self._sleep(pause_s(self._clock() - began, self._cpu_share))
                if self._is_outage():
                    return
                began = self._clock()
            # those with words are no longer among them: the next ones stand behind those without
            start += len(points) - len(worded)

    async def _embed(self, name: str, shelf: Any, model: Model, points: list[Point], progress: Progress) -> None:
        until = asyncio.get_running_loop().time() + EMBED_S_MAX
        space = model.embedder.space
        vectors = await model.batcher.embed([point.text for point in points], kind="document", until=until)
        made = [
            Point(point.id, text=point.text, named={DERIVED + space.name: vector})
            for point, vector in zip(points, vectors, strict=True)
        ]
        await self._apart(lambda: shelf.write(name, [PutVectors(tuple(made))], space=space.name))
        progress.embedded += len(made)
        progress.waiting = max(0, progress.waiting - len(made))
        progress.reason = ""

    async def _apart(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, work)


def _lacking(collection: Texts, model: Model, start: int) -> tuple[list[Point], int]:
    return collection.view().lacking(DERIVED + model.embedder.space.name, LOOKED_AT, start)
