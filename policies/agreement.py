"""Let several breakers before one tier agree: what each says of the tier, and which of two sayings holds.

    breaker in one process --Said--> everybody's newer() of all that was said --> breaker in another process

Each opening and each closing makes a Said with an epoch one above the highest its breaker has seen (Lamport's clock),
and `newer` is the greater of two in one total order. It is therefore commutative, associative and idempotent: whoever
has heard the same sayings holds the same, in whatever order and however often they came. At the same epoch, which is
when two changed their minds without having heard of each other, open wins: a call kept back costs less than an outage.

Half-open is never said: probing is one process's own affair until it comes to an end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Said(NamedTuple):
    """What a breaker made of its tier. `until` is on the clock that all share, in seconds; the order of the fields is
    the order in which two sayings are compared."""

    epoch: int = 0
    is_open: bool = False
    until: float = 0.0
    opened_in_a_row: int = 0
    reason: str = ""


def newer(one: Said, other: Said) -> Said:
    """The one of the two that holds."""
    return max(one, other)


def newest(said: Iterable[Said]) -> Said:
    """What holds when all of this was said."""
    return max(said, default=Said())
