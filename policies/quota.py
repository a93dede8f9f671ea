"""Believe what a provider says of our quota, and don't ask it before there is something left to ask with.

    answer: remaining 0, reset 6 s --> belief "not before T" --> calls wait a moment, or are refused until T
    429, Retry-After: 6           -/                                 |
    answer: remaining 4000 ------------------------------------------+--> forgotten

Read are `x-ratelimit-remaining-requests` and `-tokens` with their `-limit-` and `-reset-` (OpenAI and its kin),
`anthropic-ratelimit-*`, `ratelimit` in the spellings of its drafts (draft-ietf-httpapi-ratelimit-headers),
`x-ratelimit-remaining` with `-reset`, and, on a soft failure, when the upstream wants to be asked again.

Providers that say how much is left of requests or tokens fill up all the time, and their reset is when everything will
be there again: what a single call needs is there much sooner. The others count by windows, and before their reset
there is nothing.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

from understudy.policies.service import Answer, Call, Failed, Refused, Service

CALLERS_MAX = 1024
"""Callers whose quota is remembered as spent; beyond it, whose was spent first is forgotten."""
LOOK_S = ((0.5, 1.0), (0.2, 0.1), (0.0, 0.01))
"""Where this share of everything is left, the next answers' headers are let pass unread for so many seconds. Of what is
counted by minutes, half is not gone within one; and with little left, a sidecar's calls are seldom closer together."""
EPOCH_S_MIN = 1e9
"""A reset of so many seconds is a date, and no duration."""

_FIELD = re.compile(rb"(?:^|(?<=\n))(?:x-|anthropic-)?(rate-?limit[a-z0-9-]*):[ \t]*([^\r\n]*)", re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,15}(?:\.\d{1,15})?")
_DURATION = re.compile(
    r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m(?!s))?(?:(\d{1,9}(?:\.\d{1,9})?)s)?(?:(\d{1,9}(?:\.\d{1,9})?)ms)?"
)
_UNITS_S = (86400.0, 3600.0, 60.0, 1.0, 0.001)
_ITEM = re.compile(r"\b(limit|remaining|reset|r|t) ?= ?(\d{1,15})")
_WORDS = ("limit", "remaining", "reset")
_SHORT = {"r": "remaining", "t": "reset"}


class QuotaRules(Protocol):
    """What a quota goes by (`Quota` of `proxy/settings` has all of it)."""

    @property
    def wait_s_max(self) -> float: ...
    @property
    def believed_s_max(self) -> float: ...
    @property
    def reserve_share(self) -> float: ...


class Allowance(NamedTuple):
    """What an answer says of one quota: how much is left, in how many seconds there is more, and of how much in all
    (0: not said). `refills` says that it fills up all the time."""

    name: str
    remaining: float
    reset_s: float
    limit: float
    refills: bool

    def wanted(self, reserve_share: float) -> float:
        """How much must be left for a call to be made."""
        return max(1.0, reserve_share * self.limit) if self.refills else 1.0

    def pause_s(self, reserve_share: float) -> float:
        """Seconds until a call may be made; 0 when it may be now."""
        wanted = self.wanted(reserve_share)
        if self.remaining >= wanted:
            return 0.0
        return self._refill_s(wanted - self.remaining) if self.refills else self.reset_s

    def every_s(self, reserve_share: float) -> float:
        """Seconds between two calls that go by what comes in and not by what was left; 0 where all comes at once."""
        if not self.refills or not self.limit:
            return 0.0
        return self._refill_s(1.0 if "request" in self.name else self.wanted(reserve_share))

    def _refill_s(self, amount: float) -> float:
        missing = self.limit - self.remaining
        return self.reset_s * min(1.0, amount / missing) if missing > 0 else self.reset_s


class Quota:
    """The pure heart: whose quota is spent, until when. `who` is b"" where all calls go by one set of credentials."""

    __slots__ = ("_look_at", "beliefs", "heard", "refused", "rules", "said", "said_at", "waited")

    def __init__(self, rules: QuotaRules) -> None:
        self.rules = rules
        self.heard = 0
        self.refused = 0
        self.waited = 0
        self.beliefs: dict[bytes, tuple[float, float]] = {}
        """Who -> not before this moment, and one call each so many seconds from then on."""
        self.said: list[Allowance] = []
        """What an answer said the last time, where all calls go by one set of credentials."""
        self.said_at = 0.0
        self._look_at: dict[bytes, float] = {}

    def pause_s(self, now: float, who: bytes = b"") -> float:
        """Seconds until the next call may be made; 0 when it may be now."""
        belief = self.beliefs.get(who)
        if belief is None:
            return 0.0
        if belief[0] <= now:
            del self.beliefs[who]
            return 0.0
        return belief[0] - now

    def take(self, who: bytes = b"") -> None:
        """A call waits for the next moment: who comes after it waits for the one after that."""
        belief = self.beliefs.get(who)
        if belief is not None:
            self.beliefs[who] = (belief[0] + belief[1], belief[1]) if belief[1] else belief
            self.waited += 1

    def unread(self, now: float, who: bytes = b"") -> bool:
        """Whether there was enough left a moment ago, so that nobody need look: reading costs as much as all the rest
        of a call."""
        return now < self._look_at.get(who, 0.0) and not self.beliefs

    def hear(self, now: float, said: list[Allowance], who: bytes = b"") -> None:
        """An answer has said this: it replaces what was believed."""
        self.heard += 1
        if not who:
            self.said, self.said_at = said, now
        share = self.rules.reserve_share
        tightest = max(said, key=lambda one: one.pause_s(share), default=None)
        pause_s = tightest.pause_s(share) if tightest is not None else 0.0
        if tightest is not None and pause_s > 0.0:
            self._believe(now, pause_s, tightest.every_s(share), who)
            return
        self.beliefs.pop(who, None)
        if len(self._look_at) >= CALLERS_MAX:
            self._look_at.clear()
        left = min((one.remaining / one.limit if one.limit > 0 else 0.0 for one in said), default=1.0)
        self._look_at[who] = now + next(look_s for share, look_s in LOOK_S if left >= share)

    def told(self, now: float, retry_after_s: float, who: bytes = b"") -> None:
        """The upstream has said when it wants to be asked again: that stands beside what it said before."""
        if retry_after_s > self.pause_s(now, who):
            self._believe(now, retry_after_s, 0.0, who)

    def _believe(self, now: float, pause_s: float, every_s: float, who: bytes) -> None:
        self._look_at.pop(who, None)
        self.beliefs.pop(who, None)
        while len(self.beliefs) >= CALLERS_MAX:
            del self.beliefs[next(iter(self.beliefs))]
        self.beliefs[who] = (now + min(pause_s, self.rules.believed_s_max), every_s)


def quota(
    service: Service,
    heart: Quota,
    *,
    clock: Callable[[], float],
    wall: Callable[[], float],
    sleep: Callable[[float], Awaitable[object]],
    per_caller: bool = False,
) -> Service:
    """Ask `service` only when its quota, as it says itself, has something left; a short pause is waited for.

    `wall` tells seconds since 1970, for resets that are dates. `per_caller` where callers bring their own credentials:
    then each has a quota of its own.
    """

    async def frugal(call: Call) -> Answer:
        if heart.beliefs:
            await _wait(heart, call, clock, sleep, call.tenant if per_caller else b"")
        try:
            answer = await service(call)
        except Failed as failed:
            if failed.soft and failed.retry_after_s:
                heart.told(clock(), failed.retry_after_s, call.tenant if per_caller else b"")
            raise
        block = answer.block
        # a first look for 0.1 us: `ratelimit`, `RateLimit` and `Rate-Limit` have this in common
        if b"imit" in block:
            now = clock()
            who = call.tenant if per_caller else b""
            if not heart.unread(now, who):
                heart.hear(now, list(allowances(block, wall)), who)
        return answer

    return frugal


async def _wait(
    heart: Quota, call: Call, clock: Callable[[], float], sleep: Callable[[float], Awaitable[object]], who: bytes
) -> None:
    now = clock()
    pause_s = heart.pause_s(now, who)
    if pause_s <= 0:
        return
    if pause_s > min(heart.rules.wait_s_max, call.until - now):
        heart.refused += 1
        raise Refused("quota", f"its quota is spent for another {pause_s:.3g} s", retry_after_s=pause_s)
    heart.take(who)
    await sleep(pause_s)


# --- reading -------------------------------------------------------------------------------------------------------


def allowances(block: bytes, wall: Callable[[], float]) -> Iterator[Allowance]:
    """What the header lines `block` say of quotas; what says only half of it is let pass."""
    found: dict[str, dict[str, str]] = {}
    for match in _FIELD.finditer(block):
        name, value = match[1].lower().decode("ascii").replace("rate-", "rate"), match[2].decode("latin-1").strip()
        if name == "ratelimit":
            yield from _items(value)
            continue
        parts = name.split("-")[1:]
        word = next((part for part in parts if part in _WORDS), None)
        if word is not None:
            parts.remove(word)
            found.setdefault("-".join(parts), {})[word] = value
    for name, said in found.items():
        remaining, limit = _number(said.get("remaining", "")), _number(said.get("limit", ""))
        reset_s = _reset_s(said.get("reset", ""), wall)
        if remaining is not None and reset_s is not None:
            yield Allowance(name, remaining, max(0.0, reset_s), limit or 0.0, bool(name))


def _items(value: str) -> Iterator[Allowance]:
    """`limit=100, remaining=0, reset=5` as it was first, `"day";r=0;t=5, "hour";r=7` as it is now."""
    whole = _ITEM.findall(value)
    each = [whole] if any(word == "remaining" for word, _ in whole) else map(_ITEM.findall, value.split(","))
    for items in each:
        said = {_SHORT.get(word, word): float(number) for word, number in items}
        if "remaining" in said and "reset" in said:
            yield Allowance("", said["remaining"], said["reset"], said.get("limit", 0.0), refills=False)


def _number(text: str) -> float | None:
    # `100, 100;w=60` was a limit with its window in an early draft
    text = text.partition(",")[0].strip()
    return float(text) if _NUMBER.fullmatch(text) else None


def _reset_s(text: str, wall: Callable[[], float]) -> float | None:
    seconds = _number(text)
    if seconds is not None:
        return seconds - wall() if seconds >= EPOCH_S_MIN else seconds
    duration = _DURATION.fullmatch(text)
    if duration is not None and any(duration.groups()):
        return sum(float(part or 0) * unit_s for part, unit_s in zip(duration.groups(), _UNITS_S, strict=True))
    try:
        moment = datetime.fromisoformat(text)
        # without an offset it would be taken for a time of this machine's own zone
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - wall()
    except (ValueError, OverflowError, OSError):
        return None
