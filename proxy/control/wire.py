"""What parent and workers say to each other: length-prefixed messages on a socket pair, off every call's path."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from typing import Any

import msgspec

from understudy.policies.agreement import Said
from understudy.policies.events import Event
from understudy.policies.forcing import Forced
from understudy.policies.forecast import Reading
from understudy.policies.health import Diagnosis
from understudy.policies.questions import Told as QuestionTold
from understudy.policies.tiering import Pin
from understudy.proxy.control.hinting import Opening

MESSAGE_BYTES_MAX = 64 * 1024 * 1024
UNSENT_BYTES_MAX = 2 * MESSAGE_BYTES_MAX
"""What waits for a process that does not read; beyond it, it is taken for gone."""

log = logging.getLogger("understudy.workers")

Sample = tuple[str, dict[str, str], float]
Family = tuple[str, str, str, list[Sample]]
"""A metric's name, type and help text, and its samples: name, labels, value."""


class Report(msgspec.Struct, tag=True, frozen=True):
    """A worker on itself: `number` of the Ask it answers, 0 when nobody asked."""

    number: int
    started: bool
    unready_because: str
    lag_s: float
    families: list[Family]
    status: dict[str, Any]
    readings: list[Reading] = []


class Sayings(msgspec.Struct, tag=True, frozen=True):
    """What was said of endpoints: route, tier, endpoint, Said. From a worker, of its own; to one, of the others'."""

    said: list[tuple[str, str, str, Said]]


class Ask(msgspec.Struct, tag=True, frozen=True):
    """To a worker: report now."""

    number: int


class Cover(msgspec.Struct, tag=True, frozen=True):
    """To a worker: accept from the sockets of these places, and of no other."""

    places: list[int]


class Written(msgspec.Struct, tag=True, frozen=True):
    """Collections that a write has passed to: from the worker that saw it, and on to all the others."""

    names: list[str]


class Step(msgspec.Struct, tag=True, frozen=True):
    """A rung of a component's ladder that every worker climbs for itself: from the one that recovers, to the others."""

    component: str
    rung: str


class Fell(msgspec.Struct, tag=True, frozen=True):
    """A fallback has answered a leg of a question: from the worker whose it was, and on to all the others."""

    told: list[QuestionTold]


class Force(msgspec.Struct, tag=True, frozen=True):
    """To a worker: what an operator has said of breakers."""

    said: list[Forced]


class Happened(msgspec.Struct, tag=True, frozen=True):
    """What happened in a worker, to its parent."""

    events: list[Event]


class Diagnosed(msgspec.Struct, tag=True, frozen=True):
    """What is thought of components: from the worker at place 0, and on to all the others."""

    told: list[Diagnosis]


class Pinned(msgspec.Struct, tag=True, frozen=True):
    """To a worker: what an operator has said of service tiers."""

    said: list[Pin]


class Hinted(msgspec.Struct, tag=True, frozen=True):
    """To a worker: breakers that other replicas have opened, and services that they find ill."""

    hints: list[Opening]
    ill: list[str] = []


Message = Diagnosed | Pinned | Hinted | Step | Happened | Written | Report | Sayings | Ask | Cover | Force | Fell


class Channel:
    """One end of the socket pair."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Message)

    @classmethod
    async def on(cls, sock: socket.socket) -> Channel:
        """The channel on this end of the pair, which it owns from now on."""
        sock.setblocking(False)
        return cls(*await asyncio.open_connection(sock=sock))

    def send(self, message: Message) -> None:
        """Send, without waiting; to nobody when the other end is gone or does not read."""
        transport = self._writer.transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            transport.abort()
            return
        body = self._encoder.encode(message)
        if len(body) > MESSAGE_BYTES_MAX:
            log.error("a %s of %d bytes is too long to be sent", type(message).__name__, len(body))
            return
        self._writer.write(struct.pack("!I", len(body)) + body)

    async def receive(self) -> Message | None:
        """The next message, or None when the other end is gone."""
        try:
            (length,) = struct.unpack("!I", await self._reader.readexactly(4))
            if length > MESSAGE_BYTES_MAX:
                return None
            return self._decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError):
            return None

    async def close(self) -> None:
        """Close once everything is sent, or the other end is gone."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
