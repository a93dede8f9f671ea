"""Three legs of one question through whole routes: what a fallback answered is said on those that are built on it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.kit.two_spaces import FAR, TwoSpaces, texts
from understudy.policies.questions import Questions
from understudy.policies.service import Answer, Call, Service
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.parts import RouteParts
from understudy.proxy.settings.settings import Match, Route, Tier, UpstreamTier
from understudy.proxy.settings.settings import Questions as Rules
from understudy.proxy.stack import assemble

DOCUMENTS = [f"{text}. And then {text} once more." for text in texts(50)]
QUESTION = " ".join(DOCUMENTS[7].split()[:9])
TRACES = [f"00-{n:032x}-00f067aa0ba902b7-01".encode() for n in range(1, 9)]


class Application:
    """A RAG application whose collection has vectors of the primary's space, so that handles are searched by words."""

    def __init__(self, folder: Path, **rules: Any) -> None:
        self.questions = Questions(Rules(**rules))
        self.two = TwoSpaces(folder, DOCUMENTS, collection_space=FAR, questions=self.questions)
        self.two.provenance.learn(FAR, "m", 96)
        self.until: list[float] = []
        tiers: list[Tier] = [UpstreamTier(name="model", url="http://a")]
        route = Route(name="chat", match=Match(prefix="/"), dialect="openai-chat", tiers=tiers)
        self.chat: RouteParts = assemble(route, DIALECTS["openai-chat"], self.two.world, self._tier)

    def _tier(self, _route: Route, _tier: Tier, _name: str) -> Service:
        async def answering(call: Call) -> Answer:
            self.until.append(call.deadline)
            return Answer(200, [], b'{"choices": []}')

        return answering

    async def ask(self, trace: bytes | None = None) -> list[str]:
        """What the answers to the three legs say that they are built on."""
        headers = [(b"traceparent", trace)] if trace else []
        body: dict[str, Any] = {"model": "m", "input": [QUESTION]}
        embedded = await self.two.ask(self.two.embed_parts, "POST", "/v1/embeddings", body, headers)
        vector = json.loads(embedded.body)["data"][0]["embedding"]
        return [said(embedded), *await self.ask_on(vector, headers)]

    async def ask_on(self, vector: list[float], headers: Any) -> list[str]:
        body: dict[str, Any] = {"query": vector, "limit": 3, "with_payload": True}
        found = await self.two.ask(self.two.retrieve_parts, "POST", "/collections/docs/points/query", body, headers)
        points = json.loads(found.body)["result"]["points"]
        passages = [point.get("payload", {}).get("text", DOCUMENTS[point["id"]]) for point in points]
        content = "\n\n".join([*passages, "What is it about?"])
        body = {"model": "m", "messages": [{"role": "user", "content": content}]}
        generated = await self.two.ask(self.chat, "POST", "/v1/chat/completions", body, headers)
        return [said(found), said(generated)]


def said(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return dict(answer.headers).get(b"x-understudy-built-on", b"").decode()


EMBED = 'embed;tier=secondary;source="local-embed"'
WORDS = 'retrieve;tier=secondary;source="local-index";how=keywords'
VECTORS = 'retrieve;tier=secondary;source="local-index"'


async def test_while_all_is_well_nothing_is_said_and_nothing_remembered(tmp_path: Path):
    application = Application(tmp_path)
    assert await application.ask(TRACES[0]) == ["", "", ""]
    assert (len(application.questions), application.questions.armed) == (0, False)
    await application.two.close()


async def test_an_answer_built_on_a_search_by_words_says_so_with_a_trace_and_without(tmp_path: Path):
    application = Application(tmp_path)
    application.two.embedder_up = application.two.database_up = False
    assert await application.ask(TRACES[0]) == ["", EMBED, f"{EMBED}, {WORDS}"]
    assert application.questions.linked == {"trace": 2, "vector": 0, "text": 0}
    # without one the vector leads from the embedding to the search, and the passages from there to the prompt
    assert await application.ask() == ["", EMBED, f"{EMBED}, {WORDS}"]
    assert application.questions.linked["vector"] == 1
    assert application.questions.linked["text"] == 1
    assert application.chat.story is not None
    assert application.chat.story.built_on == 2
    await application.two.close()


async def test_a_search_by_vectors_that_a_fallback_answered_is_no_search_by_words(tmp_path: Path):
    application = Application(tmp_path)
    vector = await application.two.vector(QUESTION)
    application.two.provenance.drain(1.0)
    application.two.database_up = False
    assert await application.ask_on(vector, []) == ["", VECTORS]
    await application.two.close()


async def test_calls_of_another_trace_are_another_question_though_they_bring_the_same_passages(tmp_path: Path):
    application = Application(tmp_path)
    application.two.embedder_up = application.two.database_up = False
    await application.ask(TRACES[0])
    application.two.embedder_up = application.two.database_up = True
    assert (await application.ask(TRACES[1]))[2] == ""
    await application.two.close()


async def test_what_was_remembered_is_forgotten_a_minute_after_the_outage(tmp_path: Path):
    application = Application(tmp_path)
    application.two.embedder_up = application.two.database_up = False
    await application.ask(TRACES[0])
    await asyncio.sleep(61)
    application.questions.sweep(asyncio.get_running_loop().time())
    assert not application.questions.armed
    assert application.questions.recent(8) == []
    await application.two.close()


async def test_the_legs_of_a_question_share_its_deadline(tmp_path: Path):
    application = Application(tmp_path, deadline_s=10)
    began = asyncio.get_running_loop().time()
    headers = [(b"traceparent", TRACES[0])]
    await application.two.ask(
        application.two.embed_parts, "POST", "/v1/embeddings", {"model": "m", "input": ["x"]}, headers
    )
    await asyncio.sleep(4)
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
    await application.two.ask(application.chat, "POST", "/v1/chat/completions", body, headers)
    await application.two.ask(application.chat, "POST", "/v1/chat/completions", body)
    assert application.until == [began + 10, began + 4 + application.chat.route.deadline.total_s]
    await application.two.close()
