"""What `understudy models bench` measures: how fast a model embeds here, and what int8 loses against fp32.

Speed is of one thread, by wall clock and by CPU time, since a busy machine shows in the first and not in the second.
Drift is measured on the handbook that ships: each heading is a question, the passages below it are what must be found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from understudy.models.embedder import Embedder

    Vectors = NDArray[np.float32]

__all__ = ["drift", "found_share", "overlap", "speed"]

K = 10
BULK_TEXTS = 32


def speed(embedder: Embedder, seconds: float) -> Iterator[str]:
    """Lines on questions one by one, and on passages in bulk, for `seconds` each."""
    passages, headings = handbook()
    yield _timed("one question", "questions", headings, 1, lambda texts: embedder.embed(texts), seconds)
    bulk = [passages[at % len(passages)] for at in range(len(passages) + BULK_TEXTS)]
    yield _timed("passages", "passages", bulk, BULK_TEXTS, lambda texts: embedder.embed(texts, "document"), seconds)


def _timed(
    what: str, unit: str, texts: Sequence[str], at_once: int, run: Callable[[Sequence[str]], object], seconds: float
) -> str:
    walls: list[float] = []
    began, cpu_began = time.perf_counter(), time.process_time()
    while not walls or time.perf_counter() - began < seconds:
        at = len(walls) * at_once % max(1, len(texts) - at_once)
        before = time.perf_counter()
        run(texts[at : at + at_once])
        walls.append((time.perf_counter() - before) / at_once)
    count = len(walls) * at_once
    cpu_s, walls = time.process_time() - cpu_began, sorted(walls)
    p50, p95 = (1e3 * walls[int(share * (len(walls) - 1))] for share in (0.5, 0.95))
    rate = count / sum(walls) / at_once
    return f"  {what}: {rate:.0f} {unit}/s; p50 {p50:.2f} ms, p95 {p95:.2f} ms, CPU {1e3 * cpu_s / count:.2f} ms each"


def drift(cache: Path, model: str) -> Iterator[str]:
    """Lines on what each other precision loses against fp32, over the handbook's passages."""
    from understudy.models.embedder import load_variant
    from understudy.models.errors import ModelError

    passages, headings = handbook()
    exact = load_variant(model, cache, "fp32")
    asked, known = exact.embed(headings), exact.embed(passages, "document")
    due = found_share(asked, known)
    yield f"  fp32: recall@{K} {due:.4f} of {len(headings)} headings, each its own passage of {len(passages)}"
    try:
        quick = load_variant(model, cache, "int8")
    except ModelError as error:
        yield f"  int8: {error}"
        return
    other_asked, other_known = quick.embed(headings), quick.embed(passages, "document")
    got = found_share(other_asked, other_known)
    worst = min(float((a * b).sum(axis=1).min()) for a, b in ((asked, other_asked), (known, other_known)))
    same = overlap(asked @ known.T, other_asked @ other_known.T)
    yield (
        f"  int8: recall@{K} {got:.4f} ({got - due:+.4f}), overlap@{K} {same:.3f}, worst cosine {worst:.4f}; "
        f"int8 questions among fp32 passages {found_share(other_asked, known):.4f}"
    )


def handbook() -> tuple[list[str], list[str]]:
    """The passages of the handbook that ships, and the heading that each stands under."""
    from understudy.indexes import knowledge_files
    from understudy.indexes.chunks import chunk_files

    passages = list(chunk_files(knowledge_files()))
    return [each.text for each in passages], [str(each.payload["title"]) for each in passages]


def found_share(asked: Vectors, known: Vectors, k: int = K) -> float:
    """The share of rows of `asked` [n, d] that have the same row of `known` [n, d] among their k nearest."""
    scores = asked @ known.T
    better = (scores > scores.diagonal()[:, None]).sum(axis=1)
    return float((better < k).mean())


def overlap(scores: Vectors, others: Vectors, k: int = K) -> float:
    """The mean share of k best columns that two rankings of the same rows have in common."""
    import numpy as np

    ones, twos = (np.argsort(-each, axis=1, kind="stable")[:, :k] for each in (scores, others))
    return float(np.mean([len(set(one) & set(two)) / k for one, two in zip(ones, twos, strict=True)]))
