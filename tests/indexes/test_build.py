"""Building: files become a collection, known texts are not embedded again, and rot is found."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from understudy.indexes.build import build, verify
from understudy.indexes.faults import BadFile, WrongDimension
from understudy.indexes.library import Library
from understudy.indexes.vectors import Matrix

DIMENSIONS = 24


class Embedder:
    """Hashes words into a vector: texts that share words are near each other. It notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Matrix:
        self.asked.extend(texts)
        vectors = np.zeros((len(texts), DIMENSIONS), np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                vectors[row, hashlib.sha256(word.encode()).digest()[0] % DIMENSIONS] += 1
        return vectors


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "kb"
    folder.mkdir()
    (folder / "a.md").write_text("# Breakers\n\nThey open after failures.\n\n# Budgets\n\nRetries are kept in one.\n")
    (folder / "b.jsonl").write_text('{"id": 7, "text": "Hedges cut the tail.", "lang": "en"}\n')
    return folder


def test_files_become_a_collection_that_finds_them(files: Path, tmp_path: Path):
    embed = Embedder()
    seen: list[tuple[int, int]] = []
    report = build(
        tmp_path / "lib",
        "kb",
        [files],
        embed,
        "hash",
        DIMENSIONS,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (report.passages, report.embedded, report.reused, report.generation) == (3, 3, 0, "g-000001")
    assert report.wall_s > 0
    assert (seen[0], seen[-1]) == ((0, 3), (3, 3))
    assert "Breakers\nThey open after failures." in embed.asked
    collection = Library(tmp_path / "lib").open("kb")
    assert (collection.space, collection.dimensions, collection.count) == ("hash", DIMENSIONS, 3)
    (hit,) = collection.search(embed(["hedges cut the tail."])[0], 1)
    assert (hit.id, hit.text, hit.source) == (7, "Hedges cut the tail.", "kb/b.jsonl")
    assert hit.payload == {"text": hit.text, "lang": "en", "source": "kb/b.jsonl"}
    (hit,) = collection.search_text("budget", 1)
    assert hit.payload == {"text": hit.text, "title": "Budgets", "source": "kb/a.md", "position": 1}
    assert verify(tmp_path / "lib", "kb") == []


def test_only_new_texts_are_embedded_and_deleted_ones_are_gone(files: Path, tmp_path: Path):
    first, second = Embedder(), Embedder()
    build(tmp_path / "lib", "kb", [files], first, "hash", DIMENSIONS)
    (files / "a.md").write_text("# Breakers\n\nThey open after failures.\n\n# Limits\n\nEverything has one.\n")
    report = build(tmp_path / "lib", "kb", [files], second, "hash", DIMENSIONS)
    assert (report.embedded, report.reused) == (1, 2)
    assert second.asked == ["Limits\nEverything has one."]
    collection = Library(tmp_path / "lib").open("kb")
    assert collection.search_text("retries", 5) == []
    assert collection.search_text("limits", 5) != []


def test_the_same_text_twice_is_embedded_once(tmp_path: Path):
    path = tmp_path / "twice.jsonl"
    path.write_text('{"text": "Same."}\n{"text": "Same."}\n')
    embed = Embedder()
    report = build(tmp_path / "lib", "kb", [path], embed, "hash", DIMENSIONS)
    assert (report.passages, report.embedded, report.reused, embed.asked) == (2, 1, 1, ["Same."])


@pytest.mark.parametrize("space", ["hash", "other"])
def test_vectors_of_another_space_are_never_reused(space: str, files: Path, tmp_path: Path):
    build(tmp_path / "lib", "kb", [files], Embedder(), "hash", DIMENSIONS)
    report = build(tmp_path / "lib", "kb", [files], Embedder(), space, DIMENSIONS)
    assert report.embedded == (0 if space == "hash" else 3)


def test_a_failed_build_leaves_the_collection_as_it_was(files: Path, tmp_path: Path):
    build(tmp_path / "lib", "kb", [files], Embedder(), "hash", DIMENSIONS)
    (files / "new.md").write_text("Something new.")
    with pytest.raises(WrongDimension, match="embedder"):
        build(tmp_path / "lib", "kb", [files], lambda texts: np.ones((len(texts), 3), np.float32), "hash", DIMENSIONS)
    (files / "b.jsonl").write_text("{")
    with pytest.raises(BadFile, match=r"b\.jsonl:1: "):
        build(tmp_path / "lib", "kb", [files], Embedder(), "hash", DIMENSIONS)
    assert Library(tmp_path / "lib").open("kb").count == 3


def test_nothing_at_all_is_a_collection_too(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    report = build(tmp_path / "lib", "kb", [tmp_path / "empty"], Embedder(), "hash", DIMENSIONS)
    assert report.passages == 0
    assert Library(tmp_path / "lib").open("kb").search(np.ones(DIMENSIONS), 3) == []


def test_verify_names_what_is_wrong_and_whether_it_matters(files: Path, tmp_path: Path):
    library = tmp_path / "lib"
    assert [(one.what, one.fatal) for one in verify(library, "kb")] == [("there is no snapshot", True)]
    for _ in range(2):
        build(library, "kb", [files], Embedder(), "hash", DIMENSIONS)
    assert verify(library, "kb") == []
    (library / "kb" / "g-000002" / "vectors.npy").write_bytes(b"rot")
    (library / "kb" / "g-000001" / "points.sqlite").unlink()
    (library / "kb" / "CURRENT").write_text("nonsense")
    found = [(one.generation, one.what.split(":")[0], one.fatal) for one in verify(library, "kb")]
    assert found == [
        ("", "CURRENT is missing or names no generation", False),
        ("g-000002", "vectors.npy", False),
        ("g-000001", "points.sqlite", True),
    ]
