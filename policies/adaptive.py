"""Learn how many calls at once an endpoint can serve, from how it answers the ones it gets.

    places
      max +-----------.                          ..:: a while without a sign of overload: max again
          |            \\                     .::'
          |   overload  \\    .-.   .-.   .-.'      grows only while the places are being used
      min +..............`-.-'...`-'...`-'.......
                        shrinks at every sign      never below min: so few calls at once overload nobody

Two ways of learning, for two kinds of upstream:

- `Gradient` (embedding, retrieval: an answer takes about as long as the last one of its size did) compares the time
  to the first content with what is usual, after Netflix's Gradient2. What is usual is kept for each size of request,
  since a batch of a hundred texts is no sign of overload. Where the two differ for long, a probe asks with less at
  once: if that makes nothing faster, the upstream itself has become slower, and that is the new usual.
- `Additive` (LLMs, whose time follows the tokens; and whatever is passed through) goes by soft failures and timeouts:
  a cut by a third, then growth along CUBIC's curve (RFC 9438 section 4), fast up to where it hurt and slow beyond. And
  it lets in no more than are answered before they would time out.

An application that asks for less than the limit changes nothing, so an idle one is never hurt: the limit starts at its
maximum, and returns there when nothing has spoken of overload for a while.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, Protocol

from understudy.policies.service import Call, Failed

Signal = Literal["latency", "failures"]
"""What a limit learns from."""

CUT = 0.7
"""What is left of the places in use after a sign of overload (RFC 9438's beta)."""
FORGET_S = 20.0
"""Seconds without a sign of overload after which it is forgotten."""
PACE_S_MAX = 30.0
DEADLINE_OF_USUAL = 3.0
"""A call that ran into its caller's deadline speaks of overload if it had this many times as long as usual."""
OVERLOAD = frozenset(("first_byte_timeout", "first_content_timeout", "timeout"))
"""Reasons of a failure that are a sign of overload though the upstream did not say so."""
LATE = frozenset(("first_byte_timeout", "first_content_timeout"))
"""Those of them that tell how long the endpoint is waited for."""
NOT_OVERLOAD = frozenset(("quota", "insufficient_quota", "deadline"))
"""Soft failures that are none: an account that is spent, and an impatient caller."""

TOLERANCE = 1.5
SLACK_S = 0.01
"""A wait as short as this harms nobody, and can't be told from our own when the process is busy."""
HEADROOM = 4
SHRINK_MAX = 0.5
WINDOW_S, WINDOW_S_MAX = 0.5, 2.0
SAMPLES_MIN = 10
SIZES = 16
"""Classes of request size, each four times the one before."""
FOLLOW = 0.2
PROBE_S, PROBE_S_MAX = 5.0, 60.0
PROBE_SHARE = 0.7
PROBE_FELL = 0.9
"""With less at once the time falls below this share of itself where there is a queue to get shorter."""

CUBIC = 0.4
UNBOUND = float("inf")
EVEN = 0.1
"""How far a mean moves towards each answer."""
CREEP = 0.01
BASE_CREEP = 0.002
"""How far what an answer takes at best moves towards what it takes; down it moves at once."""
LATE_SHARE = 0.5
WAIT_SHARE = 0.6
"""Shares of what calls are given: above the first, waiting is looked for; up to the second, it is allowed."""
TRIAL = 2.0
"""For so many times what calls are given it is tried whether fewer of them are answered sooner."""
WAITING = 1.5
"""So many times longer than at best, and it is waiting that takes the time."""
NEVER = float("-inf")


class AdaptiveRules(Protocol):
    """Between what bounds a limit may move (`Limit` of `proxy/settings` has both)."""

    @property
    def concurrent_min(self) -> int: ...
    @property
    def concurrent_max(self) -> int: ...


class Learner(ABC):
    """What both ways share. `places` is the limit; `in_flight` counts the call that is being told of."""

    __slots__ = ("_cut_at", "_pace_s", "_signed_at", "_usual_s", "cuts", "patience_s", "places", "rules", "streams")

    def __init__(self, rules: AdaptiveRules, patience_s: float) -> None:
        self.rules = rules
        self.patience_s = patience_s
        """How long the endpoint is waited for, as far as is known."""
        self.places = rules.concurrent_max
        self.cuts: int = 0
        self.streams = 0
        """Of those in flight, how many have had their first content."""
        self._usual_s = 0.0
        self._cut_at = self._signed_at = NEVER
        self._pace_s = 1.0

    def obey(self, rules: AdaptiveRules) -> None:
        """Move within other bounds from now on."""
        if self.places == self.rules.concurrent_max:
            # nothing restrained it but the bound
            self.places = rules.concurrent_max
        self.rules = rules
        self.places = min(max(self.places, rules.concurrent_min), rules.concurrent_max)

    @abstractmethod
    def answered(self, now: float, took_s: float, in_flight: int, call: Call) -> None:
        """A call had its first content after `took_s`."""

    def failed(self, now: float, took_s: float, in_flight: int, failed: Failed) -> None:
        """A call failed after `took_s`; whether that speaks of overload is judged here."""
        if not self._speaks_of_overload(failed, took_s) or in_flight <= self.rules.concurrent_min:
            # with so few calls at once it is not their number that hurts
            return
        self._signed_at = now
        if now - took_s < self._cut_at:
            # begun before the last cut, which has answered for it
            return
        self._pace_s = min(max(took_s, 1.0), PACE_S_MAX)
        self._cut(now, min(self.places, in_flight))

    def relax(self, now: float) -> None:
        """Forget an overload of which nothing has been seen for long; asked when the limit stands in the way."""
        if self.places < self.rules.concurrent_max and now - self._signed_at > FORGET_S * self._pace_s:
            self.places = self.rules.concurrent_max

    def _speaks_of_overload(self, failed: Failed, took_s: float) -> bool:
        if failed.reason == "deadline":
            return 0.0 < self._usual_s * DEADLINE_OF_USUAL < took_s
        return failed.reason in OVERLOAD or (failed.soft and failed.reason not in NOT_OVERLOAD)

    def _cut(self, now: float, used: int) -> None:
        self.cuts += 1
        self._cut_at = now
        self.places = max(self.rules.concurrent_min, int(used * CUT))


class Additive(Learner):
    """Shrinks at soft failures and timeouts, grows while its places are used and nothing fails; and does not wait for
    timeouts where it sees them come.

    A timeout tells too late of a line at the upstream: all who stand behind have waited in vain as well, and one that
    does not notice that they left works on for nobody. So the wait is foreseen: who comes last is answered when all in
    front are, one every so often (Little's law). Once it is waiting that takes the time, as many are let in as are
    answered within WAIT_SHARE of what they are given. `streams` have had their first content, and stand in no line.
    """

    __slots__ = (
        "_answered_at",
        "_base_s",
        "_bound",
        "_bound_at",
        "_crowd",
        "_gap_best_s",
        "_gap_s",
        "_grew_at",
        "_grown",
        "_hurt_at",
        "_plateau_s",
        "_pressed_at",
        "_pressed_s",
    )

    def __init__(self, rules: AdaptiveRules, patience_s: float = UNBOUND) -> None:
        super().__init__(rules, patience_s)
        self._grew_at = 0.0
        self._hurt_at = 0
        self._plateau_s = 0.0
        self._pressed_s = 0.0
        self._grown = float(self.places)
        self._answered_at = 0.0
        self._gap_s = self._gap_best_s = self._crowd = self._base_s = 0.0
        self._bound = UNBOUND
        self._bound_at = (0.0, 0.0, 0.0)
        """How long answers took, and how many were in flight, when the bound was put up; and when that was."""
        self._pressed_at = NEVER

    def obey(self, rules: AdaptiveRules) -> None:
        super().obey(rules)
        self._grown = float(self.places)
        self._bound = UNBOUND

    def answered(self, now: float, took_s: float, in_flight: int, call: Call) -> None:
        usual_s = self._usual_s
        waiting = in_flight - self.streams
        if usual_s:
            usual_s = self._usual_s = usual_s + (took_s - usual_s) * EVEN
            gap_s = self._gap_s = self._gap_s + (now - self._answered_at - self._gap_s) * EVEN
            self._crowd += (waiting - self._crowd) * EVEN
            self._base_s = min(usual_s, self._base_s + (usual_s - self._base_s) * BASE_CREEP)
            self._gap_best_s = min(gap_s, self._gap_best_s + (gap_s - self._gap_best_s) * CREEP)
        else:
            self._usual_s = self._base_s = self._gap_s = self._gap_best_s = usual_s = took_s
            self._crowd = float(waiting)
        self._answered_at = now
        if usual_s > self._base_s * WAITING or self._bound < UNBOUND:
            self._foresee(now, waiting, min(call.until - now + took_s, self.patience_s))
        if in_flight * 2 >= self.places and self.places < self.rules.concurrent_max:
            self._grow(now)

    def failed(self, now: float, took_s: float, in_flight: int, failed: Failed) -> None:
        if failed.reason in LATE and 0.0 < took_s < self.patience_s:
            self.patience_s = took_s
        super().failed(now, took_s, in_flight, failed)

    def relax(self, now: float) -> None:
        super().relax(now)
        if self.places == self.rules.concurrent_max:
            self._grown, self._bound = float(self.places), UNBOUND

    def _foresee(self, now: float, waiting: int, given_s: float) -> None:
        """Answers take longer than they must, or did: let in as many as are answered in time."""
        fits = max(given_s * WAIT_SHARE / max(self._gap_best_s, 1e-6), float(self.rules.concurrent_min))
        if self._bound == UNBOUND:
            if waiting * self._gap_s < given_s * LATE_SHARE or waiting < fits:
                return
            self._bound_at = (self._usual_s, self._crowd, now)
        elif self._crowd * 2 < fits:
            if now - self._pressed_at > FORGET_S:
                self._lift()
            return
        elif self._is_in_vain(now, given_s):
            # fewer at once made nothing faster: it is no line that takes the time, and what was cut was cut in vain
            self._base_s = self._usual_s
            self._grown = max(self._grown, min(self._bound_at[1], float(self.rules.concurrent_max)))
            self._lift()
            return
        self._pressed_at = self._signed_at = now
        self._bound = self.streams + fits
        self._settle()

    def _is_in_vain(self, now: float, given_s: float) -> bool:
        usual_s, crowd, since = self._bound_at
        tried = now - since > TRIAL * given_s
        return tried and self._usual_s > usual_s * PROBE_FELL and self._crowd < crowd * CUT

    def _lift(self) -> None:
        self._bound = UNBOUND
        self._settle()

    def _settle(self) -> None:
        self.places = int(min(self._grown, self._bound, self.rules.concurrent_max))

    def _grow(self, now: float) -> None:
        self.relax(now)
        # only time under pressure counts, in units of how late an overload shows: a timeout comes after half a minute
        self._pressed_s += min(now - self._grew_at, 1.0) / self._pace_s
        self._grew_at = now
        reached = self._hurt_at + CUBIC * (self._pressed_s - self._plateau_s) ** 3
        self._grown = min(max(self._grown, reached), float(self.rules.concurrent_max))
        self._settle()

    def _cut(self, now: float, used: int) -> None:
        super()._cut(now, used)
        self._grown = float(self.places)
        self._hurt_at = used
        self._plateau_s = (used * (1 - CUT) / CUBIC) ** (1 / 3)
        self._pressed_s = 0.0
        self._grew_at = now
        self._settle()


class Gradient(Learner):
    """Shrinks when first contents take longer than usual, for as many calls at once as there were."""

    __slots__ = (
        "_count",
        "_counts",
        "_expected",
        "_peak",
        "_probe_due",
        "_probe_pause_s",
        "_probing",
        "_seen",
        "_sums",
        "_until",
    )

    _sums: list[float]
    _counts: list[int]
    _peak: int

    def __init__(self, rules: AdaptiveRules, patience_s: float = UNBOUND) -> None:
        super().__init__(rules, patience_s)
        self._expected = [0.0] * SIZES
        self._seen = [0] * SIZES
        self._probing: tuple[int, float, bool] | None = None
        """While a probe runs: the places before it, how much slower than usual it was, whether it has settled."""
        self._probe_due = 0.0
        self._probe_pause_s = PROBE_S
        self._until = 0.0
        self._begin(0.0, WINDOW_S)

    def answered(self, now: float, took_s: float, in_flight: int, call: Call) -> None:
        if call.kind == "pass":
            # a write beside the reads: nobody knows how long it should take
            return
        self._count += 1
        kind = len(call.request.body).bit_length() >> 1
        if kind >= SIZES:
            kind = SIZES - 1
        self._sums[kind] += took_s
        self._counts[kind] += 1
        if in_flight > self._peak:
            self._peak = in_flight
        if now >= self._until and self._count >= SAMPLES_MIN:
            self._judge(now)

    def failed(self, now: float, took_s: float, in_flight: int, failed: Failed) -> None:
        before = self.cuts
        super().failed(now, took_s, in_flight, failed)
        if self.cuts > before:
            # what the window holds is of before the cut
            self._probing = None
            self._begin(now, WINDOW_S)

    def _judge(self, now: float) -> None:
        """A window is over: what it says of the limit, of what is usual, and of a probe that ran in it."""
        took_s = sum(self._sums)
        slower = self._compared()
        self._usual_s = took_s / self._count
        if self._probing is not None:
            self._judge_probe(now, slower)
        elif slower is not None:
            self._judge_window(now, slower)
        self._begin(now, min(max(WINDOW_S, 2 * self._usual_s), WINDOW_S_MAX))

    def _compared(self) -> float | None:
        """How many times longer than usual, and a little more, the window's calls took; None where too little is
        known. New sizes are got to know."""
        took_s = expected_s = 0.0
        for kind, count in enumerate(self._counts):
            if not count:
                continue
            mean_s = self._sums[kind] / count
            if self._seen[kind] >= SAMPLES_MIN:
                took_s += self._sums[kind]
                expected_s += (self._expected[kind] + SLACK_S) * count
            else:
                self._seen[kind] += count
                self._expected[kind] += (mean_s - self._expected[kind]) * count / self._seen[kind]
        return took_s / expected_s if expected_s > 0 else None

    def _judge_window(self, now: float, slower: float) -> None:
        few = self._peak <= self.rules.concurrent_min
        self._follow(upwards=few)
        if slower > TOLERANCE and not few:
            self._signed_at = now
            self.cuts += 1
            used = min(self.places, self._peak)
            shrunk = int(used * max(SHRINK_MAX, TOLERANCE / slower)) + HEADROOM
            self.places = max(self.rules.concurrent_min, min(self.places, shrunk))
            self._probe_due = self._probe_due or now + self._probe_pause_s
        elif self._peak * 2 >= self.places:
            calm = now - self._signed_at > FORGET_S
            more = self.places if calm else max(HEADROOM, int(self.places**0.5))
            self.places = min(self.places + more, self.rules.concurrent_max)
        elif now - self._signed_at > FORGET_S:
            self.relax(now)
        if self._probe_due and now >= self._probe_due and now - self._signed_at < FORGET_S and not few:
            self._probing = (self.places, slower, False)
            self.places = max(self.rules.concurrent_min, int(min(self.places, self._peak) * PROBE_SHARE))

    def _judge_probe(self, now: float, slower: float | None) -> None:
        assert self._probing is not None
        before, then, settled = self._probing
        if not settled:
            # these calls were still among the many
            self._probing = (before, then, True)
            return
        self._probing = None
        self.places = before
        if slower is None:
            return
        if slower > then * PROBE_FELL and slower > TOLERANCE:
            # fewer at once made nothing faster: the upstream itself has become slower, which is no overload of ours
            self._follow(upwards=True, share=1.0)
            self._signed_at = NEVER
            self._probe_due, self._probe_pause_s = 0.0, PROBE_S
            return
        self._follow(upwards=False, share=1.0)
        self._probe_pause_s = min(self._probe_pause_s * 2, PROBE_S_MAX)
        self._probe_due = now + self._probe_pause_s

    def _follow(self, *, upwards: bool, share: float = FOLLOW) -> None:
        """Move what is usual towards the window: down always, up only where no queue of ours can be the reason."""
        for kind, count in enumerate(self._counts):
            if count and self._seen[kind] >= SAMPLES_MIN:
                mean_s = self._sums[kind] / count
                if upwards or mean_s < self._expected[kind]:
                    self._expected[kind] += (mean_s - self._expected[kind]) * share

    def _begin(self, now: float, window_s: float) -> None:
        self._until = now + window_s
        self._count = 0
        self._peak = 0
        self._sums = [0.0] * SIZES
        self._counts = [0] * SIZES


def learner(signal: Signal, rules: AdaptiveRules, patience_s: float = UNBOUND) -> Learner:
    """One that has learnt nothing yet. `patience_s` is how long the endpoint is waited for."""
    return Gradient(rules, patience_s) if signal == "latency" else Additive(rules, patience_s)
