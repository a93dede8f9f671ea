"""Say what a write changes in plain values, so that a test can compare them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from tests.dialects.recorded_exchanges import request
from understudy.indexes.points import Point
from understudy.indexes.writes import Change
from understudy.proxy.dialects import DIALECTS


def told(dialect: str, method: str, path: str, body: Any = None) -> list[tuple[str, str, dict[str, Any]]]:
    """(collection, kind of write, its fields that say something) of each change, arrays as lists."""
    asked = request(method, path, body)
    return [shown(change) for change in DIALECTS[dialect].changes(DIALECTS[dialect].read(asked))]


def shown(change: Change) -> tuple[str, str, dict[str, Any]]:
    """A change as a collection, a kind of write, and its fields that say something."""
    return change.collection, type(change.write).__name__, _plain(change.write)


def _plain(value: Any) -> Any:
    if isinstance(value, Point):
        vector = None if value.vector is None else value.vector.tolist()
        named = {name: held.tolist() for name, held in value.named.items()}
        fields = {"id": value.id, "vector": vector, "payload": value.payload, "text": value.text, "named": named}
        return {name: held for name, held in fields.items() if held or name == "id"}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
        # an empty filter is one that lets everything through
        return {name: held for name, held in fields.items() if held or (name == "filter" and held is not None)}
    if isinstance(value, Mapping):
        return {name: _plain(held) for name, held in cast("Mapping[str, Any]", value).items()}
    return [_plain(held) for held in cast("tuple[Any, ...]", value)] if isinstance(value, tuple) else value
