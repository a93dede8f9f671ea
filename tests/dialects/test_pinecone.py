"""Pinecone's reads are told from its writes, its filters mean what they say, and answers have the recorded shapes."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dialects.check_dialect import check_dialect, check_reading
from tests.dialects.recorded_exchanges import recorded, request
from tests.kit.pinecone_service import passes
from understudy.indexes.filters import compile_filter
from understudy.indexes.writes import Change, Create, Delete, Drop, PutPayload, PutVectors, Upsert, Which
from understudy.policies.service import Answer, Refused
from understudy.proxy.asks import CollectionInfo, Found, RetrieveAsk, Retrieved
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.base import BadRequest, Malformed
from understudy.proxy.dialects.pinecone_filter import translated
from understudy.proxy.dialects.pinecone_writes import EVERYTHING

PINECONE = DIALECTS["pinecone"]
VECTOR = [0.1, 0.2, 0.3, 0.4]


def asked(path: str, body: Any = None, method: str = "POST") -> RetrieveAsk:
    ask = PINECONE.ask(PINECONE.read(request(method, path, body)))
    assert isinstance(ask, RetrieveAsk)
    return ask


def queried(**body: Any) -> RetrieveAsk:
    return asked("/query", {"vector": VECTOR, "topK": 3} | body)


def told(ask: RetrieveAsk, retrieved: Retrieved) -> Any:
    return json.loads(PINECONE.retrieved(ask, retrieved, 0.01).body)


def test_it_does_what_every_dialect_must():
    check_dialect(PINECONE, recorded("pinecone"))


PATHS = (
    "/query",
    "/vectors/fetch",
    "/describe_index_stats",
    "/vectors/upsert",
    "/a/namespaces/%ff/query",
    "/namespaces/n",
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats(allow_nan=False) | st.text(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["$eq", "$in", "$ne", "$and", "$or", "$exists", "a"]), inner, max_size=2)
    ),
    max_leaves=6,
)
FIELDS = ("vector", "id", "topK", "top_k", "namespace", "filter", "includeValues", "sparseVector", "queries")


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(PATHS), st.sampled_from(["GET", "POST"]), st.binary(max_size=100))
def test_no_bytes_break_the_reading(query: bytes, path: str, method: str, body: bytes):
    asked = request(method, path, body)
    asked.query = query
    check_reading(PINECONE, asked)
    PINECONE.collection_of(asked)
    PINECONE.written(asked)


@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.fixed_dictionaries({"vector": st.just(VECTOR)}, optional=dict.fromkeys(FIELDS[1:], JSON_VALUES)))
def test_no_json_breaks_the_reading(body: dict[str, Any]):
    check_reading(PINECONE, request("POST", "/query", body))


# --- reading -------------------------------------------------------------------------------------------------------


def test_a_query_is_read_whole():
    assert queried(namespace="ns", includeMetadata=True, includeValues=True, filter={"a": 1}) == RetrieveAsk(
        "search",
        "ns",
        vector=tuple(VECTOR),
        limit=3,
        filter={"must": [{"key": '"a"', "range": {"gte": 1, "lte": 1}}]},
        with_payload=True,
        with_vector=True,
        shape="ns",
        with_near=True,
    )


def test_the_other_spelling_and_the_default_namespace_are_understood():
    ask = asked("/query", {"id": "a", "top_k": 7, "include_values": True, "include_metadata": True})
    assert (ask.near_id, ask.vector, ask.limit, ask.with_vector, ask.with_payload) == ("a", None, 7, True, True)
    assert (ask.collection, ask.shape) == ("__default__", "")
    assert queried(namespace="__default__").collection == "__default__"


def test_records_are_fetched_by_all_ids_of_the_query_string():
    ask = asked("/vectors/fetch?ids=a%2Fb&ids=c&namespace=ns", method="GET")
    assert (ask.op, ask.collection, ask.ids, ask.with_vector, ask.with_payload) == (
        "get",
        "ns",
        ("a/b", "c"),
        True,
        True,
    )
    with pytest.raises(BadRequest, match="at most 1000"):
        asked("/vectors/fetch?" + "&".join(f"ids={n}" for n in range(1001)), method="GET")


@pytest.mark.parametrize(
    "body",
    [
        {"topK": 3},
        {"topK": 3, "vector": []},
        {"topK": 3, "vector": VECTOR, "id": "a"},
        {"vector": VECTOR},
        {"vector": VECTOR, "topK": 0},
        {"vector": VECTOR, "topK": 10_001},
        {"vector": ["a"], "topK": 1},
        {"vector": {"a": 1}, "topK": 1},
        {"vector": VECTOR, "topK": 1, "filter": "a"},
        [],
        b"",
        b'{"vector": [0.1',
        b'{"vector": ' + b"[" * 100_000,
    ],
)
def test_what_pinecone_would_not_take_is_the_callers_fault(body: Any):
    with pytest.raises(BadRequest) as caught:
        asked("/query", body)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/query", {"vector": VECTOR, "topK": 1, "sparseVector": {"indices": [1], "values": [0.5]}}, "unsupported"),
        ("/query", {"topK": 1, "sparse_vector": {"indices": [1], "values": [0.5]}}, "unsupported"),
        ("/query", {"topK": 1, "queries": [{"values": VECTOR}]}, "unsupported"),
        ("/query", {"vector": VECTOR, "topK": 1, "filter": {"a": {"$regex": "x"}}}, "unsupported_filter"),
        ("/describe_index_stats", {"filter": {"a": 1}}, "unsupported"),
        ("/vectors/upsert", {"vectors": []}, "write"),
        ("/vectors/delete", {"deleteAll": True}, "write"),
        ("/records/namespaces/n/search", {}, "unsupported"),
    ],
)
def test_what_an_index_of_dense_vectors_cannot_answer_is_refused(path: str, body: Any, reason: str):
    with pytest.raises(Refused) as caught:
        asked(path, body)
    assert caught.value.reason == reason


# --- writes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "namespace"),
    [
        (
            "POST",
            "/vectors/upsert",
            {"vectors": [{"id": "a", "metadata": {"namespace": "not"}}], "namespace": "ns"},
            "ns",
        ),
        ("POST", "/vectors/upsert", {"vectors": []}, "__default__"),
        ("POST", "/vectors/update", {"id": "a", "namespace": ""}, "__default__"),
        ("POST", "/vectors/delete", {"deleteAll": True, "namespace": "ns"}, "ns"),
        ("POST", "/vectors/delete", b"no json", ""),
        ("DELETE", "/vectors/delete?ids=a&namespace=ns", None, "ns"),
        ("POST", "/records/namespaces/a%20b/upsert", b"", "a b"),
        ("DELETE", "/namespaces/ns", None, "ns"),
        ("POST", "/bulk/imports", {"uri": "s3://x"}, ""),
        ("POST", "/query", {"vector": VECTOR, "topK": 1}, None),
        ("POST", "/describe_index_stats", {}, None),
        ("POST", "/vectors/fetch_by_metadata", {}, None),
        ("POST", "/records/namespaces/ns/search", {}, None),
        ("GET", "/vectors/list", None, None),
    ],
)
def test_a_write_names_the_namespace_that_it_changes(method: str, path: str, body: Any, namespace: str | None):
    assert PINECONE.written(request(method, path, body)) == namespace


def test_a_search_depends_on_the_namespace_that_it_reads():
    assert PINECONE.collection_of(request("POST", "/query", {"topK": 1, "namespace": "ns"})) == "ns"
    assert PINECONE.collection_of(request("POST", "/query", {"topK": 1})) == "__default__"
    assert PINECONE.collection_of(request("GET", "/vectors/fetch?ids=a&namespace=ns")) == "ns"
    assert PINECONE.collection_of(request("POST", "/describe_index_stats", {})) == ""


# --- filters -------------------------------------------------------------------------------------------------------

FIELD = st.sampled_from(["a", "b.c", "tags"])
TEXT = st.sampled_from(["x", "y", "z"])
NUMBER = st.sampled_from([-1, 0, 1, 1.0, 1.5, 2])
SCALAR = TEXT | NUMBER | st.booleans()
METADATA = st.dictionaries(FIELD, SCALAR | st.lists(TEXT, min_size=1, max_size=3), max_size=3)
CONDITION = (
    SCALAR
    | st.fixed_dictionaries({"$eq": SCALAR})
    | st.fixed_dictionaries({"$ne": SCALAR})
    | st.fixed_dictionaries({"$gt": NUMBER, "$lte": NUMBER})
    | st.fixed_dictionaries({"$gte": NUMBER, "$lt": NUMBER})
    | st.fixed_dictionaries({"$in": st.lists(TEXT | NUMBER, min_size=1, max_size=3)})
    | st.fixed_dictionaries({"$nin": st.lists(TEXT | NUMBER, min_size=1, max_size=3)})
    | st.fixed_dictionaries({"$exists": st.booleans()})
)
FILTER = st.recursive(
    st.dictionaries(FIELD, CONDITION, min_size=1, max_size=2),
    lambda inner: st.dictionaries(
        st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=3), min_size=1
    ),
    max_leaves=6,
)


@settings(derandomize=True, max_examples=1500, deadline=None)
@given(FILTER, st.lists(METADATA, min_size=1, max_size=8))
def test_both_readings_of_a_filter_let_through_what_an_exact_scan_does(wanted: Any, records: list[dict[str, Any]]):
    meaning, other = translated(wanted)
    strict, loose = compile_filter(meaning), compile_filter(other if other is not None else meaning)
    for n, metadata in enumerate(records):
        assert strict(n, metadata) == passes(wanted, metadata)
        assert loose(n, metadata) == passes(wanted, metadata, absent=True)
        # so that equal counts mean equal points
        assert not strict(n, metadata) or loose(n, metadata)


def test_only_a_filter_that_negates_has_another_reading():
    assert translated(None) == translated({}) == (None, None)
    assert translated({"a": {"$gt": 1}, "$or": [{"b": "x"}, {"b": {"$exists": False}}]})[1] is None
    meaning, other = translated({"$and": [{"a": {"$nin": ["x"]}}]})
    assert other is not None
    assert meaning != other


@pytest.mark.parametrize(
    "wanted",
    [
        {"$not": {"a": 1}},
        {"a": {"$all": ["x"]}},
        {"a": None},
        {"a": {"$eq": ["x"]}},
        {"a": {"$in": []}},
        {"a": {"$in": [True]}},
        {"a": {"$in": "x"}},
        {"a": {"$gt": "x"}},
        {"a": {"$gt": 10**400}},
        {"a": {"$exists": 1}},
        {"a": {}},
        {"": 1},
        {'a"b': 1},
        {"$and": []},
        {"$or": [{}]},
        {"$or": [1]},
        {"a": {"$in": ["x"] * 10_001}},
    ],
)
def test_a_filter_that_is_not_certain_is_refused(wanted: Any):
    with pytest.raises(Refused) as caught:
        translated(wanted)
    assert caught.value.reason == "unsupported_filter"


def test_a_filter_nested_without_end_is_refused():
    wanted: Any = {"a": 1}
    for _ in range(40):
        wanted = {"$and": [wanted]}
    with pytest.raises(Refused, match="nested"):
        translated(wanted)


# --- writing -------------------------------------------------------------------------------------------------------


def shape_of(value: Any) -> Any:
    """The names of a JSON value and the types below them; a list is known by its first element."""
    if isinstance(value, dict):
        return {name: shape_of(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape_of(value[0])] if value else []
    return float if isinstance(value, int | float) else type(value)


@pytest.mark.parametrize(
    ("call", "retrieved"),
    [
        ("pinecone query", Retrieved([Found("a", {"k": 1}, 0.9)], distance="cosine")),
        ("pinecone fetch", Retrieved([Found("a", {"k": 1}, vector=VECTOR)])),
        ("pinecone stats", Retrieved(infos=[CollectionInfo("__default__", 1, 4, "cosine")])),
    ],
)
def test_our_answers_have_the_recorded_shapes(call: str, retrieved: Retrieved):
    exchange = next(each for each in recorded("pinecone") if each.call == call)
    ask = PINECONE.ask(PINECONE.read(exchange.request))
    assert isinstance(ask, RetrieveAsk)
    assert shape_of(told(ask, retrieved)) == shape_of(exchange.json)


def test_values_and_metadata_come_only_when_asked_for():
    found = Retrieved([Found("a", {"k": 1}, 0.9, VECTOR)], distance="cosine")
    assert told(queried(), found)["matches"] == [{"id": "a", "score": 0.9, "values": []}]
    assert told(queried(includeValues=True), found)["matches"] == [{"id": "a", "score": 0.9, "values": VECTOR}]


def test_euclidean_scores_are_squared_distances():
    found = Retrieved([Found("a", {}, 1.5), Found("b", {}, 3.0)], distance="euclid")
    assert [match["score"] for match in told(queried(), found)["matches"]] == [2.25, 9.0]


def test_stats_add_up_the_namespaces_and_refuse_to_mix_indexes():
    infos = [CollectionInfo("__default__", 3, 4, "dot"), CollectionInfo("ns", 4, 4, "dot")]
    said = told(RetrieveAsk("infos"), Retrieved(infos=infos))
    assert said["namespaces"] == {"": {"vectorCount": 3}, "ns": {"vectorCount": 4}}
    assert (said["totalVectorCount"], said["dimension"], said["metric"]) == (7, 4, "dotproduct")
    with pytest.raises(Refused, match="differ"):
        told(RetrieveAsk("infos"), Retrieved(infos=[*infos, CollectionInfo("x", 1, 8, "dot")]))


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"matches":[],"namespace":""}', ""),
        (b'{"matches":[{"id":"a","metadata":{"message":"m","code":1}}]}', ""),
        (b'{"vectors":{},"message":"m","code":2}', ""),
        (b'{"code":14,"message":"upstream down","details":[]}', "error_in_200"),
        (b'{"error":{"code":"INTERNAL","message":"x"},"status":500}', "error_in_200"),
        (b'{"upsertedCount":1}', ""),
        (b'{"message": nonsense}', "garbage"),
        (b"[]", "garbage"),
        (b"", "garbage"),
    ],
)
def test_a_200_may_hold_a_failure(body: bytes, why: str):
    assert PINECONE.failure_within(Answer(200, [], body)) == why


@pytest.mark.parametrize(("status", "code"), [(400, 3), (404, 5), (429, 8), (500, 13), (503, 14), (418, 2)])
def test_errors_carry_grpcs_code(status: int, code: int):
    assert json.loads(PINECONE.error(status, "r", "why").body) == {"code": code, "message": "why", "details": []}


# --- what writes change --------------------------------------------------------------------------------------------


def changed(method: str, path: str, body: Any = None) -> list[Any]:
    return list(PINECONE.changes(PINECONE.read(request(method, path, body))))


def test_the_recorded_writes_are_read():
    said = {each.call: PINECONE.changes(PINECONE.read(each.request)) for each in recorded("pinecone")}
    (upsert,) = said["pinecone upsert"]
    assert isinstance(upsert.write, Upsert)
    assert (upsert.collection, [point.id for point in upsert.write.points]) == ("__default__", ["a"])
    assert upsert.write.points[0].payload == {"k": 1}
    assert upsert.write.points[0].vector is not None
    assert upsert.write.points[0].vector.tolist() == pytest.approx(VECTOR)
    assert said["pinecone delete"] == (Change("__default__", Delete(Which(("a",)))),)
    assert said["pinecone query"] == said["pinecone stats"] == said["pinecone fetch"] == ()


def test_an_update_writes_the_vector_and_the_fields_it_brings():
    vector, payload = changed("POST", "/vectors/update", {"id": "a", "values": VECTOR, "setMetadata": {"k": 2}})
    assert isinstance(vector.write, PutVectors)
    assert [point.id for point in vector.write.points] == ["a"]
    assert payload == Change("__default__", PutPayload(Which(("a",)), {"k": 2}))
    by_filter = {"filter": {"k": {"$gt": 1}}, "setMetadata": {"seen": True}, "namespace": "ns"}
    (wide,) = changed("POST", "/vectors/update", by_filter)
    assert wide.collection == "ns"
    assert wide.write == PutPayload(Which(filter=translated({"k": {"$gt": 1}})[0]), {"seen": True})
    assert changed("POST", "/vectors/update", {**by_filter, "dryRun": True}) == []


@pytest.mark.parametrize(
    ("method", "path", "body", "change"),
    [
        (
            "POST",
            "/vectors/delete",
            {"deleteAll": True, "namespace": "n"},
            Change("n", Delete(Which(filter=EVERYTHING))),
        ),
        ("DELETE", "/vectors/delete?deleteAll=true&namespace=n", None, Change("n", Delete(Which(filter=EVERYTHING)))),
        ("DELETE", "/vectors/delete?ids=a&ids=b", None, Change("__default__", Delete(Which(("a", "b"))))),
        ("DELETE", "/namespaces/a%20b", None, Change("a b", Drop())),
        ("POST", "/namespaces", {"name": "n"}, Change("n", Create())),
    ],
)
def test_deletes_and_namespaces_are_read(method: str, path: str, body: Any, change: Change):
    assert changed(method, path, body) == [change]


def test_everything_is_what_the_filter_of_everything_lets_through():
    assert compile_filter(EVERYTHING)("a", {})


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/vectors/upsert", {"vectors": [{"id": "a", "sparseValues": {"indices": [1], "values": [0.5]}}]}),
        ("POST", "/vectors/upsert", {"vectors": [{"id": "a", "values": [1e39]}]}),
        ("POST", "/vectors/update", {"filter": {"k": {"$ne": 1}}, "setMetadata": {"k": 1}}),
        ("POST", "/vectors/delete", {"filter": {"k": {"$nin": ["a"]}}}),
        ("POST", "/records/namespaces/n/upsert", b'{"_id": "a", "text": "x"}'),
        ("POST", "/bulk/imports", {"uri": "s3://x"}),
        ("PATCH", "/namespaces/n", {}),
    ],
)
def test_a_write_whose_effect_only_the_database_knows_is_refused(method: str, path: str, body: Any):
    with pytest.raises(Refused):
        changed(method, path, body)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"vectors": [{}]}', {"vectors": [{"id": "a", "values": ["x"]}]}])
def test_a_write_that_is_malformed_is_told_from_one_that_is_not_understood(body: Any):
    with pytest.raises(Malformed):
        changed("POST", "/vectors/upsert", body)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(
    st.sampled_from(["/vectors/upsert", "/vectors/update", "/vectors/delete", "/namespaces", "/namespaces/%ff"]),
    st.sampled_from(["POST", "DELETE", "PATCH"]),
    st.binary(max_size=40)
    | st.dictionaries(st.sampled_from([*FIELDS, "vectors", "ids", "deleteAll", "setMetadata", "name"]), JSON_VALUES),
)
def test_no_write_breaks_the_reading(path: str, method: str, body: Any):
    with contextlib.suppress(Refused, Malformed):
        changed(method, path, body)
