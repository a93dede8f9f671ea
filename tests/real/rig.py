"""A whole RAG deployment on loopback: a fake OpenAI, a fake Qdrant, and the real sidecar in front, as processes."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from openai import OpenAI
from qdrant_client import QdrantClient, models

from tests.kit.processes import OpenAIService, QdrantService, Sidecar
from understudy.indexes.library import Library
from understudy.proxy.knowledge import KNOWLEDGE, collections_folder, models_folder

SPACE = "all-MiniLM-L6-v2"


class Rig:
    """The three processes. Primaries embed with the same model as the local tier, and hold the same points."""

    def __init__(self, state: Path, policies: Path | None = None) -> None:
        self.state = state
        self.openai = OpenAIService("--model-cache", str(models_folder(state)))
        self.qdrant = QdrantService()
        self.sidecar = Sidecar(
            policies,
            state,
            env={
                "OPENAI_API_KEY": "sk-test-not-a-real-key",
                "OPENAI_UPSTREAM_URL": self.openai.url,
                "OPENAI_EMBEDDING_SPACE": SPACE,
                "QDRANT_URL": self.qdrant.url,
                "QDRANT_SPACE": SPACE,
            },
        )

    def fill(self) -> None:
        """Store the knowledge in the fake Qdrant, as an application would have."""
        collection = Library(collections_folder(self.state)).open(KNOWLEDGE)
        points, _ = collection.scroll(None, 10_000, with_vectors=True)
        client = QdrantClient(self.qdrant.url, timeout=60)
        distance = models.Distance.COSINE
        client.create_collection(KNOWLEDGE, vectors_config=models.VectorParams(size=384, distance=distance))
        client.upsert(
            KNOWLEDGE,
            [
                models.PointStruct(id=point.id, vector=point.vector.tolist(), payload=point.payload)
                for point in points
                if point.vector is not None
            ],
        )
        client.close()

    @property
    def env(self) -> dict[str, str]:
        """What an application has in its environment to come to the sidecar."""
        return {"OPENAI_BASE_URL": self.sidecar.url + "/v1", "QDRANT_URL": self.sidecar.url}

    def ai(self, **options: object) -> OpenAI:
        """The official SDK, pointed at the sidecar."""
        return OpenAI(base_url=self.sidecar.url + "/v1", api_key="unused", **options)  # pyright: ignore[reportArgumentType]

    def metrics(self) -> str:
        with urllib.request.urlopen(self.sidecar.admin_url + "/metrics", timeout=30) as answer:
            return answer.read().decode()


@contextmanager
def rig(state: Path, policies: Path | None = None) -> Iterator[Rig]:
    """The rig, up and filled; everything is stopped at the end."""
    with ExitStack() as stack:
        made = Rig(state, policies)
        stack.enter_context(made.openai)
        stack.enter_context(made.qdrant)
        made.fill()
        stack.enter_context(made.sidecar)
        yield made
