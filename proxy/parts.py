"""What a route is made of, and what it is made from: the parts that `stack` puts together and others read.

What an endpoint, a tier and a route remember is carried over a reload by name.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import UnsetType

from understudy.policies.balance import Balance, Peer
from understudy.policies.breaker import Breaker
from understudy.policies.budget import Budget
from understudy.policies.chain import Link
from understudy.policies.hedge import Hedge
from understudy.policies.limit import Bulkhead
from understudy.policies.observe import RouteTally
from understudy.policies.questions import Publish, Questions
from understudy.policies.quota import Quota
from understudy.policies.service import Answer, Request, Service
from understudy.policies.shed import Priority, Shedder
from understudy.policies.spend import Budgets
from understudy.policies.tokens import Buckets
from understudy.policies.usual import Usual
from understudy.proxy.arms import ArmParts
from understudy.proxy.caching.route_cache import RouteCache
from understudy.proxy.dialects import KINDS
from understudy.proxy.dialects.base import Dialect
from understudy.proxy.settings.settings import Limits, Route
from understudy.proxy.settings.stream_rules import LINES

if TYPE_CHECKING:
    from understudy.policies.likeness import Likeness
    from understudy.proxy.caching.last_words import LastWords
    from understudy.proxy.caching.likeness import Embed
    from understudy.proxy.http.exchange import QuickHit
    from understudy.proxy.questions import Story
    from understudy.proxy.spaces.held_writes import HeldWrites
    from understudy.proxy.spaces.provenance import Provenance
    from understudy.proxy.tiers.continuing import Continuations
    from understudy.proxy.watching.watching import Watching


@dataclass(slots=True)
class EndpointParts:
    """What is remembered of one endpoint, carried over a reload while its name and its place stay what they are.

    A local tier has one too, with its own name and without a breaker.
    """

    name: str
    bulkhead: Bulkhead
    breaker: Breaker | None = None
    place: object = None
    quota: Quota | None = None
    peer: Peer | None = None


@dataclass(slots=True)
class TierParts:
    """What a tier remembers beyond the policies that made it, carried over a reload by name."""

    endpoints: dict[str, EndpointParts] = field(default_factory=dict[str, EndpointParts])
    link: Link | None = None
    budget: Budget | None = None
    hedge: Hedge | None = None
    usual: Usual = field(default_factory=Usual)
    balance: Balance | None = None

    @property
    def only(self) -> EndpointParts:
        """The endpoint of a tier that has but one."""
        (parts,) = self.endpoints.values()
        return parts


@dataclass(slots=True)
class RouteParts:
    """A route put together: the service to call, and what `/metrics` and `/status` read."""

    route: Route
    dialect: Dialect
    service: Service
    tally: RouteTally
    links: tuple[Link, ...]
    tiers: dict[str, TierParts] = field(default_factory=dict[str, TierParts])
    arms: ArmParts = field(default_factory=ArmParts)
    likeness: Likeness | None = None
    last_words: LastWords | None = None
    buckets: Buckets | None = None
    shed: dict[Priority, int] = field(default_factory=dict[Priority, int])
    calm: Service | None = None
    pressed: Service | None = None
    cache: RouteCache | None = None
    watch: Watching | None = None
    continuations: Continuations | None = None
    budgets: Budgets | None = None
    held: HeldWrites | None = None
    story: Story | None = None
    body_bytes_max: int = field(init=False)
    keep_alive_s: float = field(init=False)
    quick_hit: QuickHit | None = None
    """The same as `hit`, of a head that was seen before and what follows from it, before there is a request."""
    hit: Callable[[Request], Answer | None] | None = None
    """The cache's answer to a request that is not yet a call, or None; the door asks before it makes one. Not there
    where something stands before the cache that has to see every call."""

    def relieve(self, *, pressed: bool) -> None:
        """Have the next calls answered by the stack that sheds, or by the one that knows nothing of it."""
        self.service = (self.pressed if pressed else self.calm) or self.service

    def close(self) -> None:
        """Let go of what is still asked of others, once nobody is sent here any more."""
        for each in (self.arms.shadowing, self.watch):
            if each is not None:
                each.close()

    @property
    def name(self) -> str:
        return self.route.name

    def __post_init__(self) -> None:
        own = self.route.body_bytes_max
        self.body_bytes_max = Limits().body_bytes_max if isinstance(own, UnsetType) else own
        has_comments = self.route.dialect not in LINES and KINDS.get(self.route.dialect) == "generate"
        self.keep_alive_s = (self.route.stream.keep_alive_s or 0.0) if has_comments else 0.0


@dataclass(frozen=True, slots=True)
class World:
    """What the stack takes from outside itself, so that tests can bring their own."""

    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[object]]
    dice: Callable[[], float] = random.random
    wall: Callable[[], float] = time.time
    shedder: Shedder | None = None
    embed: Embed | None = None
    """The local model, for policies that compare texts; it may be slow, or not there."""
    provenance: Provenance | None = None
    """What is known of the vectors handed out."""
    shelf: Callable[[], Any] | None = None
    """The local collections, for policies that compare answers; raises Refused where there are none."""
    questions: Questions | None = None
    """The questions that a fallback had a part in."""
    publish: Publish | None = None
    """Tells the other workers of one."""
    behind: Callable[[str], bool] | None = None
    """Whether a local collection is a copy that is known not to be what it should."""
    state: Path | None = None
    """The folder where what policies have learnt outlives us."""
