"""Lookout what becomes of calls, and have it told when an objective is missed.

Beside the calls, never on their path: what is looked at is counted anyway.

    counts by route --each look_s--> Course --judged--> Alerts --Desk--> notices --> Senders
                                        |                 |
                                        +-- state folder, each minute: a restart forgets nothing
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from understudy.policies.alerts import Alert, Desk, Notice
from understudy.policies.events import WHOLE, Event
from understudy.policies.forecast import Reading
from understudy.policies.objectives import (
    DAY_S,
    HOUR_S,
    RETRIEVAL,
    Counts,
    Course,
    Finding,
    Objective,
    Severity,
    budget_left,
    compared,
    judged,
    objectives_of,
)
from understudy.policies.observe import Histogram, RouteTally
from understudy.proxy.changes import Fact
from understudy.proxy.control.alerting import Senders
from understudy.proxy.control.hinting import Opening
from understudy.proxy.control.resources import Loads
from understudy.proxy.control.wire import Family
from understudy.proxy.dialects import KINDS
from understudy.proxy.durable import replace_file
from understudy.proxy.events import Events
from understudy.proxy.reports.metrics import METRICS
from understudy.proxy.settings.alert import Objectives
from understudy.proxy.settings.settings import Route, Settings

if TYPE_CHECKING:
    from understudy.proxy.control.learning import Learner
    from understudy.proxy.reports.risks import Learnt

FILE = "objectives.json"
SAVE_S = 60.0
ROUTES_MAX = 1024
LATELY_S = 300.0
SLICE = 32
"""Routes that are looked at in one go: a millisecond."""
FIRING = ("alertname", "route", "severity")
FALLBACK_RANKS = ("secondary", "tertiary")
RUNBOOKS = {
    "embed": "19-runbook-embedding-and-llm-down.md",
    "generate": "19-runbook-embedding-and-llm-down.md",
    "retrieve": "20-runbook-vector-database-down.md",
}
RUNBOOK = "21-runbook-everything-down.md"
CAPACITY = "UnderstudyCapacity"
CAPACITY_RUNBOOK = "25-runbook-network-and-resources.md"

log = logging.getLogger("understudy.objectives")


NAMES = {
    "availability": ("UnderstudyUnanswered", "calls that no tier answers"),
    "errors": ("UnderstudyErrors", "calls answered with a 5xx"),
    "latency": ("UnderstudyLate", "calls answered too late"),
    "primary": ("UnderstudyOnFallback", "calls that the first tier does not answer"),
    RETRIEVAL: ("UnderstudyRetrieval", "searches that do not find what the local copy finds"),
}
"""Objective -> its alert's name, and what is wrong in words."""


class Kept(msgspec.Struct):
    """A course as it stands in the state folder."""

    times: list[float]
    points: list[list[int]]
    counts: list[int]


class KeptAlert(msgspec.Struct):
    """An alert that fired, as it stands in the state folder."""

    labels: dict[str, str]
    annotations: dict[str, str]
    starts_at: float


class State(msgspec.Struct):
    """Everything that a restart must not forget."""

    courses: dict[str, Kept] = {}
    alerts: list[KeptAlert] = []


class Seen(Protocol):
    """What is watched: one sidecar, or all that a parent has."""

    def counts(self) -> Mapping[str, Counts]: ...
    def agreement(self) -> Mapping[str, Counts]: ...
    async def settings_now(self) -> Settings: ...


Annotate = Callable[[Settings, str, float], Mapping[str, str]]
"""What else belongs to an alert about a route, by the route's name and the time."""


class Beside(Protocol):
    """What is watched beside the objectives, and has alerts, metrics and a page of its own."""

    @property
    def page(self) -> str: ...
    async def run(self) -> None: ...
    def alerts(self, settings: Settings, now: float) -> Sequence[Alert]: ...
    def families(self) -> list[Family]: ...
    def summary(self) -> dict[str, Any]: ...
    def told(self) -> dict[str, Any]: ...


class Lookout:
    """Looks at a route's counts now and then, and tells the Senders."""

    def __init__(self, seen: Seen, state: Path, senders: Senders, *, wall: Callable[[], float] = time.time) -> None:
        self._seen = seen
        self._path = state / FILE
        self._senders = senders
        self._wall = wall
        self._courses: dict[str, Course] = {}
        self.desk = Desk()
        self.beside: list[Beside] = []
        self.annotating: list[Annotate] = []
        self.learner: Learner | None = None
        self.listeners: list[Callable[[Notice], None]] = []
        self._left: dict[tuple[str, str], float] = {}
        self._saved_at = 0.0

    async def run(self) -> None:
        """Until it is cancelled. What goes wrong here is logged, and never the end of it."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self.recall)
        try:
            while True:
                pause_s = await self._once()
                await asyncio.sleep(pause_s)
        finally:
            self.save(self._encoded())

    async def _once(self) -> float:
        """Look, tell, and save now and then; how long to wait until the next time, in seconds."""
        settings = await self._seen.settings_now()
        try:
            await self.look(self._wall(), settings)
            if self._wall() - self._saved_at >= SAVE_S:
                self._saved_at = self._wall()
                await asyncio.get_running_loop().run_in_executor(None, self.save, self._encoded())
        except Exception:
            log.exception("objectives could not be looked at")
        return settings.server.alerts.look_s

    async def look(self, now: float, settings: Settings) -> None:
        """Count, judge, and hand over what is to be told; some routes at a time, for calls are answered meanwhile."""
        counts, agreement = self._seen.counts(), self._seen.agreement()
        left: dict[tuple[str, str], float] = {}
        wrong: list[Alert] = []
        for n, route in enumerate(settings.routes[:ROUTES_MAX]):
            if n % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            budgets = budgets_of(route.objectives)
            promised = [one for one in objectives_of(budgets) if one.name != RETRIEVAL]
            wrong += self._look_at(now, settings, route, route.name, promised, counts.get(route.name, Counts()), left)
            if is_compared(route):
                promised = objectives_of({RETRIEVAL: budgets[RETRIEVAL]})
                name = agreement_of(route.name)
                wrong += self._look_at(now, settings, route, name, promised, agreement.get(route.name, Counts()), left)
        self._left = left
        for beside in self.beside:
            wrong += [self._completed(each, settings, counts, now) for each in beside.alerts(settings, now)]
        names = {name for route in settings.routes for name in (route.name, agreement_of(route.name))}
        for name in self._courses.keys() - names:
            del self._courses[name]
        notices = self.desk.look(now, wrong)
        for notice in notices:
            for listener in self.listeners if notice.is_news else ():
                listener(notice)
        self._senders.tell(notices, settings.server.alerts, now)

    def _told(self, settings: Settings, route: Route, finding: Finding, course: Course, now: float) -> Alert:
        made = _disagreement if finding.objective == RETRIEVAL else _alert
        alert = made(settings, route, finding, course, now)
        more = [each(settings, route.name, now) for each in self.annotating]
        return alert._replace(
            annotations={name: text for each in (alert.annotations, *more) for name, text in each.items()}
        )

    def _completed(self, alert: Alert, settings: Settings, counts: Mapping[str, Counts], now: float) -> Alert:
        """With what every alert says: who answers now, how many calls were affected, and what belongs to it."""
        route = dict(alert.labels).get("route", "")
        courses = [course for name, course in self._courses.items() if name in counts and route in ("", name)]
        lately = [course.within(now, LATELY_S) for course in courses]
        told = {
            "tier": _tier_in_use(_sum(lately)),
            "affected": str(sum(each.errors + each.fallback - each.unanswered for each in lately)),
        }
        for each in self.annotating:
            told |= each(settings, route, now)
        return alert._replace(annotations={**told, **alert.annotations})

    def _look_at(
        self,
        now: float,
        settings: Settings,
        route: Route,
        name: str,
        promised: Sequence[Objective],
        counts: Counts,
        left: dict[tuple[str, str], float],
    ) -> Iterator[Alert]:
        """Add these counts to the course of this name, and judge it by what is promised."""
        course = self._courses.get(name)
        if course is None:
            course = self._courses[name] = Course()
        course.look(now, counts)
        for objective in promised:
            left[route.name, objective.name] = 1.0
            if not course.counts[objective.which]:
                continue
            left[route.name, objective.name] = budget_left(course, now, objective)
            finding = judged(course, now, objective)
            if finding is not None:
                yield self._told(settings, route, finding, course, now)

    # --- metrics ---------------------------------------------------------------------------------------------------

    def families(self) -> list[Family]:
        """What `/metrics` says of all this."""
        left, firing, sent = "understudy_objective_budget_left", "understudy_alerts_firing", "understudy_alerts_sent"
        alerts = [dict(alert.labels) for alert in self.desk.firing]
        # several of one name and route, for two things that fill up, are one here
        named = dict.fromkeys(tuple(labels.get(key, "") for key in FIRING) for labels in alerts)
        shown: list[dict[str, str]] = [dict(zip(FIRING, each, strict=True)) for each in named]
        return [
            (
                left,
                "gauge",
                METRICS[left],
                [(left, {"route": route, "objective": name}, share) for (route, name), share in self._left.items()],
            ),
            (firing, "gauge", METRICS[firing], [(firing, labels, 1.0) for labels in shown]),
            (
                sent,
                "counter",
                METRICS[sent + "_total"],
                [
                    (sent + "_total", {"receiver": receiver, "result": result}, float(count))
                    for (receiver, result), count in self._senders.results.items()
                ],
            ),
            *(family for beside in self.beside for family in beside.families()),
        ]

    def status_beside(self) -> dict[str, Any]:
        """What is watched beside the objectives, for `/status`."""
        return {beside.page: summary for beside in self.beside if (summary := beside.summary())}

    def told(self, page: str) -> dict[str, Any] | None:
        """All that one of those knows; None where there is none of this name."""
        return next((beside.told() for beside in self.beside if beside.page == page), None)

    def status(self) -> list[dict[str, str]]:
        """What fires now, for `/status`."""
        return [{**dict(alert.labels), **alert.annotations} for alert in self.desk.firing]

    # --- kept over a restart ---------------------------------------------------------------------------------------

    def recall(self) -> None:
        """Go on where the last process ended. What can't be read is no reason not to start."""
        try:
            state = msgspec.json.decode(self._path.read_bytes(), type=State)
            courses = {name: Course.of(kept.times, kept.points, kept.counts) for name, kept in state.courses.items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError) as fault:
            log.warning("%s can't be read, objectives begin anew: %s", self._path, fault)
            return
        self._courses.update(courses)
        for kept in state.alerts:
            self.desk.recall(kept.labels, kept.annotations, kept.starts_at)

    def _encoded(self) -> bytes:
        courses = {name: course.kept() for name, course in self._courses.items() if course.counts.total}
        return msgspec.json.encode({"courses": courses, "alerts": self.desk.kept()})

    def save(self, encoded: bytes) -> None:
        """Write it down, whole or not at all."""
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, encoded)


class Front(Protocol):
    """What is started and stopped with the lookout: an admin port."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class Overseen(Seen, Protocol):
    """What is watched, and tells of it."""

    @property
    def events(self) -> Events: ...
    def readings(self, wall: float) -> list[Reading]: ...
    def loads(self) -> Mapping[str, Loads]: ...
    def opened(self) -> Sequence[Opening]: ...
    def hinted(self, hints: Sequence[Opening], ill: Sequence[str]) -> None: ...
    def verdicts(self) -> Mapping[str, str]: ...
    def families_now(self) -> Sequence[Family]: ...
    def facts_now(self) -> Sequence[Fact]: ...
    def heeds(self, lookout: Lookout) -> None: ...


class Overlooked:
    """An admin port with a lookout beside it, and what learns from what happened."""

    def __init__(
        self,
        front: Front,
        seen: Overseen,
        state: Path,
        senders: Senders | None = None,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._front = front
        self._seen = seen
        self._state = state
        self._senders = senders or Senders()
        self._wall = wall
        self._running: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self._front.start()
        lookout = Lookout(self._seen, self._state, self._senders, wall=self._wall)
        learnt = self._learnt()
        lookout.beside = [*self._beside(learnt.learner), learnt]
        lookout.annotating.append(learnt.annotations)
        lookout.listeners.append(lambda notice: self._seen.events.publish(_happened(notice)))
        lookout.learner = learnt.learner
        self._seen.heeds(lookout)
        loop = asyncio.get_running_loop()
        self._running = [loop.create_task(one.run()) for one in (lookout, *lookout.beside)]

    def _learnt(self) -> Learnt:
        from understudy.proxy.control.learning import Learner
        from understudy.proxy.reports.risks import Learnt

        return Learnt(Learner(self._seen, self._state, wall=self._wall))

    def _beside(self, learner: Learner) -> list[Beside]:
        # not for workers, who import what is above
        from understudy.proxy.control.budget_alerts import BudgetAlerts
        from understudy.proxy.control.forecasts import Foresight
        from understudy.proxy.control.replicas import Replicas

        own = f"{socket.gethostname()[:64]}-{secrets.token_hex(4)}"
        foresight = Foresight(self._seen, self._state, wall=self._wall)
        replicas = Replicas(self._seen, own, journal=learner.heard_elsewhere)
        learner.keeping.append(replicas.notes.add)
        return [foresight, replicas, BudgetAlerts(self._seen.events)]

    async def stop(self) -> None:
        for running in self._running:
            running.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._running = []
        await self._senders.close()
        await self._front.stop()


def _happened(notice: Notice) -> Event:
    """An alert that begins or ends, for the journal."""
    labels = dict(notice.alert.labels)
    at, word = (notice.starts_at, "firing") if notice.ends_at is None else (notice.ends_at, "resolved")
    summary = notice.alert.annotations.get("summary", "")
    return Event(at, "alert", labels.get("component", WHOLE), labels["alertname"], f"{word}: {summary}", labels)


def budgets_of(promised: Objectives) -> dict[str, float]:
    """Objective -> the share of calls that may be bad."""
    return {
        "availability": 1.0 - promised.answered_share_min,
        "errors": promised.error_share_max,
        "latency": promised.late_share_max,
        "primary": promised.fallback_share_max,
        RETRIEVAL: 1.0 - promised.agreement_min,
    }


def severity_of(objective: str, severity: Severity) -> Severity:
    """How bad it is: while calls are answered nobody is woken, since a fallback does its work."""
    return "warning" if objective == "primary" else severity


def runbook_of(settings: Settings, route: Route) -> str:
    """Where it is said what to do when this route's objectives are missed."""
    return settings.server.alerts.runbook_url + RUNBOOKS.get(KINDS.get(route.dialect, ""), RUNBOOK)


def _alert(settings: Settings, route: Route, finding: Finding, course: Course, now: float) -> Alert:
    """What is told of a finding; only what does not change while it lasts is among the labels."""
    alerts = settings.server.alerts
    name, words = NAMES[finding.objective]
    severity = severity_of(finding.objective, finding.severity)
    labels = {**alerts.labels, "alertname": name, "route": route.name, "severity": severity}
    lately = course.within(now, LATELY_S)
    by_primary = lately.total - lately.fallback
    hours = finding.rule.long_s / HOUR_S
    window = f"{hours:.0f} h" if finding.rule.long_s < DAY_S else f"{hours / 24:.0f} d"
    share = finding.bad / finding.total
    annotations = {
        "summary": f"route {route.name}: {share:.2%} of calls in {window} are {words}",
        "description": (
            f"{finding.bad} of {finding.total} calls in the last {window}: the budget is being spent"
            f" {finding.burn:.1f} times too fast. In the last 5 minutes {lately.total} calls: {by_primary} answered by"
            f" the first tier, {lately.fallback - lately.unanswered} by another, {lately.unanswered} by nobody."
        ),
        "affected": str(finding.bad),
        "tier": _tier_in_use(lately),
        "runbook": runbook_of(settings, route),
        "policies": settings.digest,
    }
    return Alert(tuple(sorted(labels.items())), annotations)


def _disagreement(settings: Settings, route: Route, finding: Finding, course: Course, now: float) -> Alert:
    """The same of searches that were compared: calls of callers are not what is counted."""
    told = _alert(settings, route, finding, course, now)
    lately = course.within(now, LATELY_S)
    annotations = {
        **told.annotations,
        "summary": f"route {route.name}: of what the local copy finds, {finding.bad / finding.total:.0%} is not found",
        "description": (
            f"{finding.total} searches were compared with the local copy, in which as much was missing as if"
            f" {finding.bad} of them had found nothing right; of {lately.total} in the last 5 minutes, {lately.errors}."
        ),
        "tier": "primary",
    }
    return told._replace(annotations=annotations)


def _sum(counts: Iterable[Counts]) -> Counts:
    total = Counts()
    for each in counts:
        total = total.plus(each)
    return total


def _tier_in_use(lately: Counts) -> str:
    """Who answers most just now."""
    shares = {
        "primary": lately.total - lately.fallback,
        "fallback": lately.fallback - lately.unanswered,
        "none": lately.unanswered,
    }
    return max(shares, key=lambda who: shares[who]) if lately.total else "none"


# --- counts --------------------------------------------------------------------------------------------------------


def tallied(tally: RouteTally) -> Counts:
    """A route's counts in this process."""
    unanswered = sum(tally.unanswered.values())
    return Counts(
        total=sum(tally.answers.values()) + unanswered,
        unanswered=unanswered,
        errors=sum(count for (_, hundreds), count in tally.answers.items() if hundreds == 5) + unanswered,
        late=tally.late + unanswered,
        fallback=sum(count for (rank, _), count in tally.answers.items() if rank in FALLBACK_RANKS) + unanswered,
    )


def agreed(overlap: Histogram) -> Counts:
    """The counts of a route's compared searches in this process."""
    return compared(sum(overlap.counts), overlap.sum)


def agreement_counted(families: Iterable[Family]) -> dict[str, Counts]:
    """The same of every route that is watched, from what workers report of themselves."""
    pairs: dict[str, float] = {}
    sums: dict[str, float] = {}
    for name, _, _, samples in families:
        if name != "understudy_watch_agreement":
            continue
        for sample, labels, value in samples:
            into = {"_count": pairs, "_sum": sums}.get(sample.removeprefix(name))
            if into is not None and labels["measure"] == "overlap":
                into[labels["route"]] = into.get(labels["route"], 0.0) + value
    return {route: compared(int(count), sums.get(route, 0.0)) for route, count in pairs.items()}


def is_compared(route: Route) -> bool:
    """Whether this route's searches are compared with a local copy now and then."""
    return route.watch is not None and KINDS.get(route.dialect) == "retrieve"


def agreement_of(route: str) -> str:
    """The name of the course of a route's compared searches; no route is called so."""
    return f"{route} {RETRIEVAL}"


def counted(families: Iterable[Family]) -> dict[str, Counts]:
    """The counts of every route, from what workers report of themselves."""
    counts: dict[str, Counts] = {}
    for name, _, _, samples in families:
        if name == "understudy_requests":
            for _, labels, value in samples:
                rank, outcome, number = labels["tier"], labels["outcome"], int(value)
                more = Counts(
                    number,
                    errors=number if outcome == "5xx" else 0,
                    fallback=number if rank in FALLBACK_RANKS else 0,
                )
                counts[labels["route"]] = counts.get(labels["route"], Counts()).plus(more)
        elif name == "understudy_unanswered":
            for _, labels, value in samples:
                more = Counts(*([int(value)] * len(Counts._fields)))
                counts[labels["route"]] = counts.get(labels["route"], Counts()).plus(more)
        elif name == "understudy_late":
            for _, labels, value in samples:
                more = Counts(late=int(value))
                counts[labels["route"]] = counts.get(labels["route"], Counts()).plus(more)
    return counts
