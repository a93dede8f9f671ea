"""Milvus and Weaviate by HTTP, as whoever does not use their gRPC clients asks them, alive, failing in a 200 and dead.

Their clients of today search by gRPC only, so the requests are those of their manuals, sent by a plain HTTP client.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from tests.dialects.recorded_exchanges import recorded
from tests.kit.acts import answer, reset
from tests.kit.fake_upstream import Hosted, in_thread
from tests.kit.processes import Sidecar, eventually
from understudy.indexes.points import Point
from understudy.indexes.snapshot import write_snapshot
from understudy.proxy.knowledge import collections_folder

pytestmark = pytest.mark.real

POLICIES = """\
server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}"}
defaults:
  breaker: {enabled: false}
  # a database that was dead a moment ago is asked all the same: whether it is well is another test's
  ramp: {enabled: false}
  retry: {attempts: 1}
routes:
  - name: milvus
    match: {prefix: /v2/vectordb}
    dialect: milvus
    space: toy
    tiers: [{kind: upstream, name: up, url: "${DATABASE}"}, {kind: local, collections: {docs: numbered}}]
  - name: weaviate
    match: {prefix: /v1}
    dialect: weaviate
    space: toy
    tiers: [{kind: upstream, name: up, url: "${DATABASE}"}, {kind: local, collections: {Docs: named}}]
"""
VECTORS = np.random.default_rng(5).normal(size=(120, 8)).astype(np.float32)
WORDS = ("apples", "harbour", "lantern", "quartz")
TEXTS = [f"Passage {n} about {WORDS[n % 4]}." for n in range(120)]
UUIDS = [str(uuid.UUID(int=n + 1)) for n in range(120)]
MILVUS = {each.call: each for each in recorded("milvus")}
WEAVIATE = {each.call: each for each in recorded("weaviate")}


class Deployed(NamedTuple):
    sidecar: Sidecar
    database: Hosted

    def milvus(self, act: str, **body: Any) -> httpx.Response:
        return httpx.post(self.sidecar.url + "/v2/vectordb/" + act, json={"collectionName": "docs", **body}, timeout=30)

    def graphql(self, query: str) -> httpx.Response:
        return httpx.post(self.sidecar.url + "/v1/graphql", json={"query": query}, timeout=30)


@pytest.fixture(scope="module")
def deployed(made_state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    state, folder = tmp_path_factory.mktemp("state"), tmp_path_factory.mktemp("policies")
    for name, ids in (("numbered", list(range(120))), ("named", UUIDS)):
        points = [Point(ids[n], VECTORS[n], {"text": TEXTS[n], "k": n % 5}, TEXTS[n]) for n in range(120)]
        write_snapshot(collections_folder(state) / name, points, space="toy", dimensions=8)
    (folder / "p.yaml").write_text(POLICIES)
    with in_thread() as database:
        models = made_state / "models"
        with Sidecar(folder, state, env={"DATABASE": database.url}, models=models) as sidecar:
            yield Deployed(sidecar, database)


def nearest(count: int, kept: int | None = None) -> list[int]:
    """The points nearest to the third, by brute force."""
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    order = np.argsort(-(unit @ unit[3]), kind="stable")
    return [int(n) for n in order if kept is None or n % 5 == kept][:count]


def source_of(response: httpx.Response) -> str:
    return response.headers["x-understudy-source"]


# --- Milvus --------------------------------------------------------------------------------------------------------


def test_a_living_milvus_answers_for_itself(deployed: Deployed):
    deployed.database.always(answer(200, body=MILVUS["entities/search"].json))
    found = deployed.milvus("entities/search", data=[VECTORS[3].tolist()], limit=3)
    assert (source_of(found), found.json()) == ("up", MILVUS["entities/search"].json)


@pytest.mark.parametrize("dead", [reset(), answer(200, body={"code": 2, "message": "service unavailable"})])
def test_a_dead_milvus_and_one_that_says_so_in_a_200_are_stood_in_for(deployed: Deployed, dead: Any):
    deployed.database.always(dead)
    vector = VECTORS[3].tolist()
    found = deployed.milvus("entities/search", data=[vector], annsField="vector", limit=4, outputFields=["k"])
    assert (source_of(found), found.json()["code"]) == ("local-index", 0)
    rows = found.json()["data"]
    assert [row["id"] for row in rows] == nearest(4)
    assert rows[0] == {"id": 3, "distance": pytest.approx(1.0), "k": 3}
    narrow = deployed.milvus("entities/search", data=[vector], limit=4, filter="k == 2 and id < 100")
    assert [row["id"] for row in narrow.json()["data"]] == [n for n in nearest(120, 2) if n < 100][:4]
    got = deployed.milvus("entities/get", id=[7, 8], outputFields=["text"]).json()["data"]
    assert got == [{"id": 7, "text": TEXTS[7]}, {"id": 8, "text": TEXTS[8]}]
    counted = deployed.milvus("entities/query", filter="k in [0, 1]", outputFields=["count(*)"])
    assert counted.json()["data"] == [{"count(*)": 48}]
    page = deployed.milvus("entities/query", filter="k == 0", limit=2, offset=1, outputFields=["k"]).json()["data"]
    assert page == [{"id": 5, "k": 0}, {"id": 10, "k": 0}]
    listed = httpx.post(deployed.sidecar.url + "/v2/vectordb/collections/list", json={}, timeout=30).json()
    assert "docs" in listed["data"]
    assert deployed.milvus("collections/has").json()["data"] == {"has": True}


def test_what_a_caller_of_milvus_did_wrong_goes_back_as_it_came(deployed: Deployed):
    said = {"code": 1100, "message": "failed to create query plan: cannot parse expression"}
    deployed.database.always(answer(200, body=said))
    found = deployed.milvus("entities/search", data=[VECTORS[3].tolist()], limit=3)
    assert (source_of(found), found.json()) == ("up", said)


def test_what_would_be_guessed_of_milvus_fails_in_its_own_words(deployed: Deployed):
    deployed.database.always(reset())
    for act, body in (
        ("entities/search", {"data": [VECTORS[3].tolist()], "filter": "text_match(text, 'a')"}),
        ("entities/query", {"filter": "absent != 1"}),
        ("entities/insert", {"data": [{"id": 1, "vector": [0.0] * 8}]}),
        ("collections/describe", {}),
    ):
        failed = deployed.milvus(act, **body)
        assert failed.status_code in (502, 503), act
        assert failed.json().keys() == {"code", "message"}
    short = deployed.milvus("entities/search", data=[[1.0]], limit=3)
    assert (short.status_code, short.json()["code"]) == (400, 1100)


def test_a_write_that_milvus_could_not_take_goes_back_as_it_came_and_counts(deployed: Deployed):
    said = {"code": 9, "message": "quota exceeded[reason=disk quota exhausted]"}
    deployed.database.always(answer(200, body=said))
    deployed.database.heard.clear()
    before = overloaded(deployed)
    written = deployed.milvus("entities/insert", data=[{"id": 1, "vector": [0.0] * 8}])
    assert (written.status_code, written.json(), len(deployed.database.heard)) == (200, said, 1)
    eventually(lambda: overloaded(deployed) == before + 1)


def overloaded(deployed: Deployed) -> float:
    """How often Milvus was found overloaded, as the metrics have it."""
    text = httpx.get(deployed.sidecar.admin_url + "/metrics", timeout=30).text
    lines = [line for line in text.splitlines() if line.startswith("understudy_tier_outcomes_total")]
    return sum(float(line.rpartition(" ")[2]) for line in lines if "overloaded" in line and '"milvus"' in line)


# --- Weaviate ------------------------------------------------------------------------------------------------------


def near(arguments: str = "") -> str:
    vector = ", ".join(map(str, VECTORS[3].tolist()))
    return "nearVector: {vector: [" + vector + "]}" + arguments


def docs(response: httpx.Response) -> Any:
    return response.json()["data"]["Get"]["Docs"]


def test_a_living_weaviate_answers_for_itself(deployed: Deployed):
    exchange = WEAVIATE["GraphQL nearVector (docs)"]
    deployed.database.always(answer(200, body=exchange.json))
    found = deployed.graphql("{ Get { Docs(" + near(", limit: 2") + ") { text } } }")
    assert (source_of(found), found.json()) == ("up", exchange.json)


@pytest.mark.parametrize(
    "dead", [reset(), answer(200, body={"data": {"Get": {"Docs": None}}, "errors": [{"message": "shard not ready"}]})]
)
def test_a_dead_weaviate_and_one_that_says_so_in_a_200_are_stood_in_for(deployed: Deployed, dead: Any):
    deployed.database.always(dead)
    asked = "{ Get { Docs(" + near(", limit: 4") + ") { k _additional { id distance certainty } } } }"
    found = deployed.graphql(asked)
    assert source_of(found) == "local-index"
    assert [row["_additional"]["id"] for row in docs(found)] == [UUIDS[n] for n in nearest(4)]
    assert docs(found)[0]["_additional"]["certainty"] == pytest.approx(1.0, abs=1e-5)
    where = ', where: {path: ["k"], operator: Equal, valueInt: 2}, limit: 4'
    narrow = deployed.graphql("{ Get { Docs(" + near(where) + ") { _additional { id } } } }")
    assert [row["_additional"]["id"] for row in docs(narrow)] == [UUIDS[n] for n in nearest(4, 2)]
    worded = deployed.graphql('{ Get { Docs(bm25: {query: "lantern", properties: ["text"]}, limit: 3) { text } } }')
    assert {row["text"].rpartition(" ")[2] for row in docs(worded)} == {"lantern."}
    both = '{ Get { Docs(hybrid: {query: "lantern", ' + near()[len("nearVector: {") : -1] + "}, limit: 3) { text } } }"
    assert len(docs(deployed.graphql(both))) == 3
    counted = deployed.graphql("{ Aggregate { Docs { meta { count } } } }")
    assert counted.json()["data"]["Aggregate"]["Docs"] == [{"meta": {"count": 120}}]
    listed = httpx.get(deployed.sidecar.url + "/v1/objects?class=Docs&limit=2&offset=1", timeout=30).json()
    assert [each["id"] for each in listed["objects"]] == UUIDS[1:3]


def test_a_client_can_connect_to_a_dead_weaviate_and_get_an_object(deployed: Deployed):
    deployed.database.always(reset())
    url = deployed.sidecar.url
    assert httpx.get(url + "/v1/.well-known/openid-configuration", timeout=30).status_code == 404
    assert httpx.get(url + "/v1/meta", timeout=30).json()["version"]
    one = httpx.get(url + f"/v1/objects/Docs/{UUIDS[3]}?include=vector", timeout=30).json()
    assert (one["class"], one["properties"]["text"]) == ("Docs", TEXTS[3])
    assert one["vector"] == pytest.approx(VECTORS[3].tolist(), abs=1e-6)


def test_what_would_be_guessed_of_weaviate_fails_in_its_own_words(deployed: Deployed):
    deployed.database.always(reset())
    text = '{path: ["text"], operator: Equal, valueText: "passage"}'
    for query in (
        '{ Get { Docs(nearText: {concepts: ["a"]}, limit: 1) { text } } }',
        "{ Get { Docs(limit: 1, where: " + text + ") { text } } }",
    ):
        failed = deployed.graphql(query)
        assert failed.status_code in (502, 503)
        assert failed.json()["error"][0]["message"]
    written = httpx.post(deployed.sidecar.url + "/v1/objects", json={"class": "Docs"}, timeout=30)
    assert written.status_code in (502, 503)
    short = deployed.graphql("{ Get { Docs(nearVector: {vector: [1.0]}, limit: 1) { text } } }")
    assert short.status_code == 400


def test_a_query_that_weaviate_does_not_take_goes_back_as_it_came(deployed: Deployed):
    said = {"data": None, "errors": [{"message": 'Cannot query field "nothing" on type "Docs".', "path": None}]}
    deployed.database.always(answer(200, body=said))
    found = deployed.graphql("{ Get { Docs(limit: 1) { nothing } } }")
    assert (source_of(found), found.json()) == ("up", said)
