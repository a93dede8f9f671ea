"""What may be said of vector spaces."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from understudy.proxy.settings.types import Bytes, Count, FilePath, Frozen, PositiveSeconds, Seconds

Dimensions = Annotated[int, Meta(ge=1, le=65536, description="dimensions of a vector")]


class Probing(Frozen, frozen=True):
    """The fingerprint of a space: a few fixed texts are embedded by each endpoint now and then, and compared with what
    they were at first. Only where the tier's own headers bring the key, or nobody's is needed, and once callers have
    shown how it is asked."""

    every_s: Seconds = 40.0
    """Seconds between two measurements of an endpoint, jittered; 0 never measures."""
    cosine_min: Annotated[float, Meta(ge=0.5, le=1)] = 0.999
    """Below this cosine to what it was, the model behind the name has changed."""
    drift: Literal["quarantine", "report"] = "quarantine"
    """quarantine: an endpoint that has changed twice in a row is not asked until it is as it was; report: only said."""
    model: str | None = None
    """The model named in the measurement; without it, the one that callers named last."""


class Holding(Frozen, frozen=True):
    """Writes that wait for their vectors, on disk, with `handles_in_writes: queue`; beyond it they are refused."""

    writes_max: Count = 10_000
    """Writes that may wait."""
    bytes_max: Bytes = 256 * 1024 * 1024
    """Bytes of them, on disk."""


class Spaces(Frozen, frozen=True):
    """Vectors never meet another space's index: what is given in place of a vector, and what becomes of it."""

    handles: Literal["auto", "on", "off"] = "auto"
    """Where the local model is of another space than the route: on answers with opaque handles, which are searched here
    and never reach a primary; auto does where a retrieval route of the same space has a local tier; off refuses."""
    remember: Literal["auto", "on", "off"] = "auto"
    """Keep which text each vector handed out is of, for when only its text helps; auto does where a retrieval route of
    the same space has a local tier."""
    bulk: Literal["error", "answer"] = "error"
    """What many texts at once, or documents, get in place of vectors: an index poisoned is worse than a call failed."""
    bulk_texts_max: Count = 8
    """More texts than this in one call are documents."""
    handles_in_writes: Literal["refuse", "embed", "queue"] = "refuse"
    """A write with handles in it: refused with a 503, to be repeated; or, where they are remembered, its texts are
    embedded anew once the embedder is back, and it goes on with their own vectors. With queue it is acknowledged
    meanwhile, kept on disk, and carried out then, where the tier brings the key."""
    holding: Holding = Holding()
    tiktoken_file: FilePath | None = None
    """The vocabulary of OpenAI's tokeniser (cl100k_base.tiktoken), by which token ids are read as text."""
    tenant_headers: list[str] = []
    """Headers, the same on embeddings and searches, that set tenants apart: a vector is known to its own alone."""
    probing: Probing = Probing()


class Ledger(Frozen, frozen=True):
    """What is remembered of the vectors handed out, in each worker."""

    entries_max: Annotated[int, Meta(ge=1, le=10_000_000)] = 20_000
    """Vectors remembered."""
    bytes_max: Bytes = 64 * 1024 * 1024
    """Memory for them, about."""
    shared: bool = True
    """Share them through the cache's second level, where server.cache.url names one."""
    watch: Literal["auto", "always"] = "auto"
    """When calls are looked through for handles: while any may be about, or always."""
    watch_s: PositiveSeconds = 7 * 86400.0
    """Seconds after the last handle was given in which it may still come back."""


class DeclaredSpace(Frozen, frozen=True):
    """What a vector space is besides its name: whatever changes a vector."""

    provider: str = ""
    """Who embeds, where that changes the vectors of one model."""
    model: str = ""
    """The model, where the space is called otherwise."""
    revision: str = ""
    """Which weights: a hash, a date, a deployment."""
    dimensions: Dimensions | None = None
    """How long its vectors are; a vector of another length is not of this space."""
    normalised: bool = True
    """Whether its vectors are of unit length."""
    query_prefix: str = ""
    """What stands before a text that is a question."""
    document_prefix: str = ""
    """What stands before a text that is a document."""
