"""Writes with handles to the databases that are not Qdrant or Chroma: acknowledged, killed over, and stored as meant.

Elasticsearch, OpenSearch and Pinecone by their own clients; Milvus and Weaviate by HTTP, as their manuals have it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import elasticsearch.helpers
import httpx
import numpy as np
import opensearchpy.helpers
import pytest
from elasticsearch import ApiError, Elasticsearch
from openai import OpenAI
from opensearchpy import OpenSearch
from pinecone import Pinecone

from tests.kit.acts import answer
from tests.kit.elastic_service import Cluster, FakeElastic
from tests.kit.fake_upstream import Hosted, in_thread
from tests.kit.openai_service import turned
from tests.kit.processes import OpenAIService, PineconeService, Sidecar, embeddings_route, eventually
from understudy.models.embedder import load

pytestmark = pytest.mark.real

DIMENSIONS = 1536
TEXTS = [f"Passage {n} of the book about {about}." for n, about in enumerate(("apples", "harbours", "lanterns"))]
ROUTES = {
    "elasticsearch": ("/es", "ELASTIC", ""),
    "opensearch": ("/os", "OPEN", ""),
    "pinecone": ("/pc", "PINECONE", ", headers: {api-key: pk}"),
    "milvus": ("/mv", "MILVUS", ""),
    "weaviate": ("/wv", "WEAVIATE", ""),
}
HEAD = """\
server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}"}
local: {knowledge: false, provider: cpu}
defaults: {breaker: {open_s: 0.2}}
routes:
""" + embeddings_route("text-embedding-3-small")
ROUTE = """\
  - name: %s
    match: {prefix: %s, strip: true}
    dialect: %s
    space: text-embedding-3-small
    spaces: {handles_in_writes: queue}
    tiers:
      - {kind: upstream, name: database, url: "${%s}"%s}
      - {kind: local}
"""
UUIDS = [str(uuid.UUID(int=n + 1)) for n in range(3)]
OBJECTS = "/v1/objects"


class Site:
    """The sidecar, its embedder, which is away, and five databases."""

    def __init__(self, stack: ExitStack, folder: Path, tmp_path: Path, models: Path) -> None:
        self.openai = OpenAIService("--model-cache", str(models), "--turned", str(DIMENSIONS))
        self.elastic, self.open = FakeElastic(), FakeElastic(opensearch=True)
        clusters = [Cluster(self.elastic), Cluster(self.open)]
        for cluster, fake in zip(clusters, (self.elastic, self.open), strict=True):
            stack.callback(cluster.kill)
            fake.make("docs", {"vec": {"type": "dense_vector", "dims": DIMENSIONS}}, {})
        self.pinecone = stack.enter_context(PineconeService())
        self.milvus = stack.enter_context(in_thread(answer(200, body={"code": 0, "data": {"upsertCount": 1}})))
        self.weaviate = stack.enter_context(in_thread())
        one = answer(200, body={"class": "Docs", "id": UUIDS[0]})
        taken = {"class": "Docs", "result": {"status": "SUCCESS"}}
        several = answer(200, body=[{**taken, "id": each} for each in UUIDS[1:]])
        self.weaviate.respond = lambda heard: several if heard.target.endswith(b"/batch/objects") else one
        urls = [clusters[0].url, clusters[1].url, self.pinecone.url, self.milvus.url, self.weaviate.url]
        env = {"OPENAI": self.openai.url} | {name: url for (_, name, _), url in zip(ROUTES.values(), urls, strict=True)}
        routes = [ROUTE % (name, path, name, said, more) for name, (path, said, more) in ROUTES.items()]
        (folder / "p.yaml").write_text(HEAD + "".join(routes))
        self.sidecar = stack.enter_context(Sidecar(folder, tmp_path / "state", env=env, models=models))
        stack.callback(lambda: self.openai.child is not None and self.openai.stop())
        self.embedder = load(None, models, "cpu")

    def url(self, dialect: str) -> str:
        return self.sidecar.url + ROUTES[dialect][0]

    def handle(self, text: str) -> list[float]:
        client = OpenAI(base_url=self.sidecar.url + "/v1", api_key="unused", max_retries=0)
        raw = client.embeddings.with_raw_response.create(model="m", input=text)
        assert raw.headers["x-understudy-source"] == "local-embed"
        return raw.parse().data[0].embedding

    def is_true(self, text: str, vector: Any) -> bool:
        """Whether it is what the database's own embedder says of the text."""
        true = turned(self.embedder.embed([text], "query"), DIMENSIONS)[0]
        return len(vector) == DIMENSIONS and float(np.dot(np.asarray(vector), true)) > 0.995

    def waiting(self) -> list[Path]:
        return list((self.sidecar.state / "held").glob("*/*.write"))


@pytest.fixture
def site(made_state: Path, tmp_path: Path, folder: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack, folder, tmp_path, made_state / "models")


def bodies(database: Hosted) -> list[Any]:
    return [json.loads(heard.body) for heard in database.heard if heard.body]


def test_what_each_client_was_said_yes_to_is_stored_with_its_own_vectors_after_a_kill(site: Site):
    handles = [site.handle(text) for text in TEXTS]
    bulk = [
        {"_op_type": "index", "_index": "docs", "_id": f"p-{n}", "vec": handles[n], "text": TEXTS[n]} for n in (1, 2)
    ]
    first = {"vec": handles[0], "text": TEXTS[0]}
    elastic = Elasticsearch(site.url("elasticsearch"), max_retries=0, request_timeout=60)
    told = elastic.index(index="docs", id="p-0", document=first)
    assert (told["result"], told["_version"], told.meta.headers["x-understudy-tier"]) == ("created", -1, "queue")
    assert elasticsearch.helpers.bulk(elastic, bulk) == (2, [])
    opened: Any = OpenSearch(site.url("opensearch"), max_retries=0, timeout=60)
    assert opened.index(index="docs", id="p-0", body=first)["_seq_no"] == -2
    assert opensearchpy.helpers.bulk(opened, bulk) == (2, [])
    index = Pinecone(api_key="pk").Index(host=site.url("pinecone"))
    records = [{"id": f"p-{n}", "values": handles[n], "metadata": {"text": TEXTS[n]}} for n in range(3)]
    assert index.upsert(vectors=records, namespace="docs").upserted_count == 3
    rows = [{"id": n, "vector": handles[n], "text": TEXTS[n]} for n in range(3)]
    inserted = httpx.post(
        site.url("milvus") + "/v2/vectordb/entities/insert", json={"collectionName": "docs", "data": rows}, timeout=30
    )
    assert inserted.json() == {"code": 0, "cost": 0, "data": {"insertCount": 3, "insertIds": [0, 1, 2]}}
    things = [
        {"class": "Docs", "id": UUIDS[n], "vector": handles[n], "properties": {"text": TEXTS[n]}} for n in range(3)
    ]
    one = httpx.post(site.url("weaviate") + OBJECTS, json=things[0], timeout=30)
    assert (one.status_code, one.json()["id"]) == (200, UUIDS[0])
    several = httpx.post(site.url("weaviate") + "/v1/batch/objects", json={"objects": things[1:]}, timeout=30)
    assert [each["result"]["status"] for each in several.json()] == ["PENDING"] * 2

    site.sidecar.kill()
    assert len(site.waiting()) == 8
    assert (site.elastic.documents["docs"], site.open.documents["docs"]) == ({}, {})
    assert (bodies(site.milvus), bodies(site.weaviate)) == ([], [])
    site.sidecar.start()
    site.openai.start()
    eventually(lambda: not site.waiting())
    assert not list((site.sidecar.state / "held").glob("*/rejected/*"))
    for fake in (site.elastic, site.open):
        documents = fake.documents["docs"]
        assert {called: each["text"] for called, each in documents.items()} == {f"p-{n}": TEXTS[n] for n in range(3)}
        assert all(site.is_true(each["text"], each["vec"]) for each in documents.values())
    fetched = Pinecone(api_key="pk").Index(host=site.pinecone.url).fetch(ids=["p-0", "p-1", "p-2"], namespace="docs")
    assert all(site.is_true(TEXTS[int(called[2:])], each.values) for called, each in fetched.vectors.items())
    assert len(fetched.vectors) == 3
    (upserted,) = bodies(site.milvus)
    assert [heard.target for heard in site.milvus.heard if heard.body] == [b"/v2/vectordb/entities/upsert"]
    assert all(site.is_true(row["text"], row["vector"]) for row in upserted["data"])
    stored = [thing for body in bodies(site.weaviate) for thing in body.get("objects", [body])]
    assert [thing["id"] for thing in stored] == UUIDS
    assert all(site.is_true(thing["properties"]["text"], thing["vector"]) for thing in stored)


def test_what_only_the_database_can_answer_is_refused_to_be_repeated_in_its_own_words(site: Site):
    handle = site.handle(TEXTS[0])
    elastic = Elasticsearch(site.url("elasticsearch"), max_retries=0, request_timeout=60)
    for ask in (
        lambda: elastic.create(index="docs", id="p-0", document={"vec": handle}),
        lambda: elastic.index(index="docs", document={"vec": handle}),
        lambda: elastic.index(index="docs", id="p-0", document={"vec": handle}, if_seq_no=3, if_primary_term=1),
    ):
        with pytest.raises(ApiError) as refused:
            ask()
        assert (refused.value.status_code, refused.value.meta.headers["retry-after"]) == (503, "30")
        assert "in its database's stead" in str(refused.value)
    for dialect, path, body in (
        ("milvus", "/v2/vectordb/entities/insert", {"collectionName": "docs", "data": [{"vector": handle}]}),
        ("weaviate", OBJECTS, {"class": "Docs", "vector": handle}),
    ):
        refused_there = httpx.post(site.url(dialect) + path, json=body, timeout=30)
        assert (refused_there.status_code, refused_there.headers["retry-after"]) == (503, "30")
        assert "in the answer only" in refused_there.text
    assert site.waiting() == []
    assert site.elastic.documents["docs"] == {}
    assert bodies(site.milvus) + bodies(site.weaviate) == []
