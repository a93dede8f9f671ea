"""What calls cost, through the running sidecar: tokens and money by model, whole and streamed, for each provider."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import sqlite3
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anthropic
import httpx
import ollama
import pytest
from openai import OpenAI, RateLimitError

from tests.kit.acts import answer, pieces
from tests.kit.fake_upstream import Hosted, in_thread
from tests.kit.processes import Sidecar, eventually
from tests.kit.voices import VOICES

pytestmark = pytest.mark.real

POLICIES = """\
server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}", access_log: false}
prices:
  currency: EUR
  models:
    gpt-4o-mini*: {input: 150, cached_input: 75, output: 600}
    claude*: {input: 1000, output: 5000}
    text-embedding-3-small: {input: 20}
defaults: {retry: {attempts: 1}, breaker: {enabled: false}}
routes:
  - name: openai
    match: {path: /v1/chat/completions}
    dialect: openai-chat
    tiers: [{kind: upstream, name: first, url: "${FIRST}"}]
  - name: responses
    match: {path: /v1/responses}
    dialect: openai-responses
    tiers: [{kind: upstream, name: first, url: "${FIRST}"}]
  - name: embeddings
    match: {path: /v1/embeddings}
    dialect: openai-embeddings
    space: s
    tiers: [{kind: upstream, name: first, url: "${FIRST}"}]
  - name: anthropic
    match: {prefix: /claude, strip: true}
    dialect: anthropic
    tiers: [{kind: upstream, name: first, url: "${FIRST}"}]
  - name: ollama
    match: {prefix: /api}
    dialect: ollama-chat
    tiers: [{kind: upstream, name: first, url: "${FIRST}"}]
  - name: across
    match: {prefix: /across, strip: true}
    dialect: openai-chat
    tiers:
      - kind: upstream
        name: claude
        url: "${FIRST}"
        speaks: anthropic
        models: {"*": claude-haiku-4-5}
        headers: {x-api-key: k}
  - name: uncounted
    match: {prefix: /uncounted, strip: true}
    dialect: openai-chat
    spend: {count: never}
    tiers: [{kind: upstream, name: first, url: "${FIRST}"}]
"""
HELLO: Any = [{"role": "user", "content": "hello"}]
USAGE = {
    "prompt_tokens": 1000,
    "completion_tokens": 200,
    "total_tokens": 1200,
    "prompt_tokens_details": {"cached_tokens": 400},
    "completion_tokens_details": {"reasoning_tokens": 50},
}
WHOLE = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-mini-2024-07-18",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
}


class Deployed(NamedTuple):
    sidecar: Sidecar
    first: Hosted

    @property
    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.sidecar.url}/v1", api_key="sk", max_retries=0)

    def metrics(self, route: str) -> dict[tuple[str, ...], float]:
        """What `/metrics` says of a route's tokens and money: (metric, model, told, kind or currency) -> value."""
        with urllib.request.urlopen(self.sidecar.admin_url + "/metrics", timeout=60) as told:
            text = told.read().decode()
        found: dict[tuple[str, ...], float] = {}
        for name, labels, value in re.findall(r"^understudy_llm_(\w+)_total\{(.*)\} (\S+)$", text, re.MULTILINE):
            of = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            if of["route"] == route:
                last = of.get("kind") or of.get("currency") or ""
                found[tuple(filter(None, (name, of["model"], of.get("told", ""), last)))] = float(value)
        return found

    def counted(self, route: str, answers: int) -> dict[tuple[str, ...], float]:
        """The same, once so many answers have been counted."""

        def are_counted() -> bool:
            told = self.metrics(route)
            return sum(value for key, value in told.items() if key[0] == "answers") >= answers

        eventually(are_counted)
        return self.metrics(route)


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Deployed]:
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "p.yaml").write_text(POLICIES)
    with in_thread() as first, Sidecar(folder, tmp_path / "state", env={"FIRST": first.url}) as sidecar:
        yield Deployed(sidecar, first)


def test_the_openai_clients_answers_are_counted_as_told_whole_and_streamed(deployed: Deployed):
    deployed.first.always(answer(body={**WHOLE, "usage": USAGE, "service_tier": "default"}))
    for _ in range(3):
        deployed.openai.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    voice = VOICES["openai-chat"]("gpt-4o-mini-2024-07-18")
    events = voice.whole("Hello ", "there")
    deployed.first.always(pieces(events, headers=[(b"content-type", b"text/event-stream")]))
    stream = deployed.openai.chat.completions.create(
        model="gpt-4o-mini",
        messages=HELLO,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert [chunk.usage.completion_tokens for chunk in stream if chunk.usage] == [2]
    told = deployed.counted("openai", 4)
    model = "gpt-4o-mini-2024-07-18"
    assert told["answers", model, "exactly"] == 4
    assert told["tokens", model, "exactly", "input"] == 3 * 1000 + 9
    assert told["tokens", model, "exactly", "output"] == 3 * 200 + 2
    assert told["tokens", model, "exactly", "cached_input"] == 3 * 400
    assert told["tokens", model, "exactly", "reasoning"] == 3 * 50
    cost = (3 * (600 * 150 + 400 * 75 + 200 * 600) + 9 * 150 + 2 * 600) / 1e6
    assert told["cost", model, "exactly", "EUR"] == pytest.approx(cost)


def test_a_stream_that_tells_no_usage_is_estimated_and_says_so(deployed: Deployed):
    voice = VOICES["openai-chat"]("gpt-4o-mini")
    events = [event for event in voice.whole(*["four"] * 500) if b'"usage"' not in event]
    deployed.first.always(pieces(events, headers=[(b"content-type", b"text/event-stream")]))
    stream = deployed.openai.chat.completions.create(model="gpt-4o-mini", messages=HELLO, stream=True)
    assert sum(1 for chunk in stream if chunk.choices[0].delta.content) == 500
    told = deployed.counted("openai", 1)
    assert told["answers", "gpt-4o-mini", "estimated"] == 1
    assert told["tokens", "gpt-4o-mini", "estimated", "output"] == pytest.approx(500, rel=0.05)
    assert 0 < told["tokens", "gpt-4o-mini", "estimated", "input"] < 40


def test_anthropics_and_ollamas_own_clients_are_counted_too(deployed: Deployed):
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5",
        "content": [{"type": "text", "text": "hi"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 30, "cache_read_input_tokens": 60, "output_tokens": 20},
    }
    client = anthropic.Anthropic(base_url=f"{deployed.sidecar.url}/claude", api_key="k", max_retries=0)
    deployed.first.always(answer(body=message))
    client.messages.create(model="claude-haiku-4-5", max_tokens=16, messages=HELLO)
    voice = VOICES["anthropic"]("claude-haiku-4-5")
    deployed.first.always(pieces(voice.whole("a", "b"), headers=[(b"content-type", b"text/event-stream")]))
    with client.messages.stream(model="claude-haiku-4-5", max_tokens=16, messages=HELLO) as stream:
        assert stream.get_final_message().usage.output_tokens == 2
    told = deployed.counted("anthropic", 2)
    assert told["tokens", "claude-haiku-4-5", "exactly", "input"] == 90 + 9
    assert told["tokens", "claude-haiku-4-5", "exactly", "cached_input"] == 60
    assert told["tokens", "claude-haiku-4-5", "exactly", "output"] == 20 + 2
    voice = VOICES["ollama-chat"]("llama3.2")
    deployed.first.always(pieces(voice.whole("a", "b", "c"), headers=[(b"content-type", b"application/x-ndjson")]))
    list(ollama.Client(host=deployed.sidecar.url).chat("llama3.2", messages=HELLO, stream=True))
    told = deployed.counted("ollama", 1)
    assert told["tokens", "llama3.2", "exactly", "output"] == 3
    assert told["unpriced", "llama3.2"] == 1


def test_embeddings_and_responses_are_counted_whole_and_packed(deployed: Deployed):
    vectors = {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.1] * 1536}],
        "model": "text-embedding-3-small",
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }
    deployed.first.always(answer(body=vectors))
    deployed.openai.embeddings.create(model="text-embedding-3-small", input="a text", encoding_format="float")
    told = deployed.counted("embeddings", 1)
    assert told["tokens", "text-embedding-3-small", "exactly", "input"] == 8
    assert told["cost", "text-embedding-3-small", "exactly", "EUR"] == pytest.approx(8 * 20 / 1e6)
    packed = gzip.compress(json.dumps(vectors).encode())
    deployed.first.always(answer(body=packed, headers=[(b"content-encoding", b"gzip")]))
    deployed.openai.embeddings.create(model="text-embedding-3-small", input="a text", encoding_format="float")
    assert deployed.counted("embeddings", 2)["tokens", "text-embedding-3-small", "exactly", "input"] == 16
    response = {"id": "r", "object": "response", "model": "gpt-4o-mini", "output": []}
    usage = {"input_tokens": 5, "output_tokens": 7, "output_tokens_details": {"reasoning_tokens": 4}}
    deployed.first.always(answer(body={**response, "usage": usage, "metadata": {}}))
    deployed.openai.responses.create(model="gpt-4o-mini", input="hi")
    told = deployed.counted("responses", 1)
    assert told["tokens", "gpt-4o-mini", "exactly", "reasoning"] == 4


def test_what_another_provider_answers_is_billed_by_its_own_words_and_its_own_price(deployed: Deployed):
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5",
        "content": [{"type": "text", "text": "hi"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 100, "output_tokens": 10},
    }
    deployed.first.always(answer(body=message))
    client = OpenAI(base_url=f"{deployed.sidecar.url}/across/v1", api_key="sk", max_retries=0)
    client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    told = deployed.counted("across", 1)
    assert told["cost", "claude-haiku-4-5", "exactly", "EUR"] == pytest.approx((100 * 1000 + 10 * 5000) / 1e6)


def test_errors_cost_nothing_and_a_route_that_is_not_counted_says_nothing(deployed: Deployed):
    deployed.first.always(answer(400, body={"error": {"message": "no"}, "usage": USAGE}))
    httpx.post(f"{deployed.sidecar.url}/v1/chat/completions", json={"model": "m", "messages": HELLO}, timeout=60)
    deployed.first.always(answer(body={**WHOLE, "usage": USAGE}))
    httpx.post(
        f"{deployed.sidecar.url}/uncounted/v1/chat/completions", json={"model": "m", "messages": HELLO}, timeout=60
    )
    httpx.post(f"{deployed.sidecar.url}/v1/chat/completions", json={"model": "m", "messages": HELLO}, timeout=60)
    assert deployed.counted("openai", 1)["answers", "gpt-4o-mini-2024-07-18", "exactly"] == 1
    assert deployed.metrics("uncounted") == {}
    with urllib.request.urlopen(deployed.sidecar.admin_url + "/status", timeout=60) as told:
        routes = {route["name"]: route for route in json.load(told)["routes"]}
    assert "spent" not in routes["uncounted"]
    spent = routes["openai"]["spent"]
    assert (spent["currency"], spent["by"]["first gpt-4o-mini-2024-07-18"]["input"]) == ("EUR", 1000)


# --- budgets ---------------------------------------------------------------------------------------------------------

BUDGETS = """\
server: {{listen: "${{UNDERSTUDY_LISTEN}}", admin: "${{UNDERSTUDY_ADMIN}}", access_log: false, workers: {workers}}}
prices: {{models: {{"gpt-4o-mini*": {{input: 1000, output: 5000}}}}}}
defaults: {{retry: {{attempts: 1}}, breaker: {{enabled: false}}}}
routes:
  - name: openai
    match: {{path: /v1/chat/completions}}
    dialect: openai-chat
    spend: {{by: [x-team], budgets: [{budget}]}}
    tiers:
      - {{kind: upstream, name: big, url: "${{FIRST}}"}}
      - {{kind: upstream, name: mini, url: "${{FIRST}}"}}
"""
DEAR = {**WHOLE, "usage": {"prompt_tokens": 100, "completion_tokens": 100, "total_tokens": 200}}
"""Costs 0.60."""


class Spending:
    """A sidecar with one budget, over one state folder."""

    def __init__(self, tmp_path: Path, first: Hosted, budget: str, workers: int = 1) -> None:
        folder = tmp_path / "policies"
        folder.mkdir()
        (folder / "p.yaml").write_text(BUDGETS.format(budget=budget, workers=workers))
        first.always(answer(body=DEAR))
        self.sidecar = Sidecar(folder, tmp_path / "state", env={"FIRST": first.url})

    def ask(self, team: str = "one") -> httpx.Response:
        """On a connection of its own, which any of the workers may take."""
        url = self.sidecar.url + "/v1/chat/completions"
        return httpx.post(url, json={"model": "gpt-4o-mini", "messages": HELLO}, headers={"x-team": team}, timeout=60)

    def budget(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.sidecar.admin_url + "/status", timeout=60) as told:
            return json.load(told)["routes"][0]["budgets"][0]

    def journal(self) -> list[str]:
        """What has been written down of budgets, the first thing first."""
        told = httpx.get(self.sidecar.admin_url + "/journal", params={"family": "tier"}, timeout=60).json()["entries"]
        return [each["kind"] for each in sorted(told, key=lambda one: one["at"]) if "budget" in each["kind"]]

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(self.sidecar.admin_url + "/metrics", timeout=60) as told:
            found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", told.read().decode(), re.MULTILINE)
        return sum(map(float, found))


@pytest.fixture
def first() -> Iterator[Hosted]:
    with in_thread() as hosted:
        yield hosted


def test_calls_move_to_the_cheaper_tier_and_then_the_official_client_meets_a_429_it_does_not_repeat(
    first: Hosted, tmp_path: Path
):
    spending = Spending(tmp_path, first, "{name: day, cost: 3.0, soft_share: 0.6, cheaper: [mini]}")
    with spending.sidecar as sidecar:
        sources: list[str] = []
        for spent in range(1, 6):
            answered = spending.ask()
            sources.append(answered.headers["x-understudy-source"])
            eventually(lambda spent=spent: spending.budget()["cost"] == pytest.approx(0.6 * spent))
        assert sources == ["big", "big", "big", "mini", "mini"]
        assert answered.headers["x-understudy-reason"] == "big: budget"
        heard = len(first.heard)
        client = OpenAI(base_url=f"{sidecar.url}/v1", api_key="sk", max_retries=3)
        with pytest.raises(RateLimitError) as refused:
            client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
        assert refused.value.code == "budget_exceeded"
        assert refused.value.response.headers["x-understudy-reason"] == "openai: budget day"
        assert 0 < int(refused.value.response.headers["retry-after"]) <= 24 * 3600
        assert len(first.heard) == heard
        told = spending.budget()
        assert (told["state"], told["moved"], told["refused"], told["share"]) == ("refused", 2, 1, 1.0)
        assert spending.metric("understudy_spend_refused_total") == 1
        assert spending.metric("understudy_spend_moved_total") == 2
        assert spending.metric("understudy_spend_share") == 1.0
        eventually(lambda: "budget_spent" in spending.journal())
        (told,) = httpx.get(sidecar.admin_url + "/budgets", timeout=60).json()["budgets"]
        assert (told["budget"], told["refuses"]) == ("day", "yes")


def test_what_was_spent_outlives_a_restart_and_a_crash(first: Hosted, tmp_path: Path):
    spending = Spending(tmp_path, first, "{name: team, each: caller, window: month, cost: 1.0}")
    with spending.sidecar as sidecar:
        assert [spending.ask().status_code for _ in range(2)] == [200, 200]
        eventually(lambda: spending.budget()["callers"]["refused"] == 1)
        assert spending.ask().status_code == 429
        assert spending.ask("two").status_code == 200
        sidecar.stop()
        sidecar.start()
        assert spending.ask().status_code == 429
        assert spending.ask("two").status_code == 200
        eventually(lambda: spending.budget()["callers"] == {"known": 2, "moved": 0, "refused": 2})
        assert spending.ask("three").status_code == 200
        # a moment later it is in the book, and no crash takes it out again
        eventually(lambda: _book(sidecar)["tokens"] == 5 * 200)
        sidecar.kill()
        sidecar.start()
        assert spending.budget()["callers"] == {"known": 3, "moved": 0, "refused": 2}
        assert spending.metric("understudy_spend_kept") == 1


def _book(sidecar: Sidecar) -> dict[str, float]:
    # to be read only: who opens one that is not there yet must not make it
    path = f"file:{Path(sidecar.state) / 'spend.sqlite'}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(path, uri=True, timeout=60)) as book:
            tokens, cost = book.execute("SELECT sum(tokens), sum(cost) FROM spent").fetchone()
    except sqlite3.OperationalError:
        # just being made, or just being opened after a crash
        return {"tokens": 0, "cost": 0.0}
    return {"tokens": tokens or 0, "cost": cost or 0.0}


def test_several_workers_agree_on_what_is_left_within_about_a_second(first: Hosted, tmp_path: Path):
    spending = Spending(tmp_path, first, "{name: hour, window: day, cost: 3.0}", workers=2)
    with spending.sidecar:
        answered = [spending.ask().status_code for _ in range(5)]
        assert answered == [200] * 5
        # every worker answers some of so many connections, and refuses all of them
        eventually(lambda: [spending.ask().status_code for _ in range(12)] == [429] * 12)
        # what the last call cost is told a moment later
        eventually(
            lambda: (
                spending.budget()["cost"]
                == pytest.approx(spending.metric("understudy_llm_cost_total"))
                == pytest.approx(_book(spending.sidecar)["cost"])
            )
        )
        used = spending.budget()["cost"]
        # what is under way may overdraw it, and no more
        assert 2.99 < used < 3.0 + 12 * 0.6
        # all workers know, and one of them tells
        eventually(lambda: "budget_spent" in spending.journal())
        assert spending.journal().count("budget_spent") == 1
