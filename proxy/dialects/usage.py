"""What an answer says of its tokens, found at its end without reading the rest, in each API's own words.

    {"id": …, "choices": [ … ], "usage": {…}, "service_tier": …}
                                ^ a "{" and all that follows is one whole JSON object, only where this key is the body's
                                  own: a deeper one leaves a bracket too many, and none stands unescaped in a text

So a body of any length costs what its last few hundred bytes cost, and nothing in it can pass for the count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import msgspec

from understudy.policies.usage import Usage

BYTES_PER_TOKEN = 4
"""Where nobody tells: four bytes of text are a token."""
MODEL_CHARS_MAX = 64
TRIES_MAX = 8
"""Places that are looked at, from the end, for the one that counts."""
HEAD_BYTES = 4096
NAME_BYTES_MAX = 256
NAMES_MAX = 1024
"""Names of models that are remembered as the labels that they make."""
PACKED_RUN_BYTES = 512
"""A run of base64 as long as this is a picture or a file, and not text."""

Number = int | float | None


class _Details(msgspec.Struct):
    cached_tokens: Number = None
    reasoning_tokens: Number = None


class _Units(msgspec.Struct):
    input_tokens: Number = None
    output_tokens: Number = None
    image_tokens: Number = None


class _Counts(msgspec.Struct):
    """`usage`, as any of them writes it."""

    prompt_tokens: Number = None
    completion_tokens: Number = None
    input_tokens: Number = None
    output_tokens: Number = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None
    cache_read_input_tokens: Number = None
    cache_creation_input_tokens: Number = None
    cached_tokens: Number = None
    billed_units: _Units | None = None
    tokens: _Units | None = None


class _Usage(msgspec.Struct):
    usage: _Counts | None = None


class _Meta(msgspec.Struct):
    meta: _Counts | None = None


class _Evaluated(msgspec.Struct):
    prompt_eval_count: Number = None
    eval_count: Number = None


class Way(NamedTuple):
    """How a dialect tells it: the key from which on the end of a body is read, what reads it, and another key, for
    answers that leave the first out."""

    key: bytes
    decoder: msgspec.json.Decoder[Any]
    otherwise: bytes = b""


_IN_USAGE = Way(b'"usage"', msgspec.json.Decoder(_Usage))
_IN_META = Way(b'"meta"', msgspec.json.Decoder(_Meta))
# older Ollamas leave out what they had in their cache
_EVALUATED = Way(b'"prompt_eval_count"', msgspec.json.Decoder(_Evaluated), b'"eval_count"')

WAYS: Mapping[str, Way] = MappingProxyType(
    {
        "openai-chat": _IN_USAGE,
        "openai-completions": _IN_USAGE,
        "openai-responses": _IN_USAGE,
        "openai-embeddings": _IN_USAGE,
        "azure-openai-chat": _IN_USAGE,
        "azure-openai-embeddings": _IN_USAGE,
        "anthropic": _IN_USAGE,
        "cohere-chat": _IN_USAGE,
        "cohere-embed": _IN_META,
        "ollama-chat": _EVALUATED,
        "ollama-embed": _EVALUATED,
        "tei": _IN_USAGE,
    }
)
"""The dialects whose answers cost tokens. TEI's tell of none, and are estimated."""

_TERSELY = b'"model":"'
_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\\x00-\x20]{1,256})"')
_names: dict[bytes, str] = {}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*")
_TEXTS = re.compile(rb'"(?:content|text|delta|response|thinking|arguments|partial_json)"\s*:\s*"((?:[^"\\]|\\.)*)"')
_PACKED_RUN = re.compile(rb"[A-Za-z0-9+/=]{%d,}" % PACKED_RUN_BYTES)
_ANYTHING = msgspec.json.Decoder()
_FINISH = re.compile(rb'"(?:finish_reason|stop_reason|done_reason)"\s*:\s*"([A-Za-z_]{1,32})"')
_RESPONSE_ENDS = re.compile(rb'"type"\s*:\s*"response\.(completed|incomplete|failed)"')
_RESPONSE_IS = re.compile(rb'"status"\s*:\s*"([a-z_]{1,32})"')
_ID = re.compile(rb'"id"\s*:\s*"(?!call_|toolu_)([A-Za-z0-9._:-]{1,96})"')
ID_BYTES = 256


def told_in_body(way: Way, body: bytes, model: str = "") -> Usage | None:
    """What a whole answer (or its last bytes) by `model` tells; None where it tells nothing."""
    told = _told_from(way.key, way.decoder, body)
    if told is None and way.otherwise:
        told = _told_from(way.otherwise, way.decoder, body)
    return None if told is None else _counted(told, model)


def _told_from(key: bytes, decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    at = len(body)
    for _ in range(TRIES_MAX):
        at = body.rfind(key, 0, at)
        if at < 0:
            return None
        try:
            return decoder.decode(b"{" + body[at:])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # a deeper one, or the word itself: the one that counts stands before it
            continue
    return None


def told_in_stream(way: Way, begun: bytes, tail: bytes) -> Usage | None:
    """What a stream's last bytes tell, and its first ones where the input is told there; None for nothing."""
    told = next(_told_by(way, tail), None)
    if told is not None and not told.input and begun:
        # Anthropic says the input when it begins, and the output at the end
        first = next((each for each in _told_by(way, begun) if each.input), None)
        if first is not None:
            told = first._replace(output=told.output, reasoning=told.reasoning)
    return told


def _told_by(way: Way, events: bytes) -> Iterator[Usage]:
    """What each event or line tells that tells anything, the last first."""
    for line in reversed(events.split(b"\n")):
        if way.key not in line and (not way.otherwise or way.otherwise not in line):
            continue
        try:
            event = _ANYTHING.decode(line.removeprefix(b"data:"))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # the event is longer than what is kept of the stream: its end is whole, one level down
            told = told_in_body(way, line.rstrip()[:-1])
            if told is not None:
                yield told
            continue
        for within in _objects(event):
            try:
                told = _counted(msgspec.convert(within, way.decoder.type))
            except msgspec.ValidationError:
                continue
            if told is not None:
                yield told
                break


def _objects(event: Any) -> Iterator[dict[str, Any]]:
    """An event, and what it may hold the count in."""
    if not isinstance(event, dict):
        return
    fields = cast("dict[str, Any]", event)
    yield fields
    for key in ("response", "message", "delta"):
        inner = fields.get(key)
        if isinstance(inner, dict):
            yield cast("dict[str, Any]", inner)


def _counted(told: Any, model: str = "") -> Usage | None:
    if isinstance(told, _Usage):
        counts = told.usage
        if counts is None:
            return None
        given, made = counts.prompt_tokens, counts.completion_tokens
        if type(given) is int and type(made) is int and given >= 0 and made >= 0:
            # nearly every answer of an OpenAI-compatible model: 0.5 µs less than the rest takes
            of_input, of_output = counts.prompt_tokens_details, counts.completion_tokens_details
            cached = 0 if of_input is None else _int(of_input.cached_tokens)
            return Usage(model, given, made, cached, 0, 0 if of_output is None else _int(of_output.reasoning_tokens))
        return _summed(counts, model)
    if isinstance(told, _Meta):
        return None if told.meta is None else _summed(told.meta, model)
    if told.prompt_eval_count is None and told.eval_count is None:
        return None
    return Usage(model, _int(told.prompt_eval_count), _int(told.eval_count))


def _summed(counts: _Counts, model: str) -> Usage | None:
    units = counts.billed_units or counts.tokens
    if units is not None:
        # Cohere: what is billed is less than what was read
        taken = _int(units.input_tokens) + _int(units.image_tokens)
        return Usage(model, taken, _int(units.output_tokens), _int(counts.cached_tokens))
    given = counts.prompt_tokens if counts.prompt_tokens is not None else counts.input_tokens
    made = counts.completion_tokens if counts.completion_tokens is not None else counts.output_tokens
    if given is None and made is None:
        return None
    read, written = _int(counts.cache_read_input_tokens), _int(counts.cache_creation_input_tokens)
    of_input = counts.prompt_tokens_details or counts.input_tokens_details or _NO_DETAILS
    of_output = counts.completion_tokens_details or counts.output_tokens_details or _NO_DETAILS
    # Anthropic counts what its cache took or kept beside the input, all others within it
    return Usage(
        model,
        _int(given) + read + written,
        _int(made),
        read or _int(of_input.cached_tokens),
        written,
        _int(of_output.reasoning_tokens),
    )


_NO_DETAILS = _Details()


def _int(number: Number) -> int:
    return max(0, int(number)) if number else 0


def model_in(body: bytes) -> str:
    """The model that a body names, as a label may: '' for none, or for a name that is no plain one."""
    at = body.find(_TERSELY)
    if at >= 0:
        at += len(_TERSELY)
        name = body[at : body.find(b'"', at, at + NAME_BYTES_MAX)]
    else:
        found = _MODEL.search(body)
        if found is None:
            return ""
        name = found[1]
    known = _names.get(name)
    return _named(name) if known is None else known


def _named(name: bytes) -> str:
    text = name.decode("utf-8", "replace")
    label = text if len(text) <= MODEL_CHARS_MAX and _PLAIN_NAME.fullmatch(text) else ""
    if len(_names) < NAMES_MAX:
        _names[name] = label
    return label


def finish_in(body: bytes) -> str:
    """Why an answer or a stream's end says that it ended, in the provider's own word; '' where it does not."""
    # inside of a text its quotation marks would be escaped
    found = _FINISH.findall(body[-HEAD_BYTES:])
    if found:
        return found[-1].decode()
    # the Responses API's own: its items have a status as well, behind that of the whole
    first = _RESPONSE_ENDS.search(body)
    if first is None and body[:1] == b"{" and b'"response"' in body[:ID_BYTES]:
        first = _RESPONSE_IS.search(body, 0, HEAD_BYTES)
    return first[1].decode() if first else ""


def id_in(body: bytes) -> str:
    """The id that an answer, or the beginning of a stream, gives itself; '' for none."""
    found = _ID.search(body, 0, ID_BYTES)
    return found[1].decode() if found else ""


def estimated_input(body: bytes) -> int:
    """What a request takes, where nobody tells: a token for four bytes of its body, pictures and files left out."""
    size = len(body)
    if size > PACKED_RUN_BYTES:
        size -= sum(len(run) for run in _PACKED_RUN.findall(body))
    return -(-size // BYTES_PER_TOKEN)


def estimated_output(part: bytes, whole_bytes: int) -> int:
    """What an answer took, where nobody tells: a token for four bytes of the texts in it.

    `part` is what is known of an answer of `whole_bytes`, and stands for the rest.
    """
    if not part or not whole_bytes:
        return 0
    size = sum(map(len, _TEXTS.findall(part))) * max(1.0, whole_bytes / len(part))
    return -int(-size // BYTES_PER_TOKEN)
