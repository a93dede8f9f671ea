"""A sidecar that is not started, a check for each of its components, and a Recoverer: what recovery is tried with.

async with clinic(folder, tiers) as ward:
    break something
    assert await ward.healed(component, probe) == "the rung that is meant for it"
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from pathlib import Path

from tests.kit.acts import answer
from tests.kit.fake_upstream import FakeUpstream
from understudy.policies.recovery import period_s
from understudy.policies.service import Failed, Refused, Request
from understudy.proxy.control.recovery import Recoverer, Verdict
from understudy.proxy.control.rungs import Rungs
from understudy.proxy.sidecar import Sidecar

Probe = Callable[[], Awaitable[bool]]
POLICIES = """
server:
  access_log: false
  recovery: {recovery}
routes:
  - name: search
    match: {{prefix: /collections}}
    dialect: qdrant
    space: toy-embed
    retry: {{attempts: 1}}
    breaker: {{consecutive: 1000, calls_min: 1000}}
    balance: {{ejection: {{enabled: false}}}}
    deadline: {{total_s: 1, reserve_s: 0.1}}
    tiers:
{tiers}
"""
DB = "vector_database:127.0.0.1:{}"


class Clinic:
    """A sidecar that is not started, a check for each component, and a Recoverer."""

    def __init__(self, folder: Path, tiers: str, recovery: str = "{}") -> None:
        (folder / "policies").mkdir(parents=True)
        tiers = "\n".join(f"      - {tier}" for tier in tiers.splitlines())
        (folder / "policies" / "p.yaml").write_text(POLICIES.format(tiers=tiers, recovery=recovery))
        environ = {"PATH": "/usr/bin:/bin", "SECRET": "s3cret"}
        clock = asyncio.get_running_loop().time
        self.sidecar = Sidecar(folder / "policies", folder / "state", environ, clock=clock)
        self.probes: dict[str, Probe] = {}
        self.seen: dict[str, Verdict] = {}
        self.checks = 0
        self.recoverer = Recoverer(
            self.sidecar, self, Rungs(self.sidecar, frugal=False), wall=self.now, dice=lambda: 0.99
        )

    def now(self) -> float:
        return 1_800_000_000.0 + asyncio.get_running_loop().time()

    # what is asked of health checks

    def verdicts(self) -> Mapping[str, Verdict]:
        return self.seen

    async def passes(self, component: str, kind: str) -> bool:
        self.checks += 1
        passed = await self.probes[component]()
        self.seen[component] = Verdict("well") if passed else Verdict("ill", kind or "failed")
        return passed

    # what tests do

    async def ask(self) -> bool:
        """Whether a search is answered by the first tier."""
        request = Request(b"POST", b"/collections/docs/points/query", [], b'{"query": [1, 2]}')
        route = self.sidecar.stack.routes["search"]
        call = route.dialect.read(request)
        call.route, call.born = "search", asyncio.get_running_loop().time()
        try:
            answered = await route.service(call)
        except (Failed, Refused):
            return False
        return answered.status == 200 and answered.tier == "primary"

    async def healed(self, component: str, probe: Probe, *, within_s: float | None = None) -> str:
        """The rung that healed it, once it is ill; fails where that takes longer than two backoff periods."""
        self.probes[component] = probe
        assert not await self.passes(component, "injected"), "nothing is wrong with it"
        began = self.now()
        running = asyncio.get_running_loop().create_task(self.recoverer.run())
        rules = self.recoverer.rules
        bound_s = period_s(rules, 0) + period_s(rules, 1)
        try:
            async with asyncio.timeout(within_s or bound_s):
                # the Recoverer tells nobody in a test, and the clock jumps
                while (ladder := self.recoverer.heart.ladders.get(component)) is None or ladder.state != "held":  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            assert ladder.attempt <= 2
            assert await probe()
            assert not self.recoverer.escalations
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert self.now() - began <= (within_s or bound_s)
        ((healed, by),) = self.recoverer.recovered
        assert healed == component
        return by


@contextlib.asynccontextmanager
async def clinic(folder: Path, tiers: str, recovery: str = "{}") -> AsyncGenerator[Clinic]:
    one = Clinic(folder, tiers, recovery)
    try:
        yield one
    finally:
        await one.sidecar.stop()


def upstream(up: FakeUpstream, name: str = "db") -> str:
    return f'{{kind: upstream, name: {name}, url: "{up.url}"}}'


FINE = answer(200, body={"result": {"points": []}, "status": "ok", "time": 0})
