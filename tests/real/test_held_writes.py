"""Writes that wait for their vectors, with the official clients: a kill loses none that was acknowledged."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from openai import OpenAI
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from tests.kit.openai_service import turned
from tests.kit.processes import OpenAIService, QdrantService, Sidecar, embeddings_route, eventually
from understudy.models.embedder import load

pytestmark = pytest.mark.real

DIMENSIONS = 1536
DOCS = "docs"
ROUNDS = 4
POLICIES = (
    """
server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}"}
local: {knowledge: false, provider: cpu}
defaults: {breaker: {open_s: 0.2}}
routes:
"""
    + embeddings_route("text-embedding-3-small")
    + """\
  - name: retrieval
    match: {prefix: /}
    dialect: qdrant
    space: text-embedding-3-small
    spaces: {handles_in_writes: queue}
    tiers:
      - {kind: upstream, name: qdrant, url: "${QDRANT}"}
      - {kind: local}
"""
)


class Deployed(NamedTuple):
    sidecar: Sidecar
    openai: OpenAIService
    qdrant: QdrantService

    def handle(self, text: str) -> list[float]:
        client = OpenAI(base_url=self.sidecar.url + "/v1", api_key="unused", max_retries=0)
        raw = client.embeddings.with_raw_response.create(model="text-embedding-3-small", input=text)
        assert raw.headers["x-understudy-source"] == "local-embed"
        return raw.parse().data[0].embedding


@pytest.fixture
def deployed(made_state: Path, tmp_path: Path, folder: Path) -> Iterator[Deployed]:
    (folder / "p.yaml").write_text(POLICIES)
    cache = made_state / "models"
    openai, qdrant = OpenAIService("--model-cache", str(cache), "--turned", str(DIMENSIONS)), QdrantService()
    env = {"OPENAI": openai.url, "QDRANT": qdrant.url}
    sidecar = Sidecar(folder, tmp_path / "state", env=env, models=cache)
    with ExitStack() as stack:
        for each in (qdrant, sidecar):
            stack.enter_context(each)
        # the embedder is away from the start: whatever is known of how it is asked comes from handles
        yield Deployed(sidecar, openai, qdrant)
        if openai.child is not None:
            openai.stop()


def test_killed_while_writes_come_every_acknowledged_one_is_stored_with_its_own_vector(
    deployed: Deployed, made_state: Path
):
    direct = QdrantClient(deployed.qdrant.url, timeout=60)
    direct.create_collection(DOCS, models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE))
    said_yes: dict[int, str] = {}
    for number in range(ROUNDS):
        handles = {
            f"passage {number} {n} of the book": deployed.handle(f"passage {number} {n} of the book") for n in range(3)
        }
        killed, before = threading.Event(), len(said_yes)
        writer = threading.Thread(target=wrote, args=(deployed.sidecar.url, number, handles, said_yes, killed))
        writer.start()
        eventually(lambda least=before + 3: len(said_yes) >= least)
        deployed.sidecar.kill()
        killed.set()
        writer.join()
        deployed.sidecar.start()
    assert len(said_yes) >= 3 * ROUNDS
    assert direct.count(DOCS).count == 0, "no handle has reached the database"
    deployed.openai.start()
    eventually(lambda: {point.id for point in stored(direct)} >= set(said_yes))
    embedder = load(None, made_state / "models", "cpu")
    for point in stored(direct):
        text = point.payload["text"] if point.payload else ""
        true = turned(embedder.embed([text], "query"), DIMENSIONS)[0]
        assert np.dot(np.asarray(point.vector), true) > 0.995
    eventually(lambda: not list((deployed.sidecar.state / "held" / "retrieval").glob("*.write")))


def wrote(
    url: str, number: int, handles: dict[str, list[float]], said_yes: dict[int, str], killed: threading.Event
) -> None:
    """Store the texts of one round by their handles, again and again, until the sidecar is gone."""
    client = QdrantClient(url, timeout=60, check_compatibility=False)
    for n in range(1_000):
        text, handle = list(handles.items())[n % len(handles)]
        point_id = 1_000 * number + n
        try:
            told = client.upsert(DOCS, [models.PointStruct(id=point_id, vector=handle, payload={"text": text})])
        except (ResponseHandlingException, UnexpectedResponse):
            # killed while it was answering: nothing was said, and nothing is owed
            if killed.wait(0.05):
                return
            continue
        assert told.status == models.UpdateStatus.ACKNOWLEDGED
        said_yes[point_id] = text


def stored(client: QdrantClient) -> list[models.Record]:
    return client.scroll(DOCS, limit=10_000, with_vectors=True)[0]
