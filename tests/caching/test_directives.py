"""What is kept, for how long, and who says otherwise: callers, upstreams, the policy; streams; a warm restart."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.caching.desk import Desk, Played, answer, embedder, heard, shared_caches
from understudy.policies.coalesce import Flights, coalesce
from understudy.policies.deadline import Deadline
from understudy.policies.service import Answer, Call, Failed, Refused
from understudy.proxy.caching.caches import Caches
from understudy.proxy.caching.snapshot import Record, framed, records
from understudy.proxy.settings import settings

QUESTION = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}


def chat(finish: str = "stop", content: str = "hello") -> Answer:
    return answer({"choices": [{"message": {"content": content}, "finish_reason": finish}]})


def counting(block: bytes = b"", status: int = 200):
    """A database that says how often it has been asked."""
    asked = 0

    async def database(_call: Call) -> Answer:
        nonlocal asked
        asked += 1
        return answer({"result": asked, "status": "ok", "time": 0.1}, block=block, status=status)

    return database


async def sources(desk: Desk, body: Any, *headers: list[tuple[bytes, bytes]]) -> list[str]:
    return [(await desk.ask(body, list(each))).source for each in headers]


# --- callers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ((b"Cache-Control", b"no-store"), ["first", "first", "first", "cache"]),
        ((b"x-understudy-cache", b"Bypass"), ["first", "first", "first", "cache"]),
        ((b"cache-control", b"no-cache"), ["first", "cache", "first", "cache"]),
        ((b"cache-control", b"max-age=0"), ["first", "cache", "first", "cache"]),
        ((b"range", b"bytes=0-1"), ["first", "first", "first", "cache"]),
    ],
)
async def test_a_caller_keeps_a_call_out_of_the_cache(header: tuple[bytes, bytes], expected: list[str]):
    desk = Desk("qdrant", counting())
    assert await sources(desk, {"query": [1]}, [header], [], [header], []) == expected
    await desk.close()


async def test_compression_is_not_asked_for_so_that_the_next_caller_can_read_what_is_kept():
    seen: list[bytes | None] = []

    async def upstream(call: Call) -> Answer:
        seen.append(call.request.header(b"accept-encoding"))
        return answer({"result": 1, "status": "ok", "time": 0.1})

    desk = Desk("qdrant", upstream)
    assert await sources(desk, {"query": [1]}, [(b"Accept-Encoding", b"gzip")], []) == ["first", "cache"]
    assert seen == [None]
    await desk.close()


# --- upstreams -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "kept"),
    [
        (b"", True),
        (b"cache-control: no-store\r\n", False),
        (b"Cache-Control: max-age=60, Private\r\n", False),
        (b"cache-control: max-age=0\r\n", False),
        (b"cache-control: max-age=60\r\n", True),
        (b"vary: accept-encoding\r\n", True),
        (b"vary: x-flavour\r\n", False),
        (b"vary: *\r\n", False),
    ],
)
async def test_an_upstreams_word_is_kept_to(block: bytes, kept: bool):
    desk = Desk("qdrant", counting(block))
    assert await sources(desk, {"query": [1]}, [], []) == ["first", "cache" if kept else "first"]
    await desk.close()


async def test_an_upstreams_max_age_shortens_the_time_and_never_lengthens_it():
    for block, fresh_s in ((b"cache-control: max-age=10\r\n", 10), (b"cache-control: max-age=9999\r\n", 300)):
        desk = Desk("qdrant", counting(block), revalidate_s=0.0)
        await desk.ask({"query": [1]})
        await asyncio.sleep(fresh_s - 0.1)
        assert (await desk.ask({"query": [1]})).source == "cache"
        await asyncio.sleep(0.2)
        assert (await desk.ask({"query": [1]})).source == "first"
        await desk.close()


async def test_a_browser_gets_the_answer_that_was_meant_for_its_origin():
    async def upstream(call: Call) -> Answer:
        origin = call.request.header(b"origin") or b"*"
        return answer(
            {"result": 1, "status": "ok"}, block=b"vary: Origin\r\naccess-control-allow-origin: %b\r\n" % origin
        )

    desk = Desk("qdrant", upstream)
    for _ in range(2):
        for origin in (b"https://a", b"https://b"):
            got = await desk.ask({"query": [1]}, [(b"Origin", origin)])
            assert b"access-control-allow-origin: %b\r\n" % origin in got.lines()
    assert desk.cache.hits == 2
    await desk.close()


async def test_headers_of_the_moment_are_not_told_again():
    block = b"set-cookie: a=b\r\nx-ratelimit-remaining-requests: 0\r\nx-upstream-request-id: 7\r\netag: e\r\n"
    desk = Desk("qdrant", counting(block))
    await desk.ask({"query": [1]})
    again = await desk.ask({"query": [1]})
    assert again.lines() == b"content-type: application/json\r\netag: e\r\nage: 0\r\n"
    await desk.close()


@pytest.mark.parametrize(("status", "kept_s"), [(404, 1), (410, 1), (400, 0), (401, 0), (422, 0), (301, 0)])
async def test_of_errors_only_what_was_not_there_is_remembered_and_not_for_long(status: int, kept_s: float):
    desk = Desk("qdrant", counting(status=status))
    assert await sources(desk, {"query": [1]}, [], []) == ["first", "cache" if kept_s else "first"]
    await asyncio.sleep(kept_s + 0.1)
    assert (await desk.ask({"query": [1]})).source == "first"
    await desk.close()


async def test_what_stands_in_for_the_first_tier_is_not_kept():
    async def down(_call: Call) -> Answer:
        raise Failed("reset")

    desk = Desk("qdrant", down, local=counting())
    answers = [await desk.ask({"query": [1]}) for _ in range(3)]
    assert [each.tier for each in answers] == ["secondary"] * 3
    assert len(desk.cache.store) == 0
    await desk.close()


# --- stale while revalidate ----------------------------------------------------------------------------------------


async def test_a_stale_answer_is_given_at_once_and_asked_anew_behind_the_callers_back():
    desk = Desk("qdrant", counting(), ttl_s=60.0, revalidate_s=30.0)
    await desk.ask({"query": [1]})
    await asyncio.sleep(70)
    stale = await asyncio.gather(*(desk.ask({"query": [1]}) for _ in range(20)))
    assert {json.loads(each.body)["result"] for each in stale} == {1}
    assert all(each.reason == "stale, and being asked anew: 10 s past its time" for each in stale)
    await asyncio.sleep(0.1)
    fresh = await desk.ask({"query": [1]})
    assert (json.loads(fresh.body)["result"], fresh.source, fresh.reason) == (2, "cache", "")
    # beyond that time a caller waits for the answer
    await asyncio.sleep(95)
    assert (await desk.ask({"query": [1]})).source == "first"
    await desk.close()


# --- generated answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "answers", "kept"),
    [
        ({}, "deterministic", True),
        ({"temperature": 0.2}, "deterministic", False),
        ({"temperature": None}, "deterministic", False),
        ({"tools": [{"type": "function"}]}, "deterministic", False),
        ({"store": True}, "always", False),
        ({"n": 2}, "always", False),
        ({"temperature": 0.2}, "always", True),
    ],
)
async def test_generated_answers_are_kept_only_where_they_can_not_vary(extra: dict[str, Any], answers: str, kept: bool):
    async def upstream(_call: Call) -> Answer:
        return chat()

    desk = Desk("openai-chat", upstream, answers=answers)
    body = {**QUESTION, **extra}
    assert await sources(desk, body, [], []) == ["first", "cache" if kept else "first"]
    await desk.close()


@pytest.mark.parametrize("finish", ["length", "content_filter", "tool_calls"])
async def test_an_answer_that_did_not_come_to_its_end_is_not_kept(finish: str):
    async def upstream(_call: Call) -> Answer:
        return chat(finish)

    desk = Desk("openai-chat", upstream)
    assert await sources(desk, QUESTION, [], []) == ["first", "first"]
    await desk.close()


PIECES = [
    b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"hel',
    b'lo"}}]}\n\ndata: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
]
STREAM_BLOCK = b"content-type: text/event-stream\r\ncache-control: no-cache\r\n"


def streaming(pieces: list[bytes], *, cut: bool = False):
    async def upstream(_call: Call) -> Answer:
        return Answer(200, None, block=STREAM_BLOCK, stream=Played(pieces, cut=cut))

    return upstream


async def test_a_whole_stream_is_kept_and_told_again_as_a_valid_one():
    desk = Desk("openai-chat", streaming(PIECES))
    body = {**QUESTION, "stream": True}
    first = heard(await desk.ask(body))
    again = await desk.ask(body)
    assert again.source == "cache"
    assert b"content-type: text/event-stream\r\n" in again.lines()
    told = heard(again)
    assert (told.data, told.ending) == (first.data, "end") == (b"".join(PIECES), "end")
    # and once more, for a stream is read once
    assert heard(await desk.ask(body)).data == first.data
    assert desk.dialect.stream_complete(told.data)
    # whole and streamed are different answers
    assert (await desk.ask({**QUESTION, "stream": False})).source == "first"
    await desk.close()


@pytest.mark.parametrize("how", ["cut", "left", "unfinished", "long"])
async def test_a_stream_that_is_not_whole_is_not_kept(how: str):
    pieces = PIECES[:2] if how == "unfinished" else PIECES
    rules = {"entry_bytes_max": 50} if how == "long" else {}
    desk = Desk("openai-chat", streaming(pieces, cut=how == "cut"), **rules)
    body = {**QUESTION, "stream": True}
    first = await desk.ask(body)
    if how == "left":
        assert first.stream is not None
        first.stream.close()
    else:
        heard(first)
    assert (await desk.ask(body)).source == "first"
    assert len(desk.cache.store) == 0
    await desk.close()


# --- a warm restart ------------------------------------------------------------------------------------------------


async def snapshot_of(desk: Desk, path: Path) -> bytes:
    await desk.caches.save(path, [desk.cache])
    return await asyncio.to_thread(path.read_bytes)


async def test_a_restart_finds_what_was_kept_and_its_age(tmp_path: Path):
    asked: list[list[Any]] = []
    path = tmp_path / "cache" / "0.snapshot"
    desk = Desk("openai-embeddings", embedder(asked), ttl_s=100.0)
    await desk.ask({"model": "m", "input": ["a", "b"]})
    await asyncio.sleep(30)
    await snapshot_of(desk, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["0.snapshot"]
    await asyncio.sleep(20)
    after = Desk("openai-embeddings", embedder(asked), ttl_s=100.0)
    assert await after.caches.load(path, [after.cache]) == 2
    again = await after.ask({"model": "m", "input": "a"})
    assert again.source == "cache"
    assert b"age: 50\r\n" in again.lines()
    await asyncio.sleep(51)
    assert (await after.ask({"model": "m", "input": ["a", "b"]})).source == "first"
    # another upstream behind the same route is another question
    moved = Desk(
        "openai-embeddings",
        embedder(asked),
        route={"tiers": [settings.UpstreamTier(name="first", url="http://b")]},
    )
    await moved.caches.load(path, [moved.cache])
    assert (await moved.ask({"model": "m", "input": "a"})).source == "first"
    for each in (desk, after, moved):
        await each.close()


async def test_a_snapshot_cut_off_at_any_byte_is_read_as_far_as_it_is_whole(tmp_path: Path):
    path = tmp_path / "s"
    desk = Desk("qdrant", counting())
    for n in range(3):
        await desk.ask({"query": [n]})
    data = await snapshot_of(desk, path)
    counts = [sum(1 for _ in records(data[:end])) for end in range(len(data) + 1)]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1], max(counts)) == (0, 3, 3)
    for place in range(0, len(data), 3):
        damaged = data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]
        assert sum(1 for _ in records(damaged)) < 3
    await desk.close()


async def test_a_write_since_the_start_goes_before_what_a_snapshot_has(tmp_path: Path):
    path = tmp_path / "s"
    desk = Desk("qdrant", counting())
    await desk.ask({"query": [1]})
    await snapshot_of(desk, path)
    after = Desk("qdrant", counting())
    await after.ask({}, target=b"/collections/books/points", method=b"PUT")
    assert await after.caches.load(path, [after.cache]) == 0
    await desk.close()
    await after.close()


async def test_a_route_that_is_kept_out_of_snapshots_is_not_in_them(tmp_path: Path):
    desk = Desk("qdrant", counting(), snapshot=False)
    await desk.ask({"query": [1]})
    assert list(records(await snapshot_of(desk, tmp_path / "s"))) == []
    await desk.close()


async def test_a_folder_that_can_not_be_written_to_costs_nothing_but_the_snapshot(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    desk = Desk("qdrant", counting())
    await desk.ask({"query": [1]})
    await desk.caches.save(tmp_path / "file" / "s", [desk.cache])
    assert (await desk.ask({"query": [1]})).source == "cache"
    await desk.close()


def test_a_record_of_another_shape_ends_the_reading():
    whole = b"UCS1" + framed(Record("r", b"k", [], b"v"))
    assert len(list(records(whole))) == 1
    assert list(records(b"UCS2" + whole[4:])) == []


# --- reloads and counts --------------------------------------------------------------------------------------------


async def test_a_reload_keeps_what_is_kept_and_goes_by_the_new_rules():
    caches: Caches = shared_caches()
    before = Desk("qdrant", counting(), caches=caches)
    for n in range(40):
        await before.ask({"query": [n]})
    after = Desk("qdrant", counting(), caches=caches, before=before.parts, bytes_max=20_000, entry_bytes_max=10_000)
    assert 0 < len(after.cache.store) < 40
    assert after.cache.store.bytes <= 20_000
    assert (await after.ask({"query": [39]})).source == "cache"
    await after.close()


async def test_a_hit_at_the_door_is_counted_like_any_answer():
    desk = Desk("qdrant", counting())
    await desk.ask({"query": [1]})
    request = desk.request({"query": [1]})
    for n in range(5):
        # without a loop's help: no call, no coroutine, no task
        assert desk.parts.hit is not None
        assert desk.parts.hit(request) is not None, n
    assert desk.parts.tally.answers == {("primary", 2): 1, ("cache", 2): 5}
    assert sum(desk.parts.tally.seconds.counts) == 6
    assert (desk.cache.hits, desk.cache.found) == (5, {"miss": 1})
    await desk.close()


async def test_the_door_does_not_look_where_something_before_the_cache_must_see_every_call():
    caches = shared_caches()
    arm = settings.Arm(tiers=[settings.UpstreamTier(name="other", url="http://o")])
    limited = settings.Tokens(caller=settings.Rate(calls_per_s=1.0, burst=1))
    for changed in ({"arms": {"new": arm}, "split": settings.Split(arm="new")}, {"tokens": limited}):
        desk = Desk("qdrant", counting(), caches=caches, route=changed)
        assert desk.cache is not None
        assert desk.parts.hit is None
    await caches.close()


# --- the order -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("swapped", "waited_s"), [(False, 0.0), (True, 4.0)])
async def test_coalesce_inside_the_cache_spares_what_is_kept_the_wait_for_who_asks_anew(swapped: bool, waited_s: float):
    clock = asyncio.get_running_loop().time

    async def slow(_call: Call) -> Answer:
        await asyncio.sleep(5)
        return answer({"result": 1, "status": "ok", "time": 0.1})

    desk = Desk("qdrant", slow, route={"coalesce": settings.Coalesce(enabled=not swapped)})
    sharing = coalesce(desk.parts.service, Flights(settings.Coalesce()), Deadline(30, 1), clock=clock)

    async def asked(*headers: tuple[bytes, bytes]) -> float:
        call = desk.dialect.read(desk.request({"query": [1]}, list(headers)))
        call.born = began = clock()
        call.key, call.deadline = b"the same", began + 30
        await (sharing if swapped else desk.parts.service)(call)
        return clock() - began

    await asked()
    anew = asyncio.ensure_future(asked((b"cache-control", b"no-cache")))
    await asyncio.sleep(1)
    assert await asked() == pytest.approx(waited_s)
    await anew
    await desk.close()


async def test_cache_outside_the_chain_answers_while_the_breaker_is_open_and_takes_no_place():
    down = False

    async def upstream(_call: Call) -> Answer:
        if down:
            raise Failed("reset")
        return answer({"result": 1, "status": "ok", "time": 0.1})

    desk = Desk("qdrant", upstream, route={"breaker": settings.Breaker(consecutive=1)})
    await desk.ask({"query": [1]})
    down = True
    for _ in range(2):
        with pytest.raises((Failed, Refused)):
            await desk.ask({"query": [2]})
    endpoint = desk.parts.tiers["first"].only
    assert endpoint.breaker is not None
    assert endpoint.breaker.state == "open"
    assert (await desk.ask({"query": [1]})).source == "cache"
    await desk.close()


@pytest.mark.parametrize(
    ("path", "body", "kept"),
    [
        (b"/collections/4647e5e8-2f00-48be-a3a7-cbc01dfd6d53/query", {"query_embeddings": [[1.0]]}, True),
        (b"/collections", {"name": "docs", "get_or_create": True}, False),
    ],
)
async def test_what_may_change_something_is_asked_each_time_though_it_reads(path: bytes, body: Any, kept: bool):
    desk = Desk("chroma", counting())
    target = b"/api/v2/tenants/default_tenant/databases/default_database" + path
    first, second = [await desk.ask(body, target=target) for _ in range(2)]
    assert (first.body == second.body) is kept
    await desk.close()
