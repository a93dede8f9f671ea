"""Does an outage outlast its cause? An upstream that can do 100 calls a second fails for a minute under 100 a second.

    python -m tests.proxy.metastability [--seeds 1 2 3 4 5]

    application --100/s--> SDK, up to 3 attempts --> sidecar or nothing --> upstream: FIFO, 10 at a time, 0.1 s each
                                                                             works on what nobody waits for any more

On the virtual clock through `assemble`, since what is looked at are decisions over minutes: with real sockets a run
would take as long as its story, and say the same of fewer seeds. Bronson et al., "Metastable Failures in Distributed
Systems" (2021): what sustains an outage is the work that it makes, here attempts that come again and work that is
thrown away.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from tests.kit import virtual_clock
from tests.kit.endpoints import rest
from tests.kit.weather import call_of
from understudy.policies.service import Answer, Call, Failed, Refused, Service
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.settings import settings
from understudy.proxy.settings.settings import Endpoint, LocalTier, Match, Route, Tier, UpstreamTier
from understudy.proxy.stack import RouteParts, World, assemble
from understudy.proxy.tiers.judging import tier_judge

CAPACITY = 100.0
RATE = 100.0
WORKERS = 10
SPARE_WORKERS = 6
"""Of each of two: where calls are shared out by chance, what can just bear them on average bears them never."""
BEFORE_S, FAULT_S, AFTER_S = 60.0, 60.0, 120.0
SDK_ATTEMPTS = 3
PATIENCE_S = 10.0
SLOT_S = 5.0
WELL = 0.99
DIALECT = DIALECTS["openai-embeddings"]

Kind = Literal["refuses", "errors", "crawls"]
KINDS: tuple[Kind, ...] = ("refuses", "errors", "crawls")
Setup = Literal["no sidecar", "no breaker", "alone", "two endpoints", "local tier"]
SETUPS: tuple[Setup, ...] = ("no sidecar", "no breaker", "alone", "two endpoints", "local tier")
"""Without a breaker it is the budget alone that has to hold."""
CRAWL_RATIO = 10.0
"""While it crawls, everything takes so many times as long."""


class Upstream:
    """A server with so many workers and a queue without bound, which does not notice when a caller has left."""

    def __init__(self, kind: Kind, workers: int, fault: tuple[float, float]) -> None:
        self.kind = kind
        self.fault = fault
        self.arrived: list[float] = []
        self._free = workers
        self._queue: deque[asyncio.Future[None]] = deque()
        self._loop = asyncio.get_running_loop()

    @property
    def fails(self) -> bool:
        return self.fault[0] <= self._loop.time() < self.fault[1]

    async def __call__(self, call: Call) -> Answer:
        """As a tier has it: until `call.until`, judged as upstreams are."""
        now = self._loop.time()
        call.attempts += 1
        self.arrived.append(now)
        if self.kind == "refuses" and self.fails:
            raise Failed("connect_refused", "nobody is there")
        done: asyncio.Future[None] = self._loop.create_future()
        self._queue.append(done)
        self._work()
        timer = self._loop.call_later(max(0.0, min(call.until - now, PATIENCE_S)), _give_up, done)
        try:
            await done
        except Failed:
            raise Failed("deadline", "no answer in time", soft=True, again=False) from None
        finally:
            timer.cancel()
            call.upstream_s += self._loop.time() - now
        status = 500 if self.kind == "errors" and self.fails else 200
        tier = UpstreamTier(name="primary", url="http://a")
        answer = Answer(200, [], b'{"data": []}') if status == 200 else DIALECT.error(500, "server_error", "broken")
        return tier_judge(None, tier, DIALECT).judged(call, answer, DIALECT)

    def _work(self) -> None:
        while self._free and self._queue:
            self._free -= 1
            takes_s = WORKERS / CAPACITY * (CRAWL_RATIO if self.kind == "crawls" and self.fails else 1.0)
            self._loop.call_later(takes_s, self._worked, self._queue.popleft())

    def _worked(self, done: asyncio.Future[None]) -> None:
        self._free += 1
        if not done.done():
            done.set_result(None)
        self._work()


def _give_up(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_exception(Failed("deadline"))


@dataclass
class Report:
    """What became of one run. Times in seconds; `None` for what did not come about before the run's end."""

    setup: Setup
    kind: Kind
    seed: int
    calls: int = 0
    lost: int = 0
    amplification: float = 0.0
    peak: float = 0.0
    well_after_s: float | None = None
    slots: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])

    def line(self) -> str:
        back = "never" if self.well_after_s is None else f"{self.well_after_s:.0f} s"
        return (
            f"{self.setup:14} {self.kind:8} seed {self.seed}: amplification {self.amplification:.3f} "
            f"(worst 10 s: {self.peak:.3f}), lost {self.lost} of {self.calls}, primary >= 99 % after {back}"
        )


def together(setup: Setup, upstreams: list[Upstream], seed: int) -> RouteParts:
    """The route with its defaults, before these upstreams."""
    named = dict(zip("ab", upstreams, strict=False))
    tier = UpstreamTier(name="primary", url="http://a")
    if len(upstreams) > 1:
        tier = UpstreamTier(name="primary", endpoints=[Endpoint(name=name, url=f"http://{name}") for name in named])
    tiers: list[Tier] = [tier, *([LocalTier()] if setup == "local tier" else [])]
    route = Route(
        name="r",
        match=Match(prefix="/"),
        dialect=DIALECT.name,
        tiers=tiers,
        breaker=settings.Breaker(enabled=setup != "no breaker"),
    )
    loop = asyncio.get_running_loop()

    def made(_route: Route, tier: Tier, endpoint: str) -> Service:
        return _local if isinstance(tier, LocalTier) else named.get(endpoint, upstreams[0])

    return assemble(route, DIALECT, World(loop.time, asyncio.sleep, random.Random(f"{seed}/dice").random), made)


async def _local(_call: Call) -> Answer:
    await rest(0.02)
    return Answer(200, [], b'{"data": []}')


class Application:
    """What asks 100 times a second through an SDK, and writes down what it got."""

    def __init__(self, service: Service, seed: int) -> None:
        self.service = service
        self.dice = random.Random(f"{seed}/sdk")
        self.loop = asyncio.get_running_loop()
        self.asked: list[float] = []
        self.got: list[tuple[float, str]] = []

    async def one(self) -> None:
        """One call of the application's: the SDK's attempts until one is answered, as openai-python has them."""
        began = self.loop.time()
        self.asked.append(began)
        for attempt in range(SDK_ATTEMPTS):
            tier, again = await self._attempt(attempt)
            if tier or not again or attempt + 1 == SDK_ATTEMPTS:
                self.got.append((began, tier))
                return
            await asyncio.sleep(min(0.5 * 2.0**attempt, 8.0) * (1 - 0.25 * self.dice.random()))

    async def _attempt(self, attempt: int) -> tuple[str, bool]:
        """Who answered ("" for nobody), and whether the SDK may ask again."""
        call = call_of("embed", "x", born=self.loop.time())
        call.request.headers.append((b"x-stainless-retry-count", b"%d" % attempt))
        call.request.headers.append((b"x-stainless-read-timeout", b"%g" % PATIENCE_S))
        call.deadline = call.until = call.born + PATIENCE_S
        try:
            answer = await self.service(call)
        except (Failed, Refused) as error:
            if self.service.__class__ is Upstream:
                return "", True
            # what the door makes of it
            answer = DIALECT.error(503, error.reason, error.detail)
        if answer.status == 200:
            return answer.tier or "primary", False
        return "", (b"x-should-retry", b"false") not in answer.headers


async def story(setup: Setup, kind: Kind, seed: int) -> Report:
    """One run on the running loop."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    fault = (began + BEFORE_S, began + BEFORE_S + FAULT_S)
    workers = [WORKERS] if setup != "two endpoints" else [SPARE_WORKERS] * 2
    upstreams = [Upstream(kind, each, fault) for each in workers]
    service = upstreams[0] if setup == "no sidecar" else together(setup, upstreams, seed).service
    application = Application(service, seed)
    running: set[asyncio.Task[None]] = set()
    jitter = random.Random(f"{seed}/arrivals")
    for number in range(int((BEFORE_S + FAULT_S + AFTER_S) * RATE)):
        await asyncio.sleep(max(0.0, began + (number + jitter.random()) / RATE - loop.time()))
        task = asyncio.ensure_future(application.one())
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    # what nobody waits for any more is worked off, so that nothing of it is left
    await asyncio.sleep(1000)
    return _told(Report(setup, kind, seed), application, upstreams, fault)


def _told(report: Report, application: Application, upstreams: list[Upstream], fault: tuple[float, float]) -> Report:
    began, ended = fault
    arrived = [at for upstream in upstreams for at in upstream.arrived]
    report.calls = len(application.asked)
    report.lost = sum(not tier for _, tier in application.got)
    asked = sum(began <= at < ended for at in application.asked)
    report.amplification = sum(began <= at < ended for at in arrived) / asked
    for step in range(int((FAULT_S + AFTER_S) / 10)):
        since = began + 10 * step
        calls = sum(since <= at < since + 10 for at in application.asked)
        report.peak = max(report.peak, sum(since <= at < since + 10 for at in arrived) / calls)
    well_since: float | None = None
    for step in range(int(AFTER_S / SLOT_S)):
        since = ended + SLOT_S * step
        tiers = [tier for at, tier in application.got if since <= at < since + SLOT_S]
        if sum(tier == "primary" for tier in tiers) >= WELL * len(tiers):
            well_since = since if well_since is None else well_since
        else:
            well_since = None
    report.well_after_s = None if well_since is None else well_since - ended
    return report


def main() -> None:
    """Every setup in every kind of fault, for each seed."""
    parser = argparse.ArgumentParser(description="Whether an outage outlasts its cause, on a virtual clock.")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3, 4, 5])
    parser.add_argument("--setups", nargs="*", default=SETUPS)
    options = parser.parse_args()
    reports: list[Report] = []
    for setup in options.setups:
        for kind in KINDS:
            for seed in options.seeds:
                reports.append(virtual_clock.run(story(setup, kind, seed), io_grace_s=0, real_s_max=600))
                print(reports[-1].line(), flush=True)
    ours = [report for report in reports if report.setup != "no sidecar"]
    bar_s = settings.Breaker().open_s_max + 5
    missed = [each for each in ours if each.peak > 1.25 or each.well_after_s is None or each.well_after_s > bar_s]
    print(f"{len(ours) - len(missed)} of {len(ours)} runs within 1.25 times the calls and back within {bar_s:.0f} s")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
