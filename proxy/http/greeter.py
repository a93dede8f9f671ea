"""Callers who speak TLS are met here, and led to their door once the handshake is over.

    accepted --room left--> WAITING --first bytes--> SHAKING HANDS --well--> the door, with what was said meanwhile
        |                      |  +--plain HTTP--> 400     +--broken--> closed, counted
        |                      +-------------longer than head_s-------> closed, counted
        +--connections_max--> closed

Who shakes hands is counted among the doors: half a handshake takes a place, and gives it back in time. Afterwards the
greeter stays beside the connection for its end: closing TLS waits for the other side to say goodbye, which clients with
an idle pool never do.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from understudy.proxy.http.hall import Guest
    from understudy.proxy.settings.settings import Limits

HANDSHAKE = 0x16
"""The first byte of every TLS connection: a record of the handshake."""
PLAIN_HTTP = b"this port speaks TLS: ask again with https://\n"
_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no_certificate",
    "CERTIFICATE_VERIFY_FAILED": "untrusted",
    "UNSUPPORTED_PROTOCOL": "version",
    "NO_SHARED_CIPHER": "version",
    "UNEXPECTED_EOF_WHILE_READING": "left",
}
_SHORT = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C"}


class Reception(Protocol):
    """What a greeter needs of its hall."""

    loop: asyncio.AbstractEventLoop
    limits: Limits
    clock: Callable[[], float]
    doors: set[Guest]
    shells: set[Guest]
    draining: bool
    refused_connections: int
    tls: ssl.SSLContext | None
    tls_failures: Counter[str]


class Greeter(asyncio.Protocol):
    """One connection until it is known who is there; `door` has it from then on."""

    __slots__ = ("_came_at", "_door", "_ending", "_hall", "_said", "_shaking", "_tls", "_transport")

    def __init__(self, hall: Reception, door: asyncio.Protocol) -> None:
        self._hall = hall
        self._door = door
        self._said: list[bytes] = []
        self._came_at = hall.clock()
        self._transport: asyncio.Transport | None = None
        self._tls: asyncio.Transport | None = None
        self._ending = False
        self._shaking: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)
        hall = self._hall
        if len(hall.doors) >= hall.limits.connections_max or hall.draining:
            # nobody could read a refusal before a handshake, which is what there is no room for
            hall.refused_connections += 1
            transport.abort()
            return
        hall.doors.add(self)

    def data_received(self, data: bytes) -> None:
        """The first bytes, or those between the handshake's end and the next turn of the loop."""
        transport, context = self._transport, self._hall.tls
        self._said.append(data)
        if self._shaking is not None or transport is None:
            return
        if data[0] != HANDSHAKE or context is None:
            self._turn_away(transport, is_http=data[:1].isalpha())
            return
        # the task's first step has the transport begin anew with the handshake in a turn of its own; by way of two
        # turns we are right behind it, before the socket is read again
        transport.pause_reading()
        loop = self._hall.loop
        self._shaking = loop.create_task(self._shake(transport, context))
        loop.call_soon(loop.call_soon, self._repeat, transport)

    def _repeat(self, transport: asyncio.Transport) -> None:
        """Say to the handshake what came before it had begun."""
        said, self._said = b"".join(self._said), []
        shaking = transport.get_protocol()
        if shaking is self:
            return  # it never came to that
        # uvloop's is a BufferedProtocol in all but its bases
        shaking = cast("asyncio.BufferedProtocol", shaking)
        while said and not transport.is_closing():
            into = memoryview(shaking.get_buffer(len(said)))
            count = min(len(into), len(said))
            into[:count] = said[:count]
            shaking.buffer_updated(count)
            said = said[count:]

    def _turn_away(self, transport: asyncio.Transport, *, is_http: bool) -> None:
        self._count("plain_http" if is_http else "not_tls")
        if is_http:
            head = (
                b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n"
            )
            transport.write(head % len(PLAIN_HTTP) + b"\r\n" + PLAIN_HTTP)
        transport.close()

    async def _shake(self, transport: asyncio.Transport, context: ssl.SSLContext) -> None:
        hall, limits = self._hall, self._hall.limits
        try:
            # closing waits for what is unsent, which the door has clocks for: it must not end before they do
            tls = await hall.loop.start_tls(
                transport,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=limits.head_s,
                ssl_shutdown_timeout=limits.idle_s,
            )
        except (OSError, RuntimeError) as error:
            self._count(reason_of(error))
            transport.abort()
            return
        finally:
            hall.doors.discard(self)
        if tls is None or tls.is_closing():
            return
        self._tls = tls
        hall.shells.add(self)
        tls.set_protocol(self._door)
        self._door.connection_made(tls)
        if self._said and not tls.is_closing():
            self._door.data_received(b"".join(self._said))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        self._count("left")

    def _count(self, reason: str) -> None:
        """Once for each: who is not among the doors any more has been counted, or has its door."""
        if self in self._hall.doors:
            self._hall.doors.discard(self)
            self._hall.tls_failures[reason] += 1

    # --- as a guest, in the place of the door ------------------------------------------------------------------------

    @property
    def unsent_bytes(self) -> int:
        """Nothing has been said that could wait to be taken."""
        return 0

    def abort(self) -> None:
        """Close, whatever is going on."""
        if self._transport is not None:
            self._transport.abort()

    cut_off = abort

    def check_clocks(self, now: float) -> None:
        """Close who takes longer for a handshake than a head may take, and who was told goodbye and does not answer."""
        if self._tls is not None:
            self._see_off(self._tls)
        elif now - self._came_at > self._hall.limits.head_s:
            self._count("timeout")
            self.abort()

    def _see_off(self, tls: asyncio.Transport) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            self._hall.shells.discard(self)
        elif tls.is_closing() and not tls.get_write_buffer_size() and not transport.get_write_buffer_size():
            # everything has been taken; a second for the other side's goodbye
            if self._ending:
                transport.abort()
            self._ending = True

    def drain(self) -> None:
        """Who has come is let in, and told at the door."""


def reason_of(error: Exception) -> str:
    """Why a handshake failed, in one of a few words."""
    if isinstance(error, ssl.SSLError):
        reason = error.reason or ""
        if "_ALERT_" in reason:
            # it is the caller who does not trust us, or finds no version or cipher of its own
            return "refused_by_caller"
        return _REASONS.get(reason, "not_tls" if "VERSION" in reason or "RECORD" in reason else "other")
    return "timeout" if isinstance(error, ConnectionAbortedError) else "left"


def subject_of(transport: asyncio.BaseTransport) -> bytes:
    """Whom the peer's verified certificate names: its URI (as SPIFFE has it), else its subject, else its host name.

    b"" where it showed none.
    """
    shown = transport.get_extra_info("ssl_object")
    certificate = cast("dict[str, object]", (shown.getpeercert() if shown is not None else None) or {})
    others = cast("tuple[tuple[str, str], ...]", certificate.get("subjectAltName", ()))
    for name, value in others:
        if name == "URI":
            return b"URI:" + value.encode()
    subject = cast("tuple[tuple[tuple[str, str], ...], ...]", certificate.get("subject", ()))
    parts = [f"{_SHORT.get(name, name)}={_escaped(value)}" for group in subject for name, value in group]
    if parts:
        return ",".join(parts).encode()
    return next((b"DNS:" + value.encode() for name, value in others if name == "DNS"), b"")


def _escaped(value: str) -> str:
    """So that no name can look like two (RFC 4514)."""
    return "".join("\\" + letter if letter in ',+"\\<>;=' else letter for letter in value)
