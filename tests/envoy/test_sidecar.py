"""The whole of it: an application, a real Envoy, an upstream that is dead, and the real sidecar behind."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

import pytest

from tests.envoy.running import Envoy
from tests.kit.processes import Sidecar, free_port

pytestmark = pytest.mark.real

POLICIES = """
server: {{listen: "${{UNDERSTUDY_LISTEN}}", admin: "${{UNDERSTUDY_ADMIN}}"}}
local: {{knowledge: false}}
routes:
  - name: chat
    match: {{prefix: /openai, strip: true}}
    dialect: openai-chat
    deadline: {{total_s: 20}}
    tiers:
      - {{kind: upstream, name: openai, url: "http://127.0.0.1:{dead}/base"}}
      - {{kind: local}}
"""
PROMPT = (
    "Answer from the context.\n\nContext:\nThe stage door is opened with the brass key. "
    "The lamp over the piano is never switched off. Tickets are sold at the corner shop.\n\n"
    "Question: With which key is the stage door opened?"
)


def ask(port: int, *, stream: bool) -> tuple[http.client.HTTPResponse, str]:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    body = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": PROMPT}]}
    client.request("POST", "/openai/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    response = client.getresponse()
    text = response.read().decode()
    client.close()
    return response, text


def said(text: str) -> str:
    """The answer's words, whole or streamed."""
    if not text.startswith("data:"):
        return json.loads(text)["choices"][0]["message"]["content"]
    events: list[dict[str, Any]] = [
        json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")
    ]
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


def test_the_sidecar_behind_envoy_answers_from_the_prompt_while_the_upstream_is_dead(tmp_path: Path) -> None:
    policies = POLICIES.format(dead=free_port())
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "policies.yaml").write_text(policies)
    with Sidecar(folder, tmp_path / "state") as sidecar:
        listen = {name: sidecar.env[name] for name in ("UNDERSTUDY_LISTEN", "UNDERSTUDY_ADMIN")}
        with Envoy(tmp_path / "envoy", policies, sidecar=f"127.0.0.1:{sidecar.port}", environ=listen) as envoy:
            for stream in (False, True) * 5:
                response, text = ask(envoy.port, stream=stream)
                assert response.status == 200, text
                assert "brass key" in said(text)
                assert response.headers["x-understudy-tier"] == "secondary"
