"""What a healthy client notices while 1 000 slow ones hold connections: slowhttptest's headers, body and read modes.

    python -m tests.real.slowloris [--connections 1000] [--seconds 15]

For each mode the healthy client's latencies are told quiet and under attack, how many connections the sidecar held at
most, and when the last slow one was closed by the sidecar's own clocks (here CLOCK_S, so that it is seen to happen).
slowhttptest, the sidecar, the upstream and the client share one machine; the client's own jitter is in both columns.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.kit.acts import answer
from tests.kit.fake_upstream import Heard, in_thread
from tests.kit.processes import Sidecar, needs

CLOCK_S = 8
"""What head, body and idle clocks are set to."""
RATE_PER_S = 500
CALLERS = 4
PACE_S = 0.01
ANSWER_S_MAX = 30.0
LARGE_BYTES = 100_000
"""What a slow reader is sent."""
MODES = {
    "headers": ("-H", "-i", "2", "-x", "24"),
    "body": ("-B", "-i", "2", "-s", "1000000", "-x", "10"),
    "read": ("-X", "-w", "1", "-y", "512", "-n", "1", "-z", "5"),
}
POLICIES = """
server:
  listen: ${{UNDERSTUDY_LISTEN}}
  admin: ${{UNDERSTUDY_ADMIN}}
  access_log: false
  limits: {{head_s: {clock_s}, body_s: {clock_s}, idle_s: {clock_s}}}
routes:
  - name: all
    match: {{prefix: /}}
    dialect: {dialect}
    tiers: [{{kind: upstream, name: up, url: "{url}"}}]
"""


@dataclass
class Measured:
    """What the healthy client saw in one stretch, and what the sidecar held meanwhile."""

    calls: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """When each call ended, from the beginning, and how long it took."""
    lost: list[str] = field(default_factory=list[str])
    connections: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    rss_mib: float = 0.0
    began: float = field(default_factory=time.monotonic)
    is_over: bool = False
    """Slow connections were there, and all of them are gone."""

    def quantile_ms(self, share: float, begin_s: float = 0.0, end_s: float = float("inf")) -> float:
        took = sorted(took_s for at, took_s in self.calls if begin_s <= at < end_s)
        return took[int(share * (len(took) - 1))] * 1000 if took else float("nan")

    @property
    def stretch_s(self) -> tuple[float, float]:
        """From when all slow connections were there to when the first of them was closed."""
        full = [at for at, count in self.connections if count - CALLERS >= 0.98 * self.held]
        return (full[0], full[-1]) if full else (0.0, 0.0)

    @property
    def held(self) -> int:
        """Slow connections at most."""
        return max((count for _, count in self.connections), default=0) - CALLERS

    @property
    def cleared_s(self) -> float:
        """When the last slow connection was gone, from the beginning; infinite when it was not."""
        slow = [at for at, count in self.connections if count > CALLERS + 1]
        if not slow or slow[-1] == self.connections[-1][0]:
            return float("inf") if slow else 0.0
        return slow[-1]


class Client:
    """Some callers on connections of their own, each asking at a steady pace; one of them comes anew every time."""

    def __init__(self, sidecar: Sidecar) -> None:
        self.sidecar = sidecar

    async def measured(self, seconds: float) -> Measured:
        seen = Measured()
        began = time.monotonic()
        callers = [self._caller(seen, began + seconds, anew=number == 0) for number in range(CALLERS)]
        await asyncio.gather(self._watch(seen, began, seconds), *callers)
        return seen

    async def _caller(self, seen: Measured, until: float, *, anew: bool) -> None:
        streams = await self._connected()
        while time.monotonic() < until and not seen.is_over:
            began = time.monotonic()
            try:
                async with asyncio.timeout(ANSWER_S_MAX):
                    if anew:
                        streams[1].close()
                        streams = await self._connected()
                    await self._ask(*streams)
                ended = time.monotonic()
                seen.calls.append((ended - seen.began, ended - began))
            except (OSError, EOFError, TimeoutError, ValueError) as error:
                seen.lost.append(f"{type(error).__name__}: {error}")
                streams = await self._connected()
            await asyncio.sleep(PACE_S)
        streams[1].close()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.sidecar.port)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"POST /small HTTP/1.1\r\nhost: here\r\ncontent-length: 1000\r\n\r\n" + b"x" * 1000)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise ValueError(head[:100])
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
        await reader.readexactly(int(length))

    async def _watch(self, seen: Measured, began: float, seconds: float) -> None:
        while (at := time.monotonic() - began) < seconds and not seen.is_over:
            with suppress(OSError):
                count = await asyncio.to_thread(self._connections)
                seen.is_over = count <= CALLERS + 1 and seen.held > 2 * CALLERS
                seen.connections.append((at, count))
                seen.rss_mib = max(seen.rss_mib, _rss_mib(self.sidecar.pid))
            await asyncio.sleep(0.5)

    def _connections(self) -> int:
        with urllib.request.urlopen(self.sidecar.admin_url + "/metrics", timeout=30) as told:
            lines = told.read().decode().splitlines()
        return int(float(next(line for line in lines if line.startswith("understudy_connections ")).split()[-1]))


def _rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def run_mode(
    mode: str, *, connections: int, seconds: float, dialect: str = "plain", quiet_s: float = 5.0
) -> tuple[Measured, Measured]:
    """One mode in front of a fresh sidecar: the quiet stretch, and the one under attack, `seconds` at most."""
    program = needs("slowhttptest")
    with in_thread(answer(body=b"x" * 1000)) as upstream, tempfile.TemporaryDirectory() as folder:
        upstream.respond = _answer
        policies = Path(folder) / "policies"
        policies.mkdir()
        (policies / "slow.yaml").write_text(POLICIES.format(clock_s=CLOCK_S, url=upstream.url, dialect=dialect))
        with Sidecar(policies, Path(folder) / "state") as sidecar:
            client = Client(sidecar)
            asyncio.run(client.measured(1.0))
            quiet = asyncio.run(client.measured(quiet_s))
            many = ("-c", str(connections), "-r", str(RATE_PER_S), "-l", str(int(seconds) + 30), "-p", "5")
            attack = subprocess.Popen(
                [program, *MODES[mode], *many, "-u", f"{sidecar.url}/large"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
            )
            try:
                return quiet, asyncio.run(client.measured(seconds))
            finally:
                attack.kill()
                attack.wait()


LARGE = answer(body=b"y" * LARGE_BYTES)
SMALL = answer(body=b"x" * 1000)


def _answer(heard: Heard):
    return LARGE if heard.target == b"/large" else SMALL


def told(mode: str, quiet: Measured, attacked: Measured) -> str:
    """One line of the table: p99 quiet, while they came, while all were there, and while they were closed."""
    begin_s, end_s = attacked.stretch_s
    coming, going = attacked.quantile_ms(0.99, 0, begin_s), attacked.quantile_ms(0.99, end_s)
    return (
        f"{mode:<8} p50 {quiet.quantile_ms(0.5):5.2f} -> {attacked.quantile_ms(0.5, begin_s, end_s):5.2f} ms   "
        f"p99 {quiet.quantile_ms(0.99):6.2f} -> coming {coming:6.2f}, there "
        f"{attacked.quantile_ms(0.99, begin_s, end_s):6.2f}, going {going:6.2f} ms   "
        f"{len(attacked.calls)} answered, {len(attacked.lost)} lost   "
        f"slow held {attacked.held}, gone after {attacked.cleared_s:.1f} s   RSS {attacked.rss_mib:.0f} MiB"
    )


def ratio(quiet: Measured, attacked: Measured) -> float:
    """p99 while all slow connections were there, over p99 quiet."""
    return attacked.quantile_ms(0.99, *attacked.stretch_s) / quiet.quantile_ms(0.99)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--mode", choices=sorted(MODES), action="append")
    parser.add_argument("--dialect", default="plain")
    asked = parser.parse_args(argv)
    worst = 0
    for mode in asked.mode or MODES:
        ratios: list[float] = []
        for _ in range(asked.rounds):
            quiet, attacked = run_mode(
                mode, connections=asked.connections, seconds=asked.seconds, dialect=asked.dialect
            )
            print(told(mode, quiet, attacked), flush=True)
            ratios.append(ratio(quiet, attacked))
            worst += len(attacked.lost)
        print(f"{mode:<8} median ratio of p99: {statistics.median(ratios):.2f}", flush=True)
    return 1 if worst else 0


if __name__ == "__main__":
    raise SystemExit(main())
