"""What goes wrong when the last words' layer and its neighbours are swapped; `test_order` asks for the pairs."""

from __future__ import annotations

import asyncio
import json

from tests.proxy.orders import in_both_orders, now, sharing, shows
from understudy.policies.last_words import Foreseen, Prepared
from understudy.policies.service import Answer, Call, Failed, Request, Service
from understudy.proxy.caching.last_words import LastWords
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.settings import settings


def asking(question: str, id: str = "c") -> Call:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": question}]}).encode()
    found = DIALECTS["openai-chat"].read(Request(b"POST", b"/v1/chat/completions", [], body))
    found.id, found.born, found.deadline, found.until = id, now(), now() + 30, now() + 30
    return found


@shows("likeness", "last_words")
async def test_last_words_outside_likeness_would_have_what_is_remembered_go_before_what_was_written_beforehand():
    words = LastWords(
        settings.LastWords(answers=["a"]),
        Foreseen([Prepared(("Why?",), "So.")]),
        DIALECTS["openai-chat"],
        clock=now,
    )

    class Remembering:
        """A likeness that remembers an answer to everything, and gives it where nobody answers."""

        def around(self, service: Service) -> Service:
            async def remembering(call: Call) -> Answer:
                try:
                    return await service(call)
                except Failed:
                    return Answer(200, [], b"remembered", source="semantic-cache")

            return remembering

    async def down(_call: Call) -> Answer:
        raise Failed("reset")

    sources: list[str] = []
    for swapped in (False, True):
        service = in_both_orders(Remembering().around, words.around, down)[swapped]
        sources.append((await service(asking("Why?"))).source)
    assert sources == ["pre-computed", "semantic-cache"]


@shows("last_words", "coalesce")
async def test_coalesce_outside_last_words_would_have_a_caller_wait_for_anothers_prepared_answer():
    words = LastWords(
        settings.LastWords(answers=["a"]),
        Foreseen([Prepared(("Why?",), "So.")]),
        DIALECTS["openai-chat"],
        clock=now,
    )

    async def down(_call: Call) -> Answer:
        await asyncio.sleep(1)
        raise Failed("reset")

    ids: list[int] = []
    for swapped in (False, True):
        service = in_both_orders(words.around, sharing(), down)[swapped]
        calls = [asking("Why?", id=f"c{number}") for number in range(3)]
        for each in calls:
            each.key = b"the same"
        answers = await asyncio.gather(*(service(each) for each in calls))
        # what one caller's own answer is called, the others' would be called as well
        ids.append(len({json.loads(answer.body)["id"] for answer in answers}))
    assert ids == [3, 1]
