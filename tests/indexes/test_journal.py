"""The journal: what a crash tore is cut off, what rotted is passed over and said, and the rest is all there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.indexes.some import ids, some_points
from understudy.indexes import journal as journal_module
from understudy.indexes.journal import Gone, Journal, Position
from understudy.indexes.library import Library
from understudy.indexes.writes import Upsert

BODIES = [bytes([number]) * (20 + number) for number in range(9)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    return tmp_path / "docs"


def _append(folder: Path, bodies: list[bytes]) -> Position:
    journal = Journal(folder)
    with journal.writing():
        return journal.append(journal.read(journal.start_after(0))[1], bodies)


def _read(folder: Path, after: int = 0) -> tuple[list[tuple[int, bytes]], str]:
    journal = Journal(folder)
    entries, _, wrong = journal.read(journal.start_after(after))
    return entries, wrong


def _numbered(bodies: list[bytes], first: int = 1) -> list[tuple[int, bytes]]:
    return list(enumerate(bodies, start=first))


def test_entries_come_back_in_order_from_anywhere(folder: Path):
    assert not Journal(folder).exists()
    for body in BODIES[:4]:
        _append(folder, [body])
    end = _append(folder, BODIES[4:])
    assert Journal(folder).exists()
    assert _read(folder) == (_numbered(BODIES), "")
    assert _read(folder, after=5) == (_numbered(BODIES[5:], 6), "")
    assert Journal(folder).read(end) == ([], end, "")
    assert not Journal(folder).has_more(end)
    _append(folder, [b"more"])
    assert Journal(folder).has_more(end)
    assert Journal(folder).read(end)[0] == [(10, b"more")]


def test_an_entry_torn_at_any_byte_is_not_there_and_the_next_one_takes_its_place(folder: Path):
    _append(folder, BODIES[:3])
    (path,) = folder.glob("journal/*.log")
    whole = path.stat().st_size
    _append(folder, [BODIES[3]])
    torn = path.read_bytes()
    for length in range(whole, len(torn)):
        path.write_bytes(torn[:length])
        assert _read(folder) == (_numbered(BODIES[:3]), "")
        _append(folder, [b"after"])
        assert _read(folder) == (_numbered([*BODIES[:3], b"after"]), "")


def test_an_entry_that_rotted_between_others_is_passed_over_and_said(folder: Path):
    _append(folder, BODIES)
    (path,) = folder.glob("journal/*.log")
    data = bytearray(path.read_bytes())
    data[data.index(BODIES[4]) + 3] ^= 1
    path.write_bytes(data)
    entries, wrong = _read(folder)
    assert entries == _numbered(BODIES[:4]) + _numbered(BODIES[5:], 6)
    assert "44 bytes at" in wrong
    assert "entries 5 to 5 are missing" in wrong


def test_files_are_rolled_and_pruned_but_for_the_last(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(journal_module, "ROLL_BYTES", 100)
    for body in BODIES:
        _append(folder, [body])
    names = sorted(path.name for path in folder.glob("journal/*.log"))
    assert names[0] == "w-0000000000000001.log"
    assert len(names) >= 3
    assert _read(folder) == (_numbered(BODIES), "")
    Journal(folder).prune(5)
    assert _read(folder, after=5) == (_numbered(BODIES[5:], 6), "")
    Journal(folder).prune(99)
    assert [path.name for path in folder.glob("journal/*.log")] == names[-1:]
    _append(folder, [b"more"])
    assert _read(folder, after=9)[0] == [(10, b"more")]


def test_a_folder_of_another_name_is_no_longer_written_to(folder: Path):
    journal = Journal(folder)
    with journal.writing():
        pass
    folder.rename(folder.parent / "away")
    with pytest.raises(Gone), journal.writing():
        pass


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)


@pytest.mark.parametrize("rot", [_flip, Path.unlink], ids=["flipped", "gone"])
def test_a_rotten_snapshot_is_passed_over_and_the_journal_brings_all_of_it_back(
    rot: Callable[[Path], None], tmp_path: Path
):
    library = Library(tmp_path)
    points = some_points(60)
    for at in range(0, 60, 20):
        library.write("docs", [Upsert(tuple(points[at : at + 20]))])
        library.compact("docs")
    library.write("docs", [Upsert(tuple(some_points(4, mark="late")))])
    collection = library.get("docs")
    assert collection is not None
    assert collection.generation == "g-000003"
    due = collection.scroll(None, 100)[0]
    rot(library.path_of("docs") / "g-000003" / "points.sqlite")
    again = Library(tmp_path).open("docs")
    assert again.generation == "g-000002"
    back = again.scroll(None, 100)[0]
    assert ids(back) == ids(due)
    assert [point.payload for point in back] == [point.payload for point in due]
