"""As much of Redis as replicas need to read each other's pages: one connection, a few commands, everything bounded.

The client that the cache uses reads whatever a server sends: in TIMEOUT_S a flood on loopback made it take 65 MiB, and
its import 12 MiB in a process that has no cache of its own. This one takes REPLY_BYTES_MAX and TIMEOUT_S, whatever it
is: a server that drips, floods or says nonsense ends the connection, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

TIMEOUT_S = 0.5
"""How long connecting, or one round of commands, may take."""
REPLY_BYTES_MAX = 4 * 1024 * 1024
ITEMS_MAX = 4096

Reply = bytes | int | None | list["Reply"]


class RedisFault(Exception):
    """The server refused, or does not speak Redis. Its words are not repeated: they may hold what was sent."""


class Address(NamedTuple):
    """Where a Redis is, and how it is entered."""

    host: str
    port: int
    db: int
    username: str | None
    password: str | None
    tls: bool

    @classmethod
    def read(cls, url: str) -> Address | None:
        """What redis[s]://[user:password@]host[:port][/db] names; None for other servers. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss"):
            return None
        username, password = (unquote(each) if each else None for each in (parts.username, parts.password))
        db = int(parts.path.strip("/") or 0)
        return cls(parts.hostname or "127.0.0.1", parts.port or 6379, db, username, password, parts.scheme == "rediss")


class RedisLine:
    """One connection, made when it is needed. Everything raises OSError, TimeoutError or RedisFault when it can't be
    done, and has hung up then."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._left_bytes = 0

    async def ask(self, *commands: tuple[bytes, ...]) -> list[Reply]:
        """Send the commands at once; their replies."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reader, writer = self._streams or await self._connected()
                return await self._asked(reader, writer, commands)
        except BaseException:
            # an answer that comes now would be taken for the next one's
            self.close()
            raise

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        at = self._address
        context = ssl.create_default_context() if at.tls else None
        self._streams = await asyncio.open_connection(at.host, at.port, ssl=context, limit=64 * 1024)
        entering: list[tuple[bytes, ...]] = []
        if at.password is not None:
            name = () if at.username is None else (at.username.encode(),)
            entering.append((b"AUTH", *name, at.password.encode()))
        if at.db:
            entering.append((b"SELECT", b"%d" % at.db))
        if entering:
            await self._asked(*self._streams, tuple(entering))
        return self._streams

    async def _asked(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, commands: tuple[tuple[bytes, ...], ...]
    ) -> list[Reply]:
        writer.write(b"".join(map(_encoded, commands)))
        await writer.drain()
        self._left_bytes = REPLY_BYTES_MAX
        return [await self._reply(reader, 0) for _ in commands]

    async def _reply(self, reader: asyncio.StreamReader, depth: int) -> Reply:
        try:
            line = await reader.readuntil(b"\r\n")
            self._spend(len(line))
            kind, text = line[:1], line[1:-2]
            if kind == b"+":
                return text
            if kind == b":":
                return int(text)
            if kind == b"$":
                size = int(text)
                return None if size < 0 else await self._bulk(reader, size)
            if kind == b"*" and depth < 2:
                count = int(text)
                if count > ITEMS_MAX:
                    raise RedisFault("too long an answer")
                return None if count < 0 else [await self._reply(reader, depth + 1) for _ in range(count)]
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise RedisFault(f"no answer of Redis: {type(error).__name__}") from None
        raise RedisFault("refused" if kind == b"-" else "no answer of Redis")

    async def _bulk(self, reader: asyncio.StreamReader, size: int) -> bytes:
        self._spend(size + 2)
        data = await reader.readexactly(size + 2)
        if data[-2:] != b"\r\n":
            raise RedisFault("no answer of Redis")
        return data[:-2]

    def _spend(self, count: int) -> None:
        self._left_bytes -= count
        if self._left_bytes < 0:
            raise RedisFault("too long an answer")

    def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._streams[1].transport.abort()
            self._streams = None


def _encoded(command: tuple[bytes, ...]) -> bytes:
    return b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in command)
