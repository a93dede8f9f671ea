"""Two replicas, restarted in turn under callers who go to whichever says that it is ready; no call is lost.

    python -m tests.real.restarts [--restarts 20] [--calls 10000] [--callers 32]

    callers --round robin over those that are ready--> replica 1, replica 2 --> one upstream, 50 ms a call
    /readyz of each, every 100 ms --> who is ready             SIGTERM to one, its end, its next start, then the other

What a balancer does that goes by readiness. A call is lost that was sent and not answered with 200. A replica that does
not take the connection has not been sent it: the caller goes to the other one at once, and that is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.kit.acts import answer
from tests.kit.fake_upstream import Hosted, in_thread
from tests.kit.processes import Sidecar, is_ready
from tests.real.callers import Connection, Lost

READY_S = 0.1
TOOK_S = 0.05
PAUSE_S = 0.05
POLICIES = """\
server:
  listen: ${{UNDERSTUDY_LISTEN}}
  admin: ${{UNDERSTUDY_ADMIN}}
  access_log: false
  drain_s: 25
routes:
  - name: chat
    match: {{prefix: /v1}}
    dialect: openai-chat
    tiers:
      - {{kind: upstream, name: model, url: "{url}"}}
"""


@dataclass
class Report:
    """What became of the calls, and how often each replica was restarted."""

    answered: int = 0
    lost: Counter[str] = field(default_factory=Counter[str])
    turned_away: int = 0
    restarts: list[int] = field(default_factory=lambda: [0, 0])
    exits: Counter[int] = field(default_factory=Counter[int])
    heard: int = 0
    """Calls that came to the upstream."""
    by_replica: list[int] = field(default_factory=lambda: [0, 0])

    def line(self) -> str:
        return (
            f"{sum(self.restarts)} restarts of two replicas: {self.answered} calls answered"
            f" ({self.by_replica[0]} and {self.by_replica[1]}), {self.lost.total()} lost {dict(self.lost) or ''};"
            f" {self.turned_away} connections not taken, and tried at the other; the upstream heard {self.heard}"
        )


class Replicas:
    """Both of them, and which are ready as far as the last look has shown."""

    def __init__(self, sidecars: list[Sidecar], report: Report) -> None:
        self.sidecars = sidecars
        self.ready = [True, True]
        self._report = report
        self._turn = 0

    def next(self) -> list[int]:
        """Those that are ready, the next in turn first; all of them where none is said to be."""
        self._turn += 1
        order = [self._turn % 2, (self._turn + 1) % 2]
        return [at for at in order if self.ready[at]] or order

    async def watch(self) -> None:
        """Look at both, again and again."""
        while True:
            for at, sidecar in enumerate(self.sidecars):
                self.ready[at] = await asyncio.to_thread(is_ready, sidecar.admin_port, "/readyz")
            await asyncio.sleep(READY_S)

    async def restart(self, at: int) -> None:
        """End one in good order, while the other is ready, and have its next process take calls."""
        while not all(self.ready):  # noqa: ASYNC110 (what changes is in another process)
            await asyncio.sleep(READY_S)
        self._report.exits[await asyncio.to_thread(self.sidecars[at].stop)] += 1
        await asyncio.to_thread(self.sidecars[at].start)
        self._report.restarts[at] += 1


async def call_on(replicas: Replicas, report: Report, over: asyncio.Event) -> None:
    """One caller, until it is over."""
    connections = [Connection(sidecar.port) for sidecar in replicas.sidecars]
    with contextlib.ExitStack() as stack:
        for connection in connections:
            stack.callback(connection.close)
        while not over.is_set():
            await _call(connections, replicas.next(), report)
            await asyncio.sleep(PAUSE_S)


async def _call(connections: list[Connection], order: list[int], report: Report) -> None:
    for at in [*order, *(other for other in (0, 1) if other not in order)]:
        try:
            status, _ = await connections[at].call()
        except Lost as lost:
            if str(lost).startswith("not connected"):
                report.turned_away += 1
                continue
            report.lost[str(lost)] += 1
            return
        if status == 200:
            report.answered += 1
            report.by_replica[at] += 1
        else:
            report.lost[f"answered with {status}"] += 1
        return
    report.lost["neither took the connection"] += 1


async def restarted(upstream: Hosted, folder: Path, restarts: int, calls: int, callers: int) -> Report:
    """So many restarts, one replica after the other, and at least so many calls meanwhile."""
    report = Report()
    (folder / "policies").mkdir()
    (folder / "policies" / "chat.yaml").write_text(POLICIES.format(url=upstream.url))
    sidecars = [Sidecar(folder / "policies", folder / f"state-{at}") for at in (1, 2)]
    over = asyncio.Event()
    with sidecars[0], sidecars[1]:
        replicas = Replicas(sidecars, report)
        watching = asyncio.create_task(replicas.watch())
        asking = [asyncio.create_task(call_on(replicas, report, over)) for _ in range(callers)]
        try:
            for at in range(restarts):
                await replicas.restart(at % 2)
            while report.answered + report.lost.total() < calls:  # noqa: ASYNC110 (counted by the callers)
                await asyncio.sleep(READY_S)
        finally:
            over.set()
            await asyncio.gather(*asking)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    report.heard = len(upstream.heard)
    return report


async def main() -> None:
    """Print the line of one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--callers", type=int, default=32)
    asked = parser.parse_args()
    with (
        in_thread(answer(body={"who": "model"}, delay_s=TOOK_S)) as upstream,
        tempfile.TemporaryDirectory() as name,
    ):
        print((await restarted(upstream, Path(name), asked.restarts, asked.calls, asked.callers)).line())


if __name__ == "__main__":
    asyncio.run(main())
