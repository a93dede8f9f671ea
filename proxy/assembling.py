"""How a `Stack` is made of settings: routes and their layers, tiers, pools, what caches share, and our certificate.

What goes on by name is taken over from the stack before: pools whose tier has not changed, breakers, counts, caches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from understudy.policies.outcomes import Outcomes
from understudy.policies.service import Service
from understudy.proxy.caching.caches import Caches, second_level
from understudy.proxy.caching.prompter import foreseen_of
from understudy.proxy.dialects import DIALECTS, KINDS, naming_of
from understudy.proxy.handles import Handles, learning
from understudy.proxy.http.forwarding import Marks
from understudy.proxy.http.pool import Pool
from understudy.proxy.http.stepping import Steps
from understudy.proxy.mirroring.copies import Copies
from understudy.proxy.peeks import Peek
from understudy.proxy.routes import Table
from understudy.proxy.settings.addresses import tls_of
from understudy.proxy.settings.certificates import BadCredentials, Credentials, credentials
from understudy.proxy.settings.outcomes import base_table
from understudy.proxy.settings.settings import LocalTier, Route, Settings, Tier, UpstreamTier
from understudy.proxy.settings.spend_rules import counts_tokens
from understudy.proxy.settings.stream_rules import can_fail_over
from understudy.proxy.settings.trace import Traces
from understudy.proxy.spaces.fingerprints import Fingerprints, measuring
from understudy.proxy.spaces.provenance import Provenance
from understudy.proxy.spaces.shared_ledger import SharedLedger
from understudy.proxy.spaces.spaces import NO_PLAN, Plan, is_never_alone, of_another_space, plans_of
from understudy.proxy.stack import RouteParts, World, assemble
from understudy.proxy.tiers.handing import Handing
from understudy.proxy.tiers.judging import tier_judge
from understudy.proxy.tiers.knowing import Knowing
from understudy.proxy.tiers.origins import Origins
from understudy.proxy.tiers.upstream import make_pool, upstream_tier

if TYPE_CHECKING:
    from understudy.proxy.reports.tracing import Tracer
    from understudy.proxy.spending.accounting import Accountant
    from understudy.proxy.spending.budgets import Spending


class CannotStart(Exception):
    """Why the sidecar can't run, in words for the operator."""


@dataclass(slots=True)
class Stack:
    """Everything that one reading of the policies put in force; swapped as a whole."""

    settings: Settings
    routes: dict[str, RouteParts]
    table: Table[RouteParts]
    pools: dict[tuple[str, str, str], Pool]
    tiers: dict[tuple[str, str, str], Tier] = field(default_factory=dict[tuple[str, str, str], Tier])
    tls: Credentials | None = None
    tracer: Tracer | None = None


class Assembler:
    """Makes stacks of settings; what all of them share, and what outlives them, is kept here."""

    def __init__(
        self,
        world: World,
        state: Path,
        *,
        steps: Steps,
        pseudonym: bytes,
        knowing: Knowing,
        provenance: Provenance,
        fingerprints: Fingerprints,
        copies: Copies,
        published: Callable[[list[str]], None],
        peek_of: Callable[[tuple[str, str, str]], Peek],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._world = world
        self._steps = steps
        self._state = state
        self._pseudonym = pseudonym
        self._knowing = knowing
        self._provenance = provenance
        self._fingerprints = fingerprints
        self._copies = copies
        self._published = published
        self._peek_of = peek_of
        self._handles: dict[str, Handles] = {}
        self._plans: Mapping[str, Plan] = {}
        self.caches: Caches | None = None
        self.accountant: Accountant | None = None
        self.spending: Spending | None = None

    def assembled(self, settings: Settings, before: Stack | None) -> Stack:
        pools: dict[tuple[str, str, str], Pool] = {}
        tiers: dict[tuple[str, str, str], Tier] = {}

        def make_tier(route: Route, tier: Tier, endpoint: str) -> Service:
            tiers[route.name, tier.name, endpoint] = tier
            return self._made_tier(settings, route, tier, endpoint, pools, before, base)

        base = base_table(settings)
        plans = self._plans = plans_of(settings)
        caches = self._caches_for(settings, before)
        self._provenance.obey(settings.server.ledger, never_alone=is_never_alone(settings))
        self._account(settings)
        tracer = _tracer_of(settings, before)
        second = caches.second if caches is not None and settings.server.ledger.shared else None
        self._provenance.second = None if second is None else SharedLedger(second)
        routes = {
            route.name: assemble(
                route,
                DIALECTS[route.dialect],
                self._world,
                make_tier,
                absent=settings.inactive.get(route.name),
                before=before.routes.get(route.name) if before else None,
                faults=settings.server.faults,
                caches=caches,
                space=settings.space_of(route),
                zone=settings.server.zone,
                plan=plans.get(route.name, NO_PLAN),
                foreseen=foreseen_of(route),
                tap=self._copies.tap_of(settings, route, self._handles_of(route)),
                budgets=self.spending.budgets.get(route.name) if self.spending is not None else None,
                tracer=tracer,
            )
            for route in settings.routes
        }
        self._fingerprints.keep(set(pools))
        table = Table((match, parts) for parts in routes.values() for match in parts.route.claims)
        try:
            tls = credentials(tls_of(settings), before.tls if before else None)
        except BadCredentials as bad:
            raise CannotStart(f"server.tls.{bad.key}: {bad}") from None
        return Stack(settings, routes, table, pools, tiers, tls, tracer)

    def _made_tier(
        self,
        settings: Settings,
        route: Route,
        tier: Tier,
        endpoint: str,
        pools: dict[tuple[str, str, str], Pool],
        before: Stack | None,
        base: Outcomes,
    ) -> Service:
        dialect = DIALECTS[route.dialect]
        space = settings.space_of(route)
        if isinstance(tier, LocalTier):
            return self._local_tier(settings, route, tier)
        if space and tier.space and tier.space != space:
            return of_another_space(tier.space, space)
        key = (route.name, tier.name, endpoint)
        pool = before.pools.get(key) if before and before.tiers.get(key) == tier else None
        if pool is None:
            try:
                pool = make_pool(tier, self._loop, self._world.clock, dice=self._world.dice, steps=self._steps)
            except OSError as error:
                raise CannotStart(f"route {route.name}, tier {tier.name}: tls.ca_file: {error}") from None
        pools[key] = pool
        marks = Marks(self._pseudonym, forwarded=settings.server.forwarded, trace=settings.server.trace)
        judge = tier_judge(route, tier, dialect, base)
        ask = partial(upstream_tier, holds=can_fail_over(settings, route, tier.name), peek=self._peek_of(key))
        if tier.speaks is not None:
            # whatever key it is sent is ours: the caller's stays here
            judge = judge._replace(own_key=True)
            spoken = ask(tier, DIALECTS[tier.speaks], pool, self._world.clock, marks, judge)
            spoken = self._counted(spoken, settings, route, tier, tier.speaks)
            from understudy.proxy.tiers.translating import translating

            return translating(_prefilled(route, tier, spoken), tier, dialect)
        service = ask(tier, dialect, pool, self._world.clock, marks, judge)
        service = self._counted(service, settings, route, tier, route.dialect)
        service = _prefilled(route, tier, service)
        one = measuring(settings, route, tier, endpoint, service, self._world.clock)
        if one is not None:
            service = self._fingerprints.watched(service, one, self._world.clock())
        handles = self._handles_of(route)
        naming = naming_of(route.dialect)
        return service if handles is None or naming is None else learning(service, naming, handles)

    def _account(self, settings: Settings) -> None:
        """Have tokens counted by these prices, from the first policies on that ask for it."""
        if self.accountant is None:
            if not any(counts_tokens(settings, route) for route in settings.routes):
                return
            # only here: who has neither prices nor budgets needs none of it
            from understudy.proxy.spending.accounting import Accountant

            self.accountant = Accountant()
        self.accountant.obey(settings)
        if self.spending is None and any(route.spend.budgets for route in settings.routes):
            from understudy.proxy.spending.budgets import Spending

            path = self._state / "spend.sqlite"
            self.spending = Spending(path, wall=self._world.wall, drain=self.accountant.drain)
        if self.spending is not None:
            self.spending.obey(settings)

    def _counted(self, service: Service, settings: Settings, route: Route, tier: UpstreamTier, dialect: str) -> Service:
        """`service`, the upstream itself, with its tokens counted where the route's are."""
        if self.accountant is None or not counts_tokens(settings, route):
            return service
        spends = self.spending is not None and route.name in self.spending.budgets
        charge = partial(self.spending.charge, route.name) if self.spending is not None and spends else None
        return self.accountant.counted(service, route, tier, dialect, charge)

    def _local_tier(self, settings: Settings, route: Route, tier: LocalTier) -> Service:
        from understudy.proxy.tiers.local import local_tier

        space, rules, dialect = settings.space_of(route), route.spaces, DIALECTS[route.dialect]
        declared = settings.server.spaces.get(space)
        handing = origins = None
        if KINDS[route.dialect] == "embed":
            plan = self._plans.get(route.name, NO_PLAN)
            handing = Handing(route.name, rules, space, self._provenance, declared=declared, hands_out=plan.hands_out)
        elif KINDS[route.dialect] == "retrieve":
            origins = Origins(space, self._provenance, declared and declared.dimensions, rules.tenant_headers)
        return local_tier(
            tier,
            space=space,
            dialect=dialect,
            knowing=self._knowing,
            handles=self._handles_of(route),
            handing=handing,
            origins=origins,
            message=route.last_words.message,
            watch=self._copies.watch,
        )

    def _handles_of(self, route: Route) -> Handles | None:
        """What is known of the ids that the route's database gives its collections; None where it gives none."""
        if naming_of(route.dialect) is None:
            return None
        return self._handles.setdefault(route.name, Handles(self._state / "handles" / f"{route.name}.jsonl"))

    def _caches_for(self, settings: Settings, before: Stack | None) -> Caches | None:
        """What the caches of these settings share; nothing where no route has one."""
        shares = settings.server.cache.url is not None and settings.server.ledger.shared
        remembers = any(plan.remembers or plan.hands_out for plan in self._plans.values())
        keeps = any(route.cache.enabled or route.likeness.mode != "off" for route in settings.routes)
        if not keeps and not (shares and remembers):
            return None
        if self.caches is None:
            self.caches = Caches(clock=self._world.clock, wall=self._world.wall, dice=self._world.dice)
            self.caches.published = self._published
        self.caches.obey(settings)
        shared = settings.server.cache
        known = before.settings.server.cache if before and self.caches.second else None
        if shared.url is None:
            self.caches.use(None)
        elif known is None or (known.url, known.wait_s, known.namespace) != (
            shared.url,
            shared.wait_s,
            shared.namespace,
        ):
            try:
                self.caches.use(second_level(shared, self.caches))
            except ImportError as error:
                raise CannotStart(f"server.cache.url: {error}; pip install 'understudy[cache]' brings it") from None
        return self.caches


def _tracer_of(settings: Settings, before: Stack | None) -> Tracer | None:
    """Who makes spans, where they are sent somewhere. Raises CannotStart without the SDK."""
    rules = settings.server.traces
    if not isinstance(rules, Traces):
        return None
    known = before.tracer if before is not None else None
    if known is None or known.rules != rules:
        from understudy.proxy.reports.tracing import Tracer

        try:
            known = Tracer(rules, counts=known.counts if known is not None else None)
        except ImportError as error:
            raise CannotStart(f"server.traces: {error}; pip install 'understudy[otel]' brings it") from None
    known.obey(settings)
    return known


def _prefilled(route: Route, tier: UpstreamTier, service: Service) -> Service:
    """`service`, which can be asked to go on with what another has begun, where the route's streams are continued."""
    if route.stream.after_first_content != "continue":
        return service
    from understudy.proxy.tiers.continuing import prefilled_by

    return prefilled_by(route, tier, service)
