"""Ask a service how it is: whether it can be reached (L0), and whether it says itself that it is well (L1).

    ask its own endpoint, with the tier's own credentials, over the tier's own connections, past every policy
      no connection --> transport      no answer, 5xx, another shape than it once had --> protocol

A service whose endpoint has never answered as its API says (a gateway that only speaks for part of it, a page for
everything) is not ill for that: it is not known what it should say, so it only counts that it was reached.
Past the policies, so that a check neither spends what callers need nor closes what their failures have opened. Quiet
while callers show that a service is well; at once when one of them has failed.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

from understudy.policies.health import Level
from understudy.policies.service import Answer, Call, Failed, Headers, Refused, Request, Service
from understudy.proxy.assembling import Stack
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.vital import SCHEMA, VITALS, Vital, path_under, what_is_wrong
from understudy.proxy.health.board import Healths
from understudy.proxy.health.components import Component, Use, upstream
from understudy.proxy.http.pool import Pool
from understudy.proxy.settings.health import Health as Rules
from understudy.proxy.settings.outcomes import shipped
from understudy.proxy.settings.settings import UpstreamTier
from understudy.proxy.tiers.judging import Judge
from understudy.proxy.tiers.upstream import Target, upstream_tier

AGAIN_S = 0.25
"""What was found wrong is asked again so soon: two of three decide."""
ALARMED_S = 1.0
"""After a caller has failed it is asked at once, and no more often than this while it says that it is well."""
JITTER = 0.1
USER_AGENT = (b"user-agent", b"understudy-health")
UNCONNECTED = frozenset(("connect_refused", "connect_timeout", "connect", "dns", "tls"))
NAMES = {"deadline": "no_answer", "first_byte_timeout": "no_answer"}

log = logging.getLogger("understudy.health")

Semantic = Callable[[str], Awaitable[bool]]
"""Looks at what a component's answers mean, where that can be done now; whether it could."""


class Unjudged(Judge):
    """Takes every answer for one: what it says of its server is seen here."""

    __slots__ = ()

    def judged(self, call: Call, answer: Answer, dialect: object) -> Answer:
        del call, dialect
        return answer

    def heard(self, failed: Failed) -> None:
        """Nobody asks again."""


def way_to(stack: Stack, use: Use) -> tuple[UpstreamTier, Pool]:
    """Where a component is asked, as it is at one place. Raises Refused while that is being put together."""
    key = (use.route, use.tier, use.endpoint)
    tier, pool = upstream(stack.tiers.get(key)), stack.pools.get(key)
    if tier is None or pool is None:
        raise Refused("not_there", "its route is being put together")
    return tier, pool


def unjudged(tier: UpstreamTier, pool: Pool, clock: Callable[[], float]) -> Service:
    """A tier's upstream past every policy, whose answers are given as they come."""
    judge = Unjudged(shipped().table, "plain", own_key=False)
    return upstream_tier(tier, DIALECTS["plain"], pool, clock, judge=judge)


class Checkup:
    """Who checks, and when next. `stack` is what is in force, `semantic` those who look at what answers mean."""

    def __init__(
        self,
        healths: Healths,
        stack: Callable[[], Stack],
        *,
        clock: Callable[[], float],
        dice: Callable[[], float],
    ) -> None:
        self.semantic: list[Semantic] = []
        self._healths = healths
        self._stack = stack
        self._clock = clock
        self._dice = dice
        self._due: dict[str, float] = {}
        self._asked_at: dict[str, float] = {}
        self._has_known_shape: dict[str, bool] = {}
        self._number = 0
        healths.checker = self.run

    # --- when ------------------------------------------------------------------------------------------------------

    def due(self, now: float) -> list[str]:
        """The services that should be asked now."""
        healths, rules = self._healths, self._rules
        services = [name for name, one in healths.components.items() if one.uses]
        self._due = {name: at for name, at in self._due.items() if name in healths.components}
        self._has_known_shape = {name: had for name, had in self._has_known_shape.items() if name in healths.components}
        alarmed, healths.alarmed = healths.alarmed, set()
        if not rules.enabled:
            return []
        found: list[str] = []
        for name in services:
            at = self._due.get(name)
            if at is None:
                # not all at once, and not before it is there
                self._due[name] = now + rules.every_s * (0.5 + self._dice())
                continue
            if name in alarmed:
                at = min(at, self._asked_at.get(name, 0.0) + ALARMED_S)
            if at > now:
                self._due[name] = at
                continue
            pause_s = self._pause_s(len(services), rules, now)
            shown_at = self._shown_well_at(name)
            if name not in alarmed and now < shown_at + pause_s:
                # a live call that is answered is as good as a check
                self._due[name] = shown_at + pause_s
                continue
            found.append(name)
            self._asked_at[name] = now
            self._due[name] = now + pause_s
        return found

    @property
    def _rules(self) -> Rules:
        return self._stack().settings.server.health

    def _shown_well_at(self, component: str) -> float:
        """When callers have last shown that a service is well; never, where a check is needed to believe it."""
        if self._healths.hearts[component].reach.word not in ("healthy", "unknown"):
            return float("-inf")
        return self._healths.live_at.get(component, float("-inf"))

    def _pause_s(self, services: int, rules: Rules, now: float) -> float:
        idle = now - self._healths.called_at > rules.idle_after_s
        pause_s = max(rules.idle_every_s if idle else rules.every_s, services / rules.checks_per_s_max)
        return pause_s * (1.0 - JITTER + 2.0 * JITTER * self._dice())

    # --- what ------------------------------------------------------------------------------------------------------

    async def run(self, component: str, level: Level) -> None:
        """The check of this level, now: of what answers mean where that was wrong, else whether it is there."""
        if level == "semantic" or not self._is_service(component):
            for look in self.semantic:
                if await look(component):
                    return
        await self.ask(component)

    def _is_service(self, component: str) -> bool:
        one = self._healths.components.get(component)
        return one is not None and bool(one.uses)

    async def ask(self, component: str) -> None:
        """Ask a service how it is, and tell its heart."""
        one = self._healths.components.get(component)
        if one is None or not one.uses:
            return
        try:
            found = await self.asked(one)
        except Refused:
            # all its connections are in use: callers will say how it is
            return
        except Exception:
            log.exception("an error of our own in a check of %s", component)
            return
        level, reason = self._as_known(component, *found)
        self._healths.checked(component, level, reason)
        if reason:
            self._due[component] = min(self._due.get(component, 0.0), self._again_at(component))

    def _as_known(self, component: str, level: Level, reason: str) -> tuple[Level, str]:
        """What was found, less a shape that is only strange: one that its endpoint has never had."""
        if level == "protocol" and not reason:
            self._has_known_shape[component] = True
        if reason != SCHEMA or self._has_known_shape.get(component):
            return level, reason
        if component not in self._has_known_shape:
            self._has_known_shape[component] = False
            log.info("%s answers its own endpoint in no shape that its API has: only checked to be there", component)
        return "transport", ""

    def _again_at(self, component: str) -> float:
        """When one that was found wrong is asked again: at once until it is decided, then in its turn."""
        if self._healths.hearts[component].reach.word == "unhealthy":
            return self._due.get(component, 0.0)
        return self._clock() + AGAIN_S

    async def asked(self, component: Component) -> tuple[Level, str]:
        """What is wrong with a service, and at which level; '' where nothing is. Raises Refused."""
        use = component.uses[0]
        tier, pool = way_to(self._stack(), use)
        vital = VITALS.get(use.dialect)
        until = self._clock() + self._rules.wait_s
        try:
            if vital is None:
                connection = pool.take() or await pool.connect(self._rules.wait_s)
                pool.give_back(connection)
                return "transport", ""
            service = unjudged(tier, pool, self._clock)
            answer = await service(self._call(use, vital, Target(tier).base_path, until))
        except Failed as failed:
            level: Level = "transport" if failed.reason in UNCONNECTED else "protocol"
            return level, NAMES.get(failed.reason, failed.reason)
        if answer.stream is not None:
            # longer than anybody wants to read: it speaks, and that is what was asked
            answer.stream.close()
            return "protocol", what_is_wrong(vital._replace(wrong=None), answer.status, b"")
        return "protocol", what_is_wrong(vital, answer.status, answer.body)

    def _call(self, use: Use, vital: Vital, base: bytes, until: float) -> Call:
        self._number += 1
        target = path_under(base, vital.path)
        headers: Headers = [(b"accept", b"application/json, */*"), USER_AGENT, *vital.headers]
        if vital.body:
            headers.append((b"content-type", b"application/json"))
        request = Request(vital.method, target, headers, vital.body)
        call = Call("pass", request, route=use.route, born=self._clock(), id=f"health-{self._number:x}")
        call.deadline = call.until = until
        return call


def shown(checks: Mapping[tuple[str, Level, str], int], component: str) -> dict[str, int]:
    """How many checks of a component there were, by level and result, for /status."""
    return {f"{level} {result}": count for (name, level, result), count in checks.items() if name == component}
