"""The last words through the running sidecar, its provider dead, read by the official SDK; files are watched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.kit.processes import Sidecar, eventually, put_in_place

pytestmark = pytest.mark.real

POLICIES = """\
server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}", reload_s: 0.1}
local: {knowledge: false}
defaults:
  breaker: {enabled: false}
  retry: {attempts: 1}
  last_words: {answers: [answers/faq.yaml], message: Call 555-0100.}
routes:
  - name: chat
    match: {prefix: /v1}
    dialect: openai-chat
    tiers:
      - {kind: upstream, name: dead, url: "http://127.0.0.1:9"}
      - {kind: local}
  - name: alone
    match: {prefix: /alone, strip: true}
    dialect: openai-chat
    tiers: [{kind: upstream, name: dead, url: "http://127.0.0.1:9"}]
"""
ANSWERS = '- {question: "How do I reset my password?", answer: Follow the link.}\n'
CONTEXT = "Context:\n[1] Refunds take fourteen days.\n\nQuestion: How many days do refunds take?"


class Asking:
    """Asks a running sidecar, and hears who answered."""

    def __init__(self, sidecar: Sidecar) -> None:
        self.url = sidecar.url

    def __call__(self, question: str, route: str = "v1", **more: Any) -> tuple[str, str]:
        client = OpenAI(base_url=f"{self.url}/{route}", api_key="k", max_retries=0)
        messages: Any = [{"role": "user", "content": question}]
        raw = client.chat.completions.with_raw_response.create(model="m", messages=messages, **more)
        return raw.headers["x-understudy-source"], str(raw.parse().choices[0].message.content)


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "chat.yaml").write_text(POLICIES)
    (folder / "answers").mkdir()
    (folder / "answers" / "faq.yaml").write_text(ANSWERS)
    return folder


def test_each_word_has_its_turn_and_a_changed_file_is_in_force_without_a_restart(policies: Path, state: Path):
    with Sidecar(policies, state) as sidecar:
        ask = Asking(sidecar)
        source, text = ask("how do I reset my password")
        assert source == "pre-computed"
        assert "written beforehand, for the question “How do I reset my password?”:\n\nFollow the link." in text
        eventually(lambda: ask("How could I reset the password?")[0] == "pre-computed")
        assert ask("How do I not reset my password?")[0] != "pre-computed"

        source, text = ask(CONTEXT)
        assert source == "extractive"
        assert "“Refunds take fourteen days.”" in text

        source, text = ask("Zzyzx?", route="alone")
        assert (source, text.endswith("Call 555-0100.")) == ("message", True)

        faq = policies / "answers" / "faq.yaml"
        put_in_place(faq, ANSWERS.replace("Follow the link.", "Ask Ada."))
        eventually(lambda: "Ask Ada." in ask("How do I reset my password?")[1])

        put_in_place(faq, ANSWERS + "- {question: When}\n")
        eventually(lambda: "faq.yaml:2:3" in httpx.get(f"{sidecar.admin_url}/status", timeout=60).text)
        assert "Ask Ada." in ask("How do I reset my password?")[1]


def test_who_asked_for_tools_or_json_gets_an_honest_error(policies: Path, state: Path):
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with Sidecar(policies, state) as sidecar:
        ask = Asking(sidecar)
        for more in ({"tools": tools}, {"response_format": {"type": "json_object"}}):
            with pytest.raises(openai.APIStatusError) as told:
                ask("How do I reset my password?", **more)
            assert told.value.status_code >= 500


def test_a_stream_says_the_same_to_its_end(policies: Path, state: Path):
    with Sidecar(policies, state) as sidecar:
        client = OpenAI(base_url=f"{sidecar.url}/v1", api_key="k", max_retries=0)
        messages: Any = [{"role": "user", "content": "How do I reset my password?"}]
        chunks = list(client.chat.completions.create(model="m", messages=messages, stream=True))
        assert "Follow the link." in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert chunks[-1].choices == [] or chunks[-1].choices[0].finish_reason == "stop"
