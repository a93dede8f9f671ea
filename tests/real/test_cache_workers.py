"""Caches of several workers: each has its own, and a write that one of them sees is heard by all; a warm restart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.kit.processes import Sidecar, free_port

pytestmark = pytest.mark.real

POLICIES = """\
server:
  listen: ${{UNDERSTUDY_LISTEN}}
  admin: ${{UNDERSTUDY_ADMIN}}
  workers: {workers}
routes:
  - name: books
    match: {{prefix: /collections}}
    dialect: qdrant
    space: s
    cache: {{enabled: true, settle_s: 0}}
    tiers:
      - {{kind: upstream, name: db, url: "http://127.0.0.1:{port}"}}
"""
READ = "/collections/books/points/query"


class Database:
    """Answers a search with how often it has been written to."""

    def __init__(self) -> None:
        self.port = free_port()
        self.writes = 0
        self.reads = 0

    async def answer(self, request: web.Request) -> web.Response:
        if request.method == "PUT":
            self.writes += 1
        elif request.path == READ:
            # whether it is well it is asked, too
            self.reads += 1
        return web.json_response({"result": self.writes, "status": "ok", "time": 0.1})


async def story(folder: Path, workers: int, told: Callable[[Sidecar, Database], Awaitable[None]]) -> None:
    """A database, and a sidecar in front of it that the story is told of."""
    database = Database()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", database.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", database.port).start()
    policies = folder / "policies"
    await asyncio.to_thread(_write, policies, POLICIES.format(workers=workers, port=database.port))
    sidecar = Sidecar(policies, folder / "state")
    try:
        await asyncio.to_thread(sidecar.start)
        await told(sidecar, database)
    finally:
        await asyncio.to_thread(sidecar.stop)
        await runner.cleanup()


def _write(policies: Path, text: str) -> None:
    policies.mkdir()
    (policies / "p.yaml").write_text(text)


async def read(sidecar: Sidecar) -> tuple[int, str]:
    """What a search on a connection of its own is answered, and by whom."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(sidecar.url + READ, data=b'{"query": [1]}') as got,
    ):
        return json.loads(await got.read())["result"], got.headers["x-understudy-source"]


async def metrics(sidecar: Sidecar) -> str:
    async with aiohttp.ClientSession() as session, session.get(sidecar.admin_url + "/metrics") as got:
        return await got.text()


@pytest.mark.real_clock
async def test_T40_a_write_through_one_worker_is_heard_by_all(tmp_path: Path):
    async def told(sidecar: Sidecar, database: Database) -> None:
        while (await asyncio.gather(*(read(sidecar) for _ in range(12)))) != [(0, "cache")] * 12:
            pass
        reads = database.reads
        assert 1 <= reads <= 60
        async with aiohttp.ClientSession() as session, session.put(sidecar.url + "/collections/books/points") as got:
            assert got.status == 200
        # by way of the parent: milliseconds, and here as long as a busy machine likes. Of so many connections each
        # worker has some: of twelve now and then one had none, and the other had not heard
        while {seen for seen, _ in await asyncio.gather(*(read(sidecar) for _ in range(40)))} != {1}:
            pass
        after = await asyncio.gather(*(read(sidecar) for _ in range(40)))
        assert {seen for seen, _ in after} == {1}

    await story(tmp_path, 2, told)


@pytest.mark.real_clock
async def test_what_was_kept_is_there_after_a_restart(tmp_path: Path):
    async def told(sidecar: Sidecar, database: Database) -> None:
        assert [await read(sidecar) for _ in range(2)] == [(0, "db"), (0, "cache")]
        await asyncio.to_thread(sidecar.stop)
        await asyncio.to_thread(sidecar.start)
        # it is taken over while calls are already answered
        while 'understudy_cache_entries{route="books"} 1.0' not in await metrics(sidecar):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert await read(sidecar) == (0, "cache")
        assert database.reads == 1

    await story(tmp_path, 1, told)
