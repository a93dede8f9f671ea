"""An upstream's answer as a stream: held until it is primed, then passed on at the pace of whoever reads it."""

from __future__ import annotations

from typing import Protocol

from understudy.policies.service import Sink, Stream
from understudy.policies.streaming import Watch, content_among

PRIMING_BYTES_MAX = 64 * 1024
"""How much of a stream is held while waiting for its first content; more than this is content enough."""
TAIL_BYTES = 4096
"""How much of a stream's end is kept to tell whether it was really at its end."""


class Reading(Protocol):
    """What an exchange asks of a dialect while an answer arrives (`understudy.proxy.dialects.base.Dialect` has it)."""

    def primed(self, held: bytes) -> str: ...
    def stream_complete(self, tail: bytes) -> bool: ...
    def stream_failed(self, tail: bytes) -> bool: ...


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
        "_is_told",
        "_looked_to",
        "_paused",
        "_sink",
        "_tail",
        "_tail_from",
        "broken",
        "bytes_come",
        "events",
        "reading",
        "watch_on",
    )

    def __init__(self, connection: Source, length: int | None, reading: Reading | None, *, events: bool) -> None:
        super().__init__(length)
        self._connection: Source | None = connection
        self._sink: Sink | None = None
        self._paused = False
        self._held: list[bytes] = []
        self._held_bytes = 0
        # a list, which is a few pieces long: compiled, it is quicker than a deque
        self._tail: list[bytes] = []
        self._tail_from = 0
        self.bytes_come = 0
        self.broken = ""
        self._is_told = False
        self.reading = reading
        self.events = events
        self.watch_on: Watch | None = None
        self._looked_to = b""

    @property
    def held(self) -> bytes:
        """What has arrived and nobody has taken."""
        return b"".join(self._held)

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
        self.bytes_come += len(piece)
        while self.bytes_come - self._tail_from - len(tail[0]) >= TAIL_BYTES:
            self._tail_from += len(tail.pop(0))

    @property
    def tail(self) -> bytes:
        """The last of what has come of a stream of events, of about TAIL_BYTES; `bytes_come` is how much has."""
        return b"".join(self._tail)

    def look(self, now: float, heard_at: float, *, listening: bool) -> float:
        """When to look again, on the clocks it is held to; it was last heard at `heard_at`. Raises Failed.

        While nobody is `listening`, since a reader is slow, there is no silence of the upstream's.
        """
        assert self.watch_on is not None
        has_said_more = self._has_said_more()
        return self.watch_on.look(now, now if not listening else heard_at if has_said_more else None)

    def _has_said_more(self) -> bool:
        """Whether there is content among what has come since the last look, as far as its end is remembered."""
        tail = self._tail
        to, self._looked_to = self._looked_to, tail[-1] if tail else b""
        if self.reading is None:
            return bool(tail) and to is not tail[-1]
        fresh_at = 0
        # one byte is the same object wherever it comes from: it marks nothing
        if len(to) > 1:
            fresh_at = next((at + 1 for at in range(len(tail) - 1, -1, -1) if tail[at] is to), 0)
        if fresh_at == len(tail):
            return False
        return content_among(self.reading, b"".join(tail[:fresh_at]), b"".join(tail[fresh_at:]))

    def over(self, broken: str) -> None:
        """The body is over: whole when `broken` is empty."""
        self._connection = None
        if not broken and self.events and self.reading:
            tail = b"".join(self._tail)
            if not self.reading.stream_complete(tail):
                broken = "truncated"
            elif self.reading.stream_failed(tail):
                # its reader is told already, by the upstream itself: nothing is added, and it is a failure all the same
                broken, self._is_told = "error_in_stream", True
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
        if self.ended == "done" or self._is_told:
            sink.end()
        else:
            sink.cut(self.broken)
