"""The official clients through a running sidecar whose first provider is dead, each to each other provider's dialect.

Every case is asked twice: of a provider of the client's own, directly, and of another one through the failover. What
the client saw must be the same, piece by piece where the second provider has pieces; what the second provider heard
must be the same question, by its own strict reading. `python -m tests.real.translation_table` prints the outcome.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.kit.acts import answer, pieces
from tests.kit.fake_upstream import Act, Heard, Hosted, Wire, in_thread
from tests.kit.processes import Sidecar
from tests.kit.providers import PROVIDERS
from tests.kit.questions import PNG, Function, Provider, Question, Script, Turn, Use
from tests.real.sdk_callers import CALLERS, HEADERS, KEY, SdkCaller, Seen
from understudy.proxy.settings.reading import read_folder

pytestmark = pytest.mark.real

PAIRS = [
    (caller, provider)
    for caller, kind in CALLERS.items()
    for provider in PROVIDERS
    if provider != kind.dialect or caller == "azure"
]


def by_pair(*, callers_but: str = "", providers_but: str = "") -> pytest.MarkDecorator:
    """Each client with each other provider, less one that has no words for the case at all."""
    pairs = [(a, b) for a, b in PAIRS if a != callers_but and b != providers_but]
    return pytest.mark.parametrize(("caller", "provider"), pairs, ids=[f"{a}>{b}" for a, b in pairs])


BY_PAIR = by_pair()
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
ROUTES = {"openai": "openai-chat", "azure": "azure-openai-chat", "anthropic": "anthropic", "ollama": "ollama-chat"}
KEYS = {
    "openai-chat": "authorization: Bearer second-secret",
    "anthropic": "x-api-key: second-secret",
    "ollama-chat": "",
}

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Function("weather", "The weather of a city.", CITY)
HI = Question((Turn("user", "Say hello."),), "Be brief.")
WORDS = ("Hel", "lo", ", ", "wörld", " 好", "\n", "bye.")
OSLO, ROME = ("weather", ('{"ci', 'ty": "Os', 'lo"}')), ("weather", ('{"city"', ': "Rome"}'))


def policies(second: str) -> str:
    routes = ""
    for caller, provider in PAIRS:
        routes += f"""
  - name: {caller}-{provider}
    match: {{prefix: /{caller}-{provider}, strip: true}}
    dialect: {ROUTES[caller]}
    tiers:
      - {{kind: upstream, name: dead, url: "http://127.0.0.1:9"}}
      - {{kind: upstream, name: second, speaks: {provider}, url: "{second}", headers: {{{KEYS[provider]}}},
         models: {{"*": mapped-model}}}}
"""
    return f"""
server:
  {{listen: "${{UNDERSTUDY_LISTEN}}", admin: "${{UNDERSTUDY_ADMIN}}", access_log: false, shed: {{enabled: false}}}}
defaults: {{retry: {{attempts: 1}}, breaker: {{enabled: false}}, quota: {{enabled: false}}}}
routes:{routes}
  - name: chain
    match: {{prefix: /chain, strip: true}}
    dialect: openai-chat
    tiers:
      - {{kind: upstream, name: dead, url: "http://127.0.0.1:9"}}
      - {{kind: upstream, name: cannot, speaks: anthropic, url: "{second}", headers: {{x-api-key: second-secret}}}}
      - {{kind: upstream, name: third, speaks: openai-chat, url: "{second}", headers: {{authorization: third-secret}},
         models: {{"*": third-model}}}}
"""


class Stage:
    """The providers, on one port, and what they are to say."""

    def __init__(self, upstream: Hosted, sidecar: Sidecar) -> None:
        self.upstream = upstream
        self.sidecar = sidecar
        upstream.always(self._play)
        self.reset()

    def reset(self) -> None:
        self.upstream.forget()
        self.script = Script(WORDS)
        self.fault = ""

    def direct(self, caller: str) -> SdkCaller:
        """The client at a provider of its own."""
        return CALLERS[caller](self.upstream.url)

    def through(self, caller: str, provider: str) -> SdkCaller:
        """The client at the route that fails over to this provider."""
        return CALLERS[caller](f"{self.sidecar.url}/{caller}-{provider}")

    async def _play(self, wire: Wire, heard: Heard) -> None:
        await self._act(heard)(wire, heard)

    def _act(self, heard: Heard) -> Act:
        provider = provider_of(heard)
        body = heard.json()
        kind = [(b"content-type", provider.content_type.encode())]
        if self.fault in ("context", "key", "busy", "broken"):
            status, told = provider.error(self.fault)
            return answer(status, body=told, headers=[(b"retry-after", b"7")] if self.fault == "busy" else ())
        if body.get("stream", provider.name == "ollama-chat") is not True:
            return answer(body=provider.whole(self.script, body))
        events = provider.stream(self.script, body)
        begun = provider.begun(self.script, body)
        if self.fault == "inside":
            return pieces([*events[:begun], provider.error_event()], headers=kind, gap_s=0.005)
        if self.fault == "after":
            # nobody answers behind it: whoever hears it must not wait for more
            return pieces([*events[: begun + 2], provider.error_event()], headers=kind, gap_s=0.02, ending="stall")
        if self.fault in ("cut", "reset"):
            return pieces(events[: begun + 2], headers=kind, gap_s=0.02, ending=self.fault)  # type: ignore[arg-type]
        return pieces(events, headers=kind, gap_s=0.002)

    @property
    def question(self) -> Question:
        """What was asked last, as its provider reads it."""
        heard = self.upstream.heard[-1]
        return provider_of(heard).read(heard.json())


def provider_of(heard: Heard) -> Provider:
    path = heard.target.decode().partition("?")[0]
    if path.startswith("/openai/deployments/"):
        return PROVIDERS["openai-chat"]
    return next(provider for provider in PROVIDERS.values() if provider.path == path)


@pytest.fixture(scope="module")
def whole_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with in_thread() as upstream:
        folder = tmp_path_factory.mktemp("policies")
        (folder / "all.yaml").write_text(policies(upstream.url))
        with Sidecar(folder, tmp_path_factory.mktemp("state")) as sidecar:
            yield Stage(upstream, sidecar)


@pytest.fixture
def stage(whole_stage: Stage) -> Stage:
    whole_stage.reset()
    return whole_stage


def heard_as(question: Question, provider: str) -> Question:
    """The question as this provider is bound to hear it."""
    if provider == "anthropic" and question.tokens_max is None:
        question = replace(question, tokens_max=4096)
    return question


def compared(stage: Stage, caller: str, provider: str, question: Question, *, stream: bool) -> tuple[Seen, Seen]:
    """What the client saw directly and through the failover, when both were asked the same."""
    before = stage.direct(caller).ask(question, stream=stream)
    asked = stage.question
    seen = stage.through(caller, provider).ask(question, stream=stream)
    assert stage.question == heard_as(asked, provider)
    assert stage.upstream.heard[-1].json()["model"] == "mapped-model"
    assert provider_of(stage.upstream.heard[-1]).name == provider
    assert seen.model == before.model
    return before, seen


# --- what is answered ------------------------------------------------------------------------------------------------


@BY_PAIR
@STREAMED
def test_a_text_comes_piece_by_piece_as_it_would_directly(caller: str, provider: str, stage: Stage, stream: bool):
    before, seen = compared(stage, caller, provider, HI, stream=stream)
    assert seen.pieces == before.pieces == (list(WORDS) if stream else ["".join(WORDS)])
    assert seen.told == before.told
    assert seen.usage == (11, 7)


@BY_PAIR
@STREAMED
def test_a_tool_is_used_as_it_would_be_directly(caller: str, provider: str, stage: Stage, stream: bool):
    stage.script = Script(("Let me", " see."), (OSLO,), "tools")
    before, seen = compared(stage, caller, provider, replace(HI, tools=(WEATHER,)), stream=stream)
    assert seen.told == before.told
    assert seen.pieces == before.pieces
    assert seen.uses == [("weather", {"city": "Oslo"})]


@BY_PAIR
@STREAMED
def test_two_tools_are_used_at_once(caller: str, provider: str, stage: Stage, stream: bool):
    stage.script = Script((), (OSLO, ROME), "tools")
    before, seen = compared(stage, caller, provider, replace(HI, tools=(WEATHER,)), stream=stream)
    assert seen.told == before.told
    assert [arguments["city"] for _, arguments in seen.uses] == ["Oslo", "Rome"]
    assert len(set(seen.ids)) == 2 or caller == "ollama"


@BY_PAIR
@STREAMED
def test_results_of_tools_are_told_with_their_uses(caller: str, provider: str, stage: Stage, stream: bool):
    turns = (
        Turn("user", "How is it in Oslo and Rome?"),
        Turn(
            "assistant", "Let me see.", uses=(Use(0, "weather", {"city": "Oslo"}), Use(1, "weather", {"city": "Rome"}))
        ),
        Turn("user", results=((0, "Rain."), (1, "Sun: 30 °C"))),
        Turn("assistant", "Rain and sun."),
        Turn("user", "And in Bergen?"),
        Turn("assistant", uses=(Use(2, "weather", {"city": "Bergen"}),)),
        Turn("user", results=((2, "Rain, too."),)),
    )
    before, seen = compared(stage, caller, provider, Question(turns, "Be brief.", (WEATHER,)), stream=stream)
    assert seen.told == before.told
    assert seen.pieces == before.pieces
    assert stage.question.turns == turns


@BY_PAIR
@STREAMED
def test_tools_are_used_over_many_turns_and_the_first_provider_takes_it_from_there(
    caller: str, provider: str, stage: Stage, stream: bool
):
    """Twice a tool is used by the second provider; then the first is back, and is told all of it."""
    client = stage.through(caller, provider)
    question = replace(HI, tools=(WEATHER,))
    asked = client.own.body(question)
    for city in (OSLO, ROME):
        stage.script = Script((), (city,), "tools", ids=(f"of-{json.loads(''.join(city[1]))['city']}",))
        seen = client._streamed(asked) if stream else client._whole(asked)
        asked = client.after(asked, seen, ["Rain."])
        if caller != "ollama":
            assert seen.ids[0]
    stage.script = Script(WORDS)
    for back in (client, stage.direct(caller)):
        seen = back._streamed(asked) if stream else back._whole(asked)
        assert "".join(seen.pieces) == "".join(WORDS)
        turns = stage.question.turns
        assert [(use.id, use.arguments["city"]) for turn in turns for use in turn.uses] == [(0, "Oslo"), (1, "Rome")]
        assert [result for turn in turns for result in turn.results] == [(0, "Rain."), (1, "Rain.")]


@BY_PAIR
@STREAMED
def test_a_conversation_with_tools_may_end_without_any(caller: str, provider: str, stage: Stage, stream: bool):
    turns = (
        Turn("user", "How is it in Oslo?"),
        Turn("assistant", uses=(Use(0, "weather", {"city": "Oslo"}),)),
        Turn("user", results=((0, "Rain."),)),
    )
    seen = stage.through(caller, provider).ask(Question(turns), stream=stream)
    assert "".join(seen.pieces) == "".join(WORDS)
    asked = stage.question
    assert asked.turns == turns
    # who must be told of tools may use none of them
    assert asked.choice == "none" if asked.tools else asked.choice == "auto"


@by_pair(callers_but="ollama")
@STREAMED
@pytest.mark.parametrize("choice", ["any", "none", "tool:weather"])
def test_a_tool_that_must_or_must_not_be_used_is_told(
    caller: str, provider: str, stage: Stage, stream: bool, choice: str, record_property: Any
):
    question = replace(HI, tools=(WEATHER,), choice=choice)
    if provider == "ollama-chat" and choice != "none":
        refused(stage, caller, provider, question, "a tool that must be used", stream=stream)
        record_property("refused", "tool_choice")
        return
    stage.script = Script(WORDS) if choice == "none" else Script((), (OSLO,), "tools")
    seen = stage.through(caller, provider).ask(question, stream=stream)
    assert seen.uses == ([] if choice == "none" else [("weather", {"city": "Oslo"})])
    if provider == "ollama-chat":
        assert stage.question.tools == ()
    else:
        assert (stage.question.choice, stage.question.tools) == (question.choice, (WEATHER,))


@BY_PAIR
@STREAMED
def test_pictures_are_seen_by_the_second_provider(caller: str, provider: str, stage: Stage, stream: bool):
    question = Question((Turn("user", "What is this?", (PNG, PNG)),), "Be brief.")
    before, seen = compared(stage, caller, provider, question, stream=stream)
    assert seen.told == before.told
    assert stage.question.turns == question.turns


@by_pair(callers_but="ollama")
@STREAMED
def test_a_picture_is_told_by_its_address(caller: str, provider: str, stage: Stage, stream: bool, record_property: Any):
    question = Question((Turn("user", "What is this?", ("https://example.com/a.png",)),))
    if provider == "ollama-chat":
        refused(stage, caller, provider, question, "a picture that must be fetched", stream=stream)
        record_property("refused", "picture")
        return
    compared(stage, caller, provider, question, stream=stream)
    assert stage.question.turns == question.turns


@by_pair(callers_but="anthropic")
@STREAMED
def test_any_json_object_is_answered_in_json(caller: str, provider: str, stage: Stage, stream: bool):
    json_answered(stage, caller, provider, {}, stream=stream)


@BY_PAIR
@STREAMED
def test_a_schema_is_answered_in_json(caller: str, provider: str, stage: Stage, stream: bool):
    json_answered(stage, caller, provider, CITY, stream=stream)


def json_answered(stage: Stage, caller: str, provider: str, schema: dict[str, Any], *, stream: bool) -> None:
    question = Question((Turn("user", "A city of Norway, as JSON."),), schema=schema)
    stage.script = Script(('{"ci', 'ty": ', '"Oslo"}'))
    before, seen = compared(stage, caller, provider, question, stream=stream)
    assert (seen.end, seen.uses, seen.usage) == (before.end, [], before.usage)
    assert json.loads("".join(seen.pieces)) == {"city": "Oslo"}
    # piece by piece, too: a whole answer is written anew where it was a tool's arguments
    assert seen.pieces == before.pieces or not stream
    assert stage.question.schema == schema


@by_pair(callers_but="anthropic")
@STREAMED
def test_json_comes_even_where_no_word_asks_for_it(caller: str, provider: str, stage: Stage, stream: bool):
    question = Question((Turn("user", "A city of Norway."),), schema={})
    stage.script = Script(('{"city": "Oslo"}',))
    seen = stage.through(caller, provider).ask(question, stream=stream)
    assert json.loads("".join(seen.pieces)) == {"city": "Oslo"}
    asked = stage.question
    assert (asked.schema, asked.turns) == ({}, question.turns)


@BY_PAIR
@STREAMED
def test_stop_length_temperature_and_top_p_are_told(caller: str, provider: str, stage: Stage, stream: bool):
    question = replace(HI, stop=("END", "STOP"), tokens_max=77, temperature=0.25, top_p=0.5)
    before, seen = compared(stage, caller, provider, question, stream=stream)
    assert seen.told == before.told
    asked = stage.question
    assert (asked.stop, asked.tokens_max, asked.temperature, asked.top_p) == (("END", "STOP"), 77, 0.25, 0.5)


REASONS = {
    "openai": {"length": "length", "filter": "content_filter"},
    "azure": {"length": "length", "filter": "content_filter"},
    "anthropic": {"length": "max_tokens", "filter": "refusal"},
    "ollama": {"length": "length", "filter": "content_filter"},
}


@BY_PAIR
@STREAMED
def test_an_answer_that_reached_its_length(caller: str, provider: str, stage: Stage, stream: bool):
    stage.script = Script(WORDS[:2], end="length")
    seen = stage.through(caller, provider).ask(HI, stream=stream)
    assert ("".join(seen.pieces), seen.end) == ("Hello", REASONS[caller]["length"])


@by_pair(providers_but="ollama-chat")
@STREAMED
def test_an_answer_that_was_filtered(caller: str, provider: str, stage: Stage, stream: bool):
    stage.script = Script(WORDS[:2], end="filter")
    seen = stage.through(caller, provider).ask(HI, stream=stream)
    assert ("".join(seen.pieces), seen.end) == ("Hello", REASONS[caller]["filter"])


# --- what is not ---------------------------------------------------------------------------------------------------


def raises(stage: Stage, caller: str, provider: str, question: Question = HI, *, stream: bool, **more: Any) -> Any:
    """The client's own error, by its status (None: in the stream), and its words."""
    client = stage.through(caller, provider)
    with pytest.raises(client.raised) as caught:
        client.ask(question, stream=stream, **more)
    return client.status(caught.value), str(caught.value)


def refused(
    stage: Stage, caller: str, provider: str, question: Question, what: str, *, stream: bool, **more: Any
) -> None:
    """Nobody is asked, and the error names what could not be said."""
    before = len(stage.upstream.heard)
    status, words = raises(stage, caller, provider, question, stream=stream, **more)
    assert status == 502
    assert what in words
    assert "can't be translated" in words
    assert len(stage.upstream.heard) == before


class Untranslatable(NamedTuple):
    callers: tuple[str, ...]
    providers: tuple[str, ...]
    what: str
    more: dict[str, Any]


BOTH = ("openai", "azure")
MIDDLE = [{"role": "user", "content": "u"}, {"role": "system", "content": "s"}, {"role": "user", "content": "v"}]
BEGUN = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "I"}]
AUDIO = [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}]}]
DOCUMENT = [{"role": "user", "content": [{"type": "document", "source": {"type": "text", "data": "d"}}]}]
REFUSED = [
    Untranslatable(BOTH, ("anthropic", "ollama-chat"), "`n`", {"n": 2}),
    Untranslatable(BOTH, ("anthropic", "ollama-chat"), "`logit_bias`", {"logit_bias": {"1": 1}}),
    Untranslatable(BOTH, ("anthropic", "ollama-chat"), "`logprobs`", {"logprobs": True}),
    Untranslatable(BOTH, ("anthropic", "ollama-chat"), "`frequency_penalty`", {"frequency_penalty": 0.5}),
    Untranslatable(BOTH, ("anthropic", "ollama-chat"), "input_audio", {"messages": AUDIO}),
    Untranslatable(BOTH, ("anthropic", "ollama-chat"), "the user's turn", {"messages": BEGUN}),
    Untranslatable(BOTH, ("anthropic",), "in the middle", {"messages": MIDDLE}),
    Untranslatable(BOTH, ("anthropic",), "a temperature above 1", {"temperature": 1.5}),
    Untranslatable(("anthropic",), ("openai-chat",), "top_k", {"top_k": 3}),
    Untranslatable(("anthropic",), ("openai-chat", "ollama-chat"), "document", {"messages": DOCUMENT}),
    Untranslatable(("anthropic",), ("openai-chat", "ollama-chat"), "the user's turn", {"messages": BEGUN}),
    Untranslatable(
        ("anthropic",),
        ("openai-chat", "ollama-chat"),
        "web_search",
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
    ),
    Untranslatable(("ollama",), ("openai-chat", "anthropic"), "options.mirostat", {"options": {"mirostat": 2}}),
    Untranslatable(("ollama",), ("openai-chat",), "top_k", {"options": {"top_k": 3}}),
    Untranslatable(("ollama",), ("anthropic",), "in the middle", {"messages": MIDDLE}),
    Untranslatable(("ollama",), ("openai-chat", "anthropic"), "the user's turn", {"messages": BEGUN}),
]
CASES = [(a, b, each.what, each.more) for each in REFUSED for a in each.callers for b in each.providers]


@pytest.mark.parametrize(
    ("caller", "provider", "what", "more"), CASES, ids=[f"{a}>{b} {what}" for a, b, what, _ in CASES]
)
@STREAMED
def test_what_cannot_be_said_is_refused_by_name(
    caller: str,
    provider: str,
    stage: Stage,
    stream: bool,
    what: str,
    more: dict[str, Any],
    record_property: Any,
):
    refused(stage, caller, provider, HI, what, stream=stream, **more)
    record_property("refused", what)


@STREAMED
def test_the_tier_behind_one_that_cannot_be_asked_answers(stage: Stage, stream: bool):
    client = CALLERS["openai"](f"{stage.sidecar.url}/chain")
    seen = client.ask(HI, stream=stream, n=1, logit_bias={"1": 1})
    assert ("".join(seen.pieces), seen.source) == ("".join(WORDS), "third")
    heard = stage.upstream.heard[-1].json()
    assert (heard["logit_bias"], heard["model"]) == ({"1": 1}, "third-model")


@BY_PAIR
@STREAMED
@pytest.mark.parametrize("fault", ["context", "busy", "broken", "key"])
def test_an_error_before_the_first_byte_has_the_callers_shape(
    caller: str, provider: str, stage: Stage, stream: bool, fault: str
):
    stage.fault = fault
    status, words = raises(stage, caller, provider, stream=stream)
    told = PROVIDERS[provider].error(fault)
    message = told[1]["error"] if isinstance(told[1]["error"], str) else told[1]["error"]["message"]
    if fault == "key":
        # a key of ours is wrong: nothing that its caller could mend, or should read
        assert status == 502
        assert "second-secret" not in words
    else:
        assert status == {529: 503}.get(told[0], told[0])
        assert message in words


@BY_PAIR
def test_an_error_inside_a_200_is_one_before_any_content(caller: str, provider: str, stage: Stage):
    stage.fault = "inside"
    status, _ = raises(stage, caller, provider, stream=True)
    assert status in (502, 503)


@BY_PAIR
def test_an_error_after_the_first_content_raises_in_the_client(caller: str, provider: str, stage: Stage):
    stage.fault = "after"
    status, words = raises(stage, caller, provider, stream=True)
    assert status is None
    assert "broke off" in words


@BY_PAIR
@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_a_stream_that_is_cut_raises_in_the_client(caller: str, provider: str, stage: Stage, fault: str):
    stage.fault = fault
    status, words = raises(stage, caller, provider, stream=True)
    assert status is None
    assert "broke off" in words


@pytest.mark.parametrize("dialect", ["openai-completions", "cohere-chat"])
def test_what_is_never_translated_is_said_when_policies_are_read(dialect: str, tmp_path: Path):
    tier = "{kind: upstream, name: a, url: 'http://a', speaks: anthropic, headers: {x-api-key: k}}"
    text = f"routes: [{{name: r, match: {{path: /r}}, dialect: {dialect}, tiers: [{tier}]}}]"
    (tmp_path / "a.yaml").write_text(text)
    (fault,) = read_folder(tmp_path, {}).faults
    assert "nothing is translated from the route's dialect" in str(fault)


# --- who is told what ------------------------------------------------------------------------------------------------

TOLD = {
    b"host",
    b"content-type",
    b"content-length",
    b"accept-encoding",
    b"user-agent",
    b"x-request-id",
    b"traceparent",
    b"via",
}
OF_THE_SECOND = {
    "openai-chat": {b"authorization": b"Bearer second-secret"},
    "anthropic": {b"x-api-key": b"second-secret", b"anthropic-version": b"2023-06-01"},
    "ollama-chat": {},
}


@BY_PAIR
@STREAMED
def test_no_key_or_header_of_the_caller_goes_to_the_second_provider(
    caller: str, provider: str, stage: Stage, stream: bool
):
    stage.through(caller, provider).ask(HI, stream=stream)
    heard = stage.upstream.heard[-1]
    assert KEY.encode() not in heard.raw
    assert not any(value.encode() in heard.raw for value in HEADERS.values())
    told = {name.lower(): value for name, value in heard.headers}
    own = OF_THE_SECOND[provider]
    assert told.keys() <= TOLD | own.keys()
    assert {name: told[name] for name in own} == own
    assert heard.target.decode() == PROVIDERS[provider].path


@STREAMED
def test_a_second_provider_of_the_same_dialect_is_told_no_more(stage: Stage, stream: bool):
    client = CALLERS["openai"](f"{stage.sidecar.url}/chain")
    client.ask(HI, stream=stream, logit_bias={"1": 1}, extra_query={"key": KEY, "api-version": "1"})
    heard = stage.upstream.heard[-1]
    assert KEY.encode() not in heard.raw
    told = {name.lower(): value for name, value in heard.headers}
    assert told.keys() <= TOLD | {b"authorization"}
    assert told[b"authorization"] == b"third-secret"
    assert heard.target == b"/v1/chat/completions"
