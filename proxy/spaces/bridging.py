"""Search copies whose texts nobody has, while the embedder is away: a map between spaces, fitted from what passes by.

    answered embedding --> offered: texts, and the primary's vectors of them     bounded; the rest is passed over
       --of several workers', by files, to the one that gathers-->
       --the local model, for a share of a core--> pairs --> reservoir
       --once an hour, in a thread--> a map, judged on each copy --> state/bridges --> every worker
    a handle, a copy of few texts, a map that holds there --> the handle's vector mapped, and its text's words

A copy with texts has something better: the local model's own vectors of them (`shadow_index`). So nothing is gathered
while every copy has its texts, and what a map must prove before anybody is answered by it stands in `models.bridge`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from understudy.indexes.faults import IndexFault
from understudy.indexes.keywords import write_keywords
from understudy.models.bridge import (
    DEPTH,
    KEYWORD_DEPTH,
    Bridge,
    Pair,
    Reservoir,
    Standing,
    Vectors,
    agreement,
    documents_share,
    fitted,
    judged,
    refusal,
    sanity,
)
from understudy.models.errors import ModelError
from understudy.models.space import Space, canonical_name
from understudy.policies.service import Refused
from understudy.proxy.spaces.bridge_store import BridgeStore, Key, Offered, Published
from understudy.proxy.spaces.shadow_index import pause_s, repeated
from understudy.proxy.tiers.knowing import Knowing, Model

log = logging.getLogger("understudy.bridges")

LOOK_S = 60.0
"""How often it is looked which copies have no texts, and whether another worker has published a map."""
REFIT_S = 3600.0
KEEP_S = 300.0
"""How often new pairs are written down: up to 38 MB."""
EMBED_S_MAX = 60.0
WAITING_MAX: Final = 512
"""Texts that wait to be embedded, with their vectors: 4 MiB of 1 536 dimensions."""
PASS_ON_S: Final = 5.0
"""How often a worker passes on what it was offered, and the one that gathers looks for it."""
QUESTIONS_WAITING_MAX: Final = WAITING_MAX // 4
"""In a worker that does not know how many the gathering one can use."""
BATCH_TEXTS: Final = 16
TEXT_CHARS_MAX: Final = 2_000
"""As much of a text is kept as a search by words needs to know it by."""
QUESTIONS_TO_DOCUMENTS_MAX: Final = 0.8
"""Most of what passes are questions, and a map is fitted mostly to documents: further questions wait for those."""
JUDGED_MAX: Final = 400
WORDED_SHARE_MAX: Final = 0.5
"""Of a copy more than half of whose points have texts, words and the local model's vectors find more than a map."""
SPANS_MAX: Final = 8


@dataclass(slots=True)
class Span:
    """What is known on the way to one other space: `standings` by collection; `reason` why there is no map yet."""

    reservoir: Reservoir
    bridge: Bridge | None = None
    standings: dict[str, Standing] = field(default_factory=dict[str, Standing])
    fitted_at: float = 0.0
    read_at: int = 0
    due_at: float = 0.0
    keep_at: float = 0.0
    documents: int = 0
    questions: int = 0
    is_new: bool = False
    is_unkept: bool = False
    reason: str = ""

    def take(self, pair: Pair) -> None:
        """Add a pair, if it is any news."""
        if self.reservoir.add(pair):
            self.is_new = self.is_unkept = True
            if pair.is_document:
                self.documents += 1
            else:
                self.questions += 1

    @property
    def pairs(self) -> list[Pair]:
        """All of them."""
        return [*self.reservoir.fitting, *self.reservoir.held_out]

    @property
    def takes_questions(self) -> bool:
        return self.questions < QUESTIONS_TO_DOCUMENTS_MAX * self.documents


class Crossing:
    """The way into one collection for one call: `vector` [d_b] of the local model as the collection's own [d_a]."""

    __slots__ = ("_bridge", "said", "was_used")

    def __init__(self, bridge: Bridge, said: str) -> None:
        self._bridge = bridge
        self.said = said
        self.was_used = False

    def __call__(self, vector: Sequence[float]) -> tuple[float, ...]:
        self.was_used = True
        return tuple(self._bridge.mapped(np.asarray(vector, np.float32))[0].tolist())


class Bridges:
    """One process's. `cpu_share` is above 0; where `gathers` is False, another fits the maps, also to what passes here,
    and we read them."""

    def __init__(
        self,
        knowing: Knowing,
        cpu_share: float,
        is_outage: Callable[[], bool],
        folder: Path,
        *,
        gathers: bool,
        clock: Callable[[], float],
        wall: Callable[[], float],
        dice: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.gathers = gathers
        self.passed_over = 0
        self.wanted: frozenset[tuple[str, int]] = frozenset()
        self.reason = "it has not been looked yet which copies have no texts"
        self.spans: dict[tuple[str, int], Span] = {}
        self._knowing = knowing
        self._cpu_share = cpu_share
        self._is_outage = is_outage
        self._store = BridgeStore(folder)
        self._clock, self._wall, self._dice, self._sleep = clock, wall, dice, sleep
        self._waiting: deque[Offered] = deque()
        self._worded: dict[str, tuple[str, float]] = {}
        self._look_at = self._pass_at = clock()

    # --- on the way of calls ---------------------------------------------------------------------------------------

    def offer(self, space: str, vectors: Sequence[bytes], texts: Sequence[str], kind: str) -> None:
        """An embedding was answered; of `kind` query or document, or '' where its API does not say."""
        if not self.wanted or not vectors:
            return
        key = canonical_name(space), len(vectors[0]) >> 2
        if key not in self.wanted:
            return
        # the API does not say which; one text alone is mostly a question
        is_document = kind == "document" if kind in ("query", "document") else len(texts) > 1
        kind = "document" if is_document else "query"
        for vector, text in zip(vectors, texts, strict=True):
            if text.strip() and len(vector) >> 2 == key[1]:
                self._take(Offered(key, vector, text, kind))

    def _take(self, offered: Offered) -> None:
        if offered.kind == "query" and not self._takes_question(offered.key):
            return
        if len(self._waiting) >= WAITING_MAX:
            self.passed_over += 1
        else:
            self._waiting.append(offered)

    def _takes_question(self, key: tuple[str, int]) -> bool:
        if not self.gathers:
            return len(self._waiting) < QUESTIONS_WAITING_MAX
        span = self.spans.get(key)
        return span is not None and span.takes_questions

    def over(self, collection: Any, own: Space) -> Crossing | None:
        """The way into a collection, where a map holds there now."""
        span = self.spans.get((canonical_name(collection.space), collection.dimensions))
        if span is None or span.bridge is None or span.bridge.local_mean.shape != (own.dimensions,):
            return None
        standing = span.standings.get(collection.name)
        if standing is None or standing.reason or standing.version != span.bridge.version:
            return None
        said = f"bridge; of={own.name}; for={collection.space}; version={standing.version}"
        return Crossing(span.bridge, f"{said}; agreement={standing.agreement:.2f}")

    # --- beside them -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        await repeated(self.once, self._sleep, "maps between spaces were made")

    async def once(self) -> None:
        """Do what is due."""
        try:
            shelf, model = self._knowing.shelf(), self._knowing.model()
        except Refused:
            return
        if self._clock() >= self._look_at:
            self._look_at = self._clock() + LOOK_S
            await self._apart(functools.partial(self._look, shelf, model))
        if self._clock() >= self._pass_at:
            self._pass_at = self._clock() + PASS_ON_S
            await self._exchange()
        if not self.gathers:
            return
        await self._embed(model)
        for key, span in list(self.spans.items()):
            if span.is_new and self._clock() >= span.due_at and key in self.wanted:
                await self._fit(key, span, shelf, model)
            if self._clock() >= span.keep_at:
                await self._keep(Key(model.embedder.space.fingerprint, *key), span)

    async def close(self) -> None:
        """Write down what must outlive us."""
        if not self.gathers:
            await self._exchange()
        model = self._knowing.model_or_none()
        if model is None or not self.gathers:
            return
        for key, span in list(self.spans.items()):
            await self._keep(Key(model.embedder.space.fingerprint, *key), span)

    async def _exchange(self) -> None:
        """Pass on what was offered to us, or take what was passed on."""
        if not self.gathers:
            offered = list(self._waiting)
            self._waiting.clear()
            if offered and not await self._apart(functools.partial(self._store.pass_on, offered)):
                self.passed_over += len(offered)
        elif self.wanted and (room := WAITING_MAX - len(self._waiting)) > 0:
            for each in await self._apart(functools.partial(self._store.passed_on, room)):
                if each.key in self.wanted and len(each.vector) >> 2 == each.key[1]:
                    self._take(each)

    async def _keep(self, key: Key, span: Span) -> None:
        if span.is_unkept:
            span.is_unkept, span.keep_at = False, self._clock() + KEEP_S
            await self._apart(functools.partial(self._store.keep_pairs, key, span.pairs))

    def _look(self, shelf: Any, model: Model) -> None:
        """See which copies have no texts, and read what others have published."""
        found: dict[str, tuple[str, int]] = {}
        for name in shelf.names():
            try:
                collection = shelf.get(name)
            except (IndexFault, Refused):
                continue
            if collection is None or not collection.dimensions or model.is_in(collection.space):
                continue
            if collection.space and collection.count and self._worded_share(collection) <= WORDED_SHARE_MAX:
                found[name] = canonical_name(collection.space), collection.dimensions
        wanted = set(found.values())
        self.reason = "" if wanted else "every local collection has its texts: none needs a map"
        for key in sorted(wanted - self.spans.keys())[: SPANS_MAX - len(self.spans)]:
            self.spans[key] = self._restored(key, model)
        self.wanted = frozenset(wanted & self.spans.keys())
        if not self.gathers:
            for key, span in self.spans.items():
                self._reread(Key(model.embedder.space.fingerprint, *key), span)
            return
        for name, key in found.items():
            span = self.spans.get(key)
            if span is not None and span.bridge is not None and name not in span.standings:
                # a copy that has come since: nobody knows how the map does there
                span.is_new, span.due_at = True, 0.0

    def _worded_share(self, collection: Any) -> float:
        epoch, share = self._worded.get(collection.name, ("", 0.0))
        if epoch != collection.epoch or not epoch:
            share = collection.worded_share()
            self._worded[collection.name] = collection.epoch, share
        return share

    def _restored(self, key: tuple[str, int], model: Model) -> Span:
        span = Span(Reservoir(self._dice))
        kept = Key(model.embedder.space.fingerprint, *key)
        self._reread(kept, span)
        if self.gathers:
            for pair in self._store.pairs(kept):
                span.take(pair)
            # what was fitted to them is there, or is made at once
            span.is_new, span.is_unkept = span.bridge is None, False
        span.reason = "" if span.bridge is not None else refusal(span.reservoir)
        return span

    def _reread(self, key: Key, span: Span) -> None:
        written_at = self._store.written_at(key)
        if written_at == span.read_at:
            return
        span.read_at = written_at
        told = self._store.published(key)
        if told is not None:
            span.bridge, span.standings, span.fitted_at = told

    # --- pairs -----------------------------------------------------------------------------------------------------

    async def _embed(self, model: Model) -> None:
        """Make pairs of what waits, for a share of a core; none while an upstream is away and the model is needed."""
        while self._waiting and not self._is_outage():
            first = self._waiting[0]
            batch: list[Offered] = []
            while self._waiting and len(batch) < BATCH_TEXTS and self._waiting[0].kind == first.kind:
                batch.append(self._waiting.popleft())
            began = self._clock()
            until = asyncio.get_running_loop().time() + EMBED_S_MAX
            try:
                vectors = await model.batcher.embed([each.text for each in batch], kind=first.kind, until=until)
            except (ModelError, Refused) as why:
                log.info("pairs for a map are not made now: %s", why)
                return
            for each, vector in zip(batch, vectors, strict=True):
                other = np.frombuffer(each.vector, np.float32)
                span = self.spans.get(each.key)
                if span is not None and np.isfinite(other).all() and np.any(other):
                    span.take(Pair(vector, other, each.kind == "document", each.text[:TEXT_CHARS_MAX]))
                    span.reason = refusal(span.reservoir) if span.bridge is None else ""
            await self._sleep(pause_s(self._clock() - began, self._cpu_share))

    # --- maps ------------------------------------------------------------------------------------------------------

    async def _fit(self, key: tuple[str, int], span: Span, shelf: Any, model: Model) -> None:
        span.reason = refusal(span.reservoir)
        if span.reason:
            return
        span.is_new, span.due_at = False, self._clock() + REFIT_S
        kept = Key(model.embedder.space.fingerprint, *key)
        told = await self._apart(functools.partial(self._fitted, key, span.reservoir, shelf, model))
        # one assignment after the other on the loop: no call sees a map with another's standing
        span.bridge, span.standings, span.fitted_at = told
        await self._apart(functools.partial(self._store.publish, kept, told))
        for name, standing in sorted(told.standings.items()):
            how = f"is used: it finds {standing.agreement:.2f} of what true ones find"
            log.info("map %s to %s, collection %s: %s", told.bridge.version, key[0], name, standing.reason or how)

    def _fitted(self, key: tuple[str, int], reservoir: Reservoir, shelf: Any, model: Model) -> Published:
        """A map of the pairs, and how it stands with each copy."""
        bridge = fitted(reservoir.fitting)
        sane = native_sanity(reservoir)
        standings: dict[str, Standing] = {}
        for name in shelf.names():
            collection = shelf.get(name)
            if collection is None or (canonical_name(collection.space), collection.dimensions) != key:
                continue
            if model.is_in(collection.space):
                continue
            agreed = agreement(bridge, reservoir.held_out[:JUDGED_MAX], functools.partial(nearest_in, collection))
            standing = judged(bridge, reservoir, agreed, sane)
            share = self._worded_share(collection)
            if share > WORDED_SHARE_MAX:
                why = f"{share:.0%} of its points have texts, which are searched by the local model's own vectors"
                standing = replace(standing, reason=why)
            standings[name] = standing
        return Published(bridge, standings, self._wall())

    async def _apart(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, work)

    # --- what it says ----------------------------------------------------------------------------------------------

    @property
    def told(self) -> dict[str, Any]:
        """How each map stands, for `/status`."""
        return {
            "reason": self.reason,
            "waiting": len(self._waiting),
            "passed_over": self.passed_over,
            "spaces": {f"{space} {dimensions}": _told(span) for (space, dimensions), span in dict(self.spans).items()},
        }


def _told(span: Span) -> dict[str, Any]:
    return {
        "pairs": len(span.reservoir),
        "documents_share": round(documents_share(span.reservoir), 3),
        "reason": span.reason,
        "version": "" if span.bridge is None else span.bridge.version,
        "fitted_at": span.fitted_at,
        "collections": {
            name: {
                "in_use": not each.reason,
                "reason": each.reason,
                "agreement": each.agreement,
                "sanity": each.sanity,
            }
            for name, each in sorted(span.standings.items())
        },
    }


def nearest_in(collection: Any, rows: Vectors) -> list[list[object]]:
    """For vectors [n, d] of the collection's own space the ids of what is nearest, DEPTH of them each."""
    return [[hit.id for hit in collection.search(row, DEPTH)] for row in rows]


def native_sanity(reservoir: Reservoir) -> float:
    """How much of what the other model's own vectors find among the documents of the pairs is found by words too: the
    copy has no texts to ask, and the pairs are texts of the same application."""
    documents = [pair for pair in (*reservoir.fitting, *reservoir.held_out) if pair.is_document]
    asked = reservoir.held_out[:JUDGED_MAX]
    matrix = np.stack([pair.other for pair in documents])
    matrix = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    scores = np.stack([pair.other for pair in asked]) @ matrix.T
    found = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH].tolist()
    words = write_keywords(pair.text for pair in documents)
    worded = [[row for row, _ in words.search(pair.text, KEYWORD_DEPTH)] for pair in asked]
    return sanity(found, worded, [pair.is_document for pair in asked])
