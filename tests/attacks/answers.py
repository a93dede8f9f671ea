"""Answers that try to be read twice, or forever: what a hostile or broken upstream may send, row by row.

A bad answer is never handed on whole: the caller gets an error of ours, or a body that visibly breaks off, and its
connection serves nobody else. A fair one is handed on with this status and body, and its connection is kept or not.
"""

from __future__ import annotations

from dataclasses import dataclass

POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON"
LINE = b"HTTP/1.1 200 OK\r\n"


@dataclass(frozen=True)
class Row:
    """`end` is what the upstream does then: keep the connection, close it, reset it, or say nothing more."""

    name: str
    data: bytes
    end: str
    fair: bool
    status: int = 200
    body: bytes = b""
    kept: bool = False
    method: str = "GET"


ROWS: list[Row] = []


def bad(name: str, data: bytes, end: str = "keep", *, method: str = "GET") -> None:
    ROWS.append(Row(name, data, end, fair=False, method=method))


def fair(name: str, data: bytes, body: bytes = b"", **more: object) -> None:
    ROWS.append(Row(name, data, **{"end": "keep", "fair": True, "body": body, **more}))  # type: ignore[arg-type]


def head(*lines: bytes, first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join((first, *lines)) + b"\r\n\r\n"


CL = b"Content-Length: 2"
TE = b"Transfer-Encoding: chunked"
OK = b"2\r\nok\r\n0\r\n\r\n"

# --- framing -------------------------------------------------------------------------------------------------------

for name, lines in {
    "a length and chunked": (CL, TE),
    "chunked and a length": (TE, CL),
    "chunked and no length": (TE, b"Content-Length:"),
    "two lengths that agree": (CL, CL),
    "two lengths that differ": (CL, b"Content-Length: 50"),
    "a list of lengths": (b"Content-Length: 2, 2",),
    "a length with a plus": (b"Content-Length: +2",),
    "a length with a minus": (b"Content-Length: -2",),
    "a length in hex": (b"Content-Length: 0x2",),
    "a length with an underscore": (b"Content-Length: 1_0",),
    "a length of another script": (b"Content-Length: \xd9\xa2",),
    "an empty length": (b"Content-Length:",),
    "a length beyond 2**64": (b"Content-Length: 18446744073709551618",),
    "a length folded": (b"Content-Length:\r\n 2",),
    "a space before a length's colon": (b"Content-Length : 2",),
    "chunked twice": (TE, TE),
    "chunked twice in a line": (b"Transfer-Encoding: chunked, chunked",),
    "gzip, chunked": (b"Transfer-Encoding: gzip, chunked",),
    "chunked, gzip": (b"Transfer-Encoding: chunked, gzip",),
    "identity": (b"Transfer-Encoding: identity",),
    "identity and a length": (b"Transfer-Encoding: identity", CL),
    "xchunked": (b"Transfer-Encoding: xchunked",),
    "chunked with a parameter": (b"Transfer-Encoding: chunked;x",),
    "a coding of nothing": (b"Transfer-Encoding:",),
    "a vertical tab before chunked": (b"Transfer-Encoding: \x0bchunked",),
    "a space before a coding's colon": (b"Transfer-Encoding : chunked",),
}.items():
    bad(f"framing: {name}", head(*lines) + OK)
    if b"identity" in lines[0] or b"xchunked" in lines[0] or b"gzip" in lines[0]:
        bad(f"framing: {name}, closed", head(*lines) + OK, "close")

bad("framing: chunked in HTTP/1.0", head(TE, first=b"HTTP/1.0 200 OK") + OK, "close")
bad("framing: chunked in HTTP/1.0, kept", head(TE, b"Connection: keep-alive", first=b"HTTP/1.0 200 OK") + OK)

# --- status lines --------------------------------------------------------------------------------------------------

for name, first in {
    "no version": b"200 OK",
    "HTTP/2.0": b"HTTP/2.0 200 OK",
    "HTTP/0.9": b"HTTP/0.9 200 OK",
    "HTTP/1.2": b"HTTP/1.2 200 OK",
    "HTTP/1.10": b"HTTP/1.10 200 OK",
    "RTSP/1.0": b"RTSP/1.0 200 OK",
    "ICY": b"ICY 200 OK",
    "small letters": b"http/1.1 200 OK",
    "two spaces": b"HTTP/1.1  200 OK",
    "a tab": b"HTTP/1.1\t200 OK",
    "no status": b"HTTP/1.1 OK",
    "a status of two digits": b"HTTP/1.1 20 OK",
    "a status of four digits": b"HTTP/1.1 2000 OK",
    "a status with a sign": b"HTTP/1.1 +20 OK",
    "status 000": b"HTTP/1.1 000 OK",
    "status 099": b"HTTP/1.1 099 OK",
    "a NUL in the reason": b"HTTP/1.1 200 O\0K",
    "a control byte in the reason": b"HTTP/1.1 200 O\x01K",
    "a bare CR in the reason": b"HTTP/1.1 200 O\rK",
    "a bare LF in the reason": b"HTTP/1.1 200 OK\nX: y",
    "a line of nothing in front": b"\r\nHTTP/1.1 200 OK",
    "a bare LF in front": b"\nHTTP/1.1 200 OK",
    "a byte in front": b"XHTTP/1.1 200 OK",
    "switching protocols unasked": b"HTTP/1.1 101 Switching Protocols",
    "a request": b"GET /evil HTTP/1.1",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46",
}.items():
    bad(f"status line: {name}", head(CL, first=first) + b"ok")
    bad(f"status line: {name}, and a right answer", head(b"Content-Length: 0", first=first) + POISON)

bad("status line: only a body", b"ok", "close")
bad("status line: HTML", b"<html>ok</html>", "close")
fair("status line: no reason", head(CL, first=b"HTTP/1.1 200 ") + b"ok", b"ok", kept=True)
fair("status line: no reason and no space", head(CL, first=b"HTTP/1.1 200") + b"ok", b"ok", kept=True)
fair("status line: a reason of high bytes", head(CL, first=b"HTTP/1.1 200 \xe9") + b"ok", b"ok", kept=True)
fair("status line: a status nobody knows", head(CL, first=b"HTTP/1.1 299 x") + b"ok", b"ok", kept=True, status=299)

# --- headers -------------------------------------------------------------------------------------------------------

for name, line in {
    "a NUL in a value": b"X: y\0z",
    "a control byte in a value": b"X: y\x01z",
    "an escape in a value": b"X: \x1b[2J",
    "a DEL in a value": b"X: y\x7f",
    "a bare CR": b"X: y\rSet-Cookie: evil",
    "a bare LF": b"X: y\nSet-Cookie: evil",
    "a fold": b"X: y\r\n z",
    "a fold by a tab": b"X: y\r\n\tz",
    "a space before a colon": b"X : y",
    "no colon": b"XY",
    "no name": b": y",
    "a NUL in a name": b"X\0: y",
    "a high byte in a name": b"X\xe9: y",
    "a bracket in a name": b"X(: y",
    "CR CR LF": b"X: y\r",
}.items():
    bad(f"headers: {name}", head(line, CL) + b"ok")

bad("headers: the head ended by LF LF", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok")
bad("headers: the head ended by LF", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\nok")
bad("headers: a head of 100 KiB", head(b"X: " + b"y" * 100_000, CL) + b"ok")
bad("headers: 100 KiB of small ones", head(*[b"X: y"] * 25_000, CL) + b"ok")
bad("headers: a head without end", LINE + b"X: " + b"y" * 200_000, "stall")
bad("headers: a name without end", LINE + b"X" * 200_000, "stall")
bad("headers: a reason without end", b"HTTP/1.1 200 " + b"y" * 200_000, "stall")
fair("headers: ours, forged", head(b"X-Understudy-Tier: forged", b"Keep-Alive: x", CL) + b"ok", b"ok", kept=True)

# --- interim answers -----------------------------------------------------------------------------------------------

fair("interim: a hundred", b"HTTP/1.1 100 Continue\r\n\r\n" * 100 + head(CL) + b"ok", b"ok", kept=True)
fair("interim: early hints", head(b"Link: </x>", first=b"HTTP/1.1 103 x") + head(CL) + b"ok", b"ok", kept=True)
bad("interim: and nothing more", b"HTTP/1.1 100 Continue\r\n\r\n", "stall")
bad("interim: and then closed", b"HTTP/1.1 100 Continue\r\n\r\n", "close")
bad("interim: with a body by length", head(CL, first=b"HTTP/1.1 103 x") + b"ok" + head(CL) + b"ok")
bad("interim: with a body in chunks", head(TE, first=b"HTTP/1.1 103 x") + OK + head(CL) + b"ok")
bad("interim: switching after early hints", head(first=b"HTTP/1.1 103 x") + head(first=b"HTTP/1.1 101 x"))

# --- more than the answer ------------------------------------------------------------------------------------------

fair("surplus: a second answer behind a length", head(CL) + b"ok" + POISON, b"ok")
fair("surplus: a second answer behind chunks", head(TE) + OK + POISON, b"ok")
fair("surplus: a second answer behind 204", head(first=b"HTTP/1.1 204 x") + POISON, status=204)
fair("surplus: a second answer behind 304", head(CL, first=b"HTTP/1.1 304 x") + POISON, status=304)
fair("surplus: a second answer behind nothing", head(b"Content-Length: 0") + POISON)
fair("surplus: a second answer to HEAD", head(CL) + POISON, method="HEAD")
fair("surplus: a body to HEAD", head(CL) + b"ok", method="HEAD")
fair("surplus: chunks to HEAD", head(TE) + OK, method="HEAD")
fair("surplus: a body to HEAD and a second answer", head(b"Content-Length: 0") + POISON, method="HEAD")
fair("surplus: a body behind 204", head(CL, first=b"HTTP/1.1 204 x") + b"ok", status=204)
fair("surplus: chunks behind 304", head(TE, first=b"HTTP/1.1 304 x") + OK, status=304)
fair("surplus: half a chunk's size to HEAD", head(TE) + b"2ff", method="HEAD")
bad("interim: a control byte in its reason", head(first=b"HTTP/1.1 199 O\0K") + head(CL) + b"ok")
fair("surplus: a byte behind a length", head(CL) + b"okX", b"ok")
fair("surplus: half a status line", head(CL) + b"okHTTP/1.1 2", b"ok")
fair("surplus: an interim answer behind", head(CL) + b"okHTTP/1.1 100 Continue\r\n\r\n", b"ok")
fair("surplus: an interim answer and a second one", head(CL) + b"okHTTP/1.1 100 Continue\r\n\r\n" + POISON, b"ok")
fair("surplus: after saying close", head(CL, b"Connection: close") + b"ok" + POISON, b"ok")
fair("surplus: in HTTP/1.0", head(CL, first=b"HTTP/1.0 200 OK") + b"ok" + POISON, b"ok")
fair("surplus: a body that looks like an answer", head(b"Content-Length: %d" % len(POISON)) + POISON, POISON, kept=True)
fair("surplus: an answer in a chunk", head(TE) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(POISON), POISON), POISON, kept=True)
fair("surplus: an answer until the end", head() + b"a" + POISON, b"a" + POISON, end="close")

# --- chunks --------------------------------------------------------------------------------------------------------

for name, chunks in {
    "a size in no number": b"zz\r\nok\r\n0\r\n\r\n",
    "a minus": b"-2\r\nok\r\n0\r\n\r\n",
    "0x": b"0x2\r\nok\r\n0\r\n\r\n",
    "an underscore": b"0_2\r\nok\r\n0\r\n\r\n",
    "a space behind the size": b"2 \r\nok\r\n0\r\n\r\n",
    "an empty size": b"\r\nok\r\n0\r\n\r\n",
    "a size beyond 2**64": b"10000000000000002\r\nok\r\n0\r\n\r\n",
    "a size behind a bare LF": b"2\nok\r\n0\r\n\r\n",
    "a size behind a bare CR": b"2\rXok\r\n0\r\n\r\n",
    "data behind a bare LF": b"2\r\nok\n0\r\n\r\n",
    "data longer than said": b"2\r\nokay\r\n0\r\n\r\n",
    "data shorter than said": b"4\r\nok\r\n0\r\n\r\nX",
    "a bare LF in an extension": b"2;a\nb\r\nok\r\n0\r\n\r\n",
    "a NUL in an extension": b"2;\0\r\nok\r\n0\r\n\r\n",
    "a trailer that is a length": b"2\r\nok\r\n0\r\nContent-Length: 5\r\n\r\n",
    "a trailer that is no header": b"2\r\nok\r\n0\r\nwhat\r\n\r\n",
    "a trailer behind a bare LF": b"2\r\nok\r\n0\r\na: b\nc: d\r\n\r\n",
    "an answer for a trailer": b"2\r\nok\r\n0\r\n" + POISON,
    "the end behind a bare CR": b"2\r\nok\r\n0\r\n\rX",
}.items():
    bad(f"chunks: {name}", head(TE) + chunks)

bad("chunks: trailers without end", head(TE) + b"2\r\nok\r\n0\r\n" + b"a: b\r\n" * 30_000, "stall")
bad("chunks: an extension without end", head(TE) + b"2;" + b"a" * 200_000, "stall")
bad("chunks: a size without end", head(TE) + b"0" * 200_000, "stall")
fair("chunks: trailers that forge", head(TE) + b"2\r\nok\r\n0\r\nSet-Cookie: evil\r\n\r\n", b"ok", kept=True)
fair("chunks: a fair extension", head(TE) + b'2;a="b"\r\nok\r\n0\r\n\r\n', b"ok", kept=True)

# --- broken off, or silent -----------------------------------------------------------------------------------------

for end in ("close", "reset", "stall"):
    bad(f"broken: at once, {end}", b"", end)
    bad(f"broken: in the status line, {end}", b"HTTP/1.1 2", end)
    bad(f"broken: in the head, {end}", LINE + b"Content-Le", end)
    bad(f"broken: behind the head, {end}", head(CL), end)
    bad(f"broken: in the body, {end}", head(b"Content-Length: 10") + b"ok", end)
    bad(f"broken: in a long body, {end}", head(b"Content-Length: 100000") + b"ok" * 10_000, end)
    bad(f"broken: in a chunk's size, {end}", head(TE) + b"2\r\nok\r\n1", end)
    bad(f"broken: in a chunk, {end}", head(TE) + b"5\r\nok", end)
    bad(f"broken: before the last chunk, {end}", head(TE) + b"2\r\nok\r\n", end)
    bad(f"broken: before the last line, {end}", head(TE) + b"2\r\nok\r\n0\r\n", end)
bad("broken: until the end, reset", head() + b"ok", "reset")
fair("broken: until the end, closed", head() + b"ok", b"ok", end="close")
fair("broken: until the end, in HTTP/1.0", head(first=b"HTTP/1.0 200 OK") + b"ok", b"ok", end="close")
