"""What a mirror costs: `python -m tests.bench.mirror [--points 100000] [--writes-per-s 200] [--seconds 20]`.

    sync    a collection of so many points copied by a sidecar: how long it takes, what memory the sidecar has then
    tap     writes of one point each through the sidecar meanwhile: how stale the copy says it is, how many wait
    lag     how late the sidecar's event loop was, at worst in any second of either (`understudy_loop_lag_seconds`)

The database is a stub in a process of its own that makes its points as they are asked for, and says yes to every write.
All figures are of wall-clock time: other programs on the machine are in them.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import msgspec
import numpy as np
from aiohttp import web

from tests.bench.watched import Lateness, read
from tests.kit.processes import Sidecar

DIMENSIONS = 384
NAME = "docs"
POLL_S = 0.5
OWN_MS_MAX = 20.0
READY_S_MAX = 300.0
SYNC_S_MAX = 900.0
POLICIES = """
server: {listen: "${UNDERSTUDY_LISTEN}", admin: "${UNDERSTUDY_ADMIN}", workers: 1}
local: {knowledge: false}
routes:
  - name: retrieval
    match: {prefix: /}
    dialect: qdrant
    space: text-embedding-3-small
    mirror: {text: [title], settle_s: 0.2, points_per_s: 1000000}
    tiers:
      - {kind: upstream, name: qdrant, url: "${QDRANT}"}
      - {kind: local}
"""


class Stub:
    """A Qdrant of `count` points; each thousand have the same vectors."""

    def __init__(self, count: int) -> None:
        self.count = count
        vectors = np.random.default_rng(1).normal(size=(1000, DIMENSIONS)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self.vectors = [msgspec.Raw(msgspec.json.encode(vector.round(6).tolist())) for vector in vectors]
        self.written: dict[int, dict[str, Any]] = {}

    def app(self) -> web.Application:
        """Its routes."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_get("/collections", self.collections)
        app.router.add_get("/collections/{name}", self.described)
        app.router.add_post("/collections/{name}/points/scroll", self.scroll)
        app.router.add_post("/collections/{name}/points/count", self.counted)
        app.router.add_post("/collections/{name}/points", self.fetch)
        app.router.add_put("/collections/{name}/points", self.upsert)
        return app

    async def collections(self, _request: web.Request) -> web.Response:
        return _said({"collections": [{"name": NAME}]})

    async def described(self, _request: web.Request) -> web.Response:
        params = {"vectors": {"size": DIMENSIONS, "distance": "Cosine"}}
        return _said({"status": "green", "points_count": self._total, "config": {"params": params}})

    async def counted(self, _request: web.Request) -> web.Response:
        return _said({"count": self._total})

    async def scroll(self, request: web.Request) -> web.Response:
        asked = await request.json()
        start = asked.get("offset") or 0
        end = min(start + asked["limit"], self._total)
        points = [self._point(number) for number in range(start, end)]
        return _said({"points": points, "next_page_offset": end if end < self._total else None})

    async def fetch(self, request: web.Request) -> web.Response:
        asked = (await request.json())["ids"]
        return _said([self._point(each) for each in asked if each < self._total])

    async def upsert(self, request: web.Request) -> web.Response:
        for each in (await request.json())["points"]:
            self.written[each["id"]] = each
        return _said({"operation_id": 1, "status": "completed"})

    @property
    def _total(self) -> int:
        return max(self.count, *(each + 1 for each in self.written)) if self.written else self.count

    def _point(self, number: int) -> dict[str, Any]:
        if (written := self.written.get(number)) is not None:
            return written
        vector = self.vectors[number % len(self.vectors)]
        return {"id": number, "vector": vector, "payload": {"title": f"Number {number}"}}


def _said(result: Any) -> web.Response:
    body = msgspec.json.encode({"result": result, "status": "ok", "time": 0.0})
    return web.Response(body=body, content_type="application/json")


def serve(count: int, told: Connection) -> None:
    """Serve the stub until killed; its port is told."""

    async def main() -> None:
        runner = web.AppRunner(Stub(count).app(), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        told.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(main())


@dataclass
class Seen:
    """What was seen twice a second: the loop's worst lag, the copy's staleness, and the writes that waited."""

    lag_s: list[float] = field(default_factory=list[float])
    staleness_s: list[float] = field(default_factory=list[float])
    waiting: list[float] = field(default_factory=list[float])
    state: str = ""

    def look(self, sidecar: Sidecar) -> None:
        """Look once, at `/metrics`."""
        with urllib.request.urlopen(sidecar.admin_url + "/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        for line in lines:
            name, _, value = line.rpartition(" ")
            if name == "understudy_loop_lag_seconds":
                self.lag_s.append(float(value))
            elif name.startswith("understudy_mirror_staleness_seconds{"):
                self.staleness_s.append(float(value))
            elif name.startswith("understudy_mirror_waiting{"):
                self.waiting.append(float(value))
            elif name.startswith("understudy_mirror_state{") and float(value):
                self.state = name.partition('state="')[2].partition('"')[0]


async def synced(sidecar: Sidecar) -> Seen:
    """Look until the copy is whole."""
    seen, until = Seen(), time.monotonic() + SYNC_S_MAX
    while seen.state != "whole":
        if time.monotonic() > until:
            raise SystemExit(f"not whole after {SYNC_S_MAX:g} s: {seen.state or 'no copy'}")
        await asyncio.sleep(POLL_S)
        await asyncio.to_thread(seen.look, sidecar)
    return seen


async def written_to(sidecar: Sidecar, per_s: int, seconds: float) -> tuple[Seen, int]:
    """Write at that rate, one point at a time over those there are; what was seen, how many were answered."""
    loop = asyncio.get_running_loop()
    seen, answered = Seen(), 0
    vector = [1.0] + [0.0] * (DIMENSIONS - 1)
    # open loop: a write is sent when it is due, however the ones before it do
    under_way: set[asyncio.Task[None]] = set()

    async def write(session: aiohttp.ClientSession, number: int) -> None:
        nonlocal answered
        body: dict[str, Any] = {"points": [{"id": number, "vector": vector, "payload": {"title": f"Written {number}"}}]}
        async with session.put(f"{sidecar.url}/collections/{NAME}/points", json=body) as answer:
            await answer.read()
            answered += answer.status == 200

    async with aiohttp.ClientSession() as session:
        began, sent, looked = loop.time(), 0, 0.0
        while (now_s := loop.time() - began) < seconds:
            while sent < now_s * per_s:
                task = loop.create_task(write(session, sent))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                sent += 1
            if now_s - looked >= POLL_S:
                looked = now_s
                await asyncio.to_thread(seen.look, sidecar)
            await asyncio.sleep(0.005)
        await asyncio.gather(*under_way)
    return seen, answered


@dataclass(frozen=True)
class Memory:
    """What a process has in memory, in MiB: of its own, of files that are mapped, both together, and at most so far."""

    own: float
    files: float
    most: float

    @classmethod
    def of(cls, pid: int) -> Memory:
        """Now."""
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines if ":" in line)
        kib = [int(found[name].split()[0]) for name in ("RssAnon", "RssFile", "VmHWM")]
        return cls(*(each / 1024 for each in kib))

    def __str__(self) -> str:
        return f"{self.own + self.files:.0f} MiB ({self.own:.0f} of its own, {self.files:.0f} of files)"


def lateness_lines(what: str, seen: Sequence[Lateness]) -> list[str]:
    """The worst of them, and how much of that was not the machine's doing."""

    def worst(several: Iterable[float]) -> str:
        return ", ".join(f"{each:.0f}" for each in sorted(several, reverse=True)[:5]) or "0"

    late, own, idle = (
        worst(each.late_ms for each in seen),
        worst(each.own_ms for each in seen),
        worst(each.idle_ms for each in seen),
    )
    over = sum(each.own_ms > OWN_MS_MAX for each in seen)
    return [
        f"lag        while {what}: {late} ms by the clock",
        f"           of it work of ours {own} ms, {over} times over {OWN_MS_MAX:g}; a disk, or the lock, {idle} ms",
    ]


def measured(points: int, per_s: int, seconds: float) -> list[str]:
    """The figures, a line each."""
    ours, theirs = multiprocessing.Pipe()
    stub = multiprocessing.get_context("spawn").Process(target=serve, args=(points, theirs), daemon=True)
    stub.start()
    try:
        with TemporaryDirectory() as folder:
            policies = Path(folder) / "policies"
            policies.mkdir()
            (policies / "p.yaml").write_text(POLICIES)
            env = {"QDRANT": f"http://127.0.0.1:{ours.recv()}"}
            began = time.monotonic()
            told = Path(folder) / "lateness"
            sidecar = Sidecar(policies, Path(folder) / "state", env=env, ready_s_max=READY_S_MAX)
            # python -m understudy.proxy.cli run ...
            sidecar.command[1:3] = ["-m", "tests.bench.watched", str(told)]
            with sidecar:
                up_s = time.monotonic() - began
                before = len(read(told))
                asyncio.run(synced(sidecar))
                sync_s = time.monotonic() - began - up_s
                copied = Memory.of(sidecar.pid)
                between = len(read(told))
                tap, answered = asyncio.run(written_to(sidecar, per_s, seconds))
                written = Memory.of(sidecar.pid)
            lateness = read(told)
    finally:
        stub.terminate()
        stub.join()
    return [
        f"sync       {points} points of {DIMENSIONS} in {sync_s:.1f} s from ready, {points / sync_s:.0f}/s",
        f"memory     {copied} then; {written} after the writes, {written.most:.0f} MiB at most",
        *lateness_lines("copying", lateness[before:between]),
        f"tap        {answered} writes answered in {seconds:g} s ({per_s}/s were due)",
        f"staleness  {max(tap.staleness_s, default=0.0):.2f} s at most",
        f"waiting    {max(tap.waiting, default=0.0):.0f} writes at most",
        *lateness_lines("writing", lateness[between:]),
    ]


def main() -> None:
    """Measure, and say it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--writes-per-s", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    lines = measured(arguments.points, arguments.writes_per_s, arguments.seconds)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
