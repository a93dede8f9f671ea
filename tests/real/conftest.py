"""What the tests with real clients share: a state folder whose model and knowledge were made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from understudy.indexes import knowledge_files
from understudy.models.embedder import load
from understudy.proxy.knowledge import build_knowledge, collections_folder, models_folder


@pytest.fixture(scope="session")
def made_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder as the first start leaves it; tests take copies."""
    state = tmp_path_factory.mktemp("state")
    build_knowledge(load(None, models_folder(state), "cpu"), knowledge_files(), collections_folder(state))
    return state


@pytest.fixture
def state(made_state: Path, tmp_path: Path) -> Path:
    """A state folder of the test's own."""
    return Path(shutil.copytree(made_state, tmp_path / "state"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty policy folder."""
    (tmp_path / "policies").mkdir()
    return tmp_path / "policies"
