"""Chat completions: what primes a stream, what ends it, what breaks it, and what a quotation looks like in one."""

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
from understudy.proxy.dialects.generating import pieces_of
from understudy.proxy.dialects.sse import events

CHAT = DIALECTS["openai-chat"]
HELLO = [{"role": "user", "content": "Hello?"}]


def asked(**body: Any) -> GenerateAsk:
    ask = CHAT.ask(CHAT.read(request("POST", "/v1/chat/completions", {"messages": HELLO, "model": "m"} | body)))
    assert isinstance(ask, GenerateAsk)
    return ask


def chunk(delta: Any = None, finish_reason: str | None = None, **fields: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    return event({"object": "chat.completion.chunk", "choices": choices} | fields)


def event(value: Any, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value)}\n\n".encode()


ROLE = chunk({"role": "assistant", "content": "", "refusal": None})
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


def test_it_does_what_every_dialect_must():
    check_dialect(CHAT, recorded("openai_chat"))


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["GET", "POST", "DELETE"]))
def test_no_bytes_break_the_reading(body: bytes, method: str):
    check_reading(CHAT, request(method, "/v1/chat/completions", b'{"stream"' + body))


VALUES = st.none() | st.booleans() | st.integers(-2, 3) | st.text(max_size=3) | st.just([]) | st.just({"type": "x"})
FIELDS = ("messages", "stream", "stream_options", "n", "tools", "response_format", "logprobs", "audio", "modalities")


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES))
def test_no_json_breaks_the_reading(fields: dict[str, Any]):
    check_reading(CHAT, request("POST", "/v1/chat/completions", {"messages": HELLO} | fields))


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "wants_stream"),
    [
        (b'{"stream": true}', True),
        (b'{"messages": [{"content": "\\"stream\\": true"}], "stream": false}', False),
        (b'{"stream": "true"}', False),
        (b'{"stream": null}', False),
        (b'{"stream": true', False),
        (b"", False),
    ],
)
def test_whether_a_stream_is_wanted_is_all_that_is_read(body: bytes, wants_stream: bool):
    call = CHAT.read(request("POST", "/v1/chat/completions", body))
    assert (call.kind, call.wants_stream, call.asked) == ("generate", wants_stream, None)


def test_a_get_is_passed_through():
    assert CHAT.read(request("GET", "/v1/chat/completions/chatcmpl-1", b'{"stream": true}')).wants_stream is False


def test_a_prompt_is_read_whole():
    ask = asked(stream=True, stream_options={"include_usage": True}, temperature=0, unheard_of=1)
    assert ask == GenerateAsk(tuple(HELLO), "m", stream=True, include_usage=True)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "tools"),
        ({"tools": [{"type": "function"}], "tool_choice": "none"}, ""),
        ({"tools": []}, ""),
        ({"response_format": {"type": "json_object"}}, "json_object"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "json_schema"),
        ({"response_format": {"type": "text"}}, ""),
        ({"n": 1, "logprobs": False, "modalities": ["text"]}, ""),
    ],
)
def test_a_prompt_says_which_structure_its_answer_must_have(body: dict[str, Any], why: str):
    assert asked(**body).structured == why


@pytest.mark.parametrize(
    "body",
    [
        {"n": 2},
        {"logprobs": True},
        {"audio": {"voice": "alloy"}},
        {"modalities": ["text", "audio"]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    ],
)
def test_what_one_text_cannot_answer_is_refused(body: dict[str, Any]):
    with pytest.raises(Refused) as caught:
        asked(**body)
    assert caught.value.reason == "unsupported"


@pytest.mark.parametrize(
    "body",
    [
        {"messages": None},
        {"messages": []},
        {"messages": "hi"},
        {"messages": [{"content": "x"}]},
        {"messages": [1]},
        {"stream": "yes"},
    ],
)
def test_what_openai_would_not_take_is_the_callers_fault(body: dict[str, Any]):
    with pytest.raises(BadRequest):
        asked(**body)


def test_what_has_no_messages_is_another_endpoints_where_the_path_is():
    with pytest.raises(Refused, match="another endpoint"):
        CHAT.ask(CHAT.read(request("POST", "/v1/moderations", {"input": "Hello?", "model": "m"})))


# --- streams -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        chunk({"content": "Hel"}),
        chunk({"content": " "}),
        chunk({"role": "assistant", "content": "Hel"}),
        chunk({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}),
        chunk({"function_call": {"name": "f"}}),
        chunk({"refusal": "I can't"}),
        chunk({"reasoning_content": "Hm"}),
        chunk({}, "stop"),
        chunk({"content": ""}, "length"),
        event({"choices": [{"text": "Hel"}]}),
        DONE,
        b"data: [DONE] \n\n",
    ],
)
def test_content_primes_a_stream_and_what_comes_before_it_does_not(content: bytes):
    before = KEEP_ALIVE + ROLE + chunk() + chunk({"content": None}) + chunk({}, obfuscation="xyz") + KEEP_ALIVE
    for whole in in_all_line_ends(before + content):
        at = primed_at(CHAT, whole, range(len(whole) + 1))
        assert at is not None
        # at the blank line's first byte that ends the event, and never in what came before
        assert len(whole) - 2 <= at <= len(whole)


def test_azures_first_chunk_without_choices_is_no_content():
    assert CHAT.primed(event({"choices": [], "prompt_filter_results": [{}]})) == "wait"


def test_a_chunk_of_another_api_is_not_held_back():
    assert CHAT.primed(event({"type": "response.output_text.delta", "delta": "Hel"})) == "go"


def test_keep_alives_for_ever_are_no_content():
    assert CHAT.primed(ROLE + KEEP_ALIVE * 1000) == "wait"


@pytest.mark.parametrize(
    ("error", "word", "again"),
    [
        (event({"error": {"message": "secret words", "type": "server_error", "code": None}}), "server_error", True),
        (event({"error": {"message": "secret words", "code": "insufficient_quota"}}), "insufficient_quota", False),
        (event({"error": {"message": "x", "code": 503}}), "503", True),
        (event({"error": "secret words"}), "unnamed", True),
        (event({"error": {"code": "secret words, in a code"}}), "unnamed", True),
        (event({"message": "secret words"}, "error"), "unnamed", True),
        (b"event: error\ndata: overloaded\n\n", "unnamed", True),
    ],
)
def test_an_error_inside_a_200_fails_the_stream_while_somebody_else_can_still_answer(
    error: bytes, word: str, again: bool
):
    for whole in in_all_line_ends(ROLE + KEEP_ALIVE + error):
        for cut in range(len(whole) - 2):
            assert CHAT.primed(whole[:cut]) == "wait"
        with pytest.raises(Failed) as caught:
            CHAT.primed(whole)
        assert (caught.value.reason, caught.value.detail, caught.value.again) == ("error_in_stream", word, again)


def test_an_error_after_the_first_content_is_the_applications_to_see():
    assert CHAT.primed(chunk({"content": "Hel"}) + event({"error": {"code": "x"}})) == "go"


def test_an_empty_error_field_is_no_error():
    assert CHAT.primed(chunk({"content": "Hel"}, error=None)) == "go"


def test_a_malformed_event_is_passed_over():
    held = ROLE + b'data: {"choices": [{"delta"\n\n'
    assert CHAT.primed(held) == "wait"
    assert CHAT.primed(held + chunk({"content": "Hel"})) == "go"


@pytest.mark.parametrize("body", [b'{"error": {}}', b"<html>", b'\n [{"x": 1}]'])
def test_what_is_no_event_stream_fails_at_once(body: bytes):
    with pytest.raises(Failed, match="no event stream"):
        CHAT.primed(body)


@pytest.mark.parametrize(
    ("tail", "complete"),
    [
        (b"", False),
        (chunk({"content": "lo"}), False),
        (chunk({"content": "[DONE]"}), False),
        (chunk({"content": 'data: [DONE]\n\n "finish_reason": "stop"'}), False),
        (chunk({}, "stop"), True),
        (chunk({}, "stop") + chunk(None, usage={}), True),
        (chunk({"content": "lo"}, "length"), True),
        (DONE, True),
        (b"data: [DONE]", True),
        (b"a: [DONE]\n\n", False),
        (b'ent": "lo"}}]}\n\n' + DONE, True),
        (chunk({}, "stop")[:-2], True),
        (chunk({}, "stop")[:-5], False),
        (event({"error": {"message": "x"}}), False),
    ],
)
def test_only_a_finish_reason_or_done_proves_that_a_stream_is_whole(tail: bytes, complete: bool):
    assert CHAT.stream_complete(tail) is complete


@pytest.mark.parametrize(
    ("tail", "failed"),
    [
        (event({"error": {"message": "x"}}) + DONE, True),
        (chunk({}, "stop") + event({"error": "x"}) + DONE, True),
        (b'event: error\ndata: {"error": 1\n\n' + DONE, True),
        (b'rror": {}}\n\n' + DONE, False),
        (chunk({"content": '"error": {}'}, "stop") + DONE, False),
        (chunk({}, "stop", error=None) + DONE, False),
    ],
)
def test_an_error_that_a_stream_tells_before_its_end_is_seen(tail: bytes, failed: bool):
    assert CHAT.stream_complete(tail)
    assert CHAT.stream_failed(tail) is failed


def test_a_break_is_told_in_the_stream_and_no_end_is_claimed():
    broken = chunk({"content": "Hel"}) + CHAT.broken_off("idle timeout")
    last = list(events(broken))[-1][1]
    assert json.loads(last)["error"]["code"] == "stream_broken"
    assert "idle timeout" in json.loads(last)["error"]["message"]
    assert not CHAT.stream_complete(broken)


def test_a_break_inside_an_event_does_not_swallow_the_error():
    for cut in range(len(ROLE)):
        told = list(events(ROLE[:cut] + CHAT.broken_off("reset")))[-1][1]
        assert "error" in json.loads(told)


# --- answers -------------------------------------------------------------------------------------------------------


def test_a_text_is_written_whole():
    body = json.loads(CHAT.generated(asked(), WRITTEN).body)
    assert body["choices"][0]["message"] == {"role": "assistant", "content": TEXT, "refusal": None}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
    assert (body["id"], body["created"], body["model"]) == ("chatcmpl-abc", 1_700_000_000, "understudy-extractive")
    assert body["understudy"]["fallback"] is True


@pytest.mark.parametrize("usage", [False, True])
def test_a_text_is_streamed_in_pieces_and_is_a_sound_stream(usage: bool):
    answer = CHAT.generated(asked(stream=True, stream_options={"include_usage": usage}), WRITTEN)
    stream = streamed(answer)
    check_stream(CHAT, stream)
    told = [data for _, data in events(stream)]
    assert told[-1] == b"[DONE]"
    chunks = [json.loads(data) for data in told[:-1]]
    contents = [choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]]
    assert "".join(contents) == TEXT
    assert len(contents) > 4
    assert [chunk["usage"] for chunk in chunks if chunk.get("usage")] == (
        [{"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}] if usage else []
    )
    assert (b"content-type", b"text/event-stream; charset=utf-8") in answer.headers


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.text(st.sampled_from(list('ab .!?\n\t…。"”)'))))
def test_the_pieces_of_a_text_are_the_text(text: str):
    pieces = pieces_of(text)
    assert "".join(pieces) == text
    assert all(pieces)


def test_a_page_of_dots_is_cut_in_no_time():
    assert len(pieces_of("." * 200_000 + " " + "! " * 1000)) == 1001


# --- failures within ----------------------------------------------------------------------------------------------


def test_a_200_may_hold_a_failure():
    assert CHAT.failure_within(Answer(200, [], b'{"error":{"code":"overloaded"}}')) == "error_in_200"
    assert CHAT.failure_within(Answer(200, [], b'{"choices":[{"message":{"content":"an \\"error\\": {}"}}]}')) == ""
