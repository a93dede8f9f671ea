"""Requests that try to be read twice: our own rows, from the grammar of RFC 9110 and 9112 and the published classes.

Each row says what must become of it: which requests the upstream may see, by their bodies, and the statuses one of
which the refusal must have (none: the connection is not refused). What hides a second request hides one for /evil.
"""

from __future__ import annotations

from dataclasses import dataclass

EVIL = b"GET /evil HTTP/1.1\r\nHost: here\r\n\r\n"
AFTER = b"GET /after HTTP/1.1\r\nHost: here\r\n\r\n"
CHUNK = b"3\r\nabc\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Row:
    name: str
    data: bytes
    served: tuple[bytes, ...] = ()
    refused: frozenset[int] = frozenset()


ROWS: list[Row] = []


def refused(name: str, data: bytes, *statuses: int, after: tuple[bytes, ...] = ()) -> None:
    """The first of it that is wrong is refused, and what came before it, right, is served."""
    ROWS.append(Row(name, data, after, frozenset(statuses or (400,))))


def served(name: str, data: bytes, *bodies: bytes) -> None:
    """It is exactly so many requests, with these bodies."""
    ROWS.append(Row(name, data, bodies))


def post(*lines: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    head = (b"POST /x HTTP/" + version, b"Host: here", *lines)
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def get(*lines: bytes, first: bytes = b"GET /x HTTP/1.1", host: bytes | None = b"Host: here") -> bytes:
    return b"\r\n".join((first, *([host] if host is not None else []), *lines)) + b"\r\n\r\n"


# --- both ways of framing at once ----------------------------------------------------------------------------------

TE = b"Transfer-Encoding: chunked"
refused("CL.TE", post(b"Content-Length: 6", TE, body=b"0\r\n\r\nG" + AFTER))
refused(
    "CL.TE whose length holds a request", post(b"Content-Length: %d" % (5 + len(EVIL)), TE, body=b"0\r\n\r\n" + EVIL)
)
refused("TE.CL", post(TE, b"Content-Length: 4", body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(EVIL), EVIL)))
refused("TE.CL with length nought", post(TE, b"Content-Length: 0", body=CHUNK + AFTER))
refused("CL.0 and chunked", post(b"Content-Length: 0", TE, body=CHUNK))
refused("a length between two codings", post(TE, b"Content-Length: 3", TE, body=CHUNK))
refused("both, in HTTP/1.0", post(b"Content-Length: 3", TE, body=CHUNK, version=b"1.0"))
refused("both, the length empty", post(TE, b"Content-Length:", body=CHUNK))
refused("both, on a GET", get(b"Content-Length: 5", TE) + b"0\r\n\r\n" + EVIL)
refused("both, the coding unknown", post(b"Content-Length: 3", b"Transfer-Encoding: x", body=b"abc"), 400, 501)
refused("both, far apart", post(TE, *[b"X-%d: y" % number for number in range(40)], b"Content-Length: 3", body=CHUNK))

for name, line in {
    "TE.TE, two lines that agree": TE + b"\r\n" + TE,
    "TE.TE, the second unknown": TE + b"\r\nTransfer-Encoding: cow",
    "TE.TE, the first unknown": b"Transfer-Encoding: cow\r\n" + TE,
    "TE.TE, the second identity": TE + b"\r\nTransfer-Encoding: identity",
    "TE.TE, the first identity": b"Transfer-Encoding: identity\r\n" + TE,
    "TE.TE, the second empty": TE + b"\r\nTransfer-Encoding:",
    "TE.TE, a tab behind the first": TE + b"\t\r\n" + TE,
    "TE.TE, another case": TE + b"\r\ntransfer-encoding: CHUNKED",
    "chunked is not last": b"Transfer-Encoding: chunked, gzip",
    "chunked is not last but identity": b"Transfer-Encoding: chunked, identity",
    "gzip alone": b"Transfer-Encoding: gzip",
    "identity": b"Transfer-Encoding: identity",
    "gzip, chunked": b"Transfer-Encoding: gzip, chunked",
    "chunked twice in a line": b"Transfer-Encoding: chunked, chunked",
    "a comma behind": b"Transfer-Encoding: chunked,",
    "a comma in front": b"Transfer-Encoding: ,chunked",
    "only a comma": b"Transfer-Encoding: ,",
    "xchunked": b"Transfer-Encoding: xchunked",
    "chunkedx": b"Transfer-Encoding: chunkedx",
    "chunked in quotes": b'Transfer-Encoding: "chunked"',
    "chunked in single quotes": b"Transfer-Encoding: 'chunked'",
    "chunked with a parameter": b"Transfer-Encoding: chunked;q=1",
    "chunked in two words": b"Transfer-Encoding: chun ked",
    "chunk": b"Transfer-Encoding: chunk",
    "empty": b"Transfer-Encoding:",
    "only a space": b"Transfer-Encoding: ",
    "a vertical tab in front": b"Transfer-Encoding: \x0bchunked",
    "a form feed in front": b"Transfer-Encoding:\x0cchunked",
    "a vertical tab behind": b"Transfer-Encoding: chunked\x0b",
    "a NUL behind": b"Transfer-Encoding: chunked\0",
    "a NUL in front": b"Transfer-Encoding: \0chunked",
    "a NEL behind": b"Transfer-Encoding: chunked\x85",
    "a no-break space in front": b"Transfer-Encoding:\xa0chunked",
    "a letter that folds to k": b"Transfer-Encoding: chun\xe2\x84\xaaed",
    "a space before the colon": b"Transfer-Encoding : chunked",
    "a tab before the colon": b"Transfer-Encoding\t: chunked",
    "a space before the name": b" Transfer-Encoding: chunked",
    "a tab before the name": b"\tTransfer-Encoding: chunked",
    "a fold before the value": b"Transfer-Encoding:\r\n chunked",
    "a fold behind the value": b"Transfer-Encoding: chunked\r\n ",
    "a fold with another coding": b"Transfer-Encoding: chunked\r\n , identity",
    "hidden behind a bare LF": b"X: y\nTransfer-Encoding: chunked",
    "hidden behind a bare CR": b"X: y\rTransfer-Encoding: chunked",
    "hidden behind CR CR LF": b"X: y\r\r\nTransfer-Encoding: chunked",
    "a NUL in the name": b"Transfer\0-Encoding: chunked",
    "a control byte in the name": b"Transfer-Encoding\x01: chunked",
    "a high byte in the name": b"Transfer-Encoding\xff: chunked",
    "no colon": b"Transfer-Encoding chunked",
    "an equals sign for the colon": b"Transfer-Encoding= chunked",
    "two colons": b"Transfer-Encoding:: chunked",
}.items():
    refused(f"coding: {name}", post(line, body=CHUNK + EVIL), 400, 501)

refused("coding: chunked in HTTP/1.0", post(TE, body=CHUNK, version=b"1.0"))
served("coding: in capitals", post(b"TRANSFER-ENCODING: CHUNKED", body=CHUNK), b"abc")
served("coding: tabs and spaces around it", post(b"Transfer-Encoding:\t chunked ", body=CHUNK), b"abc")
served("coding: no space", post(b"transfer-encoding:chunked", body=CHUNK + AFTER), b"abc", b"")
served("coding: named by Connection", post(b"Connection: transfer-encoding", TE, body=CHUNK + AFTER), b"abc", b"")
served("coding: an underscore makes another name", post(b"Transfer_Encoding: chunked", body=AFTER), b"", b"")
served("coding: offered in TE only", get(b"TE: chunked", b"Connection: TE") + AFTER, b"", b"")

# --- lengths -------------------------------------------------------------------------------------------------------

for name, value in {
    "a plus": b"+3", "a minus": b"-3", "hex": b"0x3", "octal-looking hex": b"0o3", "a fraction": b"3.0",
    "an exponent": b"3e0", "an underscore": b"1_0", "a list": b"3, 3", "a list that differs": b"3, 5",
    "a list without a space": b"3,3", "a comma behind": b"3,", "two numbers": b"3 3", "a space within": b"1 0",
    "a tab within": b"1\t0", "a letter behind": b"3a", "a letter in front": b"a3", "a vertical tab": b"\x0b3",
    "a form feed behind": b"3\x0c", "a NUL behind": b"3\0", "a DEL behind": b"3\x7f", "a no-break space": b"\xa03",
    "a digit of another script": b"\xd9\xa3", "a superscript digit": b"\xc2\xb3", "empty": b"", "only spaces": b"   ",
    "in quotes": b'"3"', "a parameter": b"3;x=1", "true": b"true", "a parenthesis": b"(3)",
}.items():  # fmt: skip
    refused(f"length: {name}", post(b"Content-Length: " + value, body=b"abc" + EVIL))
    if name in ("a plus", "a list", "an underscore", "a vertical tab"):
        refused(f"length: {name}, in small letters", post(b"content-length: " + value, body=b"abc" + EVIL))

refused("length: beyond 2**64", post(b"Content-Length: 18446744073709551619", body=b"abc" + EVIL), 400, 413)
refused("length: 2**63", post(b"Content-Length: 9223372036854775808", body=b"abc"), 400, 413)
refused("length: 2**32 + 3", post(b"Content-Length: 4294967299", body=b"abc" + EVIL), 413)
refused("length: forty digits", post(b"Content-Length: " + b"9" * 40, body=b"abc"))
refused("length: over the body's limit", post(b"Content-Length: 33554433", body=b"abc"), 413)
refused("length: twice the same", post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc" + EVIL))
refused(
    "length: two that differ", post(b"Content-Length: 3", b"Content-Length: %d" % (3 + len(EVIL)), body=b"abc" + EVIL)
)
refused("length: two, one in small letters", post(b"Content-Length: 3", b"content-length: 0", body=b"abc"))
refused("length: a second, empty", post(b"Content-Length: 3", b"Content-Length:", body=b"abc"))
refused("length: a second behind a bare LF", post(b"Content-Length: 3\nContent-Length: 0", body=b"abc"))
refused("length: folded", post(b"Content-Length:\r\n 3", body=b"abc"))
refused("length: folded in the middle", post(b"Content-Length: 1\r\n 0", body=b"abc"))
refused("length: a space before the colon", post(b"Content-Length : 3", body=b"abc" + EVIL))
refused("length: a tab before the colon", post(b"Content-Length\t: 3", body=b"abc"))
refused("length: a bare CR behind it", post(b"Content-Length: 3\rX: y", body=b"abc"))
served("length: noughts in front", post(b"Content-Length: 0003", body=b"abc" + AFTER), b"abc", b"")
served("length: spaces and tabs around it", post(b"Content-Length: \t 3 \t", body=b"abc" + AFTER), b"abc", b"")
served("length: no space", post(b"Content-Length:3", body=b"abc" + AFTER), b"abc", b"")
served("length: a whole request is the body", post(b"Content-Length: %d" % len(EVIL), body=EVIL), EVIL)
served(
    "length: a request is the body, another follows",
    post(b"content-length: %d" % len(EVIL), body=EVIL + AFTER),
    EVIL,
    b"",
)
served("length: CL.0, and a request behind", post(b"Content-Length: 0", body=AFTER), b"", b"")
served("length: none, and a request behind", post(body=AFTER), b"", b"")
served("length: GET with a body", get(b"Content-Length: %d" % len(EVIL)) + EVIL + AFTER, EVIL, b"")
served("length: HEAD with a body", get(b"Content-Length: 3", first=b"HEAD /x HTTP/1.1") + b"abc" + AFTER, b"abc", b"")
served("length: DELETE in chunks", get(TE, first=b"DELETE /x HTTP/1.1") + CHUNK + AFTER, b"abc", b"")
served(
    "length: named by Connection",
    post(b"Connection: content-length", b"Content-Length: 3", body=b"abc" + AFTER),
    b"abc",
    b"",
)
served("length: an underscore makes another name", post(b"Content_Length: 3", body=AFTER), b"", b"")
served("length: more to come than comes", post(b"Content-Length: 400", body=EVIL))
refused("length: less than comes", post(b"Content-Length: 3", body=b"abcdef" + EVIL), after=(b"abc",))

# --- chunks --------------------------------------------------------------------------------------------------------


def chunks(name: str, body: bytes, *statuses: int) -> None:
    refused(f"chunks: {name}", post(TE, body=body + EVIL), *statuses)


chunks("a size in no number", b"zz\r\nabc\r\n0\r\n\r\n")
chunks("an empty size", b"\r\nabc\r\n0\r\n\r\n")
chunks("a minus", b"-3\r\nabc\r\n0\r\n\r\n")
chunks("a plus", b"+3\r\nabc\r\n0\r\n\r\n")
chunks("0x", b"0x3\r\nabc\r\n0\r\n\r\n")
chunks("an underscore", b"0_3\r\nabc\r\n0\r\n\r\n")
chunks("a space behind the size", b"3 \r\nabc\r\n0\r\n\r\n")
chunks("a tab behind the size", b"3\t\r\nabc\r\n0\r\n\r\n")
chunks("a space before the size", b" 3\r\nabc\r\n0\r\n\r\n")
chunks("a NUL behind the size", b"3\0\r\nabc\r\n0\r\n\r\n")
chunks("a comma", b"3,3\r\nabc\r\n0\r\n\r\n")
chunks("a fraction", b"3.0\r\nabc\r\n0\r\n\r\n")
chunks("a size beyond 2**64", b"10000000000000003\r\nabc\r\n0\r\n\r\n")
chunks("a size of 2**64 - 1", b"ffffffffffffffff\r\nabc\r\n0\r\n\r\n")
chunks("a size of twenty noughts and a three", b"0" * 20 + b"3\r\nabc\r\n0\r\n\r\n")
chunks("a size behind a bare LF", b"3\nabc\r\n0\r\n\r\n")
chunks("data behind a bare LF", b"3\r\nabc\n0\r\n\r\n")
chunks("a size behind a bare CR", b"3\rabc\r\n0\r\n\r\n")
chunks("a size behind CR CR LF", b"3\r\r\nabc\r\n0\r\n\r\n")
chunks("data longer than said", b"3\r\nabcd\r\n0\r\n\r\n")
chunks("data shorter than said", b"4\r\nabc\r\n0\r\n\r\n")
chunks("two bytes for the CRLF after data", b"3\r\nabcXX0\r\n\r\n")
chunks("no CRLF after data", b"3\r\nabc0\r\n\r\n")
chunks("the last chunk behind a bare LF", b"3\r\nabc\r\n0\n\r\n")
chunks("the end behind a bare LF", b"3\r\nabc\r\n0\r\n\n")
chunks("the end behind a bare CR", b"3\r\nabc\r\n0\r\n\rX")
chunks("a bare LF in an extension", b"3;a\nb\r\nabc\r\n0\r\n\r\n")
chunks("a bare LF at the start of an extension", b"3;\nabc\r\n0\r\n\r\n")
chunks("a bare CR in an extension", b"3;a\rb\r\nabc\r\n0\r\n\r\n")
chunks("a NUL in an extension", b"3;a\0\r\nabc\r\n0\r\n\r\n")
chunks("a line end in a quoted extension", b'3;a="\r\n"\r\nabc\r\n0\r\n\r\n')
chunks("an extension without a semicolon", b"3 a=b\r\nabc\r\n0\r\n\r\n")
chunks("an endless extension", b"3;" + b"a" * 3000 + b"\r\nabc\r\n0\r\n\r\n")
chunks("an endless size", b"0" * 3000)
chunks("a letter behind the last", b"3\r\nabc\r\n0\r\nG")
chunks("a request for a trailer", b"3\r\nabc\r\n0\r\n" + EVIL[:-2])
chunks("a trailer without a colon", b"0\r\nwhat\r\n\r\n")
chunks("a trailer with a space before its colon", b"0\r\na : b\r\n\r\n")
chunks("a trailer without a name", b"0\r\n: b\r\n\r\n")
chunks("a trailer folded", b"0\r\na: b\r\n c\r\n\r\n")
chunks("a trailer behind a bare LF", b"0\r\na: b\nc: d\r\n\r\n")
chunks("a trailer with a NUL", b"0\r\na: \0\r\n\r\n")
chunks("a trailer that is a length", b"0\r\nContent-Length: 3\r\n\r\n")
chunks("a trailer that is a coding", b"0\r\nTransfer-Encoding: chunked\r\n\r\n")
chunks("a trailer that is a host", b"0\r\nHost: there\r\n\r\n")
chunks("trailers without end", b"0\r\n" + b"a: b\r\n" * 3000)
served("chunks: more is announced than the body's limit", post(TE, body=b"fffffff\r\n" + b"a" * 100))
served("chunks: none at the end", post(TE, body=b"3\r\nabc\r\n" + b"5\r\nde"))
served("chunks: no last chunk", post(TE, body=b"3\r\nabc\r\n"))
served("chunks: no end behind the last", post(TE, body=b"3\r\nabc\r\n0\r\n"))
served("chunks: noughts in front", post(TE, body=b"0003\r\nabc\r\n000\r\n\r\n" + AFTER), b"abc", b"")
served("chunks: capital hex", post(TE, body=b"B\r\nhello world\r\n0\r\n\r\n" + AFTER), b"hello world", b"")
served("chunks: a request in one", post(TE, body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(EVIL), EVIL) + AFTER), EVIL, b"")
served("chunks: an end in one", post(TE, body=b"5\r\n0\r\n\r\n\r\n0\r\n\r\n" + AFTER), b"0\r\n\r\n", b"")
served("chunks: a fair extension", post(TE, body=b'3;a=b;c="d"\r\nabc\r\n0;e\r\n\r\n' + AFTER), b"abc", b"")
served("chunks: a space before an extension", post(TE, body=b"3 ;a\r\nabc\r\n0\r\n\r\n" + AFTER), b"abc", b"")
served(
    "chunks: trailers that forge",
    post(TE, body=b"0\r\nAuthorization: x\r\nConnection: close\r\n\r\n" + AFTER),
    b"",
    b"",
)
served("chunks: EVIL behind the end is a request", post(TE, body=CHUNK + AFTER + AFTER), b"abc", b"", b"")
