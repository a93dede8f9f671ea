"""The official clients ask through the running sidecar, and answers say which legs before them a fallback answered."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from qdrant_client import QdrantClient

from tests.kit.acts import answer, hang_up
from tests.kit.fake_upstream import Hosted, in_thread
from tests.kit.openai_service import turned
from tests.kit.processes import Sidecar, eventually
from understudy.indexes.library import Library
from understudy.indexes.points import Point
from understudy.indexes.snapshot import write_snapshot
from understudy.proxy.knowledge import KNOWLEDGE, collections_folder

pytestmark = pytest.mark.real

SPACE = "far-embed-3"
DIMENSIONS = 1536
QUESTION = "What does the circuit breaker do when a probe fails?"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
EMBED = 'embed;tier=secondary;source="local-embed"'
WORDS = 'retrieve;tier=secondary;source="local-index";how=keywords'
POLICIES = """\
server:
  listen: "${{UNDERSTUDY_LISTEN}}"
  admin: "${{UNDERSTUDY_ADMIN}}"
  workers: {workers}
  spaces: {{far-embed-3: {{dimensions: 1536}}}}
  questions: {{kept_s: 600}}
local: {{shadow_cpu_share: 0}}
defaults: {{retry: {{attempts: 1}}, breaker: {{enabled: false}}}}
routes:
  - name: embeddings
    match: {{path: /v1/embeddings}}
    dialect: openai-embeddings
    space: far-embed-3
    tiers: [{{kind: upstream, name: openai, url: "${{DOWN}}"}}, {{kind: local}}]
  - name: retrieval
    match: {{prefix: /collections}}
    dialect: qdrant
    space: far-embed-3
    tiers: [{{kind: upstream, name: qdrant, url: "${{DOWN}}"}}, {{kind: local, collections: {{docs: far}}}}]
  - name: chat
    match: {{path: /v1/chat/completions}}
    dialect: openai-chat
    tiers: [{{kind: upstream, name: openai, url: "${{UP}}"}}]
"""
WHOLE = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "so"}, "finish_reason": "stop"}],
}


class Deployed:
    """Embedder and database are down, the model is up; the local collection has vectors of the embedder's space."""

    def __init__(self, state: Path, folder: Path, up: Hosted, down: Hosted, workers: int = 1) -> None:
        import numpy as np

        known, _ = Library(collections_folder(state)).open(KNOWLEDGE).scroll(None, 10_000, with_vectors=True)
        vectors = turned(np.stack([point.vector for point in known if point.vector is not None]), DIMENSIONS)
        points = [
            Point(point.id, vector, point.payload, str(point.payload["text"]))
            for point, vector in zip(known, vectors, strict=True)
        ]
        write_snapshot(collections_folder(state) / "far", points, space=SPACE, dimensions=DIMENSIONS)
        (folder / "p.yaml").write_text(POLICIES.format(workers=workers))
        self.sidecar = Sidecar(folder, state, env={"UP": up.url, "DOWN": down.url})

    def embed(self, **headers: str) -> list[float]:
        ai = OpenAI(base_url=self.sidecar.url + "/v1", api_key="k", max_retries=0)
        made = ai.embeddings.create(model="m", input=QUESTION, encoding_format="float", extra_headers=headers)
        return made.data[0].embedding

    def search(self, vector: list[float], **headers: str) -> list[str]:
        db = QdrantClient(self.sidecar.url, headers=headers, timeout=60)
        try:
            return [str(point.payload["text"]) for point in db.query_points("docs", query=vector, limit=3).points]  # pyright: ignore[reportOptionalSubscript]
        finally:
            db.close()

    def generate(self, passages: list[str], **headers: str) -> str:
        """What the answer says that it is built on."""
        ai = OpenAI(base_url=self.sidecar.url + "/v1", api_key="k", max_retries=0)
        content = "Answer by this:\n\n" + "\n\n".join([*passages, QUESTION])
        raw = ai.chat.completions.with_raw_response.create(
            model="m", messages=[{"role": "user", "content": content}], extra_headers=headers
        )
        assert raw.parse().choices[0].message.content == "so"
        assert raw.headers["x-understudy-tier"] == "primary"
        return raw.headers.get("x-understudy-built-on", "")

    def told(self, path: str) -> str:
        with urllib.request.urlopen(self.sidecar.admin_url + path, timeout=60) as answered:
            return answered.read().decode()

    def recent(self) -> list[dict[str, Any]]:
        return json.loads(self.told("/status"))["questions"]["recent"]


@pytest.fixture
def upstreams() -> Iterator[tuple[Hosted, Hosted]]:
    with in_thread(answer(body=WHOLE)) as up, in_thread(hang_up()) as down:
        yield up, down


def test_an_answer_built_on_a_search_by_words_says_so_by_trace_or_by_its_vector_and_its_passages(
    upstreams: tuple[Hosted, Hosted], state: Path, folder: Path
):
    deployed = Deployed(state, folder, *upstreams)
    with deployed.sidecar as sidecar:
        assert deployed.generate(["A prompt of passages that nobody here has found."]) == ""
        # linked by nothing but what the application itself carries from leg to leg
        passages = deployed.search(deployed.embed())
        assert any("breaker" in passage for passage in passages)
        assert deployed.generate(passages) == f"{EMBED}, {WORDS}"
        assert deployed.generate(["Another prompt, of passages that nobody here has found."]) == ""
        # linked by the trace, whatever the application makes of the passages
        deployed.search(deployed.embed(traceparent=TRACE), traceparent=TRACE)
        assert deployed.generate(["Summed up."], traceparent=TRACE) == f"{EMBED}, {WORDS}"
        latest, first = deployed.recent()
        assert latest["id"] == TRACE[3:35]
        assert [leg["route"] for leg in latest["legs"]] == ["embeddings", "retrieval"]
        assert [leg.get("how", "") for leg in first["legs"]] == ["", "keywords"]
        metrics = deployed.told("/metrics")
        assert 'understudy_built_on_fallback_total{route="chat"} 2.0' in metrics
        assert "understudy_questions_fell_total 2.0" in metrics
        for by in ("trace", "vector", "text"):
            assert float(re.findall(rf'questions_linked_total{{by="{by}"}} (\S+)', metrics)[0]) >= 1
        # the access log says it too, once it has been written
        eventually(lambda: logged(sidecar, "chat").count(f"{EMBED}, {WORDS}") == 2)
        assert logged(sidecar, "chat").count("") == 2


def logged(sidecar: Sidecar, route: str) -> list[str]:
    """What the access log says of the legs before each call of a route."""
    # what stands behind the last end of a line is still being written
    written = sidecar.logs().rpartition("\n")[0].splitlines()
    lines = [json.loads(line) for line in written if line.startswith("{")]
    return [line.get("legs", "") for line in lines if line.get("route") == route]


def test_workers_tell_each_other_what_is_built_on_a_fallback(
    upstreams: tuple[Hosted, Hosted], state: Path, folder: Path
):
    deployed = Deployed(state, folder, *upstreams, workers=2)
    with deployed.sidecar:
        # one connection, and so one worker: the texts of handles are each worker's own
        with httpx.Client(base_url=deployed.sidecar.url, headers={"traceparent": TRACE}, timeout=60) as client:
            embedded = client.post("/v1/embeddings", json={"model": "m", "input": QUESTION}).json()
            body = {"query": embedded["data"][0]["embedding"], "limit": 3, "with_payload": True}
            found = client.post("/collections/docs/points/query", json=body)
        assert found.headers["x-understudy-search"] == "keywords"
        passages = [point["payload"]["text"] for point in found.json()["result"]["points"]]
        # every connection is a new one, and any of the workers may take it
        for _ in range(8):
            eventually(lambda: WORDS in deployed.generate(passages))
            eventually(lambda: WORDS in deployed.generate(["Summed up."], traceparent=TRACE))
        assert [question["id"] for question in deployed.recent()] == [TRACE[3:35]]
