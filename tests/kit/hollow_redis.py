"""A Redis that knows nothing and answers everything, and can be made to swallow what it is told: a black hole.

async with HollowRedis() as redis:
    url = redis.url
    redis.black_hole()             # whoever is connected, or connects, is taken and never answered
    redis.black_hole(old=True)     # only those who are connected by now
    redis.come_back()              # from now on; what was swallowed stays unanswered
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self


class HollowRedis:
    """On a free loopback port, on the running loop. `connections` counts those there ever were."""

    def __init__(self) -> None:
        self.connections = 0
        self.asked = 0
        """Commands that were answered."""
        self._hung_below = 0
        self._swallows = False
        self._over = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._over.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def black_hole(self, *, old: bool = False) -> None:
        """Answer nobody any more; `old`: nobody who is connected by now."""
        self._hung_below = self.connections
        self._swallows = not old

    def come_back(self) -> None:
        """Answer again, whatever is said from now on."""
        self._hung_below, self._swallows = 0, False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        number, self.connections = self.connections, self.connections + 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                words = [await _bulk(reader) for _ in range(int((await reader.readuntil(b"\r\n"))[1:]))]
                if self._swallows or number < self._hung_below:
                    await self._over.wait()
                    break
                self.asked += 1
                nothing = b"*%d\r\n" % (len(words) - 1) + b"_\r\n" * (len(words) - 1)
                says = {b"HELLO": b"%1\r\n+proto\r\n:3\r\n", b"MGET": nothing}
                writer.write(says.get(words[0].upper(), b"+OK\r\n"))
                await writer.drain()
        writer.close()


async def _bulk(reader: asyncio.StreamReader) -> bytes:
    length = int((await reader.readuntil(b"\r\n"))[1:])
    return (await reader.readexactly(length + 2))[:-2]
