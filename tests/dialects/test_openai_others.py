"""OpenAI's completions and responses: what primes a stream, what ends it, and what a quotation looks like in one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dialects.check_dialect import check_dialect, check_reading, check_stream, in_all_line_ends, primed_at
from tests.dialects.recorded_exchanges import recorded, request
from tests.dialects.streams import TEXT, WRITTEN, streamed
from understudy.policies.service import Answer, Failed, Refused
from understudy.proxy.asks import GenerateAsk
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.base import BadRequest
from understudy.proxy.dialects.sse import events

COMPLETIONS, RESPONSES = DIALECTS["openai-completions"], DIALECTS["openai-responses"]
PATHS = {COMPLETIONS.name: "/v1/completions", RESPONSES.name: "/v1/responses"}
PROMPTS = {COMPLETIONS.name: {"prompt": "Hello?"}, RESPONSES.name: {"input": "Hello?"}}


def asked(dialect: Any, **body: Any) -> GenerateAsk:
    given = PROMPTS[dialect.name] | {"model": "m"} | body
    ask = dialect.ask(dialect.read(request("POST", PATHS[dialect.name], given)))
    assert isinstance(ask, GenerateAsk)
    return ask


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n".encode()


CREATED = event("response.created", response={"status": "in_progress", "usage": None, "error": None})
ADDED = event("response.output_item.added", item={"type": "message", "content": []})
PART = event("response.content_part.added", part={"type": "output_text", "text": ""})
DELTA = event("response.output_text.delta", delta="Hel")
DONE = event("response.completed", response={"status": "completed", "usage": {"total_tokens": 7}})


def test_they_do_what_every_dialect_must():
    check_dialect(COMPLETIONS, [])
    check_dialect(RESPONSES, recorded("openai_responses"))


VALUES = st.none() | st.booleans() | st.integers(-2, 3) | st.text(max_size=3) | st.just([]) | st.just({"type": "x"})
FIELDS = ("prompt", "input", "stream", "n", "echo", "tools", "text", "instructions", "conversation", "stream_options")


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES), st.sampled_from([COMPLETIONS, RESPONSES]))
def test_no_json_breaks_the_reading(fields: dict[str, Any], dialect: Any):
    check_reading(dialect, request("POST", PATHS[dialect.name], fields))


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (COMPLETIONS, {"prompt": ["a", "b"]}),
        (COMPLETIONS, {"prompt": [[1, 2]]}),
        (COMPLETIONS, {"prompt": None}),
        (COMPLETIONS, {"n": 2}),
        (COMPLETIONS, {"echo": True}),
        (COMPLETIONS, {"logprobs": 0}),
        (COMPLETIONS, {"suffix": "x"}),
        (RESPONSES, {"previous_response_id": "resp_1"}),
        (RESPONSES, {"conversation": "c"}),
        (RESPONSES, {"background": True}),
        (RESPONSES, {"input": [{"type": "function_call_output", "output": "x"}]}),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
    ],
)
def test_what_one_text_cannot_answer_is_refused(dialect: Any, body: dict[str, Any]):
    with pytest.raises(Refused):
        asked(dialect, **body)


@pytest.mark.parametrize("body", [{"input": []}, {"input": [{"content": "x"}]}, {"input": 1}])
def test_what_openai_would_not_take_is_the_callers_fault(body: dict[str, Any]):
    with pytest.raises(BadRequest):
        asked(RESPONSES, **body)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function"}], "tool_choice": "none"}, ""),
        ({"text": {"format": {"type": "json_schema"}}}, "json_schema"),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, ""),
    ],
)
def test_a_prompt_says_which_structure_its_answer_must_have(body: dict[str, Any], why: str):
    assert asked(RESPONSES, **body).structured == why


def test_the_items_of_an_input_are_messages():
    ask = asked(
        RESPONSES,
        instructions="Be brief.",
        input=[{"role": "user", "content": [{"type": "input_text", "text": "a"}]}, {"role": "user", "content": "b"}],
    )
    assert [message["content"] for message in ask.messages] == ["Be brief.", [{"type": "text", "text": "a"}], "b"]


@pytest.mark.parametrize(
    "content",
    [
        DELTA,
        event("response.output_item.added", item={"type": "function_call", "name": "f"}),
        event("response.content_part.added", part={"type": "output_text", "text": "Hel"}),
        event("response.refusal.delta", delta="No"),
        DONE,
        event("response.incomplete", response={}),
        event("response.something_new"),
    ],
)
def test_content_primes_a_response_and_what_comes_before_it_does_not(content: bytes):
    before = CREATED + event("response.in_progress", response={}) + event("keepalive") + ADDED + PART
    before += event("response.output_item.added", item={"type": "reasoning"}) + event(
        "response.output_text.delta", delta=""
    )
    for whole in in_all_line_ends(before + content):
        at = primed_at(RESPONSES, whole, range(len(whole) + 1))
        assert at is not None
        assert len(whole) - 2 <= at <= len(whole)


@pytest.mark.parametrize(
    ("error", "word", "again"),
    [
        (event("error", code="server_error", message="secret words"), "server_error", True),
        (event("error", error={"code": "insufficient_quota"}), "insufficient_quota", False),
        (event("response.failed", response={"error": {"code": "server_error"}}), "server_error", True),
        (event("response.failed", response={"error": None}), "unnamed", True),
    ],
)
def test_an_error_inside_a_200_fails_the_response(error: bytes, word: str, again: bool):
    with pytest.raises(Failed) as caught:
        RESPONSES.primed(CREATED + ADDED + error)
    assert (caught.value.reason, caught.value.detail, caught.value.again) == ("error_in_stream", word, again)


LONG = {"status": "completed", "output": [{"text": 'He said: "total_tokens": 7' * 500}], "usage": {"total_tokens": 7}}


@pytest.mark.parametrize(
    ("tail", "complete"),
    [
        (b"", False),
        (DELTA, False),
        (event("response.output_text.done", text='"total_tokens": 7'), False),
        (event("response.output_text.done", text='"total_tokens": 7}' * 500)[-4096:], False),
        (event("response.output_item.done", item={}), False),
        (event("response.failed", response={}), False),
        (event("response.incomplete", response={}), True),
        (DONE, True),
        (DONE[:-2], True),
        (DONE[:-3], False),
        (event("response.completed", response=LONG)[-4096:], True),
        (event("response.completed", response=LONG)[-4096:-6], False),
    ],
)
def test_only_a_completed_response_proves_that_a_stream_is_whole(tail: bytes, complete: bool):
    assert RESPONSES.stream_complete(tail) is complete


def test_a_break_inside_an_event_does_not_swallow_the_error():
    for dialect in (COMPLETIONS, RESPONSES):
        for cut in range(len(CREATED) + 1):
            broken = CREATED[:cut] + dialect.broken_off("reset")
            assert json.loads(list(events(broken))[-1][1])["error"]["code"] == "stream_broken"
            assert not dialect.stream_complete(broken)


@pytest.mark.parametrize("dialect", [COMPLETIONS, RESPONSES], ids=lambda dialect: dialect.name)
def test_a_text_is_written_whole_or_in_pieces_and_is_a_sound_stream(dialect: Any):
    whole = json.loads(dialect.generated(asked(dialect), WRITTEN).body)
    stream = streamed(dialect.generated(asked(dialect, stream=True), WRITTEN))
    check_stream(dialect, stream)
    told = [json.loads(data) for _, data in events(stream) if data != b"[DONE]"]
    if dialect is COMPLETIONS:
        assert whole["choices"][0]["text"] == TEXT
        assert "".join(chunk["choices"][0]["text"] for chunk in told) == TEXT
    else:
        assert whole["output"][0]["content"][0]["text"] == TEXT
        assert "".join(each["delta"] for each in told if each["type"].endswith("text.delta")) == TEXT
        assert [each["sequence_number"] for each in told] == list(range(len(told)))
        assert told[-1]["response"] == whole
    assert whole["usage"]["total_tokens"] == 16
    assert whole["understudy"]["fallback"] is True


def test_a_response_that_failed_is_a_failure_inside_a_200():
    failed = b'{"status":"failed","error":{"code":"server_error"}}'
    assert RESPONSES.failure_within(Answer(200, [], failed)) == "error_in_200"
    fine = b'{"output":[{"status":"failed"}],"status":"completed","error":null}'
    assert RESPONSES.failure_within(Answer(200, [], fine)) == ""
