"""Anthropic's messages: what primes a stream, what ends it, what breaks it, and what a quotation looks like in one."""

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
from understudy.proxy.caching.keys import Scope
from understudy.proxy.caching.scopes import prompt_of
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.anthropic import event_bytes
from understudy.proxy.dialects.base import BadRequest
from understudy.proxy.dialects.sse import events

ANTHROPIC = DIALECTS["anthropic"]
HELLO = [{"role": "user", "content": "Hello?"}]
START = event_bytes("message_start", {"message": {"role": "assistant", "content": [], "usage": {"output_tokens": 1}}})
EMPTY = event_bytes("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}})
PING = event_bytes("ping", {})
STOP = event_bytes("message_stop", {})


def said(text: str) -> bytes:
    return event_bytes("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": text}})


def asked(**body: Any) -> GenerateAsk:
    ask = ANTHROPIC.ask(ANTHROPIC.read(request("POST", "/v1/messages", {"messages": HELLO, "model": "m"} | body)))
    assert isinstance(ask, GenerateAsk)
    return ask


def test_it_does_what_every_dialect_must():
    check_dialect(ANTHROPIC, recorded("anthropic"))


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["GET", "POST", "DELETE"]))
def test_no_bytes_break_the_reading(body: bytes, method: str):
    check_reading(ANTHROPIC, request(method, "/v1/messages", b'{"stream"' + body))


VALUES = st.none() | st.booleans() | st.integers(-2, 3) | st.text(max_size=3) | st.just([]) | st.just({"type": "x"})
FIELDS = ("messages", "stream", "system", "tools", "tool_choice", "output_config", "output_format", "model")


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES))
def test_no_json_breaks_the_reading(fields: dict[str, Any]):
    check_reading(ANTHROPIC, request("POST", "/v1/messages", {"messages": HELLO} | fields))


@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/v1/messages/batches", "/v1/models"])
def test_what_is_no_message_is_passed_through(path: str):
    call = ANTHROPIC.read(request("POST", path, {"stream": True}))
    assert (call.kind, call.wants_stream) == ("pass", False)


def test_a_prompt_is_read_whole_and_its_system_comes_first():
    ask = asked(stream=True, system=[{"type": "text", "text": "Be brief."}], max_tokens=5)
    assert [message["role"] for message in ask.messages] == ["system", "user"]
    assert (ask.model, ask.stream, ask.structured) == ("m", True, "")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"tools": [{"name": "f"}]}, "tools"),
        ({"tools": [{"name": "f"}], "tool_choice": {"type": "none"}}, ""),
        ({"tools": []}, ""),
        ({"mcp_servers": [{"url": "x"}]}, "tools"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, "json_schema"),
        ({"output_format": {"type": "json_schema", "schema": {}}}, "json_schema"),
        ({"output_config": {"effort": "low"}}, ""),
    ],
)
def test_a_prompt_says_which_structure_its_answer_must_have(body: dict[str, Any], why: str):
    assert asked(**body).structured == why


def test_pictures_are_refused():
    with pytest.raises(Refused, match="other than text"):
        asked(messages=[{"role": "user", "content": [{"type": "image", "source": {}}]}])


@pytest.mark.parametrize("body", [{"messages": []}, {"messages": "x"}, {"messages": [{"role": "system"}]}])
def test_what_anthropic_would_not_take_is_the_callers_fault(body: dict[str, Any]):
    with pytest.raises(BadRequest):
        asked(**body)


# --- streams -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        said("Hel"),
        said(" "),
        event_bytes("content_block_start", {"content_block": {"type": "text", "text": "Hel"}}),
        event_bytes(
            "content_block_start", {"content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}}}
        ),
        event_bytes("content_block_start", {"content_block": {"type": "redacted_thinking", "data": "x"}}),
        event_bytes("content_block_delta", {"delta": {"type": "thinking_delta", "thinking": "Hm"}}),
        event_bytes("content_block_delta", {"delta": {"type": "input_json_delta", "partial_json": "{"}}),
        event_bytes("message_delta", {"delta": {"stop_reason": "end_turn"}}),
        STOP,
        event_bytes("something_new", {}),
    ],
)
def test_content_primes_a_stream_and_what_comes_before_it_does_not(content: bytes):
    before = START + EMPTY + PING * 50 + b": a comment\n\n" + said("") + event_bytes("content_block_stop", {"index": 0})
    for whole in in_all_line_ends(before + content):
        at = primed_at(ANTHROPIC, whole, range(len(whole) + 1))
        assert at is not None
        assert len(whole) - 2 <= at <= len(whole)


@pytest.mark.parametrize(("word", "again"), [("overloaded_error", True), ("api_error", True), ("billing_error", False)])
def test_an_error_inside_a_200_fails_the_stream_while_somebody_else_can_still_answer(word: str, again: bool):
    error = event_bytes("error", {"error": {"type": word, "message": "secret words"}})
    for whole in in_all_line_ends(START + PING + EMPTY + error):
        for cut in range(len(whole) - 2):
            assert ANTHROPIC.primed(whole[:cut]) == "wait"
        with pytest.raises(Failed) as caught:
            ANTHROPIC.primed(whole)
        assert (caught.value.reason, caught.value.detail, caught.value.again) == ("error_in_stream", word, again)


@pytest.mark.parametrize("body", [b'{"type": "error"}', b"<html>", b"\n []"])
def test_what_is_no_event_stream_fails_at_once(body: bytes):
    with pytest.raises(Failed, match="no event stream"):
        ANTHROPIC.primed(body)


@pytest.mark.parametrize(
    ("tail", "complete"),
    [
        (b"", False),
        (said("message_stop"), False),
        (said('"type":"message_stop"'), False),
        (event_bytes("message_delta", {"delta": {"stop_reason": "end_turn"}}), False),
        (STOP, True),
        (STOP[:-2], True),
        (STOP[:-3], False),
        (b'pe":"x"}}\n\n' + STOP, True),
        (event_bytes("error", {"error": {"type": "overloaded_error"}}), False),
    ],
)
def test_only_message_stop_proves_that_a_stream_is_whole(tail: bytes, complete: bool):
    assert ANTHROPIC.stream_complete(tail) is complete


def test_a_break_inside_an_event_does_not_swallow_the_error():
    begun = START + said("Hel")
    for cut in range(len(begun) + 1):
        broken = begun[:cut] + ANTHROPIC.broken_off("idle timeout")
        name, data = list(events(broken))[-1]
        assert name == b"error"
        assert "idle timeout" in json.loads(data)["error"]["message"]
        assert not ANTHROPIC.stream_complete(broken)


# --- answers -------------------------------------------------------------------------------------------------------


def test_an_error_of_ours_has_anthropics_types():
    types = {
        status: json.loads(ANTHROPIC.error(status, "r", "d").body)["error"]["type"]
        for status in (400, 413, 429, 500, 502, 503, 504, 529)
    }
    assert types == {
        400: "invalid_request_error",
        413: "request_too_large",
        429: "rate_limit_error",
        500: "api_error",
        502: "api_error",
        503: "overloaded_error",
        504: "timeout_error",
        529: "overloaded_error",
    }


def test_a_text_is_written_whole():
    body = json.loads(ANTHROPIC.generated(asked(), WRITTEN).body)
    assert body["content"] == [{"type": "text", "text": TEXT}]
    assert (body["stop_reason"], body["usage"]) == ("end_turn", {"input_tokens": 11, "output_tokens": 5})
    assert body["understudy"]["fallback"] is True


def test_a_text_is_streamed_in_pieces_is_a_sound_stream_and_can_be_read_back():
    answer = ANTHROPIC.generated(asked(stream=True), WRITTEN)
    stream = streamed(answer)
    check_stream(ANTHROPIC, stream)
    assert stream.count(b"content_block_delta") > 6
    for body in (stream, ANTHROPIC.generated(asked(), WRITTEN).body):
        read = ANTHROPIC.said(body)
        assert read is not None
        assert (read.text, read.model, read.prompt_tokens, read.completion_tokens) == (TEXT, WRITTEN.model, 11, 5)


@pytest.mark.parametrize(
    "change",
    [
        {"stop_reason": "max_tokens"},
        {"stop_reason": None},
        {"content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}], "stop_reason": "end_turn"},
        {"content": []},
        {"content": "x"},
    ],
)
def test_what_is_not_one_finished_text_is_not_taken_for_one(change: dict[str, Any]):
    whole = json.loads(ANTHROPIC.generated(asked(), WRITTEN).body)
    assert ANTHROPIC.said(json.dumps(whole | change).encode()) is None


def test_a_streamed_thought_is_not_taken_for_a_text():
    thought = event_bytes("content_block_start", {"content_block": {"type": "thinking", "thinking": ""}})
    end = event_bytes("message_delta", {"delta": {"stop_reason": "end_turn"}})
    assert ANTHROPIC.said(START + EMPTY + said("x") + end + STOP) is not None
    assert ANTHROPIC.said(START + thought + EMPTY + said("x") + end + STOP) is None
    assert ANTHROPIC.said(START + EMPTY + said("x") + STOP) is None


@pytest.mark.parametrize(("dialect", "path"), [("anthropic", "/v1/messages"), ("ollama-chat", "/api/chat")])
def test_prompts_that_differ_in_their_question_alone_can_be_alike_and_those_with_another_system_not(
    dialect: str, path: str
):
    def scope(system: str, question: str, **more: Any) -> bytes | None:
        body = {"model": "m", "system": system, "messages": [{"role": "user", "content": question}]} | more
        prompted = prompt_of(DIALECTS[dialect].read(request("POST", path, body)), DIALECTS[dialect], Scope(b"", ()))
        return None if prompted is None else prompted.scope

    one = scope("s", "How long do refunds take?")
    assert one is not None
    assert scope("s", "How long does a refund take?") == one
    assert scope("t", "How long do refunds take?") != one
    assert scope("s", "How long do refunds take?", tools=[{"name": "f"}]) is None


def test_a_200_may_hold_a_failure():
    error = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'
    assert ANTHROPIC.failure_within(Answer(200, [], error)) == "error_in_200"
