"""Ask another arm what it would have answered, after the caller has its answer, and hand the pair to who compares.

    call --> service --> answer --> caller
                            |
                            +-- sampled --> [queue] --> other arm --> Pair(call, answer, shadow) --> compare

Only reads are mirrored. The caller never waits: what finds no place in the queue is dropped and counted. The other arm
is asked through policies of its own, so that nothing live learns from it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

from understudy.policies.compare import Compare, Pair
from understudy.policies.observe import SECONDS, Histogram
from understudy.policies.service import Answer, Call, Failed, Refused, Request, Service

SHADOW_HEADER = (b"x-understudy-shadow", b"1")
BYTES_PER_TOKEN = 4
HOUR_S = 3600.0
OVERDUE_S = 1.0
"""How far past its deadline a shadow is interrupted wherever it waits: a backstop, since tiers keep `until`."""

Fate = Literal["answered", "failed", "refused", "queue", "cost", "streamed", "fallback", "error"]
"""What became of a sampled call: asked (answered, failed, refused, error), or not, and why."""


class ShadowRules(Protocol):
    """What a shadow goes by (`Shadow` of `proxy/settings` has all of it)."""

    @property
    def share(self) -> float: ...
    @property
    def concurrent(self) -> int: ...
    @property
    def queue(self) -> int: ...
    @property
    def queue_bytes_max(self) -> int: ...
    @property
    def deadline_s(self) -> float: ...
    @property
    def generate_tokens_per_hour_max(self) -> int: ...


class Waiting(NamedTuple):
    """A call whose caller has been answered, and that answer."""

    call: Call
    live: Answer
    size_bytes: int


class Mirror:
    """The pure heart: who is sampled, who may wait, and what LLM calls may still cost.

    `share` is a plain value that may be changed at any time. What LLM calls may cost is a bucket of tokens that fills
    up within an hour; a token is taken for four bytes of either body.
    """

    __slots__ = ("_filled_at", "_tokens", "fates", "in_flight", "queue", "queued_bytes", "rules", "seconds", "share")

    def __init__(self, rules: ShadowRules, now: float) -> None:
        self.rules = rules
        self.share = rules.share
        self.fates: dict[Fate, int] = {}
        self.seconds = Histogram(SECONDS)
        self.in_flight = 0
        self.queue: deque[Waiting] = deque()
        self.queued_bytes = 0
        self._tokens = float(rules.generate_tokens_per_hour_max)
        self._filled_at = now

    def carry(self, old: Mirror) -> None:
        """Go on where `old` was before a reload: with its counts, with what may still be spent, and with a share that
        was set live unless the configured one is another now."""
        if old.rules.share == self.rules.share:
            self.share = old.share
        self.fates, self.seconds = old.fates, old.seconds
        self._tokens, self._filled_at = min(self._tokens, old._tokens), old._filled_at

    def count(self, fate: Fate) -> None:
        """Add one to what became of sampled calls."""
        self.fates[fate] = self.fates.get(fate, 0) + 1

    def samples(self, call: Call, luck: float) -> bool:
        """Whether this call is one to be mirrored; `luck` is uniform in [0, 1). Never a write."""
        if luck >= self.share:
            return False
        if call.kind == "generate":
            return self.rules.generate_tokens_per_hour_max > 0
        return call.kind in ("embed", "retrieve")

    def take(self, call: Call, answer: Answer, now: float) -> bool:
        """Let a sampled call wait for its turn, or count why not."""
        if answer.stream is not None:
            self.count("streamed")
        elif call.trail:
            # the main arm's own trouble is not the other one's to be compared with
            self.count("fallback")
        else:
            waiting = Waiting(call, answer, len(call.request.body) + len(answer.body))
            full = len(self.queue) >= self.rules.queue or (
                self.queued_bytes + waiting.size_bytes > self.rules.queue_bytes_max
            )
            if full:
                self.count("queue")
            elif call.kind == "generate" and not self._affords(waiting.size_bytes, now):
                self.count("cost")
            else:
                self.queue.append(waiting)
                self.queued_bytes += waiting.size_bytes
                return True
        return False

    def next(self) -> Waiting | None:
        """Who is asked now, if there is a place."""
        if not self.queue or self.in_flight >= self.rules.concurrent:
            return None
        self.in_flight += 1
        waiting = self.queue.popleft()
        self.queued_bytes -= waiting.size_bytes
        return waiting

    def _affords(self, size_bytes: int, now: float) -> bool:
        hourly = self.rules.generate_tokens_per_hour_max
        self._tokens = min(float(hourly), self._tokens + (now - self._filled_at) * hourly / HOUR_S)
        self._filled_at = now
        tokens = size_bytes / BYTES_PER_TOKEN
        if tokens > self._tokens:
            return False
        self._tokens -= tokens
        return True


class Shadowing:
    """The thin shell: the tasks that ask the other arm. `close` lets go of them."""

    __slots__ = ("_clock", "_compare", "_other", "_tasks", "heart")

    def __init__(self, heart: Mirror, other: Service, compare: Compare, clock: Callable[[], float]) -> None:
        self.heart = heart
        self._other = other
        self._compare = compare
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Ask for as many of those who wait as there are places for."""
        while (waiting := self.heart.next()) is not None:
            task = asyncio.get_running_loop().create_task(self._ask(waiting))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Give up on everything that is waited for."""
        self.heart.queue.clear()
        self.heart.queued_bytes = 0
        for task in self._tasks:
            task.cancel()

    async def _ask(self, waiting: Waiting) -> None:
        heart, began = self.heart, self._clock()
        fork = shadow_of(waiting.call, began + heart.rules.deadline_s)
        answer: Answer | None = None
        why = ""
        try:
            async with asyncio.timeout(heart.rules.deadline_s + OVERDUE_S):
                answer = await self._other(fork)
            if answer.stream is not None:
                # longer than anybody would hold: its status is all that is compared
                answer.stream.close()
            heart.count("answered")
            heart.seconds.add(self._clock() - began)
        except Refused as refused:
            why = refused.reason
            heart.count("refused")
        except (Failed, TimeoutError) as failed:
            why = failed.reason if isinstance(failed, Failed) else "deadline"
            heart.count("failed")
        except Exception:
            # an error of our own must not reach anybody: the caller was answered long ago
            why = "error"
            heart.count("error")
        finally:
            heart.in_flight -= 1
            self.start()
        self._compare(Pair(waiting.call, waiting.live, answer, self._clock() - began, why))


def shadow_of(call: Call, deadline: float) -> Call:
    """The call as the other arm gets it: marked as a shadow, and with time of its own."""
    fork = call.fork()
    fork.span = None
    # a head of its own: what is remembered of the caller's must not be sent for this one, or the other way about
    request = Request(
        call.request.method, call.request.target, [*call.request.headers, SHADOW_HEADER], call.request.body
    )
    request.path, request.hop = call.request.path, call.request.hop
    fork.request = request
    fork.deadline = fork.until = deadline
    return fork


def shadow(service: Service, shadowing: Shadowing, *, clock: Callable[[], float], dice: Callable[[], float]) -> Service:
    """Mirror a sampled share of the calls that `service` answers."""
    heart = shadowing.heart

    async def shadowed(call: Call) -> Answer:
        answer = await service(call)
        if heart.samples(call, dice()) and heart.take(call, answer, clock()):
            # by way of the loop: the caller is answered first
            asyncio.get_running_loop().call_soon(shadowing.start)
        return answer

    return shadowed
