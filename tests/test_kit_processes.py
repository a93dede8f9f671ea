"""The kit's fake services are real enough for the official clients, and its processes end when they are told to."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from tests.kit.openai_service import answer_to
from tests.kit.processes import (
    BLOCK,
    PORTS,
    REPOSITORY,
    OpenAIService,
    Process,
    QdrantService,
    Sidecar,
    free_port,
    needs,
)


@pytest.fixture(scope="module")
def service() -> Iterator[OpenAIService]:
    with OpenAIService() as running:
        yield running


@pytest.fixture
def client(service: OpenAIService) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=service.url + "/v1", api_key="k", max_retries=0) as made:
        yield made


def test_the_official_client_gets_vectors_of_minilm_in_both_encodings(client: openai.OpenAI):
    texts = ["How do I restart the proxy?", "What restarts the sidecar?", "Bananas are yellow."]
    floats = client.embeddings.create(model="m", input=texts, encoding_format="float")
    vectors = np.array([one.embedding for one in floats.data])
    assert vectors.shape == (3, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-3)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    packed = client.embeddings.with_raw_response.create(model="m", input=texts[0], encoding_format="base64")
    text = packed.http_response.json()["data"][0]["embedding"]
    # In int8 a vector varies a little with the batch it is computed in.
    assert np.frombuffer(base64.b64decode(text), "<f4") @ vectors[0] > 0.97


def test_the_official_client_gets_an_answer_from_the_context_whole_and_streamed(client: openai.OpenAI):
    prompt = "Context:\nParis lies on the Seine. Rome lies on the Tiber.\n\nQuestion: where does Rome lie?"
    messages = [{"role": "user", "content": prompt}]
    whole = client.chat.completions.create(model="m", messages=messages)  # type: ignore[call-overload]
    assert whole.choices[0].message.content == "Rome lies on the Tiber."
    stream = client.chat.completions.create(  # type: ignore[call-overload]
        model="m", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    told = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(told) == "Rome lies on the Tiber."
    assert len([piece for piece in told if piece]) == 5
    assert chunks[-1].usage.completion_tokens == 5
    assert "gpt-4o-mini" in [model.id for model in client.models.list()]


def test_a_bad_request_is_told_in_the_apis_own_shape(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model="m", messages=[])


def test_an_answer_without_context_repeats_the_question():
    assert answer_to(["hello"]) == "You said: hello"


# --- qdrant --------------------------------------------------------------------------------------------------------

POINTS = [
    models.PointStruct(id=at, vector=vector, payload={"text": f"point {at}", "even": at % 2 == 0})
    for at, vector in enumerate([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
]


def test_the_official_qdrant_client_reads_what_it_wrote():
    with QdrantService() as service:
        client = QdrantClient(url=service.url, check_compatibility=False, timeout=60)
        assert not client.collection_exists("docs")
        client.create_collection("docs", models.VectorParams(size=2, distance=models.Distance.COSINE))
        client.upsert("docs", POINTS)
        assert client.count("docs").count == 4
        assert [one.name for one in client.get_collections().collections] == ["docs"]
        assert client.get_collection("docs").config.params.vectors.size == 2  # type: ignore[union-attr]
        found = client.query_points("docs", [1.0, 0.0], limit=2, with_payload=True).points
        assert [(one.id, one.payload["text"]) for one in found if one.payload] == [(0, "point 0"), (1, "point 1")]
        even = models.Filter(must=[models.FieldCondition(key="even", match=models.MatchValue(value=True))])
        assert [one.id for one in client.query_points("docs", [0.0, 1.0], query_filter=even).points] == [2, 0]
        page, following = client.scroll("docs", limit=3)
        assert ([one.id for one in page], following) == ([0, 1, 2], 3)
        assert client.retrieve("docs", [2], with_vectors=True)[0].vector == pytest.approx([0.0, 1.0])
        client.set_payload("docs", {"seen": True}, points=[2])
        assert client.retrieve("docs", [2])[0].payload["seen"]  # type: ignore[index]
        client.delete("docs", points_selector=[0, 1])
        assert client.count("docs").count == 2
        with pytest.raises(UnexpectedResponse, match="404"):
            client.query_points("other", [1.0, 0.0])
        with pytest.raises(UnexpectedResponse, match="400"):
            client.query_points("docs", [1.0, 0.0, 0.0])
        client.delete_collection("docs")
        assert not client.collection_exists("docs")


def test_older_clients_search_gives_a_bare_list():
    with QdrantService() as service:
        client = QdrantClient(url=service.url, check_compatibility=False, timeout=60)
        client.create_collection("docs", models.VectorParams(size=2, distance=models.Distance.COSINE))
        client.upsert("docs", POINTS)
        told = httpx.post(
            f"{service.url}/collections/docs/points/search", json={"vector": [1.0, 0.0], "limit": 1}, timeout=60
        )
        assert [(one["id"], one["payload"]) for one in told.json()["result"]] == [(0, None)]


def test_a_killed_service_is_gone_and_a_new_start_finds_it_empty_on_the_same_port():
    with QdrantService() as service:
        client = QdrantClient(url=service.url, check_compatibility=False, timeout=60)
        client.create_collection("docs", models.VectorParams(size=2, distance=models.Distance.COSINE))
        service.kill()
        with pytest.raises(ResponseHandlingException):
            client.get_collections()
        service.start()
        assert client.get_collections().collections == []


# --- processes -----------------------------------------------------------------------------------------------------


def test_ports_are_given_once_each_and_not_to_two_processes_of_tests():
    command = [sys.executable, "-c", "from tests.kit.processes import free_port; print(free_port())"]
    other = int(subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True, timeout=60).stdout)
    mine = [free_port() for _ in range(BLOCK // 2)]
    assert len(set(mine)) == len(mine)
    block = {(port - PORTS.start) // BLOCK for port in mine}
    assert len(block) == 1
    assert (other - PORTS.start) // BLOCK not in block
    assert all(port in PORTS for port in [other, *mine])


def test_a_process_that_dies_before_it_is_ready_tells_its_log():
    script = "import sys; print('no such policy'); sys.exit(3)"
    process = Process([sys.executable, "-c", script], ready_port=free_port())
    with pytest.raises(RuntimeError, match=r"ended with 3:\nno such policy"), process:
        pass


def test_a_process_ends_by_sigterm_even_when_it_was_stopped():
    with QdrantService() as service:
        pid = service.pid
        service.signal(signal.SIGSTOP)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_a_test_needs_is_found_or_skipped_with_a_reason():
    assert Path(needs("python3")).exists()
    with pytest.raises(pytest.skip.Exception, match="no-such-program"):
        needs("no-such-program")


@pytest.mark.real_clock
async def test_the_services_can_be_asked_from_a_loop_too(service: OpenAIService):
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
    writer.close()


@pytest.mark.real
def test_the_sidecar_passes_calls_on_answers_itself_and_ends_well_at_sigterm(tmp_path: Path, service: OpenAIService):
    upstreams = {"OPENAI_API_KEY": "k", "OPENAI_UPSTREAM_URL": service.url}
    with Sidecar(None, tmp_path / "state", env=upstreams) as sidecar:
        assert httpx.get(f"{sidecar.admin_url}/livez", timeout=60).status_code == 200
        question = "Paris lies on the Seine. Rome lies on the Tiber.\n\nWhere does Rome lie?"
        asked = {"model": "m", "messages": [{"role": "user", "content": question}]}
        passed_on = httpx.post(f"{sidecar.url}/v1/chat/completions", json=asked, timeout=60)
        assert passed_on.json()["id"] == "chatcmpl-kit"
        service.kill()
        try:
            alone = httpx.post(f"{sidecar.url}/v1/chat/completions", json=asked, timeout=30)
        finally:
            service.start()
        assert alone.status_code == 200, alone.text
        assert alone.json()["id"] != "chatcmpl-kit"
        assert sidecar.stop() == 0
        assert "Traceback" not in sidecar.logs()
