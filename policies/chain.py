"""Ask the tiers one after another until one answers, and let the answer say who it was and why not another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain as chained
from typing import Literal

from understudy.policies.deadline import Deadline
from understudy.policies.ramp import Ramp
from understudy.policies.service import Answer, Call, Failed, Header, Refused, Service
from understudy.policies.usual import Usual

Rank = Literal["primary", "secondary", "tertiary"]
OUTCOMES_MAX = 64
"""Distinct (outcome, reason) pairs counted for a tier; reasons are words of ours, so a real run stays far below."""

_OUTCOMES = {"endpoint": "failed", "caller": "caller", "nobody": "ignored"}
NO_RETRY: Header = (b"x-should-retry", b"false")
"""Heeded by the OpenAI and Anthropic SDKs. Whatever could be asked has been, as often as the budget allowed: they would
only multiply it. Calls that are passed through untouched are not ours to repeat, and so not ours to forbid."""


def rank_of(position: int) -> Rank:
    """What a tier at `position` (0 first) among all that are configured is called."""
    return ("primary", "secondary", "tertiary")[min(position, 2)]


@dataclass(slots=True)
class Link:
    """One tier of a chain. A tier that is configured but absent (its environment is not set) has no service."""

    name: str
    rank: Rank
    service: Service | None
    absent: str = ""
    ramp: Ramp | None = None
    outcomes: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    seconds: Usual = field(default_factory=Usual)
    """How long it took to answer where those before it had not: what must be kept back for it."""

    def count(self, outcome: str, reason: str) -> None:
        """Add one to what came of asking this tier."""
        key = (outcome, reason)
        if key not in self.outcomes and len(self.outcomes) >= OUTCOMES_MAX:
            key = (outcome, "other")
        self.outcomes[key] = self.outcomes.get(key, 0) + 1

    def keeps_back(self, call: Call, now: float, kept_back: list[Link]) -> bool:
        """Whether the next tier should have this call: this one is unhealthy, or on its way back from an outage.

        It is then among those that were kept back, and are asked after all when nobody else has answered.
        """
        if self.ramp is None or not self.ramp.keeps_back(now):
            return False
        why = self.ramp.held or "ramp"
        call.note(self.name, "refused", why)
        self.count("refused", why)
        kept_back.append(self)
        return True


def chain(links: Sequence[Link], heart: Deadline, *, clock: Callable[[], float], stood_in_for: bool = False) -> Service:
    """Ask each of `links` in turn; one that its ramp keeps back comes last.

    When none answers, an upstream's own error answer is given back as it came; without one the call is Refused (nothing
    was spent) or Failed, with every tier's own words. `stood_in_for` says that somebody else is asked then: an error is
    only given back where that would not be safe.
    """
    present = [link for link in links if link.service is not None]
    absent = "; ".join(f"{link.name}: {link.absent}" for link in links if link.service is None)
    final = present[-1].seconds if present else Usual()
    first = present[0] if present else None
    alone = len(present) == 1

    async def relayed(call: Call) -> Answer:
        began = clock()
        if first is None or (first.ramp is not None and not alone and first.ramp.share(began) < 1.0):
            return await one_by_one(call, present, _Story(absent))
        # nearly every call is answered here: what it takes to go on is not made before it is needed
        call.until = heart.for_tier(began, call.deadline, last=alone, fallback_s=final.p95)
        assert first.service is not None
        try:
            answer = await first.service(call)
        except (Refused, Failed) as without:
            story = _Story(absent)
            if not story.missed(first, call, without):
                return story.last_word(call, stood_in_for=stood_in_for)
        else:
            return _taken(answer, first, call, absent)
        return await one_by_one(call, present[1:], story)

    async def one_by_one(call: Call, asked: Sequence[Link], story: _Story) -> Answer:
        kept_back: list[Link] = []
        for link in chained(asked, kept_back):
            last = link is present[-1] or link in kept_back
            began = clock()
            if link.ramp is not None and not last and link.keeps_back(call, began, kept_back):
                continue
            call.until = heart.for_tier(began, call.deadline, last=last, fallback_s=final.p95)
            assert link.service is not None
            try:
                answer = await link.service(call)
            except (Refused, Failed) as without:
                if not story.missed(link, call, without):
                    break
            else:
                if last and link is not present[0]:
                    final.add(clock() - began)
                return _taken(answer, link, call, absent)
        return story.last_word(call, stood_in_for=stood_in_for)

    return relayed


class _Story:
    """What came of asking the tiers that did not answer a call."""

    __slots__ = ("absent", "given_back", "retry_after_s", "told", "worst")

    def __init__(self, absent: str) -> None:
        self.absent = absent
        self.told = [absent] if absent else []
        self.worst: Failed | None = None
        self.given_back: tuple[Link, Answer] | None = None
        self.retry_after_s: float | None = None

    def missed(self, link: Link, call: Call, without: Refused | Failed) -> bool:
        """A tier has not answered; whether another may be asked."""
        self.told.append(f"{link.name}: {without.detail}")
        if isinstance(without, Refused):
            call.note(link.name, "refused", without.reason)
            link.count("refused", without.reason)
            if without.retry_after_s is not None:
                self.retry_after_s = min(self.retry_after_s or without.retry_after_s, without.retry_after_s)
            return True
        call.note(link.name, "failed", without.reason)
        link.count(_OUTCOMES[without.fault], without.reason)
        self.worst = without
        if without.answer is not None:
            self.given_back = (link, without.answer)
        return without.elsewhere

    def last_word(self, call: Call, *, stood_in_for: bool) -> Answer:
        """What is said when nobody has answered: an upstream's own error, or Refused or Failed is raised."""
        worst = self.worst
        # the word of a tier after which nobody may be asked is the last one
        settled = not stood_in_for or (worst is not None and not worst.elsewhere)
        if self.given_back is not None and settled:
            link, answer = self.given_back
            if call.kind != "pass":
                _forbid_retries(answer)
            return signed(answer, link, call, self.absent)
        detail = "; ".join(self.told) or "no tier is configured"
        if worst is None:
            raise Refused("exhausted", detail, retry_after_s=self.retry_after_s)
        raise Failed(
            worst.reason,
            detail,
            retry_after_s=worst.retry_after_s or self.retry_after_s,
            again=False,
            elsewhere=worst.elsewhere,
        ) from worst


def _taken(answer: Answer, link: Link, call: Call, absent: str) -> Answer:
    if call.trail and call.trail[-1].tier == link.name:
        # the tier was too slow: a hedge has asked the next, whose answer this is, signed and counted
        return answer
    # an upstream's word that the caller was wrong is an answer too, and worth knowing of
    link.count("caller" if answer.fault else "answered", answer.fault)
    return signed(answer, link, call, absent)


def signed(answer: Answer, link: Link, call: Call, absent: str = "") -> Answer:
    """The answer, with the tier that gave it, and why it was not another."""
    answer.tier = link.rank
    if not answer.source:
        answer.source = link.name
    if call.trail or (absent and link.rank != "primary"):
        answer.reason = explain_trail(call, absent)
    return answer


def overtaken(slow: Link, quick: Link, call: Call, answer: Answer) -> None:
    """A hedge of the tier `slow` was answered by the tier `quick`: have the answer say so, and count both."""
    call.note(slow.name, "refused", "slow")
    slow.count("refused", "slow")
    quick.count("answered", "hedge")
    signed(answer, quick, call)


def _forbid_retries(answer: Answer) -> None:
    if NO_RETRY[0] in answer.lines().lower():
        answer.headers = [header for header in answer.headers if header[0].lower() != NO_RETRY[0]]
    answer.add(*NO_RETRY)


def explain_trail(call: Call, absent: str) -> str:
    """`openai: status_503; mirror: breaker`, the tiers not answering and why, in the order they were asked."""
    steps = [f"{step.tier}: {step.reason}" for step in call.trail]
    if absent:
        steps.insert(0, absent)
    return "; ".join(steps)
