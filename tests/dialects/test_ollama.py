"""Ollama's chat and generate: lines of JSON, what primes and ends them, and a break that nobody takes for an end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dialects.check_dialect import check_dialect, check_reading, check_stream, in_all_line_ends, primed_at
from tests.dialects.recorded_exchanges import recorded, request
from tests.dialects.streams import TEXT, WRITTEN, streamed
from understudy.policies.service import Failed, Refused
from understudy.proxy.asks import GenerateAsk
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.base import BadRequest
from understudy.proxy.dialects.ndjson import lines

OLLAMA = DIALECTS["ollama-chat"]
HELLO = [{"role": "user", "content": "Hello?"}]
BODIES = {"/api/chat": {"messages": HELLO, "model": "m"}, "/api/generate": {"prompt": "Hello?", "model": "m"}}


def line(**fields: Any) -> bytes:
    return json.dumps({"model": "m"} | fields).encode() + b"\n"


def said(text: str, **fields: Any) -> bytes:
    return line(message={"role": "assistant", "content": text} | fields, done=False)


END = line(message={"role": "assistant", "content": ""}, done=True, done_reason="stop", eval_count=2)
CALLED = said("", tool_calls=[{"function": {"name": "f", "arguments": {"done": True, "eval_count": 1}}}])


def asked(path: str = "/api/chat", **body: Any) -> GenerateAsk:
    ask = OLLAMA.ask(OLLAMA.read(request("POST", path, BODIES[path] | body)))
    assert isinstance(ask, GenerateAsk)
    return ask


def test_it_does_what_every_dialect_must():
    check_dialect(OLLAMA, recorded("ollama_chat"))


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["/api/chat", "/api/generate", "/api/tags"]))
def test_no_bytes_break_the_reading(body: bytes, path: str):
    check_reading(OLLAMA, request("POST", path, b'{"stream"' + body))


VALUES = st.none() | st.booleans() | st.integers(-2, 3) | st.text(max_size=3) | st.just([]) | st.just({"type": "x"})
FIELDS = ("messages", "prompt", "stream", "system", "tools", "format", "images", "suffix", "model")


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES), st.sampled_from(sorted(BODIES)))
def test_no_json_breaks_the_reading(fields: dict[str, Any], path: str):
    check_reading(OLLAMA, request("POST", path, BODIES[path] | fields))


@pytest.mark.parametrize(
    ("body", "wants_stream"),
    [(b"{}", True), (b'{"stream": null}', True), (b'{"stream": false}', False), (b'{"stream": true}', True)],
)
def test_a_stream_is_what_one_gets_unless_one_says_otherwise(body: bytes, wants_stream: bool):
    call = OLLAMA.read(request("POST", "/api/chat", body))
    assert (call.kind, call.wants_stream) == ("generate", wants_stream)


@pytest.mark.parametrize("path", ["/api/tags", "/api/pull", "/api/embed"])
def test_all_else_is_passed_through(path: str):
    call = OLLAMA.read(request("POST", path, {}))
    assert (call.kind, call.wants_stream) == ("pass", False)


def test_a_prompt_is_read_whole_from_either_endpoint():
    assert asked().messages == tuple(HELLO)
    ask = asked("/api/generate", system="Be brief.", stream=False)
    assert [message["content"] for message in ask.messages] == ["Be brief.", "Hello?"]
    assert (ask.stream, ask.model) == (False, "m")


@pytest.mark.parametrize(
    ("body", "why"), [({"tools": [{}]}, "tools"), ({"format": "json"}, "json_object"), ({"format": {}}, "json_schema")]
)
def test_a_prompt_says_which_structure_its_answer_must_have(body: dict[str, Any], why: str):
    assert asked(**body).structured == why


@pytest.mark.parametrize("body", [{"messages": []}, {"messages": None}, {"messages": [HELLO[0] | {"images": ["x"]}]}])
def test_what_one_text_cannot_answer_is_refused(body: dict[str, Any]):
    with pytest.raises(Refused, match=r"unsupported|images|loaded"):
        asked(**body)


@pytest.mark.parametrize("body", [{"messages": "x"}, {"messages": [{"content": "x"}]}])
def test_what_ollama_would_not_take_is_the_callers_fault(body: dict[str, Any]):
    with pytest.raises(BadRequest):
        asked(**body)


# --- streams -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [said("Hel"), said(" "), CALLED, said("", thinking="Hm"), END, line(response="Hel", done=False), line(other=1)],
)
def test_content_primes_a_stream_and_what_comes_before_it_does_not(content: bytes):
    before = said("") + b"\n" + line(response="", done=False) + b'{"message": {"cont\n'
    for whole in in_all_line_ends(before + content):
        at = primed_at(OLLAMA, whole, range(len(whole) + 1))
        assert at is not None
        # at the line's end, of which \r\n is two bytes
        assert len(whole) - 1 <= at <= len(whole)


def test_an_error_inside_a_200_fails_the_stream_and_is_not_repeated_to_logs():
    with pytest.raises(Failed) as caught:
        OLLAMA.primed(said("") + line(error="secret words"))
    assert (caught.value.reason, caught.value.detail) == ("error_in_stream", "unnamed")
    assert OLLAMA.primed(said("Hel") + line(error="secret words")) == "go"


@pytest.mark.parametrize("body", [b"data: {}", b"<html>", b"\n ["])
def test_what_are_no_lines_of_json_fails_at_once(body: bytes):
    with pytest.raises(Failed, match="no lines of JSON"):
        OLLAMA.primed(body)


@pytest.mark.parametrize(
    ("tail", "complete"),
    [
        (b"", False),
        (said("lo"), False),
        (said('"done": true'), False),
        (CALLED, False),
        (CALLED[20:], False),
        (CALLED[:-3], False),
        (END, True),
        (END[:-1], True),
        (END[:-2], False),
        (line(response="", done=True, context=list(range(3000)), total_duration=5)[-4096:], True),
        (line(response="", done=True, context=list(range(3000)))[-4096:], False),
        (line(error="x"), False),
    ],
)
def test_only_done_proves_that_a_stream_is_whole(tail: bytes, complete: bool):
    assert OLLAMA.stream_complete(tail) is complete


def test_a_break_is_told_behind_a_line_and_makes_a_cut_line_unreadable():
    begun = said("Hel")
    told = OLLAMA.broken_off("reset")
    assert "reset" in json.loads(list(lines(begun + told))[-1])["error"]
    assert not OLLAMA.stream_complete(begun + told)
    for cut in range(1, len(begun) - 1):
        broken = begun[:cut] + told
        with pytest.raises(json.JSONDecodeError):
            json.loads(broken)
        assert not OLLAMA.stream_complete(broken)


# --- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(BODIES))
def test_a_text_is_written_whole_or_in_lines_and_can_be_read_back(path: str):
    whole = OLLAMA.generated(asked(path, stream=False), WRITTEN).body
    stream = streamed(OLLAMA.generated(asked(path), WRITTEN))
    check_stream(OLLAMA, stream)
    assert stream.count(b"\n") > 4
    field = {"/api/chat": "message", "/api/generate": "response"}[path]
    assert all(field in json.loads(each) for each in (whole, *lines(stream)))
    for body in (whole, stream):
        read = OLLAMA.said(body)
        assert read is not None
        assert (read.text, read.model, read.prompt_tokens, read.completion_tokens) == (TEXT, WRITTEN.model, 11, 5)


@pytest.mark.parametrize(
    "body", [said("x"), CALLED + END, said("x") + line(done=True, done_reason="length"), said("x") + b"{", b""]
)
def test_what_is_not_one_finished_text_is_not_taken_for_one(body: bytes):
    assert OLLAMA.said(body) is None
