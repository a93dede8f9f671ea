"""Embeddings are kept one by one: a batch is asked for what is missing, and put together again in its own order.

    ["b", "a", "c"], a known --> upstream is asked ["b", "c"] --> answered {1: c, 0: b} --> [b, a, c], index 0, 1, 2

A vector's key holds everything that decides its space: the route and its upstreams, the model, the dimensions, the
encoding, and every other field but the input. Nothing is ever converted. Vectors are kept as they are written, so that
none is parsed and none loses a digit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from understudy.proxy.caching.keys import Fields, canonical, digest, spelling
from understudy.proxy.caching.values import Value

ITEMS_MAX = 2048
_RAWS = msgspec.json.Decoder(list[msgspec.Raw])
_FRONT = b'{"object":"list","data":['
_BACK = b'],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
_OLLAMA_BACK = b'],"total_duration":0,"load_duration":0,"prompt_eval_count":%d}'
JSON_BLOCK = b"content-type: application/json\r\n"


class Told(NamedTuple):
    """What an answer tells: vectors in the order of the inputs, each as it is written, the model's name, and tokens."""

    vectors: list[bytes]
    model: bytes = b'""'
    tokens: int = 0


class Layout(NamedTuple):
    """How a dialect writes inputs and vectors: `item` writes one vector at its place, `frame` what stands around all of
    them. `read` raises ValueError for an answer that is none."""

    input: str
    read: Callable[[bytes], Told]
    item: Callable[[int, bytes], bytes]
    frame: Callable[[bytes, int], tuple[bytes, bytes]]


class _Datum(msgspec.Struct):
    embedding: msgspec.Raw
    index: int


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _Reply(msgspec.Struct):
    data: list[_Datum]
    model: msgspec.Raw = msgspec.Raw(b'""')
    usage: _Usage | None = None


class _Ollama(msgspec.Struct):
    embeddings: list[msgspec.Raw]
    model: msgspec.Raw = msgspec.Raw(b'""')
    prompt_eval_count: int = 0


_REPLY = msgspec.json.Decoder(_Reply)
_OLLAMA = msgspec.json.Decoder(_Ollama)


def _openai(body: bytes) -> Told:
    reply = _REPLY.decode(body)
    if sorted(datum.index for datum in reply.data) != list(range(len(reply.data))):
        raise ValueError("the places are not those of the inputs")
    vectors = [b""] * len(reply.data)
    for datum in reply.data:
        vectors[datum.index] = bytes(datum.embedding)
    return Told(vectors, bytes(reply.model), reply.usage.prompt_tokens if reply.usage else 0)


def _ollama(body: bytes) -> Told:
    reply = _OLLAMA.decode(body)
    return Told([bytes(raw) for raw in reply.embeddings], bytes(reply.model), reply.prompt_eval_count)


def _tei(body: bytes) -> Told:
    return Told([bytes(raw) for raw in _RAWS.decode(body)])


def _indexed(index: int, vector: bytes) -> bytes:
    return b'{"object":"embedding","index":%d,"embedding":%b}' % (index, vector)


def _bare(_index: int, vector: bytes) -> bytes:
    return vector


def _around_openai(model: bytes, tokens: int) -> tuple[bytes, bytes]:
    return _FRONT, _BACK % (model, tokens, tokens)


def _around_ollama(model: bytes, tokens: int) -> tuple[bytes, bytes]:
    # what is kept takes no time
    return b'{"model":%b,"embeddings":[' % model, _OLLAMA_BACK % tokens


def _around_tei(_model: bytes, _tokens: int) -> tuple[bytes, bytes]:
    return b"[", b"]"


_OF_OPENAI = Layout("input", _openai, _indexed, _around_openai)
LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "openai-embeddings": _OF_OPENAI,
        "azure-openai-embeddings": _OF_OPENAI,
        "ollama-embed": Layout("input", _ollama, _bare, _around_ollama),
        "tei": Layout("inputs", _tei, _bare, _around_tei),
    }
)
"""The dialects whose embeddings are kept one by one. Others' answers are kept whole."""


class Batch:
    """The inputs of one request, each as it is written and with its key; `is_many` when there is more than one."""

    __slots__ = ("fields", "is_many", "keys", "layout", "raws")

    def __init__(self, layout: Layout, fields: Fields, raws: list[bytes], keys: list[bytes]) -> None:
        self.layout = layout
        self.fields = fields
        self.raws = raws
        self.keys = keys
        self.is_many = len(raws) > 1

    def body_for(self, places: Sequence[int]) -> bytes:
        """The same request for some of its inputs only."""
        inputs = b"[" + b",".join([self.raws[place] for place in places]) + b"]"
        fields = {name: bytes(raw) for name, raw in self.fields.items()} | {self.layout.input: inputs}
        return b"{" + b",".join([b"%b:%b" % (msgspec.json.encode(name), raw) for name, raw in fields.items()]) + b"}"


def batch_of(layout: Layout, fields: Fields, prefix: bytes, idle: frozenset[str]) -> Batch | None:
    """The inputs of an embeddings request; None where they are not what the API knows."""
    given = fields.get(layout.input)
    if given is None:
        return None
    written = bytes(given)
    raws = [written]
    if written.startswith(b"["):
        try:
            raws = [bytes(raw) for raw in _RAWS.decode(written)]
        except msgspec.DecodeError:
            return None
        if raws and raws[0][:1] in b"0123456789":
            # one text as token ids
            raws = [written]
    if not raws or len(raws) > ITEMS_MAX or any(raw[:1] not in (b'"', b"[") for raw in raws):
        return None
    space = digest(prefix, canonical(fields, idle | {layout.input}))
    return Batch(layout, fields, raws, [digest(space, spelling(msgspec.Raw(raw))) for raw in raws])


def values_of(layout: Layout, body: bytes, block: bytes, raws: Sequence[bytes]) -> list[Value] | None:
    """An answer taken apart: one value for each of `raws`, the inputs it answers, in their order and not in its own.

    None where it does not answer exactly those.
    """
    try:
        vectors, model, tokens = layout.read(body)
    except (ValueError, RecursionError):
        return None
    if len(vectors) != len(raws):
        return None
    if any(vector[:1] not in (b"[", b'"') or vector in (b"[]", b'""') for vector in vectors):
        return None
    counted = shares(tokens, [len(raw) for raw in raws])
    if len(raws) == 1:
        # a single one is told again byte for byte
        start = body.find(vectors[0])
        return [Value(200, block, body, vector=(start, start + len(vectors[0])), tokens=counted[0])]
    return [_single(layout, vector, model, count, block) for vector, count in zip(vectors, counted, strict=True)]


def _single(layout: Layout, vector: bytes, model: bytes, tokens: int, block: bytes) -> Value:
    front, back = layout.frame(model, tokens)
    item = layout.item(0, vector)
    start = len(front) + item.rfind(vector)
    return Value(200, block, front + item + back, vector=(start, start + len(vector)), tokens=tokens)


def together(layout: Layout, values: Sequence[Value], block: bytes) -> Value:
    """One answer for many values, in their order; the tokens are those that all of them have counted."""
    items = [layout.item(index, value.body[value.vector[0] : value.vector[1]]) for index, value in enumerate(values)]
    front, back = layout.frame(_model_of(layout, values[0].body), sum([value.tokens for value in values]))
    return Value(200, block, b"".join((front, b",".join(items), back)))


def _model_of(layout: Layout, body: bytes) -> bytes:
    try:
        return layout.read(body).model
    except ValueError:
        return b'""'


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """`total` shared out by `weights` in whole numbers, with nothing lost: upstreams count tokens for a batch only."""
    whole = sum(weights) or 1
    given: list[int] = []
    before = 0
    for weight in weights:
        given.append((before + weight) * total // whole - before * total // whole)
        before += weight
    return given
