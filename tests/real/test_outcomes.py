"""What the official SDK meets when a provider errs: the next tier's answer, or the provider's own words."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
from openai import OpenAI

from tests.kit.acts import answer
from tests.kit.fake_upstream import Hosted, in_thread
from tests.kit.processes import Sidecar

pytestmark = pytest.mark.real

LONG = "This model's maximum context length is 128000 tokens. However, your messages resulted in 140000 tokens."
WELL = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "from the second"}, "finish_reason": "stop"}],
}
POLICIES = """\
server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}"}
defaults:
  breaker: {enabled: false}
  # one that erred a moment ago is asked all the same: whether it is well is another test's
  ramp: {enabled: false}
  retry: {base_s: 0.001}
routes:
  - name: both
    match: {prefix: /both, strip: true}
    dialect: openai-chat
    tiers:
      - {kind: upstream, name: first, url: "${FIRST}", headers: {authorization: Bearer sk-ours}}
      - {kind: upstream, name: second, url: "${SECOND}"}
  - name: alone
    match: {prefix: /alone, strip: true}
    dialect: openai-chat
    tiers:
      - {kind: upstream, name: first, url: "${FIRST}", headers: {authorization: Bearer sk-ours}}
  - name: theirs
    match: {prefix: /theirs, strip: true}
    dialect: openai-chat
    tiers:
      - {kind: upstream, name: first, url: "${FIRST}"}
      - {kind: upstream, name: second, url: "${SECOND}"}
"""


class Deployed(NamedTuple):
    sidecar: Sidecar
    first: Hosted

    def ask(self, route: str) -> Any:
        """The completion, by an SDK that does not ask again itself. Raises openai.APIStatusError."""
        self.first.heard.clear()
        client = OpenAI(base_url=f"{self.sidecar.url}/{route}/v1", api_key="sk-callers", max_retries=0)
        return client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])

    def refusal(self, route: str) -> openai.APIStatusError:
        with pytest.raises(openai.APIStatusError) as told:
            self.ask(route)
        return told.value


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder: Path = tmp_path_factory.mktemp("policies")
    (folder / "chat.yaml").write_text(POLICIES)
    with in_thread() as first, in_thread(answer(200, body=WELL)) as second:
        env = {"FIRST": first.url, "SECOND": second.url}
        with Sidecar(folder, tmp_path_factory.mktemp("state"), env=env) as sidecar:
            yield Deployed(sidecar, first)


def error(message: str, kind: str, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


RATE = (429, error("Rate limit reached for gpt-4o", "tokens", "rate_limit_exceeded"))
QUOTA = (429, error("You exceeded your current quota", "insufficient_quota", "insufficient_quota"))
TOO_LONG = (400, error(LONG, "invalid_request_error", "context_length_exceeded"))
KEY = (401, error("Incorrect API key provided: sk-ou**rs.", "invalid_request_error", "invalid_api_key"))
BROKEN = (500, error("The server had an error while processing your request.", "server_error", None))
OVERLOADED = (529, error("Overloaded", "overloaded_error", None))


@pytest.mark.parametrize(
    ("said", "asked_again"),
    [(RATE, True), (QUOTA, False), (KEY, False), (BROKEN, True), (OVERLOADED, True)],
    ids=["rate_limit", "quota", "key", "500", "529"],
)
def test_the_second_tier_answers_and_the_first_is_asked_again_only_where_that_could_help(
    deployed: Deployed, said: tuple[int, dict[str, Any]], asked_again: bool
):
    deployed.first.always(answer(said[0], body=said[1]))
    assert deployed.ask("both").choices[0].message.content == "from the second"
    assert len(deployed.first.heard) == 1 + asked_again


def test_a_prompt_that_is_too_long_is_told_its_sender_in_the_providers_words_after_one_attempt(deployed: Deployed):
    deployed.first.always(answer(TOO_LONG[0], body=TOO_LONG[1]))
    refusal = deployed.refusal("both")
    assert (type(refusal), refusal.code) == (openai.BadRequestError, "context_length_exceeded")
    assert LONG in refusal.message
    assert len(deployed.first.heard) == 1


def test_where_nobody_else_is_there_quota_and_rate_limit_come_back_as_they_were_said(deployed: Deployed):
    for status, said in (RATE, QUOTA, BROKEN):
        deployed.first.always(answer(status, body=said))
        refusal = deployed.refusal("alone")
        assert (refusal.status_code, refusal.code) == (status, said["error"]["code"])


def test_a_key_of_ours_that_is_dead_is_never_blamed_on_the_caller_and_the_callers_own_is(deployed: Deployed):
    deployed.first.always(answer(KEY[0], body=KEY[1]))
    refusal = deployed.refusal("alone")
    assert (refusal.status_code, refusal.code) == (502, "credentials")
    assert "sk-ou" not in str(refusal)
    refusal = deployed.refusal("theirs")
    assert isinstance(refusal, openai.AuthenticationError)


def test_metrics_call_outcomes_by_their_reasons(deployed: Deployed):
    for status, said in (QUOTA, TOO_LONG):
        deployed.first.always(answer(status, body=said))
        if status == 400:
            deployed.refusal("both")
        else:
            deployed.ask("both")
    with urllib.request.urlopen(deployed.sidecar.admin_url + "/metrics", timeout=30) as told:
        text = told.read().decode()
    for outcome, reason in (("failed", "quota"), ("caller", "context_length")):
        assert f'route="both",tier="first",outcome="{outcome}",reason="{reason}"' in text or (
            f'outcome="{outcome}",reason="{reason}",route="both",tier="first"' in text
        )
