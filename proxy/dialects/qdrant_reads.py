"""What a read of Qdrant's asks for: query, search, recommend and discover, alone, in batches and in groups.

    points/query      {query: vector | id | {nearest | recommend | discover | context | fusion | rrf | order_by}, …}
    points/search     {vector}                    as clients before 1.16 put it: their answers are bare lists
    points/recommend  {positive, negative}
    points/discover   {target, context}

A prefetch is a part of its query, with the filter that stands above it written into its own, as Qdrant does. What an
index of single dense vectors cannot answer is refused by name: sparse vectors, multivectors, formulas, samples, MMR,
look-ups in other collections, shards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Final, Literal, cast

import msgspec
from msgspec import Meta, Raw

from understudy.policies.service import Refused
from understudy.proxy.asks import By, Counted, Fused, Grouped, Judged, Ordered, PayloadChoice, RetrieveAsk
from understudy.proxy.dialects.base import BadRequest, Malformed, first_byte, given, parsed

LIMIT_MAX: Final = 10_000
"""The most points of one local answer."""
IDS_MAX: Final = 10_000
SEARCHES_MAX: Final = 128
"""The most searches of one batch, the most prefetches, and the most examples of one query."""
DEPTH_MAX: Final = 4
"""How many prefetches may stand in each other."""
GROUP_SIZE: Final = 3

Limit = Annotated[int, Meta(ge=1)]
Id = Annotated[int, Meta(ge=0)] | str


class _Select(msgspec.Struct):
    """What all reads of points have in common; the API knows both spellings of `with_vector`."""

    filter: dict[str, Any] | None = None
    with_payload: Raw = Raw()
    with_vector: bool | list[str] | None = None
    with_vectors: bool | list[str] | None = None
    shard_key: Raw = Raw()


class _Search(_Select):
    limit: Limit | None = None
    offset: Annotated[int, Meta(ge=0)] | None = None
    score_threshold: float | None = None
    using: str | None = None
    lookup_from: Raw = Raw()
    group_by: str | None = None
    group_size: Limit | None = None
    with_lookup: Raw = Raw()


class _Query(_Search):
    query: Raw = Raw()
    prefetch: Raw = Raw()


class _OldSearch(_Search):
    vector: Raw = Raw()


class _Examples(_Search):
    positive: list[Raw] | None = None
    negative: list[Raw] | None = None
    strategy: Literal["average_vector", "best_score", "sum_scores"] | None = None


class _Discover(_Search):
    target: Raw = Raw()
    context: Raw = Raw()


class _Scroll(_Select):
    limit: Limit | None = None
    offset: Id | None = None
    order_by: Raw = Raw()


class _Get(_Select, kw_only=True):
    ids: list[Id]


class _Count(msgspec.Struct):
    filter: dict[str, Any] | None = None
    shard_key: Raw = Raw()


class _Facet(msgspec.Struct):
    key: str
    filter: dict[str, Any] | None = None
    limit: Limit | None = None
    shard_key: Raw = Raw()


class _Batch(msgspec.Struct):
    searches: list[Raw]


class _Nearest(msgspec.Struct):
    nearest: Raw = Raw()
    mmr: Raw = Raw()


class _Named(msgspec.Struct):
    vector: Raw
    name: str = ""


class _Recommend(msgspec.Struct):
    recommend: _Examples


class _DiscoverQuery(msgspec.Struct):
    discover: _Discover


class _ContextQuery(msgspec.Struct):
    context: Raw


class _Pair(msgspec.Struct):
    positive: Raw
    negative: Raw


class _Fusion(msgspec.Struct):
    fusion: Literal["rrf", "dbsf"]


class _RrfParams(msgspec.Struct):
    k: Annotated[int, Meta(ge=1)] | None = None
    weights: list[float] | None = None


class _Rrf(msgspec.Struct):
    rrf: _RrfParams


class _OrderBy(msgspec.Struct):
    key: str
    direction: Literal["asc", "desc"] | None = None
    start_from: int | float | str | None = None


class _OrderByQuery(msgspec.Struct):
    order_by: Raw


_QUERY = msgspec.json.Decoder(_Query)
_OLD_SEARCH = msgspec.json.Decoder(_OldSearch)
_EXAMPLES = msgspec.json.Decoder(_Examples)
_DISCOVER = msgspec.json.Decoder(_Discover)
_SCROLL = msgspec.json.Decoder(_Scroll)
_GET = msgspec.json.Decoder(_Get)
_COUNT = msgspec.json.Decoder(_Count)
_FACET = msgspec.json.Decoder(_Facet)
_BATCH = msgspec.json.Decoder(_Batch)
_NEAREST = msgspec.json.Decoder(_Nearest)
_NAMED = msgspec.json.Decoder(_Named)
_RECOMMEND = msgspec.json.Decoder(_Recommend)
_DISCOVER_QUERY = msgspec.json.Decoder(_DiscoverQuery)
_CONTEXT_QUERY = msgspec.json.Decoder(_ContextQuery)
_PAIR = msgspec.json.Decoder(_Pair)
_FUSION = msgspec.json.Decoder(_Fusion)
_RRF = msgspec.json.Decoder(_Rrf)
_ORDER_BY = msgspec.json.Decoder(_OrderBy)
_ORDER_BY_QUERY = msgspec.json.Decoder(_OrderByQuery)
_KEYS = msgspec.json.Decoder(dict[str, Raw])
_LIST = msgspec.json.Decoder(list[Raw])
_TEXT = msgspec.json.Decoder(str)
_VECTOR = msgspec.json.Decoder(tuple[float, ...])
_ID = msgspec.json.Decoder(Id)
_CHOICE: msgspec.json.Decoder[bool | list[str] | dict[str, list[str]]] = msgspec.json.Decoder(
    bool | list[str] | dict[str, list[str]]
)


# --- whole requests ------------------------------------------------------------------------------------------------


def searched(shape: str, collection: str, body: bytes | Raw) -> RetrieveAsk:
    """One search of points, as `shape` says: query, search, recommend or discover, or `…/groups` of it."""
    kind, _, is_grouped = shape.partition("/")
    search, ask = _READERS[kind](collection, body)
    _refuse(
        {
            "a look-up in another collection": given(search.lookup_from) or given(search.with_lookup),
            "a shard key": given(search.shard_key),
        }
    )
    selected = _Selection(search, unless_said=False)
    ask = replace(ask, with_payload=selected.payload, with_vector=selected.vector, vector_names=selected.names)
    if not is_grouped:
        return replace(ask, shape=kind)
    if not search.group_by:
        raise Malformed("missing field `group_by`")
    size = search.group_size or GROUP_SIZE
    _check_count(_limit(search.limit) * size)
    if isinstance(ask.by, Fused) or (ask.parts and ask.by is None):
        raise Refused("unsupported", "the local index does not know how prefetched points are grouped")
    by, limit = Grouped(search.group_by, size), _limit(search.limit)
    return RetrieveAsk("groups", collection, limit=limit, by=by, parts=(replace(ask, offset=0),), shape=kind)


def batch(collection: str, shape: str, body: bytes) -> RetrieveAsk:
    """Several searches of one kind."""
    searches = parsed(_BATCH, body).searches
    if len(searches) > SEARCHES_MAX:
        raise Refused("unsupported", f"more than {SEARCHES_MAX} searches in one batch")
    one = shape.removesuffix("/batch")
    parts = tuple(searched(one, collection, search) for search in searches)
    return RetrieveAsk("batch", collection, parts=parts, shape=shape)


def scroll(collection: str, body: bytes) -> RetrieveAsk:
    """A page of points by id, or the first ones by a field of their payload."""
    asked = parsed(_SCROLL, body)
    order = _order(asked.order_by) if given(asked.order_by) else None
    if order is not None and asked.offset is not None:
        raise BadRequest("Wrong input: Cannot use an `offset` when using `order_by`")
    return _selecting(
        RetrieveAsk("scroll", collection, limit=_limit(asked.limit), after=asked.offset, filter=asked.filter, by=order),
        asked,
    )


def get(collection: str, body: bytes) -> RetrieveAsk:
    """Points by their ids."""
    asked = parsed(_GET, body)
    if len(asked.ids) > IDS_MAX:
        raise Refused("unsupported", f"more than {IDS_MAX} ids at once")
    return _selecting(RetrieveAsk("get", collection, ids=tuple(asked.ids)), asked)


def count(collection: str, body: bytes) -> RetrieveAsk:
    """How many points pass a filter: here always exactly."""
    asked = parsed(_COUNT, body)
    _refuse({"a shard key": given(asked.shard_key)})
    return RetrieveAsk("count", collection, filter=asked.filter)


def facet(collection: str, body: bytes) -> RetrieveAsk:
    """How many points have each value of a field."""
    asked = parsed(_FACET, body)
    _refuse({"a shard key": given(asked.shard_key)})
    return RetrieveAsk("facet", collection, limit=_limit(asked.limit), filter=asked.filter, by=Counted(asked.key))


# --- searches ------------------------------------------------------------------------------------------------------


def _query(collection: str, body: bytes | Raw) -> tuple[_Search, RetrieveAsk]:
    asked = parsed(_QUERY, body)
    return asked, _queried(collection, asked, asked.filter, 0)


def _queried(collection: str, asked: _Query, above: dict[str, Any] | None, depth: int) -> RetrieveAsk:
    """A query with its prefetches, whose points it ranks anew; without a query, points in their order."""
    _refuse({"a look-up in another collection": given(asked.lookup_from)})
    raws = _prefetches(asked.prefetch)
    ask = _ranked(_ask(collection, asked, above), asked.query, has_parts=bool(raws))
    if not raws:
        return ask
    if ask.op == "scroll" or isinstance(ask.by, Judged):
        raise Refused("unsupported", "the local index does not know how this query ranks what was prefetched")
    if depth >= DEPTH_MAX:
        raise Refused("unsupported", f"prefetches more than {DEPTH_MAX} deep")
    if ask.near_id is not None:
        # the point that is asked about is not to be among its neighbours, from the first prefetch on
        above = merged(above, {"must_not": [{"has_id": [ask.near_id]}]})
    below = [parsed(_QUERY, raw) for raw in raws]
    return replace(
        ask, parts=tuple(_queried(collection, each, merged(above, each.filter), depth + 1) for each in below)
    )


def _prefetches(raw: Raw) -> list[Raw]:
    if not given(raw):
        return []
    raws = parsed(_LIST, raw) if first_byte(raw) == b"[" else [raw]
    _check_examples(len(raws))
    return raws


def merged(outer: dict[str, Any] | None, inner: dict[str, Any] | None) -> dict[str, Any] | None:
    """The filter of a prefetch under another: clause by clause, as Qdrant does, alternatives added to alternatives."""
    if not outer or not inner:
        return inner or outer
    both: dict[str, Any] = {}
    for word in {**outer, **inner}:
        one, other = outer.get(word), inner.get(word)
        if one is None or other is None:
            both[word] = other if one is None else one
        elif word == "min_should":
            both[word] = _merged_least(one, other)
        else:
            both[word] = _as_list(one) + _as_list(other)
    return both


def _merged_least(one: Any, other: Any) -> Any:
    try:
        least = max(one["min_count"], other["min_count"])
        return {"conditions": [*one["conditions"], *other["conditions"]], "min_count": least}
    except (KeyError, TypeError):
        raise Malformed("min_should needs conditions and min_count") from None


def _as_list(clause: Any) -> list[Any]:
    return cast("list[Any]", clause) if isinstance(clause, list) else [clause]


def _ask(collection: str, asked: _Search, filter: dict[str, Any] | None) -> RetrieveAsk:
    return RetrieveAsk(
        "search",
        collection,
        limit=_limit(asked.limit),
        offset=asked.offset or 0,
        filter=filter,
        score_threshold=asked.score_threshold,
        is_threshold_out=asked.score_threshold is not None,
        using=asked.using or "",
    )


def _ranked(ask: RetrieveAsk, query: Raw, *, has_parts: bool) -> RetrieveAsk:
    """The ask with what its query ranks by."""
    if not given(query):
        if has_parts:
            raise Refused("unsupported", "prefetches without a query")
        return replace(ask, op="scroll")
    if first_byte(query) != b"{":
        return _near(ask, query)
    kinds = parsed(_KEYS, query).keys() & _QUERY_READERS.keys()
    if len(kinds) != 1:
        raise Refused("unsupported", "the local index does not know this kind of query")
    return _QUERY_READERS[kinds.pop()](ask, query, has_parts)


def _near(ask: RetrieveAsk, example: Raw) -> RetrieveAsk:
    """The neighbours of a vector, or of the point of an id."""
    if first_byte(example) == b"[":
        return replace(ask, vector=_vector(example))
    _refuse({"a sparse vector, or inference in the database": first_byte(example) == b"{"})
    return replace(ask, near_id=parsed(_ID, example))


def _read_nearest(ask: RetrieveAsk, query: Raw, _has_parts: bool) -> RetrieveAsk:
    nearest = parsed(_NEAREST, query)
    _refuse({"mmr": given(nearest.mmr), "a query for nothing": not given(nearest.nearest)})
    return _near(ask, nearest.nearest)


def _read_recommend(ask: RetrieveAsk, query: Raw, _has_parts: bool) -> RetrieveAsk:
    return _recommended(ask, parsed(_RECOMMEND, query).recommend)


def _read_discover(ask: RetrieveAsk, query: Raw, _has_parts: bool) -> RetrieveAsk:
    asked = parsed(_DISCOVER_QUERY, query).discover
    return _discovered(ask, asked.target, asked.context)


def _read_context(ask: RetrieveAsk, query: Raw, _has_parts: bool) -> RetrieveAsk:
    return _discovered(ask, Raw(), parsed(_CONTEXT_QUERY, query).context)


def _read_fusion(ask: RetrieveAsk, query: Raw, has_parts: bool) -> RetrieveAsk:
    return _fused(ask, Fused(parsed(_FUSION, query).fusion), has_parts)


def _read_rrf(ask: RetrieveAsk, query: Raw, has_parts: bool) -> RetrieveAsk:
    asked = parsed(_RRF, query).rrf
    return _fused(ask, Fused("rrf", 2 if asked.k is None else asked.k, tuple(asked.weights or ())), has_parts)


def _fused(ask: RetrieveAsk, by: By, has_parts: bool) -> RetrieveAsk:
    if not has_parts:
        raise BadRequest("Wrong input: cannot fuse without prefetches")
    if ask.using:
        raise BadRequest("Wrong input: Fusion queries cannot be combined with the 'using' field.")
    return replace(ask, by=by)


def _read_order_by(ask: RetrieveAsk, query: Raw, _has_parts: bool) -> RetrieveAsk:
    return replace(ask, op="scroll", by=_order(parsed(_ORDER_BY_QUERY, query).order_by))


_QUERY_READERS: Final[Mapping[str, Callable[[RetrieveAsk, Raw, bool], RetrieveAsk]]] = {
    "nearest": _read_nearest,
    "recommend": _read_recommend,
    "discover": _read_discover,
    "context": _read_context,
    "fusion": _read_fusion,
    "rrf": _read_rrf,
    "order_by": _read_order_by,
}


def _old_search(collection: str, body: bytes | Raw) -> tuple[_Search, RetrieveAsk]:
    asked = parsed(_OLD_SEARCH, body)
    vector, using = asked.vector, asked.using or ""
    if not given(vector):
        raise Malformed("missing field `vector`")
    if first_byte(vector) == b"{":
        named = parsed(_NAMED, vector)
        vector, using = named.vector, named.name
    _refuse({"a sparse vector": first_byte(vector) == b"{"})
    return asked, replace(_ask(collection, asked, asked.filter), vector=_vector(vector), using=using)


def _old_recommend(collection: str, body: bytes | Raw) -> tuple[_Search, RetrieveAsk]:
    asked = parsed(_EXAMPLES, body)
    return asked, _recommended(_ask(collection, asked, asked.filter), asked)


def _old_discover(collection: str, body: bytes | Raw) -> tuple[_Search, RetrieveAsk]:
    asked = parsed(_DISCOVER, body)
    return asked, _discovered(_ask(collection, asked, asked.filter), asked.target, asked.context)


_READERS: Final[Mapping[str, Callable[[str, bytes | Raw], tuple[_Search, RetrieveAsk]]]] = {
    "query": _query,
    "search": _old_search,
    "recommend": _old_recommend,
    "discover": _old_discover,
}


# --- examples ------------------------------------------------------------------------------------------------------


def _recommended(ask: RetrieveAsk, asked: _Examples) -> RetrieveAsk:
    how = asked.strategy or "average_vector"
    likes, dislikes = asked.positive or [], asked.negative or []
    if not likes and (how == "average_vector" or not dislikes):
        raise BadRequest(f"Wrong input: the strategy {how} needs examples")
    roles = [("positive", each) for each in likes] + [("negative", each) for each in dislikes]
    return _by_examples(ask, how, roles)


def _discovered(ask: RetrieveAsk, target: Raw, context: Raw) -> RetrieveAsk:
    pairs = [parsed(_PAIR, pair) for pair in _pairs(context)]
    roles = [role for pair in pairs for role in (("positive", pair.positive), ("negative", pair.negative))]
    if given(target):
        return _by_examples(ask, "discover", [("target", target), *roles])
    if not roles:
        raise BadRequest("Wrong input: neither a target nor a context")
    return _by_examples(ask, "context", roles)


def _pairs(context: Raw) -> list[Raw]:
    if not given(context):
        return []
    return parsed(_LIST, context) if first_byte(context) == b"[" else [context]


def _by_examples(
    ask: RetrieveAsk,
    how: Literal["average_vector", "best_score", "sum_scores", "discover", "context"],
    roles: list[tuple[str, Raw]],
) -> RetrieveAsk:
    _check_examples(len(roles))
    parts = tuple(_near(RetrieveAsk("search", ask.collection, using=ask.using, shape=role), raw) for role, raw in roles)
    return replace(ask, by=Judged(how), parts=parts)


# --- parts ---------------------------------------------------------------------------------------------------------


class _Selection:
    """What of each point is wanted."""

    def __init__(self, select: _Select, *, unless_said: bool) -> None:
        self.payload = _payload_choice(select.with_payload, unless_said=unless_said)
        wanted = select.with_vectors if select.with_vector is None else select.with_vector
        self.vector = bool(wanted)
        self.names = tuple(wanted) if isinstance(wanted, list) else None


def _selecting(ask: RetrieveAsk, select: _Select) -> RetrieveAsk:
    _refuse({"a shard key": given(select.shard_key)})
    selected = _Selection(select, unless_said=True)
    return replace(ask, with_payload=selected.payload, with_vector=selected.vector, vector_names=selected.names)


def _order(raw: Raw) -> Ordered:
    if first_byte(raw) == b'"':
        return Ordered(parsed(_TEXT, raw))
    asked = parsed(_ORDER_BY, raw)
    return Ordered(asked.key, asked.direction == "desc", asked.start_from)


def _vector(raw: Raw) -> tuple[float, ...]:
    _refuse({"a multivector": bytes(memoryview(raw)[1:64]).lstrip()[:1] == b"["})
    vector = parsed(_VECTOR, raw)
    if not vector:
        raise BadRequest("Wrong input: the query vector is empty")
    return vector


def _limit(limit: int | None) -> int:
    _check_count(limit or 0)
    return 10 if limit is None else limit


def _check_count(points: int) -> None:
    if points > LIMIT_MAX:
        raise Refused("unsupported", f"more than {LIMIT_MAX} points at once")


def _check_examples(several: int) -> None:
    if several > SEARCHES_MAX:
        raise Refused("unsupported", f"more than {SEARCHES_MAX} examples or prefetches in one query")


def _payload_choice(raw: Raw, *, unless_said: bool) -> PayloadChoice:
    if not given(raw):
        return unless_said
    choice = parsed(_CHOICE, raw)
    if isinstance(choice, bool):
        return choice
    if isinstance(choice, list):
        return tuple(choice)
    if choice.keys() not in ({"include"}, {"exclude"}):
        raise Malformed("with_payload must be a bool, a list, or include or exclude a list")
    return {how: tuple(paths) for how, paths in choice.items()}


def _refuse(wanted: dict[str, bool]) -> None:
    """Raise Refused for the first thing wanted that a local index does not have."""
    for thing, is_wanted in wanted.items():
        if is_wanted:
            raise Refused("unsupported", f"the local index does not know {thing}")
