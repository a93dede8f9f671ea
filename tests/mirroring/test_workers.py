"""Several workers, one of them the keeper: a copy that is called whole has what passed any of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.mirroring.live import Live, Playing, point
from understudy.policies.service import Answer, Call, Refused

FRESH = {"vectors": {"size": 4, "distance": "Cosine"}}


@pytest.fixture
def live() -> Live:
    made = Live()
    made.make("docs", 25)
    return made


@asynccontextmanager
async def two_workers(folder: Path, live: Live) -> AsyncIterator[tuple[Playing, Playing]]:
    """The keeper and another one, with the collections of one folder."""
    async with Playing(folder, live) as keeper, Playing(folder, live, keeper.stock) as other:
        assert keeper.mirror.notes.keep()
        yield keeper, other


def whole(play: Playing, name: str) -> bool:
    return name in play.mirror.held and play.mirror.held[name].standing.whole


async def test_a_write_that_passes_a_worker_before_it_has_heard_of_a_copy_is_applied_at_once(
    tmp_path: Path, live: Live
):
    async with two_workers(tmp_path, live) as (keeper, other):
        await keeper.kept()
        assert not other.mirror.held
        await other.upsert(point(100))
        await other.ask("POST", "/collections/docs/points/delete", {"points": [3]})
        await other.settled()
        live.down = True
        assert keeper.same()
        assert whole(other, "docs")
        assert other.mirror.held["docs"].standing.points_behind == 0
        await keeper.kept()
        assert not keeper.mirror.held["docs"].standing.behind_since


async def test_a_write_of_unknown_outcome_that_meets_an_unheard_of_copy_is_looked_up(tmp_path: Path, live: Live):
    def unwell(_call: Call) -> Answer:
        return Answer(500, [], b"{}")

    async with two_workers(tmp_path, live) as (keeper, other):
        await keeper.kept()
        live.then.append(unwell)
        await other.upsert(point(100))
        await other.settled()
        assert list(other.mirror.held["docs"].standing.unsure) == [100]


@pytest.mark.parametrize("by_keeper", [True, False])
async def test_a_collection_made_through_one_worker_is_written_to_through_the_other(
    tmp_path: Path, live: Live, by_keeper: bool
):
    async with two_workers(tmp_path, live) as both:
        await both[0].kept()
        await both[1].kept()
        maker, writer = both if by_keeper else both[::-1]
        await maker.ask("PUT", "/collections/fresh", FRESH)
        await maker.settled()
        await writer.upsert(*map(point, range(40)), collection="fresh")
        await writer.settled()
        assert maker.same("fresh")
        assert whole(maker, "fresh")
        assert whole(writer, "fresh")
        # and so it stays, whoever looks first
        live.down = True
        await both[1].kept()
        await both[0].kept()
        await both[1].kept()
        assert whole(maker, "fresh")
        assert whole(writer, "fresh")
        assert not both[0].mirror.notes.take_notes("born")


@pytest.mark.parametrize("by_keeper", [True, False])
async def test_a_copy_whose_first_writes_were_applied_before_it_was_made_is_not_called_whole(
    tmp_path: Path, live: Live, by_keeper: bool
):
    async with two_workers(tmp_path, live) as both:
        await both[0].kept()
        await both[1].kept()
        maker, writer = both if by_keeper else both[::-1]
        await maker.mirror.lane.stop(1.0)
        await maker.ask("PUT", "/collections/fresh", FRESH)
        await writer.upsert(*map(point, range(40)), collection="fresh")
        await writer.settled()
        maker.mirror.lane.start()
        await maker.settled()
        assert not whole(maker, "fresh")
        assert not whole(writer, "fresh")
        await both[0].kept(8)
        await both[1].kept()
        assert whole(both[0], "fresh")
        assert whole(both[1], "fresh")
        assert maker.same("fresh")


async def test_a_write_between_a_copys_being_wanted_and_its_being_made_is_in_it(tmp_path: Path, live: Live):
    async with two_workers(tmp_path, live) as (keeper, other):
        described = live.described

        async def described_late(name: str):
            told = await described(name)
            live.described = described
            for play in (keeper, other):
                await play.upsert(point(100 if play is keeper else 101))
                await play.settled()
            return told

        live.described = described_late
        await keeper.kept(10)
        assert keeper.same()
        assert whole(keeper, "docs")
        assert keeper.stock.copies["docs"].notes["space"] == "test-space"


async def test_a_collection_dropped_and_made_again_through_another_worker_is_the_new_one_everywhere(
    tmp_path: Path, live: Live
):
    async with two_workers(tmp_path, live) as (keeper, other):
        await keeper.kept()
        await other.kept()
        await other.ask("DELETE", "/collections/docs")
        await other.ask("PUT", "/collections/docs", FRESH)
        await other.upsert(point(7))
        await other.settled()
        assert other.same()
        await other.kept()
        assert whole(other, "docs")
        await keeper.kept()
        await keeper.upsert(point(8))
        await keeper.settled()
        assert keeper.same()
        assert whole(keeper, "docs")


async def test_a_worker_answers_from_a_copy_once_it_is_whole_and_never_from_half_of_one(tmp_path: Path, live: Live):
    async with two_workers(tmp_path, live) as (keeper, other):
        asked: list[str] = []

        def ask_the_other() -> None:
            with pytest.raises(Refused) as refused:
                other.mirror.check_fresh("docs")
            asked.append(refused.value.reason)

        live.before_page = ask_the_other
        await keeper.kept()
        assert asked == ["syncing"] * 3
        assert other.mirror.check_fresh("docs") is not None
