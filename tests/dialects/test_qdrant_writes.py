"""What a write to Qdrant changes is read whole, and what only the database can know is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dialects.recorded_exchanges import recorded, request
from tests.dialects.writing import told
from understudy.indexes.writes import Change
from understudy.policies.service import Call, Refused
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.base import Malformed

QDRANT = DIALECTS["qdrant"]
UUID = "5C56C793-69F3-4FBF-87E6-C4BF54C28C26"
FILTER = {"must": [{"key": "k", "match": {"value": 1}}]}
POINT = {"id": 1, "vector": [0.5, 0.25], "payload": {"text": "a", "none": None}}


def writes(method: str, path: str, body: Any = None) -> list[tuple[str, dict[str, Any]]]:
    """What is changed, all of it in the collection docs."""
    changes = told("qdrant", method, f"/collections/docs{path}", body)
    assert {collection for collection, _, _ in changes} <= {"docs"}
    return [(kind, fields) for _, kind, fields in changes]


WRITES: list[Any] = [
    ("PUT", "/points?wait=true", {"points": [POINT]}, ("Upsert", {"points": [POINT]})),
    (
        "PUT",
        "/points",
        {"batch": {"ids": [1, 2], "vectors": [[1, 2], [3, 4]], "payloads": [{"k": 1}, None]}},
        ("Upsert", {"points": [{"id": 1, "vector": [1, 2], "payload": {"k": 1}}, {"id": 2, "vector": [3, 4]}]}),
    ),
    (
        "PUT",
        "/points",
        {
            "batch": {"ids": [1, 2], "vectors": {"a": [[1], [2]], "": [[3, 4], [5, 6]]}},
            "update_mode": "insert_only",
        },
        (
            "Upsert",
            {
                "points": [
                    {"id": 1, "vector": [3, 4], "named": {"a": [1]}},
                    {"id": 2, "vector": [5, 6], "named": {"a": [2]}},
                ],
                "only": "new",
            },
        ),
    ),
    (
        "PUT",
        "/points",
        {"points": [{"id": UUID, "vector": {"a": [1], "b": [2, 3]}}], "update_mode": "update_only"},
        ("Upsert", {"points": [{"id": UUID.lower(), "named": {"a": [1], "b": [2, 3]}}], "only": "existing"}),
    ),
    ("PUT", "/points", {"points": [{"id": 1, "vector": {}}]}, ("Upsert", {"points": [{"id": 1}]})),
    ("POST", "/points/delete", {"points": [1, UUID]}, ("Delete", {"which": {"ids": [1, UUID.lower()]}})),
    ("POST", "/points/delete?wait=true", {"filter": FILTER}, ("Delete", {"which": {"filter": FILTER}})),
    ("POST", "/points/delete", {"filter": {}}, ("Delete", {"which": {"filter": {}}})),
    (
        "PUT",
        "/points/vectors",
        {"points": [{"id": 7, "vector": {"a": [1, 2]}}]},
        ("PutVectors", {"points": [{"id": 7, "named": {"a": [1, 2]}}]}),
    ),
    (
        "POST",
        "/points/vectors/delete",
        {"points": [7], "vector": ["", "a"]},
        ("DropVectors", {"which": {"ids": [7]}, "names": ["", "a"]}),
    ),
    (
        "POST",
        "/points/payload",
        {"payload": {"k": 2}, "points": [7], "key": "a.b"},
        ("PutPayload", {"which": {"ids": [7]}, "payload": {"k": 2}, "key": '"a"."b"'}),
    ),
    (
        "PUT",
        "/points/payload",
        {"payload": {"k": 2}, "filter": FILTER},
        ("PutPayload", {"which": {"filter": FILTER}, "payload": {"k": 2}, "replace": True}),
    ),
    (
        "POST",
        "/points/payload/delete",
        {"keys": ["k", "a.b"], "points": [7]},
        ("DropPayload", {"which": {"ids": [7]}, "keys": ['"k"', '"a"."b"']}),
    ),
    ("POST", "/points/payload/clear", {"filter": FILTER}, ("DropPayload", {"which": {"filter": FILTER}})),
    (
        "PUT",
        "",
        {"vectors": {"size": 4, "distance": "Cosine", "on_disk": True}},
        ("Create", {"vectors": {"": {"dimensions": 4, "distance": "cosine"}}}),
    ),
    (
        "PUT",
        "",
        {"vectors": {"a": {"size": 4, "distance": "Dot"}, "size": {"size": 2, "distance": "Euclid"}}},
        (
            "Create",
            {
                "vectors": {
                    "a": {"dimensions": 4, "distance": "dot"},
                    "size": {"dimensions": 2, "distance": "euclid"},
                }
            },
        ),
    ),
    ("PUT", "", {}, ("Create", {})),
    ("DELETE", "", None, ("Drop", {})),
    ("DELETE", "?timeout=60", None, ("Drop", {})),
]


@pytest.mark.parametrize(("method", "path", "body", "expected"), WRITES)
def test_a_write_says_what_it_changes(method: str, path: str, body: Any, expected: tuple[str, dict[str, Any]]):
    assert writes(method, path, body) == [expected]


def test_a_null_written_into_a_payload_takes_the_field_away():
    body = {"payload": {"k": 2, "a.b": None}, "points": [7], "key": "x[]"}
    assert writes("POST", "/points/payload", body) == [
        ("PutPayload", {"which": {"ids": [7]}, "payload": {"k": 2}, "key": '"x"[]'}),
        ("DropPayload", {"which": {"ids": [7]}, "keys": ['"x"[]."a.b"']}),
    ]


def test_a_batch_of_operations_changes_one_thing_after_the_other():
    operations: list[Any] = [
        {"upsert": {"points": [POINT]}},
        {"delete": {"points": []}},
        {"delete": {"filter": FILTER}},
        {"set_payload": {"payload": {"k": 1}, "points": [1]}},
        {"overwrite_payload": {"payload": {"k": 2}, "points": [1]}},
        {"delete_payload": {"keys": ["k"], "points": [1]}},
        {"clear_payload": {"points": [1]}},
        {"update_vectors": {"points": [{"id": 1, "vector": [1]}]}},
        {"delete_vectors": {"points": [1], "vector": [""]}},
    ]
    kinds = [kind for kind, _ in writes("POST", "/points/batch", {"operations": operations})]
    assert kinds == [
        *("Upsert", "Delete", "PutPayload", "PutPayload", "DropPayload", "DropPayload", "PutVectors", "DropVectors")
    ]


IDLE: list[Any] = [
    ("PUT", "/points", {"points": []}),
    ("POST", "/points/delete", {"points": []}),
    ("POST", "/points/payload/clear", {"points": []}),
    ("POST", "/points/payload/delete", {"points": [1], "keys": []}),
    ("POST", "/points/payload/delete", {"points": [1], "keys": ["a[0]"]}),
    ("POST", "/points/batch", {"operations": []}),
    ("PATCH", "", {"optimizers_config": {}}),
    ("PUT", "/index?wait=true", {"field_name": "k", "field_schema": "keyword"}),
    ("DELETE", "/index/k", None),
    ("POST", "/snapshots", None),
    ("DELETE", "/snapshots/docs.snapshot", None),
    ("GET", "/points/7", None),
]


@pytest.mark.parametrize(("method", "path", "body"), IDLE)
def test_nothing_changes_where_no_point_is_meant(method: str, path: str, body: Any):
    assert writes(method, path, body) == []


UNKNOWABLE: list[Any] = [
    ("PUT", "/points", {"points": [{"id": 1, "vector": {"s": {"indices": [1], "values": [0.5]}}}]}),
    ("PUT", "/points", {"points": [{"id": 1, "vector": [[1, 2], [3, 4]]}]}),
    ("PUT", "/points", {"points": [{"id": 1, "vector": {"text": "embed me", "model": "m"}}]}),
    ("PUT", "/points", {"points": [{"id": 1, "vector": {"a": {"text": "embed me", "model": "m"}}}]}),
    ("PUT", "/points", {"points": [{"id": 1, "vector": [1e300]}]}),
    ("PUT", "/points", {"points": [{"id": 1, "vector": []}]}),
    ("PUT", "/points", {"points": [POINT], "shard_key": "a"}),
    ("PUT", "/points", {"points": [POINT], "update_filter": FILTER}),
    ("PUT", "/points/payload", {"payload": {}, "points": [1], "key": "a"}),
    ("POST", "/points/payload", {"payload": {"k": None}, "filter": FILTER}),
    ("POST", "/points/batch", {"operations": [{"upsert": {"points": [POINT]}}, {"rename": {}}]}),
    ("POST", "/points/delete", {"points": [1], "shard_key": ["a"]}),
    ("PUT", "", {"vectors": {"size": 4, "distance": "Manhattan"}}),
    ("PUT", "", {"vectors": {"size": 4, "distance": "Dot", "multivector_config": {"comparator": "max_sim"}}}),
    ("PUT", "", {"vectors": {"size": 4, "distance": "Dot", "datatype": "uint8"}}),
    ("PUT", "", {"vectors": {}, "sparse_vectors": {"s": {}}}),
    ("PUT", "", {"vectors": {"size": 4, "distance": "Dot"}, "init_from": {"collection": "old"}}),
    ("PUT", "/snapshots/recover", {"location": "file:///x"}),
    ("PUT", "/shards", {"shard_key": "a"}),
    ("PUT", "/anything/new", {}),
]


@pytest.mark.parametrize(("method", "path", "body"), UNKNOWABLE)
def test_what_only_the_database_can_tell_is_refused(method: str, path: str, body: Any):
    with pytest.raises(Refused):
        writes(method, path, body)


def test_a_name_given_to_another_collection_is_refused():
    with pytest.raises(Refused):
        told("qdrant", "POST", "/collections/aliases", {"actions": []})


MALFORMED: list[Any] = [
    ("PUT", "/points", b'{"points": [{"id": 1'),
    ("PUT", "/points", {}),
    ("PUT", "/points", {"points": [{"id": 1}]}),
    ("PUT", "/points", {"points": [{"id": -1, "vector": [1]}]}),
    ("PUT", "/points", {"points": [{"id": 1, "vector": ["1"]}]}),
    ("PUT", "/points", {"points": [POINT], "update_mode": "sometimes"}),
    ("PUT", "/points", {"batch": {"ids": [1], "vectors": []}}),
    ("PUT", "/points", {"batch": {"ids": [1], "vectors": {"a": []}}}),
    ("PUT", "/points", {"batch": {"ids": [1], "vectors": [[1]], "payloads": []}}),
    ("POST", "/points/delete", {}),
    ("POST", "/points/payload", {"points": [1]}),
    ("POST", "/points/payload", {"points": [1], "payload": {}, "key": "a..b"}),
    ("POST", "/points/batch", {"operations": [{"upsert": {"points": [POINT]}, "delete": {"points": [1]}}]}),
    ("PUT", "", {"vectors": {"size": 0, "distance": "Dot"}}),
]


@pytest.mark.parametrize(("method", "path", "body"), MALFORMED)
def test_what_the_database_would_not_take_changes_nothing(method: str, path: str, body: Any):
    with pytest.raises(Malformed):
        writes(method, path, body)


def test_the_recorded_writes_are_read():
    seen: set[str] = set()
    for exchange in recorded("qdrant"):
        call = QDRANT.read(exchange.request)
        if call.kind == "pass" and QDRANT.written(exchange.request):
            changes = QDRANT.changes(call)
            assert all(change.collection == QDRANT.written(exchange.request) for change in changes)
            seen |= {type(change.write).__name__ for change in changes}
    assert seen >= {"Upsert", "Delete", "PutPayload", "Create"}


PATHS = ("", "/points", "/points/delete", "/points/vectors", "/points/vectors/delete", "/points/payload")
BODIES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats() | st.text(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["points", "id", "vector", "payload", "batch", "ids", "filter", "size", "keys"]), inner
        )
    ),
    max_leaves=8,
)


@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.sampled_from(["PUT", "POST", "DELETE", "PATCH"]), st.sampled_from(PATHS), BODIES)
def test_no_json_breaks_the_reading(method: str, path: str, body: Any):
    asked = request(method, f"/collections/docs{path}", json.dumps(body).encode())
    try:
        changes = QDRANT.changes(Call("pass", asked, dialect="qdrant"))
    except (Malformed, Refused):
        return
    assert all(isinstance(change, Change) for change in changes)
