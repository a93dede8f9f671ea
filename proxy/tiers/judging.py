"""Tell an upstream's failures from its answers, and read when it wants to be asked again."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

from understudy.policies.service import Answer, Call, Failed, Headers
from understudy.proxy.dialects.base import Dialect
from understudy.proxy.http.heads import IDEMPOTENT

FAILURES = frozenset((408, 425, 429, 500, 502, 503, 504, 529))
"""Statuses by which an upstream says that it, not the caller, is at fault or too busy."""
RETRY_AFTER_S_MAX = 300.0
_NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]{0,15})?")
_DURATION = re.compile(
    r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m(?!s))?(?:(\d{1,9}(?:\.\d{1,9})?)s)?(?:(\d{1,9}(?:\.\d{1,9})?)ms)?"
)
_UNITS_S = (86400.0, 3600.0, 60.0, 1.0, 0.001)


def judged(call: Call, answer: Answer, dialect: Dialect) -> Answer:
    """The answer, or Failed when it says, in its status or within, that the upstream could not."""
    status = answer.status
    if status < 400:
        if answer.stream is None and call.kind != "pass" and not answer.packed:
            within = dialect.failure_within(answer)
            if within:
                raise Failed(within, f"a {status} that is a failure ({within})", again=True)
        return answer
    if status not in FAILURES:
        return answer
    if answer.stream is not None:
        # too long to be kept until somebody wants it
        answer.stream.close()
    retry_after_s = read_retry_after(answer.headers, time.time)
    repeatable = call.kind != "pass" or call.request.method in IDEMPOTENT
    raise Failed(
        f"status_{status}",
        f"the upstream answered {status}",
        answer=answer if answer.stream is None else None,
        retry_after_s=retry_after_s,
        again=repeatable,
        elsewhere=repeatable or status in (429, 503),
        soft=status in (429, 529) or (status == 503 and retry_after_s is not None),
    )


def read_retry_after(headers: Headers, wall_clock: Callable[[], float]) -> float | None:
    """When the upstream wants to be asked again, in seconds from now, at most five minutes; None when it does not say.

    Believed in this order: `retry-after-ms`; `retry-after` as seconds or as a date (RFC 9110 section 10.2.3); and
    `x-ratelimit-reset-requests` or `-tokens` (`6m0s`), of a limit that is not said to have anything left.
    """
    told = {key.lower(): value.decode("latin-1").strip() for key, value in reversed(headers)}
    for found in (
        _seconds(told.get(b"retry-after-ms", ""), 0.001),
        _seconds(told.get(b"retry-after", ""), 1.0),
        _seconds_until(told.get(b"retry-after", ""), wall_clock),
        _seconds_of_limits(told),
    ):
        if found is not None:
            return min(max(found, 0.0), RETRY_AFTER_S_MAX)
    return None


def _seconds(text: str, unit_s: float) -> float | None:
    return float(text) * unit_s if _NUMBER.fullmatch(text) else None


def _seconds_until(date: str, wall_clock: Callable[[], float]) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() - wall_clock()
    except (ValueError, OverflowError):
        return None


def _seconds_of_limits(told: dict[bytes, str]) -> float | None:
    found: float | None = None
    for limit in (b"requests", b"tokens"):
        duration = _DURATION.fullmatch(told.get(b"x-ratelimit-reset-" + limit, ""))
        if duration is not None and any(duration.groups()) and told.get(b"x-ratelimit-remaining-" + limit, "0") == "0":
            seconds = sum(float(part or 0) * unit_s for part, unit_s in zip(duration.groups(), _UNITS_S, strict=True))
            found = max(found or 0.0, seconds)
    return found
