"""Splits, shadows and faults as callers with the official SDK meet them, through the running sidecar."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI

from tests.kit.acts import answer, sse
from tests.kit.fake_upstream import Hosted, in_thread
from tests.kit.processes import Sidecar, eventually, put_in_place

pytestmark = pytest.mark.real

USERS = 200
HEAD = """
server:
  listen: ${UNDERSTUDY_LISTEN}
  admin: ${UNDERSTUDY_ADMIN}
  reload_s: 0.1
routes:
"""


def completion(text: str) -> dict[str, object]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


def embedding(*numbers: float) -> dict[str, object]:
    data = [{"object": "embedding", "index": 0, "embedding": list(numbers)}]
    return {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}}


CHUNK = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
CHUNKS = [{**CHUNK, "choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]}] * 20


@pytest.fixture
def upstreams() -> Iterator[tuple[Hosted, Hosted]]:
    with ExitStack() as stack:
        yield tuple(stack.enter_context(in_thread(answer(body=completion(who)))) for who in ("old", "new"))  # pyright: ignore[reportReturnType]


def client(sidecar: Sidecar) -> OpenAI:
    return OpenAI(base_url=sidecar.url + "/v1", api_key="unused", max_retries=0)


def asked(ai: OpenAI, user: str = "ada", **headers: str) -> tuple[str, httpx.Headers]:
    """(who answered, the answer's headers)"""
    told = ai.chat.completions.with_raw_response.create(
        model="m", messages=[{"role": "user", "content": "hello"}], user=user, extra_headers=headers
    )
    return told.parse().choices[0].message.content or "", told.headers


def chat(old: Hosted, new: Hosted, *, tier: str = "", more: str = "") -> str:
    return (
        f"{HEAD}  - name: chat\n    match: {{prefix: /v1/chat}}\n    dialect: openai-chat\n"
        f"    tiers:\n      - {{kind: upstream, name: old, url: '{old.url}'{tier}}}\n"
        f"      - {{kind: upstream, name: spare, url: '{old.url}'}}\n"
        f"    arms: {{next: {{tiers: [{{kind: upstream, name: new, url: '{new.url}'}}]}}}}\n{more}"
    )


def told(sidecar: Sidecar, path: str) -> str:
    with urllib.request.urlopen(sidecar.admin_url + path, timeout=30) as given:
        return given.read().decode()


def write(folder: Path, text: str) -> None:
    put_in_place(folder / "chat.yaml", text)


def test_a_split_sends_a_stable_share_of_users_and_raising_it_moves_nobody_back(
    upstreams: tuple[Hosted, Hosted], folder: Path, tmp_path: Path
):
    old, new = upstreams

    def policies(share: float) -> str:
        return chat(old, new, more=f"    split: {{arm: next, share: {share}, keys: ['body:user']}}\n")

    write(folder, policies(0.25))
    with Sidecar(folder, tmp_path) as sidecar:
        ai = client(sidecar)

        def moved() -> set[str]:
            who = {f"user-{number}": asked(ai, f"user-{number}") for number in range(USERS)}
            assert all(
                headers["x-understudy-arm"] == {"old": "main", "new": "next"}[by] for by, headers in who.values()
            )
            return {user for user, (by, _) in who.items() if by == "new"}

        first = moved()
        assert 0.25 * USERS * 0.6 < len(first) < 0.25 * USERS * 1.4
        assert moved() == first
        write(folder, policies(0.5))
        eventually(lambda: 'understudy_arm_share{arm="next",route="chat"} 0.5' in told(sidecar, "/metrics"))
        second = moved()
        assert first < second
        assert 0.5 * USERS * 0.7 < len(second) < 0.5 * USERS * 1.3
        assert (
            f'understudy_arm_calls_total{{arm="next",outcome="2xx",route="chat"}} {2 * len(first) + len(second)}.0'
            in (told(sidecar, "/metrics"))
        )
        # a canary that dies costs nobody an answer
        new.always(answer(503, body={"error": {"message": "dead"}}))
        assert all(asked(ai, user)[0] == "old" for user in sorted(second)[:20])


def test_a_fault_at_a_tier_makes_the_sdk_be_answered_by_the_next_one_and_says_so(
    upstreams: tuple[Hosted, Hosted], folder: Path, tmp_path: Path
):
    old, new = upstreams
    # as long as a slow machine takes for what comes next
    open_long = "    breaker: {open_s: 600, open_s_max: 600}\n"
    write(folder, chat(old, new, tier=", faults: [{name: dead, do: error, status: 503}]", more=open_long))
    with Sidecar(folder, tmp_path) as plain:
        assert asked(client(plain))[1]["x-understudy-source"] == "old"
        assert "BROKEN ON PURPOSE" not in plain.logs()
    with Sidecar(folder, tmp_path, env={"UNDERSTUDY_FAULTS": "on"}) as sidecar:
        ai = client(sidecar)
        headers = [asked(ai)[1] for _ in range(20)]
        assert {each["x-understudy-source"] for each in headers} == {"spare"}
        assert headers[0]["x-understudy-fault"].startswith("dead")
        assert "x-understudy-fault" not in headers[-1]
        assert 'understudy_breaker_state{endpoint="old",route="chat",state="open",tier="old"} 1.0' in (
            told(sidecar, "/metrics")
        )
        (fault,) = json.loads(told(sidecar, "/status"))["routes"][0]["faults"]
        assert (fault["at"], fault["name"], fault["on"]) == ("old", "dead", True)
        assert "BROKEN ON PURPOSE, as if this tier did it: error, name dead, status 503" in sidecar.logs()


def test_faults_at_a_route_reach_the_sdk_as_what_they_are(
    upstreams: tuple[Hosted, Hosted], folder: Path, tmp_path: Path
):
    old, new = upstreams
    deeds = ("abort: {do: abort", "cut: {do: cut, after_chunks: 3", "error: {do: error, status: 429, retry_after_s: 9")
    lines = "".join(
        f"      - {deed.partition(' ')[2]}, headers: {{x-rehearse: {deed.partition(':')[0]}}}}}\n" for deed in deeds
    )
    write(folder, chat(old, new, more=f"    faults:\n{lines}"))
    with Sidecar(folder, tmp_path, env={"UNDERSTUDY_FAULTS": "on"}) as sidecar:
        ai = client(sidecar)
        assert asked(ai)[0] == "old"
        with pytest.raises(openai.APIConnectionError):
            asked(ai, **{"x-rehearse": "abort"})
        with pytest.raises(openai.RateLimitError) as limited:
            asked(ai, **{"x-rehearse": "error"})
        assert limited.value.response.headers["retry-after"] == "9"
        old.always(sse(CHUNKS))
        assert len(streamed(ai, "")) == 20
        with pytest.raises(openai.APIError, match="broke off"):
            streamed(ai, "cut")


def streamed(ai: OpenAI, rehearsed: str) -> list[str]:
    """The words of a stream."""
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
    headers = {"x-rehearse": rehearsed}
    stream = ai.chat.completions.create(model="m", messages=messages, stream=True, extra_headers=headers)
    return [chunk.choices[0].delta.content or "" for chunk in stream]


def test_a_shadow_is_asked_after_the_caller_was_answered_and_never_for_a_write(folder: Path, tmp_path: Path):
    with in_thread(answer(body=embedding(1, 0))) as old, in_thread(answer(body=embedding(1, 1), delay_s=0.3)) as new:
        write(
            folder,
            f"{HEAD}  - name: vectors\n    match: {{prefix: /v1}}\n    dialect: openai-embeddings\n    space: m\n"
            f"    tiers: [{{kind: upstream, name: old, url: '{old.url}'}}]\n"
            f"    arms: {{next: {{tiers: [{{kind: upstream, name: new, url: '{new.url}'}}]}}}}\n"
            "    shadow: {arm: next, share: 1.0}\n",
        )
        with Sidecar(folder, tmp_path) as sidecar:
            ai = client(sidecar)
            for _ in range(3):
                given = ai.embeddings.create(model="m", input="x", encoding_format="float")
                assert given.data[0].embedding == [1, 0]
            # of kind `pass`: nobody knows whether it is a read
            assert ai.with_options(max_retries=0).get("/models", cast_to=httpx.Response).status_code == 200
            eventually(
                lambda: (
                    'understudy_shadow_pairs_total{arm="next",result="same",route="vectors"} 3.0'
                    in told(sidecar, "/metrics")
                )
            )
            assert [heard.header(b"x-understudy-shadow") for heard in new.heard] == [b"1"] * 3
            assert all(heard.header(b"x-understudy-shadow") is None for heard in old.heard)
            assert len(old.heard) == 4
            sums = [
                line for line in told(sidecar, "/metrics").splitlines() if "agreement_sum" in line and "cosine" in line
            ]
            assert float(sums[0].split()[-1]) == pytest.approx(3 * 0.5**0.5)
