"""Read Chroma v2: the collections of its databases, then their records by limit and offset.

    GET  …/tenants/{t}/databases/{d}/collections            [{id, name, dimension, configuration_json, metadata}, …]
    POST …/collections/{id}/get   {limit, offset, include}  -->  columns: ids, embeddings, documents, metadatas
    POST …/collections/{id}/get   {ids, include}
    POST …/collections/{id}/query {query_embeddings, n_results}  -->  ids of each

Records are paged by offset in the order of their insertion: one deleted while pages are read shifts the next page by
one. What is missed by it is found by the comparison of numbers that follows a walk, and copied by the next.
A collection is called by its name behind its scope, as `proxy.dialects.chroma` calls it, and by its id in paths.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final
from urllib.parse import quote, unquote

import msgspec
import numpy as np

from understudy.indexes.points import Point, PointId, Vector
from understudy.indexes.writes import DistanceName, VectorShape
from understudy.proxy.mirroring.line import Line
from understudy.proxy.mirroring.source import Described, Gone, Page, Unmirrorable

log = logging.getLogger("understudy.mirror")

_DISTANCES: Final[dict[str, DistanceName]] = {"cosine": "cosine", "ip": "dot", "l2": "euclid"}
_DEFAULT: Final = ("default_tenant", "default_database")
_INCLUDE: Final = ["embeddings", "documents", "metadatas"]


class _Collection(msgspec.Struct):
    id: str
    name: str
    dimension: int | None = None
    configuration_json: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


class _Columns(msgspec.Struct):
    ids: list[str]
    embeddings: list[list[float] | None] | None = None
    documents: list[str | None] | None = None
    metadatas: list[dict[str, Any] | None] | None = None


class _Found(msgspec.Struct):
    ids: list[list[str]]


_COLLECTIONS = msgspec.json.Decoder(list[_Collection])
_ONE = msgspec.json.Decoder(_Collection)
_COLUMNS = msgspec.json.Decoder(_Columns)
_FOUND = msgspec.json.Decoder(_Found)
_COUNT = msgspec.json.Decoder(int)


class ChromaSource:
    """A Chroma behind `line`. `names` are those that the policy or callers have said, for their scopes."""

    def __init__(self, line: Line, names: Iterable[str] = ()) -> None:
        self._line = line
        self._scopes = {"": None} | dict.fromkeys(scope_of(name) for name in names)

    async def collections(self) -> list[Described]:
        found: list[Described] = []
        for scope in self._scopes:
            for each in await self._line.ask("GET", f"{_database(scope)}/collections", read=_COLLECTIONS.decode):
                try:
                    found.append(await self._described(scope, each))
                except (Unmirrorable, Gone) as why:
                    log.info("collection %s%s is not copied: %s", scope, each.name, why)
        return found

    async def described(self, name: str) -> Described:
        scope = scope_of(name)
        at = f"{_database(scope)}/collections/{quote(name.removeprefix(scope), safe='')}"
        return await self._described(scope, await self._line.ask("GET", at, read=_ONE.decode))

    async def page(self, of: Described, cursor: str, limit: int) -> Page:
        offset = int(cursor or 0)
        asked = {"limit": limit, "offset": offset, "include": _INCLUDE}
        points = await self._line.ask("POST", f"{_at(of)}/get", asked, read=_points)
        return Page(tuple(points), str(offset + len(points)) if len(points) == limit else "")

    async def fetch(self, of: Described, ids: Sequence[PointId]) -> list[Point]:
        if not ids:
            # no ids at all are all of them, to Chroma
            return []
        return await self._line.ask("POST", f"{_at(of)}/get", {"ids": list(ids), "include": _INCLUDE}, read=_points)

    async def nearest(self, of: Described, using: str, vectors: Sequence[Vector], limit: int) -> list[list[PointId]]:
        del using
        asked = {"query_embeddings": [each.tolist() for each in vectors], "n_results": limit, "include": []}
        found = await self._line.ask("POST", f"{_at(of)}/query", asked, read=_FOUND.decode)
        return [list(each) for each in found.ids]

    async def close(self) -> None:
        await self._line.close()

    async def _described(self, scope: str, told: _Collection) -> Described:
        distance = _distance(told)
        count = await self._line.ask("GET", f"{_database(scope)}/collections/{told.id}/count", read=_COUNT.decode)
        vectors = {"": VectorShape(told.dimension, distance)} if told.dimension else {}
        return Described(scope + told.name, scope + told.id, count, vectors, {"distance": distance})


def scope_of(name: str) -> str:
    """What stands before a collection's own name: '' for the default tenant and database, else `tenant/database/`."""
    return name[: name.rindex("/") + 1] if "/" in name else ""


def _database(scope: str) -> str:
    tenant, database = map(unquote, scope.rstrip("/").split("/")) if scope else _DEFAULT
    return f"/api/v2/tenants/{quote(tenant, safe='')}/databases/{quote(database, safe='')}"


def _at(of: Described) -> str:
    scope = scope_of(of.handle)
    return f"{_database(scope)}/collections/{of.handle.removeprefix(scope)}"


def _distance(told: _Collection) -> DistanceName:
    configured = told.configuration_json or {}
    space = (told.metadata or {}).get("hnsw:space") or "l2"
    for kind in ("hnsw", "spann"):
        said = configured.get(kind)
        if isinstance(said, dict):
            space = said.get("space") or space  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
    if space not in _DISTANCES:
        raise Unmirrorable(f"no local index has the distance {space!r}")
    return _DISTANCES[space]


def _points(raw: bytes) -> list[Point]:
    columns = _COLUMNS.decode(raw)
    nothing = [None] * len(columns.ids)
    rows = zip(
        columns.ids,
        columns.embeddings or nothing,
        columns.documents or nothing,
        columns.metadatas or nothing,
        strict=True,
    )
    return [
        Point(called, None if numbers is None else np.array(numbers, np.float32), metadata or {}, document or "")
        for called, numbers, document, metadata in rows
    ]
