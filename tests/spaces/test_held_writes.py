"""Writes with handles, kept until their texts can be embedded: order, bounds, restarts, and what is not kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit.two_spaces import COLLECTION, FAR, FAR_DIMENSIONS, TwoSpaces, far
from tests.spaces.test_spaces import DOCUMENTS, QUESTIONS
from understudy.policies.service import Answer, Call, Request
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.acknowledging import acknowledged, rejected_within, repeatable
from understudy.proxy.reports.held_writes import held_metrics, held_status
from understudy.proxy.settings.settings import Spaces
from understudy.proxy.settings.spaces import Holding
from understudy.proxy.spaces.held_writes import HeldWrites

QUEUE = Spaces(handles_in_writes="queue")
POINTS = f"/collections/{COLLECTION}/points"


class Desk:
    """Two spaces whose retrieval route keeps writes."""

    def __init__(self, folder: Path, spaces: Spaces = QUEUE) -> None:
        self.folder = folder
        self.two = TwoSpaces(folder / "collections", DOCUMENTS, spaces=spaces, state=folder / "state")
        self.two.provenance.learn(FAR, "m", FAR_DIMENSIONS)

    @property
    def held(self) -> HeldWrites:
        held = self.two.retrieve_parts.held
        assert held is not None
        return held

    async def handle(self, text: str) -> list[float]:
        self.two.embedder_up = False
        return await self.two.vector(text)

    async def write(self, method: str, path: str, body: object, headers: Any = None) -> Answer:
        return await self.two.ask(self.two.retrieve_parts, method, path, body, headers)

    async def drained(self) -> None:
        """Breakers have heard that it is over, and everything is carried out that can be."""
        self.two.skipped_s += 600.0
        self.held._not_before = 0.0  # pyright: ignore[reportPrivateUsage]
        await self.held.drain()

    def files(self, aside: str = "") -> list[Path]:
        return sorted((self.folder / "state" / "held" / "retrieval" / aside).glob("*.write"))

    @property
    def written(self) -> list[Any]:
        return [json.loads(body) for body in self.two.written]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    assert (made.two.wrong_space, made.two.handles_at_primary) == (0, 0)


def said_yes(answer: Answer) -> None:
    """What Qdrant's client takes for a yes."""
    assert (answer.status, json.loads(answer.body)["result"]["status"]) == (200, "acknowledged")
    assert (answer.tier, answer.source) == ("queue", "queue")


async def test_a_write_with_a_handle_is_acknowledged_and_carried_out_with_its_texts_own_vector(desk: Desk):
    said_yes(await desk.two.upsert(await desk.handle(QUESTIONS[3]), id=7))
    assert (desk.two.written, len(desk.files()), len(desk.held.line)) == ([], 1, 1)
    await desk.drained()
    assert held_status(desk.two.retrieve_parts)["held_writes"]["why"] == "the embedder is away"
    assert desk.two.written == []
    desk.two.embedder_up = True
    await desk.drained()
    ((point,),) = [each["points"] for each in desk.written]
    assert (point["id"], point["payload"]) == (7, {"text": "x"})
    assert np.allclose(point["vector"], far(QUESTIONS[3]), atol=1e-6)
    assert (desk.files(), len(desk.held.line)) == ([], 0)
    assert desk.held.counts == {"held": 1, "written": 1, "rejected": 0, "refused": 0}


async def test_once_the_embedder_is_back_a_write_with_a_handle_goes_on_at_once(desk: Desk):
    handle = await desk.handle(QUESTIONS[0])
    desk.two.embedder_up = True
    desk.two.skipped_s += 600.0
    answer = await desk.two.upsert(handle)
    assert answer.source == "primary"
    assert len(desk.written) == 1


async def test_later_writes_of_the_same_points_wait_behind_it_and_others_do_not(desk: Desk):
    await desk.two.upsert(await desk.handle(QUESTIONS[1]), id=7)
    own = far("its own").tolist()
    later = {"points": [{"id": 7, "vector": own, "payload": {"text": "later"}}]}
    said_yes(await desk.write("PUT", POINTS, later))
    said_yes(await desk.write("POST", f"{POINTS}/delete", {"filter": {"must": []}}))
    other = await desk.write("PUT", POINTS, {"points": [{"id": 8, "vector": own, "payload": {}}]})
    # a filter may choose any point: what comes after it waits behind it, too
    said_yes(other)
    elsewhere = await desk.write("PUT", "/collections/faq/points", later)
    assert elsewhere.source == "primary"
    assert len(desk.two.written) == 1
    desk.two.embedder_up = True
    await desk.drained()
    assert [each.get("points", [{}])[0].get("payload") for each in desk.written[1:]] == [
        {"text": "x"},
        {"text": "later"},
        None,
        {},
    ]
    direct = await desk.write("PUT", POINTS, later)
    assert direct.source == "primary"


async def test_collections_are_not_made_or_dropped_past_writes_that_wait(desk: Desk):
    await desk.two.upsert(await desk.handle(QUESTIONS[1]))
    answer = await desk.write("DELETE", f"/collections/{COLLECTION}", b"")
    assert answer.status == 503
    assert b"waits for its vectors" in answer.body
    assert desk.two.written == []


async def test_a_restart_loses_nothing_and_knows_how_the_embedder_is_asked(desk: Desk, tmp_path: Path):
    for n in range(5):
        await desk.two.upsert(await desk.handle(QUESTIONS[n]), id=n)
    again = Desk(tmp_path)
    # nobody has embedded anything since, and nobody will: the application only waits
    await again.drained()
    assert sorted(point["id"] for each in again.written for point in each["points"]) == list(range(5))
    for each in again.written:
        (point,) = each["points"]
        assert np.allclose(point["vector"], far(QUESTIONS[point["id"]]), atol=1e-6)
    assert again.files() == []
    assert again.two.handles_at_primary == 0


async def test_only_one_process_carries_out_and_the_others_hear_what_waits_and_what_is_done(desk: Desk, tmp_path: Path):
    await desk.two.upsert(await desk.handle(QUESTIONS[0]), id=7)
    neighbour = Desk(tmp_path)
    await desk.drained()
    # the neighbour has heard of it: a write of the same point must not overtake
    later = {"points": [{"id": 7, "vector": far("its own").tolist(), "payload": {"text": "later"}}]}
    said_yes(await neighbour.write("PUT", POINTS, later))
    await neighbour.drained()
    assert neighbour.two.written == [], "the other one leads"
    desk.two.embedder_up = True
    await desk.drained()
    assert [each["points"][0]["payload"]["text"] for each in desk.written] == ["x", "later"]
    answer = await neighbour.write("PUT", POINTS, later)
    assert answer.source == "primary"
    desk.held.close()
    assert neighbour.held.counts["held"] == 1


async def test_a_database_that_is_away_is_waited_for_and_one_that_wont_have_it_gets_no_more_of_it(desk: Desk):
    for n in (1, 2):
        await desk.two.upsert(await desk.handle(QUESTIONS[n]), id=n)
    desk.two.embedder_up, desk.two.database_up = True, False
    await desk.drained()
    assert len(desk.held.line) == 2
    assert "the database is away" in desk.held.why
    desk.two.database_up, desk.two.says = True, 503
    await desk.drained()
    assert len(desk.held.line) == 2
    desk.two.says = 404
    await desk.drained()
    assert (len(desk.held.line), desk.files(), len(desk.files("rejected"))) == (0, [], 2)
    assert desk.held.counts["rejected"] == 2


async def test_no_more_wait_than_there_is_room_for_and_the_caller_is_told_why(tmp_path: Path):
    desk = Desk(tmp_path, Spaces(handles_in_writes="queue", holding=Holding(writes_max=2)))
    for n in range(2):
        said_yes(await desk.two.upsert(await desk.handle(QUESTIONS[n]), id=n))
    answer = await desk.two.upsert(await desk.handle(QUESTIONS[3]), id=3)
    assert answer.status == 503
    assert b"2 writes wait already" in answer.body
    assert dict(answer.headers)[b"retry-after"] == b"30"
    small = Desk(tmp_path / "small", Spaces(handles_in_writes="queue", holding=Holding(bytes_max=1000)))
    assert b"bytes of writes wait already" in (await small.two.upsert(await small.handle(QUESTIONS[0]))).body


async def test_a_callers_key_is_not_kept_so_such_a_write_is_refused_and_says_what_to_set(desk: Desk):
    body = {"points": [{"id": 1, "vector": await desk.handle(QUESTIONS[0]), "payload": {}}]}
    answer = await desk.write("PUT", POINTS, body, [(b"api-key", b"secret"), (b"x-other", b"o")])
    assert answer.status == 503
    assert b"set it in the tier's headers" in answer.body
    said_yes(await desk.write("PUT", POINTS, body, [(b"x-other", b"o"), (b"Content-Type", b"application/json")]))
    assert b"x-other" not in desk.files()[0].read_bytes()


async def test_a_handle_whose_text_is_forgotten_is_refused_as_ever(desk: Desk):
    handle = await desk.handle(QUESTIONS[0])
    desk.two.provenance.ledger.clear()
    answer = await desk.two.upsert(handle)
    assert answer.status == 503
    assert b"not remembered" in answer.body


async def test_what_rotted_on_disk_is_set_aside_and_the_others_are_carried_out(desk: Desk, tmp_path: Path):
    for n in (1, 2):
        await desk.two.upsert(await desk.handle(QUESTIONS[n]), id=n)
    first, _ = desk.files()
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 0xFF
    first.write_bytes(bytes(data))
    again = Desk(tmp_path)
    await again.drained()
    assert [each["points"][0]["id"] for each in again.written] == [2]
    assert len(again.files("rejected")) == 1


async def test_what_was_acknowledged_is_carried_out_also_when_the_policy_no_longer_keeps_any(
    desk: Desk, tmp_path: Path
):
    await desk.two.upsert(await desk.handle(QUESTIONS[1]), id=1)
    after = Desk(tmp_path, Spaces())
    assert (await after.two.upsert(await after.handle(QUESTIONS[2]), id=2)).status == 503
    after.two.embedder_up = True
    await after.drained()
    assert [each["points"][0]["id"] for each in after.written] == [1]
    assert Desk(tmp_path / "other", Spaces()).two.retrieve_parts.held is None, "nothing waits: nothing stands there"


async def test_metrics_and_status_say_how_many_wait(desk: Desk):
    await desk.two.upsert(await desk.handle(QUESTIONS[1]), id=1)
    metrics = held_metrics([desk.two.retrieve_parts])
    samples = {(one.name, one.labels.get("result", "")): one.value for each in metrics for one in each.samples}
    assert samples["understudy_held_writes", ""] == 1
    assert samples["understudy_held_bytes", ""] > 500
    assert samples["understudy_held_writes_total", "held"] == 1
    assert held_status(desk.two.retrieve_parts)["held_writes"]["waiting"] == 1
    assert held_status(desk.two.embed_parts) == {}


# --- how a write is acknowledged -------------------------------------------------------------------------------------


def yes(dialect: str, method: str, path: str, body: object) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = Request(method.encode(), path.encode(), [], content)
    changes = DIALECTS[dialect].changes(Call("pass", request, dialect=dialect))
    answer = acknowledged(dialect, request, changes)
    return None if answer is None else (answer.status, json.loads(answer.body) if answer.body else None)


def test_each_database_that_can_be_spoken_for_says_yes_in_its_own_words_and_no_other_does():
    operation = {"operation_id": 0, "status": "acknowledged"}
    points = {"points": [{"id": 1, "vector": [1.0], "payload": {}}]}
    assert yes("qdrant", "PUT", "/collections/c/points", points)[1]["result"] == operation
    batch = {"operations": [{"upsert": points}, {"delete": {"points": [2]}}]}
    assert yes("qdrant", "POST", "/collections/c/points/batch", batch)[1]["result"] == [operation] * 2
    assert yes("qdrant", "PUT", "/collections/c", {"vectors": {"size": 3, "distance": "Cosine"}}) is None
    records = {"ids": ["a"], "embeddings": [[1.0]], "documents": ["x"], "metadatas": [None]}
    at = "/api/v2/tenants/default_tenant/databases/default_database/collections/4647e5e8-2f00-48be-a3a7-cbc01dfd6d53"
    assert yes("chroma", "POST", f"{at}/add", records) == (201, {})
    assert yes("chroma", "POST", f"{at}/upsert", records) == (200, {})
    vectors = {"vectors": [{"id": "a", "values": [1.0]}, {"id": "b", "values": [2.0]}]}
    assert yes("pinecone", "POST", "/vectors/upsert", vectors) == (200, {"upsertedCount": 2})
    assert yes("pinecone", "POST", "/vectors/delete", {"ids": ["a"]}) == (200, {})


NOT_YET = {"_shards": {"total": 0, "successful": 0, "failed": 0}, "_version": -1, "_seq_no": -2, "_primary_term": 0}


def lines(*each: Any) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in each)


@pytest.mark.parametrize("dialect", ["elasticsearch", "opensearch"])
def test_elasticsearch_says_that_it_is_accepted_and_that_there_is_no_version_yet(dialect: str):
    document = {"v": [1.0, 2.0]}
    told = {"_index": "docs", "_id": "1", "result": "created", **NOT_YET}
    assert yes(dialect, "PUT", "/docs/_doc/1", document) == (202, told)
    assert yes(dialect, "POST", "/docs/_update/1", {"doc": document}) == (202, {**told, "result": "updated"})
    assert yes(dialect, "DELETE", "/docs/_doc/1", b"") == (202, {**told, "result": "deleted"})
    bulk = lines({"index": {"_id": "1"}}, document, {"delete": {"_index": "docs", "_id": "2"}})
    gone = {**told, "_id": "2", "result": "deleted", "status": 202}
    assert yes(dialect, "POST", "/docs/_bulk", bulk) == (
        200,
        {"took": 0, "errors": False, "items": [{"index": {**told, "status": 202}}, {"delete": gone}]},
    )
    request = Request(b"PUT", b"/docs/_doc/1", [], json.dumps(document).encode())
    answer = acknowledged(dialect, request, DIALECTS[dialect].changes(Call("pass", request, dialect=dialect)))
    assert answer is not None
    # its client takes no answer without it
    assert ((b"x-elastic-product", b"Elasticsearch") in answer.headers) == (dialect == "elasticsearch")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/docs/_create/1", {"v": [1.0, 2.0]}),
        ("PUT", "/docs/_doc/1?op_type=create", {"v": [1.0, 2.0]}),
        ("PUT", "/docs/_doc/1?if_seq_no=3&if_primary_term=1", {"v": [1.0, 2.0]}),
        ("POST", "/docs/_bulk", lines({"create": {"_id": "1"}}, {"v": [1.0, 2.0]})),
        ("POST", "/docs/_bulk", lines({"index": {"_id": "1", "if_seq_no": 3}}, {"v": [1.0, 2.0]})),
        ("POST", "/docs/_delete_by_query", {"query": {"term": {"k": 1}}}),
    ],
)
def test_what_depends_on_what_elasticsearch_has_stored_by_then_is_not_acknowledged(method: str, path: str, body: Any):
    assert yes("elasticsearch", method, path, body) is None


def test_milvus_tells_the_ids_that_the_rows_bring():
    rows = {"collectionName": "docs", "data": [{"id": 7, "vector": [1.0, 2.0]}, {"id": 8, "vector": [1.0, 2.0]}]}
    at = "/v2/vectordb/entities"
    inserted = {"insertCount": 2, "insertIds": [7, 8]}
    assert yes("milvus", "POST", f"{at}/insert", rows) == (200, {"code": 0, "cost": 0, "data": inserted})
    upserted = {"upsertCount": 2, "upsertIds": [7, 8]}
    assert yes("milvus", "POST", f"{at}/upsert", rows) == (200, {"code": 0, "cost": 0, "data": upserted})
    gone = {"collectionName": "docs", "filter": "id in [7]"}
    assert yes("milvus", "POST", f"{at}/delete", gone) == (200, {"code": 0, "cost": 0, "data": {}})
    assert yes("milvus", "POST", "/v2/vectordb/collections/drop", {"collectionName": "docs"}) is None


def test_weaviate_gives_the_object_back_and_says_pending_of_a_batch():
    called = "4647e5e8-2f00-48be-a3a7-cbc01dfd6d53"
    thing = {"class": "Docs", "id": called, "properties": {"text": "x"}, "vector": [1.0, 2.0]}
    told = {"class": "Docs", "id": called, "properties": {"text": "x"}}
    assert yes("weaviate", "POST", "/v1/objects", thing) == (200, told)
    assert yes("weaviate", "PUT", f"/v1/objects/Docs/{called}", thing) == (200, told)
    batch = {"objects": [thing]}
    assert yes("weaviate", "POST", "/v1/batch/objects", batch) == (200, [{**told, "result": {"status": "PENDING"}}])
    assert yes("weaviate", "PATCH", f"/v1/objects/Docs/{called}", thing) == (204, None)
    assert yes("weaviate", "DELETE", f"/v1/objects/Docs/{called}", b"") == (204, None)
    where = {"path": ["k"], "operator": "Equal", "valueInt": 1}
    assert yes("weaviate", "DELETE", "/v1/batch/objects", {"match": {"class": "Docs", "where": where}}) is None


def test_what_a_database_refuses_within_its_yes_is_found():
    def why(dialect: str, path: bytes, told: Any) -> str:
        call = Call("pass", Request(b"POST", path, [], b""), dialect=dialect)
        return rejected_within(dialect, call, Answer(200, [], json.dumps(told).encode()))

    item = {"_index": "docs", "_id": "1"}
    bulk = {"items": [{"index": {**item, "status": 201}}, {"delete": {**item, "status": 404}}]}
    assert why("elasticsearch", b"/docs/_bulk", bulk) == ""
    bulk["items"].append({"index": {**item, "status": 400}})
    assert "but 1 documents" in why("opensearch", b"/_bulk", bulk)
    milvus = b"/v2/vectordb/entities/upsert"
    assert why("milvus", milvus, {"code": 0, "data": {}}) == ""
    assert "1804" in why("milvus", milvus, {"code": 1804, "message": "field not found"})
    taken = {"class": "Docs", "id": "1", "result": {"status": "SUCCESS"}}
    failed = {**taken, "result": {"status": "FAILED", "errors": {"error": [{"message": "vector lengths differ"}]}}}
    assert why("weaviate", b"/v1/batch/objects", [taken]) == ""
    assert "but 1 objects" in why("weaviate", b"/v1/batch/objects", [taken, failed])
    assert why("qdrant", b"/collections/docs/points", {"result": {}, "status": "ok"}) == ""


def test_an_insert_into_milvus_is_repeated_as_an_upsert_lest_a_kill_make_two_rows_of_it():
    insert = Request(b"POST", b"/db/v2/vectordb/entities/insert", [], b"", path=b"/v2/vectordb/entities/insert")
    assert repeatable("milvus", insert) == (b"/db/v2/vectordb/entities/upsert", b"/v2/vectordb/entities/upsert")
    upsert = Request(b"PUT", b"/collections/docs/points", [], b"")
    assert repeatable("qdrant", upsert) == (b"/collections/docs/points", b"/collections/docs/points")
