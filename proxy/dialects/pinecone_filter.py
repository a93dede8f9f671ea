"""Read Pinecone's metadata filters in the words of the local index, which are Qdrant's; never guess.

    {"genre": "drama", "year": {"$gte": 2019, "$lt": 2021}}         fields and operators, all of which must hold
    {"$or": [{"genre": {"$in": ["a", "b"]}}, {"year": 2020}]}       and combinations of such

Metadata is flat: a key with a dot is a key with a dot. Numbers are all doubles, so 1 equals 1.0. A list of strings
stands for each of them. What `$ne` and `$nin` do to a record that lacks the field Pinecone does not say, and it has
changed: such a filter has two readings, and is answered only where both let the same points through.
"""

from __future__ import annotations

import math
from typing import Any, cast

from understudy.policies.service import Refused

DEPTH_MAX = 16
VALUES_MAX = 10_000
"""The most values of `$in` or `$nin`, as in the API."""

Filter = dict[str, Any]
_RANGES = {"$gt": "gt", "$gte": "gte", "$lt": "lt", "$lte": "lte"}
_NEGATIVE = frozenset({"$ne", "$nin"})


def translated(given: Filter | None) -> tuple[Filter | None, Filter | None]:
    """A filter as (its meaning, its other reading or None where it has one only). Raises Refused for what is not
    certain."""
    if not given:
        return None, None
    strict = _all(given, 0, absent_passes=False)
    if not _negates(given):
        return strict, None
    return strict, _all(given, 0, absent_passes=True)


def _all(given: Any, depth: int, *, absent_passes: bool) -> Filter:
    """Everything in one object must hold."""
    if not isinstance(given, dict) or not given:
        raise _uncertain("a condition that is no object, or an empty one")
    if depth > DEPTH_MAX:
        raise _uncertain(f"a filter nested more than {DEPTH_MAX} deep")
    parts: list[Filter] = []
    for name, wanted in cast("dict[str, Any]", given).items():
        if name in ("$and", "$or"):
            if not isinstance(wanted, list) or not wanted:
                raise _uncertain(f"{name} of something else than conditions")
            each = [_all(one, depth + 1, absent_passes=absent_passes) for one in cast("list[Any]", wanted)]
            parts.append({"must" if name == "$and" else "should": each})
        elif name.startswith("$"):
            raise _uncertain(f"the operator {name[:32]}")
        else:
            parts += _field(_key(name), wanted, absent_passes=absent_passes)
    return {"must": parts}


def _field(key: str, wanted: Any, *, absent_passes: bool) -> list[Filter]:
    if not isinstance(wanted, dict):
        return [_equal(key, wanted)]
    operators = cast("dict[str, Any]", wanted)
    if not operators:
        raise _uncertain("a field without a condition")
    return [_condition(key, name, value, absent_passes=absent_passes) for name, value in operators.items()]


def _condition(key: str, name: str, value: Any, *, absent_passes: bool) -> Filter:
    if name == "$eq":
        return _equal(key, value)
    if name == "$in":
        return _any(key, value)
    if name in _RANGES:
        return {"key": key, "range": {_RANGES[name]: _number(value)}}
    if name == "$exists" and isinstance(value, bool):
        return {"must_not": [_absent(key)]} if value else _absent(key)
    if name in _NEGATIVE:
        unwanted = [_equal(key, value) if name == "$ne" else _any(key, value)]
        return {"must_not": unwanted if absent_passes else [*unwanted, _absent(key)]}
    raise _uncertain(f"the operator {name[:32]}, or its value")


def _equal(key: str, value: Any) -> Filter:
    if isinstance(value, bool | str):
        return {"key": key, "match": {"value": value}}
    number = _number(value)
    return {"key": key, "range": {"gte": number, "lte": number}}


def _any(key: str, value: Any) -> Filter:
    values = cast("list[Any]", value) if isinstance(value, list) else []
    if not values or len(values) > VALUES_MAX:
        raise _uncertain("$in or $nin of something else than values")
    texts = [each for each in values if isinstance(each, str)]
    parts: list[Filter] = [{"key": key, "match": {"any": texts}}] if texts else []
    # a boolean here is neither a text nor a number, and the API names no other type
    parts += [_equal(key, _number(each)) for each in values if not isinstance(each, str)]
    return {"should": parts}


def _absent(key: str) -> Filter:
    return {"is_empty": {"key": key}}


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _uncertain("a value of another type than the operator's")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _uncertain("a number that no double holds")
    return number


def _key(name: str) -> str:
    """The name as a path of one step."""
    if '"' in name or not name:
        raise _uncertain("a field of such a name")
    return f'"{name}"'


def _negates(given: Any) -> bool:
    if isinstance(given, dict):
        fields = cast("dict[str, Any]", given)
        return not _NEGATIVE.isdisjoint(fields) or any(map(_negates, fields.values()))
    return isinstance(given, list) and any(map(_negates, cast("list[Any]", given)))


def _uncertain(what: str) -> Refused:
    return Refused("unsupported_filter", f"the local index does not know {what}")
