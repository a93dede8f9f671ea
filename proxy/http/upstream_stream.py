"""An upstream's answer as a stream: held until it is primed, then passed on at the pace of whoever reads it."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from understudy.policies.service import Sink, Stream

PRIMING_BYTES_MAX = 64 * 1024
"""How much of a stream is held while waiting for its first content; more than this is content enough."""
TAIL_BYTES = 4096
"""How much of a stream's end is kept to tell whether it was really at its end."""


class Reading(Protocol):
    """What an exchange asks of a dialect while an answer arrives (`understudy.proxy.dialects.base.Dialect` has it)."""

    def primed(self, held: bytes) -> str: ...
    def stream_complete(self, tail: bytes) -> bool: ...


class Source(Protocol):
    """What a stream asks of the connection it arrives on."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def abort(self) -> None: ...


class UpstreamStream(Stream):
    """An answer's body as it arrives on its connection."""

    __slots__ = (
        "_connection",
        "_held",
        "_held_bytes",
        "_paused",
        "_sink",
        "_tail",
        "_tail_bytes",
        "broken",
        "events",
        "reading",
    )

    def __init__(self, connection: Source, length: int | None, reading: Reading | None, *, events: bool) -> None:
        super().__init__(length)
        self._connection: Source | None = connection
        self._sink: Sink | None = None
        self._paused = False
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self.broken = ""
        self.reading = reading
        self.events = events

    def hold(self, piece: bytes) -> None:
        """Keep what arrived before anybody was there to take it."""
        if self.events:
            self._remember(piece)
        self._held.append(piece)

    def relay(self, sink: Sink) -> None:
        self._sink = sink
        if self.ended is not None and not self._held:
            self._tell(sink)
            return
        self._flush()
        if self._connection is not None and not self._paused:
            self._connection.resume()

    def pause(self) -> None:
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        self._paused = False
        self._flush()
        if self._connection is not None and not self._paused:
            self._connection.resume()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        self._held.clear()
        self._sink = None
        self.finish("left")

    def feed(self, piece: bytes) -> None:
        """A piece has arrived from the upstream."""
        if self.events:
            self._remember(piece)
        if self._sink is not None and not self._paused:
            self._sink.write(piece)
            return
        self._held.append(piece)
        self._held_bytes += len(piece)
        if self._held_bytes > PRIMING_BYTES_MAX and self._connection is not None:
            # nobody takes it yet: what we hold is bounded, the rest waits in the socket
            self._connection.pause()

    def _remember(self, piece: bytes) -> None:
        tail = self._tail
        tail.append(piece)
        self._tail_bytes += len(piece)
        while self._tail_bytes - len(tail[0]) >= TAIL_BYTES:
            self._tail_bytes -= len(tail.popleft())

    def over(self, broken: str) -> None:
        """The body is over: whole when `broken` is empty."""
        self._connection = None
        if not broken and self.events and self.reading and not self.reading.stream_complete(b"".join(self._tail)):
            broken = "truncated"
        self.broken = broken
        self.finish("cut" if broken else "done")
        if self._sink is not None and not self._held:
            self._tell(self._sink)

    def _flush(self) -> None:
        sink = self._sink
        if sink is None:
            return
        held, self._held, self._held_bytes = self._held, [], 0
        for at, piece in enumerate(held):
            if self._paused:
                self._held = held[at:]
                return
            sink.write(piece)
        if self.ended in ("done", "cut"):
            self._tell(sink)

    def _tell(self, sink: Sink) -> None:
        self._sink = None
        if self.ended == "done":
            sink.end()
        else:
            sink.cut(self.broken)
