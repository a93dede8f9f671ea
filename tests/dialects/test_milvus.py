"""Milvus' reads, filters and writes by REST, and the failures that it tells in a 200."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dialects.check_dialect import check_dialect, check_reading
from tests.dialects.recorded_exchanges import recorded, request
from tests.dialects.writing import told as changed
from understudy.indexes.faults import UnknownFilter
from understudy.indexes.writes import Upsert, fitted
from understudy.policies.service import Answer, Refused
from understudy.proxy.asks import Found, RetrieveAsk, Retrieved
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.base import BadRequest, Malformed
from understudy.proxy.dialects.milvus_filter import condition_of, ids_of

MILVUS = DIALECTS["milvus"]
V2 = "/v2/vectordb/"
VECTOR = [0.1, 0.2, 0.3, 0.4]


def asked(act: str, body: Any) -> RetrieveAsk:
    ask = MILVUS.ask(MILVUS.read(request("POST", V2 + act, body)))
    assert isinstance(ask, RetrieveAsk)
    return ask


def searched(**more: Any) -> RetrieveAsk:
    return asked("entities/search", {"collectionName": "docs", "data": [VECTOR], "limit": 3, **more})


def said(ask: RetrieveAsk, result: Retrieved) -> Any:
    return json.loads(MILVUS.retrieved(ask, result, 0.0).body)


def test_it_does_what_every_dialect_must():
    check_dialect(MILVUS, recorded("milvus"))


# --- reading -------------------------------------------------------------------------------------------------------


def test_the_recorded_search_is_read_and_answered_in_its_own_shape():
    exchange = next(each for each in recorded("milvus") if each.call == "entities/search")
    ask = MILVUS.ask(MILVUS.read(exchange.request))
    assert isinstance(ask, RetrieveAsk)
    assert (ask.op, ask.collection, ask.vector, ask.limit, ask.using) == ("search", "docs", tuple(VECTOR), 3, "vector")
    found = Retrieved([Found(1, {"text": "doc a", "k": 1}, 0.93)], distance="cosine")
    assert said(ask, found) == exchange.json


@pytest.mark.parametrize(
    ("call", "result"),
    [
        ("entities/query", Retrieved([Found(1, {"color": "red_7025", "n": 1}), Found(4, {"color": "red_4794"})])),
        ("entities/get", Retrieved([Found(1, {"color": "red_7025", "n": 1})])),
        ("collections/list", Retrieved(names=["quick_setup"])),
        ("collections/has", Retrieved(exists=True)),
    ],
)
def test_the_other_reads_are_answered_as_documented(call: str, result: Retrieved):
    exchange = next(each for each in recorded("milvus") if each.call == call)
    ask = MILVUS.ask(MILVUS.read(exchange.request))
    assert isinstance(ask, RetrieveAsk)
    assert {"cost": 0, **exchange.json} == said(ask, result)


def test_distances_are_the_metrics_own():
    found = [Found(1, {}, 0.5)]
    assert said(searched(), Retrieved(found, distance="euclid"))["data"] == [{"id": 1, "distance": 0.25}]
    assert said(searched(), Retrieved(found, distance="dot"))["data"] == [{"id": 1, "distance": 0.5}]
    metric = searched(searchParams={"metricType": "IP"})
    with pytest.raises(Refused, match="metric"):
        said(metric, Retrieved(found, distance="cosine"))


def test_everything_has_the_vector_with_it_and_counts_are_counted():
    ask = asked("entities/query", {"collectionName": "docs", "filter": "k in [1, 2]"})
    assert (ask.op, ask.with_payload, ask.with_vector, ask.limit) == ("scroll", True, True, 100)
    row = {"id": 1, "k": 1, "vector": [0.5]}
    assert said(ask, Retrieved([Found(1, {"k": 1}, vector=[0.5])]))["data"] == [row]
    count = asked("entities/query", {"collectionName": "docs", "outputFields": ["count(*)"]})
    assert said(count, Retrieved(count=7))["data"] == [{"count(*)": 7}]


def test_another_database_is_another_collection():
    body = {"collectionName": "docs", "dbName": "shop", "data": [VECTOR]}
    assert asked("entities/search", body).collection == "shop/docs"
    assert MILVUS.collection_of(request("POST", V2 + "entities/search", body)) == "shop/docs"
    assert MILVUS.written(request("POST", V2 + "entities/insert", {**body, "data": []})) == "shop/docs"
    assert MILVUS.written(request("POST", V2 + "aliases/alter", {"collectionName": "docs"})) == ""
    for act in ("entities/search", "partitions/list", "collections/get_stats", "users/describe"):
        assert MILVUS.written(request("POST", V2 + act, body)) is None


@pytest.mark.parametrize(
    ("act", "body"),
    [
        ("entities/search", {"data": [VECTOR, VECTOR]}),
        ("entities/search", {"data": ["a text"]}),
        ("entities/search", {"data": [{"1": 0.5}]}),
        ("entities/search", {"data": [VECTOR], "groupingField": "k"}),
        ("entities/search", {"data": [VECTOR], "partitionNames": ["p"]}),
        ("entities/search", {"data": [VECTOR], "exprParams": {"a": 1}}),
        ("entities/search", {"data": [VECTOR], "searchParams": {"params": {"radius": 0.5}}}),
        ("entities/search", {"data": [VECTOR], "searchParams": {"metricType": "BM25"}}),
        ("entities/search", {"data": [VECTOR], "filter": "a + 1 == 2"}),
        ("entities/query", {"outputFields": ["max(k)"]}),
        ("entities/hybrid_search", {}),
        ("collections/describe", {}),
        ("collections/list", {"dbName": "shop"}),
        ("entities/insert", {"data": []}),
    ],
)
def test_what_an_index_of_float_vectors_cannot_answer_is_refused(act: str, body: dict[str, Any]):
    with pytest.raises(Refused):
        asked(act, {"collectionName": "docs", **body})


@pytest.mark.parametrize(
    "body",
    [
        {"data": [VECTOR]},
        {"collectionName": "docs"},
        {"collectionName": "docs", "data": [VECTOR], "limit": 17_000},
        b"x",
    ],
)
def test_what_milvus_would_not_take_is_the_callers_fault(body: Any):
    with pytest.raises(BadRequest):
        asked("entities/search", body)


# --- filters -------------------------------------------------------------------------------------------------------

POINT: dict[str, Any] = {"k": 3, "name": "it's", "w": 0.5, "on": True, "meta": {"lang": "en"}, "title": "intro to"}


@pytest.mark.parametrize(
    ("expression", "passes"),
    [
        ("k == 3", True),
        ("3 == k && w < 1", True),
        ("1 < k <= 3", True),
        ('k > 3 or name == "it\'s"', True),
        ("name == 'it\\'s'", True),
        ("not (k == 3)", False),
        ("!(k != 3) and on == true", True),
        ("k in [1, 2, 3]", True),
        ("k not in [1, 2]", True),
        ('meta["lang"] != "de"', True),
        ("$meta['k'] == 3", True),
        ('title like "intro%"', True),
        ('title like "%to"', True),
        ('title like "to%"', False),
        ("id == 7", True),
        ("id in [1, 8]", False),
        ("absent == 1", False),
        ("absent == 1 or k == 3", True),
        ("k == 3.0", True),
        ('k == "3"', False),
        ("on == 1", False),
        ("k == 1 or k == 3 and on == false", False),
        ("", True),
    ],
)
def test_a_filter_means_what_it_says(expression: str, passes: bool):
    condition = condition_of(expression)
    assert (condition is None or condition.passes(7, POINT, "")) is passes


@pytest.mark.parametrize("expression", ["absent != 1", "not (absent == 1 or k == 4)", "absent not in [1]", 'k != "3"'])
def test_what_a_denial_says_of_points_without_the_field_is_not_guessed(expression: str):
    condition = condition_of(expression)
    assert condition is not None
    with pytest.raises(UnknownFilter):
        condition.passes(7, POINT, "")


@pytest.mark.parametrize(
    "expression",
    [
        "k",
        "k ==",
        "k == 1 2",
        "k + 1 == 2",
        "json_contains(a, 1)",
        "a[0] == 1",
        "k in (1, 2)",
        "k in [j]",
        "k == j",
        "(k == 1",
        "k == {x}",
        "k is null",
        'k like "a_"',
        "1 == 1",
        "and",
        "k ! 1",
        "(" * 100 + "k == 1" + ")" * 100,
        "k == 'a\\q'",
    ],
)
def test_a_filter_that_is_not_certain_is_refused(expression: str):
    with pytest.raises(Refused):
        condition_of(expression)


def test_ids_alone_are_known_from_a_filter():
    assert ids_of("id in [1, 2]") == (1, 2)
    assert ids_of("id == 'a'") == ("a",)
    assert ids_of("id in [1] and k == 1") is None
    assert ids_of("k in [1]") is None


@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.text(alphabet="kid =!<>&|()[]\"'1.2-,notandrinlike%\\", max_size=24))
def test_no_expression_breaks_the_reading(expression: str):
    with contextlib.suppress(Refused, UnknownFilter):
        condition = condition_of(expression)
        if condition is not None:
            condition.passes(7, POINT, "")
        ids_of(expression)


# --- writes --------------------------------------------------------------------------------------------------------


def test_the_recorded_writes_are_applied():
    insert, delete = (
        next(each for each in recorded("milvus") if each.call == call)
        for call in ("entities/insert", "entities/delete")
    )
    (change,) = MILVUS.applied(MILVUS.read(insert.request), insert.answer)
    assert isinstance(change.write, Upsert)
    assert [(point.id, point.payload["color"]) for point in change.write.points] == [(0, "pink_8682"), (1, "red_7025")]
    whole = fitted(change.write, ("vector",))
    assert isinstance(whole, Upsert)
    assert whole.points[0].payload == {"color": "pink_8682"}
    assert whole.points[0].named["vector"].tolist() == [0.5, 0.25]
    (gone,) = MILVUS.applied(MILVUS.read(delete.request), delete.answer)
    assert gone.write.which.filter.passes(0, {"color": "pink_8682"}, "")  # type: ignore[union-attr]


def test_rows_are_applied_under_the_ids_that_the_answer_gives_or_not_at_all():
    call = MILVUS.read(request("POST", V2 + "entities/insert", {"collectionName": "docs", "data": {"k": 1}}))
    with pytest.raises(Refused):
        MILVUS.changes(call)
    done = Answer(200, [], b'{"code":0,"data":{"insertCount":1,"insertIds":[77]}}')
    (change,) = MILVUS.applied(call, done)
    assert isinstance(change.write, Upsert)
    assert (change.write.points[0].id, change.write.points[0].payload) == (77, {"k": 1})
    assert MILVUS.applied(call, Answer(200, [], b'{"code":1100,"message":"no"}')) == ()
    other = MILVUS.read(request("POST", V2 + "entities/insert", {"collectionName": "docs", "data": [{"pk": 77}]}))
    with pytest.raises(Refused, match="primary key"):
        MILVUS.applied(other, done)


def test_deletes_and_collections_are_read():
    body = {"collectionName": "docs"}
    assert changed("milvus", "POST", V2 + "entities/delete", {**body, "filter": "id in [1, 2]"}) == [
        ("docs", "Delete", {"which": {"ids": [1, 2]}})
    ]
    assert changed("milvus", "POST", V2 + "collections/drop", body) == [("docs", "Drop", {})]
    quick = {**body, "dimension": 4, "metricType": "L2"}
    shape = {"dimensions": 4, "distance": "euclid"}
    assert changed("milvus", "POST", V2 + "collections/create", quick) == [
        ("docs", "Create", {"vectors": {"vector": shape}})
    ]
    schema = {
        "fields": [
            {"fieldName": "id", "dataType": "Int64", "isPrimary": True},
            {"fieldName": "emb", "dataType": "FloatVector", "elementTypeParams": {"dim": "8"}},
        ]
    }
    exact = {**body, "schema": schema, "indexParams": [{"fieldName": "emb", "metricType": "COSINE"}]}
    ((_, _, create),) = changed("milvus", "POST", V2 + "collections/create", exact)
    assert create == {"vectors": {"emb": {"dimensions": 8, "distance": "cosine"}}}
    assert changed("milvus", "POST", V2 + "collections/load", body) == []
    assert changed("milvus", "POST", V2 + "entities/search", body) == []


@pytest.mark.parametrize(
    ("act", "body"),
    [
        ("entities/delete", {"filter": "k == 1", "partitionName": "p"}),
        ("entities/delete", {"filter": ""}),
        ("entities/delete", {"filter": "k + 1 == 2"}),
        ("collections/create", {"dimension": 4, "primaryFieldName": "pk"}),
        ("collections/create", {"dimension": 4, "metricType": "JACCARD"}),
        ("collections/create", {"schema": {"fields": [{"fieldName": "v", "dataType": "SparseFloatVector"}]}}),
        ("collections/create", {"schema": {"fields": [], "functions": [{"name": "bm25"}]}}),
        ("collections/rename", {"newCollectionName": "other"}),
        ("partitions/drop", {"partitionName": "p"}),
        ("aliases/create", {"aliasName": "a"}),
        ("jobs/import/create", {}),
    ],
)
def test_a_write_whose_effect_only_the_database_knows_is_refused(act: str, body: dict[str, Any]):
    with pytest.raises(Refused):
        changed("milvus", "POST", V2 + act, {"collectionName": "docs", **body})


# --- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"code":0,"data":[]}', ""),
        (b'{ "code" : 200, "data" : [] }', ""),
        (b'{"data":[],"code":0}', ""),
        (b'{"code":1,"message":"service not ready"}', "error_in_200"),
        (b'{"message":"collection not found","code":100}', "error_in_200"),
        (b"[]", "garbage"),
        (b"", "garbage"),
    ],
)
def test_a_200_may_hold_a_failure(body: bytes, why: str):
    assert MILVUS.failure_within(Answer(200, [], body)) == why
    write = MILVUS.read(request("POST", V2 + "entities/insert", {}))
    assert MILVUS.write_failed(write, Answer(200, [], body)) == ("" if why == "garbage" else why)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "code", "k"]), inner, max_size=2)
    ),
    max_leaves=6,
)
NAMES = [
    "collectionName",
    "dbName",
    "data",
    "filter",
    "id",
    "limit",
    "outputFields",
    "searchParams",
    "schema",
    "dimension",
]


@settings(derandomize=True, max_examples=500, deadline=None)
@given(
    st.sampled_from(["search", "query", "get", "insert", "upsert", "delete"]),
    st.dictionaries(st.sampled_from(NAMES), JSON_VALUES, max_size=5),
    JSON_VALUES.map(lambda value: json.dumps(value).encode()),
)
def test_no_json_breaks_the_reading(act: str, body: dict[str, Any], answer: bytes):
    asked = request("POST", V2 + "entities/" + act, body)
    check_reading(MILVUS, asked)
    call = MILVUS.read(asked)
    for read in (lambda: MILVUS.changes(call), lambda: MILVUS.applied(call, Answer(200, [], answer))):
        with contextlib.suppress(Refused, Malformed):
            read()
