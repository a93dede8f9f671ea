"""Accept from one's own listening sockets or from neighbours', and stop so that nobody who came is left standing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Collection, Sequence

BACKLOG = 1024
WAITING_MAX = BACKLOG
"""Connections taken out of a queue when it is left; more than the queue holds came after we had left it."""

Factory = Callable[[], asyncio.Protocol]


class Accepting:
    """The servers of this process: place by place, for each of the addresses a protocol factory."""

    def __init__(self, places: Sequence[Sequence[socket.socket]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._places = places
        self._ways: list[Factory] = []
        self._servers: dict[int, list[asyncio.Server]] = {}
        self._left = False

    def add(self, factory: Factory) -> None:
        """What becomes of connections to the next of the addresses."""
        self._ways.append(factory)

    async def cover(self, places: Collection[int]) -> None:
        """Accept from the sockets of these places, and of no other. The sockets themselves stay as they are."""
        for place in self._servers.keys() - set(places):
            for server in self._servers.pop(place):
                server.close()
        for place in places:
            if place in self._servers or self._left:
                continue
            servers = self._servers[place] = list[asyncio.Server]()
            for sock, factory in zip(self._places[place], self._ways, strict=True):
                servers.append(await self._loop.create_server(factory, sock=sock.dup(), backlog=BACKLOG))

    async def leave(self) -> None:
        """Accept whom waits already, then nobody. A socket that nobody else holds refuses from now on."""
        self._left = True
        for server in (server for servers in self._servers.values() for server in servers):
            server.close()
        self._servers.clear()
        for place in self._places:
            for sock, factory in zip(place, self._ways, strict=True):
                await accept_waiting(self._loop, sock, factory)
                sock.close()


async def accept_waiting(loop: asyncio.AbstractEventLoop, sock: socket.socket, factory: Factory) -> None:
    """Accept whoever waits in the queue of `sock`: closing it would reset them."""
    sock.setblocking(False)
    for _ in range(WAITING_MAX):
        try:
            connection, _ = sock.accept()
        except OSError:
            return
        with contextlib.suppress(OSError):
            await loop.connect_accepted_socket(factory, connection)
