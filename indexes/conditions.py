"""A filter in the words of some other database than Qdrant, made ready by whoever read them.

The shapes that clients send are their dialects' business; a collection only wants to know which of its points pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

# written out: `points` brings numpy, and who only reads a filter needs none
Test: TypeAlias = Callable[[int | str, dict[str, Any], str], bool]
"""Whether a point passes, by its id, its payload and its text."""


@dataclass(frozen=True, slots=True)
class Condition:
    """`key` is equal for two conditions only if they let the same points through: what passes is remembered by it.

    `reads_text` says that the text is looked at: otherwise it is not even fetched, and comes as ''.
    """

    key: bytes
    passes: Test
    reads_text: bool = False
