"""Read token ids of OpenAI's tokeniser as text, by its published table of byte strings; nothing is ever encoded.

A table (`cl100k_base.tiktoken`) has a line for each token: its bytes in base64, and its rank, which is its id. A token
may end in the middle of a letter, so bytes are joined before they are read as UTF-8.
"""

from __future__ import annotations

import threading
from binascii import Error as NotBase64
from binascii import a2b_base64
from collections.abc import Sequence
from pathlib import Path
from typing import Final

FILE_BYTES_MAX: Final = 64 * 1024 * 1024
TOKENS_MAX: Final = 2_000_000
"""Ranks beyond this are no vocabulary's."""


class Vocabulary:
    """The table of one file, read when it is first needed. May be used from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._table: dict[int, bytes] | None = None
        self._lock = threading.Lock()

    @property
    def is_loaded(self) -> bool:
        """Whether decoding needs no file any more."""
        return self._table is not None

    def load(self) -> dict[int, bytes]:
        """The table; the file is read once. Raises ValueError for what is none."""
        with self._lock:
            if self._table is None:
                self._table = _read(self._path)
            return self._table

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`. Raises ValueError for ids that the table does not have, and for a file that is none."""
        table = self._table or self.load()
        try:
            return b"".join([table[token] for token in tokens]).decode("utf-8", "replace")
        except KeyError as unknown:
            raise ValueError(f"no token has the id {unknown.args[0]}") from None


def _read(path: Path) -> dict[int, bytes]:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ValueError(f"the vocabulary can't be read: {error.strerror}") from None
    table: dict[int, bytes] = {}
    for number, line in enumerate(data.splitlines(), 1):
        word, _, rank = line.partition(b" ")
        try:
            table[int(rank)] = a2b_base64(word, strict_mode=True)
        except (ValueError, NotBase64):
            raise ValueError(f"line {number} of the vocabulary is not base64, a space and a rank") from None
    if table and not 0 <= min(table) <= max(table) < TOKENS_MAX:
        raise ValueError("the vocabulary has ranks out of bounds")
    if not table or len(data) > FILE_BYTES_MAX:
        raise ValueError("the vocabulary is empty, or too long")
    return table
