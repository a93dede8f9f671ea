"""Read a chunked body (RFC 9112 section 7.1), strictly: what is not exactly one is refused, not repaired.

    SIZE --size line--> DATA --all of it--> AFTER --CRLF--> SIZE ... --size 0--> TRAILER --empty line--> over

Chunk extensions and trailers mean nothing to a proxy and are dropped, but they are bounded and must be well formed.
Requests are read so. Answers are read by llhttp, but for what most pieces of a stream are: whole chunks, without
extensions, one or more.
"""

from __future__ import annotations

import re
from typing import Literal, Protocol

State = Literal["size", "data", "after", "trailer", "over"]
LINE_BYTES_MAX = 1024
TRAILER_BYTES_MAX = 8 * 1024
SIZE_DIGITS_MAX = 8
"""Of a chunk that is read without a parser."""
SIZES_REMEMBERED_MAX = 1024
_SIZE_ALONE = re.compile(rb"[0-9A-Fa-f]{1,%d}" % SIZE_DIGITS_MAX)
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t\x20-\x7e\x80-\xff]*")
NO_TRAILERS = frozenset((b"content-length", b"transfer-encoding", b"host", b"trailer", b"content-encoding"))
"""What must not come behind a body (RFC 9110 section 6.5.1), since it would have changed how the body was read."""


class BadChunks(ValueError):
    """The body is not what chunked coding allows."""


class ChunkedBody:
    """A body being read. `feed` gives what of the data is content; `over` is set when the body has ended."""

    __slots__ = ("_left", "_line", "_state", "_trailer_bytes")

    def __init__(self) -> None:
        self._state: State = "size"
        self._left = 0
        self._line = b""
        self._trailer_bytes = 0

    @property
    def over(self) -> bool:
        return self._state == "over"

    def feed(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """Read `data` from `at`; content is appended to `pieces`. Returns where reading stopped: the end of the data,
        or of the body. Raises BadChunks."""
        while at < len(data) and self._state != "over":
            if self._state == "data":
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = "after"
                continue
            line, at = self._take_line(data, at)
            if line is not None:
                self._read(line)
        return at

    def _take_line(self, data: bytes, at: int) -> tuple[bytes | None, int]:
        end = data.find(b"\n", at)
        if end < 0:
            self._line += data[at:]
            end = len(data) - 1
        else:
            self._line += data[at : end + 1]
        if len(self._line) > LINE_BYTES_MAX:
            raise BadChunks("a line between chunks is too long")
        if not self._line.endswith(b"\n"):
            if b"\r" in self._line[:-1]:
                raise BadChunks("a bare CR between chunks")
            return None, end + 1
        line, self._line = self._line, b""
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            raise BadChunks("a line between chunks does not end in CRLF")
        return line[:-2], end + 1

    def _read(self, line: bytes) -> None:
        if self._state == "after":
            if line:
                raise BadChunks("a chunk is longer than it said")
            self._state = "size"
        elif self._state == "size":
            size = _SIZE.fullmatch(line)
            if size is None:
                raise BadChunks("a chunk's size can't be read")
            self._left = int(size[1], 16)
            self._state = "data" if self._left else "trailer"
        else:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > TRAILER_BYTES_MAX:
                raise BadChunks("the trailers are too long")
            if not line:
                self._state = "over"
            else:
                trailer = _TRAILER.fullmatch(line)
                if trailer is None or trailer[1].lower() in NO_TRAILERS:
                    raise BadChunks("a trailer can't be read, or must not be one")


class Taker(Protocol):
    """Who is given what chunks hold."""

    def feed(self, piece: bytes) -> None: ...


def feed_whole_chunks(data: bytes, taker: Taker) -> int:
    """Give `taker` what is in the chunks that `data` begins with, as far as they are whole, plain and not the last; how
    many bytes of `data` they were. What stands there instead is for the parser to judge, which is between two chunks.
    """
    at = 0
    while at < len(data):
        line_end = data.find(b"\r\n", at, at + SIZE_DIGITS_MAX + 2)
        if line_end < 0:
            break
        size = _size_alone(data[at:line_end])
        begin = line_end + 2
        end = begin + size
        if not size or not data.startswith(b"\r\n", end):
            break
        at = end + 2
        taker.feed(data[begin:end])
    return at


def _size_alone(line: bytes) -> int:
    """What a line says of a chunk's length, or 0 for what is no number alone."""
    size = _SIZES.get(line)
    if size is None:
        if not _SIZE_ALONE.fullmatch(line):
            return 0
        size = int(line, 16)
        if len(_SIZES) < SIZES_REMEMBERED_MAX:
            _SIZES[line] = size
    return size


_SIZES: dict[bytes, int] = {}
