"""What mirrors are tested with: a database that is played, copies in memory, and a route's mirror between them.

live = Live("qdrant")             points in dicts; a Service that carries out writes as it is told to, and a Source
play = Playing(tmp_path, live)    a Mirror over MemoryStock, its tap round live, its walker reading live
"""

from __future__ import annotations

import asyncio
import json
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from understudy.indexes.faults import IndexFault
from understudy.indexes.filters import compile_filter
from understudy.indexes.points import Hit, Point, PointId, canonical_id, id_key
from understudy.indexes.reach import parse_path
from understudy.indexes.writes import (
    Create,
    Delete,
    Drop,
    DropPayload,
    DropVectors,
    PutPayload,
    PutVectors,
    Upsert,
    VectorShape,
    Which,
    Write,
)
from understudy.policies.service import Answer, Call, Failed, Request
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.mirroring.keeper import Keeper
from understudy.proxy.mirroring.mirror import Mirror
from understudy.proxy.mirroring.source import Described, Gone, Page, SourceFailed
from understudy.proxy.mirroring.walking import Walker
from understudy.proxy.settings.mirror import Mirror as Rules

DIMENSIONS = 4
QDRANT = DIALECTS["qdrant"]


def vector(seed: int) -> list[float]:
    return [float(x) for x in np.random.default_rng(seed).normal(size=DIMENSIONS).astype(np.float32)]


class MemoryCopy:
    """A collection in memory that carries out writes as `indexes/writes` says."""

    def __init__(self, shapes: dict[str, VectorShape], notes: dict[str, Any]) -> None:
        self.shapes = shapes
        self.notes = notes
        self.points: dict[PointId, Point] = {}
        self.epoch = "0"
        self.is_flooded = False

    @property
    def count(self) -> int:
        return len(self.points)

    def search(self, asked: Any, k: int, *, using: str = "") -> list[Hit]:
        """The nearest by cosine, exactly."""
        assert using == ""
        return nearest(self.points.values(), asked, k)

    def get(self, ids: Sequence[PointId], *, with_vectors: bool = False) -> list[Point]:
        return [self.points[key] for each in ids if (key := canonical_id(each)) in self.points]

    def scroll(
        self, from_id: PointId | None, limit: int, filter: object = None, *, with_vectors: bool = False
    ) -> tuple[list[Point], PointId | None]:
        ordered = sorted(self._chosen(Which(filter=filter or {})), key=id_key)
        keys = [id_key(each) for each in ordered]
        start = 0 if from_id is None else bisect_left(keys, id_key(from_id))
        some = ordered[start : start + limit]
        following = ordered[start + limit] if len(ordered) > start + limit else None
        return [self.points[each] for each in some], following

    def write(self, write: Write) -> None:
        self.epoch = str(int(self.epoch) + 1)
        match write:
            case Upsert(points, only):
                for point in points:
                    key = canonical_id(point.id)
                    if (only == "new" and key in self.points) or (only == "existing" and key not in self.points):
                        continue
                    self.points[key] = replace(point, id=key)
            case Delete(which):
                for key in self._chosen(which):
                    del self.points[key]
            case PutVectors(points):
                for point in points:
                    key = canonical_id(point.id)
                    if key in self.points:
                        named = {**self.points[key].named, **point.named}
                        bare = self.points[key].vector if point.vector is None else point.vector
                        self.points[key] = replace(self.points[key], vector=bare, named=named)
            case DropVectors(which, names):
                for key in self._chosen(which):
                    named = {name: value for name, value in self.points[key].named.items() if name not in names}
                    self.points[key] = replace(self.points[key], named=named)
            case PutPayload(which, payload, _, replacing):
                for key in self._chosen(which):
                    before = {} if replacing else self.points[key].payload
                    self.points[key] = replace(self.points[key], payload={**before, **payload})
            case DropPayload(which, keys):
                names = [parse_path(each)[0] for each in keys]
                for key in self._chosen(which):
                    kept = {name: v for name, v in self.points[key].payload.items() if keys and name not in names}
                    self.points[key] = replace(self.points[key], payload=kept)
            case Create() | Drop():
                raise IndexFault("a collection is there")

    def _chosen(self, which: Which) -> list[PointId]:
        if which.filter is None:
            return [key for each in which.ids if (key := canonical_id(each)) in self.points]
        passes = compile_filter(which.filter)
        return [key for key, point in self.points.items() if passes(key, point.payload)]


def nearest(points: Iterable[Point], asked: Any, k: int) -> list[Hit]:
    """These points by their cosine to a vector, equal ones by their ids."""

    def score(one: Point) -> float:
        assert one.vector is not None
        return float(one.vector @ asked / np.linalg.norm(one.vector) / np.linalg.norm(asked))

    hits = [Hit(one.id, score(one), one.payload, one.text, one.source) for one in points if one.vector is not None]
    return sorted(hits, key=lambda hit: (-hit.score, id_key(hit.id)))[:k]


class MemoryStock:
    """Copies by name. `broken` is raised by the next writes, `writes` counts them."""

    def __init__(self) -> None:
        self.copies: dict[str, MemoryCopy] = {}
        self.broken: Exception | None = None
        self.writes = 0
        self._lock = threading.Lock()

    def get(self, name: str) -> MemoryCopy | None:
        return self.copies.get(name)

    def write(self, name: str, writes: Sequence[Write], *, space: str = "") -> None:
        with self._lock:
            if self.broken is not None:
                raise self.broken
            self.writes += 1
            for write in writes:
                if isinstance(write, Create) and name in self.copies:
                    self.copies[name].notes.update(write.notes)
                elif isinstance(write, Create):
                    self.copies[name] = MemoryCopy(dict(write.vectors), dict(write.notes))
                elif isinstance(write, Drop):
                    self.copies.pop(name, None)
                else:
                    self.copies[name].write(write)


class Live:
    """A Qdrant that is played: `await live(call)` carries out a write, or does as `then` says; it is a Source too."""

    def __init__(self) -> None:
        self.stock = MemoryStock()
        self.then: list[Callable[[Call], Any]] = []
        self.before_page: Callable[[], Any] | None = None
        self.down = False
        self.expired: set[str] = set()
        self.pages = 0
        self.fetched: list[PointId] = []
        self.indexed: dict[PointId, Point] | None = None
        """What searches find, where that is not what is there: the index is stale."""

    def make(self, name: str, count: int = 0) -> MemoryCopy:
        self.stock.write(name, [Create({"": VectorShape(DIMENSIONS)})])
        copy = self.stock.copies[name]
        for number in range(count):
            copy.write(Upsert((point(number),)))
        return copy

    # --- as the upstream of calls ----------------------------------------------------------------------------------

    async def __call__(self, call: Call) -> Answer:
        await asyncio.sleep(0)
        if self.then:
            said = self.then.pop(0)(call)
            return await said if asyncio.iscoroutine(said) else said
        return self.carried_out(call)

    def carried_out(self, call: Call) -> Answer:
        for change in QDRANT.changes(call):
            self.stock.write(change.collection, [change.write])
        return answered()

    # --- as a source -----------------------------------------------------------------------------------------------

    async def collections(self) -> list[Described]:
        self._asked()
        return [await self.described(name) for name in self.stock.copies]

    async def described(self, name: str) -> Described:
        self._asked()
        copy = self.stock.copies.get(name)
        if copy is None:
            raise Gone(f"{name}: 404")
        return Described(name, name, copy.count, copy.shapes)

    async def page(self, of: Described, cursor: str, limit: int) -> Page:
        self._asked()
        self.pages += 1
        if cursor in self.expired:
            raise Gone("the cursor has expired")
        copy = self.stock.copies[of.handle]
        points, following = copy.scroll(json.loads(cursor) if cursor else None, min(limit, 10))
        if self.before_page is not None:
            # what was read is on its way while this happens
            said = self.before_page()
            if asyncio.iscoroutine(said):
                await said
        return Page(tuple(points), "" if following is None else json.dumps(following))

    async def fetch(self, of: Described, ids: Sequence[PointId]) -> list[Point]:
        self._asked()
        self.fetched += ids
        return self.stock.copies[of.handle].get(ids)

    async def nearest(self, of: Described, using: str, vectors: Sequence[Any], limit: int) -> list[list[PointId]]:
        self._asked()
        assert using == ""
        points = self.stock.copies[of.handle].points if self.indexed is None else self.indexed
        return [[hit.id for hit in nearest(points.values(), each, limit)] for each in vectors]

    async def close(self) -> None: ...

    def _asked(self) -> None:
        if self.down:
            raise SourceFailed("connection refused")


class Playing:
    """One route's mirror with everything round it. Its clocks are the loop's."""

    def __init__(
        self, folder: Path, live: Any, stock: MemoryStock | None = None, dialect: Any = QDRANT, **rules: Any
    ) -> None:
        self.live = live
        self.dialect = dialect
        self.stock = stock or MemoryStock()
        self.told: list[tuple[str, list[PointId]]] = []
        loop = asyncio.get_running_loop()
        self.thread = ThreadPoolExecutor(1)
        self.mirror = Mirror(
            "db",
            Rules(**rules),
            dialect,
            folder=folder / "mirror" / "db",
            stock=lambda: self.stock,
            thread=self.thread,
            space="test-space",
            listener=lambda local, points: self.told.append((local, [each.id for each in points])),
            wall=lambda: 1_800_000_000.0 + loop.time(),
            clock=loop.time,
        )
        self.walker = Walker(self.mirror, live, _at_once)
        self.answered = 0
        self.keeper = Keeper(self.mirror, self.walker, heard=lambda: self.answered)
        self.service = self.mirror.tapped(self._primary, "primary", "qdrant")

    async def _primary(self, call: Call) -> Answer:
        answer = await self.live(call)
        answer.tier = answer.tier or "primary"
        self.answered += 1
        return answer

    async def __aenter__(self) -> Playing:
        self.mirror.ready()
        self.mirror.start()
        self.mirror.lane.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.mirror.stop()
        self.thread.shutdown()

    async def ask(self, method: str, path: str, body: Any = None) -> Answer:
        """A write of an application, through the tap."""
        return await self.service(call_of(method, path, body, self.dialect))

    async def upsert(self, *points: Point, collection: str = "docs") -> Answer:
        said = [{"id": each.id, "vector": list(map(float, each.vector)), "payload": each.payload} for each in points]
        return await self.ask("PUT", f"/collections/{collection}/points", {"points": said})

    async def settled(self) -> None:
        """Until all that has passed is applied."""
        while len(self.mirror.lane):  # noqa: ASYNC110 (nobody is told that a queue is empty)
            await asyncio.sleep(0.01)

    async def kept(self, times: int = 1, pause_s: float = 1.0) -> None:
        """The keeper looks so many times, as it does every second."""
        for _ in range(times):
            await self.keeper.once()
            await asyncio.sleep(pause_s)

    def same(self, collection: str = "docs") -> bool:
        """Whether the copy has what the database has."""
        live, copy = self.live.stock.copies[collection], self.stock.copies[collection]
        return {k: shown(p) for k, p in live.points.items()} == {k: shown(p) for k, p in copy.points.items()}


def shown(point: Point) -> Any:
    return point.id, None if point.vector is None else point.vector.tolist(), point.payload


def point(number: int, **payload: Any) -> Point:
    fields = payload or {"n": number, "title": f"Title {number}", "body": f"The body of {number}."}
    return Point(number, np.array(vector(number), np.float32), fields)


def call_of(method: str, path: str, body: Any = None, dialect: Any = QDRANT) -> Call:
    data = b"" if body is None else json.dumps(body).encode()
    return dialect.read(Request(method.encode(), path.encode(), [], data))


def answered(status: int = 200, body: Any = None) -> Answer:
    said = {"result": {"operation_id": 1, "status": "completed"}, "status": "ok", "time": 0.001}
    return Answer(status, [(b"content-type", b"application/json")], json.dumps(body or said).encode())


def cut(_call: Call) -> Answer:
    raise Failed("reset", "the connection was cut", again=False, elsewhere=False)


async def _at_once(_count: int) -> None: ...
