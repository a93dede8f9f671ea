"""What health, recovery, journal, risk, forecasts and alerts cost beside calls: `python -m tests.bench.control_plane`.

    [--rate 200] [--seconds 60] [--routes 6] [--black-holed]

Two sidecars with the same policies run side by side, each with as many calls a second from the same client to the same
upstream: one as it ships, the other with every control loop left out but for the watch on the policy files. What the
first takes more of CPU time (the kernel's own account of each process, so that other programs on the machine are not in
it) is the control plane's; it is told as a share of one core. The first minute has one look at risks in it. A service
that is away, behind a second tier, has its checks and a ladder of recovery all the while.

With --black-holed both are as they ship, and in both every route has an alert that fires all along. The first has an
Alertmanager, a webhook, a Slack and a command to be told of it each second, none of which ever answers; the other has
nobody to tell. Latencies of both are told either way.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory

import aiohttp

from tests.kit.processes import OpenAIService, Process, Sidecar, free_port
from understudy.policies.objectives import Counts, Course
from understudy.proxy.control.objectives import FILE

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
RECEIVERS = """
  alerts:
    look_s: 1
    repeat_s: 1
    receivers:
      - {{name: manager, kind: alertmanager, url: "http://{hole}"}}
      - {{name: webhook, kind: webhook, url: "http://{hole}/alerts"}}
      - {{name: slack, kind: slack, url: "http://{hole}/slack"}}
      - {{name: command, kind: command, command: [sleep, "3600"]}}"""
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


def policies(folder: Path, url: str, routes: int, alerts: str = "") -> Path:
    """Policies with so many routes, each to the service and to one that is never there, as it is the second tier."""
    other = f"http://127.0.0.1:{free_port()}"
    head = 'server:\n  listen: "${UNDERSTUDY_LISTEN}"\n  admin: "${UNDERSTUDY_ADMIN}"\n  access_log: false'
    text = head + alerts + "\nroutes:" + "".join(ROUTE.format(n=n, url=url, other=other) for n in range(routes))
    folder.mkdir(parents=True)
    (folder / "routes.yaml").write_text(text)
    return folder


def black_hole(stack: ExitStack) -> str:
    """Where connections are taken and nothing is ever read or said, and soon not even that: nobody accepts them."""
    listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1))
    return f"127.0.0.1:{listening.getsockname()[1]}"


def missed(state: Path, routes: int) -> None:
    """Have a sidecar find, at its start, that nobody answered any of a thousand calls of each route an hour ago."""
    now = time.time()
    lost = Counts(*([1000] * len(Counts._fields)))
    course = Course()
    course.times, course.points, course.counts = [now - 240, now - 180, now - 120], [Counts(), lost, lost], lost
    course.points[1] = Counts(*([500] * len(Counts._fields)))
    state.mkdir(parents=True)
    kept = {f"chat-{n}": course.kept() for n in range(routes)}
    (state / FILE).write_text(json.dumps({"courses": kept, "alerts": []}))


async def call(
    session: aiohttp.ClientSession, sidecar: Sidecar, *, per_s: float, seconds: float, routes: int, late_s: float = 0.0
) -> list[float]:
    """Calls at a steady rate, whoever is late, the first after `late_s`; how long each took that was answered with a
    200, in seconds."""
    loop = asyncio.get_running_loop()
    began = loop.time() + late_s
    took_s: list[float] = []

    async def one(n: int) -> None:
        await asyncio.sleep(max(0.0, began + n / per_s - loop.time()))
        url = f"{sidecar.url}/r{n % routes}/v1/chat/completions"
        asked_at = loop.time()
        async with session.post(url, json=ASKED) as answer:
            await answer.read()
            if answer.status == 200:
                took_s.append(loop.time() - asked_at)

    for first in range(0, int(per_s * seconds), int(per_s)):
        await asyncio.gather(*(one(n) for n in range(first, min(first + int(per_s), int(per_s * seconds)))))
    return took_s


async def measured(
    sidecars: Sequence[Sidecar], *, per_s: float, seconds: float, routes: int
) -> list[tuple[float, list[float]]]:
    """CPU seconds and what calls took of each, both under the same calls at the same time."""
    async with aiohttp.ClientSession() as session:
        for sidecar in sidecars:
            await call(session, sidecar, per_s=per_s, seconds=SETTLE_S, routes=routes)
        before = [cpu_s(sidecar) for sidecar in sidecars]
        # in turn, so that neither is always the one that waits for the other
        calls = [
            call(session, one, per_s=per_s, seconds=seconds, routes=routes, late_s=n / per_s / len(sidecars))
            for n, one in enumerate(sidecars)
        ]
        took = await asyncio.gather(*calls)
        return [(cpu_s(one) - was, each) for one, was, each in zip(sidecars, before, took, strict=True)]


async def told(sidecar: Sidecar) -> str:
    """How many alerts fire, and what became of telling them."""
    async with aiohttp.ClientSession() as session, session.get(f"{sidecar.admin_url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    firing = sum(line.startswith("understudy_alerts_firing{") for line in lines)
    sent = [line.partition("{")[2] for line in lines if line.startswith("understudy_alerts_sent_total{")]
    return f"{firing} alerts fire; told: {'; '.join(sent) or 'nobody'}"


def run(*, per_s: float, seconds: float, routes: int, black_holed: bool) -> str:
    """What both have taken, in words."""
    names = ("with receivers that never answer", "without receivers")
    names = names if black_holed else ("with the control plane", "without it")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        service = stack.enter_context(OpenAIService())
        plain = policies(folder / "plain", service.url, routes)
        if black_holed:
            alerts = RECEIVERS.format(hole=black_hole(stack))
            for state in ("one", "other"):
                missed(folder / state, routes)
            one = Sidecar(policies(folder / "told", service.url, routes, alerts), folder / "one")
            other = Sidecar(plain, folder / "other")
        else:
            one, other = Sidecar(plain, folder / "one"), Bare(plain, folder / "other")
        sidecars = [stack.enter_context(each) for each in (one, other)]
        found = asyncio.run(measured(sidecars, per_s=per_s, seconds=seconds, routes=routes))
        receivers = asyncio.run(told(one))
    lines = [
        f"{name}: {own_s:.2f} s of CPU time for {len(took)} calls answered, {latency(took)}"
        for name, (own_s, took) in zip(names, found, strict=True)
    ]
    share = (found[0][0] - found[1][0]) / seconds
    return (
        f"{per_s:g} calls a second over {routes} routes for {seconds:g} s, of each\n"
        + "\n".join(lines)
        + f"\nthe difference: {share:.2%} of one core\n{receivers}"
    )


def latency(took_s: Sequence[float]) -> str:
    """In words, in milliseconds."""
    at = quantiles(took_s, n=1000)
    return ", ".join(f"{name} {at[n] * 1e3:.2f} ms" for name, n in (("p50", 499), ("p95", 949), ("p99", 989)))


def main() -> None:
    """Measure, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200.0, help="calls a second (200)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--routes", type=int, default=6, help="routes, with two tiers each (6)")
    parser.add_argument("--black-holed", action="store_true", help="alerts all along, and no receiver that answers")
    asked = parser.parse_args()
    print(run(per_s=asked.rate, seconds=asked.seconds, routes=asked.routes, black_holed=asked.black_holed))


if __name__ == "__main__":
    main()
