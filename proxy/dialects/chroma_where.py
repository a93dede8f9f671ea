"""Which points pass Chroma's `where` and `where_document`, as its server decides.

    where           {key: value} | {key: {$eq $ne $gt $gte $lt $lte: value, $in $nin: [values]}} | {$and $or: [where]}
                    | {"#document": where_document}
    where_document  {$contains $not_contains: text} | {$and $or: [where_document]}

Tested against chromadb's own server 1.5.9: one key and one operator at a time; 3 and 3.0 are one number, true is none;
$ne, $nin and $not_contains let through what has no such field at all. What the server answers with a 400 is a 400 here;
regular expressions are refused, since its syntax is another than Python's, and so are arrays in metadata.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import msgspec

from understudy.indexes.conditions import Condition, Test
from understudy.policies.service import Refused
from understudy.proxy.dialects.base import BadRequest

DEPTH_MAX = 16
CONDITIONS_MAX = 1_000
VALUES_MAX = 100_000
DOCUMENT = "#document"

_Check: TypeAlias = Callable[[Any], bool]
_ORDERS: Mapping[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
_ABSENT = object()


def condition_of(where: Any, where_document: Any, ids: tuple[str, ...] | None) -> Condition | None:
    """What all three let through; None where none of them says anything.

    Raises BadRequest where the server would, and Refused for what is not certain to mean the same here.
    """
    reader = _Reader()
    parts: list[Test] = []
    if ids is not None:
        wanted = frozenset(ids)
        parts.append(lambda point, _payload, _text: str(point) in wanted)
    if where is not None:
        parts.append(reader.where(where, 0))
    if where_document is not None:
        parts.append(reader.document(where_document, 0))
    if not parts:
        return None
    key = msgspec.json.encode(["chroma", where, where_document, ids])
    return Condition(key, parts[0] if len(parts) == 1 else _every(parts), reader.reads_text)


def document_of(payload: dict[str, Any], text: str) -> str | None:
    """A point's document: the words it was indexed by, or else what its payload has under `text`; None without any."""
    held = text or payload.get("text")
    return held if isinstance(held, str) and held else None


class _Reader:
    """Reads one filter, counting its conditions: it is asked of every point, so its size is bounded."""

    def __init__(self) -> None:
        self._conditions = 0
        self.reads_text = False

    def where(self, json: Any, depth: int) -> Test:
        key, value = self._only(json, depth, "Invalid where clause")
        if key in ("$and", "$or"):
            parts = [self.where(part, depth + 1) for part in _list(value, "Invalid where clause")]
            return _every(parts) if key == "$and" or not parts else _some(parts)
        if key.startswith("$"):
            raise BadRequest("Invalid where clause")
        if key == DOCUMENT:
            if not isinstance(value, dict):
                raise BadRequest(f"Cannot filter using metadata key '{DOCUMENT}' because indexing is disabled")
            return self.document(value, depth + 1)
        check = self._check(value)
        return lambda _id, payload, _text: check(payload.get(key, _ABSENT))

    def document(self, json: Any, depth: int) -> Test:
        word, value = self._only(json, depth, "Invalid where document clause")
        if word in ("$and", "$or"):
            parts = [self.document(part, depth + 1) for part in _list(value, "Invalid where document clause")]
            return _every(parts) if word == "$and" or not parts else _some(parts)
        if word not in ("$contains", "$not_contains", "$regex", "$not_regex") or not isinstance(value, str):
            raise BadRequest("Invalid where document clause")
        if word.endswith("regex"):
            raise Refused("unsupported_filter", "regular expressions mean another thing in the database's syntax")
        wanted = word == "$contains"
        self.reads_text = True

        def holds(_id: int | str, payload: dict[str, Any], text: str) -> bool:
            document = document_of(payload, text)
            return (document is not None and value in document) is wanted

        return holds

    def _only(self, json: Any, depth: int, fault: str) -> tuple[str, Any]:
        self._conditions += 1
        if depth > DEPTH_MAX or self._conditions > CONDITIONS_MAX:
            raise Refused("unsupported_filter", f"more than {CONDITIONS_MAX} conditions, or nested beyond {DEPTH_MAX}")
        if not isinstance(json, dict) or len(cast("dict[str, Any]", json)) != 1:
            raise BadRequest(fault)
        return next(iter(cast("dict[str, Any]", json).items()))

    def _check(self, value: Any) -> _Check:
        if not isinstance(value, dict):
            return _equal_to(_scalar(value))
        word, wanted = self._only(value, 0, "Invalid where clause")
        if word == "$eq":
            return _equal_to(_scalar(wanted))
        if word == "$ne":
            return _not(_equal_to(_scalar(wanted)))
        if word in ("$in", "$nin"):
            return _one_of(wanted) if word == "$in" else _not(_one_of(wanted))
        if word in _ORDERS:
            if not _is_number(wanted):
                raise BadRequest("Invalid where clause")
            order = _ORDERS[word]
            return lambda held: _is_number(held) and order(held, wanted)
        if word in ("$contains", "$not_contains"):
            raise Refused("unsupported_filter", "arrays in metadata are not known here")
        raise BadRequest("Invalid where clause")


def _scalar(value: Any) -> bool | int | float | str:
    if not isinstance(value, (bool, int, float, str)):
        raise BadRequest("Invalid where clause")
    return value


def _list(value: Any, fault: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadRequest(fault)
    return cast("list[Any]", value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    return "number" if _is_number(value) else type(value).__name__


def _equal_to(wanted: bool | int | float | str) -> _Check:
    kind = _kind(wanted)
    return lambda held: _kind(held) == kind and held == wanted


def _one_of(wanted: Any) -> _Check:
    values = [_scalar(value) for value in _list(wanted, "Invalid where clause")]
    # the server takes a list of one type only: [1, 2.0] is an error to it
    if not values or len({type(value) for value in values}) != 1:
        raise BadRequest("Invalid where clause")
    if len(values) > VALUES_MAX:
        raise Refused("unsupported_filter", f"a list of more than {VALUES_MAX}")
    kind, among = _kind(values[0]), frozenset(values)
    return lambda held: _kind(held) == kind and held in among


def _not(check: _Check) -> _Check:
    return lambda held: not check(held)


def _every(parts: list[Test]) -> Test:
    return lambda point, payload, text: all(part(point, payload, text) for part in parts)


def _some(parts: list[Test]) -> Test:
    return lambda point, payload, text: any(part(point, payload, text) for part in parts)
