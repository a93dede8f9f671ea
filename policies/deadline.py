"""Give every call a moment by which it must be answered, and keep some of that time for the tiers to come.

The deadline is not a timer: it is two moments on the call (`deadline`, `until`), and whoever waits, waits no longer
than `until`. So a call costs one timer, set where it really waits, and not one for every layer that could.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from understudy.policies.service import Answer, Call, Headers, Request, Service

CALLER_PATIENCE_HEADERS = frozenset((b"x-understudy-deadline", b"x-stainless-read-timeout", b"x-request-timeout"))
"""Where callers say how long they will wait, in seconds: ours, the OpenAI and Anthropic SDKs', and a common one."""

_LENGTHS = frozenset(map(len, CALLER_PATIENCE_HEADERS))
HEADROOM = 0.9
"""We answer before the caller's own clock runs out, so that our answer wins the race."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """How long a call may take in all, and how much of it is kept back for the tiers after the one being asked."""

    total_s: float
    reserve_s: float

    def for_call(self, born: float, patience_s: float | None) -> float:
        """The moment by which the call must be answered."""
        if patience_s is None:
            return born + self.total_s
        return born + min(self.total_s, patience_s * HEADROOM)

    def for_tier(self, now: float, deadline: float, *, last: bool) -> float:
        """The moment by which a tier must answer. Never more than half of what is left is kept back: with little
        time, trying the better tier is still worth as much as being sure of the other."""
        if last:
            return deadline
        return deadline - min(self.reserve_s, (deadline - now) / 2)


def caller_patience_s(headers: Headers) -> float | None:
    """How long the caller says it will wait, in seconds, or None. What can't be read is not believed."""
    found: float | None = None
    for key, value in headers:
        if len(key) in _LENGTHS and key.lower() in CALLER_PATIENCE_HEADERS:
            try:
                patience_s = float(value)
            except ValueError:
                continue
            if patience_s > 0 and (found is None or patience_s < found):
                found = patience_s
    return found


def _patience_s(request: Request) -> float | None:
    remembered = request.remembered
    if remembered is None:
        return caller_patience_s(request.headers)
    if caller_patience_s not in remembered:
        remembered[caller_patience_s] = caller_patience_s(request.headers)
    return cast("float | None", remembered[caller_patience_s])


def deadline(service: Service, heart: Deadline) -> Service:
    """Write the deadline on each call."""

    async def punctual(call: Call) -> Answer:
        call.deadline = call.until = heart.for_call(call.born, _patience_s(call.request))
        return await service(call)

    return punctual
