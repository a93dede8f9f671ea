"""Weaviate's searches by GraphQL, its objects by REST, its writes, and the errors that it tells in a 200."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dialects.check_dialect import check_dialect, check_reading
from tests.dialects.recorded_exchanges import recorded, request
from tests.dialects.writing import shown
from tests.dialects.writing import told as changed
from understudy.indexes.faults import UnknownFilter
from understudy.policies.service import Answer, Refused
from understudy.proxy.asks import Found, RetrieveAsk, Retrieved
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.base import BadRequest, Malformed
from understudy.proxy.dialects.graphql import Word, selection_of
from understudy.proxy.dialects.weaviate_where import condition_of

WEAVIATE = DIALECTS["weaviate"]
ID = "36ddd591-2dee-4e7e-a3cc-eb86d30a4303"
NEAR = "nearVector:{vector:[0.1,0.2]}"


def asked(method: str, path: str, body: Any = None) -> RetrieveAsk:
    ask = WEAVIATE.ask(WEAVIATE.read(request(method, path, body)))
    assert isinstance(ask, RetrieveAsk)
    return ask


def queried(query: str) -> RetrieveAsk:
    return asked("POST", "/v1/graphql", {"query": query})


def got(arguments: str, fields: str = "text") -> RetrieveAsk:
    return queried("{ Get { Docs(" + arguments + ") { " + fields + " } } }")


def said(ask: RetrieveAsk, result: Retrieved) -> Any:
    return json.loads(WEAVIATE.retrieved(ask, result, 0.0).body)


def rows(ask: RetrieveAsk, result: Retrieved) -> Any:
    return said(ask, result)["data"]["Get"]["Docs"]


def test_it_does_what_every_dialect_must():
    check_dialect(WEAVIATE, recorded("weaviate"))


# --- the language --------------------------------------------------------------------------------------------------


def test_a_query_is_read_with_or_without_commas_names_and_comments():
    (field,) = selection_of(
        'query Q { # one\n Get { a: Docs(x: [1 2, 3], y: {o: Equal, p: ["k"]}, z: "q\\"", n: null) {t} } }'
    )
    (docs,) = field.fields
    assert (docs.name, docs.alias, [each.name for each in docs.fields]) == ("Docs", "a", ["t"])
    assert docs.arguments == {"x": [1, 2, 3], "y": {"o": Word("Equal"), "p": ["k"]}, "z": 'q"', "n": None}


@pytest.mark.parametrize(
    "query", ["{", "{ }", "{ Get { Docs(x:) {t} } }", "{ a(x: 1, x: 2) }", "{ a(x: [1.]) }", "query }{", "{a(x:{"]
)
def test_what_is_no_query_is_told_from_what_is_not_read(query: str):
    with pytest.raises(Malformed):
        selection_of(query)


@pytest.mark.parametrize(
    "query",
    [
        "mutation { a }",
        "{ a(x: $v) }",
        "{ ... on Docs { t } }",
        "{ a @skip(if: true) }",
        '{ a(x: """b""") }',
        "{ a } { b }",
    ],
)
def test_more_of_the_language_than_searches_need_is_refused(query: str):
    with pytest.raises(Refused):
        selection_of(query)


@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.text(alphabet='{}()[]:,.$@#"\\ \nGet Docs12-eqlimit', max_size=40))
def test_no_text_breaks_the_reader(query: str):
    with contextlib.suppress(Refused, Malformed):
        selection_of(query)
    check_reading(WEAVIATE, request("POST", "/v1/graphql", {"query": query}))


# --- reading and answering -----------------------------------------------------------------------------------------


def test_the_documented_search_is_answered_in_its_own_shape():
    exchange = next(each for each in recorded("weaviate") if each.call == "GraphQL nearVector (docs)")
    ask = WEAVIATE.ask(WEAVIATE.read(exchange.request))
    assert isinstance(ask, RetrieveAsk)
    assert (ask.op, ask.collection, ask.vector, ask.limit) == ("search", "Docs", (0.1, 0.2), 2)
    found = [Found("uuid", {"text": "doc a", "k": 1, "other": 2}, 0.9), Found("far", {"text": "b", "k": 1}, 0.4)]
    told = said(ask, Retrieved(found, distance="cosine"))
    beside = told["data"]["Get"]["Docs"][0]["_additional"]
    assert (beside["id"], beside["distance"], beside["certainty"]) == ("uuid", pytest.approx(0.1), pytest.approx(0.95))
    assert [row["text"] for row in told["data"]["Get"]["Docs"]] == ["doc a"]
    assert list(told["data"]["Get"]["Docs"][0]) == ["text", "k", "_additional"]


@pytest.mark.parametrize(
    ("metric", "score", "distance"), [("cosine", 0.25, 0.75), ("dot", 0.5, -0.5), ("euclid", 0.5, 0.25)]
)
def test_distances_are_the_metrics_own(metric: str, score: float, distance: float):
    ask = got(f"{NEAR}, limit: 3", "_additional { distance }")
    assert rows(ask, Retrieved([Found("a", {}, score)], distance=metric)) == [{"_additional": {"distance": distance}}]


def test_a_certainty_is_of_cosines_only_and_bounds_what_is_found():
    ask = got("nearVector:{vector:[0.1], certainty: 0.9}, limit: 3", "_additional { certainty }")
    found = [Found("a", {}, 0.9), Found("b", {}, 0.7)]
    assert [round(row["_additional"]["certainty"], 6) for row in rows(ask, Retrieved(found, distance="cosine"))] == [
        0.95
    ]
    with pytest.raises(Refused, match="cosines"):
        rows(ask, Retrieved(found, distance="dot"))


def test_words_and_both_are_searched_where_the_index_of_words_is_made_of_them():
    ask = got('bm25:{query:"cats", properties:["text"]}, limit: 3', "text _additional { score }")
    assert (ask.text, ask.vector) == ("cats", None)
    found = Retrieved([Found("a", {"text": "cats", "k": 1}, 1.5, text="cats")])
    assert rows(ask, found) == [{"text": "cats", "_additional": {"score": "1.5"}}]
    both = got('hybrid:{query:"cats", vector:[0.1,0.2], alpha:0.5}, limit: 3')
    assert (both.text, both.vector) == ("cats", (0.1, 0.2))
    assert rows(both, found) == [{"text": "cats"}]
    with pytest.raises(Refused):
        rows(both, Retrieved([Found("a", {"text": "cats", "more": "words"}, 1.5, text="cats")]))
    with pytest.raises(Refused):
        rows(ask, Retrieved([Found("a", {"text": "dogs"}, 1.5, text="cats")]))


def test_objects_are_listed_counted_and_told_by_id():
    assert said(queried("{ Aggregate { Docs { meta { count } } } }"), Retrieved(count=7)) == {
        "data": {"Aggregate": {"Docs": [{"meta": {"count": 7}}]}}
    }
    page = got("limit: 5, offset: 10", "text missing")
    assert (page.op, page.limit, page.offset) == ("scroll", 5, 10)
    assert rows(page, Retrieved([Found("a", {"text": "x"})])) == [{"text": "x", "missing": None}]
    one = asked("GET", f"/v1/objects/docs/{ID.upper()}?include=vector")
    assert (one.op, one.collection, one.ids) == ("get", "Docs", (ID,))
    told = said(one, Retrieved([Found(ID, {"text": "x"}, vector=[0.5])]))
    assert told == {"class": "Docs", "id": ID, "properties": {"text": "x"}, "vector": [0.5]}
    listed = said(asked("GET", "/v1/objects?class=Docs&limit=1"), Retrieved([Found(ID, {"text": "x"})]))
    assert (listed["totalResults"], listed["objects"][0]["class"]) == (1, "Docs")
    near = got('nearObject: {id: "' + ID.upper() + '"}, limit: 2')
    assert (near.near_id, near.with_near) == (ID, True)


def test_a_client_that_connects_learns_who_is_there_and_that_nobody_is_to_log_in():
    assert said(asked("GET", "/v1/meta"), Retrieved())["version"] == "1.31.0"
    login = WEAVIATE.retrieved(asked("GET", "/v1/.well-known/openid-configuration"), Retrieved(), 0.0)
    assert login.status == 404
    for probe in ("/v1/.well-known/ready", "/v1/.well-known/live"):
        # these answer with nothing, which of a read would be garbage
        assert WEAVIATE.read(request("GET", probe)).kind == "pass"


@pytest.mark.parametrize(
    "query",
    [
        "{ Get { Docs { text } } }",
        '{ Get { Docs(nearText:{concepts:["a"]}, limit:1) { text } } }',
        '{ Get { Docs(hybrid:{query:"a"}, limit:1) { text } } }',
        '{ Get { Docs(hybrid:{query:"a", vector:[1], alpha:0}, limit:1) { text } } }',
        '{ Get { Docs(bm25:{query:"a", properties:["t^2"]}, limit:1) { text } } }',
        '{ Get { Docs(limit:1, sort:[{path:["k"]}]) { text } } }',
        '{ Get { Docs(limit:1, tenant:"t") { text } } }',
        "{ Get { Docs(limit:1) { in { ... on Other { a } } } } }",
        "{ Get { Docs(limit:1) { ofOther { a } } } }",
        "{ Get { Docs(limit:1) { text _additional { distance } } } }",
        "{ Get { Docs(limit:1) { text _additional { creationTimeUnix } } } }",
        "{ Get { Docs(limit:1) { text } Other(limit:1) { text } } }",
        "{ Aggregate { Docs { k { mean } } } }",
        "{ Explore { x } }",
        "{ Get { Docs(" + NEAR + ", limit:1, autocut: 1) { text } } }",
    ],
)
def test_what_a_local_index_cannot_answer_is_refused(query: str):
    with pytest.raises(Refused):
        queried(query)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/schema",
        "/v1/schema/Docs",
        "/v1/objects",
        "/v1/objects?class=Docs&after=x",
        f"/v1/objects/{ID}",
        "/v1/nodes",
    ],
)
def test_what_only_the_database_knows_is_refused(path: str):
    with pytest.raises(Refused):
        asked("GET", path)


TOO_MANY_WAYS = "{ Get { Docs(" + NEAR + ', bm25:{query:"a"}, limit:1) {t} } }'


@pytest.mark.parametrize("query", ["{ Get { Docs(limit:20000) { t } } }", "{", TOO_MANY_WAYS])
def test_what_weaviate_would_not_take_is_the_callers_fault(query: str):
    with pytest.raises(BadRequest):
        queried(query)


# --- where ---------------------------------------------------------------------------------------------------------

POINT: dict[str, Any] = {
    "k": 3,
    "w": 0.5,
    "on": True,
    "genre": "drama",
    "tags": ["a", "b"],
    "at": "2024-05-01T00:00:00Z",
}


def where(operator: str, **value: Any) -> dict[str, Any]:
    (name, held), *_ = value.items()
    path, _, kind = name.partition("__")
    return {"path": [path], "operator": operator, kind: held}


@pytest.mark.parametrize(
    ("condition", "passes"),
    [
        (where("Equal", k__valueInt=3), True),
        (where("GreaterThan", k__valueInt=3), False),
        (where("LessThanEqual", w__valueNumber=0.5), True),
        (where("Equal", on__valueBoolean=True), True),
        (where("Equal", genre__valueText="drama"), True),
        (where("Equal", genre__valueText="comedy"), False),
        (where("NotEqual", k__valueInt=4), True),
        (where("Equal", absent__valueInt=4), False),
        (where("ContainsAny", tags__valueText=["b", "c"]), True),
        (where("ContainsAll", tags__valueText=["b", "c"]), False),
        (where("GreaterThan", at__valueDate="2024-01-01T00:00:00Z"), True),
        (where("Equal", id__valueText=ID), True),
        ({"operator": "And", "operands": [where("Equal", k__valueInt=3), where("Equal", w__valueNumber=1)]}, False),
        ({"operator": "Or", "operands": [where("Equal", k__valueInt=3), where("Equal", w__valueNumber=1)]}, True),
    ],
)
def test_a_where_means_what_it_says(condition: Any, passes: bool):
    made = condition_of(condition)
    assert made is not None
    assert made.passes(ID, POINT, "") is passes


def test_what_depends_on_how_a_property_is_cut_or_filled_is_not_guessed():
    for uncertain, point in (
        (where("Equal", genre__valueText="drama"), {"genre": "Crime Drama"}),
        (where("NotEqual", genre__valueText="Drama"), {"genre": "drama"}),
        (where("NotEqual", absent__valueInt=1), POINT),
    ):
        made = condition_of(uncertain)
        assert made is not None
        with pytest.raises(UnknownFilter):
            made.passes(ID, point, "")


@pytest.mark.parametrize(
    "condition",
    [
        where("Like", genre__valueText="dra*"),
        where("IsNull", genre__valueBoolean=True),
        where("GreaterThan", genre__valueText="a"),
        {"path": ["ofOther", "Other", "k"], "operator": "Equal", "valueInt": 1},
        {"path": ["_creationTimeUnix"], "operator": "Equal", "valueText": "1"},
        {"path": ["k"], "operator": "Equal"},
        where("WithinGeoRange", at__valueGeoRange={}),
    ],
)
def test_a_where_that_is_not_certain_is_refused(condition: Any):
    with pytest.raises(Refused):
        condition_of(condition)


# --- writes --------------------------------------------------------------------------------------------------------


def test_objects_are_applied_under_the_ids_that_the_answer_gives_them():
    create = next(each for each in recorded("weaviate") if each.call == "create object (docs)")
    with pytest.raises(Refused):
        WEAVIATE.changes(WEAVIATE.read(create.request))
    (change,) = WEAVIATE.applied(WEAVIATE.read(create.request), create.answer)
    assert change.collection == "Docs"
    assert change.write.points[0].id == ID  # type: ignore[union-attr]
    assert change.write.points[0].vector.tolist() == [0.5, 0.25]  # type: ignore[union-attr]


def test_only_the_objects_of_a_batch_that_were_taken_are_applied():
    batch = next(each for each in recorded("weaviate") if each.call == "batch (docs)")
    (change,) = WEAVIATE.applied(WEAVIATE.read(batch.request), batch.answer)
    assert [point.payload for point in change.write.points] == [{"text": "doc a"}]  # type: ignore[union-attr]
    # an object that is wrong in itself says nothing of the server
    assert WEAVIATE.write_failed(WEAVIATE.read(batch.request), batch.answer) == ""
    broken = batch.answer.body.replace(b"invalid text property", b"put: store is read-only: no space left on disk")
    assert WEAVIATE.write_failed(WEAVIATE.read(batch.request), Answer(200, [], broken)) == "error_in_200"


def test_changes_deletes_and_classes_are_read():
    path = f"/v1/objects/Docs/{ID}"
    point = {"id": ID, "payload": {"a": 1}, "named": {"t": [0.5]}}
    assert changed("weaviate", "PUT", path, {"properties": {"a": 1}, "vectors": {"t": [0.5]}}) == [
        ("Docs", "Upsert", {"points": [point]})
    ]
    assert changed("weaviate", "PATCH", path, {"properties": {"a": 1}}) == [
        ("Docs", "PutPayload", {"which": {"ids": [ID]}, "payload": {"a": 1}})
    ]
    assert changed("weaviate", "DELETE", path) == [("Docs", "Delete", {"which": {"ids": [ID]}})]
    made = {"class": "docs", "vectorizer": "none", "vectorIndexConfig": {"distance": "dot"}}
    assert changed("weaviate", "POST", "/v1/schema", made) == [("Docs", "Create", {"notes": {"distance": "dot"}})]
    assert changed("weaviate", "DELETE", "/v1/schema/Docs") == [("Docs", "Drop", {})]
    assert changed("weaviate", "POST", "/v1/schema/Docs/properties", {"name": "x"}) == []
    assert changed("weaviate", "POST", "/v1/graphql", {"query": "{"}) == []
    several = {"match": {"class": "Docs", "where": where("Equal", k__valueInt=3)}}
    call = WEAVIATE.read(request("DELETE", "/v1/batch/objects", several))
    results = {"matches": 2, "limit": 10000, "successful": 2, "failed": 0}
    (gone,) = WEAVIATE.applied(call, Answer(200, [], json.dumps({"results": results}).encode()))
    assert gone.write.which.filter.passes(ID, POINT, "")  # type: ignore[union-attr]
    for partly in ({"failed": 1}, {"matches": 10000}):
        with pytest.raises(Refused):
            WEAVIATE.applied(call, Answer(200, [], json.dumps({"results": {**results, **partly}}).encode()))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/objects", {"class": "Docs", "id": ID, "properties": {}}),
        ("POST", "/v1/objects", {"class": "Docs", "id": ID, "vector": [1], "tenant": "t"}),
        ("POST", "/v1/objects", {"class": "Docs", "id": ID, "vector": [1], "properties": {"r": [{"beacon": "x"}]}}),
        ("POST", f"/v1/objects/Docs/{ID}/references/r", {"beacon": "x"}),
        ("POST", "/v1/schema", {"class": "Docs", "vectorizer": "text2vec-openai"}),
        ("POST", "/v1/schema", {"class": "Docs", "multiTenancyConfig": {"enabled": True}}),
        ("POST", "/v1/schema", {"class": "Docs", "vectorIndexConfig": {"distance": "manhattan"}}),
        ("POST", "/v1/schema/Docs/tenants", [{"name": "t"}]),
        ("POST", "/v1/backups/filesystem/x/restore", {}),
        ("DELETE", f"/v1/objects/{ID}", None),
    ],
)
def test_a_write_whose_effect_only_the_database_knows_is_refused(method: str, path: str, body: Any):
    with pytest.raises(Refused):
        changed("weaviate", method, path, body)


def applied(method: str, path: str, body: Any, answer: Any) -> list[Any]:
    call = WEAVIATE.read(request(method, path, body))
    told = b"" if answer is None else json.dumps(answer).encode()
    return [shown(change) for change in WEAVIATE.applied(call, Answer(200, [], told))]


def test_what_the_answer_tells_of_an_object_is_believed_before_its_request():
    asked = {"class": "alias", "id": ID, "properties": {"At": "2026-01-01T00:00:00.0Z", "no": None}, "vector": [1]}
    stored = {"class": "Docs", "id": ID, "properties": {"at": "2026-01-01T00:00:00Z"}, "vectors": {"default": [1]}}
    point = {"id": ID, "payload": {"at": "2026-01-01T00:00:00Z"}, "named": {"default": [1.0]}}
    put = ("Docs", "Upsert", {"points": [point]})
    assert applied("POST", "/v1/objects", asked, stored) == [put]
    assert applied("PUT", f"/v1/objects/Docs/{ID}", asked, stored) == [put]
    batch = [{**stored, "result": {"status": "SUCCESS"}}]
    assert applied("POST", "/v1/batch/objects", {"objects": [asked]}, batch) == [put]


@pytest.mark.parametrize("answer", [{"class": "Docs", "id": ID}, {}])
def test_what_the_answer_leaves_out_is_as_it_was_asked_for_but_for_what_is_never_kept(answer: Any):
    asked = {"class": "docs", "id": ID.upper(), "properties": {"At": 1, "no": None}, "vector": [1]}
    put = ("Docs", "Upsert", {"points": [{"id": ID, "payload": {"at": 1}, "vector": [1.0]}]})
    assert applied("POST", "/v1/objects", asked, answer) == [put]


def test_an_object_that_the_answer_tells_without_a_vector_has_none():
    asked = {"class": "Docs", "id": ID, "properties": {"a": 1}}
    put = ("Docs", "Upsert", {"points": [{"id": ID, "payload": {"a": 1}}]})
    assert applied("POST", "/v1/objects", asked, asked) == [put]
    for nothing in ({}, {"id": ID}):
        with pytest.raises(Refused):
            applied("POST", "/v1/objects", asked, nothing)
    with pytest.raises(Refused):
        applied("PUT", f"/v1/objects/Docs/{ID}", asked, None)


def test_a_property_that_a_merge_makes_null_goes():
    body = {"properties": {"Gone": None, "stays": 1}, "vector": [1]}
    assert changed("weaviate", "PATCH", f"/v1/objects/Docs/{ID}", body) == [
        ("Docs", "PutVectors", {"points": [{"id": ID, "vector": [1.0]}]}),
        ("Docs", "PutPayload", {"which": {"ids": [ID]}, "payload": {"stays": 1}}),
        ("Docs", "DropPayload", {"which": {"ids": [ID]}, "keys": ["gone"]}),
    ]


def test_a_class_is_made_as_the_answer_says():
    vectors = {"a": {"vectorizer": {"none": {}}, "vectorIndexConfig": {"distance": "l2-squared"}}}
    notes = {"distances": {"a": "euclid"}}
    assert applied("POST", "/v1/schema", {"class": "docs", "vectorConfig": vectors}, None) == [
        ("Docs", "Create", {"notes": notes})
    ]
    both = {"class": "Docs", "vectorizer": "none", "vectorIndexType": "hnsw", "vectorConfig": vectors}
    assert applied("POST", "/v1/schema", {"class": "docs"}, both) == [
        ("Docs", "Create", {"notes": {**notes, "distance": "cosine"}})
    ]
    # the server's own settings have it make vectors
    assert applied("POST", "/v1/schema", {"class": "docs"}, {"class": "Docs", "vectorizer": "text2vec-ollama"}) == []


@pytest.mark.parametrize(
    ("method", "path", "body", "answer"),
    [
        ("POST", "/v1/objects", {"class": "Docs", "id": ID, "vector": [1], "tenant": "t"}, {}),
        ("POST", "/v1/objects", {"class": "Docs", "vector": [1], "properties": {"r": [{"beacon": "x"}]}}, {"id": ID}),
        ("PATCH", f"/v1/objects/Docs/{ID}", {"properties": {"r": [{"beacon": "x"}]}}, None),
        ("PUT", f"/v1/objects/Docs/{ID}/references/r", [{"beacon": "x"}], None),
        ("POST", "/v1/batch/references", [{"from": "x", "to": "y"}], []),
        ("DELETE", f"/v1/objects/Docs/{ID}?tenant=t", None, None),
        ("PUT", "/v1/schema/Docs/tenants", [{"name": "t"}], [{"name": "t"}]),
        ("POST", "/v1/schema", {"class": "Docs", "multiTenancyConfig": {"enabled": True}}, None),
    ],
)
def test_a_write_to_what_has_no_copy_changes_none_once_it_is_carried_out(
    method: str, path: str, body: Any, answer: Any
):
    assert applied(method, path, body, answer) == []
    with pytest.raises(Refused):
        changed("weaviate", method, path, body)


# --- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"data":{"Get":{"Docs":[]}}}', ""),
        (b'{"data":{"Get":{"Docs":[{"text":"\\"errors\\""}]}},"errors":[]}', ""),
        (b'{"data":{"Get":{"Docs":null}},"errors":[{"message":"no vector index"}]}', "error_in_200"),
        (b'{"error":[{"message":"shard not ready"}]}', "error_in_200"),
        (b'{"data":', "garbage"),
        (b"", "garbage"),
    ],
)
def test_a_200_may_hold_a_failure(body: bytes, why: str):
    assert WEAVIATE.failure_within(Answer(200, [], body)) == why


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["operator", "path", "valueInt", "operands", "error"]), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = [
    "class",
    "id",
    "properties",
    "vector",
    "vectors",
    "objects",
    "match",
    "vectorConfig",
    "vectorIndexConfig",
    "result",
]


@settings(derandomize=True, max_examples=400, deadline=None)
@given(
    st.sampled_from(
        ["/v1/objects", "/v1/batch/objects", "/v1/schema", "/v1/objects/Docs/x", "/v1/schema/D", "/v1/%ff"]
    ),
    st.sampled_from(["POST", "PUT", "PATCH", "DELETE", "GET"]),
    st.dictionaries(st.sampled_from(NAMES), JSON_VALUES, max_size=4),
    JSON_VALUES.map(lambda value: json.dumps([value]).encode()),
)
def test_no_json_breaks_the_reading(path: str, method: str, body: Any, answer: bytes):
    made = request(method, path, body)
    check_reading(WEAVIATE, made)
    call = WEAVIATE.read(made)
    for read in (lambda: WEAVIATE.changes(call), lambda: WEAVIATE.applied(call, Answer(200, [], answer))):
        with contextlib.suppress(Refused, Malformed):
            read()
    assert WEAVIATE.write_failed(call, Answer(200, [], answer)) in ("", "error_in_200")


@settings(derandomize=True, max_examples=300, deadline=None)
@given(JSON_VALUES)
def test_no_where_breaks_the_reading(condition: Any):
    with contextlib.suppress(Refused, Malformed, UnknownFilter):
        made = condition_of(condition)
        if made is not None:
            made.passes(ID, POINT, "")
