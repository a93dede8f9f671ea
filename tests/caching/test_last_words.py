"""The last words in the stack: in their order, each saying what it is, and never to who asked for tools or JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from tests.caching.desk import shared_caches
from tests.caching.test_likeness import embed as bag_of_words
from understudy.policies.last_words import Foreseen, Prepared
from understudy.policies.service import Answer, Call, Failed, HeldStream, Refused, Request, Service
from understudy.proxy.caching.last_words import LastWords
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.base import json_answer
from understudy.proxy.settings import settings
from understudy.proxy.settings.settings import LocalTier, Match, Route, Tier, UpstreamTier
from understudy.proxy.stack import RouteParts, World, assemble

FORESEEN = Foreseen(
    [Prepared(("How do I reset my password?",), "Follow the link."), Prepared(("When are you open?",), "From 8 to 18.")]
)
MESSAGE = "Call 555-0100."


def said(text: str) -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json_answer(200, {"model": "m", "created": 1, "choices": [choice], "usage": {"prompt_tokens": 3}})


class Stage:
    """A chat route: an upstream that is down unless told, a local tier that quotes or refuses, and last words."""

    def __init__(
        self,
        *,
        local: bool = True,
        message: str = MESSAGE,
        embed: Callable[[list[str], float], Awaitable[np.ndarray]] | None = bag_of_words,
        before: Stage | None = None,
        foreseen: Foreseen | None = FORESEEN,
        **policies: Any,
    ) -> None:
        self.up: Answer | None = None
        self.quotes = True
        self.asked: list[str] = []
        tiers: list[Tier] = [UpstreamTier(name="openai", url="http://a")]
        tiers += [LocalTier()] if local else []
        rules = settings.LastWords(answers=["answers.yaml"], message=message, cosine_min=0.8)
        fields: dict[str, Any] = {"name": "chat", "match": Match(prefix="/"), "dialect": "openai-chat", "tiers": tiers}
        fields |= {"retry": settings.Retry(attempts=1), "breaker": settings.Breaker(enabled=False), "last_words": rules}
        clock = asyncio.get_running_loop().time
        self.caches = shared_caches()
        self.parts: RouteParts = assemble(
            Route(**{**fields, **policies}),
            DIALECTS["openai-chat"],
            World(clock, asyncio.sleep, lambda: 0.0, embed=embed),
            lambda _route, tier, _endpoint: self._local if isinstance(tier, LocalTier) else self._upstream,
            caches=self.caches,
            foreseen=foreseen,
            before=before.parts if before else None,
        )

    @property
    def words(self) -> LastWords:
        assert self.parts.last_words is not None
        return self.parts.last_words

    async def _upstream(self, _call: Call) -> Answer:
        self.asked.append("openai")
        if self.up is None:
            raise Failed("reset")
        return self.up

    async def _local(self, _call: Call) -> Answer:
        self.asked.append("local")
        if not self.quotes:
            raise Refused("structured", "tools were asked for")
        answer = said("quoted")
        answer.source = "extractive"
        return answer

    async def ask(self, question: str, **body: Any) -> tuple[Answer, str]:
        """The answer, and its text."""
        sent = {"model": "m", "messages": [{"role": "user", "content": question}]} | body
        head = [(b"content-type", b"application/json")]
        call = DIALECTS["openai-chat"].read(Request(b"POST", b"/v1/chat/completions", head, json.dumps(sent).encode()))
        call.route, call.id = "chat", "c"
        call.born = asyncio.get_running_loop().time()
        call.deadline = call.until = call.born + 30.0
        answer = await self.parts.service(call)
        text = "" if answer.stream is not None else json.loads(answer.body)["choices"][0]["message"]["content"]
        return answer, text


async def test_while_an_upstream_answers_nobody_else_is_asked() -> None:
    stage = Stage()
    stage.up = said("hello")
    answer, text = await stage.ask("How do I reset my password?")
    assert (answer.tier, text) == ("primary", "hello")
    assert stage.words.counts == {}


async def test_a_prepared_answer_goes_before_quotations_and_says_what_it_is() -> None:
    stage = Stage()
    answer, text = await stage.ask("how do I reset my password?")
    assert answer.source == "pre-computed"
    assert answer.reason.startswith("openai: reset")
    assert "for the question “How do I reset my password?”:\n\nFollow the link." in text
    assert stage.asked == ["openai"]
    assert stage.words.counts == {"pre-computed exact": 1}


@pytest.mark.parametrize("local", [True, False])
async def test_what_is_asked_in_other_words_is_found_by_vectors_once_they_are_there(local: bool) -> None:
    stage = Stage(local=local, message="")
    asked = "How can I reset my password?"
    before = stage.ask(asked)
    if local:
        assert (await before)[0].source == "extractive"
    else:
        with pytest.raises(Failed):
            await before
    await stage.words.warm_up()
    assert stage.words.embedded == 2
    answer, text = await stage.ask(asked)
    assert answer.source == "pre-computed"
    assert "Follow the link." in text
    assert stage.words.counts == {"pre-computed alike": 1}


async def test_who_has_no_foreseen_question_gets_a_quotation_and_without_a_local_tier_the_message() -> None:
    stage = Stage()
    assert (await stage.ask("Why is the sky blue?"))[0].source == "extractive"
    alone = Stage(local=False)
    answer, text = await alone.ask("Why is the sky blue?")
    assert (answer.status, answer.tier, answer.source) == (200, "message", "message")
    assert answer.reason == "openai: reset"
    assert text == f"This is a fallback answer: the answering model is unavailable. {MESSAGE}"


async def test_without_a_message_an_error_stays_one() -> None:
    with pytest.raises(Failed):
        await Stage(local=False, message="").ask("Why is the sky blue?")


@pytest.mark.parametrize(
    "body",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}},
    ],
)
@pytest.mark.parametrize("local", [True, False])
async def test_who_asked_for_tools_or_json_gets_an_honest_error(body: dict[str, Any], local: bool) -> None:
    stage = Stage(local=local)
    stage.quotes = False
    with pytest.raises((Refused, Failed)):
        await stage.ask("How do I reset my password?", **body)
    assert set(stage.words.counts) == {"none structured"}


async def test_an_upstreams_passing_error_is_spoken_over_and_one_about_the_request_is_not() -> None:
    stage = Stage(local=False)
    stage.up = json_answer(503, {"error": {"message": "overloaded"}})
    assert (await stage.ask("How do I reset my password?"))[0].source == "pre-computed"
    assert (await stage.ask("Why?"))[0].source == "message"
    stage.up = json_answer(401, {"error": {"message": "no"}, "choices": [{"message": {"content": "no"}}]})
    answer, _ = await stage.ask("How do I reset my password?")
    assert (answer.status, answer.tier) == (401, "primary")


async def test_an_error_that_streams_is_let_go_of() -> None:
    stage = Stage(local=False)
    stream = HeldStream([b"busy"])
    stage.up = Answer(503, [], stream=stream)
    closed: list[object] = []
    stream.watch(closed.append)
    assert (await stage.ask("Why?"))[0].source == "message"
    assert len(closed) == 1


async def test_the_very_answer_that_is_kept_goes_before_a_message_and_after_a_prepared_one() -> None:
    stage = Stage(local=False, cache=settings.Cache(enabled=True, ttl_s=10.0, revalidate_s=0.0))
    stage.up = said("kept")
    for question in ("Why is the sky blue?", "How do I reset my password?"):
        await stage.ask(question, temperature=0)
    await asyncio.sleep(60)
    stage.up = None
    answer, text = await stage.ask("Why is the sky blue?", temperature=0)
    assert (answer.source, text) == ("cache", "kept")
    assert (await stage.ask("How do I reset my password?", temperature=0))[0].source == "pre-computed"
    assert (await stage.ask("What else?", temperature=0))[0].source == "message"


async def test_a_stale_answer_goes_before_quotations_and_after_a_prepared_one() -> None:
    stage = Stage(cache=settings.Cache(enabled=True, ttl_s=10.0, revalidate_s=0.0))
    stage.up = said("kept")
    for question in ("Why is the sky blue?", "How do I reset my password?"):
        await stage.ask(question, temperature=0)
    await asyncio.sleep(60)
    stage.up = None
    assert (await stage.ask("Why is the sky blue?", temperature=0))[0].source == "cache"
    assert (await stage.ask("How do I reset my password?", temperature=0))[0].source == "pre-computed"
    assert (await stage.ask("What else?", temperature=0))[0].source == "extractive"


async def test_a_stream_that_was_asked_for_is_streamed() -> None:
    answer, _ = await Stage(local=False).ask("How do I reset my password?", stream=True)
    assert answer.stream is not None
    assert answer.source == "pre-computed"


async def test_a_prompt_with_context_is_looked_up_by_its_question_however_long_it_is() -> None:
    stage = Stage()
    context = "Context:\n" + "The sky is blue because of Rayleigh scattering. " * 1000
    answer, _ = await stage.ask(f"{context}\n\nQuestion: How do I reset my password?")
    assert answer.source == "pre-computed"


async def test_a_model_that_is_slow_or_breaks_costs_the_hit_and_never_the_answer() -> None:
    async def broken(texts: list[str], until: float) -> np.ndarray:
        raise RuntimeError("no")

    stage = Stage()
    await stage.words.warm_up()
    stage.words._embed = broken
    assert (await stage.ask("How can I reset my password?"))[0].source == "extractive"
    none = Stage(embed=broken)
    await none.words.warm_up()
    assert none.words.embedded == 0
    assert (await none.ask("how do I reset my password"))[0].source == "pre-computed"


async def test_a_reload_keeps_vectors_and_counts_and_forgets_what_is_no_longer_foreseen() -> None:
    stage = Stage()
    await stage.words.warm_up()
    await stage.ask("How do I reset my password?")
    embedded: list[str] = []

    async def watched(texts: list[str], until: float) -> np.ndarray:
        embedded.extend(texts)
        return await bag_of_words(texts, until)

    foreseen = Foreseen([FORESEEN.entries[0], Prepared(("Where is the office?",), "In Bern.")])
    after = Stage(before=stage, foreseen=foreseen, embed=watched)
    await after.words.warm_up()
    assert embedded == ["Where is the office?"]
    assert after.words.embedded == 2
    assert after.words.counts == {"pre-computed exact": 1}
    assert (await after.ask("When are you open?"))[0].source == "extractive"
    assert (await after.ask("Where is the office?"))[0].source == "pre-computed"


async def test_a_route_that_asks_for_none_has_none_and_other_kinds_of_calls_have_none() -> None:
    stage = Stage(last_words=settings.LastWords())
    assert stage.parts.last_words is None
    route = Route(
        name="r",
        match=Match(prefix="/"),
        dialect="qdrant",
        tiers=[UpstreamTier(name="a", url="http://a", space="s")],
        last_words=settings.LastWords(message="…"),
    )
    clock = asyncio.get_running_loop().time

    async def nobody(_call: Call) -> Answer:
        raise Refused("x")

    made: Service = nobody
    parts = assemble(route, DIALECTS["qdrant"], World(clock, asyncio.sleep), lambda *_: made)
    assert parts.last_words is None
