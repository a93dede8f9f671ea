"""Keep what happened, over restarts and crashes, in no more room than it was given: a SQLite file in the state folder.

    entries --add, a batch at a time--> journal.sqlite (WAL) --entries, known, spells, tried--> who asks, in a thread
                                            |
                                            +-- nearly full: the oldest go;      broken: put aside, begun anew

What `add` has returned from outlives a crash of the process (not always a power cut: a commit is not waited for until
it is on the disk). Everything here blocks: it is called in a thread, and never on a call's path.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from understudy.policies.attribution import Spell
from understudy.policies.events import Event, Family
from understudy.proxy.control.entries import ENTRIES_MAX, Entry, Known, Tried

VERSION = 1
PAGE_BYTES = 4096
BYTES_MAX = 50 * 1024 * 1024
BYTES_MIN = 4 * 1024 * 1024
AHEAD_PAGES = 256
AHEAD_BYTES_MAX = 2 * AHEAD_PAGES * PAGE_BYTES
"""Of the room, this is for what is written ahead of the data; it is written over once there are AHEAD_PAGES of it."""
FULL_SHARE, SHED_SHARE = 0.9, 0.02
BATCH_MAX = 64
FACTS_CHARS_MAX = 4000
VALUES_MAX = 8
"""Values that are remembered of each thing: what comes back among them is news only where it does not flutter."""
BUSY_S = 5.0
"""For a moment at a handover two processes write."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, family TEXT NOT NULL, component TEXT NOT NULL, kind TEXT NOT NULL,
    detail TEXT NOT NULL, facts TEXT NOT NULL, numbers TEXT NOT NULL, changes TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_by_time ON events (family, at);
CREATE TABLE IF NOT EXISTS known (
    component TEXT NOT NULL, kind TEXT NOT NULL, value TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (component, kind, value)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spells (since REAL PRIMARY KEY, until REAL NOT NULL);
CREATE TABLE IF NOT EXISTS tried (
    cause TEXT NOT NULL, action TEXT NOT NULL, tried INTEGER NOT NULL, helped INTEGER NOT NULL,
    PRIMARY KEY (cause, action)) WITHOUT ROWID;
"""
SPELLS_MAX = 1000

log = logging.getLogger("understudy.journal")


class Full(OSError):
    """There is no room for more."""


class Journal:
    """The file. Methods may be called from any thread; after `close` they do nothing and know nothing."""

    def __init__(self, path: Path, bytes_max: int = BYTES_MAX) -> None:
        self.path = path
        self.shed = 0
        self._pages_max = (max(BYTES_MIN, bytes_max) - AHEAD_BYTES_MAX) // PAGE_BYTES
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open or begin it. Raises OSError where the folder can't be written to."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            try:
                self._db = self._opened()
            except sqlite3.DatabaseError as broken:
                if isinstance(broken, sqlite3.OperationalError):
                    # locked, or no room: it is not the file's fault
                    raise OSError(str(broken)) from None
                log.error("the journal can't be read and is begun anew; the old one is kept beside it: %s", broken)
                self._put_aside()
                self._db = self._opened()

    def _opened(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute(f"PRAGMA wal_autocheckpoint = {AHEAD_PAGES}")
            db.execute(f"PRAGMA journal_size_limit = {AHEAD_PAGES * PAGE_BYTES}")
            db.execute(f"PRAGMA max_page_count = {self._pages_max}")
            if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("it is damaged")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise sqlite3.DatabaseError(f"it is of version {version}")
            db.executescript(_SCHEMA)
            db.execute(f"PRAGMA user_version = {VERSION}")
        except BaseException:
            db.close()
            raise
        return db

    def _put_aside(self) -> None:
        for ending in ("-wal", "-shm"):
            self.path.with_name(self.path.name + ending).unlink(missing_ok=True)
        self.path.replace(self.path.with_name(self.path.name + ".broken"))

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    @contextmanager
    def _writing(self) -> Generator[sqlite3.Connection | None]:
        """A transaction. Raises OSError where nothing can be written, Full where there is no room."""
        with self._lock:
            db = self._db
            if db is None:
                yield None
                return
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            except sqlite3.Error as fault:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise (Full if "full" in str(fault) else OSError)(str(fault)) from None

    # --- what happened ---------------------------------------------------------------------------------------------

    def add(self, entries: Sequence[Entry]) -> None:
        """Keep these. Raises OSError where they can't be kept: the disk is full, or the file is not ours."""
        for at in range(0, len(entries), BATCH_MAX):
            rows = [_row(entry) for entry in entries[at : at + BATCH_MAX]]
            try:
                self._insert(rows)
            except Full:
                self._make_room(FULL_SHARE - 2 * SHED_SHARE)
                self._insert(rows)
        self._make_room(FULL_SHARE)

    def _insert(self, rows: Sequence[tuple[object, ...]]) -> None:
        with self._writing() as db:
            if db is not None:
                db.executemany(
                    "INSERT INTO events (at, family, component, kind, detail, facts, numbers, changes)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    rows,
                )

    def _make_room(self, share: float) -> None:
        """Have no more than `share` of the room in use: the oldest entries go, a few at a time, since what
        is taken away is written ahead as well."""
        while self._used_pages() > share * self._pages_max:
            with self._writing() as db:
                if db is None:
                    return
                count = db.execute("SELECT count(*) FROM events").fetchone()[0]
                if not count:
                    return
                many = max(1, int(count * SHED_SHARE))
                db.execute("DELETE FROM events WHERE id IN (SELECT id FROM events ORDER BY id LIMIT ?)", (many,))
                self.shed += many

    def _used_pages(self) -> int:
        with self._lock:
            if self._db is None:
                return 0
            try:
                all_of_them = self._db.execute("PRAGMA page_count").fetchone()[0]
                return all_of_them - self._db.execute("PRAGMA freelist_count").fetchone()[0]
            except sqlite3.Error as fault:
                raise OSError(str(fault)) from None

    def entries(
        self, families: Sequence[Family] = (), component: str = "", since: float = 0.0, count: int = ENTRIES_MAX
    ) -> list[Entry]:
        """The last of them, the newest first; all families and components unless named."""
        where, values = ["at >= ?"], cast("list[object]", [since])
        if families:
            where.append(f"family IN ({', '.join('?' * len(families))})")
            values += families
        if component:
            where.append("component = ?")
            values.append(component)
        query = "SELECT at, family, component, kind, detail, facts, numbers, changes FROM events WHERE "
        rows = self._asked(f"{query}{' AND '.join(where)} ORDER BY at DESC, id DESC LIMIT ?", (*values, count))
        return [_entry(row) for row in rows]

    def times(self, family: Family, since: float) -> list[tuple[str, float]]:
        """Component and time of each event of a family, in order; what happened to other replicas is left out."""
        query = "SELECT component, at FROM events WHERE family = ? AND at >= ? AND instr(facts, ?) = 0 ORDER BY at"
        rows = self._asked(query, (family, since, '"replica":'))
        return cast("list[tuple[str, float]]", rows)

    def _asked(self, query: str, values: Sequence[object]) -> list[tuple[object, ...]]:
        with self._lock:
            try:
                return [] if self._db is None else self._db.execute(query, values).fetchall()
            except sqlite3.Error as fault:
                raise OSError(str(fault)) from None

    # --- what is known ---------------------------------------------------------------------------------------------

    def known(self) -> list[Known]:
        """What was seen of things so far, the newest last."""
        rows = self._asked("SELECT component, kind, value, at FROM known ORDER BY at", ())
        return [Known(*cast("tuple[str, str, str, float]", row)) for row in rows]

    def know(self, seen: Sequence[Known]) -> None:
        """Remember these; of each thing the last VALUES_MAX values."""
        with self._writing() as db:
            if db is None:
                return
            db.executemany("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?)", seen)
            db.executemany(
                "DELETE FROM known WHERE component = ? AND kind = ? AND value NOT IN"
                " (SELECT value FROM known WHERE component = ? AND kind = ? ORDER BY at DESC LIMIT ?)",
                [(*each[:2], *each[:2], VALUES_MAX) for each in seen],
            )

    # --- when somebody watched -------------------------------------------------------------------------------------

    def watched(self, since: float, until: float) -> None:
        """Somebody has watched from `since` on; said again and again with another end, it is one spell."""
        with self._writing() as db:
            if db is not None:
                db.execute("INSERT OR REPLACE INTO spells VALUES (?, ?)", (since, until))
                db.execute(
                    "DELETE FROM spells WHERE since NOT IN (SELECT since FROM spells ORDER BY since DESC LIMIT ?)",
                    (SPELLS_MAX,),
                )

    def spells(self) -> list[Spell]:
        """When somebody watched, in order; what overlaps is told once."""
        joined: list[Spell] = []
        for since, until in self._asked("SELECT since, until FROM spells ORDER BY since", ()):
            since, until = cast("float", since), cast("float", until)
            if joined and since <= joined[-1].until:
                joined[-1] = Spell(joined[-1].since, max(joined[-1].until, until))
            else:
                joined.append(Spell(since, until))
        return joined

    # --- what helped -----------------------------------------------------------------------------------------------

    def tried(self) -> list[Tried]:
        """What was tried against what, and how often it helped."""
        rows = self._asked("SELECT cause, action, tried, helped FROM tried", ())
        return [Tried(*cast("tuple[str, str, int, int]", row)) for row in rows]

    def try_counted(self, cause: str, action: str, helped: bool) -> None:
        """An action was tried once more."""
        with self._writing() as db:
            if db is not None:
                db.execute(
                    "INSERT INTO tried VALUES (?, ?, 1, ?) ON CONFLICT DO UPDATE"
                    " SET tried = tried + 1, helped = helped + excluded.helped",
                    (cause, action, int(helped)),
                )

    # --- its size --------------------------------------------------------------------------------------------------

    def bytes(self) -> int:
        """What it takes on the disk, with what is written ahead."""
        total = 0
        for ending in ("", "-wal", "-shm"):
            with suppress(OSError):
                total += self.path.with_name(self.path.name + ending).stat().st_size
        return total


def _row(entry: Entry) -> tuple[object, ...]:
    event = entry.event
    numbers = json.dumps({name: float(f"{value:.6g}") for name, value in entry.numbers.items()})
    return (
        event.at,
        event.family,
        event.component[:FACTS_CHARS_MAX],
        event.kind[:FACTS_CHARS_MAX],
        event.detail[:FACTS_CHARS_MAX],
        _fitting({name: value[: FACTS_CHARS_MAX // 8] for name, value in event.facts.items()}),
        numbers if len(numbers) <= FACTS_CHARS_MAX else "{}",
        _fitting(entry.changes),
    )


def _fitting(told: Mapping[str, str] | Sequence[str]) -> str:
    """As JSON, less the last of them until it is short enough to be kept."""
    while len(text := json.dumps(told)) > FACTS_CHARS_MAX:
        told = dict(list(told.items())[:-1]) if isinstance(told, Mapping) else told[:-1]
    return text


def _entry(row: Sequence[object]) -> Entry:
    at, family, component, kind, detail, facts, numbers, changes = cast(
        "tuple[float, Family, str, str, str, str, str, str]", row
    )
    event = Event(at, family, component, kind, detail, json.loads(facts))
    return Entry(event, json.loads(numbers), tuple(json.loads(changes)))
