"""How every component is, what service tier that makes, and where calls are sent because of it; told to who asks.

    breakers, tallies --each look--+                                +--> Ramp.held, Peer.ejected_until: who is asked
    watches, fingerprints, parts --+--> Health --Diagnosis changed--+--> service tiers, of routes and of the whole
    checks (health_checks.py) -----+                                +--> listeners, events, /status, metrics

Nothing here is on a call's path: what a verdict changes is a value that the chain and the balancer read anyway. Of
several workers the one at place 0 makes the verdicts, and the others hear them.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from understudy.policies.breaker import Breaker
from understudy.policies.chain import Rank
from understudy.policies.events import WHOLE, Event
from understudy.policies.health import (
    BREAKER,
    Diagnosis,
    Guarding,
    Health,
    Level,
    Said,
    of_breakers,
    strain,
)
from understudy.policies.tiering import Tiering, is_passed_over
from understudy.proxy.events import Events
from understudy.proxy.health.components import UPSTREAMS, Component, Key, by_tier, components_of
from understudy.proxy.parts import RouteParts
from understudy.proxy.settings.health import ServiceTier
from understudy.proxy.settings.settings import Settings

HELD_S = 3600.0
"""An endpoint whose component is unhealthy is left out for so long, or until it is well."""
UNREACHED = ("connect_timeout", "dns", "connect", "no_answer")
"""What is found wrong where the network may be to blame; who refuses a connection has been reached."""

log = logging.getLogger("understudy.health")

Listener = Callable[[Diagnosis, Diagnosis], None]
"""Told of a change: what is thought now, and what was before."""


class Source(Protocol):
    """Somebody who looks at components in a way of its own."""

    def __call__(self, now: float) -> Iterable[Said]: ...


@dataclass(slots=True)
class Counted:
    """How many calls a breaker had counted when it was last looked at."""

    calls: int = 0
    failures: int = 0


@dataclass(slots=True)
class Pins:
    """What an operator has pinned: for the whole sidecar, and by route."""

    whole: Rank | None = None
    routes: dict[str, Rank] = field(default_factory=dict[str, Rank])

    def of(self, route: str) -> Rank | None:
        """What holds for a route."""
        own = self.routes.get(route)
        return self.whole if own is None else own


class Healths:
    """One process's. `check` runs what has failed, now; it is set by who can (`health_checks.Checkup`)."""

    def __init__(self, events: Events, *, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self.components: dict[str, Component] = {}
        self.hearts: dict[str, Health] = {}
        self.whole = Tiering(clock())
        self.routes: dict[str, Tiering] = {}
        self.pins = Pins()
        self.sources: list[Source] = []
        self.checks: dict[tuple[str, Level, str], int] = {}
        """How many checks there were, by component, level and result."""
        self.called_at = clock()
        self.alarmed: set[str] = set()
        """Components that callers have just failed at, for who checks: it need not wait for its turn."""
        self.live_at: dict[str, float] = {}
        """When a live call was last answered by a component, and none failed."""
        self.is_leader = True
        self.checker: Callable[[str, Level], Awaitable[None]] | None = None
        self._events = events
        self._clock = clock
        self._wall = wall
        self._listeners: list[Listener] = []
        self._told: dict[str, Diagnosis] = {}
        self._heard: dict[str, Diagnosis] = {}
        self._counted: dict[int, Counted] = {}
        self._parts: Mapping[str, RouteParts] = {}
        self._by_tier: dict[tuple[str, str], dict[str, str]] = {}
        self._rules = ServiceTier()
        self._route_rules: dict[str, ServiceTier] = {}

    # --- what others ask -------------------------------------------------------------------------------------------

    def diagnosis(self, component: str) -> Diagnosis:
        """What is thought of a component; `unknown` of one that is not there."""
        if not self.is_leader:
            return self._heard.get(component, Diagnosis(component, "unknown"))
        heart = self.hearts.get(component)
        return heart.diagnosis if heart is not None else Diagnosis(component, "unknown")

    @property
    def diagnoses(self) -> list[Diagnosis]:
        """What is thought of all of them."""
        return [self.diagnosis(name) for name in self.components]

    async def check(self, component: str) -> Diagnosis:
        """Run the check that failed, or the nearest there is, now; its result is in `passed`. Never raises, but for
        being cancelled."""
        heart = self.hearts.get(component)
        if heart is not None and self.checker is not None:
            await self.checker(component, heart.level)
            self.look()
        return self.diagnosis(component)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Have `listener` told of every change from now on, on the loop; it must not wait. Returns how to end that."""
        self._listeners.append(listener)

        def ended() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return ended

    # --- what is in force ------------------------------------------------------------------------------------------

    def adopt(self, settings: Settings, parts: Mapping[str, RouteParts]) -> None:
        """Go by other policies; what was known of a component is known still."""
        now = self._clock()
        self.components = components_of(settings)
        self.hearts = {name: self.hearts.get(name) or Health(name, now) for name in self.components}
        self._told = {name: one for name, one in self._told.items() if name in self.components}
        self.live_at = {name: at for name, at in self.live_at.items() if name in self.components}
        self.checks = {key: count for key, count in self.checks.items() if key[0] in self.components}
        self.routes = {name: self.routes.get(name) or Tiering(now) for name in parts}
        self._parts = parts
        self._by_tier = by_tier(self.components)
        self._rules = settings.server.health.tier
        own = {route.name: route.service_tier for route in settings.routes}
        self._route_rules = {name: one for name, one in own.items() if isinstance(one, ServiceTier)}
        live = {id(breaker) for name in self.components for breaker in self._breakers(name)}
        self._counted = {key: counted for key, counted in self._counted.items() if key in live}
        self._put_in_force(now)

    def pin(self, rank: Rank | None, route: str = "") -> bool:
        """Have an operator's word hold until another: calls go to this tier, or one behind it. None lets go."""
        if route and route not in self.routes:
            return False
        if not route:
            self.pins.whole = rank
        elif rank is None:
            self.pins.routes.pop(route, None)
        else:
            self.pins.routes[route] = rank
        self._put_in_force(self._clock())
        return True

    # --- evidence --------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """See what callers and all others have found since the last time, and put in force what follows from it."""
        now = self._clock()
        for name, heart in self.hearts.items():
            self._look_at_calls(name, heart, now)
        if not self.is_leader:
            return
        for source in self.sources:
            for said in source(now):
                if (heart := self.hearts.get(said.component)) is not None:
                    heart.hears(now, said.source, said.word, said.reason, passes=said.passes)
        self._look_at_network(now)
        for heart in self.hearts.values():
            heart.settle(now)
        self._put_in_force(now)

    def checked(self, component: str, level: Level, reason: str) -> None:
        """A check of ours is done, and found `reason` wrong, or nothing."""
        heart = self.hearts.get(component)
        if heart is None:
            return
        key = (component, level, "wrong" if reason else "well")
        self.checks[key] = self.checks.get(key, 0) + 1
        heart.checked(self._clock(), level, f"{level}: {reason}" if reason else "")
        self._put_in_force(self._clock())

    def _breakers(self, component: str) -> Iterable[Breaker]:
        for use in self.components[component].uses:
            parts = self._parts.get(use.route)
            tier = parts.tiers.get(use.tier) if parts is not None else None
            endpoint = tier.endpoints.get(use.endpoint) if tier is not None else None
            if endpoint is not None and endpoint.breaker is not None:
                yield endpoint.breaker

    def _look_at_calls(self, component: str, heart: Health, now: float) -> None:
        calls = failures = window = failed = 0
        guards: list[Guarding] = []
        for breaker in self._breakers(component):
            before = self._counted.get(id(breaker))
            if before is None:
                before = self._counted[id(breaker)] = Counted()
            calls += breaker.calls - before.calls
            failures += breaker.failures - before.failures
            before.calls, before.failures = breaker.calls, breaker.failures
            if breaker.mode == "auto":
                lately, wrong = breaker.lately(now)
                window, failed = window + lately, failed + wrong
                guards.append(Guarding(breaker.state != "closed", breaker.unasked_s(now), lately, breaker.reason))
        if calls:
            self.called_at = now
        if failures:
            self.alarmed.add(component)
        elif calls:
            self.live_at[component] = now
        if self.is_leader:
            heart.lived(now, calls, failures)
            heart.hears(now, BREAKER, *of_breakers(guards))
            strained = strain(window, failed)
            heart.hears(now, "calls", "degraded" if strained else "unknown", strained, "live")

    def _look_at_network(self, now: float) -> None:
        """Where none of several services can be reached at all, it is the way to them."""
        heart = self.hearts.get(UPSTREAMS)
        if heart is None:
            return
        services = [self.hearts[name] for name, one in self.components.items() if one.uses]
        seen = [one for one in services if one.reach.word != "unknown"]
        away = [one for one in seen if one.reach.word == "unhealthy" and _is_unreached(one.reach.reason)]
        if not seen:
            return
        if len(away) == len(seen) and len(seen) > 1:
            heart.hears(now, "services", "unhealthy", f"none of {len(seen)} services can be reached", "transport")
        else:
            heart.hears(now, "services", "healthy", "", "transport")

    # --- several workers -------------------------------------------------------------------------------------------

    def hear(self, told: Iterable[Diagnosis]) -> None:
        """Go by what the worker at place 0 has found."""
        if self.is_leader:
            return
        for one in told:
            self._heard[one.component] = one
        self._heard = {name: one for name, one in self._heard.items() if name in self.components}
        self._put_in_force(self._clock())

    # --- what follows ----------------------------------------------------------------------------------------------

    def _put_in_force(self, now: float) -> None:
        diagnoses = {name: self.diagnosis(name) for name in self.components}
        for name, one in diagnoses.items():
            before = self._told.get(name) or Diagnosis(name, "unknown")
            if (one.word, one.flapping) != (before.word, before.flapping) or one.passes_over != before.passes_over:
                self._told[name] = one
                self._tell(before, one)
        unhealthy = [name for name, one in diagnoses.items() if one.word == "unhealthy"]
        self._settle_tiers(now, unhealthy)
        self._steer(now, {name for name, one in diagnoses.items() if one.passes_over})

    def _tell(self, before: Diagnosis, one: Diagnosis) -> None:
        for listener in list(self._listeners):
            try:
                listener(one, before)
            except Exception:
                log.exception("a change of %s was not taken", one.component)
        if not self.is_leader or (one.word, one.flapping) == (before.word, before.flapping):
            return
        if (before.word, one.word) != ("unknown", "healthy"):
            tell = log.info if one.word == "healthy" else log.warning
            flaps = ", held while it flaps" if one.flapping else ""
            tell("%s is %s%s%s", one.component, one.word, flaps, f": {one.reason}" if one.reason else "")
        facts = {"was": before.word, "level": one.level, "flapping": str(one.flapping).lower()}
        facts["routes"] = ", ".join(self.components[one.component].routes)
        at = self._wall()
        self._events.publish(Event(at, "health", one.component, one.word, one.reason, facts))
        if one.word == "unhealthy":
            self._events.publish(Event(at, "failure", one.component, kind_of(one), one.reason, facts))

    def _settle_tiers(self, now: float, unhealthy: list[str]) -> None:
        self.whole.pinned = self.pins.whole
        self._settle(WHOLE, "", self.whole, now, unhealthy, self._rules)
        for name, tiering in self.routes.items():
            tiering.pinned = self.pins.of(name)
            used = [each for each in unhealthy if name in self.components[each].routes]
            self._settle(WHOLE, name, tiering, now, used, self._route_rules.get(name, self._rules))

    def _settle(
        self, component: str, route: str, tiering: Tiering, now: float, unhealthy: list[str], rules: ServiceTier
    ) -> None:
        change = tiering.look(now, unhealthy, rules)
        if change is None or not self.is_leader:
            return
        who = f"route {route}" if route else "the sidecar"
        detail = f"{who} is on its {change.tier} tier: {change.reason}"
        (log.info if change.tier == "primary" else log.warning)("%s", detail)
        facts = {"was": change.before, "route": route, "reason": change.reason}
        self._events.publish(Event(self._wall(), "tier", component, change.tier, detail, facts))

    def _steer(self, now: float, passed_over: set[str]) -> None:
        """Have the chain and the balancer read where calls should go."""
        for (route, tier), endpoints in self._by_tier.items():
            parts = self._parts.get(route)
            own = parts.tiers.get(tier) if parts is not None else None
            if own is None or own.link is None:
                continue
            out = {endpoint for endpoint, name in endpoints.items() if name in passed_over}
            if own.link.ramp is not None:
                all_out = len(out) == len(endpoints)
                own.link.ramp.held = is_passed_over(own.link.rank, self.pins.of(route), unhealthy=all_out)
            for name, endpoint in own.endpoints.items():
                peer = endpoint.peer
                if peer is None:
                    continue
                if name in out and len(out) < len(endpoints):
                    peer.ejected_until = now + HELD_S
                elif peer.ejected_until > now + HELD_S / 2:
                    # it was ours to leave out; back by degrees, as after any other ejection
                    peer.ejected_until = now


def kind_of(one: Diagnosis) -> str:
    """A failure in a word: what was found wrong, without the figures."""
    level, colon, rest = one.reason.partition(": ")
    word = rest if colon and level == one.level else one.reason if one.level == "semantic" else one.level
    return (word.replace(":", ",").partition(",")[0].partition(" ")[0] or "unhealthy")[:64]


def _is_unreached(reason: str) -> bool:
    return reason.partition(": ")[2] in UNREACHED


__all__ = ["Component", "Diagnosis", "Healths", "Key", "kind_of"]
