"""When the process can't keep up, answer the calls that matter least with a quick 503, and never the critical ones.

    calm --- lag above target for a whole interval ---> low calls are shed
     ^                                                       |  still above: more and more normal ones, too
     +---- pressure back at 0 <-- a step down for each <-----+
                                  interval below half of the target

What is measured is the lag of the event loop: how late a timer comes that was due. As in CoDel (RFC 8289) the least
lag of an interval counts: one long pause is a pause, and only a lag that never goes away is a queue.

While all is calm nothing of this stands in a call's way: the guarded services are put in place when it begins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from understudy.policies.service import Answer, Call, Refused, Request, Service

Priority = Literal["critical", "normal", "low"]
PRIORITY_HEADER = b"x-understudy-priority"
PRIORITIES: dict[bytes, Priority] = {b"critical": "critical", b"normal": "normal", b"low": "low"}

STEP = 0.2
PRESSURE_MAX = 1.9
"""At 1 all low calls are shed, at 2 all normal ones would be: a tenth of them always passes, and shows how it goes."""
RETRY_AFTER_S = 2.0


class ShedRules(Protocol):
    """What shedding goes by (`Shed` of `proxy/settings` has all of it)."""

    @property
    def enabled(self) -> bool: ...
    @property
    def lag_s(self) -> float: ...
    @property
    def interval_s(self) -> float: ...


class Shedder:
    """The pure heart: told of each lag, it says how hard to shed. One for the process, since its loop is one."""

    __slots__ = ("_least_s", "_looks", "_until", "began", "lag_s", "pressure", "rules")

    def __init__(self, rules: ShedRules) -> None:
        self.rules = rules
        self.pressure = 0.0
        self.lag_s = 0.0
        self.began = 0
        self._least_s = float("inf")
        self._looks = 0
        self._until = 0.0

    def lagged(self, now: float, lag_s: float) -> bool:
        """The loop was so late; whether the pressure has changed by it."""
        self.lag_s = lag_s
        if lag_s < self._least_s:
            self._least_s = lag_s
        self._looks += 1
        self._until = self._until or now + self.rules.interval_s
        # twice at least, so that no single pause is taken for a queue
        if now < self._until or self._looks < 2:
            return False
        before = self.pressure
        if self.rules.enabled:
            self._weigh(self._least_s)
        else:
            self.pressure = 0.0
        self._least_s = float("inf")
        self._looks = 0
        self._until = now + self.rules.interval_s
        return self.pressure != before

    def _weigh(self, least_s: float) -> None:
        if least_s > self.rules.lag_s:
            self.began += self.pressure == 0.0
            self.pressure = min(max(1.0, self.pressure + STEP), PRESSURE_MAX)
        elif least_s < self.rules.lag_s / 2:
            self.pressure = max(0.0, round(self.pressure - STEP, 6))

    def sheds(self, priority: Priority, luck: float) -> bool:
        """Whether a call of this priority is to go; `luck` is uniform in [0, 1)."""
        if priority == "low":
            return luck < self.pressure
        return priority == "normal" and luck < self.pressure - 1.0


def priority_of(request: Request, otherwise: Priority) -> Priority:
    """What the caller says of its call, or its route's."""
    told = request.header(PRIORITY_HEADER)
    return otherwise if told is None else PRIORITIES.get(told.strip().lower(), otherwise)


def shed(
    service: Service, heart: Shedder, priority: Priority, shed_calls: dict[Priority, int], *, dice: Callable[[], float]
) -> Service:
    """Refuse what `heart` sheds, counted in `shed_calls`. Stands in the stack only while there is pressure."""

    async def relieved(call: Call) -> Answer:
        own = priority_of(call.request, priority)
        if heart.sheds(own, dice()):
            shed_calls[own] = shed_calls.get(own, 0) + 1
            raise Refused(
                "shed", f"the sidecar is overloaded, and this call's priority is {own}", retry_after_s=RETRY_AFTER_S
            )
        return await service(call)

    return relieved
