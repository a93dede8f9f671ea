"""Read what may vary between two calls that are alike, and a digest of everything that may not.

    search   {"query": [0.1, …], "limit": 5, "filter": …}     the vector may vary      scope: all the rest
    prompt   {"model": …, "messages": [ … , last user turn]}  its question may vary    scope: all the rest

Generic over the APIs whose bodies are JSON: a vector is the one list of so many numbers, a prompt the last of the
`messages`. What is not understood has no scope, and is alike to nothing.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, NamedTuple, cast

import msgspec

from understudy.policies.likeness import Vector, unit
from understudy.policies.service import Call, Refused, tenant_of
from understudy.policies.wording import Wording, wording_of
from understudy.proxy.asks import GenerateAsk, RetrieveAsk
from understudy.proxy.caching.keys import Scope, manner_of
from understudy.proxy.dialects.base import BadRequest, Dialect

BODY_BYTES_MAX = 256 * 1024
"""A longer body would hold up everybody else while it is read."""

_IDLE = frozenset({"user", "metadata", "stream", "stream_options", "safety_identifier", "prompt_cache_key"})
"""Fields that change nothing of what is said, or that we write the answer down by ourselves."""
_EFFECTS = ("tools", "functions", "store", "background", "web_search_options")
"""Who asks for these wants more done than told."""

_VARIES = "\x00varies\x00"
_DECODER = msgspec.json.Decoder()
_ENCODER = msgspec.json.Encoder(order="deterministic")
_ASKS = re.compile(
    r"^\s*[#*_>-]*\s*(?:user |current |my )?(?:question|query|q|user)\s*[*_]*\s*[:：]\s*[*_]*", re.IGNORECASE
)
_ANSWERS = re.compile(
    r"^\s*[#*_>-]*\s*(?:\w+ )?(?:answer|response|reply|output|assistant|a)\s*[*_]*\s*[:：][*_\s]*$", re.IGNORECASE
)


class Searched(NamedTuple):
    """A search whose vector may vary, at unit length."""

    scope: bytes
    collection: str
    vector: Vector


class Prompted(NamedTuple):
    """A prompt whose question may vary."""

    scope: bytes
    question: str
    wording: Wording
    ask: GenerateAsk


def search_of(call: Call, dialect: Dialect, manners: Scope) -> Searched | None:
    """One search by vector, or None for every other call. One with a score threshold is not taken: the scores in a
    neighbour's list are the neighbour's, so other points would have passed."""
    if len(call.request.body) > BODY_BYTES_MAX:
        return None
    try:
        ask = dialect.ask(call)
    except (BadRequest, Refused):
        return None
    if not isinstance(ask, RetrieveAsk) or ask.op != "search" or not ask.vector or ask.score_threshold is not None:
        return None
    body = _decoded(call.request.body)
    spots = [0]
    rest = _without_vector(body, len(ask.vector), spots)
    vector = unit(ask.vector)
    if spots[0] != 1 or vector is None:
        return None
    scope = _scope(call, manners, [ask.collection, len(ask.vector), rest])
    return Searched(scope, ask.collection, vector)


def prompt_of(call: Call, dialect: Dialect, manners: Scope) -> Prompted | None:
    """A prompt that asks for one plain text and ends in a user's turn, or None for every other call."""
    if len(call.request.body) > BODY_BYTES_MAX:
        return None
    try:
        ask = dialect.ask(call)
    except (BadRequest, Refused):
        return None
    if not isinstance(ask, GenerateAsk) or ask.structured:
        return None
    body = _decoded(call.request.body)
    if not isinstance(body, dict):
        return None
    fields = cast("dict[str, Any]", body)
    if any(fields.get(name) for name in _EFFECTS):
        return None
    cut = _question_cut(fields.get("messages"))
    if cut is None:
        return None
    question, messages = cut
    wording = wording_of(question)
    if wording is None:
        return None
    rest = {name: value for name, value in fields.items() if name not in _IDLE} | {"messages": messages}
    return Prompted(_scope(call, manners, rest), question, wording, ask)


def _scope(call: Call, manners: Scope, rest: Any) -> bytes:
    request = call.request
    # answers are kept as they were packed
    tenant = tenant_of(request, (b"accept-encoding", *(manners.tenant_headers or ())))
    try:
        spelt = _ENCODER.encode(rest)
    except (msgspec.EncodeError, TypeError, ValueError, RecursionError):
        spelt = repr(rest).encode("utf-8", "surrogatepass")
    parts = (
        call.route.encode(),
        tenant,
        manner_of(request, manners),
        request.method,
        request.path,
        request.query,
        spelt,
    )
    return hashlib.blake2b(b"".join(b"%d:%b" % (len(part), part) for part in parts), digest_size=16).digest()


def _decoded(body: bytes) -> Any:
    try:
        return _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _without_vector(value: Any, length: int, spots: list[int]) -> Any:
    """`value` with every list of `length` numbers replaced; how many there were is added to `spots`."""
    if isinstance(value, list):
        items = cast("list[Any]", value)
        if len(items) == length and isinstance(items[0], float | int) and not isinstance(items[0], bool):
            spots[0] += 1
            return _VARIES
        return [_without_vector(item, length, spots) for item in items]
    if isinstance(value, dict):
        return {name: _without_vector(each, length, spots) for name, each in cast("dict[str, Any]", value).items()}
    return value


def _question_cut(messages: Any) -> tuple[str, list[Any]] | None:
    """The question of the last user turn, and all the messages with a mark in its place."""
    if not isinstance(messages, list) or not messages:
        return None
    turns = cast("list[Any]", messages)
    if not isinstance(turns[-1], dict):
        return None
    last = cast("dict[str, Any]", turns[-1])
    content = last.get("content")
    if last.get("role") != "user":
        return None
    if isinstance(content, str):
        question, rest = cut_question(content)
        return question, [*turns[:-1], {**last, "content": rest}]
    if not isinstance(content, list) or not content:
        return None
    parts = cast("list[Any]", content)
    part: Any = parts[-1]
    if not isinstance(part, dict):
        return None
    final = cast("dict[str, Any]", part)
    text = final.get("text")
    if not isinstance(text, str):
        return None
    question, rest = cut_question(text)
    return question, [*turns[:-1], {**last, "content": [*parts[:-1], {**final, "text": rest}]}]


def cut_question(text: str) -> tuple[str, str]:
    """The line of a user's turn that asks, and the turn with a mark in its place.

    It is the last line that says so (`Question: …`), or else the last one; whatever stands around it, retrieved
    passages most of all, must be the same to the letter. A turn of which the wrong line is taken has a scope that
    nobody shares, and is never wrong.
    """
    lines = text.split("\n")
    at = len(lines) - 1
    while at > 0 and (not lines[at].strip() or _ANSWERS.match(lines[at])):
        at -= 1
    label = ""
    for number in range(len(lines) - 1, -1, -1):
        if (match := _ASKS.match(lines[number])) and match.end() < len(lines[number].rstrip()):
            at, label = number, match.group()
            break
    question = lines[at][len(label) :].strip()
    return question, "\n".join([*lines[:at], label + _VARIES, *lines[at + 1 :]])
