"""Qdrant's reads are told from its writes, and answers have the shape each endpoint's client expects."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dialects.check_dialect import check_dialect, check_reading
from tests.dialects.recorded_exchanges import recorded, request
from understudy.policies.service import Answer, Refused
from understudy.proxy.asks import (
    CollectionInfo,
    Found,
    Fused,
    Grouped,
    Judged,
    Ordered,
    PayloadChoice,
    RetrieveAsk,
    Retrieved,
)
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.base import BadRequest
from understudy.proxy.dialects.qdrant_payload import chosen

QDRANT = DIALECTS["qdrant"]
VECTOR = [0.1, 0.2, 0.3, 0.4]


def asked(path: str, body: Any = None, method: str = "POST", **headers: str) -> RetrieveAsk:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    ask = QDRANT.ask(QDRANT.read(request(method, path, body, named)))
    assert isinstance(ask, RetrieveAsk)
    return ask


def queried(**body: Any) -> RetrieveAsk:
    return asked("/collections/docs/points/query", {"query": VECTOR} | body)


def result(ask: RetrieveAsk, retrieved: Retrieved) -> Any:
    body = json.loads(QDRANT.retrieved(ask, retrieved, 0.0125).body)
    assert (body["status"], body["time"]) == ("ok", 0.0125)
    return body["result"]


def test_it_does_what_every_dialect_must():
    check_dialect(QDRANT, recorded("qdrant"))


PATHS = ("", "/points/query", "/points/search", "/points/scroll", "/points", "/points/count", "/points/query/batch")


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(PATHS), st.binary(max_size=100))
def test_no_bytes_break_the_reading(name: bytes, path: str, body: bytes):
    asked = request("POST", "/", body)
    asked.path = b"/collections/" + name + path.encode()
    check_reading(QDRANT, asked)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats(allow_nan=False) | st.text(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["nearest", "vector", "name", "include", "exclude", "a"]), inner, max_size=2)
    ),
    max_leaves=6,
)
FIELDS = ("query", "vector", "using", "prefetch", "limit", "offset", "filter", "with_payload", "with_vector", "ids")


@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.sampled_from(PATHS), st.dictionaries(st.sampled_from((*FIELDS, "searches")), JSON_VALUES))
def test_no_json_breaks_the_reading(path: str, body: dict[str, Any]):
    check_reading(QDRANT, request("POST", f"/collections/docs{path}", body))


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "op", "collection"),
    [
        ("GET", "/", "version", ""),
        ("GET", "/collections", "collections", ""),
        ("GET", "/collections/docs", "info", "docs"),
        ("GET", "/collections/docs/", "info", "docs"),
        ("GET", "/collections/docs/exists", "exists", "docs"),
        ("GET", "/collections/my%20docs%2Fold/exists", "exists", "my docs/old"),
        ("GET", "/collections/%E6%96%87", "info", "文"),
        ("GET", "/collections/collections", "info", "collections"),
        ("GET", "/behind/a/prefix/collections/docs", "info", "docs"),
    ],
)
def test_a_get_is_told_by_its_path(method: str, path: str, op: str, collection: str):
    assert QDRANT.read(request(method, path)).kind == "retrieve"
    ask = asked(path, method=method)
    assert (ask.op, ask.collection) == (op, collection)


@pytest.mark.parametrize(
    ("method", "path", "reason"),
    [
        ("PUT", "/collections/docs", "write"),
        ("DELETE", "/collections/docs", "write"),
        ("PUT", "/collections/docs/points?wait=true", "write"),
        ("POST", "/collections/docs/points/delete", "write"),
        ("POST", "/collections/docs/points/payload", "write"),
        ("POST", "/collections/docs/points/batch", "write"),
        ("POST", "/collections/aliases", "write"),
        ("POST", "/collections/docs/points/search/matrix/pairs", "unsupported"),
        ("GET", "/metrics", "unsupported"),
        ("GET", "/collections/docs/snapshots", "unsupported"),
        ("HEAD", "/", "unsupported"),
    ],
)
def test_everything_else_is_passed_through_and_refused_locally(method: str, path: str, reason: str):
    call = QDRANT.read(request(method, path, {}))
    assert call.kind == "pass"
    with pytest.raises(Refused) as caught:
        QDRANT.ask(call)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("query", "vector", "near_id"),
    [
        (VECTOR, tuple(VECTOR), None),
        ({"nearest": VECTOR}, tuple(VECTOR), None),
        ([1, 2], (1.0, 2.0), None),
        ({"nearest": 1}, None, 1),
        (7, None, 7),
        (2**64 - 1, None, 2**64 - 1),
        ("5c56c793-69f3-4fbf-87e6-c4bf54c28c26", None, "5c56c793-69f3-4fbf-87e6-c4bf54c28c26"),
        ({"nearest": VECTOR, "mmr": None}, tuple(VECTOR), None),
    ],
)
def test_a_query_is_a_vector_or_a_points_id_bare_or_nearest(query: Any, vector: Any, near_id: Any):
    ask = queried(query=query)
    assert (ask.op, ask.vector, ask.near_id, ask.shape) == ("search", vector, near_id, "query")


@pytest.mark.parametrize(
    "body",
    [
        {"query": {"sample": "random"}},
        {"query": {"formula": {"sum": ["$score", 1]}}, "prefetch": [{"query": VECTOR}]},
        {"query": {"nearest": VECTOR, "fusion": "rrf"}},
        {"query": None, "prefetch": {"query": VECTOR}},
        {"query": {"recommend": {"positive": [1]}}, "prefetch": {"query": VECTOR}},
        {"query": {"recommend": {"positive": [1] * 129}}},
        {"query": {"fusion": "rrf"}, "prefetch": {"query": VECTOR, "lookup_from": {"collection": "other"}}},
        {
            "prefetch": {
                "prefetch": {"prefetch": {"prefetch": {"prefetch": {"query": 1}, "query": 1}, "query": 1}, "query": 1},
                "query": 1,
            }
        },
        {"query": {"indices": [1], "values": [0.5]}},
        {"query": {"nearest": {"indices": [1], "values": [0.5]}}},
        {"query": {"nearest": VECTOR, "mmr": {"diversity": 0.5}}},
        {"query": [[0.1, 0.2], [0.3, 0.4]]},
        {"query": [[0.1, 0.2]]},
        {"lookup_from": {"collection": "other"}},
        {"shard_key": "a"},
        {"limit": 10_001},
    ],
)
def test_what_an_index_of_single_vectors_cannot_do_is_refused(body: dict[str, Any]):
    with pytest.raises(Refused) as caught:
        queried(**body)
    assert caught.value.reason == "unsupported"


def test_what_clients_send_without_meaning_it_is_taken():
    # LangChain sends `using: ""`, and every client its search params
    assert queried(using="", params={"hnsw_ef": 64, "exact": True}, shard_key=None, with_vector=[]).limit == 10


@pytest.mark.parametrize(
    "body",
    [
        {"limit": 0},
        {"limit": "3"},
        {"offset": -1},
        {"query": []},
        {"query": [0.1, "x"]},
        {"query": [0.1, None]},
        {"query": -1},
        {"query": True},
        {"filter": []},
        {"with_payload": 1},
        {"with_payload": {"include": ["a"], "exclude": ["b"]}},
        {"with_payload": {"only": ["a"]}},
        {"query": {"fusion": "rrf"}},
        {"query": {"fusion": "rrf"}, "prefetch": {"query": VECTOR}, "using": "text"},
        {"query": {"recommend": {"negative": [1]}}},
        {"query": {"discover": {"context": []}}},
    ],
)
def test_what_qdrant_would_not_take_is_the_callers_fault(body: dict[str, Any]):
    with pytest.raises(BadRequest) as caught:
        queried(**body)
    assert caught.value.status == 400


@pytest.mark.parametrize("body", [b"", b"[]", b'{"query": [0.1', b'{"query": NaN}', b'{"query": [1e999]}'])
def test_a_body_that_is_no_json_of_this_shape_is_answered_in_qdrants_own_words(body: bytes):
    with pytest.raises(BadRequest, match="Format error in JSON body"):
        asked("/collections/docs/points/query", body)


@pytest.mark.parametrize("vector", [VECTOR, {"name": "", "vector": VECTOR}])
def test_older_clients_search_with_a_body_of_their_own(vector: Any):
    body = {"vector": vector, "limit": 3, "offset": 2, "score_threshold": 0.5, "with_vectors": True}
    ask = asked("/collections/docs/points/search", body)
    assert (ask.vector, ask.limit, ask.offset, ask.score_threshold) == (tuple(VECTOR), 3, 2, 0.5)
    assert (ask.with_vector, ask.with_payload, ask.shape) == (True, False, "search")


def test_named_vectors_are_asked_for_by_either_generation_of_clients():
    assert asked("/collections/docs/points/search", {"vector": {"name": "text", "vector": VECTOR}}).using == "text"
    assert queried(using="text").using == "text"
    ask = queried(with_vector=["text", ""])
    assert (ask.with_vector, ask.vector_names) == (True, ("text", ""))
    with pytest.raises(Refused, match="sparse"):
        asked("/collections/docs/points/search", {"vector": {"name": "s", "vector": {"indices": [1]}}})


def test_a_query_without_one_is_a_page_and_order_by_another():
    assert (queried(query=None).op, queried(query=None, offset=3).offset) == ("scroll", 3)
    assert queried(query={"order_by": "k"}).by == Ordered("k")
    body = {"order_by": {"key": "k", "direction": "desc", "start_from": "2024-01-01"}}
    assert asked("/collections/docs/points/scroll", body).by == Ordered("k", True, "2024-01-01")


def test_examples_are_parts_each_in_its_role():
    recommend = {"positive": [1, VECTOR], "negative": ["a"], "strategy": "best_score"}
    for ask in (
        queried(query={"recommend": recommend}, using="text"),
        asked("/collections/docs/points/recommend", recommend | {"using": "text"}),
    ):
        assert ask.by == Judged("best_score")
        assert [(part.shape, part.near_id, part.vector, part.using) for part in ask.parts] == [
            ("positive", 1, None, "text"),
            ("positive", None, tuple(VECTOR), "text"),
            ("negative", "a", None, "text"),
        ]
    pair = {"positive": 1, "negative": 2}
    discover = asked("/collections/docs/points/discover", {"target": 3, "context": [pair]})
    assert [part.shape for part in discover.parts] == ["target", "positive", "negative"]
    assert queried(query={"context": pair}).by == Judged("context")


def test_prefetches_are_parts_under_the_filter_that_stands_above_them():
    one, two = {"key": "a", "match": {"value": 1}}, {"key": "b", "match": {"value": 2}}
    ask = queried(
        query={"rrf": {"k": 60, "weights": [2.0, 1.0]}},
        prefetch=[{"query": VECTOR, "filter": {"must": one}}, {"query": 7, "using": "text", "limit": 20}],
        filter={"must": [two], "should": [one]},
    )
    assert ask.by == Fused("rrf", 60, (2.0, 1.0))
    assert [part.filter for part in ask.parts] == [
        {"must": [two, one], "should": [one]},
        {"must": [two], "should": [one]},
    ]
    assert [(part.using, part.limit) for part in ask.parts] == [("", 10), ("text", 20)]
    anew = queried(query=7, prefetch={"query": VECTOR})
    assert (anew.near_id, anew.parts[0].filter) == (7, {"must_not": [{"has_id": [7]}]})


def test_groups_facets_and_one_point_by_its_id():
    ask = asked("/collections/docs/points/query/groups", {"query": VECTOR, "group_by": "k", "limit": 2})
    assert (ask.op, ask.limit, ask.by, ask.parts[0].vector) == ("groups", 2, Grouped("k", 3), tuple(VECTOR))
    hits = [(1, [FOUND[0]]), ("x", [FOUND[1]])]
    assert result(ask, Retrieved(groups=hits)) == {
        "groups": [
            {"hits": [{"id": 1, "version": 0, "score": 0.93}], "id": 1},
            {"hits": [{"id": "u", "version": 0, "score": 0.5}], "id": "x"},
        ]
    }
    ask = asked("/collections/docs/facet", {"key": "k"})
    assert result(ask, Retrieved(counted=[("x", 3)])) == {"hits": [{"value": "x", "count": 3}]}
    ask = asked("/collections/docs/points/7", method="GET")
    assert ask.ids == (7,)
    assert result(ask, Retrieved(FOUND[:1]))["id"] == 1
    with pytest.raises(BadRequest) as caught:
        QDRANT.retrieved(ask, Retrieved(), 0)
    assert caught.value.status == 404


def test_vectors_are_told_by_name_and_those_of_a_cosine_at_length_one():
    found = Found(1, {}, 1.0, [3.0, 4.0], named={"text": [3.0, 4.0]})
    told = Retrieved([found], distance="cosine", distances={"": "cosine", "text": "dot"})
    ask = RetrieveAsk("get", with_vector=True)
    assert result(ask, told)[0]["vector"] == {"": [0.6, 0.8], "text": [3.0, 4.0]}
    assert result(RetrieveAsk("get", with_vector=True, vector_names=("text",)), told)[0]["vector"] == {"text": [3, 4]}
    assert result(RetrieveAsk("get", with_vector=True, vector_names=("",)), told)[0]["vector"] == [0.6, 0.8]


def test_scroll_and_get_give_payloads_unless_told_otherwise_and_search_does_not():
    assert asked("/collections/docs/points/scroll", {}).with_payload is True
    assert asked("/collections/docs/points", {"ids": [1, "a"]}).with_payload is True
    assert queried().with_payload is False
    assert queried(with_payload=["text"]).with_payload == ("text",)
    assert queried(with_payload={"exclude": ["text"]}).with_payload == {"exclude": ("text",)}


def test_a_scroll_goes_on_from_an_id():
    ask = asked("/collections/docs/points/scroll", {"offset": "b", "limit": 5, "filter": {"must": []}})
    assert (ask.op, ask.after, ask.limit, ask.filter) == ("scroll", "b", 5, {"must": []})
    with pytest.raises(BadRequest, match="order_by"):
        asked("/collections/docs/points/scroll", {"order_by": "k", "offset": 3})


def test_the_searches_of_a_batch_are_searches():
    new = asked("/collections/docs/points/query/batch", {"searches": [{"query": VECTOR, "limit": 2}, {"query": 7}]})
    old = asked("/collections/docs/points/search/batch", {"searches": [{"vector": VECTOR, "limit": 2}]})
    assert [(part.op, part.collection, part.limit, part.shape) for part in new.parts] == [
        ("search", "docs", 2, "query"),
        ("search", "docs", 10, "query"),
    ]
    assert old.parts[0].shape == "search"
    with pytest.raises(Refused, match="batch"):
        asked("/collections/docs/points/query/batch", {"searches": [{"query": 1}] * 129})


# --- writing -------------------------------------------------------------------------------------------------------

FOUND = [Found(1, {"text": "a", "k": 1}, 0.93, [0.5, 0.25]), Found("u", {"text": "b"}, 0.5, None)]


def test_each_search_has_its_own_shape():
    points = [{"id": 1, "version": 0, "score": 0.93}, {"id": "u", "version": 0, "score": 0.5}]
    assert result(RetrieveAsk("search", shape="query"), Retrieved(FOUND)) == {"points": points}
    assert result(RetrieveAsk("search", shape="search"), Retrieved(FOUND)) == points
    parts = (RetrieveAsk("search", shape="query"), RetrieveAsk("search", shape="query"))
    both = Retrieved(parts=[Retrieved(FOUND), Retrieved()])
    assert result(RetrieveAsk("batch", parts=parts), both) == [{"points": points}, {"points": []}]


def test_scroll_get_count_and_what_there_is():
    whole = {"id": 1, "payload": {"text": "a", "k": 1}, "vector": [0.5, 0.25]}
    ask = RetrieveAsk("scroll", with_payload=True, with_vector=True)
    assert result(ask, Retrieved(FOUND[:1], next_id="u")) == {"points": [whole], "next_page_offset": "u"}
    assert result(ask, Retrieved()) == {"points": [], "next_page_offset": None}
    assert result(RetrieveAsk("get", with_payload=True, with_vector=True), Retrieved(FOUND[:1])) == [whole]
    assert result(RetrieveAsk("count"), Retrieved(count=7)) == {"count": 7}
    assert result(RetrieveAsk("exists"), Retrieved(exists=True)) == {"exists": True}
    assert result(RetrieveAsk("collections"), Retrieved(names=["a"])) == {"collections": [{"name": "a"}]}
    info = result(RetrieveAsk("info"), Retrieved(info=CollectionInfo("docs", 7, 384, "euclid")))
    assert info["points_count"] == 7
    assert info["config"]["params"]["vectors"] == {"size": 384, "distance": "Euclid"}
    named = CollectionInfo("docs", 7, 2, "dot", vectors={"a": (2, "dot"), "b": (3, "cosine")})
    vectors = result(RetrieveAsk("info"), Retrieved(info=named))["config"]["params"]["vectors"]
    assert vectors == {"a": {"size": 2, "distance": "Dot"}, "b": {"size": 3, "distance": "Cosine"}}


def test_the_version_is_the_one_the_client_expects():
    ask = asked("/", method="GET", user_agent="python-client/1.20.3 python/3.11.7")
    body = json.loads(QDRANT.retrieved(ask, Retrieved(), 0).body)
    assert body == {"title": "qdrant - vector search engine", "version": "1.20.3"}
    assert asked("/", method="GET").shape == "1.15.5"


def test_an_error_has_its_sentence_under_status():
    body = json.loads(QDRANT.error(503, "exhausted", "nobody answered").body)
    assert body["status"] == {"error": "nobody answered"}


PAYLOAD = {"text": "t", "meta": {"source": "s", "page": 3}, "tags": [{"n": 1, "m": 2}, 7], "none": None}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (True, PAYLOAD),
        (False, None),
        ((), {}),
        (("text", "absent"), {"text": "t"}),
        (("meta.source",), {"meta": {"source": "s"}}),
        (("meta.source", "meta"), {"meta": {"source": "s", "page": 3}}),
        (("tags[].n",), {"tags": [{"n": 1}, 7]}),
        (("tags.n", "tags[0].m"), {"tags": []}),
        (('"text"',), {"text": "t"}),
        ({"include": ("none",)}, {"none": None}),
        ({"exclude": ("tags", "meta.page")}, {"text": "t", "meta": {"source": "s"}, "none": None}),
        ({"exclude": ("tags[].n",)}, {**PAYLOAD, "tags": [{"m": 2}, 7]}),
        ({"exclude": ()}, PAYLOAD),
    ],
)
def test_the_fields_of_a_payload_are_chosen_by_path(choice: PayloadChoice, expected: Any):
    assert chosen(PAYLOAD, choice) == expected


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"result":[],"status":"ok","time":0.1}', ""),
        (b'{ "status" : "ok", "result": [] }', ""),
        (b'{"title":"qdrant","version":"1.15.5"}', ""),
        (b'{"status":{"error":"x"},"time":0.1}', "error_in_200"),
        (b'{"result":[{"status":"ok"}],"status":"acknowledged"}', "error_in_200"),
        (b'{"result":[]}', "error_in_200"),
        (b'{"result":{"points":[{"payload":{"status":"ok"}}', "garbage"),
    ],
)
def test_a_200_is_a_success_only_if_it_says_so(body: bytes, why: str):
    assert QDRANT.failure_within(Answer(200, [], body)) == why
