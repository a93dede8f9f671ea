"""Foresee what will be full, and notice what is unusual: beside the calls, from what is counted anyway.

readings each READ_S ----> Forecasts --each LOOK_S--> outlooks --> warnings, for the lookout's desk
loads each STRETCH_S ----> Rhythms ----------------> flags and trends, for who looks
                             +-- both in the state folder, each SAVE_S: a restart forgets nothing
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from array import array
from collections.abc import Callable, Mapping
from math import nan
from pathlib import Path
from typing import Any, Protocol

import msgspec

from understudy.policies.alerts import Alert
from understudy.policies.events import WHOLE, Event
from understudy.policies.forecast import ADVICE, Forecasts, Kept, Outlook, Reading
from understudy.policies.observe import SECONDS
from understudy.policies.rhythm import (
    KEPT,
    KINDS,
    STRETCH_S,
    Kind,
    Oddity,
    Rhythm,
    Stretch,
    Trend,
    percentile,
    shown,
    trend_of,
)
from understudy.proxy.control.objectives import CAPACITY, CAPACITY_RUNBOOK
from understudy.proxy.control.resources import Loads, beneath, with_memory
from understudy.proxy.control.wire import Family
from understudy.proxy.durable import replace_file
from understudy.proxy.events import Events
from understudy.proxy.reports.forecasts import (
    amount,
    forecast_families,
    hours_text,
    is_warned,
    oddity_text,
    outlook_told,
    summary,
    trend_told,
)
from understudy.proxy.settings.settings import Settings

FILE = "forecasts.msgpack"
FILE_BYTES_MAX = 64 * 1024 * 1024
READ_S, LOOK_S, SAVE_S = 10.0, 60.0, 300.0
GONE_S = 600.0
"""What has not been read for so long is not there just now: a route that is gone, or a worker."""
ROUTES_MAX = 64
"""Routes whose rhythm is known: 17 KB a value, four values each."""

log = logging.getLogger("understudy.forecasts")


class Foreseen(Protocol):
    """What is watched: one sidecar, or all that a parent has."""

    @property
    def events(self) -> Events: ...
    def readings(self, wall: float) -> list[Reading]: ...
    def loads(self) -> Mapping[str, Loads]: ...


class KeptRhythm(msgspec.Struct):
    """A rhythm as it stands in the state folder: the number of its last stretch, and its ring as float32."""

    route: str
    kind: Kind
    at: int
    ring: bytes
    since: float = 0.0


class State(msgspec.Struct):
    """Everything that a restart must not forget."""

    forecasts: list[Kept] = []
    rhythms: list[KeptRhythm] = []


class Foresight:
    """Reads, looks, and has something to say to whoever asks. `below` tells what we stand on, as `beneath` does."""

    page = "forecasts"

    def __init__(
        self,
        seen: Foreseen,
        state: Path,
        *,
        wall: Callable[[], float] = time.time,
        below: Callable[[Path, float], tuple[float, list[Reading]]] | None = None,
    ) -> None:
        self._seen = seen
        self._below = below or beneath
        self._state = state
        self._path = state / FILE
        self._wall = wall
        self._forecasts = Forecasts()
        self._rhythms: dict[tuple[str, Kind], Rhythm] = {}
        self._loads: dict[str, Loads] = {}
        self._stretch = -1
        self._looked_at = self._saved_at = 0.0
        self._warned: set[tuple[str, str]] = set()
        self._flagged: set[tuple[str, Kind]] = set()
        self.outlooks: list[Outlook] = []
        self.oddities: list[Oddity] = []
        self.trends: list[Trend] = []

    async def run(self) -> None:
        """Until it is cancelled. What goes wrong here is logged, and never the end of it."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self.recall)
        self._saved_at = self._wall()
        try:
            while True:
                try:
                    await self.once(self._wall())
                except Exception:
                    log.exception("what is foreseen could not be looked at")
                await asyncio.sleep(READ_S)
        finally:
            self.save(self._encoded())

    async def once(self, now: float) -> None:
        """Read, and what else is due."""
        loop = asyncio.get_running_loop()
        readings = self._seen.readings(now)
        own_bytes = sum(reading.used for reading in readings if reading.what == "process_memory")
        memory_bytes, disk = await loop.run_in_executor(None, self._below, self._state, own_bytes)
        self._forecasts.add(now, [*with_memory(readings, memory_bytes), *disk])
        is_new = self._forecasts.series.keys() - {(one.what, one.name) for one in self.outlooks}
        if not 0 <= now - self._looked_at < (READ_S if is_new else LOOK_S):
            self._looked_at = now
            await self._look(now)
        stretch = int(now // STRETCH_S)
        if stretch != self._stretch:
            await self._end_stretch(stretch - 1 if self._stretch >= 0 else -1)
            self._stretch = stretch
        if now - self._saved_at >= SAVE_S:
            self._saved_at = now
            await loop.run_in_executor(None, self.save, self._encoded())

    async def _look(self, now: float) -> None:
        outlooks: list[Outlook] = []
        for series in list(self._forecasts.series.values()):
            if now - series.seen_at > GONE_S:
                continue
            outlooks.append(series.look(now))
            # a line through 120 points takes a millisecond or two, and calls are answered meanwhile
            await asyncio.sleep(0)
        self.outlooks = outlooks
        warned = {(one.what, one.name): one for one in outlooks if is_warned(one)}
        for key in warned.keys() - self._warned:
            self._publish(now, "capacity", summary(warned[key]), {"what": key[0], "name": key[1]})
        for what, name in self._warned - warned.keys():
            self._publish(now, "capacity_over", f"{ADVICE[what].words} ({name}) fills up no more", {"what": what})
        self._warned = set(warned)

    def _publish(self, now: float, kind: str, detail: str, facts: dict[str, str]) -> None:
        self._seen.events.publish(Event(now, "forecast", WHOLE, kind, detail, facts))

    # --- what is unusual -------------------------------------------------------------------------------------------

    async def _end_stretch(self, at: int) -> None:
        """Judge the stretch that has ended; -1 where none was seen from its beginning."""
        loads = dict(self._seen.loads())
        before, self._loads = self._loads, loads
        if at < 0:
            return
        for route in list(loads)[:ROUTES_MAX]:
            if route in before:
                self._judge(route, at, loads[route].less(before[route]))
                await asyncio.sleep(0)
        for route in {route for route, _ in self._rhythms} - loads.keys():
            for kind in KINDS:
                self._rhythms.pop((route, kind), None)
        now = (at + 1) * STRETCH_S
        self.oddities = [
            Oddity(route, kind, one.spreads, shown(kind, one.ring[one.at % KEPT]), shown(kind, one.usual), one.since)
            for (route, kind), one in self._rhythms.items()
            if one.since
        ]
        flagged: dict[tuple[str, Kind], Oddity] = {(one.route, one.kind): one for one in self.oddities}
        for key in flagged.keys() - self._flagged:
            self._publish(now, "anomaly", oddity_text(flagged[key]), {"route": key[0], "what": key[1]})
        self._flagged = set(flagged)
        found = [trend_of(*key, one) for key, one in self._rhythms.items() if key[1] != "calls"]
        self.trends = [trend for trend in found if trend is not None]

    def _judge(self, route: str, at: int, load: Loads) -> None:
        if load.calls < 0 or any(count < 0 for count in load.seconds):
            # whoever counted began anew: this stretch was not seen whole
            return
        quiet = not load.calls
        p50, p95 = (nan if quiet else percentile(SECONDS, load.seconds, share) for share in (0.5, 0.95))
        stretch = Stretch(load.calls, load.failed, p50, p95)
        if quiet and (route, "calls") not in self._rhythms:
            return
        for kind in KINDS:
            rhythm = self._rhythms.get((route, kind))
            if rhythm is None:
                rhythm = self._rhythms[route, kind] = Rhythm()
            # a lack of errors is no news, and nobody minds answers that come early
            rhythm.add(at, stretch.value(kind), stretch.chance(kind), upward_only=kind != "calls")

    # --- what others ask -------------------------------------------------------------------------------------------

    def alerts(self, settings: Settings, now: float) -> list[Alert]:
        """What will be full within a day: warnings, each for one thing."""
        return [_alert(settings, one, now) for one in self.outlooks if is_warned(one)]

    def families(self) -> list[Family]:
        """What `/metrics` says of it."""
        return forecast_families(self.outlooks, self.oddities)

    def told(self) -> dict[str, Any]:
        """Everything, for `GET /forecasts`."""
        return {
            "resources": [outlook_told(one) for one in self.outlooks],
            "trends": [trend_told(one) for one in self.trends],
            "anomalies": [{**one._asdict(), "text": oddity_text(one)} for one in self.oddities],
            "dropped": self._forecasts.dropped,
        }

    def summary(self) -> dict[str, list[str]]:
        """What is worth a line in `/status`."""
        return {
            "capacity": [summary(one) for one in self.outlooks if is_warned(one)],
            "anomalies": [oddity_text(one) for one in self.oddities],
        }

    # --- kept over a restart ---------------------------------------------------------------------------------------

    def recall(self) -> None:
        """Go on where the last process ended. What can't be read is no reason not to start."""
        try:
            if self._path.stat().st_size > FILE_BYTES_MAX:
                raise ValueError(f"more than {FILE_BYTES_MAX} bytes")
            state = msgspec.msgpack.decode(self._path.read_bytes(), type=State)
            rhythms: dict[tuple[str, Kind], Rhythm] = {}
            for one in state.rhythms[: ROUTES_MAX * len(KINDS)]:
                rhythms[one.route, one.kind] = _rhythm(one)
            self._forecasts.recall(state.forecasts)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as fault:
            log.warning("%s can't be read, forecasts begin anew: %s", self._path, fault)
            return
        self._rhythms.update(rhythms)
        kept = self._forecasts.series.items()
        self._warned = {key for key, one in kept if one.warned_since and ADVICE[key[0]].warns}
        self._flagged = {key for key, rhythm in rhythms.items() if rhythm.since}

    def _encoded(self) -> bytes:
        rhythms = [
            KeptRhythm(route, kind, one.at, one.ring.tobytes(), one.since)
            for (route, kind), one in self._rhythms.items()
        ]
        return msgspec.msgpack.encode(State(self._forecasts.kept(), rhythms))

    def save(self, encoded: bytes) -> None:
        """Write it down, whole or not at all."""
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, encoded)


def _rhythm(kept: KeptRhythm) -> Rhythm:
    """As it was kept. Raises ValueError for what can't be one."""
    rhythm = Rhythm()
    ring = array("f")
    ring.frombytes(kept.ring)
    if len(ring) != KEPT:
        raise ValueError(f"{len(ring)} stretches, not {KEPT}")
    rhythm.ring, rhythm.at, rhythm.since = ring, kept.at, kept.since
    return rhythm


def _alert(settings: Settings, one: Outlook, now: float) -> Alert:
    advice, alerts = ADVICE[one.what], settings.server.alerts
    labels = {**alerts.labels, "alertname": CAPACITY, "severity": "warning", "resource": one.what, "name": one.name}
    unit = advice.unit
    description = (
        f"{amount(one.used, unit)} of {amount(one.limit, unit)}. When it is full, {advice.when_full}."
        f" Over the last {hours_text(one.looked_s)} it grew by {amount(one.per_h, unit)} an hour, with 90 % confidence"
        f" between {amount(one.low_per_h, unit)} and {amount(one.high_per_h, unit)}."
    )
    annotations = {
        "summary": summary(one),
        "description": description,
        "actions": "; ".join(advice.actions),
        "runbook": alerts.runbook_url + CAPACITY_RUNBOOK,
        "policies": settings.digest,
        "for": hours_text(max(0.0, now - one.warned_since)),
    }
    return Alert(tuple(sorted(labels.items())), annotations)
