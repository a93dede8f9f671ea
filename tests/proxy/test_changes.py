"""What is changed is noticed where it happens, told once, and never told of what is as it was."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.kit.acts import answer, sse
from tests.kit.fake_upstream import FakeUpstream
from understudy.policies.events import WHOLE, Event
from understudy.policies.service import Answer, Call, Request
from understudy.proxy.changes import ARM_S, LOOK_S, VALUES_MAX, Changes, Fact, Watched, fact_of
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.events import Events
from understudy.proxy.peeks import MODELS_MAX, Peek
from understudy.proxy.settings.settings import Match, Route, Settings, UpstreamTier
from understudy.proxy.spaces.fingerprints import Fingerprints
from understudy.proxy.spaces.provenance import Provenance
from understudy.proxy.tiers.upstream import make_pool, upstream_tier

LLM = "llm_service:127.0.0.1:1"
KEY = ("chat", "model", "model")


class Watching:
    """Changes with a clock of the test's own, and what they have told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.told: list[Event] = []
        events = Events()
        events.subscribe(self.told.append)
        self.changes = Changes(events, clock=lambda: self.now, wall=lambda: 1.8e9 + self.now)

    @property
    def details(self) -> list[str]:
        return [f"{event.component} {event.detail}" for event in self.told]


def settings(url: str = "http://127.0.0.1:1", digest: str = "d1") -> Settings:
    tier = UpstreamTier(name="model", url=url)
    route = Route(name="chat", match=Match(prefix="/"), dialect="openai-chat", tiers=[tier])
    return Settings(routes=(route,), digest=digest)


def looked_at(**collections: object) -> Watched:
    fingerprints = Fingerprints(Provenance().reembedding, dice=lambda: 0.5)
    return Watched({}, {}, collections, fingerprints)  # type: ignore[arg-type]


def test_the_first_policies_are_no_change_and_the_next_ones_are_told_with_what_moved():
    watching = Watching()
    watching.changes.adopt(settings())
    assert watching.told == []
    watching.changes.adopt(settings("http://127.0.0.1:2", "d2"))
    watching.changes.adopt(settings("http://127.0.0.1:2", "d2"))
    assert watching.details == [
        "sidecar: policies: d1 -> d2",
        "sidecar: endpoints chat/model: llm_service:127.0.0.1:1 -> llm_service:127.0.0.1:2",
    ]


def test_a_change_says_what_is_so_now_and_a_note_of_a_deploy_does_not():
    watching = Watching()
    watching.changes.saw(LLM, "server", "nginx/1.2")
    watching.changes.saw(LLM, "server", "nginx/1.3")
    (event,) = watching.told
    assert (event.family, event.kind, event.component, event.at) == ("change", "server", LLM, 1.8e9)
    assert fact_of(event) == Fact(LLM, "server", "nginx/1.3")
    assert fact_of(Event(0.0, "change", WHOLE, "deploy", "app 2")) is None
    watching.changes.saw(LLM, "model gpt", "gpt-1")
    watching.changes.saw(LLM, "model gpt", "gpt-2")
    assert fact_of(watching.told[1]) == Fact(LLM, "model gpt", "gpt-2")


def test_what_flutters_by_itself_is_news_only_when_it_has_not_been_seen_lately():
    watching = Watching()
    for value in ("fp_a", "fp_b", "fp_a", "fp_b", "fp_a", "fp_c"):
        watching.changes.saw(LLM, "system_fingerprint gpt", value)
    assert [event.facts["value"] for event in watching.told] == ["fp_b", "fp_c"]
    for n in range(VALUES_MAX):
        watching.changes.saw(LLM, "system_fingerprint gpt", f"fp_{n}")
    watching.changes.saw(LLM, "system_fingerprint gpt", "fp_a")
    assert watching.told[-1].facts["value"] == "fp_a"


def test_a_breaker_that_an_operator_forces_is_a_change_and_forcing_it_again_is_none():
    watching = Watching()
    watching.changes.adopt(settings())
    for mode in ("forced-open", "forced-open", "auto"):
        watching.changes.forced(KEY, mode)
    assert watching.details == [
        f"{LLM} forced chat/model: auto -> forced-open",
        f"{LLM} forced chat/model: forced-open -> auto",
    ]


def test_answers_are_peeked_at_every_half_minute_and_what_they_say_is_told():
    watching = Watching()
    peek = watching.changes.peek_of(KEY)
    watching.changes.adopt(settings())
    assert watching.changes.peek_of(KEY) is peek
    watching.changes.look(looked_at)
    assert peek.armed
    peek.armed = False
    watching.now += LOOK_S
    watching.changes.look(looked_at)
    assert not peek.armed
    for version in ("1", "2"):
        peek.seen["server"] = version
        watching.now += ARM_S
        watching.changes.look(looked_at)
    assert peek.armed
    assert watching.details == [f"{LLM} server: 1 -> 2"]
    assert Fact(LLM, "server", "2") in watching.changes.facts


def test_another_device_or_model_of_our_own_is_told():
    watching = Watching()
    watching.changes.adopt(settings())
    for provider in ("CUDAExecutionProvider", "CPUExecutionProvider"):
        watching.changes.look(lambda p=provider: looked_at(model="m", space="s", provider=p))
        watching.now += LOOK_S
    assert [event.detail for event in watching.told] == [
        "model: s on CUDAExecutionProvider -> s on CPUExecutionProvider"
    ]


# --- peeks ---------------------------------------------------------------------------------------------------------

ASKED = json.dumps({"model": "gpt-x", "messages": [{"role": "user", "content": '"model": "evil"'}]}).encode()
TOLD = json.dumps(
    {
        "id": "1",
        "choices": [{"message": {"content": 'say "model": "fake", "system_fingerprint": "fake"'}}],
        "model": "gpt-x-2031-01-01",
        "system_fingerprint": "fp_44",
    }
).encode()


def looked(answered: Answer, body: bytes = ASKED) -> dict[str, str]:
    peek = Peek()
    peek.armed = True
    peek.look(Call("generate", Request(b"POST", b"/v1/chat/completions", [], body)), answered)
    return peek.seen


def test_a_peek_takes_names_and_nothing_that_anybody_wrote():
    headers = [(b"Server", b"nginx/1.2"), (b"set-cookie", b"secret=1"), (b"openai-version", b"2020-10-01")]
    assert looked(Answer(200, headers, TOLD)) == {
        "server": "nginx/1.2",
        "openai-version": "2020-10-01",
        "model gpt-x": "gpt-x-2031-01-01",
        "system_fingerprint gpt-x": "fp_44",
    }


@pytest.mark.parametrize("packed", [True, False])
def test_what_is_packed_or_no_name_is_left_alone(packed: bool):
    answered = Answer(
        200, [(b"server", b"caf\xc3\xa9")], TOLD if packed else b'{"model": "a name with spaces"}', packed=packed
    )
    assert looked(answered) == {}


def test_an_error_page_says_nothing_of_the_service_and_the_peek_stays_armed():
    peek = Peek()
    peek.armed = True
    peek.look(Call("generate", Request(b"POST", b"/", [])), Answer(502, [(b"server", b"cdn")], b""))
    assert (peek.armed, peek.seen) == (True, {})


def test_callers_who_ask_for_any_number_of_models_fill_no_memory():
    peek = Peek()
    for n in range(100):
        asked = json.dumps({"model": f"m{n}"}).encode()
        peek.look(Call("generate", Request(b"POST", b"/", [], asked)), Answer(200, [], TOLD))
    assert len(peek.seen) == 2 * MODELS_MAX


def test_the_names_are_found_at_either_end_of_a_long_answer():
    vectors = b'{"object": "list", "data": [' + b"0.1, " * 50_000 + b'0.1], "model": "embed-3", "usage": {}}'
    assert looked(Answer(200, [], vectors), b'{"model": "embed"}') == {"model embed": "embed-3"}


@pytest.mark.parametrize("streams", [False, True])
async def test_an_upstream_is_peeked_at_once_and_then_left_alone(streams: bool):
    event = {"model": "gpt-x-2", "system_fingerprint": "fp_7", "choices": [{"delta": {"content": "a"}}]}
    act = sse([event]) if streams else answer(200, body=TOLD)
    async with FakeUpstream(act) as up:
        loop = asyncio.get_running_loop()
        tier = UpstreamTier(name="model", url=up.url)
        pool, peek = make_pool(tier, loop, loop.time), Peek()
        service = upstream_tier(tier, DIALECTS["openai-chat"], pool, loop.time, peek=peek)
        peek.armed = True
        for _ in range(2):
            call = Call("generate", Request(b"POST", b"/v1/chat/completions", [], ASKED))
            call.wants_stream = streams
            call.until = call.deadline = loop.time() + 10
            answered = await service(call)
            if answered.stream is not None:
                answered.stream.close()
        pool.close()
    assert not peek.armed
    assert peek.seen["model gpt-x"] == ("gpt-x-2" if streams else "gpt-x-2031-01-01")
    assert peek.seen["system_fingerprint gpt-x"] == ("fp_7" if streams else "fp_44")
