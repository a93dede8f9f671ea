"""A primary that goes on answering, and answers wrongly, is found out; one that was written to is not accused."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from understudy.policies.compare import Pair as Answers
from understudy.policies.drift import PAIRS_MIN, Stand
from understudy.policies.service import Answer, Call, Failed, Request, Service
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.reports.watches import merged_watch, watch_metrics, watch_status, watch_text
from understudy.proxy.settings.settings import LocalTier, Match, Route, UpstreamTier
from understudy.proxy.settings.watch import Watch
from understudy.proxy.stack import RouteParts, World, assemble
from understudy.proxy.watching.watching import GOLDEN_TEXTS, LocalCopies, Watching, golden_request

JSON = [(b"content-type", b"application/json")]


def vector_of(text: str, model: int) -> list[float]:
    dice = random.Random(f"{model} {text}")
    numbers = [dice.gauss(0, 1) for _ in range(16)]
    length = sum(number * number for number in numbers) ** 0.5
    return [number / length for number in numbers]


class Embedder:
    """An OpenAI-compatible service whose model can be changed behind its name."""

    def __init__(self) -> None:
        self.model = 1
        self.asked: list[Request] = []
        self.down = False

    async def __call__(self, call: Call) -> Answer:
        self.asked.append(call.request)
        if self.down:
            raise Failed("reset")
        texts = json.loads(call.request.body)["input"]
        texts = [texts] if isinstance(texts, str) else texts
        data = [{"index": at, "embedding": vector_of(text, self.model)} for at, text in enumerate(texts)]
        return Answer(200, JSON, json.dumps({"data": data, "model": "m"}).encode())


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def embedding_call(text: str = "hello", **fields: Any) -> Call:
    body = json.dumps({"model": "m", "input": text, **fields}).encode()
    headers = [(b"authorization", b"Bearer s3cret"), (b"content-type", b"application/json")]
    return Call("embed", Request(b"POST", b"/v1/embeddings", headers, body), dialect="openai-embeddings")


def watching_embeddings(embedder: Embedder, clock: Clock, store: Path | None = None) -> Watching:
    return Watching(
        "embeddings", DIALECTS["openai-embeddings"], Watch(), embedder, None, None, clock=clock, store=store
    )


async def passed(watching: Watching, embedder: Embedder) -> None:
    call = embedding_call()
    watching.compared(Answers(call, await embedder(call), None, 0.0))


async def looked(watching: Watching, clock: Clock, after_s: float = 60.0) -> None:
    clock.now += after_s
    await watching.look()


async def test_a_model_that_was_changed_behind_its_name_is_noticed_within_a_minute_and_a_quarter():
    embedder, clock = Embedder(), Clock()
    watching = watching_embeddings(embedder, clock)
    await looked(watching, clock)
    assert not embedder.asked, "nothing is asked before it is known how the application asks"
    await passed(watching, embedder)
    for _ in range(3):
        await looked(watching, clock)
    assert watching.verdict.word == "healthy"
    assert watching.checks == {("embeddings", "learnt"): 1, ("embeddings", "well"): 2}
    assert json.loads(embedder.asked[-1].body) == {"model": "m", "input": list(GOLDEN_TEXTS)}
    assert embedder.asked[-1].header(b"authorization") == b"Bearer s3cret"

    embedder.model = 2
    await looked(watching, clock)
    assert (watching.verdict.word, watching.verdict.reasons) == ("degraded", ("embedding_drift",))
    await looked(watching, clock, 10.0)
    assert watching.verdict.word == "unhealthy"
    assert watching.silent == {"embedding_drift": 2}

    embedder.model = 1
    for _ in range(3):
        await looked(watching, clock)
    assert watching.verdict.word == "healthy"


async def test_a_model_that_was_changed_while_we_were_away_is_noticed_too_and_no_credentials_are_kept(tmp_path: Path):
    embedder, clock, store = Embedder(), Clock(), tmp_path / "watch" / "embeddings.json"
    watching = watching_embeddings(embedder, clock, store)
    await passed(watching, embedder)
    await looked(watching, clock)
    assert b"s3cret" not in store.read_bytes()
    embedder.model = 2
    again = watching_embeddings(embedder, clock, store)
    await passed(again, embedder)
    await looked(again, clock)
    assert again.verdict.reasons == ("embedding_drift",)


async def test_goldens_on_disk_that_are_rotten_are_learnt_anew(tmp_path: Path):
    embedder, clock, store = Embedder(), Clock(), tmp_path / "embeddings.json"
    store.write_text('{"m": [["x"]]}')
    watching = watching_embeddings(embedder, clock, store)
    await passed(watching, embedder)
    await looked(watching, clock)
    await looked(watching, clock)
    assert watching.verdict.word == "healthy"


async def test_an_embedder_that_does_not_answer_is_no_silent_degradation():
    embedder, clock = Embedder(), Clock()
    watching = watching_embeddings(embedder, clock)
    await passed(watching, embedder)
    await looked(watching, clock)
    embedder.down = True
    for _ in range(5):
        await looked(watching, clock)
    assert watching.verdict.word == "unknown", "it was learnt, and never checked"
    assert watching.checks["embeddings", "unanswered"] == 5
    assert not watching.silent


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"model": "m", "input": "x", "dimensions": 256}, "input"),
        ({"model": "m", "input": ["x", "y"]}, "input"),
        ({"inputs": "x", "truncate": True}, "inputs"),
        ({"model": "m", "texts": ["x"], "input_type": "search_query"}, "texts"),
    ],
)
def test_a_golden_is_asked_as_the_application_asks(body: dict[str, Any], field: str):
    made = golden_request(Request(b"POST", b"/x", [(b"content-length", b"9")], json.dumps(body).encode()))
    assert made is not None
    key, request = made
    assert json.loads(request.body) == {**body, field: list(GOLDEN_TEXTS)}
    assert request.header(b"content-length") is None
    assert request.header(b"x-understudy-shadow") == b"1"
    other = golden_request(Request(b"POST", b"/x", [], json.dumps({**body, "model": "another"}).encode()))
    assert other is not None
    assert other[0] != key


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b'{"model": "m"}', b"[" * 5000])
def test_a_request_without_texts_makes_no_golden(body: bytes):
    assert golden_request(Request(b"POST", b"/x", [], body)) is None


# --- searches --------------------------------------------------------------------------------------------------------


class Points:
    """A database of numbered points: a search for [n] finds what is nearest to n."""

    def __init__(self, ids: Iterable[int]) -> None:
        self.ids = set(ids)

    async def __call__(self, call: Call) -> Answer:
        wanted = json.loads(call.request.body)["query"][0]
        near = sorted(self.ids, key=lambda point: (abs(point - wanted), point))[:10]
        points = [{"id": point, "score": 1 / (1 + abs(point - wanted)), "version": 0} for point in near]
        return Answer(200, JSON, json.dumps({"result": {"points": points}, "status": "ok", "time": 0}).encode())


class Copied:
    def __init__(self, points: Points) -> None:
        self.points = points
        self.now = Stand()

    def stand(self, called: str) -> Stand:
        assert called == "docs"
        return self.now

    def has(self, called: str, point: str) -> bool:
        assert called == "docs"
        return int(point) in self.points.ids


class Desk:
    """A watched route for retrieval, its database, and the copy of it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.live, self.copy = Points(range(1000)), Points(range(1000))
        self.copies = Copied(self.copy)
        dialect, rules = DIALECTS["qdrant"], Watch(goldens_s=60.0)
        self.watching = Watching("r", dialect, rules, self.live, self.copy, self.copies, clock=self.clock)

    def call(self, wanted: float) -> Call:
        body = json.dumps({"query": [wanted], "limit": 10}).encode()
        call = Call("retrieve", Request(b"POST", b"/collections/docs/points/query", JSON, body), dialect="qdrant")
        call.born = self.clock.now
        return call

    async def search(self, count: int) -> None:
        for at in range(count):
            self.clock.now += 0.1
            call = self.call(37.0 * at % 1000)
            self.watching.compared(Answers(call, await self.live(call), await self.copy(call), 0.0))


async def test_lost_points_are_found_by_what_callers_search_and_by_goldens_while_nobody_does():
    desk = Desk()
    await desk.search(PAIRS_MIN)
    assert desk.watching.verdict.word == "healthy"
    desk.live.ids = {point for point in desk.live.ids if random.Random(point).random() > 0.3}
    await desk.search(PAIRS_MIN)
    assert desk.watching.verdict.word == "degraded"
    # from here on nobody searches
    await looked(desk.watching, desk.clock)
    assert desk.watching.verdict.word == "unhealthy"
    assert desk.watching.silent["retrieval_overlap"] == 2
    assert desk.watching.checks["goldens", "wrong"] == 1
    desk.live.ids = set(range(1000))
    for _ in range(3):
        await looked(desk.watching, desk.clock)
    assert desk.watching.verdict.word == "healthy"


async def test_points_that_were_written_elsewhere_and_writes_under_way_are_no_corruption():
    desk = Desk()
    desk.live.ids |= {point + 5000 for point in range(300)}
    desk.live.ids |= {-point - 1 for point in range(20)}
    await desk.search(2 * PAIRS_MIN)
    assert desk.watching.verdict.word == "healthy"
    # half of everything is deleted, through here: the copy follows in a moment
    desk.live.ids = set(range(0, 1000, 2))
    desk.copies.now = Stand(is_behind=True)
    await desk.search(PAIRS_MIN)
    await looked(desk.watching, desk.clock)
    desk.copy.ids = set(desk.live.ids)
    desk.copies.now = Stand(changed_at=desk.clock.now)
    await desk.search(PAIRS_MIN)
    await looked(desk.watching, desk.clock)
    assert desk.watching.verdict.word == "healthy"
    assert not desk.watching.silent
    assert desk.watching.heart.fates["moving"] == PAIRS_MIN
    assert desk.watching.checks["goldens", "moving"] > 0


async def test_what_nobody_asked_for_well_or_nobody_could_read_is_not_compared():
    desk = Desk()
    call = desk.call(1.0)
    live, copy = await desk.live(call), await desk.copy(call)
    desk.watching.compared(Answers(call, Answer(404, JSON, b"{}"), copy, 0.0))
    desk.watching.compared(Answers(call, live, None, 0.0, "no_collection"))
    desk.watching.compared(Answers(call, Answer(200, JSON, b"<html>"), copy, 0.0))
    assert desk.watching.checks == {("pairs", "unanswered"): 1, ("pairs", "unreadable"): 1}
    assert desk.watching.heart.fates["compared"] == 0


def test_a_copy_that_changes_is_seen_to_change_and_one_that_is_not_there_is_behind():
    class Collection:
        generation = "g-1"

        def get(self, ids: list[int | str]) -> list[int | str]:
            return [each for each in ids if each in (7, "a")]

    held: dict[str, Collection] = {"ours": Collection()}
    clock = Clock()
    copies = LocalCopies(lambda: held, {"theirs": "ours"}, clock)
    assert copies.stand("theirs") == Stand(1000.0)
    clock.now = 1010.0
    assert copies.stand("theirs") == Stand(1000.0)
    held["ours"].generation = "g-2"
    assert copies.stand("theirs") == Stand(1010.0)
    assert copies.stand("other").is_behind
    assert [copies.has("theirs", point) for point in ("7", "a", "8")] == [True, True, False]


# --- in the stack ----------------------------------------------------------------------------------------------------


def search_call(wanted: float) -> Call:
    body = json.dumps({"query": [wanted], "limit": 10}).encode()
    call = DIALECTS["qdrant"].read(Request(b"POST", b"/collections/docs/points/query", JSON, body))
    call.born = asyncio.get_running_loop().time()
    return call


def stack(live: Service, copy: Service, before: RouteParts | None = None, **watch: Any) -> RouteParts:
    route = Route(
        name="retrieval",
        match=Match(prefix="/"),
        dialect="qdrant",
        space="toy",
        tiers=[UpstreamTier(name="db", url="http://a"), LocalTier()],
        watch=Watch(**watch),
    )
    made: dict[str, Service] = {"db": live, "local": copy}
    world = World(clock=asyncio.get_running_loop().time, sleep=asyncio.sleep, dice=random.Random(1).random)
    return assemble(route, DIALECTS["qdrant"], world, lambda _route, tier, _endpoint: made[tier.name], before=before)


async def test_callers_get_the_primarys_answers_and_the_watch_looks_at_them_later():
    live, copy = Points(range(1000)), Points(range(1000))
    parts = stack(live, copy, share=1.0)
    watch = parts.watch
    assert watch is not None

    async def searches(count: int) -> None:
        for at in range(count):
            answer = await parts.service(search_call(11.0 * at % 1000))
            assert answer.tier == "primary"
            await asyncio.sleep(0.01)

    await searches(2 * PAIRS_MIN)
    assert watch.verdict.word == "healthy"
    copy.ids = set(range(500, 1500))
    await searches(PAIRS_MIN)
    assert watch.verdict.word == "degraded"
    told = watch_status(parts, asyncio.get_running_loop().time())
    assert told["watch"]["state"] == "degraded"
    assert told["watch"]["component"] == "retrieval"
    assert "retrieval degraded" in next(watch_text(told))
    assert merged_watch([told, {"watch": {**told["watch"], "state": "unhealthy"}}])["watch"]["state"] == "unhealthy"
    families = {family.name: family for family in watch_metrics([parts])}
    states = {sample.labels["state"]: sample.value for sample in families["understudy_watch_state"].samples}
    assert states == {"healthy": 0, "degraded": 1, "unhealthy": 0, "unknown": 0}
    again = stack(live, copy, before=parts, share=1.0)
    assert again.watch is not None
    assert again.watch.verdict.word == "degraded", "a reload forgets nothing"
    parts.close()
    again.close()


async def test_a_watch_costs_its_callers_nothing_when_the_local_tier_breaks():
    async def broken(_call: Call) -> Answer:
        raise RuntimeError("a bug")

    parts = stack(Points(range(10)), broken, share=1.0)
    assert (await parts.service(search_call(1.0))).status == 200
    await asyncio.sleep(0.01)
    assert parts.watch is not None
    assert parts.watch.checks == {("pairs", "unanswered"): 1}
    parts.close()
