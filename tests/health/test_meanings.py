"""Services that go on answering, and answer wrongly, are found out within a minute, and noise never is."""

from __future__ import annotations

import asyncio
import json
import random
from array import array
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.kit.acts import answer
from tests.kit.fake_upstream import FakeUpstream, Heard, Wire
from tests.kit.unwell import Ward
from tests.mirroring.live import Live, Playing, point
from understudy.indexes.points import Hit
from understudy.policies.drift import embedding_fault
from understudy.policies.fingerprint import TEXTS, Fingerprint
from understudy.policies.health import Health
from understudy.proxy.control.probing import keep_measuring
from understudy.proxy.health.searches import told_apart

pytestmark = pytest.mark.virtual_clock(io_grace_s=0.002)

SILENT_S = 60.0
EMBEDDINGS = """
routes:
  - name: embeddings
    match: {{path: /v1/embeddings}}
    dialect: openai-embeddings
    space: s
    cache: {{enabled: false}}
    tiers:
      - {{name: first, kind: upstream, url: "{first}", headers: {{authorization: Bearer k}}}}
      - {{name: second, kind: upstream, url: "{second}", headers: {{authorization: Bearer k}}}}
"""
ASKED = json.dumps({"model": "m", "input": ["hello"]}).encode()


class Embedder:
    """An OpenAI-compatible embedder whose vectors can be made wrong."""

    def __init__(self) -> None:
        self.model = 1
        self.scale = 1.0
        self.dimensions = 32

    async def __call__(self, wire: Wire, heard: Heard) -> None:
        texts = heard.json()["input"]
        data = [{"index": at, "embedding": self.vector(text)} for at, text in enumerate(texts)]
        await answer(body={"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 1}})(wire, heard)

    def vector(self, text: str) -> list[float]:
        dice = random.Random(f"{self.model} {text}")
        numbers = [dice.gauss(0, 1) for _ in range(self.dimensions)]
        length = sum(number * number for number in numbers) ** 0.5
        return [self.scale * number / length for number in numbers]


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"model": 2}, "embedding_drift"),
        ({"scale": 3.0}, "embedding_norm"),
        ({"dimensions": 16}, "embedding_dimension"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
async def test_a_model_that_changes_behind_its_name_is_passed_over_within_a_minute(
    tmp_path: Path, wrong: dict[str, Any], fault: str, seed: int
):
    embedder, other, dice = Embedder(), Embedder(), random.Random(seed)
    async with FakeUpstream() as first, FakeUpstream() as second:
        first.always(embedder)
        second.always(other)
        async with Ward(tmp_path, EMBEDDINGS.format(first=first.url, second=second.url)) as ward:
            measuring = asyncio.get_running_loop().create_task(keep_measuring(ward.sidecar))
            name = f"embedding_service:{first.host_port}"
            assert (await ward.call("POST", "/v1/embeddings", ASKED)).status == 200
            one = ward.sidecar.fingerprints.endpoints["embeddings", "first", "first"]
            await ward.until(lambda: one.heart.state == "trusted")
            await asyncio.sleep(dice.uniform(0.0, 50.0))
            for key, value in wrong.items():
                setattr(embedder, key, value)
            took_s = await ward.until(lambda: ward.tier("embeddings") == "secondary")
            assert took_s <= SILENT_S
            found = ward.sidecar.health.diagnosis(name)
            assert (found.word, found.reason, found.level) == ("unhealthy", fault, "semantic")
            got = await ward.call("POST", "/v1/embeddings", ASKED)
            assert got.header(b"x-understudy-reason") == b"first: unhealthy"
            assert got.json()["data"][0]["embedding"] == pytest.approx(other.vector("hello"))
            for key, value in vars(Embedder()).items():
                setattr(embedder, key, value)
            assert (await ward.sidecar.health.check(name)).passed
            await ward.until(lambda: ward.tier("embeddings") == "primary", SILENT_S)
            measuring.cancel()
            await asyncio.gather(measuring, return_exceptions=True)
    assert any((event.family, event.kind) == ("failure", fault) for event in ward.events)


def float16(vectors: list[array[float]], dice: random.Random) -> list[array[float]]:
    """What another batch, machine or half the bits make of vectors: noise of a thousandth."""
    return [array("f", [number + dice.gauss(0, 1e-3) * abs(number) for number in vector]) for vector in vectors]


def test_ten_thousand_checks_with_the_noise_of_half_the_bits_are_no_false_alarm():
    dice = random.Random(7)
    first: list[array[float]] = []
    for text in TEXTS:
        rng = random.Random(text)
        numbers = [rng.gauss(0, 1) for _ in range(48)]
        length = sum(number * number for number in numbers) ** 0.5
        first.append(array("f", [number / length for number in numbers]))
    heart = Fingerprint()
    heart.measured(first, None, 0.999)
    assert {heart.measured(float16(first, dice), first, 0.999) for _ in range(10_000)} == {"same"}
    assert embedding_fault([array("f", [2 * x for x in vector]) for vector in first], first) == "embedding_norm"


# --- points ----------------------------------------------------------------------------------------------------------

DOCS = """
routes:
  - name: docs
    match: {{prefix: /collections}}
    dialect: qdrant
    cache: {{enabled: false}}
    tiers:
      - {{name: first, kind: upstream, url: "{first}"}}
      - {{name: second, kind: upstream, url: "{second}"}}
"""


FOUND = {"result": {"collections": []}, "status": "ok", "time": 0.0}


def mirrored(play: Playing) -> Any:
    """What a sidecar has of mirrors, with this one among them."""
    keeper = SimpleNamespace(walker=SimpleNamespace(source=play.live))
    kept = SimpleNamespace(mirror=play.mirror, keeper=keeper, tier=SimpleNamespace(name="first"))
    return SimpleNamespace(running={"docs": kept})


@asynccontextmanager
async def mirrored_database(tmp_path: Path, live: Live) -> AsyncIterator[tuple[Ward, Playing, str]]:
    """A sidecar whose first database is mirrored, once its copy is whole; and the name of that component."""
    async with (
        FakeUpstream(answer(body=FOUND)) as first,
        FakeUpstream(answer(body=FOUND)) as second,
        Ward(tmp_path, DOCS.format(first=first.url, second=second.url)) as ward,
        # compared seldom, so that it is never the comparison that finds out
        Playing(tmp_path, live, check_s=3600.0) as play,
    ):
        await play.kept(2)
        assert play.same()
        ward.sidecar.meanings._mirrors = lambda: mirrored(play)
        yield ward, play, f"vector_database:{first.host_port}"


async def test_a_database_that_loses_points_is_passed_over_within_a_minute_and_ingest_is_no_loss(tmp_path: Path):
    live = Live()
    live.make("docs", 200)
    async with mirrored_database(tmp_path, live) as (ward, _play, name):
        points = live.stock.copies["docs"].points
        for number in range(5000, 5100):
            # somebody else has written these, which the copy does not know yet
            points[number] = point(number)
        await asyncio.sleep(120.0)
        assert ward.word(name) == "healthy"
        for number in range(5000, 5100):
            del points[number]
        gone = sorted(points, key=str)[:60]
        kept = {each: points.pop(each) for each in gone}
        took_s = await ward.until(lambda: ward.tier("docs") == "secondary")
        assert took_s <= SILENT_S
        found = ward.sidecar.health.diagnosis(name)
        assert found[1:4] == ("unhealthy", "retrieval_lost: 140 points of 200 in docs", "semantic")
        assert (await ward.call()).header(b"x-understudy-reason") == b"first: unhealthy"
        points.update(kept)
        for _ in range(3):
            assert (await ward.sidecar.health.check(name)).component == name
        await ward.until(lambda: ward.tier("docs") == "primary", SILENT_S)
    assert any((event.family, event.kind) == ("failure", "retrieval_lost") for event in ward.events)


async def test_a_database_that_keeps_none_of_what_it_says_yes_to_is_passed_over_within_a_minute(tmp_path: Path):
    live = Live()
    live.make("docs", 200)
    async with mirrored_database(tmp_path, live) as (ward, play, _name):
        await asyncio.sleep(30.0)
        points = live.stock.copies["docs"].points
        before = dict(points)
        for number in range(300, 330):
            assert (await play.upsert(point(number))).status == 200
        await play.settled()
        # the index that it answers from is the old one
        points.clear()
        points.update(before)
        took_s = await ward.until(lambda: ward.tier("docs") == "secondary")
        assert took_s <= SILENT_S


@pytest.mark.parametrize(("wrong", "seed"), [("gone", 0), ("stale", 1), ("altered", 2)])
async def test_a_database_that_no_longer_finds_what_its_copy_finds_is_passed_over_within_a_minute(
    tmp_path: Path, wrong: str, seed: int
):
    live, dice = Live(), random.Random(seed)
    live.make("docs", 400)
    async with mirrored_database(tmp_path, live) as (ward, play, name):
        points = live.stock.copies["docs"].points
        for number in range(1000, 1060):
            # ingest, as the tap sees it, and as it does not: what is expected is learnt again, what is more is no fault
            await play.upsert(point(number))
            points[number + 5000] = point(number + 5000)
            await asyncio.sleep(dice.uniform(0.0, 0.8))
        await play.settled()
        # a look without writes on their way, after which it is known how the database searches
        await asyncio.sleep(100.0 + dice.uniform(0.0, 45.0))
        assert ward.word(name) == "healthy"
        before, some = dict(points), dice.sample(sorted(points, key=str), int(0.3 * len(points)))
        if wrong == "gone":
            # as many others are there instead, so that a count says nothing
            for number, each in enumerate(some):
                del points[each]
                points[20_000 + number] = point(20_000 + number)
        elif wrong == "stale":
            live.indexed = {key: one for key, one in points.items() if key not in some}
        else:
            points.update(
                {each: replace(points[each], vector=point(90_000 + at).vector) for at, each in enumerate(some)}
            )
        took_s = await ward.until(lambda: ward.tier("docs") == "secondary")
        assert took_s <= SILENT_S
        found = ward.sidecar.health.diagnosis(name)
        kind = {"gone": "retrieval_lost", "stale": "retrieval_index", "altered": "retrieval_altered"}[wrong]
        assert (found.word, found.reason.partition(":")[0], found.level) == ("unhealthy", kind, "semantic")
        points.clear()
        points.update(before)
        live.indexed = None
        for _ in range(3):
            await ward.sidecar.health.check(name)
        await ward.until(lambda: ward.tier("docs") == "primary", SILENT_S)
    assert any((event.family, event.kind) == ("failure", kind) for event in ward.events)


async def test_a_database_that_never_found_all_that_its_copy_finds_searches_in_its_own_way(tmp_path: Path):
    live = Live()
    live.make("docs", 400)
    points = live.stock.copies["docs"].points
    live.indexed = {key: one for key, one in points.items() if int(key) % 3}
    async with mirrored_database(tmp_path, live) as (ward, _play, name):
        await asyncio.sleep(200.0)
        assert ward.word(name) == "healthy"


async def test_a_mirror_that_is_no_more_takes_back_what_was_said_of_its_database(tmp_path: Path):
    live = Live()
    live.make("docs", 200)
    async with mirrored_database(tmp_path, live) as (ward, _play, _name):
        points = live.stock.copies["docs"].points
        for each in list(points)[:60]:
            del points[each]
        await ward.until(lambda: ward.tier("docs") == "secondary")
        ward.sidecar.meanings._mirrors = lambda: None
        await ward.until(lambda: ward.tier("docs") == "primary", SILENT_S)


def test_points_that_are_as_near_as_each_other_are_no_test_of_an_order():
    def hits(*scores: float) -> list[Hit]:
        return [Hit(at, score, {}, "", "") for at, score in enumerate(scores)]

    assert told_apart(hits(0.9, 0.8, 0.7, 0.6)) == ("0", "1", "2")
    assert told_apart(hits(0.9, 0.8, 0.8, 0.6)) == ("0",)
    assert told_apart(hits(1.0, 1.0, 0.8)) == ()
    assert told_apart(hits(*(1.0 - at / 50 for at in range(40)))) == tuple(map(str, range(10)))
    assert told_apart([]) == ()


# --- our own parts ---------------------------------------------------------------------------------------------------


async def test_our_own_parts_are_components_that_lower_no_tier_by_themselves(tmp_path: Path):
    policies = """
routes:
  - name: docs
    match: {prefix: /collections}
    dialect: qdrant
    tiers: [{kind: local}]
"""
    async with Ward(tmp_path, "local: {model: no-such-model, knowledge: false}\n" + policies) as ward:
        await ward.until(lambda: ward.word("local_model") == "unhealthy", 30.0)
        await ward.until(lambda: ward.word("local_index") == "healthy", 30.0)
        assert ward.tier() == "primary"
        knowing = ward.sidecar.knowing
        knowing.refresh = dict
        knowing.faults = {"handbook": "failed: a checksum differs"}
        await ward.until(lambda: ward.word("local_index") == "unhealthy", 5.0)
        assert "handbook" in ward.sidecar.health.diagnosis("local_index:collections").reason


# --- a quiet month -------------------------------------------------------------------------------------------------

MONTH_S = 30 * 86_400.0
LOST_SHARE = 1e-4
"""Of checks, so many come to nothing though all is well: a packet lost, a pause of a collector."""


def quiet_month(seed: int) -> Iterator[tuple[float, str]]:
    """The words of one service, checked every two seconds, through a month in which nothing is wrong."""
    dice = random.Random(seed)
    health, now = Health("vector_database:q:6333", 0.0), 0.0
    while now < MONTH_S:
        # nearly all checks pass, and passing ones change nothing: on to the next that is lost
        now += 2.0 * max(1, int(dice.expovariate(LOST_SHARE)))
        for _ in range(3):
            health.checked(now, "protocol", "")
        lost = True
        while lost:
            yield now, health.checked(now, "protocol", "protocol: no_answer" if lost else "")
            now += 0.25
            lost = dice.random() < LOST_SHARE
        for _ in range(8):
            yield now, health.checked(now, "protocol", "")
            now += 2.0


def test_in_a_quiet_month_no_service_is_ever_found_unhealthy():
    seen = [word for seed in range(20) for _, word in quiet_month(seed)]
    assert "degraded" in seen, "there was something to be mistaken about"
    assert "unhealthy" not in seen
    assert seen.count("degraded") < len(seen)
