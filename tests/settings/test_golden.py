"""Every golden file says what it said, and none says what is secret."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.settings.golden import Golden

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.txt"))
SECRET = "geheim"


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_policy_folder_says_exactly_this(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    golden = Golden.read(path)
    monkeypatch.chdir(tmp_path)
    reading = golden.reading()
    said = golden.said(reading)
    if os.environ.get("UNDERSTUDY_GOLDEN") == "write":
        golden.write(said)
        return
    assert said == golden.expected
    assert (reading.settings is None) == bool(reading.faults)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_no_golden_file_repeats_a_secret_or_what_a_variable_holds(path: Path):
    assert SECRET not in Golden.read(path).expected


def test_there_are_golden_files_of_every_kind_of_fault():
    assert len(GOLDEN) >= 20
