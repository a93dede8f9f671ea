"""Have the sentences of the collections that extractive answers quote from embedded before anybody asks.

    a collection is new, or another ──> its sentences ──> those without a vector ──> state/sentences/NAME
                                                          slice by slice, a quarter of a core, behind every question

One worker does it, the others read what it wrote. Until then, and for what is newer than the file, an answer embeds the
sentences it needs itself, as it always could: that costs time (150 ms) and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from understudy.models.errors import DeadlinePassed, ModelError, Overloaded
from understudy.policies.service import Refused

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from understudy.models.sentence_store import SentenceVectors
    from understudy.proxy.tiers.knowing import Knowing, Model, Shelved

    Vectors = NDArray[np.float32]

__all__ = ["Sentences", "keep_sentences"]

log = logging.getLogger("understudy.local")

LOOK_S = 5.0
SLICE_TEXTS = 32
SLICE_S_MAX = 60.0
REST = 3.0
"""Rests for so many times as long as it worked: a quarter of a core."""
PAGE_POINTS = 256
AGAIN_S = 60.0
AGAIN_TIMES = 20.0
"""A collection that is written to all the time is gone through at most once a minute, and a twentieth of the time."""


class Sentences:
    """The vectors that are kept, by collection, in the folder `folder`. `of` may be called from any thread."""

    def __init__(self, folder: Path, *, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._clock = clock
        self._kept: dict[str, SentenceVectors] = {}
        self._versions: dict[str, tuple[object, ...]] = {}
        self._next: dict[str, float] = {}

    @property
    def count(self) -> int:
        """How many sentences have a vector."""
        return sum(map(len, self._kept.values()))

    def of(self, texts: Sequence[str], dimensions: int) -> tuple[Vectors, NDArray[np.bool_]]:
        """Vectors [n, d] of the sentences that are kept, in whatever collection, and which those are [n]."""
        import numpy as np

        out, there = np.zeros((len(texts), dimensions), np.float32), np.zeros(len(texts), np.bool_)
        for kept in list(self._kept.values()):
            if there.all():
                break
            found = kept.of(texts)
            if found.vectors.shape[1] == dimensions:
                fresh = found.there & ~there
                out[fresh], there[fresh] = found.vectors[fresh], True
        return out, there

    async def keep(self, knowing: Knowing, names: Iterable[str]) -> None:
        """One round: bring the files of these collections up to date, where they are not. Raises nothing but bugs."""
        wanted = set(names)
        for name in set(self._kept) - wanted:
            del self._kept[name]
        for name in sorted(wanted):
            with contextlib.suppress(Refused, ModelError, OSError):
                await self._keep(knowing, name)

    async def _keep(self, knowing: Knowing, name: str) -> None:
        model, collection = knowing.model(), knowing.shelf().get(name)
        if collection is None or self._clock() < self._next.get(name, 0.0):
            return
        version, began = _version(collection, model), self._clock()
        loop = asyncio.get_running_loop()
        path = self._folder / f"{name}.vectors"
        if self._versions.get(name) == version:
            await loop.run_in_executor(None, self._reopen, name, path, model)
            return
        with _alone(self._folder) as is_ours:
            if not is_ours:
                await loop.run_in_executor(None, self._reopen, name, path, model)
                return
            texts, missing = await loop.run_in_executor(None, self._looked_through, name, path, collection, model)
            if missing:
                fresh = await _embedded(model, missing)
                await loop.run_in_executor(
                    None, self._write, path, model, texts, dict(zip(missing, fresh, strict=True))
                )
                log.info("kept the vectors of %d sentences of %r, %d of them new", len(texts), name, len(missing))
            await loop.run_in_executor(None, self._reopen, name, path, model)
        self._versions[name] = version
        now = self._clock()
        self._next[name] = now + max(AGAIN_S, AGAIN_TIMES * (now - began))

    def _reopen(self, name: str, path: Path, model: Model) -> None:
        """Read the file if it is another than the one that is open; what is open stays until there is a better one."""
        from understudy.models.sentence_store import SentenceVectors, identity_of

        kept = self._kept.get(name)
        if kept is not None and kept.identity == identity_of(path):
            return
        space = model.embedder.space
        found = SentenceVectors.open_file(path, space.fingerprint, space.dimensions)
        if found is not None:
            self._kept[name] = found

    def _looked_through(self, name: str, path: Path, collection: Shelved, model: Model) -> tuple[list[str], list[str]]:
        """All sentences of a collection, and those of them that no file has a vector of."""
        from understudy.models.sentence_store import SENTENCES_MAX
        from understudy.models.sentences import sentences

        self._reopen(name, path, model)
        texts: dict[str, None] = {}
        for text in _texts_of(collection):
            texts.update(dict.fromkeys(sentences(text)))
            if len(texts) >= SENTENCES_MAX:
                log.warning("%r has more than %d sentences; the others are embedded when needed", name, SENTENCES_MAX)
                break
        every = list(texts)[:SENTENCES_MAX]
        _, there = self.of(every, model.embedder.space.dimensions)
        return every, [text for text, known in zip(every, there, strict=True) if not known]

    def _write(self, path: Path, model: Model, texts: list[str], fresh: dict[str, Vectors]) -> None:
        from understudy.models.sentence_store import write_sentences

        space = model.embedder.space
        vectors, _ = self.of(texts, space.dimensions)
        for row, text in enumerate(texts):
            if text in fresh:
                vectors[row] = fresh[text]
        write_sentences(path, space.fingerprint, texts, vectors)


async def keep_sentences(sentences: Sentences, knowing: Knowing, names: Callable[[], Iterable[str]]) -> None:
    """Go round for as long as the process lives."""
    while True:
        await sentences.keep(knowing, names())
        await asyncio.sleep(LOOK_S)


async def _embedded(model: Model, texts: Sequence[str]) -> list[Vectors]:
    """Vectors of many texts, a quarter of the time working. Raises ModelError."""
    loop = asyncio.get_running_loop()
    rows: list[Vectors] = []
    while len(rows) < len(texts):
        began = loop.time()
        some = texts[len(rows) : len(rows) + SLICE_TEXTS]
        try:
            rows.extend(await model.batcher.embed(some, kind="document", until=began + SLICE_S_MAX))
        except (Overloaded, DeadlinePassed):
            # who asks a question goes first, and for this there is time
            await asyncio.sleep(LOOK_S)
            continue
        await asyncio.sleep(REST * (loop.time() - began))
    return rows


def _version(collection: Shelved, model: Model) -> tuple[object, ...]:
    """What tells one state of a collection from the next, as far as it says."""
    return (getattr(collection, "epoch", ""), collection.count, model.embedder.space.fingerprint)


def _texts_of(collection: Shelved) -> Iterator[str]:
    at: int | str | None = None
    while True:
        points, at = collection.scroll(at, PAGE_POINTS)
        yield from (point.text for point in points if point.text)
        if at is None:
            return


@contextlib.contextmanager
def _alone(folder: Path) -> Generator[bool]:
    """Whether this is the only process at it; the lock falls with its process."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            # where files know no locks, two may do it, and the rename keeps that safe
            pass
        yield True
