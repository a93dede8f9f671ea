"""Unix sockets, to listen on and to call: on one host they need no port, and the file says who may connect."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from pathlib import Path

from understudy.proxy.http.pool import Pool

BACKLOG = 1024
OURS_ALONE = 0o177
"""What is taken from the rights of the file: it is there for our own user, and nobody else."""


class UnixPool(Pool):
    """Connections to an upstream that listens on the socket `path`, whatever host its URL names."""

    path = ""

    async def _attempt(self, address: str) -> asyncio.Transport:  # noqa: ARG002 (the file is the address)
        transport, _ = await self.loop.create_unix_connection(self._protocol, self.path)
        return transport


class UnixPlace:
    """A socket file that we listen on. Raises OSError where it can't be, or somebody listens there already."""

    __slots__ = ("_file", "path", "socket")

    def __init__(self, path: str) -> None:
        self.path = path
        _clear(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(OURS_ALONE)
        try:
            self.socket.bind(path)
            self.socket.listen(BACKLOG)
            self.socket.setblocking(False)
            self._file = _identity(Path(path).stat())
        except OSError:
            self.socket.close()
            raise
        finally:
            os.umask(before)

    def remove(self) -> None:
        """Take the file away, unless it is another's by now."""
        try:
            if _identity(Path(self.path).lstat()) == self._file:
                Path(self.path).unlink()
        except OSError:
            return


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    # a number that came free is given to the next file
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _clear(path: str) -> None:
    """Remove a socket that nobody listens on any more. Raises OSError for one in use, and for any other file."""
    try:
        found = Path(path).lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "there is a file, and it is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            # whoever made it is gone without having cleaned up
            Path(path).unlink()
            return
    raise OSError(errno.EADDRINUSE, "somebody listens there")
