"""What is noted of a call whose trace is recorded: ids, times, who answered, and nothing that was said."""

from __future__ import annotations

from typing import NamedTuple

from understudy.policies.service import End
from understudy.policies.usage import Usage

ANSWERS_MAX = 8
"""Answers of upstreams whose tokens one span tells together: retries and hedges are bounded below it."""


class Parent(NamedTuple):
    """What a caller's `traceparent` says: the trace's id and its span's in hexadecimal, and whether it is recorded."""

    trace_id: str
    span_id: str
    is_sampled: bool
    state: str = ""


class Told(NamedTuple):
    """What an upstream told of one answer, at its end."""

    usage: Usage
    finish: str = ""
    response_id: str = ""


class Span:
    """The note of one call. Times are seconds: `began` since the epoch, `first_s` and `took_s` from then on.

    `error` is a word, `end` how a stream ended; `steps` who was asked in vain: tier, outcome and reason.
    """

    __slots__ = (
        "answers",
        "asked",
        "attempts",
        "began",
        "built_on",
        "call_id",
        "dialect",
        "end",
        "error",
        "faults",
        "first_s",
        "kind",
        "method",
        "parent",
        "question",
        "reason",
        "route",
        "source",
        "span_id",
        "status",
        "steps",
        "target",
        "tier",
        "took_s",
        "trace_id",
        "upstream_s",
        "wants_stream",
    )

    def __init__(self, trace_id: str, span_id: str, parent: Parent | None) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent = parent
        self.began = self.took_s = self.upstream_s = 0.0
        self.first_s: float | None = None
        self.kind = self.route = self.dialect = self.call_id = ""
        self.method = self.target = self.asked = b""
        self.wants_stream = False
        self.attempts = self.status = 0
        self.tier = self.source = self.reason = self.error = self.question = self.built_on = ""
        self.end: End = "done"
        self.faults: tuple[str, ...] = ()
        self.steps: list[tuple[str, str, str]] = []
        self.answers: list[Told] = []

    def tell(self, told: Told) -> None:
        """An upstream's answer to this call has been counted."""
        if len(self.answers) < ANSWERS_MAX:
            self.answers.append(told)
