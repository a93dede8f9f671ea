"""Heal what has failed: one bounded ladder for each component, verified rung by rung, and a human when it is spent.

                ill            the pause is over          done               passes 3 times in a row
    (well) ----------> WAITING ----------------> CLIMBING ----> VERIFYING ----------------------------> HELD
       ^               ^  ^ ^                     ^                |                                     | |
       |               |  | |                     +-- it fails ----+                                     | |
       |               |  | +--- no rung helped, attempts left ----+                                     | |
       |               |  |                                        +-- no attempt left --> ESCALATED --->+ |
       |               |  +------------------------ ill again, the counts go on --------------------------+ |
       +---------------+---------------------------- stable for ten minutes --------------------------------+

An attempt is one walk up the ladder, from the cheapest rung to the dearest; each rung is verified by the very check
that failed before the next one is tried. Attempts are few and further and further apart, so that healing is never what
keeps an outage going; pauses have full jitter, so that many sidecars do not all reconnect at once. A ladder that is
spent is escalated once, and stays spent until its component has been well for long enough.

All of it can be written down at any moment and taken up again by another process: a rung that was under way when the
first one died is verified and not done again, since it may be what killed it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

State = Literal["waiting", "climbing", "verifying", "held", "escalated"]
Result = Literal["done", "skipped", "failed"]
What = Literal["ill", "climbing", "climbed", "recovered", "unhelped", "escalated", "relapsed", "stable"]

RUNGS = (
    "reset_pool",
    "resolve_again",
    "reset_cache",
    "verify_index",
    "reload_snapshot",
    "rebuild_index",
    "copy_again",
    "drop_cuda",
    "clear_session",
    "reload_model",
    "switch_endpoint",
)
"""What can be done without anybody's help, from the cheapest to the dearest."""
HEAVY = frozenset({"verify_index", "reload_snapshot", "rebuild_index", "clear_session", "reload_model"})
"""Rungs that take CPU time of ours, and wait until the budget has it."""
LADDERS: Mapping[str, tuple[str, ...]] = {
    "vector_database": ("reset_pool", "resolve_again", "switch_endpoint"),
    "embedding_service": ("reset_pool", "resolve_again", "switch_endpoint"),
    "llm_service": ("reset_pool", "resolve_again", "switch_endpoint"),
    "network": ("reset_pool", "resolve_again"),
    "cache": ("reset_cache",),
    "local_model": ("drop_cuda", "clear_session", "reload_model"),
    "local_index": ("verify_index", "reload_snapshot", "rebuild_index", "copy_again"),
}
"""Role -> what is tried for it, unless the policies say otherwise."""

BELIEVED_S = 60.0
"""How long a verdict may lag behind what we have verified, before it counts as another failure."""
STEPS_MAX = 12
"""Steps of a ladder that are remembered; the oldest go first."""
LADDERS_MAX = 512
DETAIL_CHARS_MAX = 200


class RecoveryRules(Protocol):
    """What recovery goes by (`understudy.proxy.settings.recovery.Recovery` has all of it)."""

    @property
    def attempts(self) -> int: ...
    @property
    def pause_s(self) -> float: ...
    @property
    def pause_ratio(self) -> float: ...
    @property
    def pause_s_max(self) -> float: ...
    @property
    def passes(self) -> int: ...
    @property
    def verify_s(self) -> float: ...
    @property
    def stable_s(self) -> float: ...
    @property
    def cpu_share(self) -> float: ...


class Climb(NamedTuple):
    """Do this now, and say what came of it with `climbed`."""

    component: str
    rung: str
    attempt: int
    kind: str
    incident: str


class Check(NamedTuple):
    """Ask this component, or `instead` of it the one that stands in for it, as it was asked when it failed; say with
    `checked` whether it passed."""

    component: str
    instead: str
    kind: str


class Escalate(NamedTuple):
    """Tell a human. Nothing more is done until the component is well again."""

    component: str
    kind: str
    incident: str
    steps: tuple[str, ...]


Act = Climb | Check | Escalate


class News(NamedTuple):
    """Something has happened on a ladder. Times are seconds since the epoch, here and everywhere in this module."""

    at: float
    component: str
    what: What
    kind: str
    detail: str
    attempt: int
    rung: str


@dataclass(slots=True)
class Ladder:
    """How far one component's ladder is climbed. `attempt` counts walks begun; `rung` is where this walk stands.

    `instead` is the component that stands in for this one, where that is what helped. `believed` says that the verdict
    has been heard to agree with us since we last thought the component well; `begun` that the rung was handed out.
    """

    component: str
    kind: str
    began_at: float
    state: State = "waiting"
    attempt: int = 0
    rung: int = 0
    since: float = 0.0
    due_at: float = 0.0
    settles_at: float = 0.0
    passes: int = 0
    begun: bool = False
    escalated_at: float | None = None
    instead: str = ""
    believed: bool = False
    steps: list[str] = field(default_factory=list[str])

    @property
    def incident(self) -> str:
        """A name for all of this that stays the same over a restart."""
        return f"{self.component}@{self.began_at:.3f}"

    def enter(self, state: State, now: float) -> None:
        self.state, self.since, self.begun = state, now, False

    def note(self, step: str) -> None:
        self.steps.append(step[:DETAIL_CHARS_MAX])
        del self.steps[:-STEPS_MAX]


class Budget:
    """CPU time that may be taken: what was spent is paid off at `share` of a core before more is."""

    __slots__ = ("_owes_s", "_seen_at", "cpu_s", "share")

    def __init__(self, share: float) -> None:
        self.share = share
        self.cpu_s = 0.0
        self._owes_s = 0.0
        self._seen_at = float("-inf")

    def spent(self, now: float, cpu_s: float, took_s: float) -> None:
        """So much was taken in the last `took_s` seconds, which have paid off their part."""
        self._look(now)
        self.cpu_s += cpu_s
        self._owes_s += max(0.0, cpu_s - took_s * self.share)

    def has_some(self, now: float) -> bool:
        """Whether all that was spent is paid off."""
        self._look(now)
        return self._owes_s <= 0.0

    def _look(self, now: float) -> None:
        # where the clock was put back nothing is paid off, and nothing is owed for longer either
        self._owes_s = max(0.0, self._owes_s - max(0.0, now - self._seen_at) * self.share) if self._owes_s else 0.0
        self._seen_at = now


class Recovery:
    """The pure heart: told the time, what is ill and what came of each act, it says what to do. `dice` give [0, 1).

    `ladder_of` gives a component's rungs; one without any is left alone.
    """

    def __init__(
        self, rules: RecoveryRules, ladder_of: Callable[[str], tuple[str, ...]], dice: Callable[[], float]
    ) -> None:
        self.rules = rules
        self.ladder_of = ladder_of
        self.ladders: dict[str, Ladder] = {}
        self.budget = Budget(rules.cpu_share)
        self._dice = dice
        self._in_hand: set[str] = set()
        self._heavy = ""
        self._news: list[News] = []

    # --- what is heard ---------------------------------------------------------------------------------------------

    def hear(self, now: float, component: str, *, is_ill: bool, kind: str = "") -> None:
        """What the health checks say of a component just now."""
        ladder = self.ladders.get(component)
        if ladder is None:
            if is_ill and self.ladder_of(component) and len(self.ladders) < LADDERS_MAX:
                ladder = self.ladders[component] = Ladder(component, kind, now, since=now)
                self._tell(now, ladder, "ill", kind)
                self._wait(now, ladder)
        elif is_ill:
            self._heard_ill(now, ladder, kind)
        elif ladder.state in ("waiting", "escalated"):
            self._hold(now, ladder, "by itself")
            ladder.believed = True
        elif ladder.state == "held":
            if ladder.instead:
                ladder.since, ladder.instead = now, ""
            ladder.believed = True

    def _heard_ill(self, now: float, ladder: Ladder, kind: str) -> None:
        # one that is left out is no better for it, which is no relapse
        if ladder.state != "held" or ladder.instead:
            return
        if ladder.believed or now - ladder.since >= BELIEVED_S:
            self.relapsed(now, ladder.component, kind)

    def relapsed(self, now: float, component: str, kind: str) -> None:
        """What had been healed, or had somebody stand in for it, has failed again: the counts go on."""
        ladder = self.ladders.get(component)
        if ladder is None or ladder.state != "held":
            return
        ladder.kind, ladder.instead = kind or ladder.kind, ""
        self._tell(now, ladder, "relapsed", ladder.kind)
        self._walk_over(now, ladder)

    def forget(self, component: str) -> None:
        """There is no such component any more. What is in hand for it stays in hand until it is reported."""
        self.ladders.pop(component, None)

    def again(self, now: float, component: str) -> bool:
        """An operator has it tried anew, from the first attempt on; whether there is such a ladder. Who has been told
        is not told again."""
        ladder = self.ladders.get(component)
        if ladder is None or ladder.state not in ("waiting", "escalated"):
            return False
        ladder.attempt = 0
        ladder.enter("waiting", now)
        ladder.due_at = now
        return True

    def obey(self, rules: RecoveryRules) -> None:
        """Go by other rules from now on."""
        self.rules = rules
        self.budget.share = rules.cpu_share

    # --- what is to be done ----------------------------------------------------------------------------------------

    def due(self, now: float) -> list[Act]:
        """What to do now: for each component one thing at most, and nothing while it has something in hand."""
        acts: list[Act] = []
        for component, ladder in list(self.ladders.items()):
            if component in self._in_hand:
                continue
            if not self.ladder_of(component):
                # the policies want nothing done for it any more
                self.forget(component)
                continue
            act = self._next(now, ladder)
            if act is not None:
                self._in_hand.add(component)
                acts.append(act)
        return acts

    def _next(self, now: float, ladder: Ladder) -> Act | None:
        # a clock that was put back must not make a pause of hours
        ladder.since = min(ladder.since, now)
        ladder.due_at = min(ladder.due_at, now + max(self.rules.pause_s_max, self.rules.verify_s))
        if ladder.state == "held":
            if now - ladder.since >= self.rules.stable_s and not ladder.instead:
                self._tell(now, ladder, "stable", "")
                del self.ladders[ladder.component]
            return None
        if ladder.state == "escalated":
            if ladder.escalated_at is not None:
                return None
            # noted first: should we die while it is told, it is not told again
            ladder.escalated_at = now
            self._tell(now, ladder, "escalated", "; ".join(ladder.steps))
            return Escalate(ladder.component, ladder.kind, ladder.incident, tuple(ladder.steps))
        if now < ladder.due_at:
            return None
        if ladder.state == "verifying":
            return Check(ladder.component, ladder.instead, ladder.kind)
        return self._climb(now, ladder)

    def _climb(self, now: float, ladder: Ladder) -> Act | None:
        rungs = self.ladder_of(ladder.component)
        if ladder.state == "waiting":
            ladder.attempt, ladder.rung = ladder.attempt + 1, 0
            ladder.enter("climbing", now)
        if ladder.rung >= len(rungs):
            # the policies have changed meanwhile
            self._walk_over(now, ladder)
            return None
        rung = rungs[ladder.rung]
        if rung in HEAVY:
            # one at a time, and only once the last one is paid off
            if self._heavy or not self.budget.has_some(now):
                return None
            self._heavy = ladder.component
        ladder.begun = True
        self._tell(now, ladder, "climbing", "")
        return Climb(ladder.component, rung, ladder.attempt, ladder.kind, ladder.incident)

    def rest_s(self, now: float) -> float:
        """Seconds until something is due, unless something else happens first."""
        waiting = (each for each in self.ladders.values() if each.state in ("waiting", "verifying"))
        due = [each.due_at - now for each in waiting if each.component not in self._in_hand]
        return max(0.0, min(due, default=float("inf")))

    # --- what came of it -------------------------------------------------------------------------------------------

    def climbed(
        self,
        now: float,
        component: str,
        result: Result,
        detail: str = "",
        *,
        cpu_s: float = 0.0,
        took_s: float = 0.0,
        settle_s: float = 0.0,
        instead: str = "",
    ) -> None:
        """A rung was tried. It may take `settle_s` until it shows; `instead` is who stands in for the component now,
        and is checked in its place."""
        self.budget.spent(now, cpu_s, took_s)
        ladder = self._back(component)
        if ladder is None or ladder.state != "climbing":
            return
        ladder.note(f"attempt {ladder.attempt}, {self._rung_of(ladder)}: {result}" + (f" ({detail})" if detail else ""))
        self._tell(now, ladder, "climbed", f"{result}: {detail}" if detail else result)
        if result != "done":
            self._step_up(now, ladder)
            return
        ladder.enter("verifying", now)
        ladder.passes, ladder.due_at, ladder.settles_at, ladder.instead = 0, now, now + settle_s, instead

    def checked(self, now: float, component: str, *, passed: bool) -> None:
        """The component, or who stands in for it, was asked."""
        ladder = self._back(component)
        if ladder is None or ladder.state != "verifying":
            return
        ladder.due_at = now + self.rules.verify_s
        if passed:
            ladder.passes += 1
            if ladder.passes >= self.rules.passes:
                self._hold(now, ladder, self._rung_of(ladder))
            return
        ladder.passes = 0
        if now >= ladder.settles_at:
            self._tell(now, ladder, "unhelped", "")
            ladder.instead = ""
            self._step_up(now, ladder)

    def told(self, component: str) -> None:
        """An escalation is over with, whether it reached anybody or not."""
        self._back(component)

    def put_off(self, component: str) -> None:
        """What was in hand was not done, and may be handed out again."""
        self._back(component)

    def _back(self, component: str) -> Ladder | None:
        self._in_hand.discard(component)
        if self._heavy == component:
            self._heavy = ""
        return self.ladders.get(component)

    def _rung_of(self, ladder: Ladder) -> str:
        rungs = self.ladder_of(ladder.component)
        return rungs[ladder.rung] if ladder.rung < len(rungs) else ""

    def _step_up(self, now: float, ladder: Ladder) -> None:
        ladder.rung += 1
        if ladder.rung < len(self.ladder_of(ladder.component)):
            ladder.enter("climbing", now)
            ladder.due_at = now
        else:
            self._walk_over(now, ladder)

    def _walk_over(self, now: float, ladder: Ladder) -> None:
        if ladder.attempt < self.rules.attempts:
            self._wait(now, ladder)
        else:
            ladder.enter("escalated", now)

    def _wait(self, now: float, ladder: Ladder) -> None:
        ladder.enter("waiting", now)
        ladder.due_at = now + self._dice() * period_s(self.rules, ladder.attempt)

    def _hold(self, now: float, ladder: Ladder, by: str) -> None:
        ladder.enter("held", now)
        ladder.believed = False
        ladder.note(f"well again: {by}")
        self._tell(now, ladder, "recovered", by)

    # --- what others are told --------------------------------------------------------------------------------------

    def _tell(self, now: float, ladder: Ladder, what: What, detail: str) -> None:
        rung = self._rung_of(ladder) if ladder.state in ("climbing", "verifying", "held") else ""
        detail = detail[:DETAIL_CHARS_MAX]
        self._news.append(News(now, ladder.component, what, ladder.kind, detail, ladder.attempt, rung))

    def news(self) -> list[News]:
        """What has happened since this was last asked."""
        news, self._news = self._news, []
        return news

    # --- kept over a restart ---------------------------------------------------------------------------------------

    def recall(self, now: float, kept: Iterable[Ladder]) -> None:
        """Go on where another process ended, at whatever moment that was."""
        for ladder in list(kept)[:LADDERS_MAX]:
            # what was under way is verified: it may have helped, and it may be what the other one died of
            if ladder.state == "climbing" and ladder.begun:
                ladder.note(f"attempt {ladder.attempt}, {self._rung_of(ladder)}: the process ended meanwhile")
                ladder.enter("verifying", now)
            if ladder.state == "verifying":
                ladder.passes, ladder.due_at = 0, now
            ladder.since = min(ladder.since, now)
            self.ladders[ladder.component] = ladder


def period_s(rules: RecoveryRules, attempt: int) -> float:
    """The longest pause before the walk after `attempt` others, in seconds."""
    return min(rules.pause_s_max, rules.pause_s * rules.pause_ratio**attempt)


def role_of(component: str) -> str:
    """The role of `role:name`."""
    return component.partition(":")[0]


def name_of(component: str) -> str:
    """The name of `role:name`."""
    return component.partition(":")[2]


def in_words(ladder: Ladder, rungs: tuple[str, ...], rules: RecoveryRules, now: float) -> str:
    """What is being done about a component, in one line for whoever is woken by it."""
    where = f"attempt {ladder.attempt} of {rules.attempts}"
    rung = rungs[ladder.rung] if ladder.rung < len(rungs) else ""
    match ladder.state:
        case "waiting" if not ladder.attempt:
            return f"begins in {max(0.0, ladder.due_at - now):.0f} s"
        case "waiting":
            return f"{where} did not help; the next begins in {max(0.0, ladder.due_at - now):.0f} s"
        case "climbing":
            return f"{where}: {rung}"
        case "verifying":
            return f"{where}: {rung} done, {ladder.passes} of {rules.passes} checks passed"
        case "held" if ladder.instead:
            return f"{ladder.instead} stands in since {now - ladder.since:.0f} s"
        case "held":
            return f"well again since {now - ladder.since:.0f} s: {ladder.steps[-1] if ladder.steps else ''}"
        case "escalated":
            return f"nothing helped in {rules.attempts} attempts; left to a human"
