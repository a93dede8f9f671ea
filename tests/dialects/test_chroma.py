"""Chroma's reads are told from its writes, filtered as its server filters, and answered in its server's shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dialects.check_dialect import check_dialect, check_reading
from tests.dialects.recorded_exchanges import Exchange, recorded, request
from understudy.indexes.conditions import Condition
from understudy.policies.service import Answer, Refused
from understudy.proxy.asks import CollectionInfo, Found, RetrieveAsk, Retrieved
from understudy.proxy.dialects import DIALECTS, naming_of
from understudy.proxy.dialects.base import BadRequest
from understudy.proxy.dialects.chroma_where import condition_of
from understudy.proxy.handles import Learnt

CHROMA = DIALECTS["chroma"]
NAMING = naming_of("chroma")
assert NAMING is not None
BASE = "/api/v2/tenants/default_tenant/databases/default_database"
OTHER = "/api/v2/tenants/acme/databases/my%20db"
ID = "4647e5e8-2f00-48be-a3a7-cbc01dfd6d53"
RECORDED = recorded("chroma")
POINTS = {
    "a": Found("a", {"k": 1, "s": "x"}, 0.9950371385, [1.0, 0.0, 0.0], "doc a"),
    "b": Found("b", {"k": 2, "s": "y"}, 0.0995037, [0.0, 1.0, 0.0], "doc b"),
    "c": Found("c", {"k": 3, "s": "x"}, 0.77395725, [0.699999988079071, 0.699999988079071, 0.0], "doc c"),
}


def asked(path: str, body: Any = None, method: str = "POST") -> RetrieveAsk:
    ask = CHROMA.ask(CHROMA.read(request(method, path, body)))
    assert isinstance(ask, RetrieveAsk)
    return ask


def queried(**body: Any) -> RetrieveAsk:
    return asked(f"{BASE}/collections/{ID}/query", {"query_embeddings": [[1.0, 0.1, 0.0]]} | body)


def result(ask: RetrieveAsk, retrieved: Retrieved) -> Any:
    return json.loads(CHROMA.retrieved(ask, retrieved, 0.01).body)


def exchange(call: str, path_ends: str = "") -> Exchange:
    return next(one for one in RECORDED if one.call == call and one.request.path.decode().endswith(path_ends))


def replayed(one: Exchange, retrieved: Retrieved) -> Any:
    ask = CHROMA.ask(CHROMA.read(one.request))
    assert isinstance(ask, RetrieveAsk)
    return result(ask, retrieved)


def test_it_does_what_every_dialect_must():
    check_dialect(CHROMA, RECORDED)


PATHS = ("/query", "/get", "/count", "", "/add", "/search")


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(PATHS), st.sampled_from(["GET", "POST", "PUT"]), st.binary(max_size=100))
def test_no_bytes_break_the_reading(name: bytes, path: str, method: str, body: bytes):
    one = request(method, "/", body)
    one.path = BASE.encode() + b"/collections/" + name + path.encode()
    check_reading(CHROMA, one)
    NAMING.named(one, Answer(200, [], body))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats(allow_nan=False) | st.text(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["$and", "$or", "$in", "$eq", "$contains", "a"]), inner, max_size=2)
    ),
    max_leaves=6,
)
FIELDS = ("query_embeddings", "ids", "where", "where_document", "limit", "offset", "n_results", "include")


@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.sampled_from(PATHS[:2]), st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES))
def test_no_json_breaks_the_reading(path: str, body: dict[str, Any]):
    check_reading(CHROMA, request("POST", f"{BASE}/collections/{ID}{path}", body))


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "op", "collection"),
    [
        ("GET", "/api/v2", "version", ""),
        ("GET", "/api/v2/heartbeat", "version", ""),
        ("GET", "/api/v2/auth/identity", "version", ""),
        ("GET", "/api/v2/tenants/acme", "version", ""),
        ("GET", OTHER, "version", ""),
        ("GET", f"{BASE}/collections", "collections", ""),
        ("GET", f"{BASE}/collections_count", "collections", ""),
        ("GET", f"{BASE}/collections/docs", "info", "docs"),
        ("GET", f"{OTHER}/collections/docs", "info", "acme/my%20db/docs"),
        ("GET", f"{BASE}/collections/{ID}/count?read_level=index_and_wal", "count", ID),
        ("GET", f"/behind/a/prefix{BASE}/collections/docs", "info", "docs"),
    ],
)
def test_a_get_is_told_by_its_path(method: str, path: str, op: str, collection: str):
    assert CHROMA.read(request(method, path)).kind == "retrieve"
    ask = asked(path, method=method)
    assert (ask.op, ask.collection) == (op, collection)


@pytest.mark.parametrize(
    ("method", "path", "reason", "written"),
    [
        ("POST", f"{BASE}/collections/{ID}/add", "write", ID),
        ("POST", f"{BASE}/collections/{ID}/upsert", "write", ID),
        ("POST", f"{BASE}/collections/{ID}/delete", "write", ID),
        ("POST", f"{OTHER}/collections/{ID}/update", "write", f"acme/my%20db/{ID}"),
        ("PUT", f"{BASE}/collections/{ID}", "write", ""),
        ("DELETE", f"{BASE}/collections/docs", "write", ""),
        ("POST", f"{BASE}/collections/{ID}/fork", "write", ID),
        ("POST", "/api/v2/tenants", "write", ""),
        ("POST", "/api/v2/reset", "write", ""),
        ("GET", "/api/v2/tenants/acme/databases", "unsupported", None),
        ("GET", f"{BASE}/collections?limit=1&offset=3", "unsupported", None),
        ("POST", f"{BASE}/collections/{ID}/search", "unsupported", None),
        ("GET", f"{BASE}/collections/{ID}/indexing_status", "unsupported", None),
        ("HEAD", "/api/v2", "unsupported", None),
    ],
)
def test_everything_else_is_passed_through_and_writes_are_seen(
    method: str, path: str, reason: str, written: str | None
):
    call = CHROMA.read(request(method, path, {}))
    assert call.kind == "pass"
    assert CHROMA.written(call.request) == written
    with pytest.raises(Refused) as caught:
        CHROMA.ask(call)
    assert caught.value.reason == reason


def test_get_or_create_is_a_read_where_the_collection_is_there_and_creating_is_a_write():
    there = CHROMA.read(request("POST", f"{BASE}/collections", {"name": "docs", "get_or_create": True}))
    assert (there.kind, CHROMA.written(there.request)) == ("retrieve", None)
    assert not CHROMA.keepable(there.request)
    for body in ({"name": "docs", "get_or_create": False}, {"name": "docs"}, b'{"get_or_create": true'):
        created = CHROMA.read(request("POST", f"{BASE}/collections", body))
        assert (created.kind, CHROMA.written(created.request)) == ("pass", "")


def test_only_what_a_collection_answers_by_its_id_is_kept():
    kept = [one for one in RECORDED if CHROMA.read(one.request).kind == "retrieve" and CHROMA.keepable(one.request)]
    assert {one.call for one in kept} == {"query", "query where", "get", "get page", "count", "error: wrong dim"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"query_embeddings": None}, 422),
        ({"query_embeddings": [["x"]]}, 422),
        ({"query_embeddings": ["AACAPw=="]}, 422),
        ({"n_results": -1}, 422),
        ({"include": ["nonsense"]}, 422),
        ({"ids": [1]}, 422),
        ({"where": {}}, 400),
        ({"where": {"k": 1, "s": "x"}}, 400),
        ({"where": {"k": {"$in": []}}}, 400),
        ({"where": {"k": {"$in": [1, 2.0]}}}, 400),
        ({"where": {"k": {"$gt": "x"}}}, 400),
        ({"where": {"k": {"$gt": True}}}, 400),
        ({"where": {"k": None}}, 400),
        ({"where": {"$not": {"k": 1}}}, 400),
        ({"where": "x"}, 400),
        ({"where": {"#document": "x"}}, 400),
        ({"where_document": {}}, 400),
        ({"where_document": {"$contains": 1}}, 400),
        ({"where_document": {"$foo": "x"}}, 400),
    ],
)
def test_what_chroma_would_not_take_is_the_callers_fault(body: dict[str, Any], status: int):
    with pytest.raises(BadRequest) as caught:
        queried(**body)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "body",
    [
        {"where_document": {"$regex": "^d"}},
        {"where": {"#document": {"$not_regex": "d"}}},
        {"where": {"tags": {"$contains": "x"}}},
        {"n_results": 10_001},
        {"query_embeddings": [[1.0]] * 129},
        {"where": json.loads('{"$and":[' * 18 + '{"k":1}' + "]}" * 18)},
    ],
)
def test_what_is_not_certain_to_mean_the_same_is_refused(body: dict[str, Any]):
    with pytest.raises(Refused):
        queried(**body)


# --- filters -------------------------------------------------------------------------------------------------------

SCALARS = st.sampled_from([0, 1, 2, 1.0, 2.5, True, False, "x", "xy", ""])
NUMBERS = st.sampled_from([0, 1, 1.0, 2.5])
KEYS = st.sampled_from(["k", "s"])
LISTS = st.sampled_from([[0, 1], [1.0, 2.5], [True], ["x", "xy"], [2]])
WORDS = st.sampled_from(["d", "doc", "D", "", "oc a"])
DOCUMENT = st.recursive(
    st.one_of(
        st.builds(lambda word: {"$contains": word}, WORDS), st.builds(lambda word: {"$not_contains": word}, WORDS)
    ),
    lambda inner: st.builds(
        lambda word, parts: {word: parts}, st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=4,
)
LEAF = st.one_of(
    st.builds(lambda key, value: {key: value}, KEYS, SCALARS),
    st.builds(lambda key, word, value: {key: {word: value}}, KEYS, st.sampled_from(["$eq", "$ne"]), SCALARS),
    st.builds(
        lambda key, word, value: {key: {word: value}}, KEYS, st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), NUMBERS
    ),
    st.builds(lambda key, word, values: {key: {word: values}}, KEYS, st.sampled_from(["$in", "$nin"]), LISTS),
    st.builds(lambda document: {"#document": document}, DOCUMENT),
)
WHERE = st.recursive(
    LEAF,
    lambda inner: st.builds(
        lambda word, parts: {word: parts}, st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=6,
)
PAYLOADS = st.dictionaries(KEYS, SCALARS)
TEXTS = st.sampled_from(["", "doc a", "Doc b", "d"])


def passes(where: Any, payload: Mapping[str, Any], text: str) -> bool:
    """Chroma's rules, straight from its words."""
    ((key, value),) = where.items()
    if key == "$and":
        return all(passes(part, payload, text) for part in value)
    if key == "$or":
        return any(passes(part, payload, text) for part in value)
    if key == "$contains":
        return text != "" and value in text
    if key == "$not_contains":
        return not (text != "" and value in text)
    if key == "#document":
        return passes(value, payload, text)
    word, wanted = next(iter(value.items())) if isinstance(value, dict) else ("$eq", value)
    if word in ("$ne", "$nin"):
        return not passes({key: {"$eq" if word == "$ne" else "$in": wanted}}, payload, text)
    if key not in payload:
        return False
    held = payload[key]
    if word == "$in":
        return any(passes({key: each}, payload, text) for each in wanted)
    if isinstance(held, bool) is not isinstance(wanted, bool) or isinstance(held, str) is not isinstance(wanted, str):
        return False
    if word == "$eq":
        return held == wanted
    return {"$gt": held > wanted, "$gte": held >= wanted, "$lt": held < wanted, "$lte": held <= wanted}[word]


@settings(derandomize=True, max_examples=1500, deadline=None)
@given(WHERE, PAYLOADS, TEXTS)
def test_filters_agree_with_the_rules_told_plainly(where: Any, payload: dict[str, Any], text: str):
    condition = condition_of(where, None, None)
    assert isinstance(condition, Condition)
    seen = text if condition.reads_text else ""
    assert condition.passes("a", payload, seen) is passes(where, payload, text)


def test_conditions_that_let_other_points_through_have_other_keys():
    conditions = [condition_of({"k": 1}, None, None), condition_of({"k": True}, None, None)]
    conditions += [condition_of({"k": 1.0}, None, None), condition_of(None, None, ("a",))]
    conditions += [condition_of({"#document": {"$contains": "a"}}, None, None), condition_of(None, None, ())]
    assert len({one.key for one in conditions if one is not None}) == len(conditions)
    assert condition_of(None, None, None) is None


# --- writing -------------------------------------------------------------------------------------------------------


def test_a_query_is_answered_as_the_recorded_server_did():
    one = exchange("query")
    parts = [Retrieved([POINTS["a"], POINTS["c"]], distance="cosine")]
    told = replayed(one, Retrieved(parts=parts, distance="cosine"))
    assert told.keys() == one.json.keys()
    assert told["distances"] == [pytest.approx(one.json["distances"][0], abs=2e-7)]
    assert {**told, "distances": 0} == {**one.json, "distances": 0}


def test_a_query_of_two_vectors_has_a_list_for_each():
    one = exchange("query where")
    lists = [[POINTS["c"], POINTS["b"]], [POINTS["b"], POINTS["c"]]]
    told = replayed(one, Retrieved(parts=[Retrieved(each) for each in lists], distance="cosine"))
    assert (told["ids"], told["documents"], told["metadatas"]) == (
        one.json["ids"],
        one.json["documents"],
        one.json["metadatas"],
    )
    assert told["embeddings"][0][0] == pytest.approx(one.json["embeddings"][0][0])


@pytest.mark.parametrize(
    ("distance", "score", "told"), [("cosine", 0.25, 0.75), ("dot", 3.2, -2.2), ("euclid", 0.5, 0.25)]
)
def test_distances_are_lower_the_nearer_in_every_space(distance: str, score: float, told: float):
    parts = [Retrieved([Found("a", {}, score)], distance=distance)]
    assert result(queried(), Retrieved(parts=parts, distance=distance))["distances"] == [[told]]


@pytest.mark.parametrize(("call", "found", "next_id"), [("get", ["a"], None), ("get page", ["b", "c"], "d")])
def test_records_are_told_as_the_recorded_server_did(call: str, found: list[str], next_id: str | None):
    one = exchange(call, "/get")
    assert replayed(one, Retrieved([POINTS[each] for each in found], next_id=next_id)) == one.json


def test_a_get_of_more_than_one_answer_holds_is_refused_and_never_cut():
    ask = asked(f"{BASE}/collections/{ID}/get", {})
    with pytest.raises(Refused):
        CHROMA.retrieved(ask, Retrieved([POINTS["a"]], next_id="b"), 0.0)
    assert result(ask, Retrieved([POINTS["a"]]))["ids"] == ["a"]


def test_a_text_that_was_only_lent_to_the_payload_is_no_metadata():
    lent = Found(7, {"text": "words", "k": 1}, None, None, "words", is_text_lent=True)
    bare = Found("b", {}, None, None, "words")
    told = result(
        asked(f"{BASE}/collections/{ID}/get", {"include": ["metadatas", "documents", "uris"]}), Retrieved([lent, bare])
    )
    assert (told["ids"], told["metadatas"]) == (["7", "b"], [{"k": 1}, None])
    assert (told["documents"], told["uris"], told["embeddings"]) == (["words", "words"], [None, None], None)


def test_what_a_client_asks_to_connect_is_answered_as_the_recorded_server_did():
    for one in RECORDED:
        if one.call == "HttpClient()" or one.request.path.endswith(b"pre-flight-checks"):
            assert replayed(one, Retrieved(at_s=1.0)) == one.json, one.request.path
    assert result(asked("/api/v2/heartbeat", method="GET"), Retrieved(at_s=2.5)) == {
        "nanosecond heartbeat": 2_500_000_000
    }
    assert result(asked("/api/v2/version", method="GET"), Retrieved()) == "1.0.0"


def test_collections_are_told_with_their_ids_and_only_those_of_the_database_asked():
    mine = CollectionInfo("docs", 4, 3, "cosine", ID)
    theirs = CollectionInfo("acme/my%20db/docs", 4, 3, "euclid", f"acme/my%20db/{ID}")
    listed = result(asked(f"{BASE}/collections", method="GET"), Retrieved(infos=[mine, theirs]))
    one = exchange("get_collection").json
    assert [entry["name"] for entry in listed] == ["docs"]
    assert listed[0].keys() == one.keys()
    same = ("id", "name", "configuration_json", "metadata", "tenant", "database")
    assert {key: listed[0][key] for key in same} == {key: one[key] for key in same}
    other = result(asked(f"{OTHER}/collections/docs", method="GET"), Retrieved(info=theirs))
    assert (other["id"], other["name"], other["tenant"], other["database"]) == (ID, "docs", "acme", "my db")
    assert other["configuration_json"]["hnsw"]["space"] == "l2"
    assert result(asked(f"{OTHER}/collections_count", method="GET"), Retrieved(infos=[mine, theirs])) == 1


def test_names_and_ids_are_learned_from_what_passes():
    learned = [told for one in RECORDED if one.answer.status < 300 for told in NAMING.named(one.request, one.answer)]
    assert set(learned) == {Learnt(ID, "docs"), Learnt("", "docs")}
    renamed = request("PUT", f"{OTHER}/collections/{ID}", {"new_name": "papers"})
    assert NAMING.named(renamed, Answer(200, [], b"{}")) == [Learnt(f"acme/my%20db/{ID}", "acme/my%20db/papers")]


@pytest.mark.parametrize(
    ("status", "name"),
    [(400, "InvalidArgumentError"), (404, "NotFoundError"), (422, "ChromaError"), (503, "InternalError")],
)
def test_an_error_is_named_as_the_client_knows_it(status: int, name: str):
    assert json.loads(CHROMA.error(status, "exhausted", "nobody").body) == {"error": name, "message": "nobody"}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"4", ""),
        (b'"1.0.0"', ""),
        (b"[]", ""),
        (b"{}", ""),
        (b"[{", "garbage"),
        (b'{"error":"X","message":"y"}', "error_in_200"),
    ],
)
def test_a_200_is_a_success_only_if_it_is_whole(body: bytes, why: str):
    assert CHROMA.failure_within(Answer(200, [], body)) == why
