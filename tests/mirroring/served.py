"""A fake database on a port, and its reader: what is asked of it is kept, and can be answered in its place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from aiohttp import web

from understudy.policies.pace import Pace
from understudy.proxy.mirroring.line import Line
from understudy.proxy.mirroring.source import Described, Page, Source
from understudy.proxy.mirroring.sources import source_of
from understudy.proxy.settings.settings import UpstreamTier


class Crash(BaseException):
    """As if the process had ended here."""


def numbers(seed: int, dimensions: int = 8) -> list[float]:
    return [float(x) for x in np.random.default_rng(seed).normal(size=dimensions).astype(np.float32)]


class Served:
    """`app`, which speaks `dialect`; `before` sees what the reader asks, and may answer in its place."""

    def __init__(self, dialect: str, app: web.Application) -> None:
        self.dialect = dialect
        self.before: Callable[[web.Request], Any] = lambda _request: None
        self.asked: list[str] = []
        self.url = ""
        app.middlewares.append(self._heard())
        self._runner = web.AppRunner(app)

    @asynccontextmanager
    async def source(self) -> AsyncIterator[Source]:
        """Its reader."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        tier = UpstreamTier(name="database", url=self.url)
        source = source_of(self.dialect, Line(tier, Pace(1e9), dice=lambda: 0.5))
        try:
            yield source
        finally:
            await source.close()
            await self._runner.cleanup()

    def _heard(self) -> Any:
        @web.middleware
        async def heard(request: web.Request, handler: Any) -> web.StreamResponse:
            self.asked.append(f"{request.method} {request.path_qs}")
            said = self.before(request)
            if asyncio.iscoroutine(said):
                said = await said
            return said if isinstance(said, web.StreamResponse) else await handler(request)

        return heard


class Mortal:
    """A source as a walk sees it, which ends with the process before one page."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.collections, self.described, self.fetch = source.collections, source.described, source.fetch
        self.dies_before = 0
        self._pages = 0

    async def page(self, of: Described, cursor: str, limit: int) -> Page:
        self._pages += 1
        if self._pages == self.dies_before:
            raise Crash
        return await self._source.page(of, cursor, limit)
