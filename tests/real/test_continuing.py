"""Streams of OpenAI's completions and of Azure that break, gone on with by the next tier: the client hears one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from tests.kit.acts import Ending, sse
from tests.kit.fake_upstream import Hosted, in_thread
from tests.kit.processes import Sidecar

pytestmark = pytest.mark.real

POLICIES = """
server: {{listen: "${{UNDERSTUDY_LISTEN}}", admin: "${{UNDERSTUDY_ADMIN}}", access_log: false}}
defaults:
  retry: {{attempts: 1}}
  breaker: {{enabled: false}}
  quota: {{enabled: false}}
  stream: {{after_first_content: continue}}
routes:
  - name: completions
    match: {{path: /v1/completions}}
    dialect: openai-completions
    tiers: [&first {{kind: upstream, name: first, url: "{first}"}},
      {{kind: upstream, name: second, url: "{second}", prefill: true}}]
  - name: azure
    match: {{prefix: /openai/deployments/gpt}}
    dialect: azure-openai-chat
    tiers: [*first, {{kind: upstream, name: vllm, url: "{second}", prefill: true, speaks: openai-chat,
      headers: {{authorization: Bearer second}}, models: {{gpt: llama}}}}]
"""


@dataclass
class Stage:
    """The two upstreams and the sidecar in front of them."""

    first: Hosted
    second: Hosted
    sidecar: Sidecar


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with in_thread() as first, in_thread() as second:
        folder = tmp_path_factory.mktemp("policies")
        (folder / "all.yaml").write_text(POLICIES.format(first=first.url, second=second.url))
        with Sidecar(folder, tmp_path_factory.mktemp("state")) as sidecar:
            yield Stage(first, second, sidecar)


def usage(prompt: int, completion: int) -> dict[str, Any]:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"choices": [], "usage": counts}


def completion(*texts: str, end: str | None = None) -> list[Any]:
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "first-model"}
    told = [head | {"choices": [{"index": 0, "text": text, "finish_reason": None}]} for text in texts]
    last = [head | {"choices": [{"index": 0, "text": "", "finish_reason": end}]}, head | usage(20, len(texts))]
    return told + (last if end else [])


def chat(*texts: str, model: str, end: str | None = None, azure: bool = False) -> list[Any]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}
    found = {"prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}]}
    told = [{"id": "", "object": "", "created": 0, "model": "", "choices": []} | found] if azure else []
    deltas = [{"role": "assistant", "content": ""}, *({"content": text} for text in texts)]
    told += [head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    last = [head | {"choices": [{"index": 0, "delta": {}, "finish_reason": end}]}, head | usage(30, len(texts))]
    return told + (last if end else [])


@pytest.mark.parametrize("ending", ["cut", "reset"])
def test_a_completion_goes_on_as_more_of_its_prompt(stage: Stage, ending: Ending):
    stage.first.then(sse(completion("upon ", "a "), gap_s=0.05, ending=ending))
    stage.second.then(sse(completion("time", ".", end="stop"), gap_s=0.01))
    client = openai.OpenAI(base_url=stage.sidecar.url + "/v1", api_key="k", max_retries=0, timeout=60)
    options: Any = {"stream_options": {"include_usage": True}}
    chunks = list(client.completions.create(model="m", prompt="Once ", max_tokens=50, stream=True, **options))
    told = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.text for choice in told) == "upon a time."
    assert told[-1].finish_reason == "stop"
    assert {(chunk.id, chunk.model) for chunk in chunks} == {("cmpl-1", "first-model")}
    asked = stage.second.heard[-1].json()
    assert (asked["prompt"], asked["max_tokens"]) == ("Once upon a ", 48)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 2 + 2


def test_a_completion_with_log_probabilities_is_not_gone_on_with(stage: Stage):
    before = len(stage.second.heard)
    stage.first.then(sse(completion("upon "), gap_s=0.05, ending="cut"))
    client = openai.OpenAI(base_url=stage.sidecar.url + "/v1", api_key="k", max_retries=0, timeout=60)
    with pytest.raises(openai.APIError, match="broke off"):
        list(client.completions.create(model="m", prompt="Once ", logprobs=1, stream=True))
    assert len(stage.second.heard) == before


def test_azures_stream_is_gone_on_with_by_one_that_speaks_another_dialect(stage: Stage):
    stage.first.then(sse(chat("Hel", "lo ", model="gpt-here", azure=True), gap_s=0.05, ending="cut"))
    stage.second.then(sse(chat("you", ".", model="llama", end="stop"), gap_s=0.01))
    client = openai.AzureOpenAI(
        azure_endpoint=stage.sidecar.url, api_key="k", api_version="2024-10-21", max_retries=0, timeout=60
    )
    asked: Any = [{"role": "user", "content": "Say hello."}]
    chunks = list(client.chat.completions.create(model="gpt", messages=asked, stream=True))
    told = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in told) == "Hello you."
    assert told[-1].finish_reason == "stop"
    assert {(chunk.id, chunk.model) for chunk in chunks if chunk.choices} == {("chatcmpl-1", "gpt-here")}
    heard = stage.second.heard[-1]
    assert heard.target == b"/v1/chat/completions"
    assert heard.json()["messages"][-1] == {"role": "assistant", "content": "Hello "}
    assert (heard.json()["model"], heard.header(b"api-key")) == ("llama", None)
