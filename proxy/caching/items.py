"""Embeddings are kept one by one: a batch is asked for what is missing, and put together again in its own order.

    ["b", "a", "c"], a known --> upstream is asked ["b", "c"] --> answered {1: c, 0: b} --> [b, a, c], index 0, 1, 2

A vector's key holds everything that decides its space: the route and its upstreams, the model, the dimensions, the
encoding, and every other field but the input. Nothing is ever converted. Vectors are kept as they are written, so that
none is parsed and none loses a digit.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from understudy.proxy.caching.keys import Fields, canonical, digest, spelling
from understudy.proxy.caching.values import Value

ITEMIZED = frozenset(("openai-embeddings",))
"""The dialects whose embeddings are kept one by one."""
ITEMS_MAX = 2048
_INPUT = "input"
_RAWS = msgspec.json.Decoder(list[msgspec.Raw])
_FRONT = b'{"object":"list","data":['
_BACK = b'],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
JSON_BLOCK = b"content-type: application/json\r\n"


class _Datum(msgspec.Struct):
    embedding: msgspec.Raw
    index: int


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _Reply(msgspec.Struct):
    data: list[_Datum]
    model: msgspec.Raw = msgspec.Raw(b'""')
    usage: _Usage | None = None


_REPLY = msgspec.json.Decoder(_Reply)


class Batch:
    """The inputs of one request, each as it is written and with its key; `is_many` when there is more than one."""

    __slots__ = ("fields", "is_many", "keys", "raws")

    def __init__(self, fields: Fields, raws: list[bytes], keys: list[bytes]) -> None:
        self.fields = fields
        self.raws = raws
        self.keys = keys
        self.is_many = len(raws) > 1

    def body_for(self, places: Sequence[int]) -> bytes:
        """The same request for some of its inputs only."""
        inputs = b"[" + b",".join([self.raws[place] for place in places]) + b"]"
        fields = {name: bytes(raw) for name, raw in self.fields.items()} | {_INPUT: inputs}
        return b"{" + b",".join([b"%b:%b" % (msgspec.json.encode(name), raw) for name, raw in fields.items()]) + b"}"


def batch_of(fields: Fields, prefix: bytes, idle: frozenset[str]) -> Batch | None:
    """The inputs of an embeddings request; None where they are not what the API knows."""
    given = fields.get(_INPUT)
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
    space = digest(prefix, canonical(fields, idle | {_INPUT}))
    return Batch(fields, raws, [digest(space, spelling(msgspec.Raw(raw))) for raw in raws])


def values_of(body: bytes, block: bytes, raws: Sequence[bytes]) -> list[Value] | None:
    """An answer taken apart: one value for each of `raws`, the inputs it answers, in their order and not in its own.

    None where it does not answer exactly those.
    """
    try:
        reply = _REPLY.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if sorted(datum.index for datum in reply.data) != list(range(len(raws))):
        return None
    vectors = [b""] * len(raws)
    for datum in reply.data:
        vectors[datum.index] = bytes(datum.embedding)
    if any(vector[:1] not in (b"[", b'"') or vector in (b"[]", b'""') for vector in vectors):
        return None
    counted = shares(reply.usage.prompt_tokens if reply.usage else 0, [len(raw) for raw in raws])
    if len(raws) == 1:
        # a single one is told again byte for byte
        start = body.find(vectors[0])
        return [Value(200, block, body, vector=(start, start + len(vectors[0])), tokens=counted[0])]
    model = bytes(reply.model)
    return [_single(vector, model, count, block) for vector, count in zip(vectors, counted, strict=True)]


def _single(vector: bytes, model: bytes, tokens: int, block: bytes) -> Value:
    front = _FRONT + b'{"object":"embedding","index":0,"embedding":'
    body = b"%b%b}" % (front, vector) + _BACK % (model, tokens, tokens)
    return Value(200, block, body, vector=(len(front), len(front) + len(vector)), tokens=tokens)


def together(values: Sequence[Value], block: bytes) -> Value:
    """One answer for many values, in their order; the tokens are those that all of them have counted."""
    data = [
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, value.body[value.vector[0] : value.vector[1]])
        for index, value in enumerate(values)
    ]
    tokens = sum([value.tokens for value in values])
    body = b"".join((_FRONT, b",".join(data), _BACK % (_model_of(values[0].body), tokens, tokens)))
    return Value(200, block, body)


def _model_of(body: bytes) -> bytes:
    try:
        return bytes(_REPLY.decode(body).model)
    except (msgspec.DecodeError, UnicodeDecodeError):
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
