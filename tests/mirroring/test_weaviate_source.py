"""The reader of Weaviate over sockets, against a fake that pages as the manual says; and beside the tap on writes."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web

from tests.kit.weaviate_service import FakeWeaviate
from tests.mirroring.live import MemoryStock, Playing
from tests.mirroring.served import Crash, Mortal, Served, numbers
from understudy.indexes.points import Point
from understudy.indexes.writes import VectorShape
from understudy.policies.service import Answer, Call
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.mirroring.source import Described, Gone, Source, SourceFailed, Unmirrorable

COUNT = 600
"""Three pages."""
WEAVIATE = DIALECTS["weaviate"]
NONE = {"none": {}}
NAMED = {
    "title": {"vectorizer": NONE, "vectorIndexType": "hnsw", "vectorIndexConfig": {"distance": "dot"}},
    "body": {"vectorizer": NONE, "vectorIndexType": "flat", "vectorIndexConfig": {"distance": "l2-squared"}},
}
KINDS = ("one vector", "named vectors", "a cluster", "without GraphQL")
Fields = dict[str, Any]


def uid(n: int) -> str:
    # in another order than they are put in
    return str(uuid.UUID(int=(n * 7919) % 100_003 + (1 << 96)))


class Database(Served):
    """A fake with a class `Docs`."""

    def __init__(self, kind: str = "one vector", count: int = COUNT) -> None:
        self.fake = FakeWeaviate()
        self.named = kind in ("named vectors", "a cluster")
        self.fake.forgets_named = kind == "a cluster"
        self.fake.has_graphql = kind != "without GraphQL"
        self.objects = self.fake.make("Docs", **({"vectorConfig": NAMED} if self.named else {}))
        for n in range(count):
            self.store(n)
        super().__init__("weaviate", self.fake.app())

    def store(self, n: int, seed: int | None = None) -> str:
        """An object; every seventh lacks a vector."""
        about: Fields = {"n": n if seed is None else seed, "title": f"Title {n}", "sizes": [n, n + 1]}
        vectors: Fields = {"vector": numbers(seed or n)}
        if self.named:
            vectors = {"vectors": {"title": numbers(seed or n), "body": numbers(n + 5000, 4)}}
        self.fake.store("Docs", uid(n), {"properties": about, **(vectors if n % 7 else {})})
        return uid(n)

    def pages(self) -> int:
        """How many pages were asked for, without the first look at each class."""
        return sum("limit=256" in each for each in self.asked)

    def expected(self, name: str = "Docs") -> Fields:
        """What a copy has to hold."""
        return {
            called: (each.get("vector"), each.get("vectors", {}), each["properties"])
            for called, each in self.fake.objects[name].items()
        }


class Tapped(Mortal):
    """The source as a walk sees it, which ends with the process before one page; and the database as callers see it,
    over its socket."""

    def __init__(self, database: Database, source: Source) -> None:
        super().__init__(source)
        self._database = database

    async def __call__(self, call: Call) -> Answer:
        request = call.request
        url = self._database.url + request.target.decode()
        content = {"content-type": "application/json"}
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method.decode(), url, data=request.body, headers=content) as told,
        ):
            return Answer(told.status, [(b"content-type", b"application/json")], await told.read())


def held(stock: MemoryStock, name: str = "Docs") -> Fields:
    return {str(called): shown(point) for called, point in stock.copies[name].points.items()}


def shown(point: Point) -> Any:
    """All of a point, its numbers to the last digit."""
    bare = None if point.vector is None else point.vector.tolist()
    return bare, {name: vector.tolist() for name, vector in point.named.items()}, dict(point.payload)


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest) -> Database:
    return Database(request.param)


def playing(folder: Path, database: Database, source: Source, stock: MemoryStock) -> Playing:
    return Playing(folder, Tapped(database, source), stock, WEAVIATE)


async def test_a_class_of_several_pages_is_copied_whole(tmp_path: Path, database: Database):
    stock = MemoryStock()
    async with database.source() as source, playing(tmp_path, database, source, stock) as play:
        assert [(each.name, each.count) for each in await source.collections()] == [("Docs", COUNT)]
        await play.kept()
        assert database.pages() == 3
        assert held(stock) == database.expected()
        assert play.mirror.held["Docs"].standing.whole
        graphql = sum("/v1/graphql" in each for each in database.asked)
        assert (graphql > 1) == database.fake.has_graphql, "who has been told that it is off asks no more"


async def test_what_its_vectors_are_is_learnt_of_the_schema_and_of_the_first_objects():
    one, several = Database(), Database("named vectors")
    async with one.source() as source:
        of = await source.described("Docs")
        assert (dict(of.vectors), dict(of.notes)) == ({"": VectorShape(8, "cosine")}, {"distance": "cosine"})
    async with several.source() as source:
        of = await source.described("Docs")
        assert dict(of.vectors) == {"title": VectorShape(8, "dot"), "body": VectorShape(4, "euclid")}
        assert dict(of.notes) == {"distances": {"title": "dot", "body": "euclid"}}
    empty = Database("named vectors", count=0)
    async with empty.source() as source:
        of = await source.described("Docs")
        assert (of.count, of.vectors, of.notes["distances"]["body"]) == (0, {}, "euclid")


async def test_a_copy_goes_on_with_the_page_that_a_crash_kept_from_it(tmp_path: Path, database: Database):
    stock = MemoryStock()
    async with database.source() as source:
        async with playing(tmp_path, database, source, stock) as play:
            play.live.dies_before = 3
            with pytest.raises(Crash):
                await play.kept()
        assert 0 < len(held(stock)) < COUNT
        read = database.pages()
        # the object that the cursor names goes meanwhile: what comes after it does not depend on it
        seen = database.expected()
        del database.objects[sorted(database.objects)[2 * 256 - 1]]
        async with playing(tmp_path, database, source, stock) as again:
            await again.kept()
            assert held(stock) == seen
        assert (read, database.pages()) == (2, 3)


async def test_a_page_that_breaks_is_asked_for_again(tmp_path: Path, database: Database):
    stock = MemoryStock()
    broken = [503, 429, 502]

    def breaks(request: web.Request) -> Any:
        reads = request.path == "/v1/objects" and database.pages() >= 2
        return web.Response(status=broken.pop()) if reads and broken else None

    database.before = breaks
    async with database.source() as source, playing(tmp_path, database, source, stock) as play:
        await play.kept()
        assert not broken
        assert held(stock) == database.expected()


async def test_what_differs_from_the_database_is_put_right(tmp_path: Path, database: Database):
    stock = MemoryStock()
    async with database.source() as source, playing(tmp_path, database, source, stock) as play:
        await play.kept()
        database.store(3, seed=1003)
        database.store(COUNT + 1)
        del database.objects[uid(500)]
        assert held(stock) != database.expected()
        play.mirror.notes.leave_note("sync", "Docs", "Docs")
        await play.kept(3)
        assert held(stock) == database.expected()
        assert play.mirror.held["Docs"].repaired == 3


async def test_what_is_asked_for_by_id_and_is_not_there_is_left_out(database: Database):
    async with database.source() as source:
        of = await source.described("Docs")
        ids = [uid(1), str(uuid.UUID(int=5)), uid(599).upper(), "no uuid", 7]
        assert {each.id for each in await source.fetch(of, ids)} == {uid(1), uid(599)}
        assert not any("no%20uuid" in each for each in database.asked), "no object is called that"
        assert await source.fetch(of, []) == []
        with pytest.raises(Gone):
            await source.described("Nobody")


async def test_objects_of_a_class_that_is_gone_are_not_taken_for_objects_that_are_gone():
    database = Database(count=10)
    async with database.source() as source:
        of = await source.described("Docs")
        del database.fake.classes["Docs"], database.fake.objects["Docs"]
        with pytest.raises(Gone):
            await source.fetch(of, [uid(1), uid(2)])


async def test_an_object_that_can_not_be_looked_up_is_not_taken_for_one_that_is_gone():
    database = Database(count=10)
    async with database.source() as source:
        of = await source.described("Docs")
        database.before = lambda request: web.Response(status=403) if request.path.endswith(uid(2)) else None
        with pytest.raises(SourceFailed, match="403"):
            await source.fetch(of, [uid(1), uid(2), uid(3)])


# --- what can't be copied ------------------------------------------------------------------------------------------


UNMIRRORABLE: dict[str, tuple[Fields, str]] = {
    "Tenants": ({"multiTenancyConfig": {"enabled": True}}, "tenants"),
    "Made": ({"vectorizer": "text2vec-openai"}, "text2vec-openai"),
    "MadeByName": ({"vectorConfig": {"a": {"vectorizer": {"text2vec-cohere": {}}}}}, "text2vec-cohere"),
    "Manhattan": ({"vectorIndexConfig": {"distance": "manhattan"}}, "manhattan"),
    "Bits": ({"vectorIndexConfig": {"distance": "hamming"}}, "hamming"),
    "Unindexed": ({"vectorIndexConfig": {"skip": True}}, "not indexed"),
    "Rows": (
        {"vectorConfig": {"a": {"vectorizer": NONE, "vectorIndexConfig": {"multivector": {"enabled": True}}}}},
        "several rows",
    ),
    "Referring": ({"properties": [{"name": "author", "dataType": ["Person"]}]}, "author"),
}


async def test_classes_that_a_copy_could_not_stand_for_are_left_out_and_say_why():
    database = Database(count=3)
    for name, (said, _) in UNMIRRORABLE.items():
        database.fake.make(name, **said)
    async with database.source() as source:
        assert [each.name for each in await source.collections()] == ["Docs"]
        for name, (_, why) in UNMIRRORABLE.items():
            with pytest.raises(Unmirrorable, match=why):
                await source.described(name)


async def test_the_tap_makes_no_copy_of_a_class_that_the_reader_leaves_out(tmp_path: Path):
    database, stock = Database(count=3), MemoryStock()
    async with database.source() as source, playing(tmp_path, database, source, stock) as play:
        await play.kept()
        for name, (said, _) in UNMIRRORABLE.items():
            assert (await play.ask("POST", "/v1/schema", {"class": name, **said})).status == 200
        await play.kept(5)
        assert set(stock.copies) == {"Docs"}
        assert not play.mirror.held["Docs"].standing.behind_since, "nothing that is copied has changed"


async def test_a_class_by_another_name_is_not_copied_twice():
    database = Database(count=3)
    database.before = lambda request: (
        web.json_response(database.fake.classes["Docs"]) if request.path == "/v1/schema/Alias" else None
    )
    async with database.source() as source:
        with pytest.raises(Unmirrorable, match="another name of Docs"):
            await source.described("Alias")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/objects", {"class": "Tenants", "id": uid(1), "tenant": "a", "vector": numbers(1)}),
        ("POST", "/v1/batch/objects", {"objects": [{"class": "Tenants", "id": uid(1), "tenant": "a"}]}),
        ("POST", "/v1/schema/Tenants/tenants", [{"name": "b"}]),
        ("DELETE", f"/v1/objects/Tenants/{uid(1)}?tenant=a", None),
        ("POST", f"/v1/objects/Docs/{uid(1)}/references/author", {"beacon": "weaviate://localhost/Person/x"}),
        ("POST", "/v1/batch/references", [{"from": "x", "to": "y"}]),
    ],
)
async def test_a_write_to_a_class_without_a_copy_leaves_the_others_as_fresh_as_they_are(
    tmp_path: Path, method: str, path: str, body: Any
):
    database, stock = Database(count=3), MemoryStock()
    database.fake.make("Tenants", multiTenancyConfig={"enabled": True})
    told: Any = [{**body["objects"][0], "result": {"status": "SUCCESS"}}] if "batch/objects" in path else body or {}

    def said_yes(request: web.Request) -> Any:
        return web.json_response(told) if request.path_qs == path else None

    async with database.source() as source, playing(tmp_path, database, source, stock) as play:
        await play.kept()
        database.before = said_yes
        assert (await play.ask(method, path, body)).status == 200
        await play.settled()
        assert not play.mirror.held["Docs"].standing.behind_since
        assert set(stock.copies) == {"Docs"}


# --- the tap and the reader ----------------------------------------------------------------------------------------


def written(n: int, **more: Any) -> Fields:
    return {"class": "Docs", "id": uid(n), "properties": {"title": f"Title {n}", "n": n}, "vector": numbers(n), **more}


WRITES: dict[str, tuple[str, str, Any]] = {
    "an object": ("POST", "/v1/objects", written(900)),
    "one whose id the database makes": ("POST", "/v1/objects", written(900, id=None)),
    "an id of capital letters": ("POST", "/v1/objects", written(900, id=uid(900).upper())),
    "nulls": ("POST", "/v1/objects", written(900, properties={"title": None, "n": 1})),
    "a date with zeros": ("POST", "/v1/objects", written(900, properties={"at": "2026-01-02T03:04:05.600Z"})),
    "a capital property": ("POST", "/v1/objects", written(900, properties={"Title": "x", "N": 2})),
    "no vector": ("POST", "/v1/objects", written(900, vector=None)),
    "no properties": ("POST", "/v1/objects", written(900, properties=None)),
    "nested ones": ("POST", "/v1/objects", written(900, properties={"of": {"a": [1, 2], "b": None}, "c": []})),
    "a batch": ("POST", "/v1/batch/objects", {"objects": [written(900), written(901, id=None), written(902)]}),
    "one in another's place": ("PUT", f"/v1/objects/Docs/{uid(5)}", written(5, properties={"Only": "that", "n": None})),
    "a property": ("PATCH", f"/v1/objects/Docs/{uid(5)}", {"class": "Docs", "properties": {"Title": "anew"}}),
    "a property less": ("PATCH", f"/v1/objects/Docs/{uid(5)}", {"class": "Docs", "properties": {"title": None}}),
    "a vector": ("PATCH", f"/v1/objects/Docs/{uid(5)}", {"class": "Docs", "vector": numbers(77)}),
    "both": (
        "PATCH",
        f"/v1/objects/Docs/{uid(5)}",
        {"class": "Docs", "vector": numbers(78), "properties": {"n": 9, "title": None}},
    ),
    "an end": ("DELETE", f"/v1/objects/Docs/{uid(5)}", None),
}


@pytest.mark.parametrize("vectors", ["without a name", "of the only name"])
@pytest.mark.parametrize("write", WRITES)
async def test_the_tap_and_the_reader_say_the_same_of_a_write(tmp_path: Path, write: str, vectors: str):
    database, stock = Database(count=0), MemoryStock()
    if vectors == "of the only name":
        # as today's clients make classes: a vector that is written without a name is given this one
        database.fake.classes["Docs"] = {}
        database.fake.make("Docs", vectorConfig={"default": {"vectorizer": NONE, "vectorIndexConfig": {}}})
    for n in range(1, 12):
        database.fake.store("Docs", uid(n), written(n))
    async with database.source() as source, playing(tmp_path, database, source, stock) as play:
        await play.kept()
        before = held(stock)
        assert (await play.ask(*WRITES[write])).status in (200, 204)
        await play.settled()
        by_tap = held(stock)
        page = await source.page(await source.described("Docs"), "", 100)
        assert by_tap == {str(point.id): shown(point) for point in page.points}
        assert by_tap != before
        play.mirror.notes.leave_note("sync", "Docs", "Docs")
        await play.kept(5)
        assert held(stock) == by_tap == database.expected()
        assert (play.mirror.held["Docs"].repaired, play.mirror.counts.doubtful) == (0, 0)


async def test_an_object_of_a_batch_that_was_not_taken_is_in_no_copy(tmp_path: Path):
    database, stock = Database(count=3), MemoryStock()
    async with database.source() as source, playing(tmp_path, database, source, stock) as play:
        await play.kept()
        short = written(901, vector=[1.0])
        assert (await play.ask("POST", "/v1/batch/objects", {"objects": [written(900), short]})).status == 200
        await play.settled()
        assert held(stock) == database.expected()
        assert set(held(stock)) == {uid(0), uid(1), uid(2), uid(900)}


async def test_a_class_that_is_made_and_dropped_here_is_made_and_dropped_in_the_copy(tmp_path: Path):
    database, stock = Database(count=3), MemoryStock()
    made = {"class": "Fresh", "vectorConfig": {"default": {"vectorizer": NONE, "vectorIndexType": "hnsw"}}}
    async with database.source() as source, playing(tmp_path, database, source, stock) as play:
        await play.kept()
        await play.ask("POST", "/v1/schema", made)
        await play.ask("POST", "/v1/objects", {**written(1), "class": "Fresh"})
        await play.settled()
        assert held(stock, "Fresh") == database.expected("Fresh")
        assert play.mirror.held["Fresh"].standing.whole
        assert stock.copies["Fresh"].notes["distances"] == {"default": "cosine"}
        await play.ask("DELETE", "/v1/schema/Fresh")
        await play.settled()
        assert set(stock.copies) == {"Docs"}


async def test_objects_that_come_and_go_past_us_by_grpc_are_found_by_the_comparison(tmp_path: Path):
    database, stock = Database(), MemoryStock()
    async with database.source() as source, playing(tmp_path, database, source, stock) as play:
        await play.kept()
        # as `insert_many` and `delete_many` of today's clients do
        for n in range(COUNT, COUNT + 5):
            database.store(n)
        del database.objects[uid(7)]
        await play.kept(130)
        assert held(stock) == database.expected()


# --- failures ------------------------------------------------------------------------------------------------------


async def test_an_error_that_graphql_tells_in_a_200_is_no_count(tmp_path: Path):
    database, stock = Database(), MemoryStock()
    database.fake.errors = ["explorer: get class: shard not ready"]
    async with database.source() as source, playing(tmp_path, database, source, stock) as play:
        await play.kept()
        assert "shard not ready" in play.keeper.trouble
        assert not stock.copies
        await play.kept(120)
        assert held(stock) == database.expected()
        assert not play.keeper.trouble


@pytest.mark.parametrize(
    "said",
    [
        {"data": {"Aggregate": {"Docs": None}}},
        {"data": {"Aggregate": {"Docs": []}}},
        {"data": {"Aggregate": {"Docs": [{"meta": {}}]}}},
        {"data": None},
        {"data": {"Aggregate": {"Docs": [{"meta": {"count": "7"}}]}}},
        # what the shards that answered have
        {"data": {"Aggregate": {"Docs": [{"meta": {"count": 7}}]}}, "errors": [{"message": "a shard is away"}]},
        ["what"],
    ],
)
async def test_what_does_not_say_a_count_is_none(said: Any):
    database = Database(count=3)
    database.before = lambda request: web.json_response(said) if request.path == "/v1/graphql" else None
    async with database.source() as source:
        with pytest.raises(SourceFailed):
            await source.described("Docs")


async def test_a_server_that_counts_in_neither_way_says_what_it_takes():
    database = Database(count=3)
    database.fake.has_graphql = database.fake.has_search = False
    async with database.source() as source:
        with pytest.raises(SourceFailed, match=r"GraphQL is switched off.*1\.39") as told:
            await source.described("Docs")
        assert not isinstance(told.value, Gone), "the class is there"


async def test_an_object_that_can_not_be_read_is_no_page():
    database = Database(count=0)
    database.objects[uid(1)] = {"class": "Docs", "id": uid(1), "properties": {}, "vector": [[1.0], [2.0]]}
    async with database.source() as source:
        with pytest.raises(SourceFailed, match="several rows"):
            await source.page(Described("Docs", "Docs", 1), "", 10)


async def test_a_server_that_knows_no_cursor_is_not_read_for_ever(tmp_path: Path):
    database, stock = Database(), MemoryStock()

    def listed(request: web.Request) -> Any:
        if request.path != "/v1/objects":
            return None
        return web.json_response({"objects": list(database.objects.values())[: int(request.query["limit"])]})

    database.before = listed
    async with database.source() as source, playing(tmp_path, database, source, stock) as play:
        await play.kept()
        assert "1.18" in play.keeper.trouble
        assert not play.mirror.held["Docs"].standing.whole


@pytest.mark.parametrize("kind", ["one vector", "named vectors", "without GraphQL"])
async def test_a_search_finds_what_is_nearest_by_the_name_of_the_vector(kind: str):
    database = Database(kind, count=50)
    asked = [np.array(numbers(n), np.float32) for n in (3, 9)]
    async with database.source() as source:
        of = await source.described("Docs")
        found = await source.nearest(of, "title" if database.named else "", asked, 5)
    key = "vectors" if database.named else "vector"
    rows = {called: each[key] for called, each in database.objects.items() if key in each}
    matrix = np.array([row["title"] if database.named else row for row in rows.values()], np.float32)
    if not database.named:
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    closeness, ids = matrix @ np.array(asked).T, list(rows)
    assert found == [[ids[row] for row in np.argsort(-closeness[:, n], kind="stable")[:5]] for n in range(2)]


async def test_an_error_in_the_answer_to_a_search_is_told():
    database = Database(count=5)
    async with database.source() as source:
        of = await source.described("Docs")
        with pytest.raises(SourceFailed, match="lengths don't match"):
            await source.nearest(of, "", [np.ones(3, np.float32)], 5)
