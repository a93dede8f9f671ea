"""Say what is wrong with an index, a point or a question put to an index.

IndexFault
  +- BadQuestion              the caller's: a dialect turns it into a 400
  |    +- WrongDimension, NotFinite, UnknownFilter, BadName, BadId
  +- BadPoint                 a record that cannot be stored as it was given
  +- BadFile                  a file that cannot be read as knowledge: "file:line: why"
  +- CorruptIndex             nothing sound is left on disk to answer from
  +- Busy                     somebody else is writing this collection
  +- CannotWrite              the disk will not have it; nothing was changed
  +- OverBudget               there is no room for it within the memory that is allowed
"""

from __future__ import annotations


class IndexFault(Exception):
    """Anything `understudy.indexes` raises on purpose."""


class BadQuestion(IndexFault):
    """The question is at fault, not the index: asking again will not help."""


class WrongDimension(BadQuestion):
    """A vector of another length than the collection's. hnswlib itself would read past its end and answer."""

    def __init__(self, got: tuple[int, ...], expected: int, what: str = "query") -> None:
        shape = "x".join(str(side) for side in got)
        super().__init__(f"the {what} vector has shape [{shape}], this collection holds vectors of [{expected}]")
        self.got = got
        self.expected = expected


class NotFinite(BadQuestion):
    """A vector with NaN, infinity, or a component so large that a product with it would overflow float32."""


class UnknownFilter(BadQuestion):
    """A filter whose meaning is not certain. It is refused, never guessed: a wrong filter leaks other tenants' data."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"filter not understood: {reason}")
        self.reason = reason


class BadName(BadQuestion):
    """A collection name that cannot be kept as the name of a folder."""


class BadPoint(IndexFault):
    """A point with an id, payload or vector that cannot be stored as it was given."""


class BadId(BadPoint, BadQuestion):
    """An id that no point can have, in a record or in a question."""


class BadFile(IndexFault):
    """A file that cannot be read as knowledge. The text is `file:line: why`."""


class CorruptIndex(IndexFault):
    """No generation of this collection verifies; the text lists what is wrong with each."""


class Busy(IndexFault):
    """Another writer holds this collection."""


class CannotWrite(IndexFault):
    """The disk is full, or gone, or may not be written to. Nothing was changed."""


class OverBudget(IndexFault):
    """Opening or writing this would take more memory than the library is allowed; nothing was changed."""

    def __init__(self, what: str, needed_bytes: int, allowed_bytes: int) -> None:
        super().__init__(
            f"{what} needs {needed_bytes / 2**20:.1f} MiB of memory with what is open already;"
            f" {allowed_bytes / 2**20:.1f} MiB are allowed"
        )
        self.needed_bytes = needed_bytes
        self.allowed_bytes = allowed_bytes
