"""Hand the listening sockets to the next process, so that a restart refuses nobody.

    next: connect --> running: sockets, admin socket, what the breakers said
    both accept from the same queues
    next: "ready" --> running: admin port closed, drained, gone         (or next dies: nothing has happened)

Descriptors are handed over rather than bound a second time: two groups of SO_REUSEPORT sockets would each have queues
of their own, and those waiting in one that closes are reset. The meeting place is an abstract unix socket named after
the address, which lives in the network namespace as the address does; only the same user is talked to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from understudy.policies.agreement import Said

READY = b"ready"
WAIT_S_MAX = 5.0
MESSAGE_BYTES_MAX = 1024 * 1024
RETRY_S = 0.2

log = logging.getLogger("understudy.workers")


class Deed(msgspec.Struct, frozen=True):
    """What comes with the sockets."""

    pid: int
    addresses: list[str]
    admin: str
    places: int
    said: list[tuple[str, str, str, Said]]
    pseudonym: str = ""


@dataclass(slots=True)
class Inherited:
    """What the running process has handed over; `line` is how it is told that we are ready."""

    deed: Deed
    places: list[list[socket.socket]]
    admin: socket.socket | None
    line: socket.socket

    def ready(self) -> None:
        """Have the other one drain and end. It may have gone already."""
        with contextlib.suppress(OSError):
            self.line.send(READY)

    def close(self) -> None:
        for sock in (*(sock for place in self.places for sock in place), self.admin, self.line):
            if sock is not None:
                sock.close()


def meeting_place(address: str) -> str:
    """The name of the abstract socket for a sidecar that listens on `address`."""
    return f"\0understudy:{address}"


def of_our_user(line: socket.socket) -> bool:
    """Whether the process at the other end runs as the same user."""
    _, uid, _ = struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return uid == os.getuid()


def inherit(addresses: Sequence[str], admin: str) -> Inherited | None:
    """The sockets of the process that listens on these very addresses now; None when there is none."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line.settimeout(WAIT_S_MAX)
    try:
        line.connect(meeting_place(addresses[0]))
        if not of_our_user(line):
            line.close()
            return None
        deed = msgspec.json.decode(line.recv(MESSAGE_BYTES_MAX), type=Deed)
        places = [_received(line, len(deed.addresses)) for _ in range(deed.places)]
        inherited = Inherited(deed, places, _received(line, 1)[0], line)
    except (OSError, msgspec.DecodeError) as error:
        line.close()
        if not isinstance(error, ConnectionRefusedError):
            log.warning("the process that listens on %s did not hand over: %s", addresses[0], error)
        return None
    if deed.addresses != list(addresses):
        log.warning("process %d listens on other addresses (%s)", deed.pid, ", ".join(deed.addresses))
        inherited.close()
        return None
    if deed.admin != admin and inherited.admin is not None:
        inherited.admin.close()
        inherited.admin = None
    return inherited


def _received(line: socket.socket, count: int) -> list[socket.socket]:
    _, numbers, _, _ = socket.recv_fds(line, 16, count)
    sockets = [socket.socket(fileno=number) for number in numbers]
    if len(sockets) != count:
        for sock in sockets:
            sock.close()
        raise OSError("sockets are missing")
    return sockets


@dataclass(slots=True)
class Estate:
    """What there is to hand over, as it is at the moment it is asked for."""

    addresses: list[str]
    admin_address: str
    places: list[list[socket.socket]]
    admin: socket.socket
    said: Callable[[], list[tuple[str, str, str, Said]]]
    gone: Callable[[], None]
    pseudonym: str = ""


class Handover:
    """Waits for the next process. `estate.gone` is called once that one has everything and is ready."""

    def __init__(self, estate: Estate) -> None:
        self._estate = estate
        self._loop = asyncio.get_running_loop()
        self._door: socket.socket | None = None
        self._lines: set[socket.socket] = set()
        self._retry: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Be there for the next one; as soon as the one before us has left the meeting place."""
        door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        door.setblocking(False)
        try:
            door.bind(meeting_place(self._estate.addresses[0]))
        except OSError:
            door.close()
            self._retry = self._loop.call_later(RETRY_S, self.start)
            return
        door.listen(1)
        self._door = door
        self._loop.add_reader(door.fileno(), self._come_in)

    def stop(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        if self._door is not None:
            self._loop.remove_reader(self._door.fileno())
            self._door.close()
            self._door = None
        for line in list(self._lines):
            self._hang_up(line)

    def _come_in(self) -> None:
        assert self._door is not None
        try:
            line, _ = self._door.accept()
        except OSError:
            return
        if not of_our_user(line):
            line.close()
            return
        try:
            self._hand_over(line)
        except OSError as error:
            log.warning("the next process could not be given the sockets: %s", error)
            line.close()
            return
        line.setblocking(False)
        self._lines.add(line)
        self._loop.add_reader(line.fileno(), self._hear, line)

    def _hand_over(self, line: socket.socket) -> None:
        estate = self._estate
        line.settimeout(WAIT_S_MAX)
        said = estate.said()
        deed = Deed(os.getpid(), estate.addresses, estate.admin_address, len(estate.places), said, estate.pseudonym)
        line.send(msgspec.json.encode(deed))
        for place in estate.places:
            socket.send_fds(line, [b"place"], [sock.fileno() for sock in place])
        socket.send_fds(line, [b"admin"], [estate.admin.fileno()])

    def _hear(self, line: socket.socket) -> None:
        try:
            heard = line.recv(16)
        except OSError:
            heard = b""
        self._hang_up(line)
        if heard == READY:
            log.info("the next process is ready and has the sockets")
            self._estate.gone()

    def _hang_up(self, line: socket.socket) -> None:
        self._lines.discard(line)
        self._loop.remove_reader(line.fileno())
        line.close()
