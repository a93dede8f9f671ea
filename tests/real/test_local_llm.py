"""A small model of the user's own behind the official clients, served by a child of the sidecar or by another."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest

from tests.kit.acts import sse
from tests.kit.fake_upstream import in_thread
from tests.kit.processes import Sidecar, eventually, free_port, is_ready
from tests.kit.tiny_llm import ANSWER, make_llm
from understudy.proxy.llm.child import environment

pytestmark = pytest.mark.real

ASKED: Any = [{"role": "user", "content": "Say it."}]
POLICIES = """
server: {{listen: "${{UNDERSTUDY_LISTEN}}", admin: "${{UNDERSTUDY_ADMIN}}", access_log: false}}
local: {{llm: {{folder: {folder}, listen: "127.0.0.1:{port}", waiting_max: 1, wait_s_max: 20}}}}
defaults: {{retry: {{attempts: 1}}, quota: {{enabled: false}}, breaker: {{enabled: false}}}}
routes:
  - name: chat
    match: {{path: /v1/chat/completions}}
    dialect: openai-chat
    tiers: [&dead {{kind: upstream, name: dead, url: "http://127.0.0.1:9"}}, &small {{kind: upstream, name: small,
      speaks: openai-chat, url: "http://127.0.0.1:{port}", headers: {{authorization: Bearer none}},
      outcomes: [{{code: unsupported, outcome: caller, follow: tier, reason: unsupported}}]}}]
  - {{name: messages, match: {{prefix: /v1/messages}}, dialect: anthropic, tiers: [*dead, *small]}}
  - {{name: lines, match: {{prefix: /api}}, dialect: ollama-chat, tiers: [*dead, *small]}}
"""


def policies(folder: Path, model: Path, port: int) -> Path:
    folder.mkdir()
    (folder / "all.yaml").write_text(POLICIES.format(folder=model, port=port))
    return folder


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def sidecar(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    pytest.importorskip("onnxruntime_genai", reason="needs the extra `genai`")
    folder = tmp_path_factory.mktemp("llm")
    make_llm(folder / "tiny")
    with Sidecar(policies(folder / "policies", folder / "tiny", port), folder / "state") as running:
        eventually(lambda: is_ready(port, "/healthz"))
        yield running


def gpt(sidecar: Sidecar) -> openai.OpenAI:
    return openai.OpenAI(base_url=sidecar.url + "/v1", api_key="callers-key", max_retries=0, timeout=60)


def test_the_openai_client_is_answered_by_the_local_model(sidecar: Sidecar):
    told = gpt(sidecar).chat.completions.with_raw_response.create(model="gpt", messages=ASKED)
    whole = told.parse()
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (ANSWER, "stop")
    assert (whole.model, told.headers["x-understudy-source"]) == ("tiny", "small")
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(ANSWER) + 1
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(gpt(sidecar).chat.completions.create(model="gpt", messages=ASKED, **options))
    words = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert words == list(ANSWER)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(ANSWER) + 1


def test_callers_of_other_dialects_are_told_in_theirs(sidecar: Sidecar):
    claude = anthropic.Anthropic(base_url=sidecar.url, api_key="k", max_retries=0, timeout=60)
    with claude.messages.stream(model="claude", max_tokens=5, messages=ASKED) as stream:
        assert list(stream.text_stream) == list(ANSWER[:5])
        assert stream.get_final_message().stop_reason == "max_tokens"
    lines = list(ollama.Client(sidecar.url, timeout=60).chat("llama", ASKED, stream=True, options={"stop": ["ef"]}))
    assert "".join(line.message.content or "" for line in lines) == "abcd"
    assert (lines[-1].done, lines[-1].done_reason) == (True, "stop")


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "JSON"),
        ({"n": 2}, "`n`"),
    ],
)
def test_what_it_cannot_do_is_said(sidecar: Sidecar, more: dict[str, Any], what: str):
    with pytest.raises(openai.APIStatusError, match="more than this local model can do") as caught:
        gpt(sidecar).chat.completions.create(model="gpt", messages=ASKED, **more)
    assert what in str(caught.value)


def test_a_prompt_that_is_too_long_is_the_callers(sidecar: Sidecar):
    asked: Any = [{"role": "user", "content": "x" * 300}]
    with pytest.raises(openai.BadRequestError, match="context 256"):
        gpt(sidecar).chat.completions.create(model="gpt", messages=asked)


def test_the_child_comes_back_and_knows_no_key(sidecar: Sidecar, port: int):
    before = _child_of(sidecar.pid)
    told = Path(f"/proc/{before}/environ").read_bytes()
    assert b"UNDERSTUDY_" not in told
    os.kill(before, signal.SIGKILL)
    eventually(lambda: _child_of(sidecar.pid) not in (0, before) and is_ready(port, "/healthz"))
    told_again = gpt(sidecar).chat.completions.create(model="gpt", messages=ASKED)
    assert told_again.choices[0].message.content == ANSWER


def _child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next((int(each) for each in children if b"llm" in _command_of(each)), 0)


def _command_of(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        # it has ended since it was named
        return b""


def test_an_environment_is_told_without_its_secrets():
    known = {"PATH": "/bin", "LD_LIBRARY_PATH": "/l", "OPENAI_API_KEY": "k", "AWS_SECRET": "s", "LC_ALL": "C"}
    assert environment(known) == {"PATH": "/bin", "LD_LIBRARY_PATH": "/l", "LC_ALL": "C"}


def test_missing_weights_are_said_and_nothing_else_suffers(tmp_path: Path):
    port = free_port()
    with Sidecar(policies(tmp_path / "policies", tmp_path / "nowhere", port), tmp_path / "state") as running:
        eventually(lambda: "can't be served" in running.logs())
        with pytest.raises(openai.InternalServerError, match="no weights here") as caught:
            gpt(running).chat.completions.create(model="gpt", messages=ASKED)
        assert caught.value.status_code == 503
        child = _child_of(running.pid)
    eventually(lambda: not Path(f"/proc/{child}").exists())


def test_any_server_of_openais_protocol_on_this_machine_will_do(tmp_path: Path):
    """As policies/examples/local_llm.yaml has it, with llama.cpp's, vLLM's or Ollama's in the place of this one."""
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "small"}
    deltas: list[Any] = [{"role": "assistant"}, {"content": "From "}, {"content": "here."}]
    told: list[Any] = [chunk | {"choices": [{"index": 0, "delta": each, "finish_reason": None}]} for each in deltas]
    told.append(chunk | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    with in_thread(sse(told)) as server:
        example = Path("policies/examples/local_llm.yaml").read_text()
        text = example.replace("http://127.0.0.1:8080", server.url).replace(
            "https://api.openai.com", "http://127.0.0.1:9"
        )
        # the last tier has no part in it, and takes a minute to be made
        text = text.replace("      - {kind: local}\n", "")
        server_line = 'server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}"}\n'
        (tmp_path / "policies").mkdir()
        (tmp_path / "policies" / "all.yaml").write_text(server_line + text)
        with Sidecar(tmp_path / "policies", tmp_path / "state") as running:
            chunks = list(gpt(running).chat.completions.create(model="gpt-4o", messages=ASKED, stream=True))
            words = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
            assert words == ["From ", "here."]
            heard = server.heard[-1]
            assert heard.json()["model"] == "small"
            assert b"callers-key" not in heard.raw
