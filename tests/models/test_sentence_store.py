"""Vectors of sentences are found again by their text, whole or not at all, and only in the space they are of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from understudy.models.sentence_store import HEADER, SentenceVectors, identity_of, key_of, write_sentences

SPACE = "839c68c43318c862"
TEXTS = [f"sentence {number}." for number in range(200)]


@pytest.fixture
def vectors() -> np.ndarray:
    rows = np.random.default_rng(3).normal(size=(len(TEXTS), 384)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def path(tmp_path: Path, vectors: np.ndarray) -> Path:
    write_sentences(tmp_path / "sentences" / "docs.vectors", SPACE, TEXTS, vectors)
    return tmp_path / "sentences" / "docs.vectors"


def test_a_sentence_is_found_by_its_text_and_one_that_is_not_there_is_said_so(path: Path, vectors: np.ndarray) -> None:
    kept = SentenceVectors.open_file(path, SPACE, 384)
    assert kept is not None
    assert len(kept) == len(TEXTS)
    found, there = kept.of(["unknown.", TEXTS[17], TEXTS[3], "sentence 17"])
    assert there.tolist() == [False, True, True, False]
    assert float(found[1] @ vectors[17]) > 0.9999
    assert float(found[2] @ vectors[3]) > 0.9999
    assert not found[0].any()
    assert kept.of([]).vectors.shape == (0, 384)


def test_halves_cost_less_than_a_thousandth_of_a_cosine(path: Path, vectors: np.ndarray) -> None:
    kept = SentenceVectors.open_file(path, SPACE, 384)
    assert kept is not None
    found = kept.of(TEXTS).vectors
    assert np.abs(found @ vectors[0] - vectors @ vectors[0]).max() < 1e-3


def test_another_models_space_a_flipped_bit_and_a_cut_file_are_no_file(path: Path) -> None:
    assert SentenceVectors.open_file(path, "another space 16", 384) is None
    assert SentenceVectors.open_file(path, SPACE, 768) is None
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for broken in (bytes(flipped), whole[:-1], whole[: HEADER.size - 1], b"", whole + b"\0"):
        path.write_bytes(broken)
        assert SentenceVectors.open_file(path, SPACE, 384) is None
    path.unlink()
    assert SentenceVectors.open_file(path, SPACE, 384) is None


def test_a_file_that_is_replaced_is_another_one_and_nothing_is_left_beside_it(path: Path, vectors: np.ndarray) -> None:
    kept = SentenceVectors.open_file(path, SPACE, 384)
    assert kept is not None
    assert kept.identity == identity_of(path)
    write_sentences(path, SPACE, [*TEXTS[:5], TEXTS[0]], vectors[:6])
    assert kept.identity != identity_of(path)
    # Who has it open goes on reading what it was.
    assert kept.of(TEXTS).there.all()
    again = SentenceVectors.open_file(path, SPACE, 384)
    assert again is not None
    assert len(again) == 5
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert identity_of(path.with_name("none")) == ()


def test_no_sentences_make_a_file_that_knows_none(tmp_path: Path) -> None:
    write_sentences(tmp_path / "empty", SPACE, [], np.zeros((0, 384), np.float32))
    kept = SentenceVectors.open_file(tmp_path / "empty", SPACE, 384)
    assert kept is not None
    assert not kept.of(["any"]).there.any()


def test_texts_that_are_no_unicode_have_keys_too() -> None:
    assert key_of("half a pair: \ud83d") != key_of("half a pair: ")
