"""`understudy llm`, run by hand: it ends with a reason where there is no model."""

from __future__ import annotations

from pathlib import Path

import pytest

from understudy.proxy import cli


def test_a_folder_without_a_model_ends_the_command_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "nothing-in-it"
    folder.mkdir()
    assert cli.main(["llm", str(folder), "--listen", "127.0.0.1:0"]) == cli.NOT_WELL
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("understudy: ")
    assert "nothing-in-it" in said or "genai" in said
