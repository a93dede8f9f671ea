"""Searches of Elasticsearch and OpenSearch mean here what they mean there, or are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dialects.check_dialect import check_dialect, check_reading
from tests.dialects.recorded_exchanges import Exchange, recorded, request
from understudy.indexes.conditions import Condition
from understudy.policies.service import Answer, Refused
from understudy.proxy.asks import Found, RetrieveAsk, Retrieved
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.base import BadRequest
from understudy.proxy.dialects.elastic_query import condition_of, values_at

ELASTIC = DIALECTS["elasticsearch"]
OPEN = DIALECTS["opensearch"]
VECTOR = [0.1, 0.2, 0.3, 0.4]
KNN = {"field": "vec", "query_vector": VECTOR, "k": 5, "num_candidates": 50}
EXCHANGES = {"elasticsearch": recorded("elasticsearch"), "opensearch": recorded("opensearch")}


def asked(body: Any = None, path: str = "/docs/_search", method: str = "POST", dialect: Any = ELASTIC) -> RetrieveAsk:
    ask = dialect.ask(dialect.read(request(method, path, body)))
    assert isinstance(ask, RetrieveAsk)
    return ask


def told(ask: RetrieveAsk, result: Retrieved, dialect: Any = ELASTIC) -> Any:
    return json.loads(dialect.retrieved(ask, result, 0.0034).body)


def exchange(dialect: str, call: str) -> Exchange:
    return next(one for one in EXCHANGES[dialect] if one.call == call)


@pytest.mark.parametrize("name", ["elasticsearch", "opensearch"])
def test_it_does_what_every_dialect_must(name: str):
    check_dialect(DIALECTS[name], EXCHANGES[name])


PATHS = ("/docs/_search", "/docs/_count", "/docs/_doc/a", "/_bulk", "/a,b/_search", "/docs/_search?size=x")
WORDS = ("bool", "must", "filter", "should", "term", "range", "match", "knn", "field", "k", "query_vector", "gte")
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats(allow_nan=False) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=2),
    max_leaves=8,
)
FIELDS = ("query", "knn", "retriever", "size", "from", "_source", "sort", "aggs")


@settings(derandomize=True, max_examples=600, deadline=None)
@given(st.sampled_from(PATHS), st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES))
def test_no_json_breaks_the_reading(path: str, body: dict[str, Any]):
    check_reading(ELASTIC, request("POST", path, body))


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.binary(max_size=80))
def test_no_bytes_break_the_reading(name: bytes, body: bytes):
    one = request("POST", "/", body)
    one.path = b"/" + name + b"/_search"
    one.query = name
    check_reading(ELASTIC, one)


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "written"),
    [
        ("POST", "/_bulk", ""),
        ("PUT", "/docs/_bulk", ""),
        ("PUT", "/docs/_doc/a", ""),
        ("POST", "/docs/_update/a", ""),
        ("POST", "/docs/_delete_by_query", ""),
        ("PUT", "/docs", ""),
        ("POST", "/_aliases", ""),
        ("POST", "/_msearch", None),
        ("POST", "/docs/_msearch", None),
        ("POST", "/docs/_mget", None),
        ("POST", "/_search", None),
        ("GET", "/_cat/indices", None),
        ("HEAD", "/docs", None),
    ],
)
def test_everything_but_reads_is_passed_through_and_a_write_may_concern_any_index(
    method: str, path: str, written: str | None
):
    call = ELASTIC.read(request(method, path, {}))
    assert (call.kind, ELASTIC.written(call.request)) == ("pass", written)
    with pytest.raises(Refused) as caught:
        ELASTIC.ask(call)
    assert caught.value.reason == ("unsupported" if written is None else "write")


def test_what_leaves_something_open_at_the_server_is_not_kept():
    assert ELASTIC.keepable(request("POST", "/docs/_search", {"knn": KNN}))
    assert not ELASTIC.keepable(request("POST", "/docs/_search?scroll=1m", {}))
    assert not ELASTIC.keepable(request("POST", "/docs/_search", {"pit": {"id": "x"}}))
    assert not ELASTIC.keepable(request("GET", "/"))


def test_a_knn_search_is_read_in_every_spelling():
    mine = asked({"knn": KNN | {"filter": {"term": {"k": 1}}}, "size": 3, "from": 1})
    assert (mine.op, mine.collection, mine.vector, mine.limit) == ("search", "docs", tuple(VECTOR), 4)
    assert isinstance(mine.filter, Condition)
    assert asked({"query": {"knn": KNN}}).vector == asked({"knn": [KNN]}).vector == tuple(VECTOR)
    theirs = asked({"size": 5, "query": {"knn": {"vec": {"vector": VECTOR, "k": 5, "filter": {"term": {"k": 1}}}}}})
    assert (theirs.vector, theirs.limit) == (tuple(VECTOR), 5)
    assert asked({"knn": KNN, "size": 100}).limit == 5
    assert asked({"retriever": {"knn": KNN}}).vector == tuple(VECTOR)


def test_words_are_read_alone_in_a_bool_and_beside_a_vector():
    match = {"match": {"text": "hello there"}}
    for query in (match, {"match": {"text": {"query": "hello there"}}}, {"bool": {"must": [match]}}):
        assert (asked({"query": query}).text, asked({"query": query}).filter) == ("hello there", None)
    fields = {"multi_match": {"query": "hello there", "fields": ["title^2", "text"]}}
    assert asked({"query": fields}).text == "hello there"
    both = asked({"query": {"bool": {"should": match, "filter": []}}, "knn": KNN, "size": 20})
    assert (both.text, both.vector, both.limit) == ("hello there", tuple(VECTOR), 20)
    fused = {"rrf": {"retrievers": [{"standard": {"query": match}}, {"knn": KNN}], "rank_window_size": 50}}
    assert asked({"retriever": fused}).vector == tuple(VECTOR)
    filtered = asked({"query": {"bool": {"must": match, "filter": {"term": {"k": 1}}}}})
    assert isinstance(filtered.filter, Condition)


@pytest.mark.parametrize(
    "body",
    [
        {"aggs": {"a": {"terms": {"field": "k"}}}},
        {"sort": [{"k": "asc"}]},
        {"highlight": {"fields": {"text": {}}}},
        {"script_fields": {}},
        {"min_score": 0.5},
        {"search_after": [1]},
        {"collapse": {"field": "k"}},
        {"rescore": {}},
        {"query": {"function_score": {}}},
        {"query": {"query_string": {"query": "a AND b"}}},
        {"query": {"nested": {"path": "a", "query": {"match_all": {}}}}},
        {"query": {"match_phrase": {"text": "a b"}}},
        {"query": {"match": {"text": {"query": "a b", "operator": "and"}}}},
        {"query": {"match": {"text": {"query": "a", "fuzziness": "AUTO"}}}},
        {"query": {"match": {"text": {"query": "a", "boost": 2}}}},
        {"query": {"multi_match": {"query": "a", "fields": ["*"]}}},
        {"query": {"multi_match": {"query": "a", "fields": ["text"], "type": "phrase"}}},
        {"query": {"bool": {"must": [{"match": {"text": "a"}}], "should": [{"match": {"text": "b"}}]}}},
        {"query": {"bool": {"must": [{"match": {"text": "a"}}, {"match": {"title": "b"}}]}}},
        {"query": {"bool": {"filter": [{"term": {"k": 1}}], "should": [{"term": {"k": 2}}]}}},
        {"query": {"bool": {"must": [{"knn": KNN}], "filter": [{"term": {"k": 1}}]}}},
        {"query": {"bool": {"filter": [{"match": {"text": "a"}}]}}},
        {"query": {"bool": {"filter": [{"range": {"at": {"gte": "now-1d"}}}]}}},
        {"query": {"bool": {"filter": [{"range": {"at": {"gte": "2024-01-01", "time_zone": "+01:00"}}}]}}},
        {"query": {"bool": {"filter": [{"terms": {"k": {"index": "x", "id": "1", "path": "y"}}}]}}},
        {"query": {"bool": {"filter": [{"wildcard": {"k": "a*"}}]}}},
        {"query": {"bool": {"filter": [{"term": {"_routing": "a"}}]}}},
        {"query": {"bool": {"should": [{"term": {"k": 1}}], "minimum_should_match": "75%"}}},
        {"knn": [KNN, KNN]},
        {"knn": {"field": "vec", "query_vector_builder": {}}},
        {"knn": KNN | {"boost": 0.5}},
        {"knn": KNN, "query": {"match_all": {}}},
        {"knn": KNN | {"filter": {"term": {"k": 1}}}, "query": {"match": {"text": "a"}}},
        {"retriever": {"rrf": {"retrievers": [{"knn": KNN}, {"knn": KNN}]}}},
        {"retriever": {"text_similarity_reranker": {}}},
        {"query": json.loads('{"bool":{"filter":' * 22 + '{"term":{"k":1}}' + "}}" * 22)},
    ],
)
def test_what_would_only_be_guessed_is_refused(body: dict[str, Any]):
    with pytest.raises(Refused):
        asked(body)


@pytest.mark.parametrize(
    "path",
    [
        "/a,b/_search",
        "/logs-*/_search",
        "/docs/_search?q=x",
        "/docs/_search?scroll=1m",
        "/docs/_search?routing=a",
        "/docs/_search?filter_path=hits",
    ],
)
def test_several_indices_and_parameters_that_change_the_answer_are_refused(path: str):
    with pytest.raises(Refused):
        asked({"knn": KNN}, path)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        {"size": -1},
        {"size": "x"},
        {"from": 9_999, "size": 2},
        {"query": {}},
        {"query": {"term": {"k": 1}, "match": {"text": "x"}}},
        {"query": {"bool": {"filter": [{"term": {"k": None}}]}}},
        {"query": {"bool": {"filter": [{"range": {"k": {"gt": [1]}}}]}}},
        {"query": []},
        {"knn": KNN | {"query_vector": []}},
        {"knn": KNN | {"query_vector": ["x"]}},
        {"knn": KNN | {"k": 0}},
        {"_source": 3},
        {"_source": {"only": "a"}},
        {"retriever": {"knn": KNN}, "query": {"match_all": {}}},
    ],
)
def test_what_the_server_would_not_take_is_the_callers_fault(body: Any):
    with pytest.raises(BadRequest) as caught:
        asked(body)
    assert caught.value.status == 400


# --- filters -------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["k", "s", "a.b", "s.keyword"])
SCALARS = st.sampled_from([0, 1, 2.5, True, False, "x", "1", "true", "2024-05-01", "2024-05-01T10:00:00Z"])
BOUNDS = st.sampled_from([0, 1, 2.5, "1", "2024-05-01", "2024-05-01T09:00:00Z", "m"])
LEAF = st.one_of(
    st.builds(lambda name, value: {"term": {name: value}}, NAMES, SCALARS),
    st.builds(lambda name, value: {"term": {name: {"value": value}}}, NAMES, SCALARS),
    st.builds(lambda name, values: {"terms": {name: values}}, NAMES, st.lists(SCALARS, max_size=3)),
    st.builds(
        lambda name, bounds: {"range": {name: bounds}},
        NAMES,
        st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), BOUNDS, min_size=1, max_size=2),
    ),
    st.builds(lambda name: {"exists": {"field": name}}, NAMES),
    st.builds(lambda ids: {"ids": {"values": ids}}, st.lists(st.sampled_from(["7", "x"]), max_size=2)),
    st.sampled_from([{"match_all": {}}, {"match_none": {}}]),
)
QUERY = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.builds(
            lambda clauses: {"bool": clauses},
            st.dictionaries(
                st.sampled_from(["must", "filter", "must_not", "should"]),
                st.lists(inner, max_size=2) | inner,
                max_size=3,
            ),
        ),
        st.builds(lambda one: {"constant_score": {"filter": one}}, inner),
    ),
    max_leaves=6,
)
HELD = SCALARS | st.none() | st.lists(SCALARS, max_size=2)
PAYLOADS = st.dictionaries(
    st.sampled_from(["k", "s", "a", "a.b"]),
    HELD
    | st.dictionaries(st.just("b"), HELD, max_size=1)
    | st.lists(st.dictionaries(st.just("b"), SCALARS), max_size=2),
    max_size=4,
)


def held_at(payload: Any, name: str) -> list[Any]:
    """The values of k, s or a.b, written out."""
    name = name.removesuffix(".keyword")
    found: list[Any] = [payload.get(name)]
    if name == "a.b":
        inner = payload.get("a")
        found += [each.get("b") for each in (inner if isinstance(inner, list) else [inner]) if isinstance(each, dict)]
    flat: list[Any] = []
    for value in found:
        flat += value if isinstance(value, list) else [value]
    return [value for value in flat if value is not None]


def numeric(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    return float(value) if isinstance(value, (int, float)) or value == "1" else None


def equals(held: Any, wanted: Any) -> bool:
    if isinstance(held, bool):
        return wanted is held or wanted == str(held).lower()
    if isinstance(held, (int, float)):
        return numeric(wanted) == held
    return isinstance(held, str) and held == (str(wanted).lower() if isinstance(wanted, bool) else str(wanted))


def when(text: Any, *, late: bool = False) -> str | None:
    """A moment in a spelling that sorts."""
    if not isinstance(text, str) or not text.startswith("2024"):
        return None
    return text.rstrip("Z") if "T" in text else text + ("T23:59:59.9" if late else "T00:00:00")


def bounded(held: Any, word: str, bound: Any) -> bool:
    moment = when(bound, late=word in ("gt", "lte"))
    if moment is not None:
        one, other = when(held), moment
    elif isinstance(held, str):
        one, other = held, str(bound)
    else:
        one, other = (None if isinstance(held, (bool, dict)) else held), numeric(bound)
    if one is None or other is None:
        return False
    return {"gt": one > other, "gte": one >= other, "lt": one < other, "lte": one <= other}[word]


def passes(query: Mapping[str, Any], payload: Any) -> bool:
    """The query language's rules, told plainly; the point's id is 7."""
    ((word, said),) = query.items()
    if word in ("match_all", "match_none"):
        return word == "match_all"
    if word == "constant_score":
        return passes(said["filter"], payload)
    if word == "ids":
        return "7" in said["values"]
    if word == "exists":
        return bool(held_at(payload, said["field"]))
    if word == "bool":
        parts = {key: value if isinstance(value, list) else [value] for key, value in said.items()}
        needed = parts.get("must", []) + parts.get("filter", [])
        should = parts.get("should", [])
        return (
            all(passes(each, payload) for each in needed)
            and not any(passes(each, payload) for each in parts.get("must_not", []))
            and (not should or bool(needed) or any(passes(each, payload) for each in should))
        )
    ((name, inner),) = said.items()
    values = held_at(payload, name)
    if word == "range":
        return any(all(bounded(held, each, bound) for each, bound in inner.items()) for held in values)
    if isinstance(inner, dict):
        inner = inner["value"]
    wanted = inner if isinstance(inner, list) else [inner]
    return any(equals(held, each) for held in values for each in wanted)


@settings(derandomize=True, max_examples=2500, deadline=None)
@given(QUERY, PAYLOADS)
def test_filters_agree_with_the_rules_told_plainly(query: dict[str, Any], payload: dict[str, Any]):
    condition = condition_of([query])
    assert isinstance(condition, Condition)
    assert condition.passes(7, payload, "") is passes(query, payload)


def test_fields_are_found_by_their_paths_through_objects_and_arrays():
    payload = {"a": [{"b": {"c": 1}}, {"b": {"c": [2, None]}}], "a.b": {"c": 3}, "a.b.c": 4}
    assert sorted(values_at(payload, "a.b.c")) == [1, 2, 3, 4]
    assert values_at(payload, "a.x") == []


def test_the_text_beside_a_payload_is_its_field_text():
    condition = condition_of([{"term": {"text": "words"}}])
    assert isinstance(condition, Condition)
    assert condition.reads_text
    assert condition.passes(1, {"k": 1}, "words")
    assert not condition.passes(1, {"text": "own"}, "words")


# --- writing -------------------------------------------------------------------------------------------------------

FOUND = [
    Found("a", {"text": "doc a", "k": 1}, 0.8, None, "doc a"),
    Found(7, {"text": "doc b", "k": 2, "meta": {"page": 3, "by": "x"}}, 0.5, None, "doc b"),
]


@pytest.mark.parametrize("name", ["elasticsearch", "opensearch"])
def test_a_knn_search_is_answered_in_the_recorded_shape(name: str):
    one = exchange(name, "es search knn" if name == "elasticsearch" else "opensearch knn")
    dialect = DIALECTS[name]
    ask = dialect.ask(dialect.read(one.request))
    assert isinstance(ask, RetrieveAsk)
    answer = told(ask, Retrieved(FOUND[:1], count=1, distance="cosine"), dialect)
    expected = {**one.json, "took": 3}
    if name == "elasticsearch":
        # the answer of the recording had a field more than _source asked for
        expected["hits"]["hits"][0]["_source"] = {"text": "doc a"}
    assert answer == {**expected, "took": 3}
    assert dialect.failure_within(dialect.retrieved(ask, Retrieved(FOUND), 0.0)) == ""


@pytest.mark.parametrize(
    ("dialect", "distance", "raw", "score"),
    [
        (ELASTIC, "cosine", 0.8, 0.9),
        (OPEN, "cosine", 0.8, 0.9),
        (ELASTIC, "euclid", 2.0, 0.2),
        (OPEN, "euclid", 2.0, 0.2),
        (ELASTIC, "dot", 0.5, 0.75),
        (OPEN, "dot", 0.5, 1.5),
        (OPEN, "dot", -1.0, 0.5),
    ],
)
def test_scores_are_those_of_the_server_and_higher_the_nearer(dialect: Any, distance: str, raw: float, score: float):
    answer = told(asked({"knn": KNN}, dialect=dialect), Retrieved([Found("a", {}, raw)], distance=distance), dialect)
    assert answer["hits"]["hits"][0]["_score"] == answer["hits"]["max_score"] == score


def test_pages_totals_and_what_is_not_ranked():
    page = told(asked({"knn": KNN, "from": 1, "size": 1}), Retrieved(FOUND, count=9, distance="cosine"))["hits"]
    assert ([hit["_id"] for hit in page["hits"]], page["max_score"]) == (["7"], 0.9)
    assert page["total"] == {"value": 5, "relation": "eq"}
    unranked = [Found("a", {}), Found("b", {})]
    ask = asked({"query": {"bool": {"filter": {"term": {"k": 1}}}}, "size": 2})
    assert (ask.op, ask.limit, ask.wants_total) == ("scroll", 2, True)
    answer = told(ask, Retrieved(unranked, count=12))["hits"]
    assert (answer["total"]["value"], [hit["_score"] for hit in answer["hits"]]) == (12, [0.0, 0.0])
    everything = told(asked({"query": {"match_all": {}}, "track_total_hits": False}), Retrieved(unranked, count=2))
    assert "total" not in everything["hits"]
    assert everything["hits"]["max_score"] == 1.0
    assert told(asked({"knn": KNN}), Retrieved(distance="cosine"))["hits"]["max_score"] is None


def test_words_are_answered_only_where_the_index_of_words_is_made_of_that_field():
    hits = told(asked({"query": {"match": {"text": "doc"}}}), Retrieved(FOUND))["hits"]
    assert hits["total"] == {"value": 2, "relation": "gte"}
    assert hits["max_score"] == 0.8
    for field in ("k", "author"):
        with pytest.raises(Refused, match=field):
            told(asked({"query": {"match": {field: "doc"}}}), Retrieved(FOUND))
    with pytest.raises(Refused):
        told(asked({"query": {"match": {"text": "doc"}}}), Retrieved())
    with pytest.raises(Refused):
        told(asked({"query": {"multi_match": {"query": "d", "fields": ["text", "author"]}}}), Retrieved(FOUND))
    fields = asked({"query": {"multi_match": {"query": "d", "fields": ["text", "title^3"]}}})
    assert len(told(fields, Retrieved(FOUND))["hits"]["hits"]) == 2


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (True, FOUND[1].payload),
        (False, None),
        (["text"], {"text": "doc b"}),
        ("meta.*", {"meta": {"page": 3, "by": "x"}}),
        (["meta"], {"meta": {"page": 3, "by": "x"}}),
        (["meta.page"], {"meta": {"page": 3}}),
        ({"excludes": ["meta.by", "te*"]}, {"k": 2, "meta": {"page": 3}}),
        ({"includes": ["meta"], "excludes": "*.by"}, {"meta": {"page": 3}}),
        (["absent"], {}),
    ],
)
def test_of_a_document_as_much_is_told_as_was_asked_for(source: Any, expected: Any):
    hit = told(asked({"knn": KNN, "_source": source}), Retrieved(FOUND[1:], distance="cosine"))["hits"]["hits"][0]
    assert hit.get("_source") == expected


def test_source_and_size_are_taken_from_the_url_as_well():
    ask = asked({"knn": KNN}, "/docs/_search?size=1&_source_includes=k,text&_source_excludes=text&request_cache=true")
    answer = told(ask, Retrieved(FOUND, distance="cosine"))["hits"]["hits"]
    assert [hit["_source"] for hit in answer] == [{"k": 1}]


def test_counts_documents_and_who_is_there():
    counted = asked({"query": {"term": {"k": 1}}}, "/docs/_count")
    assert (counted.op, told(counted, Retrieved(count=3))["count"]) == ("count", 3)
    with pytest.raises(Refused):
        asked({"query": {"match": {"text": "a"}}}, "/docs/_count")
    document = asked(None, "/docs/_doc/7?_source=k", "GET")
    assert document.ids == ("7", 7)
    assert told(document, Retrieved(FOUND[1:])) == {
        **exchange("elasticsearch", "es get").json,
        "_id": "7",
        "_source": {"k": 2},
    }
    with pytest.raises(Refused):
        told(document, Retrieved())
    client = [(b"User-Agent", b"elasticsearch-py/9.5.1 (Python/3.11.7; elastic-transport/9.4.2)")]
    ask = ELASTIC.ask(ELASTIC.read(request("GET", "/", None, client)))
    assert told(cast("RetrieveAsk", ask), Retrieved())["version"]["number"] == "9.5.1"
    assert told(asked(None, "/", "GET", OPEN), Retrieved(), OPEN)["version"]["distribution"] == "opensearch"


def test_elasticsearchs_client_takes_no_answer_without_its_products_name():
    for answer in (ELASTIC.retrieved(asked({"knn": KNN}), Retrieved(), 0.0), ELASTIC.error(503, "exhausted", "x")):
        assert (b"x-elastic-product", b"Elasticsearch") in answer.headers
    assert json.loads(ELASTIC.error(503, "exhausted", "nobody").body) == {
        "error": {
            "root_cause": [{"type": "understudy_exhausted", "reason": "nobody"}],
            "type": "understudy_exhausted",
            "reason": "nobody",
        },
        "status": 503,
    }


SHARDS = '"_shards":{"total":5,"successful":%d,"skipped":0,"failed":%d}'


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ('{"took":1,"timed_out":false,' + SHARDS % (5, 0) + ',"hits":{}}', ""),
        ('{"took":1,"timed_out":false,"num_reduce_phases":2,' + SHARDS % (5, 0) + ',"hits":{}}', ""),
        ('{"count":1,' + SHARDS % (5, 0) + "}", ""),
        ('{"found":true,"_id":"a"}', ""),
        ('{"took":1,"timed_out":true,' + SHARDS % (5, 0) + ',"hits":{}}', "error_in_200"),
        ('{"took":1,"timed_out":false,' + SHARDS % (4, 1) + ',"hits":{}}', "error_in_200"),
        ('{"count":1,' + SHARDS % (4, 1) + "}", "error_in_200"),
        ('{"took":1,"errors":true,"items":[]}', "error_in_200"),
        ('{"error":{"type":"x"},"status":500}', "error_in_200"),
        ('{"took":1,"timed_out":"x"}', "garbage"),
    ],
)
def test_a_200_with_failed_shards_or_out_of_time_is_a_failure(body: str, why: str):
    assert ELASTIC.failure_within(Answer(200, [], body.encode())) == why
