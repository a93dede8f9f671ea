"""A month in which nothing is wrong, through the whole control plane: `python -m tests.control.quiet_month`.

    [--days 30] [--seeds 1 2 3]

    calls drawn by the hour and the weekday --> tallies, breakers --+--> Healths --events--> Learner --+
    checks of which one in ten thousand is lost --------------------+                                  +--> Lookout,
    memory that is collected, caches, quotas, a disk that fills slowly ------> Foresight -------------+    Desk, senders
    deploys that change nothing, a restart a week

Everything between the counts and the receiver is what ships, run by its own loops on a virtual clock; calls are
counted rather than made. Then an outage: a pipeline that never tells of anything is quiet, too. A month takes minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from math import pi, sin
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from unittest.mock import Mock, patch

from tests.kit import virtual_clock
from understudy.policies.alerts import Notice
from understudy.policies.events import Event
from understudy.policies.forecast import Reading
from understudy.policies.objectives import DAY_S, HOUR_S, MINUTE_S
from understudy.policies.observe import RouteTally
from understudy.proxy.control import forecasts
from understudy.proxy.control.admin import OfSidecar
from understudy.proxy.control.alerting import Senders
from understudy.proxy.control.objectives import Overlooked
from understudy.proxy.control.wire import Family
from understudy.proxy.settings.alert import Alerts
from understudy.proxy.sidecar import Sidecar

BEGIN = 1_800_000_000.0
POLICIES = """
server: {access_log: false}
routes:
  - name: chat
    match: {prefix: /chat, strip: true}
    dialect: openai-chat
    tiers:
      - {kind: upstream, name: first, url: "http://chat-1.test"}
      - {kind: upstream, name: second, url: "http://chat-2.test"}
  - name: embeddings
    match: {prefix: /embeddings, strip: true}
    dialect: openai-embeddings
    space: s
    tiers:
      - {kind: upstream, name: first, url: "http://embed-1.test"}
      - {kind: upstream, name: second, url: "http://embed-2.test"}
  - name: docs
    match: {prefix: /docs, strip: true}
    dialect: qdrant
    tiers:
      - {kind: upstream, name: first, url: "http://docs-1.test"}
      - {kind: upstream, name: second, url: "http://docs-2.test"}
"""
PER_S = {"chat": 0.3, "embeddings": 0.7, "docs": 0.02}
"""Calls a second on average; the last is so seldom called that one failure is much of an hour."""
FELL_SHARE, ERROR_SHARE, LOST_SHARE, LATE_SHARE = 0.002, 3e-4, 2e-4, 0.005
"""Of calls: the second tier answers; it is a 5xx; nobody answers; it takes more than two seconds."""
ROW_SHARE = 2e-6
"""Of calls, after which three more of the same service fail: a hiccup of a second or two."""
CHECK_LOST_SHARE, CHECK_S, CHECK_AGAIN_S = 1e-4, 2.0, 0.25
TOOK_BUCKETS = (4, 5, 6, 6, 6, 7, 7, 8, 9)
"""Where in the histogram of seconds calls are counted; a late one in LATE_BUCKET."""
LATE_BUCKET = 11
DOUBT_S = 12.0
"""For so long after a failure the verdicts are looked at with each call; else once a minute, as nothing changes."""
RESTART_S = 7 * DAY_S
FORECAST_READ_S, FORECAST_LOOK_S = 30.0, 300.0
"""As often as a grid has a point, and thrice within the time that a warning is held: lines through points are most of
what a month costs."""
OUTAGE_S = 300.0


class Pager(Senders):
    """Keeps what it is told, and tells nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Notice] = []

    def tell(self, notices: Sequence[Notice], alerts: Alerts, now: float) -> None:
        del alerts, now
        self.heard += [notice for notice in notices if notice.is_news and notice.ends_at is None]


@dataclass
class Told:
    """What a month came to: what was told by (severity, alert), what happened by (family, kind), and what was counted;
    `paged_s` is how long the outage at its end had lasted when somebody was paged."""

    alerts: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    events: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    calls: Counter[str] = field(default_factory=Counter[str])
    paged_s: float | None = None

    @property
    def pages(self) -> int:
        return sum(count for (severity, _), count in self.alerts.items() if severity == "critical")


class Door:
    """No admin port."""

    async def start(self) -> None:
        """Nothing to open."""

    async def stop(self) -> None:
        """Nothing to close."""


class Played(OfSidecar):
    """A sidecar with the numbers of another process: memory that is collected every five hours, files, a quota."""

    def __init__(self, sidecar: Sidecar, month: Month) -> None:
        super().__init__(sidecar)
        self._month = month

    def families_now(self) -> list[Family]:
        found = [family for family in super().families_now() if not family[0].startswith("process_")]
        used = {reading.what: reading.used for reading in self.readings(self._month.wall())}
        played = {
            "process_resident_memory_bytes": used["process_memory"],
            "process_open_fds": used["fds"],
            "process_max_fds": 1024.0,
        }
        return [*found, *((name, "gauge", "", [(name, {}, value)]) for name, value in played.items())]

    def readings(self, wall: float) -> list[Reading]:
        month = self._month
        busy, age_s = month.busy(wall), wall - month.started_at
        tooth = (age_s / (5 * HOUR_S)) % 1.0
        hour_ends = wall - wall % HOUR_S + HOUR_S
        return [
            Reading("process_memory", "sidecar", 2e8 + 1e8 * tooth + 2e7 * busy, 0, f"{month.started_at}"),
            Reading("fds", "sidecar", 40 + 60 * busy + month.dice.gauss(0, 3), 1024, f"{month.started_at}"),
            Reading("pool", "chat/first", max(0.0, 12 * busy + month.dice.gauss(0, 2)), 100),
            Reading("cache", "chat", min(64e6, 2e3 * age_s), 64e6),
            Reading("index", "collections", 4e8 + 50 * (wall - BEGIN), 2e9),
            Reading("quota", "chat/first tokens", 3e5 * busy * (wall % HOUR_S) / HOUR_S, 1e6, "", hour_ends),
        ]


class Month:
    """Draws what happens, and has everything that looks at it look."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.dice = Random(seed)
        self.told = Told()
        self.pager = Pager()
        self.outage = False
        self.started_at = BEGIN
        self.sidecar: Sidecar
        self._seen: Played
        (folder / "policies").mkdir()
        (folder / "policies" / "p.yaml").write_text(POLICIES)
        self._loop = asyncio.get_running_loop()
        self._offset_s = BEGIN - self._loop.time()
        self._doubted_until = 0.0
        self._row = dict.fromkeys(PER_S, 0)

    def wall(self) -> float:
        return self._offset_s + self._loop.time()

    def busy(self, now: float) -> float:
        """How much there is to do, 1 on average over a day: little by night, and half at weekends."""
        day = 1.0 + 0.8 * sin(2 * pi * (now % DAY_S) / DAY_S)
        return day * (0.5 if int(now // DAY_S) % 7 in (2, 3) else 1.0)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """A process from its start to its end, with what the last one left in the state folder."""
        state = self.folder / "state"
        self.started_at = self.wall()
        sidecar = self.sidecar = Sidecar(self.folder / "policies", state, {}, clock=self._loop.time, wall=self.wall)
        sidecar.events.subscribe(self._happened)
        self._seen = Played(sidecar, self)
        overlooked = Overlooked(Door(), self._seen, state, self.pager, wall=self.wall)
        await overlooked.start()
        try:
            yield
        finally:
            await overlooked.stop()
            await sidecar.stop()

    def _happened(self, event: Event) -> None:
        self.told.events[event.family, event.kind] += 1

    # --- what happens ----------------------------------------------------------------------------------------------

    async def until(self, end: float) -> None:
        """Minute by minute."""
        while self.wall() < end:
            minute = self.wall()
            moments = [*self._calls(minute), *self._checks(minute)]
            for at, name, failed in sorted(moments):
                if failed:
                    self._doubted_until = at + DOUBT_S
                if at < self._doubted_until:
                    # as often as it ships, while there is something to be mistaken about
                    await asyncio.sleep(max(0.0, at - self.wall()))
                    self.sidecar.health.look()
                if name in PER_S:
                    self._call(name, failed)
                else:
                    self.sidecar.health.checked(name, "protocol", "no_answer" if failed else "")
            if self.dice.random() < 3 * MINUTE_S / DAY_S:
                assert self._seen.learner is not None
                self._seen.learner.note("a deploy that changes nothing")
            await asyncio.sleep(max(0.0, minute + MINUTE_S - self.wall()))
            self.sidecar.health.look()

    def _calls(self, minute: float) -> list[tuple[float, str, bool]]:
        drawn: list[tuple[float, str, bool]] = []
        for name, per_s in PER_S.items():
            rate = per_s * self.busy(minute)
            at = minute + self.dice.expovariate(rate)
            while at < minute + MINUTE_S:
                drawn.append((at, name, self._fails(name)))
                at += self.dice.expovariate(rate)
        return drawn

    def _fails(self, name: str) -> bool:
        if self.outage:
            return True
        if self._row[name]:
            self._row[name] -= 1
            return True
        if self.dice.random() < ROW_SHARE:
            self._row[name] = 3
        return self.dice.random() < FELL_SHARE

    def _checks(self, minute: float) -> list[tuple[float, str, bool]]:
        drawn: list[tuple[float, str, bool]] = []
        for name, component in self.sidecar.health.components.items():
            if not component.uses:
                continue
            drawn.append((minute, name, False))
            if self.dice.random() < CHECK_LOST_SHARE * MINUTE_S / CHECK_S:
                at = minute + self.dice.uniform(0.0, 50.0)
                drawn.append((at, name, True))
                while self.dice.random() < CHECK_LOST_SHARE:
                    at += CHECK_AGAIN_S
                    drawn.append((at, name, True))
                drawn += [(at + CHECK_AGAIN_S + CHECK_S * n, name, False) for n in range(4)]
        return drawn

    def _call(self, name: str, failed: bool) -> None:
        """Count a call as the stack does: at the first tier's breaker, and by who answered it."""
        parts = next(parts for parts in self.sidecar.routes if parts.name == name)
        first, second = (parts.tiers[tier].only.breaker for tier in ("first", "second"))
        assert first is not None
        assert second is not None
        now, luck = self._loop.time(), self.dice.random()
        self.told.calls[name] += 1
        by = "primary"
        if (ticket := first.admit(now)) is None or failed:
            by = "secondary"
            if ticket is not None:
                first.failed(now, ticket, luck)
            if (ticket := second.admit(now)) is not None and self.outage:
                second.failed(now, ticket, luck)
            elif ticket is not None:
                second.succeeded(now, ticket)
        else:
            first.succeeded(now, ticket)
        self._tally(parts.tally, by)

    def _tally(self, tally: RouteTally, by: str) -> None:
        if self.outage or self.dice.random() < LOST_SHARE:
            tally.unanswered["unanswered"] = tally.unanswered.get("unanswered", 0) + 1
            return
        key = (by, 5 if self.dice.random() < ERROR_SHARE else 2)
        tally.answers[key] = tally.answers.get(key, 0) + 1
        is_late = self.dice.random() < LATE_SHARE
        tally.late += is_late
        tally.seconds.counts[LATE_BUCKET if is_late else self.dice.choice(TOOK_BUCKETS)] += 1


async def month(folder: Path, seed: int, days: float) -> Told:
    """So many quiet days, and then an outage of everything."""
    one, end = Month(folder, seed), BEGIN + days * DAY_S
    while one.wall() < end:
        async with one.running():
            await one.until(min(end, one.wall() + RESTART_S))
            one.told.alerts.update(_named(one.pager.heard))
            one.pager.heard.clear()
            if one.wall() < end:
                continue
            one.outage, began = True, one.wall()
            await one.until(began + OUTAGE_S)
            pages = [each.starts_at for each in one.pager.heard if dict(each.alert.labels)["severity"] == "critical"]
            one.told.paged_s = min(pages) - began if pages else None
    return one.told


def _named(heard: Sequence[Notice]) -> list[tuple[str, str]]:
    labels = [dict(notice.alert.labels) for notice in heard]
    return [(each["severity"], each["alertname"]) for each in labels]


def simulated(seed: int, days: float) -> Told:
    """What such a month comes to."""
    beneath = 4e9, [Reading("disk", "state folder", 2e10, 5e10)]
    with (
        TemporaryDirectory() as name,
        patch.object(forecasts, "beneath", Mock(return_value=beneath)),
        patch.multiple(forecasts, READ_S=FORECAST_READ_S, LOOK_S=FORECAST_LOOK_S),
    ):
        return virtual_clock.run(month(Path(name), seed, days), io_grace_s=0, real_s_max=7200.0)


def main() -> None:
    """Print a line for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=float, default=30.0)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    asked = parser.parse_args()
    for seed in asked.seeds:
        told = simulated(seed, asked.days)
        alerts = ", ".join(f"{name} {count}x" for (_, name), count in sorted(told.alerts.items())) or "none"
        happened = ", ".join(f"{' '.join(each)} {count}x" for each, count in sorted(told.events.items()))
        print(
            f"seed {seed}: {asked.days:g} days, {told.calls.total()} calls: {told.pages} pages, alerts: {alerts};"
            f" then an outage: paged after {told.paged_s:g} s. Events: {happened}",
            flush=True,
        )


if __name__ == "__main__":
    main()
