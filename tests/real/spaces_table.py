"""The wrong-space table: searches in every combination of embedder, database and whose the vector is.

    python -m tests.real.spaces_table [--searches 10000] [--documents 500] [--dialect NAME ...]

embedder: up, down, or back after an outage; database: up or down; the vector: handed out here, or of unknown origin.
The primary's vectors are of another space (96 dimensions, turned by a random rotation) than the local model's (48).
Every search goes through both routes as `proxy.stack` puts them together, one a second, and whoever searches looks at
what it was given: the database at marks and at vectors that are not its embedder's, the local index at vectors that are
not the local model's. An unknown vector may by chance be of a text that was embedded here before: then it is ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from tests.kit.two_spaces import FAR, FAR_DIMENSIONS, TwoSpaces, far, texts
from tests.kit.ways import WAYS
from understudy.policies.marks import MARK_PLACES, mark_of

EMBEDDER = ("up", "down", "back")
DATABASE = ("up", "down")
VECTOR = ("ours", "unknown")
POOL = 64
"""Vectors of ours in hand; one search in eight asks for a new one."""


@dataclass
class Row:
    """What came of the searches of one combination."""

    embedder: str
    database: str
    vector: str
    searches: int = 0
    served: Counter[str] = field(default_factory=Counter[str])
    right: int = 0
    answered: int = 0
    wrong_space: int = 0
    handles_at_primary: int = 0

    def line(self) -> str:
        how = ", ".join(f"{name} {count}" for name, count in self.served.most_common())
        found = f"{self.right / self.answered:.3f}" if self.answered else "-"
        return (
            f"{self.embedder:<9}{self.database:<9}{self.vector:<9}{self.searches:>8}"
            f"{self.wrong_space:>12}{self.handles_at_primary:>10}  {found:>6}  {how}"
        )


HEAD = "embedder database vector   searches wrong space   handles  hit@10  served by"


async def row(two: TwoSpaces, embedder: str, database: str, whose: str, searches: int, seed: int) -> Row:
    """So many searches of one combination. Of those of ours with the embedder back, half bring handles given before."""
    told = Row(embedder, database, whose, searches)
    rng = random.Random(seed)
    before = two.wrong_space, two.handles_at_primary
    pool: list[tuple[int, list[float]]] = []
    if embedder == "back":
        two.embedder_up = False
        pool = [await _ours(two, rng) for _ in range(POOL)]
    two.embedder_up, two.database_up = embedder != "down", database == "up"
    # long enough for breakers to hear that it is over, or has begun
    two.skipped_s += 600.0
    for _ in range(searches):
        two.skipped_s += 1.0
        # as every second in the sidecar
        two.provenance.drain(60.0)
        if whose == "unknown":
            wanted, vector = _unknown(two, rng)
        elif len(pool) < POOL or rng.random() < 0.125:
            pool = [*pool[:POOL], *pool[max(POOL, len(pool) - POOL) :], await _ours(two, rng)]
            wanted, vector = pool[-1]
        else:
            wanted, vector = rng.choice(pool)
        answer = await two.search(_altered(vector, rng))
        kind = "handle" if mark_of(vector[-MARK_PLACES:]) is not None else "vector"
        told.served[f"{answer.source} ({kind})"] += 1
        if answer.status == 200:
            told.answered += 1
            told.right += wanted in two.way.ids(json.loads(answer.body))
    told.wrong_space = two.wrong_space - before[0]
    told.handles_at_primary = two.handles_at_primary - before[1]
    return told


def _question(two: TwoSpaces, rng: random.Random) -> tuple[int, str]:
    """A document, and a question for it: two thirds of its words."""
    wanted = rng.randrange(len(two.documents))
    words = two.documents[wanted].split()
    return wanted, " ".join(rng.sample(words, len(words) * 2 // 3))


async def _ours(two: TwoSpaces, rng: random.Random) -> tuple[int, list[float]]:
    wanted, question = _question(two, rng)
    return wanted, await two.vector(question)


def _unknown(two: TwoSpaces, rng: random.Random) -> tuple[int, list[float]]:
    """A vector of the primary's embedder that the application has from elsewhere."""
    wanted, question = _question(two, rng)
    two.known_far.add(far(question).tobytes())
    return wanted, far(question).tolist()


def _altered(vector: list[float], rng: random.Random) -> list[float]:
    """A handle, as an application may have treated it: as it came, or normalised once more."""
    if mark_of(vector[-MARK_PLACES:]) is None or rng.random() < 0.5:
        return vector
    length = sum(x * x for x in vector) ** 0.5
    return [x / length for x in vector]


async def table(folder: Path, searches: int, documents: int, dialect: str = "qdrant") -> list[Row]:
    """A row for each combination, with a database of this API."""
    two = TwoSpaces(folder, texts(documents), dialect=dialect)
    two.provenance.learn(FAR, "m", FAR_DIMENSIONS)
    try:
        return [
            await row(two, *combination, searches=searches, seed=n)
            for n, combination in enumerate(product(EMBEDDER, DATABASE, VECTOR))
        ]
    finally:
        await two.close()


def main() -> None:
    """Print the table; exits with 1 when any answer came from a wrong space, or a primary saw a handle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=10_000, help="of each combination")
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--dialect", nargs="+", choices=sorted(WAYS), default=["qdrant", "elasticsearch", "chroma"])
    given = parser.parse_args()
    began = time.process_time()
    rows: list[Row] = []
    for dialect in given.dialect:
        with tempfile.TemporaryDirectory() as folder:
            found = asyncio.run(table(Path(folder), given.searches, given.documents, dialect))
        print(f"\n{dialect}\n{HEAD}")
        for each in found:
            print(each.line(), flush=True)
        rows += found
    wrong, handles = sum(each.wrong_space for each in rows), sum(each.handles_at_primary for each in rows)
    whole = sum(each.searches for each in rows)
    took_s = time.process_time() - began
    print(
        f"\n{whole} searches, answers from a wrong space {wrong}, handles at a primary {handles}; {took_s:.0f} s of CPU"
    )
    raise SystemExit(int(bool(wrong or handles)))


if __name__ == "__main__":
    main()
