"""What policies against overload may say: limits, quotas, rates, and what is shed."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from understudy.proxy.settings.types import Count, Frozen, PositiveSeconds, Seconds


class Limit(Frozen, frozen=True):
    """A bulkhead: how many calls at once, how many may wait, and for how long."""

    concurrent: Count | Literal["adaptive"] = "adaptive"
    """Calls at once; adaptive learns it, from times to first content or from 429s, 503s and timeouts."""
    concurrent_min: Count = 4
    """What an adaptive limit never falls below; at most concurrent_max."""
    concurrent_max: Count = 256
    """What an adaptive limit begins with, returns to, and never exceeds."""
    queue: Annotated[int, Meta(ge=0)] = 256
    """Calls that may wait for a place."""
    wait_s_max: Seconds = 0.1
    """Seconds a call waits for a place before the next tier is asked."""


class Quota(Frozen, frozen=True):
    """Respect for what an upstream's answers say of its quota (`x-ratelimit-remaining-requests` and the like)."""

    enabled: bool = True
    wait_s_max: Seconds = 0.5
    """Seconds a call waits for the quota to fill up, before the next tier is asked."""
    believed_s_max: PositiveSeconds = 300.0
    """For how long, at most, an upstream is not asked because it said that nothing is left."""
    reserve_share: Annotated[float, Meta(ge=0, le=0.5, description="a share of one")] = 0.01
    """The share of requests or tokens that is not touched, for the calls that are already on their way."""


class Rate(Frozen, frozen=True):
    """A token bucket for calls, and one for what their bodies are guessed to cost an LLM (4 bytes a token); 0: none."""

    calls_per_s: Annotated[float, Meta(ge=0)] = 0.0
    """Calls a second, in the long run."""
    burst: Annotated[int, Meta(ge=0)] = 0
    """Calls that may come at once; 0: as many as in a second, one at least."""
    llm_tokens_per_s: Annotated[float, Meta(ge=0)] = 0.0
    """LLM tokens a second in request bodies, in the long run."""
    llm_burst: Annotated[int, Meta(ge=0)] = 0
    """LLM tokens that may come at once; 0: as many as in a minute."""


class Tokens(Frozen, frozen=True):
    """Rate limits of our own, in each worker process; who is over them is answered 429, with when to come back."""

    route: Rate = Rate()
    """For all the calls of the route together."""
    caller: Rate = Rate()
    """For each caller, told apart by their credentials."""
    callers_max: Count = 10_000
    """Callers whose buckets are remembered; beyond it, who came least lately is forgotten."""
    by: list[str] = field(default_factory=list[str])
    """Further headers that tell callers apart, such as x-user-id."""


Priority = Literal["critical", "normal", "low"]


class Shed(Frozen, frozen=True):
    """What happens to calls while the process can't keep up (`server.shed` says when that is)."""

    priority: Priority = "normal"
    """Low calls are answered 503 first, then normal ones; x-understudy-priority says it for a single call."""


class Shedding(Frozen, frozen=True):
    """When calls are shed: the event loop answers its timers this late, without a break, for so long."""

    enabled: bool = True
    lag_s: PositiveSeconds = 0.1
    """Seconds of lag that are too much; a calm loop's is far below a hundredth."""
    interval_s: PositiveSeconds = 0.5
    """For how many seconds the lag must not have been less, before anything is shed, and before more is."""
