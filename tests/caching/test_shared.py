"""Answers that calls share while they are under way: never one from before a write, never one to another body."""

from __future__ import annotations

import asyncio
import json

from tests.caching.desk import Desk, answer, embedder
from understudy.policies.service import Answer, Call, Failed

SEARCH = {"query": [0.1, 0.2], "limit": 3}


async def test_who_searches_after_a_write_does_not_wait_for_an_answer_from_before_it():
    held, takes_s = 0, [5.0, 0.1]

    async def base(call: Call) -> Answer:
        nonlocal held
        if call.kind == "pass":
            held += 1
            return answer({"result": {}, "status": "ok"})
        saw = held
        await asyncio.sleep(takes_s.pop(0) if takes_s else 0.1)
        return answer({"result": saw, "status": "ok"})

    desk = Desk("qdrant", base, ttl_s=300)
    early = asyncio.ensure_future(desk.ask(SEARCH))
    await asyncio.sleep(1)
    await desk.ask({"points": []}, target=b"/collections/books/points", method=b"PUT")
    # longer than the database may take to show it, while the first search still hangs
    await asyncio.sleep(2)
    late = asyncio.ensure_future(desk.ask(SEARCH))
    assert [json.loads(each.body)["result"] for each in await asyncio.gather(early, late)] == [0, 1]
    # nor is what was read before the write remembered for the time after it
    assert json.loads((await desk.ask(SEARCH)).body)["result"] == 1
    await desk.close()


async def test_a_batch_that_can_be_told_from_what_is_kept_is_answered_when_asking_for_the_whole_fails_too():
    asked: list[list[str]] = []
    right = embedder(asked)

    async def breaking(call: Call) -> Answer:
        inputs = json.loads(call.request.body)["input"]
        if inputs == ["a"] and len(asked) == 2:
            return answer({"data": [], "model": "m"})
        if len(asked) >= 2:
            raise Failed("reset")
        return await right(call)

    desk = Desk("openai-embeddings", breaking, ttl_s=10, revalidate_s=0)
    await desk.ask({"model": "m", "input": "a"})
    await asyncio.sleep(8)
    await desk.ask({"model": "m", "input": "b"})
    await asyncio.sleep(5)
    got = await desk.ask({"model": "m", "input": ["a", "b"]})
    assert (got.status, len(json.loads(got.body)["data"])) == (200, 2)
    assert "stale" in got.reason
    await desk.close()


async def test_who_asks_for_a_whole_batch_again_is_not_told_anothers_part_of_it():
    asked: list[list[str]] = []
    right, refusals = embedder(asked), [403]

    async def refusing_once(call: Call) -> Answer:
        if json.loads(call.request.body)["input"] != "b":
            await asyncio.sleep(1)
            if refusals:
                return answer({"error": {"message": "no", "code": "forbidden"}}, status=refusals.pop())
        return await right(call)

    desk = Desk("openai-embeddings", refusing_once)
    await desk.ask({"model": "m", "input": "b"})
    got = await asyncio.gather(*(desk.ask({"model": "m", "input": ["a", "b"]}) for _ in range(2)))
    assert [(each.status, len(json.loads(each.body)["data"])) for each in got] == [(200, 2), (200, 2)]
    await desk.close()
