"""Streams and failures, case by case, through the running sidecar with raw upstreams that misbehave.

The numbers are those of the project's list of cases; `python -m tests.real.streams_table` prints case by dialect. When
each clock rings is asserted on a virtual one (tests/tiers/test_stream_clocks.py): here it is what the caller sees.
"""

from __future__ import annotations

import http.client
import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kit.acts import answer
from tests.kit.fake_upstream import Heard, Hosted, Wire, in_thread
from tests.kit.processes import Sidecar, eventually
from tests.kit.voices import VOICES
from tests.real.streams_rig import (
    OTHERS,
    SECONDS_MAX,
    TOKENS,
    Caller,
    Gate,
    in_turns,
    is_told_of_a_break,
    policies,
    stream,
    whole,
)

pytestmark = pytest.mark.real

BY_DIALECT = pytest.mark.parametrize("dialect", VOICES)


@pytest.fixture(scope="module")
def first() -> Iterator[Hosted]:
    with in_thread() as hosted:
        yield hosted


@pytest.fixture(scope="module")
def second() -> Iterator[Hosted]:
    with in_thread() as hosted:
        yield hosted


@pytest.fixture(scope="module")
def sidecar(first: Hosted, second: Hosted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("policies")
    (folder / "all.yaml").write_text(policies(first.url, second.url))
    with Sidecar(folder, tmp_path_factory.mktemp("state")) as running:
        yield running


@pytest.fixture(autouse=True)
def afresh(first: Hosted, second: Hosted) -> None:
    for upstream in (first, second):
        upstream.forget()


# --- streams ---------------------------------------------------------------------------------------------------------


@BY_DIALECT
@pytest.mark.parametrize("policy", ["error", "continue", "buffer"])
def test_T1_three_chunks_then_silence(policy: str, dialect: str, sidecar: Sidecar, first: Hosted, second: Hosted):
    voice, other = VOICES[dialect](), VOICES[dialect]("second-model")
    caller = Caller(sidecar, voice, f"silent-{policy}")
    first.then(stream(voice, [*voice.start(), *map(voice.token, TOKENS[:3])], ending="stall"))
    second.then(whole(other, *TOKENS[3:6]) if policy == "continue" else whole(other, *TOKENS[:6]))
    got = caller.ask()
    if policy == "error":
        assert is_told_of_a_break(got)
        assert got.told.text == "".join(TOKENS[:3])
    else:
        assert (got.told.text, got.told.ended, got.told.errors) == ("".join(TOKENS[:6]), True, [])
        assert got.told.starts == 1
    eventually(lambda: len(first.abandoned) == 1)
    first.then(whole(voice, "well again"))
    assert caller.ask().told.text == "well again"


@BY_DIALECT
@pytest.mark.parametrize("ending", ["cut", "reset"])
def test_T2_closed_after_40_of_60_tokens_is_never_a_clean_end(
    ending: str, dialect: str, sidecar: Sidecar, first: Hosted, second: Hosted
):
    voice = VOICES[dialect]()
    caller = Caller(sidecar, voice, "error")
    first.then(stream(voice, [*voice.start(), *map(voice.token, TOKENS[:40])], gap_s=0.002, ending=ending))
    got = caller.ask()
    assert is_told_of_a_break(got)
    assert "".join(TOKENS).startswith(got.told.text)
    assert ending == "reset" or got.told.text == "".join(TOKENS[:40])
    assert got.told.errors[-1:] == ["api_error"] or dialect != "anthropic"
    assert second.heard == []


@BY_DIALECT
def test_T2_and_it_counts_against_the_endpoint_though_it_began_with_200(
    dialect: str, sidecar: Sidecar, first: Hosted, second: Hosted
):
    voice = VOICES[dialect]()
    caller = Caller(sidecar, voice, "breaking")
    for _ in range(3):
        first.then(stream(voice, [*voice.start(), voice.token("x")], ending="cut"))
        assert is_told_of_a_break(caller.ask())
    second.then(whole(voice, "from the second"))
    assert caller.ask().told.text == "from the second"
    assert caller.outcomes()["first", "refused", "breaker"] >= 1


@BY_DIALECT
def test_T2_an_error_that_the_endpoint_tells_before_a_clean_end_counts_against_it_too(
    dialect: str, sidecar: Sidecar, first: Hosted, second: Hosted
):
    voice = VOICES[dialect]()
    caller = Caller(sidecar, voice, "telling")
    parts = [*voice.start(), voice.token("x"), voice.error(), voice.end()[-1]]
    for _ in range(3):
        first.then(stream(voice, parts, gap_s=0.02))
        got = caller.ask()
        assert got.body == b"".join(parts), "whoever has been told of it is told nothing else"
    second.then(whole(voice, "from the second"))
    assert caller.ask().told.text == "from the second"
    assert caller.outcomes()["first", "refused", "breaker"] >= 1


@BY_DIALECT
def test_T3_a_role_and_keep_alives_without_content_are_no_content(
    dialect: str, sidecar: Sidecar, first: Hosted, second: Hosted
):
    voice, other = VOICES[dialect](), VOICES[dialect]("second-model")
    caller = Caller(sidecar, voice, "wordless")
    first.then(stream(voice, [*voice.start(), *[voice.idle()] * 100], gap_s=0.1))
    second.then(whole(other, *TOKENS[:6]))
    got = caller.ask()
    assert (got.told.text, got.told.ended, got.told.starts) == ("".join(TOKENS[:6]), True, 1)
    assert got.headers["x-understudy-reason"] == "first: first_content_timeout"
    assert got.told.models == {"second-model"}


@BY_DIALECT
def test_T4_no_headers_falls_back_and_the_primary_is_tried_once(
    dialect: str, sidecar: Sidecar, first: Hosted, second: Hosted
):
    async def silent(wire: Wire, _heard: Heard) -> None:
        await wire.closed.wait()

    voice, other = VOICES[dialect](), VOICES[dialect]("second-model")
    first.then(silent)
    second.then(whole(other, "hello"))
    got = Caller(sidecar, voice, "headless").ask()
    assert (got.status, got.told.text, got.headers["x-understudy-reason"]) == (
        200,
        "hello",
        "first: first_byte_timeout",
    )
    assert len(first.heard) == 1


@BY_DIALECT
def test_T5_an_error_behind_the_start_of_a_200_falls_back_and_there_is_one_start(
    dialect: str, sidecar: Sidecar, first: Hosted, second: Hosted
):
    voice, other = VOICES[dialect](), VOICES[dialect]("second-model")
    first.then(stream(voice, [*voice.start(), voice.error()], gap_s=0.02))
    second.then(whole(other, "hello"))
    got = Caller(sidecar, voice, "error").ask()
    assert (got.told.text, got.told.starts, got.told.errors, got.told.ended) == ("hello", 1, [], True)
    assert got.told.models == {"second-model"}


@BY_DIALECT
def test_T6_when_the_fallback_fails_too_the_caller_sees_a_proper_status(
    dialect: str, sidecar: Sidecar, first: Hosted, second: Hosted
):
    voice = VOICES[dialect]()
    first.then(stream(voice, [*voice.start(), voice.error()], gap_s=0.02))
    second.then(stream(voice, [*voice.start(), voice.error()], gap_s=0.02))
    got = Caller(sidecar, voice, "error").ask()
    assert got.status in (502, 503, 504)
    assert "error" in got.json()
    assert b"message_start" not in got.body


@BY_DIALECT
def test_T7_a_malformed_event_passes_untouched_and_the_rest_comes(dialect: str, sidecar: Sidecar, first: Hosted):
    voice = VOICES[dialect]()
    bad = b'data: {"choices": [{"del\n\n' if dialect != "ollama-chat" else b'{"message": {"con\n'
    parts = [*voice.start(), *map(voice.token, TOKENS[:10]), bad, *map(voice.token, TOKENS[10:]), *voice.end()]
    first.then(stream(voice, parts, gap_s=0.002))
    got = Caller(sidecar, voice, "error").ask()
    assert got.body == b"".join(parts)
    assert not got.aborted
    assert got.told.text == "".join(TOKENS)
    first.then(whole(voice, "next"))
    assert Caller(sidecar, voice, "error").ask().told.text == "next"


@BY_DIALECT
def test_T8_a_stream_without_its_last_mark_finishes_with_its_usage(dialect: str, sidecar: Sidecar, first: Hosted):
    voice = VOICES[dialect]()
    parts = voice.whole(*TOKENS[:3])
    if dialect == "openai-chat":
        parts = parts[:-1]
    else:
        # there the mark is the end itself: what may be missing is the blank line or line end behind it
        parts[-1] = parts[-1].rstrip(b"\n")
    first.then(stream(voice, parts))
    got = Caller(sidecar, voice, "error").ask()
    assert got.body == b"".join(parts)
    assert (got.told.text, got.told.errors, got.aborted) == ("".join(TOKENS[:3]), [], False)
    assert voice.read(got.body + b"\n\n").usage == (9, 3)


@BY_DIALECT
def test_T9_too_slow_a_beginning_is_left_for_the_fallback_before_the_first_word_and_never_after(
    dialect: str, sidecar: Sidecar, first: Hosted, second: Hosted
):
    voice, other = VOICES[dialect](), VOICES[dialect]("second-model")
    caller = Caller(sidecar, voice, "paced")
    first.then(stream(voice, [*voice.start(), *map(voice.token, TOKENS[:6]), *voice.end()], gap_s=0.4))
    second.then(whole(other, "quick"))
    got = caller.ask()
    assert (got.told.text, got.told.ended) == ("quick", True)
    assert got.headers["x-understudy-reason"] == "first: too_slow"

    async def slow_later(wire: Wire, heard: Heard) -> None:
        quick, slow = [*voice.start(), *map(voice.token, TOKENS[:8])], [*map(voice.token, TOKENS[8:11]), *voice.end()]
        await stream(voice, [b"".join(quick), *slow], gap_s=0.4)(wire, heard)

    first.then(slow_later)
    got = caller.ask()
    assert (got.told.text, got.told.ended, got.told.models) == ("".join(TOKENS[:11]), True, {"first-model"})


@BY_DIALECT
def test_T10_with_nobody_to_fall_back_to_the_first_event_is_not_held(dialect: str, sidecar: Sidecar, first: Hosted):
    voice, gate = VOICES[dialect](), Gate()
    parts = [*voice.start(), voice.token("x"), *voice.end()]
    first.then(in_turns(voice, parts, gate))
    gate.open()
    with Caller(sidecar, voice, "alone").asking() as response:
        assert response.read1() == parts[0]
        for _ in parts[1:]:
            gate.open()
        assert response.read() == b"".join(parts[1:])


@BY_DIALECT
def test_T11_each_token_is_passed_on_before_the_next_one_comes(dialect: str, sidecar: Sidecar, first: Hosted):
    voice, gate = VOICES[dialect](), Gate()
    start = voice.start()
    first.then(in_turns(voice, [b"".join([*start, voice.token("x")]), *[voice.token("x")] * 48, *voice.end()], gate))
    gate.open()
    with Caller(sidecar, voice, "error").asking() as response:
        received = b""
        for n in range(49):
            while voice.read(received).text.count("x") <= n:
                received += response.read1()
            gate.open()
        for _ in voice.end():
            gate.open()
        assert voice.read(received + response.read()).ended


@BY_DIALECT
def test_T12_a_model_that_thinks_first_is_waited_for_and_the_caller_is_kept_awake(
    dialect: str, sidecar: Sidecar, first: Hosted, second: Hosted
):
    voice, other = VOICES[dialect](), VOICES[dialect]("second-model")
    caller = Caller(sidecar, voice, "thinking")
    first.then(stream(voice, voice.whole("thought"), first_s=3.0))
    got = caller.ask(model="thinker-1")
    assert (got.status, got.told.text, got.told.ended, got.told.errors) == (200, "thought", True, [])
    assert len(first.heard) == 1
    if dialect != "ollama-chat":
        # Ollama's lines have no comments
        assert ": keep-alive" in got.told.comments
        assert ": understudy: tier primary, source first" in got.told.comments
        assert got.headers["x-understudy-tier"] == "pending"
    # any other model is given up long before
    first.then(stream(voice, voice.whole("thought"), first_s=3.0))
    second.then(whole(other, "quick"))
    assert caller.ask().told.text == "quick"


@pytest.mark.parametrize("dialect", ["openai-chat", "anthropic"])
def test_T12_what_fails_behind_the_comments_fails_over_and_else_is_told_in_band(
    dialect: str, sidecar: Sidecar, first: Hosted, second: Hosted
):
    voice, other = VOICES[dialect](), VOICES[dialect]("second-model")
    caller = Caller(sidecar, voice, "thinking")
    first.then(stream(voice, [voice.error()], first_s=2.5))
    second.then(whole(other, "hello"))
    got = caller.ask(model="thinker-1")
    assert (got.told.text, got.told.starts, got.told.errors, got.told.ended) == ("hello", 1, [], True)
    assert ": understudy: tier secondary, source second" in got.told.comments

    first.then(stream(voice, [voice.error()], first_s=2.5))
    second.then(answer(400, body=voice.refusal("filter")))
    got = caller.ask(model="thinker-1")
    assert (got.status, is_told_of_a_break(got)) == (200, True)
    assert b"filter" in got.body


@BY_DIALECT
@pytest.mark.parametrize("moment", ["before the first token", "mid-stream", "not streamed"])
def test_T13_a_caller_who_leaves_frees_the_upstream_and_counts_nothing(
    moment: str, dialect: str, sidecar: Sidecar, first: Hosted
):
    voice = VOICES[dialect]()
    caller = Caller(sidecar, voice, "guarded")
    before = caller.outcomes()
    for n in range(4):
        if moment == "not streamed":
            first.then(answer(body=voice.answer("late"), delay_s=SECONDS_MAX))
        else:
            said = [*voice.start(), *([voice.token("x")] if moment == "mid-stream" else [])]
            first.then(stream(voice, said, ending="stall"))
        client = http.client.HTTPConnection("127.0.0.1", sidecar.port, timeout=SECONDS_MAX)
        caller.say(client, stream=moment != "not streamed")
        eventually(lambda n=n: len(first.heard) == n + 1)
        if moment == "mid-stream":
            assert client.getresponse().read1()
        client.close()
        eventually(lambda n=n: len(first.abandoned) == n + 1)
    gone = [outcome for outcome in caller.outcomes().items() if before.get(outcome[0], 0) != outcome[1]]
    assert not [outcome for outcome in gone if outcome[0][1] == "failed"]
    (closed,) = [line for line in caller.metrics("understudy_breaker_state") if '"first"' in line and "closed" in line]
    assert closed.endswith(" 1.0")


@BY_DIALECT
def test_T14_thirty_callers_leaving_large_streams_leave_the_sidecar_ready(
    dialect: str, sidecar: Sidecar, first: Hosted
):
    voice = VOICES[dialect]()
    many = b"".join(map(voice.token, TOKENS)) * 40
    caller = Caller(sidecar, voice, "error")
    clients: list[http.client.HTTPConnection] = []
    for _ in range(30):
        first.then(stream(voice, [b"".join(voice.start()), *[many] * 20], ending="stall"))
        client = http.client.HTTPConnection("127.0.0.1", sidecar.port, timeout=SECONDS_MAX)
        caller.say(client)
        clients.append(client)
    for client in clients:
        assert client.getresponse().read1()
    for client in clients:
        client.close()
    with urllib.request.urlopen(sidecar.admin_url + "/readyz", timeout=30) as ready:
        assert ready.status == 200
    eventually(lambda: len(first.abandoned) == 30)


# --- going on --------------------------------------------------------------------------------------------------------


@BY_DIALECT
def test_T15_a_target_that_rejects_prefill_is_not_heard_of(
    dialect: str, sidecar: Sidecar, first: Hosted, second: Hosted
):
    voice = VOICES[dialect]()
    caller = Caller(sidecar, voice, "continue")
    first.then(stream(voice, [*voice.start(), *map(voice.token, TOKENS[:5])], ending="cut"))
    second.then(answer(400, body=voice.refusal("filter")))
    got = caller.ask()
    assert is_told_of_a_break(got)
    assert (got.status, got.told.text) == (200, "".join(TOKENS[:5]))
    assert b"filter" not in got.body
    assert len(second.heard) == 1


@BY_DIALECT
def test_T15_a_target_that_takes_it_is_asked_for_what_is_left(
    dialect: str, sidecar: Sidecar, first: Hosted, second: Hosted
):
    voice, other = VOICES[dialect](), VOICES[dialect]("second-model")
    limit: dict[str, Any] = {"options": {"num_predict": 50}} if dialect == "ollama-chat" else {"max_tokens": 50}
    said = "".join(TOKENS[:5])
    first.then(stream(voice, [*voice.start(), *map(voice.token, TOKENS[:5])], ending="cut"))
    # this one repeats what it was given
    second.then(whole(other, said[:7], said[7:].rstrip(), " ", TOKENS[5], TOKENS[6]))
    got = Caller(sidecar, voice, "continue").ask(**limit)
    assert (got.told.text, got.told.ended, got.told.errors) == (said + "word5 word6 ", True, [])
    assert (got.told.starts, len(got.told.models), len(got.told.ids)) == (1, 1, int(dialect != "ollama-chat"))
    assert got.told.models == {"first-model"}
    asked = second.heard[0].json()
    assert asked["messages"][-1] == {
        "role": "assistant",
        "content": said.rstrip() if dialect == "anthropic" else said,
    }
    assert 30 <= (asked.get("max_tokens") or asked["options"]["num_predict"]) < 50
    assert dialect != "openai-chat" or (asked["continue_final_message"], asked["add_generation_prompt"]) == (
        True,
        False,
    )
    prompt, completion = got.told.usage
    assert prompt == (18 if dialect == "anthropic" else 9)
    assert completion > 5


@BY_DIALECT
def test_T15_another_provider_goes_on_in_the_callers_own_words(
    dialect: str, sidecar: Sidecar, first: Hosted, second: Hosted
):
    voice, other = VOICES[dialect](), VOICES[OTHERS[dialect]]("second-model")
    first.then(stream(voice, [*voice.start(), *map(voice.token, TOKENS[:5])], ending="cut"))
    second.then(whole(other, *TOKENS[5:8]))
    got = Caller(sidecar, voice, "across").ask()
    assert (got.told.text, got.told.ended, got.told.errors) == ("".join(TOKENS[:8]), True, [])
    assert (got.told.starts, got.told.models) == (1, {"first-model"})
    (heard,) = second.heard
    assert heard.target.decode() == other.path
    assert heard.json()["messages"][-1]["role"] == "assistant"
    assert heard.header(b"authorization") is None


@BY_DIALECT
def test_T15_an_error_in_the_middle_is_gone_on_with_too_and_a_second_break_is_told(
    dialect: str, sidecar: Sidecar, first: Hosted, second: Hosted
):
    voice, other = VOICES[dialect](), VOICES[dialect]("second-model")
    caller = Caller(sidecar, voice, "continue")
    parts = [*voice.start(), *map(voice.token, TOKENS[:5]), voice.error()]
    first.then(stream(voice, parts, gap_s=0.01))
    second.then(whole(other, *TOKENS[5:8]))
    got = caller.ask()
    assert (got.told.text, got.told.ended, got.told.errors) == ("".join(TOKENS[:8]), True, [])

    first.then(stream(voice, parts, gap_s=0.01))
    second.then(stream(other, [*other.start(), other.token(TOKENS[5])], ending="cut"))
    got = caller.ask()
    assert is_told_of_a_break(got)
    assert got.told.text == "".join(TOKENS[:6])


@BY_DIALECT
def test_T15_tools_and_json_are_not_gone_on_with(dialect: str, sidecar: Sidecar, first: Hosted, second: Hosted):
    voice = VOICES[dialect]()
    schema = {"type": "object", "properties": {}}
    function = {"name": "f", "description": "d", "parameters": schema}
    tool = {"type": "function", "function": function}
    special: list[dict[str, Any]] = {
        "openai-chat": [{"tools": [tool]}, {"response_format": {"type": "json_object"}}, {"n": 2}, {"logprobs": True}],
        "anthropic": [{"tools": [{"name": "f", "description": "d", "input_schema": schema}]}],
        "ollama-chat": [{"tools": [tool]}, {"format": "json"}],
    }[dialect]
    for more in special:
        first.then(stream(voice, [*voice.start(), voice.token("x")], ending="cut"))
        assert is_told_of_a_break(Caller(sidecar, voice, "continue").ask(**more))
    assert second.heard == []


@BY_DIALECT
def test_T16_a_kept_stream_is_told_again_whole_and_half_a_one_is_never_kept(
    dialect: str, sidecar: Sidecar, first: Hosted
):
    voice = VOICES[dialect]()
    caller = Caller(sidecar, voice, "cached")
    first.then(stream(voice, [*voice.start(), voice.token("half")], ending="cut"))
    assert is_told_of_a_break(caller.ask(temperature=0))
    first.then(stream(voice, voice.whole(*TOKENS[:9]), gap_s=0.002))
    fresh = caller.ask(temperature=0)
    again = caller.ask(temperature=0)
    assert again.headers["x-understudy-tier"] == "cache"
    assert again.body == fresh.body
    assert (again.told.text, again.told.ended, again.told.usage) == ("".join(TOKENS[:9]), True, (9, 9))
    assert len(first.heard) == 2
    # who does not stream is asked for by itself, and never given events
    first.then(answer(body=voice.answer("".join(TOKENS[:9]))))
    for _ in range(2):
        assert "".join(TOKENS[:9]) in json.dumps(caller.ask(stream=False, temperature=0).json())
    assert len(first.heard) == 3


# --- whose fault, whose body, whose answer ---------------------------------------------------------------------------


@BY_DIALECT
def test_T22_fifty_prompts_that_are_too_long_leave_the_breaker_closed(
    dialect: str, sidecar: Sidecar, first: Hosted, second: Hosted
):
    voice = VOICES[dialect]()
    caller = Caller(sidecar, voice, "guarded")
    first.then(*[answer(400, body=voice.refusal("context")) for _ in range(50)])
    for n in range(50):
        got = caller.ask()
        assert (got.status, got.json(), len(first.heard)) == (400, voice.refusal("context"), n + 1)
    assert second.heard == []
    first.then(whole(voice, "well"))
    assert caller.ask().told.text == "well"
    # a route may have a tier of larger context for them
    first.then(answer(400, body=voice.refusal("context")))
    second.then(whole(voice, "from the larger"))
    assert Caller(sidecar, voice, "larger").ask().told.text == "from the larger"


@BY_DIALECT
def test_T23_a_content_filters_400_is_given_back_and_not_asked_again(
    dialect: str, sidecar: Sidecar, first: Hosted, second: Hosted
):
    voice = VOICES[dialect]()
    first.then(answer(400, body=voice.refusal("filter")))
    got = Caller(sidecar, voice, "guarded").ask()
    assert (got.status, got.json()) == (400, voice.refusal("filter"))
    assert (len(first.heard), second.heard) == (1, [])


@BY_DIALECT
def test_T31_a_retry_and_a_fallback_start_from_the_callers_own_body_with_the_keys_of_each(
    dialect: str, sidecar: Sidecar, first: Hosted, second: Hosted
):
    voice = VOICES[dialect]()
    first.then(answer(500, body={}), answer(500, body={}))
    second.then(whole(voice, "hello"))
    caller = Caller(sidecar, voice, "again")
    assert caller.ask().told.text == "hello"
    asked = voice.asked()
    assert [heard.json() for heard in first.heard] == [asked | {"model": "renamed"}] * 2
    assert [heard.header(b"authorization") for heard in first.heard] == [b"first-key"] * 2
    (heard,) = second.heard
    assert heard.body == json.dumps(asked).encode()
    assert [value for name, value in heard.headers if name.lower() == b"authorization"] == [b"second-key"]


@BY_DIALECT
def test_T32_a_fallbacks_answer_names_its_model_its_tier_and_its_usage(
    dialect: str, sidecar: Sidecar, first: Hosted, second: Hosted
):
    voice, other = VOICES[dialect](), VOICES[dialect]("second-model")
    first.then(answer(503, body={}))
    second.then(stream(other, [*other.start(), other.token("hi"), *other.end(prompt=21, completion=7)]))
    got = Caller(sidecar, voice, "error").ask()
    assert got.headers["x-understudy-tier"] == "secondary"
    assert got.headers["x-understudy-source"] == "second"
    assert got.headers["x-understudy-reason"] == "first: status_503"
    assert (got.told.models, got.told.usage) == ({"second-model"}, (21, 7))
