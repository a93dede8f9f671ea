"""Token buckets: so many calls a second for a route and for each of its callers, and a burst; beyond it, 429.

    +---------+  rate_per_s    A bucket is one number: the moment at which it will be full again (GCRA). A call pushes
    |  burst  | <---------     that moment by its cost; one that would push it further than a full bucket from now is
    +----+----+                over the limit, and costs nothing.
         | 1 a call, and what its body is guessed to cost an LLM

Whoever is over the limit is told so, with when to come back: it is the caller who asks too much, and another tier would
only hide it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import NamedTuple, Protocol

from understudy.policies.service import Answer, Call, Headers, Service, tenant_of

BYTES_PER_TOKEN = 4
"""English text has about four bytes for each token of an LLM; a body of JSON has a little more."""
SHOULD_RETRY = b"x-should-retry"
FRESH = 0.0


class RateRules(Protocol):
    """One limit (`Rate` of `proxy/settings`); a rate of 0 is none."""

    @property
    def calls_per_s(self) -> float: ...
    @property
    def burst(self) -> int: ...
    @property
    def llm_tokens_per_s(self) -> float: ...
    @property
    def llm_burst(self) -> int: ...


class TokenRules(Protocol):
    """What the buckets of a route go by (`Tokens` of `proxy/settings`)."""

    @property
    def route(self) -> RateRules: ...
    @property
    def caller(self) -> RateRules: ...
    @property
    def callers_max(self) -> int: ...
    @property
    def by(self) -> list[str]: ...


class Meter:
    """How one kind of bucket fills: a rate and a size. The buckets themselves are moments, kept elsewhere."""

    __slots__ = ("every_s", "size", "whole_s")

    def __init__(self, per_s: float, size: float) -> None:
        self.every_s = 1.0 / per_s
        self.size = max(1.0, size)
        self.whole_s = self.every_s * self.size

    def after(self, full_at: float, now: float, cost: float) -> float:
        """The moment at which a bucket will be full again after `cost`. What is more than a whole bucket costs one."""
        return max(full_at, now) + self.every_s * min(cost, self.size)

    def wait_s(self, full_after: float, now: float) -> float:
        """Seconds until that may be taken; 0 or less when it may be now."""
        return full_after - now - self.whole_s

    def left(self, full_at: float, now: float) -> int:
        """How much is in the bucket."""
        return int(self.size - max(0.0, full_at - now) / self.every_s + 1e-9)


class Over(NamedTuple):
    """Why a call is over the limit: whose bucket ("route", "caller") of what ("requests", "tokens"), and its state."""

    whose: str
    what: str
    size: int
    left: int
    wait_s: float
    whole_s: float


class Buckets:
    """The pure heart: the buckets of a route and of those callers who have taken something lately.

    A caller's buckets are forgotten when they are full, which loses nothing; beyond `callers_max`, whoever was here
    least lately is forgotten, too.
    """

    __slots__ = ("_callers", "_calls", "_llm", "_route", "refused", "rules")

    def __init__(self, rules: TokenRules) -> None:
        self.refused = {"route": 0, "caller": 0}
        self._route: tuple[float, float] = (FRESH, FRESH)
        self._callers: dict[bytes, tuple[float, float]] = {}
        self.obey(rules)

    def obey(self, rules: TokenRules) -> None:
        """Go by these rules from now on; what was taken stays taken."""
        self.rules = rules
        self._calls = _meters(rules, lambda rate: (rate.calls_per_s, float(rate.burst) or rate.calls_per_s))
        self._llm = _meters(rules, lambda rate: (rate.llm_tokens_per_s, float(rate.llm_burst) or 60 * _llm_rate(rate)))
        if self._calls[1] is self._llm[1] is None:
            self._callers.clear()

    def __len__(self) -> int:
        return len(self._callers)

    def take(self, now: float, who: bytes, llm_tokens: float) -> Over | None:
        """Take what a call costs from all of its buckets, or from none and say which has too little."""
        route_after = self._after(0, self._route, now, llm_tokens)
        over = self._over(0, "route", self._route, route_after, now)
        if over is None and (self._calls[1] is not None or self._llm[1] is not None):
            caller = self._callers.pop(who, (FRESH, FRESH))
            caller_after = self._after(1, caller, now, llm_tokens)
            over = self._over(1, "caller", caller, caller_after, now)
            self._remember(who, caller if over else caller_after, now)
        if over is None:
            self._route = route_after
        else:
            self.refused[over.whose] += 1
        return over

    def _after(self, of: int, full_at: tuple[float, float], now: float, llm_tokens: float) -> tuple[float, float]:
        calls, llm = self._calls[of], self._llm[of]
        return (
            full_at[0] if calls is None else calls.after(full_at[0], now, 1.0),
            full_at[1] if llm is None else llm.after(full_at[1], now, llm_tokens),
        )

    def _over(
        self, of: int, whose: str, before: tuple[float, float], after: tuple[float, float], now: float
    ) -> Over | None:
        worst: Over | None = None
        for at, (what, meter) in enumerate((("requests", self._calls[of]), ("tokens", self._llm[of]))):
            if meter is not None and (wait_s := meter.wait_s(after[at], now)) > 1e-9:
                over = Over(whose, what, int(meter.size), meter.left(before[at], now), wait_s, meter.whole_s)
                worst = over if worst is None or over.wait_s > worst.wait_s else worst
        return worst

    def _remember(self, who: bytes, full_at: tuple[float, float], now: float) -> None:
        self._callers[who] = full_at
        # who came least lately stands first: what is full, or too much, goes from there, two at a time at most
        for _ in range(2):
            first = next(iter(self._callers))
            if first == who or (max(self._callers[first]) > now and len(self._callers) <= self.rules.callers_max):
                return
            del self._callers[first]


def _llm_rate(rate: RateRules) -> float:
    return rate.llm_tokens_per_s


def _meters(
    rules: TokenRules, reading: Callable[[RateRules], tuple[float, float]]
) -> tuple[Meter | None, Meter | None]:
    (route_per_s, route_size), (caller_per_s, caller_size) = reading(rules.route), reading(rules.caller)
    return (
        Meter(route_per_s, route_size) if route_per_s else None,
        Meter(caller_per_s, caller_size) if caller_per_s else None,
    )


def limits_anything(rules: TokenRules) -> bool:
    """Whether there is any limit among these; without one the policy has no place in the stack."""
    rates = rules.route, rules.caller
    return any(rate.calls_per_s or rate.llm_tokens_per_s for rate in rates)


Refuse = Callable[[str, Headers], Answer]
"""Why, and with which headers -> a 429 in the caller's dialect."""


def tokens(service: Service, heart: Buckets, *, clock: Callable[[], float], refuse: Refuse) -> Service:
    """Let calls into `service` while `heart` has tokens for them; the others are answered with `refuse`."""
    besides = tuple(name.lower().encode() for name in heart.rules.by)

    async def metered(call: Call) -> Answer:
        request = call.request
        who = tenant_of(request, besides)
        over = heart.take(clock(), who, len(request.body) / BYTES_PER_TOKEN)
        if over is None:
            return await service(call)
        answer = refuse(_told(over), _headers(over))
        # an SDK may well come back: that is what it was told when
        answer.headers = [header for header in answer.headers if header[0] != SHOULD_RETRY]
        return answer

    return metered


def _told(over: Over) -> str:
    who = "this caller" if over.whose == "caller" else "this route"
    return f"the sidecar's rate limit for {who} is reached ({over.what}); come back in {over.wait_s:.3g} s"


def _headers(over: Over) -> Headers:
    what = over.what.encode()
    return [
        (b"retry-after", b"%d" % ceil(over.wait_s)),
        (b"retry-after-ms", b"%d" % ceil(over.wait_s * 1000)),
        (b"x-ratelimit-limit-" + what, b"%d" % over.size),
        (b"x-ratelimit-remaining-" + what, b"%d" % over.left),
        (b"x-ratelimit-reset-" + what, b"%.3fs" % over.wait_s),
    ]
