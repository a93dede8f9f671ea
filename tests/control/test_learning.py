"""What a sidecar remembers and learns: over restarts, from several workers, and with a journal that fails."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.control.watched import BEGIN, LLM, Watched, settings_of
from understudy.policies.alerts import Alert
from understudy.policies.events import WHOLE, Event
from understudy.policies.objectives import Counts
from understudy.policies.risk import POSITIVES_MIN, STEP_S, WARN_RISK
from understudy.proxy.changes import Fact, change
from understudy.proxy.control.alerting import Senders
from understudy.proxy.control.entries import FILE
from understudy.proxy.control.journal import Journal
from understudy.proxy.control.learning import RISKS_FILE, WAITING_MAX, Learner
from understudy.proxy.control.objectives import Lookout
from understudy.proxy.control.wire import Family
from understudy.proxy.reports.risks import (
    NO_CHANGE,
    NOTHING_DONE,
    NOTHING_ILL,
    Learnt,
    journal_families,
    risk_told,
)
from understudy.proxy.settings.journal import Journal as Rules
from understudy.proxy.settings.settings import Settings, Split


class Learning:
    """A learner that runs, on a clock of the test's own."""

    def __init__(self, state: Path, watched: Watched | None = None) -> None:
        self.watched = watched or Watched()
        self.state = state
        self.learner = Learner(self.watched, state, wall=self.watched.wall)
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Learning:
        # one thread: what is asked of it last is done last, which is how `settle` knows
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        self._running = asyncio.create_task(self.learner.run())
        await self.settle()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._running is not None
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    async def settle(self) -> None:
        """Let what is in hand come to its end: threads are awaited, and nothing else happens meanwhile."""
        for _ in range(10):
            await asyncio.get_running_loop().run_in_executor(None, lambda: None)
            await asyncio.sleep(0)

    async def tell(self, *events: Event) -> None:
        for event in events:
            self.watched.events.publish(event)
        await self.settle()

    async def minute(self) -> None:
        self.watched.now += STEP_S
        await self.learner.look(self.watched.settings)


def failure(at: float, kind: str = "no_answer") -> Event:
    return Event(at, "failure", LLM, kind, "it does not answer", {"level": "live"})


def recovery(kind: str, by: str, rung: str) -> Event:
    return Event(BEGIN, "recovery", LLM, kind, f"well again: {by}", {"rung": rung, "failure": "no_answer"})


def kept(state: Path) -> Journal:
    journal = Journal(state / FILE)
    journal.open()
    return journal


async def test_a_failure_is_kept_with_what_was_measured_and_what_had_been_changed(tmp_path: Path):
    async with Learning(tmp_path) as learning:
        await learning.tell(change(BEGIN - 7200, WHOLE, "policies", "d0", "d1"))
        await learning.tell(change(BEGIN - 60, LLM, "server", "1", "2"))
        learning.watched.metrics.calls(60, failed=30)
        learning.watched.now += 10
        await learning.tell(failure(BEGIN + 10))
    (entry,) = kept(tmp_path).entries(["failure"])
    assert entry.changes == (f"70 s before: {LLM} server: 1 -> 2",)
    assert len(entry.numbers) >= 40
    assert entry.numbers["failed_per_s"] == pytest.approx(3.0)
    assert entry.numbers["asked_per_s"] == pytest.approx(9.0)


async def test_a_change_that_two_workers_tell_is_one(tmp_path: Path):
    async with Learning(tmp_path) as learning:
        for worker in range(2):
            await learning.tell(change(BEGIN + worker, WHOLE, "policies", "d1", "d2"))
        await learning.tell(change(BEGIN + 5, WHOLE, "policies", "d2", "d1"))
        assert [one.detail for one in learning.learner.changes] == ["policies: d1 -> d2", "policies: d2 -> d1"]
    assert len(kept(tmp_path).entries(["change"])) == 2


async def test_what_was_about_to_be_written_when_it_ends_is_written(tmp_path: Path):
    loop, disk = asyncio.get_running_loop(), threading.Event()

    def free_after(turns: int) -> None:
        _ = loop.call_soon(free_after, turns - 1) if turns else disk.set()

    async with Learning(tmp_path) as learning:
        busy = loop.run_in_executor(None, disk.wait)
        learning.watched.events.publish(change(BEGIN, LLM, "server", "1", "2"))
        for _ in range(10):
            await asyncio.sleep(0)
        free_after(20)
    await busy
    assert [entry.event.component for entry in kept(tmp_path).entries(["change"])] == [LLM]


async def test_what_was_changed_while_no_sidecar_ran_is_found_at_the_next_start(tmp_path: Path):
    watched = Watched()
    watched.facts = [Fact(WHOLE, "policies", "d1"), Fact(LLM, "server", "1")]
    async with Learning(tmp_path, watched) as learning:
        assert not learning.learner.changes
    later = Watched()
    later.now += 3600
    later.facts = [Fact(WHOLE, "policies", "d2"), Fact(LLM, "server", "1")]
    async with Learning(tmp_path, later) as learning:
        (found,) = learning.learner.changes
        assert (found.at, found.kind) == (BEGIN + 3600, "policies")
        assert found.detail == "policies: d1 -> d2, while no sidecar ran here"
    later, facts = Watched(), later.facts
    later.facts, later.now = facts, BEGIN + 7200
    async with Learning(tmp_path, later) as learning:
        assert len(learning.learner.changes) == 1


async def test_what_was_learnt_goes_on_in_the_next_process(tmp_path: Path):
    async with Learning(tmp_path) as learning:
        await learning.tell(change(BEGIN, LLM, "server", "1", "2"), recovery("recovered", "reset_pool", "reset_pool"))
        for _ in range(5):
            await learning.minute()
        await learning.tell(failure(learning.watched.now))
        assert learning.learner.risks[LLM].failures == 1
    again = Watched()
    again.now += 3600
    async with Learning(tmp_path, again) as learning:
        learner = learning.learner
        assert [one.detail for one in learner.changes] == ["server: 1 -> 2"]
        assert learner.record == {("no_answer", "reset_pool"): (1, 1)}
        assert learner.risks[LLM].failures == 1
        (suspect,) = learner.suspects([LLM], again.now)
        assert (suspect.failures_before, suspect.failures_after) == (0, 1)
        # an hour in which nobody watched is no hour of calm
        assert suspect.after_s == pytest.approx(5 * STEP_S)
        assert learner.failing == [LLM]


async def test_what_helped_here_is_counted_and_recommended_first(tmp_path: Path):
    async with Learning(tmp_path) as learning:
        await learning.tell(
            recovery("unhelped", "", "reset_pool"),
            recovery("recovered", "switch_endpoint", "switch_endpoint"),
            recovery("recovered", "by itself", "reset_pool"),
            recovery("climbing", "", "reset_pool"),
        )
        assert learning.learner.record == {
            ("no_answer", "reset_pool"): (1, 0),
            ("no_answer", "switch_endpoint"): (1, 1),
        }
        await learning.tell(failure(BEGIN))
        first, *_ = learning.learner.recommended(LLM, BEGIN)
        assert (first.action, first.tried, first.helped) == ("switch_endpoint", 1, 1)
    assert {(one.action, one.helped) for one in kept(tmp_path).tried()} == {("reset_pool", 0), ("switch_endpoint", 1)}


async def test_a_change_after_which_a_component_fails_all_the_time_is_accused_and_undoing_it_recommended(
    tmp_path: Path,
):
    async with Learning(tmp_path) as learning:
        watched = learning.watched
        watched.now += 2 * 86400
        await learning.tell(change(watched.now, WHOLE, "policies", "d1", "d2"))
        for _ in range(8):
            watched.now += 400
            await learning.tell(failure(watched.now))
        (suspect,) = learning.learner.suspects([LLM], watched.now)
        assert suspect.is_accused
        assert "undo_change" in [one.action for one in learning.learner.recommended(LLM, watched.now)]


async def test_what_stays_down_after_a_change_is_held_against_it_and_nothing_is_foretold_meanwhile(tmp_path: Path):
    async with Learning(tmp_path) as learning:
        watched, learner = learning.watched, learning.learner
        await learning.tell(change(watched.now, LLM, "server", "1", "2"), failure(watched.now + 1))
        await learning.tell(Event(watched.now + 1, "health", LLM, "unhealthy"))
        watched.now += 2 * 86400
        await learning.tell(change(watched.now, LLM, "server", "2", "3"), failure(watched.now + 1))
        for _ in range(60):
            await learning.minute()
        suspect, *_ = learner.suspects([LLM], watched.now)
        assert suspect.is_accused
        assert suspect.failures_after == pytest.approx(12, abs=1)
        assert learner.risks[LLM].latest is None
        await learning.tell(Event(watched.now, "health", LLM, "healthy"))
        for _ in range(6):
            await learning.minute()
        assert learner.risks[LLM].latest is not None


async def test_an_alert_carries_the_three_likeliest_changes_and_what_recovery_is_doing(tmp_path: Path):
    async with Learning(tmp_path) as learning:
        watched = learning.watched
        lookout = Lookout(watched, tmp_path, Senders(), wall=watched.wall)
        learnt = Learnt(learning.learner)
        lookout.beside.append(learnt)
        lookout.annotating.append(learnt.annotations)
        for n in range(5):
            watched.now += 3600
            await learning.tell(change(watched.now, LLM if n == 4 else WHOLE, "server", str(n), str(n + 1)))
        await learning.tell(failure(watched.now + 60), recovery("climbing", "", "reset_pool"))
        for _ in range(20):
            watched.now += 10
            watched.told["chat"] = watched.told.get("chat", Counts()).plus(Counts(100, 100, 100, 100, 100))
            await lookout.look(watched.now, watched.settings)
        (told,) = lookout.status()
    changes = told["changes"].split("; ")
    assert len(changes) == 3
    assert changes[0].startswith(f"1. {LLM} server: 4 -> 5, 3 min ago (")
    assert told["recovery"].startswith(f"{LLM}: ")


async def test_an_alert_says_so_where_nothing_was_changed(tmp_path: Path):
    async with Learning(tmp_path) as learning:
        told = Learnt(learning.learner).annotations(learning.watched.settings, "chat", BEGIN)
    assert told == {"changes": NO_CHANGE, "components": NOTHING_ILL, "recovery": NOTHING_DONE}


async def test_every_alert_says_who_answers_how_many_were_affected_what_is_ill_and_what_is_done_about_it(
    tmp_path: Path,
):
    split = Split(arm="small", share=0.05)
    plain = settings_of()
    settings = replace(plain, routes=tuple(replace(route, split=split) for route in plain.routes))
    async with Learning(tmp_path) as learning:
        watched = learning.watched
        lookout = Lookout(watched, tmp_path, Senders(), wall=watched.wall)
        learnt = Learnt(learning.learner)
        lookout.beside = [Full(), learnt]
        lookout.annotating.append(learnt.annotations)
        await learning.tell(change(BEGIN, LLM, "server", "1", "2"))
        await learning.tell(Event(BEGIN, "health", LLM, "unhealthy", "no_answer"), failure(BEGIN + 60))
        await learning.tell(recovery("climbing", "", "reset_pool"))
        for _ in range(20):
            watched.now += 10
            watched.told["chat"] = watched.told.get("chat", Counts()).plus(Counts(100, 0, 0, 0, 90))
            await lookout.look(watched.now, settings)
        told = {one["alertname"]: one for one in lookout.status()}
    assert set(told) == {"UnderstudyOnFallback", "UnderstudyFull"}
    for one in told.values():
        assert one["tier"] == "fallback"
        assert int(one["affected"]) > 1000
        assert one["components"] == f"{LLM} is unhealthy"
        assert one["changes"].startswith(f"1. {LLM} server: 1 -> 2")
        assert one["recovery"].startswith(f"{LLM}: ")
        assert one["runbook"]
    assert told["UnderstudyOnFallback"]["canary"] == "0.05 of the keys go to the arm small"
    assert "canary" not in told["UnderstudyFull"]


class Full:
    """Something beside that is about no route."""

    page = "full"

    async def run(self) -> None: ...

    def alerts(self, settings: Settings, now: float) -> list[Alert]:
        del settings, now
        return [Alert((("alertname", "UnderstudyFull"), ("severity", "warning")), {"runbook": "r.md"})]

    def families(self) -> list[Family]:
        return []

    def summary(self) -> dict[str, str]:
        return {}

    def told(self) -> dict[str, str]:
        return {}


async def test_a_risk_that_has_earned_trust_is_warned_of_and_never_pages(tmp_path: Path):
    async with Learning(tmp_path) as learning:
        watched, learner = learning.watched, learning.learner
        warned = []
        for episode in range(POSITIVES_MIN + 15):
            for minute in range(60):
                bad = max(0, minute - 49) * 15
                watched.metrics.calls(200 - bad, failed=bad)
                await learning.minute()
                alerts = Learnt(learner).alerts(watched.settings, watched.now)
                warned += [(episode, dict(alert.labels), alert) for alert in alerts]
            await learning.tell(failure(watched.now))
        assert {episode for episode, _, _ in warned} >= set(range(POSITIVES_MIN + 5, POSITIVES_MIN + 15))
        assert min(episode for episode, _, _ in warned) >= POSITIVES_MIN
        _, labels, alert = warned[-1]
        assert labels == {"alertname": "UnderstudyRisk", "component": LLM, "severity": "warning"}
        assert "more of its answers are failures (error_share)" in alert.annotations["description"]
        assert "of warnings came true" in alert.annotations["description"]
        assert alert.annotations["recommendations"]
        assert alert.annotations["changes"] == NO_CHANGE
        (component,) = [one for one in risk_told(learner, watched.now)["components"] if one["component"] == LLM]
        assert component["trust"] == "trusted"
        assert component["score"]["recall"] > 0.5
        assert Learnt(learner).alerts(settings_of(journal=Rules(warns=False)), watched.now) == []
        values = {name: samples for name, _, _, samples in journal_families(learner)}
        assert ("understudy_prediction_trusted", {"component": LLM}, 1.0) in values["understudy_prediction_trusted"]
        assert any(labels["bin"] == "0.9-1" for _, labels, _ in values["understudy_prediction_reliability"])
        assert values["understudy_journal_bytes"][0][2] > 0
    assert WARN_RISK == 0.7


async def test_without_a_journal_all_else_goes_on(tmp_path: Path):
    watched = Watched(settings_of(journal=Rules(enabled=False)))
    async with Learning(tmp_path, watched) as learning:
        await learning.tell(change(BEGIN, LLM, "server", "1", "2"), failure(BEGIN + 1))
        assert learning.learner.suspects([LLM], BEGIN + 2)
    assert not (tmp_path / FILE).exists()
    assert (tmp_path / RISKS_FILE).exists()


async def test_a_state_folder_that_can_not_be_used_is_said_and_is_no_reason_not_to_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "state").write_text("a file")
    async with Learning(tmp_path / "state") as learning:
        await learning.tell(failure(BEGIN))
        await learning.minute()
        assert learning.learner.failing == [LLM]
    assert "no journal is kept" in caplog.text


@pytest.mark.parametrize("broken", [b"{", b'{"a": {"failures": 1}}', b"[]", b'{"a": 3}'])
async def test_risks_that_can_not_be_read_are_learnt_anew(tmp_path: Path, broken: bytes):
    (tmp_path / RISKS_FILE).write_bytes(broken)
    async with Learning(tmp_path) as learning:
        await learning.minute()
        assert set(learning.learner.risks) == {LLM}


async def test_a_storm_of_events_is_bounded_and_what_is_lost_is_counted(tmp_path: Path):
    async with Learning(tmp_path) as learning:
        for n in range(WAITING_MAX + 50):
            learning.watched.events.publish(failure(BEGIN + n))
        assert learning.learner.dropped == 50
        await learning.settle()
    assert len(kept(tmp_path).entries(["failure"], count=10_000)) == WAITING_MAX


async def test_a_deploy_that_somebody_notes_is_a_change(tmp_path: Path):
    async with Learning(tmp_path) as learning:
        learning.learner.note("application 2.14 is out")
        await learning.settle()
        (noted,) = learning.learner.changes
    assert (noted.component, noted.kind, noted.detail) == (WHOLE, "deploy", "application 2.14 is out")
    assert kept(tmp_path).entries(["change"])[0].event.detail == "application 2.14 is out"
