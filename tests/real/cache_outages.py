"""Calls through the real sidecar while the cache's second level is stopped, killed, and swallows everything.

    python -m tests.real.cache_outages [--kind redis|memcached] [--rate 150] [--phase-s 6]

Phases: well, stopped (SIGSTOP), well again, killed, black hole (connections are accepted and nothing is ever said),
well at last. Half of the calls ask something new, which looks in the second level. A call is lost when it is not
answered with 200. `added` is how much longer the slowest call of a phase took than the slowest of the first one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web

from tests.kit.processes import Sidecar, free_port, needs

WAIT_S = 0.05
POLICIES = """\
server:
  listen: ${{UNDERSTUDY_LISTEN}}
  admin: ${{UNDERSTUDY_ADMIN}}
  access_log: false
  cache: {{url: "{url}", wait_s: {wait_s}}}
routes:
  - name: embeddings
    match: {{path: /v1/embeddings}}
    dialect: openai-embeddings
    space: s
    cache: {{enabled: true}}
    tiers:
      - {{kind: upstream, name: service, url: "http://127.0.0.1:{port}"}}
"""


@dataclass
class Phase:
    """One state of the second level, and what calls took meanwhile, in milliseconds."""

    name: str
    took_ms: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def line(self, worst_before_ms: float) -> str:
        ordered = sorted(self.took_ms)
        p50, p99 = (ordered[int(len(ordered) * share)] for share in (0.5, 0.99))
        added = max(0.0, ordered[-1] - worst_before_ms)
        told = f"p50 {p50:6.2f}  p99 {p99:6.2f}  worst {ordered[-1]:6.2f} ms  added {added:6.2f} ms"
        return f"{self.name:<12} {len(ordered):>5} calls  lost {len(self.lost)}  {told}"


class Server:
    """The second level on one port, in whatever state it is to be."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.port = free_port()
        self.child: subprocess.Popen[bytes] | None = None
        self.hole: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"{self.kind}://127.0.0.1:{self.port}"

    def start(self) -> None:
        if self.hole is not None:
            self.hole.close()
            self.hole = None
        if self.kind == "redis":
            command = [needs("redis-server"), "--port", str(self.port), "--save", "", "--appendonly", "no"]
        else:
            command = [needs("memcached"), "-p", str(self.port), "-l", "127.0.0.1", "-u", "nobody", "-U", "0"]
        self.child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def signal(self, number: signal.Signals) -> None:
        assert self.child is not None
        self.child.send_signal(number)

    def kill(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.wait(60)
            self.child = None

    async def swallow(self) -> None:
        async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            while await reader.read(65536):
                pass

        self.hole = await asyncio.start_server(silent, "127.0.0.1", self.port)

    def stop(self) -> None:
        if self.hole is not None:
            self.hole.close()
        if self.child is not None:
            self.signal(signal.SIGCONT)
            self.kill()


async def embed(request: web.Request) -> web.Response:
    given = (await request.json())["input"]
    inputs = [given] if isinstance(given, str) else given
    data = [{"object": "embedding", "index": n, "embedding": [float(len(text))] * 64} for n, text in enumerate(inputs)]
    usage = {"prompt_tokens": len(inputs), "total_tokens": len(inputs)}
    return web.json_response({"object": "list", "data": data, "model": "m", "usage": usage})


async def play(url: str, phase: Phase, rate: float, phase_s: float, dice: random.Random) -> None:
    """Calls at an even rate, each on its own, whatever became of those before."""
    async with aiohttp.ClientSession() as session:
        tasks: list[asyncio.Task[None]] = []
        began = time.monotonic()
        for n in range(int(rate * phase_s)):
            await asyncio.sleep(max(0.0, began + n / rate - time.monotonic()))
            text = f"known {dice.randrange(20)}" if dice.random() < 0.5 else f"new {dice.random()}"
            tasks.append(asyncio.ensure_future(_call(session, url, text, phase)))
        await asyncio.gather(*tasks)


async def _call(session: aiohttp.ClientSession, url: str, text: str, phase: Phase) -> None:
    began = time.perf_counter()
    try:
        body = json.dumps({"model": "m", "input": text})
        async with session.post(url, data=body, headers={"content-type": "application/json"}) as got:
            data = (await got.json())["data"]
            if got.status != 200 or data[0]["embedding"][0] != float(len(text)):
                phase.lost.append(f"{got.status} {text}")
    except (aiohttp.ClientError, KeyError, ValueError) as error:
        phase.lost.append(f"{type(error).__name__} {text}")
    phase.took_ms.append((time.perf_counter() - began) * 1000)


async def run(kind: str, rate: float, phase_s: float, seed: int = 1) -> tuple[list[Phase], str]:
    """All phases, and what the sidecar's metrics say of the second level at the end."""
    dice = random.Random(seed)
    app = web.Application()
    app.router.add_post("/v1/embeddings", embed)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    server = Server(kind)
    with tempfile.TemporaryDirectory(prefix="understudy-cache-") as folder:
        policies = Path(folder, "policies")
        text = POLICIES.format(url=server.url, wait_s=WAIT_S, port=port)
        await asyncio.to_thread(_write, policies / "cache.yaml", text)
        sidecar = Sidecar(policies, Path(folder, "state"))
        # the second level is not there yet: starting needs nothing of it
        await asyncio.to_thread(sidecar.start)
        phases: list[Phase] = []

        async def phase(name: str) -> None:
            phases.append(Phase(name))
            await play(sidecar.url + "/v1/embeddings", phases[-1], rate, phase_s, dice)

        try:
            server.start()
            await play(sidecar.url + "/v1/embeddings", Phase("warm"), rate, 2.0, dice)
            await phase("well")
            server.signal(signal.SIGSTOP)
            await phase("stopped")
            server.signal(signal.SIGCONT)
            await phase("well again")
            server.kill()
            await phase("killed")
            await server.swallow()
            await phase("black hole")
            server.start()
            await phase("well at last")
            async with aiohttp.ClientSession() as session, session.get(sidecar.admin_url + "/metrics") as got:
                lines = (await got.text()).splitlines()
        finally:
            await asyncio.to_thread(sidecar.stop)
            server.stop()
            await runner.cleanup()
    return phases, "\n".join(line for line in lines if line.startswith("understudy_cache_second"))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)


def main() -> int:
    """Run and tell; 1 when a call was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.real.cache_outages", description=__doc__)
    parser.add_argument("--kind", choices=("redis", "memcached"), default="redis")
    parser.add_argument("--rate", type=float, default=150.0)
    parser.add_argument("--phase-s", type=float, default=6.0)
    arguments = parser.parse_args()
    phases, metrics = asyncio.run(run(arguments.kind, arguments.rate, arguments.phase_s))
    worst_ms = max(phases[0].took_ms)
    print("\n".join(phase.line(worst_ms) for phase in phases))
    print(metrics)
    return int(any(phase.lost for phase in phases))


if __name__ == "__main__":
    raise SystemExit(main())
