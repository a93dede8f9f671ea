"""Tokens as each API tells them, at the end of an answer of any length; and a guess where none are told."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dialects.recorded_exchanges import recorded
from understudy.policies.usage import Usage
from understudy.proxy.dialects.usage import (
    WAYS,
    estimated_input,
    estimated_output,
    model_in,
    told_in_body,
    told_in_stream,
)

FILES = {
    "openai_chat": "openai-chat",
    "openai_responses": "openai-responses",
    "openai_embeddings": "openai-embeddings",
    "azure_openai_chat": "azure-openai-chat",
    "azure_openai_embeddings": "azure-openai-embeddings",
    "anthropic": "anthropic",
    "ollama_chat": "ollama-chat",
    "ollama_embed": "ollama-embed",
    "cohere_chat": "cohere-chat",
    "cohere_embed": "cohere-embed",
}
# what these answers of real servers say, whole and streamed; two of Ollama's say nothing
SAID = {
    "openai-chat": {(5, 1), (5, 2)},
    "openai-responses": {(5, 1)},
    "openai-embeddings": {(3, 0)},
    "azure-openai-chat": {(5, 1)},
    "azure-openai-embeddings": {(3, 0)},
    "anthropic": {(5, 1), (5, 2)},
    "ollama-chat": {(5, 1), None},
    "ollama-embed": {(8, 0), None},
    "cohere-chat": {(3, 1)},
    "cohere-embed": {(2, 0)},
}


@pytest.mark.parametrize(("file", "dialect"), FILES.items(), ids=FILES.values())
def test_what_recorded_answers_say_is_read_whole_and_streamed(file: str, dialect: str):
    said: set[tuple[int, int] | None] = set()
    for exchange in recorded(file):
        body, way = exchange.answer.body, WAYS[dialect]
        told = told_in_stream(way, body[:4096], body[-4096:]) if exchange.is_stream else told_in_body(way, body)
        said.add(None if told is None else (told.input, told.output))
    assert said == SAID[dialect]


def body(usage: Any, **more: Any) -> bytes:
    return json.dumps({"id": "c", "model": "m", **more, "usage": usage, "service_tier": "default"}, indent=2).encode()


CHAT = WAYS["openai-chat"]


def test_cached_and_reasoning_tokens_are_told_apart_where_the_api_does():
    openai = {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 64},
        "completion_tokens_details": {"reasoning_tokens": 12},
    }
    assert told_in_body(CHAT, body(openai)) == Usage("", 100, 20, 64, 0, 12)
    responses = {
        "input_tokens": 100,
        "output_tokens": 20,
        "input_tokens_details": {"cached_tokens": 64},
        "output_tokens_details": {"reasoning_tokens": 12},
    }
    assert told_in_body(WAYS["openai-responses"], body(responses)) == Usage("", 100, 20, 64, 0, 12)
    anthropic = {
        "input_tokens": 30,
        "cache_read_input_tokens": 60,
        "cache_creation_input_tokens": 10,
        "output_tokens": 20,
    }
    assert told_in_body(WAYS["anthropic"], body(anthropic)) == Usage("", 100, 20, 60, 10)


def test_a_usage_that_is_not_the_bodys_own_is_not_believed():
    fake = {"prompt_tokens": 1, "completion_tokens": 1}
    text = json.dumps({"usage": fake})
    own = {"prompt_tokens": 7, "completion_tokens": 3}
    for more in ({"content": [{"input": {"usage": fake}}]}, {"content": text}, {"content": "usage"}):
        for written in (body(own, **more), json.dumps({"usage": own, **more}).encode()):
            assert told_in_body(CHAT, written) == Usage("", 7, 3)
    assert told_in_body(CHAT, json.dumps({"choices": [{"usage": fake}]}).encode()) is None
    assert told_in_body(CHAT, json.dumps({"content": text, "usage": None}).encode()) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just("usage") | st.just('"usage": {"prompt_tokens": 9}'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("usage"), inner, max_size=3),
    max_leaves=8,
)


@given(before=st.dictionaries(st.text(), JSON, max_size=3), after=st.dictionaries(st.text(), JSON, max_size=2))
def test_whatever_stands_round_it_only_the_top_level_usage_counts(before: dict[str, Any], after: dict[str, Any]):
    before.pop("usage", None)
    after.pop("usage", None)
    own = {"prompt_tokens": 11, "completion_tokens": 4}
    whole = json.dumps({**before, "usage": own, **{key: value for key, value in after.items() if key not in before}})
    assert told_in_body(CHAT, whole.encode()) == Usage("", 11, 4)
    without = json.dumps({**before, **after})
    assert told_in_body(CHAT, without.encode()) is None


def test_garbage_and_counts_that_are_no_numbers_tell_nothing():
    for told in (b"", b"{", b'{"usage"', b'{"usage": ', b'"usage": {"prompt_tokens": 1}', b"\xff" * 50, body("x")):
        assert told_in_body(CHAT, told) is None
    assert told_in_body(CHAT, body({"prompt_tokens": "7"})) is None
    assert told_in_body(CHAT, body({"prompt_tokens": -7, "completion_tokens": 2.0})) == Usage("", 0, 2)


def test_the_end_of_a_long_event_is_enough_when_the_rest_of_it_is_no_longer_kept():
    response = {"id": "r", "output": [{"text": "word " * 4000}], "usage": {"input_tokens": 9, "output_tokens": 4000}}
    event = {"type": "response.completed", "response": response | {"user": None, "metadata": {}}}
    stream = b"event: response.completed\ndata: " + json.dumps(event).encode() + b"\n\n"
    assert told_in_stream(WAYS["openai-responses"], b"", stream[-4096:]) == Usage("", 9, 4000)


def test_a_stream_that_was_not_asked_for_its_usage_tells_none():
    event = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"usage"}}],"usage":null}\n\n'
    assert told_in_stream(CHAT, b"", event * 3 + b"data: [DONE]\n\n") is None


def test_the_model_is_the_bodys_own_and_a_name_that_is_no_label_is_none():
    assert model_in(b'{"id": "c", "model" : "gpt-4o-mini-2024-07-18", "choices": []}') == "gpt-4o-mini-2024-07-18"
    assert model_in(json.dumps({"content": '"model": "fake"', "model": "meta-llama/Llama-3.3"}).encode()) == (
        "meta-llama/Llama-3.3"
    )
    assert model_in(b'{"model": "%s"}' % (b"x" * 65)) == ""
    assert model_in(b'{"model": "a\\"b"}') == ""
    assert model_in(b'{"model": 7}') == ""


def test_four_bytes_are_a_token_where_nobody_tells_and_a_picture_is_none():
    assert estimated_input(b"x" * 400) == 100
    picture = base64.b64encode(bytes(300_000))
    assert estimated_input(b'{"image_url": "data:image/png;base64,%s", "text": "what is it?"}' % picture) < 30


def test_of_an_answer_only_its_texts_are_guessed_by_and_the_last_of_a_stream_stands_for_all_of_it():
    answer = json.dumps({"id": "c" * 500, "choices": [{"message": {"content": "x" * 400}}]}).encode()
    assert estimated_output(answer, len(answer)) == 100
    event = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"four"}}]}\n\n'
    assert estimated_output(event * 50, len(event) * 2000) == 2000
    assert estimated_output(b"", 0) == 0
