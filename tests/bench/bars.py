"""How high the bars hang: each of the project's bounds on the data plane, as a ratio that one run gives.

A ratio is taken within each round, so that a slow minute of the machine's falls on both sides of it; shown is the
median over rounds. A bar is no test: a noisy machine proves nothing, and a figure is read by people.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.figures import Results, Spread, spread
from understudy.proxy.bench.load import Mark

Value = Callable[[Results], Spread | None]
ENVOY, HAPROXY, NGINX_CACHE, OUR_CACHE = "envoy", "haproxy", "nginx-cache", "understudy-cache"


@dataclass(frozen=True, slots=True)
class Bar:
    """One bound: `at_most` or `at_least`, and the workloads, subjects and extras it needs."""

    about: str
    needs: tuple[str, ...]
    value: Value
    at_most: float | None = None
    at_least: float | None = None

    def verdict(self, results: Results) -> tuple[str, str, str]:
        """The figure, the bound, and what comes of it."""
        bound = f"<= {self.at_most:g}" if self.at_most is not None else f">= {self.at_least:g}"
        found = self.value(results)
        if found is None:
            return "-", bound, "not measured"
        is_kept = (self.at_most is None or found.median <= self.at_most) and (
            self.at_least is None or found.median >= self.at_least
        )
        doubts = [fact.unsure for fact in results.facts if fact.value is found and fact.unsure]
        verdict = f"undecided: {doubts[0]}" if doubts else "pass" if is_kept else "FAIL"
        return str(found), bound, verdict


def _cpu(mark: Mark) -> float:
    return mark.cpu_s / mark.units


def _p50(mark: Mark) -> float:
    return mark.p50_s


def _p99(mark: Mark) -> float:
    return mark.p99_s


def _ratio(
    workload: str, of: Callable[[Mark], float], against: str, *, subject: str = "understudy", added: bool = False
) -> Value:
    """`subject` to `against`, round by round; with `added`, of what each adds to direct."""

    def value(results: Results) -> Spread | None:
        ours, theirs = results.marks(subject, workload), results.marks(against, workload)
        floor = results.marks("direct", workload) if added else {}
        both = [number for number in ours if number in theirs and (not added or number in floor)]
        pairs = [(of(ours[one]), of(theirs[one]), of(floor[one]) if added else 0.0) for one in both]
        # a proxy that adds nothing at all has been measured wrongly
        ratios = [(mine - least) / (other - least) for mine, other, least in pairs if other > least]
        return spread(ratios) if ratios else None

    return value


def _fact(name: str) -> Value:
    def value(results: Results) -> Spread | None:
        fact = results.fact(name)
        return fact.value if fact else None

    return value


def _unevenness(*names: str) -> Value:
    """How far the farthest of these ratios is from one."""

    def value(results: Results) -> Spread | None:
        facts = [fact for fact in (results.fact(name) for name in names) if fact]
        return spread([max(abs(fact.value.median - 1) for fact in facts)]) if facts else None

    return value


BARS = (
    Bar("1 KiB chat: CPU per call to Envoy's", ("chat",), _ratio("chat", _cpu, ENVOY), at_most=0.75),
    Bar("1 KiB chat: CPU per call to HAProxy's", ("chat",), _ratio("chat", _cpu, HAPROXY), at_most=2.5),
    Bar(
        "21 KiB embedding answer: CPU per call to Envoy's",
        ("embedding-21k",),
        _ratio("embedding-21k", _cpu, ENVOY),
        at_most=0.75,
    ),
    Bar("search, 21 KiB vector up: CPU per call to Envoy's", ("search",), _ratio("search", _cpu, ENVOY), at_most=0.9),
    Bar(
        "cache hit: CPU per call to that of nginx's proxy_cache",
        ("cache-hit",),
        _ratio("cache-hit", _cpu, NGINX_CACHE, subject=OUR_CACHE),
        at_most=0.75,
    ),
    Bar("stream: CPU per chunk to Envoy's", ("stream",), _ratio("stream", _cpu, ENVOY), at_most=1.0),
    Bar("stream: chunk delay p50 to Envoy's", ("stream",), _ratio("stream", _p50, ENVOY), at_most=1.0),
    Bar("stream: chunk delay p99 to Envoy's", ("stream",), _ratio("stream", _p99, ENVOY), at_most=1.0),
    Bar(
        "1 connection, one core: added p50 to Envoy's",
        ("chat-1",),
        _ratio("chat-1", _p50, ENVOY, added=True),
        at_most=0.7,
    ),
    Bar("32 connections, one core: p99 to Envoy's", ("chat-32",), _ratio("chat-32", _p99, ENVOY), at_most=1.0),
    Bar(
        "1 to 1,000 routes: CPU per call, farthest from that of 1",
        ("routes",),
        _unevenness("routes-100-to-1", "routes-1000-to-1"),
        at_most=0.1,
    ),
    Bar(
        "1 to 100 endpoints: CPU per call, farthest from that of 1",
        ("endpoints",),
        _unevenness("endpoints-10-to-1", "endpoints-100-to-1"),
        at_most=0.1,
    ),
    Bar("memory of a worker without the local tier, idle: MiB", ("rss",), _fact("rss-idle"), at_most=60),
    Bar("memory of a worker without the local tier, after load: MiB", ("rss",), _fact("rss-loaded"), at_most=60),
    Bar("start to first answered call: s", ("startup",), _fact("startup"), at_most=0.4),
    Bar("two workers: throughput to one's", ("workers",), _fact("workers-2-to-1"), at_least=1.8),
)

SUBJECTS_NEEDED = ("direct", HAPROXY, ENVOY, "understudy", NGINX_CACHE, OUR_CACHE)
NEEDED = tuple(dict.fromkeys(name for bar in BARS for name in bar.needs))


def bars(results: Results) -> str:
    """Every bar with its figure, its bound and what comes of it."""
    rows = [("bar", "median (range)", "bound", "")]
    rows += [(bar.about, *bar.verdict(results)) for bar in BARS]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)
