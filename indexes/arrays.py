"""Small operations on arrays that let go of the interpreter's lock, or take it for no longer than a turn.

`numpy.unique` keeps it while it hashes, 32 ms for 100 000 numbers, and imports `numpy.ma` when it is first called, some
60 ms more, in which no call is proxied; `numpy.isin` goes through it. Sorting lets go of the lock, and is quicker.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

_T = TypeVar("_T", bound=np.generic)

# `searchsorted` keeps the lock: so many at a time take some 0.1 ms
_BLOCK: Final = 2_048


def distinct(values: NDArray[_T]) -> NDArray[_T]:
    """The values [n], ascending, each once."""
    ordered = np.sort(values)
    if len(ordered) < 2:
        return ordered
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]


def among(values: NDArray[Any], known: NDArray[Any], *, is_sorted: bool = False) -> NDArray[np.bool_]:
    """Which of `values` [n] are among `known` [m], of the same type; `is_sorted` where `known` is ascending."""
    found = np.zeros(len(values), np.bool_)
    if not len(known):
        return found
    ordered = known if is_sorted else np.sort(known)
    last = len(ordered) - 1
    for at in range(0, len(values), _BLOCK):
        block = values[at : at + _BLOCK]
        found[at : at + _BLOCK] = ordered[np.minimum(np.searchsorted(ordered, block), last)] == block
    return found
