"""What the policy files say about recovery: what is tried for a component, how often, and who is told at the end."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from understudy.policies.recovery import LADDERS
from understudy.proxy.settings.types import Frozen, Name, PositiveSeconds, Seconds, Secret, Share


class Hook(Frozen, frozen=True):
    """Something of the operator's own: a command that restarts a container, a webhook that pages somebody."""

    name: Name
    """What ladders and `escalate` call it."""
    command: list[str] = []
    """A program and its arguments. No shell; it is told what is wrong in UNDERSTUDY_* variables."""
    env: dict[str, Secret] = {}
    """Further variables of the command's environment, which otherwise has PATH, HOME, LANG and little more: none of
    our own keys."""
    url: Secret | None = None
    """Instead of a command: what is wrong is posted here, as JSON. Shown nowhere, as it may be a key by itself."""
    headers: dict[str, Secret] = {}
    """Sent with it: authorization, mostly."""
    wait_s_max: PositiveSeconds = 30.0
    """How long it may take; a command is killed then, with all that it has started."""
    settle_s: Seconds = 30.0
    """How long it may take until it shows: a restarted container has to come up before checks can pass."""


class Recovery(Frozen, frozen=True):
    """How what has failed is healed. An attempt is one walk up a component's ladder; each rung is verified by the check
    that failed before the next is tried."""

    enabled: bool = True
    attempts: Annotated[int, Meta(ge=1, le=3)] = 3
    """Walks up a ladder before it is left to a human."""
    pause_s: PositiveSeconds = 1.0
    """Before the first attempt at most; each pause is a random share of its period."""
    pause_ratio: Annotated[float, Meta(ge=1, le=100)] = 8.0
    """How many times longer the period before each further attempt is: 1 s, 8 s and a minute, unless told."""
    pause_s_max: PositiveSeconds = 60.0
    """The longest period."""
    passes: Annotated[int, Meta(ge=1, le=10)] = 3
    """How often in a row the check that failed must pass."""
    verify_s: PositiveSeconds = 1.0
    """Between two of these checks."""
    stable_s: PositiveSeconds = 600.0
    """How long a component must stay well before its attempts are counted anew."""
    cpu_share: Share = 0.1
    """Of one core, what verifying, reloading and rebuilding may take over time."""
    ladders: dict[str, list[str]] = {}
    """Role -> rungs and hooks, in the order in which they are tried, instead of the usual ones; [] for nothing."""
    hooks: list[Hook] = []
    escalate: list[str] = []
    """The hooks that are run when a ladder is spent; once for each outage."""

    def ladder_of(self, role: str) -> tuple[str, ...]:
        """What is tried for components of this role, in order."""
        if not self.enabled:
            return ()
        return tuple(self.ladders[role]) if role in self.ladders else LADDERS.get(role, ())
