"""Stop asking a tier that keeps failing; ask again, a little, after a pause.

           too many failures                 pause elapsed
    CLOSED ------------------> OPEN(until) ----------------> PROBING(permits)
      ^                          ^                               |
      |                          +---- one probe failed, or -----+
      |                          |     probing took too long     |
      +--------------------------+------ all probes answered ----+

Three detectors run side by side: failures in a row (fast on a hard outage), an exact failure ratio over ten fixed
buckets (catches "half of them fail"), and, where `slow_s` is set, the share of calls whose first byte was late. Exact
counts and not a decaying average: an average that weighs by time can sleep through an outage that comes as a burst
(resilience4j's and linkerd2-proxy's lesson).

Every result carries the generation in which it was admitted, so that a straggler from before a change of state changes
nothing after it, save that a longer Retry-After is still heeded. By hand it can be forced open, disabled, or made to
count without refusing (`force`); back from forced open it goes by way of probes. `said` and `hear` let the breakers of
several processes agree (`understudy.policies.agreement`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from understudy.policies.agreement import Said, newer
from understudy.policies.forcing import Mode
from understudy.policies.service import Answer, Call, End, Failed, Refused, Service

State = Literal["closed", "open", "half-open"]

UNCOUNTED = -1
"""A ticket by which nothing is counted."""
HINT_S = (1.0, 300.0)
"""The bounds, in seconds, within which an upstream's own word on when to come back is believed."""
HINT_CALLS_MIN = 3
"""So many calls of our own within the window outweigh another replica's hint, where few enough of them failed."""
BUCKETS = 10
JITTER = 0.25
"""Open times vary by this share either way, so that sidecars do not probe a struggling upstream in step."""


class BreakerRules(Protocol):
    """What a breaker goes by (`Breaker` of `proxy/settings` has all of it)."""

    @property
    def enabled(self) -> bool: ...
    @property
    def consecutive(self) -> int: ...
    @property
    def ratio(self) -> float: ...
    @property
    def slow_s(self) -> float | None: ...
    @property
    def slow_ratio(self) -> float: ...
    @property
    def window_s(self) -> float: ...
    @property
    def calls_min(self) -> int: ...
    @property
    def open_s(self) -> float: ...
    @property
    def open_s_max(self) -> float: ...
    @property
    def permits(self) -> int: ...
    @property
    def probing_s_max(self) -> float: ...


class Breaker:
    """The pure heart: told the time and what came of each call, it says whether the next may pass."""

    __slots__ = (
        "_answered",
        "_bucket",
        "_calls",
        "_calls_now",
        "_failures",
        "_failures_now",
        "_opened_until",
        "_permits_left",
        "_slow",
        "_slow_now",
        "_until",
        "calls",
        "epoch",
        "failures",
        "generation",
        "in_a_row",
        "is_hinted",
        "mode",
        "opened_in_a_row",
        "reason",
        "rules",
        "state",
        "transitions",
        "would_refuse",
    )

    def __init__(self, rules: BreakerRules) -> None:
        # what every call touches comes first: compiled, fields lie in this order, and of a hundred endpoints' breakers
        # few lie in the processor's caches
        self.mode: Mode = "auto"
        self.state: State = "closed"
        self.generation = 0
        self.in_a_row = 0
        self.calls = 0
        """Calls counted while it was closed, ever; `failures` are those of them that failed."""
        self._calls_now = 0
        self._bucket = 0
        self.rules = rules
        self.failures = 0
        self._failures_now = 0
        self._slow_now = 0
        self.would_refuse = 0
        self.epoch = 0
        self.is_hinted = False
        self.opened_in_a_row = 0
        self.reason = ""
        self.transitions: dict[State, int] = {"closed": 0, "open": 0, "half-open": 0}
        self._until = 0.0
        self._opened_until = 0.0
        self._permits_left = 0
        self._answered = 0
        # of the buckets before the one that is counted in now
        self._calls = [0] * BUCKETS
        self._failures = [0] * BUCKETS
        self._slow = [0] * BUCKETS

    @property
    def shown(self) -> State:
        """The state as callers meet it; while it only counts, the state it would be in."""
        if self.mode in ("auto", "metrics-only"):
            return self.state
        return "open" if self.mode == "forced-open" else "closed"

    @property
    def why(self) -> str:
        """Why it is not closed."""
        return self.reason if self.mode == "auto" else f"{self.mode} by hand"

    @property
    def _heeds(self) -> bool:
        return self.rules.enabled or self.mode == "metrics-only"

    def obey(self, rules: BreakerRules) -> None:
        """Go by other rules from now on. One that is switched off knows of nothing any more: a state that nobody heeds
        and nothing can change must not be taken for the endpoint's by those who look at it."""
        self.rules = rules
        if not self._heeds and self.state != "closed":
            self._forget()
            self.opened_in_a_row = 0
            self.generation += 1
            self.state = "closed"

    def force(self, mode: Mode, now: float) -> None:
        """Do as an operator says until told `auto`. What is in flight was admitted under other rules and counts for
        nothing; who was forced open is probed before it is trusted."""
        if mode == self.mode:
            return
        before, self.mode = self.mode, mode
        self.generation += 1
        if before == "disabled":
            self._forget()
            self.opened_in_a_row = 0
            self.state = "closed"
        elif before == "forced-open" or self.state == "half-open":
            self.reason = f"it was {before}" if before != "auto" else self.reason
            self._until = self._opened_until = now
            self.state = "open"

    def admit(self, now: float) -> int | None:
        """A ticket to be handed back with the result, or None: do not ask."""
        if self.mode == "auto":
            if self.state == "closed" or not self.rules.enabled:
                return self.generation
            return self._admit(now)
        if self.mode == "forced-open":
            return None
        if self.mode == "disabled":
            return UNCOUNTED
        ticket = self.generation if self.state == "closed" else self._admit(now)
        if ticket is None:
            self.would_refuse += 1
            return UNCOUNTED
        return ticket

    def _admit(self, now: float) -> int | None:
        if self.state == "open":
            if now < self._until:
                return None
            self._become("half-open", now)
            self._permits_left = self.rules.permits
            self._answered = 0
            self._until = now + self.rules.probing_s_max
        elif now >= self._until:
            # probes that never come back must not hold the door half shut for ever
            self._open(now, 0.5, None, "probing took too long")
            return None
        if self._permits_left <= 0:
            return None
        self._permits_left -= 1
        return self.generation

    def succeeded(self, now: float, ticket: int) -> None:
        """The call was answered (with anything that is not the tier's failure)."""
        if ticket != self.generation:
            return
        if self.state == "closed":
            self.in_a_row = 0
            self._count(now)
        elif self.state == "half-open":
            self._answered += 1
            if self._answered >= self.rules.permits:
                self.opened_in_a_row = 0
                self._forget()
                self.epoch += 1
                self._become("closed", now)

    def began(self, now: float, ticket: int) -> None:
        """The call was answered so far, with a stream: a row of failures ends only when that has `ended_well`."""
        in_a_row = self.in_a_row
        self.succeeded(now, ticket)
        if ticket == self.generation and self.state == "closed":
            self.in_a_row = in_a_row

    def ended_well(self, ticket: int) -> None:
        """A stream that had begun came to its end."""
        if ticket == self.generation and self.state == "closed":
            self.in_a_row = 0

    def slow(self, now: float, ticket: int, luck: float) -> None:
        """The call was answered, but its first byte took longer than `rules.slow_s`; `luck` is uniform in [0, 1)."""
        if ticket != self.generation or not self._heeds:
            return
        if self.state == "half-open":
            self._open(now, luck, None, "a probe was slow")
        elif self.state == "closed":
            self.in_a_row = 0
            self._count(now)
            self._slow_now += 1
            calls, slow = sum(self._calls) + self._calls_now, sum(self._slow) + self._slow_now
            if calls >= self.rules.calls_min and slow >= self.rules.slow_ratio * calls:
                self._open(now, luck, None, f"{slow} of {calls} calls were slow")

    def failed(
        self,
        now: float,
        ticket: int,
        luck: float,
        *,
        soft: bool = False,
        retry_after_s: float | None = None,
        counted: bool = False,
    ) -> None:
        """The call failed; `luck` is uniform in [0, 1). A soft failure (busy, in good order) counts in the ratio and
        ends probing, but not in the row. One that is `counted` was answered so far: it is no other call."""
        if ticket != self.generation:
            if ticket == self.generation - 1 and self.state == "open" and retry_after_s is not None:
                # a straggler from before it opened changes nothing, but the longer of two hints is the safer
                self._until = self._opened_until = max(self._until, now + _believed(retry_after_s))
            return
        if not self._heeds:
            return
        if self.state == "half-open":
            self._open(now, luck, retry_after_s, "a probe failed")
            return
        if self.state != "closed":
            return
        if counted:
            self._turn_to(now)
        else:
            self._count(now)
        self._failures_now += 1
        self.failures += 1
        if not soft:
            self.in_a_row += 1
            if self.in_a_row >= self.rules.consecutive:
                self._open(now, luck, retry_after_s, f"{self.in_a_row} failures in a row")
                return
        calls, failures = self.lately(now)
        if calls >= self.rules.calls_min and failures >= self.rules.ratio * calls:
            self._open(now, luck, retry_after_s, f"{failures} of {calls} calls failed")

    def forgotten(self, ticket: int) -> None:
        """The call came to nothing that says anything of the tier (the caller left): its permit comes back."""
        if ticket == self.generation and self.state == "half-open":
            self._permits_left += 1

    def retry_after_s(self, now: float) -> float:
        """Seconds until the tier may be asked again; 0 when it may be now."""
        return max(0.0, self._until - now) if self.state == "open" else 0.0

    def lately(self, now: float) -> tuple[int, int]:
        """Calls in the window, and failures among them, while it is closed."""
        self._turn_to(now)
        return sum(self._calls) + self._calls_now, sum(self._failures) + self._failures_now

    def unasked_s(self, now: float) -> float:
        """How long it might have let a probe pass, and nobody came."""
        return max(0.0, now - self._until) if self.state == "open" else 0.0

    def said(self) -> Said:
        """What the others may go by. While probing it is still what was said when it opened."""
        if self.state == "closed":
            return Said(self.epoch)
        return Said(self.epoch, True, self._opened_until, self.opened_in_a_row, self.reason)

    def hear(self, said: Said, now: float) -> bool:
        """Go by what another said if it holds against what we say ourselves; whether it did."""
        if not self.rules.enabled or newer(self.said(), said) == self.said():
            return False
        self.epoch = said.epoch
        self._forget()
        if said.is_open:
            self.reason = said.reason
            self._until = self._opened_until = said.until
            self.opened_in_a_row = said.opened_in_a_row
            self._become("open", now)
        else:
            self.opened_in_a_row = 0
            self._become("closed", now)
        return True

    def hint(self, now: float, open_s: float, reason: str) -> bool:
        """Another replica's breaker has opened, for so many seconds: do the same, unless our own calls speak against
        it; whether we did. It is no saying of ours: nobody hears of it from us, and our own probes end it."""
        if not self.rules.enabled or self.mode != "auto" or self.state != "closed":
            return False
        calls, failures = self.lately(now)
        if calls >= HINT_CALLS_MIN and not self.in_a_row and failures < self.rules.ratio / 2 * calls:
            return False
        self.reason = reason
        self._until = self._opened_until = now + open_s
        self._forget()
        self._become("open", now)
        self.is_hinted = True
        return True

    def _count(self, now: float) -> None:
        self._turn_to(now)
        self._calls_now += 1
        self.calls += 1

    def _turn_to(self, now: float) -> None:
        """Count in the bucket of this moment from now on; those that are too old are emptied."""
        bucket = int(now * BUCKETS / self.rules.window_s)
        if bucket == self._bucket:
            return
        at = self._bucket % BUCKETS
        self._calls[at], self._failures[at], self._slow[at] = self._calls_now, self._failures_now, self._slow_now
        self._calls_now = self._failures_now = self._slow_now = 0
        # backwards only where the window has become another: then nothing of the old one holds
        stale = bucket - self._bucket if bucket > self._bucket else BUCKETS
        for step in range(min(stale, BUCKETS)):
            at = (bucket - step) % BUCKETS
            self._calls[at] = self._failures[at] = self._slow[at] = 0
        self._bucket = bucket

    def _open(self, now: float, luck: float, retry_after_s: float | None, reason: str) -> None:
        rules = self.rules
        pause_s = min(rules.open_s_max, rules.open_s * 2.0**self.opened_in_a_row)
        pause_s *= 1 - JITTER + 2 * JITTER * luck
        # what would be longer than the longest is as much shorter: the longest are spread, too
        pause_s = min(pause_s, 2 * rules.open_s_max - pause_s)
        if retry_after_s is not None:
            # the upstream's own word beats our guess, within reason
            pause_s = _believed(retry_after_s)
        self.opened_in_a_row = min(self.opened_in_a_row + 1, 16)
        self.reason = reason
        self._until = self._opened_until = now + pause_s
        self.epoch += 1
        self._forget()
        self._become("open", now)

    def _forget(self) -> None:
        self.in_a_row = 0
        self._calls_now = self._failures_now = self._slow_now = 0
        self._calls = [0] * BUCKETS
        self._failures = [0] * BUCKETS
        self._slow = [0] * BUCKETS

    def _become(self, state: State, now: float) -> None:
        self.generation += 1
        self.state = state
        self.is_hinted = False
        self._bucket = int(now * BUCKETS / self.rules.window_s)
        self.transitions[state] += 1


def _believed(retry_after_s: float) -> float:
    return min(max(retry_after_s, HINT_S[0]), HINT_S[1])


def breaker(service: Service, heart: Breaker, *, clock: Callable[[], float], dice: Callable[[], float]) -> Service:
    """Ask `service` only while `heart` admits it, and tell it what came of every call."""

    async def guarded(call: Call) -> Answer:
        ticket = heart.admit(clock())
        if ticket is None:
            raise Refused("breaker", f"breaker {heart.shown}: {heart.why}", retry_after_s=_back_in_s())
        before_s = call.upstream_s
        try:
            answer = await service(call)
        except Failed as failed:
            if failed.fault != "endpoint":
                heart.forgotten(ticket)
                raise
            heart.failed(clock(), ticket, dice(), soft=failed.soft, retry_after_s=failed.retry_after_s)
            raise
        except BaseException:
            # refused further in, cancelled, or our own bug: nothing was learnt of the tier
            heart.forgotten(ticket)
            raise
        # the first content counts, and gives the permit back: a stream may last for minutes
        slow_s = heart.rules.slow_s
        if slow_s is not None and call.upstream_s - before_s > slow_s:
            heart.slow(clock(), ticket, dice())
        else:
            (heart.succeeded if answer.stream is None else heart.began)(clock(), ticket)
        if answer.stream is not None:
            answer.stream.watch(lambda end: _stream_ended(end, ticket))
        return answer

    def _back_in_s() -> float | None:
        # who was forced open stays so until somebody says otherwise
        return None if heart.mode == "forced-open" else heart.retry_after_s(clock())

    def _stream_ended(end: End, ticket: int) -> None:
        if end == "cut":
            # begun with 200 and broken off: a failure of the tier all the same
            heart.failed(clock(), ticket, dice(), counted=True)
        elif end == "done":
            heart.ended_well(ticket)

    return guarded
