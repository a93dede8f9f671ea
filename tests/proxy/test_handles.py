"""A database's own ids keep their meaning when it is gone, when the sidecar starts anew, and in every worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from understudy.policies.service import Answer, Call, Request
from understudy.proxy import handles as module
from understudy.proxy.dialects import naming_of
from understudy.proxy.handles import Handles, Learnt, learning, made_handle


def test_what_was_learned_is_known_at_the_next_start_and_to_other_workers(tmp_path: Path):
    path = tmp_path / "handles" / "r.jsonl"
    mine, theirs = Handles(path), Handles(path)
    assert theirs.name_of("id-1") is None
    new = mine.learn([Learnt("id-1", "docs"), Learnt("id-2", "notes")])
    mine.keep(new)
    assert mine.learn([Learnt("id-1", "docs")]) == []
    assert theirs.name_of("id-1") == "docs"
    assert Handles(path).handle_of("notes") == "id-2"


def test_a_name_given_anew_leaves_its_old_handle_without_meaning():
    known = Handles()
    known.learn([Learnt("old", "docs")])
    known.learn([Learnt("new", "docs")])
    assert (known.name_of("old"), known.handle_of("docs")) == (None, "new")
    known.learn([Learnt("new", "papers")])
    assert known.name_of("new") == "papers"
    assert known.handle_of("docs") == made_handle("docs")


def test_a_collection_deleted_is_forgotten_by_either_name():
    known = Handles()
    known.learn([Learnt("1", "a"), Learnt("2", "b")])
    known.learn([Learnt("", "a"), Learnt("2", "")])
    assert (known.name_of("1"), known.name_of("2")) == (None, None)
    assert known.learn([Learnt("", "never heard of")]) == []


def test_a_name_nobody_ever_saw_gets_the_same_handle_everywhere_and_is_found_by_it():
    handle = Handles().handle_of("acme/db/docs")
    assert handle == Handles().handle_of("acme/db/docs") != Handles().handle_of("docs")
    assert handle.startswith("acme/db/")
    assert Handles().name_among(handle, lambda: ["docs", "acme/db/docs"]) == "acme/db/docs"
    assert Handles().name_among(handle, lambda: ["docs"]) is None


def test_it_remembers_only_so_many_and_its_file_stays_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "HANDLES_MAX", 10)
    monkeypatch.setattr(module, "FILE_BYTES_MAX", 1000)
    path = tmp_path / "r.jsonl"
    known = Handles(path)
    for n in range(200):
        known.keep(known.learn([Learnt(f"id-{n}", f"name-{n}")]))
    assert path.stat().st_size < 2000
    assert known.name_of("id-3") is None
    assert Handles(path).name_of("id-199") == "name-199"


def test_a_line_cut_short_by_a_crash_costs_only_itself(tmp_path: Path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'["id-1","docs"]\n["id-2"\n\xff\n["id-3","notes"]\n')
    assert [Handles(path).name_of(each) for each in ("id-1", "id-2", "id-3")] == ["docs", None, "notes"]


def test_a_disk_that_fails_is_no_callers_trouble(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("x")
    known = Handles(blocked / "r.jsonl")
    known.keep(known.learn([Learnt("1", "a")]))
    assert known.name_of("1") == "a"


async def test_an_upstreams_answers_teach_and_errors_do_not(tmp_path: Path):
    known = Handles(tmp_path / "r.jsonl")
    answers = [Answer(404, [], b'{"id":"x","name":"y"}'), Answer(200, [], b'{"id":"1","name":"docs"}')]

    async def upstream(_call: Call) -> Answer:
        return answers.pop(0)

    naming = naming_of("chroma")
    assert naming is not None
    service = learning(upstream, naming, known)
    path = b"/api/v2/tenants/default_tenant/databases/default_database/collections/docs"
    for _ in range(2):
        await service(Call("retrieve", Request(b"GET", path, []), dialect="chroma"))
    assert (known.name_of("x"), known.name_of("1")) == (None, "docs")
