"""Translations: whatever is asked or answered in one wire format says the same in another, or is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dialects.recorded_exchanges import recorded
from understudy.policies.service import Answer, Refused
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.base import Malformed
from understudy.proxy.dialects.translate import (
    Arguments,
    Begun,
    Called,
    Cut,
    Ended,
    Picture,
    Prompt,
    Reply,
    Said,
    Signature,
    Text,
    Tool,
    ToolResult,
    ToolUse,
    Turn,
    Wire,
    Words,
    saids_of,
    uses_in,
)
from understudy.proxy.dialects.translate_responses import ResponsesWire
from understudy.proxy.tiers.translating import WIRES

OPENAI, ANTHROPIC, OLLAMA = WIRES["openai-chat"], WIRES["anthropic"], WIRES["ollama-chat"]
SIGNATURE = Signature("abc", 1_700_000_000)
PNG = "iVBORw0KGgoAAAANSUhEUg=="
HELLO = Prompt("m", (Turn("user", (Text("Hello?"),)),))
WEATHER = Tool("weather", "Of a city.", {"type": "object", "properties": {"city": {"type": "string"}}})

# --- round trips ---------------------------------------------------------------------------------------------------

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
LETTERS = st.text("abcdefgh", min_size=1, max_size=6)
JSON = st.dictionaries(LETTERS, st.none() | st.booleans() | st.integers(-9, 9) | WORDS | st.lists(WORDS, max_size=2))
COUNTS = st.integers(0, 9999)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Turn, ...]:
    """Turns as any of the three providers can have them, in their one spelling."""
    turns = [Turn("system", (Text(draw(WORDS)),))] if draw(st.booleans()) else []
    count = 0
    for _ in range(draw(st.integers(0, 3))):
        turns.append(Turn("user", (Text(draw(WORDS)),)))
        names = draw(st.lists(LETTERS, max_size=2))
        uses = tuple(ToolUse(f"call_{count + at}", name, draw(JSON)) for at, name in enumerate(names))
        count += len(uses)
        words = (Text(draw(WORDS)),) if draw(st.booleans()) or not uses else ()
        turns.append(Turn("assistant", (*words, *uses)))
        if uses:
            turns.append(Turn("user", tuple(ToolResult(use.id, use.name, draw(WORDS)) for use in uses)))
            turns.append(Turn("assistant", (Text(draw(WORDS)),)))
    pictures = (Picture("image/png", PNG),) * draw(st.integers(0, 2))
    return (*turns, Turn("user", (Text(draw(WORDS)), *pictures)))


PROMPTS = st.builds(
    Prompt,
    model=LETTERS,
    turns=conversations(),
    tools=st.lists(
        st.builds(Tool, LETTERS, WORDS, JSON.map(lambda fields: {"type": "object", "properties": fields})), max_size=2
    ).map(tuple),
    tokens_max=st.none() | st.integers(1, 999),
    temperature=st.none() | st.sampled_from([0.0, 0.5, 1.0]),
    top_p=st.none() | st.sampled_from([0.1, 1.0]),
    stop=st.lists(LETTERS, max_size=3).map(tuple),
    stream=st.booleans(),
)
REPLIES = st.builds(
    Reply,
    model=LETTERS,
    text=st.just("") | WORDS,
    uses=st.lists(st.tuples(LETTERS, JSON), max_size=2).map(
        lambda uses: tuple(ToolUse(f"call_{at}", name, given) for at, (name, given) in enumerate(uses))
    ),
    prompt_tokens=COUNTS,
    completion_tokens=COUNTS,
).map(lambda reply: replace(reply, end="tools" if reply.uses else "stop"))
ALL = st.sampled_from([OPENAI, ANTHROPIC, OLLAMA])


@settings(derandomize=True, max_examples=300, deadline=None)
@given(PROMPTS, ALL)
def test_a_prompt_that_was_written_is_read_as_it_was(prompt: Prompt, wire: Wire):
    read = wire.read(wire.write(prompt, 4096), wire.path)
    # who must be told how long an answer may be, was told; who streams with its usage, has it asked for
    told = 4096 if wire is ANTHROPIC and prompt.tokens_max is None else prompt.tokens_max
    expected = replace(prompt, tokens_max=told, wants_usage=wire is OPENAI and prompt.stream)
    if wire is ANTHROPIC and not prompt.tools and (names := dict.fromkeys(use.name for use in uses_in(prompt.turns))):
        # it is told of what was used before, and that none of it may be used
        expected = replace(expected, tools=tuple(Tool(name, "", {"type": "object"}) for name in names), choice="none")
    assert read == expected


@settings(derandomize=True, max_examples=200, deadline=None)
@given(REPLIES, ALL)
def test_a_reply_that_was_written_is_read_as_it_was(reply: Reply, wire: Wire):
    body = wire.told(reply, HELLO, SIGNATURE)
    assert wire.reply(body, HELLO) == as_told_by(wire, reply)
    assert DIALECTS[wire.name].failure_within(Answer(200, [], body)) == ""


@settings(derandomize=True, max_examples=200, deadline=None)
@given(REPLIES, ALL, st.integers(1, 40))
def test_a_stream_that_was_written_says_what_it_was_given_however_it_is_cut(reply: Reply, wire: Wire, size: int):
    prompt = replace(HELLO, stream=True, wants_usage=True)
    telling, hearing = wire.telling(prompt, SIGNATURE), wire.hearing(prompt)
    stream = b"".join(telling.tell(said) for said in saids_of(reply))
    heard = [said for at in range(0, len(stream), size) for said in hearing.hear(stream[at : at + size])]
    assert put_together([*heard, *hearing.over()]) == as_told_by(wire, reply)
    assert DIALECTS[wire.name].stream_complete(stream)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["messages", "tools", "stop", "model", "options", "system", "stream"]), JSON), ALL
)
def test_no_json_breaks_the_reading(fields: dict[str, Any], wire: Wire):
    with pytest.raises(Refused) as caught:
        wire.read(json.dumps(fields).encode(), wire.path)
    assert caught.value.reason == "untranslatable"


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.binary(max_size=300), ALL)
def test_no_bytes_break_the_hearing(stream: bytes, wire: Wire):
    hearing = wire.hearing(HELLO)
    assert not [said for said in (*hearing.hear(stream), *hearing.over()) if isinstance(said, Ended)]


def as_told_by(wire: Wire, reply: Reply) -> Reply:
    """Ollama has no ids for the uses of tools."""
    return replace(reply, uses=tuple(replace(use, id="") for use in reply.uses)) if wire is OLLAMA else reply


def put_together(saids: list[Said]) -> Reply:
    """The reply that a stream says."""
    assert isinstance(saids[0], Begun)
    assert isinstance(saids[-1], Ended)
    arguments: dict[int, str] = {}
    names = {said.at: said for said in saids if isinstance(said, Called)}
    for said in saids:
        if isinstance(said, Arguments):
            arguments[said.at] = arguments.get(said.at, "") + said.json
    return Reply(
        model=saids[0].model,
        text="".join(said.text for said in saids if isinstance(said, Words)),
        uses=tuple(ToolUse(said.id, said.name, json.loads(arguments[at])) for at, said in names.items()),
        end=saids[-1].end,
        prompt_tokens=saids[-1].prompt_tokens,
        completion_tokens=saids[-1].completion_tokens,
    )


# --- tables --------------------------------------------------------------------------------------------------------


def asked(wire: Wire, into: Wire, **body: Any) -> dict[str, Any]:
    """What becomes of a request, as JSON."""
    messages = {"messages": [{"role": "user", "content": "Hello?"}], "model": "m", "stream": False}
    prompt = wire.read(json.dumps(messages | body).encode(), wire.path)
    return json.loads(into.write(prompt, 4096))


FUNCTION = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}
ANTHROPIC_TOOL = {"name": "f", "description": "", "input_schema": {"type": "object"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 6, "max_tokens": 5}, {"max_tokens": 6}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"temperature": 0, "top_p": 0.5, "stream": True}, {"temperature": 0, "top_p": 0.5, "stream": True}),
        ({"tools": [FUNCTION]}, {"tools": [ANTHROPIC_TOOL]}),
        ({"tools": [FUNCTION], "tool_choice": "required"}, {"tool_choice": {"type": "any"}}),
        ({"tools": [FUNCTION], "tool_choice": "none"}, {"tool_choice": {"type": "none"}}),
        (
            {"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            {"tool_choice": {"type": "tool", "name": "f"}},
        ),
        (
            {"tools": [FUNCTION], "parallel_tool_calls": False},
            {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            {"tool_choice": {"type": "tool", "name": "json_answer"}},
        ),
        ({"user": "u", "seed": 1, "n": 1, "store": True, "logprobs": False, "frequency_penalty": 0}, {}),
        (
            {"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": "u"}]},
            {
                "system": [{"type": "text", "text": "s"}],
                "messages": [{"role": "user", "content": [{"type": "text", "text": "u"}]}],
            },
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "u"},
                    {"role": "assistant", "content": None, "tool_calls": [
                        {"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]},
                    {"role": "tool", "tool_call_id": "t", "content": "r"},
                    {"role": "user", "content": "more"},
                ]
            },
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "u"}]},
                    {"role": "assistant", "content": [
                        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}]},
                    {"role": "user", "content": [
                        {"type": "tool_result", "tool_use_id": "t", "content": "r"},
                        {"type": "text", "text": "more"}]},
                ]
            },
        ),
        (
            {"messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}]}]},
            {"messages": [{"role": "user", "content": [
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
                {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}}]}]},
        ),
    ],
)  # fmt: skip
def test_openais_words_are_put_into_anthropics(body: dict[str, Any], expected: dict[str, Any]):
    said = asked(OPENAI, ANTHROPIC, **body)
    assert {name: said.get(name) for name in expected} == expected
    assert not {"user", "seed", "n", "store", "logprobs"} & said.keys()


@pytest.mark.parametrize(
    ("wire", "into", "body", "expected"),
    [
        (ANTHROPIC, OPENAI, {"max_tokens": 5, "stop_sequences": ["E"]}, {"max_completion_tokens": 5, "stop": ["E"]}),
        (ANTHROPIC, OPENAI, {"stream": True}, {"stream_options": {"include_usage": True}}),
        (ANTHROPIC, OPENAI, {"tools": [ANTHROPIC_TOOL], "tool_choice": {"type": "any"}}, {"tool_choice": "required"}),
        (
            ANTHROPIC,
            OPENAI,
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}},
        ),
        (ANTHROPIC, OLLAMA, {"top_k": 3, "max_tokens": 5}, {"options": {"top_k": 3, "num_predict": 5}}),
        (OPENAI, OLLAMA, {"response_format": {"type": "json_object"}}, {"format": "json"}),
        (OPENAI, OLLAMA, {"tools": [FUNCTION], "tool_choice": "none"}, {"tools": None}),
        (OLLAMA, OPENAI, {"format": "json"}, {"response_format": {"type": "json_object"}}),
        (OLLAMA, OPENAI, {"options": {"num_ctx": 9, "num_predict": -1}}, {"max_completion_tokens": None}),
        (
            OLLAMA,
            OPENAI,
            {"messages": [{"role": "user", "content": "u", "images": [PNG]}]},
            {"messages": [{"role": "user", "content": [
                {"type": "text", "text": "u"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}]}]},
        ),
    ],
)  # fmt: skip
def test_the_others_words_are_translated_too(wire: Wire, into: Wire, body: dict[str, Any], expected: dict[str, Any]):
    said = asked(wire, into, **body)
    assert {name: said.get(name) for name in expected} == expected


MIDDLE = [
    {"role": "user", "content": "u"},
    {"role": "system", "content": "s"},
    {"role": "user", "content": "v"},
]


@pytest.mark.parametrize(
    ("wire", "into", "body", "what"),
    [
        (OPENAI, ANTHROPIC, {"n": 2}, "n"),
        (OPENAI, ANTHROPIC, {"logit_bias": {"1": 2}}, "logit_bias"),
        (OPENAI, ANTHROPIC, {"frequency_penalty": 0.5}, "frequency_penalty"),
        (OPENAI, ANTHROPIC, {"something_new": 1}, "something_new"),
        (OPENAI, ANTHROPIC, {"temperature": 1.5}, "a temperature above 1"),
        (OPENAI, ANTHROPIC, {"messages": MIDDLE}, "in the middle"),
        (OPENAI, ANTHROPIC, {"messages": [*MIDDLE, {"role": "assistant", "content": "x"}]}, "the user's turn"),
        (OPENAI, ANTHROPIC, {"messages": [{"role": "user", "content": "u", "name": "Ann"}]}, "messages.name"),
        (OPENAI, ANTHROPIC, {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input_audio"),
        (OPENAI, ANTHROPIC, {"messages": [{"role": "user", "content": ""}]}, "an empty message"),
        (OPENAI, ANTHROPIC, {"messages": [{"role": "critic", "content": "c"}]}, "a message of role critic"),
        (ANTHROPIC, OPENAI, {"messages": [{"role": "critic", "content": "c"}]}, "a message of role critic"),
        (OLLAMA, OPENAI, {"messages": [{"role": "critic", "content": "c"}]}, "a message of role critic"),
        (
            OPENAI,
            ANTHROPIC,
            {"messages": [{"role": "assistant", "content": "a", "audio": {"id": "audio_1"}}]},
            "messages.audio",
        ),
        (OPENAI, ANTHROPIC, {"tools": [{"type": "custom"}]}, "a tool of type custom"),
        (OPENAI, ANTHROPIC, {"tools": [FUNCTION], "response_format": {"type": "json_object"}}, "beside tools"),
        (OPENAI, ANTHROPIC, {"functions": [{"name": "f"}]}, "functions"),
        (OPENAI, OLLAMA, {"tools": [FUNCTION], "tool_choice": "required"}, "a tool that must be used"),
        (
            OPENAI,
            OLLAMA,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a"}}]}]},
            "must be fetched",
        ),
        (ANTHROPIC, OPENAI, {"top_k": 3}, "top_k"),
        (ANTHROPIC, OPENAI, {"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        (ANTHROPIC, OPENAI, {"tools": [{"type": "web_search_20250305", "name": "w"}]}, "web_search"),
        (ANTHROPIC, OPENAI, {"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "document"),
        (OLLAMA, OPENAI, {"options": {"mirostat": 2}}, "options.mirostat"),
        (OLLAMA, OPENAI, {"messages": [{"role": "user", "content": "u", "images": ["AAAA"]}]}, "unknown type"),
        (OLLAMA, OPENAI, {"messages": [{"role": "tool", "content": "r", "tool_name": "f"}]}, "nobody asked for"),
    ],
)
def test_what_has_no_words_on_the_other_side_is_refused_by_name(wire: Wire, into: Wire, body: Any, what: str):
    with pytest.raises(Refused) as caught:
        asked(wire, into, **body)
    assert caught.value.reason == "untranslatable"
    assert what in caught.value.detail


def test_a_tools_error_is_told_in_words_where_nothing_else_can():
    result = {"type": "tool_result", "tool_use_id": "t", "content": "no such city", "is_error": True}
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    messages = [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm", "signature": "s"}, use]},
        {"role": "user", "content": [{"type": "text", "text": "Well?"}, result]},
    ]
    said = asked(ANTHROPIC, OPENAI, messages=messages)["messages"]
    assert said[2] == {"role": "tool", "tool_call_id": "t", "content": "Error: no such city"}
    assert said[3] == {"role": "user", "content": "Well?"}


def used(*ids: str) -> tuple[Turn, ...]:
    """A conversation in which a tool is used once a turn."""
    turns = [Turn("user", (Text("u"),))]
    for at, each in enumerate(ids):
        turns.append(Turn("assistant", (ToolUse(each, "f", {"at": at}),)))
        turns.append(Turn("user", (ToolResult(each, "f", f"r{at}"),)))
    return tuple(turns)


@pytest.mark.parametrize("wire", [OPENAI, ANTHROPIC])
@pytest.mark.parametrize("ids", [("a", "a"), ("functions.f:0", "b"), ("x" * 99, "x" * 98), ("", "b")])
def test_ids_that_a_provider_would_not_take_are_changed_together_with_their_results(wire: Wire, ids: tuple[str, ...]):
    written = wire.read(wire.write(Prompt("m", used(*ids)), 9), wire.path).turns
    uses = [part.id for turn in written for part in turn.parts if isinstance(part, ToolUse)]
    results = [(part.id, part.text) for turn in written for part in turn.parts if isinstance(part, ToolResult)]
    assert results == [(each, f"r{at}") for at, each in enumerate(uses)]
    assert len(set(uses)) == 2
    assert all(0 < len(each) <= 40 for each in uses)
    assert wire is OPENAI or all(each.replace("_", "").replace("-", "").isalnum() for each in uses)
    # what is well stays as it is
    assert wire.read(wire.write(Prompt("m", used("a", "b")), 9), wire.path).turns == used("a", "b")


@pytest.mark.parametrize("wire", [OPENAI, ANTHROPIC])
def test_a_use_without_an_id_gets_one_that_no_other_answer_has(wire: Wire):
    reply = Reply("m", "", (ToolUse("", "f", {}), ToolUse("", "g", {})), "tools")
    ids: list[str] = []
    for call in ("first", "second with: odd / letters"):
        whole = wire.reply(wire.told(reply, HELLO, Signature(call, 1)), HELLO)
        telling, hearing = wire.telling(HELLO, Signature(call, 1)), wire.hearing(HELLO)
        streamed = put_together(hearing.hear(b"".join(map(telling.tell, saids_of(reply)))))
        assert [use.id for use in streamed.uses] == [use.id for use in whole.uses]
        ids += [use.id for use in whole.uses]
    assert len(set(ids)) == 4
    assert all(each.replace("_", "").isalnum() and len(each) <= 40 for each in ids)


def test_azures_model_is_the_deployment_where_the_body_names_none():
    azure, body = WIRES["azure-openai-chat"], {"messages": [{"role": "user", "content": "u"}]}
    path = b"/openai/deployments/gpt-here/chat/completions"
    assert azure.read(json.dumps(body).encode(), path).model == "gpt-here"
    assert azure.read(json.dumps(body | {"model": "said"}).encode(), path).model == "said"


@pytest.mark.parametrize(("words", "added"), [("As JSON, please.", 0), ("A city.", 1)])
def test_openai_is_told_in_words_that_json_is_wanted(words: str, added: int):
    prompt = Prompt("m", (Turn("user", (Text(words),)),), schema={})
    messages = json.loads(OPENAI.write(prompt, 9))["messages"]
    assert [message["role"] for message in messages] == ["system"] * added + ["user"]
    assert "json" in json.dumps(messages).lower()


def test_an_answer_that_was_filtered_is_no_end_like_any_other_to_ollamas_callers():
    reply = Reply("m", "I c", end="filter")
    assert json.loads(OLLAMA.told(reply, HELLO, SIGNATURE))["done_reason"] == "content_filter"
    assert DIALECTS["ollama-chat"].said(OLLAMA.told(reply, HELLO, SIGNATURE)) is None


# --- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wire", "name"), [(ANTHROPIC, "anthropic"), (OPENAI, "openai_chat"), (OLLAMA, "ollama_chat")])
def test_what_was_recorded_of_a_provider_is_understood_in_every_chunking(wire: Wire, name: str):
    for exchange in recorded(name):
        if exchange.request.path.endswith(b"/generate"):
            continue
        body = exchange.answer.body
        if not exchange.is_stream:
            assert wire.reply(body, HELLO).text == "Hello"
            continue
        for size in (1, 2, 7, 64, len(body)):
            hearing = wire.hearing(HELLO)
            heard = [said for at in range(0, len(body), size) for said in hearing.hear(body[at : at + size])]
            reply = put_together([*heard, *hearing.over()])
            assert (reply.text, reply.end) == ("Hello", "stop")


def test_a_json_answer_of_anthropics_is_the_text_it_was_meant_to_be():
    prompt = replace(HELLO, schema=SCHEMA, stream=True)
    use = {"type": "tool_use", "id": "t", "name": "json_answer", "input": {"a": "b"}}
    whole = {
        "type": "message",
        "model": "c",
        "content": [{"type": "text", "text": "Here:"}, use],
        "stop_reason": "tool_use",
    }
    assert ANTHROPIC.reply(json.dumps(whole).encode(), prompt) == Reply("c", '{"a":"b"}')
    told = ANTHROPIC.telling(HELLO, SIGNATURE)
    saids = saids_of(Reply("c", "", (ToolUse("t", "json_answer", {"a": "b"}),), "tools", 3, 4))
    stream = b"".join(told.tell(said) for said in saids)
    assert put_together(ANTHROPIC.hearing(prompt).hear(stream)) == Reply("c", '{"a":"b"}', (), "stop", 3, 4)


def test_cached_tokens_of_a_prompt_are_counted_too():
    usage = {"input_tokens": 5, "cache_read_input_tokens": 7, "cache_creation_input_tokens": 1, "output_tokens": 2}
    body = {"type": "message", "model": "c", "content": [], "stop_reason": "max_tokens", "usage": usage}
    reply = ANTHROPIC.reply(json.dumps(body).encode(), HELLO)
    assert (reply.prompt_tokens, reply.completion_tokens, reply.end) == (13, 2, "length")


def test_a_malformed_event_is_passed_over_and_all_the_others_are_told():
    hearing = OPENAI.hearing(HELLO)
    chunk = b'data: {"model":"m","choices":[{"delta":{"content":"x"}}]}\n\n'
    heard = hearing.hear(chunk + b'data: {"choices": [{"delta"\n\n' + chunk)
    assert [said for said in heard if isinstance(said, Words)] == [Words("x"), Words("x")]


def test_an_event_without_an_end_is_not_gathered_for_ever():
    cut = Cut((b"\n",))
    for _ in range(16):
        assert cut.take(b"x" * 65536) == b""
    with pytest.raises(Malformed):
        cut.take(b"x")


def test_what_is_no_answer_of_a_provider_is_malformed():
    with pytest.raises(Malformed):
        OPENAI.reply(b'{"choices": []}', HELLO)
    with pytest.raises(Malformed):
        ANTHROPIC.reply(b'{"type": "error"}', HELLO)
    with pytest.raises(Malformed):
        OLLAMA.reply(b'{"done": false}', HELLO)


# --- callers of OpenAI's responses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "read"),
    [("auto", "auto"), ("none", "none"), ("required", "any"), ({"type": "function", "name": "f"}, "tool:f")],
)
def test_a_tool_that_a_responses_caller_chooses_is_chosen(choice: Any, read: str):
    body = {"input": "Hello?", "tools": [{"type": "function", "name": "f"}], "tool_choice": choice}
    assert ResponsesWire().read(json.dumps(body).encode(), b"/v1/responses").choice == read


@pytest.mark.parametrize("choice", [{"type": "web_search"}, {"type": "function"}, {"type": "custom", "name": "f"}, "x"])
def test_a_tool_choice_that_only_stands_with_openai_is_refused_by_name(choice: Any):
    with pytest.raises(Refused, match="tool_choice"):
        ResponsesWire().read(json.dumps({"input": "Hello?", "tool_choice": choice}).encode(), b"/v1/responses")


def test_the_form_that_a_responses_caller_asks_for_is_told():
    form = {"type": "json_schema", "name": "x", "schema": SCHEMA}
    asked = ResponsesWire().read(json.dumps({"input": "Hello?", "text": {"format": form}}).encode(), b"/v1/responses")
    assert asked.schema == SCHEMA
