"""OpenAI's own client, asking for responses, fails over to each provider of other words: what it saw of each event."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.kit.fake_upstream import in_thread
from tests.kit.processes import Sidecar
from tests.kit.providers import PROVIDERS
from tests.kit.questions import PNG, Script, Turn, Use
from tests.real.test_translation_cases import KEYS, Stage

pytestmark = pytest.mark.real

BY_PROVIDER = pytest.mark.parametrize("provider", list(PROVIDERS))
WORDS = ("Hel", "lo", ", ", "wörld", " 好", "\n", "bye.")
OSLO, ROME = ("weather", ('{"ci', 'ty": "Os', 'lo"}')), ("weather", ('{"city"', ': "Rome"}'))
CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [{"type": "function", "name": "weather", "description": "Of a city.", "parameters": CITY}]


class Deployed(Stage):
    """A route of responses for each provider behind it."""

    def client(self, provider: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.sidecar.url}/{provider}/v1", api_key="first-secret", max_retries=0)


@pytest.fixture(scope="module")
def whole_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with in_thread() as upstream:
        routes = "".join(
            f"""
  - name: {provider}
    match: {{prefix: /{provider}, strip: true}}
    dialect: openai-responses
    tiers:
      - {{kind: upstream, name: dead, url: "http://127.0.0.1:9"}}
      - {{kind: upstream, name: second, speaks: {provider}, url: "{upstream.url}", headers: {{{KEYS[provider]}}},
         models: {{"*": mapped-model}}}}"""
            for provider in PROVIDERS
        )
        folder = tmp_path_factory.mktemp("policies")
        head = 'server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}", access_log: false}\n'
        defaults = "defaults: {retry: {attempts: 1}, breaker: {enabled: false}, quota: {enabled: false}}\n"
        (folder / "all.yaml").write_text(f"{head}{defaults}routes:{routes}\n")
        with Sidecar(folder, tmp_path_factory.mktemp("state")) as sidecar:
            yield Deployed(upstream, sidecar)


@pytest.fixture
def stage(whole_stage: Deployed) -> Deployed:
    whole_stage.reset()
    whole_stage.script = Script(WORDS)
    return whole_stage


def usage_of(response: Any) -> tuple[int, int]:
    return response.usage.input_tokens, response.usage.output_tokens


def asked_whole(stage: Deployed, provider: str, **asked: Any) -> Any:
    return stage.client(provider).responses.create(model="gpt-4o", **asked)


def asked_streamed(stage: Deployed, provider: str, **asked: Any) -> tuple[Any, list[Any]]:
    """The final response as the SDK puts it together from the events, and the events."""
    with stage.client(provider).responses.stream(model="gpt-4o", **asked) as stream:
        told = list(stream)
        return stream.get_final_response(), told


@BY_PROVIDER
def test_a_text_is_told_whole_and_piece_by_piece(provider: str, stage: Deployed):
    whole = asked_whole(stage, provider, input="Say hello.", instructions="Be brief.", max_output_tokens=50)
    assert (whole.output_text, whole.status, whole.model) == (stage.script.text, "completed", "provider-model")
    assert usage_of(whole) == (11, 7)
    assert stage.question.system == "Be brief."
    assert stage.question.turns == (Turn("user", "Say hello."),)
    assert (stage.question.tokens_max, stage.upstream.heard[-1].json()["model"]) == (50, "mapped-model")
    streamed, told = asked_streamed(stage, provider, input="Say hello.")
    assert [each.delta for each in told if each.type == "response.output_text.delta"] == list(WORDS)
    assert (streamed.output_text, streamed.status) == (stage.script.text, "completed")
    assert usage_of(streamed) == (11, 7)
    assert [each.type for each in told[:4]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert [each.sequence_number for each in told] == list(range(len(told)))
    assert told[-1].type == "response.completed"


@BY_PROVIDER
def test_tools_are_used_whole_and_streamed_and_their_results_go_back(provider: str, stage: Deployed):
    stage.script = Script(("Let me see. ",), uses=(OSLO, ROME), end="tools")
    asked: dict[str, Any] = {"input": [{"role": "user", "content": "Oslo and Rome?"}], "tools": TOOLS}
    streamed, told = asked_streamed(stage, provider, **asked)
    whole = asked_whole(stage, provider, **asked)
    for response in (whole, streamed):
        text, *uses = response.output
        assert text.content[0].text == "Let me see. "
        assert [(use.name, use.arguments.replace(" ", "")) for use in uses] == [
            ("weather", '{"city":"Oslo"}'),
            ("weather", '{"city":"Rome"}'),
        ]
        assert len({use.call_id for use in uses}) == 2
        assert response.status == "completed"
    assert [each.output_index for each in told if each.type == "response.output_item.done"] == [0, 1, 2]
    stage.script = Script(WORDS)
    results = [
        {"type": "function_call_output", "call_id": use.call_id, "output": said}
        for use, said in zip(whole.output[1:], ("Rain.", "Sun."), strict=True)
    ]
    said = [item.model_dump(exclude_none=True) for item in whole.output]
    thought: dict[str, Any] = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}
    after = asked_whole(stage, provider, input=[*asked["input"], thought, *said, *results], tools=TOOLS)
    assert after.output_text == stage.script.text
    assert stage.question.turns[0] == Turn("user", "Oslo and Rome?")
    assert stage.question.turns[1].text == "Let me see. "
    assert [use.arguments for use in stage.question.turns[1].uses] == [{"city": "Oslo"}, {"city": "Rome"}]
    assert isinstance(stage.question.turns[1].uses[0], Use)
    told_back = [said for turn in stage.question.turns[2:] for _, said in turn.results]
    assert told_back == ["Rain.", "Sun."]


@BY_PROVIDER
def test_an_answer_that_reached_its_length_is_incomplete(provider: str, stage: Deployed):
    stage.script = Script(WORDS, end="length")
    whole = asked_whole(stage, provider, input="Go on.")
    # the client's own helper wants a response that is completed
    told = list(stage.client(provider).responses.create(model="m", input="Go on.", stream=True))
    for response in (whole, told[-1].response):  # type: ignore[union-attr]
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert response.output_text == stage.script.text
    assert told[-1].type == "response.incomplete"


@BY_PROVIDER
@pytest.mark.parametrize("fault", ["after", "cut", "reset"])
def test_a_stream_that_breaks_raises_in_the_client_and_has_no_end(provider: str, fault: str, stage: Deployed):
    stage.fault = fault
    told: list[Any] = []
    with pytest.raises(openai.APIError):
        _hear(stage.client(provider).responses.create(model="m", input="Say hello.", stream=True), told)
    assert "response.completed" not in told
    assert "response.output_text.delta" in told


@BY_PROVIDER
def test_an_error_of_the_second_provider_has_openais_shape(provider: str, stage: Deployed):
    stage.fault = "busy"
    # an Ollama that is busy says 503
    with pytest.raises(openai.InternalServerError if provider == "ollama-chat" else openai.RateLimitError) as busy:
        asked_whole(stage, provider, input="Say hello.")
    assert busy.value.code


def _hear(stream: Any, told: list[Any]) -> None:
    for event in stream:
        told += [event.type]


CANNOT = {
    "`previous_response_id`": {"previous_response_id": "resp_1"},
    "`conversation`": {"conversation": "conv_1"},
    "`background`": {"background": True},
    "a tool of type web_search": {"tools": [{"type": "web_search"}]},
    "an input of type item_reference": {"input": [{"type": "item_reference", "id": "msg_1"}]},
    "content of type input_file": {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
}


@BY_PROVIDER
@pytest.mark.parametrize("what", CANNOT)
def test_what_only_stands_with_openai_is_refused_by_name(provider: str, what: str, stage: Deployed):
    with pytest.raises(openai.APIStatusError) as refused:
        asked_whole(stage, provider, **({"input": "hello"} | CANNOT[what]))
    assert what in refused.value.message
    assert not stage.upstream.heard


@BY_PROVIDER
def test_pictures_schemas_and_choices_are_told(provider: str, stage: Deployed):
    stage.script = Script(('{"city": ', '"Oslo"}'))
    picture = {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}", "detail": "auto"}
    content = [{"type": "input_text", "text": "Where is that? JSON."}, picture]
    form: Any = {"format": {"type": "json_schema", "name": "city", "schema": CITY, "strict": True}}
    said = asked_whole(stage, provider, input=[{"role": "user", "content": content}], text=form, temperature=0.5)
    assert said.output_text.replace(" ", "") == '{"city":"Oslo"}'
    (turn,) = stage.question.turns
    assert turn.pictures == (PNG,)
    assert (stage.question.schema, stage.question.temperature) == (CITY, 0.5)


def test_no_key_of_the_callers_goes_to_the_second_provider(stage: Deployed):
    asked_whole(stage, "anthropic", input="Say hello.")
    assert b"first-secret" not in stage.upstream.heard[-1].raw
    assert b"second-secret" in stage.upstream.heard[-1].raw
