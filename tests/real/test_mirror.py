"""The mirror, with the real client and a running sidecar: copied, kept fresh, put right, and asked of a dead Qdrant."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from tests.kit.processes import COMES_S_MAX, QdrantService, Sidecar, eventually, points_in
from understudy.indexes.library import Library
from understudy.proxy.knowledge import collections_folder

pytestmark = pytest.mark.real

DIMENSIONS = 16
COUNT = 500
VECTORS = np.random.default_rng(5).normal(size=(COUNT, DIMENSIONS)).astype(np.float32)
POLICIES = """
server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}", workers: %(workers)d}
local: {knowledge: false}
routes:
  - name: retrieval
    match: {prefix: /}
    dialect: qdrant
    space: text-embedding-3-small
    mirror:
      text: [title]
      settle_s: 0.2
      check_s: 1
      points_per_s: 100000
    tiers:
      - {kind: upstream, name: qdrant, url: "${QDRANT}"}
      - {kind: local}
"""


class Deployed(NamedTuple):
    sidecar: Sidecar
    qdrant: QdrantService

    def client(self) -> QdrantClient:
        return QdrantClient(self.sidecar.url, timeout=60)

    def mirror(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.sidecar.admin_url + "/status", timeout=30) as answer:
            return json.load(answer)["routes"][0].get("mirror", {})

    def copies(self) -> dict[str, Any]:
        return self.mirror().get("copies", {})

    def in_step(self, name: str = "docs", count: int = COUNT) -> bool:
        """Whether the copy is whole, with so many points: one that was copied before it was filled is whole, too."""
        mirror = self.mirror()
        copy = mirror["copies"].get(name, {})
        if copy.get("state") != "whole" or copy["points_behind"] or mirror["waiting"]:
            return False
        return points_in(self.sidecar.state, name) == count


def vector_of(number: int) -> np.ndarray:
    """No two have the same, or who comes first would be anybody's guess."""
    return np.roll(VECTORS[number % COUNT], number // COUNT)


def stored(number: int, **payload: Any) -> models.PointStruct:
    fields = {"n": number, "even": number % 2 == 0, "title": f"Number {number}", **payload}
    return models.PointStruct(id=number, vector=vector_of(number).tolist(), payload=fields)


def filled(client: QdrantClient, name: str = "docs") -> None:
    client.create_collection(name, models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE))
    client.upsert(name, [stored(number) for number in range(COUNT)])


def answers(client: QdrantClient, name: str = "docs") -> list[Any]:
    """What the test compares, asked of whoever answers now."""
    even = models.Filter(must=[models.FieldCondition(key="even", match=models.MatchValue(value=True))])
    found: list[Any] = [client.count(name).count, client.count(name, count_filter=even).count]
    for seed in (3, 77, 250):
        asked = (VECTORS[seed] + 0.01).tolist()
        for chosen in (None, even):
            hits = client.query_points(name, query=asked, query_filter=chosen, limit=10, with_payload=True).points
            found.append([(hit.id, hit.payload) for hit in hits])
            assert np.allclose([hit.score for hit in hits], truly([hit.id for hit in hits], seed), atol=1e-4)
    found.append([(one.id, one.payload) for one in client.retrieve(name, [1, 2, 499, 100_000])])
    found.append([one.id for one in client.scroll(name, limit=20, scroll_filter=even)[0]])
    return found


def truly(ids: list[Any], seed: int) -> list[float]:
    """The cosines of points with what `answers` asks for."""
    asked = VECTORS[seed] + 0.01
    rows = np.stack([vector_of(each) for each in ids])
    return list(rows @ asked / np.linalg.norm(rows, axis=1) / np.linalg.norm(asked))


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def deployed(request: pytest.FixtureRequest, made_state: Path, tmp_path: Path, folder: Path) -> Iterator[Deployed]:
    (folder / "p.yaml").write_text(POLICIES % {"workers": request.param})
    with QdrantService() as qdrant:
        env, state = {"QDRANT": qdrant.url}, tmp_path / "state"
        with Sidecar(folder, state, env=env, models=made_state / "models") as sidecar:
            yield Deployed(sidecar, qdrant)


def test_a_dead_qdrant_is_answered_for_with_the_points_it_had_and_the_writes_that_passed(deployed: Deployed):
    # what was there before, stored past the sidecar
    direct = QdrantClient(deployed.qdrant.url, timeout=60)
    filled(direct)
    eventually(lambda: deployed.in_step())
    client = deployed.client()
    client.upsert("docs", [stored(1000), stored(7, title="Seven, anew")])
    client.delete("docs", [3, 77])
    client.set_payload("docs", {"even": "neither"}, points=[10, 11])
    filled(client, "born-here")
    before, born = answers(client), answers(client, "born-here")
    eventually(lambda: deployed.in_step(count=COUNT + 1 - 2) and deployed.in_step("born-here"))
    deployed.qdrant.kill()
    # what one worker has applied the other sees half a second later
    eventually(lambda: answers(client) == before)
    eventually(lambda: answers(client, "born-here") == born)
    request = urllib.request.Request(
        deployed.sidecar.url + "/collections/docs/points/count", b"{}", {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.headers["x-understudy-source"] == "local-index"
        assert 0 <= float(answer.headers["x-understudy-staleness-s"]) < 600


def test_what_changed_past_the_sidecar_is_put_right(deployed: Deployed):
    direct = QdrantClient(deployed.qdrant.url, timeout=60)
    filled(direct)
    eventually(lambda: deployed.in_step())
    direct.upsert("docs", [stored(5, title="changed elsewhere"), stored(2000)])
    direct.delete("docs", [400, 401, 402])
    eventually(lambda: deployed.copies()["docs"]["repaired"] >= 5)
    eventually(lambda: deployed.in_step(count=COUNT + 1 - 3))
    before = answers(direct)
    deployed.qdrant.kill()
    client = deployed.client()
    eventually(lambda: answers(client) == before)


def synced(policies: Path, state: Path, qdrant: QdrantService, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "understudy.proxy.cli", "index", "sync", "retrieval", "--policies", str(policies)]
    env = {
        "UNDERSTUDY_LISTEN": "127.0.0.1:1",
        "UNDERSTUDY_ADMIN": "127.0.0.1:2",
        "QDRANT": qdrant.url,
        "UNDERSTUDY_STATE": str(state),
        "PATH": "/usr/bin:/bin",
        "HOME": str(state),
    }
    return subprocess.run([*command, *words], env=env, capture_output=True, text=True, timeout=COMES_S_MAX, check=False)


def test_the_command_copies_without_a_sidecar_and_asks_one_that_runs(made_state: Path, tmp_path: Path, folder: Path):
    (folder / "p.yaml").write_text(POLICIES % {"workers": 1})
    state = tmp_path / "state"
    with QdrantService() as qdrant:
        filled(QdrantClient(qdrant.url, timeout=60))
        filled(QdrantClient(qdrant.url, timeout=60), "other")
        done = synced(folder, state, qdrant, "--collection", "docs")
        assert (done.returncode, done.stdout) == (0, "docs: 500 points\n"), done.stderr
        collection = Library(collections_folder(state)).open("docs")
        assert (collection.count, collection.space, collection.dimensions) == (COUNT, "text-embedding-3-small", 16)
        assert collection.get([42])[0].text == "Number 42"
        assert synced(folder, state, qdrant).stdout == "docs: 500 points\nother: 500 points\n"
        with Sidecar(folder, state, env={"QDRANT": qdrant.url}, models=made_state / "models"):
            QdrantClient(qdrant.url, timeout=60).delete("docs", [1])
            asked = synced(folder, state, qdrant, "--collection", "docs")
            assert (asked.returncode, asked.stdout) == (0, "docs: compared with the database, and the same\n"), asked
        assert Library(collections_folder(state)).open("docs").count == COUNT - 1
        qdrant.kill()
        failed = synced(folder, state, qdrant, "--points-per-s", "5")
        assert failed.returncode == 1
        assert "the database of route retrieval" in failed.stderr


def test_killed_with_writes_under_way_the_sidecar_makes_its_copy_good(made_state: Path, tmp_path: Path, folder: Path):
    (folder / "p.yaml").write_text(POLICIES % {"workers": 1})
    with QdrantService() as qdrant:
        filled(QdrantClient(qdrant.url, timeout=60))
        env, state = {"QDRANT": qdrant.url}, tmp_path / "state"
        with Sidecar(folder, state, env=env, models=made_state / "models") as sidecar:
            there = Deployed(sidecar, qdrant)
            eventually(lambda: there.in_step())
            client = there.client()
            for number in range(3):
                client.upsert("docs", [stored(3000 + number * 10 + each) for each in range(10)])
                sidecar.kill()
                sidecar.start()
            eventually(lambda: there.in_step(count=COUNT + 30))
            before = answers(QdrantClient(qdrant.url, timeout=60))
            qdrant.kill()
            assert answers(client) == before
