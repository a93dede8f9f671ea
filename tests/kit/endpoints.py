"""Endpoints without sockets, each out in weather of its own, that answer in the dialect and echo whom and what.

    Spot(tier, "a", ...)(call)    a Service as a tier makes one: counts its attempts, keeps `until`, is judged

What is echoed (who asked, what, and of which version of the collection) lets whoever gets the answer check that it is
theirs. They wait by the proxy's own waiters, so that a caller may be stepped by hand, as callers of the door are.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.kit.weather import Fault, Weather
from understudy.policies.breaker import Breaker
from understudy.policies.service import Answer, Call, Failed, HeldStream, Refused, Sink, Stream
from understudy.proxy.dialects.base import Dialect
from understudy.proxy.http.stepping import Waiter
from understudy.proxy.settings.settings import UpstreamTier
from understudy.proxy.stack import EndpointParts
from understudy.proxy.tiers.judging import Judge, tier_judge

JSON_BLOCK = b"content-type: application/json\r\n"
PATIENCE_S = 3600.0
WAITS_S = 0.5 + 0.1 + 0.06
"""So long a call may wait between its breaker and its endpoint: for the quota and for a place, as they are by default,
and the moments between two looks at the breaker."""


async def rest(seconds: float) -> None:
    """Wait by the proxy's own waiter."""
    loop = asyncio.get_running_loop()
    waiter: Waiter[None] = Waiter(loop)
    timer = loop.call_later(seconds, waiter.tell, None)
    try:
        await waiter
    finally:
        timer.cancel()


class Base:
    """What the endpoints of a route have in common: the version of the collection that they all hold."""

    def __init__(self) -> None:
        self.version = 0


class Trickle(Stream):
    """A stream that says its pieces `gap_s` apart, and is cut after `cut_after` of them where that is told."""

    def __init__(self, pieces: list[bytes], gap_s: float, cut_after: int | None) -> None:
        super().__init__()
        self._pieces = pieces
        self._gap_s = gap_s
        self._cut_after = cut_after
        self._said = 0
        self._sink: Sink | None = None

    def relay(self, sink: Sink) -> None:
        self._sink = sink
        self._say()

    def _say(self) -> None:
        sink = self._sink
        if self.ended is not None or sink is None:
            return
        if self._said == self._cut_after:
            self.finish("cut")
            sink.cut("reset")
        elif self._said == len(self._pieces):
            self.finish("done")
            sink.end()
        else:
            self._said += 1
            sink.write(self._pieces[self._said - 1])
            asyncio.get_running_loop().call_later(self._gap_s, self._say)


def whom(call: Call) -> str:
    """Whose call it is, as the endpoint sees it."""
    return (call.request.header(b"authorization") or b"").decode()


def number_of(tenant: str, text: str) -> float:
    """The one number that a text of this tenant is embedded as."""
    return float(zlib.crc32(f"{tenant}/{text}".encode()))


def answer_for(call: Call, version: int | None, dice: random.Random, *, cut: bool = False) -> Answer:
    """A right answer that says whom and what it answers; `cut` where a stream is to break off."""
    body: dict[str, Any] = json.loads(call.request.body) if call.request.body else {}
    tenant = whom(call)
    if call.kind == "embed":
        given = body["input"]
        texts: list[str] = [given] if isinstance(given, str) else given
        data = [{"index": at, "embedding": [number_of(tenant, text), 1.0]} for at, text in enumerate(texts)]
        value: Any = {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}}
    elif call.kind == "retrieve":
        payload = {"tenant": tenant, "text": str(body["query"]), "version": version}
        value = {"result": {"points": [{"id": 1, "version": 1, "score": 0.9, "payload": payload}]}, "status": "ok"}
    elif call.kind == "generate":
        said = f"{tenant}|{body['messages'][-1]['content']}"
        if call.wants_stream:
            deltas: list[Any] = [{"role": "assistant"}, *({"content": part} for part in (said[:7], said[7:])), {}]
            ends = [None] * (len(deltas) - 1) + ["stop"]
            chunks = [
                {"choices": [{"index": 0, "delta": delta, "finish_reason": end}]}
                for delta, end in zip(deltas, ends, strict=True)
            ]
            pieces = [b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks] + [b"data: [DONE]\n\n"]
            stream = Trickle(pieces, dice.uniform(0, 0.2), dice.randrange(1, 4) if cut else None)
            return Answer(200, None, block=b"content-type: text/event-stream\r\n", stream=stream)
        message = {"role": "assistant", "content": said}
        value = {"model": "m", "created": 1, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    else:
        value = {"result": {"status": "completed"}, "status": "ok", "time": 0.001}
    return Answer(200, None, json.dumps(value).encode(), block=JSON_BLOCK)


class Spot:
    """One endpoint of a tier. `breaker` is whose word has to be kept, where it is known."""

    def __init__(
        self, tier: UpstreamTier, name: str, dialect: Dialect, weather: Weather, base: Base, *, quota_each: int = 0
    ) -> None:
        self.name = name
        self.tier = tier
        self.weather: Weather | None = weather
        self.attempts = 0
        self.ids_inside: Counter[str] = Counter()
        self.asked: set[str] = set()
        """The calls that have come here, by id; a hedge has its call's."""
        self.breaker: Breaker | None = None
        self._own: EndpointParts | None = None
        self.broken: list[str] = []
        self.opened_at = float("inf")
        self._dialect = dialect
        self._base = base
        self._quota_each = quota_each
        self._numbers = itertools.count(1)
        self._dice = random.Random(f"{weather.seed}/spot")
        self._judge: Judge = tier_judge(None, tier, dialect)
        self._probes: Counter[int] = Counter()

    async def __call__(self, call: Call) -> Answer:
        loop = asyncio.get_running_loop()
        began = loop.time()
        number = next(self._numbers)
        fault = self.weather.fault(number, began) if self.weather else Fault("fine")
        if fault.plight == "refused":
            raise Refused("pool", "no connection is free")
        call.attempts += 1
        self.attempts += 1
        self.asked.add(call.id)
        self.ids_inside[call.id] += 1
        generation = self._comes_in(began)
        try:
            return await self._played(call, fault, number, began)
        finally:
            call.upstream_s += loop.time() - began
            self.ids_inside -= Counter((call.id,))
            self._probes[generation] -= 1
            # the breaker hears of it in this same turn
            loop.call_soon(self.note)

    # --- that the breaker's word is kept ---------------------------------------------------------------------------

    def known_as(self, own: EndpointParts) -> None:
        """Whose breaker and places are before it."""
        self._own, self.breaker = own, own.breaker
        self.note()

    @property
    def inside(self) -> int:
        """Calls that it has now."""
        return self.ids_inside.total()

    @property
    def permits_lost(self) -> int:
        """Permits that are neither there, nor spent on an answer, nor with a call; as far as that can be told."""
        heart, own = self.breaker, self._own
        if heart is None or own is None or heart.state != "half-open" or heart.mode != "auto":
            return 0
        if not heart.rules.enabled:
            return 0
        if own.bulkhead.waiting or (own.quota is not None and own.quota.beliefs):
            # somebody who has one may be on the way
            return 0
        return heart.rules.permits - heart._permits_left - heart._answered - self._probes[heart.generation]

    def note(self) -> None:
        """Look at the breaker's state: since when it has been open."""
        if self.breaker is None or self.breaker.shown != "open" or not self.breaker.rules.enabled:
            self.opened_at = float("inf")
        elif self.opened_at == float("inf"):
            self.opened_at = asyncio.get_running_loop().time()

    def _comes_in(self, now: float) -> int:
        heart = self.breaker
        if heart is None or not heart.rules.enabled:
            return -1
        self.note()
        if now - self.opened_at > WAITS_S:
            self.broken.append(f"{self.name}: asked {now - self.opened_at:.2f} s after its breaker had opened")
        if heart.state != "half-open":
            return -1
        self._probes[heart.generation] += 1
        if self._probes[heart.generation] > heart.rules.permits:
            self.broken.append(f"{self.name}: {self._probes[heart.generation]} probes at once")
        return heart.generation

    # --- playing ---------------------------------------------------------------------------------------------------

    async def _played(self, call: Call, fault: Fault, number: int, began: float) -> Answer:
        takes_s = fault.wait_s + self._dice.expovariate(40.0)
        # what a read sees is what was there when it came, however long it takes
        version = self._base.version
        left_s = max(0.0, call.until - began)
        patience_s = min(left_s, self.tier.first_byte_s, PATIENCE_S)
        if fault.plight == "hangs" or takes_s > patience_s:
            await rest(patience_s)
            if patience_s >= left_s:
                raise Failed("deadline", "no answer in time", soft=True, again=False)
            raise self._heard(call, "first_byte_timeout")
        await rest(takes_s)
        if fault.plight == "failed":
            if number % 2:
                failed = Failed("connect_refused", "nobody is there")
                self._judge.heard(failed)
                raise failed
            raise self._heard(call, "reset")
        if fault.plight in ("status", "busy"):
            return self._judge.judged(call, self._error(fault, number), self._dialect)
        if fault.plight == "garbage":
            return self._judge.judged(call, Answer(200, None, b"<html>", block=JSON_BLOCK), self._dialect)
        if fault.plight == "cut" and not call.wants_stream:
            raise self._heard(call, "truncated")
        if call.kind == "pass":
            self._base.version += 1
        answer = answer_for(call, version, self._dice, cut=fault.plight == "cut")
        if self._quota_each and number % self._quota_each == 0:
            answer.block += b"x-ratelimit-remaining-requests: 0\r\nx-ratelimit-limit-requests: 60\r\n"
            answer.block += b"x-ratelimit-reset-requests: 40s\r\n"
        return answer

    def _heard(self, call: Call, reason: str) -> Failed:
        # as the upstream has it: what may have been carried out is not repeated unless that does no harm
        repeatable = call.kind != "pass" or call.request.method in (b"PUT", b"DELETE", b"GET")
        failed = Failed(reason, "the weather", again=repeatable, elsewhere=repeatable)
        self._judge.heard(failed)
        return failed

    def _error(self, fault: Fault, number: int) -> Answer:
        status = 429 if fault.plight == "busy" else fault.status
        answer = self._dialect.error(status, "weather", "the weather")
        headers = [header for header in answer.headers if header[0] != b"x-should-retry"]
        if status in (429, 503) and number % 2:
            headers.append((b"retry-after", b"%d" % self._dice.randrange(1, 5)))
        answer.headers = headers
        return answer


def local(dice: random.Random) -> Callable[[Call], Any]:
    """A local tier that always answers, some time within a twentieth of a second."""

    async def answered(call: Call) -> Answer:
        await rest(dice.uniform(0.001, 0.05))
        answer = answer_for(call, None, dice)
        if answer.stream is not None:
            answer.stream = HeldStream([b"data: {}\n\n", b"data: [DONE]\n\n"])
        return answer

    return answered
