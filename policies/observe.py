"""Count what becomes of a route's calls, in plain integers that an exporter reads when it is asked."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from math import inf

from understudy.policies.service import Answer, Call, Service

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets for whole calls, in seconds."""

OVERHEAD_SECONDS = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0)
"""Upper bounds of the buckets for what we ourselves add, in seconds."""


class Histogram:
    """Counts per bucket (not cumulative) with the last for everything beyond, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class RouteTally:
    """What became of a route's calls. `answers` counts by (rank of the tier, hundreds of the status); `late` those that
    took longer than `late_s`, which its objective allows."""

    __slots__ = (
        "answers",
        "in_flight",
        "late",
        "late_s",
        "left",
        "overhead",
        "seconds",
        "streams_broken",
        "unanswered",
    )

    def __init__(self) -> None:
        self.answers: dict[tuple[str, int], int] = {}
        self.unanswered: dict[str, int] = {}
        self.left = 0
        self.late = 0
        self.late_s = inf
        self.in_flight = 0
        self.streams_broken = 0
        self.seconds = Histogram(SECONDS)
        self.overhead = Histogram(OVERHEAD_SECONDS)

    def answered(self, call: Call, answer: Answer, now: float) -> None:
        """A call was answered, or its stream's first content is in hand."""
        key = (answer.tier, answer.status // 100)
        self.answers[key] = self.answers.get(key, 0) + 1
        took_s = now - call.born
        if took_s > self.late_s:
            self.late += 1
        self.seconds.add(took_s)
        self.overhead.add(max(0.0, took_s - call.upstream_s))

    def hit(self, status: int) -> None:
        """A call was answered from the cache before it became a call: in less time than the first buckets have."""
        key = ("cache", status // 100)
        self.answers[key] = self.answers.get(key, 0) + 1
        self.seconds.counts[0] += 1
        self.overhead.counts[0] += 1


def observe(service: Service, tally: RouteTally, *, clock: Callable[[], float]) -> Service:
    """Count each call of `service` in `tally`. Outermost, so that what the caller saw is what is counted."""

    async def observed(call: Call) -> Answer:
        tally.in_flight += 1
        try:
            answer = await service(call)
        except Exception as error:
            name = type(error).__name__.lower()
            tally.unanswered[name] = tally.unanswered.get(name, 0) + 1
            raise
        except BaseException:
            # only a cancellation comes here: the caller has hung up
            tally.left += 1
            raise
        finally:
            tally.in_flight -= 1
        tally.answered(call, answer, clock())
        return answer

    return observed
