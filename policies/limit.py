"""A bulkhead: so many calls at once, so many waiting, none for long; whoever finds no place goes to the next tier.

One slow upstream then holds its own places and no others (the bulkhead of Nygard's "Release It!").
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from understudy.policies.service import Answer, Call, End, Refused, Service


class LimitRules(Protocol):
    """What a limit goes by (`understudy.proxy.settings.Limit` has all of it)."""

    @property
    def concurrent(self) -> int: ...
    @property
    def queue(self) -> int: ...
    @property
    def wait_s_max(self) -> float: ...


class Bulkhead:
    """The pure heart: who is in, and who waits, in order of coming. A waiter is whatever the shell wakes it by."""

    __slots__ = ("in_flight", "refused", "rules", "waiting")

    def __init__(self, rules: LimitRules) -> None:
        self.rules = rules
        self.in_flight = 0
        self.refused = 0
        self.waiting: deque[asyncio.Future[bool]] = deque()

    def enter(self) -> bool:
        """Take a place if one is free and nobody waits for it."""
        if self.in_flight < self.rules.concurrent and not self.waiting:
            self.in_flight += 1
            return True
        return False

    def leave(self) -> None:
        """Give the place back: to the longest waiter, if there is one and the limit (perhaps lowered) allows."""
        while self.waiting and self.in_flight <= self.rules.concurrent:
            waiter = self.waiting.popleft()
            if not waiter.done():
                waiter.set_result(True)
                return
        self.in_flight -= 1


def limit(service: Service, heart: Bulkhead, *, clock: Callable[[], float]) -> Service:
    """Let no more calls into `service` at once than `heart` has places for."""

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

    return bounded


async def _wait_for_place(heart: Bulkhead, call: Call, clock: Callable[[], float]) -> None:
    wait_s = min(heart.rules.wait_s_max, call.until - clock())
    if wait_s <= 0 or len(heart.waiting) >= heart.rules.queue:
        heart.refused += 1
        raise Refused("limit", f"{heart.in_flight} calls in flight, {len(heart.waiting)} waiting")
    loop = asyncio.get_running_loop()
    place: asyncio.Future[bool] = loop.create_future()
    heart.waiting.append(place)
    timer = loop.call_later(wait_s, _give_up, place)
    try:
        granted = await place
    except asyncio.CancelledError:
        if place.done() and not place.cancelled() and place.result():
            # the place was given in the moment the caller left
            heart.leave()
        raise
    finally:
        timer.cancel()
    if not granted:
        heart.refused += 1
        raise Refused("limit", f"no place became free within {wait_s:.3f} s")


def _give_up(place: asyncio.Future[bool]) -> None:
    if not place.done():
        place.set_result(False)
