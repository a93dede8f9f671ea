"""Ollama's embeddings: `POST /api/embed`, one vector a text, and the older `POST /api/embeddings`, one text and vector.

    {"input": "a" | ["a", "b"]}  -->  {"model", "embeddings": [[…], […]], "total_duration": ns, "prompt_eval_count"}
    {"prompt": "a"}              -->  {"embedding": […]}

Ollama puts no prefix before a text: whoever uses a model that wants one has put it there already. The Python client
neither retries nor gives up: it has no timeout of its own, so our deadline is the only one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from understudy.policies.service import Answer, Call, Headers, Refused, Request
from understudy.proxy.asks import EmbedAsk
from understudy.proxy.dialects.base import asked_once, json_answer, parsed
from understudy.proxy.dialects.openai import ErrorsInside

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INPUTS_MAX = 2048
"""The API knows no bound; a larger batch is for the server itself, whose time it takes."""
NS_PER_S = 1_000_000_000
_SHAPES = {b"/api/embed": "embed", b"/api/embeddings": "embeddings"}


class _Embed(msgspec.Struct):
    input: str | list[str] | None = None
    model: str = ""
    truncate: bool | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None


class _Embeddings(msgspec.Struct):
    prompt: str = ""
    model: str = ""


_EMBED = msgspec.json.Decoder(_Embed)
_EMBEDDINGS = msgspec.json.Decoder(_Embeddings)


class OllamaEmbed(ErrorsInside):
    """`ollama-embed`: both forms are of kind embed, everything else is passed through."""

    name = "ollama-embed"
    idle_fields = frozenset({"keep_alive"})

    def read(self, request: Request) -> Call:
        """By method and path alone: the body stays unread."""
        is_embed = request.method == b"POST" and _shape_of(request.path) != ""
        return Call("embed" if is_embed else "pass", request, dialect=self.name)

    def ask(self, call: Call) -> EmbedAsk:
        """Texts as they are to be read. Raises BadRequest where Ollama would answer 400."""
        return asked_once(call, EmbedAsk, self._asked, "invalid request")

    def _asked(self, call: Call) -> EmbedAsk:
        if call.kind != "embed":
            raise Refused("unsupported", "only POST /api/embed and /api/embeddings ask for vectors")
        shape = _shape_of(call.request.path)
        return _asks_many(parsed(_EMBED, call.request.body)) if shape == "embed" else _asks_one(call.request.body)

    def error(self, status: int, reason: str, detail: str, *, headers: Headers | None = None) -> Answer:  # noqa: ARG002
        """A sentence and no more: the reason stands in our own headers."""
        return json_answer(status, {"error": detail}, headers)

    def embedded(
        self, ask: EmbedAsk, vectors: NDArray[np.float32], tokens: int, model: str, took_s: float = 0.0
    ) -> Answer:
        """Durations are in nanoseconds; of loading none is told, since the model is there already."""
        if ask.shape == "embeddings":
            return json_answer(200, {"embedding": vectors[0].tolist() if len(vectors) else []})
        said: dict[str, Any] = {
            "model": model,
            "embeddings": vectors.tolist(),
            "total_duration": round(took_s * NS_PER_S),
            "load_duration": 0,
            "prompt_eval_count": tokens,
        }
        return json_answer(200, said)


def _shape_of(path: bytes) -> str:
    at = path.rfind(b"/api/")
    return _SHAPES.get(path[at:], "") if at >= 0 else ""


def _asks_many(body: _Embed) -> EmbedAsk:
    given = [body.input] if isinstance(body.input, str) else body.input or []
    if len(given) > INPUTS_MAX:
        raise Refused("unsupported", f"{len(given)} texts at once; at most {INPUTS_MAX} are embedded here")
    # an empty string alone only has Ollama load the model, and there are no vectors in its answer
    texts = () if body.input == "" else tuple(given)
    return EmbedAsk(
        texts, body.model, dimensions=body.dimensions, kind="as_is", whole=body.truncate is False, shape="embed"
    )


def _asks_one(raw: bytes) -> EmbedAsk:
    body = parsed(_EMBEDDINGS, raw)
    return EmbedAsk((body.prompt,) if body.prompt else (), body.model, kind="as_is", shape="embeddings")
