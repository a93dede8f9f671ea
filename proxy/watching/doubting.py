"""Doubt a search that a primary answered in good order, and with nothing: is there nothing to be found?

    200, a long body ------------------------> the caller; nothing was looked at
    200, no point, or less than half of those asked for --> what does the copy find?
        nothing more --> it was so                                        the caller got the primary's answer
        more, and the copy is not behind --> silent degradation           and, with `answer`, gets the copy's instead

With `report` the caller is answered first, and the copy asked afterwards. A sampled share of searches finds out that a
database has grown worse; one that has lost a collection answers every one of them so, and need not be sampled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

from understudy.policies.chain import Link, signed
from understudy.policies.compare import Pair as Answers
from understudy.policies.drift import Kind, Stand, doubt, is_short
from understudy.policies.service import Answer, Call, Failed, Refused, Service
from understudy.policies.shadow import Mirror, Shadowing
from understudy.proxy.asks import RetrieveAsk
from understudy.proxy.dialects.base import BadRequest, Dialect
from understudy.proxy.watching.reading_answers import results_of

BODY_BYTES_MAX = 2048
"""A longer answer has points in it: 200 bytes each, and mostly more, with their payloads."""
FOUND_MAX = 5
"""So many points are few only to who asked for more than twice as many, which is not worth a look at the request."""
ANSWER_S = 0.5
"""As long as a caller who has an answer waits for a better one."""
ASK_S = 10.0


class Rules(NamedTuple):
    """What the asking goes by, as a shadow's does: a database that answers everything with nothing is soon known."""

    share: float = 1.0
    concurrent: int = 1
    queue: int = 8
    queue_bytes_max: int = 1024 * 1024
    deadline_s: float = ASK_S
    generate_tokens_per_hour_max: int = 0


class Teller(Protocol):
    """Who is told what came of it (`understudy.proxy.watching.watching.Watching`)."""

    def doubted(self, result: str, faults: Sequence[Kind] = ()) -> None: ...
    def stand(self, collection: str) -> Stand: ...


class Doubting:
    """One route's. `local` is the local tier, as a link of the route's chain."""

    def __init__(
        self,
        dialect: Dialect,
        mode: Literal["report", "answer"],
        local: Link,
        teller: Teller,
        clock: Callable[[], float],
    ) -> None:
        self._dialect = dialect
        self._mode = mode
        self._local = local
        self._teller = teller
        self._clock = clock
        self._heart = Mirror(Rules(), clock())
        self._shadowing = Shadowing(self._heart, self._asked, self._compared, clock)

    def around(self, service: Service) -> Service:
        """`service`, its short answers doubted."""

        async def doubting(call: Call) -> Answer:
            answer = await service(call)
            if len(answer.body) > BODY_BYTES_MAX or call.kind != "retrieve" or answer.tier != "primary":
                return answer
            ask = self._suspected(call, answer)
            if ask is None:
                return answer
            if self._mode == "answer":
                return await self._better(call, answer, ask)
            if self._heart.take(call, answer, self._clock()):
                # by way of the loop: the caller is answered first
                asyncio.get_running_loop().call_soon(self._shadowing.start)
            return answer

        return doubting

    def close(self) -> None:
        """Let go of what is being asked."""
        self._shadowing.close()

    def _suspected(self, call: Call, answer: Answer) -> RetrieveAsk | None:
        """What was asked for, where an answer has suspiciously few points for it."""
        if answer.status != 200 or answer.stream is not None:
            return None
        try:
            found = [len(ids) for ids in results_of(call, answer).rankings]
            if not found or min(found) >= FOUND_MAX:
                return None
            ask = self._dialect.ask(call)
        except (ValueError, BadRequest, Refused):
            return None
        if not isinstance(ask, RetrieveAsk) or ask.op not in ("search", "batch"):
            return None
        parts = ask.parts if ask.op == "batch" else (ask,)
        # a page behind the last one is short by right
        limits = [part.limit if not part.offset else 0 for part in parts]
        return ask if any(map(is_short, found, limits)) else None

    async def _asked(self, call: Call) -> Answer:
        if self._local.service is None:
            raise Refused("no_local_tier")
        return await self._local.service(call)

    def _compared(self, answers: Answers) -> None:
        other = answers.shadow
        if other is None or other.status != 200:
            self._teller.doubted("unanswered")
            return
        ask = self._suspected(answers.call, answers.live)
        if ask is not None:
            self._judged(answers.call, ask, answers.live, other)

    async def _better(self, call: Call, answer: Answer, ask: RetrieveAsk) -> Answer:
        """The copy's answer, where the primary's is found out; else the primary's."""
        fork = call.fork()
        fork.span = None
        fork.until = min(call.deadline, self._clock() + ANSWER_S)
        try:
            other = await self._asked(fork)
        except (Refused, Failed):
            self._teller.doubted("unanswered")
            return answer
        fault = self._judged(call, ask, answer, other) if other.status == 200 else None
        if fault is None:
            return answer
        call.note(answer.source or "primary", "failed", fault)
        return signed(other, self._local, call)

    def _judged(self, call: Call, ask: RetrieveAsk, live: Answer, other: Answer) -> Kind | None:
        stand = self._teller.stand(ask.collection)
        if stand.is_behind or stand.changed_at >= call.born:
            self._teller.doubted("moving")
            return None
        try:
            one, two = results_of(call, live).rankings, results_of(call, other).rankings
        except ValueError:
            self._teller.doubted("unreadable")
            return None
        faults: list[Kind] = [fault for a, b in zip(one, two, strict=False) if (fault := doubt(a, b)) is not None]
        self._teller.doubted("wrong" if faults else "well", tuple(dict.fromkeys(faults)))
        return faults[0] if faults else None
