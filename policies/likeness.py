"""Answer a question as one like it was answered: only while that has proved to be right.

    question --guards--> a kept answer, and how alike (grade, cosine) = a bucket
    bucket --learnt--> permitted?   yes: served, but for a sampled share       no: asked upstream, as ever
                                                  \\_________________________________/
                                      the upstream's answer is compared: same or different --> the bucket

    search --cosine--> the list of a neighbour in the same scope

Two stores and one thing learnt. Answers are found by their wording (`understudy.policies.wording`), so that no vector
is needed to find out that nobody has asked this before. Lists of retrieved points are found by the query's own vector:
a neighbour's list at cosine .92 costs no recall (measured on SQuAD). Everything that shapes an answer but the varying
text or vector is part of the scope it is kept under, the tenant first of all.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from understudy.policies.cache import Homes, Town, is_settled, stamp_of
from understudy.policies.wording import Grade, Wording

Mode = Literal["off", "shadow", "fallback", "serve"]
Vector = NDArray[np.float32]

BANDS = (0.9, 0.95, 0.98)
"""Lower ends of the bands of cosine that a permission is learnt for, each by itself."""
Z = 1.96
"""The bound on a false rate holds with 97.5 %: without a single false verdict it takes 189 to be under 2 %."""
VERDICTS_MAX = 1000.0
"""What a bucket remembers counts for at most so many verdicts, so that a change shows through a long good past."""
HALF_LIFE_S = 7 * 86400.0
"""A verdict counts for half after a week: what was learnt of another model and other documents fades by itself."""

SCOPES_MAX = 256
RING_START = 16
ENTRY_OVERHEAD_BYTES = 512


class LikenessRules(Protocol):
    """What likeness goes by (`Likeness` of `proxy/settings` has all of it)."""

    @property
    def mode(self) -> Mode: ...
    @property
    def false_share_max(self) -> float: ...
    @property
    def verify_share(self) -> float: ...
    @property
    def ttl_s(self) -> float: ...
    @property
    def fallback_ttl_s(self) -> float: ...
    @property
    def entries_max(self) -> int: ...
    @property
    def bytes_max(self) -> int: ...


# --- permission ----------------------------------------------------------------------------------------------------


def wilson_upper(false: float, judged: float, z: float = Z) -> float:
    """The upper end of Wilson's score interval (1927) for a share of `false` among `judged`; 1.0 where nothing is."""
    if judged <= 0:
        return 1.0
    share = false / judged
    centre = share + z * z / (2 * judged)
    spread = z * math.sqrt(share * (1 - share) / judged + z * z / (4 * judged * judged))
    return (centre + spread) / (1 + z * z / judged)


class Bucket(NamedTuple):
    """Hits that are alike in the same way: by the same guard, and within one band of cosine."""

    grade: Grade
    band: float

    @property
    def label(self) -> str:
        """What metrics call it: `exact-0.98`."""
        return f"{self.grade}-{self.band}"


def bucket_of(grade: Grade, cosine: float) -> Bucket | None:
    """Where a hit belongs; None below the lowest band, and for what is no number."""
    band = max((low for low in BANDS if cosine >= low), default=None)
    return None if band is None else Bucket(grade, band)


class Verdicts:
    """What is known of one bucket: verdicts as weights that fade, and their plain counts for the metrics."""

    __slots__ = ("at", "different", "false", "judged", "same")

    def __init__(self) -> None:
        self.judged = 0.0
        self.false = 0.0
        self.at = 0.0
        self.same = 0
        self.different = 0

    def add(self, now: float, *, same: bool) -> None:
        """Take one more verdict in."""
        self._fade(now)
        self.judged += 1.0
        if same:
            self.same += 1
        else:
            self.false += 1.0
            self.different += 1
        if self.judged > VERDICTS_MAX:
            self.false *= VERDICTS_MAX / self.judged
            self.judged = VERDICTS_MAX

    def upper(self, now: float) -> float:
        """What the bucket's false rate is at most, as far as is known."""
        self._fade(now)
        return wilson_upper(self.false, self.judged)

    def _fade(self, now: float) -> None:
        if now > self.at:
            weight = 0.5 ** ((now - self.at) / HALF_LIFE_S)
            self.judged *= weight
            self.false *= weight
            self.at = now


class Permission:
    """Which buckets may be served, learnt from verdicts. Nothing may until it has been shown."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: dict[Bucket, Verdicts] = {}

    def judged(self, bucket: Bucket, now: float, *, same: bool) -> None:
        """An answer that would have been served was compared with the upstream's own."""
        self._buckets.setdefault(bucket, Verdicts()).add(now, same=same)

    def allows(self, bucket: Bucket, now: float, false_share_max: float) -> bool:
        """Whether hits of this bucket are wrong at most this often, for all we know."""
        verdicts = self._buckets.get(bucket)
        return verdicts is not None and verdicts.upper(now) <= false_share_max

    def allows_any(self, grade: Grade, now: float, false_share_max: float) -> bool:
        """Whether it is worth finding out the cosine of a hit of this grade."""
        return any(bucket.grade == grade and self.allows(bucket, now, false_share_max) for bucket in self._buckets)

    def known(self) -> Sequence[tuple[Bucket, Verdicts]]:
        """Every bucket there were verdicts of."""
        return list(self._buckets.items())


# --- answers, by wording -------------------------------------------------------------------------------------------


class Told:
    """A kept answer and the question it was given to; `vector` is the question's, once somebody needed it."""

    __slots__ = ("answer", "at", "size", "text", "vector", "wording")

    def __init__(self, text: str, wording: Wording, answer: Any, at: float, size: int) -> None:
        self.text = text
        self.wording = wording
        self.answer = answer
        self.at = at
        self.size = size
        self.vector: Vector | None = None


class Answers:
    """Answers by scope and wording, the longest unused dropped first. One lookup is two look-ups in dicts."""

    __slots__ = ("_kept", "bytes")

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[bytes, str], Told] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, scope: bytes, wording: Wording, now: float, age_s_max: float) -> Told | None:
        """The answer to a question of the same scope that is alike by its wording, unless it is too old."""
        told = self._kept.get((scope, wording.loose))
        if told is None or now - told.at > age_s_max:
            return None
        self._kept.move_to_end((scope, wording.loose))
        return told

    def keep(self, scope: bytes, told: Told, rules: LikenessRules) -> None:
        """Keep the newest answer to a question, within the bounds."""
        key = (scope, told.wording.loose)
        if (before := self._kept.pop(key, None)) is not None:
            self.bytes -= before.size
        if told.size > rules.bytes_max:
            return
        self._kept[key] = told
        self.bytes += told.size
        while self._kept and (self.bytes > rules.bytes_max or len(self._kept) > rules.entries_max):
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= oldest.size


# --- lists, by vector ----------------------------------------------------------------------------------------------


class Near(NamedTuple):
    """A neighbour's list, how near its query was, and how old it is in seconds."""

    answer: Any
    cosine: float
    age_s: float


class Ring:
    """The lists of one scope: unit vectors in one matrix, so that finding the nearest is one product; the oldest place
    is taken anew when all are taken. `stamp` is that of the collection when they were read."""

    __slots__ = ("_answers", "_born", "_count", "_matrix", "_next", "_sizes", "bytes", "homes", "stamp")

    def __init__(self, homes: Homes, dimensions: int) -> None:
        self.homes = homes
        self.stamp = stamp_of(homes)
        self._matrix = np.empty((RING_START, dimensions), np.float32)
        self._born = np.empty(RING_START, np.float64)
        self._answers: list[Any] = []
        self._sizes: list[int] = []
        self._count = 0
        self._next = 0
        self.bytes = self._matrix.nbytes

    def __len__(self) -> int:
        return self._count

    def nearest(self, vector: Vector, now: float, cosine_min: float, age_s_max: float) -> Near | None:
        """The list of the nearest query not older than `age_s_max`, or None where none is near enough."""
        count = self._count
        if not count:
            return None
        cosines = self._matrix[:count] @ vector
        cosines[now - self._born[:count] > age_s_max] = -1.0
        at = int(cosines.argmax())
        cosine = float(cosines[at])
        return Near(self._answers[at], cosine, now - float(self._born[at])) if cosine >= cosine_min else None

    def keep(self, vector: Vector, answer: Any, size: int, now: float, entries_max: int) -> None:
        """Keep one more list, in the place of the oldest if there are `entries_max` already."""
        if self._count < entries_max:
            self._next = self._count
            if self._count == len(self._matrix):
                self._grow(min(entries_max, 2 * self._count))
            self._count += 1
            self._answers.append(None)
            self._sizes.append(0)
        at = self._next
        self._next = (at + 1) % max(1, min(self._count, entries_max))
        self.bytes += size - self._sizes[at]
        self._matrix[at], self._born[at] = vector, now
        self._answers[at], self._sizes[at] = answer, size

    def _grow(self, places: int) -> None:
        self.bytes -= self._matrix.nbytes
        count = self._count
        matrix, born = np.empty((places, self._matrix.shape[1]), np.float32), np.empty(places, np.float64)
        matrix[:count], born[:count] = self._matrix[:count], self._born[:count]
        self._matrix, self._born = matrix, born
        self.bytes += matrix.nbytes


class Lists:
    """Rings by scope, the longest unused scope dropped first.

    Writes move a collection's epoch on (`understudy.policies.cache.Town`), and a ring of another epoch is dropped where
    it is found. A search that began before a write would be kept as if it knew of it: hence `stamp` of `keep`, taken
    before the search.
    """

    __slots__ = ("_rings", "bytes", "town")

    def __init__(self, town: Town) -> None:
        self.town = town
        self._rings: OrderedDict[bytes, Ring] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return sum(map(len, self._rings.values()))

    def homes(self, collection: str, *, aliases: bool = False) -> Homes:
        """Whose writes make the lists of a collection untrue: anybody's, where it may go by other names."""
        return (self.town.anything,) if aliases else (self.town.home(collection), self.town.everyone)

    def nearest(self, scope: bytes, vector: Vector, now: float, cosine_min: float, age_s_max: float) -> Near | None:
        """The nearest neighbour's list within a scope; `vector` has unit length."""
        ring = self._ring(scope)
        return None if ring is None else ring.nearest(vector, now, cosine_min, age_s_max)

    def keep(
        self,
        scope: bytes,
        homes: Homes,
        stamp: int,
        vector: Vector,
        answer: Any,
        size: int,
        now: float,
        rules: LikenessRules,
    ) -> None:
        """Keep the list that a query of this scope was answered with, within the bounds; not if a write was under way
        or came in between."""
        if stamp_of(homes) != stamp or not is_settled(homes, now):
            return
        if size + vector.nbytes * RING_START > rules.bytes_max:
            return
        ring = self._ring(scope)
        if ring is None:
            ring = self._rings[scope] = Ring(homes, len(vector))
            self.bytes += ring.bytes
        before = ring.bytes
        # one scope that fills all there is takes its own oldest places anew, rather than losing everything at once
        full = len(self._rings) == 1 and len(ring) > 0 and self.bytes + size > rules.bytes_max
        ring.keep(vector, answer, size, now, min(len(ring), rules.entries_max) if full else rules.entries_max)
        self.bytes += ring.bytes - before
        while len(self._rings) > SCOPES_MAX or (self.bytes > rules.bytes_max and self._rings):
            _, oldest = self._rings.popitem(last=False)
            self.bytes -= oldest.bytes

    def _ring(self, scope: bytes) -> Ring | None:
        """The ring of a scope, now the last used, unless its collection was written to since."""
        ring = self._rings.get(scope)
        if ring is None:
            return None
        if ring.stamp != stamp_of(ring.homes):
            del self._rings[scope]
            self.bytes -= ring.bytes
            return None
        self._rings.move_to_end(scope)
        return ring


def unit(vector: Sequence[float]) -> Vector | None:
    """A vector at unit length, or None for one that has no direction."""
    array = np.asarray(vector, np.float32)
    length = float(np.linalg.norm(array))
    return array / np.float32(length) if math.isfinite(length) and length > 0 else None


# --- all of a route ------------------------------------------------------------------------------------------------


class Likeness:
    """What one route remembers and has learnt, `of` the tiers it has; carried over a reload while it is the same."""

    __slots__ = ("answers", "counts", "lists", "of", "permission", "rules")

    def __init__(self, rules: LikenessRules, town: Town, of: str = "") -> None:
        self.rules = rules
        self.of = of
        self.answers = Answers()
        self.lists = Lists(town)
        self.permission = Permission()
        self.counts: dict[str, int] = {}

    def count(self, result: str) -> None:
        """Add one to what became of calls; `result` is one of a handful of words."""
        self.counts[result] = self.counts.get(result, 0) + 1

    def permitted(self, bucket: Bucket, now: float) -> bool:
        """Whether a hit of this bucket may be served."""
        return self.permission.allows(bucket, now, self.rules.false_share_max)

    @property
    def entries(self) -> int:
        """Answers and lists kept."""
        return len(self.answers) + len(self.lists)

    @property
    def bytes(self) -> int:
        """What they take, about."""
        return self.answers.bytes + self.lists.bytes
