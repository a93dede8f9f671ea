"""A request's head, read strictly once and remembered by its bytes: real clients send the same head again and again.

What differs between two such heads is the length of the body, so the digits of Content-Length are cut out before the
head is looked up, and read each time.
"""

from __future__ import annotations

import re
from typing import Any

import httptools

from understudy.policies.service import Headers
from understudy.proxy.dialects.base import BadRequest
from understudy.proxy.http.heads import origin_form
from understudy.proxy.http.tunnel import offers_tunnel
from understudy.proxy.settings.settings import Limits

REMEMBERED_MAX = 1024
REMEMBERED_BYTES_MAX = 4096
"""Longer heads are read every time: what is remembered stays under four megabytes."""
LENGTH_DIGITS_MAX = 15
END = b"\r\n\r\n"
VERSIONS = ("1.1", "1.0")
NOT_HTTP = "the request is not valid HTTP/1.1"
_SPELLINGS = (b"\r\nContent-Length: ", b"\r\ncontent-length: ")
"""How clients spell it; a head with another spelling is as good, and is read every time its length changes."""
_FIRST_LINE = re.compile(rb"(?:\r\n)*[A-Z-]+ [!-~]+ HTTP/1\.[01]\r\n")
"""One space where one belongs, and no other protocol that llhttp speaks as well."""
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
"""A name or an address, and a port (RFC 9110 section 7.2). A comma would be two hosts to somebody."""
_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


class RequestHead:
    """What a head says. Shared between requests: nobody changes it.

    `headers` are the caller's, less those that frame the body. `claim` is who claims it, once that was looked up;
    `remembered` is for everything else that follows from the head alone. `is_plain` says that a 200 to it has a body
    and needs no word on staying. `before` and `behind` are the bytes round the digits of its Content-Length, by which a
    connection knows it again; empty where they were not cut out.
    """

    __slots__ = (
        "before",
        "behind",
        "chunked",
        "claim",
        "expects",
        "headers",
        "host",
        "id",
        "is_plain",
        "keep_alive",
        "length",
        "method",
        "offers",
        "path",
        "remembered",
        "target",
        "version",
    )

    def __init__(self, reader: HeadReader, limits: Limits) -> None:
        self.method = reader.parser.get_method()
        self.version = reader.parser.get_http_version()
        self.keep_alive = reader.keep_alive
        if self.version not in VERSIONS:
            raise BadRequest("only HTTP/1.1 and HTTP/1.0 are spoken here", status=505)
        self.length = 0
        self.chunked = False
        self.expects = False
        self.id = ""
        self.headers: Headers = []
        self.offers = offers_tunnel(self.method, self.version, reader.headers)
        host = self._read(reader.headers)
        if len(reader.target) > limits.target_bytes_max:
            raise BadRequest("the request target is too long", status=414)
        self.target = origin_form(self.method, reader.target, host)
        self.path = self.target.partition(b"?")[0]
        self.host = host
        self.before = self.behind = b""
        self.is_plain = self.version == "1.1" and self.method != b"HEAD"
        self.claim: Any = None
        self.remembered: dict[object, Any] = {}

    def _read(self, headers: Headers) -> bytes | None:
        """Take from the headers what frames the body. Returns the Host. Raises BadRequest."""
        host: bytes | None = None
        for header in headers:
            name, value = header[0].lower(), header[1]
            if name == b"host":
                if host is not None:
                    raise BadRequest("more than one Host header")
                host = value
            elif name == b"content-length":
                self.length = int(value)
                continue
            elif name == b"transfer-encoding":
                if self.version == "1.0":
                    raise BadRequest("HTTP/1.0 has no Transfer-Encoding")
                if value.strip().lower() != b"chunked":
                    raise BadRequest("no Transfer-Encoding but chunked is read here", status=501)
                if self.chunked:
                    raise BadRequest("chunked twice over")
                self.chunked = True
                continue
            elif name == b"expect":
                if value.lower() != b"100-continue":
                    raise BadRequest("an unknown expectation", status=417)
                self.expects = self.version == "1.1"
            elif name == b"connection" and b"close" in [option.strip(b" \t").lower() for option in value.split(b",")]:
                # llhttp believes an HTTP/1.0 client's keep-alive above its close
                self.keep_alive = False
            elif name == b"x-request-id" and _SANE_ID.fullmatch(value):
                self.id = value.decode("ascii")
            self.headers.append(header)
        if host is None and self.version == "1.1":
            raise BadRequest("no Host header")
        if host is not None and not _HOST.fullmatch(host):
            raise BadRequest("the Host header names no host")
        return host


class HeadReader:
    """Collects what llhttp reads of a head, and notices when it reads anything more."""

    __slots__ = ("complete", "headers", "headers_max", "keep_alive", "more", "parser", "target")

    def __init__(self, headers_max: int) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.keep_alive = False
        self.target = b""
        self.headers: Headers = []
        self.headers_max = headers_max
        self.complete = False
        self.more = False

    def on_message_begin(self) -> None:
        self.more = self.more or self.complete

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # llhttp leaves what stands between a value and the end of its line
        self.headers.append((name, value.rstrip(b" \t")))
        if len(self.headers) > self.headers_max:
            raise BadRequest("the request has too many headers", status=431)

    def on_headers_complete(self) -> None:
        self.complete = True
        # asked now: at the end of a request without a body the parser forgets
        self.keep_alive = bool(self.parser.should_keep_alive())

    def on_body(self, _piece: bytes) -> None:
        self.more = True


def probe_head(reader: HeadReader, data: bytes) -> None:
    """Read more of a head: raises BadRequest as soon as it can't become one."""
    try:
        reader.parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        # an offer that we don't take: the request is answered in HTTP/1.1, as a server may
        pass
    except httptools.HttpParserError as error:
        if isinstance(error.__context__, BadRequest):
            raise error.__context__ from None
        raise BadRequest(NOT_HTTP) from None


def read_head(raw: bytes, limits: Limits) -> RequestHead:
    """Read a head that ends in an empty line. Raises BadRequest for anything that is not exactly one head."""
    reader = HeadReader(limits.headers_max)
    wrong: BadRequest | None = None
    try:
        probe_head(reader, raw)
    except BadRequest as bad:
        if not reader.complete or reader.parser.get_http_version() not in VERSIONS:
            raise
        # it found the framing wrong, and cannot say as well as we what is wrong with it
        wrong = bad
    head = RequestHead(reader, limits)
    if wrong or not reader.complete or reader.more or not _FIRST_LINE.match(raw):
        # llhttp's idea of where the head ends is not ours: nobody can say what the body is
        raise wrong or BadRequest(NOT_HTTP)
    return head


class HeadMemory:
    """Heads by their bytes. Bounded: when it is full it begins anew."""

    __slots__ = ("_heads", "limits")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._heads: dict[bytes, RequestHead] = {}

    def __len__(self) -> int:
        return len(self._heads)

    def get(self, raw: bytes) -> tuple[RequestHead, int]:
        """The head, and the length of the body it announces. Raises BadRequest."""
        key, length = _without_length(raw)
        head = self._heads.get(key)
        if head is None:
            head = read_head(raw, self.limits)
            if len(key) <= REMEMBERED_BYTES_MAX:
                if length is not None:
                    _, head.before, head.behind = key.split(b"\0", 2)
                if len(self._heads) >= REMEMBERED_MAX:
                    self._heads.clear()
                self._heads[key] = head
        return head, head.length if length is None else length


def _without_length(raw: bytes) -> tuple[bytes, int | None]:
    """The head with the digits of its Content-Length cut out, and their number; as it is, and None, where there are
    none to cut. The pieces stand behind bytes that no head has: a length left empty is another head."""
    for spelling in _SPELLINGS:
        at = raw.find(spelling)
        if at >= 0:
            begin = at + len(spelling)
            end = raw.find(b"\r", begin)
            digits = raw[begin:end]
            if digits.isdigit() and len(digits) <= LENGTH_DIGITS_MAX:
                return b"\0%b\0%b" % (raw[:begin], raw[end:]), int(digits)
            break
    return raw, None
