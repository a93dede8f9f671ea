"""OpenAI's embeddings: `POST …/embeddings` turns texts into vectors, as float lists or base64.

The official SDK asks for base64 (little-endian float32) unless told otherwise. LangChain sends token ids of
OpenAI's own tokenizer instead of text by default: an upstream and a cache can answer those, the local model can't.
"""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from understudy.policies.service import Answer, Call, Refused, Request
from understudy.proxy.asks import EmbedAsk
from understudy.proxy.dialects.base import BadRequest, asked_once, is_encoded, json_answer, parsed
from understudy.proxy.dialects.openai import END_BYTES, UNREADABLE, OpenAI, lacks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INPUTS_MAX = 2048
"""The API's own bound on the inputs of one request."""

_Part = str | int | list[int]


class _Body(msgspec.Struct):
    input: str | list[_Part]
    model: str = ""
    encoding_format: str | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None


_BODY = msgspec.json.Decoder(_Body)


class OpenAIEmbeddings(OpenAI):
    """`openai-embeddings`: a POST is of kind embed, everything else (a list of models, say) is passed through."""

    name = "openai-embeddings"
    idle_fields = frozenset({"user"})

    def read(self, request: Request) -> Call:
        """The body stays unread: policies on embeddings need nothing from it."""
        return Call("embed" if request.method == b"POST" else "pass", request, dialect=self.name)

    def failure_within(self, answer: Answer) -> str:
        """As of every answer of OpenAI's, and `wrong_type` for one with neither data nor vectors: a chat model's,
        or a page that says that all is well."""
        within = super().failure_within(answer)
        # where it stands in nearly all, for 0.1 µs
        if within or b'"data"' in answer.body[:END_BYTES] or is_encoded(answer):
            return within
        return "wrong_type" if lacks(answer.body, b'"data"') and lacks(answer.body, b'"embedding"') else ""

    def ask(self, call: Call) -> EmbedAsk:
        """Texts, or token ids in `tokens`. Raises BadRequest where OpenAI would answer 400."""
        return asked_once(call, EmbedAsk, self._asked, UNREADABLE)

    def _asked(self, call: Call) -> EmbedAsk:
        if call.kind != "embed":
            raise Refused("unsupported", "only POST asks for embeddings")
        body = parsed(_BODY, call.request.body)
        if body.encoding_format not in (None, "float", "base64"):
            raise BadRequest("encoding_format must be 'float' or 'base64'")
        texts, tokens = _sorted_out(body.input)
        return EmbedAsk(texts, body.model, body.encoding_format == "base64", body.dimensions, tokens)

    def embedded(
        self,
        ask: EmbedAsk,
        vectors: NDArray[np.float32],
        tokens: int,
        model: str,
        took_s: float = 0.0,  # noqa: ARG002
    ) -> Answer:
        data = [
            {"object": "embedding", "index": index, "embedding": _base64(vector) if ask.base64 else vector.tolist()}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return json_answer(200, {"object": "list", "data": data, "model": model, "usage": usage})


def _sorted_out(given: str | list[_Part]) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """The four forms of `input` as (texts, token arrays), one of which is empty."""
    parts = [given] if isinstance(given, str) else given
    if not parts:
        raise BadRequest("input must not be an empty array")
    if all(isinstance(part, int) for part in parts):
        return (), (tuple(part for part in parts if isinstance(part, int)),)
    if len(parts) > INPUTS_MAX:
        raise BadRequest(f"input has {len(parts)} elements; at most {INPUTS_MAX} are allowed")
    if any(part in ("", []) for part in parts):
        raise BadRequest("input must not contain an empty string or token array")
    texts = tuple(part for part in parts if isinstance(part, str))
    tokens = tuple(tuple(part) for part in parts if isinstance(part, list))
    if len(parts) not in (len(texts), len(tokens)):
        raise BadRequest("input must be a string, an array of strings, or one or more arrays of token ids")
    return texts, tokens


def _base64(vector: NDArray[np.float32]) -> str:
    return b64encode(vector.astype("<f4").tobytes()).decode("ascii")
