"""A second opinion on HTTP: which requests a stream of bytes is, by the grammar of RFC 9112 and this house's own rules.

Written apart from the door, as patterns over the whole text, so that the two share no mistake. What is not certainly a
request ends the reading: there is no repair, and no difference between wrong and unfinished.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
METHODS = (
    b"GET HEAD POST PUT DELETE OPTIONS TRACE PATCH COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK BIND REBIND "
    b"UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PURGE MKCALENDAR LINK UNLINK "
    b"SOURCE QUERY"
).split()
_HEAD = re.compile(
    rb"(?:\r\n)*(?P<method>" + TOKEN + rb") (?P<target>[!-~]+) HTTP/1\.(?P<minor>[01])\r\n"
    rb"(?P<lines>(?:" + TOKEN + rb":[\t -~\x80-\xff]*\r\n)*)\r\n"
)
_LINE = re.compile(rb"(" + TOKEN + rb"):[\t ]*([^\r]*?)[\t ]*\r\n")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[\t ]*;[\t -~\x80-\xff]*)?\r\n")
_CODING_AND_TAB = re.compile(rb"(?i)\r\ntransfer-encoding:[^\r]*\t\r\n")
"""Fair by the grammar, and refused by the door's parser: nobody says it by mistake."""
_TRAILERS = re.compile(rb"(?:" + TOKEN + rb":[\t -~\x80-\xff]*\r\n)*\r\n")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%\-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
FORBIDDEN_TRAILERS = frozenset((b"content-length", b"transfer-encoding", b"host", b"trailer", b"content-encoding"))


@dataclass
class Bounds:
    """What is too large. The door's own defaults, unless told."""

    head_bytes_max: int = 64 * 1024
    headers_max: int = 128
    target_bytes_max: int = 16 * 1024
    body_bytes_max: int = 32 * 1024 * 1024
    line_bytes_max: int = 1024
    trailer_bytes_max: int = 8 * 1024
    trailers_forbidden: frozenset[bytes] = FORBIDDEN_TRAILERS


@dataclass
class Said:
    """One request as it was certainly meant."""

    method: bytes
    target: bytes
    minor: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    end: int = 0
    keep_alive: bool = True
    chunked: bool = False
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])

    def every(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]

    def listed(self, name: bytes) -> set[bytes]:
        """The members of a header that is a list, in small letters."""
        return {one.strip(b" \t").lower() for value in self.every(name) for one in value.split(b",")} - {b""}


def requests(data: bytes, bounds: Bounds | None = None) -> list[Said]:
    """Every request that the stream certainly is, up to the first that says it is the last, or is none."""
    found: list[Said] = []
    at = 0
    while (said := one(data, at, bounds or Bounds())) is not None:
        found.append(said)
        at = said.end
        if not said.keep_alive:
            break
    return found


def one(data: bytes, at: int, bounds: Bounds) -> Said | None:
    """The request that begins at `at`, whole; None for anything else."""
    head = _HEAD.match(data, at)
    if head is None or len(head[0]) > bounds.head_bytes_max or head["method"] not in METHODS:
        return None
    headers = _pairs(head["lines"])
    said = Said(head["method"], head["target"], int(head["minor"]), headers, end=head.end())
    if len(headers) > bounds.headers_max or len(head["target"]) > bounds.target_bytes_max or not _addressed(said):
        return None
    options = said.listed(b"connection")
    said.keep_alive = b"close" not in options and (said.minor == 1 or b"keep-alive" in options)
    if said.every(b"expect") and {one.lower() for one in said.every(b"expect")} != {b"100-continue"}:
        return None
    return said if _with_body(said, data, at, bounds) else None


def _pairs(lines: bytes) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in _LINE.findall(lines)]


def _addressed(said: Said) -> bool:
    """Whether it says, once and soundly, for whom it is; an absolute target becomes a path."""
    hosts = said.every(b"host")
    if len(hosts) > 1 or (said.minor == 1 and not hosts) or (hosts and not _HOST.fullmatch(hosts[0])):
        return False
    if said.target == b"*":
        return said.method == b"OPTIONS"
    absolute = re.fullmatch(rb"(?i:https?)://([^/]*)(/.*)?", said.target)
    if absolute:
        if not hosts or absolute[1].lower() != hosts[0].lower():
            return False
        said.target = absolute[2] or b"/"
    path = said.target.split(b"?")[0]
    return said.target[:1] == b"/" and not re.search(rb"[#\\]", said.target) and b".." not in path.split(b"/")


def _with_body(said: Said, data: bytes, begin: int, bounds: Bounds) -> bool:
    lengths, codings = said.every(b"content-length"), said.every(b"transfer-encoding")
    if len(lengths) + len(codings) > 1 or _CODING_AND_TAB.search(data, begin, said.end):
        return False
    if codings:
        said.chunked = True
        return said.minor == 1 and codings[0].lower() == b"chunked" and _chunks(said, data, bounds)
    if not lengths:
        return True
    if not re.fullmatch(rb"[0-9]{1,18}", lengths[0]) or int(lengths[0]) > bounds.body_bytes_max:
        return False
    begin, said.end = said.end, said.end + int(lengths[0])
    said.body = data[begin : said.end]
    return said.end <= len(data)


def _chunks(said: Said, data: bytes, bounds: Bounds) -> bool:
    at, body = said.end, b""
    while size := _CHUNK.match(data, at):
        count, begin = int(size[1], 16), size.end()
        if len(size[0]) > bounds.line_bytes_max or len(body) + count > bounds.body_bytes_max:
            return False
        if not count:
            return _trailed(said, data, begin, body, bounds)
        body += data[begin : begin + count]
        if data[begin + count : begin + count + 2] != b"\r\n":
            return False
        at = begin + count + 2
    return False


def _trailed(said: Said, data: bytes, begin: int, body: bytes, bounds: Bounds) -> bool:
    trailers = _TRAILERS.match(data, begin)
    if trailers is None or len(trailers[0]) > bounds.trailer_bytes_max:
        return False
    said.trailers = _pairs(trailers[0][:-2])
    said.body, said.end = body, trailers.end()
    lines = trailers[0].split(b"\r\n")
    return (
        max(map(len, lines)) <= bounds.line_bytes_max - 2 and not bounds.trailers_forbidden & dict(said.trailers).keys()
    )


HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
    b"transfer-encoding", b"upgrade", b"expect",
}  # fmt: skip
ADDED = re.compile(
    rb"host|content-length|transfer-encoding|trailer|via|forwarded|x-forwarded-[a-z]+|x-request-id|trace(parent|state)"
)
"""What a proxy says for itself on the way to an upstream."""


def faults(raw: bytes, meant: list[Said], host: bytes) -> list[str]:
    """What is wrong with the bytes an upstream got, when `meant` is all that it may be asked."""
    got = requests(raw, Bounds(head_bytes_max=128 * 1024, headers_max=160))
    found = [] if (got[-1].end if got else 0) == len(raw) else [f"not well formed, or more than requests: {raw!r}"]
    if len(got) > len(meant):
        found.append(f"{len(got)} requests where at most {len(meant)} were meant")
    for theirs, ours in zip(got, meant, strict=False):
        found += _differences(theirs, ours, host)
    return found


def _differences(got: Said, meant: Said, host: bytes) -> list[str]:
    found: list[str] = []
    if (got.method, got.target, got.body) != (meant.method, meant.target, meant.body):
        found.append(f"another request: {got} for {meant}")
    if got.every(b"host") != [host]:
        found.append(f"another host: {got.every(b'host')}")
    if len(got.every(b"content-length")) + len(got.every(b"transfer-encoding")) > 1:
        found.append("framed twice")
    offered = meant.method == b"GET" and meant.minor == 1 and meant.every(b"upgrade") == [b"websocket"]
    dropped = (HOP_BY_HOP | meant.listed(b"connection")) - {b"close", b"keep-alive"}
    for name, value in got.headers:
        if offered and (name, value) in ((b"connection", b"upgrade"), (b"upgrade", b"websocket")):
            # the one switch that is passed on, once it was offered in form
            continue
        if b"trailers" in meant.listed(b"te") and (name, value) in ((b"te", b"trailers"), (b"connection", b"te")):
            # said anew, by us and for our own connection
            continue
        hop = name in HOP_BY_HOP and name != b"transfer-encoding"
        if hop or (not ADDED.fullmatch(name) and (name in dropped or (name, value) not in meant.headers)):
            found.append(f"a header nobody meant for the upstream: {name!r}: {value!r}")
    return found


# --- answers -------------------------------------------------------------------------------------------------------

_ANSWER = re.compile(
    rb"HTTP/1\.(?P<minor>[01]) (?P<status>[1-9][0-9]{2})(?: [\t -~\x80-\xff]*)?\r\n"
    rb"(?P<lines>(?:" + TOKEN + rb":[\t -~\x80-\xff]*\r\n)*)\r\n"
)


@dataclass
class Answered:
    """One answer as it was certainly meant. `plain` is what no reader may refuse: nothing interim, nothing optional."""

    status: int
    body: bytes
    end: int
    plain: bool


def answer(data: bytes, method: bytes, *, closed: bool) -> Answered | None:
    """The final answer to a request of this method, whole; None for anything that certainly is none."""
    at, plain = 0, True
    while (head := _ANSWER.match(data, at)) and int(head["status"]) < 200:
        if head["status"] == b"101":
            return None
        at, plain = head.end(), False
    if head is None:
        return None
    said = Said(method, b"", int(head["minor"]), _pairs(head["lines"]), end=head.end())
    status = int(head["status"])
    lengths, codings = said.every(b"content-length"), said.every(b"transfer-encoding")
    if len(lengths) + len(codings) > 1 or (codings and (said.minor == 0 or codings[0].lower() != b"chunked")):
        return None
    if lengths and not re.fullmatch(rb"[0-9]+", lengths[0]):
        return None
    plain = plain and not (lengths and int(lengths[0]) >= 1 << 60)
    plain = plain and len(head[0]) < 60_000 and not _CODING_AND_TAB.search(head[0])
    if method == b"HEAD" or status in (204, 304):
        return Answered(status, b"", head.end(), plain)
    if not lengths and not codings:
        return Answered(status, data[head.end() :], len(data), plain) if closed else None
    # what stands in an answer's trailers is dropped, whatever it is
    large = Bounds(line_bytes_max=1 << 20, trailer_bytes_max=1 << 20, trailers_forbidden=frozenset())
    if not (_chunks(said, data, large) if codings else _with_body(said, data, at, large)):
        return None
    plain = plain and not said.trailers and not (codings and b";" in data[head.end() :])
    return Answered(status, said.body, said.end, plain)
