"""Tell an upstream's failures from its answers by the table of outcomes, and read when it wants to be asked again."""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import msgspec

from understudy.policies.outcomes import Outcomes, Said, Verdict
from understudy.policies.service import Answer, Call, Failed, Headers
from understudy.proxy.dialects.base import Dialect
from understudy.proxy.http.heads import IDEMPOTENT, seconds_of
from understudy.proxy.settings.outcomes import provider_of, sets_key, shipped, table_of
from understudy.proxy.settings.settings import LocalTier, Route, Tier

FAILURES = frozenset((408, 425, 429, 500, 502, 503, 504, 529))
"""Statuses by which an upstream says that it, not the caller, is at fault or too busy, whatever else it says."""
NOT_DONE = frozenset((503, 529))
"""Statuses from 500 by which a server says that it did nothing; below 500 all but MAYBE_DONE say so."""
MAYBE_DONE = frozenset((408, 409, 499))
RETRY_AFTER_S_MAX = 300.0
ERROR_BYTES_MAX = 64 * 1024
"""How much of an error's body is read; the errors of all providers are far shorter."""
CODES_MAX = 8
CODE_CHARS_MAX = 64
MESSAGE_CHARS_MAX = 512
_NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]{0,15})?")
_DURATION = re.compile(
    r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m(?!s))?(?:(\d{1,9}(?:\.\d{1,9})?)s)?(?:(\d{1,9}(?:\.\d{1,9})?)ms)?"
)
_UNITS_S = (86400.0, 3600.0, 60.0, 1.0, 0.001)
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Judge(NamedTuple):
    """What a tier's errors are judged by: the table, whose errors they are, and whether the key sent is ours."""

    table: Outcomes
    provider: str
    own_key: bool

    def judged(self, call: Call, answer: Answer, dialect: Dialect) -> Answer:
        """The answer, or Failed when it says, in its status or within, that the upstream could not."""
        if answer.status >= 400:
            return self._error(call, answer)
        if answer.stream is None and not answer.packed:
            is_passed = call.kind == "pass"
            within = dialect.write_failed(call, answer) if is_passed else dialect.failure_within(answer)
            if within:
                return self._hidden(within, answer, is_passed=is_passed)
        return answer

    def heard(self, failed: Failed) -> None:
        """What went wrong before there was an answer, with what the table makes of it. What may be repeated without
        harm is known already: a table can forbid more, and allow no more."""
        # of an error inside a stream its dialect tells the code
        codes = (failed.detail.lower(),) if failed.reason == "error_in_stream" else ()
        verdict = self.table.of(Said(self.provider, transport=failed.reason, codes=codes, own_key=self.own_key))
        _settled(failed, verdict)

    def _hidden(self, within: str, answer: Answer, *, is_passed: bool) -> Answer:
        codes, message = error_said(answer) if within == "error_in_200" else ((), "")
        said = Said(self.provider, answer.status, codes, message, within, own_key=self.own_key)
        verdict = self.table.of(said)
        if verdict.outcome == "caller" and verdict.follow == "back":
            answer.fault = verdict.reason or within
            return answer
        failed = Failed(within, f"a {answer.status} that is a failure ({within})")
        if is_passed:
            # some of a write may have been carried out, and only its caller can tell what to do about the rest
            failed.answer, failed.again, failed.elsewhere = answer, False, False
        raise _settled(failed, verdict)

    def _error(self, call: Call, answer: Answer) -> Answer:
        status = answer.status
        retry_after_s = read_retry_after(answer.headers, time.time)
        codes, message = error_said(answer) if answer.stream is None else ((), "")
        said = Said(self.provider, status, codes, message, "", retry_after_s is not None, self.own_key)
        verdict = self.table.of(said)
        if verdict.outcome == "success":
            return answer
        reason = verdict.reason or f"status_{status}"
        if verdict.outcome == "caller" and verdict.follow == "back":
            answer.fault = reason
            return answer
        if answer.stream is not None:
            # too long to be kept until somebody wants it
            answer.stream.close()
        detail = f"the upstream answered {status}" + (f" ({verdict.reason})" if verdict.reason else "")
        failed = Failed(
            reason,
            detail,
            # what is said of a key of ours is not for the caller, who would look for the fault in its own
            answer=answer if answer.stream is None and not verdict.of_key else None,
            retry_after_s=retry_after_s,
        )
        repeatable = call.kind != "pass" or call.request.method in IDEMPOTENT
        not_done = status in NOT_DONE if status >= 500 else status not in MAYBE_DONE
        failed.again = repeatable
        failed.elsewhere = repeatable or not_done
        raise _settled(failed, verdict)


def tier_judge(route: Route | None, tier: Tier, dialect: Dialect, base: Outcomes | None = None) -> Judge:
    """Who judges the errors of `tier`, one endpoint of it, on `route`; without a `base` it is the table that ships."""
    base = base or shipped().table
    if isinstance(tier, LocalTier):
        return Judge(base, "plain", False)
    table = base if route is None else table_of(base, route, tier)
    return Judge(table, provider_of(tier, dialect.name), sets_key(tier))


def _settled(failed: Failed, verdict: Verdict) -> Failed:
    """`failed`, restricted to what the verdict allows."""
    failed.reason = verdict.reason or failed.reason
    failed.soft = failed.soft or verdict.outcome == "soft"
    if verdict.outcome in ("caller", "ignored"):
        failed.fault = "caller" if verdict.outcome == "caller" else "nobody"
    failed.away = failed.again and verdict.follow == "elsewhere"
    failed.again = failed.again and verdict.follow == "here"
    # without an answer there is nothing to give back
    failed.elsewhere = failed.elsewhere and (verdict.follow != "back" or failed.answer is None)
    return failed


# --- what an error's body says -------------------------------------------------------------------------------------


class _Body(msgspec.Struct):
    """Where the providers put it: OpenAI, Azure, Anthropic and Elasticsearch into `error`, Ollama too, as text; Cohere
    and Milvus into `message`, Chroma into both, Qdrant into `status`, Weaviate into lists, servers made with FastAPI
    into `detail`."""

    error: Any = None
    message: Any = None
    type: Any = None
    code: Any = None
    status: Any = None
    detail: Any = None
    error_type: Any = None
    errors: Any = None


_BODY = msgspec.json.Decoder(_Body)


def error_said(answer: Answer) -> tuple[tuple[str, ...], str]:
    """The codes of an error (lower case, the most particular first) and its message, both bounded."""
    body = _plain_body(answer)
    try:
        read = _BODY.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return (), body[:MESSAGE_CHARS_MAX].decode("utf-8", "replace")
    codes = list(dict.fromkeys(code.lower() for code in _codes(read) if _WORD.fullmatch(code)))
    return tuple(codes[:CODES_MAX]), next(filter(None, _messages(read)), "")[:MESSAGE_CHARS_MAX]


def _plain_body(answer: Answer) -> bytes:
    if not answer.packed:
        return answer.body if len(answer.body) <= ERROR_BYTES_MAX else b""
    try:
        # 32: gzip or zlib, whichever it is; other codings are not unpacked here, and such an error goes by its status
        return zlib.decompressobj(32 + zlib.MAX_WBITS).decompress(answer.body[:ERROR_BYTES_MAX], ERROR_BYTES_MAX)
    except zlib.error:
        return b""


def _codes(read: _Body) -> Iterator[str]:
    error = _fields(read.error)
    yield from _texts(_fields(error.get("details")).get("error_code"))
    yield from _texts(_fields(error.get("innererror")).get("code"))
    causes = error.get("root_cause")
    if isinstance(causes, list):
        for cause in cast("list[Any]", causes)[:CODES_MAX]:
            yield from _texts(_fields(cause).get("type"))
    yield from _texts(error.get("code"), error.get("type"), read.code, read.error_type)
    # a word alone is Chroma's name for the error; a sentence is Ollama's message
    yield from _texts(read.error, read.type)


def _messages(read: _Body) -> Iterator[str]:
    error = _fields(read.error)
    yield from _texts(error.get("message"), error.get("reason"), _fields(read.status).get("error"))
    yield from _texts(read.message, read.detail, read.error, _fields(read.detail).get("message"))
    for listed in (read.errors, read.error):
        if isinstance(listed, list) and listed:
            yield from _texts(_fields(cast("list[Any]", listed)[0]).get("message"))


def _fields(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _texts(*values: Any) -> Iterator[str]:
    for value in values:
        if isinstance(value, str | int) and not isinstance(value, bool):
            yield str(value)[:MESSAGE_CHARS_MAX]


# --- when to come back ---------------------------------------------------------------------------------------------


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
        return seconds_of(date) - wall_clock()
    except ValueError:
        return None


def _seconds_of_limits(told: dict[bytes, str]) -> float | None:
    found: float | None = None
    for limit in (b"requests", b"tokens"):
        duration = _DURATION.fullmatch(told.get(b"x-ratelimit-reset-" + limit, ""))
        if duration is not None and any(duration.groups()) and told.get(b"x-ratelimit-remaining-" + limit, "0") == "0":
            seconds = sum(float(part or 0) * unit_s for part, unit_s in zip(duration.groups(), _UNITS_S, strict=True))
            found = max(found or 0.0, seconds)
    return found
