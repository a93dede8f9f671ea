"""Remember what happened, and learn from it: which change failures began with, what is at risk, what has helped.

    Events --heard, on the loop--> memory (bounded) --> suspects, record of what helped
              |                                             |
              +--batches, in a thread--> journal            +--> alerts' annotations, /changes, /risk
    metrics --each STEP_S--> Signals --features--> Risk of each component --trusted?--> a warning

In the process that has the admin port, beside the calls. Where the journal can't be kept, all else goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from understudy.policies.attribution import AFTER_S_MAX, APART_S, BEFORE_S_MAX, Change, Spell, Suspect, suspects
from understudy.policies.events import WHOLE, Event
from understudy.policies.recommendations import Recommendation, recommended
from understudy.policies.risk import STEP_S, Risk, features
from understudy.proxy.changes import Fact, fact_of, flutters
from understudy.proxy.control.entries import FILE, Entry, Known
from understudy.proxy.control.signals import Signals
from understudy.proxy.control.wire import Family
from understudy.proxy.durable import replace_file
from understudy.proxy.events import Events
from understudy.proxy.health.components import Component, components_of
from understudy.proxy.settings.settings import Settings

if TYPE_CHECKING:
    from understudy.proxy.control.journal import Journal

RISKS_FILE = "risk.json"
TICK_S = 10.0
SAVE_S = 600.0
FRESH_S = 5.0
"""A failure is kept with numbers that are no older, where the last ones are not those of another failure just now."""
RECENT_S = 1800.0
CHANGES_TOLD_MAX = 8
WAITING_MAX = 1000
FAILURES_MAX, CHANGES_MAX = 1000, 256
COMPONENTS_MAX = 1024
SLICE = 16
"""Components whose risk is looked at in one go: a few milliseconds."""
VALUES_MAX = 8
CAUSE_S = 600.0
NEVER = float("-inf")

log = logging.getLogger("understudy.journal")


class Watched(Protocol):
    """What is learnt from: one sidecar, or all that a parent has."""

    @property
    def events(self) -> Events: ...
    async def settings_now(self) -> Settings: ...
    def families_now(self) -> Sequence[Family]: ...
    def facts_now(self) -> Iterable[Fact]: ...


class Learner:
    """What this sidecar has learnt, and goes on learning."""

    def __init__(self, watched: Watched, state: Path, *, wall: Callable[[], float] = time.time) -> None:
        self._watched = watched
        self._state = state
        self._wall = wall
        self.journal: Journal | None = None
        self.risks: dict[str, Risk] = {}
        self.components: dict[str, Component] = {}
        self.signals = Signals()
        self.changes: deque[Change] = deque(maxlen=CHANGES_MAX)
        self.record: dict[tuple[str, str], tuple[int, int]] = {}
        self.heard_of: Counter[str] = Counter()
        self.dropped = 0
        self.keeping: list[Callable[[Event], None]] = []
        """Told of each event of ours that is kept."""
        self._fresh = Signals()
        self._failures: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=FAILURES_MAX))
        self._causes: dict[str, tuple[float, str]] = {}
        self.words: dict[str, str] = {}
        """What is thought of each component of which something was told."""
        self._known: dict[tuple[str, str], list[str]] = {}
        self._met: set[tuple[str, str]] = set()
        self._spells: list[Spell] = []
        self._waiting: deque[Entry] = deque()
        self._writing: asyncio.Future[None] | None = None
        self._unknown: list[Known] = []
        self._results: list[tuple[str, str, bool]] = []
        self._more = asyncio.Event()
        self._measuring = asyncio.Lock()
        self._began = wall()
        self._risked_at = self._fresh_at = self._saved_at = NEVER
        self._digest = ""

    @property
    def events(self) -> Events:
        return self._watched.events

    @property
    def now(self) -> float:
        return self._wall()

    async def run(self) -> None:
        """Until it is cancelled. What goes wrong here is logged, and never the end of it."""
        loop = asyncio.get_running_loop()
        settings = await self._watched.settings_now()
        await loop.run_in_executor(None, self.recall, settings)
        for event in list(self._watched.events.recent):
            self.heard(event)
        self._watched.events.subscribe(self.heard)
        writing = loop.create_task(self._write())
        try:
            while True:
                try:
                    await self.look(await self._watched.settings_now())
                except Exception:
                    log.exception("nothing could be learnt just now")
                await asyncio.sleep(TICK_S)
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            if self._writing is not None:
                await asyncio.gather(self._writing, return_exceptions=True)
            self.close()

    def close(self) -> None:
        """Write down what has not been written yet."""
        self._written(self._taken())
        self._save(self._encoded())
        if self.journal is not None:
            self.journal.close()

    # --- what happens ----------------------------------------------------------------------------------------------

    def heard(self, event: Event) -> None:
        """Take an event, on the loop; what is told twice, by two workers, is one."""
        if event.family == "change":
            fact = fact_of(event)
            if fact is not None and not self._is_news(fact, event.at):
                return
            self.changes.append(Change(event.at, event.component, event.kind, event.detail))
        elif event.family == "failure":
            self._failed(event)
        elif event.family == "health":
            self.words[event.component] = event.kind
        elif event.family == "recovery":
            self._learn_what_helped(event)
        self.heard_of[event.family] += 1
        numbers = self.signals.numbers.get(event.component, {}) if event.family == "failure" else {}
        changed = self.lately(event.at) if event.family == "failure" else ()
        self._keep(Entry(event, numbers, changed))
        for listener in self.keeping:
            listener(event)

    def heard_elsewhere(self, event: Event) -> None:
        """Keep what happened to another replica, whose name is among the facts; nothing is learnt from it."""
        self._keep(Entry(event))

    def _keep(self, entry: Entry) -> None:
        if len(self._waiting) >= WAITING_MAX:
            self.dropped += 1
            return
        self._waiting.append(entry)
        self._more.set()

    def _failed(self, event: Event) -> None:
        if event.component not in self._failures and len(self._failures) >= COMPONENTS_MAX:
            return
        self._failures[event.component].append(event.at)
        self._causes[event.component] = event.at, event.kind
        if event.component in self.risks:
            self.risks[event.component].failed(event.at)

    def _learn_what_helped(self, event: Event) -> None:
        rung, cause = event.facts.get("rung", ""), event.facts.get("failure", "")
        # what got well by itself, or by another hand, speaks for no rung
        helped = event.kind == "recovered" and event.detail.endswith(rung)
        if not rung or not cause or not (helped or event.kind == "unhelped"):
            return
        tried, good = self.record.get((cause, rung), (0, 0))
        self.record[cause, rung] = tried + 1, good + helped
        self._results.append((cause, rung, helped))

    def lately(self, now: float) -> tuple[str, ...]:
        """What was changed in the half hour before, in words."""
        recent = [one for one in self.changes if now - RECENT_S <= one.at <= now][-CHANGES_TOLD_MAX:]
        return tuple(f"{now - one.at:.0f} s before: {one.component} {one.detail}" for one in recent)

    def _is_news(self, fact: Fact, at: float) -> bool:
        """Whether this is otherwise than anybody has told; from now on it is known."""
        key = (fact.component, fact.kind)
        self._met.add(key)
        values = self._known.get(key, [])
        if values[-1:] == [fact.value]:
            return False
        self._know(fact, at)
        return fact.value not in values or not flutters(fact.kind)

    def _know(self, fact: Fact, at: float) -> None:
        key = (fact.component, fact.kind)
        values = [value for value in self._known.get(key, []) if value != fact.value]
        self._known[key] = [*values, fact.value][-VALUES_MAX:]
        self._unknown.append(Known(*fact, at))
        self._more.set()

    def _meet(self, now: float, facts: Iterable[Fact]) -> None:
        """What this run has not told of yet: what is otherwise than the last one left it was changed in between."""
        for fact in facts:
            key = (fact.component, fact.kind)
            if key in self._met:
                continue
            self._met.add(key)
            values = self._known.get(key)
            if values is None or fact.value == values[-1]:
                if values is None:
                    self._know(fact, now)
                continue
            before = values[-1]
            self._know(fact, now)
            if flutters(fact.kind) and fact.value in values:
                continue
            word, _, what = fact.kind.partition(" ")
            detail = f"{fact.kind}: {before} -> {fact.value}, while no sidecar ran here"
            facts_told = {"what": what, "before": before}
            self._watched.events.publish(Event(self._began, "change", fact.component, word, detail, facts_told))

    def note(self, text: str, component: str = WHOLE, kind: str = "deploy") -> None:
        """Somebody says that something was changed."""
        self._watched.events.publish(Event(self._wall(), "change", component, kind, text))

    # --- now and then ----------------------------------------------------------------------------------------------

    async def look(self, settings: Settings) -> None:
        """See what has changed, and once a minute what is at risk."""
        now, loop = self._wall(), asyncio.get_running_loop()
        if settings.digest != self._digest or not self.components:
            self._digest, self.components = settings.digest, components_of(settings)
        self._meet(now, self._watched.facts_now())
        if abs(now - self._risked_at) < STEP_S:
            return
        self._risked_at = now
        families, components = self._watched.families_now(), self.components
        await loop.run_in_executor(None, self.signals.look, now, families, components)
        await self._measure(now, families)
        await self._look_at_risks(now)
        if self.journal is not None:
            await loop.run_in_executor(None, self._keep_watch, self.journal, now)
        if abs(now - self._saved_at) >= SAVE_S:
            self._saved_at = now
            await loop.run_in_executor(None, self._save, self._encoded())

    async def _look_at_risks(self, now: float) -> None:
        self.risks = {name: risk for name, risk in self.risks.items() if name in self.components}
        self.words = {name: word for name, word in self.words.items() if name in self.components}
        for n, name in enumerate(self.components):
            if n % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            risk = self.risks.get(name)
            if risk is None:
                if len(self.risks) >= COMPONENTS_MAX:
                    continue
                risk = self.risks[name] = Risk()
            if self.words.get(name) == "unhealthy":
                self._fails_still(name, risk, now)
            changed = (one.at for one in self.changes if one.component in (name, WHOLE) and one.at <= now)
            risk.look(now, features(self.signals.features(name)), max(changed, default=NEVER))

    def _fails_still(self, name: str, risk: Risk, now: float) -> None:
        """It is told once that it fails; while it goes on nothing is foretold, and what broke it pays for all of it."""
        risk.failed(now)
        times = self._failures[name]
        if not times or now - times[-1] >= APART_S:
            times.append(now)

    def _keep_watch(self, journal: Journal, now: float) -> None:
        try:
            journal.watched(self._began, now)
            self._spells = journal.spells()
        except OSError as fault:
            log.warning("the journal can't be written: %s", fault)

    # --- what is concluded -----------------------------------------------------------------------------------------

    def suspects(self, components: Collection[str], now: float, *, is_failing: bool = False) -> list[Suspect]:
        """The changes by how likely the failures of these components are theirs; of something that fails now, also
        where no component is to blame for it yet."""
        failures = [at for name in components for at in self._failures.get(name, ())]
        if is_failing and not any(now - at < RECENT_S for at in failures):
            failures.append(now)
        earlier = [Spell(one.since, min(one.until, self._began)) for one in self._spells if one.since < self._began]
        spells = [*earlier, Spell(self._began, now)]
        return suspects(self.changes, failures, spells, now, components)

    @property
    def failing(self) -> list[str]:
        """The components that have failed within a day."""
        now = self._wall()
        return [name for name, times in self._failures.items() if times and now - times[-1] < AFTER_S_MAX]

    def recommended(self, component: str, now: float) -> list[Recommendation]:
        """What to do about a component that fails, or may: by how it failed, what rises, and what it began with."""
        role = component.partition(":")[0]
        causes: list[str] = []
        at, kind = self._causes.get(component, (NEVER, ""))
        if now - at < CAUSE_S:
            causes.append(kind)
        causes += [f"change:{one.change.kind}" for one in self.suspects([component], now) if one.is_accused]
        risk = self.risks.get(component)
        if risk is not None and risk.latest is not None:
            causes += [name for name, _ in risk.latest.leading]
        return recommended(causes, role, self.record)

    # --- the journal -----------------------------------------------------------------------------------------------

    def recall(self, settings: Settings) -> None:
        """Go on where the last process ended. Blocks; what can't be read is no reason not to start."""
        self._recall_risks()
        if not settings.server.journal.enabled:
            return
        # only here: nobody else needs SQLite
        from understudy.proxy.control.journal import Journal

        journal = Journal(self._state / FILE, settings.server.journal.bytes_max)
        try:
            journal.open()
            self._recall(journal)
        except (OSError, ValueError) as fault:
            log.warning("no journal is kept: %s", fault)
            journal.close()
            return
        self.journal = journal

    def _recall(self, journal: Journal) -> None:
        since = self._wall() - AFTER_S_MAX - BEFORE_S_MAX
        for component, at in journal.times("failure", since):
            self._failures[component].append(at)
        for entry in reversed(journal.entries(["change"], since=since, count=CHANGES_MAX)):
            event = entry.event
            if "replica" in event.facts:
                continue
            self.changes.append(Change(event.at, event.component, event.kind, event.detail))
        for known in journal.known():
            self._known.setdefault((known.component, known.kind), []).append(known.value)
        self.record = {(one.cause, one.action): (one.tried, one.helped) for one in journal.tried()}
        self._spells = journal.spells()

    def _recall_risks(self) -> None:
        path = self._state / RISKS_FILE
        try:
            kept = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, object]])
            self.risks = {name: Risk.of(one) for name, one in list(kept.items())[:COMPONENTS_MAX]}
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as fault:
            log.warning("%s can't be read, risks are learnt anew: %s", path, type(fault).__name__)
            self.risks = {}

    def _encoded(self) -> bytes:
        return msgspec.json.encode({name: risk.kept() for name, risk in self.risks.items()})

    def _save(self, encoded: bytes) -> None:
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            replace_file(self._state / RISKS_FILE, encoded)
        except OSError as fault:
            log.warning("what was learnt can't be written down: %s", fault.strerror)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._more.wait()
            self._more.clear()
            now = self._wall()
            if any(entry.event.family == "failure" for entry in self._waiting) and now - self._fresh_at >= FRESH_S:
                await self._measure_again(now)
            self._writing = loop.run_in_executor(None, self._written, self._taken())
            # what was taken is written, whatever becomes of us
            await asyncio.shield(self._writing)

    async def _measure_again(self, now: float) -> None:
        """Have failures that wait kept with the numbers of now."""
        await self._measure(now, self._watched.families_now())
        numbers = self._fresh.numbers
        for n, entry in enumerate(self._waiting):
            if entry.event.family == "failure" and "replica" not in entry.event.facts:
                self._waiting[n] = entry._replace(numbers=numbers.get(entry.event.component, entry.numbers))

    async def _measure(self, now: float, families: Sequence[Family]) -> None:
        self._fresh_at = now
        async with self._measuring:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, self._fresh.look, now, families, self.components)

    def _taken(self) -> tuple[list[Entry], list[Known], list[tuple[str, str, bool]]]:
        entries, self._waiting = list(self._waiting), deque()
        known, self._unknown = self._unknown, []
        results, self._results = self._results, []
        return entries, known, results

    def _written(self, taken: tuple[list[Entry], list[Known], list[tuple[str, str, bool]]]) -> None:
        entries, known, results = taken
        journal = self.journal
        if journal is None:
            return
        try:
            journal.add(entries)
            if known:
                journal.know(known)
            for cause, action, helped in results:
                journal.try_counted(cause, action, helped)
        except OSError as fault:
            self.dropped += len(entries)
            log.warning("%d entries could not be written into the journal: %s", len(entries), fault)
