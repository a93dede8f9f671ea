"""Every example of a policy loads, in an environment that says nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.settings.folders import SHIPPED, sound
from understudy.proxy.reading import read_folder

EXAMPLES = sorted((SHIPPED / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_loads_and_names_its_schema(path: Path, tmp_path: Path):
    for each in (path, *path.parent.glob("*.jsonl")):
        shutil.copy(each, tmp_path)
    assert sound(read_folder(tmp_path, {})).routes
    assert path.read_text().startswith("# yaml-language-server: $schema=../schema.json\n")


def test_there_are_examples():
    assert {"split", "shadow", "fault"} <= {path.stem for path in EXAMPLES}
