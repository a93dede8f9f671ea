"""The official clients through the running sidecar, whose embedder is of another space than the local model."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from tests.kit.openai_service import turned
from tests.kit.processes import OpenAIService, QdrantService, Sidecar, eventually
from understudy.indexes.library import Library
from understudy.proxy.knowledge import KNOWLEDGE, collections_folder, models_folder

pytestmark = pytest.mark.real

SPACE = "far-embed-3"
DIMENSIONS = 1536
QUESTIONS = (
    "What does the circuit breaker do when a probe fails?",
    "How do I rotate the certificate of the sidecar?",
    "Why is a write with a handle refused?",
)


class Deployed:
    """The sidecar, and stand-ins for OpenAI and Qdrant, whose vectors are of a space of their own."""

    def __init__(self, state: Path) -> None:
        cache = str(models_folder(state))
        self.openai = OpenAIService("--model-cache", cache, "--turned", str(DIMENSIONS))
        self.qdrant = QdrantService()
        self.sidecar = Sidecar(
            None,
            state,
            env={
                "OPENAI_API_KEY": "sk-test-not-a-real-key",
                "OPENAI_UPSTREAM_URL": self.openai.url,
                "OPENAI_EMBEDDING_SPACE": SPACE,
                "QDRANT_URL": self.qdrant.url,
                "QDRANT_SPACE": SPACE,
            },
        )
        self.points, _ = Library(collections_folder(state)).open(KNOWLEDGE).scroll(None, 10_000, with_vectors=True)

    def fill(self) -> None:
        client = QdrantClient(self.qdrant.url, timeout=60)
        params = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
        client.create_collection(KNOWLEDGE, vectors_config=params)
        import numpy as np

        vectors = turned(np.stack([point.vector for point in self.points if point.vector is not None]), DIMENSIONS)
        client.upsert(
            KNOWLEDGE,
            [
                models.PointStruct(id=point.id, vector=vector.tolist(), payload=point.payload)
                for point, vector in zip(self.points, vectors, strict=True)
            ],
        )
        client.close()

    def ai(self) -> OpenAI:
        return OpenAI(base_url=self.sidecar.url + "/v1", api_key="unused", max_retries=0)

    def db(self) -> QdrantClient:
        return QdrantClient(self.sidecar.url, timeout=60)

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.sidecar.admin_url + "/status", timeout=30) as answer:
            return json.load(answer)["spaces"]

    def metrics(self) -> str:
        with urllib.request.urlopen(self.sidecar.admin_url + "/metrics", timeout=30) as answer:
            return answer.read().decode()


@pytest.fixture
def deployed(state: Path) -> Iterator[Deployed]:
    made = Deployed(state)
    with ExitStack() as stack:
        for each in (made.openai, made.qdrant):
            stack.enter_context(each)
        made.fill()
        stack.enter_context(made.sidecar)
        yield made


def embedded(ai: OpenAI, text: str, **more: Any) -> tuple[str, str, list[float]]:
    """(source, space header, vector) of a text."""
    raw = ai.embeddings.with_raw_response.create(model="m", input=text, **more)
    vector = raw.parse().data[0].embedding
    return raw.headers["x-understudy-source"], raw.headers.get("x-understudy-space", ""), vector


def found(db: QdrantClient, vector: list[float]) -> list[Any]:
    return [point.id for point in db.query_points(KNOWLEDGE, query=vector, limit=10).points]


def test_the_embedder_dies_handles_are_searched_here_and_it_returns(deployed: Deployed):
    ai, db = deployed.ai(), deployed.db()
    source, _, vector = embedded(ai, QUESTIONS[0])
    assert (source, len(vector)) == ("openai", DIMENSIONS)
    by_primary = {text: found(db, embedded(ai, text)[2]) for text in QUESTIONS}
    eventually(lambda: deployed.status()["ledger"]["entries"] >= len(QUESTIONS))
    assert not deployed.status()["handles_about"]

    deployed.openai.kill()
    handles: dict[str, list[float]] = {}
    for text in QUESTIONS:
        source, space, handle = embedded(ai, text)
        assert (source, space, len(handle)) == ("local-embed", f"handle; of=all-MiniLM-L6-v2; for={SPACE}", DIMENSIONS)
        # base64 and floats carry the same handle
        assert embedded(ai, text, encoding_format="float")[2] == handle
        handles[text] = handle
    for text, handle in handles.items():
        assert len(set(found(db, handle)) & set(by_primary[text])) >= 5
        length = sum(x * x for x in handle) ** 0.5
        assert found(db, [x / length for x in handle]) == found(db, handle)
    with pytest.raises(openai.APIStatusError) as bulk:
        ai.embeddings.create(model="m", input=[f"document {n}" for n in range(20)])
    assert "poison" in bulk.value.message
    with pytest.raises(UnexpectedResponse) as refused:
        db.upsert(KNOWLEDGE, [models.PointStruct(id=1, vector=handles[QUESTIONS[0]], payload={})])
    assert refused.value.status_code == 503

    # the database dies as well: handles and the primary's own vectors are both answered, each in its space
    deployed.qdrant.kill()
    assert found(db, handles[QUESTIONS[1]])
    assert len(set(found(db, vector)) & set(by_primary[QUESTIONS[0]])) >= 5
    with pytest.raises(UnexpectedResponse):
        found(db, turned_noise())

    deployed.qdrant.start()
    deployed.fill()
    deployed.openai.start()
    eventually(lambda: embedded(ai, "is it back?")[0] == "openai")
    eventually(lambda: found_by(deployed, embedded(ai, QUESTIONS[2])[2]) == "qdrant")
    # handles already given out go on working, and still no primary sees one
    for text, handle in handles.items():
        assert len(set(found(db, handle)) & set(by_primary[text])) >= 5
        assert found_by(deployed, handle) == "local-index"
    text = deployed.metrics()
    assert 'understudy_handles_served_total{how="write_refused",route="retrieval"} 1.0' in text
    assert 'understudy_fallback_unavailable_total{reason="bulk",route="embeddings"} 1.0' in text
    db.close()


def turned_noise() -> list[float]:
    """A vector of the right length that nobody has handed out."""
    import numpy as np

    return np.random.default_rng(9).normal(size=DIMENSIONS).astype(np.float32).tolist()


def found_by(deployed: Deployed, vector: list[float]) -> str:
    """Who answers a search."""
    request = urllib.request.Request(
        f"{deployed.sidecar.url}/collections/{KNOWLEDGE}/points/query",
        data=json.dumps({"query": vector, "limit": 3}).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.headers["x-understudy-source"]


def test_a_handle_given_before_a_restart_is_known_for_one_after_it(deployed: Deployed):
    ai = deployed.ai()
    embedded(ai, QUESTIONS[0])
    eventually(lambda: bool(deployed.status()["dimensions"]))
    deployed.openai.kill()
    handle = embedded(ai, QUESTIONS[0])[2]
    eventually(lambda: (deployed.sidecar.state / "spaces.json").exists())
    deployed.sidecar.stop()
    deployed.sidecar.start()
    assert deployed.status()["handles_about"]
    assert found_by(deployed, handle) == "local-index"
    # and how long its vectors must be is known as well
    assert len(embedded(deployed.ai(), "another")[2]) == DIMENSIONS
