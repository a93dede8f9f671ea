"""The lookout beside the calls: what it says of their counts, whom it tells, and what it remembers over a restart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.kit.acts import answer
from tests.kit.fake_upstream import FakeUpstream
from tests.kit.weather import call_of
from understudy.policies.objectives import Counts, compared
from understudy.policies.observe import Histogram, RouteTally
from understudy.policies.service import Answer
from understudy.proxy.control.alerting import Senders
from understudy.proxy.control.objectives import FILE, Lookout, agreed, agreement_counted, counted, tallied
from understudy.proxy.control.wire import Family, Sample
from understudy.proxy.reports.prometheus_rules import rules_text
from understudy.proxy.settings.alert import Alerts, Objectives, Receiver
from understudy.proxy.settings.settings import Match, Route, Secret, Server, Settings, UpstreamTier
from understudy.proxy.settings.watch import Watch

BEGIN = 1_800_000_000.0


def settings_of(*names: str, alerts: Alerts | None = None) -> Settings:
    tier = UpstreamTier(name="model", url="http://127.0.0.1:1")
    routes = tuple(
        Route(name=name, match=Match(prefix="/" + name), dialect="openai-chat", tiers=[tier], objectives=Objectives())
        for name in names
    )
    return Settings(routes=routes, server=Server(alerts=alerts or Alerts()), digest="d1")


class Seen:
    """Routes whose counts a test says."""

    def __init__(self, settings: Settings) -> None:
        self.now = BEGIN
        self.told: dict[str, Counts] = {}
        self.agreed: dict[str, Counts] = {}
        self._settings = settings

    def counts(self) -> Mapping[str, Counts]:
        return self.told

    def agreement(self) -> Mapping[str, Counts]:
        return self.agreed

    async def settings_now(self) -> Settings:
        return self._settings

    def wall(self) -> float:
        return self.now


async def outage(lookout: Lookout, seen: Seen, settings: Settings, *, seconds: int = 180) -> None:
    """Ten calls a second of which nobody answers any."""
    for _ in range(seconds // 10):
        seen.now += 10
        seen.told["chat"] = seen.told.get("chat", Counts()).plus(Counts(100, 100, 100, 100, 100))
        await lookout.look(seen.now, settings)


async def test_an_outage_is_told_once_with_what_somebody_woken_by_it_wants_to_know(tmp_path: Path):
    settings = settings_of("chat", "docs", alerts=Alerts(labels={"cluster": "c1"}, runbook_url="https://wiki/"))
    seen = Seen(settings)
    lookout = Lookout(seen, tmp_path, Senders(), wall=seen.wall)
    await lookout.look(seen.now, settings)
    await outage(lookout, seen, settings)
    [told] = lookout.status()
    assert {
        key: told[key] for key in ("alertname", "route", "severity", "cluster", "tier", "policies", "affected")
    } == {
        "alertname": "UnderstudyUnanswered",
        "route": "chat",
        "severity": "critical",
        "cluster": "c1",
        "tier": "none",
        "policies": "d1",
        "affected": "1800",
    }
    assert told["runbook"] == "https://wiki/19-runbook-embedding-and-llm-down.md"
    assert told["summary"] == "route chat: 100.00% of calls in 1 h are calls that no tier answers"
    assert "0 answered by the first tier, 0 by another, 1800 by nobody" in told["description"]


async def test_calls_that_a_fallback_answers_wake_nobody_and_are_told_all_the_same(tmp_path: Path):
    settings = settings_of("chat")
    seen = Seen(settings)
    lookout = Lookout(seen, tmp_path, Senders(), wall=seen.wall)
    for minute in range(5):
        seen.told["chat"] = Counts(100 * minute, fallback=100 * minute)
        await lookout.look(BEGIN + 60 * minute, settings)
    [told] = lookout.status()
    assert (told["alertname"], told["severity"], told["tier"]) == ("UnderstudyOnFallback", "warning", "fallback")


async def test_a_receiver_hears_of_it_and_of_its_end(tmp_path: Path):
    async with FakeUpstream(answer(200)) as up:
        alerts = Alerts(receivers=[Receiver(name="pager", kind="webhook", url=Secret(up.url))])
        settings = settings_of("chat", alerts=alerts)
        seen, senders = Seen(settings), Senders()
        lookout = Lookout(seen, tmp_path, senders, wall=seen.wall)
        await outage(lookout, seen, settings)
        await asyncio.sleep(1)
        for _ in range(60):
            seen.now += 10
            seen.told["chat"] = seen.told["chat"].plus(Counts(100_000))
            await lookout.look(seen.now, settings)
        await asyncio.sleep(1)
        await senders.close()
        told = [
            (alert["labels"]["severity"], alert["status"])
            for heard in up.heard
            for alert in json.loads(heard.body)["alerts"]
        ]
        # while more is spent than three days allow, it stays a ticket
        assert told == [
            ("critical", "firing"),
            ("warning", "firing"),
            ("critical", "resolved"),
            ("warning", "resolved"),
        ]
        assert senders.results == {("pager", "sent"): 4}


async def test_it_runs_remembers_and_goes_on_where_the_last_process_ended(tmp_path: Path):
    settings = settings_of("chat")
    seen = Seen(settings)
    lookout = Lookout(seen, tmp_path, Senders(), wall=seen.wall)
    await outage(lookout, seen, settings)
    running = asyncio.create_task(lookout.run())
    await asyncio.sleep(1)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (tmp_path / FILE).exists()
    seen.told = {}
    again = Lookout(seen, tmp_path, Senders(), wall=seen.wall)
    again.recall()
    assert [one["alertname"] for one in again.status()] == ["UnderstudyUnanswered"]
    await again.look(seen.now + 10, settings)
    assert [one["alertname"] for one in again.status()] == ["UnderstudyUnanswered"]
    left = {labels["objective"]: value for _, labels, value in again.families()[0][3]}
    assert left["availability"] < 0


@pytest.mark.parametrize(
    "broken", [b"", b"{", b'{"courses": {"chat": {"times": [1], "points": [], "counts": [1]}}}', b"\xff"]
)
async def test_what_can_not_be_read_is_no_reason_not_to_start(tmp_path: Path, broken: bytes):
    (tmp_path / FILE).write_bytes(broken)
    settings = settings_of("chat")
    seen = Seen(settings)
    lookout = Lookout(seen, tmp_path, Senders(), wall=seen.wall)
    lookout.recall()
    await lookout.look(seen.now, settings)
    assert lookout.status() == []


async def test_a_route_that_is_gone_is_forgotten(tmp_path: Path):
    seen = Seen(settings_of("chat"))
    lookout = Lookout(seen, tmp_path, Senders(), wall=seen.wall)
    await outage(lookout, seen, settings_of("chat"))
    await lookout.look(seen.now + 1, settings_of("other"))
    assert lookout.status() == []
    assert {labels["route"] for _, labels, _ in lookout.families()[0][3]} == {"other"}


def test_one_process_and_the_sum_of_several_count_alike():
    tally = RouteTally()
    tally.answers = {("primary", 2): 50, ("primary", 5): 3, ("secondary", 2): 7, ("cache", 2): 9, ("", 4): 2}
    tally.unanswered = {"failed": 4, "refused": 1}
    tally.late = 6
    requests = [
        ("understudy_requests_total", {"route": "r", "tier": tier, "outcome": f"{hundreds}xx"}, float(count))
        for (tier, hundreds), count in tally.answers.items()
    ]
    unanswered = [
        ("understudy_unanswered_total", {"route": "r", "error": error}, float(count))
        for error, count in tally.unanswered.items()
    ]
    families: list[Family] = [
        ("understudy_requests", "counter", "", requests),
        ("understudy_unanswered", "counter", "", unanswered),
        ("understudy_late", "counter", "", [("understudy_late_total", {"route": "r"}, 6.0)]),
    ]
    assert counted(families) == {"r": tallied(tally)}
    assert tallied(tally) == Counts(76, 5, 8, 11, 12)


def test_an_answer_counts_as_late_by_its_routes_own_objective():

    tally = RouteTally()
    tally.late_s = 2.0
    for took_s in (0.1, 1.999, 2.0, 2.001, 60.0):
        tally.answered(call_of("generate", "x"), Answer(200, [], tier="primary"), took_s)
    assert tally.late == 2


# --- what searches find --------------------------------------------------------------------------------------------


def watched_settings() -> Settings:
    tier = UpstreamTier(name="db", url="http://127.0.0.1:1")
    match = Match(prefix="/collections")
    route = Route(name="docs", match=match, dialect="qdrant", tiers=[tier], objectives=Objectives(), watch=Watch())
    return Settings(routes=(route,), server=Server(alerts=Alerts()), digest="d1")


@pytest.mark.parametrize(("overlap", "severity"), [(0.95, ""), (0.86, ""), (0.8, "warning"), (0.02, "critical")])
async def test_searches_that_find_too_little_of_what_the_copy_finds_are_told(
    tmp_path: Path, overlap: float, severity: str
):
    settings = watched_settings()
    seen = Seen(settings)
    lookout = Lookout(seen, tmp_path, Senders(), wall=seen.wall)
    for minute in range(70):
        seen.agreed["docs"] = compared(20 * minute, 20 * minute * overlap)
        await lookout.look(BEGIN + 60 * minute, settings)
    told = [(one["alertname"], one["severity"]) for one in lookout.status()]
    assert told == ([("UnderstudyRetrieval", severity)] if severity else [])
    if severity:
        [one] = lookout.status()
        assert one["runbook"] == "20-runbook-vector-database-down.md"
        assert f"of what the local copy finds, {1 - overlap:.0%} is not found" in one["summary"]
    left = {labels["objective"]: value for _, labels, value in lookout.families()[0][3]}
    assert (left["retrieval"] < 0) == (overlap < 0.85)
    again = Lookout(seen, tmp_path, Senders(), wall=seen.wall)
    lookout.save(lookout._encoded())  # pyright: ignore[reportPrivateUsage]
    again.recall()
    await again.look(BEGIN + 60 * 70, settings)
    assert [(one["alertname"], one["severity"]) for one in again.status()] == told


def test_what_workers_have_compared_is_counted_as_in_one_process():
    overlap = Histogram((0.5, 1.0))
    for each in (1.0, 0.9, 0.5, 0.0):
        overlap.add(each)
    name = "understudy_watch_agreement"

    def samples(measure: str, factor: float) -> list[Sample]:
        labels = {"route": "docs", "measure": measure}
        return [(f"{name}_count", labels, 4.0), (f"{name}_sum", labels, overlap.sum * factor)]

    families: list[Family] = [(name, "histogram", "", [*samples("overlap", 1.0), *samples("rbo", 0.1)])]
    assert agreement_counted(families) == {"docs": agreed(overlap)}
    assert agreed(overlap) == Counts(4, errors=1)


def test_rules_for_prometheus_have_the_objective_only_where_searches_are_compared():
    text = rules_text(watched_settings())
    assert "UnderstudyRetrieval" in text
    assert 'understudy_watch_agreement_sum{route="docs",measure="overlap"}[1h]' in text
    assert "UnderstudyRetrieval" not in rules_text(settings_of("chat"))
