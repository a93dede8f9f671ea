"""Likeness in the stack: what is given, to whom, and that whatever it lacks costs the hit and never the call."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from tests.kit.pairs import NEAR_MISSES, SAME_MEANING
from understudy.policies.likeness import BANDS, Bucket, Likeness
from understudy.policies.service import Answer, Call, Failed, HeldStream, Refused, Request, Service, Stream
from understudy.policies.wording import wording_of
from understudy.proxy.caching.caches import Caches
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.base import json_answer
from understudy.proxy.settings import settings
from understudy.proxy.settings.settings import LocalTier, Match, Route, UpstreamTier
from understudy.proxy.stack import RouteParts, World, assemble

KEY = [(b"authorization", b"Bearer one")]
OTHER_KEY = [(b"authorization", b"Bearer two")]
SOURCE = "semantic-cache"


async def embed(texts: list[str], _until: float) -> np.ndarray:
    """Bags of words of unit length: texts of the same words that count are at cosine 1, in whatever order."""
    rows = np.full((len(texts), 256), 1e-6, np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in worded(text):
            row[zlib.crc32(word.encode()) % 256] += 1
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def worded(text: str) -> list[str]:
    """The words of a question that count."""
    wording = wording_of(text)
    assert wording is not None
    return wording.exact.split()


class Upstream:
    """Answers chats with `says`, and searches with their own number; counts what it was asked."""

    def __init__(self) -> None:
        self.says: Callable[[str], str] = lambda question: f"About: {' '.join(worded(question))}."
        self.asked = 0
        self.down = False
        self.streams = False
        self.finish_reason = "stop"

    async def __call__(self, call: Call) -> Answer:
        self.asked += 1
        if self.down:
            raise Failed("reset")
        if call.kind != "generate":
            return json_answer(200, {"result": [{"id": self.asked}], "status": "ok", "time": 0.0})
        body = json.loads(call.request.body)
        text = self.says(body["messages"][-1]["content"].splitlines()[-1])
        if not self.streams:
            choice = {"index": 0, "message": {"content": text}, "finish_reason": self.finish_reason}
            return json_answer(200, {"model": "m", "created": 1, "choices": [choice], "usage": {"prompt_tokens": 3}})
        chunks: list[Any] = [{"delta": {"role": "assistant"}}, *({"delta": {"content": each}} for each in text)]
        chunks.append({"delta": {}, "finish_reason": self.finish_reason})
        pieces = [b"data: %b\n\n" % json.dumps({"choices": [{"index": 0, **each}]}).encode() for each in chunks]
        return Answer(200, [(b"content-type", b"text/event-stream")], stream=HeldStream([*pieces, b"data: [DONE]\n\n"]))


async def local(_call: Call) -> Answer:
    answer = json_answer(200, {"local": True})
    answer.source = "extractive"
    return answer


class Bench:
    """A route with likeness over an Upstream and a local tier."""

    def __init__(
        self,
        dialect: str,
        mode: str,
        *,
        upstream: Service | None = None,
        embed: Callable[[list[str], float], Awaitable[np.ndarray]] | None = embed,
        luck: float = 0.5,
        before: RouteParts | None = None,
        url: str = "http://a",
        alone: bool = False,
        aliases: bool = True,
        **rules: Any,
    ) -> None:
        self.upstream = Upstream()
        self.dialect = DIALECTS[dialect]
        route = Route(
            name="r",
            match=Match(prefix="/"),
            dialect=dialect,
            tiers=[UpstreamTier(name="first", url=url), *([] if alone else [LocalTier()])],
            retry=settings.Retry(attempts=1),
            breaker=settings.Breaker(enabled=False),
            cache=settings.Cache(aliases=aliases),
            likeness=settings.Likeness(mode=mode, **rules),  # pyright: ignore[reportArgumentType]
        )
        world = World(asyncio.get_running_loop().time, asyncio.sleep, dice=lambda: luck, embed=embed)
        first = upstream or self.upstream
        self.parts = assemble(
            route,
            self.dialect,
            world,
            lambda _route, tier, *_: local if isinstance(tier, LocalTier) else first,
            before=before,
            caches=Caches(clock=world.clock, wall=world.clock, dice=world.dice),
        )

    @property
    def heart(self) -> Likeness:
        assert self.parts.likeness is not None
        return self.parts.likeness

    def permit(self) -> None:
        """Let every kind of hit have proved to be right."""
        for grade, band in itertools.product(("exact", "loose"), BANDS):
            for _ in range(400):
                self.heart.permission.judged(Bucket(grade, band), asyncio.get_running_loop().time(), same=True)

    async def ask(self, method: str, path: str, body: Any, headers: list[tuple[bytes, bytes]] | None = None) -> Answer:
        headers = KEY if headers is None else headers
        request = Request(method.encode(), path.encode(), headers, json.dumps(body).encode())
        call = self.dialect.read(request)
        call.route, call.born = "r", asyncio.get_running_loop().time()
        answer = await self.parts.service(call)
        if answer.stream is not None:
            sink = Sink()
            answer.stream.relay(sink)
            answer.body = sink.body
        # comparisons go on behind the caller's back
        for _ in range(6):
            await asyncio.sleep(0)
        return answer

    async def chat(self, text: str, headers: list[tuple[bytes, bytes]] | None = None, **body: Any) -> Answer:
        messages = [
            *body.pop("before", [{"role": "system", "content": "Be brief."}]),
            {"role": "user", "content": text},
        ]
        return await self.ask("POST", "/v1/chat/completions", {"model": "m", "messages": messages, **body}, headers)

    async def search(
        self, degrees: float, headers: list[tuple[bytes, bytes]] | None = None, collection: str = "docs", **body: Any
    ) -> Answer:
        vector = [math.cos(math.radians(degrees)), math.sin(math.radians(degrees)), 0.0]
        wanted = {"query": vector, "limit": 5, **body}
        return await self.ask("POST", f"/collections/{collection}/points/query", wanted, headers)


class Sink:
    def __init__(self) -> None:
        self.body, self.ended, self.broken = b"", False, False

    def write(self, chunk: bytes) -> None:
        self.body += chunk

    def end(self) -> None:
        self.ended = True

    def cut(self, reason: str) -> None:
        self.broken = True


# --- searches ------------------------------------------------------------------------------------------------------


async def test_a_search_near_another_is_given_its_list_and_says_so():
    bench = Bench("qdrant", "serve")
    first = await bench.search(0)
    await asyncio.sleep(7)
    near = await bench.search(15)
    assert (near.body, near.source, near.tier) == (first.body, SOURCE, SOURCE)
    assert dict(near.headers)[b"age"] == b"7"
    assert dict(near.headers)[b"content-type"] == b"application/json"
    assert "cosine 0.966" in near.reason
    far = await bench.search(30)
    assert (far.source, bench.upstream.asked) == ("first", 2)


@pytest.mark.parametrize(
    "changed",
    [
        {"headers": OTHER_KEY},
        {"headers": []},
        {"collection": "others"},
        {"limit": 6},
        {"offset": 5},
        {"filter": {"must": [{"key": "k", "match": {"value": 1}}]}},
        {"with_payload": True},
        {"with_vector": True},
        {"params": {"exact": True}},
        {"headers": [*KEY, (b"accept-encoding", b"br")]},
    ],
    ids=str,
)
async def test_a_search_by_somebody_else_or_for_something_else_is_none_alike(changed: dict[str, Any]):
    bench = Bench("qdrant", "serve")
    await bench.search(0)
    await bench.search(0, **changed)
    assert bench.upstream.asked == 2


@pytest.mark.parametrize(
    "body",
    [
        {"score_threshold": 0.5},
        {"query": 7},
        {"query": [0.0, 0.0, 0.0]},
        {"query": {"recommend": {"positive": [1]}}},
        {"prefetch": [{"query": [1.0, 0.0, 0.0]}]},
    ],
    ids=str,
)
async def test_a_search_that_is_not_by_one_plain_vector_always_goes_to_the_database(body: dict[str, Any]):
    bench = Bench("qdrant", "serve")
    for _ in range(2):
        await bench.search(0, **body)
    assert (bench.upstream.asked, bench.heart.entries) == (2, 0)


async def test_where_a_collection_may_go_by_other_names_any_write_makes_all_lists_forgotten():
    bench = Bench("qdrant", "serve")
    await bench.search(0)
    assert (await bench.search(0)).source == SOURCE
    await bench.ask("PUT", "/collections/docs_v2/points", {"points": []})
    assert (await bench.search(0)).source == "first"


@pytest.mark.parametrize("headers", [[(b"cache-control", b"no-store")], [(b"x-understudy-cache", b"bypass")]])
async def test_who_wants_nothing_kept_and_nothing_that_was_gets_the_databases_own_word(
    headers: list[tuple[bytes, bytes]],
):
    bench = Bench("qdrant", "serve")
    await bench.search(0, headers=[*KEY, *headers])
    assert (await bench.search(0)).source == "first"
    assert (await bench.search(0, headers=[*KEY, *headers])).source == "first"
    assert (await bench.search(0)).source == SOURCE


async def test_a_write_that_passes_through_makes_its_collections_lists_forgotten():
    bench = Bench("qdrant", "serve", aliases=False)
    await bench.search(0)
    await bench.search(0, collection="others")
    await bench.ask("PUT", "/collections/docs/points", {"points": []})
    await asyncio.sleep(2)
    assert (await bench.search(0)).source == "first"
    assert (await bench.search(0, collection="others")).source == SOURCE
    await bench.ask("POST", "/collections/aliases", {"actions": []})
    assert (await bench.search(0, collection="others")).source == "first"


async def test_a_list_is_given_for_an_hour_and_for_a_day_where_the_database_is_down():
    bench = Bench("qdrant", "serve")
    await bench.search(0)
    await asyncio.sleep(3601)
    assert (await bench.search(20)).source == "first"
    bench.upstream.down = True
    await asyncio.sleep(86000)
    found = await bench.search(20)
    assert (found.source, found.tier, found.reason) == (SOURCE, "secondary", "first: reset")
    await asyncio.sleep(500)
    assert (await bench.search(20)).source == "extractive"


async def test_fallback_gives_a_neighbours_list_only_where_the_database_does_not_answer_and_shadow_never():
    for mode, source in (("fallback", SOURCE), ("shadow", "extractive")):
        bench = Bench("qdrant", mode)
        await bench.search(0)
        assert (await bench.search(0)).source == "first"
        bench.upstream.down = True
        assert (await bench.search(0)).source == source
        assert bench.heart.counts["would"] == 2


async def test_an_error_a_fallback_and_what_was_spoilt_on_purpose_are_not_kept():
    async def failing(_call: Call) -> Answer:
        return json_answer(404, {"status": {"error": "Not found"}})

    async def spoilt(call: Call) -> Answer:
        call.faults = ("garble",)
        return json_answer(200, {"result": [], "status": "ok", "time": 0.0})

    async def refusing(_call: Call) -> Answer:
        raise Refused("breaker")

    for upstream in (failing, spoilt, refusing):
        bench = Bench("qdrant", "serve", upstream=upstream)
        await bench.search(0)
        assert bench.heart.entries == 0


# --- answers -------------------------------------------------------------------------------------------------------


async def test_an_answer_is_given_only_once_its_kind_of_hit_has_proved_right_and_a_share_goes_on_being_asked():
    bench = Bench("openai-chat", "serve")
    for n in range(189):
        assert (await bench.chat(f"What is the fee of plan {n}?")).source == "first"
        assert (await bench.chat(f"what's the fee of plan {n}")).source == "first"
    served = await bench.chat("What is the fee of plan 7")
    assert (served.source, served.tier) == (SOURCE, SOURCE)
    assert json.loads(served.body)["choices"][0]["message"]["content"] == "About: what is the fee of plan 7."
    assert json.loads(served.body)["understudy"] == {"fallback": False, "source": SOURCE}
    assert "exact-0.98" in served.reason or "exact-0.9" in served.reason
    assert bench.upstream.asked == 378


async def test_the_sampled_share_is_asked_upstream_and_a_wrong_answer_shuts_its_kind_of_hit():
    bench = Bench("openai-chat", "serve", luck=0.04)
    for _ in range(189):
        bench.heart.permission.judged(Bucket("exact", 0.98), asyncio.get_running_loop().time(), same=True)
    await bench.chat("Who is the owner?")
    bench.upstream.says = lambda _question: "Somebody else entirely."
    assert (await bench.chat("who is the owner")).source == "first"
    assert bench.heart.counts["sampled"] == 1
    assert not bench.heart.permitted(Bucket("exact", 0.98), asyncio.get_running_loop().time())


async def test_two_hundred_near_misses_are_all_asked_upstream_though_every_kind_of_hit_is_permitted():
    bench = Bench("openai-chat", "serve")
    bench.permit()
    for pair in NEAR_MISSES:
        await bench.chat(pair.one)
        assert (await bench.chat(pair.other)).source == "first", pair
        bench.heart.answers.__init__()
    for pair in SAME_MEANING:
        await bench.chat(pair.one)
        await bench.chat(pair.other)
    assert bench.heart.counts["served"] >= len(SAME_MEANING) // 2


@pytest.mark.parametrize(
    "changed",
    [
        {"headers": OTHER_KEY},
        {"headers": []},
        {"headers": [*KEY, (b"openai-organization", b"o")]},
        {"model": "other"},
        {"temperature": 0.7},
        {"max_tokens": 5},
        {"before": [{"role": "system", "content": "Be long."}]},
        {"before": [{"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Hm."}]},
        {"text": "Passage 2.\n\nWhat is the fee?"},
    ],
    ids=str,
)
async def test_only_the_last_question_may_vary_and_nobody_gets_anothers_answer(changed: dict[str, Any]):
    bench = Bench("openai-chat", "serve")
    bench.permit()
    text = "Passage 1.\n\nWhat is the fee?"
    await bench.chat(text)
    assert (await bench.chat(changed.pop("text", text), **changed)).source == "first"
    served = await bench.chat("Passage 1.\n\nwhat's the fee", user="me")
    assert served.source == SOURCE
    assert (await bench.chat(text)).source == SOURCE


@pytest.mark.parametrize(
    "body", [{"tools": [{"type": "function"}]}, {"response_format": {"type": "json_object"}}, {"n": 2}, {"store": True}]
)
async def test_a_call_that_asks_for_more_than_a_text_is_none_alike(body: dict[str, Any]):
    bench = Bench("openai-chat", "serve")
    bench.permit()
    for _ in range(2):
        await bench.chat("What is the fee?", **body)
    assert (bench.upstream.asked, bench.heart.entries) == (2, 0)


@pytest.mark.parametrize("finish_reason", ["length", "content_filter", "tool_calls"])
async def test_an_answer_that_did_not_come_to_its_own_end_is_not_kept(finish_reason: str):
    for streams in (False, True):
        bench = Bench("openai-chat", "serve")
        bench.upstream.finish_reason, bench.upstream.streams = finish_reason, streams
        await bench.chat("What is the fee?")
        assert bench.heart.entries == 0


async def test_where_no_upstream_answers_a_proven_answer_goes_before_the_local_tier():
    bench = Bench("openai-chat", "fallback")
    await bench.chat("What is the fee?")
    bench.upstream.down = True
    assert (await bench.chat("what is the fee")).source == "extractive"
    bench.permit()
    answer = await bench.chat("what is the fee")
    assert (answer.source, answer.tier, answer.reason) == (SOURCE, "secondary", "first: reset")
    assert (await bench.chat("what was the fee")).source == "extractive"
    bench.upstream.down = False
    assert (await bench.chat("what is the fee")).source == "first"


async def test_shadow_learns_and_counts_and_gives_nothing():
    bench = Bench("openai-chat", "shadow")
    bench.permit()
    for text in ("What is the fee?", "what is the fee", "What is the fee"):
        assert (await bench.chat(text)).source == "first"
    bench.upstream.down = True
    assert (await bench.chat("what is the fee")).source == "extractive"
    assert bench.heart.counts == {"would": 2}
    verdicts = dict(bench.heart.permission.known())[Bucket("exact", 0.98)]
    assert (verdicts.same, verdicts.different) == (402, 0)


async def test_a_streamed_answer_is_kept_once_it_is_whole_and_given_as_a_stream_or_not():
    bench = Bench("openai-chat", "serve")
    bench.permit()
    bench.upstream.streams = True
    first = await bench.chat("What is the fee?", stream=True)
    whole = await bench.chat("what is the fee")
    assert json.loads(whole.body)["choices"][0]["message"]["content"] == "About: what is the fee."
    streamed = await bench.chat("what is the fee", stream=True)
    assert streamed.source == SOURCE
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    said = [DIALECTS["openai-chat"].said(each.body) for each in (first, streamed)]
    assert [each.text for each in said if each] == ["About: what is the fee."] * 2


async def test_a_stream_that_breaks_or_is_left_is_passed_on_and_not_kept():
    class Broken(Stream):
        def relay(self, sink: Any) -> None:
            sink.write(b'data: {"choices":[{"delta":{"content":"Hal"}}]}\n\n')
            self.finish("cut")
            sink.cut("reset")

    async def breaking(_call: Call) -> Answer:
        return Answer(200, [], stream=Broken())

    bench = Bench("openai-chat", "serve", upstream=breaking)
    assert b"Hal" in (await bench.chat("What is the fee?", stream=True)).body
    assert bench.heart.entries == 0


# --- what may be missing -------------------------------------------------------------------------------------------


async def refused(_texts: list[str], _until: float) -> np.ndarray:
    raise Refused("warming")


async def broken(_texts: list[str], _until: float) -> np.ndarray:
    raise ZeroDivisionError


async def slow(_texts: list[str], until: float) -> np.ndarray:
    await asyncio.sleep(until - asyncio.get_running_loop().time())
    raise TimeoutError


@pytest.mark.parametrize("embedder", [None, refused, broken, slow])
async def test_without_a_working_model_calls_go_upstream_and_nothing_false_is_remembered(embedder: Any):
    bench = Bench("openai-chat", "serve", embed=embedder)
    bench.permit()
    clock = asyncio.get_running_loop().time
    await bench.chat("What is the fee?")
    began = clock()
    assert (await bench.chat("what is the fee")).source == "first"
    assert clock() - began <= 0.05 + 1e-9
    await asyncio.sleep(10)
    assert bench.heart.counts == {"would": 1, "not_embedded": 2}
    verdicts = dict(bench.heart.permission.known())[Bucket("exact", 0.98)]
    assert (verdicts.same, verdicts.different) == (400, 0)


async def test_a_slow_model_is_waited_for_within_the_deadline_as_likeness_stands_inside_it():
    bench = Bench("openai-chat", "serve", embed=slow, embed_s_max=60.0)
    bench.permit()
    await bench.chat("What is the fee?")
    clock = asyncio.get_running_loop().time
    began = clock()
    assert (await bench.chat("what is the fee")).source == "first"
    # half of the built-in deadline; outside of it, it would have been the whole minute
    assert clock() - began == pytest.approx(settings.Deadline().total_s / 2)
    await asyncio.sleep(10)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"messages": 1}', b'{"messages": []}', b'{"messages": ["x"]}', b"\xff"]
)
async def test_a_body_that_cannot_be_read_is_the_upstreams_business(body: bytes):
    call = Call("generate", Request(b"POST", b"/v1/chat/completions", KEY, body), dialect="openai-chat", route="r")

    async def upstream(_call: Call) -> Answer:
        return json_answer(400, {"error": {"message": "no"}})

    bench = Bench("openai-chat", "serve", upstream=upstream)
    assert (await bench.parts.service(call)).status == 400


# --- in the stack --------------------------------------------------------------------------------------------------


@pytest.mark.interpreted
async def test_off_it_is_not_in_the_stack_at_all_nor_where_no_two_calls_are_alike():
    for dialect, mode in (
        ("openai-chat", "off"),
        ("qdrant", "off"),
        ("plain", "serve"),
        ("openai-embeddings", "serve"),
    ):
        route = Route(
            name="r",
            match=Match(prefix="/"),
            dialect=dialect,
            tiers=[UpstreamTier(name="first", url="http://a")],
            likeness=settings.Likeness(mode=mode),  # pyright: ignore[reportArgumentType]
        )
        world = World(asyncio.get_running_loop().time, asyncio.sleep, embed=embed)
        caches = Caches(clock=world.clock, wall=world.clock, dice=world.dice)
        parts = assemble(route, DIALECTS[dialect], world, lambda *_: local, caches=caches)
        assert parts.likeness is None
        assert "likened" not in str(_closures(parts.service))


def _closures(service: Any) -> list[str]:
    names = [service.__qualname__]
    for cell in service.__closure__ or ():
        inner = cell.cell_contents
        if callable(inner) and hasattr(inner, "__closure__"):
            names += _closures(inner)
    return names


async def test_a_reload_keeps_what_was_learnt_unless_somebody_else_is_asked_from_now_on():
    bench = Bench("openai-chat", "shadow")
    await bench.chat("What is the fee?")
    same = Bench("openai-chat", "serve", before=bench.parts)
    assert same.heart is bench.heart
    assert same.heart.rules.mode == "serve"
    other = Bench("openai-chat", "serve", before=bench.parts, url="http://elsewhere")
    assert other.heart.entries == 0


async def test_calls_that_ask_at_once_are_one_comparison_and_not_as_many():
    async def late(call: Call) -> Answer:
        await asyncio.sleep(1)
        return await upstream(call)

    upstream = Upstream()
    bench = Bench("openai-chat", "shadow", upstream=late)
    await bench.chat("What is the fee?")
    await asyncio.gather(*(bench.chat("what is the fee") for _ in range(20)))
    verdicts = dict(bench.heart.permission.known())[Bucket("exact", 0.98)]
    assert (verdicts.same, verdicts.different) == (1, 0)


async def test_an_answer_that_the_cache_still_has_goes_before_one_that_is_alike():
    bench = Bench("qdrant", "fallback", alone=True)
    await bench.search(0)
    bench.upstream.down = True
    body = json.dumps({"query": [1.0, 0.0, 0.0], "limit": 5}).encode()
    call = bench.dialect.read(Request(b"POST", b"/collections/docs/points/query", KEY, body))
    call.route, call.born = "r", asyncio.get_running_loop().time()
    assert (await bench.parts.service(call)).source == SOURCE
    call.kept = True
    with pytest.raises(Failed):
        # for the cache, which stands outside, to answer with what it has
        await bench.parts.service(call)
