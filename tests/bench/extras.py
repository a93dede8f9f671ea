"""What no workload tells: memory, start-up, and what more routes, endpoints or workers do to a call's cost.

Each is a function from a Rig to Facts, and one line in EXTRAS. All but the workers are measured of one worker without
its local tier, whose model takes seconds and hundreds of megabytes of its own.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench.figures import Fact, spread
from tests.bench.running import BenchFailed, Child, Effort, Rig, measured
from tests.bench.subjects import Start, start_sidecar, understudy
from tests.bench.workloads import WORKLOADS, Workload
from understudy.proxy.bench.load import Mark, ask
from understudy.proxy.bench.processes import cpu_s, pin, rss_bytes, tree
from understudy.proxy.settings.settings import Server

MIB = 1024 * 1024
START_S_MAX = 30.0
START_POLL_S = 0.001
ROUTES = (1, 100, 1000)
ENDPOINTS = (1, 10, 100)
WORKERS = (1, 2)
CORES_MIN = 4
BY_NAME = {workload.name: workload for workload in WORKLOADS}
CHAT = BY_NAME["chat"]


class NotMeasured(Exception):
    """Why a fact can't be had here."""


@dataclass(frozen=True, slots=True)
class Extra:
    """One measurement beside the workloads."""

    name: str
    about: str
    measure: Callable[[Rig, Effort], list[Fact]]


def _without_local(rig: Rig) -> Start:
    return understudy(replace(rig.site, has_local=False))


# --- memory and start-up -------------------------------------------------------------------------------------------


def _rss(rig: Rig, effort: Effort) -> list[Fact]:
    start = _without_local(rig)
    with rig.beside(start) as (child,):
        child.wait_ready()
        ask("127.0.0.1", start.port, CHAT.exchange, patience_s=START_S_MAX)
        idle = _largest(child)
        pin(tree(child.pid), rig.cores[0])
        rig.place_load(1)
        for name in ("chat", "embedding-30k", "search", "stream"):
            _measured(rig, BY_NAME[name], effort, start, child)
        return [
            Fact("rss-idle", spread([idle]), "MiB", "resident memory of a worker after its first call"),
            Fact(
                "rss-loaded",
                spread([_largest(child)]),
                "MiB",
                "resident memory of a worker without the local tier, after the load",
            ),
        ]


def _largest(child: Child) -> float:
    return max(rss_bytes(pid) for pid in tree(child.pid)) / MIB


def _startup(rig: Rig, effort: Effort) -> list[Fact]:
    wall: list[float] = []
    cpu: list[float] = []
    for _ in range(2 * effort.rounds - 1):
        start = _without_local(rig)
        began = time.perf_counter()
        with rig.beside(start) as (child,):
            while not _is_answered(start.port):
                if time.perf_counter() > began + START_S_MAX:
                    raise BenchFailed(f"no call answered within {START_S_MAX:g} s:\n{child.logs()}")
                time.sleep(START_POLL_S)
            wall.append(time.perf_counter() - began)
            cpu.append(cpu_s(tree(child.pid)))
    return [
        Fact("startup", spread(wall), "s", "start of a worker without the local tier, to its first answered call"),
        Fact("startup-cpu", spread(cpu), "s", "CPU time until then"),
    ]


def _is_answered(port: int) -> bool:
    """Whether a call is answered as it must be."""
    try:
        told = ask("127.0.0.1", port, CHAT.exchange, patience_s=START_S_MAX)
    except (OSError, http.client.HTTPException):
        return False
    return told.status == 200 and told.body == CHAT.exchange.body


# --- more of something ---------------------------------------------------------------------------------------------


def _routes(rig: Rig, effort: Effort) -> list[Fact]:
    """The same call through the last of so many routes."""
    return _more_of(rig, effort, "route", ROUTES, _many_routes)


def _endpoints(rig: Rig, effort: Effort) -> list[Fact]:
    """The same call through a tier of so many endpoints."""
    return _more_of(rig, effort, "endpoint", ENDPOINTS, _many_endpoints)


def _more_of(
    rig: Rig, effort: Effort, what: str, counts: Sequence[int], policies: Callable[[int, int], str]
) -> list[Fact]:
    """What a call costs with so many of something, interleaved; the range is that of the ratios' rounds."""
    starts = [_of_policies(rig, f"{what}s-{count}", policies(count, rig.site.upstream_port)) for count in counts]
    marks = _side_by_side(rig, starts, effort)
    costs = [[mark.cpu_s / mark.units * 1e6 for mark in of_one] for of_one in marks]
    facts = [
        Fact(f"{what}s-{count}", spread(cost), "us", f"CPU per call of chat with {count:,} {what}{'s' * (count > 1)}")
        for count, cost in zip(counts, costs, strict=True)
    ]
    for count, cost in list(zip(counts, costs, strict=True))[1:]:
        ratios = spread(one / first for one, first in zip(cost, costs[0], strict=True))
        facts.append(Fact(f"{what}s-{count}-to-1", ratios, "x", f"CPU per call with {count:,} {what}s to that with 1"))
    return facts


def _many_endpoints(count: int, upstream_port: int) -> str:
    """All of them one upstream, told apart by a header: what is measured is the choice, not so many services."""
    endpoints = "".join(
        f'          - {{name: e{n}, url: "http://127.0.0.1:{upstream_port}", headers: {{x-endpoint: "{n:03}"}}}}\n'
        for n in range(count)
    )
    return f"""\
{SERVER}routes:
  - name: chat
    match: {{prefix: /v1}}
    dialect: openai-chat
    tiers:
      - kind: upstream
        name: bench
        endpoints:
{endpoints}"""


def _many_routes(count: int, upstream_port: int) -> str:
    """Each with all policies and an upstream of its own; the last claims what the bench asks for."""
    prefixes = [f"/service-{number}" for number in range(1, count)] + ["/v1"]
    routes = "".join(
        f"""\
  - name: route-{number}
    match: {{prefix: {prefix}}}
    dialect: {"openai-chat" if prefix == "/v1" else "plain"}
    tiers: [{{kind: upstream, name: bench, url: "http://127.0.0.1:{upstream_port}"}}]
"""
        for number, prefix in enumerate(prefixes)
    )
    return f"{SERVER}routes:\n{routes}"


SERVER = """\
server:
  listen: ${UNDERSTUDY_LISTEN}
  admin: ${UNDERSTUDY_ADMIN}
"""


def _workers(rig: Rig, effort: Effort) -> list[Fact]:
    """Throughput of two workers and of one, the load and the upstream elsewhere as far as there are cores."""
    if "workers" not in Server.__struct_fields__:
        raise NotMeasured("this sidecar has one worker only")
    text = _many_routes(1, rig.site.upstream_port)
    starts = [
        _of_policies(rig, f"workers-{count}", text.replace("server:\n", f"server:\n  workers: {count}\n", 1))
        for count in WORKERS
    ]
    crowd = Workload("chat", CHAT.exchange, connections=64)
    marks = _side_by_side(rig, starts, effort, crowd, spread_out=True)
    rates = [[mark.units / mark.wall_s for mark in of_one] for of_one in marks]
    cores = len(rig.cores)
    unsure = "" if cores >= CORES_MIN else f"{cores} cores for two workers, load and upstream"
    return [
        *(
            Fact(f"workers-{count}", spread(rate), "calls/s", f"chat with {count} worker{'s' * (count > 1)}")
            for count, rate in zip(WORKERS, rates, strict=True)
        ),
        Fact(
            "workers-2-to-1",
            spread(two / one for one, two in zip(*rates, strict=True)),
            "x",
            "throughput of two workers to that of one",
            unsure,
        ),
    ]


def _of_policies(rig: Rig, name: str, text: str) -> Start:
    folder = rig.site.folder / name
    folder.mkdir(exist_ok=True)
    Path(folder / "policies.yaml").write_text(text, encoding="utf-8")
    return start_sidecar(folder, rig.site, rig.site.folder / f"{name}-state")


def _side_by_side(
    rig: Rig, starts: Sequence[Start], effort: Effort, workload: Workload = CHAT, *, spread_out: bool = False
) -> list[list[Mark]]:
    """What every round measured of each."""
    with rig.beside(*starts) as children:
        for child in children:
            child.wait_ready()
            # the load's two processes have the last cores to themselves, where there are more than two
            pin(tree(child.pid), *(rig.cores[: max(1, len(rig.cores) - 2)] if spread_out else rig.cores[:1]))
        rig.place_load(-1 if spread_out else 1)
        found: list[list[Mark]] = [[] for _ in starts]
        for number in range(effort.rounds):
            for at in range(len(starts)):
                turn = (at + number) % len(starts)
                found[turn].append(_measured(rig, workload, effort, starts[turn], children[turn]))
        return found


def _measured(rig: Rig, workload: Workload, effort: Effort, start: Start, child: Child) -> Mark:
    return measured(rig, "understudy", workload, effort, port=start.port, pids=tree(child.pid))


# --- the table -----------------------------------------------------------------------------------------------------

EXTRAS = (
    Extra("rss", "resident memory, idle and after load", _rss),
    Extra("startup", "from the command to the first answered call", _startup),
    Extra("routes", "CPU per call with 1, 100 and 1,000 routes", _routes),
    Extra("endpoints", "CPU per call with 1, 10 and 100 endpoints", _endpoints),
    Extra("workers", "throughput of two workers and of one", _workers),
)


def measure_extras(
    rig: Rig, extras: Sequence[Extra], effort: Effort, *, told: Callable[[str], None]
) -> tuple[list[Fact], dict[str, str]]:
    """The facts, and which of them can't be had, with why."""
    facts: list[Fact] = []
    left_out: dict[str, str] = {}
    for extra in extras:
        told(extra.name)
        try:
            facts += extra.measure(rig, effort)
        except NotMeasured as reason:
            left_out[extra.name] = str(reason)
    return facts, left_out
