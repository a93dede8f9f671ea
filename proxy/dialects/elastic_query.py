"""What Elasticsearch's and OpenSearch's query language says, as far as it means the same without their mappings.

    filters   term, terms, range, exists, ids, match_all, match_none, constant_score, and bool of these
    words     match, multi_match: on the field that the keyword index was made of, alone or in one bool
    vectors   knn, in the spelling of either

A mapping says how a field's text is analysed, and we have none: a string in `term` is the whole value of a keyword
field (`name.keyword` is `name`), `match` is taken only where it ranks by words, and what depends on an analyser, a
script, a clock or a boost is refused with its name. Numbers and booleans are compared as the server coerces them.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeAlias, cast

import msgspec

from understudy.indexes.conditions import Condition, Test
from understudy.policies.service import Refused
from understudy.proxy.dialects.base import BadRequest

DEPTH_MAX = 20
CLAUSES_MAX = 1_024
VALUES_MAX = 65_536

_Check: TypeAlias = Callable[[Any], bool]
_ORDERS: Mapping[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
_NUMBER = re.compile(r"[+-]?\d{1,18}(?:\.\d{1,18})?(?:[eE][+-]?\d{1,3})?")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_END_OF_DAY = timedelta(hours=23, minutes=59, seconds=59, microseconds=999_999)


@dataclass(slots=True)
class Nearest:
    """The neighbours of a vector, `k` of them, of the points that pass `test`."""

    vector: tuple[float, ...]
    k: int | None
    filter: Any = None
    similarity: float | None = None
    field: str = ""


@dataclass(slots=True)
class Meaning:
    """What one query means: words to rank by, a vector to be near, and conditions to pass. `score` is everybody's where
    nothing ranks."""

    words: str = ""
    fields: tuple[str, ...] = ()
    nearest: Nearest | None = None
    filters: list[Any] = field(default_factory=list[Any])
    score: float = 1.0


def condition_of(filters: list[Any]) -> Condition | None:
    """What passes all of these queries; None where there are none. Raises BadRequest, Refused."""
    if not filters:
        return None
    reader = _Reader()
    tests = [reader.query(each, 0) for each in filters]
    key = msgspec.json.encode(["elasticsearch", filters])
    return Condition(key, tests[0] if len(tests) == 1 else _every(tests), reader.reads_text)


def meaning_of(query: Any) -> Meaning:
    """What a request's `query` means. Raises BadRequest where the server would, and Refused."""
    word, said = only(query, "query")
    if word in ("match", "multi_match"):
        words, fields = _words_of(word, said)
        return Meaning(words, fields)
    if word == "knn":
        return Meaning(nearest=nearest_of(said))
    if word == "bool":
        return _bool_meaning(said)
    if word == "match_all":
        _known(said, "match_all", ())
        return Meaning()
    return Meaning(filters=[query])


def nearest_of(said: Any) -> Nearest:
    """A knn search: {field, query_vector, k, num_candidates, filter, similarity}, or {name: {vector, k, filter}}."""
    fields = _object(said, "knn")
    if "field" not in fields and len(fields) == 1:
        inner = _known(next(iter(fields.values())), "knn", ("vector", "k", "filter", "method_parameters"))
        return Nearest(_vector(inner.get("vector")), _k(inner.get("k")), inner.get("filter"), field=next(iter(fields)))
    known = ("field", "query_vector", "k", "num_candidates", "filter", "similarity", "boost")
    fields = _known(fields, "knn", known)
    similarity = fields.get("similarity")
    if similarity is not None and not _is_number(similarity):
        raise BadRequest("[knn] similarity must be a number")
    vector, k = _vector(fields.get("query_vector")), _k(fields.get("k"))
    return Nearest(vector, k, fields.get("filter"), similarity, _text(fields.get("field"), "knn"))


def values_at(payload: Any, path: str) -> list[Any]:
    """The values of a field, those of arrays one by one; `a.b` is b in a, or a field of that very name."""
    if isinstance(payload, list):
        return [value for each in cast("list[Any]", payload) for value in values_at(each, path)]
    if not isinstance(payload, dict):
        return []
    fields = cast("dict[str, Any]", payload)
    found = _flat(fields[path]) if path in fields else []
    head, dot, rest = path.partition(".")
    while dot:
        if head in fields:
            found += values_at(fields[head], rest)
        more, dot, rest = rest.partition(".")
        head = f"{head}.{more}"
    return found


def only(json: Any, what: str) -> tuple[str, Any]:
    """The one word of a query and what it says."""
    fields = _object(json, what)
    if len(fields) != 1:
        raise BadRequest(f"[{what}] malformed query, expected one field")
    return next(iter(fields.items()))


# --- what ranks ----------------------------------------------------------------------------------------------------


def _bool_meaning(said: Any) -> Meaning:
    """One clause of words at most, in `must` or alone in `should`; everything else has to be passed."""
    clauses = _known(said, "bool", ("must", "filter", "must_not", "should", "minimum_should_match"))
    ranking: list[tuple[str, Any]] = []
    passing: list[Any] = []
    for each in _list(clauses.get("must")):
        word, inner = only(each, "bool")
        if word in ("match", "multi_match"):
            ranking.append((word, inner))
        else:
            passing.append(each)
    should = _list(clauses.get("should"))
    if should and all(only(each, "bool")[0] in ("match", "multi_match") for each in should):
        if len(should) > 1 or ranking or passing or clauses.get("filter") or clauses.get("must_not"):
            raise Refused("unsupported", "words that only raise a score are not known here")
        ranking.append(only(should[0], "bool"))
        should = []
    if len(ranking) > 1:
        raise Refused("unsupported", "words in several clauses are not ranked here as the database would")
    scored = bool(passing or should)
    if should and (passing or clauses.get("filter") or ranking) and clauses.get("minimum_should_match") is None:
        raise Refused("unsupported", "clauses that only raise a score are not known here")
    rest = {key: clauses[key] for key in ("filter", "must_not") if clauses.get(key)}
    if should:
        rest |= {"should": should, "minimum_should_match": clauses.get("minimum_should_match") or 1}
    passing += [{"bool": rest}] if rest else []
    if not ranking:
        return Meaning(filters=passing, score=1.0 if scored else 0.0)
    words, fields = _words_of(*ranking[0])
    return Meaning(words, fields, filters=passing)


def _words_of(word: str, said: Any) -> tuple[str, tuple[str, ...]]:
    if word == "match":
        name, inner = only(said, "match")
        text = inner
        if isinstance(inner, dict):
            text = _known(inner, "match", ("query", "operator")).get("query")
            if str(cast("dict[str, Any]", inner).get("operator", "or")).lower() != "or":
                raise Refused("unsupported", "a match of all words depends on the database's analyser")
        fields: tuple[str, ...] = (name,)
    else:
        inner = _known(said, "multi_match", ("query", "fields", "type", "tie_breaker"))
        if inner.get("type") not in (None, "best_fields", "most_fields"):
            raise Refused("unsupported", "a multi_match other than best_fields or most_fields")
        text = inner.get("query")
        fields = tuple(str(each).partition("^")[0] for each in _list(inner.get("fields")))
        if not fields or any("*" in each for each in fields):
            raise Refused("unsupported", "a multi_match without the names of its fields")
    if not isinstance(text, str):
        raise Refused("unsupported", f"a {word} of what is no text")
    if not text.strip():
        raise Refused("unsupported", f"a {word} without words")
    return text, fields


# --- what passes ---------------------------------------------------------------------------------------------------


class _Reader:
    """Reads queries that only pass or don't, counting their clauses: they are asked of every point."""

    def __init__(self) -> None:
        self._clauses = 0
        self.reads_text = False

    def query(self, json: Any, depth: int) -> Test:
        self._clauses += 1
        if depth > DEPTH_MAX or self._clauses > CLAUSES_MAX:
            raise Refused("unsupported_filter", f"more than {CLAUSES_MAX} clauses, or nested beyond {DEPTH_MAX}")
        word, said = only(json, "query")
        if word == "bool":
            return self._bool(said, depth)
        if word == "match_all":
            return lambda _id, _payload, _text: True
        if word == "match_none":
            return lambda _id, _payload, _text: False
        if word == "constant_score":
            return self.query(_known(said, word, ("filter", "boost")).get("filter"), depth + 1)
        if word == "ids":
            ids = frozenset(map(str, _list(_known(said, word, ("values",)).get("values"))))
            return lambda point, _payload, _text: str(point) in ids
        if word == "exists":
            return self._on(_text(_known(said, word, ("field",)).get("field"), word), bool)
        if word in _LEAVES:
            name, inner = only(said, word)
            check = _LEAVES[word](inner)
            return self._on(name, lambda values: any(map(check, values)))
        raise Refused("unsupported_filter", f"the local index does not know the query [{word[:40]}]")

    def _bool(self, said: Any, depth: int) -> Test:
        clauses = _known(said, "bool", ("must", "filter", "must_not", "should", "minimum_should_match", "boost"))
        parts = {
            key: [self.query(each, depth + 1) for each in _list(clauses.get(key))]
            for key in ("must", "filter", "must_not", "should")
        }
        needed = parts["must"] + parts["filter"]
        least = clauses.get("minimum_should_match")
        if least is None:
            least = 1 if parts["should"] and not needed else 0
        if isinstance(least, str) and least.isdecimal():
            least = int(least)
        if not isinstance(least, int) or isinstance(least, bool) or least < 0:
            raise Refused("unsupported_filter", "minimum_should_match as anything but a number of clauses")
        return _together(needed, parts["must_not"], parts["should"], least)

    def _on(self, name: str, passes: Callable[[list[Any]], bool]) -> Test:
        path = name.removesuffix(".keyword")
        if path == "_id":
            return lambda point, _payload, _text: passes([str(point)])
        if path.startswith("_") or "*" in path:
            raise Refused("unsupported_filter", f"the local index does not know the field {name[:40]!r}")
        if path != "text":
            return lambda _id, payload, _text: passes(values_at(payload, path))
        self.reads_text = True
        return lambda _id, payload, text: passes(values_at(with_text(payload, text), path))


def with_text(payload: dict[str, Any], text: str) -> dict[str, Any]:
    """A payload and the words beside it, as clients are told them."""
    if text and "text" not in payload and text not in payload.values():
        return {"text": text, **payload}
    return payload


def _together(needed: list[Test], must_not: list[Test], should: list[Test], least: int) -> Test:
    return lambda point, payload, text: (
        all(test(point, payload, text) for test in needed)
        and not any(test(point, payload, text) for test in must_not)
        and (least == 0 or sum(test(point, payload, text) for test in should) >= least)
    )


def _term(said: Any) -> _Check:
    if isinstance(said, dict):
        said = _known(said, "term", ("value", "boost")).get("value")
    return _equal_to(said)


def _terms(said: Any) -> _Check:
    if not isinstance(said, list):
        raise Refused("unsupported_filter", "terms that are looked up elsewhere")
    values = cast("list[Any]", said)
    if len(values) > VALUES_MAX:
        raise BadRequest(f"failed to create query: more than {VALUES_MAX} terms")
    checks = [_equal_to(value) for value in values]
    return lambda held: any(check(held) for check in checks)


def _equal_to(wanted: Any) -> _Check:
    """As the server coerces what a query says to the type of its field."""
    if not isinstance(wanted, (str, int, float)):
        raise BadRequest("[term] query does not support this value")
    number = _number(wanted)
    written = str(wanted).lower() if isinstance(wanted, bool) else str(wanted)

    def holds(held: Any) -> bool:
        if isinstance(held, bool):
            return written == ("true" if held else "false")
        if isinstance(held, (int, float)):
            return number is not None and held == number
        return isinstance(held, str) and held == written

    return holds


def _range(said: Any) -> _Check:
    bounds = _known(said, "range", (*_ORDERS, "boost"))
    checks = [_bound(word, bounds[word]) for word in _ORDERS if bounds.get(word) is not None]
    return lambda held: all(check(held) for check in checks)


def _bound(word: str, bound: Any) -> _Check:
    order, number = _ORDERS[word], _number(bound)
    if isinstance(bound, bool) or not isinstance(bound, (str, int, float)):
        raise BadRequest("[range] query does not support this bound")
    if number is not None:
        written = str(bound)
        # what reads as a number is one to a numeric field, and a text to any other
        return lambda held: _is_ordered(held) and order(held, number if _is_number(held) else written)
    text = cast("str", bound)
    if text.startswith("now") or "||" in text:
        raise Refused("unsupported_filter", "dates that are reckoned from other dates")
    # imported when it is needed: with it comes numpy
    from understudy.indexes.filters import moment_of

    moment = moment_of(text)
    if moment is None:
        return lambda held: isinstance(held, str) and order(held, text)
    if _DAY.fullmatch(text) and word in ("gt", "lte"):
        moment += _END_OF_DAY

    def holds(held: Any) -> bool:
        at = moment_of(held) if isinstance(held, str) else None
        return at is not None and order(at, moment)

    return holds


def _is_ordered(held: Any) -> bool:
    return isinstance(held, str) or _is_number(held)


_LEAVES: Mapping[str, Callable[[Any], _Check]] = {"term": _term, "terms": _terms, "range": _range}


# --- small parts ---------------------------------------------------------------------------------------------------


def _every(tests: list[Test]) -> Test:
    return lambda point, payload, text: all(test(point, payload, text) for test in tests)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [inner for each in cast("list[Any]", value) for inner in _flat(each)]
    return [] if value is None else [value]


def _object(json: Any, what: str) -> dict[str, Any]:
    if not isinstance(json, dict):
        raise BadRequest(f"[{what}] malformed query, expected an object")
    return cast("dict[str, Any]", json)


def _known(json: Any, what: str, known: Iterable[str]) -> dict[str, Any]:
    """The fields of an object, all of them known. A boost of one changes nothing."""
    fields = _object(json, what)
    for word in fields:
        if word not in known and not (word == "boost" and fields[word] == 1):
            raise Refused("unsupported", f"the local index does not know {word[:40]!r} in [{what}]")
    if fields.get("boost", 1) != 1 and what not in ("term", "range", "constant_score"):
        raise Refused("unsupported", f"a boost in [{what}]")
    return fields


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return cast("list[Any]", value) if isinstance(value, list) else [value]


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"[{what}] query expects a text")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any) -> float | int | None:
    if _is_number(value):
        return value
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else None


def _vector(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list):
        raise Refused("unsupported", "a search without a vector of its own")
    vector = cast("list[Any]", value)
    if not vector or not all(map(_is_number, vector)):
        raise BadRequest("failed to parse: the query vector must be a list of numbers")
    return tuple(map(float, vector))


def _k(value: Any) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise BadRequest("[k] must be greater than 0")
    return value
