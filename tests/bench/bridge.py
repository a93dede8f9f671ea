"""What a map between vector spaces finds: SQuAD's passages in other spaces, searched while nobody can embed into them.

    python -m tests.bench.bridge [--questions N]

    texts --all-MiniLM-L6-v2, fp32--> local vectors --+--> pairs --> a map, judged as the sidecar judges it
    texts --a stand-in for a primary--> its vectors --+--> a collection, some of whose points have their texts
    questions --local vectors, mapped; words--> found; beside it: by words alone, and by the stand-in's own vectors

No other embedding model is at hand, so none of the primaries is one: each is a stand-in, and its name says what of.
The same weights seen otherwise (turned, cut off, with noise, after fewer layers, by another pooling) are nearer to the
local model than a stranger's would be; the counts of words (no net at all) are farther. Pairs are all passages and as
many questions as the sidecar would keep; the questions that are asked are none of them. Vectors are kept in a folder.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tests.bench.likeness import SQUAD, Squad
from tests.bench.retrieval import BATCH_TEXTS, Site, agreement, batches, digest, quality
from understudy.indexes.library import Library
from understudy.indexes.points import Point
from understudy.indexes.snapshot import write_snapshot
from understudy.models.bridge import Pair, Reservoir, Standing, fitted, judged, refusal
from understudy.models.bridge import agreement as agreed_by
from understudy.models.built import MINILM, built
from understudy.models.embedder import Embedder, Kind
from understudy.models.graph import BertShape, bert_graph
from understudy.models.runtime import Runtime
from understudy.models.weights import package_folder, read_safetensors
from understudy.proxy.spaces.bridging import JUDGED_MAX, QUESTIONS_TO_DOCUMENTS_MAX, native_sanity, nearest_in

K = 10
SEED = 7
WORDED = (0.0, 0.25, 0.5)
"""Shares of the collection's points that have their texts: above the last, the sidecar has no use for a map."""
LOCAL = "all-MiniLM-L6-v2"
LATENT = 256

Rows = np.ndarray
Both = tuple[Rows, Rows]
"""Vectors of the passages and of the questions."""


def unit(rows: Rows) -> Rows:
    """Rows of length one."""
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)).astype(np.float32)


class StandIns:
    """Vectors of the same texts as other primaries might make them; made once and kept."""

    def __init__(self, site: Site, passages: Sequence[str], questions: Sequence[str]) -> None:
        self._site, self._passages, self._questions = site, passages, questions
        self.local = self._embedded("fp32", site.embedder("fp32"))

    def every(self) -> Mapping[str, Callable[[], Both]]:
        """Those that are measured, by what they stand for a primary with."""
        return {
            "same model, turned to 1536": self.turned,
            "same, int8, turned to 384": lambda: self._turned_from("int8", self._site.embedder("int8")),
            "same, turned, cut to 96": lambda: self._each(lambda rows: unit(rows[:, :96]), self.turned()),
            "same, turned, noise of .7": lambda: self._noisy(0.7),
            "same, turned, noise of 1.5": lambda: self._noisy(1.5),
            "CLS pooling, same weights": lambda: self._net("cls", replace(MINILM.shape, pooling="cls")),
            "5 of its 6 layers": lambda: self._net("5", replace(MINILM.shape, layers=5)),
            "3 of its 6 layers": lambda: self._net("3", replace(MINILM.shape, layers=3)),
            "counts of words (LSA, 256)": self._latent,
        }

    def turned(self, wide: int = 1536) -> Both:
        """The local model's own, in so many dimensions, by a seeded semi-orthogonal matrix."""
        drawn = np.random.default_rng(SEED).normal(size=(wide, self.local[0].shape[1]))
        basis = np.linalg.qr(drawn)[0].T.astype(np.float32)
        return self._each(lambda rows: rows @ basis, self.local)

    def _noisy(self, length: float) -> Both:
        """Turned, with noise of such a length in each: what is unlike in two models, as if it were by chance."""
        dice = np.random.default_rng(SEED)

        def noisy(rows: Rows) -> Rows:
            return unit(rows + length * unit(dice.normal(size=rows.shape)))

        return self._each(noisy, self.turned(384))

    def _turned_from(self, name: str, embedder: Embedder) -> Both:
        basis = np.linalg.qr(np.random.default_rng(SEED).normal(size=(384, 384)))[0].astype(np.float32)
        return self._each(lambda rows: rows @ basis, self._embedded(name, embedder))

    def _net(self, name: str, shape: BertShape) -> Both:
        """The same weights by another shape: a graph of its own."""
        path = self._site.folder / f"stand-in-{name}.onnx"
        if not path.exists():
            path.write_bytes(bert_graph(read_safetensors(package_folder() / "model.safetensors"), shape))
        manifest = replace(built(self._site.state / "models", "fp32"), file=path)
        made = Embedder(
            manifest,
            Tokenizer.from_file(str(manifest.tokenizer)),
            Runtime(lambda _: path, "cpu"),
            {"cpu": "fp32", "cuda": "fp32"},
        )
        return self._embedded(f"net-{name}", made)

    def _latent(self) -> Both:
        """Latent semantic analysis (Deerwester et al., 1990) of the passages' words; questions are folded in."""
        cut = [[word.strip(".,;:?!()'\"").lower() for word in text.split()] for text in self._passages]
        places = {word: n for n, word in enumerate(sorted({word for words in cut for word in words if word}))}
        found = np.bincount([places[word] for words in cut for word in set(words) if word], minlength=len(places))
        weights = np.log(len(cut) / found)

        def counted(texts: Sequence[str]) -> Rows:
            rows = np.zeros((len(texts), len(places)), np.float32)
            for at, text in enumerate(texts):
                for word in text.split():
                    place = places.get(word.strip(".,;:?!()'\"").lower())
                    if place is not None:
                        rows[at, place] += 1
            return unit(np.log1p(rows) * weights)

        def made() -> np.ndarray:
            matrix = counted(self._passages)
            drawn = np.random.default_rng(SEED).normal(size=(matrix.shape[1], 2 * LATENT)).astype(np.float32)
            # a randomised range finder with two power iterations (Halko, Martinsson and Tropp, 2011)
            basis = np.linalg.qr(matrix @ drawn)[0]
            for _ in range(2):
                basis = np.linalg.qr(matrix @ (matrix.T @ basis))[0]
            right = np.linalg.svd(basis.T @ matrix, full_matrices=False)[2][:LATENT].T
            return np.concatenate([unit(matrix @ right), unit(counted(self._questions) @ right)])

        rows = self._site.kept(f"latent-{digest([*self._passages, *self._questions])}", made)
        return rows[: len(self._passages)], rows[len(self._passages) :]

    def _embedded(self, name: str, embedder: Embedder) -> Both:
        def embed(texts: Sequence[str], kind: Kind) -> Callable[[], np.ndarray]:
            return lambda: np.concatenate([embedder.embed(batch, kind) for batch in batches(texts, BATCH_TEXTS)])

        passages = self._site.kept(f"passages-{name}-{digest(self._passages)}", embed(self._passages, "document"))
        questions = self._site.kept(f"questions-{name}-{digest(self._questions)}", embed(self._questions, "query"))
        return passages, questions

    @staticmethod
    def _each(change: Callable[[Rows], Rows], both: Both) -> Both:
        return change(both[0]), change(both[1])


@dataclass(frozen=True)
class Told:
    """What came of one stand-in: its own recall@10, the judgement, and what is found by each share of texts."""

    own: float
    standing: Standing
    mapped: float
    by_share: Mapping[float, tuple[float, float]]
    """Recall@10 by words alone, and by the map with words."""
    agreed: float
    """Of the first ten that a stand-in's own vectors of the asked questions find, the share that mapped ones find."""

    def line(self, name: str) -> str:
        shares = "  ".join(f"{words:.3f} {both:.3f}" for words, both in self.by_share.values())
        judged_by = f"{self.standing.agreement:.2f}  {self.standing.sanity:.2f}"
        verdict = "used" if not self.standing.reason else "off"
        return f"{name:<28}{self.own:.3f}  {judged_by}  {verdict:<5}{self.agreed:.2f}    {self.mapped:.3f}   {shares}"


def pairs(local: Both, other: Both, texts: tuple[Sequence[str], Sequence[str]], asked: int) -> Reservoir:
    """All passages, and as many of the questions behind the first `asked` as the sidecar takes."""
    reservoir = Reservoir(random.Random(SEED).random)
    for at, text in enumerate(texts[0]):
        reservoir.add(Pair(local[0][at], other[0][at], True, text))
    last = min(len(texts[1]), asked + int(QUESTIONS_TO_DOCUMENTS_MAX * len(texts[0])))
    for at in range(asked, last):
        reservoir.add(Pair(local[1][at], other[1][at], False, texts[1][at]))
    return reservoir


def measured(
    folder: Path, local: Both, other: Both, texts: tuple[Sequence[str], Sequence[str]], gold: Sequence[int], asked: int
) -> Told:
    """One stand-in, asked the first `asked` questions."""
    reservoir = pairs(local, other, texts, asked)
    if refusal(reservoir):
        raise ValueError(refusal(reservoir))
    bridge = fitted(reservoir.fitting)
    collections = {share: _collection(folder, share, other[0], texts[0]) for share in WORDED}
    bare = collections[0.0]
    agreed = agreed_by(bridge, reservoir.held_out[:JUDGED_MAX], lambda rows: nearest_in(bare, rows))
    standing = judged(bridge, reservoir, agreed, native_sanity(reservoir))
    mapped = bridge.mapped(local[1][:asked])
    true = nearest_in(bare, other[1][:asked])
    by_map = nearest_in(bare, mapped)
    return Told(
        quality(true, gold).recall_10,
        standing,
        quality(by_map, gold).recall_10,
        {share: _found(each, texts[1][:asked], mapped, gold, share) for share, each in collections.items()},
        agreement(true, by_map),
    )


def _found(
    collection: Any, questions: Sequence[str], mapped: Rows, gold: Sequence[int], share: float
) -> tuple[float, float]:
    """Recall@10 by words alone, and by the map and the words."""
    if share == 0:
        # without a word in it
        by_words: list[list[Any]] = [[] for _ in questions]
    else:
        by_words = [[hit.id for hit in collection.search_text(text, K)] for text in questions]
    both = [
        [hit.id for hit in collection.search_fused(row, text, K)] for row, text in zip(mapped, questions, strict=True)
    ]
    return quality(by_words, gold).recall_10, quality(both, gold).recall_10


def _collection(folder: Path, share: float, rows: Rows, passages: Sequence[str]) -> Any:
    dice = np.random.default_rng(SEED)
    is_worded = dice.random(len(passages)) < share
    points = [Point(at, row, {}, passages[at] if is_worded[at] else "") for at, row in enumerate(rows)]
    name = f"worded-{share:g}"
    write_snapshot(folder / name, points, space="primary", dimensions=rows.shape[1])
    library = Library(folder)
    library.refresh()
    return library.get(name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bridge", description=__doc__)
    parser.add_argument("--questions", type=int, default=1_000, help="that are asked")
    parser.add_argument("--only", help="stand-ins whose names have this in them")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "understudy-bench-retrieval")
    arguments = parser.parse_args()
    if not SQUAD.exists():
        sys.exit(f"needs the SQuAD development set, which is no part of this repository, in {SQUAD}")
    asked = arguments.questions
    squad = Squad(SQUAD, asked + int(QUESTIONS_TO_DOCUMENTS_MAX * len(Squad(SQUAD).passages)))
    passages = [one["text"] for one in squad.passages]
    questions = [one["question"] for one in squad.questions]
    gold = [one["passage"] for one in squad.questions][:asked]
    stand_ins = StandIns(Site(arguments.folder), passages, questions)
    print(f"{len(passages)} passages, {asked} questions asked; the local model's own recall@10 where texts are known: ")
    near = np.argsort(-(stand_ins.local[1][:asked] @ stand_ins.local[0].T), axis=1)[:, :K].tolist()
    print(f"{quality(near, gold).recall_10:.3f}\n")
    print("                            its own  judged by:     of its ten, by the   words alone, and with the map,")
    print(f"{'primary is played by':<28}R@10   agreement sane   asked   map's R@10   at {WORDED} of texts")
    for name, make in stand_ins.every().items():
        if arguments.only and arguments.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            told = measured(Path(folder), stand_ins.local, make(), (passages, questions), gold, asked)
        print(told.line(name), flush=True)
        if told.standing.reason:
            print(f"{'':<28}{told.standing.reason}")


if __name__ == "__main__":
    main()
