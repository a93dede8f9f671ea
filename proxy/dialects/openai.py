"""What OpenAI's endpoints share: the shape of an error, as an answer, inside a 200, and inside a stream."""

from __future__ import annotations

import re
from typing import Any, cast

import msgspec

from understudy.policies.service import Answer, Headers
from understudy.proxy.dialects.base import (
    Malformed,
    is_encoded,
    json_answer,
    looks_like_object,
    parsed,
)
from understudy.proxy.dialects.generating import NO_RETRY
from understudy.proxy.dialects.plain import Plain

LONG_BYTES = 4096
END_BYTES = 1024
UNREADABLE = "We could not read the JSON body of your request"

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}

_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class _Peek(msgspec.Struct):
    error: Any = None


_PEEK = msgspec.json.Decoder(_Peek)


class ErrorsInside(Plain):
    """Answers that are JSON objects, and 200s with a top-level `error` found out: OpenAI's way, which others went."""

    def failure_within(self, answer: Answer) -> str:
        """`garbage` for what cannot be JSON, `error_in_200` for an error; costs a parse only on suspicion."""
        if is_encoded(answer):
            return ""
        body = answer.body
        if not looks_like_object(body):
            return "garbage"
        return "error_in_200" if error_in(body) else ""


class OpenAI(ErrorsInside):
    """Errors as {"error": {"message", "type", "param", "code"}}."""

    def error(self, status: int, reason: str, detail: str, *, headers: Headers | None = None) -> Answer:
        kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        return json_answer(status, error_body(detail, kind, reason), NO_RETRY + (headers or []))


def lacks(body: bytes, key: bytes) -> bool:
    """Whether a body has not even the key of what was asked for: another service answers there, or another endpoint of
    it. Looked for at the beginning first, where it stands: 0.1 µs."""
    return key not in body[:END_BYTES] and key not in body


def error_body(message: str, kind: str, code: str) -> dict[str, Any]:
    """An error as OpenAI writes it, wherever it stands."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_in(body: bytes) -> Any:
    """The top-level error of a JSON object, or None; a body without the word is not parsed.

    Of a long body only the two ends are looked at: an error stands in a short one, and looking through 20 KB of vectors
    costs 6 µs.
    """
    ends = body if len(body) <= LONG_BYTES else body[:END_BYTES] + body[-END_BYTES:]
    if b'"error"' not in ends:
        return None
    try:
        return parsed(_PEEK, body).error or None
    except Malformed:
        # Some servers write NaN: the body may serve its caller all the same.
        return None


def error_name(error: Any) -> str:
    """The code or the type of an error, for logs: one plain word, and never the provider's own sentence."""
    if isinstance(error, dict):
        fields = cast("dict[str, Any]", error)
        for key in ("code", "type"):
            word = str(fields.get(key) or "")
            if _WORD.fullmatch(word):
                return word
    return "unnamed"
