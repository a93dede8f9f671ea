"""Sentences of the quoted collections are embedded beforehand, once, and are found again after a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.tiers.toy import DIMENSIONS, SPACE, TEXTS, ToyEmbedder, toy_knowing, toy_library, toy_model, vector_of
from understudy.indexes.points import Point
from understudy.indexes.snapshot import write_snapshot
from understudy.proxy.tiers.knowing import Knowing
from understudy.proxy.tiers.sentences import AGAIN_S, Sentences, keep_sentences


class Place:
    """A toy world, a folder of kept vectors, and a clock that is moved by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.embedder = ToyEmbedder()
        self.knowing = toy_knowing(folder / "collections", self.embedder)
        self.now_s = 0.0
        self.sentences = self.opened()

    def opened(self) -> Sentences:
        return Sentences(self.folder / "sentences", clock=lambda: self.now_s)

    async def round(self, *names: str) -> int:
        """One round over `names`; how many sentences were embedded in it."""
        before = sum(count for count, _ in self.embedder.asked)
        await self.sentences.keep(self.knowing, names or ["docs"])
        return sum(count for count, _ in self.embedder.asked) - before


async def test_every_sentence_is_embedded_once_and_found_by_its_text(tmp_path: Path):
    place = Place(tmp_path)
    assert await place.round() == len(TEXTS) + 1
    assert place.sentences.count == len(TEXTS) + 1
    vectors, there = place.sentences.of([TEXTS[2], "Never heard of."], DIMENSIONS)
    assert there.tolist() == [True, False]
    assert float(vectors[0] @ vector_of(TEXTS[2])) > 0.999
    assert {kind for _, kind in place.embedder.asked} == {"document"}
    place.now_s += AGAIN_S
    assert await place.round() == 0


async def test_after_a_restart_nothing_is_embedded_again(tmp_path: Path):
    place = Place(tmp_path)
    await place.round()
    place.sentences = place.opened()
    assert place.sentences.count == 0
    assert await place.round() == 0
    assert place.sentences.count == len(TEXTS) + 1


async def test_of_a_new_generation_only_what_is_new_is_embedded(tmp_path: Path):
    place = Place(tmp_path)
    await place.round()
    texts = [*TEXTS.values(), "Lamps are sold in pairs. They are blue."]
    points = [Point(n, vector_of(text), {"text": text}, text, f"{n}.md") for n, text in enumerate(texts)]
    write_snapshot(tmp_path / "collections" / "docs", points, space=SPACE, dimensions=DIMENSIONS)
    place.knowing.refresh()
    # A collection that is written to all the time is gone through once a minute.
    assert await place.round() == 0
    place.now_s += AGAIN_S
    assert await place.round() == 2
    assert place.sentences.of(["They are blue."], DIMENSIONS)[1].all()


async def test_a_damaged_file_is_made_anew_and_one_of_another_space_is_not_used(tmp_path: Path):
    place = Place(tmp_path)
    await place.round()
    (file,) = (tmp_path / "sentences").glob("*.vectors")
    file.write_bytes(file.read_bytes()[:-3])
    place.sentences = place.opened()
    assert await place.round() == len(TEXTS) + 1
    place.sentences = place.opened()
    place.embedder = ToyEmbedder("another-space")
    place.knowing.give_model(toy_model(place.embedder))
    assert await place.round() == len(TEXTS) + 1


async def test_another_worker_embeds_and_this_one_reads_what_it_wrote(tmp_path: Path):
    place = Place(tmp_path)
    other = place.opened()
    begun = asyncio.Event()
    batcher: Any = place.knowing.model().batcher
    embed = batcher.embed

    async def slowly(texts: list[str], **more: Any) -> Any:
        begun.set()
        await asyncio.sleep(30)
        return await embed(texts, **more)

    batcher.embed = slowly
    mine = asyncio.ensure_future(place.sentences.keep(place.knowing, ["docs"]))
    await begun.wait()
    await other.keep(place.knowing, ["docs"])
    assert (mine.done(), other.count) == (False, 0)
    await mine
    await other.keep(place.knowing, ["docs"])
    assert other.count == len(TEXTS) + 1
    assert sum(count for count, _ in place.embedder.asked) == len(TEXTS) + 1


async def test_without_a_model_a_collection_or_a_name_nothing_is_kept_and_nothing_breaks(tmp_path: Path):
    place = Place(tmp_path)
    assert await place.round("absent") == 0
    await place.round()
    assert await place.round("absent") == 0
    assert place.sentences.count == 0
    bare = Knowing()
    bare.give_shelf(toy_library(tmp_path / "more"))
    await place.sentences.keep(bare, ["docs"])
    assert place.sentences.of([TEXTS[1]], DIMENSIONS)[1].tolist() == [False]


async def test_a_full_queue_is_waited_for(tmp_path: Path):
    place = Place(tmp_path)
    place.knowing.give_model(toy_model(place.embedder, queue_texts_max=0))
    working = asyncio.ensure_future(place.sentences.keep(place.knowing, ["docs"]))
    await asyncio.sleep(60)
    assert not working.done()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def test_it_goes_round_for_as_long_as_the_process_lives(tmp_path: Path):
    place = Place(tmp_path)
    names: list[str] = []
    going: Any = asyncio.ensure_future(keep_sentences(place.sentences, place.knowing, lambda: names))
    await asyncio.sleep(1)
    assert place.sentences.count == 0
    names.append("docs")
    await asyncio.sleep(60)
    assert place.sentences.count == len(TEXTS) + 1
    going.cancel()
    await asyncio.gather(going, return_exceptions=True)
