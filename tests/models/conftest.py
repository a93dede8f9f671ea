"""What the tests of models/ share: one built model, one embedder, and questions and passages where they are present."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from understudy.models.embedder import Embedder, load
from understudy.models.weights import package_folder

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the embedded model is built once a session, or the one named by the environment."""
    kept = os.environ.get("UNDERSTUDY_TEST_MODELS")
    return Path(kept) if kept else tmp_path_factory.mktemp("all-MiniLM-L6-v2")


@pytest.fixture(scope="session")
def embedder(cache: Path) -> Embedder:
    """The embedded model as users get it: int8 on the CPU."""
    return load(None, cache, "cpu")


@pytest.fixture(scope="session")
def source() -> Path:
    """The folder of the installed package with the weights."""
    return package_folder()


@pytest.fixture(scope="session")
def squad() -> Callable[[str], list[dict[str, Any]]]:
    """Reads a file of the SQuAD development set, which lies beside the checkout and is no part of it; tests that use
    it are marked `beside`."""

    def read(name: str) -> list[dict[str, Any]]:
        path = REPOSITORY.parent / "shared" / "data" / "squad-dev" / name
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    return read
