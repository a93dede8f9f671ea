"""The readers of Elasticsearch, OpenSearch, Pinecone and Milvus, over sockets, against fakes.

They page as their manuals say."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from tests.kit.acts import answer
from tests.kit.elastic_service import FakeElastic
from tests.kit.fake_upstream import FakeUpstream
from tests.kit.milvus_service import FakeMilvus, Rows, quick
from tests.kit.pinecone_service import DIMENSIONS, Index, make_app
from tests.mirroring.live import MemoryStock, Playing
from tests.mirroring.served import Crash, Mortal, Served, numbers
from understudy.indexes.points import Point
from understudy.policies.pace import Pace
from understudy.policies.service import Answer, Call
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.mirroring.line import Line
from understudy.proxy.mirroring.source import Described, Gone, Source, SourceFailed, Unmirrorable
from understudy.proxy.mirroring.sources import source_of
from understudy.proxy.settings.settings import UpstreamTier

COUNT = 600
"""Three pages of Elasticsearch's and Milvus', and seven of Pinecone's."""
VEC = {"elasticsearch": {"type": "dense_vector", "dims": 8}, "opensearch": {"type": "knn_vector", "dimension": 8}}
KINDS = ("elasticsearch", "elasticsearch without vectors in _source", "opensearch", "pinecone", "milvus")
Fields = dict[str, Any]


class Database(Served):
    """A fake with a collection `docs`."""

    def __init__(self, kind: str) -> None:
        self.dialect = kind.partition(" ")[0]
        if self.dialect == "pinecone":
            self.index = Index()
            self.index.namespaces["docs"] = self.documents = {f"id-{n:04}": _record(n) for n in range(COUNT)}
            app = make_app(self.index)
        elif self.dialect == "milvus":
            self.milvus = FakeMilvus(order="keys")
            made = self.milvus.collections["docs"] = quick(8, key="VarChar", vector="vec")
            self.documents = Rows(made)
            self.documents.update({f"id-{n:04}": _row(n) for n in range(COUNT)})
            app = self.milvus.app()
        else:
            self.elastic = FakeElastic(in_source=kind == self.dialect, opensearch=self.dialect == "opensearch")
            self.documents = {f"id-{n:04}": _document(n) for n in range(COUNT)}
            self.elastic.make("docs", {"vec": VEC[self.dialect], "title": {"type": "text"}}, self.documents)
            app = self.elastic.app()
        super().__init__(self.dialect, app)

    def pages(self) -> int:
        """How many pages were asked for."""
        if self.dialect == "pinecone":
            return sum(each.startswith("GET /vectors/list?") for each in self.asked)
        if self.dialect == "milvus":
            return sum(each["outputFields"] == ["*"] for each in self.milvus.told("entities/query"))
        return sum("sort" in each for each in self.elastic.searches)

    def expected(self) -> Fields:
        """What a copy has to hold."""
        if self.dialect == "pinecone":
            return {name: (each["values"], each.get("metadata") or {}) for name, each in self.documents.items()}
        return {
            name: (each.get("vec"), {field: value for field, value in each.items() if field != "vec"})
            for name, each in self.documents.items()
        }


class Tapped(Mortal):
    """The source as a walk sees it, which ends with the process before one page; and the database as callers see it."""

    def __init__(self, database: Database, source: Source) -> None:
        super().__init__(source)
        self._database = database

    async def __call__(self, call: Call) -> Answer:
        document = json.loads(call.request.body)
        called = call.request.target.decode().rpartition("/")[2]
        self._database.documents[called] = document
        said = {"_index": "docs", "_id": called, "_version": 2, "result": "updated", "_shards": {"failed": 0}}
        return Answer(200, [(b"content-type", b"application/json")], json.dumps(said).encode())


def _record(n: int) -> Fields:
    record: Fields = {"id": f"id-{n:04}", "values": numbers(n, DIMENSIONS)}
    return record | {"metadata": {"n": n, "title": f"Title {n}"}} if n % 7 else record


def _document(n: int) -> Fields:
    document: Fields = {"n": n, "title": f"Title {n}", "sizes": [n, n + 1]}
    return document | {"vec": numbers(n)} if n % 7 else document


def _row(n: int) -> Fields:
    """As `_document`; every row has its vector."""
    return {**_document(n), "vec": numbers(n)}


def held(stock: MemoryStock) -> Fields:
    return {str(name): _shown(point) for name, point in stock.copies["docs"].points.items()}


def _shown(point: Point) -> Any:
    vector = point.named.get("vec") if point.vector is None else point.vector
    return None if vector is None else vector.tolist(), dict(point.payload)


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest) -> Database:
    return Database(request.param)


def playing(folder: Path, database: Database, source: Source, stock: MemoryStock) -> Playing:
    return Playing(folder, Tapped(database, source), stock, DIALECTS[database.dialect])


async def test_a_collection_of_several_pages_is_copied_whole(tmp_path: Path, database: Database):
    stock = MemoryStock()
    async with database.source() as source, playing(tmp_path, database, source, stock) as play:
        assert [(each.name, each.count) for each in await source.collections()] == [("docs", COUNT)]
        await play.kept()
        assert database.pages() == (6 if database.dialect == "pinecone" else 3)
        assert held(stock) == database.expected()
        assert play.mirror.held["docs"].standing.whole


async def test_a_copy_goes_on_with_the_page_that_a_crash_kept_from_it(tmp_path: Path, database: Database):
    stock = MemoryStock()
    async with database.source() as source:
        async with playing(tmp_path, database, source, stock) as play:
            play.live.dies_before = 3
            with pytest.raises(Crash):
                await play.kept()
        assert 0 < len(held(stock)) < COUNT
        read = database.pages()
        async with playing(tmp_path, database, source, stock) as again:
            await again.kept()
            assert held(stock) == database.expected()
        assert (read, database.pages()) == (2, 6 if database.dialect == "pinecone" else 3)


async def test_a_page_that_breaks_is_asked_for_again(tmp_path: Path, database: Database):
    stock = MemoryStock()
    broken = [503, 429, 502]

    def breaks(request: web.Request) -> Any:
        reads = request.path.endswith(("_search", "/vectors/list", "/query"))
        return web.Response(status=broken.pop()) if reads and broken and database.pages() >= 2 else None

    database.before = breaks
    async with database.source() as source, playing(tmp_path, database, source, stock) as play:
        await play.kept()
        assert not broken
        assert held(stock) == database.expected()


async def test_what_differs_from_the_database_is_put_right(tmp_path: Path, database: Database):
    stock = MemoryStock()
    async with database.source() as source, playing(tmp_path, database, source, stock) as play:
        await play.kept()
        make = {"pinecone": _record, "milvus": _row}.get(database.dialect, _document)
        database.documents["id-0003"] = make(1003) | ({"id": "id-0003"} if database.dialect == "pinecone" else {})
        database.documents["later"] = make(1004) | ({"id": "later"} if database.dialect == "pinecone" else {})
        del database.documents["id-0500"]
        assert held(stock) != database.expected()
        play.mirror.notes.leave_note("sync", "docs", "docs")
        await play.kept(3)
        assert held(stock) == database.expected()
        assert play.mirror.held["docs"].repaired == 3


async def test_what_is_asked_for_by_id_and_is_not_there_is_left_out(database: Database):
    async with database.source() as source:
        of = await source.described("docs")
        assert {each.id for each in await source.fetch(of, ["id-0001", "nobody", "id-0599"])} == {"id-0001", "id-0599"}
        assert await source.fetch(of, []) == []
        with pytest.raises(Gone):
            await source.described("nobody")


@pytest.mark.parametrize("kind", ["elasticsearch", "opensearch"])
async def test_a_write_between_two_pages_is_not_undone_by_a_page_that_is_older(tmp_path: Path, kind: str):
    database, stock = Database(kind), MemoryStock()
    async with database.source() as source, playing(tmp_path, database, source, stock) as play:

        async def writes(_request: web.Request) -> None:
            if database.pages() == 1:
                database.before = lambda _request: None
                await play.ask("PUT", "/docs/_doc/id-0599", {"n": "written", "vec": numbers(5)})
                del database.documents["id-0598"]
                # long enough that nobody doubts it any more
                await asyncio.sleep(play.mirror.rules.settle_s * 5)

        database.before = writes
        await play.kept()
        assert database.expected()["id-0599"][1] == {"n": "written"}
        assert held(stock) == database.expected()


async def test_a_point_in_time_that_is_over_has_the_walk_begin_anew(tmp_path: Path):
    database, stock = Database("elasticsearch"), MemoryStock()

    def expires(_request: web.Request) -> None:
        if database.pages() == 2:
            database.elastic.opened.clear()

    database.before = expires
    async with database.source() as source, playing(tmp_path, database, source, stock) as play:
        await play.kept()
        assert held(stock) == database.expected()
        assert sum(each.startswith("POST /docs/_pit?") for each in database.asked) == 2
        assert not database.elastic.opened


async def test_indices_that_are_not_vectors_or_not_the_callers_are_left_out():
    database = Database("elasticsearch")
    database.elastic.make(".security", {"vec": VEC["elasticsearch"]}, {})
    database.elastic.make("logs", {"title": {"type": "text"}}, {})
    database.elastic.make("bytes", {"vec": {**VEC["elasticsearch"], "element_type": "byte"}}, {})
    async with database.source() as source:
        assert [each.name for each in await source.collections()] == ["docs"]
        with pytest.raises(Unmirrorable):
            await source.described("bytes")


@pytest.mark.parametrize("part", [{"timed_out": True}, {"_shards": {"failed": 1}}])
async def test_an_answer_that_lacks_shards_is_no_page(part: Fields):
    database = Database("opensearch")
    async with database.source() as source:
        of = await source.described("docs")
        database.before = lambda _request: web.json_response({"hits": {"hits": []}, **part})
        with pytest.raises(SourceFailed):
            await source.page(of, "", 10)


async def test_a_pinecone_that_does_not_say_its_metric_is_trouble_that_is_told(tmp_path: Path):
    database = Database("pinecone")
    database.before = lambda _request: web.json_response({"namespaces": {"docs": {"vectorCount": 3}}, "dimension": 8})
    async with database.source() as source, playing(tmp_path, database, source, MemoryStock()) as play:
        await play.kept()
        assert "X-Pinecone-Api-Version" in play.keeper.trouble


async def test_pinecones_default_namespace_has_a_name_to_callers():
    database = Database("pinecone")
    database.index.namespaces[""] = {"a": _record(1) | {"id": "a"}}
    async with database.source() as source:
        of = await source.described("__default__")
        assert (of.handle, of.count) == ("", 1)
        assert [each.id for each in (await source.page(of, "", 10)).points] == ["a"]


SEARCHED = {
    # dialect: what the database answers, how often it is asked for two vectors, and where
    "qdrant": (
        {"result": [{"points": [{"id": 1, "version": 0, "score": 0.9}, {"id": "b", "version": 0, "score": 0.8}]}] * 2},
        1,
        b"/collections/docs/points/query/batch",
    ),
    "chroma": (
        {"ids": [["a", "b"]] * 2, "distances": None, "include": []},
        1,
        b"/api/v2/tenants/default_tenant/databases/default_database/collections/docs/query",
    ),
    "pinecone": (
        {"matches": [{"id": "a", "score": 0.9}, {"id": "b", "score": 0.8}], "namespace": "docs"},
        2,
        b"/query",
    ),
    "milvus": (
        {"code": 0, "data": [{"id": "a", "distance": 0.9}, {"id": "b", "distance": 0.8}]},
        2,
        b"/v2/vectordb/entities/search",
    ),
    "weaviate": (
        {"data": {"Get": {"docs": [{"_additional": {"id": "a"}}, {"_additional": {"id": "b"}}]}}},
        2,
        b"/v1/graphql",
    ),
    "elasticsearch": ({"hits": {"hits": [{"_id": "a", "_score": 1.0}, {"_id": "b"}]}}, 2, b"/docs/_search"),
    "opensearch": ({"hits": {"hits": [{"_id": "a", "_score": 1.0}, {"_id": "b"}]}}, 2, b"/docs/_search"),
}


@pytest.mark.parametrize("dialect", sorted(SEARCHED))
async def test_a_database_is_searched_in_its_own_words(dialect: str):
    said, times, path = SEARCHED[dialect]
    vectors = [np.array(numbers(1, 2), np.float32), np.array(numbers(2, 2), np.float32)]
    async with FakeUpstream(answer(body=said)) as up:
        tier = UpstreamTier(name="database", url=up.url)
        source = source_of(dialect, Line(tier, Pace(1e9), dice=lambda: 0.5))
        try:
            using = "vec" if dialect in ("elasticsearch", "opensearch", "qdrant", "milvus") else ""
            found = await source.nearest(Described("docs", "docs", 9), using, vectors, 10)
        finally:
            await source.close()
        assert found == [[1 if dialect == "qdrant" else "a", "b"]] * 2
        assert [heard.target for heard in up.heard] == [path] * times
        asked = b" ".join(heard.body for heard in up.heard)
        assert all(str(vector.tolist()[0]).encode()[:8] in asked for vector in vectors)
        assert (b'"vec"' in asked) == bool(using)
