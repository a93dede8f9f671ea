"""What the dialects of language models share: whether a stream is asked for, its pieces, and an error inside one."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import msgspec

from understudy.policies.service import Failed, Headers
from understudy.proxy.dialects.base import Malformed, parsed

EVENT_HEADERS: Headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
# Our own retries are spent when an error of ours goes out: the SDK's would triple them, and its back-off is the
# caller's time.
NO_RETRY: Headers = [(b"x-should-retry", b"false")]

_WORD = re.compile(r"\S+\s*|\s+")
_SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？")


class _Peek(msgspec.Struct):
    stream: Any = None


class _Model(msgspec.Struct):
    model: Any = None


_PEEK = msgspec.json.Decoder(_Peek)
_MODEL = msgspec.json.Decoder(_Model)


def asks_for_stream(body: bytes, *, unless_said: bool = False) -> bool:
    """Whether the body says `stream: true`; `unless_said` is what it means where it says nothing."""
    if b'"stream"' not in body:
        return unless_said
    try:
        stream = parsed(_PEEK, body).stream
    except Malformed:
        return False
    return unless_said if stream is None else stream is True


def model_asked(body: bytes) -> str:
    """The model that a prompt names, or '' for one that names none."""
    try:
        model = parsed(_MODEL, body).model
    except Malformed:
        return ""
    return model if isinstance(model, str) else ""


def failed_inside(word: str, lasting: Collection[str]) -> Failed:
    """The failure that an error inside a 200's stream is, by its code; what is `lasting` is not worth asking again."""
    return Failed("error_in_stream", word, again=word not in lasting)


def pieces_of(text: str) -> list[str]:
    """`text` cut after its sentences and lines; put together, the pieces are the text."""
    pieces = [""]
    for word in _WORD.findall(text):
        pieces[-1] += word
        if "\n" in word or word.rstrip().rstrip("\"'”’)]").endswith(_SENTENCE_ENDS):
            pieces.append("")
    return [piece for piece in pieces if piece]
