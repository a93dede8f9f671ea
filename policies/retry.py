"""Ask the same tier again, when that could help, the budget allows it and the deadline can still pay for it.

Full jitter (Brooker, "Exponential Backoff And Jitter"): the wait is uniform between nothing and a ceiling that doubles,
so that callers who failed together do not come back together. Which endpoint is asked is the balance's affair; while
one is left that this call has not tried, nobody waits for another's Retry-After.

A call that is itself the repetition of an SDK is not repeated by us: layers that each retry multiply.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from understudy.policies.budget import Budget
from understudy.policies.service import Answer, Call, Failed, Refused, Service
from understudy.policies.usual import Usual

SDK_RETRY_COUNT = b"x-stainless-retry-count"
"""How often the OpenAI and Anthropic SDKs have asked this before."""


@dataclass(frozen=True, slots=True)
class Retry:
    """`attempts` counts the first one too: 1 never asks again."""

    attempts: int
    base_s: float
    wait_s_max: float

    def wait_before(self, attempt: int, luck: float) -> float:
        """Seconds to wait before attempt number `attempt` (2, 3, ...); `luck` is uniform in [0, 1)."""
        return luck * min(self.wait_s_max, self.base_s * 2.0 ** (attempt - 1))

    def next_wait_s(
        self, attempt: int, luck: float, failed: Failed, left_s: float, *, usual_s: float = 0.0, untried: int = 0
    ) -> float | None:
        """Seconds to wait before the next attempt, or None when there should be none.

        `usual_s` is how long the tier usually takes to its first byte: an attempt that is begun with less time than
        that is thrown away. An endpoint's own word on when to come back is kept, unless there are `untried` others; if
        that is too late for this call, it is not asked again.
        """
        if attempt >= self.attempts or not failed.again:
            return None
        wait_s = self.wait_before(attempt + 1, luck)
        if failed.retry_after_s is not None and not untried:
            wait_s = max(wait_s, failed.retry_after_s)
        return wait_s if wait_s + usual_s < left_s else None


def retry(
    service: Service,
    heart: Retry,
    *,
    clock: Callable[[], float],
    dice: Callable[[], float],
    sleep: Callable[[float], Awaitable[object]],
    budget: Budget,
    usual: Usual | None = None,
    endpoints: int = 1,
) -> Service:
    """Ask `service` up to `heart.attempts` times, as far as `budget` goes. `usual` learns the times to first bytes."""
    usual = usual or Usual()

    async def persistent(call: Call) -> Answer:
        # when the call came in is near enough to now, and costs no look at the clock
        budget.called(call.born)
        before_s, attempts_before, tried_before = call.upstream_s, call.attempts, len(call.tried)
        attempt = 1
        first: Failed | None = None
        while True:
            try:
                answer = await service(call)
            except Failed as failed:
                # a hedge was an attempt as well
                attempt = max(attempt, call.attempts - attempts_before)
                untried = endpoints - max(1, len(set(call.tried[tried_before:])))
                wait_s = _wait_s(call, attempt, failed, untried)
                if wait_s is None:
                    raise
                first = failed
            except Refused:
                # the breaker opened on our own first attempt: what is worth telling is why
                if first is not None:
                    raise first from None
                raise
            else:
                if first is None:
                    usual.add(call.upstream_s - before_s)
                return answer
            await sleep(wait_s)
            attempt += 1

    def _wait_s(call: Call, attempt: int, failed: Failed, untried: int) -> float | None:
        now = clock()
        left_s = call.until - now
        wait_s = heart.next_wait_s(attempt, dice(), failed, left_s, usual_s=usual.p50, untried=untried)
        if wait_s is None or is_repetition(call) or not budget.retry(now):
            return None
        return wait_s

    return persistent


def is_repetition(call: Call) -> bool:
    """Whether the caller's SDK says that it has asked this before."""
    count = call.request.header(SDK_RETRY_COUNT)
    return count is not None and count.strip() not in (b"", b"0")
