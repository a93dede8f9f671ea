"""A copy without texts, while its embedder is dead: searched by mapped vectors and words, or it says why not."""

from __future__ import annotations

import json
import random
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from openai import OpenAI
from qdrant_client import QdrantClient

from tests.kit.openai_service import noisy, turned
from tests.kit.processes import OpenAIService, QdrantService, Sidecar, embeddings_route, eventually
from understudy.indexes.points import Point
from understudy.indexes.snapshot import write_snapshot
from understudy.models.bridge import AGREEMENT_MIN, PAIRS_MIN, SANITY_MIN
from understudy.models.embedder import load
from understudy.proxy.knowledge import collections_folder

pytestmark = pytest.mark.real

SPACE, DIMENSIONS = "far-embed-3", 512
COUNT, ASKED = 1_200, 60
BATCH = 60
POLICIES = (
    """\
server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}", workers: %d}
local: {knowledge: false, provider: cpu, bridge_cpu_share: 1.0, shadow_cpu_share: 0}
defaults: {breaker: {open_s: 0.2}}
routes:
"""
    + embeddings_route(SPACE)
    + """\
  - name: retrieval
    match: {prefix: /}
    dialect: qdrant
    space: far-embed-3
    tiers:
      - {kind: upstream, name: qdrant, url: "${QDRANT}"}
      - {kind: local}
"""
)
WORDS = {
    "who": "baker gardener captain tailor doctor painter plumber farmer teacher pilot miller nurse",
    "does": "repairs sells paints inspects borrows cleans weighs measures",
    "what": "violin bridge kettle lantern bicycle carpet telescope anchor piano ladder clock saddle",
    "where": "harbour orchard museum station castle library market chapel",
}


def sentences() -> list[tuple[str, str]]:
    """Documents, each with a question for it."""
    every = list(product(*(words.split() for words in WORDS.values())))
    chosen = random.Random(4).sample(every, COUNT)
    return [
        (f"The {who} {does} a {what} at the {where}.", f"Which {what} at the {where} is it that the {who} {does}?")
        for who, does, what, where in chosen
    ]


TEXTS, QUESTIONS = (list(each) for each in zip(*sentences(), strict=True))


class Deployed(NamedTuple):
    sidecar: Sidecar
    openai: OpenAIService

    def embed(self, *texts: str) -> tuple[list[list[float]], str]:
        """Vectors over a connection of their own, and who gave them."""
        with OpenAI(base_url=self.sidecar.url + "/v1", api_key="unused", max_retries=0) as client:
            raw = client.embeddings.with_raw_response.create(model="m", input=list(texts))
            return [each.embedding for each in raw.parse().data], raw.headers["x-understudy-source"]

    def found(self, vector: list[float]) -> list[int]:
        client = QdrantClient(self.sidecar.url, check_compatibility=False)
        return [int(point.id) for point in client.query_points("docs", query=vector, limit=10).points]

    def headers(self, vector: list[float]) -> Any:
        body = json.dumps({"query": vector, "limit": 10}).encode()
        url = f"{self.sidecar.url}/collections/docs/points/query"
        with urllib.request.urlopen(urllib.request.Request(url, body, {"content-type": "application/json"})) as told:
            return told.headers

    def admin(self, path: str) -> str:
        with urllib.request.urlopen(self.sidecar.admin_url + path, timeout=30) as told:
            return told.read().decode()

    def bridges(self) -> Any:
        """What `/status` says of ways to other spaces; nothing until a worker has loaded the local model."""
        return json.loads(self.admin("/status"))["local"].get("bridges", {})

    def bridge(self) -> Any:
        """And of the way to the far space."""
        return self.bridges().get("spaces", {}).get(f"{SPACE} {DIMENSIONS}", {})

    def gathers(self) -> bool:
        """Whether every worker takes what passes for a pair."""
        return "pairs" in self.bridge() and not self.bridges()["reason"]

    def docs(self) -> Any:
        """How the map stands with the copy."""
        return self.bridge().get("collections", {}).get("docs", {})


@cache
def true_rows(models: Path) -> np.ndarray:
    """What the far embedder says of the texts."""
    return turned(load(None, models, "cpu").embed(TEXTS, "document"), DIMENSIONS)


def write_copy(state: Path, models: Path, noise: float) -> None:
    """A copy as a mirror leaves it whose database has the vectors, and of every fourth point a text."""
    rows = true_rows(models)
    rows = noisy(rows, TEXTS, noise) if noise else rows
    points = [Point(n, row, {}, TEXTS[n] if n % 4 == 0 else "") for n, row in enumerate(rows)]
    write_snapshot(collections_folder(state) / "docs", points, space=SPACE, dimensions=DIMENSIONS)


@pytest.fixture
def deployed(request: pytest.FixtureRequest, made_state: Path, tmp_path: Path, folder: Path) -> Iterator[Deployed]:
    workers, noise = request.param
    state, models = tmp_path / "state", made_state / "models"
    write_copy(state, models, noise)
    (folder / "p.yaml").write_text(POLICIES % workers)
    given = ("--model-cache", str(models), "--turned", str(DIMENSIONS), "--noise", str(noise))
    with ExitStack() as stack:
        openai, qdrant = (stack.enter_context(each) for each in (OpenAIService(*given), QdrantService()))
        qdrant.kill()
        env = {"OPENAI": openai.url, "QDRANT": qdrant.url}
        yield Deployed(stack.enter_context(Sidecar(folder, state, env=env, models=models)), openai)


def pass_by(deployed: Deployed, texts: list[str]) -> None:
    """The texts are embedded for the application, each once, no faster than they are gathered."""
    for at in range(0, len(texts), BATCH):
        assert deployed.embed(*texts[at : at + BATCH])[1] == "openai"
        eventually(lambda least=at - 300: deployed.bridge()["pairs"] >= least)


@pytest.mark.parametrize("deployed", [(1, 0.0)], indirect=True, ids=["near"])
def test_a_dead_embedders_copy_without_texts_is_searched_by_mapped_vectors_and_words(deployed: Deployed):
    eventually(deployed.gathers)
    handles_before, _ = deployed.embed(*QUESTIONS[:2])
    assert len(handles_before[0]) == DIMENSIONS
    pass_by(deployed, TEXTS)
    eventually(lambda: bool(deployed.docs()))
    true = {n: deployed.embed(QUESTIONS[n])[0][0] for n in range(ASKED)}
    alive = np.mean([n in deployed.found(vector) for n, vector in true.items()])
    standing = deployed.docs()
    assert (standing["in_use"], standing["reason"]) == (True, "")
    assert standing["agreement"] >= AGREEMENT_MIN
    assert standing["sanity"] >= SANITY_MIN

    deployed.openai.kill()
    handles = {n: deployed.embed(QUESTIONS[n]) for n in range(ASKED)}
    assert {who for _, who in handles.values()} == {"local-embed"}
    dark = np.mean([n in deployed.found(vectors[0]) for n, (vectors, _) in handles.items()])
    assert dark >= 0.95 * alive
    assert alive > 0.8
    # where a text is there, its words say the rest: the right one comes first
    worded = list(range(0, ASKED, 4))
    first = np.mean([deployed.found(handles[n][0][0])[0] == n for n in worded])
    assert first >= np.mean([deployed.found(true[n])[0] == n for n in worded])
    told = deployed.headers(handles[1][0][0])
    version = deployed.bridge()["version"]
    assert told["x-understudy-source"] == "local-index"
    assert told["x-understudy-space"] == (
        f"bridge; of=all-MiniLM-L6-v2; for={SPACE}; version={version}; agreement={standing['agreement']:.2f}"
    )
    text = deployed.admin("/metrics")
    assert f'understudy_bridge_in_use{{collection="docs",space="{SPACE} {DIMENSIONS}"}} 1.0' in text
    assert "understudy_bridge_agreement" in text


@pytest.mark.parametrize("deployed", [(1, 3.0)], indirect=True, ids=["far"])
def test_a_map_that_does_not_hold_is_off_says_why_and_words_alone_are_searched(deployed: Deployed):
    eventually(deployed.gathers)
    pass_by(deployed, TEXTS[:900])
    assert not deployed.docs()
    eventually(lambda: deployed.bridge()["pairs"] == 900)
    assert deployed.bridge()["reason"] == f"900 pairs are known, {PAIRS_MIN} are needed"
    pass_by(deployed, TEXTS[900:])
    eventually(lambda: bool(deployed.docs()))
    standing = deployed.docs()
    assert (standing["in_use"], standing["agreement"] < AGREEMENT_MIN) == (False, True)
    assert (
        standing["reason"] == f"mapped vectors find {standing['agreement']:.2f} of what true ones find, 0.65 are needed"
    )
    deployed.openai.kill()
    (handle,), who = deployed.embed(QUESTIONS[4])
    assert who == "local-embed"
    told = deployed.headers(handle)
    assert (told["x-understudy-search"], told["x-understudy-space"]) == ("keywords", None)
    found = deployed.found(handle)
    assert found[0] == 4
    assert all(n % 4 == 0 for n in found), "of the others nobody has a word"


@pytest.mark.parametrize("deployed", [(2, 0.0)], indirect=True, ids=["two workers"])
def test_what_passes_either_of_two_workers_comes_together(deployed: Deployed):
    eventually(deployed.gathers)
    # every call is a connection of its own, and either worker may take it
    for at in range(0, 480, 12):
        assert deployed.embed(*TEXTS[at : at + 12])[1] == "openai"
    eventually(lambda: deployed.bridge()["pairs"] == 480)
    assert not list((deployed.sidecar.state / "bridges").glob("*.passed"))
