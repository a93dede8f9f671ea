"""Hours in small: mixed calls, streams and hang-ups through the real sidecar, while its memory and sockets are watched.

    python -m tests.real.soak [--minutes 20] [--rate 60] [--seed 1]

What must come out flat: resident memory and open files, by their least-squares slopes over the second half of the run.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import numpy as np

from tests.kit.processes import OpenAIService, Sidecar

POLICIES = """\
server: {{listen: "${{UNDERSTUDY_LISTEN}}", admin: "${{UNDERSTUDY_ADMIN}}", access_log: true}}
routes:
  - name: chat
    match: {{path: /v1/chat/completions}}
    dialect: openai-chat
    tiers: [{{kind: upstream, name: model, url: "{url}"}}]
  - name: rest
    match: {{prefix: /v1}}
    dialect: plain
    tiers: [{{kind: upstream, name: model, url: "{url}"}}]
"""
KINDS = ("chat", "stream", "left in the stream", "left before the answer", "passed", "unrouted")
SAMPLE_S = 5.0


class Soak:
    """The callers and the watcher of one run."""

    def __init__(self, sidecar: Sidecar, seed: int, minutes: float, rate: float) -> None:
        self.sidecar = sidecar
        self.dice = random.Random(seed)
        self.until = time.monotonic() + minutes * 60
        self.rate = rate
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.samples: list[tuple[float, float, int]] = []

    async def run(self) -> None:
        """Call until the time is up."""
        watching = asyncio.create_task(self._watch())
        callers: set[asyncio.Task[None]] = set()
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=64)) as self.session:
            while time.monotonic() < self.until:
                task = asyncio.create_task(self._call(self.dice.choice(KINDS)))
                callers.add(task)
                task.add_done_callback(callers.discard)
                await asyncio.sleep(self.dice.expovariate(self.rate))
            await asyncio.gather(*callers)
        watching.cancel()

    async def _watch(self) -> None:
        began = time.monotonic()
        while True:
            process = Path("/proc") / str(self.sidecar.pid)
            status = (process / "status").read_text()
            rss_kib = int(status.split("VmRSS:")[1].split()[0])
            self.samples.append((time.monotonic() - began, rss_kib / 1024, len(list((process / "fd").iterdir()))))
            await asyncio.sleep(SAMPLE_S)

    async def _call(self, kind: str) -> None:
        try:
            await self._asked(kind)
            self.done[kind] += 1
        except (aiohttp.ClientError, TimeoutError, AssertionError) as error:
            self.wrong.append(f"{kind}: {type(error).__name__}: {error}")

    async def _asked(self, kind: str) -> None:
        url = self.sidecar.url
        if kind in ("passed", "unrouted"):
            async with self.session.get(url + ("/v1/models" if kind == "passed" else "/elsewhere")) as answer:
                await answer.read()
                assert answer.status == (200 if kind == "passed" else 404)
            return
        words = " ".join(f"word{self.dice.randrange(100)}." for _ in range(200))
        messages = [{"role": "user", "content": f"Context:\n{words}\n\nQuestion: which word?"}]
        body = {"model": "m", "messages": messages, "stream": "stream" in kind}
        asking = self.session.post(url + "/v1/chat/completions", json=body)
        if kind == "left before the answer":
            task = asyncio.ensure_future(asking.__aenter__())
            await asyncio.sleep(self.dice.random() * 0.005)
            task.cancel()
            answers = await asyncio.gather(task, return_exceptions=True)
            for answer in answers:
                if isinstance(answer, aiohttp.ClientResponse):
                    answer.close()
            return
        async with asking as answer:
            assert answer.status == 200
            if kind == "left in the stream":
                await answer.content.readany()
                answer.close()
                return
            raw = await answer.read()
            assert kind == "chat" or raw.rstrip().endswith(b"data: [DONE]")

    def lines(self) -> list[str]:
        """What came of it."""
        half = self.samples[len(self.samples) // 2 :]
        at, rss, fds = (np.array(column, float) for column in zip(*half, strict=True))
        rss_slope, fd_slope = (np.polyfit(at / 3600, values, 1)[0] for values in (rss, fds))
        return [
            f"{sum(self.done.values())} calls ({', '.join(f'{n} {kind}' for kind, n in sorted(self.done.items()))}), "
            f"{len(self.wrong)} went wrong",
            f"rss {self.samples[0][1]:.1f} -> {rss[0]:.1f} (half) -> {rss[-1]:.1f} MiB, slope {rss_slope:+.2f} MiB/h",
            f"fds {self.samples[0][2]} -> {int(fds[0])} (half) -> {int(fds[-1])}, slope {fd_slope:+.2f} /h",
            *(f"  {each}" for each in self.wrong[:10]),
        ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, OpenAIService("--token-gap-s", "0.002") as upstream:
        policies = Path(folder) / "policies"
        policies.mkdir()
        (policies / "soak.yaml").write_text(POLICIES.format(url=upstream.url))
        with Sidecar(policies, Path(folder)) as sidecar:
            soak = Soak(sidecar, asked.seed, asked.minutes, asked.rate)
            asyncio.run(soak.run())
            print("\n".join(soak.lines()))
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
