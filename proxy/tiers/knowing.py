"""What the local tiers share: the local model behind its queue, the local collections, and the threads to search in.

    nothing yet --load--> model there?  yes: embedding, generating      no: the reason why not
                     \\--> library there? yes: retrieving                no: the reason why not

The two are had or not had independently: a host without the model can still search with the caller's own vectors.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from understudy.indexes.faults import IndexFault
from understudy.models.errors import ModelError
from understudy.models.space import Space, same_space
from understudy.policies.service import Answer, Failed, Refused
from understudy.proxy.settings.settings import Local

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from understudy.proxy.reports.collections import Stats
    from understudy.proxy.tiers.sentences import Sentences

__all__ = ["Batches", "Counts", "Knowing", "Model", "Shelf", "Shelved"]

log = logging.getLogger("understudy.local")

THREADS = 2
"""Searches side by side: numpy and hnswlib let go of the GIL, and a sidecar has few cores to itself."""
WORKS_MAX = 64
"""Searches begun or waiting for a thread; at a few milliseconds each, more would only wait past their deadlines."""
WORK_S_MAX = 300.0
"""How long anybody waits for a local answer who has named no deadline."""

_Made = TypeVar("_Made")


class Counts(Protocol):
    """As much of an Embedder as the tiers use themselves."""

    @property
    def space(self) -> Space: ...
    @property
    def provider(self) -> str: ...
    @property
    def text_tokens_max(self) -> int: ...
    def count_tokens(self, texts: Sequence[str]) -> int: ...


class Batches(Protocol):
    """As much of a Batcher as the tiers use."""

    async def embed(
        self, texts: Sequence[str], *, kind: Literal["query", "document"] = "query", until: float
    ) -> NDArray[np.float32]: ...
    async def close(self) -> None: ...


class Shelved(Protocol):
    """As much of a Collection as the tiers use."""

    name: str

    @property
    def space(self) -> str: ...
    @property
    def dimensions(self) -> int: ...
    @property
    def distance(self) -> str: ...
    @property
    def count(self) -> int: ...
    def search(
        self,
        vector: object,
        k: int,
        *,
        filter: object = None,
        offset: int = 0,
        score_threshold: float | None = None,
        with_vectors: bool = False,
        using: str = "",
    ) -> Sequence[Any]: ...
    def search_text(
        self, text: str, k: int, *, filter: object = None, offset: int = 0, with_vectors: bool = False
    ) -> Sequence[Any]: ...
    def search_fused(
        self,
        vector: object,
        text: str,
        k: int,
        *,
        filter: object = None,
        offset: int = 0,
        with_vectors: bool = False,
        using: str = "",
    ) -> Sequence[Any]: ...
    def beside(self, space: str) -> tuple[str, float]: ...
    def worded_share(self) -> float: ...
    def get(self, ids: Sequence[int | str], *, with_vectors: bool = False) -> Sequence[Any]: ...
    def scroll(
        self, from_id: int | str | None, limit: int, filter: object = None, *, with_vectors: bool = False
    ) -> tuple[Sequence[Any], int | str | None]: ...
    def count_matching(self, filter: object = None) -> int: ...


class Shelf(Protocol):
    """As much of a Library as the tiers use."""

    def get(self, name: str) -> Shelved | None: ...
    def names(self) -> Sequence[str]: ...
    def refresh(self) -> dict[str, str]: ...
    def follow(self) -> dict[str, str]: ...
    @property
    def stats(self) -> Mapping[str, Stats]: ...


class Watched(Shelf, Protocol):
    """The local collections as one call reads them: it is noted how stale they are."""

    def mark(self, answer: Answer) -> None:
        """Say so on the answer."""
        ...


class Crossing(Protocol):
    """The way into one collection for one call: a vector of the local model as about one of the collection's own."""

    said: str
    """What is said of it in the answer's headers."""
    was_used: bool

    def __call__(self, vector: Sequence[float]) -> tuple[float, ...]: ...


class Bridges(Protocol):
    """As much of the maps between spaces as the tiers use."""

    def over(self, collection: Any, own: Space) -> Crossing | None:
        """The way into a collection, where one is proven."""
        ...


class Model:
    """The local model: who embeds, and behind which queue. `named` is what the settings call it."""

    __slots__ = ("batcher", "embedder", "named")

    def __init__(self, embedder: Counts, batcher: Batches, named: str = "") -> None:
        self.embedder = embedder
        self.batcher = batcher
        self.named = named

    def is_in(self, space: str) -> bool:
        """Whether `space` is the name of the model's own vector space; the settings may name it by its folder."""
        return bool(space) and (space == self.named or same_space(space, self.embedder.space.name))


class Knowing:
    """What is known locally. It says so itself when something is not: `model` and `shelf` raise Refused."""

    def __init__(self, *, threads: int = THREADS, works_max: int = WORKS_MAX) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="local")
        self._works: set[object] = set()
        self._works_max = works_max
        self._model: Model | None = None
        self._shelf: Shelf | None = None
        self._loading: asyncio.Future[None] | None = None
        self.faults: dict[str, str] = {}
        """Collections that did not open when they were last looked at, and why."""
        self.sentences: Sentences | None = None
        """Vectors of the sentences that are quoted, where somebody keeps them."""
        self.embed_again_share = 1.0
        self.pause: Callable[[float], object] = time.sleep
        self.bridges: Bridges | None = None
        """Maps into collections whose texts nobody has, where somebody makes them."""
        self._without_model = ("warming", "the local model is still being loaded")
        self._without_shelf = ("warming", "the local collections are still being opened")

    @property
    def ready(self) -> bool:
        """Whether both the model and the collections are there."""
        return self._model is not None and self._shelf is not None

    @property
    def reason(self) -> str:
        """Why it is not ready, in words for people, or ''."""
        missing = [self._without_model] if self._model is None else []
        missing += [self._without_shelf] if self._shelf is None else []
        return "; ".join(detail for _, detail in missing)

    @property
    def missing(self) -> tuple[tuple[str, str] | None, tuple[str, str] | None]:
        """Why the model, and why the collections are not there: a word and a sentence each, None for what is there."""
        return (
            self._without_model if self._model is None else None,
            self._without_shelf if self._shelf is None else None,
        )

    @property
    def works(self) -> int:
        """Searches begun or waiting for a thread."""
        return len(self._works)

    def model(self) -> Model:
        """The local model. Raises Refused("warming") until it is there, Refused("no_local_model") if it can't be."""
        if self._model is None:
            raise Refused(*self._without_model)
        return self._model

    def model_or_none(self) -> Model | None:
        """The local model, where it is there."""
        return self._model

    def bridge_over(self, collection: Shelved, model: Model) -> Crossing | None:
        """The way of the model's vectors into a collection of another space, where there is one that is proven."""
        return None if self.bridges is None else self.bridges.over(collection, model.embedder.space)

    async def embed(self, texts: list[str], until: float) -> NDArray[np.float32]:
        """Vectors [n, d] of texts that are compared with each other, by the time `until`. Raises as the batcher does,
        and Refused at once while the model is not there."""
        return await self.model().batcher.embed(texts, kind="query", until=until)

    def shelf(self) -> Shelf:
        """The local collections. Raises Refused("warming") or Refused("no_local_index")."""
        if self._shelf is None:
            raise Refused(*self._without_shelf)
        return self._shelf

    async def load(
        self, local: Local, *, models: Path, collections: Path, prepare: Callable[[Model], None] | None = None
    ) -> None:
        """Load the model (kept in the folder `models`) and the library over `collections`, in a thread.

        `prepare` is called in a thread once the model is there, and may write collections. Never raises: what could
        not be loaded is logged, and refused with its reason from then on.
        """
        loading = self.expect_load()
        try:
            self._shelf, self._without_shelf = await _tried(
                lambda: _library(collections, local.collections_bytes_max, self), "no_local_index"
            )
            self._model, self._without_model = await _tried(lambda: _model(local, models), "no_local_model")
            if self._model is not None and prepare is not None:
                await _tried(functools.partial(prepare, self._model), "no_knowledge")
            await asyncio.get_running_loop().run_in_executor(None, self.refresh)
        finally:
            self._loading = None
            loading.set_result(None)

    def expect_load(self) -> asyncio.Future[None]:
        """Have calls wait from now on, as `load` is to come: who is let in before it has begun is no worse off."""
        if self._loading is None:
            self._loading = asyncio.get_running_loop().create_future()
        return self._loading

    async def loaded(self, until: float) -> None:
        """Wait while we are being loaded, but no longer than `until`: better a late answer at start-up than none."""
        if self._loading is None:
            return
        wait_s = min(until - asyncio.get_running_loop().time(), WORK_S_MAX)
        # shielded: one caller's end of patience is not the others'
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._loading), wait_s)

    async def reload_model(self, local: Local, models: Path) -> str:
        """Load the model anew, and let go of the one that there was; why it could not be, or ''. Takes seconds."""
        if self._model is not None:
            # two on one GPU might not fit
            await asyncio.get_running_loop().run_in_executor(None, _off_the_gpu, self._model)
        model, why = await _tried(lambda: _model(local, models), "no_local_model")
        if model is None:
            self._without_model = why if self._model is None else self._without_model
            return why[1]
        before, self._model = self._model, model
        if before is not None:
            await before.batcher.close()
        return ""

    def embed_again(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [n, d] of the words of a damaged collection, for `embed_again_share` of a core's time at most.

        Call it in a thread. Raises ModelError.
        """
        if self._model is None:
            raise ModelError(self._without_model[1])
        embedder: Any = self._model.embedder
        began = time.thread_time()
        vectors = embedder.embed(texts, "document")
        self.pause((time.thread_time() - began) * (1.0 / self.embed_again_share - 1.0))
        return vectors

    def embeds_into(self, space: str) -> bool:
        """Whether the local model's vectors are of this space."""
        return self._model is not None and self._model.is_in(space)

    def give_model(self, model: Model) -> None:
        """Have this model from now on."""
        self._model = model

    def give_shelf(self, shelf: Shelf) -> None:
        """Have these collections from now on."""
        self._shelf = shelf

    def refresh(self) -> dict[str, str]:
        """Open what is new on disk, let go of what is gone; what happened, by collection. Reads disk: call it in a
        thread."""
        if self._shelf is None:
            return {}
        happened = self._shelf.refresh()
        self.faults = {name: what for name, what in happened.items() if what.startswith("failed")}
        return happened

    def follow(self) -> dict[str, str]:
        """Take up what other processes wrote to the open collections; what happened, by collection. Reads a little
        disk: call it in a thread."""
        return {} if self._shelf is None else self._shelf.follow()

    def collection_stats(self) -> Mapping[str, Stats]:
        """What each open collection takes."""
        return {} if self._shelf is None else self._shelf.stats

    def about(self) -> dict[str, str]:
        """What `/status` and the metrics say of the local model; empty values while there is none."""
        if self._model is None:
            return {"model": "", "provider": "", "space": ""}
        embedder = self._model.embedder
        return {"model": self._model.named, "provider": embedder.provider, "space": embedder.space.name}

    async def in_thread(self, work: Callable[[], _Made], until: float) -> _Made:
        """What `work` returns, by the time `until` on the loop's clock, from one of our threads.

        Raises Refused("overloaded") when too much waits already and Failed("deadline") when the time is up. Work that
        nobody waits for any more is dropped if it has not begun; its place is kept until it is really over.
        """
        if len(self._works) >= self._works_max:
            raise Refused("overloaded", f"{self._works_max} local searches are in hand already")
        loop = asyncio.get_running_loop()
        if until <= loop.time():
            # a thread might win the race against a clock that has run out
            raise _too_late()
        place = object()
        begun: list[bool] = []
        self._works.add(place)

        def worked() -> _Made:
            begun.append(True)
            try:
                return work()
            finally:
                # discarding twice is harmless, and so is discarding from a thread
                self._works.discard(place)

        future = loop.run_in_executor(self._threads, worked)
        late: list[bool] = []

        def expire() -> None:
            late.append(True)
            future.cancel()

        # not asyncio.timeout_at, which wants a task: a call may have none yet
        alarm = loop.call_at(min(until, loop.time() + WORK_S_MAX), expire)
        try:
            return await future
        except asyncio.CancelledError:
            if not late:
                raise
            raise _too_late() from None
        finally:
            alarm.cancel()
            if not begun:
                self._works.discard(place)

    async def close(self) -> None:
        """Let go of the model and the threads; work in hand is finished, and nobody waits for it."""
        if self._model is not None:
            await self._model.batcher.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


async def _tried(load: Callable[[], _Made], reason: str) -> tuple[_Made | None, tuple[str, str]]:
    """What `load` gives, or None and the (reason, detail) to refuse with."""
    try:
        return await asyncio.get_running_loop().run_in_executor(None, load), ("", "")
    except Exception as fault:
        # the two modules' own faults say all there is to say; anything else is a bug's trace
        log.warning("%s: %s", reason, fault, exc_info=not isinstance(fault, ModelError | IndexFault))
        return None, (reason, str(fault))


def _model(local: Local, cache: Path) -> Model:
    from understudy.models.batcher import Batcher
    from understudy.models.embedder import load

    embedder = load(local.model, cache, local.provider)
    embedder.warm_up()
    batcher = Batcher(embedder, queue_texts_max=local.queue_texts_max, workers=local.workers)
    return Model(embedder, batcher, local.model)


def _off_the_gpu(model: Model) -> None:
    embedder: Any = model.embedder
    embedder.release_cuda("the model is loaded anew", for_ever=True)


def _library(folder: Path, bytes_max: int, knowing: Knowing) -> Shelf:
    from understudy.indexes.library import Library

    library = Library(folder, bytes_max=bytes_max, rebuild_embed=knowing.embed_again, embeds=knowing.embeds_into)
    library.refresh()
    return library


def _too_late() -> Failed:
    return Failed("deadline", "the local search took longer than there was time", again=False)
