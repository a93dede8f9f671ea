"""Twice the load that an upstream can carry, through the running sidecar: what is answered in time, and what after it.

    python -m tests.real.overload [--seed 1] [--calm-s 3] [--storm-s 12] [--after-s 4]

    callers, open loop --> sidecar (one route, one upstream tier) --> so many servers, 40 ms each, and an endless line
      half, twice, half the capacity

Run twice: with the adaptive limit, and with a fixed one of 256. A caller waits for one second; an answer that comes
later is of no use to it, and yet the upstream has worked for it. Goodput is what came within that second.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web

from tests.kit.processes import Process, Sidecar, free_port

SERVERS = 4
SERVICE_S = 0.04
CAPACITY_PER_S = SERVERS / SERVICE_S
PATIENCE_S = 1.0
CALL = {"model": "m", "input": "what is a bulkhead?"}
POLICY = """
routes:
  - name: embeddings
    match: {{path: /v1/embeddings}}
    dialect: openai-embeddings
    tiers:
      - kind: upstream
        name: embedder
        url: {url}
        space: test
        connections_max: 512
        retry: {{attempts: 1}}
        limit: {{concurrent: {concurrent}}}
"""


# --- the upstream --------------------------------------------------------------------------------------------------


def serve(port: int) -> None:
    """Answer embeddings, `SERVERS` at a time, in the order they came, whether or not anybody still waits."""
    free = asyncio.Semaphore(SERVERS)
    dice = random.Random(7)
    served = 0

    async def embed(request: web.Request) -> web.Response:
        nonlocal served
        await request.read()
        async with free:
            await asyncio.sleep(SERVICE_S * dice.uniform(0.5, 1.5))
        served += 1
        one = {"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}
        return web.json_response({"object": "list", "model": "m", "data": [one], "usage": {}})

    async def ready(_request: web.Request) -> web.Response:
        return web.Response(text=str(served))

    app = web.Application()
    app.router.add_post("/v1/embeddings", embed)
    app.router.add_get("/", ready)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


# --- the callers ---------------------------------------------------------------------------------------------------


@dataclass
class Phase:
    """One rate for one stretch of time, and what came of it."""

    name: str
    seconds: float
    per_s: float
    outcomes: Counter[str] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    served: int = 0
    """What the upstream has worked for meanwhile, in time or too late."""

    @property
    def goodput(self) -> float:
        """Calls answered in time, a second."""
        return self.outcomes["ok"] / self.seconds

    def line(self) -> str:
        took_s = sorted(self.took_s) or [0.0]
        p50, p99 = took_s[len(took_s) // 2], took_s[int(len(took_s) * 0.99)]
        others = ", ".join(f"{count} {what}" for what, count in sorted(self.outcomes.items()) if what != "ok")
        return (
            f"  {self.name:<6} {self.per_s:5.0f}/s for {self.seconds:2.0f} s: goodput {self.goodput:6.1f}/s "
            f"({self.goodput / CAPACITY_PER_S:4.0%} of capacity), p50 {p50 * 1000:4.0f} ms, p99 {p99 * 1000:4.0f} ms, "
            f"limit {self.places[0]} -> {self.places[-1]}; {others or 'nothing else'}"
        )


class Run:
    """All phases against one sidecar."""

    def __init__(self, sidecar: Sidecar, upstream: str, phases: list[Phase], seed: int) -> None:
        self.sidecar = sidecar
        self.upstream = upstream
        self.phases = phases
        self.dice = random.Random(seed)

    async def all(self) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            calls: list[asyncio.Task[None]] = []
            for phase in self.phases:
                phase.places.append(await self._places())
                before = await self._served()
                due, end = time.monotonic(), time.monotonic() + phase.seconds
                while due < end:
                    due += self.dice.expovariate(phase.per_s)
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    calls.append(asyncio.create_task(self._call(session, phase)))
                phase.served = await self._served() - before
                phase.places.append(await self._places())
            await asyncio.gather(*calls)

    async def _call(self, session: aiohttp.ClientSession, phase: Phase) -> None:
        began = time.monotonic()
        try:
            async with session.post(self.sidecar.url + "/v1/embeddings", json=CALL) as answer:
                await answer.read()
                what = "ok" if answer.status == 200 else str(answer.status)
        except TimeoutError:
            what = "too late"
        except aiohttp.ClientError as error:
            what = type(error).__name__
        phase.outcomes[what] += 1
        if what == "ok":
            phase.took_s.append(time.monotonic() - began)

    async def _served(self) -> int:
        return int(await asyncio.to_thread(_read, self.upstream))

    async def _places(self) -> int:
        text = await asyncio.to_thread(_read, self.sidecar.admin_url + "/metrics")
        found = re.search(r"^understudy_limit_places\{[^}]*\} ([0-9.]+)", text, re.MULTILINE)
        assert found, "the sidecar tells no limit"
        return int(float(found[1]))


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


def run_overload(
    state: Path, concurrent: str, *, seed: int, calm_s: float, storm_s: float, after_s: float
) -> list[Phase]:
    """One run, from start to end."""
    phases = [
        Phase("calm", calm_s, CAPACITY_PER_S / 2),
        Phase("storm", storm_s, CAPACITY_PER_S * 2),
        Phase("after", after_s, CAPACITY_PER_S / 2),
    ]
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    policies = state / "policies"
    policies.mkdir(parents=True)
    (policies / "overload.yaml").write_text(POLICY.format(url=url, concurrent=concurrent))
    upstream = Process([sys.executable, "-m", "tests.real.overload", "--upstream", str(port)], ready_port=port)
    # without a file that says otherwise it would listen on the ports of its defaults
    (policies / "server.yaml").write_text("server: {listen: '${UNDERSTUDY_LISTEN}', admin: '${UNDERSTUDY_ADMIN}'}\n")
    with upstream, Sidecar(policies, state / concurrent) as sidecar:
        asyncio.run(Run(sidecar, url, phases, seed).all())
    return phases


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calm-s", type=float, default=3.0)
    parser.add_argument("--storm-s", type=float, default=12.0)
    parser.add_argument("--after-s", type=float, default=4.0)
    parser.add_argument("--upstream", type=int, metavar="PORT", help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.upstream is not None:
        serve(asked.upstream)
        return 0
    storms: list[float] = []
    for concurrent in ("adaptive", "256"):
        with tempfile.TemporaryDirectory() as folder:
            seconds = {"calm_s": asked.calm_s, "storm_s": asked.storm_s, "after_s": asked.after_s}
            phases = run_overload(Path(folder), concurrent, seed=asked.seed, **seconds)
        print(f"limit: {{concurrent: {concurrent}}}, capacity {CAPACITY_PER_S:.0f}/s, patience {PATIENCE_S} s")
        print("\n".join(phase.line() for phase in phases))
        storms.append(phases[1].goodput)
    return 0 if storms[0] >= 0.9 * CAPACITY_PER_S else 1


if __name__ == "__main__":
    raise SystemExit(main())
