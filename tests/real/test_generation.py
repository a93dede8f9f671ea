"""The official SDKs of four providers through the running sidecar: primary up, primary gone, a stream cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import cohere
import httpx
import ollama
import openai
import pytest

from tests.dialects.recorded_exchanges import recorded
from tests.kit.acts import answer, pieces
from tests.kit.fake_upstream import Act, Hosted, in_thread
from tests.kit.processes import Sidecar

pytestmark = pytest.mark.real

PROMPT = "Context:\n\n[1] Refunds take 14 days.\n[2] The office is in Oslo.\n\nQuestion: How long do refunds take?"
ASKED: list[Any] = [{"role": "user", "content": PROMPT}]
POLICIES = """
server: {{listen: "${{UNDERSTUDY_LISTEN}}", admin: "${{UNDERSTUDY_ADMIN}}"}}
# an upstream that was shut a moment ago is asked all the same: whether it is well is another test's
defaults: {{retry: {{attempts: 1}}, breaker: {{enabled: false}}, ramp: {{enabled: false}}}}
routes:
  - {{name: messages, match: {{prefix: /v1/messages}}, dialect: anthropic, tiers: &tiers [{{kind: upstream, name: up,
      url: "{url}"}}, {{kind: local}}]}}
  - {{name: ollama, match: {{prefix: /api}}, dialect: ollama-chat, tiers: *tiers}}
  - {{name: chat, match: {{path: /v1/chat/completions}}, dialect: openai-chat, tiers: *tiers}}
  - {{name: completions, match: {{path: /v1/completions}}, dialect: openai-completions, tiers: *tiers}}
  - {{name: cohere, match: {{path: /v2/chat}}, dialect: cohere-chat, tiers: *tiers}}
  - {{name: responses, match: {{path: /v1/responses}}, dialect: openai-responses, tiers: *tiers}}
"""
COMPLETION = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "text": "Hello", "finish_reason": "stop", "logprobs": None}],
}
COMPLETION_STREAM = f"data: {json.dumps(COMPLETION)}\n\ndata: [DONE]\n\n"


class Client:
    """One SDK: how it asks for a text, whole or streamed, and what it raises for a break."""

    def __init__(
        self,
        whole: Callable[[str], str],
        streamed: Callable[[str], Iterator[str]],
        raises: tuple[type[Exception], ...],
        answers: tuple[Any, str],
        path: str,
        told: str = "broke off",
    ) -> None:
        self.told = told
        self.whole = whole
        self.streamed = streamed
        self.raises = raises
        self.answer, self.stream = answers
        self.path = path


def of_openai(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0, timeout=60)


def of_anthropic(url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key="k", max_retries=0, timeout=60)


def chat(url: str) -> str:
    return of_openai(url).chat.completions.create(model="m", messages=ASKED).choices[0].message.content or ""


def chat_streamed(url: str) -> Iterator[str]:
    for chunk in of_openai(url).chat.completions.create(model="m", messages=ASKED, stream=True):
        yield from (choice.delta.content or "" for choice in chunk.choices)


def completion(url: str) -> str:
    return of_openai(url).completions.create(model="m", prompt=PROMPT).choices[0].text


def completion_streamed(url: str) -> Iterator[str]:
    for chunk in of_openai(url).completions.create(model="m", prompt=PROMPT, stream=True):
        yield from (choice.text for choice in chunk.choices)


def response(url: str) -> str:
    return of_openai(url).responses.create(model="m", input=PROMPT).output_text


def response_streamed(url: str) -> Iterator[str]:
    for event in of_openai(url).responses.create(model="m", input=PROMPT, stream=True):
        if event.type == "response.output_text.delta":
            yield event.delta


def message(url: str) -> str:
    told = of_anthropic(url).messages.create(model="m", max_tokens=99, messages=ASKED)
    return "".join(block.text for block in told.content if block.type == "text")


def message_streamed(url: str) -> Iterator[str]:
    with of_anthropic(url).messages.stream(model="m", max_tokens=99, messages=ASKED) as stream:
        yield from stream.text_stream


def ollama_chat(url: str) -> str:
    return ollama.Client(url).chat("m", ASKED).message.content or ""


def ollama_chat_streamed(url: str) -> Iterator[str]:
    for line in ollama.Client(url).chat("m", ASKED, stream=True):
        yield line.message.content or ""


def ollama_generate(url: str) -> str:
    return ollama.Client(url).generate("m", PROMPT).response


def ollama_generate_streamed(url: str) -> Iterator[str]:
    for line in ollama.Client(url).generate("m", PROMPT, stream=True):
        yield line.response


def of_cohere(url: str) -> cohere.ClientV2:
    return cohere.ClientV2("k", base_url=url, timeout=60)


def cohere_chat(url: str) -> str:
    told = of_cohere(url).chat(model="m", messages=ASKED, request_options={"max_retries": 0})
    return "".join(part.text for part in told.message.content or [] if part.type == "text")


def cohere_chat_streamed(url: str) -> Iterator[str]:
    for event in of_cohere(url).chat_stream(model="m", messages=ASKED, request_options={"max_retries": 0}):
        if event.type == "content-delta":
            assert event.delta is not None
            assert event.delta.message is not None
            assert event.delta.message.content is not None
            yield event.delta.message.content.text or ""


def exchanged(name: str, whole: str, streamed: str) -> tuple[Any, str]:
    found = {each.call: each.json for each in recorded(name)}
    return found[whole], found[streamed]


OF_OPENAI = (openai.APIError,)
OF_OLLAMA = (ollama.ResponseError,)
CLIENTS = {
    "chat": Client(
        chat,
        chat_streamed,
        OF_OPENAI,
        exchanged("openai_chat", "openai chat", "openai chat stream"),
        "/v1/chat/completions",
    ),
    "completions": Client(
        completion, completion_streamed, OF_OPENAI, (COMPLETION, COMPLETION_STREAM), "/v1/completions"
    ),
    "responses": Client(
        response,
        response_streamed,
        OF_OPENAI,
        exchanged("openai_responses", "openai responses", "openai responses stream"),
        "/v1/responses",
    ),
    "messages": Client(
        message,
        message_streamed,
        (anthropic.APIError,),
        exchanged("anthropic", "anthropic messages", "anthropic messages stream"),
        "/v1/messages",
    ),
    "cohere chat": Client(
        cohere_chat,
        cohere_chat_streamed,
        # the SDK raises nothing of an event: what it notices is a body without its end
        (httpx.RemoteProtocolError,),
        exchanged("cohere_chat", "cohere v2 chat", "cohere v2 chat stream"),
        "/v2/chat",
        "incomplete",
    ),
    "ollama chat": Client(
        ollama_chat,
        ollama_chat_streamed,
        OF_OLLAMA,
        exchanged("ollama_chat", "ollama chat", "ollama chat stream"),
        "/api/chat",
    ),
    "ollama generate": Client(
        ollama_generate,
        ollama_generate_streamed,
        OF_OLLAMA,
        (
            {"model": "m", "created_at": "2026-11-22T20:00:00Z", "response": "Hello", "done": True},
            exchanged("ollama_chat", "ollama chat", "ollama generate stream")[1],
        ),
        "/api/generate",
    ),
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Hosted]:
    with in_thread() as hosted:
        yield hosted


@pytest.fixture(scope="module")
def sidecar(upstream: Hosted, made_state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("policies")
    (folder / "all.yaml").write_text(POLICIES.format(url=upstream.url))
    with Sidecar(folder, tmp_path_factory.mktemp("state"), models=made_state / "models") as running:
        yield running


@pytest.fixture(params=CLIENTS, ids=lambda name: name.replace(" ", "-"))
def client(request: pytest.FixtureRequest) -> Client:
    return CLIENTS[request.param]


def streaming(stream: str, **options: Any) -> Act:
    """The recorded bytes of a stream, event by event or line by line."""
    kind, end = ("application/x-ndjson", "\n") if stream.startswith("{") else ("text/event-stream", "\n\n")
    parts = [f"{part}{end}".encode() for part in stream.split(end) if part]
    return pieces(parts[: options.pop("count", None)], headers=[(b"content-type", kind.encode())], **options)


def test_while_the_primary_is_up_an_sdk_sees_what_it_says(upstream: Hosted, sidecar: Sidecar, client: Client):
    upstream.then(answer(body=client.answer), streaming(client.stream))
    assert client.whole(sidecar.url) == "Hello"
    assert "".join(client.streamed(sidecar.url)) == "Hello"
    assert [heard.target.decode() for heard in upstream.heard[-2:]] == [client.path] * 2


def test_when_the_primary_is_gone_an_sdk_reads_sentences_from_its_own_context(
    upstream: Hosted, sidecar: Sidecar, client: Client
):
    upstream.do(upstream.refuse())
    try:
        whole = client.whole(sidecar.url)
        streamed = list(client.streamed(sidecar.url))
    finally:
        upstream.do(upstream.come_back())
    assert "Refunds take 14 days." in whole
    assert "".join(streamed) == whole
    assert len(streamed) > 2


@pytest.mark.parametrize("ending", ["cut", "reset", "whole"])
def test_a_stream_that_is_cut_after_its_first_content_is_never_a_clean_end(
    upstream: Hosted, sidecar: Sidecar, client: Client, ending: Any
):
    end = "\n" if client.stream.startswith("{") else "\n\n"
    # a completion's one chunk has its end with it
    stream = client.stream.replace('"finish_reason": "stop"', '"finish_reason": null')
    events = [part for part in stream.split(end) if part]
    first = next(at for at, part in enumerate(events) if "Hel" in part)
    # twice, and apart: a break that comes with the first content is noticed before anybody was given any
    cut = "".join(part + end for part in [*events[: first + 1], events[first]])
    upstream.then(streaming(cut, ending=ending, gap_s=0.05))
    seen: list[str] = []
    with pytest.raises(client.raises) as caught:
        seen.extend(client.streamed(sidecar.url))
    assert client.told in str(caught.value)


def test_an_error_inside_a_200_is_failed_over_before_the_first_content(
    upstream: Hosted, sidecar: Sidecar, client: Client
):
    lines = client.stream.startswith("{")
    error = (
        '{"error":"overloaded"}\n'
        if lines
        else ('event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n')
    )
    upstream.then(streaming(error))
    assert "Refunds take 14 days." in "".join(client.streamed(sidecar.url))
