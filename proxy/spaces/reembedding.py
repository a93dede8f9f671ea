"""Embed texts with the primary embedder of a space, once it is back: for what still carries handles.

    a handle in a body --> its text, from the ledger --> the database's own embedder --> the body, with its vector

The embedder is asked through all its tier's policies, so that one that is down costs a refusal and no wait. Whose key
is not set by the tier's own headers is not asked: a caller's is never kept.
"""

from __future__ import annotations

import json
from array import array
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from understudy.models.space import canonical_name
from understudy.policies.marks import MARK_PLACES, Marked, mark_of, unpacked
from understudy.policies.service import Answer, Failed, Headers, Refused, Request, Service
from understudy.proxy.dialects.base import Dialect
from understudy.proxy.spaces.embeddings_told import encoding_of, vectors_in

JSON: Headers = [(b"content-type", b"application/json")]
TEXTS_MAX = 256
"""More texts of one write are not embedded anew in its stead."""

_BODIES: Mapping[str, Callable[[str, Sequence[str]], dict[str, Any]]] = {
    "openai-embeddings": lambda model, texts: {"input": list(texts), "model": model, "encoding_format": "float"},
    "azure-openai-embeddings": lambda model, texts: {"input": list(texts), "model": model, "encoding_format": "float"},
    "ollama-embed": lambda model, texts: {"input": list(texts), "model": model},
    "tei": lambda _model, texts: {"inputs": list(texts)},
    "cohere-embed": lambda model, texts: {
        "texts": list(texts),
        "model": model,
        "input_type": "search_query",
        "embedding_types": ["float"],
    },
}


class Way(NamedTuple):
    """How callers of a route ask: the request's target, its path behind the route's prefix, and the model's name."""

    target: bytes
    path: bytes
    model: str


class Asker:
    """One route's upstream embedder. `way` is how callers ask it; None until the first has."""

    __slots__ = ("clock", "dialect", "numbers", "route", "service")

    def __init__(self, route: str, dialect: Dialect, service: Service, clock: Callable[[], float]) -> None:
        self.route = route
        self.dialect = dialect
        self.service = service
        self.clock = clock
        self.numbers = 0

    async def vectors(self, texts: Sequence[str], way: Way, until: float, *, model: str = "") -> list[bytes]:
        """Float32 bytes, in the order of the texts. Raises Refused, Failed, or ValueError for what is no answer."""
        request = Request(b"POST", way.target, JSON, _body(self.dialect.name, model or way.model, texts), path=way.path)
        call = self.dialect.read(request)
        self.numbers += 1
        call.route, call.dialect, call.id = self.route, self.dialect.name, f"embed-again-{self.numbers:x}"
        call.born = self.clock()
        call.deadline = call.until = until
        answer: Answer = await self.service(call)
        if answer.stream is not None:
            answer.stream.close()
            raise ValueError("the vectors are streamed")
        body = unpacked(answer.body, encoding_of(answer))
        if answer.status != 200 or body is None:
            raise ValueError(f"the embedder answered {answer.status}")
        vectors = vectors_in(self.dialect.name, body)
        if len(vectors) != len(texts) or any(mark_of(array("f", each[-4 * MARK_PLACES :])) for each in vectors):
            raise ValueError("these are not the vectors asked for")
        return vectors


class Reembedding:
    """The embedders there are, by the space of their vectors."""

    def __init__(self) -> None:
        self._askers: dict[str, Asker] = {}
        self.ways: dict[str, Way] = {}

    def offer(self, space: str, asker: Asker) -> None:
        """This one embeds into `space` from now on."""
        self._askers[canonical_name(space)] = asker

    def knows(self, space: str, way: Way) -> None:
        """A caller has asked the embedder of a space, in this way."""
        self.ways[canonical_name(space)] = way

    def way_of(self, space: str) -> Way | None:
        """How callers ask the embedder of a space; None where none has yet."""
        return self.ways.get(canonical_name(space))

    async def vectors(self, space: str, texts: Sequence[str], until: float, *, model: str = "") -> list[bytes] | None:
        """Vectors of `space`, float32 bytes; None where nobody can embed them now."""
        asker, way = self._askers.get(canonical_name(space)), self.way_of(space)
        if asker is None or way is None or len(texts) > TEXTS_MAX:
            return None
        try:
            return await asker.vectors(texts, way, until, model=model)
        except (Refused, Failed, ValueError):
            return None


def _body(dialect: str, model: str, texts: Sequence[str]) -> bytes:
    return json.dumps(_BODIES[dialect](model, texts)).encode()


def with_vectors(body: bytes, places: Sequence[Marked], vectors: Sequence[bytes]) -> bytes:
    """The body with `vectors` (float32 bytes) where handles stood, each written as its handle was."""
    pieces: list[bytes] = []
    at = 0
    for (start, end, _), vector in sorted(zip(places, vectors, strict=True)):
        is_text = body[start : start + 1] == b'"'
        written = b'"%b"' % b64encode(vector) if is_text else json.dumps(array("f", vector).tolist()).encode()
        pieces += [body[at:start], written]
        at = end
    return b"".join([*pieces, body[at:]])
