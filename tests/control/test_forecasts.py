"""What is foreseen, as the sidecar tells it: alerts that are warnings, pages, metrics, and what a restart remembers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.control.test_objectives import settings_of
from tests.control.watched import half_full
from understudy.policies.events import Event
from understudy.policies.forecast import ADVICE, DAY_S, HOUR_S, Reading
from understudy.policies.observe import SECONDS
from understudy.policies.quota import Allowance
from understudy.proxy.commands.sidecar import print_tables
from understudy.proxy.control.alerting import Senders
from understudy.proxy.control.forecasts import FILE, Foresight
from understudy.proxy.control.objectives import Lookout
from understudy.proxy.control.resources import (
    Loads,
    beneath,
    loads_of,
    memory_limit,
    process_readings,
    quota_readings,
    together,
    with_memory,
)
from understudy.proxy.control.wire import Family
from understudy.proxy.events import Events
from understudy.proxy.reports.forecasts import FORECAST_METRICS, forecast_text, resource_rows
from understudy.proxy.reports.metrics import METRICS
from understudy.proxy.settings.alert import Alerts

BEGIN = 1_800_000_000.0 - 1_800_000_000.0 % 300
GIB = 2.0**30


class Seen:
    """Readings and loads that a test says."""

    def __init__(self) -> None:
        self.events = Events()
        self.said: list[Reading] = []
        self.counted: dict[str, Loads] = {}

    def readings(self, wall: float) -> list[Reading]:
        return self.said

    def loads(self) -> Mapping[str, Loads]:
        return self.counted

    @property
    def told(self) -> list[Event]:
        return list(self.events.recent)


async def leaking(foresight: Foresight, seen: Seen, hours: float, *, after_s: float = 0.0) -> float:
    """A pool of 1000 of which three more are kept each minute, from the fourth hour on; the last moment."""
    now = BEGIN
    for step in range(int(hours * 120)):
        now = BEGIN + after_s + step * 30
        seen.said = [Reading("pool", "chat/model", 100 + 1.5 * max(0, step - 480), 1000)]
        await foresight.once(now)
    return now


async def test_what_will_be_full_within_a_day_is_a_warning_with_what_to_do_about_it(tmp_path: Path):
    seen = Seen()
    foresight = Foresight(seen, tmp_path, below=half_full)
    now = await leaking(foresight, seen, 5)
    settings = settings_of("chat", alerts=Alerts(labels={"cluster": "c1"}, runbook_url="https://wiki/"))
    [alert] = [one for one in foresight.alerts(settings, now) if dict(one.labels)["resource"] == "pool"]
    assert dict(alert.labels) == {
        "alertname": "UnderstudyCapacity",
        "severity": "warning",
        "resource": "pool",
        "name": "chat/model",
        "cluster": "c1",
    }
    told = alert.annotations
    assert told["runbook"] == "https://wiki/25-runbook-network-and-resources.md"
    assert ADVICE["pool"].actions[0] in told["actions"]
    assert "connections to an endpoint (chat/model): 28% of 1,000 connections, full in 4.0 h" in told["summary"]
    assert "When it is full, calls wait" in told["description"]
    [event] = [event for event in seen.told if event.facts.get("what") == "pool"]
    assert (event.family, event.kind, event.component) == ("forecast", "capacity", "sidecar:")


async def test_a_warning_is_told_by_the_desk_and_wakes_nobody(tmp_path: Path):
    seen, settings = Seen(), settings_of("chat")

    class Counted:
        def counts(self) -> dict[str, object]:
            return {}

        agreement = counts

    foresight = Foresight(seen, tmp_path, below=half_full)
    now = await leaking(foresight, seen, 5)
    lookout = Lookout(Counted(), tmp_path, Senders())  # pyright: ignore[reportArgumentType]
    lookout.beside = [foresight]
    await lookout.look(now, settings)
    firing = [dict(alert.labels) for alert in lookout.desk.firing]
    assert {labels["severity"] for labels in firing} == {"warning"}
    assert "pool" in {labels["resource"] for labels in firing}
    names = {family[0] for family in lookout.families()}
    assert set(FORECAST_METRICS) <= names
    assert set(FORECAST_METRICS) <= set(METRICS)
    fired = next(family for family in lookout.families() if family[0] == "understudy_alerts_firing")
    keys = [tuple(labels.items()) for _, labels, _ in fired[3]]
    assert len(keys) == len(set(keys))
    assert lookout.told("forecasts") == foresight.told()
    assert lookout.told("nothing") is None
    assert any("chat/model" in line for line in lookout.status_beside()["forecasts"]["capacity"])


async def test_what_does_no_harm_when_full_is_shown_and_not_warned_of(tmp_path: Path):
    seen = Seen()
    foresight = Foresight(seen, tmp_path, below=half_full)
    for step in range(300):
        seen.said = [Reading("cache", "chat", min(100, step), 100)]
        await foresight.once(BEGIN + 30 * step)
    assert not [one for one in foresight.alerts(settings_of("chat"), BEGIN) if dict(one.labels)["resource"] == "cache"]
    [shown] = [one for one in foresight.told()["resources"] if one["what"] == "cache"]
    assert (shown["share"], shown["warned"], shown["actions"]) == (1.0, False, [])


async def test_a_restart_remembers_and_tells_nothing_twice(tmp_path: Path):
    seen = Seen()
    foresight = Foresight(seen, tmp_path, below=half_full)
    now = await leaking(foresight, seen, 5)
    assert (tmp_path / FILE).exists()
    foresight.save(foresight._encoded())  # pyright: ignore[reportPrivateUsage]
    again = Foresight(seen, tmp_path, below=half_full)
    again.recall()
    before = len(seen.told)
    await again.once(now + 30)
    assert [one["name"] for one in again.told()["resources"] if one["warned"]] == ["chat/model"]
    assert len(seen.told) == before


@pytest.mark.parametrize("broken", [b"", b"\xff", b"\x81\xa9forecasts\x91\x91\x01", b"{}"])
async def test_what_can_not_be_read_is_no_reason_not_to_start(tmp_path: Path, broken: bytes):
    (tmp_path / FILE).write_bytes(broken)
    foresight = Foresight(Seen(), tmp_path, below=half_full)
    foresight.recall()
    await foresight.once(BEGIN)
    assert foresight.told()["trends"] == []


def load(calls: int, failed: int = 0, *, bucket: int = 7) -> Loads:
    counts = [0] * (len(SECONDS) + 1)
    counts[bucket] = calls
    return Loads(calls, failed, tuple(counts))


async def test_calls_that_stop_at_an_hour_when_there_always_are_some_are_unusual(tmp_path: Path):
    seen = Seen()
    foresight = Foresight(seen, tmp_path, below=half_full)
    end_stretch = foresight._end_stretch  # pyright: ignore[reportPrivateUsage]
    judge = foresight._judge  # pyright: ignore[reportPrivateUsage]
    calls, first = 0, int(BEGIN // 300)
    for stretch in range(16 * 288):
        more = 200 + stretch * 7 % 13
        calls += more
        if stretch < 16 * 288 - 3:
            judge("chat", first + stretch, load(more, 0))
            continue
        seen.counted = {"chat": load(calls, 0)}
        await end_stretch(first + stretch)
    assert foresight.oddities == []
    assert {(one.kind, one.direction) for one in foresight.trends} == {
        ("errors", "steady"),
        ("p50", "steady"),
        ("p95", "steady"),
    }
    for stretch in range(16 * 288, 16 * 288 + 4):
        await end_stretch(first + stretch)
    [oddity] = foresight.oddities
    assert (oddity.route, oddity.kind) == ("chat", "calls")
    assert "chat: calls 0 in 5 min, usually 20" in foresight.summary()["anomalies"][0]
    assert [event.kind for event in seen.told if event.kind == "anomaly"] == ["anomaly"]
    assert ("understudy_anomaly", {"route": "chat", "what": "calls"}, oddity.spreads) in foresight.families()[3][3]
    foresight.save(foresight._encoded())  # pyright: ignore[reportPrivateUsage]
    again = Foresight(seen, tmp_path, below=half_full)
    again.recall()
    assert again._flagged == {("chat", "calls")}  # pyright: ignore[reportPrivateUsage]
    # nobody is told by an alert: it is for who looks
    assert not [one for one in foresight.alerts(settings_of("chat"), BEGIN) if "chat" in dict(one.labels)["name"]]


async def test_a_worker_that_began_anew_is_no_stretch_without_calls(tmp_path: Path):
    seen = Seen()
    foresight = Foresight(seen, tmp_path, below=half_full)
    for stretch, counted in enumerate((1000, 2000, 10, 20)):
        seen.counted = {"chat": load(counted)}
        await foresight.once(BEGIN + 300 * stretch)
    ring = foresight._rhythms["chat", "calls"].ring  # pyright: ignore[reportPrivateUsage]
    assert sorted(round((value / 2) ** 2) for value in ring if value == value) == [10, 1000]


def test_the_table_has_what_is_warned_of_first(capsys: pytest.CaptureFixture[str]):
    def row(name: str, *, warned: bool, full_s: float | None, share: float = 0.5) -> dict[str, object]:
        actions = ["do this"] if warned else []
        spans = {"full_s": full_s, "soonest_s": full_s, "latest_s": None, "looked_s": 1800.0}
        return {
            "what": "pool",
            "name": name,
            "limit": 100.0,
            "unit": "connections",
            "per_h": 2.0,
            "share": share,
            "warned": warned,
            "actions": actions,
            **spans,
        }

    calm = [row("c", warned=False, full_s=None), row("b", warned=False, full_s=9e4)]
    resources = [*calm, row("a", warned=True, full_s=5)]
    trend = {"route": "chat", "kind": "p95", "now": 0.2, "low_per_h": 0.01, "high_per_h": 0.02, "direction": "rising"}
    told = {"resources": resources, "trends": [trend], "anomalies": [{"text": "chat: calls 0"}]}
    assert [each[1] for each in resource_rows(told)] == ["a", "b", "c"]
    print_tables(told)
    shown = capsys.readouterr().out
    assert "do this" in shown
    assert "unusual: chat: calls 0" in shown
    assert "rising" in shown
    assert forecast_text({"capacity": ["x"], "anomalies": ["y"]}) == ["FILLS UP  x", "unusual   y"]


# --- readings ------------------------------------------------------------------------------------------------------


def test_what_several_workers_have_adds_up_and_descriptors_are_each_ones_own():
    def worker(number: int) -> list[Reading]:
        return [
            Reading("process_memory", "sidecar", 100 * number, 0, f"p{number}"),
            Reading("fds", "sidecar", 10 * number, 1024, f"p{number}"),
            Reading("pool", "chat/model", number, 256),
            Reading("index", "collections", 50 + number, 1000),
            Reading("quota", "chat/model requests", 5 * number, 100),
        ]

    readings = with_memory(together({"worker 0": worker(1), "worker 1": worker(2)}), 1000)
    found = {reading.key: (reading.used, reading.limit) for reading in readings}
    assert found == {
        ("memory", "sidecar"): (300, 1000),
        ("process_memory", "worker 0"): (100, 800),
        ("process_memory", "worker 1"): (200, 900),
        ("fds", "worker 0"): (10, 1024),
        ("fds", "worker 1"): (20, 1024),
        ("pool", "chat/model"): (3, 512),
        ("index", "collections"): (52, 1000),
        ("quota", "chat/model requests"): (10, 100),
    }
    alone = with_memory([Reading("process_memory", "sidecar", 100, 0, "p")], 1000)
    assert alone == [Reading("memory", "sidecar", 100, 1000, "p")]
    assert with_memory([Reading("process_memory", "sidecar", 100, 0, "p")], 0) == []


def test_this_process_has_memory_and_descriptors_and_the_state_folder_a_disk(tmp_path: Path):
    readings = {reading.what: reading for reading in process_readings("sidecar", "me")}
    assert readings["process_memory"].used > 2**20
    with (tmp_path / "held").open("w"):
        after = {reading.what: reading for reading in process_readings("sidecar", "me")}
    assert after["fds"].used == readings["fds"].used + 1
    limit, disk = beneath(tmp_path / "not" / "yet", readings["process_memory"].used)
    assert limit > readings["process_memory"].used
    stat = os.statvfs(tmp_path)
    assert disk[0].limit - disk[0].used == pytest.approx(stat.f_bavail * stat.f_frsize, rel=0.05)


def fake_machine(folder: Path, lines: Mapping[str, str]) -> tuple[Path, Path]:
    for name, text in lines.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "proc", folder / "cgroup"


@pytest.mark.parametrize(
    ("lines", "limit"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "cgroup/a/memory.max": "500\n", "cgroup/a/b/memory.max": "max\n"}, 500),
        ({"proc/self/cgroup": "0::/\n", "cgroup/memory.max": "700\n"}, 700),
        (
            {"proc/self/cgroup": "3:cpu:/x\n5:memory:/x\n", "cgroup/memory/x/memory.limit_in_bytes": "600\n"},
            600,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/\n",
                "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    2 kB\n",
            },
            2048 + 100,
        ),
        ({"proc/self/cgroup": "nonsense\n", "proc/meminfo": "MemAvailable: x\n"}, 0),
        ({}, 0),
    ],
)
def test_memory_ends_where_the_container_says_or_else_the_machine(
    tmp_path: Path, lines: Mapping[str, str], limit: float
):
    proc, cgroups = fake_machine(tmp_path, lines)
    assert memory_limit(100, proc=proc, cgroups=cgroups) == limit


def test_a_quota_of_a_minute_is_over_before_anything_can_be_foreseen_of_it():
    said = [
        Allowance("requests", 40, DAY_S, 100, refills=True),
        Allowance("", 900, 6 * HOUR_S, 1000, refills=False),
        Allowance("tokens", 5, 60, 100, refills=True),
        Allowance("unlimited", 5, DAY_S, 0, refills=True),
    ]
    assert quota_readings("chat/model", said, BEGIN) == [
        Reading("quota", "chat/model requests", 60, 100),
        Reading("quota", "chat/model", 100, 1000, "", BEGIN + 6 * HOUR_S),
    ]


def test_loads_of_workers_are_those_of_one_process():
    requests = [
        ("understudy_requests_total", {"route": "r", "tier": "primary", "outcome": "2xx"}, 90.0),
        ("understudy_requests_total", {"route": "r", "tier": "primary", "outcome": "5xx"}, 6.0),
    ]
    buckets = [
        ("understudy_request_seconds_bucket", {"route": "r", "le": "0.1"}, 40.0),
        ("understudy_request_seconds_bucket", {"route": "r", "le": "0.25"}, 90.0),
        ("understudy_request_seconds_bucket", {"route": "r", "le": "+Inf"}, 96.0),
        ("understudy_request_seconds_sum", {"route": "r"}, 12.0),
    ]
    families: list[Family] = [
        ("understudy_requests", "counter", "", requests),
        ("understudy_unanswered", "counter", "", [("understudy_unanswered_total", {"route": "r", "error": "x"}, 4.0)]),
        ("understudy_request_seconds", "histogram", "", buckets),
    ]
    found = loads_of(families)["r"]
    assert (found.calls, found.failed) == (100, 10)
    assert sum(found.seconds) == 96
