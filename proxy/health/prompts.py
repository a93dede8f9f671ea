"""Put a prompt of one token to each LLM service now and then, where that is wanted, and see that a text comes back.

    every `llm_every_s`, within `llm_per_hour_max` --> POST in the endpoint's own words, with the tier's own credentials
      200, and a text or a reason to stop --> well        5xx, no answer, no text --> wrong
      429, no connection to spare --------> nothing       4xx, another shape, where it has once been well --> wrong

Which model, and at which path, callers show (`peeks`), or a setting says. An endpoint that has never answered it well
is not ill for a 4xx or a strange shape: it may want another key than ours, or not be what it is taken for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from understudy.policies.health import Row, Said
from understudy.policies.service import Answer, Call, Failed, Headers, Refused, Request
from understudy.proxy.assembling import Stack
from understudy.proxy.dialects.one_token import GOLDENS, Golden, what_is_missing
from understudy.proxy.dialects.vital import SCHEMA, path_under
from understudy.proxy.health.board import Healths
from understudy.proxy.health.checks import NAMES, USER_AGENT, unjudged, way_to
from understudy.proxy.health.components import Use
from understudy.proxy.peeks import Shown
from understudy.proxy.settings.health import Health as Rules
from understudy.proxy.settings.settings import UpstreamTier
from understudy.proxy.tiers.upstream import Target

WAIT_S = 30.0
"""Models think, and are loaded first."""
AGAIN_S = 5.0
"""After an answer that was wrong, until two of three have decided; then, and until it is well, `AGAIN_SHARE` of the
usual pause."""
AGAIN_SHARE = 0.1
SOURCE = "one token"
HOUR_S = 3600.0
LIMITED = (402, 425, 429)
"""Who says so has no time or no money for us, which says nothing of what it would answer."""

log = logging.getLogger("understudy.health")


class Way(NamedTuple):
    """How an endpoint is asked: its dialect's golden, where, and which model."""

    golden: Golden
    target: bytes
    model: str


@dataclass(slots=True)
class Asked:
    """One service, and what is known of how it takes the prompt. `body` is which of the ways to say it."""

    due_at: float
    row: Row = field(default_factory=Row)
    body: int = 0
    was_well: bool = False
    is_told: bool = False


class Budget:
    """So many prompts an hour, as they are saved up: the heart is told the time."""

    def __init__(self, now: float) -> None:
        self.left = 0.0
        self._at = now
        self._per_hour = 0

    def spend(self, now: float, per_hour: int) -> bool:
        """Whether one more may be put now; it is counted."""
        if per_hour != self._per_hour:
            self._per_hour, self.left = per_hour, float(per_hour)
        self.left = min(float(per_hour), self.left + (now - self._at) * per_hour / HOUR_S)
        self._at = now
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True


class Prompts:
    """One process's. `shown` is how callers put prompts to an endpoint, by its key."""

    def __init__(
        self,
        healths: Healths,
        stack: Callable[[], Stack],
        shown: Callable[[tuple[str, str, str]], Shown | None],
        *,
        clock: Callable[[], float],
        dice: Callable[[], float],
    ) -> None:
        self.budget = Budget(clock())
        self._healths = healths
        self._stack = stack
        self._shown = shown
        self._clock = clock
        self._dice = dice
        self._asked: dict[str, Asked] = {}
        self._gone: set[str] = set()
        self._number = 0
        healths.sources.append(self.said)

    @property
    def _rules(self) -> Rules:
        return self._stack().settings.server.health

    def said(self, now: float) -> Iterator[Said]:
        """What the answers come to, of each service; who is asked no more takes back what was said."""
        del now
        for name in self._gone:
            yield Said(name, SOURCE, "unknown")
        self._gone.clear()
        for name, one in self._asked.items():
            yield Said(name, SOURCE, one.row.word, one.row.reason, one.row.passes)

    # --- when ------------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Ask whoever is due, one after another."""
        rules = self._rules
        asks = bool(rules.llm_every_s) and rules.enabled
        names = [name for name, one in self._healths.components.items() if one.role == "llm_service"] if asks else []
        self._gone.update(self._asked.keys() - names)
        self._asked = {name: one for name, one in self._asked.items() if name in names}
        for name in names:
            now = self._clock()
            one = self._asked.get(name)
            if one is None:
                # not all at once, and soon: a caller has to have shown how, though
                self._asked[name] = Asked(now + min(60.0, rules.llm_every_s) * (0.5 + self._dice()))
            elif one.due_at <= now:
                await self.ask(name)

    async def again(self, component: str) -> bool:
        """Ask a service now, whether or not it is its turn; whether that was possible."""
        return component in self._asked and await self.ask(component)

    async def ask(self, component: str) -> bool:
        """Put the prompt to a service, and note what came of it; whether it was put at all."""
        one, uses = self._asked[component], self._healths.components[component].uses
        rules, now = self._rules, self._clock()
        one.due_at = now + rules.llm_every_s * (0.9 + 0.2 * self._dice())
        found: str | None = None
        put = False
        try:
            for use in uses:
                tier, _ = way_to(self._stack(), use)
                way = self._way(use, tier)
                if way is None:
                    continue
                if not self.budget.spend(now, rules.llm_per_hour_max):
                    return False
                put = True
                found = await self._found(one, use, way)
                break
        except Refused:
            return False
        except Exception:
            log.exception("an error of our own in a prompt for %s", component)
            return False
        if found is not None:
            self._note(component, one, found)
        return put

    def _note(self, component: str, one: Asked, found: str) -> None:
        one.row.add("semantic", found)
        one.was_well = one.was_well or not found
        counted = self._healths.checks
        key = (component, "semantic", "wrong" if found else "well")
        counted[key] = counted.get(key, 0) + 1
        if one.row.word == "healthy":
            return
        pause_s = AGAIN_S if found and one.row.word != "unhealthy" else AGAIN_SHARE * self._rules.llm_every_s
        one.due_at = min(one.due_at, self._clock() + max(AGAIN_S, pause_s))

    # --- what ------------------------------------------------------------------------------------------------------

    def _way(self, use: Use, tier: UpstreamTier) -> Way | None:
        """How an endpoint is asked; None where nobody has shown a model, and no setting names one."""
        golden = GOLDENS.get(use.dialect)
        if golden is None:
            return None
        shown = self._shown((use.route, use.tier, use.endpoint))
        is_put_so = shown is not None and shown.target.partition(b"?")[0].endswith(golden.ends)
        if shown is not None and is_put_so and (shown.model or b"/deployments/" in shown.target):
            return Way(golden, shown.target, shown.model)
        named = self._rules.llm_model
        model = tier.models.get(named, tier.models.get("*", named)) if named else shown.model if shown else ""
        if not model:
            return None
        return Way(golden, path_under(Target(tier).base_path, golden.path(model).encode()), model)

    async def _found(self, one: Asked, use: Use, way: Way) -> str | None:
        """What is wrong with its answer, '' where nothing is; None where the answer says nothing either way."""
        try:
            answer = await self._answered(one, use, way)
            if answer.status == 400 and not one.was_well and len(way.golden.bodies) > 1:
                # models that think want their bound by another name
                one.body = (one.body + 1) % len(way.golden.bodies)
                answer = await self._answered(one, use, way)
        except Failed as failed:
            return NAMES.get(failed.reason, failed.reason)
        if answer.stream is not None:
            answer.stream.close()
            return self._strange(one, use, SCHEMA)
        if answer.status in LIMITED:
            return None
        if answer.status >= 500:
            return f"status_{answer.status}"
        if answer.status != 200:
            return self._strange(one, use, f"status_{answer.status}")
        wrong = what_is_missing(way.golden, answer.body)
        return self._strange(one, use, wrong) if wrong == SCHEMA else wrong

    def _strange(self, one: Asked, use: Use, wrong: str) -> str | None:
        """What is wrong, if it was otherwise before."""
        if one.was_well:
            return wrong
        if not one.is_told:
            one.is_told = True
            log.warning("%s/%s does not take a prompt of one token (%s): not judged by it", use.route, use.tier, wrong)
        return None

    async def _answered(self, one: Asked, use: Use, way: Way) -> Answer:
        stack = self._stack()
        tier, pool = way_to(stack, use)
        self._number += 1
        headers: Headers = [
            (b"accept", b"application/json"),
            (b"content-type", b"application/json"),
            USER_AGENT,
            *way.golden.headers,
        ]
        body = msgspec.json.encode(way.golden.bodies[one.body](way.model))
        request = Request(b"POST", way.target, headers, body)
        call = Call("pass", request, route=use.route, born=self._clock(), id=f"prompt-{self._number:x}")
        call.deadline = call.until = self._clock() + WAIT_S
        return await unjudged(tier, pool, self._clock)(call)
