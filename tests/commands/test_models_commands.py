"""`understudy models …`: what is known, adding one, what is wrong with one, and what embedding costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.models.conftest import cache as cache
from tests.models.conftest import embedder as embedder
from tests.models.test_manifest import write
from understudy.models.embedder import Embedder
from understudy.proxy.cli import main
from understudy.proxy.commands.model_bench import found_share, overlap, speed


def test_a_model_is_added_listed_verified_and_refused_once_it_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = ["--state", str(tmp_path / "state")]
    (tmp_path / "tiny").mkdir()
    assert main(["models", "add", str(write(tmp_path / "tiny")), *state]) == 0
    assert "policies name it so:  local: {model: tiny}" in capsys.readouterr().out
    assert main(["models", "list", *state]) == 0
    listed = capsys.readouterr().out
    assert "all-MiniLM-L6-v2: 384 d" in listed
    assert "tiny: 4 d, space org/tiny" in listed
    assert main(["models", "verify", "--model", "tiny", *state]) == 0
    assert "fp32: well" in capsys.readouterr().out
    (tmp_path / "state" / "models" / "tiny" / "tokenizer.json").write_text("{}")
    assert main(["models", "verify", "--model", "tiny", *state]) == 1
    assert "tokenizer.json: its SHA-256" in capsys.readouterr().out


def test_what_cannot_be_added_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "add", str(tmp_path), "--state", str(tmp_path / "state")]) == 1
    assert "lacks config.json" in capsys.readouterr().err


def test_a_nearest_row_counts_within_k_and_two_rankings_overlap_by_what_they_share() -> None:
    known = np.eye(4, dtype=np.float32)
    assert found_share(known, known, k=1) == 1.0
    assert found_share(known[::-1].copy(), known, k=1) == 0.0
    scores = np.array([[4.0, 3.0, 2.0, 1.0]], np.float32)
    assert overlap(scores, scores[:, ::-1].copy(), k=2) == 0.0
    assert overlap(scores, np.array([[4.0, 1.0, 2.0, 3.0]], np.float32), k=2) == 0.5


def test_speed_tells_questions_and_passages_apart(embedder: Embedder) -> None:
    questions, passages = speed(embedder, 0.0)
    assert questions.startswith("  one question: ")
    assert "passages/s" in passages
