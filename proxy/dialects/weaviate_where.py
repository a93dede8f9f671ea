"""Read Weaviate's `where`, as far as it means one thing only; never guess.

    {path: ["k"], operator: GreaterThan, valueInt: 1}
    {operator: And, operands: [{path: ["a"], operator: Equal, valueText: "x"}, …]}

    Equal, NotEqual, GreaterThan, GreaterThanEqual, LessThan, LessThanEqual, ContainsAny, ContainsAll; And, Or

How a text is cut into words is a property's own affair, and unless it says otherwise `Equal` looks for words: it is
answered only where whole values and words agree on every point. So are `NotEqual`s, only where every point has the
field. A text is never less than another here, and paths that lead to other objects are refused.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, cast

import msgspec

from understudy.indexes.conditions import Condition, Test
from understudy.indexes.faults import UnknownFilter
from understudy.policies.service import Refused
from understudy.proxy.dialects.base import Malformed
from understudy.proxy.dialects.graphql import Word

DEPTH_MAX: Final = 16
OPERANDS_MAX: Final = 1_024
VALUES_MAX: Final = 10_000

_Check: TypeAlias = Callable[[Any], bool]
_ORDERS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "GreaterThan": operator.gt,
    "GreaterThanEqual": operator.ge,
    "LessThan": operator.lt,
    "LessThanEqual": operator.le,
}
_SCALARS: Final = {
    "valueInt": (int,),
    "valueNumber": (int, float),
    "valueBoolean": (bool,),
    "valueText": (str,),
    "valueString": (str,),
    "valueDate": (str,),
}
_WORDS: Final = re.compile(r"[^\W_]+")


def condition_of(where: Any) -> Condition | None:
    """What a `where` lets through; None where there is none. Raises Malformed, or Refused for what is not certain.

    The Condition raises UnknownFilter while it is worked out, where what it says of some point is not certain."""
    if where is None:
        return None
    reader = _Reader()
    test = reader.test(where, 0)
    return Condition(msgspec.json.encode(["weaviate", where]), test)


class _Reader:
    """Reads one `where`, counting its operands: they are asked of every point."""

    def __init__(self) -> None:
        self._operands = 0

    def test(self, where: Any, depth: int) -> Test:
        self._operands += 1
        if depth > DEPTH_MAX or self._operands > OPERANDS_MAX:
            raise _uncertain(f"more than {OPERANDS_MAX} operands, or nested beyond {DEPTH_MAX}")
        if not isinstance(where, dict):
            raise Malformed("a where that is no object")
        fields = cast("dict[str, Any]", where)
        said = fields.get("operator")
        word = said.text if isinstance(said, Word) else str(said)
        if word in ("And", "Or"):
            operands = fields.get("operands")
            if not isinstance(operands, list) or not operands or fields.keys() - {"operator", "operands"}:
                raise Malformed(f"{word} needs operands, and nothing else")
            tests = [self.test(each, depth + 1) for each in cast("list[Any]", operands)]
            return _together(tests, all if word == "And" else any)
        return _leaf(word, fields)


def _leaf(word: str, fields: dict[str, Any]) -> Test:
    path: Any = fields.get("path")
    steps = cast("list[Any]", path) if isinstance(path, list) else [path]
    name = steps[0] if len(steps) == 1 else None
    if not isinstance(name, str) or name.startswith(("_creation", "_lastUpdate", "len(")):
        raise _uncertain("a path that leads to another object, or to what is not among the properties")
    kinds = [kind for kind in _SCALARS if kind in fields]
    if len(kinds) != 1 or fields.keys() - {"path", "operator", kinds[0]}:
        raise _uncertain("a condition without exactly one value that is known here")
    holds = _holding(word, kinds[0], fields[kinds[0]])
    is_id = name in ("id", "_id")
    if is_id and word != "Equal":
        raise _uncertain(f"{word} of ids")

    def test(point: int | str, payload: dict[str, Any], _text: str) -> bool:
        held = point if is_id else payload.get(name)
        if held is None:
            if word == "NotEqual":
                raise UnknownFilter("what NotEqual says of points without its field is not certain")
            return False
        return holds(str(held) if is_id else held)

    return test


def _holding(word: str, kind: str, value: Any) -> _Check:
    if word in ("ContainsAny", "ContainsAll"):
        values = cast("list[Any]", value) if isinstance(value, list) else [value]
        if not values or len(values) > VALUES_MAX:
            raise _uncertain(f"{word} of something else than values")
        checks = [_some(_equal(kind, each)) for each in values]
        return _each(checks, any if word == "ContainsAny" else all)
    if word == "Equal":
        return _some(_equal(kind, value))
    if word == "NotEqual":
        same = _some(_equal(kind, value))
        return lambda held: not same(held)
    if word not in _ORDERS or kind in ("valueText", "valueString", "valueBoolean"):
        raise _uncertain(f"the operator {word[:32]} of such a value")
    return _some(_ordered(_ORDERS[word], kind, _checked(kind, value)))


def _together(tests: list[Test], join: Callable[[list[bool]], bool]) -> Test:
    """Each is asked, so that what is uncertain of any of them is noticed."""

    def together(point: int | str, payload: dict[str, Any], text: str) -> bool:
        verdicts = [test(point, payload, text) for test in tests]
        return join(verdicts)

    return together


def _each(checks: list[_Check], join: Callable[[list[bool]], bool]) -> _Check:
    def each(held: Any) -> bool:
        verdicts = [check(held) for check in checks]
        return join(verdicts)

    return each


def _some(check: _Check) -> _Check:
    """Of a list, some element; every one is looked at, so that what is uncertain of any is noticed."""

    def some(held: Any) -> bool:
        verdicts = [check(each) for each in cast("list[Any]", held if isinstance(held, list) else [held])]
        return any(verdicts)

    return some


def _equal(kind: str, value: Any) -> _Check:
    wanted = _checked(kind, value)
    if kind == "valueDate":
        return _ordered(operator.eq, kind, wanted)
    if not isinstance(wanted, str):
        return lambda held: isinstance(held, bool) == isinstance(wanted, bool) and _is_number(held) and held == wanted
    words = set(_words(wanted))

    def holds(held: Any) -> bool:
        if not isinstance(held, str):
            return False
        if held == wanted:
            return True
        if words and words.issubset(_words(held)):
            raise UnknownFilter("whether Equal looks for words or for whole values depends on the property")
        return False

    return holds


def _ordered(order: Callable[[Any, Any], bool], kind: str, wanted: Any) -> _Check:
    if kind != "valueDate":
        return lambda held: _is_number(held) and not isinstance(held, bool) and order(held, wanted)
    # imported when it is needed: with it comes numpy
    from understudy.indexes.filters import moment_of

    moment = moment_of(wanted)
    if moment is None:
        raise _uncertain("such a date")

    def holds(held: Any) -> bool:
        at = moment_of(held) if isinstance(held, str) else None
        return at is not None and order(at, moment)

    return holds


def _checked(kind: str, value: Any) -> Any:
    types = _SCALARS[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise Malformed(f"{kind} of another type")
    return value


def _words(text: str) -> list[str]:
    return _WORDS.findall(text.lower())


def _is_number(held: Any) -> bool:
    return isinstance(held, int | float)


def _uncertain(what: str) -> Refused:
    return Refused("unsupported_filter", f"the local index does not know {what}")
