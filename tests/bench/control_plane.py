"""What health, recovery, journal, risk, forecasts and alerts cost beside calls: `python -m tests.bench.control_plane`.

    [--rate 200] [--seconds 60] [--routes 6]

Two sidecars with the same policies run side by side, each with as many calls a second from the same client to the same
upstream: one as it ships, the other with every control loop left out but for the watch on the policy files. What the
first takes more of CPU time (the kernel's own account of each process, so that other programs on the machine are not in
it) is the control plane's; it is told as a share of one core. The first minute has one look at risks in it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp

from tests.kit.processes import OpenAIService, Process, Sidecar, free_port

SETTLE_S = 5.0
BARE = """
import asyncio
import sys
from understudy.proxy import cli, server
from understudy.proxy.control import objectives


async def nothing(*_):
    await asyncio.Event().wait()


async def start(self):
    await self._front.start()


objectives.Overlooked.start = start
for name in [name for name in vars(server) if name.startswith("keep_")]:
    setattr(server, name, nothing)
sys.exit(cli.main(sys.argv[1:]))
"""
ROUTE = """
  - name: chat-{n}
    match: {{prefix: /r{n}, strip: true}}
    dialect: openai-chat
    tiers:
      - {{kind: upstream, name: model, url: "{url}"}}
      - {{kind: upstream, name: other, url: "{other}"}}
"""
ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Context:\nWater is wet.\n\nWhat is water?"}]}


class Bare(Sidecar):
    """A sidecar without its control loops."""

    def spawn(self) -> None:
        """As `understudy run`, by a program that takes the loops out first."""
        at = self.command.index("-m")
        self.command[at : at + 2] = ["-c", BARE]
        super().spawn()


def cpu_s(process: Process) -> float:
    """CPU time that it has taken so far, in seconds: its own, in user and kernel mode."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def policies(folder: Path, url: str, routes: int) -> Path:
    """Policies with so many routes, each to the service and to one that is never asked, as it is the second tier."""
    other = f"http://127.0.0.1:{free_port()}"
    head = 'server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}", access_log: false}\nroutes:'
    text = head + "".join(ROUTE.format(n=n, url=url, other=other) for n in range(routes))
    (folder / "routes.yaml").write_text(text)
    return folder


async def call(session: aiohttp.ClientSession, sidecar: Sidecar, *, per_s: float, seconds: float, routes: int) -> int:
    """Calls at a steady rate, whoever is late; how many were answered with a 200."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    answered = 0

    async def one(n: int) -> None:
        nonlocal answered
        await asyncio.sleep(max(0.0, began + n / per_s - loop.time()))
        url = f"{sidecar.url}/r{n % routes}/v1/chat/completions"
        async with session.post(url, json=ASKED) as answer:
            await answer.read()
            answered += answer.status == 200

    for first in range(0, int(per_s * seconds), int(per_s)):
        await asyncio.gather(*(one(n) for n in range(first, min(first + int(per_s), int(per_s * seconds)))))
    return answered


async def measured(
    sidecars: Sequence[Sidecar], *, per_s: float, seconds: float, routes: int
) -> list[tuple[float, int]]:
    """CPU seconds and calls answered of each, both under the same calls at the same time."""
    async with aiohttp.ClientSession() as session:
        for sidecar in sidecars:
            await call(session, sidecar, per_s=per_s, seconds=SETTLE_S, routes=routes)
        before = [cpu_s(sidecar) for sidecar in sidecars]
        calls = [call(session, one, per_s=per_s, seconds=seconds, routes=routes) for one in sidecars]
        answered = await asyncio.gather(*calls)
        return [(cpu_s(one) - was, n) for one, was, n in zip(sidecars, before, answered, strict=True)]


def run(*, per_s: float, seconds: float, routes: int) -> str:
    """What both have taken, in words."""
    with TemporaryDirectory() as name, OpenAIService() as service:
        folder = Path(name)
        (folder / "policies").mkdir()
        written = policies(folder / "policies", service.url, routes)
        with Sidecar(written, folder / "whole") as whole, Bare(written, folder / "bare") as bare:
            (own_s, n), (bare_s, m) = asyncio.run(measured((whole, bare), per_s=per_s, seconds=seconds, routes=routes))
    share = (own_s - bare_s) / seconds
    return (
        f"{per_s:g} calls a second over {routes} routes for {seconds:g} s ({n} and {m} answered):"
        f" {own_s:.2f} s of CPU time with the control plane, {bare_s:.2f} s without:"
        f" {share:.2%} of one core for the control plane"
    )


def main() -> None:
    """Measure, and print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200.0, help="calls a second (200)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--routes", type=int, default=6, help="routes, with two tiers each (6)")
    asked = parser.parse_args()
    print(run(per_s=asked.rate, seconds=asked.seconds, routes=asked.routes))


if __name__ == "__main__":
    main()
