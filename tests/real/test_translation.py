"""The official SDKs on routes whose second tier speaks another provider's words: whole, streamed, with tools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import openai
import pytest

from tests.dialects.recorded_exchanges import recorded
from tests.kit.acts import answer, pieces
from tests.kit.fake_upstream import Act, Hosted, in_thread
from tests.kit.processes import Sidecar

pytestmark = pytest.mark.real

ASKED: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
POLICIES = """
server: {{listen: "${{UNDERSTUDY_LISTEN}}", admin: "${{UNDERSTUDY_ADMIN}}"}}
defaults: {{retry: {{attempts: 1}}, breaker: {{enabled: false}}, quota: {{enabled: false}}}}
routes:
  - name: chat
    match: {{path: /v1/chat/completions}}
    dialect: openai-chat
    tiers: [&down {{kind: upstream, name: first, url: "http://127.0.0.1:9"}}, &claude {{kind: upstream, name: claude,
      speaks: anthropic, url: "{url}", models: {{gpt: claude-x}}, headers: {{x-api-key: second-key}}}}]
  - name: to-ollama
    match: {{prefix: /ollama, strip: true}}
    dialect: openai-chat
    tiers: [*down, {{kind: upstream, name: llama, speaks: ollama-chat, url: "{url}", models: {{"*": llama3.2}}}}]
  - name: to-openai
    match: {{prefix: /other, strip: true}}
    dialect: openai-chat
    tiers: [*down, {{kind: upstream, name: other, speaks: openai-chat, url: "{url}", models: {{gpt: gpt-other}},
      headers: {{authorization: Bearer second-key}}}}]
  - name: messages
    match: {{prefix: /v1/messages}}
    dialect: anthropic
    tiers: [*down, {{kind: upstream, name: gpt, speaks: openai-chat, url: "{url}", models: {{claude: gpt-x}},
      headers: {{authorization: Bearer second-key}}}}]
  - {{name: ollama, match: {{prefix: /api}}, dialect: ollama-chat, tiers: [*down, *claude]}}
"""
ANSWERS = {each.call: each.json for name in ("anthropic", "openai_chat", "ollama_chat") for each in recorded(name)}
USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}}


@pytest.fixture(scope="module")
def provider() -> Iterator[Hosted]:
    with in_thread() as hosted:
        yield hosted


@pytest.fixture(scope="module")
def sidecar(provider: Hosted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("policies")
    (folder / "all.yaml").write_text(POLICIES.format(url=provider.url))
    with Sidecar(folder, tmp_path_factory.mktemp("state")) as running:
        yield running


def gpt(sidecar: Sidecar, path: str = "/v1") -> openai.OpenAI:
    headers = {"openai-organization": "org-first", "cookie": "c=first"}
    return openai.OpenAI(
        base_url=sidecar.url + path, api_key="first-key", max_retries=0, timeout=60, default_headers=headers
    )


def claude(sidecar: Sidecar) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=sidecar.url, api_key="first-key", max_retries=0, timeout=60)


def streaming(stream: str, count: int | None = None, **options: Any) -> Act:
    """The recorded bytes of a stream, event by event or line by line."""
    kind, end = ("application/x-ndjson", "\n") if stream.startswith("{") else ("text/event-stream", "\n\n")
    parts = [f"{part}{end}".encode() for part in stream.split(end) if part]
    return pieces(parts[:count], headers=[(b"content-type", kind.encode())], **options)


def event(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n"


def tool_stream() -> str:
    """A tool's use as Anthropic streams it, its arguments in pieces."""
    start = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": []}
    deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ("", '{"ci', 'ty": "Oslo"}')]
    return "".join(
        [
            event("message_start", message=start | {"usage": {"input_tokens": 9, "output_tokens": 1}}),
            event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
            event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Let me see."}),
            event("content_block_stop", index=0),
            event("content_block_start", index=1, content_block=USE | {"input": {}}),
            *(event("content_block_delta", index=1, delta=delta) for delta in deltas),
            event("content_block_stop", index=1),
            event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 7}),
            event("message_stop"),
        ]
    )


# --- OpenAI's callers ----------------------------------------------------------------------------------------------


def test_the_openai_sdk_is_answered_by_anthropic_in_its_own_words(provider: Hosted, sidecar: Sidecar):
    provider.then(answer(body=ANSWERS["anthropic messages"]))
    raw = gpt(sidecar).chat.completions.with_raw_response.create(model="gpt", messages=ASKED, max_tokens=16)
    told = raw.parse()
    assert (told.choices[0].message.content, told.choices[0].finish_reason) == ("Hello", "stop")
    assert told.model == "claude-x"
    assert told.usage is not None
    assert (told.usage.prompt_tokens, told.usage.completion_tokens, told.usage.total_tokens) == (5, 1, 6)
    assert raw.headers["x-understudy-tier"] == "secondary"
    assert raw.headers["x-understudy-source"] == "claude"
    heard = provider.heard[-1]
    assert heard.target == b"/v1/messages"
    assert heard.json() == {
        "model": "claude-x",
        "max_tokens": 16,
        "system": [{"type": "text", "text": "Be brief."}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    }


@pytest.mark.parametrize("path", ["/v1", "/ollama/v1", "/other/v1"])
def test_nothing_of_the_callers_own_keys_reaches_the_second_provider(provider: Hosted, sidecar: Sidecar, path: str):
    bodies = {"/v1": "anthropic messages", "/ollama/v1": "ollama chat", "/other/v1": "openai chat"}
    provider.then(answer(body=ANSWERS[bodies[path]]))
    told = gpt(sidecar, path).chat.completions.create(model="gpt", messages=ASKED)
    assert told.choices[0].message.content == "Hello"
    heard = provider.heard[-1]
    assert b"first" not in heard.raw
    assert b"stainless" not in heard.raw.lower()
    keys = {"/v1": (b"x-api-key", b"second-key"), "/other/v1": (b"authorization", b"Bearer second-key")}
    if path in keys:
        assert heard.header(keys[path][0]) == keys[path][1]
    assert heard.json()["model"] == {"/v1": "claude-x", "/ollama/v1": "llama3.2", "/other/v1": "gpt-other"}[path]


@pytest.mark.parametrize(("path", "call"), [("/v1", "anthropic messages stream"), ("/ollama/v1", "ollama chat stream")])
def test_a_stream_is_told_in_the_callers_events_with_its_usage(
    provider: Hosted, sidecar: Sidecar, path: str, call: str
):
    provider.then(streaming(ANSWERS[call], gap_s=0.01))
    stream = gpt(sidecar, path).chat.completions.create(
        model="gpt", messages=ASKED, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 5


def test_tools_are_used_over_both_turns(provider: Hosted, sidecar: Sidecar):
    said = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": [USE]}
    provider.then(
        answer(body=said | {"stop_reason": "tool_use", "usage": {"input_tokens": 9, "output_tokens": 7}}),
        answer(body=ANSWERS["anthropic messages"]),
    )
    client = gpt(sidecar)
    told = client.chat.completions.create(model="gpt", messages=ASKED, tools=TOOLS)
    message = told.choices[0].message
    assert told.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls is not None
    call: Any = message.tool_calls[0]
    assert (call.id, call.function.name, json.loads(call.function.arguments)) == (
        "toolu_1",
        "weather",
        {"city": "Oslo"},
    )
    results = [message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "Rain."}]
    told = client.chat.completions.create(model="gpt", messages=[*ASKED, *results], tools=TOOLS)
    assert told.choices[0].message.content == "Hello"
    heard = provider.heard[-1].json()
    assert heard["messages"][1:] == [
        {"role": "assistant", "content": [USE]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "Rain."}]},
    ]
    assert heard["tools"][0]["input_schema"] == TOOLS[0]["function"]["parameters"]


def test_a_tools_arguments_are_streamed_in_pieces(provider: Hosted, sidecar: Sidecar):
    provider.then(streaming(tool_stream(), gap_s=0.005))
    with gpt(sidecar).chat.completions.stream(model="gpt", messages=ASKED, tools=TOOLS) as stream:
        final = stream.get_final_completion()
    message = final.choices[0].message
    assert message.content == "Let me see."
    assert message.tool_calls is not None
    call: Any = message.tool_calls[0]
    assert (call.id, call.function.name, json.loads(call.function.arguments)) == (
        "toolu_1",
        "weather",
        {"city": "Oslo"},
    )
    assert final.choices[0].finish_reason == "tool_calls"


def test_a_json_answer_is_asked_for_as_a_tool_and_comes_back_as_text(provider: Hosted, sidecar: Sidecar):
    use = USE | {"name": "json_answer", "input": {"city": "Oslo"}}
    said = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": [use]}
    provider.then(answer(body=said | {"stop_reason": "tool_use", "usage": {"input_tokens": 9, "output_tokens": 7}}))
    told = gpt(sidecar).chat.completions.create(model="gpt", messages=ASKED, response_format={"type": "json_object"})
    assert json.loads(told.choices[0].message.content or "") == {"city": "Oslo"}
    assert told.choices[0].finish_reason == "stop"
    assert provider.heard[-1].json()["tool_choice"] == {"type": "tool", "name": "json_answer"}


@pytest.mark.parametrize("ending", ["cut", "reset", "whole"])
def test_a_translated_stream_that_is_cut_raises_in_the_sdk(provider: Hosted, sidecar: Sidecar, ending: Any):
    provider.then(streaming(tool_stream(), count=6, ending=ending, gap_s=0.05))
    with pytest.raises(openai.APIError, match="broke off"):
        list(gpt(sidecar).chat.completions.create(model="gpt", messages=ASKED, stream=True))


def test_an_error_after_the_first_content_raises_too_and_the_provider_is_let_go(provider: Hosted, sidecar: Sidecar):
    error = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    begun = "".join(part + "\n\n" for part in tool_stream().split("\n\n")[:3])
    provider.then(streaming(begun + error, ending="stall", gap_s=0.05))
    with pytest.raises(openai.APIError, match="error_in_stream"):
        list(gpt(sidecar).chat.completions.create(model="gpt", messages=ASKED, stream=True))


def test_an_error_inside_a_200_is_an_error_of_ours_when_nobody_else_is_left(provider: Hosted, sidecar: Sidecar):
    start = tool_stream().partition("\n\n")[0] + "\n\n"
    error = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    provider.then(streaming(start + error))
    with pytest.raises(openai.APIStatusError) as caught:
        gpt(sidecar).chat.completions.create(model="gpt", messages=ASKED, stream=True)
    assert caught.value.status_code >= 500


def test_the_providers_error_comes_in_the_callers_shape(provider: Hosted, sidecar: Sidecar):
    body = {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 9 > 8"}}
    provider.then(answer(400, body=body))
    with pytest.raises(openai.BadRequestError, match="prompt is too long") as caught:
        gpt(sidecar).chat.completions.create(model="gpt", messages=ASKED)
    assert caught.value.code == "context_length"
    busy = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    provider.then(answer(529, body=busy, headers=[(b"retry-after", b"3")]))
    with pytest.raises(openai.InternalServerError, match="Overloaded") as overloaded:
        gpt(sidecar).chat.completions.create(model="gpt", messages=ASKED)
    assert overloaded.value.status_code == 503


@pytest.mark.parametrize(
    ("options", "why"),
    [({"n": 2}, "`n`"), ({"model": "unknown"}, "stands for"), ({"logit_bias": {"1": 1}}, "logit_bias")],
)
def test_what_cannot_be_translated_is_not_asked(provider: Hosted, sidecar: Sidecar, options: dict[str, Any], why: str):
    before = len(provider.heard)
    with pytest.raises(openai.APIStatusError) as caught:
        gpt(sidecar).chat.completions.create(**({"model": "gpt", "messages": ASKED} | options))
    assert why in str(caught.value)
    assert len(provider.heard) == before


# --- the others' callers -------------------------------------------------------------------------------------------


def test_the_anthropic_sdk_is_answered_by_openai(provider: Hosted, sidecar: Sidecar):
    provider.then(answer(body=ANSWERS["openai chat"]), streaming(ANSWERS["openai chat stream"], gap_s=0.01))
    asked: Any = {"model": "claude", "max_tokens": 16, "system": "Be brief.", "messages": ASKED[1:]}
    told = claude(sidecar).messages.create(**asked)
    assert (told.content[0].to_dict()["text"], told.stop_reason) == ("Hello", "end_turn")
    assert (told.usage.input_tokens, told.usage.output_tokens) == (5, 1)
    with claude(sidecar).messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert (text, final.stop_reason) == ("Hello", "end_turn")
    assert (final.usage.input_tokens, final.usage.output_tokens) == (5, 2)
    assert b"first-key" not in provider.heard[-1].raw
    assert provider.heard[-1].header(b"anthropic-version") is None


def test_a_stream_of_openais_that_is_cut_raises_in_the_anthropic_sdk(provider: Hosted, sidecar: Sidecar):
    provider.then(streaming(ANSWERS["openai chat stream"], count=3, ending="cut", gap_s=0.05))
    with (
        pytest.raises(anthropic.APIError, match="broke off"),
        claude(sidecar).messages.stream(model="claude", max_tokens=16, messages=ASKED[1:]) as stream,
    ):
        list(stream.text_stream)


def test_the_ollama_client_is_answered_by_anthropic(provider: Hosted, sidecar: Sidecar):
    provider.then(
        answer(body=ANSWERS["anthropic messages"]),
        streaming(ANSWERS["anthropic messages stream"], gap_s=0.01),
        streaming(tool_stream(), gap_s=0.005),
        streaming(tool_stream(), count=6, ending="cut", gap_s=0.05),
    )
    client = ollama.Client(sidecar.url)
    assert client.chat("gpt", ASKED).message.content == "Hello"
    assert "".join(line.message.content or "" for line in client.chat("gpt", ASKED, stream=True)) == "Hello"
    lines = list(client.chat("gpt", ASKED, tools=TOOLS, stream=True))
    calls = [call for line in lines for call in line.message.tool_calls or ()]
    assert [(call.function.name, call.function.arguments) for call in calls] == [("weather", {"city": "Oslo"})]
    assert lines[-1].done
    with pytest.raises(ollama.ResponseError, match="broke off"):
        list(client.chat("gpt", ASKED, stream=True))
