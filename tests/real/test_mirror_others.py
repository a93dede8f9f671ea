"""Mirrors of Elasticsearch, OpenSearch, Pinecone and Milvus, asked before and after the server dies.

They are asked by the official clients, but for Milvus', which speak gRPC: that by its REST API.
Copied by the sidecar or the command, compared by the command, followed through writes. The servers are fakes that page
as manuals say.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import elasticsearch.helpers
import httpx
import numpy as np
import opensearchpy.helpers
import pytest
from elasticsearch import Elasticsearch
from opensearchpy import OpenSearch
from pinecone import Pinecone

from tests.kit.elastic_service import Cluster, FakeElastic
from tests.kit.pinecone_service import DIMENSIONS as PINECONE_DIMENSIONS
from tests.kit.processes import COMES_S_MAX, MilvusService, PineconeService, Sidecar, eventually, points_in

pytestmark = pytest.mark.real

COUNT, DIMENSIONS = 250, 8
VECTORS = np.random.default_rng(21).normal(size=(COUNT + 10, DIMENSIONS)).astype(np.float32)
WIDE = np.random.default_rng(22).normal(size=(COUNT + 10, PINECONE_DIMENSIONS)).astype(np.float32)
BEYOND = 2**53
"""Where numbers begin that a double does not hold."""
WORDS = ("apples", "harbour", "lantern", "quartz")
POLICIES = """\
server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}"}
local: {knowledge: false}
defaults:
  breaker: {enabled: false}
  retry: {base_s: 0.001}
routes:
  - name: database
    match: {prefix: /db, strip: true}
    dialect: %s
    space: toy
    cache: {enabled: false}
    mirror: {text: [text], settle_s: 0.2, check_s: 1, points_per_s: 100000%s}
    tiers:
      - {kind: upstream, name: database, url: "${DATABASE}"}
      - {kind: local}
"""


def run_sync(policies: Path, env: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """`understudy index sync database`, to its end, whatever that is."""
    command = [sys.executable, "-m", "understudy.proxy.cli", "index", "sync", "database", *words]
    return subprocess.run(
        [*command, "--policies", str(policies)],
        env=dict(env),
        capture_output=True,
        text=True,
        timeout=COMES_S_MAX,
        check=False,
    )


class Deployed:
    """A sidecar with one mirrored route, `/db`, and its database."""

    def __init__(self, sidecar: Sidecar, policies: Path, database: str) -> None:
        self.sidecar = sidecar
        self.policies = policies
        self.database = database

    @property
    def url(self) -> str:
        return self.sidecar.url + "/db"

    def copies(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.sidecar.admin_url + "/status", timeout=30) as answer:
            return json.load(answer)["routes"][0].get("mirror", {}).get("copies", {})

    def in_step(self, name: str, count: int) -> bool:
        copy = self.copies().get(name, {})
        if copy.get("state") != "whole" or copy["points_behind"]:
            return False
        return points_in(self.sidecar.state, name) == count

    def keeps(self) -> bool:
        """Whether the sidecar keeps the copies, and the command would only ask it to."""
        with urllib.request.urlopen(self.sidecar.admin_url + "/status", timeout=30) as answer:
            return json.load(answer)["routes"][0].get("mirror", {}).get("keeper", False)

    def synced(self, *words: str) -> str:
        """What `understudy index sync` says, asking the sidecar that runs."""
        done = run_sync(self.policies, {**self.sidecar.env, "DATABASE": self.database}, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout


def deploy(stack: ExitStack, tmp_path: Path, models: Path, dialect: str, database: str, more: str = "") -> Deployed:
    folder = tmp_path / "policies"
    folder.mkdir(exist_ok=True)
    (folder / "p.yaml").write_text(POLICIES % (dialect, more))
    sidecar = Sidecar(folder, tmp_path / "state", env={"DATABASE": database}, models=models)
    return Deployed(stack.enter_context(sidecar), folder, database)


def document(n: int) -> dict[str, Any]:
    return {"vec": VECTORS[n].tolist(), "text": f"Passage {n} about {WORDS[n % 4]}.", "k": n % 5}


def nearest(rows: np.ndarray, to: np.ndarray, gone: set[int], count: int, k: int = 5) -> list[str]:
    """The ids of the nearest rows by cosine, by brute force."""
    unit = rows[:count] / np.linalg.norm(rows[:count], axis=1, keepdims=True)
    return [f"p-{n:03}" for n in np.argsort(-(unit @ to), kind="stable").tolist() if n not in gone][:k]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


@pytest.mark.parametrize("dialect", ["elasticsearch", "opensearch"])
def test_a_dead_cluster_is_answered_for_with_the_documents_it_had_and_the_writes_that_passed(
    dialect: str, stack: ExitStack, made_state: Path, tmp_path: Path
):
    fake = FakeElastic(opensearch=dialect == "opensearch")
    kind = {"type": "dense_vector", "dims": DIMENSIONS, "index": True, "similarity": "cosine"}
    if dialect == "opensearch":
        kind = {"type": "knn_vector", "dimension": DIMENSIONS, "method": {"space_type": "cosinesimil"}}
    fields = {"vec": kind, "text": {"type": "text"}, "k": {"type": "integer"}}
    fake.make("docs", fields, {f"p-{n:03}": document(n) for n in range(COUNT)})
    cluster = Cluster(fake)
    stack.callback(cluster.kill)
    deployed = deploy(stack, tmp_path, made_state / "models", dialect, cluster.url, ", collections: [docs]")
    eventually(lambda: deployed.in_step("docs", COUNT))
    # one by one and as a bulk, through the client
    if dialect == "elasticsearch":
        client: Any = Elasticsearch(deployed.url, max_retries=0, request_timeout=60)
        client.index(index="docs", id=f"p-{COUNT:03}", document=document(COUNT))
        helpers: Any = elasticsearch.helpers
    else:
        client = OpenSearch(deployed.url, max_retries=0, timeout=60)
        client.index(index="docs", id=f"p-{COUNT:03}", body=document(COUNT))
        helpers = opensearchpy.helpers
    bulk = [{"_op_type": "index", "_index": "docs", "_id": f"p-{n:03}", **document(n)} for n in (COUNT + 1, COUNT + 2)]
    done, _ = helpers.bulk(client, [*bulk, {"_op_type": "delete", "_index": "docs", "_id": "p-003"}])
    assert done == 3
    eventually(lambda: deployed.in_step("docs", COUNT + 2))
    # and one past the sidecar, which the command finds
    del fake.documents["docs"]["p-004"]
    assert "docs: compared with the database" in deployed.synced("--collection", "docs")
    eventually(lambda: deployed.in_step("docs", COUNT + 1))
    cluster.kill()
    asked = VECTORS[COUNT] / np.linalg.norm(VECTORS[COUNT])
    knn = {"field": "vec", "query_vector": VECTORS[COUNT].tolist(), "k": 5, "num_candidates": 50}
    if dialect == "opensearch":
        by_vector: Any = {"query": {"knn": {"vec": {"vector": VECTORS[COUNT].tolist(), "k": 5}}}, "size": 5}
        found = client.search(index="docs", body=by_vector)
    else:
        found = client.search(index="docs", knn=knn, size=5)
    expected = nearest(VECTORS, asked, {3, 4}, COUNT + 3)
    assert [hit["_id"] for hit in found["hits"]["hits"]] == expected
    assert expected[0] == f"p-{COUNT:03}"
    words = client.search(index="docs", body={"query": {"match": {"text": "harbour 251"}}, "size": 1})
    assert [hit["_id"] for hit in words["hits"]["hits"]] == ["p-251"]
    assert words["hits"]["hits"][0]["_source"]["k"] == 251 % 5
    assert client.count(index="docs")["count"] == COUNT + 1


def test_a_dead_pinecone_is_answered_for_with_the_records_it_had_and_the_writes_that_passed(
    stack: ExitStack, made_state: Path, tmp_path: Path
):
    pinecone = stack.enter_context(PineconeService())
    direct = Pinecone(api_key="pk").Index(host=pinecone.url)
    direct.upsert(vectors=[record(n) for n in range(COUNT)], namespace="docs")
    deployed = deploy(stack, tmp_path, made_state / "models", "pinecone", pinecone.url)
    eventually(lambda: deployed.in_step("docs", COUNT))
    client = Pinecone(api_key="pk").Index(host=deployed.url)
    assert client.upsert(vectors=[record(COUNT), record(COUNT + 1)], namespace="docs").upserted_count == 2
    client.delete(ids=["p-003"], namespace="docs")
    eventually(lambda: deployed.in_step("docs", COUNT + 1))
    direct.delete(ids=["p-004"], namespace="docs")
    assert "docs: compared with the database" in deployed.synced("--collection", "docs")
    eventually(lambda: deployed.in_step("docs", COUNT))
    pinecone.kill()
    asked = WIDE[COUNT] / np.linalg.norm(WIDE[COUNT])
    found = client.query(vector=WIDE[COUNT].tolist(), top_k=5, namespace="docs", include_metadata=True)
    assert [match.id for match in found.matches] == nearest(WIDE, asked, {3, 4}, COUNT + 2)
    about = found.matches[0].metadata
    assert about is not None
    assert about["text"] == f"Passage {COUNT} about {WORDS[COUNT % 4]}."
    narrow = client.query(vector=WIDE[COUNT].tolist(), top_k=3, namespace="docs", filter={"k": {"$eq": 2}})
    assert all(int(match.id[2:]) % 5 == 2 for match in narrow.matches)
    assert client.fetch(ids=["p-003", "p-007"], namespace="docs").vectors.keys() == {"p-007"}


def record(n: int) -> dict[str, Any]:
    about = {"text": f"Passage {n} about {WORDS[n % 4]}.", "k": n % 5}
    return {"id": f"p-{n:03}", "values": WIDE[n].tolist(), "metadata": about}


def milvus(url: str, act: str, **body: Any) -> Any:
    """What a call by the REST API brings; it must be answered well."""
    told = httpx.post(f"{url}/v2/vectordb/{act}", json={"collectionName": "docs", **body}, timeout=30).json()
    assert told["code"] == 0, told
    return told["data"]


def row(n: int) -> dict[str, Any]:
    return {"id": BEYOND + n, "vector": VECTORS[n].tolist(), "text": f"Passage {n} about {WORDS[n % 4]}.", "k": n % 5}


def test_a_dead_milvus_is_answered_for_with_the_rows_it_had_and_the_writes_that_passed(
    stack: ExitStack, made_state: Path, tmp_path: Path
):
    service = stack.enter_context(MilvusService())
    direct = service.url
    milvus(direct, "collections/create", dimension=DIMENSIONS, metricType="COSINE")
    milvus(direct, "entities/insert", data=[row(n) for n in range(COUNT)])
    deployed = deploy(stack, tmp_path, made_state / "models", "milvus", direct, ", sync: by-hand")
    eventually(deployed.keeps)
    assert "docs: compared with the database" in deployed.synced("--collection", "docs")
    eventually(lambda: deployed.in_step("docs", COUNT))
    through = deployed.url
    milvus(through, "entities/insert", data=[row(COUNT), row(COUNT + 1)])
    milvus(through, "entities/upsert", data={**row(5), "text": "A lighthouse."})
    milvus(through, "entities/delete", filter=f"id in [{BEYOND + 3}]")
    eventually(lambda: deployed.in_step("docs", COUNT + 1))
    # and past the sidecar, which the command finds: a row less, one more, and one that says something else
    milvus(direct, "entities/delete", filter=f"id == {BEYOND + 4}")
    milvus(direct, "entities/upsert", data=[row(COUNT + 2), {**row(6), "text": "A windmill."}])
    assert "docs: compared with the database" in deployed.synced("--collection", "docs")
    eventually(lambda: deployed.in_step("docs", COUNT + 1))
    service.kill()
    asked = VECTORS[COUNT] / np.linalg.norm(VECTORS[COUNT])
    search = {"data": [VECTORS[COUNT].tolist()], "annsField": "vector", "limit": 5, "outputFields": ["text"]}
    found = milvus(through, "entities/search", **search)
    expected = nearest(VECTORS, asked, {3, 4}, COUNT + 3)
    assert [each["id"] - BEYOND for each in found] == [int(each[2:]) for each in expected]
    assert found[0]["text"] == f"Passage {COUNT} about {WORDS[COUNT % 4]}."
    got = milvus(through, "entities/get", id=[BEYOND + n for n in (3, 4, 5, 6, COUNT + 2)], outputFields=["text"])
    assert {each["id"] - BEYOND: each["text"] for each in got} == {
        5: "A lighthouse.",
        6: "A windmill.",
        COUNT + 2: row(COUNT + 2)["text"],
    }
    assert milvus(through, "entities/query", filter="k == 0", outputFields=["count(*)"]) == [{"count(*)": 51}]
