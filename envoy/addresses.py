"""Addresses as people write them."""

from __future__ import annotations

from typing import NamedTuple

from understudy.proxy.settings.addresses import parse_address, told_address
from understudy.proxy.settings.settings import Settings


class Address(NamedTuple):
    """A host and a port; the host is an IPv6 address without its brackets, an IPv4 address or a name."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_address(text: str) -> Address:
    """`host:port`, `[::1]:port`. Raises ValueError with a reason fit for people."""
    host, port = parse_address(text)
    if not host or not port:
        raise ValueError(f"{text!r} is no address to connect to; write HOST:PORT, with brackets round an IPv6 host")
    return Address(host, port)


def sidecar_address(settings: Settings) -> Address:
    """Where a neighbour reaches the sidecar: its first plain listener, on loopback when it listens everywhere.

    Raises ValueError where there is none.
    """
    address, tls = told_address(settings)
    if tls:
        why = "Envoy speaks plain HTTP to its sidecar: add a loopback address that server.tls.listen leaves out"
        raise ValueError(why)
    host, port = read_address(address)
    return Address({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)  # noqa: S104 - compared, not bound
