"""What a GraphQL query of Weaviate's asks for, and how its answer is written down.

    { Get { Docs(nearVector: {vector: […], distance: 0.5}, limit: 3, where: {…}) { text _additional { id } } } }
    { Aggregate { Docs(where: {…}) { meta { count } } } }

    nearVector, nearObject, bm25, hybrid (with a vector), where, limit, offset; _additional id, distance, certainty,
    score, vector

`nearText`, sorting, grouping, cursors, tenants, references, and several classes at once are refused: what the database
would embed, order or follow, it alone knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import msgspec

from understudy.policies.service import Refused
from understudy.proxy.asks import Found, RetrieveAsk, Retrieved, distance_of
from understudy.proxy.dialects.base import BadRequest, Malformed
from understudy.proxy.dialects.graphql import Field
from understudy.proxy.dialects.weaviate_where import condition_of
from understudy.proxy.dialects.weaviate_writes import capital

RESULTS_MAX = 10_000
_NEAR = ("nearVector", "nearObject", "bm25", "hybrid")
_ARGUMENTS = frozenset({*_NEAR, "where", "limit", "offset"})
_MEASURES = {"distance", "certainty", "score"}
_ADDITIONAL = _MEASURES | {"id", "vector"}


class Note(msgspec.Struct, frozen=True):
    """How an answer is to be written down: the properties in their order, what is told beside them, which least
    closeness was asked for, and the properties that words were looked for in."""

    root: str
    alias: str
    properties: tuple[str, ...] = ()
    additional: tuple[str, ...] = ()
    distance: float | None = None
    certainty: float | None = None
    worded: tuple[str, ...] | None = None

    def rows(self, ask: RetrieveAsk, result: Retrieved) -> list[dict[str, Any]]:
        """The objects found, or how many there are."""
        if ask.op == "count":
            return [{"meta": {"count": result.count}}]
        if self.worded is not None and result.found:
            _refuse_unless_indexed(self.worded, result.found)
        metric = distance_of(ask, result)
        if (self.certainty is not None or "certainty" in self.additional) and metric != "cosine":
            raise Refused("unsupported", "a certainty is said of cosines only")
        found = [each for each in result.found if self._is_near(each, metric)]
        return [self._row(each, metric) for each in found]

    def _is_near(self, found: Found, metric: str) -> bool:
        distance = _distance(found.score or 0.0, metric)
        if self.certainty is not None:
            return 1 - distance / 2 >= self.certainty
        return self.distance is None or distance <= self.distance

    def _row(self, found: Found, metric: str) -> dict[str, Any]:
        row: dict[str, Any] = {name: found.payload.get(name) for name in self.properties}
        if self.additional:
            row["_additional"] = {name: _told(name, found, metric) for name in self.additional}
        return row


def ask_of(fields: list[Field]) -> RetrieveAsk:
    """The one search, or count, that a query asks for. Raises BadRequest, Malformed, Refused."""
    if len(fields) != 1 or fields[0].name not in ("Get", "Aggregate") or fields[0].arguments:
        raise Refused("unsupported", "anything but one Get or one Aggregate")
    root = fields[0]
    if len(root.fields) != 1:
        raise Refused("unsupported", "several classes at once")
    asked = root.fields[0]
    return _get(root, asked) if root.name == "Get" else _aggregate(root, asked)


def _get(root: Field, asked: Field) -> RetrieveAsk:
    _known(asked.arguments, _ARGUMENTS, "an argument")
    near = [name for name in _NEAR if name in asked.arguments]
    if len(near) > 1:
        raise BadRequest("only one of nearVector, nearObject, bm25 and hybrid may be there", status=422)
    properties, additional = _selected(asked.fields)
    limit, offset = asked.arguments.get("limit"), asked.arguments.get("offset", 0)
    if limit is None:
        raise Refused("unsupported", "how many there are without a limit is a setting of the server's")
    if type(limit) is not int or type(offset) is not int or limit < 1 or offset < 0 or limit + offset > RESULTS_MAX:
        raise BadRequest(f"limit and offset must be whole, and at most {RESULTS_MAX} together", status=422)
    how, bounds = _nearness(near[0], asked.arguments[near[0]]) if near else ({}, {})
    ranked_by_words = near and near[0] in ("bm25", "hybrid")
    told = _MEASURES & set(additional)
    if told - ({"score"} if ranked_by_words else {"distance", "certainty"} if near else set[str]()):
        raise Refused("unsupported", f"a {sorted(told)[0]} of a search that has none")
    note = Note(root.alias or root.name, asked.alias or asked.name, properties, additional, **bounds)
    return RetrieveAsk(
        "search" if near else "scroll",
        capital(asked.name),
        limit=limit,
        offset=offset,
        filter=condition_of(asked.arguments.get("where")),
        # words are looked for in what is indexed only, which the payload tells
        with_payload=bool(properties) or bool(ranked_by_words),
        with_vector="vector" in additional,
        shape=msgspec.json.encode(note).decode(),
        **how,
    )


def _aggregate(root: Field, asked: Field) -> RetrieveAsk:
    _known(asked.arguments, {"where"}, "an argument")
    (meta, *others) = asked.fields or [Field("")]
    if (
        others
        or meta.name != "meta"
        or meta.alias
        or meta.arguments
        or [each.name for each in meta.fields] != ["count"]
    ):
        raise Refused("unsupported", "an aggregation other than a count")
    note = Note(root.alias or root.name, asked.alias or asked.name)
    where = condition_of(asked.arguments.get("where"))
    return RetrieveAsk("count", capital(asked.name), filter=where, shape=msgspec.json.encode(note).decode())


def _nearness(word: str, said: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is searched by, and what the answer has to know of it."""
    if not isinstance(said, dict):
        raise Malformed(f"{word} is no object")
    fields = cast("dict[str, Any]", said)
    if word == "nearVector":
        _known(fields, {"vector", "distance", "certainty", "targetVectors"}, word)
        return {"vector": _vector(fields.get("vector")), "using": _target(fields), "is_field": True}, _bounds(fields)
    if word == "nearObject":
        _known(fields, {"id", "distance", "certainty"}, word)
        called = fields.get("id")
        if not isinstance(called, str):
            raise Refused("unsupported", "a nearObject by anything but its id")
        return {"near_id": called.lower(), "with_near": True}, _bounds(fields)
    if word == "bm25":
        _known(fields, {"query", "properties"}, word)
        return {"text": _text(fields.get("query"))}, {"worded": _properties(fields)}
    _known(fields, {"query", "properties", "vector", "alpha", "fusionType", "targetVectors"}, word)
    if fields.get("vector") is None:
        raise Refused("unsupported", "a hybrid search without a vector is embedded by the database")
    alpha = fields.get("alpha", 0.75)
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha < 1:
        raise Refused("unsupported", "a hybrid search by one of its halves alone")
    how = {"vector": _vector(fields["vector"]), "text": _text(fields.get("query")), "using": _target(fields)}
    return how | {"is_field": True}, {"worded": _properties(fields)}


def _bounds(fields: dict[str, Any]) -> dict[str, Any]:
    bounds = {name: fields[name] for name in ("distance", "certainty") if fields.get(name) is not None}
    if len(bounds) > 1 or any(type(value) not in (int, float) for value in bounds.values()):
        raise BadRequest("distance and certainty are numbers, of which one may be there", status=422)
    return bounds


def _selected(fields: Iterable[Field]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The properties, and what is told beside them."""
    properties: list[str] = []
    additional: list[str] = []
    for each in fields:
        if each.alias or each.arguments:
            raise Refused("unsupported", "a property by another name, or with arguments")
        if each.name == "_additional":
            additional += [inner.name for inner in each.fields if not (inner.alias or inner.arguments or inner.fields)]
            if len(additional) != len(each.fields) or not _ADDITIONAL.issuperset(additional):
                raise Refused("unsupported", f"anything but {', '.join(sorted(_ADDITIONAL))} among _additional")
        elif each.fields:
            raise Refused("unsupported", "a property that leads to another object")
        else:
            properties.append(each.name)
    return tuple(properties), tuple(additional)


def _vector(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list) or not all(type(each) in (int, float) for each in cast("list[Any]", value)):
        raise Refused("unsupported", "a vector that is no list of numbers")
    return tuple(map(float, cast("list[float]", value)))


def _target(fields: dict[str, Any]) -> str:
    targets = fields.get("targetVectors")
    if targets is None:
        return ""
    if not isinstance(targets, list) or len(cast("list[Any]", targets)) != 1:
        raise Refused("unsupported", "several vectors of an object at once")
    return str(cast("list[Any]", targets)[0])


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Refused("unsupported", "a search without words")
    return value


def _properties(fields: dict[str, Any]) -> tuple[str, ...]:
    """The properties that words are looked for in; () for all of them."""
    said = fields.get("properties")
    names = tuple(map(str, cast("list[Any]", said))) if isinstance(said, list) else ()
    if any("^" in name for name in names):
        raise Refused("unsupported", "properties that weigh differently")
    return names


def _known(said: Iterable[str], known: Iterable[str], what: str) -> None:
    unknown = sorted(set(said) - set(known))
    if unknown:
        raise Refused("unsupported", f"the local index does not know {unknown[0][:40]!r} in {what}")


def _refuse_unless_indexed(names: tuple[str, ...], hits: list[Found]) -> None:
    """The keyword index is made of each point's text and title: only there may words be looked for."""
    for found in hits:
        texts = {name for name, value in found.payload.items() if isinstance(value, str)}
        indexed = {name for name in texts if found.payload[name] == found.text} | (texts & {"title"})
        wanted = set(names) or texts
        if not wanted <= indexed or not indexed <= wanted:
            raise Refused("unsupported", "no local index of words is known to be made of these properties")


def _distance(score: float, metric: str) -> float:
    """As the database says it: lower is better."""
    if metric == "euclid":
        return score * score
    return 1 - score if metric == "cosine" else -score


def _told(name: str, found: Found, metric: str) -> Any:
    if name == "id":
        return str(found.id)
    if name == "vector":
        return found.vector
    if name == "score":
        return f"{found.score or 0.0:.8g}"
    distance = _distance(found.score or 0.0, metric)
    return distance if name == "distance" else 1 - distance / 2
