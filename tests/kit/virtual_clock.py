"""Run coroutines on a clock that jumps instead of waiting, so that an hour of sleep costs a millisecond.

                    +-- something is ready ------------------------> run it; the clock stands
    loop is idle ---+-- a thread works for us, or time is held ----> wait for real; the clock stands
                    +-- sockets are open, and one has been used ---> wait `io_grace_s` for real, then jump; where that
                    |                                                took much longer, we had no core, and where the
                    |                                                kernel has packets in hand, it had none: wait again
                    +-- only timers are left ----------------------> jump to the next timer at once
                    +-- nothing is left, not even a timer ---------> Stuck

What jumps is `loop.time()`, and with it `asyncio.sleep`, `asyncio.timeout`, `call_later` and `call_at`. What does not:
`time.time()`, `time.monotonic()`, the kernel and other processes. In particular:

- A socket to this same process is safe: the kernel delivers loopback bytes within the send, and where a busy machine
  leaves that to a thread of the kernel's, the grace is for it to get a core. A socket to another process or thread is
  not, once its answer takes longer than the grace: use the marker `real_clock` there, or `loop.held()` round the
  exchange.
- Work given to `run_in_executor` or `asyncio.to_thread` (name look-ups too) is waited for: time stands until it is
  done. A thread started by hand is invisible: wrap it in `loop.held()`.
- The grace is given once after a socket was used: opened, closed, written to or heard of. Ticks of clocks among which
  nobody says anything cost nothing, a simulated hour of one call a second takes 3600 graces. `io_grace_s=0` gives up
  the guard: for pure logic.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import selectors
import time
from asyncio.selector_events import _SelectorSocketTransport  # pyright: ignore
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

START_S = 1000.0
"""A virtual clock does not begin at nought: code that takes 0.0 for "never" must not pass by luck."""

IO_GRACE_S = 0.005
GRACES_MAX = 20
PARTING_S, PARTINGS_MAX = 0.001, 20
STUCK_S_MAX = 180.0
REAL_S_MAX = 300.0
"""When a test counts as hung: longer than anything it waits for itself, so that no two clocks race."""


SOFTNET = Path("/proc/net/softnet_stat")
"""A line of hexadecimal numbers for each core; the twelfth is how many packets wait there to be delivered."""


def packets_in_hand() -> bool:
    """Whether the kernel has taken packets that it has not delivered yet; False where it doesn't tell."""
    try:
        lines = SOFTNET.read_text().splitlines()
    except OSError:
        return False
    return any(int(fields[11], 16) for line in lines if len(fields := line.split()) > 11)


class Stuck(Exception):
    """The loop can never go on, or has gone on for too long; the message shows where every task waits."""


class JumpingSelector(selectors.BaseSelector):
    """A selector which, asked to wait, moves the clock instead; the module's docstring has the order of cases."""

    def __init__(self, start_s: float, io_grace_s: float, stuck_s_max: float, real_s_max: float) -> None:
        self._inner = selectors.DefaultSelector()
        self._grace_s = io_grace_s
        self._stuck_s_max = stuck_s_max
        self._real_s_max = real_s_max
        self._real_began = time.monotonic()
        self.now = start_s
        self.holds = 0
        self.jumps = 0
        self.graces = 0
        self.own_fds = 0
        """How many descriptors the loop registered for itself: its self-pipe."""
        self.is_stirred = False
        """Whether a socket was used since all that was on its way had time to arrive."""
        self.has_strangers = False
        """Whether there is something to hear of that we can't see being used: pipes, datagrams."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._inner.select(0)
        if ready or (timeout is not None and timeout <= 0):
            self.is_stirred = self.is_stirred or bool(ready)
            return ready
        if self.holds:
            self.is_stirred = True
            return self._wait(self._stuck_s_max) or self._stuck("time was held, and nothing came")
        if timeout is None:
            if not self.has_sockets:
                return self._stuck("every task waits and nothing is left that could wake one")
            return self._wait(self._stuck_s_max) or self._stuck("no timer is set, and no socket became ready")
        if time.monotonic() - self._real_began > self._real_s_max:
            return self._stuck(f"more than {self._real_s_max} s of real time went by")
        if self.has_sockets and self._grace_s and (self.is_stirred or self.has_strangers):
            if ready := self._wait_the_grace():
                return ready
            self.is_stirred = False
        self.jumps += 1
        self.now += timeout
        return []

    @property
    def has_sockets(self) -> bool:
        """Whether anything but the loop itself could become ready."""
        return len(self._inner.get_map()) > self.own_fds

    def restart_guard(self) -> None:
        """Count real time from here: a loop made early and used late has not been running."""
        self._real_began = time.monotonic()

    def _wait_the_grace(self) -> list[tuple[selectors.SelectorKey, int]]:
        # a machine that has let us wait for a core may have let the kernel's own threads wait for one, too; and may let
        # them wait when we had ours
        ready: list[tuple[selectors.SelectorKey, int]] = []
        self.graces += 1
        for _ in range(GRACES_MAX):
            began = time.monotonic()
            ready = self._wait(self._grace_s)
            if ready or (time.monotonic() - began < 2 * self._grace_s and not packets_in_hand()):
                break
        # what was delivered while we looked for it
        return ready or self._inner.select(0)

    def _wait(self, real_s: float) -> list[tuple[selectors.SelectorKey, int]]:
        return self._inner.select(real_s)

    def _stuck(self, why: str) -> list[tuple[selectors.SelectorKey, int]]:
        # The guard starts anew, so that cancelling the tasks afterwards isn't cut short as well.
        self.restart_guard()
        raise Stuck(why)

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self.is_stirred = True
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        self.is_stirred = True
        return self._inner.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self.is_stirred = True
        return self._inner.modify(fileobj, events, data)

    def get_map(self) -> Any:
        return self._inner.get_map()

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.get_key(fileobj)

    def close(self) -> None:
        self._inner.close()


class _PausingTransport(_SelectorSocketTransport):
    """A socket's transport as in Python 3.11: the first releases of 3.12 and 3.13 forget to tell whose lines have
    filled the buffer, which uvloop never does."""

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))


class PlainLoop(asyncio.SelectorEventLoop):
    """asyncio's own event loop, for what must hold there as well."""

    def _make_socket_transport(
        self, sock: Any, protocol: Any, waiter: Any = None, *, extra: Any = None, server: Any = None
    ) -> _PausingTransport:
        return _PausingTransport(self, sock, protocol, waiter, extra, server)


class _Transport(_PausingTransport):
    """A socket's transport that says when it is written to, which no selector sees."""

    def write(self, data: Any) -> None:
        self._loop.jumping.is_stirred = True
        super().write(data)

    def write_eof(self) -> None:
        self._loop.jumping.is_stirred = True
        super().write_eof()


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An event loop on a clock that jumps; `io_grace_s=0` is for logic without sockets."""

    def __init__(
        self,
        *,
        start_s: float = START_S,
        io_grace_s: float = IO_GRACE_S,
        stuck_s_max: float = STUCK_S_MAX,
        real_s_max: float = REAL_S_MAX,
    ) -> None:
        self.jumping = JumpingSelector(start_s, io_grace_s, stuck_s_max, real_s_max)
        super().__init__(self.jumping)
        self.jumping.own_fds = len(self.jumping.get_map())

    def time(self) -> float:
        return self.jumping.now

    @property
    def jumps(self) -> int:
        """How often the clock has jumped: what a test asserts to show that nothing polls."""
        return self.jumping.jumps

    @property
    def graces(self) -> int:
        """How often it was waited for real, in case that something is on its way."""
        return self.jumping.graces

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Time stands while the block runs: for work this loop can't see, as a thread or a child process."""
        self.jumping.holds += 1
        try:
            yield
        finally:
            self.jumping.holds -= 1

    def _make_socket_transport(
        self, sock: Any, protocol: Any, waiter: Any = None, *, extra: Any = None, server: Any = None
    ) -> _Transport:
        return _Transport(self, sock, protocol, waiter, extra, server)

    def _make_datagram_transport(self, *args: Any, **kwargs: Any) -> Any:
        self.jumping.has_strangers = True
        return super()._make_datagram_transport(*args, **kwargs)  # pyright: ignore

    def _make_read_pipe_transport(self, *args: Any, **kwargs: Any) -> Any:
        self.jumping.has_strangers = True
        return super()._make_read_pipe_transport(*args, **kwargs)  # pyright: ignore

    def run_in_executor(self, executor: Any, func: Callable[..., Result], *args: Any) -> asyncio.Future[Result]:
        future = super().run_in_executor(executor, func, *args)
        self.jumping.holds += 1
        future.add_done_callback(self._executor_done)
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        # Its thread reports back through the self-pipe, which alone would pass for "nothing is left".
        with self.held():
            await super().shutdown_default_executor(*args)

    def _executor_done(self, _future: object) -> None:
        self.jumping.holds -= 1


def run(
    story: Coroutine[Any, Any, Result],
    *,
    start_s: float = START_S,
    io_grace_s: float = IO_GRACE_S,
    stuck_s_max: float = STUCK_S_MAX,
    real_s_max: float = REAL_S_MAX,
) -> Result:
    """What `story` returns, run on a virtual clock; leaked tasks and unhandled loop errors raise Untidy."""
    return run_on(
        lambda: VirtualClockLoop(
            start_s=start_s, io_grace_s=io_grace_s, stuck_s_max=stuck_s_max, real_s_max=real_s_max
        ),
        story,
    )


class Untidy(AssertionError):
    """The story ended well, but left tasks running, or something failed where nobody looked."""


def run_on(make_loop: Callable[[], asyncio.AbstractEventLoop], story: Coroutine[Any, Any, Result]) -> Result:
    """What `story` returns, run on a loop from `make_loop` that is closed afterwards; see `run`."""
    complaints: list[str] = []
    with asyncio.Runner(loop_factory=make_loop) as runner:
        loop = runner.get_loop()
        loop.set_exception_handler(lambda _loop, context: complaints.append(_told(context)))
        try:
            result = runner.run(story)
        except Stuck as stuck:
            raise Stuck(f"{stuck}\n{_where_tasks_wait(loop)}") from None
        except BaseException as error:
            for complaint in complaints:
                error.add_note(complaint)
            raise
        leaked = runner.run(_tasks_that_stay())
        if leaked:
            complaints.extend(f"a task was left running: {task}" for task in leaked)
        # A task that failed unseen says so when it is collected; young cycles are all a test has made.
        gc.collect(1)
    if complaints:
        raise Untidy("\n".join(complaints))
    return result


async def _tasks_that_stay() -> list[str]:
    """The tasks still there after every callback that was due has had its turn, and what was sent has been heard: a
    handshake that was called off ends when its other side is told so."""
    for _ in range(10):
        await asyncio.sleep(0)
    for _ in range(PARTINGS_MAX):
        if len(asyncio.all_tasks()) == 1:
            break
        await asyncio.sleep(PARTING_S)
    return [_described(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]


def _described(task: asyncio.Task[Any]) -> str:
    frames = task.get_stack(limit=8)
    places = [f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}" for frame in frames]
    return "\n    ".join([task.get_name(), *places])


def _where_tasks_wait(loop: asyncio.AbstractEventLoop) -> str:
    return "\n".join(_described(task) for task in asyncio.all_tasks(loop))


def _told(context: dict[str, Any]) -> str:
    error = context.get("exception")
    return f"{context['message']}: {error!r}" if error is not None else str(context["message"])
