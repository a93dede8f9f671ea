"""Libraries: collections by name, however odd the name, and the new generation when there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.indexes.some import ids, some_points
from understudy.indexes import collection as collection_module
from understudy.indexes.collection import Collection
from understudy.indexes.faults import BadName, CorruptIndex, IndexFault
from understudy.indexes.library import Library, folder_name
from understudy.indexes.snapshot import write_snapshot

DIMENSIONS = 16


def _write(library: Library, name: str, count: int = 10) -> None:
    write_snapshot(library.path_of(name), some_points(count), space="s", dimensions=DIMENSIONS)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "library")


def test_a_collection_is_opened_when_it_is_first_asked_for(library: Library):
    assert library.get("docs") is None
    assert library.names() == []
    _write(library, "docs")
    collection = library.get("docs")
    assert collection is not None
    assert (collection.name, collection.count, library.names()) == ("docs", 10, ["docs"])
    assert library.get("docs") is library.open("docs") is collection


def test_a_new_generation_is_picked_up_by_refresh_and_a_view_of_the_old_goes_on_answering(library: Library):
    _write(library, "docs", 10)
    _write(library, "faq", 5)
    assert library.refresh() == {"docs": "opened g-000001", "faq": "opened g-000001"}
    collection = library.get("docs")
    assert collection is not None
    before = collection.view()
    _write(library, "docs", 20)
    assert collection.count == 10
    assert library.refresh() == {"docs": "opened g-000002"}
    assert library.get("docs") is collection
    after = collection.view()
    assert (before.count, after.count) == (10, 20)
    assert ids(before.scroll(None, 3)[0]) == ids(after.scroll(None, 3)[0])
    assert library.refresh() == {}


def test_a_collection_that_is_gone_is_let_go(library: Library):
    _write(library, "docs")
    library.refresh()
    library.path_of("docs").rename(library.folder / ".away")
    assert library.refresh() == {"docs": "gone"}
    assert library.get("docs") is None


def test_a_collection_that_rots_goes_on_as_it_was_and_others_are_not_held_up(library: Library):
    _write(library, "docs")
    library.refresh()
    _write(library, "docs", 20)
    _write(library, "faq")
    for path in library.path_of("docs").glob("g-*/points.sqlite"):
        path.unlink()
    happened = library.refresh()
    assert happened["docs"].startswith("failed: collection docs")
    assert happened["faq"] == "opened g-000001"
    served = library.get("docs")
    assert served is not None
    assert len(served.search(np.ones(DIMENSIONS), 50)) == 10


def test_rot_is_looked_at_once_and_not_for_every_request(library: Library, monkeypatch: pytest.MonkeyPatch):
    _write(library, "docs")
    store = library.path_of("docs") / "g-000001" / "points.sqlite"
    store.write_bytes(b"rot")
    opened: list[Path] = []
    real = collection_module.Collection.open

    def counted(folder: Path, **options: object) -> Collection:
        opened.append(folder)
        return real(folder, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(collection_module.Collection, "open", counted)
    for _ in range(3):
        with pytest.raises(CorruptIndex, match=r"points\.sqlite"):
            library.get("docs")
    assert len(opened) == 1
    _write(library, "docs")
    assert library.get("docs") is not None


def test_a_damaged_collection_is_healed_and_served_anew(library: Library):
    _write(library, "docs")
    (library.path_of("docs") / "g-000001" / "vectors.npy").write_bytes(b"rot")
    damaged = library.get("docs")
    assert damaged is not None
    assert set(damaged.damage) == {"vectors.npy"}
    assert library.heal("docs") == "g-000002"
    healed = library.get("docs")
    assert healed is not None
    assert healed.damage == {}
    assert library.heal("docs") is None


def test_only_so_many_collections_are_opened(tmp_path: Path):
    library = Library(tmp_path, collections_max=2)
    for name in ("a", "b", "c"):
        _write(library, name)
    assert library.refresh()["c"].startswith("failed: collection 'c' is one too many")
    with pytest.raises(IndexFault, match="one too many"):
        library.open("c")
    assert library.get("a") is not None


ODD = [
    "..",
    ".",
    "../../etc",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "ünïcode 日本",
    ".hidden",
    "%2e%2e",
    "CURRENT",
    "g-000001",
    "~",
    "a b",
    "-rf",
]


@pytest.mark.parametrize("name", ODD)
def test_an_odd_name_is_kept_in_a_folder_of_its_own_and_leads_nowhere_else(name: str, library: Library):
    _write(library, name)
    _write(library, "docs")
    folder = library.path_of(name)
    assert folder.parent == library.folder
    assert folder.resolve().parent == library.folder.resolve()
    assert library.names() == sorted([name, "docs"])
    collection = library.get(name)
    assert collection is not None
    assert collection.name == name


@pytest.mark.parametrize("name", ["", "a\x00b", "a\nb", "x" * 300, "日" * 100, "\u202e"])
def test_a_name_no_folder_could_have_is_refused(name: str, library: Library):
    for ask in (library.get, library.open, folder_name):
        with pytest.raises(BadName):
            ask(name)


def test_folders_that_are_no_collections_are_passed_over(library: Library):
    _write(library, "docs")
    (library.folder / "empty").mkdir()
    (library.folder / "file").write_text("x")
    library.path_of("docs").rename(library.folder / "%41")
    assert library.names() == []
