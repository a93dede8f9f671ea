"""The book in which all processes write what they have spent: kept over restarts, read by each twice a second.

    worker --adds what it has spent--> spend.sqlite --what anybody has added since--> every worker

One row for each budget, window and payer. Adding is one transaction, so that nothing is lost between processes that
write at once, of one generation or of two. Rows of windows that are over are thrown away.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from understudy.policies.spend import Sum

BUSY_S = 2.0
"""How long one process waits for another's transaction; they take a millisecond."""
KEPT_S = 3600
"""How long a row is kept beyond its window's end, for those whose clock is late."""

log = logging.getLogger("understudy.spend")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spent (
    route TEXT, budget TEXT, ends INTEGER, payer BLOB, tokens INTEGER NOT NULL, cost REAL NOT NULL,
    at INTEGER NOT NULL, PRIMARY KEY (route, budget, ends, payer)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS spent_at ON spent (at);
"""
_ADD = """
INSERT INTO spent VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET tokens = tokens + excluded.tokens, cost = cost + excluded.cost, at = excluded.at
"""

Entry = tuple[str, Sum]
"""A route's name, and what was spent there."""


class Book:
    """One process's hand on the book. For one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open the book, or begin one. Raises OSError and sqlite3.Error; one that can't be read is put aside."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._read_to = 0
        try:
            self._database = self._opened(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            aside = path.with_suffix(".unreadable")
            log.error("%s can't be read and is put aside as %s: what was spent is forgotten", path.name, aside.name)
            path.replace(aside)
            for more in ("-wal", "-shm"):
                path.with_name(path.name + more).unlink(missing_ok=True)
            self._database = self._opened(path)

    def _opened(self, path: Path) -> sqlite3.Connection:
        database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            # a crash of the machine may cost the last second, a crash of ours nothing
            database.execute("PRAGMA synchronous=NORMAL")
            database.executescript(_SCHEMA)
        except BaseException:
            database.close()
            raise
        return database

    def exchange(self, added: Sequence[Entry], now: float, *, anew: bool = False) -> list[Entry]:
        """Write down what was added here; what anybody's sums have become since this was last asked (or all of them,
        where it is asked `anew`), ours included.

        Raises sqlite3.Error, and has then written nothing. `now` is in seconds since the epoch.
        """
        database = self._database
        if added:
            database.execute("BEGIN IMMEDIATE")
            try:
                (last,) = database.execute("SELECT coalesce(max(at), 0) FROM spent").fetchone()
                database.execute("DELETE FROM spent WHERE ends < ? AND at < ?", (int(now) - KEPT_S, last))
                database.executemany(_ADD, [(route, *each, last + 1) for route, each in added])
                database.execute("COMMIT")
            except BaseException:
                database.execute("ROLLBACK")
                raise
        self._read_to = 0 if anew else self._read_to
        query = "SELECT route, budget, ends, payer, tokens, cost, at FROM spent WHERE at > ? AND ends > ?"
        rows = database.execute(query, (self._read_to, int(now))).fetchall()
        self._read_to = max((row[6] for row in rows), default=self._read_to)
        return [(row[0], Sum(row[1], row[2], row[3], row[4], row[5])) for row in rows]

    def close(self) -> None:
        self._database.close()
