"""Vectors never meet another space's index: handles, the ledger, and what becomes of searches and writes with them."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.caching.desk import shared_caches
from tests.caching.test_second import Shelf, level
from tests.kit.two_spaces import COLLECTION, FAR, FAR_DIMENSIONS, NEAR, TwoSpaces, far, ids_of, near, texts
from understudy.policies.marks import first_handle, mark_of, space_key
from understudy.proxy.caching.second import Second
from understudy.proxy.settings.settings import Ledger, Spaces
from understudy.proxy.spaces.provenance import PENDING_MAX, Provenance
from understudy.proxy.spaces.shared_ledger import SharedLedger

DOCUMENTS = texts(300)
QUESTIONS = [" ".join(text.split()[:9]) for text in DOCUMENTS]


@pytest.fixture
def two(tmp_path: Path) -> Iterator[TwoSpaces]:
    made = TwoSpaces(tmp_path, DOCUMENTS)
    # as the primary's first answer would have told
    made.provenance.learn(FAR, "m", FAR_DIMENSIONS)
    yield made
    assert (made.wrong_space, made.handles_at_primary) == (0, 0)


def is_handle(vector: list[float]) -> bool:
    return mark_of(vector[-32:]) is not None


# --- embeddings ----------------------------------------------------------------------------------------------------


async def test_while_the_embedder_is_up_its_own_vectors_are_given_and_remembered_once_nobody_waits(two: TwoSpaces):
    vector = await two.vector(QUESTIONS[0])
    assert np.allclose(vector, far(QUESTIONS[0]))
    assert len(two.provenance.ledger) == 0
    two.provenance.drain(60.0)
    assert len(two.provenance.ledger) == 1
    assert not two.provenance.is_armed


async def test_a_fallback_embedding_is_a_handle_of_the_length_expected_and_says_so(two: TwoSpaces):
    two.embedder_up = False
    answer = await two.embed(QUESTIONS[0], QUESTIONS[1])
    vectors = [each["embedding"] for each in json.loads(answer.body)["data"]]
    assert [(len(vector), is_handle(vector)) for vector in vectors] == [(FAR_DIMENSIONS, True)] * 2
    headers = dict(answer.headers)
    assert headers[b"x-understudy-space"] == f"handle; of={NEAR}; for={FAR}".encode()
    assert (answer.source, answer.tier, answer.reason) == ("local-embed", "secondary", "primary: reset")
    assert mark_of(vectors[0][-32:]) == space_key(NEAR)
    assert two.provenance.is_armed


async def test_a_handle_in_base64_is_the_same_handle(two: TwoSpaces):
    two.embedder_up = False
    by_json = await two.vector(QUESTIONS[0])
    answer = await two.embed(QUESTIONS[0], encoding_format="base64")
    packed = base64.b64decode(json.loads(answer.body)["data"][0]["embedding"])
    assert np.array_equal(np.frombuffer(packed, np.float32), np.asarray(by_json, np.float32))


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"input": [f"text {n}" for n in range(9)]}, "bulk"),
        ({"input": [[1, 2, 3]]}, "token_input"),
        ({"input": "x", "dimensions": 32}, "dimensions"),
    ],
)
async def test_what_can_have_no_fallback_is_told_why_and_counted(two: TwoSpaces, asked: dict[str, Any], reason: str):
    two.embedder_up = False
    answer = await two.ask(two.embed_parts, "POST", "/v1/embeddings", {"model": "m"} | asked)
    assert (answer.status, answer.source) == (502, "failed reset")
    assert two.embed_parts.links[1].outcomes == {("refused", reason): 1}
    assert two.provenance.unavailable == {("embeddings", reason): 1}


async def test_token_ids_are_read_by_the_vocabulary_that_the_policy_names(tmp_path: Path):
    words = QUESTIONS[3].split()
    file = tmp_path / "toy.tiktoken"
    file.write_bytes(b"".join(base64.b64encode(b" " + word.encode()) + b" %d\n" % n for n, word in enumerate(words)))
    two = TwoSpaces(tmp_path, DOCUMENTS, spaces=Spaces(tiktoken_file=str(file)))
    two.provenance.learn(FAR, "m", FAR_DIMENSIONS)
    two.embedder_up = False
    two.known_near.add(near(" " + QUESTIONS[3]).tobytes())
    answer = await two.embed(list(range(len(words))))
    handle = json.loads(answer.body)["data"][0]["embedding"]
    assert ids_of(await two.search(handle))[0] == 3
    unknown = await two.embed([9999])
    assert (unknown.status, two.provenance.unavailable) == (502, {("embeddings", "token_input"): 1})
    assert two.wrong_space == 0
    await two.close()


async def test_bulk_is_answered_where_the_policy_says_so(tmp_path: Path):
    two = TwoSpaces(tmp_path, DOCUMENTS, spaces=Spaces(bulk="answer"))
    two.embedder_up = False
    answer = await two.embed(*QUESTIONS[:20], dimensions=128)
    assert answer.status == 200
    assert all(is_handle(each["embedding"]) for each in json.loads(answer.body)["data"])
    await two.close()


async def test_no_handle_is_given_while_nobody_knows_how_long_it_must_be_nor_where_the_policy_forbids_it(
    tmp_path: Path,
):
    for spaces, reason in ((Spaces(), "dimensions"), (Spaces(handles="off"), "space")):
        two = TwoSpaces(tmp_path, DOCUMENTS, spaces=spaces)
        two.embedder_up = False
        assert (await two.embed("x")).status == 502
        assert two.provenance.unavailable == {("embeddings", reason): 1}
        assert not two.provenance.is_armed
        await two.close()


# --- searches ------------------------------------------------------------------------------------------------------


async def test_a_handle_is_searched_in_its_own_space_while_the_database_is_up_and_the_embedder_down_or_back(
    two: TwoSpaces,
):
    two.embedder_up = False
    handle = await two.vector(QUESTIONS[5])
    for two.embedder_up in (False, True):
        for two.database_up in (True, False):
            answer = await two.search(handle)
            assert (answer.status, answer.source) == (200, "local-index"), answer.body
            assert ids_of(answer)[0] == 5
            assert answer.reason.startswith("primary: handle")
    assert two.asked_database == 0
    assert two.provenance.served == {("retrieval", "local"): 4}


async def test_once_the_embedder_is_back_new_vectors_are_its_own_at_once_and_old_handles_still_work(two: TwoSpaces):
    two.embedder_up = False
    handle = await two.vector(QUESTIONS[7])
    two.embedder_up = True
    vector = await two.vector(QUESTIONS[7])
    assert not is_handle(vector)
    by_vector, by_handle = await two.search(vector), await two.search(handle)
    assert (by_vector.source, by_handle.source) == ("primary", "local-index")
    assert ids_of(by_vector)[0] == ids_of(by_handle)[0] == 7


async def test_a_handle_normalised_once_more_or_rounded_is_the_same_handle(two: TwoSpaces):
    two.embedder_up = False
    handle = np.asarray(await two.vector(QUESTIONS[3]), np.float32)
    for altered in (handle / np.linalg.norm(handle), handle.round(6), handle.astype(np.float16)):
        answer = await two.search(altered.astype(float).tolist())
        assert (answer.source, ids_of(answer)[0]) == ("local-index", 3)


async def test_a_handle_that_was_forgotten_is_known_by_its_mark_and_searched_by_the_vector_it_carries(two: TwoSpaces):
    two.embedder_up = False
    handle = await two.vector(QUESTIONS[4])
    two.provenance.ledger.clear()
    answer = await two.search(handle)
    assert (answer.source, ids_of(answer)[0]) == ("local-index", 4)


async def test_a_batch_with_one_handle_in_it_goes_to_the_local_index_as_a_whole_each_vector_by_its_own_space(
    two: TwoSpaces,
):
    vector = await two.vector(QUESTIONS[1])
    two.embedder_up = False
    handle = await two.vector(QUESTIONS[2])
    body = {"searches": [{"query": vector, "limit": 3}, {"query": handle, "limit": 3}]}
    answer = await two.ask(two.retrieve_parts, "POST", f"/collections/{COLLECTION}/points/query/batch", body)
    assert (answer.status, answer.source) == (200, "local-index"), answer.body
    assert [each["points"][0]["id"] for each in json.loads(answer.body)["result"]] == [1, 2]


async def test_a_handle_under_a_prefetch_reaches_no_primary(two: TwoSpaces):
    two.embedder_up = False
    handle = await two.vector(QUESTIONS[2])
    body = {"prefetch": [{"query": handle, "limit": 20}], "query": {"fusion": "rrf"}, "limit": 3}
    answer = await two.ask(two.retrieve_parts, "POST", f"/collections/{COLLECTION}/points/query", body)
    assert answer.source in ("local-index", "refused handle")
    assert two.asked_database == 0


async def test_a_recommendation_by_handles_goes_by_their_vectors_and_reaches_no_primary(two: TwoSpaces):
    two.embedder_up = False
    handle = await two.vector(QUESTIONS[2])
    body = {"query": {"recommend": {"positive": [handle], "strategy": "best_score"}}, "limit": 3}
    answer = await two.ask(two.retrieve_parts, "POST", f"/collections/{COLLECTION}/points/query", body)
    assert (answer.source, ids_of(answer)[0]) == ("local-index", 2), answer.body
    assert two.asked_database == 0


async def test_a_vector_of_ours_is_searched_by_its_text_while_the_database_is_down(two: TwoSpaces):
    vector = await two.vector(QUESTIONS[9])
    two.database_up = False
    answer = await two.search(vector)
    assert (answer.source, ids_of(answer)[0]) == ("local-index", 9)
    assert two.provenance.counts["searched_text"] == 1


async def test_a_vector_nobody_here_handed_out_never_meets_the_local_index(two: TwoSpaces):
    unknown = far("a text that was embedded elsewhere").tolist()
    two.known_far.add(far("a text that was embedded elsewhere").tobytes())
    assert (await two.search(unknown)).source == "primary"
    two.database_up = False
    answer = await two.search(unknown)
    assert (answer.status, answer.source) == (502, "failed reset")
    assert two.retrieve_parts.links[1].outcomes == {("refused", "space"): 1}


async def test_a_vector_of_the_wrong_length_is_told_so_and_not_searched(two: TwoSpaces):
    two.database_up = False
    answer = await two.search([0.1] * 7)
    assert answer.status == 400
    assert b"expected dim: 96, got 7" in answer.body


async def test_a_mirror_in_the_primarys_space_is_searched_by_vectors_and_by_the_words_of_handles(tmp_path: Path):
    two = TwoSpaces(tmp_path, DOCUMENTS, collection_space=FAR)
    vector = await two.vector(QUESTIONS[6])
    two.provenance.drain(60.0)
    two.embedder_up = False
    handle = await two.vector(QUESTIONS[6])
    two.database_up = False
    by_vector, by_words = await two.search(vector), await two.search(handle)
    assert (ids_of(by_vector)[0], ids_of(by_words)[0]) == (6, 6)
    assert two.provenance.counts["searched_words"] == 1
    # and once nothing is known of it, it is not compared with vectors of another space
    two.provenance.ledger.clear()
    answer = await two.search(handle)
    assert (answer.status, answer.source) == (503, "refused handle")
    await two.close()


async def test_a_handle_is_embedded_anew_for_the_database_where_nothing_local_can_answer(tmp_path: Path):
    two = TwoSpaces(tmp_path, DOCUMENTS)
    await two.embed("the first of all")
    two.provenance.drain(60.0)
    two.embedder_up = False
    handle = await two.vector(QUESTIONS[8])
    body = {"query": handle, "limit": 3}
    elsewhere = "/collections/not-mirrored/points/query"
    refused = await two.ask(two.retrieve_parts, "POST", elsewhere, body)
    assert (refused.status, refused.source) == (503, "refused handle")
    two.embedder_up = True
    answer = await two.ask(two.retrieve_parts, "POST", elsewhere, body)
    assert (answer.status, answer.source) == (200, "primary")
    assert ids_of(answer)[0] == 8
    assert two.provenance.served == {("retrieval", "refused"): 1, ("retrieval", "embedded_anew"): 1}
    assert (two.wrong_space, two.handles_at_primary) == (0, 0)
    await two.close()


async def test_a_compressed_search_is_looked_into_as_well(two: TwoSpaces):
    two.embedder_up = False
    handle = await two.vector(QUESTIONS[2])
    body = gzip.compress(json.dumps({"query": handle, "limit": 3}).encode())
    path = f"/collections/{COLLECTION}/points/query"
    answer = await two.ask(two.retrieve_parts, "POST", path, body, [(b"content-encoding", b"gzip")])
    assert answer.status >= 400
    assert two.asked_database == 0


async def test_a_tenants_vector_is_known_to_itself_alone(tmp_path: Path):
    two = TwoSpaces(tmp_path, DOCUMENTS, spaces=Spaces(tenant_headers=["X-Tenant"]))
    mine, theirs = [(b"x-tenant", b"mine")], [(b"x-tenant", b"theirs")]
    two.known_near.add(near(QUESTIONS[1]).tobytes())
    body = {"model": "m", "input": QUESTIONS[1]}
    told = await two.ask(two.embed_parts, "POST", "/v1/embeddings", body, mine)
    vector = json.loads(told.body)["data"][0]["embedding"]
    two.database_up = False
    path, search = f"/collections/{COLLECTION}/points/query", {"query": vector, "limit": 1}
    answers = [await two.ask(two.retrieve_parts, "POST", path, search, who) for who in (mine, theirs, None)]
    assert [answer.status for answer in answers] == [200, 502, 502]
    await two.close()


# --- writes --------------------------------------------------------------------------------------------------------


async def test_T45_a_write_with_a_handle_is_refused_in_the_dialect_to_be_repeated_and_others_go_through(two: TwoSpaces):
    two.embedder_up = False
    handle = await two.vector(QUESTIONS[0])
    answer = await two.upsert(handle)
    assert answer.status == 503
    assert dict(answer.headers)[b"retry-after"] == b"30"
    assert b"x-should-retry" not in answer.lines()
    assert "embed the texts again" in json.loads(answer.body)["status"]["error"]
    assert two.written == []
    assert (await two.upsert(far("x").tolist())).status == 200
    assert len(two.written) == 1


async def test_a_write_goes_on_with_its_own_vectors_where_the_policy_says_so_and_the_embedder_is_back(tmp_path: Path):
    two = TwoSpaces(tmp_path, DOCUMENTS, spaces=Spaces(handles_in_writes="embed"))
    await two.embed("the first of all")
    two.provenance.drain(60.0)
    two.embedder_up = False
    handles = [await two.vector(QUESTIONS[n]) for n in range(2)]
    packed = base64.b64encode(np.asarray(handles[1], np.float32).tobytes()).decode()
    body = {"points": [{"id": 1, "vector": handles[0]}, {"id": 2, "vector": packed, "payload": {"k": [1, 2]}}]}
    path = f"/collections/{COLLECTION}/points"
    assert (await two.ask(two.retrieve_parts, "PUT", path, body)).status == 503
    two.embedder_up = True
    assert (await two.ask(two.retrieve_parts, "PUT", path, body)).status == 200
    (written,) = map(json.loads, two.written)
    assert written["points"][0]["vector"] == far(QUESTIONS[0]).tolist()
    assert written["points"][1]["vector"] == base64.b64encode(far(QUESTIONS[1]).tobytes()).decode()
    assert written["points"][1]["payload"] == {"k": [1, 2]}
    # one whose text is forgotten can't be
    two.provenance.ledger.clear()
    assert (await two.ask(two.retrieve_parts, "PUT", path, body)).status == 503
    assert (two.handles_at_primary, len(two.written)) == (0, 1)
    await two.close()


async def test_a_request_that_cannot_be_looked_into_is_held_back_while_handles_are_about(two: TwoSpaces):
    packed = [(b"content-encoding", b"br")]
    path = f"/collections/{COLLECTION}/points"
    assert (await two.ask(two.retrieve_parts, "PUT", path, b"\x00" * 99, packed)).status == 200
    two.embedder_up = False
    await two.vector("x")
    assert (await two.ask(two.retrieve_parts, "PUT", path, b"\x00" * 99, packed)).status == 503


# --- over a restart, and beside others -----------------------------------------------------------------------------


async def test_a_restart_remembers_that_handles_are_about_and_how_long_vectors_are(tmp_path: Path):
    wall = [1_000_000.0]
    path = tmp_path / "spaces.json"
    first = TwoSpaces(tmp_path / "a", DOCUMENTS, provenance=Provenance(wall=lambda: wall[0], path=path))
    first.provenance.obey(Ledger(watch_s=100), never_alone=False)
    await first.embed("x")
    first.provenance.drain(60.0)
    first.embedder_up = False
    handle = await first.vector(QUESTIONS[0])
    assert first.provenance.tick()
    first.provenance.save()
    assert not first.provenance.tick()
    await first.close()

    again = Provenance(wall=lambda: wall[0], path=path)
    again.obey(Ledger(watch_s=100), never_alone=False)
    second = TwoSpaces(tmp_path / "b", DOCUMENTS, provenance=again)
    answer = await second.search(handle)
    assert (answer.source, ids_of(answer)[0]) == ("local-index", 0)
    assert second.asked_database == 0
    second.embedder_up = False
    assert len(await second.vector("y")) == FAR_DIMENSIONS

    wall[0] += 200
    again.tick()
    assert not again.is_armed
    await second.close()


def test_state_that_cannot_be_read_is_taken_for_handles_being_about(tmp_path: Path):
    path = tmp_path / "spaces.json"
    path.write_text("{")
    provenance = Provenance(path=path)
    assert provenance.tick()
    assert provenance.is_armed
    provenance.save()
    assert Provenance(path=path).tick() is False


async def test_a_replica_knows_by_the_second_level_what_another_has_handed_out(tmp_path: Path):
    memory: dict[str, bytes] = {}
    caches = shared_caches()
    shelf = Shelf(memory)
    two, other = (
        TwoSpaces(tmp_path / name, DOCUMENTS, provenance=replica(level(shelf, caches))) for name in ("a", "b")
    )
    vector = await two.vector(QUESTIONS[2])
    two.provenance.drain(60.0)
    two.embedder_up = False
    handle = await two.vector(QUESTIONS[3])
    await asyncio.sleep(1)
    assert len(memory) == 2
    other.database_up = False
    other.known_near |= {near(QUESTIONS[2]).tobytes(), near(QUESTIONS[3]).tobytes()}
    by_vector, by_handle = await other.search(vector), await other.search(handle)
    assert [(each.source, ids_of(each)[0]) for each in (by_vector, by_handle)] == [
        ("local-index", 2),
        ("local-index", 3),
    ]
    assert other.provenance.counts["from_replicas"] == 2

    # a second level that lies, or is gone, is as if there were none
    other.provenance.ledger.clear()
    for shelf.mood in ("lying", "broken", "black hole"):
        assert (await other.search(vector)).status >= 500
        assert (await other.search(handle)).source == "local-index"
    assert (two.handles_at_primary, other.wrong_space) == (0, 0)
    for each in (two, other):
        await each.close()
    await caches.close()


def replica(second: Second) -> Provenance:
    made = Provenance()
    made.learn(FAR, "m", FAR_DIMENSIONS)
    made.second = SharedLedger(second)
    return made


def test_who_is_never_alone_looks_always():
    provenance = Provenance()
    provenance.obey(Ledger(), never_alone=True)
    assert provenance.is_armed
    provenance.tick()
    assert provenance.is_armed


async def test_what_waits_to_be_read_is_bounded(two: TwoSpaces):
    for n in range(600):
        await two.embed(f"text {n}")
    assert two.provenance.counts["dropped"] == 600 - PENDING_MAX
    two.provenance.drain(10.0)
    assert two.provenance.ledger.remembered == PENDING_MAX
    await two.embed("x" * 5_000_000)
    assert two.provenance.counts["too_long"] == 1


async def test_what_is_given_in_an_outage_is_told_from_the_primarys_own_every_time(two: TwoSpaces):
    two.embedder_up = False
    for n in range(200):
        body = json.dumps({"query": await two.vector(f"question {n}")}).encode()
        assert first_handle(body) is not None
        assert first_handle(json.dumps({"query": far(f"question {n}").tolist()}).encode()) is None
