"""Calls through the real sidecar while each primary is killed and comes back, on a seeded schedule.

    python -m tests.real.outages [--requests 10000] [--deaths 3] [--rate 150] [--seed 1]

A call is lost when it is not answered with 200, or its stream has no end. For every death it is told how long until
the first answer from another tier (detect) and, from when the service could answer again, until the primary's first
(back).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.real.rig import Rig, rig
from understudy.indexes import knowledge_files
from understudy.models.embedder import load
from understudy.proxy.knowledge import build_knowledge, collections_folder, models_folder

CALLERS_MAX = 32
"""An application has no more workers: on a machine that is too slow for the rate, calls come as fast as they go."""
LEGS = ("embed", "retrieve", "generate", "stream")
OF_OPENAI = ("embed", "generate", "stream")
QUESTIONS = ("What is a breaker?", "How do I reload the policies?", "What is a vector space?", "Who answers at last?")


@dataclass
class Death:
    """One primary's death and return, on the clock of the run."""

    service: str
    killed_at: float
    back_at: float = 0.0
    first_other_at: float = 0.0
    first_primary_at: float = 0.0


@dataclass
class Report:
    """What became of the run."""

    seed: int
    requests: int = 0
    lost: list[str] = field(default_factory=list)
    by_tier: Counter[str] = field(default_factory=Counter)
    deaths: list[Death] = field(default_factory=list)
    wall_s: float = 0.0

    def lines(self) -> list[str]:
        tiers = ", ".join(f"{count} {tier}" for tier, count in sorted(self.by_tier.items()))
        out = [
            f"seed {self.seed}: {self.requests} requests in {self.wall_s:.0f} s: "
            f"{self.requests - len(self.lost)} answered, {len(self.lost)} lost; {tiers}"
        ]
        out += [
            f"  {death.service:<7} down {death.back_at - death.killed_at:5.2f} s   "
            f"detect {death.first_other_at - death.killed_at:6.3f} s   "
            f"back {death.first_primary_at - death.back_at:6.3f} s"
            for death in self.deaths
        ]
        return out + [f"  lost: {each}" for each in self.lost[:10]]


class Run:
    """The callers, and the one who kills."""

    def __init__(self, made: Rig, seed: int, requests: int, rate: float, deaths: int) -> None:
        self.made = made
        self.rate = rate
        self.dice = random.Random(seed)
        self.report = Report(seed, requests)
        self.deaths = deaths
        self.vectors: list[list[float]] = []
        self.sent = 0

    async def all(self) -> Report:
        began = time.monotonic()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
            self.session = session
            for question in QUESTIONS:
                _, body = await self._post("/v1/embeddings", {"model": "m", "input": question})
                self.vectors.append(body["data"][0]["embedding"])
            killer = asyncio.create_task(self._kill_and_raise())
            callers: set[asyncio.Task[None]] = set()
            for number in range(self.report.requests):
                while len(callers) >= CALLERS_MAX:
                    await asyncio.wait(callers, return_when=asyncio.FIRST_COMPLETED)
                task = asyncio.create_task(self._call(number, self.dice.choice(LEGS), self.dice.choice(QUESTIONS)))
                callers.add(task)
                task.add_done_callback(callers.discard)
                self.sent = number + 1
                await asyncio.sleep(self.dice.expovariate(self.rate))
            await asyncio.gather(*callers)
            await killer
        self.report.wall_s = time.monotonic() - began
        return self.report

    async def _kill_and_raise(self) -> None:
        """Kill each service `deaths` times, one after another, spread over the run by number of requests."""
        names = ["openai", "qdrant"] * self.deaths
        for turn, name in enumerate(names):
            due = self.report.requests * (turn + 0.3) / len(names)
            while self.sent < due:  # noqa: ASYNC110 (paced by how many were sent)
                await asyncio.sleep(0.01)
            service = getattr(self.made, name)
            await asyncio.to_thread(service.kill)
            death = Death(name, time.monotonic())
            self.report.deaths.append(death)
            await asyncio.sleep(self.dice.uniform(0.5, 3.0))
            await asyncio.to_thread(service.start)
            if name == "qdrant":
                await asyncio.to_thread(self.made.fill)
            death.back_at = time.monotonic()

    async def _call(self, number: int, leg: str, question: str) -> None:
        try:
            tier = await self._asked(leg, question)
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
            self.report.lost.append(f"{number} {leg}: {type(error).__name__}: {error}")
            return
        self.report.by_tier[f"{'openai' if leg in OF_OPENAI else 'qdrant'}:{tier}"] += 1
        self._noted(leg, tier, time.monotonic())

    def _noted(self, leg: str, tier: str, now: float) -> None:
        name = "openai" if leg in OF_OPENAI else "qdrant"
        last = next((death for death in reversed(self.report.deaths) if death.service == name), None)
        if last is None:
            return
        if tier != "primary" and not last.first_other_at:
            last.first_other_at = now
        if tier == "primary" and last.back_at and not last.first_primary_at and now > last.back_at:
            last.first_primary_at = now

    async def _asked(self, leg: str, question: str) -> str:
        if leg == "embed":
            return (await self._post("/v1/embeddings", {"model": "m", "input": question}))[0]
        if leg == "retrieve":
            query = {"query": self.dice.choice(self.vectors), "limit": 3, "with_payload": True}
            tier, body = await self._post("/collections/knowledge/points/query", query)
            if len(body["result"]["points"]) != 3:
                raise ValueError("not three points")
            return tier
        messages = [{"role": "user", "content": f"Context:\nA breaker opens.\n\nQuestion: {question}"}]
        asked = {"model": "m", "messages": messages, "stream": leg == "stream"}
        return (await self._post("/v1/chat/completions", asked))[0]

    async def _post(self, path: str, body: dict[str, Any]) -> tuple[str, Any]:
        async with self.session.post(self.made.sidecar.url + path, json=body) as answer:
            raw = await answer.read()
            if answer.status != 200:
                raise ValueError(f"{answer.status} {raw[:200]!r}")
            if body.get("stream"):
                if not raw.rstrip().endswith(b"data: [DONE]"):
                    raise ValueError(f"a stream without an end: {raw[-200:]!r}")
                return answer.headers["x-understudy-tier"], None
            return answer.headers["x-understudy-tier"], json.loads(raw)


def run_outages(state: Path, *, seed: int, requests: int, rate: float, deaths: int) -> Report:
    """One run, from start to end."""
    with rig(state) as made:
        return asyncio.run(Run(made, seed, requests, rate, deaths).all())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--deaths", type=int, default=3)
    parser.add_argument("--rate", type=float, default=150.0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        build_knowledge(load(None, models_folder(state), "cpu"), knowledge_files(), collections_folder(state))
        report = run_outages(state, seed=asked.seed, requests=asked.requests, rate=asked.rate, deaths=asked.deaths)
    print("\n".join(report.lines()))
    return 1 if report.lost else 0


if __name__ == "__main__":
    raise SystemExit(main())
