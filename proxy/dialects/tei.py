"""Text Embeddings Inference: `POST /embed`, or `/` as Hugging Face's client asks it; a bare list of vectors.

    {"inputs": "a" | ["a", "b"], "truncate", "normalize", "prompt_name", "dimensions"}  -->  [[…], […]]
    {"error": "text", "error_type": "Overloaded"}                                           an error

Its OpenAI-compatible `/v1/embeddings` is the dialect openai-embeddings, on a route of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from understudy.policies.service import Answer, Call, Headers, Refused, Request
from understudy.proxy.asks import EmbedAsk, EmbedKind
from understudy.proxy.dialects.base import SPACE, BadRequest, asked_once, is_encoded, json_answer, parsed
from understudy.proxy.dialects.plain import Plain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INPUTS_MAX = 2048
_TYPES = {400: "Empty", 413: "Validation", 422: "Tokenizer", 424: "Backend", 429: "Overloaded"}
_PROMPTS: dict[str, EmbedKind] = {"query": "query", "document": "document", "passage": "document"}

_Part = str | int | list[int]


class _Body(msgspec.Struct):
    inputs: str | list[_Part]
    truncate: bool | None = None
    truncation_direction: str | None = None
    normalize: bool | None = None
    prompt_name: str | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None


_BODY = msgspec.json.Decoder(_Body)


class Tei(Plain):
    """`tei`: a POST to `/embed` or `/` is of kind embed, everything else is passed through."""

    name = "tei"

    def read(self, request: Request) -> Call:
        """By method and path alone: the body stays unread."""
        is_embed = request.method == b"POST" and (request.path in (b"", b"/") or request.path.endswith(b"/embed"))
        return Call("embed" if is_embed else "pass", request, dialect=self.name)

    def ask(self, call: Call) -> EmbedAsk:
        """Texts, or token ids in `tokens`. Raises BadRequest where TEI would, Refused for vectors of another length."""
        return asked_once(call, EmbedAsk, self._asked, "Failed to deserialize the JSON body", 422)

    def _asked(self, call: Call) -> EmbedAsk:
        if call.kind != "embed":
            raise Refused("unsupported", "only POST /embed asks for vectors")
        body = parsed(_BODY, call.request.body)
        if body.normalize is False:
            raise Refused("unsupported", "the local model's vectors are of unit length")
        texts, tokens = _sorted_out(body.inputs)
        from_left = (body.truncation_direction or "Right").lower() == "left"
        return EmbedAsk(
            texts,
            "",
            dimensions=body.dimensions,
            tokens=tokens,
            kind=_kind(body.prompt_name),
            # TEI cuts only when told to, and the local model keeps the beginning
            whole=not body.truncate or from_left,
        )

    def failure_within(self, answer: Answer) -> str:
        """`error_in_200` for an error instead of a list; `garbage` for what is no list of vectors, or one with nulls in
        it, which is how JSON writes numbers that overflowed."""
        if is_encoded(answer):
            return ""
        body = answer.body
        if body[:64].lstrip(SPACE)[:1] == b"{" and b'"error"' in body[:1024]:
            return "error_in_200"
        if not (_pair(body[:64].lstrip(SPACE), b"[") and _pair(body[-64:].rstrip(SPACE)[::-1], b"]")):
            return "garbage"
        return "garbage" if b"null" in body else ""

    def error(self, status: int, reason: str, detail: str, *, headers: Headers | None = None) -> Answer:  # noqa: ARG002
        """As TEI words it, for which the statuses stand; the reason stands in our own headers."""
        kind = _TYPES.get(status, "Unhealthy" if status >= 500 else "Validation")
        return json_answer(status, {"error": detail, "error_type": kind}, headers)

    def embedded(
        self,
        ask: EmbedAsk,  # noqa: ARG002
        vectors: NDArray[np.float32],
        tokens: int,
        model: str,  # noqa: ARG002
        took_s: float = 0.0,
    ) -> Answer:
        """A bare list. TEI tells tokens and times in headers, and which model in none."""
        told = [(b"x-compute-tokens", b"%d" % tokens), (b"x-total-time", b"%d" % round(took_s * 1000))]
        return json_answer(200, vectors.tolist(), told)


def _pair(end: bytes, bracket: bytes) -> bool:
    """Whether two brackets stand first, one vector's and the list's."""
    return end[:1] == bracket and end[1:].lstrip(SPACE)[:1] == bracket


def _kind(prompt_name: str | None) -> EmbedKind:
    """Without the name of a prompt a text is read as it is; names are the model's own, and two or three are usual."""
    return "as_is" if prompt_name is None else _PROMPTS.get(prompt_name.lower(), "other")


def _sorted_out(given: str | list[_Part]) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """The forms of `inputs` as (texts, token arrays), one of which is empty."""
    parts = [given] if isinstance(given, str) else given
    if not parts:
        raise BadRequest("`inputs` cannot be empty")
    if all(isinstance(part, int) for part in parts):
        return (), (tuple(part for part in parts if isinstance(part, int)),)
    if len(parts) > INPUTS_MAX:
        raise BadRequest(f"batch size {len(parts)} > maximum allowed batch size {INPUTS_MAX}", status=413)
    if any(part in ("", []) for part in parts):
        raise BadRequest("`inputs` cannot be empty", status=413)
    texts = tuple(part for part in parts if isinstance(part, str))
    tokens = tuple(tuple(part) for part in parts if isinstance(part, list))
    if len(parts) not in (len(texts), len(tokens)):
        raise BadRequest("`inputs` must be a text, texts, or arrays of token ids", status=422)
    return texts, tokens
