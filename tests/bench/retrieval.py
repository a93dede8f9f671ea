"""How well the local tier finds what was meant: SQuAD's development set through the running sidecar.

    python -m tests.bench.retrieval [--questions N]

    questions --/v1/embeddings--> vectors --Qdrant's API--> dense: exact, and through the graph
                                     +-----Elasticsearch's--> by words; by words and vector together

The sidecar is a process of its own with `understudy index build`'s collections, and is asked over plain HTTP. Where
every point is scanned there is nothing to lose by a graph: so the graph is measured in a collection that is large
enough to have one, of all passages, their sentences and most of the questions, asked with the other questions.
Vectors are kept in a folder between runs. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tests.bench.likeness import SQUAD, Squad
from tests.kit.processes import REPOSITORY, Sidecar
from understudy.indexes.points import Point
from understudy.indexes.snapshot import write_snapshot
from understudy.indexes.vectors import EXACT_BELOW
from understudy.models.built import Variant, built
from understudy.models.embedder import Embedder, Kind, load
from understudy.models.runtime import Runtime
from understudy.models.sentences import sentences
from understudy.proxy.knowledge import collections_folder, models_folder

K = 10
BATCH_TEXTS = 128
BATCH_SEARCHES = 64
HELD_OUT = 2_000
"""Questions that the collection with the graph is asked; the others are in it."""
SEED = 5

POLICIES = """\
server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}", access_log: false}
local: {knowledge: false, provider: cpu, queue_texts_max: 4096}
routes:
  - name: embeddings
    match: {path: /v1/embeddings}
    dialect: openai-embeddings
    space: all-MiniLM-L6-v2
    tiers: [{kind: local}]
  - name: retrieval
    match: {prefix: /collections}
    dialect: qdrant
    space: all-MiniLM-L6-v2
    tiers: [{kind: local}]
  - name: elastic
    match: {prefix: /es, strip: true}
    dialect: elasticsearch
    space: all-MiniLM-L6-v2
    tiers: [{kind: local}]
"""

Rankings = list[list[Any]]
"""For each question the ids found, the best first."""


@dataclass(frozen=True)
class Quality:
    """Of rankings with one right answer each: the share that has it among the first, and its discounted rank."""

    recall_1: float
    recall_5: float
    recall_10: float
    ndcg_10: float

    def __str__(self) -> str:
        return f"{self.recall_1:.4f}   {self.recall_5:.4f}   {self.recall_10:.4f}    {self.ndcg_10:.4f}"


@dataclass(frozen=True)
class Bar:
    """What must hold of a figure: at least `least`."""

    what: str
    figure: float
    least: float

    @property
    def holds(self) -> bool:
        return self.figure >= self.least

    def __str__(self) -> str:
        return f"{'ok    ' if self.holds else 'MISSED'}  {self.what}: {self.figure:.4f}, at least {self.least}"


def quality(rankings: Rankings, gold: Sequence[Any]) -> Quality:
    """Recall at 1, 5 and 10 and nDCG@10 of `rankings`, each with the one right answer of `gold`."""
    ranks = np.array([found.index(right) if right in found else K for found, right in zip(rankings, gold, strict=True)])
    recalls = [float((ranks < k).mean()) for k in (1, 5, 10)]
    gains = np.where(ranks < K, 1 / np.log2(ranks + 2), 0.0)
    return Quality(*recalls, float(gains.mean()))


def agreement(one: Rankings, other: Rankings) -> float:
    """The share of the first ten that both have, over all questions."""
    return float(np.mean([len(set(a[:K]) & set(b[:K])) / K for a, b in zip(one, other, strict=True)]))


class Asking:
    """A caller of the sidecar, over one connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def post(self, path: str, body: Any) -> Any:
        """The JSON of a 200. Raises RuntimeError for anything else."""
        payload = json.dumps(body).encode()
        self._connection.request("POST", path, payload, {"content-type": "application/json"})
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {text[:300]!r}")
        return json.loads(text)

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors [n, d] of texts, as an application gets them."""
        rows: list[list[float]] = []
        for batch in batches(texts, BATCH_TEXTS):
            told = self.post("/v1/embeddings", {"model": "any", "input": list(batch), "encoding_format": "float"})
            rows += [item["embedding"] for item in told["data"]]
        return np.array(rows, np.float32)

    def dense(self, collection: str, vectors: np.ndarray) -> Rankings:
        """What Qdrant's API finds near each of `vectors`."""
        found: Rankings = []
        for batch in batches(vectors.tolist(), BATCH_SEARCHES):
            searches = [{"query": vector, "limit": K} for vector in batch]
            told = self.post(f"/collections/{collection}/points/query/batch", {"searches": searches})
            found += [[point["id"] for point in one["points"]] for one in told["result"]]
        return found

    def worded(self, collection: str, texts: Sequence[str], vectors: np.ndarray | None = None) -> Rankings:
        """What Elasticsearch's API finds by the words of each text, and by its vector where there are some."""
        found: Rankings = []
        for at, text in enumerate(texts):
            body: dict[str, Any] = {"query": {"match": {"text": text}}, "size": K, "_source": False}
            if vectors is not None:
                body["knn"] = {"field": "v", "query_vector": vectors[at].tolist(), "k": K, "num_candidates": 100}
            told = self.post(f"/es/{collection}/_search", body)
            found.append([_id(hit["_id"]) for hit in told["hits"]["hits"]])
        return found


def _id(told: str) -> Any:
    return int(told) if told.isdecimal() else told


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


class Site:
    """The folder in which models, collections and vectors stay from one run to the next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.policies = folder / "policies"
        self.policies.mkdir(parents=True, exist_ok=True)
        (self.policies / "bench.yaml").write_text(POLICIES)

    def kept(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of this name, made the first time it is asked for."""
        path = self.folder / f"{name}.npy"
        if not path.exists():
            made = make()
            np.save(path.with_suffix(".tmp.npy"), made)
            path.with_suffix(".tmp.npy").rename(path)
        return np.load(path)

    def build(self, name: str, squad: Squad) -> None:
        """A collection of the passages as an operator makes one. Without the articles' titles: they are no part of
        what was asked about, and with them recall@10 is .004 less."""
        file = self.folder / "passages.jsonl"
        file.write_text("".join(json.dumps({"id": one["id"], "text": one["text"]}) + "\n" for one in squad.passages))
        command = [sys.executable, "-m", "understudy.proxy.cli", "index", "build", str(file), "--name", name]
        subprocess.run([*command, "--state", str(self.state)], cwd=REPOSITORY, check=True, capture_output=True)

    def embedder(self, variant: Variant) -> Embedder:
        """The local model in one precision, on the CPU."""
        cache = models_folder(self.state)
        found = load(None, cache, "cpu")
        if found.variant == variant:
            return found
        manifest = built(cache, variant)
        tokenizer = Tokenizer.from_file(str(manifest.tokenizer))
        return Embedder(manifest, tokenizer, Runtime(lambda _: manifest.file, "cpu"), {"cpu": variant, "cuda": variant})


@dataclass(frozen=True)
class Told:
    """What was measured: quality by method, and the bars."""

    qualities: dict[str, Quality]
    bars: list[Bar]

    def __str__(self) -> str:
        lines = [f"{'':<34}R@1      R@5      R@10      nDCG@10"]
        lines += [f"{name:<34}{each}" for name, each in self.qualities.items()]
        return "\n".join([*lines, "", *map(str, self.bars)])


def measure(site: Site, squad: Squad) -> Told:
    """Everything, with the questions of `squad`."""
    questions = [one["question"] for one in squad.questions]
    gold = [one["passage"] for one in squad.questions]
    texts = [one["text"] for one in squad.passages]
    site.build("squad", squad)
    fp32 = _in_fp32(site, texts, questions)
    name, large, held_out, inner_gold = _large(site, squad)
    with Sidecar(site.policies, site.state, ready_s_max=300) as sidecar:
        asking = Asking(sidecar.port)
        vectors = site.kept(f"questions-int8-{digest(questions)}", lambda: asking.vectors(questions))
        near = asking.dense("squad", vectors)
        found = {
            "dense, exact, int8": near,
            "dense, exact, fp32": asking.dense("squad-fp32", fp32),
            "words (BM25)": asking.worded("squad", questions),
            "words and vector, convex": asking.worded("squad", questions, vectors),
        }
        rows = vectors[held_out]
        graph = asking.dense(name, rows)
    exact = _exact(large, rows)
    qualities = {name: quality(rankings, gold) for name, rankings in found.items()}
    inner = {
        f"dense, exact, {len(large)} points": quality(exact, inner_gold),
        f"dense, graph, {len(large)} points": quality(graph, inner_gold),
    }
    dense, full, words, fused = qualities.values()
    by_scan, by_graph = inner.values()
    bars = [
        Bar("dense recall@10", dense.recall_10, 0.915),
        Bar("graph's recall@10 of the exact scan's", by_graph.recall_10 / by_scan.recall_10, 0.99),
        Bar("graph's agreement@10 with the exact scan (ef 128)", agreement(graph, exact), 0.995),
        Bar("words recall@10", words.recall_10, 0.95),
        Bar("fused recall@10", fused.recall_10, 0.97),
        Bar("fused nDCG@10", fused.ndcg_10, 0.89),
        Bar("int8 recall@10 less fp32's", dense.recall_10 - full.recall_10, -0.002),
    ]
    return Told({**qualities, **inner}, bars)


def _in_fp32(site: Site, texts: Sequence[str], questions: Sequence[str]) -> np.ndarray:
    """The questions' vectors in fp32, and a collection `squad-fp32` of the passages' beside it."""
    embedder: list[Embedder] = []

    def embed(some: Sequence[str], kind: Kind) -> np.ndarray:
        if not embedder:
            embedder.append(site.embedder("fp32"))
        return np.concatenate([embedder[0].embed(batch, kind) for batch in batches(some, BATCH_TEXTS)])

    rows = site.kept(f"passages-fp32-{digest(texts)}", lambda: embed(texts, "document"))
    points = [Point(at, row, {"text": text}, text) for at, (row, text) in enumerate(zip(rows, texts, strict=True))]
    _write(site, "squad-fp32", points)
    return site.kept(f"questions-fp32-{digest(questions)}", lambda: embed(questions, "query"))


def _large(site: Site, squad: Squad) -> tuple[str, np.ndarray, np.ndarray, list[int]]:
    """A collection that has a graph: its name, its vectors, which questions are not in it, and their passages."""
    everyone = Squad(SQUAD)
    order = np.random.default_rng(SEED).permutation(len(squad.questions))
    held_out = np.sort(order[: min(HELD_OUT, len(order))])
    asked = {squad.questions[at]["question"] for at in held_out}
    texts = [one["text"] for one in everyone.passages]
    texts += [sentence for text in texts for sentence in sentences(text)]
    texts += [one["question"] for one in everyone.questions if one["question"] not in asked]
    if len(texts) < EXACT_BELOW:
        raise ValueError(f"{len(texts)} points are too few for a graph")
    model = site.embedder("int8")
    embed: Callable[[], np.ndarray] = lambda: np.concatenate(  # noqa: E731 (its one use is the next line's)
        [model.embed(batch, "document") for batch in batches(texts, BATCH_TEXTS)]
    )
    rows = site.kept(f"large-{digest(texts)}", embed)
    name = f"large-{digest(texts)}"
    _write(site, name, [Point(at, row) for at, row in enumerate(rows)])
    return name, rows, held_out, [squad.questions[at]["passage"] for at in held_out]


def _write(site: Site, name: str, points: Sequence[Point]) -> None:
    vector = points[0].vector
    assert vector is not None
    folder = collections_folder(site.state) / name
    if not folder.exists():
        write_snapshot(folder, points, space="all-MiniLM-L6-v2", dimensions=len(vector))


def _exact(matrix: np.ndarray, queries: np.ndarray) -> Rankings:
    found: Rankings = []
    for batch in batches(queries, 256):
        found += np.argsort(-(batch @ matrix.T), axis=1, kind="stable")[:, :K].tolist()
    return found


def digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.retrieval", description=__doc__)
    parser.add_argument("--questions", type=int, help="only so many, for an impression")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "understudy-bench-retrieval")
    arguments = parser.parse_args()
    if not SQUAD.exists():
        sys.exit(f"needs the SQuAD development set, which is no part of this repository, in {SQUAD}")
    told = measure(Site(arguments.folder), Squad(SQUAD, arguments.questions))
    print(told)
    sys.exit(not all(bar.holds for bar in told.bars))


if __name__ == "__main__":
    main()
