"""A call's coroutine is stepped by hand, and becomes a task only if it waits for something that only a task can.

    start --> runs to its first wait --+-- a Waiter of ours --> told by who has the answer --> goes on
                                       |
                                       +-- anything else (a sleep, a lock, a new connection) --> a task from there on

Nearly every call waits once, for its upstream. While hardly anything else is going on it goes on at once, in the turn
of the loop in which it is told. Under load it goes on a turn later, together with all the others that were told: the
same stretch of code thirty times in a row finds itself in the processor's caches, which is worth a sixth of its cost
(26.6 against 31.7 µs a call with 32 connections). What they write then goes out together as well, behind the last of
them: a reader on another core is woken once and not for each, which is worth another tenth (32.3 against 36.1).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")

AT_ONCE_MAX = 2
"""While no more coroutines than this are under way, each goes on at once."""
HELD_BYTES_MAX = 4 * 1024
"""What is longer goes out at once: thirty answers of 21 KiB would push each other out of the processor's caches."""


class Waiter(Generic[T]):
    """What one coroutine waits by.

    To a task it looks like a future of `loop`, so that a coroutine may wait by it wherever it runs. Exactly one may
    wait; what comes after the first word is not heard.
    """

    __slots__ = ("_asyncio_future_blocking", "_error", "_loop", "_result", "done", "on_told")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False
        self._error: BaseException | None = None
        self._result: Any = None
        self.done = False
        self.on_told: Callable[[], object] | None = None

    def tell(self, result: T) -> None:
        """The wait is over."""
        if not self.done:
            self.done = True
            self._result = result
            if self.on_told is not None:
                self.on_told()

    def fail(self, error: BaseException) -> None:
        """The wait is over: `error` is raised where it was waited."""
        if not self.done:
            self.done = True
            self._error = error
            if self.on_told is not None:
                self.on_told()

    def __await__(self) -> Generator[Any, None, T]:
        if not self.done:
            self._asyncio_future_blocking = True
            yield self
        if self._error is not None:
            raise self._error
        return self._result

    @property
    def answered(self) -> T | None:
        """What was told, if anything was."""
        return self._result

    # --- what a task asks of a future ------------------------------------------------------------------------------

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(self, callback: Callable[[Waiter[T]], object], *, context: Context | None = None) -> None:
        self.on_told = lambda: self._loop.call_soon(callback, self, context=context)

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._result

    def cancel(self, msg: object = None) -> bool:  # noqa: ARG002 (a future's signature)
        """Nobody waits any more: CancelledError is raised where it was waited."""
        if self.done:
            return False
        self.fail(asyncio.CancelledError())
        return True


async def in_task() -> None:
    """On in a task, which clocks of asyncio's and most libraries ask for; whoever needs it waits for more than that."""
    if asyncio.current_task() is None:
        # a bare turn of the loop is no Waiter
        await asyncio.sleep(0)


class Steps:
    """All the coroutines that are stepped by hand on one loop: when each goes on, and when what it writes goes out."""

    __slots__ = ("_held", "_ready", "loop", "under_way")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.under_way = 0
        self._ready: list[Stepped] = []
        self._held: list[tuple[asyncio.WriteTransport, bytes]] | None = None
        """What is written while many go on, and goes out behind the last of them."""

    def write(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        """Write now, or with all that is written in this stretch. Whoever writes so has nothing more to say on this
        transport before the loop's next turn, and does not close it before."""
        if self._held is None or len(data) > HELD_BYTES_MAX:
            transport.write(data)
        else:
            self._held.append((transport, data))

    def go_on(self, stepped: Stepped) -> None:
        """Step it: now, or with all the others of this turn of the loop."""
        if self.under_way <= AT_ONCE_MAX and not self._ready:
            stepped.step()
            return
        if not self._ready:
            self.loop.call_soon(self._step_all)
        self._ready.append(stepped)

    def _step_all(self) -> None:
        ready, self._ready = self._ready, []
        held = self._held = []
        try:
            for stepped in ready:
                stepped.step()
        finally:
            self._held = None
            for transport, data in held:
                # somebody behind it may have given the connection up
                if not transport.is_closing():
                    transport.write(data)


class Stepped:
    """Whoever runs a coroutine by hand, once. The coroutine must raise nothing but CancelledError."""

    __slots__ = ("_awaited", "_coroutine", "_is_cancelled", "_is_carried_on", "_rest", "_steps", "_task")

    _steps: Steps
    _rest: Generator[Any, None, None] | None
    _awaited: Waiter[Any] | None
    _task: asyncio.Task[None] | None
    _is_cancelled: bool
    _is_carried_on: bool

    def __init__(self) -> None:
        # the rest is there once it is started: many never are, being answered from a cache
        self._coroutine: Coroutine[Any, Any, None] | None = None

    def start(self, coroutine: Coroutine[Any, Any, None], steps: Steps) -> None:
        """Run `coroutine` to its first wait, now or in this turn of the loop."""
        self._steps = steps
        self._coroutine = coroutine
        # stepped through its iterator: the end of a coroutine then costs no exception
        self._rest = coroutine.__await__()
        self._awaited = None
        self._task = None
        self._is_cancelled = self._is_carried_on = False
        steps.under_way += 1
        steps.go_on(self)

    @property
    def is_under_way(self) -> bool:
        """Whether the coroutine was started and has not ended."""
        return self._coroutine is not None

    def cancel(self) -> None:
        """Raise CancelledError where the coroutine waits, while it is under way; at its next wait if it is running this
        very moment."""
        if self._task is not None and self._is_carried_on:
            self._task.cancel()
        elif self._awaited is None or not self._awaited.cancel():
            # it is running, or stands ready to go on
            self._is_cancelled = True

    def step(self) -> None:
        """Go on to the next wait, or to the end."""
        rest = self._rest
        assert rest is not None
        self._awaited = None
        awaited: Any
        try:
            awaited = next(rest, self) if not self._is_cancelled else self._interrupted()
        except asyncio.CancelledError:
            awaited = self
        if awaited is self:
            self._ended()
        elif awaited.__class__ is Waiter:
            self._awaited = awaited
            awaited.on_told = self._told
        else:
            self._task = self._steps.loop.create_task(self._carried_on(awaited))
        if self._is_cancelled and self._awaited is not None:
            self._is_cancelled = False
            self._awaited.cancel()

    def _interrupted(self) -> Any:
        self._is_cancelled = False
        assert self._coroutine is not None
        try:
            return self._coroutine.throw(asyncio.CancelledError())
        except StopIteration:
            return self

    def _told(self) -> None:
        self._steps.go_on(self)

    def _ended(self) -> None:
        self._steps.under_way -= 1
        self._coroutine = self._rest = None

    async def _carried_on(self, awaited: Any) -> None:
        coroutine = self._coroutine
        assert coroutine is not None
        # a task that is cancelled before it has begun never does, and nobody would tell the coroutine
        self._is_carried_on = True
        if self._is_cancelled and self._task is not None:
            self._task.cancel()
        try:
            await _Rest(coroutine, awaited)
        finally:
            self._ended()


class _Rest:
    """The rest of a coroutine that already waits for something, to be awaited by a task."""

    __slots__ = ("_awaited", "_coroutine")

    def __init__(self, coroutine: Coroutine[Any, Any, None], awaited: Any) -> None:
        self._coroutine = coroutine
        self._awaited = awaited

    def __await__(self) -> Generator[Any, None, None]:
        awaited = self._awaited
        while True:
            try:
                yield awaited
            except BaseException as error:
                go_on = partial(self._coroutine.throw, error)
            else:
                go_on = partial(self._coroutine.send, None)
            try:
                awaited = go_on()
            except StopIteration:
                return
