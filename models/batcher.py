"""Let many callers of one event loop share a slow, synchronous embedder: together where they meet, in turn otherwise.

    embed() ──> interactive lane (≤ 4 texts) ──┐
            └─> bulk lane ─────────────────────┴──> an idle worker takes what waits, up to a budget ──> rows to callers

There is no timer: an idle worker starts at once with whatever is there, and what comes meanwhile waits for the next run
together (the design of text-embeddings-inference). A bulk request is run in pieces, so that a question never waits for
more than the piece in hand. Whoever has gone, or whose time is up, is dropped before anything is spent on them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from understudy.models.embedder import Kind, Vectors
from understudy.models.errors import DeadlinePassed, ModelError, Overloaded
from understudy.models.space import Space

__all__ = ["Batcher", "Embeds"]

QUEUE_TEXTS_MAX = 512
INTERACTIVE_TEXTS_MAX = 4
# 1,024 tokens are some 100 ms on one core, which is the longest that a question waits for the bulk piece in hand.
RUN_TOKENS_MAX = 1_024
TEXT_TOKENS_MAX = 256
CHARS_PER_TOKEN = 4
# After so many interactive runs in a row one bulk piece goes, or a busy hour would starve the bulk lane altogether.
INTERACTIVE_RUNS_MAX = 8


class Embeds(Protocol):
    """As much of an Embedder as is used here."""

    @property
    def space(self) -> Space: ...
    @property
    def batch_tokens_max(self) -> int: ...
    def embed(self, texts: Sequence[str], kind: Kind = "query") -> Vectors: ...


class _Entry:
    """One caller's texts, on their way through the queue; `begun` of them have been given to a worker."""

    __slots__ = ("begun", "done", "kind", "missing", "rows", "texts")

    def __init__(self, texts: Sequence[str], kind: Kind, done: asyncio.Future[Vectors], dimensions: int) -> None:
        self.texts = texts
        self.kind: Kind = kind
        self.done = done
        self.begun = 0
        self.missing = len(texts)
        self.rows = np.empty((len(texts), dimensions), np.float32)


_Piece = tuple[_Entry, int, int]
"""An entry, and the half-open range of its texts that goes into this run."""


class Batcher:
    """An async face for an Embedder, with a bounded queue; belongs to the event loop that first awaits it.

    `workers` threads run the embedder side by side (cores − 1 is a good number). `run_tokens_max` bounds the piece of
    work that a question may have to wait for, unless the embedder itself takes larger batches. `clock` gives the
    seconds in which callers state their deadlines: the loop's own by default.
    """

    def __init__(
        self,
        embedder: Embeds,
        *,
        queue_texts_max: int = QUEUE_TEXTS_MAX,
        workers: int = 1,
        run_tokens_max: int = RUN_TOKENS_MAX,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._embedder = embedder
        self._queue_texts_max = queue_texts_max
        self._workers = workers
        self._run_tokens_max = run_tokens_max
        self._clock = clock
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="embed")
        # Dicts for queues: in order like a deque, and a caller who leaves is taken out of the middle at once.
        self._interactive: dict[_Entry, None] = {}
        self._bulk: dict[_Entry, None] = {}
        self._queued_texts = 0
        self._running: set[asyncio.Future[Vectors]] = set()
        self._interactive_runs = 0
        self._woken = False
        self._closed = False

    @property
    def queued_texts(self) -> int:
        """Texts that wait for a worker; at most `queue_texts_max`."""
        return self._queued_texts

    async def embed(self, texts: Sequence[str], *, kind: Kind = "query", until: float) -> Vectors:
        """Vectors [n, d] float32, as Embedder.embed gives them, by the time `until` on the batcher's clock.

        Raises Overloaded at once when the queue has no room for all of `texts`, DeadlinePassed when the time is up, and
        ModelError when the model fails: for the callers of that run, and for nobody else.
        """
        if self._closed:
            raise ModelError("the batcher is closed")
        if not texts:
            return np.empty((0, self._embedder.space.dimensions), np.float32)
        loop = asyncio.get_running_loop()
        left_s = until - (self._clock or loop.time)()
        if left_s <= 0:
            raise DeadlinePassed("the deadline had passed before the model was asked")
        if self._queued_texts + len(texts) > self._queue_texts_max:
            raise Overloaded(
                f"{self._queued_texts} texts wait for the model; {len(texts)} more are over {self._queue_texts_max}"
            )
        entry = _Entry(texts, kind, loop.create_future(), self._embedder.space.dimensions)
        self._lane_of(entry)[entry] = None
        self._queued_texts += len(texts)
        self._wake(loop)
        alarm = loop.call_later(left_s, _expire, entry.done)
        try:
            return await entry.done
        finally:
            alarm.cancel()
            self._forget(entry)

    async def close(self) -> None:
        """Turn waiting callers away with ModelError, wait for the runs in hand, and end the threads."""
        self._closed = True
        for entry in [*self._interactive, *self._bulk]:
            if not entry.done.done():
                entry.done.set_exception(ModelError("the batcher was closed"))
        if self._running:
            await asyncio.wait(self._running)
        self._threads.shutdown(wait=False)

    def _lane_of(self, entry: _Entry) -> dict[_Entry, None]:
        return self._interactive if len(entry.texts) <= INTERACTIVE_TEXTS_MAX else self._bulk

    def _forget(self, entry: _Entry) -> None:
        """Take an entry that was answered, cancelled or timed out off the queue, with what it still had there."""
        lane = self._lane_of(entry)
        if entry in lane:
            del lane[entry]
            self._queued_texts -= len(entry.texts) - entry.begun

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        # On the loop's next turn, not now: callers of this very turn then share one run, and nobody waits for it.
        if not self._woken:
            self._woken = True
            loop.call_soon(self._start_runs, loop)

    def _start_runs(self, loop: asyncio.AbstractEventLoop) -> None:
        self._woken = False
        while len(self._running) < self._workers and not self._closed:
            pieces = self._next_pieces()
            if not pieces:
                return
            texts = [text for entry, begin, end in pieces for text in entry.texts[begin:end]]
            run = loop.run_in_executor(self._threads, self._embedder.embed, texts, pieces[0][0].kind)
            self._running.add(run)
            run.add_done_callback(lambda done, pieces=pieces: self._finish(loop, done, pieces))

    def _next_pieces(self) -> list[_Piece]:
        """Whose turn it is, first come first served within a lane, up to the budget of one run and of one kind."""
        # Some callers are gone, or late, but have not had their turn on the loop yet to say so.
        for entry in [entry for lane in (self._interactive, self._bulk) for entry in lane if entry.done.done()]:
            self._forget(entry)
        bulk_is_due = self._interactive_runs >= INTERACTIVE_RUNS_MAX and bool(self._bulk)
        lane = self._bulk if bulk_is_due or not self._interactive else self._interactive
        self._interactive_runs = self._interactive_runs + 1 if lane is self._interactive else 0
        pieces: list[_Piece] = []
        # A GPU takes as long for sixteen times as much.
        left = max(self._run_tokens_max, self._embedder.batch_tokens_max)
        for entry in list(lane):
            if pieces and (left <= 0 or entry.kind != pieces[0][0].kind):
                break
            begin = entry.begun
            while left > 0 and entry.begun < len(entry.texts):
                left -= _tokens_about(entry.texts[entry.begun])
                entry.begun += 1
            pieces.append((entry, begin, entry.begun))
            self._queued_texts -= entry.begun - begin
            if entry.begun == len(entry.texts):
                del lane[entry]
        return pieces

    def _finish(self, loop: asyncio.AbstractEventLoop, run: asyncio.Future[Vectors], pieces: list[_Piece]) -> None:
        self._running.discard(run)
        error = asyncio.CancelledError() if run.cancelled() else run.exception()
        rows = run.result() if error is None else None
        at = 0
        for entry, begin, end in pieces:
            if rows is not None:
                entry.rows[begin:end] = rows[at : at + end - begin]
            at += end - begin
            entry.missing -= end - begin
            if entry.done.done():
                continue
            if error is not None:
                entry.done.set_exception(_own_copy(error))
            elif not entry.missing:
                entry.done.set_result(entry.rows)
        self._start_runs(loop)


def _expire(done: asyncio.Future[Vectors]) -> None:
    if not done.done():
        done.set_exception(DeadlinePassed("the deadline passed before the model had answered"))


def _own_copy(error: BaseException) -> BaseException:
    """A ModelError for each caller, since one raised in several tasks tangles its traceback; a bug stays itself."""
    if not isinstance(error, ModelError):
        return error
    copy = ModelError(error.why, where=error.where)
    copy.__cause__ = error
    return copy


def _tokens_about(text: str) -> int:
    # Near enough to share out work, and a thousand times cheaper than asking the tokeniser on the event loop.
    return min(len(text) // CHARS_PER_TOKEN + 2, TEXT_TOKENS_MAX)
