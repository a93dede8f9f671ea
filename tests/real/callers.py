"""Callers that never stop asking: keep-alive connections that are opened again when they were closed in good order.

A call is lost when its caller has begun to send it and gets no whole answer, or when it can't connect. A connection
that is seen closed before anything was sent on it loses nothing: the call goes out on the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Self

BODY = b'{"messages": []}'
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: sidecar\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
ANSWER_S_MAX = 60.0


class Lost(Exception):
    """A call came to nothing; the words say how."""


class Connection:
    """One keep-alive connection of one caller."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.opened = 0

    async def call(self) -> tuple[int, dict[str, str]]:
        """The answer's status and headers. Raises Lost."""
        reader, writer = await self._ready()
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                writer.write(REQUEST)
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:-2])}
                await reader.readexactly(int(headers["content-length"]))
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            self.close()
            raise Lost(f"sent, then {type(error).__name__}") from None
        if headers.get("connection") == "close":
            self.close()
        return int(lines[0].split()[1]), headers

    async def _ready(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        # what the loop has not read yet would look like silence
        await asyncio.sleep(0)
        if self._streams is not None and (self._streams[0].at_eof() or self._streams[0].exception()):
            self.close()
        if self._streams is None:
            try:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError as error:
                raise Lost(f"not connected: {type(error).__name__}") from None
            self.opened += 1
        return self._streams

    def close(self) -> None:
        """Hang up; the next call opens a new connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Callers:
    """`count` callers that ask one call after another until they are told to stop."""

    def __init__(self, port: int, count: int = 16, *, pause_s: float = 0.002) -> None:
        self.answered = 0
        self.lost: Counter[str] = Counter()
        self._pause_s = pause_s
        self._connections = [Connection(port) for _ in range(count)]
        self._stop = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def opened(self) -> int:
        """Connections opened so far."""
        return sum(one.opened for one in self._connections)

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.ensure_future(self._ask(one)) for one in self._connections]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def _ask(self, connection: Connection) -> None:
        with contextlib.closing(connection):
            while not self._stop:
                try:
                    status, _ = await connection.call()
                    if status == 200:
                        self.answered += 1
                    else:
                        self.lost[f"answered with {status}"] += 1
                except Lost as lost:
                    self.lost[str(lost)] += 1
                await asyncio.sleep(self._pause_s)
