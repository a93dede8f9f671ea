"""The queue between a route's calls and its copies: what passed waits here for the one thread that applies it.

    a call's answer --put, about 1 µs--> queue, bounded in number and bytes --> applying thread --> outcomes, in order
                          full: not taken, and the copies are behind

Nothing here keeps a caller waiting: a queue that is full loses writes rather than time, and says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

from understudy.proxy.mirroring.applying import Act, Doubtful, Found, Job, Outcome, Passed

BATCH_JOBS_MAX = 128
BATCH_BYTES_MAX = 4 * 1024 * 1024

log = logging.getLogger("understudy.mirror")


class Lane:
    """One route's queue. `take_in` is told of every job and what came of it, on the loop, in order."""

    def __init__(
        self, run: Callable[[Sequence[Job]], list[Outcome]], take_in: Callable[[Job, Outcome], None], thread: Executor
    ) -> None:
        self._run = run
        self._take_in = take_in
        self._thread = thread
        self._queue: deque[tuple[Job, int]] = deque()
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._in_hand = 0
        self.bytes = 0
        self.writes = 0

    def __len__(self) -> int:
        return len(self._queue) + self._in_hand

    def put(self, job: Job, size_bytes: int = 0) -> None:
        """Have `job` done after everything that is here."""
        self._queue.append((job, size_bytes))
        self.bytes += size_bytes
        self._more.set()

    def start(self) -> None:
        """Begin to apply."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain())

    async def stop(self, wait_s: float) -> bool:
        """Apply what is here, for so long at most; whether nothing is left."""
        if self._task is None:
            return not len(self)
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while len(self) and loop.time() < until:  # noqa: ASYNC110 (nobody is told that a queue is empty)
            await asyncio.sleep(0.01)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        empty = not len(self)
        while self._queue:
            job, _ = self._queue.popleft()
            if isinstance(job, Found | Act) and not job.told.done():
                job.told.cancel()
        return empty

    def oldest_passed_at(self) -> float:
        """Since when the oldest write here waits, in seconds since the epoch; 0 where none does."""
        return next((job.passed_at for job, _ in self._queue if isinstance(job, Passed)), 0.0)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._more.wait()
            self._more.clear()
            while self._queue:
                batch = self._batch()
                self._in_hand = len(batch)
                try:
                    outcomes = await loop.run_in_executor(self._thread, self._run, batch)
                finally:
                    self._in_hand = 0
                for job, outcome in zip(batch, outcomes, strict=True):
                    self._answer(job, outcome)

    def _batch(self) -> list[Job]:
        batch: list[Job] = []
        held = 0
        while self._queue and len(batch) < BATCH_JOBS_MAX and held < BATCH_BYTES_MAX:
            job, size_bytes = self._queue.popleft()
            batch.append(job)
            held += size_bytes
        self.bytes -= held
        return batch

    def _answer(self, job: Job, outcome: Outcome) -> None:
        self._take_in(job, outcome)
        if isinstance(job, Found | Act) and not job.told.done():
            value: Any = outcome.verdict if isinstance(job, Found) else outcome.value
            if outcome.error is not None:
                job.told.set_exception(outcome.error)
            else:
                job.told.set_result(value)


def size_of(job: Passed | Doubtful) -> int:
    """What a write holds in memory while it waits."""
    return len(job.call.request.body) + (len(job.answer.body) if isinstance(job, Passed) else 0)
