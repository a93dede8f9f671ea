"""Read the vectors of an embeddings answer as float32 bytes, whoever's wire format it is in."""

from __future__ import annotations

from array import array
from base64 import b64decode
from collections.abc import Iterator

import msgspec

from understudy.policies.service import Answer
from understudy.proxy.caching.items import LAYOUTS


def encoding_of(answer: Answer) -> bytes:
    """How a body is packed; b"" where it is not."""
    if not answer.packed:
        return b""
    for line in answer.lines().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-encoding":
            return value.strip().lower()
    return b""


_FLOATS = msgspec.json.Decoder(list[float])
_TEXT = msgspec.json.Decoder(str)


def vectors_in(dialect: str, body: bytes) -> list[bytes]:
    """The vectors of an embeddings answer as float32 bytes, in the order of the inputs. Raises ValueError."""
    layout = LAYOUTS.get(dialect)
    raws = list(layout.read(body).vectors) if layout is not None else list(_of_cohere(body))
    if layout is not None and not raws:
        raise ValueError("no vectors")
    return [_float32(raw) for raw in raws]


class _Cohere(msgspec.Struct):
    embeddings: dict[str, list[msgspec.Raw]]


_COHERE = msgspec.json.Decoder(_Cohere)


def _of_cohere(body: bytes) -> Iterator[bytes]:
    told = _COHERE.decode(body).embeddings
    for raw in told.get("float") or told.get("base64") or ():
        yield bytes(raw)


def _float32(raw: bytes) -> bytes:
    if raw[:1] == b'"':
        packed = b64decode(_TEXT.decode(raw), validate=True)
        if len(packed) % 4:
            raise ValueError("no float32")
        return packed
    return array("f", _FLOATS.decode(raw)).tobytes()
