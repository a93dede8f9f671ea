"""Give every call a moment by which it must be answered, and keep some of that time for the tiers to come.

The deadline is not a timer: it is two moments on the call (`deadline`, `until`), and whoever waits, waits no longer
than `until`. So a call costs one timer, set where it really waits, and not one for every layer that could.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from understudy.policies.questions import Questions
from understudy.policies.service import Answer, Call, Headers, Request, Service

HEADROOM = 0.9
"""We answer before the caller's own clock runs out, so that our answer wins the race."""

_SECONDS = re.compile(rb"(?:\d{1,12}(?:\.\d{1,9})?|\.\d{1,9})(?:e[+-]?\d{1,2})?|inf", re.IGNORECASE)
_DURATION = re.compile(rb"(\d{1,12}(?:\.\d{1,9})?) ?(ms|s|m|h)?", re.IGNORECASE)
_DURATION_UNITS_S = {b"": 1.0, b"ms": 0.001, b"s": 1.0, b"m": 60.0, b"h": 3600.0}
_GRPC = re.compile(rb"(\d{1,8})([HMSmun])")
_GRPC_UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def _duration(value: bytes) -> float | None:
    """`2.5`, `2.5s`, `1500ms`, `1m`: seconds where no unit is given."""
    if _SECONDS.fullmatch(value):
        return float(value)
    found = _DURATION.fullmatch(value)
    return float(found[1]) * _DURATION_UNITS_S[(found[2] or b"").lower()] if found else None


def _milliseconds(value: bytes) -> float | None:
    return float(value) / 1000.0 if _SECONDS.fullmatch(value) else None


def _grpc(value: bytes) -> float | None:
    """At most eight digits and a unit, as gRPC over HTTP/2 writes `Timeout`."""
    found = _GRPC.fullmatch(value)
    return int(found[1]) * _GRPC_UNITS_S[found[2]] if found else None


CALLER_PATIENCE_HEADERS: dict[bytes, Callable[[bytes], float | None]] = {
    b"x-understudy-deadline": _duration,
    b"x-stainless-read-timeout": _duration,
    b"x-stainless-timeout": _duration,
    b"x-request-timeout": _duration,
    b"grpc-timeout": _grpc,
    b"x-envoy-expected-rq-timeout-ms": _milliseconds,
}
"""Where callers say how long they will wait, and how it is read: ours, the OpenAI and Anthropic SDKs' (spelt
differently in different languages), a common one, gRPC's, and what an Envoy before us tells."""

_LENGTHS = frozenset(map(len, CALLER_PATIENCE_HEADERS))


@dataclass(frozen=True, slots=True)
class Deadline:
    """How long a call may take in all, and how much of it is kept back for the tiers after the one being asked."""

    total_s: float
    reserve_s: float

    def for_call(self, born: float, patience_s: float | None, longer_s: float = 0.0) -> float:
        """The moment by which the call must be answered; `longer_s` is how long some tier may take to begin."""
        total_s = max(self.total_s, longer_s + self.reserve_s) if longer_s else self.total_s
        if patience_s is None:
            return born + total_s
        return born + min(total_s, patience_s * HEADROOM)

    def for_tier(self, now: float, deadline: float, *, last: bool, fallback_s: float = 0.0) -> float:
        """The moment by which a tier must answer.

        `fallback_s` is what the last tier needs in 95 of 100 cases, as far as that is known: where it is more than
        `reserve_s`, so much is kept back. Never more than half of what is left is: with little time, trying the better
        tier is still worth as much as being sure of the other.
        """
        if last:
            return deadline
        return deadline - min(max(self.reserve_s, fallback_s), (deadline - now) / 2)


def caller_patience_s(headers: Headers) -> float | None:
    """How long the caller says it will wait, in seconds, or None. What can't be read is not believed."""
    found: float | None = None
    for key, value in headers:
        if len(key) in _LENGTHS:
            read = CALLER_PATIENCE_HEADERS.get(key.lower())
            patience_s = read(value.strip()) if read is not None else None
            if patience_s is not None and patience_s > 0 and (found is None or patience_s < found):
                found = patience_s
    return found


def _patience_s(request: Request) -> float | None:
    remembered = request.remembered
    if remembered is None:
        return caller_patience_s(request.headers)
    if caller_patience_s not in remembered:
        remembered[caller_patience_s] = caller_patience_s(request.headers)
    return remembered[caller_patience_s]


class Story(Protocol):
    """What calls of one question have to do with each other (`understudy.proxy.questions.Story`)."""

    @property
    def questions(self) -> Questions: ...
    def join(self, call: Call) -> None: ...
    def told(self, call: Call, answer: Answer) -> Answer: ...


def deadline(
    service: Service,
    heart: Deadline,
    longer_s: Callable[[bytes], float] | None = None,
    story: Story | None = None,
) -> Service:
    """Write the deadline on each call. `longer_s` says how long what a body asks may take to begin, in seconds, where
    that depends on what is asked; `story` has calls of one question share it, and say what they are built on."""
    if story is not None:
        return _in_a_story(service, heart, longer_s, story)

    async def punctual(call: Call) -> Answer:
        longest_s = 0.0 if longer_s is None else longer_s(call.request.body)
        call.deadline = call.until = heart.for_call(call.born, _patience_s(call.request), longest_s)
        return await service(call)

    return punctual


def _in_a_story(service: Service, heart: Deadline, longer_s: Callable[[bytes], float] | None, story: Story) -> Service:
    questions = story.questions

    async def punctual(call: Call) -> Answer:
        longest_s = 0.0 if longer_s is None else longer_s(call.request.body)
        call.deadline = call.until = heart.for_call(call.born, _patience_s(call.request), longest_s)
        if questions.armed:
            story.join(call)
        answer = await service(call)
        # who was answered by a primary while all is well has no story: 40 ns
        return story.told(call, answer) if answer.reason or questions.armed else answer

    return punctual
