"""The mirror of a real Chroma: filled by its own client, copied, followed through writes, and asked once it is dead."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import chromadb
import numpy as np
import pytest

from tests.kit.chroma_service import ChromaService
from tests.kit.processes import COMES_S_MAX, Sidecar, eventually, points_in
from tests.real.test_chroma import COUNT, IDS, VECTORS, answers, filled, same
from understudy.indexes.library import Library
from understudy.indexes.points import Point
from understudy.proxy.knowledge import collections_folder

pytestmark = pytest.mark.real

POLICIES = """
server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}"}
local: {knowledge: false}
defaults:
  breaker: {enabled: false}
  retry: {base_s: 0.001}
routes:
  - name: chroma
    match: {prefix: /api/v2}
    dialect: chroma
    space: toy-space
    cache: {enabled: false}
    mirror: {settle_s: 0.2, check_s: 1, points_per_s: 100000}
    tiers:
      - {kind: upstream, name: chroma, url: "${CHROMA}"}
      - {kind: local}
"""
BARE = ["without-documents", "without-metadata", "without-words"]
"""In the order of their insertion, which is Chroma's, and in that of their ids, which is the copy's."""
SPACES = {"docs": "cosine", "flat": "l2", "dots": "ip"}


class Deployed(NamedTuple):
    sidecar: Sidecar
    chroma: ChromaService

    def client(self) -> Any:
        return chromadb.HttpClient(host="127.0.0.1", port=self.sidecar.port)

    def direct(self) -> Any:
        return chromadb.HttpClient(host="127.0.0.1", port=self.chroma.port)

    def copies(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.sidecar.admin_url + "/status", timeout=30) as answer:
            return json.load(answer)["routes"][0].get("mirror", {}).get("copies", {})

    def in_step(self, name: str, count: int) -> bool:
        """Whether the copy is whole, with so many points: one that was copied before it was filled is whole, too."""
        copy = self.copies().get(name, {})
        if copy.get("state") != "whole" or copy["points_behind"]:
            return False
        return points_in(self.sidecar.state, name) == count

    def copied(self, **counts: int) -> None:
        eventually(lambda: all(self.in_step(name, count) for name, count in counts.items()))


@pytest.fixture
def deployed(made_state: Path, tmp_path: Path, folder: Path) -> Iterator[Deployed]:
    (folder / "p.yaml").write_text(POLICIES)
    with ChromaService(tmp_path / "chroma") as chroma:
        env, models = {"CHROMA": chroma.url}, made_state / "models"
        with Sidecar(folder, tmp_path / "state", env=env, models=models) as sidecar:
            yield Deployed(sidecar, chroma)


def stored(client: Any, name: str) -> Any:
    """More records than a page has, and some without words, without metadata, and without either."""
    collection = filled(client, name, SPACES[name])
    rows = VECTORS[:3] + 0.5
    collection.add(ids=BARE[:1], embeddings=rows[:1], metadatas=[{"only": "that"}])
    collection.add(ids=BARE[1:2], embeddings=rows[1:2], documents=["Words alone"])
    collection.add(ids=BARE[2:], embeddings=rows[2:])
    return collection


def whole(collection: Any) -> dict[str, Any]:
    """Every record as a client sees it, by id."""
    told = collection.get(include=["embeddings", "documents", "metadatas"], limit=10_000)
    columns = (told["embeddings"], told["documents"], told["metadatas"])
    return {
        each: (np.asarray(numbers, np.float32).tolist(), document, metadata)
        for each, numbers, document, metadata in zip(told["ids"], *columns, strict=True)
    }


def alike(some: dict[str, Any], others: dict[str, Any]) -> bool:
    """Equal, but for the last digit of a number that was stored by its direction and its length."""
    return some.keys() == others.keys() and all(
        one[1:] == others[each][1:] and np.allclose(one[0], others[each][0], rtol=1e-5, atol=1e-6)
        for each, one in some.items()
    )


def on_disk(state: Path, name: str) -> dict[str, Any]:
    """Every record of the copy, by id."""
    points, following = Library(collections_folder(state)).open(name).scroll(None, 10_000, with_vectors=True)
    assert following is None
    return {str(point.id): _shown(point) for point in points}


def _shown(point: Point) -> Any:
    assert point.vector is not None
    return point.vector.tolist(), point.text or None, dict(point.payload) or None


def test_a_dead_chroma_is_answered_for_with_the_records_that_were_copied(deployed: Deployed):
    direct = deployed.direct()
    for name in SPACES:
        stored(direct, name)
    deployed.copied(**dict.fromkeys(SPACES, COUNT + len(BARE)))
    held = {name: deployed.client().get_collection(name) for name in SPACES}
    before = {name: (answers(collection), whole(collection)) for name, collection in held.items()}
    deployed.chroma.kill()
    for name, collection in held.items():
        told, records = before[name]
        assert len(records) == COUNT + len(BARE)
        assert alike(whole(collection), records)
        for one, other in zip(told, answers(collection), strict=True):
            same(one, other)


def test_writes_through_the_sidecar_are_in_the_copy_once_chroma_is_dead(deployed: Deployed):
    stored(deployed.direct(), "docs")
    deployed.copied(docs=COUNT + len(BARE))
    client = deployed.client()
    collection = client.get_collection("docs", embedding_function=None)
    collection.add(ids=["new"], embeddings=VECTORS[5:6] - 0.5, documents=["A new one"], metadatas=[{"n": 99}])
    collection.upsert(ids=IDS[7:8], embeddings=VECTORS[8:9] - 0.25, documents=["Seven, anew"])
    collection.update(ids=IDS[9:10], metadatas=[{"n": 1000}])
    collection.delete(ids=IDS[20:30])
    born = client.create_collection("born-here", metadata={"hnsw:space": "cosine"}, embedding_function=None)
    born.add(ids=["a", "b"], embeddings=VECTORS[:2], documents=["one", "two"])
    records = whole(collection), whole(born)
    assert len(records[0]) == COUNT + len(BARE) + 1 - 10
    deployed.copied(**{"docs": COUNT + len(BARE) + 1 - 10, "born-here": 2})
    deployed.chroma.kill()
    eventually(lambda: alike(whole(collection), records[0]) and alike(whole(born), records[1]))
    assert collection.get(ids=["new"])["documents"] == ["A new one"]


def test_what_changed_in_chroma_past_the_sidecar_is_put_right(deployed: Deployed):
    direct = stored(deployed.direct(), "docs")
    deployed.copied(docs=COUNT + len(BARE))
    direct.update(ids=IDS[5:6], embeddings=VECTORS[5:6], documents=["changed elsewhere"])
    direct.update(ids=IDS[6:7], embeddings=VECTORS[6:7] + 1)
    direct.add(ids=["elsewhere"], embeddings=VECTORS[:1] - 1)
    direct.delete(ids=IDS[280:283])
    eventually(lambda: deployed.copies()["docs"]["repaired"] >= 6)
    deployed.copied(docs=COUNT + len(BARE) + 1 - 3)
    records = whole(direct)
    collection = deployed.client().get_collection("docs")
    deployed.chroma.kill()
    assert alike(whole(collection), records)


def test_the_command_copies_a_chroma_record_by_record(tmp_path: Path, folder: Path):
    (folder / "p.yaml").write_text(POLICIES)
    state = tmp_path / "state"
    words = ["index", "sync", "chroma", "--policies", str(folder)]
    with ChromaService(tmp_path / "chroma") as chroma:
        client = chromadb.HttpClient(host="127.0.0.1", port=chroma.port)
        records = {name: whole(stored(client, name)) for name in SPACES}
        env = {
            "UNDERSTUDY_LISTEN": "127.0.0.1:1",
            "UNDERSTUDY_ADMIN": "127.0.0.1:2",
            "CHROMA": chroma.url,
            "UNDERSTUDY_STATE": str(state),
            "PATH": "/usr/bin:/bin",
            "HOME": str(state),
        }
        command = [sys.executable, "-m", "understudy.proxy.cli", *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=COMES_S_MAX, check=False)
    assert (done.returncode, sorted(done.stdout.splitlines())) == (
        0,
        sorted(f"{name}: {COUNT + len(BARE)} points" for name in SPACES),
    ), done.stderr
    for name in SPACES:
        assert alike(on_disk(state, name), records[name]), name
