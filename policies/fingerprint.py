"""Notice that a model has changed behind its name: a few fixed texts must be embedded as they were at first.

    no baseline --measured--> TRUSTED <--as it was--+
                                 | changed          |
                              SUSPECTED --as it was-+
                                 | changed again    |
                             QUARANTINED -----------+

One strange answer may be a replica in the middle of a change; two in a row are another model.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Literal

from understudy.policies.drift import embedding_fault
from understudy.policies.ledger import cosine

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "How do I reset my password?",
    "Invoice 4711 of 3 March, due within 30 days.",
    "Die Katze schläft, während es draußen regnet.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "def add(a, b): return a + b",
    "Not safe for use during pregnancy.",
    "Warranty",
)
"""A pangram, a question, numbers, another language, a word: what a change of weights, tokeniser or prefix moves."""
DRIFTS = 2

State = Literal["unknown", "trusted", "suspected", "quarantined"]
Measured = Literal["first", "same", "changed", "quarantined", "back"]


class Fingerprint:
    """What is known of one endpoint's vectors. `cosine` is the least of the last measurement's, None before any, and
    `fault` what was wrong with it, in a word."""

    __slots__ = ("changed", "cosine", "fault", "state")

    def __init__(self) -> None:
        self.state: State = "unknown"
        self.cosine: float | None = None
        self.fault = ""
        self.changed = 0

    @property
    def is_quarantined(self) -> bool:
        """Whether its vectors are not to be trusted."""
        return self.state == "quarantined"

    def measured(
        self, vectors: Sequence[array[float]], baseline: Sequence[array[float]] | None, cosine_min: float
    ) -> Measured:
        """The vectors of TEXTS as they are now, and as they were at first, where that is known."""
        if baseline is None:
            self.state, self.cosine, self.changed, self.fault = "trusted", 1.0, 0, ""
            return "first"
        self.cosine = min(map(_alike, vectors, baseline)) if len(vectors) == len(baseline) else 0.0
        self.fault = embedding_fault(vectors, baseline, cosine_min=cosine_min) or ""
        if not self.fault:
            was, self.state, self.changed = self.state, "trusted", 0
            return "back" if was == "quarantined" else "same"
        self.changed += 1
        if self.changed < DRIFTS:
            self.state = "suspected"
            return "changed"
        was, self.state = self.state, "quarantined"
        return "quarantined" if was != "quarantined" else "changed"


def _alike(one: array[float], other: array[float]) -> float:
    return cosine(one, other) if len(one) == len(other) else 0.0
