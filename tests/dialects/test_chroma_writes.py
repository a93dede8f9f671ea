"""What a write to Chroma changes is read as its server applies it, and what only the server can know is refused."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.dialects.recorded_exchanges import recorded, request
from tests.dialects.writing import told
from understudy.indexes.collection import Collection
from understudy.indexes.conditions import Condition
from understudy.indexes.writes import Delete
from understudy.policies.service import Refused
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.base import Malformed

CHROMA = DIALECTS["chroma"]
BASE = "/api/v2/tenants/default_tenant/databases/default_database/collections"
HANDLE = "4647e5e8-2f00-48be-a3a7-cbc01dfd6d53"


def packed(*numbers: float) -> str:
    return base64.b64encode(np.array(numbers, "<f4").tobytes()).decode()


def records(act: str, body: Any) -> list[tuple[str, dict[str, Any]]]:
    """What is changed, all of it in the collection that goes by HANDLE."""
    changes = told("chroma", "POST", f"{BASE}/{HANDLE}/{act}", body)
    assert {collection for collection, _, _ in changes} <= {HANDLE}
    return [(kind, fields) for _, kind, fields in changes]


def test_an_added_record_is_put_only_where_it_is_new():
    body = {
        "ids": ["a", "b"],
        "embeddings": [packed(1, 2), [3, 4]],
        "metadatas": [{"k": 1, "gone": None, "list": ["x"]}, None],
        "documents": ["doc a", None],
        "uris": None,
    }
    points = [
        {"id": "a", "vector": [1, 2], "payload": {"k": 1, "list": ["x"]}, "text": "doc a"},
        {"id": "b", "vector": [3, 4]},
    ]
    assert records("add", body) == [("Upsert", {"points": points, "only": "new"})]


def test_an_upsert_keeps_what_it_does_not_name_of_a_record_that_is_there():
    body = {
        "ids": ["a", "a"],
        "embeddings": [[1, 2], [3, 4]],
        "metadatas": [{"k": 1}, {"k": None, "m": 2}],
        "documents": ["doc a", None],
    }
    assert records("upsert", body) == [
        ("Upsert", {"points": [{"id": "a", "vector": [1, 2], "payload": {"k": 1}, "text": "doc a"}], "only": "new"}),
        ("PutVectors", {"points": [{"id": "a", "vector": [3, 4], "text": "doc a"}]}),
        ("PutPayload", {"which": {"ids": ["a"]}, "payload": {"k": 1}}),
        ("PutPayload", {"which": {"ids": ["a"]}, "payload": {"m": 2}}),
        ("DropPayload", {"which": {"ids": ["a"]}, "keys": ["k"]}),
    ]


def test_an_update_changes_what_it_names():
    assert records("update", {"ids": ["a", "b"], "documents": ["new", None], "embeddings": [None, packed(1)]}) == [
        ("PutVectors", {"points": [{"id": "a", "text": "new"}, {"id": "b", "vector": [1]}]})
    ]
    assert records("update", {"ids": ["a"], "metadatas": [{"k": 10}]}) == [
        ("PutPayload", {"which": {"ids": ["a"]}, "payload": {"k": 10}})
    ]
    assert records("update", {"ids": ["a"], "metadatas": [None]}) == []


def test_a_delete_takes_ids_or_what_passes_or_both_at_once():
    assert records("delete", {"ids": ["a", "b"]}) == [("Delete", {"which": {"ids": ["a", "b"]}})]
    asked = request("POST", f"{BASE}/{HANDLE}/delete", {"ids": ["a"], "where": {"k": 1}, "where_document": None})
    (change,) = CHROMA.changes(CHROMA.read(asked))
    assert isinstance(change.write, Delete)
    condition = change.write.which.filter
    assert isinstance(condition, Condition)
    assert change.write.which.ids == ()
    passing = [
        (name, payload)
        for name in ("a", "b")
        for payload in ({"k": 1}, {"k": 2})
        if condition.passes(name, payload, "")
    ]
    assert passing == [("a", {"k": 1})]


@pytest.mark.parametrize(
    ("body", "distance"),
    [
        ({}, "euclid"),
        ({"metadata": {"hnsw:space": "cosine"}}, "cosine"),
        ({"configuration": {"hnsw": {"space": "ip"}}}, "dot"),
        ({"configuration": {"hnsw": {"space": None}, "spann": None}, "get_or_create": True}, "euclid"),
    ],
)
def test_a_collection_is_made_with_its_distance(body: dict[str, Any], distance: str):
    made = [("docs", "Create", {"notes": {"distance": distance}})]
    assert told("chroma", "POST", BASE, {"name": "docs"} | body) == made
    elsewhere = told("chroma", "POST", "/api/v2/tenants/t/databases/d/collections", {"name": "docs"} | body)
    assert elsewhere == [("t/d/docs", *made[0][1:])]


def test_a_collection_goes_by_name_where_collections_are_written():
    assert told("chroma", "DELETE", f"{BASE}/docs") == [("docs", "Drop", {})]
    assert told("chroma", "PUT", f"{BASE}/{HANDLE}", {"new_metadata": {"k": 1}}) == []
    assert told("chroma", "POST", "/api/v2/tenants", {"name": "t"}) == []
    assert told("chroma", "POST", "/api/v2/tenants/t/databases", {"name": "d"}) == []


UNKNOWABLE: list[Any] = [
    ("PUT", f"{BASE}/{HANDLE}", {"new_name": "other"}),
    ("POST", f"{BASE}/{HANDLE}/fork", {"new_name": "other"}),
    ("POST", BASE, {"name": "docs", "schema": {"defaults": {}}}),
    ("POST", BASE, {"name": "docs", "metadata": {"hnsw:space": "hamming"}}),
    ("DELETE", "/api/v2/tenants/t/databases/d", None),
    ("POST", f"{BASE}/{HANDLE}/add", {"ids": ["a"], "embeddings": [[1]], "uris": ["file:///a"]}),
    ("POST", f"{BASE}/{HANDLE}/add", {"ids": ["a"], "embeddings": [[1]], "metadatas": [{"s": {"indices": []}}]}),
    ("POST", f"{BASE}/{HANDLE}/add", {"ids": ["a"], "documents": ["words"]}),
    ("POST", f"{BASE}/{HANDLE}/add", {"ids": ["a"], "embeddings": [packed(float("nan"))]}),
    ("POST", f"{BASE}/{HANDLE}/update", {"ids": ["a"], "documents": [""]}),
    ("POST", f"{BASE}/{HANDLE}/delete", {"where": {"k": 1}, "limit": 3}),
    ("POST", f"{BASE}/{HANDLE}/delete", {"where_document": {"$regex": "a"}}),
]


@pytest.mark.parametrize(("method", "path", "body"), UNKNOWABLE)
def test_what_only_the_server_can_tell_is_refused(method: str, path: str, body: Any):
    with pytest.raises(Refused):
        told("chroma", method, path, body)


@pytest.mark.parametrize(
    ("act", "body"),
    [
        ("add", b'{"ids": ["a'),
        ("add", {"ids": ["a", "b"], "embeddings": [[1]]}),
        ("add", {"ids": ["a"], "embeddings": ["no base64!"]}),
        ("add", {"ids": ["a"], "embeddings": ["AAA="]}),
        ("delete", {}),
        ("delete", {"where": {"k": {"$no": 1}}}),
    ],
)
def test_what_the_server_would_not_take_changes_nothing(act: str, body: Any):
    with pytest.raises(Malformed):
        records(act, body)


def test_the_recorded_writes_are_read():
    seen: set[str] = set()
    for exchange in recorded("chroma"):
        if CHROMA.written(exchange.request) is not None:
            seen |= {type(change.write).__name__ for change in CHROMA.changes(CHROMA.read(exchange.request))}
    assert seen >= {"Upsert", "PutPayload", "Delete", "Create"}


def test_a_collection_made_without_dimensions_is_searched_by_the_distance_it_was_made_with(tmp_path: Path):
    writes = [
        ("POST", BASE, {"name": "docs"}),
        ("POST", f"{BASE}/{HANDLE}/add", {"ids": ["a", "b"], "embeddings": [[3, 4], [0, 1]]}),
    ]
    for apart in (True, False):
        folder = tmp_path / f"docs-{apart}"
        folder.mkdir()
        collection = Collection.open(folder, create=True)
        changes = [CHROMA.changes(CHROMA.read(request(*each))) for each in writes]
        for together in changes if apart else [changes[0] + changes[1]]:
            collection.write([change.write for change in together])
        assert str(collection.distance) == "euclid"
        assert [(hit.id, hit.score) for hit in collection.search([0.0, 0.0], 2)] == [("b", 1.0), ("a", 5.0)]
        collection.close()
