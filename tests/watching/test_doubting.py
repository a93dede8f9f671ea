"""T48: a database that answers 200 and finds nothing, or little, is asked after at its copy; and what is so is so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest

from tests.watching.test_watching import JSON, Points, search_call, stack
from understudy.policies.drift import Stand, doubt, is_short
from understudy.policies.service import Answer, Call, Refused, Request, Service
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.stack import RouteParts
from understudy.proxy.watching.doubting import BODY_BYTES_MAX

EVERY = range(1000)


class Counted(Points):
    """How often it was asked."""

    def __init__(self, ids: Iterable[int]) -> None:
        super().__init__(ids)
        self.asked = 0

    async def __call__(self, call: Call) -> Answer:
        self.asked += 1
        answer = await super().__call__(call)
        answer.source = ""
        return answer


def desk(live: Iterable[int], copy: Iterable[int], doubt: str = "answer") -> tuple[RouteParts, Counted, Counted]:
    primary, local = Counted(live), Counted(copy)
    return stack(primary, local, share=0.0, doubt=doubt), primary, local


def found(answer: Answer) -> list[int]:
    return [point["id"] for point in json.loads(answer.body)["result"]["points"]]


def checks(parts: RouteParts) -> dict[tuple[str, str], int]:
    assert parts.watch is not None
    return parts.watch.checks


async def test_an_empty_answer_of_a_database_that_lost_its_points_is_replaced_by_the_copys_and_says_why():
    parts, primary, local = desk([], EVERY)
    answer = await parts.service(search_call(500.0))
    assert sorted(found(answer)) == list(range(495, 505))
    assert (answer.tier, answer.reason) == ("secondary", "db: retrieval_empty")
    assert (primary.asked, local.asked) == (1, 1)
    assert checks(parts) == {("doubts", "wrong"): 1}
    assert parts.watch is not None
    assert parts.watch.silent == {"retrieval_empty": 1}
    await parts.service(search_call(7.0))
    assert parts.watch.verdict.word == "unhealthy", "two of three were wrong"


async def test_few_points_are_doubted_where_the_copy_finds_twice_as_many():
    parts, _, _ = desk(range(4), EVERY)
    answer = await parts.service(search_call(2.0))
    assert (len(found(answer)), answer.reason) == (10, "db: retrieval_short")
    parts, _, local = desk(range(5), EVERY)
    answer = await parts.service(search_call(2.0))
    assert (len(found(answer)), answer.tier, local.asked) == (5, "primary", 0), "half of them is not little"


async def test_what_the_copy_does_not_find_either_is_so_and_the_primarys_answer_is_given():
    parts, _, local = desk([], [])
    answer = await parts.service(search_call(5.0))
    assert (found(answer), answer.tier, local.asked) == ([], "primary", 1)
    assert checks(parts) == {("doubts", "well"): 1}
    assert parts.watch is not None
    assert parts.watch.verdict.word == "unknown", "that nothing was to be found says nothing of what else is wrong"


async def test_with_report_the_caller_is_answered_first_and_the_copy_asked_afterwards():
    parts, _, local = desk([], EVERY, doubt="report")
    answer = await parts.service(search_call(5.0))
    assert (found(answer), answer.tier, local.asked) == ([], "primary", 0)
    await asyncio.sleep(0.1)
    assert local.asked == 1
    assert checks(parts) == {("doubts", "wrong"): 1}
    parts.close()


async def test_many_doubts_at_once_are_bounded():
    parts, _, local = desk([], EVERY, doubt="report")
    for _ in range(100):
        await parts.service(search_call(5.0))
    await asyncio.sleep(0.1)
    assert 1 <= local.asked <= 9
    parts.close()


async def test_switched_off_nothing_is_doubted():
    parts, _, local = desk([], EVERY, doubt="off")
    assert found(await parts.service(search_call(5.0))) == []
    await asyncio.sleep(0.1)
    assert local.asked == 0


@pytest.mark.parametrize("stand", [Stand(is_behind=True), Stand(changed_at=float("inf"))], ids=["behind", "moving"])
async def test_a_copy_that_is_behind_or_was_just_written_to_accuses_nobody(stand: Stand):
    parts, _, _ = desk([], EVERY)
    assert parts.watch is not None
    parts.watch.stand = lambda collection: stand  # pyright: ignore[reportAttributeAccessIssue]
    answer = await parts.service(search_call(5.0))
    assert (found(answer), answer.tier) == ([], "primary")
    assert checks(parts) == {("doubts", "moving"): 1}


async def test_a_copy_that_cant_answer_leaves_the_caller_what_there_is():
    async def refusing(_call: Call) -> Answer:
        raise Refused("no_collection")

    parts = stack(Counted([]), refusing, share=0.0, doubt="answer")
    answer = await parts.service(search_call(5.0))
    assert (found(answer), answer.tier) == ([], "primary")
    assert checks(parts) == {("doubts", "unanswered"): 1}


def call_of(path: str, body: Any) -> Call:
    call = DIALECTS["qdrant"].read(Request(b"POST", path.encode(), JSON, json.dumps(body).encode()))
    call.born = asyncio.get_running_loop().time()
    return call


async def said(parts: RouteParts, local: Counted, call: Call) -> tuple[str, int]:
    answer = await parts.service(call)
    return answer.tier, local.asked


async def test_pages_behind_the_last_one_counts_and_long_answers_are_not_looked_at():
    parts, _, local = desk([], EVERY)
    page = {"query": [5.0], "limit": 10, "offset": 10}
    assert await said(parts, local, call_of("/collections/docs/points/query", page)) == ("primary", 0)

    def answering(body: bytes) -> Service:
        async def answering(_call: Call) -> Answer:
            return Answer(200, JSON, body)

        return answering

    counted = stack(answering(b'{"result": {"count": 0}, "status": "ok", "time": 0}'), local, share=0.0, doubt="answer")
    assert await said(counted, local, call_of("/collections/docs/points/count", {})) == ("primary", 0)
    padded = b'{"result": {"points": []}, "status": "ok", "x": "%b", "time": 0}' % (b"x" * BODY_BYTES_MAX)
    long = stack(answering(padded), local, share=0.0, doubt="answer")
    assert await said(long, local, search_call(5.0)) == ("primary", 0)
    broken = stack(answering(b'{"result": [[], []'), local, share=0.0, doubt="answer")
    assert await said(broken, local, search_call(5.0)) == ("primary", 0)


def test_half_of_what_was_asked_for_is_not_short_and_less_is():
    assert [is_short(found, 10) for found in (0, 4, 5, 10)] == [True, True, False, False]
    assert not is_short(0, 0), "nothing was asked for"
    assert doubt([], ["1"]) == "retrieval_empty"
    assert doubt(["1"], ["1", "2", "3"]) == "retrieval_short"
    assert doubt(["1"], ["1", "2"]) is None
    assert doubt([], []) is None
