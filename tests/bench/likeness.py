"""What likeness gives and how often it is wrong, on SQuAD's questions: `python -m tests.bench.likeness`.

    as asked     every question of the development set once, in a seeded order
    asked again  draws by Zipf's law, each typed anew (case, marks, contractions, a greeting, a dropped "the")

Both with the paragraph of the question in the prompt, as a RAG application has it, and without. The upstream gives the
first accepted answer. A hit is right only if it was asked of the same paragraph and the accepted answers meet. Beside
it, what a threshold on the cosine alone would do. For retrieval, recall@10 over the paragraphs, with and without.
"""

from __future__ import annotations

import argparse
import json
import string
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.kit.processes import REPOSITORY
from understudy.models.embedder import load
from understudy.policies.cache import Town
from understudy.policies.likeness import Likeness, Told, bucket_of
from understudy.policies.wording import compare_answers, wording_of
from understudy.proxy.settings.settings import Likeness as Rules

SQUAD = REPOSITORY.parent / "shared" / "data" / "squad-dev"
THRESHOLDS = (0.8, 0.9, 0.95)
COSINE_MIN = {"answers": 0.95, "retrieval": 0.92}
DRAWS = 10_000
ZIPF = 1.1
SEED = 11
Vectors = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Asking:
    """One question as it arrives: its words, and which question of the set it is."""

    text: str
    question: int


@dataclass(frozen=True)
class Figure:
    """How many of a stream's calls were given a kept answer, and how many of those were wrong."""

    calls: int
    served: int
    wrong: int

    def __str__(self) -> str:
        share = f"{self.wrong / self.served:6.2%}" if self.served else "     –"
        return f"served {self.served / self.calls:6.2%} of {self.calls}, false {share} ({self.wrong} of {self.served})"


class Squad:
    """The questions and paragraphs, and whether one question's answer does for another."""

    def __init__(self, folder: Path, questions_max: int | None = None, passages_max: int | None = None) -> None:
        self.passages: list[dict[str, Any]] = _lines(folder / "passages.jsonl")[:passages_max]
        every: list[dict[str, Any]] = _lines(folder / "questions.jsonl")
        self.questions = [one for one in every if one["passage"] < len(self.passages)]
        if questions_max is not None:
            chosen = np.random.default_rng(SEED).permutation(len(self.questions))[:questions_max]
            self.questions = [self.questions[at] for at in chosen]
        self._answers = [{_plain(answer) for answer in one["answers"]} for one in self.questions]

    def is_right(self, asked: int, kept: int) -> bool:
        """Strictly: the same paragraph, and accepted answers in common."""
        same = self.questions[asked]["passage"] == self.questions[kept]["passage"]
        return same and bool(self._answers[asked] & self._answers[kept])

    def as_asked(self) -> list[Asking]:
        """Every question once."""
        order = np.random.default_rng(SEED).permutation(len(self.questions))
        return [Asking(self.questions[at]["question"], int(at)) for at in order]

    def asked_again(self, draws: int = DRAWS) -> list[Asking]:
        """Some questions often, most rarely, each time as somebody else types it."""
        dice = np.random.default_rng(SEED)
        weights = 1.0 / np.arange(1, len(self.questions) + 1) ** ZIPF
        rank = dice.permutation(len(self.questions))
        drawn = dice.choice(len(self.questions), draws, p=weights / weights.sum())
        return [Asking(_retyped(self.questions[rank[at]]["question"], dice), int(rank[at])) for at in drawn]


def _lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _plain(answer: str) -> str:
    words = answer.casefold().translate(str.maketrans("", "", string.punctuation)).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _retyped(text: str, dice: np.random.Generator) -> str:
    """The same question, typed by somebody else."""
    ways: list[Callable[[str], str]] = [
        str.lower,
        lambda one: one.rstrip(" ?"),
        lambda one: one.replace("What is", "What's").replace("Who is", "Who's"),
        lambda one: f"Hello, {one[:1].lower()}{one[1:]}",
        lambda one: f"{one.rstrip(' ?')}, please?",
        lambda one: one.replace(" the ", " ", 1),
    ]
    for way in dice.permutation(len(ways))[: dice.integers(0, 3)]:
        text = ways[way](text)
    return text


def by_threshold(squad: Squad, stream: Sequence[Asking], vectors: Vectors) -> dict[float, Figure]:
    """Give whatever was asked before and is nearest, at each of the thresholds."""
    rows = vectors([one.text for one in stream])
    served, wrong = dict.fromkeys(THRESHOLDS, 0), dict.fromkeys(THRESHOLDS, 0)
    for at in range(1, len(stream)):
        cosines = rows[:at] @ rows[at]
        nearest = int(cosines.argmax())
        right = stream[nearest].question == stream[at].question or squad.is_right(
            stream[at].question, stream[nearest].question
        )
        for threshold in THRESHOLDS:
            if cosines[nearest] >= threshold:
                served[threshold] += 1
                wrong[threshold] += not right
    return {threshold: Figure(len(stream), served[threshold], wrong[threshold]) for threshold in THRESHOLDS}


def as_shipped(squad: Squad, stream: Sequence[Asking], vectors: Vectors, *, context: bool) -> Figure:
    """What mode `serve` gives with everything as it is built in; one call a second."""
    heart, rules = Likeness(Rules(mode="serve", entries_max=100_000), Town()), Rules()
    dice = np.random.default_rng(SEED)
    rows = vectors([one.text for one in stream])
    served = wrong = 0
    for now, one in enumerate(stream):
        wording = wording_of(one.text)
        assert wording is not None
        scope = b"%d" % squad.questions[one.question]["passage"] if context else b""
        told = heart.answers.find(scope, wording, now, rules.ttl_s * 24)
        answer = squad.questions[one.question]["answers"][0]
        grade = wording.grade(told.wording) if told is not None else None
        if told is not None and grade is not None:
            kept, at = told.answer
            cosine = float(rows[now] @ rows[at])
            bucket = bucket_of(grade, cosine) if cosine >= COSINE_MIN["answers"] else None
            if bucket is not None:
                if heart.permitted(bucket, now) and dice.random() >= rules.verify_share:
                    served += 1
                    wrong += kept != one.question and not squad.is_right(one.question, kept)
                    continue
                verdict = compare_answers(squad.questions[kept]["answers"][0], answer)
                same = verdict.same
                if same and verdict.cosine_min is not None:
                    pair = vectors([squad.questions[kept]["answers"][0], answer])
                    same = float(pair[0] @ pair[1]) >= verdict.cosine_min
                heart.permission.judged(bucket, now, same=same)
        heart.answers.keep(scope, Told(one.text, wording, (one.question, now), now, 1), heart.rules)
    return Figure(len(stream), served, wrong)


@dataclass(frozen=True)
class Recall:
    """Recall@10 of searches, own and as given by likeness, over all calls and over those it answered."""

    hit_share: float
    own: float
    given: float
    own_of_hits: float
    given_of_hits: float

    def __str__(self) -> str:
        return (
            f"served {self.hit_share:.2%}; recall@10 {self.own:.4f} without, {self.given:.4f} with"
            f" (of those served {self.own_of_hits:.3f} and {self.given_of_hits:.3f})"
        )


def retrieval(squad: Squad, stream: Sequence[Asking], vectors: Vectors, passages: np.ndarray) -> Recall:
    """Searches through the lists, as mode `serve` does; a list that was given is not kept again."""
    heart = Likeness(Rules(mode="serve", entries_max=100_000, bytes_max=1 << 30), Town())
    homes = heart.lists.homes("squad")
    rows = vectors([one.text for one in stream])
    hits = np.zeros(len(stream), bool)
    own, given = np.zeros(len(stream)), np.zeros(len(stream))
    for now, one in enumerate(stream):
        top = np.argpartition(-(passages @ rows[now]), 10)[:10]
        gold = squad.questions[one.question]["passage"]
        own[now] = given[now] = gold in top
        near = heart.lists.nearest(b"", rows[now], 0.0, COSINE_MIN["retrieval"], 1.0)
        if near is not None:
            hits[now], given[now] = True, gold in near.answer
            continue
        heart.lists.keep(b"", homes, 0, rows[now], top, 1, 0.0, heart.rules)
    of_hits = [float(each[hits].mean()) if hits.any() else float("nan") for each in (own, given)]
    return Recall(float(hits.mean()), float(own.mean()), float(given.mean()), *of_hits)


def remembering(embed: Callable[[Sequence[str]], np.ndarray]) -> Vectors:
    """Each text is embedded once."""
    known: dict[str, np.ndarray] = {}

    def vectors(texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        for at in range(0, len(new), 256):
            known.update(zip(new[at : at + 256], embed(new[at : at + 256]), strict=True))
        return np.stack([known[text] for text in texts])

    return vectors


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.likeness", description=__doc__)
    parser.add_argument("--models", type=Path, default=REPOSITORY / "build" / "models", help="where the model is built")
    parser.add_argument("--questions", type=int, help="only so many, for an impression")
    arguments = parser.parse_args()
    if not SQUAD.exists():
        sys.exit(f"needs the SQuAD development set, which is no part of this repository, in {SQUAD}")
    arguments.models.mkdir(parents=True, exist_ok=True)
    embedder = load(None, arguments.models, "cpu")
    squad = Squad(SQUAD, arguments.questions)
    vectors = remembering(embedder.embed)
    streams = {"as asked": squad.as_asked(), "asked again": squad.asked_again()}
    for name, stream in streams.items():
        print(f"\n{name}: {len(stream)} calls")
        for threshold, figure in by_threshold(squad, stream, vectors).items():
            print(f"  cosine {threshold} alone           {figure}")
        print(f"  as shipped, no passages     {as_shipped(squad, stream, vectors, context=False)}")
        print(f"  as shipped, with passages   {as_shipped(squad, stream, vectors, context=True)}", flush=True)
    texts = [passage["text"] for passage in squad.passages]
    passages = remembering(lambda some: embedder.embed(some, "document"))(texts)
    print("\nretrieval at cosine 0.92")
    for name, stream in streams.items():
        print(f"  {name:<12} {retrieval(squad, stream, vectors, passages)}")


if __name__ == "__main__":
    main()
