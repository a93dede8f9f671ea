"""The ten-line application of the README, unmodified, while its services live and die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from qdrant_client import QdrantClient

from tests.kit.processes import COMES_S_MAX
from tests.real.rig import Rig, rig

pytestmark = pytest.mark.real
REPOSITORY = Path(__file__).parents[2]
QUESTION = "What does the circuit breaker do when a probe fails?"


@pytest.fixture
def deployed(state: Path):
    with rig(state) as made:
        yield made


def run_script(made: Rig) -> str:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "examples" / "rag.py")],
        env={**os.environ, **made.env},
        capture_output=True,
        text=True,
        timeout=COMES_S_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr + made.sidecar.logs()
    return done.stdout


def said(made: Rig, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[str, str, dict[str, Any]]:
    """(tier, source, body) of a raw call, as its headers tell it."""
    request = urllib.request.Request(
        made.sidecar.url + path,
        data=json.dumps(body).encode() if body else None,
        method=method,
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        told = answer.headers
        return told["x-understudy-tier"], told["x-understudy-source"], json.load(answer)


def tiers(made: Rig) -> dict[str, tuple[str, str]]:
    """Who answers each of the three legs now."""
    embedded = said(made, "POST", "/v1/embeddings", {"model": "m", "input": "x"})
    vector = embedded[2]["data"][0]["embedding"]
    found = said(made, "POST", "/collections/knowledge/points/query", {"query": vector, "limit": 2})
    messages = [{"role": "user", "content": QUESTION}]
    told = said(made, "POST", "/v1/chat/completions", {"model": "m", "messages": messages})
    return {"embed": embedded[:2], "retrieve": found[:2], "generate": told[:2]}


def test_the_script_is_answered_with_primaries_up_with_each_killed_and_with_all_killed(deployed: Rig):
    up = {"embed": ("primary", "openai"), "retrieve": ("primary", "qdrant"), "generate": ("primary", "openai")}
    assert tiers(deployed) == up
    assert "open" in run_script(deployed).lower()

    deployed.qdrant.kill()
    assert tiers(deployed) == {**up, "retrieve": ("secondary", "local-index")}
    assert "open" in run_script(deployed).lower()

    deployed.openai.kill()
    local = {
        "embed": ("secondary", "local-embed"),
        "retrieve": ("secondary", "local-index"),
        "generate": ("secondary", "extractive"),
    }
    assert tiers(deployed) == local
    text = run_script(deployed)
    assert "open" in text.lower()
    assert "fallback answer" in text

    deployed.qdrant.start()
    deployed.fill()
    deployed.sidecar.stop()
    deployed.sidecar.start()
    assert tiers(deployed) == {**local, "retrieve": ("primary", "qdrant")}
    assert "open" in run_script(deployed).lower()


def test_a_local_vector_is_the_primarys_vector_and_finds_the_same_points(deployed: Rig):
    ai, db = deployed.ai(), QdrantClient(deployed.sidecar.url, timeout=60)
    embed = lambda: ai.embeddings.create(model="m", input=[QUESTION, "x"]).data  # noqa: E731
    search = lambda: db.query_points("knowledge", query=embed()[0].embedding, limit=5).points  # noqa: E731
    with_primaries = embed(), search()
    deployed.openai.kill()
    deployed.qdrant.kill()
    without = embed(), search()
    assert [each.index for each in without[0]] == [0, 1]
    assert with_primaries[0][0].embedding == pytest.approx(without[0][0].embedding, abs=1e-6)
    assert [point.id for point in without[1]] == [point.id for point in with_primaries[1]]
    assert [point.payload for point in without[1]] == [point.payload for point in with_primaries[1]]
    assert [point.score for point in without[1]] == pytest.approx(
        [point.score for point in with_primaries[1]], abs=1e-5
    )
    db.close()


def streamed(ai: OpenAI) -> tuple[str, str, str]:
    """(tier, finish reason, text) of a streamed chat."""
    raw = ai.chat.completions.with_raw_response.create(
        model="m", messages=[{"role": "user", "content": QUESTION}], stream=True
    )
    text, finish = "", ""
    for chunk in raw.parse():
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
    return raw.headers["x-understudy-tier"], finish, text


def test_a_streamed_chat_is_answered_with_the_primary_up_and_killed(deployed: Rig):
    ai = deployed.ai()
    tier, finish, text = streamed(ai)
    assert (tier, finish) == ("primary", "stop")
    assert text
    deployed.openai.kill()
    tier, finish, text = streamed(ai)
    assert (tier, finish) == ("secondary", "stop")
    assert "fallback answer" in text
    assert "open" in text.lower()


def test_what_the_applications_own_client_sends_wrong_is_told_in_its_own_words(deployed: Rig):
    import openai
    from qdrant_client.http.exceptions import UnexpectedResponse

    deployed.openai.kill()
    deployed.qdrant.kill()
    ai, db = deployed.ai(max_retries=0), QdrantClient(deployed.sidecar.url, timeout=60)
    with pytest.raises(openai.BadRequestError):
        ai.embeddings.create(model="m", input=[])
    with pytest.raises(UnexpectedResponse, match="384"):
        db.query_points("knowledge", query=[0.1, 0.2], limit=2)
    with pytest.raises(openai.APIStatusError) as refused:
        ai.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], response_format={"type": "json_object"}
        )
    assert refused.value.status_code in (502, 503)
    assert refused.value.response.headers["x-should-retry"] == "false"
    db.close()


def test_no_secret_is_in_logs_metrics_or_status(deployed: Rig):
    tiers(deployed)
    deployed.openai.kill()
    tiers(deployed)
    with urllib.request.urlopen(deployed.sidecar.admin_url + "/status", timeout=30) as answer:
        status = answer.read().decode()
    deployed.sidecar.stop()
    for text in (status, deployed.sidecar.logs()):
        assert "sk-test-not-a-real-key" not in text
        assert "unused" not in text
