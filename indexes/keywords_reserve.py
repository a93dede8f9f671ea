"""Find points by the words in them where tantivy is not installed: SQLite's FTS5, which comes with Python.

The same questions are asked of it, and it finds as much (recall@10 .956 on SQuAD, tantivy .955), but slowly: every text
that has one of the words is scored. So words that every text has are left out of the question, unless it has no
others (49 608 paragraphs: 10 ms at the median against tantivy's 0.2, and 95 ms with those words).
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from understudy.indexes.faults import BadQuestion, CorruptIndex

FILE: Final = "words.sqlite"
QUERY_CHARS_MAX: Final = 20_000
QUERY_WORDS_MAX: Final = 64

_WORD_BYTES_MAX: Final = 40
_FIRST_FETCH: Final = 64
# how often a word occurs takes 50 us to find out
_WEIGHED_WORDS_MAX: Final = 4 * QUERY_WORDS_MAX
_OFTEN: Final = 10_000
_WORD: Final = re.compile(r"[^\W_]+")
# what FTS5 calls no token characters is none in tantivy either; accents tell words apart in both
_TABLES: Final = """
CREATE VIRTUAL TABLE words USING fts5(text, content='', tokenize="porter unicode61 remove_diacritics 0");
CREATE TABLE counted (texts INTEGER NOT NULL);
"""
_SEARCH: Final = "SELECT rowid, -bm25(words) FROM words WHERE words MATCH ? ORDER BY bm25(words), rowid LIMIT ?"
_OCCURS: Final = f"SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT {_OFTEN})"  # noqa: S608
_STOPPED: Final = """
    a about after all also an and any are as at be because been before being both but by can could did do does for from
    had has have he her him his how i if in into is it its me more most my no nor not of on only or other our out over
    own she should so some such than that the their them then there these they this those through to too under up very
    was we were what when where which while who whom whose why will with would you your
"""
STOP_WORDS: Final = frozenset(_STOPPED.split())


class ReserveIndex:
    """A keyword index that is never written again, as `keywords.KeywordIndex` is. Safe to search from any thread."""

    def __init__(self, sql: sqlite3.Connection) -> None:
        self._sql = sql
        self._asking = threading.Lock()
        self._count = int(sql.execute("SELECT texts FROM counted").fetchone()[0])

    @classmethod
    def write(cls, texts: Iterable[str], folder: Path | None = None) -> ReserveIndex:
        """Index `texts`, the n-th as row n, into an empty `folder`, or into memory."""
        sql = sqlite3.connect(
            ":memory:" if folder is None else folder / FILE, check_same_thread=False, isolation_level=None
        )
        # nobody knows of this file before it is whole
        sql.execute("PRAGMA journal_mode = OFF")
        sql.execute("PRAGMA synchronous = OFF")
        sql.executescript(_TABLES)
        sql.execute("BEGIN")
        count = 0
        for count, text in enumerate(texts, start=1):
            sql.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", (count - 1, _clean(text)))
        sql.execute("INSERT INTO counted VALUES (?)", (count,))
        sql.execute("INSERT INTO words (words) VALUES ('optimize')")
        sql.execute("COMMIT")
        return cls(sql)

    @classmethod
    def open(cls, folder: Path) -> ReserveIndex:
        """Open what `write` left in a folder. Raises CorruptIndex."""
        try:
            # immutable: a disk that is read only has no place for locks
            name = f"{(folder / FILE).resolve().as_uri()}?immutable=1&mode=ro"
            return cls(sqlite3.connect(name, uri=True, check_same_thread=False, isolation_level=None))
        except (sqlite3.Error, TypeError) as error:
            raise CorruptIndex(f"{folder.name}: {error}") from error

    @property
    def count(self) -> int:
        """How many rows."""
        return self._count

    def search(self, text: str, k: int, allowed: NDArray[np.bool_] | None = None) -> list[tuple[int, float]]:
        """At most k (row, BM25 score), best first; [] where no word of `text` occurs. `allowed` [n] limits the rows.

        Only the first QUERY_CHARS_MAX characters are looked at. Raises BadQuestion for a negative k, CorruptIndex.
        """
        if k < 0:
            raise BadQuestion(f"{k} results were asked for")
        live = self.count if allowed is None else int(np.count_nonzero(allowed))
        k = min(k, live)
        if not k:
            return []
        try:
            with self._asking:
                words = self._words(text)
                return self._among(" OR ".join(map(_quoted, words)), k, allowed) if words else []
        except sqlite3.DatabaseError as error:
            raise CorruptIndex(f"{FILE}: {error}") from error

    def count_of(self, word: str) -> int:
        """In how many rows a word occurs, or 10 000 where it is more."""
        with self._asking:
            return self._occurs(word)

    def _occurs(self, word: str) -> int:
        return int(self._sql.execute(_OCCURS, (_quoted(word),)).fetchone()[0])

    def _among(self, query: str, k: int, allowed: NDArray[np.bool_] | None) -> list[tuple[int, float]]:
        fetched = k if allowed is None else min(self.count, max(_FIRST_FETCH, 2 * k))
        while True:
            found: list[tuple[int, float]] = self._sql.execute(_SEARCH, (query, fetched)).fetchall()
            kept = found if allowed is None else [hit for hit in found if allowed[hit[0]]]
            if len(kept) >= k or len(found) < fetched or fetched == self.count:
                return kept[:k]
            fetched = min(self.count, 8 * fetched)

    def _words(self, text: str) -> list[str]:
        words = list(dict.fromkeys(plain_words(text[:QUERY_CHARS_MAX])))
        words = [word for word in words if word not in STOP_WORDS] or words
        if len(words) <= QUERY_WORDS_MAX:
            return words
        # a pasted document asks for its rarest words
        known = [(self._occurs(word), word) for word in words[:_WEIGHED_WORDS_MAX]]
        return [word for often, word in sorted(known) if often][:QUERY_WORDS_MAX]


def plain_words(text: str) -> list[str]:
    """The words of a text, in lower case, those of more than 40 bytes left out."""
    found = (word.lower() for word in _WORD.findall(_clean(text)))
    return [word for word in found if len(word.encode()) <= _WORD_BYTES_MAX]


def _quoted(word: str) -> str:
    """A word as FTS5 takes it for one, whatever it means in its query language."""
    return f'"{word}"'


def _clean(text: str) -> str:
    # lone surrogates cannot cross into SQLite; NUL would end the text there
    return text.encode("utf-8", "replace").decode().replace("\x00", " ")
