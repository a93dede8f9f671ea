"""Decide whether a payload passes a Qdrant filter, without Qdrant.

    filter  = {must, should, must_not: [condition] | condition, min_should: {conditions, min_count}}
    condition = filter | {key, match | range | geo_… | values_count | is_empty | is_null} | {nested: {key, filter}}
              | {has_id} | {has_vector} | {is_empty: {key}} | {is_null: {key}}

A filter is compiled once, and then only asked. Whatever is not listed here raises UnknownFilter when it is compiled:
a filter often keeps one tenant's data from another, so a guess is worse than no answer. Semantics follow Qdrant's
reference (qdrant.tech/documentation/concepts/filtering) for fields without a payload index, and are tested against
the in-memory Qdrant of qdrant-client.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import Any, Final, TypeAlias, cast

from understudy.indexes.faults import UnknownFilter
from understudy.indexes.geo import Inside, in_box, in_circle, in_polygon, place_of
from understudy.indexes.points import Payload, PointId, canonical_id
from understudy.indexes.reach import Path, parse_path, reach

Predicate: TypeAlias = Callable[[PointId | None, Payload], bool]
HasVector: TypeAlias = Callable[[PointId, str], bool]
"""Whether a point has a vector of this name; "" is the one without a name."""
_Test: TypeAlias = Callable[[Any], bool]

DEPTH_MAX: Final = 16
CONDITIONS_MAX: Final = 1_000
LIST_ITEMS_MAX: Final = 100_000

_FILTER_WORDS: Final = frozenset({"must", "should", "must_not", "min_should"})
_GEO_WORDS: Final[Mapping[str, Callable[[object], Inside]]] = {
    "geo_bounding_box": in_box,
    "geo_radius": in_circle,
    "geo_polygon": in_polygon,
}
_FIELD_WORDS: Final = ("match", "range", *_GEO_WORDS, "values_count", "is_empty", "is_null")
_MATCH_WORDS: Final = ("value", "any", "except", "text", "text_any", "phrase", "prefix", "substring")
_BOUNDS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
}
_FIRST: Final = datetime(1, 1, 1, tzinfo=UTC)
_WORD: Final = re.compile(r"[^\W_]+")
_MOMENT: Final = re.compile(
    r"\s*(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d+))?(?: ?(Z|z|[+-]\d\d(?::?\d\d)?)| UTC)?)?)?",
    re.ASCII,
)


def compile_filter(json: object, has_vector: HasVector | None = None) -> Callable[[PointId, Payload], bool]:
    """A predicate over (id, payload) for a Qdrant filter given as decoded JSON; None passes everything.

    `has_vector` answers conditions of that name, which are not understood without it. Raises UnknownFilter, naming the
    part, for anything whose meaning is not certain.
    """
    if json is None:
        return lambda _id, _payload: True
    return _Compiler(has_vector).filter(json, depth=0)


class _Compiler:
    """Walks one filter, counting its conditions: a filter is asked of every point, so its size is bounded."""

    def __init__(self, has_vector: HasVector | None) -> None:
        self._conditions = 0
        self._vector_test = has_vector

    def filter(self, json: object, depth: int) -> Predicate:
        if depth > DEPTH_MAX:
            raise UnknownFilter(f"nested more than {DEPTH_MAX} deep")
        clauses = _fields(json, "a filter", _FILTER_WORDS)
        parts: list[Predicate] = []
        for word, combine in (("must", _all_of), ("must_not", _none_of), ("should", _any_of)):
            if (clause := clauses.get(word)) is not None:
                # an empty clause states nothing, and an empty `should` is no exception
                conditions = self._conditions_of(clause, word, depth)
                parts += [combine(conditions)] if conditions else []
        if (clause := clauses.get("min_should")) is not None:
            parts.append(self._min_should(clause, depth))
        return parts[0] if len(parts) == 1 else _all_of(parts)

    def _conditions_of(self, clause: object, word: str, depth: int) -> list[Predicate]:
        items = cast("list[object]", clause) if isinstance(clause, list) else [clause]
        self._conditions += len(items)
        if self._conditions > CONDITIONS_MAX:
            raise UnknownFilter(f"more than {CONDITIONS_MAX} conditions")
        return [self._condition(item, word, depth) for item in items]

    def _min_should(self, clause: object, depth: int) -> Predicate:
        fields = _fields(clause, "min_should", {"conditions", "min_count"})
        least, conditions = fields.get("min_count"), fields.get("conditions")
        if not isinstance(least, int) or isinstance(least, bool) or least < 1:
            raise UnknownFilter(f"min_should.min_count must be an integer of at least 1, got {least!r}")
        if not isinstance(conditions, list):
            raise UnknownFilter("min_should.conditions must be a list")
        return _at_least(least, self._conditions_of(cast("list[object]", conditions), "min_should", depth))

    def _condition(self, json: object, where: str, depth: int) -> Predicate:
        if not isinstance(json, dict):
            raise UnknownFilter(f"a condition in {where} must be an object, got {type(json).__name__}")
        fields = cast("dict[str, object]", json)
        if "key" in fields:
            return _field_condition(fields)
        if "has_id" in fields:
            return _has_id(_fields(fields, "has_id", {"has_id"})["has_id"])
        if "has_vector" in fields:
            return self._has_vector(_fields(fields, "has_vector", {"has_vector"})["has_vector"])
        if "nested" in fields:
            return self._nested(_fields(fields, "nested", {"nested"})["nested"], depth)
        for word, test in (("is_empty", _is_empty), ("is_null", _is_null)):
            if word in fields:
                inner = _fields(_fields(fields, word, {word})[word], word, {"key"})
                return _over_whole(_path(inner.get("key")), test)
        return self.filter(fields, depth + 1)

    def _has_vector(self, name: object) -> Predicate:
        has_vector = self._vector_test
        if has_vector is None:
            raise UnknownFilter("a condition in has_vector, where nobody knows of vectors")
        if not isinstance(name, str):
            raise UnknownFilter(f"has_vector must be a vector's name, got {name!r}")
        # an element of a nested array has no vectors of its own
        return lambda point, _payload: point is not None and has_vector(point, name)

    def _nested(self, json: object, depth: int) -> Predicate:
        fields = _fields(json, "nested", {"key", "filter"})
        key = fields.get("key")
        if not isinstance(key, str):
            raise UnknownFilter(f"nested.key must be a string, got {key!r}")
        if not isinstance(fields.get("filter"), dict):
            raise UnknownFilter("nested.filter must be an object")
        # `a` and `a[]` name the same array
        path = parse_path(key[:-2] if len(key) > 2 and key.endswith("[]") else key)
        inner = self.filter(fields["filter"], depth + 1)

        def some_element_passes(_id: PointId | None, payload: Payload) -> bool:
            # an element has no id of its own, so has_id inside never holds
            return any(
                inner(None, cast("Payload", element))
                for value in reach(payload, path)
                if isinstance(value, list)
                for element in cast("list[object]", value)
                if isinstance(element, dict)
            )

        return some_element_passes


# -- conditions on one field ------------------------------------------------------------------------------------------


def _field_condition(fields: Mapping[str, object]) -> Predicate:
    known = _fields(fields, "a field condition", {"key", *_FIELD_WORDS})
    path = _path(known.get("key"))
    said = [word for word in _FIELD_WORDS if known.get(word) is not None]
    if len(said) != 1:
        raise UnknownFilter(f"a condition on {known['key']!r} must say exactly one of {', '.join(_FIELD_WORDS)}")
    word, json = said[0], known[said[0]]
    if word == "match":
        return _over_items(path, _match(json))
    if word == "range":
        return _over_items(path, _range(json))
    if word in _GEO_WORDS:
        return _over_items(path, _placed(_GEO_WORDS[word](json)))
    if word == "values_count":
        return _over_whole(path, _values_count(json))
    if not isinstance(json, bool):
        raise UnknownFilter(f"{word} must be true or false, got {json!r}")
    test = _is_empty if word == "is_empty" else _is_null
    return _over_whole(path, test if json else lambda values: not test(values))


def _match(json: object) -> _Test:
    fields = _said(json, "match", _MATCH_WORDS)
    if len(fields) != 1:
        raise UnknownFilter(f"match must say exactly one of {', '.join(_MATCH_WORDS)}")
    word, wanted = next(iter(fields.items()))
    if word == "value":
        if not isinstance(wanted, (bool, int, str)):
            raise UnknownFilter(f"match.value must be a string, an integer or a boolean, got {wanted!r}")
        return _equal_to(wanted)
    if word in ("any", "except"):
        return _one_of(wanted, word)
    if not isinstance(wanted, str):
        raise UnknownFilter(f"match.{word} must be a string, got {wanted!r}")
    return TEXT_TESTS[word](wanted)


def _equal_to(wanted: bool | int | str) -> _Test:
    # true, 1 and 1.0 are three different values in a payload, and one in Python
    kind = type(wanted)
    return lambda value: type(value) is kind and value == wanted


def _one_of(wanted: object, word: str) -> _Test:
    if not isinstance(wanted, list) or len(cast("list[object]", wanted)) > LIST_ITEMS_MAX:
        raise UnknownFilter(f"match.{word} must be a list of at most {LIST_ITEMS_MAX}")
    items = cast("list[object]", wanted)
    kinds = {type(item) for item in items}
    if kinds not in (set(), {int}, {str}):
        raise UnknownFilter(f"match.{word} must hold only strings or only integers")
    kind = kinds.pop() if kinds else None
    values = frozenset(items)
    if word == "any":
        return lambda value: type(value) is kind and value in values
    # null is absence, not a value that differs
    return lambda value: value is not None and not (type(value) is kind and value in values)


def _placed(inside: Inside) -> _Test:
    def holds(value: Any) -> bool:
        place = place_of(value)
        return place is not None and inside(place)

    return holds


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _all_words(wanted: str) -> _Test:
    words = set(_words(wanted))
    return lambda value: bool(words) and isinstance(value, str) and words <= set(_words(value))


def _any_word(wanted: str) -> _Test:
    words = set(_words(wanted))
    return lambda value: isinstance(value, str) and not words.isdisjoint(_words(value))


def _phrase(wanted: str) -> _Test:
    words = _words(wanted)

    def holds(value: Any) -> bool:
        if not words or not isinstance(value, str):
            return False
        held = _words(value)
        return any(held[at : at + len(words)] == words for at in range(len(held) - len(words) + 1))

    return holds


TEXT_TESTS: Final[Mapping[str, Callable[[str], _Test]]] = {
    "text": _all_words,
    "text_any": _any_word,
    "phrase": _phrase,
    "prefix": lambda wanted: lambda value: isinstance(value, str) and value.startswith(wanted),
    "substring": lambda wanted: lambda value: isinstance(value, str) and wanted in value,
}


def _range(json: object) -> _Test:
    fields = _said(json, "range", _BOUNDS)
    if not fields:
        raise UnknownFilter("range has no bound")
    if all(_is_number(bound) for bound in fields.values()):
        numbers = _within({word: float(cast("float", bound)) for word, bound in fields.items()})
        return lambda value: _is_number(value) and numbers(value)
    if not all(isinstance(bound, str) for bound in fields.values()):
        raise UnknownFilter("range bounds must be all numbers or all dates")
    moments = _within({word: _bound_moment(cast("str", bound)) for word, bound in fields.items()})

    def in_time(value: Any) -> bool:
        moment = moment_of(value) if isinstance(value, str) else None
        return moment is not None and moments(moment)

    return in_time


def _within(bounds: Mapping[str, Any]) -> _Test:
    tests = [(_BOUNDS[word], bound) for word, bound in bounds.items()]
    return lambda value: all(compare(value, bound) for compare, bound in tests)


def _bound_moment(text: str) -> datetime:
    moment = moment_of(text)
    if moment is None:
        raise UnknownFilter(f"range bound {text!r} is no date Qdrant knows")
    return moment


@lru_cache(maxsize=8192)
def moment_of(text: str) -> datetime | None:
    """The moment a payload string stands for, in the formats Qdrant's core reads; UTC where no offset is given.

    Anything finer than a microsecond is cut off. None if it is no date.
    """
    found = _MOMENT.fullmatch(text)
    if found is None:
        return None
    year, month, day, hour, minute, second, fraction, offset = found.groups()
    try:
        return datetime(
            int(year),
            int(month),
            int(day),
            int(hour or 0),
            int(minute or 0),
            int(second or 0),
            int((fraction or "0")[:6].ljust(6, "0")),
            tzinfo=_zone(offset),
        )
    except ValueError:
        return None


def microseconds_of(text: str) -> int | None:
    """The moment a payload string stands for in microseconds since the year 1; None if it is no date."""
    moment = moment_of(text)
    return None if moment is None else (moment - _FIRST) // timedelta(microseconds=1)


def _zone(offset: str | None) -> timezone:
    if offset is None or offset in "Zz":
        return UTC
    digits = offset[1:].replace(":", "").ljust(4, "0")
    if int(digits[2:]) > 59:
        raise ValueError(offset)
    away = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(-away if offset[0] == "-" else away)


def _values_count(json: object) -> _Test:
    fields = _said(json, "values_count", _BOUNDS)
    if not fields or not all(_is_int(bound) for bound in fields.values()):
        raise UnknownFilter("values_count needs whole numbers as lt, lte, gt or gte")
    within = _within(fields)

    def holds(values: list[Any]) -> bool:
        # an absent field holds no values, which is a count too
        return any(within(_count_of(value)) for value in values) if values else within(0)

    return holds


def _count_of(value: Any) -> int:
    if value is None:
        return 0
    return len(cast("list[object]", value)) if isinstance(value, list) else 1


def _is_empty(values: list[Any]) -> bool:
    return all(value is None or value == [] for value in values)


def _is_null(values: list[Any]) -> bool:
    return any(value is None or (isinstance(value, list) and None in value) for value in values)


def _has_id(json: object) -> Predicate:
    if not isinstance(json, list) or len(cast("list[object]", json)) > LIST_ITEMS_MAX:
        raise UnknownFilter(f"has_id must be a list of at most {LIST_ITEMS_MAX} ids")
    items = cast("list[object]", json)
    for item in items:
        if not (_is_int(item) or isinstance(item, str)):
            raise UnknownFilter(f"has_id holds {item!r}, which is no id")
    ids = frozenset(canonical_id(cast("PointId", item)) for item in items)
    return lambda point, _payload: point is not None and canonical_id(point) in ids


# -- small parts ------------------------------------------------------------------------------------------------------


def _over_items(path: Path, test: _Test) -> Predicate:
    """Holds if any value does; an array stands for its elements, one level deep."""

    def holds(_id: PointId | None, payload: Payload) -> bool:
        for value in reach(payload, path):
            if isinstance(value, list):
                if any(test(item) for item in cast("list[object]", value)):
                    return True
            elif test(value):
                return True
        return False

    return holds


def _over_whole(path: Path, test: Callable[[list[Any]], bool]) -> Predicate:
    return lambda _id, payload: test(reach(payload, path))


def _all_of(parts: Sequence[Predicate]) -> Predicate:
    return lambda point, payload: all(part(point, payload) for part in parts)


def _none_of(parts: Sequence[Predicate]) -> Predicate:
    return lambda point, payload: not any(part(point, payload) for part in parts)


def _any_of(parts: Sequence[Predicate]) -> Predicate:
    return lambda point, payload: any(part(point, payload) for part in parts)


def _at_least(least: int, parts: Sequence[Predicate]) -> Predicate:
    return lambda point, payload: sum(part(point, payload) for part in parts) >= least


def _path(key: object) -> Path:
    if not isinstance(key, str):
        raise UnknownFilter(f"key must be a string, got {key!r}")
    return parse_path(key)


def _fields(json: object, what: str, known: Iterable[str]) -> dict[str, object]:
    if not isinstance(json, dict):
        raise UnknownFilter(f"{what} must be an object, got {type(json).__name__}")
    fields = cast("dict[str, object]", json)
    for word in fields:
        if word not in known:
            raise UnknownFilter(f"{what} says {word!r}")
    return fields


def _said(json: object, what: str, known: Iterable[str]) -> dict[str, object]:
    """The fields that say something: a null is as good as absent."""
    return {word: value for word, value in _fields(json, what, known).items() if value is not None}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
