"""Writes that pass are in the copy once the database has said yes, in their order, and never otherwise."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.mirroring.live import Live, Playing, answered, cut, point, vector
from understudy.indexes.faults import WrongDimension
from understudy.policies.service import Answer, Call, Failed, Refused


@pytest.fixture
def live() -> Live:
    made = Live()
    made.make("docs", 25)
    return made


async def test_a_write_is_in_the_copy_once_the_database_has_said_yes(tmp_path: Path, live: Live):
    async with Playing(tmp_path, live) as play:
        await play.kept()
        assert play.same()
        await play.upsert(point(100), point(101))
        await play.ask("POST", "/collections/docs/points/delete", {"points": [3, 4]})
        await play.ask("POST", "/collections/docs/points/payload", {"payload": {"n": -1}, "points": [5]})
        await play.ask(
            "POST", "/collections/docs/points/delete", {"filter": {"must": [{"key": "n", "match": {"value": 7}}]}}
        )
        await play.settled()
        assert play.same()
        assert play.stock.copies["docs"].count == 24
        assert play.mirror.counts.passed == play.mirror.counts.applied == 4


async def test_writes_are_applied_in_the_order_of_the_databases_answers(tmp_path: Path, live: Live):
    async with Playing(tmp_path, live) as play:
        await play.kept()
        for number in range(50):
            await play.upsert(point(1, step=number))
        await play.settled()
        assert play.stock.copies["docs"].points[1].payload == {"step": 49}


async def test_a_write_that_the_database_refuses_is_not_applied_and_is_looked_up(tmp_path: Path, live: Live):
    async with Playing(tmp_path, live) as play:
        await play.kept()
        live.then.append(lambda _call: answered(422, {"status": {"error": "no"}}))
        answer = await play.upsert(point(100))
        assert answer.status == 422
        await play.settled()
        assert 100 not in play.stock.copies["docs"].points
        standing = play.mirror.held["docs"].standing
        assert list(standing.unsure) == [100]
        assert standing.points_behind == 1
        await play.kept(5)
        assert not standing.unsure
        assert 100 in live.fetched
        assert play.same()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "payload", {"payload": {"n": -1}, "points": [1, 2, 999]}),
        ("PUT", "payload", {"payload": {"n": -1}, "points": [1, 2, 999]}),
        ("POST", "payload/delete", {"keys": ["n"], "points": [1, 2, 999]}),
    ],
    ids=["set", "overwrite", "delete"],
)
async def test_a_payload_write_that_is_told_404_for_one_point_is_looked_up_as_the_others_may_have_it(
    tmp_path: Path, live: Live, method: str, path: str, body: dict[str, Any]
):
    def the_others_all_the_same(call: Call) -> Answer:
        live.carried_out(call)
        return answered(404, {"status": {"error": "Not found: No point with id 999 found"}})

    async with Playing(tmp_path, live) as play:
        await play.kept()
        live.then.append(the_others_all_the_same)
        assert (await play.ask(method, f"/collections/docs/points/{path}", body)).status == 404
        await play.settled()
        standing = play.mirror.held["docs"].standing
        assert list(standing.unsure) == [1, 2, 999]
        assert not play.same()
        await play.kept(5)
        assert not standing.unsure
        assert play.same()


async def test_T45_a_write_that_is_refused_for_its_vectors_is_in_no_copy_and_nothing_is_doubted(
    tmp_path: Path, live: Live
):
    def another_space(_call: Call) -> Answer:
        raise Refused("handle", "the vectors are of another space")

    async with Playing(tmp_path, live) as play:
        await play.kept()
        live.then.append(another_space)
        with pytest.raises(Refused):
            await play.upsert(point(1, by="a fallback"), point(100))
        await play.settled()
        assert play.same()
        assert play.stock.copies["docs"].count == 25
        assert not play.mirror.is_open


async def test_T46_a_batch_of_two_megabytes_is_applied_whole(tmp_path: Path, live: Live):
    async with Playing(tmp_path, live) as play:
        await play.kept()
        await play.upsert(*(point(1000 + number, text="x" * 1024) for number in range(2048)))
        await play.settled()
        assert play.stock.copies["docs"].count == 25 + 2048
        assert play.same()
        assert play.mirror.lane.bytes == 0


@pytest.mark.parametrize("carried_out", [True, False])
async def test_after_a_cut_the_copy_is_as_the_database_is_whatever_became_of_the_write(
    tmp_path: Path, live: Live, carried_out: bool
):
    def cut_off(call: Call) -> Answer:
        if carried_out:
            live.carried_out(call)
        return cut(call)

    async with Playing(tmp_path, live) as play:
        await play.kept()
        live.then.append(cut_off)
        with pytest.raises(Failed):
            await play.upsert(point(100))
        await play.settled()
        assert 100 not in play.stock.copies["docs"].points
        await play.kept(5)
        assert (100 in play.stock.copies["docs"].points) is carried_out
        assert play.same()


async def test_a_cut_write_by_filter_has_the_whole_compared(tmp_path: Path, live: Live):
    def cut_off(call: Call) -> Answer:
        live.carried_out(call)
        return cut(call)

    async with Playing(tmp_path, live) as play:
        await play.kept()
        live.then.append(cut_off)
        with pytest.raises(Failed):
            await play.ask(
                "POST", "/collections/docs/points/delete", {"filter": {"must": [{"key": "n", "range": {"lt": 9}}]}}
            )
        await play.settled()
        standing = play.mirror.held["docs"].standing
        assert standing.behind_since
        assert "filter" in standing.why
        await play.kept(60)
        assert not standing.behind_since
        assert play.same()


async def test_nothing_is_doubted_where_nothing_was_sent(tmp_path: Path, live: Live):
    def refused(_call: Call) -> Answer:
        raise Refused("breaker", "open")

    async with Playing(tmp_path, live) as play:
        await play.kept()
        live.then.append(refused)
        with pytest.raises(Refused):
            await play.upsert(point(100))
        assert not len(play.mirror.lane)
        assert not play.mirror.is_open
        assert play.mirror.counts.doubtful == 0


async def test_what_another_tier_took_is_not_the_databases(tmp_path: Path, live: Live):
    def elsewhere(call: Call) -> Answer:
        call.note("qdrant", "failed", "reset")
        answer = answered()
        answer.tier = "secondary"
        return answer

    async with Playing(tmp_path, live) as play:
        await play.kept()
        live.then.append(elsewhere)
        await play.upsert(point(100))
        await play.settled()
        assert 100 not in play.stock.copies["docs"].points
        assert list(play.mirror.held["docs"].standing.unsure) == [100]


async def test_a_read_and_a_search_cost_the_tap_nothing_but_a_look(tmp_path: Path, live: Live):
    async with Playing(tmp_path, live) as play:
        live.then.append(lambda _call: answered())
        await play.ask("POST", "/collections/docs/points/query", {"query": vector(1)})
        live.then.append(lambda _call: answered())
        await play.ask("POST", "/collections/docs/points/recommend", {"positive": [1]})
        assert play.mirror.counts.passed == play.mirror.counts.doubtful == 0


async def test_a_queue_that_is_full_keeps_nobody_waiting_and_the_copy_is_put_right_later(tmp_path: Path, live: Live):
    async with Playing(tmp_path, live, queue_max=3) as play:
        await play.kept()
        await play.mirror.lane.stop(1.0)
        for number in range(100, 110):
            assert (await play.upsert(point(number))).status == 200
        standing = play.mirror.held["docs"].standing
        assert play.mirror.counts.overflowed == 7
        assert standing.behind_since
        assert "more writes" in standing.why
        play.mirror.lane.start()
        await play.settled()
        assert not play.same()
        await play.kept(60)
        assert play.same()
        assert not standing.behind_since


async def test_the_queue_is_bounded_in_bytes_too(tmp_path: Path, live: Live):
    async with Playing(tmp_path, live, queue_bytes_max=2000) as play:
        await play.kept()
        await play.mirror.lane.stop(1.0)
        await play.upsert(point(100, text="x" * 1000))
        await play.upsert(point(101, text="x" * 1000))
        assert play.mirror.counts.overflowed == 1
        assert len(play.mirror.lane) == 1
        play.mirror.lane.start()
        await play.settled()
        assert play.mirror.lane.bytes == 0


async def test_two_writes_that_cross_are_looked_up_as_nobody_knows_their_order(tmp_path: Path, live: Live):
    gate = asyncio.Event()

    async def slow(call: Call) -> Answer:
        # carried out after the other one, though it was sent first: the answers come in this order, too
        await gate.wait()
        return live.carried_out(call)

    def quick_but_undone(call: Call) -> Answer:
        return live.carried_out(call)

    async with Playing(tmp_path, live) as play:
        await play.kept()
        live.then += [slow, quick_but_undone]
        first = asyncio.ensure_future(play.upsert(point(1, who="first")))
        await asyncio.sleep(0.1)
        await play.upsert(point(1, who="second"))
        gate.set()
        await first
        await play.settled()
        assert list(play.mirror.held["docs"].standing.unsure) == [1]
        await play.kept(5)
        assert play.same()


async def test_a_collection_made_and_dropped_here_is_made_and_dropped_in_the_copy(tmp_path: Path, live: Live):
    async with Playing(tmp_path, live) as play:
        await play.kept()
        await play.ask("PUT", "/collections/fresh", {"vectors": {"size": 4, "distance": "Cosine"}})
        await play.upsert(point(1), collection="fresh")
        await play.settled()
        assert play.same("fresh")
        assert play.mirror.held["fresh"].standing.whole
        assert play.stock.copies["fresh"].shapes[""].space == "test-space"
        await play.ask("DELETE", "/collections/fresh")
        await play.settled()
        assert "fresh" not in play.stock.copies
        assert "fresh" not in play.mirror.held


async def test_only_the_collections_that_the_policy_names_are_copied(tmp_path: Path, live: Live):
    live.make("private", 3)
    async with Playing(tmp_path, live, collections=["docs"]) as play:
        await play.kept()
        await play.upsert(point(9), collection="private")
        await play.settled()
        assert set(play.stock.copies) == set(play.mirror.held) == {"docs"}
        assert not play.mirror.held["docs"].standing.behind_since


async def test_words_come_from_the_fields_that_the_policy_names_and_listeners_hear_of_them(tmp_path: Path, live: Live):
    async with Playing(tmp_path, live, text=["title", "meta.tags"]) as play:
        await play.kept()
        assert play.told[0] == ("docs", list(range(10)))
        await play.upsert(point(100, title="Alpha", meta={"tags": ["b", "c", 4]}), point(101, other="nothing"))
        await play.settled()
        points = play.stock.copies["docs"].points
        assert points[100].text == "Alpha\nb\nc"
        assert points[101].text == ""
        assert play.told[-1] == ("docs", [100])
        await play.ask("POST", "/collections/docs/points/payload", {"payload": {"title": "Beta"}, "points": [100]})
        await play.ask(
            "POST",
            "/collections/docs/points/payload",
            {"payload": {"title": "Gamma"}, "filter": {"must": [{"key": "n", "range": {"lt": 3}}]}},
        )
        await play.settled()
        points = play.stock.copies["docs"].points
        assert points[100].text == "Beta\nb\nc"
        assert [points[number].text for number in range(4)] == ["Gamma", "Gamma", "Gamma", "Title 3"]
        assert play.told[-1] == ("docs", [0, 1, 2])
        await play.ask("POST", "/collections/docs/points/payload/delete", {"keys": ["title"], "points": [100]})
        await play.settled()
        assert play.stock.copies["docs"].points[100].text == "b\nc"


async def test_a_write_that_the_copy_cannot_take_leaves_it_behind_and_the_others_in(tmp_path: Path, live: Live):
    async with Playing(tmp_path, live) as play:
        await play.kept()
        await play.mirror.lane.stop(1.0)
        await play.upsert(point(100))
        await play.upsert(point(101))
        play.stock.broken = WrongDimension((5,), 4, "given")
        play.mirror.lane.start()
        await play.settled()
        standing = play.mirror.held["docs"].standing
        assert standing.behind_since
        play.stock.broken = None
        await play.kept(60)
        assert play.same()


async def test_a_write_that_only_the_database_understands_has_the_whole_compared(tmp_path: Path, live: Live):
    async with Playing(tmp_path, live) as play:
        await play.kept()

        def understood(_call: Call) -> Answer:
            live.stock.copies["docs"].points[2] = point(2, by="a script")
            return answered()

        live.then.append(understood)
        await play.ask("POST", "/collections/docs/points/some_day", {"what": "ever"})
        await play.settled()
        assert play.mirror.held["docs"].standing.behind_since
        await play.kept(60)
        assert play.same()
