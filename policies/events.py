"""What happened to a component, as the control loops tell each other: a noun, and the names that they share.

    health, recovery, forecasts, alerts, reloads --Event--> journal, attribution, risk

An event is told once, by whom it is news; it names its component as everybody else does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Family = Literal["failure", "change", "health", "tier", "recovery", "forecast", "alert"]
Role = Literal[
    "vector_database", "embedding_service", "llm_service", "network", "cache", "local_model", "local_index", "sidecar"
]

ROLES: Mapping[str, Role] = {"retrieve": "vector_database", "embed": "embedding_service", "generate": "llm_service"}
"""A dialect's kind -> the role of the service that it is spoken with."""
WHOLE = "sidecar:"
"""The component of what concerns the sidecar as a whole: its policies, its own process, a deploy of the application."""
DETAIL_CHARS_MAX = 500
FACTS_MAX = 16


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `at` is in seconds since the epoch; `kind` is a word within its family; `detail` is a
    sentence for people; `facts` are what programs read. Neither holds a secret, nor anything that a caller wrote."""

    at: float
    family: Family
    component: str
    kind: str
    detail: str = ""
    facts: Mapping[str, str] = field(default_factory=dict[str, str])

    def bounded(self) -> Event:
        """The same, no longer than what is kept of it."""
        if len(self.detail) <= DETAIL_CHARS_MAX and len(self.facts) <= FACTS_MAX:
            return self
        facts = dict(list(self.facts.items())[:FACTS_MAX])
        return Event(self.at, self.family, self.component, self.kind, self.detail[:DETAIL_CHARS_MAX], facts)


def component_of(role: Role, name: str) -> str:
    """The name of a component: of a service, `name` is its host and port; of what is ours, the collection's or model's.

    Routes that share an upstream share its component.
    """
    return f"{role}:{name}"
