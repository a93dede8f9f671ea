"""Columns let the same rows through as the payloads do, and say so where they cannot tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from tests.indexes.filter_cases import Cases
from tests.indexes.test_filters import FILTERS, KNOWN_IDS, PAYLOADS
from understudy.indexes.collection import Collection
from understudy.indexes.faults import CorruptIndex
from understudy.indexes.fields import (
    BYTES_LEAST,
    DEPTH_MAX,
    PATHS_MAX,
    STRING_BYTES_MAX,
    Fields,
    columns_of,
    write_columns,
)
from understudy.indexes.filters import compile_filter
from understudy.indexes.generation import FIELDS
from understudy.indexes.points import Point, PointId, canonical_id
from understudy.indexes.snapshot import write_snapshot
from understudy.indexes.vectors import Mask


def _fields(payloads: list[dict[str, Any]], ids: list[PointId] | None = None) -> Fields:
    named = list(range(len(payloads))) if ids is None else ids
    places = {each: row for row, each in enumerate(named)}

    def rows_of(asked: Any) -> list[int]:
        return [places[canonical_id(each)] for each in asked if canonical_id(each) in places]

    return Fields(columns_of(payloads, named), rows_of, lambda name: np.arange(len(payloads)) % 2 == len(name) % 2)


def _by_payloads(payloads: list[dict[str, Any]], filter: Any, ids: list[PointId] | None = None) -> list[bool]:
    named = list(range(len(payloads))) if ids is None else ids
    passes = compile_filter(filter, lambda point, name: named.index(point) % 2 == len(name) % 2)
    return [passes(point_id, payload) for point_id, payload in zip(named, payloads, strict=True)]


def _asked(payloads: list[dict[str, Any]], **condition: Any) -> list[bool] | None:
    """What columns say to one condition on `a`, checked against the payloads."""
    asked = {"must": [{"key": "a", **condition}]}
    mask = _fields(payloads).mask(asked)
    if mask is None:
        return None
    assert mask.tolist() == _by_payloads(payloads, asked)
    return mask.tolist()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(payloads=some.lists(PAYLOADS, min_size=8, max_size=8), filter=FILTERS)
def test_columns_let_through_what_payloads_do(payloads: list[dict[str, Any]], filter: dict[str, Any]):
    mask: Mask | None = _fields(payloads, list(KNOWN_IDS)).mask(filter)
    if mask is not None:
        assert mask.tolist() == _by_payloads(payloads, filter, list(KNOWN_IDS))


def test_most_seeded_filters_are_answered_by_columns_as_qdrants_own_engine_answers_them():
    cases, answered = Cases(11), 0
    fields = Fields(
        columns_of([cases.payloads[each] for each in cases.ids], cases.ids),
        lambda asked: [cases.ids.index(canonical_id(each)) for each in asked if canonical_id(each) in cases.ids],
        lambda name: np.array([name in cases.vectors[each] for each in cases.ids]),
    )
    for _ in range(300):
        case = cases.filter(0)
        mask = fields.mask(case)
        answered += mask is not None
        assert mask is None or {cases.ids[row] for row in np.flatnonzero(mask)} == cases.theirs(case)
    assert answered > 100


def test_numbers_are_compared_as_they_are_and_true_is_none():
    payloads = [{"a": each} for each in (1, 1.0, True, "1", [0, 1], 2**53, -3, None, [], {})] + [{}]
    assert _asked(payloads, match={"value": 1}) == [True, False, False, False, True] + 6 * [False]
    assert _asked(payloads, match={"value": True}) == [False, False, True] + 8 * [False]
    assert _asked(payloads, range={"gt": -3, "lte": 1}) is not None
    assert _asked(payloads, range={"gte": 5, "lt": 2}) == 11 * [False]
    assert _asked(payloads, match={"value": 2**60}) == 11 * [False]
    assert _asked(payloads, match={"except": [1, 2**60]}) is not None
    assert _asked(payloads, match={"except": []}) is not None
    assert _asked(payloads, values_count={"gte": 1, "lt": 2**70}) is not None


def test_numbers_that_no_float_holds_are_left_to_the_payloads():
    payloads = [{"a": 2**53 + 1}, {"a": 1}]
    assert _asked(payloads, match={"value": 1}) is None
    assert _asked(payloads, range={"gt": 0}) is None
    assert _asked(payloads, is_empty=False) == [True, True]
    assert _asked(payloads, match={"value": "x"}) == [False, False]


def test_long_strings_are_left_to_the_payloads_where_they_could_pass():
    long = "x" * (STRING_BYTES_MAX + 1)
    payloads = [{"a": long}, {"a": "short"}, {"a": "2024-05-01"}]
    assert _asked(payloads, match={"value": "short"}) == [False, True, False]
    assert _asked(payloads, match={"except": ["short"]}) == [True, False, True]
    for condition in (
        {"match": {"value": long}},
        {"match": {"any": ["short", long]}},
        {"match": {"except": [long]}},
        {"match": {"prefix": "x"}},
        {"range": {"gt": "2024-01-01"}},
    ):
        assert _asked(payloads, **condition) is None
    assert _asked(payloads[1:], range={"gt": "2024-01-01"}) == [False, True]


def test_ids_and_vectors_are_asked_for_by_row():
    payloads: list[dict[str, Any]] = [{} for _ in KNOWN_IDS]
    fields = _fields(payloads, list(KNOWN_IDS))
    for condition in ({"has_id": [2, 99, str(KNOWN_IDS[-1]).upper()]}, {"has_vector": "x"}, {"has_vector": ""}):
        mask = fields.mask({"must_not": condition})
        assert mask is not None
        assert mask.tolist() == _by_payloads(payloads, {"must_not": condition}, list(KNOWN_IDS))
    odd: list[PointId] = [str(KNOWN_IDS[-1]).upper()]
    assert _fields([{}], odd).mask({"must": {"has_id": odd}}) is None


def test_paths_beyond_the_bounds_are_left_to_the_payloads():
    many = [{f"k{number}": 1 for number in range(PATHS_MAX + 1)}]
    fields = _fields(many)
    assert fields.mask({"must": {"key": "k0", "match": {"value": 1}}}) is not None
    assert fields.mask({"must": {"key": f"k{PATHS_MAX}", "match": {"value": 1}}}) is None
    deep: Any = 1
    for _ in range(DEPTH_MAX + 1):
        deep = {"d": deep}
    assert _fields([deep]).mask({"must": {"key": "missing", "match": {"value": 1}}}) is None
    assert _fields([{"a": 1}]).mask({"must": {"key": "missing", "match": {"value": 1}}}) is not None
    large = [{"s": f"{row:0200}", "n": row} for row in range(2 * BYTES_LEAST // 200)]
    fields = _fields(large)
    assert fields.mask({"must": {"key": "s", "match": {"value": large[7]["s"]}}}) is None
    mask = fields.mask({"must": {"key": "n", "match": {"value": 7}}})
    assert mask is not None
    assert np.flatnonzero(mask).tolist() == [7]


def test_a_collection_asks_its_columns_and_does_without_where_it_has_none(tmp_path: Path):
    points = [Point(row, np.ones(3, np.float32), {"n": row % 7, "at": [{"n": row % 3}]}) for row in range(200)]
    write_snapshot(tmp_path / "docs", points, space="s", dimensions=3)
    with_columns = Collection.open(tmp_path / "docs")
    asked = [
        {"must": {"key": "n", "match": {"value": 3}}, "must_not": {"has_id": [3, 10]}},
        {"should": [{"key": "n", "range": {"gt": 4}}, {"key": "at[].n", "match": {"value": 1}}]},
    ]
    due = [sum(compile_filter(each)(point.id, point.payload) for point in points) for each in asked]
    assert [with_columns.count_matching(each) for each in asked] == due
    (tmp_path / "docs" / "g-000001" / FIELDS).write_bytes(b"rot")
    without = Collection.open(tmp_path / "docs")
    assert set(without.damage) == {FIELDS}
    assert [without.count_matching(each) for each in asked] == due


@pytest.mark.parametrize("rows", [0, 3])
def test_a_file_of_other_points_is_refused(rows: int, tmp_path: Path):
    write_columns(tmp_path / FIELDS, ({} for _ in range(rows)), range(rows))
    opened = Fields.open(tmp_path / FIELDS, rows, lambda _ids: [], lambda _name: np.zeros(rows, np.bool_))
    assert opened.count == rows
    with pytest.raises(CorruptIndex, match="version 1 of"):
        Fields.open(tmp_path / FIELDS, rows + 1, lambda _ids: [], lambda _name: np.zeros(rows, np.bool_))
