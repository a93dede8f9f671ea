"""Writes with handles, kept until their texts can be embedded: order, bounds, restarts, and what is not kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit.two_spaces import COLLECTION, FAR, FAR_DIMENSIONS, TwoSpaces, far
from tests.proxy.test_spaces import DOCUMENTS, QUESTIONS
from understudy.policies.service import Answer, Call, Request
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.acknowledging import acknowledged
from understudy.proxy.held_reports import held_metrics, held_status
from understudy.proxy.held_writes import HeldWrites
from understudy.proxy.settings import Spaces
from understudy.proxy.spaces_settings import Holding

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
    request = Request(method.encode(), path.encode(), [], json.dumps(body).encode())
    changes = DIALECTS[dialect].changes(Call("pass", request, dialect=dialect))
    answer = acknowledged(dialect, request, changes)
    return None if answer is None else (answer.status, json.loads(answer.body))


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
    assert yes("elasticsearch", "PUT", "/docs/_doc/1", {"v": [1.0]}) is None
