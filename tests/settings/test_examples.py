"""Every example of a policy loads, in an environment that says nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.settings.folders import SHIPPED, sound
from understudy.proxy.settings.reading import read_folder

EXAMPLES = sorted((SHIPPED / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_loads_and_names_its_schema(path: Path, tmp_path: Path):
    for each in (path, *path.parent.glob("*.jsonl")):
        shutil.copy(each, tmp_path)
    assert sound(read_folder(tmp_path, {})).routes
    assert path.read_text().startswith("# yaml-language-server: $schema=../schema.json\n")


PATHS = {
    "openai-chat": {"/v1/chat/completions", "/v1/chat"},
    "openai-completions": {"/v1/completions"},
    "openai-embeddings": {"/v1/embeddings"},
    "anthropic": {"/v1/messages"},
    "ollama-chat": {"/api/chat", "/api/generate"},
    "ollama-embed": {"/api/embed", "/api/embeddings"},
    "cohere-chat": {"/v2/chat"},
    "cohere-embed": {"/v2/embed"},
    "azure-openai-chat": {"/openai/deployments/chat"},
    "azure-openai-embeddings": {"/openai/deployments/embed"},
}
"""What a service of a dialect has; what a route claims of it goes on to it."""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_sends_its_upstreams_no_path_that_they_do_not_have(path: Path, tmp_path: Path):
    for each in (path, *path.parent.glob("*.jsonl")):
        shutil.copy(each, tmp_path)
    for route in sound(read_folder(tmp_path, {})).routes:
        for match in route.claims:
            claimed = match.path if match.path is not None else match.prefix
            if not match.strip and route.dialect in PATHS:
                assert claimed in PATHS[route.dialect], f"{route.name} sends {claimed} on"


def test_there_are_examples():
    assert {"split", "shadow", "fault"} <= {path.stem for path in EXAMPLES}
