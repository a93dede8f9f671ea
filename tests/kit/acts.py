"""Acts for a FakeUpstream: everything a server has been seen to do to its callers.

    upstream.then(reset(), broken("cut", after=10), answer(200, body={"ok": True}))

Each function makes an act, `async (Wire, Heard) -> None`; an act that ends by raising Gone has its connection closed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Literal

from tests.kit.fake_upstream import Act, Gone, Headers, Heard, Wire

Framing = Literal["length", "chunked", "until-close"]
Ending = Literal["whole", "cut", "reset", "stall"]
"""How an answer ends: as it should, closed in order, with a RST, or not at all while the socket stays open."""


def answer(
    status: int = 200,
    headers: Headers = (),
    body: bytes | str | dict[str, Any] | list[Any] = b"",
    *,
    framing: Framing = "length",
    chunk_bytes: int = 4096,
    delay_s: float = 0.0,
) -> Act:
    """A proper answer, `delay_s` after the request; a dict or list becomes JSON. `framing` as HTTP/1.1 has them."""
    content = body if isinstance(body, bytes) else _encoded(body)
    named = list(headers)
    if not isinstance(body, bytes | str):
        named.append((b"content-type", b"application/json"))

    async def play(wire: Wire, heard: Heard) -> None:
        await asyncio.sleep(delay_s)
        if framing == "length":
            await _send_whole(wire, heard, status, named, content)
            return
        chunked = framing == "chunked"
        await wire.head(status, [*named, (b"transfer-encoding", b"chunked") if chunked else (b"connection", b"close")])
        for at in range(0, len(content), chunk_bytes):
            piece = content[at : at + chunk_bytes]
            await (wire.chunk(piece) if chunked else wire.write(piece))
        if chunked:
            await wire.write(b"0\r\n\r\n")
        else:
            raise Gone

    return play


async def _send_whole(wire: Wire, heard: Heard, status: int, headers: Headers, content: bytes) -> None:
    bodiless = status == 204 or status == 304
    length = [] if bodiless else [(b"content-length", b"%d" % len(content))]
    await wire.head(status, [*headers, *length])
    if content and not bodiless and heard.method != b"HEAD":
        await wire.write(content)


def _encoded(body: str | dict[str, Any] | list[Any]) -> bytes:
    return body.encode() if isinstance(body, str) else json.dumps(body).encode()


def raw(data: bytes, *, then: Ending = "whole") -> Act:
    """These bytes and no others, be they an answer or garbage."""

    async def play(wire: Wire, _heard: Heard) -> None:
        await wire.write(data)
        await _end(wire, then)

    return play


def silence() -> Act:
    """The request was read; nothing ever comes."""
    return raw_end("stall")


def hang_up() -> Act:
    """Closed in order before the first byte of an answer: what a dead pooled connection does on reuse."""
    return raw_end("cut")


def reset() -> Act:
    """Reset before the first byte of an answer."""
    return raw_end("reset")


def raw_end(ending: Ending) -> Act:
    """No answer at all, and this ending."""

    async def play(wire: Wire, _heard: Heard) -> None:
        await _end(wire, ending)

    return play


def broken(
    ending: Ending,
    *,
    after: int,
    body: bytes = b"x" * 4096,
    status: int = 200,
    headers: Headers = (),
    framing: Framing = "length",
) -> Act:
    """A right head, the first `after` bytes of the body, and then this ending: closed early, reset, or stalled.

    With `framing="chunked"` and `"cut"`, the body ends in order between two chunks but without the last one.
    """
    frame = (b"transfer-encoding", b"chunked") if framing == "chunked" else (b"content-length", b"%d" % len(body))
    named = [*headers] if framing == "until-close" else [*headers, frame]

    async def play(wire: Wire, _heard: Heard) -> None:
        await wire.head(status, named)
        if after:
            await (wire.chunk(body[:after]) if framing == "chunked" else wire.write(body[:after]))
        await _end(wire, ending)

    return play


def drip(body: bytes, *, bytes_per_s: float, piece_bytes: int = 1, status: int = 200, headers: Headers = ()) -> Act:
    """A right answer whose body trickles in at this rate, `piece_bytes` at a time."""

    async def play(wire: Wire, _heard: Heard) -> None:
        await wire.head(status, [*headers, (b"content-length", b"%d" % len(body))])
        for at in range(0, len(body), piece_bytes):
            await asyncio.sleep(piece_bytes / bytes_per_s)
            await wire.write(body[at : at + piece_bytes])

    return play


def drip_head(act_bytes: bytes, *, bytes_per_s: float) -> Act:
    """These bytes, head and all, one at a time at this rate."""

    async def play(wire: Wire, _heard: Heard) -> None:
        for at in range(len(act_bytes)):
            await asyncio.sleep(1 / bytes_per_s)
            await wire.write(act_bytes[at : at + 1])

    return play


def pieces(
    parts: Sequence[bytes],
    *,
    gap_s: float = 0.0,
    first_s: float = 0.0,
    ending: Ending = "whole",
    status: int = 200,
    headers: Headers = (),
    framing: Framing = "chunked",
) -> Act:
    """A streamed answer: the head at once, the first part after `first_s`, the others `gap_s` apart, the ending."""

    async def play(wire: Wire, _heard: Heard) -> None:
        chunked = framing == "chunked"
        await wire.head(status, [*headers, (b"transfer-encoding", b"chunked")] if chunked else headers)
        for at, part in enumerate(parts):
            await asyncio.sleep(gap_s if at else first_s)
            await (wire.chunk(part) if chunked else wire.write(part))
        if ending == "whole" and chunked:
            await wire.write(b"0\r\n\r\n")
        else:
            await _end(wire, "cut" if ending == "whole" else ending)

    return play


def sse(
    events: Sequence[str | dict[str, Any]],
    *,
    gap_s: float = 0.0,
    first_s: float = 0.0,
    ending: Ending = "whole",
    done: bool = True,
    status: int = 200,
    headers: Headers = (),
) -> Act:
    """A stream of server-sent events, one `data:` each (a dict as JSON), with `[DONE]` at the end if `done`."""
    told = [event if isinstance(event, str) else json.dumps(event) for event in events]
    if done and ending == "whole":
        told.append("[DONE]")
    named = [(b"content-type", b"text/event-stream"), *headers]
    parts = [f"data: {event}\n\n".encode() for event in told]
    return pieces(parts, gap_s=gap_s, first_s=first_s, ending=ending, status=status, headers=named)


def interim(act: Act, *, status: int = 103, headers: Headers = (), times: int = 1) -> Act:
    """Some 1xx answers, then the act."""

    async def play(wire: Wire, heard: Heard) -> None:
        for _ in range(times):
            await wire.head(status, headers)
        await act(wire, heard)

    return play


def early(act: Act) -> Act:
    """The act before the request's body was read, as a 413 or a 417 is; the connection is of no use afterwards."""

    async def play(wire: Wire, heard: Heard) -> None:
        await act(wire, heard)
        raise Gone

    play.before_body = True  # type: ignore[attr-defined]
    return play


async def _end(wire: Wire, ending: Ending) -> None:
    """Leave the answer as it is: keep the connection, close it, reset it, or fall silent until the caller leaves."""
    if ending == "cut":
        raise Gone
    if ending == "reset":
        wire.reset()
        raise Gone
    if ending == "stall":
        await wire.closed.wait()
