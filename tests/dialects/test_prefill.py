"""Going on with an answer: what is asked for it, what of the answer is new, and how it is told on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.voices import VOICES
from understudy.policies.service import Refused
from understudy.proxy.dialects.base import Malformed
from understudy.proxy.dialects.prefill import Splice, plain_text_only, prefilled, resumed, tokens_in
from understudy.proxy.dialects.translate import Ended, Prompt, Words

SAID = "Once upon a time there was "


def spliced(said: str, *pieces: str) -> str:
    splice = Splice(said)
    return "".join(splice.take(piece) for piece in pieces) + splice.rest()


@pytest.mark.parametrize(
    ("pieces", "new"),
    [
        (("a king.",), "a king."),
        ((SAID, "a king."), "a king."),
        ((SAID.rstrip(), " a", " king."), "a king."),
        (("Once ", "upon a ti", "me there was", " a king."), "a king."),
        ((f" {SAID}a king.",), "a king."),
        # it only looked like it
        (("Once ", "more."), "Once more."),
        (("Once upon a time there was", "n't."), "n't."),
        (("Once",), "Once"),
        ((), ""),
    ],
)
def test_what_was_said_already_is_left_out_and_nothing_else(pieces: tuple[str, ...], new: str):
    assert spliced(SAID, *pieces) == new


def test_too_little_was_said_to_tell_an_echo_from_new_words():
    assert spliced("I ", "I ", "think") == "I think"


def test_a_space_that_was_said_is_not_said_twice_and_one_that_was_not_is_kept():
    assert spliced("a king ", " and") == "and"
    assert spliced("a king", " and") == " and"


@given(st.text(min_size=8, max_size=60), st.text(max_size=60), st.lists(st.integers(1, 9), max_size=40))
def test_however_it_is_cut_up_it_comes_to_the_same(said: str, rest: str, cuts: list[int]):
    for whole in (said + rest, rest):
        pieces: list[str] = []
        at = 0
        for cut in cuts:
            pieces.append(whole[at : at + cut])
            at += cut
        pieces.append(whole[at:])
        assert spliced(said, *pieces) == spliced(said, whole)


@pytest.mark.parametrize(
    ("dialect", "limits", "lowered"),
    [
        ("openai-chat", {"max_tokens": 50}, {"max_tokens": 40}),
        ("openai-chat", {"max_completion_tokens": 5}, {"max_completion_tokens": 1}),
        ("anthropic", {"max_tokens": 50}, {"max_tokens": 40}),
        ("ollama-chat", {"options": {"num_predict": 50, "top_k": 3}}, {"options": {"num_predict": 40, "top_k": 3}}),
        ("ollama-chat", {"options": {"num_predict": -1}}, {"options": {"num_predict": -1}}),
        ("ollama-chat", {}, {}),
    ],
)
def test_the_begun_answer_stands_last_and_the_ceiling_is_lower(
    dialect: str, limits: dict[str, Any], lowered: dict[str, Any]
):
    asked = {"model": "m", "seed": 7, "messages": [{"role": "user", "content": "x"}]}
    told = json.loads(prefilled(dialect, json.dumps(asked | limits).encode(), SAID, 10))
    said = SAID.rstrip() if dialect == "anthropic" else SAID
    vllm = {"continue_final_message": True, "add_generation_prompt": False} if dialect == "openai-chat" else {}
    messages = [*asked["messages"], {"role": "assistant", "content": said}]  # type: ignore[misc]
    assert told == asked | lowered | vllm | {"messages": messages}


@pytest.mark.parametrize("prompt", ["Once ", ["Once "]])
def test_a_completion_is_gone_on_with_as_more_of_the_prompt(prompt: Any):
    asked = {"model": "m", "prompt": prompt, "max_tokens": 50, "stream": True}
    told = json.loads(prefilled("openai-completions", json.dumps(asked).encode(), "upon a ", 10))
    assert told == asked | {"prompt": "Once upon a ", "max_tokens": 40}


@pytest.mark.parametrize("prompt", [None, [], [1, 2], 7])
def test_a_completion_of_no_text_is_not_gone_on_with(prompt: Any):
    with pytest.raises(Refused):
        prefilled("openai-completions", json.dumps({"prompt": prompt}).encode(), SAID, 1)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"messages": "x"}', b'{"messages": [}'])
def test_what_has_no_messages_is_not_gone_on_with(body: bytes):
    with pytest.raises(Refused):
        prefilled("openai-chat", body, SAID, 1)


@pytest.mark.parametrize("dialect", VOICES)
def test_it_is_told_on_as_if_nobody_had_left(dialect: str):
    voice = VOICES[dialect]("first-model")
    told = b"".join([*voice.start(), voice.token("one "), voice.token("two ")])
    telling = resumed(dialect, told, Prompt("m", (), wants_usage=True))
    more = telling.tell(Words("three")) + telling.tell(Ended("stop", 9, 3))
    heard = voice.read(told + more)
    assert (heard.text, heard.starts, heard.ended, heard.usage) == ("one two three", 1, True, (9, 3))
    assert heard.models == {"first-model"}
    assert len(heard.ids) <= 1
    # one block, opened once and closed once
    assert (told + more).count(b"content_block_start") == (told + more).count(b"content_block_stop")


@pytest.mark.parametrize("dialect", VOICES)
def test_behind_nothing_nothing_can_follow(dialect: str):
    with pytest.raises(Malformed):
        resumed(dialect, b": comment\n\n", Prompt("m", ()))


@pytest.mark.parametrize(
    ("event", "is_plain"),
    [
        ({"delta": {"content": "x", "refusal": None, "tool_calls": None, "reasoning_content": None}}, True),
        ({"delta": {"content": 'say "thinking": "x"'}}, True),
        ({"delta": {"reasoning_content": "hm"}}, False),
        ({"delta": {"tool_calls": [{"id": "1"}]}}, False),
        ({"delta": {"refusal": "no"}}, False),
        ({"logprobs": {"content": []}}, False),
        ({"logprobs": None, "tool_calls": []}, True),
        ({"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hm"}}, False),
    ],
)
def test_more_than_words_is_seen(event: dict[str, Any], is_plain: bool):
    assert plain_text_only(b"data: " + json.dumps(event).encode() + b"\n\n") == is_plain


def test_tokens_are_counted_rather_too_many_than_too_few():
    assert tokens_in("x" * 40, 3) == 10
    assert tokens_in("x" * 4, 3) == 3
    assert tokens_in("", 0) == 0
