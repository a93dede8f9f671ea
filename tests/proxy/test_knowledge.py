"""When the collection `knowledge` is made anew, and when it is left alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from understudy.indexes.build import build
from understudy.indexes.library import Library
from understudy.models.embedder import Embedder
from understudy.models.space import Space
from understudy.proxy.knowledge import KNOWLEDGE, build_knowledge, keep_as_built_by_hand


class ToyEmbedder(Embedder):
    """Three dimensions out of the length of a text."""

    def __init__(self) -> None:
        self._space = Space("toy", 3)
        self.embedded: list[str] = []

    def embed(self, texts, kind="query"):  # pyright: ignore
        self.embedded += texts
        return np.array([[1.0, len(text) % 7, 2.0] for text in texts], np.float32)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "guide.md"
    path.write_text("# Guide\n\nA breaker opens after five failures in a row, and asks again after a pause.\n")
    return path


def texts(folder: Path) -> list[str]:
    points, _ = Library(folder).open(KNOWLEDGE).scroll(None, 100)
    return [point.text for point in points]


def test_it_is_made_once_and_again_when_the_files_have_changed(tmp_path: Path, source: Path):
    folder, embedder = tmp_path / "collections", ToyEmbedder()
    assert build_knowledge(embedder, [source], folder)
    assert not build_knowledge(embedder, [source], folder)
    source.write_text("# Guide\n\nAnother text altogether, about limits and who waits for a place.\n")
    assert build_knowledge(embedder, [source], folder)
    assert "limits" in texts(folder)[0]


def test_of_several_who_come_at_once_one_makes_it_and_the_others_find_it_made(tmp_path: Path, source: Path):
    folder, embedder = tmp_path / "collections", ToyEmbedder()
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: build_knowledge(embedder, [source], folder), range(4)))
    assert sorted(made) == [False, False, False, True]
    assert len(embedder.embedded) == len(texts(folder))


def test_it_is_made_again_when_it_was_lost(tmp_path: Path, source: Path):
    folder, embedder = tmp_path / "collections", ToyEmbedder()
    build_knowledge(embedder, [source], folder)
    (folder / KNOWLEDGE / "CURRENT").unlink()
    assert build_knowledge(embedder, [source], folder)


def test_what_an_operator_has_built_is_never_replaced(tmp_path: Path, source: Path):
    folder, embedder = tmp_path / "collections", ToyEmbedder()
    folder.mkdir()
    own = tmp_path / "own.md"
    own.write_text("# Own\n\nThe operator's own words, which no upgrade may lose, not even by accident.\n")
    build(folder, KNOWLEDGE, [own], embedder.embed, "toy", 3)
    keep_as_built_by_hand(folder)
    assert not build_knowledge(embedder, [source], folder)
    assert "operator's own words" in texts(folder)[0]
