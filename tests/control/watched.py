"""What a test has watched: policies, metrics, facts and events that it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from understudy.policies.forecast import Reading
from understudy.policies.objectives import Counts
from understudy.proxy.changes import Fact
from understudy.proxy.control.wire import Family, Sample
from understudy.proxy.events import Events
from understudy.proxy.settings.alert import Objectives
from understudy.proxy.settings.settings import Match, Route, Server, Settings, UpstreamTier

BEGIN = 1_800_000_000.0
LLM = "llm_service:127.0.0.1:1"
CALL_S = 0.1


def settings_of(**server: Any) -> Settings:
    """One route to one model."""
    tier = UpstreamTier(name="model", url="http://127.0.0.1:1")
    match = Match(prefix="/")
    route = Route(name="chat", match=match, dialect="openai-chat", tiers=[tier], objectives=Objectives())
    return Settings(routes=(route,), server=Server(**server), digest="d1")


def sample(name: str, value: float, **labels: str) -> Sample:
    return name, labels, value


def half_full(_state: Path, _own_bytes: float) -> tuple[float, list[Reading]]:
    """What a sidecar stands on, in tests of something else: the disk of the machine that they run on fills up, or
    does not, for reasons of its own."""
    return 4e9, [Reading("disk", "state folder", 2e10, 5e10)]


class Metrics:
    """The counts of the route's calls, as a registry would have them."""

    def __init__(self) -> None:
        self.answered = self.failed = self.busy = 0
        self.slow = 0
        self.memory_bytes = 5e7

    def calls(self, answered: int, failed: int = 0, busy: int = 0, slow: int = 0) -> None:
        self.answered += answered
        self.failed += failed
        self.busy += busy
        self.slow += slow

    @property
    def families(self) -> list[Family]:
        where = {"route": "chat", "tier": "model"}
        quick = self.answered - self.slow
        asked = [
            ("answered", "", self.answered),
            ("failed", "server_error", self.failed),
            ("failed", "rate_limit", self.busy),
        ]
        outcomes = [
            sample("understudy_tier_outcomes_total", float(count), **where, outcome=outcome, reason=reason)
            for outcome, reason, count in asked
        ]
        seconds = "understudy_request_seconds"
        buckets = [
            sample(f"{seconds}_bucket", float(count), route="chat", le=bound)
            for bound, count in (("0.1", quick), ("5.0", self.answered), ("+Inf", self.answered))
        ]
        took_s = CALL_S * quick + 5 * self.slow
        requests = [
            sample("understudy_requests_total", float(self.answered), route="chat", tier="primary", outcome="2xx")
        ]
        return [
            ("understudy_tier_outcomes", "counter", "", outcomes),
            ("understudy_requests", "counter", "", requests),
            (seconds, "histogram", "", [*buckets, sample(f"{seconds}_sum", took_s, route="chat")]),
            (
                "process_resident_memory_bytes",
                "gauge",
                "",
                [sample("process_resident_memory_bytes", self.memory_bytes)],
            ),
            ("understudy_unheard_of", "gauge", "", [sample("understudy_unheard_of", 1.0)]),
        ]


class Watched:
    """What a learner and a lookout look at."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.events = Events()
        self.metrics = Metrics()
        self.facts: list[Fact] = []
        self.told: dict[str, Counts] = {}
        self.now = BEGIN
        self.settings = settings or settings_of()

    def wall(self) -> float:
        return self.now

    async def settings_now(self) -> Settings:
        return self.settings

    def families_now(self) -> list[Family]:
        return self.metrics.families

    def facts_now(self) -> list[Fact]:
        return self.facts

    def counts(self) -> Mapping[str, Counts]:
        return self.told

    def agreement(self) -> Mapping[str, Counts]:
        return {}
