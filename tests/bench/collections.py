"""What local collections cost and find: `python -m tests.bench.collections [--points 50000] [--queries 300]`.

    search     CPU time of one unfiltered search, its payloads fetched; recall@10 against an exact scan
    filters    the same at selectivities from 100 % to 0.1 %: agreement with an exact filtered scan, and cost
    tail       the same while so many points are not compacted yet
    sync       points written in batches, their compaction, and how long they take to load again
    stall      how late an event loop of this process was while that went on

Vectors are made: clusters on a surface of few dimensions, as embeddings lie. Times of single searches are CPU time of
the thread (`time.thread_time`), which other programs disturb little; the others are wall clock.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench.watched import queueing
from understudy.indexes.collection import Collection
from understudy.indexes.compacting import Compactor
from understudy.indexes.library import Library
from understudy.indexes.points import Point
from understudy.indexes.writes import Upsert
from understudy.proxy.server import TURN_S, YOUNG_OBJECTS_MAX

DIMENSIONS = 384
LATENT = 48
K = 10
BATCH = 500
SELECTIVITIES = (1.0, 0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01, 0.001)
NAME = "bench"
HEARTBEAT_S = 0.001

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Cost:
    """CPU milliseconds of one search: the median and the 99th percentile."""

    p50_ms: float
    p99_ms: float

    def __str__(self) -> str:
        return f"p50 {self.p50_ms:.3f} ms, p99 {self.p99_ms:.3f} ms of CPU"


@dataclass(frozen=True)
class Filtered:
    """One selectivity: the share of an exact filtered scan's hits that were found, the cost of the first search, which
    works the filter out, of the others, and of the same ones unfiltered, each just before."""

    selectivity: float
    agreement: float
    first_ms: float
    cost: Cost
    unfiltered: Cost

    def __str__(self) -> str:
        p50, p99 = self.cost.p50_ms / self.unfiltered.p50_ms, self.cost.p99_ms / self.unfiltered.p99_ms
        return (
            f"{self.selectivity:6.1%} agreement {self.agreement:.4f}, {self.cost}, {p50:.1f} x unfiltered ({p99:.1f});"
            f" the first {self.first_ms:.1f} ms"
        )


def made_vectors(count: int, seed: int = 1) -> Vectors:
    """[count, DIMENSIONS] float32 of unit length."""
    dice = np.random.default_rng(seed)
    surface = np.random.default_rng(0).normal(size=(LATENT, DIMENSIONS)).astype(np.float32)
    centres = np.random.default_rng(0).normal(size=(200, LATENT)).astype(np.float32)
    latent = centres[dice.integers(0, len(centres), count)] + dice.normal(scale=0.8, size=(count, LATENT))
    vectors = latent.astype(np.float32) @ surface + dice.normal(scale=0.3, size=(count, DIMENSIONS)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def made_points(vectors: Vectors, start: int = 0) -> list[Point]:
    """Points whose `share` is spread evenly over [0, 1), apart from how near they are."""
    spread = np.random.default_rng(5).permutation(len(vectors)) / len(vectors)
    return [
        Point(start + at, vector, {"share": float(spread[at]), "tenant": f"t{at % 50}"}, f"passage number {start + at}")
        for at, vector in enumerate(vectors)
    ]


def cost_of(ask: Callable[[Vectors], object], queries: Vectors) -> Cost:
    """CPU time of `ask`, once for every query."""
    (cost,) = costs_of([ask], queries)
    return cost


def costs_of(asks: Sequence[Callable[[Vectors], object]], queries: Vectors) -> list[Cost]:
    """CPU time of each of `asks`, one after the other for every query: what a busy machine adds, it adds to all."""
    took: list[list[float]] = [[] for _ in asks]
    for query in queries:
        for ask, each in zip(asks, took, strict=True):
            began = time.thread_time()
            ask(query)
            each.append(1_000 * (time.thread_time() - began))
    return [Cost(statistics.median(each), sorted(each)[min(len(each) - 1, int(0.99 * len(each)))]) for each in took]


def recall(
    collection: Collection, points: Sequence[Point], queries: Vectors, share: float = 1.0, asked: object = None
) -> float:
    """The share of the K best by an exact scan, of points whose `share` is less, that a search finds which the filter
    `asked` says that to."""
    allowed = [point for point in points if point.payload["share"] < share]
    matrix = np.stack([point.vector for point in allowed if point.vector is not None])
    ids = np.array([point.id for point in allowed])
    found = 0
    for query in queries:
        scores = matrix @ query
        bar = np.sort(scores)[-min(K, len(scores))] - 1e-6
        due = set(ids[scores >= bar].tolist())
        hits = collection.search(query, K, filter=asked)
        found += sum(hit.id in due for hit in hits)
    return found / (len(queries) * min(K, len(allowed)))


def filter_of(share: float) -> dict[str, Any]:
    """A filter that lets this share of the points through."""
    return {"must": [{"key": "share", "range": {"lt": share}}]}


def filtered(collection: Collection, points: Sequence[Point], queries: Vectors) -> Iterator[Filtered]:
    """Every selectivity."""
    for share in SELECTIVITIES:
        asked = filter_of(share)
        first = cost_of(lambda query, asked=asked: collection.search(query, K, filter=asked), queries[:1])
        bare, cost = costs_of(
            [
                lambda query: collection.search(query, K),
                lambda query, asked=asked: collection.search(query, K, filter=asked),
            ],
            queries,
        )
        yield Filtered(share, recall(collection, points, queries, share, asked), first.p50_ms, cost, bare)


@dataclass(frozen=True)
class Stall:
    """How long work took in a thread, and how late the event loop was at worst meanwhile: by the clock, and what of it
    was work of ours (see `watched`). The difference is other programs' doing."""

    took_s: float
    late_s: float
    own_s: float


async def stall_during(work: Callable[[], object]) -> Stall:
    """Do `work` in a thread, and watch the event loop."""
    loop = asyncio.get_running_loop()
    late, own, began = 0.0, 0.0, loop.time()
    queued_s = queueing()
    working = loop.run_in_executor(None, work)
    while not working.done():
        due, spent, queued = loop.time() + HEARTBEAT_S, time.process_time(), queued_s()
        await asyncio.sleep(HEARTBEAT_S)
        late_s = loop.time() - due
        late = max(late, late_s)
        own = max(own, min(late_s - (queued_s() - queued), time.process_time() - spent))
    await working
    return Stall(loop.time() - began, late, own)


def write_all(library: Library, points: Sequence[Point]) -> None:
    """Write points in batches, as a sync does."""
    for at in range(0, len(points), BATCH):
        library.write(NAME, [Upsert(tuple(points[at : at + BATCH]))])


def measure(folder: Path, count: int, asked: int) -> None:
    """Everything, said as it is known."""
    points = made_points(made_vectors(count))
    # as the server does: what is there for good is no longer gone through
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX, 20, 50)
    sys.setswitchinterval(TURN_S)
    queries = made_vectors(asked, seed=2)
    library = Library(folder, compactor=Compactor(compact=lambda _folder: None))

    def say(what: str, stall: Stall) -> None:
        late, own = 1_000 * stall.late_s, 1_000 * stall.own_s
        print(f"{what:44} {stall.took_s:8.2f} s, event loop late by {late:6.1f} ms, {own:6.1f} of our own", flush=True)

    say("nothing, for a second", asyncio.run(stall_during(lambda: time.sleep(1))))
    say(f"write {count} points in batches of {BATCH}", asyncio.run(stall_during(lambda: write_all(library, points))))
    print(f"{library.bytes_held / 2**20:.0f} MiB held")
    say("compact them in a child, and take them up", asyncio.run(stall_during(lambda: library.compact(NAME))))
    collection = library.open(NAME)
    again = Library(folder)
    say("load them again", asyncio.run(stall_during(lambda: again.open(NAME))))
    cost = cost_of(lambda query: collection.search(query, K), queries)
    print(f"\nunfiltered: {cost}; recall@{K} {recall(collection, points, queries):.4f}; graph: {collection.has_graph}")
    for each in filtered(collection, points, queries):
        print(each, flush=True)
    for tail in (500, 5_000):
        more = made_points(made_vectors(tail, seed=3), start=count)
        write_all(library, more)
        cost = cost_of(lambda query: collection.search(query, K), queries)
        print(f"with {collection.stats.tail} points in the tail: {cost}")
    old = made_points(made_vectors(count // 10, seed=4))
    write_all(library, old)
    cost = cost_of(lambda query: collection.search(query, K), queries)
    print(f"with {collection.stats.tombstones} tombstones, {collection.stats.tail} in the tail: {cost}")


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=300)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        measure(Path(folder), arguments.points, arguments.queries)
    sys.exit(0)


if __name__ == "__main__":
    main()
