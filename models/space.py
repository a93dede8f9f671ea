"""Say which vector space a vector lives in: two spaces of one dimension compare without an error, and mean nothing.

A query vector of one model searched among vectors of another finds the right passage 0.3 % of the time, and nothing
complains. So every vector store, cache entry and index carries the identity of its space, and compares it first.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

__all__ = ["Space", "canonical_name", "same_space"]


@dataclass(frozen=True, slots=True)
class Space:
    """The identity of a vector space: two vectors may be compared exactly when their Spaces have one fingerprint.

    `query_prefix` and `document_prefix` are put before every text of that kind (E5 and BGE want them); they belong to
    the identity, for the same text under another prefix is another vector. `revision` names the weights (a hash, or
    the operator's word), not the precision they run in: int8 and fp32 of one model share a space (measured: mixing
    them costs 0.1 points of recall@10).
    """

    name: str
    dimensions: int
    normalised: bool = True
    query_prefix: str = ""
    document_prefix: str = ""
    revision: str = ""

    @property
    def fingerprint(self) -> str:
        """16 hex digits over everything that changes a vector; the name enters in its canonical form."""
        parts = (
            canonical_name(self.name),
            str(self.dimensions),
            str(self.normalised),
            self.query_prefix,
            self.document_prefix,
            self.revision,
        )
        # The unit separator cannot be confused with a prefix's own text, so "a"+"bc" and "ab"+"c" stay apart.
        return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def prefixed(self, text: str, kind: str) -> str:
        """The text as the model must see it; `kind` is "query" or "document"."""
        return (self.document_prefix if kind == "document" else self.query_prefix) + text


def canonical_name(name: str) -> str:
    """A model's name as it is compared: without the organisation before the last slash, in lower case.

    "sentence-transformers/all-MiniLM-L6-v2" and "all-minilm-l6-v2" are one model. A tag after a colon stays: in
    "nomic-embed-text:v1.5" it names other weights.
    """
    return name.strip().rstrip("/").rsplit("/", 1)[-1].casefold()


def same_space(a_name: str, b_name: str) -> bool:
    """Whether two model names mean the same vector space. An empty name is unknown, and equals nothing."""
    a, b = canonical_name(a_name), canonical_name(b_name)
    return bool(a) and a == b
