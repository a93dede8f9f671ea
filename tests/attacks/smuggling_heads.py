"""Requests that try to be read twice, continued: lines, names, targets, hosts, versions, and what follows what."""

from __future__ import annotations

from tests.attacks.smuggling import AFTER, CHUNK, EVIL, ROWS, TE, get, post, refused, served

__all__ = ["ROWS"]

# --- lines and names -----------------------------------------------------------------------------------------------

for name, data in {
    "every line ended by LF": b"GET /x HTTP/1.1\nHost: here\n\n" + EVIL,
    "the first line ended by LF": b"GET /x HTTP/1.1\nHost: here\r\n\r\n",
    "the last line ended by LF": b"GET /x HTTP/1.1\r\nHost: here\n\r\n",
    "the head ended by LF": b"GET /x HTTP/1.1\r\nHost: here\r\n\n" + EVIL,
    "the head ended by LF LF": b"GET /x HTTP/1.1\r\nHost: here\n\n" + EVIL,
    "the head ended by CR CR": b"GET /x HTTP/1.1\r\nHost: here\r\r" + EVIL,
    "the head ended by CR LF CR": b"GET /x HTTP/1.1\r\nHost: here\r\n\rX: y\r\n\r\n",
    "every line ended by CR": b"GET /x HTTP/1.1\rHost: here\r\r\n\r\n",
    "CR CR LF": b"GET /x HTTP/1.1\r\r\nHost: here\r\r\n\r\r\n",
    "a bare LF in front": b"\n" + get(),
    "LF LF in front": b"\n\n" + get(),
    "a bare CR in front": b"\r" + get(),
    "a space in front": b" " + get(),
    "a tab in front": b"\t" + get(),
    "a NUL in front": b"\0" + get(),
    "a byte order mark in front": b"\xef\xbb\xbf" + get(),
    "a fold": get(b"X: y", b" z"),
    "a fold by a tab": get(b"X: y", b"\tz"),
    "a fold that hides a header": get(b"X: y", b" Content-Length: 5") + EVIL,
    "a fold of nothing": get(b"X: y", b" "),
    "a fold right behind the first line": b"GET /x HTTP/1.1\r\n X: y\r\nHost: here\r\n\r\n",
    "a fold right behind Host": b"GET /x HTTP/1.1\r\nHost: here\r\n there\r\n\r\n",
    "a bare CR in a value": get(b"X: y\rz"),
    "a bare CR at the end of a value": get(b"X: y\r"),
    "a bare LF in a value": get(b"X: y\nz"),
    "a bare LF that hides a header": get(b"X: y\nContent-Length: 5") + EVIL,
    "a NUL in a value": get(b"X: y\0z"),
    "a control byte in a value": get(b"X: y\x01z"),
    "a vertical tab in a value": get(b"X: y\x0bz"),
    "a form feed in a value": get(b"X: y\x0cz"),
    "an escape in a value": get(b"X: \x1b[2J"),
    "a DEL in a value": get(b"X: y\x7fz"),
    "a NUL in a name": get(b"X\0: y"),
    "a control byte in a name": get(b"X\x01: y"),
    "a high byte in a name": get(b"X\x80: y"),
    "a space in a name": get(b"X Y: z"),
    "a space before a colon": get(b"X : y"),
    "a tab before a colon": get(b"X\t: y"),
    "no name": get(b": y"),
    "no name and a space": get(b" : y"),
    "no colon": get(b"XY"),
    "no colon, and an equals sign": get(b"X=y"),
    "a name in brackets": get(b"(X): y"),
    "a slash in a name": get(b"X/Y: z"),
    "an at sign in a name": get(b"X@Y: z"),
    "a quote in a name": get(b'X"Y: z'),
    "a semicolon for a colon": get(b"X; y"),
    "a first line among the headers": get(b"GET /evil HTTP/1.1"),
    "only colons": get(b":::"),
}.items():
    refused(f"lines: {name}", data)

served("lines: empty ones in front", b"\r\n\r\n\r\n" + get(b"X: y"), b"")
served("lines: an empty one between two requests", get() + b"\r\n" + AFTER, b"", b"")
served("lines: an empty one behind a body", post(b"Content-Length: 3", body=b"abc\r\n" + AFTER), b"abc", b"")
served("lines: an empty value", get(b"X:") + AFTER, b"", b"")
served("lines: high bytes in a value", get(b"X: \xc3\xa9\xff") + AFTER, b"", b"")
served("lines: every letter of a token", get(b"!#$%&'*+-.^_`|~9aZ: y") + AFTER, b"", b"")
served("lines: a value that looks like a head", get(b"X: a GET /evil HTTP/1.1 Host: here") + AFTER, b"", b"")
served("lines: escaped line ends", get(b"X: %0d%0aContent-Length: 5\\r\\n") + AFTER, b"", b"")
served("lines: a head that never ends", b"GET /x HTTP/1.1\r\nHost: here\r\nX: y\r\n")
served("lines: only a letter", b"G")

# --- the first line ------------------------------------------------------------------------------------------------

for name, first in {
    "two spaces behind the method": b"GET  /x HTTP/1.1",
    "two spaces before the version": b"GET /x  HTTP/1.1",
    "a tab behind the method": b"GET\t/x HTTP/1.1",
    "a tab before the version": b"GET /x\tHTTP/1.1",
    "a space at the end": b"GET /x HTTP/1.1 ",
    "a space in the target": b"GET /x y HTTP/1.1",
    "a request within": b"GET /x HTTP/1.1 GET /evil HTTP/1.1",
    "a version in front": b"HTTP/1.1 GET /x",
    "no target": b"GET HTTP/1.1",
    "no method": b"/x HTTP/1.1",
    "a NUL in the target": b"GET /\0x HTTP/1.1",
    "a control byte in the target": b"GET /\x01x HTTP/1.1",
    "a DEL in the target": b"GET /\x7fx HTTP/1.1",
    "a high byte in the target": b"GET /\xe9 HTTP/1.1",
    "a vertical tab in the target": b"GET /x\x0b HTTP/1.1",
    "a CR in the target": b"GET /x\r HTTP/1.1",
    "a fragment": b"GET /x#y HTTP/1.1",
    "a fragment behind a query": b"GET /x?y#z HTTP/1.1",
    "an empty fragment": b"GET /x# HTTP/1.1",
    "a backslash": b"GET /x\\y HTTP/1.1",
    "a backslash for the slash": b"GET \\x HTTP/1.1",
    "a backslash that climbs": b"GET /x\\..\\y HTTP/1.1",
    "a path that climbs": b"GET /x/../y HTTP/1.1",
    "a path that climbs at its end": b"GET /x/.. HTTP/1.1",
    "a path that begins with a climb": b"GET /../x HTTP/1.1",
    "no slash": b"GET x HTTP/1.1",
    "only a query": b"GET ?x HTTP/1.1",
    "an authority": b"GET here:80 HTTP/1.1",
    "a star": b"GET * HTTP/1.1",
    "a star and more": b"OPTIONS *x HTTP/1.1",
    "in HTTP/1.2": b"GET /x HTTP/1.2",
    "in HTTP/1.9": b"GET /x HTTP/1.9",
    "in HTTP/01.1": b"GET /x HTTP/01.1",
    "in HTTP/1.01": b"GET /x HTTP/1.01",
    "in HTTP/1.10": b"GET /x HTTP/1.10",
    "in HTTP/1.1x": b"GET /x HTTP/1.1x",
    "in HTTP/1": b"GET /x HTTP/1",
    "in HTTP/1,1": b"GET /x HTTP/1,1",
    "in HTTP/+1.1": b"GET /x HTTP/+1.1",
    "in HTTP /1.1": b"GET /x HTTP /1.1",
    "in http/1.1": b"GET /x http/1.1",
    "in HTTPS/1.1": b"GET /x HTTPS/1.1",
    "in RTSP/1.0": b"GET /x RTSP/1.0",
    "in ICE/1.0": b"SOURCE /x ICE/1.0",
    "in SIP/2.0": b"OPTIONS /x SIP/2.0",
    "a method in small letters": b"get /x HTTP/1.1",
    "a method in mixed letters": b"Get /x HTTP/1.1",
    "a method nobody knows": b"FROB /x HTTP/1.1",
    "a method with a colon": b"GET: /x HTTP/1.1",
    "a method and a NUL": b"GET\0 /x HTTP/1.1",
    "a method of another protocol": b"ANNOUNCE /x HTTP/1.1",
    "a method cut short": b"GE /x HTTP/1.1",
    "a method too long": b"GETT /x HTTP/1.1",
}.items():
    refused(f"first line: {name}", get(first=first) + EVIL, 400, 501, 505)

refused("first line: HTTP/0.9", b"GET /x\r\n\r\n", 400, 505)
refused("first line: HTTP/0.9 and headers", b"GET /x\r\nHost: here\r\n\r\n", 400, 505)
refused("first line: HTTP/0.9 by name", get(first=b"GET /x HTTP/0.9"), 400, 505)
refused("first line: HTTP/2.0", get(first=b"GET /x HTTP/2.0"), 505)
refused("first line: HTTP/3.0", get(first=b"GET /x HTTP/3.0"), 400, 505)
refused("first line: HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0", 400, 505)
refused("first line: a tunnel", get(first=b"CONNECT here:443 HTTP/1.1", host=b"Host: here:443"), 400, 501)
refused("first line: a tunnel to a path", get(first=b"CONNECT /x HTTP/1.1"), 400, 501)
refused("first line: TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60))
refused("first line: an answer", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
refused("first line: the PROXY protocol", b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + get())
refused("first line: a target too long", get(first=b"GET /" + b"x" * 17_000 + b" HTTP/1.1"), 414, 431)
refused("first line: a query too long", get(first=b"GET /?" + b"x" * 17_000 + b" HTTP/1.1"), 414, 431)
served("first line: an escaped path", get(first=b"GET /%2e%2e/x%00%0d%0a HTTP/1.1") + AFTER, b"", b"")
served("first line: two slashes", get(first=b"GET //here/x HTTP/1.1") + AFTER, b"", b"")
served("first line: a question mark alone", get(first=b"GET /? HTTP/1.1") + AFTER, b"", b"")
served("first line: a URL in the query", get(first=b"GET /x?u=http://there/../y HTTP/1.1") + AFTER, b"", b"")
served("first line: a star for OPTIONS nobody claims", get(first=b"OPTIONS * HTTP/1.1", host=b"Host: here"))
served("first line: HTTP/1.0 is closed after it", get(first=b"GET /x HTTP/1.0") + EVIL, b"")
served("first line: HTTP/1.0 kept", get(b"Connection: keep-alive", first=b"GET /x HTTP/1.0") + AFTER, b"", b"")
served("first line: HTTP/1.0 without Host", b"GET /x HTTP/1.0\r\n\r\n" + EVIL, b"")
served("first line: QUERY, a new method", get(b"Content-Length: 3", first=b"QUERY /x HTTP/1.1") + b"abc", b"abc")

# --- hosts ---------------------------------------------------------------------------------------------------------

ABSOLUTE = b"GET http://%b HTTP/1.1"
for name, data in {
    "none": get(host=None),
    "none, and an absolute target": get(first=ABSOLUTE % b"here/x", host=None),
    "two that agree": get(b"Host: here"),
    "two that differ": get(b"Host: there"),
    "two, one in small letters": get(b"host: there"),
    "two, one folded": get(b"X: y", b" Host: there"),
    "a second, empty": get(b"Host:"),
    "empty": get(host=b"Host:"),
    "only a space": get(host=b"Host:  "),
    "a list": get(host=b"Host: here, there"),
    "a list without a space": get(host=b"Host: here,there"),
    "two words": get(host=b"Host: here there"),
    "a path": get(host=b"Host: here/evil"),
    "a query": get(host=b"Host: here?evil"),
    "a fragment": get(host=b"Host: here#evil"),
    "a user": get(host=b"Host: user@here"),
    "a user and a password": get(host=b"Host: user:secret@here"),
    "a scheme": get(host=b"Host: http://here"),
    "a backslash": get(host=b"Host: here\\evil"),
    "a NUL": get(host=b"Host: here\0"),
    "a tab within": get(host=b"Host: he\tre"),
    "a high byte": get(host=b"Host: h\xe9re"),
    "a port of letters": get(host=b"Host: here:http"),
    "a port with a sign": get(host=b"Host: here:+80"),
    "a port of six digits": get(host=b"Host: here:800000"),
    "two ports": get(host=b"Host: here:80:81"),
    "only a port": get(host=b"Host: :80"),
    "an open bracket": get(host=b"Host: [::1"),
    "brackets in the middle": get(host=b"Host: here[1]"),
    "brackets with letters": get(host=b"Host: [here]"),
    "a quote": get(host=b'Host: "here"'),
    "angle brackets": get(host=b"Host: <here>"),
    "a space before the colon": get(host=b"Host : here"),
    "a name that begins as Host": get(host=b"Hos: here"),
    "an absolute target elsewhere": get(first=ABSOLUTE % b"there/x"),
    "an absolute target with another port": get(first=ABSOLUTE % b"here:81/x"),
    "an absolute target with a user": get(first=ABSOLUTE % b"user@here/x"),
    "an absolute target with a user, in both": get(first=ABSOLUTE % b"user@here/x", host=b"Host: user@here"),
    "an absolute target whose host is before the at": get(first=ABSOLUTE % b"here@there/x"),
    "an absolute target with a backslash": get(first=ABSOLUTE % b"here\\@there/x"),
    "an absolute target with a fragment": get(first=ABSOLUTE % b"here/x#y"),
    "an absolute target without a host": get(first=ABSOLUTE % b"/x"),
    "an absolute target without a host, in both": get(first=ABSOLUTE % b"/x", host=b"Host:"),
    "an absolute target that climbs": get(first=ABSOLUTE % b"here/x/../y"),
    "an absolute target within one": get(first=b"GET /x/http://there/../y HTTP/1.1"),
    "another scheme": get(first=b"GET ftp://here/x HTTP/1.1"),
    "a scheme and no slashes": get(first=b"GET http:here/x HTTP/1.1"),
    "a scheme and one slash": get(first=b"GET http:/here/x HTTP/1.1"),
    "a query for a path": get(first=ABSOLUTE % b"here?x"),
}.items():
    refused(f"host: {name}", data + EVIL)

served("host: an absolute target that agrees", get(first=ABSOLUTE % b"HERE/x") + AFTER, b"", b"")
served("host: an absolute target without a path", get(first=ABSOLUTE % b"here") + AFTER, b"", b"")
served("host: in capitals, with a port", get(host=b"HOST: HERE:8787") + AFTER, b"", b"")
served("host: an IPv6 address", get(host=b"Host: [::1]:80") + AFTER, b"", b"")
served("host: spaces around it", get(first=ABSOLUTE % b"here/x", host=b"Host: \there \t") + AFTER, b"", b"")
served("host: named by Connection", get(b"Connection: host, x-request-id") + AFTER, b"", b"")
served("host: another in X-Forwarded-Host", get(b"X-Forwarded-Host: there", b"X-Original-URL: /evil") + AFTER, b"", b"")

# --- too much ------------------------------------------------------------------------------------------------------

refused("size: a value too long", get(b"X: " + b"y" * 70_000), 431)
refused("size: a name too long", get(b"X" * 70_000 + b": y"), 431)
refused("size: too many headers", get(*[b"X: y"] * 200), 431)
refused("size: too many bytes of headers", get(*[b"X: " + b"y" * 1000] * 100), 431)
refused("size: a head without end", b"GET /x HTTP/1.1\r\nHost: here\r\nX: " + b"y" * 80_000, 431)
refused("size: empty lines without end", b"\r\n" * 40_000 + get(), 431)
refused("size: a method too long", b"X" * 80_000, 400, 431)

# --- one after another ---------------------------------------------------------------------------------------------

served("order: what follows a close is not served", get(b"Connection: close") + EVIL, b"")
served("order: close among other options", get(b"Connection: x, CLOSE ,y") + EVIL, b"")
served("order: close in a second line", get(b"Connection: keep-alive", b"Connection: close") + EVIL, b"")
served(
    "order: close and keep-alive, in HTTP/1.0",
    get(b"Connection: keep-alive, close", first=b"GET /x HTTP/1.0") + EVIL,
    b"",
)
served("order: close behind a body", post(b"Connection: close", b"Content-Length: 3", body=b"abc" + EVIL), b"abc")
served("order: close behind chunks", post(b"Connection: close", TE, body=CHUNK + EVIL), b"abc")
served("order: three at once", get() + post(b"Content-Length: 3", body=b"abc") + AFTER, b"", b"abc", b"")
refused("order: a right one, then a wrong one", get() + get(b"X : y") + EVIL, after=(b"",))
refused("order: a right one, then rubbish", get() + b"\x00\x01\x02", after=(b"",))
refused("order: junk behind a body", post(b"Content-Length: 3", body=b"abcX" + EVIL), after=(b"abc",))
refused("order: junk behind chunks", post(TE, body=CHUNK + b"X" + EVIL), after=(b"abc",))
refused("order: a bare LF behind a body", post(b"Content-Length: 3", body=b"abc\n" + AFTER), after=(b"abc",))
refused(
    "order: the chunks of a request with a length", post(b"Content-Length: 3", body=b"abc" + CHUNK), after=(b"abc",)
)

# --- expectations and upgrades -------------------------------------------------------------------------------------

EXPECT = b"Expect: 100-continue"
served("expect: the body comes at once", post(EXPECT, b"Content-Length: 3", body=b"abc" + AFTER), b"abc", b"")
served("expect: in chunks", post(EXPECT, TE, body=CHUNK + AFTER), b"abc", b"")
served("expect: and no body", get(EXPECT) + AFTER, b"", b"")
served("expect: a length of nought", post(EXPECT, b"Content-Length: 0", body=AFTER), b"", b"")
served("expect: in HTTP/1.0", post(EXPECT, b"Content-Length: 3", body=b"abc" + EVIL, version=b"1.0"), b"abc")
served("expect: in other letters", post(b"expect: 100-Continue", b"Content-Length: 3", body=b"abc"), b"abc")
served("expect: the body is a request", post(EXPECT, b"Content-Length: %d" % len(EVIL), body=EVIL), EVIL)
served("expect: the body never comes", post(EXPECT, b"Content-Length: 3"))
refused("expect: both framings", post(EXPECT, b"Content-Length: 3", TE, body=CHUNK))
refused("expect: something else", post(b"Expect: 200-ok", b"Content-Length: 3", body=b"abc" + EVIL), 417)
refused("expect: more than that", post(b"Expect: 100-continue, x", b"Content-Length: 3", body=b"abc"), 417)
refused("expect: obfuscated", post(b"Expect: y 100-continue", b"Content-Length: 3", body=b"abc"), 417)
refused("expect: folded", post(b"Expect:\r\n 100-continue", b"Content-Length: 3", body=b"abc"))
served(
    "upgrade: h2c",
    get(b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMA") + AFTER,
    b"",
    b"",
)
served("upgrade: h2c not named by Connection", get(b"Upgrade: h2c", b"HTTP2-Settings: AAMA") + AFTER, b"", b"")
served("upgrade: TLS", get(b"Upgrade: TLS/1.0", b"Connection: Upgrade") + AFTER, b"", b"")
served(
    "upgrade: a body that is a request",
    post(b"Upgrade: h2c", b"Connection: Upgrade", b"Content-Length: %d" % len(EVIL), body=EVIL),
    EVIL,
)
served("upgrade: in chunks", post(b"Upgrade: x", b"Connection: Upgrade", TE, body=CHUNK + AFTER), b"abc", b"")
refused(
    "upgrade: both framings", post(b"Upgrade: websocket", b"Connection: Upgrade", b"Content-Length: 3", TE, body=CHUNK)
)

WS = (b"Connection: Upgrade", b"Sec-WebSocket-Key: x")
served("upgrade: a WebSocket that is refused, and a request behind", get(b"Upgrade: websocket", *WS) + AFTER, b"", b"")
served(
    "upgrade: a WebSocket of no known version",
    get(b"Upgrade: websocket", b"Sec-WebSocket-Version: 7", *WS) + AFTER,
    b"",
    b"",
)
served(
    "upgrade: a WebSocket by POST", post(b"Upgrade: websocket", *WS, b"Content-Length: %d" % len(EVIL), body=EVIL), EVIL
)
served("upgrade: a WebSocket and h2c", get(b"Upgrade: websocket, h2c", *WS) + AFTER, b"", b"")
served(
    "upgrade: a WebSocket and h2c in a second line", get(b"Upgrade: websocket", b"Upgrade: h2c", *WS) + AFTER, b"", b""
)
served("upgrade: a WebSocket not named by Connection", get(b"Upgrade: websocket") + AFTER, b"", b"")
served("upgrade: a WebSocket in HTTP/1.0", get(b"Upgrade: websocket", *WS, first=b"GET /x HTTP/1.0") + EVIL, b"")
served(
    "upgrade: a WebSocket with a body", get(b"Upgrade: websocket", *WS, b"Content-Length: %d" % len(EVIL)) + EVIL, EVIL
)
served("upgrade: a WebSocket in chunks", get(b"Upgrade: websocket", *WS, TE) + CHUNK + AFTER, b"abc", b"")
refused("upgrade: a WebSocket, and rubbish behind", get(b"Upgrade: websocket", *WS) + b"\x81\x05hello", after=(b"",))
