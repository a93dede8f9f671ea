"""Climb the ladders of what is ill: the thin loop round `policies/recovery.py`, in one process of a sidecar.

    health checks --what is ill--> Recovery --written down--> rungs, hooks --what came of it--> Recovery
                                      |                         (a task for each component)
                                      +--news--> log, counters, events

Nothing is begun before it is written down, so that a process that is killed is followed by one that goes on, and a
human is told once. Of several processes over one state folder, the one that holds the lock recovers.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import msgspec

from understudy.policies.events import Event
from understudy.policies.recovery import (
    RUNGS,
    Act,
    Check,
    Climb,
    Escalate,
    Ladder,
    News,
    Recovery,
    in_words,
    role_of,
)
from understudy.proxy.control.hooks import Hooks
from understudy.proxy.control.rungs import KEEP_OUT, TAKE_BACK, Climbed, Rungs
from understudy.proxy.durable import replace_file
from understudy.proxy.settings.recovery import Hook
from understudy.proxy.settings.recovery import Recovery as Settings

if TYPE_CHECKING:
    from understudy.proxy.sidecar import Sidecar

FILE = "recovery.json"
LOCK = "recovery.lock"
TICK_S = 1.0
LOCK_S = 5.0
"""How often it is looked whether the process that recovers has gone."""
KEEP_OUT_S = 20.0
"""How often it is said again that an endpoint is left out."""
CHECK_S_MAX = 60.0
LOUD = {"unhelped": logging.WARNING, "escalated": logging.ERROR, "relapsed": logging.WARNING, "ill": logging.WARNING}

log = logging.getLogger("understudy.recovery")


class Verdict(NamedTuple):
    """What the health checks say of a component; `unsure` is neither, and of what kind its illness is, in a word."""

    word: Literal["ill", "well", "unsure"]
    kind: str = ""

    @property
    def is_ill(self) -> bool:
        return self.word == "ill"


class Checks(Protocol):
    """What is needed of the health checks."""

    def verdicts(self) -> Mapping[str, Verdict]:
        """Of every component there is."""
        ...

    async def passes(self, component: str, kind: str) -> bool:
        """Check one now, as it was checked when it failed with this kind; its verdict learns of it."""
        ...


class Recoverer:
    """Recovers what one sidecar has, and what its workers share."""

    def __init__(
        self,
        sidecar: Sidecar,
        checks: Checks,
        rungs: Rungs,
        *,
        wall: Callable[[], float] = time.time,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self.results: Counter[tuple[str, str, str]] = Counter()
        self.recovered: Counter[tuple[str, str]] = Counter()
        self.escalations: Counter[str] = Counter()
        self._sidecar = sidecar
        self._checks = checks
        self._rungs = rungs
        self._hooks = Hooks(sidecar.environ)
        self._wall = wall
        self._path = sidecar.state / FILE
        self.heart = Recovery(self.rules, self.ladder_of, dice)
        self._tasks: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()
        self._kept_out: dict[str, float] = {}
        self._lock: int | None = None
        self._written: bytes = b""

    @property
    def rules(self) -> Settings:
        return self._sidecar.settings.server.recovery

    @property
    def is_busy(self) -> bool:
        """Whether something is under way."""
        return bool(self._tasks)

    def ladder_of(self, component: str) -> tuple[str, ...]:
        """What is tried for a component, in order."""
        return self.rules.ladder_of(role_of(component))

    def wake(self) -> None:
        """Something has happened: look now."""
        self._woken.set()

    # --- up and down -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled. What goes wrong here is logged, and never the end of it."""
        try:
            await self._begin()
            while True:
                self._woken.clear()
                try:
                    await self.once()
                except Exception:
                    log.exception("an error of our own in recovery")
                try:
                    async with asyncio.timeout(min(TICK_S, self.heart.rest_s(self._wall()))):
                        await self._woken.wait()
                except TimeoutError:
                    continue
        finally:
            await self.stop()

    async def _begin(self) -> None:
        """Become the one process that recovers, and take up what the last one left."""
        loop = asyncio.get_running_loop()
        # polled: nothing else tells that a process has gone
        while self._lock is None:
            self._lock = await loop.run_in_executor(None, _locked, self._sidecar.state)
            await asyncio.sleep(0.0 if self._lock is not None else LOCK_S)
        self.recall(await loop.run_in_executor(None, _kept, self._path))

    async def stop(self) -> None:
        """Let go: what is under way counts as cut off, and is verified by the next process."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._hooks.close()
        self._rungs.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def recall(self, kept: list[Ladder]) -> None:
        """Go on where the last process ended."""
        self.heart.recall(self._wall(), kept)
        for ladder in kept:
            log.warning("recovery of %s goes on: %s", ladder.component, self.doing(ladder.component))

    # --- the loop --------------------------------------------------------------------------------------------------

    async def once(self) -> None:
        """Hear what is ill, decide, write it down, and begin what is due."""
        now = self._wall()
        heart = self.heart
        heart.obey(self.rules)
        verdicts = self._checks.verdicts()
        for component, verdict in verdicts.items():
            if verdict.word != "unsure":
                heart.hear(now, component, is_ill=verdict.is_ill, kind=verdict.kind)
        for component in [each for each in heart.ladders if each not in verdicts]:
            heart.forget(component)
        self._look_after_those_left_out(now, verdicts)
        acts = heart.due(now)
        self._publish(heart.news())
        await self._keep()
        for act in acts:
            task = asyncio.get_running_loop().create_task(self._act(act))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _look_after_those_left_out(self, now: float, verdicts: Mapping[str, Verdict]) -> None:
        """Somebody stands in for them: see to it that it stays so for as long as it is needed, and no longer."""
        standing_in = {each.component: each.instead for each in self.heart.ladders.values() if each.instead}
        for component, instead in standing_in.items():
            verdict = verdicts.get(instead)
            if verdict is not None and verdict.is_ill:
                self.heart.relapsed(now, component, "its stand-in has failed, too")
            elif now - self._kept_out.get(component, 0.0) >= KEEP_OUT_S:
                self._kept_out[component] = now
                self._everywhere(component, KEEP_OUT)
        for component in self._kept_out.keys() - standing_in.keys():
            del self._kept_out[component]
            if component in verdicts and verdicts[component].word == "well":
                self._everywhere(component, TAKE_BACK)

    def _everywhere(self, component: str, rung: str) -> None:
        self._rungs.leave_out(component, again=rung == KEEP_OUT)
        self._rungs.tell_others(component, rung)

    async def _act(self, act: Act) -> None:
        try:
            match act:
                case Climb():
                    await self._climb(act)
                case Check():
                    await self._check(act)
                case Escalate():
                    await self._escalate(act)
        except Exception:
            log.exception("an error of our own in recovery of %s", act.component)
        finally:
            self._publish(self.heart.news())
            self._woken.set()

    async def _climb(self, climb: Climb) -> None:
        climbed = Climbed("failed", "cut off")
        began = self._wall()
        try:
            hook = self._hook(climb.rung)
            climbed = await (self._rungs.climb(climb) if hook is None else self._hooked(hook, climb))
        finally:
            self.results[climb.component, climb.rung, climbed.result] += 1
            now = self._wall()
            self.heart.climbed(
                now,
                climb.component,
                climbed.result,
                climbed.detail,
                cpu_s=climbed.cpu_s,
                took_s=max(0.0, now - began),
                settle_s=climbed.settle_s,
                instead=climbed.instead,
            )

    async def _check(self, check: Check) -> None:
        passed = False
        try:
            async with asyncio.timeout(CHECK_S_MAX):
                passed = await self._checks.passes(check.instead or check.component, check.kind)
        except TimeoutError:
            passed = False
        finally:
            self.heart.checked(self._wall(), check.component, passed=passed)

    async def _escalate(self, escalate: Escalate) -> None:
        self.escalations[escalate.component] += 1
        told = {
            "status": "escalated",
            "component": escalate.component,
            "kind": escalate.kind,
            "incident": escalate.incident,
            "steps": "; ".join(escalate.steps),
        }
        try:
            for name in self.rules.escalate:
                hook = self._hook(name)
                if hook is not None and (why := await self._hooks.run(hook, told, f"{escalate.incident}/{name}")):
                    log.error("hook %s was not told that %s is beyond us: %s", name, escalate.component, why)
        finally:
            self.heart.told(escalate.component)

    async def _hooked(self, hook: Hook, climb: Climb) -> Climbed:
        told = {
            "status": "recovering",
            "component": climb.component,
            "kind": climb.kind,
            "incident": climb.incident,
            "attempt": str(climb.attempt),
        }
        why = await self._hooks.run(hook, told, f"{climb.incident}/{climb.attempt}/{hook.name}")
        return Climbed("failed", why) if why else Climbed("done", settle_s=hook.settle_s)

    def _hook(self, name: str) -> Hook | None:
        if name in RUNGS:
            return None
        return next((hook for hook in self.rules.hooks if hook.name == name), None)

    # --- what is kept ----------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        encoded = msgspec.json.encode(list(self.heart.ladders.values()))
        if encoded == self._written or (not self._written and encoded == b"[]"):
            return
        try:
            await asyncio.get_running_loop().run_in_executor(None, _save, self._path, encoded)
            self._written = encoded
        except OSError as fault:
            # to heal is more than to remember it; a full disk may be what is ill
            log.warning("how far recovery is can't be written down: %s", fault)

    # --- what others are told --------------------------------------------------------------------------------------

    def _publish(self, news: list[News]) -> None:
        for each in news:
            words = _in_words(each)
            log.log(LOUD.get(each.what, logging.INFO), "%s: %s", each.component, words)
            if each.what == "recovered":
                self.recovered[each.component, each.detail] += 1
            facts = {"rung": each.rung, "attempt": str(each.attempt), "failure": each.kind}
            self._sidecar.events.publish(Event(each.at, "recovery", each.component, each.what, words, facts))

    def doing(self, component: str) -> str:
        """What is being done about a component, in words; '' where nothing is."""
        ladder = self.heart.ladders.get(component)
        return "" if ladder is None else in_words(ladder, self.ladder_of(component), self.rules, self._wall())

    def told(self) -> list[dict[str, object]]:
        """Each ladder, for `/status`."""
        now = self._wall()
        return [
            {
                "component": ladder.component,
                "kind": ladder.kind,
                "state": ladder.state,
                "doing": self.doing(ladder.component),
                "attempt": ladder.attempt,
                "incident": ladder.incident,
                "for_s": round(now - ladder.began_at, 1),
                "escalated": ladder.escalated_at is not None,
                "steps": list(ladder.steps),
            }
            for ladder in self.heart.ladders.values()
        ]


def _in_words(news: News) -> str:
    match news.what:
        case "ill":
            return f"ill ({news.detail}); recovery begins" if news.detail else "ill; recovery begins"
        case "climbing":
            return f"attempt {news.attempt}: {news.rung}"
        case "climbed":
            return f"attempt {news.attempt}: {news.rung}: {news.detail}"
        case "recovered":
            return f"well again: {news.detail}"
        case "unhelped":
            return f"attempt {news.attempt}: {news.rung} did not help"
        case "escalated":
            return f"beyond us after {news.attempt} attempts, and left to a human: {news.detail}"
        case "relapsed":
            return "ill again soon after it was well"
        case "stable":
            return "well for long enough; its attempts are counted anew"


def _locked(state: Path) -> int | None:
    """The lock on a state folder, held until it is closed; None where another process has it."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        file = os.open(state / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file


def _kept(path: Path) -> list[Ladder]:
    """What the last process wrote down. What can't be read is no reason not to begin anew."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Ladder])
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as fault:
        log.warning("%s can't be read, recovery begins anew: %s", path, fault)
        return []


def _save(path: Path, encoded: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, encoded)
