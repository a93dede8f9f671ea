"""Milvus' reader: whole whatever order rows come in, and of one mind with the tap about what a row is."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dialects.recorded_exchanges import request
from tests.kit.acts import answer
from tests.kit.fake_upstream import FakeUpstream
from tests.kit.milvus_service import Collection, FakeMilvus, Key, Order, quick
from tests.mirroring.live import MemoryStock, Playing
from understudy.indexes.library import Library
from understudy.indexes.points import Point
from understudy.indexes.writes import LEFT_OUT, Upsert, VectorShape, fitted
from understudy.policies.pace import Pace
from understudy.policies.service import Answer, Call, Refused
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.mirroring.comparing import same
from understudy.proxy.mirroring.line import Line
from understudy.proxy.mirroring.milvus_source import MilvusSource, literal
from understudy.proxy.mirroring.source import Busy, Gone, SourceFailed, Unmirrorable
from understudy.proxy.settings.settings import UpstreamTier

MILVUS = DIALECTS["milvus"]
V2 = "/v2/vectordb/"
Fields = dict[str, Any]
BEYOND = 2**53 + 1
ORDERS: tuple[Order, ...] = get_args(Order)
AWKWARD = [
    "a",
    'b"c',
    "d'e",
    "f\\g",
    "f\\",
    'h\\"i',
    "j\nk",
    "l\r\nm",
    "n\to",
    "ü",
    "𝒳",
    "id-10",
    "id-9",
    "Ａ",
    '"] or "',
]


class Wired:
    """A line to a fake without a socket between, which reads as a line does."""

    def __init__(self, milvus: FakeMilvus) -> None:
        self.milvus = milvus
        self.queries = 0

    async def ask(
        self, method: str, path: str, body: Any, *, headers: Mapping[str, str], read: Callable[[bytes], Any]
    ) -> Any:
        assert method == "POST"
        self.queries += 1
        int64 = headers.get("Accept-Type-Allow-Int64", "")
        told = self.milvus.answered(path.removeprefix(V2), json.loads(json.dumps(body)), int64=int64)
        return read(json.dumps(told).encode())

    async def close(self) -> None: ...


def reader(milvus: FakeMilvus, *names: str) -> MilvusSource:
    return MilvusSource(Wired(milvus), names)  # type: ignore[arg-type]


def milvus_of(*keys: Key, order: Order = "mixed", kind: str = "Int64") -> FakeMilvus:
    milvus = FakeMilvus(order)
    made = milvus.collections["docs"] = quick(2, key=kind)
    for key in keys:
        made.put({"id": key, "vector": [1.0, 2.0]}, over=False)
    return milvus


async def walked(milvus: FakeMilvus, limit: int) -> list[list[Key]]:
    """The keys of each page, up to the last."""
    source = reader(milvus)
    of, cursor, pages = await source.described("docs"), "", list[list[Key]]()
    while True:
        page = await source.page(of, cursor, limit)
        pages.append([point.id for point in page.points])
        cursor = page.cursor
        if not cursor:
            return pages


# --- pages ---------------------------------------------------------------------------------------------------------

KEYS = {
    "Int64": st.integers(0, 30) | st.integers(0, 2**63 - 1),
    "VarChar": st.text(st.sampled_from("ab\"\\\n\r'ü𝒳"), min_size=1, max_size=4),
}


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(ORDERS), st.sampled_from(sorted(KEYS)), st.integers(1, 7))
def test_every_row_comes_once_whatever_order_they_come_in(data: st.DataObject, order: Order, kind: str, limit: int):
    # the same key again is a row that stands there twice
    keys = data.draw(st.lists(KEYS[kind], max_size=60))
    milvus = milvus_of(*keys, order=order, kind=kind)
    pages = asyncio.run(walked(milvus, limit))
    found = [key for page in pages for key in page]
    most = max((keys.count(key) for key in keys), default=0)
    assert len(found) == len(set(found))
    assert set(found) <= set(keys)
    # what one key's rows alone take up the limit hides may be missed, and nothing else
    if most < max(limit, 2):
        assert sorted(found) == sorted(set(keys))
    assert all(len(page) <= max(limit, 2) for page in pages)


async def test_keys_in_their_order_cost_a_query_and_a_count_for_each_page():
    milvus = milvus_of(*range(950), order="keys")
    assert [len(page) for page in await walked(milvus, 100)] == [*[100] * 9, 50]
    queries = milvus.told("entities/query")
    assert sum(each["outputFields"] == ["*"] for each in queries) == 10
    # one of them is of the whole, to begin with
    assert sum(each["outputFields"] == ["count(*)"] for each in queries) == 11


@pytest.mark.parametrize("order", ["mixed", "backwards"])
async def test_keys_in_no_order_are_found_in_a_few_times_as_many_queries(order: Order):
    milvus = milvus_of(*range(1_000), order=order)
    pages = await walked(milvus, 100)
    assert sorted(key for page in pages for key in page) == list(range(1_000))
    assert sum(each["outputFields"] == ["*"] for each in milvus.told("entities/query")) <= 60


async def test_a_page_can_be_read_again_from_its_cursor():
    milvus = milvus_of(*range(BEYOND, BEYOND + 50))
    source = reader(milvus)
    of = await source.described("docs")
    first = await source.page(of, "", 10)
    assert json.loads(first.cursor)
    # another process, which has described nothing
    again = [await each.page(of, first.cursor, 10) for each in (source, reader(milvus))]
    assert [point.id for point in again[0].points] == [point.id for point in again[1].points]
    assert again[0].cursor == again[1].cursor
    assert not {point.id for point in first.points} & {point.id for point in again[0].points}


async def test_a_write_that_was_answered_is_seen_by_every_read():
    milvus = milvus_of(1, 2)
    milvus.answered("entities/insert", {"collectionName": "docs", "data": {"id": 3, "vector": [1.0, 1.0]}})
    source = reader(milvus)
    of = await source.described("docs")
    assert of.count == 3
    assert {point.id for point in (await source.page(of, "", 10)).points} == {1, 2, 3}
    assert [point.id for point in await source.fetch(of, [3])] == [3]
    assert await source.nearest(of, "vector", [np.array([1, 1], np.float32)], 1) == [[3]]
    milvus.answered("entities/delete", {"collectionName": "docs", "filter": "id in [1, 2]"})
    # statistics would still say three
    assert milvus.answered("collections/get_stats", {"collectionName": "docs"})["data"] == {"rowCount": 3}
    assert (await source.described("docs")).count == 1


# --- keys ----------------------------------------------------------------------------------------------------------


async def test_texts_are_keys_whatever_stands_in_them():
    milvus = milvus_of(*AWKWARD, kind="VarChar")
    source = reader(milvus)
    of = await source.described("docs")
    assert sorted(str(key) for page in await walked(milvus, 3) for key in page) == sorted(AWKWARD)
    assert {point.id for point in await source.fetch(of, [*AWKWARD, "nobody"])} == set(AWKWARD)
    for key in AWKWARD:
        assert [point.id for point in await source.fetch(of, [key])] == [key]
        # the local index reads it as it is meant, too
        deleted = {"collectionName": "docs", "filter": f"id in [{literal(key)}]"}
        (change,) = MILVUS.changes(MILVUS.read(request("POST", V2 + "entities/delete", deleted)))
        assert change.write.which.ids == (key,)  # type: ignore[union-attr]


async def test_integers_of_64_bits_stay_what_they_are():
    keys = (0, BEYOND, BEYOND + 1, 2**63 - 1)
    milvus = milvus_of(*keys)
    milvus.javascript = True
    source = reader(milvus)
    of = await source.described("docs")
    assert sorted(key for page in await walked(milvus, 2) for key in page) == list(keys)
    assert {point.id for point in await source.fetch(of, keys)} == set(keys)
    assert set((await source.nearest(of, "vector", [np.array([1, 2], np.float32)], 4))[0]) == set(keys)


@pytest.mark.parametrize(("kind", "key", "asked"), [("Int64", 7, ["7", "seven"]), ("VarChar", "7", [7])])
async def test_a_key_is_looked_up_as_its_collection_writes_it(kind: str, key: Key, asked: list[Key]):
    # an answer for JavaScript, or a row, may have said it otherwise
    source = reader(milvus_of(key, kind=kind))
    assert [point.id for point in await source.fetch(await source.described("docs"), asked)] == [key]


async def test_a_key_below_zero_is_a_collection_that_cannot_be_copied():
    source = reader(milvus_of(1, -5))
    with pytest.raises(Unmirrorable, match="-5"):
        await source.page(await source.described("docs"), "", 10)


async def test_more_keys_than_a_query_tells_unasked_are_looked_up():
    milvus = milvus_of(*range(250), *range(250))
    source = reader(milvus)
    assert len(await source.fetch(await source.described("docs"), list(range(250)))) == 250


# --- rows ----------------------------------------------------------------------------------------------------------

SCHEMA: Fields = {
    "fields": [
        {"fieldName": "id", "dataType": "Int64", "isPrimary": True},
        {"fieldName": "vec", "dataType": "FloatVector", "elementTypeParams": {"dim": "3"}},
        {"fieldName": "title", "dataType": "FloatVector", "elementTypeParams": {"dim": 2}},
        {"fieldName": "sparse", "dataType": "SparseFloatVector"},
        {"fieldName": "bits", "dataType": "BinaryVector", "elementTypeParams": {"dim": 16}},
        {"fieldName": "words", "dataType": "VarChar", "nullable": True, "elementTypeParams": {"max_length": 99}},
        {"fieldName": "about", "dataType": "JSON", "nullable": True},
        {"fieldName": "tags", "dataType": "Array", "elementDataType": "VarChar", "nullable": True},
        {"fieldName": "sizes", "dataType": "Array", "elementDataType": "Int64", "nullable": True},
        {"fieldName": "bm25", "dataType": "SparseFloatVector"},
    ],
    "functions": [{"name": "bm25", "type": "BM25", "inputFieldNames": ["words"], "outputFieldNames": ["bm25"]}],
}
INDEXES = [
    {"fieldName": "vec", "metricType": "COSINE"},
    {"fieldName": "title", "metricType": "L2"},
    {"fieldName": "sparse", "metricType": "IP"},
    {"fieldName": "bits", "metricType": "HAMMING"},
    {"fieldName": "bm25", "metricType": "BM25"},
]
VECTORS: Fields = {"vec": [0.1, -2, 3e-8], "title": [1, 0.3333333333], "sparse": {"7": 0.5}, "bits": [3, 255]}
ROWS: dict[str, Fields] = {
    "nothing but vectors": {},
    "beyond 2^53": {"id": BEYOND, "n": BEYOND + 2, "deep": {"n": BEYOND + 4}},
    "words": {"words": 'He said "no"\n\\o/ ü𝒳', "text": "dynamic"},
    "an empty text": {"words": ""},
    "null": {"words": None, "gone": None, "about": None, "tags": None},
    "null within": {"about": {"a": None, "b": [None, 1]}},
    "json": {"about": {"a": [1, 2.5, "x"], "big": BEYOND, "b": {"c": True}}},
    "json of a list": {"about": [1, 2, 3]},
    "json of a number": {"about": 7},
    "arrays": {"tags": ["a", 'b"c'], "sizes": [1, BEYOND]},
    "empty arrays": {"tags": [], "sizes": []},
    "numbers that look like a vector": {"like": [0.1, 0.2, 0.3], "sizes": [1, 2, 3]},
    "booleans and numbers": {"yes": True, "one": 1, "half": 0.5, "long": 0.1234567890123},
}


def mixed() -> FakeMilvus:
    milvus = FakeMilvus()
    told = milvus.answered("collections/create", {"collectionName": "docs", "schema": SCHEMA, "indexParams": INDEXES})
    assert told["code"] == 0
    return milvus


def written(milvus: FakeMilvus, act: str, body: Fields) -> Point:
    """What the tap keeps of a write that this Milvus has answered."""
    body = {"collectionName": "docs", **body}
    answered = Answer(200, [], json.dumps(milvus.answered(act, body)).encode())
    (change,) = MILVUS.applied(MILVUS.read(request("POST", V2 + act, body)), answered)
    create = MILVUS.changes(
        MILVUS.read(request("POST", V2 + "collections/create", {**body, "schema": SCHEMA, "indexParams": INDEXES}))
    )[0].write
    whole = fitted(change.write, create.vectors, create.notes[LEFT_OUT])  # type: ignore[union-attr]
    assert isinstance(whole, Upsert)
    return whole.points[0]


def shown(point: Point) -> str:
    """A point to the letter: types and all."""
    named = {name: (vector.dtype.name, vector.tobytes()) for name, vector in sorted(point.named.items())}
    return repr((point.id, point.vector, sorted(point.payload.items()), point.text, point.source, named))


@pytest.mark.parametrize("act", ["entities/insert", "entities/upsert"])
@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
async def test_a_row_that_is_read_is_the_row_that_the_tap_has_seen(act: str, row: Fields):
    milvus = mixed()
    tapped = written(milvus, act, {"data": [{"id": 7, **VECTORS, **row}]})
    source = reader(milvus)
    of = await source.described("docs")
    assert (set(of.vectors), of.notes[LEFT_OUT]) == ({"vec", "title"}, ["sparse", "bits", "bm25"])
    assert of.vectors == {"vec": VectorShape(3, "cosine"), "title": VectorShape(2, "euclid")}
    for points in ((await source.page(of, "", 10)).points, await source.fetch(of, [tapped.id])):
        assert [shown(point) for point in points] == [shown(tapped)]
        assert not {*VECTORS, "bm25"} & points[0].payload.keys()


async def test_keys_that_the_database_gives_are_the_same_to_both():
    milvus = FakeMilvus()
    made = milvus.collections["docs"] = quick(3, vector="vec")
    made.fields["id"]["autoId"] = True
    tapped = written(milvus, "entities/insert", {"data": {"vec": [1, 2, 3], "k": 1}})
    source = reader(milvus)
    (point,) = (await source.page(await source.described("docs"), "", 10)).points
    assert shown(point) == shown(tapped)
    assert point.id == 450_000_000_000_000_001


def test_a_key_that_is_told_as_a_number_is_one():
    body = {"collectionName": "docs", "data": [{"id": "7", "vec": [1, 2]}]}
    call = MILVUS.read(request("POST", V2 + "entities/insert", body))
    for told, called in (([7], 7), (["7"], "7")):
        answered = Answer(200, [], json.dumps({"code": 0, "data": {"insertIds": told}}).encode())
        (change,) = MILVUS.applied(call, answered)
        assert [point.id for point in change.write.points] == [called]  # type: ignore[union-attr]


def test_an_upsert_of_single_fields_is_not_taken_for_whole_rows():
    body = {"collectionName": "docs", "partialUpdate": True, "data": [{"id": 7, "k": 2}]}
    call = MILVUS.read(request("POST", V2 + "entities/upsert", body))
    with pytest.raises(Refused):
        MILVUS.applied(call, Answer(200, [], b'{"code":0,"data":{"upsertIds":[7]}}'))


def test_numbers_that_a_database_rounds_to_32_bits_are_the_same():
    held = Point(1, None, {"score": 0.123456789, "deep": {"all": [0.987654321, 1e39, "x"]}, "n": 3})
    live = Point(1, None, {"score": 0.12345679, "deep": {"all": [0.9876543, 1e39, "x"]}, "n": 3})
    assert same(live, held, {})
    for payload in ({"score": 0.1234568}, {"score": "0.12345679"}, {"deep": {}}, {"n": 3.5}, {"n": None}, {"more": 1}):
        assert not same(Point(1, None, {**live.payload, **payload}), held, {})
    # what was 32 bits before is not taken for a number of more
    assert not same(held, live, {})


# --- collections ---------------------------------------------------------------------------------------------------


def collection(fields: Mapping[str, str], metrics: Mapping[str, str], functions: list[Fields] | None = None) -> Any:
    return Collection({name: {"type": kind, "dim": 2} for name, kind in fields.items()}, dict(metrics), functions)


REFUSED = {
    "sparse alone": (collection({"id": "Int64", "s": "SparseFloatVector"}, {"s": "IP"}), "32-bit floats"),
    "bits alone": (collection({"id": "Int64", "b": "BinaryVector"}, {"b": "HAMMING"}), "32-bit floats"),
    "another key": (collection({"pk": "Int64", "v": "FloatVector"}, {"v": "L2"}), "'pk'"),
    "no metric": (collection({"id": "Int64", "v": "FloatVector"}, {}), "distance"),
    "a metric of bits": (collection({"id": "Int64", "v": "FloatVector"}, {"v": "JACCARD"}), "distance"),
    "made of texts": (
        collection(
            {"id": "Int64", "v": "FloatVector"}, {"v": "IP"}, [{"name": "embed", "outputFieldNames": ["v"], "type": 2}]
        ),
        "makes the vector 'v'",
    ),
}
REFUSED["another key"][0].fields["pk"]["primary"] = True


@pytest.mark.parametrize("kind", REFUSED)
async def test_what_a_copy_could_not_stand_for_is_left_out_with_a_reason(kind: str):
    milvus = milvus_of(1)
    milvus.collections["other"], why = REFUSED[kind]
    source = reader(milvus)
    assert [each.name for each in await source.collections()] == ["docs"]
    with pytest.raises(Unmirrorable, match=why):
        await source.described("other")


async def test_a_collection_that_is_not_loaded_is_trouble_of_its_own_and_not_of_the_others():
    milvus = milvus_of(1)
    milvus.collections["asleep"] = quick(2)
    milvus.collections["asleep"].loaded = False
    source = reader(milvus)
    assert [each.name for each in await source.collections()] == ["docs"]
    with pytest.raises(SourceFailed, match="not loaded"):
        await source.described("asleep")
    milvus.collections["asleep"].loaded = True
    of = await source.described("asleep")
    milvus.collections["asleep"].loaded = False
    with pytest.raises(SourceFailed, match="101"):
        await source.page(of, "", 10)


async def test_databases_are_read_that_somebody_has_named():
    milvus = milvus_of(1)
    milvus.databases["tenant"] = {"docs": quick(2)}
    milvus.databases["tenant"]["docs"].put({"id": 5, "vector": [1, 2]}, over=True)
    milvus.databases["other"] = {"docs": quick(2)}
    assert [each.name for each in await reader(milvus).collections()] == ["docs"]
    source = reader(milvus, "tenant/docs")
    assert [(each.name, each.count) for each in await source.collections()] == [("docs", 1), ("tenant/docs", 1)]
    of = await source.described("tenant/docs")
    assert [point.id for point in (await source.page(of, "", 10)).points] == [5]
    assert [point.id for point in await source.fetch(of, [1, 5])] == [5]
    with pytest.raises(Gone):
        await reader(milvus, "nowhere/docs").collections()
    for name in ("nobody", "tenant/nobody", "nowhere/docs"):
        with pytest.raises(Gone):
            await source.described(name)


async def test_another_name_of_a_collection_is_not_copied_beside_it():
    source = reader(milvus_of(1))
    source_line: Any = source._line  # pyright: ignore[reportPrivateUsage]
    source_line.milvus.collections["alias"] = source_line.milvus.collections["docs"]
    before = source_line.milvus.answered

    def answered(act: str, body: Fields, *, int64: str = "") -> Fields:
        told = before(act, body, int64=int64)
        return {**told, "data": {**told["data"], "collectionName": "docs"}} if act.endswith("describe") else told

    source_line.milvus.answered = answered
    with pytest.raises(Unmirrorable, match="another name"):
        await source.described("alias")


# --- errors --------------------------------------------------------------------------------------------------------


def line_to(up: FakeUpstream) -> Line:
    async def at_once(_pause_s: float) -> None: ...

    tier = UpstreamTier(name="milvus", url=up.url)
    return Line(tier, Pace(1e9), dice=lambda: 0.5, sleep=at_once, attempts_max=3)


@pytest.mark.parametrize(
    ("code", "raises", "times"), [(1100, SourceFailed, 1), (100, Gone, 1), (101, SourceFailed, 1), (8, SourceFailed, 3)]
)
async def test_a_code_within_a_200_is_a_failure(code: int, raises: type[Exception], times: int):
    async with FakeUpstream(answer(body={"code": code, "message": "no such luck"})) as up:
        source = MilvusSource(line_to(up))
        try:
            with pytest.raises(raises, match=f"{code}: no such luck") as caught:
                await source.described("docs")
        finally:
            await source.close()
        assert not isinstance(caught.value, Busy)
        assert [heard.target for heard in up.heard] == [b"/v2/vectordb/collections/describe"] * times


async def test_a_milvus_that_is_busy_is_asked_again():
    busy, names = answer(body={"code": 8, "message": "rate limit exceeded"}), answer(body={"code": 0, "data": []})
    async with FakeUpstream(names) as up:
        up.then(busy, busy)
        source = MilvusSource(line_to(up))
        try:
            assert await source.collections() == []
        finally:
            await source.close()
        assert len(up.heard) == 3
        assert all(heard.header(b"accept-type-allow-int64") == b"true" for heard in up.heard)


@pytest.mark.parametrize(
    "body",
    [
        {"code": 0, "data": {"docs": 1}},
        {"code": 0, "data": [{"vector": [1, 2]}]},
        {"code": 0, "data": [{"id": True}]},
        {"code": 0, "data": [{"count(*)": "many"}]},
        {"code": 0},
        [],
    ],
)
async def test_an_answer_that_is_none_is_a_failure_and_no_empty_page(body: Any):
    async with FakeUpstream(answer(body=body)) as up:
        source = MilvusSource(line_to(up))
        try:
            with pytest.raises(SourceFailed):
                await source.described("docs")
        finally:
            await source.close()


# --- with the tap --------------------------------------------------------------------------------------------------


class Tapped(MilvusSource):
    """A fake as callers see it, and as the walk does."""

    def __init__(self, milvus: FakeMilvus) -> None:
        super().__init__(Wired(milvus))  # type: ignore[arg-type]
        self.milvus = milvus

    async def __call__(self, call: Call) -> Answer:
        act = call.request.target.decode().removeprefix(V2)
        told = self.milvus.answered(act, json.loads(call.request.body))
        return Answer(200, [(b"content-type", b"application/json")], json.dumps(told).encode())


async def test_the_tap_and_a_comparison_agree_about_every_row(tmp_path: Path):
    milvus, stock = mixed(), MemoryStock()
    for number in range(40):
        milvus.answered("entities/insert", {"collectionName": "docs", "data": {"id": number, **VECTORS, "k": number}})
    async with Playing(tmp_path, Tapped(milvus), stock, MILVUS) as play:
        await play.kept()
        copy = stock.copies["docs"]
        assert len(copy.points) == 40
        for number, row in enumerate(ROWS.values(), 30):
            data = {"id": number, **VECTORS, **row}
            act = "entities/upsert"
            await play.ask("POST", V2 + act, {"collectionName": "docs", "data": [data]})
        await play.ask("POST", V2 + "entities/delete", {"collectionName": "docs", "filter": "id in [1, 2]"})
        await play.settled()
        tapped = {key: shown(point) for key, point in copy.points.items()}
        assert tapped.keys() == milvus.collections["docs"].rows.keys()
        play.mirror.notes.leave_note("sync", "docs", "docs")
        await play.kept(3)
        assert play.mirror.held["docs"].repaired == 0
        assert {key: shown(point) for key, point in copy.points.items()} == tapped
        # and what changes behind its back is found
        milvus.collections["docs"].put({"id": 3, **VECTORS, "k": "other"}, over=True)
        del milvus.collections["docs"].rows[4]
        play.mirror.notes.leave_note("sync", "docs", "docs")
        await play.kept(3)
        assert play.mirror.held["docs"].repaired == 2
        assert (copy.points[3].payload, 4 in copy.points) == ({"k": "other"}, False)


@pytest.mark.real_clock
async def test_keys_that_are_uuids_are_what_is_written_and_no_other_spelling(tmp_path: Path):
    keys = [spelt for n in range(20) for spelt in (uuid.UUID(int=n).hex, str(uuid.UUID(int=2**127 + n)).upper())]
    milvus = milvus_of(*keys, kind="VarChar")
    (tmp_path / "library").mkdir()
    library = Library(tmp_path / "library")
    async with Playing(tmp_path, Tapped(milvus), library, MILVUS, settle_s=0.0) as play:  # type: ignore[arg-type]
        await play.kept(pause_s=0)
        held = play.mirror.held["docs"]
        assert held.standing.whole

        async def compared() -> int:
            before = held.repaired
            await play.walker.walk("docs", held)
            return held.repaired - before

        def there() -> set[Any]:
            copy = library.get("docs")
            assert copy is not None
            return {point.id for point in copy.scroll(None, 100)[0]}

        assert there() == set(keys)
        assert await compared() == 0
        row = {"id": keys[0], "vector": [3.0, 4.0], "k": 1}
        await play.ask("POST", V2 + "entities/upsert", {"collectionName": "docs", "data": row})
        await play.settled()
        held.standing.doubt([keys[0], keys[1]], 0.0)
        await play.walker.look_up_unsure("docs", held)
        assert (await compared(), there()) == (0, set(keys))
        del milvus.collections["docs"].rows[keys[1]]
        assert (await compared(), there()) == (1, set(keys) - {keys[1]})
