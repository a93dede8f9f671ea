"""Maps into copies without texts: fitted from what passes, judged, used while they hold; otherwise off, with a why."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit.two_spaces import (
    COLLECTION,
    FAR,
    FAR_DIMENSIONS,
    NEAR,
    NEAR_DIMENSIONS,
    Floats,
    TwoSpaces,
    ids_of,
    kin,
    near,
    topical,
)
from understudy.indexes.points import Point
from understudy.indexes.writes import Upsert
from understudy.models.bridge import AGREEMENT_MIN, PAIRS_MIN, SANITY_MIN
from understudy.models.space import Space
from understudy.proxy.reports.bridges import bridge_metrics
from understudy.proxy.spaces.bridge_store import PASSED_FILES_MAX
from understudy.proxy.spaces.bridging import LOOK_S, PASS_ON_S, QUESTIONS_WAITING_MAX, REFIT_S, WAITING_MAX, Bridges

DOCUMENTS = topical(1_300)
QUESTIONS = [" ".join(text.split()[:8]) for text in DOCUMENTS]
OWN = Space(NEAR, NEAR_DIMENSIONS)
BATCH = 50


class Desk:
    """The two legs, with a copy that has no texts, and the maps of one process; its clock moves as it sleeps."""

    def __init__(self, folder: Path, *, gathers: bool = True, **more: Any) -> None:
        self.folder = folder
        options: dict[str, Any] = {"collection_space": FAR, "far": kin, "worded": False} | more
        self.two = TwoSpaces(folder / "collections", DOCUMENTS, **options)
        self.now_s = 0.0
        self.slept_s: list[float] = []
        self.outage = False
        self.bridges = self.made(gathers=gathers)
        self.two.knowing.bridges = self.bridges
        self.two.provenance.pairing = self.bridges.offer

    def made(self, *, gathers: bool = True) -> Bridges:
        return Bridges(
            self.two.knowing,
            0.1,
            lambda: self.outage,
            self.folder / "bridges",
            gathers=gathers,
            clock=lambda: self.now_s,
            wall=lambda: 1e9,
            dice=random.Random(3).random,
            sleep=self._sleep,
        )

    async def _sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        await asyncio.sleep(0)

    async def passes(self, texts: Sequence[str], size: int) -> None:
        """So many texts to a call are embedded for the application, and read when nobody waits."""
        for at in range(0, len(texts), size):
            answer = await self.two.embed(*texts[at : at + size])
            assert answer.status == 200
            self.two.provenance.drain(60.0)
            await self.bridges.once()

    async def ingested(self, count: int = len(DOCUMENTS)) -> None:
        await self.bridges.once()
        await self.passes(DOCUMENTS[:count], BATCH)

    @property
    def span(self) -> dict[str, Any]:
        (told,) = self.bridges.told["spaces"].values()
        return told

    async def found(self, question: str) -> tuple[list[int], str]:
        """What a search by the question's vector, as it is given now, finds, and what its answer says of spaces."""
        answer = await self.two.search(await self.two.vector(question))
        assert answer.status == 200, answer.body
        return ids_of(answer), dict(answer.headers).get(b"x-understudy-space", b"").decode()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    made.two.provenance.learn(FAR, "m", FAR_DIMENSIONS)
    yield made
    assert made.two.handles_at_primary == 0


async def recall(desk: Desk, asked: range = range(0, 1_300, 26)) -> float:
    return float(np.mean([n in (await desk.found(QUESTIONS[n]))[0] for n in asked]))


async def test_a_map_fitted_to_what_passed_finds_in_a_copy_without_texts_nearly_what_true_vectors_find(desk: Desk):
    await desk.ingested()
    await desk.passes(QUESTIONS[:200], 1)
    alive = await recall(desk)
    desk.two.embedder_up = desk.two.database_up = False
    dark = await recall(desk)
    assert dark >= 0.9 * alive > 0.5
    _, said = await desk.found(QUESTIONS[7])
    standing = desk.span["collections"][COLLECTION]
    assert standing["in_use"]
    assert standing["agreement"] >= AGREEMENT_MIN
    assert standing["sanity"] >= SANITY_MIN
    assert said == (
        f"bridge; of={NEAR}; for={FAR}; version={desk.span['version']}; agreement={standing['agreement']:.2f}"
    )
    assert desk.two.provenance.counts["searched_bridged"] > 50
    # the database may be up: a handle is answered here all the same
    desk.two.database_up = True
    assert (await desk.found(QUESTIONS[7]))[1] == said


async def test_before_there_are_a_thousand_pairs_nothing_is_mapped_and_it_says_how_many_there_are(desk: Desk):
    await desk.ingested(600)
    assert desk.span["reason"] == f"600 pairs are known, {PAIRS_MIN} are needed"
    desk.two.embedder_up = False
    answer = await desk.two.search(await desk.two.vector(QUESTIONS[0]))
    # by words alone, and the copy has none
    assert ids_of(answer) == []
    assert "searched_bridged" not in desk.two.provenance.counts


def strange(text: str) -> Floats:
    """A space that has nothing to do with the local model's: every text somewhere by chance."""
    rows = np.random.default_rng(abs(hash(("far", text))) % 2**32).normal(size=FAR_DIMENSIONS)
    return (rows / np.linalg.norm(rows)).astype(np.float32)


async def test_a_map_that_finds_other_points_than_true_vectors_is_not_used_and_says_so(tmp_path: Path):
    desk = Desk(tmp_path, far=strange)
    desk.two.provenance.learn(FAR, "m", FAR_DIMENSIONS)
    await desk.ingested()
    standing = desk.span["collections"][COLLECTION]
    assert not standing["in_use"]
    assert "of what true ones find, 0.65 are needed" in standing["reason"]
    desk.two.embedder_up = False
    assert (await desk.found(QUESTIONS[0])) == ([], "")


async def test_while_every_copy_has_its_texts_nothing_is_gathered(tmp_path: Path):
    desk = Desk(tmp_path, worded=True)
    await desk.ingested(200)
    assert desk.bridges.told["spaces"] == {}
    assert desk.bridges.told["reason"] == "every local collection has its texts: none needs a map"


async def test_a_copy_that_gets_its_texts_is_searched_by_them_again(desk: Desk):
    await desk.ingested()
    assert desk.span["collections"][COLLECTION]["in_use"]
    points = tuple(Point(n, kin(text), {}, text) for n, text in enumerate(DOCUMENTS))
    desk.two.knowing.shelf().write(COLLECTION, [Upsert(points)], space=FAR)  # pyright: ignore[reportAttributeAccessIssue]
    desk.now_s += REFIT_S
    await desk.passes(QUESTIONS[:1], 1)
    await desk.bridges.once()
    assert desk.bridges.wanted == frozenset()


async def test_most_of_the_pairs_are_documents_however_many_questions_pass(desk: Desk):
    await desk.bridges.once()
    await desk.passes(QUESTIONS[:300], 1)
    assert desk.span["pairs"] == 0, "without documents there is no use for questions"
    await desk.passes(DOCUMENTS[:600], BATCH)
    await desk.passes(QUESTIONS[:1_000], 1)
    assert desk.span["pairs"] == 600 + 480
    assert desk.span["documents_share"] >= 0.5


async def test_a_restart_loses_neither_pairs_nor_map_and_another_worker_reads_the_same_one(desk: Desk):
    await desk.ingested()
    before = desk.span
    await desk.bridges.close()
    again = desk.made()
    await again.once()
    (told,) = again.told["spaces"].values()
    assert (told["version"], told["collections"], told["pairs"]) == (
        before["version"],
        before["collections"],
        before["pairs"],
    )
    neighbour = desk.made(gathers=False)
    await neighbour.once()
    crossing = neighbour.over(desk.two.knowing.shelf().get(COLLECTION), OWN)
    assert crossing is not None
    mine = desk.bridges.over(desk.two.knowing.shelf().get(COLLECTION), OWN)
    assert mine is not None
    assert crossing(near("t1w1").tolist()) == mine(near("t1w1").tolist())


async def test_what_passes_another_worker_is_gathered_too_and_most_of_it_are_documents(desk: Desk):
    await desk.bridges.once()
    neighbour = desk.made(gathers=False)
    await neighbour.once()
    # everything goes by the neighbour: the one that gathers sees no call at all
    desk.two.provenance.pairing = neighbour.offer
    for at in range(0, len(DOCUMENTS), BATCH):
        assert (await desk.two.embed(*DOCUMENTS[at : at + BATCH])).status == 200
        desk.two.provenance.drain(60.0)
        desk.now_s += PASS_ON_S
        await neighbour.once()
        await desk.bridges.once()
    for question in QUESTIONS[: QUESTIONS_WAITING_MAX + 20]:
        await desk.two.embed(question)
        desk.two.provenance.drain(60.0)
    assert neighbour.told["waiting"] == QUESTIONS_WAITING_MAX
    # it stops before it has passed them on
    await neighbour.close()
    desk.now_s += PASS_ON_S
    await desk.bridges.once()
    assert desk.span["pairs"] == len(DOCUMENTS) + QUESTIONS_WAITING_MAX
    assert desk.span["collections"][COLLECTION]["in_use"]
    assert list((desk.folder / "bridges").glob("*.passed")) == []


async def test_what_nobody_gathers_is_bounded_and_what_rotted_on_the_way_is_passed_over(desk: Desk):
    neighbour = desk.made(gathers=False)
    await neighbour.once()
    desk.two.provenance.pairing = neighbour.offer
    for at in range(PASSED_FILES_MAX + 2):
        await desk.two.embed(*DOCUMENTS[at * BATCH : (at + 1) * BATCH])
        desk.two.provenance.drain(60.0)
        desk.now_s += PASS_ON_S
        await neighbour.once()
    passed = sorted((desk.folder / "bridges").glob("*.passed"))
    assert len(passed) == PASSED_FILES_MAX
    assert neighbour.told["passed_over"] == 2 * BATCH
    passed[0].write_bytes(b"rotten")
    await desk.bridges.once()
    desk.now_s += PASS_ON_S
    await desk.bridges.once()
    assert desk.span["pairs"] == (PASSED_FILES_MAX - 1) * BATCH
    assert list((desk.folder / "bridges").glob("*.passed")) == []


async def test_a_map_that_rotted_on_disk_is_passed_over_and_fitted_anew(desk: Desk):
    await desk.ingested()
    await desk.bridges.close()
    (path,) = (desk.folder / "bridges").glob("*.map.npz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    again = desk.made()
    await again.once()
    (told,) = again.told["spaces"].values()
    assert told["collections"][COLLECTION]["in_use"], "the pairs are there, and it is made of them at once"
    (pairs,) = (desk.folder / "bridges").glob("*.pairs.npz")
    for each in (path, pairs):
        each.write_bytes(b"rotten")
    last = desk.made()
    await last.once()
    assert last.over(desk.two.knowing.shelf().get(COLLECTION), OWN) is None


async def test_it_takes_no_more_than_its_share_nothing_during_an_outage_and_little_memory(desk: Desk):
    await desk.bridges.once()
    desk.outage = True
    for at in range(0, 1_300, BATCH):
        await desk.two.embed(*DOCUMENTS[at : at + BATCH])
        desk.two.provenance.drain(60.0)
    await desk.bridges.once()
    assert desk.span["pairs"] == 0
    assert desk.bridges.told["waiting"] == WAITING_MAX
    assert desk.bridges.told["passed_over"] == 1_300 - WAITING_MAX
    desk.outage = False
    ticks = iter(range(10_000))
    desk.bridges._clock = lambda: float(next(ticks))  # pyright: ignore[reportPrivateUsage]
    await desk.bridges.once()
    assert desk.span["pairs"] == WAITING_MAX
    assert desk.slept_s == pytest.approx([9.0] * len(desk.slept_s)), "a second's work, nine of rest"


async def test_a_map_is_refitted_only_when_there_is_something_new_and_an_hour_has_passed(desk: Desk):
    await desk.ingested()
    version = desk.span["version"]
    await desk.passes(QUESTIONS[:100], 1)
    assert desk.span["version"] == version
    desk.now_s += REFIT_S
    await desk.bridges.once()
    assert desk.span["collections"][COLLECTION]["in_use"]
    at = desk.span["fitted_at"]
    desk.bridges._wall = lambda: 2e9  # pyright: ignore[reportPrivateUsage]
    desk.now_s += REFIT_S
    await desk.bridges.once()
    assert desk.span["fitted_at"] == at, "nothing was new"


async def test_a_copy_that_comes_later_is_judged_without_waiting_for_the_hour(desk: Desk):
    await desk.ingested()
    points = tuple(Point(n, kin(text)) for n, text in enumerate(DOCUMENTS[:700]))
    shelf: Any = desk.two.knowing.shelf()
    shelf.write("later", [Upsert(points)], space=FAR)
    shelf.names = lambda: [COLLECTION, "later"]
    library, one = shelf.write.__self__, shelf.get
    shelf.get = lambda name: library.get(name) if name == "later" else one(name)
    desk.now_s += LOOK_S
    await desk.bridges.once()
    assert desk.span["collections"]["later"]["in_use"]


async def test_metrics_say_how_each_map_stands(desk: Desk):
    await desk.ingested()
    metrics = bridge_metrics(desk.bridges.told)
    samples = {(one.name, *one.labels.values()): one.value for each in metrics for one in each.samples}
    space = f"{FAR} {FAR_DIMENSIONS}"
    assert samples["understudy_bridge_pairs", space] == len(DOCUMENTS)
    assert samples["understudy_bridge_in_use", space, COLLECTION] == 1.0
    assert samples["understudy_bridge_agreement", space, COLLECTION] >= AGREEMENT_MIN
    json.dumps(desk.bridges.told)
