"""What each policy costs a call that it lets pass: CPU in µs, alone and in the whole default stack.

    python -m tests.bench.policies [--rounds 9]

Each row is a route put together from YAML, stepped by hand as the door does, over endpoints that answer at once. A
policy's own cost is its row less the row it is compared with, measured in turns. What a call costs beside the stack
(sockets, heads, the log) is `python -m tests.bench`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from understudy.policies.service import Answer, Call, Request, Service
from understudy.proxy.bench.exchanges import chat, search
from understudy.proxy.caching.caches import Caches
from understudy.proxy.dialects import DIALECTS, KINDS
from understudy.proxy.settings.reading import read_folder
from understudy.proxy.settings.settings import Route, Tier, UpstreamTier
from understudy.proxy.spaces.provenance import Provenance
from understudy.proxy.spaces.spaces import Plan
from understudy.proxy.spending.accounting import Accountant
from understudy.proxy.spending.budgets import Spending
from understudy.proxy.stack import World, assemble

CALLS = 400
BARE = "retry: {attempts: 1}\nquota: {enabled: false}\nlimit: {concurrent: 256}\ncoalesce: {enabled: false}\n"
ONE = "tiers: [{kind: upstream, name: up, url: 'http://a.example'}]\n"
ARM = "arms: {other: {tiers: [{kind: upstream, name: else, url: 'http://b.example'}]}}\n"


def _endpoints(count: int) -> str:
    each = ", ".join(f"{{name: e{n}, url: 'http://e{n}.example'}}" for n in range(count))
    return f"tiers: [{{kind: upstream, name: up, endpoints: [{each}]}}]\n"


@dataclass(frozen=True, slots=True)
class Row:
    """One stack. `less` names the row whose cost is not this policy's."""

    name: str
    yaml: str
    less: str = ""
    dialect: str = "openai-chat"
    guards: str = ""
    """`idle` while no handle is about, `armed` while calls are looked through for them."""
    prices: bool = False
    """Whether there is a price table: then tokens are counted."""
    at_door: bool = False
    """Asked as the door asks before it makes a call; what is kept is found there."""


ROWS = (
    Row("bare: observe, deadline, chain, breaker, fixed limit", BARE + ONE),
    Row("limit, adaptive", BARE.replace("limit: {concurrent: 256}\n", "") + ONE, "bare"),
    Row("quota", BARE.replace("quota: {enabled: false}\n", "") + ONE, "bare"),
    Row("retry and budget", BARE.replace("retry: {attempts: 1}\n", "") + ONE, "bare"),
    Row("tokens", BARE + ONE + "tokens: {caller: {calls_per_s: 1000000, burst: 1000000}}\n", "bare"),
    Row("split, 0 %", BARE + ONE + ARM + "split: {arm: other, share: 0, keys: ['header:x-user-id']}\n", "bare"),
    Row("fault, 0 % of calls", BARE + ONE + "faults: [{do: abort, share: 0.000001}]\n", "bare"),
    Row(
        "cache, a miss that is kept", BARE + ONE + "cache: {enabled: true, answers: always, ttl_s: 0.000001}\n", "bare"
    ),
    Row("cache, a hit at the door", BARE + ONE + "cache: {enabled: true, answers: always}\n", at_door=True),
    Row("the default stack, chat", ONE),
    Row("tokens counted and priced", ONE, "the default stack, c", prices=True),
    Row(
        "counted, and budgets of a route and of callers",
        ONE + "spend: {budgets: [{name: a, cost: 9e9}, {name: b, each: caller, window: month, cost: 9e9}]}\n",
        "the default stack, c",
        prices=True,
    ),
    Row("the default stack, retrieval", ONE, dialect="qdrant"),
    Row("spaces, no handle about", ONE, "the default stack, r", "qdrant", guards="idle"),
    Row("spaces, handles about", ONE, "the default stack, r", "qdrant", guards="armed"),
    Row(
        "shadow, not sampled",
        "space: s\n" + ONE + ARM + "shadow: {arm: other, share: 0.000001}\n",
        "the default stack, r",
        "qdrant",
    ),
    Row("balance and hedge, 2 endpoints", _endpoints(2), "the default stack, r", "qdrant"),
    Row("balance and hedge, 10 endpoints", _endpoints(10), "the default stack, r", "qdrant"),
    Row("balance and hedge, 100 endpoints", _endpoints(100), "the default stack, r", "qdrant"),
)


def _service(row: Row, folder: Path) -> tuple[Service, Callable[[], Call]]:
    """The row's stack, and the call that is made of it again and again."""
    lines = "".join(f"    {line}\n" for line in row.yaml.splitlines())
    text = (
        f"server: {{faults: true}}\nroutes:\n  - name: r\n    match: {{prefix: /}}\n    dialect: {row.dialect}\n{lines}"
    )
    if row.prices:
        text = "prices: {models: {'*': {input: 1, output: 2}}}\n" + text
    (folder / "r.yaml").write_text(text, encoding="utf-8")
    reading = read_folder(folder, {}, KINDS)
    if reading.settings is None:
        raise SystemExit(f"{row.name}: {[str(fault) for fault in reading.faults]}")
    dice = random.Random(1)
    provenance = Provenance()
    provenance.is_armed = row.guards == "armed"
    world = World(clock=time.monotonic, sleep=asyncio.sleep, dice=dice.random, provenance=provenance)
    plan = Plan(guards=bool(row.guards))
    caches = Caches(clock=time.monotonic, wall=time.time, dice=dice.random)

    exchange = search() if row.dialect == "qdrant" else chat()

    async def at_once(call: Call) -> Answer:
        call.attempts += 1
        call.upstream_s += 0.02
        return Answer(200, None, exchange.body, block=b"content-type: application/json\r\n")

    accountant, spending = Accountant(), Spending(folder / "book", wall=time.time, drain=lambda: None)
    accountant.obey(reading.settings)
    spending.obey(reading.settings)

    def make_tier(route: Route, tier: Tier, _endpoint: str) -> Service:
        if not row.prices or not isinstance(tier, UpstreamTier):
            return at_once
        return accountant.counted(at_once, route, tier, row.dialect, partial(spending.charge, route.name))

    budgets = spending.budgets.get("r")
    dialect = DIALECTS[row.dialect]
    parts = assemble(
        reading.settings.routes[0], dialect, world, make_tier, faults=True, caches=caches, plan=plan, budgets=budgets
    )
    headers = [(b"host", b"here"), (b"authorization", b"Bearer k"), (b"content-type", b"application/json")]
    remembered: dict[object, object] = {}

    def call() -> Call:
        request = Request(b"POST", exchange.path.encode(), headers, exchange.asked, remembered)
        made = dialect.read(request)
        made.dialect, made.route, made.born = row.dialect, "r", time.monotonic()
        return made

    kept = parts.hit

    async def at_the_door(call: Call) -> Answer:
        assert kept is not None
        return kept(call.request) or await parts.service(call)

    return at_the_door if row.at_door else parts.service, call


def _us(service: Service, call: Callable[[], Call]) -> float:
    """CPU of one call, the making of the call left out."""
    calls = [call() for _ in range(CALLS)]
    began = time.thread_time()
    for each in calls:
        asked = service(each)
        assert isinstance(asked, Coroutine)
        rest: Any = asked.__await__()
        if next(rest, None) is not None:
            raise SystemExit("a call waited, over endpoints that answer at once")
    return (time.thread_time() - began) / CALLS * 1e6


async def measure(rounds: int) -> None:
    """Print what each row costs, the median over so many rounds."""
    with tempfile.TemporaryDirectory() as folder:
        stacks = [_service(row, Path(folder)) for row in ROWS]
    costs: list[list[float]] = [[] for _ in ROWS]
    for number in range(rounds + 1):
        for stack, cost in zip(stacks, costs, strict=True):
            us = _us(*stack)
            # the first round warms up
            cost += [us] if number else []
        await asyncio.sleep(0)
    print(f"{'µs of CPU a call, median of rounds':<54}{'whole':>8}{'own':>8}")
    for row, cost in zip(ROWS, costs, strict=True):
        own = ""
        if row.less:
            base = next(other for one, other in zip(ROWS, costs, strict=True) if one.name.startswith(row.less))
            own = f"{statistics.median(a - b for a, b in zip(cost, base, strict=True)):.2f}"
        print(f"{row.name:<54}{statistics.median(cost):>8.2f}{own:>8}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    uvloop.run(measure(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
