"""Single-flight: of calls that ask the same at the same time, one asks, and the others wait for its answer.

    first --> OWNER --answer-----------------> everybody gets a copy
                |---caller hangs up----------> the longest waiter is the owner now
                |---error, the first time----> the same: what broke for one need not break for another
                |---error again, a stream----> everybody asks alone
    too many waiters or keys, or no time left to wait ----> asks alone

An error is never handed on: it says what became of one attempt, and the waiters have made none. Nor is an answer that
tells of a moment (429, 5xx) or of who asked (401, 403).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Literal, Protocol

from understudy.policies.deadline import Deadline
from understudy.policies.service import Answer, Call, Service

ATTEMPTS_MAX = 2
"""Failures of one after another before the others stop waiting: each costs them an upstream's whole timeout."""
WAIT_S_MAX = 3600.0
SHARED_ERRORS = frozenset((400, 404, 405, 410, 413, 414, 415, 422))
"""Errors that lie in the request, which is the same for all."""

Turn = Literal["own", "alone"]


class CoalesceRules(Protocol):
    """What single-flight goes by (`Coalesce` of `proxy/settings` has all of it)."""

    @property
    def keys_max(self) -> int: ...
    @property
    def waiters_max(self) -> int: ...


class Flight:
    """One question under way, and who waits for its answer."""

    __slots__ = ("failures", "waiters")

    def __init__(self) -> None:
        self.failures = 0
        self.waiters: deque[asyncio.Future[Answer | Turn]] = deque()


class Flights:
    """The pure heart: questions under way by key, and who goes on with them. A waiter is what the shell wakes it by."""

    __slots__ = ("alone", "flights", "rules", "shared", "took_over")

    def __init__(self, rules: CoalesceRules) -> None:
        self.rules = rules
        self.flights: dict[bytes, Flight] = {}
        self.shared = 0
        self.took_over = 0
        self.alone = 0

    def begin(self, key: bytes) -> Flight | None:
        """A flight of one's own, or None where there are too many."""
        if len(self.flights) >= self.rules.keys_max:
            self.alone += 1
            return None
        flight = self.flights[key] = Flight()
        return flight

    def join(self, flight: Flight, waiter: asyncio.Future[Answer | Turn]) -> bool:
        """Wait with the others, unless they are too many."""
        if len(flight.waiters) >= self.rules.waiters_max:
            self.alone += 1
            return False
        flight.waiters.append(waiter)
        return True

    def left(self, key: bytes, flight: Flight) -> None:
        """The owner's caller is gone: the longest waiter goes on."""
        while flight.waiters:
            waiter = flight.waiters.popleft()
            if not waiter.done():
                self.took_over += 1
                waiter.set_result("own")
                return
        self._over(key, flight)

    def failed(self, key: bytes, flight: Flight) -> None:
        """The owner could not: one other tries for all; if that fails too, each tries alone."""
        flight.failures += 1
        if flight.failures < ATTEMPTS_MAX:
            self.left(key, flight)
        else:
            self.disperse(key, flight)

    def disperse(self, key: bytes, flight: Flight) -> None:
        """There is nothing to share: everybody asks alone."""
        self._over(key, flight)
        for waiter in flight.waiters:
            if not waiter.done():
                self.alone += 1
                waiter.set_result("alone")

    def landed(self, key: bytes, flight: Flight, answer: Answer) -> None:
        """Everybody gets a copy; cookies are for who asked."""
        self._over(key, flight)
        for waiter in flight.waiters:
            if not waiter.done():
                self.shared += 1
                waiter.set_result(_without_cookies(answer.copy()))

    def _over(self, key: bytes, flight: Flight) -> None:
        if self.flights.get(key) is flight:
            del self.flights[key]


def is_shareable(answer: Answer) -> bool:
    """Whether an answer would have been the same for everybody who asks the same."""
    return answer.stream is None and (answer.status < 400 or answer.status in SHARED_ERRORS)


def _without_cookies(answer: Answer) -> Answer:
    if b"set-cookie:" in answer.lines().lower():
        answer.headers = [header for header in answer.headers if header[0].lower() != b"set-cookie"]
    return answer


def coalesce(
    service: Service,
    heart: Flights,
    clocks: Deadline,
    *,
    clock: Callable[[], float],
    shareable: Callable[[Answer], bool] = is_shareable,
) -> Service:
    """Let calls with the same `key` share one answer of `service`, where that is `shareable`. Calls without one, and
    streams, go alone."""

    async def sharing(call: Call) -> Answer:
        key = call.key
        if not key or call.wants_stream:
            return await service(call)
        flight = heart.flights.get(key)
        if flight is None:
            flight = heart.begin(key)
            return await service(call) if flight is None else await _owned(service, heart, key, flight, call, shareable)
        turn = await _waited(heart, key, flight, clocks, call, clock)
        if isinstance(turn, Answer):
            return turn
        if turn == "own":
            return await _owned(service, heart, key, flight, call, shareable)
        return await service(call)

    return sharing


async def _owned(
    service: Service, heart: Flights, key: bytes, flight: Flight, call: Call, shareable: Callable[[Answer], bool]
) -> Answer:
    try:
        answer = await service(call)
    except Exception:
        heart.failed(key, flight)
        raise
    except BaseException:
        # only a cancellation comes here: the caller has hung up
        heart.left(key, flight)
        raise
    if not flight.waiters:
        heart.disperse(key, flight)
    elif shareable(answer):
        heart.landed(key, flight, answer)
    elif answer.stream is not None or answer.status < 400:
        heart.disperse(key, flight)
    else:
        heart.failed(key, flight)
    return answer


async def _waited(
    heart: Flights, key: bytes, flight: Flight, clocks: Deadline, call: Call, clock: Callable[[], float]
) -> Answer | Turn:
    """What became of waiting. Nobody waits so long that a later tier could no longer answer."""
    began = clock()
    wait_s = min(clocks.for_tier(began, call.deadline, last=False) - began, WAIT_S_MAX)
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[Answer | Turn] = loop.create_future()
    if wait_s <= 0 or not heart.join(flight, waiter):
        return "alone"
    timer = loop.call_later(wait_s, _give_up, heart, waiter)
    try:
        return await waiter
    except asyncio.CancelledError:
        if waiter.done() and not waiter.cancelled() and waiter.result() == "own":
            # it was made the owner in the moment its caller left
            heart.left(key, flight)
        raise
    finally:
        timer.cancel()
        # time spent waiting for an upstream is none that we added
        call.upstream_s += clock() - began


def _give_up(heart: Flights, waiter: asyncio.Future[Answer | Turn]) -> None:
    if not waiter.done():
        heart.alone += 1
        waiter.set_result("alone")
