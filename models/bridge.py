"""Carry vectors of the local model into another model's space, as far as that can be believed: a map fitted from pairs.

    text --local model--> b [d_b] --(b - mean_b) W + mean_a--> about a [d_a], which is what the other model would say

W is the semi-orthogonal matrix that brings the centred pairs nearest to each other (Schönemann's orthogonal Procrustes,
1966, between spaces of different dimensions), so a map of a thousand pairs has nothing to overfit with: a ridge
regression of the same pairs is worse at every size. How near mapped vectors lie to the true ones says nothing of what
they find (cosine .92 was seen with recall .27). So a map is judged by what it finds: `agreement` of the first ten of a
mapped vector with the first ten of the true one, on pairs it was not fitted to. From .8 on it kept .99 of the recall in
the mean, from .65 .94, and from .35 .74.

A space that finds nothing itself may be matched very well. So it is asked beside it how much of what the space's own
vectors find is found by words too (`sanity`): on SQuAD .67 to .75 in spaces with recall@10 .91, .35 to .47 with .56,
.23 to .31 with .34. Documents and questions are asked apart, for a space may hold them in clusters far from each other:
then documents find documents (.40), and questions nothing (.17).

The shadow index, which searches texts by vectors of the local model's own, needs no map and is better than one: a map
is for collections whose texts nobody has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bridge", "Pair", "Reservoir", "Standing", "agreement", "fitted", "refusal", "sanity"]

Vectors = NDArray[np.float32]

PAIRS_MAX: Final = 5_000
PAIRS_MIN: Final = 1_000
HELD_OUT_EVERY: Final = 5
HELD_OUT_MIN: Final = 200
DOCUMENTS_SHARE_MIN: Final = 0.5
AGREEMENT_MIN: Final = 0.65
SANITY_MIN: Final = 0.4
SANITY_KIND_MIN: Final = 30
"""Fewer documents, or questions, are not asked apart."""
DEPTH: Final = 10
KEYWORD_DEPTH: Final = 50


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """One text in both spaces: `local` [d_b] and `other` [d_a], float32."""

    local: Vectors
    other: Vectors
    is_document: bool
    text: str = ""


class Reservoir:
    """A fair sample of the pairs seen so far, a fifth of it held out: four in five are fitted to, the others judge.

    A text stands in one part only, however often it comes: what is fitted to must not judge. `dice` gives numbers
    uniform in [0, 1). 5 000 pairs of 384 and 1 536 dimensions take 38 MB.
    """

    def __init__(self, dice: Callable[[], float], pairs_max: int = PAIRS_MAX) -> None:
        self._dice = dice
        self._room = {False: pairs_max - pairs_max // HELD_OUT_EVERY, True: pairs_max // HELD_OUT_EVERY}
        self._parts: dict[bool, list[Pair]] = {False: [], True: []}
        self._seen = {False: 0, True: 0}
        self._keys: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._parts[False]) + len(self._parts[True])

    @property
    def fitting(self) -> Sequence[Pair]:
        """What a map is fitted to."""
        return self._parts[False]

    @property
    def held_out(self) -> Sequence[Pair]:
        """What a map is judged by."""
        return self._parts[True]

    def add(self, pair: Pair) -> bool:
        """Take a pair, perhaps in the place of another (Vitter's algorithm R); whether it was taken."""
        key = _key(pair)
        if key in self._keys:
            return False
        is_held_out = int.from_bytes(key[:4], "big") % HELD_OUT_EVERY == 0
        part, room = self._parts[is_held_out], self._room[is_held_out]
        self._seen[is_held_out] += 1
        if len(part) < room:
            part.append(pair)
        else:
            at = int(self._dice() * self._seen[is_held_out])
            if at >= room:
                return False
            self._keys.discard(_key(part[at]))
            part[at] = pair
        self._keys.add(key)
        return True

    def clear(self) -> None:
        """Forget all pairs: one of the two spaces is another now."""
        self._keys.clear()
        for is_held_out in (False, True):
            self._parts[is_held_out].clear()
            self._seen[is_held_out] = 0


def _key(pair: Pair) -> bytes:
    # the text's own vector stands for the text, which may not be kept
    return hashlib.blake2b(np.ascontiguousarray(pair.local, np.float32).tobytes(), digest_size=8).digest()


@dataclass(frozen=True, slots=True, eq=False)
class Bridge:
    """A fitted map. `weights` [d_b, d_a]; `version` is the same for the same map."""

    weights: Vectors
    local_mean: Vectors
    other_mean: Vectors
    pairs: int
    normalised: bool

    def mapped(self, vectors: Vectors) -> Vectors:
        """Vectors [n, d_b] of the local model as [n, d_a] of the other; of unit length where the other's are."""
        out = (np.atleast_2d(vectors) - self.local_mean) @ self.weights + self.other_mean
        if self.normalised:
            lengths = np.linalg.norm(out, axis=1, keepdims=True)
            out = out / np.where(lengths > 0, lengths, 1)
        return out.astype(np.float32)

    @property
    def version(self) -> str:
        """Twelve hex digits over the map."""
        whole = hashlib.sha256(self.weights.tobytes())
        whole.update(self.local_mean.tobytes() + self.other_mean.tobytes())
        return whole.hexdigest()[:12]


def fitted(pairs: Sequence[Pair]) -> Bridge:
    """The semi-orthogonal map of these pairs, of which there is at least one; 0.3 s for 4 000 of 384 and 1 536."""
    local = np.stack([pair.local for pair in pairs]).astype(np.float64)
    other = np.stack([pair.other for pair in pairs]).astype(np.float64)
    local_mean, other_mean = local.mean(axis=0), other.mean(axis=0)
    covariance = (local - local_mean).T @ (other - other_mean)
    left, _, right = np.linalg.svd(covariance, full_matrices=False)
    lengths = np.linalg.norm(other, axis=1)
    # an orthogonal map keeps lengths; where the other's centred vectors are longer, so must the mapped ones be
    spread = np.sqrt(np.square(other - other_mean).sum() / max(np.square((local - local_mean) @ left).sum(), 1e-12))
    return Bridge(
        weights=(spread * left @ right).astype(np.float32),
        local_mean=local_mean.astype(np.float32),
        other_mean=other_mean.astype(np.float32),
        pairs=len(pairs),
        normalised=bool(np.all(np.abs(lengths - 1) < 1e-2)),
    )


Nearest = Callable[[Vectors], Sequence[Sequence[object]]]
"""For vectors [n, d_a] the ids of what is nearest in the index, DEPTH of them each, the best first."""


def agreement(bridge: Bridge, held_out: Sequence[Pair], nearest: Nearest) -> float:
    """The share of the first ten that mapped vectors and true ones find alike, over pairs not fitted to; 0 of none."""
    if not held_out:
        return 0.0
    mapped = nearest(bridge.mapped(np.stack([pair.local for pair in held_out])))
    true = nearest(np.stack([pair.other for pair in held_out]))
    shares = [
        len(set(one[:DEPTH]) & set(other[:DEPTH])) / max(len(other[:DEPTH]), 1)
        for one, other in zip(mapped, true, strict=True)
    ]
    return float(np.mean(shares))


def sanity(found: Sequence[Sequence[object]], worded: Sequence[Sequence[object]], documents: Sequence[bool]) -> float:
    """How much of the first ten by the other model's own vectors is among the first fifty by words: a share, of
    documents or of questions, whichever is less; 0 of none.

    A document is itself in the index, and finding it proves nothing: the first found is left out.
    """
    shares: dict[bool, list[float]] = {False: [], True: []}
    for near, words, is_document in zip(found, worded, documents, strict=True):
        own = set(near[:1]) if is_document else set[object]()
        others = set(near[:DEPTH]) - own
        shares[is_document].append(len(others & set(words[:KEYWORD_DEPTH])) / max(len(others), 1))
    kinds = [each for each in shares.values() if len(each) >= SANITY_KIND_MIN] or [shares[False] + shares[True]]
    return min(float(np.mean(each)) if each else 0.0 for each in kinds)


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a map, and why it is not used: `reason` is empty while it is. Shares are None until measured."""

    reason: str
    pairs: int = 0
    held_out: int = 0
    documents_share: float = 0.0
    agreement: float | None = None
    sanity: float | None = None
    version: str = ""
    """Of the map that was judged."""


def refusal(reservoir: Reservoir) -> str:
    """Why no map is fitted to these pairs, in words for the operator, or ''."""
    if len(reservoir) < PAIRS_MIN:
        return f"{len(reservoir)} pairs are known, {PAIRS_MIN} are needed"
    if len(reservoir.held_out) < HELD_OUT_MIN:
        return f"{len(reservoir.held_out)} pairs are held out, {HELD_OUT_MIN} are needed"
    share = documents_share(reservoir)
    if share < DOCUMENTS_SHARE_MIN:
        return f"{share:.0%} of the pairs are documents, {DOCUMENTS_SHARE_MIN:.0%} are needed"
    return ""


def documents_share(reservoir: Reservoir) -> float:
    """How many of the pairs fitted to are documents: a share, 0 of none."""
    return sum(pair.is_document for pair in reservoir.fitting) / max(len(reservoir.fitting), 1)


def judged(bridge: Bridge, reservoir: Reservoir, agreed: float, sane: float) -> Standing:
    """What to think of a map by its two measures."""
    reason = ""
    if agreed < AGREEMENT_MIN:
        reason = f"mapped vectors find {agreed:.2f} of what true ones find, {AGREEMENT_MIN} are needed"
    elif sane < SANITY_MIN:
        reason = f"of what the space finds itself {sane:.2f} has the words asked for, {SANITY_MIN} are needed"
    return Standing(
        reason, len(reservoir), len(reservoir.held_out), documents_share(reservoir), agreed, sane, bridge.version
    )
