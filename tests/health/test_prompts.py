"""A prompt of one token finds out a model that answers with nothing, in each API's own words; and costs little."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.kit.acts import answer
from tests.kit.fake_upstream import FakeUpstream, Heard
from tests.kit.unwell import SERVER, Ward
from understudy.policies.service import Answer, Call, Request
from understudy.proxy.dialects import KINDS
from understudy.proxy.dialects.one_token import EMPTY, GOLDENS, what_is_missing
from understudy.proxy.dialects.vital import SCHEMA
from understudy.proxy.health.prompts import Budget
from understudy.proxy.peeks import Peek, Shown

pytestmark = pytest.mark.virtual_clock(io_grace_s=0.002)

EVERY_S = 20.0
"""Sooner than anybody would pay for, so that an hour is a few minutes."""
POLICIES = """
  health: {{every_s: 10, llm_every_s: 20, llm_per_hour_max: 3600{more}}}
routes:
  - name: chat
    match: {{prefix: /}}
    dialect: {dialect}
    cache: {{enabled: false}}
    hedge: {{enabled: false}}
    tiers:
      - {{name: first, kind: upstream, url: "{first}", headers: {{{key}: "secret-1"}}}}
      - {{name: second, kind: upstream, url: "{second}", headers: {{{key}: "secret-2"}}}}
"""
CHAT = {
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "length"}],
}
THOUGHT = {"choices": [{"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "length"}]}
SPOKEN: dict[str, tuple[bytes, str, dict[str, Any], dict[str, Any]]] = {
    # the path that callers use, the header of the key, an answer with a text, and one without
    "openai-chat": (b"/v1/chat/completions", "authorization", CHAT, {"choices": []}),
    "azure-openai-chat": (
        b"/openai/deployments/gpt/chat/completions?api-version=2025-01-01",
        "api-key",
        CHAT,
        {"choices": [{"message": {"role": "assistant", "content": ""}}]},
    ),
    "openai-completions": (
        b"/v1/completions",
        "authorization",
        {"choices": [{"text": "ok", "finish_reason": "length"}]},
        {"choices": [{"text": "", "finish_reason": None}]},
    ),
    "openai-responses": (
        b"/v1/responses",
        "authorization",
        {"output": [{"type": "message", "content": [{"type": "output_text", "text": "ok"}]}], "status": "completed"},
        {"output": [], "status": "completed"},
    ),
    "anthropic": (
        b"/v1/messages",
        "x-api-key",
        {"type": "message", "content": [{"type": "text", "text": "ok"}], "stop_reason": "max_tokens"},
        {"type": "message", "content": [], "stop_reason": None},
    ),
    "ollama-chat": (
        b"/api/chat",
        "authorization",
        {"message": {"role": "assistant", "content": "ok"}, "done": True, "done_reason": "length"},
        {"message": {"role": "assistant", "content": ""}, "done": True},
    ),
    "cohere-chat": (
        b"/v2/chat",
        "authorization",
        {"message": {"role": "assistant", "content": [{"type": "text", "text": "ok"}]}, "finish_reason": "MAX_TOKENS"},
        {"message": {"role": "assistant", "content": []}, "finish_reason": "ERROR"},
    ),
}
LIMITS = {"max_tokens", "max_completion_tokens", "max_output_tokens", "options"}


def policies(dialect: str, first: FakeUpstream, second: FakeUpstream, more: str = "") -> tuple[str, str]:
    """What stands below the server's own settings."""
    text = POLICIES.format(
        dialect=dialect, first=first.url, second=second.url, key=SPOKEN[dialect][1], more=f", {more}" if more else ""
    )
    return text, SERVER


def prompts_of(up: FakeUpstream, path: bytes) -> list[Heard]:
    return [each for each in up.checks if each.method == b"POST" and each.target == path]


def speaking(up: FakeUpstream, well: dict[str, Any]) -> dict[str, Any]:
    """Have a fake answer its own endpoint, and prompts by what stands in the dict that is given back."""
    now: dict[str, Any] = {"act": answer(body=well)}
    vital = up.on_check

    async def both(wire: Any, heard: Heard) -> None:
        await (now["act"] if heard.method == b"POST" else vital)(wire, heard)

    up.on_check = both
    return now


def test_every_api_that_generates_has_a_prompt_of_one_token_whose_answers_are_told_apart():
    assert set(GOLDENS) == set(SPOKEN) == {name for name, kind in KINDS.items() if kind == "generate"}
    for dialect, (_, _, well, empty) in SPOKEN.items():
        golden = GOLDENS[dialect]
        assert what_is_missing(golden, json.dumps(well).encode()) == ""
        assert what_is_missing(golden, json.dumps(empty).encode()) == EMPTY
        for strange in (b"<html>", b"[]", b'{"ok": true}', b"", b'"text"'):
            assert what_is_missing(golden, strange) == SCHEMA
        for body in golden.bodies:
            asked = body("m")
            assert len(LIMITS & asked.keys()) == 1
            assert asked.get("model", "m") == "m"
    assert what_is_missing(GOLDENS["openai-chat"], json.dumps(THOUGHT).encode()) == ""


@pytest.mark.parametrize("dialect", sorted(SPOKEN))
async def test_a_model_that_answers_with_nothing_is_found_by_its_prompt_and_callers_go_elsewhere(
    tmp_path: Path, dialect: str
):
    path, key, well, empty = SPOKEN[dialect]
    async with FakeUpstream(answer(body=well)) as first, FakeUpstream(answer(body=well)) as second:
        now = speaking(first, well)
        speaking(second, well)
        text, server = policies(dialect, first, second)
        async with Ward(tmp_path, text, server) as ward:
            name = f"llm_service:{first.host_port}"
            await asyncio.sleep(60.0)
            assert not prompts_of(first, path), "nobody has shown a model"
            body = json.dumps({"model": "small", "messages": [], "stream": False}).encode()
            while ward.sidecar.changes.shown(("chat", "first", "first")) is None:
                assert (await ward.call("POST", path.decode(), body)).status == 200
                await asyncio.sleep(5.0)
            await ward.until(lambda: len(prompts_of(first, path)) == 1, 2 * EVERY_S)
            (asked,) = prompts_of(first, path)
            assert asked.json().get("model", "small") == "small"
            assert asked.header(key.encode()) == b"secret-1"
            assert (asked.header(b"anthropic-version") is not None) == (dialect == "anthropic")
            await asyncio.sleep(5 * EVERY_S)
            assert 4 <= len(prompts_of(first, path)) <= 8
            assert ward.tier("chat") == "primary"
            assert ward.sidecar.health.checks[name, "semantic", "well"] == len(prompts_of(first, path))
            now["act"] = answer(body=empty)
            await ward.until(lambda: ward.tier("chat") == "secondary", 2 * EVERY_S)
            found = ward.sidecar.health.diagnosis(name)
            assert (found.word, found.reason, found.level) == ("unhealthy", EMPTY, "semantic")
            assert not (await ward.sidecar.health.check(name)).passed
            now["act"] = answer(body=well)
            await ward.until(lambda: ward.tier("chat") == "primary", 4 * EVERY_S)
    assert any((event.family, event.kind) == ("failure", EMPTY) for event in ward.events)


async def test_no_prompt_is_put_to_anybody_unless_it_is_asked_for(tmp_path: Path):
    async with FakeUpstream(answer(body=CHAT)) as first, FakeUpstream(answer(body=CHAT)) as second:
        text, server = policies("openai-chat", first, second, "llm_model: m")
        async with Ward(tmp_path, text.replace("llm_every_s: 20, ", ""), server) as ward:
            await asyncio.sleep(4 * EVERY_S)
            assert not [each for each in first.checks if each.method == b"POST"]
            assert ward.word(f"llm_service:{first.host_port}") == "healthy"


async def test_who_never_took_the_prompt_is_not_ill_for_it_and_who_once_did_is(tmp_path: Path):
    path = SPOKEN["openai-chat"][0]
    async with FakeUpstream(answer(body=CHAT)) as first, FakeUpstream(answer(body=CHAT)) as second:
        now = speaking(first, CHAT)
        speaking(second, CHAT)
        text, server = policies("openai-chat", first, second, "llm_model: m")
        async with Ward(tmp_path, text, server) as ward:
            now["act"] = answer(401, body={"error": {"message": "no such key"}})
            await asyncio.sleep(6 * EVERY_S)
            assert len(prompts_of(first, path)) >= 4
            assert ward.tier("chat") == "primary"
            now["act"] = answer(429, body={"error": {"message": "slower"}})
            await asyncio.sleep(4 * EVERY_S)
            now["act"] = answer(body=CHAT)
            await asyncio.sleep(2 * EVERY_S)
            now["act"] = answer(429, body={"error": {"message": "slower"}})
            await asyncio.sleep(4 * EVERY_S)
            assert ward.tier("chat") == "primary", "limits are not the model's answers"
            now["act"] = answer(404, body={"error": {"message": "no such model"}})
            await ward.until(lambda: ward.tier("chat") == "secondary", 2 * EVERY_S)
            assert ward.sidecar.health.diagnosis(f"llm_service:{first.host_port}").reason == "status_404"
            # nobody wants to know any more
            ward.write(text.replace("llm_every_s: 20, ", ""), server)
            assert ward.sidecar.reload()
            await ward.until(lambda: ward.tier("chat") == "primary", 60.0)


async def test_a_model_that_wants_its_bound_by_another_name_is_asked_by_that(tmp_path: Path):
    path = SPOKEN["openai-chat"][0]
    async with FakeUpstream(answer(body=CHAT)) as first, FakeUpstream(answer(body=CHAT)) as second:
        now = speaking(first, CHAT)
        speaking(second, CHAT)

        async def modern(wire: Any, heard: Heard) -> None:
            does = answer(body=CHAT) if "max_completion_tokens" in heard.json() else answer(400, body={"error": {}})
            await does(wire, heard)

        now["act"] = modern
        text, server = policies("openai-chat", first, second, "llm_model: m")
        async with Ward(tmp_path, text, server) as ward:
            await asyncio.sleep(10 * EVERY_S)
            asked = [each.json() for each in prompts_of(first, path)]
            assert ["max_tokens" in each for each in asked] == [True] + [False] * (len(asked) - 1)
            assert ward.sidecar.health.checks[f"llm_service:{first.host_port}", "semantic", "well"] == len(asked) - 1


async def test_no_more_prompts_are_put_than_an_hour_allows_whatever_goes_wrong(tmp_path: Path):
    async with FakeUpstream(answer(body=CHAT)) as first, FakeUpstream(answer(body=CHAT)) as second:
        now = speaking(first, CHAT)
        speaking(second, CHAT)["act"] = now["act"] = answer(500, body=b"oh")
        text, server = policies("openai-chat", first, second, "llm_model: m")
        text = text.replace("llm_per_hour_max: 3600", "llm_per_hour_max: 36")
        async with Ward(tmp_path, text, server) as ward:
            await asyncio.sleep(600.0)
            name = f"llm_service:{first.host_port}"
            for _ in range(20):
                # who mends it wants to know
                await ward.sidecar.health.check(name)
            asked = [each for up in (first, second) for each in up.checks if each.method == b"POST"]
            assert 30 <= len(asked) <= 36 + 6
            assert ward.word(name) == "unhealthy"


def test_what_an_hour_allows_is_saved_up_and_no_more_than_one_hours():
    budget = Budget(0.0)
    assert [budget.spend(0.0, 2) for _ in range(3)] == [True, True, False]
    assert not budget.spend(1799.0, 2)
    assert budget.spend(1801.0, 2)
    assert [budget.spend(90_000.0, 2) for _ in range(3)] == [True, True, False]
    assert [budget.spend(90_000.0, 3) for _ in range(4)] == [True, True, True, False], "another bound begins anew"


def test_of_how_callers_ask_no_key_in_a_query_is_kept():
    peek = Peek()
    target = b"/openai/deployments/gpt/chat/completions?api-key=s3cret&api-version=2025-01-01&key=s3cret"
    request = Request(b"POST", target, [], b'{"messages": [{"content": "\\"model\\": \\"x\\""}]}')
    peek.look(Call("generate", request), Answer(200, [], b"{}"))
    assert peek.shown == Shown(b"/openai/deployments/gpt/chat/completions?api-version=2025-01-01", "")
