"""Vectors that we made of a point's text beside those it came with: shown to nobody, and as true as the text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from understudy.indexes.library import Library
from understudy.indexes.points import Point, Vector
from understudy.indexes.writes import PutPayload, PutVectors, Upsert, Which, Write

OURS = "~ours"


def unit(place: int, dimensions: int = 4) -> Vector:
    vector = np.zeros(dimensions, np.float32)
    vector[place] = 1
    return vector


def point(number: int, text: str = "", place: int = 0) -> Point:
    return Point(number, unit(place), {"n": number}, text)


def library(folder: Path, *writes: Write) -> Library:
    made = Library(folder)
    made.write("docs", list(writes), space="theirs")
    return made


def derived(number: int, text: str, place: int) -> PutVectors:
    return PutVectors((Point(number, text=text, named={OURS: unit(place, 3)}),))


def test_they_are_searched_by_their_name_and_shown_nowhere(tmp_path: Path):
    held = library(tmp_path, Upsert((point(1, "apples"), point(2, "pears"), point(3))))
    held.write("docs", [derived(1, "apples", 0), derived(2, "pears", 1)], space="ours")
    docs = held.get("docs")
    assert docs is not None
    assert [hit.id for hit in docs.search(unit(1, 3), 5, using=OURS)] == [2, 1]
    assert [hit.id for hit in docs.search_fused(unit(1, 3), "apples", 3, using=OURS)] == [1, 2, 3]
    assert docs.beside("ours") == (OURS, 2 / 3)
    assert docs.beside("theirs") == ("", 0.0)
    assert list(docs.shapes) == [""]
    assert (docs.space, docs.dimensions) == ("theirs", 4)
    shown = [*docs.get([1, 2], with_vectors=True), *docs.scroll(None, 5, with_vectors=True)[0]]
    assert not any(each.named for each in shown)
    assert not any(hit.named for hit in docs.search(unit(1, 3), 5, using=OURS, with_vectors=True))
    assert all(each.vector is not None for each in shown)


def test_those_that_lack_one_are_told_page_by_page_frozen_or_written_since(tmp_path: Path):
    held = library(tmp_path, Upsert(tuple(point(n, f"text {n}") for n in range(5))))
    docs = held.get("docs")
    assert docs is not None
    page, count = docs.view().lacking(OURS, 2)
    assert ([each.id for each in page], count) == ([0, 1], 5)
    held.write("docs", [derived(n, f"text {n}", 0) for n in (0, 3)], space="ours")
    assert [each.id for each in docs.view().lacking(OURS, 9)[0]] == [1, 2, 4]
    assert [each.id for each in docs.view().lacking(OURS, 1, 1)[0]] == [2]
    held.write("docs", [Upsert((point(9, "new"),))])
    assert [each.id for each in docs.view().lacking(OURS, 9)[0]] == [1, 2, 4, 9]
    assert docs.view().held(OURS) == 2


def test_they_stay_while_the_text_does_and_go_with_it(tmp_path: Path):
    held = library(tmp_path, Upsert((point(1, "apples"),)))
    held.write("docs", [derived(1, "apples", 0)], space="ours")
    docs = held.get("docs")
    assert docs is not None
    held.write("docs", [PutPayload(Which(ids=(1,)), {"n": 7})])
    held.write("docs", [Upsert((point(1, "apples", place=2),))])
    assert docs.view().held(OURS) == 1, "another vector or payload says nothing of the text"
    held.write("docs", [Upsert((point(1, "oranges"),))])
    assert docs.view().held(OURS) == 0
    assert Library(tmp_path).open("docs").view().held(OURS) == 0


def test_one_made_of_words_that_were_replaced_meanwhile_is_not_kept(tmp_path: Path):
    held = library(tmp_path, Upsert((point(1, "oranges"),)))
    held.write("docs", [derived(1, "apples", 0)], space="ours")
    docs = held.get("docs")
    assert docs is not None
    assert docs.view().held(OURS) == 0
    assert docs.get([1])[0].text == "oranges"


def test_they_are_there_again_after_a_restart(tmp_path: Path):
    held = library(tmp_path, Upsert((point(1, "apples"),)))
    held.write("docs", [derived(1, "apples", 0)], space="ours")
    again = Library(tmp_path).open("docs")
    assert again.beside("ours") == (OURS, 1.0)
    assert [hit.id for hit in again.search(unit(0, 3), 5, using=OURS)] == [1]
