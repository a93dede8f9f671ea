"""Whatever is said in right HTTP arrives with the same meaning, and so does whatever is answered."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.http.house import House, turns
from tests.kit.fake_upstream import Heard, Wire
from understudy.proxy.settings.settings import Limits

TOKEN = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_.!", min_size=1, max_size=12)
OURS_OR_THE_HOPS = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade", "host", "content-length", "expect", "x-request-id", "content-encoding",
    "content-type", "date",
}  # fmt: skip
VALUE = st.binary(max_size=30).map(
    lambda value: bytes(byte for byte in value if byte == 9 or 32 <= byte < 127 or byte > 127).strip(b" \t")
)
HEADERS = st.lists(
    st.tuples(TOKEN.filter(lambda name: name.lower() not in OURS_OR_THE_HOPS).map(str.encode), VALUE), max_size=8
)
PIECES = st.lists(st.binary(min_size=1, max_size=300), max_size=5)
Framing = Literal["length", "chunked", "until-close", "none"]


@dataclass
class Said:
    """A request, and the answer it shall get."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    pieces: list[bytes]
    framing: Framing
    status: int
    answer_headers: list[tuple[bytes, bytes]]
    answer_pieces: list[bytes]
    answer_framing: Framing

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def raw(self, number: int) -> bytes:
        lines = [f"{self.method} {self.target} HTTP/1.1\r\nHost: here\r\nx-number: {number}\r\n".encode()]
        lines += [name + b":" + b" " * (number % 3) + value + b"\r\n" for name, value in self.headers]
        if self.framing == "chunked":
            return b"".join((*lines, b"Transfer-Encoding: Chunked\r\n\r\n", *map(_chunk, self.pieces), b"0\r\n\r\n"))
        if self.framing == "length":
            lines.append(b"Content-Length: %d\r\n" % len(self.body))
        return b"".join((*lines, b"\r\n", self.body))


def _chunk(piece: bytes) -> bytes:
    return b"%X;ext=1\r\n%b\r\n" % (len(piece), piece)


@st.composite
def sayings(draw: st.DrawFn) -> Said:
    pieces = draw(PIECES)
    framing: Framing = (
        draw(st.sampled_from(["length", "chunked"])) if pieces else draw(st.sampled_from(["none", "length"]))
    )
    segments = draw(st.lists(st.text("abcXYZ019-._~%!$&'()*+,;=:@", max_size=8), max_size=4))
    query = draw(st.none() | st.text("abc=&%?/+-", max_size=20))
    path = "/" + "/".join(segment for segment in segments if segment != "..")
    return Said(
        draw(st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])),
        path + ("" if query is None else "?" + query),
        draw(HEADERS),
        pieces,
        framing,
        draw(st.sampled_from([200, 201, 204, 299, 301, 304, 400, 404, 418, 500, 599])),
        draw(HEADERS.map(lambda headers: [one for one in headers if not one[0].lower().startswith(b"x-understudy-")])),
        draw(PIECES),
        draw(st.sampled_from(["length", "chunked", "until-close"])),
    )


def playing(said: Said):
    async def play(wire: Wire, heard: Heard) -> None:
        bodiless = heard.method == b"HEAD" or said.status in (204, 304)
        body = b"".join(said.answer_pieces)
        if said.answer_framing == "chunked" and said.status not in (204, 304):
            await wire.head(said.status, [*said.answer_headers, (b"Transfer-Encoding", b"chunked")])
            if not bodiless:
                for piece in said.answer_pieces:
                    await wire.chunk(piece)
                await wire.write(b"0\r\n\r\n")
        elif said.answer_framing == "until-close":
            await wire.head(said.status, [*said.answer_headers, (b"Connection", b"close")])
            if not bodiless:
                await wire.write(body)
            wire.close()
        else:
            length = [] if said.status in (204, 304) else [(b"Content-Length", b"%d" % len(body))]
            await wire.head(said.status, [*said.answer_headers, *length])
            if not bodiless:
                await wire.write(body)

    return play


def ends(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers as they are compared: names in small letters."""
    return [(name.lower(), value) for name, value in headers]


@given(
    st.lists(sayings(), min_size=1, max_size=6),
    st.lists(st.integers(1, 400), max_size=12),
    st.sampled_from(["plain", "openai-chat"]),
)
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
async def test_requests_and_answers_arrive_with_the_same_meaning(said: list[Said], cuts: list[int], dialect: str):
    if dialect == "openai-chat":
        # there a POST is no matter of passing on
        said = [one for one in said if one.method != "POST"]
    async with House(dialect=dialect, limits=Limits(pipelined_max=50), ticking=False) as house:
        house.up.respond = lambda heard: playing(said[int(heard.header(b"x-number") or 0)])
        caller = await house.caller()
        rest = b"".join(one.raw(number) for number, one in enumerate(said))

        async def talk() -> None:
            nonlocal rest
            for cut in cuts:
                caller.say(rest[:cut])
                rest = rest[cut:]
                await turns(2)
            caller.say(rest)

        talking = asyncio.ensure_future(talk())
        for number, one in enumerate(said):
            got = await caller.hears(one.method)
            assert got.status == one.status
            assert got.whole
            theirs = [header for header in ends(got.headers) if not header[0].startswith(b"x-understudy-")]
            framing = (b"content-length", b"transfer-encoding", b"x-request-id", b"connection")
            assert [header for header in theirs if header[0] not in framing] == ends(one.answer_headers)
            if one.method != "HEAD" and one.status not in (204, 304):
                assert got.body == b"".join(one.answer_pieces)
            heard = [heard for heard in house.up.heard if heard.header(b"x-number") == b"%d" % number][-1]
            assert (heard.method, heard.target, heard.body) == (one.method.encode(), one.target.encode(), one.body)
            passed = [header for header in ends(heard.headers) if header[0] not in (b"host", *framing, b"x-number")]
            assert passed == ends(one.headers)
        await talking
        assert house.up.garbled == []
