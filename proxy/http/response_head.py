"""An upstream's answer head: what frames the body is taken out, the other lines go on to the caller as they came.

Most lines of an answer's head are the same in every answer, so what a line means is remembered by the line.
"""

from __future__ import annotations

import re
from enum import Enum

from understudy.policies.service import Failed
from understudy.proxy.http.heads import HOP_BY_HOP, OURS

LINES_REMEMBERED_MAX = 4096
PLAIN_BYTES_MAX = 16 * 1024
"""What a plain head is at most; a longer one is left to the parser, and to its bound."""
LINE_REMEMBERED_BYTES_MAX = 128
HEADS_REMEMBERED_MAX = 64
HEAD_REMEMBERED_BYTES_MAX = 2048
STREAM_TYPES = (b"text/event-stream", b"application/x-ndjson")
STATUS_LINES_REMEMBERED_MAX = 256
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] [1-9][0-9]{2}(?: [\t\x20-\x7e\x80-\xff]*)?")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PLAIN = re.compile(
    rb"HTTP/1\.1 (?!204)2[0-9]{2}(?: [\t\x20-\x7e\x80-\xff]*)?\r\n"
    rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n"
)
_LENGTH = re.compile(rb"[ \t]*[0-9]{1,20}[ \t]*")


class Means(Enum):
    """What a line of an answer's head is to us."""

    PASSED = "passed on as it is"
    EVENTS = "passed on; the body is a stream of events"
    PACKED = "passed on; the body can't be read without unpacking it"
    ID = "passed on under another name, since x-request-id is the one that stands in our log"
    LENGTH = "says where the body ends"
    CODING = "says that the body is chunked"
    OPTIONS = "names other lines that are not passed on"
    CLOSE = "says that the connection ends with this answer"
    DROPPED = "speaks of one hop only, or claims what only we may say"


# an enum's members cost a look-up of their own, and a head has a dozen lines
_PASSED, _DROPPED = Means.PASSED, Means.DROPPED


class ResponseHead:
    """What an answer's head says. `block` is the header lines that go on, each with its line end.

    `raw` is the whole of an ordinary head (see `whole_head`), to be known again by; it `is_plain` if it says how long
    its body is, which is no stream, and that the connection stays.
    """

    __slots__ = ("block", "events", "framed", "is_last", "is_plain", "length", "packed", "raw", "status")

    def __init__(self, raw: bytes) -> None:
        """Read a whole head, status line and empty line included. Raises Failed for what is none."""
        self.length: int | None = None
        self.framed = False
        self.events = False
        self.packed = False
        self.is_last = False
        self.is_plain = False
        self.raw = b""
        self.status = 0
        self.block = self._read_lines(raw)

    def _read_lines(self, raw: bytes) -> bytes:
        """Take from the head what concerns us. Returns the lines that go on."""
        passed: list[bytes] = []
        options: set[bytes] = set()
        first, *lines = raw[:-4].split(b"\r\n")
        if first not in _SOUND:
            check_status_line(first)
        for line in lines:
            means = _REMEMBERED.get(line) or _meaning(line)
            if means is _PASSED:
                passed.append(line)
            elif means is not _DROPPED:
                self._take(line, means, passed, options)
        if self.framed and self.length is None and first.startswith(b"HTTP/1.0"):
            # it can't know what chunks are (RFC 9112 section 6.1): somebody between us passed on what it did not read
            raise Failed("garbage", "HTTP/1.0 has no Transfer-Encoding")
        if options:
            passed = [line for line in passed if line.partition(b":")[0].lower() not in options]
        passed.append(b"")
        return b"\r\n".join(passed)

    def _take(self, line: bytes, means: Means, passed: list[bytes], options: set[bytes]) -> None:
        name, _, value = line.partition(b":")
        if self.framed and means in (Means.LENGTH, Means.CODING):
            raise Failed("garbage", "the answer says twice where it ends")
        if means is Means.LENGTH:
            if not _LENGTH.fullmatch(value):
                raise Failed("garbage", "the answer's length is no number")
            self.length = int(value)
            self.framed = True
        elif means is Means.CODING:
            self.framed = True
        elif means is Means.CLOSE:
            self.is_last = True
        elif means is Means.OPTIONS:
            self.is_last = True
            options.update(option.strip().lower() for option in value.split(b","))
        elif means is Means.ID:
            passed.append(b"x-upstream-" + name[2:] + b":" + value)
        else:
            self.events = self.events or means is Means.EVENTS
            self.packed = self.packed or means is Means.PACKED
            passed.append(line)


def whole_head(data: bytes) -> ResponseHead | None:
    """The head that `data` begins with, if it is all there and an ordinary one: a 2xx that may have a body. Everything
    else, what is broken included, is for the parser to read."""
    end = data.find(b"\r\n\r\n", 0, PLAIN_BYTES_MAX) + 4
    raw = data[:end]
    known = _HEADS.get(raw)
    if known is not None:
        return known
    if not _PLAIN.fullmatch(raw):
        return None
    try:
        head = ResponseHead(raw)
    except Failed:
        return None
    head.raw = raw
    head.status = int(raw[9:12])
    head.is_plain = head.length is not None and not head.is_last and not head.events
    if end <= HEAD_REMEMBERED_BYTES_MAX:
        if len(_HEADS) >= HEADS_REMEMBERED_MAX:
            _HEADS.clear()
        _HEADS[raw] = head
    return head


_HEADS: dict[bytes, ResponseHead] = {}
"""One for all connections: of a hundred copies few would lie in the processor's caches."""


_SOUND: set[bytes] = set()


def check_status_line(line: bytes) -> None:
    """Raises Failed for anything that is no status line of HTTP/1.1 or 1.0; llhttp takes other protocols' too."""
    if not _STATUS_LINE.fullmatch(line):
        raise Failed("garbage", "the answer does not begin with a status line")
    if len(_SOUND) < STATUS_LINES_REMEMBERED_MAX and len(line) <= LINE_REMEMBERED_BYTES_MAX:
        _SOUND.add(line)


_REMEMBERED: dict[bytes, Means] = {}


_NAMES_PASSED: set[bytes] = set()
_VALUE_MATTERS = frozenset((b"content-type", b"content-encoding"))


def _meaning(line: bytes) -> Means:
    name, colon, _ = line.partition(b":")
    if colon and name in _NAMES_PASSED:
        # a date or an id: the next one will be another
        return _PASSED
    means = _read(line)
    if len(line) <= LINE_REMEMBERED_BYTES_MAX:
        if len(_REMEMBERED) >= LINES_REMEMBERED_MAX:
            _REMEMBERED.clear()
            _NAMES_PASSED.clear()
        elif means is _PASSED and name.lower() not in _VALUE_MATTERS:
            _NAMES_PASSED.add(name)
        _REMEMBERED[line] = means
    return means


def _read(line: bytes) -> Means:
    name, colon, value = line.partition(b":")
    if not colon or not _NAME.fullmatch(name):
        raise Failed("garbage", "the upstream's answer is not HTTP")
    name, value = name.lower(), value.strip().lower()
    if name == b"content-length":
        return Means.LENGTH
    if name == b"transfer-encoding":
        if value != b"chunked":
            # another coding is the body's, and we could not say so any more
            raise Failed("garbage", "the answer is in a transfer coding that is not read here")
        return Means.CODING
    if name == b"connection":
        named = {option.strip() for option in value.split(b",")} - {b"keep-alive", b""}
        return Means.DROPPED if not named else Means.CLOSE if named == {b"close"} else Means.OPTIONS
    if name == b"content-type" and value.startswith(STREAM_TYPES):
        return Means.EVENTS
    if name == b"content-encoding" and value != b"identity":
        return Means.PACKED
    if name == b"x-request-id":
        return Means.ID
    return Means.DROPPED if name in HOP_BY_HOP or name.startswith(OURS) else Means.PASSED
