"""What a call asks for, in no dialect's words: what the local tiers understand and dialects translate to and from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from understudy.indexes.conditions import Condition

EmbedKind = Literal["", "query", "document", "as_is", "other"]
"""What the texts are, where that changes a vector: "" is not said, `as_is` brings the model's prefixes itself, `other`
is neither a query nor a document (Cohere's classification and clustering)."""


@dataclass(frozen=True, slots=True)
class EmbedAsk:
    """Texts to be embedded. `tokens` holds what arrived as token ids instead of text (then `texts` is empty).

    `whole` says that a text must not be cut to the model's length. `shape` is the dialect's own note of how to write
    the answer down, and `id` what the answer may be called.
    """

    texts: tuple[str, ...]
    model: str
    base64: bool = False
    dimensions: int | None = None
    tokens: tuple[tuple[int, ...], ...] = ()
    kind: EmbedKind = ""
    whole: bool = False
    shape: str = ""
    id: str = ""


RetrieveOp = Literal[
    "search", "scroll", "get", "count", "info", "infos", "exists", "collections", "version", "batch", "groups", "facet"
]

PayloadChoice = bool | tuple[str, ...] | dict[str, tuple[str, ...]]
"""All or none of a payload, the fields named, or {"include": fields} or {"exclude": fields}."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Points by what a whole set of examples says of them, as Qdrant reckons it. The examples are the ask's `parts`,
    each a vector or the id of a point, with its role (`positive`, `negative`, `target`) as its shape; those of a
    context stand in pairs."""

    how: Literal["average_vector", "best_score", "sum_scores", "discover", "context"]


@dataclass(frozen=True, slots=True)
class Fused:
    """Points by their ranks or scores in all of the ask's `parts`: reciprocal ranks with the constant `k`, each part's
    weighed, or scores scaled by their distribution."""

    how: Literal["rrf", "dbsf"]
    k: int = 2
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Ordered:
    """Points by the numbers and dates in a field of their payload, from one on."""

    key: str
    is_descending: bool = False
    start_from: int | float | str | None = None


@dataclass(frozen=True, slots=True)
class Grouped:
    """The best points of the only part for each value of a field: `size` of them at most."""

    key: str
    size: int


@dataclass(frozen=True, slots=True)
class Counted:
    """The values of a field, and how many points have each."""

    key: str


By = Judged | Fused | Ordered | Grouped | Counted


@dataclass(frozen=True, slots=True)
class RetrieveAsk:
    """One read of a collection. `shape` is the dialect's own note of how to write the answer down.

    `after` is the id a scroll's page begins with. `parts` are the searches of a batch, each a RetrieveAsk of its own,
    or what `by` says; of a plain search, they are those whose points alone it ranks. `text` is what is searched by its
    words: alone, or fused with the vector's neighbours. `filter` is Qdrant's JSON, or what the dialect made of its own
    words; `wants_total` asks how many points it lets through, beside those searched.
    `with_near` keeps the point named by `near_id` among its own neighbours. `filter_or` is the filter as it may also be
    read: where the two let different points through, nothing is certain, and the call is refused. `using` names which
    of a point's vectors is searched, "" the one without a name; `vector_names` are those wanted, None for all.
    `is_field` says that `using` is the field that a document has its vector in: a collection of vectors without a name
    was made of it, and one with a single name is meant where none is said.
    `is_threshold_out` says that what is only as good as the threshold does not reach it. `space` is the vector's, where
    it is not the route's.
    """

    op: RetrieveOp
    collection: str = ""
    vector: tuple[float, ...] | None = None
    near_id: int | str | None = None
    ids: tuple[int | str, ...] = ()
    limit: int = 10
    offset: int = 0
    after: int | str | None = None
    text: str = ""
    filter: dict[str, Any] | Condition | None = None
    score_threshold: float | None = None
    with_payload: PayloadChoice = False
    with_vector: bool = False
    wants_total: bool = False
    shape: str = ""
    parts: tuple[RetrieveAsk, ...] = ()
    with_near: bool = False
    filter_or: dict[str, Any] | None = None
    using: str = ""
    space: str = ""
    by: By | None = None
    is_threshold_out: bool = False
    vector_names: tuple[str, ...] | None = None
    is_field: bool = False


def distance_of(ask: RetrieveAsk, result: Retrieved) -> str:
    """The distance of the vector that was searched."""
    return result.distances.get(ask.using, result.distance)


def parts_of(ask: RetrieveAsk) -> Iterator[RetrieveAsk]:
    """The ask and all its parts, and theirs: whatever is asked by a vector is among them."""
    yield ask
    for part in ask.parts:
        yield from parts_of(part)


@dataclass(frozen=True, slots=True)
class Found:
    """One point found. `score` is None where nothing was ranked; `order_value` is what it was ordered by.

    `text` is the words it was indexed by. `is_text_lent` says that the payload has them only because we put them there,
    under `text`.
    """

    id: int | str
    payload: dict[str, Any]
    score: float | None = None
    vector: list[float] | None = None
    text: str = ""
    is_text_lent: bool = False
    named: Mapping[str, list[float]] = field(default_factory=dict[str, list[float]])
    order_value: int | float | None = None


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """What there is to say of a collection. `distance` is cosine, dot or euclid; `handle` the id that its database's
    clients call it by, where they use one. `vectors` says dimensions and distance of vectors that have names."""

    name: str
    count: int
    dimensions: int
    distance: str
    handle: str = ""
    vectors: Mapping[str, tuple[int, str]] = field(default_factory=dict[str, tuple[int, str]])


@dataclass(frozen=True, slots=True)
class Retrieved:
    """The result of a RetrieveAsk; which fields are filled follows from its `op`.

    `count` is how many points there are to be found, where more may be there than were asked for. `distance` is the
    collection's, `distances` are those of its vectors by name; `at_s` is the time, in seconds since the epoch.
    """

    found: list[Found] = field(default_factory=list[Found])
    next_id: int | str | None = None
    count: int = 0
    exists: bool = False
    info: CollectionInfo | None = None
    names: list[str] = field(default_factory=list[str])
    infos: list[CollectionInfo] = field(default_factory=list[CollectionInfo])
    distance: str = ""
    at_s: float = 0.0
    parts: list[Retrieved] = field(default_factory=list["Retrieved"])
    distances: Mapping[str, str] = field(default_factory=dict[str, str])
    groups: list[tuple[int | str, list[Found]]] = field(default_factory=list[tuple[int | str, list[Found]]])
    counted: list[tuple[bool | int | str, int]] = field(default_factory=list[tuple[bool | int | str, int]])


@dataclass(frozen=True, slots=True)
class GenerateAsk:
    """A prompt. `messages` are as OpenAI writes them. `structured` says why a free-text answer would not do
    (tools or a JSON schema were asked for), or is empty. `shape` is the dialect's own note of how to write the answer
    down."""

    messages: tuple[dict[str, Any], ...]
    model: str
    stream: bool = False
    include_usage: bool = False
    structured: str = ""
    shape: str = ""


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
