"""Cohere's embeddings, second version: `POST /v2/embed`, vectors by type, and texts that say what they are for.

    {"texts" | "inputs", "input_type": "search_query", "embedding_types": ["float"], "output_dimension", "truncate"}
        -->  {"id", "embeddings": {"float": [[…]]}, "texts", "meta", "response_type": "embeddings_by_type"}
    {"message": "text"}                                                                     an error

`search_query` and `search_document` are what other models put prefixes for. Bytes and bits (`int8`, `ubinary`, …) are
Cohere's own quantisation, calibrated for its own models: no other model's vectors can be written so.
"""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from understudy.policies.service import Answer, Call, Headers, Refused, Request
from understudy.proxy.asks import EmbedAsk, EmbedKind
from understudy.proxy.dialects.base import (
    BadRequest,
    Malformed,
    asked_once,
    given,
    is_encoded,
    json_answer,
    looks_like_object,
    parsed,
)
from understudy.proxy.dialects.plain import Plain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TEXTS_MAX = 96
"""The API's own bound on the texts of one request."""
LONG_BYTES = 4096
END_BYTES = 1024
_KINDS: dict[str, EmbedKind] = {
    "search_query": "query",
    "search_document": "document",
    "classification": "other",
    "clustering": "other",
}
_FAITHFUL = frozenset({"float", "base64"})
_TYPES = _FAITHFUL | {"int8", "uint8", "binary", "ubinary"}
_CUTS = frozenset({"NONE", "START", "END"})


class _Content(msgspec.Struct):
    type: str = ""
    text: str | None = None


class _Input(msgspec.Struct):
    content: str | list[_Content]


class _Body(msgspec.Struct):
    texts: list[str] | None = None
    inputs: list[_Input] | None = None
    images: msgspec.Raw = msgspec.Raw()
    model: str = ""
    input_type: str | None = None
    embedding_types: list[str] | None = None
    output_dimension: Annotated[int, Meta(ge=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    truncate: str | None = None


class _Peek(msgspec.Struct):
    embeddings: msgspec.Raw = msgspec.Raw()
    message: msgspec.Raw = msgspec.Raw()


_BODY = msgspec.json.Decoder(_Body)
_PEEK = msgspec.json.Decoder(_Peek)


class CohereEmbed(Plain):
    """`cohere-embed`: a POST to `/v2/embed` is of kind embed, everything else is passed through."""

    name = "cohere-embed"

    def read(self, request: Request) -> Call:
        """By method and path alone: the body stays unread."""
        is_embed = request.method == b"POST" and request.path.endswith(b"/v2/embed")
        return Call("embed" if is_embed else "pass", request, dialect=self.name)

    def ask(self, call: Call) -> EmbedAsk:
        """Texts and what they are for. Raises BadRequest where Cohere would answer 400, Refused for images, for types
        that only Cohere can write, and for a text cut otherwise than at its end."""
        return asked_once(call, EmbedAsk, self._asked, "invalid request")

    def _asked(self, call: Call) -> EmbedAsk:
        if call.kind != "embed":
            raise Refused("unsupported", "only POST /v2/embed asks for vectors")
        body = parsed(_BODY, call.request.body)
        cut = _cut(body)
        return EmbedAsk(
            _texts(body),
            body.model,
            dimensions=body.output_dimension,
            kind=_kind(body.input_type),
            whole=cut != "END",
            shape=",".join(_wanted(body.embedding_types)),
            id=call.id,
        )

    def failure_within(self, answer: Answer) -> str:
        """`garbage` for what cannot be JSON, `error_in_200` for a message instead of vectors."""
        if is_encoded(answer):
            return ""
        body = answer.body
        if not looks_like_object(body):
            return "garbage"
        ends = body if len(body) <= LONG_BYTES else body[:END_BYTES] + body[-END_BYTES:]
        if b'"message"' not in ends:
            return ""
        try:
            peek = parsed(_PEEK, body)
        except Malformed:
            return "garbage"
        return "error_in_200" if given(peek.message) and not given(peek.embeddings) else ""

    def error(self, status: int, reason: str, detail: str, *, headers: Headers | None = None) -> Answer:  # noqa: ARG002
        """A sentence; the reason stands in our own headers."""
        return json_answer(status, {"message": detail}, headers)

    def embedded(
        self,
        ask: EmbedAsk,
        vectors: NDArray[np.float32],
        tokens: int,
        model: str,  # noqa: ARG002 - Cohere's answer has no place for it
        took_s: float = 0.0,  # noqa: ARG002
    ) -> Answer:
        by_type: dict[str, Any] = {}
        if "float" in ask.shape:
            by_type["float"] = vectors.tolist()
        if "base64" in ask.shape:
            by_type["base64"] = [b64encode(vector.astype("<f4").tobytes()).decode("ascii") for vector in vectors]
        # billed: nothing; the tokens are those of the local model, which nobody pays for
        meta = {
            "api_version": {"version": "2"},
            "billed_units": {"input_tokens": 0},
            "tokens": {"input_tokens": tokens},
        }
        said = {
            "id": ask.id,
            "embeddings": by_type,
            "texts": list(ask.texts),
            "meta": meta,
            "response_type": "embeddings_by_type",
        }
        return json_answer(200, said)


def _texts(body: _Body) -> tuple[str, ...]:
    if given(body.images):
        raise Refused("unsupported", "the local model reads no images")
    if (body.texts is None) == (body.inputs is None):
        raise BadRequest("invalid request: exactly one of texts, inputs or images must be given")
    texts = body.texts if body.texts is not None else [_text(each) for each in body.inputs or []]
    if not texts:
        raise BadRequest("invalid request: at least one text must be given")
    if len(texts) > TEXTS_MAX:
        raise BadRequest(f"invalid request: total number of texts must be at most {TEXTS_MAX} - received {len(texts)}")
    return tuple(texts)


def _text(given: _Input) -> str:
    """The one text of an input that may hold texts and images together."""
    if isinstance(given.content, str):
        return given.content
    if len(given.content) != 1 or given.content[0].type != "text" or given.content[0].text is None:
        raise Refused("unsupported", "the local model reads one text an input, and no images")
    return given.content[0].text


def _kind(input_type: str | None) -> EmbedKind:
    if input_type == "image":
        raise Refused("unsupported", "the local model reads no images")
    if input_type not in _KINDS:
        raise BadRequest(f"invalid request: input_type must be one of {', '.join(_KINDS)}")
    return _KINDS[input_type]


def _wanted(types: list[str] | None) -> list[str]:
    wanted = types or ["float"]
    if not _TYPES.issuperset(wanted):
        raise BadRequest(f"invalid request: embedding_types must be of {', '.join(sorted(_TYPES))}")
    if not _FAITHFUL.issuperset(wanted):
        raise Refused("unsupported", "bytes and bits are Cohere's own quantisation; float and base64 are not")
    return wanted


def _cut(body: _Body) -> str:
    """Where a text that is too long is cut."""
    if body.max_tokens is not None:
        raise Refused("unsupported", "max_tokens counts in another tokeniser's tokens")
    cut = body.truncate or "END"
    if cut not in _CUTS:
        raise BadRequest(f"invalid request: truncate must be one of {', '.join(sorted(_CUTS))}")
    return cut
