"""Give a handle in place of a vector: the local model's vector, at the dimensions the application expects, and marked.

    texts --> the local model --> vectors --> handles --> the caller, with x-understudy-space
                                                +--> the ledger: which texts, and the whole vectors

Not for documents: a handle that is stored would poison an index, and a failure can be repeated.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from understudy.models.space import Space, canonical_name
from understudy.policies.marks import DIMENSIONS_MIN, handle_of
from understudy.policies.service import Answer, Call, Refused
from understudy.proxy.asks import EmbedAsk
from understudy.proxy.settings.settings import DeclaredSpace, Spaces
from understudy.proxy.spaces.provenance import Decodes, Provenance, tenant_by
from understudy.proxy.spaces.reembedding import Way

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SPACE_HEADER = b"x-understudy-space"
KNOWN_DIMENSIONS: Mapping[str, int] = MappingProxyType(
    {
        "text-embedding-3-small": 1536,
        "text-embedding-3-large": 3072,
        "text-embedding-ada-002": 1536,
        "embed-english-v3.0": 1024,
        "embed-multilingual-v3.0": 1024,
        "nomic-embed-text": 768,
        "mxbai-embed-large": 1024,
        "bge-m3": 1024,
    }
)
"""What models are known for, until an answer of theirs has been seen."""


class Handing:
    """What one embeddings route does where the local model's vectors are not its own. `space` is the route's."""

    __slots__ = ("declared", "hands_out", "provenance", "route", "rules", "space", "vocabulary")

    def __init__(
        self,
        route: str,
        rules: Spaces,
        space: str,
        provenance: Provenance,
        *,
        declared: DeclaredSpace | None = None,
        hands_out: bool = False,
    ) -> None:
        self.route = route
        self.rules = rules
        self.space = space
        self.provenance = provenance
        self.declared = declared
        self.hands_out = hands_out
        self.vocabulary: Decodes | None = provenance.vocabulary_of(rules.tiktoken_file)

    def readable(self, ask: EmbedAsk) -> EmbedAsk:
        """The ask with texts, where it came with token ids and the policy names their vocabulary. Raises Refused. Reads
        a file at first: call it in a thread."""
        if not ask.tokens:
            return ask
        if self.vocabulary is None:
            raise self.unavailable(
                "token_input",
                "token ids of another tokeniser cannot be embedded here; let the client send text "
                "(LangChain: check_embedding_ctx_length=False), or name a tiktoken_file in the route's spaces",
            )
        try:
            texts = tuple(map(self.vocabulary.decode, ask.tokens))
        except ValueError as fault:
            raise self.unavailable("token_input", f"these token ids are not of the tiktoken_file: {fault}") from None
        return replace(ask, texts=texts, tokens=())

    def dimensions(self, ask: EmbedAsk, own: Space) -> int:
        """How long the handles must be. Raises Refused where none may be given."""
        if not self.hands_out:
            raise self.unavailable(
                "space",
                f"this route's vectors are {self.space or 'of a space that nobody named'}, "
                f"the local model's are {own.name}",
            )
        if self.rules.bulk == "error" and (ask.kind == "document" or len(ask.texts) > self.rules.bulk_texts_max):
            raise self.unavailable(
                "bulk", f"{len(ask.texts)} texts look like documents, and fallback vectors would poison their index"
            )
        many = ask.dimensions or self._usual(ask)
        if many is None:
            raise self.unavailable("dimensions", f"nobody has seen yet how long vectors of {self.space} are")
        if many < DIMENSIONS_MIN:
            raise self.unavailable("dimensions", f"{many} dimensions have no room for a handle")
        return many

    def _usual(self, ask: EmbedAsk) -> int | None:
        if self.declared is not None and self.declared.dimensions:
            return self.declared.dimensions
        seen = self.provenance.dimensions_of(self.space, ask.model)
        names = (canonical_name(ask.model), canonical_name(self.space))
        return seen or next((KNOWN_DIMENSIONS[name] for name in names if name in KNOWN_DIMENSIONS), None)

    def handles(
        self, call: Call, ask: EmbedAsk, vectors: NDArray[np.float32], dimensions: int, own: Space
    ) -> NDArray[np.float32]:
        """`vectors` [n, own] as handles [n, dimensions]; what they are of is remembered before anybody has them."""
        import numpy as np

        if self.provenance.reembedding.way_of(self.space) is None:
            # nobody has been answered by the embedder yet, and a write may have to wait for it
            way = Way(call.request.target, call.request.path, ask.model)
            self.provenance.reembedding.knows(self.space, way)
        tenant = tenant_by(call.request, self.rules.tenant_headers)
        handles = [handle_of(vector, dimensions, own.name) for vector in vectors.tolist()]
        self.provenance.arm()
        for handle, vector, text in zip(handles, vectors, ask.texts, strict=True):
            whole = array("f", vector.tolist()).tobytes()
            self.provenance.remember(handle.tobytes(), own.name, text, tenant, model=ask.model, own=whole)
        self.provenance.count("handed_out", len(handles))
        # told at once: whoever gets the handle may search with it elsewhere
        self.provenance.drain(0.0)
        return np.asarray(handles, dtype=np.float32)

    def marked(self, answer: Answer, own: Space) -> Answer:
        """The answer, saying in its headers that its vectors are handles, and of which space."""
        said = f"handle; of={own.name}; for={self.space}"
        answer.add(SPACE_HEADER, said.encode("ascii", "replace").replace(b"\r", b"").replace(b"\n", b""))
        return answer

    def unavailable(self, reason: str, detail: str) -> Refused:
        """What to raise where no fallback can be given; counted."""
        key = (self.route, reason)
        self.provenance.unavailable[key] = self.provenance.unavailable.get(key, 0) + 1
        return Refused(reason, detail)
