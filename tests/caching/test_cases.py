"""The cases T34 to T42 that are a cache's, each under its own number."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import subprocess
import sys
from typing import Any

import pytest

from tests.caching.desk import Desk, answer, as_json, embedder, vector_of
from understudy.policies.service import Answer, Call, Failed, Hop, Request
from understudy.proxy.caching.keys import canonical, digest, fields_of, front_of, scope_of
from understudy.proxy.settings import settings
from understudy.proxy.settings.settings import Match, Route, UpstreamTier

BODY: dict[str, Any] = {
    "model": "m",
    "temperature": 0,
    "messages": [{"role": "user", "content": "héllo"}, {"content": "x", "role": "system"}],
    "seed": 7,
    "response_format": {"type": "json_schema", "json_schema": {"b": 1, "a": [1, {"z": 0, "y": 1}]}},
}


def shuffled(value: Any, dice: random.Random) -> Any:
    """The same JSON with the keys of every object in another order."""
    if isinstance(value, dict):
        names = list(value)
        dice.shuffle(names)
        return {name: shuffled(value[name], dice) for name in names}
    return [shuffled(each, dice) for each in value] if isinstance(value, list) else value


def key_of(body: bytes) -> str:
    route = Route(
        name="r", match=Match(prefix="/"), dialect="openai-chat", tiers=[UpstreamTier(name="t", url="http://a")]
    )
    front = front_of(Request(b"POST", b"/v1/x", [(b"authorization", b"k")], body), scope_of(route, "openai-chat", ""))
    fields = fields_of(body, strict=True)
    assert fields is not None
    return digest(front.prefix, canonical(fields, frozenset({"user"}))).hex()


# --- T34 -----------------------------------------------------------------------------------------------------------


def test_T34_identical_and_key_permuted_bodies_have_one_key_over_ten_thousand_runs():
    dice = random.Random(34)
    expected = key_of(as_json(BODY))
    spellings = [
        lambda value: json.dumps(value).encode(),
        lambda value: json.dumps(value, indent=2).encode(),
        lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(),
    ]
    for n in range(10_000):
        body = shuffled({**BODY, "user": f"u{n}"}, dice)
        assert key_of(spellings[n % 3](body)) == expected
    for changed in ({"seed": 8}, {"temperature": 0.0}, {"messages": BODY["messages"][::-1]}, {"new": None}):
        assert key_of(as_json({**BODY, **changed})) != expected


def test_T34_keys_are_the_same_after_a_restart():
    """Another process, with another seed for its hashes, finds the same key."""
    program = "from tests.caching.test_cases import BODY, as_json, key_of; print(key_of(as_json(BODY)))"
    told = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env).stdout
        for env in ({"PYTHONHASHSEED": "1", "PATH": ""}, {"PYTHONHASHSEED": "2", "PATH": ""})
    }
    assert told == {key_of(as_json(BODY)) + "\n"}


# --- T35 -----------------------------------------------------------------------------------------------------------


async def test_T35_tenants_never_see_each_others_answers():
    asked: list[list[Any]] = []
    desk = Desk("openai-embeddings", embedder(asked), tenant_headers=["X-Team"])
    callers = [
        [],
        [(b"authorization", b"Bearer a")],
        [(b"Authorization", b"Bearer b")],
        [(b"api-key", b"Bearer a")],
        [(b"x-api-key", b"Bearer a")],
        [(b"authorization", b"Bearer a"), (b"x-team", b"1")],
        [(b"authorization", b"Bearer a"), (b"x-team", b"2")],
        [(b"authorization", b"Bearer a"), (b"openai-organization", b"o")],
    ]
    for headers in callers:
        assert (await desk.ask({"model": "m", "input": "x"}, headers)).source == "first"
    for headers in callers:
        assert (await desk.ask({"model": "m", "input": "x"}, headers)).source == "cache"
    assert len(asked) == len(callers)
    await desk.close()


async def test_T35_two_certificates_behind_one_and_the_same_head_are_two_tenants():
    asked: list[list[Any]] = []
    desk = Desk("openai-embeddings", embedder(asked))
    # the door remembers heads by their bytes, for all connections together
    remembered: dict[object, object] = {}
    sources: list[str] = []
    for subject in (b"CN=a", b"CN=b", b"", b"CN=a", b"CN=b", b""):
        request = desk.request({"model": "m", "input": "x"})
        request.remembered = remembered
        request.hop = Hop(b"127.0.0.1", b"https", subject)
        sources.append((await desk.ask_with(request)).source)
    assert (sources, len(asked)) == (["first"] * 3 + ["cache"] * 3, 3)
    await desk.close()


async def test_T35_the_collection_and_the_filter_are_in_the_key():
    async def searching(call: Call) -> Answer:
        return answer({"result": [call.request.path.decode(), call.request.body.decode()], "status": "ok", "time": 0.1})

    desk = Desk("qdrant", searching)
    targets = [b"/collections/a/points/query", b"/collections/b/points/query", b"/collections/a/points/query?x=1"]
    filters: list[Any] = [
        None,
        {"must": [{"key": "k", "match": {"value": 1}}]},
        {"must": [{"key": "k", "match": {"value": 2}}]},
    ]
    bodies = [{"query": [0.1, 0.2], "limit": limit, "filter": each} for limit in (1, 2) for each in filters]
    first = {
        (target, n): (await desk.ask(body, target=target)).body
        for target, (n, body) in itertools.product(targets, enumerate(bodies))
    }
    assert desk.cache.found == {"miss": len(first)}
    for (target, n), body in first.items():
        again = await desk.ask(bodies[n], target=target)
        assert (again.source, again.body) == ("cache", body)
    await desk.close()


async def test_T35_where_the_scope_is_shared_a_body_that_can_be_read_two_ways_is_nobody_elses():
    asked: list[bytes] = []

    async def upstream(call: Call) -> Answer:
        asked.append(call.request.body)
        return answer({"result": len(asked), "status": "ok", "time": 0.1})

    desk = Desk("qdrant", upstream, scope="shared")
    await desk.ask(b'{"limit": 1, "limit": 2}', [(b"api-key", b"mallory")])
    victim = await desk.ask(b'{"limit": 2}', [(b"api-key", b"alice")])
    assert (victim.source, len(asked)) == ("first", 2)
    assert (await desk.ask(b'{"limit":2}', [(b"api-key", b"bob")])).source == "cache"
    await desk.close()


# --- T37 -----------------------------------------------------------------------------------------------------------


def vectors(answer: Answer) -> list[tuple[int, Any]]:
    return [(datum["index"], datum["embedding"]) for datum in json.loads(answer.body)["data"]]


@pytest.mark.parametrize("backwards", [False, True])
async def test_T37_a_batch_is_asked_for_what_is_missing_and_answered_in_order(backwards: bool):
    asked: list[list[Any]] = []
    desk = Desk("openai-embeddings", embedder(asked, backwards=backwards))
    await desk.ask({"model": "m", "input": "a"})
    body = {"model": "m", "input": ["b", "a", "c"]}
    partly = await desk.ask(body)
    assert vectors(partly) == [(n, vector_of(text, {})) for n, text in enumerate("bac")]
    assert asked == [["a"], ["b", "c"]]
    assert (partly.tier, partly.source, partly.reason) == ("primary", "first", "1 of 3 from the cache")
    assert json.loads(partly.body)["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    again = await desk.ask(body)
    assert (again.source, vectors(again)) == ("cache", vectors(partly))
    assert json.loads(again.body)["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    single = await desk.ask({"model": "m", "input": "c"})
    assert (single.source, vectors(single)) == ("cache", [(0, vector_of("c", {}))])
    assert len(asked) == 2
    await desk.close()


async def test_T37_duplicates_are_asked_for_once_and_answered_each():
    asked: list[list[Any]] = []
    desk = Desk("openai-embeddings", embedder(asked))
    await desk.ask({"model": "m", "input": "a"})
    got = await desk.ask({"model": "m", "input": ["x", "a", "x", "a", "y"]})
    assert vectors(got) == [(n, vector_of(text, {})) for n, text in enumerate("xaxay")]
    assert asked[1:] == [["x", "y"]]
    await desk.close()


async def test_T37_token_arrays_are_inputs_like_texts():
    asked: list[list[Any]] = []
    desk = Desk("openai-embeddings", embedder(asked))
    await desk.ask({"model": "m", "input": [1, 2, 3]})
    assert (await desk.ask({"model": "m", "input": [[1, 2, 3]]})).source == "cache"
    got = await desk.ask({"model": "m", "input": [[4], [1, 2, 3], [5, 6]]})
    assert vectors(got) == [(n, vector_of(ids, {})) for n, ids in enumerate([[4], [1, 2, 3], [5, 6]])]
    assert asked[1:] == [[[4], [5, 6]]]
    assert (await desk.ask({"model": "m", "input": "[1, 2, 3]"})).source == "first"
    await desk.close()


async def test_T37_another_encoding_dimension_model_or_field_is_another_vector():
    asked: list[list[Any]] = []
    desk = Desk("openai-embeddings", embedder(asked))
    variants: list[dict[str, Any]] = [
        {},
        {"encoding_format": "float"},
        {"encoding_format": "base64"},
        {"dimensions": 4},
        {"dimensions": 8},
        {"model": "n"},
        {"input_type": "query"},
    ]
    for extra in variants:
        body = {"model": "m", "input": "x", **extra}
        got = await desk.ask(body)
        assert (got.source, vectors(got)) == ("first", [(0, vector_of("x", body))])
    for extra in variants:
        body = {"model": "m", "input": ["x", "x"], **extra}
        got = await desk.ask(body)
        assert (got.source, vectors(got)) == ("cache", [(0, vector_of("x", body)), (1, vector_of("x", body))])
    assert len(asked) == len(variants)
    assert (await desk.ask({"model": "m", "input": "x", "user": "whoever"})).source == "cache"
    await desk.close()


@pytest.mark.parametrize("seed", range(20))
async def test_T37_whatever_the_batches_every_vector_is_its_own(seed: int):
    dice = random.Random(seed)
    asked: list[list[Any]] = []
    desk = Desk("openai-embeddings", embedder(asked, backwards=seed % 2 == 0), bytes_max=8_000, entry_bytes_max=4_000)
    words = [f'word {n} "é\\' for n in range(12)]
    for _ in range(60):
        inputs = [dice.choice(words) for _ in range(dice.randrange(1, 8))]
        got = vectors(await desk.ask({"model": "m", "input": inputs}))
        # what an upstream answers to the whole of a batch is passed on as it is, in its own order
        assert sorted(got) == [(n, vector_of(text, {})) for n, text in enumerate(inputs)]
    assert sum(map(len, asked)) < 60 * 4
    await desk.close()


@pytest.mark.parametrize("fault", ["short", "twice", "far", "text", "empty"])
async def test_T37_an_answer_that_does_not_fit_its_batch_is_passed_on_and_nothing_is_kept_of_it(fault: str):
    async def broken(call: Call) -> Answer:
        inputs = json.loads(call.request.body)["input"]
        data = [{"index": n, "embedding": [1.0]} for n in range(len(inputs))]
        match fault:
            case "short":
                data.pop()
            case "twice":
                data[0]["index"] = len(inputs) - 1
            case "far":
                data[0]["index"] = 99
            case "text":
                return answer(b'{"data": "none"}')
            case _:
                data[0]["embedding"] = []
        return answer({"data": data, "model": "m"})

    desk = Desk("openai-embeddings", broken)
    for _ in range(2):
        got = await desk.ask({"model": "m", "input": ["a", "b"]})
        assert (got.source, len(desk.cache.store)) == ("first", 0)
    await desk.close()


# --- T38 -----------------------------------------------------------------------------------------------------------


async def test_T38_a_hundred_identical_misses_are_one_call():
    calls = 0

    async def slow(_call: Call) -> Answer:
        nonlocal calls
        calls += 1
        await asyncio.sleep(1.0)
        return answer({"result": calls, "status": "ok", "time": 0.1})

    desk = Desk("qdrant", slow)
    got = await asyncio.gather(*(desk.ask({"query": [0.1], "limit": 3}) for _ in range(100)))
    assert calls == 1
    assert {each.body for each in got} == {got[0].body}
    # one callers' headers are not another's
    assert len({id(each) for each in got}) == 100
    assert desk.cache.flights.shared == 99
    assert desk.cache.store.stored == 1
    await desk.close()


async def test_T38_when_the_owner_hangs_up_another_takes_over():
    calls = 0

    async def slow(_call: Call) -> Answer:
        nonlocal calls
        calls += 1
        await asyncio.sleep(1.0)
        return answer({"result": calls, "status": "ok", "time": 0.1})

    desk = Desk("qdrant", slow)
    tasks = [asyncio.ensure_future(desk.ask({"query": [0.1]})) for _ in range(10)]
    await asyncio.sleep(0.5)
    tasks[0].cancel()
    tasks[3].cancel()
    await asyncio.sleep(0.1)
    tasks[1].cancel()
    got = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(each, asyncio.CancelledError) for each in got] == [n in (0, 1, 3) for n in range(10)]
    assert calls == 3
    assert not desk.cache.flights.flights
    await desk.close()


async def test_T38_an_owners_error_is_not_copied_to_the_waiters():
    calls = 0

    async def shaky(_call: Call) -> Answer:
        nonlocal calls
        calls += 1
        mine = calls
        await asyncio.sleep(0.2)
        if mine == 1:
            raise Failed("reset", "the first one only")
        return answer({"result": mine, "status": "ok", "time": 0.1})

    desk = Desk("qdrant", shaky)
    got = await asyncio.gather(*(desk.ask({"query": [0.1]}) for _ in range(50)), return_exceptions=True)
    assert sum(isinstance(each, Failed) for each in got) == 1
    assert sum(isinstance(each, Answer) for each in got) == 49
    assert calls == 2
    await desk.close()


# --- T40 -----------------------------------------------------------------------------------------------------------


def library(collections: dict[str, int]):
    """A database whose searches say how often their collection has been written to."""

    async def database(call: Call) -> Answer:
        name = call.request.path.split(b"/")[2].decode()
        if call.kind == "pass":
            collections[name] = collections.get(name, 0) + 1
            return answer({"result": {"status": "acknowledged"}, "status": "ok", "time": 0.1})
        return answer({"result": {"points": [], "seen": collections.get(name, 0)}, "status": "ok", "time": 0.1})

    return database


def seen(answer: Answer) -> int:
    return json.loads(answer.body)["result"]["seen"]


@pytest.mark.parametrize(
    ("method", "target", "touches"),
    [
        (b"PUT", b"/collections/books/points?wait=true", {"books"}),
        (b"POST", b"/collections/books/points/delete", {"books"}),
        (b"POST", b"/collections/books/points/payload", {"books"}),
        (b"POST", b"/collections/books/points/batch", {"books"}),
        (b"DELETE", b"/collections/books", {"books"}),
        (b"PATCH", b"/collections/books", {"books"}),
        (b"PUT", b"/collections/films/points", {"films"}),
        (b"POST", b"/collections/aliases", {"books", "films"}),
        (b"GET", b"/collections/books", set()),
        (b"POST", b"/collections/books/facet", set()),
        (b"POST", b"/collections/books/points/query/groups", set()),
    ],
)
async def test_T40_a_write_that_passes_through_takes_what_was_read_of_its_collection(
    method: bytes, target: bytes, touches: set[str]
):
    desk = Desk("qdrant", library({}), aliases=False)
    reads = {name: b"/collections/%b/points/query" % name.encode() for name in ("books", "films")}
    for name, read in reads.items():
        await desk.ask({"query": [0.1]}, target=read)
        assert (await desk.ask({"query": [0.1]}, target=read)).source == "cache", name
    await desk.ask({}, target=target, method=method)
    for name, read in reads.items():
        got = await desk.ask({"query": [0.1]}, target=read)
        assert got.source == ("first" if name in touches else "cache"), name
    await desk.close()


async def test_T40_a_read_that_began_before_a_write_ended_is_not_told_afterwards():
    gate = asyncio.Event()
    written = 0

    async def database(call: Call) -> Answer:
        nonlocal written
        if call.kind == "pass":
            await asyncio.sleep(5)
            written += 1
            return answer({"status": "ok"})
        before = written
        await gate.wait()
        return answer({"result": {"seen": before}, "status": "ok", "time": 0.1})

    desk = Desk("qdrant", database, route={"coalesce": settings.Coalesce(enabled=False)})
    early = asyncio.ensure_future(desk.ask({"query": [1]}))
    await asyncio.sleep(1)
    writing = asyncio.ensure_future(desk.ask({}, target=b"/collections/books/points", method=b"PUT"))
    await asyncio.sleep(1)
    during = asyncio.ensure_future(desk.ask({"query": [2]}))
    await asyncio.sleep(1)
    gate.set()
    await asyncio.gather(early, during, writing)
    assert [seen(await desk.ask({"query": [n]})) for n in (1, 2)] == [1, 1]
    # the database may take a moment to show a write: what is read in that moment is not kept
    assert [(await desk.ask({"query": [1]})).source for _ in range(2)] == ["first", "first"]
    await asyncio.sleep(1.1)
    assert [(await desk.ask({"query": [1]})).source for _ in range(2)] == ["first", "cache"]
    await desk.close()


async def test_T40_a_write_that_failed_may_have_been_carried_out():
    async def database(call: Call) -> Answer:
        if call.kind == "pass":
            raise Failed("reset")
        return answer({"result": {"seen": 0}, "status": "ok", "time": 0.1})

    desk = Desk("qdrant", database)
    await desk.ask({"query": [1]})
    with pytest.raises(Failed):
        await desk.ask({}, target=b"/collections/books/points", method=b"PUT")
    assert (await desk.ask({"query": [1]})).source == "first"
    await desk.close()


async def test_T40_what_depends_on_a_collection_goes_with_it_on_another_route_too():
    async def chatting(_call: Call) -> Answer:
        return answer({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]})

    chat = Desk("openai-chat", chatting, depends_on=["books"])
    database = Desk("qdrant", library({}), caches=chat.caches)
    question = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "?"}]}
    await chat.ask(question)
    assert (await chat.ask(question)).source == "cache"
    await database.ask({}, target=b"/collections/films/points", method=b"PUT")
    assert (await chat.ask(question)).source == "cache"
    await database.ask({}, target=b"/collections/books/points", method=b"PUT")
    assert (await chat.ask(question)).source == "first"
    await chat.close()


# --- T41 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["failed", "status", "local"])
async def test_T41_while_the_primary_is_down_a_stale_answer_is_given_and_says_so(how: str):
    down = False

    async def upstream(_call: Call) -> Answer:
        if down:
            if how == "status":
                raise Failed("status_503", answer=answer({"status": {"error": "busy"}}, status=503))
            raise Failed("reset", "gone")
        return answer({"result": {"seen": 1}, "status": "ok", "time": 0.1})

    async def local(_call: Call) -> Answer:
        return answer({"result": {"seen": "approximately"}, "status": "ok", "time": 0.1})

    desk = Desk("qdrant", upstream, local=local if how == "local" else None, ttl_s=60.0, stale_s_max=3600.0)
    fresh = await desk.ask({"query": [1]})
    down = True
    await asyncio.sleep(60 + 300)
    stale = await desk.ask({"query": [1]})
    assert (stale.status, stale.body, stale.tier, stale.source) == (200, fresh.body, "cache", "cache")
    assert "stale: 300 s past its time" in stale.reason
    assert "first: " in stale.reason
    assert b"age: 360\r\n" in stale.lines()
    # another question has no stale answer: the local tier, or the error
    if how == "local":
        assert (await desk.ask({"query": [2]})).tier == "secondary"
    await asyncio.sleep(3600)
    if how == "failed":
        with pytest.raises(Failed):
            await desk.ask({"query": [1]})
    elif how == "status":
        assert (await desk.ask({"query": [1]})).status == 503
    else:
        assert (await desk.ask({"query": [1]})).tier == "secondary"
    await desk.close()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422])
async def test_T41_a_callers_error_never_brings_a_stale_answer(status: int):
    wrong = False

    async def upstream(_call: Call) -> Answer:
        if wrong:
            return answer({"status": {"error": "no"}}, status=status)
        return answer({"result": {"seen": 1}, "status": "ok", "time": 0.1})

    desk = Desk("qdrant", upstream, ttl_s=60.0)
    await desk.ask({"query": [1]})
    wrong = True
    await asyncio.sleep(360)
    got = await desk.ask({"query": [1]})
    assert (got.status, got.source) == (status, "first")
    await desk.close()
