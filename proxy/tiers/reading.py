"""Read from a local collection what a RetrieveAsk asks for: by a vector, by words, by id, by filter, in any mixture.

    search   nearest to a vector or a point | by words | by examples | fused from its parts | its parts' points anew
    scroll   by id, or by a field of the payload      groups, facet   the best, and the number, for each value

A search by examples, and what needs every payload, look at all points that pass: up to SCAN_MAX, beyond which the
answer is refused rather than made of some of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from understudy.indexes.filters import compile_filter, moment_of
from understudy.indexes.points import id_key, is_derived
from understudy.indexes.reach import parse_path, reach
from understudy.policies.service import Refused
from understudy.proxy.asks import Counted, Found, Grouped, Judged, Ordered, RetrieveAsk, Retrieved
from understudy.proxy.asks import Fused as FusedBy
from understudy.proxy.dialects.base import BadRequest
from understudy.proxy.tiers.fusing import fused_ranks, fused_scores
from understudy.proxy.tiers.knowing import Shelved

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix: TypeAlias = NDArray[np.float32]

SCAN_MAX: Final = 50_000
"""How many points one answer may look at one by one: about a second's work."""
PAGE: Final = 1_000


def read(collection: Shelved, ask: RetrieveAsk) -> Retrieved:
    """One read of a collection that is there, whose space fits. Raises BadQuestion, BadRequest and Refused."""
    retrieved = _read(collection, ask)
    shapes = getattr(collection, "shapes", {})
    distances = {name: str(shape.distance) for name, shape in shapes.items()}
    # vectors that we made of texts have cosines, whatever the collection's own have
    distance = "cosine" if is_derived(ask.using) else str(collection.distance)
    return replace(retrieved, distance=distance, distances=distances)


def by_name(collection: Shelved, ask: RetrieveAsk) -> RetrieveAsk:
    """The ask by the name that a collection has for its vector, where the ask says a document's field, or nothing.
    Raises Refused where it has no such vector: another database's collection would not be asked for it."""
    if not ask.is_field or ask.vector is None:
        return ask
    names = set(getattr(collection, "shapes", {})) or {""}
    if ask.using in names:
        return ask
    if names == {""} or (not ask.using and len(names) == 1):
        return replace(ask, using=min(names))
    raise Refused("no_vector", "the local collection has no vector of this name")


def _read(collection: Shelved, ask: RetrieveAsk) -> Retrieved:
    if ask.op == "batch":
        return Retrieved(parts=[read(collection, part) for part in ask.parts])
    if ask.op == "search":
        return Retrieved(found=_searched(collection, ask), count=_reach(collection, ask))
    if ask.op == "scroll":
        return _scrolled(collection, ask)
    if ask.op == "get":
        return Retrieved(found=[found_of(point) for point in collection.get(ask.ids, with_vectors=ask.with_vector)])
    if ask.op == "count":
        return Retrieved(count=collection.count_matching(ask.filter))
    if ask.op == "groups":
        return Retrieved(groups=_grouped(collection, ask))
    if ask.op == "facet":
        return Retrieved(counted=_facets(collection, ask))
    return Retrieved(exists=True)


def _reach(collection: Shelved, ask: RetrieveAsk) -> int:
    """How many points a search chooses from, where its answer says so."""
    return collection.count_matching(ask.filter) if ask.wants_total else 0


def found_of(point: Any) -> Found:
    """A point or a hit as it is told."""
    payload: dict[str, Any] = point.payload
    is_lent = bool(point.text) and "text" not in payload and point.text not in payload.values()
    if is_lent:
        # Passages indexed from files keep their words beside the payload; a client looks for them in it.
        payload = {"text": point.text, **payload}
    vector = None if point.vector is None else point.vector.tolist()
    named = {name: each.tolist() for name, each in getattr(point, "named", {}).items()}
    return Found(point.id, payload, getattr(point, "score", None), vector, point.text, is_lent, named)


# --- searches ------------------------------------------------------------------------------------------------------


def _searched(collection: Shelved, ask: RetrieveAsk) -> list[Found]:
    """The best points, from `offset` on, by whatever the ask ranks by."""
    if isinstance(ask.by, FusedBy):
        return _fused(collection, ask, ask.by)
    if isinstance(ask.by, Judged):
        return _by_examples(collection, ask, ask.by)
    if ask.parts:
        return _anew(collection, ask)
    return _nearest(collection, ask)


def _nearest(collection: Shelved, ask: RetrieveAsk) -> list[Found]:
    if ask.filter_or is not None and collection.count_matching(ask.filter) != collection.count_matching(ask.filter_or):
        raise Refused("unsupported_filter", "what the filter does to points without its fields is not certain")
    if ask.text:
        return [found_of(hit) for hit in _worded(collection, ask)]
    if ask.near_id is None:
        return _near(collection, ask, ask.vector)
    if ask.with_near:
        there = collection.get([ask.near_id], with_vectors=True)
        return _near(collection, ask, vector_of(there[0], ask.using)) if there else []
    vector, point_id = _stored(collection, ask.near_id, ask.using)
    return _near(collection, ask, vector, without=[point_id])


def _near(collection: Shelved, ask: RetrieveAsk, vector: object, without: Sequence[int | str] = ()) -> list[Found]:
    """The neighbours of a vector, less some points: as many more are asked for."""
    wanted = ask.limit if not without else ask.offset + ask.limit + len(without)
    hits = collection.search(
        vector,
        wanted,
        filter=ask.filter,
        offset=0 if without else ask.offset,
        score_threshold=ask.score_threshold,
        with_vectors=ask.with_vector,
        **_using(collection, ask),
    )
    # what is as good as the threshold only is let through by some databases, and not by Qdrant
    passing = [hit for hit in hits if not (ask.is_threshold_out and hit.score == _single(ask.score_threshold))]
    if not without:
        return [found_of(hit) for hit in passing]
    left_out = set(without)
    return [found_of(hit) for hit in passing if hit.id not in left_out][ask.offset : ask.offset + ask.limit]


def _using(collection: Shelved, ask: RetrieveAsk) -> dict[str, Any]:
    """The name of the vector that is searched, for a collection whose vectors have names."""
    if ask.using and not hasattr(collection, "shapes"):
        raise Refused("unsupported", "the local index does not know a named vector")
    return {"using": ask.using} if ask.using else {}


def _single(number: float | None) -> float | None:
    """A number as single precision tells it."""
    import numpy as np

    return None if number is None else float(np.float32(number))


def _worded(collection: Shelved, ask: RetrieveAsk) -> Sequence[Any]:
    """By words alone, or by words and vector together."""
    if ask.vector is None:
        return collection.search_text(
            ask.text, ask.limit, filter=ask.filter, offset=ask.offset, with_vectors=ask.with_vector
        )
    return collection.search_fused(
        ask.vector,
        ask.text,
        ask.limit,
        filter=ask.filter,
        offset=ask.offset,
        with_vectors=ask.with_vector,
        **_using(collection, ask),
    )


def vector_of(point: Any, using: str) -> Any:
    """One of a point's vectors, by its name; None where it has none of that name."""
    return point.named.get(using) if using else point.vector


def _stored(collection: Shelved, point_id: int | str, using: str) -> tuple[Any, int | str]:
    """The vector of a stored point, and the point's id as it is kept. Raises BadRequest where there is none."""
    there = collection.get([point_id], with_vectors=True)
    if not there:
        raise BadRequest(f"Not found: No point with id {point_id} found", status=404)
    vector = vector_of(there[0], using)
    if vector is None:
        raise BadRequest(f"Not found: Vector with name {using} for point {point_id} not found", status=404)
    return vector, there[0].id


# --- parts together ------------------------------------------------------------------------------------------------


def _part(collection: Shelved, part: RetrieveAsk) -> list[Found]:
    return _scrolled(collection, part).found if part.op == "scroll" else _searched(collection, part)


def _fused(collection: Shelved, ask: RetrieveAsk, by: FusedBy) -> list[Found]:
    parts = [
        [(found.id, 1.0 if found.score is None else found.score) for found in _part(collection, part)]
        for part in ask.parts
    ]
    if by.how == "rrf":
        if by.weights and len(by.weights) != len(parts):
            raise BadRequest("Wrong input: as many weights as prefetches are needed")
        best = fused_ranks([[point_id for point_id, _ in part] for part in parts], by.k, by.weights)
    else:
        if any(_is_lower_better(collection, part.using) for part in ask.parts):
            raise Refused("unsupported", "how scores of distances are fused is not certain")
        best = fused_scores(parts)
    best = best[: ask.offset + ask.limit]
    kept = [(i, score) for i, score in best if ask.score_threshold is None or score >= ask.score_threshold]
    scores = dict(kept[ask.offset :])
    points = collection.get(list(scores), with_vectors=ask.with_vector)
    return [replace(found_of(point), score=scores[point.id]) for point in points]


def _anew(collection: Shelved, ask: RetrieveAsk) -> list[Found]:
    """The points of all parts, ranked by their own distance from the ask's vector."""
    if ask.text:
        raise Refused("unsupported", "words do not rank what was prefetched")
    ids = dict.fromkeys(found.id for part in ask.parts for found in _part(collection, part))
    vector: Any = ask.vector
    if ask.near_id is not None:
        vector, near = _stored(collection, ask.near_id, ask.using)
        ids.pop(near, None)
    points = _with_vector(collection.get(list(ids), with_vectors=True), ask)
    scores = _scores(collection, [vector], points, ask.using)
    return _best(collection, ask, points, scores[0] if points else [])


def _with_vector(points: Sequence[Any], ask: RetrieveAsk) -> list[Any]:
    """Those that have the vector asked for and pass the filter, in the order of their ids."""
    names: dict[int | str, set[str]] = {point.id: set(point.named) for point in points}
    for point in points:
        if point.vector is not None:
            names[point.id].add("")
    passes = compile_filter(ask.filter, has_vector=lambda point_id, name: name in names[point_id])
    held = [point for point in points if ask.using in names[point.id] and passes(point.id, point.payload)]
    return sorted(held, key=lambda point: id_key(point.id))


def _scores(collection: Shelved, vectors: Sequence[Any], points: Sequence[Any], using: str) -> Matrix:
    """Scores [e, n] of points against each vector, as the collection reckons them."""
    import numpy as np

    from understudy.indexes.vectors import Distance, VectorIndex, prepared

    distance = Distance.of(_distance(collection, using))
    if not points:
        return np.empty((len(vectors), 0), np.float32)
    matrix = np.stack([vector_of(point, using) for point in points])
    index = VectorIndex(prepared(matrix, distance), distance)
    return np.stack([index.scores(vector) for vector in vectors])


def _best(collection: Shelved, ask: RetrieveAsk, points: Sequence[Any], scores: Any) -> list[Found]:
    """Points by their scores, best first, beyond the threshold, from `offset` on."""
    lower = _is_lower_better(collection, ask.using) and not isinstance(ask.by, Judged)
    ranked = sorted(range(len(points)), key=lambda at: scores[at] if lower else -scores[at])
    bar = _single(ask.score_threshold)
    if bar is not None:
        ranked = [at for at in ranked if (scores[at] < bar if lower else scores[at] > bar)]
    page = ranked[ask.offset : ask.offset + ask.limit]
    found = [replace(found_of(points[at]), score=float(scores[at])) for at in page]
    return found if ask.with_vector else [replace(each, vector=None, named={}) for each in found]


def _distance(collection: Shelved, using: str) -> str:
    shape = getattr(collection, "shapes", {}).get(using)
    return str(collection.distance if shape is None else shape.distance)


def _is_lower_better(collection: Shelved, using: str) -> bool:
    return _distance(collection, using) == "euclid"


# --- by examples ---------------------------------------------------------------------------------------------------


def _by_examples(collection: Shelved, ask: RetrieveAsk, by: Judged) -> list[Found]:
    """Points by what examples say of them; examples that are points themselves are left out."""
    import numpy as np

    from understudy.indexes.vectors import Distance, prepared
    from understudy.proxy.tiers import judging_examples

    distance = Distance.of(_distance(collection, ask.using))
    mentioned: list[int | str] = []
    vectors: list[tuple[str, Any]] = []
    for part in ask.parts:
        if part.near_id is not None:
            stored, point_id = _stored(collection, part.near_id, ask.using)
            mentioned.append(point_id)
            # as the database keeps it: examples that come as vectors are taken as they are
            vectors.append((part.shape, prepared(np.asarray([stored], np.float32), distance)[0]))
        elif part.vector is not None:
            vectors.append((part.shape, np.asarray(part.vector, np.float64)))
        else:
            raise Refused("space", "an example of another space than the collection")
    _check_lengths(collection, vectors, ask.using)
    if by.how == "average_vector":
        return _near(collection, ask, judging_examples.average(vectors), without=mentioned)
    if ask.score_threshold is not None and _is_lower_better(collection, ask.using):
        raise Refused("unsupported", "what a threshold means to judged distances is not certain")
    left_out = set(mentioned)
    points = [point for point in _scan(collection, ask.filter, with_vectors=True) if point.id not in left_out]
    points = [point for point in points if vector_of(point, ask.using) is not None]
    scores = _scores(collection, [vector for _, vector in vectors], points, ask.using)
    core = -np.square(scores) if _is_lower_better(collection, ask.using) else scores
    return _best(collection, ask, points, judging_examples.judged(by.how, [role for role, _ in vectors], core))


def _check_lengths(collection: Shelved, vectors: Sequence[tuple[str, Any]], using: str) -> None:
    shape = getattr(collection, "shapes", {}).get(using)
    dimensions = collection.dimensions if shape is None else shape.dimensions
    for _, vector in vectors:
        if vector.shape != (dimensions,):
            raise BadRequest(f"Wrong input: Vector dimension error: expected dim: {dimensions}, got {vector.shape[0]}")


# --- pages, groups and facets --------------------------------------------------------------------------------------


def _scrolled(collection: Shelved, ask: RetrieveAsk) -> Retrieved:
    if isinstance(ask.by, Ordered):
        return Retrieved(found=_ordered(collection, ask, ask.by))
    limit = ask.limit + ask.offset
    points, next_id = collection.scroll(ask.after, limit, ask.filter, with_vectors=ask.with_vector)
    found = [found_of(point) for point in points[ask.offset :]]
    return Retrieved(found=found, next_id=next_id, count=_reach(collection, ask))


def _scan(collection: Shelved, filter: Any, *, with_vectors: bool = False) -> Iterator[Any]:
    """Every point that passes, in the order of ids. Raises Refused if they are too many."""
    if collection.count_matching(filter) > SCAN_MAX:
        raise Refused("too_many", f"more than {SCAN_MAX} points would have to be looked at one by one")
    after: int | str | None = None
    while True:
        points, after = collection.scroll(after, PAGE, filter, with_vectors=with_vectors)
        yield from points
        if after is None:
            return


def _values(payload: dict[str, Any], path: Any) -> list[Any]:
    """What a path leads to, an array standing for its elements."""
    reached = reach(payload, path)
    return [item for each in reached for item in (cast("list[Any]", each) if isinstance(each, list) else [each])]


def _ordered(collection: Shelved, ask: RetrieveAsk, by: Ordered) -> list[Found]:
    """Points by a field's numbers and dates, once for each; those of one value by id."""
    path = parse_path(by.key)
    first = None if by.start_from is None else _order_value(by.start_from)
    if by.start_from is not None and first is None:
        raise BadRequest("Wrong input: `start_from` is neither a number nor a date")
    rows: dict[tuple[float, bytes], Any] = {}
    for point in _scan(collection, ask.filter, with_vectors=ask.with_vector):
        for value in map(_order_value, _values(point.payload, path)):
            if value is not None and (first is None or (value <= first if by.is_descending else value >= first)):
                rows[value, id_key(point.id)] = point
    page = sorted(rows, reverse=by.is_descending)[ask.offset : ask.offset + ask.limit]
    return [replace(found_of(rows[key]), order_value=key[0]) for key in page]


def _order_value(value: Any) -> float | int | None:
    """A number, or a date's microseconds since 1970; None for what has no place in an order."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value
    moment = moment_of(value) if isinstance(value, str) else None
    if moment is None:
        return None
    since = moment - _epoch()
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _epoch() -> Any:
    epoch = moment_of("1970-01-01")
    assert epoch is not None
    return epoch


def _grouped(collection: Shelved, ask: RetrieveAsk) -> list[tuple[int | str, list[Found]]]:
    """The first values met in the order of the only part, with their first points: looked for twice as far each time,
    until all are full or no point is left."""
    assert isinstance(ask.by, Grouped)
    (part,), path = ask.parts, parse_path(ask.by.key)
    reach_max = min(SCAN_MAX, collection.count_matching(part.filter))
    k = 4 * ask.limit * ask.by.size
    while True:
        found = _part(collection, replace(part, limit=k))
        groups: dict[tuple[type, int | str], list[Found]] = {}
        for each in found:
            for value in _group_ids(each.payload, path):
                held = groups.setdefault((type(value), value), [])
                if len(held) < ask.by.size:
                    held.append(each)
        chosen = [(value, held) for (_, value), held in list(groups.items())[: ask.limit]]
        is_full = len(chosen) == ask.limit and all(len(held) == ask.by.size for _, held in chosen)
        if is_full or len(found) < k or k >= reach_max:
            return chosen
        k = min(2 * k, reach_max)


def _group_ids(payload: dict[str, Any], path: Any) -> list[int | str]:
    """The groups a point belongs to: none at all as soon as one of its values can't name a group."""
    values = _values(payload, path)
    if any(type(value) not in (int, str) for value in values):
        return []
    return list(dict.fromkeys(values))


def _facets(collection: Shelved, ask: RetrieveAsk) -> list[tuple[bool | int | str, int]]:
    """Values by the number of points that have them, equal numbers by value."""
    assert isinstance(ask.by, Counted)
    path, ranks = parse_path(ask.by.key), {bool: 0, int: 1, str: 2}
    counts: dict[tuple[int, bool | int | str], int] = {}
    for point in _scan(collection, ask.filter):
        kinds = {(ranks[type(value)], value) for value in _values(point.payload, path) if type(value) in ranks}
        for kind in kinds:
            counts[kind] = counts.get(kind, 0) + 1
    best = sorted(counts.items(), key=lambda each: (-each[1], each[0]))[: ask.limit]
    return [(value, count) for (_, value), count in best]
