"""What a call asks for, in no dialect's words: what the local tiers understand and dialects translate to and from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class EmbedAsk:
    """Texts to be embedded. `tokens` holds what arrived as token ids instead of text (then `texts` is empty)."""

    texts: tuple[str, ...]
    model: str
    base64: bool = False
    dimensions: int | None = None
    tokens: tuple[tuple[int, ...], ...] = ()


RetrieveOp = Literal["search", "scroll", "get", "count", "info", "exists", "collections", "version", "batch"]

PayloadChoice = bool | tuple[str, ...] | dict[str, tuple[str, ...]]
"""All or none of a payload, the fields named, or {"include": fields} or {"exclude": fields}."""


@dataclass(frozen=True, slots=True)
class RetrieveAsk:
    """One read of a collection. `shape` is the dialect's own note of how to write the answer down.

    `after` is the id a scroll's page begins with. `parts` are the searches of a batch, each a RetrieveAsk of its own.
    """

    op: RetrieveOp
    collection: str = ""
    vector: tuple[float, ...] | None = None
    near_id: int | str | None = None
    ids: tuple[int | str, ...] = ()
    limit: int = 10
    offset: int = 0
    after: int | str | None = None
    filter: dict[str, Any] | None = None
    score_threshold: float | None = None
    with_payload: PayloadChoice = False
    with_vector: bool = False
    shape: str = ""
    parts: tuple[RetrieveAsk, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """One point found. `score` is None where nothing was ranked."""

    id: int | str
    payload: dict[str, Any]
    score: float | None = None
    vector: list[float] | None = None


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """What there is to say of a collection. `distance` is cosine, dot or euclid."""

    name: str
    count: int
    dimensions: int
    distance: str


@dataclass(frozen=True, slots=True)
class Retrieved:
    """The result of a RetrieveAsk; which fields are filled follows from its `op`."""

    found: list[Found] = field(default_factory=list[Found])
    next_id: int | str | None = None
    count: int = 0
    exists: bool = False
    info: CollectionInfo | None = None
    names: list[str] = field(default_factory=list[str])
    parts: list[Retrieved] = field(default_factory=list["Retrieved"])


@dataclass(frozen=True, slots=True)
class GenerateAsk:
    """A prompt. `messages` are as OpenAI writes them. `structured` says why a free-text answer would not do
    (tools or a JSON schema were asked for), or is empty."""

    messages: tuple[dict[str, Any], ...]
    model: str
    stream: bool = False
    include_usage: bool = False
    structured: str = ""


@dataclass(frozen=True, slots=True)
class Written:
    """A text in answer to a GenerateAsk, with what a dialect needs to write it down.

    `created_s` is seconds since the epoch; `id` is unique among answers; `source` is where the text came from.
    """

    text: str
    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    id: str = ""
    created_s: int = 0
    source: str = "extractive"


Ask = EmbedAsk | RetrieveAsk | GenerateAsk
