"""Cohere's chat: what primes a stream, what ends it, what breaks it, and what a quotation looks like in one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dialects.check_dialect import check_dialect, check_reading, check_stream, in_all_line_ends, primed_at
from tests.dialects.recorded_exchanges import recorded, request
from tests.dialects.streams import TEXT, WRITTEN, streamed
from understudy.models.prompts import passages_in_prompt, question_in_prompt
from understudy.policies.service import Answer, Failed, Refused
from understudy.proxy.asks import GenerateAsk
from understudy.proxy.caching.values import is_finished
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.base import BadRequest
from understudy.proxy.dialects.cohere_chat import event_bytes
from understudy.proxy.dialects.sse import events

COHERE = DIALECTS["cohere-chat"]
HELLO = [{"role": "user", "content": "Hello?"}]
START = event_bytes("message-start", {"id": "c1", "delta": {"message": {"role": "assistant", "content": []}}})
EMPTY = event_bytes("content-start", {"index": 0, "delta": {"message": {"content": {"type": "text", "text": ""}}}})
END = event_bytes("message-end", {"delta": {"finish_reason": "COMPLETE"}})


def said(text: str) -> bytes:
    return event_bytes("content-delta", {"index": 0, "delta": {"message": {"content": {"text": text}}}})


def asked(**body: Any) -> GenerateAsk:
    ask = COHERE.ask(COHERE.read(request("POST", "/v2/chat", {"messages": HELLO, "model": "m"} | body)))
    assert isinstance(ask, GenerateAsk)
    return ask


def test_it_does_what_every_dialect_must():
    check_dialect(COHERE, recorded("cohere_chat"))


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["GET", "POST", "DELETE"]))
def test_no_bytes_break_the_reading(body: bytes, method: str):
    check_reading(COHERE, request(method, "/v2/chat", b'{"stream"' + body))


VALUES = st.none() | st.booleans() | st.integers(-2, 3) | st.text(max_size=3) | st.just([]) | st.just({"type": "x"})
FIELDS = ("messages", "stream", "documents", "tools", "tool_choice", "response_format", "model", "logprobs")


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES | st.lists(VALUES, max_size=2)))
def test_no_json_breaks_the_reading(fields: dict[str, Any]):
    check_reading(COHERE, request("POST", "/v2/chat", {"messages": HELLO} | fields))


@pytest.mark.parametrize("path", ["/v1/chat", "/v2/embed", "/v2/rerank", "/v1/models"])
def test_what_is_no_chat_is_passed_through(path: str):
    call = COHERE.read(request("POST", path, {"stream": True}))
    assert (call.kind, call.wants_stream) == ("pass", False)


def test_documents_beside_the_messages_are_what_is_quoted_from():
    documents = [{"id": "a", "data": {"title": "Refunds", "text": "Refunds take 14 days."}}, "The office is in Oslo."]
    ask = asked(messages=[{"role": "user", "content": "How long do refunds take?"}], documents=documents, stream=True)
    assert [message["role"] for message in ask.messages] == ["system", "user"]
    assert (ask.model, ask.stream, ask.structured) == ("m", True, "")
    assert question_in_prompt(ask.messages) == "How long do refunds take?"
    passages = [passage.text for passage in passages_in_prompt(ask.messages)]
    assert len(passages) == 2
    assert "Refunds take 14 days." in passages[0]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "function"}], "tool_choice": "REQUIRED"}, "tools"),
        ({"tools": [{"type": "function"}], "tool_choice": "NONE"}, ""),
        ({"tools": []}, ""),
        ({"response_format": {"type": "json_object"}}, "json_object"),
        ({"response_format": {"type": "text"}}, ""),
    ],
)
def test_a_prompt_says_which_structure_its_answer_must_have(body: dict[str, Any], why: str):
    assert asked(**body).structured == why


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "t"}]}]},
        {"logprobs": True},
    ],
)
def test_what_one_text_cannot_answer_is_refused(body: dict[str, Any]):
    with pytest.raises(Refused):
        asked(**body)


@pytest.mark.parametrize("body", [{"messages": []}, {"messages": "x"}, {"messages": [{"role": "critic"}]}])
def test_what_cohere_would_not_take_is_the_callers_fault(body: dict[str, Any]):
    with pytest.raises(BadRequest):
        asked(**body)


# --- streams -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        said("Hel"),
        said(" "),
        event_bytes("content-start", {"delta": {"message": {"content": {"type": "text", "text": "Hel"}}}}),
        event_bytes("content-delta", {"delta": {"message": {"content": {"thinking": "Hm"}}}}),
        event_bytes("tool-plan-delta", {"delta": {"message": {"tool_plan": "I will"}}}),
        event_bytes("tool-call-start", {"delta": {"message": {"tool_calls": {"id": "t"}}}}),
        event_bytes("citation-start", {"delta": {}}),
        event_bytes("something-new", {}),
        END,
    ],
)
def test_content_primes_a_stream_and_what_comes_before_it_does_not(content: bytes):
    before = START + EMPTY + b": a comment\n\n" + said("") + event_bytes("content-end", {"index": 0})
    for whole in in_all_line_ends(before + content):
        at = primed_at(COHERE, whole, range(len(whole) + 1))
        assert at is not None
        assert len(whole) - 2 <= at <= len(whole)


@pytest.mark.parametrize("delta", [{"finish_reason": "ERROR"}, {"finish_reason": "TIMEOUT"}, {"error": "no"}])
def test_an_end_that_is_an_error_fails_the_stream_while_somebody_else_can_still_answer(delta: dict[str, Any]):
    for whole in in_all_line_ends(START + EMPTY + event_bytes("message-end", {"delta": delta})):
        for cut in range(len(whole) - 2):
            assert COHERE.primed(whole[:cut]) == "wait"
        with pytest.raises(Failed) as caught:
            COHERE.primed(whole)
        assert caught.value.reason == "error_in_stream"
        # behind content it is no end either
        assert not COHERE.stream_complete(said("Hel") + whole)


@pytest.mark.parametrize("body", [b'{"message": "no"}', b"<html>", b"\n []"])
def test_what_is_no_event_stream_fails_at_once(body: bytes):
    with pytest.raises(Failed, match="no event stream"):
        COHERE.primed(body)


@pytest.mark.parametrize(
    ("tail", "complete"),
    [
        (b"", False),
        (said("message-end"), False),
        (said('"type":"message-end"'), False),
        (event_bytes("content-end", {"index": 0}), False),
        (END, True),
        (END[:-2], True),
        (END[:-3], False),
        (b'pe":"x"}}\n\n' + END, True),
        (END + b"data: [DONE]\n\n", True),
    ],
)
def test_only_a_message_end_proves_that_a_stream_is_whole(tail: bytes, complete: bool):
    assert COHERE.stream_complete(tail) is complete


def test_a_break_inside_an_event_does_not_swallow_the_error():
    begun = START + said("Hel")
    for cut in range(len(begun) + 1):
        broken = begun[:cut] + COHERE.broken_off("idle timeout")
        name, data = list(events(broken))[-1]
        delta = json.loads(data)["delta"]
        assert (name, delta["finish_reason"]) == (b"message-end", "ERROR")
        assert "idle timeout" in delta["error"]
        assert not COHERE.stream_complete(broken)
    # for the SDK raises nothing of it
    assert not COHERE.breaks_are_heard


# --- answers -------------------------------------------------------------------------------------------------------


def test_a_text_is_written_whole():
    body = json.loads(COHERE.generated(asked(), WRITTEN).body)
    assert body["message"]["content"] == [{"type": "text", "text": TEXT}]
    assert (body["finish_reason"], body["usage"]["tokens"]) == ("COMPLETE", {"input_tokens": 11, "output_tokens": 5})
    assert body["understudy"]["fallback"] is True


def test_a_text_is_streamed_in_pieces_is_a_sound_stream_and_can_be_read_back():
    stream = streamed(COHERE.generated(asked(stream=True), WRITTEN))
    check_stream(COHERE, stream)
    assert stream.count(b"content-delta") > 6
    for body in (stream, COHERE.generated(asked(), WRITTEN).body):
        read = COHERE.said(body)
        assert read is not None
        assert (read.text, read.prompt_tokens, read.completion_tokens) == (TEXT, 11, 5)


def test_only_an_answer_that_came_to_its_end_without_calls_may_be_kept():
    whole = COHERE.generated(asked(), WRITTEN).body
    assert is_finished(whole)
    assert is_finished(streamed(COHERE.generated(asked(stream=True), WRITTEN)))
    for reason in (b"TOOL_CALL", b"MAX_TOKENS", b"ERROR"):
        assert not is_finished(whole.replace(b"COMPLETE", reason))


@pytest.mark.parametrize(
    "change",
    [
        {"finish_reason": "MAX_TOKENS"},
        {"finish_reason": None},
        {"message": {"tool_calls": [{"id": "t"}], "content": [{"type": "text", "text": "x"}]}},
        {"message": {"citations": [{"start": 0}], "content": [{"type": "text", "text": "x"}]}},
        {"message": {"content": [{"type": "thinking", "thinking": "x"}]}},
        {"message": {"content": []}},
        {"message": "x"},
    ],
)
def test_what_is_not_one_finished_text_is_not_taken_for_one(change: dict[str, Any]):
    whole = json.loads(COHERE.generated(asked(), WRITTEN).body)
    assert COHERE.said(json.dumps(whole | change).encode()) is None


def test_a_stream_of_more_than_a_text_is_not_taken_for_one():
    plan = event_bytes("tool-plan-delta", {"delta": {"message": {"tool_plan": "I will"}}})
    thought = event_bytes("content-delta", {"delta": {"message": {"content": {"thinking": "Hm"}}}})
    assert COHERE.said(START + EMPTY + said("x") + END) is not None
    assert COHERE.said(START + plan + EMPTY + said("x") + END) is None
    assert COHERE.said(START + thought + EMPTY + said("x") + END) is None
    assert COHERE.said(START + EMPTY + said("x")) is None


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"id":"c1","finish_reason":"ERROR","message":{"role":"assistant"}}', "error_in_200"),
        (b'{"id":"c1","finish_reason":"TIMEOUT","message":{"role":"assistant"}}', "error_in_200"),
        (b'{"message":"internal server error"}', "error_in_200"),
        (b'{"id":"c1","finish_reason":"COMPLETE","message":{"content":[{"type":"text","text":"\\"ERROR\\""}]}}', ""),
        (b'{"id":"c1","finish_reason":"MAX_TOKENS","message":{"content":[]}}', ""),
        (b"<html>", "garbage"),
    ],
)
def test_a_200_may_hold_a_failure(body: bytes, why: str):
    assert COHERE.failure_within(Answer(200, [], body)) == why


def test_an_error_of_ours_is_a_sentence():
    assert json.loads(COHERE.error(503, "r", "d").body) == {"message": "d"}
