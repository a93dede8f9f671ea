"""Copies are made page by page, go on after a crash, and are put right where they differ."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.mirroring.live import Live, MemoryStock, Playing, point
from understudy.indexes.points import Point
from understudy.indexes.writes import UNFINISHED
from understudy.policies.service import Refused
from understudy.proxy.mirroring.notes import Notes, WalkNote
from understudy.proxy.mirroring.source import SourceFailed
from understudy.proxy.reports.mirrors import state_of


@pytest.fixture
def live() -> Live:
    made = Live()
    made.make("docs", 95)
    return made


class Crash(BaseException):
    """As if the process had ended here."""


async def test_a_first_copy_answers_only_once_it_is_whole(tmp_path: Path, live: Live):
    seen: list[str] = []
    filling: list[object] = []

    async with Playing(tmp_path, live) as play:

        def look() -> None:
            filling.append(play.stock.copies["docs"].notes[UNFINISHED])
            with pytest.raises(Refused) as why:
                play.mirror.check_fresh("docs")
            seen.append(why.value.reason)

        live.before_page = look
        assert play.mirror.check_fresh("docs") is None
        await play.kept()
        live.before_page = None
        assert set(filling) == {True}
        assert play.stock.copies["docs"].notes[UNFINISHED] is False
        assert seen
        assert set(seen) == {"syncing"}
        assert play.mirror.check_fresh("docs") is not None
        assert play.same()


async def test_a_copy_goes_on_where_it_was_when_the_process_died(tmp_path: Path, live: Live):
    stock = MemoryStock()
    pages = 0

    def die() -> None:
        nonlocal pages
        pages += 1
        if pages == 6:
            raise Crash

    live.before_page = die
    play = Playing(tmp_path, live, stock)
    async with play:
        with pytest.raises(Crash):
            await play.kept()
    live.before_page, live.pages = None, 0
    assert 0 < stock.copies["docs"].count < 95
    async with Playing(tmp_path, live, stock) as again:
        with pytest.raises(Refused):
            again.mirror.check_fresh("docs")
        await again.kept()
        assert again.same()
    # five pages were noted, the sixth comes again; a sample reads one more, and a lookup none
    assert live.pages in (5, 6)


async def test_after_a_death_with_writes_under_way_no_copy_is_called_whole_however_often_it_dies_again(
    tmp_path: Path, live: Live
):
    stock = MemoryStock()
    async with Playing(tmp_path, live, stock) as first:
        await first.kept()
        assert state_of(first.mirror.held["docs"]) == "whole"
        (first.mirror.taps / "1-dead").write_bytes(b"\1")
    listed = live.collections

    async def dies() -> Any:
        raise Crash

    live.collections = dies
    for _ in range(2):
        play = Playing(tmp_path, live, stock)
        play.mirror.ready()
        # before the keeper has looked at anything, and whether or not the one before it has
        assert state_of(play.mirror.held["docs"]) == "behind"
        with pytest.raises(Crash):
            await play.keeper.once()
        assert state_of(play.mirror.held["docs"]) == "behind"
        play.mirror.notes.leave()
        play.thread.shutdown()
    live.collections = listed
    # what passed then is in no copy, and no sample may come by it
    live.stock.copies["docs"].points.pop(7)
    async with Playing(tmp_path, live, stock) as last:
        assert state_of(last.mirror.held["docs"]) == "behind"
        await last.kept(10)
        assert last.same()
        assert state_of(last.mirror.held["docs"]) == "whole"
        assert not list(last.mirror.taps.glob("*-dead"))


async def test_a_walk_waits_until_what_it_has_written_is_compacted_though_not_for_ever(tmp_path: Path, live: Live):
    loop = asyncio.get_running_loop()
    pages: list[float] = []

    def look() -> None:
        pages.append(loop.time())
        copy = play.stock.copies["docs"]
        if len(pages) == 2:
            copy.is_flooded = True
            loop.call_later(7.0, setattr, copy, "is_flooded", False)
        elif len(pages) == 4:
            copy.is_flooded = True

    live.before_page = look
    async with Playing(tmp_path, live) as play:
        keeping = asyncio.create_task(play.kept())
        while len(pages) < 6:  # noqa: ASYNC110 (nobody tells how many pages were read)
            await asyncio.sleep(1.0)
        play.stock.copies["docs"].is_flooded = False
        await keeping
        assert play.same()
    between = [round(later - before) for before, later in itertools.pairwise(pages[:6])]
    assert between == [0, 7, 0, 60, 60]


def crashes() -> Iterator[tuple[str, int]]:
    """Every moment between two of the steps by which a page is noted: before each, and with half of it on disk."""
    for step in ("seen", "json", "replaced"):
        for page in (1, 3, 10):
            yield step, page


@pytest.mark.parametrize(("step", "page"), list(crashes()))
async def test_a_crash_at_any_step_of_a_page_loses_and_invents_nothing(
    tmp_path: Path, live: Live, step: str, page: int, monkeypatch: pytest.MonkeyPatch
):
    stock = MemoryStock()
    real = Notes.advance
    calls = 0

    def dying(self: Notes, name: str, note: WalkNote, ids: Any) -> None:
        nonlocal calls
        calls += 1
        if calls < page:
            return real(self, name, note, ids)
        walks = self.folder / "walks"
        if step == "seen":
            # half of the fingerprints
            with (walks / f"{name}.seen").open("ab") as file:
                file.write(b"12345678" * 3 + b"123")
        elif step == "json":
            before = shutil.copy(walks / f"{name}.json", walks / "kept")
            real(self, name, note, ids)
            shutil.copy(before, walks / f"{name}.json")
            (walks / f"{name}.json.999").write_bytes(b'{"began":')
        else:
            real(self, name, note, ids)
        raise Crash

    monkeypatch.setattr(Notes, "advance", dying)
    async with Playing(tmp_path, live, stock) as play:
        with pytest.raises(Crash):
            await play.kept()
    monkeypatch.setattr(Notes, "advance", real)
    # what the database has lost meanwhile must go, though the first half of the walk has seen it
    live.stock.copies["docs"].points.pop(0)
    live.stock.copies["docs"].points.pop(94)
    async with Playing(tmp_path, live, stock) as again:
        await again.kept(90)
        assert again.same()
        assert again.mirror.held["docs"].standing.whole


async def test_a_cursor_that_the_database_forgot_begins_anew(tmp_path: Path, live: Live):
    async with Playing(tmp_path, live) as play:
        live.expired.add("40")

        def forgotten() -> None:
            if live.pages == 7:
                live.expired.clear()

        live.before_page = forgotten
        await play.kept(3)
        assert play.same()


async def test_a_copy_that_has_diverged_is_noticed_by_a_sample_and_put_right(tmp_path: Path, live: Live):
    async with Playing(tmp_path, live, check_s=10) as play:
        await play.kept(3)
        standing = play.mirror.held["docs"].standing
        assert standing.proven
        there = live.stock.copies["docs"].points
        there[7] = Point(7, there[7].vector, {"changed": "elsewhere"})
        there[8] = Point(8, there[8].vector + np.float32(0.5), there[8].payload)
        there[500] = point(500)
        del there[9]
        await play.kept(120)
        assert play.same()
        assert not standing.behind_since
        assert play.mirror.held["docs"].repaired == 4


async def test_what_lacks_in_equal_numbers_is_found_by_the_samples_in_time(tmp_path: Path, live: Live):
    async with Playing(tmp_path, live, check_s=10, sample_max=10) as play:
        await play.kept(3)
        there = live.stock.copies["docs"].points
        del there[60]
        there[61] = Point(61, there[61].vector, {"changed": "elsewhere"})
        there[1000] = point(1000)
        assert len(there) == play.stock.copies["docs"].count
        await play.kept(200)
        assert play.same()


async def test_a_write_that_passes_while_a_page_is_read_is_not_overwritten_by_it(tmp_path: Path, live: Live):
    async with Playing(tmp_path, live, settle_s=1.0) as play:
        moves = 0

        async def writes() -> None:
            nonlocal moves
            moves += 1
            # what the page has of these is older than what is written now
            await play.upsert(point(moves * 7, at="once"), point(3, moves=moves))

        live.before_page = writes
        await play.kept()
        live.before_page = None
        await play.settled()
        assert play.stock.copies["docs"].points[3].payload == {"moves": moves}
        assert play.same()
        # those that were touched are looked up once they have settled
        await play.kept(5)
        assert not play.mirror.held["docs"].standing.unsure
        assert play.same()


async def test_a_delete_by_filter_while_pages_are_read_has_them_read_again(tmp_path: Path, live: Live):
    async with Playing(tmp_path, live, settle_s=1.0) as play:
        once = [True]

        async def delete() -> None:
            if once and live.pages == 2:
                once.clear()
                which = {"filter": {"must": [{"key": "n", "range": {"gte": 5, "lt": 40}}]}}
                await play.ask("POST", "/collections/docs/points/delete", which)

        live.before_page = delete
        await play.kept()
        assert not once
        assert play.stock.copies["docs"].count == 60
        assert play.same()


async def test_T48_a_database_that_has_lost_its_points_does_not_take_the_copys_with_it(tmp_path: Path):
    live = Live()
    live.make("docs", 1500)
    async with Playing(tmp_path, live, check_s=5) as play:
        await play.kept(3)
        live.stock.copies["docs"].points = {n: p for n, p in live.stock.copies["docs"].points.items() if n < 100}
        await play.kept(100)
        assert play.stock.copies["docs"].count == 1500
        held = play.mirror.held["docs"]
        assert "lacks 1400 of 1500" in held.refused
        assert play.mirror.check_fresh("docs") > 50
        play.walker.prune, held.refused = True, ""
        await play.kept(2)
        assert play.same()


async def test_a_database_that_is_down_is_asked_ever_more_seldom_and_the_copy_grows_stale(tmp_path: Path, live: Live):
    async with Playing(tmp_path, live, check_s=5, staleness_s_max=200) as play:
        await play.kept(3)
        assert play.mirror.check_fresh("docs") < 10
        live.down = True
        with pytest.raises(SourceFailed):
            await live.described("docs")
        for _ in range(90):
            await play.kept()
        assert 90 <= play.mirror.check_fresh("docs") < 200
        await asyncio.sleep(100)
        with pytest.raises(Refused) as why:
            play.mirror.check_fresh("docs")
        assert why.value.reason == "stale"
        live.down = False
        await play.kept(70)
        assert play.mirror.check_fresh("docs") < 10


async def test_a_collection_with_too_many_points_is_not_copied(tmp_path: Path, live: Live):
    async with Playing(tmp_path, live, points_max=50) as play:
        await play.kept(3)
        assert "95 points" in play.mirror.held["docs"].refused
        assert "docs" not in play.stock.copies


async def test_a_local_collection_that_was_made_by_hand_is_left_alone(tmp_path: Path, live: Live):
    stock = MemoryStock()
    stock.copies["docs"] = Live().make("docs", 2)
    async with Playing(tmp_path, live, stock) as play:
        await play.kept(3)
        await play.upsert(point(100))
        await play.settled()
        assert stock.copies["docs"].count == 2
        assert "no copy of ours" in play.mirror.held["docs"].refused


async def test_where_the_policy_leaves_it_to_hands_nothing_is_copied_unasked(tmp_path: Path, live: Live):
    async with Playing(tmp_path, live, sync="by-hand") as play:
        await play.kept(3)
        assert not play.stock.copies
        play.mirror.notes.leave_note("sync", "docs", "docs")
        await play.kept(1)
        assert play.same()
        assert not play.mirror.notes.has_note("sync", "docs")
