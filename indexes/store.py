"""Keep points on disk: one SQLite file is the truth, and everything else is derived from it.

    Store         living: upsert and delete while others read; the mirror writes here
      freeze()
    FrozenStore   never written again, rows 0..n-1 in id order; any number of threads read it

Ids are kept as bytes whose order is the order of Qdrant's scroll (see `points.id_key`). What a filter looks at lies in
`points`, texts in `contents`, and a frozen store's vectors in `vectors`, so that neither a scan of payloads nor the
hits of a search page through vectors. Those with a name lie in `named`. An empty blob, or no row, stands for no vector.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import urllib.parse
import weakref
from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from understudy.indexes.faults import BadPoint, CorruptIndex, NotFinite, WrongDimension
from understudy.indexes.points import Hit, Payload, Point, PointId, Vector, canonical_id, id_key, key_id, searchable
from understudy.indexes.records import payload_bytes, payload_of

READERS: Final = 4
# 100 000 records freed in one stroke keep the interpreter's lock for 26 ms
FREED_AT_ONCE: Final = 256
_BATCH_POINTS: Final = 1_000
# SQLite allows 32 766 parameters a statement; far fewer keep the statement cache useful
_BATCH_KEYS: Final = 200
# pages of 16 KiB that hits of several questions share; the default holds 120 of them
_CACHE_KIB: Final = 8_192

# two points of 384 dimensions share a page of 4 KiB badly and one of 16 KiB well
_PAGE_BYTES: Final = 16_384
_TABLES: Final = """
CREATE TABLE points
    (row INTEGER PRIMARY KEY, key BLOB NOT NULL {unique}, payload BLOB NOT NULL, version INTEGER NOT NULL);
CREATE TABLE contents
    (row INTEGER PRIMARY KEY, text TEXT NOT NULL, source TEXT NOT NULL, vector BLOB NOT NULL);
CREATE TABLE vectors (row INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE named
    (row INTEGER NOT NULL, name TEXT NOT NULL, vector BLOB NOT NULL, PRIMARY KEY (row, name)) WITHOUT ROWID;
"""
_COLUMNS: Final = "key, payload, version, text, source"
_NEXT_IN_ORDER: Final = (
    f"SELECT row, {_COLUMNS}, vector FROM points JOIN contents USING (row)"  # noqa: S608
    f" WHERE key > ? ORDER BY key LIMIT {_BATCH_POINTS}"
)


class Store:
    """A living point store. One writer at a time and any thread; every call is one transaction.

    `durable` keeps a write-ahead log, so that readers never wait for the writer and a crash loses at most the last
    transactions, never the file. Without it the file is scratch, worthless unless it is finished. `named` are the
    dimensions of vectors that have a name; `sparse` lets points lack any of their vectors.
    """

    def __init__(
        self,
        path: Path,
        dimensions: int,
        *,
        durable: bool = True,
        named: Mapping[str, int] | None = None,
        sparse: bool = False,
    ) -> None:
        self.dimensions = dimensions
        self._named = named or {}
        self._sparse = sparse
        self._lock = threading.Lock()
        self._sql = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._sql.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        self._sql.execute("PRAGMA journal_mode = WAL" if durable else "PRAGMA journal_mode = OFF")
        self._sql.execute("PRAGMA synchronous = NORMAL" if durable else "PRAGMA synchronous = OFF")
        if self._sql.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            self._sql.executescript(_TABLES.format(unique="UNIQUE"))

    @property
    def count(self) -> int:
        """How many points are held."""
        with self._lock:
            return int(self._sql.execute("SELECT count(*) FROM points").fetchone()[0])

    def upsert(self, points: Iterable[Point]) -> int:
        """Add points, or replace those with the same id; how many were given.

        All or none are kept. Raises BadPoint, WrongDimension or NotFinite for a point that cannot be stored.
        """
        given = 0
        with self._lock, self._transaction():
            for point in points:
                self._put(point)
                given += 1
        return given

    def delete(self, ids: Iterable[PointId]) -> int:
        """Forget points by id, in any spelling of a UUID; how many were there."""
        gone = 0
        with self._lock, self._transaction():
            for point_id in ids:
                keys = (id_key(point_id), id_key(canonical_id(point_id)))
                rows = self._sql.execute("DELETE FROM points WHERE key IN (?, ?) RETURNING row", keys).fetchall()
                self._sql.executemany("DELETE FROM contents WHERE row = ?", rows)
                self._sql.executemany("DELETE FROM named WHERE row = ?", rows)
                gone += len(rows)
        return gone

    def points(self) -> Iterator[Point]:
        """All points with their vectors, in id order; one written meanwhile may come as it was or as it is."""
        for row, *values in self._read_in_order():
            yield _point(tuple(values), self._named_of([row]).get(row) if self._named else None)

    def freeze(self, path: Path) -> int:
        """Write a copy that FrozenStore opens, its rows numbered in id order; how many points it holds."""
        frozen = sqlite3.connect(path, isolation_level=None)
        try:
            frozen.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            # nobody knows of this file before it is whole: a journal would only be written twice
            frozen.execute("PRAGMA journal_mode = OFF")
            frozen.execute("PRAGMA synchronous = OFF")
            frozen.executescript(_TABLES.format(unique=""))
            frozen.execute("BEGIN")
            row = 0
            for row, (held, key, payload, version, text, source, vector) in enumerate(self._read_in_order(), start=1):
                frozen.execute("INSERT INTO points VALUES (?, ?, ?, ?)", (row - 1, key, payload, version))
                frozen.execute("INSERT INTO contents VALUES (?, ?, ?, '')", (row - 1, text, source))
                frozen.execute("INSERT INTO vectors VALUES (?, ?)", (row - 1, vector))
                for name, blob in self._named_of([held]).get(held, {}).items() if self._named else ():
                    frozen.execute("INSERT INTO named VALUES (?, ?, ?)", (row - 1, name, blob))
            frozen.execute("COMMIT")
            return row
        finally:
            frozen.close()

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._sql.close()

    def _read_in_order(self) -> Iterator[tuple[Any, ...]]:
        # batches by key instead of one long cursor: a writer is never kept waiting, nor the caller's pace the lock's
        last = b""
        while True:
            with self._lock:
                rows = self._sql.execute(_NEXT_IN_ORDER, (last,)).fetchall()
            yield from rows
            if len(rows) < _BATCH_POINTS:
                return
            last = rows[-1][1]

    def _named_of(self, rows: Sequence[int]) -> dict[int, dict[str, bytes]]:
        with self._lock:
            return _named_vectors(self._sql, rows)

    def _put(self, point: Point) -> None:
        vectors = checked_vectors(point, {"": self.dimensions, **self._named}, sparse=self._sparse)
        payload = payload_bytes(point.id, point.payload)
        key = id_key(point.id)
        row = self._sql.execute(
            "INSERT INTO points (key, payload, version) VALUES (?, ?, ?)"
            " ON CONFLICT (key) DO UPDATE SET payload = excluded.payload, version = excluded.version RETURNING row",
            (key, payload, point.version),
        ).fetchone()[0]
        try:
            self._sql.execute(
                "INSERT OR REPLACE INTO contents VALUES (?, ?, ?, ?)",
                (row, point.text, point.source, vectors[""].tobytes() if "" in vectors else b""),
            )
        except UnicodeEncodeError as error:
            raise BadPoint(f"point {point.id!r}: its text or source is not valid Unicode") from error
        if self._named:
            self._sql.execute("DELETE FROM named WHERE row = ?", (row,))
            named = [(row, name, vector.tobytes()) for name, vector in vectors.items() if name]
            self._sql.executemany("INSERT INTO named VALUES (?, ?, ?)", named)

    @contextmanager
    def _transaction(self) -> Generator[None]:
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._sql.execute("ROLLBACK")
            raise
        self._sql.execute("COMMIT")


class FrozenStore:
    """A store that is never written again; its rows are 0..n-1 in id order. Safe to read from any thread.

    All its connections are opened at once, so that it goes on answering after its file has been unlinked.
    """

    def __init__(self, path: Path, dimensions: int) -> None:
        self.dimensions = dimensions
        self._name = path.name
        self._idle: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        self._finalizer = weakref.finalize(self, _close_all, self._idle)
        # immutable: no locks and no journal are looked for, so a read-only folder will do
        uri = f"file:{urllib.parse.quote(str(path.absolute()))}?mode=ro&immutable=1"
        try:
            for _ in range(READERS):
                sql = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)
                sql.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
                self._idle.put(sql)
            with self._reader() as sql:
                self.keys: list[bytes] = [key for (key,) in sql.execute("SELECT key FROM points ORDER BY row")]
                tables = {name for (name,) in sql.execute("SELECT name FROM sqlite_master")}
                # stores of the first format have neither table
                self._vectors_in = "vectors" if "vectors" in tables else "contents"
                self._has_named = "named" in tables and sql.execute("SELECT 1 FROM named").fetchone() is not None
        except (sqlite3.Error, CorruptIndex) as error:
            self.close()
            raise CorruptIndex(f"{path.name}: {error}") from error

    @property
    def count(self) -> int:
        """How many points are held."""
        return len(self.keys)

    def row_of(self, id: PointId) -> int | None:
        """The row of a point, by its id in any spelling of a UUID; None if it is not here."""
        keys = dict.fromkeys((id_key(id), id_key(canonical_id(id))))
        return next((row for key in keys if (row := self.row_of_key(key)) is not None), None)

    def row_of_key(self, key: bytes) -> int | None:
        """The row of a point, by the key of its id."""
        row = bisect_left(self.keys, key)
        return row if row < len(self.keys) and self.keys[row] == key else None

    def rows_from(self, id: PointId) -> int:
        """The first row whose id is not before `id` in scroll order."""
        return bisect_left(self.keys, id_key(canonical_id(id)))

    def id_of(self, row: int) -> PointId:
        """The id of the point in a row."""
        return key_id(self.keys[row])

    def fetch(self, rows: Sequence[int], *, with_vectors: bool = False) -> list[Point]:
        """The points of these rows, in the order asked for."""
        found: dict[int, Point] = {}
        named: dict[int, dict[str, bytes]] = {}
        vector, beside = "NULL", ""
        if with_vectors:
            vector = "v.vector"
            beside = f" LEFT JOIN (SELECT row, vector FROM {self._vectors_in}) v USING (row)"  # noqa: S608
        with self._reader() as sql:
            for at in range(0, len(rows), _BATCH_KEYS):
                batch = [int(row) for row in rows[at : at + _BATCH_KEYS]]
                marks = ",".join("?" * len(batch))
                if with_vectors and self._has_named:
                    named = _named_vectors(sql, batch)
                joined = f"SELECT row, {_COLUMNS}, {vector} FROM points JOIN contents USING (row){beside}"  # noqa: S608
                for row, *values in sql.execute(f"{joined} WHERE row IN ({marks})", batch):
                    found[row] = _point(tuple(values), named.get(row))
        return [found[int(row)] for row in rows]

    def hits(self, rows: Sequence[int], scores: Sequence[float]) -> list[Hit]:
        """The points of these rows without their vectors, in the order asked for, each with its score.

        As `fetch` does it, without a Point in between: two thirds of the time, and a tenth of a search's.
        """
        found: dict[int, tuple[int, bytes, bytes, int, str, str]] = {}
        with self._reader() as sql:
            for at in range(0, len(rows), _BATCH_KEYS):
                batch = rows[at : at + _BATCH_KEYS]
                asked = f"SELECT row, {_COLUMNS} FROM points JOIN contents USING (row) WHERE row IN "  # noqa: S608
                for each in sql.execute(f"{asked}({','.join('?' * len(batch))})", batch):
                    found[each[0]] = each
        hits: list[Hit] = []
        for row, score in zip(rows, scores, strict=True):
            _, key, payload, version, text, source = found[row]
            hits.append(Hit(key_id(key), score, payload_of(payload), text, source, None, version))
        return hits

    def payloads(self, start: int = 0, stop: int | None = None) -> Iterator[Payload]:
        """The payloads of rows [start, stop), in row order."""
        for (payload,) in self._scan("payload FROM points", start, stop):
            yield payload_of(payload)

    def words(self) -> Iterator[tuple[str, Payload]]:
        """(text, payload) of every row, in row order."""
        for text, payload in self._scan("text, payload FROM points JOIN contents USING (row)"):
            yield text, payload_of(payload)

    def wordless(self) -> NDArray[np.bool_]:
        """Which rows have no words to be found by: no text, and no title."""
        found = np.zeros(self.count, np.bool_)
        for row, payload in self._scan("row, payload FROM points JOIN contents USING (row)", also="trim(text) = ''"):
            found[row] = not searchable("", payload_of(payload)).strip()
        return found

    def points(self) -> Iterator[Point]:
        """All points with their vectors, in row order."""
        for at in range(0, self.count, _BATCH_POINTS):
            yield from self.fetch(range(at, min(at + _BATCH_POINTS, self.count)), with_vectors=True)

    def words_sum(self) -> str:
        """SHA-256, in hex, over everything but the vectors."""
        total = hashlib.sha256()
        for values in self._scan(_COLUMNS + " FROM points JOIN contents USING (row)"):
            total.update(repr(values).encode())
        return total.hexdigest()

    def vectors(self, name: str = "", dimensions: int | None = None) -> Iterator[tuple[int, Vector]]:
        """(row, vector [d] as it was given) of every row that has one of this name, in row order.

        Raises CorruptIndex for one of another size.
        """
        due = self.dimensions if dimensions is None else dimensions
        for at in range(0, self.count, _BATCH_POINTS):
            end = min(at + _BATCH_POINTS, self.count)
            with self._reader() as sql:
                if name:
                    asked = "SELECT row, vector FROM named WHERE row >= ? AND row < ? AND name = ? ORDER BY row"
                    rows = sql.execute(asked, (at, end, name)).fetchall() if self._has_named else []
                else:
                    asked = f"SELECT row, vector FROM {self._vectors_in} WHERE row >= ? AND row < ? ORDER BY row"  # noqa: S608
                    rows = sql.execute(asked, (at, end)).fetchall()
            for row, blob in rows:
                if blob:
                    yield row, _vector(blob, due)

    def close(self) -> None:
        """Let go of the file; idempotent. Garbage collection does the same."""
        self._finalizer()

    def free(self) -> None:
        """Let go of the file and of the keys, a little at a time. Only when nobody will ask any more."""
        self.close()
        while self.keys:
            del self.keys[-FREED_AT_ONCE:]

    def _scan(
        self, what: str, start: int = 0, stop: int | None = None, also: str = "TRUE"
    ) -> Iterator[tuple[Any, ...]]:
        # a reader is held for one batch at a time: a slow consumer must not starve the questions
        end = self.count if stop is None else min(stop, self.count)
        for at in range(start, end, _BATCH_POINTS):
            with self._reader() as sql:
                rows = sql.execute(
                    f"SELECT {what} WHERE row >= ? AND row < ? AND {also} ORDER BY row",
                    (at, min(at + _BATCH_POINTS, end)),
                ).fetchall()
            yield from rows

    @contextmanager
    def _reader(self) -> Generator[sqlite3.Connection]:
        sql = self._idle.get()
        try:
            yield sql
        except sqlite3.Error as error:
            # it was sound when it was verified; nobody should write to it since, but disks do fail
            raise CorruptIndex(f"{self._name}: {error}") from error
        finally:
            self._idle.put(sql)


def _close_all(idle: SimpleQueue[sqlite3.Connection]) -> None:
    while not idle.empty():
        idle.get().close()


def checked_vector(vector: Any, dimensions: int, what: str = "query") -> Vector:
    """`vector` as contiguous float32 [dimensions]. Raises WrongDimension or NotFinite."""
    given = cast("Vector", vector) if isinstance(vector, np.ndarray) else None
    if given is not None and given.dtype == np.float32 and given.flags.c_contiguous:
        array = given
    else:
        try:
            with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinity, and is refused below
                array = np.ascontiguousarray(vector, dtype=np.float32)
        except (TypeError, ValueError, OverflowError) as error:
            raise NotFinite(f"the {what} vector is no list of numbers") from error
    if array.shape != (dimensions,):
        raise WrongDimension(array.shape, dimensions, what)
    # NaN is its own least and largest component, and fails the comparison
    if dimensions and not (array.min() >= -COMPONENT_MAX and array.max() <= COMPONENT_MAX):
        raise NotFinite(f"the {what} vector holds NaN, infinity or a component beyond {COMPONENT_MAX:g}")
    return array


# squares of components this large, summed over 65 536 dimensions, still fit float32
COMPONENT_MAX: Final = 1e16


def checked_vectors(point: Point, shapes: Mapping[str, int], *, sparse: bool) -> dict[str, Vector]:
    """The vectors of a point by name ("" is the one without a name), each as `checked_vector` gives it.

    `shapes` are the dimensions by name. Unless `sparse`, none may be lacking. Raises BadPoint for a name that is not
    there, WrongDimension, NotFinite.
    """
    vectors: dict[str, Vector] = {}
    given = {"": point.vector, **point.named} if point.vector is not None or not sparse else point.named
    for name, vector in given.items():
        dimensions = shapes.get(name, 0)
        if not dimensions:
            if not name and not shapes.get("") and vector is None:
                continue
            raise BadPoint(f"point {point.id!r}: this collection has no vectors named {name!r}")
        called = f"the vector {name!r} of point {point.id!r}" if name else f"the vector of point {point.id!r}"
        vectors[name] = checked_vector(vector, dimensions, called)
    return vectors


def _named_vectors(sql: sqlite3.Connection, rows: Sequence[int]) -> dict[int, dict[str, bytes]]:
    marks = ",".join("?" * len(rows))
    found: dict[int, dict[str, bytes]] = {}
    asked = f"SELECT row, name, vector FROM named WHERE row IN ({marks})"  # noqa: S608
    for row, name, blob in sql.execute(asked, list(rows)):
        found.setdefault(row, {})[name] = blob
    return found


def _point(values: tuple[Any, ...], named: Mapping[str, bytes] | None = None) -> Point:
    key, payload, version, text, source, vector = values
    return Point(
        id=key_id(key),
        # an empty blob stands for no vector
        vector=np.frombuffer(vector, np.float32) if vector else None,
        payload=payload_of(payload),
        text=text,
        source=source,
        version=version,
        named={name: np.frombuffer(blob, np.float32) for name, blob in named.items()} if named else {},
    )


def _vector(blob: bytes, dimensions: int) -> Vector:
    if len(blob) != 4 * dimensions:
        raise CorruptIndex(f"a stored vector has {len(blob)} bytes, not {4 * dimensions}")
    return np.frombuffer(blob, np.float32)
