"""Tell a service that answers quickly and wrongly from one that is well: drifted vectors, lost points, a rotten index.

Three kinds of check, each of which finds nothing wrong or names what is:

    embeddings   fixed texts, embedded again, against the vectors they had        dimension, not finite, norm, drift
    searches     what the database finds against what the mirror finds            empty, overlap, top-1, scores
    count        how many points each has                                         lost

A database that was written to differs from its mirror, and that is no fault of either. So what was compared while
writes were on their way is not counted; points that only the database has are discounted, with the places that they
took; and of points that only the mirror finds, the database is asked by id what it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite, sqrt
from typing import Literal, NamedTuple

from understudy.policies.compare import cosine, rbo

DEPTH = 10
COSINE_MIN = 0.999
"""float16 on the way costs a cosine 1e-6; another model, or another revision of one, costs more than 1e-3."""
NORM_ERROR_MAX = 1e-2
OVERLAP_MIN = 0.8
TOP_1_MIN = 0.9
RBO_MIN = 0.7
EMPTY_SHARE_MAX = 0.05
SCORE_SHIFT_MAX = 0.02
"""Of scores that are at most about 1; a quantised index is off by some thousandths."""
COUNT_SHARE_MIN = 0.95
PAIRS_MIN = 20
PAIRS_MAX = 200
MISSING_MAX = 64
"""Points that the database is asked for by id, at once."""

Kind = Literal[
    "embedding_shape",
    "embedding_dimension",
    "embedding_not_finite",
    "embedding_norm",
    "embedding_drift",
    "retrieval_empty",
    "retrieval_short",
    "retrieval_overlap",
    "retrieval_top_1",
    "retrieval_scores",
    "retrieval_lost",
    "retrieval_altered",
    "retrieval_index",
]
Fate = Literal["there", "altered", "gone"]
"""What the database has of a point that the mirror finds: the same, another vector, or nothing."""


def embedding_fault(
    got: Sequence[Sequence[float]], stored: Sequence[Sequence[float]], *, cosine_min: float = COSINE_MIN
) -> Kind | None:
    """What is wrong with the vectors `got` for the texts that had the vectors `stored`; None where nothing is.

    That vectors had unit length is seen by the stored ones, and then asked of the others.
    """
    if len(got) != len(stored):
        return "embedding_shape"
    if any(len(one) != len(other) for one, other in zip(got, stored, strict=True)):
        return "embedding_dimension"
    if not all(isfinite(number) for vector in got for number in vector):
        return "embedding_not_finite"
    if all(abs(_norm(vector) - 1) <= NORM_ERROR_MAX for vector in stored) and any(
        abs(_norm(vector) - 1) > NORM_ERROR_MAX for vector in got
    ):
        return "embedding_norm"
    least = min((cosine(one, other) for one, other in zip(got, stored, strict=True)), default=1.0)
    return "embedding_drift" if least < cosine_min else None


def _norm(vector: Sequence[float]) -> float:
    return sqrt(sum(number * number for number in vector))


def count_fault(live: int, mirrored: int) -> Kind | None:
    """Whether the database has lost points. More of them than in the mirror are somebody's ingest, and no fault."""
    return "retrieval_lost" if live < COUNT_SHARE_MIN * mirrored else None


class Ranking(NamedTuple):
    """One list of points found, the best first, with their scores where they have any."""

    ids: Sequence[str]
    scores: Sequence[float] = ()


class Pair(NamedTuple):
    """How far the database's list and the mirror's agree, after what was ingested has been discounted.

    `missing` are the points that are due and did not come. `shift` is by how much the score of a point differs, at the
    median over those that both found; None where nothing can be said.
    """

    overlap: float
    rbo: float
    top_1: bool
    empty: bool
    shift: float | None
    missing: tuple[str, ...]
    ingested: int


def paired(live: Ranking, mirrored: Ranking, is_known: Callable[[str], bool], k: int = DEPTH) -> Pair:
    """Compare the first `k` of two lists. `is_known` says whether the mirror has a point at all.

    Each point that only the database has takes a place from one that the mirror found last: with n of them, the
    database is owed the first k - n of the mirror's.
    """
    known = [point for point in live.ids[:k] if is_known(point)]
    ingested = min(len(live.ids), k) - len(known)
    due = mirrored.ids[: max(0, min(k, len(mirrored.ids)) - ingested)]
    found = set(known)
    common = set(due) & found
    by_id = dict(zip(mirrored.ids, mirrored.scores, strict=False))
    shifts = [
        abs(score - by_id[point]) for point, score in zip(live.ids[:k], live.scores, strict=False) if point in by_id
    ]
    return Pair(
        overlap=len(common) / len(due) if due else 1.0,
        rbo=rbo(known[: len(due)], due) if due else 1.0,
        top_1=not due or known[:1] == list(due[:1]),
        empty=not live.ids and bool(mirrored.ids),
        shift=_median(shifts) if shifts else None,
        missing=tuple(point for point in due if point not in found),
        ingested=ingested,
    )


def searches_faults(pairs: Sequence[Pair]) -> tuple[Kind, ...]:
    """What is wrong with searches that were compared, the worst first; () where nothing is, or there were none."""
    if not pairs:
        return ()
    faults: list[Kind] = []
    count = len(pairs)
    if sum(pair.empty for pair in pairs) > EMPTY_SHARE_MAX * count:
        faults.append("retrieval_empty")
    if sum(pair.overlap for pair in pairs) < OVERLAP_MIN * count or sum(pair.rbo for pair in pairs) < RBO_MIN * count:
        faults.append("retrieval_overlap")
    if sum(pair.top_1 for pair in pairs) < TOP_1_MIN * count:
        faults.append("retrieval_top_1")
    shifts = [pair.shift for pair in pairs if pair.shift is not None]
    if shifts and _median(shifts) > SCORE_SHIFT_MAX:
        faults.append("retrieval_scores")
    return tuple(faults)


def _median(values: Sequence[float]) -> float:
    # the library's own brings fractions and decimals into every worker: half a megabyte
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def is_short(found: int, wanted: int) -> bool:
    """Whether a search that found so many of the points wanted is to be doubted."""
    return 2 * found < wanted


def doubt(live: Sequence[str], mirrored: Sequence[str]) -> Kind | None:
    """What is wrong with a search's few points, beside what the mirror finds; None where that is not twice as many."""
    if not live:
        return "retrieval_empty" if mirrored else None
    return "retrieval_short" if is_short(len(live), len(mirrored)) else None


def cause(fates: Mapping[str, Fate]) -> Kind | None:
    """Why points that are due did not come, by what the database has of each: lost, altered, or there and not found.

    The most frequent fate decides, of two as frequent the graver. None where nobody was asked.
    """
    if not fates:
        return None
    counts = {fate: sum(1 for each in fates.values() if each == fate) for fate in ("gone", "altered", "there")}
    kinds: dict[str, Kind] = {
        "gone": "retrieval_lost",
        "altered": "retrieval_altered",
        "there": "retrieval_index",
    }
    return kinds[max(counts, key=lambda fate: counts[fate])]


class Stand(NamedTuple):
    """Where the mirror stands: when it was last seen to change, and whether it knows that it is not what it should."""

    changed_at: float = float("-inf")
    is_behind: bool = False


class Watched:
    """Pairs of live searches as they come, until there are enough for a check.

    `fates` counts what became of pairs: compared, or moving where writes were on their way. `missing` are points that
    were due and did not come, for who asks the database what it has of them.
    """

    __slots__ = ("fates", "missing", "pairs")

    def __init__(self) -> None:
        self.pairs: list[Pair] = []
        self.missing: dict[str, None] = {}
        self.fates = {"compared": 0, "moving": 0}

    def add(self, pair: Pair, stand: Stand, began: float) -> bool:
        """Take a pair that was asked for at `began`, while the mirror stands so; whether a check is due."""
        if stand.is_behind or stand.changed_at >= began:
            self.fates["moving"] += 1
        elif len(self.pairs) < PAIRS_MAX:
            self.fates["compared"] += 1
            self.pairs.append(pair)
            for point in pair.missing[: max(0, MISSING_MAX - len(self.missing))]:
                self.missing[point] = None
        return len(self.pairs) >= PAIRS_MIN

    def take(self) -> tuple[tuple[Kind, ...], tuple[str, ...]]:
        """What is wrong with the pairs since this was last asked, and the points that are missing from them."""
        faults, missing = searches_faults(self.pairs), tuple(self.missing)
        self.pairs.clear()
        self.missing.clear()
        return faults, missing
