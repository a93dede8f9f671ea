"""Share a tier's calls out over its endpoints, by how fast and how laden each is; leave out those that fall behind.

    groups, by priority and then by zone:   own zone | elsewhere | next priority ...
                                               ^ each takes what those before it can't carry
    load = calls outstanding / weight + 1          time = until the first byte, peak-EWMA
    in a group of up to 8:   a lottery among all, each with weight / (time^2 x load) tickets
    in a larger one:         two are drawn by weight, and the one with less  time x load  is asked

    one whose quota is spent is passed over while another's is not

           fails in a row, or more than, or is slower than its peers          told to wait (Retry-After)
    IN  ------------------------------------------------------------> OUT <------------------------- IN
     ^                                                                 |
     +---- slow start: a tenth of its weight at first ---- its time is up (longer each time)

A lottery, and not simply the best: many sidecars that all see the same one as the best would all go there. The time is
squared, so that an endpoint ten times as slow gets a hundredth of the calls. What is seen of an endpoint that nobody
asks fades, so that it is asked again. Peak-EWMA is Finagle's; overprovisioning, panic and slow start are Envoy's.

Everything that grows with the number of endpoints is done in `_review`: once a second, and when one comes or goes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from math import exp, inf
from typing import Protocol

from understudy.policies.service import Answer, Call, End, Failed, Refused, Service, Stream

SCAN_MAX = 8
"""Members of a group that are all looked at; of more, two are."""
REVIEW_S = 1.0
START_S = 0.03
"""The cost of every endpoint before anything is known of any."""
SAME_RATIO = 2.0
"""Up to so many times as slow as the fastest counts as equally fast: less is noise, and the weights decide."""
PEAK_RATIO = 10.0
"""One slow answer raises a cost by this at most: a hiccup is no trend."""
FAILED_RATIO = 10.0
"""A failure counts as so many times slower than the fastest: who fails fast must not look fast."""
COST_S_MIN = 0.0001
PANIC_S = 3600.0
START_SHARE = 0.1
"""Of its weight, what an endpoint begins with that is new or back."""
JITTER = 0.25
TOLD_S_MAX = 300.0
FORCED_S = 60.0
"""For how long a breaker that is held open by hand is taken to be; nobody has said."""
NOT_CLOSED = ("open", "half-open")


class EjectionRules(Protocol):
    """When an endpoint is left out (`Ejection` of `proxy/settings` has all of it)."""

    @property
    def enabled(self) -> bool: ...
    @property
    def consecutive(self) -> int: ...
    @property
    def failing_ratio(self) -> float: ...
    @property
    def slow_ratio(self) -> float: ...
    @property
    def slow_s_min(self) -> float: ...
    @property
    def calls_min(self) -> int: ...
    @property
    def window_s(self) -> float: ...
    @property
    def pause_s(self) -> float: ...
    @property
    def pause_s_max(self) -> float: ...
    @property
    def share_max(self) -> float: ...


class BalanceRules(Protocol):
    """What a balance goes by (`Balance` of `proxy/settings` has all of it)."""

    @property
    def decay_s(self) -> float: ...
    @property
    def slow_start_s(self) -> float: ...
    @property
    def spare_ratio(self) -> float: ...
    @property
    def panic_share(self) -> float: ...
    @property
    def ejection(self) -> EjectionRules: ...


class Guard(Protocol):
    """What is asked of an endpoint's breaker."""

    @property
    def state(self) -> str: ...
    @property
    def mode(self) -> str: ...
    def retry_after_s(self, now: float) -> float: ...


class Purse(Protocol):
    """What is asked of an endpoint's quota; without `beliefs` there is nothing to ask."""

    @property
    def beliefs(self) -> Mapping[bytes, object]: ...
    def pause_s(self, now: float, who: bytes = b"") -> float: ...


class Peer:
    """What is known of one endpoint. `label` is its name among all tiers' endpoints, as `Call.tried` has it.

    `outstanding` are the calls it has, streams included until they end. Times are on the caller's clock, in seconds.
    """

    __slots__ = (
        "answered",
        "back_at",
        "cost_s",
        "ejected_until",
        "ejections",
        "faded_at",
        "failed",
        "guard",
        "in_a_row",
        "is_each_callers",
        "is_known",
        "label",
        "last_s",
        "out_in_a_row",
        "outstanding",
        "quota",
        "rank",
        "refused",
        "seen_at",
        "seen_state",
        "weight",
        "window_calls",
        "window_failures",
        "window_s",
    )

    def __init__(self, label: str, weight: float = 1.0, rank: tuple[int, bool] = (0, False)) -> None:
        # compiled, fields lie in this order: first what is looked at when one is chosen, then what its answer changes
        self.outstanding = 0
        self.cost_s = START_S
        self.weight = weight
        self.label = label
        self.quota: Purse | None = None
        self.guard: Guard | None = None
        self.seen_state = "closed"
        self.in_a_row = 0
        self.answered = 0
        self.window_calls = 0
        self.window_s = 0.0
        self.last_s = START_S
        self.seen_at = -inf
        self.faded_at = -inf
        self.is_known = False
        self.rank = rank
        self.is_each_callers = False
        self.back_at = -inf
        self.ejected_until = 0.0
        self.out_in_a_row = 0
        self.window_failures = 0
        self.failed = 0
        self.refused = 0
        self.ejections: dict[str, int] = {}

    @property
    def state(self) -> str:
        """Its breaker's as far as that is heeded, or closed."""
        guard = self.guard
        if guard is None or guard.mode == "auto":
            return "closed" if guard is None else guard.state
        return "open" if guard.mode == "forced-open" else "closed"

    def shut_s(self, now: float) -> float:
        """Seconds for which its breaker lets nobody through."""
        if self.guard is None or self.state == "closed":
            return 0.0
        return FORCED_S if self.guard.mode == "forced-open" else self.guard.retry_after_s(now)

    def spent_s(self, now: float, tenant: bytes) -> float:
        """Seconds until its quota has something left, for this caller where each has its own."""
        if self.quota is None or not self.quota.beliefs:
            return 0.0
        return self.quota.pause_s(now, tenant if self.is_each_callers else b"")


class _Group:
    """The members of one priority and zone that may be asked: each with its weight as it is now."""

    __slots__ = ("health", "is_even", "members", "peers", "sums", "total")

    def __init__(self, weighted: Sequence[tuple[Peer, float]], whole: float, spare_ratio: float) -> None:
        self.members = list(weighted)
        self.peers = [peer for peer, _ in weighted]
        self.is_even = all(weight == weighted[0][1] for _, weight in weighted)
        self.sums: list[float] = []
        self.total = 0.0
        for _, weight in weighted:
            self.total += weight
            self.sums.append(self.total)
        self.health = min(1.0, spare_ratio * sum(peer.weight for peer, _ in weighted) / whole)


class Balance:
    """The pure heart: told the time and what came of each call, it says who is asked next. `dice` give [0, 1).

    The peers' weights are brought to one on average.
    """

    def __init__(self, peers: Sequence[Peer], rules: BalanceRules, dice: Callable[[], float]) -> None:
        self.peers = tuple(peers)
        self.rules = rules
        # one on average, so that a call outstanding means the same whatever the weights are counted in
        mean = sum(peer.weight for peer in peers) / len(peers)
        for peer in peers:
            peer.weight /= mean
        self.is_panicking = False
        self._dice = dice
        self._ranks = sorted({peer.rank for peer in peers})
        self._out_max = int(len(peers) * rules.ejection.share_max)
        self._groups: list[_Group] = []
        self._shares: list[float] = []
        self._due: list[Peer] = []
        self._is_shut = False
        self._same_s = 0.0
        self._failed_s = 0.0
        self._floor_s = 0.0
        self._review_at = -inf
        self._judge_at = -inf

    # --- who is next -----------------------------------------------------------------------------------------------

    def pick(self, now: float, tried: Sequence[str] = (), refused: Sequence[Peer] = ()) -> Peer | None:
        """Who should be asked: not one of `tried` if there is another, never one of `refused`. None: nobody can be."""
        if now >= self._review_at:
            self._review(now)
        if self._is_shut:
            return None
        if tried or refused:
            return self._other(now, tried, refused)
        if self._due:
            # its breaker's pause is over: one call at a time finds out whether it is well again
            return self._due.pop()
        groups = self._groups
        if not groups:
            return self._other(now, (), ())
        group = groups[0]
        if len(groups) > 1:
            group = groups[min(bisect_right(self._shares, self._dice()), len(groups) - 1)]
        members = group.members
        if len(members) > SCAN_MAX:
            return self._cheaper_of_two(group)
        total = 0.0
        sums: list[float] = []
        floor = self._floor_s
        for peer, weight in members:
            cost_s = max(peer.cost_s, floor)
            total += weight / (cost_s * cost_s * (peer.outstanding / peer.weight + 1.0))
            sums.append(total)
        return members[min(bisect_right(sums, self._dice() * total), len(members) - 1)][0]

    def _cheaper_of_two(self, group: _Group) -> Peer:
        peers = group.peers
        first, second = self._drawn(group), self._drawn(group)
        if second == first:
            second = first - 1
        one, other = peers[first], peers[second]
        floor = self._floor_s
        cost = max(one.cost_s, floor) * (one.outstanding / one.weight + 1.0)
        return one if cost <= max(other.cost_s, floor) * (other.outstanding / other.weight + 1.0) else other

    def _drawn(self, group: _Group) -> int:
        """One of a group by its weight, as its place there."""
        if group.is_even:
            return int(self._dice() * len(group.peers))
        return min(bisect_right(group.sums, self._dice() * group.total), len(group.peers) - 1)

    def _other(self, now: float, tried: Sequence[str], refused: Sequence[Peer]) -> Peer | None:
        """The best of all that could be asked; those left out, too, rather than nobody."""
        best: Peer | None = None
        least: tuple[bool, bool, tuple[int, bool], float] | None = None
        for peer in self.peers:
            if peer in refused or peer.shut_s(now) > 0:
                continue
            is_out = peer.state in NOT_CLOSED or (peer.ejected_until > now and not self.is_panicking)
            cost = peer.cost_s * (peer.outstanding / peer.weight + 1.0) / peer.weight
            key = (is_out, peer.label in tried, peer.rank, cost)
            if least is None or key < least:
                best, least = peer, key
        return best

    def unspent(self, peer: Peer, now: float, tried: Sequence[str], refused: Sequence[Peer], tenant: bytes) -> Peer:
        """`peer`, or, while its quota is spent, the one that may be asked soonest."""
        pause_s = peer.spent_s(now, tenant)
        if pause_s <= 0 or peer.state in NOT_CLOSED:
            return peer
        best, least = peer, (pause_s, (inf, True), inf)
        for other in self.peers:
            if other.label in tried or other in refused or not self._is_well(other, now):
                continue
            cost = other.cost_s * (other.outstanding / other.weight + 1.0) / other.weight
            key = (other.spent_s(now, tenant), other.rank, cost)
            if key < least:
                best, least = other, key
        return best

    def retry_after_s(self, now: float) -> float:
        """Seconds until the first breaker lets somebody through."""
        return min((peer.shut_s(now) for peer in self.peers), default=0.0)

    # --- what came of it -------------------------------------------------------------------------------------------

    def answered(self, peer: Peer, now: float, took_s: float) -> None:
        """It answered, or gave the first content, after `took_s`."""
        peer.answered += 1
        peer.window_calls += 1
        peer.window_s += took_s
        peer.last_s = took_s
        peer.in_a_row = 0
        if not peer.is_known:
            self._meet(peer, took_s)
        elif took_s > peer.cost_s:
            peer.cost_s = min(took_s, peer.cost_s * PEAK_RATIO)
        else:
            kept = exp((peer.seen_at - now) / self.rules.decay_s)
            peer.cost_s = max(COST_S_MIN, peer.cost_s * kept + took_s * (1.0 - kept))
        peer.seen_at = peer.faded_at = now
        state = peer.state
        if state != peer.seen_state:
            self._review_at = -inf
        elif state == "half-open":
            self._due.append(peer)

    def _meet(self, peer: Peer, took_s: float) -> None:
        """The first answer of one; the first of all says what to expect of the others."""
        if not any(other.is_known for other in self.peers):
            for other in self.peers:
                other.cost_s = max(took_s, COST_S_MIN)
        peer.is_known = True
        peer.cost_s = max(took_s, COST_S_MIN)

    def failed_at(self, peer: Peer, now: float, *, soft: bool = False, retry_after_s: float | None = None) -> None:
        """It failed; softly when it said in good order that it was busy, perhaps until when."""
        rules = self.rules.ejection
        peer.failed += 1
        peer.window_calls += 1
        peer.window_failures += 1
        peer.cost_s = max(peer.cost_s, self._failed_s)
        peer.seen_at = peer.faded_at = now
        if peer.state != peer.seen_state:
            self._review_at = -inf
        if soft:
            if retry_after_s is not None and rules.enabled:
                self._leave_out(peer, now, "told", min(retry_after_s, TOLD_S_MAX))
            return
        peer.in_a_row += 1
        if rules.enabled and peer.in_a_row >= rules.consecutive:
            self._eject(peer, now, "consecutive")

    def refused_by(self, peer: Peer) -> None:
        """It would not be asked: its breaker has opened meanwhile, or its limit is reached."""
        peer.refused += 1
        if peer.state != peer.seen_state:
            self._review_at = -inf

    # --- who is left out -------------------------------------------------------------------------------------------

    def leave_out(self, peer: Peer, now: float, pause_s: float) -> bool:
        """Leave one out because somebody who looked at it said so; not where no other one is well."""
        if not any(other is not peer and self._is_well(other, now) for other in self.peers):
            return False
        if peer.ejected_until > now:
            peer.ejected_until = max(peer.ejected_until, now + pause_s)
            return True
        return self._leave_out(peer, now, "recovery", pause_s)

    def take_back(self, peer: Peer, now: float) -> None:
        """It is said to be well again: it comes back, by degrees as everybody does."""
        if peer.ejected_until > now:
            peer.ejected_until = now
            self._review_at = -inf

    def _eject(self, peer: Peer, now: float, reason: str) -> None:
        rules = self.rules.ejection
        pause_s = min(rules.pause_s_max, rules.pause_s * (peer.out_in_a_row + 1))
        if self._leave_out(peer, now, reason, pause_s * (1 - JITTER + 2 * JITTER * self._dice())):
            peer.out_in_a_row += 1

    def _leave_out(self, peer: Peer, now: float, reason: str, pause_s: float) -> bool:
        out = sum(other.ejected_until > now for other in self.peers)
        if peer.ejected_until > now or out >= self._out_max:
            return False
        peer.ejected_until = now + pause_s
        peer.ejections[reason] = peer.ejections.get(reason, 0) + 1
        peer.in_a_row = 0
        self._review_at = -inf
        return True

    def _judge(self, now: float) -> None:
        """Compare each with its peers over the window that ends."""
        rules = self.rules.ejection
        calls = sum(peer.window_calls for peer in self.peers)
        failures = sum(peer.window_failures for peer in self.peers)
        for peer in self.peers:
            others = calls - peer.window_calls
            if not rules.enabled or peer.window_calls < rules.calls_min or others < rules.calls_min:
                continue
            elsewhere = (failures - peer.window_failures) / others
            if peer.window_failures / peer.window_calls >= elsewhere + rules.failing_ratio:
                self._eject(peer, now, "failing")
            elif self._is_slow(peer):
                self._eject(peer, now, "slow")
            elif peer.ejected_until <= now:
                peer.out_in_a_row = max(0, peer.out_in_a_row - 1)
        for peer in self.peers:
            peer.window_calls = peer.window_failures = 0
            peer.window_s = 0.0

    def _is_slow(self, peer: Peer) -> bool:
        rules = self.rules.ejection
        mean_s = _mean_s(peer)
        others = sorted(
            _mean_s(other) for other in self.peers if other is not peer and other.window_calls > other.window_failures
        )
        return bool(others) and mean_s >= max(rules.slow_s_min, rules.slow_ratio * others[len(others) // 2])

    # --- once a second, and when somebody comes or goes ------------------------------------------------------------

    def _review(self, now: float) -> None:
        if now >= self._judge_at:
            if self._judge_at > -inf:
                self._judge(now)
            self._judge_at = now + self.rules.ejection.window_s
        self._review_at = now + REVIEW_S
        least = min((peer.cost_s for peer in self.peers if peer.is_known), default=START_S)
        self._same_s = least * SAME_RATIO
        # by answers alone: where all fail, a cost that goes by the others' costs would raise theirs in turn
        quickest_s = min((peer.last_s for peer in self.peers if peer.is_known), default=START_S)
        self._failed_s = max(COST_S_MIN, quickest_s) * SAME_RATIO * FAILED_RATIO
        for peer in self.peers:
            self._look_at(peer, now, least)
        in_all = sum(peer.weight for peer in self.peers)
        well = sum(peer.weight for peer in self.peers if self._is_well(peer, now))
        self.is_panicking = well < self.rules.panic_share * in_all
        # in a panic all count as equally fast
        self._floor_s = PANIC_S if self.is_panicking else self._same_s
        self._is_shut = all(peer.shut_s(now) > 0 for peer in self.peers)
        self._regroup(now)

    def _look_at(self, peer: Peer, now: float, least: float) -> None:
        state = peer.state
        is_back = 0 < peer.ejected_until <= now or (state == "closed" and peer.seen_state in NOT_CLOSED)
        peer.seen_state = state
        if is_back:
            peer.ejected_until = 0.0
            peer.back_at = now
            peer.cost_s = least
        elif now - peer.faded_at >= REVIEW_S and peer.cost_s > least:
            # nobody has looked: what was seen counts for less, down to what the best one has
            faded_s = now - max(peer.faded_at, now - 60.0)
            peer.cost_s = least + (peer.cost_s - least) * exp(-faded_s / self.rules.decay_s)
            peer.faded_at = now
        until = max(peer.ejected_until, now + peer.shut_s(now))
        if until > now:
            self._review_at = min(self._review_at, until)

    def _is_well(self, peer: Peer, now: float) -> bool:
        return peer.ejected_until <= now and peer.state not in NOT_CLOSED

    def _regroup(self, now: float) -> None:
        self._groups, self._shares, self._due = [], [], []
        left = 1.0
        for rank in self._ranks:
            peers = [peer for peer in self.peers if peer.rank == rank]
            members = [
                (peer, self._weight_now(peer, now))
                for peer in peers
                if peer.state not in NOT_CLOSED and (self.is_panicking or peer.ejected_until <= now)
            ]
            self._due += [peer for peer in peers if peer.state in NOT_CLOSED and peer.shut_s(now) <= 0]
            if not members:
                continue
            group = _Group(members, sum(peer.weight for peer in peers), self.rules.spare_ratio)
            self._groups.append(group)
            self._shares.append(min(left, group.health))
            left -= self._shares[-1]
            if left <= 0:
                break
        # where all together can't carry the whole, each carries more
        whole = sum(self._shares)
        upto = 0.0
        for n, share in enumerate(self._shares):
            upto += share / whole
            self._shares[n] = upto

    def _weight_now(self, peer: Peer, now: float) -> float:
        age_s = now - peer.back_at
        slow_start_s = self.rules.slow_start_s
        if age_s >= slow_start_s:
            return peer.weight
        return peer.weight * max(START_SHARE, age_s / slow_start_s)


def _mean_s(peer: Peer) -> float:
    answered = peer.window_calls - peer.window_failures
    return peer.window_s / answered if answered else 0.0


def balance(services: Mapping[Peer, Service], heart: Balance, *, clock: Callable[[], float]) -> Service:
    """Ask the service of the peer that `heart` picks, the next where one refuses; Refused when all did."""

    async def balanced(call: Call) -> Answer:
        tried = call.tried
        began = clock()
        peer = heart.pick(began, tried)
        if peer is None:
            raise Refused("breaker", "every endpoint's breaker is open", retry_after_s=heart.retry_after_s(began))
        refused: list[Peer] | None = None
        while True:
            if peer.quota is not None and peer.quota.beliefs:
                peer = heart.unspent(peer, began, tried, refused or (), call.tenant)
            tried.append(peer.label)
            peer.outstanding += 1
            try:
                answer = await services[peer](call)
            except Refused:
                peer.outstanding -= 1
                # nothing was spent: it has not really been tried
                tried.pop()
                heart.refused_by(peer)
                refused = [*(refused or ()), peer]
                began = clock()
                peer = heart.pick(began, tried, refused) if began < call.until else None
                if peer is None:
                    raise
                continue
            except Failed as failed:
                peer.outstanding -= 1
                heart.failed_at(peer, clock(), soft=failed.soft, retry_after_s=failed.retry_after_s)
                if failed.answer is not None:
                    failed.answer.source = peer.label
                if failed.away and any(other.label not in tried for other in heart.peers):
                    # not this one again, and there is another
                    failed.again = True
                raise
            except BaseException:
                peer.outstanding -= 1
                raise
            now = clock()
            heart.answered(peer, now, now - began)
            answer.source = peer.label
            if answer.stream is None:
                peer.outstanding -= 1
            else:
                _until_it_ends(answer.stream, peer, heart, clock)
            return answer

    return balanced


def _until_it_ends(stream: Stream, peer: Peer, heart: Balance, clock: Callable[[], float]) -> None:
    def ended(end: End) -> None:
        peer.outstanding -= 1
        if end == "cut":
            heart.failed_at(peer, clock())

    stream.watch(ended)
