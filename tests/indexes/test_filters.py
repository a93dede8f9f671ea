"""Filters mean what they mean to Qdrant, and one that might mean something else is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from qdrant_client import QdrantClient, models

from tests.indexes.filter_cases import Cases
from understudy.indexes.faults import UnknownFilter
from understudy.indexes.filters import CONDITIONS_MAX, DEPTH_MAX, compile_filter, moment_of

# -- against the oracle -----------------------------------------------------------------------------------------------

PATHS = (
    *("a", "b", "a.b", "a.c", "a.b.c", "c[].a", "c[]", "c[0]", "c[0].b", "c[1].a", "c[].b[]", "c.a", "b[]"),
    *('"x.y"', '"x.y".a', "missing"),
)
STRINGS = ("red", "red fox", "the quick-brown fox", "", "naïve Café", "2024-05-01", "2024-05-01T10:30:00Z")
SCALARS = some.one_of(
    some.sampled_from(STRINGS),
    some.sampled_from([-1, 0, 1, 2, 0.5, 1.0, 1.5, True, False, None]),
)
ITEMS = some.one_of(SCALARS, some.lists(SCALARS, max_size=3))
OBJECTS = some.fixed_dictionaries({}, optional={"a": ITEMS, "b": ITEMS, "c": ITEMS})
DEEP = some.fixed_dictionaries({}, optional={"b": some.one_of(ITEMS, OBJECTS), "c": ITEMS})
# each field in the shapes it is asked about, and now and then in another
PAYLOADS = some.fixed_dictionaries(
    {},
    optional={
        "a": some.one_of(SCALARS, ITEMS, OBJECTS, DEEP),
        "b": ITEMS,
        "c": some.one_of(some.lists(OBJECTS, min_size=1, max_size=3), some.lists(ITEMS, max_size=2), OBJECTS),
        "x.y": ITEMS,
    },
)
UUID = "f0e0d0c0-0000-4000-8000-00000000abcd"
KNOWN_IDS: tuple[int | str, ...] = (0, 1, 2, 3, 4, 5, 6, UUID)
TEXTS = some.sampled_from([*STRINGS, "fox red", "quick brown", "brown quick"])
WORDS_OR_NUMBERS = some.one_of(
    some.lists(some.sampled_from(STRINGS), max_size=3), some.lists(some.integers(-1, 2), max_size=3)
)
MATCHES = some.one_of(
    some.fixed_dictionaries({"value": some.one_of(some.sampled_from(STRINGS), some.integers(-1, 2), some.booleans())}),
    some.fixed_dictionaries({"any": WORDS_OR_NUMBERS}),
    some.fixed_dictionaries({"except": WORDS_OR_NUMBERS}),
    *(some.fixed_dictionaries({word: TEXTS}) for word in ("text", "text_any", "phrase", "prefix", "substring")),
)


def _bounds(values: some.SearchStrategy[Any]) -> some.SearchStrategy[dict[str, Any]]:
    return some.dictionaries(some.sampled_from(["lt", "lte", "gt", "gte"]), values, min_size=1, max_size=2)


MOMENTS = some.sampled_from(["2024-05-01T10:30:00Z", "2024-05-01T12:30:00+02:00", "2024-05-01T00:00:00", "2025-01-01"])
RANGES = some.one_of(_bounds(some.sampled_from([-1, 0, 1, 1.5, 2])), _bounds(MOMENTS))
KEYS = some.sampled_from(PATHS)
CONDITIONS = some.one_of(
    some.fixed_dictionaries({"key": KEYS, "match": MATCHES}),
    some.fixed_dictionaries({"key": KEYS, "range": RANGES}),
    some.fixed_dictionaries({"key": KEYS, "values_count": _bounds(some.integers(0, 3))}),
    some.fixed_dictionaries({"key": KEYS, "is_empty": some.booleans()}),
    some.fixed_dictionaries({"key": KEYS, "is_null": some.booleans()}),
    some.fixed_dictionaries({"is_empty": some.fixed_dictionaries({"key": KEYS})}),
    some.fixed_dictionaries({"is_null": some.fixed_dictionaries({"key": KEYS})}),
    some.fixed_dictionaries({"has_id": some.lists(some.sampled_from([*KNOWN_IDS, 99, UUID.upper()]), max_size=6)}),
)


def _filters(conditions: some.SearchStrategy[Any]) -> some.SearchStrategy[dict[str, Any]]:
    several = some.lists(conditions, max_size=3)
    clause = some.one_of(several, conditions)
    return some.fixed_dictionaries(
        {},
        optional={
            "must": clause,
            "should": clause,
            "must_not": clause,
            "min_should": some.fixed_dictionaries({"conditions": several, "min_count": some.integers(1, 3)}),
        },
    )


FILTERS = some.recursive(
    _filters(CONDITIONS),
    lambda inner: _filters(
        some.one_of(
            CONDITIONS,
            inner,
            some.fixed_dictionaries(
                {
                    "nested": some.fixed_dictionaries(
                        {"key": some.sampled_from(["c", "c[]", "a", "a.b"]), "filter": inner}
                    )
                }
            ),
        )
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def qdrant() -> QdrantClient:
    client = QdrantClient(":memory:")
    client.create_collection("docs", vectors_config=models.VectorParams(size=1, distance=models.Distance.DOT))
    return client


def _let_through(
    qdrant: QdrantClient, payloads: list[dict[str, Any]], filter: dict[str, Any]
) -> tuple[set[Any], set[Any]]:
    """The ids let through by us and by Qdrant."""
    points = list(zip(KNOWN_IDS, payloads, strict=True))
    qdrant.upsert("docs", [models.PointStruct(id=name, vector=[1.0], payload=payload) for name, payload in points])
    found, _ = qdrant.scroll("docs", scroll_filter=models.Filter.model_validate(filter), limit=10)
    passes = compile_filter(filter)
    return {name for name, payload in points if passes(name, payload)}, {point.id for point in found}


EIGHT = some.lists(PAYLOADS, min_size=8, max_size=8)
CHECKED = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@settings(CHECKED, max_examples=800)
@given(payloads=EIGHT, condition=CONDITIONS)
def test_every_condition_holds_where_it_holds_for_qdrant(
    qdrant: QdrantClient, payloads: list[dict[str, Any]], condition: dict[str, Any]
):
    ours, theirs = _let_through(qdrant, payloads, {"must": [condition]})
    assert ours == theirs


@settings(CHECKED, max_examples=500)
@given(payloads=EIGHT, filter=FILTERS)
def test_every_filter_lets_through_what_qdrant_lets_through(
    qdrant: QdrantClient, payloads: list[dict[str, Any]], filter: dict[str, Any]
):
    ours, theirs = _let_through(qdrant, payloads, filter)
    assert ours == theirs


def test_seeded_filters_let_through_what_qdrant_lets_through():
    tally = Cases(seed=5).run(3_000)
    assert tally.differing == []
    assert tally.agreed == 3_000
    # most of the others let through all or nothing, which is easily agreed on
    assert tally.telling > 1_000


DATES = some.builds(
    "{}{:04}-{:02}-{:02}{}".format,
    some.sampled_from(["", " "]),
    some.sampled_from([1, 1970, 2024, 9999]),
    some.integers(0, 13),
    some.integers(0, 32),
    some.sampled_from(
        [
            *("", "T", " 12", "T12:30", " 12:30", "T12:30Z", "T12:30:15", "T12:30:15z", " 12:30:15 Z", "T24:00:00"),
            *("T12:30:15+01:00", "T12:30:15+01", "T12:30:15 -0130", "T12:30:15.1234567891+23:59", "T12:30:15+24:00"),
            *("T12:30:15 UTC", "T12:30:15.5 UTC", "T12:30 UTC", "T12:30:60", "T12:30:15.Z", "T12:30:15+01:60", "x"),
        ]
    ),
)


@settings(derandomize=True, max_examples=600, deadline=None)
@given(DATES)
def test_a_date_is_read_as_qdrant_reads_it(text: str):
    from qdrant_client.local import datetime_utils

    assert moment_of(text) == datetime_utils.parse(text)


# -- by example -------------------------------------------------------------------------------------------------------

PAYLOAD = {
    "k": 1,
    "d": 2.5,
    "s": "x",
    "tags": ["red", "green"],
    "when": "2024-05-01T10:30:00Z",
    "diet": [{"food": "leaves", "likes": False}, {"food": "meat", "likes": True}],
}


@pytest.mark.parametrize(
    ("filter", "due"),
    [
        (None, True),
        ({}, True),
        ({"should": []}, True),
        ({"must": [{"key": "k", "match": {"value": 1}}, {"key": "d", "range": {"lt": 5.0, "gte": 1.0}}]}, True),
        ({"must_not": [{"has_id": [7]}]}, False),
        ({"must": [{"has_id": ["7"]}]}, False),
        ({"must": [{"key": "k", "match": {"value": True}}]}, False),
        ({"must": [{"key": "tags", "match": {"any": ["blue", "red"]}}]}, True),
        ({"must": [{"key": "tags", "match": {"except": ["red"]}}]}, True),
        ({"must": [{"key": "when", "range": {"gt": "2024-05-01T12:00:00+02:00", "lt": "2024-06-01"}}]}, True),
        ({"must": [{"key": "diet[].food", "match": {"value": "meat"}}]}, True),
        # one element must pass the whole of a nested filter ...
        (
            {
                "must": [
                    {
                        "nested": {
                            "key": "diet",
                            "filter": {
                                "must": [
                                    {"key": "food", "match": {"value": "meat"}},
                                    {"key": "likes", "match": {"value": False}},
                                ]
                            },
                        }
                    }
                ]
            },
            False,
        ),
        # ... while without nesting any element passes any part
        (
            {
                "must": [
                    {"key": "diet[].food", "match": {"value": "meat"}},
                    {"key": "diet[].likes", "match": {"value": False}},
                ]
            },
            True,
        ),
        (
            {
                "min_should": {
                    "conditions": [{"key": "k", "match": {"value": 1}}, {"key": "s", "match": {"value": "y"}}],
                    "min_count": 2,
                }
            },
            False,
        ),
    ],
)
def test_filters_by_example(filter: object, due: bool):
    assert compile_filter(filter)(7, PAYLOAD) is due


def _deep(levels: int) -> dict[str, Any]:
    return {"must": [_deep(levels - 1)]} if levels else {}


@pytest.mark.parametrize(
    ("filter", "says"),
    [
        ("k = 1", "a filter must be an object"),
        ([], "a filter must be an object"),
        ({"mist": []}, "'mist'"),
        ({"must": ["k"]}, "must be an object, got str"),
        ({"must": [{"key": "k"}]}, "exactly one of"),
        ({"must": [{"key": "k", "match": {"value": 1}, "range": {"lt": 1}}]}, "exactly one of"),
        ({"must": [{"key": "k", "match": {}}]}, "exactly one of"),
        ({"must": [{"key": "k", "match": {"value": 1, "any": [1]}}]}, "exactly one of"),
        ({"must": [{"key": "k", "match": {"value": 1.5}}]}, "1.5"),
        ({"must": [{"key": "k", "match": {"value": [1]}}]}, "match.value"),
        ({"must": [{"key": "k", "match": {"regex": "x"}}]}, "'regex'"),
        ({"must": [{"key": "k", "match": {"any": [1, "a"]}}]}, "only strings or only integers"),
        ({"must": [{"key": "k", "match": {"any": [True]}}]}, "only strings or only integers"),
        ({"must": [{"key": "k", "match": {"except": "x"}}]}, "match.except"),
        ({"must": [{"key": "k", "match": {"text": 1}}]}, "match.text"),
        ({"must": [{"key": "k", "range": {}}]}, "no bound"),
        ({"must": [{"key": "k", "range": {"lt": None}}]}, "no bound"),
        ({"must": [{"key": "k", "range": {"lt": 1, "gt": "2024-01-01"}}]}, "all numbers or all dates"),
        ({"must": [{"key": "k", "range": {"lt": True}}]}, "all numbers or all dates"),
        ({"must": [{"key": "k", "range": {"lt": "yesterday"}}]}, "no date"),
        ({"must": [{"key": "k", "range": {"below": 1}}]}, "'below'"),
        ({"must": [{"key": "k", "values_count": {"gt": 0.5}}]}, "whole numbers"),
        ({"must": [{"key": "k", "is_empty": "yes"}]}, "true or false"),
        ({"must": [{"key": "loc", "geo_radius": {"center": {"lon": 1, "lat": 1}}}]}, "geo_radius must say"),
        ({"must": [{"key": "loc", "geo_radius": {"center": {"lon": 181, "lat": 1}, "radius": 1}}]}, "center"),
        ({"must": [{"key": "loc", "geo_radius": {"center": {"lon": 1, "lat": 1}, "radius": "1"}}]}, "metres"),
        ({"must": [{"key": "loc", "geo_bounding_box": {"top_left": {"lon": 1}, "bottom_right": {}}}]}, "top_left"),
        ({"must": [{"key": "loc", "geo_polygon": {"exterior": {"points": []}}}]}, "corners"),
        (
            {
                "must": [
                    {"key": "loc", "geo_polygon": {"exterior": {"points": [{"lon": n, "lat": 0} for n in range(4)]}}}
                ]
            },
            "the last",
        ),
        ({"must": [{"key": "k[", "match": {"value": 1}}]}, "no key path"),
        ({"must": [{"key": "a..b", "match": {"value": 1}}]}, "no key path"),
        ({"must": [{"key": "a.", "match": {"value": 1}}]}, "no key path"),
        ({"must": [{"key": "", "match": {"value": 1}}]}, "no key path"),
        ({"must": [{"key": "a[-1]", "match": {"value": 1}}]}, "no key path"),
        ({"must": [{"key": 7, "match": {"value": 1}}]}, "key must be a string"),
        ({"must": [{"has_id": 7}]}, "has_id"),
        ({"must": [{"has_id": [7.5]}]}, "7.5"),
        ({"must": [{"has_id": [True]}]}, "True"),
        ({"must": [{"has_id": [7], "key": "k"}]}, "'has_id'"),
        ({"must": [{"has_vector": "image"}]}, "nobody knows of vectors"),
        ({"must": [{"is_null": {"key": "k", "deep": True}}]}, "'deep'"),
        ({"must": [{"nested": {"key": "a"}}]}, "nested.filter"),
        ({"must": [{"nested": {"filter": {}}}]}, "nested.key"),
        ({"min_should": {"conditions": [], "min_count": 0}}, "min_count"),
        ({"min_should": {"min_count": 1}}, "conditions"),
        (_deep(DEPTH_MAX + 1), "deep"),
        ({"must": [{"has_id": []}] * (CONDITIONS_MAX + 1)}, "more than"),
    ],
)
def test_a_filter_that_is_not_certain_is_refused_with_the_part_that_is_not(filter: object, says: str):
    with pytest.raises(UnknownFilter) as fault:
        compile_filter(filter)
    assert says in str(fault.value)


def test_a_filter_as_deep_as_allowed_is_understood():
    assert compile_filter(_deep(DEPTH_MAX))(1, {})
