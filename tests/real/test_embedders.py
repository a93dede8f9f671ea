"""Azure, Ollama, Cohere, TEI and Pinecone by their official clients, while the services behind live and die."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cohere
import httpx
import numpy as np
import ollama
import pytest
from huggingface_hub import InferenceClient
from openai import APIStatusError, AzureOpenAI
from pinecone import Pinecone
from pinecone.errors import PineconeError

from tests.kit.processes import EmbeddersService, PineconeService, Sidecar, eventually
from understudy.indexes.library import Library
from understudy.proxy.knowledge import KNOWLEDGE, collections_folder, models_folder

pytestmark = pytest.mark.real

REPOSITORY = Path(__file__).parents[2]
SPACE = "all-MiniLM-L6-v2"
TEXTS = ["What does the circuit breaker do when a probe fails?", "Support answers within one hour."]
SPACES = ("AZURE_EMBEDDING_SPACE", "OLLAMA_EMBEDDING_SPACE", "TEI_SPACE", "COHERE_EMBEDDING_SPACE", "PINECONE_SPACE")


class Deployed:
    """The services, the sidecar with the example policies before them, and the official clients, unchanged."""

    def __init__(self, state: Path, policies: Path, space: str = SPACE, handles: str = "auto") -> None:
        self.state = state
        self.embedders = EmbeddersService("--model-cache", str(models_folder(state)))
        self.pinecone = PineconeService()
        for name in ("embedders", "pinecone"):
            example = REPOSITORY / "policies" / "examples" / f"{name}.yaml"
            (policies / example.name).write_text(example.read_text())
        (policies / "server.yaml").write_text(
            "server: {listen: '${UNDERSTUDY_LISTEN}', admin: '${UNDERSTUDY_ADMIN}'}\nlocal: {provider: cpu}\n"
            f"defaults: {{spaces: {{handles: '{handles}'}}}}\n"
        )
        upstreams = ("AZURE_OPENAI_UPSTREAM_URL", "OLLAMA_UPSTREAM_URL", "TEI_UPSTREAM_URL", "COHERE_UPSTREAM_URL")
        env = dict.fromkeys(upstreams, self.embedders.url) | dict.fromkeys(SPACES, space)
        env |= {"COHERE_API_KEY": "co-key", "PINECONE_UPSTREAM_URL": self.pinecone.url}
        self.sidecar = Sidecar(policies, state, env=env)
        self.tier = ""

    def __enter__(self) -> Deployed:
        self.embedders.start()
        self.pinecone.start()
        self.sidecar.start()
        return self

    def __exit__(self, *gone: object) -> None:
        for process in (self.sidecar, self.pinecone, self.embedders):
            process.__exit__(*gone)

    def azure(self) -> AzureOpenAI:
        return AzureOpenAI(
            azure_endpoint=self.sidecar.url, api_key="az", api_version="2024-10-21", azure_deployment="embed"
        )

    def azure_vectors(self) -> Any:
        raw = self.azure().embeddings.with_raw_response.create(model="embed", input=TEXTS)
        self.tier = raw.headers["x-understudy-tier"]
        return [each.embedding for each in raw.parse().data]

    def ollama_vectors(self) -> Any:
        return ollama.Client(self.sidecar.url).embed(model="all-minilm", input=TEXTS).embeddings

    def ollama_vectors_one_by_one(self) -> Any:
        client = ollama.Client(self.sidecar.url)
        return [client.embeddings(model="all-minilm", prompt=text).embedding for text in TEXTS]

    def cohere(self) -> cohere.ClientV2:
        return cohere.ClientV2("co-key", base_url=self.sidecar.url)

    def cohere_vectors(self) -> Any:
        said = self.cohere().embed(
            model="embed-v4.0", texts=TEXTS, input_type="search_query", embedding_types=["float", "base64"]
        )
        assert said.texts == TEXTS
        assert said.embeddings.base64 is not None
        assert len(said.embeddings.base64) == 2
        return said.embeddings.float_

    def tei_vectors(self) -> Any:
        return InferenceClient(self.sidecar.url + "/tei").feature_extraction(TEXTS, truncate=True)  # type: ignore[arg-type]

    def index(self) -> Any:
        return Pinecone(api_key="pk").Index(host=self.sidecar.url + "/pinecone")

    def fill(self) -> int:
        """Store the knowledge in the fake Pinecone, through the sidecar; how many records there are."""
        collection = Library(collections_folder(self.state)).open(KNOWLEDGE)
        points, _ = collection.scroll(None, 10_000, with_vectors=True)
        records = [
            {"id": str(point.id), "values": point.vector.tolist(), "metadata": point.payload}
            for point in points
            if point.vector is not None
        ]
        for at in range(0, len(records), 100):
            assert self.index().upsert(vectors=records[at : at + 100]).upserted_count == len(records[at : at + 100])
        return len(records)


@pytest.fixture
def deployed(state: Path, folder: Path) -> Iterator[Deployed]:
    with Deployed(state, folder) as made:
        yield made


EMBEDDERS = ("azure_vectors", "ollama_vectors", "ollama_vectors_one_by_one", "cohere_vectors", "tei_vectors")


def headers_of(made: Deployed, path: str, body: Any) -> httpx.Headers:
    answer = httpx.post(made.sidecar.url + path, json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.headers


def sources(made: Deployed) -> set[str]:
    """Who answers each of the embedding routes now."""
    calls = {
        "/openai/deployments/embed/embeddings?api-version=1": {"input": "a"},
        "/api/embed": {"model": "m", "input": "a"},
        "/api/embeddings": {"model": "m", "prompt": "a"},
        "/v2/embed": {"model": "m", "texts": ["a"], "input_type": "search_query"},
        "/tei/embed": {"inputs": "a", "truncate": True},
    }
    return {headers_of(made, path, body)["x-understudy-source"] for path, body in calls.items()}


def test_every_embedder_is_stood_in_for_by_the_same_vectors(deployed: Deployed):
    assert sources(deployed) == {"azure", "ollama", "cohere", "tei"}
    before = {name: np.array(getattr(deployed, name)(), np.float32) for name in EMBEDDERS}
    deployed.embedders.kill()
    assert sources(deployed) == {"local-embed"}
    for name in EMBEDDERS:
        after = np.array(getattr(deployed, name)(), np.float32)
        assert after.shape == before[name].shape == (2, 384)
        # the service's process and ours embed with the same model
        assert np.allclose(after, before[name], atol=1e-5), name
    assert deployed.tier == "secondary"


def test_azures_chat_is_answered_whole_and_streamed_when_azure_is_gone(deployed: Deployed):
    chat = AzureOpenAI(
        azure_endpoint=deployed.sidecar.url, api_key="az", api_version="2024-10-21", azure_deployment="chat"
    ).chat.completions
    messages: Any = [{"role": "user", "content": f"Context:\n{TEXTS[1]}\n\nQuestion: When does support answer?"}]
    for _ in range(2):
        said = chat.create(model="chat", messages=messages)
        assert "one hour" in (said.choices[0].message.content or "")
        stream = chat.create(model="chat", messages=messages, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert "one hour" in text
        deployed.embedders.kill()


def test_a_clients_own_mistake_comes_back_in_its_own_words(deployed: Deployed):
    deployed.embedders.kill()
    deployed.pinecone.kill()
    with pytest.raises(APIStatusError) as azure:
        deployed.azure().embeddings.create(model="embed", input=[])
    assert azure.value.status_code == 400
    with pytest.raises(ollama.ResponseError) as bad:
        ollama.Client(deployed.sidecar.url)._request_raw("POST", "/api/embed", json={"model": "m", "input": 1})
    assert (bad.value.status_code, "invalid request" in bad.value.error) == (400, True)
    with pytest.raises(cohere.errors.BadRequestError) as many:
        deployed.cohere().embed(model="m", texts=["a"] * 97, input_type="search_query", embedding_types=["float"])
    assert "97" in str(many.value.body)
    with pytest.raises(PineconeError, match=r"vectors of \[384\]"):
        deployed.index().query(vector=[0.1, 0.2], top_k=1)


def test_bits_of_coheres_own_are_not_made_up(deployed: Deployed):
    deployed.embedders.kill()
    with pytest.raises(cohere.core.ApiError) as refused:
        deployed.cohere().embed(
            model="m",
            texts=["a"],
            input_type="search_query",
            embedding_types=["int8"],
            request_options={"max_retries": 0},
        )
    assert refused.value.status_code in (502, 503)
    assert "quantisation" in str(refused.value.body)


def test_a_route_of_another_space_gets_an_error_and_no_vector_where_handles_are_off(state: Path, folder: Path):
    with Deployed(state, folder, space="embed-of-somebody-else", handles="off") as made:
        assert made.ollama_vectors()
        made.embedders.kill()
        with pytest.raises(ollama.ResponseError) as refused:
            made.ollama_vectors()
        assert refused.value.status_code in (502, 503)
        for path in ("/tei/embed", "/v2/embed"):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(made.sidecar.url + path, data=b'{"inputs": "a", "texts": ["a"]}', timeout=30)


# --- Pinecone ------------------------------------------------------------------------------------------------------


def searched(made: Deployed, vector: Any, **more: Any) -> Any:
    found = made.index().query(vector=vector, top_k=5, include_metadata=True, **more)
    return [(match.id, match.metadata) for match in found.matches], [match.score for match in found.matches]


def test_a_pinecone_index_is_stood_in_for_by_the_same_records(deployed: Deployed):
    count = deployed.fill()
    index = deployed.index()
    vector = deployed.azure_vectors()[0]
    some = searched(deployed, vector)[0]
    wanted = {"text": {"$in": [metadata["text"] for _, metadata in some[1:3]]}}
    asked = [{}, {"filter": wanted}, {"filter": {"$or": [wanted, {"text": {"$ne": some[0][1]["text"]}}]}}]
    up = [searched(deployed, vector, **more) for more in asked]
    fetched_up = index.fetch(ids=[some[0][0], "nobody"]).vectors
    by_id_up = index.query(id=some[0][0], top_k=3).matches
    stats_up = index.describe_index_stats()

    deployed.pinecone.kill()
    for more, (records, scores) in zip(asked, up, strict=True):
        # another question than the one whose answer is kept
        found, local_scores = searched(deployed, (np.array(vector) * 1.0000001).tolist(), **more)
        assert found == records
        assert local_scores == pytest.approx(scores, abs=1e-5)
    fetched = index.fetch(ids=[some[0][0], "nobody"]).vectors
    assert fetched.keys() == fetched_up.keys()
    assert fetched[some[0][0]].values == pytest.approx(fetched_up[some[0][0]].values, abs=1e-6)
    assert [match.id for match in index.query(id=some[0][0], top_k=3, include_values=True).matches] == [
        match.id for match in by_id_up
    ]
    stats = index.describe_index_stats()
    assert (stats.total_vector_count, stats.dimension) == (stats_up.total_vector_count, 384) == (count, 384)
    assert {name: each.vector_count for name, each in stats.namespaces.items()} == {"": count}
    # a write is never taken for the database's
    deleted = httpx.post(deployed.sidecar.url + "/pinecone/vectors/delete", json={"ids": ["a"]}, timeout=30)
    assert deleted.status_code in (502, 503)
    assert deleted.json()["code"] == 14


def test_a_kept_search_is_forgotten_when_its_namespace_is_written_to(deployed: Deployed):
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(2, 384)).tolist()
    index = deployed.index()
    index.upsert(vectors=[{"id": "a", "values": a}], namespace="ns")

    def asked() -> tuple[str, int]:
        body = {"vector": a, "topK": 5, "namespace": "ns"}
        answer = httpx.post(deployed.sidecar.url + "/pinecone/query", json=body, timeout=30)
        return answer.headers["x-understudy-source"], len(answer.json()["matches"])

    # what was read while a write had just gone through is not kept
    eventually(lambda: asked() == ("cache", 1))
    index.upsert(vectors=[{"id": "z", "values": b}], namespace="elsewhere")
    assert asked() == ("cache", 1)
    index.upsert(vectors=[{"id": "b", "values": b}], namespace="ns")
    assert asked() == ("pinecone", 2)
