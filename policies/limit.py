"""A bulkhead: so many calls at once, so many waiting, none for long; whoever finds no place goes to the next tier.

One slow upstream then holds its own places and no others (the bulkhead of Nygard's "Release It!"). How many places
there are is written down, or learnt (`understudy.policies.adaptive`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Literal, Protocol

from understudy.policies.adaptive import UNBOUND, Learner, Signal, learner
from understudy.policies.service import Answer, Call, End, Failed, Refused, Service


class LimitRules(Protocol):
    """What a limit goes by (`Limit` of `proxy/settings` has all of it)."""

    @property
    def concurrent(self) -> int | Literal["adaptive"]: ...
    @property
    def concurrent_min(self) -> int: ...
    @property
    def concurrent_max(self) -> int: ...
    @property
    def queue(self) -> int: ...
    @property
    def wait_s_max(self) -> float: ...


class Bulkhead:
    """The pure heart: who is in, and who waits, in order of coming. A waiter is whatever the shell wakes it by.

    `learns` says what an adaptive limit learns from; without it, `adaptive` means `concurrent_max` places. `patience_s`
    is how long the endpoint is waited for at most.
    """

    __slots__ = ("_fixed", "_patience_s", "_rules", "in_flight", "learner", "learns", "refused", "waiting")

    def __init__(self, rules: LimitRules, learns: Signal | None = None, patience_s: float = UNBOUND) -> None:
        self.learns: Signal | None = learns
        self._patience_s = patience_s
        self.learner: Learner | None = None
        self.in_flight = 0
        self.refused = 0
        self.waiting: deque[asyncio.Future[bool]] = deque()
        self.rules = rules

    @property
    def rules(self) -> LimitRules:
        """What it goes by; what was learnt is kept when other bounds are set."""
        return self._rules

    @rules.setter
    def rules(self, rules: LimitRules) -> None:
        self._rules = rules
        adaptive = rules.concurrent == "adaptive"
        self._fixed = rules.concurrent_max if rules.concurrent == "adaptive" else rules.concurrent
        if not adaptive or self.learns is None:
            self.learner = None
        elif self.learner is None:
            self.learner = learner(self.learns, rules, self._patience_s)
        else:
            self.learner.obey(rules)

    def endures(self, patience_s: float) -> None:
        """The endpoint is waited for so long from now on."""
        self._patience_s = patience_s
        if self.learner is not None:
            self.learner.patience_s = patience_s

    @property
    def places(self) -> int:
        """How many calls may be in at once, now."""
        return self._fixed if self.learner is None else self.learner.places

    def enter(self) -> bool:
        """Take a place if one is free and nobody waits for it."""
        # written out, not `self.places`: this is on every call's way
        learner = self.learner
        if self.in_flight < (self._fixed if learner is None else learner.places) and not self.waiting:
            self.in_flight += 1
            return True
        return False

    def leave(self) -> None:
        """Give the place back: to the longest waiter, if there is one and the limit (perhaps lowered) allows."""
        self.in_flight -= 1
        if self.waiting:
            places = self.places
            while self.waiting and self.in_flight < places:
                waiter = self.waiting.popleft()
                if not waiter.done():
                    self.in_flight += 1
                    waiter.set_result(True)


def limit(service: Service, heart: Bulkhead, *, clock: Callable[[], float]) -> Service:
    """Let no more calls into `service` at once than `heart` has places for, and have it learn where it does."""

    def release(_end: End) -> None:
        heart.leave()

    async def bounded(call: Call) -> Answer:
        if not heart.enter():
            await _wait_for_place(heart, call, clock)
        try:
            answer = await service(call)
        except BaseException:
            heart.leave()
            raise
        if answer.stream is None:
            heart.leave()
        else:
            answer.stream.watch(release)
        return answer

    student = heart.learner
    if student is None:
        return bounded

    def release_stream(_end: End) -> None:
        student.streams -= 1
        heart.leave()

    async def learning(call: Call) -> Answer:
        if not heart.enter():
            await _wait_for_place(heart, call, clock)
        began = clock()
        try:
            answer = await service(call)
        except Failed as failed:
            now = clock()
            student.failed(now, now - began, heart.in_flight, failed)
            heart.leave()
            raise
        except BaseException:
            # refused further in, hung up, or our own bug: nothing was learnt of the upstream
            heart.leave()
            raise
        now = clock()
        student.answered(now, now - began, heart.in_flight, call)
        if answer.stream is None:
            heart.leave()
        else:
            student.streams += 1
            answer.stream.watch(release_stream)
        return answer

    return learning


async def _wait_for_place(heart: Bulkhead, call: Call, clock: Callable[[], float]) -> None:
    now = clock()
    if heart.learner is not None:
        heart.learner.relax(now)
        if heart.enter():
            return
    wait_s = min(heart.rules.wait_s_max, call.until - now)
    if wait_s <= 0 or len(heart.waiting) >= heart.rules.queue:
        heart.refused += 1
        raise Refused("limit", f"{heart.in_flight} calls in flight, {len(heart.waiting)} waiting")
    loop = asyncio.get_running_loop()
    place: asyncio.Future[bool] = loop.create_future()
    heart.waiting.append(place)
    timer = loop.call_later(wait_s, _give_up, heart, place)
    try:
        granted = await place
    except asyncio.CancelledError:
        if place.done() and not place.cancelled() and place.result():
            # the place was given in the moment the caller left
            heart.leave()
        else:
            _forget(heart, place)
        raise
    finally:
        timer.cancel()
    if not granted:
        heart.refused += 1
        raise Refused("limit", f"no place became free within {wait_s:.3f} s")


def _give_up(heart: Bulkhead, place: asyncio.Future[bool]) -> None:
    if not place.done():
        place.set_result(False)
        _forget(heart, place)


def _forget(heart: Bulkhead, place: asyncio.Future[bool]) -> None:
    # who has waited longest gives up first, so that it stands near the front
    if place in heart.waiting:
        heart.waiting.remove(place)
