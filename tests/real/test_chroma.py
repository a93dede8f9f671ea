"""chromadb's own client through the running sidecar: its own server answers, and when it is killed the local tier."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import chromadb
import httpx
import numpy as np
import pytest
from chromadb.errors import InternalError, InvalidArgumentError

from tests.dialects.recorded_exchanges import request
from tests.kit.chroma_service import ChromaService
from tests.kit.processes import Sidecar, eventually
from understudy.indexes.collection import Collection
from understudy.indexes.points import Point
from understudy.indexes.snapshot import write_snapshot
from understudy.proxy.asks import RetrieveAsk
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.knowledge import collections_folder
from understudy.proxy.tiers.reading import read

pytestmark = pytest.mark.real

SPACE = "toy-space"
POLICIES = """\
server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}"}
defaults:
  breaker: {enabled: false}
  retry: {base_s: 0.001}
routes:
  - name: chroma
    match: {prefix: /api/v2}
    dialect: chroma
    space: toy-space
    cache: {enabled: false}
    tiers:
      - {kind: upstream, name: chroma, url: "${CHROMA}", ramp: {enabled: false}}
      - kind: local
"""
COUNT = 300
DICE = np.random.default_rng(7)
VECTORS = DICE.normal(size=(COUNT, 16)).astype(np.float32)
IDS = [f"id-{n:03}" for n in range(COUNT)]
WORDS = ("alpha", "Beta", "gamma 5%", "delta_x", "é")
METADATAS: list[dict[str, Any]] = [
    {"n": n % 7, "s": WORDS[n % 5], "f": n / 4, "even": n % 2 == 0} if n % 11 else {"only": "this"}
    for n in range(COUNT)
]
DOCUMENTS = [f"Document {n} of {WORDS[n % 5]}" for n in range(COUNT)]
WHERE: list[dict[str, Any]] = [
    {"n": 3},
    {"n": {"$ne": 3}},
    {"n": {"$gt": 2.5}},
    {"f": {"$lte": 10}},
    {"f": 10},
    {"even": True},
    {"even": {"$ne": True}},
    {"n": True},
    {"s": {"$in": ["alpha", "é"]}},
    {"s": {"$nin": ["alpha", "é"]}},
    {"s": "beta"},
    {"missing": {"$ne": 1}},
    {"only": "this"},
    {"$and": [{"n": {"$gte": 2}}, {"$or": [{"even": False}, {"s": "Beta"}]}]},
]
WHERE_DOCUMENT: list[dict[str, Any]] = [
    {"$contains": "alpha"},
    {"$contains": "beta"},
    {"$contains": "5%"},
    {"$contains": "a_x"},
    {"$not_contains": "1"},
    {"$and": [{"$contains": "Document 1"}, {"$not_contains": "é"}]},
]


class Deployed(NamedTuple):
    sidecar: Sidecar
    chroma: ChromaService

    def client(self) -> Any:
        return chromadb.HttpClient(host="127.0.0.1", port=self.sidecar.port)


def stored(state: Path, name: str, distance: str) -> None:
    """A local collection with the points that the database has."""
    points = [
        Point(point_id, vector, metadata, text)
        for point_id, vector, metadata, text in zip(IDS, VECTORS, METADATAS, DOCUMENTS, strict=True)
    ]
    write_snapshot(collections_folder(state) / name, points, space=SPACE, dimensions=16, distance=distance)


@pytest.fixture
def deployed(made_state: Path, tmp_path: Path, folder: Path) -> Iterator[Deployed]:
    state = tmp_path / "state"
    for name, distance in (("docs", "cosine"), ("flat", "euclid"), ("dots", "dot")):
        stored(state, name, distance)
    (folder / "p.yaml").write_text(POLICIES)
    with ChromaService(tmp_path / "chroma") as chroma:
        models = made_state / "models"
        with Sidecar(folder, state, env={"CHROMA": chroma.url}, models=models) as sidecar:
            yield Deployed(sidecar, chroma)


def filled(client: Any, name: str, space: str) -> Any:
    collection = client.get_or_create_collection(name, metadata={"hnsw:space": space}, embedding_function=None)
    collection.add(ids=IDS, embeddings=VECTORS, metadatas=METADATAS, documents=DOCUMENTS)
    return collection


def answers(collection: Any) -> list[Any]:
    """All that the test compares, asked of whoever answers now."""
    asked = [VECTORS[3] + 0.01, VECTORS[9] - 0.02]
    everything = ["documents", "metadatas", "distances", "embeddings"]
    found = [collection.query(query_embeddings=asked, n_results=7, include=everything), collection.count()]
    found += [collection.query(query_embeddings=asked[:1], n_results=9, where=where) for where in WHERE]
    found += [collection.query(query_embeddings=asked[:1], where_document=where) for where in WHERE_DOCUMENT]
    found += [collection.get(where=where) for where in WHERE]
    found += [collection.get(ids=["id-007", "id-003", "nobody"]), collection.get(limit=5, offset=10)]
    found += [collection.query(query_embeddings=asked[:1], ids=["id-001", "id-009"], n_results=5)]
    return found


def same(one: Any, other: Any) -> None:
    """Equal, but for the last digits of what was computed."""
    if isinstance(one, Mapping):
        assert one.keys() == other.keys()
        for key, value in cast("Mapping[str, Any]", one).items():
            if key not in ("distances", "embeddings") or value is None:
                assert value == other[key], key
            else:
                assert np.allclose(np.array(value), np.array(other[key]), rtol=1e-4, atol=2e-5), key
    else:
        assert one == other


@pytest.mark.parametrize(("name", "space"), [("docs", "cosine"), ("flat", "l2"), ("dots", "ip")])
def test_a_killed_chroma_is_answered_for_with_the_same_points(deployed: Deployed, name: str, space: str):
    client = deployed.client()
    collection = filled(client, name, space)
    before = answers(collection)
    deployed.chroma.kill()
    after = answers(collection)
    assert len(before) == len(after) == 2 + 2 * len(WHERE) + len(WHERE_DOCUMENT) + 3
    for one, other in zip(before, after, strict=True):
        same(one, other)
    deployed.chroma.start()
    collection.delete(ids=IDS[:100])
    # until it is seen to be well again, the local collection answers, which nobody has told
    eventually(lambda: collection.count() == COUNT - 100)


def test_an_application_that_starts_while_chroma_is_away_finds_its_collection_by_the_same_id(deployed: Deployed):
    identity = filled(deployed.client(), "docs", "cosine").id
    deployed.chroma.kill()
    deployed.sidecar.stop()
    deployed.sidecar.start()
    client = deployed.client()
    assert client.heartbeat() > 0
    assert {each.name for each in client.list_collections()} >= {"docs", "flat", "dots"}
    for found in (client.get_collection("docs"), client.get_or_create_collection("docs")):
        assert found.id == identity
        assert found.query(query_embeddings=[VECTORS[3]], n_results=1)["ids"] == [["id-003"]]
    # one that Chroma never had, as far as anybody saw, has an id all the same
    assert isinstance(client.get_collection("flat").id, uuid.UUID)
    assert client.get_collection("flat").count() == COUNT


def refusals(collection: Any, client: Any) -> Sequence[Any]:
    return (
        lambda: collection.add(ids=["new"], embeddings=[VECTORS[0]]),
        lambda: collection.query(query_embeddings=[VECTORS[0]], where_document={"$regex": "^D"}),
        lambda: client.get_collection("nobody has this"),
        lambda: client.create_collection("another"),
    )


def test_what_only_the_database_can_do_fails_while_it_is_away_in_its_own_words(deployed: Deployed):
    client = deployed.client()
    collection = filled(client, "docs", "cosine")
    deployed.chroma.kill()
    for refused in refusals(collection, client):
        with pytest.raises(InternalError):
            refused()
    with pytest.raises(InvalidArgumentError, match="16"):
        collection.query(query_embeddings=[[1.0, 2.0]])


def test_writes_applied_to_a_local_collection_leave_what_they_leave_in_chroma(tmp_path: Path):
    dialect = DIALECTS["chroma"]
    with ChromaService(tmp_path / "chroma") as chroma, httpx.Client(base_url=chroma.url, timeout=60) as http:
        base = "/api/v2/tenants/default_tenant/databases/default_database/collections"
        handle = http.post(base, json={"name": "docs"}).json()["id"]
        (tmp_path / "docs").mkdir()
        local = Collection.open(tmp_path / "docs", create=True)
        for act, body in CHANGES:
            assert http.post(f"{base}/{handle}/{act}", json=body).status_code in (200, 201)
            asked = request("POST", f"{base}/{handle}/{act}", body)
            local.write([change.write for change in dialect.changes(dialect.read(asked))])
            everything = {"include": ["documents", "metadatas", "embeddings"]}
            ask = dialect.ask(dialect.read(request("POST", f"{base}/{handle}/get", everything)))
            assert isinstance(ask, RetrieveAsk)
            ours = json.loads(dialect.retrieved(ask, read(local, ask), 0.0).body)
            theirs = http.post(f"{base}/{handle}/get", json=everything).json()
            assert _by_id(ours) == _by_id(theirs), (act, body)
        local.close()


def _by_id(told: Any) -> dict[str, Any]:
    columns = (told["documents"], told["metadatas"], told["embeddings"])
    return {each: rest for each, *rest in zip(told["ids"], *columns, strict=True)}


CHANGES: list[tuple[str, Any]] = [
    (
        "add",
        {
            "ids": ["a", "b"],
            "embeddings": [[1, 0], [0, 1]],
            "metadatas": [{"k": 1, "s": "x"}, None],
            "documents": ["doc a", None],
        },
    ),
    ("add", {"ids": ["a", "c"], "embeddings": ["AAAQQQAAEEE=", "AACgQAAAoEA="], "metadatas": [{"z": 1}, {"z": 2}]}),
    ("upsert", {"ids": ["a", "d"], "embeddings": [[2, 2], [4, 4]], "metadatas": [{"t": 5}, {"t": 6}]}),
    (
        "upsert",
        {"ids": ["a", "e", "e"], "embeddings": [[7, 7], [8, 8], [9, 9]], "metadatas": [None, {"m": 2}, {"n": 3}]},
    ),
    ("update", {"ids": ["a", "nobody"], "metadatas": [{"k": None, "q": 1.5}, {"q": 1}], "documents": ["new", "x"]}),
    ("update", {"ids": ["c"], "embeddings": [[6, 6]]}),
    ("delete", {"ids": ["b", "nobody"]}),
    ("delete", {"ids": ["a", "d"], "where": {"t": 6}}),
    ("delete", {"where_document": {"$contains": "new"}}),
]
