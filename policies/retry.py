"""Ask the same tier again, when that could help and the deadline can still pay for it.

Full jitter (Brooker, "Exponential Backoff And Jitter"): the wait is uniform between nothing and a ceiling that doubles,
so that callers who failed together do not come back together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from understudy.policies.service import Answer, Call, Failed, Refused, Service


@dataclass(frozen=True, slots=True)
class Retry:
    """`attempts` counts the first one too: 1 never asks again."""

    attempts: int
    base_s: float
    wait_s_max: float

    def wait_before(self, attempt: int, luck: float) -> float:
        """Seconds to wait before attempt number `attempt` (2, 3, ...); `luck` is uniform in [0, 1)."""
        return luck * min(self.wait_s_max, self.base_s * 2.0 ** (attempt - 1))

    def next_wait_s(self, attempt: int, luck: float, failed: Failed, left_s: float) -> float | None:
        """Seconds to wait before the next attempt, or None when there should be none.

        A tier's own word on when to come back is kept; if that is too late for this call, it is not asked again.
        """
        if attempt >= self.attempts or not failed.again:
            return None
        wait_s = max(self.wait_before(attempt + 1, luck), failed.retry_after_s or 0.0)
        return wait_s if wait_s < left_s else None


def retry(
    service: Service,
    heart: Retry,
    *,
    clock: Callable[[], float],
    dice: Callable[[], float],
    sleep: Callable[[float], Awaitable[object]],
) -> Service:
    """Ask `service` up to `heart.attempts` times."""

    async def persistent(call: Call) -> Answer:
        attempt = 1
        first: Failed | None = None
        while True:
            try:
                return await service(call)
            except Failed as failed:
                wait_s = heart.next_wait_s(attempt, dice(), failed, call.until - clock())
                if wait_s is None:
                    raise
                first = failed
            except Refused:
                # the breaker opened on our own first attempt: what is worth telling is why
                if first is not None:
                    raise first from None
                raise
            await sleep(wait_s)
            attempt += 1

    return persistent
