"""Budgets of money and tokens for an hour, a day or a month: first the cheaper tiers are asked, in the end nobody is.

    used / budget    0 ------------- soft_share -------------- 1 ------------>    the window ends: 0
                       every tier    |   the cheaper ones,     |   429 until the window ends
                                     |   the others after them |

What a call costs is known once it is answered: a budget is overdrawn by what is under way when it is spent. Several
processes agree by telling each other's sums: what was added here goes out, what all of them have used comes in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from math import ceil, inf
from typing import Literal, NamedTuple, Protocol

from understudy.policies.chain import Link, chain
from understudy.policies.deadline import Deadline
from understudy.policies.service import Answer, Call, Failed, Headers, Refused, Service, tenant_of

Window = Literal["hour", "day", "month"]
HOUR_S = 3600
DAY_S = 24 * HOUR_S
EVERYBODY = b""
"""Who pays from a budget that is the route's."""
OTHERS = b"others"
"""Who pays for callers beyond those that are told apart."""
FREE, SOFT, HARD = 0, 1, 2
ROUNDING = 1e-9
"""A share that is short by so much is reached: processes add the same money up in other orders."""


class BudgetRules(Protocol):
    """One budget (`SpendBudget` of `proxy/settings`)."""

    @property
    def name(self) -> str: ...
    @property
    def each(self) -> Literal["route", "caller"]: ...
    @property
    def window(self) -> Window: ...
    @property
    def cost(self) -> float | None: ...
    @property
    def tokens(self) -> int | None: ...
    @property
    def soft_share(self) -> float: ...
    @property
    def cheaper(self) -> Sequence[str]: ...
    @property
    def hard(self) -> bool: ...


class Sum(NamedTuple):
    """What one payer has used of one budget in the window that ends then, in seconds since the epoch."""

    budget: str
    ends: int
    payer: bytes
    tokens: int
    cost: float


def ends_of(window: Window, now: float) -> int:
    """When the window ends that `now` (seconds since the epoch) is in, by UTC."""
    if window == "hour":
        return (int(now) // HOUR_S + 1) * HOUR_S
    if window == "day":
        return (int(now) // DAY_S + 1) * DAY_S
    today = datetime.fromtimestamp(now, UTC)
    year, month = (today.year + 1, 1) if today.month == 12 else (today.year, today.month + 1)
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp())


Stage = Literal["free", "low", "spent"]


class Crossed(NamedTuple):
    """A budget has become another's word, by what its greatest payer has used: `free`, `low` from its soft share on, or
    `spent`. `ends` is when its window does, in seconds since the epoch."""

    rules: BudgetRules
    stage: Stage
    ends: int


class Purse:
    """One budget in its present window: tokens and money by payer, those of all processes together. `most` is the
    greatest share that any of them has used."""

    __slots__ = ("ends", "key", "most", "rules", "used")

    def __init__(self, rules: BudgetRules, now: float) -> None:
        self.rules = rules
        # what is counted by the day is another sum than what was counted by the hour under the same name
        self.key = f"{rules.name}/{rules.window}"
        self.ends = ends_of(rules.window, now)
        self.used: dict[bytes, tuple[int, float]] = {}
        self.most = 0.0

    @property
    def stage(self) -> Stage:
        """What is told of it, whether or not anything is moved or refused."""
        most = self.most + ROUNDING
        return "spent" if most >= 1.0 else "low" if most >= self.rules.soft_share else "free"

    def share(self, payer: bytes) -> float:
        """How much of the budget a payer has used; 1 is all of it."""
        tokens, cost = self.used.get(payer, (0, 0.0))
        of_tokens = tokens / self.rules.tokens if self.rules.tokens else 0.0
        return max(of_tokens, cost / self.rules.cost if self.rules.cost else 0.0)

    def level(self, payer: bytes) -> int:
        share = self.share(payer) + ROUNDING
        if share >= 1.0 and self.rules.hard:
            return HARD
        return SOFT if share >= self.rules.soft_share and self.rules.cheaper else FREE

    def greatest(self, now: float) -> tuple[bytes, float]:
        """Who has used the most, and how much of the budget that is; of a window that is over, nobody has."""
        used = self.used if now < self.ends else {}
        return max(((payer, self.share(payer)) for payer in used), key=lambda one: one[1], default=(EVERYBODY, 0.0))


class Budgets:
    """The pure heart: a route's budgets. Not for several threads."""

    __slots__ = ("_above", "_fresh", "_next_end", "_told", "by_caller", "callers_max", "moved", "purses", "refused")

    def __init__(self, rules: Sequence[BudgetRules], callers_max: int, now: float) -> None:
        self.purses: list[Purse] = []
        self.moved: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self._fresh: dict[tuple[str, int, bytes], tuple[int, float]] = {}
        self._above: set[bytes] = set()
        self._told: dict[str, Stage] = {}
        self._next_end = inf
        self.obey(rules, callers_max, now)

    def obey(self, rules: Sequence[BudgetRules], callers_max: int, now: float) -> None:
        """Go by these rules from now on; what was used under the same name and window stays used."""
        before = {purse.key: purse for purse in self.purses}
        self.callers_max = callers_max
        self.purses = []
        for each in rules:
            purse = Purse(each, now)
            old = before.get(purse.key)
            if old is not None and old.ends == purse.ends:
                purse.used = old.used
            self.purses.append(purse)
            self.moved.setdefault(each.name, 0)
            self.refused.setdefault(each.name, 0)
        self.by_caller = any(purse.rules.each == "caller" for purse in self.purses)
        self._weigh_all()

    # --- on a call's path ------------------------------------------------------------------------------------------

    def level(self, now: float, payer: bytes) -> int:
        """FREE, SOFT or HARD: what becomes of a call that `payer` makes now, seconds since the epoch."""
        if now >= self._next_end:
            self._turn(now)
        above = self._above
        if not above or not (payer in above or EVERYBODY in above or OTHERS in above):
            # nearly always: nobody who could be meant has used much
            return FREE
        return max(purse.level(self._who(purse, payer)) for purse in self.purses)

    def purse_at(self, level: int, payer: bytes) -> Purse:
        """The first budget that is at this level for `payer`."""
        for purse in self.purses:
            if purse.level(self._who(purse, payer)) >= level:
                return purse
        raise LookupError(level)

    # --- what was spent --------------------------------------------------------------------------------------------

    def charge(self, now: float, payer: bytes, tokens: int, cost: float) -> None:
        """`payer` has spent so much."""
        if now >= self._next_end:
            self._turn(now)
        for purse in self.purses:
            who = self._who(purse, payer)
            before = purse.used.get(who, (0, 0.0))
            purse.used[who] = (before[0] + tokens, before[1] + cost)
            key = (purse.key, purse.ends, who)
            fresh = self._fresh.get(key, (0, 0.0))
            self._fresh[key] = (fresh[0] + tokens, fresh[1] + cost)
            self._weigh(who)

    def _who(self, purse: Purse, payer: bytes) -> bytes:
        if purse.rules.each == "route":
            return EVERYBODY
        # who shows no credentials is a caller, too
        payer = payer or OTHERS
        return payer if payer in purse.used or len(purse.used) < self.callers_max else OTHERS

    def fresh(self) -> list[Sum]:
        """What was added here since this was last asked: to be told to the other processes, and to be kept."""
        fresh, self._fresh = self._fresh, {}
        return [Sum(*key, *added) for key, added in fresh.items()]

    def take_back(self, sums: Sequence[Sum]) -> None:
        """What `fresh` gave could not be told: it is fresh still."""
        for budget, ends, payer, tokens, cost in sums:
            added = self._fresh.get((budget, ends, payer), (0, 0.0))
            self._fresh[budget, ends, payer] = (added[0] + tokens, added[1] + cost)

    def hear(self, sums: Sequence[Sum]) -> None:
        """What all processes have used together, as far as they have told."""
        purses = {(purse.key, purse.ends): purse for purse in self.purses}
        for budget, ends, payer, tokens, cost in sums:
            purse = purses.get((budget, ends))
            if purse is None or (payer not in purse.used and len(purse.used) > self.callers_max):
                continue
            added = self._fresh.get((budget, ends, payer), (0, 0.0))
            purse.used[payer] = (tokens + added[0], cost + added[1])
            self._weigh(payer)

    def crossed(self, now: float) -> list[Crossed]:
        """The budgets that are at another stage than when this was last asked; of callers', who has used the most."""
        if now >= self._next_end:
            self._turn(now)
        found: list[Crossed] = []
        told, self._told = self._told, {}
        for purse in self.purses:
            self._told[purse.key] = purse.stage
            if purse.stage != told.get(purse.key, "free"):
                found.append(Crossed(purse.rules, purse.stage, purse.ends))
        return found

    # --- windows ---------------------------------------------------------------------------------------------------

    def _turn(self, now: float) -> None:
        for purse in self.purses:
            if now >= purse.ends:
                purse.ends = ends_of(purse.rules.window, now)
                purse.used, purse.most = {}, 0.0
        self._weigh_all()

    def _weigh_all(self) -> None:
        self._next_end = min((purse.ends for purse in self.purses), default=inf)
        self._above = set()
        for purse in self.purses:
            for payer in purse.used:
                self._weigh(payer)

    def _weigh(self, payer: bytes) -> None:
        for purse in self.purses:
            if payer in purse.used:
                purse.most = max(purse.most, purse.share(payer))
        if any(purse.level(payer) for purse in self.purses if payer in purse.used):
            self._above.add(payer)
        else:
            self._above.discard(payer)


Refuse = Callable[[str, Headers], Answer]
"""Why, and with which headers -> a 429 in the caller's dialect."""


def spend(
    service: Service,
    heart: Budgets,
    cheaper: Mapping[str, Service],
    *,
    wall: Callable[[], float],
    refuse: Refuse,
    by: Sequence[str] = (),
) -> Service:
    """`service` while there is something left to spend. `cheaper` are what is asked instead, by the budget that is
    nearly spent; `by` are headers that tell callers apart, besides their credentials."""
    besides = tuple(name.lower().encode() for name in by)

    async def thrifty(call: Call) -> Answer:
        if call.kind == "pass":
            return await service(call)
        payer = call.payer = tenant_of(call.request, besides) if heart.by_caller else EVERYBODY
        now = wall()
        level = heart.level(now, payer)
        if level == FREE:
            return await service(call)
        purse = heart.purse_at(level, payer)
        name = purse.rules.name
        if level == HARD:
            heart.refused[name] += 1
            return _refused(purse, call, now, refuse)
        heart.moved[name] += 1
        return await cheaper[name](call)

    return thrifty


def _refused(purse: Purse, call: Call, now: float, refuse: Refuse) -> Answer:
    rules = purse.rules
    left_s = max(1, ceil(purse.ends - now))
    whose = "this caller's" if rules.each == "caller" else "this route's"
    ends = datetime.fromtimestamp(purse.ends, UTC).isoformat().replace("+00:00", "Z")
    detail = f"{whose} budget {rules.name} for the {rules.window} is spent; it begins anew at {ends}"
    # the headers that keep SDKs from asking again stay: it may be days
    answer = refuse(detail, [(b"retry-after", b"%d" % left_s), (b"x-understudy-budget", rules.name.encode())])
    answer.tier, answer.reason = "none", f"{call.route}: budget {rules.name}"
    return answer


def cheaper_chains(
    service: Service,
    rules: Sequence[BudgetRules],
    links: Sequence[Link],
    clocks: Deadline,
    *,
    clock: Callable[[], float],
) -> dict[str, Service]:
    """What is asked instead of `service`, a chain of these links, while little of a budget is left, by its name."""
    cheaper: dict[str, Service] = {}
    for each in rules:
        first = [link for link in links if link.name in each.cheaper and link.service is not None]
        rest = [link for link in links if link.name not in each.cheaper and link.service is not None]
        cheaper[each.name] = service
        if first and rest:
            asked = chain(first, clocks, clock=clock, stood_in_for=True)
            cheaper[each.name] = moved(asked, chain(rest, clocks, clock=clock), rest)
    return cheaper


def moved(first: Service, then: Service | None, passed_over: Sequence[Link]) -> Service:
    """The cheaper tiers `first`, a chain that somebody stands in for; `then` those that are passed over, if there are
    any, rather than nobody."""

    async def sparing(call: Call) -> Answer:
        for link in passed_over:
            call.note(link.name, "refused", "budget")
            link.count("refused", "budget")
        try:
            return await first(call)
        except (Refused, Failed) as without:
            if then is None or (isinstance(without, Failed) and not without.elsewhere):
                raise
            return await then(call)

    return sparing
