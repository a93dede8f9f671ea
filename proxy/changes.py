"""Notice what is changed: by us, by an operator, or by those behind us without a word.

    a reload, a hand on a breaker -----------at once----------+
    splits, index generations, local model, fingerprints -----+--seen before, and not like this?--> Event, family change
    servers and models, as answers say themselves (`peeks`) --+        (looked at every LOOK_S)

Each process notices for itself and tells its events; what all have seen stands in `facts`, so that whoever keeps the
journal tells a change once, also one that took place while nothing ran.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from understudy.policies.events import WHOLE, Event, component_of
from understudy.proxy.events import Events
from understudy.proxy.health.components import by_tier, components_of
from understudy.proxy.peeks import Peek, Shown
from understudy.proxy.settings.settings import Settings
from understudy.proxy.spaces.fingerprints import Fingerprints
from understudy.proxy.stack import RouteParts
from understudy.proxy.version import VERSION

if TYPE_CHECKING:
    from understudy.proxy.reports.collections import Stats

LOOK_S = 5.0
ARM_S = 30.0
FACTS_MAX = 2048
VALUES_MAX = 8
"""Values that are remembered of what flutters."""
FLUTTERS = ("system_fingerprint",)
"""What differs from call to call where several answer behind one name: only a value not seen lately is news."""

Key = tuple[str, str, str]


class Fact(NamedTuple):
    """What is so of a component just now: `kind` says what (server, model gpt-x, policies), `value` how it is."""

    component: str
    kind: str
    value: str


class Watched(NamedTuple):
    """What is looked at now and then."""

    routes: Mapping[str, RouteParts]
    collections: Mapping[str, Stats]
    local: Mapping[str, str]
    fingerprints: Fingerprints


class Changes:
    """One process's."""

    def __init__(self, events: Events, *, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._events = events
        self._clock = clock
        self._wall = wall
        self.peeks: dict[Key, Peek] = {}
        self._values: dict[tuple[str, str], list[str]] = {}
        self._components: dict[Key, str] = {}
        self._local_model = component_of("local_model", "")
        self._looked_at = self._armed_at = float("-inf")

    @property
    def facts(self) -> list[Fact]:
        """What is so now."""
        return [Fact(component, kind, values[-1]) for (component, kind), values in self._values.items()]

    def saw(self, component: str, kind: str, value: str) -> None:
        """It is so now; a change if it was otherwise before."""
        values = self._values.get((component, kind))
        if values is None:
            if len(self._values) < FACTS_MAX:
                self._values[component, kind] = [value]
            return
        if values[-1] == value:
            return
        before = values[-1]
        is_news = value not in values or not flutters(kind)
        self._values[component, kind] = [*(each for each in values if each != value), value][-VALUES_MAX:]
        if is_news:
            self._events.publish(change(self._wall(), component, kind, before, value))

    def forced(self, key: Key, mode: str) -> None:
        """An operator has a breaker do this; before anybody said anything it did as it saw fit."""
        kind = f"forced {'/'.join(dict.fromkeys(key))}"
        component = self._components.get(key, WHOLE)
        if (component, kind) not in self._values:
            self.saw(component, kind, "auto")
        self.saw(component, kind, mode)

    # --- policies --------------------------------------------------------------------------------------------------

    def adopt(self, settings: Settings) -> None:
        """These policies are in force."""
        tiers = by_tier(components_of(settings))
        self._components = {
            (*tier, endpoint): name for tier, endpoints in tiers.items() for endpoint, name in endpoints.items()
        }
        self.peeks = {key: peek for key, peek in self.peeks.items() if key in self._components}
        self._local_model = component_of("local_model", settings.local.model)
        self.saw(WHOLE, "policies", settings.digest)
        self.saw(WHOLE, "version", VERSION)
        for (route, tier), endpoints in tiers.items():
            self.saw(WHOLE, f"endpoints {route}/{tier}", " ".join(sorted(set(endpoints.values()))))

    def peek_of(self, key: Key) -> Peek:
        """The peek of an endpoint, the same after a reload."""
        return self.peeks.setdefault(key, Peek())

    def shown(self, key: Key) -> Shown | None:
        """How callers put prompts to an endpoint; None where none has lately."""
        peek = self.peeks.get(key)
        return peek.shown if peek is not None else None

    # --- what is looked at -----------------------------------------------------------------------------------------

    def look(self, watched: Callable[[], Watched]) -> None:
        """Called every second; looks when it is time."""
        now = self._clock()
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        for fact in self._surveyed(watched()):
            self.saw(*fact)
        if now - self._armed_at >= ARM_S:
            self._armed_at = now
            for peek in self.peeks.values():
                peek.armed = True

    def _surveyed(self, watched: Watched) -> Iterator[Fact]:
        for name, parts in watched.routes.items():
            if parts.arms.split is not None:
                split = parts.arms.split
                yield Fact(WHOLE, f"split {name}", f"{split.share:.4g} to {split.arm}")
        for name, stats in watched.collections.items():
            if stats.generation:
                yield Fact(component_of("local_index", "collections"), f"index {name}", stats.generation)
        if watched.local.get("model"):
            told = watched.local
            yield Fact(self._local_model, "model", f"{told.get('space', '')} on {told.get('provider', '')}")
        for one in watched.fingerprints:
            component = self._components.get(one.key)
            if component is not None and one.heart.state in ("trusted", "quarantined"):
                yield Fact(component, f"vectors {one.space}", one.heart.state)
        for key, peek in self.peeks.items():
            component = self._components.get(key)
            for kind, value in peek.seen.items() if component is not None else ():
                assert component is not None
                yield Fact(component, kind, value)


def change(at: float, component: str, kind: str, before: str, value: str) -> Event:
    """That something is otherwise now."""
    detail = f"{kind}: {before} -> {value}" if before else f"{kind}: {value}"
    word, _, what = kind.partition(" ")
    return Event(at, "change", component, word, detail, {"what": what, "before": before, "value": value})


def flutters(kind: str) -> bool:
    """Whether values of this kind come and go by themselves."""
    return kind.partition(" ")[0] in FLUTTERS


def fact_of(event: Event) -> Fact | None:
    """What a change says is so now; None for one that says no such thing."""
    if event.family != "change" or "value" not in event.facts:
        return None
    return Fact(event.component, f"{event.kind} {event.facts.get('what', '')}".rstrip(), event.facts["value"])
