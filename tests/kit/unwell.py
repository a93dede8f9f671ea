"""A whole sidecar in this process, on the test's own loop, before services that can be made unwell.

async with Ward(tmp_path, POLICIES.format(...)) as ward:
    await ward.up.refuse()
    await ward.until(lambda: ward.word("vector_database") == "unhealthy")
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tests.http.house import Caller, Got, request
from understudy.policies.events import Event
from understudy.proxy.control.health import keep_healthy
from understudy.proxy.sidecar import Sidecar

STEP_S = 0.05
UNTIL_S_MAX = 900.0
SERVER = """
server:
  listen: 127.0.0.1:0
  admin: 127.0.0.1:0
  access_log: false
"""


class Ward:
    """The sidecar of these policies; a fresh state folder each time."""

    def __init__(self, folder: Path, routes: str, server: str = SERVER, environ: dict[str, str] | None = None) -> None:
        self.folder = folder / "policies"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write(routes, server)
        loop = asyncio.get_running_loop()
        self.sidecar = Sidecar(self.folder, folder / "state", environ or {}, clock=loop.time)
        self.events: list[Event] = []
        self.sidecar.events.subscribe(self.events.append)
        self._loop = loop
        self._keeping: asyncio.Task[None] | None = None
        self._caller: Caller | None = None

    def write(self, routes: str, server: str = SERVER) -> None:
        """Have these policies on disk."""
        (self.folder / "policies.yaml").write_text(server + routes)

    async def __aenter__(self) -> Self:
        await self.sidecar.start()
        self._keeping = self._loop.create_task(keep_healthy(self.sidecar, cpu=lambda: 0.0))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._caller is not None:
            self._caller.hang_up()
        assert self._keeping is not None
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)
        await self.sidecar.stop()
        for server in self.sidecar._servers:
            server.close()
        await asyncio.sleep(0.2)

    async def call(self, method: str = "GET", target: str = "/collections", body: bytes | None = None) -> Got:
        """What a caller gets, over the socket."""
        if self._caller is None or self._caller.reader.at_eof():
            port = self.sidecar.listeners[0].port
            self._caller = Caller(*await asyncio.open_connection("127.0.0.1", port))
        self._caller.say(request(method, target, body=body))
        return await self._caller.hears(method)

    def word(self, component: str) -> str:
        """What is thought of the one component whose name begins so."""
        (found,) = [one for one in self.sidecar.health.diagnoses if one.component.startswith(component)]
        return found.word

    def tier(self, route: str = "") -> str:
        """The service tier of the whole, or of a route."""
        health = self.sidecar.health
        return (health.routes[route] if route else health.whole).tier

    async def until(self, so: Callable[[], bool], within_s: float = UNTIL_S_MAX, *, step_s: float = STEP_S) -> float:
        """Wait until it is so, looking every `step_s`; how many seconds that took."""
        began = self._loop.time()
        while not so():
            await asyncio.sleep(step_s)
            assert self._loop.time() - began < within_s, self.sidecar.health.diagnoses
        return self._loop.time() - began
