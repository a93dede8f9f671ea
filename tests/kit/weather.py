"""Seeded weather for Services: faults drawn from a seed, so that a run which fails can be had again.

    seed --> fair | storm | rough | fair ...         spells, each with its own odds
                      ^
                      +-- the n-th call, made now --> its Fault, drawn from (seed, n) by the odds of the spell

A schedule depends on nothing but the seed, the number of the call and the time it was made at: on a virtual clock the
same seed is the same run. `Outages` is the other kind of weather: named endpoints die and return at given times.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from understudy.policies.service import Answer, Call, Failed, Kind, Refused, Request, Service

Clock = Callable[[], float]
Plight = Literal["fine", "slow", "failed", "refused", "hangs", "status", "busy", "garbage", "cut"]

STATUSES = (400, 401, 404, 422, 429, 500, 502, 503, 504)
HANG_S_MAX = 3600.0
"""A call without a deadline hangs this long, so that a story ends."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls one call: after `wait_s` it is answered as usual, fails, is refused, or gets this status."""

    plight: Plight
    wait_s: float = 0.0
    status: int = 200


@dataclass(frozen=True, slots=True)
class Spell:
    """A stretch of weather of one kind, until a time; `odds` are the shares of each plight, the rest is fine."""

    until: float
    name: str
    odds: Mapping[Plight, float]


KINDS: tuple[tuple[str, float, Mapping[Plight, float]], ...] = (
    ("fair", 120.0, {"slow": 0.05, "failed": 0.01, "status": 0.01}),
    ("rough", 60.0, {"slow": 0.25, "failed": 0.15, "refused": 0.05, "status": 0.15, "hangs": 0.05}),
    ("storm", 30.0, {"failed": 0.5, "refused": 0.1, "status": 0.15, "hangs": 0.2}),
)
"""The kinds of spell: name, mean length in seconds, odds."""

SKIES: tuple[tuple[str, float, Mapping[Plight, float]], ...] = (
    ("fair", 40.0, {"slow": 0.01, "failed": 0.005, "status": 0.01}),
    ("fair", 40.0, {}),
    ("outage", 15.0, {"failed": 1.0}),
    ("black hole", 10.0, {"hangs": 1.0}),
    ("slow", 15.0, {"slow": 0.9}),
    ("brown-out", 15.0, {"failed": 0.25, "status": 0.15, "hangs": 0.1}),
    ("throttled", 15.0, {"busy": 0.8}),
    ("garbage", 10.0, {"garbage": 0.4, "cut": 0.4}),
    ("restarting", 5.0, {"refused": 0.3, "failed": 0.3, "cut": 0.2}),
)
"""What endpoints of whole routes are out in: each way of being unwell has spells of its own."""


class Weather:
    """A deterministic schedule of faults. `slow_s_max` bounds how slow a slow answer is."""

    def __init__(
        self,
        seed: int | str,
        *,
        began: float = 0.0,
        slow_s_max: float = 5.0,
        kinds: Sequence[tuple[str, float, Mapping[Plight, float]]] = KINDS,
    ) -> None:
        self.seed = seed
        self._kinds = kinds
        self._slow_s_max = slow_s_max
        self._dice = random.Random(f"{seed}/spells")
        self._spells = [Spell(began, "before", {})]
        self._untils = [began]

    def spell(self, now: float) -> Spell:
        """The spell at `now`; spells are drawn as far as anybody has asked."""
        while self._spells[-1].until <= now:
            name, mean_s, odds = self._dice.choice(self._kinds)
            length_s = self._dice.expovariate(1 / mean_s)
            self._spells.append(Spell(self._spells[-1].until + length_s, name, odds))
            self._untils.append(self._spells[-1].until)
        return self._spells[bisect_right(self._untils, now)]

    def fault(self, number: int, now: float) -> Fault:
        """What befalls the call with this number, made at `now`."""
        dice = random.Random(f"{self.seed}/{number}")
        luck = dice.random()
        for plight, share in self.spell(now).odds.items():
            if luck < share:
                wait_s = dice.uniform(0, self._slow_s_max) if plight == "slow" else dice.uniform(0, 0.2)
                return Fault(plight, wait_s, dice.choice(STATUSES) if plight == "status" else 200)
            luck -= share
        return Fault("fine")


def weathered(service: Service, weather: Weather, clock: Clock) -> Service:
    """`service`, out in the weather: a hung call fails at its own `until`, as a call cut off by its deadline does."""
    numbers = itertools.count(1)

    async def exposed(call: Call) -> Answer:
        fault = weather.fault(next(numbers), clock())
        if fault.plight == "hangs":
            await asyncio.sleep(min(max(call.until - clock(), 0.0), HANG_S_MAX))
            raise Failed("timeout", "the weather hung this call")
        left_s = call.until - clock()
        if fault.wait_s > left_s:
            await asyncio.sleep(max(left_s, 0.0))
            raise Failed("deadline", "the weather was slower than there was time", soft=True)
        await asyncio.sleep(fault.wait_s)
        if fault.plight == "failed":
            raise Failed("connect", "the weather broke this call")
        if fault.plight == "refused":
            raise Refused("weather", "the weather refused this call")
        if fault.plight == "status":
            return _with_status(fault.status)
        return await service(call)

    return exposed


def _with_status(status: int) -> Answer:
    """What an upstream tier makes of a status: the caller's own faults are answers, the others are failures."""
    body = json.dumps({"error": {"message": f"weather: {status}"}}).encode()
    headers = [(b"content-type", b"application/json")]
    answer = Answer(status, headers, body)
    if status == 429:
        raise Failed("429", answer=answer, retry_after_s=1.0)
    if status >= 500:
        raise Failed(f"{status // 100}xx", answer=answer)
    return answer


class Outages:
    """When each named endpoint is dead: name -> [(dies at, returns at)], seconds on the caller's clock."""

    def __init__(self, schedule: Mapping[str, Sequence[tuple[float, float]]]) -> None:
        self.schedule = {name: sorted(spans) for name, spans in schedule.items()}

    @classmethod
    def drawn(
        cls, seed: int | str, names: Sequence[str], *, began: float, length_s: float, up_s: float, down_s: float
    ) -> Outages:
        """Outages drawn from a seed, with these mean times between and within them."""
        schedule: dict[str, list[tuple[float, float]]] = {}
        for name in names:
            dice = random.Random(f"{seed}/{name}")
            spans = schedule[name] = []
            at = began + dice.expovariate(1 / up_s)
            while at < began + length_s:
                back = at + dice.expovariate(1 / down_s)
                spans.append((at, back))
                at = back + dice.expovariate(1 / up_s)
        return cls(schedule)

    def down(self, name: str, now: float) -> bool:
        """Whether `name` is dead at `now`."""
        return any(dies <= now < back for dies, back in self.schedule.get(name, ()))

    def died_between(self, name: str, since: float, now: float) -> bool:
        """Whether `name` died after `since` and no later than `now`: what it was doing is lost."""
        return any(since < dies <= now for dies, _ in self.schedule.get(name, ()))

    def mortal(self, name: str, service: Service, clock: Clock) -> Service:
        """`service` as it is under the name `name`: dead at its times, and what it was doing dies with it."""

        async def living(call: Call) -> Answer:
            began = clock()
            if self.down(name, began):
                raise Failed("connect", f"{name} is down")
            answer = await service(call)
            if self.died_between(name, began, clock()):
                raise Failed("reset", f"{name} died in the middle")
            return answer

        return living


def calls(n: int, seed: int | str, rate: float, *, began: float = 0.0) -> Iterator[tuple[float, Call]]:
    """`n` calls of mixed kinds arriving at `rate` a second on average (Poisson): (when it arrives, the call)."""
    dice = random.Random(f"{seed}/calls")
    now = began
    for number in range(n):
        now += dice.expovariate(rate)
        kind = dice.choices(("embed", "retrieve", "generate"), (3, 3, 4))[0]
        yield now, call_of(kind, f"question {dice.randrange(1000)}", born=now, id=f"call-{number}")


TARGETS: Mapping[Kind, bytes] = {
    "embed": b"/v1/embeddings",
    "retrieve": b"/collections/knowledge/points/query",
    "generate": b"/v1/chat/completions",
    "pass": b"/",
}


def call_of(kind: Kind, text: str, *, born: float = 0.0, id: str = "") -> Call:
    """One call of this kind about `text`, as an application would make it."""
    body = {
        "embed": {"model": "text-embedding-3-small", "input": text},
        "retrieve": {"query": [0.1, 0.2, 0.3], "limit": 5},
        "generate": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}]},
        "pass": {"text": text},
    }[kind]
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    request = Request(b"POST", TARGETS[kind], headers, json.dumps(body).encode())
    dialect = {"embed": "openai-embeddings", "retrieve": "qdrant", "generate": "openai-chat", "pass": "plain"}[kind]
    return Call(kind, request, dialect=dialect, route=kind, born=born, id=id)
