"""What is found while primaries are dead, beside what was found before: SQuAD end to end through the running sidecar.

    python -m tests.bench.fallback [--questions 2000]

    question --/v1/embeddings--> vector or handle --Qdrant's API--> ten passages: is the right one among them?

                 embedder   database      searched by
    alive        up         up            the embedder's vector, in the database
    handle       dead       up            a handle, in the copy's shadow index and by words
    dark         dead       dead          the same
    copied       up         dead          the embedder's vector, in the copy

The application asks as it always does: it embeds through the sidecar and searches through it with whatever vector it
was given. The embedder is a process of its own whose 1536-dimensional space is not the local model's, the database
another, and the copy is the sidecar's own mirror, made over HTTP. Exit code 1 where less than 95 % of the recall@10 is
kept, or a search goes unanswered.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.likeness import SQUAD, Squad
from tests.bench.retrieval import Bar, Quality, Rankings, quality
from tests.kit.processes import OpenAIService, QdrantService, Sidecar, embeddings_route, eventually
from understudy.indexes.library import Library
from understudy.proxy.knowledge import collections_folder

K = 10
DIMENSIONS = 1536
BATCH = 64
KEPT_MIN = 0.95
READY_S_MAX = 900.0
COLLECTION = "passages"
SPACE = "text-embedding-3-small"
OURS = "all-MiniLM-L6-v2"
POLICIES = (
    """\
server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}", access_log: false}
local: {knowledge: false, provider: cpu, shadow_cpu_share: 1.0}
routes:
"""
    + embeddings_route(SPACE)
    + """\
  - name: retrieval
    match: {prefix: /collections}
    dialect: qdrant
    space: text-embedding-3-small
    mirror: {collections: [passages], text: [text], settle_s: 0.2, points_per_s: 100000}
    tiers:
      - {kind: upstream, name: qdrant, url: "${QDRANT}"}
      - {kind: local}
"""
)


@dataclass(frozen=True)
class Passage:
    id: int
    text: str


@dataclass(frozen=True)
class Question:
    """What is asked, and the id of the passage that answers it."""

    text: str
    passage: int


@dataclass(frozen=True)
class Told:
    """What one state of the primaries found. `embedded` and `searched` count who answered."""

    quality: Quality
    embedded: Counter[str]
    searched: Counter[str]

    def line(self, name: str) -> str:
        counts = ", ".join(f"{who} {n}" for each in (self.embedded, self.searched) for who, n in each.most_common())
        return f"{name:<10}{self.quality}   {counts}"


class Application:
    """A caller with one connection to whoever listens at `port`."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def asked(self, method: str, path: str, body: Any) -> tuple[Any, str]:
        """The JSON of a 200, and who answered. Raises RuntimeError for anything else."""
        self._connection.request(method, path, json.dumps(body).encode(), {"content-type": "application/json"})
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {text[:300]!r}")
        return json.loads(text), answer.getheader("x-understudy-source") or ""

    def vectors(self, texts: Sequence[str]) -> tuple[list[list[float]], str]:
        """The vectors of texts, and who made them."""
        told, who = self.asked("POST", "/v1/embeddings", {"model": SPACE, "input": list(texts)})
        return [item["embedding"] for item in told["data"]], who

    def found(self, vector: Sequence[float]) -> tuple[list[int], str]:
        """The ids of the ten nearest, and who found them."""
        told, who = self.asked("POST", f"/collections/{COLLECTION}/points/query", {"query": vector, "limit": K})
        return [point["id"] for point in told["result"]["points"]], who

    def store(self, passages: Sequence[Passage], vectors: np.ndarray) -> None:
        """Create the collection and put the passages, as an ingest does."""
        params = {"vectors": {"size": DIMENSIONS, "distance": "Cosine"}}
        self.asked("PUT", f"/collections/{COLLECTION}", params)
        for at in range(0, len(passages), BATCH):
            points = [
                {"id": one.id, "vector": row.tolist(), "payload": {"text": one.text}}
                for one, row in zip(passages[at : at + BATCH], vectors[at : at + BATCH], strict=True)
            ]
            self.asked("PUT", f"/collections/{COLLECTION}/points?wait=true", {"points": points})


class Site:
    """The processes, and a folder in which model, copy and vectors stay from one run to the next."""

    def __init__(self, folder: Path, models: Path | None = None) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.policies = folder / "policies"
        self.policies.mkdir(parents=True, exist_ok=True)
        (self.policies / "bench.yaml").write_text(POLICIES)
        cache = models or self.state / "models"
        self.openai = OpenAIService("--model-cache", str(cache), "--turned", str(DIMENSIONS))
        self.qdrant = QdrantService()
        env = {"OPENAI": self.openai.url, "QDRANT": self.qdrant.url}
        self.sidecar = Sidecar(self.policies, self.state, env=env, models=models, ready_s_max=300)

    def status(self) -> Any:
        """What the sidecar says of itself."""
        with urllib.request.urlopen(self.sidecar.admin_url + "/status", timeout=30) as answer:
            return json.load(answer)

    def is_copied(self, count: int) -> bool:
        """Whether the mirror has all points, and each its vector of the local model's."""
        status = self.status()
        copies = next(route["mirror"]["copies"] for route in status["routes"] if "mirror" in route)
        copy = copies.get(COLLECTION, {})
        if copy.get("state") != "whole" or copy["points_behind"]:
            return False
        there = Library(collections_folder(self.state)).open(COLLECTION)
        return there.count >= count and there.beside(OURS)[1] == 1.0


def asked(site: Site, questions: Sequence[Question]) -> Told:
    """Every question, embedded and searched for as things stand."""
    application = Application(site.sidecar.port)
    found: Rankings = []
    embedded, searched = Counter[str](), Counter[str]()
    for question in questions:
        (vector,), who = application.vectors([question.text])
        embedded[who] += 1
        ids, who = application.found(vector)
        searched[who] += 1
        found.append(ids)
    return Told(quality(found, [question.passage for question in questions]), embedded, searched)


def measure(site: Site, passages: Sequence[Passage], questions: Sequence[Question]) -> dict[str, Told]:
    """Each state of the primaries, by its name in the table above."""
    told: dict[str, Told] = {}
    with site.openai, site.qdrant:
        embedder = Application(site.openai.port)
        batches = [passages[at : at + BATCH] for at in range(0, len(passages), BATCH)]
        kept = site.folder / f"passages-{len(passages)}.npy"
        if not kept.exists():
            rows = [embedder.vectors([one.text for one in batch])[0] for batch in batches]
            np.save(kept, np.concatenate(rows).astype(np.float32))
        Application(site.qdrant.port).store(passages, np.load(kept))
        with site.sidecar:
            eventually(lambda: site.is_copied(len(passages)), within_s=READY_S_MAX)
            told["alive"] = asked(site, questions)
            site.openai.kill()
            told["handle"] = asked(site, questions)
            site.qdrant.kill()
            told["dark"] = asked(site, questions)
            site.openai.start()
            eventually(lambda: _is_back(site))
            told["copied"] = asked(site, questions)
    return told


def _is_back(site: Site) -> bool:
    return Application(site.sidecar.port).vectors(["is it back?"])[1] == "openai"


def bars(told: dict[str, Told]) -> list[Bar]:
    """How much of the recall with all alive each state keeps."""
    alive = told["alive"].quality.recall_10
    return [
        Bar(f"recall@10 kept, {name}", each.quality.recall_10 / alive, KEPT_MIN)
        for name, each in told.items()
        if name != "alive"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fallback", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--questions", type=int, default=2_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "understudy-bench-fallback")
    arguments = parser.parse_args()
    if not SQUAD.exists():
        sys.exit(f"needs the SQuAD development set, which is no part of this repository, in {SQUAD}")
    squad = Squad(SQUAD, arguments.questions)
    passages = [Passage(one["id"], one["text"]) for one in squad.passages]
    questions = [Question(one["question"], one["passage"]) for one in squad.questions]
    began = time.monotonic()
    told = measure(Site(arguments.folder), passages, questions)
    print(f"{len(passages)} passages, {len(questions)} questions, {time.monotonic() - began:.0f} s")
    print(f"{'':<10}R@1      R@5      R@10      nDCG@10  answered by")
    for name, each in told.items():
        print(each.line(name))
    judged = bars(told)
    print("\n" + "\n".join(map(str, judged)))
    sys.exit(not all(bar.holds for bar in judged))


if __name__ == "__main__":
    main()
