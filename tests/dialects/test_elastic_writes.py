"""What Elasticsearch and OpenSearch were asked to write, and what of it their answers say was written."""

from __future__ import annotations

import contextlib
import gzip
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dialects.recorded_exchanges import recorded, request
from tests.dialects.writing import told
from understudy.indexes.faults import BadQuestion
from understudy.indexes.writes import Delete, Upsert, fitted
from understudy.policies.service import Answer, Refused
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.base import Malformed

ELASTIC = DIALECTS["elasticsearch"]
DOC = {"text": "doc a", "k": 1, "vec": [0.5, 0.25], "sizes": [3, 4]}


def changed(method: str, path: str, body: Any = None) -> Any:
    return told("elasticsearch", method, path, body)


def lines(*each: Any) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in each)


def applied(method: str, path: str, body: Any, answer: Any, status: int = 200) -> Any:
    call = ELASTIC.read(request(method, path, body))
    return list(ELASTIC.applied(call, Answer(status, [], json.dumps(answer).encode())))


def item(act: str, id: str, status: int = 201, **more: Any) -> dict[str, Any]:
    return {act: {"_index": "docs", "_id": id, "status": status, "result": "created", **more}}


POINT = {"id": "a", "payload": DOC, "named": {"vec": [0.5, 0.25], "sizes": [3.0, 4.0]}}


@pytest.mark.parametrize(
    ("method", "path", "write"),
    [
        ("PUT", "/docs/_doc/a", ("Upsert", {"points": [POINT]})),
        ("POST", "/docs/_doc/a?refresh=true", ("Upsert", {"points": [POINT]})),
        ("PUT", "/docs/_create/a", ("Upsert", {"points": [POINT], "only": "new"})),
        ("PUT", "/docs/_doc/a?op_type=create", ("Upsert", {"points": [POINT], "only": "new"})),
        ("DELETE", "/docs/_doc/a%2Fb", ("Delete", {"which": {"ids": ["a/b"]}})),
    ],
)
def test_a_document_is_written_whole_with_what_may_be_its_vectors(method: str, path: str, write: Any):
    assert changed(method, path, None if method == "DELETE" else DOC) == [("docs", *write)]


def test_a_bulk_is_read_line_by_line():
    body = lines(
        {"index": {"_index": "docs", "_id": "a"}},
        {"text": "x"},
        {"create": {"_id": 7}},
        {"text": "y"},
        {"update": {"_id": "c"}},
        {"doc": {"k": 2, "vec": [1, 2]}},
        {"delete": {"_id": "d"}},
    )
    assert changed("POST", "/docs/_bulk", body) == [
        ("docs", "Upsert", {"points": [{"id": "a", "payload": {"text": "x"}}]}),
        ("docs", "Upsert", {"points": [{"id": "7", "payload": {"text": "y"}}], "only": "new"}),
        ("docs", "PutVectors", {"points": [{"id": "c", "named": {"vec": [1.0, 2.0]}}]}),
        ("docs", "PutPayload", {"which": {"ids": ["c"]}, "payload": {"k": 2, "vec": [1, 2]}}),
        ("docs", "Delete", {"which": {"ids": ["d"]}}),
    ]


def test_the_recorded_bulk_and_document_are_applied():
    for name in ("es bulk", "es index"):
        exchange = next(each for each in recorded("elasticsearch") if each.call == name)
        (change,) = ELASTIC.applied(ELASTIC.read(exchange.request), exchange.answer)
        assert isinstance(change.write, Upsert)
        assert (change.collection, change.write.points[0].id) == ("docs", "a")
        assert change.write.points[0].payload["text"] == "doc a"


def test_only_the_documents_that_the_cluster_took_are_applied():
    body = lines(
        *[{"index": {"_index": "docs", "_id": "a"}}, {"n": 1}],
        *[{"index": {"_index": "docs", "_id": "b"}}, {"n": 2}],
        *[{"index": {"_index": "docs"}}, {"n": 3}],
        *[{"update": {"_index": "docs", "_id": "d"}}, {"doc": {"n": 4}}],
        *[{"delete": {"_index": "docs", "_id": "e"}}],
    )
    refused = {"type": "es_rejected_execution_exception", "reason": "queue full"}
    said = {
        "took": 3,
        "errors": True,
        "items": [
            item("index", "a"),
            item("index", "b", 429, error=refused, result=""),
            item("index", "made-up"),
            item("update", "d", 200, result="noop"),
            item("delete", "e", 404, result="not_found"),
        ],
    }
    changes = applied("POST", "/_bulk", body, said)
    assert [change.write.points[0].id for change in changes] == ["a", "made-up"]
    assert [change.write.points[0].payload for change in changes] == [{"n": 1}, {"n": 3}]


def test_a_document_without_an_id_is_applied_under_the_one_the_cluster_gave_it():
    with pytest.raises(Refused):
        changed("POST", "/docs/_doc", DOC)
    (change,) = applied("POST", "/docs/_doc", DOC, {"_index": "docs", "_id": "x1", "result": "created"}, 201)
    assert change.write.points[0].id == "x1"


def test_an_update_that_may_insert_does_what_the_answer_says_it_did():
    body = {"doc": {"k": 2}, "upsert": {"k": 1, "text": "new"}}
    with pytest.raises(Refused):
        changed("POST", "/docs/_update/a", body)
    (made,) = applied("POST", "/docs/_update/a", body, {"_index": "docs", "_id": "a", "result": "created"}, 201)
    assert made.write.points[0].payload == {"k": 1, "text": "new"}
    (merged,) = applied("POST", "/docs/_update/a", body, {"_index": "docs", "_id": "a", "result": "updated"})
    assert merged.write.payload == {"k": 2}
    assert applied("POST", "/docs/_update/a", body, {"_index": "docs", "_id": "a", "result": "noop"}) == []
    whole = {"doc": {"k": 2}, "doc_as_upsert": True}
    (made,) = applied("POST", "/docs/_update/a", whole, {"_index": "docs", "_id": "a", "result": "created"}, 201)
    assert made.write.points[0].payload == {"k": 2}


def test_what_was_written_under_an_alias_is_not_taken_for_an_index():
    said = {"_index": "docs-000001", "_id": "a", "result": "created"}
    with pytest.raises(Refused, match="another name"):
        applied("PUT", "/docs/_doc/a", DOC, said, 201)


def test_packed_requests_and_answers_are_read():
    asked = request("POST", "/_bulk", gzip.compress(lines({"index": {"_index": "docs", "_id": "a"}}, {"n": 1})))
    asked.headers.append((b"Content-Encoding", b"gzip"))
    said = gzip.compress(json.dumps({"errors": False, "items": [item("index", "a")]}).encode())
    call = ELASTIC.read(asked)
    assert len(ELASTIC.applied(call, Answer(200, [(b"content-encoding", b"gzip")], said))) == 1
    with pytest.raises(Refused):
        ELASTIC.applied(call, Answer(200, [(b"content-encoding", b"gzip")], said[:-9]))
    with pytest.raises(Refused):
        ELASTIC.applied(call, Answer(200, [(b"content-encoding", b"br")], said))


# --- whole indices, and queries ------------------------------------------------------------------------------------


def test_an_index_is_made_with_the_vectors_of_its_mapping():
    properties = {
        "vec": {"type": "dense_vector", "dims": 384, "similarity": "dot_product"},
        "inner": {"properties": {"other": {"type": "dense_vector", "dims": 3}}},
        "later": {"type": "dense_vector", "similarity": "l2_norm"},
        "many": {"type": "nested", "properties": {"v": {"type": "dense_vector", "dims": 3}}},
        "text": {"type": "text"},
    }
    ((index, kind, create),) = changed("PUT", "/docs", {"mappings": {"properties": properties}})
    assert (index, kind) == ("docs", "Create")
    assert create == {
        "vectors": {
            "vec": {"dimensions": 384, "distance": "dot"},
            "inner.other": {"dimensions": 3, "distance": "cosine"},
        },
        "notes": {"distances": {"vec": "dot", "inner.other": "cosine", "later": "euclid"}},
    }


def test_opensearch_names_its_vectors_otherwise():
    vec = {"type": "knn_vector", "dimension": 4, "method": {"name": "hnsw", "space_type": "cosinesimil"}}
    old = {"type": "knn_vector", "dimension": 4}
    body = {"settings": {"index": {"knn": True}}, "mappings": {"properties": {"vec": vec, "old": old}}}
    ((_, _, create),) = told("opensearch", "PUT", "/docs", body)
    assert create["vectors"] == {
        "vec": {"dimensions": 4, "distance": "cosine"},
        "old": {"dimensions": 4, "distance": "euclid"},
    }


def test_an_index_is_dropped_and_made_without_a_word():
    assert changed("DELETE", "/docs") == [("docs", "Drop", {})]
    assert changed("PUT", "/docs") == [("docs", "Create", {})]


def test_what_a_query_finds_is_deleted_where_the_answer_says_that_all_of_it_was():
    body = {"query": {"bool": {"filter": [{"term": {"k": 1}}, {"range": {"n": {"gte": 2}}}]}}}
    done = {"timed_out": False, "total": 2, "deleted": 2, "version_conflicts": 0, "failures": []}
    (change,) = applied("POST", "/docs/_delete_by_query", body, done)
    assert isinstance(change.write, Delete)
    passes = change.write.which.filter.passes
    assert [passes("x", {"k": 1, "n": 2}, ""), passes("x", {"k": 1, "n": 1}, "")] == [True, False]
    for partly in ({"version_conflicts": 1}, {"timed_out": True}, {"failures": [{"id": "a"}]}):
        with pytest.raises(Refused):
            applied("POST", "/docs/_delete_by_query", body, {**done, **partly})
    with pytest.raises(Refused):
        applied("POST", "/docs/_delete_by_query?wait_for_completion=false", body, {"task": "n:1"})


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/docs/_update/a", {"script": {"source": "ctx._source.k += 1"}}),
        ("POST", "/docs/_update/a", {"doc": {"inner": {"k": 1}}}),
        ("POST", "/docs/_bulk?pipeline=p", lines({"index": {"_id": "a"}}, {})),
        ("POST", "/docs/_bulk", lines({"index": {"_id": "a", "pipeline": "p"}}, {})),
        ("POST", "/_bulk", lines({"index": {"_id": "a"}}, {})),
        ("POST", "/docs/_delete_by_query", {"query": {"match": {"text": "hello"}}}),
        ("POST", "/docs/_delete_by_query?max_docs=3", {"query": {"term": {"k": 1}}}),
        ("POST", "/docs/_delete_by_query?conflicts=proceed", {"query": {"term": {"k": 1}}}),
        ("POST", "/docs/_update_by_query", {}),
        ("POST", "/_reindex", {"source": {"index": "a"}, "dest": {"index": "b"}}),
        ("POST", "/_aliases", {"actions": []}),
        ("DELETE", "/docs,others", None),
        ("DELETE", "/docs-*", None),
        ("PUT", "/docs", {"settings": {"index": {"default_pipeline": "p"}}}),
        ("PUT", "/docs", {"mappings": {"properties": {"v": {"type": "dense_vector", "element_type": "byte"}}}}),
        ("PUT", "/docs", {"mappings": {"properties": {"v": {"type": "dense_vector", "similarity": "other"}}}}),
        ("PUT", "/docs/_mapping", {"properties": {"v": {"type": "dense_vector"}}}),
        ("POST", "/_snapshot/repo/snap/_restore", {}),
    ],
)
def test_a_write_whose_effect_only_the_cluster_knows_is_refused(method: str, path: str, body: Any):
    with pytest.raises(Refused):
        changed(method, path, body)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/docs/_doc/a"),
        ("POST", "/docs/_search"),
        ("POST", "/docs/_refresh"),
        ("PUT", "/docs/_settings"),
        ("DELETE", "/_search/scroll"),
        ("PUT", "/_cluster/settings"),
        ("POST", "/docs/_cache/clear"),
        ("DELETE", "/_index_template/docs"),
    ],
)
def test_what_stores_nothing_changes_nothing(method: str, path: str):
    assert changed(method, path, {}) == []


@pytest.mark.parametrize(
    "body", [b"nonsense\n", lines({"index": {"_id": "a"}}), lines({"mend": {}}, {}), lines([1], {})]
)
def test_a_bulk_that_is_malformed_is_told_from_one_that_is_not_understood(body: bytes):
    with pytest.raises(Malformed):
        changed("POST", "/docs/_bulk", body)


WORDS = st.sampled_from(["index", "create", "update", "delete", "_id", "_index", "doc", "upsert", "script", "vec"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=False) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


@settings(derandomize=True, max_examples=400, deadline=None)
@given(
    st.sampled_from(
        ["/_bulk", "/docs/_bulk", "/docs/_doc/a", "/docs/_update/a", "/docs", "/docs/_delete_by_query", "//"]
    ),
    st.sampled_from(["POST", "PUT", "DELETE"]),
    st.lists(VALUES, max_size=4).map(lambda each: lines(*each)) | st.binary(max_size=30),
    VALUES,
)
def test_nothing_breaks_the_reading_of_writes_and_answers(path: str, method: str, body: bytes, said: Any):
    with contextlib.suppress(Refused, Malformed):
        changed(method, path, body)
    with contextlib.suppress(Refused, Malformed):
        applied(method, path, body, said)


# --- vectors among fields ------------------------------------------------------------------------------------------


def test_a_document_is_fitted_to_the_vectors_of_its_collection():
    (change,) = applied("PUT", "/docs/_doc/a", {**DOC, "in": {"v": [1, 2]}}, {"_index": "docs", "_id": "a"}, 201)
    whole = fitted(change.write, ("vec", "in.v"))
    assert isinstance(whole, Upsert)
    assert whole.points[0].payload == {"text": "doc a", "k": 1, "sizes": [3, 4], "in": {}}
    assert {name: vector.tolist() for name, vector in whole.points[0].named.items()} == {
        "vec": [0.5, 0.25],
        "in.v": [1.0, 2.0],
    }
    assert change.write.points[0].payload["vec"] == [0.5, 0.25]
    (packed,) = applied("PUT", "/docs/_doc/a", {"vec": "P4AAAD8A"}, {"_index": "docs", "_id": "a"}, 201)
    with pytest.raises(BadQuestion):
        fitted(packed.write, ("vec",))


# --- failures within a 200 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "said", "why"),
    [
        ("/_bulk", {"took": 1, "errors": False, "items": [item("index", "a")]}, ""),
        ("/_bulk", {"took": 1, "errors": True, "items": [item("index", "a"), item("index", "b", 429)]}, "error_in_200"),
        ("/_bulk", {"took": 1, "errors": True, "items": [item("index", "a", 503)]}, "error_in_200"),
        ("/_bulk", {"took": 1, "errors": True, "items": [item("create", "a", 409), item("index", "b", 400)]}, ""),
        ("/docs/_doc/a", {"_id": "a", "_shards": {"total": 2, "successful": 1, "failed": 1}}, "error_in_200"),
        ("/docs/_doc/a", {"_id": "a", "_shards": {"total": 2, "successful": 2, "failed": 0}}, ""),
        ("/docs/_delete_by_query", {"timed_out": True, "deleted": 1}, "error_in_200"),
        ("/docs/_msearch", {"timed_out": True}, ""),
    ],
)
def test_a_write_that_the_cluster_could_not_carry_out_is_its_failure(path: str, said: Any, why: str):
    body = json.dumps(said, separators=(",", ":")).encode()
    assert ELASTIC.write_failed(ELASTIC.read(request("POST", path, {})), Answer(200, [], body)) == why
