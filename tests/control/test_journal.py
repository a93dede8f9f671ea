"""The journal: what it was told it tells again, after a crash and a restart, and it never outgrows its room."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from understudy.policies.attribution import Spell
from understudy.policies.events import Event
from understudy.proxy.control.entries import FILE, Entry, Known, Tried
from understudy.proxy.control.journal import BYTES_MIN, VALUES_MAX, Journal

LLM = "llm_service:api:443"


def failure(at: float, component: str = LLM, detail: str = "it does not answer") -> Entry:
    event = Event(at, "failure", component, "no_answer", detail, {"level": "live"})
    return Entry(event, {"error_share": 0.25, "calls_per_s": 12.0}, ("08:00 policies a -> b",))


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal(tmp_path / "state" / FILE)
    made.open()
    return made


def test_what_happened_is_told_again_by_another_process_the_newest_first(journal: Journal):
    entries = [failure(1.0), Entry(Event(2.0, "change", "sidecar:", "policies", "a -> b")), failure(3.0, "cache:r:1")]
    journal.add(entries)
    journal.close()
    again = Journal(journal.path)
    again.open()
    assert again.entries() == entries[::-1]
    assert again.entries(["change"]) == [entries[1]]
    assert again.entries(component=LLM) == [entries[0]]
    assert again.entries(since=1.5, count=1) == [entries[2]]
    assert again.times("failure", 0.0) == [(LLM, 1.0), ("cache:r:1", 3.0)]


def test_what_was_added_before_a_kill_is_there_after_it(tmp_path: Path):
    program = f"""
import os, pathlib, signal
from tests.control.test_journal import failure
from understudy.proxy.control.journal import Journal
journal = Journal(pathlib.Path({str(tmp_path)!r}) / {FILE!r})
journal.open()
for n in range(20):
    journal.add([failure(float(n))])
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False, cwd=Path(__file__).parents[2], timeout=300)
    assert ended.returncode == -9
    journal = Journal(tmp_path / FILE)
    journal.open()
    assert [entry.event.at for entry in journal.entries()] == [float(n) for n in reversed(range(20))]


def test_it_never_outgrows_its_room_and_the_oldest_go_first(tmp_path: Path):
    journal = Journal(tmp_path / FILE, bytes_max=BYTES_MIN)
    journal.open()
    largest = 0
    for batch in range(60):
        journal.add([failure(batch * 100.0 + n, detail="x" * 500) for n in range(100)])
        largest = max(largest, journal.bytes())
    assert 0.5 * BYTES_MIN < largest <= BYTES_MIN
    kept = [entry.event.at for entry in journal.entries(count=10_000)]
    assert kept == [5999.0 - n for n in range(len(kept))]
    assert journal.shed == 6000 - len(kept) > 0


def test_one_entry_is_no_longer_than_what_is_kept_of_it(journal: Journal):
    facts = {str(n): "y" * 5000 for n in range(16)}
    journal.add([Entry(Event(1.0, "failure", LLM, "k", "d", facts), {}, tuple("z" * 300 for _ in range(99)))])
    (entry,) = journal.entries()
    assert sum(map(len, entry.event.facts.values())) <= 4000
    assert 0 < len("".join(entry.changes)) <= 4000


def test_a_broken_file_is_put_aside_and_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / FILE).write_bytes(b"no database " * 1000)
    journal = Journal(tmp_path / FILE)
    journal.open()
    journal.add([failure(1.0)])
    assert len(journal.entries()) == 1
    assert (tmp_path / (FILE + ".broken")).read_bytes().startswith(b"no database")
    assert "begun anew" in caplog.text


def test_a_file_of_another_version_is_put_aside(tmp_path: Path):
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("PRAGMA user_version = 99")
        db.execute("CREATE TABLE other (x)")
    db.close()
    journal = Journal(tmp_path / FILE)
    journal.open()
    assert journal.entries() == []
    assert (tmp_path / (FILE + ".broken")).exists()


def test_two_processes_may_write_for_a_moment(journal: Journal):
    other = Journal(journal.path)
    other.open()
    journal.add([failure(1.0)])
    other.add([failure(2.0)])
    assert [entry.event.at for entry in journal.entries()] == [2.0, 1.0]


def test_of_each_thing_the_last_values_are_known(journal: Journal):
    for n in range(VALUES_MAX + 3):
        journal.know([Known(LLM, "server", f"v{n}", float(n)), Known(LLM, "model", "m", float(n))])
    known = journal.known()
    assert [each.value for each in known if each.kind == "server"] == [f"v{n}" for n in range(3, VALUES_MAX + 3)]
    assert [each for each in known if each.kind == "model"] == [Known(LLM, "model", "m", VALUES_MAX + 2.0)]


def test_spells_of_watching_that_meet_are_one(journal: Journal):
    for since, until in ((0.0, 5.0), (0.0, 10.0), (8.0, 20.0), (30.0, 40.0)):
        journal.watched(since, until)
    assert journal.spells() == [Spell(0.0, 20.0), Spell(30.0, 40.0)]


def test_what_was_tried_is_counted_with_what_helped(journal: Journal):
    for helped in (True, False, True):
        journal.try_counted("no_answer", "reset_pool", helped)
    journal.try_counted("dns", "resolve_again", helped=False)
    assert sorted(journal.tried()) == [Tried("dns", "resolve_again", 1, 0), Tried("no_answer", "reset_pool", 3, 2)]


def test_after_its_end_it_knows_nothing_and_takes_nothing(journal: Journal):
    journal.close()
    journal.add([failure(1.0)])
    journal.watched(0.0, 1.0)
    journal.know([Known(LLM, "server", "v", 0.0)])
    assert (journal.entries(), journal.known(), journal.spells(), journal.tried()) == ([], [], [], [])


def test_a_folder_that_can_not_be_written_to_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        Journal(tmp_path / "file" / "below" / FILE).open()
    if os.getuid():
        tmp_path.chmod(0o500)
        with pytest.raises(OSError):
            Journal(tmp_path / FILE).open()


def test_what_happened_to_another_replica_is_told_and_counts_for_no_risk_of_ours(journal: Journal):
    ours = Event(1.0, "failure", "llm_service:m:443", "dns")
    theirs = Event(2.0, "failure", "llm_service:m:443", "dns", facts={"replica": "other"})
    journal.add([Entry(ours), Entry(theirs)])
    assert [entry.event for entry in journal.entries()] == [theirs, ours]
    assert journal.times("failure", 0.0) == [("llm_service:m:443", 1.0)]
