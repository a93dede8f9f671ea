"""Attacks on the caches: what was meant for somebody else, is no longer true, or never was whole, told to a caller."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.caching.desk import Desk, Played, answer, as_json, heard, shared_caches
from understudy.policies.service import Answer, Call, Request
from understudy.proxy.caching.snapshot import ANY, NOTED_MAX, Notes, noted_since
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.settings.settings import Match, Route, Settings, UpstreamTier

Header = tuple[bytes, bytes]
QUESTION = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}


def numbered(block: bytes = b"", status: int = 200, body: dict[str, Any] | None = None):
    """A database that says how often it has been asked."""
    asked = 0

    async def database(_call: Call) -> Answer:
        nonlocal asked
        asked += 1
        return answer(body or {"result": asked, "status": "ok", "time": 0.1}, block=block, status=status)

    return database


async def sources(desk: Desk, *heads: list[Header], body: Any = None, **how: Any) -> list[str]:
    return [(await desk.ask(body or {"query": [1]}, head, **how)).source for head in heads]


# --- who asks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("cookie", "proxy-authorization", "x-chroma-token", "x-auth-token", "x-forwarded-user", "x-tenant-id"),
        *("x-weaviate-api-key", "x-openai-api-key", "x-forwarded-client-cert", "x-portkey-config", "cf-aig-token"),
        *("accept-language", "x-pinecone-api-version", "prefer", "x-something-new"),
    ],
)
async def test_whatever_header_may_tell_two_callers_or_two_questions_apart_does(name: str):
    desk = Desk("qdrant", numbered())
    first, second = [(name.encode(), b"a")], [(name.title().encode(), b"b")]
    assert await sources(desk, first, second, [], first, second, []) == ["first"] * 3 + ["cache"] * 3
    await desk.close()


async def test_what_belongs_to_one_call_or_to_who_watches_tells_nobody_apart():
    desk = Desk("qdrant", numbered(), idle_headers=["X-Session-Trace"])
    heads: list[list[Header]] = [
        [(name, b"%d" % n) for name in (b"x-request-id", b"traceparent", b"user-agent", b"x-stainless-retry-count")]
        + [(name, b"%d" % n) for name in (b"idempotency-key", b"x-session-trace")]
        for n in range(3)
    ]
    assert await sources(desk, *heads) == ["first", "cache", "cache"]
    await desk.close()


async def test_a_load_balancers_mark_is_nobodys_name_and_a_session_beside_it_is():
    desk = Desk("qdrant", numbered())
    marked = [[(b"cookie", b"__cf_bm=%d; AWSALB=x%d" % (n, n))] for n in range(2)]
    anna = [(b"cookie", b"__cf_bm=9; session=anna")]
    bert = [(b"cookie", b"session=bert; _cfuvid=9")]
    assert await sources(desk, *marked, [], anna, bert, anna, bert) == [
        *("first", "cache", "cache"),
        *("first", "first", "cache", "cache"),
    ]
    await desk.close()


async def test_the_order_of_headers_tells_nobody_apart():
    desk = Desk("qdrant", numbered())
    pair: list[Header] = [(b"x-tenant", b"a"), (b"authorization", b"k")]
    assert await sources(desk, pair, pair[::-1]) == ["first", "cache"]
    await desk.close()


async def test_where_all_share_credentials_do_not_matter_and_everything_else_does():
    desk = Desk("qdrant", numbered(), scope="shared")
    heads: list[list[Header]] = [[(b"authorization", b"a"), (b"cookie", b"s=1")], [(b"authorization", b"b")]]
    assert await sources(desk, *heads, [(b"accept-language", b"de")]) == ["first", "cache", "first"]
    await desk.close()


async def test_what_is_for_one_caller_is_not_shared_with_those_who_ask_at_the_same_time():
    for block in (b"cache-control: private\r\n", b"cache-control: no-store\r\n", b"vary: x-flavour\r\n"):
        asked = 0

        async def slow(call: Call, block: bytes = block) -> Answer:
            nonlocal asked
            asked += 1
            await asyncio.sleep(1)
            who = (call.request.header(b"authorization") or b"").decode()
            return answer({"result": who, "status": "ok", "time": 0.1}, block=block)

        desk = Desk("qdrant", slow, scope="shared")
        callers = [f"caller {n}" for n in range(5)]
        got = await asyncio.gather(*(desk.ask({"query": [1]}, [(b"authorization", who.encode())]) for who in callers))
        assert [json.loads(each.body)["result"] for each in got] == callers
        await desk.close()


async def test_a_cookie_is_for_who_asked_and_not_for_those_who_waited():
    async def slow(_call: Call) -> Answer:
        await asyncio.sleep(1)
        return answer({"result": 1, "status": "ok", "time": 0.1}, block=b"Set-Cookie: session=anna\r\nx-kept: 1\r\n")

    desk = Desk("qdrant", slow, scope="shared")
    got = await asyncio.gather(*(desk.ask({"query": [1]}) for _ in range(4)))
    assert [b"session=anna" in each.lines() for each in got] == [True, False, False, False]
    assert all(b"x-kept: 1" in each.lines() for each in got)
    assert b"session=anna" not in (await desk.ask({"query": [1]})).lines()
    await desk.close()


# --- what is asked -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        *((b"range", b"bytes=0-9"), (b"if-range", b'"e"'), (b"if-none-match", b'"e"'), (b"if-match", b"*")),
        (b"if-unmodified-since", b"Thu, 01 Jan 2026 00:00:00 GMT"),
        (b"x-http-method-override", b"DELETE"),
        (b"X-HTTP-Method", b"PUT"),
    ],
)
async def test_a_request_for_a_part_under_a_condition_or_by_another_method_goes_past_the_cache(header: Header):
    desk = Desk("qdrant", numbered())
    assert await sources(desk, [header], [], [header], []) == ["first", "first", "first", "cache"]
    await desk.close()


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"PUT"])
async def test_only_a_posted_question_is_answered_from_the_cache(method: bytes):
    desk = Desk("elasticsearch", numbered(body={"took": 1, "hits": {"hits": []}}), aliases=False)
    search = {"query": {"match_all": {}}}
    target = b"/books/_search"
    assert await sources(desk, [], [], body=search, target=target) == ["first", "cache"]
    got = await sources(desk, [], [], body=search, target=target, method=method)
    assert got == ["first", "first"]
    await desk.close()


@pytest.mark.parametrize("status", [201, 202, 203, 204, 206, 207, 226])
async def test_a_success_that_is_no_answer_to_a_read_is_not_kept_and_not_shared(status: int):
    asked = 0

    async def slow(_call: Call) -> Answer:
        nonlocal asked
        asked += 1
        mine = asked
        await asyncio.sleep(1)
        return answer({"job": mine}, status=status)

    desk = Desk("qdrant", slow)
    got = await asyncio.gather(*(desk.ask({"query": [1]}) for _ in range(3)))
    assert {json.loads(each.body)["job"] for each in got} == {1, 2, 3}
    assert (await desk.ask({"query": [1]})).source == "first"
    await desk.close()


async def test_two_numbers_that_only_a_hasty_reader_takes_for_one_are_two_questions():
    desk = Desk("qdrant", numbered())
    for low, high in ((2**64, 2**64 + 1), (2**53, 2**53 + 1), (-(2**63) - 1, -(2**63) - 2)):
        for body in ({"filter": {"id": low}}, {"filter": {"id": high}}):
            assert (await desk.ask(as_json(body))).source == "first"
    await desk.close()


# --- how old -------------------------------------------------------------------------------------------------------


async def test_a_caller_who_wants_nothing_older_gets_nothing_older_at_the_door_and_behind_it():
    desk = Desk("qdrant", numbered(), ttl_s=600.0)
    await desk.ask({"query": [1]})
    await asyncio.sleep(20)
    wants: list[Header] = [(b"Cache-Control", b"max-age=30")]
    for at_the_door in (True, False):
        assert await sources(desk, wants, at_the_door=at_the_door) == ["cache"]
    await asyncio.sleep(20)
    assert await sources(desk, []) == ["cache"]
    assert await sources(desk, wants, wants) == ["first", "cache"]
    await desk.close()


@pytest.mark.parametrize(
    ("block", "fresh_s"),
    [
        (b"cache-control: max-age=60\r\nage: 50\r\n", 10),
        (b"cache-control: max-age=60\r\nage: 70\r\n", 0),
        (b"expires: 0\r\n", 0),
        (b"expires: -1\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n", 0),
        (b"expires: Thu, 01 Jan 2026 00:00:20 GMT\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n", 20),
        (b"expires: Thu, 01 Jan 2026 00:00:00 GMT\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n", 0),
        # max-age is believed before Expires (RFC 9111 section 5.3)
        (b"expires: 0\r\ncache-control: max-age=30\r\n", 30),
    ],
)
async def test_what_lay_in_another_cache_is_as_old_as_it_says_and_expires_is_kept_to(block: bytes, fresh_s: int):
    desk = Desk("qdrant", numbered(block), ttl_s=100.0, revalidate_s=0.0)
    await desk.ask({"query": [1]})
    if fresh_s:
        await asyncio.sleep(fresh_s - 1)
        assert await sources(desk, []) == ["cache"]
        await asyncio.sleep(2)
    assert await sources(desk, []) == ["first"]
    await desk.close()


# --- what is whole -------------------------------------------------------------------------------------------------

PIECES = [
    b'data: {"choices":[{"delta":{"content":"hel"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"a \\"finish_reason\\": \\"stop\\" in words"}}]}\n\n',
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
]


@pytest.mark.parametrize("pieces", range(1, len(PIECES)))
async def test_a_stream_cut_after_any_of_its_pieces_is_not_told_again(pieces: int):
    async def upstream(_call: Call) -> Answer:
        return Answer(200, None, block=b"content-type: text/event-stream\r\n", stream=Played(PIECES[:pieces], cut=True))

    desk = Desk("openai-chat", upstream)
    body = {**QUESTION, "stream": True}
    for _ in range(2):
        got = await desk.ask(body)
        assert (got.source, heard(got).ending) == ("first", "cut: broken")
    assert len(desk.cache.store) == 0
    await desk.close()


@pytest.mark.parametrize(
    ("dialect", "target", "body"),
    [
        ("elasticsearch", b"/books/_search", {"took": 1, "timed_out": True, "hits": {"hits": []}}),
        ("elasticsearch", b"/books/_search", {"took": 1, "_shards": {"total": 2, "failed": 1}, "hits": {"hits": []}}),
        ("weaviate", b"/v1/graphql", {"data": {"Get": {"Doc": []}}, "errors": [{"message": "shard is away"}]}),
        ("milvus", b"/v2/vectordb/entities/search", {"code": 1100, "message": "no", "data": []}),
        ("qdrant", b"/collections/books/points/query", {"result": None, "status": {"error": "x"}, "time": 0.1}),
    ],
)
async def test_an_answer_of_only_some_shards_is_not_kept(dialect: str, target: bytes, body: dict[str, Any]):
    """The tier takes it for a failure; here it gets as far as the cache, which looks for itself."""
    desk = Desk(dialect, numbered(body=body))
    ask = {"query": "{ Get { Doc { text } } }"} if dialect == "weaviate" else {"query": {"match_all": {}}}
    assert await sources(desk, [], [], body=ask, target=target) == ["first", "first"]
    await desk.close()


# --- what is still true --------------------------------------------------------------------------------------------


def shelf():
    """A database in which `books` is an alias of `books_v2`."""
    count = 0

    async def database(call: Call) -> Answer:
        nonlocal count
        if call.kind == "pass":
            count += 1
            return answer({"result": {"status": "completed"}, "status": "ok", "time": 0.1})
        return answer({"result": count, "status": "ok", "time": 0.1})

    return database


@pytest.mark.parametrize(
    ("dialect", "read", "write", "bodies"),
    [
        (
            "qdrant",
            b"/collections/books/points/query",
            (b"PUT", b"/collections/books_v2/points"),
            ({"query": [1]}, {"points": []}),
        ),
        ("qdrant", b"/collections/books/points/query", (b"POST", b"/storage/recover"), ({"query": [1]}, {})),
        (
            "milvus",
            b"/v2/vectordb/entities/search",
            (b"POST", b"/v2/vectordb/entities/insert"),
            ({"collectionName": "books", "data": [[1.0]]}, {"collectionName": "books_v2", "data": []}),
        ),
        (
            "weaviate",
            b"/v1/graphql",
            (b"POST", b"/v1/objects"),
            ({"query": "{ Get { Books { text } } }"}, {"class": "Books_v2"}),
        ),
        ("elasticsearch", b"/books/_search", (b"PUT", b"/books_v2/_doc/1"), ({"query": {"match_all": {}}}, {})),
    ],
)
async def test_T40_a_write_by_a_collections_other_name_takes_what_was_read_by_this_one(
    dialect: str, read: bytes, write: tuple[bytes, bytes], bodies: tuple[dict[str, Any], dict[str, Any]]
):
    desk = Desk(dialect, shelf())
    first = await desk.ask(bodies[0], target=read)
    assert (await desk.ask(bodies[0], target=read)).body == first.body
    await desk.ask(bodies[1], target=write[1], method=write[0])
    assert (await desk.ask(bodies[0], target=read)).source == "first"
    await desk.close()


async def test_T40_where_no_collection_has_another_name_each_forgets_by_itself():
    desk = Desk("qdrant", shelf(), aliases=False)
    assert await sources(desk, [], []) == ["first", "cache"]
    await desk.ask({}, target=b"/collections/films/points", method=b"PUT")
    assert await sources(desk, []) == ["cache"]
    await desk.close()


async def test_T40_a_write_by_a_route_that_knows_no_api_is_taken_for_one_where_it_goes_to_the_same_database():
    reading = Desk("qdrant", shelf(), aliases=False)
    plain = {"name": "rest", "match": Match(prefix="/"), "dialect": "plain"}
    same = Route(**plain, tiers=[UpstreamTier(name="db", url="http://a/base")])
    other = Route(**plain, tiers=[UpstreamTier(name="db", url="http://elsewhere")])
    caches = reading.caches
    caches.obey(Settings(routes=[reading.parts.route, same, other]))

    async def passed_by(route: Route, method: bytes) -> None:
        async def upstream(_call: Call) -> Answer:
            return answer({})

        call = DIALECTS["plain"].read(Request(method, b"/collections/books/points", [], b"{}"))
        await caches.watching(upstream, DIALECTS["plain"], route)(call)

    assert await sources(reading, []) == ["first"]
    for route, method in ((other, b"PUT"), (same, b"GET"), (same, b"HEAD")):
        await passed_by(route, method)
        assert await sources(reading, []) == ["cache"]
    await passed_by(same, b"PUT")
    assert await sources(reading, []) == ["first"]
    await reading.close()


async def test_T40_a_search_that_waits_with_one_from_before_a_write_is_not_told_of_before():
    """Who asks while a write is under way, or after it, shares nothing with who asked before."""
    gate, written = asyncio.Event(), 0

    async def database(call: Call) -> Answer:
        nonlocal written
        if call.kind == "pass":
            await asyncio.sleep(1)
            written += 1
            return answer({"result": {}, "status": "ok", "time": 0.1})
        seen = written
        await gate.wait()
        return answer({"result": seen, "status": "ok", "time": 0.1})

    desk = Desk("qdrant", database)
    before = asyncio.ensure_future(desk.ask({"query": [1]}))
    await asyncio.sleep(0.1)
    await desk.ask({}, target=b"/collections/books/points", method=b"PUT")
    after = asyncio.ensure_future(desk.ask({"query": [1]}))
    await asyncio.sleep(0.1)
    gate.set()
    assert [json.loads(each.body)["result"] for each in await asyncio.gather(before, after)] == [0, 1]
    await desk.close()


# --- what a snapshot says ------------------------------------------------------------------------------------------


async def begun_again(path: Path, how: dict[str, Any]) -> tuple[Desk, int]:
    """The next process, and how much it took over."""
    desk = Desk("qdrant", shelf(), **how)
    desk.caches.keep_at(path)
    return desk, await desk.caches.load(path, [desk.cache])


@pytest.mark.parametrize(
    ("target", "how", "taken"),
    [
        (b"/collections/books/points", {"aliases": False}, 0),
        (b"/collections/films/points", {"aliases": False}, 1),
        (b"/collections/films/points", {}, 0),
        (b"/collections/aliases", {"aliases": False}, 0),
    ],
)
async def test_T40_a_process_killed_after_a_write_does_not_come_back_with_what_was_read_before_it(
    tmp_path: Path, target: bytes, how: dict[str, Any], taken: int
):
    path = tmp_path / "0.snapshot"
    first = Desk("qdrant", shelf(), **how)
    first.caches.keep_at(path)
    await first.ask({"query": [1]})
    await first.caches.save(path, [first.cache])
    await first.ask({}, target=target, method=b"POST" if b"aliases" in target else b"PUT")
    # killed: nothing is saved, nothing is closed
    second, count = await begun_again(path, how)
    assert count == taken
    assert await sources(second, []) == ["cache" if taken else "first"]
    # and killed again before the next snapshot: what was noted still holds
    third, count = await begun_again(path, how)
    assert count == taken
    for desk in (first, second, third):
        await desk.close()


async def test_T40_a_write_that_a_neighbour_heard_of_while_this_process_was_gone_is_known_from_its_notes(
    tmp_path: Path,
):
    mine, neighbours = tmp_path / "0.snapshot", tmp_path / "1.snapshot"
    first = Desk("qdrant", shelf())
    await first.ask({"query": [1]})
    await first.caches.save(mine, [first.cache])
    other = shared_caches()
    other.keep_at(neighbours)
    other.heard(["books", "**"])
    _, count = await begun_again(mine, {})
    assert count == 0
    await first.close()


async def test_a_snapshot_that_knows_of_all_writes_leaves_no_note_of_them(tmp_path: Path):
    path = tmp_path / "0.snapshot"
    desk = Desk("qdrant", shelf())
    desk.caches.keep_at(path)
    await desk.ask({}, target=b"/collections/books/points", method=b"PUT")
    assert noted_since(path) == set()
    assert (tmp_path / "0.written").read_bytes()
    await asyncio.sleep(2)
    await desk.ask({"query": [1]})
    await desk.caches.save(path, [desk.cache])
    assert noted_since(path) == set()
    assert (tmp_path / "0.written").read_bytes() == b""
    again, count = await begun_again(path, {})
    assert (count, await sources(again, [])) == (1, ["cache"])
    await desk.close()


def test_notes_are_bounded_survive_a_torn_line_and_take_the_snapshot_away_where_they_cannot_be_written(tmp_path: Path):
    path = tmp_path / "0.snapshot"
    path.write_bytes(b"UCS1")
    notes = Notes(path)
    for n in range(NOTED_MAX + 10):
        notes.add([f"c{n}"])
    assert ANY in noted_since(path)
    assert len(noted_since(path)) == NOTED_MAX + 1
    notes.close()
    file = tmp_path / "0.written"
    file.write_bytes(b'"books"\n"fil')
    assert noted_since(path) == {"books", ANY}
    file.unlink()
    file.mkdir()
    Notes(path).add(["books"])
    assert not path.exists()
