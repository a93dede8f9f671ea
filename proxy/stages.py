"""Where faults are played: what an error, a broken connection and a wrong dimension look like at a tier and at a route.

At a tier they are what an upstream's own would have been, so that whoever looks at outcomes can't tell them apart. At
a route they are the caller's to bear.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any, cast

import msgspec

from understudy.policies.fault import HungUp
from understudy.policies.service import Answer, Call, Failed, Headers
from understudy.proxy.dialects.base import Dialect, is_encoded
from understudy.proxy.http.heads import IDEMPOTENT
from understudy.proxy.tiers.judging import Judge

DETAIL = "broken on purpose, by a fault of this sidecar's own policies"
FLOAT_BYTES = 4


class TierStage:
    """As if the upstream did it: judged by whoever judges the upstream's own."""

    def __init__(
        self, dialect: Dialect, judge: Judge, *, clock: Callable[[], float], first_byte_s: float = float("inf")
    ) -> None:
        self._dialect = dialect
        self._judge = judge
        self._clock = clock
        self._first_byte_s = first_byte_s

    def error(self, call: Call, status: int, retry_after_s: float | None) -> Answer:
        call.attempts += 1
        return error_answer(self._dialect, status, retry_after_s)

    def broken(self, call: Call, answer: Answer | None, sent: bytes) -> Answer:
        repeatable = call.kind != "pass" or call.request.method in IDEMPOTENT
        if answer is None:
            call.attempts += 1
            raise self._heard(
                Failed("reset", "the connection was broken on purpose", again=repeatable, elsewhere=repeatable)
            )
        detail = f"the answer was cut off on purpose after {len(sent)} bytes"
        raise self._heard(Failed("truncated", detail, again=repeatable, elsewhere=repeatable))

    def patience_s(self, call: Call) -> float:
        return min(self._first_byte_s, call.until - self._clock())

    def too_late(self, call: Call) -> Answer:
        call.attempts += 1
        if self._clock() >= call.until:
            raise Failed("deadline", "no answer in time (on purpose)", soft=True, again=False)
        repeatable = call.kind != "pass" or call.request.method in IDEMPOTENT
        raise self._heard(
            Failed("first_byte_timeout", "no answer in time (on purpose)", again=repeatable, elsewhere=repeatable)
        )

    def shortened(self, answer: Answer) -> bytes:
        return shortened(answer)

    def judged(self, call: Call, answer: Answer) -> Answer:
        return self._judge.judged(call, answer, self._dialect)

    def _heard(self, failed: Failed) -> Failed:
        self._judge.heard(failed)
        return failed


class RouteStage:
    """What callers get, whoever answered."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    def error(self, call: Call, status: int, retry_after_s: float | None) -> Answer:  # noqa: ARG002 (a Stage's method)
        return error_answer(self._dialect, status, retry_after_s)

    def broken(self, call: Call, answer: Answer | None, sent: bytes) -> Answer:  # noqa: ARG002 (a Stage's method)
        if answer is None:
            return Answer(200, [], stream=HungUp(b"", 1))
        answer.stream = HungUp(sent, len(answer.body))
        return answer

    def patience_s(self, call: Call) -> float:  # noqa: ARG002 (a Stage's method)
        return float("inf")

    def too_late(self, call: Call) -> Answer:
        raise Failed("deadline", f"call {call.id} waited for ever, on purpose")

    def shortened(self, answer: Answer) -> bytes:
        return shortened(answer)

    def judged(self, call: Call, answer: Answer) -> Answer:  # noqa: ARG002 (a Stage's method)
        return answer


def error_answer(dialect: Dialect, status: int, retry_after_s: float | None) -> Answer:
    """An error in the dialect's shape, without what we say to callers of our own."""
    answer = dialect.error(status, "fault", DETAIL)
    headers: Headers = [header for header in answer.headers if header[0] != b"x-should-retry"]
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%g" % retry_after_s))
    answer.headers = headers
    return answer


def shortened(answer: Answer) -> bytes:
    """The body of an embeddings answer with the last number of every vector gone; any other body as it is."""
    if is_encoded(answer):
        return answer.body
    try:
        body: Any = msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return answer.body
    found: Any = cast("dict[str, Any]", body).get("data") if isinstance(body, dict) else None
    if not isinstance(found, list):
        return answer.body
    for item in cast("list[Any]", found):
        vector: Any = cast("dict[str, Any]", item).get("embedding") if isinstance(item, dict) else None
        if isinstance(vector, list):
            item["embedding"] = cast("list[float]", vector)[:-1]
        elif isinstance(vector, str):
            item["embedding"] = b64encode(b64decode(vector)[:-FLOAT_BYTES]).decode("ascii")
    return msgspec.json.encode(body)
