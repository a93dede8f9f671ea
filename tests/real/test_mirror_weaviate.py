"""The mirror of a Weaviate: copied by the command, followed through its own client's writes, asked once it is dead.

The client of today writes single objects by HTTP, and all at once by gRPC, which goes past the sidecar: what came that
way a comparison finds. The server is a fake that pages as its manual says.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import weaviate
from weaviate.classes.config import Configure, VectorDistances
from weaviate.classes.init import AdditionalConfig, Timeout

from tests.kit.elastic_service import Cluster
from tests.kit.processes import Sidecar, eventually, free_port
from tests.kit.weaviate_service import FakeWeaviate
from tests.real.test_mirror_others import Deployed, run_sync
from understudy.indexes.library import Library
from understudy.proxy.knowledge import collections_folder

pytestmark = pytest.mark.real

COUNT, DIMENSIONS = 300, 8
VECTORS = np.random.default_rng(23).normal(size=(COUNT + 10, DIMENSIONS)).astype(np.float32)
WORDS = ("apples", "harbour", "lantern", "quartz")
POLICIES = """\
server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}"}
local: {knowledge: false}
defaults:
  breaker: {enabled: false}
  retry: {base_s: 0.001}
routes:
  - name: database
    match: {prefix: /v1}
    dialect: weaviate
    space: toy
    cache: {enabled: false}
    mirror: {text: [text], settle_s: 0.2, check_s: 1, points_per_s: 100000}
    tiers:
      - {kind: upstream, name: database, url: "${DATABASE}"}
      - {kind: local}
"""


class Site:
    """A Weaviate that is played, and what the official client makes of it, directly or through a sidecar."""

    def __init__(self, stack: ExitStack, tmp_path: Path, models: Path) -> None:
        self.stack = stack
        self.fake = FakeWeaviate()
        self.cluster = Cluster(self.fake)
        stack.callback(self.cluster.kill)
        self.policies, self.state, self.models = tmp_path / "policies", tmp_path / "state", models
        self.policies.mkdir()
        (self.policies / "p.yaml").write_text(POLICIES)

    def client(self, port: int) -> Any:
        """The client of today, which searches by gRPC: there is none."""
        return self.stack.enter_context(
            weaviate.connect_to_custom(
                http_host="127.0.0.1",
                http_port=port,
                http_secure=False,
                grpc_host="127.0.0.1",
                grpc_port=free_port(),
                grpc_secure=False,
                skip_init_checks=True,
                additional_config=AdditionalConfig(timeout=Timeout(init=60, query=60, insert=60)),
            )
        )

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`understudy index sync database`, where no sidecar runs."""
        addresses = {"UNDERSTUDY_LISTEN": "127.0.0.1:1", "UNDERSTUDY_ADMIN": "127.0.0.1:2"}
        there = {"DATABASE": self.cluster.url, "UNDERSTUDY_STATE": str(self.state)}
        return run_sync(self.policies, {**os.environ, **addresses, **there}, *words)

    def deployed(self) -> Deployed:
        sidecar = Sidecar(self.policies, self.state, env={"DATABASE": self.cluster.url}, models=self.models)
        return Deployed(self.stack.enter_context(sidecar), self.policies, self.cluster.url)

    def put(self, n: int) -> None:
        """An object that comes past the sidecar."""
        self.fake.store("Docs", uid(n), {"properties": about(n), "vectors": {"default": VECTORS[n].tolist()}})


def uid(n: int) -> str:
    return str(uuid.UUID(int=n + (1 << 96)))


def about(n: int) -> dict[str, Any]:
    return {"text": f"Passage {n} about {WORDS[n % 4]}.", "k": n % 5}


def nearest(to: int, gone: set[int], count: int, k: int = 5) -> list[str]:
    """The ids of the objects nearest to one, by the dot product, by brute force."""
    products = VECTORS[:count] @ VECTORS[to]
    return [uid(n) for n in np.argsort(-products, kind="stable").tolist() if n not in gone][:k]


def near(n: int) -> str:
    vector = ", ".join(map(str, VECTORS[n].tolist()))
    return "{ Get { Docs(nearVector: {vector: [" + vector + "]}, limit: 5) { text k _additional { id } } } }"


def found(client: Any, n: int) -> list[Any]:
    """What is nearest to an object: the ids, in order, and the properties."""
    rows = client.graphql_raw_query(near(n)).get["Docs"]
    return [(row["_additional"]["id"], row["text"], row["k"]) for row in rows]


@pytest.fixture
def site(made_state: Path, tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack, tmp_path, made_state / "models")


def test_a_dead_weaviate_is_answered_for_with_the_objects_it_had_and_the_writes_that_passed(site: Site):
    direct = site.client(site.cluster.port)
    # as the client makes classes today: one vector, which has a name, and is written and searched without it
    direct.collections.create(
        "Docs",
        vector_config=Configure.Vectors.self_provided(
            vector_index_config=Configure.VectorIndex.hnsw(distance_metric=VectorDistances.DOT)
        ),
    )
    for n in range(COUNT):
        site.put(n)
    done = site.command()
    assert (done.returncode, done.stdout) == (0, f"Docs: {COUNT} points\n"), done.stderr

    deployed = site.deployed()
    eventually(lambda: deployed.in_step("Docs", COUNT))
    client = site.client(deployed.sidecar.port)
    docs = client.collections.get("Docs")
    docs.data.insert(about(COUNT), uuid=uid(COUNT), vector=VECTORS[COUNT].tolist())
    docs.data.insert(about(COUNT + 1), uuid=uid(COUNT + 1), vector={"default": VECTORS[COUNT + 1].tolist()})
    docs.data.replace(uid(7), about(1007), vector=VECTORS[7].tolist())
    docs.data.update(uid(8), {"k": 99, "text": None})
    assert docs.data.delete_by_id(uid(3))
    # of a class with tenants there is no copy, and nobody's copy is the worse for it
    tenants = Configure.multi_tenancy(enabled=True, auto_tenant_creation=True)
    client.collections.create("Apart", vector_config=Configure.Vectors.self_provided(), multi_tenancy_config=tenants)
    client.collections.get("Apart").with_tenant("a").data.insert(about(1), uuid=uid(1), vector=VECTORS[1].tolist())
    eventually(lambda: deployed.in_step("Docs", COUNT + 1))

    # by `insert_many` and `delete_many`, which nobody here sees
    site.put(COUNT + 2)
    site.fake.objects["Docs"].pop(uid(4))
    site.fake.objects["Docs"][uid(9)]["properties"]["k"] = 1009
    assert "Docs: compared with the database, and the same" in deployed.synced("--collection", "Docs")
    eventually(lambda: deployed.in_step("Docs", COUNT + 1) and held(site.state, 9)["k"] == 1009)

    assert deployed.copies().keys() == {"Docs"}
    asked = (5, 7, 8, 9, COUNT, COUNT + 2)
    alive = [found(client, n) for n in asked]
    site.cluster.kill()
    dead = [found(client, n) for n in asked]
    assert dead == alive
    assert [called for called, _, _ in dead[-1]] == nearest(COUNT + 2, {3, 4}, COUNT + 3)
    assert (held(site.state, 7), held(site.state, 8)) == (about(1007), {"k": 99})
    raw = httpx.post(deployed.sidecar.url + "/v1/graphql", json={"query": near(COUNT)}, timeout=30)
    assert raw.headers["x-understudy-source"] == "local-index"
    assert float(raw.headers["x-understudy-staleness-s"]) >= 0
    bm25 = 'bm25: {query: "harbour 301", properties: ["text"]}, limit: 1'
    worded = client.graphql_raw_query("{ Get { Docs(" + bm25 + ") { k } } }")
    assert worded.get["Docs"] == [{"k": 301 % 5}]
    counted = client.graphql_raw_query("{ Aggregate { Docs { meta { count } } } }")
    assert counted.aggregate["Docs"] == [{"meta": {"count": COUNT + 1}}]


def held(state: Path, n: int) -> dict[str, Any]:
    """The payload that the copy has under an id."""
    (point,) = Library(collections_folder(state)).open("Docs").get([uid(n)])
    return point.payload
