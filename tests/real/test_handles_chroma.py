"""chromadb's own client and server, and an embedder that dies: handles find what vectors found, and none is stored."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import chromadb
import numpy as np
import pytest
from chromadb.errors import InternalError
from openai import OpenAI

from tests.kit.chroma_service import ChromaService
from tests.kit.openai_service import turned
from tests.kit.processes import OpenAIService, Sidecar, embeddings_route, eventually
from understudy.models.embedder import load

pytestmark = pytest.mark.real

DIMENSIONS = 768
SPACE = "far-embed-3"
TEXTS = [
    "The circuit breaker opens after too many failures in a row.",
    "A certificate is rotated by replacing its files; they are watched.",
    "Backups of the database are made every night at two.",
    "Refunds take fourteen days from the day of the return.",
    "The warehouse ships on Mondays and on Thursdays.",
    "Support answers within one hour on working days.",
    "Passwords are reset by a link that is sent by e-mail.",
    "The library is closed on public holidays.",
    "Photosynthesis turns light, water and carbon dioxide into sugar.",
    "The train to the harbour leaves every twenty minutes.",
]
QUESTIONS = {
    "When does the breaker open?": "0",
    "How long does a refund take?": "3",
    "How do I get a new password?": "6",
    "On which days are parcels sent?": "4",
}
POLICIES = (
    """\
server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}"}
local: {knowledge: false, provider: cpu, shadow_cpu_share: 1.0}
defaults: {breaker: {open_s: 0.2}}
routes:
"""
    + embeddings_route(SPACE)
    + """\
  - name: chroma
    match: {prefix: /api/v2}
    dialect: chroma
    space: far-embed-3
    spaces: {handles_in_writes: %s}
    mirror: {settle_s: 0.2, check_s: 1, points_per_s: 100000}
    tiers:
      - {kind: upstream, name: chroma, url: "${CHROMA}"}
      - {kind: local}
"""
)


class Deployed(NamedTuple):
    sidecar: Sidecar
    openai: OpenAIService
    chroma: ChromaService

    def client(self) -> Any:
        return chromadb.HttpClient(host="127.0.0.1", port=self.sidecar.port)

    def direct(self) -> Any:
        return chromadb.HttpClient(host="127.0.0.1", port=self.chroma.port)

    def vector(self, text: str) -> tuple[list[float], str]:
        """What the application is given for a text, and by whom."""
        client = OpenAI(base_url=self.sidecar.url + "/v1", api_key="unused", max_retries=0)
        raw = client.embeddings.with_raw_response.create(model="m", input=text)
        return raw.parse().data[0].embedding, raw.headers["x-understudy-source"]

    def is_ready(self) -> bool:
        """Whether the copy is whole, and its texts have vectors of the local model's."""
        with urllib.request.urlopen(self.sidecar.admin_url + "/status", timeout=30) as answer:
            status = json.load(answer)
        copy = status["routes"][1].get("mirror", {}).get("copies", {}).get("docs", {})
        embedded = status["local"].get("shadow_index", {}).get("docs", {}).get("embedded", 0)
        return copy.get("state") == "whole" and copy["points_behind"] == 0 and embedded >= len(TEXTS)


@pytest.fixture(params=["refuse", "queue"])
def deployed(request: pytest.FixtureRequest, made_state: Path, tmp_path: Path, folder: Path) -> Iterator[Deployed]:
    (folder / "p.yaml").write_text(POLICIES % request.param)
    models = made_state / "models"
    with ExitStack() as stack:
        openai = stack.enter_context(OpenAIService("--model-cache", str(models), "--turned", str(DIMENSIONS)))
        chroma = stack.enter_context(ChromaService(tmp_path / "chroma"))
        env = {"OPENAI": openai.url, "CHROMA": chroma.url}
        yield Deployed(stack.enter_context(Sidecar(folder, tmp_path / "state", env=env, models=models)), openai, chroma)


def found(collection: Any, vector: list[float]) -> list[str]:
    return collection.query(query_embeddings=[vector], n_results=3)["ids"][0]


def is_added(collection: Any, vector: list[float], text: str) -> bool:
    """Whether the server takes it: it is back, and may still be kept from it for a moment."""
    try:
        collection.add(ids=["new"], embeddings=[vector], documents=[text])
    except InternalError:
        return False
    return True


def test_an_application_on_chroma_goes_on_searching_while_its_embedder_is_dead_and_stores_no_handle(
    deployed: Deployed, made_state: Path, request: pytest.FixtureRequest
):
    collection = deployed.client().get_or_create_collection(
        "docs", metadata={"hnsw:space": "cosine"}, embedding_function=None
    )
    given = [deployed.vector(text) for text in TEXTS]
    assert {who for _, who in given} == {"openai"}
    ids = [str(n) for n in range(len(TEXTS))]
    collection.add(ids=ids, embeddings=[vector for vector, _ in given], documents=TEXTS)
    for question, right in QUESTIONS.items():
        assert right in found(collection, deployed.vector(question)[0])
    eventually(deployed.is_ready)

    deployed.openai.kill()
    handles = {question: deployed.vector(question) for question in QUESTIONS}
    assert {who for _, who in handles.values()} == {"local-embed"}
    for question, right in QUESTIONS.items():
        # the server is alive, and is not asked with it
        assert found(collection, handles[question][0])[0] == right
    new = "The museum opens at ten, except on Tuesdays."
    handle, _ = deployed.vector(new)
    if request.node.callspec.params["deployed"] == "refuse":
        with pytest.raises(Exception, match="poison the collection"):
            collection.add(ids=["new"], embeddings=[handle], documents=[new])
        with pytest.raises(Exception, match="poison the collection"):
            collection.upsert(ids=["0"], embeddings=[handle], documents=[new])
    else:
        collection.add(ids=["new"], embeddings=[handle], documents=[new])
        collection.update(ids=["0"], metadatas=[{"seen": True}])
    there = deployed.direct().get_collection("docs", embedding_function=None)
    assert there.count() == len(TEXTS), "no handle has reached the server"

    # the server dies as well
    deployed.chroma.kill()
    for question, right in QUESTIONS.items():
        assert found(collection, handles[question][0])[0] == right
    deployed.chroma.start()
    deployed.openai.start()
    eventually(lambda: deployed.vector("is it back?")[1] == "openai")
    there = deployed.direct().get_collection("docs", embedding_function=None)
    if request.node.callspec.params["deployed"] == "refuse":
        vector, _ = deployed.vector(new)
        eventually(lambda: is_added(collection, vector, new))
    eventually(lambda: there.get(ids=["new"])["ids"] == ["new"])
    stored = there.get(ids=["new"], include=["embeddings", "documents"])
    true = turned(load(None, made_state / "models", "cpu").embed([new], "query"), DIMENSIONS)[0]
    assert np.dot(np.asarray(stored["embeddings"][0]), true) > 0.995
    assert stored["documents"] == [new]
